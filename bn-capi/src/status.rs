//! What a call answers.

use bn_core::Error;
use core::ffi::CStr;

/// What a call answers: BATCHNORM_OK, or why it was refused. Nothing has been written then, but for
/// BATCHNORM_ERROR_EXECUTOR and BATCHNORM_ERROR_INTERNAL.
pub type batchnorm_status = i32;

/// Done.
pub const BATCHNORM_OK: batchnorm_status = 0;
/// A pointer is NULL that must not be.
pub const BATCHNORM_ERROR_NULL: batchnorm_status = 1;
/// struct_size is not sizeof(batchnorm_desc): compiled against another header.
pub const BATCHNORM_ERROR_STRUCT_SIZE: batchnorm_status = 2;
/// A layout, dtype, activation, isa, flag, rule or op that does not exist.
pub const BATCHNORM_ERROR_ENUM: batchnorm_status = 3;
/// A dtype that this build was made without, or that the call has no form for (prepared: double).
pub const BATCHNORM_ERROR_DTYPE: batchnorm_status = 4;
/// Instructions that this CPU or operating system lacks (or BN_ISA names none).
pub const BATCHNORM_ERROR_ISA: batchnorm_status = 5;
/// No channels.
pub const BATCHNORM_ERROR_CHANNELS: batchnorm_status = 6;
/// Sizes that are more than memory can hold.
pub const BATCHNORM_ERROR_SIZE: batchnorm_status = 7;
/// epsilon is negative, infinite or NaN.
pub const BATCHNORM_ERROR_EPSILON: batchnorm_status = 8;
/// momentum is outside 0 ... 1, or NaN.
pub const BATCHNORM_ERROR_MOMENTUM: batchnorm_status = 9;
/// act_a, act_b: a slope that is negative, or infinite in the type of gamma, bounds in the wrong order, NaN.
pub const BATCHNORM_ERROR_ACTIVATION: batchnorm_status = 10;
/// Strides at which elements of an operand overlap, or that reach beyond memory.
pub const BATCHNORM_ERROR_STRIDE: batchnorm_status = 11;
/// A pointer that is not aligned for what it points to.
pub const BATCHNORM_ERROR_ALIGNMENT: batchnorm_status = 12;
/// An output overlaps another operand in a way that is not allowed.
pub const BATCHNORM_ERROR_OVERLAP: batchnorm_status = 13;
/// The workspace is smaller than batchnorm_workspace_min (or NULL, in builds that cannot allocate).
pub const BATCHNORM_ERROR_WORKSPACE: batchnorm_status = 14;
/// Fewer than two values per channel (see BATCHNORM_ALLOW_ONE_VALUE).
pub const BATCHNORM_ERROR_TOO_FEW_VALUES: batchnorm_status = 15;
/// Moments of other counts than this x has, in a one-call backward pass.
pub const BATCHNORM_ERROR_COUNT: batchnorm_status = 16;
/// x cannot be told from y: the activation has no inverse, or a gamma is 0.
pub const BATCHNORM_ERROR_NOT_INVERTIBLE: batchnorm_status = 17;
/// A channel's constants leave the range of float; batchnorm_forward_inference can calculate with them.
pub const BATCHNORM_ERROR_UNPREPARABLE: batchnorm_status = 18;
/// A folded weight or bias would not be finite.
pub const BATCHNORM_ERROR_UNFOLDABLE: batchnorm_status = 19;
/// No memory for the workspace.
pub const BATCHNORM_ERROR_MEMORY: batchnorm_status = 20;
/// The executor did not run each ticket once. The outputs are not complete.
pub const BATCHNORM_ERROR_EXECUTOR: batchnorm_status = 21;
/// A mistake of the library. The outputs are not complete.
pub const BATCHNORM_ERROR_INTERNAL: batchnorm_status = 22;

/// A status that is not BATCHNORM_OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) batchnorm_status);

