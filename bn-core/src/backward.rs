//! The backward pass, and its two stages.

use crate::activation::{ANY, Activation};
use crate::batch_norm::{ABSENT, Affine, BatchNorm, Op, Output, entry, length_of};
use crate::dispatch::{Task, dispatch};
use crate::double::{is_below, is_zero, sqrt};
use crate::element::Element;
use crate::engine::Sink;
use crate::error::Error;
use crate::exec::{Failed, Run, Shared};
use crate::forward::MomentSink;
use crate::kernel::backward_apply::{Apply, ApplyFrozen, Parts, constants, constants_of_group, scales_of_group};
use crate::kernel::backward_sums::GradientSums;
use crate::kernel::constants::{GROUP, Group, Maker, Source, each, entries, make, put, some};
use crate::kernel::factor_is_safe;
use crate::kernel::normalize::{inverse_std, inverse_stds};
use crate::kernel::{Coefficients, Line, OfChannel, each_of, of_some};
use crate::lanes::{Base, Lanes, Scalar, Vector};
use crate::layout::Channels;
use crate::layout::grid::{ceil, part};
use crate::moments::{GradSums, Moments};
use crate::shape::Operand;
use crate::stages::{Backward, Outputs};

/// The statistics that a forward pass used, which decide what its gradient is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Statistics<'a, P> {
    /// The moments of the batch, as [`BatchNorm::forward_training`] wrote them: mean and variance
    /// depend on x.
    Batch(&'a [Moments]),
    /// The batch's statistics as a framework keeps them: rounded to the parameters' type. What the
    /// rounding of the mean lost is measured in the same pass over memory and put right (but by
    /// [`BatchNorm::backward_apply`], to which sums are given). They are of the values of this call.
    Rounded {
        /// The mean of each channel.
        mean: &'a [P],
        /// The biased variance of each channel: Σ (x − mean)²/n, without ε. A channel whose var + ε is negative is NaN.
        var: &'a [P],
    },
    /// Running statistics, as inference uses them: constants ("frozen" batch normalization).
    Running {
        /// The running mean of each channel.
        mean: &'a [P],
        /// The running variance of each channel, as inference used it, without ε. A channel whose var + ε is negative is NaN.
        var: &'a [P],
    },
}

/// What a backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct BackwardInput<'a, T: Element> {
    /// The forward pass's input.
    pub x: &'a [T],
    /// The forward pass's output: needed with an activation, whose mask is taken from it.
    pub y: Option<&'a [T]>,
    /// The gradient of the forward pass's output.
    pub dy: &'a [T],
    /// gamma, if the forward pass had one.
    pub gamma: Option<&'a [T::Param]>,
    /// The statistics of the forward pass.
    pub statistics: Statistics<'a, T::Param>,
}

/// What a backward pass writes: what is `None` is not calculated, what is there is overwritten. An example stands at
/// [`BatchNorm::backward`].
pub struct Gradients<'a, T: Element> {
    /// The gradient of x.
    pub dx: Option<Output<'a, T>>,
    /// The gradient of the residual: dy behind the activation's mask.
    pub dresidual: Option<Output<'a, T>>,
    /// The gradient of gamma.
    pub dgamma: Option<&'a mut [T::Param]>,
    /// The gradient of beta.
    pub dbeta: Option<&'a mut [T::Param]>,
}

impl<T: Element> Default for Gradients<'_, T> {
    fn default() -> Self {
        Gradients { dx: None, dresidual: None, dgamma: None, dbeta: None }
    }
}

impl<T: Element> BatchNorm<T> {
    /// The gradients of x, gamma, beta and the residual: any of them.
    ///
    /// x, y, dy, dx and dresidual have the plan's shape; the rest has one entry per channel. With
    /// batch statistics
    /// dx = γ/σ·(dy − Σdy/n − x̂·Σ(dy·x̂)/n), dγ = Σ dy·x̂, dβ = Σ dy (Ioffe & Szegedy 2015, section 3);
    /// with running statistics dx = γ/σ·dy, which needs no pass for sums if dgamma and dbeta are not
    /// wanted.
    ///
    /// The moments are those of this x, as the forward pass wrote them; for statistics over more than it
    /// there are the stages, [`backward_sums`](Self::backward_sums) and
    /// [`backward_apply`](Self::backward_apply).
    ///
    /// dgamma and dbeta overwrite; to accumulate over micro-batches use the stages. (`bn_std::BatchNormLayer` adds them up.)
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Workspace`]; [`Error::Missing`] where an activation wants y;
    /// [`Error::Count`]. Nothing has been written then. [`Error::Executor`].
    ///
    /// ```
    /// use bn_core::{Affine, BackwardInput, BatchNorm, Gradients, Moments, Op, Run, Shape, Statistics};
    ///
    /// let bn = BatchNorm::<f32>::new(Shape::nhwc(1, 1, &[4])?, 0.0)?;
    /// let (x, mut y, mut moments) = ([-3.0, -1.0, 1.0, 3.0], [0.0; 4], [Moments::EMPTY]);
    /// let mut workspace = vec![0; bn.workspace_best(Op::Backward, 1)];
    /// bn.forward_training(&x, None, Affine::NONE, &mut y, &mut moments, Run::serial(&mut workspace))?;
    ///
    /// let (dy, mut dx, mut dgamma, mut dbeta) = ([1.0, 0.0, 0.0, 0.0], [0.0; 4], [0.0], [0.0]);
    /// let input = BackwardInput { x: &x, y: None, dy: &dy, gamma: None, statistics: Statistics::Batch(&moments) };
    /// let output = Gradients {
    ///     dx: Some((&mut dx).into()),
    ///     dgamma: Some(&mut dgamma),
    ///     dbeta: Some(&mut dbeta),
    ///     ..Gradients::default()
    /// };
    /// bn.backward(input, output, Run::serial(&mut workspace))?;
    /// let sigma = 5f32.sqrt();
    /// assert!((dgamma[0] + 3.0 / sigma).abs() < 1e-6 && dbeta == [1.0]);
    /// for (dx, expected) in dx.iter().zip([0.3, -0.4, -0.1, 0.2]) {
    ///     assert!((dx - expected / sigma).abs() < 1e-6);
    /// }
    /// # Ok::<(), bn_core::Error>(())
    /// ```
    pub fn backward(
        &self,
        input: BackwardInput<'_, T>,
        output: Gradients<'_, T>,
        mut run: Run<'_>,
    ) -> Result<(), Error> {
        self.check_whole_backward(&input, &output, run.words())?;
        // SAFETY: the lengths have been checked; inputs are borrowed for reading, outputs for
        // writing.
        unsafe { self.backward_at(&self.view(&input, input.dy.as_ptr()), &output.targets(), &mut run)? };
        Ok(())
    }

