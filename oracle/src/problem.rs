//! A batch normalization with its data: what the library makes of it, judged by the oracle.

use crate::bounds::{self, Activation, Format, Made, Parameters};
use crate::channel::Channel;
use crate::data::{Family, Gradient, Random, Range, gradients, places, values};
use bn_core::{
    Affine, BackwardInput, BatchNorm, Element, Executor, Gradients, Isa, Layout, Moments, Op, Param, Run, Serial,
    Shape, Statistics,
};

/// An element type.
pub trait Number: Element<Param: Scalar> + Scalar {
    /// How it rounds.
    const FORMAT: Format;
    /// What it can hold.
    const RANGE: Range;
}

/// An element's or a parameter's way from and to f64.
pub trait Scalar: Copy + Default + PartialEq + core::fmt::Debug {
    /// Rounds to nearest.
    fn of(v: f64) -> Self;
    /// Exactly.
    fn wide(self) -> f64;
    /// The bits, with all NaN alike: their payloads are no promise.
    fn bits(self) -> u64;
}

macro_rules! number {
    ($t:ident, $format:expr, $range:expr) => {
        impl Scalar for $t {
            fn of(v: f64) -> Self {
                v as $t
            }
            fn wide(self) -> f64 {
                self as f64
            }
            fn bits(self) -> u64 {
                if self.is_nan() { u64::MAX } else { self.to_bits() as u64 }
            }
        }
        impl Number for $t {
            const FORMAT: Format = $format;
            const RANGE: Range = $range;
        }
    };
}
number!(f32, Format::F32, Range::F32);
number!(f64, Format::F64, Range::F64);

#[cfg(feature = "half")]
macro_rules! narrow {
    ($t:ident, $format:expr, $range:expr) => {
        impl Scalar for half::$t {
            fn of(v: f64) -> Self {
                half::$t::from_f64(v)
            }
            fn wide(self) -> f64 {
                self.to_f64()
            }
            fn bits(self) -> u64 {
                if self.is_nan() { u64::MAX } else { self.to_bits() as u64 }
            }
        }
        impl Number for half::$t {
            const FORMAT: Format = $format;
            const RANGE: Range = Range { round: |v| half::$t::from_f64(v).to_f64(), ..$range };
        }
    };
}
#[cfg(feature = "half")]
narrow!(f16, Format::F16, Range::F16);
#[cfg(feature = "half")]
narrow!(bf16, Format::BF16, Range::BF16);

/// A problem.
#[derive(Clone, Debug)]
pub struct Problem<T: Number> {
    /// Of x, y, dy, dx and the residual.
    pub shape: Shape,
    /// Added to the variance.
    pub epsilon: f64,
    /// Applied to the result.
    pub activation: Activation,
    /// The input.
    pub x: Vec<T>,
    /// The gradient of the output.
    pub dy: Vec<T>,
    /// Added before the activation.
    pub residual: Option<Vec<T>>,
    /// The factors.
    pub gamma: Option<Vec<T::Param>>,
    /// The summands.
    pub beta: Option<Vec<T::Param>>,
    /// Running statistics: mean and variance.
    pub running: (Vec<T::Param>, Vec<T::Param>),
}

/// What training makes.
#[derive(Clone, Debug)]
pub struct Forward<T> {
    /// The output.
    pub y: Vec<T>,
    /// The statistics.
    pub moments: Vec<Moments>,
}

/// All gradients.
#[derive(Clone, Debug)]
pub struct Backward<T: Number> {
    /// Of x.
    pub dx: Vec<T>,
    /// Of the residual.
    pub dresidual: Vec<T>,
    /// Of gamma.
    pub dgamma: Vec<T::Param>,
    /// Of beta.
    pub dbeta: Vec<T::Param>,
}

/// Which statistics a backward pass goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The batch's, as the forward pass wrote them.
    Batch,
    /// The batch's, rounded to the parameters' type.
    Rounded,
    /// Running ones.
    Running,
}

