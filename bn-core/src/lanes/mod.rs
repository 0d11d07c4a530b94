//! The vector operations that the kernels call, and nothing else.
//!
//! A [`Lanes`] value is a token: holding one proves that the CPU has the instructions behind it.
//! Its two vector types have the same number of lanes on every ISA (16 of f32, 8 of f64): the
//! contract on bits is written in virtual lanes, and each ISA spreads them over the registers it has,
//! or has a walker of its own that takes elements one by one ([`single`]).
//!
//! Every operation is one IEEE operation per lane. There is no fused multiply-add (but for [`Real::minus`]), no reduction
//! across lanes other than [`Vector::to_f64s`] with its fixed order, and no min, max, reciprocal or
//! other operation that differs between instruction sets.
//!
//! Everything here is `#[inline(always)]`: these bodies must end up inside the
//! `#[target_feature]` shells of [`crate::dispatch`], or they would run as calls.

#[cfg(target_feature = "sse2")]
pub(crate) mod avx2;
#[cfg(target_feature = "sse2")]
pub(crate) mod avx512;
#[cfg(feature = "half")]
pub(crate) mod half;
#[cfg_attr(any(bn_single, target_os = "none"), allow(dead_code, reason = "single lanes stand in for it"))]
pub(crate) mod portable;
pub(crate) mod single;
#[cfg(all(test, not(bn_single)))]
pub(crate) mod traced;

use crate::dispatch::{Shells, Task};
use crate::double::less;
use core::ops::{Add, Mul, Sub};

/// What every CPU of the target has: vectors; on bare metal without any, single lanes, for the sake of
/// size. (`--cfg bn_single` has all tests run with them on any machine.)
#[cfg(not(any(bn_single, all(target_os = "none", not(any(target_feature = "sse2", target_feature = "neon"))))))]
pub(crate) use portable::Portable as Base;
#[cfg(any(bn_single, all(target_os = "none", not(any(target_feature = "sse2", target_feature = "neon")))))]
pub(crate) use single::Single as Base;

