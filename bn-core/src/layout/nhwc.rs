//! Walks rows: NHWC, dense N × C, and NCHW with planes of less than a vector. The lanes of a vector
//! are neighbouring (virtual) channels.
//!
//! Sums take four rows a quarter of the tensor apart in lockstep, each in memory order: four streams
//! keep more cache misses in flight than one, and the accumulators, which live in L1, are loaded and
//! stored once per four rows. Neighbouring rows in lockstep would share pages and run at a third
//! of that speed.

use super::grid::{ROW_CHAIN, Rows, SAMPLES, div};
use super::run::{ASKED, Constants, Elements, LINE, MapRun, Order, PAGE, lead};
use super::{
    Carve, Channels, Compute, Direction, Emit, MOST_LANES, MOST_OPERANDS, Place, Several, Vec, add, column, deals,
    in_order, load_all, load_table, past_caches, staged, values_in_f64, words_for,
};
use crate::dispatch::Task;
use crate::element::Element;
use crate::kernel::{Line, Map, Reduction};
use crate::lanes::{DEAL, Lanes, Scalar, Vector, lane_of};

/// The part of a row that belongs to a range of channels.
#[derive(Clone, Copy)]
struct Segment {
    start: usize,
    width: usize,
    groups: usize,
}

impl Segment {
    #[inline(always)]
    fn new(geo: &Rows, channels: Channels, lanes: usize) -> Self {
        let (start, width) = if geo.fold > 1 {
            debug_assert!(channels.first == 0 && channels.end == geo.channels);
            (0, geo.width)
        } else {
            (channels.first * geo.adjacent, (channels.end - channels.first) * geo.adjacent)
        };
        debug_assert!(width >= lanes);
        Segment { start, width, groups: width.div_ceil(lanes) }
    }

    /// Where vector `j` starts in the segment: the last one ends with it.
    #[inline(always)]
    fn offset(&self, j: usize, lanes: usize) -> usize {
        (j * lanes).min(self.width - lanes)
    }

    /// Where element `i` stands among the lanes of all vectors, the last one counting as its own.
    #[inline(always)]
    fn slot(&self, i: usize, lanes: usize) -> usize {
        if i < self.width / lanes * lanes { i } else { i + self.groups * lanes - self.width }
    }
}

/// Workspace of [`reduce`] for `width` elements of a row.
pub(crate) const fn reduce_words<E: Element, const K: usize, const N: usize>(width: usize) -> usize {
    let slots = width.next_multiple_of(Compute::<E>::LANES);
    words_for::<f64>(N * slots) + words_for::<Compute<E>>((K + 2 * N) * slots)
}

/// Workspace of either walker for staging `width` elements of a row.
pub(crate) const fn stage_words<E>(width: usize) -> usize {
    words_for::<E>(MOST_OPERANDS * width)
}

/// The results of some cells for a range of channels, cell after cell.
///
/// # Safety
/// Every place is valid for reading all rows of the geometry; `scratch` has [`reduce_words`] for
/// the range, and [`stage_words`] if a place is not contiguous; a range narrower than the tensor has at least a vector and is not folded.
#[inline(always)]
pub(crate) unsafe fn reduce<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    channels: Channels,
    cells: (usize, usize),
    scratch: &mut [u64],
    emit: &mut dyn Emit<K, N>,
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = <Vec<E, L>>::WIDTH;
    let ready = op.ready::<Vec<E, L>>(lanes);
    let seg = Segment::new(geo, channels, lanes_of);
    let (count, slots) = (channels.end - channels.first, seg.groups * lanes_of);
    let mut carve = Carve::new(scratch);
    let t = Table::<E, K, N> {
        results: carve.take(N * slots),
        records: carve.take((K + 2 * N) * slots),
        slots,
        dealt: const { deals::<E, L>() },
    };
    let stage = if staged(from) { carve.take::<E>(I * seg.width) } else { core::ptr::null_mut() };

    let mut c = 0;
    while K > 1 && c < count {
        let (mut some, end) = (Line::splat(Compute::<E>::ZERO), count.min(c + MOST_LANES));
        for i in 1..K {
            if let Some(some) = some.get_mut(..end - c) {
                op.constants(channels.first + c, i, some);
            }
            // SAFETY: channels of the segment.
            unsafe { t.set_constants(geo, seg, (c, end), i, &some) };
        }
        c = end;
    }
    for g in cells.0..cells.1 {
        // SAFETY: by the caller; the segment, the table and the stage are those above.
        unsafe {
            if R::PIVOT_PER_CELL || g == cells.0 {
                let visits = if R::PIVOT_PER_CELL { geo.cell_visits(g) } else { (0, geo.visits.len()) };
                set_pivots(lanes, op, &ready, geo, from, channels, seg, &t, visits, stage);
            }
            cell(lanes, op, geo, from, channels, seg, &t, g, stage, emit);
        }
    }
}