    /// [`backward`](Self::backward) with dx over dy; `input.dy` and `output.dx` are not used and must
    /// be empty and `None`.
    ///
    /// # Errors
    /// As there, [`Error::InPlaceStrides`] and [`Error::Unused`].
    pub fn backward_in_place(
        &self,
        dy_to_dx: &mut [T],
        input: BackwardInput<'_, T>,
        output: Gradients<'_, T>,
        mut run: Run<'_>,
    ) -> Result<(), Error> {
        self.check_backward(&input, dy_to_dx.len(), run.words())?;
        self.check_in_place(Operand::Dy, Operand::Dx)?;
        self.check_gradients(&output)?;
        if !input.dy.is_empty() {
            return Err(Error::Unused { what: "input.dy" });
        }
        if output.dx.is_some() {
            return Err(Error::Unused { what: "output.dx" });
        }
        self.check_counts(&input.statistics)?;
        // One address for both: another borrow would end the first.
        let p = dy_to_dx.as_mut_ptr();
        let targets = Targets { dx: Shared(p), ..output.targets() };
        // SAFETY: the lengths have been checked; dy and dx are the same slice, borrowed for writing.
        unsafe { self.backward_at(&self.view(&input, p), &targets, &mut run)? };
        Ok(())
    }

    /// [`backward`](Self::backward) without x: from the output y of a forward pass that may have been in
    /// place, and its batch statistics (Rota Bulò, Porzi & Kontschieder, "In-Place Activated BatchNorm
    /// for Memory-Optimized Training of DNNs", 2018).
    ///
    /// x − mean is taken to be (act⁻¹(y) − β)·σ/γ, so the activation must have an inverse (none, or
    /// leaky ReLU), no γ may be 0, and there was no residual. y is rounded relative to |y|, not to
    /// |y − β|: the error of the gradients is that of `backward` times 1 + |β/γ|, as long as y still tells x (|β/γ| times half an ulp of 1 is
    /// small). Its workspace is that of [`Op::Backward`]; dresidual, if
    /// it is asked for, is dy behind the activation's mask.
    ///
    /// # Errors
    /// As [`backward`](Self::backward), and [`Error::NotInvertible`].
    pub fn backward_from_output(
        &self,
        y: &[T],
        dy: &[T],
        affine: Affine<'_, T::Param>,
        moments: &[Moments],
        output: Gradients<'_, T>,
        mut run: Run<'_>,
    ) -> Result<(), Error> {
        self.check(&[(Operand::Dy, dy.len()), (Operand::Y, y.len())], &[], 0, 0)?;
        self.check_from_output(&affine, moments, run.words())?;
        let from = FromOutput::new(&affine, moments);
        let view = self.output_view(y.as_ptr(), dy.as_ptr(), &from);
        self.check_gradients(&output)?;
        // SAFETY: the lengths have been checked; inputs are borrowed for reading, outputs for
        // writing.
        unsafe { self.backward_at(&view, &output.targets(), &mut run)? };
        Ok(())
    }

    /// [`backward_from_output`](Self::backward_from_output) with dx over dy; `output.dx` must be `None`.
    ///
    /// # Errors
    /// As there, [`Error::InPlaceStrides`] and [`Error::Unused`].
    pub fn backward_from_output_in_place(
        &self,
        y: &[T],
        dy_to_dx: &mut [T],
        affine: Affine<'_, T::Param>,
        moments: &[Moments],
        output: Gradients<'_, T>,
        mut run: Run<'_>,
    ) -> Result<(), Error> {
        self.check_in_place(Operand::Dy, Operand::Dx)?;
        self.check(&[(Operand::Dy, dy_to_dx.len()), (Operand::Y, y.len())], &[], 0, 0)?;
        let p = dy_to_dx.as_mut_ptr();
        self.check_from_output(&affine, moments, run.words())?;
        let from = FromOutput::new(&affine, moments);
        let view = self.output_view(y.as_ptr(), p, &from);
        self.check_gradients(&output)?;
        if output.dx.is_some() {
            return Err(Error::Unused { what: "output.dx" });
        }
        let targets = Targets { dx: Shared(p), ..output.targets() };
        // SAFETY: the lengths have been checked; dy and dx are the same slice, borrowed for writing.
        unsafe { self.backward_at(&view, &targets, &mut run)? };
        Ok(())
    }

    /// All of a backward call from y but its tensors.
    #[cfg_attr(target_os = "none", inline(never))]
    pub(crate) fn check_from_output(
        &self,
        affine: &Affine<'_, T::Param>,
        moments: &[Moments],
        workspace: usize,
    ) -> Result<(), Error> {
        let [gamma, beta] = affine.lengths();
        self.check(&[], &[gamma, beta, ("moments", moments.len())], self.workspace_min(Op::Backward), workspace)?;
        self.check_counts(&Statistics::Batch(moments))?;
        if self.activation.inverse::<T::Param>().is_none() {
            return Err(Error::NotInvertible { channel: None });
        }
        match (0..self.shape.channels()).find(|&c| affine.gamma(c) == 0.0) {
            Some(channel) => Err(Error::NotInvertible { channel: Some(channel) }),
            None => Ok(()),
        }
    }

    /// A view from y instead of x.
    #[cfg_attr(target_os = "none", inline(never))]
    pub(crate) fn output_view<'v>(&self, y: *const T, dy: *const T, from: &'v FromOutput<'v, T::Param>) -> View<'v, T> {
        let y = self.place(Operand::Y, y);
        let inputs =
            Backward { places: [y, self.place(Operand::Dy, dy), y], masked: self.activation != Activation::Identity };
        View { inputs, gamma: from.affine.gamma, statistics: &from.statistics, output: Some(from) }
    }

