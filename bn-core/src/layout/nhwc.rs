//! Walks rows: NHWC, dense N × C, and NCHW with planes of less than a vector. The lanes of a vector
//! are neighbouring (virtual) channels.
//!
//! Sums take four rows a quarter of the tensor apart in lockstep, each in memory order: four streams
//! keep more cache misses in flight than one, and the accumulators, which live in L1, are loaded and
//! stored once per four rows. Neighbouring rows in lockstep would share pages and run at a third
//! of that speed.

use super::grid::{ROW_CHAIN, Rows, SAMPLES, div, rem};
use super::{
    Carve, Channels, Compute, Direction, MOST_LANES, MOST_OPERANDS, Place, Vec, WideConstants, add_in_f64, load_all,
    map_in_f64, splat_all, staged, store_all, store_lanes, words_for,
};
use crate::element::Element;
use crate::kernel::{Count, Join, Map, Reduction};
use crate::lanes::{Lanes, Real, Scalar, Vector, portable::Portable};

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
    let lanes_of = Compute::<E>::LANES;
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

    for i in 1..K {
        for e in 0..seg.width {
            let k = op.constant(rem(div(seg.start + e, geo.adjacent), geo.channels), i);
            // SAFETY: e < width ≤ slots.
            unsafe { *t.constants.add(i * slots + e) = k };
        }
    }
    if !R::PIVOT_PER_BLOCK {
        let visits = (0, geo.visits.len());
        for j in 0..seg.groups {
            let off = seg.offset(j, lanes_of);
            // SAFETY: the rows are inside the geometry, the group inside the segment.
            unsafe {
                let k = if op.pivots() && visits.1 > 0 {
                    pivot(lanes, op, geo, from, seg.start + off, visits)
                } else {
                    Vec::<E, L>::splat(lanes, Compute::<E>::ZERO)
                };
                k.store(t.constants.add(off));
            }
        }
        // The virtual channels of a channel share the pivot of the first, so that their sums can be
        // added.
        for e in 0..seg.width {
            let first = div(rem(e, geo.channels * geo.adjacent), geo.adjacent) * geo.adjacent;
            if first != e {
                // SAFETY: both are below the width, and `first` has its final value.
                unsafe { *t.constants.add(e) = *t.constants.add(first) };
            }
        }
    }

    let (first, end) = geo.cell_blocks(g);
    let mut before = 0;
    for block in first..end {
        let (v0, v1) = geo.block_visits(block);
        if R::PIVOT_PER_BLOCK {
            for j in 0..seg.groups {
                let off = seg.offset(j, lanes_of);
                // SAFETY: the rows are inside the geometry, the group inside the segment.
                unsafe { pivot(lanes, op, geo, from, seg.start + off, (v0, v1)).store(t.constants.add(off)) };
            }
        }
        for v in v0..v1 {
            let visit = geo.visits.get(v);
            let mut chain = Chain { start: (v - v0) % ROW_CHAIN == 0, end: false, first: v - v0 < ROW_CHAIN };
            let end = (v - v0) % ROW_CHAIN == ROW_CHAIN - 1 || v + 1 == v1;
            // SAFETY: the visit's rows are inside the geometry, the segment inside the rows.
            unsafe {
                if visit.count == 4 && !staged {
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
        let n = geo.visits.items(v0, v1) as u64;
        // SAFETY: as above; the sums of the block are complete.
        unsafe { finish(lanes, op, geo, from, seg, &t, (v0, v1), before, n) };
        before += n;
    }

    // Virtual channels to channels, one virtual index after the other so that the inner loop runs
    // over channels.
    let (base, width) = (geo.channels * geo.adjacent, channels.end - channels.first);
    let at =
        |c: usize, i: usize| seg.slot(div(i, geo.adjacent) * base + c * geo.adjacent + rem(i, geo.adjacent), lanes_of);
    if before > 0 {
        for i in 1..geo.fold * geo.adjacent {
            let join = Join::new(before * i as u64, before);
            for c in 0..width {
                // SAFETY: slots of elements of the segment.
                unsafe {
                    let (a, b) = (t.result::<N>(at(c, 0)), t.result::<N>(at(c, i)));
                    t.set_result(at(c, 0), &R::join(a, b, join));
                }
            }
        }
    }
    let folded = before * (geo.fold * geo.adjacent) as u64;
    let rest = (geo.rest_of(g) * geo.adjacent) as u64;
    for c in 0..width {
        // SAFETY: as above.
        let mut r = if folded > 0 { unsafe { t.result::<N>(at(c, 0)) } } else { [0.0; N] };
        let mut k = [0.0; K];
        for i in 0..K {
            // SAFETY: the first copy of the channel's constants.
            k[i] = unsafe { *t.constants.add(i * slots + c * geo.adjacent) }.to_f64();
        }
        if rest > 0 {
            // SAFETY: the rest rows are inside the geometry.
            let b = unsafe { rest_of(op, geo, from, channels.first + c, &mut k, folded == 0, rest) };
            r = if folded > 0 { R::join(r, b, Join::new(folded, rest)) } else { b };
        }
        emit(channels.first + c, r, k);
    }
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
    /// # Safety
    /// `slot` is below `slots`.
    #[inline(always)]
    unsafe fn result<const N: usize>(&self, slot: usize) -> [f64; N] {
        // SAFETY: by the caller.
        core::array::from_fn(|n| unsafe { *self.results.add(n * self.slots + slot) })
    }
    /// # Safety
    /// `slot` is below `slots`.
    #[inline(always)]
    unsafe fn set_result<const N: usize>(&self, slot: usize, r: &[f64; N]) {
        for n in 0..N {
            // SAFETY: by the caller.
            unsafe { *self.results.add(n * self.slots + slot) = r[n] };
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
    let lanes_of = Compute::<E>::LANES;
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

/// Turns the sums of a block into results and joins them to those before.
///
/// # Safety
/// As for [`go`], with the visits of the block.
#[inline(always)]
unsafe fn finish<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    seg: Segment,
    t: &Tables<E>,
    visits: (usize, usize),
    before: u64,
    n: u64,
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = Compute::<E>::LANES;
    let (scalar, zero) = (Count::new::<Compute<E>>(n), L::F64::splat(lanes, 0.0));
    let count = scalar.splat::<L::F64>(lanes);
    let join = Join::new(before, n).splat::<L::F64>(lanes);
    for j in 0..seg.groups {
        let (off, slot) = (seg.offset(j, lanes_of), j * lanes_of);
        // SAFETY: the group's slots are in the tables.
        unsafe {
            let constants = load_table::<L, E, K>(lanes, t.constants.add(off), t.slots);
            let sums = load_table::<L, E, N>(lanes, t.second.add(slot), t.slots);
            let mut half = 0;
            while half < <Vec<E, L> as Vector>::WIDES {
                let (mut k, mut s) = ([zero; K], [zero; N]);
                let mut i = 0;
                while i < K {
                    k[i] = constants[i].widen()[half];
                    i += 1;
                }
                let mut n = 0;
                while n < N {
                    s[n] = sums[n].widen()[half];
                    n += 1;
                }
                let (mut r, good) = R::settle(k, s, count);
                if !L::F64::all(good) {
                    let wide =
                        again(op, geo, from, seg.start + off, visits, t.constants.add(off), t.slots, scalar.per_n);
                    let mut n = 0;
                    while n < N {
                        r[n] = L::F64::select(good, r[n], L::F64::load(lanes, wide[n].as_ptr().add(8 * half)));
                        n += 1;
                    }
                }
                let results = t.results.add(slot + 8 * half);
                if before > 0 {
                    let mut old = [zero; N];
                    let mut n = 0;
                    while n < N {
                        old[n] = L::F64::load(lanes, results.add(n * t.slots));
                        n += 1;
                    }
                    r = R::join(old, r, join);
                }
                let mut n = 0;
                while n < N {
                    r[n].store(results.add(n * t.slots));
                    n += 1;
                }
                half += 1;
            }
        }
    }
}

/// One group of a block again, in f64.
///
/// # Safety
/// The visits are of the geometry; `start` is where the group starts in a row, and its constants
/// stand in lanes from `constants` on.
#[cold]
#[inline(never)]
unsafe fn again<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    start: usize,
    (v0, v1): (usize, usize),
    constants: *const Compute<E>,
    next: usize,
    per_n: f64,
) -> [[f64; MOST_LANES]; N]
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = Compute::<E>::LANES;
    let mut k = [[0.0; MOST_LANES]; K];
    for i in 0..K {
        for lane in 0..lanes_of {
            // SAFETY: by the caller.
            k[i][lane] = unsafe { *constants.add(i * next + lane) }.to_f64();
        }
    }
    let mut sums = [[0.0; MOST_LANES]; N];
    for pass in 0..R::PASSES {
        sums = [[0.0; MOST_LANES]; N];
        for v in v0..v1 {
            let visit = geo.visits.get(v);
            for i in 0..visit.count {
                let mut buffer = [[E::zeroed(); MOST_LANES]; I];
                // SAFETY: the group lies in each row; the buffer holds a vector of each input.
                unsafe {
                    let at = Place::rows_of(from, geo, visit.item(i), start, lanes_of, buffer.as_mut_ptr().cast());
                    add_in_f64(op, &at, 0, &k, &mut sums);
                }
            }
        }
        for lane in 0..lanes_of {
            let (kl, sl) = (core::array::from_fn(|i| k[i][lane]), core::array::from_fn(|i| sums[i][lane]));
            if pass + 1 < R::PASSES {
                let better = R::recentre(kl, sl, per_n);
                for i in 0..K {
                    k[i][lane] = better[i];
                }
            } else {
                let settled = R::settle_wide(kl, sl, per_n);
                for n in 0..N {
                    sums[n][lane] = settled[n];
                }
            }
        }
    }
    sums
}

/// The pivots of one group in some visits: as in the planes geometry, with a channel in each lane.
///
/// # Safety
/// As for [`again`].
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
            load_all(lanes, &Place::rows_of(from, geo, row, start, Compute::<E>::LANES, stage), 0)
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

/// The rows that folding has left over, for one channel, in f64. Where they are all there is, the
/// pivot is made of them.
///
/// # Safety
/// The places are valid for reading all rows of the geometry.
#[inline(never)]
unsafe fn rest_of<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    channel: usize,
    k: &mut [f64; K],
    alone: bool,
    n: u64,
) -> [f64; N]
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let per_n = 1.0 / n as f64;
    let mut sums = [0.0; N];
    for pass in 0..R::PASSES {
        sums = [0.0; N];
        for i in 0..n as usize {
            let (row, e) = (div(i, geo.adjacent), channel * geo.adjacent + rem(i, geo.adjacent));
            let mut x = [Vec::<E, Portable>::splat(Portable, Compute::<E>::ZERO); I];
            for j in 0..I {
                let p = from[j].element(from[j].row(geo.folded * geo.fold + row), e);
                // SAFETY: by the caller; the rows left over follow the last folded one.
                x[j] = Vec::<E, Portable>::splat(Portable, unsafe { *p }.get());
            }
            let v = store_lanes::<Portable, E, J>(op.values(Portable, x));
            let mut first = [0.0; J];
            for j in 0..J {
                first[j] = v[j][0].to_f64();
            }
            if (R::PIVOT_PER_BLOCK || alone && op.pivots()) && pass == 0 && i == 0 {
                k[0] = if first[R::PIVOT_OF].is_finite() { first[R::PIVOT_OF] } else { 0.0 };
            }
            let a = op.addends(first, *k);
            for n in 0..N {
                sums[n] += a[n];
            }
        }
        if pass + 1 < R::PASSES {
            *k = R::recentre(*k, sums, per_n);
        }
    }
    R::settle_wide(*k, sums, per_n)
}

