//! Maps an image whose planes follow each other without gaps (NCHW): one run of vectors, whose constants change where
//! planes do.
//!
//! ```text
//! naive:  for each plane { k = constants of its channel; for each element { y = formula(x, k) } }
//! ```
//! Plane by plane, each would begin and end with less than a cache line, which past the caches costs a multiple of the
//! whole line, and with 49 or 196 elements that is much of the plane. So vectors go on from plane to plane; where one
//! begins in a plane and ends in the next, its lanes take the constants of either. A plane has at least a vector, so there
//! are never more than two.

use super::grid::div;
use super::run::{Constants, Elements, TURN, lead};
use super::{Compute, MOST_LANES, Vec, ask_all, deals, load_all, splat_all, store_all, stream_all};
use crate::dispatch::Task;
use crate::element::Element;
use crate::kernel::Map;
use crate::lanes::{Lanes, Scalar, Vector, lane_of};

/// One image, or two at once: the same channels of each.
pub(super) struct Image<'a, E: Element, M, const I: usize, const J: usize, const K: usize, const O: usize> {
    pub(super) op: &'a M,
    /// The second may be the first once more; then it is left out.
    pub(super) images: [Elements<E, I, O>; 2],
    pub(super) both: bool,
    /// Those of the first channel; those of the others follow.
    pub(super) constants: Constants<E, K>,
    /// Elements of a plane, at least a vector.
    pub(super) positions: usize,
    pub(super) stream: bool,
}

/// A place in an image: an element, and the plane it is in.
#[derive(Clone, Copy)]
struct At {
    element: usize,
    plane: usize,
}

impl<E, M, const I: usize, const J: usize, const K: usize, const O: usize> Task for Image<'_, E, M, I, J, K, O>
where
    E: Element,
    M: Map<E, I, J, K, O>,
{
    type Element = E;
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let ready = self.op.ready::<Vec<E, L>>(lanes);
        let Image { images: [a, b], both, stream, .. } = &self;
        // SAFETY: who made it vouches for it.
        unsafe {
            match (stream.then(|| lead(&a.to)).flatten(), stream.then(|| lead(&b.to)).flatten()) {
                // Two images far apart, some lines of each in turn.
                (Some(x), Some(y)) if x == y && *both => self.map::<L, 2, true>(lanes, &ready, [a, b], x),
                (x, y) => {
                    for (image, lead) in [(a, x), (b, y)].into_iter().take(if *both { 2 } else { 1 }) {
                        match lead {
                            Some(lead) => self.map::<L, 1, true>(lanes, &ready, [image], lead),
                            None => self.map::<L, 1, false>(lanes, &ready, [image], 0),
                        }
                    }
                }
            }
        }
    }
}

