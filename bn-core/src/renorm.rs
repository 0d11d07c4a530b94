//! Batch renormalization: what training does where batches are too small for batch normalization.
//!
//! ```text
//! r = clip(σ_B/σ, 1/r_max, r_max)      d = clip((μ_B − μ)/σ, −d_max, d_max)
//! x̂ = (x − μ_B)/σ_B·r + d              y = γ·x̂ + β
//! ```
//! (Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
//! 2017, Algorithm 1; σ = √(variance + ε) on both sides.) r and d are constants to the gradient. So this
//! is batch normalization with the parameters γ·r and γ·d + β: no pass over memory is new here.

use crate::batch_norm::{Affine, entry};
use crate::double::sqrt;
use crate::element::Param;
use crate::error::{Error, epsilon as check_epsilon, length, not_negative};
use crate::moments::Moments;
use bytemuck::{Pod, Zeroable};

/// The limits of batch renormalization (Ioffe 2017).
///
/// Training starts with [`Renorm::BATCH_NORM`] and widens the limits; the paper ends at r_max 3 and
/// d_max 5. A training step is the stages of batch normalization with other parameters, and some
/// work per channel, for which the caller brings three arrays:
///
/// 1. [`BatchNorm::moments`](crate::BatchNorm::moments): the statistics of the batch, or of all shards of it.
/// 2. [`Renorm::factors`]: r and d of each channel; [`renorm_affine`]: γ·r and γ·d + β.
/// 3. [`BatchNorm::normalize`](crate::BatchNorm::normalize) with those; then
///    [`RunningStats::update`](crate::RunningStats::update), for the next step.
/// 4. [`BatchNorm::backward`](crate::BatchNorm::backward) with γ·r in the place of γ; [`renorm_gradients`] makes
///    dγ from what it gives. (dx and dβ are as they should be.)
///
/// Inference is batch normalization's.
///
/// ```
/// use bn_core::*;
/// // A batch of two values: 2 and 6, so μ_B = 4 and σ_B = 2. The running σ is 4, the running mean 3.
/// let bn = BatchNorm::<f32>::new(Shape::dense(2, 1)?, 0.0)?;
/// let (x, dy) = ([2.0, 6.0], [1.0, 0.5]);
/// let (gamma, beta) = ([2.0], [10.0]);
/// let (mut running_mean, mut running_var) = ([3.0], [16.0]);
/// let mut workspace = [0; 1024];
///
/// let mut moments = [Moments::EMPTY];
/// bn.moments(&x, &mut moments, Run::serial(&mut workspace))?;
/// let mut factors = [RenormFactor::default()];
/// Renorm::new(3.0, 5.0)?.factors(&moments, &running_mean, &running_var, bn.epsilon(), &mut factors)?;
/// assert_eq!(factors, [RenormFactor { r: 0.5, d: 0.25 }]);
/// let (mut gamma_r, mut beta_d) = ([0.0], [0.0]);
/// renorm_affine(&factors, Affine::new(&gamma, &beta), &mut gamma_r, &mut beta_d)?;
/// let mut y = [0.0; 2];
/// let affine = Affine::new(&gamma_r, &beta_d);
/// bn.normalize(&x, None, affine, &moments, &mut y[..], Run::serial(&mut workspace))?;
/// // What inference with the running statistics gives, as neither limit was reached.
/// assert_eq!(y, [2.0 * (2.0 - 3.0) / 4.0 + 10.0, 2.0 * (6.0 - 3.0) / 4.0 + 10.0]);
/// RunningStats::pytorch(0.1)?.update(&moments, &mut running_mean, &mut running_var, None)?;
///
/// let (mut dx, mut dgamma, mut dbeta) = ([0.0; 2], [0.0], [0.0]);
/// let statistics = Statistics::Batch(&moments);
/// let input = BackwardInput { x: &x, y: None, dy: &dy, gamma: Some(&gamma_r), statistics };
/// let output = Gradients {
///     dx: Some((&mut dx).into()),
///     dgamma: Some(&mut dgamma),
///     dbeta: Some(&mut dbeta),
///     ..Default::default()
/// };
/// bn.backward(input, output, Run::serial(&mut workspace))?;
/// renorm_gradients(&factors, &mut dgamma, &dbeta)?;
/// // Σ dy·x̂ with x̂ = −0.25 and 0.75.
/// assert_eq!((dgamma, dbeta), ([1.0 * -0.25 + 0.5 * 0.75], [1.5]));
/// // Two values are always normalized to −1 and 1: x has no say.
/// assert_eq!(dx, [0.0, 0.0]);
/// # Ok::<(), Error>(())
/// ```
///
/// The paper averages σ; here it is the variance that [`RunningStats`](crate::RunningStats) averages, as it does for batch
/// normalization, so that the same arrays serve both, and inference. Use the biased variance
/// ([`Variance::Biased`](crate::Variance::Biased)) if training and inference are to agree exactly where no limit is reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Renorm {
    r_max: f64,
    d_max: f64,
}

/// r and d of a channel: what batch renormalization does to x̂, with no unit. 16 bytes, the same in C.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct RenormFactor {
    /// The factor of x̂.
    pub r: f64,
    /// What is added to x̂.
    pub d: f64,
}

// SAFETY: two fields of eight bytes that are Pod: no padding.
unsafe impl Pod for RenormFactor {}
// SAFETY: all zeroes are valid for each field.
unsafe impl Zeroable for RenormFactor {}

