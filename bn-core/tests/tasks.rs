//! Calls as tasks: the bits of the calls themselves, their errors before anything is written, and each task once.

mod common;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, Gradients, Isa, Layout, Moments, Op, Prepared, Run, Shape,
    Statistics, Tasks,
};
use common::{Number, Random};

/// What outputs hold before a call.
const SENTINEL: f64 = -77.25;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    ForwardTraining,
    Inference,
    Apply,
    Backward,
    BackwardRounded,
    /// dx and dresidual alone: no sums, one phase less.
    BackwardRunning,
}
use Call::*;

const CALLS: [Call; 6] = [ForwardTraining, Inference, Apply, Backward, BackwardRounded, BackwardRunning];

/// What calls read.
struct Inputs<T: Number> {
    x: Vec<T>,
    y: Vec<T>,
    residual: Vec<T>,
    dy: Vec<T>,
    gamma: Vec<T::Param>,
    beta: Vec<T::Param>,
    mean: Vec<T::Param>,
    var: Vec<T::Param>,
    moments: Vec<Moments>,
    prepared: Vec<Prepared<T::Param>>,
}

/// What they write.
#[derive(Clone)]
struct Outputs<T: Number> {
    y: Vec<T>,
    dx: Vec<T>,
    dresidual: Vec<T>,
    dgamma: Vec<T::Param>,
    dbeta: Vec<T::Param>,
    moments: Vec<Moments>,
}

impl<T: Number> Outputs<T> {
    fn blank(bn: &BatchNorm<T>) -> Self {
        let (n, c) = (bn.shape().len(), bn.shape().channels());
        let (tensor, param) = (vec![T::of(SENTINEL); n], vec![(SENTINEL as f32).into(); c]);
        let moments = vec![Moments { count: 99, mean: SENTINEL, m2: SENTINEL }; c];
        Outputs {
            y: tensor.clone(),
            dx: tensor.clone(),
            dresidual: tensor,
            dgamma: param.clone(),
            dbeta: param,
            moments,
        }
    }

    fn bits(&self) -> Vec<Vec<u64>> {
        let tensors = [&self.y, &self.dx, &self.dresidual].map(|t| t.iter().map(|&v| v.into().to_bits()).collect());
        let params = [&self.dgamma, &self.dbeta].map(|p| p.iter().map(|&v| v.into().to_bits()).collect());
        let moments = self.moments.iter().flat_map(|m| [m.count, m.mean.to_bits(), m.m2.to_bits()]).collect();
        tensors.into_iter().chain(params).chain([moments]).collect()
    }

    fn gradients(&mut self, call: Call) -> Gradients<'_, T> {
        let parameters = call != BackwardRunning;
        Gradients {
            dx: Some((&mut self.dx[..]).into()),
            dresidual: Some((&mut self.dresidual[..]).into()),
            dgamma: parameters.then_some(&mut self.dgamma[..]),
            dbeta: parameters.then_some(&mut self.dbeta[..]),
        }
    }
}

impl<T: Number> Inputs<T> {
    fn new(bn: &BatchNorm<T>, seed: u64) -> Self {
        let (n, c, mut r) = (bn.shape().len(), bn.shape().channels(), Random(seed));
        let mut tensor = |mean: f64| (0..n).map(|_| T::of(mean + 2.0 * r.uniform())).collect::<Vec<T>>();
        let (x, y, residual, dy) = (tensor(3.0), tensor(-1.0), tensor(-1.0), tensor(-0.5));
        let mut params = |low: f64| (0..c).map(|_| ((low + r.uniform()) as f32).into()).collect::<Vec<T::Param>>();
        let (gamma, beta, mean, var) = (params(0.5), params(-0.5), params(3.5), params(0.25));
        let (mut moments, mut ws) = (vec![Moments::EMPTY; c], vec![0; bn.workspace_min(Op::ForwardTraining)]);
        bn.moments(&x, &mut moments, Run::serial(&mut ws)).unwrap();
        let mut prepared = vec![Prepared::default(); c];
        bn.prepare(Affine::new(&gamma, &beta), &mean, &var, &mut prepared).unwrap();
        Inputs { x, y, residual, dy, gamma, beta, mean, var, moments, prepared }
    }

