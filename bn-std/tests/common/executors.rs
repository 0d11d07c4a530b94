//! Executors: right ones, one in reverse order, wrong ones.

use bn_core::Executor;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex};

/// One scoped thread for each ticket.
pub struct Threads(pub usize);

impl Executor for Threads {
    fn width(&self) -> usize {
        self.0
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        std::thread::scope(|s| {
            for _ in 0..tickets {
                s.spawn(task);
            }
        });
    }
}

/// One scoped thread for each ticket, which waits until those that were spawned after it have ended.
///
/// Tickets are interchangeable, and each claims the next cell until none is left: an executor chooses
/// which thread runs a ticket and when, never which cell it gets. So what is reversed is the order of
/// the threads. The last one, which is not the caller's, does all cells alone; the others find
/// nothing to do, the first spawned one last of all.
pub struct Reversed(pub usize);

impl Executor for Reversed {
    fn width(&self) -> usize {
        self.0
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        let (turn, changed) = (Mutex::new(tickets), Condvar::new());
        let (turn, changed) = (&turn, &changed);
        std::thread::scope(|s| {
            for ticket in 0..tickets {
                // The names are for those who want to see the order.
                let thread = std::thread::Builder::new().name(ticket.to_string());
                let body = move || {
                    let mut turn = changed.wait_while(turn.lock().unwrap(), |t| *t != ticket + 1).unwrap();
                    task();
                    *turn = ticket;
                    changed.notify_all();
                };
                thread.spawn_scoped(s, body).unwrap();
            }
        });
    }
}

/// All tickets at once: their threads are held until the last one has come, then race for the cells.
pub struct Rush(pub usize);

impl Executor for Rush {
    fn width(&self) -> usize {
        self.0
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        let barrier = std::sync::Barrier::new(tickets);
        std::thread::scope(|s| {
            for _ in 0..tickets {
                s.spawn(|| {
                    barrier.wait();
                    task();
                });
            }
        });
    }
}

/// On the calling thread, and writes down what it was asked for.
#[derive(Default)]
pub struct Log {
    pub width: usize,
    /// Tickets of each phase.
    pub phases: Mutex<Vec<usize>>,
}

impl Executor for Log {
    fn width(&self) -> usize {
        self.width
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        self.phases.lock().unwrap().push(tickets);
        for _ in 0..tickets {
            task();
        }
    }
}

/// Runs so many tickets more, or fewer, than it was given, once it is told to.
#[derive(Default)]
pub struct Faulty {
    pub more: isize,
    pub on: AtomicBool,
    pub phases: AtomicUsize,
}

impl Executor for &'static Faulty {
    fn width(&self) -> usize {
        2
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        self.phases.fetch_add(1, Relaxed);
        for _ in 0..tickets.saturating_add_signed(if self.on.load(Relaxed) { self.more } else { 0 }) {
            task();
        }
    }
}