/// Constant 0 of all channels: the pivot, from samples of rows `visits`.
///
/// # Safety
/// As for [`reduce`]; the segment, the table and the stage are those made there.
#[inline(always)]
unsafe fn set_pivots<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    ready: &R::Ready<Vec<E, L>>,
    geo: &Rows,
    from: &[Place<E>; I],
    channels: Channels,
    seg: Segment,
    t: &Table<E, K, N>,
    visits: (usize, usize),
    stage: *mut E,
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let (lanes_of, count) = (<Vec<E, L>>::WIDTH, channels.end - channels.first);
    // SAFETY: slots and elements are those of the table; rows are inside the geometry, groups inside
    // the segment.
    unsafe {
        let sampled = op.pivots() && visits.0 < visits.1;
        if !sampled {
            for j in 0..seg.groups {
                Vec::<E, L>::splat(lanes, Compute::<E>::ZERO).store(t.constant(j, 0));
            }
        } else if staged(from) {
            for j in 0..seg.groups {
                let (off, mut buffer) = (seg.start + seg.offset(j, lanes_of), [[E::zeroed(); MOST_LANES]; I]);
                let mut pivot = Pivot::<L, E>::new(lanes);
                for i in 0..SAMPLES {
                    let row = geo.visits.sample(i, visits.0, visits.1);
                    pivot.add::<R, I, J, K, N>(
                        lanes,
                        ready,
                        i,
                        &Place::rows_of(from, geo, row, off, lanes_of, buffer.as_mut_ptr().cast()),
                        0,
                    );
                }
                pivot.value(lanes).store(t.constant(j, 0));
            }
        } else {
            // Where the samples are is worked out once: it took as long as a quarter of all sums.
            let mut rows = [[core::ptr::null(); I]; SAMPLES];
            for (i, at) in rows.iter_mut().enumerate() {
                let row = geo.visits.sample(i, visits.0, visits.1);
                *at = Place::rows_of(from, geo, row, seg.start, seg.width, stage);
            }
            for j in 0..seg.groups {
                let mut pivot = Pivot::<L, E>::new(lanes);
                for i in 0..SAMPLES {
                    pivot.add::<R, I, J, K, N>(lanes, ready, i, &rows[i], seg.offset(j, lanes_of));
                }
                pivot.value(lanes).store(t.constant(j, 0));
            }
        }
        // The virtual channels of a channel share the pivot of the first, so that their sums can be
        // added. The rows left over share it too; where they are all there is, it is their first
        // value.
        if seg.width > count {
            for c in 0..count {
                t.set_constant(geo, seg, c, 0, t.constants(seg, c * geo.adjacent)[0]);
            }
        }
        if visits.0 == visits.1 && geo.rest > 0 && op.pivots() {
            for c in 0..count {
                t.set_constant(geo, seg, c, 0, first_of_rest(op, geo, from, channels.first + c));
            }
        }
    }
}

/// The results of cell `g`, whose constants are there.
///
/// # Safety
/// As for [`set_pivots`].
#[inline(always)]
unsafe fn cell<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    channels: Channels,
    seg: Segment,
    t: &Table<E, K, N>,
    g: usize,
    stage: *mut E,
    emit: &mut dyn Emit<K, N>,
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let (first, end) = geo.cell_blocks(g);
    let count = channels.end - channels.first;
    let values = geo.count(g);
    let n = values as f64;
    let (mut attempt, mut good);
    attempt = 0;
    loop {
        // SAFETY: by the caller.
        unsafe {
            t.results.write_bytes(0, N * t.slots);
            for block in first..end {
                sum_block(lanes, op, geo, from, seg, t, geo.block_visits(block), stage);
            }
            t.gather(geo, seg, count);
            if geo.rest_of(g) > 0 {
                let mut c = 0;
                while c < count {
                    let end = count.min(c + MOST_LANES);
                    let some = Channels { first: channels.first + c, end: channels.first + end };
                    let (k, mut sums) = t.several(geo, seg, (c, end));
                    add_rows(op, geo, from, some, (geo.folded * geo.fold, geo.rest), &k, &mut sums);
                    t.set_sums((c, end), &sums);
                    c = end;
                }
            }
            good = true;
            for c in 0..count {
                good &= op.good(&t.sums(c), n);
            }
            // A second time if pivots turn out to be far from the means.
            if good || !R::PIVOT_PER_CELL || attempt == 1 {
                break;
            }
            let mut far = false;
            for c in 0..count {
                let (k, sums) = (t.constants(seg, c * geo.adjacent).map(|k| k.to_f64()), t.sums(c));
                if !op.good(&sums, n)
                    && let Some(better) = R::repivot(k, &sums, n)
                {
                    t.set_constant(geo, seg, c, 0, better);
                    far = true;
                }
            }
            if !far {
                break;
            }
            attempt = 1;
        }
    }

    let per_n = 1.0 / n;
    let mut c = 0;
    while c < count {
        let some = Channels { first: channels.first + c, end: channels.end.min(channels.first + c + MOST_LANES) };
        // SAFETY: channels of the segment.
        let (mut k, mut sums) = unsafe { t.several(geo, seg, (c, c + some.end - some.first)) };
        if !good {
            let mut good = [true; MOST_LANES];
            for l in 0..(some.end - some.first).min(MOST_LANES) {
                good[l] = op.good(&column(&sums, l), n);
            }
            if good.contains(&false) {
                // SAFETY: the cell is inside the geometry.
                unsafe { again(op, geo, from, some, g, &mut k, &mut sums, &good) };
            }
        }
        for l in 0..MOST_LANES {
            let settled = R::settle(column(&k, l), column(&sums, l), per_n);
            for n in 0..N {
                sums[n][l] = settled[n];
            }
        }
        emit.emit(some, &sums, &k, values);
        c += MOST_LANES;
    }
}

/// What a segment keeps while its cell is summed: for each vector of it a record of constants,
/// first-level and second-level sums, side by side so that one address serves them all; and
/// sums in f64, by slot, later by channel.
struct Table<E: Element, const K: usize, const N: usize> {
    results: *mut f64,
    records: *mut Compute<E>,
    slots: usize,
    /// Whether the lanes of records are [dealt](deals).
    dealt: bool,
}

