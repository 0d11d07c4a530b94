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
    /// running = (1 − w)·running + w·new: PyTorch, cuDNN ("exponential average factor").
    WeighNew(f64),
    /// running = w·running + (1 − w)·new: TensorFlow, Keras, ONNX, burn ("decay").
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
        Ok(RunningStats { momentum, variance })
    }

    /// PyTorch's `nn.BatchNorm`: the momentum weighs the new value (default 0.1), unbiased variance.
    ///
    /// # Errors
    /// As [`RunningStats::new`].
    pub fn pytorch(momentum: f64) -> Result<Self, Error> {
        Self::new(Momentum::WeighNew(momentum), Variance::Unbiased)
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
    /// `num_batches` is increased by one, if given; [`Momentum::Cumulative`] needs it.
    ///
    /// Returns how many channels were skipped: those whose statistics, or whose updated values,
    /// are not finite keep their old values.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Missing`] where the rule is cumulative and `num_batches` is not
    /// given.
    pub fn update<P: Param>(
        &self,
        batch: &[Moments],
        running_mean: &mut [P],
        running_var: &mut [P],
        num_batches: Option<&mut u64>,
    ) -> Result<usize, Error> {
        length("running_mean", running_mean.len(), batch.len())?;
        length("running_var", running_var.len(), batch.len())?;
        let weight = match (self.momentum, &num_batches) {
            (Momentum::WeighNew(w), _) => w,
            (Momentum::WeighOld(w), _) => 1.0 - w,
            (Momentum::Cumulative, Some(n)) => 1.0 / (n.saturating_add(1)) as f64,
            (Momentum::Cumulative, None) => return Err(Error::Missing { what: "num_batches" }),
        };
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
