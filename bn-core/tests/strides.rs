//! Operands that are parts of larger tensors: the bits of dense ones, and nothing beside them touched.

mod common;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, GradSums, Gradients, Isa, Layout, Moments, Op, Run, Shape,
    Statistics, Stride, Strides,
};
use common::problem::{Backward, Problem, Real, bits, moment_bits, random, with_workspace};
use common::{Random, place, places, stride};

/// Filled with a value that no call may change, and that no result may depend on.
const GAP: f64 = 12345.0;

fn spread<T: Real>(shape: Shape, s: Stride, dense: &[T]) -> Vec<T> {
    let len = place(shape, s, dense.len() - 1) + 1;
    let mut out = vec![T::of(GAP); len];
    for (i, &v) in dense.iter().enumerate() {
        out[place(shape, s, i)] = v;
    }
    out
}

#[track_caller]
fn collect<T: Real>(shape: Shape, s: Stride, strided: &[T]) -> Vec<T> {
    let mut out = vec![T::of(0.0); shape.len()];
    let mut gaps = strided.to_vec();
    for (i, v) in out.iter_mut().enumerate() {
        *v = strided[place(shape, s, i)];
        gaps[place(shape, s, i)] = T::of(GAP);
    }
    assert!(gaps.iter().all(|&v| v == T::of(GAP)), "written between the elements of {shape:?}, {s:?}");
    out
}

fn check<T: Real>(shape: Shape, strides: Strides, activation: Activation, residual: bool, seed: u64, isa: Isa) {
    let mut p: Problem<T> = random(shape, activation, true, seed);
    if !residual {
        p.residual = None;
    }
    let dense = p.plan(isa);
    let bn = dense.with_strides(strides).unwrap();
    let what = format!("{bn:?}");
    let f = p.forward(isa);
    let (x, r) = (spread(shape, strides.x, &p.x), p.residual.as_ref().map(|r| spread(shape, strides.residual, r)));
    let mut y = spread(shape, strides.y, &vec![T::of(0.0); shape.len()]);
    let mut moments = vec![Moments::EMPTY; shape.channels()];
    for words in [bn.workspace_min(Op::ForwardTraining), bn.workspace_best(Op::ForwardTraining, 1)] {
        with_workspace(words, |ws| {
            bn.forward_training(&x, r.as_deref(), p.affine(), &mut y[..], &mut moments, Run::serial(ws))
        })
        .unwrap();
        assert!(bits(&collect(shape, strides.y, &y)) == bits(&f.y), "y of {what}");
        assert!(moment_bits(&moments) == moment_bits(&f.moments), "moments of {what}");
    }
    if strides.x == strides.y {
        let mut over = x.clone();
        with_workspace(bn.workspace_min(Op::ForwardTraining), |ws| {
            bn.forward_training_in_place(&mut over, r.as_deref(), p.affine(), &mut moments, Run::serial(ws))
        })
        .unwrap();
        assert!(bits(&over) == bits(&y), "y in place of {what}");
    }

    let mean: Vec<T> = f.moments.iter().map(|m| T::of(m.mean)).collect();
    let var: Vec<T> = f.moments.iter().map(|m| T::of(m.variance())).collect();
    let dy = spread(shape, strides.dy, &p.dy);
    for statistics in [
        Statistics::Batch(&f.moments),
        Statistics::Rounded { mean: &mean, var: &var },
        Statistics::Running { mean: &mean, var: &var },
    ] {
        let expected = p.backward(isa, &f.y, statistics);
        let input = BackwardInput { x: &x, y: Some(&y), dy: &dy, gamma: p.gamma.as_deref(), statistics };
        for words in [bn.workspace_min(Op::Backward), bn.workspace_best(Op::Backward, 1)] {
            let mut b = Backward::blank(shape);
            let zeros = vec![T::of(0.0); shape.len()];
            let (mut dx, mut dr) = (spread(shape, strides.dx, &zeros), spread(shape, strides.dresidual, &zeros));
            let output = Gradients {
                dx: Some((&mut dx[..]).into()),
                dresidual: Some((&mut dr[..]).into()),
                dgamma: Some(&mut b.dgamma),
                dbeta: Some(&mut b.dbeta),
            };
            with_workspace(words, |ws| bn.backward(input, output, Run::serial(ws))).unwrap();
            b.dx = collect(shape, strides.dx, &dx);
            b.dresidual = collect(shape, strides.dresidual, &dr);
            assert!(b.bits() == expected.bits(), "backward of {what}");
        }
        if strides.dy == strides.dx {
            let mut over = dy.clone();
            let input = BackwardInput { dy: &[], ..input };
            with_workspace(bn.workspace_min(Op::Backward), |ws| {
                bn.backward_in_place(&mut over, input, Gradients::default(), Run::serial(ws))
            })
            .unwrap();
            assert!(bits(&collect(shape, strides.dx, &over)) == bits(&expected.dx), "dx in place of {what}");
        }
    }
    // The sums of a stage.
    let sums = |bn: &BatchNorm<T>, x: &[T], y: &[T], dy: &[T]| {
        let mut sums = vec![GradSums::default(); shape.channels()];
        let statistics = Statistics::Batch(&f.moments);
        let input = BackwardInput { x, y: Some(y), dy, gamma: None, statistics };
        with_workspace(bn.workspace_min(Op::Backward), |ws| bn.backward_sums(input, &mut sums, Run::serial(ws)))
            .unwrap();
        sums
    };
    assert!(sums(&bn, &x, &y, &dy) == sums(&dense, &p.x, &f.y, &p.dy), "sums of {what}");
}

