//! What can be wrong with a call of this crate.

use bn_core::{Isa, Shape};
use core::fmt;

/// Why a call was refused: what, what was expected, what came.
///
/// Nothing has changed then: no output, no parameter, no statistic, no gradient. The exception is
/// [`bn_core::Error::Executor`], whose outputs are incomplete.
///
/// ```
/// use bn_core::Shape;
/// use bn_std::{BatchNormLayer, Error};
/// let mut bn = BatchNormLayer::<f32>::new(3)?;
/// let error = bn.forward(Shape::dense(4, 2)?, &[0.0; 8], None, &mut [0.0; 8]).unwrap_err();
/// assert_eq!(error, Error::Channels { expected: 3, got: 2 });
/// assert_eq!(error.to_string(), "the shape has 2 channels, expected the layer's 3");
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// What bn-core says.
    Core(bn_core::Error),
    /// The environment variable `BN_ISA` names no instruction set that this CPU has.
    Isa {
        /// Its value.
        got: String,
    },
    /// A shape has other channels than the layer.
    Channels {
        /// Channels of the layer.
        expected: usize,
        /// Channels of the shape.
        got: usize,
    },
    /// A backward pass without a forward pass in training or frozen mode before it.
    NoForward,
    /// An array of a [`State`](crate::State) holds NaN or an infinity, or a negative variance.
    Value {
        /// Which array.
        what: &'static str,
        /// The first such channel.
        channel: usize,
        /// Its value.
        got: f64,
    },
    /// The allocator has no more memory.
    Memory {
        /// Bytes that were asked for.
        bytes: usize,
    },
    /// An array of a backward pass has another shape than its forward pass had.
    Shape {
        /// The forward pass's.
        expected: Shape,
        /// The array's.
        got: Shape,
    },
    /// An array has fewer than 2 or more than 5 dimensions.
    #[cfg(feature = "ndarray")]
    Rank {
        /// Which argument.
        what: &'static str,
        /// Dimensions that it has.
        got: usize,
    },
    /// An array is not in standard (C-contiguous) layout: a transposed or sliced view, or one in
    /// Fortran order.
    #[cfg(feature = "ndarray")]
    NotStandard {
        /// Which argument.
        what: &'static str,
    },
    /// An array has other dimensions than x.
    #[cfg(feature = "ndarray")]
    Dimensions {
        /// Which argument.
        what: &'static str,
        /// Those of x.
        expected: Vec<usize>,
        /// Its own.
        got: Vec<usize>,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Core(error) => error.fmt(f),
            Error::Isa { got } => {
                write!(f, "{} is {got:?}, expected one that this CPU has:", crate::ISA_VARIABLE)?;
                for (i, isa) in Isa::available().enumerate() {
                    write!(f, "{} {}", if i > 0 { "," } else { "" }, isa.kind().name())?;
                }
                Ok(())
            }
            Error::Channels { expected, got } => {
                write!(f, "the shape has {got} channels, expected the layer's {expected}")
            }
            Error::NoForward => f.write_str(
                "there is no forward pass to go back through: call forward in training or frozen mode first",
            ),
            Error::Value { what, channel, got } => {
                let expected = if got.is_finite() { "a variance ≥ 0" } else { "a finite number" };
                write!(f, "{what} of channel {channel} is {got}, expected {expected}")
            }
            Error::Memory { bytes } => write!(f, "no memory for {bytes} bytes"),
            Error::Shape { expected, got } => {
                write!(f, "the shape is {got:?}, expected the forward pass's {expected:?}")
            }
            #[cfg(feature = "ndarray")]
            Error::Rank { what, got } => write!(f, "{what} has {got} dimensions, expected 2 to 5"),
            #[cfg(feature = "ndarray")]
            Error::NotStandard { what } => {
                write!(f, "{what} is not in standard layout (C-contiguous): copy it by as_standard_layout()")
            }
            #[cfg(feature = "ndarray")]
            Error::Dimensions { what, expected, got } => {
                write!(f, "{what} has dimensions {got:?}, expected those of x, {expected:?}")
            }
        }
    }
}

// `Core` shows its error's own message, so that error is not a `source` of this one.
impl core::error::Error for Error {}

impl From<bn_core::Error> for Error {
    fn from(error: bn_core::Error) -> Self {
        Error::Core(error)
    }
}

/// `len` times `value`, or an error where there is no memory.
pub(crate) fn filled<V: Clone>(len: usize, value: V) -> Result<Vec<V>, Error> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| Error::Memory { bytes: len.saturating_mul(size_of::<V>()) })?;
    vec.resize(len, value);
    Ok(vec)
}
