//! What the sweep and the fuzz targets have found, kept; and a short sweep.
#![cfg(feature = "problem")]

use bn_core::{Layout, Shape};
use bn_oracle::bounds::{Activation, limit};
use bn_oracle::data::{Family, Gradient, Random};
use bn_oracle::problem::{How, Number, Problem, Through};

fn problem(shape: Shape, x: &[f32], dy: &[f32]) -> Problem<f32> {
    let c = shape.channels();
    // Values of all elements, or each channel has the same.
    let repeat = if x.len() == shape.len() { 1 } else { c };
    let spread = |v: &[f32]| (0..shape.len()).map(|i| v[i / repeat]).collect();
    assert!(repeat == 1 || shape.layout() == Layout::Nhwc);
    Problem {
        shape,
        epsilon: 0.0,
        activation: Activation::Identity,
        x: spread(x),
        dy: spread(dy),
        residual: None,
        gamma: None,
        beta: None,
        running: (vec![0.0; c], vec![1.0; c]),
    }
}

/// Fewer rows than are folded into one, values a few ulps apart, dy with a mean of 10⁴ deviations: without
/// a pivot of dy what f64 rounds off the mean, times Σ dy, was 10⁻⁵ of dgamma.
#[test]
fn few_rows_have_a_pivot_too() {
    let x = [4.5474735e-13, 4.547475e-13, 4.547475e-13, 4.547474e-13, 4.5474746e-13];
    let dy = [-9.999836e3, -9.998887e3, -9.999563e3, -1.0000867e4, -1.0001267e4];
    for channels in [1, 2, 4, 8, 16, 33, 48, 64] {
        let shape = Shape::nhwc(x.len(), channels, &[]).unwrap();
        let p = problem(shape, &x, &dy);
        let forward = p.forward(How::default());
        let made = p.backward(How::default(), &forward, Through::Batch);
        let e = p.judge_backward(0, &forward, &made, Through::Batch);
        assert!(e.dx <= limit::CONTRACT && e.dgamma <= limit::CONTRACT, "{channels} channels: {e:?}");
    }
}

/// An outlier and values of ±1 along which dy lies: x̂ of the outlier is √(n/2), and so is dx in units of dy. No f32
/// can hold that to 2e-6 of dy: dx is measured with 1 + |x̂|.
#[test]
fn dx_is_measured_with_the_normalized_input() {
    let n = 1 << 18;
    let x: Vec<f32> = (0..n)
        .map(|i| {
            if i == 5 {
                512.0
            } else if i % 2 == 0 {
                1.0
            } else {
                -1.0
            }
        })
        .collect();
    let dy: Vec<f32> = x.iter().map(|x| x.signum() * 0.7).collect();
    let p = problem(Shape::nhwc(n, 1, &[]).unwrap(), &x, &dy);
    let forward = p.forward(How::default());
    let made = p.backward(How::default(), &forward, Through::Batch);
    let e = p.judge_backward(0, &forward, &made, Through::Batch);
    assert!(e.dx <= limit::CONTRACT, "{e:?}");
    // Measured by dy alone half an ulp of dx is already more than that.
    let channel = p.channel(0);
    let back = channel.backward(1.0, x.iter().zip(&dy).map(|(x, dy)| (*x as f64, *dy as f64, 1.0)));
    let exact = back.dx(512.0, dy[5] as f64, 1.0);
    let scale = channel.scale(1.0).hi * 0.7;
    let rounding = 2f64.powf(exact.hi.abs().log2().floor()) / scale;
    assert!(rounding > limit::CONTRACT && e.dx_flat > limit::CONTRACT, "{rounding} units, {e:?}");
}

/// A constant x makes products of 0, so each block of gradient sums is done again: in f64 that is one chain of up
/// to 256 additions, with the error of one.
#[test]
fn a_block_done_again_in_f64_is_one_chain() {
    let n = 3228;
    let p = Problem::<f64> {
        shape: Shape::nhwc(n, 1, &[]).unwrap(),
        epsilon: 1e-5,
        activation: Activation::Identity,
        x: vec![1.5; n],
        dy: (0..n).map(|i| if i * 7 % 11 < 4 { 9.964893069457629e-1 } else { -6.650106445512641e-1 }).collect(),
        residual: None,
        gamma: None,
        beta: None,
        running: (vec![0.0], vec![1.0]),
    };
    let forward = p.forward(How::default());
    let made = p.backward(How::default(), &forward, Through::Batch);
    let e = p.judge_backward(0, &forward, &made, Through::Batch);
    assert!(e.dbeta <= limit::AGAIN * limit::DBETA, "{e:?}");
}