/// Every geometry: planes of whole and of other vectors, rows wide and folded, planes of less than a
/// vector, one channel, one position, one image.
const SHAPES: [(usize, usize, usize); 19] = [
    (1, 1, 1),
    (3, 1, 1),
    (40, 1, 5),
    (5, 1, 37),
    (3, 1, 700),
    (4, 3, 1),
    (130, 3, 1),
    (70, 3, 2),
    (6, 24, 7),
    (9, 32, 4),
    (7, 17, 49),
    (5, 2, 64),
    (2, 3, 300),
    (33, 5, 9),
    (4, 70, 15),
    (2, 130, 3),
    (6, 100, 1),
    (1, 48, 33),
    (1, 2, 1100),
];

#[test]
fn any_strides() {
    let activations = [Activation::Identity, Activation::Relu, Activation::LeakyRelu { slope: 0.25 }];
    let mut r = Random(7);
    for (n, c, s) in SHAPES {
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let shape = Shape::new(layout, n, c, &[s]).unwrap();
            for round in 0..8 {
                // First all operands in the same way, then each in its own.
                let of = |r: &mut Random| if round < 5 { round } else { r.below(5) };
                let x = stride(shape, of(&mut r), &mut r);
                let dy = stride(shape, of(&mut r), &mut r);
                let mut next = || stride(shape, of(&mut r), &mut r);
                let same = round < 5;
                let strides = Strides {
                    x,
                    y: if same { x } else { next() },
                    residual: next(),
                    dy,
                    dx: if same { dy } else { next() },
                    dresidual: next(),
                };
                let seed = r.next();
                for isa in Isa::available() {
                    let activation = activations[round % 3];
                    check::<f32>(shape, strides, activation, round % 2 == 0, seed, isa);
                    check::<f64>(shape, strides, activation, round % 2 == 0, seed, isa);
                }
            }
        }
    }
}

/// What looks like planes without gaps, as positions are as far apart as there are positions; and rows that are not evenly
/// spaced, of images that are as far apart as the sum of both.
#[test]
fn distances_that_are_other_numbers_too() {
    let strides = |far: Stride| Strides { x: far, y: far, residual: far, dy: far, dx: far, dresidual: far };
    for isa in Isa::available() {
        let plane = strides(Stride { batch: 0, inner: 37 });
        check::<f32>(Shape::nhwc(3, 1, &[37]).unwrap(), plane, Activation::Relu, true, 1, isa);
        let rows = strides(Stride { batch: 12, inner: 10 });
        check::<f32>(Shape::nhwc(3, 2, &[2]).unwrap(), rows, Activation::Relu, true, 1, isa);
    }
}

