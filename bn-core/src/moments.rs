//! The state that statistics travel in.

use crate::element::Param;
use crate::error::{Error, epsilon as check_epsilon, length, not_negative};
use crate::kernel::normalize::inverse_std;
use crate::running::Variance;
use bytemuck::{Pod, Zeroable};

/// Count, mean and sum of squared deviations of a channel: Welford's state, and the one statistic
/// of the library.
///
/// A training forward pass writes one per channel, the backward pass reads them, running statistics
/// are updated from them, and shards, ranks and passes over a data set [`merge`](Moments::merge)
/// them. They are f64 for every element type; 24 bytes, the same in C.
///
/// ```
/// use bn_core::Moments;
/// let mut all = Moments::default();
/// for x in [1.0, 2.0, 4.0, 5.0] {
///     all.push(x);
/// }
/// assert_eq!((all.count, all.mean, all.m2), (4, 3.0, 10.0));
/// assert_eq!(all.variance(), 2.5);
/// assert_eq!(all.variance_unbiased(), 10.0 / 3.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Moments {
    /// Values so far.
    pub count: u64,
    /// Their mean; 0 if there are none.
    pub mean: f64,
    /// Σ (x − mean)².
    pub m2: f64,
}

// SAFETY: three fields of eight bytes that are Pod: no padding.
unsafe impl Pod for Moments {}
// SAFETY: all zeroes are valid for each field.
unsafe impl Zeroable for Moments {}

impl Moments {
    /// Nothing seen yet: the same as `default()`.
    pub const EMPTY: Moments = Moments { count: 0, mean: 0.0, m2: 0.0 };

    /// From the arrays that frameworks keep: the mean and the biased variance of `count` values.
    ///
    /// A mean that was rounded to f32 is wrong by up to 2⁻²⁴ of itself; a backward pass from such
    /// statistics is told so by [`crate::Statistics::Rounded`]. For whole arrays:
    /// [`moments_from_mean_var`].
    pub fn from_mean_var(count: u64, mean: f64, variance: f64) -> Self {
        Moments { count, mean, m2: variance * count as f64 }
    }

    /// From the other pair of arrays that frameworks keep: the mean, and the inverse standard deviation
    /// r = 1/√(biased variance + ε) of `count` values (PyTorch's `save_invstd`, cuDNN's
    /// `resultSaveInvVariance`).
    ///
    /// The variance is 1/r² − ε, and 0 where rounding has made that negative, so that
    /// [`inverse_std`](Self::inverse_std) with this ε gives r again, to f64 rounding. Where ε is far
    /// above the variance, r does not tell the variance, nor does anything that r is used for need it.
    /// r = 0 with ε = 0 is what a constant channel has (PyTorch's convention, and this library's), whose
    /// variance is 0.
    ///
    /// ```
    /// use bn_core::Moments;
    /// let m = Moments::from_mean_inverse_std(4, 3.0, 0.5, 1.5);
    /// assert_eq!((m.count, m.mean, m.variance()), (4, 3.0, 2.5));
    /// assert_eq!(m.inverse_std(1.5), 0.5);
    /// ```
    pub fn from_mean_inverse_std(count: u64, mean: f64, inverse_std: f64, epsilon: f64) -> Self {
        let sigma = 1.0 / inverse_std;
        let variance = sigma * sigma - epsilon;
        // NaN stays NaN.
        let none = variance < 0.0 || (inverse_std == 0.0 && epsilon == 0.0);
        Self::from_mean_var(count, mean, if none { 0.0 } else { variance })
    }

    /// 1/√(biased variance + ε), and 0 where that is 1/0.
    pub fn inverse_std(&self, epsilon: f64) -> f64 {
        inverse_std(self.variance(), epsilon)
    }

