//! The scales that errors are measured in, and the bounds in units of them.
//!
//! A unit is 2⁻²⁴ (2⁻⁵³ for f64) of the scale. `docs/accuracy.md` derives the bounds; the names here are
//! those of its table.

use crate::big::Real;
use crate::channel::{Backward, Channel};

/// 2^e of a normal number.
const fn power(e: i64) -> f64 {
    f64::from_bits(((1023 + e) as u64) << 52)
}

/// What an element type rounds to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    /// "f32", "f64".
    pub name: &'static str,
    /// Half an ulp of 1: the unit of errors.
    pub unit: f64,
    /// Half the smallest subnormal (0 where f64 cannot hold that).
    pub least: f64,
    /// The largest number.
    pub max: f64,
    /// What the mean's own rounding to f64 amounts to: this many units of |mean|.
    pub kept: f64,
}

impl Format {
    /// f32, with statistics in f64.
    pub const F32: Format = Format {
        name: "f32",
        unit: f32::EPSILON as f64 / 2.0,
        // 2⁻¹⁵⁰.
        least: power(-150),
        max: f32::MAX as f64,
        // 4 · 2⁻⁵³ / 2⁻²⁴.
        kept: power(-27),
    };
    /// f64.
    pub const F64: Format =
        Format { name: "f64", unit: f64::EPSILON / 2.0, least: f64::from_bits(1), max: f64::MAX, kept: 1.0 };

    /// f16, calculated in f32.
    pub const F16: Format =
        Format { name: "f16", unit: power(-11), least: power(-25), max: 65504.0, kept: Format::F32.kept };
    /// bf16, calculated in f32.
    pub const BF16: Format =
        Format { name: "bf16", unit: power(-8), least: power(-134), max: 255.0 * power(120), kept: Format::F32.kept };

    /// A bound of `limit` on sums, or on what is made of them, for this type.
    pub fn follows(&self, bound: f64) -> f64 {
        if self.name == "f64" { bound * limit::AGAIN } else { bound }
    }

    /// The error of a result in units of `scale`, less `slack` halves of a subnormal.
    ///
    /// Infinity is taken for the least number that rounds to it, on both sides. NaN is infinitely
    /// wrong.
    pub fn units(&self, got: f64, exact: Real, scale: f64, slack: f64) -> f64 {
        if got.is_nan() {
            return f64::INFINITY;
        }
        let top = self.max * (1.0 + self.unit);
        let error = if got.is_infinite() || exact.hi.abs() > self.max {
            let clip = |v: f64| v.clamp(-top.min(f64::MAX), top.min(f64::MAX));
            (clip(got) - clip(exact.hi)).abs()
        } else {
            exact.distance(got)
        };
        let error = error - slack * self.least;
        if error <= 0.0 { 0.0 } else { error / scale / self.unit }
    }
}

/// What is applied to the result; the mask of its gradient.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Activation {
    /// z.
    #[default]
    Identity,
    /// 0 where z < 0, else z.
    Relu,
    /// slope·z where z < 0, else z.
    LeakyRelu(f64),
    /// z within lo … hi.
    Clamp(f64, f64),
}

impl Activation {
    /// act(z).
    pub fn forward(self, z: Real) -> Real {
        match self {
            Activation::Relu if z.hi < 0.0 => Real::default(),
            Activation::LeakyRelu(slope) if z.hi < 0.0 => {
                let hi = z.hi * slope;
                Real { hi, lo: z.hi.mul_add(slope, -hi) + z.lo * slope }
            }
            Activation::Clamp(lo, _) if z.hi < lo => lo.into(),
            Activation::Clamp(_, hi) if z.hi > hi => hi.into(),
            _ => z,
        }
    }

    /// By what dy is multiplied, given y.
    pub fn factor(self, y: f64) -> f64 {
        match self {
            Activation::Identity => 1.0,
            Activation::Relu => (y > 0.0) as u8 as f64,
            Activation::LeakyRelu(slope) => {
                if y > 0.0 {
                    1.0
                } else {
                    slope
                }
            }
            Activation::Clamp(lo, hi) => (lo < y && y < hi) as u8 as f64,
        }
    }

    /// By how much an error of z may grow.
    fn steepness(self) -> f64 {
        if let Activation::LeakyRelu(slope) = self { slope.max(1.0) } else { 1.0 }
    }

