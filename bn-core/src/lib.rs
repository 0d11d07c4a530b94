//! Batch normalization kernels on raw slices.
//!
//! Three promises:
//! 1. **Right for every finite input**, whatever the ratio of mean to standard deviation.
//! 2. **The same bits everywhere**: on every ISA and target, with any number of threads, on any
//!    executor, with any workspace.
//! 3. **The memory's speed** in NCHW and NHWC, without build flags.
//!
//! `no_std`, no allocation, no panics. Start at [`BatchNorm`]; worked examples of everything that its
//! stages are good for are in the [`guide`].
//!
//! # The floating-point environment
//! The calling threads round to nearest and keep subnormals (no flush-to-zero, no
//! denormals-are-zero): Rust's own precondition for f32 and f64. Debug builds check it.

#![no_std]
#![warn(missing_docs)]

#[cfg(test)]
extern crate std;

mod activation;
mod backward;
mod batch_norm;
mod dispatch;
mod double;
mod element;
mod engine;
mod error;
mod exec;
mod fold;
mod forward;
pub mod guide;
mod inference;
mod isa;
mod kernel;
mod lanes;
mod layout;
mod moments;
#[doc(hidden)]
pub mod raw;
mod renorm;
mod running;
mod shape;
mod stages;
#[cfg(target_has_atomic = "ptr")]
mod tasks;

pub use activation::Activation;
pub use backward::{BackwardInput, Gradients, Statistics};
pub use batch_norm::{Affine, BatchNorm, Op, Output};
pub use element::{Element, Param};
pub use error::Error;
pub use exec::{Executor, Run, Serial};
pub use fold::Fold;
pub use inference::Prepared;
pub use isa::{Isa, IsaKind};
pub use moments::{
    GradSums, Moments, merge_moments, moments_from_mean_inverse_std, moments_from_mean_var,
    moments_to_mean_inverse_std, moments_to_mean_var,
};
pub use renorm::{Renorm, RenormFactor, renorm_affine, renorm_gradients};
pub use running::{Momentum, RunningStats, Variance};
pub use shape::{Layout, Shape, Stride, Strides};
#[cfg(target_has_atomic = "ptr")]
pub use tasks::Tasks;

/// Changes when any bit of any result does.
pub const BITS_VERSION: u32 = 1;

/// The README's snippet, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
