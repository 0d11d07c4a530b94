//! Batch normalization for C: the functions of `include/batchnorm.h`, which is made from this crate.
//!
//! | file | what |
//! |---|---|
//! | `types.rs`, `status.rs` | structures, constants and statuses |
//! | `operands.rs` | are the buffers there, aligned, apart? |
//! | `plan.rs` | from a descriptor to a plan of bn-core, its executor and its workspace |
//! | `environment.rs` | the floating-point environment, set and restored |
//! | `calls.rs` | one generic function for each call |
//! | `threads.rs` | thread pools |
//!
//! What is generic ends here: each entry chooses the element type that the descriptor names.

#![cfg_attr(not(feature = "std"), no_std)]
#![allow(non_camel_case_types, reason = "the names are C's")]
#![allow(clippy::missing_safety_doc, reason = "the documentation is the header's: what C must keep to")]
#![allow(private_interfaces, reason = "C has no modules")]

#[cfg(feature = "std")]
extern crate std;

mod calls;
mod conformance;
mod environment;
mod operands;
mod plan;
mod status;
#[cfg(feature = "std")]
mod threads;
mod types;

use core::ffi::{c_char, c_void};
use plan::{Dtype, Plan, descriptor, entry};
pub use status::*;
pub use types::*;

#[cfg(all(not(feature = "std"), not(test)))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    #[cfg(feature = "panic-handler")]
    loop {
        core::hint::spin_loop();
    }
    #[cfg(not(feature = "panic-handler"))]
    {
        unsafe extern "C" {
            /// The program's, if it is linked at all: release builds have no path to a panic.
            fn batchnorm_panic() -> !;
        }
        // SAFETY: takes nothing and does not return.
        unsafe { batchnorm_panic() }
    }
}

/// Runs a generic call. (A `BatchNorm` stays where it was made: with `?` there would be two on a small stack.)
macro_rules! call {
    ($element:ty, $desc:expr, $call:ident($($arg:expr),*)) => {
        match &plan::batch_norm::<$element>($desc) {
            Ok(bn) => calls::$call(&Plan::new(bn, $desc)?, $($arg),*),
            Err(refused) => Err(*refused),
        }
    };
}

/// Runs a generic call with the element type of the descriptor.
macro_rules! by_dtype {
    ($desc:expr, $call:ident($($arg:expr),*)) => {
        entry(|| {
            // SAFETY: the caller of the library vouches for its pointers.
            unsafe {
                let (desc, dtype) = descriptor($desc)?;
                match dtype {
                    Dtype::F32 => call!(f32, desc, $call($($arg),*)),
                    #[cfg(feature = "f64")]
                    Dtype::F64 => call!(f64, desc, $call($($arg),*)),
                    #[cfg(feature = "half")]
                    Dtype::F16 => call!(half::f16, desc, $call($($arg),*)),
                    #[cfg(feature = "half")]
                    Dtype::Bf16 => call!(half::bf16, desc, $call($($arg),*)),
                }
            }
        })
    };
}

/// The same for calls on float parameters.
macro_rules! by_float_dtype {
    ($desc:expr, $call:ident($($arg:expr),*)) => {
        entry(|| {
            // SAFETY: as above.
            unsafe {
                let (desc, dtype) = descriptor($desc)?;
                match dtype {
                    Dtype::F32 => call!(f32, desc, $call($($arg),*)),
                    #[cfg(feature = "f64")]
                    Dtype::F64 => Err(status::Refused(BATCHNORM_ERROR_DTYPE)),
                    #[cfg(feature = "half")]
                    Dtype::F16 => call!(half::f16, desc, $call($($arg),*)),
                    #[cfg(feature = "half")]
                    Dtype::Bf16 => call!(half::bf16, desc, $call($($arg),*)),
                }
            }
        })
    };
}

/// Training: y = act(gamma*(x - mean)/sqrt(variance + epsilon) + beta + residual) with the mean and the
/// biased variance of this batch, which are written to moments (for the backward pass, and for
/// batchnorm_running_update).
///
/// x, residual, y: tensors. gamma, beta: channels parameters. moments: channels.
/// NULL: residual (none), gamma (1), beta (0). y may be x, or residual, or both.
/// Needs two values per channel, or BATCHNORM_ALLOW_ONE_VALUE (else BATCHNORM_ERROR_TOO_FEW_VALUES).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_forward_training(
    desc: *const batchnorm_desc,
    x: *const c_void,
    residual: *const c_void,
    gamma: *const c_void,
    beta: *const c_void,
    y: *mut c_void,
    moments: *mut batchnorm_moments,
) -> batchnorm_status {
    by_dtype!(desc, forward_training(x, residual, gamma, beta, y, moments))
}

