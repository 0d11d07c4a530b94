//! What a rank says of its call. Ranks exchange headers when a layer is made, and when a call went wrong;
//! else their fingerprints, one word, go with the statistics.

use crate::error::{Error, Problem, Setting};
use crate::settings::{Settings, activation_of, activation_words, rule_text, rule_words};
use bn_core::{Element, Layout};
use core::any::TypeId;
use core::ops::Range;
use mpi::Rank;

/// Words of a header.
pub(crate) const WORDS: usize = 20;

/// "bn-mpi", the version of the messages, and of the bits that they carry.
const VERSION: u64 = (0x626e_6d70_6901 << 16) | bn_core::BITS_VERSION as u64;

// Where things stand.
const VERSION_AT: usize = 0;
const OPERATION_AT: usize = 1;
const LAYER_AT: usize = 2;
const ELEMENT_AT: usize = 3;
const CHANNELS_AT: usize = 4;
const LAYOUT_AT: usize = 5;
const EPSILON_AT: usize = 6;
const ACTIVATION_AT: usize = 7;
const ONE_VALUE_AT: usize = 10;
const RULE_AT: usize = 11;
const ORIGIN_AT: usize = 14;
const EXCHANGE_AT: usize = 15;
/// The kind of problem, 0 for none; which argument; what was expected; what came.
const PROBLEM_AT: usize = 16;

/// What is compared, the most telling first.
const SETTINGS: [(Setting, Range<usize>); 12] = [
    (Setting::Version, VERSION_AT..OPERATION_AT),
    (Setting::Operation, OPERATION_AT..LAYER_AT),
    (Setting::Element, ELEMENT_AT..CHANNELS_AT),
    (Setting::Channels, CHANNELS_AT..LAYOUT_AT),
    (Setting::Layout, LAYOUT_AT..EPSILON_AT),
    (Setting::Epsilon, EPSILON_AT..ACTIVATION_AT),
    (Setting::Activation, ACTIVATION_AT..ONE_VALUE_AT),
    (Setting::OneValue, ONE_VALUE_AT..RULE_AT),
    (Setting::RunningRule, RULE_AT..ORIGIN_AT),
    (Setting::Exchange, EXCHANGE_AT..PROBLEM_AT),
    (Setting::RunningStatistics, ORIGIN_AT..EXCHANGE_AT),
    // Last: two layers of the same network differ in something else, too, mostly.
    (Setting::Layer, LAYER_AT..ELEMENT_AT),
];

/// Names of arguments, which travel as their number.
const ARGUMENTS: [&str; 11] =
    ["x", "y", "dy", "residual", "gamma", "beta", "dx", "dresidual", "dgamma", "dbeta", "num_batches"];

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    New = 1,
    Forward = 2,
    Backward = 3,
}

/// What a rank says of its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header(pub(crate) [u64; WORDS]);

impl Header {
    /// Of a layer that is being made. `layer` is the number that the rank would give it.
    pub(crate) fn new<T: Element>(settings: &Settings, layer: u64) -> Self {
        let mut words = [0; WORDS];
        words[VERSION_AT] = VERSION;
        words[OPERATION_AT] = Operation::New as u64;
        words[LAYER_AT] = layer;
        words[ELEMENT_AT] = element::<T>();
        words[CHANNELS_AT] = settings.channels as u64;
        words[EPSILON_AT] = settings.epsilon.to_bits();
        words[ACTIVATION_AT..ONE_VALUE_AT].copy_from_slice(&activation_words(settings.activation));
        words[ONE_VALUE_AT] = u64::from(settings.one_value);
        words[RULE_AT..ORIGIN_AT].copy_from_slice(&rule_words(settings.running));
        words[EXCHANGE_AT] = 2 * settings.exchange as u64 + u64::from(settings.check_calls);
        Header(words)
    }

    /// Of a call of the layer.
    pub(crate) fn call(self, operation: Operation, layout: Option<Layout>, problem: Option<Problem>) -> Self {
        let mut header = self;
        header.0[OPERATION_AT] = operation as u64;
        header.0[LAYOUT_AT] = match layout {
            None => 0,
            Some(Layout::Nchw) => 1,
            Some(Layout::Nhwc) => 2,
            Some(_) => 3,
        };
        header.with_problem(problem)
    }

    /// With what keeps this rank from its part.
    pub(crate) fn with_problem(mut self, problem: Option<Problem>) -> Self {
        self.0[PROBLEM_AT..].copy_from_slice(&problem.map_or([0; 4], problem_words));
        self
    }

    /// As a layer of this number.
    pub(crate) fn with_layer(mut self, layer: u64) -> Self {
        self.0[LAYER_AT] = layer;
        self
    }

    /// With a checksum of the running statistics that it went on from.
    pub(crate) fn with_origin(mut self, origin: u64) -> Self {
        self.0[ORIGIN_AT] = origin;
        self
    }

