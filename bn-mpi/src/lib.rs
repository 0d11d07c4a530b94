//! Batch normalization whose statistics are those of all ranks' batches ("synchronized", SyncBatchNorm),
//! over MPI, on the kernels of [`bn_core`].
//!
//! In data-parallel training each rank sees a shard of the batch. [`SyncBatchNorm`] normalizes by the
//! statistics of the whole batch: local moments, one exchange of the whole channel vector, normalize;
//! and backward: local sums, one exchange, apply.
//!
//! 1. **The same bits on every rank, and from run to run.** Shards are merged in the order of the ranks,
//!    so nothing depends on how the MPI library reduces. Ranks may differ in ISA and threads. The result
//!    depends on how the batch is cut into shards only as far as f64 rounds.
//! 2. **Shards may be unequal, and empty.**
//! 3. **A rank that errs is reported on every rank**, by the same typed [`Error`], whether its arguments
//!    are wrong or it brings other settings than the others. It takes part in the exchange all the same:
//!    nobody hangs.
//!
//! ```
//! use bn_core::{Affine, Shape};
//! use bn_mpi::{Inputs, Outputs, ParameterGradients, Settings, SyncBatchNorm};
//!
//! let universe = mpi::initialize().unwrap();
//! let world = universe.world();
//! // 2 channels, channels last. Every rank says the same.
//! let mut bn = SyncBatchNorm::<f32>::new(&world, Settings::new(2))?;
//!
//! // This rank's shard: two rows.
//! let shape = Shape::dense(2, 2)?;
//! let x = [1.0, 10.0, 3.0, 30.0];
//! let mut y = [0.0; 4];
//! bn.forward(shape, &x, None, Affine::NONE, &mut y)?;
//!
//! let (dy, mut dx) = ([1.0, 0.0, 0.0, 1.0], [0.0; 4]);
//! let inputs = Inputs { x: &x, y: None, dy: &dy, gamma: None };
//! bn.backward(inputs, Outputs { dx: Some(&mut dx), ..Outputs::default() }, ParameterGradients::OfThisRank)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Order of calls
//! `new`, `forward` and `backward` are collective: every rank of the communicator calls them, in the same
//! order, also a rank whose shard is empty. A rank that calls another of them, or the same of another layer,
//! is an error on all ranks (but see [`Settings::without_call_check`]). What no message can tell: a rank that does not call at all leaves the others
//! waiting, as with any collective call of MPI.
//!
//! # Messages
//! A pass exchanges 16 bytes per rank first, a checksum of the call and the number of values, so that
//! nothing but the same call sends anything longer; then 16 bytes per rank and channel: mean and M2, or
//! Σdy and Σdy·(x − mean). See [`Exchange`] and [`Settings::without_call_check`]; what it costs is
//! measured in the README and modelled in docs/cost.md.
//!
//! # Panics of a rank
//! A panic that unwinds drops [`mpi::environment::Universe`], whose `MPI_Finalize` may wait for the other
//! ranks forever. Call [`abort_on_panic`] once, or build with `panic = "abort"`.
//!
//! # Threads
//! MPI is called only from the thread that calls `forward` or `backward`. With an executor of several
//! threads initialize MPI by `mpi::initialize_with_threading(Threading::Funneled)`.

mod error;
mod exchange;
mod header;
mod layer;
mod settings;

pub use error::{Error, Problem, Setting};
pub use exchange::Exchange;
pub use layer::{Inputs, Outputs, ParameterGradients, SyncBatchNorm};
pub use settings::Settings;

/// Makes a panic of this rank end all ranks: after the panic's message it calls `MPI_Abort`.
///
/// Otherwise a rank that unwinds waits in `MPI_Finalize` for ranks that wait for it.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        // Before MPI_Init and after MPI_Finalize there is nothing to abort, and it may not be called.
        if mpi::environment::is_initialized() && !mpi::environment::is_finalized() {
            use mpi::traits::Communicator;
            mpi::topology::SimpleCommunicator::world().abort(101);
        }
    }));
}

/// The README's snippets, as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
