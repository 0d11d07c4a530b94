//! What the targets share: inputs that are batch normalizations, and the bounds; and what runs them, libFuzzer or
//! chance (`blind.rs`).

#![warn(missing_docs)]

#[cfg(not(feature = "libfuzzer"))]
pub mod blind;

pub use arbitrary;
#[cfg(feature = "libfuzzer")]
pub use libfuzzer_sys::fuzz_target;

use arbitrary::Arbitrary;
use bn_core::{Layout, Shape};
use bn_oracle::bounds::{self, Activation, limit};
use bn_oracle::data::{Family, Gradient, Random, gradients, places, values};
use bn_oracle::problem::{Backward, Forward, How, Number, Problem, Scalar, Through};

/// A batch normalization. Whatever the bytes, it is a legal one of finite numbers.
#[derive(Arbitrary, Clone, Debug)]
pub struct Input {
    /// f64 rather than f32.
    pub double: bool,
    channels_last: bool,
    batch: u8,
    channels: u8,
    spatial: u16,
    epsilon: Epsilon,
    activation: Act,
    gamma: Option<Source>,
    beta: Option<Source>,
    residual: Option<Source>,
    x: [Source; 3],
    dy: [Source; 2],
    mean: Source,
    var: Source,
    /// Which statistics a backward pass goes through.
    pub through: u8,
    /// Words of workspace beyond the least.
    pub extra: u16,
    /// For whatever a target decides.
    pub choice: u64,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Epsilon {
    Zero,
    Usual,
    Any(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Act {
    Identity,
    Relu,
    Leaky(u8),
    Clamp(i8, u8),
}

/// Where numbers come from.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Source {
    /// One of the oracle's kinds of x.
    Family(u8, u32),
    /// One of its kinds of dy.
    Gradient(u8, u32),
    /// Four numbers, any bits, in random order.
    Palette([u32; 4], u32),
    /// Most are one number; a few, at a regular distance, another.
    Sparse { most: u32, few: u32, distance: u8, offset: u8 },
    /// Alternating signs.
    Signs { size: u32, period: u8 },
    /// Neighbours of a number.
    Ulps { base: u32, width: u8, seed: u32 },
    /// Evenly spaced.
    Ramp { from: u32, step: u32 },
}

/// The number of these bits; if they are no number, another one.
pub fn finite(bits: u32) -> f64 {
    let v = f32::from_bits(bits);
    if v.is_finite() { v as f64 } else { f32::from_bits(bits & 0xbfff_ffff) as f64 }
}

impl Source {
    fn values<T: Number>(&self, n: usize, salt: u64, x: &[f64]) -> Vec<f64> {
        let salted = |seed: u32| Random(seed as u64 ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let round = |v: f64| {
            let v = v.clamp(-T::FORMAT.max.min(2f64.powi(490)), T::FORMAT.max.min(2f64.powi(490)));
            <T as Scalar>::of(v).wide()
        };
        // More digits where the type has them.
        let whole =
            |bits: u32| if T::FORMAT.name == "f64" { finite(bits) * (1.0 + 1e-9 * salt as f64) } else { finite(bits) };
        let v: Vec<f64> = match *self {
            Source::Family(kind, seed) => {
                values(Family::ALL[kind as usize % Family::ALL.len()], &mut salted(seed), n.max(1), &T::RANGE)
            }
            Source::Gradient(kind, seed) => {
                let kind = Gradient::ALL[kind as usize % Gradient::ALL.len()];
                let own = vec![0.0; n.max(1)];
                gradients(kind, &mut salted(seed), if x.is_empty() { &own } else { x }, &T::RANGE)
            }
            Source::Palette(of, seed) => {
                let mut r = salted(seed);
                (0..n).map(|_| whole(r.pick(&of))).collect()
            }
            Source::Sparse { most, few, distance, offset } => {
                let distance = distance as usize + 1;
                let at = |i: usize| i % distance == offset as usize % distance;
                (0..n).map(|i| whole(if at(i) { few } else { most })).collect()
            }
            Source::Signs { size, period } => {
                let period = period as usize % 32 + 1;
                (0..n).map(|i| if (i / period).is_multiple_of(2) { whole(size) } else { -whole(size) }).collect()
            }
            Source::Ulps { base, width, seed } => {
                let mut r = salted(seed);
                let ulp = whole(base) * 2f64.powi(1 - T::RANGE.digits);
                (0..n).map(|_| whole(base) + ulp * r.below(width as usize + 1) as f64).collect()
            }
            Source::Ramp { from, step } => (0..n).map(|i| whole(from) + i as f64 * finite(step)).collect(),
        };
        v.into_iter().take(n).map(round).collect()
    }
}

impl Input {
    /// A shape that the oracle is quick with: mostly about 1000 elements, now and then enough for several
    /// blocks.
    pub fn small_shape(&self) -> Shape {
        self.shape(1, if self.extra % 16 == 15 { 10_000 } else { 1000 })
    }

    /// A shape of at least `least` and about `most` elements.
    pub fn shape(&self, least: usize, most: usize) -> Shape {
        let (batch, channels) = (self.batch as usize % 70 + 1, self.channels as usize % 70 + 1);
        let room = (most / (batch * channels)).max(1);
        let spatial = (self.spatial as usize % room + 1).max(least.div_ceil(batch * channels));
        let layout = if self.channels_last { Layout::Nhwc } else { Layout::Nchw };
        Shape::new(layout, batch, channels, &[spatial]).expect("a small shape")
    }

    /// The problem, with that shape.
    pub fn problem<T: Number>(&self, shape: Shape) -> Problem<T> {
        let (n, c) = (shape.len(), shape.channels());
        let params = |s: &Source| -> Vec<T::Param> {
            s.values::<T>(c, 77, &[]).into_iter().map(<T::Param as Scalar>::of).collect()
        };
        let zero = <T as Default>::default();
        let mut p = Problem {
            shape,
            epsilon: match self.epsilon {
                Epsilon::Zero => 0.0,
                Epsilon::Usual => 1e-5,
                Epsilon::Any(bits) => finite(bits).abs(),
            },
            activation: match self.activation {
                Act::Identity => Activation::Identity,
                Act::Relu => Activation::Relu,
                // Slopes and borders that f32 holds.
                Act::Leaky(slope) => Activation::LeakyRelu(slope as f64 / 64.0),
                Act::Clamp(lo, width) => Activation::Clamp(lo as f64 / 16.0, (lo as f64 + width as f64) / 16.0),
            },
            x: vec![zero; n],
            dy: vec![zero; n],
            residual: self.residual.as_ref().map(|_| vec![zero; n]),
            gamma: self.gamma.as_ref().map(params),
            beta: self.beta.as_ref().map(params),
            running: (params(&self.mean), params(&self.var)),
        };
        for v in &mut p.running.1 {
            *v = <T::Param as Scalar>::of(v.wide().abs());
        }
        for channel in 0..c {
            let at: Vec<usize> = p.places(channel).collect();
            let x = self.x[channel % 3].values::<T>(at.len(), channel as u64, &[]);
            let dy = self.dy[channel % 2].values::<T>(at.len(), channel as u64 + 99, &x);
            let residual = self.residual.map(|s| s.values::<T>(at.len(), channel as u64 + 999, &[]));
            for (i, &at) in at.iter().enumerate() {
                (p.x[at], p.dy[at]) = (<T as Scalar>::of(x[i]), <T as Scalar>::of(dy[i]));
                if let (Some(to), Some(from)) = (&mut p.residual, &residual) {
                    to[at] = <T as Scalar>::of(from[i]);
                }
            }
        }
        p
    }

    /// The statistics that a backward pass of this problem can go through.
    pub fn through<T: Number>(&self, p: &Problem<T>) -> Through {
        match self.through % 4 {
            0 => Through::Running,
            1 if roundable(p) => Through::Rounded,
            _ => Through::Batch,
        }
    }

    /// How the call is made.
    pub fn how(&self) -> How<'static> {
        let isas: Vec<_> = bn_core::Isa::available().collect();
        let isa = isas[self.choice as usize % isas.len()];
        How { isa, workspace: self.extra.is_multiple_of(2).then_some(self.extra as usize), ..How::default() }
    }
}

/// Whether every variance is 0 or a normal number of the parameters' type.
fn roundable<T: Number>(p: &Problem<T>) -> bool {
    let (low, high) = if T::FORMAT.name == "f64" { (1e-300, 1e300) } else { (1e-37, 1e38) };
    (0..p.shape.channels()).all(|c| {
        let v = p.channel(c).variance().hi;
        v == 0.0 || (low..high).contains(&v)
    })
}

/// Fails unless an error is within its limit.
#[track_caller]
pub fn within(what: &str, channel: usize, error: f64, limit: f64) {
    assert!(error <= limit, "{what} of channel {channel} is wrong by {error} units, bound {limit}");
}

/// What is promised for f32; for f64 what follows from the arithmetic.
fn promised<T: Number>(limit: f64) -> f64 {
    if T::FORMAT.name == "f32" { limit::CONTRACT } else { T::FORMAT.follows(limit) }
}

/// Checks a training forward pass against the oracle.
pub fn check_forward<T: Number>(p: &Problem<T>, made: &Forward<T>) {
    for c in 0..p.shape.channels() {
        let e = p.judge_forward(c, made);
        within("y", c, e.y, promised::<T>(limit::Y));
        within("mean", c, e.mean, promised::<T>(limit::MEAN));
        let variance =
            if T::FORMAT.name == "f32" { limit::CONTRACT_VARIANCE } else { T::FORMAT.follows(limit::VARIANCE) };
        within("variance", c, e.variance, variance);
    }
}

/// Checks inference against the oracle.
pub fn check_inference<T: Number>(p: &Problem<T>, y: &[T]) {
    for c in 0..p.shape.channels() {
        within("y", c, p.judge_inference(c, y), limit::INFERENCE);
    }
}

/// Checks gradients against the oracle.
pub fn check_backward<T: Number>(p: &Problem<T>, forward: &Forward<T>, made: &Backward<T>, through: Through) {
    for c in 0..p.shape.channels() {
        let e = p.judge_backward(c, forward, made, through);
        let given = through == Through::Running;
        let of = |batch: f64, frozen: f64| if given { frozen } else { promised::<T>(batch) };
        within("dx", c, e.dx, of(limit::DX, limit::FROZEN_DX));
        within("dgamma", c, e.dgamma, of(limit::DGAMMA, T::FORMAT.follows(limit::FROZEN_SUMS)));
        within("dbeta", c, e.dbeta, of(limit::DBETA, T::FORMAT.follows(limit::FROZEN_SUMS)));
    }
}

/// Checks gradients that were made from the sums of shards.
pub fn check_shards<T: Number>(p: &Problem<T>, forward: &Forward<T>, made: &Backward<T>) {
    for c in 0..p.shape.channels() {
        let e = p.judge_backward(c, forward, made, Through::Batch);
        within("dx", c, e.dx, promised::<T>(limit::DX) + e.shards);
        within("dgamma", c, e.dgamma, promised::<T>(limit::DGAMMA) + e.shards);
        within("dbeta", c, e.dbeta, promised::<T>(limit::DBETA));
    }
}

/// The same problem in the other layout.
pub fn transposed<T: Number>(p: &Problem<T>) -> Problem<T> {
    let s = p.shape;
    let last = s.layout() == Layout::Nhwc;
    let other = if last { Layout::Nchw } else { Layout::Nhwc };
    let shape = Shape::new(other, s.batch(), s.channels(), &[s.spatial()]).expect("as large as the other");
    let turn = |v: &[T]| turned(v, last, s);
    Problem { shape, x: turn(&p.x), dy: turn(&p.dy), residual: p.residual.as_ref().map(|r| turn(r)), ..p.clone() }
}

/// A tensor of a shape in the other layout; `last` is that of the tensor.
pub fn turned<T: Copy>(v: &[T], last: bool, s: Shape) -> Vec<T> {
    let mut out = v.to_vec();
    for c in 0..s.channels() {
        let here = places(last, s.batch(), s.channels(), s.spatial(), c);
        let there = places(!last, s.batch(), s.channels(), s.spatial(), c);
        for (a, b) in here.zip(there) {
            out[b] = v[a];
        }
    }
    out
}

/// Runs `$f` on the input's element type.
#[macro_export]
macro_rules! by_type {
    ($input:expr, $f:ident) => {
        if $input.double { $f::<f64>(&$input) } else { $f::<f32>(&$input) }
    };
}

/// Units, for targets that compare two results.
pub use bounds::Format;
