//! Walks planes: NCHW, where a channel is one contiguous plane in each image.
//!
//! Sums visit the tensor in memory order, four images a quarter of the batch apart in lockstep;
//! elements are mapped image by image.

use super::grid::{CHAIN, Piece, Planes, SAMPLES, Visit, div, part, rem};
use super::image::Image;
use super::run::{ASKED, Constants, Elements, Order};
use super::{
    Carve, Channels, Compute, Direction, Emit, MOST_LANES, MOST_OPERANDS, Place, Several, Vec, add, add_in_f64, all_at,
    ask_all, clear_below, deals, in_order, load_all, load_table, past_caches, splat_all, staged, tree, words_for,
};
use crate::element::Element;
use crate::kernel::{Line, Map, Reduction};
use crate::lanes::{Lanes, Scalar, Vector};

/// Workspace of [`reduce`] for one channel.
pub(crate) const fn reduce_words<E: Element, const K: usize, const N: usize>() -> usize {
    words_for::<f64>(N) + words_for::<Compute<E>>(N * Compute::<E>::LANES) + words_for::<Compute<E>>(K)
}

/// Vectors of a plane that are staged at once: those of a first-level sum, or of a part of a map with
/// what is left over.
const STAGE: usize = CHAIN + 1;

/// Workspace of either walker for staging.
pub(crate) const fn stage_words<E: Element>() -> usize {
    words_for::<E>(MOST_OPERANDS * STAGE * Compute::<E>::LANES)
}

/// The results of some cells for a range of channels, cell after cell.
///
/// # Safety
/// Every place is valid for reading all planes of the geometry; `scratch` has
/// [`reduce_words`] for each channel of the range, and [`stage_words`] if a place is not contiguous.
#[inline(always)]
pub(crate) unsafe fn reduce<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Planes,
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
    let lanes_of = Compute::<E>::LANES;
    let ready = op.ready::<Vec<E, L>>(lanes);
    let width = channels.end - channels.first;
    let mut carve = Carve::new(scratch);
    let t = Table::<E, K, N> {
        sums: carve.take(width * N * lanes_of),
        results: carve.take(width),
        constants: carve.take(width),
        stage: if staged(from) { carve.take::<E>(I * STAGE * lanes_of) } else { core::ptr::null_mut() },
    };
    for g in cells.0..cells.1 {
        // SAFETY: by the caller; the table has as many channels.
        unsafe {
            if R::PIVOT_PER_CELL || g == cells.0 {
                let blocks = if R::PIVOT_PER_CELL { geo.blocks(g) } else { (0, geo.all_blocks()) };
                set_constants(lanes, op, geo, from, channels, &t, blocks);
            }
            cell(lanes, op, &ready, geo, from, channels, &t, g, emit);
        }
    }
}

/// What is kept of each channel while a cell is summed.
struct Table<E: Element, const K: usize, const N: usize> {
    /// Second-level sums of an unfinished block (first, where a cache line begins).
    sums: *mut Compute<E>,
    /// The sums so far.
    results: *mut [f64; N],
    constants: *mut [Compute<E>; K],
    /// Where what is not contiguous is staged.
    stage: *mut E,
}

