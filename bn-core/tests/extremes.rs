//! Numbers at the ends of the range, subnormal, infinite and NaN, for which sums and constants take the slow paths: the
//! same bits on every ISA, and (`--cfg bn_single`) element by element.

mod common;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Gradients, Isa, Layout, Moments, Op, Prepared, Run, Shape, Statistics,
};
use common::{Number, Random, number_bits, places};

/// What the channels are like, in turn: factors of a normal distribution about a mean, and a value that stands in one
/// place of each.
const KINDS: [(f64, f64, Option<f64>); 14] = [
    (0.0, 1.0, None),
    (1e30, 1e28, None),
    (-3e38, 1e37, None),
    (0.0, 1e25, None),
    (0.0, 1e-30, None),
    (1e-39, 1e-40, None),
    (0.0, 1e-155, None),
    (0.0, 1e-161, None),
    (1e300, 1e290, None),
    (7.0, 0.0, None),
    (1e5, 1e-2, Some(-1e5)),
    (0.0, 1.0, Some(f64::INFINITY)),
    (0.0, 1.0, Some(f64::NAN)),
    (65000.0, 400.0, Some(f64::NEG_INFINITY)),
];

fn tensor<T: Number>(shape: Shape, first: usize, r: &mut Random) -> Vec<T> {
    let mut out = vec![T::of(0.0); shape.len()];
    for c in 0..shape.channels() {
        let (mean, std, odd) = KINDS[(first + c) % KINDS.len()];
        let at: Vec<usize> = places(shape, c).collect();
        for &i in &at {
            out[i] = T::of(mean + std * r.normal());
        }
        if let Some(v) = odd {
            out[at[r.below(at.len())]] = T::of(v);
        }
    }
    out
}

fn bits<T: Copy + Into<f64>>(values: &[T]) -> Vec<u64> {
    values.iter().map(|&v| number_bits(v)).collect()
}

