//! Batch renormalization against the paper's formulas in f64, and against differences.

mod common;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, Gradients, Isa, Moments, Op, Renorm, RenormFactor, Run, Shape,
    Statistics, renorm_affine, renorm_gradients,
};
use common::problem::{Problem, Real, Worst, bits, random, with_workspace};
use common::{Random, mean_var, places, sum};

/// What a step makes, and what it makes it of.
struct Step<T> {
    moments: Vec<Moments>,
    factors: Vec<RenormFactor>,
    gamma_r: Vec<T>,
    beta_d: Vec<T>,
    y: Vec<T>,
    dx: Vec<T>,
    dresidual: Vec<T>,
    dgamma: Vec<T>,
    dbeta: Vec<T>,
}

fn step<T: Real>(p: &Problem<T>, renorm: Renorm, mean: &[T], var: &[T]) -> Step<T> {
    let (bn, c) = (p.plan(Isa::detect()), p.shape.channels());
    let blank = |n| vec![T::of(f64::NAN); n];
    let mut moments = vec![Moments::EMPTY; c];
    let words = bn.workspace_best(Op::ForwardTraining, 1);
    with_workspace(words, |ws| bn.moments(&p.x, &mut moments, Run::serial(ws))).unwrap();
    let mut factors = vec![RenormFactor::default(); c];
    renorm.factors(&moments, mean, var, bn.epsilon(), &mut factors).unwrap();
    let (mut gamma_r, mut beta_d) = (blank(c), blank(c));
    renorm_affine(&factors, p.affine(), &mut gamma_r, &mut beta_d).unwrap();
    let mut y = blank(p.shape.len());
    let affine = Affine::new(&gamma_r, &beta_d);
    with_workspace(words, |ws| {
        bn.normalize(&p.x, p.residual.as_deref(), affine, &moments, &mut y[..], Run::serial(ws))
    })
    .unwrap();
    let (mut dx, mut dresidual) = (blank(p.shape.len()), blank(p.shape.len()));
    let (mut dgamma, mut dbeta) = (blank(c), blank(c));
    let statistics = Statistics::Batch(&moments);
    let input = BackwardInput { x: &p.x, y: Some(&y), dy: &p.dy, gamma: Some(&gamma_r), statistics };
    let output = Gradients {
        dx: Some((&mut dx[..]).into()),
        dresidual: Some((&mut dresidual[..]).into()),
        dgamma: Some(&mut dgamma),
        dbeta: Some(&mut dbeta),
    };
    with_workspace(bn.workspace_best(Op::Backward, 1), |ws| bn.backward(input, output, Run::serial(ws))).unwrap();
    renorm_gradients(&factors, &mut dgamma, &dbeta).unwrap();
    Step { moments, factors, gamma_r, beta_d, y, dx, dresidual, dgamma, dbeta }
}

fn shapes() -> [Shape; 6] {
    [
        Shape::nchw(2, 3, &[5]).unwrap(),
        Shape::nhwc(4, 5, &[3, 3]).unwrap(),
        Shape::dense(2, 33).unwrap(),
        Shape::nchw(3, 2, &[40]).unwrap(),
        Shape::nhwc(8, 1, &[7]).unwrap(),
        Shape::nchw(7, 19, &[]).unwrap(),
    ]
}

/// Running statistics about those of the batch, some of them far off.
fn running<T: Real>(p: &Problem<T>, seed: u64) -> (Vec<T>, Vec<T>) {
    let mut r = Random(seed);
    let one = |(mean, var): (f64, f64)| {
        let (far, sigma) = (if r.below(3) == 0 { 10.0 } else { 0.5 }, (var + p.epsilon).sqrt());
        (T::of(mean + far * sigma * r.normal()), T::of(var * 10f64.powf(far / 5.0 * (r.uniform() - 0.5))))
    };
    p.statistics().into_iter().map(one).unzip()
}