/// The constants of all channels, with pivots from samples of blocks `first..end`.
///
/// # Safety
/// As for [`reduce`]; the table is that made there.
#[inline(always)]
unsafe fn set_constants<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Planes,
    from: &[Place<E>; I],
    channels: Channels,
    t: &Table<E, K, N>,
    (first, end): (usize, usize),
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let width = channels.end - channels.first;
    // Where samples are taken in channel 0: worked out once, as that took longer than taking them.
    let mut samples = [[core::ptr::null(); SAMPLES]; I];
    if op.pivots() {
        for i in 0..SAMPLES {
            let (image, position) = geo.sample(i, first, end, Compute::<E>::LANES);
            for j in 0..I {
                samples[j][i] = from[j].element(from[j].plane(image, 0), position).cast_const();
            }
        }
    }
    let mut c = 0;
    while c < width {
        let mut some = [Line::<_, MOST_LANES>::splat(Compute::<E>::ZERO); K];
        let end = width.min(c + MOST_LANES);
        for i in 1..K {
            if let Some(some) = some[i].get_mut(..end - c) {
                op.constants(channels.first + c, i, some);
            }
        }
        for l in 0..(end - c).min(MOST_LANES) {
            let mut k = [Compute::<E>::ZERO; K];
            for i in 1..K {
                k[i] = some[i][l];
            }
            if op.pivots() {
                // SAFETY: samples are taken inside the geometry, which the places hold.
                k[0] = unsafe { pivot(lanes, op, from, channels.first + c + l, &samples) };
            }
            // SAFETY: c + l < width, the length of the constants.
            unsafe { *t.constants.add(c + l) = k };
        }
        c = end;
    }
}

/// The results of cell `g`, whose constants are there.
///
/// # Safety
/// As for [`set_constants`].
#[inline(always)]
unsafe fn cell<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    ready: &R::Ready<Vec<E, L>>,
    geo: &Planes,
    from: &[Place<E>; I],
    channels: Channels,
    t: &Table<E, K, N>,
    g: usize,
    emit: &mut dyn Emit<K, N>,
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let &Table { sums, results, constants, stage } = t;
    let lanes_of = Compute::<E>::LANES;
    let width = channels.end - channels.first;
    let (first, end) = geo.blocks(g);
    let asks = asks::<E, I>(geo, from);
    // The first piece, which may be the only one: to work it out took as long as to sum a small plane.
    let piece0 = Strip::new(geo, 0, lanes_of, asks);
    let n = geo.count(g, lanes_of);
    let per_n = 1.0 / n as f64;
    // At most twice: a second time if pivots turn out to be far from the means.
    for attempt in 0..2 {
        for c in 0..width {
            // SAFETY: c < width, the length of the results.
            unsafe { *results.add(c) = [0.0; N] };
        }
        let mut block = first;
        while block < end {
            // A block of visits, and those of its pieces that are in this cell.
            let (b, p0) = (div(block, geo.pieces), rem(block, geo.pieces));
            let p1 = geo.pieces.min(p0 + (end - block));
            let (v0, v1) = geo.block_visits(b);
            for v in v0..v1 {
                let visit = geo.visits.get(v);
                let place = (v > v0, v + 1 < v1);
                let mut c = 0;
                while c < width {
                    // Small planes: a chain of its own for each of several channels, or each addition waits for the last.
                    if L::STREAMS > 1 && geo.spanning && visit.count == 4 && stage.is_null() && c + L::STREAMS <= width
                    {
                        let table =
                            (constants.wrapping_add(c), results.wrapping_add(c), sums.wrapping_add(c * N * lanes_of));
                        let first = channels.first + c;
                        // SAFETY: the table has as many channels; the visit is inside the geometry.
                        unsafe {
                            if L::STREAMS == 4 {
                                sum_small::<L, E, R, I, J, K, N, 4>(
                                    lanes,
                                    ready,
                                    from,
                                    visit,
                                    first,
                                    piece0.first,
                                    table,
                                    place,
                                );
                            } else {
                                sum_small::<L, E, R, I, J, K, N, 2>(
                                    lanes,
                                    ready,
                                    from,
                                    visit,
                                    first,
                                    piece0.first,
                                    table,
                                    place,
                                );
                            }
                        }
                        c += L::STREAMS;
                        continue;
                    }
                    for p in p0..p1 {
                        let strip = if geo.pieces == 1 { piece0 } else { Strip::new(geo, p, lanes_of, asks) };
                        // SAFETY: c < width, the length of all three; the visit's images and the piece are inside the
                        // geometry.
                        unsafe {
                            let k = splat_all::<Vec<E, L>, K>(lanes, &*constants.add(c));
                            let sums = sums.add(c * N * lanes_of);
                            let mut acc = unfinished::<L, E, N>(lanes, sums, place.0);
                            let channel = channels.first + c;
                            acc = sum_piece::<L, E, R, I, J, K, N>(
                                lanes, ready, geo, from, visit, channel, strip, &k, acc, stage,
                            );
                            keep::<L, E, N>(acc, sums, &mut *results.add(c), place.1);
                        }
                    }
                    c += 1;
                }
            }
            block += p1 - p0;
        }
        let mut far = false;
        for c in 0..width {
            // SAFETY: c < width, the length of both.
            let (sums, k) = unsafe { (&*results.add(c), &mut *constants.add(c)) };
            if attempt == 0
                && !op.good(sums, n as f64)
                && let Some(better) = R::repivot(k.map(|k| k.to_f64()), sums, n as f64)
            {
                k[0] = better;
                far = true;
            }
        }
        if !far {
            break;
        }
    }
    let mut c = 0;
    while c < width {
        let some = Channels { first: channels.first + c, end: channels.end.min(channels.first + c + MOST_LANES) };
        let (mut all, mut all_k) = ([Several::splat(0.0); N], [Several::splat(0.0); K]);
        for l in 0..(some.end - some.first).min(MOST_LANES) {
            // SAFETY: c + l < width, the length of both.
            let (sums, k) = unsafe { (*results.add(c + l), (*constants.add(c + l)).map(|k| k.to_f64())) };
            let result = if op.good(&sums, n as f64) {
                R::settle(k, sums, per_n)
            } else {
                // SAFETY: the cell is inside the geometry.
                unsafe { again(op, geo, from, some.first + l, g, k, per_n) }
            };
            for n in 0..N {
                all[n][l] = result[n];
            }
            for i in 0..K {
                all_k[i][l] = k[i];
            }
        }
        emit.emit(some, &all, &all_k, n);
        c += MOST_LANES;
    }
}

