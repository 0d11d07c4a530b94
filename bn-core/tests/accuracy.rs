//! The error bounds of the contract, over the kinds of data that break batch normalizations, and the
//! same bits on every ISA for all of them.
//!
//! |y − exact| ≤ 2e-6·max(1, max|y|) per channel, and for random data ≤ 2e-6 absolute where |x̂| ≤ 6;
//! |dx − exact| ≤ 2e-6·|s|·max|dy − mean dy|, s = γ/√(variance + ε); both plus half a subnormal of f32.

mod common;
use bn_core::{Affine, BackwardInput, BatchNorm, Gradients, Isa, Moments, Op, Run, Shape, Statistics};
use common::{Channel, Random, mean_var, places};

const HALF_SUBNORMAL: f64 = 1e-45;

/// Everything that training makes.
#[derive(PartialEq)]
struct Made {
    y: Vec<f32>,
    moments: Vec<Moments>,
    dx: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
}

impl Made {
    /// Bits, with all NaN alike.
    fn bits(&self) -> Vec<u64> {
        let float = |v: &f32| if v.is_nan() { u64::MAX } else { v.to_bits() as u64 };
        let double = |v: f64| if v.is_nan() { u64::MAX } else { v.to_bits() };
        let all = [&self.y, &self.dx, &self.dgamma, &self.dbeta].into_iter().flatten().map(float);
        all.chain(self.moments.iter().flat_map(|m| [m.count, double(m.mean), double(m.m2)])).collect()
    }
}

fn make(isa: Isa, case: &Case) -> Made {
    let (n, c) = (case.shape.len(), case.shape.channels());
    let bn = BatchNorm::<f32>::new(case.shape, case.epsilon).unwrap().with_isa(isa);
    let mut ws = vec![0; bn.workspace_best(Op::ForwardTraining, 1).max(bn.workspace_best(Op::Backward, 1))];
    let mut made = Made {
        y: vec![f32::NAN; n],
        moments: vec![Moments::EMPTY; c],
        dx: vec![f32::NAN; n],
        dgamma: vec![f32::NAN; c],
        dbeta: vec![f32::NAN; c],
    };
    let affine = Affine { gamma: case.gamma.as_deref(), beta: case.beta.as_deref() };
    bn.forward_training(&case.x, None, affine, &mut made.y[..], &mut made.moments, Run::serial(&mut ws)).unwrap();
    let input = BackwardInput {
        x: &case.x,
        y: None,
        dy: &case.dy,
        gamma: case.gamma.as_deref(),
        statistics: Statistics::Batch(&made.moments),
    };
    let output = Gradients {
        dx: Some((&mut made.dx[..]).into()),
        dresidual: None,
        dgamma: Some(&mut made.dgamma),
        dbeta: Some(&mut made.dbeta),
    };
    bn.backward(input, output, Run::serial(&mut ws)).unwrap();
    made
}

struct Case {
    name: String,
    shape: Shape,
    epsilon: f64,
    x: Vec<f32>,
    dy: Vec<f32>,
    gamma: Option<Vec<f32>>,
    beta: Option<Vec<f32>>,
    /// Random data: y has an absolute bound too.
    random: bool,
}

/// Worst errors, each relative to its bound.
#[derive(Debug, Default, Clone, Copy)]
struct Worst {
    y: f64,
    dx: f64,
    dgamma: f64,
    dbeta: f64,
    mean: f64,
    var: f64,
}

impl Worst {
    fn max(self, o: Worst) -> Worst {
        Worst {
            y: self.y.max(o.y),
            dx: self.dx.max(o.dx),
            dgamma: self.dgamma.max(o.dgamma),
            dbeta: self.dbeta.max(o.dbeta),
            mean: self.mean.max(o.mean),
            var: self.var.max(o.var),
        }
    }
}

