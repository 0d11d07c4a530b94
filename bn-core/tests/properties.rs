//! What must hold for any shape and any data: invariances of the operation, equality of its ways of
//! being called, and agreement with the reference, on every ISA.
//!
//! "To rounding" is the contract: two results that are each within 2e-6 of max(1, max |y|) (or, for
//! dx, of |s|·max |dy − mean dy|) of the same exact ones lie within twice that of each other.

mod common;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, GradSums, Gradients, Isa, Layout, Moments, Op, Prepared, Run, Shape,
    Statistics,
};
use common::problem::{
    Backward, Forward, Problem, Real, Worst, bits, compare, mean_rounding, moment_bits, random, with_workspace,
};
use common::{Random, mean_var, places, sum};
use core::mem::MaybeUninit;
use proptest::prelude::*;

const ACTIVATIONS: [Activation; 4] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { slope: 0.125 },
    Activation::Clamp { lo: -0.5, hi: 1.5 },
];

/// Shapes of every geometry: mostly small; planes of several pieces; many rows.
fn shapes() -> impl Strategy<Value = Shape> {
    let layout = prop_oneof![Just(Layout::Nchw), Just(Layout::Nhwc)];
    let sizes = prop_oneof![
        6 => (1usize..=24, 1usize..=40, 1usize..=70),
        1 => (1usize..=5, 1usize..=5, 600usize..=2600),
        1 => (100usize..=1500, 1usize..=20, 1usize..=3),
    ];
    (layout, sizes).prop_map(|(layout, (n, c, s))| Shape::new(layout, n, c, &[s]).unwrap())
}

/// The above, and rows of many channels, where the smallest workspaces hold a part of them.
fn wide_shapes() -> impl Strategy<Value = Shape> {
    let layout = prop_oneof![Just(Layout::Nchw), Just(Layout::Nhwc)];
    let wide = (layout, 1usize..=12, 60usize..=300, 1usize..=20);
    prop_oneof![2 => shapes(), 1 => wide.prop_map(|(l, n, c, s)| Shape::new(l, n, c, &[s]).unwrap())]
}

/// Data without limits: see [`random`].
fn problems<T: Real>(shapes: impl Strategy<Value = Shape>) -> impl Strategy<Value = Problem<T>> {
    (shapes, 0..ACTIVATIONS.len(), any::<bool>(), any::<u64>())
        .prop_map(|(shape, a, extras, seed)| random(shape, ACTIVATIONS[a], extras, seed))
}

fn isas() -> impl Strategy<Value = Isa> {
    let all: Vec<Isa> = Isa::available().collect();
    (0..all.len()).prop_map(move |i| all[i])
}

/// As many cases as take a few seconds; PROPTEST_CASES may ask for more.
fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases, ..default } }
}

/// The same data in the other layout.
fn transpose<T: Real>(p: &Problem<T>) -> Problem<T> {
    let other = if p.shape.layout() == Layout::Nchw { Layout::Nhwc } else { Layout::Nchw };
    let shape = Shape::new(other, p.shape.batch(), p.shape.channels(), &[p.shape.spatial()]).unwrap();
    let turn = |from: &Vec<T>| {
        let mut to = vec![T::default(); from.len()];
        for c in 0..shape.channels() {
            for (i, j) in places(p.shape, c).zip(places(shape, c)) {
                to[j] = from[i];
            }
        }
        to
    };
    Problem { shape, x: turn(&p.x), dy: turn(&p.dy), residual: p.residual.as_ref().map(turn), ..p.clone() }
}

/// x on a grid of 1/64, of up to 13 bits, so that shifts and powers of two leave it exact in f32.
fn on_grid(shape: Shape, gamma: Vec<f32>, seed: u64) -> Problem<f32> {
    let mut r = Random(seed);
    let mut grid = || (r.below(1 << 13) as f32 - 4096.0) / 64.0;
    let x = (0..shape.len()).map(|_| grid()).collect();
    let dy = (0..shape.len()).map(|_| grid()).collect();
    let gamma = Some(gamma);
    Problem { seed: 0, shape, epsilon: 0.0, activation: Activation::Identity, x, dy, residual: None, gamma, beta: None }
}

