//! Wrong arguments are refused, with the error that says so, and nothing has been written then.
#![cfg_attr(feature = "libfuzzer", no_main)]

use arbitrary::Arbitrary;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, GradSums, Gradients, Layout, Moments, Momentum, Op, Prepared,
    Run, RunningStats, Shape, Statistics, Variance,
};
use bn_fuzz::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    last: bool,
    dims: [u16; 3],
    /// For shapes that must not be, and for large ones.
    wild: [usize; 4],
    epsilon: f64,
    activation: (u8, f64, f64),
    momentum: f64,
    call: u8,
    with: u16,
    /// By how much an operand's length is off: mostly not at all.
    off: [i8; 12],
    workspace: i16,
    one_value: bool,
}

const MARK: f32 = 1234.5;

/// A slice's length, changed.
fn len(n: usize, off: i8) -> usize {
    if (-8..=8).contains(&off) { n } else { n.saturating_add_signed(off as isize / 8) }
}

fuzz_target!(|input: Input| {
    // Shapes: legal exactly if a channel exists and 8 bytes an element fit memory, zeros aside.
    // Of any magnitude, or hardly one would be legal.
    let [n, c, h, w] = input.wild.map(|d| d >> (d % usize::BITS as usize));
    let layout = if input.last { Layout::Nhwc } else { Layout::Nchw };
    let product = [n, c, h, w].iter().try_fold(8usize, |p, &d| p.checked_mul(d.max(1)));
    let legal = product.is_some_and(|p| p <= isize::MAX as usize);
    match Shape::new(layout, n, c, &[h, w]) {
        Ok(s) => {
            assert!(c > 0 && legal);
            assert_eq!(s.len() as u128, n as u128 * c as u128 * h as u128 * w as u128);
        }
        Err(Error::NoChannels) => assert!(c == 0),
        Err(Error::ShapeOverflow) => assert!(c > 0 && !legal),
        Err(e) => panic!("{e}"),
    }
    let [n, c, s] = [input.dims[0] as usize % 9, input.dims[1] as usize % 40 + 1, input.dims[2] as usize % 40];
    let shape = Shape::new(layout, n, c, &[s]).expect("a small shape");
    let Ok(bn) = BatchNorm::<f32>::new(shape, input.epsilon) else {
        assert!(!(input.epsilon >= 0.0 && input.epsilon.is_finite()));
        return;
    };
    assert!(input.epsilon >= 0.0 && input.epsilon.is_finite());
    let (kind, a, b) = input.activation;
    let activation = match kind % 4 {
        0 => Activation::Identity,
        1 => Activation::Relu,
        2 => Activation::LeakyRelu { slope: a },
        _ => Activation::Clamp { lo: a, hi: b },
    };
    let sensible = match activation {
        Activation::LeakyRelu { slope } => slope >= 0.0 && (slope as f32).is_finite(),
        Activation::Clamp { lo, hi } => lo <= hi,
        _ => true,
    };
    let Ok(mut bn) = bn.with_activation(activation) else {
        assert!(!sensible);
        return;
    };
    assert!(sensible);
    if input.one_value {
        bn = bn.allow_one_value();
    }
    assert_eq!(
        RunningStats::new(Momentum::WeighNew(input.momentum), Variance::Biased).is_ok(),
        (0.0..=1.0).contains(&input.momentum)
    );
    call(&input, bn);
});