/// nChw8c: a block of eight channels at a time, as NHWC.
#[test]
fn blocked_layout() {
    let (n, c, s) = (3, 24, 10);
    let plain = Shape::nchw(n, c, &[s]).unwrap();
    let p: Problem<f32> = random(plain, Activation::Identity, false, 3);
    let f = p.forward(Isa::detect());
    let (mut x, mut y) = (vec![0.0; plain.len()], vec![0.0; plain.len()]);
    let at = |image: usize, channel: usize, position: usize| {
        ((image * c / 8 + channel / 8) * s + position) * 8 + channel % 8
    };
    for channel in 0..c {
        for (j, i) in places(plain, channel).enumerate() {
            x[at(j / s, channel, j % s)] = p.x[i];
        }
    }
    let stride = Stride { batch: c * s, inner: 8 };
    let block = BatchNorm::<f32>::new(Shape::nhwc(n, 8, &[s]).unwrap(), p.epsilon).unwrap();
    let block = block.with_strides(Strides { x: stride, y: stride, ..Strides::DENSE }).unwrap();
    let mut workspace = vec![0; block.workspace_best(Op::ForwardTraining, 1)];
    for b in 0..c / 8 {
        let mut moments = [Moments::EMPTY; 8];
        let (from, to) = (&x[b * s * 8..], &mut y[b * s * 8..]);
        block.forward_training(from, None, Affine::NONE, to, &mut moments, Run::serial(&mut workspace)).unwrap();
    }
    for channel in 0..c {
        for (j, i) in places(plain, channel).enumerate() {
            let (got, expected) = (y[at(j / s, channel, j % s)], f.y[i]);
            assert!((got - expected).abs() <= 4e-6 * expected.abs().max(1.0), "{got} {expected}");
        }
    }
}

