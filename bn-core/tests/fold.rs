//! Folding, against layers and batch normalization calculated with 32 digits, in the layouts of weights
//! that PyTorch documents; the bounds that `Fold` documents; every refusal.

mod common;
use bn_core::{Affine, BatchNorm, Error, Fold, Prepared, Shape};
use common::Random;
use common::problem::{Real, bits};
use core::ops::{Add, Mul, Neg, Sub};

/// An unevaluated sum of two f64: twice the digits (Dekker 1971).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Dd(f64, f64);

impl Dd {
    const ZERO: Dd = Dd(0.0, 0.0);
    fn sum(a: f64, b: f64) -> Dd {
        let s = a + b;
        let t = s - a;
        Dd(s, (a - (s - t)) + (b - t))
    }
    fn abs(self) -> Dd {
        if self.0 < 0.0 { -self } else { self }
    }
    /// 1/√v, by a step of Newton's from f64.
    fn inverse_sqrt(self) -> Dd {
        let r = Dd::from(1.0 / self.0.sqrt());
        r + r * (Dd::from(1.0) - self * r * r) * Dd::from(0.5)
    }
}

impl From<f64> for Dd {
    fn from(v: f64) -> Dd {
        Dd(v, 0.0)
    }
}
impl Add for Dd {
    type Output = Dd;
    fn add(self, o: Dd) -> Dd {
        let s = Dd::sum(self.0, o.0);
        let t = Dd::sum(self.1, o.1);
        let s = Dd::sum(s.0, s.1 + t.0);
        Dd::sum(s.0, s.1 + t.1)
    }
}
impl Neg for Dd {
    type Output = Dd;
    fn neg(self) -> Dd {
        Dd(-self.0, -self.1)
    }
}
impl Sub for Dd {
    type Output = Dd;
    fn sub(self, o: Dd) -> Dd {
        self + -o
    }
}
impl Mul for Dd {
    type Output = Dd;
    fn mul(self, o: Dd) -> Dd {
        let p = self.0 * o.0;
        Dd::sum(p, self.0.mul_add(o.0, -p) + (self.0 * o.1 + self.1 * o.0))
    }
}

/// Channels × positions.
type Signal = Vec<Vec<Dd>>;

/// A layer over a signal, as PyTorch documents it: outputs, groups, taps and padding (stride 1).
#[derive(Clone, Copy, Debug)]
struct Layer {
    inputs: usize,
    outputs: usize,
    groups: usize,
    taps: usize,
    padding: usize,
}

impl Layer {
    fn weights(&self) -> usize {
        self.inputs / self.groups * self.outputs * self.taps
    }

    /// `conv1d`: weight outputs × (inputs/groups) × taps. A dense layer has one tap and one position.
    fn convolution(&self, x: &Signal, weight: &[Dd], bias: &[Dd]) -> Signal {
        let (per_in, per_out) = (self.inputs / self.groups, self.outputs / self.groups);
        let length = x[0].len() + 2 * self.padding + 1 - self.taps;
        let at = |o: usize, p: usize| {
            let mut sum = bias[o];
            for i in 0..per_in {
                for t in 0..self.taps {
                    let place = (p + t).checked_sub(self.padding);
                    if let Some(x) = place.and_then(|q| x[o / per_out * per_in + i].get(q)) {
                        sum = sum + weight[(o * per_in + i) * self.taps + t] * *x;
                    }
                }
            }
            sum
        };
        (0..self.outputs).map(|o| (0..length).map(|p| at(o, p)).collect()).collect()
    }

    /// `conv_transpose1d`: weight inputs × (outputs/groups) × taps; each input adds to `taps` outputs.
    fn transposed(&self, x: &Signal, weight: &[Dd], bias: &[Dd]) -> Signal {
        let (per_in, per_out) = (self.inputs / self.groups, self.outputs / self.groups);
        let mut y: Signal = bias.iter().map(|b| vec![*b; x[0].len() + self.taps - 1]).collect();
        for (i, x) in x.iter().enumerate() {
            for j in 0..per_out {
                for (p, x) in x.iter().enumerate() {
                    for t in 0..self.taps {
                        let to = &mut y[i / per_in * per_out + j][p + t];
                        *to = *to + weight[(i * per_out + j) * self.taps + t] * *x;
                    }
                }
            }
        }
        y
    }
}