fn call(input: &Input, bn: BatchNorm<f32>) {
    let (all, c) = (bn.shape().len(), bn.shape().channels());
    let off = |i: usize, n: usize| len(n, input.off[i]);
    let with = |i: u32| input.with >> i & 1 == 1;
    let x: Vec<f32> = (0..off(0, all)).map(|i| (i % 7) as f32).collect();
    let second: Vec<f32> = (0..off(1, all)).map(|i| (i % 5) as f32).collect();
    let y = vec![1.0f32; off(2, all)];
    let gamma = vec![2.0f32; off(3, c)];
    let beta = vec![1.0f32; off(4, c)];
    let mean = vec![1.0f32; off(5, c)];
    let var = vec![1.0f32; off(6, c)];
    let count = bn.shape().values_per_channel();
    let given = vec![Moments { count, mean: 1.0, m2: count as f64 }; off(7, c)];
    let (mut out, mut out2) = (vec![MARK; off(8, all)], vec![MARK; off(9, all)]);
    let (mut per, mut per2) = (vec![MARK; off(10, c)], vec![MARK; off(11, c)]);
    let mark = Moments { count: 77, mean: 77.0, m2: 77.0 };
    let mut moments = vec![mark; off(7, c)];
    let mut sums = vec![GradSums { dbeta: 77.0, dot: 77.0 }; off(10, c)];
    let mut prepared = vec![Prepared { mean: MARK, scale: MARK, shift: MARK }; off(10, c)];
    let op = match input.call % 9 {
        0..=2 => Op::ForwardTraining,
        3..=5 => Op::Inference,
        _ => Op::Backward,
    };
    let least = bn.workspace_min(op);
    let length = if input.workspace >= 0 {
        least + input.workspace as usize
    } else {
        least.saturating_add_signed(input.workspace as isize / 16)
    };
    const WORD: u64 = 0xfff4_dead_fff4_beef;
    let mut words = vec![WORD; length];
    let affine = Affine { gamma: with(0).then_some(&gamma[..]), beta: with(1).then_some(&beta[..]) };
    let residual = with(2).then_some(&second[..]);
    let statistics = match input.with >> 8 & 3 {
        0 | 1 => Statistics::Batch(&given),
        2 => Statistics::Rounded { mean: &mean, var: &var },
        _ => Statistics::Running { mean: &mean, var: &var },
    };
    let what = BackwardInput {
        x: &x,
        y: with(3).then_some(&y[..]),
        dy: &second,
        gamma: with(0).then_some(&gamma[..]),
        statistics,
    };

    // What a reader of the documentation expects: every length that matters.
    let affine_good = (!with(0) || gamma.len() == c) && (!with(1) || beta.len() == c);
    let space = length >= least;
    let enough = count >= if input.one_value { 1 } else { 2 };
    let residual_good = !with(2) || second.len() == all;
    let masked = bn.activation() != Activation::Identity;
    let back_good = x.len() == all
        && (if with(3) { y.len() == all } else { !masked })
        && (!with(0) || gamma.len() == c)
        && match statistics {
            Statistics::Batch(_) => given.len() == c,
            _ => mean.len() == c && var.len() == c,
        }
        && space;
    let run = Run::serial(&mut words);
    let (result, good) = match input.call % 9 {
        0 => (
            bn.forward_training(&x, residual, affine, &mut out[..], &mut moments, run),
            x.len() == all && out.len() == all && residual_good && affine_good && moments.len() == c && space && enough,
        ),
        1 => (
            bn.forward_training_in_place(&mut out, residual, affine, &mut moments, run),
            out.len() == all && residual_good && affine_good && moments.len() == c && space && enough,
        ),
        2 => (
            bn.normalize(&x, residual, affine, &given, &mut out[..], run),
            x.len() == all && out.len() == all && residual_good && affine_good && given.len() == c && space && enough,
        ),
        3 => (
            bn.inference(&x, residual, affine, &mean, &var, &mut out[..], run),
            x.len() == all
                && out.len() == all
                && residual_good
                && affine_good
                && mean.len() == c
                && var.len() == c
                && space,
        ),
        4 => (
            bn.inference_in_place(&mut out, residual, affine, &mean, &var, run),
            out.len() == all && residual_good && affine_good && mean.len() == c && var.len() == c && space,
        ),
        5 => {
            let result = bn.prepare(affine, &mean, &var, &mut prepared);
            // Constants out of range are none of this target's business.
            if matches!(result, Err(Error::Unpreparable { .. })) {
                return;
            }
            (result, affine_good && mean.len() == c && var.len() == c && prepared.len() == c)
        }
        6 => {
            let gradients = Gradients {
                dx: with(4).then_some((&mut out[..]).into()),
                dresidual: with(5).then_some((&mut out2[..]).into()),
                dgamma: with(6).then_some(&mut per[..]),
                dbeta: with(7).then_some(&mut per2[..]),
            };
            let result = bn.backward(what, gradients, run);
            let outputs = (!with(4) || out.len() == all)
                && (!with(5) || out2.len() == all)
                && (!with(6) || per.len() == c)
                && (!with(7) || per2.len() == c);
            (result, back_good && second.len() == all && outputs)
        }
        7 => (bn.backward_sums(what, &mut sums, run), back_good && second.len() == all && sums.len() == c),
        _ => {
            // dy is in the output; the input's must be empty.
            let what = BackwardInput { dy: if with(4) { &second } else { &[] }, ..what };
            let result = bn.backward_in_place(&mut out, what, Gradients::default(), run);
            (result, back_good && out.len() == all && what.dy.is_empty())
        }
    };
    assert_eq!(result.is_ok(), good, "{result:?}");
    if let Err(e) = result {
        assert!(!e.to_string().is_empty());
        if let Error::Length { expected, got, .. } = e {
            assert_ne!(expected, got);
        }
        assert!(out.iter().chain(&out2).chain(&per).chain(&per2).all(|&v| v == MARK), "{e}, and something written");
        assert!(moments.iter().all(|m| *m == mark), "{e}, and moments written");
        assert!(sums.iter().all(|s| s.dot == 77.0), "{e}, and sums written");
        assert!(prepared.iter().all(|p| p.mean == MARK), "{e}, and constants written");
        assert!(words.iter().all(|&w| w == WORD), "{e}, and workspace written");
    }
}
