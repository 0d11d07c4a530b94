//! Running statistics, and the conventions that frameworks disagree about.

use crate::element::Param;
use crate::error::{Error, length};
use crate::moments::Moments;

/// How new statistics are weighed against old ones.
///
/// Frameworks mean opposite things by "momentum"; the name says which is meant.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Momentum {
    /// running = (1 − w)·running + w·new: PyTorch, cuDNN, burn ("exponential average factor").
    WeighNew(f64),
    /// running = w·running + (1 − w)·new: TensorFlow, Keras, ONNX ("decay").
    WeighOld(f64),
    /// The plain average of all batches so far: PyTorch's `momentum=None`. Needs a count of
    /// batches.
    Cumulative,
}

/// Which variance the running variance averages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variance {
    /// m2/n: Keras, ONNX, burn; also what normalization itself uses.
    Biased,
    /// m2/(n − 1): PyTorch, and Ioffe & Szegedy's paper. A batch of one value per channel has none
    /// and leaves the running variance as it is.
    Unbiased,
}

/// A rule for updating running statistics.
///
/// ```
/// use bn_core::{Moments, RunningStats};
/// let batch = [Moments { count: 4, mean: 3.0, m2: 9.0 }];
/// let (mut mean, mut var) = ([0.0_f32], [1.0_f32]);
/// let skipped = RunningStats::pytorch(0.1)?.update(&batch, &mut mean, &mut var, None)?;
/// assert_eq!((mean, var, skipped), ([0.3], [1.2], 0));
/// # Ok::<(), bn_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunningStats {
    momentum: Momentum,
    variance: Variance,
    zero_debias: bool,
}

impl RunningStats {
    /// A rule of one's own.
    ///
    /// # Errors
    /// [`Error::Momentum`] where the weight is outside 0 … 1.
    pub fn new(momentum: Momentum, variance: Variance) -> Result<Self, Error> {
        if let Momentum::WeighNew(w) | Momentum::WeighOld(w) = momentum
            && !(0.0..=1.0).contains(&w)
        {
            return Err(Error::Momentum { got: w });
        }
        Ok(RunningStats { momentum, variance, zero_debias: false })
    }

    /// PyTorch's `nn.BatchNorm`: the momentum weighs the new value (default 0.1), unbiased variance.
    ///
    /// # Errors
    /// As [`RunningStats::new`].
    pub fn pytorch(momentum: f64) -> Result<Self, Error> {
        Self::new(Momentum::WeighNew(momentum), Variance::Unbiased)
    }

    /// burn's `BatchNorm`: the momentum weighs the new value (default 0.1), biased variance.
    ///
    /// # Errors
    /// As [`RunningStats::new`].
    pub fn burn(momentum: f64) -> Result<Self, Error> {
        Self::new(Momentum::WeighNew(momentum), Variance::Biased)
    }

    /// Keras' `BatchNormalization`: the momentum weighs the old value (default 0.99), biased
    /// variance.
    ///
    /// # Errors
    /// As [`RunningStats::new`].
    pub fn keras(momentum: f64) -> Result<Self, Error> {
        Self::new(Momentum::WeighOld(momentum), Variance::Biased)
    }

    /// ONNX' `BatchNormalization` (opset 15, `training_mode=1`): the momentum weighs the old value
    /// (default 0.9), biased variance.
    ///
    /// # Errors
    /// As [`RunningStats::new`].
    pub fn onnx(momentum: f64) -> Result<Self, Error> {
        Self::new(Momentum::WeighOld(momentum), Variance::Biased)
    }

    /// Without the bias towards the initial values that an exponential average has in its first
    /// batches: TF slim's `zero_debias_moving_mean`, Adam's bias correction, here for mean and variance.
    ///
    /// Batch t (from 1) is weighed by w_t = w/(1 − (1 − w)ᵗ) instead of w. That is a schedule and not a
    /// correction afterwards: the arrays always hold the debiased average, ready for inference, and
    /// they and `num_batches` are all there is to save. They equal s_t/(1 − (1 − w)ᵗ) for the average
    /// s_t = (1 − w)·s_(t−1) + w·new that starts at s₀ = 0 (Kingma & Ba, "Adam", 2015, section 3). The
    /// first batch has the weight 1, so any finite initial values will do; the weight falls like 1/t,
    /// as that of a cumulative average, until it has come down to w.
    ///
    /// [`update`](Self::update) needs `num_batches` then. [`Momentum::Cumulative`] has no bias and stays
    /// what it is; a weight of 0 has the limit of w_t, which is 1/t: the cumulative average too.
    ///
    /// ```
    /// use bn_core::{Moments, RunningStats};
    /// let rule = RunningStats::keras(0.99)?.with_zero_debias();
    /// let (mut mean, mut var, mut num_batches) = ([0.0], [1.0], 0);
    /// for x in [3.0, 5.0] {
    ///     let batch = [Moments { count: 2, mean: x, m2: 8.0 }];
    ///     rule.update(&batch, &mut mean, &mut var, Some(&mut num_batches))?;
    /// }
    /// // (0.99·3 + 5)/1.99, where the plain rule would have 0.0797 and a variance of 1.0597.
    /// assert!((mean[0] - 7.97 / 1.99_f64).abs() < 1e-15);
    /// assert_eq!(var, [4.0]);
    /// # Ok::<(), bn_core::Error>(())
    /// ```
    pub fn with_zero_debias(self) -> Self {
        RunningStats { zero_debias: true, ..self }
    }

