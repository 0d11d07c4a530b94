//! A batch normalization that owns what it learns and measures.

use crate::error::{Error, filled};
use crate::executor::Rayon;
use crate::state::State;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Element, Executor, Gradients, Isa, Moments, Op, Output, Param, Run,
    RunningStats, Shape, Statistics,
};
use core::fmt;
use std::sync::Arc;

/// Which statistics a layer normalizes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The batch's, which also enter the running ones. The gradient goes through them.
    #[default]
    Train,
    /// The running ones. Nothing is kept for a backward pass, so that a validation pass between a
    /// training forward pass and its backward pass does no harm.
    Inference,
    /// The running ones, which are constants for the backward pass: "frozen" batch normalization, for
    /// fine-tuning. gamma and beta still have gradients.
    Frozen,
}

/// Batch normalization with its parameters, their gradients, its running statistics, and the memory
/// that it works in: y = act(γ·(x − mean)/√(variance + ε) + β + residual).
///
/// It is made by [`new`](Self::new) with PyTorch's defaults, changed by the `with_` methods, and works
/// on batches of any size: the shape comes with each call. Tensors stay the caller's; the layer keeps
/// one [`Moments`] per channel between forward and backward. Every result has the same bits on every
/// executor and instruction set.
///
/// ```
/// use bn_core::{Activation, RunningStats, Shape};
/// use bn_std::{BatchNormLayer, Mode};
///
/// let mut bn = BatchNormLayer::<f32>::new(16)?
///     .with_epsilon(1e-3)?
///     .with_running_stats(RunningStats::keras(0.99)?)
///     .with_activation(Activation::Relu)?;
/// let shape = Shape::nhwc(4, 16, &[8, 8])?;
/// let x: Vec<f32> = (0..shape.len()).map(|i| (i * i % 101) as f32).collect();
/// let dy = vec![1.0; shape.len()];
/// let (mut y, mut dx) = (vec![0.0; shape.len()], vec![0.0; shape.len()]);
/// for _step in 0..3 {
///     bn.zero_grad();
///     bn.forward(shape, &x, None, &mut y[..])?;
///     bn.backward(&x, Some(&y), &dy, Some(dx.as_mut_slice().into()), None)?;
///     for (parameter, gradient) in bn.parameters() {
///         for (p, g) in parameter.iter_mut().zip(gradient) {
///             *p -= 0.1 * g;
///         }
///     }
/// }
/// bn.set_mode(Mode::Inference);
/// bn.forward(Shape::nhwc(1, 16, &[8, 8])?, &x[..16 * 64], None, &mut y[..16 * 64])?;
/// # Ok::<(), bn_std::Error>(())
/// ```
#[derive(Clone)]
pub struct BatchNormLayer<T: Element> {
    channels: usize,
    epsilon: f64,
    activation: Activation,
    one_value: bool,
    running: RunningStats,
    mode: Mode,
    isa: Isa,
    executor: Arc<dyn Executor + Send>,
    parameters: Pair<T::Param>,
    /// Summed up since `zero_grad`.
    gradients: Pair<T::Param>,
    /// Those of one backward pass, before they are added up.
    fresh: Pair<T::Param>,
    running_mean: Vec<T::Param>,
    running_var: Vec<T::Param>,
    num_batches_tracked: u64,
    /// Of the last forward pass in training mode.
    moments: Vec<Moments>,
    last: Option<Last>,
    plans: Plans<T>,
    workspace: Workspace,
}

/// gamma and beta, or something of the same shape.
#[derive(Clone)]
struct Pair<P> {
    gamma: Option<Vec<P>>,
    beta: Option<Vec<P>>,
}

/// The forward pass that a backward pass goes through.
#[derive(Clone, Copy)]
struct Last {
    shape: Shape,
    /// Whether it normalized by the batch's statistics.
    batch: bool,
}

/// x and y of a forward pass.
enum Operands<'a, T> {
    Apart(&'a [T], Output<'a, T>),
    Same(&'a mut [T]),
}

