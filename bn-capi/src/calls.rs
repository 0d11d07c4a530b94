//! The calls: each notes its buffers, has them checked, and hands them to bn-core by address.

use crate::operands::{Array, Operands};
use crate::plan::{Plan, isa};
use crate::status::{BATCHNORM_ERROR_ENUM, BATCHNORM_ERROR_SIZE, Refused};
use crate::types::*;
use bn_core::raw::{self, Backward};
use bn_core::{
    Affine, Element, Fold, GradSums, Gradients, Moments, Momentum, Op, Param, Prepared, RunningStats, Statistics,
    Variance, merge_moments,
};
use core::ffi::{CStr, c_void};

type Done = Result<(), Refused>;

/// gamma and beta, each perhaps NULL.
struct AffineArrays<P>(Option<Array<P>>, Option<Array<P>>);

impl<P: Param> AffineArrays<P> {
    fn new<T: Element<Param = P>>(
        plan: &Plan<'_, T>,
        to: &mut Operands,
        gamma: *const c_void,
        beta: *const c_void,
    ) -> Result<Self, Refused> {
        Ok(AffineArrays(plan.optional(to, gamma)?, plan.optional(to, beta)?))
    }

    /// # Safety
    /// As [`Array::get`].
    unsafe fn get<'a>(self) -> Affine<'a, P>
    where
        P: 'a,
    {
        // SAFETY: by the caller.
        unsafe { Affine { gamma: self.0.map(|a| a.get()), beta: self.1.map(|a| a.get()) } }
    }
}

/// The outputs of a backward pass.
struct GradientArrays<T: Element> {
    dx: Option<(*mut T, usize)>,
    dresidual: Option<(*mut T, usize)>,
    dgamma: Option<Array<T::Param>>,
    dbeta: Option<Array<T::Param>>,
}

impl<T: Element> GradientArrays<T> {
    fn new(
        plan: &Plan<'_, T>,
        to: &mut Operands,
        dx: *mut c_void,
        dresidual: *mut c_void,
        dgamma: *mut c_void,
        dbeta: *mut c_void,
    ) -> Result<Self, Refused> {
        Ok(GradientArrays {
            dx: plan.dx(to, dx)?,
            dresidual: plan.dresidual(to, dresidual)?,
            dgamma: plan.optional_mut(to, dgamma)?,
            dbeta: plan.optional_mut(to, dbeta)?,
        })
    }

    /// # Safety
    /// As [`Array::get_mut`].
    unsafe fn get<'a>(self) -> Gradients<'a, T>
    where
        T: 'a,
    {
        // SAFETY: by the caller; the tensors have as many elements.
        unsafe {
            Gradients {
                dx: self.dx.map(|(p, n)| raw::output(p, n)),
                dresidual: self.dresidual.map(|(p, n)| raw::output(p, n)),
                dgamma: self.dgamma.map(|a| a.get_mut()),
                dbeta: self.dbeta.map(|a| a.get_mut()),
            }
        }
    }
}

pub(crate) unsafe fn forward_training<T: Element>(
    plan: &Plan<'_, T>,
    x: *const c_void,
    residual: *const c_void,
    gamma: *const c_void,
    beta: *const c_void,
    y: *mut c_void,
    moments: *mut batchnorm_moments,
) -> Done {
    let ((at, affine, moments), workspace) = plan.noted(Op::ForwardTraining, |to| {
        let at = plan.forward(to, x, residual, y)?;
        let affine = AffineArrays::new(plan, to, gamma, beta)?;
        let moments: Array<Moments> = plan.array_mut(to, moments.cast())?;
        Ok((at, affine, moments))
    })?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        plan.run(Op::ForwardTraining, workspace, |run| {
            raw::forward_training(plan.bn, at, affine.get(), moments.get_mut(), run)
        })
    }
}

