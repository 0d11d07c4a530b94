//! Tests of the ways through memory that make the kernels fast, without a clock: how often an element is read, which
//! streams go on side by side, what is stored past the caches. None of it changes a result, so that no other test sees
//! it.

use crate::lanes::traced::{self, Event, Kind, Ways};
use crate::layout::CACHED_BYTES;
use crate::layout::run::{ASKED, FAR, NEAR, TURN, WIDE, shared};
use crate::{Activation, Affine, BackwardInput, BatchNorm, Gradients, Moments, Op, Run, Shape, Statistics};
use crate::{Stride, Strides};
use core::ops::Range;
use std::collections::BTreeSet;
use std::{format, vec, vec::Vec};

/// Elements of a vector, which are a cache line.
const LANES: usize = 16;
/// Elements of a page.
const PAGE: usize = 4096 / size_of::<f32>();
/// Elements of what is just large enough to be stored past the caches, if there are an input and an output.
const LARGE: usize = CACHED_BYTES / size_of::<f32>() / 2;

/// An operand that starts so many elements behind the start of a page.
struct Tensor {
    buffer: Vec<f32>,
    range: Range<usize>,
}

impl Tensor {
    fn new(len: usize, skew: usize) -> Self {
        let mut tensor = Tensor { buffer: vec![], range: 0..0 };
        tensor.buffer = (0..len + PAGE + skew).map(|i| (i % 61) as f32 - 20.0).collect();
        let first = PAGE - tensor.buffer.as_ptr().addr() / size_of::<f32>() % PAGE + skew;
        tensor.range = first..first + len;
        tensor
    }
    fn get(&self) -> &[f32] {
        &self.buffer[self.range.clone()]
    }
    fn get_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.range.clone()]
    }
    /// The elements that vectors of this kind start with, in order.
    fn seen(&self, events: &[Event], kind: Kind) -> Vec<usize> {
        let bytes = self.get().as_ptr_range();
        let inside = |e: &&Event| e.kind == kind && (bytes.start.addr()..bytes.end.addr()).contains(&e.address);
        events.iter().filter(inside).map(|e| (e.address - bytes.start.addr()) / size_of::<f32>()).collect()
    }
}

/// Neither lines past the caches nor lines ahead.
const PLAIN: Ways = Ways { lines: false, ahead: false };
const LINES: Ways = Ways { lines: true, ahead: false };
const AHEAD: Ways = Ways { lines: true, ahead: true };

/// What a call does; of what is stored past the caches nothing is read or written before a fence.
fn trace(ways: Ways, call: impl FnOnce()) -> Vec<Event> {
    const BYTES: usize = LANES * size_of::<f32>();
    let events = traced::trace(ways, call);
    let mut past = BTreeSet::new();
    for &Event { kind, address } in &events {
        match kind {
            Kind::Past => assert!(past.insert(address), "stored past the caches twice"),
            Kind::Fence => past.clear(),
            Kind::Read | Kind::Write => {
                let mut near = past.range(address + 1 - BYTES..address + BYTES);
                assert_eq!(near.next(), None, "{kind:?} at {address}, which was stored past the caches");
            }
            Kind::Ask | Kind::Check => {}
        }
    }
    assert!(past.is_empty(), "no fence at the end");
    events
}

fn plan(shape: Shape) -> BatchNorm<f32> {
    BatchNorm::new(shape, 1e-5).unwrap()
}

/// Inference from x to y.
fn inference(bn: &BatchNorm<f32>, x: &Tensor, y: &mut Tensor) -> Vec<Event> {
    inference_by(PLAIN, bn, x, y)
}

/// The same in other ways.
fn inference_by(ways: Ways, bn: &BatchNorm<f32>, x: &Tensor, y: &mut Tensor) -> Vec<Event> {
    let c = bn.shape().channels();
    let (mean, var, mut ws) = (vec![1.0; c], vec![4.0; c], vec![0; bn.workspace_best(Op::Inference, 1)]);
    let run = Run::serial(&mut ws);
    trace(ways, || bn.inference(x.get(), None, Affine::NONE, &mean, &var, y.get_mut(), run).unwrap())
}

fn moments(bn: &BatchNorm<f32>, x: &Tensor) -> Vec<Event> {
    moments_by(PLAIN, bn, x)
}

fn moments_by(ways: Ways, bn: &BatchNorm<f32>, x: &Tensor) -> Vec<Event> {
    let (mut m, mut ws) =
        (vec![Moments::EMPTY; bn.shape().channels()], vec![0; bn.workspace_best(Op::ForwardTraining, 1)]);
    trace(ways, || bn.moments(x.get(), &mut m, Run::serial(&mut ws)).unwrap())
}

/// Backward: dx, or dgamma, or both.
fn gradients(
    bn: &BatchNorm<f32>,
    [x, dy]: [&Tensor; 2],
    y: Option<&Tensor>,
    statistics: Statistics<'_, f32>,
    dx: Option<&mut Tensor>,
    parameters: bool,
) -> Vec<Event> {
    gradients_by(PLAIN, bn, [x, dy], y, statistics, dx, parameters)
}

