//! No byte beside a slice is read or written: each operand, and the workspace, lies against an unmapped page,
//! once with its first byte and once with its last one. The bits are those of slices that do not.
#![cfg(unix)]

mod common;
// Not in `common`: nothing else asks the system for pages.
#[path = "common/guard.rs"]
mod pages;

use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Executor, GradSums, Gradients, Isa, Layout, Moments, Op, Prepared,
    Run, Serial, Shape, Statistics, Stride, Strides, raw,
};
use common::{Number, Random, Turns, number_bits, place, places, stride};
use pages::{At, Guarded, Runs};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

/// Dense operands.
struct Problem<T: Number> {
    shape: Shape,
    activation: Activation,
    x: Vec<T>,
    dy: Vec<T>,
    residual: Option<Vec<T>>,
    gamma: Option<Vec<T::Param>>,
    beta: Option<Vec<T::Param>>,
}

/// Channels that take every path: the fast one; one whose sums have to be done again; a constant one; one
/// whose constants, or results, are beyond the range; one with an infinite element.
fn tensor<T: Number>(shape: Shape, r: &mut Random) -> Vec<T> {
    let mut out = vec![T::of(0.0); shape.len()];
    for c in 0..shape.channels() {
        let kind = r.below(8);
        for i in places(shape, c) {
            let v = r.uniform() - 0.5;
            out[i] = T::of(match kind {
                0 => 1000.0 + v / 1000.0,
                1 => 7.0,
                2 => v * 3e38,
                3 if r.below(9) == 0 => f64::INFINITY,
                _ => v,
            });
        }
    }
    out
}

/// Every second problem has gamma, beta and a residual; activations take turns.
fn problem<T: Number>(shape: Shape, seed: u64) -> Problem<T> {
    let mut r = Random(seed);
    let activations = [Activation::Identity, Activation::LeakyRelu { slope: 0.25 }, Activation::Relu];
    let params = |from: f32| (0..shape.channels()).map(|c| (from + (c % 5) as f32).into()).collect();
    let extras = r.below(2) == 0;
    Problem {
        shape,
        activation: activations[r.below(3)],
        x: tensor(shape, &mut r),
        dy: tensor(shape, &mut r),
        residual: extras.then(|| tensor(shape, &mut r)),
        gamma: extras.then(|| params(0.5)),
        beta: extras.then(|| params(-2.0)),
    }
}

