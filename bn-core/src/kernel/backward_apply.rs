//! dx from the two sums.
//!
//! ```text
//! dx = γ/σ · (dy − Σdy/n − x̂·Σ(dy·x̂)/n),   x̂ = (x − mean)/σ,   σ² = m2/n + ε
//!
//! naive:  for (x, dy) { dx = s·(dy − dbeta/n − (x − mean)·dot/(n·σ²)) }
//! ```
//! (Ioffe & Szegedy 2015, section 3, with the sums gathered.) What is done instead, and why:
//! 1. With c = dot/(m2 + n·ε), E = dbeta/n, and each mean split into a rounded part and the rest:
//!    dx = s·((dy − E_hi) − ((x − μ_hi)·c + b)), where b = E_lo − μ_lo·c holds what is left of both
//!    means. Four additions, two products, five constants; no division.
//! 2. Channels whose constants leave the safe range take the same formula in f64.
//! 3. dy − E may overflow although dx is small, and no constant tells: results that are not finite
//!    are calculated again in f64, element by element.

use super::constants::{GROUP, Group, Source, inside, put, room, some};
use super::normalize::scales;
use super::{Coefficients, Line, Map, factor_is_safe};
use crate::activation::{ANY, Rectifier, Rectify, UNDO};
use crate::double::{exceeds, is_below, is_zero};
use crate::element::Element;
use crate::lanes::{Lanes, Real, Scalar, Vector};

/// The constants E_hi, μ_hi, c, b, s of a channel.
///
/// `sigma` is √(m2/n + ε), for judging whether c·(x − μ) keeps its digits.
#[inline(always)]
pub(crate) fn constants<S: Scalar>([e, mean, c, s]: [f64; 4], sigma: f64, reach: f64) -> Coefficients<S, 5> {
    let (e_high, mean_high) = (S::from_f64(e), S::from_f64(mean));
    let b = (e - e_high.to_f64()) - (mean - mean_high.to_f64()) * c;
    let slope = c * sigma;
    // With c = 0 what is left of the mean decides; else c·(x − μ), whose usual size is |c|·σ.
    let digits = if is_zero(c) { is_zero(b) || !is_below(b, S::SAFE_MIN) } else { !is_below(slope, S::TINY) };
    let safe = factor_is_safe::<S>(s)
        && factor_is_safe::<S>(c)
        && digits
        && !exceeds(e, S::SAFE_MAX)
        && !exceeds(b, S::SAFE_MAX)
        && !exceeds(reach, S::SAFE_MAX * 32.0);
    let narrow = [e_high, mean_high, S::from_f64(c), S::from_f64(b), S::from_f64(s)];
    Coefficients { narrow, wide: [e, mean, c, 0.0, s], safe }
}

/// What the constants of several channels are made of.
pub(crate) struct Parts {
    pub(crate) mean: Group,
    pub(crate) m2: Group,
    /// Values that m2 is of.
    pub(crate) n: Group,
    pub(crate) gamma: Group,
    pub(crate) dbeta: Group,
    pub(crate) dot: Group,
}

