//! The activation that a call applies to its result.

use crate::element::Element;
use crate::error::Error;
use crate::lanes::{Base, Lanes, Real, Scalar};

/// What is applied to γ·x̂ + β (+ residual).
///
/// All of them pass NaN on. The backward pass takes its mask from the output y, so nothing but y is
/// kept: dy passes where y > 0 (ReLU), where lo < y < hi (clamp); where y ≤ 0 leaky ReLU multiplies
/// it by the slope. PyTorch draws the same borders, for z instead of y. lo and hi are rounded to the type of the tensors, so that what
/// was cut off is no less so in a y that has been rounded.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// z.
    #[default]
    Identity,
    /// 0 where z < 0, else z.
    Relu,
    /// slope·z where z < 0, else z. The slope is not negative, and finite in the type of the parameters.
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
    /// Whether it makes sense for parameters of this type.
    pub(crate) fn check<S: Scalar>(self) -> Result<(), Error> {
        let good = match self {
            Activation::Identity | Activation::Relu => true,
            Activation::LeakyRelu { slope } => slope >= 0.0 && S::from_f64(slope) < S::INFINITIES.0,
            Activation::Clamp { lo, hi } => lo <= hi,
        };
        if good { Ok(()) } else { Err(Error::Activation { got: self }) }
    }

    /// The factor of negative values that undoes it, if anything does, in numbers of this type.
    pub(crate) fn inverse<S: Scalar>(self) -> Option<f64> {
        match self {
            Activation::Identity => Some(1.0),
            Activation::LeakyRelu { slope }
                if S::ZERO < S::from_f64(slope) && S::from_f64(1.0 / slope) < S::INFINITIES.0 =>
            {
                Some(1.0 / slope)
            }
            _ => None,
        }
    }
}

/// An activation in numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rectifier<S> {
    /// It does nothing.
    pub(crate) plain: bool,
    /// What is below the knee is multiplied by the slope.
    leaky: bool,
    slope: S,
    /// Where the gradient begins.
    knee: S,
    floor: S,
    ceiling: S,
    /// The largest y that is below the end of the gradient.
    end: S,
}

impl<S: Scalar> Rectifier<S> {
    /// No activation.
    pub(crate) const IDENTITY: Self = {
        let (most, least) = S::INFINITIES;
        Rectifier { plain: true, leaky: true, slope: S::ONE, knee: least, floor: least, ceiling: most, end: most }
    };

    /// For tensors of type `E`.
    pub(crate) fn new<E: Element<Param = S>>(activation: Activation) -> Self {
        let zero = S::ZERO;
        let none = Rectifier { plain: false, leaky: false, slope: zero, knee: zero, ..Self::IDENTITY };
        match activation {
            Activation::Identity => Self::IDENTITY,
            Activation::Relu => Rectifier { floor: zero, ..none },
            Activation::LeakyRelu { slope } => Rectifier { leaky: true, slope: S::from_f64(slope), ..none },
            Activation::Clamp { lo, hi } => {
                let (lo, hi) = (E::stored(S::from_f64(lo)), E::stored(S::from_f64(hi)));
                Rectifier { knee: lo, floor: lo, ceiling: hi, end: hi.next_down(), ..none }
            }
        }
    }

    /// Whether it may bring a value that has overflowed back: no, if all it does is limits.
    pub(crate) fn shrinks(&self) -> bool {
        self.leaky && !self.plain
    }

    #[inline(always)]
    pub(crate) fn rectify<R: Real>(&self, token: R::Token) -> Rectify<R> {
        Rectify {
            zero: R::constant(token, S::ZERO),
            leaky: R::constant(token, if self.leaky { S::ONE } else { S::ZERO }),
            slope: R::constant(token, self.slope),
            knee: R::constant(token, self.knee),
            floor: R::constant(token, self.floor),
            ceiling: R::constant(token, self.ceiling),
            end: R::constant(token, self.end),
        }
    }

