//! Walks rows: NHWC, dense N × C, and NCHW with planes of less than a vector. The lanes of a vector
//! are neighbouring (virtual) channels.
//!
//! Sums take four rows a quarter of the tensor apart in lockstep, each in memory order: four streams
//! keep more cache misses in flight than one, and the accumulators, which live in L1, are loaded and
//! stored once per four rows. Neighbouring rows in lockstep would share pages and run at a third
//! of that speed.

use super::grid::{ROW_CHAIN, Rows, SAMPLES, Visit, sample_stratified};
use super::nchw::wide;
use super::{Carve, Channels, Place, words_for};
use crate::element::Element;
use crate::kernel::{Coefficients, Join, Map, Reduction};
use crate::lanes::{Lanes, Scalar, Vector};

type Compute<E> = <E as crate::element::sealed::Storage>::Compute;
type Vec<E, L> = <E as crate::element::sealed::Storage>::Vec<L>;

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

/// The results of cell `g` for a range of channels.
///
/// # Safety
/// Every place is valid for reading all rows of the geometry; `scratch` has [`reduce_words`] for
/// the range; a range narrower than the tensor has at least a vector and is not folded.
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

    for i in 1..K {
        for e in 0..seg.width {
            let k = op.constant((seg.start + e) / geo.adjacent % geo.channels, i);
            // SAFETY: e < width ≤ slots.
            unsafe { *t.constants.add(i * slots + e) = k };
        }
    }
    if !R::PIVOT_PER_BLOCK {
        let pivots = op.pivots();
        // Folded channels have one pivot too, so that their sums can be added.
        for c in channels.first..channels.end {
            // SAFETY: the rows are inside the geometry.
            let k = if pivots { unsafe { channel_pivot(lanes, op, geo, from, c) } } else { Compute::<E>::ZERO };
            let mut e = (c - channels.first) * geo.adjacent;
            while e < seg.width {
                for a in 0..geo.adjacent {
                    // SAFETY: e + a < width ≤ slots.
                    unsafe { *t.constants.add(e + a) = k };
                }
                e += geo.channels * geo.adjacent;
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
            let place = Chain { start: (v - v0) % ROW_CHAIN == 0, first: v - v0 < ROW_CHAIN };
            let full = (v - v0) % ROW_CHAIN == ROW_CHAIN - 1 || v + 1 == v1;
            // SAFETY: the visit's rows are inside the geometry, the segment inside the rows.
            unsafe {
                match visit.count {
                    4 => go::<L, E, R, I, J, K, N, 4>(lanes, op, from, visit, seg, &t, place, full),
                    3 => go::<L, E, R, I, J, K, N, 3>(lanes, op, from, visit, seg, &t, place, full),
                    2 => go::<L, E, R, I, J, K, N, 2>(lanes, op, from, visit, seg, &t, place, full),
                    _ => go::<L, E, R, I, J, K, N, 1>(lanes, op, from, visit, seg, &t, place, full),
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
    let at = |c: usize, i: usize| seg.slot(i / geo.adjacent * base + c * geo.adjacent + i % geo.adjacent, lanes_of);
    if before > 0 {
        for i in 1..geo.fold * geo.adjacent {
            let join = Join::new(before * i as u64, before);
            for c in 0..width {
                // SAFETY: slots of elements of the segment.
                unsafe {
                    let (a, b) = (t.result::<N>(at(c, 0)), t.result::<N>(at(c, i)));
                    t.set_result(at(c, 0), R::join(a, b, join));
                }
            }
        }
    }
    let folded = before * (geo.fold * geo.adjacent) as u64;
    let rest = (geo.rest_of(g) * geo.adjacent) as u64;
    for c in 0..width {
        // SAFETY: as above.
        let mut r = if folded > 0 { unsafe { t.result::<N>(at(c, 0)) } } else { [0.0; N] };
        // SAFETY: the first copy of the channel's constants.
        let k = core::array::from_fn(|i| unsafe { *t.constants.add(i * slots + c * geo.adjacent) }.to_f64());
        if rest > 0 {
            // SAFETY: the rest rows are inside the geometry.
            let b = unsafe { rest_of(lanes, op, geo, from, channels.first + c, k, rest) };
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
    unsafe fn set_result<const N: usize>(&self, slot: usize, r: [f64; N]) {
        for (n, r) in r.into_iter().enumerate() {
            // SAFETY: by the caller.
            unsafe { *self.results.add(n * self.slots + slot) = r };
        }
    }
}

/// Where a visit stands in the two levels of sums.
#[derive(Clone, Copy)]
struct Chain {
    /// It starts a first-level sum.
    start: bool,
    /// It belongs to the first of them.
    first: bool,
}

/// One visit: `T` rows.
///
/// # Safety
/// The rows are valid for reading in the segment; the tables are those of the segment.
#[inline(always)]
unsafe fn go<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize, const T: usize>(
    lanes: L,
    op: &R,
    from: &[Place<E>; I],
    visit: Visit,
    seg: Segment,
    t: &Tables<E>,
    place: Chain,
    full: bool,
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = Compute::<E>::LANES;
    let rows: [[*const E; I]; T] =
        core::array::from_fn(|i| from.map(|f| f.row(visit.item(i)).wrapping_add(seg.start).cast_const()));
    for j in 0..seg.groups {
        let (off, slot) = (seg.offset(j, lanes_of), j * lanes_of);
        // SAFETY: the group lies in the segment, its slots in the tables.
        unsafe {
            let k = core::array::from_fn(|i| Vec::<E, L>::load(lanes, t.constants.add(i * t.slots + off)));
            let mut acc = [Vec::<E, L>::splat(lanes, Compute::<E>::ZERO); N];
            if !place.start {
                for (n, a) in acc.iter_mut().enumerate() {
                    *a = Vec::<E, L>::load(lanes, t.first.add(n * t.slots + slot));
                }
            }
            for row in rows {
                let x = row.map(|p| E::load(lanes, p.add(off)));
                let a = op.addends(op.values(lanes, x), k);
                for (acc, a) in acc.iter_mut().zip(a) {
                    *acc = *acc + a;
                }
            }
            for (n, a) in acc.into_iter().enumerate() {
                let second = t.second.add(n * t.slots + slot);
                match (full, place.first) {
                    (false, _) => a.store(t.first.add(n * t.slots + slot)),
                    (true, true) => a.store(second),
                    (true, false) => (Vec::<E, L>::load(lanes, second) + a).store(second),
                }
            }
        }
    }
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
    let (count, per_n, join) = (n as f64, 1.0 / n as f64, Join::new(before, n));
    for j in 0..seg.groups {
        let (off, slot) = (seg.offset(j, lanes_of), j * lanes_of);
        let mut k = [[0.0; MOST_LANES]; K];
        let mut r = [[0.0; MOST_LANES]; N];
        let mut good = [true; MOST_LANES];
        for lane in 0..lanes_of {
            // SAFETY: the group's slots are in the tables.
            let sums = unsafe {
                for (i, k) in k.iter_mut().enumerate() {
                    k[lane] = (*t.constants.add(i * t.slots + off + lane)).to_f64();
                }
                core::array::from_fn(|i| (*t.second.add(i * t.slots + slot + lane)).to_f64())
            };
            let (result, ok) = R::settle(core::array::from_fn(|i| k[i][lane]), sums, count, per_n);
            for (r, v) in r.iter_mut().zip(result) {
                r[lane] = v;
            }
            good[lane] = ok;
        }
        if good.contains(&false) {
            // SAFETY: as above.
            let wide = unsafe { again(lanes, op, geo, from, seg.start + off, visits, &k, per_n) };
            for lane in 0..lanes_of {
                if !good[lane] {
                    for (r, w) in r.iter_mut().zip(&wide) {
                        r[lane] = w[lane];
                    }
                }
            }
        }
        for lane in 0..lanes_of {
            let mut result = core::array::from_fn(|i| r[i][lane]);
            // SAFETY: as above.
            unsafe {
                if before > 0 {
                    result = R::join(t.result(slot + lane), result, join);
                }
                t.set_result(slot + lane, result);
            }
        }
    }
}

/// The largest `Scalar::LANES`.
const MOST_LANES: usize = 16;

/// One group of a block again, in f64.
///
/// # Safety
/// The visits are of the geometry; `start` is where the group starts in a row.
#[inline(always)]
unsafe fn again<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    start: usize,
    (v0, v1): (usize, usize),
    k: &[[f64; MOST_LANES]; K],
    per_n: f64,
) -> [[f64; MOST_LANES]; N]
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = Compute::<E>::LANES;
    let mut k = *k;
    let mut sums = [[0.0; MOST_LANES]; N];
    for pass in 0..R::PASSES {
        for half in 0..<Vec<E, L> as Vector>::WIDES {
            // SAFETY: the arrays have room for every half; the group lies in each row.
            unsafe {
                let kw = core::array::from_fn(|i| L::F64::load(lanes, k[i].as_ptr().add(8 * half)));
                let mut acc = [L::F64::splat(lanes, 0.0); N];
                for v in v0..v1 {
                    let visit = geo.visits.get(v);
                    for i in 0..visit.count {
                        let row = visit.item(i);
                        let x = from.map(|f| E::load(lanes, f.row(row).wrapping_add(start).cast_const()));
                        let a = op.addends(op.values(lanes, x).map(|v| v.widen()[half]), kw);
                        for (acc, a) in acc.iter_mut().zip(a) {
                            *acc = *acc + a;
                        }
                    }
                }
                for (s, a) in sums.iter_mut().zip(acc) {
                    a.store(s.as_mut_ptr().add(8 * half));
                }
            }
        }
        for lane in 0..lanes_of {
            let (kl, sl) = (core::array::from_fn(|i| k[i][lane]), core::array::from_fn(|i| sums[i][lane]));
            if pass + 1 < R::PASSES {
                for (k, v) in k.iter_mut().zip(R::recentre(kl, sl, per_n)) {
                    k[lane] = v;
                }
            } else {
                for (s, v) in sums.iter_mut().zip(R::settle_wide(kl, sl, per_n)) {
                    s[lane] = v;
                }
            }
        }
    }
    sums
}

/// The pivots of one group in one block: as in the planes geometry, with a channel in each lane.
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
    let sample = |i| {
        let row = geo.visits.sample(i, v0, v1);
        // SAFETY: the row is one of the block's, the group lies in it.
        let x = from.map(|f| unsafe { E::load(lanes, f.row(row).wrapping_add(start).cast_const()) });
        op.values(lanes, x)[R::PIVOT_OF]
    };
    let base = sample(0);
    let zero = Vec::<E, L>::splat(lanes, Compute::<E>::ZERO);
    let mut distance = zero;
    for i in 1..SAMPLES {
        distance = distance + (sample(i) - base);
    }
    let k = base + distance * Vec::<E, L>::splat(lanes, Compute::<E>::PER_SAMPLE);
    <Vec<E, L>>::select(k.finite(), k, zero)
}

/// The pivot of a channel, from samples of all its elements.
///
/// # Safety
/// The places are valid for reading all rows of the geometry.
#[inline(always)]
unsafe fn channel_pivot<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    channel: usize,
) -> Compute<E>
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let base = geo.channels * geo.adjacent;
    let rows = geo.rest_first + geo.rest;
    let at = |i: usize| {
        let row = sample_stratified(i, rows);
        (row / geo.fold, row % geo.fold * base + channel * geo.adjacent + i % geo.adjacent)
    };
    // SAFETY: rows of the geometry, elements of the channel.
    unsafe {
        super::mean_of_samples(lanes, op, |i| {
            from.map(|f| {
                let (row, e) = at(i);
                *f.row(row).wrapping_add(e)
            })
        })
    }
}

/// The rows that folding has left over, for one channel, in f64.
///
/// # Safety
/// The places are valid for reading all rows of the geometry.
#[inline(always)]
unsafe fn rest_of<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Rows,
    from: &[Place<E>; I],
    channel: usize,
    mut k: [f64; K],
    n: u64,
) -> [f64; N]
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let (base, per_n) = (geo.channels * geo.adjacent, 1.0 / n as f64);
    let at = |i: usize| i / geo.adjacent * base + channel * geo.adjacent + i % geo.adjacent;
    // SAFETY: by the caller; the rest rows follow the last folded one.
    let read = |i: usize| from.map(|f| unsafe { *f.row(geo.rest_first / geo.fold).wrapping_add(at(i)) }.get());
    if R::PIVOT_PER_BLOCK {
        k[0] = read(0)[0].to_f64();
        if !k[0].is_finite() {
            k[0] = 0.0;
        }
    }
    let mut sums = [0.0; N];
    for pass in 0..R::PASSES {
        sums = [0.0; N];
        for i in 0..n as usize {
            let x = read(i).map(|x| Vec::<E, L>::splat(lanes, x));
            let v = op.values(lanes, x).map(|v| v.widen()[0]);
            let a = op.addends(v, k.map(|k| L::F64::splat(lanes, k)));
            for (s, a) in sums.iter_mut().zip(a) {
                *s += a.to_f64s()[0];
            }
        }
        if pass + 1 < R::PASSES {
            k = R::recentre(k, sums, per_n);
        }
    }
    R::settle_wide(k, sums, per_n)
}

