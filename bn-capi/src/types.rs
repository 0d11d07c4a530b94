//! What the calls take, as C sees it.

use core::ffi::c_void;

/// Moments of a channel: the count, the mean, and the sum of squared deviations m2 = sum (x - mean)^2.
/// The biased variance is m2/count. All zeros mean "nothing seen yet".
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct batchnorm_moments {
    /// Values so far.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The sum of their squared deviations from it.
    pub m2: f64,
}

/// Sums of a channel that a backward pass is made of: sum dy, and sum dy*(x - mean). The sums of shards of
/// a batch add up, entry by entry.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct batchnorm_sums {
    /// sum dy: the gradient of beta.
    pub dbeta: f64,
    /// sum dy*(x - mean): the gradient of gamma times sqrt(variance + epsilon).
    pub dot: f64,
}

/// What inference needs of a channel: y = (x - mean)*scale + shift. May live in flash.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct batchnorm_prepared {
    /// The running mean.
    pub mean: f32,
    /// gamma/sqrt(running variance + epsilon).
    pub scale: f32,
    /// beta.
    pub shift: f32,
}

/// How far apart the parts of an operand are, in elements. 0 means dense. What lies between the parts
/// is neither read nor written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct batchnorm_stride {
    /// From an image to the next.
    pub batch: usize,
    /// From a channel to the next (NCHW), or from a position to the next (NHWC).
    pub inner: usize,
}

/// Runs the tasks of a call, on any threads: the caller's own job system, or one of
/// batchnorm_threads_new.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct batchnorm_executor {
    /// Calls task(arg, ticket) exactly once for every ticket from 0 to tickets - 1, on any threads, in any
    /// order, and returns when all calls have returned. Must not throw or longjmp, and must not return
    /// before: the memory behind arg is gone then. Tickets that were not run at all are found, and
    /// are BATCHNORM_ERROR_EXECUTOR.
    pub run: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            tickets: usize,
            task: unsafe extern "C" fn(arg: *mut c_void, ticket: usize),
            arg: *mut c_void,
        ),
    >,
    /// Given to run as it is.
    pub ctx: *mut c_void,
    /// How many tickets can usefully run at once. 0 and 1 mean the calling thread: run is not called.
    pub width: usize,
}

/// What a call is about. Clear it (memset, or = {0}), set struct_size and what differs from 0.
///
/// A tensor is batch x channels x spatial elements in the order that the layout says; its statistics
/// are per channel, over the batch and all spatial positions. Dense layers (N x C) are BATCHNORM_NHWC
/// with spatial = 1.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct batchnorm_desc {
    /// sizeof(batchnorm_desc).
    pub struct_size: u32,
    /// BATCHNORM_NCHW or BATCHNORM_NHWC.
    pub layout: u32,
    /// The type of the elements: BATCHNORM_F32, ...
    pub dtype: u32,
    /// What is applied to the result: BATCHNORM_IDENTITY, ...
    pub activation: u32,
    /// The instructions to use: BATCHNORM_ISA_DETECT, ... All give the same bits.
    pub isa: u32,
    /// BATCHNORM_ALLOW_ONE_VALUE, or 0.
    pub flags: u32,
    /// The slope (BATCHNORM_LEAKY_RELU; finite, not negative), or the lower bound (BATCHNORM_CLAMP).
    pub act_a: f64,
    /// The upper bound (BATCHNORM_CLAMP).
    pub act_b: f64,
    /// Added to the variance; finite, not negative.
    pub epsilon: f64,
    /// Images. 0 is legal where no statistics are made of them.
    pub batch: usize,
    /// Channels: at least 1.
    pub channels: usize,
    /// Positions of an image: height x width, or 1.
    pub spatial: usize,
    /// Strides of x.
    pub x: batchnorm_stride,
    /// Strides of y.
    pub y: batchnorm_stride,
    /// Strides of residual.
    pub residual: batchnorm_stride,
    /// Strides of dy.
    pub dy: batchnorm_stride,
    /// Strides of dx.
    pub dx: batchnorm_stride,
    /// Strides of dresidual.
    pub dresidual: batchnorm_stride,
    /// What runs the call. NULL: the calling thread.
    pub executor: *const batchnorm_executor,
    /// Memory to work with, aligned as uint64_t is; need not be cleared, holds nothing of use afterwards.
    /// NULL: the call allocates it (without std: BATCHNORM_ERROR_WORKSPACE).
    pub workspace: *mut c_void,
    /// Its size in bytes: at least batchnorm_workspace_min. Not looked at where workspace is NULL.
    pub workspace_bytes: usize,
}

