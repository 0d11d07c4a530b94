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
//!    m2 = q − s²/n. Memory is read once. k is the mean of 16 samples of the cell.
//! 2. The last subtraction cancels digits only if k is far from the mean; where not 2·m2 ≥ q the
//!    cell is done again about the mean that is now known. Where squares overflow or underflow, or
//!    that did not help, it is done in f64, in two passes.
//! 3. No sum in element precision takes more than 16 addends, or more than 16 sums of 16; then f64.
//! 4. Cells join in f64 by the formula of Chan, Golub & LeVeque, "Updating formulae and a pairwise
//!    algorithm for computing sample variances" (1979).

use super::Reduction;
use crate::double::{is_below, is_finite, less};
use crate::element::Element;
use crate::lanes::{Real, Scalar};

/// The statistics of one input.
#[derive(Clone, Copy)]
pub(crate) struct MomentSums;

impl<E: Element> Reduction<E, 1, 1, 1, 2> for MomentSums {
    const PIVOT_PER_CELL: bool = true;
    const PIVOT_OF: usize = 0;
    const PASSES: usize = 2;

    type Ready<R: Real> = ();

    #[inline(always)]
    fn ready<R: Real>(&self, _: R::Token) {}
    #[inline(always)]
    fn pivots(&self) -> bool {
        true
    }
    #[inline(always)]
    fn values<R: Real>((): &(), x: [R; 1]) -> [R; 1] {
        x
    }
    #[inline(always)]
    fn addends<R: Real>([x]: [R; 1], [k]: [R; 1]) -> [R; 2] {
        let d = x.minus(k);
        [d, d * d]
    }
    #[inline(always)]
    fn zero_at_pivot(&self) -> bool {
        true
    }
    #[inline(always)]
    fn good(&self, &[s, q]: &[f64; 2], n: f64) -> bool {
        let m2 = q - s * (s / n);
        // Both are finite.
        inside::<E>(q, n) && is_finite(m2) && !less(2.0 * m2, q)
    }
    #[inline(always)]
    fn repivot([k]: [f64; 1], &[s, q]: &[f64; 2], n: f64) -> Option<E::Compute> {
        inside::<E>(q, n).then_some(E::Compute::from_f64(k + s / n))
    }
    #[inline(always)]
    fn settle([k]: [f64; 1], [s, q]: [f64; 2], per_n: f64) -> [f64; 2] {
        let shift = s * per_n;
        // What is negative is rounding; NaN stays.
        let m2 = q - s * shift;
        [k + shift, if less(m2, 0.0) { 0.0 } else { m2 }]
    }
    #[inline(always)]
    fn recentre([k]: [f64; 1], [s, _]: [f64; 2], per_n: f64) -> [f64; 1] {
        [k + s * per_n]
    }
}

/// Whether no square of `n` may have left the range.
#[inline(always)]
fn inside<E: Element>(q: f64, n: f64) -> bool {
    is_finite(q) && !is_below(q, n * E::Compute::TINY)
}