/// A token for one instruction set, and its two vector types.
pub trait Lanes: Copy + Send + Sync + 'static {
    /// Planes that sums take in lockstep: as many as the registers hold sums for. It changes no bit.
    const STREAMS: usize;
    /// Vectors of a row (1, 2 or 4) that sums take side by side: as many as the registers hold sums for. It
    /// changes no bit.
    const ABREAST: usize = 1;
    /// Whether bfloat16 are widened and rounded by fewer instructions where they are dealt to the lanes: element `e` of a vector in
    /// lane [`lane_of`]`(e)`. It changes no bit.
    const DEALS: bool = false;
    /// Whether vectors are of one lane.
    const SINGLE: bool = false;
    /// 16 lanes of f32.
    type F32: Vector<Scalar = f32, Token = Self, Wide = Self::F64>;
    /// 8 lanes of f64.
    type F64: Vector<Scalar = f64, Token = Self, Wide = Self::F64>;
    /// Runs a task in a function of its own: for loops that need the registers to themselves.
    #[inline(always)]
    fn apart<T: Task>(self, task: T) -> T::Output {
        T::Element::base(self, task)
    }
    /// Whether [`Vector::stream`] writes a line, or half of one where elements are halves, by one instruction or by two that follow each
    /// other. It changes no bit.
    #[inline(always)]
    fn lines(self) -> bool {
        false
    }
    /// Whether loops that read from beyond the caches [ask for lines ahead](Lanes::ask): sums, images, and the parts of a run that are
    /// stored past the caches. Those then go a vector of each in turn, if vectors are whole lines and the parts begin
    /// at different places of their pages; else by turns. Without: all vectors loaded, then all stored. It changes no bit.
    #[inline(always)]
    fn ahead(self) -> bool {
        false
    }
    /// Asks for the line so many bytes after `p`; none need be there.
    #[inline(always)]
    fn ask<T>(self, _p: *const T, _after: usize) {}
    /// Makes [`Vector::stream`] visible to other threads before what follows, which may then access the same memory.
    #[inline(always)]
    fn fence(self) {}
    /// `a / b`.
    fn quotient(self, a: Self::F64, b: Self::F64) -> Self::F64;
    /// Square roots.
    fn root(self, v: Self::F64) -> Self::F64;
    /// To f32 and back.
    fn rounded(self, v: Self::F64) -> Self::F64;
    /// Writes the lanes as f32.
    ///
    /// # Safety
    /// `p` is valid for writing that many.
    unsafe fn store_rounded(self, v: Self::F64, p: *mut f32);
    /// Reads 16 halves (IEEE binary16) and widens them exactly.
    ///
    /// # Safety
    /// `p` is valid for reading that many.
    #[cfg(feature = "half")]
    unsafe fn load_f16(self, p: *const u16) -> Self::F32;
    /// Rounds to halves, to nearest even, and writes 16 of them; past the caches, if that is wanted and the ISA
    /// can.
    ///
    /// # Safety
    /// `p` is valid for writing that many, and aligned to them if they go past the caches.
    #[cfg(feature = "half")]
    unsafe fn store_f16<const PAST: bool>(v: Self::F32, p: *mut u16);
    /// Reads 16 bfloat16 and widens them exactly; in order, or `DEALT` if the ISA [deals](Lanes::DEALS).
    ///
    /// # Safety
    /// As for [`Lanes::load_f16`].
    #[cfg(feature = "half")]
    unsafe fn load_bf16<const DEALT: bool>(self, p: *const u16) -> Self::F32;
    /// Rounds to bfloat16, to nearest even, and writes 16 of them, past the caches or not, from lanes in order or `DEALT`.
    ///
    /// NaN has zeros in its lower 16 bits: it is a widened one, or an operation made it of numbers. Of constants that are NaN tables have the plain one, and groups are made where none is. So rounding one cannot carry
    /// into its exponent, and it takes no test (maps in cache: 1.17 to 1.2 times as fast on AVX2, 1.15 on AVX-512).
    ///
    /// # Safety
    /// As for [`Lanes::store_f16`].
    #[cfg(feature = "half")]
    unsafe fn store_bf16<const PAST: bool, const DEALT: bool>(v: Self::F32, p: *mut u16);
}

/// Lanes of a vector that is dealt.
pub(crate) const DEAL: usize = 16;

/// The lane of an element of a vector that is dealt: first those with an even number, then those with an odd one.
pub(crate) const fn lane_of(e: usize) -> usize {
    e / 2 + e % 2 * (DEAL / 2)
}

/// A scalar that the kernels calculate in.
pub trait Scalar:
    bytemuck::Pod + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Send + Sync
{
    /// Lanes of the virtual vector.
    const LANES: usize;
    /// Sums of squares (or of products) below `count` times this may have lost digits to
    /// underflow: half the smallest subnormal, relative to this, is far below one ulp.
    const TINY: f64;
    /// A magnitude that products and sums of the kernels stay well below.
    const SAFE_MAX: f64;
    /// A magnitude that factors stay above, so that no product of a normal number is subnormal.
    const SAFE_MIN: f64;
    /// One.
    const ONE: Self;
    /// Zero.
    const ZERO: Self;
    /// Infinity, and less than any number.
    const INFINITIES: (Self, Self);
    /// One over the number of pivot samples.
    const PER_SAMPLE: Self;
    /// Rounds to nearest.
    fn from_f64(v: f64) -> Self;
    /// Widens exactly.
    fn to_f64(self) -> f64;
    /// The next number below.
    fn next_down(self) -> Self;
    /// Vectors of f64 rounded to this type, and back.
    fn rounded<L: Lanes>(lanes: L, v: L::F64) -> L::F64;
    /// Writes them as this type.
    ///
    /// # Safety
    /// `p` is valid for writing as many as there are lanes.
    unsafe fn store_rounded<L: Lanes>(lanes: L, v: L::F64, p: *mut Self);
    /// As another type, rounded to nearest.
    #[inline(always)]
    fn to<S: Scalar>(self) -> S {
        S::from_f64(self.to_f64())
    }
    /// The square root of a factor that brings the square of the largest number into the range: sums that leave it are
    /// calculated times [`Scalar::BEYOND`].
    const DOWN: Self;
    /// Half of what undoes [`Scalar::BEYOND`]: the largest power of two.
    const UP: Self;
    /// `DOWN` squared.
    const BEYOND: Self;
}

