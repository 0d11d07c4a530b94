//! The operations on Flex's tensors, by burn's signatures.

use crate::view;
use bn_core::{
    Affine, BackwardInput, BatchNorm, Element, Error, Executor, Gradients, Moments, Op, Run, Shape, Statistics,
    Strides, Variance, moments_to_mean_var,
};
use bn_std::Rayon;
use burn::backend::DType;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::Bytes;
use std::mem::MaybeUninit;

/// What bn-core and burn both calculate with.
trait Float: Element + burn::tensor::Element {
    /// A value of burn's tensor as bn-core's parameter.
    fn widen(self) -> Self::Param;
    /// A parameter in burn's tensor.
    fn narrow(parameter: Self::Param) -> Self;
}

macro_rules! float {
    ($t:ty, $widen:expr, $narrow:expr) => {
        impl Float for $t {
            fn widen(self) -> Self::Param {
                $widen(self)
            }
            fn narrow(parameter: Self::Param) -> Self {
                $narrow(parameter)
            }
        }
    };
}
float!(f32, |v| v, |v| v);
float!(f64, |v| v, |v| v);
float!(half::f16, half::f16::to_f32, half::f16::from_f32);
float!(half::bf16, half::bf16::to_f32, half::bf16::from_f32);

/// Calls a function generic over a `Float` for a tensor's element type. Types were checked before.
macro_rules! dispatch {
    ($x:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $x.dtype() {
            DType::F16 => $function::<half::f16>($($argument),*),
            DType::BF16 => $function::<half::bf16>($($argument),*),
            DType::F32 => $function::<f32>($($argument),*),
            DType::F64 => $function::<f64>($($argument),*),
            other => panic!("batch norm of {other:?}"),
        }
    };
}

/// burn's operations have no errors: they are checked where the public functions are called.
fn checked<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("batch norm: {error}"))
}

/// `ModuleOps::batch_norm` for Flex.
pub(crate) fn batch_norm(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    mean: FlexTensor,
    variance: FlexTensor,
    epsilon: f64,
) -> FlexTensor {
    checked(dispatch!(x, inference(x, [gamma, beta, mean, variance], epsilon)))
}

fn inference<T: Float>(x: FlexTensor, parameters: [FlexTensor; 4], epsilon: f64) -> Result<FlexTensor, Error> {
    let [gamma, beta, mean, var] = parameters.map(values::<T>);
    forward::<T>(x, epsilon, |bn, x, y| {
        run(bn, Op::Inference, |run| bn.inference(x, None, Affine::new(&gamma, &beta), &mean, &var, y, run))
    })
}

/// `ModuleOps::batch_norm_train` for Flex: y, the mean and the biased variance.
pub(crate) fn batch_norm_train(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, epsilon: f64) -> [FlexTensor; 3] {
    checked(dispatch!(x, training(x, [gamma, beta], epsilon)))
}

fn training<T: Float>(x: FlexTensor, parameters: [FlexTensor; 2], epsilon: f64) -> Result<[FlexTensor; 3], Error> {
    let [gamma, beta] = parameters.map(values::<T>);
    let mut moments = vec![Moments::EMPTY; gamma.len()];
    let y = forward::<T>(x, epsilon, |bn, x, y| {
        let affine = Affine::new(&gamma, &beta);
        run(bn, Op::ForwardTraining, |run| bn.forward_training(x, None, affine, y, &mut moments, run))
    })?;
    let (mut mean, mut var) = (gamma, beta);
    moments_to_mean_var(&moments, Variance::Biased, &mut mean, &mut var)?;
    Ok([y, parameter::<T>(mean), parameter::<T>(var)])
}

fn forward<T: Float>(
    x: FlexTensor,
    epsilon: f64,
    write: impl FnOnce(&BatchNorm<T>, &[T], &mut [MaybeUninit<T>]) -> Result<(), Error>,
) -> Result<FlexTensor, Error> {
    let (order, x) = view::ordered(x);
    let layout = x.layout();
    let strides = Strides { x: view::stride(order, layout).unwrap_or_default(), ..Strides::DENSE };
    let bn = BatchNorm::new(Shape::from_dims(order, layout.shape())?, epsilon)?.with_strides(strides)?;
    // SAFETY: bn-core initialises all of y, or fails.
    let y = unsafe { filled(bn.shape().len(), |y| write(&bn, view::span(x.storage(), order, layout)?, y))? };
    Ok(tensor(y, view::channels_second(order, layout.shape())))
}

/// The statistics that a backward pass is by.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// Those of the batch, as [`batch_norm_train`] returned them.
    Batch { mean: FlexTensor, variance: FlexTensor },
    /// Constants.
    Running { mean: FlexTensor, variance: FlexTensor },
}

