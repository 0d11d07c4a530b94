//! The operations by address: the bits of the methods, also where operands are one another as slices cannot be, and the
//! same errors, before anything is written.

mod common;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, GradSums, Gradients, Layout, Moments, Op, Prepared, Run,
    Shape, Statistics, raw,
};
use common::{Number, Random};

/// What outputs hold before a call.
const SENTINEL: f64 = -77.25;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    ForwardTraining,
    Accumulate,
    Normalize,
    Inference,
    Apply,
    Backward,
    BackwardRounded,
    BackwardRunning,
    BackwardFromOutput,
    BackwardSums,
    BackwardApply,
}
use Call::*;

const CALLS: [Call; 11] = [
    ForwardTraining,
    Accumulate,
    Normalize,
    Inference,
    Apply,
    Backward,
    BackwardRounded,
    BackwardRunning,
    BackwardFromOutput,
    BackwardSums,
    BackwardApply,
];

impl Call {
    fn is_backward(self) -> bool {
        !matches!(self, ForwardTraining | Accumulate | Normalize | Inference | Apply)
    }
    fn op(self) -> Op {
        match self {
            ForwardTraining | Accumulate | Normalize => Op::ForwardTraining,
            Inference | Apply => Op::Inference,
            _ => Op::Backward,
        }
    }
}

/// Which operand an output is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Alias {
    None,
    /// y is x.
    X,
    /// y is the residual.
    Residual,
    /// All three are one.
    Both,
    /// dx is dy.
    Dx,
    /// dresidual is dy.
    Dresidual,
}

/// Every operand of every call.
#[derive(Clone)]
struct Operands<T: Number> {
    x: Vec<T>,
    y: Vec<T>,
    residual: Vec<T>,
    dy: Vec<T>,
    dx: Vec<T>,
    dresidual: Vec<T>,
    gamma: Vec<T::Param>,
    beta: Vec<T::Param>,
    mean: Vec<T::Param>,
    var: Vec<T::Param>,
    dgamma: Vec<T::Param>,
    dbeta: Vec<T::Param>,
    moments: Vec<Moments>,
    sums: Vec<GradSums>,
    prepared: Vec<Prepared<T::Param>>,
    words: usize,
}

impl<T: Number> Operands<T> {
    /// Inputs, and the results of a forward pass and of the stages.
    fn new(bn: &BatchNorm<T>, seed: u64) -> Self {
        let (n, c, mut r) = (bn.shape().len(), bn.shape().channels(), Random(seed));
        let mut tensor = |mean: f64| (0..n).map(|_| T::of(mean + r.normal())).collect::<Vec<T>>();
        let (x, residual, dy) = (tensor(3.0), tensor(0.0), tensor(0.5));
        let mut params = |low: f64| (0..c).map(|_| ((low + r.uniform()) as f32).into()).collect::<Vec<T::Param>>();
        let (gamma, beta, mean, var) = (params(0.5), params(-0.5), params(2.5), params(0.75));
        let (tensor, param) = (vec![T::of(SENTINEL); n], vec![(SENTINEL as f32).into(); c]);
        let mut o = Operands {
            x,
            y: tensor.clone(),
            residual,
            dy,
            dx: tensor.clone(),
            dresidual: tensor,
            gamma,
            beta,
            mean,
            var,
            dgamma: param.clone(),
            dbeta: param,
            moments: vec![Moments::EMPTY; c],
            sums: vec![GradSums::default(); c],
            prepared: vec![Prepared::default(); c],
            words: bn.workspace_best(Op::ForwardTraining, 1).max(bn.workspace_best(Op::Backward, 1)),
        };
        bn.prepare(Affine::new(&o.gamma, &o.beta), &o.mean, &o.var, &mut o.prepared).unwrap();
        for call in [ForwardTraining, BackwardSums] {
            o.by_slice(bn, call).unwrap();
        }
        o
    }

    /// With the outputs of a call as none leaves them.
    fn spoilt(&self, call: Call) -> Self {
        let mut o = self.clone();
        if !call.is_backward() {
            o.y.fill(T::of(SENTINEL));
        }
        match call {
            ForwardTraining => o.moments.fill(Moments { count: 99, mean: SENTINEL, m2: SENTINEL }),
            BackwardSums => o.sums.fill(GradSums { dbeta: SENTINEL, dot: SENTINEL }),
            _ => {}
        }
        o
    }