impl Scalar for f32 {
    const LANES: usize = 16;
    const TINY: f64 = f64::from_bits((1023 - 100) << 52);
    const SAFE_MAX: f64 = f64::from_bits((1023 + 120) << 52);
    const SAFE_MIN: f64 = f64::from_bits((1023 - 120) << 52);
    const ONE: f32 = 1.0;
    const ZERO: f32 = 0.0;
    const INFINITIES: (f32, f32) = (f32::INFINITY, f32::NEG_INFINITY);
    const PER_SAMPLE: f32 = 1.0 / crate::layout::grid::SAMPLES as f32;
    const DOWN: f32 = f32::from_bits((127 - 64) << 23);
    const UP: f32 = f32::from_bits((127 + 127) << 23);
    const BEYOND: f32 = f32::DOWN * f32::DOWN;
    #[inline(always)]
    fn from_f64(v: f64) -> f32 {
        v as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn rounded<L: Lanes>(lanes: L, v: L::F64) -> L::F64 {
        lanes.rounded(v)
    }
    #[inline(always)]
    unsafe fn store_rounded<L: Lanes>(lanes: L, v: L::F64, p: *mut f32) {
        // SAFETY: by the caller.
        unsafe { lanes.store_rounded(v, p) }
    }
    #[inline(always)]
    fn next_down(self) -> f32 {
        f32::next_down(self)
    }
}

impl Scalar for f64 {
    const LANES: usize = 8;
    const TINY: f64 = f64::from_bits((1023 - 900) << 52);
    const SAFE_MAX: f64 = f64::from_bits((1023 + 1000) << 52);
    const SAFE_MIN: f64 = f64::from_bits((1023 - 1000) << 52);
    const ONE: f64 = 1.0;
    const ZERO: f64 = 0.0;
    const INFINITIES: (f64, f64) = (f64::INFINITY, f64::NEG_INFINITY);
    const PER_SAMPLE: f64 = 1.0 / crate::layout::grid::SAMPLES as f64;
    const DOWN: f64 = f64::from_bits((1023 - 512) << 52);
    const UP: f64 = f64::from_bits((1023 + 1023) << 52);
    const BEYOND: f64 = f64::DOWN * f64::DOWN;
    #[inline(always)]
    fn from_f64(v: f64) -> f64 {
        v
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn rounded<L: Lanes>(_: L, v: L::F64) -> L::F64 {
        v
    }
    #[inline(always)]
    unsafe fn store_rounded<L: Lanes>(_: L, v: L::F64, p: *mut f64) {
        // SAFETY: by the caller.
        unsafe { v.store(p) }
    }
    #[inline(always)]
    fn next_down(self) -> f64 {
        f64::next_down(self)
    }
}

/// What a vector and a single f64 have in common: formulas that are written in it run on both.
pub trait Real: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    /// What proves that this type may be used.
    type Token: Copy;
    /// A constant, rounded to nearest.
    fn constant<S: Scalar>(token: Self::Token, v: S) -> Self;
    /// `yes` where `self < other`, else `no`, also where either is NaN.
    fn if_less(self, other: Self, yes: Self, no: Self) -> Self;
    /// `self - other`, in sums: by the unit that has less to do there, where there are two.
    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self - other
    }
    /// At least `floor`, which is not NaN; NaN stays NaN. An instruction where an ISA has the right one.
    #[inline(always)]
    fn at_least(self, floor: Self) -> Self {
        self.if_less(floor, floor, self)
    }
    /// At most `ceiling`, in the same way.
    #[inline(always)]
    fn at_most(self, ceiling: Self) -> Self {
        ceiling.if_less(self, ceiling, self)
    }
}