/// The second-level sums of a block so far: of those that are not its first visit.
///
/// # Safety
/// They have been written.
#[inline(always)]
unsafe fn unfinished<L: Lanes, E: Element, const N: usize>(
    lanes: L,
    sums: *const Compute<E>,
    begun: bool,
) -> [Vec<E, L>; N] {
    if begun {
        // SAFETY: by the caller.
        unsafe { load_table::<L, E, N>(lanes, sums, Compute::<E>::LANES) }
    } else {
        splat_all(lanes, &[Compute::<E>::ZERO; N])
    }
}

/// Keeps them for the block's next visit, or adds them to the result.
///
/// # Safety
/// There is room for them.
#[inline(always)]
unsafe fn keep<L: Lanes, E: Element, const N: usize>(
    acc: [Vec<E, L>; N],
    sums: *mut Compute<E>,
    result: &mut [f64; N],
    goes_on: bool,
) {
    for n in 0..N {
        if goes_on {
            // SAFETY: by the caller.
            unsafe { acc[n].store(sums.add(n * Compute::<E>::LANES)) };
        } else {
            result[n] += in_order::<E, L>(acc[n]).sum_f64();
        }
    }
}

/// Adds a visit's small planes of `T` channels from `channel` on to their sums: constants, results and unfinished sums
/// are those of the first of them; whether a block has begun, and whether it goes on.
///
/// # Safety
/// The visit, of four images, is of the geometry; the table is that of the channels; the places are contiguous.
#[inline(always)]
unsafe fn sum_small<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize, const T: usize>(
    lanes: L,
    ready: &R::Ready<Vec<E, L>>,
    from: &[Place<E>; I],
    visit: Visit,
    channel: usize,
    range: Range,
    (constants, results, sums): (*mut [Compute<E>; K], *mut [f64; N], *mut Compute<E>),
    (begun, goes_on): (bool, bool),
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let zero = splat_all::<Vec<E, L>, N>(lanes, &[Compute::<E>::ZERO; N]);
    let (mut k, mut chains) = ([[Vec::<E, L>::splat(lanes, Compute::<E>::ZERO); K]; T], [zero; T]);
    // SAFETY: by the caller.
    unsafe {
        for t in 0..T {
            k[t] = splat_all(lanes, &*constants.add(t));
        }
        // Each image has loads of its own: prefetchers learn by instruction (planes of 7×7 were read at half the speed).
        chains =
            sum::<L, E, R, I, J, K, N, T>(lanes, ready, &small(from, visit.item(0), channel, range), range, &k, chains);
        chains =
            sum::<L, E, R, I, J, K, N, T>(lanes, ready, &small(from, visit.item(1), channel, range), range, &k, chains);
        chains =
            sum::<L, E, R, I, J, K, N, T>(lanes, ready, &small(from, visit.item(2), channel, range), range, &k, chains);
        chains =
            sum::<L, E, R, I, J, K, N, T>(lanes, ready, &small(from, visit.item(3), channel, range), range, &k, chains);
        for t in 0..T {
            let sums = sums.add(t * N * Compute::<E>::LANES);
            let acc = add(unfinished::<L, E, N>(lanes, sums, begun), chains[t]);
            keep::<L, E, N>(acc, sums, &mut *results.add(t), goes_on);
        }
    }
}

