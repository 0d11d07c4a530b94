//! Maps a run of neighbouring elements: the innermost loop of every map.
//!
//! Vectors take the fast way: the formula in the element's arithmetic, nothing else. What that cannot do
//! (constants outside its range, sums that are not finite where that matters) leaves the loop and is done
//! one by one, and so is what is less than a vector. The loop itself calls nothing: with a call in it the
//! compiler kept its vectors in memory, and it ran at two thirds of the speed in cache.

use super::grid::{div, rem};
use super::{
    Channels, Compute, Vec, ask_all, deals, first, load_all, load_table, one_by_one, splat_all, store_all, stream_all,
};
use crate::dispatch::Task;
use crate::element::Element;
use crate::kernel::constants::GROUP;
use crate::kernel::{Coefficients, Line, Map};
use crate::lanes::{DEAL, Lanes, Real, Scalar, Vector, lane_of, single::Single};

type One<E> = Vec<E, Single>;

/// How the constants of a run's elements stand in memory.
#[derive(Clone, Copy)]
pub(super) struct Order {
    /// Scalars from one constant of an element to its next.
    apart: usize,
    /// Scalars from a vector's constants to the next vector's, per lane.
    scale: usize,
    /// Whether those of a vector are [dealt](deals) as its elements are.
    dealt: bool,
}

impl Order {
    /// Each constant has a row of its own, so many scalars long: a vector may start anywhere.
    #[inline(always)]
    pub(super) fn rows(apart: usize) -> Self {
        Order { apart, scale: 1, dealt: false }
    }

    /// The constants of a vector stand side by side, and vectors start where those do: one stream to read instead of
    /// `K`. Backward at 1024 channels, whose rows fill a first-level cache, is 1.4 times as fast, at 2048 1.2 times.
    #[inline(always)]
    pub(super) fn records(lanes: usize, k: usize) -> Self {
        Order { apart: lanes, scale: k, dealt: false }
    }

    /// With the constants of each vector dealt to its lanes.
    #[inline(always)]
    pub(super) fn dealt(self) -> Self {
        Order { dealt: true, ..self }
    }

    /// Those of an element stand side by side.
    #[inline(always)]
    pub(super) fn elements(k: usize) -> Self {
        Order { apart: 1, scale: k, dealt: false }
    }

    /// Whether they do.
    #[inline(always)]
    fn is_elements(&self) -> bool {
        self.apart == 1
    }

    /// Where the first constant of element `i` is.
    #[inline(always)]
    fn of(&self, i: usize) -> usize {
        if self.dealt {
            let lane = i % DEAL;
            return (i - lane) * self.scale + lane_of(lane);
        }
        if self.scale == 1 {
            return i;
        }
        let lane = rem(i, self.apart);
        (i - lane) * self.scale + lane
    }
}

/// The constants of a run.
#[derive(Clone, Copy)]
pub(super) struct Constants<E: Element, const K: usize> {
    /// Those of element 0; those of the others follow, if elements have constants of their own. NaN where they do not
    /// suffice.
    pub(super) at: *const Compute<E>,
    pub(super) order: Order,
    /// Elements after which they begin again; 0 where all elements have the same.
    pub(super) period: usize,
    /// Of which channels they are: `count` of them from `first` on, with `adjacent` elements each, in turn.
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) adjacent: usize,
    /// Whether all of them suffice.
    pub(super) safe: bool,
}

impl<E: Element, const K: usize> Constants<E, K> {
    /// Those that are read from one beginning to the next.
    #[inline(always)]
    fn bytes(&self) -> usize {
        K * self.period * size_of::<Compute<E>>()
    }

    /// Writes the constants of some channels where [`Constants::at`] reads those of as many elements; returns whether all suffice.
    ///
    /// # Safety
    /// The table is valid for writing them.
    #[inline(always)]
    pub(super) unsafe fn make<M, const I: usize, const J: usize, const O: usize>(
        op: &M,
        channels: Channels,
        table: *mut Compute<E>,
        order: Order,
    ) -> bool
    where
        M: Map<E, I, J, K, O>,
    {
        let (count, mut safe, mut c) = (channels.end - channels.first, true, 0);
        while c < count {
            let mut group = [Line::splat(Compute::<E>::ZERO); K];
            // SAFETY: by the caller: these are below the number of channels.
            unsafe {
                if c + GROUP <= count && op.group(channels.first + c, &mut group) {
                    Self::write_group(&group, table, order, c);
                    c += GROUP;
                    continue;
                }
                let end = count.min(c + GROUP);
                while c < end {
                    let k = op.coefficients(channels.first + c);
                    safe &= k.safe;
                    Self::write(&k, table, order, c);
                    c += 1;
                }
            }
        }
        safe
    }

