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
//! 4. Where x was overwritten by y, the same sums over y in place of x, and β in place of the mean, are
//!    those sums times γ/σ.
//! 5. Sums as in [`super::moments`]: 16, 16, then f64; a cell whose products overflow or underflow
//!    is done again in f64.

use super::{OfChannel, Reduction, of_some};
use crate::activation::{ANY, Rectifier, Rectify, UNDO};
use crate::double::{is_below, is_finite};
use crate::element::Element;
use crate::lanes::{Real, Scalar};
use crate::layout::{Channels, MOST_LANES};

/// Σ e and Σ e·(x − μ), relative to the pivot, for a kind of activation. (One kernel with an inverse that does nothing where x is
/// read was a third slower in cache.)
#[derive(Clone, Copy)]
pub(crate) struct GradientSums<'a, S, const KIND: u8> {
    pub(crate) activation: &'a Rectifier<S>,
    /// Where x is taken from y: the factor of negative values that undoes the activation. Else 1.
    pub(crate) inverse: S,
    /// Whether dy loses its mean. Not with frozen statistics: there Σ (x − mean) is not 0, and the
    /// gradients of the parameters are wanted as they are.
    pub(crate) pivot: bool,
    /// Whether the third sum is wanted, where there is one.
    pub(crate) measure: bool,
    /// μ of a channel.
    pub(crate) centre: &'a dyn OfChannel<f64>,
}

impl<'a, S: Scalar> GradientSums<'a, S, ANY> {
    /// The same for what is known of the activation.
    pub(crate) fn as_kind<const KIND: u8>(&self) -> GradientSums<'a, S, KIND> {
        let GradientSums { activation, inverse, pivot, measure, centre } = *self;
        GradientSums { activation, inverse, pivot, measure, centre }
    }
}

macro_rules! reduction {
    ([$($generic:tt)*] $kind:ident, $i:literal, $n:literal, |$ready:ident, $x:ident| $values:expr, |$e:ident, $d:ident| $addends:expr) => {
        impl<E: Element, $($generic)*> Reduction<E, $i, 2, 2, $n> for GradientSums<'_, E::Compute, $kind> {
            const PIVOT_PER_CELL: bool = false;
            const PIVOT_OF: usize = 1;
            const PASSES: usize = 1;

            /// What undoes the activation, and the activation.
            type Ready<R: Real> = (R, Rectify<R>);

            #[inline(always)]
            fn ready<R: Real>(&self, token: R::Token) -> (R, Rectify<R>) {
                (R::constant(token, self.inverse), self.activation.rectify(token))
            }
            #[inline(always)]
            fn pivots(&self) -> bool {
                self.pivot
            }
            #[inline(always)]
            fn values<R: Real>($ready: &(R, Rectify<R>), $x: [R; $i]) -> [R; 2] {
                $values
            }
            #[inline(always)]
            fn addends<R: Real>([x, dy]: [R; 2], [k, mu]: [R; 2]) -> [R; $n] {
                let ($e, $d) = (dy - k, x - mu);
                $addends
            }
            #[inline(always)]
            fn constant(&self, channel: usize, _: usize) -> E::Compute {
                E::Compute::from_f64(self.centre.of(channel))
            }
            #[inline(always)]
            fn constants(&self, first: usize, _: usize, to: &mut [E::Compute]) {
                let mean = of_some::<MOST_LANES>(self.centre, Channels { first, end: first + to.len() });
                for (to, &mean) in to.iter_mut().zip(&*mean) {
                    *to = E::Compute::from_f64(mean);
                }
            }
            #[inline(always)]
            fn zero_at_pivot(&self) -> bool {
                $n == 2 || !self.measure
            }
            #[inline(always)]
            fn good(&self, sums: &[f64; $n], n: f64) -> bool {
                let mut good = !is_below(sums[1], n * E::Compute::TINY);
                for i in 0..$n {
                    good &= is_finite(sums[i]) || (i == 2 && !self.measure);
                }
                good
            }
            #[inline(always)]
            fn repivot(_: [f64; 2], _: &[f64; $n], _: f64) -> Option<E::Compute> {
                None
            }
            #[inline(always)]
            fn settle(_: [f64; 2], sums: [f64; $n], _: f64) -> [f64; $n] {
                sums
            }
            #[inline(always)]
            fn recentre(k: [f64; 2], _: [f64; $n], _: f64) -> [f64; 2] {
                k
            }
        }
    };
}

// Σ e, Σ e·d; and Σ d. Inputs x, dy; with an activation x, dy, y.
reduction!([] ANY, 2, 2, |_ready, x| x, |e, d| [e, e * d]);
reduction!([] ANY, 2, 3, |_ready, x| x, |e, d| [e, e * d, d]);
reduction!([const KIND: u8] KIND, 3, 2, |ready, x| ready.1.masked::<KIND>(ready.0, x), |e, d| [e, e * d]);
reduction!([] ANY, 3, 3, |ready, x| ready.1.masked::<ANY>(ready.0, x), |e, d| [e, e * d, d]);
// Inputs y, dy.
reduction!([] UNDO, 2, 2, |ready, x| ready.1.undone(ready.0, x), |e, d| [e, e * d]);