impl Renorm {
    /// r_max 1 and d_max 0: batch normalization, to the bit.
    pub const BATCH_NORM: Renorm = Renorm { r_max: 1.0, d_max: 0.0 };

    /// Limits: 1/r_max ≤ r ≤ r_max, −d_max ≤ d ≤ d_max. Very large ones are none.
    ///
    /// # Errors
    /// [`Error::Renorm`] where r_max < 1 or d_max < 0, or either is infinite or NaN.
    pub fn new(r_max: f64, d_max: f64) -> Result<Self, Error> {
        if !(1.0..f64::INFINITY).contains(&r_max) {
            return Err(Error::Renorm { what: "r_max", got: r_max });
        }
        if !(0.0..f64::INFINITY).contains(&d_max) {
            return Err(Error::Renorm { what: "d_max", got: d_max });
        }
        Ok(Renorm { r_max, d_max })
    }

    /// The largest r, and one over the smallest.
    pub fn r_max(&self) -> f64 {
        self.r_max
    }
    /// The largest |d|.
    pub fn d_max(&self) -> f64 {
        self.d_max
    }

    /// r and d of each channel, from the statistics of the batch and the running statistics as they
    /// were before it. All slices have one entry per channel.
    ///
    /// A running σ of 0 gives the limits, and r = 1 (d = 0) where σ_B (μ_B − μ) is 0 too. NaN in a
    /// channel's statistics gives NaN, which spoils that channel only.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Epsilon`]; [`Error::Value`] where a running variance is negative.
    /// Nothing has been written then.
    pub fn factors<P: Param>(
        &self,
        batch: &[Moments],
        running_mean: &[P],
        running_var: &[P],
        epsilon: f64,
        factors: &mut [RenormFactor],
    ) -> Result<(), Error> {
        length("running_mean", running_mean.len(), batch.len())?;
        length("running_var", running_var.len(), batch.len())?;
        length("factors", factors.len(), batch.len())?;
        check_epsilon(epsilon)?;
        not_negative("running_var", running_var)?;
        for (((m, mean), var), f) in batch.iter().zip(running_mean).zip(running_var).zip(factors) {
            let sigma = sqrt(var.to_f64() + epsilon);
            let sigma_batch = sqrt(m.variance() + epsilon);
            *f = RenormFactor {
                r: clip(ratio(sigma_batch, sigma, 1.0), 1.0 / self.r_max, self.r_max),
                d: clip(ratio(m.mean - mean.to_f64(), sigma, 0.0), -self.d_max, self.d_max),
            };
        }
        Ok(())
    }
}

/// a/b, and `none` for 0/0.
fn ratio(a: f64, b: f64, none: f64) -> f64 {
    if a == 0.0 && b == 0.0 { none } else { a / b }
}

/// v between lo and hi; NaN stays NaN. (`f64::clamp` can panic.)
fn clip(v: f64, lo: f64, hi: f64) -> f64 {
    if v < lo {
        lo
    } else if v > hi {
        hi
    } else {
        v
    }
}

/// The parameters with which batch normalization is batch renormalization: γ·r and γ·d + β, rounded
/// once to their type. All slices have one entry per channel.
///
/// With [`Renorm::BATCH_NORM`] they are γ and β, to the bit.
///
/// # Errors
/// [`Error::Length`], before anything is written.
pub fn renorm_affine<P: Param>(
    factors: &[RenormFactor],
    affine: Affine<'_, P>,
    gamma_r: &mut [P],
    beta_d: &mut [P],
) -> Result<(), Error> {
    length("gamma", affine.gamma.map_or(factors.len(), <[P]>::len), factors.len())?;
    length("beta", affine.beta.map_or(factors.len(), <[P]>::len), factors.len())?;
    length("gamma_r", gamma_r.len(), factors.len())?;
    length("beta_d", beta_d.len(), factors.len())?;
    for (c, ((f, g), b)) in factors.iter().zip(gamma_r).zip(beta_d).enumerate() {
        let (gamma, beta) = (entry(affine.gamma, c, 1.0), entry(affine.beta, c, 0.0));
        *g = P::from_f64(gamma * f.r);
        // 0 + −0 would lose the sign.
        *b = P::from_f64(if f.d == 0.0 { beta } else { gamma * f.d + beta });
    }
    Ok(())
}

/// dγ from what [`BatchNorm::backward`](crate::BatchNorm::backward) gives: `dgamma` becomes r·dgamma + d·dbeta. All slices
/// have one entry per channel.
///
/// Both addends have been rounded to their type, so dγ is right to that rounding of |r·dgamma| + |d·dbeta|.
///
/// # Errors
/// [`Error::Length`], before anything is written.
pub fn renorm_gradients<P: Param>(factors: &[RenormFactor], dgamma: &mut [P], dbeta: &[P]) -> Result<(), Error> {
    length("dgamma", dgamma.len(), factors.len())?;
    length("dbeta", dbeta.len(), factors.len())?;
    for ((f, dg), db) in factors.iter().zip(dgamma).zip(dbeta) {
        // What d = 0 multiplies must not matter: −0 stays, and an infinite dbeta does no harm.
        let own = dg.to_f64() * f.r;
        *dg = P::from_f64(if f.d == 0.0 { own } else { own + db.to_f64() * f.d });
    }
    Ok(())
}
