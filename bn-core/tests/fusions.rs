//! A fused call is the separate calls, bit for bit: the plan without an activation, then the residual added and the
//! activation applied in the element's arithmetic; backward, dy masked first, then the plan without an activation.
//!
//! For f16 and bf16 only where nothing is rounded between: ReLU and clamp without a
//! residual in the forward pass, and in the backward pass with one. −0 and 0 are alike there: a negative number that
//! the type rounds to −0 is 0 if the rectifier comes first.

mod common;

use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Gradients, Isa, Layout, Moments, Op, Prepared, Run, Shape, Statistics,
};
use common::{Number, Random, number_bits, places};
use core::fmt::Debug;

/// A sum in T. (That of two f32 in f64, rounded to f32, is rounded once; so is their product.)
fn plus<T: Number>(a: T, b: T) -> T {
    T::of(a.into() + b.into())
}

fn times<T: Number>(a: T, slope: f64) -> T {
    T::of(a.into() * T::of(slope).into())
}

/// NaN are alike, and so are zeros where the kernels calculate in another type.
fn bits<T: Number>(v: T) -> u64 {
    number_bits(if T::CALCULATES { v.into() } else { v.into() + 0.0 })
}

const ACTIVATIONS: [Activation; 7] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { slope: 0.01 },
    Activation::LeakyRelu { slope: 0.25 },
    Activation::Clamp { lo: 0.0, hi: 6.0 },
    Activation::Clamp { lo: -0.5, hi: 1.5 },
    // Which no type holds.
    Activation::Clamp { lo: -0.1, hi: 0.7 },
];

/// The activation in T, as its documentation says.
fn activate<T: Number>(a: Activation, z: T) -> T {
    let v: f64 = z.into();
    match a {
        Activation::Identity => z,
        Activation::Relu if v < 0.0 => T::of(0.0),
        Activation::LeakyRelu { slope } if v < 0.0 => times(z, slope),
        Activation::Clamp { lo, .. } if v < lo => T::of(lo),
        Activation::Clamp { hi, .. } if v > hi => T::of(hi),
        _ => z,
    }
}

/// dy behind the activation, in T, as its documentation says.
fn mask<T: Number>(a: Activation, y: T, dy: T) -> T {
    let y: f64 = y.into();
    match a {
        Activation::Relu if y <= 0.0 => T::of(0.0),
        Activation::LeakyRelu { slope } if y <= 0.0 => times(dy, slope),
        Activation::Clamp { lo, hi } if y <= T::of(lo).into() || y >= T::of(hi).into() => T::of(0.0),
        _ => dy,
    }
}

struct Problem<T: Number> {
    shape: Shape,
    x: Vec<T>,
    dy: Vec<T>,
    residual: Vec<T>,
    gamma: Vec<T::Param>,
    beta: Vec<T::Param>,
    mean: Vec<T::Param>,
    var: Vec<T::Param>,
}

/// Channels of the fast path; with a mean that needs a pivot; constant; small; two-valued, whose results are zeros
/// and ones. None that overflows before a residual or a slope could bring it back: that is documented, and other.
fn problem<T: Number>(shape: Shape, seed: u64) -> Problem<T> {
    let mut r = Random(seed);
    let mut tensor = |kinds: usize| {
        let mut out = vec![T::of(0.0); shape.len()];
        for c in 0..shape.channels() {
            let kind = r.below(kinds);
            for i in places(shape, c) {
                let v = r.normal();
                out[i] = T::of(match kind {
                    0 => 1000.0 + v,
                    1 => 7.0,
                    2 => v * 1e-4,
                    3 => (r.below(2) as f64) * 2.0 - 1.0,
                    4 => v * 50.0,
                    _ => v,
                });
            }
        }
        out
    };
    let (x, dy, residual) = (tensor(8), tensor(8), tensor(8));
    let mut params = |of: fn(f64) -> f64| -> Vec<T::Param> {
        (0..shape.channels()).map(|_| (of(r.normal()) as f32).into()).collect()
    };
    // γ of either sign, never 0, so that a call from the output is possible.
    let gamma = params(|v| v + 0.5 * v.signum());
    Problem { shape, x, dy, residual, gamma, beta: params(|v| v), mean: params(|v| v), var: params(|v| v * v + 0.1) }
}

