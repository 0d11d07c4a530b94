//! Constants of several channels, and gradients of parameters, are made at once, with the vectors of the ISA. They have the bits
//! that a channel alone has, for which they are made one by one, whichever of a group's channels has constants at an end of the
//! range.

mod common;

use bn_core::{
    Affine, BackwardInput, BatchNorm, Element, GradSums, Gradients, Isa, Layout, Moments, Op, Param, Run, Shape,
    Statistics,
};
use common::{Number, Random, number_bits};

/// Planes of more than a vector; the channels are some groups, and some left over.
const BATCH: usize = 2;
const SPATIAL: usize = 35;

/// Factors, means, variances and sums: ordinary, at the limits of what a group takes, behind them, and beyond the range.
const SPECIAL: [f64; 18] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    f64::INFINITY,
    f64::NAN,
    1.2e15,
    -1.1e15,
    1.4e36,
    -1.3e36,
    7.6e-37,
    7.4e-37,
    2e30,
    1e-33,
    3e38,
    1e-42,
    5e-324,
    1e300,
];

/// Channels whose numbers are each within the limits, but not what is made of them together: γ, β, mean, variance, Σ dy·(x − mean), x.
const EDGES: [[f64; 6]; 4] = [
    // The scale times the reach of x.
    [5.6e36, 0.3, 0.7, 20.0, 1.0, 1.3],
    // What the mean lost to rounding, times the slope.
    [1.1, 0.3, 1.7e10, 1.0, 2.8e35, 1.7e10],
    // The reach of x, beside a slope and a scale that are not far out.
    [1.2e15, 0.3, 0.7, 2.5e74, 1e80, 1.3],
    // x times the scale overflows, but not with β.
    [1.9, -3e38, 0.7, 1.0, 1.0, 3.3e38],
];

struct Problem<T> {
    channels: usize,
    moments: Vec<Moments>,
    sums: Vec<GradSums>,
    gamma: Vec<T>,
    beta: Vec<T>,
    mean: Vec<T>,
    var: Vec<T>,
    epsilon: f64,
    /// In NCHW.
    x: Vec<T>,
    dy: Vec<T>,
}

/// One number in `1 / rare` is special.
fn problem<T: Number>(channels: usize, rare: usize, seed: u64) -> Problem<T> {
    let mut r = Random(seed);
    let mut number = |ordinary: fn(&mut Random) -> f64| {
        if rare > 0 && r.below(rare) == 0 { SPECIAL[r.below(SPECIAL.len())] } else { ordinary(&mut r) }
    };
    let positive = |r: &mut Random| r.normal().abs() + 0.01;
    let mut array = |of: fn(&mut Random) -> f64| -> Vec<f64> { (0..channels).map(|_| number(of)).collect() };
    let (mean64, m2) = (array(Random::normal), array(positive));
    let (dbeta, dot) = (array(Random::normal), array(Random::normal));
    let (gamma, beta, mean, var) =
        (array(Random::normal), array(Random::normal), array(Random::normal), array(positive));
    let of = |v: Vec<f64>| -> Vec<T> { v.into_iter().map(T::of).collect() };
    let counts = [1, 2, 70, (1 << 53) + 1, u64::MAX];
    let moments = (0..channels)
        .map(|c| Moments {
            count: if rare > 0 && r.below(rare) == 0 { counts[r.below(5)] } else { 70 },
            mean: mean64[c],
            m2: if rare == 2 { 70.0 * m2[c] } else { 70.0 * m2[c].abs() },
        })
        .collect();
    let mut p = Problem {
        channels,
        moments,
        sums: (0..channels).map(|c| GradSums { dbeta: dbeta[c], dot: dot[c] }).collect(),
        gamma: of(gamma),
        beta: of(beta),
        mean: of(mean),
        var: of(var.into_iter().map(f64::abs).collect()),
        epsilon: [1e-5, 0.0, 1e-3, 1e300][r.below(4)],
        x: (0..BATCH * channels * SPATIAL).map(|_| T::of(r.normal())).collect(),
        dy: (0..BATCH * channels * SPATIAL).map(|_| T::of(r.normal())).collect(),
    };
    if rare > 0 {
        let (c, [gamma, beta, mean, var, dot, x]) = (r.below(channels), EDGES[r.below(EDGES.len())]);
        (p.gamma[c], p.beta[c], p.mean[c], p.var[c]) = (T::of(gamma), T::of(beta), T::of(mean), T::of(var));
        p.moments[c] = Moments { count: 70, mean, m2: 70.0 * var };
        p.sums[c] = GradSums { dbeta: 1.0, dot };
        for i in (0..p.x.len()).filter(|i| i / SPATIAL % channels == c) {
            p.x[i] = T::of(x * (1.0 + 1e-6 * r.uniform()));
        }
    }
    p
}

