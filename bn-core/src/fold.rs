//! Folding for deployment: batch normalization by constants, written into the weights of a layer
//! before or behind it.
//!
//! ```text
//! BN(x) = (x − mean)·s + β,   s = γ/√(variance + ε)
//!
//! before:  BN(Σ w·x + b) = Σ (w·s)·x + ((b − mean)·s + β)
//! behind:  Σ w·BN(x) + b = Σ (w·s)·x + (b + Σ w·(β − mean·s))
//! ```
//! (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
//! Inference", 2018, section 3.2, has the first.) All in f64, with one rounding of each weight and bias
//! to its type at the end.

use crate::batch_norm::{Affine, entry};
use crate::element::Param;
use crate::error::{Error, epsilon as check_epsilon, length, not_negative};
use crate::inference::Prepared;
use crate::kernel::normalize::inverse_std;
use crate::layout::grid::{div, rem};

/// A batch normalization with constant statistics, to be folded into scale and shift, or into the
/// layer before or behind it.
///
/// It is made from running statistics ([`Fold::running`]; more exact) or from a [`Prepared`] table
/// ([`Fold::prepared`]). An activation of the batch normalization is the caller's to keep: behind
/// the layer that it was folded into, with [`into_preceding`](Self::into_preceding); with
/// [`into_following`](Self::into_following) there can be none.
///
/// Weights and biases are changed in place; a layer without a bias gets one, so bring zeros.
///
/// ```
/// use bn_core::{Affine, Fold};
/// // A dense layer of 2 inputs and 2 outputs, then batch normalization.
/// let (gamma, beta, mean, var) = ([2.0_f32, 1.0], [0.5, 0.0], [3.0, -1.0], [4.0, 0.25]);
/// let fold = Fold::running(Affine::new(&gamma, &beta), &mean, &var, 0.0)?;
/// let (mut weight, mut bias) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0]);
/// fold.into_preceding(2, &mut weight, &mut bias)?;
/// assert_eq!(weight, [1.0, 2.0, 6.0, 8.0]); // times 2/√4 and 1/√0.25
/// assert_eq!(bias, [-1.5, 2.0]); // (1 − 3)·1 + 0.5 and (0 + 1)·2
/// # Ok::<(), bn_core::Error>(())
/// ```
///
/// # Accuracy
/// u is half an ulp of 1: 2⁻²⁴ for f32, 2⁻⁵³ for f64. The folded layer, calculated without further
/// rounding, differs from the layer and the batch normalization, calculated without any, by at most
///
/// - before, from running statistics: k·u·(Σ|w·x·s| + |(b − mean)·s| + |β|),
/// - behind, from running statistics: k·u·(Σ|w·x·s| + |b| + Σ|w|·(|β| + |mean·s|)),
/// - from a table: the same with the k of the table, against the statistics that it was prepared from,
///
/// where k is 1.001 from running statistics and 2.001 from a table for f32, and 8 for f64; besides
/// half the smallest subnormal number for each weight (times |x|) and bias, or, where subnormals are
/// flushed, the smallest normal number.
///
/// Whoever calculates the folded layer adds the rounding of their own sums, which is in proportion to
/// the same magnitudes. That is the price of folding and no flaw of this one: while
/// [`BatchNorm::apply`](crate::BatchNorm::apply) subtracts the mean from x first, a folded layer has the mean in Σ w·x·s and
/// takes it off at the end, through the bias. Where |mean| is 10⁵ standard deviations, five of f32's
/// seven digits are gone. Do not fold such layers, or keep them in f64.
#[derive(Clone, Copy, Debug)]
pub struct Fold<'a, P> {
    source: Source<'a, P>,
    flush: bool,
}

