//! A pool of threads behind the C executor.

use crate::plan::caught;
use crate::types::batchnorm_executor;
use bn_core::Executor;
use bn_std::Rayon;
use core::ffi::c_void;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::boxed::Box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::vec::Vec;

/// What a handle points to: the executor, and behind it its pool.
#[repr(C)]
struct Threads {
    executor: batchnorm_executor,
    /// `None` only while it is ended.
    pool: Option<ThreadPool>,
    /// rayon does not join its threads; a library that may be unloaded must.
    handles: Vec<JoinHandle<()>>,
}

/// NULL where the threads cannot be had.
pub(crate) fn new(threads: usize) -> *const batchnorm_executor {
    let mut handles = Vec::new();
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| std::format!("batchnorm-{i}"))
        .spawn_handler(|t| {
            let mut builder = thread::Builder::new();
            if let Some(name) = t.name() {
                builder = builder.name(name.into());
            }
            handles.push(builder.spawn(|| t.run())?);
            Ok(())
        })
        .build();
    let Ok(pool) = pool else {
        join(handles);
        return core::ptr::null();
    };
    let width = pool.current_num_threads();
    let executor = batchnorm_executor { run: Some(run), ctx: core::ptr::null_mut(), width };
    let threads = Box::into_raw(Box::new(Threads { executor, pool: Some(pool), handles }));
    // SAFETY: just made, and nobody else has it.
    unsafe { (*threads).executor.ctx = threads.cast() };
    threads.cast()
}

/// # Safety
/// From [`new`], not yet freed, and not in use.
pub(crate) unsafe fn free(executor: *const batchnorm_executor) {
    // SAFETY: by the caller; the executor is the first field of what was boxed.
    let mut threads = unsafe { Box::from_raw(executor.cast_mut().cast::<Threads>()) };
    // The pool's end is the threads'.
    threads.pool = None;
    join(core::mem::take(&mut threads.handles));
}

fn join(handles: Vec<JoinHandle<()>>) {
    for h in handles {
        // rayon's threads end without a panic, or end the process.
        let _ = h.join();
    }
}

unsafe extern "C" fn run(
    ctx: *mut c_void,
    tickets: usize,
    task: unsafe extern "C" fn(*mut c_void, usize),
    arg: *mut c_void,
) {
    // SAFETY: the context is the pool's, which lives until it is freed.
    let threads = unsafe { &*ctx.cast::<Threads>() };
    let Some(pool) = &threads.pool else { return };
    let arg = Argument(arg);
    let next = AtomicUsize::new(0);
    // Tickets that are not run because of a panic (of rayon) are missed by the call.
    caught(|| {
        Rayon::on(pool).run(tickets, &|| {
            // SAFETY: each ticket once, with the argument that came with the task.
            unsafe { task(arg.get(), next.fetch_add(1, Relaxed)) };
        });
    });
}

/// A pointer that goes to other threads, as the executor's contract has it.
struct Argument(*mut c_void);

// SAFETY: what it points to is for all threads that the executor runs the task on.
unsafe impl Sync for Argument {}

impl Argument {
    fn get(&self) -> *mut c_void {
        self.0
    }
}