    fn statistics(&self, call: Call) -> Statistics<'_, T::Param> {
        let (mean, var) = (&self.mean[..], &self.var[..]);
        match call {
            BackwardRounded => Statistics::Rounded { mean, var },
            BackwardRunning => Statistics::Running { mean, var },
            _ => Statistics::Batch(&self.moments),
        }
    }

    fn by_slice(&mut self, bn: &BatchNorm<T>, call: Call) -> Result<(), Error> {
        let mut after = self.clone();
        let (o, mut ws) = (&*self, vec![0; self.words]);
        let (affine, run, residual) = (Affine::new(&o.gamma, &o.beta), Run::serial(&mut ws), Some(&o.residual[..]));
        let statistics = o.statistics(call);
        let input = BackwardInput { x: &o.x, y: Some(&o.y), dy: &o.dy, gamma: Some(&o.gamma), statistics };
        let output = Gradients {
            dx: Some((&mut after.dx[..]).into()),
            dresidual: Some((&mut after.dresidual[..]).into()),
            dgamma: Some(&mut after.dgamma),
            dbeta: Some(&mut after.dbeta),
        };
        match call {
            ForwardTraining => bn.forward_training(&o.x, residual, affine, &mut after.y[..], &mut after.moments, run),
            Accumulate => bn.moments(&o.x, &mut after.moments, run),
            Normalize => bn.normalize(&o.x, residual, affine, &o.moments, &mut after.y[..], run),
            Inference => bn.inference(&o.x, residual, affine, &o.mean, &o.var, &mut after.y[..], run),
            Apply => bn.apply(&o.x, residual, &o.prepared, &mut after.y[..], run),
            Backward | BackwardRounded | BackwardRunning => bn.backward(input, output, run),
            BackwardFromOutput => bn.backward_from_output(&o.y, &o.dy, affine, &o.moments, output, run),
            BackwardSums => bn.backward_sums(input, &mut after.sums, run),
            BackwardApply => bn.backward_apply(input, &o.sums, output, run),
        }?;
        *self = after;
        Ok(())
    }

    /// The same with one operand for two; without y, if so wanted, where it is an input.
    fn by_address(&mut self, bn: &BatchNorm<T>, call: Call, alias: Alias, with_y: bool) -> Result<(), Error> {
        // What statistics, gamma and the rest are read from; tensors are the operands themselves.
        let (constants, mut ws) = (self.clone(), vec![0; self.words]);
        let (affine, run) = (Affine::new(&constants.gamma, &constants.beta), Run::serial(&mut ws));
        let (x, y, residual) = (self.x.as_mut_ptr(), self.y.as_mut_ptr(), self.residual.as_mut_ptr());
        let (x, y, residual) = match alias {
            Alias::X => (x.cast_const(), x, residual.cast_const()),
            Alias::Residual => (x.cast_const(), residual, residual.cast_const()),
            Alias::Both => (x.cast_const(), x, x.cast_const()),
            _ => (x.cast_const(), y, residual.cast_const()),
        };
        let forward = raw::Forward { x, residual: Some(residual), y };
        let dy = self.dy.as_mut_ptr();
        let backward = raw::Backward {
            x,
            y: with_y.then_some(y.cast_const()),
            dy: dy.cast_const(),
            gamma: Some(&constants.gamma),
            statistics: constants.statistics(call),
        };
        let len = |alone: &Vec<T>, is_dy: bool| if is_dy { self.dy.len() } else { alone.len() };
        let (dx_len, dr_len) = (len(&self.dx, alias == Alias::Dx), len(&self.dresidual, alias == Alias::Dresidual));
        let dx = if alias == Alias::Dx { dy } else { self.dx.as_mut_ptr() };
        let dresidual = if alias == Alias::Dresidual { dy } else { self.dresidual.as_mut_ptr() };
        // SAFETY: tensors of the plan's shape, one of them for two as the module allows; of lengths that are not the
        // plan's it is told.
        unsafe {
            let output = Gradients {
                dx: Some(raw::output(dx, dx_len)),
                dresidual: Some(raw::output(dresidual, dr_len)),
                dgamma: Some(&mut self.dgamma),
                dbeta: Some(&mut self.dbeta),
            };
            match call {
                ForwardTraining => raw::forward_training(bn, forward, affine, &mut self.moments, run),
                Accumulate => raw::moments(bn, x, &mut self.moments, run),
                Normalize => raw::normalize(bn, forward, affine, &constants.moments, run),
                Inference => raw::inference(bn, forward, affine, &constants.mean, &constants.var, run),
                Apply => raw::apply(bn, forward, &constants.prepared, run),
                Backward | BackwardRounded | BackwardRunning => raw::backward(bn, backward, output, run),
                BackwardFromOutput => raw::backward_from_output(bn, y, dy, affine, &constants.moments, output, run),
                BackwardSums => raw::backward_sums(bn, backward, &mut self.sums, run),
                BackwardApply => raw::backward_apply(bn, backward, &constants.sums, output, run),
            }
        }
    }

    /// All bits of all operands.
    fn bits(&self) -> Vec<Vec<u64>> {
        let tensors = [&self.x, &self.y, &self.residual, &self.dy, &self.dx, &self.dresidual];
        let params = [&self.gamma, &self.beta, &self.mean, &self.var, &self.dgamma, &self.dbeta];
        let tensors = tensors.map(|t| t.iter().map(|&v| v.into().to_bits()).collect());
        let params = params.map(|p| p.iter().map(|&v| v.into().to_bits()).collect());
        let moments = self.moments.iter().flat_map(|m| [m.count, m.mean.to_bits(), m.m2.to_bits()]).collect();
        let sums = self.sums.iter().flat_map(|s| [s.dbeta.to_bits(), s.dot.to_bits()]).collect();
        tensors.into_iter().chain(params).chain([moments, sums]).collect()
    }
}