    pub(crate) fn layer(&self) -> u64 {
        self.0[LAYER_AT]
    }

    /// One word that stands for all: even where all is well on this rank, odd where it has a problem.
    pub(crate) fn fingerprint(&self) -> u64 {
        (hash(self.0.iter().copied()) << 1) | u64::from(self.0[PROBLEM_AT] != 0)
    }

    fn problem(&self) -> Option<Problem> {
        let [kind, what, expected, got] = [0, 1, 2, 3].map(|i| self.0[PROBLEM_AT + i]);
        let what = ARGUMENTS.get(what as usize).copied().unwrap_or("an argument");
        let (size, length) = (|v: u64| v as usize, |v: u64| f64::from_bits(v));
        Some(match kind {
            0 => return None,
            1 => bn_core::Error::Length { what, expected: size(expected), got: size(got) }.into(),
            2 => bn_core::Error::NoChannels.into(),
            3 => bn_core::Error::ShapeOverflow.into(),
            4 => bn_core::Error::Epsilon { got: length(got) }.into(),
            5 => {
                let activation = [0, 1, 2].map(|i| self.0[ACTIVATION_AT + i]);
                bn_core::Error::Activation { got: activation_of(activation)? }.into()
            }
            6 => bn_core::Error::Missing { what }.into(),
            7 => Problem::Channels { expected: size(expected), got: size(got) },
            8 => Problem::NoForward,
            9 => Problem::MessageTooLong { words: got },
            10 => Problem::Memory { bytes: size(got) },
            _ => bn_core::Error::Executor { expected: size(expected), got: size(got) }.into(),
        })
    }
}

fn problem_words(problem: Problem) -> [u64; 4] {
    use bn_core::Error;
    let argument = |what: &str| ARGUMENTS.iter().position(|a| *a == what).unwrap_or(ARGUMENTS.len()) as u64;
    match problem {
        Problem::Core(Error::Length { what, expected, got }) => [1, argument(what), expected as u64, got as u64],
        Problem::Core(Error::NoChannels) => [2, 0, 0, 0],
        Problem::Core(Error::ShapeOverflow) => [3, 0, 0, 0],
        Problem::Core(Error::Epsilon { got }) => [4, 0, 0, got.to_bits()],
        Problem::Core(Error::Activation { .. }) => [5, 0, 0, 0],
        Problem::Core(Error::Missing { what }) => [6, argument(what), 0, 0],
        Problem::Channels { expected, got } => [7, 0, expected as u64, got as u64],
        Problem::NoForward => [8, 0, 0, 0],
        Problem::MessageTooLong { words } => [9, 0, 0, words],
        Problem::Memory { bytes } => [10, 0, 0, bytes as u64],
        Problem::Core(Error::Executor { expected, got }) => [11, 0, expected as u64, got as u64],
        // Of all others none comes from a call that this crate makes.
        Problem::Core(_) => [11, 0, 0, 0],
    }
}

/// What all ranks conclude from all headers: the same.
pub(crate) fn check(headers: &[Header]) -> Result<(), Error> {
    let Some(first) = headers.first() else { return Ok(()) };
    // Of another version nothing else can be read.
    let (version, rest) = (&SETTINGS[..1], &SETTINGS[1..]);
    differs(version, first, headers)?;
    for (rank, header) in headers.iter().enumerate() {
        if let Some(problem) = header.problem() {
            return Err(Error::Refused { rank: rank as Rank, problem });
        }
    }
    differs(rest, first, headers)
}

fn differs(settings: &[(Setting, Range<usize>)], first: &Header, headers: &[Header]) -> Result<(), Error> {
    for (what, at) in settings {
        let expected = &first.0[at.clone()];
        if let Some((rank, other)) = headers.iter().enumerate().find(|(_, h)| h.0[at.clone()] != *expected) {
            let show = |words: &[u64]| show(*what, words);
            let (got, expected) = (show(&other.0[at.clone()]), show(expected));
            return Err(Error::Differs { what: *what, rank: rank as Rank, got, expected });
        }
    }
    Ok(())
}

/// Words of a header, as text.
pub(crate) fn show(what: Setting, words: &[u64]) -> String {
    let word = words.first().copied().unwrap_or(0);
    let three = || [0, 1, 2].map(|i| words.get(i).copied().unwrap_or(0));
    let one_of = |names: &[&str]| names.get(word as usize).copied().unwrap_or("unknown").to_string();
    match what {
        Setting::Version => format!("{word:#x}"),
        Setting::Operation => one_of(&["nothing", "new", "forward", "backward"]),
        Setting::Layer | Setting::Channels => word.to_string(),
        Setting::Element => one_of(&["unknown", "f32", "f64", "f16", "bf16"]),
        Setting::Layout => one_of(&["none", "NCHW", "NHWC"]),
        Setting::Epsilon => format!("{:?}", f64::from_bits(word)),
        Setting::Activation => activation_of(three()).map_or("unknown".into(), |a| format!("{a:?}")),
        Setting::OneValue => (word == 1).to_string(),
        Setting::RunningRule => rule_text(three()),
        Setting::RunningStatistics | Setting::Message => format!("{word:016x}"),
        Setting::Exchange => {
            let way = ["Auto", "Gather", "Scatter"].get(word as usize / 2).copied().unwrap_or("unknown");
            format!("{way}, with{} call check", if word & 1 == 1 { "" } else { "out" })
        }
    }
}

