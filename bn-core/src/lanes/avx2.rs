//! Lanes on AVX2: each virtual vector is two registers. FMA is left unused on purpose (it would
//! change bits); F16C is part of this level.

use super::{Lanes, Vector, WINDOW32, WINDOW64, real};
use crate::dispatch::{Shells, Task};
#[cfg(target_arch = "x86")]
use core::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::*;
use core::ops::{Add, Mul, Sub};

/// Proof of AVX2 and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU and the operating system support AVX2 and F16C.
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

#[derive(Clone, Copy)]
pub(crate) struct F32(__m256, __m256);

#[derive(Clone, Copy)]
pub(crate) struct F64(__m256d, __m256d);

impl Lanes for Avx2 {
    const STREAMS: usize = 2;
    const ABREAST: usize = 2;
    // In cache maps are 1.27 times as fast with constants that all lanes have, 1.15 with those of a table; sums 1.02 to 1.15.
    const DEALS: bool = true;

    #[inline(always)]
    fn apart<T: Task>(self, task: T) -> T::Output {
        // SAFETY: the token proves the features.
        unsafe { T::Element::avx2(task) }
    }

    /// By two instructions.
    #[inline(always)]
    fn lines(self) -> bool {
        true
    }
    #[inline(always)]
    fn ahead(self) -> bool {
        true
    }
    #[inline(always)]
    fn ask<T>(self, p: *const T, after: usize) {
        // SAFETY: a hint, for any address; the token proves AVX2.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast::<i8>().wrapping_add(after)) }
    }

    #[inline(always)]
    fn fence(self) {
        // SAFETY: the token proves AVX2.
        unsafe { _mm_sfence() }
    }

    type F32 = F32;
    type F64 = F64;