    /// The first stage: Σ dy and Σ dy·(x − mean) of this x and dy, for statistics that may be those
    /// of more than this x. `input.gamma` is not used.
    ///
    /// Shards of a batch may be summed one by one and merged by [`GradSums::merge`]. That the
    /// result is right wherever the mean of dy is takes Σ (x − mean) of the shard with the rounding
    /// that the statistics have: with [`Statistics::Batch`] the moments of x are made again for that,
    /// so let the shards be those whose [`moments`](Self::moments) were merged. Worked examples: [`crate::guide`].
    ///
    /// # Errors
    /// As [`backward`](Self::backward), but [`Error::Count`]: the moments may be of more values than this x has.
    pub fn backward_sums(
        &self,
        input: BackwardInput<'_, T>,
        sums: &mut [GradSums],
        mut run: Run<'_>,
    ) -> Result<(), Error> {
        self.check_backward(&input, input.dy.len(), run.words())?;
        self.check(&[], &[("sums", sums.len())], 0, 0)?;
        // SAFETY: the lengths have been checked; inputs are borrowed for reading.
        unsafe { self.backward_sums_at(&self.view(&input, input.dy.as_ptr()), Shared(sums.as_mut_ptr()), &mut run)? };
        Ok(())
    }

    /// # Safety
    /// The operands are valid for reading the whole tensor; `sums` has an entry per channel.
    pub(crate) unsafe fn backward_sums_at(
        &self,
        view: &View<'_, T>,
        sums: Shared<GradSums>,
        run: &mut Run<'_>,
    ) -> Result<(), Failed> {
        // SAFETY: an entry per channel.
        run.once(&|| unsafe { sums.fill(GradSums::default(), self.shape.channels()) })?;
        let bands = self.bands(run);
        for b in 0..bands {
            let (band, words) = self.band(b, bands);
            let kept = keep_zeros(run, words)?;
            let moments = Shared(kept.0.cast::<Moments>());
            let off = |c: usize| {
                // SAFETY: the band's moments, written below.
                let m = unsafe { *moments.at(c - band.first) };
                if m.count == 0 { 0.0 } else { m.mean - self.mean(view.statistics, c) }
            };
            if let Statistics::Batch(_) = view.statistics {
                let sink = MomentSink { at: moments, first: band.first };
                // SAFETY: by the caller.
                unsafe { T::sum_moments(&self.engine, &view.inputs.places[0], band, &sink, run)? };
            }
            let sums = Sums::given(sums);
            // SAFETY: by the caller.
            unsafe { self.sums_at(view, band, &off, sums, run)? };
            run.give_back(words);
        }
        Ok(())
    }

    /// The second stage: dx, and dresidual, from sums that may be those of more than this x; of
    /// `output`, dgamma and dbeta are made from the sums too.
    ///
    /// Of how many values the statistics are, [`Statistics::Batch`] says by its counts. [`Statistics::Rounded`] has none: with it the sums
    /// have to be those of this x alone, and what rounding did to the mean is not put right. For arrays of more than this x make
    /// moments with their count: [`crate::moments_from_mean_var`].
    ///
    /// # Errors
    /// As [`backward`](Self::backward), but [`Error::Count`].
    pub fn backward_apply(
        &self,
        input: BackwardInput<'_, T>,
        sums: &[GradSums],
        output: Gradients<'_, T>,
        mut run: Run<'_>,
    ) -> Result<(), Error> {
        self.check_backward(&input, input.dy.len(), run.words())?;
        self.check(&[], &[("sums", sums.len())], 0, 0)?;
        self.check_gradients(&output)?;
        // SAFETY: the lengths have been checked; inputs are borrowed for reading, outputs for
        // writing.
        unsafe { self.backward_apply_at(&self.view(&input, input.dy.as_ptr()), sums, &output.targets(), &mut run)? };
        Ok(())
    }

    /// # Safety
    /// As [`Self::backward_at`].
    pub(crate) unsafe fn backward_apply_at(
        &self,
        view: &View<'_, T>,
        sums: &[GradSums],
        output: &Targets<T>,
        run: &mut Run<'_>,
    ) -> Result<(), Failed> {
        let sums = Sums::given(Shared(sums.as_ptr().cast_mut()));
        // SAFETY: by the caller; there is an entry per channel.
        unsafe { self.apply_at(&Part { view, band: self.engine.all(), sums, output }, run) }
    }

    /// All of a backward pass.
    #[cfg_attr(target_os = "none", inline(never))]
    pub(crate) fn check_whole_backward(
        &self,
        input: &BackwardInput<'_, T>,
        output: &Gradients<'_, T>,
        workspace: usize,
    ) -> Result<(), Error> {
        self.check_backward(input, input.dy.len(), workspace)?;
        self.check_gradients(output)?;
        self.check_counts(&input.statistics)
    }

    #[cfg_attr(target_os = "none", inline(never))]
    fn check_backward(&self, input: &BackwardInput<'_, T>, dy: usize, workspace: usize) -> Result<(), Error> {
        let y = length_of(input.y);
        if y == ABSENT && self.activation != Activation::Identity {
            return Err(Error::Missing { what: "y" });
        }
        let tensors = [(Operand::X, input.x.len()), (Operand::Y, y), (Operand::Dy, dy)];
        self.check_constants(&tensors, input.gamma, &input.statistics, workspace)
    }

    pub(crate) fn check_constants(
        &self,
        tensors: &[(Operand, usize)],
        gamma: Option<&[T::Param]>,
        statistics: &Statistics<'_, T::Param>,
        workspace: usize,
    ) -> Result<(), Error> {
        let gamma = ("gamma", length_of(gamma));
        let (mean, var) = match statistics {
            Statistics::Batch(m) => (("moments", m.len()), ("", ABSENT)),
            Statistics::Rounded { mean, var } | Statistics::Running { mean, var } => {
                (("mean", mean.len()), ("var", var.len()))
            }
        };
        self.check(tensors, &[gamma, mean, var], self.workspace_min(Op::Backward), workspace)
    }

