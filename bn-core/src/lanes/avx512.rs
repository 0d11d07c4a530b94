//! Lanes on AVX-512 (F, VL, BW, DQ): each virtual vector is one register.

use super::{Lanes, Vector, real};
use crate::dispatch::{Shells, Task};
#[cfg(target_arch = "x86")]
use core::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::*;
use core::ops::{Add, Mul, Sub};

/// Proof of AVX-512 F, VL, BW and DQ.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU and the operating system support AVX-512 F, VL, BW and DQ.
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

#[derive(Clone, Copy)]
pub(crate) struct F32(__m512);

#[derive(Clone, Copy)]
pub(crate) struct F64(__m512d);

impl Lanes for Avx512 {
    const STREAMS: usize = 4;
    const ABREAST: usize = 4;

    #[inline(always)]
    fn apart<T: Task>(self, task: T) -> T::Output {
        // SAFETY: the token proves the features.
        unsafe { T::Element::avx512(task) }
    }

    #[inline(always)]
    fn lines(self) -> bool {
        true
    }

    #[inline(always)]
    fn fence(self) {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm_sfence() }
    }

    type F32 = F32;
    type F64 = F64;

    #[inline(always)]
    fn quotient(self, a: F64, b: F64) -> F64 {
        // SAFETY: the token proves AVX-512.
        unsafe { F64(_mm512_div_pd(a.0, b.0)) }
    }
    #[inline(always)]
    fn root(self, v: F64) -> F64 {
        // SAFETY: as above.
        unsafe { F64(_mm512_sqrt_pd(v.0)) }
    }
    #[inline(always)]
    fn rounded(self, v: F64) -> F64 {
        // SAFETY: as above.
        unsafe { F64(_mm512_cvtps_pd(_mm512_cvtpd_ps(v.0))) }
    }
    #[inline(always)]
    unsafe fn store_rounded(self, v: F64, p: *mut f32) {
        // SAFETY: as above; by the caller.
        unsafe { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v.0)) }
    }

    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F32 {
        // SAFETY: the token proves AVX-512; the range is the caller's promise.
        unsafe { F32(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn store_f16<const PAST: bool>(v: F32, p: *mut u16) {
        // SAFETY: as above.
        unsafe { store::<PAST>(p, _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0)) }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn load_bf16<const DEALT: bool>(self, p: *const u16) -> F32 {
        // SAFETY: as above.
        unsafe {
            // To the upper half of each lane, zeros below. The compiler makes a permutation and a mask of it, which
            // more units can do than widening and shifting (sums in cache are 1.06 times as fast).
            let halves = _mm512_castsi256_si512(_mm256_loadu_si256(p.cast()));
            F32(_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaa_aaaa, spread(), halves)))
        }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn store_bf16<const PAST: bool, const DEALT: bool>(v: F32, p: *mut u16) {
        // SAFETY: as above. The rounding is that of `super::half::narrow_bf16`; the instruction for
        // it, VCVTNEPS2BF16, flushes subnormals. It stays in the upper halves until they are gathered: four
        // instructions instead of ten.
        unsafe {
            let bits = _mm512_castps_si512(v.0);
            let odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x1_0000));
            let half = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_mask_add_epi32(half, odd, half, _mm512_set1_epi32(1));
            let r = _mm512_permutexvar_epi16(gather(), rounded);
            store::<PAST>(p, _mm512_castsi512_si256(r));
        }
    }
}

/// For a permutation of 16-bit words: word i / 2 of what is loaded goes to word i.
#[cfg(feature = "half")]
#[inline(always)]
fn spread() -> __m512i {
    const WORDS: [u16; 32] = {
        let (mut w, mut i) = ([0; 32], 0);
        while i < 32 {
            w[i] = i as u16 / 2;
            i += 1;
        }
        w
    };
    // SAFETY: called where a token has been; the sizes agree.
    unsafe { core::mem::transmute(WORDS) }
}

/// The upper words of all lanes, side by side; then anything.
#[cfg(feature = "half")]
#[inline(always)]
fn gather() -> __m512i {
    const WORDS: [u16; 32] = {
        let (mut w, mut i) = ([0; 32], 0);
        while i < 32 {
            w[i] = (2 * i as u16 + 1) % 32;
            i += 1;
        }
        w
    };
    // SAFETY: as above.
    unsafe { core::mem::transmute(WORDS) }
}

/// Writes 16 halves, past the caches or not.
///
/// # Safety
/// `p` is valid for that, and aligned to them if they go past the caches.
#[cfg(feature = "half")]
#[inline(always)]
unsafe fn store<const PAST: bool>(p: *mut u16, v: __m256i) {
    // SAFETY: called with vectors that a token made; by the caller.
    unsafe { if PAST { _mm256_stream_si256(p.cast(), v) } else { _mm256_storeu_si256(p.cast(), v) } }
}

macro_rules! operator {
    ($t:ident, $op:ident, $f:ident, $i:ident) => {
        impl $op for $t {
            type Output = Self;
            #[inline(always)]
            fn $f(self, o: Self) -> Self {
                // SAFETY: a vector of this type exists only where a token does.
                unsafe { Self($i(self.0, o.0)) }
            }
        }
    };
}
operator!(F32, Add, add, _mm512_add_ps);
operator!(F32, Sub, sub, _mm512_sub_ps);
operator!(F32, Mul, mul, _mm512_mul_ps);
operator!(F64, Add, add, _mm512_add_pd);
operator!(F64, Sub, sub, _mm512_sub_pd);
operator!(F64, Mul, mul, _mm512_mul_pd);

