//! The only `#[target_feature]` functions of the crate: one shell per ISA, generic over what runs
//! inside it.
//!
//! `#[inline(always)]` cannot stand on a `#[target_feature]` function, and a function without the
//! feature is not compiled for it unless it is inlined into one that has it. So the features stand
//! here, at the top, and everything below is `#[inline(always)]`, closures included.

use crate::isa::{Isa, IsaKind};
use crate::lanes::{Base, Lanes};

/// Work that is generic over the ISA.
pub trait Task {
    /// What comes out.
    type Output;
    /// Does it; must be `#[inline(always)]`.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs a task with the instructions of `isa`.
#[inline(always)]
pub(crate) fn dispatch<T: Task>(isa: Isa, task: T) -> T::Output {
    match isa.kind() {
        IsaKind::Portable => base(Base::BASE, task),
        // SAFETY: an `Isa` of this kind proves the features.
        #[cfg(all(any(target_arch = "x86", target_arch = "x86_64"), target_feature = "sse2"))]
        IsaKind::Avx2 => unsafe { avx2(task) },
        // SAFETY: as above.
        #[cfg(all(any(target_arch = "x86", target_arch = "x86_64"), target_feature = "sse2"))]
        IsaKind::Avx512 => unsafe { avx512(task) },
        #[cfg(not(all(any(target_arch = "x86", target_arch = "x86_64"), target_feature = "sse2")))]
        _ => base(Base::BASE, task),
    }
}

/// Runs a task in a function of its own, with the instructions that need no shell.
#[inline(never)]
pub(crate) fn base<L: Lanes, T: Task>(lanes: L, task: T) -> T::Output {
    task.run(lanes)
}

#[cfg(all(any(target_arch = "x86", target_arch = "x86_64"), target_feature = "sse2"))]
#[target_feature(enable = "avx2,f16c")]
#[inline(never)]
pub(crate) unsafe fn avx2<T: Task>(task: T) -> T::Output {
    // SAFETY: the caller holds the proof that this function's features need too.
    task.run(unsafe { crate::lanes::avx2::Avx2::assume() })
}

#[cfg(all(any(target_arch = "x86", target_arch = "x86_64"), target_feature = "sse2"))]
#[target_feature(enable = "avx2,f16c,avx512f,avx512vl,avx512bw,avx512dq")]
#[inline(never)]
pub(crate) unsafe fn avx512<T: Task>(task: T) -> T::Output {
    // SAFETY: as above.
    task.run(unsafe { crate::lanes::avx512::Avx512::assume() })
}