fn gradients_by(
    ways: Ways,
    bn: &BatchNorm<f32>,
    [x, dy]: [&Tensor; 2],
    y: Option<&Tensor>,
    statistics: Statistics<'_, f32>,
    dx: Option<&mut Tensor>,
    parameters: bool,
) -> Vec<Event> {
    let (mut dgamma, mut ws) = (vec![0.0; bn.shape().channels()], vec![0; bn.workspace_best(Op::Backward, 1)]);
    let input = BackwardInput { x: x.get(), y: y.map(Tensor::get), dy: dy.get(), gamma: None, statistics };
    let output = Gradients {
        dx: dx.map(|dx| dx.get_mut().into()),
        dgamma: parameters.then_some(&mut dgamma[..]),
        ..Gradients::default()
    };
    trace(ways, || bn.backward(input, output, Run::serial(&mut ws)).unwrap())
}

/// Moments of a batch.
fn batch(bn: &BatchNorm<f32>) -> Vec<Moments> {
    let count = bn.shape().values_per_channel();
    vec![Moments { count, mean: 1.0, m2: count as f64 }; bn.shape().channels()]
}

/// Backward through statistics of the batch: the sums, and what follows them.
fn backward(bn: &BatchNorm<f32>, x: &Tensor, dy: &Tensor, dx: &mut Tensor) -> Vec<Event> {
    gradients(bn, [x, dy], None, Statistics::Batch(&batch(bn)), Some(dx), true)
}

/// The starts of vectors, of which the last one ends with the run.
fn vectors(run: Range<usize>) -> Vec<usize> {
    run.clone().step_by(LANES).map(|i| i.min(run.end - LANES)).collect()
}

fn sorted(mut v: Vec<usize>) -> Vec<usize> {
    v.sort_unstable();
    v
}

#[test]
fn a_map_reads_and_writes_an_element_once() {
    // Rows are a run, and so are images; rows that are folded too, but for those that are left over.
    for (shape, runs, left) in [
        (Shape::nhwc(3, 64, &[7, 7]), 1, 0),
        (Shape::nhwc(3, 67, &[7, 7]), 1, 0),
        (Shape::nhwc(16, 5, &[8]), 1, 0),
        (Shape::nhwc(3, 8, &[7, 7]), 1, 24),
        (Shape::nhwc(2, 1, &[50]), 2, 0),
        (Shape::nchw(3, 5, &[7, 7]), 3, 0),
        (Shape::nchw(4, 5, &[8, 8]), 4, 0),
        (Shape::nchw(2, 1, &[16]), 2, 0),
        (Shape::nchw(16, 20, &[3]), 1, 0),
    ] {
        let bn = plan(shape.unwrap());
        let n = bn.shape().len();
        let (x, mut y) = (Tensor::new(n, 1), Tensor::new(n, 2));
        let run = (n - left) / runs;
        let mut expected: Vec<usize> = (0..runs).flat_map(|i| vectors(i * run..(i + 1) * run)).collect();
        expected.extend(if left >= LANES { vectors(n - left..n) } else { vec![] });
        let events = inference(&bn, &x, &mut y);
        assert_eq!(sorted(y.seen(&events, Kind::Write)), expected, "{bn:?}");
        // The last vector of a run is read before anything is written; where it is a whole one once more.
        let twice = (0..if run.is_multiple_of(LANES) { runs } else { 0 }).map(|i| (i + 1) * run - LANES);
        let twice = twice.chain((left >= LANES && left.is_multiple_of(LANES)).then_some(n - LANES));
        expected.extend(twice.collect::<Vec<_>>());
        assert_eq!(sorted(x.seen(&events, Kind::Read)), sorted(expected), "{bn:?}");
        assert!(events.iter().all(|e| e.kind != Kind::Past && e.kind != Kind::Check), "{bn:?}");
    }
}

/// Rows or images in lockstep, a quarter of all apart, and those that four do not divide.
fn visits(items: usize) -> Vec<Vec<usize>> {
    let quarter = items / 4;
    let fours = (0..quarter).map(|v| (0..4).map(|t| v + t * quarter).collect());
    let rest: Vec<usize> = (4 * quarter..items).collect();
    fours.chain((!rest.is_empty()).then_some(rest)).collect()
}

#[test]
fn sums_read_four_images_in_lockstep() {
    for (images, channels, plane) in [(8, 2, 256), (9, 1, 250), (11, 3, 80), (3, 2, 200), (4, 1, 65)] {
        let bn = plan(Shape::nchw(images, channels, &[plane]).unwrap());
        let [x, dy, mut dx] = [0, 1, 2].map(|skew| Tensor::new(bn.shape().len(), skew));
        let mut expected = vec![];
        for visit in visits(images) {
            for c in 0..channels {
                let start = |image: usize| (image * channels + c) * plane;
                if visit.len() == 4 {
                    let at = vectors(0..plane);
                    expected.extend(at.into_iter().flat_map(|v| visit.iter().map(move |&i| start(i) + v)));
                } else {
                    expected.extend(visit.iter().flat_map(|&i| vectors(start(i)..start(i) + plane)));
                }
            }
        }
        assert_eq!(x.seen(&moments(&bn, &x), Kind::Read), expected, "{bn:?}");
        let events = backward(&bn, &x, &dy, &mut dx);
        assert_eq!(x.seen(&events, Kind::Read)[..expected.len()], expected, "x of {bn:?}");
        assert_eq!(dy.seen(&events, Kind::Read)[..expected.len()], expected, "dy of {bn:?}");
    }
}