    /// Those of one element `e`.
    ///
    /// # Safety
    /// As for [`Constants::make`].
    #[inline(always)]
    unsafe fn write(k: &Coefficients<Compute<E>, K>, table: *mut Compute<E>, order: Order, e: usize) {
        let (to, narrow) = (table.wrapping_add(order.of(e)), one_by_one(&k.narrow));
        for i in 0..K {
            // The plain NaN for any: see [`Lanes::store_bf16`].
            let suffices = k.safe && !narrow[i].to_f64().is_nan();
            // SAFETY: by the caller.
            unsafe { *to.add(i * order.apart) = if suffices { narrow[i] } else { Scalar::from_f64(f64::NAN) } };
        }
    }

    /// Those of [`GROUP`] elements from `e` on, a multiple of as many, which suffice and are not NaN.
    ///
    /// # Safety
    /// As for [`Constants::make`].
    #[inline(always)]
    unsafe fn write_group(k: &[Line<Compute<E>, GROUP>; K], table: *mut Compute<E>, order: Order, e: usize) {
        const { assert!(Compute::<E>::LANES.is_multiple_of(GROUP)) };
        let to = table.wrapping_add(order.of(e));
        // SAFETY: by the caller.
        unsafe {
            if order.is_elements() {
                for l in 0..GROUP {
                    for i in 0..K {
                        *to.add(l * K + i) = k[i][l];
                    }
                }
                return;
            }
            // They are neighbours.
            for i in 0..K {
                to.add(i * order.apart).cast::<[Compute<E>; GROUP]>().write_unaligned(*k[i]);
            }
        }
    }

    /// Where those of element `i` are.
    #[inline(always)]
    fn offset(&self, i: usize) -> usize {
        if self.period == 0 { 0 } else { rem(i, self.period) }
    }

    /// Where those of the next element are.
    #[inline(always)]
    fn next(&self, offset: usize) -> usize {
        if offset + 1 < self.period { offset + 1 } else { 0 }
    }
}

/// Bytes of a run that is mapped in streams far apart, and of one that is where that shares loads.
pub(super) const FAR: usize = 1 << 20;
pub(super) const NEAR: usize = 1 << 12;
/// Bytes of a cache line.
pub(super) const LINE: usize = 64;
/// Bytes ahead of what is worked on that lines are [asked for](Lanes::ask): of 192 to 1024 the best, or as good, for maps and sums, with
/// one input and with two (Zen 4).
pub(super) const ASKED: usize = 256;
/// Bytes of a page: the sets of a first-level cache begin again with each.
pub(super) const PAGE: usize = 4096;
/// Bytes that each of such streams has its turn for, where they go past the caches, but not line by line. So, and without asking for
/// lines ahead, stores went at two thirds of the speed, and vectors of half a line at a third (AVX2, Zen 3; constants as usual: a
/// copy does not mind).
pub(super) const TURN: usize = 1 << 10;
/// Bytes of constants that a first-level cache does not hold beside streams.
pub(super) const WIDE: usize = 32 << 10;

/// Bytes of constants from which on a run is mapped in four parts that share them: with three or fewer (one input, mostly) from less on.
pub(super) const fn shared<const K: usize>() -> usize {
    if K > 3 { WIDE } else { WIDE / 2 }
}

/// The distance of parts, at most `far` and a multiple of `unit`, with which they begin `place` further on in their pages, or nearest
/// to that. Not much less than `far`: what is left is mapped by itself.
fn apart(far: usize, unit: usize, page: usize, place: usize) -> usize {
    let (mut nearest, mut next) = (far, far);
    for _ in 0..div(page, unit).max(4) {
        if (next % page).abs_diff(place) < (nearest % page).abs_diff(place) {
            nearest = next;
        }
        if (nearest % page).abs_diff(place) <= page / 8 || next <= unit {
            break;
        }
        next -= unit;
    }
    nearest
}

