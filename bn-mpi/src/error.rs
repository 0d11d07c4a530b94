//! What can be wrong with a call, on whichever rank.

use core::fmt;
use mpi::Rank;

/// Why a call was refused, on every rank alike: which rank, what, what was expected, what came.
///
/// Nothing has changed then on any rank: no output, no statistic. The exception is [`Error::Here`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// What a rank called for cannot be done. Of several such ranks it is the first.
    Refused {
        /// The rank that erred.
        rank: Rank,
        /// What was wrong there.
        problem: Problem,
    },
    /// Ranks do not agree.
    Differs {
        /// About what.
        what: Setting,
        /// The first rank that differs from rank 0.
        rank: Rank,
        /// What it has.
        got: String,
        /// What rank 0 has.
        expected: String,
    },
    /// All ranks together have fewer values per channel than statistics can be made of.
    TooFewValues {
        /// Values that are needed.
        expected: u64,
        /// Values per channel that all ranks have.
        got: u64,
    },
    /// The communicator connects two groups of ranks (an intercommunicator), which have no order in
    /// common to merge in.
    Intercommunicator,
    /// After the exchange this rank could not finish its own part: its executor failed. Its outputs are
    /// not complete; the statistics are those of the other ranks.
    Here(bn_core::Error),
}

/// What was wrong with the call of one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// What bn-core says.
    Core(bn_core::Error),
    /// The shape has other channels than the layer.
    Channels {
        /// Channels of the layer.
        expected: usize,
        /// Channels of the shape.
        got: usize,
    },
    /// A backward pass without a forward pass before it.
    NoForward,
    /// Messages would be longer than MPI can count: more than 2³¹ − 1 words of 8 bytes.
    MessageTooLong {
        /// Words that it would have, of all ranks.
        words: u64,
    },
    /// The allocator has no more memory.
    Memory {
        /// Bytes that were asked for.
        bytes: usize,
    },
}

/// What ranks have to agree about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Setting {
    /// The version of bn-mpi's messages and of bn-core's bits.
    Version,
    /// Which operation is called: making a layer, forward, backward.
    Operation,
    /// Which layer it is called of: layers are numbered as they are made.
    Layer,
    /// The element type.
    Element,
    /// The number of channels.
    Channels,
    /// The order of the dimensions.
    Layout,
    /// What is added to the variance.
    Epsilon,
    /// The activation.
    Activation,
    /// Whether one value per channel is enough.
    OneValue,
    /// The rule for the running statistics.
    RunningRule,
    /// The running statistics themselves, as [`crate::SyncBatchNorm::restore`] set them.
    RunningStatistics,
    /// The way that messages take, and whether calls are checked before.
    Exchange,
    /// The message itself, which was damaged on its way.
    Message,
}

impl Setting {
    /// As a message has it.
    fn name(self) -> &'static str {
        match self {
            Setting::Version => "the version of bn-mpi",
            Setting::Operation => "the operation",
            Setting::Layer => "the layer",
            Setting::Element => "the element type",
            Setting::Channels => "the number of channels",
            Setting::Layout => "the layout",
            Setting::Epsilon => "epsilon",
            Setting::Activation => "the activation",
            Setting::OneValue => "whether one value is allowed",
            Setting::RunningRule => "the rule for running statistics",
            Setting::RunningStatistics => "the checksum of the running statistics",
            Setting::Exchange => "the exchange",
            Setting::Message => "the checksum of the message",
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused { rank, problem } => write!(f, "on rank {rank}: {problem}"),
            Error::Differs { what, rank, got, expected } => {
                write!(f, "{what} differs: {got} on rank {rank}, {expected} on rank 0")
            }
            Error::TooFewValues { expected, got } => {
                write!(f, "{got} values per channel on all ranks together, expected at least {expected}")
            }
            Error::Intercommunicator => {
                f.write_str("the communicator connects two groups, expected one group of ranks (an intracommunicator)")
            }
            Error::Here(error) => write!(f, "on this rank, after the exchange: {error}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Core(error) => error.fmt(f),
            Problem::Channels { expected, got } => {
                write!(f, "the shape has {got} channels, expected the layer's {expected}")
            }
            Problem::NoForward => f.write_str("there is no forward pass to go back through: call forward first"),
            Problem::MessageTooLong { words } => {
                write!(f, "the message has {words} words of 8 bytes, expected at most {}", i32::MAX)
            }
            Problem::Memory { bytes } => write!(f, "no memory for {bytes} bytes"),
        }
    }
}

// The variants that hold another error show its message, so it is not a `source` of this one.
impl core::error::Error for Error {}

impl From<bn_core::Error> for Problem {
    fn from(error: bn_core::Error) -> Self {
        Problem::Core(error)
    }
}