fn check(case: &Case) -> Worst {
    let made = make(Isa::PORTABLE, case);
    for isa in Isa::available() {
        assert!(make(isa, case).bits() == made.bits(), "{}: {isa:?} gives other bits than portable", case.name);
    }
    let mut worst = Worst::default();
    for c in 0..case.shape.channels() {
        let at = places(case.shape, c);
        let x: Vec<f64> = at.clone().map(|i| case.x[i] as f64).collect();
        let dy: Vec<f64> = at.clone().map(|i| case.dy[i] as f64).collect();
        let (mean, var) = mean_var(x.iter().copied());
        let ch = Channel {
            mean,
            var,
            gamma: case.gamma.as_ref().map_or(1.0, |g| g[c] as f64),
            beta: case.beta.as_ref().map_or(0.0, |b| b[c] as f64),
            epsilon: case.epsilon,
        };
        let exact: Vec<f64> = x.iter().map(|&x| ch.y(x)).collect();
        let y: Vec<f64> = at.clone().map(|i| made.y[i] as f64).collect();
        let top = exact.iter().fold(1.0f64, |m, y| m.max(y.abs()));
        for (y, e) in y.iter().zip(&exact) {
            worst.y = worst.y.max(((y - e).abs() - HALF_SUBNORMAL) / (2e-6 * top));
            if case.random && e.abs() <= 6.0 && ch.gamma.abs() <= 1.0 {
                worst.y = worst.y.max((y - e).abs() / 2e-6);
            }
        }
        let (dx, dgamma, dbeta) = common::backward(&ch, &x, &dy);
        let mean_dy = dbeta / dy.len() as f64;
        let spread = dy.iter().fold(0.0f64, |m, d| m.max((d - mean_dy).abs()));
        let s = (ch.gamma * ch.inverse_std()).abs();
        for (i, e) in at.clone().zip(&dx) {
            // Where what the bound allows reaches beyond f32, infinity is allowed.
            let got = made.dx[i] as f64;
            if got.is_infinite() && (e * got.signum() + 2e-6 * s * spread) >= f32::MAX as f64 {
                continue;
            }
            let err = (made.dx[i] as f64 - e).abs() - HALF_SUBNORMAL;
            worst.dx = worst.dx.max(if err <= 0.0 { 0.0 } else { err / (2e-6 * s * spread) });
        }
        // Σ over n of terms about |dy − mean dy|·|x̂| ≤ spread·1 on average; Σ dy exactly from f64.
        let n = x.len() as f64;
        let scale =
            spread * n.max(1.0) * if var + case.epsilon > 0.0 { (var / (var + case.epsilon)).sqrt() } else { 0.0 };
        let relative = |got: f32, exact: f64, scale: f64| {
            // Beyond the range of f32 the gradient is infinite.
            if exact.abs() > f32::MAX as f64 {
                return if (got as f64 - exact).abs() <= exact.abs() * 1e-6 || got.is_infinite() {
                    0.0
                } else {
                    f64::INFINITY
                };
            }
            let err = (got as f64 - exact).abs() - 6e-8 * exact.abs() - HALF_SUBNORMAL;
            if err <= 0.0 { 0.0 } else { err / scale }
        };
        worst.dgamma = worst.dgamma.max(relative(made.dgamma[c], dgamma, 2e-6 * scale));
        worst.dbeta = worst.dbeta.max(relative(made.dbeta[c], dbeta, 2e-6 * spread * n));
        let m = made.moments[c];
        let over = |err: f64, scale: f64| if err <= 0.0 { 0.0 } else { err / scale };
        worst.mean = worst.mean.max(over((m.mean - mean).abs() - 1e-15 * mean.abs(), 1e-6 * var.sqrt()));
        worst.var = worst.var.max(over((m.variance() - var).abs(), 2e-6 * var));
    }
    let Worst { y, dx, dgamma, dbeta, mean, var } = worst;
    for (what, w) in [("y", y), ("dx", dx), ("dgamma", dgamma), ("dbeta", dbeta), ("mean", mean), ("var", var)] {
        assert!(
            w <= 1.0,
            "{}: {what} is wrong by {w} of its bound ({:?}, ε = {})",
            case.name,
            case.shape,
            case.epsilon
        );
    }
    worst
}