fn element<T: Element>() -> u64 {
    let id = TypeId::of::<T>();
    #[cfg(feature = "half")]
    if id == TypeId::of::<half::f16>() {
        return 3;
    } else if id == TypeId::of::<half::bf16>() {
        return 4;
    }
    match id {
        id if id == TypeId::of::<f32>() => 1,
        id if id == TypeId::of::<f64>() => 2,
        _ => 0,
    }
}

/// A checksum of words, the same on every machine: each is mixed in by a bijection (the finalizer of
/// SplitMix64), so that any change of one word changes it.
pub(crate) fn hash(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0x9e37_79b9_7f4a_7c15, |state, word| {
        let z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bn_core::{Activation, RunningStats};

    fn header() -> Header {
        Header::new::<f32>(&Settings::new(8), 3).call(Operation::Forward, Some(Layout::Nchw), None)
    }

    #[test]
    fn problems_survive_the_journey() {
        let problems = [
            Problem::Core(bn_core::Error::Length { what: "dy", expected: 5, got: 7 }),
            Problem::Core(bn_core::Error::NoChannels),
            Problem::Core(bn_core::Error::ShapeOverflow),
            Problem::Core(bn_core::Error::Epsilon { got: -0.5 }),
            Problem::Core(bn_core::Error::Missing { what: "y" }),
            Problem::Core(bn_core::Error::Executor { expected: 4, got: 3 }),
            Problem::Channels { expected: 64, got: 65 },
            Problem::NoForward,
            Problem::MessageTooLong { words: 1 << 40 },
            Problem::Memory { bytes: 1 << 50 },
        ];
        for problem in problems {
            let bad = header().with_problem(Some(problem));
            assert_eq!(bad.fingerprint() & 1, 1);
            let error = check(&[header(), header(), bad]).unwrap_err();
            assert_eq!(error, Error::Refused { rank: 2, problem });
        }
        assert_eq!(header().fingerprint() & 1, 0);
        assert_eq!(check(&[header(); 4]), Ok(()));
        let clamp = Activation::Clamp { lo: 1.0, hi: 0.0 };
        let problem = Problem::Core(bn_core::Error::Activation { got: clamp });
        let bad = Header::new::<f32>(&Settings::new(8).with_activation(clamp), 0).with_problem(Some(problem));
        assert_eq!(check(&[bad]), Err(Error::Refused { rank: 0, problem }));
    }

    #[test]
    fn every_setting_is_told_from_others() {
        let settings = || Settings::new(8);
        let forward = |s: Settings| Header::new::<f32>(&s, 3).call(Operation::Forward, Some(Layout::Nchw), None);
        let cases = [
            (forward(Settings::new(9)), "the number of channels differs: 9 on rank 1, 8 on rank 0"),
            (forward(settings().with_epsilon(1e-3)), "epsilon differs: 0.001 on rank 1, 1e-5 on rank 0"),
            (
                forward(settings().with_activation(Activation::LeakyRelu { slope: 0.1 })),
                "the activation differs: LeakyRelu { slope: 0.1 } on rank 1, Identity on rank 0",
            ),
            (
                forward(settings().with_running_stats(RunningStats::keras(0.99).unwrap())),
                "the rule for running statistics differs: momentum 0.99 of the old value, biased variance on rank 1, \
                 momentum 0.1 of the new value, unbiased variance on rank 0",
            ),
            (
                forward(settings().allow_one_value()),
                "whether one value is allowed differs: true on rank 1, false on rank 0",
            ),
            (
                header().call(Operation::Forward, Some(Layout::Nhwc), None),
                "the layout differs: NHWC on rank 1, NCHW on rank 0",
            ),
            (
                header().call(Operation::Backward, Some(Layout::Nchw), None),
                "the operation differs: backward on rank 1, forward on rank 0",
            ),
            (header().with_layer(4), "the layer differs: 4 on rank 1, 3 on rank 0"),
            (
                Header::new::<f64>(&settings(), 3).call(Operation::Forward, Some(Layout::Nchw), None),
                "the element type differs: f64 on rank 1, f32 on rank 0",
            ),
        ];
        for (other, message) in cases {
            assert_ne!(other.fingerprint(), header().fingerprint(), "{message}");
            assert_eq!(check(&[header(), other]).unwrap_err().to_string(), message);
        }
    }
}
