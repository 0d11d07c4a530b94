//! The only `#[target_feature]` functions of the crate: one shell per ISA and element type, generic over what runs
//! inside it.
//!
//! `#[inline(always)]` cannot stand on a `#[target_feature]` function, and a function without the
//! feature is not compiled for it unless it is inlined into one that has it. So the features stand
//! here, at the top, and everything below is `#[inline(always)]`, closures included.
//!
//! `target_feature = "sse2"` is x86 with vectors: all of it but kernels, which have software floats.

use crate::isa::{Isa, IsaKind};
use crate::lanes::{Base, Lanes};

/// Work that is generic over the ISA.
pub trait Task {
    /// Whose shells it runs in.
    type Element: Shells;
    /// What comes out.
    type Output;
    /// Does it; must be `#[inline(always)]`.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// The shells of an element type.
pub trait Shells {
    /// Runs a task in a function of its own, with the instructions that need no shell.
    fn base<L: Lanes, T: Task>(lanes: L, task: T) -> T::Output;
    /// # Safety
    /// The CPU has the features.
    #[cfg(target_feature = "sse2")]
    unsafe fn avx2<T: Task>(task: T) -> T::Output;
    /// # Safety
    /// As above.
    #[cfg(target_feature = "sse2")]
    unsafe fn avx512<T: Task>(task: T) -> T::Output;
}

/// Runs a task with the instructions of `isa`.
#[inline(always)]
pub(crate) fn dispatch<T: Task>(isa: Isa, task: T) -> T::Output {
    #[cfg(all(test, not(bn_single)))]
    if crate::lanes::traced::on() {
        return T::Element::base(crate::lanes::traced::Traced, task);
    }
    match isa.kind() {
        IsaKind::Portable => T::Element::base(Base::BASE, task),
        // SAFETY: an `Isa` of this kind proves the features.
        #[cfg(all(target_feature = "sse2", not(test)))]
        IsaKind::Avx2 => unsafe { T::Element::avx2(task) },
        // SAFETY: as above.
        #[cfg(all(target_feature = "sse2", not(test)))]
        IsaKind::Avx512 => unsafe { T::Element::avx512(task) },
        // Unit tests are about the ways through memory: half of the time to compile them went into these two.
        #[cfg(any(not(target_feature = "sse2"), test))]
        _ => T::Element::base(Base::BASE, task),
    }
}

/// A module for each shell: what is made of a module's functions is made by one thread, so all kernels in one module
/// kept one core busy for minutes while the others waited.
macro_rules! shells {
    ($module:ident, $t:ty) => {
        mod $module {
            mod base {
                use crate::dispatch::Task;
                use crate::lanes::Lanes;

                #[inline(never)]
                pub(super) fn run<L: Lanes, T: Task>(lanes: L, task: T) -> T::Output {
                    task.run(lanes)
                }
            }

            #[cfg(target_feature = "sse2")]
            mod avx2 {
                use crate::dispatch::Task;
                use crate::lanes::avx2::Avx2;

                #[target_feature(enable = "avx2,f16c")]
                #[inline(never)]
                pub(super) unsafe fn run<T: Task>(task: T) -> T::Output {
                    // SAFETY: the caller holds the proof that this function's features need too.
                    task.run(unsafe { Avx2::assume() })
                }
            }

            #[cfg(target_feature = "sse2")]
            mod avx512 {
                use crate::dispatch::Task;
                use crate::lanes::avx512::Avx512;

                #[target_feature(enable = "avx2,f16c,avx512f,avx512vl,avx512bw,avx512dq")]
                #[inline(never)]
                pub(super) unsafe fn run<T: Task>(task: T) -> T::Output {
                    // SAFETY: as above.
                    task.run(unsafe { Avx512::assume() })
                }
            }

            use crate::dispatch::{Shells, Task};
            use crate::lanes::Lanes;

            impl Shells for $t {
                #[inline(always)]
                fn base<L: Lanes, T: Task>(lanes: L, task: T) -> T::Output {
                    base::run(lanes, task)
                }
                #[cfg(target_feature = "sse2")]
                #[inline(always)]
                unsafe fn avx2<T: Task>(task: T) -> T::Output {
                    // SAFETY: by the caller.
                    unsafe { avx2::run(task) }
                }
                #[cfg(target_feature = "sse2")]
                #[inline(always)]
                unsafe fn avx512<T: Task>(task: T) -> T::Output {
                    // SAFETY: by the caller.
                    unsafe { avx512::run(task) }
                }
            }
        }
    };
}
shells!(of_f32, f32);
shells!(of_f64, f64);
#[cfg(feature = "half")]
shells!(of_f16, half::f16);
#[cfg(feature = "half")]
shells!(of_bf16, half::bf16);
