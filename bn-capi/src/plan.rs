//! From a descriptor to a plan of bn-core, and what the call runs with.

use crate::environment;
use crate::operands::{Array, Operands, Role, present, read};
use crate::status::{
    BATCHNORM_ERROR_DTYPE, BATCHNORM_ERROR_ENUM, BATCHNORM_ERROR_ISA, BATCHNORM_ERROR_NULL,
    BATCHNORM_ERROR_STRUCT_SIZE, BATCHNORM_OK, Refused, batchnorm_status,
};
use crate::types::*;
use bn_core::raw::{self, Forward};
use bn_core::{Activation, BatchNorm, Element, Error, Executor, Isa, IsaKind, Layout, Op, Run, Shape, Stride, Strides};
use core::ffi::c_void;

/// Element types by number.
#[derive(Clone, Copy)]
pub(crate) enum Dtype {
    F32,
    #[cfg(feature = "f64")]
    F64,
    #[cfg(feature = "half")]
    F16,
    #[cfg(feature = "half")]
    Bf16,
}

impl Dtype {
    pub(crate) fn new(number: u32) -> Result<Self, Refused> {
        match number {
            BATCHNORM_F32 => Ok(Dtype::F32),
            #[cfg(feature = "f64")]
            BATCHNORM_F64 => Ok(Dtype::F64),
            #[cfg(feature = "half")]
            BATCHNORM_F16 => Ok(Dtype::F16),
            #[cfg(feature = "half")]
            BATCHNORM_BF16 => Ok(Dtype::Bf16),
            #[allow(unreachable_patterns, reason = "reachable without the features")]
            BATCHNORM_F64 | BATCHNORM_F16 | BATCHNORM_BF16 => Err(Refused(BATCHNORM_ERROR_DTYPE)),
            _ => Err(Refused(BATCHNORM_ERROR_ENUM)),
        }
    }
}

/// Runs the body of an entry: in the default floating-point environment, and without letting a panic
/// out.
pub(crate) fn entry(body: impl FnOnce() -> Result<(), Refused>) -> batchnorm_status {
    let answer = environment::with_default(|| caught(body));
    match answer {
        Some(Ok(())) => BATCHNORM_OK,
        Some(Err(Refused(status))) => status,
        None => crate::status::BATCHNORM_ERROR_INTERNAL,
    }
}

/// `None` where it panicked.
pub(crate) fn caught<R>(body: impl FnOnce() -> R) -> Option<R> {
    #[cfg(feature = "std")]
    return std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).ok();
    #[cfg(not(feature = "std"))]
    Some(body())
}

/// The instructions by number.
pub(crate) fn isa(number: u32) -> Result<Isa, Refused> {
    let kind = match number {
        BATCHNORM_ISA_DETECT => return detect(),
        BATCHNORM_ISA_PORTABLE => return Ok(Isa::PORTABLE),
        BATCHNORM_ISA_AVX2 => IsaKind::Avx2,
        BATCHNORM_ISA_AVX512 => IsaKind::Avx512,
        _ => return Err(Refused(BATCHNORM_ERROR_ENUM)),
    };
    Isa::new(kind).ok_or(Refused(BATCHNORM_ERROR_ISA))
}

fn detect() -> Result<Isa, Refused> {
    #[cfg(feature = "std")]
    return bn_std::isa().map_err(|_| Refused(BATCHNORM_ERROR_ISA));
    #[cfg(not(feature = "std"))]
    Ok(Isa::detect())
}

/// The caller's descriptor, checked as far as that needs no element type. (A copy of it would take a tenth of a small
/// stack.)
///
/// # Safety
/// `desc` is NULL or points to a descriptor, or at least to a `struct_size`; nothing is written while it is looked at.
pub(crate) unsafe fn descriptor<'a>(desc: *const batchnorm_desc) -> Result<(&'a batchnorm_desc, Dtype), Refused> {
    // SAFETY: by the caller. Of a descriptor of another size only this may be there.
    let size = unsafe { read(desc.cast::<u32>()) }?;
    if size as usize != size_of::<batchnorm_desc>() {
        return Err(Refused(BATCHNORM_ERROR_STRUCT_SIZE));
    }
    present::<batchnorm_desc>(desc.cast())?;
    // SAFETY: by the caller; it is there and aligned.
    let desc = unsafe { &*desc };
    let dtype = Dtype::new(desc.dtype)?;
    Ok((desc, dtype))
}