    /// The moments of a one-call backward pass are those of its x; others go with the stages.
    pub(crate) fn check_counts(&self, statistics: &Statistics<'_, T::Param>) -> Result<(), Error> {
        let Statistics::Batch(moments) = *statistics else { return Ok(()) };
        let expected = self.shape.values_per_channel();
        match moments.iter().position(|m| m.count != expected) {
            Some(channel) => {
                let got = moments.get(channel).map_or(0, |m| m.count);
                Err(Error::Count { channel, expected, got })
            }
            None => Ok(()),
        }
    }

    pub(crate) fn check_gradients(&self, output: &Gradients<'_, T>) -> Result<(), Error> {
        let len = |o: &Option<Output<'_, T>>| o.as_ref().map_or(ABSENT, |o| o.len);
        let tensors = [(Operand::Dx, len(&output.dx)), (Operand::Dresidual, len(&output.dresidual))];
        let (dgamma, dbeta) = (output.dgamma.as_deref(), output.dbeta.as_deref());
        let arrays = [("dgamma", length_of(dgamma)), ("dbeta", length_of(dbeta))];
        self.check(&tensors, &arrays, 0, 0)
    }

    fn mean(&self, statistics: &Statistics<'_, T::Param>, c: usize) -> f64 {
        match statistics {
            Statistics::Batch(m) => m.get(c).map_or(0.0, |m| m.mean),
            Statistics::Rounded { mean, .. } | Statistics::Running { mean, .. } => entry(Some(mean), c, 0.0),
        }
    }

    fn variance(&self, statistics: &Statistics<'_, T::Param>, c: usize) -> f64 {
        match statistics {
            Statistics::Batch(m) => m.get(c).map_or(0.0, |m| m.variance()),
            Statistics::Rounded { var, .. } | Statistics::Running { var, .. } => entry(Some(var), c, 0.0),
        }
    }

    /// m2 and count, or variance and 1, of [`GROUP`] channels from `first` on.
    #[inline(always)]
    fn variances(&self, statistics: &Statistics<'_, T::Param>, first: usize) -> [Group; 2] {
        if let Statistics::Batch(m) = *statistics
            && let Some(m) = m.get(first..).and_then(<[Moments]>::first_chunk::<GROUP>)
        {
            return [each(|i| m[i].m2), each(|i| m[i].count as f64)];
        }
        [each(|i| self.variance(statistics, first + i)), Group::splat(1.0)]
    }

    /// Values that the statistics are of.
    fn count(&self, statistics: &Statistics<'_, T::Param>, c: usize) -> u64 {
        match statistics {
            Statistics::Batch(m) => m.get(c).map_or(0, |m| m.count),
            _ => self.shape.values_per_channel(),
        }
    }
}

/// Words of workspace that a channel's sums take between the passes: Σ dy, Σ dy·(x − mean), and
/// Σ (x − mean) where it was measured, else 0.
pub(crate) const SUM_WORDS: usize = 3;

/// Where channels' sums are added up: the first two of [`SUM_WORDS`], or all three; or none.
#[derive(Clone, Copy)]
struct Sums {
    /// Those of channel 0, which need not be there.
    at: Shared<f64>,
    /// 0 for none, 1 for two words of each channel side by side, or 1 more than the channels of which the first words stand together, and then
    /// the next ones. (One number: this is on the stack all the while.)
    stand: usize,
}

impl Sums {
    const NONE: Sums = Sums { at: Shared::NULL, stand: 0 };

    /// Those that a caller has.
    fn given(at: Shared<GradSums>) -> Self {
        Sums { at: Shared(at.0.cast()), stand: 1 }
    }

    /// Those of a band in its workspace: the first word of all channels, then the next of all.
    fn kept(at: Shared<u64>, band: Channels) -> Self {
        Sums { at: Shared(at.0.cast::<f64>().wrapping_sub(band.first)), stand: 1 + band.end - band.first }
    }

    /// Whether they are [kept](Sums::kept): all of [`SUM_WORDS`].
    #[inline(always)]
    fn are_kept(&self) -> bool {
        self.stand > 1
    }

    /// From a channel's word to its next one.
    #[inline(always)]
    fn next(&self) -> usize {
        self.stand.max(2) - 1
    }

    /// From a channel's word to the same one of the next channel.
    #[inline(always)]
    fn apart(&self) -> usize {
        if self.are_kept() { 1 } else { 2 }
    }

    /// The sums of a channel, and, once they are [reduced](BatchNorm::reduce), what its mean is off by.
    ///
    /// # Safety
    /// They are there, if there are any, and nothing writes them meanwhile.
    unsafe fn of(&self, c: usize) -> (GradSums, f64) {
        // SAFETY: by the caller; the words are those of a channel.
        unsafe {
            if self.stand == 0 {
                return (GradSums::default(), 0.0);
            }
            let at = self.at.at(c * self.apart());
            let off = if self.are_kept() { *at.add(2 * self.next()) } else { 0.0 };
            (GradSums { dbeta: *at, dot: *at.add(self.next()) }, off)
        }
    }

    /// The same of [`GROUP`] channels from `first` on, as Σ dy, Σ dy·(x − mean), and what means are off by.
    ///
    /// # Safety
    /// As [`Sums::of`].
    #[inline(always)]
    unsafe fn of_group(&self, first: usize) -> [Group; SUM_WORDS] {
        // SAFETY: by the caller.
        unsafe {
            let mut group = [Group::splat(0.0); SUM_WORDS];
            if self.are_kept() {
                for i in 0..SUM_WORDS {
                    *group[i] = *self.at.at(first + i * self.next()).cast::<[f64; GROUP]>();
                }
                return group;
            }
            for i in 0..GROUP {
                let (sums, off) = self.of(first + i);
                (group[0][i], group[1][i], group[2][i]) = (sums.dbeta, sums.dot, off);
            }
            group
        }
    }
}

