//! Walks planes: NCHW, where a channel is one contiguous plane in each image.
//!
//! Sums visit the tensor in memory order, four images a quarter of the batch apart in lockstep;
//! elements are mapped image by image.

use super::grid::{CHAIN, Piece, Planes, part, sample_anywhere};
use super::{Carve, Channels, Place, words_for};
use crate::element::Element;
use crate::kernel::{Coefficients, Join, Map, Reduction};
use crate::lanes::{Lanes, Scalar, Vector};

type Compute<E> = <E as crate::element::sealed::Storage>::Compute;
type Vec<E, L> = <E as crate::element::sealed::Storage>::Vec<L>;

/// Workspace of [`reduce`] for one channel.
pub(crate) const fn reduce_words<E: Element, const K: usize, const N: usize>() -> usize {
    words_for::<f64>(N) + words_for::<Compute<E>>(N * Compute::<E>::LANES) + words_for::<Compute<E>>(K)
}

/// The results of cell `g` for a range of channels.
///
/// # Safety
/// Every place is valid for reading all planes of the geometry; `scratch` has
/// [`reduce_words`] for each channel of the range.
#[inline(always)]
pub(crate) unsafe fn reduce<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Planes,
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
    let width = channels.end - channels.first;
    let mut carve = Carve::new(scratch);
    // Per channel: the result so far, constants, and second-level sums of an unfinished block.
    let results = carve.take::<[f64; N]>(width);
    let constants = carve.take::<[Compute<E>; K]>(width);
    let sums = carve.take::<Compute<E>>(width * N * lanes_of);

    for c in 0..width {
        let mut k = [Compute::<E>::ZERO; K];
        for (i, k) in k.iter_mut().enumerate().skip(1) {
            *k = op.constant(channels.first + c, i);
        }
        if !R::PIVOT_PER_BLOCK && op.pivots() {
            let at = |i| (geo.visits.sample(i, 0, geo.visits.len()), sample_anywhere(i, geo.positions));
            // SAFETY: samples are taken inside the geometry, which the places hold.
            k[0] = unsafe { pivot(lanes, op, from, channels.first + c, at) };
        }
        // SAFETY: c < width, the length of both.
        unsafe {
            *results.add(c) = [0.0; N];
            *constants.add(c) = k;
        }
    }

    let (first, end) = geo.blocks(g);
    let mut before = 0;
    let mut block = first;
    while block < end {
        // A block of visits, and those of its pieces that are in this cell.
        let (b, p0) = (block / geo.pieces, block % geo.pieces);
        let p1 = geo.pieces.min(p0 + (end - block));
        let (v0, v1) = geo.block_visits(b);
        let items = geo.visits.items(v0, v1);
        let mut done = before;
        for v in v0..v1 {
            let visit = geo.visits.get(v);
            for c in 0..width {
                let channel = channels.first + c;
                // SAFETY: c < width, the length of all three.
                let (constants, result, sums) =
                    unsafe { (&mut *constants.add(c), &mut *results.add(c), sums.add(c * N * lanes_of)) };
                done = before;
                for p in p0..p1 {
                    let piece = geo.piece(p, lanes_of);
                    let start = piece.first * lanes_of;
                    let mut acc = [Vec::<E, L>::splat(lanes, Compute::<E>::ZERO); N];
                    if v == v0 {
                        if R::PIVOT_PER_BLOCK {
                            let at = |i| (geo.visits.sample(i, v0, v1), start + sample_anywhere(i, piece.elements));
                            // SAFETY: samples are taken inside the block.
                            constants[0] = unsafe { pivot(lanes, op, from, channel, at) };
                        }
                    } else {
                        for (n, a) in acc.iter_mut().enumerate() {
                            // SAFETY: N vectors per channel were carved; the block's first visit
                            // has written them.
                            *a = unsafe { Vec::<E, L>::load(lanes, sums.add(n * lanes_of)) };
                        }
                    }
                    let k = constants.map(|k| Vec::<E, L>::splat(lanes, k));
                    // SAFETY: the visit's images and the piece are inside the geometry.
                    unsafe {
                        let base = |t: usize| from.map(|f| f.plane(visit.item(t), channel).cast_const());
                        if geo.spanning {
                            let mut chain = acc.map(|_| Vec::<E, L>::splat(lanes, Compute::<E>::ZERO));
                            for t in 0..visit.count {
                                sum(lanes, op, geo, base(t), 0, geo.vectors, k, &mut chain);
                            }
                            acc = add(acc, chain);
                        } else {
                            let runs = piece.vectors.div_ceil(CHAIN);
                            for run in 0..runs {
                                let from = piece.first + part(piece.vectors, runs, run);
                                let to = piece.first + part(piece.vectors, runs, run + 1);
                                for t in 0..visit.count {
                                    let mut chain = acc.map(|_| Vec::<E, L>::splat(lanes, Compute::<E>::ZERO));
                                    sum(lanes, op, geo, base(t), from, to, k, &mut chain);
                                    acc = add(acc, chain);
                                }
                            }
                        }
                    }
                    if v + 1 < v1 {
                        for (n, a) in acc.iter().enumerate() {
                            // SAFETY: as for the load above.
                            unsafe { a.store(sums.add(n * lanes_of)) };
                        }
                    } else {
                        let n = (items * piece.elements) as u64;
                        let per_n = 1.0 / n as f64;
                        let k = constants.map(Scalar::to_f64);
                        let (mut r, good) = R::settle(k, acc.map(|a| a.sum_f64()), n as f64, per_n);
                        if !good {
                            // SAFETY: the block is inside the geometry.
                            r = unsafe { again(lanes, op, geo, from, channel, (v0, v1), piece, k, per_n) };
                        }
                        *result = if done == 0 { r } else { R::join(*result, r, Join::new(done, n)) };
                        done += n;
                    }
                }
            }
        }
        before = done;
        block += p1 - p0;
    }
    for c in 0..width {
        // SAFETY: c < width, the length of both.
        let (result, k) = unsafe { (*results.add(c), *constants.add(c)) };
        emit(channels.first + c, result, k.map(Scalar::to_f64));
    }
}