#[test]
fn sums_read_small_planes_of_four_channels_in_lockstep() {
    for (images, channels) in [(8, 8), (4, 6), (9, 5), (3, 4)] {
        let bn = plan(Shape::nchw(images, channels, &[7, 7]).unwrap());
        let x = Tensor::new(bn.shape().len(), 0);
        let mut expected = vec![];
        for visit in visits(images) {
            let mut c = 0;
            while c < channels {
                let together = if visit.len() == 4 && c + 4 <= channels { 4 } else { 1 };
                for &image in &visit {
                    for v in vectors(0..49) {
                        expected.extend((c..c + together).map(|c| (image * channels + c) * 49 + v));
                    }
                }
                c += together;
            }
        }
        assert_eq!(x.seen(&moments(&bn, &x), Kind::Read), expected, "{bn:?}");
    }
}

/// The reads of rows that sums take, four vectors of each at a time; behind them those of what is left over. Narrow rows of
/// `chain` visits are taken together.
fn of_rows(rows: usize, width: usize, together: usize, chain: usize) -> Vec<usize> {
    let mut expected = vec![];
    let visits = visits(rows);
    let (fours, rest) = visits.split_at(rows / 4);
    let chains = fours.chunks(if width <= 64 { chain } else { 1 }).map(|c| c.concat());
    for visit in chains.chain(rest.iter().cloned()) {
        let together = if visit.len() > 4 { visit.len() } else { together };
        let (together, most) = if visit.len() >= 4 { (together, 4) } else { (1, 1) };
        for rows in visit.chunks(together) {
            let mut at = vectors(0..width);
            while !at.is_empty() {
                // The last vector overlaps its neighbour, unless they are a whole number.
                let whole = at.len() >= most && at[most - 1] == at[0] + (most - 1) * LANES;
                let some: Vec<usize> = at.drain(..if whole { most } else { 1 }).collect();
                expected.extend(rows.iter().flat_map(|&r| some.iter().map(move |&v| r * width + v)));
            }
        }
    }
    expected
}

#[test]
fn sums_read_four_rows_in_lockstep() {
    for (rows, channels) in [(8, 128), (13, 100), (6, 67), (3, 64), (40, 16), (100, 64), (96, 48), (40, 65)] {
        let bn = plan(Shape::nhwc(rows, channels, &[]).unwrap());
        let [x, dy, y, mut dx] = [0, 1, 2, 3].map(|skew| Tensor::new(bn.shape().len(), skew));
        // Rows of one vector are taken four at a time.
        let fold = if channels == 16 { 4 } else { 1 };
        let (rows, width) = (rows / fold, channels * fold);
        let samples = 16 * width.div_ceil(LANES);
        let expected = of_rows(rows, width, 4, 4);
        assert_eq!(x.seen(&moments(&bn, &x), Kind::Read)[samples..], expected, "{bn:?}");
        let events = backward(&bn, &x, &dy, &mut dx);
        for (tensor, what) in [(&x, "x"), (&dy, "dy")] {
            assert_eq!(tensor.seen(&events, Kind::Read)[samples..][..expected.len()], expected, "{what} of {bn:?}");
        }
        // With y, which says where an activation let dy through, two and two.
        let bn = bn.with_activation(Activation::Relu).unwrap();
        let expected = of_rows(rows, width, 2, 1);
        let events = gradients(&bn, [&x, &dy], Some(&y), Statistics::Batch(&batch(&bn)), None, true);
        for (tensor, what) in [(&x, "x"), (&dy, "dy"), (&y, "y")] {
            assert_eq!(tensor.seen(&events, Kind::Read)[samples..], expected, "{what} of {bn:?}, with y");
        }
    }
}

/// A walk of `parts` parts, a whole number of units each, `together` elements of each in turn; and then of the rest.
fn in_parts(run: Range<usize>, parts: usize, unit: usize, together: usize) -> (Vec<usize>, Range<usize>) {
    let far = run.len() / parts / unit * unit;
    parts_apart(run, parts, far, together)
}

/// The same of parts so many elements apart.
fn parts_apart(run: Range<usize>, parts: usize, far: usize, together: usize) -> (Vec<usize>, Range<usize>) {
    let mut order = vec![];
    for done in (0..far).step_by(together) {
        for part in 0..parts {
            let start = run.start + part * far + done;
            order.extend((start..start + together.min(far - done)).step_by(LANES));
        }
    }
    (order, run.start + parts * far..run.end)
}