    /// Whether the bias towards the initial values is taken out.
    pub fn zero_debias(&self) -> bool {
        self.zero_debias
    }

    /// The weight of the next batch, after `num_batches` ones: from 0 to 1.
    ///
    /// With zero-debias it is computed as w/−expm1(t·log1p(−w)): 1 − (1 − w)ᵗ without the loss of
    /// digits that this form has for small t·w. It is right to a few units of rounding (2⁻⁵³) for every
    /// w and t, and of the same bits on every target, as libm's software functions are.
    pub fn weight(&self, num_batches: u64) -> f64 {
        let t = num_batches.saturating_add(1) as f64;
        let w = match self.momentum {
            Momentum::WeighNew(w) => w,
            Momentum::WeighOld(w) => 1.0 - w,
            Momentum::Cumulative => return 1.0 / t,
        };
        if !self.zero_debias {
            return w;
        }
        let seen = -libm::expm1(t * libm::log1p(-w));
        // Rounding may leave the quotient a little outside its limits, 1/t and 1. Below the smallest
        // normal number, where it loses its digits, 1/t is right.
        if w < f64::MIN_POSITIVE { 1.0 / t } else { (w / seen).max(1.0 / t).min(1.0) }
    }

    /// How new statistics are weighed.
    pub fn momentum(&self) -> Momentum {
        self.momentum
    }

    /// Which variance is averaged.
    pub fn variance(&self) -> Variance {
        self.variance
    }

    /// Takes a batch's statistics in; all slices have one entry per channel.
    ///
    /// `num_batches` is increased by one, if given; [`Momentum::Cumulative`] and
    /// [`with_zero_debias`](Self::with_zero_debias) need it. Those averages are right across save and
    /// load if it is saved with the arrays: nothing else is kept.
    ///
    /// Returns how many channels were skipped: those whose statistics, or whose updated values,
    /// are not finite, and those without values, keep their old values. A batch of one value per channel
    /// leaves an unbiased running variance as it is.
    ///
    /// `num_batches` is one number for all channels and counts such batches too. So where the weight
    /// depends on it, a skipped batch counts in its channel as one that had the average so far: the
    /// batches before it weigh more by that much (in a cumulative average whose k-th batch was skipped
    /// those before it weigh k/(k − 1) times what those after it do). If a channel's *first* batch is
    /// skipped, that stand-in is the initial value, which weighs about as much as the second batch
    /// then, and 1/n in a cumulative average of n: to be rid of it, begin with the first batch whose
    /// statistics are finite in every channel, or set `num_batches` back to 0 after the first one.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::NoChannels`]; [`Error::Missing`] where the rule needs `num_batches` and it is not given.
    /// Nothing has been written then.
    pub fn update<P: Param>(
        &self,
        batch: &[Moments],
        running_mean: &mut [P],
        running_var: &mut [P],
        num_batches: Option<&mut u64>,
    ) -> Result<usize, Error> {
        length("running_mean", running_mean.len(), batch.len())?;
        length("running_var", running_var.len(), batch.len())?;
        if batch.is_empty() {
            return Err(Error::NoChannels);
        }
        let scheduled = self.zero_debias || self.momentum == Momentum::Cumulative;
        if scheduled && num_batches.is_none() {
            return Err(Error::Missing { what: "num_batches" });
        }
        let weight = self.weight(num_batches.as_deref().copied().unwrap_or(0));
        let mut skipped = 0;
        for ((m, mean), var) in batch.iter().zip(running_mean).zip(running_var) {
            let blend = |old: P, new: f64| P::from_f64(old.to_f64() * (1.0 - weight) + new * weight);
            let new_mean = blend(*mean, m.mean);
            let new_var = match self.variance {
                Variance::Biased => blend(*var, m.variance()),
                Variance::Unbiased if m.count > 1 => blend(*var, m.variance_unbiased()),
                Variance::Unbiased => *var,
            };
            let finite =
                m.mean.is_finite() && m.m2.is_finite() && new_mean.to_f64().is_finite() && new_var.to_f64().is_finite();
            if finite && m.count > 0 {
                (*mean, *var) = (new_mean, new_var);
            } else {
                skipped += 1;
            }
        }
        if let Some(n) = num_batches {
            *n = n.saturating_add(1);
        }
        Ok(skipped)
    }
}
