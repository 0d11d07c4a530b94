//! The two ways of walking a tensor, with vectors or element by element, and the cutting of it into cells.

pub(crate) mod grid;
mod image;
pub(crate) mod nchw;
pub(crate) mod nhwc;
mod run;
pub(crate) mod scalar;
#[cfg(all(test, not(bn_single)))]
mod ways;

use crate::element::{Element, sealed::Storage};
use crate::kernel::{Line, Reduction};
use crate::lanes::{Base, DEAL, Lanes, Scalar, Vector, single::Single};
use crate::shape::{Shape, Stride};
use grid::{Grid, Rows, div, rem};

/// Bytes of all operands of a pass from which on they do not stay in the caches. Maps then write their outputs past them: on Zen 5 with a
/// last cache of 32 MB, which others use too, at 13 MB a loss of a fifth, at 22 MB even, from 25 MB on a gain of 1.3 to 1.5 times.
const CACHED_BYTES: usize = 22 << 20;

/// Whether so many operands of so many elements are more than that.
pub(crate) fn past_caches<E>(operands: usize, elements: usize) -> bool {
    elements.saturating_mul(operands) >= CACHED_BYTES / size_of::<E>()
}

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

    /// The same for [`scalar`], by strides alone.
    pub(crate) fn single(ptr: *mut E, shape: &Shape, grid: &Grid, stride: Stride) -> Self {
        let Stride { batch, inner } = stride;
        // In `run` is the step from channel to channel, in `step` that from position to position, in `inner` that from
        // item to item, which are images, or the positions of all images.
        let (run, step) = if shape.layout() == Layout::Nchw { (inner, 1) } else { (1, inner) };
        let step = if shape.spatial() == 1 { batch } else { step };
        let (mut inner, mut per_image) = (batch, 0);
        if let (Grid::Rows(_), Layout::Nhwc, 2..) = (grid, shape.layout(), shape.channels()) {
            inner = step;
            let even = shape.batch() == 1 || batch == shape.spatial() * step;
            per_image = if even { 0 } else { shape.spatial() };
        }
        Place { ptr, batch, inner, per_image, run, step, contiguous: true }
    }

    /// Where an element is; for [`scalar`].
    #[inline(always)]
    fn at(&self, item: usize, channel: usize, position: usize) -> *mut E {
        self.row(item).wrapping_add(channel * self.run + position * self.step)
    }

    /// Where a channel of an image starts; for [`scalar`].
    #[inline(always)]
    fn run(&self, image: usize, channel: usize) -> *mut E {
        self.ptr.wrapping_add(image * self.batch + channel * self.run)
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

/// A number of each of some neighbouring channels.
pub(crate) type Several = Line<f64, MOST_LANES>;

/// What takes in what channels' sums over a cell are settled as, and their constants, of [`MOST_LANES`] channels at a time or of
/// those that are left; what stands behind those is anything. (One at a time it took a fifth of the time of all sums.)
/// Not a type parameter, or there would be a copy of all the sums' code for each.
pub(crate) trait Emit<const K: usize, const N: usize> {
    /// `count`: elements of each channel that the sums are of.
    fn emit(&mut self, channels: Channels, sums: &[Several; N], k: &[Several; K], count: u64);
}

impl<F: FnMut(Channels, &[Several; N], &[Several; K], u64), const K: usize, const N: usize> Emit<K, N> for F {
    #[inline(always)]
    fn emit(&mut self, channels: Channels, sums: &[Several; N], k: &[Several; K], count: u64) {
        self(channels, sums, k, count);
    }
}

/// The same number of each sum, or constant.
#[inline(always)]
pub(crate) fn column<const M: usize, const N: usize>(of: &[Line<f64, M>; N], i: usize) -> [f64; N] {
    let mut column = [0.0; N];
    for n in 0..N {
        column[n] = of[n][i];
    }
    column
}

/// The range of channels that a task works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub(crate) first: usize,
    pub(crate) end: usize,
}

/// Whether loads and stores that may deal elements to the lanes (`DEALT`) do: bfloat16, on AVX2. What meets such vectors lane
/// by lane is dealt likewise, once: constants in tables; sums are put in order where they end.
pub(crate) const fn deals<E: Element, L: Lanes>() -> bool {
    const { assert!(!E::DEALS || Compute::<E>::LANES == DEAL) };
    E::DEALS && L::DEALS
}