impl<E: Element, const K: usize, const N: usize> Table<E, K, N> {
    const LANES: usize = Compute::<E>::LANES;
    /// Scalars of a record, per lane.
    const ROWS: usize = K + N;

    /// Constant `i` of vector `j`.
    #[inline(always)]
    fn constant(&self, j: usize, i: usize) -> *mut Compute<E> {
        self.records.wrapping_add((j * Self::ROWS + i) * Self::LANES)
    }

    /// The second-level sums of vector `j`: they follow all records.
    #[inline(always)]
    fn second(&self, j: usize) -> *mut Compute<E> {
        self.records.wrapping_add(Self::ROWS * self.slots + j * N * Self::LANES)
    }

    /// Constant `i` in a slot.
    #[inline(always)]
    fn of_slot(&self, slot: usize, i: usize) -> *mut Compute<E> {
        self.of_lane(slot / Self::LANES, slot % Self::LANES, i)
    }

    /// Constant `i` of element `e` of vector `j`.
    #[inline(always)]
    fn of_lane(&self, j: usize, e: usize, i: usize) -> *mut Compute<E> {
        self.constant(j, i).wrapping_add(if self.dealt { lane_of(e) } else { e })
    }

    /// The constants of element `e`.
    ///
    /// # Safety
    /// The table is that of the segment.
    #[inline(always)]
    unsafe fn constants(&self, seg: Segment, e: usize) -> [Compute<E>; K] {
        let mut k = [Compute::<E>::ZERO; K];
        for i in 0..K {
            // SAFETY: the slot of an element of the segment.
            k[i] = unsafe { *self.of_slot(seg.slot(e, Self::LANES), i) };
        }
        k
    }

    /// Sets constant `i` of channel `c` of the segment in each of its slots.
    ///
    /// # Safety
    /// The table is that of the segment.
    #[inline(always)]
    unsafe fn set_constant(&self, geo: &Rows, seg: Segment, c: usize, i: usize, k: Compute<E>) {
        let mut e = c * geo.adjacent;
        while e < seg.width {
            for a in e..e + geo.adjacent {
                // SAFETY: the slots of an element of the segment: it may be in the last vector and in
                // the one before.
                unsafe {
                    if a + Self::LANES >= seg.width {
                        *self.of_slot(a + self.slots - seg.width, i) = k;
                    }
                    *self.of_slot(seg.slot(a, Self::LANES), i) = k;
                }
            }
            e += geo.channels * geo.adjacent;
        }
    }

    /// From results by slot to results by channel: virtual channels added up, in the order of elements.
    ///
    /// # Safety
    /// The table is that of the segment.
    #[inline(always)]
    unsafe fn gather(&self, geo: &Rows, seg: Segment, count: usize) {
        for n in 0..N {
            let results = self.results.wrapping_add(n * self.slots);
            // SAFETY: slots of elements of the segment; none is written before it is read.
            unsafe {
                if seg.width == count {
                    let whole = seg.width / Self::LANES * Self::LANES;
                    for e in whole..seg.width {
                        *results.add(e) = *results.add(seg.slot(e, Self::LANES));
                    }
                    continue;
                }
                for c in 0..count {
                    let (mut e, mut sum) = (c * geo.adjacent, 0.0);
                    while e < seg.width {
                        for a in e..e + geo.adjacent {
                            sum += *results.add(seg.slot(a, Self::LANES));
                        }
                        e += geo.channels * geo.adjacent;
                    }
                    *results.add(c) = sum;
                }
            }
        }
    }

    /// The sums of channel `c` of the segment, after [`Table::gather`].
    ///
    /// # Safety
    /// The table is that of the segment.
    #[inline(always)]
    unsafe fn sums(&self, c: usize) -> [f64; N] {
        let mut sums = [0.0; N];
        for n in 0..N {
            // SAFETY: by the caller.
            sums[n] = unsafe { *self.results.add(n * self.slots + c) };
        }
        sums
    }

    /// Constants and sums of channels `c..end` of the segment, at most [`MOST_LANES`], after [`Table::gather`].
    ///
    /// # Safety
    /// The table is that of the segment.
    #[inline(always)]
    unsafe fn several(&self, geo: &Rows, seg: Segment, (c, end): (usize, usize)) -> ([Several; K], [Several; N]) {
        let (mut k, mut sums) = ([Several::splat(0.0); K], [Several::splat(0.0); N]);
        // SAFETY: channels of the segment.
        unsafe {
            if self.fill_vectors(geo, seg, (c, end)) {
                for n in 0..N {
                    // Where they are kept is no line's beginning everywhere.
                    *sums[n] = *self.results.add(n * self.slots + c).cast::<[f64; MOST_LANES]>();
                }
                for i in 0..K {
                    for l in 0..MOST_LANES {
                        k[i][l] = (*self.of_lane(c / Self::LANES + l / Self::LANES, l % Self::LANES, i)).to_f64();
                    }
                }
                return (k, sums);
            }
            for l in 0..(end - c).min(MOST_LANES) {
                let (k_of, sums_of) = (self.constants(seg, (c + l) * geo.adjacent), self.sums(c + l));
                for i in 0..K {
                    k[i][l] = k_of[i].to_f64();
                }
                for n in 0..N {
                    sums[n][l] = sums_of[n];
                }
            }
        }
        (k, sums)
    }

    /// Whether channels `c..end`, of which the first is a multiple of that, are [`MOST_LANES`] with an element each in vectors of
    /// their own.
    #[inline(always)]
    fn fill_vectors(&self, geo: &Rows, seg: Segment, (c, end): (usize, usize)) -> bool {
        debug_assert!(c.is_multiple_of(MOST_LANES));
        geo.adjacent == 1 && end - c == MOST_LANES && seg.slot(end - 1, Self::LANES) == end - 1
    }

