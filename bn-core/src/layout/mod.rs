//! The two ways of walking a tensor, and the cutting of it into cells.

pub(crate) mod grid;
pub(crate) mod nchw;
pub(crate) mod nhwc;

use crate::element::{Element, sealed::Storage};
use crate::kernel::Reduction;
use crate::lanes::{Lanes, Scalar, Vector};
use grid::SAMPLES;

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

/// Where the elements of an operand are.
#[derive(Clone, Copy)]
pub(crate) struct Place<E> {
    ptr: *mut E,
    /// Elements from one image to the next.
    batch: usize,
    /// Elements from one channel (planes) or row (rows) to the next.
    inner: usize,
    /// Rows of an image that `inner` steps through before `batch` does; 0 where all rows are evenly
    /// spaced.
    rows: usize,
}

// SAFETY: a place is an address; what is read and written through it, and by whom, is the
// business of the walkers, whose cells write disjoint ranges.
unsafe impl<E: Element> Send for Place<E> {}
// SAFETY: as above.
unsafe impl<E: Element> Sync for Place<E> {}

impl<E: Element> Place<E> {
    /// Planes `inner` apart in images `batch` apart.
    pub(crate) fn planes(ptr: *mut E, batch: usize, inner: usize) -> Self {
        Place { ptr, batch, inner, rows: 0 }
    }

    /// Rows `inner` apart.
    pub(crate) fn rows(ptr: *mut E, inner: usize) -> Self {
        Place { ptr, batch: 0, inner, rows: 0 }
    }

    #[inline(always)]
    fn plane(&self, image: usize, channel: usize) -> *mut E {
        self.ptr.wrapping_add(image * self.batch + channel * self.inner)
    }

    #[inline(always)]
    fn row(&self, row: usize) -> *mut E {
        debug_assert!(self.rows == 0);
        self.ptr.wrapping_add(row * self.inner)
    }
}

/// Hands out typed pieces of a workspace.
pub(crate) struct Carve {
    ptr: *mut u64,
    words: usize,
}

impl Carve {
    pub(crate) fn new(scratch: &mut [u64]) -> Self {
        Carve { ptr: scratch.as_mut_ptr(), words: scratch.len() }
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

/// The pivot: the mean of [`SAMPLES`] values of a channel, in the element's arithmetic, as the first
/// of them plus the mean distance from it. That keeps all digits at any mean, gives a constant
/// exactly, and costs no f64 where that is done in software. 0 where it overflows.
#[inline(always)]
fn mean_of_samples<L, E, R, const I: usize, const J: usize, const K: usize, const N: usize>(
    lanes: L,
    op: &R,
    read: impl Fn(usize) -> [E; I],
) -> E::Compute
where
    L: Lanes,
    E: Element,
    R: Reduction<E, I, J, K, N>,
{
    let lanes_of = E::Compute::LANES;
    let mut samples = [[E::Compute::ZERO; SAMPLES]; I];
    for i in 0..SAMPLES {
        for (s, x) in samples.iter_mut().zip(read(i)) {
            s[i] = x.get();
        }
    }
    let mut v = [E::Compute::ZERO; SAMPLES];
    for i in 0..SAMPLES / lanes_of {
        // SAFETY: both arrays have SAMPLES elements, a whole number of vectors.
        unsafe {
            let x =
                core::array::from_fn(|j| <E as Storage>::Vec::<L>::load(lanes, samples[j].as_ptr().add(i * lanes_of)));
            op.values(lanes, x)[R::PIVOT_OF].store(v.as_mut_ptr().add(i * lanes_of));
        }
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
    let k = base + v[0] * E::Compute::PER_SAMPLE;
    if k.to_f64().is_finite() { k } else { E::Compute::ZERO }
}