/// What a forward pass makes, in each way.
fn forward<T: Number>(p: &Problem<T>, bn: &BatchNorm<T>, residual: bool, affine: Affine<'_, T::Param>) -> [Vec<T>; 4] {
    let residual = residual.then_some(&p.residual[..]);
    let mut ws = vec![0; bn.workspace_best(Op::ForwardTraining, 1)];
    let mut out = [(); 4].map(|()| vec![T::of(f64::NAN); p.shape.len()]);
    let [trained, normalized, inferred, applied] = &mut out;
    let mut moments = vec![Moments::EMPTY; p.shape.channels()];
    bn.forward_training(&p.x, residual, affine, &mut trained[..], &mut moments, Run::serial(&mut ws)).unwrap();
    bn.normalize(&p.x, residual, affine, &moments, &mut normalized[..], Run::serial(&mut ws)).unwrap();
    bn.inference(&p.x, residual, affine, &p.mean, &p.var, &mut inferred[..], Run::serial(&mut ws)).unwrap();
    let mut prepared = vec![Prepared::default(); p.shape.channels()];
    bn.prepare(affine, &p.mean, &p.var, &mut prepared).unwrap();
    bn.apply(&p.x, residual, &prepared, &mut applied[..], Run::serial(&mut ws)).unwrap();
    out
}

/// dx, dresidual; dgamma, dbeta.
type Made<T, P> = ([Vec<T>; 2], [Vec<P>; 2]);

fn blank<T: Number>(shape: Shape) -> Made<T, T::Param> {
    let (n, c) = (vec![T::of(f64::NAN); shape.len()], vec![f32::NAN.into(); shape.channels()]);
    ([n.clone(), n], [c.clone(), c])
}

fn gradients<T: Number>(made: &mut Made<T, T::Param>) -> Gradients<'_, T> {
    let ([dx, dresidual], [dgamma, dbeta]) = made;
    Gradients {
        dx: Some((&mut dx[..]).into()),
        dresidual: Some((&mut dresidual[..]).into()),
        dgamma: Some(dgamma),
        dbeta: Some(dbeta),
    }
}

#[track_caller]
fn same<T: Number>(got: &[T], expected: &[T], what: &dyn Debug) {
    let other = got.iter().zip(expected).position(|(a, b)| bits(*a) != bits(*b));
    if let Some(i) = other {
        panic!("element {i} is {:?}, {:?} by separate calls: {what:?}", got[i], expected[i]);
    }
    assert_eq!(got.len(), expected.len());
}

fn same_parameters<P: Copy + Into<f64> + Debug>(got: &[Vec<P>; 2], expected: &[Vec<P>; 2], what: &dyn Debug) {
    for (got, expected) in got.iter().zip(expected) {
        same::<f64>(
            &got.iter().map(|&v| v.into()).collect::<Vec<_>>(),
            &expected.iter().map(|&v| v.into()).collect::<Vec<_>>(),
            what,
        );
    }
}

fn check<T: Number>(p: &Problem<T>, isa: Isa, activation: Activation, residual: bool, affine: bool) {
    let what = (core::any::type_name::<T>(), p.shape, isa, activation, residual, affine);
    let plain = BatchNorm::<T>::new(p.shape, 1e-5).unwrap().with_isa(isa);
    let bn = plain.with_activation(activation).unwrap();
    let affine = if affine { Affine::new(&p.gamma, &p.beta) } else { Affine::NONE };
    let fused = forward(p, &bn, residual, affine);
    if T::CALCULATES || !residual && !matches!(activation, Activation::LeakyRelu { .. }) {
        let mut separate = forward(p, &plain, false, affine);
        for (way, (fused, separate)) in fused.iter().zip(&mut separate).enumerate() {
            for (z, &r) in separate.iter_mut().zip(&p.residual) {
                *z = activate(activation, if residual { plus(*z, r) } else { *z });
            }
            same(fused, separate, &(way, what));
        }
    }
    if !T::CALCULATES && matches!(activation, Activation::LeakyRelu { .. }) {
        return;
    }
    let y = &fused[0];
    let masked: Vec<T> = y.iter().zip(&p.dy).map(|(&y, &dy)| mask(activation, y, dy)).collect();
    let mut ws = vec![0; bn.workspace_best(Op::Backward, 1)];
    let mut moments = vec![Moments::EMPTY; p.shape.channels()];
    bn.moments(&p.x, &mut moments, Run::serial(&mut ws)).unwrap();
    let (mean, var) = (&p.mean[..], &p.var[..]);
    for statistics in [
        Statistics::Batch(&moments),
        // Not near x's own in most channels, which the correction has to bear.
        Statistics::Rounded { mean, var },
        Statistics::Running { mean, var },
    ] {
        let fused = BackwardInput { x: &p.x, y: Some(y), dy: &p.dy, gamma: affine.gamma, statistics };
        let separate = BackwardInput { y: None, dy: &masked, ..fused };
        let (mut a, mut b) = (blank(p.shape), blank(p.shape));
        bn.backward(fused, gradients(&mut a), Run::serial(&mut ws)).unwrap();
        plain.backward(separate, gradients(&mut b), Run::serial(&mut ws)).unwrap();
        same(&a.0[0], &b.0[0], &("dx", what));
        same(&a.0[1], &masked, &("dresidual", what));
        same_parameters(&a.1, &b.1, &("dgamma, dbeta", what));
    }
    if residual || !matches!(activation, Activation::Identity | Activation::LeakyRelu { .. }) {
        return;
    }
    // What the activation has done is undone by its inverse, which is another one.
    let undone: Vec<T> = match activation {
        Activation::LeakyRelu { slope } => {
            y.iter().map(|&y| activate(Activation::LeakyRelu { slope: 1.0 / slope }, y)).collect()
        }
        _ => y.clone(),
    };
    let (mut a, mut b) = (blank(p.shape), blank(p.shape));
    for (bn, y, dy, made) in [(&bn, y, &p.dy, &mut a), (&plain, &undone, &masked, &mut b)] {
        let mut out = gradients(made);
        out.dresidual = None;
        bn.backward_from_output(y, dy, affine, &moments, out, Run::serial(&mut ws)).unwrap();
    }
    same(&a.0[0], &b.0[0], &("dx from y", what));
    same_parameters(&a.1, &b.1, &("dgamma, dbeta from y", what));
}