impl<T: Number> Problem<T> {
    /// One of its channels.
    fn alone(&self, c: usize) -> Self {
        let of = |v: &[T]| vec![v[c]];
        let planes = |v: &[T]| (0..v.len()).filter(|i| i / SPATIAL % self.channels == c).map(|i| v[i]).collect();
        Problem {
            channels: 1,
            moments: vec![self.moments[c]],
            sums: vec![self.sums[c]],
            gamma: of(&self.gamma),
            beta: of(&self.beta),
            mean: of(&self.mean),
            var: of(&self.var),
            epsilon: self.epsilon,
            x: planes(&self.x),
            dy: planes(&self.dy),
        }
    }
}

/// The results of all that takes constants: tensors in NCHW; and arrays of the channels.
fn results<T: Number + Param + Element<Param = T>>(
    p: &Problem<T>,
    layout: Layout,
    isa: Isa,
) -> Vec<(&'static str, Vec<u64>)> {
    let shape = Shape::new(layout, BATCH, p.channels, &[SPATIAL]).unwrap();
    let bn = BatchNorm::<T>::new(shape, p.epsilon).unwrap().with_isa(isa).allow_one_value();
    // With the least, rows are walked in bands of channels.
    let words = |op| if p.channels > 64 { bn.workspace_min(op) } else { bn.workspace_best(op, 1) };
    let mut workspace = vec![0; words(Op::Backward).max(words(Op::ForwardTraining))];
    // Element i of NCHW.
    let at = |i: usize| match layout {
        Layout::Nhwc => {
            let (n, c, s) = (i / (p.channels * SPATIAL), i / SPATIAL % p.channels, i % SPATIAL);
            (n * SPATIAL + s) * p.channels + c
        }
        _ => i,
    };
    let to = |v: &[T]| {
        let mut to = v.to_vec();
        (0..v.len()).for_each(|i| to[at(i)] = v[i]);
        to
    };
    let bits = |v: &[T]| (0..v.len()).map(|i| number_bits(v[at(i)])).collect();
    let (x, dy, affine) = (to(&p.x), to(&p.dy), Affine::new(&p.gamma, &p.beta));
    let (mut y, mut all) = (x.clone(), vec![]);
    bn.normalize(&x, None, affine, &p.moments, &mut y[..], Run::serial(&mut workspace)).unwrap();
    all.push(("normalize", bits(&y)));
    bn.normalize(&x, Some(&dy), Affine::NONE, &p.moments, &mut y[..], Run::serial(&mut workspace)).unwrap();
    all.push(("normalize, no parameters", bits(&y)));
    bn.inference(&x, None, affine, &p.mean, &p.var, &mut y[..], Run::serial(&mut workspace)).unwrap();
    all.push(("inference", bits(&y)));
    let mut backward = |what, gamma, statistics| {
        let input = BackwardInput { x: &x, y: None, dy: &dy, gamma, statistics };
        let (mut dx, mut dresidual) = (x.clone(), x.clone());
        let (mut dgamma, mut dbeta) = (p.gamma.clone(), p.beta.clone());
        let output = Gradients {
            dx: Some((&mut dx[..]).into()),
            dresidual: Some((&mut dresidual[..]).into()),
            dgamma: Some(&mut dgamma),
            dbeta: Some(&mut dbeta),
        };
        // Sums that are given: those of x depend on the layout.
        bn.backward_apply(input, &p.sums, output, Run::serial(&mut workspace)).unwrap();
        all.push((what, bits(&dx)));
        all.push((what, bits(&dresidual)));
        for array in [dgamma, dbeta] {
            all.push((what, array.into_iter().map(number_bits).collect()));
        }
    };
    let (batch, frozen) = (Statistics::Batch(&p.moments), Statistics::Running { mean: &p.mean, var: &p.var });
    backward("backward", Some(&p.gamma[..]), batch);
    backward("backward, no gamma", None, batch);
    let some: Vec<_> =
        p.moments.iter().map(|m| Moments { count: if m.count == 2 { 0 } else { m.count }, ..*m }).collect();
    backward("backward, channels without values", Some(&p.gamma[..]), Statistics::Batch(&some));
    backward("backward, frozen", Some(&p.gamma[..]), frozen);
    backward("backward, frozen, no gamma", None, frozen);
    all
}