#[test]
fn long_runs_are_mapped_in_parts_far_apart() {
    const LONG: usize = NEAR / size_of::<f32>();
    // Channels, and elements after which both vectors and channels begin again.
    let many = shared::<3>() / size_of::<f32>() / 3 / 16 * 16;
    let cases = [
        (64, 64, 2),
        (50, 400, 2),
        (67, 67 * 16, 2),
        (24, 48, 2),
        (1024, 1024, 2),
        // Four where a first-level cache does not hold the constants.
        (many, many, 2),
        (many + 16, many + 16, 4),
        (2048, 2048, 4),
    ];
    for (channels, unit, parts) in cases {
        let rows = LONG.div_ceil(channels);
        for rows in [rows, rows - 1, rows * 5 / 4, 3 * rows, 70 * rows] {
            let bn = plan(Shape::nhwc(rows, channels, &[]).unwrap());
            let n = bn.shape().len();
            let parts = if n / unit < parts { 2 } else { parts };
            let folded = if channels < 48 { rows / 2 * 2 * channels } else { n };
            let (x, mut y) = (Tensor::new(n, 3), Tensor::new(n, 5));
            let (mut expected, rest) =
                if folded >= LONG { in_parts(0..folded, parts, unit, LANES) } else { (vec![], 0..folded) };
            expected.extend(vectors(rest));
            expected.extend(if n - folded >= LANES { vectors(folded..n) } else { vec![] });
            let events = inference(&bn, &x, &mut y);
            assert_eq!(y.seen(&events, Kind::Write), expected, "{bn:?}");
        }
    }
}

#[test]
fn parts_of_backward_begin_at_different_places_of_their_pages() {
    // Backward has so many constants that with this many channels a first-level cache does not hold them.
    const MANY: usize = WIDE / size_of::<f32>() / 5;
    let cases = [
        (64, 2),
        (256, 2),
        (MANY.next_multiple_of(16), 4),
        (MANY / 16 * 16, 2),
        (1008, 2),
        (1024, 2),
        (1536, 2),
        (2048, 4),
    ];
    for (channels, parts) in cases {
        // Where they cannot, near parts are none.
        let least = if channels % PAGE == 0 { FAR } else { NEAR } / size_of::<f32>();
        let rows = least.div_ceil(channels);
        for rows in [rows, rows - 1, rows + 7, 5 * rows] {
            let bn = plan(Shape::nhwc(rows, channels, &[]).unwrap());
            let n = bn.shape().len();
            let [x, dy, mut dx] = [0, 1, 2].map(|skew| Tensor::new(n, skew));
            let events = backward(&bn, &x, &dy, &mut dx);
            let written = dx.seen(&events, Kind::Write);
            let (longest, off) = (n / parts / channels * channels, |far: usize| (far % PAGE).abs_diff(PAGE / parts));
            let far = if n >= least && longest > 0 { written[1] } else { 0 };
            // As near the best place as the next four distances are, or a few vectors from it.
            assert!(far % channels == 0 && far <= longest, "{far}: {bn:?}");
            if far > 0 && longest > PAGE {
                assert!(longest - far < PAGE.max(4 * channels), "{far}: {bn:?}");
                let others = (0..4).map(|units| units * channels).filter(|&less| less < longest);
                let best = others.map(|less| off(longest - less)).min().unwrap();
                assert!(off(far) <= best.max(PAGE / 8), "{far}: {bn:?}");
            }
            let (mut expected, rest) = parts_apart(0..n, parts, far, LANES);
            expected.extend(vectors(rest));
            assert_eq!(written, expected, "{bn:?}");
        }
    }
}

#[test]
fn constants_of_whole_vectors_are_one_stream() {
    // Channels, and bytes from one constant of a vector to the next.
    for (channels, apart) in [(64, 64), (80, 64), (67, 4 * 96), (100, 4 * 128)] {
        let bn = plan(Shape::nhwc(6, channels, &[]).unwrap());
        let (x, mut y) = (Tensor::new(bn.shape().len(), 0), Tensor::new(bn.shape().len(), 0));
        let events = inference(&bn, &x, &mut y);
        // Behind the reads of the last vector, which come first: x once, and three constants, again and again.
        let reads: Vec<usize> = events.iter().filter(|e| e.kind == Kind::Read).map(|e| e.address).collect();
        let first = x.get().as_ptr().addr();
        let of_x = |a: &usize| (first..first + 4 * x.get().len()).contains(a);
        // What is read before is what constants are made of.
        let table: Vec<usize> = reads.into_iter().skip_while(|a| !of_x(a)).filter(|a| !of_x(a)).collect();
        let vectors = bn.shape().len().div_ceil(LANES);
        assert_eq!(table.len(), 3 * vectors, "{bn:?}");
        for three in table.chunks(3) {
            assert_eq!([three[1] - three[0], three[2] - three[1]], [apart; 2], "{bn:?}");
        }
        let step = if apart == 64 { 3 * 64 } else { 64 };
        assert_eq!(table[3] - table[0], step, "{bn:?}");
    }
}