/// `ModuleOps::batch_norm_train_backward` for Flex, and the same for [`batch_norm`]: dx, dgamma and dbeta, where they
/// are wanted.
pub(crate) fn backward(
    x: FlexTensor,
    gamma: FlexTensor,
    kept: Kept,
    epsilon: f64,
    dy: FlexTensor,
    wanted: [bool; 3],
) -> [Option<FlexTensor>; 3] {
    checked(dispatch!(x, gradients(x, gamma, kept, epsilon, dy, wanted)))
}

fn gradients<T: Float>(
    x: FlexTensor,
    gamma: FlexTensor,
    kept: Kept,
    epsilon: f64,
    dy: FlexTensor,
    [want_dx, want_dgamma, want_dbeta]: [bool; 3],
) -> Result<[Option<FlexTensor>; 3], Error> {
    let (order, x) = view::ordered(x);
    let dy = view::in_order(order, dy);
    let stride = |t: &FlexTensor| view::stride(order, t.layout()).unwrap_or_default();
    let strides = Strides { x: stride(&x), dy: stride(&dy), ..Strides::DENSE };
    let dims = x.layout().shape();
    let bn = BatchNorm::<T>::new(Shape::from_dims(order, dims)?, epsilon)?.with_strides(strides)?;

    let gamma = values::<T>(gamma);
    let (batch, mean, var) = match kept {
        Kept::Batch { mean, variance } => (true, values::<T>(mean), values::<T>(variance)),
        Kept::Running { mean, variance } => (false, values::<T>(mean), values::<T>(variance)),
    };
    let (mean, var) = (&mean[..], &var[..]);
    let input = BackwardInput {
        x: view::span(x.storage(), order, x.layout())?,
        y: None,
        dy: view::span(dy.storage(), order, dy.layout())?,
        gamma: Some(&gamma),
        // What the tensors' type has cost the mean is put right in the pass for the sums.
        statistics: if batch { Statistics::Rounded { mean, var } } else { Statistics::Running { mean, var } },
    };
    let zeros = |wanted| if wanted { vec![T::Param::default(); gamma.len()] } else { Vec::new() };
    let (mut dgamma, mut dbeta) = (zeros(want_dgamma), zeros(want_dbeta));
    let write = |dx: &mut [MaybeUninit<T>]| {
        let output = Gradients {
            dx: want_dx.then(|| dx.into()),
            dgamma: want_dgamma.then_some(&mut dgamma[..]),
            dbeta: want_dbeta.then_some(&mut dbeta[..]),
            ..Gradients::default()
        };
        run(&bn, Op::Backward, |run| bn.backward(input, output, run))
    };
    // SAFETY: bn-core initialises all of dx, or fails; unwanted, dx is empty.
    let dx = unsafe { filled(if want_dx { bn.shape().len() } else { 0 }, write)? };
    Ok([
        want_dx.then(|| tensor(dx, view::channels_second(order, dims))),
        want_dgamma.then(|| parameter::<T>(dgamma)),
        want_dbeta.then(|| parameter::<T>(dbeta)),
    ])
}

/// One value per channel.
fn values<T: Float>(t: FlexTensor) -> Vec<T::Param> {
    t.to_contiguous().storage::<T>().iter().map(|v| v.widen()).collect()
}

fn parameter<T: Float>(values: Vec<T::Param>) -> FlexTensor {
    let layout = Layout::contiguous([values.len()].into());
    tensor(values.into_iter().map(T::narrow).collect(), layout)
}

fn tensor<T: Float>(elements: Vec<T>, layout: Layout) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(elements), layout, T::dtype())
}

/// A call on rayon's threads.
fn run<T: Element>(bn: &BatchNorm<T>, op: Op, call: impl FnOnce(Run<'_>) -> Result<(), Error>) -> Result<(), Error> {
    let rayon = Rayon::global();
    let mut workspace = vec![0; bn.workspace_best(op, rayon.width())];
    call(Run::on(&rayon, &mut workspace))
}

/// What `write` has written, without clearing it first: that would be a pass over memory.
///
/// # Safety
/// `write` initialises every element, unless it returns an error.
unsafe fn filled<T>(
    len: usize,
    write: impl FnOnce(&mut [MaybeUninit<T>]) -> Result<(), Error>,
) -> Result<Vec<T>, Error> {
    let mut elements = Vec::with_capacity(len);
    write(&mut elements.spare_capacity_mut()[..len])?;
    // SAFETY: there is capacity for so many, and the caller promises that they are initialised.
    unsafe { elements.set_len(len) };
    Ok(elements)
}