impl<T: Element> BatchNorm<T> {
    /// # Safety
    /// All operands are valid for the whole tensor; dx and dresidual are dy or overlap no input, and not
    /// each other; the slices have been checked.
    pub(crate) unsafe fn backward_at(
        &self,
        view: &View<'_, T>,
        output: &Targets<T>,
        run: &mut Run<'_>,
    ) -> Result<(), Failed> {
        let frozen = matches!(view.statistics, Statistics::Running { .. });
        let wants_sums = output.dgamma.is_some() || output.dbeta.is_some() || (!frozen && output.dx.is_some());
        if !wants_sums {
            let sums = Sums::NONE;
            // SAFETY: by the caller.
            return unsafe { self.apply_at(&Part { view, band: self.engine.all(), sums, output }, run) };
        }
        let bands = self.bands(run);
        for b in 0..bands {
            let (band, words) = self.band(b, bands);
            let kept = keep_zeros(run, words)?;
            let sums = Sums::kept(kept, band);
            // SAFETY: by the caller; the sums are those of the band.
            unsafe {
                // Σ (x − mean) is 0 about the mean of this very x.
                self.sums_at(view, band, &|_: usize| 0.0, sums, run)?;
                self.apply_at(&Part { view, band, sums, output }, run)?;
            }
            run.give_back(words);
        }
        Ok(())
    }

    // A function of its own on bare metal: what it is made from is not on the stack afterwards.
    #[cfg_attr(target_os = "none", inline(never))]
    pub(crate) fn view<'v>(&self, input: &'v BackwardInput<'_, T>, dy: *const T) -> View<'v, T> {
        self.view_at(input.x.as_ptr(), input.y.map(<[T]>::as_ptr), dy, input.gamma, &input.statistics)
    }

    #[inline(always)]
    pub(crate) fn view_at<'v>(
        &self,
        x: *const T,
        y: Option<*const T>,
        dy: *const T,
        gamma: Option<&'v [T::Param]>,
        statistics: &'v Statistics<'_, T::Param>,
    ) -> View<'v, T> {
        let mask = y.filter(|_| self.activation != Activation::Identity);
        let (operand, y) = mask.map_or((Operand::Dy, dy), |y| (Operand::Y, y));
        let places = [self.place(Operand::X, x), self.place(Operand::Dy, dy), self.place(operand, y)];
        View { inputs: Backward { places, masked: mask.is_some() }, gamma, statistics, output: None }
    }

    /// What undoes the activation where there is y instead of x. Not in the view: it would be on the stack all the while.
    #[cfg_attr(target_os = "none", inline(never))]
    fn inverse(&self, view: &View<'_, T>) -> T::Param {
        let factor = view.output.and_then(|_| self.activation.inverse::<T::Param>());
        T::Param::from_f64(factor.unwrap_or(1.0))
    }

    /// γ/√(variance + ε).
    fn scale(&self, view: &View<'_, T>, c: usize) -> f64 {
        entry(view.gamma, c, 1.0) * inverse_std(self.variance(view.statistics, c), self.epsilon)
    }

    /// As many channels at once as leave what is kept of them between passes room in the workspace:
    /// all of them, but for the smallest workspaces.
    fn bands(&self, run: &Run<'_>) -> usize {
        let room = (run.words() - self.backward_scratch()) / SUM_WORDS;
        let channels = self.shape.channels();
        if self.engine.whole() { 1 } else { ceil(channels, room.min(channels).max(1)) }
    }

    /// Band `b` of so many, and the words that are kept of its channels.
    fn band(&self, b: usize, bands: usize) -> (Channels, usize) {
        let channels = self.shape.channels();
        let band = Channels { first: part(channels, bands, b), end: part(channels, bands, b + 1) };
        (band, (band.end - band.first) * SUM_WORDS)
    }

    /// Scratch that either pass needs.
    pub(crate) fn backward_scratch(&self) -> usize {
        self.engine.reduce_min::<T, 2, 3>().max(self.engine.map_min::<T, 5>())
    }

    /// Adds up the sums of a band of channels; with batch statistics Σ (x − mean)/n is `off`.
    ///
    /// # Safety
    /// As [`Self::backward_at`]; `sums` has an entry, zeroed, for each channel of the band.
    #[cfg_attr(target_os = "none", inline(never))]
    unsafe fn sums_at(
        &self,
        view: &View<'_, T>,
        band: Channels,
        off: &dyn OfChannel<f64>,
        sums: Sums,
        run: &mut Run<'_>,
    ) -> Result<(), Failed> {
        let centre = &Centre { bn: self, view };
        // With running statistics the sums are wanted as they are. What rounded ones are off by is measured in the same pass.
        let pivot = !matches!(view.statistics, Statistics::Running { .. });
        let measure = matches!(view.statistics, Statistics::Rounded { .. });
        let (activation, inverse) = (&self.rectifier, self.inverse(view));
        let op = GradientSums { activation, inverse, pivot, measure, centre };
        let sink = SumSink { op: &op, sums, off };
        // SAFETY: by the caller; sums only read.
        unsafe { T::sum_gradients(&self.engine, &op, &view.inputs, band, &sink, run) }
    }

    /// Writes all gradients of a part.
    ///
    /// # Safety
    /// As [`Self::backward_at`].
    #[inline(always)]
    unsafe fn apply_at(&self, part: &Part<'_, T>, run: &mut Run<'_>) -> Result<(), Failed> {
        let output = part.output;
        // SAFETY: by the caller.
        unsafe {
            self.parameters_at(part, run)?;
            if !output.dx.is_some() && !output.dresidual.is_some() {
                Ok(())
            } else if !output.dx.is_some() || matches!(part.view.statistics, Statistics::Running { .. }) {
                self.frozen_inputs_at(part, run)
            } else {
                self.batch_inputs_at(part, run)
            }
        }
    }

    /// From what was summed of a channel to its sums about the mean, in their place; and what the mean is off by.
    ///
    /// # Safety
    /// As for [`Sums::of`]; there are [`SUM_WORDS`], and nothing reads them meanwhile.
    // (A call for each channel was a twentieth of the backward pass of 32×512×1×1.)
    #[cfg_attr(not(target_os = "none"), inline(always))]
    unsafe fn reduce(&self, view: &View<'_, T>, sums: Sums, c: usize) {
        // SAFETY: by the caller.
        unsafe {
            let at = sums.at.at(c);
            let (to_dot, to_off) = (at.add(sums.next()), at.add(2 * sums.next()));
            let (dbeta, dot, off) = (*at, *to_dot, *to_off);
            // Where the mean was rounded: dot and mean as they are about the measured one.
            let off = if is_zero(off) { off } else { off / self.count(view.statistics, c).max(1) as f64 };
            let dot = dot - off * dbeta;
            // Where x came from y: (x − mean) is s times smaller than what was summed.
            let dot = if view.output.is_some() { quotient(dot, self.scale(view, c)) } else { dot };
            (*to_dot, *to_off) = (dot, off);
        }
    }

    // On bare metal what has frames of its own is not on the stack together.

    /// Finishes the sums of a part, if they were made here, and writes dgamma and dbeta.
    ///
    /// # Safety
    /// As [`Self::backward_at`].
    #[cfg_attr(target_os = "none", inline(never))]
    unsafe fn parameters_at(&self, part: &Part<'_, T>, run: &mut Run<'_>) -> Result<(), Failed> {
        let &Part { view, band, sums, output } = part;
        if !sums.are_kept() && !output.dgamma.is_some() && !output.dbeta.is_some() {
            return Ok(());
        }
        self.engine.per_channel(band, run, &|channels| {
            let task = Parameters { bn: self, view, sums, output, channels };
            if Base::SINGLE { task.run(Base::BASE) } else { dispatch(self.engine.isa, task) }
        })
    }

    /// Writes dx and dresidual of a part through statistics that do not depend on x, or without dx.
    ///
    /// # Safety
    /// As [`Self::backward_at`]; one of them is wanted.
    #[cfg_attr(target_os = "none", inline(never))]
    unsafe fn frozen_inputs_at(&self, part: &Part<'_, T>, run: &mut Run<'_>) -> Result<(), Failed> {
        let &Part { view, band, output, .. } = part;
        let coefficients = Frozen { bn: self, view, scaled: output.dx.is_some() };
        let op = ApplyFrozen { activation: &self.rectifier, coefficients: &coefficients };
        let to = self.outputs(output);
        // SAFETY: by the caller; maps only read from their inputs.
        unsafe { T::apply_frozen(&self.engine, &op, &view.inputs, &to, band, run) }
    }

    /// The same through the statistics of the batch.
    ///
    /// # Safety
    /// As [`Self::backward_at`]; dx is wanted.
    #[cfg_attr(target_os = "none", inline(never))]
    unsafe fn batch_inputs_at(&self, part: &Part<'_, T>, run: &mut Run<'_>) -> Result<(), Failed> {
        let inverse = self.inverse(part.view);
        let coefficients = OfPart { bn: self, part };
        let op = Apply { activation: &self.rectifier, inverse, coefficients: &coefficients };
        let to = self.outputs(part.output);
        // SAFETY: by the caller; maps only read from their inputs.
        unsafe { T::apply(&self.engine, &op, &part.view.inputs, &to, part.band, run) }
    }

    #[cfg_attr(target_os = "none", inline(never))]
    fn outputs(&self, output: &Targets<T>) -> Outputs<T> {
        let (dx, dr) = ((Operand::Dx, output.dx), (Operand::Dresidual, output.dresidual));
        let (first, second) = (if dx.1.is_some() { dx } else { dr }, if dr.1.is_some() { dr } else { dx });
        let places = [self.place(first.0, first.1.0), self.place(second.0, second.1.0)];
        Outputs { places, both: dx.1.is_some() && dr.1.is_some() }
    }

    #[inline(always)]
    fn apply_coefficients(
        &self,
        view: &View<'_, T>,
        (sums, off): (GradSums, f64),
        c: usize,
    ) -> Coefficients<T::Param, 5> {
        let (n, variance) = (self.count(view.statistics, c).max(1) as f64, self.variance(view.statistics, c));
        let sigma2 = variance + self.epsilon;
        let sigma = sqrt(sigma2);
        let (slope, inverse) = if is_zero(sigma2) { (0.0, 0.0) } else { (sums.dot / (n * sigma2), 1.0 / sigma) };
        let (e, s) = (sums.dbeta / n, entry(view.gamma, c, 1.0) * inverse);
        // |x − mean| is at most this.
        let reach = || sqrt(variance * n);
        match view.output {
            None => {
                let mean = self.mean(view.statistics, c) + off;
                // A root takes as long as a division, and a number's own size mostly tells that of its root.
                let reach = if is_below(variance * n, T::Param::SAFE_MAX) { 0.0 } else { reach() };
                constants::<T::Param>([e, mean, slope, s], sigma, reach)
            }
            // x − mean is (z − β)/s.
            Some(FromOutput { affine, .. }) => {
                let size = s.abs();
                constants::<T::Param>([e, affine.beta(c), quotient(slope, s), s], sigma * size, reach() * size)
            }
        }
    }
}

