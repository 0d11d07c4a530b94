//! Where f32 gives way to f64: exactly where the contract on bits says. A channel within the limits has the bits of the
//! formula in f32, one beyond them those of the formula in f64.

mod common;
use bn_core::{Affine, BackwardInput, BatchNorm, GradSums, Gradients, Isa, Moments, Op, Run, Shape, Statistics};
use common::Random;

/// 2ᵏ.
fn power(k: i32) -> f64 {
    2f64.powi(k)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum In {
    F32,
    F64,
}

/// Both formulas.
fn formulas(x: &[f32], mean: f64, scale: f64, beta: f64) -> [Vec<u32>; 2] {
    let high = mean as f32;
    let (s, shift) = (scale as f32, (beta - (mean - f64::from(high)) * scale) as f32);
    let narrow = x.iter().map(|&x| ((x - high) * s + shift).to_bits()).collect();
    [narrow, x.iter().map(|&x| (((f64::from(x) - mean) * scale + beta) as f32).to_bits()).collect()]
}

#[track_caller]
fn check(y: &[f32], formulas: [Vec<u32>; 2], expected: In, what: &str) {
    let y: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
    assert_ne!(formulas[0], formulas[1], "{what}: the formulas do not differ");
    let made = if y == formulas[0] { Some(In::F32) } else { (y == formulas[1]).then_some(In::F64) };
    assert_eq!(made, Some(expected), "{what}");
}

fn normal(n: usize, mean: f64, std: f64, seed: u64) -> Vec<f32> {
    let mut r = Random(seed);
    (0..n).map(|_| (mean + std * r.normal()) as f32).collect()
}

/// √M2 ≤ 2¹²⁵, |s|·√M2 + |β| ≤ 2¹²⁵, 2⁻¹²⁰ ≤ |s| ≤ 2¹²⁰.
#[test]
fn training() {
    // n, the deviation of x, γ, β.
    for (n, std, gamma, beta, expected) in [
        (64, power(0), power(0), 1.0, In::F32),
        // The deviation, which is √M2/8.
        (64, power(118), power(20), 1.0, In::F32),
        (64, power(120), power(20), 1.0, In::F32),
        (64, power(124), power(20), 1.0, In::F64),
        // y.
        (64, power(0), power(118), 1.0, In::F32),
        (4096, power(0), 1.9 * power(119), 1.0, In::F64),
        (4096, power(10), power(118), 1.0, In::F32),
        // β, and both together.
        (1024, power(0), power(118), power(124), In::F32),
        (1024, power(0), power(118), power(126), In::F64),
        (4096, power(0), 1.2 * power(118), 1.5 * power(124), In::F64),
        // The scale.
        (64, power(119), power(0), 0.0, In::F32),
        (64, power(121), power(0), 0.0, In::F64),
        (64, power(0), 1.9 * power(120), 0.0, In::F64),
    ] {
        let x = normal(n, 3.0 * std, std, 1);
        let (gamma, beta) = ([gamma as f32], [beta as f32]);
        for isa in Isa::available() {
            let bn = BatchNorm::<f32>::new(Shape::dense(n, 1).unwrap(), 0.0).unwrap().with_isa(isa);
            let (mut y, mut m, mut ws) = (vec![0.0; n], [Moments::EMPTY], vec![0; 1024]);
            let run = Run::serial(&mut ws);
            bn.forward_training(&x, None, Affine::new(&gamma, &beta), &mut y[..], &mut m, run).unwrap();
            let scale = f64::from(gamma[0]) * (1.0 / m[0].variance().sqrt());
            let formulas = formulas(&x, m[0].mean, scale, beta[0].into());
            check(&y, formulas, expected, &format!("{isa:?}, {n} of {std:e}, γ {:e}, β {:e}", gamma[0], beta[0]));
        }
    }
}

/// |μ| and |β| ≤ 2¹⁰², 2⁻¹²⁰ ≤ |s| ≤ 2¹²⁰.
#[test]
fn inference() {
    let n = 64;
    for (mean, gamma, beta, expected) in [
        (1.0, 1.0, 1.0, In::F32),
        (1.5 * power(101), 1.0, 1.0, In::F32),
        (1.5 * power(102), 1.0, 1.0, In::F64),
        (1.0, 1.0, 1.5 * power(101), In::F32),
        (1.0, 1.0, 1.5 * power(102), In::F64),
        (0.0, power(120), 0.0, In::F32),
        (0.0, power(122), 0.0, In::F64),
        (0.0, power(-118), 0.0, In::F32),
        (0.0, power(-122), 0.0, In::F64),
    ] {
        let (var, gamma, beta) = ([3.0], [gamma as f32], [beta as f32]);
        let scale = f64::from(gamma[0]) * (1.0 / f64::from(var[0]).sqrt());
        // Neither the mean nor β is all of it.
        let x = normal(n, mean, f64::max(mean, f64::from(beta[0]).max(1.0) / scale), 2);
        let mean = [mean as f32];
        for isa in Isa::available() {
            let bn = BatchNorm::<f32>::new(Shape::dense(n, 1).unwrap(), 0.0).unwrap().with_isa(isa);
            let (mut y, mut ws) = (vec![0.0; n], vec![0; bn.workspace_best(Op::Inference, 1)]);
            let by = Affine::new(&gamma, &beta);
            bn.inference(&x, None, by, &mean, &var, &mut y[..], Run::serial(&mut ws)).unwrap();
            let formulas = formulas(&x, mean[0].into(), scale, beta[0].into());
            check(&y, formulas, expected, &format!("{isa:?}, mean {:e}, γ {:e}, β {:e}", mean[0], gamma[0], beta[0]));
        }
    }
}

/// Both formulas of dx: from x and its mean, or y and β.
fn backward_formulas(x: &[f32], dy: &[f32], [e, mean, c, s]: [f64; 4]) -> [Vec<u32>; 2] {
    let [e_high, high, c_narrow, s_narrow] = [e, mean, c, s].map(|v| v as f32);
    let b = ((e - f64::from(e_high)) - (mean - f64::from(high)) * c) as f32;
    let narrow = |(&x, &dy): (&f32, &f32)| (((dy - e_high) - ((x - high) * c_narrow + b)) * s_narrow).to_bits();
    let wide = |(&x, &dy): (&f32, &f32)| (((f64::from(dy) - e) - (f64::from(x) - mean) * c) * s) as f32;
    [x.iter().zip(dy).map(narrow).collect(), x.iter().zip(dy).map(|v| wide(v).to_bits()).collect()]
}

/// 2⁻¹²⁰ ≤ |s|, |c| ≤ 2¹²⁰, |c|·σ ≥ 2⁻¹⁰⁰, |E| and |b| ≤ 2¹²⁰, σ·√n ≤ 2¹²⁵; and with c = 0 |b| ≥ 2⁻¹²⁰.
#[test]
fn backward() {
    const N: usize = 64;
    // How many values the statistics are of, their mean and deviation, γ, E and c.
    for (count, mean, sigma, gamma, e, c, expected) in [
        (64, 0.3, 1.0, 1.0, 0.3, 0.3, In::F32),
        // s.
        (64, 0.0, power(119), 1.0, 0.3, power(-119), In::F32),
        (64, 0.0, power(121), 1.0, 0.3, power(-119), In::F64),
        (64, 0.3, 1.0, power(119), 0.3, 0.3, In::F32),
        (64, 0.3, 1.0, power(121), 0.3, 0.3, In::F64),
        // c.
        (64, 0.3, power(30), 1.0, 0.0, 1.3 * power(-119), In::F32),
        (64, 0.3, power(30), 1.0, 0.0, 1.3 * power(-121), In::F64),
        (64, 0.0, power(-20), 1.0, 0.0, 1.3 * power(119), In::F32),
        (64, 0.0, power(-20), 1.0, 0.0, 1.3 * power(120), In::F64),
        (64, 0.3, 1.0, 1.0, 0.0, 1.3 * power(-100), In::F32),
        (64, 0.3, 1.0, 1.0, 0.0, 1.3 * power(-101), In::F64),
        // E.
        (64, 0.3, 1.0, 1.0, 1.3 * power(119), 0.3, In::F32),
        (64, 0.3, 1.0, 1.0, 1.3 * power(120), 0.3, In::F64),
        // b: of the mean, and of E.
        (64, 1.3 * power(100), power(80), 1.0, 0.0, power(20), In::F32),
        (64, 1.3 * power(100), power(80), power(40), 0.0, power(60), In::F64),
        (64, 0.3, 1.0, 1.0, 1.3 * power(-90), 0.0, In::F32),
        (64, 0.3, 1.0, 1.0, 1.3 * power(-100), 0.0, In::F64),
        // x − mean.
        (4096, 0.0, power(118), power(10), 0.0, 1.3 * power(-100), In::F32),
        (4096, 0.0, power(120), power(10), 0.0, 1.3 * power(-100), In::F64),
    ] {
        let x = normal(N, mean, sigma, 3);
        let dy = normal(N, e, f64::max(e, c * sigma), 4);
        let n = count as f64;
        let moments = [Moments { count, mean, m2: sigma * sigma * n }];
        let sums = [GradSums { dbeta: e * n, dot: c * n * sigma * sigma }];
        let gamma = [gamma as f32];
        let formulas = backward_formulas(&x, &dy, [e, mean, c, f64::from(gamma[0]) * (1.0 / sigma)]);
        for isa in Isa::available() {
            let bn = BatchNorm::<f32>::new(Shape::dense(N, 1).unwrap(), 0.0).unwrap().with_isa(isa);
            let (mut dx, mut ws) = (vec![0.0; N], vec![0; bn.workspace_best(Op::Backward, 1)]);
            let statistics = Statistics::Batch(&moments);
            let input = BackwardInput { x: &x, y: None, dy: &dy, gamma: Some(&gamma), statistics };
            let output = Gradients { dx: Some((&mut dx[..]).into()), ..Gradients::default() };
            bn.backward_apply(input, &sums, output, Run::serial(&mut ws)).unwrap();
            let what = format!("{isa:?}, n {n}, mean {mean:e}, σ {sigma:e}, γ {:e}, E {e:e}, c {c:e}", gamma[0]);
            check(&dx, formulas.clone(), expected, &what);
        }
    }
}

/// The same where y is in the place of x: γ·x̂, whose deviation is γ, is in that of x − mean.
#[test]
fn from_output() {
    // No power of two, by which division would be exact.
    const N: usize = 62;
    let mut r = Random(5);
    let mut integers =
        |unit: f64| -> Vec<f32> { (0..N).map(|_| ((r.below(65) as f64 - 32.0) * unit) as f32).collect() };
    // σ, γ, and the units of y and dy.
    for (sigma, gamma, y, dy, expected) in [
        (1.0, 1.0, 1.0, 1.0, In::F32),
        (power(123), power(10), 1.0, 1.0, In::F32),
        (1.0, power(-16), power(-16), power(-80), In::F32),
        (1.0, power(-16), power(-16), power(-108), In::F64),
    ] {
        let (mut y, dy) = (integers(y), integers(dy));
        // β is their mean.
        for i in 0..N / 2 {
            y[N - 1 - i] = -y[i];
        }
        let moments = [Moments { count: N as u64, mean: 0.3, m2: sigma * sigma * N as f64 }];
        // The sums are exact.
        let s = gamma / sigma;
        let e = dy.iter().map(|&v| f64::from(v)).sum::<f64>() / N as f64;
        let dot = y.iter().zip(&dy).map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum::<f64>() / s;
        let formulas = backward_formulas(&y, &dy, [e, 0.0, dot / (N as f64 * sigma * sigma) / s, s]);
        let gamma = [gamma as f32];
        for isa in Isa::available() {
            let bn = BatchNorm::<f32>::new(Shape::dense(N, 1).unwrap(), 0.0).unwrap().with_isa(isa);
            let (mut dx, mut ws) = (vec![0.0; N], vec![0; bn.workspace_best(Op::Backward, 1)]);
            let affine = Affine { gamma: Some(&gamma), beta: None };
            let output = Gradients { dx: Some((&mut dx[..]).into()), ..Gradients::default() };
            bn.backward_from_output(&y, &dy, affine, &moments, output, Run::serial(&mut ws)).unwrap();
            check(&dx, formulas.clone(), expected, &format!("{isa:?}, σ {sigma:e}, γ {:e}", gamma[0]));
        }
    }
}