impl<T: Element> BatchNormLayer<T> {
    /// A layer with PyTorch's defaults: gamma 1, beta 0, running mean 0, running variance 1,
    /// epsilon 1e-5, [`RunningStats::pytorch`]`(0.1)`, no activation, [`Mode::Train`]; it runs on
    /// [`Rayon::global`] with the instructions of [`isa()`](fn@crate::isa).
    ///
    /// # Errors
    /// [`bn_core::Error::NoChannels`], [`bn_core::Error::ShapeOverflow`]; [`Error::Isa`];
    /// [`Error::Memory`].
    ///
    /// ```
    /// let bn = bn_std::BatchNormLayer::<f64>::new(64)?;
    /// assert_eq!((bn.channels(), bn.epsilon()), (64, 1e-5));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn new(channels: usize) -> Result<Self, Error> {
        Shape::dense(1, channels)?;
        let one = of::<T::Param>(1.0);
        let pair = |gamma| -> Result<_, Error> {
            let beta = T::Param::default();
            Ok(Pair { gamma: Some(filled(channels, gamma)?), beta: Some(filled(channels, beta)?) })
        };
        Ok(BatchNormLayer {
            channels,
            epsilon: 1e-5,
            activation: Activation::Identity,
            one_value: false,
            running: RunningStats::pytorch(0.1)?,
            mode: Mode::Train,
            isa: crate::isa()?,
            executor: Arc::new(Rayon::global()),
            parameters: pair(one)?,
            gradients: pair(T::Param::default())?,
            fresh: pair(T::Param::default())?,
            running_mean: filled(channels, T::Param::default())?,
            running_var: filled(channels, one)?,
            num_batches_tracked: 0,
            moments: filled(channels, Moments::EMPTY)?,
            last: None,
            plans: Plans(Vec::new()),
            workspace: Workspace(Vec::new()),
        })
    }

    /// With this added to the variance, in units of x². Keras' default is 1e-3.
    ///
    /// # Errors
    /// [`bn_core::Error::Epsilon`] where it is negative, infinite or NaN.
    ///
    /// ```
    /// use bn_std::{BatchNormLayer, Error};
    /// assert_eq!(BatchNormLayer::<f32>::new(8)?.with_epsilon(1e-3)?.epsilon(), 1e-3);
    /// let refused = BatchNormLayer::<f32>::new(8)?.with_epsilon(-1.0).unwrap_err();
    /// assert_eq!(refused, Error::Core(bn_core::Error::Epsilon { got: -1.0 }));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn with_epsilon(mut self, epsilon: f64) -> Result<Self, Error> {
        BatchNorm::<T>::new(Shape::dense(1, self.channels)?, epsilon)?;
        self.epsilon = epsilon;
        self.plans.0.clear();
        Ok(self)
    }

    /// With an activation of the result. Its backward pass needs y.
    ///
    /// # Errors
    /// [`bn_core::Error::Activation`] where its parameters make no sense.
    ///
    /// ```
    /// use bn_core::Activation;
    /// let relu6 = Activation::Clamp { lo: 0.0, hi: 6.0 };
    /// let bn = bn_std::BatchNormLayer::<f32>::new(8)?.with_activation(relu6)?;
    /// assert_eq!(bn.activation(), relu6);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn with_activation(mut self, activation: Activation) -> Result<Self, Error> {
        BatchNorm::<T>::new(Shape::dense(1, self.channels)?, self.epsilon)?.with_activation(activation)?;
        self.activation = activation;
        self.plans.0.clear();
        Ok(self)
    }

    /// With a rule for the running statistics: see [`RunningStats`] for the frameworks' ones.
    ///
    /// ```
    /// use bn_core::RunningStats;
    /// let bn = bn_std::BatchNormLayer::<f32>::new(8)?.with_running_stats(RunningStats::onnx(0.9)?);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn with_running_stats(mut self, running: RunningStats) -> Self {
        self.running = running;
        self
    }

    /// Without gamma: it is 1 and has no gradient.
    ///
    /// ```
    /// let bn = bn_std::BatchNormLayer::<f32>::new(8)?.without_gamma().without_beta();
    /// assert_eq!((bn.gamma(), bn.state().weight), (None, None));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn without_gamma(mut self) -> Self {
        (self.parameters.gamma, self.gradients.gamma, self.fresh.gamma) = (None, None, None);
        self
    }

    /// Without beta: it is 0 and has no gradient.
    ///
    /// ```
    /// let bn = bn_std::BatchNormLayer::<f32>::new(8)?.without_beta();
    /// assert_eq!((bn.beta(), bn.state().bias), (None, None));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn without_beta(mut self) -> Self {
        (self.parameters.beta, self.gradients.beta, self.fresh.beta) = (None, None, None);
        self
    }

    /// In this mode from the start.
    ///
    /// ```
    /// use bn_std::{BatchNormLayer, Mode};
    /// assert_eq!(BatchNormLayer::<f32>::new(8)?.with_mode(Mode::Frozen).mode(), Mode::Frozen);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Allows training on a single value per channel, whose variance is 0, so that y = β. Without
    /// this that is [`bn_core::Error::TooFewValues`], as in PyTorch.
    ///
    /// ```
    /// use bn_core::Shape;
    /// let mut bn = bn_std::BatchNormLayer::<f32>::new(2)?.allow_one_value();
    /// let mut y = [7.0; 2];
    /// bn.forward(Shape::dense(1, 2)?, &[3.0, 4.0], None, &mut y)?;
    /// assert_eq!(y, [0.0; 2]);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn allow_one_value(mut self) -> Self {
        self.one_value = true;
        self.plans.0.clear();
        self
    }

    /// On an executor of one's own: [`Rayon::shared`], [`bn_core::Serial`], an engine's job system.
    /// Clones of the layer share it.
    ///
    /// ```
    /// let bn = bn_std::BatchNormLayer::<f32>::new(8)?.with_executor(bn_core::Serial);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn with_executor(mut self, executor: impl Executor + Send + 'static) -> Self {
        self.executor = Arc::new(executor);
        self
    }

    /// With an instruction set chosen by hand, whatever `BN_ISA` says.
    ///
    /// ```
    /// let bn = bn_std::BatchNormLayer::<f32>::new(8)?.with_isa(bn_core::Isa::PORTABLE);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn with_isa(mut self, isa: Isa) -> Self {
        self.isa = isa;
        self.plans.0.clear();
        self
    }

    /// y from x, by the [mode](Self::mode)'s statistics. Returns in how many channels the running
    /// statistics were left as they are because those of the batch are not finite: 0, except in
    /// training.
    ///
    /// x, the residual, which is added before the activation, and y have `shape`, whose batch and
    /// spatial size may change from call to call. y may be uninitialised memory
    /// (`&mut [MaybeUninit<T>]`). An empty batch is legal where the running statistics are used.
    ///
    /// # Errors
    /// [`Error::Channels`], [`bn_core::Error::Length`], [`bn_core::Error::TooFewValues`],
    /// [`Error::Memory`]: nothing has changed then. [`bn_core::Error::Executor`].
    ///
    /// ```
    /// use bn_core::Shape;
    /// let mut bn = bn_std::BatchNormLayer::<f32>::new(1)?;
    /// let mut y = [0.0; 2];
    /// let skipped = bn.forward(Shape::dense(2, 1)?, &[1.0, 3.0], Some(&[10.0, 20.0]), &mut y)?;
    /// assert!(skipped == 0 && (y[0] - 9.0).abs() < 1e-4 && (y[1] - 21.0).abs() < 1e-4);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn forward<'y>(
        &mut self,
        shape: Shape,
        x: &[T],
        residual: Option<&[T]>,
        y: impl Into<Output<'y, T>>,
    ) -> Result<usize, Error>
    where
        T: 'y,
    {
        self.run_forward(shape, residual, Operands::Apart(x, y.into()))
    }

    /// [`forward`](Self::forward) over its input. The backward pass needs x: keep a copy where there
    /// will be one.
    ///
    /// # Errors
    /// As there.
    ///
    /// ```
    /// use bn_core::Shape;
    /// use bn_std::{BatchNormLayer, Mode};
    /// let mut bn = BatchNormLayer::<f32>::new(1)?.with_epsilon(0.0)?.with_mode(Mode::Inference);
    /// let mut x = [1.0, 3.0];
    /// bn.forward_in_place(Shape::dense(2, 1)?, &mut x, None)?;
    /// assert_eq!(x, [1.0, 3.0]); // running mean 0, running variance 1
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn forward_in_place(&mut self, shape: Shape, x_to_y: &mut [T], residual: Option<&[T]>) -> Result<usize, Error> {
        self.run_forward(shape, residual, Operands::Same(x_to_y))
    }

    /// The gradients of x and of the residual, where wanted, through the last forward pass in training
    /// or frozen mode; those of gamma and beta are added to [`grad_gamma`](Self::grad_gamma) and
    /// [`grad_beta`](Self::grad_beta).
    ///
    /// x is that forward pass's input and y its output, which only an activation needs; dy is the
    /// gradient of y. All have its shape. dx and dresidual are overwritten and may be uninitialised.
    ///
    /// # Errors
    /// [`Error::NoForward`], [`bn_core::Error::Length`]; [`bn_core::Error::Missing`] where an
    /// activation wants y; [`Error::Memory`]: nothing has changed then. [`bn_core::Error::Executor`].
    ///
    /// ```
    /// use bn_core::Shape;
    /// let mut bn = bn_std::BatchNormLayer::<f64>::new(1)?;
    /// let (x, mut y, mut dx) = ([1.0, 2.0, 3.0], [0.0; 3], [0.0; 3]);
    /// bn.forward(Shape::dense(3, 1)?, &x, None, &mut y)?;
    /// bn.backward(&x, None, &[1.0, 2.0, 4.0], Some((&mut dx).into()), None)?;
    /// assert_eq!(bn.grad_beta(), Some(&[7.0][..]));
    /// assert!((dx[0] + dx[1] + dx[2]).abs() < 1e-12); // a shift of x changes nothing
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn backward(
        &mut self,
        x: &[T],
        y: Option<&[T]>,
        dy: &[T],
        dx: Option<Output<'_, T>>,
        dresidual: Option<Output<'_, T>>,
    ) -> Result<(), Error> {
        self.run_backward(x, y, dresidual, |plan, input, output, run| {
            plan.backward(BackwardInput { dy, ..input }, Gradients { dx, ..output }, run)
        })
    }

    /// [`backward`](Self::backward) with dx over dy.
    ///
    /// # Errors
    /// As there.
    ///
    /// ```
    /// use bn_core::Shape;
    /// let mut bn = bn_std::BatchNormLayer::<f64>::new(1)?;
    /// let (x, mut y, mut dy) = ([1.0, 2.0, 3.0], [0.0; 3], [1.0; 3]);
    /// bn.forward(Shape::dense(3, 1)?, &x, None, &mut y)?;
    /// bn.backward_in_place(&x, None, &mut dy, None)?;
    /// assert_eq!(dy, [0.0; 3]); // the same for all: no gradient
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn backward_in_place(
        &mut self,
        x: &[T],
        y: Option<&[T]>,
        dy_to_dx: &mut [T],
        dresidual: Option<Output<'_, T>>,
    ) -> Result<(), Error> {
        self.run_backward(x, y, dresidual, |plan, input, output, run| {
            plan.backward_in_place(dy_to_dx, input, output, run)
        })
    }

    /// Sets the gradients of gamma and beta to 0.
    ///
    /// ```
    /// let mut bn = bn_std::BatchNormLayer::<f32>::new(1)?;
    /// bn.zero_grad();
    /// assert_eq!(bn.grad_gamma(), Some(&[0.0][..]));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn zero_grad(&mut self) {
        for sums in [&mut self.gradients.gamma, &mut self.gradients.beta].into_iter().flatten() {
            sums.fill(T::Param::default());
        }
    }

    /// gamma and beta, those that there are, each with its gradient: what an optimizer walks over.
    ///
    /// ```
    /// let mut bn = bn_std::BatchNormLayer::<f32>::new(8)?;
    /// for (parameter, gradient) in bn.parameters() {
    ///     for (p, g) in parameter.iter_mut().zip(gradient) {
    ///         *p -= 0.01 * g;
    ///     }
    /// }
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn parameters(&mut self) -> impl Iterator<Item = (&mut [T::Param], &[T::Param])> {
        let Pair { gamma, beta } = &mut self.parameters;
        [(gamma, &self.gradients.gamma), (beta, &self.gradients.beta)]
            .into_iter()
            .filter_map(|(p, g)| Some((p.as_deref_mut()?, g.as_deref()?)))
    }

    /// gamma, if there is one: a factor per channel.
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(2)?.gamma(), Some(&[1.0, 1.0][..]));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn gamma(&self) -> Option<&[T::Param]> {
        self.parameters.gamma.as_deref()
    }

    /// gamma, to be changed: not between a forward pass and its backward pass.
    ///
    /// ```
    /// let mut bn = bn_std::BatchNormLayer::<f32>::new(2)?;
    /// // The last BN of a residual block is often started at 0.
    /// if let Some(gamma) = bn.gamma_mut() {
    ///     gamma.fill(0.0);
    /// }
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn gamma_mut(&mut self) -> Option<&mut [T::Param]> {
        self.parameters.gamma.as_deref_mut()
    }

    /// beta, if there is one: what is added to each channel, in units of y.
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(2)?.beta(), Some(&[0.0, 0.0][..]));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn beta(&self) -> Option<&[T::Param]> {
        self.parameters.beta.as_deref()
    }

    /// beta, to be changed.
    ///
    /// ```
    /// let mut bn = bn_std::BatchNormLayer::<f32>::new(2)?;
    /// if let Some(beta) = bn.beta_mut() {
    ///     beta.copy_from_slice(&[0.5, -0.5]);
    /// }
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn beta_mut(&mut self) -> Option<&mut [T::Param]> {
        self.parameters.beta.as_deref_mut()
    }

    /// Σ dy·x̂ of all backward passes since [`zero_grad`](Self::zero_grad); `None` without gamma.
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(1)?.grad_gamma(), Some(&[0.0][..]));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn grad_gamma(&self) -> Option<&[T::Param]> {
        self.gradients.gamma.as_deref()
    }

    /// Σ dy of all backward passes since [`zero_grad`](Self::zero_grad); `None` without beta.
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(1)?.grad_beta(), Some(&[0.0][..]));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn grad_beta(&self) -> Option<&[T::Param]> {
        self.gradients.beta.as_deref()
    }

    /// The running mean of each channel, in units of x.
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(2)?.running_mean(), [0.0, 0.0]);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn running_mean(&self) -> &[T::Param] {
        &self.running_mean
    }

    /// The running variance of each channel, in units of x²: biased or not, as
    /// [`RunningStats::variance`] says.
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(2)?.running_var(), [1.0, 1.0]);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn running_var(&self) -> &[T::Param] {
        &self.running_var
    }

    /// The statistics of the last batch in training mode, until a forward pass in frozen mode or
    /// [`load_state`](Self::load_state) takes their place.
    ///
    /// ```
    /// use bn_core::Shape;
    /// let mut bn = bn_std::BatchNormLayer::<f32>::new(1)?;
    /// assert_eq!(bn.moments(), None);
    /// bn.forward(Shape::dense(2, 1)?, &[1.0, 3.0], None, &mut [0.0; 2])?;
    /// assert_eq!(bn.moments().unwrap()[0].mean, 2.0);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn moments(&self) -> Option<&[Moments]> {
        self.last.filter(|last| last.batch).map(|_| &self.moments[..])
    }

    /// Channels.
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(2)?.channels(), 2);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// What is added to the variance, in units of x².
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(2)?.epsilon(), 1e-5);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// The activation.
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(2)?.activation(), bn_core::Activation::Identity);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// The rule for the running statistics.
    ///
    /// ```
    /// use bn_core::RunningStats;
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(2)?.running_stats(), RunningStats::pytorch(0.1)?);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn running_stats(&self) -> RunningStats {
        self.running
    }

    /// The instructions in use.
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(2)?.isa(), bn_std::isa()?);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Which statistics it normalizes by.
    ///
    /// ```
    /// assert_eq!(bn_std::BatchNormLayer::<f32>::new(2)?.mode(), bn_std::Mode::Train);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Changes the mode of the following forward passes. A backward pass goes by the mode that its
    /// forward pass had.
    ///
    /// ```
    /// let mut bn = bn_std::BatchNormLayer::<f32>::new(2)?;
    /// bn.set_mode(bn_std::Mode::Inference);
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// A copy of parameters and running statistics, for a checkpoint.
    ///
    /// ```
    /// let state = bn_std::BatchNormLayer::<f32>::new(2)?.state();
    /// assert_eq!((state.weight, state.num_batches_tracked), (Some(vec![1.0, 1.0]), 0));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn state(&self) -> State<T::Param> {
        State {
            weight: self.parameters.gamma.clone(),
            bias: self.parameters.beta.clone(),
            running_mean: self.running_mean.clone(),
            running_var: self.running_var.clone(),
            num_batches_tracked: self.num_batches_tracked,
        }
    }

    /// Takes parameters and running statistics from a checkpoint. Gradients stay; a forward pass that
    /// waits for its backward pass is forgotten.
    ///
    /// # Errors
    /// Everything is checked before anything changes: [`bn_core::Error::Length`];
    /// [`bn_core::Error::Missing`] and [`bn_core::Error::Unused`] where the layer has a gamma or beta
    /// and the state has not, or the other way round; [`Error::Value`] for values that are not finite
    /// and for negative variances.
    ///
    /// ```
    /// use bn_std::{BatchNormLayer, Error};
    /// let mut bn = BatchNormLayer::<f32>::new(2)?;
    /// let mut state = bn.state();
    /// state.running_var[1] = -1.0;
    /// let error = bn.load_state(&state).unwrap_err();
    /// assert_eq!(error, Error::Value { what: "running_var", channel: 1, got: -1.0 });
    /// # Ok::<(), Error>(())
    /// ```
    pub fn load_state(&mut self, state: &State<T::Param>) -> Result<(), Error> {
        let Pair { gamma, beta } = &mut self.parameters;
        state.check(self.channels, gamma.is_some(), beta.is_some())?;
        for (to, from) in [(gamma, &state.weight), (beta, &state.bias)] {
            if let (Some(to), Some(from)) = (to, from) {
                to.copy_from_slice(from);
            }
        }
        self.running_mean.copy_from_slice(&state.running_mean);
        self.running_var.copy_from_slice(&state.running_var);
        self.num_batches_tracked = state.num_batches_tracked;
        self.last = None;
        Ok(())
    }

    /// Shape and layout of the forward pass that a backward pass would go through.
    #[cfg(feature = "ndarray")]
    pub(crate) fn last_shape(&self) -> Result<Shape, Error> {
        self.last.map(|last| last.shape).ok_or(Error::NoForward)
    }

    fn run_forward(&mut self, shape: Shape, residual: Option<&[T]>, operands: Operands<'_, T>) -> Result<usize, Error> {
        let plan = self.plan(shape)?;
        let train = self.mode == Mode::Train;
        let op = if train { Op::ForwardTraining } else { Op::Inference };
        let workspace = self.workspace.of(plan.workspace_best(op, self.executor.width()))?;
        let run = Run::on(&*self.executor, workspace);
        let affine = self.parameters.affine();
        let (mean, var) = (&mut self.running_mean, &mut self.running_var);
        if !train {
            match operands {
                Operands::Apart(x, y) => plan.inference(x, residual, affine, mean, var, y, run),
                Operands::Same(x_to_y) => plan.inference_in_place(x_to_y, residual, affine, mean, var, run),
            }?;
            if self.mode == Mode::Frozen {
                self.last = Some(Last { shape, batch: false });
            }
            return Ok(0);
        }
        // Once the moments may have been written, also where an executor panics, the forward pass
        // before this one has lost its own.
        let last = self.last.take();
        let moments = &mut self.moments[..];
        let done = match operands {
            Operands::Apart(x, y) => plan.forward_training(x, residual, affine, y, moments, run),
            Operands::Same(x_to_y) => plan.forward_training_in_place(x_to_y, residual, affine, moments, run),
        };
        if let Err(error) = done {
            if !matches!(error, bn_core::Error::Executor { .. }) {
                self.last = last;
            }
            return Err(error.into());
        }
        let skipped = self.running.update(moments, mean, var, Some(&mut self.num_batches_tracked))?;
        self.last = Some(Last { shape, batch: true });
        Ok(skipped)
    }

    fn run_backward(
        &mut self,
        x: &[T],
        y: Option<&[T]>,
        dresidual: Option<Output<'_, T>>,
        call: impl FnOnce(BatchNorm<T>, BackwardInput<'_, T>, Gradients<'_, T>, Run<'_>) -> Result<(), bn_core::Error>,
    ) -> Result<(), Error> {
        let last = self.last.ok_or(Error::NoForward)?;
        let plan = self.plan(last.shape)?;
        let workspace = self.workspace.of(plan.workspace_best(Op::Backward, self.executor.width()))?;
        let statistics = if last.batch {
            Statistics::Batch(&self.moments)
        } else {
            Statistics::Running { mean: &self.running_mean, var: &self.running_var }
        };
        let input = BackwardInput { x, y, dy: &[], gamma: self.parameters.affine().gamma, statistics };
        let output = Gradients {
            dx: None,
            dresidual,
            dgamma: self.fresh.gamma.as_deref_mut(),
            dbeta: self.fresh.beta.as_deref_mut(),
        };
        call(plan, input, output, Run::on(&*self.executor, workspace))?;
        // Only now that all is well.
        self.gradients.add(&self.fresh);
        Ok(())
    }

    /// The plan for a shape.
    fn plan(&mut self, shape: Shape) -> Result<BatchNorm<T>, Error> {
        if shape.channels() != self.channels {
            return Err(Error::Channels { expected: self.channels, got: shape.channels() });
        }
        if let Some(plan) = self.plans.get(shape) {
            return Ok(plan);
        }
        let mut plan = BatchNorm::new(shape, self.epsilon)?.with_activation(self.activation)?.with_isa(self.isa);
        if self.one_value {
            plan = plan.allow_one_value();
        }
        self.plans.insert(plan);
        Ok(plan)
    }
}

