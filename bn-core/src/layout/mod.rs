//! The two ways of walking a tensor, and the cutting of it into cells.

pub(crate) mod grid;
pub(crate) mod nchw;
pub(crate) mod nhwc;

use crate::element::{Element, sealed::Storage};
use crate::kernel::{Map, Reduction};
use crate::lanes::{Base, Lanes, Scalar, Vector, single::Single};
use crate::shape::{Shape, Stride};
use grid::{Grid, Rows, div, rem};

type Compute<E> = <E as Storage>::Compute;
type Vec<E, L> = <E as Storage>::Vec<L>;

/// The order of a tensor's dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// batch × channels × spatial positions: each channel of an image is contiguous. Also NCW and
    /// NCDHW.
    Nchw,
    /// batch × spatial positions × channels: each position is contiguous. Also NWC, NDHWC and dense
    /// N × C.
    Nhwc,
}

/// Where the elements of an operand are: in planes, or in rows, as the grid says.
#[derive(Clone, Copy)]
pub(crate) struct Place<E> {
    ptr: *mut E,
    /// Elements from one image to the next.
    batch: usize,
    /// Elements from one plane to the next, or from one (unfolded) row to the next.
    inner: usize,
    /// Rows that `inner` steps through before `batch` does; 0 where all rows are evenly spaced.
    per_image: usize,
    /// A plane or row is runs of so many neighbouring elements,
    run: usize,
    /// which start so many apart.
    step: usize,
    /// Whether a plane, or a folded row, is one run, so that it can be worked on where it is.
    /// Others are staged: copied to the workspace, and back.
    pub(crate) contiguous: bool,
}

// SAFETY: a place is an address; what is read and written through it, and by whom, is the
// business of the walkers, whose cells write disjoint ranges.
unsafe impl<E: Element> Send for Place<E> {}
// SAFETY: as above.
unsafe impl<E: Element> Sync for Place<E> {}

impl<E: Element> Place<E> {
    /// An operand of a shape, cut by the grid of that shape, with the strides resolved.
    pub(crate) fn new(ptr: *mut E, shape: &Shape, grid: &Grid, stride: Stride) -> Self {
        let Stride { batch, inner } = stride;
        let place = Place { ptr, batch, inner, per_image: 0, run: 1, step: 1, contiguous: true };
        match (*grid, shape.layout()) {
            (Grid::Planes(_), Layout::Nchw) => place,
            // One channel: its positions are the plane.
            (Grid::Planes(_), Layout::Nhwc) => Place { step: inner, contiguous: inner == 1, ..place },
            (Grid::Rows(r), Layout::Nhwc) if shape.channels() > 1 => {
                let inner = if shape.spatial() == 1 { batch } else { inner };
                let even = shape.batch() == 1 || shape.spatial() == 1 || batch == shape.spatial() * inner;
                let dense = r.fold == 1 || (even && inner == shape.channels());
                let per_image = if even { 0 } else { shape.spatial() };
                Place { inner, per_image, run: r.channels, step: r.channels, contiguous: dense, ..place }
            }
            // A row is an image.
            (Grid::Rows(r), layout) => {
                let run = if layout == Layout::Nchw { shape.spatial() } else { 1 };
                let base = r.channels * r.adjacent;
                let dense = (run == inner || run == base) && (r.fold == 1 || batch == base);
                Place { inner: batch, run, step: inner, contiguous: dense, ..place }
            }
        }
    }

