//! The training forward pass, and its two stages.

use crate::batch_norm::{ABSENT, Affine, BatchNorm, Op, Output, length_of};
use crate::element::{Element, Param};
use crate::engine::Sink;
use crate::error::Error;
use crate::exec::{Failed, Run, Shared};
use crate::isa::Isa;
use crate::kernel::constants::{GROUP, Maker, Source, each, entries, make};
use crate::kernel::normalize::{Normalize, Spread, inverse_std, split, split_group};
use crate::kernel::{Coefficients, Line};
use crate::lanes::Lanes;
use crate::layout::{Channels, Place};
use crate::moments::{Moments, Shares};
use crate::shape::Operand;

impl<T: Element> BatchNorm<T> {
    /// y = act(γ·(x − mean)/√(variance + ε) + β + residual), with the mean and the biased variance of
    /// this batch, which are written to `moments`.
    ///
    /// x, residual and y have the plan's shape; gamma, beta and moments one entry per channel. The
    /// moments are what [`backward`](Self::backward) and [`crate::RunningStats::update`] take.
    /// Formula: Ioffe & Szegedy 2015, Algorithm 1.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Workspace`], and [`Error::TooFewValues`] below two values per
    /// channel (see [`allow_one_value`](Self::allow_one_value)); nothing has been written then.
    /// [`Error::Executor`] where the executor failed.
    pub fn forward_training<'y>(
        &self,
        x: &[T],
        residual: Option<&[T]>,
        affine: Affine<'_, T::Param>,
        y: impl Into<Output<'y, T>>,
        moments: &mut [Moments],
        mut run: Run<'_>,
    ) -> Result<(), Error>
    where
        T: 'y,
    {
        let y = y.into();
        self.check_training(x, residual, &affine, &y, moments, run.words())?;
        // SAFETY: the lengths have been checked; x is borrowed for reading, y for writing.
        unsafe {
            let residual = residual.map(<[T]>::as_ptr);
            self.forward_at(x.as_ptr(), residual, affine, Shared(moments.as_mut_ptr()), y.ptr, &mut run)?;
        }
        Ok(())
    }

    /// [`forward_training`](Self::forward_training) over its input.
    ///
    /// # Errors
    /// As there, and [`Error::InPlaceStrides`].
    pub fn forward_training_in_place(
        &self,
        x_to_y: &mut [T],
        residual: Option<&[T]>,
        affine: Affine<'_, T::Param>,
        moments: &mut [Moments],
        mut run: Run<'_>,
    ) -> Result<(), Error> {
        self.check_in_place(Operand::X, Operand::Y)?;
        self.check_forward(&Self::forward_lengths(x_to_y, residual, None), &affine, moments.len(), run.words())?;
        self.check_values(self.shape.values_per_channel())?;
        let p = x_to_y.as_mut_ptr();
        // SAFETY: the lengths have been checked; the one slice is borrowed for writing.
        unsafe {
            let residual = residual.map(<[T]>::as_ptr);
            self.forward_at(p, residual, affine, Shared(moments.as_mut_ptr()), p, &mut run)?;
        }
        Ok(())
    }

    /// The first stage: merges the statistics of x into `moments`.
    ///
    /// Start from [`Moments::EMPTY`]; more calls take in more batches, so that statistics over
    /// shards, micro-batches or a whole data set are a matter of calling this, or
    /// [`Moments::merge`], more than once. Empty tensors are legal.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Workspace`]; nothing has been written then. [`Error::Executor`].
    ///
    /// ```
    /// use bn_core::{Affine, BatchNorm, Moments, Op, Run, Shape};
    ///
    /// // One channel; its statistics are those of two parts.
    /// let bn = BatchNorm::<f32>::new(Shape::dense(2, 1)?, 0.0)?;
    /// let mut workspace = vec![0; bn.workspace_best(Op::ForwardTraining, 1)];
    /// let (parts, mut moments) = ([[1.0, 2.0], [6.0, 7.0]], [Moments::EMPTY]);
    /// for part in &parts {
    ///     bn.moments(part, &mut moments, Run::serial(&mut workspace))?;
    /// }
    /// assert_eq!((moments[0].count, moments[0].mean, moments[0].m2), (4, 4.0, 26.0));
    ///
    /// let mut y = [0.0; 2];
    /// bn.normalize(&parts[0], None, Affine::NONE, &moments, &mut y, Run::serial(&mut workspace))?;
    /// assert_eq!(y, [-3.0 / 6.5f32.sqrt(), -2.0 / 6.5f32.sqrt()]);
    /// # Ok::<(), bn_core::Error>(())
    /// ```
    pub fn moments(&self, x: &[T], moments: &mut [Moments], mut run: Run<'_>) -> Result<(), Error> {
        let lengths = Self::forward_lengths(x, None, None);
        self.check_forward(&lengths, &Affine::NONE, moments.len(), run.words())?;
        // SAFETY: the length has been checked; x is borrowed for reading.
        unsafe { self.accumulate_at(x.as_ptr(), Shared(moments.as_mut_ptr()), &mut run)? };
        Ok(())
    }

    /// The second stage: y from x and statistics, which may be those of more than this x. An example stands at
    /// [`moments`](Self::moments).
    ///
    /// # Errors
    /// As [`forward_training`](Self::forward_training); [`Error::TooFewValues`] looks at the counts
    /// in `moments`.
    pub fn normalize<'y>(
        &self,
        x: &[T],
        residual: Option<&[T]>,
        affine: Affine<'_, T::Param>,
        moments: &[Moments],
        y: impl Into<Output<'y, T>>,
        mut run: Run<'_>,
    ) -> Result<(), Error>
    where
        T: 'y,
    {
        let y = y.into();
        let lengths = Self::forward_lengths(x, residual, Some(&y));
        self.check_forward(&lengths, &affine, moments.len(), run.words())?;
        self.check_values(moments.iter().map(|m| m.count).min().unwrap_or(0))?;
        // SAFETY: the lengths have been checked; x is borrowed for reading, y for writing.
        unsafe {
            let residual = residual.map(<[T]>::as_ptr);
            self.normalize_at(x.as_ptr(), residual, affine, moments.as_ptr(), y.ptr, &mut run)?;
        }
        Ok(())
    }

    /// The tensors of a forward operation, for [`BatchNorm::check`].
    pub(crate) fn forward_lengths(x: &[T], residual: Option<&[T]>, y: Option<&Output<'_, T>>) -> [(Operand, usize); 3] {
        let (residual, y) = (length_of(residual), y.map_or(ABSENT, |y| y.len));
        [(Operand::X, x.len()), (Operand::Y, y), (Operand::Residual, residual)]
    }

    /// All of a training forward pass.
    pub(crate) fn check_training(
        &self,
        x: &[T],
        residual: Option<&[T]>,
        affine: &Affine<'_, T::Param>,
        y: &Output<'_, T>,
        moments: &[Moments],
        workspace: usize,
    ) -> Result<(), Error> {
        let lengths = Self::forward_lengths(x, residual, Some(y));
        self.check_forward(&lengths, affine, moments.len(), workspace)?;
        self.check_values(self.shape.values_per_channel())
    }

    pub(crate) fn check_forward(
        &self,
        tensors: &[(Operand, usize)],
        affine: &Affine<'_, T::Param>,
        moments: usize,
        workspace: usize,
    ) -> Result<(), Error> {
        let [gamma, beta] = affine.lengths();
        self.check(tensors, &[gamma, beta, ("moments", moments)], self.workspace_min(Op::ForwardTraining), workspace)
    }

    pub(crate) fn check_values(&self, got: u64) -> Result<(), Error> {
        let expected = if self.one_value { 1 } else { 2 };
        if got < expected { Err(Error::TooFewValues { expected, got }) } else { Ok(()) }
    }

    /// # Safety
    /// x and residual are valid for reading, y for writing the whole tensor; y is one of the others or
    /// overlaps neither; `moments` has an entry per channel.
    pub(crate) unsafe fn forward_at(
        &self,
        x: *const T,
        residual: Option<*const T>,
        affine: Affine<'_, T::Param>,
        moments: Shared<Moments>,
        y: *mut T,
        run: &mut Run<'_>,
    ) -> Result<(), Failed> {
        // SAFETY: by the caller.
        unsafe {
            run.once(&|| moments.fill(Moments::EMPTY, self.shape.channels()))?;
            self.accumulate_at(x, moments, run)?;
            self.normalize_at(x, residual, affine, moments.0, y, run)
        }
    }

    /// # Safety
    /// x is valid for reading the whole tensor; `moments` has an entry per channel.
    pub(crate) unsafe fn accumulate_at(
        &self,
        x: *const T,
        moments: Shared<Moments>,
        run: &mut Run<'_>,
    ) -> Result<(), Failed> {
        let (e, sink) = (&self.engine, MomentSink { at: moments, first: 0 });
        // SAFETY: by the caller; sums only read from x.
        unsafe { T::sum_moments(e, &self.place(Operand::X, x), e.all(), &sink, run) }
    }

    /// # Safety
    /// As [`Self::forward_at`].
    pub(crate) unsafe fn normalize_at(
        &self,
        x: *const T,
        residual: Option<*const T>,
        affine: Affine<'_, T::Param>,
        moments: *const Moments,
        y: *mut T,
        run: &mut Run<'_>,
    ) -> Result<(), Failed> {
        let (moments, epsilon, isa) = (Shared(moments.cast_mut()), self.epsilon, self.engine.isa);
        let coefficients = Batch { moments, affine, epsilon, isa };
        // SAFETY: by the caller.
        unsafe { self.map_forward(x, residual, &coefficients, y, run) }
    }

    /// # Safety
    /// As [`Self::normalize_at`].
    pub(crate) unsafe fn map_forward(
        &self,
        x: *const T,
        residual: Option<*const T>,
        coefficients: &dyn Source<T::Param, 3>,
        y: *mut T,
        run: &mut Run<'_>,
    ) -> Result<(), Failed> {
        let op = Normalize { activation: &self.rectifier, residual: residual.is_some(), coefficients };
        let (from, to) = (self.inputs(x, residual), [self.place(Operand::Y, y)]);
        // SAFETY: by the caller; a map only reads from its inputs.
        unsafe { T::normalize(&self.engine, &op, &from, &to, run) }
    }

    /// x, and the residual or x again.
    pub(crate) fn inputs(&self, x: *const T, residual: Option<*const T>) -> [Place<T>; 2] {
        let (operand, r) = residual.map_or((Operand::X, x), |r| (Operand::Residual, r));
        [self.place(Operand::X, x), self.place(operand, r)]
    }
}

