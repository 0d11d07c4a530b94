//! Inference: in one call, or prepared once and applied many times.

use crate::batch_norm::{Affine, BatchNorm, Op, Output, entry};
use crate::element::{Element, Param};
use crate::error::Error;
use crate::exec::{Failed, Run};
use crate::isa::Isa;
use crate::kernel::constants::{GROUP, Maker, Source, entries, make};
use crate::kernel::normalize::{Normalize, Spread, inverse_std, split, split_group};
use crate::kernel::{Coefficients, Line};
use crate::lanes::Lanes;
use crate::shape::Operand;
use bytemuck::{Pod, Zeroable};

/// What inference needs of a channel: y = (x − mean)·scale + shift.
///
/// 12 bytes for f32 (24 for f64); made once by [`BatchNorm::prepare`], in f64, perhaps on another
/// machine, and kept in flash; [`BatchNorm::apply`] uses it without any f64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Prepared<P> {
    /// The running mean.
    pub mean: P,
    /// γ/√(running variance + ε).
    pub scale: P,
    /// β.
    pub shift: P,
}

// SAFETY: three fields of one type that is Pod: no padding.
unsafe impl<P: Pod> Pod for Prepared<P> {}
// SAFETY: all zeroes are valid for each field.
unsafe impl<P: Zeroable> Zeroable for Prepared<P> {}