fn every<T: Number>(shape: Shape, epsilon: f64, activation: Activation, seed: u64) {
    let (c, mut r) = (shape.channels(), Random(seed));
    // Each kind of x beside each kind of dy in some channel of some shape.
    let (x, dy) = (tensor::<T>(shape, seed as usize, &mut r), tensor::<T>(shape, 4 * seed as usize, &mut r));
    let mut params = |low: f64| -> Vec<T::Param> { (0..c).map(|_| ((low + r.uniform()) as f32).into()).collect() };
    let affine = (params(0.5), params(-0.5));
    let mut expected: Option<Vec<Vec<u64>>> = None;
    for isa in Isa::available() {
        let bn = BatchNorm::<T>::new(shape, epsilon).unwrap().with_isa(isa).with_activation(activation).unwrap();
        let (mut y, mut moments) = (vec![T::of(9.0); shape.len()], vec![Moments::EMPTY; c]);
        let mut ws = vec![0; bn.workspace_best(Op::ForwardTraining, 1).max(bn.workspace_best(Op::Backward, 1))];
        let by = Affine::new(&affine.0, &affine.1);
        bn.forward_training(&x, None, by, &mut y[..], &mut moments, Run::serial(&mut ws)).unwrap();
        let made = moments.iter().flat_map(|m| [m.mean, m.m2]).collect::<Vec<f64>>();
        let mut got = vec![bits(&y), bits(&made)];
        let trained = y.clone();
        let narrow =
            |of: fn(&Moments) -> f64| -> Vec<T::Param> { moments.iter().map(|m| (of(m) as f32).into()).collect() };
        let (mean, var) = (narrow(|m| m.mean), narrow(Moments::variance));
        bn.inference(&x, None, by, &mean, &var, &mut y[..], Run::serial(&mut ws)).unwrap();
        got.push(bits(&y));
        let (mean, var) = (&mean[..], &var[..]);
        for statistics in
            [Statistics::Batch(&moments), Statistics::Rounded { mean, var }, Statistics::Running { mean, var }]
        {
            let input = BackwardInput { x: &x, y: Some(&y), dy: &dy, gamma: Some(&affine.0), statistics };
            let (mut dx, mut dgamma, mut dbeta) = (vec![T::of(9.0); shape.len()], affine.0.clone(), affine.0.clone());
            let output = Gradients {
                dx: Some((&mut dx[..]).into()),
                dresidual: None,
                dgamma: Some(&mut dgamma),
                dbeta: Some(&mut dbeta),
            };
            bn.backward(input, output, Run::serial(&mut ws)).unwrap();
            got.extend([bits(&dx), bits(&dgamma), bits(&dbeta)]);
        }
        let expected = expected.get_or_insert_with(|| got.clone());
        for (what, (got, expected)) in got.iter().zip(&*expected).enumerate() {
            let other = got.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(other, None, "result {what} of {bn:?}, {}, seed {seed}", core::any::type_name::<T>());
        }
        // Every ISA has the same roots, which may all be wrong.
        if T::CALCULATES && activation == Activation::Identity {
            for (channel, m) in moments.iter().enumerate() {
                let sigma = (m.variance() + epsilon).sqrt();
                let (gamma, beta): (f64, f64) = (affine.0[channel].into(), affine.1[channel].into());
                let z = |i: usize| -> f64 { gamma * ((x[i].into() - m.mean) / sigma) + beta };
                let top = places(shape, channel).map(z).fold(1.0f64, |top, z| top.max(z.abs()));
                for i in places(shape, channel).filter(|&i| z(i).is_finite() && sigma > 0.0 && sigma.is_finite()) {
                    let trained: f64 = trained[i].into();
                    let what = || format!("{trained:e}, expected {:e}: {bn:?}, element {i}, channel {channel}", z(i));
                    assert!((trained - z(i)).abs() <= 1e-5 * top, "{}", what());
                }
            }
        }
        // A constant channel has no deviation, whatever stands in the others.
        for channel in (0..c).filter(|c| KINDS[(seed as usize + c) % KINDS.len()].1 == 0.0) {
            assert_eq!((moments[channel].mean, moments[channel].m2), (7.0, 0.0), "{bn:?}, channel {channel}");
        }
    }
}

fn shapes<T: Number>() {
    let mut seed = 0;
    for (n, c, s) in [(4, 28, 33), (3, 14, 16), (40, 14, 3), (500, 3, 1), (9, 70, 5), (2, 5, 600)] {
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let shape = Shape::new(layout, n, c, &[s]).unwrap();
            for activation in [Activation::Identity, Activation::LeakyRelu { slope: 0.01 }] {
                for epsilon in [1e-5, 0.0] {
                    every::<T>(shape, epsilon, activation, seed);
                    seed += 1;
                }
            }
        }
    }
}

#[test]
fn the_same_bits_on_every_isa() {
    every_type!(shapes());
}

/// z overflows, and a slope brings it back: with constants that suffice, and in f64 with others.
#[test]
fn a_slope_brings_back_what_is_far_from_the_mean() {
    for (mean, var, gamma, x, slope) in [
        (1e38f32, 1.0f32, 4.0f32, -2e38f32, 1e-3),
        (-1e38, 1.0, -4.0, 2e38, 1e-3),
        (-1e38, 1e-30, -4.0, 1e38, 1e-20),
        (0.0, 1e-38, 1e20, -3e30, 1e-37),
        (2.0, 1e-38, 1e19, -3e20, 1e-30),
    ] {
        let z = f64::from(gamma) * (f64::from(x) - f64::from(mean)) / f64::from(var).sqrt();
        let expected = z * slope;
        assert!(z < -4e38 && expected > -3e38);
        for (layout, channels) in [(Layout::Nchw, 1), (Layout::Nhwc, 1), (Layout::Nhwc, 48)] {
            for isa in Isa::available() {
                let bn = BatchNorm::<f32>::new(Shape::new(layout, 20, channels, &[3]).unwrap(), 0.0).unwrap();
                let bn = bn.with_activation(Activation::LeakyRelu { slope }).unwrap().with_isa(isa);
                let of = |v: f32| vec![v; channels];
                let (x, mut ws) = (vec![x; bn.shape().len()], vec![0; bn.workspace_min(Op::Inference)]);
                let mut y = x.clone();
                let (gamma, beta) = (of(gamma), of(0.0));
                let affine = Affine::new(&gamma, &beta);
                bn.inference(&x, None, affine, &of(mean), &of(var), &mut y[..], Run::serial(&mut ws)).unwrap();
                for y in y {
                    let error = (f64::from(y) - expected).abs() / expected.abs();
                    assert!(error < 1e-6, "{y:e}, expected {expected:e} ({mean:e}, {var:e}), {bn:?}");
                }
            }
        }
    }
}