#[inline(always)]
fn add<V: Vector, const N: usize>(mut a: [V; N], b: [V; N]) -> [V; N] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = *a + b;
    }
    a
}

/// Adds vectors `first..end` of a plane to `acc`.
///
/// The last vector of a plane that has no whole number of them is read from the plane's end, and
/// what the vector before it has counted is cleared: no read leaves the plane.
///
/// # Safety
/// `at` are planes of the geometry.
#[inline(always)]
unsafe fn sum<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Planes,
    at: [*const E; I],
    first: usize,
    end: usize,
    k: [Vec<E, L>; K],
    acc: &mut [Vec<E, L>; N],
) where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = Compute::<E>::LANES;
    let whole = end.min(geo.positions / lanes_of);
    for v in first..whole {
        // SAFETY: vector v lies in the plane.
        let x = at.map(|p| unsafe { E::load(lanes, p.add(v * lanes_of)) });
        *acc = add(*acc, op.addends(op.values(lanes, x), k));
    }
    if whole < end {
        let start = geo.positions - lanes_of;
        // SAFETY: the plane has at least one vector, and this is its last.
        let x = at.map(|p| unsafe { E::load(lanes, p.add(start)) });
        let a = op.addends(op.values(lanes, x), k);
        *acc = add(*acc, a.map(|a| a.clear_below(whole * lanes_of - start)));
    }
}

/// The pivot of a channel, from samples at places (image, position).
///
/// # Safety
/// `at` gives places inside the geometry.
#[inline(always)]
unsafe fn pivot<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    from: &[Place<E>; I],
    channel: usize,
    at: impl Fn(usize) -> (usize, usize),
) -> Compute<E>
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    super::mean_of_samples(lanes, op, |i| {
        let (image, position) = at(i);
        // SAFETY: by the caller.
        from.map(|f| unsafe { *f.plane(image, channel).wrapping_add(position) })
    })
}

