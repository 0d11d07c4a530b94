//! A batch normalization with its data: what the library makes of it, and what the specification
//! says.

use super::{Channel, Random, mean_var, places, sum};
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Element, Gradients, Isa, Moments, Op, Param, Run, Shape, Statistics,
};
use core::fmt::Debug;

/// An element type that is its own parameter type.
pub trait Real: Element<Param = Self> + Param + PartialEq {
    /// The contract's 2e-6, and for f64 a bound that its reference (f64 itself) can vouch for.
    const BOUND: f64;
    /// Half an ulp of 1.
    const ROUNDING: f64;
    fn of(v: f64) -> Self;
    fn wide(self) -> f64;
    /// All NaN alike: their payloads are no promise.
    fn bits(self) -> u64;
}

impl Real for f32 {
    const BOUND: f64 = 2e-6;
    const ROUNDING: f64 = f32::EPSILON as f64 / 2.0;
    fn of(v: f64) -> f32 {
        v as f32
    }
    fn wide(self) -> f64 {
        self as f64
    }
    fn bits(self) -> u64 {
        if self.is_nan() { u64::MAX } else { self.to_bits() as u64 }
    }
}

impl Real for f64 {
    const BOUND: f64 = 1e-13;
    const ROUNDING: f64 = f64::EPSILON / 2.0;
    fn of(v: f64) -> f64 {
        v
    }
    fn wide(self) -> f64 {
        self
    }
    fn bits(self) -> u64 {
        if self.is_nan() { u64::MAX } else { self.to_bits() }
    }
}

pub fn bits<T: Real>(values: &[T]) -> Vec<u64> {
    values.iter().map(|v| v.bits()).collect()
}

pub fn moment_bits(moments: &[Moments]) -> Vec<[u64; 3]> {
    moments.iter().map(|m| [m.count, m.mean.bits(), m.m2.bits()]).collect()
}

/// Runs `f` on a workspace of exactly so many words of garbage (NaN as f32 and as f64), and checks
/// that nothing beside it was touched.
pub fn with_workspace<R>(words: usize, f: impl FnOnce(&mut [u64]) -> R) -> R {
    const GARBAGE: u64 = 0xfff4_dead_fff4_beef;
    const GUARD: usize = 64;
    let mut all = vec![GARBAGE; words + 2 * GUARD];
    let result = f(&mut all[GUARD..GUARD + words]);
    assert!(all[..GUARD].iter().all(|&w| w == GARBAGE), "written before the workspace");
    assert!(all[GUARD + words..].iter().all(|&w| w == GARBAGE), "written behind the workspace");
    result
}

/// The activation, as its documentation says.
pub fn activate(a: Activation, z: f64) -> f64 {
    match a {
        Activation::Identity => z,
        Activation::Relu => z.max(0.0),
        Activation::LeakyRelu { slope } => {
            if z < 0.0 {
                slope * z
            } else {
                z
            }
        }
        Activation::Clamp { lo, hi } => z.max(lo).min(hi),
        _ => unreachable!(),
    }
}

/// dy behind the activation's mask, for limits that the type holds.
pub fn mask(a: Activation, y: f64, dy: f64) -> f64 {
    match a {
        Activation::Identity => dy,
        Activation::Relu => {
            if y > 0.0 {
                dy
            } else {
                0.0
            }
        }
        Activation::LeakyRelu { slope } => {
            if y > 0.0 {
                dy
            } else {
                slope * dy
            }
        }
        Activation::Clamp { lo, hi } => {
            if lo < y && y < hi {
                dy
            } else {
                0.0
            }
        }
        _ => unreachable!(),
    }
}

#[derive(Clone)]
pub struct Problem<T> {
    /// What [`random`] made the data from; 0 if something else did.
    pub seed: u64,
    pub shape: Shape,
    pub epsilon: f64,
    pub activation: Activation,
    pub x: Vec<T>,
    pub dy: Vec<T>,
    pub residual: Option<Vec<T>>,
    pub gamma: Option<Vec<T>>,
    pub beta: Option<Vec<T>>,
}

/// What makes it again, not the data.
impl<T> Debug for Problem<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Problem { shape, epsilon, activation, seed, .. } = self;
        let extras = self.residual.is_some();
        write!(f, "random({shape:?}, {activation:?}, {extras}, {seed}), ε {epsilon}")
    }
}