/// How a call is made.
#[derive(Clone, Copy)]
pub struct How<'a> {
    /// With these instructions.
    pub isa: Isa,
    /// On these threads.
    pub executor: &'a dyn Executor,
    /// With a workspace of the least length, plus so many words; `None`: of the best.
    pub workspace: Option<usize>,
}

impl Default for How<'_> {
    fn default() -> Self {
        How { isa: Isa::detect(), executor: &Serial, workspace: None }
    }
}

/// What a blank result is filled with.
const BLANK: f64 = f64::NAN;

fn bits_of<S: Scalar>(v: &[S]) -> impl Iterator<Item = u64> {
    v.iter().map(|v| v.bits())
}

impl<T: Number> Forward<T> {
    /// All bits.
    pub fn bits(&self) -> Vec<u64> {
        let moments = self.moments.iter().flat_map(|m| [m.count, m.mean.bits(), m.m2.bits()]);
        bits_of(&self.y).chain(moments).collect()
    }
}

impl<T: Number> Backward<T> {
    /// All bits.
    pub fn bits(&self) -> Vec<u64> {
        let tensors = bits_of(&self.dx).chain(bits_of(&self.dresidual));
        tensors.chain(bits_of(&self.dgamma)).chain(bits_of(&self.dbeta)).collect()
    }
}

impl<T: Number> Problem<T> {
    /// The plan.
    ///
    /// # Panics
    /// Where the problem is no legal one; so do the other methods.
    pub fn plan(&self, isa: Isa) -> BatchNorm<T> {
        let activation = match self.activation {
            Activation::Identity => bn_core::Activation::Identity,
            Activation::Relu => bn_core::Activation::Relu,
            Activation::LeakyRelu(slope) => bn_core::Activation::LeakyRelu { slope },
            Activation::Clamp(lo, hi) => bn_core::Activation::Clamp { lo, hi },
        };
        let bn = BatchNorm::new(self.shape, self.epsilon).expect("a legal epsilon").with_isa(isa);
        bn.with_activation(activation).expect("a legal activation").allow_one_value()
    }