/// The narrow [`constants`] of several channels; `false` where c is 0, or a number outside what is safe.
#[inline(always)]
pub(crate) fn constants_of_group<L: Lanes, S: Scalar>(
    lanes: L,
    to: &mut [Line<S, GROUP>; 5],
    p: &Parts,
    epsilon: f64,
) -> bool {
    let (mut inside_all, mut at) = (true, 0);
    while at < GROUP {
        let (m2, n, mean) = (some(lanes, &p.m2, at), some(lanes, &p.n, at), some(lanes, &p.mean, at));
        let variance = lanes.quotient(m2, n);
        let sigma2 = variance + L::F64::splat(lanes, epsilon);
        let sigma = lanes.root(sigma2);
        let c = lanes.quotient(some(lanes, &p.dot, at), n * sigma2);
        let s = scales(lanes, sigma, some(lanes, &p.gamma, at));
        let e = lanes.quotient(some(lanes, &p.dbeta, at), n);
        let (e_high, mean_high) = (S::rounded(lanes, e), S::rounded(lanes, mean));
        let b = (e - e_high) - (mean - mean_high) * c;
        put(lanes, e_high, &mut to[0], at);
        put(lanes, mean_high, &mut to[1], at);
        put(lanes, c, &mut to[2], at);
        put(lanes, b, &mut to[3], at);
        put(lanes, s, &mut to[4], at);
        // Not with σ² = 0, whose inverse is infinite here, nor with c = 0.
        // (m2 is what the caller says: it may be negative.)
        let sizes = ((c.abs() + s.abs()) + (e.abs() + b.abs())) + (variance * n).abs();
        let slope = (c * sigma).abs() * L::F64::splat(lanes, 1.0 / S::TINY);
        let least = c.abs() * L::F64::splat(lanes, 1.0 / S::SAFE_MIN);
        let rooms = slope.at_most(least).at_most(room::<L, S>(lanes, s));
        inside_all &= inside(lanes, sizes, S::SAFE_MAX, rooms);
        at += <L::F64 as Vector>::WIDTH;
    }
    inside_all
}

/// The same of frozen statistics, from their variances.
#[inline(always)]
pub(crate) fn scales_of_group<L: Lanes, S: Scalar>(
    lanes: L,
    to: &mut [Line<S, GROUP>; 1],
    variance: &Group,
    gamma: &Group,
    epsilon: f64,
) -> bool {
    let (mut inside_all, mut at) = (true, 0);
    while at < GROUP {
        let sigma = lanes.root(some(lanes, variance, at) + L::F64::splat(lanes, epsilon));
        let s = scales(lanes, sigma, some(lanes, gamma, at));
        put(lanes, s, &mut to[0], at);
        inside_all &= inside(lanes, s.abs(), S::SAFE_MAX, room::<L, S>(lanes, s));
        at += <L::F64 as Vector>::WIDTH;
    }
    inside_all
}

/// The elementwise part of the backward pass through batch statistics, for a kind of activation.
#[derive(Clone, Copy)]
pub(crate) struct Apply<'a, S, const KIND: u8> {
    pub(crate) activation: &'a Rectifier<S>,
    /// Where x is taken from y: the factor of negative values that undoes the activation. Else 1.
    pub(crate) inverse: S,
    /// The constants of a channel.
    pub(crate) coefficients: &'a dyn Source<S, 5>,
}

/// The backward pass through frozen statistics: dx = s·dy.
#[derive(Clone, Copy)]
pub(crate) struct ApplyFrozen<'a, S> {
    pub(crate) activation: &'a Rectifier<S>,
    /// s of a channel.
    pub(crate) coefficients: &'a dyn Source<S, 1>,
}

impl<'a, S: Scalar> Apply<'a, S, ANY> {
    /// The same for what is known of the activation.
    pub(crate) fn as_kind<const KIND: u8>(&self) -> Apply<'a, S, KIND> {
        Apply { activation: self.activation, inverse: self.inverse, coefficients: self.coefficients }
    }
}

impl<S: Scalar, const KIND: u8> Apply<'_, S, KIND> {
    fn inverse(&self) -> S {
        self.inverse
    }
}

impl<S: Scalar> ApplyFrozen<'_, S> {
    fn inverse(&self) -> S {
        S::ONE
    }
}