/// What training makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward<T> {
    pub y: Vec<T>,
    pub moments: Vec<Moments>,
}

impl<T: Real> Forward<T> {
    pub fn bits(&self) -> (Vec<u64>, Vec<[u64; 3]>) {
        (bits(&self.y), moment_bits(&self.moments))
    }
}

/// All gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Backward<T> {
    pub dx: Vec<T>,
    pub dresidual: Vec<T>,
    pub dgamma: Vec<T>,
    pub dbeta: Vec<T>,
}

impl<T: Real> Backward<T> {
    /// Filled with what no call may leave.
    pub fn blank(shape: Shape) -> Self {
        let (n, c) = (vec![T::of(f64::NAN); shape.len()], vec![T::of(f64::NAN); shape.channels()]);
        Backward { dx: n.clone(), dresidual: n, dgamma: c.clone(), dbeta: c }
    }
    pub fn all(&mut self) -> Gradients<'_, T> {
        Gradients {
            dx: Some((&mut self.dx[..]).into()),
            dresidual: Some((&mut self.dresidual[..]).into()),
            dgamma: Some(&mut self.dgamma),
            dbeta: Some(&mut self.dbeta),
        }
    }
    pub fn bits(&self) -> [Vec<u64>; 4] {
        [bits(&self.dx), bits(&self.dresidual), bits(&self.dgamma), bits(&self.dbeta)]
    }
}

/// What the specification says of the forward pass.
#[derive(Clone, Debug)]
pub struct ExactForward {
    pub channels: Vec<Channel>,
    /// Before the activation.
    pub z: Vec<f64>,
    pub y: Vec<f64>,
    /// max(1, max |y|) of each channel.
    pub top: Vec<f64>,
}

/// What the specification says of the backward pass.
#[derive(Clone, Debug)]
pub struct ExactBackward {
    pub dx: Vec<f64>,
    pub dresidual: Vec<f64>,
    pub dgamma: Vec<f64>,
    pub dbeta: Vec<f64>,
    /// |s|·max |dy − mean dy| of each channel.
    pub spread: Vec<f64>,
    /// Σ |dy − mean dy|·|x̂| of each channel: what rounding in dgamma is measured by.
    pub dot: Vec<f64>,
    /// Σ |dy| of each channel.
    pub sum: Vec<f64>,
    /// n·max |dy − mean dy| of each channel.
    pub far: Vec<f64>,
}

impl<T: Real> Problem<T> {
    pub fn plan(&self, isa: Isa) -> BatchNorm<T> {
        let bn = BatchNorm::new(self.shape, self.epsilon).unwrap().with_isa(isa);
        bn.with_activation(self.activation).unwrap().allow_one_value()
    }

