//! An engine's own threads: what an `Executor` is, what it may do, and what happens if it is wrong.
//!
//! ```text
//! cargo run --release --example executors
//! ```
//!
//! A call of bn-core is a few phases; for each the executor is given a number of tickets, all of the
//! same task. A ticket claims cells of work until none is left. The executor decides on which threads
//! and in which order tickets run, and changes no bit of the result by that. What it must do is to run
//! the task exactly as often as it was told.

use anyhow::{Result, ensure};
use bn_core::{Executor, Serial, Shape};
use bn_std::{BatchNormLayer, Error, Rayon};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};

/// The simplest: a scoped thread for each ticket. An engine hands the tickets to its job system
/// instead, and waits for them.
struct ScopedThreads(usize);

impl Executor for ScopedThreads {
    fn width(&self) -> usize {
        self.0
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| {
            // The calling thread takes one itself, rather than sleep.
            for _ in 1..tickets {
                scope.spawn(task);
            }
            task();
        });
    }
}

/// As a job system might that puts jobs on a stack: what came last runs first, and one at a time.
///
/// The thread of the last ticket then finds all cells unclaimed and does them all; those of the
/// earlier tickets come too late for any. That is legal, only slow.
struct LastFirst(usize);

impl Executor for LastFirst {
    fn width(&self) -> usize {
        self.0
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        let (to_run, changed) = (&Mutex::new(tickets), &Condvar::new());
        std::thread::scope(|scope| {
            for ticket in 0..tickets {
                scope.spawn(move || {
                    let guard = to_run.lock().expect("no task panics");
                    let mut to_run = changed.wait_while(guard, |left| *left != ticket + 1).expect("no task panics");
                    task();
                    *to_run = ticket;
                    changed.notify_all();
                });
            }
        });
    }
}

/// Wrong: loses a ticket, as a job queue that is full might.
struct Drops;

impl Executor for Drops {
    fn width(&self) -> usize {
        4
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        ScopedThreads(4).run(tickets - 1, task);
    }
}

/// Wrong: runs a ticket twice, as a job system that retries might.
struct Doubles;

impl Executor for Doubles {
    fn width(&self) -> usize {
        4
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        ScopedThreads(4).run(tickets, task);
        task();
    }
}

/// Any executor, with a count of what it was asked for.
struct Counted<E> {
    inner: E,
    phases: AtomicUsize,
    tickets: AtomicUsize,
}

impl<E: Executor> Executor for &'static Counted<E> {
    fn width(&self) -> usize {
        self.inner.width()
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        self.phases.fetch_add(1, Relaxed);
        self.tickets.fetch_add(tickets, Relaxed);
        self.inner.run(tickets, task);
    }
}

/// y and dx of a training step with this seed on a 4 × 3 × 128 × 128 tensor, and both gradients.
fn step(executor: impl Executor + Send + 'static, seed: usize) -> Result<Vec<f32>, Error> {
    let shape = Shape::nchw(4, 3, &[128, 128])?;
    let x: Vec<f32> = (0..shape.len()).map(|i| ((i + seed) * 7919 % 1009) as f32).collect();
    let dy: Vec<f32> = (0..shape.len()).map(|i| ((i + seed) * 104_729 % 997) as f32 - 498.0).collect();
    let (mut y, mut dx) = (vec![0.0; shape.len()], vec![0.0; shape.len()]);
    let mut bn = BatchNormLayer::new(shape.channels())?.with_executor(executor);
    bn.forward(shape, &x, None, &mut y[..])?;
    bn.backward(&x, None, &dy, Some(dx.as_mut_slice().into()), None)?;
    y.extend(dx);
    y.extend(bn.grad_gamma().into_iter().chain(bn.grad_beta()).flatten());
    Ok(y)
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|v| v.to_bits())
}

/// Runs a step and compares it with one thread's.
fn compare<E: Executor + Send + 'static>(name: &str, executor: E, expected: &[f32]) -> Result<()> {
    // A layer wants its executor for as long as it lives; an engine's is usually a static.
    let counted: &'static _ =
        Box::leak(Box::new(Counted { inner: executor, phases: AtomicUsize::new(0), tickets: AtomicUsize::new(0) }));
    let got = step(counted, 0)?;
    ensure!(bits(&got).eq(bits(expected)), "{name}: not the bits of one thread");
    let (phases, tickets) = (counted.phases.load(Relaxed), counted.tickets.load(Relaxed));
    println!("{name:<28} the bits of one thread ({phases} phases, {tickets} tickets)");
    Ok(())
}

/// Runs a step that has to fail.
fn refuse(name: &str, executor: impl Executor + Send + 'static) -> Result<()> {
    match step(executor, 0) {
        Err(error @ Error::Core(bn_core::Error::Executor { .. })) => {
            println!("{name:<28} refused: {error}");
            Ok(())
        }
        other => anyhow::bail!("{name}: expected Error::Executor, got {other:?}"),
    }
}

fn main() -> Result<()> {
    let expected = step(Serial, 0)?;
    compare("scoped threads, 2", ScopedThreads(2), &expected)?;
    compare("scoped threads, 7", ScopedThreads(7), &expected)?;
    compare("last ticket first, 7", LastFirst(7), &expected)?;
    compare("rayon, global pool", Rayon::global(), &expected)?;
    refuse("a ticket dropped", Drops)?;
    refuse("a ticket doubled", Doubles)?;

    // Two layers inside one parallel region of a pool, on which each runs its own tasks too. A thread
    // that has nothing else to do helps; nobody waits for a free one.
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(3).build()?);
    let on_pool = || Rayon::shared(Arc::clone(&pool));
    let (one, two) = pool.install(|| rayon::join(|| step(on_pool(), 0), || step(on_pool(), 1)));
    ensure!(bits(&one?).eq(bits(&expected)) && bits(&two?).eq(bits(&step(Serial, 1)?)), "nested: not the same bits");
    println!("{:<28} the bits of one thread, both", "two layers in rayon::join");
    Ok(())
}
