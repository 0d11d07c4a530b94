//! Every error, provoked: the variant, its fields, its text, and that nothing has been written; and
//! next to each border, that what is on the good side of it works.

mod common;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, Executor, GradSums, Gradients, Isa, IsaKind, Layout, Moments,
    Momentum, Op, Output, Prepared, Run, RunningStats, Serial, Shape, Statistics, Variance, merge_moments,
};
use common::problem::{Problem, Real, moment_bits, random, with_workspace};
use common::{Threads, places};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What outputs hold before a call: no result of these tests.
const SENTINEL: f32 = -77.25;

/// Every operand of every method. Comparing all of it before and after tells whether anything has
/// been written.
#[derive(Clone, Debug, PartialEq)]
struct Operands {
    x: Vec<f32>,
    y: Vec<f32>,
    residual: Vec<f32>,
    dy: Vec<f32>,
    dx: Vec<f32>,
    dresidual: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    var: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    moments: Vec<Moments>,
    sums: Vec<GradSums>,
    prepared: Vec<Prepared<f32>>,
    workspace: Vec<u64>,
    /// How many words of the workspace a call is given, from its start.
    words: usize,
}

impl Operands {
    fn new(bn: &BatchNorm<f32>) -> Self {
        let (n, c) = (bn.shape().len(), bn.shape().channels());
        let wave = |len: usize, step: f32| (0..len).map(|i| (i as f32 * step).sin() + 1.5).collect::<Vec<_>>();
        Operands {
            x: wave(n, 0.7),
            y: vec![SENTINEL; n],
            residual: wave(n, 0.3),
            dy: wave(n, 1.1),
            dx: vec![SENTINEL; n],
            dresidual: vec![SENTINEL; n],
            gamma: wave(c, 0.5),
            beta: wave(c, 0.6),
            mean: wave(c, 0.2),
            var: wave(c, 0.1),
            dgamma: vec![SENTINEL; c],
            dbeta: vec![SENTINEL; c],
            moments: vec![Moments { count: bn.shape().values_per_channel(), mean: 1.25, m2: 3.5 }; c],
            sums: vec![GradSums { dbeta: -77.25, dot: 99.5 }; c],
            prepared: vec![Prepared { mean: 1.0, scale: 2.0, shift: 3.0 }; c],
            workspace: vec![],
            words: 0,
        }
        .with_words(bn.workspace_best(Op::ForwardTraining, 1).max(bn.workspace_best(Op::Backward, 1)))
    }
}

/// What the workspace holds before a call: NaN as f32 and as f64.
const GARBAGE: u64 = 0xfff4_dead_fff4_beef;