    pub fn affine(&self) -> Affine<'_, T> {
        Affine { gamma: self.gamma.as_deref(), beta: self.beta.as_deref() }
    }

    pub fn input<'a>(&'a self, y: &'a [T], statistics: Statistics<'a, T>) -> BackwardInput<'a, T> {
        BackwardInput { x: &self.x, y: Some(y), dy: &self.dy, gamma: self.gamma.as_deref(), statistics }
    }

    pub fn forward(&self, isa: Isa) -> Forward<T> {
        let bn = self.plan(isa);
        self.forward_in(&bn, bn.workspace_best(Op::ForwardTraining, 1))
    }

    pub fn forward_in(&self, bn: &BatchNorm<T>, words: usize) -> Forward<T> {
        let mut y = vec![T::of(f64::NAN); self.shape.len()];
        let mut moments = vec![Moments { count: 99, mean: f64::NAN, m2: f64::NAN }; self.shape.channels()];
        with_workspace(words, |ws| {
            let run = Run::serial(ws);
            bn.forward_training(&self.x, self.residual.as_deref(), self.affine(), &mut y[..], &mut moments, run)
        })
        .unwrap();
        Forward { y, moments }
    }

    pub fn backward(&self, isa: Isa, y: &[T], statistics: Statistics<'_, T>) -> Backward<T> {
        let bn = self.plan(isa);
        self.backward_in(&bn, y, statistics, bn.workspace_best(Op::Backward, 1))
    }

    pub fn backward_in(&self, bn: &BatchNorm<T>, y: &[T], statistics: Statistics<'_, T>, words: usize) -> Backward<T> {
        let mut out = Backward::blank(self.shape);
        with_workspace(words, |ws| bn.backward(self.input(y, statistics), out.all(), Run::serial(ws))).unwrap();
        out
    }

    /// Mean and variance of each channel of x.
    pub fn statistics(&self) -> Vec<(f64, f64)> {
        let of = |c| mean_var(places(self.shape, c).map(|i| self.x[i].wide()));
        (0..self.shape.channels()).map(of).collect()
    }

    pub fn exact_forward(&self) -> ExactForward {
        self.exact_forward_with(&self.statistics())
    }

    pub fn exact_forward_with(&self, statistics: &[(f64, f64)]) -> ExactForward {
        let n = self.shape.len();
        let mut out = ExactForward { channels: vec![], z: vec![0.0; n], y: vec![0.0; n], top: vec![] };
        for (c, &(mean, var)) in statistics.iter().enumerate() {
            let channel = Channel {
                mean,
                var,
                gamma: self.gamma.as_ref().map_or(1.0, |g| g[c].wide()),
                beta: self.beta.as_ref().map_or(0.0, |b| b[c].wide()),
                epsilon: self.epsilon,
            };
            let mut top = 1.0f64;
            for i in places(self.shape, c) {
                out.z[i] = channel.y(self.x[i].wide()) + self.residual.as_ref().map_or(0.0, |r| r[i].wide());
                out.y[i] = activate(self.activation, out.z[i]);
                top = top.max(out.y[i].abs());
            }
            out.channels.push(channel);
            out.top.push(top);
        }
        out
    }

    /// The gradients in training, with the mask taken from `y`.
    pub fn exact_backward(&self, channels: &[Channel], y: &[T]) -> ExactBackward {
        let n = self.shape.len();
        let mut out = ExactBackward {
            dx: vec![0.0; n],
            dresidual: (0..n).map(|i| mask(self.activation, y[i].wide(), self.dy[i].wide())).collect(),
            dgamma: vec![],
            dbeta: vec![],
            spread: vec![],
            dot: vec![],
            sum: vec![],
            far: vec![],
        };
        for (c, channel) in channels.iter().enumerate() {
            let at: Vec<usize> = places(self.shape, c).collect();
            let x: Vec<f64> = at.iter().map(|&i| self.x[i].wide()).collect();
            let dy: Vec<f64> = at.iter().map(|&i| out.dresidual[i]).collect();
            let (dx, dgamma, dbeta) = super::backward(channel, &x, &dy);
            let (mean, r) = (dbeta / at.len() as f64, channel.inverse_std());
            for (&i, dx) in at.iter().zip(dx) {
                out.dx[i] = dx;
            }
            out.dgamma.push(dgamma);
            out.dbeta.push(dbeta);
            let far = dy.iter().fold(0.0f64, |m, d| m.max((d - mean).abs()));
            out.spread.push((channel.gamma * r).abs() * far);
            out.far.push(at.len() as f64 * far);
            out.dot.push(sum(x.iter().zip(&dy).map(|(x, d)| ((d - mean) * (x - channel.mean) * r).abs())));
            out.sum.push(sum(dy.iter().map(|d| d.abs())));
        }
        out
    }
}

/// How much of the mean's own rounding in f64 shows in x̂: half an ulp of the mean, in standard
/// deviations, on the side of the library and on that of the reference.
pub fn mean_rounding(ch: &Channel) -> f64 {
    2.0 * f64::EPSILON * ch.mean.abs() * ch.inverse_std()
}

/// Errors relative to their bounds: all must be at most 1.
#[derive(Debug, Default)]
pub struct Worst(std::collections::BTreeMap<String, f64>);

impl Worst {
    #[track_caller]
    pub fn check(&mut self, what: &str, place: &dyn Debug, got: f64, exact: f64, bound: f64) {
        let error = (got - exact).abs();
        let ratio = if error == 0.0 { 0.0 } else { error / bound };
        assert!(ratio <= 1.0, "{what} of {place:?}: {got:e}, expected {exact:e} ± {bound:e}");
        let entry = self.0.entry(what.into()).or_default();
        *entry = entry.max(ratio);
    }
}