/// bn-core's plan of a descriptor.
// A function of its own: what a plan is made from is not on the stack while it is used.
#[inline(never)]
pub(crate) fn batch_norm<T: Element>(desc: &batchnorm_desc) -> Result<BatchNorm<T>, Refused> {
    let layout = match desc.layout {
        BATCHNORM_NCHW => Layout::Nchw,
        BATCHNORM_NHWC => Layout::Nhwc,
        _ => return Err(Refused(BATCHNORM_ERROR_ENUM)),
    };
    let activation = match desc.activation {
        BATCHNORM_IDENTITY => Activation::Identity,
        BATCHNORM_RELU => Activation::Relu,
        BATCHNORM_LEAKY_RELU => Activation::LeakyRelu { slope: desc.act_a },
        BATCHNORM_CLAMP => Activation::Clamp { lo: desc.act_a, hi: desc.act_b },
        _ => return Err(Refused(BATCHNORM_ERROR_ENUM)),
    };
    if desc.flags & !BATCHNORM_ALLOW_ONE_VALUE != 0 {
        return Err(Refused(BATCHNORM_ERROR_ENUM));
    }
    let isa = isa(desc.isa)?;
    let stride = |s: batchnorm_stride| Stride { batch: s.batch, inner: s.inner };
    let strides = Strides {
        x: stride(desc.x),
        y: stride(desc.y),
        residual: stride(desc.residual),
        dy: stride(desc.dy),
        dx: stride(desc.dx),
        dresidual: stride(desc.dresidual),
    };
    let shape = Shape::new(layout, desc.batch, desc.channels, &[desc.spatial])?;
    raw::plan(shape, desc.epsilon, activation, strides, isa, desc.flags & BATCHNORM_ALLOW_ONE_VALUE != 0)
}

/// A plan, and what the call runs with.
pub(crate) struct Plan<'a, T: Element> {
    pub(crate) bn: &'a BatchNorm<T>,
    executor: Option<ByCallback>,
    workspace: *mut c_void,
    words: usize,
}

impl<'a, T: Element> Plan<'a, T> {
    /// # Safety
    /// The descriptor's executor is NULL or valid.
    pub(crate) unsafe fn new(bn: &'a BatchNorm<T>, desc: &batchnorm_desc) -> Result<Self, Refused> {
        let executor = if desc.executor.is_null() {
            None
        } else {
            // SAFETY: by the caller.
            let batchnorm_executor { run, ctx, width } = unsafe { read(desc.executor) }?;
            Some(ByCallback { run: run.ok_or(Refused(BATCHNORM_ERROR_NULL))?, ctx, width })
        };
        let words = if desc.workspace.is_null() { 0 } else { desc.workspace_bytes / size_of::<u64>() };
        Ok(Plan { bn, executor, workspace: desc.workspace, words })
    }

    pub(crate) fn channels(&self) -> usize {
        self.bn.shape().channels()
    }

    /// How many tasks the executor runs at once.
    pub(crate) fn width(&self) -> usize {
        self.executor.as_ref().map_or(1, |e| e.width.max(1))
    }

    pub(crate) fn x(&self, to: &mut Operands, ptr: *const c_void) -> Result<*const T, Refused> {
        must(to.tensor(ptr, false, self.bn.strides().x, Role::X, false))
    }

    fn residual(&self, to: &mut Operands, ptr: *const c_void) -> Result<Option<*const T>, Refused> {
        may(to.tensor(ptr, true, self.bn.strides().residual, Role::Residual, false))
    }

    fn y(&self, to: &mut Operands, ptr: *mut c_void) -> Result<*mut T, Refused> {
        must(to.tensor(ptr, false, self.bn.strides().y, Role::Y, true)).map(<*const T>::cast_mut)
    }

    /// The tensors of a forward call.
    pub(crate) fn forward(
        &self,
        to: &mut Operands,
        x: *const c_void,
        residual: *const c_void,
        y: *mut c_void,
    ) -> Result<Forward<T>, Refused> {
        Ok(Forward { x: self.x(to, x)?, residual: self.residual(to, residual)?, y: self.y(to, y)? })
    }

    /// y as an input, which only activations need.
    pub(crate) fn y_read(&self, to: &mut Operands, ptr: *const c_void) -> Result<Option<*const T>, Refused> {
        if self.bn.activation() == Activation::Identity {
            return Ok(None);
        }
        self.y_needed(to, ptr).map(Some)
    }

    /// y as an input.
    pub(crate) fn y_needed(&self, to: &mut Operands, ptr: *const c_void) -> Result<*const T, Refused> {
        must(to.tensor(ptr, false, self.bn.strides().y, Role::Y, false))
    }

    pub(crate) fn dy(&self, to: &mut Operands, ptr: *const c_void) -> Result<*const T, Refused> {
        must(to.tensor(ptr, false, self.bn.strides().dy, Role::Dy, false))
    }

    /// dx, with its length.
    pub(crate) fn dx(&self, to: &mut Operands, ptr: *mut c_void) -> Result<Option<(*mut T, usize)>, Refused> {
        let stride = self.bn.strides().dx;
        let span = to.span(stride);
        Ok(to.tensor(ptr, true, stride, Role::Dx, true)?.map(|p| (p, span)))
    }

    /// dresidual, with its length.
    pub(crate) fn dresidual(&self, to: &mut Operands, ptr: *mut c_void) -> Result<Option<(*mut T, usize)>, Refused> {
        let stride = self.bn.strides().dresidual;
        let span = to.span(stride);
        Ok(to.tensor(ptr, true, stride, Role::Dresidual, true)?.map(|p| (p, span)))
    }