    /// The biased variance m2/count: what normalization divides by. 0 if there are no values.
    pub fn variance(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.m2 / self.count as f64 }
    }

    /// The unbiased variance m2/(count − 1); 0 below two values.
    pub fn variance_unbiased(&self) -> f64 {
        if self.count < 2 { 0.0 } else { self.m2 / (self.count - 1) as f64 }
    }

    /// Takes in one value (Welford, "Note on a method for calculating corrected sums of squares and
    /// products", 1962).
    pub fn push(&mut self, x: f64) {
        self.count = self.count.saturating_add(1);
        let delta = x - self.mean;
        self.mean += delta / self.count as f64;
        self.m2 += delta * (x - self.mean);
    }

    /// Takes in all that `other` has seen (Chan, Golub & LeVeque 1979). Either may be empty.
    ///
    /// Merging is exact in the count (up to `u64::MAX`, where it stays) and accurate to f64 rounding in the rest; it is not
    /// associative in the last bit, so merge in a fixed order where bits matter.
    pub fn merge(&mut self, other: &Moments) {
        self.merge_after(other, &mut Shares::default());
    }

    /// The same after a merge of another channel, whose shares are those of this one where counts are alike. (With a division for each
    /// channel and cell it was 7 % of the moments of 1×64×112×112.)
    #[inline(always)]
    pub(crate) fn merge_after(&mut self, other: &Moments, last: &mut Shares) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *other;
            return;
        }
        let counts = [self.count, other.count];
        if last.counts != counts {
            let share = other.count as f64 / self.count.saturating_add(other.count) as f64;
            *last = Shares { counts, share, weight: self.count as f64 * share };
        }
        let delta = other.mean - self.mean;
        self.m2 += other.m2 + delta * delta * last.weight;
        self.mean += delta * last.share;
        self.count = self.count.saturating_add(other.count);
    }
}

/// What merging takes of the two counts.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shares {
    counts: [u64; 2],
    share: f64,
    weight: f64,
}

/// Merges channel by channel.
///
/// # Errors
/// [`crate::Error::Length`] where the slices differ in length.
pub fn merge_moments(into: &mut [Moments], from: &[Moments]) -> Result<(), Error> {
    length("from", from.len(), into.len())?;
    for (a, b) in into.iter_mut().zip(from) {
        a.merge(b);
    }
    Ok(())
}

/// Statistics as the arrays that frameworks keep: the mean and the variance, one entry per channel,
/// rounded to the parameters' type.
///
/// Units: those of x, and of x². [`Variance::Biased`] is what normalization divides by (Keras, ONNX,
/// burn); [`Variance::Unbiased`] is 0 below two values.
/// NaN and values beyond the type's range become NaN and infinity there.
///
/// ```
/// use bn_core::{Moments, Variance, moments_from_mean_var, moments_to_mean_var};
/// let moments = [Moments { count: 4, mean: 3.0, m2: 9.0 }, Moments { count: 4, mean: -1.0, m2: 0.0 }];
/// let (mut mean, mut var) = ([0.0_f32; 2], [0.0_f32; 2]);
/// moments_to_mean_var(&moments, Variance::Unbiased, &mut mean, &mut var)?;
/// assert_eq!((mean, var), ([3.0, -1.0], [3.0, 0.0]));
///
/// let mut back = [Moments::EMPTY; 2];
/// moments_from_mean_var(4, &mean, &var, Variance::Unbiased, &mut back)?;
/// assert_eq!(back, moments);
/// # Ok::<(), bn_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`], before anything is written.
pub fn moments_to_mean_var<P: Param>(
    moments: &[Moments],
    variance: Variance,
    mean: &mut [P],
    var: &mut [P],
) -> Result<(), Error> {
    length("mean", mean.len(), moments.len())?;
    length("var", var.len(), moments.len())?;
    for ((m, mean), var) in moments.iter().zip(mean).zip(var) {
        *mean = P::from_f64(m.mean);
        *var = P::from_f64(match variance {
            Variance::Biased => m.variance(),
            Variance::Unbiased => m.variance_unbiased(),
        });
    }
    Ok(())
}