/// [`Vector::in_order`] of a vector that was loaded `DEALT`.
#[inline(always)]
fn in_order<E: Element, L: Lanes>(v: Vec<E, L>) -> Vec<E, L> {
    if const { deals::<E, L>() } { v.in_order() } else { v }
}

/// [`Vector::clear_below`] of such a vector.
#[inline(always)]
fn clear_below<E: Element, L: Lanes>(v: Vec<E, L>, n: usize) -> Vec<E, L> {
    if const { deals::<E, L>() } { v.clear_below_dealt(n) } else { v.clear_below(n) }
}

/// [Asks](Lanes::ask) for the line of each input that is so many bytes after an element.
#[inline(always)]
fn ask_all<L: Lanes, E: Element, const I: usize>(lanes: L, from: &[*const E; I], element: usize, after: usize) {
    for i in 0..I {
        lanes.ask(from[i].wrapping_add(element), after);
    }
}

/// Reads one vector of each input.
///
/// # Safety
/// Each pointer is valid for reading a vector from `offset` on.
#[inline(always)]
unsafe fn load_all<const DEALT: bool, L: Lanes, E: Element, const I: usize>(
    lanes: L,
    from: &[*const E; I],
    offset: usize,
) -> [Vec<E, L>; I] {
    let mut x = [Vec::<E, L>::splat(lanes, Compute::<E>::ZERO); I];
    let mut i = 0;
    while i < I {
        // SAFETY: by the caller.
        x[i] = unsafe { E::load::<L, DEALT>(lanes, from[i].add(offset)) };
        i += 1;
    }
    x
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

/// Writes one vector of each output.
///
/// # Safety
/// Each pointer is valid for writing a vector from `offset` on.
#[inline(always)]
unsafe fn store_all<const DEALT: bool, L: Lanes, E: Element, const O: usize>(
    y: [Vec<E, L>; O],
    to: &[*mut E; O],
    offset: usize,
) {
    let mut i = 0;
    while i < O {
        // SAFETY: by the caller.
        unsafe { E::store::<L, DEALT>(y[i], to[i].add(offset)) };
        i += 1;
    }
}

/// Writes one vector of each output past the caches, if the ISA can.
///
/// # Safety
/// As for [`store_all`]; the places are aligned to a vector.
#[inline(always)]
unsafe fn stream_all<const DEALT: bool, L: Lanes, E: Element, const O: usize>(
    y: [Vec<E, L>; O],
    to: &[*mut E; O],
    offset: usize,
) {
    let mut o = 0;
    while o < O {
        // SAFETY: by the caller.
        unsafe { E::stream::<L, DEALT>(y[o], to[o].add(offset)) };
        o += 1;
    }
}

/// Reads numbers one by one: where they have just been written so, a read of pairs would wait until they have left the
/// store buffer (a fifth of the time that a channel's constants take).
#[inline(always)]
pub(crate) fn one_by_one<S: Copy, const N: usize>(numbers: &[S; N]) -> [S; N] {
    let mut read = *numbers;
    for n in 0..N {
        // SAFETY: a reference. Volatile reads are not joined.
        read[n] = unsafe { core::ptr::read_volatile(&numbers[n]) };
    }
    read
}

/// The first lane of a vector, which may be its only one.
#[inline(always)]
fn first<V: Vector>(v: V) -> V::Scalar {
    let mut lanes = [V::Scalar::ZERO; MOST_LANES];
    // SAFETY: no vector has more.
    unsafe { v.store(lanes.as_mut_ptr()) };
    lanes[0]
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
pub(crate) const MOST_LANES: usize = 16;

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
    k: &[Several; K],
    sums: &mut [Several; N],
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
        let a = R::addends(x, kl);
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
    let v = R::values(&op.ready(lane), unsafe { load_all::<false, _, _, _>(lane, from, i) });
    for j in 0..J {
        x[j] = first(v[j]).to_f64();
    }
    x
}

/// The sum of all lanes, by one fixed tree.
#[inline(always)]
fn tree(mut v: Several) -> f64 {
    let mut half = MOST_LANES / 2;
    while half > 0 {
        for i in 0..half {
            v[i] += v[i + half];
        }
        half /= 2;
    }
    v[0]
}