/// Where a range of an image's planes starts, for `T` channels.
#[inline(always)]
fn small<E: Element, const I: usize, const T: usize>(
    from: &[Place<E>; I],
    image: usize,
    channel: usize,
    range: Range,
) -> [[*const E; I]; T] {
    let mut at = [[core::ptr::null(); I]; T];
    for t in 0..T {
        for i in 0..I {
            at[t][i] = from[i].plane(image, channel + t).wrapping_add(range.start).cast_const();
        }
    }
    at
}

/// Adds the same piece of a visit's planes to second-level sums.
///
/// # Safety
/// The piece and the visit are of the geometry; the stage has [`STAGE`] vectors of each input, if one
/// is not contiguous.
#[inline(always)]
unsafe fn sum_piece<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    ready: &R::Ready<Vec<E, L>>,
    geo: &Planes,
    from: &[Place<E>; I],
    visit: Visit,
    channel: usize,
    Strip { piece, runs, first }: Strip,
    k: &[Vec<E, L>; K],
    mut acc: [Vec<E, L>; N],
    stage: *mut E,
) -> [Vec<E, L>; N]
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = Compute::<E>::LANES;
    let zero = splat_all::<Vec<E, L>, N>(lanes, &[Compute::<E>::ZERO; N]);
    // SAFETY: by the caller.
    unsafe {
        if geo.spanning {
            let (range, mut chain) = (first, zero);
            for t in 0..visit.count {
                let at = [Place::parts_of(from, (visit.item(t), channel), range.start, range.width, stage)];
                chain = sum::<L, E, R, I, J, K, N, _>(lanes, ready, &at, range, &[*k], [chain])[0];
            }
            return add(acc, chain);
        }
        for run in 0..runs {
            let range = if run == 0 { first } else { Range::of_run(geo, piece, runs, run, lanes_of, first.asks) };
            let at = |t: usize| Place::parts_of(from, (visit.item(t), channel), range.start, range.width, stage);
            // What is staged goes one by one.
            if visit.count < 4 || !stage.is_null() {
                for t in 0..visit.count {
                    acc = add(acc, sum::<L, E, R, I, J, K, N, _>(lanes, ready, &[at(t)], range, &[*k], [zero])[0]);
                }
            } else if L::STREAMS == 4 {
                let chains = sum::<L, E, R, I, J, K, N, _>(
                    lanes,
                    ready,
                    &[at(0), at(1), at(2), at(3)],
                    range,
                    &[*k; 4],
                    [zero; 4],
                );
                acc = add(add(add(add(acc, chains[0]), chains[1]), chains[2]), chains[3]);
            } else if L::STREAMS == 2 {
                let chains = sum::<L, E, R, I, J, K, N, _>(lanes, ready, &[at(0), at(1)], range, &[*k; 2], [zero; 2]);
                acc = add(add(acc, chains[0]), chains[1]);
                let chains = sum::<L, E, R, I, J, K, N, _>(lanes, ready, &[at(2), at(3)], range, &[*k; 2], [zero; 2]);
                acc = add(add(acc, chains[0]), chains[1]);
            } else {
                acc = add(acc, sum::<L, E, R, I, J, K, N, _>(lanes, ready, &[at(0)], range, &[*k], [zero])[0]);
                acc = add(acc, sum::<L, E, R, I, J, K, N, _>(lanes, ready, &[at(1)], range, &[*k], [zero])[0]);
                acc = add(acc, sum::<L, E, R, I, J, K, N, _>(lanes, ready, &[at(2)], range, &[*k], [zero])[0]);
                acc = add(acc, sum::<L, E, R, I, J, K, N, _>(lanes, ready, &[at(3)], range, &[*k], [zero])[0]);
            }
        }
    }
    acc
}