impl<T: Element> BatchNorm<T> {
    /// y = act(γ·(x − running_mean)/√(running_var + ε) + β + residual).
    ///
    /// x, residual and y have the plan's shape; the rest has one entry per channel: the mean in units of x, the variance in those of
    /// x². A batch of 0 is legal. A channel whose running_var + ε is negative, or NaN, is NaN. Formula: Ioffe & Szegedy 2015,
    /// Algorithm 2, step 11.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Workspace`]; nothing has been written then. [`Error::Executor`].
    ///
    /// ```
    /// use bn_core::{Activation, Affine, BatchNorm, Op, Run, Shape};
    ///
    /// // Two positions of two channels, a residual added, then ReLU.
    /// let bn = BatchNorm::<f32>::new(Shape::nhwc(1, 2, &[2])?, 0.0)?.with_activation(Activation::Relu)?;
    /// let (x, residual, mut y) = ([1.0, 10.0, 3.0, 30.0], [0.5, 0.5, -4.0, 0.0], [0.0; 4]);
    /// let mut workspace = vec![0; bn.workspace_best(Op::Inference, 1)];
    /// let (mean, var) = ([1.0, 20.0], [1.0, 100.0]);
    /// let affine = Affine::new(&[1.0, 2.0], &[0.0, 1.0]);
    /// bn.inference(&x, Some(&residual), affine, &mean, &var, &mut y, Run::serial(&mut workspace))?;
    /// assert_eq!(y, [0.5, 0.0, 0.0, 3.0]);
    /// # Ok::<(), bn_core::Error>(())
    /// ```
    #[allow(clippy::too_many_arguments, reason = "the operands of the operation")]
    pub fn inference<'y>(
        &self,
        x: &[T],
        residual: Option<&[T]>,
        affine: Affine<'_, T::Param>,
        running_mean: &[T::Param],
        running_var: &[T::Param],
        y: impl Into<Output<'y, T>>,
        mut run: Run<'_>,
    ) -> Result<(), Error>
    where
        T: 'y,
    {
        let y = y.into();
        let lengths = Self::forward_lengths(x, residual, Some(&y));
        self.check_inference(&lengths, &affine, running_mean, running_var, run.words())?;
        let residual = residual.map(<[T]>::as_ptr);
        // SAFETY: the lengths have been checked; x is borrowed for reading, y for writing.
        unsafe { self.inference_at(x.as_ptr(), residual, &affine, running_mean, running_var, y.ptr, &mut run)? };
        Ok(())
    }

    /// [`inference`](Self::inference) over its input.
    ///
    /// # Errors
    /// As there, and [`Error::InPlaceStrides`].
    pub fn inference_in_place(
        &self,
        x_to_y: &mut [T],
        residual: Option<&[T]>,
        affine: Affine<'_, T::Param>,
        running_mean: &[T::Param],
        running_var: &[T::Param],
        mut run: Run<'_>,
    ) -> Result<(), Error> {
        self.check_in_place(Operand::X, Operand::Y)?;
        let lengths = Self::forward_lengths(x_to_y, residual, None);
        self.check_inference(&lengths, &affine, running_mean, running_var, run.words())?;
        let (p, residual) = (x_to_y.as_mut_ptr(), residual.map(<[T]>::as_ptr));
        // SAFETY: the lengths have been checked; the one slice is borrowed for writing.
        unsafe { self.inference_at(p, residual, &affine, running_mean, running_var, p, &mut run)? };
        Ok(())
    }

    /// The part of [`inference`](Self::inference) that does not depend on x. It takes no workspace. A table may be made on another machine
    /// (with `bytemuck` it is bytes) and kept in flash; it depends on epsilon, not on shape, strides or activation.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Unpreparable`] where a channel's constants are so large or small
    /// that its arithmetic needs f64. Nothing has been written then. (A channel whose running_var + ε is negative is no error: it is NaN,
    /// as in `inference`.)
    ///
    /// ```
    /// use bn_core::{Affine, BatchNorm, Op, Prepared, Run, Shape};
    ///
    /// let bn = BatchNorm::<f32>::new(Shape::nhwc(1, 2, &[2])?, 0.0)?;
    /// let affine = Affine::new(&[1.0, 2.0], &[0.0, 1.0]);
    /// let mut table = [Prepared::default(); 2];
    /// bn.prepare(affine, &[1.0, 20.0], &[1.0, 100.0], &mut table)?;
    /// assert_eq!(table[1], Prepared { mean: 20.0, scale: 0.2, shift: 1.0 });
    ///
    /// let (x, mut y) = ([1.0, 10.0, 3.0, 30.0], [0.0; 4]);
    /// let mut workspace = vec![0; bn.workspace_best(Op::Inference, 1)];
    /// bn.apply(&x, None, &table, &mut y, Run::serial(&mut workspace))?;
    /// assert_eq!(y, [0.0, -1.0, 2.0, 3.0]);
    /// # Ok::<(), bn_core::Error>(())
    /// ```
    pub fn prepare(
        &self,
        affine: Affine<'_, T::Param>,
        running_mean: &[T::Param],
        running_var: &[T::Param],
        prepared: &mut [Prepared<T::Param>],
    ) -> Result<(), Error> {
        self.check_inference(&[], &affine, running_mean, running_var, usize::MAX)?;
        self.check(&[], &[("prepared", prepared.len())], 0, 0)?;
        let k = Running {
            affine: &affine,
            mean: running_mean,
            var: running_var,
            epsilon: self.epsilon,
            isa: self.engine.isa,
        };
        if let Some(channel) = (0..prepared.len()).find(|&c| !k.of(c).safe) {
            return Err(Error::Unpreparable { channel });
        }
        for (c, p) in prepared.iter_mut().enumerate() {
            let [mean, scale, shift] = k.of(c).narrow;
            *p = Prepared { mean, scale, shift };
        }
        Ok(())
    }

    /// The part of [`inference`](Self::inference) that depends on x: the same bits, without f64. An example stands at
    /// [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// As [`inference`](Self::inference).
    pub fn apply<'y>(
        &self,
        x: &[T],
        residual: Option<&[T]>,
        prepared: &[Prepared<T::Param>],
        y: impl Into<Output<'y, T>>,
        mut run: Run<'_>,
    ) -> Result<(), Error>
    where
        T: 'y,
    {
        let y = y.into();
        self.check_apply(&Self::forward_lengths(x, residual, Some(&y)), prepared, run.words())?;
        // SAFETY: the lengths have been checked; x is borrowed for reading, y for writing.
        unsafe { self.apply_prepared_at(x.as_ptr(), residual.map(<[T]>::as_ptr), prepared, y.ptr, &mut run)? };
        Ok(())
    }

    /// [`apply`](Self::apply) over its input.
    ///
    /// # Errors
    /// As there, and [`Error::InPlaceStrides`].
    pub fn apply_in_place(
        &self,
        x_to_y: &mut [T],
        residual: Option<&[T]>,
        prepared: &[Prepared<T::Param>],
        mut run: Run<'_>,
    ) -> Result<(), Error> {
        self.check_in_place(Operand::X, Operand::Y)?;
        self.check_apply(&Self::forward_lengths(x_to_y, residual, None), prepared, run.words())?;
        let p = x_to_y.as_mut_ptr();
        // SAFETY: the lengths have been checked; the one slice is borrowed for writing.
        unsafe { self.apply_prepared_at(p, residual.map(<[T]>::as_ptr), prepared, p, &mut run)? };
        Ok(())
    }

    /// # Safety
    /// x and residual are valid for reading, y for writing the whole tensor; y is one of the others or
    /// overlaps neither; the slices have their lengths.
    pub(crate) unsafe fn inference_at(
        &self,
        x: *const T,
        residual: Option<*const T>,
        affine: &Affine<'_, T::Param>,
        running_mean: &[T::Param],
        running_var: &[T::Param],
        y: *mut T,
        run: &mut Run<'_>,
    ) -> Result<(), Failed> {
        let k = Running { affine, mean: running_mean, var: running_var, epsilon: self.epsilon, isa: self.engine.isa };
        // SAFETY: by the caller.
        unsafe { self.map_forward(x, residual, &k, y, run) }
    }

    /// # Safety
    /// As [`Self::inference_at`].
    pub(crate) unsafe fn apply_prepared_at(
        &self,
        x: *const T,
        residual: Option<*const T>,
        prepared: &[Prepared<T::Param>],
        y: *mut T,
        run: &mut Run<'_>,
    ) -> Result<(), Failed> {
        let coefficients = |c: usize| of_prepared(prepared, c);
        let op = Normalize { activation: &self.rectifier, residual: residual.is_some(), coefficients: &coefficients };
        let (from, to) = (self.inputs(x, residual), [self.place(Operand::Y, y)]);
        // SAFETY: by the caller; a map only reads from its inputs.
        unsafe { T::normalize_prepared(&self.engine, &op, &from, &to, run) }
    }

    pub(crate) fn check_inference(
        &self,
        tensors: &[(Operand, usize)],
        affine: &Affine<'_, T::Param>,
        running_mean: &[T::Param],
        running_var: &[T::Param],
        workspace: usize,
    ) -> Result<(), Error> {
        let [gamma, beta] = affine.lengths();
        let (mean, var) = (("running_mean", running_mean.len()), ("running_var", running_var.len()));
        self.check(tensors, &[gamma, beta, mean, var], self.workspace_min(Op::Inference), workspace)
    }

    pub(crate) fn check_apply(
        &self,
        tensors: &[(Operand, usize)],
        prepared: &[Prepared<T::Param>],
        workspace: usize,
    ) -> Result<(), Error> {
        self.check(tensors, &[("prepared", prepared.len())], self.workspace_min(Op::Inference), workspace)
    }
}

