//! The custom operation, and its gradients.

use crate::view::{self, Order};
use crate::{NAME, wrap};
use bn_core::{Affine, BackwardInput, BatchNorm, Element, Executor, Gradients, Moments, Op, Run, Statistics, Strides};
use bn_std::Rayon;
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, DType, Error, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};
use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};

/// What bn-core and candle both calculate with.
pub(crate) trait Float: Element<Param: WithDType> + WithDType {}
impl<T: Element<Param: WithDType> + WithDType> Float for T {}

/// Calls a function generic over a `Float` for a tensor's element type.
macro_rules! dispatch {
    ($x:expr, $function:ident($($argument:expr),*)) => {
        match $x.dtype() {
            DType::BF16 => $function::<half::bf16>($($argument),*),
            DType::F16 => $function::<half::f16>($($argument),*),
            DType::F32 => $function::<f32>($($argument),*),
            DType::F64 => $function::<f64>($($argument),*),
            other => Err(Error::UnsupportedDTypeForOp(other, NAME).bt()),
        }
    };
}
pub(crate) use dispatch;

/// y = γ·(x − mean)/√(variance + ε) + β with the statistics of this batch, which are returned too:
/// [`RunningStats::update`](bn_core::RunningStats::update) takes them.
///
/// x is N×C×…, of any strides; gamma and beta have C elements, of x's type or, where that has 16 bits, f32. Gradients
/// flow to all three. y has x's order in memory where that is channels second or channels last.
///
/// # Errors
/// candle's own for types, shapes and devices; others are a [`bn_core::Error`] in a [`Error::WrappedContext`].
pub fn training(x: &Tensor, affine: Option<(&Tensor, &Tensor)>, epsilon: f64) -> Result<(Tensor, Vec<Moments>)> {
    dispatch!(x, training_of(x, affine, epsilon))
}

fn training_of<T: Float>(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    epsilon: f64,
) -> Result<(Tensor, Vec<Moments>)> {
    let moments = Arc::new(OnceLock::new());
    let y = apply::<T>(x, affine, epsilon, Kept::Batch(moments.clone()))?;
    Ok((y, moments.get().cloned().unwrap_or_default()))
}

/// y = γ·(x − running_mean)/√(running_var + ε) + β.
///
/// Shapes and types are those of [`training`]; running_mean and running_var are like gamma. Gradients flow to x,
/// gamma and beta; the statistics are constants.
///
/// # Errors
/// As there.
pub fn inference(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    running_mean: &Tensor,
    running_var: &Tensor,
    epsilon: f64,
) -> Result<Tensor> {
    dispatch!(x, inference_of(x, affine, running_mean, running_var, epsilon))
}

fn inference_of<T: Float>(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    running_mean: &Tensor,
    running_var: &Tensor,
    epsilon: f64,
) -> Result<Tensor> {
    // Copies: the variables may have changed when the gradients are wanted.
    let (mean, var) = (parameter("running_mean", running_mean)?, parameter("running_var", running_var)?);
    apply::<T>(x, affine, epsilon, Kept::Running { mean, var })
}

fn apply<T: Float>(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    epsilon: f64,
    kept: Kept<T::Param>,
) -> Result<Tensor> {
    if x.rank() < 2 {
        bail!("{NAME} takes a tensor of at least two dimensions, got {:?}", x.shape())
    }
    let (order, x) = view::ordered(x)?;
    let op = BatchNormOp::<T> { order, epsilon, kept };
    let y = match affine {
        None => x.apply_op1(op)?,
        Some((gamma, beta)) => x.apply_op3(gamma, beta, op)?,
    };
    view::channels_second(order, y)
}

/// One application of the operation. It is made by [`apply`] and applied once, so what it keeps belongs to its node of
/// the graph.
struct BatchNormOp<T: Float> {
    order: Order,
    epsilon: f64,
    kept: Kept<T::Param>,
}

/// What the backward pass needs of the forward pass, beside its arguments.
enum Kept<P> {
    /// The batch's moments, in f64 and exact: to make them again would take another pass over x, and candle hands
    /// nothing else from `fwd` to `bwd`.
    Batch(Arc<OnceLock<Vec<Moments>>>),
    Running {
        mean: Vec<P>,
        var: Vec<P>,
    },
}

impl<T: Float> BatchNormOp<T> {
    fn plan(&self, dims: &[usize]) -> Result<BatchNorm<T>> {
        BatchNorm::new(view::shape(self.order, dims)?, self.epsilon).map_err(wrap)
    }

    fn forward(&self, x: &CpuStorage, layout: &Layout, affine: Affine<'_, T::Param>) -> Result<(CpuStorage, Shape)> {
        let stride = view::stride(self.order, layout).ok_or(Error::RequiresContiguous { op: NAME })?;
        let bn = self.plan(layout.dims())?.with_strides(Strides { x: stride, ..Strides::DENSE }).map_err(wrap)?;
        let x = view::span(T::cpu_storage_as_slice(x)?, self.order, layout)?;
        let write = |y: &mut [MaybeUninit<T>]| match &self.kept {
            Kept::Batch(kept) => {
                let mut moments = vec![Moments::EMPTY; bn.shape().channels()];
                run(&bn, Op::ForwardTraining, |run| bn.forward_training(x, None, affine, y, &mut moments, run))?;
                kept.set(moments).map_err(|_| Error::Msg(format!("{NAME} has been applied before")).bt())
            }
            Kept::Running { mean, var } => {
                run(&bn, Op::Inference, |run| bn.inference(x, None, affine, mean, var, y, run))
            }
        };
        // SAFETY: bn-core initialises all of y, or fails.
        let y = unsafe { filled(bn.shape().len(), write)? };
        Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
    }

