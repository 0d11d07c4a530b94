//! The layer does what bn-core's calls do, keeps its books right, and refuses what is wrong.

mod common;

use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Gradients, Layout, Moments, Momentum, Op, Run, RunningStats, Serial,
    Shape, Statistics, Variance,
};
use bn_std::{BatchNormLayer, Error, Mode, Rayon};
use common::executors::{Faulty, Reversed, Threads};
use common::{Random, Real, assert_bits, moment_bits};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

const EPSILON: f64 = 1e-3;

/// A layer with parameters that are not all the same.
fn layer<T: Real>(channels: usize, activation: Activation) -> BatchNormLayer<T> {
    let mut bn = BatchNormLayer::<T>::new(channels).unwrap().with_epsilon(EPSILON).unwrap();
    bn = bn.with_activation(activation).unwrap().with_running_stats(RunningStats::pytorch(0.25).unwrap());
    let mut random = Random(channels as u64);
    bn.gamma_mut().unwrap().copy_from_slice(&random.values(channels, 0.5));
    bn.beta_mut().unwrap().copy_from_slice(&random.values(channels, -1.0));
    bn
}

/// A batch of random numbers.
struct Batch<T> {
    shape: Shape,
    x: Vec<T>,
    residual: Vec<T>,
    dy: Vec<T>,
    y: Vec<T>,
    dx: Vec<T>,
    dresidual: Vec<T>,
}

impl<T: Real> Batch<T> {
    fn new(shape: Shape, seed: u64) -> Self {
        let mut random = Random(seed);
        let (n, zeros) = (shape.len(), vec![T::of(0.0); shape.len()]);
        let (x, residual, dy) = (random.values(n, 3.0), random.values(n, -1.0), random.values(n, -0.5));
        Batch { shape, x, residual, dy, y: zeros.clone(), dx: zeros.clone(), dresidual: zeros }
    }
    fn forward(&mut self, bn: &mut BatchNormLayer<T>) -> Result<usize, Error> {
        bn.forward(self.shape, &self.x, Some(&self.residual), &mut self.y[..])
    }
    fn backward(&mut self, bn: &mut BatchNormLayer<T>) -> Result<(), Error> {
        let (dx, dresidual) = (Some((&mut self.dx[..]).into()), Some((&mut self.dresidual[..]).into()));
        bn.backward(&self.x, Some(&self.y), &self.dy, dx, dresidual)
    }
}

fn small() -> Shape {
    Shape::nchw(3, 5, &[4, 6]).unwrap()
}

/// Large enough for threads.
fn large() -> Shape {
    Shape::nhwc(4, 5, &[90, 90]).unwrap()
}