fn wide<T: Real>(v: &[T]) -> Vec<Dd> {
    v.iter().map(|v| Dd::from(v.wide())).collect()
}
fn sizes(v: &[Dd]) -> Vec<Dd> {
    v.iter().map(|v| v.abs()).collect()
}
fn signal_sizes(v: &Signal) -> Signal {
    v.iter().map(|v| sizes(v)).collect()
}

/// A batch normalization by constants.
struct Norm<T> {
    gamma: Option<Vec<T>>,
    beta: Option<Vec<T>>,
    mean: Vec<T>,
    var: Vec<T>,
    epsilon: f64,
    table: Vec<Prepared<T>>,
    s: Vec<Dd>,
}

impl<T: Real> Norm<T> {
    /// Means from 0 to `far` standard deviations.
    fn new(channels: usize, affine: bool, far: f64, r: &mut Random) -> Self {
        let mut fill = |f: &mut dyn FnMut(&mut Random) -> f64| (0..channels).map(|_| T::of(f(r))).collect::<Vec<T>>();
        let (gamma, beta) = (fill(&mut |r| r.normal()), fill(&mut |r| r.normal()));
        let var = fill(&mut |r| 10f64.powf(4.0 * r.uniform() - 2.0));
        let mut c = 0;
        let mean = fill(&mut |r| {
            c += 1;
            var[c - 1].wide().sqrt() * r.normal() * far
        });
        let (gamma, beta, epsilon) = (affine.then_some(gamma), affine.then_some(beta), 1e-5);
        let mut table = vec![Prepared::default(); channels];
        let bn = BatchNorm::<T>::new(Shape::dense(1, channels).unwrap(), epsilon).unwrap();
        let parameters = Affine { gamma: gamma.as_deref(), beta: beta.as_deref() };
        bn.prepare(parameters, &mean, &var, &mut table).unwrap();
        let mut norm = Norm { gamma, beta, mean, var, epsilon, table, s: vec![] };
        norm.s = (0..channels).map(|c| norm.scale(c)).collect();
        norm
    }
    fn scale(&self, c: usize) -> Dd {
        let v = Dd::sum(self.var[c].wide(), self.epsilon);
        Dd::from(self.gamma.as_ref().map_or(1.0, |g| g[c].wide())) * v.inverse_sqrt()
    }
    fn mean(&self, c: usize) -> Dd {
        self.mean[c].wide().into()
    }
    fn beta(&self, c: usize) -> Dd {
        self.beta.as_ref().map_or(0.0, |b| b[c].wide()).into()
    }
    fn of(&self, x: &Signal) -> Signal {
        let channel =
            |(c, x): (usize, &Vec<Dd>)| x.iter().map(|x| (*x - self.mean(c)) * self.s[c] + self.beta(c)).collect();
        x.iter().enumerate().map(channel).collect()
    }
    /// From running statistics and from the table, each with its k.
    fn folds(&self) -> [(Fold<'_, T>, f64); 2] {
        let affine = Affine { gamma: self.gamma.as_deref(), beta: self.beta.as_deref() };
        let running = Fold::running(affine, &self.mean, &self.var, self.epsilon).unwrap();
        let prepared = Fold::prepared(&self.table).unwrap();
        assert_eq!((running.channels(), prepared.channels()), (self.mean.len(), self.mean.len()));
        if size_of::<T>() == 4 { [(running, 1.001), (prepared, 2.001)] } else { [(running, 8.0), (prepared, 8.0)] }
    }
}

/// The largest error, in units of the bound: 1.0 is the bound.
#[derive(Clone, Copy, Debug, Default)]
struct Worst {
    before: f64,
    transposed: f64,
    behind: f64,
    scale_shift: f64,
}

fn check(worst: &mut f64, got: &Signal, exact: &Signal, bound: &dyn Fn(usize, usize) -> f64) {
    for (o, (got, exact)) in got.iter().zip(exact).enumerate() {
        assert_eq!(got.len(), exact.len());
        for (p, (got, exact)) in got.iter().zip(exact).enumerate() {
            let (error, bound) = ((*got - *exact).abs().0, bound(o, p));
            assert!(error <= bound, "output {o} at {p}: {got:?}, expected {exact:?} ± {bound:e}");
            *worst = worst.max(error / bound);
        }
    }
}

const LAYERS: [Layer; 8] = [
    // Dense.
    Layer { inputs: 1, outputs: 1, groups: 1, taps: 1, padding: 0 },
    Layer { inputs: 64, outputs: 10, groups: 1, taps: 1, padding: 0 },
    Layer { inputs: 7, outputs: 5, groups: 1, taps: 3, padding: 0 },
    Layer { inputs: 8, outputs: 4, groups: 2, taps: 3, padding: 0 },
    Layer { inputs: 6, outputs: 9, groups: 3, taps: 2, padding: 0 },
    // Depthwise, without and with a multiplier.
    Layer { inputs: 5, outputs: 5, groups: 5, taps: 3, padding: 0 },
    Layer { inputs: 4, outputs: 8, groups: 4, taps: 3, padding: 0 },
    Layer { inputs: 300, outputs: 2, groups: 1, taps: 1, padding: 0 },
];

/// All layers before and behind a batch normalization.
fn layers<T: Real>(far: f64, worst: &mut [Worst; 2]) {
    let mut r = Random(far as u64);
    for round in 0..20 {
        for layer in LAYERS {
            let Layer { inputs, outputs, groups, taps, .. } = layer;
            let fill = |n: usize, r: &mut Random| (0..n).map(|_| T::of(r.normal())).collect::<Vec<T>>();
            let (weight, bias) = (fill(layer.weights(), &mut r), fill(outputs, &mut r));
            let zero = vec![Dd::ZERO; outputs];
            let x: Signal = (0..inputs).map(|_| wide(&fill(5, &mut r))).collect();

            // Before, where padding is legal.
            let norm = Norm::<T>::new(outputs, round % 4 != 0, far, &mut r);
            let padded = Layer { padding: round % 2 * (taps - 1), ..layer };
            let plain = norm.of(&padded.convolution(&x, &wide(&weight), &wide(&bias)));
            let sums = padded.convolution(&signal_sizes(&x), &sizes(&wide(&weight)), &zero);
            let transposed = norm.of(&layer.transposed(&x, &wide(&weight), &wide(&bias)));
            let transposed_sums = layer.transposed(&signal_sizes(&x), &sizes(&wide(&weight)), &zero);
            for (which, (fold, k)) in norm.folds().into_iter().enumerate() {
                let bound = |sums: &Signal, o: usize, p: usize| {
                    let constant = ((wide(&bias)[o] - norm.mean(o)) * norm.s[o]).abs() + norm.beta(o).abs();
                    k * T::ROUNDING * (norm.s[o].abs() * sums[o][p] + constant).0
                };
                let (mut w, mut b) = (weight.clone(), bias.clone());
                fold.into_preceding(inputs / groups * taps, &mut w, &mut b).unwrap();
                let folded = padded.convolution(&x, &wide(&w), &wide(&b));
                check(&mut worst[which].before, &folded, &plain, &|o, p| bound(&sums, o, p));

                let (mut w, mut b) = (weight.clone(), bias.clone());
                fold.into_preceding_transposed(inputs, groups, taps, &mut w, &mut b).unwrap();
                let folded = layer.transposed(&x, &wide(&w), &wide(&b));
                check(&mut worst[which].transposed, &folded, &transposed, &|o, p| bound(&transposed_sums, o, p));

                let (mut scale, mut shift) = (vec![T::of(9.0); outputs], vec![T::of(9.0); outputs]);
                fold.scale_shift(&mut scale, &mut shift).unwrap();
                for o in 0..outputs {
                    let x = Dd::from(T::of(norm.mean[o].wide() * (1.0 + 0.1 * r.normal())).wide());
                    let exact = vec![norm.of(&vec![vec![x]; outputs])[o].clone()];
                    let got = vec![vec![Dd::from(scale[o].wide()) * x + Dd::from(shift[o].wide())]];
                    let size = (x * norm.s[o]).abs() + (norm.mean(o) * norm.s[o]).abs() + norm.beta(o).abs();
                    check(&mut worst[which].scale_shift, &got, &exact, &|_, _| k * T::ROUNDING * size.0);
                }
            }

            // Behind.
            let norm = Norm::<T>::new(inputs, round % 4 != 0, far, &mut r);
            let plain = layer.convolution(&norm.of(&x), &wide(&weight), &wide(&bias));
            let scaled = (0..inputs).map(|c| x[c].iter().map(|x| (*x * norm.s[c]).abs()).collect()).collect();
            let sums = layer.convolution(&scaled, &sizes(&wide(&weight)), &zero);
            // Each tap of a channel adds |β| + |mean·s|.
            let offsets = (0..inputs).map(|c| vec![norm.beta(c).abs() + (norm.mean(c) * norm.s[c]).abs(); 5]).collect();
            let constants = layer.convolution(&offsets, &sizes(&wide(&weight)), &sizes(&wide(&bias)));
            for (which, (fold, k)) in norm.folds().into_iter().enumerate() {
                let (mut w, mut b) = (weight.clone(), bias.clone());
                fold.into_following(outputs, groups, taps, &mut w, &mut b).unwrap();
                let folded = layer.convolution(&x, &wide(&w), &wide(&b));
                let bound = |o: usize, p: usize| k * T::ROUNDING * (sums[o][p] + constants[o][p]).0;
                check(&mut worst[which].behind, &folded, &plain, &bound);
            }
        }
    }
}

#[test]
fn bounds() {
    for far in [0.0, 1.0, 1e5] {
        let mut worst = [Worst::default(); 2];
        layers::<f32>(far, &mut worst);
        println!("of the bounds, f32, mean/deviation {far:e}: running {:?}, table {:?}", worst[0], worst[1]);
        let mut worst = [Worst::default(); 2];
        layers::<f64>(far, &mut worst);
        println!("of the bounds, f64, mean/deviation {far:e}: running {:?}, table {:?}", worst[0], worst[1]);
    }
}

/// That a folded large mean costs digits, as the documentation says, whatever folds it: the layer is
/// calculated in f32, x is near the mean, and y is of the size of 1.
#[test]
fn a_large_mean_costs_digits() {
    let (mean, var) = ([1e5_f32], [2.0_f32]);
    let fold = Fold::running(Affine::NONE, &mean, &var, 1e-5).unwrap();
    let (mut scale, mut shift) = ([0.0_f32], [0.0_f32]);
    fold.scale_shift(&mut scale, &mut shift).unwrap();
    let error = |x: f32| {
        let exact = (x as f64 - 1e5) / 2.00001_f64.sqrt();
        ((scale[0] * x + shift[0]) as f64 - exact).abs()
    };
    let worst = (0..100).map(|i| error(1e5 + i as f32 / 32.0)).fold(0.0, f64::max);
    assert!(worst > 1e-3 && worst < 3.0 * 1e5 * 2f64.powi(-24), "{worst}");
}

const GAMMA: [f32; 4] = [2.0, 4.0, -1.0, 8.0];
const BETA: [f32; 4] = [1.0, 0.0, -3.0, 0.5];
const MEAN: [f32; 4] = [0.5, -1.0, 2.0, 0.0];
const VAR: [f32; 4] = [4.0, 1.0, 0.25, 16.0];
/// GAMMA/√VAR.
const S: [f32; 4] = [1.0, 4.0, -2.0, 2.0];

fn example() -> Fold<'static, f32> {
    Fold::running(Affine { gamma: Some(&GAMMA), beta: Some(&BETA) }, &MEAN, &VAR, 0.0).unwrap()
}