/// A run of elements.
#[derive(Clone, Copy)]
pub(super) struct Elements<E, const I: usize, const O: usize> {
    pub(super) from: [*const E; I],
    pub(super) to: [*mut E; O],
    pub(super) width: usize,
}

/// [`Elements::map`] in a function of its own.
pub(super) struct MapRun<'a, E: Element, M, const I: usize, const J: usize, const K: usize, const O: usize> {
    pub(super) op: &'a M,
    pub(super) elements: Elements<E, I, O>,
    pub(super) constants: Constants<E, K>,
    pub(super) stream: bool,
}

impl<E, M, const I: usize, const J: usize, const K: usize, const O: usize> Task for MapRun<'_, E, M, I, J, K, O>
where
    E: Element,
    M: Map<E, I, J, K, O>,
{
    type Element = E;
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        // SAFETY: who made it vouches for it.
        unsafe {
            let MapRun { op, elements, constants, stream } = self;
            let ready = op.ready(lanes);
            if const { deals::<E, L>() } && constants.order.dealt {
                elements.map::<L, M, J, K, true, true>(lanes, op, &ready, &constants, stream);
            } else {
                elements.map::<L, M, J, K, true, false>(lanes, op, &ready, &constants, stream);
            }
        }
    }
}

impl<E: Element, const I: usize, const O: usize> Elements<E, I, O> {
    /// Maps them.
    ///
    /// `stream` asks for stores past the caches, in whole lines: for outputs that would not stay there,
    /// and that are no input. On one thread they gained 1.2 to 1.5 times beyond the last cache, and lose
    /// twice that within.
    ///
    /// `ROWS`: whether elements have constants of their own. With that decided in the loop, its constants were variables that
    /// registers had no room for (AVX2): 13 stores to the stack for each vector of the backward pass, which behind stores past
    /// the caches wait for those. Where a place in the table was a whole number of pages from one of them each vector
    /// waited for the memory (a tenth of the speed), elsewhere maps of backward were 1.05 to 1.3 times as slow.
    ///
    /// `DEALT`: whether lanes are [dealt](deals), and with them the constants of a table; those that all elements have are for any lane.
    ///
    /// # Safety
    /// The pointers are valid for `width` elements; an output is one of the inputs or overlaps none, and is none of them where it is
    /// streamed. The constants are there for all elements, and for a vector from each on, if the run has one, or from each that is a multiple of a vector
    /// (records, and what is dealt; then no output has a lead); their period is 0 if, and only if, not `ROWS`.
    #[inline(always)]
    pub(super) unsafe fn map<L, M, const J: usize, const K: usize, const ROWS: bool, const DEALT: bool>(
        &self,
        lanes: L,
        op: &M,
        ready: &M::Ready<Vec<E, L>>,
        k: &Constants<E, K>,
        stream: bool,
    ) where
        L: Lanes,
        M: Map<E, I, J, K, O>,
    {
        let lanes_of = <Vec<E, L>>::WIDTH;
        debug_assert!(ROWS == (k.period > 0) && k.order.dealt == (ROWS && DEALT));
        // SAFETY: the vectors lie in the run.
        unsafe {
            if self.width < lanes_of {
                return self.one_by_one::<M, J, K>(op, k, 0, self.width);
            }
            // The last vector overlaps its neighbour: it is read before anything is written, as the output
            // may be the input.
            let last = self.width - lanes_of;
            let tail = load_all::<DEALT, _, _, _>(lanes, &self.from, last);
            let lead = if stream { lead(&self.to) } else { None };
            // Such vectors of constants as the table has none of.
            debug_assert!(k.order.scale == 1 && !k.order.dealt || !ROWS || lead.unwrap_or(0) == 0);
            debug_assert!(!(ROWS && DEALT) || k.period.is_multiple_of(lanes_of));
            let mut at = 0;
            if let Some(lead) = lead
                && lead > 0
            {
                self.walk::<L, M, J, K, 1, false, ROWS, DEALT>(lanes, op, ready, k, 0, lanes_of, 0, k.offset(0));
                at = lead;
            }
            // Two halves at once, if they are far apart: they share constants, and lines are stored 1.3 times as
            // fast. Within a plane it was half as fast. Four quarters where that many constants have to come from
            // the second-level cache (backward 1.2 times as fast with 2048 channels, slower with 1536; inference 1.08 to 1.2 in cache and 1.1 to
            // 1.35 beyond with 1536 to 8192, slower with 1280: Zen 4), and past the caches where
            // a vector is a line or half of one (AVX-512; Zen 4: inference 1.2 to 1.5 times as fast as in halves by turns, backward up to 1.2, bf16, whose
            // vectors are half lines, 1.0 to 1.3 and 1.1; in cache it would take 1.2 to 1.6 times as long) or two registers are (AVX2: see
            // `walk_fast`; not where both are half a line, which on Zen 3 went at a third of the speed; on Zen 4 f16 would gain 1.1, bf16 nothing).
            let mut lines = lead.is_some() && lanes.lines() && (!lanes.ahead() || lanes_of * size_of::<E>() == LINE);
            // One where registers have no room for two, with three inputs and a mask (AVX2 in cache: 1.12 to 1.16 times as fast).
            let room = I < 3 || L::ABREAST == 4;
            // The least common multiple of a period and a vector, whose lanes are a power of two.
            let unit = k.period * (lanes_of >> k.period.trailing_zeros().min(lanes_of.trailing_zeros()));
            // Without registers for two vectors past the caches only (SSE2; in cache inference takes 1.25 times as long).
            let four = L::ABREAST > 1 || lead.is_some();
            let wide = four && k.bytes() >= shared::<K>() && div(self.width - at, 4) >= unit;
            // In cache it is the loads of constants that are shared (1.1 to 1.4 times as fast), where registers hold two vectors.
            let page = PAGE / size_of::<E>();
            let near = L::ABREAST > 1 && (const { K <= 3 } || !unit.is_multiple_of(page));
            let (mut parts, mut far);
            loop {
                parts = match (room || lead.is_some(), lines || wide) {
                    (false, _) => 1,
                    (_, false) => 2,
                    (_, true) => 4,
                };
                far = 0;
                if ROWS && parts > 1 && self.width >= if near { NEAR } else { FAR } / size_of::<E>() {
                    far = div(div(self.width - at, parts), unit) * unit;
                }
                // So many operands and constants from the same place of their pages meet in the sets of a first-level cache. Parts that
                // begin at different places are up to 1.08 times as fast in cache; where they cannot, near ones took 1.08 times as long.
                let mut place = div(page, parts);
                let ahead = lines && lanes.ahead();
                if ahead {
                    // What a period's multiples reach; two of four at the same place where rows are half a page.
                    place = place.max((unit & unit.wrapping_neg()).min(page / 2));
                }
                if (const { K > 3 } || ahead) && far > page {
                    far = apart(far, unit, page, place);
                }
                // Quarters that ask for lines ahead need it: from the same place (1024 channels) they went at 1.3 times to a third of the
                // speed of halves by turns, which are taken then.
                let on = far % page;
                if !ahead || on.min(page - on) >= page / 8 {
                    break;
                }
                lines = false;
            }
            let rest = at + parts * far;
            let whole = (self.width - rest) / lanes_of * lanes_of;
            let offset = k.offset(at);
            if !ROWS {
                // One part.
            } else if lines {
                self.walk::<L, M, J, K, 4, true, ROWS, DEALT>(lanes, op, ready, k, at, far, far, offset);
            } else if lead.is_some() {
                self.walk_streams::<L, M, J, K, ROWS, DEALT>(lanes, op, ready, k, at, far, parts);
            } else if room && wide {
                self.walk::<L, M, J, K, 4, false, ROWS, DEALT>(lanes, op, ready, k, at, far, far, offset);
            } else if room {
                self.walk::<L, M, J, K, 2, false, ROWS, DEALT>(lanes, op, ready, k, at, far, far, offset);
            }
            let offset = k.offset(rest);
            if lead.is_some() {
                self.walk::<L, M, J, K, 1, true, ROWS, DEALT>(lanes, op, ready, k, rest, whole, 0, offset);
            } else {
                self.walk::<L, M, J, K, 1, false, ROWS, DEALT>(lanes, op, ready, k, rest, whole, 0, offset);
            }
            at = rest + whole;
            if at < self.width {
                if lead.is_some() {
                    // The last vector overlaps what has been streamed, which another store may follow only behind a fence.
                    lanes.fence();
                }
                if ROWS && DEALT {
                    // The table has no vector that starts elsewhere.
                    return self.one_by_one::<M, J, K>(op, k, at, self.width);
                }
                let check = op.checked() || !k.safe;
                let constants = load::<L, E, K, ROWS>(lanes, k, k.offset(last));
                let v = M::before(ready, tail);
                let sum = op.join(v, M::formula(v, constants));
                if check && !sum.all_finite() {
                    self.one_by_one::<M, J, K>(op, k, at, self.width);
                } else {
                    store_all::<DEALT, L, E, O>(M::outputs(ready, v, sum), &self.to, last);
                }
            }
        }
    }

