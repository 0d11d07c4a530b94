//! Folding: each weight and bias against exact arithmetic, within what `Fold` documents; a refusal changes nothing
//! and has its reason.
//!
//! What is documented is the error of a layer for any input. Where one input is far larger than the others, and
//! where all are 0, that is the error of one weight, and of the bias; and if those keep to it, so does the layer.
#![cfg_attr(feature = "libfuzzer", no_main)]

use arbitrary::Arbitrary;
use bn_core::{Affine, BatchNorm, Error, Fold, Prepared, Shape};
use bn_fuzz::{finite, fuzz_target};
use bn_oracle::problem::{Number, Scalar};
use bn_oracle::{Channel, Real, Sum};

#[derive(Arbitrary, Debug)]
struct Input {
    double: bool,
    table: bool,
    flush: bool,
    way: Way,
    groups: u8,
    /// Channels, and inputs or outputs, of a group.
    channels: u8,
    others: u8,
    taps: u8,
    /// By how much the lengths of weight and bias are off: mostly not at all.
    off: [i8; 2],
    gamma: bool,
    beta: bool,
    epsilon: Option<u32>,
    /// f64 has a wider range than the bits of f32 below.
    stretch: i8,
    numbers: [Vec<u32>; 6],
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Way {
    ScaleShift,
    Preceding,
    Transposed,
    Following,
}

fuzz_target!(|input: Input| if input.double { go::<f64>(&input) } else { go::<f32>(&input) });

impl Input {
    /// Numbers of some kind: what there are, and then their neighbours.
    fn numbers<P: Scalar>(&self, kind: usize, n: usize) -> Vec<P> {
        let of = &self.numbers[kind];
        let number = |i: usize| {
            let bits = of.get(i % of.len().max(1)).copied().unwrap_or(0x3f80_0000);
            let v = finite(bits.wrapping_add((i / of.len().max(1)) as u32));
            if self.double { v * (1.0 + i as f64 * 1e-9) * 2f64.powi(self.stretch.into()) } else { v }
        };
        (0..n).map(|i| P::of(number(i))).collect()
    }
}

/// What the folded numbers must be, and the scale of their errors.
struct Exact {
    weight: Vec<(Real, f64)>,
    bias: Vec<(Real, f64)>,
}

fn go<T: Number>(input: &Input) {
    let (groups, per_group) = (input.groups as usize % 3 + 1, input.channels as usize % 5 + 1);
    let (c, taps) = (groups * per_group, input.taps as usize % 3 + 1);
    let others = groups * (input.others as usize % 4 + 1);
    let params = |kind: usize, n: usize| input.numbers::<T::Param>(kind, n);
    let (gamma, beta) = (input.gamma.then(|| params(0, c)), input.beta.then(|| params(1, c)));
    let (mean, mut var) = (params(2, c), params(3, c));
    var.iter_mut().for_each(|v| *v = <T::Param as Scalar>::of(v.wide().abs()));
    let epsilon = input.epsilon.map_or(1e-5, |bits| finite(bits).abs());
    let affine = Affine { gamma: gamma.as_deref(), beta: beta.as_deref() };

    let mut prepared = vec![Prepared::default(); c];
    let fold = if input.table {
        let bn = BatchNorm::<T>::new(Shape::dense(1, c).expect("small"), epsilon).expect("a finite epsilon");
        match bn.prepare(affine, &mean, &var, &mut prepared) {
            Ok(()) => Fold::prepared(&prepared).expect("channels"),
            Err(Error::Unpreparable { .. }) => return,
            Err(e) => panic!("{e}"),
        }
    } else {
        Fold::running(affine, &mean, &var, epsilon).expect("legal")
    };
    let fold = if input.flush { fold.flush_subnormals() } else { fold };

    // Which channel a weight and a bias belong to, as the documentation lays them out.
    let (weights, biases): (Vec<usize>, usize) = match input.way {
        Way::ScaleShift => ((0..c).collect(), c),
        Way::Preceding => ((0..c * taps).map(|i| i / taps).collect(), c),
        Way::Transposed => {
            let of = |i: usize| i / (per_group * taps) / (others / groups) * per_group + i / taps % per_group;
            ((0..others * per_group * taps).map(of).collect(), c)
        }
        Way::Following => {
            let of = |i: usize| i / (per_group * taps) / (others / groups) * per_group + i / taps % per_group;
            ((0..others * per_group * taps).map(of).collect(), others)
        }
    };
    let mut weight = params(4, weights.len());
    let mut bias = params(5, biases);
    if input.way == Way::ScaleShift {
        // A layer with one weight, which is 1, and no bias.
        weight.fill(<T::Param as Scalar>::of(1.0));
        bias.fill(<T::Param as Scalar>::of(0.0));
    }

    // γ·(x − mean)/√(var + ε) + β of a channel; and without mean and β.
    let entry = |v: &Option<Vec<T::Param>>, at: usize, absent: f64| v.as_ref().map_or(absent, |v| v[at].wide());
    let of = |at: usize, x: f64, whole: bool| {
        let mean = if whole { mean[at].wide() } else { 0.0 };
        let beta = if whole { entry(&beta, at, 0.0) } else { 0.0 };
        Channel::given(mean, var[at].wide(), epsilon).y(x, entry(&gamma, at, 1.0), beta, 0.0)
    };
    // |(x − mean)·s| + |β|.
    let size = |at: usize, x: f64| {
        let s = of(at, 1.0, false).hi.abs();
        (x - mean[at].wide()).abs() * s + entry(&beta, at, 0.0).abs()
    };
    let scaled = |(&at, w): (&usize, &T::Param)| {
        let exact = of(at, w.wide(), false);
        (exact, exact.hi.abs())
    };
    let exact = Exact {
        weight: weights.iter().zip(&weight).map(scaled).collect(),
        bias: match input.way {
            Way::Following => {
                let row = weights.len() / biases;
                let behind = |o: usize| {
                    let (mut sum, mut scale) = (Sum::default(), bias[o].wide().abs());
                    sum.add(bias[o].wide());
                    for i in o * row..(o + 1) * row {
                        let (w, offset) = (weight[i].wide(), of(weights[i], 0.0, true));
                        sum.add_product(w, offset.hi);
                        sum.add_product(w, offset.lo);
                        scale += w.abs() * size(weights[i], 0.0);
                    }
                    (sum.real(), scale)
                };
                (0..biases).map(behind).collect()
            }
            _ => (0..c).map(|at| (of(at, bias[at].wide(), true), size(at, bias[at].wide()))).collect(),
        },
    };

    let off = |v: &mut Vec<T::Param>, by: i8| {
        let by = if by.unsigned_abs() > 120 { by / 120 } else { 0 };
        v.resize(v.len().saturating_add_signed(by.into()), <T::Param as Scalar>::of(1.0));
        by != 0
    };
    let wrong = [off(&mut weight, input.off[0]), off(&mut bias, input.off[1])].contains(&true);
    let (mut w, mut b) = (weight.clone(), bias.clone());
    let result = match input.way {
        Way::ScaleShift => fold.scale_shift(&mut w, &mut b),
        Way::Preceding => fold.into_preceding(taps, &mut w, &mut b),
        Way::Transposed => fold.into_preceding_transposed(others, groups, taps, &mut w, &mut b),
        Way::Following => fold.into_following(others, groups, taps, &mut w, &mut b),
    };

    let f = &T::FORMAT;
    let k = match (input.double, input.table) {
        (true, _) => 8.0,
        (false, false) => 1.001,
        (false, true) => 2.001,
    };
    let normal = if input.double { f64::MIN_POSITIVE } else { f32::MIN_POSITIVE.into() };
    let bound = |scale: f64| k * f.unit * scale + if input.flush { normal } else { f.least };
    match result {
        Ok(()) => {
            assert!(!wrong, "wrong lengths were taken");
            for (what, got, exact) in [("weight", &w, &exact.weight), ("bias", &b, &exact.bias)] {
                for (i, (got, (exact, scale))) in got.iter().zip(exact).enumerate() {
                    let (error, bound) = (exact.distance(got.wide()), bound(*scale));
                    assert!(error <= bound, "{what} {i} is {got:?}, exactly {exact:?} ± {bound:e}");
                    let subnormal = got.wide() != 0.0 && got.wide().abs() < normal;
                    assert!(!(input.flush && subnormal), "{what} {i} is subnormal: {got:?}");
                }
            }
        }
        Err(e) => {
            let same = |a: &[T::Param], b: &[T::Param]| a.iter().zip(b).all(|(a, b)| a.bits() == b.bits());
            assert!(same(&w, &weight) && same(&b, &bias), "an error, and something written");
            match e {
                Error::Unfoldable { what, index } => {
                    let of = if matches!(what, "weight" | "scale") { &exact.weight } else { &exact.bias };
                    let (exact, scale) = of[index];
                    assert!(exact.hi.abs() + bound(scale) >= f.max, "{what} {index} is refused: {exact:?}");
                }
                Error::Length { .. } => assert!(wrong, "{e}"),
                _ => panic!("{e}"),
            }
        }
    }
}
