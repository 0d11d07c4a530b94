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
}

/// An activation as the kernels apply it: all of them by the same few instructions, as a jump to one of
/// four for each vector took a third of the time where the data are in cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rectifier {
    /// It does nothing.
    pub(crate) plain: bool,
    /// What is below `lo` is multiplied by the slope; else it becomes `lo`.
    leaky: bool,
    /// The gradient ends at `hi`.
    clamp: bool,
    slope: f64,
    lo: f64,
    hi: f64,
}

impl From<Activation> for Rectifier {
    fn from(activation: Activation) -> Self {
        const INFINITY: f64 = f64::INFINITY;
        let none = Rectifier { plain: false, leaky: false, clamp: false, slope: 0.0, lo: 0.0, hi: INFINITY };
        match activation {
            Activation::Identity => Rectifier { plain: true, lo: -INFINITY, ..none },
            Activation::Relu => none,
            Activation::LeakyRelu { slope } => Rectifier { leaky: true, slope, ..none },
            Activation::Clamp { lo, hi } => Rectifier { clamp: true, lo, hi, ..none },
        }
    }
}

impl Rectifier {
    /// Whether it may bring a value that has overflowed back.
    pub(crate) fn shrinks(self) -> bool {
        self.leaky
    }

    #[inline(always)]
    pub(crate) fn forward<R: Real>(self, token: R::Token, z: R) -> R {
        let (lo, hi) = (R::constant(token, self.lo), R::constant(token, self.hi));
        let low = if self.leaky { z * R::constant(token, self.slope) } else { lo };
        let z = z.if_less(lo, low, z);
        hi.if_less(z, hi, z)
    }

    /// The gradient before the activation, from the output and the gradient behind it.
    #[inline(always)]
    pub(crate) fn backward<R: Real>(self, token: R::Token, y: R, dy: R) -> R {
        if self.plain {
            return dy;
        }
        let (lo, hi, zero) = (R::constant(token, self.lo), R::constant(token, self.hi), R::constant(token, 0.0));
        let below = if self.leaky { dy * R::constant(token, self.slope) } else { zero };
        let inside = if self.clamp { y.if_less(hi, dy, zero) } else { dy };
        lo.if_less(y, inside, below)
    }
}