fn gammas(channels: usize) -> Vec<f32> {
    (0..channels).map(|c| 0.25 + (c as f32 * 0.7).sin()).collect()
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn matches_the_reference_f32(p in problems::<f32>(wide_shapes()), isa in isas()) {
        compare(&p, isa, &mut Worst::default());
    }

    #[test]
    fn matches_the_reference_f64(p in problems::<f64>(wide_shapes()), isa in isas()) {
        compare(&p, isa, &mut Worst::default());
    }

    /// All ISAs, one against the other.
    #[test]
    fn isas_give_the_same_bits(p in problems::<f32>(wide_shapes())) {
        let all = |isa| {
            let f = p.forward(isa);
            let b = p.backward(isa, &f.y, Statistics::Batch(&f.moments));
            (f.bits(), b.bits())
        };
        let portable = all(Isa::PORTABLE);
        for isa in Isa::available() {
            prop_assert!(all(isa) == portable, "{isa:?} gives other bits");
        }
    }

    /// Multiplying x by a power of two (and ε by its square) changes no bit of y, as every operation on
    /// the way is scaled exactly; negating x negates x̂, as rounding to nearest is symmetric.
    #[test]
    fn scale_and_sign(shape in shapes(), power in -30i32..=30, seed: u64, epsilon in prop_oneof![Just(0.0), Just(0.5)], isa in isas()) {
        let factor = 2f32.powi(power);
        let p = Problem { epsilon, ..on_grid(shape, gammas(shape.channels()), seed) };
        let scaled = Problem {
            x: p.x.iter().map(|x| x * factor).collect(),
            epsilon: epsilon * (factor as f64).powi(2),
            ..p.clone()
        };
        let negated = Problem { x: p.x.iter().map(|x| -x).collect(), ..p.clone() };
        let (f, s, n) = (p.forward(isa), scaled.forward(isa), negated.forward(isa));
        for i in 0..shape.len() {
            prop_assert!(f.y[i] == s.y[i], "{shape:?} {i}: {} is {} by scaling", f.y[i], s.y[i]);
            prop_assert!(f.y[i] == -n.y[i], "{shape:?} {i}: {} is {} by negation", f.y[i], n.y[i]);
        }
        for (c, m) in f.moments.iter().enumerate() {
            let factor = factor as f64;
            prop_assert_eq!((m.mean * factor, m.m2 * factor * factor), (s.moments[c].mean, s.moments[c].m2));
            prop_assert_eq!((-m.mean, m.m2), (n.moments[c].mean, n.moments[c].m2));
        }
        // dx is divided by the factor; as the derivative of an odd function it is even.
        let dx = |p: &Problem<f32>, f: &Forward<f32>| p.backward(isa, &f.y, Statistics::Batch(&f.moments)).dx;
        let (a, b, c) = (dx(&p, &f), dx(&scaled, &s), dx(&negated, &n));
        for i in 0..shape.len() {
            prop_assert!(a[i] == b[i] * factor, "{shape:?} {i}: dx {} is {} by scaling", a[i], b[i]);
            prop_assert!(a[i] == c[i], "{shape:?} {i}: dx {} is {} by negation", a[i], c[i]);
        }
    }

    /// y does not know where x is.
    #[test]
    fn shift(shape in shapes(), by in -100_000i32..=100_000, seed: u64, isa in isas()) {
        let p = on_grid(shape, gammas(shape.channels()), seed);
        // At most 2¹⁷·2⁶ steps of 1/64: 24 bits.
        let by = by as f32;
        let shifted = Problem { x: p.x.iter().map(|x| x + by).collect(), ..p.clone() };
        for (x, s) in p.x.iter().zip(&shifted.x) {
            prop_assert_eq!(s - by, *x, "the shift must be exact");
        }
        let (f, s) = (p.forward(isa), shifted.forward(isa));
        let b = p.backward(isa, &f.y, Statistics::Batch(&f.moments));
        let d = shifted.backward(isa, &s.y, Statistics::Batch(&s.moments));
        let exact = p.exact_forward();
        let spread = p.exact_backward(&exact.channels, &f.y).spread;
        let mut worst = Worst::default();
        for c in 0..shape.channels() {
            for i in places(shape, c) {
                worst.check("y", &i, s.y[i].wide(), f.y[i].wide(), 4e-6 * exact.top[c]);
                worst.check("dx", &i, d.dx[i].wide(), b.dx[i].wide(), 4e-6 * spread[c]);
            }
            let (m, n, std) = (f.moments[c], s.moments[c], exact.channels[c].var.sqrt());
            worst.check("mean", &c, n.mean - by as f64, m.mean, 2e-6 * std + 1e-10);
            worst.check("m2", &c, n.m2, m.m2, 2e-6 * m.m2);
        }
    }

    /// The order of the images is no matter: neither to the statistics nor to the images.
    #[test]
    fn permuted_batch(p in problems::<f32>(shapes()), isa in isas(), seed: u64) {
        let p = Problem { activation: Activation::Identity, ..p };
        let (batch, image) = (p.shape.batch(), p.shape.len() / p.shape.batch());
        let mut order: Vec<usize> = (0..batch).collect();
        let mut r = Random(seed);
        for i in 0..batch {
            order.swap(i, i + r.below(batch - i));
        }
        let permute = |v: &Vec<f32>| order.iter().flat_map(|&n| v[n * image..(n + 1) * image].to_vec()).collect::<Vec<_>>();
        let q = Problem { x: permute(&p.x), dy: permute(&p.dy), residual: p.residual.as_ref().map(permute), ..p.clone() };
        let (f, g) = (p.forward(isa), q.forward(isa));
        let b = p.backward(isa, &f.y, Statistics::Batch(&f.moments));
        let d = q.backward(isa, &g.y, Statistics::Batch(&g.moments));
        let exact = p.exact_forward();
        let gradients = p.exact_backward(&exact.channels, &f.y);
        let (y, dx) = (permute(&f.y), permute(&b.dx));
        let mut worst = Worst::default();
        for (c, ch) in exact.channels.iter().enumerate() {
            for i in places(p.shape, c) {
                worst.check("y", &i, g.y[i].wide(), y[i].wide(), 4e-6 * exact.top[c]);
                worst.check("dx", &i, d.dx[i].wide(), dx[i].wide(), 4e-6 * gradients.spread[c]);
            }
            let far = 4.0 * f64::EPSILON * ch.mean.abs();
            prop_assert_eq!(f.moments[c].count, g.moments[c].count);
            worst.check("mean", &c, g.moments[c].mean, f.moments[c].mean, 2e-6 * ch.var.sqrt() + far);
            worst.check("m2", &c, g.moments[c].m2, f.moments[c].m2, 2e-6 * f.moments[c].m2);
            let dot = 4e-6 * gradients.dot[c] + 2.0 * f32::ROUNDING * gradients.dgamma[c].abs();
            worst.check("dgamma", &c, d.dgamma[c].wide(), b.dgamma[c].wide(), dot);
        }
    }

    /// The layout is no matter either.
    #[test]
    fn transposed(p in problems::<f32>(shapes()), isa in isas()) {
        let p = Problem { activation: Activation::Identity, ..p };
        let q = transpose(&p);
        let (f, g) = (p.forward(isa), q.forward(isa));
        let b = p.backward(isa, &f.y, Statistics::Batch(&f.moments));
        let d = q.backward(isa, &g.y, Statistics::Batch(&g.moments));
        let exact = p.exact_forward();
        let spread = p.exact_backward(&exact.channels, &f.y).spread;
        let mut worst = Worst::default();
        for (c, ch) in exact.channels.iter().enumerate() {
            for (i, j) in places(p.shape, c).zip(places(q.shape, c)) {
                worst.check("y", &i, g.y[j].wide(), f.y[i].wide(), 4e-6 * exact.top[c]);
                worst.check("dx", &i, d.dx[j].wide(), b.dx[i].wide(), 4e-6 * spread[c]);
            }
            let far = 4.0 * f64::EPSILON * ch.mean.abs();
            worst.check("mean", &c, g.moments[c].mean, f.moments[c].mean, 2e-6 * ch.var.sqrt() + far);
            worst.check("m2", &c, g.moments[c].m2, f.moments[c].m2, 2e-6 * f.moments[c].m2);
        }
    }

    /// Moving all of x of a channel, or stretching it, moves no y: so dx has neither part. (With an ε
    /// that is not small against the variance the second is not so.)
    #[test]
    fn dx_is_orthogonal(p in problems::<f64>(shapes()), isa in isas()) {
        let p = Problem { epsilon: 0.0, ..p };
        let f = p.forward(isa);
        let b = p.backward(isa, &f.y, Statistics::Batch(&f.moments));
        let exact = p.exact_forward();
        let spread = p.exact_backward(&exact.channels, &f.y).spread;
        let mut worst = Worst::default();
        for (c, ch) in exact.channels.iter().enumerate() {
            let n = p.shape.values_per_channel() as f64;
            // Each of n elements has its rounding; x̂ is 1 on average.
            let bound = (f64::BOUND + 8.0 * mean_rounding(ch)) * n * spread[c];
            let total = sum(places(p.shape, c).map(|i| b.dx[i]));
            worst.check("Σ dx", &(p.shape, c), total, 0.0, bound);
            let r = ch.inverse_std();
            let along = sum(places(p.shape, c).map(|i| b.dx[i] * (p.x[i] - ch.mean) * r));
            worst.check("Σ dx·x̂", &(p.shape, c), along, 0.0, bound);
        }
    }

    /// The same, as far as f32 goes.
    #[test]
    fn dx_is_orthogonal_f32(p in problems::<f32>(shapes()), isa in isas()) {
        let p = Problem { epsilon: 0.0, ..p };
        let f = p.forward(isa);
        let b = p.backward(isa, &f.y, Statistics::Batch(&f.moments));
        let exact = p.exact_forward();
        let spread = p.exact_backward(&exact.channels, &f.y).spread;
        let mut worst = Worst::default();
        for (c, ch) in exact.channels.iter().enumerate() {
            let bound = f32::BOUND * p.shape.values_per_channel() as f64 * spread[c];
            let total = sum(places(p.shape, c).map(|i| b.dx[i].wide()));
            worst.check("Σ dx", &(p.shape, c), total, 0.0, bound);
            let r = ch.inverse_std();
            let along = sum(places(p.shape, c).map(|i| b.dx[i].wide() * (p.x[i].wide() - ch.mean) * r));
            worst.check("Σ dx·x̂", &(p.shape, c), along, 0.0, bound);
        }
    }

    /// The gradients are those of the forward pass of this very library, by differences of fourth
    /// order in f64.
    #[test]
    fn gradients_are_differences(
        layout in prop_oneof![Just(Layout::Nchw), Just(Layout::Nhwc)],
        (n, c, s) in (1usize..=6, 1usize..=5, 1usize..=20),
        a in 0..ACTIVATIONS.len(),
        seed: u64,
        isa in isas(),
    ) {
        differences(Shape::new(layout, n, c, &[s]).unwrap(), ACTIVATIONS[a], seed, isa)?;
    }

    /// Over the input is the same as beside it.
    #[test]
    fn in_place(p in problems::<f32>(wide_shapes()), isa in isas()) {
        in_place_is_out_of_place(&p, isa)?;
    }

    #[test]
    fn in_place_f64(p in problems::<f64>(shapes()), isa in isas()) {
        in_place_is_out_of_place(&p, isa)?;
    }

    /// Outputs may be uninitialised: all of them is written.
    #[test]
    fn uninitialised_outputs(p in problems::<f32>(wide_shapes()), isa in isas()) {
        let bn = p.plan(isa);
        let n = p.shape.len();
        let uninit = || vec![MaybeUninit::<f32>::uninit(); n];
        let (mut y, mut dx, mut dresidual) = (uninit(), uninit(), uninit());
        let mut moments = vec![Moments::EMPTY; p.shape.channels()];
        with_workspace(bn.workspace_min(Op::ForwardTraining), |ws| {
            let run = Run::serial(ws);
            bn.forward_training(&p.x, p.residual.as_deref(), p.affine(), &mut y[..], &mut moments, run)
        }).unwrap();
        let f = p.forward(isa);
        let statistics = Statistics::Batch(&f.moments);
        with_workspace(bn.workspace_min(Op::Backward), |ws| {
            let (dx, dr) = (Some((&mut dx[..]).into()), Some((&mut dresidual[..]).into()));
            let output = Gradients { dx, dresidual: dr, dgamma: None, dbeta: None };
            bn.backward(p.input(&f.y, statistics), output, Run::serial(ws))
        }).unwrap();
        let b = p.backward(isa, &f.y, statistics);
        // SAFETY: the library has promised to write all of it.
        let initialised = |v: Vec<MaybeUninit<f32>>| v.into_iter().map(|v| unsafe { v.assume_init() }.to_bits()).collect::<Vec<_>>();
        let of = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert!(initialised(y) == of(&f.y) && moment_bits(&moments) == moment_bits(&f.moments));
        prop_assert!(initialised(dx) == of(&b.dx) && initialised(dresidual) == of(&b.dresidual));
    }

    /// Any workspace from the minimum up.
    #[test]
    fn any_workspace(p in problems::<f32>(wide_shapes()), isa in isas(), share in 0.0..=1.0f64) {
        workspaces(&p, isa, share)?;
    }

    #[test]
    fn any_workspace_f64(p in problems::<f64>(wide_shapes()), isa in isas(), share in 0.0..=1.0f64) {
        workspaces(&p, isa, share)?;
    }

    /// Slices need no more alignment than their elements.
    #[test]
    fn misaligned(p in problems::<f32>(shapes()), isa in isas(), by in prop::array::uniform8(0usize..4)) {
        let (n, channels, bn) = (p.shape.len(), p.shape.channels(), p.plan(isa));
        let late = |v: &[f32], by: usize| [&vec![f32::NAN; by][..], v, &[f32::NAN; 16]].concat();
        let (x, dy) = (late(&p.x, by[0]), late(&p.dy, by[1]));
        let residual = p.residual.as_ref().map(|r| late(r, by[2]));
        let (x, dy) = (&x[by[0]..][..n], &dy[by[1]..][..n]);
        let residual = residual.as_ref().map(|r| &r[by[2]..][..n]);
        let gamma = p.gamma.as_ref().map(|g| late(g, by[3]));
        let gamma = gamma.as_ref().map(|g| &g[by[3]..][..channels]);
        let affine = bn_core::Affine { gamma, ..p.affine() };
        let blank = |by: usize| vec![7.5f32; n + by + 16];
        let (mut y, mut dx, mut dresidual) = (blank(by[4]), blank(by[5]), blank(by[6]));
        let mut moments = vec![Moments::EMPTY; channels];
        let mut ws = vec![0; bn.workspace_min(Op::ForwardTraining).max(bn.workspace_min(Op::Backward))];
        bn.forward_training(x, residual, affine, &mut y[by[4]..][..n], &mut moments, Run::serial(&mut ws)).unwrap();
        let f = p.forward(isa);
        let input = BackwardInput { x, y: Some(&y[by[4]..][..n]), dy, gamma, statistics: Statistics::Batch(&moments) };
        let mut sums = Backward::<f32>::blank(p.shape);
        let output = Gradients {
            dx: Some((&mut dx[by[5]..][..n]).into()),
            dresidual: Some((&mut dresidual[by[6]..][..n]).into()),
            ..sums.all()
        };
        bn.backward(input, output, Run::serial(&mut ws)).unwrap();
        let b = p.backward(isa, &f.y, Statistics::Batch(&f.moments));
        prop_assert_eq!(moment_bits(&moments), moment_bits(&f.moments));
        for (what, got, by, expected) in [("y", &y, by[4], &f.y), ("dx", &dx, by[5], &b.dx), ("dresidual", &dresidual, by[6], &b.dresidual)] {
            prop_assert!(bits(&got[by..][..n]) == bits(expected), "{} has other bits", what);
            prop_assert!(got[..by].iter().chain(&got[by + n..]).all(|&v| v == 7.5), "{} written beside", what);
        }
        prop_assert!(bits(&sums.dgamma) == bits(&b.dgamma) && bits(&sums.dbeta) == bits(&b.dbeta));
    }

    /// Statistics of shards, merged, are those of the whole; in one slice or by `merge_moments`.
    #[test]
    fn merged_shards(p in problems::<f32>(shapes()), isa in isas(), cuts in prop::collection::vec(0.0..=1.0f64, 0..4)) {
        let whole = p.forward(isa).moments;
        let (batch, image) = (p.shape.batch(), p.shape.len() / p.shape.batch());
        let mut cuts: Vec<usize> = cuts.iter().map(|c| (c * batch as f64) as usize).chain([0, batch]).collect();
        cuts.sort_unstable();
        let mut taken_in = vec![Moments::EMPTY; p.shape.channels()];
        let mut merged = taken_in.clone();
        for cut in cuts.windows(2) {
            // Some of them are empty.
            let shape = Shape::new(p.shape.layout(), cut[1] - cut[0], p.shape.channels(), &[p.shape.spatial()]).unwrap();
            let bn = BatchNorm::<f32>::new(shape, 0.0).unwrap().with_isa(isa);
            let part = &p.x[cut[0] * image..cut[1] * image];
            let mut alone = vec![Moments::EMPTY; p.shape.channels()];
            for into in [&mut taken_in, &mut alone] {
                with_workspace(bn.workspace_min(Op::ForwardTraining), |ws| bn.moments(part, into, Run::serial(ws))).unwrap();
            }
            bn_core::merge_moments(&mut merged, &alone).unwrap();
        }
        let mut worst = Worst::default();
        for c in 0..p.shape.channels() {
            let (mean, var) = mean_var(places(p.shape, c).map(|i| p.x[i].wide()));
            for m in [whole[c], merged[c], taken_in[c]] {
                prop_assert_eq!(m.count, p.shape.values_per_channel());
                let far = 4.0 * f64::EPSILON * mean.abs();
                worst.check("mean", &(p.shape, c), m.mean, mean, 1e-6 * var.sqrt() + far);
                worst.check("variance", &(p.shape, c), m.variance(), var, 1e-6 * var + far * far);
            }
        }
    }

    /// The two stages are the one call: forward to the bit, backward to rounding, as the sums of a
    /// stage may be those of a shard.
    #[test]
    fn stages(p in problems::<f32>(shapes()), isa in isas()) {
        let (bn, f) = (p.plan(isa), p.forward(isa));
        let words = bn.workspace_min(Op::ForwardTraining);
        let mut staged = Forward { y: vec![f32::NAN; p.shape.len()], moments: vec![Moments::EMPTY; p.shape.channels()] };
        with_workspace(words, |ws| bn.moments(&p.x, &mut staged.moments, Run::serial(ws))).unwrap();
        with_workspace(words, |ws| {
            bn.normalize(&p.x, p.residual.as_deref(), p.affine(), &staged.moments, &mut staged.y[..], Run::serial(ws))
        }).unwrap();
        prop_assert!(staged.bits() == f.bits(), "other bits by stages");

        let statistics = Statistics::Batch(&f.moments);
        let words = bn.workspace_min(Op::Backward);
        let mut sums = vec![GradSums { dbeta: f64::NAN, dot: f64::NAN }; p.shape.channels()];
        with_workspace(words, |ws| bn.backward_sums(p.input(&f.y, statistics), &mut sums, Run::serial(ws))).unwrap();
        let mut b = Backward::blank(p.shape);
        with_workspace(words, |ws| bn.backward_apply(p.input(&f.y, statistics), &sums, b.all(), Run::serial(ws))).unwrap();
        near(&p, &f, &b)?;

        // Whatever of it is asked for.
        for asked in 0..16 {
            let mut some = Backward::blank(p.shape);
            let all = some.all();
            let output = bn_core::Gradients {
                dx: all.dx.filter(|_| asked & 1 > 0),
                dresidual: all.dresidual.filter(|_| asked & 2 > 0),
                dgamma: all.dgamma.filter(|_| asked & 4 > 0),
                dbeta: all.dbeta.filter(|_| asked & 8 > 0),
            };
            let blank = Backward::blank(p.shape);
            with_workspace(words, |ws| bn.backward_apply(p.input(&f.y, statistics), &sums, output, Run::serial(ws))).unwrap();
            let or = |bit: usize, whole: &[f32], blank: &[f32]| bits(if asked & bit > 0 { whole } else { blank });
            prop_assert!(bits(&some.dx) == or(1, &b.dx, &blank.dx), "dx of {}", asked);
            prop_assert!(bits(&some.dresidual) == or(2, &b.dresidual, &blank.dresidual), "dresidual of {}", asked);
            prop_assert!(bits(&some.dgamma) == or(4, &b.dgamma, &blank.dgamma), "dgamma of {}", asked);
            prop_assert!(bits(&some.dbeta) == or(8, &b.dbeta, &blank.dbeta), "dbeta of {}", asked);
        }
    }

    /// So are the stages over shards of the batch: statistics and sums are merged, and each shard makes
    /// its part of y and dx.
    #[test]
    fn stages_over_shards(p in problems::<f32>(shapes()), isa in isas(), cut in 0.0..=1.0f64) {
        let (batch, image) = (p.shape.batch(), p.shape.len() / p.shape.batch());
        let cut = (cut * batch as f64) as usize;
        let shard = |from: usize, to: usize| {
            let part = |v: &Vec<f32>| v[from * image..to * image].to_vec();
            Problem {
                shape: Shape::new(p.shape.layout(), to - from, p.shape.channels(), &[p.shape.spatial()]).unwrap(),
                x: part(&p.x),
                dy: part(&p.dy),
                residual: p.residual.as_ref().map(part),
                ..p.clone()
            }
        };
        let shards = [shard(0, cut), shard(cut, batch)];
        let mut f = Forward { y: vec![], moments: vec![Moments::EMPTY; p.shape.channels()] };
        for q in &shards {
            let bn = q.plan(isa);
            with_workspace(bn.workspace_min(Op::ForwardTraining), |ws| bn.moments(&q.x, &mut f.moments, Run::serial(ws))).unwrap();
        }
        let mut sums = vec![GradSums::default(); p.shape.channels()];
        for q in &shards {
            let bn = q.plan(isa);
            let mut y = vec![f32::NAN; q.x.len()];
            with_workspace(bn.workspace_min(Op::ForwardTraining), |ws| {
                bn.normalize(&q.x, q.residual.as_deref(), q.affine(), &f.moments, &mut y[..], Run::serial(ws))
            }).unwrap();
            let mut part = vec![GradSums::default(); p.shape.channels()];
            with_workspace(bn.workspace_min(Op::Backward), |ws| {
                bn.backward_sums(q.input(&y, Statistics::Batch(&f.moments)), &mut part, Run::serial(ws))
            }).unwrap();
            for (s, part) in sums.iter_mut().zip(&part) {
                s.merge(part);
            }
            f.y.extend(y);
        }
        let mut b = Backward::blank(p.shape);
        let mut from = 0;
        for q in &shards {
            let bn = q.plan(isa);
            let to = from + q.x.len();
            let output = Gradients {
                dx: Some((&mut b.dx[from..to]).into()),
                dresidual: Some((&mut b.dresidual[from..to]).into()),
                dgamma: Some(&mut b.dgamma),
                dbeta: Some(&mut b.dbeta),
            };
            with_workspace(bn.workspace_min(Op::Backward), |ws| {
                bn.backward_apply(q.input(&f.y[from..to], Statistics::Batch(&f.moments)), &sums, output, Run::serial(ws))
            }).unwrap();
            from = to;
        }
        let exact = p.exact_forward();
        let mut worst = Worst::default();
        for c in 0..p.shape.channels() {
            for i in places(p.shape, c) {
                worst.check("y", &(p.shape, i), f.y[i].wide(), exact.y[i], 2e-6 * exact.top[c]);
            }
        }
        near(&p, &f, &b)?;
    }

    /// Inference, and training with frozen statistics: constants to which x owes nothing.
    #[test]
    fn running_statistics(p in problems::<f32>(wide_shapes()), isa in isas(), seed: u64) {
        let (bn, channels) = (p.plan(isa), p.shape.channels());
        let mut r = Random(seed);
        let statistics: Vec<(f32, f32)> =
            (0..channels).map(|_| ((r.normal() * 10f64.powf(4.0 * r.uniform())) as f32, 10f64.powf(6.0 * r.uniform() - 3.0) as f32)).collect();
        let (mean, var): (Vec<f32>, Vec<f32>) = statistics.iter().copied().unzip();
        let mut y = vec![f32::NAN; p.shape.len()];
        with_workspace(bn.workspace_min(Op::Inference), |ws| {
            bn.inference(&p.x, p.residual.as_deref(), p.affine(), &mean, &var, &mut y[..], Run::serial(ws))
        }).unwrap();
        let exact = p.exact_forward_with(&statistics.iter().map(|&(m, v)| (m as f64, v as f64)).collect::<Vec<_>>());
        let b = p.backward(isa, &y, Statistics::Running { mean: &mean, var: &var });
        let mut worst = Worst::default();
        for (c, ch) in exact.channels.iter().enumerate() {
            let (mut dgamma, mut dbeta, mut dot, mut total) = (vec![], vec![], 0.0, 0.0);
            // y before a clamp may be larger than behind it.
            let top = places(p.shape, c).fold(exact.top[c], |m, i| m.max(exact.z[i].abs()));
            for i in places(p.shape, c) {
                let name = (p.shape, c, i);
                worst.check("y", &name, y[i].wide(), exact.y[i], 2e-6 * top);
                let dy = common::problem::mask(p.activation, y[i].wide(), p.dy[i].wide());
                let dx = ch.gamma * ch.inverse_std() * dy;
                // The scale rounds, and the product.
                worst.check("dx", &name, b.dx[i].wide(), dx, 2.0 * f32::EPSILON as f64 * dx.abs());
                prop_assert_eq!(b.dresidual[i].wide(), dy);
                let term = dy * (p.x[i].wide() - ch.mean) * ch.inverse_std();
                dgamma.push(term);
                dbeta.push(dy);
                dot += term.abs();
                total += dy.abs();
            }
            let (dgamma, dbeta) = (sum(dgamma.into_iter()), sum(dbeta.into_iter()));
            worst.check("dgamma", &(p.shape, c), b.dgamma[c].wide(), dgamma, 2e-6 * dot);
            worst.check("dbeta", &(p.shape, c), b.dbeta[c].wide(), dbeta, 1e-6 * total);
        }
    }

    /// Statistics as frameworks keep them, rounded to f32, give the gradients of those that were not
    /// rounded.
    #[test]
    fn rounded_statistics(p in problems::<f32>(shapes()), isa in isas()) {
        let f = p.forward(isa);
        let mean: Vec<f32> = f.moments.iter().map(|m| m.mean as f32).collect();
        let var: Vec<f32> = f.moments.iter().map(|m| m.variance() as f32).collect();
        let b = p.backward(isa, &f.y, Statistics::Rounded { mean: &mean, var: &var });
        near(&p, &f, &b)?;
    }
}