#[test]
fn scale_and_shift_by_hand() {
    let (mut scale, mut shift) = ([0.0; 4], [0.0; 4]);
    example().scale_shift(&mut scale, &mut shift).unwrap();
    assert_eq!((scale, shift), (S, [0.5, 4.0, 1.0, 0.5]));
    let table = [0, 1, 2, 3].map(|c| Prepared { mean: MEAN[c], scale: S[c], shift: BETA[c] });
    Fold::prepared(&table).unwrap().scale_shift(&mut scale, &mut shift).unwrap();
    assert_eq!((scale, shift), (S, [0.5, 4.0, 1.0, 0.5]));
    // σ² + ε = 0: y = β, as in inference.
    let (mut scale, mut shift) = ([9.0], [9.0]);
    let fold = Fold::running(Affine { gamma: None, beta: Some(&[7.0_f64]) }, &[3.0], &[0.0], 0.0).unwrap();
    fold.scale_shift(&mut scale, &mut shift).unwrap();
    assert_eq!((scale, shift), ([0.0], [7.0]));
}

/// Which weight belongs to which channel.
#[test]
fn layouts_by_hand() {
    // 4 outputs of 3 weights.
    let (mut w, mut b) = ([1.0; 12], [0.5, 0.0, 1.0, 1.0]);
    example().into_preceding(3, &mut w, &mut b).unwrap();
    assert_eq!(w, [1.0, 1.0, 1.0, 4.0, 4.0, 4.0, -2.0, -2.0, -2.0, 2.0, 2.0, 2.0]);
    assert_eq!(b, [1.0, 4.0, -1.0, 2.5]);
    // 4 inputs, 2 groups, so 2 × 2 outputs, 2 taps.
    let (mut w, mut b) = ([1.0; 16], [0.5, 0.0, 1.0, 1.0]);
    example().into_preceding_transposed(4, 2, 2, &mut w, &mut b).unwrap();
    let [first, second] = [[1.0, 1.0, 4.0, 4.0], [-2.0, -2.0, 2.0, 2.0]];
    assert_eq!(w, [first, first, second, second].concat()[..]);
    assert_eq!(b, [1.0, 4.0, -1.0, 2.5]);
    // Outputs last (Keras): 3 × 3 taps of 2 inputs.
    let (mut w, mut b) = ([1.0; 72], [0.5, 0.0, 1.0, 1.0]);
    example().into_preceding_transposed(18, 1, 1, &mut w, &mut b).unwrap();
    assert!(w.chunks(4).all(|w| w == S));
    // Behind: 2 outputs, 2 groups of 2 channels, 3 taps.
    let (mut w, mut b) = ([1.0; 12], [10.0, 20.0]);
    example().into_following(2, 2, 3, &mut w, &mut b).unwrap();
    assert_eq!(w, [1.0, 1.0, 1.0, 4.0, 4.0, 4.0, -2.0, -2.0, -2.0, 2.0, 2.0, 2.0]);
    assert_eq!(b, [10.0 + 3.0 * 4.5, 20.0 + 3.0 * 1.5]);
    // No taps, no outputs: legal, and nothing to do but the bias.
    let mut b = [0.5, 0.0, 1.0, 1.0];
    example().into_preceding(0, &mut [], &mut b).unwrap();
    assert_eq!(b, [1.0, 4.0, -1.0, 2.5]);
    example().into_preceding_transposed(0, 1, 3, &mut [], &mut b).unwrap();
    example().into_following(0, 1, 3, &mut [], &mut []).unwrap();
    let mut b = [3.0];
    example().into_following(1, 1, 0, &mut [], &mut b).unwrap();
    assert_eq!(b, [3.0]);
}

