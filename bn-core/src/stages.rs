//! The passes over memory, compiled once for each element type.
//!
//! [`crate::BatchNorm`]'s methods are generic and compiled where they are called; what they call
//! here is not. So a program that depends on this crate does not compile the kernels again.
//!
//! Where elements are taken one by one code has to be small: there one instance serves all calls of a kind, and an
//! operand that is not there is another one, whose value makes no difference.

use crate::activation::{ANY, LIMITS, PLAIN, UNDO};
use crate::backward::SumSink;
use crate::element::sealed::Storage;
use crate::engine::{Engine, single};
use crate::exec::{Failed, Run};
use crate::forward::MomentSink;
use crate::kernel::backward_apply::{Apply, ApplyFrozen};
use crate::kernel::backward_sums::GradientSums;
use crate::kernel::moments::MomentSums;
use crate::kernel::normalize::Normalize;
use crate::layout::{Channels, Place};

/// The passes for one element type. The second input of [`Stages::normalize`] is there if the operation says so.
///
/// # Safety of all of them
/// Places are valid for the whole tensor: inputs for reading, outputs for writing; an output either
/// is one of the inputs or overlaps none; sinks have an entry for each channel of the band.
#[allow(private_interfaces, reason = "a sealed trait: nobody else can name or call these")]
pub trait Stages: Storage + Sized {
    #[doc(hidden)]
    unsafe fn sum_moments(
        e: &Engine,
        x: &Place<Self>,
        band: Channels,
        sink: &MomentSink,
        run: &mut Run<'_>,
    ) -> Result<(), Failed>;
    #[doc(hidden)]
    unsafe fn normalize(
        e: &Engine,
        op: &Normalize<'_, Self::Compute, ANY, true>,
        from: &[Place<Self>; 2],
        to: &[Place<Self>; 1],
        run: &mut Run<'_>,
    ) -> Result<(), Failed>;
    /// The same with constants that suffice: without f64 where code has to be small.
    #[doc(hidden)]
    unsafe fn normalize_prepared(
        e: &Engine,
        op: &Normalize<'_, Self::Compute, ANY, false>,
        from: &[Place<Self>; 2],
        to: &[Place<Self>; 1],
        run: &mut Run<'_>,
    ) -> Result<(), Failed>;
    #[doc(hidden)]
    unsafe fn sum_gradients(
        e: &Engine,
        op: &GradientSums<'_, Self::Compute, ANY>,
        inputs: &Backward<Self>,
        band: Channels,
        sink: &SumSink<'_, Self::Compute>,
        run: &mut Run<'_>,
    ) -> Result<(), Failed>;
    /// To dx and, if both are wanted, dresidual.
    #[doc(hidden)]
    unsafe fn apply(
        e: &Engine,
        op: &Apply<'_, Self::Compute, ANY>,
        inputs: &Backward<Self>,
        to: &Outputs<Self>,
        band: Channels,
        run: &mut Run<'_>,
    ) -> Result<(), Failed>;
    /// x is not read.
    #[doc(hidden)]
    unsafe fn apply_frozen(
        e: &Engine,
        op: &ApplyFrozen<'_, Self::Compute>,
        inputs: &Backward<Self>,
        to: &Outputs<Self>,
        band: Channels,
        run: &mut Run<'_>,
    ) -> Result<(), Failed>;
}

/// What backward passes write.
pub(crate) struct Outputs<E> {
    /// dx and dresidual, or twice the one that is wanted.
    pub(crate) places: [Place<E>; 2],
    pub(crate) both: bool,
}

/// What backward passes read.
#[derive(Clone, Copy)]
pub(crate) struct Backward<E> {
    /// x, or y in its place; dy; and, where the activation has a mask, y; else dy again.
    pub(crate) places: [Place<E>; 3],
    pub(crate) masked: bool,
}

