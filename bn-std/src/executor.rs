//! bn-core's calls on rayon's threads.

use bn_core::Executor;
use rayon::ThreadPool;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs the tasks of a call on a rayon thread pool: the global one, or a given one.
///
/// The number of threads changes no bit of any result. Tensors too small to gain from threads stay
/// on the calling thread; bn-core decides that.
///
/// ```
/// use bn_core::{Affine, BatchNorm, Executor, Moments, Op, Run, Shape};
/// use bn_std::Rayon;
///
/// let bn = BatchNorm::<f32>::new(Shape::nchw(2, 8, &[64, 64])?, 1e-5)?;
/// let x: Vec<f32> = (0..bn.shape().len()).map(|i| (i % 17) as f32).collect();
/// let (mut y, mut moments) = (vec![0.0; x.len()], vec![Moments::EMPTY; 8]);
///
/// let rayon = Rayon::global();
/// let mut workspace = vec![0; bn.workspace_best(Op::ForwardTraining, rayon.width())];
/// bn.forward_training(&x, None, Affine::NONE, &mut y[..], &mut moments, Run::on(&rayon, &mut workspace))?;
/// assert_eq!(moments[0].count, 2 * 64 * 64);
/// # Ok::<(), bn_core::Error>(())
/// ```
///
/// # Nested use
/// A call may be made from anywhere, also from inside the pool that it runs on: from a `par_iter`, a
/// [`rayon::join`], a [`rayon::scope`] or another pool.
/// - **From a thread outside of the pool** that thread takes part, beside all but one of the pool's;
///   the call ends when each of these has looked in, so it waits for a pool that is busy.
/// - **From a thread of the same pool** that thread takes part, and threads of the pool that have
///   nothing else to do help it. If all are busy (say, with one layer each) the calling thread does
///   everything alone, and waits for none to become free.
/// - **From a thread of another pool** it is the same as from a thread outside.
///
/// As with every use of rayon, a thread of the pool that waits for the rest of its call may meanwhile
/// run other jobs of the same pool, on top of its stack. So do not hold a lock (or a `RefCell` borrow
/// in a thread-local) across a call where another job on the pool takes it too. The library itself
/// holds none.
#[derive(Clone, Debug, Default)]
pub struct Rayon<'p> {
    pool: Pool<'p>,
}

#[derive(Clone, Debug, Default)]
enum Pool<'p> {
    #[default]
    Global,
    Borrowed(&'p ThreadPool),
    Shared(Arc<ThreadPool>),
}

impl Rayon<'static> {
    /// The global pool; on a thread that belongs to a pool, that pool, as [`rayon::join`] and all of
    /// rayon's free functions have it. So [`ThreadPool::install`] around a region chooses the pool of
    /// all that happens in it. The same as `Rayon::default()`.
    ///
    /// The global pool is started by its first use, with as many threads as `RAYON_NUM_THREADS` or
    /// [`rayon::ThreadPoolBuilder::build_global`] say, else one for each logical CPU. rayon panics
    /// where the operating system refuses the threads.
    ///
    /// ```
    /// use bn_core::Executor;
    /// use bn_std::Rayon;
    /// let rayon = Rayon::global();
    /// assert_eq!(rayon.width(), rayon::current_num_threads());
    /// let three = rayon::ThreadPoolBuilder::new().num_threads(3).build()?;
    /// assert_eq!(three.install(|| rayon.width()), 3);
    /// # Ok::<(), rayon::ThreadPoolBuildError>(())
    /// ```
    pub fn global() -> Self {
        Rayon { pool: Pool::Global }
    }

    /// A pool that is shared with others, from whichever thread the call is made. Such an executor is
    /// `'static`, as [`BatchNormLayer::with_executor`](crate::BatchNormLayer::with_executor) wants it.
    ///
    /// ```
    /// use bn_std::{BatchNormLayer, Rayon};
    /// use std::sync::Arc;
    /// let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build()?);
    /// let layer = BatchNormLayer::<f32>::new(8)?.with_executor(Rayon::shared(Arc::clone(&pool)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shared(pool: Arc<ThreadPool>) -> Self {
        Rayon { pool: Pool::Shared(pool) }
    }
}

impl<'p> Rayon<'p> {
    /// A pool of one's own, from whichever thread the call is made.
    ///
    /// ```
    /// use bn_core::Executor;
    /// use bn_std::Rayon;
    /// let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    /// assert_eq!(Rayon::on(&pool).width(), 2);
    /// # Ok::<(), rayon::ThreadPoolBuildError>(())
    /// ```
    pub fn on(pool: &'p ThreadPool) -> Self {
        Rayon { pool: Pool::Borrowed(pool) }
    }

    fn pool(&self) -> Option<&ThreadPool> {
        match &self.pool {
            Pool::Global => None,
            Pool::Borrowed(pool) => Some(pool),
            Pool::Shared(pool) => Some(pool),
        }
    }
}

impl Executor for Rayon<'_> {
    /// Threads of the pool.
    fn width(&self) -> usize {
        self.pool().map_or_else(rayon::current_num_threads, ThreadPool::current_num_threads)
    }

    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        let inside = match self.pool() {
            None => rayon::current_thread_index(),
            Some(pool) => pool.current_thread_index(),
        };
        if inside.is_some() {
            return split(tickets, task);
        }
        let ended = AtomicUsize::new(0);
        match self.pool() {
            None => rayon::in_place_scope(|s| share(s, tickets, task, &ended)),
            Some(pool) => pool.in_place_scope(|s| share(s, tickets, task, &ended)),
        }
    }
}

/// Looks so many times whether the others have ended before the thread goes to sleep, which takes
/// longer to end than most phases.
const LOOKS: usize = 20_000;

/// Runs the task so many times, once on this thread, which is none of the pool's.
fn share<'s>(scope: &rayon::Scope<'s>, tickets: usize, task: &'s (dyn Fn() + Sync), ended: &'s AtomicUsize) {
    for _ in 1..tickets {
        scope.spawn(|_| {
            task();
            ended.fetch_add(1, Ordering::Relaxed);
        });
    }
    if tickets > 0 {
        task();
    }
    for _ in 0..LOOKS {
        if ended.load(Ordering::Relaxed) + 1 >= tickets {
            break;
        }
        std::hint::spin_loop();
    }
}

/// Runs the task so many times. Halving lets several threads hand on work at once, and `join` takes
/// no memory, where each `spawn` of a scope would allocate.
fn split(tickets: usize, task: &(dyn Fn() + Sync)) {
    match tickets {
        0 => {}
        1 => task(),
        _ => {
            let half = tickets / 2;
            rayon::join(|| split(tickets - half, task), || split(half, task));
        }
    }
}
