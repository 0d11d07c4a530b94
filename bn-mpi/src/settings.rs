//! What a layer is, before it is one.

use crate::exchange::Exchange;
use bn_core::{Activation, Isa, Momentum, RunningStats, Variance};

/// What is chosen about a layer: the same on every rank, but for the ISA.
///
/// Nothing is checked here; [`SyncBatchNorm::new`](crate::SyncBatchNorm::new) does that, so that a wrong
/// value on one rank becomes an error on all.
///
/// ```
/// use bn_core::{Activation, RunningStats};
/// use bn_mpi::Settings;
/// let settings = Settings::new(64)
///     .with_epsilon(1e-3)
///     .with_activation(Activation::Relu)
///     .with_running_stats(RunningStats::keras(0.99)?);
/// # Ok::<(), bn_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub(crate) channels: usize,
    pub(crate) epsilon: f64,
    pub(crate) activation: Activation,
    pub(crate) one_value: bool,
    pub(crate) running: Option<RunningStats>,
    pub(crate) exchange: Exchange,
    pub(crate) check_calls: bool,
    pub(crate) isa: Isa,
}

impl Settings {
    /// PyTorch's defaults: epsilon 1e-5, [`RunningStats::pytorch`]`(0.1)`, no activation; the best ISA of
    /// this rank's CPU.
    pub fn new(channels: usize) -> Self {
        Settings {
            channels,
            epsilon: 1e-5,
            activation: Activation::Identity,
            one_value: false,
            running: RunningStats::pytorch(0.1).ok(),
            exchange: Exchange::Auto,
            check_calls: true,
            isa: Isa::detect(),
        }
    }

    /// With this added to the variance.
    pub fn with_epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// With an activation of the result. Its backward pass needs y.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Allows a single value per channel on all ranks together, whose variance is 0, so that y = β.
    pub fn allow_one_value(mut self) -> Self {
        self.one_value = true;
        self
    }

    /// With a rule for the running statistics: see [`RunningStats`] for the frameworks' ones.
    pub fn with_running_stats(mut self, running: RunningStats) -> Self {
        self.running = Some(running);
        self
    }

    /// Without running statistics: they stay at 0 and 1.
    pub fn without_running_stats(mut self) -> Self {
        self.running = None;
        self
    }

    /// With messages that go another way. No bit of any result changes.
    pub fn with_exchange(mut self, exchange: Exchange) -> Self {
        self.exchange = exchange;
        self
    }

    /// Without the 16 bytes that ranks exchange before the statistics, to make sure that all of them call the
    /// same operation of the same layer and have no error of their own to report.
    ///
    /// That saves one latency per pass. What is checked goes with the statistics then, so errors are found all the
    /// same where the messages of all ranks are of one kind and length. Where they are not, MPI may end the
    /// program or wait forever: where ranks call layers of different numbers of channels at the same time, or
    /// of another [`Exchange`], or one that is checked, or `new`. For programs whose order of calls does not
    /// depend on the rank.
    pub fn without_call_check(mut self) -> Self {
        self.check_calls = false;
        self
    }

    /// With an ISA chosen by hand. Ranks may differ in it; no bit of any result changes.
    pub fn with_isa(mut self, isa: Isa) -> Self {
        self.isa = isa;
        self
    }
}

/// As words of a header: the kind of activation and its parameters.
pub(crate) fn activation_words(activation: Activation) -> [u64; 3] {
    match activation {
        Activation::Identity => [0, 0, 0],
        Activation::Relu => [1, 0, 0],
        Activation::LeakyRelu { slope } => [2, slope.to_bits(), 0],
        Activation::Clamp { lo, hi } => [3, lo.to_bits(), hi.to_bits()],
        // Of a later bn-core: what it prints tells it from others.
        other => [4, crate::header::hash(format!("{other:?}").bytes().map(u64::from)), 0],
    }
}

/// The activation of a header.
pub(crate) fn activation_of([kind, a, b]: [u64; 3]) -> Option<Activation> {
    let (a, b) = (f64::from_bits(a), f64::from_bits(b));
    match kind {
        0 => Some(Activation::Identity),
        1 => Some(Activation::Relu),
        2 => Some(Activation::LeakyRelu { slope: a }),
        3 => Some(Activation::Clamp { lo: a, hi: b }),
        _ => None,
    }
}

/// As words of a header: the kind of momentum, its weight, and which variance.
pub(crate) fn rule_words(rule: Option<RunningStats>) -> [u64; 3] {
    let Some(rule) = rule else { return [0, 0, 0] };
    let (kind, weight) = match rule.momentum() {
        Momentum::WeighNew(w) => (1, w.to_bits()),
        Momentum::WeighOld(w) => (2, w.to_bits()),
        Momentum::Cumulative => (3, 0),
        other => (4, crate::header::hash(format!("{other:?}").bytes().map(u64::from))),
    };
    [kind, weight, u64::from(rule.variance() == Variance::Unbiased)]
}

/// The rule of a header, to be shown.
pub(crate) fn rule_text([kind, weight, unbiased]: [u64; 3]) -> String {
    let weight = f64::from_bits(weight);
    let momentum = match kind {
        0 => return "none".into(),
        1 => format!("momentum {weight:?} of the new value"),
        2 => format!("momentum {weight:?} of the old value"),
        3 => "cumulative".into(),
        _ => "of a later version".into(),
    };
    format!("{momentum}, {} variance", if unbiased == 1 { "unbiased" } else { "biased" })
}