/// A forward pass in this mode and its backward pass, by bn-core's calls.
fn by_hand<T: Real>(mode: Mode, activation: Activation) {
    for shape in [small(), large(), Shape::dense(40, 5).unwrap()] {
        let mut bn = layer::<T>(5, activation).with_mode(mode);
        let mut batch = Batch::<T>::new(shape, 1);
        let before = bn.state();
        assert_eq!(batch.forward(&mut bn), Ok(0));
        batch.backward(&mut bn).unwrap();

        let plan = BatchNorm::<T>::new(shape, EPSILON).unwrap().with_activation(activation).unwrap();
        let affine = Affine::new(bn.gamma().unwrap(), bn.beta().unwrap());
        let (mut mean, mut var) = (before.running_mean, before.running_var);
        let mut workspace =
            vec![0; plan.workspace_best(Op::Backward, 1).max(plan.workspace_best(Op::ForwardTraining, 1))];
        let mut expected = Batch::<T>::new(shape, 1);
        let mut moments = vec![Moments::EMPTY; 5];
        let (y, residual) = (&mut expected.y[..], Some(&expected.residual[..]));
        let run = Run::serial(&mut workspace);
        let statistics = if mode == Mode::Train {
            plan.forward_training(&expected.x, residual, affine, y, &mut moments, run).unwrap();
            bn.running_stats().update(&moments, &mut mean, &mut var, None).unwrap();
            assert_eq!(moment_bits(bn.moments().unwrap()), moment_bits(&moments));
            Statistics::Batch(&moments)
        } else {
            plan.inference(&expected.x, residual, affine, &mean, &var, y, run).unwrap();
            assert_eq!(bn.moments(), None);
            Statistics::Running { mean: &mean, var: &var }
        };
        let (mut dgamma, mut dbeta) = ([T::of(0.0); 5], [T::of(0.0); 5]);
        let input =
            BackwardInput { x: &expected.x, y: Some(&expected.y), dy: &expected.dy, gamma: affine.gamma, statistics };
        let output = Gradients {
            dx: Some((&mut expected.dx[..]).into()),
            dresidual: Some((&mut expected.dresidual[..]).into()),
            dgamma: Some(&mut dgamma),
            dbeta: Some(&mut dbeta),
        };
        plan.backward(input, output, Run::serial(&mut workspace)).unwrap();

        assert_bits("y", &batch.y, &expected.y);
        assert_bits("dx", &batch.dx, &expected.dx);
        assert_bits("dresidual", &batch.dresidual, &expected.dresidual);
        assert_bits("grad_gamma", bn.grad_gamma().unwrap(), &dgamma);
        assert_bits("grad_beta", bn.grad_beta().unwrap(), &dbeta);
        assert_bits("running_mean", bn.running_mean(), &mean);
        assert_bits("running_var", bn.running_var(), &var);
        assert_eq!(bn.state().num_batches_tracked, (mode == Mode::Train) as u64);
        assert_eq!(bn.running_mean()[0] != T::of(0.0), mode == Mode::Train);

        // In place: the same bits.
        let mut again = layer::<T>(5, activation).with_mode(mode);
        let mut x_to_y = batch.x.clone();
        again.forward_in_place(shape, &mut x_to_y, Some(&batch.residual)).unwrap();
        assert_bits("y in place", &x_to_y, &batch.y);
        let mut dy_to_dx = batch.dy.clone();
        let mut dresidual = batch.dx.clone();
        again.backward_in_place(&batch.x, Some(&x_to_y), &mut dy_to_dx, Some((&mut dresidual[..]).into())).unwrap();
        assert_bits("dx in place", &dy_to_dx, &batch.dx);
        assert_bits("dresidual in place", &dresidual, &batch.dresidual);
        assert_bits("grad_gamma in place", again.grad_gamma().unwrap(), &dgamma);
        assert_eq!(again.state(), bn.state());
    }
}

#[test]
fn does_what_the_calls_of_bn_core_do() {
    for mode in [Mode::Train, Mode::Frozen] {
        by_hand::<f32>(mode, Activation::Identity);
        by_hand::<f32>(mode, Activation::Relu);
        by_hand::<f64>(mode, Activation::LeakyRelu { slope: 0.25 });
    }
}

#[test]
fn the_same_bits_on_every_executor() {
    let train = |mut bn: BatchNormLayer<f32>| {
        let mut all = Vec::new();
        for step in 0..3 {
            let mut batch = Batch::new(large(), step);
            bn.zero_grad();
            batch.forward(&mut bn).unwrap();
            batch.backward(&mut bn).unwrap();
            for (parameter, gradient) in bn.parameters() {
                parameter.iter_mut().zip(gradient).for_each(|(p, g)| *p -= 1e-3 * g);
            }
            all.extend([batch.y, batch.dx, batch.dresidual].concat());
        }
        let state = bn.state();
        [all, state.weight.unwrap(), state.bias.unwrap(), state.running_mean, state.running_var].concat()
    };
    let new = || layer::<f32>(5, Activation::Relu);
    let expected = train(new().with_executor(Serial));
    assert_bits("default", &train(new()), &expected);
    for n in [2, 3, 7, 16] {
        assert_bits(&format!("{n} threads"), &train(new().with_executor(Threads(n))), &expected);
    }
    assert_bits("reversed", &train(new().with_executor(Reversed(4))), &expected);
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap());
    assert_bits("rayon", &train(new().with_executor(Rayon::shared(pool))), &expected);
    for isa in bn_core::Isa::available() {
        assert_bits(isa.kind().name(), &train(new().with_isa(isa)), &expected);
    }
}

