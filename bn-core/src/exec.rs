//! Who runs the cells of a call.

use crate::error::Error;
#[cfg(target_has_atomic = "ptr")]
use crate::layout::grid::{part, rem};
#[cfg(target_has_atomic = "ptr")]
use crate::tasks::Only;
use core::marker::PhantomData;
use core::num::NonZero;
#[cfg(target_has_atomic = "ptr")]
use core::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

/// Runs the tasks of a call, in any order, on any threads.
///
/// A call is a short list of phases; a phase is a set of independent cells of work. For each phase
/// that has work for more than one thread [`run`](Executor::run) is called once with a number of tickets; each ticket
/// claims cells until none is left. Tickets are interchangeable: which thread runs which cell, and in which order,
/// changes no bit of the result.
///
/// A safe implementation cannot cause undefined behaviour, however wrong: cells are claimed from
/// atomic counters, and a phase whose tickets did not all run exactly once is
/// [`Error::Executor`]. On targets without compare-and-swap every executor is treated as
/// [`Serial`].
///
/// ```
/// use bn_core::Executor;
/// /// One scoped thread per ticket.
/// struct Threads(usize);
/// impl Executor for Threads {
///     fn width(&self) -> usize {
///         self.0
///     }
///     fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
///         std::thread::scope(|s| {
///             for _ in 0..tickets {
///                 s.spawn(task);
///             }
///         });
///     }
/// }
/// ```
pub trait Executor: Sync {
    /// How many tickets can usefully run at once; 1 means the calling thread.
    fn width(&self) -> usize;
    /// Calls `task` exactly `tickets` times and returns when all calls have.
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync));
}

/// The calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Executor for Serial {
    fn width(&self) -> usize {
        1
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        for _ in 0..tickets {
            task();
        }
    }
}

/// What a call may use: workspace, and an executor.
///
/// The workspace is uninitialised memory to the library, in words of 8 bytes: it need not be cleared, and holds nothing
/// of use afterwards, so one may serve call after call. One that is too short is [`Error::Workspace`]. Its size is asked of [`crate::BatchNorm::workspace_min`] and
/// [`crate::BatchNorm::workspace_best`]; any length from the minimum up gives the same bits.
pub struct Run<'a> {
    workspace: Shared<u64>,
    words: usize,
    /// Tasks that can run at once.
    width: usize,
    pass: Pass,
    #[cfg(target_has_atomic = "ptr")]
    context: Context<'a>,
    life: PhantomData<&'a mut [u64]>,
}

/// What each cell of a phase does, with scratch. Here and elsewhere no `dyn Fn`, whose table has the code of a closure
/// twice: for `FnOnce` as well.
pub(crate) trait Body: Sync {
    fn run(&self, cell: usize, scratch: &mut [u64]);
}

impl<F: Fn(usize, &mut [u64]) + Sync> Body for F {
    #[inline(always)]
    fn run(&self, cell: usize, scratch: &mut [u64]) {
        self(cell, scratch);
    }
}

/// That the executor failed, which is all that can go wrong once everything has been checked: [`Error::Executor`] in two
/// registers, where an `Error` would be on the stack of all that pass it on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed {
    /// One more than the tickets that should have run: with a value to spare, a `Result` is no larger than this.
    past: NonZero<usize>,
    got: usize,
}

impl From<Failed> for Error {
    fn from(Failed { past, got }: Failed) -> Error {
        Error::Executor { expected: past.get() - 1, got }
    }
}