/// Of every geometry.
fn shapes() -> Vec<Shape> {
    let of = |(n, c, s): (usize, usize, usize)| {
        [Layout::Nchw, Layout::Nhwc].map(|layout| Shape::new(layout, n, c, &[s]).unwrap())
    };
    [(5, 3, 49), (9, 20, 1), (300, 3, 1), (2, 70, 4)].into_iter().flat_map(of).collect()
}

/// An activation that has a mask and can be undone.
fn plan<T: Number>(shape: Shape) -> BatchNorm<T> {
    BatchNorm::new(shape, 1e-5).unwrap().with_activation(Activation::LeakyRelu { slope: 0.25 }).unwrap()
}

fn by_address_is_by_slice<T: Number>() {
    for (seed, shape) in shapes().into_iter().enumerate() {
        let bn = plan::<T>(shape);
        let o = Operands::new(&bn, seed as u64);
        for call in CALLS {
            let before = o.spoilt(call);
            let (mut expected, mut got) = (before.clone(), before.clone());
            expected.by_slice(&bn, call).unwrap();
            assert!(expected.bits() != before.bits(), "{call:?} has written nothing");
            got.by_address(&bn, call, Alias::None, true).unwrap();
            assert!(got.bits() == expected.bits(), "{call:?} {shape:?}: other bits by address");
        }
    }
}

#[test]
fn the_bits_are_those_of_slices() {
    every_type!(by_address_is_by_slice());
}

/// The output in the place of the operand that it is, all others as they would be.
fn one_for_two<T: Number>() {
    for (seed, shape) in shapes().into_iter().enumerate() {
        let bn = plan::<T>(shape);
        let o = Operands::new(&bn, seed as u64);
        for call in CALLS.into_iter().filter(|c| !matches!(c, Accumulate | BackwardSums)) {
            let aliases: &[Alias] = match call.is_backward() {
                false => &[Alias::X, Alias::Residual, Alias::Both],
                true => &[Alias::Dx, Alias::Dresidual],
            };
            for &alias in aliases {
                let mut before = o.spoilt(call);
                if alias == Alias::Both {
                    before.residual = before.x.clone();
                }
                let (mut got, mut expected) = (before.clone(), before.clone());
                expected.by_slice(&bn, call).unwrap();
                let made = |of: &Operands<T>| match alias {
                    Alias::Dx => of.dx.clone(),
                    Alias::Dresidual => of.dresidual.clone(),
                    _ => of.y.clone(),
                };
                let (result, untouched) = (made(&expected), made(&before));
                match alias {
                    Alias::X | Alias::Both => (expected.x, expected.y) = (result, untouched),
                    Alias::Residual => (expected.residual, expected.y) = (result, untouched),
                    Alias::Dx => (expected.dy, expected.dx) = (result, untouched),
                    _ => (expected.dy, expected.dresidual) = (result, untouched),
                }
                got.by_address(&bn, call, alias, true).unwrap();
                assert!(got.bits() == expected.bits(), "{call:?} {alias:?} {shape:?}");
            }
        }
    }
}

#[test]
fn an_output_may_be_an_input() {
    every_type!(one_for_two());
}