    /// Sets constant `i` of channels `c..end` of the segment.
    ///
    /// # Safety
    /// The table is that of the segment.
    #[inline(always)]
    unsafe fn set_constants(
        &self,
        geo: &Rows,
        seg: Segment,
        (c, end): (usize, usize),
        i: usize,
        k: &[Compute<E>; MOST_LANES],
    ) {
        // And none of them in the last vector too, where that overlaps its neighbour.
        if self.fill_vectors(geo, seg, (c, end))
            && (seg.width == self.slots || end + Self::LANES <= seg.width)
            && geo.fold == 1
        {
            for l in 0..MOST_LANES {
                // SAFETY: by the caller.
                unsafe { *self.of_lane(c / Self::LANES + l / Self::LANES, l % Self::LANES, i) = k[l] };
            }
            return;
        }
        for l in 0..(end - c).min(MOST_LANES) {
            // SAFETY: by the caller.
            unsafe { self.set_constant(geo, seg, c + l, i, k[l]) };
        }
    }

    /// Writes the sums of channels `c..end` back.
    ///
    /// # Safety
    /// The table is that of the segment.
    #[inline(always)]
    unsafe fn set_sums(&self, (c, end): (usize, usize), sums: &[Several; N]) {
        for l in 0..(end - c).min(MOST_LANES) {
            for n in 0..N {
                // SAFETY: a channel of the segment.
                unsafe { *self.results.add(n * self.slots + c + l) = sums[n][l] };
            }
        }
    }
}

/// Adds a block to the results.
///
/// # Safety
/// The visits are those of a block; the table is that of the segment.
#[inline(always)]
unsafe fn sum_block<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    seg: Segment,
    t: &Table<E, K, N>,
    (v0, v1): (usize, usize),
    stage: *mut E,
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = <Vec<E, L>>::WIDTH;
    // Rows of consecutive visits are evenly spaced, unless images are not.
    let mut even = stage.is_null();
    for place in from {
        even &= place.per_image == 0;
    }
    // SAFETY: the visits' rows are inside the geometry, the segment inside the rows; the slots are those of the
    // table.
    unsafe {
        for j in 0..seg.groups {
            for n in 0..N {
                Vec::<E, L>::splat(lanes, Compute::<E>::ZERO).store(t.second(j).wrapping_add(n * lanes_of));
            }
        }
        let mut v = v0;
        while v < v1 {
            let visit = geo.visits.get(v);
            if visit.count == 4 && stage.is_null() {
                let mut rows = [[core::ptr::null(); I]; 4];
                for t in 0..4 {
                    rows[t] = Place::rows_of(from, geo, visit.item(t), seg.start, seg.width, stage);
                }
                let mut step = [0; I];
                for i in 0..I {
                    step[i] = from[i].inner * geo.fold;
                }
                let count = if even { geo.visits.fours(v, v1) - v } else { 1 };
                let visits = (v - v0, count, v1 - v0);
                let sums = [t.records, t.second(0)];
                let asks = asks::<E, I>(geo, seg);
                lanes.apart(SumRows::<E, R, I, J, K, N> { op, rows, step, seg, sums, visits, asks });
                v += count;
            } else {
                // One by one those that are staged, and the rows that four do not divide: the same
                // additions.
                let (start, end) = ends(v - v0, v1 - v0);
                for i in 0..visit.count {
                    let row = [Place::rows_of(from, geo, visit.item(i), seg.start, seg.width, stage)];
                    let chain = Chain { start: start && i == 0, end: end && i + 1 == visit.count, ahead: false };
                    let sums = [t.records, t.second(0)];
                    sum_rows::<L, E, R, I, J, K, N, 1>(lanes, &op.ready(lanes), &row, (1, [0; I]), seg, sums, chain);
                }
                v += 1;
            }
        }
        for j in 0..seg.groups {
            for n in 0..N {
                let at = n * t.slots + j * lanes_of;
                let sums = Vec::<E, L>::load(lanes, t.second(j).wrapping_add(n * lanes_of));
                let sums = in_order::<E, L>(sums).widen();
                let mut half = 0;
                while half < <Vec<E, L> as Vector>::WIDES {
                    let total = t.results.add(at + 8 * half);
                    (L::F64::load(lanes, total) + sums[half]).store(total);
                    half += 1;
                }
            }
        }
    }
}

/// Whether visit `v` of a block of `count` starts a first-level sum, and whether it ends one.
#[inline(always)]
fn ends(v: usize, count: usize) -> (bool, bool) {
    (v.is_multiple_of(ROW_CHAIN), v % ROW_CHAIN == ROW_CHAIN - 1 || v + 1 == count)
}

/// Bytes of a row (of a segment) below which the visits of a first-level sum are taken together, so that sums are loaded
/// and stored once for 16 rows instead of 4: the moments of 1×64×112×112 on Zen 4 are 1.13 times as fast. Of wider rows
/// they would be read from too many pages at once (1024 channels: half the speed). Nor with two inputs where registers are few:
/// on AVX2 that loop, which is there for all widths, left sums on the stack (backward sums are 1.03 to 1.13 times as fast without it).
const NARROW: usize = 256;

