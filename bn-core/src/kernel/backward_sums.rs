//! The two sums that every gradient of batch normalization is made of.
//!
//! ```text
//! dbeta = Σ dy          dot = Σ dy·(x − mean)
//!
//! naive:  for (x, dy) { dbeta += dy; dot += dy·(x − mean) }
//! ```
//! What is done instead, and why:
//! 1. dy loses a pivot of its own, one per channel (the mean of 16 samples): e = dy − k. Σ e·(x − μ)
//!    then has no part that grows with the mean of dy and would drown the gradient in rounding.
//!    Since Σ (x − mean) = 0 the sums over dy follow exactly.
//! 2. x is centred on μ, the mean rounded to the element's arithmetic; μ is wrong by at most half an
//!    ulp, and Σ e puts that right afterwards.
//! 3. Where Σ (x − mean) is not known to be 0 (a mean that somebody rounded, running statistics),
//!    it is measured as a third sum.
//! 4. Sums as in [`super::moments`]: 16, 16, then f64; a block whose products overflow or underflow
//!    is done again in f64.

use super::{Join, Reduction};
use crate::activation::Activation;
use crate::element::Element;
use crate::lanes::{Scalar, Vector};

/// Σ e and Σ e·(x − μ), relative to the pivot.
#[derive(Clone, Copy)]
pub(crate) struct GradientSums<F> {
    pub(crate) activation: Activation,
    /// Whether dy loses its mean. Not with frozen statistics: there Σ (x − mean) is not 0, and the
    /// gradients of the parameters are wanted as they are.
    pub(crate) pivot: bool,
    /// μ of a channel.
    pub(crate) centre: F,
}

macro_rules! reduction {
    ($i:literal, $n:literal, |$self:ident, $token:ident, $x:ident| $values:expr, |$e:ident, $d:ident| $addends:expr) => {
        impl<E: Element, F: Fn(usize) -> f64 + Sync> Reduction<E, $i, 2, 2, $n> for GradientSums<F> {
            const PIVOT_PER_BLOCK: bool = false;
            const PIVOT_OF: usize = 1;
            const PASSES: usize = 1;

            #[inline(always)]
            fn pivots(&self) -> bool {
                self.pivot
            }
            #[inline(always)]
            fn values<V: Vector>(&$self, $token: V::Token, $x: [V; $i]) -> [V; 2] {
                $values
            }
            #[inline(always)]
            fn addends<V: Vector>(&self, [x, dy]: [V; 2], [k, mu]: [V; 2]) -> [V; $n] {
                let ($e, $d) = (dy - k, x - mu);
                $addends
            }
            #[inline(always)]
            fn constant(&self, channel: usize, _: usize) -> E::Compute {
                E::Compute::from_f64((self.centre)(channel))
            }
            #[inline(always)]
            fn settle(_: [f64; 2], sums: [f64; $n], n: f64, _: f64) -> ([f64; $n], bool) {
                let good = sums[1].abs() >= n * E::Compute::TINY && sums.iter().all(|s| s.is_finite());
                (sums, good)
            }
            #[inline(always)]
            fn recentre(k: [f64; 2], _: [f64; $n], _: f64) -> [f64; 2] {
                k
            }
            #[inline(always)]
            fn settle_wide(_: [f64; 2], sums: [f64; $n], _: f64) -> [f64; $n] {
                sums
            }
            #[inline(always)]
            fn join(a: [f64; $n], b: [f64; $n], _: Join) -> [f64; $n] {
                core::array::from_fn(|i| a[i] + b[i])
            }
        }
    };
}

// Inputs x, dy; x, dy, y with an activation. Sums e, e·d; with a third, d.
reduction!(2, 2, |self, _token, x| x, |e, d| [e, e * d]);
reduction!(2, 3, |self, _token, x| x, |e, d| [e, e * d, d]);
reduction!(3, 2, |self, token, x| [x[0], self.activation.backward(token, x[2], x[1])], |e, d| [e, e * d]);
reduction!(3, 3, |self, token, x| [x[0], self.activation.backward(token, x[2], x[1])], |e, d| [e, e * d, d]);
