//! The backward pass from y alone: the gradients of the pass that has x, within an error that grows with
//! 1 + |β/γ|.

mod common;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, Gradients, Isa, Layout, Moments, Op, Run, Shape, Statistics,
};
use common::problem::{Backward, Problem, Real, Worst, bits, with_workspace};
use common::{Random, places};

fn problem<T: Real>(shape: Shape, activation: Activation, far: f64, seed: u64) -> Problem<T> {
    let mut r = Random(seed);
    let mut normal = |n: usize, mean: f64| (0..n).map(|_| T::of(mean + r.normal())).collect::<Vec<T>>();
    let (x, dy) = (normal(shape.len(), 3.0), normal(shape.len(), 0.5));
    let gamma = (0..shape.channels()).map(|c| T::of(if c % 2 == 0 { 0.5 } else { -1.5 })).collect();
    let beta = (0..shape.channels()).map(|c| T::of(far * (c as f64 + 0.3).sin())).collect();
    let (gamma, beta) = (Some(gamma), Some(beta));
    Problem { seed, shape, epsilon: 1e-5, activation, x, dy, residual: None, gamma, beta }
}

fn from_output<T: Real>(p: &Problem<T>, bn: &BatchNorm<T>, y: &[T], moments: &[Moments], words: usize) -> Backward<T> {
    let mut b = Backward::blank(p.shape);
    with_workspace(words, |ws| bn.backward_from_output(y, &p.dy, p.affine(), moments, b.all(), Run::serial(ws)))
        .unwrap();
    b
}

fn check<T: Real>(shape: Shape, activation: Activation, far: f64) {
    let p: Problem<T> = problem(shape, activation, far, 11);
    let mut first = None;
    for isa in Isa::available() {
        let (bn, f) = (p.plan(isa), p.forward(isa));
        let b = from_output(&p, &bn, &f.y, &f.moments, bn.workspace_best(Op::Backward, 1));
        let least = from_output(&p, &bn, &f.y, &f.moments, bn.workspace_min(Op::Backward));
        assert!(b.bits() == least.bits(), "{shape:?}: other bits with the smallest workspace");
        assert!(b.bits() == *first.get_or_insert_with(|| b.bits()), "{shape:?}: other bits on {isa:?}");

        let mut over = p.dy.clone();
        let mut rest = Backward::blank(shape);
        let Gradients { dresidual, dgamma, dbeta, .. } = rest.all();
        let output = Gradients { dx: None, dresidual, dgamma, dbeta };
        with_workspace(bn.workspace_min(Op::Backward), |ws| {
            bn.backward_from_output_in_place(&f.y, &mut over, p.affine(), &f.moments, output, Run::serial(ws))
        })
        .unwrap();
        assert!(bits(&over) == bits(&b.dx) && bits(&rest.dgamma) == bits(&b.dgamma), "{shape:?}: in place");

        let (exact, mut worst) = (p.exact_forward(), Worst::default());
        let gradients = p.exact_backward(&exact.channels, &f.y);
        for (c, ch) in exact.channels.iter().enumerate() {
            let growth = 1.0 + (ch.beta / ch.gamma).abs();
            for i in places(shape, c) {
                let bound = T::BOUND * growth * gradients.spread[c];
                worst.check("dx", &(shape, isa, far, c, i), b.dx[i].wide(), gradients.dx[i], bound);
                let (got, exact) = (b.dresidual[i].wide(), gradients.dresidual[i]);
                worst.check("dresidual", &(shape, i), got, exact, 4.0 * T::ROUNDING * exact.abs());
            }
            let bound = T::BOUND * growth * gradients.dot[c] + T::ROUNDING * gradients.dgamma[c].abs();
            worst.check("dgamma", &(shape, isa, far, c), b.dgamma[c].wide(), gradients.dgamma[c], bound);
            let bound = T::BOUND * gradients.sum[c] + T::ROUNDING * gradients.dbeta[c].abs();
            worst.check("dbeta", &(shape, isa, far, c), b.dbeta[c].wide(), gradients.dbeta[c], bound);
        }
    }
}

#[test]
fn gradients() {
    for (n, c, s) in [(8, 3, 49), (64, 20, 1), (4, 70, 16), (300, 5, 2), (2, 2, 1500)] {
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let shape = Shape::new(layout, n, c, &[s]).unwrap();
            for activation in [Activation::Identity, Activation::LeakyRelu { slope: 0.01 }] {
                for far in [0.0, 1.0, 30.0] {
                    check::<f32>(shape, activation, far);
                    check::<f64>(shape, activation, far);
                }
            }
        }
    }
}