    fn affine(&self) -> Affine<'_, T::Param> {
        Affine { gamma: self.gamma.as_deref(), beta: self.beta.as_deref() }
    }

    fn workspace(&self, bn: &BatchNorm<T>, op: Op, how: How<'_>) -> Vec<u64> {
        let words = how
            .workspace
            .map_or_else(|| bn.workspace_best(op, how.executor.width()), |more| bn.workspace_min(op) + more);
        // NaN, as f32 and as f64.
        vec![0xfff4_dead_fff4_beef; words]
    }

    /// Training.
    pub fn forward(&self, how: How<'_>) -> Forward<T> {
        let bn = self.plan(how.isa);
        let mut y = vec![T::of(BLANK); self.shape.len()];
        let mut moments = vec![Moments { count: 99, mean: BLANK, m2: BLANK }; self.shape.channels()];
        let mut words = self.workspace(&bn, Op::ForwardTraining, how);
        let run = Run::on(how.executor, &mut words);
        bn.forward_training(&self.x, self.residual.as_deref(), self.affine(), &mut y[..], &mut moments, run)
            .expect("training succeeds");
        Forward { y, moments }
    }

    /// Inference with the running statistics.
    pub fn inference(&self, how: How<'_>) -> Vec<T> {
        let bn = self.plan(how.isa);
        let mut y = vec![T::of(BLANK); self.shape.len()];
        let mut words = self.workspace(&bn, Op::Inference, how);
        let (mean, var) = (&self.running.0, &self.running.1);
        let run = Run::on(how.executor, &mut words);
        bn.inference(&self.x, self.residual.as_deref(), self.affine(), mean, var, &mut y[..], run)
            .expect("inference succeeds");
        y
    }

    /// All gradients.
    pub fn backward(&self, how: How<'_>, forward: &Forward<T>, through: Through) -> Backward<T> {
        let bn = self.plan(how.isa);
        let (n, c) = (self.shape.len(), self.shape.channels());
        let blank = T::Param::of(BLANK);
        let mut out = Backward {
            dx: vec![T::of(BLANK); n],
            dresidual: vec![T::of(BLANK); n],
            dgamma: vec![blank; c],
            dbeta: vec![blank; c],
        };
        let (mean, var) = rounded(&forward.moments);
        let statistics = match through {
            Through::Batch => Statistics::Batch(&forward.moments),
            Through::Rounded => Statistics::Rounded { mean: &mean, var: &var },
            Through::Running => Statistics::Running { mean: &self.running.0, var: &self.running.1 },
        };
        let mut words = self.workspace(&bn, Op::Backward, how);
        let gradients = Gradients {
            dx: Some((&mut out.dx[..]).into()),
            dresidual: Some((&mut out.dresidual[..]).into()),
            dgamma: Some(&mut out.dgamma),
            dbeta: Some(&mut out.dbeta),
        };
        let input =
            BackwardInput { x: &self.x, y: Some(&forward.y), dy: &self.dy, gamma: self.gamma.as_deref(), statistics };
        bn.backward(input, gradients, Run::on(how.executor, &mut words)).expect("the backward pass succeeds");
        out
    }

    /// Places of a channel's elements.
    pub fn places(&self, channel: usize) -> impl Iterator<Item = usize> + Clone + use<T> {
        let s = self.shape;
        places(s.layout() == Layout::Nhwc, s.batch(), s.channels(), s.spatial(), channel)
    }

    /// What of a tensor belongs to a channel.
    pub fn gather(&self, channel: usize, from: &[T]) -> Vec<f64> {
        self.places(channel).map(|i| from[i].wide()).collect()
    }

    /// The parameters of a channel.
    pub fn parameters(&self, channel: usize) -> Parameters {
        Parameters {
            gamma: self.gamma.as_ref().map_or(1.0, |g| g[channel].wide()),
            beta: self.beta.as_ref().map_or(0.0, |b| b[channel].wide()),
            activation: self.activation,
        }
    }

    /// The exact statistics of a channel.
    pub fn channel(&self, channel: usize) -> Channel {
        Channel::batch(self.places(channel).map(|i| self.x[i].wide()), self.epsilon)
    }

    /// Errors of a channel's training.
    pub fn judge_forward(&self, c: usize, made: &Forward<T>) -> bounds::Forward {
        let x = self.gather(c, &self.x);
        let residual = self.residual.as_ref().map_or(Vec::new(), |r| self.gather(c, r));
        let m = made.moments[c];
        assert_eq!(m.count, x.len() as u64);
        let (p, y) = (self.parameters(c), self.gather(c, &made.y));
        bounds::forward(&T::FORMAT, &self.channel(c), p, &x, &residual, &y, m.mean, m.variance())
    }

    /// The error of a channel's inference.
    pub fn judge_inference(&self, c: usize, y: &[T]) -> f64 {
        let x = self.gather(c, &self.x);
        let residual = self.residual.as_ref().map_or(Vec::new(), |r| self.gather(c, r));
        let given = Channel::given(self.running.0[c].wide(), self.running.1[c].wide(), self.epsilon);
        bounds::inference(&T::FORMAT, &given, self.parameters(c), &x, &residual, &self.gather(c, y))
    }

    /// Errors of a channel's gradients.
    pub fn judge_backward(
        &self,
        c: usize,
        forward: &Forward<T>,
        made: &Backward<T>,
        through: Through,
    ) -> bounds::Gradients {
        let (x, dy, y) = (self.gather(c, &self.x), self.gather(c, &self.dy), self.gather(c, &forward.y));
        let channel = match through {
            Through::Batch => self.channel(c),
            Through::Rounded => {
                let (_, var) = rounded::<T::Param>(&forward.moments[c..=c]);
                self.channel(c).with_variance(var[0].wide())
            }
            Through::Running => Channel::given(self.running.0[c].wide(), self.running.1[c].wide(), self.epsilon),
        };
        // What passes the mask is rounded to what the library calculates in, the parameters' type; the other
        // gradients are those of what has passed. As stored it is right to the last bit.
        let mut dz = Vec::with_capacity(dy.len());
        // The limits of a clamp are those that the type holds.
        let activation = match self.activation {
            Activation::Clamp(lo, hi) => {
                let stored = |v| <T as Scalar>::of(T::Param::of(v).wide()).wide();
                Activation::Clamp(stored(lo), stored(hi))
            }
            other => other,
        };
        for (i, at) in self.places(c).enumerate() {
            let exact = crate::Backward::dz(dy[i], activation.factor(y[i]));
            dz.push(T::Param::of(exact.hi).wide());
            assert_eq!(made.dresidual[at], <T as Scalar>::of(dz[i]), "dresidual of {dy:e}", dy = dy[i]);
        }
        // The slope of a leaky rectifier may take dy beyond the range: then there is nothing to be exact about.
        if dz.iter().any(|v| v.is_infinite()) {
            assert!(!made.dbeta[c].wide().is_finite(), "dbeta of {c} is {:?}, of infinite addends", made.dbeta[c]);
            return bounds::Gradients::default();
        }
        let dx = self.gather(c, &made.dx);
        let made = Made { dx: &dx, dgamma: Some(made.dgamma[c].wide()), dbeta: Some(made.dbeta[c].wide()) };
        let gamma = self.parameters(c).gamma;
        bounds::backward(&T::FORMAT, &channel, gamma, through == Through::Running, &x, &dz, made)
    }

    /// A problem of a kind: x and dy of these families, parameters of usual sizes, running statistics
    /// that have something to do with x.
    pub fn random(shape: Shape, family: Family, gradient: Gradient, r: &mut Random) -> Self {
        let (len, c) = (shape.len(), shape.channels());
        let of = |v: f64| T::of(v);
        let mut p = Problem {
            shape,
            epsilon: r.pick(&[0.0, 1e-5]),
            activation: Activation::Identity,
            x: vec![T::default(); len],
            dy: vec![T::default(); len],
            residual: None,
            gamma: None,
            beta: None,
            running: (Vec::new(), Vec::new()),
        };
        for channel in 0..c {
            let n = p.places(channel).count();
            let x = values(family, r, n, &T::RANGE);
            let dy = gradients(gradient, r, &x, &T::RANGE);
            let (mean, var) = if n == 0 { (0.0, 1.0) } else { running(&x, r) };
            let most = T::FORMAT.max.min(2f64.powi(1000));
            p.running.0.push(T::Param::of(mean.clamp(-most, most)));
            p.running.1.push(T::Param::of(var.clamp(0.0, most)));
            for (i, at) in p.places(channel).enumerate() {
                (p.x[at], p.dy[at]) = (of(x[i]), of(dy[i]));
            }
        }
        if r.below(2) == 0 {
            let factor = r.pick(&[1.0, 1.0, 1.0, 1e-6, 1e6]);
            p.gamma = Some((0..c).map(|_| T::Param::of(factor * r.normal())).collect());
        }
        if r.below(2) == 0 {
            let size = r.pick(&[1.0, 1.0, 100.0]);
            p.beta = Some((0..c).map(|_| T::Param::of(size * r.normal())).collect());
        }
        if r.below(4) == 0 {
            p.residual = Some((0..len).map(|_| of(r.normal())).collect());
        }
        if r.below(3) == 0 {
            p.activation = r.pick(&[Activation::Relu, Activation::LeakyRelu(0.25), Activation::Clamp(0.0, 6.0)]);
        }
        p
    }
}

/// Mean and variance as frameworks keep them.
fn rounded<P: Param + Scalar>(moments: &[Moments]) -> (Vec<P>, Vec<P>) {
    moments.iter().map(|m| (P::of(m.mean), P::of(m.variance()))).unzip()
}

/// Statistics that are about those of x, or not.
fn running(x: &[f64], r: &mut Random) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().map(|x| x / n).sum::<f64>();
    let var = x.iter().map(|x| (x - mean) * (x - mean) / n).sum::<f64>();
    match r.below(4) {
        0 => (x[0], var),
        1 => (r.normal(), r.uniform()),
        _ => (mean, var),
    }
}