/// Whether lines ahead are [asked for](Lanes::ask) where rows come from beyond the caches: sums are then 1.05 to 1.2 times as fast (AVX2,
/// Zen 4; the stream of records makes the hardware ask too late). Not where rows are read in tiles of channels, which end before those
/// lines (2048 channels: 0.8 to 0.96), and not with three inputs whose rows all begin at the same place of their pages (0.91 to 0.97).
#[inline(always)]
fn asks<E: Element, const I: usize>(geo: &Rows, seg: Segment) -> bool {
    let paged = (geo.width * size_of::<E>()).is_multiple_of(PAGE);
    past_caches::<E>(I, geo.folded * geo.width) && seg.width == geo.width && !(I > 2 && paged)
}

/// How rows are added to first-level sums.
#[derive(Clone, Copy)]
struct Chain {
    /// Whether they start such sums, and whether they end them.
    start: bool,
    end: bool,
    /// Whether they ask for lines ahead.
    ahead: bool,
}

/// Adds visits of four rows to the sums: a shell of its own, so that its loops have the registers to
/// themselves (they ran at half the speed).
struct SumRows<'a, E: Element, R, const I: usize, const J: usize, const K: usize, const N: usize> {
    op: &'a R,
    /// The rows of the first visit, and elements from those of one visit to the next.
    rows: [[*const E; I]; 4],
    step: [usize; I],
    seg: Segment,
    /// Records and second-level sums.
    sums: [*mut Compute<E>; 2],
    /// The first visit in its block, how many of them, and those of the block.
    visits: (usize, usize, usize),
    /// Whether lines ahead are asked for.
    asks: bool,
}

impl<E, R, const I: usize, const J: usize, const K: usize, const N: usize> Task for SumRows<'_, E, R, I, J, K, N>
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    type Element = E;
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let SumRows { op, mut rows, step, seg, sums, visits: (mut v, count, all), asks } = self;
        let ready = op.ready::<Vec<E, L>>(lanes);
        let most =
            if (I == 1 || (I == 2 && L::ABREAST == 4)) && seg.width <= NARROW / size_of::<E>() { ROW_CHAIN } else { 1 };
        let last = v + count;
        while v < last {
            let visits = (ROW_CHAIN - v % ROW_CHAIN).min(last - v).min(most);
            // Of rows that are taken 16 at a time that gains nothing.
            let ahead = asks && visits == 1;
            let chain = Chain { start: ends(v, all).0, end: ends(v + visits - 1, all).1, ahead };
            // SAFETY: `sum_block` vouches for rows and records.
            unsafe {
                if I < 3 {
                    sum_rows::<L, E, R, I, J, K, N, 4>(lanes, &ready, &rows, (visits, step), seg, sums, chain);
                } else {
                    // Twelve rows at once, which often begin at the same place of their pages, are more than a
                    // cache set holds: six are 1.1 to 1.7 times as fast. (Three are slower beyond the caches.)
                    let [a, b, c, d] = rows;
                    let [one, two] = [Chain { end: false, ..chain }, Chain { start: false, ..chain }];
                    sum_rows::<L, E, R, I, J, K, N, 2>(lanes, &ready, &[a, b], (1, step), seg, sums, one);
                    sum_rows::<L, E, R, I, J, K, N, 2>(lanes, &ready, &[c, d], (1, step), seg, sums, two);
                }
            }
            for t in 0..4 {
                for i in 0..I {
                    rows[t][i] = rows[t][i].wrapping_add(visits * step[i]);
                }
            }
            v += visits;
        }
    }
}

/// Adds `T` rows of each of some visits, which are so many elements apart, to the sums.
///
/// There is one loop for all visits, four lines of each row at a time: with a copy of it for those that start
/// and end a sum, or with line after line from row to row, tensors beyond the caches were read at
/// two thirds of the speed, since prefetchers learn by instruction and by page.
///
/// # Safety
/// The rows are valid for reading in the segment; the records are those of the segment.
#[inline(always)]
unsafe fn sum_rows<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize, const T: usize>(
    lanes: L,
    ready: &R::Ready<Vec<E, L>>,
    rows: &[[*const E; I]; T],
    visits: (usize, [usize; I]),
    seg: Segment,
    [mut record, mut second]: [*mut Compute<E>; 2],
    chain: Chain,
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = <Vec<E, L>>::WIDTH;
    let mut at = 0;
    // SAFETY: the vectors lie in the segment, their records in the table.
    unsafe {
        if T > 1 && L::ABREAST > 1 {
            while at + L::ABREAST * lanes_of <= seg.width {
                if L::ABREAST == 4 {
                    sum_vectors::<L, E, R, I, J, K, N, T, 4>(lanes, ready, rows, visits, at, [record, second], chain);
                } else if I < 3 {
                    sum_vectors::<L, E, R, I, J, K, N, T, 2>(lanes, ready, rows, visits, at, [record, second], chain);
                } else {
                    // Three inputs and a mask leave no registers for a second vector (AVX2: 1.01 to 1.1 times as fast).
                    let next = [record.wrapping_add((K + N) * lanes_of), second.wrapping_add(N * lanes_of)];
                    sum_vectors::<L, E, R, I, J, K, N, T, 1>(lanes, ready, rows, visits, at, [record, second], chain);
                    sum_vectors::<L, E, R, I, J, K, N, T, 1>(lanes, ready, rows, visits, at + lanes_of, next, chain);
                }
                at += L::ABREAST * lanes_of;
                record = record.wrapping_add(L::ABREAST * (K + N) * lanes_of);
                second = second.wrapping_add(L::ABREAST * N * lanes_of);
            }
        }
        while at < seg.width {
            let off = at.min(seg.width - lanes_of);
            sum_vectors::<L, E, R, I, J, K, N, T, 1>(lanes, ready, rows, visits, off, [record, second], chain);
            at += lanes_of;
            record = record.wrapping_add((K + N) * lanes_of);
            second = second.wrapping_add(N * lanes_of);
        }
    }
}