/// A mean of dy changes no gradient but dbeta's, however large it is against what dy does beside it:
/// in one call, and by stages, where nobody knows that Σ (x − mean) is 0.
fn far_dy(staged: bool) {
    let mut worst = Worst::default();
    for (n, s) in [(2, 4), (4, 16), (10, 100)] {
        for shape in [Shape::nchw(n, 20, &[s]).unwrap(), Shape::nhwc(n, 20, &[s]).unwrap()] {
            let mut r = Random(5);
            for far in [0.0, 10.0, 100.0, 1000.0] {
                let mut fill = |mean: f64| (0..shape.len()).map(|_| (mean + r.normal()) as f32).collect::<Vec<_>>();
                let (x, dy, activation) = (fill(0.0), fill(far), Activation::Identity);
                let p = Problem {
                    seed: 0,
                    shape,
                    epsilon: 1e-5,
                    activation,
                    x,
                    dy,
                    residual: None,
                    gamma: None,
                    beta: None,
                };
                for isa in Isa::available() {
                    let (bn, f) = (p.plan(isa), p.forward(isa));
                    let statistics = Statistics::Batch(&f.moments);
                    let mut sums = vec![GradSums::default(); shape.channels()];
                    let mut b = Backward::blank(shape);
                    if staged {
                        with_workspace(bn.workspace_min(Op::Backward), |ws| {
                            bn.backward_sums(p.input(&f.y, statistics), &mut sums, Run::serial(&mut *ws))?;
                            bn.backward_apply(p.input(&f.y, statistics), &sums, b.all(), Run::serial(ws))
                        })
                        .unwrap();
                    } else {
                        b = p.backward(isa, &f.y, statistics);
                    }
                    let exact = p.exact_forward();
                    let gradients = p.exact_backward(&exact.channels, &f.y);
                    for c in 0..shape.channels() {
                        let name = (shape, far, isa, c);
                        for i in places(shape, c) {
                            let bound = 2e-6 * gradients.spread[c];
                            worst.check("dx", &name, b.dx[i].wide(), gradients.dx[i], bound);
                        }
                        let bound = 2e-6 * gradients.dot[c] + f32::ROUNDING * gradients.dgamma[c].abs();
                        worst.check("dgamma", &name, b.dgamma[c].wide(), gradients.dgamma[c], bound);
                    }
                }
            }
        }
    }
}