    /// Halves of a subnormal by which y may be wrong: that of z, which may grow, and its own.
    fn slack(self) -> f64 {
        1.0 + self.steepness()
    }
}

/// The bounds, in units. `docs/accuracy.md` says how they follow.
pub mod limit {
    /// The contract's 2·10⁻⁶ in units of 2⁻²⁴. What is promised, and tested, for f32; the same number
    /// of units is tested for f64.
    pub const CONTRACT: f64 = 33.554432;
    /// Twice that for the variance, of which y feels half.
    pub const CONTRACT_VARIANCE: f64 = 2.0 * CONTRACT;
    /// The mean, if every rounding erred by its most in the same direction; so for the others.
    pub const MEAN: f64 = 45.0;
    /// The biased variance.
    pub const VARIANCE: f64 = 170.0;
    /// y in training.
    pub const Y: f64 = 135.0;
    /// dx through batch statistics.
    pub const DX: f64 = 460.0;
    /// dgamma through batch statistics.
    pub const DGAMMA: f64 = 285.0;
    /// dbeta through batch statistics.
    pub const DBETA: f64 = 64.0;
    /// Roundings in f64 of each shard's mean, for up to four of them: to join it, and in what is made of it.
    pub const SHARDS: f64 = 8.0;
    /// By how much the bounds of sums grow for f64: a block that is done again is one chain of up to 256
    /// additions, which is nothing in the f64 behind f32, and all that f64 has.
    pub const AGAIN: f64 = 9.0;
    /// y from given statistics.
    pub const INFERENCE: f64 = 8.0;
    /// dx through given statistics.
    pub const FROZEN_DX: f64 = 8.0;
    /// dgamma and dbeta through given statistics.
    pub const FROZEN_SUMS: f64 = 40.0;
}

/// Errors of one channel's training forward pass, in units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forward {
    /// Of max(1, max |z|) + |γ|/σ·kept·|mean|, z being y before the activation, with and without the
    /// residual.
    pub y: f64,
    /// Of σₓ + kept·|mean|, σₓ² being the variance.
    pub mean: f64,
    /// Of σₓ² + kept·|mean|·σₓ.
    pub variance: f64,
}

/// The parameters of a channel.
#[derive(Clone, Copy, Debug)]
pub struct Parameters {
    /// The factor.
    pub gamma: f64,
    /// What is added.
    pub beta: f64,
    /// What is applied.
    pub activation: Activation,
}

/// Judges a training forward pass. `residual` is empty where there is none.
pub fn forward(
    format: &Format,
    channel: &Channel,
    p: Parameters,
    x: &[f64],
    residual: &[f64],
    y: &[f64],
    mean: f64,
    variance: f64,
) -> Forward {
    let (exact_mean, exact_variance) = (channel.mean(), channel.variance());
    let sigma = exact_variance.hi.sqrt();
    let kept = format.kept * exact_mean.hi.abs();
    let at = |i: usize| residual.get(i).copied().unwrap_or(0.0);
    let z: Vec<Real> = x.iter().enumerate().map(|(i, &x)| channel.y(x, p.gamma, p.beta, at(i))).collect();
    let top = z.iter().enumerate().fold(1.0f64, |m, (i, z)| m.max(z.hi.abs()).max((z.hi - at(i)).abs()));
    let scale = top + channel.scale(p.gamma).hi.abs() * kept;
    let of_y = |i: usize| {
        format.units(y[i], p.activation.forward(z[i]), scale * p.activation.steepness(), p.activation.slack())
    };
    Forward {
        y: (0..z.len()).map(of_y).fold(0.0, f64::max),
        mean: Format::F64.units_of(mean, exact_mean, sigma + kept, format),
        variance: Format::F64.units_of(
            variance,
            exact_variance,
            sigma * (sigma + kept) + format.unit * kept * kept,
            format,
        ),
    }
}

impl Format {
    /// The error of a statistic, which is f64, in units of another format.
    fn units_of(&self, got: f64, exact: Real, scale: f64, unit: &Format) -> f64 {
        self.units(got, exact, scale, 2.0) * self.unit / unit.unit
    }
}