#[test]
fn refusals() {
    let shape = Shape::nchw(2, 3, &[4]).unwrap();
    let bn = BatchNorm::<f32>::new(shape, 1e-5).unwrap();
    let with = |x: Stride| bn.with_strides(Strides { x, ..Strides::DENSE });
    for bad in [
        Stride { batch: 0, inner: 3 },
        Stride { batch: 11, inner: 0 },
        Stride { batch: 13, inner: 5 },
        Stride { batch: 4, inner: 7 },
        Stride { batch: usize::MAX, inner: 0 },
        Stride { batch: 0, inner: usize::MAX / 2 },
        Stride { batch: isize::MAX as usize, inner: 4 },
    ] {
        assert_eq!(with(bad).unwrap_err(), Error::Stride { what: "x", got: bad });
    }
    assert_eq!(
        Error::Stride { what: "dy", got: Stride { batch: 1, inner: 2 } }.to_string(),
        "the strides of dy are 1 (batch) and 2 (inner), expected ones at which no elements overlap and that stay in \
         the address space"
    );
    // Images inside runs: 2 · 4 elements from channel to channel.
    let turned = with(Stride { batch: 4, inner: 8 }).unwrap();
    assert_eq!(turned.strides().x, Stride { batch: 4, inner: 8 });
    assert_eq!(turned.strides().y, Stride { batch: 12, inner: 4 });

    let slice = with(Stride { batch: 0, inner: 6 }).unwrap();
    let mut workspace = [0; 1024];
    let mut run = |bn: &BatchNorm<f32>, x: usize, y: usize| {
        let (x, mut y) = (vec![0.0; x], vec![7.0; y]);
        let r = bn.inference(&x, None, Affine::NONE, &[0.0; 3], &[1.0; 3], &mut y[..], Run::serial(&mut workspace));
        assert!(r.is_ok() || y.iter().all(|&v| v == 7.0));
        r
    };
    // A strided operand may reach beyond its last element, a dense one may not.
    assert_eq!(run(&slice, 34, 24), Ok(()));
    assert_eq!(run(&slice, 36, 24), Ok(()));
    assert_eq!(run(&slice, 33, 24), Err(Error::Length { what: "x", expected: 34, got: 33 }));
    assert_eq!(run(&slice, 36, 25), Err(Error::Length { what: "y", expected: 24, got: 25 }));
    // Nor does it matter that the strides given are those of a dense one, or stepped over by nothing, or that all elements
    // lie between the first and the last: the last batch of a data set may be a single image, or none.
    for (x, batch, span) in [
        (Stride { batch: 18, inner: 0 }, 1, 12),
        (Stride { batch: 12, inner: 4 }, 2, 24),
        (Stride { batch: 4, inner: 8 }, 2, 24),
        (Stride { batch: 18, inner: 6 }, 0, 0),
    ] {
        let shape = Shape::nchw(batch, 3, &[4]).unwrap();
        let bn = BatchNorm::<f32>::new(shape, 1e-5).unwrap().with_strides(Strides { x, ..Strides::DENSE }).unwrap();
        for more in [0, 1, 100] {
            assert_eq!(run(&bn, span + more, shape.len()), Ok(()), "{x:?} {more}");
        }
        if let Some(got) = span.checked_sub(1) {
            assert_eq!(run(&bn, got, shape.len()), Err(Error::Length { what: "x", expected: span, got }));
        }
        let dense = bn.with_strides(Strides::DENSE).unwrap();
        let (expected, got) = (shape.len(), shape.len() + 1);
        assert_eq!(run(&dense, got, expected), Err(Error::Length { what: "x", expected, got }));
    }
    let mut over = [1.0; 34];
    let refused =
        slice.inference_in_place(&mut over, None, Affine::NONE, &[0.0; 3], &[1.0; 3], Run::serial(&mut workspace));
    let (input, output) = (Stride { batch: 18, inner: 6 }, Stride { batch: 12, inner: 4 });
    assert_eq!(refused, Err(Error::InPlaceStrides { input, output }));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "in place the strides of input and output must be the same, got 18 and 12 (batch), 6 and 4 (inner)"
    );
    assert_eq!(over, [1.0; 34]);
}