fn reference<T: Real>() -> Worst {
    let mut worst = Worst::default();
    let mut clipped = [0; 3];
    for (i, shape) in shapes().into_iter().enumerate() {
        let relu6 = Activation::Clamp { lo: 0.0, hi: 6.0 };
        for (k, activation) in [Activation::Identity, Activation::Relu, relu6].into_iter().enumerate() {
            for (r_max, d_max) in [(1.0, 0.0), (1.5, 0.5), (3.0, 5.0), (1e30, 1e30)] {
                let p = random::<T>(shape, activation, k != 1, (10 * i + k) as u64);
                let (mean, var) = running(&p, i as u64);
                let s = step(&p, Renorm::new(r_max, d_max).unwrap(), &mean, &var);
                for c in 0..shape.channels() {
                    // The paper, Algorithm 1.
                    let (mu_batch, var_batch) = mean_var(places(shape, c).map(|i| p.x[i].wide()));
                    let sigma_batch = (var_batch + p.epsilon).sqrt();
                    let (mu, sigma) = (mean[c].wide(), (var[c].wide() + p.epsilon).sqrt());
                    let r = (sigma_batch / sigma).clamp(1.0 / r_max, r_max);
                    let d = ((mu_batch - mu) / sigma).clamp(-d_max, d_max);
                    clipped[if r == r_max { 2 } else { usize::from(r == 1.0 / r_max) }] += 1;
                    let name = (shape, activation, r_max, c);
                    worst.check("r", &name, s.factors[c].r, r, T::BOUND.max(1e-12) * r);
                    worst.check("d", &name, s.factors[c].d, d, T::BOUND * (1.0 + mu_batch.abs() / sigma));
                    let gamma = p.gamma.as_ref().map_or(1.0, |g| g[c].wide());
                    let beta = p.beta.as_ref().map_or(0.0, |b| b[c].wide());
                    let x_hat = |i: usize| (p.x[i].wide() - mu_batch) / sigma_batch;
                    // What half an ulp of the mean is in x̂, here and there.
                    let off = 2.0 * f64::EPSILON * mu_batch.abs() / sigma_batch;
                    let z =
                        |i: usize| gamma * (x_hat(i) * r + d) + beta + p.residual.as_ref().map_or(0.0, |v| v[i].wide());
                    let top = places(shape, c).map(|i| z(i).abs()).fold(1.0, f64::max);
                    // The residual may cancel what it is added to.
                    let top = top
                        + p.residual
                            .as_ref()
                            .map_or(0.0, |v| places(shape, c).map(|i| v[i].wide().abs()).fold(0.0, f64::max));
                    for i in places(shape, c) {
                        let y = common::problem::activate(activation, z(i));
                        worst.check("y", &(name, i), s.y[i].wide(), y, (T::BOUND + off * (gamma * r).abs()) * top);
                    }
                    // dy behind the mask of the y that was made.
                    let dy = |i: usize| common::problem::mask(activation, s.y[i].wide(), p.dy[i].wide());
                    let n = shape.values_per_channel() as f64;
                    let dbeta = sum(places(shape, c).map(dy));
                    let e = |i: usize| dy(i) - dbeta / n;
                    let dot = sum(places(shape, c).map(|i| e(i) * x_hat(i)));
                    let spread = places(shape, c).map(|i| e(i).abs()).fold(0.0, f64::max);
                    let size = sum(places(shape, c).map(|i| dy(i).abs()));
                    let size_dot = sum(places(shape, c).map(|i| (e(i) * x_hat(i)).abs()));
                    for i in places(shape, c) {
                        assert_eq!(s.dresidual[i].wide(), dy(i));
                        let scale = gamma * r / sigma_batch;
                        let dx = scale * (e(i) - x_hat(i) * dot / n);
                        let bound = (1.1 * T::BOUND + off * (1.0 + x_hat(i).abs())) * scale.abs() * spread;
                        worst.check("dx", &(name, i), s.dx[i].wide(), dx, bound);
                    }
                    let bound = T::BOUND * (r * size_dot + d.abs() * size + r * n * spread * T::ROUNDING)
                        + off * (r * n * spread + size);
                    worst.check("dgamma", &name, s.dgamma[c].wide(), r * dot + d * dbeta, bound);
                    worst.check("dbeta", &name, s.dbeta[c].wide(), dbeta, T::BOUND * size);
                }
            }
        }
    }
    assert!(clipped.iter().all(|&n| n > 10), "{clipped:?}");
    worst
}

#[test]
fn the_paper() {
    println!("of the bounds, f32: {:?}", reference::<f32>());
    println!("of the bounds, f64: {:?}", reference::<f64>());
}