/// Judges inference: the worst error of y in units of |γ·x̂| + |β| + |residual| of the element.
pub fn inference(format: &Format, channel: &Channel, p: Parameters, x: &[f64], residual: &[f64], y: &[f64]) -> f64 {
    let s = channel.scale(p.gamma);
    let mean = channel.mean();
    let of = |i: usize| {
        let r = residual.get(i).copied().unwrap_or(0.0);
        let z = channel.y(x[i], p.gamma, p.beta, r);
        let exact = p.activation.forward(z);
        let scale = ((x[i] - mean.hi) * s.hi).abs() + p.beta.abs() + r.abs();
        format.units(y[i], exact, scale * p.activation.steepness(), p.activation.slack())
    };
    (0..x.len()).map(of).fold(0.0, f64::max)
}

/// Errors of one channel's backward pass, in units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gradients {
    /// Batch: of |γ|/σ·A·(1 + |x̂|), A = max |dz − mean dz| (+ what the means' own rounding adds). Given
    /// statistics: of |dx|.
    pub dx: f64,
    /// Batch: of |γ|/σ·A alone.
    pub dx_flat: f64,
    /// Batch: of n·A·σₓ/σ. Given: of Σ |dz·x̂|.
    pub dgamma: f64,
    /// Batch: of n·A + |dβ|. Given: of Σ |dz|.
    pub dbeta: f64,
    /// By how many units more dx and dgamma may be wrong that were made from the sums of shards: what the f64 of
    /// Σ (x − mean) rounds, times the mean of dz.
    pub shards: f64,
}

/// What a backward pass has made of a channel. Empty, or `None`: not asked for.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// The gradient of x.
    pub dx: &'a [f64],
    /// Of gamma.
    pub dgamma: Option<f64>,
    /// Of beta.
    pub dbeta: Option<f64>,
}

/// Judges a backward pass; dz is what has passed the activation's mask.
pub fn backward(
    format: &Format,
    channel: &Channel,
    gamma: f64,
    given: bool,
    x: &[f64],
    dz: &[f64],
    made: Made<'_>,
) -> Gradients {
    let b: Backward<'_> = channel.backward(gamma, (0..x.len()).map(|i| (x[i], dz[i], 1.0)));
    let (mean, s, r) = (channel.mean(), channel.scale(gamma).hi.abs(), channel.scale(1.0).hi);
    let x_hat = |i: usize| (((x[i] - mean.hi) - mean.lo) * r).abs();
    let (dgamma, dbeta) = (b.dgamma(), b.dbeta());
    let mut out = Gradients::default();
    let [mut sums, mut dots] = [0.0; 2];
    if given {
        for i in 0..x.len() {
            sums += dz[i].abs();
            dots += dz[i].abs() * x_hat(i);
        }
        for (i, &got) in made.dx.iter().enumerate() {
            let exact = b.dx(x[i], dz[i], 1.0);
            out.dx = out.dx.max(format.units(got, exact, exact.hi.abs(), 2.0));
        }
    } else {
        let n = x.len() as f64;
        let mean_dz = b.mean_dz();
        let spread = (0..x.len()).fold(0.0f64, |m, i| m.max(((dz[i] - mean_dz.hi) - mean_dz.lo).abs()))
            + format.kept * mean_dz.hi.abs();
        let (sigma, kept) = (channel.variance().hi.sqrt(), format.kept * mean.hi.abs());
        if mean_dz.hi != 0.0 {
            let lost = limit::SHARDS * Format::F64.unit / format.unit * (sigma + mean.hi.abs());
            out.shards = lost * (mean_dz.hi.abs() / spread) / (sigma + kept).max(f64::MIN_POSITIVE);
        }
        sums = n * spread + dbeta.hi.abs();
        dots = n * spread * (sigma + kept) * r;
        let flat = s * spread * (1.0 + kept * r);
        for (i, &got) in made.dx.iter().enumerate() {
            let exact = b.dx(x[i], dz[i], 1.0);
            let error = format.units(got, exact, flat, 2.0);
            out.dx_flat = out.dx_flat.max(error);
            out.dx = out.dx.max(error / (1.0 + x_hat(i)));
        }
    }
    if let Some(got) = made.dgamma {
        out.dgamma = format.units(got, dgamma, dots, 2.0);
    }
    if let Some(got) = made.dbeta {
        out.dbeta = format.units(got, dbeta, sums, 2.0);
    }
    out
}
