//! Agreement with PyTorch 2.15 (CPU, float64) on the cases of `golden/torch_batchnorm.json`, which
//! `golden/make.py`, beside it, made by `torch.nn.functional.batch_norm` and autograd. Its inputs are
//! representable in f32, so f32 is held to the same numbers as f64.
//!
//! Bounds for f32 are the contract's: y within 2e-6·max(1, max |y|) and dx within
//! 2e-6·|s|·max |dy − mean dy| per channel, s = γ/√(variance + ε). Those for f64 leave room for the
//! rounding of PyTorch's own f64, which grows with mean/deviation (1e5 in the `far_mean` cases).

mod common;
use bn_core::{
    Activation, Affine, BatchNorm, Fold, Isa, Layout, Moments, Op, Prepared, Run, RunningStats, Shape, Statistics,
};
use common::problem::{Backward, Problem, Real, Worst, bits, mask, mean_rounding, with_workspace};
use common::{Channel, places};
use serde::Deserialize;

#[derive(Deserialize)]
struct File {
    torch: String,
    cases: Vec<Case>,
    state_dict: StateDict,
}

/// Inputs are read as f32, which they are, and so is the masked dy that is the residual's gradient;
/// other results as f64, which the parser may round by an ulp.
#[derive(Deserialize)]
struct Case {
    name: String,
    layout: String,
    batch: usize,
    channels: usize,
    spatial: Vec<usize>,
    eps: f64,
    activation: String,
    slope: Option<f64>,
    momentum_weight_of_new: f64,
    /// How often the forward pass, always with this x, has updated the running statistics.
    steps: u64,
    x: Vec<f32>,
    dy: Vec<f32>,
    residual: Option<Vec<f32>>,
    gamma: Option<Vec<f32>>,
    beta: Option<Vec<f32>>,
    running_mean_before: Vec<f32>,
    running_var_before: Vec<f32>,
    y: Vec<f64>,
    mean: Vec<f64>,
    var_biased: Vec<f64>,
    running_mean_after: Vec<f64>,
    running_var_after: Vec<f64>,
    dx: Vec<f64>,
    dresidual: Option<Vec<f32>>,
    dgamma: Option<Vec<f64>>,
    dbeta: Option<Vec<f64>>,
    /// With the running statistics as they are afterwards.
    inference_y: Vec<f64>,
    inference_dx: Vec<f64>,
}

#[derive(Deserialize)]
struct StateDict {
    arrays: Arrays,
    eps: f64,
    layout: String,
    batch: usize,
    channels: usize,
    spatial: Vec<usize>,
    x: Vec<f32>,
    inference_y: Vec<f64>,
}

#[derive(Deserialize)]
struct Arrays {
    weight: Vec<f32>,
    bias: Vec<f32>,
    running_mean: Vec<f32>,
    running_var: Vec<f32>,
}

fn file() -> File {
    let file: File = serde_json::from_str(include_str!("golden/torch_batchnorm.json")).unwrap();
    assert_eq!((file.torch.as_str(), file.cases.len()), ("2.15.0", 26));
    file
}

fn layout(name: &str) -> Layout {
    match name {
        "nchw" => Layout::Nchw,
        "nhwc" => Layout::Nhwc,
        _ => panic!("layout {name}"),
    }
}

fn real<T: Real>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&v| T::of(v as f64)).collect()
}

impl Case {
    fn problem<T: Real>(&self) -> Problem<T> {
        Problem {
            seed: 0,
            shape: Shape::new(layout(&self.layout), self.batch, self.channels, &self.spatial).unwrap(),
            epsilon: self.eps,
            activation: match (self.activation.as_str(), self.slope) {
                ("identity", None) => Activation::Identity,
                ("relu", None) => Activation::Relu,
                ("leaky_relu", Some(slope)) => Activation::LeakyRelu { slope },
                other => panic!("activation {other:?}"),
            },
            x: real(&self.x),
            dy: real(&self.dy),
            residual: self.residual.as_deref().map(real),
            gamma: self.gamma.as_deref().map(real),
            beta: self.beta.as_deref().map(real),
        }
    }
}