/// Statistics as mean and inverse standard deviation 1/√(biased variance + ε), one entry per channel
/// (PyTorch's `save_mean` and `save_invstd`, cuDNN's `resultSaveMean` and `resultSaveInvVariance`).
///
/// Units: those of x, and of 1/x. Where variance and ε are both 0 the inverse is 0, as in PyTorch.
///
/// ```
/// use bn_core::{Moments, moments_from_mean_inverse_std, moments_to_mean_inverse_std};
/// let moments = [Moments { count: 4, mean: 3.0, m2: 15.0 }];
/// let (mut mean, mut inverse_std) = ([0.0_f32], [0.0_f32]);
/// moments_to_mean_inverse_std(&moments, 0.25, &mut mean, &mut inverse_std)?;
/// assert_eq!((mean, inverse_std), ([3.0], [0.5]));
///
/// let mut back = [Moments::EMPTY];
/// moments_from_mean_inverse_std(4, &mean, &inverse_std, 0.25, &mut back)?;
/// assert_eq!(back, moments);
/// # Ok::<(), bn_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`], [`Error::Epsilon`], before anything is written.
pub fn moments_to_mean_inverse_std<P: Param>(
    moments: &[Moments],
    epsilon: f64,
    mean: &mut [P],
    inverse_std: &mut [P],
) -> Result<(), Error> {
    length("mean", mean.len(), moments.len())?;
    length("inverse_std", inverse_std.len(), moments.len())?;
    check_epsilon(epsilon)?;
    for ((m, mean), inverse) in moments.iter().zip(mean).zip(inverse_std) {
        *mean = P::from_f64(m.mean);
        *inverse = P::from_f64(m.inverse_std(epsilon));
    }
    Ok(())
}

/// Moments of `count` values per channel from a framework's arrays: see
/// [`moments_to_mean_var`], and [`Moments::from_mean_var`] for what rounding has done to them.
///
/// No values (`count` 0) give [`Moments::EMPTY`], whatever legal numbers the arrays hold. NaN and infinity are
/// taken over, and spoil their channel only.
///
/// # Errors
/// [`Error::Length`]; [`Error::Value`] where a variance is negative. Nothing has been written then.
pub fn moments_from_mean_var<P: Param>(
    count: u64,
    mean: &[P],
    var: &[P],
    variance: Variance,
    moments: &mut [Moments],
) -> Result<(), Error> {
    length("mean", mean.len(), moments.len())?;
    length("var", var.len(), moments.len())?;
    not_negative("var", var)?;
    let weight = match variance {
        Variance::Biased => count,
        Variance::Unbiased => count.saturating_sub(1),
    };
    for ((mean, var), m) in mean.iter().zip(var).zip(moments) {
        *m = match count {
            0 => Moments::EMPTY,
            // One value has no unbiased variance, whatever stands there.
            _ if weight == 0 => Moments { count, mean: mean.to_f64(), m2: 0.0 },
            _ => Moments { count, mean: mean.to_f64(), m2: var.to_f64() * weight as f64 },
        };
    }
    Ok(())
}

/// Moments of `count` values per channel from means and inverse standard deviations: see
/// [`moments_to_mean_inverse_std`] and [`Moments::from_mean_inverse_std`].
///
/// No values (`count` 0) give [`Moments::EMPTY`], whatever legal numbers the arrays hold.
///
/// # Errors
/// [`Error::Length`]; [`Error::Epsilon`]; [`Error::Value`] where an inverse standard deviation is
/// negative. Nothing has been written then.
pub fn moments_from_mean_inverse_std<P: Param>(
    count: u64,
    mean: &[P],
    inverse_std: &[P],
    epsilon: f64,
    moments: &mut [Moments],
) -> Result<(), Error> {
    length("mean", mean.len(), moments.len())?;
    length("inverse_std", inverse_std.len(), moments.len())?;
    check_epsilon(epsilon)?;
    not_negative("inverse_std", inverse_std)?;
    for ((mean, inverse), m) in mean.iter().zip(inverse_std).zip(moments) {
        *m = match count {
            0 => Moments::EMPTY,
            _ => Moments::from_mean_inverse_std(count, mean.to_f64(), inverse.to_f64(), epsilon),
        };
    }
    Ok(())
}

/// Σ dy and Σ dy·(x − mean) of a channel: the backward twin of [`Moments`]. Shards add them up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct GradSums {
    /// Σ dy: the gradient of beta.
    pub dbeta: f64,
    /// Σ dy·(x − mean): the gradient of gamma times the standard deviation.
    pub dot: f64,
}

// SAFETY: two fields of eight bytes that are Pod: no padding.
unsafe impl Pod for GradSums {}
// SAFETY: all zeroes are valid for each field.
unsafe impl Zeroable for GradSums {}

impl GradSums {
    /// Adds the sums of another shard over the same statistics.
    pub fn merge(&mut self, other: &GradSums) {
        self.dbeta += other.dbeta;
        self.dot += other.dot;
    }
}