impl<T: Element> fmt::Debug for BatchNormLayer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchNormLayer")
            .field("channels", &self.channels)
            .field("epsilon", &self.epsilon)
            .field("activation", &self.activation)
            .field("running_stats", &self.running)
            .field("mode", &self.mode)
            .field("isa", &self.isa)
            .field("threads", &self.executor.width())
            .field("gamma", &self.parameters.gamma.is_some())
            .field("beta", &self.parameters.beta.is_some())
            .field("num_batches_tracked", &self.num_batches_tracked)
            .finish_non_exhaustive()
    }
}

impl<P: Param> Pair<P> {
    fn affine(&self) -> Affine<'_, P> {
        Affine { gamma: self.gamma.as_deref(), beta: self.beta.as_deref() }
    }

    fn add(&mut self, other: &Self) {
        for (sums, values) in [(&mut self.gamma, &other.gamma), (&mut self.beta, &other.beta)] {
            for (sum, value) in sums.iter_mut().flatten().zip(values.iter().flatten()) {
                *sum = *sum + *value;
            }
        }
    }
}

/// A method of `Param` is found on a type parameter, but not on `T::Param`.
fn of<P: Param>(value: f64) -> P {
    P::from_f64(value)
}

/// The plans of the last few shapes: those of training and validation, and of their last, smaller
/// batches.
#[derive(Clone)]
struct Plans<T: Element>(Vec<BatchNorm<T>>);

impl<T: Element> Plans<T> {
    const MAX: usize = 4;

    fn get(&self, shape: Shape) -> Option<BatchNorm<T>> {
        self.0.iter().find(|plan| plan.shape() == shape).copied()
    }

    /// In the place of the oldest, where there are enough.
    fn insert(&mut self, plan: BatchNorm<T>) {
        if self.0.len() == Self::MAX {
            self.0.remove(0);
        }
        self.0.push(plan);
    }
}

/// Memory that grows to what the largest call wants.
struct Workspace(Vec<u64>);

impl Workspace {
    fn of(&mut self, words: usize) -> Result<&mut [u64], Error> {
        if self.0.len() < words {
            // What is in it is of no use: it need not be copied, and the old goes before the new comes.
            self.0 = Vec::new();
            self.0 = filled(words, 0)?;
        }
        Ok(&mut self.0)
    }
}

/// A clone starts without: it holds nothing of use.
impl Clone for Workspace {
    fn clone(&self) -> Self {
        Workspace(Vec::new())
    }
}
