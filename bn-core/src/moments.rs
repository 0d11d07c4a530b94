//! The state that statistics travel in.

use bytemuck::{Pod, Zeroable};

/// Count, mean and sum of squared deviations of a channel: Welford's state, and the one statistic
/// of the library.
///
/// A training forward pass writes one per channel, the backward pass reads them, running statistics
/// are updated from them, and shards, ranks and passes over a data set [`merge`](Moments::merge)
/// them. They are f64 for every element type; 24 bytes, the same in C.
///
/// ```
/// use bn_core::Moments;
/// let mut all = Moments::default();
/// for x in [1.0, 2.0, 4.0, 5.0] {
///     all.push(x);
/// }
/// assert_eq!((all.count, all.mean, all.m2), (4, 3.0, 10.0));
/// assert_eq!(all.variance(), 2.5);
/// assert_eq!(all.variance_unbiased(), 10.0 / 3.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Moments {
    /// Values so far.
    pub count: u64,
    /// Their mean; 0 if there are none.
    pub mean: f64,
    /// Σ (x − mean)².
    pub m2: f64,
}

impl Moments {
    /// Nothing seen yet: the same as `default()`.
    pub const EMPTY: Moments = Moments { count: 0, mean: 0.0, m2: 0.0 };

    /// From the arrays that frameworks keep: the mean and the biased variance of `count` values.
    ///
    /// A mean that was rounded to f32 is wrong by up to 2⁻²⁵ of itself; a backward pass from such
    /// statistics is told so by [`crate::Statistics::Rounded`].
    pub fn from_mean_var(count: u64, mean: f64, variance: f64) -> Self {
        Moments { count, mean, m2: variance * count as f64 }
    }

    /// The biased variance m2/count: what normalization divides by. 0 if there are no values.
    pub fn variance(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.m2 / self.count as f64 }
    }

    /// The unbiased variance m2/(count − 1); 0 below two values.
    pub fn variance_unbiased(&self) -> f64 {
        if self.count < 2 { 0.0 } else { self.m2 / (self.count - 1) as f64 }
    }

    /// Takes in one value (Welford, "Note on a method for calculating corrected sums of squares and
    /// products", 1962).
    pub fn push(&mut self, x: f64) {
        self.count += 1;
        let delta = x - self.mean;
        self.mean += delta / self.count as f64;
        self.m2 += delta * (x - self.mean);
    }

    /// Takes in all that `other` has seen (Chan, Golub & LeVeque 1979). Either may be empty.
    ///
    /// Merging is exact in the count and accurate to f64 rounding in the rest; it is not
    /// associative in the last bit, so merge in a fixed order where bits matter.
    pub fn merge(&mut self, other: &Moments) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *other;
            return;
        }
        let delta = other.mean - self.mean;
        let share = other.count as f64 / (self.count + other.count) as f64;
        self.m2 += other.m2 + delta * delta * (self.count as f64 * share);
        self.mean += delta * share;
        self.count += other.count;
    }
}

/// Merges channel by channel.
///
/// # Errors
/// [`crate::Error::Length`] where the slices differ in length.
pub fn merge_moments(into: &mut [Moments], from: &[Moments]) -> Result<(), crate::Error> {
    crate::error::length("from", from.len(), into.len())?;
    for (a, b) in into.iter_mut().zip(from) {
        a.merge(b);
    }
    Ok(())
}

/// Σ dy and Σ dy·(x − mean) of a channel: the backward twin of [`Moments`]. Shards add them up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct GradSums {
    /// Σ dy: the gradient of beta.
    pub dbeta: f64,
    /// Σ dy·(x − mean): the gradient of gamma times the standard deviation.
    pub dot: f64,
}

impl GradSums {
    /// Adds the sums of another shard over the same statistics.
    pub fn merge(&mut self, other: &GradSums) {
        self.dbeta += other.dbeta;
        self.dot += other.dot;
    }
}
