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
    // Channels that are whole vectors, and whose rows are wide: vectors of constants side by side.
    let whole = [(7, 64, 5), (5, 160, 2), (9, 56, 1), (6, 12, 4)];
    let others = [(4, 28, 33), (3, 14, 16), (40, 14, 3), (500, 3, 1), (9, 70, 5), (2, 5, 600)];
    for (n, c, s) in others.into_iter().chain(whole) {
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

/// dx, of an x and a y that are the same everywhere.
fn dx_of<T: Number>(
    bn: &BatchNorm<T>,
    x: &[T],
    dy: &[T],
    gamma: &[T::Param],
    statistics: Statistics<'_, T::Param>,
    dresidual: Option<&mut [T]>,
) -> Vec<T> {
    let (mut dx, mut ws) = (x.to_vec(), vec![0; bn.workspace_best(Op::Backward, 1)]);
    let input = BackwardInput { x, y: Some(x), dy, gamma: Some(gamma), statistics };
    let dresidual = dresidual.map(Into::into);
    let output = Gradients { dx: Some((&mut dx[..]).into()), dresidual, ..Gradients::default() };
    bn.backward(input, output, Run::serial(&mut ws)).unwrap();
    dx
}

/// Whatever its payload, NaN makes nothing else of a result: not where it is rounded to a shorter type either.
fn any_nan<T: Number>(shape: Shape, activation: Activation) {
    let (c, one) = (shape.channels(), T::Param::from(1.0));
    let (ones, params, count) = (vec![T::of(1.5); shape.len()], vec![one; c], (shape.len() / c) as u64);
    let moments = vec![Moments { count, mean: 1.0, m2: count as f64 }; c];
    let plain = Affine::new(&params, &params);
    // One in a group of eight, in another place of each.
    let odd: Vec<usize> = (2..c).step_by(9).collect();
    let (mut of_odd, there) = (vec![false; shape.len()], |i: usize| i % 5 == 2);
    for &channel in &odd {
        places(shape, channel).for_each(|i| of_odd[i] = true);
    }
    let of_odd = |i: usize| of_odd[i];
    for isa in Isa::available() {
        let bn = BatchNorm::<T>::new(shape, 1e-5).unwrap().with_activation(activation).unwrap().with_isa(isa);
        let (mut y, ops) = (ones.clone(), [Op::Inference, Op::ForwardTraining]);
        let mut ws = vec![0; ops.map(|op| bn.workspace_best(op, 1)).into_iter().max().unwrap()];
        let check = |what: &str, got: &[T], expected: &dyn Fn(usize) -> bool| {
            let wrong = (0..shape.len()).find(|&i| got[i].into().is_nan() != expected(i));
            let got = wrong.map(|i| got[i]);
            assert_eq!(wrong, None, "{what}: {got:?}, {bn:?}, {}", core::any::type_name::<T>());
        };
        for nan in nans(T::Param::from(f32::INFINITY)) {
            let mut with = params.clone();
            odd.iter().for_each(|&channel| with[channel] = nan);
            for (k, what) in ["gamma", "beta", "mean", "var"].into_iter().enumerate() {
                let [gamma, beta, mean, var] = core::array::from_fn(|i| if i == k { &with } else { &params });
                let affine = Affine::new(gamma, beta);
                for residual in [None, Some(&ones[..])] {
                    bn.inference(&ones, residual, affine, mean, var, &mut y[..], Run::serial(&mut ws)).unwrap();
                    check(what, &y, &of_odd);
                }
                if what != "var" {
                    let of = |i: usize| Prepared { mean: mean[i], scale: gamma[i], shift: beta[i] };
                    let prepared: Vec<_> = (0..c).map(of).collect();
                    bn.apply(&ones, None, &prepared, &mut y[..], Run::serial(&mut ws)).unwrap();
                    check(what, &y, &of_odd);
                }
            }
            for statistics in [Statistics::Batch(&moments), Statistics::Running { mean: &params, var: &params }] {
                check("dx", &dx_of(&bn, &ones, &ones, &with, statistics, None), &of_odd);
            }
        }
        for nan in nans(f64::INFINITY) {
            for spoil in [|m: &mut Moments, nan| m.mean = nan, |m: &mut Moments, nan| m.m2 = nan] {
                let mut moments = moments.clone();
                odd.iter().for_each(|&channel| spoil(&mut moments[channel], nan));
                bn.normalize(&ones, None, plain, &moments, &mut y[..], Run::serial(&mut ws)).unwrap();
                check("moments", &y, &of_odd);
                let dx = dx_of(&bn, &ones, &ones, &params, Statistics::Batch(&moments), None);
                check("dx by moments", &dx, &of_odd);
            }
        }
        for nan in nans(T::of(f64::INFINITY)) {
            let with: Vec<T> = (0..shape.len()).map(|i| if there(i) { nan } else { T::of(1.5) }).collect();
            for (what, x, residual) in [("x", &with, None), ("residual", &ones, Some(&with[..]))] {
                bn.inference(x, residual, plain, &params, &params, &mut y[..], Run::serial(&mut ws)).unwrap();
                check(what, &y, &there);
            }
            let (statistics, mut dresidual) = (Statistics::Running { mean: &params, var: &params }, ones.clone());
            let dx = dx_of(&bn, &ones, &with, &params, statistics, Some(&mut dresidual));
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