#[test]
fn what_does_not_fit_the_caches_is_stored_past_them() {
    let rows = LARGE / 64;
    for (ways, skew) in
        [(PLAIN, 0), (PLAIN, 5), (PLAIN, 15), (LINES, 0), (LINES, 5), (LINES, 16), (AHEAD, 0), (AHEAD, 5), (AHEAD, 16)]
    {
        let (x, mut y) = (Tensor::new(LARGE, 0), Tensor::new(LARGE, skew));
        let bn = plan(Shape::nhwc(rows, 64, &[]).unwrap());
        let events = inference_by(ways, &bn, &x, &mut y);
        // Four parts line by line, or two parts that take turns.
        let (parts, together) = if ways.lines { (4, LANES) } else { (2, TURN / size_of::<f32>()) };
        let lead = (LANES - skew % LANES) % LANES;
        let far = if ways.ahead { quarter(&y, &events, 64) } else { (LARGE - lead) / parts / 64 * 64 };
        let (mut past, rest) = parts_apart(lead..LARGE, parts, far, together);
        past.extend((rest.start..rest.end - rest.len() % LANES).step_by(LANES));
        let name = format!("{bn:?}, {ways:?}, {skew}");
        assert_eq!(y.seen(&events, Kind::Past), past, "{name}");
        let others = if lead > 0 { vec![0, LARGE - LANES] } else { vec![] };
        assert_eq!(y.seen(&events, Kind::Write), others, "{name}");
        assert_eq!(events.last().map(|e| e.kind), Some(Kind::Fence));
        // The last vector is read before anything is written; where it is a whole one once more.
        let reads = past.len() + others.len() + (lead == 0) as usize;
        assert_eq!(x.seen(&events, Kind::Read).len(), reads, "{name}");
    }
    // A row less, and in place.
    let (x, mut y) = (Tensor::new(LARGE - 64, 0), Tensor::new(LARGE - 64, 0));
    let events = inference(&plan(Shape::nhwc(rows - 1, 64, &[]).unwrap()), &x, &mut y);
    assert!(events.iter().all(|e| e.kind != Kind::Past && e.kind != Kind::Fence));
    let (bn, mut y) = (plan(Shape::nhwc(rows, 64, &[]).unwrap()), Tensor::new(LARGE, 0));
    let (mean, var, mut ws) = (vec![1.0; 64], vec![4.0; 64], vec![0; bn.workspace_best(Op::Inference, 1)]);
    let run = Run::serial(&mut ws);
    let events = trace(PLAIN, || bn.inference_in_place(y.get_mut(), None, Affine::NONE, &mean, &var, run).unwrap());
    assert!(events.iter().all(|e| e.kind != Kind::Past && e.kind != Kind::Fence));
    // Rows with gaps, and channels that are a part of one, are no run.
    let (x, mut y) = (Tensor::new(LARGE + rows, 0), Tensor::new(LARGE, 0));
    let bn = bn.with_strides(Strides { x: Stride { batch: 65, inner: 0 }, ..Strides::DENSE }).unwrap();
    let events = inference(&bn, &x, &mut y);
    assert!(events.iter().all(|e| e.kind != Kind::Past && e.kind != Kind::Fence));
}

/// How far apart the quarters of an output are stored past the caches, which is a whole number of units, and such that they begin at
/// different places of their pages.
fn quarter(y: &Tensor, events: &[Event], unit: usize) -> usize {
    let past = y.seen(events, Kind::Past);
    let far = past[1] - past[0];
    let longest = y.get().len() / 4;
    assert!(far.is_multiple_of(unit) && (longest - PAGE..=longest).contains(&far), "{far}");
    assert!((far % PAGE).abs_diff(PAGE / 4) <= PAGE / 8, "{far}");
    far
}

/// The elements whose lines are asked for, by a call that reads them a while later.
fn asked(tensor: &Tensor, events: &[Event], ahead: usize) -> Vec<usize> {
    let first = tensor.get().as_ptr().addr() + ahead;
    let end = first + size_of_val(tensor.get());
    let asks = events.iter().filter(|e| e.kind == Kind::Ask && (first..end).contains(&e.address));
    asks.map(|e| (e.address - first) / size_of::<f32>()).collect()
}

