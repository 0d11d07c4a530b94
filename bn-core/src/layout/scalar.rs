//! Walks both geometries one element at a time, channel by channel: bare metal without vectors, where code and
//! stack have to be small. The same additions in the same order as in [`super::nchw`] and [`super::nhwc`], without
//! tables and staging.
//!
//! ```text
//! naive:  for each cell, for each (virtual) lane { for each element { sums += addends(element) } }
//! ```

use super::grid::{CHAIN, Grid, Planes, ROW_CHAIN, Rows, SAMPLES, div, part, rem};
use super::run::again;
use super::{Compute, MOST_OPERANDS, Place, Vec, first, load_all, splat_all, words_for};
use crate::double::same;
use crate::element::Element;
use crate::kernel::{Coefficients, Map, Reduction};
use crate::lanes::{Scalar, Vector, single::Single};
use crate::shape::Shape;
use core::cell::Cell;
use core::hint::black_box;

type One<E> = Vec<E, Single>;

const LANE: Single = Single::BASE;

/// What a cell takes of the workspace: there is more of it than of stack.
pub(crate) struct State<S, const K: usize, const N: usize> {
    cursor: Cursor,
    pub(crate) numbers: Numbers<S, K, N>,
}

/// What a cell's sums are made of.
pub(crate) struct Numbers<S, const K: usize, const N: usize> {
    /// Elements.
    n: f64,
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
    /// What an element adds.
    addends: [f64; N],
    /// The addresses of an element, and how far on those of the next one are.
    at: [*const (); MOST_OPERANDS],
    step: [usize; MOST_OPERANDS],
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
    let zero = Compute::<E>::ZERO;
    let State { cursor, numbers: state } = state;
    // One after the other, in place: a tuple of them all is on the stack first.
    state.n = count as f64;
    state.narrow.fill(zero);
    state.chain.fill(zero);
    state.sum.fill(zero);
    state.wide.fill(0.0);
    for part in &mut state.parts {
        part.fill(0.0);
    }
    let tree = matches!(grid, Grid::Planes(_));
    let mut even = true;
    for place in from {
        even &= place.per_image == 0;
    }
    cursor.exact.set(0);
    cursor.cell.set(g);
    cursor.lanes.set(Compute::<E>::LANES);
    let (how, same) = (How::Sample, true);
    let mut sums = Sums::<E, R, I, J, K, N> { op, from, channel, tree, even, how, same, cursor, state };
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
        sums.walk(grid);
        match sums.judge() {
            Judgement::Good => return,
            Judgement::Again if attempt == 0 => {}
            _ => break,
        }
    }
    sums.cursor.exact.set(1);
    for pass in 0..R::PASSES {
        sums.walk(grid);
        if sums.next(pass) {
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
    fn elements(&mut self, series: &Series);
    /// Elements of the rows left over.
    fn rest(&mut self, series: &Series);
    /// The end of sums.
    fn end(&mut self, of: End);
}

/// What ends.
#[derive(Clone, Copy)]
enum End {
    /// A first-level sum.
    Chain,
    /// The second-level sum of a lane, by its place in the order of [`walk`], of so many: [`Cursor::lane`].
    Lane,
    /// All lanes.
    Lanes,
}

/// A loop, whose number and end are in memory.
struct Loop {
    next: Cell<usize>,
    end: Cell<usize>,
}

impl Loop {
    #[inline(always)]
    fn start(&self, first: usize, end: usize) {
        self.next.set(first);
        self.end.set(end);
    }

    /// The next number, if there is one.
    #[inline(always)]
    fn step(&self) -> Option<usize> {
        let i = self.next.get();
        self.next.set(i + 1);
        (i < self.end.get()).then_some(i)
    }

    /// The number that the last step gave.
    #[inline(always)]
    fn now(&self) -> usize {
        self.next.get() - 1
    }

    /// Whether it is the last one.
    #[inline(always)]
    fn last(&self) -> bool {
        self.next.get() == self.end.get()
    }
}

/// Where a walk is: in the workspace, and not on the stack below all that is done with an element. (160 bytes. Geometry
/// goes through [`black_box`] in the loops, or what is read of it would be kept there before them.)
struct Cursor {
    outer: Loop,
    inner: Loop,
    visit: Loop,
    run: Loop,
    item: Loop,
    /// The vectors of a piece: the first, and how many.
    piece: [Cell<usize>; 2],
    /// 0 or 1. (Not a `bool`: the workspace may hold any bits.)
    exact: Cell<usize>,
    lanes: Cell<usize>,
    cell: Cell<usize>,
    /// Where a lane is in a vector.
    shift: Cell<usize>,
    /// The lane that ends, and how many there are.
    lane: Loop,
}

impl Cursor {
    /// Whether sums are in f64.
    #[inline(always)]
    fn exact(&self) -> bool {
        self.exact.get() != 0
    }
}

/// Shows the elements of a channel in cell `g` to a visitor, in the order that they are added in; if `exact` in that
/// of the sums in f64, which have no levels.
#[inline(always)]
fn walk(grid: &Grid, at: &Cursor, to: &mut dyn Visitor) {
    match grid {
        Grid::Planes(geo) => walk_planes(geo, at, to),
        Grid::Rows(geo) => walk_rows(geo, at, to),
    }
}

#[inline(never)]
fn walk_planes(geo: &Planes, at: &Cursor, to: &mut dyn Visitor) {
    // Blocks and their lanes, or lanes and their blocks.
    if at.exact() {
        at.outer.start(0, at.lanes.get());
    } else {
        let (first, end) = geo.blocks(at.cell.get());
        at.outer.start(first, end);
    }
    while let Some(i) = at.outer.step() {
        if at.exact() {
            let (first, end) = geo.blocks(at.cell.get());
            at.inner.start(first, end);
        } else {
            at.inner.start(0, at.lanes.get());
        }
        while let Some(j) = at.inner.step() {
            let geo = black_box(geo);
            let (lane, block) = if at.exact() { (i, j) } else { (j, at.outer.now()) };
            plane_lane(geo, block, lane, at, to);
            if !at.exact() {
                at.lane.start(at.inner.now(), at.lanes.get());
                to.end(End::Lane);
            }
        }
        if at.exact() {
            at.lane.start(at.outer.now(), at.lanes.get());
            to.end(End::Lane);
        } else {
            to.end(End::Lanes);
        }
    }
    if at.exact() {
        to.end(End::Lanes);
    }
}

/// One lane of a block of planes: number `i` in the order in which a tree of them is added up in a few sums.
#[inline(always)]
fn plane_lane(geo: &Planes, block: usize, i: usize, at: &Cursor, to: &mut dyn Visitor) {
    let lanes = at.lanes.get();
    let lane = (i.reverse_bits() >> 1) >> (usize::BITS - 1 - lanes.trailing_zeros());
    at.shift.set(lane);
    let piece = geo.piece(rem(block, geo.pieces), lanes);
    at.piece[0].set(piece.first);
    at.piece[1].set(piece.vectors);
    let (v0, v1) = geo.block_visits(div(block, geo.pieces));
    at.visit.start(v0, v1);
    while let Some(v) = at.visit.step() {
        let vectors = at.piece[1].get();
        at.run.start(0, if geo.spanning || at.exact() { 1 } else { vectors.div_ceil(CHAIN) });
        let count = geo.visits.get(v).count;
        while at.run.step().is_some() {
            at.item.start(0, count);
            while let Some(t) = at.item.step() {
                let geo = black_box(geo);
                let (lanes, lane) = (at.lanes.get(), at.shift.get());
                let item = geo.visits.get(at.visit.now()).item(t);
                let (first, vectors, runs) = (at.piece[0].get(), at.piece[1].get(), at.run.end.get());
                let (first, end) =
                    (first + part(vectors, runs, at.run.now()), first + part(vectors, runs, at.run.now() + 1));
                let whole = div(geo.positions, lanes);
                let position = first * lanes + lane;
                let count = end.min(whole).saturating_sub(first);
                to.elements(&Series { positions: lanes, count, ..Series::one(item, position) });
                // The last vector overlaps its neighbour, if it is not whole.
                let last = geo.positions - lanes + lane;
                if end > whole && last >= whole * lanes {
                    to.elements(&Series::one(item, last));
                }
                if !geo.spanning {
                    to.end(End::Chain);
                }
            }
            if geo.spanning {
                to.end(End::Chain);
            }
        }
    }
}

#[inline(never)]
fn walk_rows(geo: &Rows, at: &Cursor, to: &mut dyn Visitor) {
    if at.exact() {
        let (v0, v1) = geo.cell_visits(at.cell.get());
        at.visit.start(v0, v1);
        while let Some(v) = at.visit.step() {
            at.item.start(0, geo.visits.get(v).count);
            while let Some(t) = at.item.step() {
                at.inner.start(0, geo.fold);
                while let Some(f) = at.inner.step() {
                    let geo = black_box(geo);
                    let item = geo.visits.get(at.visit.now()).item(t) * geo.fold + f;
                    to.elements(&Series { positions: 1, count: geo.adjacent, ..Series::one(item, 0) });
                }
            }
        }
        at.lane.start(0, 1);
        to.end(End::Lane);
        to.end(End::Lanes);
    } else {
        // Virtual channels.
        at.outer.start(0, geo.fold);
        while at.outer.step().is_some() {
            at.inner.start(0, geo.adjacent);
            while at.inner.step().is_some() {
                let geo = black_box(geo);
                let (first, end) = geo.cell_blocks(at.cell.get());
                at.run.start(first, end);
                while let Some(block) = at.run.step() {
                    let (v0, v1) = geo.block_visits(block);
                    at.visit.start(v0, v1);
                    at.piece[0].set(v0);
                    while let Some(v) = at.visit.step() {
                        let geo = black_box(geo);
                        let visit = geo.visits.get(v);
                        let (item, items) = (visit.first * geo.fold + at.outer.now(), visit.step * geo.fold);
                        let position = at.inner.now();
                        to.elements(&Series { items, count: visit.count, ..Series::one(item, position) });
                        if rem(at.visit.now() - at.piece[0].get(), ROW_CHAIN) + 1 == ROW_CHAIN || at.visit.last() {
                            to.end(End::Chain);
                        }
                    }
                    at.lane.start(0, 1);
                    to.end(End::Lane);
                }
                to.end(End::Lanes);
            }
        }
    }
    at.item.start(0, geo.rest_of(at.cell.get()));
    while let Some(row) = at.item.step() {
        let item = geo.folded * geo.fold + row;
        to.rest(&Series { positions: 1, count: geo.adjacent, ..Series::one(item, 0) });
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
    /// Whether items are evenly spaced: rows of several images need not be.
    even: bool,
    how: How,
    /// Whether all elements so far are the pivot.
    same: bool,
    cursor: &'a Cursor,
    state: &'a mut Numbers<Compute<E>, K, N>,
}

impl<E, R, const I: usize, const J: usize, const K: usize, const N: usize> Sums<'_, E, R, I, J, K, N>
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    /// Sums all elements of the cell.
    #[inline(always)]
    fn walk(&mut self, grid: &Grid) {
        (self.state.result, self.same) = ([0.0; N], true);
        walk(grid, self.cursor, self);
    }

    // What is done between walks is in functions of its own, whose numbers are not on the stack while one goes on (130
    // bytes).

    /// Settles the sums of a walk, if they are good; else there may be a better pivot.
    #[inline(never)]
    fn judge(&mut self) -> Judgement {
        if self.op.good(&self.state.result, self.state.n) {
            self.settle();
            return Judgement::Good;
        }
        match R::repivot(self.state.k, &self.state.result, self.state.n) {
            Some(better) => {
                self.state.narrow[0] = better;
                Judgement::Again
            }
            None => Judgement::Bad,
        }
    }

    /// Settles the sums of a walk in f64, if it was the last one.
    #[inline(never)]
    fn next(&mut self, pass: usize) -> bool {
        let none = pass == 0 && self.op.zero_at_pivot() && self.same;
        if none {
            // Beside an infinite value the sums would be 0·∞.
            self.state.result = [0.0; N];
        } else if pass + 1 < R::PASSES {
            self.state.k = R::recentre(self.state.k, self.state.result, 1.0 / self.state.n);
            return false;
        }
        self.settle();
        true
    }

    fn settle(&mut self) {
        self.state.result = R::settle(self.state.k, self.state.result, 1.0 / self.state.n);
    }

    /// Goes through elements.
    #[inline(always)]
    fn add(&mut self, series: &Series, how: How) {
        self.how = how;
        if self.even || series.items == 0 { self.run(series) } else { self.one_by_one(series) }
    }

    /// Elements of items that are not evenly spaced.
    #[inline(never)]
    fn one_by_one(&mut self, &Series { item, items, position, count, .. }: &Series) {
        for i in 0..count {
            self.run(&Series::one(item + i * items, position));
        }
    }

    /// Elements that are.
    #[inline(never)]
    fn run(&mut self, &Series { item, items, position, positions, count }: &Series) {
        for i in 0..I {
            self.state.at[i] = self.from[i].at(item, self.channel, position).cast();
            self.state.step[i] = items * self.from[i].inner + positions * self.from[i].step;
        }
        for _ in 0..count {
            // SAFETY: `reduce`'s caller vouches for the places, the geometry for the elements.
            let v = unsafe { self.values() };
            match self.how {
                How::Sample => self.state.sample = v[R::PIVOT_OF],
                How::Chain => self.chain(v),
                How::Exactly | How::Rest => self.exactly(v),
            }
            for i in 0..I {
                self.state.at[i] = self.state.at[i].cast::<E>().wrapping_add(self.state.step[i]).cast();
            }
        }
    }

    /// Reads an element: the one place where that is done.
    ///
    /// # Safety
    /// The addresses in the state are valid for reading.
    #[inline(never)]
    unsafe fn values(&self) -> [Compute<E>; J] {
        let ready = self.op.ready::<One<E>>(LANE);
        let mut at = [core::ptr::null(); I];
        for i in 0..I {
            at[i] = self.state.at[i].cast::<E>();
        }
        // SAFETY: by the caller.
        let v = R::values(&ready, unsafe { load_all::<false, _, _, _>(LANE, &at, 0) });
        let mut x = [Compute::<E>::ZERO; J];
        for j in 0..J {
            x[j] = first(v[j]);
        }
        x
    }

    /// Adds an element to the chain.
    #[inline(always)]
    fn chain(&mut self, v: [Compute<E>; J]) {
        let (v, k): ([One<E>; J], _) = (splat_all(LANE, &v), splat_all(LANE, &self.state.narrow));
        let a = R::addends(v, k);
        for n in 0..N {
            self.state.chain[n] = self.state.chain[n] + first(a[n]);
        }
    }

    /// Adds an element in f64: to the result, or to the sums of the walk.
    #[inline(never)]
    fn exactly(&mut self, v: [Compute<E>; J]) {
        let mut x = [0.0; J];
        for j in 0..J {
            x[j] = v[j].to_f64();
        }
        self.same &= same(x[R::PIVOT_OF], self.state.k[0]);
        self.state.addends = R::addends(x, self.state.k);
        let state = &mut *self.state;
        let sums = if self.how == How::Rest { &mut state.result } else { &mut state.wide };
        for n in 0..N {
            sums[n] += state.addends[n];
        }
    }

    /// The pivot, in the element's arithmetic; 0 where it overflows.
    #[inline(always)]
    fn pivot(&mut self, grid: &Grid, g: usize) -> Compute<E> {
        let samples = self.sample(grid, g);
        self.middle(samples)
    }

    /// Takes samples, and says how many.
    #[inline(never)]
    fn sample(&mut self, grid: &Grid, g: usize) -> usize {
        let lanes = Compute::<E>::LANES;
        self.state.samples = [Compute::<E>::ZERO; SAMPLES];
        let (visits, blocks) = match grid {
            Grid::Planes(geo) => ((0, 1), if R::PIVOT_PER_CELL { geo.blocks(g) } else { (0, geo.all_blocks()) }),
            Grid::Rows(geo) => (if R::PIVOT_PER_CELL { geo.cell_visits(g) } else { (0, geo.visits.len()) }, (0, 0)),
        };
        for i in 0..SAMPLES {
            let (item, position) = match grid {
                Grid::Planes(geo) => geo.sample(i, blocks.0, blocks.1, lanes),
                Grid::Rows(geo) if visits.0 < visits.1 => (geo.visits.sample(i, visits.0, visits.1) * geo.fold, 0),
                // The first value, where all there is are rows left over.
                Grid::Rows(geo) if geo.rest > 0 => (geo.folded * geo.fold, 0),
                Grid::Rows(_) => return 0,
            };
            self.add(&Series::one(item, position), How::Sample);
            self.state.samples[i] = self.state.sample;
            if visits.0 == visits.1 {
                return 1;
            }
        }
        SAMPLES
    }

    /// The mean of so many samples.
    #[inline(never)]
    fn middle(&mut self, samples: usize) -> Compute<E> {
        let zero = Compute::<E>::ZERO;
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
    fn elements(&mut self, series: &Series) {
        self.add(series, if self.cursor.exact() { How::Exactly } else { How::Chain });
    }

    fn rest(&mut self, series: &Series) {
        self.add(series, How::Rest);
    }

    fn end(&mut self, of: End) {
        let root = PARTS - 1;
        for n in 0..N {
            let state = &mut *self.state;
            match of {
                End::Chain => {
                    state.sum[n] = state.sum[n] + state.chain[n];
                    state.chain[n] = Compute::<E>::ZERO;
                }
                End::Lane => {
                    let (i, lanes) = (self.cursor.lane.next.get(), self.cursor.lane.end.get());
                    let mut sum = if self.cursor.exact() { state.wide[n] } else { state.sum[n].to_f64() };
                    (state.wide[n], state.sum[n]) = (0.0, Compute::<E>::ZERO);
                    let mut level = 0;
                    while level < root && (i >> level) & 1 == 1 {
                        sum += state.parts[level][n];
                        level += 1;
                    }
                    if i + 1 < lanes {
                        state.parts[level.min(root)][n] = sum;
                    } else {
                        state.parts[root][n] += sum;
                    }
                }
                End::Lanes => {
                    state.result[n] += state.parts[root][n];
                    state.parts[root][n] = 0.0;
                }
            }
        }
    }
}

/// [`map`] in a function of its own: what constants are made with is not on the stack meanwhile. (Any closure in a function
/// of its own would do, with less text, 48 bytes more of stack, and a quarter more instructions per element of `apply`.)
///
/// # Safety
/// As there.
#[inline(never)]
pub(crate) unsafe fn map_apart<E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    op: &M,
    k: &Coefficients<Compute<E>, K>,
    from: &[Place<E>; I],
    to: &[Place<E>; O],
    shape: &Shape,
    channel: usize,
) where
    E: Element,
    M: Map<E, I, J, K, O>,
{
    // SAFETY: by the caller.
    unsafe { map(op, k, from, to, shape, channel) }
}

/// Maps a channel, whose constants are `k`.
///
/// # Safety
/// The inputs are valid for reading and the outputs for writing the whole tensor; an output either is one of the
/// inputs or overlaps none.
#[inline(always)]
pub(crate) unsafe fn map<E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    op: &M,
    k: &Coefficients<Compute<E>, K>,
    from: &[Place<E>; I],
    to: &[Place<E>; O],
    shape: &Shape,
    channel: usize,
) where
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let ready = op.ready::<One<E>>(LANE);
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
            let v = M::before(&ready, unsafe { load_all::<false, _, _, _>(LANE, &at, 0) });
            let (mut sum, mut first) = (op.join(v, M::formula(v, splat_all(LANE, &k.narrow))), None);
            if !safe || (op.checked() && !One::<E>::all(sum.finite())) {
                first = again(op, v, &mut sum, k);
            }
            let mut out = M::outputs(&ready, v, sum);
            out[0] = first.unwrap_or(out[0]);
            // The first output last: what is not wanted has its place.
            for o in (0..O).rev() {
                // SAFETY: by the caller.
                unsafe { E::store::<_, false>(out[o], into[o]) };
                into[o] = into[o].wrapping_add(to[o].step);
            }
            for i in 0..I {
                at[i] = at[i].wrapping_add(from[i].step);
            }
        }
    }
}