/// The same for `U` vectors of each row.
///
/// # Safety
/// The rows are valid for reading so many vectors from `off` on; the records are those of the vectors.
#[inline(always)]
unsafe fn sum_vectors<
    L,
    E,
    R,
    const I: usize,
    const J: usize,
    const K: usize,
    const N: usize,
    const T: usize,
    const U: usize,
>(
    lanes: L,
    ready: &R::Ready<Vec<E, L>>,
    rows: &[[*const E; I]; T],
    (visits, step): (usize, [usize; I]),
    off: usize,
    [record, second]: [*mut Compute<E>; 2],
    Chain { start, end, ahead }: Chain,
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = <Vec<E, L>>::WIDTH;
    let ask = |row: &[*const E; I]| {
        for i in 0..I {
            let mut line = 0;
            while line < U * lanes_of * size_of::<E>() {
                lanes.ask(row[i].wrapping_add(off), line + ASKED);
                line += LINE;
            }
        }
    };
    // All at once for one input. With the asking in between, loads of all rows went up and through the stack, bf16's at a
    // quarter of the speed. For several inputs it keeps them apart (once for all is up to 1.07 times slower).
    if lanes.ahead() && const { T > 1 && I == 1 } && ahead {
        rows.iter().for_each(ask);
    }
    let zero = Vec::<E, L>::splat(lanes, Compute::<E>::ZERO);
    let row = |u: usize, row: usize| record.wrapping_add((u * (K + N) + row) * lanes_of);
    let (mut k, mut acc) = ([[zero; K]; U], [[zero; N]; U]);
    // SAFETY: by the caller.
    unsafe {
        let mut u = 0;
        while u < U {
            k[u] = load_table::<L, E, K>(lanes, row(u, 0), lanes_of);
            if !start {
                acc[u] = load_table::<L, E, N>(lanes, row(u, K), lanes_of);
            }
            u += 1;
        }
        let (mut rows, mut left) = (*rows, visits);
        loop {
            let mut i = 0;
            while i < T {
                if lanes.ahead() && const { T > 1 && I > 1 } && ahead {
                    ask(&rows[i]);
                }
                let mut u = 0;
                while u < U {
                    let x = load_all::<true, _, _, _>(lanes, &rows[i], off + u * lanes_of);
                    acc[u] = add(acc[u], R::addends(R::values(ready, x), k[u]));
                    u += 1;
                }
                i += 1;
            }
            left -= 1;
            if left == 0 {
                break;
            }
            for row in &mut rows {
                for i in 0..I {
                    row[i] = row[i].wrapping_add(step[i]);
                }
            }
        }
        let mut u = 0;
        while u < U {
            let mut n = 0;
            while n < N {
                if end {
                    let second = second.wrapping_add((u * N + n) * lanes_of);
                    (Vec::<E, L>::load(lanes, second) + acc[u][n]).store(second);
                } else {
                    acc[u][n].store(row(u, K + n));
                }
                n += 1;
            }
            u += 1;
        }
    }
}

/// The pivots of one vector of a row: as in the planes geometry, with a channel in each lane.
struct Pivot<L: Lanes, E: Element> {
    base: Vec<E, L>,
    distance: Vec<E, L>,
}

impl<L: Lanes, E: Element> Pivot<L, E> {
    #[inline(always)]
    fn new(lanes: L) -> Self {
        let zero = Vec::<E, L>::splat(lanes, Compute::<E>::ZERO);
        Pivot { base: zero, distance: zero }
    }

    /// Takes in sample `i`.
    ///
    /// # Safety
    /// The rows are valid for reading a vector from `off` on.
    #[inline(always)]
    unsafe fn add<R, const I: usize, const J: usize, const K: usize, const N: usize>(
        &mut self,
        lanes: L,
        ready: &R::Ready<Vec<E, L>>,
        i: usize,
        rows: &[*const E; I],
        off: usize,
    ) where
        R: Reduction<E, I, J, K, N>,
    {
        // SAFETY: by the caller.
        let v = R::values(ready, unsafe { load_all::<true, _, _, _>(lanes, rows, off) })[R::PIVOT_OF];
        if i == 0 {
            self.base = v;
        } else {
            self.distance = self.distance + (v - self.base);
        }
    }

    /// The pivots; 0 where they are not finite.
    #[inline(always)]
    fn value(self, lanes: L) -> Vec<E, L> {
        let k = self.base + self.distance * Vec::<E, L>::splat(lanes, Compute::<E>::PER_SAMPLE);
        <Vec<E, L>>::select(k.finite(), k, Vec::<E, L>::splat(lanes, Compute::<E>::ZERO))
    }
}

/// The first value of a channel in the rows left over; 0 if it is not finite.
///
/// # Safety
/// The places are valid for reading all rows of the geometry; there are rows left over.
#[inline(always)]
unsafe fn first_of_rest<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    channel: usize,
) -> Compute<E>
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    // SAFETY: by the caller.
    let v = unsafe { values_of(op, from, geo.folded * geo.fold, channel * geo.adjacent) };
    let k = v[R::PIVOT_OF];
    if k.is_finite() { Compute::<E>::from_f64(k) } else { Compute::<E>::ZERO }
}

