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

/// An activation in numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rectifier {
    /// It does nothing.
    pub(crate) plain: bool,
    /// What is below the knee is multiplied by the slope.
    leaky: bool,
    /// The gradient ends at the ceiling.
    clamp: bool,
    slope: f64,
    /// Where the gradient begins.
    knee: f64,
    floor: f64,
    ceiling: f64,
}

impl From<Activation> for Rectifier {
    fn from(activation: Activation) -> Self {
        const INFINITY: f64 = f64::INFINITY;
        let (floor, ceiling) = (-INFINITY, INFINITY);
        let none = Rectifier { plain: false, leaky: false, clamp: false, slope: 0.0, knee: 0.0, floor, ceiling };
        match activation {
            Activation::Identity => Rectifier { plain: true, leaky: true, slope: 1.0, knee: -INFINITY, ..none },
            Activation::Relu => Rectifier { floor: 0.0, ..none },
            Activation::LeakyRelu { slope } => Rectifier { leaky: true, slope, ..none },
            Activation::Clamp { lo, hi } => Rectifier { clamp: true, knee: lo, floor: lo, ceiling: hi, ..none },
        }
    }
}

impl Rectifier {
    /// Whether it may bring a value that has overflowed back.
    pub(crate) fn shrinks(self) -> bool {
        self.leaky && !self.plain
    }

    #[inline(always)]
    pub(crate) fn rectify<R: Real>(self, token: R::Token) -> Rectify<R> {
        let of = |v| R::constant(token, v);
        Rectify {
            zero: of(0.0),
            leaky: of(if self.leaky { 1.0 } else { 0.0 }),
            slope: of(self.slope),
            knee: of(self.knee),
            floor: of(self.floor),
            ceiling: of(self.ceiling),
            end: if self.clamp { R::below(token, self.ceiling) } else { of(f64::INFINITY) },
        }
    }
}

/// An activation as the kernels apply it: all of them by the same few instructions, made ready before the loop. With
/// jumps and constants of each kind in the loop the backward pass took twice the time where the data are in
/// cache.
#[derive(Clone, Copy)]
pub(crate) struct Rectify<R> {
    zero: R,
    /// 1 or 0.
    leaky: R,
    slope: R,
    knee: R,
    floor: R,
    ceiling: R,
    /// The largest y that is below the end of the gradient.
    end: R,
}

impl<R: Real> Rectify<R> {
    /// Nothing is below the knee but what a leaky ReLU multiplies by its slope.
    #[inline(always)]
    pub(crate) fn forward(&self, z: R) -> R {
        let z = z.at_least(self.floor).at_most(self.ceiling);
        z.if_less(self.knee, z * self.slope, z)
    }

    /// The gradient before the activation, from the output and the gradient behind it.
    #[inline(always)]
    pub(crate) fn backward(&self, y: R, dy: R) -> R {
        let below = self.zero.if_less(self.leaky, dy * self.slope, self.zero);
        let inside = self.end.if_less(y, self.zero, dy);
        self.knee.if_less(y, inside, below)
    }
}