/// Bounds of f64 are 1e-12 plus what half an ulp of the mean makes in x̂, for PyTorch and for us.
fn bound<T: Real>(ch: &Channel) -> f64 {
    if T::ROUNDING == f32::ROUNDING { T::BOUND } else { 1e-12 + mean_rounding(ch) }
}

/// How near to the kink a value before the activation may be without doubt about its side.
fn no_doubt(problem: &Problem<impl Real>, z: &[f64], top: f64) {
    if problem.activation != Activation::Identity {
        let nearest = z.iter().fold(f64::INFINITY, |m, z| m.min(z.abs()));
        // So no element has to be left out of any comparison of gradients.
        assert!(nearest > 4.0 * 2e-6 * top, "a value of {nearest:e} may be masked either way");
    }
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |m, v| m.max(v.abs()))
}

fn training<T: Real>(case: &Case, isa: Isa, worst: &mut Worst) {
    let p = case.problem::<T>();
    let at = |c| places(p.shape, c);
    let name = (&case.name, isa);
    let f = p.forward(isa);
    let golden: Vec<(f64, f64)> = case.mean.iter().copied().zip(case.var_biased.iter().copied()).collect();
    let exact = p.exact_forward_with(&golden);
    let y: Vec<T> = f.y.clone();
    let b = p.backward(isa, &y, Statistics::Batch(&f.moments));
    // Golden gradients behind the mask; what PyTorch was not asked for comes from the reference.
    let golden_y: Vec<T> = case.y.iter().map(|&v| T::of(v)).collect();
    let reference = p.exact_backward(&exact.channels, &golden_y);
    for (c, ch) in exact.channels.iter().enumerate() {
        let (bound, std) = (bound::<T>(ch), (ch.var + ch.epsilon).sqrt());
        no_doubt(&p, &at(c).map(|i| exact.z[i]).collect::<Vec<_>>(), exact.top[c]);
        let top = largest(at(c).map(|i| case.y[i])).max(1.0);
        for i in at(c) {
            worst.check("y", &(name, i), f.y[i].wide(), case.y[i], bound * top);
            worst.check("dx", &(name, i), b.dx[i].wide(), case.dx[i], bound * reference.spread[c]);
            // A mask, or a product by a power of two: exact.
            let masked = mask(p.activation, case.y[i], p.dy[i].wide());
            let dresidual = case.dresidual.as_ref().map_or(masked, |d| d[i] as f64);
            assert_eq!(b.dresidual[i].wide(), dresidual, "dresidual of {name:?} {i}");
        }
        let m = f.moments[c];
        assert_eq!(m.count, p.shape.values_per_channel());
        // Statistics are f64 even for f32: measured by the deviation, plus an ulp of the mean.
        let statistics = if T::ROUNDING == f32::ROUNDING { 1e-6 } else { 1e-14 };
        let far = 2.0 * f64::EPSILON * ch.mean.abs();
        worst.check("mean", &(name, c), m.mean, ch.mean, statistics * std + far);
        worst.check("variance", &(name, c), m.variance(), ch.var, statistics * ch.var + far * std);
        let rounded = |v: f64| T::ROUNDING * v.abs();
        let dgamma = case.dgamma.as_ref().map_or(reference.dgamma[c], |d| d[c]);
        let dbeta = case.dbeta.as_ref().map_or(reference.dbeta[c], |d| d[c]);
        let (dot, sum) = (bound / 2.0 * reference.dot[c], bound / 2.0 * reference.sum[c]);
        worst.check("dgamma", &(name, c), b.dgamma[c].wide(), dgamma, dot + rounded(dgamma));
        worst.check("dbeta", &(name, c), b.dbeta[c].wide(), dbeta, sum + rounded(dbeta));
    }

    // From PyTorch's statistics, rounded to T as frameworks save them. What is left of the rounding is the variance's, once
    // in γ/σ and up to three times in the term with x̂, half each; and (1 + x̂²) of it in dγ.
    let mean: Vec<T> = case.mean.iter().map(|&v| T::of(v)).collect();
    let var: Vec<T> = case.var_biased.iter().map(|&v| T::of(v)).collect();
    let b = p.backward(isa, &y, Statistics::Rounded { mean: &mean, var: &var });
    for (c, ch) in exact.channels.iter().enumerate() {
        let bound = bound::<T>(ch) + 4.0 * T::ROUNDING;
        let extra = T::ROUNDING + bound / 2.0;
        for i in at(c) {
            let far = 1.0 + ((p.x[i].wide() - ch.mean) * ch.inverse_std()).powi(2);
            worst.check("rounded dx", &(name, i), b.dx[i].wide(), case.dx[i], bound * far * reference.spread[c]);
        }
        let dgamma = case.dgamma.as_ref().map_or(reference.dgamma[c], |d| d[c]);
        let dbeta = case.dbeta.as_ref().map_or(reference.dbeta[c], |d| d[c]);
        let slack = |scale: f64, v: f64| extra * scale + 2.0 * T::ROUNDING * v.abs();
        worst.check("rounded dgamma", &(name, c), b.dgamma[c].wide(), dgamma, slack(reference.dot[c], dgamma));
        worst.check("rounded dbeta", &(name, c), b.dbeta[c].wide(), dbeta, slack(reference.sum[c], dbeta));
    }

    // PyTorch's ReLU is a clamp without an upper end.
    if p.activation == Activation::Relu {
        let clamped = Problem { activation: Activation::Clamp { lo: 0.0, hi: f64::INFINITY }, ..p.clone() };
        let f = clamped.forward(isa);
        assert_eq!(bits(&f.y), bits(&y), "{name:?}: clamp is not ReLU");
        let (a, b) = (Statistics::Batch(&f.moments), Statistics::Batch(&f.moments));
        assert_eq!(clamped.backward(isa, &y, a).bits(), p.backward(isa, &y, b).bits(), "{name:?}");
    }
}

