//! What can be wrong with a call. Every check is made before anything is written.

use crate::activation::Activation;
use crate::shape::Stride;
use core::fmt;

/// Why a call was refused: what, what was expected, what came. Nothing has been written, except
/// for [`Error::Executor`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A slice has the wrong length.
    Length {
        /// Which argument.
        what: &'static str,
        /// Elements that it should have; at least, where it has been given strides.
        expected: usize,
        /// Elements that it has.
        got: usize,
    },
    /// A shape has no channels.
    NoChannels,
    /// A tensor has too few dimensions.
    Rank {
        /// Dimensions that it needs at least.
        expected: usize,
        /// Dimensions that it has.
        got: usize,
    },
    /// batch × channels × spatial is more than memory can hold (`isize::MAX` bytes).
    ShapeOverflow,
    /// An operand's strides make its elements overlap, or reach beyond the address space.
    Stride {
        /// Which operand.
        what: &'static str,
        /// Its strides.
        got: Stride,
    },
    /// A call in place was made on a plan whose input and output have different strides.
    InPlaceStrides {
        /// The input's strides.
        input: Stride,
        /// The output's strides.
        output: Stride,
    },
    /// Epsilon is negative, infinite or NaN.
    Epsilon {
        /// The value.
        got: f64,
    },
    /// Momentum is outside 0 … 1, or NaN.
    Momentum {
        /// The value.
        got: f64,
    },
    /// An activation's parameters make no sense: a slope that is negative, or infinite in the parameters' type; lo > hi; NaN.
    Activation {
        /// The activation.
        got: Activation,
    },
    /// Fewer values per channel than statistics can be made of.
    TooFewValues {
        /// Values that are needed.
        expected: u64,
        /// Values per channel that there are.
        got: u64,
    },
    /// The moments given are not of as many values as the call has.
    Count {
        /// The first such channel.
        channel: usize,
        /// Values per channel of the call.
        expected: u64,
        /// The moments' count.
        got: u64,
    },
    /// x cannot be told from y: the activation has no inverse, or the gamma of a channel is 0.
    NotInvertible {
        /// The first channel whose gamma is 0; `None` where it is the activation.
        channel: Option<usize>,
    },
    /// The workspace is too small.
    Workspace {
        /// Words (u64) that are needed.
        expected: usize,
        /// Words that it has.
        got: usize,
    },
    /// An argument is missing that this call needs.
    Missing {
        /// Which argument.
        what: &'static str,
    },
    /// An argument has come that this call cannot use.
    Unused {
        /// Which argument.
        what: &'static str,
    },
    /// The constants of a channel leave the range of the element's arithmetic, so that `Prepared`
    /// cannot hold them; `inference` can calculate with them.
    Unpreparable {
        /// The first such channel.
        channel: usize,
    },
    /// An entry of an array cannot be what the array is of: a negative variance or standard
    /// deviation. (NaN and infinity are no errors: they spoil their channel.)
    Value {
        /// Which array.
        what: &'static str,
        /// The first such channel.
        channel: usize,
        /// The value.
        got: f64,
    },
    /// A number of groups is 0, or does not divide the channels.
    Groups {
        /// What is grouped.
        what: &'static str,
        /// How many of them there are.
        of: usize,
        /// The groups.
        groups: usize,
    },
    /// A folded weight or bias would be infinite or NaN in its type.
    Unfoldable {
        /// Which array.
        what: &'static str,
        /// The first such element.
        index: usize,
    },
    /// A limit of batch renormalization makes no sense: r_max below 1, d_max below 0, infinity, NaN.
    Renorm {
        /// Which limit.
        what: &'static str,
        /// The value.
        got: f64,
    },
    /// The executor did not run every ticket exactly once. The outputs are not complete.
    Executor {
        /// Tickets that it was given.
        expected: usize,
        /// Tickets that it ran to their end.
        got: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::Length { what, expected, got } => {
                write!(f, "{what} has {got} elements, expected {expected}")
            }
            Error::NoChannels => f.write_str("the shape has 0 channels, expected at least 1"),
            Error::Rank { expected, got } => write!(f, "the tensor has {got} dimensions, expected at least {expected}"),
            Error::ShapeOverflow => f.write_str("batch × channels × spatial overflows the address space"),
            Error::Stride { what, got: Stride { batch, inner } } => write!(
                f,
                "the strides of {what} are {batch} (batch) and {inner} (inner), expected ones at which no elements \
                 overlap and that stay in the address space"
            ),
            Error::InPlaceStrides { input, output } => write!(
                f,
                "in place the strides of input and output must be the same, got {} and {} (batch), {} and {} (inner)",
                input.batch, output.batch, input.inner, output.inner
            ),
            Error::Epsilon { got } => write!(f, "epsilon is {got}, expected a finite number ≥ 0"),
            Error::Momentum { got } => write!(f, "momentum is {got}, expected a number from 0 to 1"),
            Error::Activation { got } => {
                write!(f, "activation is {got:?}, expected a finite slope ≥ 0, or lo ≤ hi")
            }
            Error::TooFewValues { expected, got } => {
                write!(f, "{got} values per channel, expected at least {expected}")
            }
            Error::Count { channel, expected, got } => write!(
                f,
                "the moments of channel {channel} are of {got} values, expected those of this call's {expected}: for \
                 statistics over more than one x there are backward_sums and backward_apply"
            ),
            Error::NotInvertible { channel: None } => {
                f.write_str("the activation has no inverse, expected none, or a leaky ReLU of slope > 0")
            }
            Error::NotInvertible { channel: Some(c) } => {
                write!(f, "gamma of channel {c} is 0, expected one that x can be told from y with")
            }
            Error::Workspace { expected, got } => {
                write!(f, "the workspace has {got} words of 8 bytes, expected at least {expected}")
            }
            Error::Missing { what } => write!(f, "{what} is missing, and this call needs it"),
            Error::Unused { what } => write!(f, "{what} was given, and this call cannot use it"),
            Error::Unpreparable { channel } => write!(
                f,
                "the constants of channel {channel} leave the range of the element type: use inference, which \
                 calculates such channels in f64"
            ),
            Error::Value { what, channel, got } => {
                write!(f, "{what} of channel {channel} is {got}, expected a number ≥ 0")
            }
            Error::Groups { what, of, groups } => {
                write!(f, "{groups} groups of {of} {what}, expected a number of groups that divides it")
            }
            Error::Unfoldable { what, index } => {
                write!(f, "element {index} of the folded {what} would not be finite in its type")
            }
            Error::Renorm { what, got } => {
                write!(f, "{what} is {got}, expected a finite number ≥ {}", if what == "r_max" { 1 } else { 0 })
            }
            Error::Executor { expected, got } => {
                write!(f, "the executor ran {got} tickets to their end, expected each of {expected} once")
            }
        }
    }
}

impl core::error::Error for Error {}

/// Checks a length.
#[inline]
pub(crate) fn length(what: &'static str, got: usize, expected: usize) -> Result<(), Error> {
    if got == expected { Ok(()) } else { Err(Error::Length { what, expected, got }) }
}

/// Checks an epsilon.
#[inline]
pub(crate) fn epsilon(got: f64) -> Result<(), Error> {
    if (0.0..f64::INFINITY).contains(&got) { Ok(()) } else { Err(Error::Epsilon { got }) }
}

/// Checks that an array of variances or standard deviations, one per channel, holds no negative
/// number. NaN may stand there: it spoils its channel only.
#[inline]
pub(crate) fn not_negative<P: crate::element::Param>(what: &'static str, values: &[P]) -> Result<(), Error> {
    match values.iter().position(|v| v.to_f64() < 0.0) {
        Some(channel) => Err(Error::Value { what, channel, got: values.get(channel).map_or(f64::NAN, |v| v.to_f64()) }),
        None => Ok(()),
    }
}