#[test]
fn dy_with_a_far_mean() {
    far_dy(false);
}

#[test]
fn dy_with_a_far_mean_by_stages() {
    far_dy(true);
}

/// A channel whose dy is all masked, and whose x has an infinite element, has the same gradients whichever
/// channels are beside it: 0·∞ is not summed or left out as they want.
#[test]
fn infinite_channels_do_not_look_at_others() {
    for layout in [Layout::Nhwc, Layout::Nchw] {
        let shape = Shape::new(layout, 6, 20, &[7]).unwrap();
        let (mean, var) = (vec![1.0f32; 20], vec![2.0; 20]);
        let dgamma = |beside: f32, isa: Isa| {
            let mut x = vec![1.5f32; shape.len()];
            for (channel, v) in [(3, f32::INFINITY), (4, beside)] {
                x[places(shape, channel).nth(5).unwrap()] = v;
            }
            // Channel 3 is masked, 4 is not.
            let mut y = vec![1.0f32; shape.len()];
            places(shape, 3).for_each(|i| y[i] = -1.0);
            let dy: Vec<f32> = (0..shape.len()).map(|i| (i % 5) as f32).collect();
            let bn = BatchNorm::<f32>::new(shape, 1e-5).unwrap().with_isa(isa);
            let bn = bn.with_activation(Activation::Relu).unwrap();
            let statistics = Statistics::Rounded { mean: &mean, var: &var };
            let rounded = BackwardInput { x: &x, y: Some(&y), dy: &dy, gamma: None, statistics };
            let frozen = BackwardInput { statistics: Statistics::Running { mean: &mean, var: &var }, ..rounded };
            let mut workspace = vec![0; bn.workspace_best(Op::Backward, 1)];
            [rounded, frozen].map(|input| {
                let mut dgamma = vec![0.0; 20];
                let gradients = Gradients { dgamma: Some(&mut dgamma), ..Gradients::default() };
                bn.backward(input, gradients, Run::serial(&mut workspace)).unwrap();
                dgamma[3].bits()
            })
        };
        for isa in Isa::available() {
            assert_eq!(dgamma(1.0, isa), dgamma(f32::INFINITY, isa), "{layout:?} with {isa:?}");
        }
    }
}