    /// An array with an entry per channel.
    pub(crate) fn array<P>(&self, to: &mut Operands, ptr: *const c_void) -> Result<Array<P>, Refused> {
        to.array(ptr, self.channels(), false)
    }

    /// The same, as an output.
    pub(crate) fn array_mut<P>(&self, to: &mut Operands, ptr: *mut c_void) -> Result<Array<P>, Refused> {
        to.array(ptr, self.channels(), true)
    }

    /// An array with an entry per channel, or NULL.
    pub(crate) fn optional<P>(&self, to: &mut Operands, ptr: *const c_void) -> Result<Option<Array<P>>, Refused> {
        to.optional(ptr, self.channels(), false)
    }

    /// The same, as an output.
    pub(crate) fn optional_mut<P>(&self, to: &mut Operands, ptr: *mut c_void) -> Result<Option<Array<P>>, Refused> {
        to.optional(ptr, self.channels(), true)
    }

    /// Notes the buffers of a call, and the workspace, of which no more is used than helps; checks that they are apart, and
    /// hands out the workspace, if there is one.
    // A function of its own: the list of buffers is not on the stack while the call runs (300 bytes).
    #[inline(never)]
    pub(crate) fn noted<R>(
        &self,
        op: Op,
        note: impl FnOnce(&mut Operands) -> Result<R, Refused>,
    ) -> Result<(R, Option<Array<u64>>), Refused> {
        let mut operands = Operands::NONE;
        operands.set_shape(self.bn.shape(), size_of::<T>());
        let noted = note(&mut operands)?;
        let words = self.words.min(self.bn.workspace_best(op, self.width()));
        let workspace = operands.optional(self.workspace, words, true)?;
        operands.apart()?;
        Ok((noted, workspace))
    }

    /// Runs the call.
    ///
    /// # Safety
    /// The workspace is [`Self::noted`]'s.
    pub(crate) unsafe fn run(
        &self,
        op: Op,
        workspace: Option<Array<u64>>,
        f: impl FnOnce(Run<'_>) -> Result<(), Error>,
    ) -> Result<(), Refused> {
        // SAFETY: apart from all other buffers; the caller of the library vouches for the rest.
        let given = workspace.map(|w| unsafe { w.get_mut() });
        #[cfg(feature = "std")]
        let mut owned = match given {
            Some(_) => std::vec::Vec::new(),
            None => allocate(self.bn.workspace_best(op, self.width()), self.bn.workspace_min(op))?,
        };
        #[cfg(feature = "std")]
        let words = given.unwrap_or(&mut owned);
        #[cfg(not(feature = "std"))]
        let (words, _) = (given.unwrap_or_default(), op);
        let run = match &self.executor {
            Some(e) if e.width > 1 => Run::on(e, words),
            _ => Run::serial(words),
        };
        Ok(f(run)?)
    }
}

fn must<T>(tensor: Result<Option<*mut T>, Refused>) -> Result<*const T, Refused> {
    Ok(tensor?.unwrap_or(core::ptr::null_mut()).cast_const())
}

fn may<T>(tensor: Result<Option<*mut T>, Refused>) -> Result<Option<*const T>, Refused> {
    Ok(tensor?.map(<*mut T>::cast_const))
}

/// As much as helps, else as little as suffices.
#[cfg(feature = "std")]
fn allocate(best: usize, least: usize) -> Result<std::vec::Vec<u64>, Refused> {
    let mut v = std::vec::Vec::new();
    let words = if v.try_reserve_exact(best).is_ok() {
        best
    } else {
        v.try_reserve_exact(least).map_err(|_| Refused(crate::status::BATCHNORM_ERROR_MEMORY))?;
        least
    };
    v.resize(words, 0);
    Ok(v)
}

/// An executor of C.
struct ByCallback {
    run: unsafe extern "C" fn(*mut c_void, usize, unsafe extern "C" fn(*mut c_void, usize), *mut c_void),
    ctx: *mut c_void,
    width: usize,
}

// SAFETY: what the context is shared with is the business of whoever gave it.
unsafe impl Sync for ByCallback {}

impl Executor for ByCallback {
    fn width(&self) -> usize {
        self.width
    }

    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        let arg = (&raw const task).cast_mut().cast::<c_void>();
        // SAFETY: the caller of the library vouches for the callback; the argument is what `ticket`
        // takes, and lives until the callback has returned.
        unsafe { (self.run)(self.ctx, tickets, ticket, arg) };
        // Should the callback have left another environment behind.
        environment::swap();
    }
}

/// A ticket of a phase, on whichever thread. Its number means nothing: cells are claimed from a counter.
unsafe extern "C" fn ticket(arg: *mut c_void, _: usize) {
    environment::with_default(|| {
        // A task that panics does not count as run, which the call notices.
        caught(|| {
            // SAFETY: the executor hands on what `run` gave it, and before `run` returns.
            let task = unsafe { *arg.cast::<&(dyn Fn() + Sync)>() };
            task();
        });
    });
}