pub(crate) unsafe fn forward_inference<T: Element>(
    plan: &Plan<'_, T>,
    x: *const c_void,
    residual: *const c_void,
    gamma: *const c_void,
    beta: *const c_void,
    running_mean: *const c_void,
    running_var: *const c_void,
    y: *mut c_void,
) -> Done {
    let ((at, affine, mean, var), workspace) = plan.noted(Op::Inference, |to| {
        let at = plan.forward(to, x, residual, y)?;
        let affine = AffineArrays::new(plan, to, gamma, beta)?;
        let (mean, var) = (plan.array(to, running_mean)?, plan.array(to, running_var)?);
        Ok((at, affine, mean, var))
    })?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        plan.run(Op::Inference, workspace, |run| raw::inference(plan.bn, at, affine.get(), mean.get(), var.get(), run))
    }
}

pub(crate) unsafe fn prepare<T: Element<Param = f32>>(
    plan: &Plan<'_, T>,
    gamma: *const c_void,
    beta: *const c_void,
    running_mean: *const c_void,
    running_var: *const c_void,
    prepared: *mut batchnorm_prepared,
) -> Done {
    let mut to = Operands::NONE;
    let affine = AffineArrays::new(plan, &mut to, gamma, beta)?;
    let (mean, var) = (plan.array(&mut to, running_mean)?, plan.array(&mut to, running_var)?);
    let prepared: Array<Prepared<f32>> = plan.array_mut(&mut to, prepared.cast())?;
    to.apart()?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe { Ok(plan.bn.prepare(affine.get(), mean.get(), var.get(), prepared.get_mut())?) }
}

pub(crate) unsafe fn apply<T: Element<Param = f32>>(
    plan: &Plan<'_, T>,
    x: *const c_void,
    residual: *const c_void,
    prepared: *const batchnorm_prepared,
    y: *mut c_void,
) -> Done {
    let ((at, prepared), workspace) = plan.noted(Op::Inference, |to| {
        let at = plan.forward(to, x, residual, y)?;
        let prepared: Array<Prepared<f32>> = plan.array(to, prepared.cast())?;
        Ok((at, prepared))
    })?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe { plan.run(Op::Inference, workspace, |run| raw::apply(plan.bn, at, prepared.get(), run)) }
}

pub(crate) unsafe fn backward<T: Element>(
    plan: &Plan<'_, T>,
    x: *const c_void,
    y: *const c_void,
    dy: *const c_void,
    gamma: *const c_void,
    moments: *const batchnorm_moments,
    dx: *mut c_void,
    dresidual: *mut c_void,
    dgamma: *mut c_void,
    dbeta: *mut c_void,
) -> Done {
    let ((x, y, dy, gamma, moments, output), workspace) = plan.noted(Op::Backward, |to| {
        let (x, y, dy) = (plan.x(to, x)?, plan.y_read(to, y)?, plan.dy(to, dy)?);
        let gamma = plan.optional(to, gamma)?;
        let moments: Array<Moments> = plan.array(to, moments.cast())?;
        let output = GradientArrays::new(plan, to, dx, dresidual, dgamma, dbeta)?;
        Ok((x, y, dy, gamma, moments, output))
    })?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        let statistics = Statistics::Batch(moments.get());
        let at = Backward { x, y, dy, gamma: gamma.map(|a| a.get()), statistics };
        plan.run(Op::Backward, workspace, |run| raw::backward(plan.bn, at, output.get(), run))
    }
}