/// The backward pass of `p` is within rounding of the reference.
fn near(p: &Problem<f32>, f: &Forward<f32>, b: &Backward<f32>) -> Result<(), TestCaseError> {
    let exact = p.exact_forward();
    let gradients = p.exact_backward(&exact.channels, &f.y);
    let mut worst = Worst::default();
    for c in 0..p.shape.channels() {
        for i in places(p.shape, c) {
            let name = (p.shape, c, i);
            worst.check("dx", &name, b.dx[i].wide(), gradients.dx[i], 2e-6 * gradients.spread[c]);
            prop_assert_eq!(b.dresidual[i].wide(), gradients.dresidual[i]);
        }
        let (dgamma, dbeta) = (gradients.dgamma[c], gradients.dbeta[c]);
        let name = (p.shape, c);
        // What is summed is as far from the pivot as from the mean, or farther.
        let rounding = |v: f64| f32::ROUNDING * (v.abs() + 16.0 * gradients.far[c]);
        let dot = 2e-6 * gradients.dot[c] + rounding(dgamma);
        worst.check("dgamma", &name, b.dgamma[c].wide(), dgamma, dot);
        worst.check("dbeta", &name, b.dbeta[c].wide(), dbeta, 2e-6 * gradients.sum[c] + rounding(dbeta));
    }
    Ok(())
}