/// More shapes than plans are kept for, there and back again.
#[test]
fn batches_of_changing_size() {
    let mut bn = layer::<f32>(5, Activation::Identity).with_running_stats(RunningStats::pytorch(0.0).unwrap());
    for n in (2..9).chain((2..9).rev()) {
        for shape in [Shape::nchw(n, 5, &[6]).unwrap(), Shape::nhwc(n, 5, &[6]).unwrap(), Shape::dense(n, 5).unwrap()] {
            let (mut batch, mut expected) = (Batch::new(shape, n as u64), Batch::new(shape, n as u64));
            bn.zero_grad();
            batch.forward(&mut bn).unwrap();
            batch.backward(&mut bn).unwrap();
            let mut fresh = layer::<f32>(5, Activation::Identity);
            expected.forward(&mut fresh).unwrap();
            expected.backward(&mut fresh).unwrap();
            assert_bits("y", &batch.y, &expected.y);
            assert_bits("dx", &batch.dx, &expected.dx);
            assert_bits("grad_gamma", bn.grad_gamma().unwrap(), fresh.grad_gamma().unwrap());
        }
    }
}

#[test]
fn gradients_are_accumulated_until_zeroed() {
    let mut bn = layer::<f64>(5, Activation::Relu);
    let mut single = Vec::new();
    for seed in [1, 2] {
        bn.zero_grad();
        let mut batch = Batch::new(small(), seed);
        batch.forward(&mut bn).unwrap();
        batch.backward(&mut bn).unwrap();
        single.push([bn.grad_gamma().unwrap(), bn.grad_beta().unwrap()].concat());
    }
    let sum: Vec<f64> = single[0].iter().zip(&single[1]).map(|(a, b)| a + b).collect();
    bn.zero_grad();
    for seed in [1, 2] {
        let mut batch = Batch::new(small(), seed);
        batch.forward(&mut bn).unwrap();
        batch.backward(&mut bn).unwrap();
    }
    assert_bits("sum", &[bn.grad_gamma().unwrap(), bn.grad_beta().unwrap()].concat(), &sum);
    assert!(sum.iter().all(|g| *g != 0.0));
    bn.zero_grad();
    assert_eq!((bn.grad_gamma(), bn.grad_beta()), (Some(&[0.0; 5][..]), Some(&[0.0; 5][..])));
}

#[test]
fn parameters_are_optional() {
    for (gamma, beta) in [(true, false), (false, true), (false, false)] {
        for mode in [Mode::Train, Mode::Frozen] {
            let make = || BatchNormLayer::<f32>::new(5).unwrap().with_mode(mode);
            let mut bn = make();
            if !gamma {
                bn = bn.without_gamma();
            }
            if !beta {
                bn = bn.without_beta();
            }
            let (mut batch, mut expected) = (Batch::new(small(), 1), Batch::new(small(), 1));
            batch.forward(&mut bn).unwrap();
            batch.backward(&mut bn).unwrap();
            // gamma 1 and beta 0 are the same as none.
            let mut full = make();
            expected.forward(&mut full).unwrap();
            expected.backward(&mut full).unwrap();
            assert_bits("y", &batch.y, &expected.y);
            assert_bits("dx", &batch.dx, &expected.dx);
            assert_eq!(bn.grad_gamma(), full.grad_gamma().filter(|_| gamma));
            assert_eq!(bn.grad_beta(), full.grad_beta().filter(|_| beta));
            assert_eq!(bn.parameters().count(), gamma as usize + beta as usize);
            assert_eq!((bn.state().weight.is_some(), bn.state().bias.is_some()), (gamma, beta));
        }
    }
}