#[derive(Clone, Copy, Debug)]
enum Source<'a, P> {
    Prepared(&'a [Prepared<P>]),
    Running { affine: Affine<'a, P>, mean: &'a [P], var: &'a [P], epsilon: f64 },
}

/// y = (x − mean)·scale + shift.
#[derive(Clone, Copy)]
struct Constants {
    mean: f64,
    scale: f64,
    shift: f64,
}

impl Constants {
    /// What 0 becomes.
    fn offset(self) -> f64 {
        self.shift - self.mean * self.scale
    }
}

/// A weight's channels: it is rows of `channels` × `taps`, and `rows` consecutive ones share their
/// channels; the next so many rows have the next channels.
#[derive(Clone, Copy)]
struct Grouping {
    rows: usize,
    channels: usize,
    taps: usize,
}

impl Grouping {
    /// The rows of a weight, each with its first channel. Sizes have been checked: their product is
    /// the weight's length.
    fn rows<W>(self, weight: &mut [W]) -> impl Iterator<Item = (usize, &mut [W])> {
        let Grouping { rows, channels, taps } = self;
        let row = channels.wrapping_mul(taps).max(1);
        weight.chunks_exact_mut(row).enumerate().map(move |(i, row)| (div(i, rows.max(1)).wrapping_mul(channels), row))
    }
}

impl<'a, P: Param> Fold<'a, P> {
    /// From gamma, beta and running statistics, one entry per channel: what
    /// [`BatchNorm::inference`](crate::BatchNorm::inference) takes. Variance and ε both 0 give a factor of 0, as there.
    ///
    /// # Errors
    /// [`Error::NoChannels`], [`Error::Length`], [`Error::Epsilon`]; [`Error::Value`] where a variance is
    /// negative.
    pub fn running(affine: Affine<'a, P>, mean: &'a [P], var: &'a [P], epsilon: f64) -> Result<Self, Error> {
        let channels = mean.len();
        if channels == 0 {
            return Err(Error::NoChannels);
        }
        length("var", var.len(), channels)?;
        length("gamma", affine.gamma.map_or(channels, <[P]>::len), channels)?;
        length("beta", affine.beta.map_or(channels, <[P]>::len), channels)?;
        check_epsilon(epsilon)?;
        not_negative("var", var)?;
        Ok(Fold { source: Source::Running { affine, mean, var, epsilon }, flush: false })
    }

    /// From a table of [`BatchNorm::prepare`](crate::BatchNorm::prepare), whose scales have been rounded to their type.
    ///
    /// # Errors
    /// [`Error::NoChannels`].
    pub fn prepared(table: &'a [Prepared<P>]) -> Result<Self, Error> {
        if table.is_empty() {
            Err(Error::NoChannels)
        } else {
            Ok(Fold { source: Source::Prepared(table), flush: false })
        }
    }

    /// Writes 0 (with the sign) instead of subnormal weights, biases, scales and shifts, which some
    /// processors multiply a hundred times slower, or flush by themselves.
    pub fn flush_subnormals(self) -> Self {
        Fold { flush: true, ..self }
    }

    /// Channels of the batch normalization.
    pub fn channels(&self) -> usize {
        match self.source {
            Source::Prepared(table) => table.len(),
            Source::Running { mean, .. } => mean.len(),
        }
    }

    /// Batch normalization as y = scale·x + shift, one entry per channel: scale = s,
    /// shift = β − mean·s.
    ///
    /// [Accuracy](Self#accuracy): as of a layer with one weight, which is 1, and no bias.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Unfoldable`] where a scale or a shift would not be finite. Nothing
    /// has been written then.
    pub fn scale_shift(self, scale: &mut [P], shift: &mut [P]) -> Result<(), Error> {
        length("scale", scale.len(), self.channels())?;
        length("shift", shift.len(), self.channels())?;
        for c in 0..self.channels() {
            let k = self.constants(c);
            self.round("scale", c, k.scale)?;
            self.round("shift", c, k.offset())?;
        }
        for (c, (scale, shift)) in scale.iter_mut().zip(shift).enumerate() {
            let k = self.constants(c);
            (*scale, *shift) = (self.round("scale", c, k.scale)?, self.round("shift", c, k.offset())?);
        }
        Ok(())
    }

    /// Into the convolution or dense layer whose outputs are normalized.
    ///
    /// `weight` is outputs × (inputs/groups × taps), outputs first, as PyTorch and ONNX have them: one
    /// output per channel of the batch normalization, `inputs_per_output` weights for each. So the
    /// number of groups does not matter: a depthwise 3×3 convolution has 9. Padding is legal. `bias`
    /// has one entry per channel: the layer's before, the folded one afterwards.
    ///
    /// Where outputs are the *last* dimension (Keras: dense, any convolution, depthwise), use
    /// [`into_preceding_transposed`](Self::into_preceding_transposed) with one group and one tap.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::ShapeOverflow`]; [`Error::Unfoldable`] where a folded weight or bias would
    /// not be finite. Nothing has been written then.
    pub fn into_preceding(self, inputs_per_output: usize, weight: &mut [P], bias: &mut [P]) -> Result<(), Error> {
        let grouping = Grouping { rows: 1, channels: self.channels(), taps: inputs_per_output };
        self.check(1, grouping, weight)?;
        self.fold_preceding(grouping, weight, bias)
    }

    /// Into the transposed convolution whose outputs are normalized.
    ///
    /// `weight` is inputs × (outputs/groups) × taps, inputs first, as PyTorch and ONNX have them: the
    /// inputs are cut into `groups`, and so are the outputs, which are the channels of the batch
    /// normalization. `bias` has one entry per channel: the layer's before, the folded one afterwards.
    ///
    /// # Errors
    /// [`Error::Groups`], [`Error::Length`], [`Error::ShapeOverflow`]; [`Error::Unfoldable`] where a folded weight
    /// or bias would not be finite. Nothing has been written then.
    pub fn into_preceding_transposed(
        self,
        inputs: usize,
        groups: usize,
        taps: usize,
        weight: &mut [P],
        bias: &mut [P],
    ) -> Result<(), Error> {
        let grouping = Grouping {
            rows: divide("inputs", inputs, groups)?,
            channels: divide("channels", self.channels(), groups)?,
            taps,
        };
        self.check(inputs, grouping, weight)?;
        self.fold_preceding(grouping, weight, bias)
    }

    /// Into the dense layer, or the convolution without padding, whose inputs are normalized.
    ///
    /// `weight` is outputs × (channels/groups) × taps, outputs first, as PyTorch and ONNX have them; a
    /// dense or 1×1 layer has one tap. Of a layer behind a flattening (N×C×S to N×(C·S)) the S
    /// positions are the taps. `bias` has one entry per output: the layer's before, the folded one
    /// afterwards. The sums for it are compensated, so that their length costs nothing.
    ///
    /// A layer that pads with zeros cannot be folded into: behind batch normalization the zeros are
    /// zeros, before it they would have to be what batch normalization makes zeros of. Nor can a
    /// transposed convolution, whose outputs do not all see the same taps.
    ///
    /// # Errors
    /// [`Error::Groups`], [`Error::Length`], [`Error::ShapeOverflow`]; [`Error::Unfoldable`] where a folded weight
    /// or bias would not be finite. Nothing has been written then.
    pub fn into_following(
        self,
        outputs: usize,
        groups: usize,
        taps: usize,
        weight: &mut [P],
        bias: &mut [P],
    ) -> Result<(), Error> {
        let grouping = Grouping {
            rows: divide("outputs", outputs, groups)?,
            channels: divide("channels", self.channels(), groups)?,
            taps,
        };
        self.check(outputs, grouping, weight)?;
        length("bias", bias.len(), outputs)?;
        self.scale_weight(grouping, weight, false)?;
        for ((o, b), (first, row)) in bias.iter().enumerate().zip(grouping.rows(weight)) {
            self.round("bias", o, self.bias_behind(grouping, first, row, *b))?;
        }
        for ((o, b), (first, row)) in bias.iter_mut().enumerate().zip(grouping.rows(weight)) {
            *b = self.round("bias", o, self.bias_behind(grouping, first, row, *b))?;
        }
        self.scale_weight(grouping, weight, true)
    }

    /// b + Σ w·(β − mean·s) over a row, compensated (Neumaier 1974).
    fn bias_behind(&self, grouping: Grouping, first: usize, row: &[P], bias: P) -> f64 {
        let (mut sum, mut lost) = (bias.to_f64(), 0.0);
        for (k, taps) in row.chunks_exact(grouping.taps.max(1)).enumerate() {
            let offset = self.constants(first + k).offset();
            for w in taps {
                let v = w.to_f64() * offset;
                let next = sum + v;
                lost += if sum.abs() >= v.abs() { (sum - next) + v } else { (v - next) + sum };
                sum = next;
            }
        }
        sum + lost
    }

    fn fold_preceding(&self, grouping: Grouping, weight: &mut [P], bias: &mut [P]) -> Result<(), Error> {
        length("bias", bias.len(), self.channels())?;
        let folded = |c: usize, b: P| {
            let k = self.constants(c);
            self.round("bias", c, (b.to_f64() - k.mean) * k.scale + k.shift)
        };
        self.scale_weight(grouping, weight, false)?;
        for (c, b) in bias.iter().enumerate() {
            folded(c, *b)?;
        }
        for (c, b) in bias.iter_mut().enumerate() {
            *b = folded(c, *b)?;
        }
        self.scale_weight(grouping, weight, true)
    }

    /// Multiplies each weight by its channel's scale; or only tells whether that would go well.
    fn scale_weight(&self, grouping: Grouping, weight: &mut [P], write: bool) -> Result<(), Error> {
        let mut index = 0;
        for (first, row) in grouping.rows(weight) {
            for (k, taps) in row.chunks_exact_mut(grouping.taps.max(1)).enumerate() {
                let scale = self.constants(first + k).scale;
                for w in taps {
                    let folded = self.round("weight", index, w.to_f64() * scale)?;
                    if write {
                        *w = folded;
                    }
                    index += 1;
                }
            }
        }
        Ok(())
    }

    /// Checks that there are as many weights as `rows` rows have.
    fn check(&self, rows: usize, grouping: Grouping, weight: &[P]) -> Result<(), Error> {
        let row = grouping.channels.checked_mul(grouping.taps);
        let expected = row.and_then(|n| n.checked_mul(rows)).ok_or(Error::ShapeOverflow)?;
        length("weight", weight.len(), expected)
    }

    /// To the parameters' type, or why not.
    fn round(&self, what: &'static str, index: usize, v: f64) -> Result<P, Error> {
        let rounded = P::from_f64(v);
        let a = rounded.to_f64().abs();
        if !(a < f64::INFINITY) {
            return Err(Error::Unfoldable { what, index });
        }
        Ok(if self.flush && a < smallest_normal::<P>() { P::from_f64(0.0_f64.copysign(v)) } else { rounded })
    }

    fn constants(&self, c: usize) -> Constants {
        match self.source {
            Source::Prepared(table) => {
                let p = table.get(c).copied().unwrap_or_default();
                Constants { mean: p.mean.to_f64(), scale: p.scale.to_f64(), shift: p.shift.to_f64() }
            }
            Source::Running { affine, mean, var, epsilon } => Constants {
                mean: entry(Some(mean), c, 0.0),
                scale: affine.gamma(c) * inverse_std(entry(Some(var), c, 1.0), epsilon),
                shift: affine.beta(c),
            },
        }
    }
}

fn smallest_normal<P>() -> f64 {
    if size_of::<P>() == size_of::<f32>() { f32::MIN_POSITIVE.into() } else { f64::MIN_POSITIVE }
}

/// n/groups, if that is a whole number.
fn divide(what: &'static str, n: usize, groups: usize) -> Result<usize, Error> {
    let groups_or_one = groups.max(1);
    if groups == 0 || rem(n, groups_or_one) != 0 {
        return Err(Error::Groups { what, of: n, groups });
    }
    Ok(div(n, groups_or_one))
}