/// Behind a layer that hands x on, and before one that sums the channels up with weights of its own, what is folded gives
/// PyTorch's inference.
fn folding<T: Real>(shape: Shape, fold: Fold<'_, T>, x: &[f32], inference_y: &[f64], name: &str, worst: &mut Worst) {
    let c = shape.channels();
    let weights = |o: usize, k: usize| ((o * 7 + k * 3) % 5) as f64 - 1.5;
    // A dense layer of the identity, whose outputs are normalized.
    let mut before: Vec<T> = (0..c * c).map(|i| T::of((i % c == i / c) as u8 as f64)).collect();
    let mut before_bias = vec![T::of(0.0); c];
    fold.into_preceding(c, &mut before, &mut before_bias).unwrap();
    // A dense layer whose inputs are normalized.
    let outputs = 3;
    let mut behind: Vec<T> = (0..outputs * c).map(|i| T::of(weights(i / c, i % c))).collect();
    let mut behind_bias: Vec<T> = (0..outputs).map(|o| T::of(o as f64)).collect();
    fold.into_following(outputs, 1, 1, &mut behind, &mut behind_bias).unwrap();
    let (mut scale, mut shift) = (vec![T::of(0.0); c], vec![T::of(0.0); c]);
    fold.scale_shift(&mut scale, &mut shift).unwrap();
    assert_eq!(
        (bits(&scale), bits(&shift)),
        (bits(&(0..c).map(|k| before[k * c + k]).collect::<Vec<T>>()), bits(&before_bias))
    );
    // The running statistics have been rounded as well: the mean, and half the variance's error in the scale.
    let rounding = 4.0 * T::ROUNDING + 8.0 * f64::ROUNDING;
    let all: Vec<Vec<usize>> = (0..c).map(|k| places(shape, k).collect()).collect();
    for at in 0..all[0].len() {
        let (mut exact, mut size) = ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0]);
        let mut got: Vec<f64> = behind_bias.iter().map(|b| b.wide()).collect();
        for k in 0..c {
            let i = all[k][at];
            let (y, x) = (inference_y[i], x[i] as f64);
            let (a, b) = (before[k * c + k].wide() * x, before_bias[k].wide());
            worst.check("folded y", &(name, i), a + b, y, rounding * (a.abs() + b.abs() + y.abs()));
            for o in 0..outputs {
                let w = weights(o, k);
                exact[o] += w * y;
                size[o] += w.abs() * (a.abs() + b.abs() + y.abs());
                got[o] += behind[o * c + k].wide() * x;
            }
        }
        for o in 0..outputs {
            worst.check("next layer", &(name, at, o), got[o], exact[o], rounding * size[o]);
        }
    }
}