fn in_place_is_out_of_place<T: Real>(p: &Problem<T>, isa: Isa) -> Result<(), TestCaseError> {
    let (bn, f) = (p.plan(isa), p.forward(isa));
    let (residual, affine, channels) = (p.residual.as_deref(), p.affine(), p.shape.channels());
    let words = bn.workspace_min(Op::ForwardTraining);
    let mut g = Forward { y: p.x.clone(), moments: vec![Moments::EMPTY; channels] };
    with_workspace(words, |ws| {
        bn.forward_training_in_place(&mut g.y, residual, affine, &mut g.moments, Run::serial(ws))
    })
    .unwrap();
    prop_assert!(f.bits() == g.bits(), "forward_training_in_place");

    let mean: Vec<T> = f.moments.iter().map(|m| T::of(m.mean)).collect();
    let var: Vec<T> = f.moments.iter().map(|m| T::of(m.variance())).collect();
    let words = bn.workspace_min(Op::Inference);
    let (mut y, mut over) = (vec![T::of(f64::NAN); p.shape.len()], p.x.clone());
    with_workspace(words, |ws| bn.inference(&p.x, residual, affine, &mean, &var, &mut y[..], Run::serial(ws))).unwrap();
    with_workspace(words, |ws| bn.inference_in_place(&mut over, residual, affine, &mean, &var, Run::serial(ws)))
        .unwrap();
    prop_assert!(bits(&y) == bits(&over), "inference_in_place");

    let mut prepared = vec![Prepared::default(); channels];
    bn.prepare(affine, &mean, &var, &mut prepared).unwrap();
    let (mut applied, mut over) = (vec![T::of(f64::NAN); p.shape.len()], p.x.clone());
    with_workspace(words, |ws| bn.apply(&p.x, residual, &prepared, &mut applied[..], Run::serial(ws))).unwrap();
    with_workspace(words, |ws| bn.apply_in_place(&mut over, residual, &prepared, Run::serial(ws))).unwrap();
    prop_assert!(bits(&applied) == bits(&y), "apply is not inference");
    prop_assert!(bits(&applied) == bits(&over), "apply_in_place");

    for statistics in [
        Statistics::Batch(&f.moments),
        Statistics::Rounded { mean: &mean, var: &var },
        Statistics::Running { mean: &mean, var: &var },
    ] {
        let beside = p.backward(isa, &f.y, statistics);
        let mut over = Backward::blank(p.shape);
        over.dx.clone_from(&p.dy);
        let Backward { dx, dresidual, dgamma, dbeta } = &mut over;
        with_workspace(bn.workspace_min(Op::Backward), |ws| {
            let input = BackwardInput { dy: &[], ..p.input(&f.y, statistics) };
            let dresidual = Some((&mut dresidual[..]).into());
            let output = Gradients { dx: None, dresidual, dgamma: Some(dgamma), dbeta: Some(dbeta) };
            bn.backward_in_place(dx, input, output, Run::serial(ws))
        })
        .unwrap();
        prop_assert!(beside.bits() == over.bits(), "backward_in_place, {:?}", statistics);
        // dx alone has the same bits.
        let mut alone = p.dy.clone();
        with_workspace(bn.workspace_min(Op::Backward), |ws| {
            let input = BackwardInput { dy: &[], ..p.input(&f.y, statistics) };
            bn.backward_in_place(&mut alone, input, Gradients::default(), Run::serial(ws))
        })
        .unwrap();
        prop_assert!(bits(&beside.dx) == bits(&alone), "backward_in_place, dx alone, {:?}", statistics);
    }
    Ok(())
}