/// How a phase is run. The address of a function, not a `match`: so firmware that calls on its only thread does not link
/// what the others need (400 bytes).
///
/// # Safety
/// The workspace has a slot for each ticket of the phase, and the run uses it alone.
type Pass = unsafe fn(&Run<'_>, Phase, &dyn Body) -> Result<(), Failed>;

/// What a [`Pass`] takes.
#[cfg(target_has_atomic = "ptr")]
#[derive(Clone, Copy)]
enum Context<'a> {
    None,
    Executor(&'a dyn Executor),
    Only(&'a Only<'a>),
}

impl<'a> Run<'a> {
    /// On the calling thread.
    ///
    /// ```
    /// use bn_core::{BatchNorm, Op, Run, Shape};
    /// let bn = BatchNorm::<f32>::new(Shape::nchw(8, 64, &[14, 14])?, 1e-5)?;
    /// // One for all of a plan's operations.
    /// let words = [Op::ForwardTraining, Op::Inference, Op::Backward].map(|op| bn.workspace_best(op, 1));
    /// let mut workspace = vec![0u64; words.into_iter().max().unwrap_or(0)];
    /// let run = Run::serial(&mut workspace);
    /// # drop(run);
    /// # Ok::<(), bn_core::Error>(())
    /// ```
    pub fn serial(workspace: &'a mut [u64]) -> Self {
        Run {
            words: workspace.len(),
            workspace: Shared(workspace.as_mut_ptr()),
            width: 1,
            pass: one_by_one,
            #[cfg(target_has_atomic = "ptr")]
            context: Context::None,
            life: PhantomData,
        }
    }

    /// On an executor.
    pub fn on(executor: &'a dyn Executor, workspace: &'a mut [u64]) -> Self {
        #[cfg(not(target_has_atomic = "ptr"))]
        let _ = executor;
        Run {
            #[cfg(target_has_atomic = "ptr")]
            width: executor.width().max(1),
            #[cfg(target_has_atomic = "ptr")]
            pass: by_tickets,
            #[cfg(target_has_atomic = "ptr")]
            context: Context::Executor(executor),
            ..Run::serial(workspace)
        }
    }

    /// One phase of a call, of which so many tasks run at once.
    ///
    /// # Safety
    /// The workspace is valid for as long as this lives, and nothing else uses it but other runs of the
    /// same phase.
    #[cfg(target_has_atomic = "ptr")]
    pub(crate) unsafe fn only(workspace: Shared<u64>, words: usize, width: usize, only: &'a Only<'a>) -> Self {
        Run { workspace, words, width: width.max(1), pass: only_one, context: Context::Only(only), life: PhantomData }
    }

    /// Words of workspace.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// How many tasks can run at once.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Keeps the first words of the workspace: what runs from now on has the rest.
    pub(crate) fn keep(&mut self, words: usize) -> Shared<u64> {
        debug_assert!(words <= self.words);
        let kept = self.workspace;
        (self.workspace, self.words) = (kept.from(words), self.words.saturating_sub(words));
        kept
    }

    /// Gives back what was kept last.
    pub(crate) fn give_back(&mut self, words: usize) {
        (self.workspace, self.words) = (Shared(self.workspace.0.wrapping_sub(words)), self.words + words);
    }

    /// Runs `body(cell, scratch)` for every cell, with `slot` words of scratch for each that runs at
    /// once.
    pub(crate) fn phase<F>(&mut self, width: usize, cells: usize, slot: usize, body: &F) -> Result<(), Failed>
    where
        F: Fn(usize, &mut [u64]) + Sync,
    {
        debug_assert!(self.words >= slot);
        let slots = if width > 1 { self.words.checked_div(slot).unwrap_or(width) } else { 1 };
        let phase = Phase { tickets: width.min(cells).min(slots), cells, slot };
        // SAFETY: there are that many slots in the workspace; a run is not shared.
        unsafe { (self.pass)(self, phase, body) }
    }

    /// A phase of one cell without scratch: what has to happen once, between others.
    pub(crate) fn once(&mut self, body: &(impl Fn() + Sync)) -> Result<(), Failed> {
        self.phase(1, 1, 0, &|_, _| body())
    }
}

/// One cell after the other.
///
/// # Safety
/// As for [`Pass`].
unsafe fn one_by_one(run: &Run<'_>, phase: Phase, body: &dyn Body) -> Result<(), Failed> {
    // SAFETY: by the caller.
    let scratch = unsafe { core::slice::from_raw_parts_mut(run.workspace.0, phase.slot) };
    for i in 0..phase.cells {
        body.run(in_order(i, phase.cells), scratch);
    }
    Ok(())
}

/// By the tickets of an executor, if there is work for more than one.
///
/// # Safety
/// As for [`Pass`].
#[cfg(target_has_atomic = "ptr")]
unsafe fn by_tickets(run: &Run<'_>, phase: Phase, body: &dyn Body) -> Result<(), Failed> {
    // SAFETY: by the caller.
    unsafe {
        match run.context {
            Context::Executor(executor) if phase.tickets > 1 => {
                let (progress, workspace) = (Progress::default(), run.workspace);
                executor.run(phase.tickets, &|| progress.ticket(phase, workspace, body));
                progress.check(phase)
            }
            _ => one_by_one(run, phase, body),
        }
    }
}

/// The one phase that is wanted.
///
/// # Safety
/// As for [`Pass`].
#[cfg(target_has_atomic = "ptr")]
unsafe fn only_one(run: &Run<'_>, phase: Phase, body: &dyn Body) -> Result<(), Failed> {
    if let Context::Only(only) = run.context {
        // SAFETY: by the caller.
        unsafe { only.pass(phase, run.workspace, body) };
    }
    Ok(())
}

/// How a phase is cut.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Phase {
    #[cfg_attr(not(target_has_atomic = "ptr"), allow(dead_code, reason = "there is one"))]
    pub(crate) tickets: usize,
    pub(crate) cells: usize,
    /// Words of scratch for each ticket.
    pub(crate) slot: usize,
}

