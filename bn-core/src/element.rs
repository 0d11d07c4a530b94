//! Element types: how they are stored, and what the kernels calculate in.

use crate::dispatch::Shells;
use crate::lanes::{Lanes, Scalar, Vector};

/// A type of tensor elements: `f32`, `f64`, and with feature `half` `half::f16` and `half::bf16`.
///
/// f32, f16 and bf16 have f32 parameters and calculate in f32; f64 has f64 parameters. This trait
/// is sealed.
pub trait Element: sealed::Storage<Compute = Self::Param> + sealed::Stages + bytemuck::Pod + Send + Sync {
    /// The type of gamma, beta and the running statistics.
    type Param: Param;
}

/// A type of parameters: `f32` or `f64`. This trait is sealed.
pub trait Param: Scalar + Shells + core::fmt::Debug + Default + sealed::Sealed {}

impl Param for f32 {}
impl Param for f64 {}

impl Element for f32 {
    type Param = f32;
}

impl Element for f64 {
    type Param = f64;
}

#[cfg(feature = "half")]
impl Element for half::f16 {
    type Param = f32;
}

#[cfg(feature = "half")]
impl Element for half::bf16 {
    type Param = f32;
}

pub(crate) mod sealed {
    use super::*;
    use crate::dispatch::Shells;
    #[cfg(feature = "half")]
    use crate::lanes::half::{narrow_bf16, narrow_f16, widen_bf16, widen_f16};
    pub use crate::stages::Stages;

    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}

    /// How elements get into vectors and out of them.
    pub trait Storage: Shells + Copy + 'static {
        /// What the kernels calculate in.
        type Compute: Scalar;
        /// The vector of `Compute` on an ISA.
        type Vec<L: Lanes>: Vector<Scalar = Self::Compute, Token = L, Wide = L::F64>;
        /// Whether lanes may be [dealt](Lanes::DEALS).
        const DEALS: bool = false;
        /// What a number is once it has been stored.
        fn stored(v: Self::Compute) -> Self::Compute;
        /// Reads one vector, at any alignment: in order, or `DEALT` if this type and the ISA deal.
        ///
        /// # Safety
        /// `p` is valid for reading `Compute::LANES` elements.
        unsafe fn load<L: Lanes, const DEALT: bool>(lanes: L, p: *const Self) -> Self::Vec<L>;
        /// Rounds to nearest and writes one vector, at any alignment, from lanes in that order.
        ///
        /// # Safety
        /// `p` is valid for writing `Compute::LANES` elements.
        unsafe fn store<L: Lanes, const DEALT: bool>(v: Self::Vec<L>, p: *mut Self);
        /// [`Storage::store`] past the caches, if the ISA can.
        ///
        /// # Safety
        /// As for `store`; `p` is aligned to the size of the vector.
        unsafe fn stream<L: Lanes, const DEALT: bool>(v: Self::Vec<L>, p: *mut Self);
    }

    macro_rules! native {
        ($t:ty, $vec:ident) => {
            impl Storage for $t {
                type Compute = $t;
                type Vec<L: Lanes> = L::$vec;
                #[inline(always)]
                fn stored(v: $t) -> $t {
                    v
                }
                #[inline(always)]
                unsafe fn load<L: Lanes, const DEALT: bool>(lanes: L, p: *const Self) -> Self::Vec<L> {
                    // SAFETY: the caller's promise is the same.
                    unsafe { <L::$vec as Vector>::load(lanes, p) }
                }
                #[inline(always)]
                unsafe fn store<L: Lanes, const DEALT: bool>(v: Self::Vec<L>, p: *mut Self) {
                    // SAFETY: the caller's promise is the same.
                    unsafe { v.store(p) }
                }
                #[inline(always)]
                unsafe fn stream<L: Lanes, const DEALT: bool>(v: Self::Vec<L>, p: *mut Self) {
                    // SAFETY: the caller's promise is the same.
                    unsafe { v.stream(p) }
                }
            }
        };
    }
    native!(f32, F32);
    native!(f64, F64);

    #[cfg(feature = "half")]
    macro_rules! half {
        ($t:ty, $load:ident, $store:ident, $widen:ident, $narrow:ident, $deals:literal $(, $dealt:ident)?) => {
            impl Storage for $t {
                const DEALS: bool = $deals;
                type Compute = f32;
                type Vec<L: Lanes> = L::F32;
                fn stored(v: f32) -> f32 {
                    $widen($narrow(v))
                }
                #[inline(always)]
                unsafe fn load<L: Lanes, const DEALT: bool>(lanes: L, p: *const Self) -> L::F32 {
                    // SAFETY: the caller's promise is the same; the type is its bits.
                    unsafe { lanes.$load::<$($dealt)?>(p.cast()) }
                }
                #[inline(always)]
                unsafe fn store<L: Lanes, const DEALT: bool>(v: L::F32, p: *mut Self) {
                    // SAFETY: as above.
                    unsafe { L::$store::<false $(, $dealt)?>(v, p.cast()) }
                }
                #[inline(always)]
                unsafe fn stream<L: Lanes, const DEALT: bool>(v: L::F32, p: *mut Self) {
                    // SAFETY: as above.
                    unsafe { L::$store::<true $(, $dealt)?>(v, p.cast()) }
                }
            }
        };
    }
    #[cfg(feature = "half")]
    half!(half::f16, load_f16, store_f16, widen_f16, narrow_f16, false);
    #[cfg(feature = "half")]
    half!(half::bf16, load_bf16, store_bf16, widen_bf16, narrow_bf16, true, DEALT);
}