/// The same bits with the smallest workspace, one of `share` between it and one that more does not
/// help, and those next to both.
fn workspaces<T: Real>(p: &Problem<T>, isa: Isa, share: f64) -> Result<(), TestCaseError> {
    let bn = p.plan(isa);
    let lengths = |op| {
        let (min, best) = (bn.workspace_min(op), bn.workspace_best(op, 4) + 100);
        [min, min + 1, min + (share * (best - min) as f64) as usize, min + (share * share * 200.0) as usize, best]
    };
    let f = p.forward(isa);
    for words in lengths(Op::ForwardTraining) {
        prop_assert!(p.forward_in(&bn, words).bits() == f.bits(), "{} words", words);
    }
    let (mean, var) = (vec![T::of(0.5); p.shape.channels()], vec![T::of(2.0); p.shape.channels()]);
    let running = Statistics::Running { mean: &mean, var: &var };
    let rounded = Statistics::Rounded { mean: &mean, var: &var };
    for statistics in [Statistics::Batch(&f.moments), running, rounded] {
        let b = p.backward(isa, &f.y, statistics).bits();
        for words in lengths(Op::Backward) {
            prop_assert!(p.backward_in(&bn, &f.y, statistics, words).bits() == b, "{} words, {:?}", words, statistics);
        }
    }
    let infer = |words: usize| {
        let mut y = vec![T::of(f64::NAN); p.shape.len()];
        with_workspace(words, |ws| {
            bn.inference(&p.x, p.residual.as_deref(), p.affine(), &mean, &var, &mut y[..], Run::serial(ws))
        })
        .unwrap();
        bits(&y)
    };
    let y = infer(bn.workspace_best(Op::Inference, 1));
    for words in lengths(Op::Inference) {
        prop_assert!(infer(words) == y, "{} words", words);
    }
    Ok(())
}