/// The values of an element of an unfolded row, in f64.
///
/// # Safety
/// The places are valid for reading it.
#[inline(always)]
unsafe fn values_of<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    from: &[Place<E>; I],
    row: usize,
    i: usize,
) -> [f64; J]
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let mut at = [core::ptr::null(); I];
    for j in 0..I {
        at[j] = from[j].element(from[j].row(row), i).cast_const();
    }
    // SAFETY: by the caller.
    unsafe { values_in_f64(op, &at, 0) }
}

/// Calls `each` with every element that some channels, at most [`MOST_LANES`], have in unfolded rows
/// `first..first + count`: the channel among them, and the element's values in f64.
///
/// # Safety
/// The rows are in the geometry.
#[inline(always)]
unsafe fn for_each<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    channels: Channels,
    (first, count): (usize, usize),
    mut each: impl FnMut(usize, [f64; J]),
) where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let (start, end) = (channels.first * geo.adjacent, channels.end * geo.adjacent);
    for row in first..first + count {
        for e in start..end {
            // SAFETY: by the caller.
            each(div(e - start, geo.adjacent), unsafe { values_of(op, from, row, e) });
        }
    }
}

/// Adds such elements to their channels' sums in f64.
///
/// # Safety
/// The rows are in the geometry.
#[inline(never)]
unsafe fn add_rows<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    channels: Channels,
    rows: (usize, usize),
    k: &[Several; K],
    sums: &mut [Several; N],
) where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    // SAFETY: by the caller.
    unsafe {
        for_each(op, geo, from, channels, rows, |l, x| {
            let a = R::addends(x, column(k, l % MOST_LANES));
            for n in 0..N {
                sums[n][l % MOST_LANES] += a[n];
            }
        });
    }
}

/// Clears the marks of channels that have an element other than the pivot in such rows, and says
/// whether any mark is left.
///
/// # Safety
/// The rows are in the geometry.
#[inline(never)]
unsafe fn compare_rows<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    channels: Channels,
    rows: (usize, usize),
    k: &[Several; K],
    same: &mut [bool; MOST_LANES],
) -> bool
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    // SAFETY: by the caller.
    unsafe {
        for_each(op, geo, from, channels, rows, |l, x| {
            same[l % MOST_LANES] &= x[R::PIVOT_OF] == k[0][l % MOST_LANES];
        });
    }
    same.contains(&true)
}

/// A cell of some channels, at most [`MOST_LANES`], again, in f64: better constants, and sums about them, of those that are
/// not good.
///
/// # Safety
/// The places are valid for reading all rows of the geometry.
#[cold]
#[inline(never)]
unsafe fn again<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    channels: Channels,
    g: usize,
    k: &mut [Several; K],
    sums: &mut [Several; N],
    good: &[bool; MOST_LANES],
) where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let (v0, v1) = geo.cell_visits(g);
    let rest = (geo.folded * geo.fold, geo.rest_of(g));
    let per_n = 1.0 / geo.count(g) as f64;
    // Constant channels are frequent (dead ones, say), and found faster than summed.
    let mut same = good.map(|good| !good && op.zero_at_pivot());
    // SAFETY: rows of the cell.
    let mut left = unsafe { compare_rows(op, geo, from, channels, rest, k, &mut same) };
    for v in v0..v1 {
        let visit = geo.visits.get(v);
        for i in 0..visit.count {
            if left {
                let rows = (visit.item(i) * geo.fold, geo.fold);
                // SAFETY: as above.
                left = unsafe { compare_rows(op, geo, from, channels, rows, k, &mut same) };
            }
        }
    }
    let mut done = true;
    for l in 0..MOST_LANES {
        done &= good[l] || same[l];
        // Those keep a sum of 0, whichever channels they are done with: beside an infinite value of x it would be 0·∞.
        for n in 0..N {
            sums[n][l] = if same[l] { 0.0 } else { sums[n][l] };
        }
    }
    if done {
        return;
    }
    let mut centre = *k;
    for pass in 0..R::PASSES {
        let mut exact = [Several::splat(0.0); N];
        for v in v0..v1 {
            let visit = geo.visits.get(v);
            for i in 0..visit.count {
                let rows = (visit.item(i) * geo.fold, geo.fold);
                // SAFETY: as above.
                unsafe { add_rows(op, geo, from, channels, rows, &centre, &mut exact) };
            }
        }
        // SAFETY: as above.
        unsafe { add_rows(op, geo, from, channels, rest, &centre, &mut exact) };
        for l in 0..MOST_LANES {
            if good[l] || same[l] {
                continue;
            }
            let (k_of, sums_of) = (column(&centre, l), column(&exact, l));
            for i in 0..K {
                k[i][l] = k_of[i];
            }
            for n in 0..N {
                sums[n][l] = sums_of[n];
            }
            if pass + 1 < R::PASSES {
                let better = R::recentre(k_of, sums_of, per_n);
                for i in 0..K {
                    centre[i][l] = better[i];
                }
            }
        }
    }
}

/// Elements from one constant to the next. The table goes on for one vector more, from its start, for
/// vectors that begin in one row and end in the next.
const fn table_width<E: Element>(width: usize) -> usize {
    (width + Compute::<E>::LANES).next_multiple_of(Compute::<E>::LANES)
}

/// Workspace of [`map`] for `width` elements of a row.
pub(crate) const fn map_words<E: Element, const K: usize>(width: usize) -> usize {
    words_for::<Compute<E>>(K * table_width::<E>(width))
}