/// Shapes of every geometry: planes (pieces, spanning, one image, leftovers), rows (wide, folded,
/// with tails), planes too small for vectors.
fn shapes() -> Vec<Shape> {
    [
        Shape::nchw(5, 3, &[40, 41]),
        Shape::nchw(1, 2, &[5000]),
        Shape::nchw(9, 3, &[7, 7]),
        Shape::nchw(34, 2, &[14, 14]),
        Shape::nchw(70, 5, &[3, 3]),
        Shape::nchw(3, 2, &[17]),
        Shape::nhwc(4, 33, &[15, 17]),
        Shape::nhwc(2, 3, &[50, 31]),
        Shape::nhwc(3, 8, &[20, 21]),
        Shape::nhwc(2, 1, &[37, 20]),
        Shape::dense(700, 65),
        Shape::dense(2, 130),
    ]
    .into_iter()
    .collect::<Result<_, _>>()
    .unwrap()
}

/// Runs a kind of data over all shapes.
fn over_shapes(
    name: &str,
    epsilon: f64,
    random: bool,
    data: impl Fn(&mut Random, usize, usize) -> f64,
    gradient: impl Fn(&mut Random, usize, usize) -> f64,
) {
    let mut worst = Worst::default();
    for (i, shape) in shapes().into_iter().enumerate() {
        let mut rng = Random(i as u64 + 77);
        let (mut x, mut dy) = (vec![0.0f32; shape.len()], vec![0.0f32; shape.len()]);
        for c in 0..shape.channels() {
            for (j, at) in places(shape, c).enumerate() {
                x[at] = data(&mut rng, c, j) as f32;
                dy[at] = gradient(&mut rng, c, j) as f32;
            }
        }
        let affine = i % 2 == 0;
        let gamma = affine.then(|| (0..shape.channels()).map(|_| rng.normal() as f32).collect());
        let beta = (i % 3 == 0).then(|| (0..shape.channels()).map(|_| rng.normal() as f32).collect());
        let case = Case { name: name.into(), shape, epsilon, x, dy, gamma, beta, random };
        worst = worst.max(check(&case));
    }
    println!("{name:40} ε={epsilon:e} worst, of the bound: {worst:.3?}");
}

fn normal(rng: &mut Random, _: usize, _: usize) -> f64 {
    rng.normal()
}

#[test]
fn any_ratio_of_mean_to_std() {
    for ratio in [0.0, 1.0, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7] {
        for epsilon in [1e-5, 0.0] {
            over_shapes(&format!("mean/std {ratio:e}"), epsilon, true, |r, _, _| ratio + r.normal(), normal);
        }
    }
}

#[test]
fn small_deviations_about_a_large_mean() {
    // As above, but scaled so that ε matters.
    for ratio in [1e2, 1e5, 1e7] {
        over_shapes(&format!("1 ± 1/{ratio:e}"), 1e-5, true, |r, _, _| 1.0 + r.normal() / ratio, normal);
    }
}

