//! Walks rows: NHWC, dense N × C, and NCHW with planes of less than a vector. The lanes of a vector
//! are neighbouring (virtual) channels.
//!
//! Sums take four rows a quarter of the tensor apart in lockstep, each in memory order: four streams
//! keep more cache misses in flight than one, and the accumulators, which live in L1, are loaded and
//! stored once per four rows. Neighbouring rows in lockstep would share pages and run at a third
//! of that speed.

use super::grid::{ROW_CHAIN, Rows, SAMPLES, div};
use super::{
    Carve, Channels, ChannelsOf, Compute, Constants, Direction, MOST_LANES, MOST_OPERANDS, Place, Vec, finish,
    load_all, map_in_f64, map_run, splat_all, staged, store_all, values_in_f64, words_for,
};
use crate::element::Element;
use crate::kernel::{Map, Reduction};
use crate::lanes::{Lanes, Scalar, Vector};

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
    words_for::<f64>(N * slots) + 2 * words_for::<Compute<E>>(N * slots) + words_for::<Compute<E>>(K * slots)
}

/// Workspace of either walker for staging `width` elements of a row.
pub(crate) const fn stage_words<E>(width: usize) -> usize {
    words_for::<E>(MOST_OPERANDS * width)
}

/// The results of cell `g` for a range of channels.
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
    g: usize,
    scratch: &mut [u64],
    mut emit: impl FnMut(usize, [f64; N], [f64; K]),
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = <Vec<E, L>>::WIDTH;
    let seg = Segment::new(geo, channels, lanes_of);
    let slots = seg.groups * lanes_of;
    let mut carve = Carve::new(scratch);
    let t = Tables::<E> {
        results: carve.take(N * slots),
        first: carve.take(N * slots),
        second: carve.take(N * slots),
        constants: carve.take(K * slots),
        slots,
    };
    let staged = staged(from);
    let stage = if staged { carve.take::<E>(I * seg.width) } else { core::ptr::null_mut() };

    let (first, end) = geo.cell_blocks(g);
    // SAFETY: slots and elements are below the lengths of their tables; rows are inside the geometry,
    // groups inside the segment.
    unsafe {
        for c in channels.first..channels.end {
            for i in 1..K {
                t.set_constant(geo, seg, c - channels.first, i, op.constant(c, i));
            }
        }
        let visits = if R::PIVOT_PER_CELL { geo.cell_visits(g) } else { (0, geo.visits.len()) };
        for j in 0..seg.groups {
            let off = seg.offset(j, lanes_of);
            let k = if op.pivots() && visits.0 < visits.1 {
                pivot(lanes, op, geo, from, seg.start + off, visits)
            } else {
                Vec::<E, L>::splat(lanes, Compute::<E>::ZERO)
            };
            k.store(t.constants.add(off));
        }
        // The virtual channels of a channel share the pivot of the first, so that their sums can be
        // added. The rows left over share it too; where they are all there is, it is their first
        // value.
        if seg.width > channels.end - channels.first {
            for c in 0..channels.end - channels.first {
                t.set_constant(geo, seg, c, 0, *t.constants.add(c * geo.adjacent));
            }
        }
        if visits.0 == visits.1 && geo.rest > 0 && op.pivots() {
            for c in channels.first..channels.end {
                t.set_constant(geo, seg, c - channels.first, 0, first_of_rest(op, geo, from, c));
            }
        }
    }

    let n = geo.count(g);
    // At most twice: a second time if pivots turn out to be far from the means.
    for attempt in 0..2 {
        // SAFETY: the length of the table.
        unsafe {
            for i in 0..N * slots {
                *t.results.add(i) = 0.0;
            }
        }
        for block in first..end {
            let (v0, v1) = geo.block_visits(block);
            for v in v0..v1 {
                let visit = geo.visits.get(v);
                let mut chain = Chain { start: (v - v0) % ROW_CHAIN == 0, end: false, first: v - v0 < ROW_CHAIN };
                let end = (v - v0) % ROW_CHAIN == ROW_CHAIN - 1 || v + 1 == v1;
                // SAFETY: the visit's rows are inside the geometry, the segment inside the rows.
                unsafe {
                    if !L::SINGLE && visit.count == 4 && !staged {
                        let mut rows = [[core::ptr::null(); I]; 4];
                        for t in 0..4 {
                            rows[t] = Place::rows_of(from, geo, visit.item(t), seg.start, seg.width, stage);
                        }
                        chain.end = end;
                        go::<L, E, R, I, J, K, N, 4>(lanes, op, &rows, seg, &t, chain);
                    } else {
                        // One by one those that are staged, and the rows that four do not divide: the same
                        // additions.
                        for i in 0..visit.count {
                            chain.end = end && i + 1 == visit.count;
                            let row = [Place::rows_of(from, geo, visit.item(i), seg.start, seg.width, stage)];
                            go::<L, E, R, I, J, K, N, 1>(lanes, op, &row, seg, &t, chain);
                            chain.start = false;
                        }
                    }
                }
            }
            for j in 0..seg.groups {
                for n in 0..N {
                    let at = n * slots + j * lanes_of;
                    // SAFETY: the group's slots are in the tables.
                    unsafe {
                        let sums = Vec::<E, L>::load(lanes, t.second.add(at)).widen();
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
        let mut far = false;
        if R::PIVOT_PER_CELL && attempt == 0 {
            let mut c = channels.first;
            while c < channels.end {
                let group = Channels { first: c, end: channels.end.min(c + MOST_LANES) };
                // SAFETY: the cell is inside the geometry.
                let (k, sums) = unsafe { totals::<L, E, R, I, J, K, N>(op, geo, from, seg, &t, channels, group, g) };
                for l in 0..(group.end - c).min(MOST_LANES) {
                    if !R::good(&sums[l], n as f64)
                        && let Some(better) = R::repivot(k[l], &sums[l], n as f64)
                    {
                        // SAFETY: a channel of the segment.
                        unsafe { t.set_constant(geo, seg, c + l - channels.first, 0, better) };
                        far = true;
                    }
                }
                c = group.end;
            }
        }
        if !far {
            break;
        }
    }

    let per_n = 1.0 / n as f64;
    let mut c = channels.first;
    while c < channels.end {
        let group = Channels { first: c, end: channels.end.min(c + MOST_LANES) };
        // SAFETY: the cell is inside the geometry.
        let (mut k, mut sums) = unsafe { totals::<L, E, R, I, J, K, N>(op, geo, from, seg, &t, channels, group, g) };
        let mut good = [true; MOST_LANES];
        for l in 0..(group.end - c).min(MOST_LANES) {
            good[l] = R::good(&sums[l], n as f64);
        }
        if good.contains(&false) {
            // SAFETY: as above.
            let exact = unsafe { again(op, geo, from, group, g, &k, &good) };
            for l in 0..MOST_LANES {
                if !good[l] {
                    (k[l], sums[l]) = exact[l];
                }
            }
        }
        for l in 0..(group.end - c).min(MOST_LANES) {
            emit(c + l, R::settle(k[l], sums[l], per_n), k[l]);
        }
        c = group.end;
    }
}

/// Constants and sums of some channels of a segment, at most [`MOST_LANES`]: virtual channels, and the
/// rows left over, added up.
///
/// # Safety
/// The tables are those of the segment; the places are valid for reading all rows of the geometry.
#[inline(always)]
unsafe fn totals<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    seg: Segment,
    t: &Tables<E>,
    channels: Channels,
    group: Channels,
    g: usize,
) -> ([[f64; K]; MOST_LANES], [[f64; N]; MOST_LANES])
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let base = geo.channels * geo.adjacent;
    let (mut k, mut sums) = ([[0.0; K]; MOST_LANES], [[0.0; N]; MOST_LANES]);
    for l in 0..(group.end - group.first).min(MOST_LANES) {
        let mut e = (group.first + l - channels.first) * geo.adjacent;
        for i in 0..K {
            // SAFETY: e is an element of the segment.
            k[l][i] = unsafe { *t.constants.add(i * t.slots + e) }.to_f64();
        }
        while e < seg.width {
            for a in e..e + geo.adjacent {
                for n in 0..N {
                    // SAFETY: the slot of an element of the segment.
                    sums[l][n] += unsafe { *t.results.add(n * t.slots + seg.slot(a, <Vec<E, L>>::WIDTH)) };
                }
            }
            e += base;
        }
    }
    if geo.rest_of(g) > 0 {
        // SAFETY: the rows left over are inside the geometry.
        unsafe { add_rows(op, geo, from, group, (geo.folded * geo.fold, geo.rest), &k, &mut sums) };
    }
    (k, sums)
}

/// What a segment keeps between visits, by slot; constants by element.
struct Tables<E: Element> {
    results: *mut f64,
    first: *mut Compute<E>,
    second: *mut Compute<E>,
    constants: *mut Compute<E>,
    slots: usize,
}

impl<E: Element> Tables<E> {
    /// Sets constant `i` of channel `c` of the segment in each of its elements.
    ///
    /// # Safety
    /// The tables are those of the segment.
    #[inline(always)]
    unsafe fn set_constant(&self, geo: &Rows, seg: Segment, c: usize, i: usize, k: Compute<E>) {
        let mut e = c * geo.adjacent;
        while e < seg.width {
            for a in e..e + geo.adjacent {
                // SAFETY: a is below the width.
                unsafe { *self.constants.add(i * self.slots + a) = k };
            }
            e += geo.channels * geo.adjacent;
        }
    }
}

/// Where rows stand in the two levels of sums.
#[derive(Clone, Copy)]
struct Chain {
    /// They start a first-level sum.
    start: bool,
    /// They end it.
    end: bool,
    /// It is the first of the block.
    first: bool,
}

/// Adds `T` rows to the sums.
///
/// # Safety
/// The rows are valid for reading in the segment; the tables are those of the segment.
#[inline(always)]
unsafe fn go<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize, const T: usize>(
    lanes: L,
    op: &R,
    rows: &[[*const E; I]; T],
    seg: Segment,
    t: &Tables<E>,
    chain: Chain,
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = <Vec<E, L>>::WIDTH;
    for j in 0..seg.groups {
        let (off, slot) = (seg.offset(j, lanes_of), j * lanes_of);
        // SAFETY: the group lies in the segment, its slots in the tables.
        unsafe {
            let k = load_table::<L, E, K>(lanes, t.constants.add(off), t.slots);
            let mut acc = if chain.start {
                splat_all(lanes, &[Compute::<E>::ZERO; N])
            } else {
                load_table::<L, E, N>(lanes, t.first.add(slot), t.slots)
            };
            let mut i = 0;
            while i < T {
                let a = op.addends(op.values(lanes, load_all(lanes, &rows[i], off)), k);
                let mut n = 0;
                while n < N {
                    acc[n] = acc[n] + a[n];
                    n += 1;
                }
                i += 1;
            }
            let mut n = 0;
            while n < N {
                let second = t.second.add(n * t.slots + slot);
                if !chain.end {
                    acc[n].store(t.first.add(n * t.slots + slot));
                } else if chain.first {
                    acc[n].store(second);
                } else {
                    (Vec::<E, L>::load(lanes, second) + acc[n]).store(second);
                }
                n += 1;
            }
        }
    }
}

/// One vector from each row of a table.
///
/// # Safety
/// The table has a vector there.
#[inline(always)]
unsafe fn load_table<L: Lanes, E: Element, const K: usize>(
    lanes: L,
    at: *const Compute<E>,
    next: usize,
) -> [Vec<E, L>; K] {
    let mut k = [Vec::<E, L>::splat(lanes, Compute::<E>::ZERO); K];
    let mut i = 0;
    while i < K {
        // SAFETY: by the caller.
        k[i] = unsafe { Vec::<E, L>::load(lanes, at.add(i * next)) };
        i += 1;
    }
    k
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
            each(div(e - start, geo.adjacent) % MOST_LANES, unsafe { values_of(op, from, row, e) });
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
    k: &[[f64; K]; MOST_LANES],
    sums: &mut [[f64; N]; MOST_LANES],
) where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    // SAFETY: by the caller.
    unsafe {
        for_each(op, geo, from, channels, rows, |l, x| {
            let a = op.addends(x, k[l % MOST_LANES]);
            for n in 0..N {
                sums[l % MOST_LANES][n] += a[n];
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
    k: &[[f64; K]; MOST_LANES],
    same: &mut [bool; MOST_LANES],
) -> bool
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    // SAFETY: by the caller.
    unsafe {
        for_each(op, geo, from, channels, rows, |l, x| {
            same[l % MOST_LANES] &= x[R::PIVOT_OF] == k[l % MOST_LANES][0];
        });
    }
    same.contains(&true)
}

/// A cell of some channels, at most [`MOST_LANES`], again, in f64: better constants, and sums about
/// them.
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
    k: &[[f64; K]; MOST_LANES],
    good: &[bool; MOST_LANES],
) -> [([f64; K], [f64; N]); MOST_LANES]
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let (v0, v1) = geo.cell_visits(g);
    let rest = (geo.folded * geo.fold, geo.rest_of(g));
    let per_n = 1.0 / geo.count(g) as f64;
    let mut all = [([0.0; K], [0.0; N]); MOST_LANES];
    let mut k = *k;
    // Constant channels are frequent (dead ones, say), and found faster than summed.
    let mut same = good.map(|good| !good && R::ZERO_AT_PIVOT);
    // SAFETY: rows of the cell.
    let mut left = unsafe { compare_rows(op, geo, from, channels, rest, &k, &mut same) };
    for v in v0..v1 {
        let visit = geo.visits.get(v);
        for i in 0..visit.count {
            if left {
                let rows = (visit.item(i) * geo.fold, geo.fold);
                // SAFETY: as above.
                left = unsafe { compare_rows(op, geo, from, channels, rows, &k, &mut same) };
            }
        }
    }
    let mut done = true;
    for l in 0..MOST_LANES {
        done &= good[l] || same[l];
        all[l].0 = k[l];
    }
    if done {
        return all;
    }
    for pass in 0..R::PASSES {
        let mut sums = [[0.0; N]; MOST_LANES];
        for v in v0..v1 {
            let visit = geo.visits.get(v);
            for i in 0..visit.count {
                // SAFETY: as above.
                unsafe { add_rows(op, geo, from, channels, (visit.item(i) * geo.fold, geo.fold), &k, &mut sums) };
            }
        }
        // SAFETY: as above.
        unsafe { add_rows(op, geo, from, channels, rest, &k, &mut sums) };
        for l in 0..MOST_LANES {
            // Those keep their 0, whichever channels they are done with: beside an infinite value of x the sum
            // would be 0·∞.
            if same[l] {
                continue;
            }
            all[l] = (k[l], sums[l]);
            if pass + 1 < R::PASSES {
                k[l] = R::recentre(k[l], sums[l], per_n);
            }
        }
    }
    all
}

/// The pivots of one group in some visits: as in the planes geometry, with a channel in each lane.
///
/// # Safety
/// The visits are of the geometry; `start` is where the group starts in a row.
#[inline(always)]
unsafe fn pivot<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    start: usize,
    (v0, v1): (usize, usize),
) -> Vec<E, L>
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let zero = Vec::<E, L>::splat(lanes, Compute::<E>::ZERO);
    let (mut base, mut distance) = (zero, zero);
    for i in 0..SAMPLES {
        let (row, mut buffer) = (geo.visits.sample(i, v0, v1), [[E::zeroed(); MOST_LANES]; I]);
        // SAFETY: the row is one of the block's, the group lies in it; the buffer holds a vector of
        // each input.
        let x = unsafe {
            let stage = buffer.as_mut_ptr().cast();
            load_all(lanes, &Place::rows_of(from, geo, row, start, <Vec<E, L>>::WIDTH, stage), 0)
        };
        let v = op.values(lanes, x)[R::PIVOT_OF];
        if i == 0 {
            base = v;
        } else {
            distance = distance + (v - base);
        }
    }
    let k = base + distance * Vec::<E, L>::splat(lanes, Compute::<E>::PER_SAMPLE);
    <Vec<E, L>>::select(k.finite(), k, zero)
}

