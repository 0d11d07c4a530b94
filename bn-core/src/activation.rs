//! The activation that a call applies to its result.

use crate::error::Error;
use crate::lanes::Real;

/// What is applied to γ·x̂ + β (+ residual).
///
/// All of them pass NaN on. The backward pass takes its mask from the output y, so nothing but y is
/// kept: dy passes where y > 0 (ReLU), where lo < y < hi (clamp); where y ≤ 0 leaky ReLU multiplies
/// it by the slope. PyTorch draws the same borders.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// z.
    #[default]
    Identity,
    /// 0 where z < 0, else z.
    Relu,
    /// slope·z where z < 0, else z. The slope is finite and not negative.
    LeakyRelu {
        /// The factor of negative values.
        slope: f64,
    },
    /// lo where z < lo, hi where z > hi, else z (ReLU6: 0 and 6). lo ≤ hi, both not NaN.
    Clamp {
        /// The lowest result.
        lo: f64,
        /// The highest result.
        hi: f64,
    },
}

impl Activation {
    pub(crate) fn check(self) -> Result<(), Error> {
        let good = match self {
            Activation::Identity | Activation::Relu => true,
            Activation::LeakyRelu { slope } => (0.0..f64::INFINITY).contains(&slope),
            Activation::Clamp { lo, hi } => lo <= hi,
        };
        if good { Ok(()) } else { Err(Error::Activation { got: self }) }
    }

    /// What undoes it, if anything does.
    pub(crate) fn inverse(self) -> Option<Activation> {
        match self {
            Activation::Identity => Some(self),
            Activation::LeakyRelu { slope } if slope > 0.0 && (1.0 / slope).is_finite() => {
                Some(Activation::LeakyRelu { slope: 1.0 / slope })
            }
            _ => None,
        }
    }

    #[inline(always)]
    pub(crate) fn forward<R: Real>(self, token: R::Token, z: R) -> R {
        let zero = R::constant(token, 0.0);
        match self {
            Activation::Identity => z,
            Activation::Relu => z.if_less(zero, zero, z),
            Activation::LeakyRelu { slope } => z.if_less(zero, z * R::constant(token, slope), z),
            Activation::Clamp { lo, hi } => {
                let (lo, hi) = (R::constant(token, lo), R::constant(token, hi));
                let z = z.if_less(lo, lo, z);
                hi.if_less(z, hi, z)
            }
        }
    }

    /// The gradient before the activation, from the output and the gradient behind it.
    #[inline(always)]
    pub(crate) fn backward<R: Real>(self, token: R::Token, y: R, dy: R) -> R {
        let zero = R::constant(token, 0.0);
        match self {
            Activation::Identity => dy,
            Activation::Relu => zero.if_less(y, dy, zero),
            Activation::LeakyRelu { slope } => zero.if_less(y, dy, dy * R::constant(token, slope)),
            Activation::Clamp { lo, hi } => {
                let (lo, hi) = (R::constant(token, lo), R::constant(token, hi));
                lo.if_less(y, y.if_less(hi, dy, zero), zero)
            }
        }
    }
}