    fn affine(&self) -> Affine<'_, T::Param> {
        Affine::new(&self.gamma, &self.beta)
    }

    fn backward(&self, call: Call) -> BackwardInput<'_, T> {
        let (mean, var) = (&self.mean[..], &self.var[..]);
        let statistics = match call {
            BackwardRounded => Statistics::Rounded { mean, var },
            BackwardRunning => Statistics::Running { mean, var },
            _ => Statistics::Batch(&self.moments),
        };
        BackwardInput { x: &self.x, y: Some(&self.y), dy: &self.dy, gamma: Some(&self.gamma), statistics }
    }

    /// In one call.
    fn whole(&self, bn: &BatchNorm<T>, call: Call) -> Outputs<T> {
        let (mut out, mut ws) = (Outputs::blank(bn), vec![0; bn.workspace_best(op(call), 1)]);
        let (residual, run) = (Some(&self.residual[..]), Run::serial(&mut ws));
        match call {
            ForwardTraining => {
                bn.forward_training(&self.x, residual, self.affine(), &mut out.y[..], &mut out.moments, run)
            }
            Inference => bn.inference(&self.x, residual, self.affine(), &self.mean, &self.var, &mut out.y[..], run),
            Apply => bn.apply(&self.x, residual, &self.prepared, &mut out.y[..], run),
            _ => bn.backward(self.backward(call), out.gradients(call), run),
        }
        .unwrap();
        out
    }

    fn tasks<'a>(
        &'a self,
        bn: &BatchNorm<T>,
        call: Call,
        out: &'a mut Outputs<T>,
        width: usize,
        ws: &'a mut [u64],
    ) -> Result<Tasks<'a, T>, Error> {
        let (x, residual, affine) = (&self.x[..], Some(&self.residual[..]), self.affine());
        match call {
            ForwardTraining => {
                bn.forward_training_tasks(x, residual, affine, &mut out.y[..], &mut out.moments, width, ws)
            }
            Inference => bn.inference_tasks(x, residual, affine, &self.mean, &self.var, &mut out.y[..], width, ws),
            Apply => bn.apply_tasks(x, residual, &self.prepared, &mut out.y[..], width, ws),
            _ => bn.backward_tasks(self.backward(call), out.gradients(call), width, ws),
        }
    }
}

fn op(call: Call) -> Op {
    match call {
        ForwardTraining => Op::ForwardTraining,
        Inference | Apply => Op::Inference,
        _ => Op::Backward,
    }
}

fn plan<T: Number>(shape: Shape) -> BatchNorm<T> {
    BatchNorm::new(shape, 1e-5).unwrap().with_activation(Activation::LeakyRelu { slope: 0.25 }).unwrap()
}

/// Large enough to be shared out, and one that is not. The channels of the last are too many for one thread to merge.
fn shapes() -> Vec<Shape> {
    let of = |(n, c, s): (usize, usize, usize)| {
        [Layout::Nchw, Layout::Nhwc].map(|layout| Shape::new(layout, n, c, &[s]).unwrap())
    };
    [(3, 5, 49), (3, 9, 5000), (70, 400, 5)].into_iter().flat_map(of).collect()
}

/// All tasks of all phases on this thread: how many each phase had.
fn finish<T: Number>(mut call: Tasks<'_, T>) -> Vec<usize> {
    let mut phases = vec![call.tasks()];
    loop {
        (0..call.tasks()).for_each(|_| call.run_task());
        if !call.advance().unwrap() {
            break;
        }
        phases.push(call.tasks());
    }
    // There is no more to do, and no more is done.
    call.run_task();
    assert_eq!((call.tasks(), call.advance()), (0, Ok(false)));
    phases
}