/// Whether lines ahead are [asked for](Lanes::ask) where planes come from beyond the caches: two images at a time, a kilobyte of each, end
/// the hardware's streams. Moments are then 1.03 to 1.3 times as fast, backward sums 1.1 to 1.3 (AVX2, Zen 3; in cache 0.93 to 1; a
/// kilobyte ahead instead of [`ASKED`] bytes 0.76 to 1.18). Not where they are staged, which are read from there.
#[inline(always)]
fn asks<E: Element, const I: usize>(geo: &Planes, from: &[Place<E>; I]) -> bool {
    !staged(from) && past_caches::<E>(I, geo.visits.items(0, geo.visits.len()) * geo.channels * geo.positions)
}

/// A piece of a plane, in runs of at most [`CHAIN`] vectors.
#[derive(Clone, Copy)]
struct Strip {
    piece: Piece,
    runs: usize,
    /// The first run.
    first: Range,
}

impl Strip {
    #[inline(always)]
    fn new(geo: &Planes, p: usize, lanes: usize, asks: bool) -> Self {
        let piece = geo.piece(p, lanes);
        let runs = piece.vectors.div_ceil(CHAIN);
        Strip { piece, runs, first: Range::of_run(geo, piece, runs, 0, lanes, asks) }
    }
}

/// Vectors `first..end` of a plane.
///
/// The last vector of a plane that has no whole number of them is read from the plane's end, and
/// what the vector before it has counted is cleared: no read leaves the plane.
#[derive(Clone, Copy)]
struct Range {
    /// The elements that are read: from the first vector, or the last one if that starts earlier.
    start: usize,
    width: usize,
    /// Where the first vector starts among them, and how many whole ones there are.
    first: usize,
    whole: usize,
    /// Where the last one starts if it is not whole, and how many of its lanes have been counted.
    last: usize,
    counted: usize,
    /// Whether lines behind them are [asked for](asks).
    asks: bool,
}

impl Range {
    /// Run `run` of a piece.
    #[inline(always)]
    fn of_run(geo: &Planes, piece: Piece, runs: usize, run: usize, lanes: usize, asks: bool) -> Self {
        let (first, end) = (part(piece.vectors, runs, run), part(piece.vectors, runs, run + 1));
        Range::new(geo, piece.first + first, piece.first + end, lanes, asks)
    }

    #[inline(always)]
    fn new(geo: &Planes, first: usize, end: usize, lanes: usize, asks: bool) -> Self {
        let (whole, last) = (end.min(geo.positions / lanes), geo.positions - lanes);
        let start = (first * lanes).min(last);
        Range {
            start,
            width: (end * lanes).min(geo.positions) - start,
            first: first * lanes - start,
            whole: whole - first.min(whole),
            last: last - start,
            counted: if whole < end { whole * lanes - last } else { 0 },
            asks,
        }
    }
}

