//! Walks both geometries one element at a time, channel by channel: bare metal without vectors, where code and
//! stack have to be small. The same additions in the same order as in [`super::nchw`] and [`super::nhwc`], without
//! tables and staging.
//!
//! ```text
//! naive:  for each cell, for each (virtual) lane { for each element { sums += addends(element) } }
//! ```

use super::grid::{CHAIN, Grid, Planes, ROW_CHAIN, Rows, SAMPLES, div, part, rem};
use super::run::again;
use super::{Compute, Place, Vec, first, load_all, splat_all, words_for};
use crate::double::same;
use crate::element::Element;
use crate::kernel::{Map, Reduction};
use crate::lanes::{Scalar, Vector, single::Single};
use crate::shape::Shape;

type One<E> = Vec<E, Single>;

const LANE: Single = Single::BASE;

/// What a cell's sums take of the workspace: there is more of it than of stack.
pub(crate) struct State<S, const K: usize, const N: usize> {
    /// The constants that the sums are about, in the element's arithmetic.
    narrow: [S; K],
    /// The same in f64.
    pub(crate) k: [f64; K],
    chain: [S; N],
    sum: [S; N],
    wide: [f64; N],
    /// Sums of 1, 2, 4, … lanes that wait for their like; the last one is that of all.
    parts: [[f64; N]; PARTS],
    /// The sums of all elements; in the end what they are settled as.
    pub(crate) result: [f64; N],
    /// The last sample, and all of them.
    sample: S,
    samples: [S; SAMPLES],
}

impl<S: Scalar, const K: usize, const N: usize> State<S, K, N> {
    /// Words of scratch.
    pub(crate) const WORDS: usize = words_for::<Self>(1);

    /// In scratch.
    #[inline(always)]
    pub(crate) fn new(scratch: &mut [u64]) -> Option<&mut Self> {
        const { assert!(align_of::<Self>() <= align_of::<u64>()) };
        let enough = scratch.len() >= Self::WORDS;
        debug_assert!(enough, "workspace plan: {} words wanted, {} there", Self::WORDS, scratch.len());
        // SAFETY: large enough, and aligned; it is numbers, which any bits are.
        enough.then(|| unsafe { &mut *scratch.as_mut_ptr().cast() })
    }
}

/// Sums a channel over a cell of `count` elements: into `state.result`, with the constants that they are about in `state.k`.
///
/// # Safety
/// Every place is valid for reading the whole tensor.
#[inline(never)]
pub(crate) unsafe fn cell<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    grid: &Grid,
    from: &[Place<E>; I],
    channel: usize,
    (g, count): (usize, u64),
    state: &mut State<Compute<E>, K, N>,
) where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let (zero, n) = (Compute::<E>::ZERO, count as f64);
    // One after the other, in place: a tuple of them all is on the stack first.
    state.narrow.fill(zero);
    state.chain.fill(zero);
    state.sum.fill(zero);
    state.wide.fill(0.0);
    for part in &mut state.parts {
        part.fill(0.0);
    }
    let tree = matches!(grid, Grid::Planes(_));
    let mut sums = Sums::<E, R, I, J, K, N> { op, from, channel, tree, exact: false, same: true, state };
    for i in 1..K {
        sums.state.narrow[i] = op.constant(channel, i);
    }
    if op.pivots() {
        sums.state.narrow[0] = sums.pivot(grid, g);
    }
    // A second time if the pivot turns out to be far from the mean; then in f64, if nothing else will do.
    for attempt in 0..2 {
        for i in 0..K {
            sums.state.k[i] = sums.state.narrow[i].to_f64();
        }
        sums.walk(grid, g);
        match sums.judge(n) {
            Judgement::Good => return,
            Judgement::Again if attempt == 0 => {}
            _ => break,
        }
    }
    sums.exact = true;
    for pass in 0..R::PASSES {
        sums.walk(grid, g);
        if sums.next(pass, n) {
            break;
        }
    }
}

/// Elements of a channel: so many, from an image or row and a position there on, with steps of either.
#[derive(Clone, Copy)]
struct Series {
    item: usize,
    items: usize,
    position: usize,
    positions: usize,
    count: usize,
}

impl Series {
    fn one(item: usize, position: usize) -> Self {
        Series { item, items: 0, position, positions: 0, count: 1 }
    }
}

/// What a walk comes by. Not a type parameter of the walk, or there would be a copy of it for each kind of sums.
trait Visitor {
    /// Elements of a chain, or of the sums in f64.
    fn elements(&mut self, series: Series);
    /// Elements of the rows left over.
    fn rest(&mut self, series: Series);
    /// The end of a first-level sum.
    fn end_chain(&mut self);
    /// The end of the second-level sum of this lane, by its place in the order of [`walk`].
    fn end_lane(&mut self, i: usize, lanes: usize);
    /// The end of all lanes.
    fn end_lanes(&mut self);
}