    /// Maps `parts` parts of `far` elements each, a whole number of vectors, that follow each other from `at` on, past the
    /// caches: some lines of each in turn.
    ///
    /// # Safety
    /// As for [`Elements::walk`].
    #[inline(always)]
    unsafe fn walk_streams<L, M, const J: usize, const K: usize, const ROWS: bool, const DEALT: bool>(
        &self,
        lanes: L,
        op: &M,
        ready: &M::Ready<Vec<E, L>>,
        k: &Constants<E, K>,
        at: usize,
        far: usize,
        parts: usize,
    ) where
        L: Lanes,
        M: Map<E, I, J, K, O>,
    {
        let (mut done, mut offset) = (0, k.offset(at));
        while done < far {
            let turn = (far - done).min(TURN / size_of::<E>());
            let mut next = offset;
            for part in 0..parts {
                // SAFETY: by the caller. Parts are a whole number of periods.
                next = unsafe {
                    self.walk::<L, M, J, K, 1, true, ROWS, DEALT>(
                        lanes,
                        op,
                        ready,
                        k,
                        at + part * far + done,
                        turn,
                        0,
                        offset,
                    )
                };
            }
            (done, offset) = (done + turn, next);
        }
    }

    /// Maps `width` elements, a whole number of vectors, from `at` on; and `S` - 1 times as many, each `far` further on,
    /// which have the same constants, those of element `offset` first. Returns the element whose constants come next.
    ///
    /// # Safety
    /// They lie in the run; those that are streamed are aligned, and no input.
    #[inline(always)]
    unsafe fn walk<
        L,
        M,
        const J: usize,
        const K: usize,
        const S: usize,
        const STREAM: bool,
        const ROWS: bool,
        const DEALT: bool,
    >(
        &self,
        lanes: L,
        op: &M,
        ready: &M::Ready<Vec<E, L>>,
        k: &Constants<E, K>,
        mut at: usize,
        width: usize,
        far: usize,
        mut offset: usize,
    ) -> usize
    where
        L: Lanes,
        M: Map<E, I, J, K, O>,
    {
        let (lanes_of, end) = (<Vec<E, L>>::WIDTH, at + width);
        while at < end {
            // SAFETY: by the caller.
            unsafe {
                (at, offset) =
                    self.walk_fast::<L, M, J, K, S, STREAM, ROWS, DEALT>(lanes, op, ready, k, at, end, far, offset);
                if at < end {
                    if const { STREAM && S > 1 } {
                        // Parts before the one that was left have been streamed, and are written once more.
                        lanes.fence();
                    }
                    for s in 0..S {
                        self.one_by_one::<M, J, K>(op, k, at + s * far, at + s * far + lanes_of);
                    }
                    at += lanes_of;
                    offset = k.offset(at);
                }
            }
        }
        offset
    }

