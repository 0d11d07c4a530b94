//! y = act(γ·(x − mean)/√(variance + ε) + β + residual).
//!
//! ```text
//! naive:  a = γ/√(variance + ε); for x { y = (x − mean)·a + β }
//! ```
//! (Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
//! Covariate Shift", 2015, Algorithm 1.) What is done instead, and why:
//! 1. The mean is split: μ_hi is the mean rounded to the element's arithmetic, and what is left
//!    goes into the shift: y = (x − μ_hi)·s + (β − μ_lo·s). x − μ_hi is exact or nearly so where it
//!    matters, near the mean. The usual x·s + (β − mean·s) would lose all digits at large means.
//! 2. s and the shift come from f64, once per channel: two instructions and one constant less per
//!    element than with γ and β apart.
//! 3. A channel whose constants or results may leave the range of f32 takes the same formula in f64.
//! 4. γ·x̂ + β may overflow although a residual or the slope of a leaky ReLU brings it back: there
//!    results that are not finite are made again, times 2⁻¹²⁸ (f32), all the way to y: as if exponents had
//!    no end. The same constants do for that, so that [`crate::Prepared`] ones give the same bits without f64.

use super::constants::{GROUP, Group, Source, inside, put, room, some};
use super::{Coefficients, Line, Map, factor_is_safe};
use crate::activation::{ANY, LIMITS, PLAIN, Rectifier, Rectify};
use crate::double::{exceeds, is_zero, sqrt};
use crate::element::Element;
use crate::lanes::{Base, Lanes, Real, Scalar, Vector};

/// 2⁵⁰: the product of a scale and a reach below it is far below `SAFE_MAX`.
const FAR_INSIDE: f64 = f64::from_bits((1023 + 50) << 52);

/// Mean, scale and shift of a channel in f64, and whether f32 arithmetic is safe there.
///
/// `m2` is Σ (x − mean)² where it is known: in training.
#[inline(always)]
pub(crate) fn split<S: Scalar>(mean: f64, scale: f64, beta: f64, m2: Option<f64>) -> Coefficients<S, 3> {
    let high = S::from_f64(mean);
    let low = mean - high.to_f64();
    let shift = beta - low * scale;
    let inside = match m2 {
        // Far inside, as nearly always: without the root.
        Some(m2) if !exceeds(m2, FAR_INSIDE) && !exceeds(scale, FAR_INSIDE) && !exceeds(beta, FAR_INSIDE) => true,
        // Training: |x − μ| ≤ √m2, and |y − β| ≤ |γ|·√n ≤ scale·√m2 where ε is small.
        Some(m2) => {
            let r = sqrt(m2);
            !exceeds(r, S::SAFE_MAX * 32.0) & !exceeds((scale * r).abs() + beta.abs(), S::SAFE_MAX * 32.0)
        }
        // Inference: x is anything; adding a mean or a beta below 2¹⁰² to it cannot overflow.
        None => {
            let most = const { (S::SAFE_MAX / 262144.0).next_down() };
            !exceeds(mean, most) & !exceeds(beta, most)
        }
    };
    let narrow = [high, S::from_f64(scale), S::from_f64(shift)];
    Coefficients { narrow, wide: [mean, scale, beta], safe: inside & factor_is_safe::<S>(scale) }
}

/// Variances of several channels, or what they are made of.
pub(crate) enum Spread<'a> {
    Variance(&'a Group),
    /// Sums of squares about the means, of so many values.
    Of {
        m2: &'a Group,
        n: &'a Group,
    },
}

/// The narrow constants of several channels by [`split`]; `false` where m2 (or, where that is not known, the mean) or another number is
/// not far inside the range, where ends and special cases are.
#[inline(always)]
pub(crate) fn split_group<L: Lanes, S: Scalar>(
    lanes: L,
    to: &mut [Line<S, GROUP>; 3],
    mean: &Group,
    spread: &Spread<'_>,
    epsilon: f64,
    gamma: &Group,
    beta: &Group,
) -> bool {
    let (mut inside_all, mut at) = (true, 0);
    while at < GROUP {
        let (mean, beta) = (some(lanes, mean, at), some(lanes, beta, at));
        let (variance, reach) = match spread {
            Spread::Variance(variance) => (some(lanes, variance, at), mean),
            Spread::Of { m2, n } => {
                let m2 = some(lanes, m2, at);
                (lanes.quotient(m2, some(lanes, n, at)), m2)
            }
        };
        // 0 gives infinity here, and then a scale that is not inside.
        let sigma = lanes.root(variance + L::F64::splat(lanes, epsilon));
        let scale = scales(lanes, sigma, some(lanes, gamma, at));
        let high = S::rounded(lanes, mean);
        let shift = beta - (mean - high) * scale;
        put(lanes, high, &mut to[0], at);
        put(lanes, scale, &mut to[1], at);
        put(lanes, shift, &mut to[2], at);
        // Not with NaN, nor with a mean that is no number of S beside an m2 that is: then the shift is none.
        let sizes = (shift.abs() + reach.abs()) + (beta.abs() + scale.abs());
        inside_all &= inside(lanes, sizes, FAR_INSIDE, room::<L, S>(lanes, scale));
        at += <L::F64 as Vector>::WIDTH;
    }
    inside_all
}