macro_rules! map {
    ([$($generic:tt)*] $op:ty, $k:literal, $i:literal, $j:literal, $o:literal, |$v:ident, $c:ident| $formula:expr,
     |$ready:ident, $x:ident| $before:expr, |$w:ident, $dx:ident| $outputs:expr) => {
        impl<E: Element, $($generic)*> Map<E, $i, $j, $k, $o> for $op {
            const EXACT: bool = true;
            type Ready<R: Real> = (R, Rectify<R>);

            #[inline(always)]
            fn ready<R: Real>(&self, token: R::Token) -> (R, Rectify<R>) {
                (R::constant(token, self.inverse()), self.activation.rectify(token))
            }
            #[inline(always)]
            fn coefficients(&self, channel: usize) -> Coefficients<E::Compute, $k> {
                self.coefficients.of(channel)
            }
            #[inline(always)]
            fn group(&self, first: usize, to: &mut [Line<E::Compute, GROUP>; $k]) -> bool {
                self.coefficients.group(first, to)
            }
            #[inline(always)]
            fn before<R: Real>($ready: &(R, Rectify<R>), $x: [R; $i]) -> [R; $j] {
                $before
            }
            #[inline(always)]
            fn formula<R: Real>($v: [R; $j], $c: [R; $k]) -> R {
                $formula
            }
            #[inline(always)]
            fn join<R: Real>(&self, _: [R; $j], result: R) -> R {
                result
            }
            #[inline(always)]
            fn checked(&self) -> bool {
                $k > 1
            }
            #[inline(always)]
            fn beyond(&self, _: [E::Compute; $j], _: [E::Compute; $k]) -> Option<E::Compute> {
                None
            }
            #[inline(always)]
            fn outputs<R: Real>(_: &(R, Rectify<R>), $w: [R; $j], $dx: R) -> [R; $o] {
                $outputs
            }
        }
    };
}

macro_rules! batch {
    ([$($generic:tt)*] $kind:ident, $i:literal, $o:literal, |$ready:ident, $x:ident| $before:expr, |$w:ident, $dx:ident| $outputs:expr) => {
        map!(
            [$($generic)*] Apply<'_, E::Compute, $kind>,
            5,
            $i,
            2,
            $o,
            |v, k| ((v[1] - k[0]) - ((v[0] - k[1]) * k[2] + k[3])) * k[4],
            |$ready, $x| $before,
            |$w, $dx| $outputs
        );
    };
}

macro_rules! frozen {
    ($i:literal, $o:literal, |$ready:ident, $x:ident| $before:expr, |$w:ident, $dx:ident| $outputs:expr) => {
        map!([] ApplyFrozen<'_, E::Compute>, 1, $i, 1, $o, |v, k| v[0] * k[0], |$ready, $x| $before, |$w, $dx| $outputs);
    };
}

// Inputs x, dy; with an activation x, dy, y. Outputs dx; with a residual dx, dresidual.
batch!([] ANY, 2, 1, |_ready, x| x, |_v, dx| [dx]);
batch!([] ANY, 2, 2, |_ready, x| x, |v, dx| [dx, v[1]]);
batch!([const KIND: u8] KIND, 3, 1, |ready, x| ready.1.masked::<KIND>(ready.0, x), |_v, dx| [dx]);
batch!([const KIND: u8] KIND, 3, 2, |ready, x| ready.1.masked::<KIND>(ready.0, x), |v, dx| [dx, v[1]]);
// Inputs y, dy.
batch!([] UNDO, 2, 1, |ready, x| ready.1.undone(ready.0, x), |_v, dx| [dx]);
batch!([] UNDO, 2, 2, |ready, x| ready.1.undone(ready.0, x), |v, dx| [dx, v[1]]);
// Inputs dy; with an activation dy, y. (The memory is what they wait for, with whichever mask.)
frozen!(1, 1, |_ready, x| x, |_v, dx| [dx]);
frozen!(1, 2, |_ready, x| x, |v, dx| [dx, v[0]]);
frozen!(2, 1, |ready, x| [ready.1.backward::<ANY>(x[1], x[0])], |_v, dx| [dx]);
frozen!(2, 2, |ready, x| [ready.1.backward::<ANY>(x[1], x[0])], |v, dx| [dx, v[0]]);
