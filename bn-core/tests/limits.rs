//! Where f32 gives way to f64: exactly where the contract on bits says. A channel within the limits has the bits of the
//! formula in f32, one beyond them those of the formula in f64.

mod common;
use bn_core::{Affine, BatchNorm, Isa, Moments, Op, Run, Shape};
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