/// A validation pass between a forward pass and its backward pass.
#[test]
fn inference_leaves_the_backward_pass_alone() {
    let (mut bn, mut undisturbed) = (layer::<f32>(5, Activation::Relu), layer::<f32>(5, Activation::Relu));
    let (mut batch, mut expected) = (Batch::new(small(), 1), Batch::new(small(), 1));
    expected.forward(&mut undisturbed).unwrap();
    expected.backward(&mut undisturbed).unwrap();

    batch.forward(&mut bn).unwrap();
    let state = bn.state();
    bn.set_mode(Mode::Inference);
    Batch::new(large(), 2).forward(&mut bn).unwrap();
    let empty = Shape::nchw(0, 5, &[4, 6]).unwrap();
    assert_eq!(bn.forward(empty, &[], None, &mut [0.0; 0]), Ok(0));
    batch.backward(&mut bn).unwrap();
    assert_eq!(bn.state(), state);
    assert_bits("dx", &batch.dx, &expected.dx);
}

#[test]
fn no_backward_pass_without_a_forward_pass() {
    let mut bn = layer::<f32>(5, Activation::Identity).with_mode(Mode::Inference);
    let mut batch = Batch::new(small(), 1);
    assert_eq!(batch.backward(&mut bn), Err(Error::NoForward));
    batch.forward(&mut bn).unwrap();
    assert_eq!(batch.backward(&mut bn), Err(Error::NoForward));
    bn.set_mode(Mode::Train);
    batch.forward(&mut bn).unwrap();
    bn.load_state(&bn.state()).unwrap();
    assert_eq!(batch.backward(&mut bn), Err(Error::NoForward));
    assert_eq!(bn.grad_gamma(), Some(&[0.0; 5][..]));
}

/// Every argument in turn, one too short and one too long, and what else can be refused: nothing
/// changes, and the backward pass that was possible before is possible still.
#[test]
fn errors_change_nothing() {
    const UNTOUCHED: f32 = 77.0;
    let shape = small();
    let mut batch = Batch::<f32>::new(shape, 1);
    let mut bn = layer::<f32>(5, Activation::Relu);
    batch.forward(&mut bn).unwrap();
    batch.backward(&mut bn).unwrap();
    let (dx, gradients) = (batch.dx.clone(), bn.grad_gamma().unwrap().to_vec());
    let state = bn.state();

    let n = shape.len();
    let long = vec![1.0f32; n + 1];
    let (mut y, mut dx2, mut dr) = (vec![UNTOUCHED; n + 1], vec![UNTOUCHED; n + 1], vec![UNTOUCHED; n + 1]);
    for wrong in [n - 1, n + 1] {
        let length = |what| Err(Error::Core(bn_core::Error::Length { what, expected: n, got: wrong }));
        for mode in [Mode::Train, Mode::Frozen, Mode::Inference] {
            bn.set_mode(mode);
            let bad = &long[..wrong];
            let good = &long[..n];
            assert_eq!(bn.forward(shape, bad, None, &mut y[..n]).map(drop), length("x"));
            assert_eq!(bn.forward(shape, good, None, &mut y[..wrong]).map(drop), length("y"));
            assert_eq!(bn.forward(shape, good, Some(bad), &mut y[..n]).map(drop), length("residual"));
            assert_eq!(bn.forward_in_place(shape, &mut y[..wrong], None).map(drop), length("x"));
            assert_eq!(bn.forward_in_place(shape, &mut y[..n], Some(bad)).map(drop), length("residual"));
        }
        for (what, lengths) in [
            ("x", [wrong, n, n, n, n]),
            ("y", [n, wrong, n, n, n]),
            ("dy", [n, n, wrong, n, n]),
            ("dx", [n, n, n, wrong, n]),
            ("dresidual", [n, n, n, n, wrong]),
        ] {
            let [x, y, dy] = [0, 1, 2].map(|i| &long[..lengths[i]]);
            let out = Some((&mut dr[..lengths[4]]).into());
            let refused = bn.backward(x, Some(y), dy, Some((&mut dx2[..lengths[3]]).into()), out);
            assert_eq!(refused, length(what));
            if what != "dx" {
                let out = Some((&mut dr[..lengths[4]]).into());
                assert_eq!(bn.backward_in_place(x, Some(y), &mut dx2[..lengths[2]], out), length(what));
            }
        }
    }
    let missing = Err(Error::Core(bn_core::Error::Missing { what: "y" }));
    assert_eq!(bn.backward(&batch.x, None, &batch.dy, Some((&mut dx2[..n]).into()), None), missing);
    bn.set_mode(Mode::Train);
    let other = Shape::nchw(3, 4, &[5, 6]).unwrap();
    assert_eq!(bn.forward(other, &long[..n], None, &mut y[..n]), Err(Error::Channels { expected: 5, got: 4 }));
    let one = Shape::dense(1, 5).unwrap();
    let few = Err(Error::Core(bn_core::Error::TooFewValues { expected: 2, got: 1 }));
    assert_eq!(bn.forward(one, &long[..5], None, &mut y[..5]), few);

    assert!([y, dx2, dr].concat().iter().all(|v| *v == UNTOUCHED));
    assert_eq!(bn.state(), state);
    assert_eq!(bn.grad_gamma().unwrap(), gradients);
    bn.zero_grad();
    batch.backward(&mut bn).unwrap();
    assert_bits("dx", &batch.dx, &dx);
    assert_bits("grad_gamma", bn.grad_gamma().unwrap(), &gradients);
}