macro_rules! stages {
    ($t:ty) => {
        #[allow(private_interfaces, reason = "as in the trait")]
        impl Stages for $t {
            unsafe fn sum_moments(
                e: &Engine,
                x: &Place<Self>,
                band: Channels,
                sink: &MomentSink,
                run: &mut Run<'_>,
            ) -> Result<(), Failed> {
                // SAFETY: by the caller.
                unsafe { e.reduce::<$t, _, _, 1, 1, 1, 2>(&MomentSums, core::array::from_ref(x), band, sink, run) }
            }

            unsafe fn normalize(
                e: &Engine,
                op: &Normalize<'_, Self::Compute, ANY, true>,
                from: &[Place<Self>; 2],
                to: &[Place<Self>; 1],
                run: &mut Run<'_>,
            ) -> Result<(), Failed> {
                // SAFETY: by the caller.
                unsafe {
                    if single!(e) {
                        return e.map::<$t, _, 2, 2, 3, 1>(op, from, to, e.all(), run);
                    }
                    let ([x, _], all) = (from, e.all());
                    let x = core::array::from_ref(x);
                    match (op.residual, op.activation.plain, op.activation.shrinks()) {
                        (false, true, _) => e.map::<$t, _, 1, 1, 3, 1>(&op.as_kind::<PLAIN, true>(), x, to, all, run),
                        (false, _, false) => e.map::<$t, _, 1, 1, 3, 1>(&op.as_kind::<LIMITS, true>(), x, to, all, run),
                        (false, _, true) => e.map::<$t, _, 1, 1, 3, 1>(op, x, to, all, run),
                        (true, true, _) => e.map::<$t, _, 2, 2, 3, 1>(&op.as_kind::<PLAIN, true>(), from, to, all, run),
                        (true, _, false) => {
                            e.map::<$t, _, 2, 2, 3, 1>(&op.as_kind::<LIMITS, true>(), from, to, all, run)
                        }
                        (true, _, true) => e.map::<$t, _, 2, 2, 3, 1>(op, from, to, all, run),
                    }
                }
            }

            unsafe fn normalize_prepared(
                e: &Engine,
                op: &Normalize<'_, Self::Compute, ANY, false>,
                from: &[Place<Self>; 2],
                to: &[Place<Self>; 1],
                run: &mut Run<'_>,
            ) -> Result<(), Failed> {
                // SAFETY: by the caller.
                unsafe {
                    if single!(e) {
                        return e.map::<$t, _, 2, 2, 3, 1>(op, from, to, e.all(), run);
                    }
                    Self::normalize(e, &op.as_kind::<ANY, true>(), from, to, run)
                }
            }

            unsafe fn sum_gradients(
                e: &Engine,
                op: &GradientSums<'_, Self::Compute, ANY>,
                inputs: &Backward<Self>,
                band: Channels,
                sink: &SumSink<'_, Self::Compute>,
                run: &mut Run<'_>,
            ) -> Result<(), Failed> {
                // SAFETY: by the caller.
                unsafe {
                    if single!(e) {
                        return e.reduce::<$t, _, _, 3, 2, 2, 3>(op, &inputs.places, band, sink, run);
                    }
                    let (all, [two @ .., _]) = (&inputs.places, &inputs.places);
                    if op.inverse != 1.0 {
                        return e.reduce::<$t, _, _, 2, 2, 2, 2>(&op.as_kind::<UNDO>(), two, band, sink, run);
                    }
                    let limits = &op.as_kind::<LIMITS>();
                    match (inputs.masked, op.measure, op.activation.shrinks()) {
                        (false, false, _) => e.reduce::<$t, _, _, 2, 2, 2, 2>(op, two, band, sink, run),
                        (false, true, _) => e.reduce::<$t, _, _, 2, 2, 2, 3>(op, two, band, sink, run),
                        (true, false, false) => e.reduce::<$t, _, _, 3, 2, 2, 2>(limits, all, band, sink, run),
                        (true, false, true) => e.reduce::<$t, _, _, 3, 2, 2, 2>(op, all, band, sink, run),
                        (true, true, _) => e.reduce::<$t, _, _, 3, 2, 2, 3>(op, all, band, sink, run),
                    }
                }
            }

            unsafe fn apply(
                e: &Engine,
                op: &Apply<'_, Self::Compute, ANY>,
                inputs: &Backward<Self>,
                to: &Outputs<Self>,
                band: Channels,
                run: &mut Run<'_>,
            ) -> Result<(), Failed> {
                // SAFETY: by the caller.
                unsafe {
                    if single!(e) {
                        return e.map::<$t, _, 3, 2, 5, 2>(op, &inputs.places, &to.places, band, run);
                    }
                    let (all, [two @ .., _]) = (&inputs.places, &inputs.places);
                    let Outputs { places: to @ [one @ .., _], both } = to;
                    if op.inverse != 1.0 {
                        let op = &op.as_kind::<UNDO>();
                        return match both {
                            false => e.map::<$t, _, 2, 2, 5, 1>(op, two, one, band, run),
                            true => e.map::<$t, _, 2, 2, 5, 2>(op, two, to, band, run),
                        };
                    }
                    let limits = &op.as_kind::<LIMITS>();
                    match (inputs.masked, op.activation.shrinks(), both) {
                        (false, _, false) => e.map::<$t, _, 2, 2, 5, 1>(op, two, one, band, run),
                        (false, _, true) => e.map::<$t, _, 2, 2, 5, 2>(op, two, to, band, run),
                        (true, false, false) => e.map::<$t, _, 3, 2, 5, 1>(limits, all, one, band, run),
                        (true, false, true) => e.map::<$t, _, 3, 2, 5, 2>(limits, all, to, band, run),
                        (true, true, false) => e.map::<$t, _, 3, 2, 5, 1>(op, all, one, band, run),
                        (true, true, true) => e.map::<$t, _, 3, 2, 5, 2>(op, all, to, band, run),
                    }
                }
            }

            unsafe fn apply_frozen(
                e: &Engine,
                op: &ApplyFrozen<'_, Self::Compute>,
                inputs: &Backward<Self>,
                to: &Outputs<Self>,
                band: Channels,
                run: &mut Run<'_>,
            ) -> Result<(), Failed> {
                let ([_, two @ ..], Outputs { places: to @ [one @ .., _], both }) = (&inputs.places, to);
                // SAFETY: by the caller.
                unsafe {
                    if single!(e) {
                        return e.map::<$t, _, 2, 1, 1, 2>(op, two, to, band, run);
                    }
                    let [dy @ .., _] = two;
                    match (inputs.masked, both) {
                        (false, false) => e.map::<$t, _, 1, 1, 1, 1>(op, dy, one, band, run),
                        (false, true) => e.map::<$t, _, 1, 1, 1, 2>(op, dy, to, band, run),
                        (true, false) => e.map::<$t, _, 2, 1, 1, 1>(op, two, one, band, run),
                        (true, true) => e.map::<$t, _, 2, 1, 1, 2>(op, two, to, band, run),
                    }
                }
            }
        }
    };
}
stages!(f32);
stages!(f64);
#[cfg(feature = "half")]
stages!(half::f16);
#[cfg(feature = "half")]
stages!(half::bf16);