pub(crate) unsafe fn backward_inference<T: Element>(
    plan: &Plan<'_, T>,
    x: *const c_void,
    y: *const c_void,
    dy: *const c_void,
    gamma: *const c_void,
    running_mean: *const c_void,
    running_var: *const c_void,
    dx: *mut c_void,
    dresidual: *mut c_void,
    dgamma: *mut c_void,
    dbeta: *mut c_void,
) -> Done {
    let ((x, y, dy, gamma, mean, var, output), workspace) = plan.noted(Op::Backward, |to| {
        let (x, y, dy) = (plan.x(to, x)?, plan.y_read(to, y)?, plan.dy(to, dy)?);
        let gamma = plan.optional(to, gamma)?;
        let (mean, var) = (plan.array(to, running_mean)?, plan.array(to, running_var)?);
        let output = GradientArrays::new(plan, to, dx, dresidual, dgamma, dbeta)?;
        Ok((x, y, dy, gamma, mean, var, output))
    })?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        let statistics = Statistics::Running { mean: mean.get(), var: var.get() };
        let at = Backward { x, y, dy, gamma: gamma.map(|a| a.get()), statistics };
        plan.run(Op::Backward, workspace, |run| raw::backward(plan.bn, at, output.get(), run))
    }
}

pub(crate) unsafe fn backward_from_output<T: Element>(
    plan: &Plan<'_, T>,
    y: *const c_void,
    dy: *const c_void,
    gamma: *const c_void,
    beta: *const c_void,
    moments: *const batchnorm_moments,
    dx: *mut c_void,
    dgamma: *mut c_void,
    dbeta: *mut c_void,
) -> Done {
    let ((y, dy, affine, moments, output), workspace) = plan.noted(Op::Backward, |to| {
        let (y, dy) = (plan.y_needed(to, y)?, plan.dy(to, dy)?);
        let affine = AffineArrays::new(plan, to, gamma, beta)?;
        let moments: Array<Moments> = plan.array(to, moments.cast())?;
        let output = GradientArrays::new(plan, to, dx, core::ptr::null_mut(), dgamma, dbeta)?;
        Ok((y, dy, affine, moments, output))
    })?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        plan.run(Op::Backward, workspace, |run| {
            raw::backward_from_output(plan.bn, y, dy, affine.get(), moments.get(), output.get(), run)
        })
    }
}

pub(crate) unsafe fn moments_accumulate<T: Element>(
    plan: &Plan<'_, T>,
    x: *const c_void,
    moments: *mut batchnorm_moments,
) -> Done {
    let ((x, moments), workspace) = plan.noted(Op::ForwardTraining, |to| {
        let x = plan.x(to, x)?;
        let moments: Array<Moments> = plan.array_mut(to, moments.cast())?;
        Ok((x, moments))
    })?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe { plan.run(Op::ForwardTraining, workspace, |run| raw::moments(plan.bn, x, moments.get_mut(), run)) }
}

pub(crate) unsafe fn moments_merge(
    channels: usize,
    into: *mut batchnorm_moments,
    from: *const batchnorm_moments,
) -> Done {
    let mut to = Operands::NONE;
    let into: Array<Moments> = to.array(into.cast(), channels, true)?;
    let from: Array<Moments> = to.array(from.cast(), channels, false)?;
    to.apart()?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe { Ok(merge_moments(into.get_mut(), from.get())?) }
}

pub(crate) unsafe fn normalize<T: Element>(
    plan: &Plan<'_, T>,
    x: *const c_void,
    residual: *const c_void,
    gamma: *const c_void,
    beta: *const c_void,
    moments: *const batchnorm_moments,
    y: *mut c_void,
) -> Done {
    let ((at, affine, moments), workspace) = plan.noted(Op::ForwardTraining, |to| {
        let at = plan.forward(to, x, residual, y)?;
        let affine = AffineArrays::new(plan, to, gamma, beta)?;
        let moments: Array<Moments> = plan.array(to, moments.cast())?;
        Ok((at, affine, moments))
    })?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        plan.run(Op::ForwardTraining, workspace, |run| raw::normalize(plan.bn, at, affine.get(), moments.get(), run))
    }
}

