//! The four kernels, as arithmetic on vectors. How memory is walked is the business of
//! [`crate::layout`]; which instructions do it, of [`crate::lanes`].
//!
//! Two shapes of kernel cover batch normalization: a [`Reduction`] (moments, backward sums) turns
//! each channel into a few f64 sums; a [`Map`] (normalize, backward apply) turns each element into
//! another, with a few constants per channel.

pub(crate) mod backward_apply;
pub(crate) mod backward_sums;
pub(crate) mod moments;
pub(crate) mod normalize;

use crate::element::Element;
use crate::lanes::{Scalar, Vector};

/// The weights with which a part of `nb` elements joins `na` earlier ones.
#[derive(Clone, Copy)]
pub(crate) struct Join {
    /// nb / (na + nb)
    pub(crate) share: f64,
    /// na · nb / (na + nb)
    pub(crate) weight: f64,
}

impl Join {
    #[inline(always)]
    pub(crate) fn new(na: u64, nb: u64) -> Self {
        let share = nb as f64 / (na + nb) as f64;
        Join { share, weight: na as f64 * share }
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
    /// From what is stored to what is summed: activation masks. Rounds like any element.
    fn values<V: Vector>(&self, token: V::Token, x: [V; I]) -> [V; J];
    /// What one element adds to each sum.
    fn addends<V: Vector>(&self, v: [V; J], k: [V; K]) -> [V; N];
    /// Constants 1 and up of a channel.
    fn constant(&self, channel: usize, which: usize) -> E::Compute;
    /// From sums over `n` elements to the result of a block, and whether it can be trusted.
    fn settle(k: [f64; K], sums: [f64; N], n: f64, per_n: f64) -> ([f64; N], bool);
    /// Better constants for the next pass in f64.
    fn recentre(k: [f64; K], sums: [f64; N], per_n: f64) -> [f64; K];
    /// The result from sums that were made in f64.
    fn settle_wide(k: [f64; K], sums: [f64; N], per_n: f64) -> [f64; N];
    /// Joins the results of two parts.
    fn join(a: [f64; N], b: [f64; N], join: Join) -> [f64; N];
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
    /// Whether channels may need f64 arithmetic.
    const WIDE: bool;
    /// Whether results that are not finite are calculated again in f64.
    const CHECKED: bool;

    /// The constants of a channel.
    fn coefficients(&self, channel: usize) -> Coefficients<K>;
    /// From what is stored to what the formula takes.
    fn before<V: Vector>(&self, token: V::Token, x: [V; I]) -> [V; J];
    /// The formula; in f64 for channels whose constants or results leave the range of f32.
    fn formula<V: Vector>(&self, v: [V; J], k: [V; K]) -> V;
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