/// batch x channels x spatial: each channel of an image is contiguous.
pub const BATCHNORM_NCHW: u32 = 0;
/// batch x spatial x channels: each position is contiguous.
pub const BATCHNORM_NHWC: u32 = 1;

/// float. Parameters and running statistics are float.
pub const BATCHNORM_F32: u32 = 0;
/// double. Parameters and running statistics are double. Not in every firmware archive.
pub const BATCHNORM_F64: u32 = 1;
/// IEEE half precision, 2 bytes. Parameters and running statistics are float. Not in every firmware
/// archive.
pub const BATCHNORM_F16: u32 = 2;
/// bfloat16, 2 bytes. Parameters and running statistics are float. Not in every firmware archive.
pub const BATCHNORM_BF16: u32 = 3;

/// z, as it is.
pub const BATCHNORM_IDENTITY: u32 = 0;
/// 0 where z < 0, else z.
pub const BATCHNORM_RELU: u32 = 1;
/// act_a*z where z < 0, else z.
pub const BATCHNORM_LEAKY_RELU: u32 = 2;
/// act_a where z < act_a, act_b where z > act_b, else z. (ReLU6: 0 and 6.) Both are rounded to the dtype.
pub const BATCHNORM_CLAMP: u32 = 3;

/// The best that this CPU has; with std, the one that the environment variable BN_ISA names, if it is
/// set (portable, avx2 or avx512; read once).
pub const BATCHNORM_ISA_DETECT: u32 = 0;
/// What every CPU of the target has: SSE2, NEON, or scalar code.
pub const BATCHNORM_ISA_PORTABLE: u32 = 1;
/// AVX2 with F16C.
pub const BATCHNORM_ISA_AVX2: u32 = 2;
/// AVX-512 F, VL, BW and DQ.
pub const BATCHNORM_ISA_AVX512: u32 = 3;

/// Flag: allows training on one value per channel, whose variance is 0, so that y = beta (+ residual).
pub const BATCHNORM_ALLOW_ONE_VALUE: u32 = 1;

/// running = (1 - momentum)*running + momentum*new: PyTorch, cuDNN.
pub const BATCHNORM_WEIGH_NEW: u32 = 0;
/// running = momentum*running + (1 - momentum)*new: TensorFlow, Keras, ONNX.
pub const BATCHNORM_WEIGH_OLD: u32 = 1;
/// The plain average of all batches so far; momentum is not looked at, num_batches is needed.
pub const BATCHNORM_CUMULATIVE: u32 = 2;

/// For batchnorm_workspace_min and _best: batchnorm_forward_training, _moments_accumulate, _normalize.
pub const BATCHNORM_OP_FORWARD_TRAINING: u32 = 0;
/// For batchnorm_workspace_min and _best: batchnorm_forward_inference and batchnorm_apply.
pub const BATCHNORM_OP_INFERENCE: u32 = 1;
/// For batchnorm_workspace_min and _best: every batchnorm_backward call.
pub const BATCHNORM_OP_BACKWARD: u32 = 2;

// The library's own types are laid out as C's, so that arrays are used where they are.
const _: () = {
    use bn_core::{GradSums, Moments, Prepared};
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Moments>() == size_of::<batchnorm_moments>());
    assert!(align_of::<Moments>() == align_of::<batchnorm_moments>());
    assert!(offset_of!(Moments, count) == offset_of!(batchnorm_moments, count));
    assert!(offset_of!(Moments, mean) == offset_of!(batchnorm_moments, mean));
    assert!(offset_of!(Moments, m2) == offset_of!(batchnorm_moments, m2));
    assert!(size_of::<GradSums>() == size_of::<batchnorm_sums>());
    assert!(align_of::<GradSums>() == align_of::<batchnorm_sums>());
    assert!(offset_of!(GradSums, dot) == offset_of!(batchnorm_sums, dot));
    assert!(size_of::<Prepared<f32>>() == size_of::<batchnorm_prepared>());
    assert!(align_of::<Prepared<f32>>() == align_of::<batchnorm_prepared>());
    assert!(offset_of!(Prepared<f32>, mean) == offset_of!(batchnorm_prepared, mean));
    assert!(offset_of!(Prepared<f32>, scale) == offset_of!(batchnorm_prepared, scale));
    assert!(offset_of!(Prepared<f32>, shift) == offset_of!(batchnorm_prepared, shift));
};