    /// The same as far as the fast way goes; returns where that was, and whose constants come next.
    ///
    /// # Safety
    /// As for [`Elements::walk`].
    #[inline(always)]
    unsafe fn walk_fast<
        L,
        M,
        const J: usize,
        const K: usize,
        const S: usize,
        const STREAM: bool,
        const ROWS: bool,
        const DEALT: bool,
    >(
        &self,
        lanes: L,
        op: &M,
        ready: &M::Ready<Vec<E, L>>,
        k: &Constants<E, K>,
        mut at: usize,
        end: usize,
        far: usize,
        mut offset: usize,
    ) -> (usize, usize)
    where
        L: Lanes,
        M: Map<E, I, J, K, O>,
    {
        let (lanes_of, zero) = (<Vec<E, L>>::WIDTH, Vec::<E, L>::splat(lanes, Compute::<E>::ZERO));
        let check = op.checked() || !k.safe;
        let ahead = const { STREAM && S > 1 } && lanes.ahead();
        let halves = lanes_of * size_of::<E>() < LINE;
        let turns =
            const { STREAM && ROWS && S == 1 } && lanes.ahead() && (const { K > 3 } || halves || k.bytes() >= WIDE);
        let late = const { STREAM && S > 1 } && !lanes.ahead() && self.a_line_on();
        // SAFETY: by the caller.
        unsafe {
            let same = if ROWS { [zero; K] } else { load::<L, E, K, ROWS>(lanes, k, offset) };
            let (first, mut y) = (at, [[zero; O]; S]);
            while at < end {
                // As far as the constants go without beginning again.
                let left = if ROWS { (k.period - offset).next_multiple_of(lanes_of) } else { end - at };
                let stop = at + left.min(end - at);
                let mut table = k.at.add(offset * k.order.scale);
                offset += stop - at;
                while at < stop {
                    let mut constants = same;
                    if ROWS {
                        constants = load_table::<L, E, K>(lanes, table, k.order.apart);
                        table = table.wrapping_add(lanes_of * k.order.scale);
                    }
                    if ahead {
                        // One after the other: registers have no room for all. (What is streamed is no input: a vector that the fast
                        // way leaves is mapped again in all parts.) The constants of wide rows are three or five lines for one of each input, and
                        // the hardware then asks too late for the inputs, or for too little: this, and that parts share constants, makes
                        // maps of backward 1.03 to 1.5 times as fast as in halves by turns, those of forward 1.03 to 1.4 (Zen 4, 64 to 512
                        // channels, at any places of the operands in their pages).
                        let mut s = 0;
                        while s < S {
                            let from = at + s * far;
                            let v = M::before(ready, load_all::<DEALT, _, _, _>(lanes, &self.from, from));
                            ask_all(lanes, &self.from, from, ASKED);
                            let sum = op.join(v, M::formula(v, constants));
                            if check && !sum.all_finite() {
                                return (at, offset);
                            }
                            stream_all::<DEALT, L, E, O>(M::outputs(ready, v, sum), &self.to, from);
                            s += 1;
                        }
                        at += lanes_of;
                        continue;
                    }
                    let mut v = [[zero; J]; S];
                    let mut s = 0;
                    while s < S {
                        v[s] = M::before(ready, load_all::<DEALT, _, _, _>(lanes, &self.from, at + s * far));
                        s += 1;
                    }
                    if turns {
                        // Of the part's next turn: backward at 1024 channels, by turns, is 1.18 times as fast, inference at 3072 and 4096 1.1
                        // to 1.25 (at 1024, whose constants a first-level cache does hold, 0.75: Zen 4), that of bf16 at any number of
                        // channels 1.06 to 1.25 (Zen 3).
                        ask_all(lanes, &self.from, at, TURN);
                    }
                    if late && at > first {
                        self.store::<L, S, STREAM, DEALT>(y, at - lanes_of, far);
                    }
                    let mut s = 0;
                    while s < S {
                        let sum = op.join(v[s], M::formula(v[s], constants));
                        if check && !sum.all_finite() {
                            return (at, offset);
                        }
                        y[s] = M::outputs(ready, v[s], sum);
                        s += 1;
                    }
                    if !late {
                        self.store::<L, S, STREAM, DEALT>(y, at, far);
                    }
                    at += lanes_of;
                }
                if offset >= k.period {
                    offset -= k.period;
                }
            }
            if late && at > first {
                self.store::<L, S, STREAM, DEALT>(y, at - lanes_of, far);
            }
        }
        (end, offset)
    }

