//! One lane at a time, in scalar instructions: for slow paths, and for targets without vectors, where
//! sixteen lanes are sixteen times the code.
//!
//! A [`One`] stands for one lane of a virtual vector: it is read from and written to that lane's place.
//! Lanes are independent in all but [`Vector::sum_f64`], so a walker that goes over the lanes one
//! after the other does the same additions. Where lanes are neighbours in memory and nothing else
//! ties them together it may as well take every element for lane 0 of a vector of one.

#[cfg(feature = "half")]
use super::half;
use super::{Lanes, Real, Scalar, Vector, real};
use core::ops::{Add, Mul, Sub};

/// Always available. Which lane it is that vectors stand for.
#[derive(Clone, Copy)]
pub(crate) struct Single(usize);

impl Single {
    pub(crate) const BASE: Single = Single(0);
}

/// A lane and its value.
#[derive(Clone, Copy)]
pub(crate) struct One<S> {
    value: S,
    lane: usize,
}

impl Lanes for Single {
    const STREAMS: usize = 1;
    const SINGLE: bool = true;
    type F32 = One<f32>;
    type F64 = One<f64>;

    #[inline(always)]
    fn lane(self, lane: usize) -> Self {
        Single(lane)
    }

    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> One<f32> {
        // SAFETY: by the caller.
        One { value: half::widen_f16(unsafe { *p.add(self.0) }), lane: self.0 }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn store_f16<const PAST: bool>(v: One<f32>, p: *mut u16) {
        // SAFETY: by the caller.
        unsafe { *p.add(v.lane) = half::narrow_f16(v.value) }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> One<f32> {
        // SAFETY: by the caller.
        One { value: half::widen_bf16(unsafe { *p.add(self.0) }), lane: self.0 }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn store_bf16<const PAST: bool>(v: One<f32>, p: *mut u16) {
        // SAFETY: by the caller.
        unsafe { *p.add(v.lane) = half::narrow_bf16(v.value) }
    }
}

macro_rules! operator {
    ($op:ident, $f:ident) => {
        impl<S: Scalar> $op for One<S> {
            type Output = Self;
            #[inline(always)]
            fn $f(self, o: Self) -> Self {
                One { value: self.value.$f(o.value), lane: self.lane }
            }
        }
    };
}
operator!(Add, add);
operator!(Sub, sub);
operator!(Mul, mul);
real!(One<f32>, Single);
real!(One<f64>, Single);

impl<S: Scalar> Vector for One<S>
where
    Self: Real<Token = Single>,
{
    type Scalar = S;
    type Mask = bool;
    type Wide = One<f64>;
    const WIDTH: usize = 1;
    const WIDES: usize = 1;

    #[inline(always)]
    fn splat(token: Single, value: S) -> Self {
        One { value, lane: token.0 }
    }
    #[inline(always)]
    unsafe fn load(token: Single, p: *const S) -> Self {
        // SAFETY: by the caller.
        One { value: unsafe { *p.add(token.0) }, lane: token.0 }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut S) {
        // SAFETY: by the caller.
        unsafe { *p.add(self.lane) = self.value }
    }
    #[inline(always)]
    fn clear_below(self, n: usize) -> Self {
        if self.lane < n { One { value: S::ZERO, ..self } } else { self }
    }
    #[inline(always)]
    fn lt(self, other: Self) -> bool {
        self.value < other.value
    }
    #[inline(always)]
    fn finite(self) -> bool {
        // ∞·0 is NaN.
        self.value * S::ZERO == S::ZERO
    }
    #[inline(always)]
    fn all(mask: bool) -> bool {
        mask
    }
    #[inline(always)]
    fn select(mask: bool, yes: Self, no: Self) -> Self {
        if mask { yes } else { no }
    }
    #[inline(always)]
    fn widen(self) -> [One<f64>; 2] {
        [One { value: self.value.to_f64(), lane: self.lane }; 2]
    }
}