impl<E, M, const I: usize, const J: usize, const K: usize, const O: usize> Image<'_, E, M, I, J, K, O>
where
    E: Element,
    M: Map<E, I, J, K, O>,
{
    /// # Safety
    /// The images are valid, with at least a vector each; an output is one of the inputs or overlaps none, and is none of
    /// them where it is streamed. The constants are there for all planes.
    #[inline(always)]
    unsafe fn map<L: Lanes, const S: usize, const STREAM: bool>(
        &self,
        lanes: L,
        ready: &M::Ready<Vec<E, L>>,
        images: [&Elements<E, I, O>; S],
        lead: usize,
    ) {
        let lanes_of = <Vec<E, L>>::WIDTH;
        let width = images[0].width;
        let (last, zero) = (width - lanes_of, Vec::<E, L>::splat(lanes, Compute::<E>::ZERO));
        // SAFETY: the vectors lie in the images; the last one overlaps its neighbour: it is read before anything is
        // written, as the output may be the input.
        unsafe {
            let mut tails = [[zero; I]; S];
            for s in 0..S {
                tails[s] = load_all::<true, _, _, _>(lanes, &images[s].from, last);
                if lead > 0 {
                    self.walk::<L, false>(lanes, ready, images[s], At { element: 0, plane: 0 }, lanes_of);
                }
            }
            let end = lead + (width - lead) / lanes_of * lanes_of;
            // A lead is less than a vector, and so less than a plane.
            let mut at = At { element: lead, plane: 0 };
            while at.element < end {
                let turn = if S > 1 { (end - at.element).min(TURN / size_of::<E>()) } else { end - at.element };
                let mut next = at;
                for image in images {
                    next = self.walk::<L, STREAM>(lanes, ready, image, at, at.element + turn);
                }
                at = next;
            }
            if end < width {
                if STREAM {
                    // The last vectors overlap what has been streamed.
                    lanes.fence();
                }
                for s in 0..S {
                    // A plane has at least a vector.
                    let k = self.of_plane(lanes, div(last, self.positions));
                    let v = M::before(ready, tails[s]);
                    let sum = self.op.join(v, M::formula(v, k));
                    if self.check() && !sum.all_finite() {
                        self.one_by_one(images[s], end, width);
                    } else {
                        store_all::<true, L, E, O>(M::outputs(ready, v, sum), &images[s].to, last);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn check(&self) -> bool {
        self.op.checked() || !self.constants.safe
    }

    /// Maps the vectors from `at` on up to element `end`; returns where that is.
    ///
    /// # Safety
    /// They are whole vectors of the image; those that are streamed are aligned.
    #[inline(always)]
    unsafe fn walk<L: Lanes, const STREAM: bool>(
        &self,
        lanes: L,
        ready: &M::Ready<Vec<E, L>>,
        image: &Elements<E, I, O>,
        mut at: At,
        end: usize,
    ) -> At {
        let lanes_of = <Vec<E, L>>::WIDTH;
        while at.element < end {
            // SAFETY: by the caller.
            unsafe {
                at = self.walk_fast::<L, STREAM>(lanes, ready, image, at, end);
                if at.element < end {
                    self.one_by_one(image, at.element, at.element + lanes_of);
                    at.element += lanes_of;
                    at.plane = div(at.element, self.positions);
                }
            }
        }
        at
    }

    /// The same as far as the fast way goes. It calls nothing, as in [`super::run`].
    ///
    /// # Safety
    /// As for [`Self::walk`].
    #[inline(always)]
    unsafe fn walk_fast<L: Lanes, const STREAM: bool>(
        &self,
        lanes: L,
        ready: &M::Ready<Vec<E, L>>,
        image: &Elements<E, I, O>,
        At { mut element, mut plane }: At,
        end: usize,
    ) -> At {
        let (lanes_of, check) = (<Vec<E, L>>::WIDTH, self.check());
        // SAFETY: by the caller. Where an element of the image follows a plane, another plane does.
        unsafe {
            let mut k = self.of_plane(lanes, plane);
            while element < end {
                let border = (plane + 1) * self.positions;
                let whole = end.min(border - (border - element) % lanes_of);
                while element < whole {
                    if !self.vector::<L, STREAM>(lanes, ready, image, element, k, check) {
                        return At { element, plane };
                    }
                    element += lanes_of;
                }
                if element >= end {
                    break;
                }
                let next = self.of_plane(lanes, plane + 1);
                if element < border {
                    let both = mixed::<E, L, K>(lanes, border - element, k, next);
                    if !self.vector::<L, STREAM>(lanes, ready, image, element, both, check) {
                        return At { element, plane };
                    }
                    element += lanes_of;
                }
                (k, plane) = (next, plane + 1);
            }
        }
        At { element, plane }
    }

    /// Maps a vector, or says that it takes another way.
    ///
    /// # Safety
    /// As for [`Self::walk`].
    #[inline(always)]
    unsafe fn vector<L: Lanes, const STREAM: bool>(
        &self,
        lanes: L,
        ready: &M::Ready<Vec<E, L>>,
        image: &Elements<E, I, O>,
        element: usize,
        k: [Vec<E, L>; K],
        check: bool,
    ) -> bool {
        // SAFETY: by the caller.
        unsafe {
            let v = M::before(ready, load_all::<true, _, _, _>(lanes, &image.from, element));
            if STREAM && lanes.ahead() {
                // Of the image's next turn: 1.0 to 1.18 times as fast (AVX2, Zen 3; with lines 256 bytes ahead 0.95 to 1).
                ask_all(lanes, &image.from, element, TURN);
            }
            let sum = self.op.join(v, M::formula(v, k));
            if check && !sum.all_finite() {
                return false;
            }
            if STREAM {
                stream_all::<true, L, E, O>(M::outputs(ready, v, sum), &image.to, element);
            } else {
                store_all::<true, L, E, O>(M::outputs(ready, v, sum), &image.to, element);
            }
        }
        true
    }

    /// The constants of a plane.
    ///
    /// # Safety
    /// There is such a plane.
    #[inline(always)]
    unsafe fn of_plane<L: Lanes>(&self, lanes: L, plane: usize) -> [Vec<E, L>; K] {
        // SAFETY: by the caller.
        splat_all(lanes, unsafe { &*self.constants.at.add(plane * K).cast::<[Compute<E>; K]>() })
    }

    /// Maps elements `from..to` one by one.
    ///
    /// # Safety
    /// They lie in the image.
    #[inline(always)]
    unsafe fn one_by_one(&self, image: &Elements<E, I, O>, mut from: usize, to: usize) {
        while from < to {
            let plane = div(from, self.positions);
            let end = to.min((plane + 1) * self.positions);
            // SAFETY: by the caller.
            unsafe {
                let at = self.constants.at.add(plane * K);
                let k = Constants { at, first: self.constants.first + plane, ..self.constants };
                image.one_by_one::<M, J, K>(self.op, &k, from, end);
            }
            from = end;
        }
    }
}

/// `a` for the first `n` elements, `b` for the others.
#[inline(always)]
fn mixed<E: Element, L: Lanes, const K: usize>(
    lanes: L,
    n: usize,
    a: [Vec<E, L>; K],
    b: [Vec<E, L>; K],
) -> [Vec<E, L>; K] {
    let (mut numbers, mut k) = ([Compute::<E>::ZERO; MOST_LANES], b);
    for e in 0..<Vec<E, L>>::WIDTH {
        numbers[if const { deals::<E, L>() } { lane_of(e) } else { e }] = Scalar::from_f64(e as f64);
    }
    // SAFETY: no vector has more lanes.
    let number = unsafe { Vec::<E, L>::load(lanes, numbers.as_ptr()) };
    let first = number.lt(Vec::<E, L>::splat(lanes, Scalar::from_f64(n as f64)));
    let mut i = 0;
    while i < K {
        k[i] = <Vec<E, L>>::select(first, a[i], b[i]);
        i += 1;
    }
    k
}