/// What training makes the constants of a channel from.
struct Batch<'a, P> {
    /// Those of channel 0; the others follow.
    moments: Shared<Moments>,
    affine: Affine<'a, P>,
    epsilon: f64,
    isa: Isa,
}

impl<P: Param> Source<P, 3> for Batch<'_, P> {
    fn of(&self, c: usize) -> Coefficients<P, 3> {
        // SAFETY: an entry per channel; nothing writes them meanwhile.
        let m = unsafe { *self.moments.at(c) };
        let scale = self.affine.gamma(c) * inverse_std(m.variance(), self.epsilon);
        split::<P>(m.mean, scale, self.affine.beta(c), Some(m.m2))
    }
    fn group(&self, first: usize, to: &mut [Line<P, GROUP>; 3]) -> bool {
        make(self.isa, self, first, to)
    }
}

impl<P: Param> Maker<P, 3> for Batch<'_, P> {
    #[inline(always)]
    fn make<L: Lanes>(&self, lanes: L, first: usize, to: &mut [Line<P, GROUP>; 3]) -> bool {
        // SAFETY: an entry per channel; nothing writes them meanwhile.
        let m = unsafe { &*self.moments.at(first).cast::<[Moments; GROUP]>() };
        let (mean, m2) = (each(|i| m[i].mean), each(|i| m[i].m2));
        let n = each(|i| m[i].count as f64);
        let (gamma, beta) = (entries(self.affine.gamma, first, 1.0), entries(self.affine.beta, first, 0.0));
        // Calls ask for one value at least: of none these would not be the constants.
        split_group(lanes, to, &mean, &Spread::Of { m2: &m2, n: &n }, self.epsilon, &gamma, &beta)
    }
}

/// Merges cells into moments of channels from `first` on.
pub(crate) struct MomentSink {
    pub(crate) at: Shared<Moments>,
    pub(crate) first: usize,
}

impl Sink<1, 2> for MomentSink {
    #[inline(always)]
    fn convert<const M: usize>(
        &self,
        _: Channels,
        sums: &[Line<f64, M>; 2],
        _: &[Line<f64, M>; 1],
        _: u64,
    ) -> [Line<f64, M>; 2] {
        *sums
    }
    #[inline(always)]
    unsafe fn join<const M: usize>(&self, channels: Channels, [mean, m2]: &[Line<f64, M>; 2], count: u64) {
        let mut shares = Shares::default();
        for l in 0..(channels.end - channels.first).min(M) {
            let cell = Moments { count, mean: mean[l], m2: m2[l] };
            // SAFETY: the slice has an entry per channel; the caller has these to itself.
            unsafe { (*self.at.at(channels.first - self.first + l)).merge_after(&cell, &mut shares) }
        }
    }
}
