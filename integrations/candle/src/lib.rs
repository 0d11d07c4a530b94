#![doc = include_str!("../README.md")]

mod layer;
mod op;
mod view;

pub use bn_core::{Moments, RunningStats};
pub use layer::BatchNorm;
pub use op::{inference, training};

use candle_core::Error;

/// As in candle's messages.
const NAME: &str = "batch-norm";

/// The error itself stays there to be downcast; candle prints that one's `Debug`, so the text comes with it.
fn wrap(error: bn_core::Error) -> Error {
    let context = format!("{NAME}: {error}");
    Error::WrappedContext { wrapped: Box::new(error), context }.bt()
}
