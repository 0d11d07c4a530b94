#![doc = include_str!("../README.md")]

mod error;
mod flex;
mod ops;
mod view;

pub use error::Error;
pub use ops::BatchNormOps;

use burn::backend::Dispatch;
use burn::nn::BatchNorm;
use burn::tensor::{Device, Tensor};

/// What [`training`] gives: burn's [`BatchNormTrainOutput`](burn::tensor::module::BatchNormTrainOutput).
#[derive(Clone, Debug)]
pub struct Training<const D: usize> {
    /// Of x's shape.
    pub y: Tensor<D>,
    /// The mean of each channel. It has no gradients.
    pub mean: Tensor<1>,
    /// The biased variance of each channel. It has no gradients.
    pub variance: Tensor<1>,
}

/// y = γ·(x − mean)/√(variance + ε) + β with the mean and variance of this batch.
///
/// x is N×C×…, of any strides; gamma and beta have C elements of the same type. On an autodiff device gradients flow to
/// all three. y has x's order in memory where that is channels second or channels last.
///
/// # Errors
/// [`Error`]. Nothing here panics where burn does not.
pub fn training<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Result<Training<D>, Error> {
    let values = check(&x, epsilon, [("gamma", &gamma), ("beta", &beta)])?;
    if values < 2 {
        return Err(Error::Core(bn_core::Error::TooFewValues { expected: 2, got: values }));
    }
    let [gamma, beta] = [gamma, beta].map(Tensor::into_dispatch);
    let (y, mean, variance) = <Dispatch as BatchNormOps>::bn_train(x.into_dispatch(), gamma, beta, epsilon);
    let [mean, variance] = [mean, variance].map(Tensor::from_dispatch);
    Ok(Training { y: Tensor::from_dispatch(y), mean, variance })
}

/// y = γ·(x − mean)/√(variance + ε) + β with given statistics, which are constants to the gradients.
///
/// # Errors
/// As [`training`].
pub fn inference<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    mean: Tensor<1>,
    variance: Tensor<1>,
    epsilon: f64,
) -> Result<Tensor<D>, Error> {
    check(&x, epsilon, [("gamma", &gamma), ("beta", &beta), ("mean", &mean), ("variance", &variance)])?;
    let [gamma, beta, mean, variance] = [gamma, beta, mean, variance].map(Tensor::into_dispatch);
    let y = <Dispatch as BatchNormOps>::bn_inference(x.into_dispatch(), gamma, beta, mean, variance, epsilon);
    Ok(Tensor::from_dispatch(y))
}

/// burn's own layer, with its parameters, running statistics and rules, by these operations: in the place of
/// `layer.forward(x)`.
///
/// # Errors
/// As [`training`]; the running statistics have not moved then.
pub fn forward<const D: usize>(layer: &BatchNorm, x: Tensor<D>) -> Result<Tensor<D>, Error> {
    let device = x.device();
    let (gamma, beta) = (layer.gamma.val(), layer.beta.val());
    if !(device.is_autodiff() && layer.training.is_enabled()) {
        let [mean, variance] = [&layer.running_mean, &layer.running_var].map(|s| s.value().to_device(&device));
        return inference(x, gamma, beta, mean, variance, layer.epsilon);
    }
    let [old_mean, old_var] = [&layer.running_mean, &layer.running_var].map(|s| s.value_sync().to_device(&device));
    check(&x, layer.epsilon, [("running_mean", &old_mean), ("running_var", &old_var)])?;
    let Training { y, mean, variance } = training(x, gamma, beta, layer.epsilon)?;
    for (running, old, new) in [(&layer.running_mean, old_mean, mean), (&layer.running_var, old_var, variance)] {
        let blend = old.mul_scalar(1.0 - layer.momentum).add(new.detach().mul_scalar(layer.momentum));
        running.update(blend.detach());
    }
    Ok(y)
}

/// Values per channel, where bn-core will find nothing wrong.
fn check<const D: usize, const N: usize>(
    x: &Tensor<D>,
    epsilon: f64,
    parameters: [(&'static str, &Tensor<1>); N],
) -> Result<u64, Error> {
    let dims = x.dims();
    if D < 2 {
        return Err(Error::Rank { got: D });
    }
    let dtype = x.dtype();
    if !error::supported(dtype) {
        return Err(Error::DType { what: "x", got: dtype });
    }
    let flex = Device::flex();
    if x.device() != flex {
        return Err(Error::Device { what: "x", got: x.device() });
    }
    for (what, t) in parameters {
        let [got] = t.dims();
        if got != dims[1] {
            return Err(Error::Core(bn_core::Error::Length { what, expected: dims[1], got }));
        }
        if t.dtype() != dtype {
            return Err(Error::DType { what, got: t.dtype() });
        }
        if t.device() != flex {
            return Err(Error::Device { what, got: t.device() });
        }
    }
    let shape = bn_core::Shape::nchw(dims[0], dims[1], &dims[2..])?;
    bn_core::BatchNorm::<f32>::new(shape, epsilon)?;
    Ok(shape.values_per_channel())
}