#[test]
fn construction_is_checked() {
    let core = |error| Some(Error::Core(error));
    assert_eq!(BatchNormLayer::<f32>::new(0).err(), core(bn_core::Error::NoChannels));
    assert_eq!(BatchNormLayer::<f32>::new(usize::MAX / 4).err(), core(bn_core::Error::ShapeOverflow));
    let huge = BatchNormLayer::<f32>::new(isize::MAX as usize / 8).err();
    assert!(matches!(huge, Some(Error::Memory { .. })), "{huge:?}");
    let new = || BatchNormLayer::<f32>::new(3).unwrap();
    for epsilon in [-1e-5, f64::INFINITY] {
        assert_eq!(new().with_epsilon(epsilon).err(), core(bn_core::Error::Epsilon { got: epsilon }));
    }
    assert!(new().with_epsilon(f64::NAN).is_err());
    let clamp = Activation::Clamp { lo: 1.0, hi: 0.0 };
    assert_eq!(new().with_activation(clamp).err(), core(bn_core::Error::Activation { got: clamp }));
}

/// What is set after calls have been made counts for the next ones.
#[test]
fn settings_reach_plans_that_exist() {
    let shape = Shape::dense(2, 1).unwrap();
    let mut y = [0.0f32; 2];
    let mut bn = BatchNormLayer::<f32>::new(1).unwrap();
    bn.forward(shape, &[-1.0, 1.0], None, &mut y).unwrap();
    let mut bn = bn.with_epsilon(3.0).unwrap();
    bn.forward(shape, &[-1.0, 1.0], None, &mut y).unwrap();
    assert_eq!(y, [-0.5, 0.5]);
    let mut bn = bn.with_activation(Activation::Relu).unwrap();
    bn.forward(shape, &[-1.0, 1.0], None, &mut y).unwrap();
    assert_eq!(y, [0.0, 0.5]);
    assert!(bn.forward(Shape::dense(1, 1).unwrap(), &[3.0], None, &mut y[..1]).is_err());
    let mut bn = bn.allow_one_value();
    bn.forward(Shape::dense(1, 1).unwrap(), &[3.0], None, &mut y[..1]).unwrap();
    assert_eq!(y[0], 0.0);
}

/// NaN spoils its channel only; that channel's running statistics stay.
#[test]
fn channels_that_are_not_finite_are_skipped_and_counted() {
    let mut bn = layer::<f32>(5, Activation::Identity);
    let mut batch = Batch::new(Shape::dense(20, 5).unwrap(), 1);
    batch.x[3] = f32::NAN;
    batch.x[6] = f32::INFINITY;
    assert_eq!(batch.forward(&mut bn), Ok(2));
    let moved: Vec<bool> = bn.running_mean().iter().map(|m| *m != 0.0).collect();
    assert_eq!(moved, [true, false, true, false, true]);
    assert_eq!(bn.state().num_batches_tracked, 1);
}

