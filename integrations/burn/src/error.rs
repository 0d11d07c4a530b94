//! What can be wrong with a call.

use burn::tensor::{DType, Device};
use std::fmt;

/// Why a call was refused. Nothing has been calculated or moved.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// x has fewer than two dimensions.
    Rank {
        /// Dimensions that it has.
        got: usize,
    },
    /// x is not of floats of 16, 32 or 64 bits, or another argument is not of x's type.
    DType {
        /// Which argument.
        what: &'static str,
        /// Its type.
        got: DType,
    },
    /// A tensor is not on Flex.
    Device {
        /// Which argument.
        what: &'static str,
        /// Its device.
        got: Device,
    },
    /// What bn-core has found: lengths, epsilon, too few values for statistics.
    Core(bn_core::Error),
}

pub(crate) fn supported(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Rank { got } => write!(f, "x has {got} dimensions, expected at least 2"),
            Error::DType { what: "x", got } => write!(f, "x is of {got:?}, expected F64, F32, F16 or BF16"),
            Error::DType { what, got } => write!(f, "{what} is of {got:?}, expected x's type"),
            Error::Device { what, got } => write!(f, "{what} is on {got:?}, expected Flex"),
            Error::Core(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Core(error) => Some(error),
            _ => None,
        }
    }
}

impl From<bn_core::Error> for Error {
    fn from(error: bn_core::Error) -> Self {
        Error::Core(error)
    }
}