fn tasks_are_the_call<T: Number>() {
    for (seed, shape) in shapes().into_iter().enumerate() {
        for isa in [Isa::PORTABLE, Isa::detect()] {
            let bn = plan::<T>(shape).with_isa(isa);
            let inputs = Inputs::new(&bn, seed as u64);
            for call in CALLS {
                let expected = inputs.whole(&bn, call).bits();
                for (width, words) in [
                    // None at all is one.
                    (0, bn.workspace_min(op(call))),
                    (1, bn.workspace_min(op(call))),
                    (3, bn.workspace_best(op(call), 3)),
                    (4, bn.workspace_min(op(call))),
                ] {
                    let (mut out, mut ws) = (Outputs::blank(&bn), vec![0xfff4_dead_fff4_beef; words]);
                    let phases = finish(inputs.tasks(&bn, call, &mut out, width, &mut ws).unwrap());
                    let name = format!("{call:?} {} {shape:?} {isa:?}, {width} wide", core::any::type_name::<T>());
                    assert!(out.bits() == expected, "{name}: other bits as tasks");
                    let most = if shape.len() < 1 << 17 { 1 } else { width.max(1) };
                    assert!(phases.iter().all(|p| (1..=most).contains(p)), "{name}: {phases:?}");
                    assert!(width != 3 || phases.contains(&most), "{name}: {phases:?}");
                }
            }
        }
    }
}

#[test]
fn the_bits_are_those_of_the_call() {
    every_type!(tasks_are_the_call());
}

/// A call is refused before it has begun: like this, and nothing has been written.
#[track_caller]
fn refuses(bn: &BatchNorm<f32>, inputs: &Inputs<f32>, mut out: Outputs<f32>, call: Call, words: usize, error: Error) {
    let (before, mut ws) = (out.bits(), vec![7; words]);
    let result = inputs.tasks(bn, call, &mut out, 2, &mut ws).map(|call| call.tasks());
    assert_eq!(result, Err(error), "{call:?}");
    assert!(out.bits() == before && ws.iter().all(|&w| w == 7), "{call:?} has written something before {error:?}");
}

#[test]
fn errors_come_first() {
    let bn = plan::<f32>(Shape::nhwc(6, 5, &[3]).unwrap());
    for call in CALLS {
        let (inputs, words) = (|| Inputs::new(&bn, 1), bn.workspace_min(op(call)));
        let length = |what, expected: usize| Error::Length { what, expected, got: expected - 1 };
        let workspace = Error::Workspace { expected: words, got: words - 1 };
        refuses(&bn, &inputs(), Outputs::blank(&bn), call, words - 1, workspace);
        let mut short = inputs();
        short.x.pop();
        refuses(&bn, &short, Outputs::blank(&bn), call, words, length("x", 90));
        let mut out = Outputs::blank(&bn);
        match call {
            ForwardTraining => {
                out.moments.pop();
                refuses(&bn, &inputs(), out, call, words, length("moments", 5));
                let one = BatchNorm::new(Shape::dense(1, 5).unwrap(), 1e-5).unwrap();
                let few = Error::TooFewValues { expected: 2, got: 1 };
                refuses(&one, &Inputs::new(&one, 1), Outputs::blank(&one), call, words, few);
            }
            Inference => {
                out.y.pop();
                refuses(&bn, &inputs(), out, call, words, length("y", 90));
                let mut short = inputs();
                short.var.pop();
                refuses(&bn, &short, Outputs::blank(&bn), call, words, length("running_var", 5));
            }
            Apply => {
                out.y.pop();
                refuses(&bn, &inputs(), out, call, words, length("y", 90));
                let mut short = inputs();
                short.prepared.pop();
                refuses(&bn, &short, Outputs::blank(&bn), call, words, length("prepared", 5));
                let mut short = inputs();
                short.residual.pop();
                refuses(&bn, &short, Outputs::blank(&bn), call, words, length("residual", 90));
            }
            _ => {
                out.dx.pop();
                refuses(&bn, &inputs(), out, call, words, length("dx", 90));
                let mut short = inputs();
                short.gamma.pop();
                refuses(&bn, &short, Outputs::blank(&bn), call, words, length("gamma", 5));
            }
        }
    }
    let mut other = Inputs::new(&bn, 1);
    other.moments[2].count = 17;
    let count = Error::Count { channel: 2, expected: 18, got: 17 };
    refuses(&bn, &other, Outputs::blank(&bn), Backward, bn.workspace_min(Op::Backward), count);
}