fn running<T: Real>(case: &Case, isa: Isa, worst: &mut Worst) {
    let p = case.problem::<T>();
    let moments = p.forward(isa).moments;
    let (mut mean, mut var): (Vec<T>, Vec<T>) = (real(&case.running_mean_before), real(&case.running_var_before));
    let rule = RunningStats::pytorch(case.momentum_weight_of_new).unwrap();
    let mut batches = 7;
    for _ in 0..case.steps {
        assert_eq!(rule.update(&moments, &mut mean, &mut var, Some(&mut batches)), Ok(0));
    }
    assert_eq!(batches, 7 + case.steps);
    for c in 0..case.channels {
        // Each update rounds once; what it adds comes from moments that are far better than f32.
        let rounding = |v: f64| (case.steps as f64 + 1.0) * (2.0 * T::ROUNDING) * v.abs();
        let (em, ev) = (case.running_mean_after[c], case.running_var_after[c]);
        let std = (case.var_biased[c]).sqrt();
        // The old value may be larger than the new one.
        let old = case.running_mean_before[c] as f64;
        let slack = if T::ROUNDING == f32::ROUNDING { 1e-7 } else { 1e-14 };
        let name = (&case.name, isa, c);
        let bound = rounding(em.abs().max(old.abs())) + slack * std;
        worst.check("running mean", &name, mean[c].wide(), em, bound);
        worst.check("running variance", &name, var[c].wide(), ev, rounding(ev) + slack * ev);
    }
}

fn inference<T: Real>(case: &Case, isa: Isa, worst: &mut Worst) {
    let p = case.problem::<T>();
    let bn = p.plan(isa);
    let mean: Vec<T> = case.running_mean_after.iter().map(|&v| T::of(v)).collect();
    let var: Vec<T> = case.running_var_after.iter().map(|&v| T::of(v)).collect();
    let words = bn.workspace_min(Op::Inference);
    let mut y = vec![T::of(f64::NAN); p.shape.len()];
    with_workspace(words, |ws| {
        bn.inference(&p.x, p.residual.as_deref(), p.affine(), &mean, &var, &mut y[..], Run::serial(ws))
    })
    .unwrap();

    let mut prepared = vec![Prepared::default(); case.channels];
    let mut applied = vec![T::of(f64::NAN); p.shape.len()];
    bn.prepare(p.affine(), &mean, &var, &mut prepared).unwrap();
    with_workspace(words, |ws| bn.apply(&p.x, p.residual.as_deref(), &prepared, &mut applied[..], Run::serial(ws)))
        .unwrap();
    assert_eq!(bits(&applied), bits(&y), "{} {isa:?}: apply is not inference", case.name);

    let golden: Vec<(f64, f64)> =
        case.running_mean_after.iter().copied().zip(case.running_var_after.iter().copied()).collect();
    let exact = p.exact_forward_with(&golden);
    let b: Backward<T> = p.backward(isa, &y, Statistics::Running { mean: &mean, var: &var });
    for (c, ch) in exact.channels.iter().enumerate() {
        let at = || places(p.shape, c);
        no_doubt(&p, &at().map(|i| exact.z[i]).collect::<Vec<_>>(), exact.top[c]);
        let name = (&case.name, isa);
        let top = largest(at().map(|i| case.inference_y[i])).max(1.0);
        let s = ch.gamma * ch.inverse_std();
        // PyTorch had the running statistics in f64; rounding them to T moves what inference means, by
        // |s| times the mean's change, and by half the variance's relative change of γ·x̂.
        let moved_mean = (s * (mean[c].wide() - ch.mean)).abs();
        let moved_scale = 0.5 * ((var[c].wide() - ch.var) / (ch.var + ch.epsilon)).abs() * (1.0 + 1e-6);
        let tight = if T::ROUNDING == f32::ROUNDING { T::BOUND } else { 1e-14 };
        for i in at() {
            let part = (s * (p.x[i].wide() - ch.mean)).abs();
            let moved = moved_mean + moved_scale * part;
            worst.check("inference y", &(name, i), y[i].wide(), case.inference_y[i], tight * top + moved);
            // Here the scale rounds, and the product; in PyTorch root, quotient and two products, in f64,
            // and once more what is read from the file.
            let dx = case.inference_dx[i];
            let bound = (3.0 * T::ROUNDING + 6.0 * f64::ROUNDING + moved_scale) * dx.abs();
            worst.check("inference dx", &(name, i), b.dx[i].wide(), dx, bound);
        }
    }
}

