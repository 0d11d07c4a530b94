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

use super::{Coefficients, Map, factor_is_safe};
use crate::activation::Activation;
use crate::element::Element;
use crate::lanes::{Real, Scalar, Vector};

/// Mean, scale and shift of a channel in f64, and whether f32 arithmetic is safe there.
///
/// `reach` bounds |x − mean| where it is known (training: √m2), and is 0 where it is not.
#[inline(always)]
pub(crate) fn split<S: Scalar>(mean: f64, scale: f64, beta: f64, reach: Option<f64>) -> Coefficients<3> {
    let high = S::from_f64(mean).to_f64();
    let low = mean - high;
    let shift = beta - low * scale;
    let inside = match reach {
        // Training: |x − μ| ≤ √m2, and |y − β| ≤ |γ|·√n ≤ scale·√m2 where ε is small.
        Some(r) => !(r > S::SAFE_MAX * 32.0) && !((scale * r).abs() + beta.abs() > S::SAFE_MAX * 32.0),
        // Inference: x is anything; adding a mean or a beta below 2¹⁰² to it cannot overflow.
        None => !(mean.abs() >= S::SAFE_MAX / 262144.0) && !(beta.abs() >= S::SAFE_MAX / 262144.0),
    };
    Coefficients { narrow: [high, scale, shift], wide: [mean, scale, beta], safe: inside && factor_is_safe::<S>(scale) }
}

/// 1/√(variance + ε), and 0 where that is 1/0: a constant channel with ε = 0 gives β.
#[inline(always)]
pub(crate) fn inverse_std(variance: f64, epsilon: f64) -> f64 {
    let v = variance + epsilon;
    if v == 0.0 { 0.0 } else { 1.0 / libm::sqrt(v) }
}

/// The elementwise part of the forward pass.
#[derive(Clone, Copy)]
pub(crate) struct Normalize<'a> {
    pub(crate) activation: Activation,
    /// The constants of a channel.
    pub(crate) coefficients: &'a (dyn Fn(usize) -> Coefficients<3> + Sync),
}

macro_rules! map {
    ($i:literal, |$self:ident, $token:ident, $x:ident, $z:ident| $after:expr) => {
        impl<E: Element> Map<E, $i, 1, 3, 1> for Normalize<'_> {
            const CHECKED: bool = false;

            #[inline(always)]
            fn coefficients(&self, channel: usize) -> Coefficients<3> {
                (self.coefficients)(channel)
            }
            #[inline(always)]
            fn before<V: Vector>(&self, _: V::Token, x: [V; $i]) -> [V; 1] {
                [x[0]]
            }
            #[inline(always)]
            fn formula<R: Real>(&self, [x]: [R; 1], [mean, scale, shift]: [R; 3]) -> R {
                (x - mean) * scale + shift
            }
            #[inline(always)]
            fn after<V: Vector>(&$self, $token: V::Token, $x: [V; $i], _: [V; 1], $z: V) -> [V; 1] {
                [$after]
            }
        }
    };
}

// Inputs x; x, residual.
map!(1, |self, token, _x, z| self.activation.forward(token, z));
map!(2, |self, token, x, z| self.activation.forward(token, z + x[1]));
