//! Batch normalization in exact arithmetic: what the library's results are measured by.
//!
//! Floating-point numbers are integers times powers of two, so sums of them and of their products are
//! too, and are kept exactly ([`Sum`]). Of a channel of n values
//!
//! ```text
//! S = Σ x,  V₀ = n·Σ x² − S²,  V = V₀ + n²·ε          mean = S/n,  variance = V₀/n²
//! x̂ = (n·x − S)/√V                                     y = γ·x̂ + β + residual
//! D = n·Σ dz·x − S·Σ dz                                dγ = D/√V,  dβ = Σ dz
//! dx = γ·((n·dz − Σ dz)·V − (n·x − S)·D)/√V³
//! ```
//!
//! all of which is exact up to the last root, however much cancels. 1/√V and 1/√V³ are taken to
//! [`PRECISION`] bits, and to more where that does not settle how a result rounds; where V is the square
//! of such a number the division is exact too. So every [`Real`] is correctly rounded.
//!
//! Given statistics (inference, frozen batch normalization) are the case n = 1, S = mean,
//! V = variance + ε, with dx = γ·dz/√V.
//!
//! [`bounds`] holds the scales that errors are measured in, and the bounds; [`data`] the kinds of data
//! that break batch normalizations.

mod big;
pub mod bounds;
mod channel;
pub mod data;
#[cfg(feature = "problem")]
pub mod problem;
mod sum;

pub use big::{PRECISION, Real};
pub use channel::{Backward, Channel};
pub use sum::Sum;