fn all<T: Real>() {
    let file = file();
    let mut worst = Worst::default();
    for case in &file.cases {
        for isa in Isa::available() {
            training::<T>(case, isa, &mut worst);
            running::<T>(case, isa, &mut worst);
            inference::<T>(case, isa, &mut worst);
        }
        if case.activation == "identity" {
            let (p, real) = (case.problem::<T>(), |v: &[f64]| v.iter().map(|&v| T::of(v)).collect::<Vec<T>>());
            let (mean, var) = (real(&case.running_mean_after), real(&case.running_var_after));
            let fold = Fold::running(p.affine(), &mean, &var, case.eps).unwrap();
            folding(p.shape, fold, &case.x, &case.inference_y, &case.name, &mut worst);
        }
    }
    println!("{}: worst errors, in units of the bounds: {worst:#?}", core::any::type_name::<T>());
}

#[test]
fn f32_agrees_with_pytorch() {
    all::<f32>();
}

#[test]
fn f64_agrees_with_pytorch() {
    all::<f64>();
}

/// A `state_dict()` of `torch.nn.BatchNorm2d` does inference here.
#[test]
fn state_dict() {
    let s = file().state_dict;
    let shape = Shape::new(layout(&s.layout), s.batch, s.channels, &s.spatial).unwrap();
    let a = &s.arrays;
    for isa in Isa::available() {
        let bn = BatchNorm::<f32>::new(shape, s.eps).unwrap().with_isa(isa);
        let mut y = vec![f32::NAN; shape.len()];
        with_workspace(bn.workspace_min(Op::Inference), |ws| {
            let affine = Affine::new(&a.weight, &a.bias);
            bn.inference(&s.x, None, affine, &a.running_mean, &a.running_var, &mut y[..], Run::serial(ws))
        })
        .unwrap();
        let mut worst = Worst::default();
        for (i, (&y, &exact)) in y.iter().zip(&s.inference_y).enumerate() {
            worst.check("y", &(isa, i), y as f64, exact, 1e-6 * exact.abs().max(1.0));
        }
        println!("state_dict: {worst:?}");
    }
    let fold = Fold::running(Affine::new(&a.weight, &a.bias), &a.running_mean, &a.running_var, s.eps).unwrap();
    folding(shape, fold, &s.x, &s.inference_y, "state_dict", &mut Worst::default());
}

/// What the file says of a channel's statistics is what the reference says: so the two witnesses of
/// all other tests agree.
#[test]
fn reference_agrees_with_pytorch() {
    let mut worst = Worst::default();
    for case in &file().cases {
        let p = case.problem::<f64>();
        let exact = p.exact_forward();
        let b = p.exact_backward(&exact.channels, &case.y);
        let mut moments = vec![Moments::EMPTY; case.channels];
        for (c, ch) in exact.channels.iter().enumerate() {
            let near = 1e-13 + 2.0 * mean_rounding(ch);
            worst.check("mean", &(&case.name, c), case.mean[c], ch.mean, near * ch.var.sqrt());
            worst.check("var", &(&case.name, c), case.var_biased[c], ch.var, near * ch.var);
            for i in places(p.shape, c) {
                worst.check("y", &(&case.name, i), case.y[i], exact.y[i], near * exact.top[c]);
                worst.check("dx", &(&case.name, i), case.dx[i], b.dx[i], near * b.spread[c]);
                moments[c].push(p.x[i]);
            }
            // Welford's update, value by value.
            worst.check("pushed mean", &(&case.name, c), moments[c].mean, ch.mean, near * ch.var.sqrt());
            worst.check("pushed var", &(&case.name, c), moments[c].variance(), ch.var, near * ch.var);
        }
    }
    println!("reference against PyTorch: {worst:#?}");
}