    #[inline(always)]
    fn quotient(self, a: F64, b: F64) -> F64 {
        // SAFETY: the token proves AVX2.
        unsafe { F64(_mm256_div_pd(a.0, b.0), _mm256_div_pd(a.1, b.1)) }
    }
    #[inline(always)]
    fn root(self, v: F64) -> F64 {
        // SAFETY: as above.
        unsafe { F64(_mm256_sqrt_pd(v.0), _mm256_sqrt_pd(v.1)) }
    }
    #[inline(always)]
    fn rounded(self, v: F64) -> F64 {
        // SAFETY: as above.
        unsafe { F64(_mm256_cvtps_pd(_mm256_cvtpd_ps(v.0)), _mm256_cvtps_pd(_mm256_cvtpd_ps(v.1))) }
    }
    #[inline(always)]
    unsafe fn store_rounded(self, v: F64, p: *mut f32) {
        // SAFETY: as above; by the caller.
        unsafe {
            _mm_storeu_ps(p, _mm256_cvtpd_ps(v.0));
            _mm_storeu_ps(p.add(4), _mm256_cvtpd_ps(v.1));
        }
    }

    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F32 {
        // SAFETY: the token proves F16C; the range is the caller's promise.
        unsafe { F32(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))) }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn store_f16<const PAST: bool>(v: F32, p: *mut u16) {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0);
            store::<PAST>(p, _mm256_setr_m128i(low, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.1)));
        }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn load_bf16<const DEALT: bool>(self, p: *const u16) -> F32 {
        // SAFETY: as above.
        unsafe {
            if DEALT {
                let (pairs, high) = (_mm256_loadu_si256(p.cast()), _mm256_set1_epi32(!0xffff));
                let odd = _mm256_and_si256(pairs, high);
                return F32(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(odd));
            }
            // Each into the high half of its lane: one instruction after the load instead of two, sums 1.2 times as fast.
            let up = _mm256_setr_epi8(
                -1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13,
                -1, -1, 14, 15,
            );
            let low = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()));
            let high = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.add(8).cast()));
            F32(_mm256_castsi256_ps(_mm256_shuffle_epi8(low, up)), _mm256_castsi256_ps(_mm256_shuffle_epi8(high, up)))
        }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn store_bf16<const PAST: bool, const DEALT: bool>(v: F32, p: *mut u16) {
        // SAFETY: as above.
        unsafe {
            let (first, second) = (_mm256_castps_si256(v.0), _mm256_castps_si256(v.1));
            if DEALT {
                let high = _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(first), second);
                let low = _mm256_blend_epi16::<0b1010_1010>(first, _mm256_slli_epi32::<16>(second));
                return store::<PAST>(p, round_bf16(high, low));
            }
            // Packing works on 128-bit halves: 0–3, 8–11, 4–7, 12–15, put in order afterwards.
            let high = _mm256_packus_epi32(_mm256_srli_epi32::<16>(first), _mm256_srli_epi32::<16>(second));
            let zero = _mm256_setzero_si256();
            let low = _mm256_packus_epi32(
                _mm256_blend_epi16::<0b1010_1010>(first, zero),
                _mm256_blend_epi16::<0b1010_1010>(second, zero),
            );
            let packed = round_bf16(high, low);
            store::<PAST>(p, _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
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

/// Rounds f32 to bfloat16, of whose bits these are the high and the low halves: up where the low one is more than 0x8000, or as
/// much and the high one is odd. The bits of [`super::half::narrow_bf16`], in eight instructions for 16 elements, of which as whole
/// lanes there were ten (maps in cache 1.06 to 1.13 times as fast, past the caches up to 1.1: Zen 3).
#[cfg(feature = "half")]
#[inline(always)]
fn round_bf16(high: __m256i, low: __m256i) -> __m256i {
    // SAFETY: called with vectors that a token made.
    unsafe {
        let even = _mm256_andnot_si256(high, _mm256_set1_epi16(1));
        _mm256_add_epi16(high, _mm256_srli_epi16::<15>(_mm256_subs_epu16(low, even)))
    }
}

macro_rules! operator {
    ($t:ident, $op:ident, $f:ident, $i:ident) => {
        impl $op for $t {
            type Output = Self;
            #[inline(always)]
            fn $f(self, o: Self) -> Self {
                // SAFETY: a vector of this type exists only where a token does.
                unsafe { Self($i(self.0, o.0), $i(self.1, o.1)) }
            }
        }
    };
}
operator!(F32, Add, add, _mm256_add_ps);
operator!(F32, Sub, sub, _mm256_sub_ps);
operator!(F32, Mul, mul, _mm256_mul_ps);
operator!(F64, Add, add, _mm256_add_pd);
operator!(F64, Sub, sub, _mm256_sub_pd);
operator!(F64, Mul, mul, _mm256_mul_pd);

/// Of equal numbers, and where one is NaN, the result is the second operand.
macro_rules! limit {
    ($t:ident, $name:ident, $f:ident) => {
        impl $t {
            #[inline(always)]
            fn $name(self, limit: Self) -> Self {
                // SAFETY: a vector of this type exists only where a token does.
                unsafe { Self($f(limit.0, self.0), $f(limit.1, self.1)) }
            }
        }
    };
}
limit!(F32, larger, _mm256_max_ps);
limit!(F32, smaller, _mm256_min_ps);
limit!(F64, larger, _mm256_max_pd);
limit!(F64, smaller, _mm256_min_pd);
real!(F32, Avx2, larger, smaller);
real!(F64, Avx2, larger, smaller);

macro_rules! vector {
    ($scalar:ty, $lanes:literal, $window:ident, $reg:ident, $set1:ident, $loadu:ident, $storeu:ident, $stream:ident, $and:ident,
     $andnot:ident, $add:ident, $mul:ident, $cmp:ident, $movemask:ident, $blend:ident) => {
        type Scalar = $scalar;
        type Mask = ($reg, $reg);
        type Wide = F64;

        #[inline(always)]
        fn splat(_: Avx2, v: $scalar) -> Self {
            // SAFETY: the token proves AVX2.
            unsafe { Self($set1(v), $set1(v)) }
        }
        #[inline(always)]
        unsafe fn load(_: Avx2, p: *const $scalar) -> Self {
            // SAFETY: the token proves AVX2; the range is the caller's promise.
            unsafe { Self($loadu(p), $loadu(p.add($lanes / 2))) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut $scalar) {
            // SAFETY: as above.
            unsafe {
                $storeu(p, self.0);
                $storeu(p.add($lanes / 2), self.1);
            }
        }
        #[inline(always)]
        unsafe fn stream(self, p: *mut $scalar) {
            // SAFETY: as above, and p is aligned.
            unsafe {
                $stream(p, self.0);
                $stream(p.add($lanes / 2), self.1);
            }
        }
        #[inline(always)]
        fn abs(self) -> Self {
            // SAFETY: AVX2 as above.
            unsafe { Self($andnot($set1(-0.0), self.0), $andnot($set1(-0.0), self.1)) }
        }
        #[inline(always)]
        fn clear_below(self, n: usize) -> Self {
            debug_assert!(n <= $lanes);
            let start = $lanes - n.min($lanes);
            // SAFETY: start ≤ LANES, and the window has 2·LANES words; AVX2 as above.
            unsafe {
                let w = $window.0.as_ptr().add(start).cast::<$scalar>();
                Self($and(self.0, $loadu(w)), $and(self.1, $loadu(w.add($lanes / 2))))
            }
        }
        const HALVES: bool = true;
        #[inline(always)]
        fn add_upper(self, other: Self, n: usize) -> Self {
            debug_assert!(($lanes / 2..=$lanes).contains(&n));
            let start = $lanes + $lanes / 2 - n.clamp($lanes / 2, $lanes);
            // SAFETY: $lanes / 2 ≤ start ≤ $lanes, and the window has 2·LANES words; AVX2 as above.
            unsafe {
                let upper = $and(other.1, $loadu($window.0.as_ptr().add(start).cast::<$scalar>()));
                Self(self.0, $add(self.1, upper))
            }
        }
        #[inline(always)]
        fn lt(self, o: Self) -> Self::Mask {
            // SAFETY: AVX2 as above.
            unsafe { ($cmp::<_CMP_LT_OQ>(self.0, o.0), $cmp::<_CMP_LT_OQ>(self.1, o.1)) }
        }
        #[inline(always)]
        fn finite(self) -> Self::Mask {
            // SAFETY: AVX2 as above.
            unsafe {
                let (sign, inf) = ($set1(-0.0), $set1(<$scalar>::INFINITY));
                ($cmp::<_CMP_LT_OQ>($andnot(sign, self.0), inf), $cmp::<_CMP_LT_OQ>($andnot(sign, self.1), inf))
            }
        }
        #[inline(always)]
        fn all(m: Self::Mask) -> bool {
            // SAFETY: AVX2 as above.
            unsafe { $movemask($and(m.0, m.1)) == (1 << ($lanes / 2)) - 1 }
        }
        #[inline(always)]
        fn all_finite(self) -> bool {
            // What is not finite times 0 is NaN, and one comparison sees that in two registers: four instructions
            // instead of six, and two constants fewer (backward in cache: 1.02 to 1.07 times as fast).
            // SAFETY: AVX2 as above.
            unsafe {
                let zero = $set1(0.0);
                $movemask($cmp::<_CMP_UNORD_Q>($mul(self.0, zero), $mul(self.1, zero))) == 0
            }
        }
        #[inline(always)]
        fn select(m: Self::Mask, yes: Self, no: Self) -> Self {
            // SAFETY: AVX2 as above.
            unsafe { Self($blend(no.0, yes.0, m.0), $blend(no.1, yes.1, m.1)) }
        }
    };
}

impl Vector for F32 {
    vector!(
        f32,
        16,
        WINDOW32,
        __m256,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_stream_ps,
        _mm256_and_ps,
        _mm256_andnot_ps,
        _mm256_add_ps,
        _mm256_mul_ps,
        _mm256_cmp_ps,
        _mm256_movemask_ps,
        _mm256_blendv_ps
    );

    #[inline(always)]
    fn clear_below_dealt(self, n: usize) -> Self {
        debug_assert!(n <= 16);
        let n = n.min(16);
        // SAFETY: half of them are even, or one more, and at most 8; the window has 16 zeros, then 16 words of ones. AVX2 as
        // above.
        unsafe {
            let ones = WINDOW32.0.as_ptr().add(16).cast::<f32>();
            let (even, odd) = (_mm256_loadu_ps(ones.sub(n.div_ceil(2))), _mm256_loadu_ps(ones.sub(n / 2)));
            Self(_mm256_and_ps(self.0, even), _mm256_and_ps(self.1, odd))
        }
    }
    #[inline(always)]
    fn in_order(self) -> Self {
        // SAFETY: AVX2 as above.
        unsafe {
            // Elements 0–3 and 8–11, 4–7 and 12–15.
            let (low, high) = (_mm256_unpacklo_ps(self.0, self.1), _mm256_unpackhi_ps(self.0, self.1));
            Self(_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
        }
    }
    #[inline(always)]
    fn widen(self) -> [F64; 2] {
        // SAFETY: a vector of this type exists only where a token does.
        unsafe {
            // No closure: one would not be compiled for AVX2.
            let (a, b) = (_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let (c, d) = (_mm256_castps256_ps128(self.1), _mm256_extractf128_ps::<1>(self.1));
            [F64(_mm256_cvtps_pd(a), _mm256_cvtps_pd(b)), F64(_mm256_cvtps_pd(c), _mm256_cvtps_pd(d))]
        }
    }
}

impl Vector for F64 {
    vector!(
        f64,
        8,
        WINDOW64,
        __m256d,
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_stream_pd,
        _mm256_and_pd,
        _mm256_andnot_pd,
        _mm256_add_pd,
        _mm256_mul_pd,
        _mm256_cmp_pd,
        _mm256_movemask_pd,
        _mm256_blendv_pd
    );

    #[inline(always)]
    fn widen(self) -> [F64; 2] {
        [self, self]
    }
}