fn sweep<T: Number>(seed: u64) {
    let mut r = Random(seed);
    let given = |e: f64, limit: f64, what: &str| assert!(e <= limit, "seed {seed}: {what} {e} units");
    let layout = if r.below(2) == 0 { Layout::Nchw } else { Layout::Nhwc };
    let shape = Shape::new(layout, 1 + r.below(20), 1 + r.below(20), &[1 + r.below(30)]).unwrap();
    let p = Problem::<T>::random(shape, r.pick(&Family::ALL), r.pick(&Gradient::ALL), &mut r);
    let forward = p.forward(How::default());
    let y = p.inference(How::default());
    let batch = p.backward(How::default(), &forward, Through::Batch);
    let frozen = p.backward(How::default(), &forward, Through::Running);
    let exact = T::FORMAT.name == "f32";
    let of = |bound: f64| if exact { limit::CONTRACT } else { T::FORMAT.follows(bound) };
    for c in 0..shape.channels() {
        let e = p.judge_forward(c, &forward);
        given(e.y, of(limit::Y), "y");
        given(e.mean, of(limit::MEAN), "mean");
        given(
            e.variance,
            if exact { limit::CONTRACT_VARIANCE } else { T::FORMAT.follows(limit::VARIANCE) },
            "variance",
        );
        given(p.judge_inference(c, &y), limit::INFERENCE, "inference");
        let e = p.judge_backward(c, &forward, &batch, Through::Batch);
        given(e.dx, of(limit::DX), "dx");
        given(e.dgamma, of(limit::DGAMMA), "dgamma");
        given(e.dbeta, of(limit::DBETA), "dbeta");
        let e = p.judge_backward(c, &forward, &frozen, Through::Running);
        given(e.dx, limit::FROZEN_DX, "frozen dx");
        given(e.dgamma, T::FORMAT.follows(limit::FROZEN_SUMS), "frozen dgamma");
        given(e.dbeta, T::FORMAT.follows(limit::FROZEN_SUMS), "frozen dbeta");
    }
}

#[test]
fn a_short_sweep() {
    for seed in 0..600 {
        if seed % 3 == 0 { sweep::<f64>(seed) } else { sweep::<f32>(seed) }
    }
}

#[cfg(feature = "half")]
#[test]
fn a_short_sweep_of_16_bits() {
    for seed in 600..1000 {
        if seed % 2 == 0 { sweep::<half::f16>(seed) } else { sweep::<half::bf16>(seed) }
    }
}

/// γ·x̂ + β is beyond the range, y is not.
#[test]
fn a_slope_brings_back_what_overflows() {
    for shape in [Shape::nhwc(2, 1, &[]).unwrap(), Shape::nhwc(1, 1, &[40]).unwrap(), Shape::nchw(2, 3, &[21]).unwrap()]
    {
        let n = shape.len();
        let mut x = vec![1.0; n];
        (x[0], x[n - 1]) = (-3e38, 3e38);
        let mut p = problem(shape, &x, &vec![1.0; n]);
        p.gamma = Some(vec![2.0; shape.channels()]);
        p.activation = Activation::LeakyRelu(0.25);
        let y = p.inference(How::default());
        assert_eq!((y[0], y[n - 1]), (-1.5e38, f32::INFINITY), "{shape:?}");
        // A residual does as well, also where it meets an infinity of the other sign on its way.
        p.residual = Some(vec![0.0; n]);
        let r = p.residual.as_mut().unwrap();
        (r[0], r[n - 1]) = (3e38, -3.25e38);
        for (activation, first, last) in [
            (Activation::Identity, -3e38, 2.75e38),
            (Activation::LeakyRelu(0.25), -0.75e38, 2.75e38),
            (Activation::Relu, 0.0, 2.75e38),
            (Activation::Clamp(0.0, 6.0), 0.0, 6.0),
        ] {
            p.activation = activation;
            let y = p.inference(How::default());
            assert!(
                ((y[0] - first) / 3e38).abs() <= 1e-7 && ((y[n - 1] - last) / 3e38).abs() <= 1e-7,
                "{shape:?} {activation:?} {} {}",
                y[0],
                y[n - 1]
            );
        }
    }
}

/// dy that the slope of a leaky rectifier takes beyond the range: dresidual is infinite, and so is dbeta; the other
/// channel is as right as ever.
#[test]
fn a_slope_may_overflow() {
    let (x, dy) = ([-1.0, 1.0, 2.0, -2.0], [3e38, 1.0, 2.0, 3.0]);
    let mut p = problem(Shape::nhwc(4, 2, &[]).unwrap(), &x, &dy);
    p.activation = Activation::LeakyRelu(4.0);
    p.dy[1] = 1.0;
    let forward = p.forward(How::default());
    let made = p.backward(How::default(), &forward, Through::Batch);
    assert_eq!(made.dresidual[0], f32::INFINITY);
    assert_eq!(made.dbeta[0], f32::INFINITY);
    assert_eq!(p.judge_backward(0, &forward, &made, Through::Batch), bn_oracle::bounds::Gradients::default());
    let e = p.judge_backward(1, &forward, &made, Through::Batch);
    assert!(e.dx <= limit::CONTRACT && e.dgamma <= limit::CONTRACT && e.dbeta <= limit::CONTRACT, "{e:?}");
}

/// A subnormal z behind a slope above 1: what rounding z has cost grows with it.
#[test]
fn a_slope_multiplies_what_a_subnormal_lost() {
    let slope = 130.0 / 64.0;
    let x: Vec<f32> = (1..200).map(|i| -1.917669e-37 / i as f32).collect();
    let p = Problem {
        epsilon: 1e-5,
        activation: Activation::LeakyRelu(slope),
        running: (vec![1.3811e-40], vec![5.066717e6]),
        ..problem(Shape::nhwc(x.len(), 1, &[]).unwrap(), &x, &x)
    };
    let error = p.judge_inference(0, &p.inference(How::default()));
    assert!(error <= limit::INFERENCE, "{error}");
}