/// Shows the elements of a channel in cell `g` to a visitor, in the order that they are added in; if `exact` in that
/// of the sums in f64, which have no levels.
#[inline(never)]
fn walk(grid: &Grid, lanes: usize, g: usize, exact: bool, to: &mut dyn Visitor) {
    match grid {
        Grid::Planes(geo) => {
            let (first, end) = geo.blocks(g);
            // Blocks and their lanes, or lanes and their blocks.
            let (outer, inner) = if exact { (lanes, end - first) } else { (end - first, lanes) };
            for i in 0..outer {
                for j in 0..inner {
                    let (lane, block) = if exact { (i, first + j) } else { (j, first + i) };
                    plane_lane(geo, lanes, block, lane, exact, to);
                    if !exact {
                        to.end_lane(lane, lanes);
                    }
                }
                if exact {
                    to.end_lane(i, lanes);
                } else {
                    to.end_lanes();
                }
            }
            if exact {
                to.end_lanes();
            }
        }
        Grid::Rows(geo) => {
            if exact {
                let (v0, v1) = geo.cell_visits(g);
                for v in v0..v1 {
                    let visit = geo.visits.get(v);
                    for t in 0..visit.count {
                        for f in 0..geo.fold {
                            let item = visit.item(t) * geo.fold + f;
                            to.elements(Series { positions: 1, count: geo.adjacent, ..Series::one(item, 0) });
                        }
                    }
                }
                to.end_lane(0, 1);
                to.end_lanes();
            } else {
                for f in 0..geo.fold {
                    for a in 0..geo.adjacent {
                        row_lane(geo, g, f, a, to);
                        to.end_lanes();
                    }
                }
            }
            for row in 0..geo.rest_of(g) {
                let item = geo.folded * geo.fold + row;
                to.rest(Series { positions: 1, count: geo.adjacent, ..Series::one(item, 0) });
            }
        }
    }
}

/// One lane of a block of planes: number `i` in the order in which a tree of them is added up in a few sums.
#[inline(always)]
fn plane_lane(geo: &Planes, lanes: usize, block: usize, i: usize, exact: bool, to: &mut dyn Visitor) {
    let lane = (i.reverse_bits() >> 1) >> (usize::BITS - 1 - lanes.trailing_zeros());
    let piece = geo.piece(rem(block, geo.pieces), lanes);
    let (v0, v1) = geo.block_visits(div(block, geo.pieces));
    let whole = div(geo.positions, lanes);
    let runs = if geo.spanning || exact { 1 } else { piece.vectors.div_ceil(CHAIN) };
    for v in v0..v1 {
        let visit = geo.visits.get(v);
        for run in 0..runs {
            let (from, end) = (part(piece.vectors, runs, run), part(piece.vectors, runs, run + 1));
            for t in 0..visit.count {
                let (item, first, end) = (visit.item(t), piece.first + from, piece.first + end);
                let position = first * lanes + lane;
                let count = end.min(whole).saturating_sub(first);
                to.elements(Series { positions: lanes, count, ..Series::one(item, position) });
                // The last vector overlaps its neighbour, if it is not whole.
                let last = geo.positions - lanes + lane;
                if end > whole && last >= whole * lanes {
                    to.elements(Series::one(item, last));
                }
                if !geo.spanning {
                    to.end_chain();
                }
            }
            if geo.spanning {
                to.end_chain();
            }
        }
    }
}

/// One virtual channel of a cell of rows.
fn row_lane(geo: &Rows, g: usize, f: usize, a: usize, to: &mut dyn Visitor) {
    let (first, end) = geo.cell_blocks(g);
    for block in first..end {
        let (v0, v1) = geo.block_visits(block);
        for v in v0..v1 {
            let visit = geo.visits.get(v);
            let (item, items) = (visit.first * geo.fold + f, visit.step * geo.fold);
            to.elements(Series { items, count: visit.count, ..Series::one(item, a) });
            if rem(v - v0, ROW_CHAIN) + 1 == ROW_CHAIN || v + 1 == v1 {
                to.end_chain();
            }
        }
        to.end_lane(0, 1);
    }
}

/// Levels of the tree of all lanes.
const PARTS: usize = super::MOST_LANES.trailing_zeros() as usize + 1;

/// What sums in the element's arithmetic are worth.
enum Judgement {
    Good,
    /// There is a better pivot.
    Again,
    Bad,
}

/// What becomes of an element.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// It is a sample for the pivot.
    Sample,
    /// It is added to the chain.
    Chain,
    /// It is added in f64: to the sums of the walk, or to the result.
    Exactly,
    Rest,
}