/// Planes of less than a vector and of several pieces, folded rows and wide ones, more rows than a block.
const SHAPES: [(usize, usize, usize); 11] = [
    (2, 3, 1),
    (9, 5, 7),
    (3, 17, 49),
    (4, 33, 16),
    (2, 2, 1300),
    (1, 1, 700),
    (67, 20, 1),
    (300, 3, 1),
    (21, 130, 2),
    (5, 64, 3),
    (2, 300, 1),
];

fn every<T: Number>() {
    for (i, (n, c, s)) in SHAPES.into_iter().enumerate() {
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let p = problem::<T>(Shape::new(layout, n, c, &[s]).unwrap(), i as u64);
            for isa in Isa::available() {
                for activation in ACTIVATIONS {
                    for residual in [false, true] {
                        for affine in [false, true] {
                            check(&p, isa, activation, residual, affine);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn fused_is_separate() {
    every_type!(every());
}

/// What was cut off passes no gradient, whichever way the type rounds the limits; what was not does, but next to them.
fn cut_off<T: Number>() {
    for (lo, hi) in [(0.0, 0.7), (-0.1, 0.1), (0.1, 6.0), (-0.3, 0.3), (-0.7, -0.1), (1.0 / 3.0, 2.0 / 3.0)] {
        let shape = Shape::dense(512, 1).unwrap();
        let x: Vec<T> = (0..512).map(|i| T::of(f64::from(i) / 128.0 - 2.0)).collect();
        let (mean, var, dy) = ([0.0f32.into()], [1.0f32.into()], vec![T::of(1.0); 512]);
        for isa in Isa::available() {
            let bn = BatchNorm::<T>::new(shape, 0.0).unwrap().with_isa(isa);
            let bn = bn.with_activation(Activation::Clamp { lo, hi }).unwrap();
            let mut ws = vec![0; bn.workspace_best(Op::Backward, 1)];
            let (mut y, mut dx) = (x.clone(), dy.clone());
            bn.inference(&x, None, Affine::NONE, &mean, &var, &mut y[..], Run::serial(&mut ws)).unwrap();
            let statistics = Statistics::Running { mean: &mean, var: &var };
            let input = BackwardInput { x: &x, y: Some(&y), dy: &dy, gamma: None, statistics };
            let output = Gradients { dx: Some((&mut dx[..]).into()), ..Gradients::default() };
            bn.backward(input, output, Run::serial(&mut ws)).unwrap();
            for ((&x, &y), dx) in x.iter().zip(&y).zip(dx) {
                // γ/σ is 1, so x is what is cut off.
                let (x, y, dx): (f64, f64, f64) = (x.into(), y.into(), dx.into());
                let expected = if x < lo || hi < x { 0.0 } else { 1.0 };
                let near = y == T::of(lo).into() || y == T::of(hi).into();
                assert!(
                    dx == expected || near && dx == 0.0,
                    "{} {isa:?} {lo} {hi}: dx is {dx} at {x}",
                    core::any::type_name::<T>()
                );
            }
        }
    }
}

#[test]
fn what_is_cut_off_passes_no_gradient() {
    every_type!(cut_off());
}