/// The call fails like this, and has written nothing.
#[track_caller]
fn refuses(bn: &BatchNorm<f32>, o: &Operands<f32>, call: Call, with_y: bool, error: Error) {
    let mut after = o.clone();
    assert_eq!(after.by_address(bn, call, Alias::None, with_y), Err(error), "{call:?}");
    assert!(after.bits() == o.bits(), "{call:?} has written something before {error:?}");
}

type Lengthen = fn(&mut Operands<f32>, usize);

#[test]
fn errors_are_those_of_slices() {
    let bn = plan::<f32>(Shape::nhwc(6, 5, &[3]).unwrap());
    let good = Operands::new(&bn, 1);
    let affine: [(&str, Lengthen); 2] =
        [("gamma", |o, n| o.gamma.resize(n, 1.0)), ("beta", |o, n| o.beta.resize(n, 1.0))];
    let moments: (&str, Lengthen) = ("moments", |o, n| o.moments.resize(n, o.moments[0]));
    let sums: (&str, Lengthen) = ("sums", |o, n| o.sums.resize(n, GradSums::default()));
    let prepared: (&str, Lengthen) = ("prepared", |o, n| o.prepared.resize(n, Prepared::default()));
    let gradients: [(&str, Lengthen); 2] =
        [("dgamma", |o, n| o.dgamma.resize(n, 1.0)), ("dbeta", |o, n| o.dbeta.resize(n, 1.0))];
    let running: [(&str, Lengthen); 2] =
        [("running_mean", |o, n| o.mean.resize(n, 1.0)), ("running_var", |o, n| o.var.resize(n, 1.0))];
    let rounded: [(&str, Lengthen); 2] = [("mean", running[0].1), ("var", running[1].1)];
    for call in CALLS {
        let arrays = match call {
            ForwardTraining | Normalize => [&affine[..], &[moments]].concat(),
            Accumulate => vec![moments],
            Inference => [affine, running].concat(),
            Apply => vec![prepared],
            Backward => [&affine[..1], &[moments], &gradients].concat(),
            BackwardRounded | BackwardRunning => [&affine[..1], &rounded, &gradients].concat(),
            BackwardFromOutput => [&affine[..], &[moments], &gradients].concat(),
            BackwardSums => [&affine[..1], &[moments, sums]].concat(),
            BackwardApply => [&affine[..1], &[moments, sums], &gradients].concat(),
        };
        for (what, lengthen) in arrays {
            for got in [0, 4, 6] {
                let mut o = good.clone();
                lengthen(&mut o, got);
                refuses(&bn, &o, call, true, Error::Length { what, expected: 5, got });
            }
        }
        let expected = bn.workspace_min(call.op());
        let o = Operands { words: expected - 1, ..good.clone() };
        refuses(&bn, &o, call, true, Error::Workspace { expected, got: expected - 1 });
        if !matches!(call, ForwardTraining | Accumulate | Normalize | Inference | Apply | BackwardSums) {
            let mut o = good.clone();
            o.dx.truncate(89);
            refuses(&bn, &o, call, true, Error::Length { what: "dx", expected: 90, got: 89 });
            let mut o = good.clone();
            o.dresidual.push(0.0);
            refuses(&bn, &o, call, true, Error::Length { what: "dresidual", expected: 90, got: 91 });
        }
        if call.is_backward() && call != BackwardFromOutput {
            refuses(&bn, &good, call, false, Error::Missing { what: "y" });
            // Without a mask y is not needed.
            let plain = bn.with_activation(Activation::Identity).unwrap();
            assert_eq!(good.clone().by_address(&plain, call, Alias::None, false), Ok(()));
        }
    }
    let mut other = good.clone();
    other.moments[3].count = 17;
    for call in [Backward, BackwardFromOutput] {
        refuses(&bn, &other, call, true, Error::Count { channel: 3, expected: 18, got: 17 });
    }
    let relu = bn.with_activation(Activation::Relu).unwrap();
    refuses(&relu, &good, BackwardFromOutput, true, Error::NotInvertible { channel: None });
    other.moments[3].count = 1;
    refuses(&bn, &other, Normalize, true, Error::TooFewValues { expected: 2, got: 1 });
    // (That takes a plan of one value: the statistics are made of it.)
    let one = BatchNorm::<f32>::new(Shape::dense(1, 5).unwrap(), 1e-5).unwrap();
    let o = Operands { words: good.words, ..Operands::new(&one.allow_one_value(), 1) };
    refuses(&one, &o, ForwardTraining, true, Error::TooFewValues { expected: 2, got: 1 });
}