/// Ranges that the cells of a phase are cut into at most, one for each ticket: a thread that starts
/// with the same cells in every phase finds them in its cache.
#[cfg(target_has_atomic = "ptr")]
const RANGES: usize = if cfg!(target_os = "none") { 1 } else { 32 };

/// How far a phase has come.
#[cfg(target_has_atomic = "ptr")]
#[derive(Debug)]
pub(crate) struct Progress {
    started: AtomicUsize,
    /// Cells of each range that have been claimed.
    claimed: [AtomicUsize; RANGES],
    ended: AtomicUsize,
    done: AtomicUsize,
}

#[cfg(target_has_atomic = "ptr")]
impl Default for Progress {
    fn default() -> Self {
        let zero = || AtomicUsize::new(0);
        Progress { started: zero(), claimed: core::array::from_fn(|_| zero()), ended: zero(), done: zero() }
    }
}

#[cfg(target_has_atomic = "ptr")]
impl Progress {
    /// Claims cells until none is left.
    ///
    /// # Safety
    /// From `base` on there is a slot for each ticket, which nothing but tickets of this phase uses.
    pub(crate) unsafe fn ticket(&self, phase: Phase, base: Shared<u64>, body: &dyn Body) {
        // Not counted once all are drawn: an executor that goes on calling until the counter comes round would draw the first again.
        let drawn = self.started.fetch_update(Relaxed, Relaxed, |n| (n < phase.tickets).then_some(n + 1));
        if let Ok(ticket) = drawn {
            // SAFETY: each ticket number is drawn once, so the slots are disjoint.
            let scratch = unsafe { core::slice::from_raw_parts_mut(base.at(ticket * phase.slot), phase.slot) };
            // A range of its own first, then what is left of the others'.
            let ranges = phase.tickets.min(RANGES);
            for r in 0..ranges {
                let range = rem(ticket + r, ranges);
                let (first, end) = (part(phase.cells, ranges, range), part(phase.cells, ranges, range + 1));
                while let Some(claimed) = self.claimed.get(range) {
                    let cell = first + claimed.fetch_add(1, Relaxed);
                    if cell >= end {
                        break;
                    }
                    body.run(in_order(cell, phase.cells), scratch);
                    self.done.fetch_add(1, AcqRel);
                }
            }
        }
        self.ended.fetch_add(1, AcqRel);
    }

    /// Whether every ticket ran once, and every cell.
    pub(crate) fn check(&self, phase: Phase) -> Result<(), Failed> {
        let ended = self.ended.load(Acquire);
        if ended == phase.tickets && self.done.load(Acquire) == phase.cells {
            return Ok(());
        }
        Err(Failed { past: NonZero::<usize>::MIN.saturating_add(phase.tickets), got: ended })
    }
}