/// The sums of a channel.
struct Sums<'a, E: Element, R, const I: usize, const J: usize, const K: usize, const N: usize> {
    op: &'a R,
    from: &'a [Place<E>; I],
    channel: usize,
    /// Whether lanes are added up in a tree, or one after the other.
    tree: bool,
    /// Whether all is done in f64.
    exact: bool,
    /// Whether all elements so far are the pivot.
    same: bool,
    state: &'a mut State<Compute<E>, K, N>,
}

impl<E, R, const I: usize, const J: usize, const K: usize, const N: usize> Sums<'_, E, R, I, J, K, N>
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    /// Sums all elements of the cell.
    fn walk(&mut self, grid: &Grid, g: usize) {
        (self.state.result, self.same) = ([0.0; N], true);
        walk(grid, Compute::<E>::LANES, g, self.exact, self);
    }

    // What is done between walks is in functions of its own, whose numbers are not on the stack while one goes on (130
    // bytes).

    /// Settles the sums of a walk, if they are good; else there may be a better pivot.
    #[inline(never)]
    fn judge(&mut self, n: f64) -> Judgement {
        if self.op.good(&self.state.result, n) {
            self.settle(n);
            return Judgement::Good;
        }
        match R::repivot(self.state.k, &self.state.result, n) {
            Some(better) => {
                self.state.narrow[0] = better;
                Judgement::Again
            }
            None => Judgement::Bad,
        }
    }

    /// Settles the sums of a walk in f64, if it was the last one.
    #[inline(never)]
    fn next(&mut self, pass: usize, n: f64) -> bool {
        let none = pass == 0 && self.op.zero_at_pivot() && self.same;
        if none {
            // Beside an infinite value the sums would be 0·∞.
            self.state.result = [0.0; N];
        } else if pass + 1 < R::PASSES {
            self.state.k = R::recentre(self.state.k, self.state.result, 1.0 / n);
            return false;
        }
        self.settle(n);
        true
    }

    fn settle(&mut self, n: f64) {
        self.state.result = R::settle(self.state.k, self.state.result, 1.0 / n);
    }

    /// Goes through elements: the one place where they are read.
    #[inline(never)]
    fn add(&mut self, series: Series, how: How) {
        let ready = self.op.ready(LANE);
        let Series { mut item, items, position, positions, mut count } = series;
        // Rows of several images need not be evenly spaced.
        let mut even = true;
        for place in self.from {
            even &= place.per_image == 0 || items == 0;
        }
        let k = splat_all(LANE, &self.state.narrow);
        while count > 0 {
            let run = if even { count } else { 1 };
            let (mut at, mut step) = ([core::ptr::null(); I], [0; I]);
            for i in 0..I {
                at[i] = self.from[i].at(item, self.channel, position).cast_const();
                step[i] = items * self.from[i].inner + positions * self.from[i].step;
            }
            for _ in 0..run {
                // SAFETY: `reduce`'s caller vouches for the places, the geometry for the elements.
                let v = R::values(&ready, unsafe { load_all(LANE, &at, 0) });
                match how {
                    How::Sample => self.state.sample = first(v[R::PIVOT_OF]),
                    How::Chain => {
                        let a = R::addends(v, k);
                        for n in 0..N {
                            self.state.chain[n] = self.state.chain[n] + first(a[n]);
                        }
                    }
                    How::Exactly | How::Rest => {
                        let mut x = [0.0; J];
                        for j in 0..J {
                            x[j] = first(v[j]).to_f64();
                        }
                        self.same &= same(x[R::PIVOT_OF], self.state.k[0]);
                        let a = R::addends(x, self.state.k);
                        let sums = if how == How::Rest { &mut self.state.result } else { &mut self.state.wide };
                        for n in 0..N {
                            sums[n] += a[n];
                        }
                    }
                }
                for i in 0..I {
                    at[i] = at[i].wrapping_add(step[i]);
                }
            }
            (item, count) = (item + items, count - run);
        }
    }

    /// The pivot, in the element's arithmetic; 0 where it overflows.
    #[inline(never)]
    fn pivot(&mut self, grid: &Grid, g: usize) -> Compute<E> {
        let lanes = Compute::<E>::LANES;
        let zero = Compute::<E>::ZERO;
        self.state.samples = [zero; SAMPLES];
        let (visits, blocks) = match grid {
            Grid::Planes(geo) => ((0, 1), if R::PIVOT_PER_CELL { geo.blocks(g) } else { (0, geo.all_blocks()) }),
            Grid::Rows(geo) => (if R::PIVOT_PER_CELL { geo.cell_visits(g) } else { (0, geo.visits.len()) }, (0, 0)),
        };
        let mut samples = SAMPLES;
        for i in 0..SAMPLES {
            let (item, position) = match grid {
                Grid::Planes(geo) => geo.sample(i, blocks.0, blocks.1, lanes),
                Grid::Rows(geo) if visits.0 < visits.1 => (geo.visits.sample(i, visits.0, visits.1) * geo.fold, 0),
                // The first value, where all there is are rows left over.
                Grid::Rows(geo) if geo.rest > 0 => (geo.folded * geo.fold, 0),
                Grid::Rows(_) => return zero,
            };
            self.add(Series::one(item, position), How::Sample);
            self.state.samples[i] = self.state.sample;
            if visits.0 == visits.1 {
                samples = 1;
                break;
            }
        }
        let v = &mut self.state.samples;
        let base = v[0];
        for v in v.iter_mut() {
            *v = *v - base;
        }
        let mut k = base;
        if samples > 1 {
            let mut distance = zero;
            if self.tree {
                let mut half = SAMPLES / 2;
                while half > 0 {
                    for i in 0..half {
                        v[i] = v[i] + v[i + half];
                    }
                    half /= 2;
                }
                distance = v[0];
            } else {
                for &mut v in v {
                    distance = distance + v;
                }
            }
            k = base + distance * Compute::<E>::PER_SAMPLE;
        }
        if One::<E>::all(One::<E>::splat(LANE, k).finite()) { k } else { zero }
    }
}