impl Real for f64 {
    type Token = ();
    #[inline(always)]
    fn constant<S: Scalar>((): (), v: S) -> f64 {
        v.to_f64()
    }
    #[inline(always)]
    fn if_less(self, other: f64, yes: f64, no: f64) -> f64 {
        if less(self, other) { yes } else { no }
    }
}

/// The operations of [`Real`] for a vector type.
macro_rules! real {
    ($t:ty, $token:ty $(, $larger:ident, $smaller:ident)? $(; $minus:ident)?) => {
        impl $crate::lanes::Real for $t {
            type Token = $token;
            #[inline(always)]
            fn constant<S: $crate::lanes::Scalar>(token: $token, v: S) -> Self {
                <$t>::splat(token, v.to())
            }
            #[inline(always)]
            fn if_less(self, other: Self, yes: Self, no: Self) -> Self {
                <$t>::select(self.lt(other), yes, no)
            }
            $(
                #[inline(always)]
                fn at_least(self, floor: Self) -> Self {
                    self.$larger(floor)
                }
                #[inline(always)]
                fn at_most(self, ceiling: Self) -> Self {
                    self.$smaller(ceiling)
                }
            )?
            $(
                #[inline(always)]
                fn minus(self, other: Self) -> Self {
                    self.$minus(other)
                }
            )?
        }
    };
}
pub(crate) use real;

/// A vector of `Scalar::LANES` lanes.
pub trait Vector: Real {
    /// What stands in a lane.
    type Scalar: Scalar;
    /// One truth value per lane.
    type Mask: Copy;
    /// The f64 vector of the same ISA.
    type Wide: Vector<Scalar = f64, Token = Self::Token>;
    /// Elements that are neighbours in memory and in a vector, in order or dealt.
    const WIDTH: usize = Self::Scalar::LANES;
    /// How many `Wide` vectors hold the lanes of this one.
    const WIDES: usize = Self::Scalar::LANES / 8;

