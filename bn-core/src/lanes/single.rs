//! Vectors of one lane, in scalar instructions: for slow paths, and for targets without vectors, where sixteen lanes
//! are sixteen times the code.

#[cfg(feature = "half")]
use super::half;
use super::{Lanes, Real, Scalar, Vector, real};
use crate::double::sqrt;
use core::ops::{Add, Mul, Sub};

/// Always available.
#[derive(Clone, Copy)]
pub(crate) struct Single(());

impl Single {
    pub(crate) const BASE: Single = Single(());
}

/// A lane.
#[derive(Clone, Copy)]
pub(crate) struct One<S>(S);

impl Lanes for Single {
    const STREAMS: usize = 1;
    const SINGLE: bool = true;
    type F32 = One<f32>;
    type F64 = One<f64>;

    #[inline(always)]
    fn quotient(self, a: One<f64>, b: One<f64>) -> One<f64> {
        One(a.0 / b.0)
    }
    #[inline(always)]
    fn root(self, v: One<f64>) -> One<f64> {
        One(sqrt(v.0))
    }
    #[inline(always)]
    fn rounded(self, v: One<f64>) -> One<f64> {
        One(v.0 as f32 as f64)
    }
    #[inline(always)]
    unsafe fn store_rounded(self, v: One<f64>, p: *mut f32) {
        // SAFETY: by the caller.
        unsafe { *p = v.0 as f32 }
    }

    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> One<f32> {
        // SAFETY: by the caller.
        One(half::widen_f16(unsafe { *p }))
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn store_f16<const PAST: bool>(v: One<f32>, p: *mut u16) {
        // SAFETY: by the caller.
        unsafe { *p = half::narrow_f16(v.0) }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn load_bf16<const DEALT: bool>(self, p: *const u16) -> One<f32> {
        // SAFETY: by the caller.
        One(half::widen_bf16(unsafe { *p }))
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn store_bf16<const PAST: bool, const DEALT: bool>(v: One<f32>, p: *mut u16) {
        // SAFETY: by the caller.
        unsafe { *p = half::narrow_bf16(v.0) }
    }
}

macro_rules! operator {
    ($op:ident, $f:ident) => {
        impl<S: Scalar> $op for One<S> {
            type Output = Self;
            #[inline(always)]
            fn $f(self, o: Self) -> Self {
                One(self.0.$f(o.0))
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
    fn splat(_: Single, value: S) -> Self {
        One(value)
    }
    #[inline(always)]
    unsafe fn load(_: Single, p: *const S) -> Self {
        // SAFETY: by the caller.
        One(unsafe { *p })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut S) {
        // SAFETY: by the caller.
        unsafe { *p = self.0 }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // + 0 for the sign of 0.
        One(if self.0 < S::ZERO { S::ZERO - self.0 } else { self.0 + S::ZERO })
    }
    #[inline(always)]
    fn clear_below(self, n: usize) -> Self {
        if n > 0 { One(S::ZERO) } else { self }
    }
    #[inline(always)]
    fn lt(self, other: Self) -> bool {
        self.0 < other.0
    }
    #[inline(always)]
    fn finite(self) -> bool {
        // ∞·0 is NaN.
        self.0 * S::ZERO == S::ZERO
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
        [One(self.0.to_f64()); 2]
    }
}