/// γ/σ of several channels.
#[inline(always)]
pub(crate) fn scales<L: Lanes>(lanes: L, sigma: L::F64, gamma: L::F64) -> L::F64 {
    gamma * lanes.quotient(L::F64::splat(lanes, 1.0), sigma)
}

/// [`inverse_std`] of several channels.
#[inline(always)]
pub(crate) fn inverse_stds<L: Lanes>(lanes: L, variance: L::F64, epsilon: f64) -> L::F64 {
    let v = variance + L::F64::splat(lanes, epsilon);
    let inverse = lanes.quotient(L::F64::splat(lanes, 1.0), lanes.root(v));
    <L::F64>::select(v.abs().lt(L::F64::splat(lanes, f64::from_bits(1))), L::F64::splat(lanes, 0.0), inverse)
}

/// 1/√(variance + ε), and 0 where that is 1/0: a constant channel with ε = 0 gives β.
#[inline(always)]
pub(crate) fn inverse_std(variance: f64, epsilon: f64) -> f64 {
    let v = variance + epsilon;
    if is_zero(v) { 0.0 } else { 1.0 / sqrt(v) }
}

/// The elementwise part of the forward pass, for a kind of activation; exact where a channel's constants may ask for f64.
#[derive(Clone, Copy)]
pub(crate) struct Normalize<'a, S, const KIND: u8, const EXACT: bool> {
    pub(crate) activation: &'a Rectifier<S>,
    /// Whether the second input counts, where there is one.
    pub(crate) residual: bool,
    /// The constants of a channel.
    pub(crate) coefficients: &'a dyn Source<S, 3>,
}

macro_rules! map {
    ($i:literal, |$v:ident, $z:ident| $join:expr) => {
        impl<E: Element, const KIND: u8, const EXACT: bool> Map<E, $i, $i, 3, 1>
            for Normalize<'_, E::Compute, KIND, EXACT>
        {
            const EXACT: bool = EXACT;
            type Ready<R: Real> = Rectify<R>;

            #[inline(always)]
            fn ready<R: Real>(&self, token: R::Token) -> Rectify<R> {
                self.activation.rectify(token)
            }
            #[inline(always)]
            fn coefficients(&self, channel: usize) -> Coefficients<E::Compute, 3> {
                self.coefficients.of(channel)
            }
            #[inline(always)]
            fn group(&self, first: usize, to: &mut [Line<E::Compute, GROUP>; 3]) -> bool {
                self.coefficients.group(first, to)
            }
            #[inline(always)]
            fn before<R: Real>(_: &Rectify<R>, x: [R; $i]) -> [R; $i] {
                x
            }
            #[inline(always)]
            fn formula<R: Real>(v: [R; $i], [mean, scale, shift]: [R; 3]) -> R {
                (v[0] - mean) * scale + shift
            }
            #[inline(always)]
            fn join<R: Real>(&self, $v: [R; $i], $z: R) -> R {
                // Vectors come without the second input where it does not count.
                if Base::SINGLE && !self.residual { $z } else { $join }
            }
            #[inline(always)]
            fn checked(&self) -> bool {
                ($i == 2 && self.residual) || (KIND == ANY && self.activation.shrinks())
            }
            #[inline(always)]
            fn beyond(&self, v: [E::Compute; $i], [mean, scale, shift]: [E::Compute; 3]) -> Option<E::Compute> {
                let (down, beyond) = (E::Compute::DOWN, E::Compute::BEYOND);
                let mut z = ((v[0] - mean) * down) * (scale * down) + shift * beyond;
                if $i == 2 && self.residual {
                    z = z + v[$i - 1] * beyond;
                }
                Some(self.activation.beyond(z))
            }
            #[inline(always)]
            fn outputs<R: Real>(ready: &Rectify<R>, _: [R; $i], sum: R) -> [R; 1] {
                [match KIND {
                    PLAIN => sum,
                    LIMITS => ready.limit(sum),
                    _ => ready.forward(sum),
                }]
            }
        }
    };
}

impl<'a, S: Scalar, const EXACT: bool> Normalize<'a, S, ANY, EXACT> {
    /// The same for what is known of the activation and the constants.
    pub(crate) fn as_kind<const KIND: u8, const NOW: bool>(&self) -> Normalize<'a, S, KIND, NOW> {
        Normalize { activation: self.activation, residual: self.residual, coefficients: self.coefficients }
    }
}

// Inputs x; x, residual.
map!(1, |_v, z| z);
map!(2, |v, z| z + v[1]);