/// The cell that comes `i`th.
#[cfg(not(test))]
fn in_order(i: usize, _: usize) -> usize {
    i
}
#[cfg(test)]
use tests::in_order;

/// A pointer to outputs whose elements different cells write.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

// SAFETY: cells write disjoint elements; see each use.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// No outputs.
    pub(crate) const NULL: Self = Shared(core::ptr::null_mut());

    /// Whether there are any.
    pub(crate) fn is_some(&self) -> bool {
        !self.0.is_null()
    }

    #[inline(always)]
    pub(crate) fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }

    /// Sets the first `n` elements.
    ///
    /// # Safety
    /// They are valid for writing, and no other thread uses them.
    pub(crate) unsafe fn fill(&self, v: T, n: usize)
    where
        T: Copy,
    {
        for i in 0..n {
            // SAFETY: by the caller.
            unsafe { *self.at(i) = v };
        }
    }

    /// Those from element `i` on.
    pub(crate) fn from(self, i: usize) -> Self {
        Shared(self.at(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Affine, BackwardInput, BatchNorm, Gradients, Moments, Op, Shape, Statistics};
    use std::sync::atomic::AtomicBool;
    use std::{vec, vec::Vec};

    /// No other test's results depend on it.
    static REVERSED: AtomicBool = AtomicBool::new(false);

    pub(super) fn in_order(i: usize, cells: usize) -> usize {
        if REVERSED.load(Relaxed) { cells - 1 - i } else { i }
    }

    /// Two at a time, one after the other.
    struct Two;
    impl Executor for Two {
        fn width(&self) -> usize {
            2
        }
        fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
            (0..tickets).for_each(|_| task());
        }
    }

    /// The bits of all results.
    fn run(shape: Shape, executor: &dyn Executor) -> Vec<u64> {
        let bn = BatchNorm::<f32>::new(shape, 1e-5).unwrap();
        let values = |seed: u64| -> Vec<f32> {
            let hash = |i: u64| (i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            (0..shape.len() as u64).map(|i| 100.0 + hash(i) as f32 * 1e-6).collect()
        };
        let (x, dy, c) = (values(1), values(2), shape.channels());
        let (mut y, mut dx, mut dgamma, mut moments) = (x.clone(), x.clone(), vec![0.0; c], vec![Moments::EMPTY; c]);
        let mut workspace = vec![0; bn.workspace_best(Op::Backward, 2).max(bn.workspace_best(Op::ForwardTraining, 2))];
        let on = Run::on(executor, &mut workspace);
        bn.forward_training(&x, None, Affine::NONE, &mut y[..], &mut moments, on).unwrap();
        let input = BackwardInput { x: &x, y: None, dy: &dy, gamma: None, statistics: Statistics::Batch(&moments) };
        let output = Gradients { dx: Some((&mut dx[..]).into()), dgamma: Some(&mut dgamma), ..Default::default() };
        bn.backward(input, output, Run::on(executor, &mut workspace)).unwrap();
        let moments = moments.iter().flat_map(|m| [m.mean.to_bits(), m.m2.to_bits()]);
        y.iter().chain(&dx).chain(&dgamma).map(|v| u64::from(v.to_bits())).chain(moments).collect()
    }

    #[test]
    fn the_order_of_cells_changes_no_bit() {
        for shape in [
            Shape::nchw(3, 20, &[40, 41]),
            Shape::nhwc(3, 20, &[40, 41]),
            Shape::nchw(1, 2, &[300, 301]),
            Shape::nhwc(999, 77, &[]),
            Shape::nhwc(9, 3, &[70, 71]),
            Shape::nchw(64, 70, &[7, 7]),
        ] {
            let shape = shape.unwrap();
            let forwards = run(shape, &Serial);
            REVERSED.store(true, Relaxed);
            let (serial, shared) = (run(shape, &Serial), run(shape, &Two));
            REVERSED.store(false, Relaxed);
            assert!(serial == forwards && shared == forwards, "{shape:?}");
        }
    }
}