/// Of equal numbers, and where one is NaN, the result is the second operand.
macro_rules! limit {
    ($t:ident, $name:ident, $f:ident) => {
        impl $t {
            #[inline(always)]
            fn $name(self, limit: Self) -> Self {
                // SAFETY: a vector of this type exists only where a token does.
                unsafe { Self($f(limit.0, self.0)) }
            }
        }
    };
}
limit!(F32, larger, _mm512_max_ps);
limit!(F32, smaller, _mm512_min_ps);
limit!(F64, larger, _mm512_max_pd);
limit!(F64, smaller, _mm512_min_pd);

/// a − b as 1·a − b: the same bits, since the product is exact. Zen has adders and multipliers, and sums have three additions
/// for a multiplication: the moments of planes in cache take 0.8 of the time. Where units can do either nothing changes.
/// (The rounding is said so that the compiler leaves it like that.)
macro_rules! difference {
    ($t:ident, $fmsub:ident, $set1:ident) => {
        impl $t {
            #[inline(always)]
            fn difference(self, o: Self) -> Self {
                const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
                // SAFETY: a vector of this type exists only where a token does.
                unsafe { Self($fmsub::<NEAREST>(self.0, $set1(1.0), o.0)) }
            }
        }
    };
}
difference!(F32, _mm512_fmsub_round_ps, _mm512_set1_ps);
difference!(F64, _mm512_fmsub_round_pd, _mm512_set1_pd);
real!(F32, Avx512, larger, smaller; difference);
real!(F64, Avx512, larger, smaller; difference);

macro_rules! vector {
    ($scalar:ty, $lanes:literal, $mask:ty, $set1:ident, $loadu:ident, $storeu:ident, $stream:ident, $maskz:ident, $cmp:ident,
     $class:ident, $blend:ident, $abs:ident) => {
        type Scalar = $scalar;
        type Mask = $mask;
        type Wide = F64;

        #[inline(always)]
        fn splat(_: Avx512, v: $scalar) -> Self {
            // SAFETY: the token proves AVX-512.
            unsafe { Self($set1(v)) }
        }
        #[inline(always)]
        unsafe fn load(_: Avx512, p: *const $scalar) -> Self {
            // SAFETY: the token proves AVX-512; the range is the caller's promise.
            unsafe { Self($loadu(p)) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut $scalar) {
            // SAFETY: as above.
            unsafe { $storeu(p, self.0) }
        }
        #[inline(always)]
        unsafe fn stream(self, p: *mut $scalar) {
            // SAFETY: as above, and p is aligned.
            unsafe { $stream(p, self.0) }
        }
        #[inline(always)]
        fn abs(self) -> Self {
            // SAFETY: AVX-512 as above.
            unsafe { Self($abs(self.0)) }
        }
        #[inline(always)]
        fn clear_below(self, n: usize) -> Self {
            debug_assert!(n <= $lanes);
            // The shift is done in 32 bits, so that n = LANES gives the empty mask.
            let keep = (u32::MAX << (n as u32 & 31)) as $mask;
            // SAFETY: AVX-512 as above.
            unsafe { Self($maskz(keep, self.0)) }
        }
        #[inline(always)]
        fn lt(self, o: Self) -> $mask {
            // SAFETY: AVX-512 as above.
            unsafe { $cmp::<_CMP_LT_OQ>(self.0, o.0) }
        }
        #[inline(always)]
        fn finite(self) -> $mask {
            // Classes: quiet NaN 0x01, +inf 0x08, −inf 0x10, signalling NaN 0x80.
            // SAFETY: AVX-512 as above.
            unsafe { !$class::<0x99>(self.0) }
        }
        #[inline(always)]
        fn all(m: $mask) -> bool {
            m == <$mask>::MAX
        }
        #[inline(always)]
        fn select(m: $mask, yes: Self, no: Self) -> Self {
            // SAFETY: AVX-512 as above.
            unsafe { Self($blend(m, no.0, yes.0)) }
        }
    };
}

impl Vector for F32 {
    vector!(
        f32,
        16,
        u16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_stream_ps,
        _mm512_maskz_mov_ps,
        _mm512_cmp_ps_mask,
        _mm512_fpclass_ps_mask,
        _mm512_mask_blend_ps,
        _mm512_abs_ps
    );

    #[inline(always)]
    fn widen(self) -> [F64; 2] {
        // SAFETY: a vector of this type exists only where a token does.
        unsafe {
            [
                F64(_mm512_cvtps_pd(_mm512_castps512_ps256(self.0))),
                F64(_mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(self.0))),
            ]
        }
    }
}

impl Vector for F64 {
    vector!(
        f64,
        8,
        u8,
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_stream_pd,
        _mm512_maskz_mov_pd,
        _mm512_cmp_pd_mask,
        _mm512_fpclass_pd_mask,
        _mm512_mask_blend_pd,
        _mm512_abs_pd
    );

    #[inline(always)]
    fn widen(self) -> [F64; 2] {
        [self, self]
    }
}