    /// Whether both are the same operand.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.ptr == other.ptr
    }

    /// Whether folded rows follow each other without gaps.
    #[inline(always)]
    fn dense(&self, geo: &Rows) -> bool {
        self.contiguous && self.per_image == 0 && self.inner * geo.fold == geo.width
    }

    #[inline(always)]
    fn plane(&self, image: usize, channel: usize) -> *mut E {
        self.ptr.wrapping_add(image * self.batch + channel * self.inner)
    }

    /// Where an unfolded row starts.
    #[inline(always)]
    fn row(&self, row: usize) -> *mut E {
        let (image, row) =
            if self.per_image == 0 { (0, row) } else { (div(row, self.per_image), rem(row, self.per_image)) };
        self.ptr.wrapping_add(image * self.batch + row * self.inner)
    }

    /// Where element `i` of a plane or row is that starts at `base`.
    #[inline(always)]
    fn element(&self, base: *mut E, i: usize) -> *mut E {
        base.wrapping_add(div(i, self.run) * self.step + rem(i, self.run))
    }

    /// Copies elements `start..start + width` of a plane or row that starts at `base` to or from a
    /// buffer.
    ///
    /// # Safety
    /// The elements and the buffer are valid for that.
    #[inline(never)]
    unsafe fn copy(&self, base: *mut E, start: usize, width: usize, buffer: *mut E, direction: Direction) {
        let mut i = 0;
        while i < width {
            let n = (self.run - rem(start + i, self.run)).min(width - i);
            let (there, here) = (self.element(base, start + i), buffer.wrapping_add(i));
            // SAFETY: by the caller; runs do not overlap the buffer.
            unsafe {
                match direction {
                    Direction::In => core::ptr::copy_nonoverlapping(there, here, n),
                    Direction::Out => core::ptr::copy_nonoverlapping(here, there, n),
                }
            }
            i += n;
        }
    }

    /// The same for a folded row.
    ///
    /// # Safety
    /// As for [`Place::copy`].
    #[inline(never)]
    unsafe fn copy_row(
        &self,
        geo: &Rows,
        row: usize,
        start: usize,
        width: usize,
        buffer: *mut E,
        direction: Direction,
    ) {
        let base = geo.channels * geo.adjacent;
        let mut i = 0;
        while i < width {
            let (unfolded, e) = (div(start + i, base), rem(start + i, base));
            let n = (base - e).min(width - i);
            // SAFETY: by the caller.
            unsafe {
                self.copy(self.row(row * geo.fold + unfolded), e, n, buffer.wrapping_add(i), direction);
            }
            i += n;
        }
    }

    /// Elements `start..start + width` of the same folded row of each input, where they are or
    /// copied to `stage`.
    ///
    /// # Safety
    /// The elements are valid for reading; `stage` for writing them, if an input is not contiguous.
    #[inline(always)]
    unsafe fn rows_of<const I: usize>(
        all: &[Self; I],
        geo: &Rows,
        row: usize,
        start: usize,
        width: usize,
        stage: *mut E,
    ) -> [*const E; I] {
        let mut p = [core::ptr::null(); I];
        for i in 0..I {
            p[i] = if all[i].contiguous {
                all[i].row(row * geo.fold).wrapping_add(start).cast_const()
            } else {
                let to = stage.wrapping_add(i * width);
                // SAFETY: by the caller.
                unsafe { all[i].copy_row(geo, row, start, width, to, Direction::In) };
                to.cast_const()
            };
        }
        p
    }

    /// Elements `start..start + width` of the same plane of each input, where they are or copied to
    /// `stage`.
    ///
    /// # Safety
    /// As for [`Place::rows_of`].
    #[inline(always)]
    unsafe fn parts_of<const I: usize>(
        all: &[Self; I],
        (image, channel): (usize, usize),
        start: usize,
        width: usize,
        stage: *mut E,
    ) -> [*const E; I] {
        let mut p = [core::ptr::null(); I];
        for i in 0..I {
            let plane = all[i].plane(image, channel);
            p[i] = if all[i].contiguous {
                plane.wrapping_add(start).cast_const()
            } else {
                let to = stage.wrapping_add(i * width);
                // SAFETY: by the caller.
                unsafe { all[i].copy(plane, start, width, to, Direction::In) };
                to.cast_const()
            };
        }
        p
    }
}

/// Whether [`Place::copy`] reads the operand or writes it.
#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// Whether any of these has to be staged.
#[inline(always)]
pub(crate) fn staged<E, const I: usize>(places: &[Place<E>; I]) -> bool {
    let mut staged = false;
    for p in places {
        staged |= !p.contiguous;
    }
    staged
}

/// Inputs, or outputs, of a kernel at most.
pub(crate) const MOST_OPERANDS: usize = 3;

/// For its alignment.
#[repr(align(64))]
struct CacheLine;

/// Words that [`Carve`] may skip; less where nothing is gained.
pub(crate) const ALIGN_WORDS: usize = if Base::SINGLE { 0 } else { align_of::<CacheLine>() / size_of::<u64>() - 1 };

/// Hands out typed pieces of a workspace.
pub(crate) struct Carve {
    ptr: *mut u64,
    words: usize,
}

impl Carve {
    /// From the first cache line on that is whole: vectors that straddle two took a third longer.
    pub(crate) fn new(scratch: &mut [u64]) -> Self {
        let line = align_of::<CacheLine>();
        let skip = (div(scratch.as_ptr().addr(), size_of::<u64>()).wrapping_neg() % (line / size_of::<u64>()))
            .min(ALIGN_WORDS)
            .min(scratch.len());
        Carve { ptr: scratch.as_mut_ptr().wrapping_add(skip), words: scratch.len() - skip }
    }