    /// Whether an output is about a line further on in its page than an input in its own. Stores that wait hold back loads from
    /// the same place of any page: there of the next vector, unless that has been loaded before (twice as fast).
    #[inline(always)]
    fn a_line_on(&self) -> bool {
        let mut found = false;
        for to in &self.to {
            for from in &self.from {
                let on = to.addr().wrapping_sub(from.addr()) % PAGE;
                found |= on > 0 && on <= LINE;
            }
        }
        found
    }

    /// Writes a vector to each of `S` parts.
    ///
    /// # Safety
    /// As for [`Elements::walk`].
    #[inline(always)]
    unsafe fn store<L: Lanes, const S: usize, const STREAM: bool, const DEALT: bool>(
        &self,
        y: [[Vec<E, L>; O]; S],
        at: usize,
        far: usize,
    ) {
        let mut s = 0;
        while s < S {
            // SAFETY: by the caller.
            unsafe {
                if STREAM {
                    stream_all::<DEALT, L, E, O>(y[s], &self.to, at + s * far);
                } else {
                    store_all::<DEALT, L, E, O>(y[s], &self.to, at + s * far);
                }
            }
            s += 1;
        }
    }

    /// Maps elements `at..end` one by one: the same code on every ISA.
    ///
    /// # Safety
    /// They lie in the run.
    #[inline(never)]
    pub(super) unsafe fn one_by_one<M, const J: usize, const K: usize>(
        &self,
        op: &M,
        k: &Constants<E, K>,
        at: usize,
        end: usize,
    ) where
        M: Map<E, I, J, K, O>,
    {
        let lane = Single::BASE;
        let (check, ready) = (op.checked() || !k.safe, op.ready::<One<E>>(lane));
        let mut offset = k.offset(at);
        for e in at..end {
            // SAFETY: by the caller.
            unsafe {
                let constants = load_table::<Single, E, K>(lane, k.at.add(k.order.of(offset)), k.order.apart);
                let v = M::before(&ready, load_all::<false, _, _, _>(lane, &self.from, e));
                let mut sum = op.join(v, M::formula(v, constants));
                let mut first = None;
                if check && !One::<E>::all(sum.finite()) {
                    let channel = k.first + rem(div(offset, k.adjacent), k.count);
                    first = again(op, v, &mut sum, &op.coefficients(channel));
                }
                let mut y = M::outputs(&ready, v, sum);
                y[0] = first.unwrap_or(y[0]);
                store_all::<false, Single, E, O>(y, &self.to, e);
            }
            offset = k.next(offset);
        }
    }
}