/// What is taken from the x of a channel before it is summed: the mean, or β where there is y.
struct Centre<'a, T: Element> {
    bn: &'a BatchNorm<T>,
    view: &'a View<'a, T>,
}

impl<T: Element> OfChannel<f64> for Centre<'_, T> {
    fn of(&self, c: usize) -> f64 {
        match self.view.output {
            None => self.bn.mean(self.view.statistics, c),
            Some(from) => from.affine.beta(c),
        }
    }
    fn of_each(&self, first: usize, to: &mut [f64]) {
        if !Base::SINGLE
            && let (Statistics::Batch(moments), None) = (self.view.statistics, self.view.output)
            && let Some(moments) = moments.get(first..first + to.len())
        {
            for (to, m) in to.iter_mut().zip(moments) {
                *to = m.mean;
            }
            return;
        }
        each_of(self, first, to);
    }
}

/// What a backward call from y has beside it.
pub(crate) struct FromOutput<'a, P> {
    affine: &'a Affine<'a, P>,
    statistics: Statistics<'a, P>,
}

impl<'a, P> FromOutput<'a, P> {
    // A function of its own on bare metal: inlined, what it is made from stays on the stack (8 bytes).
    #[cfg_attr(target_os = "none", inline(never))]
    pub(crate) fn new(affine: &'a Affine<'a, P>, moments: &'a [Moments]) -> Self {
        FromOutput { affine, statistics: Statistics::Batch(moments) }
    }
}

/// What the passes of a backward call start from.
pub(crate) struct View<'a, T: Element> {
    /// x, or y in its place; dy; y.
    inputs: Backward<T>,
    gamma: Option<&'a [T::Param]>,
    statistics: &'a Statistics<'a, T::Param>,
    /// Where y is in the place of x.
    output: Option<&'a FromOutput<'a, T::Param>>,
}