/// Dimensions and strides, as frameworks have them: every element is where they say.
#[test]
fn from_dims() {
    for (dims, strides) in [(&[3, 4, 5][..], &[20, 5][..]), (&[3, 4], &[20, 5, 1]), (&[4], &[1]), (&[], &[])] {
        assert_eq!(Stride::from_dims(Layout::Nchw, dims, strides), None, "{dims:?}");
        assert_eq!(Stride::from_dims(Layout::Nhwc, dims, strides), None, "{dims:?}");
    }
    let mut random = Random(5);
    let mut below = |n: usize| (random.uniform() * n as f64) as usize;
    let (mut readable, mut not) = (0, 0);
    for _ in 0..4000 {
        // Dimensions stored in a random order, some with gaps behind them, some repeated.
        let rank = 2 + below(4);
        let dims: Vec<usize> = (0..rank).map(|_| below(5).max(usize::from(below(8) > 0))).collect();
        let mut order: Vec<usize> = (0..rank).collect();
        if below(3) == 0 {
            for i in (1..rank).rev() {
                order.swap(i, below(i + 1));
            }
        }
        let (mut strides, mut next) = (vec![0; rank], 1);
        for &d in order.iter().rev() {
            strides[d] = if below(40) == 0 { 0 } else { next };
            next = next * dims[d].max(1) + if below(6) == 0 { below(7) } else { 0 };
        }
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let (n, c) = (0, if layout == Layout::Nchw { 1 } else { rank - 1 });
            let Ok(shape) = Shape::from_dims(layout, &dims) else {
                assert_eq!(Shape::from_dims(layout, &dims), Err(Error::NoChannels));
                continue;
            };
            assert_eq!((shape.batch(), shape.channels(), shape.len()), (dims[n], dims[c], dims.iter().product()));
            let found = Stride::from_dims(layout, &dims, &strides);
            let offsets = |i: usize| {
                let (mut rest, mut at) = (i, 0);
                for d in (0..rank).rev() {
                    at += rest % dims[d] * strides[d];
                    rest /= dims[d];
                }
                at
            };
            let Some(s) = found else {
                not += 1;
                // Neither a dense tensor nor one with gaps behind its images is refused.
                let mut dense = 1;
                let tail = (1..rank).rev().all(|d| {
                    let as_is = dims[d] <= 1 || strides[d] == dense;
                    dense *= dims[d];
                    as_is
                });
                assert!(!tail || (strides[0] == 0 && dims[0] > 1), "{layout:?} {dims:?} {strides:?}");
                continue;
            };
            readable += 1;
            let span = s.span(&shape).unwrap();
            let last = (0..shape.len()).map(offsets).max();
            assert_eq!(span, last.map_or(0, |last| last + 1), "{layout:?} {dims:?} {strides:?}");
            for i in 0..shape.len() {
                assert_eq!(place(shape, s, i), offsets(i), "{layout:?} {dims:?} {strides:?}: {s:?}");
            }
        }
    }
    assert!(readable > 1000 && not > 1000, "{readable} {not}");

    for layout in [Layout::Nchw, Layout::Nhwc] {
        assert_eq!(Shape::from_dims(layout, &[3]), Err(Error::Rank { expected: 2, got: 1 }));
        assert_eq!(Stride::from_dims(layout, &[3], &[1]), None);
        assert_eq!(Stride::from_dims(layout, &[3, 2], &[2]), None);
        assert_eq!(Stride::from_dims(layout, &[3, 2], &[0, 1]), None);
        // Windows of 8 rows, 4 rows apart: elements are in two of them.
        assert_eq!(Stride::from_dims(layout, &[5, 3, 8], &[12, 1, 3]), None);
        assert_eq!(Stride::from_dims(layout, &[5, 8, 3], &[12, 3, 1]), None);
        assert_eq!(Stride::from_dims(layout, &[2, usize::MAX, 2], &[4, 2, 1]), None);
    }
    assert_eq!(Error::Rank { expected: 2, got: 1 }.to_string(), "the tensor has 1 dimensions, expected at least 2");
    let overlapping = Stride { batch: 0, inner: 3 };
    let refused = Error::Stride { what: "the operand", got: overlapping };
    assert_eq!(overlapping.span(&Shape::nchw(2, 3, &[4]).unwrap()), Err(refused));
}

/// The smallest workspace keeps to 8 KB with any strides.
#[test]
fn workspace_sizes() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        for c in (1..60).chain([100, 1000, 100_000]) {
            for s in [1, 2, 7, 15, 16, 100] {
                let shape = Shape::new(layout, 3, c, &[s]).unwrap();
                let odd = Stride { batch: 3 * c * s + 10 * s + 1000 * c, inner: 0 };
                let wide = Stride { batch: 0, inner: s.max(c) + 3 };
                for t in [odd, wide] {
                    let strides = Strides { x: t, y: t, residual: t, dy: t, dx: t, dresidual: t };
                    for op in [Op::ForwardTraining, Op::Inference, Op::Backward] {
                        let words =
                            |min: usize, best: usize| assert!(min <= 1024 && best >= min, "{shape:?} {op:?}: {min}");
                        let bn = BatchNorm::<f32>::new(shape, 0.0).unwrap().with_strides(strides).unwrap();
                        words(bn.workspace_min(op), bn.workspace_best(op, 3));
                        let bn = BatchNorm::<f64>::new(shape, 0.0).unwrap().with_strides(strides).unwrap();
                        words(bn.workspace_min(op), bn.workspace_best(op, 3));
                    }
                }
            }
        }
    }
}