/// A long row with sums that cancel: the bias has no error but its rounding.
#[test]
fn long_sums_are_compensated() {
    let channels = 100_000;
    let mean: Vec<f64> = (0..channels).map(|i| if i % 2 == 0 { -1e16 } else { 1e16 } - 1.0).collect();
    // (1e16 − 1 and −1e16 − 1 are their own neighbours: exact is what the array holds.)
    let exact: f64 = mean.chunks(2).map(|m| -(m[0] + m[1])).sum();
    let var = vec![1.0; channels];
    let fold = Fold::running(Affine::NONE, &mean, &var, 0.0).unwrap();
    let (mut w, mut b) = (vec![1.0; channels], [0.25]);
    fold.into_following(1, 1, 1, &mut w, &mut b).unwrap();
    assert_eq!(b, [exact + 0.25]);
}

fn subnormals<T: Real>(tiny: f64, normal: f64) {
    let (mean, var) = ([T::of(0.0); 2], [T::of(4.0); 2]);
    let fold = Fold::running(Affine::NONE, &mean, &var, 0.0).unwrap();
    // Halves: below, above and at the border; and what is 0 anyhow.
    let weight = [tiny, -tiny, 2.0 * normal, -2.0 * normal, 0.0, -0.0, 1.5 * normal, normal].map(T::of);
    let bias = [T::of(-tiny), T::of(2.0 * normal)];
    let expected = |flush: bool| {
        let half = |v: f64| if flush && v.abs() / 2.0 < normal { 0.0f64.copysign(v) } else { v / 2.0 };
        (weight.map(|w| T::of(half(w.wide()))), bias.map(|b| T::of(half(b.wide()))))
    };
    for (flush, fold) in [(false, fold), (true, fold.flush_subnormals())] {
        let (mut w, mut b) = (weight, bias);
        fold.into_preceding(4, &mut w, &mut b).unwrap();
        assert_eq!((bits(&w), bits(&b)), (bits(&expected(flush).0), bits(&expected(flush).1)));
        let mut w = weight;
        let mut b = [T::of(tiny); 4];
        fold.into_following(4, 1, 1, &mut w, &mut b).unwrap();
        assert_eq!(bits(&w), bits(&expected(flush).0));
        assert_eq!(bits(&b), bits(&[T::of(if flush { 0.0 } else { tiny }); 4]));
    }
    let prepared = [Prepared { mean: T::of(0.0), scale: T::of(-tiny), shift: T::of(tiny) }];
    for (flush, fold) in [Fold::prepared(&prepared).unwrap(), Fold::prepared(&prepared).unwrap().flush_subnormals()]
        .into_iter()
        .enumerate()
    {
        let (mut scale, mut shift) = ([T::of(9.0)], [T::of(9.0)]);
        fold.scale_shift(&mut scale, &mut shift).unwrap();
        let keep = if flush == 1 { 0.0 } else { tiny };
        assert_eq!((bits(&scale), bits(&shift)), (bits(&[T::of(-keep)]), bits(&[T::of(keep)])));
    }
}