/// Random data of a shape: channels with means and deviations of many sizes (also constant ones, and
/// two-valued ones), dy with a mean of its own.
pub fn random<T: Real>(shape: Shape, activation: Activation, extras: bool, seed: u64) -> Problem<T> {
    let mut r = Random(seed);
    let (n, c) = (shape.len(), shape.channels());
    // Through f32 for f64 as well: both calculate on the same numbers.
    let of = |v: f64| T::of(v as f32 as f64);
    let mut fill = |kinds: usize, far: f64| {
        let mut out = vec![T::default(); n];
        for channel in 0..c {
            let std = 10f64.powf(4.0 * r.uniform() - 2.0);
            let mean = std * r.normal() * 10f64.powf(far * r.uniform());
            let kind = r.below(kinds);
            for i in places(shape, channel) {
                out[i] = of(match kind {
                    7 => mean,
                    6 => mean + if r.below(2) == 0 { std } else { 0.0 },
                    _ => mean + std * r.normal(),
                });
            }
        }
        out
    };
    let (x, dy) = (fill(8, 4.0), fill(6, 2.0));
    let mut normal = |n: usize, mean: f64| (0..n).map(|_| of(mean + r.normal())).collect::<Vec<T>>();
    let (gamma, beta, residual) = (normal(c, 1.0), normal(c, 0.0), normal(n, 0.0));
    Problem {
        seed,
        shape,
        epsilon: 1e-5,
        activation,
        x,
        dy,
        residual: extras.then_some(residual),
        gamma: extras.then_some(gamma),
        beta: extras.then_some(beta),
    }
}

/// |y − exact| of a channel is below this times max(1, max |y|).
pub fn bound<T: Real>(ch: &Channel) -> f64 {
    T::BOUND + mean_rounding(ch) * ch.gamma.abs()
}

/// Compares everything that training makes with the reference.
pub fn compare<T: Real>(p: &Problem<T>, isa: Isa, worst: &mut Worst) {
    let f = p.forward(isa);
    let exact = p.exact_forward();
    let b = p.backward(isa, &f.y, Statistics::Batch(&f.moments));
    // The mask is taken from y as it is.
    let gradients = p.exact_backward(&exact.channels, &f.y);
    for (c, ch) in exact.channels.iter().enumerate() {
        let (bound, tiny) = (bound::<T>(ch), T::ROUNDING);
        for i in places(p.shape, c) {
            let name = (p.shape, isa, c, i);
            worst.check("y", &name, f.y[i].wide(), exact.y[i], bound * exact.top[c]);
            let dx_bound = (T::BOUND + 4.0 * mean_rounding(ch)) * gradients.spread[c];
            worst.check("dx", &name, b.dx[i].wide(), gradients.dx[i], dx_bound);
            assert_eq!(b.dresidual[i].wide(), gradients.dresidual[i], "dresidual of {name:?}");
        }
        let (name, m) = ((p.shape, isa, c), f.moments[c]);
        let far = 4.0 * f64::EPSILON * ch.mean.abs();
        worst.check("mean", &name, m.mean, ch.mean, T::BOUND * ch.var.sqrt() + far);
        worst.check("variance", &name, m.variance(), ch.var, T::BOUND * ch.var + far * (far + ch.var.sqrt()));
        let (dgamma, dbeta) = (gradients.dgamma[c], gradients.dbeta[c]);
        // The pivot of dy may be off by as much as dy varies; the rounding of the mean is multiplied
        // by that.
        // (And what does not vary loses the pivot too: where the mask leaves a few values, zeros weigh more than they.)
        let pivot = 16.0 * tiny * gradients.far[c];
        let dot =
            T::BOUND * gradients.dot[c] + pivot + 2.0 * mean_rounding(ch) * gradients.far[c] + tiny * dgamma.abs();
        worst.check("dgamma", &name, b.dgamma[c].wide(), dgamma, dot);
        let sum = T::BOUND * gradients.sum[c] + pivot + tiny * dbeta.abs();
        worst.check("dbeta", &name, b.dbeta[c].wide(), dbeta, sum);
        // A constant channel is β exactly, whatever the constant.
        if ch.var == 0.0 && p.residual.is_none() && p.activation == Activation::Identity {
            assert!(places(p.shape, c).all(|i| f.y[i].wide() == ch.beta), "{name:?} is constant");
        }
    }
}