    /// What becomes of z·[`Scalar::BEYOND`], where that is more than the arithmetic holds.
    pub(crate) fn beyond(&self, z: S) -> S {
        let two = S::ONE + S::ONE;
        let z = if self.leaky && z < self.knee {
            // The smaller factor first: it may be subnormal, and z·slope is infinite only if the result is.
            if self.slope < S::ONE { z * (self.slope * S::UP) * two } else { z * self.slope * S::UP * two }
        } else {
            z * S::UP * two
        };
        let z = if z < self.floor { self.floor } else { z };
        if self.ceiling < z { self.ceiling } else { z }
    }
}

/// What is known of an activation where kernels are compiled: none; ReLU or clamp, which take two instructions, and four backward;
/// any, which takes five, and six.
pub(crate) const PLAIN: u8 = 0;
pub(crate) const LIMITS: u8 = 1;
pub(crate) const ANY: u8 = 2;
/// Any, and y is read in the place of x, and what the activation did undone.
pub(crate) const UNDO: u8 = 3;

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
    end: R,
}

impl<R: Real> Rectify<R> {
    /// All that ReLU and clamp do.
    #[inline(always)]
    pub(crate) fn limit(&self, z: R) -> R {
        z.at_least(self.floor).at_most(self.ceiling)
    }

    /// Nothing is below the knee but what a leaky ReLU multiplies by its slope.
    #[inline(always)]
    pub(crate) fn forward(&self, z: R) -> R {
        let z = self.limit(z);
        z.if_less(self.knee, z * self.slope, z)
    }

    /// The gradient before the activation, from the output and the gradient behind it.
    #[inline(always)]
    pub(crate) fn backward<const KIND: u8>(&self, y: R, dy: R) -> R {
        if KIND == LIMITS {
            return self.knee.if_less(y, self.end.if_less(y, self.zero, dy), self.zero);
        }
        let below = self.zero.if_less(self.leaky, dy * self.slope, self.zero);
        let inside = self.end.if_less(y, self.zero, dy);
        self.knee.if_less(y, inside, below)
    }

    /// x, which where elements are taken one by one may be y, and dy behind the mask; from x, dy, y.
    #[inline(always)]
    pub(crate) fn masked<const KIND: u8>(&self, inverse: R, [x, dy, y]: [R; 3]) -> [R; 2] {
        [if Base::SINGLE { self.undo(inverse, x) } else { x }, self.backward::<KIND>(y, dy)]
    }

    /// The same from y and dy, of an activation that can be undone.
    #[inline(always)]
    pub(crate) fn undone(&self, inverse: R, [y, dy]: [R; 2]) -> [R; 2] {
        [self.undo(inverse, y), self.backward::<ANY>(y, dy)]
    }

    /// What undoes the activation, by the factor that its [inverse](Activation::inverse) is.
    #[inline(always)]
    pub(crate) fn undo(&self, factor: R, y: R) -> R {
        y.if_less(self.zero, y * factor, y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is compiled for ReLU and clamp has the bits of what does any activation.
    #[test]
    fn limits_are_any() {
        let special = [0.0, 1.0, 0.5, f64::MIN_POSITIVE, 5e-324, 6.0, 6.0f64.next_down(), 7.0, f64::MAX, f64::INFINITY];
        let values = || special.into_iter().flat_map(|v| [v, -v]).chain([f64::NAN]);
        for activation in
            [Activation::Relu, Activation::Clamp { lo: 0.0, hi: 6.0 }, Activation::Clamp { lo: -1.0, hi: 0.5 }]
        {
            let rectifier = Rectifier::new::<f64>(activation);
            assert!(!rectifier.shrinks());
            let rectify = rectifier.rectify::<f64>(());
            for (y, dy) in values().flat_map(|y| values().map(move |dy| (y, dy))) {
                let (limits, any) = (rectify.backward::<LIMITS>(y, dy), rectify.backward::<ANY>(y, dy));
                assert_eq!(limits.to_bits(), any.to_bits(), "{activation:?}, y = {y}, dy = {dy}");
            }
            for z in values() {
                assert_eq!(rectify.limit(z).to_bits(), rectify.forward(z).to_bits(), "{activation:?}, z = {z}");
            }
        }
    }
}
