//! Batch normalization for programs with an operating system: threads, and a layer that owns its
//! parameters and statistics, on the kernels of [`bn_core`].
//!
//! - [`Rayon`] runs bn-core's calls on a rayon thread pool. The number of threads changes no bit of
//!   any result.
//! - [`BatchNormLayer`] owns gamma, beta, their gradients, the running statistics, and the workspace;
//!   its [`State`] has the names of PyTorch's `state_dict`.
//! - [`isa()`](fn@isa) reads the environment variable `BN_ISA`, which forces an instruction set.
//!
//! ```
//! use bn_core::Shape;
//! use bn_std::{BatchNormLayer, Mode};
//!
//! let mut bn = BatchNormLayer::<f32>::new(2)?;
//! // Two positions of two channels: 1 and 3, 10 and 30.
//! let (x, mut y) = ([1.0, 10.0, 3.0, 30.0], [0.0; 4]);
//! bn.forward(Shape::nhwc(1, 2, &[2])?, &x, None, &mut y)?;
//! assert!((y[0] + 1.0).abs() < 1e-4 && (y[2] - 1.0).abs() < 1e-4);
//! assert_eq!(bn.running_mean(), [0.2, 2.0]);
//!
//! bn.set_mode(Mode::Inference);
//! bn.forward(Shape::nhwc(1, 2, &[2])?, &x, None, &mut y)?;
//! # Ok::<(), bn_std::Error>(())
//! ```
//!
//! # Features
//! None is on by default; then the dependencies are bn-core and rayon.
//! - `serde`: [`State`] is `Serialize` and `Deserialize`.
//! - `half`: tensors of f16 and bf16, from the crate `half`; parameters and statistics are f32 then.
//! - `ndarray`: the layer's `forward_array` and `backward_array` take arrays of 2 to 5 dimensions.

mod error;
mod executor;
mod isa;
mod layer;
#[cfg(feature = "ndarray")]
mod ndarray;
mod state;

pub use error::Error;
pub use executor::Rayon;
pub use isa::{ISA_VARIABLE, isa};
pub use layer::{BatchNormLayer, Mode};
pub use state::State;
