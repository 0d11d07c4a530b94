//! The activation that a call applies to its result.

use crate::error::Error;
use crate::lanes::{Scalar, Vector};

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
    pub(crate) fn forward<V: Vector>(self, token: V::Token, z: V) -> V {
        match self {
            Activation::Identity => z,
            Activation::Relu => {
                let zero = V::splat(token, V::Scalar::ZERO);
                V::select(z.lt(zero), zero, z)
            }
            Activation::LeakyRelu { slope } => {
                let zero = V::splat(token, V::Scalar::ZERO);
                V::select(z.lt(zero), z * V::splat(token, V::Scalar::from_f64(slope)), z)
            }
            Activation::Clamp { lo, hi } => {
                let lo = V::splat(token, V::Scalar::from_f64(lo));
                let hi = V::splat(token, V::Scalar::from_f64(hi));
                let z = V::select(z.lt(lo), lo, z);
                V::select(hi.lt(z), hi, z)
            }
        }
    }

    /// The gradient before the activation, from the output and the gradient behind it.
    #[inline(always)]
    pub(crate) fn backward<V: Vector>(self, token: V::Token, y: V, dy: V) -> V {
        let zero = V::splat(token, V::Scalar::ZERO);
        match self {
            Activation::Identity => dy,
            Activation::Relu => V::select(zero.lt(y), dy, zero),
            Activation::LeakyRelu { slope } => {
                V::select(zero.lt(y), dy, dy * V::splat(token, V::Scalar::from_f64(slope)))
            }
            Activation::Clamp { lo, hi } => {
                let lo = V::splat(token, V::Scalar::from_f64(lo));
                let hi = V::splat(token, V::Scalar::from_f64(hi));
                V::select(lo.lt(y), V::select(y.lt(hi), dy, zero), zero)
            }
        }
    }
}