fn differences(shape: Shape, activation: Activation, seed: u64, isa: Isa) -> Result<(), TestCaseError> {
    let mut r = Random(seed);
    let mut normal = |n: usize, mean: f64| (0..n).map(|_| mean + r.normal()).collect::<Vec<f64>>();
    let (n, c) = (shape.len(), shape.channels());
    let p = Problem::<f64> {
        seed: 0,
        shape,
        // Not small: the curvature of y is measured by √(variance + ε).
        epsilon: 0.1,
        activation,
        x: normal(n, 1.0),
        dy: normal(n, 0.5),
        residual: Some(normal(n, 0.0)),
        gamma: Some(normal(c, 1.0)),
        beta: Some(normal(c, 0.0)),
    };
    let f = p.forward(isa);
    let b = p.backward(isa, &f.y, Statistics::Batch(&f.moments));
    let exact = p.exact_forward();
    let gradients = p.exact_backward(&exact.channels, &f.y);
    let mut where_to = Random(seed ^ 1);
    // One element, gamma and beta of every channel.
    for (ch, channel) in exact.channels.iter().enumerate() {
        let at: Vec<usize> = places(shape, ch).collect();
        let i = at[where_to.below(at.len())];
        let h = 2e-3 / channel.inverse_std();
        type Move = fn(&mut Problem<f64>, usize, usize, f64);
        let moves: [(&str, f64, f64, Move); 4] = [
            ("dx", b.dx[i], h, |p, i, _, h| p.x[i] += h),
            ("dresidual", b.dresidual[i], 1e-3, |p, i, _, h| p.residual.as_mut().unwrap()[i] += h),
            ("dgamma", b.dgamma[ch], 1e-3, |p, _, c, h| p.gamma.as_mut().unwrap()[c] += h),
            ("dbeta", b.dbeta[ch], 1e-3, |p, _, c, h| p.beta.as_mut().unwrap()[c] += h),
        ];
        for (what, got, h, moved) in moves {
            let y_at = |h: f64| {
                let mut q = p.clone();
                moved(&mut q, i, ch, h);
                q.forward(isa).y
            };
            let ys = [-2.0, -1.0, 1.0, 2.0].map(|k| y_at(k * h));
            // Where an element crosses a kink of the activation there is no derivative.
            let side = |y: f64| match activation {
                Activation::Identity => 0,
                Activation::Clamp { lo, hi } => (lo < y) as u8 + (y < hi) as u8 * 2,
                _ => (y > 0.0) as u8,
            };
            if at.iter().any(|&j| ys.iter().any(|y| side(y[j]) != side(f.y[j]))) {
                continue;
            }
            let loss = |y: &[f64]| sum(at.iter().map(|&j| p.dy[j] * y[j]));
            let difference = (8.0 * (loss(&ys[2]) - loss(&ys[1])) - (loss(&ys[3]) - loss(&ys[0]))) / (12.0 * h);
            let size = match what {
                "dx" => channel.gamma.abs() * channel.inverse_std() * (gradients.sum[ch] + 1.0),
                "dresidual" => 1.0 + p.dy[i].abs(),
                _ => 1.0 + gradients.sum[ch],
            };
            prop_assert!(
                (difference - got).abs() <= 1e-9 * size,
                "{} {:?} {:?}: {} by differences, got {}",
                what,
                shape,
                activation,
                difference,
                got
            );
        }
    }
    Ok(())
}

/// γ·x̂ + β beyond the range of the type, brought back by the slope of a leaky ReLU or by a residual: right, and the
/// same bits in one call, prepared, and on every ISA.
#[test]
fn beyond_the_range() {
    fn go<T: Real>(top: f64, most: f64, tiny: f64) {
        let (gamma, beta) =
            (vec![T::of(3.5), T::of(-1e3), T::of(0.25)], vec![T::of(0.125), T::of(-7e3), T::of(top / 1e20)]);
        let (mean, var) = (vec![T::of(0.75), T::of(-2e4), T::of(1.0)], vec![T::of(2.0), T::of(0.3), T::of(9.0)]);
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let shape = Shape::new(layout, 2, 3, &[37]).unwrap();
            let x: Vec<T> = (0..shape.len()).map(|i| T::of(top * (1.0 - 2.0 * ((i * 7 % 16) as f64) / 15.0))).collect();
            let residual: Vec<T> = (0..shape.len()).map(|i| T::of(top * ((i % 5) as f64 / 2.0 - 1.0))).collect();
            for (activation, slope) in [
                (Activation::Identity, 1.0),
                (Activation::LeakyRelu { slope: 1e-3 }, 1e-3),
                (Activation::LeakyRelu { slope: tiny }, tiny),
                (Activation::LeakyRelu { slope: 4.0 }, 4.0),
                (Activation::Clamp { lo: -2.0, hi: top / 2.0 }, 1.0),
            ] {
                for residual in [None, Some(&residual[..])] {
                    let mut first: Option<Vec<T>> = None;
                    for isa in Isa::available() {
                        let bn = BatchNorm::<T>::new(shape, 1e-5).unwrap().with_isa(isa);
                        let bn = bn.with_activation(activation).unwrap();
                        let mut workspace = vec![0; bn.workspace_min(Op::Inference)];
                        let (mut y, mut again) = (x.clone(), x.clone());
                        let affine = Affine::new(&gamma, &beta);
                        bn.inference(&x, residual, affine, &mean, &var, &mut y[..], Run::serial(&mut workspace))
                            .unwrap();
                        let mut prepared = vec![Prepared::default(); 3];
                        bn.prepare(affine, &mean, &var, &mut prepared).unwrap();
                        bn.apply(&x, residual, &prepared, &mut again[..], Run::serial(&mut workspace)).unwrap();
                        assert!(bits(&y) == bits(&again), "{layout:?} {activation:?} {isa:?}: prepared, other bits");
                        let first = first.get_or_insert(y.clone());
                        assert!(bits(&y) == bits(first), "{layout:?} {activation:?} {isa:?}: other bits");
                    }
                    let y = first.unwrap();
                    for channel in 0..3 {
                        for i in places(shape, channel) {
                            // In units of 2⁻⁴⁰: nothing overflows.
                            let unit = 2f64.powi(-40);
                            let scale = gamma[channel].wide() / (var[channel].wide() + 1e-5).sqrt();
                            let terms = [
                                (x[i].wide() * unit - mean[channel].wide() * unit) * scale,
                                beta[channel].wide() * unit,
                                residual.map_or(0.0, |r| r[i].wide() * unit),
                            ];
                            let z: f64 = terms.iter().sum();
                            let size = terms.iter().fold(0.0f64, |m, t| m.max(t.abs()));
                            let (mut exact, mut bound) = (z, 1e-6 * size);
                            match activation {
                                Activation::LeakyRelu { .. } if z < 0.0 => (exact, bound) = (z * slope, bound * slope),
                                Activation::Clamp { lo, hi } => exact = z.max(lo * unit).min(hi * unit),
                                _ => {}
                            }
                            let got = y[i].wide() * unit;
                            let most = most * unit;
                            let right = if exact.abs() - bound > most {
                                got == f64::INFINITY.copysign(exact)
                            } else {
                                (got - exact).abs() <= bound + f64::MIN_POSITIVE
                                    || got.abs() >= most && exact.abs() + bound > most
                            };
                            assert!(right, "{layout:?} {activation:?} {i}: {got:e}, expected {exact:e} ± {bound:e}");
                        }
                    }
                }
            }
        }
    }
    go::<f32>(3e38, f32::MAX.into(), 2f64.powi(-135));
    go::<f64>(1.5e308, f64::MAX, 2f64.powi(-1040));
}