#[test]
fn flushed_subnormals() {
    subnormals::<f32>(f32::MIN_POSITIVE as f64 / 8.0, f32::MIN_POSITIVE as f64);
    subnormals::<f64>(f64::MIN_POSITIVE / 8.0, f64::MIN_POSITIVE);
}

/// Weights, biases, scales and shifts beyond their type, and those that are not finite already.
fn overflow<T: Real>(huge: f64) {
    let (mean, var) = ([T::of(0.0), T::of(huge)], [T::of(1.0), T::of(0.0625)]);
    let fold = Fold::running(Affine::NONE, &mean, &var, 0.0).unwrap();
    let one = T::of(1.0);
    let refused = |what, index, weight: [T; 4], bias: [T; 2]| {
        let (mut w, mut b) = (weight, bias);
        let expected = Err(Error::Unfoldable { what, index });
        assert_eq!(fold.into_preceding(2, &mut w, &mut b), expected);
        assert_eq!((bits(&w), bits(&b)), (bits(&weight), bits(&bias)), "written");
    };
    // The second channel's scale is 4: a weight of huge/2 is too much, and so is (b − huge)·4.
    refused("weight", 3, [T::of(huge), one, one, T::of(huge / 2.0)], [one, T::of(huge)]);
    refused("weight", 0, [T::of(f64::NAN), one, one, one], [one, T::of(huge)]);
    refused("bias", 1, [one; 4], [one, one]);
    refused("bias", 0, [one; 4], [T::of(f64::INFINITY), one]);
    let (mut w, mut b) = ([T::of(huge), one, one, one], [one, T::of(huge)]);
    fold.into_preceding(2, &mut w, &mut b).unwrap();
    assert_eq!((bits(&w), bits(&b)), (bits(&[T::of(huge), one, T::of(4.0), T::of(4.0)]), bits(&[one, T::of(0.0)])));

    let before = ([T::of(huge), one, T::of(huge), one], [one, one]);
    let (mut w, mut b) = before;
    let expected = Err(Error::Unfoldable { what: "bias", index: 0 });
    assert_eq!(fold.into_following(2, 1, 1, &mut w, &mut b), expected);
    assert_eq!((bits(&w), bits(&b)), (bits(&before.0), bits(&before.1)));
    let expected = Err(Error::Unfoldable { what: "bias", index: 1 });
    assert_eq!(fold.into_preceding_transposed(2, 1, 1, &mut [one; 4], &mut b), expected);

    let (mut scale, mut shift) = ([T::of(9.0); 2], [T::of(9.0); 2]);
    let expected = Err(Error::Unfoldable { what: "shift", index: 1 });
    assert_eq!(fold.scale_shift(&mut scale, &mut shift), expected);
    let tiny = [T::of(if size_of::<T>() == 4 { 1e-45 } else { 5e-324 })];
    let gamma = [T::of(huge)];
    let fold = Fold::running(Affine { gamma: Some(&gamma), beta: None }, &mean[..1], &tiny, 0.0).unwrap();
    let expected = Err(Error::Unfoldable { what: "scale", index: 0 });
    assert_eq!(fold.scale_shift(&mut scale[..1], &mut shift[..1]), expected);
    assert_eq!((bits(&scale), bits(&shift)), (bits(&[T::of(9.0); 2]), bits(&[T::of(9.0); 2])));
}

