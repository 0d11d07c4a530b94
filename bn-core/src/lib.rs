//! Batch normalization kernels on raw slices.
//!
//! Three promises:
//! 1. **Right for every finite input**, whatever the ratio of mean to standard deviation, within the bounds of
//!    `docs/accuracy.md`.
//! 2. **The same bits everywhere**: on every ISA and target, with any number of threads, on any
//!    executor, with any workspace.
//! 3. **The memory's speed** in NCHW and NHWC, without build flags.
//!
//! `no_std`, no allocation, no panics. Start at [`BatchNorm`]; worked examples of everything that its
//! stages are good for are in the [`guide`].
//!
//! # What the operands are
//! - **Tensors** are slices in the order of the plan's [`Shape`]: batch × channels × positions ([`Layout::Nchw`]) or batch × positions ×
//!   channels ([`Layout::Nhwc`]), dense, or parts of larger ones by [`Strides`]. Elements are f32 or f64, with the feature `half` f16 or
//!   bf16, whose parameters and arithmetic are f32.
//! - **Means** are in units of x, **variances** and epsilon in those of x², biased (Σ (x − mean)²/n) but where a framework's convention
//!   for running ones says otherwise ([`RunningStats`]).
//! - **NaN and infinity** spoil the channel that they are in, and no other; its running statistics keep their values.
//! - **Lengths**, counts and parameters that make no sense are an [`Error`], before anything is written.
//!
//! # Getting the speed
//! - [`Isa::detect`] is what a plan starts with, and the fastest; no build flags are needed. On bare metal (`target_os = "none"`) it is
//!   the portable one, which takes elements one by one where the target has no vectors.
//! - Bring [`BatchNorm::workspace_best`] words, and bring the same ones again: call after call finds them in the cache.
//! - Two threads pay from 131,072 elements on (element by element on bare metal from 4096 on); smaller calls stay on the calling
//!   thread, whatever the executor.
//! - Tensors that all begin at the same place of a page, as allocators like to put large ones, meet in the sets of a first-level cache:
//!   a KB or two between their beginnings makes small calls 1.1 to 1.25 times as fast. Tensors a multiple of 256 MB apart are
//!   read at half the speed on some CPUs (Zen 4): put a page between them.
//! - Outputs of calls whose operands are 22 MB or more together are written past the caches.
//!
//! # Features
//! None is on by default.
//! - `half`: [`Element`] for the types `f16` and `bf16` of the crate `half`.
//!
//! # The floating-point environment
//! The calling threads round to nearest and keep subnormals (no flush-to-zero, no
//! denormals-are-zero): Rust's own precondition for f32 and f64.
//!
//! # Panics
//! None: release builds have no path to one, which a link proves for each operation. Builds with debug assertions check the floating-point
//! environment, and panic where it is another.

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
#[doc = include_str!("../README.md")]
pub struct Readme;