/// Elements from one constant to the next. The table goes on for one vector more, from its start, for
/// vectors that begin in one row and end in the next.
const fn table_width<E: Element>(width: usize) -> usize {
    (width + Compute::<E>::LANES).next_multiple_of(Compute::<E>::LANES)
}

/// Workspace of [`map`] for `width` elements of a row.
pub(crate) const fn map_words<E: Element, const K: usize>(width: usize) -> usize {
    words_for::<Compute<E>>((K + 1) * table_width::<E>(width))
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
    let mut table = MapTable::<E, K, J> {
        narrow: carve.take((K + 1) * next),
        width: seg.width,
        next,
        first: channels.first,
        count,
        adjacent: geo.adjacent,
        all_safe: true,
    };
    let base = geo.channels * geo.adjacent;
    for c in 0..count {
        let k = op.coefficients(channels.first + c);
        table.all_safe &= k.safe;
        // SAFETY: c is below the number of channels, a below the width.
        unsafe {
            let mut e = c * geo.adjacent;
            while e < seg.width {
                for a in e..e + geo.adjacent {
                    for i in 0..K {
                        *table.narrow.add(i * next + a) = Scalar::from_f64(k.narrow[i]);
                    }
                    *table.narrow.add(K * next + a) = if k.safe { Compute::<E>::ONE } else { Compute::<E>::ZERO };
                }
                e += base;
            }
        }
    }
    let stage = if staged(from) || staged(to) {
        carve.take::<E>(const { if I > O { I } else { O } } * seg.width)
    } else {
        core::ptr::null_mut()
    };
    for a in 0..Compute::<E>::LANES {
        for i in 0..=K {
            // SAFETY: the row has at least a vector.
            unsafe { *table.narrow.add(i * next + seg.width + a) = *table.narrow.add(i * next + a) };
        }
    }
    let mut flat = stage.is_null() && seg.width == geo.width;
    for i in 0..I {
        flat &= from[i].dense(geo);
    }
    for o in 0..O {
        flat &= to[o].dense(geo);
    }
    if flat && first < end {
        // Rows without gaps are one run.
        // SAFETY: the rows are inside the geometry.
        unsafe { map_row(lanes, op, geo, from, to, first, 0, (end - first) * geo.width, &table, stage, stream) };
        if stream {
            lanes.fence();
        }
    } else {
        for row in first..end {
            // SAFETY: the row is inside the geometry, the segment inside the row.
            unsafe { map_row(lanes, op, geo, from, to, row, seg.start, seg.width, &table, stage, false) };
        }
    }
    if end == geo.folded && geo.rest > 0 {
        // SAFETY: the rows left over follow the last folded one; they are fewer than `fold`.
        unsafe { map_row(lanes, op, geo, from, to, end, 0, geo.rest * base, &table, stage, false) };
    }
}