#[test]
fn beyond_the_type() {
    overflow::<f32>(3e38);
    overflow::<f64>(1.5e308);
    assert_eq!(
        Error::Unfoldable { what: "weight", index: 3 }.to_string(),
        "element 3 of the folded weight would not be finite in its type"
    );
}

#[test]
fn makers() {
    let none: [f32; 0] = [];
    assert_eq!(Fold::running(Affine::NONE, &none, &none, 0.0).unwrap_err(), Error::NoChannels);
    assert_eq!(Fold::<f32>::prepared(&[]).unwrap_err(), Error::NoChannels);
    let make = |gamma: usize, beta: usize, var: usize| {
        let v = [1.0_f32; 4];
        Fold::running(Affine::new(&[1.0; 4][..gamma], &[1.0; 4][..beta]), &[1.0; 3], &v[..var], 0.0).map(|_| ())
    };
    assert_eq!(make(3, 3, 3), Ok(()));
    assert_eq!(make(3, 3, 4), Err(Error::Length { what: "var", expected: 3, got: 4 }));
    assert_eq!(make(2, 3, 3), Err(Error::Length { what: "gamma", expected: 3, got: 2 }));
    assert_eq!(make(3, 0, 3), Err(Error::Length { what: "beta", expected: 3, got: 0 }));
    let bad = Fold::running(Affine::NONE, &[1.0; 3], &[1.0, -0.5, f64::NAN], 0.0).unwrap_err();
    assert_eq!(bad, Error::Value { what: "var", channel: 1, got: -0.5 });
    assert_eq!(Fold::running(Affine::NONE, &[1.0; 1], &[1.0], -1.0).unwrap_err(), Error::Epsilon { got: -1.0 });
}