/// A block again, in f64.
///
/// # Safety
/// The visits and the piece are inside the geometry.
#[inline(always)]
unsafe fn again<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    geo: &Planes,
    from: &[Place<E>; I],
    channel: usize,
    (v0, v1): (usize, usize),
    piece: Piece,
    mut k: [f64; K],
    per_n: f64,
) -> [f64; N]
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = Compute::<E>::LANES;
    let mut sums = [0.0; N];
    for pass in 0..R::PASSES {
        let kw = k.map(|k| L::F64::splat(lanes, k));
        let mut acc = [L::F64::splat(lanes, 0.0); N];
        for v in v0..v1 {
            let visit = geo.visits.get(v);
            for t in 0..visit.count {
                let at = from.map(|f| f.plane(visit.item(t), channel).cast_const());
                for vec in piece.first..piece.first + piece.vectors {
                    let start = (vec * lanes_of).min(geo.positions - lanes_of);
                    let counted = vec * lanes_of - start;
                    // SAFETY: the vector lies in the plane.
                    let x = at.map(|p| unsafe { E::load(lanes, p.add(start)) });
                    let w = op.values(lanes, x).map(|v| v.widen());
                    for half in 0..<Vec<E, L> as Vector>::WIDES {
                        let a = op.addends(w.map(|w| w[half]), kw);
                        acc = add(acc, a.map(|a| a.clear_below(counted.saturating_sub(8 * half).min(8))));
                    }
                }
            }
        }
        sums = acc.map(|a| a.sum_f64());
        if pass + 1 < R::PASSES {
            k = R::recentre(k, sums, per_n);
        }
    }
    R::settle_wide(k, sums, per_n)
}

/// Workspace of [`map`] for one channel.
pub(crate) const fn map_words<const K: usize>() -> usize {
    size_of::<Coefficients<K>>() / 8
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
    scratch: &mut [u64],
) where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let lanes_of = Compute::<E>::LANES;
    let width = channels.end - channels.first;
    let table = Carve::new(scratch).take::<u64>(width * map_words::<K>()).cast::<Coefficients<K>>();
    for c in 0..width {
        // SAFETY: c < width, the length of the table, which u64 aligns.
        unsafe { table.add(c).write(op.coefficients(channels.first + c)) };
    }
    let count = positions.1 - positions.0;
    debug_assert!(count >= lanes_of);
    for image in images.0..images.1 {
        for c in 0..width {
            // SAFETY: c < width; the loop above has written the entry.
            let k = unsafe { &*table.add(c) };
            let from = from.map(|f| f.plane(image, channels.first + c).wrapping_add(positions.0).cast_const());
            let to = to.map(|f| f.plane(image, channels.first + c).wrapping_add(positions.0));
            let narrow = k.narrow.map(|k| Vec::<E, L>::splat(lanes, Compute::<E>::from_f64(k)));
            // The last vector overlaps its neighbour: it is read before anything is written, as
            // the output may be the input.
            let last = count - lanes_of;
            // SAFETY: the part has at least one vector.
            let tail = from.map(|p| unsafe { E::load(lanes, p.add(last)) });
            let one = |x: [Vec<E, L>; I], start: usize| {
                let v = op.before(lanes, x);
                let mut r = op.formula(v, narrow);
                if M::WIDE && !k.safe {
                    r = wide::<L, E, M, I, J, K, O>(op, v, k.wide.map(|k| [L::F64::splat(lanes, k); 2]));
                } else if M::CHECKED && !<Vec<E, L>>::all(r.finite()) {
                    let w = wide::<L, E, M, I, J, K, O>(op, v, k.wide.map(|k| [L::F64::splat(lanes, k); 2]));
                    r = <Vec<E, L>>::select(r.finite(), r, w);
                }
                for (to, y) in to.iter().zip(op.after(lanes, x, v, r)) {
                    // SAFETY: the vector lies in the plane.
                    unsafe { E::store(y, to.add(start)) };
                }
            };
            for v in 0..count / lanes_of {
                // SAFETY: as above.
                one(from.map(|p| unsafe { E::load(lanes, p.add(v * lanes_of)) }), v * lanes_of);
            }
            if count % lanes_of != 0 {
                one(tail, last);
            }
        }
    }
}

/// The formula in f64.
#[inline(always)]
pub(crate) fn wide<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    op: &M,
    v: [Vec<E, L>; J],
    k: [[L::F64; 2]; K],
) -> Vec<E, L>
where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let w = v.map(|v| v.widen());
    let low = op.formula(w.map(|w| w[0]), k.map(|k| k[0]));
    let high = if <Vec<E, L> as Vector>::WIDES == 2 { op.formula(w.map(|w| w[1]), k.map(|k| k[1])) } else { low };
    Vec::<E, L>::narrow([low, high])
}