#[test]
fn maps_past_the_caches_ask_for_lines_ahead() {
    for skew in [0, 5] {
        let (x, mut y) = (Tensor::new(LARGE, 0), Tensor::new(LARGE, skew));
        let bn = plan(Shape::nhwc(LARGE / 64, 64, &[]).unwrap());
        assert!(inference_by(LINES, &bn, &x, &mut y).iter().all(|e| e.kind != Kind::Ask));
        let events = inference_by(AHEAD, &bn, &x, &mut y);
        // With what each vector of a quarter reads.
        let lead = (LANES - skew % LANES) % LANES;
        let far = quarter(&y, &events, 64);
        assert!(asked(&x, &events, ASKED) == parts_apart(lead..LARGE, 4, far, LANES).0, "{skew}");
        // In cache nothing is asked for.
        let bn = plan(Shape::nhwc(1000, 64, &[]).unwrap());
        let (x, mut y) = (Tensor::new(64_000, 0), Tensor::new(64_000, skew));
        assert!(inference_by(AHEAD, &bn, &x, &mut y).iter().all(|e| e.kind != Kind::Ask));
    }
    // Of backward's two inputs too, and of nothing else; what four parts leave over asks as turns do.
    let bn = plan(Shape::nhwc(LARGE / 64, 64, &[]).unwrap());
    let [x, dy, mut dx] = [0, 1, 0].map(|skew| Tensor::new(LARGE, skew));
    let statistics = batch(&bn);
    let events = gradients_by(AHEAD, &bn, [&x, &dy], None, Statistics::Batch(&statistics), Some(&mut dx), true);
    let start = events.iter().position(|e| e.kind == Kind::Past).unwrap();
    let (far, asks) = (quarter(&dx, &events, 64), |e: &&Event| e.kind == Kind::Ask);
    let (order, rest) = parts_apart(0..LARGE, 4, far, LANES);
    for tensor in [&x, &dy] {
        // The first line is stored when it has been asked for.
        assert!(asked(tensor, &events[start..], ASKED)[..order.len() - 1] == order[1..]);
    }
    assert_eq!(events[start..].iter().filter(asks).count(), 2 * (order.len() - 1 + rest.len() / LANES));
    // Rows of whole pages go by turns; backward then asks for what the next turn reads.
    let rows = LARGE.div_ceil(PAGE);
    let bn = plan(Shape::nhwc(rows, PAGE, &[]).unwrap());
    let n = bn.shape().len();
    let (x, dy, mut dx) = (Tensor::new(n, 0), Tensor::new(n, 0), Tensor::new(n, 0));
    let order = in_parts(0..n, 2, PAGE, TURN / size_of::<f32>()).0;
    let statistics = batch(&bn);
    let events = gradients_by(AHEAD, &bn, [&x, &dy], None, Statistics::Batch(&statistics), Some(&mut dx), true);
    assert!(dx.seen(&events, Kind::Past)[..order.len()] == order);
    let start = events.iter().position(|e| e.kind == Kind::Past).unwrap();
    for tensor in [&x, &dy] {
        // The first vector's come before it is stored.
        assert!(asked(tensor, &events[start..], TURN)[..order.len() - 1] == order[1..]);
    }
    // Inference in quarters where its constants are many, and asking only where a first-level cache does not hold them at all.
    for (channels, parts, asks) in [(PAGE, 2, false), (2 * PAGE, 4, false), (3 * PAGE, 4, true)] {
        let bn = plan(Shape::nhwc(LARGE.div_ceil(channels), channels, &[]).unwrap());
        let (x, mut y) = (Tensor::new(bn.shape().len(), 0), Tensor::new(bn.shape().len(), 0));
        let (order, rest) = in_parts(0..x.get().len(), parts, channels, TURN / size_of::<f32>());
        let events = inference_by(AHEAD, &bn, &x, &mut y);
        assert!(y.seen(&events, Kind::Past)[..order.len()] == order, "{bn:?}");
        let of = if asks { [order, rest.step_by(LANES).collect()].concat() } else { vec![] };
        assert!(asked(&x, &events, TURN) == of, "{bn:?}");
        // And for nothing else.
        assert_eq!(events.iter().filter(|e| e.kind == Kind::Ask).count(), of.len(), "{bn:?}");
    }
}

/// Several cells: a pivot of x is of a cell, and is made of 16 samples in each; one of dy is of the channel.
#[test]
fn what_is_of_a_channel_is_made_once() {
    for (shape, cells) in
        [(Shape::nhwc(4096, 64, &[]), 8), (Shape::nhwc(1, 80, &[1280]), 2), (Shape::nchw(8, 3, &[4096]), 32)]
    {
        let bn = plan(shape.unwrap());
        let n = bn.shape().len();
        let (x, dy) = (Tensor::new(n, 0), Tensor::new(n, 1));
        let rows = bn.shape().layout() == crate::Layout::Nhwc;
        let samples = if rows { 16 * bn.shape().channels() / LANES } else { 0 };
        assert_eq!(x.seen(&moments(&bn, &x), Kind::Read).len(), n / LANES + cells * samples, "{bn:?}");
        let events = gradients(&bn, [&x, &dy], None, Statistics::Batch(&batch(&bn)), None, true);
        assert_eq!(dy.seen(&events, Kind::Read).len(), n / LANES + samples, "{bn:?}");
    }
}

