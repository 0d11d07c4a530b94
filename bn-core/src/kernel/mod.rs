//! The four kernels, as arithmetic on vectors. How memory is walked is the business of
//! [`crate::layout`]; which instructions do it, of [`crate::lanes`].
//!
//! Two shapes of kernel cover batch normalization: a [`Reduction`] (moments, backward sums) turns
//! each channel into a few f64 sums; a [`Map`] (normalize, backward apply) turns each element into
//! another, with a few constants per channel. Both say their arithmetic once, generic over
//! [`Real`]: vectors of f32 in the fast path, f64 one by one where that would not be right.
//!
//! Nothing here takes or returns a closure over vectors, nor do the walkers: a closure is compiled
//! without the `#[target_feature]` of the shell it ends up in, and ran at a tenth of the speed or less.

pub(crate) mod backward_apply;
pub(crate) mod backward_sums;
pub(crate) mod constants;
pub(crate) mod moments;
pub(crate) mod normalize;

use crate::double::{exceeds, is_below, is_nan, is_zero};
use crate::element::Element;
use crate::lanes::{Base, Lanes, Real, Scalar};
use crate::layout::Channels;
use constants::GROUP;
use core::ops::{Deref, DerefMut};

/// Sums over a channel: `I` inputs, `J` values of each element that are summed from, `K` constants
/// per channel, `N` sums.
pub(crate) trait Reduction<E: Element, const I: usize, const J: usize, const K: usize, const N: usize>:
    Sync
{
    /// Whether constant 0 is a pivot that each cell makes from its own elements. Otherwise it is one
    /// pivot per channel.
    const PIVOT_PER_CELL: bool;
    /// The value (of the `J`) that the pivot is a mean of.
    const PIVOT_OF: usize;
    /// How often [`Reduction::addends`] goes over a cell when it is done again in f64.
    const PASSES: usize;

    /// Constants of the whole call.
    type Ready<R: Real>: Copy;

    fn ready<R: Real>(&self, token: R::Token) -> Self::Ready<R>;
    /// Whether there is a pivot at all; else it is 0.
    fn pivots(&self) -> bool;
    /// From what is stored to what is summed: activation masks, in the element's arithmetic.
    fn values<R: Real>(ready: &Self::Ready<R>, x: [R; I]) -> [R; J];
    /// What one element adds to each sum.
    fn addends<R: Real>(v: [R; J], k: [R; K]) -> [R; N];
    /// Constants 1 and up of a channel; none by default.
    #[inline(always)]
    fn constant(&self, _channel: usize, _which: usize) -> E::Compute {
        E::Compute::ZERO
    }
    /// The same of neighbouring channels from `first` on, at most [`MOST_LANES`](crate::layout::MOST_LANES).
    #[inline(always)]
    fn constants(&self, _first: usize, _which: usize, _to: &mut [E::Compute]) {}
    /// Whether an element that equals the pivot adds 0 to every sum.
    fn zero_at_pivot(&self) -> bool;
    /// Whether sums over `n` elements that were made in the element's arithmetic can be trusted.
    fn good(&self, sums: &[f64; N], n: f64) -> bool;
    /// Where they cannot, a better pivot with which sums in the element's arithmetic may do.
    fn repivot(k: [f64; K], sums: &[f64; N], n: f64) -> Option<E::Compute>;
    /// From sums over a cell to its result.
    fn settle(k: [f64; K], sums: [f64; N], per_n: f64) -> [f64; N];
    /// Better constants for the next pass in f64.
    fn recentre(k: [f64; K], sums: [f64; N], per_n: f64) -> [f64; K];
}

/// A number of each of some neighbouring channels. They begin a cache line: elsewhere on the stack a vector of them lay across two
/// pages where the stack happened to lie so, and sums of 32×512×1×1 took 10 µs instead of 8.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_os = "none"), repr(align(64)))]
pub(crate) struct Line<S, const M: usize>([S; M]);

impl<S: Copy, const M: usize> Line<S, M> {
    #[inline(always)]
    pub(crate) const fn splat(value: S) -> Self {
        Line([value; M])
    }
}

impl<S, const M: usize> Deref for Line<S, M> {
    type Target = [S; M];
    #[inline(always)]
    fn deref(&self) -> &[S; M] {
        &self.0
    }
}