/// Adds a range of `T` planes, at most [`CHAIN`] vectors each, to `T` chains, each with constants of its own, in lockstep.
///
/// # Safety
/// Each plane is valid for reading in the range.
#[inline(always)]
unsafe fn sum<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize, const T: usize>(
    lanes: L,
    ready: &R::Ready<Vec<E, L>>,
    at: &[[*const E; I]; T],
    range: Range,
    k: &[[Vec<E, L>; K]; T],
    mut chains: [[Vec<E, L>; N]; T],
) -> [[Vec<E, L>; N]; T]
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = Compute::<E>::LANES;
    for v in 0..range.whole {
        let from = range.first + v * lanes_of;
        let mut t = 0;
        while t < T {
            // SAFETY: the vector lies in the range.
            let x = unsafe { load_all::<true, _, _, _>(lanes, &at[t], from) };
            // Not the moments of 16-bit types, which with this in the loop took up to 1.3 times as long, in cache too.
            if lanes.ahead() && const { I > 1 || size_of::<E>() > 2 } && range.asks {
                ask_all(lanes, &at[t], from, ASKED);
            }
            chains[t] = add(chains[t], R::addends(R::values(ready, x), k[t]));
            t += 1;
        }
    }
    // SAFETY: by the caller.
    unsafe {
        if const { <Vec<E, L>>::HALVES && !deals::<E, L>() } && range.counted >= lanes_of / 2 {
            chains = last::<L, E, R, I, J, K, N, T, true>(lanes, ready, at, range, k, chains);
        } else if range.counted > 0 {
            chains = last::<L, E, R, I, J, K, N, T, false>(lanes, ready, at, range, k, chains);
        }
    }
    chains
}

/// Adds the last vectors of the planes, which are not whole; if `UPPER`, their upper halves: of planes of 7×7, a value beyond three vectors,
/// the sums are then 1.1 times as fast.
///
/// # Safety
/// As for [`sum`]; the last vector of the range is not whole.
#[inline(always)]
unsafe fn last<
    L,
    E,
    R,
    const I: usize,
    const J: usize,
    const K: usize,
    const N: usize,
    const T: usize,
    const UPPER: bool,
>(
    lanes: L,
    ready: &R::Ready<Vec<E, L>>,
    at: &[[*const E; I]; T],
    range: Range,
    k: &[[Vec<E, L>; K]; T],
    mut chains: [[Vec<E, L>; N]; T],
) -> [[Vec<E, L>; N]; T]
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let mut t = 0;
    while t < T {
        // SAFETY: the range has at least one vector, and this is its last.
        let x = unsafe { load_all::<true, _, _, _>(lanes, &at[t], range.last) };
        let a = R::addends(R::values(ready, x), k[t]);
        let mut n = 0;
        while n < N {
            chains[t][n] = if UPPER {
                chains[t][n].add_upper(a[n], range.counted)
            } else {
                chains[t][n] + clear_below::<E, L>(a[n], range.counted)
            };
            n += 1;
        }
        t += 1;
    }
    chains
}

/// The pivot: the mean of [`SAMPLES`] values of a channel, in the element's arithmetic, as the first
/// of them plus the mean distance from it. That keeps all digits at any mean, gives a constant
/// exactly, and costs no f64 where that is done in software. 0 where it overflows.
///
/// # Safety
/// `places` are the samples of channel 0 in each input; those of this channel are valid for reading.
#[inline(always)]
unsafe fn pivot<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    from: &[Place<E>; I],
    channel: usize,
    places: &[[*const E; SAMPLES]; I],
) -> Compute<E>
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let mut samples = [[E::zeroed(); SAMPLES]; I];
    for j in 0..I {
        for i in 0..SAMPLES {
            // SAFETY: by the caller.
            samples[j][i] = unsafe { *places[j][i].wrapping_add(channel * from[j].inner) };
        }
    }
    let mut from = [core::ptr::null(); I];
    for j in 0..I {
        from[j] = samples[j].as_ptr();
    }
    let mut v = [Compute::<E>::ZERO; SAMPLES];
    let mut i = 0;
    while i < SAMPLES {
        // SAFETY: the arrays have SAMPLES elements, a whole number of vectors.
        unsafe {
            R::values(&op.ready(lanes), load_all::<false, _, _, _>(lanes, &from, i))[R::PIVOT_OF]
                .store(v.as_mut_ptr().add(i))
        };
        i += <Vec<E, L>>::WIDTH;
    }
    let base = v[0];
    for v in &mut v {
        *v = *v - base;
    }
    let mut half = SAMPLES / 2;
    while half > 0 {
        for i in 0..half {
            v[i] = v[i] + v[i + half];
        }
        half /= 2;
    }
    let k = base + v[0] * Compute::<E>::PER_SAMPLE;
    if k.to_f64().is_finite() { k } else { Compute::<E>::ZERO }
}