/// NaN of either sign, with all bits that one may have, and signalling ones with only the lowest.
fn nans<P: bytemuck::Pod>(infinity: P) -> [P; 4] {
    let (size, mut low) = (size_of::<P>(), [0; 8]);
    low[..size].copy_from_slice(bytemuck::bytes_of(&infinity));
    low[0] |= 1;
    let mut all = [0xff; 8];
    let of = |bytes: &mut [u8; 8], sign: u8| {
        bytes[size - 1] = bytes[size - 1] & 0x7f | sign;
        bytemuck::pod_read_unaligned(&bytes[..size])
    };
    [of(&mut low, 0), of(&mut low, 0x80), of(&mut all, 0), of(&mut all, 0x80)]
}

/// Whatever its payload, NaN makes nothing else of a result: not where it is rounded to a shorter type either.
fn any_nan<T: Number>(shape: Shape, activation: Activation) {
    let (c, one) = (shape.channels(), T::Param::from(1.0));
    let bn = BatchNorm::<T>::new(shape, 1e-5).unwrap().with_activation(activation).unwrap();
    // One in a group of eight, in another place of each.
    let odd = |channel: usize| channel % 9 == 2;
    let channel_of = |i: usize| (0..c).find(|&channel| places(shape, channel).any(|at| at == i)).unwrap();
    let of_channel: Vec<usize> = (0..shape.len()).map(channel_of).collect();
    let there = |i: usize| i % 5 == 2;
    let ones = vec![T::of(1.5); shape.len()];
    let params = vec![one; c];
    let run_ws = bn.workspace_best(Op::Backward, 1).max(bn.workspace_best(Op::Inference, 1));
    let is_nan = |v: T| -> bool { v.into().is_nan() };
    for isa in Isa::available() {
        let (bn, mut ws) = (bn.with_isa(isa), vec![0; run_ws]);
        let check = |what: &str, got: &[T], expected: &dyn Fn(usize) -> bool| {
            let wrong = (0..shape.len()).find(|&i| is_nan(got[i]) != expected(i));
            let got = wrong.map(|i| got[i]);
            assert_eq!(wrong, None, "{what}: {got:?}, {bn:?}, {}", core::any::type_name::<T>());
        };
        for nan in nans(T::Param::from(f32::INFINITY)) {
            let with: Vec<T::Param> = (0..c).map(|channel| if odd(channel) { nan } else { one }).collect();
            let by_channel = |i: usize| odd(of_channel[i]);
            let parameters = [&with, &params, &params, &params];
            for (k, what) in ["gamma", "beta", "mean", "var"].into_iter().enumerate() {
                let [gamma, beta, mean, var] = core::array::from_fn(|i| parameters[(i + 4 - k) % 4]);
                let (mut y, affine) = (ones.clone(), Affine::new(gamma, beta));
                bn.inference(&ones, None, affine, mean, var, &mut y[..], Run::serial(&mut ws)).unwrap();
                check(what, &y, &by_channel);
                bn.inference(&ones, Some(&ones), affine, mean, var, &mut y[..], Run::serial(&mut ws)).unwrap();
                check(what, &y, &by_channel);
                let prepared: Vec<Prepared<T::Param>> =
                    (0..c).map(|i| Prepared { mean: mean[i], scale: gamma[i], shift: beta[i] }).collect();
                if what != "var" {
                    bn.apply(&ones, None, &prepared, &mut y[..], Run::serial(&mut ws)).unwrap();
                    check(what, &y, &by_channel);
                }
                if k == 0 {
                    let n = (shape.len() / c) as f64;
                    let moments: Vec<Moments> = (0..c).map(|_| Moments { count: n as u64, mean: 1.0, m2: n }).collect();
                    for statistics in [Statistics::Batch(&moments), Statistics::Running { mean, var }] {
                        let mut dx = ones.clone();
                        let input =
                            BackwardInput { x: &ones, y: Some(&ones), dy: &ones, gamma: Some(gamma), statistics };
                        let output = Gradients { dx: Some((&mut dx[..]).into()), ..Gradients::default() };
                        bn.backward(input, output, Run::serial(&mut ws)).unwrap();
                        check("dx", &dx, &by_channel);
                    }
                }
            }
        }
        for nan in nans(f64::INFINITY) {
            let n = (shape.len() / c) as f64;
            for of_mean in [true, false] {
                let m = |channel: usize| match (odd(channel), of_mean) {
                    (false, _) => Moments { count: n as u64, mean: 1.0, m2: n },
                    (true, true) => Moments { count: n as u64, mean: nan, m2: n },
                    (true, false) => Moments { count: n as u64, mean: 1.0, m2: nan },
                };
                let (moments, mut y): (Vec<Moments>, _) = ((0..c).map(m).collect(), ones.clone());
                let affine = Affine::new(&params, &params);
                bn.normalize(&ones, None, affine, &moments, &mut y[..], Run::serial(&mut ws)).unwrap();
                check("moments", &y, &|i| odd(of_channel[i]));
                let (mut dx, statistics) = (ones.clone(), Statistics::Batch(&moments));
                let input = BackwardInput { x: &ones, y: Some(&ones), dy: &ones, gamma: Some(&params), statistics };
                let output = Gradients { dx: Some((&mut dx[..]).into()), ..Gradients::default() };
                bn.backward(input, output, Run::serial(&mut ws)).unwrap();
                check("dx by moments", &dx, &|i| odd(of_channel[i]));
            }
        }
        for nan in nans(T::of(f64::INFINITY)) {
            let with: Vec<T> = (0..shape.len()).map(|i| if there(i) { nan } else { T::of(1.5) }).collect();
            let (mut y, affine) = (ones.clone(), Affine::new(&params, &params));
            bn.inference(&with, None, affine, &params, &params, &mut y[..], Run::serial(&mut ws)).unwrap();
            check("x", &y, &there);
            bn.inference(&ones, Some(&with), affine, &params, &params, &mut y[..], Run::serial(&mut ws)).unwrap();
            check("residual", &y, &there);
            let (mut dx, mut dresidual) = (ones.clone(), ones.clone());
            let statistics = Statistics::Running { mean: &params, var: &params };
            let input = BackwardInput { x: &ones, y: Some(&ones), dy: &with, gamma: Some(&params), statistics };
            let output = Gradients {
                dx: Some((&mut dx[..]).into()),
                dresidual: Some((&mut dresidual[..]).into()),
                ..Gradients::default()
            };
            bn.backward(input, output, Run::serial(&mut ws)).unwrap();
            check("dx", &dx, &there);
            check("dresidual", &dresidual, &there);
        }
    }
}

fn nan_shapes<T: Number>() {
    for (n, c, s) in [(6, 40, 17), (2, 3, 100), (70, 5, 1), (3, 24, 2)] {
        for layout in [Layout::Nchw, Layout::Nhwc] {
            for activation in [Activation::Identity, Activation::Relu, Activation::LeakyRelu { slope: 0.1 }] {
                any_nan::<T>(Shape::new(layout, n, c, &[s]).unwrap(), activation);
            }
        }
    }
}

#[test]
fn nan_stays_nan_whatever_its_payload() {
    every_type!(nan_shapes());
}
