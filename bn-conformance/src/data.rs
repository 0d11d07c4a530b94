//! The data: bit patterns from integers, so that nothing here can round.

use crate::hash::Bits;
use bn_core::{Layout, Moments};
use bytemuck::Pod;

/// Random numbers (Steele, Lea & Flood's SplitMix, with the 32-bit finaliser of MurmurHash 3, which
/// is cheap where 64-bit products are not).
pub(crate) struct Random(u32);

impl Random {
    pub(crate) fn new(seed: u32) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995)
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9);
        let z = (self.0 ^ (self.0 >> 16)).wrapping_mul(0x85eb_ca6b);
        let z = (z ^ (z >> 13)).wrapping_mul(0xc2b2_ae35);
        z ^ (z >> 16)
    }
}

/// What the values of a channel are like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pattern {
    /// Both signs, 2⁻³ to 2³.
    Spread,
    /// One sign, far from 0 against the spread (by 3500 for f32).
    Offset,
    /// Eight neighbours, units in the last place apart.
    Far,
    /// One value.
    Constant,
    /// Two values, one unit in the last place apart.
    TwoValued,
    /// The largest values that are promised, both signs.
    Huge,
    /// The smallest normal values.
    Tiny,
    /// Subnormal values.
    Subnormal,
    /// Zeros of both signs.
    Zeros,
    /// Spread, but for one NaN.
    Nan,
    /// Spread, but for one infinity.
    Infinity,
    /// Outputs of activations: on their borders, and between.
    Activated,
    /// Variances: positive.
    Variance,
    /// Each channel another of the above.
    Mixed,
}

/// What the channels of [`Pattern::Mixed`] are, in turn.
const MIX: [Pattern; 11] = [
    Pattern::Spread,
    Pattern::Offset,
    Pattern::Constant,
    Pattern::Huge,
    Pattern::Nan,
    Pattern::Tiny,
    Pattern::Far,
    Pattern::Subnormal,
    Pattern::TwoValued,
    Pattern::Infinity,
    Pattern::Zeros,
];

impl Pattern {
    /// The pattern of a channel.
    pub(crate) fn of(self, channel: usize) -> Pattern {
        match self {
            Pattern::Mixed => MIX.get(channel % MIX.len()).copied().unwrap_or(Pattern::Spread),
            p => p,
        }
    }
}

/// A type that data are made of.
pub(crate) trait Tested: Pod + Bits {
    /// The name of the type.
    const NAME: &'static str;
    /// Value `i` of the `n` of a channel of this pattern.
    fn draw(random: &mut Random, pattern: Pattern, i: usize, n: usize) -> Self;
    fn value(self) -> f64;
}

/// A type of parameters.
pub(crate) trait TestedParam: Tested + Default {
    /// A factor that leaves the range in which the type's own arithmetic is used.
    fn factor(which: usize) -> Option<Self>;
    fn rounded(v: f64) -> Self;
}