impl<E, R, const I: usize, const J: usize, const K: usize, const N: usize> Visitor for Sums<'_, E, R, I, J, K, N>
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    fn elements(&mut self, series: Series) {
        self.add(series, if self.exact { How::Exactly } else { How::Chain });
    }

    fn rest(&mut self, series: Series) {
        self.add(series, How::Rest);
    }

    fn end_chain(&mut self) {
        for n in 0..N {
            self.state.sum[n] = self.state.sum[n] + self.state.chain[n];
            self.state.chain[n] = Compute::<E>::ZERO;
        }
    }

    fn end_lane(&mut self, i: usize, lanes: usize) {
        let root = PARTS - 1;
        for n in 0..N {
            let mut sum = if self.exact { self.state.wide[n] } else { self.state.sum[n].to_f64() };
            (self.state.wide[n], self.state.sum[n]) = (0.0, Compute::<E>::ZERO);
            let mut level = 0;
            while level < root && (i >> level) & 1 == 1 {
                sum += self.state.parts[level][n];
                level += 1;
            }
            if i + 1 < lanes {
                self.state.parts[level.min(root)][n] = sum;
            } else {
                self.state.parts[root][n] += sum;
            }
        }
    }

    fn end_lanes(&mut self) {
        for n in 0..N {
            self.state.result[n] += self.state.parts[PARTS - 1][n];
            self.state.parts[PARTS - 1][n] = 0.0;
        }
    }
}

/// Maps a channel.
///
/// # Safety
/// The inputs are valid for reading and the outputs for writing the whole tensor; an output either is one of the
/// inputs or overlaps none.
#[inline(always)]
pub(crate) unsafe fn map<E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    op: &M,
    from: &[Place<E>; I],
    to: &[Place<E>; O],
    shape: &Shape,
    channel: usize,
) where
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let ready = op.ready::<One<E>>(LANE);
    let k = op.coefficients(channel);
    let safe = !M::EXACT || k.safe;
    // Images of one position each are a run themselves.
    let (runs, run) = if shape.spatial() == 1 { (1, shape.batch()) } else { (shape.batch(), shape.spatial()) };
    for image in 0..runs {
        let (mut at, mut into) = ([core::ptr::null(); I], [core::ptr::null_mut(); O]);
        for i in 0..I {
            at[i] = from[i].run(image, channel).cast_const();
        }
        for o in 0..O {
            into[o] = to[o].run(image, channel);
        }
        for _ in 0..run {
            // SAFETY: by the caller.
            let v = M::before(&ready, unsafe { load_all(LANE, &at, 0) });
            let (mut sum, mut first) = (op.join(v, M::formula(v, splat_all(LANE, &k.narrow))), None);
            if !safe || (op.checked() && !One::<E>::all(sum.finite())) {
                first = again(op, v, &mut sum, &k);
            }
            let mut out = M::outputs(&ready, v, sum);
            out[0] = first.unwrap_or(out[0]);
            // The first output last: what is not wanted has its place.
            for o in (0..O).rev() {
                // SAFETY: by the caller.
                unsafe { E::store(out[o], into[o]) };
                into[o] = into[o].wrapping_add(to[o].step);
            }
            for i in 0..I {
                at[i] = at[i].wrapping_add(from[i].step);
            }
        }
    }
}