#[test]
fn sums_of_rows_past_the_caches_ask_for_lines_ahead() {
    // Channels, operands, and whether lines are asked for: not where rows are taken 16 at a time, nor where they are read in tiles, nor
    // with three operands whose rows begin at the same place of their pages.
    for (channels, operands, asks) in [
        (128, 1, true),
        (100, 1, true),
        (64, 1, false),
        (128, 2, true),
        (PAGE, 2, true),
        (2 * PAGE, 1, false),
        (2 * PAGE, 2, false),
        (192, 3, true),
        (PAGE, 3, false),
    ] {
        for past in [true, false] {
            // A multiple of four: rows in lockstep.
            let least = CACHED_BYTES / size_of::<f32>() / operands / channels;
            let rows = if past { least.next_multiple_of(4) + 4 } else { least / 4 * 4 - 4 };
            let bn = plan(Shape::nhwc(rows, channels, &[]).unwrap());
            let bn = if operands == 3 { bn.with_activation(Activation::Relu).unwrap() } else { bn };
            let n = bn.shape().len();
            let tensors = [0, 1, 2].map(|skew| Tensor::new(if skew < operands { n } else { 0 }, skew));
            let [x, dy, y] = &tensors;
            let events = match operands {
                1 => moments_by(AHEAD, &bn, x),
                _ => {
                    let (y, statistics) = ((operands == 3).then_some(y), batch(&bn));
                    gradients_by(AHEAD, &bn, [x, dy], y, Statistics::Batch(&statistics), None, true)
                }
            };
            let expected = if asks && past {
                (0..rows).flat_map(|r| vectors(r * channels..(r + 1) * channels)).collect()
            } else {
                vec![]
            };
            for tensor in &tensors[..operands] {
                assert!(sorted(asked(tensor, &events, ASKED)) == expected, "{bn:?}, {operands}, {past}");
            }
        }
    }
}

#[test]
fn sums_of_planes_past_the_caches_ask_for_lines_ahead() {
    // Small planes, of which two channels or more go at once, planes of a run, and of several.
    for (channels, plane, operands) in [(6, 64, 1), (5, 64, 2), (3, 256, 1), (3, 1024, 2), (1, 8192, 1)] {
        for past in [true, false] {
            // Four images at a time, and those that are left over.
            let least = CACHED_BYTES / size_of::<f32>() / operands / channels / plane;
            let images = if past { least + 1 } else { least - 1 };
            let bn = plan(Shape::nchw(images, channels, &[plane]).unwrap());
            let n = bn.shape().len();
            let [x, dy] = [0, 1].map(|skew| Tensor::new(if skew < operands { n } else { 0 }, skew));
            let sums = |ways| match operands {
                1 => moments_by(ways, &bn, &x),
                _ => gradients_by(ways, &bn, [&x, &dy], None, Statistics::Batch(&batch(&bn)), None, true),
            };
            let events = sums(AHEAD);
            let expected = if past { vectors(0..n) } else { vec![] };
            for tensor in &[&x, &dy][..operands] {
                assert!(sorted(asked(tensor, &events, ASKED)) == expected, "{bn:?}, {operands}, {past}");
            }
            assert!(sums(LINES).iter().all(|e| e.kind != Kind::Ask));
        }
    }
    // Planes with gaps between their elements are staged: nothing is asked for.
    let bn = plan(Shape::nhwc(CACHED_BYTES / size_of::<f32>() / 512, 1, &[512]).unwrap());
    let bn = bn.with_strides(Strides { x: Stride { batch: 1024, inner: 2 }, ..Strides::DENSE }).unwrap();
    let events = moments_by(AHEAD, &bn, &Tensor::new(2 * bn.shape().len(), 0));
    assert!(events.iter().all(|e| e.kind != Kind::Ask));
}

/// Where stores would hold back the loads of the next line, they come after those.
#[test]
fn stores_past_the_caches_come_late_if_that_helps() {
    for (skew, late) in [(0, false), (1, true), (16, true), (17, false), (PAGE / 2, false), (PAGE - 16, false)] {
        let (x, mut y) = (Tensor::new(LARGE, 0), Tensor::new(LARGE, skew));
        let bn = plan(Shape::nhwc(LARGE / 64, 64, &[]).unwrap());
        let events = inference_by(LINES, &bn, &x, &mut y);
        let first = events.iter().position(|e| e.kind == Kind::Past).unwrap();
        // Behind the last vector, and what comes before the first line.
        let before = 1 + !skew.is_multiple_of(LANES) as usize;
        let expected = before + if late { 8 } else { 4 };
        assert_eq!(x.seen(&events[..first], Kind::Read).len(), expected, "{skew}");
    }
}

#[test]
fn images_are_stored_past_the_caches_two_at_a_time() {
    for (images, channels, plane) in
        [(8, 11, LARGE / 88), (7, 12, LARGE / 84 + 1), (1, 64, LARGE / 64), (4, 4, LARGE / 16 + 1)]
    {
        for skew in [0, 9] {
            let bn = plan(Shape::nchw(images, channels, &[plane]).unwrap());
            let (n, image) = (bn.shape().len(), channels * plane);
            let (x, mut y) = (Tensor::new(n, 0), Tensor::new(n, skew));
            assert!(inference(&bn, &x, &mut y).iter().all(|e| e.kind != Kind::Ask));
            let events = inference_by(AHEAD, &bn, &x, &mut y);
            let half = images.div_ceil(2);
            let lead = |i: usize| (LANES - (skew + i * image) % LANES) % LANES;
            let lines = |i: usize| i * image + lead(i)..(i + 1) * image - (image - lead(i)) % LANES;
            let mut past: Vec<usize> = vec![];
            for i in 0..half {
                let j = i + half;
                if j < images && lead(i) == lead(j) {
                    let turn = TURN / size_of::<f32>();
                    for done in (0..lines(i).len()).step_by(turn) {
                        for i in [i, j] {
                            let start = lines(i).start + done;
                            past.extend((start..lines(i).end.min(start + turn)).step_by(LANES));
                        }
                    }
                } else {
                    past.extend([i, j].into_iter().filter(|&i| i < images).flat_map(|i| lines(i).step_by(LANES)));
                }
            }
            assert_eq!(y.seen(&events, Kind::Past), past, "{bn:?}, {skew}");
            // With what each of them reads the same of the next turn.
            assert!(asked(&x, &events, TURN) == past, "{bn:?}, {skew}");
            let mut others = vec![];
            for i in 0..images {
                others.extend((lead(i) > 0).then_some(i * image));
                others.extend((lines(i).end < (i + 1) * image).then_some((i + 1) * image - LANES));
            }
            assert_eq!(sorted(y.seen(&events, Kind::Write)), others, "{bn:?}, {skew}");
            assert_eq!(events.last().map(|e| e.kind), Some(Kind::Fence));
        }
    }
}