/// Inference: y = act(gamma*(x - running_mean)/sqrt(running_var + epsilon) + beta + residual).
///
/// x, residual, y: tensors. gamma, beta, running_mean, running_var: channels parameters.
/// NULL: residual (none), gamma (1), beta (0). y may be x, or residual, or both. batch may be 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_forward_inference(
    desc: *const batchnorm_desc,
    x: *const c_void,
    residual: *const c_void,
    gamma: *const c_void,
    beta: *const c_void,
    running_mean: *const c_void,
    running_var: *const c_void,
    y: *mut c_void,
) -> batchnorm_status {
    by_dtype!(desc, forward_inference(x, residual, gamma, beta, running_mean, running_var, y))
}

/// The part of inference that does not depend on x, for batchnorm_apply: once, perhaps on another machine.
///
/// gamma, beta, running_mean, running_var: channels parameters (float). prepared: channels.
/// NULL: gamma (1), beta (0). Of the descriptor only the shape, dtype and epsilon matter.
/// Not for BATCHNORM_F64 (BATCHNORM_ERROR_DTYPE). BATCHNORM_ERROR_UNPREPARABLE where a channel's
/// constants leave the range of float.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_prepare(
    desc: *const batchnorm_desc,
    gamma: *const c_void,
    beta: *const c_void,
    running_mean: *const c_void,
    running_var: *const c_void,
    prepared: *mut batchnorm_prepared,
) -> batchnorm_status {
    by_float_dtype!(desc, prepare(gamma, beta, running_mean, running_var, prepared))
}

/// The part of inference that depends on x, without double: the same bits as batchnorm_forward_inference.
///
/// x, residual, y: tensors. prepared: channels, from batchnorm_prepare.
/// NULL: residual (none). y may be x, or residual, or both. Not for BATCHNORM_F64 (BATCHNORM_ERROR_DTYPE).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_apply(
    desc: *const batchnorm_desc,
    x: *const c_void,
    residual: *const c_void,
    prepared: *const batchnorm_prepared,
    y: *mut c_void,
) -> batchnorm_status {
    by_float_dtype!(desc, apply(x, residual, prepared, y))
}

/// The gradients of batchnorm_forward_training: dx, dresidual, dgamma and dbeta, any of them.
///
/// x, dy, dx, dresidual: tensors; y: the tensor that the forward pass wrote. gamma, dgamma, dbeta:
/// channels parameters. moments: channels, as the forward pass wrote them for this x
/// (else BATCHNORM_ERROR_COUNT: for the moments of more than this x there are batchnorm_backward_sums
/// and batchnorm_backward_apply).
/// NULL: y (where activation is BATCHNORM_IDENTITY), gamma (1), and what is not wanted of dx, dresidual,
/// dgamma and dbeta. dx may be dy, or dresidual may. dgamma and dbeta are overwritten.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_backward(
    desc: *const batchnorm_desc,
    x: *const c_void,
    y: *const c_void,
    dy: *const c_void,
    gamma: *const c_void,
    moments: *const batchnorm_moments,
    dx: *mut c_void,
    dresidual: *mut c_void,
    dgamma: *mut c_void,
    dbeta: *mut c_void,
) -> batchnorm_status {
    by_dtype!(desc, backward(x, y, dy, gamma, moments, dx, dresidual, dgamma, dbeta))
}

/// The gradients of batchnorm_forward_inference, whose statistics are constants ("frozen").
///
/// As batchnorm_backward, with running_mean and running_var (channels parameters) in place of moments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_backward_inference(
    desc: *const batchnorm_desc,
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
) -> batchnorm_status {
    by_dtype!(desc, backward_inference(x, y, dy, gamma, running_mean, running_var, dx, dresidual, dgamma, dbeta))
}

/// batchnorm_backward without x, from the y of a forward pass that may have been in place and had no
/// residual. The error of the gradients is 1 + |beta/gamma| times that of batchnorm_backward.
///
/// y, dy, dx: tensors. gamma, beta, dgamma, dbeta: channels parameters. moments: channels, as the forward
/// pass wrote them. The activation is BATCHNORM_IDENTITY, or BATCHNORM_LEAKY_RELU with a slope above 0,
/// and no gamma is 0 (else BATCHNORM_ERROR_NOT_INVERTIBLE).
/// NULL: gamma (1), beta (0), and what is not wanted of dx, dgamma and dbeta. dx may be dy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_backward_from_output(
    desc: *const batchnorm_desc,
    y: *const c_void,
    dy: *const c_void,
    gamma: *const c_void,
    beta: *const c_void,
    moments: *const batchnorm_moments,
    dx: *mut c_void,
    dgamma: *mut c_void,
    dbeta: *mut c_void,
) -> batchnorm_status {
    by_dtype!(desc, backward_from_output(y, dy, gamma, beta, moments, dx, dgamma, dbeta))
}