/// A cell of a channel again, in f64.
///
/// # Safety
/// The places are valid for reading all planes of the geometry.
#[cold]
#[inline(never)]
unsafe fn again<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    geo: &Planes,
    from: &[Place<E>; I],
    channel: usize,
    g: usize,
    mut k: [f64; K],
    per_n: f64,
) -> [f64; N]
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = Compute::<E>::LANES;
    let (first, end) = geo.blocks(g);
    let mut total = [0.0; N];
    // One more pass, if that may save the others: whether every element is the pivot.
    for pass in if op.zero_at_pivot() { 0 } else { 1 }..=R::PASSES {
        let (kl, mut sums, mut same) = (k.map(Several::splat), [Several::splat(0.0); N], pass == 0);
        'cell: for block in first..end {
            let piece = geo.piece(rem(block, geo.pieces), lanes_of);
            let (v0, v1) = geo.block_visits(div(block, geo.pieces));
            for v in v0..v1 {
                let visit = geo.visits.get(v);
                for t in 0..visit.count {
                    for vec in piece.first..piece.first + piece.vectors {
                        let start = (vec * lanes_of).min(geo.positions - lanes_of);
                        let (plane, mut buffer) = ((visit.item(t), channel), [[E::zeroed(); MOST_LANES]; I]);
                        // SAFETY: the vector lies in the plane; the buffer holds one of each input.
                        unsafe {
                            let at = Place::parts_of(from, plane, start, lanes_of, buffer.as_mut_ptr().cast());
                            if pass > 0 {
                                add_in_f64(op, &at, vec * lanes_of - start, &kl, &mut sums);
                            } else if !all_at(op, &at, k[0]) {
                                same = false;
                                break 'cell;
                            }
                        }
                    }
                }
            }
        }
        total = sums.map(tree);
        if same {
            break;
        }
        if pass > 0 && pass < R::PASSES {
            k = R::recentre(k, total, per_n);
        }
    }
    R::settle(k, total, per_n)
}

/// Vectors of a plane from which on it is streamed.
const MIN_STREAM: usize = 32;

/// Workspace of [`map`] for one channel.
pub(crate) const fn map_words<E: Element, const K: usize>() -> usize {
    words_for::<Compute<E>>(K)
}

/// What a task of [`map`] covers.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) channels: Channels,
    pub(crate) images: (usize, usize),
    /// At least a vector of positions.
    pub(crate) positions: (usize, usize),
}