impl<S, const M: usize> DerefMut for Line<S, M> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [S; M] {
        &mut self.0
    }
}

/// What a channel has of something.
pub(crate) trait OfChannel<R>: Sync {
    fn of(&self, channel: usize) -> R;
    /// What neighbouring channels have, from `first` on: one call instead of one for each. Nothing on bare metal, where nobody
    /// asks.
    fn of_each(&self, first: usize, to: &mut [R]) {
        each_of(self, first, to);
    }
}

/// The same, asked one by one.
#[inline(always)]
pub(crate) fn each_of<R>(of: &(impl OfChannel<R> + ?Sized), first: usize, to: &mut [R]) {
    if !cfg!(target_os = "none") || !Base::SINGLE {
        for (i, to) in to.iter_mut().enumerate() {
            *to = of.of(first + i);
        }
    }
}

impl<R, F: Fn(usize) -> R + Sync> OfChannel<R> for F {
    #[inline(always)]
    fn of(&self, channel: usize) -> R {
        self(channel)
    }
}

/// What some channels have, at most `M`; what stands behind them is anything.
#[inline(always)]
pub(crate) fn of_some<const M: usize>(of: &dyn OfChannel<f64>, channels: Channels) -> Line<f64, M> {
    let mut some = Line::splat(0.0);
    if M == 1 {
        some[0] = of.of(channels.first);
    } else if let Some(some) = some.get_mut(..channels.end - channels.first) {
        of.of_each(channels.first, some);
    }
    some
}

/// The constants of one channel for a [`Map`].
#[derive(Clone, Copy)]
pub(crate) struct Coefficients<S, const K: usize> {
    /// In the element's arithmetic, with what the rounding lost folded into the last ones.
    pub(crate) narrow: [S; K],
    /// For the same formula in f64, where those do not suffice.
    pub(crate) wide: [f64; K],
    /// Whether the narrow ones suffice.
    pub(crate) safe: bool,
}

/// Elementwise: `I` inputs, `J` of them (after activation masks) in the formula, `K` constants per
/// channel, `O` outputs.
pub(crate) trait Map<E: Element, const I: usize, const J: usize, const K: usize, const O: usize>: Sync {
    /// Constants of the whole call.
    type Ready<R: Real>: Copy;

    fn ready<R: Real>(&self, token: R::Token) -> Self::Ready<R>;
    /// The constants of a channel.
    fn coefficients(&self, channel: usize) -> Coefficients<E::Compute, K>;
    /// Those of several at once: see [`constants::Source::group`].
    fn group(&self, first: usize, to: &mut [Line<E::Compute, GROUP>; K]) -> bool;
    /// From what is stored to what the formula takes.
    fn before<R: Real>(ready: &Self::Ready<R>, x: [R; I]) -> [R; J];
    /// The formula; in f64 for channels whose constants or results leave the range of f32.
    fn formula<R: Real>(v: [R; J], k: [R; K]) -> R;
    /// What is added to the formula's result: a residual.
    fn join<R: Real>(&self, v: [R; J], result: R) -> R;
    /// Whether a sum that is not finite is to be made again beyond the range of the element's arithmetic, for the sake
    /// of what follows it or of terms that cancel.
    fn checked(&self) -> bool;
    /// Whether there may be channels whose constants do not suffice, so that f64 is needed.
    const EXACT: bool;
    /// The first output again, from constants that suffice, where the sum is not finite; `None` where f64 is to do that.
    fn beyond(&self, v: [E::Compute; J], k: [E::Compute; K]) -> Option<E::Compute>;
    /// From the sum to what is stored.
    fn outputs<R: Real>(ready: &Self::Ready<R>, v: [R; J], sum: R) -> [R; O];
}

/// Whether a factor may be used in the element's arithmetic: zero, or far from both ends of the
/// range. NaN may: it spoils its channel in any arithmetic.
#[inline(always)]
pub(crate) fn factor_is_safe<S: Scalar>(v: f64) -> bool {
    // No jumps: what follows would be there once for each.
    is_zero(v) | is_nan(v) | !(is_below(v, S::SAFE_MIN) | exceeds(v, S::SAFE_MAX))
}