    /// `len` values, not yet initialised by the caller. The sizes have been checked against the
    /// workspace when the call was planned; if they ever disagreed the piece would be short, so
    /// debug builds check again.
    #[inline(always)]
    pub(crate) fn take<S: bytemuck::Pod>(&mut self, len: usize) -> *mut S {
        const { assert!(align_of::<S>() <= align_of::<u64>()) };
        let words = words_for::<S>(len);
        debug_assert!(words <= self.words, "workspace plan: {words} words wanted, {} left", self.words);
        let p = self.ptr.cast::<S>();
        self.ptr = self.ptr.wrapping_add(words);
        self.words = self.words.wrapping_sub(words);
        p
    }
}

/// Words of workspace that hold `len` values.
pub(crate) const fn words_for<S>(len: usize) -> usize {
    (len * size_of::<S>()).div_ceil(8)
}

/// The range of channels that a task works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub(crate) first: usize,
    pub(crate) end: usize,
}

/// Reads one vector of each input.
///
/// # Safety
/// Each pointer is valid for reading a vector from `offset` on.
#[inline(always)]
unsafe fn load_all<L: Lanes, E: Element, const I: usize>(
    lanes: L,
    from: &[*const E; I],
    offset: usize,
) -> [Vec<E, L>; I] {
    let mut x = [Vec::<E, L>::splat(lanes, Compute::<E>::ZERO); I];
    let mut i = 0;
    while i < I {
        // SAFETY: by the caller.
        x[i] = unsafe { E::load(lanes, from[i].add(offset)) };
        i += 1;
    }
    x
}

/// Writes one vector of each output.
///
/// # Safety
/// Each pointer is valid for writing a vector from `offset` on.
#[inline(always)]
unsafe fn store_all<L: Lanes, E: Element, const O: usize>(y: [Vec<E, L>; O], to: &[*mut E; O], offset: usize) {
    let mut i = 0;
    while i < O {
        // SAFETY: by the caller.
        unsafe { E::store(y[i], to[i].add(offset)) };
        i += 1;
    }
}

/// Writes one vector of each output past the caches, if the ISA can.
///
/// # Safety
/// As for [`store_all`]; the places are aligned to a vector.
#[inline(always)]
unsafe fn stream_all<L: Lanes, E: Element, const O: usize>(y: [Vec<E, L>; O], to: &[*mut E; O], offset: usize) {
    let mut o = 0;
    while o < O {
        // SAFETY: by the caller.
        unsafe { E::stream(y[o], to[o].add(offset)) };
        o += 1;
    }
}

/// One vector of each constant.
#[inline(always)]
fn splat_all<V: Vector, const K: usize>(token: V::Token, k: &[V::Scalar; K]) -> [V; K] {
    let mut v = [V::splat(token, V::Scalar::ZERO); K];
    let mut i = 0;
    while i < K {
        v[i] = V::splat(token, k[i]);
        i += 1;
    }
    v
}

#[inline(always)]
fn add<V: Vector, const N: usize>(mut a: [V; N], b: [V; N]) -> [V; N] {
    let mut n = 0;
    while n < N {
        a[n] = a[n] + b[n];
        n += 1;
    }
    a
}

/// The largest `Scalar::LANES`.
const MOST_LANES: usize = 16;

/// Adds a vector of elements to sums in f64, lane by lane from lane `first` up: the slow path of
/// reductions. It is the same code on every ISA, written for size.
///
/// # Safety
/// The pointers are valid for reading a vector.
#[inline(always)]
unsafe fn add_in_f64<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    from: &[*const E; I],
    first: usize,
    k: &[[f64; MOST_LANES]; K],
    sums: &mut [[f64; MOST_LANES]; N],
) where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    for lane in first..Compute::<E>::LANES {
        let mut kl = [0.0; K];
        // SAFETY: by the caller.
        let x = unsafe { values_in_f64(op, from, lane) };
        for i in 0..K {
            kl[i] = k[i][lane];
        }
        let a = op.addends(x, kl);
        for n in 0..N {
            sums[n][lane] += a[n];
        }
    }
}

/// Whether a whole vector of elements is at the pivot.
///
/// # Safety
/// The pointers are valid for reading a vector.
#[inline(always)]
unsafe fn all_at<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    from: &[*const E; I],
    pivot: f64,
) -> bool
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let mut same = true;
    for lane in 0..Compute::<E>::LANES {
        // SAFETY: by the caller.
        same &= unsafe { values_in_f64(op, from, lane) }[R::PIVOT_OF] == pivot;
    }
    same
}

