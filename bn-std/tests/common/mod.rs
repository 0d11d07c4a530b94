//! What several test files share.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod executors;

use bn_core::{Element, Moments, Param};
use core::fmt::Debug;

/// An element type.
pub trait Number: Element + Debug + PartialEq {
    fn of(v: f64) -> Self;
    fn wide(self) -> f64;
    fn bits(self) -> u64;
}

macro_rules! number {
    ($($t:ty, $of:expr, $wide:expr;)*) => {$(
        impl Number for $t {
            fn of(v: f64) -> Self {
                $of(v)
            }
            fn wide(self) -> f64 {
                $wide(self)
            }
            fn bits(self) -> u64 {
                self.to_bits().into()
            }
        }
    )*};
}
number!(f32, |v| v as f32, f64::from; f64, f64::from, f64::from;);
#[cfg(feature = "half")]
number!(half::f16, half::f16::from_f64, f64::from; half::bf16, half::bf16::from_f64, f64::from;);

/// An element type that is its own parameter type.
pub trait Real: Number + Element<Param = Self> + Param {}
impl<T: Number + Element<Param = T> + Param> Real for T {}

/// The first place where the bits differ.
pub fn difference<T: Number>(got: &[T], expected: &[T]) -> Option<String> {
    if got.len() != expected.len() {
        return Some(format!("{} elements, expected {}", got.len(), expected.len()));
    }
    let i = got.iter().zip(expected).position(|(a, b)| a.bits() != b.bits())?;
    Some(format!("element {i} is {:?}, expected {:?}", got[i], expected[i]))
}

#[track_caller]
pub fn assert_bits<T: Number>(what: &str, got: &[T], expected: &[T]) {
    if let Some(difference) = difference(got, expected) {
        panic!("{what}: {difference}");
    }
}

pub fn moment_bits(moments: &[Moments]) -> Vec<[u64; 3]> {
    moments.iter().map(|m| [m.count, m.mean.to_bits(), m.m2.to_bits()]).collect()
}

/// A small generator with known sequence (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// From `low` to `low + 2`.
    pub fn from(&mut self, low: f64) -> f64 {
        low + ((self.next() >> 11) as f64 + 0.5) / (1u64 << 52) as f64
    }
    pub fn values<T: Number>(&mut self, n: usize, low: f64) -> Vec<T> {
        (0..n).map(|_| T::of(self.from(low))).collect()
    }
}