    /// dx, dgamma and dbeta, where they are wanted.
    fn backward(
        &self,
        x: &Tensor,
        gamma: Option<&Tensor>,
        dy: &Tensor,
        wanted: [bool; 3],
    ) -> Result<[Option<Tensor>; 3]> {
        // candle's gradients are sums, which are dense; this copies what is not.
        let dy = dy.contiguous()?;
        let stride = view::stride(self.order, x.layout()).ok_or(Error::RequiresContiguous { op: NAME })?;
        let strides = Strides { x: stride, ..Strides::DENSE };
        let bn = self.plan(x.dims())?.with_strides(strides).map_err(wrap)?;
        let gamma = gamma.map(Tensor::to_vec1::<T::Param>).transpose()?;

        let channels = bn.shape().channels();
        let parameter = |wanted| if wanted { vec![T::Param::default(); channels] } else { Vec::new() };
        let [want_dx, want_dgamma, want_dbeta] = wanted;
        let (mut dgamma, mut dbeta) = (parameter(want_dgamma), parameter(want_dbeta));
        let dx = {
            let ((x, x_layout), (dy, dy_layout)) = (x.storage_and_layout(), dy.storage_and_layout());
            let input = BackwardInput {
                x: view::span(slice(&x)?, self.order, x_layout)?,
                y: None,
                dy: view::span(slice(&dy)?, self.order, dy_layout)?,
                gamma: gamma.as_deref(),
                statistics: match &self.kept {
                    Kept::Batch(moments) => Statistics::Batch(moments.get().map_or(&[], Vec::as_slice)),
                    Kept::Running { mean, var } => Statistics::Running { mean, var },
                },
            };
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
            unsafe { filled(if want_dx { bn.shape().len() } else { 0 }, write)? }
        };
        let device = x.device();
        Ok([
            want_dx.then(|| Tensor::from_vec(dx, x.shape(), device)).transpose()?,
            want_dgamma.then(|| Tensor::from_vec(dgamma, channels, device)).transpose()?,
            want_dbeta.then(|| Tensor::from_vec(dbeta, channels, device)).transpose()?,
        ])
    }
}

impl<T: Float> CustomOp1 for BatchNormOp<T> {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(x, layout, Affine::NONE)
    }
    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [dx, ..] = self.backward(x, None, dy, [true, false, false])?;
        Ok(dx)
    }
}

impl<T: Float> CustomOp3 for BatchNormOp<T> {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let gamma = values::<T::Param>("gamma", gamma, gamma_layout)?;
        let beta = values::<T::Param>("beta", beta, beta_layout)?;
        self.forward(x, layout, Affine::new(&gamma, &beta))
    }
    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // candle would add what nobody asked for to zeros.
        let wanted = [x.track_op(), gamma.track_op(), beta.track_op()];
        let [dx, dgamma, dbeta] = self.backward(x, Some(gamma), dy, wanted)?;
        Ok((dx, dgamma, dbeta))
    }
}

/// One value per channel.
pub(crate) fn parameter<P: WithDType>(what: &'static str, t: &Tensor) -> Result<Vec<P>> {
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => values(what, storage, layout),
        _ => bail!("{NAME} has an implementation for CPUs only"),
    }
}

/// The elements of a tensor of one dimension; how many they should be bn-core checks.
fn values<P: WithDType>(what: &'static str, storage: &CpuStorage, layout: &Layout) -> Result<Vec<P>> {
    let (&[dim], &[stride]) = (layout.dims(), layout.stride()) else {
        let (expected, got, shape) = (1, layout.dims().len(), layout.shape().clone());
        return Err(Error::UnexpectedNumberOfDims { expected, got, shape }.bt());
    };
    let elements = P::cpu_storage_as_slice(storage)
        .map_err(|_| Error::UnexpectedDType { msg: what, expected: P::DTYPE, got: storage.dtype() }.bt())?;
    Ok((0..dim).map(|i| elements[layout.start_offset() + i * stride]).collect())
}

fn slice<T: WithDType>(storage: &Storage) -> Result<&[T]> {
    match storage {
        Storage::Cpu(storage) => T::cpu_storage_as_slice(storage),
        _ => bail!("{NAME} has an implementation for CPUs only"),
    }
}

/// A call on rayon's threads, candle's own.
fn run<T: Float>(
    bn: &BatchNorm<T>,
    op: Op,
    call: impl FnOnce(Run<'_>) -> std::result::Result<(), bn_core::Error>,
) -> Result<()> {
    let rayon = Rayon::global();
    let mut workspace = vec![0; bn.workspace_best(op, rayon.width())];
    call(Run::on(&rayon, &mut workspace)).map_err(wrap)
}

/// What `write` has written, without clearing it first: that would be a pass over memory.
///
/// # Safety
/// `write` initialises every element, unless it returns an error.
unsafe fn filled<T>(len: usize, write: impl FnOnce(&mut [MaybeUninit<T>]) -> Result<()>) -> Result<Vec<T>> {
    let mut elements = Vec::with_capacity(len);
    write(&mut elements.spare_capacity_mut()[..len])?;
    // SAFETY: there is capacity for so many, and the caller promises that they are initialised.
    unsafe { elements.set_len(len) };
    Ok(elements)
}