#[test]
fn planes_with_gaps_are_stored_past_the_caches_if_they_are_long() {
    for (plane, long) in [(32 * LANES, true), (32 * LANES - 1, false)] {
        let shape = Shape::nchw(LARGE / plane / 2 + 1, 2, &[plane]).unwrap();
        let stride = Stride { batch: 2 * (plane + LANES), inner: plane + LANES };
        let bn = plan(shape).with_strides(Strides { y: stride, ..Strides::DENSE }).unwrap();
        let (x, mut y) = (Tensor::new(shape.len(), 0), Tensor::new(shape.batch() * stride.batch, 0));
        let events = inference(&bn, &x, &mut y);
        let all = [Kind::Past, Kind::Write].map(|kind| y.seen(&events, kind).len());
        assert_eq!(all.map(|n| n > 0), [long, !long], "{bn:?}");
        assert_eq!(all[0] + all[1], 2 * shape.batch() * 32, "{bn:?}");
        assert_eq!(events.last().map(|e| e.kind == Kind::Fence), Some(long), "{bn:?}");
    }
}

#[test]
fn only_what_may_overflow_and_come_back_is_checked() {
    let checks = |bn: &BatchNorm<f32>, factor: f32| {
        let n = bn.shape().len();
        let (mut x, mut y) = (Tensor::new(n, 0), Tensor::new(n, 0));
        x.get_mut().iter_mut().for_each(|v| *v *= factor);
        inference(bn, &x, &mut y).iter().filter(|e| e.kind == Kind::Check).count()
    };
    for shape in [Shape::nhwc(20, 80, &[]), Shape::nchw(3, 5, &[7, 8])] {
        let bn = plan(shape.unwrap());
        let vectors = if bn.shape().channels() == 80 { 100 } else { 3 * 18 };
        let leaky = |slope| bn.with_activation(Activation::LeakyRelu { slope }).unwrap();
        let clamp = bn.with_activation(Activation::Clamp { lo: 0.0, hi: 6.0 }).unwrap();
        for bn in [bn, clamp, bn.with_activation(Activation::Relu).unwrap()] {
            assert_eq!(checks(&bn, 1.0), 0, "{bn:?}");
        }
        assert_eq!(checks(&leaky(0.5), 1.0), vectors, "{bn:?}");
    }
}

/// Without gradients of the parameters, statistics that do not depend on x ask for no sums: dy is read, once, and nothing else.
#[test]
fn frozen_statistics_need_no_x() {
    for shape in [Shape::nhwc(20, 80, &[]), Shape::nchw(3, 5, &[7, 8])] {
        let bn = plan(shape.unwrap());
        let (n, c) = (bn.shape().len(), bn.shape().channels());
        let [x, dy, mut dx] = [0, 1, 2].map(|skew| Tensor::new(n, skew));
        let (mean, var) = (vec![1.0; c], vec![4.0; c]);
        let statistics = Statistics::Running { mean: &mean, var: &var };
        let events = gradients(&bn, [&x, &dy], None, statistics, Some(&mut dx), false);
        assert_eq!(x.seen(&events, Kind::Read), [], "{bn:?}");
        let (reads, writes) = (dy.seen(&events, Kind::Read), dx.seen(&events, Kind::Write));
        // The last vector of a run is read before anything is written; where it is a whole one once more.
        let runs = if c == 80 { 1 } else { 3 };
        let twice = if (n / runs).is_multiple_of(LANES) { runs } else { 0 };
        assert_eq!(
            (reads.len(), writes.len()),
            (runs * (n / runs).div_ceil(LANES) + twice, reads.len() - twice),
            "{bn:?}"
        );
        // What is s·dy can not come back from beyond the range; dx of a batch can.
        assert!(events.iter().all(|e| e.kind != Kind::Check), "{bn:?}");
        let checks = backward(&bn, &x, &dy, &mut dx).iter().filter(|e| e.kind == Kind::Check).count();
        assert!(checks >= n / LANES, "{bn:?}: {checks}");
    }
}