/// What inference makes the constants of a channel from. (Not a closure: one function for all who ask.)
struct Running<'a, P> {
    affine: &'a Affine<'a, P>,
    mean: &'a [P],
    var: &'a [P],
    epsilon: f64,
    isa: Isa,
}

impl<P: Param> Source<P, 3> for Running<'_, P> {
    fn of(&self, c: usize) -> Coefficients<P, 3> {
        let scale = self.affine.gamma(c) * inverse_std(entry(Some(self.var), c, 1.0), self.epsilon);
        split::<P>(entry(Some(self.mean), c, 0.0), scale, self.affine.beta(c), None)
    }
    fn group(&self, first: usize, to: &mut [Line<P, GROUP>; 3]) -> bool {
        make(self.isa, self, first, to)
    }
}

impl<P: Param> Maker<P, 3> for Running<'_, P> {
    #[inline(always)]
    fn make<L: Lanes>(&self, lanes: L, first: usize, to: &mut [Line<P, GROUP>; 3]) -> bool {
        let var = entries(Some(self.var), first, 1.0);
        let mean = entries(Some(self.mean), first, 0.0);
        let (gamma, beta) = (entries(self.affine.gamma, first, 1.0), entries(self.affine.beta, first, 0.0));
        split_group(lanes, to, &mean, &Spread::Variance(&var), self.epsilon, &gamma, &beta)
    }
}

#[inline(always)]
fn of_prepared<P: Param>(prepared: &[Prepared<P>], c: usize) -> Coefficients<P, 3> {
    let p = prepared.get(c).copied().unwrap_or_default();
    // Not used; zeros would be set by a function.
    let wide = [1.0; 3];
    Coefficients { narrow: [p.mean, p.scale, p.shift], wide, safe: true }
}