/// The next phase is not begun before each task of this one has been run, nor where one too many has.
#[test]
fn each_task_is_run_once() {
    for shape in shapes().into_iter().filter(|s| s.len() >= 1 << 17) {
        let bn = plan::<f32>(shape);
        let inputs = Inputs::new(&bn, 1);
        for call in CALLS {
            let (mut out, mut ws) = (Outputs::blank(&bn), vec![0; bn.workspace_best(op(call), 3)]);
            let mut tasks = inputs.tasks(&bn, call, &mut out, 3, &mut ws).unwrap();
            loop {
                let expected = tasks.tasks();
                for got in 0..expected {
                    assert_eq!(tasks.advance(), Err(Error::Executor { expected, got }), "{call:?} {shape:?}");
                    tasks.run_task();
                }
                if !tasks.advance().unwrap() {
                    break;
                }
            }
            assert!(out.bits() == inputs.whole(&bn, call).bits(), "{call:?} {shape:?}");

            let mut tasks = inputs.tasks(&bn, call, &mut out, 3, &mut ws).unwrap();
            let expected = tasks.tasks();
            (0..=expected).for_each(|_| tasks.run_task());
            let error = Error::Executor { expected, got: expected + 1 };
            assert_eq!((tasks.advance(), tasks.advance()), (Err(error), Err(error)), "{call:?} {shape:?}");
        }
    }
}

/// Small tensors stay on one thread, and so does what there is only a little of for each channel.
#[test]
fn threads_for_what_is_worth_them() {
    let phases = |shape: Shape, call: Call| {
        let bn = plan::<f32>(shape);
        let mut ws = vec![0; bn.workspace_best(op(call), 4)];
        finish(Inputs::new(&bn, 1).tasks(&bn, call, &mut Outputs::blank(&bn), 4, &mut ws).unwrap())
    };
    for (positions, width) in [(1 << 16, 4), ((1 << 16) - 1, 1)] {
        for shape in [Shape::nchw(1, 2, &[positions]), Shape::nhwc(1, 2, &[positions])] {
            let shape = shape.unwrap();
            assert_eq!(phases(shape, Inference), [width], "{shape:?}");
        }
    }
    // Moments that begin, sums of cells, their merging, and the map.
    for (channels, parts) in [(512, 4), (511, 3), (256, 2), (255, 1)] {
        let shape = Shape::nhwc(1100, channels, &[]).unwrap();
        assert_eq!(phases(shape, ForwardTraining), [1, 4, parts, 4], "{shape:?}");
    }
}

/// Between the smallest workspace and the best one, channels may be worked on in bands, whose cells are shared out.
#[test]
fn any_workspace() {
    for shape in [Shape::nhwc(2200, 130, &[]), Shape::nchw(40, 50, &[10, 10]), Shape::nchw(3, 5, &[100, 100])] {
        let bn = plan::<f32>(shape.unwrap());
        let inputs = Inputs::new(&bn, 1);
        for call in [ForwardTraining, Inference, Backward] {
            let expected = inputs.whole(&bn, call).bits();
            let (least, best) = (bn.workspace_min(op(call)), bn.workspace_best(op(call), 3));
            for words in (0..=40).map(|i| least + (best - least) * i / 40) {
                let (mut out, mut ws) = (Outputs::blank(&bn), vec![0xfff4_dead_fff4_beef; words]);
                finish(inputs.tasks(&bn, call, &mut out, 3, &mut ws).unwrap());
                assert!(out.bits() == expected, "{call:?} {:?}: other bits with {words} words", bn.shape());
            }
        }
    }
}