macro_rules! tested {
    ($t:ty, $name:literal, $bits:ident, $mantissa:literal, $bias:literal, $huge:literal, $mix:expr, $value:expr) => {
        impl Tested for $t {
            const NAME: &'static str = $name;

            fn draw(random: &mut Random, pattern: Pattern, i: usize, n: usize) -> Self {
                const LOW: $bits = (1 << $mantissa) - 1;
                let (a, b) = (random.next(), random.next());
                // Sign and exponent from one word, the mantissa from the other.
                let mantissa = $mix(a, b) & LOW;
                let sign = ((a >> 31) as $bits) << ($bits::BITS - 1);
                let make = |sign: $bits, exponent: i32, mantissa: $bits| {
                    <$t>::from_bits(sign | (((exponent + $bias) as $bits) << $mantissa) | mantissa)
                };
                // One of `n` exponents.
                let among = |n: u32| ((a >> 24) % n) as i32;
                let few = mantissa >> ($mantissa - 3);
                match pattern {
                    Pattern::Offset => make(0, 13, mantissa >> ($mantissa / 2)),
                    Pattern::Far => make(0, 5, ((LOW / 7) & !7) | few),
                    Pattern::Constant => make(0, 0, LOW / 3),
                    Pattern::TwoValued => make(0, 0, LOW / 5 + (a >> 31) as $bits),
                    Pattern::Huge => make(sign, $huge - among(8), mantissa),
                    Pattern::Tiny => make(sign, 1 - $bias + among(4), mantissa),
                    Pattern::Subnormal => make(sign, -$bias, mantissa),
                    Pattern::Zeros => make(sign, -$bias, 0),
                    Pattern::Nan if i == n / 2 => <$t>::NAN,
                    Pattern::Infinity if i == n / 3 => <$t>::INFINITY,
                    Pattern::Activated => match a & 7 {
                        0 => make(0, -$bias, 0),
                        1 => make(0, 0, 1 << ($mantissa - 1)),
                        2 => make(1 << ($bits::BITS - 1), -1, 0),
                        _ => make(sign, among(4) - 3, mantissa),
                    },
                    Pattern::Variance => make(0, among(6) - 3, mantissa),
                    _ => make(sign, among(6) - 3, mantissa),
                }
            }

            fn value(self) -> f64 {
                $value(self)
            }
        }
    };
}
tested!(f32, "f32", u32, 23, 127, 127, |_: u32, b: u32| b, |v: f32| v as f64);
// f64 is promised up to 2⁵⁰⁰.
tested!(f64, "f64", u64, 52, 1023, 499, |a: u32, b: u32| ((a as u64) << 32) | b as u64, |v: f64| v);
#[cfg(feature = "half")]
tested!(half::f16, "f16", u16, 10, 15, 15, |_: u32, b: u32| b as u16, half::f16::to_f64);
#[cfg(feature = "half")]
tested!(half::bf16, "bf16", u16, 7, 127, 127, |_: u32, b: u32| b as u16, half::bf16::to_f64);

macro_rules! param {
    ($t:ty, $bits:ident, $mantissa:literal, $bias:literal) => {
        impl TestedParam for $t {
            fn factor(which: usize) -> Option<Self> {
                let power = |e: i32| <$t>::from_bits(((e + $bias) as $bits) << $mantissa);
                match which % 7 {
                    3 => Some(0.0),
                    5 => Some(power($bias - 5)),
                    6 => Some(power(5 - $bias)),
                    _ => None,
                }
            }
            fn rounded(v: f64) -> Self {
                v as $t
            }
        }
    };
}
param!(f32, u32, 23, 127);
param!(f64, u64, 52, 1023);

/// Where element `i` of a tensor is: its channel, and its number among the channel's values.
fn place(layout: Layout, channels: usize, spatial: usize, i: usize) -> (usize, usize) {
    let (channels, spatial) = (channels.max(1), spatial.max(1));
    match layout {
        Layout::Nhwc => (i % channels, i / channels),
        _ => (i / spatial % channels, i / (spatial * channels) * spatial + i % spatial),
    }
}

/// Fills a tensor.
pub(crate) fn tensor<T: Tested>(
    to: &mut [T],
    seed: u32,
    pattern: Pattern,
    rotated: usize,
    (layout, channels, spatial): (Layout, usize, usize),
) {
    let mut random = Random::new(seed);
    let n = to.len() / channels.max(1);
    for (i, v) in to.iter_mut().enumerate() {
        let (channel, number) = place(layout, channels, spatial, i);
        *v = T::draw(&mut random, pattern.of(channel + rotated), number, n);
    }
}

/// Fills one value per channel.
pub(crate) fn parameters<P: Tested>(to: &mut [P], seed: u32, pattern: Pattern) {
    let mut random = Random::new(seed);
    for v in to {
        *v = P::draw(&mut random, pattern, 0, 1);
    }
}

/// Fills gamma: some of its entries leave the range of the type's own arithmetic.
pub(crate) fn factors<P: TestedParam>(to: &mut [P], seed: u32) {
    let mut random = Random::new(seed);
    for (i, v) in to.iter_mut().enumerate() {
        let ordinary = P::draw(&mut random, Pattern::Spread, 0, 1);
        *v = P::factor(i).unwrap_or(ordinary);
    }
}

/// The statistics of a tensor by Welford's recurrence, so that what uses them can be tested
/// without the kernels that make them.
pub(crate) fn statistics<T: Tested>(
    x: &[T],
    moments: &mut [Moments],
    (layout, channels, spatial): (Layout, usize, usize),
) {
    moments.fill(Moments::EMPTY);
    for (i, v) in x.iter().enumerate() {
        if let Some(m) = moments.get_mut(place(layout, channels, spatial, i).0) {
            m.push(v.value());
        }
    }
}