/// The constants of a vector.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn load<L: Lanes, E: Element, const K: usize, const ROWS: bool>(
    lanes: L,
    k: &Constants<E, K>,
    offset: usize,
) -> [Vec<E, L>; K] {
    if ROWS {
        // SAFETY: by the caller.
        return unsafe { load_table::<L, E, K>(lanes, k.at.add(offset * k.order.scale), k.order.apart) };
    }
    let mut narrow = [Compute::<E>::ZERO; K];
    for i in 0..K {
        // SAFETY: by the caller.
        narrow[i] = unsafe { *k.at.add(i * k.order.apart) };
    }
    splat_all(lanes, &narrow)
}

/// The sum of an element again, in f64, where its constants ask for that; and its first output, from beyond the range of
/// its arithmetic, where the sum is not finite and what follows it may bring it back.
#[cold]
#[inline(never)]
pub(super) fn again<E, M, const I: usize, const J: usize, const K: usize, const O: usize>(
    op: &M,
    v: [One<E>; J],
    sum: &mut One<E>,
    k: &Coefficients<Compute<E>, K>,
) -> Option<One<E>>
where
    E: Element,
    M: Map<E, I, J, K, O>,
{
    let lane = Single::BASE;
    let mut values = [Compute::<E>::ZERO; J];
    for j in 0..J {
        values[j] = first(v[j]);
    }
    if (!M::EXACT || k.safe)
        && let Some(again) = op.beyond(values, k.narrow)
    {
        return op.checked().then(|| One::<E>::splat(lane, again));
    }
    if !M::EXACT {
        return None;
    }
    let mut x = [0.0; J];
    for j in 0..J {
        x[j] = values[j].to_f64();
    }
    let z = M::formula(x, k.wide);
    if !k.safe {
        *sum = op.join(v, One::<E>::constant(lane, z));
    }
    let beyond = op.checked() && !One::<E>::all(sum.finite());
    beyond.then(|| One::<E>::constant(lane, M::outputs(&op.ready(()), x, op.join(x, z))[0]))
}

/// Elements up to the first whole vector that may be streamed, if all outputs agree on it.
#[inline(always)]
pub(super) fn lead<E: Element, const O: usize>(to: &[*mut E; O]) -> Option<usize> {
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