/// The values of one element.
///
/// # Safety
/// The pointers are valid for reading element `i`.
#[inline(always)]
unsafe fn values_in_f64<E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    op: &R,
    from: &[*const E; I],
    i: usize,
) -> [f64; J]
where
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lane = Single::BASE;
    let mut x = [0.0; J];
    // SAFETY: by the caller.
    let v = op.values(lane, unsafe { load_all(lane, from, i) });
    for j in 0..J {
        let mut value = Compute::<E>::ZERO;
        // SAFETY: of a vector of one.
        unsafe { v[j].store(&mut value) };
        x[j] = value.to_f64();
    }
    x
}

/// The lanes of some vectors.
#[inline(always)]
fn store_lanes<L: Lanes, E: Element, const J: usize>(v: [Vec<E, L>; J]) -> [[Compute<E>; MOST_LANES]; J] {
    let mut out = [[Compute::<E>::ZERO; MOST_LANES]; J];
    let mut j = 0;
    while j < J {
        // SAFETY: each array has room for every vector.
        unsafe { v[j].store(out[j].as_mut_ptr()) };
        j += 1;
    }
    out
}

/// The sum of all lanes, by one fixed tree.
#[inline(always)]
fn tree(mut v: [f64; MOST_LANES]) -> f64 {
    let mut half = MOST_LANES / 2;
    while half > 0 {
        for i in 0..half {
            v[i] += v[i + half];
        }
        half /= 2;
    }
    v[0]
}

/// The constants of a run of elements.
trait Constants<L: Lanes, E: Element, M, const I: usize, const O: usize> {
    /// Those of one vector.
    type Of: Copy;
    /// Elements after which vectors have the same constants again.
    fn unit(&self) -> usize;
    /// Where the constants of element `i` are.
    fn offset(&self, i: usize) -> usize;
    /// Where those of the next vector are.
    fn next(&self, offset: usize) -> usize;
    /// Those of the vector whose constants are there.
    ///
    /// # Safety
    /// The offset is one of those above.
    unsafe fn at(&self, lanes: L, offset: usize) -> Self::Of;
    /// Maps one vector.
    ///
    /// # Safety
    /// As for [`Constants::at`], from where the constants are.
    unsafe fn map(&self, lanes: L, op: &M, x: [Vec<E, L>; I], k: Self::Of, offset: usize) -> [Vec<E, L>; O];
}

/// Bytes of a run that is mapped in two streams.
const FAR: usize = 1 << 20;

/// A run of at least a vector.
struct Elements<E, const I: usize, const O: usize> {
    from: [*const E; I],
    to: [*mut E; O],
    width: usize,
}

impl<E: Element, const I: usize, const O: usize> Elements<E, I, O> {
    /// Maps them.
    ///
    /// `stream` asks for stores past the caches, in whole lines: for outputs that would not stay there,
    /// and that are no input. On one thread they gained 1.2 to 1.5 times beyond the last cache, and lose
    /// twice that within.
    ///
    /// # Safety
    /// The pointers are valid for `width` elements, at least a vector; an output is one of the inputs or overlaps none.
    #[inline(always)]
    unsafe fn map<L, M, C>(&self, lanes: L, op: &M, constants: &C, stream: bool)
    where
        L: Lanes,
        C: Constants<L, E, M, I, O>,
    {
        let lanes_of = <Vec<E, L>>::WIDTH;
        // The last vector overlaps its neighbour: it is read before anything is written, as the output
        // may be the input.
        let last = self.width - lanes_of;
        // SAFETY: the vectors lie in the run.
        unsafe {
            let tail = load_all(lanes, &self.from, last);
            let lead = if stream { lead(&self.to) } else { None };
            let mut at = 0;
            if let Some(lead) = lead
                && lead > 0
            {
                let x = load_all(lanes, &self.from, 0);
                store_all::<L, E, O>(constants.map(lanes, op, x, constants.at(lanes, 0), 0), &self.to, 0);
                at = lead;
            }
            // Two halves at once, if they are far apart: 1.3 times as fast then, half as fast within a plane.
            let unit = constants.unit();
            let far = if self.width >= FAR / size_of::<E>() { div(div(self.width - at, 2), unit) * unit } else { 0 };
            if lead.is_some() {
                if far > 0 {
                    self.walk::<L, M, C, 2, true>(lanes, op, constants, at, div(far, lanes_of), far);
                    at += 2 * far;
                }
                let vectors = div(self.width - at, lanes_of);
                self.walk::<L, M, C, 1, true>(lanes, op, constants, at, vectors, 0);
                at += vectors * lanes_of;
            } else {
                if far > 0 {
                    self.walk::<L, M, C, 2, false>(lanes, op, constants, at, div(far, lanes_of), far);
                    at += 2 * far;
                }
                let vectors = div(self.width - at, lanes_of);
                self.walk::<L, M, C, 1, false>(lanes, op, constants, at, vectors, 0);
                at += vectors * lanes_of;
            }
            if at < self.width {
                let offset = constants.offset(last);
                store_all::<L, E, O>(
                    constants.map(lanes, op, tail, constants.at(lanes, offset), offset),
                    &self.to,
                    last,
                );
            }
        }
    }