pub(crate) unsafe fn backward_sums<T: Element>(
    plan: &Plan<'_, T>,
    x: *const c_void,
    y: *const c_void,
    dy: *const c_void,
    moments: *const batchnorm_moments,
    sums: *mut batchnorm_sums,
) -> Done {
    let ((x, y, dy, moments, sums), workspace) = plan.noted(Op::Backward, |to| {
        let (x, y, dy) = (plan.x(to, x)?, plan.y_read(to, y)?, plan.dy(to, dy)?);
        let moments: Array<Moments> = plan.array(to, moments.cast())?;
        let sums: Array<GradSums> = plan.array_mut(to, sums.cast())?;
        Ok((x, y, dy, moments, sums))
    })?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        let at = Backward { x, y, dy, gamma: None, statistics: Statistics::Batch(moments.get()) };
        plan.run(Op::Backward, workspace, |run| raw::backward_sums(plan.bn, at, sums.get_mut(), run))
    }
}

pub(crate) unsafe fn backward_apply<T: Element>(
    plan: &Plan<'_, T>,
    x: *const c_void,
    y: *const c_void,
    dy: *const c_void,
    gamma: *const c_void,
    moments: *const batchnorm_moments,
    sums: *const batchnorm_sums,
    dx: *mut c_void,
    dresidual: *mut c_void,
) -> Done {
    let ((x, y, dy, gamma, moments, sums, output), workspace) = plan.noted(Op::Backward, |to| {
        let (x, y, dy) = (plan.x(to, x)?, plan.y_read(to, y)?, plan.dy(to, dy)?);
        let gamma = plan.optional(to, gamma)?;
        let moments: Array<Moments> = plan.array(to, moments.cast())?;
        let sums: Array<GradSums> = plan.array(to, sums.cast())?;
        let none = core::ptr::null_mut();
        let output = GradientArrays::new(plan, to, dx, dresidual, none, none)?;
        Ok((x, y, dy, gamma, moments, sums, output))
    })?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        let statistics = Statistics::Batch(moments.get());
        let at = Backward { x, y, dy, gamma: gamma.map(|a| a.get()), statistics };
        plan.run(Op::Backward, workspace, |run| raw::backward_apply(plan.bn, at, sums.get(), output.get(), run))
    }
}

pub(crate) fn rule(rule: u32, momentum: f64, unbiased: u32) -> Result<RunningStats, Refused> {
    let momentum = match rule {
        BATCHNORM_WEIGH_NEW => Momentum::WeighNew(momentum),
        BATCHNORM_WEIGH_OLD => Momentum::WeighOld(momentum),
        BATCHNORM_CUMULATIVE => Momentum::Cumulative,
        _ => return Err(Refused(BATCHNORM_ERROR_ENUM)),
    };
    let variance = match unbiased {
        0 => Variance::Biased,
        1 => Variance::Unbiased,
        _ => return Err(Refused(BATCHNORM_ERROR_ENUM)),
    };
    Ok(RunningStats::new(momentum, variance)?)
}

pub(crate) unsafe fn running_update<P: Param>(
    rule: RunningStats,
    channels: usize,
    moments: *const batchnorm_moments,
    num_batches: *mut u64,
    running_mean: *mut c_void,
    running_var: *mut c_void,
    skipped: *mut usize,
) -> Done {
    let mut to = Operands::NONE;
    let moments: Array<Moments> = to.array(moments.cast(), channels, false)?;
    let batches: Option<Array<u64>> = to.optional(num_batches.cast(), 1, true)?;
    let mean: Array<P> = to.array(running_mean, channels, true)?;
    let var: Array<P> = to.array(running_var, channels, true)?;
    let skipped: Option<Array<usize>> = to.optional(skipped.cast(), 1, true)?;
    to.apart()?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        let batches = batches.and_then(|a| a.get_mut().first_mut());
        let n = rule.update(moments.get(), mean.get_mut(), var.get_mut(), batches)?;
        if let Some(skipped) = skipped.and_then(|a| a.get_mut().first_mut()) {
            *skipped = n;
        }
    }
    Ok(())
}

