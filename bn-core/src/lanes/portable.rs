//! Lanes on the vectors of `wide`: SSE2, NEON, simd128 or plain arrays, whatever the target has at
//! compile time. This is the ISA of every target, and the reference for the others' bits.

#[cfg(feature = "half")]
use super::half;
use super::{Lanes, Vector, WINDOW32, WINDOW64, real};
use crate::double::sqrt;
use core::ops::{Add, Mul, Sub};
use wide::{f32x16, f64x8};

/// Always available.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[derive(Clone, Copy)]
pub(crate) struct F32(f32x16);

#[derive(Clone, Copy)]
pub(crate) struct F64(f64x8);

impl Portable {
    pub(crate) const BASE: Portable = Portable;
}

impl Lanes for Portable {
    const STREAMS: usize = 1;

    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    #[inline(always)]
    fn fence(self) {
        // SAFETY: every x86-64 has it.
        unsafe { core::arch::x86_64::_mm_sfence() }
    }

    type F32 = F32;
    type F64 = F64;

    #[inline(always)]
    fn quotient(self, a: F64, b: F64) -> F64 {
        F64(a.0 / b.0)
    }
    #[inline(always)]
    fn root(self, v: F64) -> F64 {
        let mut v = v.0.to_array();
        for v in &mut v {
            *v = sqrt(*v);
        }
        F64(f64x8::new(v))
    }
    #[inline(always)]
    fn rounded(self, v: F64) -> F64 {
        let mut v = v.0.to_array();
        for v in &mut v {
            *v = *v as f32 as f64;
        }
        F64(f64x8::new(v))
    }
    #[inline(always)]
    unsafe fn store_rounded(self, v: F64, p: *mut f32) {
        let (v, mut rounded) = (v.0.to_array(), [0.0; 8]);
        for i in 0..8 {
            rounded[i] = v[i] as f32;
        }
        // SAFETY: by the caller.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(rounded) }
    }

    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F32 {
        // SAFETY: by the caller.
        let h = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        let mut v = [0.0; 16];
        for i in 0..16 {
            v[i] = half::widen_f16(h[i]);
        }
        F32(f32x16::new(v))
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn store_f16<const PAST: bool>(v: F32, p: *mut u16) {
        let (v, mut h) = (v.0.to_array(), [0; 16]);
        for i in 0..16 {
            h[i] = half::narrow_f16(v[i]);
        }
        // SAFETY: by the caller.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(h) }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn load_bf16<const DEALT: bool>(self, p: *const u16) -> F32 {
        // SAFETY: by the caller.
        let h = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        let mut v = [0.0; 16];
        for i in 0..16 {
            v[i] = half::widen_bf16(h[i]);
        }
        F32(f32x16::new(v))
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn store_bf16<const PAST: bool, const DEALT: bool>(v: F32, p: *mut u16) {
        let (v, mut h) = (v.0.to_array(), [0; 16]);
        for i in 0..16 {
            h[i] = half::narrow_bf16(v[i]);
        }
        // SAFETY: by the caller.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(h) }
    }
}

macro_rules! operators {
    ($t:ident) => {
        real!($t, Portable);
        impl Add for $t {
            type Output = Self;
            #[inline(always)]
            fn add(self, o: Self) -> Self {
                Self(self.0 + o.0)
            }
        }
        impl Sub for $t {
            type Output = Self;
            #[inline(always)]
            fn sub(self, o: Self) -> Self {
                Self(self.0 - o.0)
            }
        }
        impl Mul for $t {
            type Output = Self;
            #[inline(always)]
            fn mul(self, o: Self) -> Self {
                Self(self.0 * o.0)
            }
        }
    };
}
operators!(F32);
operators!(F64);

macro_rules! vector {
    ($name:ident, $inner:ident, $scalar:ty, $lanes:literal, $window:ident) => {
        type Scalar = $scalar;
        type Mask = $inner;
        type Wide = F64;

        #[inline(always)]
        fn splat(_: Portable, v: $scalar) -> Self {
            Self($inner::splat(v))
        }
        #[inline(always)]
        unsafe fn load(_: Portable, p: *const $scalar) -> Self {
            // SAFETY: by the caller; an array of scalars has the alignment of one only once read
            // unaligned.
            Self($inner::new(unsafe { p.cast::<[$scalar; $lanes]>().read_unaligned() }))
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut $scalar) {
            // SAFETY: by the caller.
            unsafe { p.cast::<[$scalar; $lanes]>().write_unaligned(self.0.to_array()) }
        }
        // The one operation that `wide` has not, and that changes no bit.
        #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
        #[inline(always)]
        unsafe fn stream(self, p: *mut $scalar) {
            let parts: [core::arch::x86_64::__m128i; 4] = bytemuck::cast(self.0);
            for (i, part) in parts.into_iter().enumerate() {
                // SAFETY: by the caller, p is aligned; SSE2 is there.
                unsafe { core::arch::x86_64::_mm_stream_si128(p.cast::<core::arch::x86_64::__m128i>().add(i), part) }
            }
        }
        #[inline(always)]
        fn abs(self) -> Self {
            Self(self.0.abs())
        }
        #[inline(always)]
        fn clear_below(self, n: usize) -> Self {
            debug_assert!(n <= $lanes);
            let start = $lanes - n.min($lanes);
            // SAFETY: start ≤ LANES, and the window has 2·LANES words.
            let mask: $inner = unsafe { $window.0.as_ptr().add(start).cast::<$inner>().read_unaligned() };
            Self(self.0 & mask)
        }
        #[inline(always)]
        fn lt(self, other: Self) -> $inner {
            self.0.simd_lt(other.0)
        }
        #[inline(always)]
        fn finite(self) -> $inner {
            // An ordered comparison: false for NaN.
            self.0.abs().simd_lt($inner::splat(<$scalar>::INFINITY))
        }
        #[inline(always)]
        fn all(mask: $inner) -> bool {
            mask.all()
        }
        #[inline(always)]
        fn select(mask: $inner, yes: Self, no: Self) -> Self {
            Self(mask.bitselect(yes.0, no.0))
        }
    };
}

impl Vector for F32 {
    vector!(F32, f32x16, f32, 16, WINDOW32);

    #[inline(always)]
    fn widen(self) -> [F64; 2] {
        let a = self.0.to_array();
        [
            F64(f64x8::new([
                a[0] as f64,
                a[1] as f64,
                a[2] as f64,
                a[3] as f64,
                a[4] as f64,
                a[5] as f64,
                a[6] as f64,
                a[7] as f64,
            ])),
            F64(f64x8::new([
                a[8] as f64,
                a[9] as f64,
                a[10] as f64,
                a[11] as f64,
                a[12] as f64,
                a[13] as f64,
                a[14] as f64,
                a[15] as f64,
            ])),
        ]
    }
}

impl Vector for F64 {
    vector!(F64, f64x8, f64, 8, WINDOW64);

    #[inline(always)]
    fn widen(self) -> [F64; 2] {
        [self, self]
    }
}