impl Operands {
    /// With a workspace of so many words, and more behind them that no call may touch.
    fn with_words(mut self, words: usize) -> Self {
        self.workspace = vec![GARBAGE; words + 64];
        self.words = words;
        self
    }
    /// Whether this is the same, whatever the calls have made of their workspaces.
    fn same_but_workspace(&self, other: &Self) -> bool {
        let without = |o: &Self| o.clone().with_words(0);
        assert!(self.workspace[self.words..].iter().all(|&w| w == GARBAGE), "written behind the workspace");
        without(self) == without(other)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Arg {
    X,
    Y,
    Residual,
    Dy,
    Dx,
    Dresidual,
    Gamma,
    Beta,
    Mean,
    Var,
    Dgamma,
    Dbeta,
    Moments,
    Sums,
    Prepared,
}

impl Arg {
    /// Whether it has an entry per element rather than per channel.
    fn is_tensor(self) -> bool {
        use Arg::*;
        matches!(self, X | Y | Residual | Dy | Dx | Dresidual)
    }
    fn resize(self, o: &mut Operands, len: usize) {
        let floats = match self {
            Arg::X => &mut o.x,
            Arg::Y => &mut o.y,
            Arg::Residual => &mut o.residual,
            Arg::Dy => &mut o.dy,
            Arg::Dx => &mut o.dx,
            Arg::Dresidual => &mut o.dresidual,
            Arg::Gamma => &mut o.gamma,
            Arg::Beta => &mut o.beta,
            Arg::Mean => &mut o.mean,
            Arg::Var => &mut o.var,
            Arg::Dgamma => &mut o.dgamma,
            Arg::Dbeta => &mut o.dbeta,
            Arg::Moments => return o.moments.resize(len, Moments::EMPTY),
            Arg::Sums => return o.sums.resize(len, GradSums::default()),
            Arg::Prepared => return o.prepared.resize(len, Prepared::default()),
        };
        floats.resize(len, SENTINEL);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Method {
    ForwardTraining,
    ForwardTrainingInPlace,
    Moments,
    Normalize,
    Inference,
    InferenceInPlace,
    Prepare,
    Apply,
    ApplyInPlace,
    Backward,
    BackwardRounded,
    BackwardRunning,
    BackwardInPlace,
    BackwardSums,
    BackwardApply,
}

const METHODS: [Method; 15] = [
    Method::ForwardTraining,
    Method::ForwardTrainingInPlace,
    Method::Moments,
    Method::Normalize,
    Method::Inference,
    Method::InferenceInPlace,
    Method::Prepare,
    Method::Apply,
    Method::ApplyInPlace,
    Method::Backward,
    Method::BackwardRounded,
    Method::BackwardRunning,
    Method::BackwardInPlace,
    Method::BackwardSums,
    Method::BackwardApply,
];

impl Method {
    /// Its slices, and what errors call them.
    fn args(self) -> Vec<(Arg, &'static str)> {
        use Arg::*;
        let affine = [(Gamma, "gamma"), (Beta, "beta")];
        let running = [(Mean, "running_mean"), (Var, "running_var")];
        let (x, residual) = ((X, "x"), (Residual, "residual"));
        let given = [x, (Y, "y"), (Gamma, "gamma")];
        let made = [(Dresidual, "dresidual"), (Dgamma, "dgamma"), (Dbeta, "dbeta")];
        let rounded = [(Mean, "mean"), (Var, "var")];
        let (moments, dy, dx) = ((Moments, "moments"), (Dy, "dy"), (Dx, "dx"));
        match self {
            Method::ForwardTraining | Method::Normalize => [&[x, residual, (Y, "y"), moments], &affine[..]].concat(),
            Method::ForwardTrainingInPlace => [&[x, residual, moments], &affine[..]].concat(),
            Method::Moments => vec![x, moments],
            Method::Inference => [&[x, residual, (Y, "y")], &affine[..], &running].concat(),
            Method::InferenceInPlace => [&[x, residual], &affine[..], &running].concat(),
            Method::Prepare => [&[(Prepared, "prepared")], &affine[..], &running].concat(),
            Method::Apply => vec![x, residual, (Y, "y"), (Prepared, "prepared")],
            Method::ApplyInPlace => vec![x, residual, (Prepared, "prepared")],
            Method::Backward => [&given[..], &made, &[dy, dx, moments]].concat(),
            Method::BackwardRounded | Method::BackwardRunning => [&given[..], &made, &[dy, dx], &rounded].concat(),
            Method::BackwardInPlace => [&given[..], &made, &[dy, moments]].concat(),
            Method::BackwardSums => [&given[..], &[dy, moments, (Sums, "sums")]].concat(),
            Method::BackwardApply => [&given[..], &made, &[dy, dx, moments, (Sums, "sums")]].concat(),
        }
    }

    fn op(self) -> Option<Op> {
        match self {
            Method::ForwardTraining | Method::ForwardTrainingInPlace | Method::Moments | Method::Normalize => {
                Some(Op::ForwardTraining)
            }
            Method::Inference | Method::InferenceInPlace | Method::Apply | Method::ApplyInPlace => Some(Op::Inference),
            Method::Prepare => None,
            _ => Some(Op::Backward),
        }
    }

    fn call(self, bn: &BatchNorm<f32>, o: &mut Operands) -> Result<(), Error> {
        self.call_on(bn, o, &Serial, false)
    }

    /// The call; without y, if so wanted, where it is an input.
    fn call_on(
        self,
        bn: &BatchNorm<f32>,
        o: &mut Operands,
        executor: &dyn Executor,
        without_y: bool,
    ) -> Result<(), Error> {
        let residual = Some(&o.residual[..]);
        let affine = Affine::new(&o.gamma, &o.beta);
        let run = Run::on(executor, &mut o.workspace[..o.words]);
        let statistics = match self {
            Method::BackwardRounded => Statistics::Rounded { mean: &o.mean, var: &o.var },
            Method::BackwardRunning => Statistics::Running { mean: &o.mean, var: &o.var },
            _ => Statistics::Batch(&o.moments),
        };
        let y = (!without_y).then_some(&o.y[..]);
        let input = |dy| BackwardInput { x: &o.x, y, dy, gamma: Some(&o.gamma), statistics };
        let output = Gradients {
            dx: Some((&mut o.dx[..]).into()),
            dresidual: Some((&mut o.dresidual[..]).into()),
            dgamma: Some(&mut o.dgamma),
            dbeta: Some(&mut o.dbeta),
        };
        match self {
            Method::ForwardTraining => bn.forward_training(&o.x, residual, affine, &mut o.y[..], &mut o.moments, run),
            Method::ForwardTrainingInPlace => {
                bn.forward_training_in_place(&mut o.x, residual, affine, &mut o.moments, run)
            }
            Method::Moments => bn.moments(&o.x, &mut o.moments, run),
            Method::Normalize => bn.normalize(&o.x, residual, affine, &o.moments, &mut o.y[..], run),
            Method::Inference => bn.inference(&o.x, residual, affine, &o.mean, &o.var, &mut o.y[..], run),
            Method::InferenceInPlace => bn.inference_in_place(&mut o.x, residual, affine, &o.mean, &o.var, run),
            Method::Prepare => bn.prepare(affine, &o.mean, &o.var, &mut o.prepared),
            Method::Apply => bn.apply(&o.x, residual, &o.prepared, &mut o.y[..], run),
            Method::ApplyInPlace => bn.apply_in_place(&mut o.x, residual, &o.prepared, run),
            Method::Backward | Method::BackwardRounded | Method::BackwardRunning => {
                bn.backward(input(&o.dy), output, run)
            }
            Method::BackwardInPlace => {
                bn.backward_in_place(&mut o.dy, input(&[]), Gradients { dx: None, ..output }, run)
            }
            Method::BackwardSums => bn.backward_sums(input(&o.dy), &mut o.sums, run),
            Method::BackwardApply => bn.backward_apply(input(&o.dy), &o.sums, output, run),
        }
    }

    /// The call fails like this, and leaves everything as it was.
    #[track_caller]
    fn refuses(self, bn: &BatchNorm<f32>, o: &Operands, expected: Error) {
        let mut after = o.clone();
        assert_eq!(self.call(bn, &mut after), Err(expected), "{self:?}");
        assert!(after == *o, "{self:?} has written something before {expected:?}");
    }
}

/// Shapes of every geometry: planes, planes with an incomplete vector, small planes, rows, folded rows.
fn shapes() -> Vec<Shape> {
    vec![
        Shape::nchw(3, 5, &[16]).unwrap(),
        Shape::nchw(2, 3, &[5, 9]).unwrap(),
        Shape::nchw(9, 4, &[3]).unwrap(),
        Shape::nchw(7, 9, &[7]).unwrap(),
        Shape::nhwc(2, 37, &[3, 3]).unwrap(),
        Shape::nhwc(2, 61, &[3]).unwrap(),
        Shape::nhwc(20, 3, &[2]).unwrap(),
        Shape::dense(4, 130).unwrap(),
    ]
}

fn plan(shape: Shape) -> BatchNorm<f32> {
    BatchNorm::new(shape, 1e-5).unwrap()
}

#[test]
fn wrong_lengths() {
    let mut refused = 0;
    for shape in shapes() {
        let bn = plan(shape);
        let good = Operands::new(&bn);
        for method in METHODS {
            // With the right lengths it succeeds and writes: so the comparison can see writing.
            let mut after = good.clone();
            assert_eq!(method.call(&bn, &mut after), Ok(()), "{method:?} {shape:?}");
            assert!(after != good, "{method:?} has written nothing");
            for (arg, what) in method.args() {
                let expected = if arg.is_tensor() { shape.len() } else { shape.channels() };
                for got in [0, expected - 1, expected + 1, 2 * expected] {
                    let mut o = good.clone();
                    arg.resize(&mut o, got);
                    method.refuses(&bn, &o, Error::Length { what, expected, got });
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(refused, shapes().len() * 4 * METHODS.iter().map(|m| m.args().len()).sum::<usize>());
    assert_eq!(Error::Length { what: "gamma", expected: 5, got: 4 }.to_string(), "gamma has 4 elements, expected 5");
}

#[test]
fn optional_arguments_may_be_absent() {
    let bn = plan(Shape::nchw(3, 5, &[16]).unwrap());
    let mut o = Operands::new(&bn);
    let run = Run::serial(&mut o.workspace[..o.words]);
    assert_eq!(bn.forward_training(&o.x, None, Affine::NONE, &mut o.y[..], &mut o.moments, run), Ok(()));
    let before = o.clone();
    let input = BackwardInput { x: &o.x, y: None, dy: &o.dy, gamma: None, statistics: Statistics::Batch(&o.moments) };
    // Nothing wanted is nothing written, but for the workspace.
    assert_eq!(bn.backward(input, Gradients::default(), Run::serial(&mut o.workspace[..o.words])), Ok(()));
    assert!(o.same_but_workspace(&before));
}

#[test]
fn no_channels() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        // Also where the rest would overflow, or is empty.
        for (batch, spatial) in [(2, &[3][..]), (0, &[0]), (usize::MAX, &[usize::MAX]), (1, &[])] {
            assert_eq!(Shape::new(layout, batch, 0, spatial), Err(Error::NoChannels));
        }
    }
    assert_eq!(Shape::nchw(1, 0, &[2]), Err(Error::NoChannels));
    assert_eq!(Shape::nhwc(1, 0, &[2]), Err(Error::NoChannels));
    assert_eq!(Shape::dense(1, 0), Err(Error::NoChannels));
    assert_eq!(Error::NoChannels.to_string(), "the shape has 0 channels, expected at least 1");
}

#[test]
fn shape_overflow() {
    // The number of elements that 8 bytes each still fit isize.
    let most = isize::MAX as usize / 8;
    let half = 1usize << (usize::BITS / 2);
    let overflow = Err(Error::ShapeOverflow);
    for layout in [Layout::Nchw, Layout::Nhwc] {
        let new = |batch, channels, spatial: &[usize]| Shape::new(layout, batch, channels, spatial);
        for shape in [new(most, 1, &[]), new(1, most, &[]), new(1, 1, &[most]), new(1, 1, &[1, most, 1])] {
            assert_eq!(shape.map(|s| s.len()), Ok(most));
        }
        assert_eq!(new(most + 1, 1, &[]), overflow);
        assert_eq!(new(1, most + 1, &[]), overflow);
        assert_eq!(new(1, 1, &[most + 1]), overflow);
        assert_eq!(new(usize::MAX, usize::MAX, &[usize::MAX]), overflow);
        // Products that wrap around to 0 and to a small number.
        assert_eq!(new(half, half, &[1]), overflow);
        assert_eq!(new(half + 1, half, &[half - 1, half]), overflow);
        // A zero does not hide an overflow of the others, wherever it stands.
        for dims in [[0, half, half], [half, 0, half], [half, half, 0], [0, usize::MAX, 2], [2, usize::MAX, 0]] {
            assert_eq!(new(1, 1, &dims), overflow, "{dims:?}");
            assert_eq!(new(dims[0], 3, &dims[1..]), overflow, "{dims:?}");
            assert_eq!(new(dims[2], 3, &dims[..2]), overflow, "{dims:?}");
        }
        assert_eq!(new(0, usize::MAX, &[2]), overflow);
        assert_eq!(new(usize::MAX, 2, &[0]), overflow);
        // Without an overflow it is an empty tensor.
        for shape in [new(0, 3, &[5, 7]), new(2, 3, &[0, 7]), new(2, 3, &[5, 0])] {
            let shape = shape.unwrap();
            assert_eq!((shape.len(), shape.is_empty(), shape.values_per_channel()), (0, true, 0));
        }
    }
    assert_eq!(Error::ShapeOverflow.to_string(), "batch × channels × spatial overflows the address space");
}

/// A plan of the largest legal shapes is made without a panic, and so is what it says of workspaces.
#[test]
fn largest_shapes() {
    let most = isize::MAX as usize / 8;
    let root = (most as f64).cbrt() as usize - 1;
    for layout in [Layout::Nchw, Layout::Nhwc] {
        for (batch, channels, spatial) in
            [(most, 1, 1), (1, most, 1), (1, 1, most), (root, root, root), (2, most / 6, 3)]
        {
            let bn = plan(Shape::new(layout, batch, channels, &[spatial]).unwrap());
            for op in [Op::ForwardTraining, Op::Inference, Op::Backward] {
                let min = bn.workspace_min(op);
                assert!(min > 0 && min <= 1024, "{op:?} {:?}: {min}", bn.shape());
                for width in [0, 1, 2, 64] {
                    let best = bn.workspace_best(op, width);
                    assert!(best >= min, "{op:?} {:?}: {best}, but at least {min}", bn.shape());
                }
            }
            let mut ws = vec![0; bn.workspace_min(Op::Inference)];
            let refused = bn.inference(&[], None, Affine::NONE, &[], &[], &mut [0.0f32; 0], Run::serial(&mut ws));
            assert_eq!(refused, Err(Error::Length { what: "x", expected: bn.shape().len(), got: 0 }));
        }
    }
}

/// An executor may say any width: what is best then never wraps around to less than the minimum, and
/// does not panic.
#[test]
fn workspace_of_any_width() {
    for shape in shapes() {
        let bn = plan(shape);
        for op in [Op::ForwardTraining, Op::Inference, Op::Backward] {
            let mut before = bn.workspace_min(op);
            for width in [0, 1, 2, 1 << 16, usize::MAX / 4096, usize::MAX / 2 + 1, usize::MAX] {
                let best = bn.workspace_best(op, width);
                assert!(best >= before, "{op:?} {shape:?}: {best} words for width {width}, {before} for less");
                before = best;
            }
        }
    }
}

#[test]
fn epsilon() {
    let shape = Shape::nchw(2, 3, &[4]).unwrap();
    for good in [0.0, -0.0, f64::MIN_POSITIVE, 1e-5, f64::MAX] {
        assert_eq!(BatchNorm::<f32>::new(shape, good).unwrap().epsilon(), good);
    }
    for bad in [-1e-5, -f64::MIN_POSITIVE, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(BatchNorm::<f32>::new(shape, bad).unwrap_err(), Error::Epsilon { got: bad });
        assert_eq!(BatchNorm::<f64>::new(shape, bad).unwrap_err(), Error::Epsilon { got: bad });
    }
    let Err(Error::Epsilon { got }) = BatchNorm::<f32>::new(shape, f64::NAN) else { panic!("NaN is no epsilon") };
    assert!(got.is_nan());
    assert_eq!(Error::Epsilon { got: -0.5 }.to_string(), "epsilon is -0.5, expected a finite number ≥ 0");
}

#[test]
fn momentum() {
    type Make = fn(f64) -> Result<RunningStats, Error>;
    let rules: [Make; 5] = [
        RunningStats::pytorch,
        RunningStats::keras,
        RunningStats::onnx,
        |w| RunningStats::new(Momentum::WeighNew(w), Variance::Biased),
        |w| RunningStats::new(Momentum::WeighOld(w), Variance::Unbiased),
    ];
    for make in rules {
        for good in [0.0, 0.1, 1.0] {
            let (Momentum::WeighNew(w) | Momentum::WeighOld(w)) = make(good).unwrap().momentum() else {
                panic!("another rule")
            };
            assert_eq!(w, good);
        }
        for bad in [-0.1, -f64::MIN_POSITIVE, 1.0 + f64::EPSILON, 2.0, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(make(bad), Err(Error::Momentum { got: bad }));
        }
        let Err(Error::Momentum { got }) = make(f64::NAN) else { panic!("NaN is no momentum") };
        assert!(got.is_nan());
    }
    assert_eq!(Error::Momentum { got: 1.5 }.to_string(), "momentum is 1.5, expected a number from 0 to 1");
}

#[test]
fn activation() {
    let bn = plan(Shape::nchw(2, 3, &[4]).unwrap());
    let slope = |slope| Activation::LeakyRelu { slope };
    let clamp = |lo, hi| Activation::Clamp { lo, hi };
    let infinity = f64::INFINITY;
    for good in [Activation::Identity, Activation::Relu, slope(0.0), slope(3.0), clamp(0.0, 6.0), clamp(2.0, 2.0)] {
        assert_eq!(bn.with_activation(good).unwrap().activation(), good);
    }
    // One side only is a clamp too.
    for good in [clamp(-infinity, 6.0), clamp(-1.0, infinity)] {
        assert_eq!(bn.with_activation(good).unwrap().activation(), good);
    }
    let wide = BatchNorm::<f64>::new(Shape::dense(2, 3).unwrap(), 1e-5).unwrap();
    // A slope that f32 does not hold is one of f64.
    assert!(wide.with_activation(slope(3.5e38)).is_ok() && bn.with_activation(slope(f64::from(f32::MAX))).is_ok());
    for bad in
        [slope(-0.5), slope(infinity), slope(-infinity), slope(3.5e38), clamp(1.0, -1.0), clamp(infinity, -infinity)]
    {
        assert_eq!(bn.with_activation(bad).unwrap_err(), Error::Activation { got: bad });
    }
    for bad in [slope(f64::NAN), clamp(f64::NAN, 1.0), clamp(1.0, f64::NAN), clamp(f64::NAN, f64::NAN)] {
        let Err(Error::Activation { got }) = bn.with_activation(bad) else { panic!("{bad:?} is no activation") };
        // NaN is not equal to itself; its text is.
        assert_eq!(format!("{got:?}"), format!("{bad:?}"));
    }
    assert_eq!(
        Error::Activation { got: slope(-0.5) }.to_string(),
        "activation is LeakyRelu { slope: -0.5 }, expected a finite slope ≥ 0, or lo ≤ hi"
    );
}

/// Shapes with `values` per channel, every geometry.
fn with_values(values: usize) -> Vec<Shape> {
    let mut shapes = vec![Shape::dense(values, 3).unwrap(), Shape::dense(values, 70).unwrap()];
    for (batch, spatial) in [(values, 1), (1, values), (values, 0), (0, 5)] {
        if batch * spatial == values {
            for channels in [1, 5, 40] {
                shapes.push(Shape::nchw(batch, channels, &[spatial]).unwrap());
                shapes.push(Shape::nhwc(batch, channels, &[spatial]).unwrap());
            }
        }
    }
    shapes
}

/// The one-call backward pass wants the moments of its own x; the stages take those of any.
#[test]
fn moments_of_another_count() {
    let bn = plan(Shape::nhwc(2, 3, &[4]).unwrap());
    let mut o = Operands::new(&bn);
    o.moments[1].count = 9;
    let error = Error::Count { channel: 1, expected: 8, got: 9 };
    Method::Backward.refuses(&bn, &o, error);
    Method::BackwardInPlace.refuses(&bn, &o, error);
    assert_eq!(Method::BackwardSums.call(&bn, &mut o), Ok(()));
    assert_eq!(Method::BackwardApply.call(&bn, &mut o), Ok(()));
}

#[test]
fn too_few_values() {
    for got in [0, 1] {
        for shape in with_values(got as usize) {
            let bn = plan(shape);
            let mut o = Operands::new(&bn);
            o.moments.fill(Moments { count: got, mean: 0.5, m2: 0.0 });
            let too_few = Error::TooFewValues { expected: 2, got };
            Method::ForwardTraining.refuses(&bn, &o, too_few);
            Method::ForwardTrainingInPlace.refuses(&bn, &o, too_few);
            Method::Normalize.refuses(&bn, &o, too_few);
            let bn = bn.allow_one_value();
            if got == 0 {
                let too_few = Error::TooFewValues { expected: 1, got };
                Method::ForwardTraining.refuses(&bn, &o, too_few);
                Method::ForwardTrainingInPlace.refuses(&bn, &o, too_few);
                Method::Normalize.refuses(&bn, &o, too_few);
            } else {
                assert_eq!(Method::ForwardTraining.call(&bn, &mut o.clone()), Ok(()));
            }
        }
    }
    // The poorest channel counts.
    let bn = plan(Shape::nchw(3, 5, &[4]).unwrap());
    let mut o = Operands::new(&bn);
    o.moments[3].count = 1;
    Method::Normalize.refuses(&bn, &o, Error::TooFewValues { expected: 2, got: 1 });
    o.moments[3].count = 2;
    assert_eq!(Method::Normalize.call(&bn, &mut o), Ok(()));

    for shape in with_values(2) {
        let bn = plan(shape);
        assert_eq!(Method::ForwardTraining.call(&bn, &mut Operands::new(&bn)), Ok(()));
    }
    assert_eq!(Error::TooFewValues { expected: 2, got: 1 }.to_string(), "1 values per channel, expected at least 2");
}

/// One value is its own mean: y = β, exactly, however large the value and whatever ε.
fn one_value<T: Real>() {
    for shape in with_values(1) {
        for (epsilon, size) in [(1e-5, 1.0), (0.0, 1.0), (0.0, 1e30), (1e-5, 1e-30), (1e3, 1e38)] {
            for isa in Isa::available() {
                let bn = BatchNorm::<T>::new(shape, epsilon).unwrap().allow_one_value().with_isa(isa);
                let c = shape.channels();
                let values = |step: f64, size: f64| -> Vec<T> {
                    (0..c).map(|i| T::of((i as f64 * step).cos() * size)).collect()
                };
                let (x, gamma, beta, residual) =
                    (values(0.3, size), values(0.4, 2.0), values(0.5, 2.0), values(0.6, 3.0));
                let mut moments = vec![Moments::EMPTY; c];
                let mut make = |residual: Option<&[T]>, affine| {
                    let mut y = vec![T::of(f64::NAN); c];
                    with_workspace(bn.workspace_min(Op::ForwardTraining), |ws| {
                        bn.forward_training(&x, residual, affine, &mut y[..], &mut moments, Run::serial(ws))
                    })
                    .unwrap();
                    y
                };
                assert_eq!(make(None, Affine::new(&gamma, &beta)), beta, "{shape:?} ε {epsilon} x {size}");
                assert_eq!(make(None, Affine::NONE), vec![T::default(); c]);
                let sums: Vec<T> = beta.iter().zip(&residual).map(|(&b, &r)| b + r).collect();
                assert_eq!(make(Some(&residual), Affine::new(&gamma, &beta)), sums);
                for (m, x) in moments.iter().zip(&x) {
                    assert_eq!(*m, Moments { count: 1, mean: x.wide(), m2: 0.0 });
                }
            }
        }
    }
}

#[test]
fn one_value_gives_beta() {
    one_value::<f32>();
    one_value::<f64>();
}

#[test]
fn workspace() {
    for shape in shapes() {
        let bn = plan(shape);
        for method in METHODS {
            let Some(op) = method.op() else { continue };
            let expected = bn.workspace_min(op);
            for got in [0, expected / 2, expected - 1] {
                let o = Operands::new(&bn).with_words(got);
                method.refuses(&bn, &o, Error::Workspace { expected, got });
            }
            let mut best = Operands::new(&bn);
            let mut least = best.clone().with_words(expected);
            assert_eq!(method.call(&bn, &mut least), Ok(()), "{method:?} {shape:?}");
            assert_eq!(method.call(&bn, &mut best), Ok(()));
            assert!(least.same_but_workspace(&best), "{method:?} {shape:?}: other bits with the smallest workspace");
        }
    }
    assert_eq!(
        Error::Workspace { expected: 100, got: 99 }.to_string(),
        "the workspace has 99 words of 8 bytes, expected at least 100"
    );
}

/// The smallest workspace is what the documentation says: at most 1024 words, for any number of
/// channels; and "best" is never less, and no more than the documentation says.
#[test]
fn workspace_sizes() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        for channels in (1..200).chain([255, 256, 257, 1000, 4096, 100_000]) {
            for (batch, spatial) in [(0, 4), (1, 1), (1, 2), (2, 7), (3, 15), (3, 16), (100, 17), (32, 3136)] {
                let shape = Shape::new(layout, batch, channels, &[spatial]).unwrap();
                let sizes = |min: &dyn Fn(Op) -> usize, best: &dyn Fn(Op, usize) -> usize| {
                    for op in [Op::ForwardTraining, Op::Inference, Op::Backward] {
                        assert!(min(op) <= 1024, "{shape:?} {op:?}: {}", min(op));
                        for width in [0, 1, 2, 64] {
                            assert!(best(op, width) >= min(op), "{shape:?} {op:?} {width}");
                            let per_channel = if width > 1 { 96 } else { 64 } + 3;
                            let most = 8192 * width.max(1) + per_channel * channels;
                            assert!(best(op, width) <= most, "{shape:?} {op:?} {width}: {}", best(op, width));
                        }
                    }
                };
                let bn = plan(shape);
                sizes(&|op| bn.workspace_min(op), &|op, width| bn.workspace_best(op, width));
                let bn = BatchNorm::<f64>::new(shape, 0.0).unwrap();
                sizes(&|op| bn.workspace_min(op), &|op, width| bn.workspace_best(op, width));
            }
        }
    }
}

/// One thread keeps no results of cells: it needs the same for any number of them.
#[test]
fn workspace_of_one_thread() {
    for (layout, batch, spatial) in [(Layout::Nchw, 200, 300), (Layout::Nhwc, 200, 300), (Layout::Nchw, 4000, 49)] {
        let [few, many] = [8, batch].map(|n| plan(Shape::new(layout, n, 100, &[spatial]).unwrap()));
        for op in [Op::ForwardTraining, Op::Backward] {
            assert_eq!(few.workspace_best(op, 1), many.workspace_best(op, 1), "{op:?} {many:?}");
            assert!(few.workspace_best(op, 2) < many.workspace_best(op, 2), "{op:?} {many:?}");
        }
    }
}

/// What one thread does is not planned for more.
#[test]
fn workspace_of_a_small_tensor() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        let [small, large] = [49, 80].map(|s| plan(Shape::new(layout, 1, 2048, &[s]).unwrap()));
        for op in [Op::ForwardTraining, Op::Inference, Op::Backward] {
            assert_eq!(small.workspace_best(op, 64), small.workspace_best(op, 1), "{op:?} {small:?}");
            assert!(large.workspace_best(op, 64) > large.workspace_best(op, 1), "{op:?} {large:?}");
        }
    }
}

#[test]
fn missing_y() {
    let backwards = METHODS.into_iter().filter(|m| m.op() == Some(Op::Backward));
    for method in backwards {
        let bn = plan(Shape::nhwc(3, 5, &[4]).unwrap());
        let o = Operands::new(&bn);
        let clamp = Activation::Clamp { lo: 0.0, hi: 6.0 };
        for activation in [Activation::Relu, Activation::LeakyRelu { slope: 0.5 }, clamp] {
            let bn = bn.with_activation(activation).unwrap();
            let mut after = o.clone();
            assert_eq!(method.call_on(&bn, &mut after, &Serial, true), Err(Error::Missing { what: "y" }), "{method:?}");
            assert!(after == o, "{method:?} has written");
            assert_eq!(method.call_on(&bn, &mut after, &Serial, false), Ok(()), "{method:?}");
        }
        assert_eq!(method.call_on(&bn, &mut o.clone(), &Serial, true), Ok(()), "{method:?} wants no mask");
    }
    assert_eq!(Error::Missing { what: "y" }.to_string(), "y is missing, and this call needs it");
}

#[test]
fn unused_in_place() {
    let bn = plan(Shape::nchw(3, 5, &[4]).unwrap());
    let before = Operands::new(&bn);
    let mut o = before.clone();
    let also = before.clone();
    let call = |o: &mut Operands, dy: &[f32], with_dx: bool| {
        let statistics = Statistics::Batch(&also.moments);
        let input = BackwardInput { x: &also.x, y: None, dy, gamma: None, statistics };
        let dx = with_dx.then_some((&mut o.dx[..]).into());
        let output = Gradients { dx, dresidual: None, dgamma: Some(&mut o.dgamma), dbeta: Some(&mut o.dbeta) };
        bn.backward_in_place(&mut o.dy, input, output, Run::serial(&mut o.workspace[..o.words]))
    };
    assert_eq!(call(&mut o, &also.dy, false), Err(Error::Unused { what: "input.dy" }));
    // Of any length: what is not used has none that is right.
    assert_eq!(call(&mut o, &also.dy[..7], false), Err(Error::Unused { what: "input.dy" }));
    assert_eq!(call(&mut o, &[], true), Err(Error::Unused { what: "output.dx" }));
    assert!(o == before, "something was written");
    assert_eq!(call(&mut o, &[], false), Ok(()));
    assert!(o.dy != before.dy && o.dx == before.dx);
    assert_eq!(Error::Unused { what: "input.dy" }.to_string(), "input.dy was given, and this call cannot use it");
}

/// Constants beyond the range of f32 arithmetic: `prepare` says so, `inference` copes.
#[test]
fn unpreparable() {
    struct Case {
        x: [f32; 4],
        gamma: f32,
        beta: f32,
        mean: f32,
        var: f32,
    }
    let tame = Case { x: [1.0, 2.0, 3.0, 4.0], gamma: 1.5, beta: 0.5, mean: 2.0, var: 4.0 };
    let cases = [
        // Means of 2¹⁰² and up: subtracting them might overflow.
        Case { x: [1e35, 1.0001e35, 9.999e34, -3e38], gamma: 1e-4, beta: 2.0, mean: 1e35, var: 1e38 },
        Case { x: [-1e35, -1.5e35, 0.0, 3e38], gamma: 3.0, beta: 0.0, mean: -1e35, var: 3e38 },
        Case { x: [3e38, -3e38, 1.0, 0.0], gamma: 1e-10, beta: 1.0, mean: 3e38, var: 1e-10 },
        // A beta as large.
        Case { x: [1.0, -1.0, 0.0, 5e3], gamma: -2.0, beta: 1e35, mean: 1.0, var: 4.0 },
        // A scale below 2⁻¹²⁰, and a subnormal one.
        Case { x: [1e38, -1e38, 3e38, 0.0], gamma: 1e-37, beta: 0.25, mean: 10.0, var: 1.0 },
        Case { x: [1e38, -1e38, 3e38, 0.0], gamma: 1e-30, beta: 0.25, mean: 10.0, var: 1e30 },
        // A scale above 2¹²⁰.
        Case { x: [2e-38, -3e-38, 1e-37, 1e-36], gamma: 1e37, beta: -0.5, mean: 1e-38, var: 1.0 },
        Case { x: [2e-38, -3e-38, 1e-37, 1e-44], gamma: 1e20, beta: -0.5, mean: 0.0, var: 1e-36 },
    ];
    for layout in [Layout::Nchw, Layout::Nhwc] {
        let bn = BatchNorm::<f32>::new(Shape::new(layout, 2, 3, &[2]).unwrap(), 0.0).unwrap();
        for (i, wild) in cases.iter().enumerate() {
            for at in 0..3 {
                let case = |c: usize| if c == at { wild } else { &tame };
                let of = |f: &dyn Fn(&Case) -> f32| (0..3).map(|c| f(case(c))).collect::<Vec<f32>>();
                let (gamma, beta) = (of(&|c| c.gamma), of(&|c| c.beta));
                let (mean, var) = (of(&|c| c.mean), of(&|c| c.var));
                let blank = vec![Prepared { mean: SENTINEL, scale: SENTINEL, shift: SENTINEL }; 3];
                let mut prepared = blank.clone();
                let affine = Affine::new(&gamma, &beta);
                let refused = bn.prepare(affine, &mean, &var, &mut prepared);
                assert_eq!(refused, Err(Error::Unpreparable { channel: at }), "case {i}");
                assert!(prepared == blank, "case {i}: prepare has written");

                let mut x = vec![0.0; 12];
                for c in 0..3 {
                    for (j, p) in places(bn.shape(), c).enumerate() {
                        x[p] = case(c).x[j];
                    }
                }
                for isa in Isa::available() {
                    let bn = bn.with_isa(isa);
                    let mut y = [SENTINEL; 12];
                    with_workspace(bn.workspace_min(Op::Inference), |ws| {
                        bn.inference(&x, None, affine, &mean, &var, &mut y[..], Run::serial(ws))
                    })
                    .unwrap();
                    for c in 0..3 {
                        let k = case(c);
                        let scale = k.gamma as f64 / (k.var as f64).sqrt();
                        let exact = |x: f32| (x as f64 - k.mean as f64) * scale + k.beta as f64;
                        let top = k.x.iter().fold(1.0f64, |m, &x| m.max(exact(x).abs()));
                        for p in places(bn.shape(), c) {
                            let (y, exact) = (y[p] as f64, exact(x[p]));
                            // Infinity is the nearest f32 of what lies beyond its range.
                            let right = y == (exact as f32) as f64 || (y - exact).abs() <= 2e-6 * top;
                            assert!(right, "case {i}, {isa:?}, channel {c}: {y:e}, expected {exact:e}");
                        }
                    }
                }
            }
        }
        // gamma = 0 has a scale of 0, which is in range; and the tame channel is preparable.
        let mut prepared = vec![Prepared::default(); 3];
        let affine = Affine::new(&[0.0, 1.5, 0.0], &[1.0, 0.5, -1.0]);
        assert_eq!(bn.prepare(affine, &[2.0; 3], &[4.0; 3], &mut prepared), Ok(()));
        assert_eq!(prepared[0], Prepared { mean: 2.0, scale: 0.0, shift: 1.0 });
        assert_eq!(prepared[1], Prepared { mean: 2.0, scale: 0.75, shift: 0.5 });
    }
    assert_eq!(
        Error::Unpreparable { channel: 3 }.to_string(),
        "the constants of channel 3 leave the range of the element type: use inference, which calculates such \
         channels in f64"
    );
}

#[test]
fn running_statistics() {
    let batch = [Moments { count: 4, mean: 8.0, m2: 24.0 }, Moments { count: 4, mean: -8.0, m2: 12.0 }];
    let cumulative = RunningStats::new(Momentum::Cumulative, Variance::Biased).unwrap();
    let pytorch = RunningStats::pytorch(0.5).unwrap();
    for (rule, len_mean, len_var, batches, expected) in [
        (pytorch, 1, 2, true, Error::Length { what: "running_mean", expected: 2, got: 1 }),
        (pytorch, 3, 2, true, Error::Length { what: "running_mean", expected: 2, got: 3 }),
        (pytorch, 2, 0, true, Error::Length { what: "running_var", expected: 2, got: 0 }),
        (pytorch, 2, 3, false, Error::Length { what: "running_var", expected: 2, got: 3 }),
        (cumulative, 2, 1, true, Error::Length { what: "running_var", expected: 2, got: 1 }),
        (cumulative, 2, 2, false, Error::Missing { what: "num_batches" }),
    ] {
        let (mut mean, mut var, mut n) = (vec![SENTINEL; len_mean], vec![SENTINEL; len_var], 5);
        assert_eq!(rule.update(&batch, &mut mean, &mut var, batches.then_some(&mut n)), Err(expected));
        assert_eq!((mean, var, n), (vec![SENTINEL; len_mean], vec![SENTINEL; len_var], 5), "{expected:?}");
    }
    assert_eq!(Error::Missing { what: "num_batches" }.to_string(), "num_batches is missing, and this call needs it");
    let (mut none, mut batches) = ([0.0f32; 0], 5);
    let refused = pytorch.update(&[], &mut none, &mut [0.0; 0], Some(&mut batches));
    assert_eq!((refused, batches), (Err(Error::NoChannels), 5));

    // A plain average: (0·1 + 8)/1, then (8 + 4)/2, (12 + 0)/3; the old value of the first counts nothing.
    let (mut mean, mut var, mut n) = ([100.0f32], [200.0f32], 0);
    for (m, expected) in [(8.0, (8.0, 6.0)), (4.0, (6.0, 6.0)), (0.0, (4.0, 6.0))] {
        let batch = [Moments { count: 4, mean: m, m2: 24.0 }];
        assert_eq!(cumulative.update(&batch, &mut mean, &mut var, Some(&mut n)), Ok(0));
        assert!((mean[0] - expected.0 as f32).abs() < 1e-6 && (var[0] - expected.1 as f32).abs() < 1e-6);
    }
    assert_eq!(n, 3);
}

#[test]
fn merging_needs_equal_lengths() {
    let some = Moments { count: 2, mean: 1.0, m2: 0.5 };
    let mut into = [some; 3];
    assert_eq!(merge_moments(&mut into, &[some; 2]), Err(Error::Length { what: "from", expected: 3, got: 2 }));
    assert_eq!(merge_moments(&mut into, &[some; 4]), Err(Error::Length { what: "from", expected: 3, got: 4 }));
    assert_eq!(into, [some; 3]);
    assert_eq!(merge_moments(&mut into, &[some; 3]), Ok(()));
    assert_eq!(into, [Moments { count: 4, mean: 1.0, m2: 1.0 }; 3]);
}

/// Empty tensors: nothing to do is no error, but for a training step, which has no statistics.
#[test]
fn empty() {
    for shape in with_values(0) {
        let bn = plan(shape);
        let before = Operands::new(&bn);
        for method in [
            Method::Moments,
            Method::Normalize,
            Method::Inference,
            Method::InferenceInPlace,
            Method::Apply,
            Method::ApplyInPlace,
        ] {
            // An empty shard of a batch that is not.
            let mut before = before.clone();
            before.moments.fill(Moments { count: 12, mean: 1.25, m2: 3.5 });
            let mut o = before.clone();
            assert_eq!(method.call(&bn, &mut o), Ok(()), "{method:?} {shape:?}");
            assert!(o.same_but_workspace(&before), "{method:?} has written something of {shape:?}");
        }
        let too_few = Error::TooFewValues { expected: 2, got: 0 };
        Method::ForwardTraining.refuses(&bn, &before, too_few);
        Method::ForwardTrainingInPlace.refuses(&bn, &before, too_few);
        // A sum over nothing is 0.
        for method in [Method::Backward, Method::BackwardRounded, Method::BackwardRunning, Method::BackwardInPlace] {
            let mut o = before.clone();
            assert_eq!(method.call(&bn, &mut o), Ok(()), "{method:?} {shape:?}");
            let zeros = vec![0.0; shape.channels()];
            assert_eq!((o.dgamma, o.dbeta), (zeros.clone(), zeros), "{method:?} {shape:?}");
        }
        let mut o = before.clone();
        assert_eq!(Method::BackwardSums.call(&bn, &mut o), Ok(()));
        assert_eq!(o.sums, vec![GradSums::default(); shape.channels()]);
    }
}

/// All results of a problem, by channel: forward with its moments, backward, inference.
struct Results<T> {
    y: Vec<T>,
    moments: Vec<Moments>,
    dx: Vec<T>,
    dresidual: Vec<T>,
    dgamma: Vec<T>,
    dbeta: Vec<T>,
    inference: Vec<T>,
}

fn results<T: Real>(p: &Problem<T>, isa: Isa) -> Results<T> {
    let (f, bn) = (p.forward(isa), p.plan(isa));
    let b = p.backward(isa, &f.y, Statistics::Batch(&f.moments));
    let mut inference = vec![T::of(f64::NAN); p.shape.len()];
    let (mean, var) = (vec![T::of(0.5); p.shape.channels()], vec![T::of(2.0); p.shape.channels()]);
    with_workspace(bn.workspace_min(Op::Inference), |ws| {
        let run = Run::serial(ws);
        bn.inference(&p.x, p.residual.as_deref(), p.affine(), &mean, &var, &mut inference[..], run)
    })
    .unwrap();
    Results {
        y: f.y,
        moments: f.moments,
        dx: b.dx,
        dresidual: b.dresidual,
        dgamma: b.dgamma,
        dbeta: b.dbeta,
        inference,
    }
}

impl<T: Real> Results<T> {
    /// The bits of one channel.
    fn of(&self, shape: Shape, c: usize) -> Vec<u64> {
        let tensors = [&self.y, &self.dx, &self.dresidual, &self.inference];
        let of_tensors = tensors.into_iter().flat_map(|t| places(shape, c).map(|i| t[i].bits()));
        let [count, mean, m2] = moment_bits(&self.moments[c..c + 1])[0];
        of_tensors.chain([count, mean, m2, self.dgamma[c].bits(), self.dbeta[c].bits()]).collect()
    }
}

/// Where a bad value goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Into {
    X,
    Dy,
    Gamma,
    Beta,
}

/// What is not a number in one channel (or so large that the channel is calculated in f64) changes no
/// bit of any other.
fn spoils_only_its_channel<T: Real>(bad: &[f64]) {
    let shapes = [
        Shape::nchw(3, 5, &[40]),
        Shape::nchw(5, 4, &[3, 3]),
        Shape::nchw(37, 2, &[2]),
        Shape::nchw(1, 2, &[1100]),
        Shape::nhwc(7, 33, &[9]),
        Shape::nhwc(3, 130, &[2]),
        Shape::nhwc(29, 3, &[3]),
        Shape::dense(11, 19),
    ];
    for shape in shapes.map(Result::unwrap) {
        for (activation, extras) in [(Activation::Identity, false), (Activation::Relu, true)] {
            let clean = random::<T>(shape, activation, extras, 7);
            for isa in Isa::available() {
                let expected = results(&clean, isa);
                for spoiled in [0, shape.channels() / 2, shape.channels() - 1] {
                    let last = shape.values_per_channel() as usize - 1;
                    for (&value, at) in bad.iter().zip([0, last / 2, last].iter().cycle()) {
                        for into in [Into::X, Into::Dy, Into::Gamma, Into::Beta] {
                            let mut p = clean.clone();
                            let place = places(shape, spoiled).nth(*at).unwrap();
                            match (into, &mut p) {
                                (Into::X, p) => p.x[place] = T::of(value),
                                (Into::Dy, p) => p.dy[place] = T::of(value),
                                (Into::Gamma, Problem { gamma: Some(g), .. }) => g[spoiled] = T::of(value),
                                (Into::Beta, Problem { beta: Some(b), .. }) => b[spoiled] = T::of(value),
                                _ => continue,
                            }
                            let got = results(&p, isa);
                            let name =
                                format!("{shape:?} {isa:?} {activation:?}: {value} in {into:?} of channel {spoiled}");
                            for c in (0..shape.channels()).filter(|&c| c != spoiled) {
                                assert!(got.of(shape, c) == expected.of(shape, c), "{name} changes channel {c}");
                            }
                            if !value.is_finite() {
                                spoilt(&p, &got, spoiled, into, value, &name);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// No result of a spoilt channel looks like one.
fn spoilt<T: Real>(p: &Problem<T>, got: &Results<T>, c: usize, into: Into, value: f64, name: &str) {
    let none = |what: &str, of: &[T]| {
        let finite = places(p.shape, c).filter(|&i| of[i].wide().is_finite()).count();
        assert_eq!(finite, 0, "{name}: values of {what} that look right");
    };
    // A single gradient reaches all of dx by way of the means.
    match into {
        Into::X => {
            assert!(!got.moments[c].mean.is_finite() && !got.moments[c].m2.is_finite(), "{name}: {:?}", got.moments[c]);
            none("y", &got.y);
            none("dx", &got.dx);
            assert!(!got.dgamma[c].wide().is_finite(), "{name}");
            // Running statistics keep their values, and one channel is reported.
            let (mut mean, mut var) = (vec![T::of(0.25); p.shape.channels()], vec![T::of(0.75); p.shape.channels()]);
            for rule in [RunningStats::pytorch(0.5).unwrap(), RunningStats::keras(0.5).unwrap()] {
                let mut batches = 3;
                assert_eq!(rule.update(&got.moments, &mut mean, &mut var, Some(&mut batches)), Ok(1), "{name}");
                assert_eq!((mean[c], var[c], batches), (T::of(0.25), T::of(0.75), 4), "{name}");
                for other in (0..p.shape.channels()).filter(|&o| o != c) {
                    assert!(mean[other] != T::of(0.25) && var[other] != T::of(0.75), "{name}: {other} was skipped");
                }
            }
        }
        // Behind a mask of ReLU the gradient may be one that does not count.
        Into::Dy if p.activation == Activation::Identity => {
            none("dx", &got.dx);
            assert!(!got.dgamma[c].wide().is_finite() && !got.dbeta[c].wide().is_finite(), "{name}");
        }
        Into::Gamma if value.is_nan() => {
            none("y", &got.y);
            none("inference", &got.inference);
        }
        Into::Beta if value.is_nan() => {
            none("y", &got.y);
            none("inference", &got.inference);
        }
        _ => {}
    }
}

#[test]
fn one_channel_spoils_no_other() {
    let not_numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    spoils_only_its_channel::<f32>(&[&not_numbers[..], &[3e38, -3e38, 1e30]].concat());
    spoils_only_its_channel::<f64>(&[&not_numbers[..], &[1e150, -1e150]].concat());
}

/// Statistics that are finite in f64 but not in f32 are skipped too.
#[test]
fn running_statistics_beyond_their_type() {
    let batch = [
        Moments { count: 2, mean: 1e39, m2: 1.0 },
        Moments { count: 2, mean: 1.0, m2: 1e39 },
        Moments { count: 2, mean: 1.0, m2: 1.0 },
        Moments { count: 0, mean: 0.0, m2: 0.0 },
    ];
    let rule = RunningStats::pytorch(1.0).unwrap();
    let (mut mean, mut var) = ([5.0f32; 4], [6.0f32; 4]);
    assert_eq!(rule.update(&batch, &mut mean, &mut var, None), Ok(3));
    assert_eq!((mean, var), ([5.0, 5.0, 1.0, 5.0], [6.0, 6.0, 1.0, 6.0]));
    let (mut mean, mut var) = ([5.0f64; 4], [6.0f64; 4]);
    assert_eq!(rule.update(&batch, &mut mean, &mut var, None), Ok(1));
    assert_eq!((mean, var), ([1e39, 1.0, 1.0, 5.0], [1.0, 1e39, 1.0, 6.0]));
}

/// How an executor fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Drops,
    Twice,
    Nothing,
}

/// Runs its tickets one after the other, but for a fault in one phase.
struct Faulty {
    width: usize,
    fault: Fault,
    /// The phase that goes wrong.
    phase: usize,
    phases: AtomicUsize,
    /// Tickets that the faulty phase was given.
    given: AtomicUsize,
    ran: AtomicUsize,
}

impl Faulty {
    fn new(width: usize, fault: Fault, phase: usize) -> Self {
        let zero = || AtomicUsize::new(0);
        Faulty { width, fault, phase, phases: zero(), given: zero(), ran: zero() }
    }
}

impl Executor for Faulty {
    fn width(&self) -> usize {
        self.width
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        let mut run = tickets;
        if self.phases.fetch_add(1, Relaxed) == self.phase {
            run = match self.fault {
                Fault::None => tickets,
                Fault::Drops => tickets - 1,
                Fault::Twice => tickets + 1,
                Fault::Nothing => 0,
            };
            self.given.store(tickets, Relaxed);
            self.ran.store(run, Relaxed);
        }
        for _ in 0..run {
            task();
        }
    }
}

#[test]
fn executors_that_fail() {
    for shape in [
        Shape::nchw(6, 12, &[80, 30]).unwrap(),
        Shape::nchw(1700, 20, &[2, 2]).unwrap(),
        Shape::nhwc(6, 96, &[16, 16]).unwrap(),
        Shape::nhwc(14_000, 5, &[2]).unwrap(),
        Shape::dense(700, 200).unwrap(),
    ] {
        // Fewer stay on the calling thread.
        assert!(shape.len() >= 1 << 17);
        let bn = plan(shape);
        for width in [2, 3, 8] {
            for method in METHODS {
                let Some(op) = method.op() else { continue };
                let mut serial = Operands::new(&bn);
                let o = serial.clone().with_words(bn.workspace_best(op, width));
                assert_eq!(method.call(&bn, &mut serial), Ok(()));
                let same = |executor: &dyn Executor| {
                    let mut after = o.clone();
                    assert_eq!(method.call_on(&bn, &mut after, executor, false), Ok(()), "{method:?} {shape:?}");
                    assert!(after.same_but_workspace(&serial), "{method:?} {shape:?}: other bits on {width} tickets");
                };
                let good = Faulty::new(width, Fault::None, 0);
                same(&good);
                same(&Threads(width));
                let phases = good.phases.load(Relaxed);
                assert!(phases > 0, "{method:?} {shape:?} is not parallel, so that nothing is tested");
                for phase in 0..phases {
                    for fault in [Fault::Drops, Fault::Twice, Fault::Nothing] {
                        let bad = Faulty::new(width, fault, phase);
                        let result = method.call_on(&bn, &mut o.clone(), &bad, false);
                        let (expected, got) = (bad.given.load(Relaxed), bad.ran.load(Relaxed));
                        assert!(expected > 1 && expected <= width && got != expected);
                        let name = format!("{method:?} {shape:?}, phase {phase}");
                        assert_eq!(result, Err(Error::Executor { expected, got }), "{name}");
                        // Nothing more is begun then.
                        assert_eq!(bad.phases.load(Relaxed), phase + 1, "{name}");
                    }
                }
            }
        }
    }
    assert_eq!(
        Error::Executor { expected: 4, got: 3 }.to_string(),
        "the executor ran 3 tickets to their end, expected each of 4 once"
    );
}

/// Whatever width an executor says it has, it is given no more tickets than there is workspace for,
/// and the bits are the same.
#[test]
fn executors_of_any_width() {
    // Large enough to be shared out.
    for shape in [Shape::nchw(6, 12, &[40, 50]).unwrap(), Shape::nhwc(6, 240, &[10, 10]).unwrap()] {
        let bn = plan(shape);
        for method in METHODS {
            let Some(op) = method.op() else { continue };
            let mut expected = Operands::new(&bn);
            let before = expected.clone();
            assert_eq!(method.call(&bn, &mut expected), Ok(()));
            for width in [0, 1, 1000, usize::MAX] {
                for words in [bn.workspace_min(op), bn.workspace_best(op, 2)] {
                    let mut o = before.clone().with_words(words);
                    let executor = Faulty::new(width, Fault::None, 0);
                    assert_eq!(method.call_on(&bn, &mut o, &executor, false), Ok(()), "{method:?} {width}");
                    // With the least workspace only what needs none is shared out.
                    let (shared, least) = (executor.given.load(Relaxed) > 1, words == bn.workspace_min(op));
                    assert!(shared == (width > 1) || least && !shared, "{method:?} {width}: {words} words");
                    assert!(o.same_but_workspace(&expected), "{method:?}: other bits with a width of {width}");
                }
            }
        }
    }
}

/// An error is a value of std's trait, and small.
#[test]
fn error_is_an_error() {
    let e: Box<dyn core::error::Error + Send + Sync> = Box::new(Error::NoChannels);
    assert_eq!(e.to_string(), Error::NoChannels.to_string());
    assert!(e.source().is_none());
    assert!(size_of::<Error>() <= 40);
}

/// The instructions that this CPU has, as the standard library sees them, are there; no others.
#[cfg(all(target_arch = "x86_64", not(bn_single)))]
#[test]
fn isas_are_those_of_this_cpu() {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq");
    assert!(Isa::new(IsaKind::Portable).is_some());
    assert_eq!(Isa::new(IsaKind::Avx2).is_some(), avx2);
    assert_eq!(Isa::new(IsaKind::Avx512).is_some(), avx512);
    let best = if avx512 { IsaKind::Avx512 } else { IsaKind::Avx2 };
    assert_eq!(Some(Isa::detect()), Isa::new(if avx2 { best } else { IsaKind::Portable }));
    assert_eq!(Isa::available().count(), 1 + avx2 as usize + avx512 as usize);
}

/// Each has its name, by which it is found where the CPU has it.
#[test]
fn isas_by_name() {
    for (kind, name) in [(IsaKind::Portable, "portable"), (IsaKind::Avx2, "avx2"), (IsaKind::Avx512, "avx512")] {
        assert_eq!(kind.name(), name);
        assert_eq!(Isa::by_name(name), Isa::new(kind));
        if let Some(isa) = Isa::new(kind) {
            // SAFETY: the CPU has just been asked.
            let assumed = unsafe { Isa::assume(kind) };
            assert_eq!((assumed, isa.kind(), format!("{isa:?}").as_str()), (isa, kind, name));
            assert_eq!(plan(Shape::dense(2, 3).unwrap()).with_isa(isa).isa(), isa);
        }
    }
    assert!(["", "AVX2", "sse2", "avx"].iter().all(|name| Isa::by_name(name).is_none()));
    assert_eq!(plan(Shape::dense(2, 3).unwrap()).isa(), Isa::detect());
}

/// No operation asks that of it, but whoever calls an executor may.
#[test]
fn serial_runs_every_ticket() {
    for tickets in [0, 1, 5] {
        let ran = AtomicUsize::new(0);
        let thread = std::thread::current().id();
        Serial.run(tickets, &|| {
            assert_eq!(std::thread::current().id(), thread);
            ran.fetch_add(1, Relaxed);
        });
        assert_eq!(ran.into_inner(), tickets);
    }
}

/// An output has the room of what it was made from.
#[test]
fn outputs_have_room() {
    for n in [0, 1, 5] {
        let (mut room, mut uninit) = (vec![0f32; n], vec![core::mem::MaybeUninit::<f32>::uninit(); n]);
        for output in [Output::from(&mut room[..]), Output::from(&mut uninit[..])] {
            assert_eq!((output.len(), output.is_empty()), (n, n == 0));
        }
    }
    assert_eq!(Output::from(&mut [0f64; 3]).len(), 3);
}

/// In debug builds: rounding that is not to nearest, and subnormals that are flushed.
#[test]
#[cfg(all(debug_assertions, target_arch = "x86_64"))]
fn another_floating_point_environment() {
    use std::arch::asm;
    const DEFAULT: u32 = 0x1f80;
    let bn = BatchNorm::<f32>::new(Shape::dense(4, 3).unwrap(), 1e-5).unwrap();
    let fails_in = |mode: u32| {
        let call = || {
            let (mut y, mut moments, mut ws) = ([0.0; 12], [Moments::EMPTY; 3], [0; 1024]);
            let run = Run::serial(&mut ws);
            bn.forward_training(&[1.0; 12], None, Affine::NONE, &mut y[..], &mut moments, run).unwrap();
        };
        let set = |mode: u32| {
            // SAFETY: reads the word; all exceptions stay masked.
            unsafe { asm!("ldmxcsr [{}]", in(reg) &mode, options(nostack, readonly)) };
        };
        set(DEFAULT | mode);
        let result = std::panic::catch_unwind(call);
        set(DEFAULT);
        result.is_err()
    };
    assert!(!fails_in(0));
    // Denormals are zero; flush to zero; round down, up, towards zero.
    for mode in [1 << 6, 1 << 15, 1 << 13, 2 << 13, 3 << 13] {
        assert!(fails_in(mode), "{mode:#x}");
    }
}