/// Maps a part of the tensor.
///
/// # Safety
/// The inputs are valid for reading and the outputs for writing in all planes of the geometry; an
/// output either is one of the inputs or overlaps none. `scratch` has [`map_words`] for each
/// channel of the range.
#[inline(always)]
pub(crate) unsafe fn map<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    lanes: L,
    op: &M,
    from: &[Place<E>; I],
    to: &[Place<E>; O],
    Part { channels, images, positions }: Part,
    stream: bool,
    scratch: &mut [u64],
) where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let lanes_of = Compute::<E>::LANES;
    let width = channels.end - channels.first;
    let mut carve = Carve::new(scratch);
    let ready = op.ready::<Vec<E, L>>(lanes);
    let table = carve.take::<[Compute<E>; K]>(width);
    // SAFETY: the table is as long as there are channels.
    let safe = unsafe { Constants::make(op, channels, table.cast(), Order::elements(K)) };
    debug_assert!(positions.1 - positions.0 >= lanes_of);
    let staged = staged(from) || staged(to);
    let stage = if staged {
        carve.take::<E>(const { if I > O { I } else { O } } * STAGE * lanes_of)
    } else {
        core::ptr::null_mut()
    };
    // Planes without gaps: images are runs.
    let plane = positions.1 - positions.0;
    let mut dense = !staged && plane > 0;
    for i in 0..I {
        dense &= from[i].inner == plane;
    }
    for o in 0..O {
        dense &= to[o].inner == plane;
    }
    if dense {
        let at = table.cast_const().cast();
        let constants =
            Constants { at, order: Order::elements(K), period: 0, first: channels.first, count: 1, adjacent: 1, safe };
        let image = |n: usize| {
            let mut image =
                Elements { from: [core::ptr::null(); I], to: [core::ptr::null_mut(); O], width: width * plane };
            for i in 0..I {
                image.from[i] = from[i].plane(n, channels.first).cast_const();
            }
            for o in 0..O {
                image.to[o] = to[o].plane(n, channels.first);
            }
            image
        };
        // Two images at a time, half of them apart.
        let half = (images.1 - images.0).div_ceil(2);
        for n in images.0..images.0 + half {
            let (images, both) = ([image(n), image((n + half).min(images.1 - 1))], n + half < images.1);
            // SAFETY: by the caller; an image has a vector, as a plane has.
            lanes.apart(Image::<E, M, I, J, K, O> { op, images, both, constants, positions: plane, stream });
        }
        if stream {
            lanes.fence();
        }
        return;
    }
    // What is staged goes in parts that fit the stage, each of at least a vector.
    let vectors = (positions.1 - positions.0) / lanes_of;
    let parts = if staged { vectors.div_ceil(CHAIN) } else { 1 };
    // Short planes have too many ends.
    let stream = stream && !staged && vectors >= MIN_STREAM;
    for image in images.0..images.1 {
        for c in 0..width {
            let plane = (image, channels.first + c);
            let at = table.wrapping_add(c).cast_const().cast();
            let k = Constants { at, order: Order::elements(K), period: 0, first: plane.1, count: 1, adjacent: 1, safe };
            for p in 0..parts {
                let start = positions.0 + part(vectors, parts, p) * lanes_of;
                let end =
                    if p + 1 == parts { positions.1 } else { positions.0 + part(vectors, parts, p + 1) * lanes_of };
                // SAFETY: the part lies in the plane, and has at least one vector.
                unsafe { map_plane(lanes, op, &ready, from, to, plane, start, end - start, &k, stage, stream) };
            }
        }
    }
    if stream {
        lanes.fence();
    }
}

/// Maps `width` elements of a plane.
///
/// # Safety
/// They are at least a vector, and lie in the plane; if a place is not contiguous they are at most
/// [`STAGE`] vectors, and `stage` has room for them.
#[inline(always)]
unsafe fn map_plane<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    lanes: L,
    op: &M,
    ready: &M::Ready<Vec<E, L>>,
    from: &[Place<E>; I],
    to: &[Place<E>; O],
    plane: (usize, usize),
    start: usize,
    width: usize,
    k: &Constants<E, K>,
    stage: *mut E,
    stream: bool,
) where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    // SAFETY: by the caller.
    unsafe {
        let from = Place::parts_of(from, plane, start, width, stage);
        let mut into = [core::ptr::null_mut(); O];
        for o in 0..O {
            // A staged output may take the place of a staged input, as in a call in place.
            let there = to[o].plane(plane.0, plane.1).wrapping_add(start);
            into[o] = if to[o].contiguous { there } else { stage.wrapping_add(o * width) };
        }
        Elements { from, to: into, width }.map::<L, M, J, K, false, true>(lanes, op, ready, k, stream);
        for o in 0..O {
            if !to[o].contiguous {
                to[o].copy(to[o].plane(plane.0, plane.1), start, width, into[o], Direction::Out);
            }
        }
    }
}