#[test]
fn structured_data() {
    type Kind = (&'static str, fn(usize, usize) -> f64);
    let kinds: [Kind; 7] = [
        ("two-valued", |_, j| if j % 3 == 0 { 1000.0 } else { 1000.5 }),
        ("sorted", |_, j| 10.0 + j as f64 * 0.01),
        ("sorted downwards about 1e6", |_, j| 1e6 - j as f64 * 0.25),
        ("period 2", |_, j| (j % 2) as f64 * 100.0),
        ("period 16", |_, j| ((j % 16) * (j % 16)) as f64),
        ("period 64", |_, j| if j % 64 == 0 { 500.0 } else { 1.0 }),
        ("step in the middle", |c, j| if j > 300 { 1e4 + c as f64 + (j % 7) as f64 } else { (j % 5) as f64 }),
    ];
    for (name, f) in kinds {
        for epsilon in [1e-5, 0.0] {
            over_shapes(name, epsilon, false, |_, c, j| f(c, j), normal);
        }
    }
}

#[test]
fn constant_channels_give_beta_exactly() {
    for (value, epsilon) in [(0.0, 1e-5), (0.1, 0.0), (1e-40, 0.0), (12345.678, 0.0), (3.1e38, 1e-5), (-2e30, 0.0)] {
        for shape in shapes() {
            let n = shape.len();
            let beta: Vec<f32> = (0..shape.channels()).map(|c| c as f32 * 0.37 - 1.0).collect();
            let mut rng = Random(5);
            let case = Case {
                name: format!("constant {value:e}"),
                shape,
                epsilon,
                x: vec![value as f32; n],
                dy: (0..n).map(|_| rng.normal() as f32).collect(),
                gamma: Some(vec![1.7; shape.channels()]),
                beta: Some(beta.clone()),
                random: false,
            };
            check(&case);
            let made = make(Isa::detect(), &case);
            for (c, b) in beta.iter().enumerate() {
                assert!(places(shape, c).all(|i| made.y[i] == *b), "{value:e} {shape:?}");
                assert_eq!((made.moments[c].mean, made.moments[c].m2), ((value as f32) as f64, 0.0));
                if epsilon == 0.0 {
                    assert!(places(shape, c).all(|i| made.dx[i] == 0.0));
                    assert_eq!(made.dgamma[c], 0.0);
                }
            }
        }
    }
}

#[test]
fn gradients_with_a_mean() {
    for ratio in [1.0, 1e2, 1e3, 1e4, 1e5] {
        over_shapes(&format!("dy mean/std {ratio:e}"), 1e-5, true, normal, |r, _, _| ratio + r.normal());
        over_shapes(
            &format!("both mean/std {ratio:e}"),
            1e-5,
            true,
            |r, _, _| ratio + r.normal(),
            |r, _, _| r.normal() - ratio,
        );
    }
}

#[test]
fn gradients_of_every_size() {
    for scale in [1e-44, 1e-40, 1e-37, 1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30, 1e37] {
        over_shapes(&format!("dy · {scale:e}"), 1e-5, false, normal, |r, _, _| r.normal() * scale);
        over_shapes(
            &format!("dy · {scale:e}, x · 1e-12"),
            0.0,
            false,
            |r, _, _| r.normal() * 1e-12,
            |r, _, _| r.normal() * scale,
        );
    }
    over_shapes("dy ±3e38", 1e-5, false, normal, |_, _, j| if j % 2 == 0 { 3e38 } else { -3e38 });
    over_shapes("dy 0", 1e-5, false, normal, |_, _, _| 0.0);
    over_shapes("dy one outlier", 1e-5, false, normal, |r, _, j| if j == 1 { 1e30 } else { r.normal() });
}

#[test]
fn gradient_along_the_normalized_input() {
    // dy parallel to x̂: dx is all cancellation.
    over_shapes("dy = x", 1e-5, false, |_, _, j| ((j * 37) % 101) as f64, |_, _, j| ((j * 37) % 101) as f64);
}

#[test]
fn data_of_every_size() {
    for scale in [1e-45, 1e-42, 1e-38, 1e-25, 1e-10, 1e10, 1e20, 1e30, 1e37] {
        for epsilon in [1e-5, 0.0] {
            over_shapes(&format!("x · {scale:e}"), epsilon, scale > 1e-30, |r, _, _| r.normal() * scale, normal);
        }
    }
    for epsilon in [1e-5, 0.0] {
        over_shapes("±3e38", epsilon, false, |_, _, j| if j % 2 == 0 { 3e38 } else { -3e38 }, normal);
        over_shapes("one outlier of 1e30", epsilon, false, |r, _, j| if j == 1 { 1e30 } else { r.normal() }, normal);
        over_shapes("one outlier of −3e38", epsilon, false, |r, _, j| if j == 0 { -3e38 } else { r.normal() }, normal);
    }
}