/// Central differences of Σ dy·y, with r and d held.
#[test]
fn gradients_are_differences() {
    for (i, shape) in shapes().into_iter().enumerate() {
        let mut p = random::<f64>(shape, Activation::Identity, true, 70 + i as u64);
        // Means and deviations of one size, so that differences have digits.
        let mut r = Random(i as u64);
        p.x.iter_mut().for_each(|x| *x = 1.0 + 2.0 * r.normal());
        p.dy.iter_mut().for_each(|dy| *dy = 0.5 + r.normal());
        let (mean, var) = running(&p, 70 + i as u64);
        let s = step(&p, Renorm::new(2.0, 1.0).unwrap(), &mean, &var);
        let bn = p.plan(Isa::detect());
        let c = shape.channels();
        let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| {
            let (mut moments, mut y) = (vec![Moments::EMPTY; c], vec![0.0; x.len()]);
            let (mut gamma_r, mut beta_d) = (vec![0.0; c], vec![0.0; c]);
            renorm_affine(&s.factors, Affine::new(gamma, beta), &mut gamma_r, &mut beta_d).unwrap();
            with_workspace(bn.workspace_best(Op::ForwardTraining, 1), |ws| {
                let affine = Affine::new(&gamma_r, &beta_d);
                bn.forward_training(x, p.residual.as_deref(), affine, &mut y[..], &mut moments, Run::serial(ws))
            })
            .unwrap();
            sum(y.iter().zip(&p.dy).map(|(y, dy)| y * dy))
        };
        let (gamma, beta) = (p.gamma.clone().unwrap_or(vec![1.0; c]), p.beta.clone().unwrap_or(vec![0.0; c]));
        let scale = sum(s.y.iter().zip(&p.dy).map(|(y, dy)| (y * dy).abs())).max(1.0);
        let difference = |which: usize, k: usize, h: f64| {
            let at = |by: f64| {
                let mut all = [p.x.clone(), gamma.clone(), beta.clone()];
                all[which][k] += by;
                let step = all[which][k];
                (loss(&all[0], &all[1], &all[2]), step)
            };
            let ((above, a), (below, b)) = (at(h), at(-h));
            ((above - below) / (a - b), 1e-14 * scale / h)
        };
        for ch in 0..c {
            let sigma = 1.0 / s.moments[ch].inverse_std(p.epsilon);
            for k in places(shape, ch).step_by(3) {
                let (got, rounding) = difference(0, k, 1e-4 * sigma);
                let bound = 1e-6 * (1.0 + s.gamma_r[ch].abs()) * 10.0 / sigma + rounding;
                assert!((got - s.dx[k]).abs() <= bound, "{shape:?} dx[{k}]: {got} {}", s.dx[k]);
            }
            for (which, exact) in [(1, s.dgamma[ch]), (2, s.dbeta[ch])] {
                let (got, rounding) = difference(which, ch, 1e-3);
                assert!((got - exact).abs() <= 10.0 * rounding, "{shape:?} {which} {ch}: {got} {exact}");
            }
        }
    }
}

/// Limits of 1 and 0: the calls of batch normalization, to the bit, with and without parameters, also
/// those that are −0.
fn plain<T: Real>() {
    assert_eq!(Renorm::new(1.0, 0.0).unwrap(), Renorm::BATCH_NORM);
    for (i, shape) in shapes().into_iter().enumerate() {
        for extras in [false, true] {
            let mut p = random::<T>(shape, Activation::LeakyRelu { slope: 0.125 }, extras, 40 + i as u64);
            if let Some(beta) = &mut p.beta {
                beta[0] = T::of(-0.0);
                // A constant channel, which gives beta.
                places(shape, 0).for_each(|i| p.x[i] = T::of(3.0));
            }
            let (mean, var) = running(&p, 40);
            let s = step(&p, Renorm::BATCH_NORM, &mean, &var);
            assert!(s.factors.iter().all(|f| *f == RenormFactor { r: 1.0, d: 0.0 }));
            assert_eq!(bits(&s.gamma_r), bits(&p.gamma.clone().unwrap_or(vec![T::of(1.0); shape.channels()])));
            assert_eq!(bits(&s.beta_d), bits(&p.beta.clone().unwrap_or(vec![T::of(0.0); shape.channels()])));
            let f = p.forward(Isa::detect());
            let b = p.backward(Isa::detect(), &f.y, Statistics::Batch(&f.moments));
            assert_eq!(f.moments, s.moments);
            for (what, got, expected) in [
                ("y", &s.y, &f.y),
                ("dx", &s.dx, &b.dx),
                ("dresidual", &s.dresidual, &b.dresidual),
                ("dgamma", &s.dgamma, &b.dgamma),
                ("dbeta", &s.dbeta, &b.dbeta),
            ] {
                assert_eq!(bits(got), bits(expected), "{what} {shape:?}");
            }
        }
    }
}

#[test]
fn limits_of_batch_normalization() {
    plain::<f32>();
    plain::<f64>();
}