/// The constants of a row.
struct MapTable<E: Element, const K: usize, const J: usize> {
    /// The constants of each element, one after the other; and 1 where they suffice, else 0.
    narrow: *mut Compute<E>,
    /// Elements of a row, and from one constant to the next.
    width: usize,
    next: usize,
    /// The channels of the row.
    first: usize,
    count: usize,
    adjacent: usize,
    all_safe: bool,
}

impl<E: Element, const K: usize, const J: usize> MapTable<E, K, J> {
    /// The channels of the vector that starts at element `start`.
    #[inline(always)]
    fn channels(&self, start: usize) -> ChannelsOf {
        ChannelsOf { first: self.first, count: self.count, adjacent: self.adjacent, start }
    }
}

/// Maps `width` elements of a row.
///
/// # Safety
/// The places are valid there; the table has at least as many elements; the stage has room for them,
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
    table: &MapTable<E, K, J>,
    stage: *mut E,
    stream: bool,
) where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let lanes_of = <Vec<E, L>>::WIDTH;
    // SAFETY: the vectors lie in the row.
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
        if width < lanes_of {
            map_part(lanes, op, &from, &into, width, table);
        } else {
            map_run(lanes, op, &from, &into, width, table, stream);
        }
        for o in 0..O {
            if !to[o].contiguous {
                to[o].copy_row(geo, row, start, width, into[o], Direction::Out);
            }
        }
    }
}

