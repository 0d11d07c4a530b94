//! The four kernels, as arithmetic on vectors. How memory is walked is the business of
//! [`crate::layout`]; which instructions do it, of [`crate::lanes`].
//!
//! Two shapes of kernel cover batch normalization: a [`Reduction`] (moments, backward sums) turns
//! each channel into a few f64 sums; a [`Map`] (normalize, backward apply) turns each element into
//! another, with a few constants per channel. Both say their arithmetic once, generic over
//! [`Real`]: vectors of f32 in the fast path, f64 one by one where that would not be right.
//!
//! Nothing here takes or returns a closure over vectors, nor do the walkers: a closure is compiled
//! without the `#[target_feature]` of the shell it ends up in, and ran 20 times slower.

pub(crate) mod backward_apply;
pub(crate) mod backward_sums;
pub(crate) mod moments;
pub(crate) mod normalize;

use crate::element::Element;
use crate::lanes::{Real, Scalar, Vector};

/// The weights with which a part of `nb` elements joins `na` earlier ones.
#[derive(Clone, Copy)]
pub(crate) struct Join<R> {
    /// nb / (na + nb)
    pub(crate) share: R,
    /// na · nb / (na + nb)
    pub(crate) weight: R,
}

impl Join<f64> {
    #[inline(always)]
    pub(crate) fn new(na: u64, nb: u64) -> Self {
        let share = nb as f64 / (na + nb) as f64;
        Join { share, weight: na as f64 * share }
    }

    /// In every lane.
    #[inline(always)]
    pub(crate) fn splat<V: Vector<Scalar = f64>>(self, token: V::Token) -> Join<V> {
        Join { share: V::splat(token, self.share), weight: V::splat(token, self.weight) }
    }
}

/// The number n of elements that sums are over, and what follows from it.
#[derive(Clone, Copy)]
pub(crate) struct Count<R> {
    /// 1/n
    pub(crate) per_n: R,
    /// Sums of squares below this may have lost digits to underflow.
    pub(crate) tiny: R,
    /// The largest finite number.
    pub(crate) max: R,
}

impl Count<f64> {
    #[inline(always)]
    pub(crate) fn new<S: Scalar>(n: u64) -> Self {
        Count { per_n: 1.0 / n as f64, tiny: n as f64 * S::TINY, max: f64::MAX }
    }

    /// In every lane.
    #[inline(always)]
    pub(crate) fn splat<V: Vector<Scalar = f64>>(self, token: V::Token) -> Count<V> {
        Count { per_n: V::splat(token, self.per_n), tiny: V::splat(token, self.tiny), max: V::splat(token, self.max) }
    }
}

/// Sums over a channel: `I` inputs, `J` values of each element that are summed from, `K` constants
/// per channel, `N` sums.
pub(crate) trait Reduction<E: Element, const I: usize, const J: usize, const K: usize, const N: usize>:
    Sync
{
    /// Whether constant 0 is a pivot that each block makes from its own elements. Otherwise it is
    /// one pivot per channel.
    const PIVOT_PER_BLOCK: bool;
    /// The value (of the `J`) that the pivot is a mean of.
    const PIVOT_OF: usize;
    /// How often [`Reduction::addends`] goes over a block when it is done again in f64.
    const PASSES: usize;

    /// Whether there is a pivot at all; else it is 0.
    fn pivots(&self) -> bool;
    /// From what is stored to what is summed: activation masks, in the element's arithmetic.
    fn values<V: Vector>(&self, token: V::Token, x: [V; I]) -> [V; J];
    /// What one element adds to each sum.
    fn addends<R: Real>(&self, v: [R; J], k: [R; K]) -> [R; N];
    /// Constants 1 and up of a channel.
    fn constant(&self, channel: usize, which: usize) -> E::Compute;
    /// From sums over a block to its result, and whether it can be trusted.
    fn settle<R: Real>(k: [R; K], sums: [R; N], count: Count<R>) -> ([R; N], R::Mask);
    /// Better constants for the next pass in f64.
    fn recentre(k: [f64; K], sums: [f64; N], per_n: f64) -> [f64; K];
    /// The result from sums that were made in f64.
    fn settle_wide(k: [f64; K], sums: [f64; N], per_n: f64) -> [f64; N];
    /// Joins the results of two parts.
    fn join<R: Real>(a: [R; N], b: [R; N], join: Join<R>) -> [R; N];
}

/// The constants of one channel for a [`Map`].
#[derive(Clone, Copy)]
pub(crate) struct Coefficients<const K: usize> {
    /// Rounded to the element's arithmetic, with what the rounding lost folded into the last ones.
    pub(crate) narrow: [f64; K],
    /// For the same formula in f64.
    pub(crate) wide: [f64; K],
    /// Whether the narrow ones suffice.
    pub(crate) safe: bool,
}

/// Elementwise: `I` inputs, `J` of them (after activation masks) in the formula, `K` constants per
/// channel, `O` outputs.
pub(crate) trait Map<E: Element, const I: usize, const J: usize, const K: usize, const O: usize>: Sync {
    /// Whether results that are not finite are calculated again in f64.
    const CHECKED: bool;

    /// The constants of a channel.
    fn coefficients(&self, channel: usize) -> Coefficients<K>;
    /// From what is stored to what the formula takes.
    fn before<V: Vector>(&self, token: V::Token, x: [V; I]) -> [V; J];
    /// The formula; in f64 for channels whose constants or results leave the range of f32.
    fn formula<R: Real>(&self, v: [R; J], k: [R; K]) -> R;
    /// From the formula's result to what is stored.
    fn after<V: Vector>(&self, token: V::Token, x: [V; I], v: [V; J], result: V) -> [V; O];
}

/// Whether a factor may be used in the element's arithmetic: zero, or far from both ends of the
/// range. NaN may: it spoils its channel in any arithmetic.
#[inline(always)]
pub(crate) fn factor_is_safe<S: Scalar>(v: f64) -> bool {
    let a = v.abs();
    a == 0.0 || a.is_nan() || (S::SAFE_MIN..=S::SAFE_MAX).contains(&a)
}