#[test]
fn cumulative_average() {
    let rule = RunningStats::new(Momentum::Cumulative, Variance::Biased).unwrap();
    let mut bn = BatchNormLayer::<f64>::new(1).unwrap().with_running_stats(rule);
    let mut y = [0.0; 2];
    for (a, b) in [(0.0, 2.0), (2.0, 4.0), (7.0, 9.0)] {
        bn.forward(Shape::dense(2, 1).unwrap(), &[a, b], None, &mut y).unwrap();
    }
    assert!((bn.running_mean()[0] - 4.0).abs() < 1e-12 && (bn.running_var()[0] - 1.0).abs() < 1e-12);
}

/// A failed call leaves no trace in statistics and gradients, and no backward pass with half-written
/// moments.
#[test]
fn wrong_executors_are_found_out() {
    for more in [-1, 1] {
        let executor: &'static Faulty = Box::leak(Box::new(Faulty { more, ..Faulty::default() }));
        let failed = Error::Core(bn_core::Error::Executor { expected: 2, got: 2usize.saturating_add_signed(more) });
        let mut bn = layer::<f32>(5, Activation::Relu).with_executor(executor);
        let mut batch = Batch::new(large(), 1);
        batch.forward(&mut bn).unwrap();
        batch.backward(&mut bn).unwrap();
        assert!(executor.phases.load(Relaxed) > 0);
        let (state, gradients) = (bn.state(), bn.grad_gamma().unwrap().to_vec());

        executor.on.store(true, Relaxed);
        assert_eq!(batch.backward(&mut bn), Err(failed.clone()));
        assert_eq!(bn.grad_gamma().unwrap(), gradients);
        assert_eq!(batch.forward(&mut bn), Err(failed.clone()));
        assert_eq!(bn.state(), state);
        assert_eq!(bn.moments(), None);
        executor.on.store(false, Relaxed);
        assert_eq!(batch.backward(&mut bn), Err(Error::NoForward));
        batch.forward(&mut bn).unwrap();
        batch.backward(&mut bn).unwrap();
    }
}

#[test]
fn clones_are_independent() {
    let mut bn = layer::<f32>(5, Activation::Relu);
    let mut batch = Batch::new(small(), 1);
    batch.forward(&mut bn).unwrap();
    let mut clone = bn.clone();
    batch.backward(&mut clone).unwrap();
    batch.forward(&mut clone).unwrap();
    assert_eq!(bn.grad_gamma(), Some(&[0.0; 5][..]));
    assert_eq!((bn.state().num_batches_tracked, clone.state().num_batches_tracked), (1, 2));
    fn shareable<S: Send + Sync>(_: &S) {}
    shareable(&clone);
    assert!(format!("{bn:?}").contains("channels: 5"));
}

#[test]
fn outputs_may_be_uninitialised() {
    let mut bn = layer::<f32>(5, Activation::Identity);
    let mut batch = Batch::new(small(), 1);
    batch.forward(&mut bn).unwrap();
    let mut y = Vec::<f32>::with_capacity(batch.x.len());
    let room = &mut y.spare_capacity_mut()[..batch.x.len()];
    bn.forward(batch.shape, &batch.x, Some(&batch.residual), room).unwrap();
    // SAFETY: the call has written all of them.
    unsafe { y.set_len(batch.x.len()) };
    assert_bits("y", &y, &batch.y);
}

/// Layouts are told apart, also where the numbers of elements agree.
#[test]
fn layouts_differ() {
    let mut bn = layer::<f32>(5, Activation::Identity);
    let [mut nchw, mut nhwc] = [Layout::Nchw, Layout::Nhwc].map(|l| Batch::new(Shape::new(l, 3, 5, &[4]).unwrap(), 1));
    nchw.forward(&mut bn).unwrap();
    nhwc.forward(&mut bn).unwrap();
    assert_ne!(nchw.y, nhwc.y);
}