/// Without limits training gives what inference with the running statistics gives.
#[test]
fn no_limits_are_inference() {
    for (i, shape) in shapes().into_iter().enumerate() {
        let p = random::<f64>(shape, Activation::Identity, true, 90 + i as u64);
        let (mean, var) = running(&p, 90);
        let s = step(&p, Renorm::new(f64::MAX, f64::MAX).unwrap(), &mean, &var);
        let bn = p.plan(Isa::detect());
        let mut y = vec![0.0; shape.len()];
        with_workspace(bn.workspace_best(Op::Inference, 1), |ws| {
            bn.inference(&p.x, p.residual.as_deref(), p.affine(), &mean, &var, &mut y[..], Run::serial(ws))
        })
        .unwrap();
        for c in 0..shape.channels() {
            let sigma = (var[c] + p.epsilon).sqrt();
            let reach = places(shape, c).map(|i| p.x[i].abs()).fold(mean[c].abs(), f64::max) / sigma;
            let bound = 1e-14 * (1.0 + (1.0 + p.gamma.as_ref().map_or(1.0, |g| g[c].abs())) * reach);
            for i in places(shape, c) {
                assert!((s.y[i] - y[i]).abs() <= bound * 10.0, "{shape:?} {i}: {} {}", s.y[i], y[i]);
            }
        }
    }
}

#[test]
fn factors_by_hand() {
    // Variance 4 (σ_B 2), mean 5.
    let batch = [Moments { count: 4, mean: 5.0, m2: 16.0 }];
    let factors = |r_max, d_max, mean: f64, var: f64, epsilon| {
        let mut f = [RenormFactor { r: f64::NAN, d: f64::NAN }];
        Renorm::new(r_max, d_max).unwrap().factors(&batch, &[mean], &[var], epsilon, &mut f).unwrap();
        (f[0].r, f[0].d)
    };
    assert_eq!(factors(3.0, 5.0, 4.0, 1.0, 0.0), (2.0, 1.0));
    assert_eq!(factors(1.5, 0.5, 4.0, 1.0, 0.0), (1.5, 0.5));
    assert_eq!(factors(4.0, 5.0, 13.0, 16.0, 0.0), (0.5, -2.0));
    assert_eq!(factors(1.6, 1.0, 13.0, 16.0, 0.0), (0.625, -1.0));
    // √(4 + 5) = 3 over √(31 + 5) = 6.
    assert_eq!(factors(4.0, 5.0, 2.0, 31.0, 5.0), (0.5, 0.5));
    // σ = 0: the limits.
    assert_eq!(factors(3.0, 5.0, 4.0, 0.0, 0.0), (3.0, 5.0));
    assert_eq!(factors(3.0, 5.0, 6.0, 0.0, 0.0), (3.0, -5.0));
    assert_eq!(factors(3.0, 5.0, 5.0, 0.0, 0.0), (3.0, 0.0));
    // σ_B = 0 too.
    let mut f = [RenormFactor::default()];
    let constant = [Moments { count: 4, mean: 5.0, m2: 0.0 }];
    Renorm::new(3.0, 5.0).unwrap().factors(&constant, &[5.0_f32], &[0.0], 0.0, &mut f).unwrap();
    assert_eq!(f, [RenormFactor { r: 1.0, d: 0.0 }]);
    // NaN spoils what it is in.
    let nan = [Moments { count: 4, mean: f64::NAN, m2: 1.0 }, Moments { count: 4, mean: 1.0, m2: f64::NAN }];
    let mut f = [RenormFactor::default(); 2];
    Renorm::new(3.0, 5.0).unwrap().factors(&nan, &[0.0_f32, 0.0], &[1.0, f32::NAN], 0.0, &mut f).unwrap();
    assert!(f[0].d.is_nan() && f[1].r.is_nan() && f[1].d.is_nan() && f[0].r == 0.5);
    // Parameters and gradients.
    let (mut g, mut b) = ([0.0_f32; 2], [0.0_f32; 2]);
    let f = [RenormFactor { r: 0.5, d: 2.0 }, RenormFactor { r: 3.0, d: -1.0 }];
    renorm_affine(&f, Affine::new(&[4.0, 1.0], &[1.0, 0.5]), &mut g, &mut b).unwrap();
    assert_eq!((g, b), ([2.0, 3.0], [9.0, -0.5]));
    let (mut dgamma, dbeta) = ([1.0_f32, 10.0], [4.0_f32, 7.0]);
    renorm_gradients(&f, &mut dgamma, &dbeta).unwrap();
    assert_eq!(dgamma, [8.5, 23.0]);
}