/// Workspace of [`map`] for `width` elements of a row.
pub(crate) const fn map_words<E: Element, const K: usize>(width: usize) -> usize {
    words_for::<Compute<E>>((K + 1) * width) + words_for::<f64>(K * width)
}

/// Maps rows `first..end` (folded ones, and after the last of them, if `rest`, the rows left over)
/// of a range of channels.
///
/// # Safety
/// The inputs are valid for reading and the outputs for writing in all rows of the geometry; an
/// output either is one of the inputs or overlaps none. `scratch` has [`map_words`] for the range;
/// a range narrower than the tensor has at least a vector and is not folded.
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
    let mut carve = Carve::new(scratch);
    let mut table = MapTable::<E, K> {
        narrow: carve.take(K * seg.width),
        safe: carve.take(seg.width),
        wide: carve.take(K * seg.width),
        width: seg.width,
        all_safe: true,
    };
    let base = geo.channels * geo.adjacent;
    for c in channels.first..channels.end {
        let k = op.coefficients(c);
        table.all_safe &= k.safe;
        let mut e = (c - channels.first) * geo.adjacent;
        while e < seg.width {
            for a in e..e + geo.adjacent {
                // SAFETY: a < width.
                unsafe { table.set(a, &k) };
            }
            e += base;
        }
    }
    for row in first..end {
        let from = from.map(|f| f.row(row).wrapping_add(seg.start).cast_const());
        let to = to.map(|f| f.row(row).wrapping_add(seg.start));
        // SAFETY: the row is inside the geometry, the segment inside the row.
        unsafe { map_row(lanes, op, from, to, seg.width, &table) };
    }
    if end == geo.rest_first / geo.fold && geo.rest > 0 {
        let from = from.map(|f| f.row(end).cast_const());
        let to = to.map(|f| f.row(end));
        // SAFETY: the rows left over follow the last folded one; they are fewer than `fold`.
        unsafe { map_row(lanes, op, from, to, geo.rest * base, &table) };
    }
}

