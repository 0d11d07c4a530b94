//! Who runs the cells of a call.

use crate::error::Error;

/// Runs the tasks of a call, in any order, on any threads.
///
/// A call is a short list of phases; a phase is a set of independent cells of work. For each phase
/// [`run`](Executor::run) is called once with a number of tickets; each ticket claims cells until
/// none is left. Tickets are interchangeable: which thread runs which cell, and in which order,
/// changes no bit of the result.
///
/// A safe implementation cannot cause undefined behaviour, however wrong: cells are claimed from an
/// atomic counter, and a phase whose tickets did not all run exactly once is
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
/// The workspace is uninitialised memory to the library: it need not be cleared, and holds nothing
/// of use afterwards. Its size is asked of [`crate::BatchNorm::workspace_min`] and
/// [`crate::BatchNorm::workspace_best`]; any length from the minimum up gives the same bits.
pub struct Run<'a> {
    pub(crate) workspace: &'a mut [u64],
    pub(crate) executor: &'a dyn Executor,
}

impl<'a> Run<'a> {
    /// On the calling thread.
    pub fn serial(workspace: &'a mut [u64]) -> Self {
        Run { workspace, executor: &Serial }
    }

    /// On an executor.
    pub fn on(executor: &'a dyn Executor, workspace: &'a mut [u64]) -> Self {
        Run { workspace, executor }
    }

    /// How many tasks can run at once.
    pub(crate) fn width(&self) -> usize {
        if cfg!(target_has_atomic = "ptr") { self.executor.width().max(1) } else { 1 }
    }
}

/// Runs `body(cell, scratch)` for every cell, with `slot` words of scratch for each that runs at
/// once.
pub(crate) fn phase(
    executor: &dyn Executor,
    width: usize,
    cells: usize,
    scratch: &mut [u64],
    slot: usize,
    body: &(dyn Fn(usize, &mut [u64]) + Sync),
) -> Result<(), Error> {
    debug_assert!(scratch.len() >= slot);
    let slots = scratch.len().checked_div(slot).unwrap_or(width);
    let tickets = width.min(cells).min(slots);
    #[cfg(target_has_atomic = "ptr")]
    if tickets > 1 {
        return parallel(executor, tickets, cells, scratch, slot, body);
    }
    let _ = (executor, tickets);
    for cell in 0..cells {
        body(cell, scratch);
    }
    Ok(())
}

#[cfg(target_has_atomic = "ptr")]
fn parallel(
    executor: &dyn Executor,
    tickets: usize,
    cells: usize,
    scratch: &mut [u64],
    slot: usize,
    body: &(dyn Fn(usize, &mut [u64]) + Sync),
) -> Result<(), Error> {
    use core::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
    let (started, claimed, ended, done) =
        (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let base = Shared(scratch.as_mut_ptr());
    executor.run(tickets, &|| {
        let ticket = started.fetch_add(1, Relaxed);
        if ticket < tickets {
            // SAFETY: each ticket number is drawn once, so the slots are disjoint; there are
            // `tickets` of them in the scratch.
            let scratch = unsafe { core::slice::from_raw_parts_mut(base.at(ticket * slot), slot) };
            loop {
                let cell = claimed.fetch_add(1, Relaxed);
                if cell >= cells {
                    break;
                }
                body(cell, scratch);
                done.fetch_add(1, AcqRel);
            }
        }
        ended.fetch_add(1, AcqRel);
    });
    let ended = ended.load(Acquire);
    if ended == tickets && done.load(Acquire) == cells {
        Ok(())
    } else {
        Err(Error::Executor { expected: tickets, got: ended })
    }
}

/// The first `n` words and the rest. Callers have checked that there are as many.
#[inline(always)]
pub(crate) fn split(words: &mut [u64], n: usize) -> (&mut [u64], &mut [u64]) {
    debug_assert!(n <= words.len());
    // Without a path to a panic.
    words.split_at_mut_checked(n).unwrap_or_default()
}

/// A pointer to outputs whose elements different cells write.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

// SAFETY: cells write disjoint elements; see each use.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    #[inline(always)]
    pub(crate) fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }

    /// Those from element `i` on.
    pub(crate) fn from(self, i: usize) -> Self {
        Shared(self.at(i))
    }
}