/// That results of several channels, arrays of them or tensors in NCHW, have the bits of the channels alone.
fn compare(alone: &[Vec<(&str, Vec<u64>)>], all: &[(&str, Vec<u64>)], problem: &str) {
    let channels = alone.len();
    for (n, (what, group)) in all.iter().enumerate() {
        let array = group.len() == channels;
        for (i, bits) in group.iter().enumerate() {
            let (c, of) =
                if array { (i, 0) } else { (i / SPATIAL % channels, i / (channels * SPATIAL) * SPATIAL + i % SPATIAL) };
            assert_eq!(alone[c][n].1[of], *bits, "{what}: result {n}, channel {c} of {channels}, {problem}");
        }
    }
}

fn groups<T: Number + Param + Element<Param = T>>() {
    for seed in 0..60 {
        for (rare, channels) in [(0, 16), (60, 29), (12, 43), (2, 8), (0, 64), (30, 48), (2, 64), (200, 139)] {
            let p = problem::<T>(channels, rare, 1 + 7 * seed + rare as u64);
            let alone: Vec<_> = (0..channels).map(|c| results(&p.alone(c), Layout::Nchw, Isa::PORTABLE)).collect();
            for (isa, layout) in Isa::available().flat_map(|isa| [(isa, Layout::Nchw), (isa, Layout::Nhwc)]) {
                compare(&alone, &results(&p, layout, isa), &format!("seed {seed}, {layout:?}, {isa:?}"));
            }
        }
    }
}

#[test]
fn groups_of_f32_are_the_channels_one_by_one() {
    groups::<f32>();
}

#[test]
fn groups_of_f64_are_the_channels_one_by_one() {
    groups::<f64>();
}

/// dx, dgamma and dbeta of one call, which makes the sums itself, in NCHW.
fn whole<T: Number + Param + Element<Param = T>>(p: &Problem<T>, isa: Isa) -> Vec<(&'static str, Vec<u64>)> {
    let shape = Shape::nchw(BATCH, p.channels, &[SPATIAL]).unwrap();
    let bn = BatchNorm::<T>::new(shape, p.epsilon).unwrap().with_isa(isa);
    let words = if p.channels > 64 { bn.workspace_min(Op::Backward) } else { bn.workspace_best(Op::Backward, 1) };
    let (mut workspace, mut all) = (vec![0; words], vec![]);
    let moments: Vec<_> = p.moments.iter().map(|m| Moments { count: (BATCH * SPATIAL) as u64, ..*m }).collect();
    let (mean, var) = (&p.mean[..], &p.var[..]);
    for (what, statistics) in [
        ("batch", Statistics::Batch(&moments)),
        ("rounded", Statistics::Rounded { mean, var }),
        ("running", Statistics::Running { mean, var }),
    ] {
        let (mut dx, mut dgamma, mut dbeta) = (p.x.clone(), p.gamma.clone(), p.beta.clone());
        let output = Gradients {
            dx: Some((&mut dx[..]).into()),
            dgamma: Some(&mut dgamma),
            dbeta: Some(&mut dbeta),
            ..Gradients::default()
        };
        let input = BackwardInput { x: &p.x, y: None, dy: &p.dy, gamma: Some(&p.gamma), statistics };
        bn.backward(input, output, Run::serial(&mut workspace)).unwrap();
        all.extend([dx, dgamma, dbeta].map(|of| (what, of.into_iter().map(number_bits).collect())));
    }
    all
}

/// The same of sums that a call makes and keeps: of ordinary numbers, of zeros without a sign and with one, and of what is not finite.
fn sums<T: Number + Param + Element<Param = T>>() {
    for seed in 0..60 {
        for (rare, channels) in [(0, 16), (60, 29), (12, 43), (0, 64), (200, 139)] {
            let mut p = problem::<T>(channels, rare, 3 + 7 * seed + rare as u64);
            let mut r = Random(seed);
            for plane in p.dy.chunks_mut(SPATIAL) {
                match r.below(8) {
                    0 => plane.fill(T::of(-0.0)),
                    1 => plane[r.below(SPATIAL)] = T::of(SPECIAL[r.below(SPECIAL.len())]),
                    _ => {}
                }
            }
            let alone: Vec<_> = (0..channels).map(|c| whole(&p.alone(c), Isa::PORTABLE)).collect();
            for isa in Isa::available() {
                compare(&alone, &whole(&p, isa), &format!("seed {seed}, {isa:?}"));
            }
        }
    }
}

#[test]
fn sums_of_groups_of_f32_are_those_of_channels_one_by_one() {
    sums::<f32>();
}

#[test]
fn sums_of_groups_of_f64_are_those_of_channels_one_by_one() {
    sums::<f64>();
}