/// Maps less than a vector, by way of a buffer, with the constants of the row's first vector.
///
/// # Safety
/// The pointers are valid for `width` elements; the table has a vector.
#[inline(always)]
unsafe fn map_part<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    lanes: L,
    op: &M,
    from: &[*const E; I],
    to: &[*mut E; O],
    width: usize,
    table: &MapTable<E, K, J>,
) where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let (mut x, mut y) = ([[E::zeroed(); MOST_LANES]; I], [[E::zeroed(); MOST_LANES]; O]);
    let (mut read, mut written) = ([core::ptr::null(); I], [core::ptr::null_mut(); O]);
    // SAFETY: width elements of each, fewer than a vector; the buffers hold one; so does the table.
    unsafe {
        for i in 0..I {
            core::ptr::copy_nonoverlapping(from[i], x[i].as_mut_ptr(), width);
            read[i] = x[i].as_ptr();
        }
        for o in 0..O {
            written[o] = y[o].as_mut_ptr();
        }
        store_all::<L, E, O>(table.map(lanes, op, load_all(lanes, &read, 0), 0), &written, 0);
        for o in 0..O {
            core::ptr::copy_nonoverlapping(y[o].as_ptr(), to[o], width);
        }
    }
}

impl<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize> Constants<L, E, M, I, O>
    for MapTable<E, K, J>
where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    #[inline(always)]
    fn period(&self) -> usize {
        self.width
    }
    #[inline(always)]
    unsafe fn map(&self, lanes: L, op: &M, x: [Vec<E, L>; I], offset: usize) -> [Vec<E, L>; O] {
        // SAFETY: the table has a vector from each element on.
        unsafe {
            let k = load_table::<L, E, K>(lanes, self.narrow.add(offset), self.next);
            let v = op.before(lanes, x);
            let mut r = op.formula(v, k);
            if !self.all_safe {
                let safe = Vec::<E, L>::load(lanes, self.narrow.add(K * self.next + offset));
                let zero = Vec::<E, L>::splat(lanes, Compute::<E>::ZERO);
                r = <Vec<E, L>>::select(zero.lt(safe), r, map_in_f64(lanes, op, v, self.channels(offset), false));
            }
            finish(lanes, op, v, r, self.channels(offset))
        }
    }
}