/// Training in place throughout: x is gone after the forward pass, dy after the backward pass.
#[test]
fn nothing_is_kept() {
    let shape = Shape::nhwc(4, 6, &[5]).unwrap();
    let p: Problem<f32> = problem(shape, Activation::LeakyRelu { slope: 0.1 }, 1.0, 5);
    let bn = p.plan(Isa::detect());
    let (mut x_to_y, mut dy_to_dx) = (p.x.clone(), p.dy.clone());
    let (mut moments, mut ws) = (vec![Moments::EMPTY; 6], vec![0; bn.workspace_best(Op::Backward, 1)]);
    bn.forward_training_in_place(&mut x_to_y, None, p.affine(), &mut moments, Run::serial(&mut ws)).unwrap();
    let run = Run::serial(&mut ws);
    bn.backward_from_output_in_place(&x_to_y, &mut dy_to_dx, p.affine(), &moments, Gradients::default(), run).unwrap();
    let mut dx = vec![0.0; shape.len()];
    let statistics = Statistics::Batch(&moments);
    let input = BackwardInput { x: &p.x, y: Some(&x_to_y), dy: &p.dy, gamma: p.gamma.as_deref(), statistics };
    bn.backward(input, Gradients { dx: Some((&mut dx[..]).into()), ..Gradients::default() }, Run::serial(&mut ws))
        .unwrap();
    for (a, b) in dy_to_dx.iter().zip(&dx) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

/// With ε = 0 a constant channel has y = β and no gradient.
#[test]
fn constant_channel() {
    let bn = BatchNorm::<f32>::new(Shape::dense(3, 2).unwrap(), 0.0).unwrap();
    let (y, dy) = ([0.5; 6], [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]);
    let moments = [Moments { count: 3, mean: 9.0, m2: 0.0 }; 2];
    let (mut dx, mut dgamma, mut dbeta, mut ws) = ([9.0; 6], [9.0; 2], [9.0; 2], [0; 1024]);
    let affine = Affine::new(&[2.0, 3.0], &[0.5, 0.5]);
    let output =
        Gradients { dx: Some((&mut dx).into()), dresidual: None, dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta) };
    bn.backward_from_output(&y, &dy, affine, &moments, output, Run::serial(&mut ws)).unwrap();
    assert_eq!((dx, dgamma, dbeta), ([0.0; 6], [0.0; 2], [9.0, 13.0]));
}

#[test]
fn refusals() {
    let shape = Shape::dense(4, 3).unwrap();
    let plain = BatchNorm::<f32>::new(shape, 1e-5).unwrap();
    let moments = [Moments { count: 4, mean: 0.0, m2: 4.0 }; 3];
    let run = |bn: BatchNorm<f32>, gamma: [f32; 3], moments: &[Moments], y: usize| {
        let (mut dx, mut ws) = (vec![7.0; 12], vec![0; 1024]);
        let output = Gradients { dx: Some((&mut dx[..]).into()), ..Gradients::default() };
        let affine = Affine { gamma: Some(&gamma), beta: None };
        let r = bn.backward_from_output(&vec![1.0; y], &[1.0; 12], affine, moments, output, Run::serial(&mut ws));
        assert!(r.is_ok() || dx.iter().all(|&v| v == 7.0), "written in spite of {r:?}");
        r
    };
    assert_eq!(run(plain, [1.0; 3], &moments, 12), Ok(()));
    assert_eq!(run(plain, [1.0, 0.0, 1.0], &moments, 12), Err(Error::NotInvertible { channel: Some(1) }));
    let length = Error::Length { what: "y", expected: 12, got: 11 };
    assert_eq!(run(plain, [1.0; 3], &moments, 11), Err(length));
    // The inverse of the last slopes is infinite in f32, or they are 0 there.
    let leaky = |slope: f64| Activation::LeakyRelu { slope };
    for activation in [
        Activation::Relu,
        Activation::Clamp { lo: 0.0, hi: 6.0 },
        leaky(0.0),
        leaky(1e-310),
        leaky(1e-46),
        leaky(1e-39),
    ] {
        let bn = plain.with_activation(activation).unwrap();
        assert_eq!(run(bn, [1.0; 3], &moments, 12), Err(Error::NotInvertible { channel: None }));
    }
    let mut other = moments;
    other[2].count = 5;
    let count = Error::Count { channel: 2, expected: 4, got: 5 };
    assert_eq!(run(plain, [1.0; 3], &other, 12), Err(count));
    assert_eq!(
        count.to_string(),
        "the moments of channel 2 are of 5 values, expected those of this call's 4: for statistics over more than one \
         x there are backward_sums and backward_apply"
    );
    assert_eq!(
        Error::NotInvertible { channel: Some(1) }.to_string(),
        "gamma of channel 1 is 0, expected one that x can be told from y with"
    );
    assert_eq!(
        Error::NotInvertible { channel: None }.to_string(),
        "the activation has no inverse, expected none, or a leaky ReLU of slope > 0"
    );
}

/// In place dx is where dy was: there cannot be another one.
#[test]
fn no_dx_in_place() {
    let bn = BatchNorm::<f32>::new(Shape::dense(4, 3).unwrap(), 1e-5).unwrap();
    let moments = [Moments { count: 4, mean: 0.0, m2: 4.0 }; 3];
    let (mut over, mut dx, mut dgamma, mut ws) = ([1.5; 12], [7.0; 12], [7.0; 3], [7; 1024]);
    let output = Gradients { dx: Some((&mut dx).into()), dgamma: Some(&mut dgamma), ..Gradients::default() };
    let run = Run::serial(&mut ws);
    let r = bn.backward_from_output_in_place(&[1.0; 12], &mut over, Affine::NONE, &moments, output, run);
    assert_eq!(r, Err(Error::Unused { what: "output.dx" }));
    assert_eq!((over, dx, dgamma, ws), ([1.5; 12], [7.0; 12], [7.0; 3], [7; 1024]));
}
