//! What a layer has learned and measured, as a checkpoint keeps it.

use crate::error::Error;
use bn_core::Param;

/// Parameters and running statistics of a layer, under the names of PyTorch's `state_dict`, so that
/// the arrays of a checkpoint go straight in.
///
/// All arrays have one entry per channel. Of a layer without gamma `weight` is `None`, without beta
/// `bias` is; PyTorch's `affine=False` leaves both out. The variance is the one that inference
/// divides by: PyTorch keeps the unbiased one there, Keras the biased; nothing is converted.
///
/// ```
/// use bn_std::{BatchNormLayer, State};
/// let mut bn = BatchNormLayer::<f32>::new(2)?;
/// let checkpoint = State {
///     weight: Some(vec![1.5, 0.5]),
///     bias: Some(vec![0.0, 0.25]),
///     running_mean: vec![0.1, -0.2],
///     running_var: vec![2.0, 3.0],
///     num_batches_tracked: 1000,
/// };
/// bn.load_state(&checkpoint)?;
/// assert_eq!(bn.state(), checkpoint);
/// # Ok::<(), bn_std::Error>(())
/// ```
///
/// With feature `serde` it can be written and read; `weight`, `bias` and `num_batches_tracked` may be
/// missing then (checkpoints from before PyTorch 0.4.1 have no count). `serde_json` reads f64 back to
/// the bit only with its feature `float_roundtrip`.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct State<P> {
    /// gamma.
    pub weight: Option<Vec<P>>,
    /// beta.
    pub bias: Option<Vec<P>>,
    /// The running mean.
    pub running_mean: Vec<P>,
    /// The running variance.
    pub running_var: Vec<P>,
    /// Training batches seen so far; [`bn_core::Momentum::Cumulative`] averages by it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub num_batches_tracked: u64,
}

impl<P: Param> State<P> {
    /// Checks everything that a layer of so many channels, with or without gamma and beta, wants.
    pub(crate) fn check(&self, channels: usize, gamma: bool, beta: bool) -> Result<(), Error> {
        for (what, array, wanted) in [("weight", &self.weight, gamma), ("bias", &self.bias, beta)] {
            match (array, wanted) {
                (Some(array), true) => check(what, array, channels, f64::NEG_INFINITY)?,
                (None, false) => {}
                (None, true) => return Err(bn_core::Error::Missing { what }.into()),
                (Some(_), false) => return Err(bn_core::Error::Unused { what }.into()),
            }
        }
        check("running_mean", &self.running_mean, channels, f64::NEG_INFINITY)?;
        check("running_var", &self.running_var, channels, 0.0)
    }
}

fn check<P: Param>(what: &'static str, array: &[P], channels: usize, least: f64) -> Result<(), Error> {
    if array.len() != channels {
        return Err(bn_core::Error::Length { what, expected: channels, got: array.len() }.into());
    }
    let mut values = array.iter().map(|v| v.to_f64()).enumerate();
    match values.find(|&(_, v)| !(v.is_finite() && v >= least)) {
        Some((channel, got)) => Err(Error::Value { what, channel, got }),
        None => Ok(()),
    }
}