/// The first stage of the forward pass: takes x into moments, which are zeroed to start with. So
/// statistics of several batches, shards or a whole data set are those of several calls.
///
/// x: tensor. moments: channels, read and written. batch may be 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_moments_accumulate(
    desc: *const batchnorm_desc,
    x: *const c_void,
    moments: *mut batchnorm_moments,
) -> batchnorm_status {
    by_dtype!(desc, moments_accumulate(x, moments))
}

/// Takes the moments of a shard into others, channel by channel. Merge in a fixed order where bits matter.
///
/// into, from: channels; they must not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_moments_merge(
    channels: usize,
    into: *mut batchnorm_moments,
    from: *const batchnorm_moments,
) -> batchnorm_status {
    // SAFETY: the caller of the library vouches for its pointers.
    entry(|| unsafe { calls::moments_merge(channels, into, from) })
}

/// The second stage of the forward pass: y from x and moments, which may be those of more than this x.
///
/// As batchnorm_forward_training, except that moments are read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_normalize(
    desc: *const batchnorm_desc,
    x: *const c_void,
    residual: *const c_void,
    gamma: *const c_void,
    beta: *const c_void,
    moments: *const batchnorm_moments,
    y: *mut c_void,
) -> batchnorm_status {
    by_dtype!(desc, normalize(x, residual, gamma, beta, moments, y))
}

/// The first stage of the backward pass: sums over this x and dy, about moments that may be those of more
/// than this x. The sums of shards (those whose moments were merged) add up.
///
/// x, dy: tensors; y: the tensor that the forward pass wrote. moments: channels. sums: channels, overwritten.
/// NULL: y (where activation is BATCHNORM_IDENTITY).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_backward_sums(
    desc: *const batchnorm_desc,
    x: *const c_void,
    y: *const c_void,
    dy: *const c_void,
    moments: *const batchnorm_moments,
    sums: *mut batchnorm_sums,
) -> batchnorm_status {
    by_dtype!(desc, backward_sums(x, y, dy, moments, sums))
}

/// The second stage of the backward pass: dx and dresidual from moments and sums, which may be those of
/// more than this x. (The gradient of beta is sums.dbeta, that of gamma is
/// sums.dot/sqrt(m2/count + epsilon).)
///
/// x, dy, dx, dresidual: tensors; y: the tensor that the forward pass wrote. gamma: channels parameters.
/// moments, sums: channels.
/// NULL: y (where activation is BATCHNORM_IDENTITY), gamma (1), and what is not wanted of dx and
/// dresidual. dx may be dy, or dresidual may.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_backward_apply(
    desc: *const batchnorm_desc,
    x: *const c_void,
    y: *const c_void,
    dy: *const c_void,
    gamma: *const c_void,
    moments: *const batchnorm_moments,
    sums: *const batchnorm_sums,
    dx: *mut c_void,
    dresidual: *mut c_void,
) -> batchnorm_status {
    by_dtype!(desc, backward_apply(x, y, dy, gamma, moments, sums, dx, dresidual))
}

/// Takes a batch's moments into running statistics. Channels whose statistics, or updated values, are
/// not finite, or that have no values, keep their old values; skipped says how many did.
///
/// dtype: that of the elements, which tells the parameters' type. rule: BATCHNORM_WEIGH_NEW,
/// BATCHNORM_WEIGH_OLD or BATCHNORM_CUMULATIVE. momentum: from 0 to 1. unbiased: 0 for the biased
/// variance m2/n (Keras, ONNX), 1 for m2/(n - 1) (PyTorch). num_batches: one number, increased by 1.
/// running_mean, running_var: channels parameters, read and written.
/// NULL: num_batches (except for BATCHNORM_CUMULATIVE), skipped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_running_update(
    dtype: u32,
    channels: usize,
    moments: *const batchnorm_moments,
    rule: u32,
    momentum: f64,
    unbiased: u32,
    num_batches: *mut u64,
    running_mean: *mut c_void,
    running_var: *mut c_void,
    skipped: *mut usize,
) -> batchnorm_status {
    entry(|| {
        let rule = calls::rule(rule, momentum, unbiased)?;
        let (batches, mean, var) = (num_batches, running_mean, running_var);
        // SAFETY: the caller of the library vouches for its pointers.
        unsafe {
            match Dtype::new(dtype)? {
                #[cfg(feature = "f64")]
                Dtype::F64 => calls::running_update::<f64>(rule, channels, moments, batches, mean, var, skipped),
                _ => calls::running_update::<f32>(rule, channels, moments, batches, mean, var, skipped),
            }
        }
    })
}

