//! The operations on tensors by address, for callers whose operands may be one another: the C library.
//! Not for others: slices say the same, and are checked.
//!
//! Beyond the calls in place there are y = residual and dresidual = dy, and [`BatchNorm::backward_apply`] with dx = dy.
//! Everything that is not a tensor is checked as in the methods of the same names.
//!
//! # Safety of all of them
//! Each address is aligned, and valid for the elements that the plan's strides reach: inputs for reading,
//! outputs for writing. An output is one of the allowed inputs, with the same strides, or shares no
//! element with any other operand:
//!
//! - y may be x or residual (or both),
//! - dx may be dy, dresidual may be dy.

use crate::activation::Activation;
use crate::backward::{FromOutput, Gradients, Statistics, View};
use crate::batch_norm::{Affine, BatchNorm, Output};
use crate::element::Element;
use crate::error::Error;
use crate::exec::{Run, Shared};
use crate::inference::Prepared;
use crate::isa::Isa;
use crate::moments::{GradSums, Moments};
use crate::shape::{Shape, Strides};
use core::marker::PhantomData;

/// What a forward operation works on.
#[derive(Clone, Copy, Debug)]
pub struct Forward<T> {
    /// The input.
    pub x: *const T,
    /// The residual, if there is one.
    pub residual: Option<*const T>,
    /// The output.
    pub y: *mut T,
}

/// What a backward operation reads.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a, T: Element> {
    /// The forward pass's input.
    pub x: *const T,
    /// The forward pass's output, where there is an activation.
    pub y: Option<*const T>,
    /// The gradient of the forward pass's output.
    pub dy: *const T,
    /// gamma, if the forward pass had one.
    pub gamma: Option<&'a [T::Param]>,
    /// The statistics of the forward pass.
    pub statistics: Statistics<'a, T::Param>,
}

/// An output of so many elements (those that its strides reach).
///
/// # Safety
/// As of the operation that it is given to, for as long as `'a`.
pub unsafe fn output<'a, T>(ptr: *mut T, len: usize) -> Output<'a, T> {
    Output { ptr, len, life: PhantomData }
}

/// A plan with everything at once: [`BatchNorm::new`] and the methods that change it, without a plan on the stack for each
/// of them; with the caller's errors.
///
/// # Errors
/// As of those.
#[inline(always)]
pub fn plan<T: Element, E: From<Error>>(
    shape: Shape,
    epsilon: f64,
    activation: Activation,
    strides: Strides,
    isa: Isa,
    one_value: bool,
) -> Result<BatchNorm<T>, E> {
    BatchNorm::of(shape, epsilon, activation, strides, isa, one_value)
}

/// [`BatchNorm::forward_training`].
///
/// # Errors
/// As there.
///
/// # Safety
/// [Above](self).
pub unsafe fn forward_training<T: Element>(
    bn: &BatchNorm<T>,
    at: Forward<T>,
    affine: Affine<'_, T::Param>,
    moments: &mut [Moments],
    mut run: Run<'_>,
) -> Result<(), Error> {
    bn.check_forward(&[], &affine, moments.len(), run.words())?;
    bn.check_values(bn.shape.values_per_channel())?;
    // SAFETY: by the caller.
    unsafe { bn.forward_at(at.x, at.residual, affine, Shared(moments.as_mut_ptr()), at.y, &mut run)? };
    Ok(())
}

/// [`BatchNorm::moments`].
///
/// # Errors
/// As there.
///
/// # Safety
/// [Above](self).
pub unsafe fn moments<T: Element>(
    bn: &BatchNorm<T>,
    x: *const T,
    moments: &mut [Moments],
    mut run: Run<'_>,
) -> Result<(), Error> {
    bn.check_forward(&[], &Affine::NONE, moments.len(), run.words())?;
    // SAFETY: by the caller.
    unsafe { bn.accumulate_at(x, Shared(moments.as_mut_ptr()), &mut run)? };
    Ok(())
}

/// [`BatchNorm::normalize`].
///
/// # Errors
/// As there.
///
/// # Safety
/// [Above](self).
pub unsafe fn normalize<T: Element>(
    bn: &BatchNorm<T>,
    at: Forward<T>,
    affine: Affine<'_, T::Param>,
    moments: &[Moments],
    mut run: Run<'_>,
) -> Result<(), Error> {
    bn.check_forward(&[], &affine, moments.len(), run.words())?;
    bn.check_values(moments.iter().map(|m| m.count).min().unwrap_or(0))?;
    // SAFETY: by the caller.
    unsafe { bn.normalize_at(at.x, at.residual, affine, moments.as_ptr(), at.y, &mut run)? };
    Ok(())
}