/// Results by name, with all NaN alike.
#[derive(Default)]
struct Results(Vec<(&'static str, Vec<u64>)>);

impl Results {
    fn add<T: Copy + Into<f64>>(&mut self, name: &'static str, values: &[T]) {
        self.0.push((name, values.iter().map(|&v| number_bits(v)).collect()));
    }
    fn moments(&mut self, name: &'static str, moments: &[Moments]) {
        let flat: Vec<f64> = moments.iter().flat_map(|m| [m.count as f64, m.mean, m.m2]).collect();
        self.add(name, &flat);
    }
    #[track_caller]
    fn same(&self, other: &Results, what: &dyn core::fmt::Debug, at: At) {
        for ((name, a), (_, b)) in self.0.iter().zip(&other.0) {
            let differs = (0..a.len()).find(|&i| a[i] != b[i]);
            let values = differs.map(|i| (i, f64::from_bits(a[i]), f64::from_bits(b[i])));
            assert_eq!(values, None, "{name} has other bits at {at:?}: {what:?}");
        }
        assert_eq!(self.0.len(), other.0.len());
    }
}

/// What is in strided tensors between the runs, and in outputs to begin with.
const GAP: f64 = 12345.0;

fn spread<T: Number>(shape: Shape, s: Stride, dense: &[T]) -> Vec<T> {
    let mut out = vec![T::of(GAP); shape.len().checked_sub(1).map_or(0, |last| place(shape, s, last) + 1)];
    dense.iter().enumerate().for_each(|(i, &v)| out[place(shape, s, i)] = v);
    out
}

/// Every operation on slices, each at such a place.
fn all<T: Number>(p: &Problem<T>, bn: &BatchNorm<T>, at: At, executor: &dyn Executor, least: bool) -> Results {
    let (shape, strides) = (p.shape, bn.strides());
    let channels = shape.channels();
    let blank = vec![T::of(GAP); shape.len()];
    let tensor = |s: Stride, dense: &[T]| Guarded::new(at, &spread(shape, s, dense));
    let per_channel = || Guarded::new(at, &vec![T::Param::from(GAP as f32); channels]);
    let words = |op: Op| {
        let n = if least { bn.workspace_min(op) } else { bn.workspace_best(op, executor.width()) };
        Guarded::new(at, &vec![u64::MAX; n])
    };
    let mut out = Results::default();

    let x = tensor(strides.x, &p.x);
    let residual = p.residual.as_ref().map(|r| tensor(strides.residual, r));
    let gamma = p.gamma.as_ref().map(|g| Guarded::new(at, g));
    let beta = p.beta.as_ref().map(|b| Guarded::new(at, b));
    let affine = Affine { gamma: gamma.as_deref(), beta: beta.as_deref() };
    let residual = residual.as_deref();

    // Training, in one call and in stages.
    let mut y = tensor(strides.y, &blank);
    let mut moments = Guarded::new(at, &vec![Moments::EMPTY; channels]);
    let mut ws = words(Op::ForwardTraining);
    let run = Run::on(executor, &mut ws);
    bn.forward_training(&x, residual, affine, &mut y[..], &mut moments, run).unwrap();
    out.add("y", &y);
    out.moments("moments", &moments);
    if strides.x == strides.y {
        let (mut over, mut again) = (tensor(strides.x, &p.x), Guarded::new(at, &moments));
        let run = Run::on(executor, &mut ws);
        bn.forward_training_in_place(&mut over, residual, affine, &mut again, run).unwrap();
        out.add("y in place", &over);
        out.moments("moments in place", &again);
    }
    let mut twice = Guarded::new(at, &moments);
    bn.moments(&x, &mut twice, Run::on(executor, &mut ws)).unwrap();
    out.moments("moments twice", &twice);
    let mut staged = tensor(strides.y, &blank);
    bn.normalize(&x, residual, affine, &twice, &mut staged[..], Run::on(executor, &mut ws)).unwrap();
    out.add("y by stages", &staged);

    // Inference.
    let (mut mean, mut var) = (per_channel(), per_channel());
    for c in 0..channels {
        (mean[c], var[c]) = ((c as f32 - 1.0).into(), (0.25 + c as f32).into());
    }
    let mut ws = words(Op::Inference);
    let mut from = tensor(strides.y, &blank);
    let run = Run::on(executor, &mut ws);
    bn.inference(&x, residual, affine, &mean, &var, &mut from[..], run).unwrap();
    out.add("inference", &from);
    let mut prepared = Guarded::new(at, &vec![Prepared::default(); channels]);
    bn.prepare(affine, &mean, &var, &mut prepared).unwrap();
    let mut from = tensor(strides.y, &blank);
    bn.apply(&x, residual, &prepared, &mut from[..], Run::on(executor, &mut ws)).unwrap();
    out.add("apply", &from);
    if strides.x == strides.y {
        let mut over = tensor(strides.x, &p.x);
        let run = Run::on(executor, &mut ws);
        bn.inference_in_place(&mut over, residual, affine, &mean, &var, run).unwrap();
        out.add("inference in place", &over);
        let mut over = tensor(strides.x, &p.x);
        bn.apply_in_place(&mut over, residual, &prepared, Run::on(executor, &mut ws)).unwrap();
        out.add("apply in place", &over);
    }

    // Gradients: all of them, over dy, alone, and in stages.
    let mut ws = words(Op::Backward);
    let dy = tensor(strides.dy, &p.dy);
    for statistics in [
        Statistics::Batch(&moments),
        Statistics::Rounded { mean: &mean, var: &var },
        Statistics::Running { mean: &mean, var: &var },
    ] {
        let y = (p.activation != Activation::Identity).then_some(&y[..]);
        let input = BackwardInput { x: &x, y, dy: &dy, gamma: gamma.as_deref(), statistics };
        let (mut dx, mut dresidual) = (tensor(strides.dx, &blank), tensor(strides.dresidual, &blank));
        let (mut dgamma, mut dbeta) = (per_channel(), per_channel());
        let gradients = Gradients {
            dx: Some((&mut dx[..]).into()),
            dresidual: Some((&mut dresidual[..]).into()),
            dgamma: Some(&mut dgamma),
            dbeta: Some(&mut dbeta),
        };
        bn.backward(input, gradients, Run::on(executor, &mut ws)).unwrap();
        out.add("dx", &dx);
        out.add("dresidual", &dresidual);
        out.add("dgamma", &dgamma);
        out.add("dbeta", &dbeta);

        let mut dx = tensor(strides.dx, &blank);
        let gradients = Gradients { dx: Some((&mut dx[..]).into()), ..Gradients::default() };
        bn.backward(input, gradients, Run::on(executor, &mut ws)).unwrap();
        out.add("dx alone", &dx);
        let mut dresidual = tensor(strides.dresidual, &blank);
        let gradients = Gradients { dresidual: Some((&mut dresidual[..]).into()), ..Gradients::default() };
        bn.backward(input, gradients, Run::on(executor, &mut ws)).unwrap();
        out.add("dresidual alone", &dresidual);
        if strides.dy == strides.dx {
            let mut over = tensor(strides.dy, &p.dy);
            let input = BackwardInput { dy: &[], ..input };
            let run = Run::on(executor, &mut ws);
            bn.backward_in_place(&mut over, input, Gradients::default(), run).unwrap();
            out.add("dx in place", &over);
        }

        let mut sums = Guarded::new(at, &vec![GradSums::default(); channels]);
        bn.backward_sums(input, &mut sums, Run::on(executor, &mut ws)).unwrap();
        let flat: Vec<f64> = sums.iter().flat_map(|s| [s.dbeta, s.dot]).collect();
        out.add("sums", &flat);
        let mut dx = tensor(strides.dx, &blank);
        let gradients = Gradients { dx: Some((&mut dx[..]).into()), ..Gradients::default() };
        bn.backward_apply(input, &sums, gradients, Run::on(executor, &mut ws)).unwrap();
        out.add("dx by stages", &dx);
    }
    if p.activation != Activation::Relu {
        let mut dx = tensor(strides.dx, &blank);
        let gradients = Gradients { dx: Some((&mut dx[..]).into()), ..Gradients::default() };
        let run = Run::on(executor, &mut ws);
        bn.backward_from_output(&y, &dy, affine, &moments, gradients, run).unwrap();
        out.add("dx from y", &dx);
        if strides.dy == strides.dx {
            let mut over = tensor(strides.dy, &p.dy);
            let run = Run::on(executor, &mut ws);
            bn.backward_from_output_in_place(&y, &mut over, affine, &moments, Gradients::default(), run).unwrap();
            out.add("dx in place from y", &over);
        }
    }
    out
}

fn plan<T: Number>(p: &Problem<T>, isa: Isa) -> BatchNorm<T> {
    let bn = BatchNorm::new(p.shape, 1e-3).unwrap().with_isa(isa).allow_one_value();
    bn.with_activation(p.activation).unwrap()
}

/// Every operation at both places, on every ISA.
#[track_caller]
fn check<T: Number>(shape: Shape, strides: Strides, executor: &dyn Executor, seed: u64) {
    let p = problem::<T>(shape, seed);
    for isa in Isa::available() {
        let bn = plan(&p, isa).with_strides(strides).unwrap();
        let expected = all(&p, &bn, At::Inside, executor, false);
        for (at, least) in [(At::Front, true), (At::End, false), (At::End, true)] {
            all(&p, &bn, at, executor, least).same(&expected, &bn, at);
        }
    }
}

fn dense<T: Number>(layout: Layout, n: usize, c: usize, s: usize) {
    let shape = Shape::new(layout, n, c, &[s]).unwrap();
    let executor: &dyn Executor = if shape.len() < 1 << 17 { &Serial } else { &Turns(4) };
    check::<T>(shape, Strides::DENSE, executor, (n * 1_000_003 + c * 1009 + s) as u64);
}

/// Around lanes (8 of f64, 16 of f32), and two, three and four of them and of eight.
const SIZES: [usize; 19] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 48, 49, 63, 64, 65, 127, 128, 129];

#[test]
fn planes() {
    for s in SIZES {
        for (n, c) in [(1, 1), (2, 2), (5, 3)] {
            every_type!(dense(Layout::Nchw, n, c, s));
        }
    }
}

#[test]
fn rows() {
    for c in SIZES {
        for (n, s) in [(1, 1), (3, 1), (2, 9), (17, 4)] {
            every_type!(dense(Layout::Nhwc, n, c, s));
        }
    }
}

/// Planes of less than a vector, which are rows; and tensors without elements.
#[test]
fn small_planes_and_none() {
    for s in [2, 3, 7, 15] {
        for (n, c) in [(1, 1), (3, 5), (9, 16), (64, 33)] {
            every_type!(dense(Layout::Nchw, n, c, s));
        }
    }
    fn none<T: Number>(shape: Shape, isa: Isa) {
        for at in [At::Front, At::End] {
            let bn = BatchNorm::<T>::new(shape, 1e-3).unwrap().with_isa(isa);
            let x: Guarded<T> = Guarded::new(at, &[]);
            let (mut y, mut m) =
                (Guarded::<T>::new(at, &[]), Guarded::new(at, &vec![Moments::EMPTY; shape.channels()]));
            let mut ws = Guarded::new(at, &vec![u64::MAX; bn.workspace_min(Op::ForwardTraining)]);
            bn.moments(&x, &mut m, Run::serial(&mut ws)).unwrap();
            assert!(m.iter().all(|m| *m == Moments::EMPTY));
            let (mean, var) = (vec![0.0f32.into(); shape.channels()], vec![1.0f32.into(); shape.channels()]);
            bn.inference(&x, None, Affine::NONE, &mean, &var, &mut y[..], Run::serial(&mut ws)).unwrap();
        }
    }
    for layout in [Layout::Nchw, Layout::Nhwc] {
        for (n, c, s) in [(0, 3, 5), (4, 17, 0)] {
            let shape = Shape::new(layout, n, c, &[s]).unwrap();
            Isa::available().for_each(|isa| {
                every_type!(none(shape, isa));
            });
        }
    }
}

/// Several blocks and cells, cells of several tickets.
#[test]
fn many_blocks() {
    for (n, c, s) in [(3, 2, 1025), (1, 1, 4099), (257, 2, 17), (5, 3, 4097), (17, 33, 65), (2, 3, 22_003)] {
        every_type!(dense(Layout::Nchw, n, c, s));
    }
    for (n, c, s) in [(257, 3, 1), (65, 17, 4), (1031, 33, 1), (300, 129, 1), (1031, 130, 1)] {
        every_type!(dense(Layout::Nhwc, n, c, s));
    }
}

/// Outputs of 16 MB and more, which are stored past the caches, in whole lines.
#[test]
fn streams() {
    fn stream<T: Number>(layout: Layout, c: usize, s: usize) {
        let shape = Shape::new(layout, (16 << 20) / size_of::<T>() / (c * s) + 1, c, &[s]).unwrap();
        let x: Vec<T> = (0..shape.len()).map(|i| T::of((i % 61) as f64)).collect();
        let (mean, var) = (vec![30.0f32.into(); c], vec![4.0f32.into(); c]);
        for isa in Isa::available() {
            let bn = BatchNorm::<T>::new(shape, 1e-3).unwrap().with_isa(isa);
            let [inside, front, end] = [At::Inside, At::Front, At::End].map(|at| {
                let (x, mut y) = (Guarded::new(at, &x), Guarded::new(at, &x));
                let mut ws = Guarded::new(at, &vec![u64::MAX; bn.workspace_best(Op::Inference, 1)]);
                bn.inference(&x, None, Affine::NONE, &mean, &var, &mut y[..], Run::serial(&mut ws)).unwrap();
                y
            });
            let same = |v: &[T]| bytemuck::cast_slice::<T, u8>(v) == bytemuck::cast_slice::<T, u8>(&inside);
            assert!(same(&front) && same(&end), "{bn:?}: other bits");
        }
    }
    every_type!(stream(Layout::Nchw, 3, 1023));
    every_type!(stream(Layout::Nhwc, 67, 9));
}

/// Parts of larger tensors: slices that end with their last element, so that the last gap is not there.
#[test]
fn strided() {
    let mut r = Random(11);
    for layout in [Layout::Nchw, Layout::Nhwc] {
        for (n, c, s) in [(1, 1, 1), (3, 1, 5), (4, 3, 1), (6, 24, 7), (7, 17, 49), (5, 2, 64), (9, 33, 4), (2, 70, 15)]
        {
            let shape = Shape::new(layout, n, c, &[s]).unwrap();
            for round in 0..6 {
                // First all operands in the same way, then each in its own.
                let same = stride(shape, round.min(4), &mut r);
                let mut next = || if round < 5 { same } else { stride(shape, r.below(5), &mut r) };
                let (x, y, residual, dy, dx, dresidual) = (next(), next(), next(), next(), next(), next());
                let strides = Strides { x, y, residual, dy, dx, dresidual };
                let seed = r.next();
                every_type!(check(shape, strides, &Serial, seed));
            }
        }
    }
}

/// Forward and backward on tensors whose runs each lie against an unmapped page; the gaps are unmapped.
fn on_runs<T: Number>(p: &Problem<T>, isa: Isa, at: At, in_place: bool) -> Results {
    let run = if p.shape.layout() == Layout::Nchw { p.shape.spatial() } else { p.shape.channels() };
    let runs = |dense: &[T]| Runs::new(at, run, dense);
    let blank = vec![T::of(GAP); p.shape.len()];
    let (x, dy, residual) = (runs(&p.x), runs(&p.dy), p.residual.as_ref().map(|r| runs(r)));
    let (y, dx, dresidual) = (runs(&blank), runs(&blank), runs(&blank));
    let stride = Stride { batch: 0, inner: x.step };
    let all = Strides { x: stride, y: stride, residual: stride, dy: stride, dx: stride, dresidual: stride };
    let bn = plan(p, isa).with_strides(all).unwrap();
    let words = |op| Guarded::new(at, &vec![u64::MAX; bn.workspace_min(op)]);
    let affine = Affine { gamma: p.gamma.as_deref(), beta: p.beta.as_deref() };
    let y = if in_place { &x } else { &y };
    let dx = if in_place { &dy } else { &dx };
    let mut out = Results::default();

    let (mean, var) = (vec![T::Param::from(1.0); p.shape.channels()], vec![T::Param::from(2.0); p.shape.channels()]);
    let mut moments = Guarded::new(at, &vec![Moments::EMPTY; p.shape.channels()]);
    let forward = raw::Forward { x: x.first, residual: residual.as_ref().map(|r| r.first.cast_const()), y: y.first };
    let mut ws = words(Op::ForwardTraining);
    // SAFETY: every run is there; y is x or apart from it.
    unsafe { raw::forward_training(&bn, forward, affine, &mut moments, Run::serial(&mut ws)) }.unwrap();
    out.add("y", &y.values());
    out.moments("moments", &moments);
    for statistics in [Statistics::Batch(&moments), Statistics::Running { mean: &mean, var: &var }] {
        let from = raw::Backward { x: x.first, y: Some(y.first), dy: dy.first, gamma: p.gamma.as_deref(), statistics };
        let mut ws = words(Op::Backward);
        // SAFETY: every run is there; dx is dy or apart from it.
        unsafe {
            let gradients = Gradients {
                dx: Some(raw::output(dx.first, dx.span())),
                dresidual: Some(raw::output(dresidual.first, dresidual.span())),
                ..Gradients::default()
            };
            raw::backward(&bn, from, gradients, Run::serial(&mut ws)).unwrap();
        }
        out.add("dx", &dx.values());
        out.add("dresidual", &dresidual.values());
    }
    let mut ws = words(Op::Inference);
    // SAFETY: as above.
    unsafe { raw::inference(&bn, forward, affine, &mean, &var, Run::serial(&mut ws)) }.unwrap();
    out.add("inference", &y.values());
    out
}

#[test]
fn every_run() {
    fn check<T: Number>(shape: Shape) {
        let p = problem::<T>(shape, shape.len() as u64);
        for isa in Isa::available() {
            for in_place in [false, true] {
                let inside = on_runs(&p, isa, At::Inside, in_place);
                for at in [At::Front, At::End] {
                    on_runs(&p, isa, at, in_place).same(&inside, &(shape, isa), at);
                }
            }
        }
    }
    for size in SIZES {
        for (images, other) in [(1, 3), (5, 2)] {
            let planes = Shape::nchw(images, other, &[size]).unwrap();
            let rows = Shape::nhwc(images, size, &[other]).unwrap();
            every_type!(check(planes));
            every_type!(check(rows));
        }
    }
    // Runs of whole pages, and one element more or less.
    for size in [1023, 1024, 1025, 4096] {
        every_type!(check(Shape::nchw(2, 2, &[size]).unwrap()));
        every_type!(check(Shape::nhwc(2, size, &[2]).unwrap()));
    }
}

/// What a process of its own does for [`trespasses_fault`], as `BN_TRESPASS` says; without it, what is allowed.
#[test]
#[ignore = "run by trespasses_fault"]
fn trespass() {
    const N: usize = 23;
    let way = std::env::var("BN_TRESPASS").unwrap_or_default();
    let mut words = way.split(' ');
    let (what, at) = (words.next().unwrap(), words.next().unwrap_or("end"));
    let at = if at == "front" { At::Front } else { At::End };
    let outside: isize = if what.is_empty() || what == "inside" {
        0
    } else if at == At::Front {
        -1
    } else {
        1
    };
    let edge = if at == At::Front { 0 } else { N as isize - 1 };
    let short = Guarded::new(at, &[1.5f32; N]);
    let long = Guarded::new(At::Inside, &[1.5f32; N + 1]);
    // From one element before the slice where that is the unmapped one.
    let short = short.as_ptr().cast_mut().wrapping_offset(outside.min(0));
    let long = long.as_ptr().cast_mut();
    // SAFETY: there is none where it is to fault.
    unsafe {
        match what {
            "read" => _ = short.wrapping_offset(edge + outside.max(0)).read_volatile(),
            "write" => short.wrapping_offset(edge + outside.max(0)).write_volatile(0.0),
            "gap" => {
                let runs = Runs::new(at, N, &[1.5f32; 2 * N]);
                _ = runs.first.wrapping_offset(edge + outside).read_volatile();
            }
            // The library, with a plan for one element more than the slice has.
            operand => {
                let isa = words.next().map_or(Isa::PORTABLE, |name| Isa::by_name(name).unwrap());
                let n = N + outside.unsigned_abs();
                let bn = BatchNorm::<f32>::new(Shape::nchw(1, 1, &[n]).unwrap(), 1e-3).unwrap().with_isa(isa);
                let of = |name: &str| if operand == name || outside == 0 { short } else { long };
                let forward = raw::Forward { x: of("x"), residual: Some(of("residual").cast_const()), y: of("y") };
                let mut ws = vec![0; bn.workspace_min(Op::Inference)];
                raw::inference(&bn, forward, Affine::NONE, &[0.0], &[1.0], Run::serial(&mut ws)).unwrap();
            }
        }
    }
}

/// The harness catches: reads and writes of one element outside, by hand and by the library.
#[test]
fn trespasses_fault() {
    let signal = |way: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "trespass", "--ignored", "--test-threads=1"]).env("BN_TRESPASS", way);
        // The address sanitizer would report the fault in its own way.
        let output = command.env("ASAN_OPTIONS", "handle_segv=0:handle_sigbus=0").output().unwrap();
        assert!(output.status.success() || output.status.signal().is_some(), "{way}: {output:?}");
        output.status.signal()
    };
    for at in ["front", "end"] {
        for isa in Isa::available().map(|isa| isa.kind().name()) {
            assert_eq!(signal(&format!("inside {at} {isa}")), None);
            for what in ["x", "residual", "y"] {
                let got = signal(&format!("{what} {at} {isa}"));
                assert!(matches!(got, Some(libc::SIGSEGV | libc::SIGBUS)), "{what} at the {at}, {isa}: {got:?}");
            }
        }
        for what in ["read", "write", "gap"] {
            let got = signal(&format!("{what} {at}"));
            assert!(matches!(got, Some(libc::SIGSEGV | libc::SIGBUS)), "{what} at the {at}: {got:?}");
        }
    }
}