/// Folds batch normalization into the convolution or dense layer before it.
///
/// prepared: outputs, one for each output of the layer. weight: outputs x inputs_per_output, outputs
/// first (a depthwise 3x3 convolution has 9 inputs per output). bias: outputs; bring zeros where the layer has
/// none. weight and bias are changed in place. BATCHNORM_ERROR_UNFOLDABLE where one would not be finite.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_fold_before(
    prepared: *const batchnorm_prepared,
    outputs: usize,
    inputs_per_output: usize,
    weight: *mut f32,
    bias: *mut f32,
) -> batchnorm_status {
    // SAFETY: the caller of the library vouches for its pointers.
    entry(|| unsafe { calls::fold_before(prepared, outputs, inputs_per_output, weight, bias) })
}

/// Folds batch normalization without activation into the dense layer or convolution behind it, which must not
/// pad.
///
/// prepared: channels, one for each channel that the layer reads. weight: outputs x channels x taps,
/// outputs first (dense: 1 tap). bias: outputs; bring zeros where the layer has none. weight and bias are
/// changed in place. BATCHNORM_ERROR_UNFOLDABLE where one would not be finite.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_fold_after(
    prepared: *const batchnorm_prepared,
    outputs: usize,
    channels: usize,
    taps: usize,
    weight: *mut f32,
    bias: *mut f32,
) -> batchnorm_status {
    // SAFETY: the caller of the library vouches for its pointers.
    entry(|| unsafe { calls::fold_after(prepared, outputs, channels, taps, weight, bias) })
}

/// Bytes of workspace that an operation (BATCHNORM_OP_...) needs: at most 8 KB. 0 where the descriptor or
/// the operation is refused; the call itself says why.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_workspace_min(desc: *const batchnorm_desc, op: u32) -> usize {
    // SAFETY: the caller of the library vouches for its pointers.
    unsafe { workspace(desc, op, false) }
}

/// Bytes of workspace beyond which more does not help, with the descriptor's executor. Any size from
/// batchnorm_workspace_min up gives the same bits. 0 where the descriptor or the operation is refused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_workspace_best(desc: *const batchnorm_desc, op: u32) -> usize {
    // SAFETY: the caller of the library vouches for its pointers.
    unsafe { workspace(desc, op, true) }
}

unsafe fn workspace(desc: *const batchnorm_desc, op: u32, best: bool) -> usize {
    let mut bytes = 0;
    let _ = by_dtype!(desc, workspace(op, best, &mut bytes));
    bytes
}

/// What a status means, in English. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_status_message(status: batchnorm_status) -> *const c_char {
    status::message(status).as_ptr()
}

/// The name of instructions (BATCHNORM_ISA_...): "portable", "avx2" or "avx512"; of BATCHNORM_ISA_DETECT, of
/// those that it chooses here. "unknown" where there is none. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_isa_name(isa: u32) -> *const c_char {
    calls::isa_name(isa).as_ptr()
}

/// The library's version: major*65536 + minor*256 + patch.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_version() -> u32 {
    calls::VERSION
}

/// Changes when any bit of any result does.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_bits_version() -> u32 {
    bn_core::BITS_VERSION
}

/// Runs the conformance set (some hundred small batch normalizations) here and now with these instructions:
/// one hash of the bits of all results, which is the same on every machine (of builds with the same
/// dtypes). 0 where there are no such instructions. Takes 11 KB of stack in builds without std.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_conformance_hash(isa: u32) -> u64 {
    let mut hash = 0;
    let _ = entry(|| {
        hash = conformance::hash(plan::isa(isa)?);
        Ok(())
    });
    hash
}

/// A pool of so many threads of its own; 0: as many as there are logical CPUs. NULL on failure, and always
/// in builds without std. For any number of descriptors, threads and calls at once; a call from a thread
/// outside of the pool waits for it.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_threads_new(threads: usize) -> *const batchnorm_executor {
    #[cfg(feature = "std")]
    return plan::caught(|| threads::new(threads)).unwrap_or(core::ptr::null());
    #[cfg(not(feature = "std"))]
    {
        let _ = threads;
        core::ptr::null()
    }
}

/// Ends a pool of batchnorm_threads_new and joins its threads, so that the library may be unloaded. No
/// call may be running on it; not to be called from one of its threads. NULL: nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_threads_free(executor: *const batchnorm_executor) {
    #[cfg(feature = "std")]
    if !executor.is_null() {
        // SAFETY: the caller of the library vouches for its pointers.
        let _ = plan::caught(|| unsafe { threads::free(executor) });
    }
    #[cfg(not(feature = "std"))]
    let _ = executor;
}