/// The constants of each element of a row.
struct MapTable<E: Element, const K: usize> {
    narrow: *mut Compute<E>,
    /// 1 where the narrow constants suffice, else 0.
    safe: *mut Compute<E>,
    wide: *mut f64,
    width: usize,
    all_safe: bool,
}

impl<E: Element, const K: usize> MapTable<E, K> {
    /// # Safety
    /// `e` is below the width.
    #[inline(always)]
    unsafe fn set(&self, e: usize, k: &Coefficients<K>) {
        // SAFETY: by the caller.
        unsafe {
            for i in 0..K {
                *self.narrow.add(i * self.width + e) = Scalar::from_f64(k.narrow[i]);
                *self.wide.add(i * self.width + e) = k.wide[i];
            }
            *self.safe.add(e) = if k.safe { Compute::<E>::ONE } else { Compute::<E>::ZERO };
        }
    }
}

/// Maps the first `width` elements of a row.
///
/// # Safety
/// The pointers are valid for as many elements; the table has at least as many.
#[inline(always)]
unsafe fn map_row<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    lanes: L,
    op: &M,
    from: [*const E; I],
    to: [*mut E; O],
    width: usize,
    table: &MapTable<E, K>,
) where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let lanes_of = Compute::<E>::LANES;
    if width < lanes_of {
        // Less than a vector: by way of a buffer, with the constants of the row's first vector.
        let mut x = [[E::zeroed(); MOST_LANES]; I];
        let mut y = [[E::zeroed(); MOST_LANES]; O];
        // SAFETY: width elements of each; the buffers hold a vector; so does the table, as a row
        // has at least one.
        unsafe {
            for (x, p) in x.iter_mut().zip(from) {
                core::ptr::copy_nonoverlapping(p, x.as_mut_ptr(), width);
            }
            let v = core::array::from_fn(|i| E::load(lanes, x[i].as_ptr()));
            for (y, v) in y.iter_mut().zip(map_one(lanes, op, v, 0, table)) {
                E::store(v, y.as_mut_ptr());
            }
            for (y, p) in y.iter().zip(to) {
                core::ptr::copy_nonoverlapping(y.as_ptr(), p, width);
            }
        }
        return;
    }
    // The last vector overlaps its neighbour: it is read before anything is written, as the output
    // may be the input.
    let last = width - lanes_of;
    // SAFETY: the vectors lie in the row.
    unsafe {
        let tail = from.map(|p| E::load(lanes, p.add(last)));
        let put = |x: [Vec<E, L>; I], off: usize| {
            for (y, p) in map_one(lanes, op, x, off, table).into_iter().zip(to) {
                E::store(y, p.add(off));
            }
        };
        for v in 0..width / lanes_of {
            put(from.map(|p| E::load(lanes, p.add(v * lanes_of))), v * lanes_of);
        }
        if !width.is_multiple_of(lanes_of) {
            put(tail, last);
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
    let k = core::array::from_fn(|i| unsafe { Vec::<E, L>::load(lanes, table.narrow.add(i * table.width + off)) });
    let v = op.before(lanes, x);
    let mut r = op.formula(v, k);
    let in_f64 = || {
        // SAFETY: by the caller; the halves are parts of the vector.
        let load = |i: usize, half: usize| unsafe {
            L::F64::load(lanes, table.wide.add(i * table.width + off + half % <Vec<E, L> as Vector>::WIDES * 8))
        };
        wide::<L, E, M, I, J, K, O>(op, v, core::array::from_fn(|i| [load(i, 0), load(i, 1)]))
    };
    if M::WIDE && !table.all_safe {
        // SAFETY: as above.
        let safe = unsafe { Vec::<E, L>::load(lanes, table.safe.add(off)) };
        let zero = Vec::<E, L>::splat(lanes, Compute::<E>::ZERO);
        r = <Vec<E, L>>::select(zero.lt(safe), r, in_f64());
    }
    if M::CHECKED && !<Vec<E, L>>::all(r.finite()) {
        r = <Vec<E, L>>::select(r.finite(), r, in_f64());
    }
    op.after(lanes, x, v, r)
}