    /// Maps vectors from `at` on, and from `far` elements further on, which have the same constants.
    ///
    /// # Safety
    /// They lie in the run; those that are streamed are aligned.
    #[inline(always)]
    unsafe fn walk<L, M, C, const S: usize, const STREAM: bool>(
        &self,
        lanes: L,
        op: &M,
        constants: &C,
        mut at: usize,
        vectors: usize,
        far: usize,
    ) where
        L: Lanes,
        C: Constants<L, E, M, I, O>,
    {
        let mut offset = constants.offset(at);
        for _ in 0..vectors {
            // SAFETY: by the caller.
            unsafe {
                let k = constants.at(lanes, offset);
                let mut s = 0;
                while s < S {
                    let at = at + s * far;
                    let y = constants.map(lanes, op, load_all(lanes, &self.from, at), k, offset);
                    if STREAM {
                        stream_all::<L, E, O>(y, &self.to, at);
                    } else {
                        store_all::<L, E, O>(y, &self.to, at);
                    }
                    s += 1;
                }
            }
            at += <Vec<E, L>>::WIDTH;
            offset = constants.next(offset);
        }
    }
}

/// Elements up to the first whole vector that may be streamed, if all outputs agree on it.
#[inline(always)]
fn lead<E: Element, const O: usize>(to: &[*mut E; O]) -> Option<usize> {
    let (size, line) = (size_of::<E>(), Compute::<E>::LANES * size_of::<E>());
    let mut lead = None;
    for p in to {
        let over = p.addr() % line;
        let of = if over == 0 { 0 } else { line - over };
        if of % size != 0 || lead.is_some_and(|lead| lead != of) {
            return None;
        }
        lead = Some(of);
    }
    lead.map(|bytes| bytes / size)
}

/// Of which channels the lanes of a vector are: lane `l` is element `start + l` of a row whose `count`
/// channels, from `first` on, have `adjacent` elements each, in turn.
#[derive(Clone, Copy)]
struct ChannelsOf {
    first: usize,
    count: usize,
    adjacent: usize,
    start: usize,
}

/// From the result of a map's formula to what is stored.
#[inline(always)]
fn finish<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    lanes: L,
    op: &M,
    v: [Vec<E, L>; J],
    result: Vec<E, L>,
    channels: ChannelsOf,
) -> [Vec<E, L>; O]
where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let sum = op.join(v, result);
    let mut y = op.outputs(lanes, v, sum);
    if op.checked() && !<Vec<E, L>>::all(sum.finite()) {
        y[0] = <Vec<E, L>>::select(sum.finite(), y[0], map_in_f64(lanes, op, v, channels, true));
    }
    y
}

/// The formula of a map in f64, or all of it up to its first output.
#[inline(always)]
fn map_in_f64<L, E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    lanes: L,
    op: &M,
    v: [Vec<E, L>; J],
    channels: ChannelsOf,
    whole: bool,
) -> Vec<E, L>
where
    L: Lanes,
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let mut v = store_lanes::<L, E, J>(v);
    map_lanes::<E, M, I, J, K, O>(op, &mut v, <Vec<E, L>>::WIDTH, channels, whole);
    // SAFETY: the array has room for every vector.
    unsafe { Vec::<E, L>::load(lanes, v[0].as_ptr()) }
}

/// The same lane by lane, into the first of its values: the slow path of maps, the same
/// code on every ISA.
#[cold]
#[inline(never)]
fn map_lanes<E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    op: &M,
    v: &mut [[Compute<E>; MOST_LANES]; J],
    lanes: usize,
    channels: ChannelsOf,
    whole: bool,
) where
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let (mut last, mut k) = (usize::MAX, [0.0; K]);
    for lane in 0..lanes.min(MOST_LANES) {
        let mut x = [0.0; J];
        for j in 0..J {
            x[j] = v[j][lane].to_f64();
        }
        let channel = channels.first + rem(div(channels.start + lane, channels.adjacent), channels.count);
        if channel != last {
            (last, k) = (channel, op.coefficients(channel).wide);
        }
        let mut r = op.formula(x, k);
        if whole {
            r = op.outputs((), x, op.join(x, r))[0];
        }
        v[0][lane] = Scalar::from_f64(r);
    }
}