pub(crate) unsafe fn fold_before(
    prepared: *const batchnorm_prepared,
    outputs: usize,
    inputs_per_output: usize,
    weight: *mut f32,
    bias: *mut f32,
) -> Done {
    let mut to = Operands::NONE;
    let prepared: Array<Prepared<f32>> = to.array(prepared.cast(), outputs, false)?;
    let weights = outputs.checked_mul(inputs_per_output).ok_or(Refused(BATCHNORM_ERROR_SIZE))?;
    let weight: Array<f32> = to.array(weight.cast(), weights, true)?;
    let bias: Array<f32> = to.array(bias.cast(), outputs, true)?;
    to.apart()?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        let fold = Fold::prepared(prepared.get())?;
        Ok(fold.into_preceding(inputs_per_output, weight.get_mut(), bias.get_mut())?)
    }
}

pub(crate) unsafe fn fold_after(
    prepared: *const batchnorm_prepared,
    outputs: usize,
    channels: usize,
    taps: usize,
    weight: *mut f32,
    bias: *mut f32,
) -> Done {
    let mut to = Operands::NONE;
    let prepared: Array<Prepared<f32>> = to.array(prepared.cast(), channels, false)?;
    let row = channels.checked_mul(taps);
    let weights = row.and_then(|n| n.checked_mul(outputs)).ok_or(Refused(BATCHNORM_ERROR_SIZE))?;
    let weight: Array<f32> = to.array(weight.cast(), weights, true)?;
    let bias: Array<f32> = to.array(bias.cast(), outputs, true)?;
    to.apart()?;
    // SAFETY: the buffers are apart; the caller of the library vouches for the rest.
    unsafe {
        let fold = Fold::prepared(prepared.get())?;
        Ok(fold.into_following(outputs, 1, taps, weight.get_mut(), bias.get_mut())?)
    }
}

pub(crate) unsafe fn workspace<T: Element>(plan: &Plan<'_, T>, op: u32, best: bool, bytes: &mut usize) -> Done {
    let op = match op {
        BATCHNORM_OP_FORWARD_TRAINING => Op::ForwardTraining,
        BATCHNORM_OP_INFERENCE => Op::Inference,
        BATCHNORM_OP_BACKWARD => Op::Backward,
        _ => return Err(Refused(BATCHNORM_ERROR_ENUM)),
    };
    let words = if best { plan.bn.workspace_best(op, plan.width()) } else { plan.bn.workspace_min(op) };
    *bytes = words.saturating_mul(size_of::<u64>());
    Ok(())
}

pub(crate) fn isa_name(number: u32) -> &'static CStr {
    // Those that exist have names, also where the CPU lacks them.
    match number {
        BATCHNORM_ISA_PORTABLE => c"portable",
        BATCHNORM_ISA_AVX2 => c"avx2",
        BATCHNORM_ISA_AVX512 => c"avx512",
        BATCHNORM_ISA_DETECT => match isa(number).map(|i| i.kind()) {
            Ok(bn_core::IsaKind::Portable) => c"portable",
            Ok(bn_core::IsaKind::Avx2) => c"avx2",
            Ok(bn_core::IsaKind::Avx512) => c"avx512",
            _ => c"unknown",
        },
        _ => c"unknown",
    }
}

/// The package's version as one number.
pub(crate) const VERSION: u32 = {
    const fn number(digits: &str) -> u32 {
        let (bytes, mut n, mut i) = (digits.as_bytes(), 0, 0);
        while i < bytes.len() {
            n = n * 10 + (bytes[i] - b'0') as u32;
            i += 1;
        }
        n
    }
    number(env!("CARGO_PKG_VERSION_MAJOR")) << 16
        | number(env!("CARGO_PKG_VERSION_MINOR")) << 8
        | number(env!("CARGO_PKG_VERSION_PATCH"))
};
