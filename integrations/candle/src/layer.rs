//! Batch normalization as a layer.

use crate::op::{Float, dispatch, inference, parameter, training};
use crate::{NAME, wrap};
use bn_core::{Moments, RunningStats};
use candle_core::{DType, Error, ModuleT, Result, Tensor, Var, bail};
use candle_nn::{BatchNormConfig, Init, VarBuilder};

/// A layer with running statistics, after [`candle_nn::BatchNorm`]: `forward_t(x, true)` normalizes by the batch and
/// moves the running statistics, `forward_t(x, false)` normalizes by those.
///
/// Everything but x has x's type or, where that has 16 bits, f32.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    affine: Option<(Tensor, Tensor)>,
    running_mean: Var,
    running_var: Var,
    epsilon: f64,
    rule: RunningStats,
}

impl BatchNorm {
    /// From statistics, and gamma and beta if there are to be any. The momentum weighs the new value (PyTorch's and
    /// candle's convention, with the unbiased variance).
    ///
    /// A [`Var`]'s tensor is used as it is: its running statistics are those of the layer.
    ///
    /// # Errors
    /// Where the parts differ in shape or type, or momentum is not from 0 to 1.
    pub fn new(
        running_mean: &Tensor,
        running_var: &Tensor,
        affine: Option<(Tensor, Tensor)>,
        epsilon: f64,
        momentum: f64,
    ) -> Result<Self> {
        let expected = running_mean.dims1()?;
        let parts = affine.iter().flat_map(|(gamma, beta)| [("gamma", gamma), ("beta", beta)]);
        for (what, part) in parts.chain([("running_var", running_var)]) {
            if part.dims() != [expected] {
                let msg = format!("{NAME}: shape of {what}");
                return Err(Error::UnexpectedShape { msg, expected: expected.into(), got: part.shape().clone() }.bt());
            }
            if part.dtype() != running_mean.dtype() {
                return Err(
                    Error::UnexpectedDType { msg: what, expected: running_mean.dtype(), got: part.dtype() }.bt()
                );
            }
        }
        Ok(BatchNorm {
            affine,
            running_mean: Var::from_tensor(running_mean)?,
            running_var: Var::from_tensor(running_var)?,
            epsilon,
            rule: RunningStats::pytorch(momentum).map_err(wrap)?,
        })
    }

    /// From a checkpoint, or for one: the names are those of [`candle_nn::batch_norm()`].
    ///
    /// # Errors
    /// As [`BatchNorm::new`], and where the configuration does not remove the mean, which bn-core always does.
    pub fn load(num_features: usize, config: impl Into<BatchNormConfig>, vb: VarBuilder<'_>) -> Result<Self> {
        let config = config.into();
        if !config.remove_mean {
            bail!("{NAME}: remove_mean = false is not supported")
        }
        let get = |name, value| vb.get_with_hints(num_features, name, Init::Const(value));
        let affine = config.affine.then(|| Ok::<_, Error>((get("weight", 1.0)?, get("bias", 0.0)?))).transpose()?;
        Self::new(&get("running_mean", 0.0)?, &get("running_var", 1.0)?, affine, config.eps, config.momentum)
    }

    /// gamma and beta.
    pub fn affine(&self) -> Option<(&Tensor, &Tensor)> {
        self.affine.as_ref().map(|(gamma, beta)| (gamma, beta))
    }

    /// The running mean.
    pub fn running_mean(&self) -> &Tensor {
        &self.running_mean
    }

    /// The running variance.
    pub fn running_var(&self) -> &Tensor {
        &self.running_var
    }

    fn update<T: Float>(&self, moments: &[Moments]) -> Result<()> {
        let set = |var: &Var, values: Vec<T::Param>| var.set(&Tensor::from_vec(values, moments.len(), var.device())?);
        let mut mean = parameter::<T::Param>("running_mean", &self.running_mean)?;
        let mut var = parameter::<T::Param>("running_var", &self.running_var)?;
        self.rule.update(moments, &mut mean, &mut var, None).map_err(wrap)?;
        set(&self.running_mean, mean)?;
        set(&self.running_var, var)
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if !train {
            return inference(x, self.affine(), &self.running_mean, &self.running_var, self.epsilon);
        }
        fn train_of<T: Float>(layer: &BatchNorm, x: &Tensor) -> Result<Tensor> {
            let (y, moments) = training(x, layer.affine(), layer.epsilon)?;
            layer.update::<T>(&moments)?;
            Ok(y)
        }
        dispatch!(x, train_of(self, x))
    }
}