/// The first words of the workspace, kept and cleared.
#[cfg_attr(target_os = "none", inline(never))]
fn keep_zeros(run: &mut Run<'_>, words: usize) -> Result<Shared<u64>, Failed> {
    let kept = run.keep(words);
    // SAFETY: as many words are kept.
    run.once(&|| unsafe { kept.at(0).write_bytes(0, words) })?;
    Ok(kept)
}

/// Finishes the sums of some channels, if they were made here, and writes dgamma and dbeta.
struct Parameters<'a, T: Element> {
    bn: &'a BatchNorm<T>,
    view: &'a View<'a, T>,
    sums: Sums,
    output: &'a Targets<T>,
    channels: Channels,
}

impl<T: Element> Task for Parameters<'_, T> {
    type Element = T;
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let mut c = self.channels.first;
        while c < self.channels.end {
            // SAFETY: all have an entry per channel; this task has these channels to itself.
            unsafe {
                if !Base::SINGLE && c + GROUP <= self.channels.end {
                    self.group(lanes, c);
                    c += GROUP;
                } else {
                    self.one(c);
                    c += 1;
                }
            }
        }
    }
}

impl<T: Element> Parameters<'_, T> {
    /// Those of a channel.
    ///
    /// # Safety
    /// It is the task's own, and all have an entry for it.
    #[inline(always)]
    unsafe fn one(&self, c: usize) {
        let Parameters { bn, view, sums, output, .. } = *self;
        // SAFETY: by the caller.
        unsafe {
            if sums.are_kept() {
                bn.reduce(view, sums, c);
            }
            let (GradSums { dbeta, dot }, _) = sums.of(c);
            if output.dgamma.is_some() {
                *output.dgamma.at(c) = Scalar::from_f64(dot * inverse_std(bn.variance(view.statistics, c), bn.epsilon));
            }
            if output.dbeta.is_some() {
                *output.dbeta.at(c) = Scalar::from_f64(dbeta);
            }
        }
    }

    /// Those of [`GROUP`] channels from `c` on.
    ///
    /// # Safety
    /// As for [`Parameters::one`], of all of them.
    #[inline(always)]
    unsafe fn group<L: Lanes>(&self, lanes: L, c: usize) {
        let Parameters { bn, view, sums, output, .. } = *self;
        // SAFETY: by the caller.
        unsafe {
            // Where nothing was measured means are off by 0, and what is left of reducing is dot − 0·dbeta (NaN where dbeta is not finite).
            // In vectors, as what is stored number by number is not there yet for vectors that read it.
            let plain = view.output.is_none() && !matches!(view.statistics, Statistics::Rounded { .. });
            if sums.are_kept() && !plain {
                for i in 0..GROUP {
                    bn.reduce(view, sums, c + i);
                }
            }
            let ([dbeta, dot, off], [m2, n]) = (sums.of_group(c), bn.variances(view.statistics, c));
            let mut at = 0;
            while at < GROUP {
                let (dbeta, mut dot) = (some(lanes, &dbeta, at), some(lanes, &dot, at));
                if sums.are_kept() && plain {
                    dot = dot - some(lanes, &off, at) * dbeta;
                    dot.store(sums.at.at(c + sums.next() + at));
                }
                if output.dgamma.is_some() {
                    let (n, one) = (some(lanes, &n, at), L::F64::splat(lanes, 1.0));
                    // A count below 1 is none.
                    let variance = lanes.quotient(some(lanes, &m2, at), n);
                    let variance = <L::F64>::select(n.lt(one), L::F64::splat(lanes, 0.0), variance);
                    let inverse = inverse_stds(lanes, variance, bn.epsilon);
                    put(lanes, dot * inverse, &mut *output.dgamma.at(c).cast::<[T::Param; GROUP]>(), at);
                }
                if output.dbeta.is_some() {
                    put(lanes, dbeta, &mut *output.dbeta.at(c).cast::<[T::Param; GROUP]>(), at);
                }
                at += <L::F64 as Vector>::WIDTH;
            }
        }
    }
}

/// What the constants of a channel are made from: its sums, which nothing writes any more.
struct OfPart<'a, T: Element> {
    bn: &'a BatchNorm<T>,
    part: &'a Part<'a, T>,
}

impl<T: Element> Source<T::Param, 5> for OfPart<'_, T> {
    fn of(&self, c: usize) -> Coefficients<T::Param, 5> {
        // SAFETY: an entry per channel.
        self.bn.apply_coefficients(self.part.view, unsafe { self.part.sums.of(c) }, c)
    }
    fn group(&self, first: usize, to: &mut [Line<T::Param, GROUP>; 5]) -> bool {
        make(self.bn.engine.isa, self, first, to)
    }
}

impl<T: Element> Maker<T::Param, 5> for OfPart<'_, T> {
    #[inline(always)]
    fn make<L: Lanes>(&self, lanes: L, first: usize, to: &mut [Line<T::Param, GROUP>; 5]) -> bool {
        let (view, sums) = (self.part.view, self.part.sums);
        let moments = match *view.statistics {
            Statistics::Batch(moments) if view.output.is_none() => moments,
            _ => return false,
        };
        let Some(m) = moments.get(first..).and_then(<[Moments]>::first_chunk::<GROUP>) else { return false };
        // SAFETY: an entry per channel.
        let [dbeta, dot, off] = unsafe { sums.of_group(first) };
        let parts = Parts {
            mean: each(|i| m[i].mean + off[i]),
            m2: each(|i| m[i].m2),
            n: each(|i| m[i].count as f64),
            gamma: entries(view.gamma, first, 1.0),
            dbeta,
            dot,
        };
        constants_of_group(lanes, to, &parts, self.bn.epsilon)
    }
}

/// The same where they depend on no sums: the scale, or 1 where only dresidual is wanted.
struct Frozen<'a, T: Element> {
    bn: &'a BatchNorm<T>,
    view: &'a View<'a, T>,
    scaled: bool,
}