    /// All lanes equal.
    fn splat(token: Self::Token, v: Self::Scalar) -> Self;
    /// Reads `LANES` scalars, at any alignment.
    ///
    /// # Safety
    /// `p` is valid for reading that many.
    unsafe fn load(token: Self::Token, p: *const Self::Scalar) -> Self;
    /// Writes `LANES` scalars, at any alignment.
    ///
    /// # Safety
    /// `p` is valid for writing that many.
    unsafe fn store(self, p: *mut Self::Scalar);
    /// Writes `LANES` scalars past the caches, if the ISA can; [`Lanes::fence`] orders such stores.
    ///
    /// # Safety
    /// As for `store`; `p` is aligned to the size of the vector.
    #[inline(always)]
    unsafe fn stream(self, p: *mut Self::Scalar) {
        // SAFETY: the caller's promise is more than what this needs.
        unsafe { self.store(p) }
    }
    /// Without their signs.
    fn abs(self) -> Self;
    /// Zeroes the lanes below `n` (n ≤ LANES).
    fn clear_below(self, n: usize) -> Self;
    /// Whether the lower half of the lanes is a register of its own, for which [`Vector::add_upper`] does nothing.
    const HALVES: bool = false;
    /// The sum with what `other` has from lane `n` on, which is one of the upper half; `self` has no −0 below.
    #[inline(always)]
    fn add_upper(self, other: Self, n: usize) -> Self {
        self + other.clear_below(n)
    }
    /// The same as [`Vector::clear_below`] for a vector that was loaded [dealt](Lanes::DEALS): zeroes the elements below `n`.
    #[inline(always)]
    fn clear_below_dealt(self, n: usize) -> Self {
        self.clear_below(n)
    }
    /// The lanes in order, of a vector that was loaded dealt.
    #[inline(always)]
    fn in_order(self) -> Self {
        self
    }
    /// Where `self < other`; false where either is NaN.
    fn lt(self, other: Self) -> Self::Mask;
    /// Lanes that are neither infinite nor NaN.
    fn finite(self) -> Self::Mask;
    /// Whether a mask holds in every lane.
    fn all(mask: Self::Mask) -> bool;
    /// Whether all lanes are finite.
    #[inline(always)]
    fn all_finite(self) -> bool {
        Self::all(self.finite())
    }
    /// `yes` where the mask holds, else `no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// Exact f64 copies; only the first `WIDES` count.
    fn widen(self) -> [Self::Wide; 2];
    /// The lanes in f64, 16 of them added in pairs (i, i + 8).
    #[inline(always)]
    fn to_f64s(self) -> [f64; 8] {
        let w = self.widen();
        let sum = if Self::WIDES == 2 { w[0] + w[1] } else { w[0] };
        let mut out = [0.0; 8];
        // SAFETY: the array has the eight elements that the store writes.
        unsafe { sum.store(out.as_mut_ptr()) };
        out
    }
    /// The sum of all lanes in f64, by one fixed tree.
    #[inline(always)]
    fn sum_f64(self) -> f64 {
        let v = self.to_f64s();
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
}

/// A sliding window of `LANES` zeros followed by `LANES` words of ones.
#[cfg_attr(target_os = "none", allow(dead_code, reason = "for vectors only"))]
#[repr(C, align(64))]
pub(crate) struct Window<T, const N: usize>(pub(crate) [T; N]);

/// For 32-bit lanes.
#[cfg_attr(target_os = "none", allow(dead_code, reason = "for vectors only"))]
pub(crate) static WINDOW32: Window<u32, 32> = Window({
    let mut w = [0; 32];
    let mut i = 16;
    while i < 32 {
        w[i] = !0;
        i += 1;
    }
    w
});

/// For 64-bit lanes.
#[cfg_attr(target_os = "none", allow(dead_code, reason = "for vectors only"))]
pub(crate) static WINDOW64: Window<u64, 16> = Window({
    let mut w = [0; 16];
    let mut i = 8;
    while i < 16 {
        w[i] = !0;
        i += 1;
    }
    w
});

#[cfg(test)]
mod tests {
    use super::{Lanes, Scalar, Vector};
    use crate::dispatch::{Shells, Task, dispatch};
    use crate::element::{Element, sealed::Storage};
    use crate::isa::Isa;

    /// What both say of a vector.
    struct Finite<E>(E, usize);

    impl<E: Element<Param = E> + Storage<Compute = E> + Scalar + Shells> Task for Finite<E> {
        type Element = E;
        type Output = [bool; 2];
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> [bool; 2] {
            let mut numbers = [E::ONE; 16];
            numbers[self.1 % <E::Vec<L>>::WIDTH] = self.0;
            // SAFETY: no vector has more lanes.
            let v = unsafe { <E::Vec<L>>::load(lanes, numbers.as_ptr()) };
            [v.all_finite(), <E::Vec<L>>::all(v.finite())]
        }
    }

    fn finite<E: Element<Param = E> + Storage<Compute = E> + Scalar + Shells>(all: &[(E, bool)]) {
        for isa in Isa::available() {
            for &(v, expected) in all {
                for lane in 0..E::LANES {
                    assert_eq!(dispatch(isa, Finite(v, lane)), [expected; 2], "{isa:?}, lane {lane}: {}", v.to_f64());
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_seen_in_every_lane() {
        let of = f32::from_bits;
        let (smallest, signalling) = (of(1), of(0x7f80_0001));
        finite(&[0.0, -0.0, smallest, -smallest, f32::MIN_POSITIVE, f32::MAX, f32::MIN].map(|v| (v, true)));
        finite(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, signalling, -signalling].map(|v| (v, false)));
        let of = f64::from_bits;
        let (smallest, signalling) = (of(1), of((0x7ff << 52) + 1));
        finite(&[0.0, -0.0, smallest, -smallest, f64::MIN_POSITIVE, f64::MAX, f64::MIN].map(|v| (v, true)));
        finite(&[f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -f64::NAN, signalling, -signalling].map(|v| (v, false)));
    }
}