/// [`BatchNorm::inference`].
///
/// # Errors
/// As there.
///
/// # Safety
/// [Above](self).
pub unsafe fn inference<T: Element>(
    bn: &BatchNorm<T>,
    at: Forward<T>,
    affine: Affine<'_, T::Param>,
    running_mean: &[T::Param],
    running_var: &[T::Param],
    mut run: Run<'_>,
) -> Result<(), Error> {
    bn.check_inference(&[], &affine, running_mean, running_var, run.words())?;
    // SAFETY: by the caller.
    unsafe { bn.inference_at(at.x, at.residual, &affine, running_mean, running_var, at.y, &mut run)? };
    Ok(())
}

/// [`BatchNorm::apply`].
///
/// # Errors
/// As there.
///
/// # Safety
/// [Above](self).
pub unsafe fn apply<T: Element>(
    bn: &BatchNorm<T>,
    at: Forward<T>,
    prepared: &[Prepared<T::Param>],
    mut run: Run<'_>,
) -> Result<(), Error> {
    bn.check_apply(&[], prepared, run.words())?;
    // SAFETY: by the caller.
    unsafe { bn.apply_prepared_at(at.x, at.residual, prepared, at.y, &mut run)? };
    Ok(())
}

/// [`BatchNorm::backward`].
///
/// # Errors
/// As there.
///
/// # Safety
/// [Above](self).
#[inline(always)]
pub unsafe fn backward<T: Element>(
    bn: &BatchNorm<T>,
    at: Backward<'_, T>,
    output: Gradients<'_, T>,
    mut run: Run<'_>,
) -> Result<(), Error> {
    let view = view(bn, &at, &run)?;
    bn.check_gradients(&output)?;
    bn.check_counts(&at.statistics)?;
    // SAFETY: by the caller.
    unsafe { bn.backward_at(&view, &output.targets(), &mut run)? };
    Ok(())
}

/// [`BatchNorm::backward_from_output`].
///
/// # Errors
/// As there.
///
/// # Safety
/// [Above](self).
#[inline(always)]
pub unsafe fn backward_from_output<T: Element>(
    bn: &BatchNorm<T>,
    y: *const T,
    dy: *const T,
    affine: Affine<'_, T::Param>,
    moments: &[Moments],
    output: Gradients<'_, T>,
    mut run: Run<'_>,
) -> Result<(), Error> {
    bn.check_from_output(&affine, moments, run.words())?;
    let from = FromOutput::new(&affine, moments);
    let view = bn.output_view(y, dy, &from);
    bn.check_gradients(&output)?;
    // SAFETY: by the caller.
    unsafe { bn.backward_at(&view, &output.targets(), &mut run)? };
    Ok(())
}

/// [`BatchNorm::backward_sums`].
///
/// # Errors
/// As there.
///
/// # Safety
/// [Above](self).
#[inline(always)]
pub unsafe fn backward_sums<T: Element>(
    bn: &BatchNorm<T>,
    at: Backward<'_, T>,
    sums: &mut [GradSums],
    mut run: Run<'_>,
) -> Result<(), Error> {
    let view = view(bn, &at, &run)?;
    bn.check(&[], &[("sums", sums.len())], 0, 0)?;
    // SAFETY: by the caller.
    unsafe { bn.backward_sums_at(&view, Shared(sums.as_mut_ptr()), &mut run)? };
    Ok(())
}

/// [`BatchNorm::backward_apply`].
///
/// # Errors
/// As there.
///
/// # Safety
/// [Above](self).
#[inline(always)]
pub unsafe fn backward_apply<T: Element>(
    bn: &BatchNorm<T>,
    at: Backward<'_, T>,
    sums: &[GradSums],
    output: Gradients<'_, T>,
    mut run: Run<'_>,
) -> Result<(), Error> {
    let view = view(bn, &at, &run)?;
    bn.check(&[], &[("sums", sums.len())], 0, 0)?;
    bn.check_gradients(&output)?;
    // SAFETY: by the caller.
    unsafe { bn.backward_apply_at(&view, sums, &output.targets(), &mut run)? };
    Ok(())
}

fn view<'a, T: Element>(bn: &BatchNorm<T>, at: &'a Backward<'_, T>, run: &Run<'_>) -> Result<View<'a, T>, Error> {
    if at.y.is_none() && bn.activation != Activation::Identity {
        return Err(Error::Missing { what: "y" });
    }
    bn.check_constants(&[], at.gamma, &at.statistics, run.words())?;
    Ok(bn.view_at(at.x, at.y, at.dy, at.gamma, &at.statistics))
}