impl<T: Element> Source<T::Param, 1> for Frozen<'_, T> {
    fn of(&self, c: usize) -> Coefficients<T::Param, 1> {
        let s = if self.scaled { self.bn.scale(self.view, c) } else { 1.0 };
        Coefficients { narrow: [T::Param::from_f64(s)], wide: [s], safe: factor_is_safe::<T::Param>(s) }
    }
    fn group(&self, first: usize, to: &mut [Line<T::Param, GROUP>; 1]) -> bool {
        make(self.bn.engine.isa, self, first, to)
    }
}

impl<T: Element> Maker<T::Param, 1> for Frozen<'_, T> {
    #[inline(always)]
    fn make<L: Lanes>(&self, lanes: L, first: usize, to: &mut [Line<T::Param, GROUP>; 1]) -> bool {
        let var = match *self.view.statistics {
            Statistics::Running { var, .. } if self.scaled => var,
            _ => return false,
        };
        let (var, gamma) = (entries(Some(var), first, 0.0), entries(self.view.gamma, first, 1.0));
        scales_of_group(lanes, to, &var, &gamma, self.bn.epsilon)
    }
}

/// A band of channels whose sums are there, and what is to be made of them.
struct Part<'a, T: Element> {
    view: &'a View<'a, T>,
    band: Channels,
    sums: Sums,
    output: &'a Targets<T>,
}

/// a/b, and 0 where b is 0: a constant channel with ε = 0 has no gradient.
fn quotient(a: f64, b: f64) -> f64 {
    if is_zero(b) { 0.0 } else { a / b }
}

/// Where gradients go: [`Gradients`] by address, null where one is not wanted.
pub(crate) struct Targets<T: Element> {
    dx: Shared<T>,
    dresidual: Shared<T>,
    dgamma: Shared<T::Param>,
    dbeta: Shared<T::Param>,
}

impl<T: Element> Clone for Targets<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Element> Copy for Targets<T> {}

impl<T: Element> Gradients<'_, T> {
    pub(crate) fn targets(self) -> Targets<T> {
        Targets {
            dx: self.dx.map_or(Shared::NULL, |o| Shared(o.ptr)),
            dresidual: self.dresidual.map_or(Shared::NULL, |o| Shared(o.ptr)),
            dgamma: self.dgamma.map_or(Shared::NULL, |d| Shared(d.as_mut_ptr())),
            dbeta: self.dbeta.map_or(Shared::NULL, |d| Shared(d.as_mut_ptr())),
        }
    }
}

/// From sums about the pivot to sums about the mean, added up.
pub(crate) struct SumSink<'a, P> {
    sums: Sums,
    /// What was summed.
    op: &'a GradientSums<'a, P, ANY>,
    /// Σ (x − mean)/n, where that is not measured.
    off: &'a dyn OfChannel<f64>,
}

impl<P: Scalar> SumSink<'_, P> {
    /// Σ e, Σ e·(x − μ) and, if measured, Σ (x − μ) about the pivot k of dy, where μ is the rounded
    /// mean and `low` what the rounding lost:
    ///
    /// Σ dy = Σ e + n·k;  Σ dy·(x − mean) = Σ e·(x − μ) − low·Σ e + k·Σ (x − mean)
    #[inline(always)]
    fn about_mean<const M: usize>(
        &self,
        channels: Channels,
        [e, ed]: [&Line<f64, M>; 2],
        d: Option<&Line<f64, M>>,
        k: &Line<f64, M>,
        count: u64,
    ) -> [Line<f64, M>; 3] {
        let (mean, n) = (of_some::<M>(self.op.centre, channels), count as f64);
        let off = if d.is_some() { Line::splat(0.0) } else { of_some::<M>(self.off, channels) };
        let mut about = [Line::splat(0.0); 3];
        for i in 0..M {
            let low = mean[i] - P::from_f64(mean[i]).to_f64();
            let off = d.map_or_else(|| n * off[i], |d| d[i] - n * low);
            about[0][i] = e[i] + n * k[i];
            about[1][i] = ed[i] - low * e[i] + k[i] * off;
            about[2][i] = off;
        }
        about
    }

    /// # Safety
    /// No other thread adds to these channels, which are of the band.
    #[inline(always)]
    unsafe fn add<const M: usize, const N: usize>(&self, channels: Channels, sums: &[Line<f64, M>; N]) {
        let (at, next, apart) = (self.sums.at, self.sums.next(), self.sums.apart());
        let (count, words) = ((channels.end - channels.first).min(M), if self.sums.are_kept() { N } else { 2 });
        for i in 0..words {
            // SAFETY: by the caller.
            unsafe {
                let at = at.at(channels.first * apart + i * next);
                if M > 1 && count == M && apart == 1 {
                    let all = &mut *at.cast::<[f64; M]>();
                    for l in 0..M {
                        all[l] += sums[i][l];
                    }
                } else {
                    for l in 0..count {
                        *at.add(l * apart) += sums[i][l];
                    }
                }
            }
        }
    }
}

impl<P: Scalar> Sink<2, 2> for SumSink<'_, P> {
    #[inline(always)]
    fn convert<const M: usize>(
        &self,
        channels: Channels,
        [e, ed]: &[Line<f64, M>; 2],
        [k, _]: &[Line<f64, M>; 2],
        count: u64,
    ) -> [Line<f64, M>; 2] {
        let [dbeta, dot, _] = self.about_mean(channels, [e, ed], None, k, count);
        [dbeta, dot]
    }
    #[inline(always)]
    unsafe fn join<const M: usize>(&self, channels: Channels, sums: &[Line<f64, M>; 2], _: u64) {
        // SAFETY: by the caller.
        unsafe { self.add(channels, sums) }
    }
}

impl<P: Scalar> Sink<2, 3> for SumSink<'_, P> {
    #[inline(always)]
    fn convert<const M: usize>(
        &self,
        channels: Channels,
        [e, ed, d]: &[Line<f64, M>; 3],
        [k, _]: &[Line<f64, M>; 2],
        count: u64,
    ) -> [Line<f64, M>; 3] {
        self.about_mean(channels, [e, ed], self.op.measure.then_some(d), k, count)
    }
    #[inline(always)]
    unsafe fn join<const M: usize>(&self, channels: Channels, sums: &[Line<f64, M>; 3], _: u64) {
        // SAFETY: by the caller.
        unsafe { self.add(channels, sums) }
    }
}