/// Refusals of the three ways to fold, and of scale and shift; nothing is written.
#[test]
fn sizes_and_groups() {
    const KEPT: f32 = 7.5;
    type Call = fn(&mut [f32], &mut [f32]) -> Result<(), Error>;
    let length = |what, expected, got| Error::Length { what, expected, got };
    let cases: [(usize, usize, Call, Error); 21] = [
        (11, 4, |w, b| example().into_preceding(3, w, b), length("weight", 12, 11)),
        (13, 4, |w, b| example().into_preceding(3, w, b), length("weight", 12, 13)),
        (12, 3, |w, b| example().into_preceding(3, w, b), length("bias", 4, 3)),
        (12, 5, |w, b| example().into_preceding(3, w, b), length("bias", 4, 5)),
        (12, 4, |w, b| example().into_preceding(usize::MAX / 2, w, b), Error::ShapeOverflow),
        (16, 4, |w, b| example().into_preceding_transposed(4, 2, 3, w, b), length("weight", 24, 16)),
        (16, 2, |w, b| example().into_preceding_transposed(4, 2, 2, w, b), length("bias", 4, 2)),
        (16, 4, |w, b| example().into_preceding_transposed(usize::MAX, 1, 2, w, b), Error::ShapeOverflow),
        (16, 4, |w, b| example().into_preceding_transposed(4, 1, usize::MAX, w, b), Error::ShapeOverflow),
        (
            0,
            4,
            |w, b| example().into_preceding_transposed(0, 0, 2, w, b),
            Error::Groups { what: "inputs", of: 0, groups: 0 },
        ),
        (
            16,
            4,
            |w, b| example().into_preceding_transposed(4, 0, 2, w, b),
            Error::Groups { what: "inputs", of: 4, groups: 0 },
        ),
        (
            16,
            4,
            |w, b| example().into_preceding_transposed(4, 3, 2, w, b),
            Error::Groups { what: "inputs", of: 4, groups: 3 },
        ),
        (
            16,
            4,
            |w, b| example().into_preceding_transposed(6, 3, 2, w, b),
            Error::Groups { what: "channels", of: 4, groups: 3 },
        ),
        (12, 3, |w, b| example().into_following(3, 1, 1, &mut w[1..], b), length("weight", 12, 11)),
        (12, 4, |w, b| example().into_following(3, 1, 1, w, b), length("bias", 3, 4)),
        (12, 3, |w, b| example().into_following(3, 1, usize::MAX, w, b), Error::ShapeOverflow),
        (12, 3, |w, b| example().into_following(3, 0, 1, w, b), Error::Groups { what: "outputs", of: 3, groups: 0 }),
        (12, 3, |w, b| example().into_following(3, 2, 1, w, b), Error::Groups { what: "outputs", of: 3, groups: 2 }),
        (12, 3, |w, b| example().into_following(3, 3, 1, w, b), Error::Groups { what: "channels", of: 4, groups: 3 }),
        (3, 4, |w, b| example().scale_shift(w, b), length("scale", 4, 3)),
        (4, 5, |w, b| example().scale_shift(w, b), length("shift", 4, 5)),
    ];
    for (i, (weights, biases, call, expected)) in cases.into_iter().enumerate() {
        let (mut w, mut b) = (vec![KEPT; weights], vec![KEPT; biases]);
        assert_eq!(call(&mut w, &mut b), Err(expected), "case {i}");
        assert!(w.iter().chain(&b).all(|&v| v == KEPT), "case {i} has written");
    }
    assert_eq!(
        Error::Groups { what: "inputs", of: 4, groups: 3 }.to_string(),
        "3 groups of 4 inputs, expected a number of groups that divides it"
    );
}