impl From<Error> for Refused {
    fn from(e: Error) -> Self {
        Refused(match e {
            Error::NoChannels => BATCHNORM_ERROR_CHANNELS,
            Error::ShapeOverflow => BATCHNORM_ERROR_SIZE,
            Error::Stride { .. } => BATCHNORM_ERROR_STRIDE,
            Error::Epsilon { .. } => BATCHNORM_ERROR_EPSILON,
            Error::Momentum { .. } => BATCHNORM_ERROR_MOMENTUM,
            Error::Activation { .. } => BATCHNORM_ERROR_ACTIVATION,
            Error::TooFewValues { .. } => BATCHNORM_ERROR_TOO_FEW_VALUES,
            Error::Count { .. } => BATCHNORM_ERROR_COUNT,
            Error::NotInvertible { .. } => BATCHNORM_ERROR_NOT_INVERTIBLE,
            Error::Workspace { .. } => BATCHNORM_ERROR_WORKSPACE,
            Error::Missing { .. } => BATCHNORM_ERROR_NULL,
            Error::Unpreparable { .. } => BATCHNORM_ERROR_UNPREPARABLE,
            Error::Unfoldable { .. } => BATCHNORM_ERROR_UNFOLDABLE,
            Error::Executor { .. } => BATCHNORM_ERROR_EXECUTOR,
            // Lengths are the library's own here.
            _ => BATCHNORM_ERROR_INTERNAL,
        })
    }
}

pub(crate) fn message(status: batchnorm_status) -> &'static CStr {
    match status {
        BATCHNORM_OK => c"done",
        BATCHNORM_ERROR_NULL => c"a pointer is NULL that must not be",
        BATCHNORM_ERROR_STRUCT_SIZE => c"struct_size is not that of this library's batchnorm_desc",
        BATCHNORM_ERROR_ENUM => c"no such layout, dtype, activation, isa, flag, rule or op",
        BATCHNORM_ERROR_DTYPE => c"this build, or this call, does not have this dtype",
        BATCHNORM_ERROR_ISA => c"this CPU or operating system lacks the isa, or BN_ISA names none",
        BATCHNORM_ERROR_CHANNELS => c"0 channels, expected at least 1",
        BATCHNORM_ERROR_SIZE => c"the sizes are more than memory can hold",
        BATCHNORM_ERROR_EPSILON => c"epsilon is not a finite number >= 0",
        BATCHNORM_ERROR_MOMENTUM => c"momentum is not a number from 0 to 1",
        BATCHNORM_ERROR_ACTIVATION => c"the activation wants a finite slope >= 0, or bounds in order",
        BATCHNORM_ERROR_STRIDE => c"strides at which elements overlap, or that reach beyond memory",
        BATCHNORM_ERROR_ALIGNMENT => c"a pointer is not aligned for what it points to",
        BATCHNORM_ERROR_OVERLAP => c"an output overlaps another operand in a way that is not allowed",
        BATCHNORM_ERROR_WORKSPACE => c"the workspace is too small: see batchnorm_workspace_min",
        BATCHNORM_ERROR_TOO_FEW_VALUES => c"fewer than two values per channel",
        BATCHNORM_ERROR_COUNT => c"the moments are of another number of values than x has",
        BATCHNORM_ERROR_NOT_INVERTIBLE => c"x cannot be told from y: no inverse activation, or gamma is 0",
        BATCHNORM_ERROR_UNPREPARABLE => {
            c"a channel's constants leave the range of float: use batchnorm_forward_inference"
        }
        BATCHNORM_ERROR_UNFOLDABLE => c"a folded weight or bias would not be finite",
        BATCHNORM_ERROR_MEMORY => c"no memory for the workspace",
        BATCHNORM_ERROR_EXECUTOR => c"the executor did not run each ticket once: the outputs are not complete",
        BATCHNORM_ERROR_INTERNAL => c"a mistake of the library: the outputs are not complete",
        _ => c"no status of this library",
    }
}