/// Maps rows `first..end` (folded ones, and after the last of them the rows left over) of a range of
/// channels.
///
/// # Safety
/// The inputs are valid for reading and the outputs for writing in all rows of the geometry; an
/// output either is one of the inputs or overlaps none. `scratch` has [`map_words`] for the range,
/// and [`stage_words`] if a place is not contiguous; a range narrower than the tensor has at least a
/// vector and is not folded.
#[inline(always)]
pub(crate) unsafe fn map<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    lanes: L,
    op: &M,
    geo: &Rows,
    from: &[Place<E>; I],
    to: &[Place<E>; O],
    channels: Channels,
    (first, end): (usize, usize),
    stream: bool,
    scratch: &mut [u64],
) where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let seg = Segment::new(geo, channels, Compute::<E>::LANES);
    let count = channels.end - channels.first;
    let mut carve = Carve::new(scratch);
    let next = table_width::<E>(seg.width);
    let table = carve.take::<Compute<E>>(K * next);
    let stage = if staged(from) || staged(to) {
        carve.take::<E>(const { if I > O { I } else { O } } * seg.width)
    } else {
        core::ptr::null_mut()
    };
    let mut flat = stage.is_null() && seg.width == geo.width;
    for i in 0..I {
        flat &= from[i].dense(geo);
    }
    let mut rows = [core::ptr::null_mut(); O];
    for o in 0..O {
        flat &= to[o].dense(geo);
        rows[o] = to[o].row(first * geo.fold);
    }
    let stream = stream && flat;
    // All vectors of the range start with a multiple of their lanes.
    let whole = seg.width.is_multiple_of(Compute::<E>::LANES) && !(stream && lead(&rows).is_some_and(|lead| lead > 0));
    let records = whole && seg.width == count;
    let mut order = if records { Order::records(Compute::<E>::LANES, K) } else { Order::rows(next) };
    // SAFETY: the table is as long as there are channels.
    let safe = unsafe { Constants::make(op, channels, table, order) };
    for i in 0..if records { 0 } else { K } {
        let row = table.wrapping_add(i * next);
        // SAFETY: the row has a vector more than the segment; the segment has at least a vector.
        unsafe {
            if seg.width > count {
                spread(row, count, geo.adjacent, seg.width);
            }
            for a in 0..Compute::<E>::LANES {
                *row.add(seg.width + a) = *row.add(a);
            }
        }
    }
    if const { deals::<E, L>() } && whole {
        order = order.dealt();
        for vector in 0..K * if records { seg.width } else { next } / DEAL {
            // SAFETY: the table is made of so many vectors, all written above; it has the alignment of a scalar.
            unsafe {
                let at = table.add(vector * DEAL).cast::<[Compute<E>; DEAL]>();
                let (in_order, mut dealt) = (at.read(), [Compute::<E>::ZERO; DEAL]);
                for e in 0..DEAL {
                    dealt[lane_of(e)] = in_order[e];
                }
                at.write(dealt);
            }
        }
    }
    let constants = Constants {
        at: table.cast_const(),
        order,
        period: seg.width,
        first: channels.first,
        count,
        adjacent: geo.adjacent,
        safe,
    };
    if flat {
        // Rows without gaps are one run.
        // SAFETY: the rows are inside the geometry.
        unsafe { map_row(lanes, op, geo, from, to, first, 0, (end - first) * geo.width, &constants, stage, stream) };
        if stream {
            lanes.fence();
        }
    } else {
        for row in first..end {
            // SAFETY: the row is inside the geometry, the segment inside the row.
            unsafe { map_row(lanes, op, geo, from, to, row, seg.start, seg.width, &constants, stage, false) };
        }
    }
    if end == geo.folded && geo.rest > 0 {
        let width = geo.rest * geo.channels * geo.adjacent;
        // SAFETY: the rows left over follow the last folded one; they are fewer than `fold`.
        unsafe { map_row(lanes, op, geo, from, to, end, 0, width, &constants, stage, false) };
    }
}

/// From one entry for each of `count` channels to `adjacent` for each, again and again up to `width`.
///
/// # Safety
/// The row has that many elements, a multiple of those of all channels.
#[inline(always)]
unsafe fn spread<S: Copy>(row: *mut S, count: usize, adjacent: usize, width: usize) {
    // Backwards: what is read has not been written yet.
    let mut e = width;
    while e > 0 {
        for c in (0..count).rev() {
            // SAFETY: c ≤ e; e is below the width.
            unsafe {
                let k = *row.add(c);
                for _ in 0..adjacent {
                    e -= 1;
                    *row.add(e) = k;
                }
            }
        }
    }
}

/// Maps `width` elements of a row.
///
/// # Safety
/// The places are valid there; there are constants for as many elements; the stage has room for them,
/// if a place is not contiguous.
#[inline(always)]
unsafe fn map_row<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    lanes: L,
    op: &M,
    geo: &Rows,
    from: &[Place<E>; I],
    to: &[Place<E>; O],
    row: usize,
    start: usize,
    width: usize,
    &constants: &Constants<E, K>,
    stage: *mut E,
    stream: bool,
) where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    // SAFETY: the elements lie in the row.
    unsafe {
        let from = Place::rows_of(from, geo, row, start, width, stage);
        let mut into = [core::ptr::null_mut(); O];
        for o in 0..O {
            // A staged output may take the place of a staged input, as in a call in place.
            into[o] = if to[o].contiguous {
                to[o].row(row * geo.fold).wrapping_add(start)
            } else {
                stage.wrapping_add(o * width)
            };
        }
        let elements = Elements { from, to: into, width };
        lanes.apart(MapRun::<E, M, I, J, K, O> { op, elements, constants, stream });
        for o in 0..O {
            if !to[o].contiguous {
                to[o].copy_row(geo, row, start, width, into[o], Direction::Out);
            }
        }
    }
}
