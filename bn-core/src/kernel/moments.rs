//! Mean and sum of squared deviations, in one pass.
//!
//! ```text
//! mean = Σ x / n        m2 = Σ (x − mean)²
//!
//! naive:  mean = 0; for x { mean += x }; mean /= n
//!         m2 = 0;   for x { m2 += (x − mean)·(x − mean) }
//! ```
//! What is done instead, and why:
//! 1. One pass about a pivot k near the mean: d = x − k, s += d, q += d·d; then mean = k + s/n and
//!    m2 = q − s²/n. Memory is read once. A pivot is taken for each block of at most a few thousand
//!    elements, so it is near whatever the data drift to.
//! 2. The subtraction cancels digits only if k is far from the mean; where not 2·m2 ≥ q the block
//!    is done again in f64, in two passes. So is a block whose squares overflow or underflow, and
//!    a constant one.
//! 3. No sum in element precision takes more than 16 addends, or more than 16 sums of 16; then f64.
//! 4. Blocks join in f64 by the formula of Chan, Golub & LeVeque, "Updating formulae and a pairwise
//!    algorithm for computing sample variances" (1979): no division per element, none per channel.

use super::{Count, Join, Reduction};
use crate::element::Element;
use crate::lanes::{Real, Scalar, Vector};

/// The statistics of one input.
#[derive(Clone, Copy)]
pub(crate) struct MomentSums;

impl<E: Element> Reduction<E, 1, 1, 1, 2> for MomentSums {
    const PIVOT_PER_BLOCK: bool = true;
    const PIVOT_OF: usize = 0;
    const PASSES: usize = 2;

    #[inline(always)]
    fn pivots(&self) -> bool {
        true
    }
    #[inline(always)]
    fn values<V: Vector>(&self, _: V::Token, x: [V; 1]) -> [V; 1] {
        x
    }
    #[inline(always)]
    fn addends<R: Real>(&self, [x]: [R; 1], [k]: [R; 1]) -> [R; 2] {
        let d = x - k;
        [d, d * d]
    }
    #[inline(always)]
    fn constant(&self, _: usize, _: usize) -> E::Compute {
        E::Compute::ZERO
    }
    #[inline(always)]
    fn settle<R: Real>([k]: [R; 1], [s, q]: [R; 2], count: Count<R>) -> ([R; 2], R::Mask) {
        let shift = s * count.per_n;
        let m2 = q - s * shift;
        // NaN fails each of them.
        let digits = q.le(m2 + m2);
        let range = R::both(count.tiny.le(q), q.le(count.max));
        ([k + shift, m2], R::both(digits, range))
    }
    #[inline(always)]
    fn recentre([k]: [f64; 1], [s, _]: [f64; 2], per_n: f64) -> [f64; 1] {
        [k + s * per_n]
    }
    #[inline(always)]
    fn settle_wide([k]: [f64; 1], [s, q]: [f64; 2], per_n: f64) -> [f64; 2] {
        // The second term corrects for the rounding of the mean. What is negative is rounding; NaN
        // stays.
        let m2 = q - s * (s * per_n);
        [k + s * per_n, if m2 < 0.0 { 0.0 } else { m2 }]
    }
    #[inline(always)]
    fn join<R: Real>(a: [R; 2], b: [R; 2], join: Join<R>) -> [R; 2] {
        let delta = b[0] - a[0];
        [a[0] + delta * join.share, a[1] + (b[1] + delta * delta * join.weight)]
    }
}