/// Workspace of [`map`] for `width` elements of a row, of so many channels.
pub(crate) const fn map_words<E: Element, const K: usize>(width: usize, channels: usize) -> usize {
    words_for::<Compute<E>>(K * width) + words_for::<Compute<E>>(width) + words_for::<f64>(K * channels)
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
    scratch: &mut [u64],
) where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let seg = Segment::new(geo, channels, Compute::<E>::LANES);
    let count = channels.end - channels.first;
    let mut carve = Carve::new(scratch);
    let mut table = MapTable::<E, K> {
        narrow: carve.take(K * seg.width),
        safe: carve.take(seg.width),
        wide: carve.take(K * count),
        width: seg.width,
        channels: count,
        adjacent: geo.adjacent,
        all_safe: true,
    };
    let base = geo.channels * geo.adjacent;
    for c in 0..count {
        let k = op.coefficients(channels.first + c);
        table.all_safe &= k.safe;
        // SAFETY: c is below the number of channels, a below the width.
        unsafe {
            for i in 0..K {
                *table.wide.add(i * count + c) = k.wide[i];
            }
            let mut e = c * geo.adjacent;
            while e < seg.width {
                for a in e..e + geo.adjacent {
                    for i in 0..K {
                        *table.narrow.add(i * seg.width + a) = Scalar::from_f64(k.narrow[i]);
                    }
                    *table.safe.add(a) = if k.safe { Compute::<E>::ONE } else { Compute::<E>::ZERO };
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
    for row in first..end {
        // SAFETY: the row is inside the geometry, the segment inside the row.
        unsafe { map_row(lanes, op, geo, from, to, row, seg.start, seg.width, &table, stage) };
    }
    if end == geo.folded && geo.rest > 0 {
        // SAFETY: the rows left over follow the last folded one; they are fewer than `fold`.
        unsafe { map_row(lanes, op, geo, from, to, end, 0, geo.rest * base, &table, stage) };
    }
}

/// The constants of a row: narrow ones of each element, wide ones of each channel.
struct MapTable<E: Element, const K: usize> {
    narrow: *mut Compute<E>,
    /// 1 where the narrow constants suffice, else 0.
    safe: *mut Compute<E>,
    wide: *mut f64,
    width: usize,
    channels: usize,
    adjacent: usize,
    all_safe: bool,
}

impl<E: Element, const K: usize> MapTable<E, K> {
    /// The wide constants of the vector that starts at element `off`.
    #[inline(always)]
    fn wide(&self, off: usize) -> WideConstants {
        let (next, adjacent) = (self.channels, self.adjacent);
        WideConstants { at: self.wide, next, first: off, adjacent, channels: self.channels }
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
    table: &MapTable<E, K>,
    stage: *mut E,
) where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let lanes_of = Compute::<E>::LANES;
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
            // The last vector overlaps its neighbour: it is read before anything is written, as the
            // output may be the input.
            let last = width - lanes_of;
            let tail = load_all(lanes, &from, last);
            for v in 0..width / lanes_of {
                let x = load_all(lanes, &from, v * lanes_of);
                store_all::<L, E, O>(map_one(lanes, op, x, v * lanes_of, table), &into, v * lanes_of);
            }
            if !width.is_multiple_of(lanes_of) {
                store_all::<L, E, O>(map_one(lanes, op, tail, last, table), &into, last);
            }
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
    table: &MapTable<E, K>,
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
        store_all::<L, E, O>(map_one(lanes, op, load_all(lanes, &read, 0), 0, table), &written, 0);
        for o in 0..O {
            core::ptr::copy_nonoverlapping(y[o].as_ptr(), to[o], width);
        }
    }
}

/// Maps one vector, whose constants start at `off`.
///
/// # Safety
/// The table has a vector there.
#[inline(always)]
unsafe fn map_one<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    lanes: L,
    op: &M,
    x: [Vec<E, L>; I],
    off: usize,
    table: &MapTable<E, K>,
) -> [Vec<E, L>; O]
where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    // SAFETY: by the caller.
    unsafe {
        let k = load_table::<L, E, K>(lanes, table.narrow.add(off), table.width);
        let v = op.before(lanes, x);
        let mut r = op.formula(v, k);
        let wide = table.wide(off);
        if !table.all_safe {
            let safe = Vec::<E, L>::load(lanes, table.safe.add(off));
            let zero = Vec::<E, L>::splat(lanes, Compute::<E>::ZERO);
            r = <Vec<E, L>>::select(zero.lt(safe), r, map_in_f64(lanes, op, v, wide));
        }
        if M::CHECKED && !<Vec<E, L>>::all(r.finite()) {
            r = <Vec<E, L>>::select(r.finite(), r, map_in_f64(lanes, op, v, wide));
        }
        op.after(lanes, x, v, r)
    }
}