#[test]
fn limits() {
    for r_max in [0.999, 0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = Renorm::new(r_max, 0.0).unwrap_err();
        assert!(matches!(error, Error::Renorm { what: "r_max", got } if got.to_bits() == r_max.to_bits()));
    }
    for d_max in [-0.001, f64::NAN, f64::INFINITY] {
        assert!(matches!(Renorm::new(1.0, d_max).unwrap_err(), Error::Renorm { what: "d_max", .. }));
    }
    assert_eq!(Renorm::new(0.5, 0.0).unwrap_err().to_string(), "r_max is 0.5, expected a finite number ≥ 1");
    assert_eq!(Renorm::new(1.0, -0.5).unwrap_err().to_string(), "d_max is -0.5, expected a finite number ≥ 0");
    let r = Renorm::new(3.0, 5.0).unwrap();
    assert_eq!((r.r_max(), r.d_max()), (3.0, 5.0));
}

#[test]
fn errors_change_nothing() {
    let renorm = Renorm::new(3.0, 5.0).unwrap();
    let batch = [Moments { count: 4, mean: 5.0, m2: 16.0 }; 3];
    let before = [RenormFactor { r: -7.0, d: -8.0 }; 4];
    for (mean, var, n) in [(2, 3, 3), (3, 4, 3), (3, 3, 4), (0, 3, 3)] {
        let mut f = before;
        let error = renorm.factors(&batch, &[0.0_f32; 4][..mean], &[1.0; 4][..var], 0.0, &mut f[..n]).unwrap_err();
        let (what, got) = match (mean, var) {
            (3, 3) => ("factors", n),
            (3, var) => ("running_var", var),
            (mean, _) => ("running_mean", mean),
        };
        assert_eq!((error, f), (Error::Length { what, expected: 3, got }, before));
    }
    let mut f = before;
    let error = renorm.factors(&batch, &[0.0_f32; 3], &[1.0, f32::NAN, -2.0], 0.0, &mut f[..3]).unwrap_err();
    assert_eq!((error, f), (Error::Value { what: "running_var", channel: 2, got: -2.0 }, before));
    let error = renorm.factors(&batch, &[0.0_f32; 3], &[1.0; 3], -1.0, &mut f[..3]).unwrap_err();
    assert_eq!((error, f), (Error::Epsilon { got: -1.0 }, before));

    let f = &before[..3];
    for (what, lengths) in
        [("gamma", [4, 3, 3, 3]), ("beta", [3, 2, 3, 3]), ("gamma_r", [3, 3, 2, 3]), ("beta_d", [3, 3, 3, 4])]
    {
        let [gamma, beta, g, b] = lengths.map(|n| vec![7.0_f32; n]);
        let (mut g, mut b) = (g, b);
        let error = renorm_affine(f, Affine::new(&gamma, &beta), &mut g, &mut b).unwrap_err();
        let got = lengths.into_iter().find(|&n| n != 3).unwrap();
        assert_eq!(error, Error::Length { what, expected: 3, got });
        assert!(g.iter().chain(&b).all(|&v| v == 7.0));
    }
    for (what, dg, db) in [("dgamma", 2, 3), ("dbeta", 3, 4)] {
        let mut dgamma = vec![7.0_f64; dg];
        let error = renorm_gradients(f, &mut dgamma, &vec![1.0; db]).unwrap_err();
        assert_eq!(error, Error::Length { what, expected: 3, got: if dg == 3 { db } else { dg } });
        assert!(dgamma.iter().all(|&v| v == 7.0));
    }
}

/// One channel's NaN is that channel's business.
#[test]
fn nan_spoils_its_channel_only() {
    let shape = Shape::dense(4, 3).unwrap();
    let bn = BatchNorm::<f32>::new(shape, 1e-5).unwrap();
    let mut p = random::<f32>(shape, Activation::Identity, false, 5);
    p.epsilon = bn.epsilon();
    p.x[1] = f32::NAN;
    let s = step(&p, Renorm::new(3.0, 5.0).unwrap(), &[0.0; 3], &[1.0; 3]);
    for c in 0..3 {
        let spoilt = |v: &[f32]| places(shape, c).all(|i| v[i].is_nan());
        let fine = |v: &[f32]| places(shape, c).all(|i| v[i].is_finite());
        assert!(if c == 1 { spoilt(&s.y) && spoilt(&s.dx) } else { fine(&s.y) && fine(&s.dx) });
        assert_eq!(s.dgamma[c].is_nan(), c == 1);
    }
}
