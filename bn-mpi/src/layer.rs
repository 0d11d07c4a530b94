//! The layer: batch normalization over the batches of all ranks.

use crate::error::{Error, Problem};
use crate::exchange::{Exchange, Exchanger, filled, introduce};
use crate::header::{Header, Operation, check, hash};
use crate::settings::Settings;
use bn_core::{
    Affine, BackwardInput, BatchNorm, Element, Executor, GradSums, Gradients, Layout, Moments, Op, Param, Run, Serial,
    Shape, Statistics,
};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use mpi::traits::Communicator;

/// The number that this process would give its next layer.
static NEXT_LAYER: AtomicU64 = AtomicU64::new(0);

/// Batch normalization by the statistics of all ranks of a communicator:
/// y = act(γ·(x − mean)/√(variance + ε) + β + residual).
///
/// It owns the running statistics, which are equal on all ranks, and what a backward pass needs of its
/// forward pass. Tensors, gamma and beta are the caller's. [`new`](Self::new),
/// [`forward`](Self::forward) and [`backward`](Self::backward) are collective: all ranks call them, in the
/// same order, those with an empty shard too. See the [crate's documentation](crate).
///
/// Ranks may differ in the batch and the spatial size of their shards, in ISA and in executor.
pub struct SyncBatchNorm<'c, T: Element> {
    comm: &'c dyn Communicator,
    settings: Settings,
    /// What this rank says of its calls, but for what changes from call to call.
    header: Header,
    /// A checksum of the running statistics that it went on from.
    origin: u64,
    executor: Box<dyn Executor>,
    exchanger: Exchanger,
    running_mean: Vec<T::Param>,
    running_var: Vec<T::Param>,
    num_batches: u64,
    /// Of this rank's shard.
    own_moments: Vec<Moments>,
    own_sums: Vec<GradSums>,
    /// Of all ranks. The moments are those of the last forward pass that went well.
    moments: Vec<Moments>,
    merged: Vec<Moments>,
    sums: Vec<GradSums>,
    /// The shape of the shard in that pass.
    last: Option<Shape>,
    workspace: Vec<u64>,
}

/// What a backward pass reads: this rank's shard.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, T: Element> {
    /// The forward pass's input.
    pub x: &'a [T],
    /// The forward pass's output: needed with an activation.
    pub y: Option<&'a [T]>,
    /// The gradient of the forward pass's output.
    pub dy: &'a [T],
    /// gamma, if the forward pass had one.
    pub gamma: Option<&'a [T::Param]>,
}

/// What a backward pass writes: what is `None` is not calculated. Ranks may differ in what they want.
pub struct Outputs<'a, T: Element> {
    /// The gradient of x, of this rank's shard.
    pub dx: Option<&'a mut [T]>,
    /// The gradient of the residual: dy behind the activation's mask.
    pub dresidual: Option<&'a mut [T]>,
    /// The gradient of gamma: see [`ParameterGradients`].
    pub dgamma: Option<&'a mut [T::Param]>,
    /// The gradient of beta.
    pub dbeta: Option<&'a mut [T::Param]>,
}

impl<T: Element> Default for Outputs<'_, T> {
    fn default() -> Self {
        Outputs { dx: None, dresidual: None, dgamma: None, dbeta: None }
    }
}

/// Whose gradients of gamma and beta a backward pass writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParameterGradients {
    /// What this rank's shard adds to them: for training loops that sum, or average, the gradients of all
    /// parameters over the ranks afterwards, these among them. PyTorch's SyncBatchNorm does this.
    OfThisRank,
    /// Their sums over all ranks: the same bits on every rank, to be used as they are. Summing them over
    /// the ranks again would count them once per rank.
    OfAllRanks,
}

impl<'c, T: Element> SyncBatchNorm<'c, T> {
    /// Makes a layer, together with all other ranks: gets the communicator's ranks to agree on the
    /// settings. Running mean 0, running variance 1.
    ///
    /// The communicator may be any group of ranks, and be shared with other layers and uses.
    ///
    /// # Errors
    /// [`Error::Refused`]: no channels, a bad epsilon or activation, no memory on some rank.
    /// [`Error::Differs`]: settings. [`Error::Intercommunicator`].
    pub fn new(comm: &'c dyn Communicator, settings: Settings) -> Result<Self, Error> {
        if comm.test_inter() {
            return Err(Error::Intercommunicator);
        }
        let header = Header::new::<T>(&settings, NEXT_LAYER.load(Relaxed));
        // Everything that can go wrong here goes wrong before the ranks talk.
        let made = Self::make(comm, settings, header);
        let header = header.with_problem(made.as_ref().err().copied());
        let headers = introduce(comm, &header);
        // Numbers of layers need not agree before: ranks may have made others without each other.
        let layer = headers.iter().map(Header::layer).max().unwrap_or(0);
        let agreed: Vec<Header> = headers.iter().map(|h| h.with_layer(layer)).collect();
        check(&agreed)?;
        NEXT_LAYER.store(layer + 1, Relaxed);
        let mut made = made.map_err(|problem| Error::Refused { rank: comm.rank(), problem })?;
        made.header = header.with_layer(layer);
        Ok(made)
    }

    fn make(comm: &'c dyn Communicator, settings: Settings, header: Header) -> Result<Self, Problem> {
        let channels = settings.channels;
        plan::<T>(&settings, Shape::dense(1, channels)?)?;
        let exchanger = Exchanger::new(settings.exchange, settings.check_calls, comm.size() as usize, channels)?;
        let mut running_var = filled(channels)?;
        running_var.fill(of::<T::Param>(1.0));
        Ok(SyncBatchNorm {
            comm,
            settings,
            header,
            origin: 0,
            executor: Box::new(Serial),
            exchanger,
            running_mean: filled(channels)?,
            running_var,
            num_batches: 0,
            own_moments: filled(channels)?,
            own_sums: filled(channels)?,
            moments: filled(channels)?,
            merged: filled(channels)?,
            sums: filled(channels)?,
            last: None,
            workspace: Vec::new(),
        })
    }

    /// On an executor, for ranks with several threads. No bit of any result changes.
    pub fn with_executor(mut self, executor: impl Executor + 'static) -> Self {
        self.executor = Box::new(executor);
        self
    }

    /// y from x, by the statistics of all ranks' x, which also enter the running ones. Returns in how many
    /// channels those were left as they are because the batch's are not finite.
    ///
    /// x, the residual, which is added before the activation, and y have `shape`: this rank's shard, which
    /// may be empty. gamma and beta should be the same on all ranks; nothing checks that.
    ///
    /// # Errors
    /// [`Error::Refused`]: wrong lengths or channels on some rank, or its executor failed.
    /// [`Error::Differs`]: layout, layer, operation, running statistics. [`Error::TooFewValues`] below two
    /// values per channel on all ranks together (see [`Settings::allow_one_value`]). [`Error::Here`].
    pub fn forward(
        &mut self,
        shape: Shape,
        x: &[T],
        residual: Option<&[T]>,
        affine: Affine<'_, T::Param>,
        y: &mut [T],
    ) -> Result<usize, Error> {
        let prepared = self.own_moments(shape, x, residual, &affine, y.len());
        let header = self.call(Operation::Forward, Some(shape.layout()), prepared.as_ref().err().copied());
        let count = shape.values_per_channel();
        let total = self.exchanger.run(self.comm, &header, count, &self.own_moments, &mut self.merged)?;
        let plan = prepared.map_err(|problem| Error::Refused { rank: self.comm.rank(), problem })?;
        let expected = if self.settings.one_value { 1 } else { 2 };
        if total < expected {
            return Err(Error::TooFewValues { expected, got: total });
        }
        // All ranks have come this far: what follows is the same for the statistics of all.
        core::mem::swap(&mut self.moments, &mut self.merged);
        self.last = Some(shape);
        let skipped = match self.settings.running {
            Some(rule) => rule
                .update(&self.moments, &mut self.running_mean, &mut self.running_var, Some(&mut self.num_batches))
                .map_err(Error::Here)?,
            None => 0,
        };
        let run = Run::on(&*self.executor, &mut self.workspace);
        plan.normalize(x, residual, affine, &self.moments, y, run).map_err(Error::Here)?;
        Ok(skipped)
    }

    /// The gradients through the last forward pass, where wanted; all of this rank's shard. dx is that of
    /// the whole batch's loss: it goes through the statistics of all ranks.
    ///
    /// # Errors
    /// [`Error::Refused`]: wrong lengths, no forward pass before, no y where an activation wants it, on some
    /// rank, or its executor failed. [`Error::Differs`]. [`Error::Here`].
    pub fn backward(
        &mut self,
        input: Inputs<'_, T>,
        output: Outputs<'_, T>,
        gradients: ParameterGradients,
    ) -> Result<(), Error> {
        let prepared = self.own_sums(&input, &output);
        let layout: Option<Layout> = self.last.map(|shape| shape.layout());
        let header = self.call(Operation::Backward, layout, prepared.as_ref().err().copied());
        let count = self.last.map_or(0, |shape| shape.values_per_channel());
        self.exchanger.run(self.comm, &header, count, &self.own_sums, &mut self.sums)?;
        let plan = prepared.map_err(|problem| Error::Refused { rank: self.comm.rank(), problem })?;
        let input = core_input(&input, &self.moments);
        let Outputs { dx, dresidual, dgamma, dbeta } = output;
        let parameter_sums = match gradients {
            ParameterGradients::OfThisRank => &self.own_sums,
            ParameterGradients::OfAllRanks => &self.sums,
        };
        let parameters = Gradients { dgamma, dbeta, ..Gradients::default() };
        let tensors =
            Gradients { dx: dx.map(Into::into), dresidual: dresidual.map(Into::into), ..Gradients::default() };
        for (sums, wanted) in [(parameter_sums, parameters), (&self.sums, tensors)] {
            let run = Run::on(&*self.executor, &mut self.workspace);
            plan.backward_apply(input, sums, wanted, run).map_err(Error::Here)?;
        }
        Ok(())
    }

    /// y by the running statistics: of this rank alone, without a message.
    ///
    /// # Errors
    /// bn-core's.
    pub fn inference(
        &mut self,
        shape: Shape,
        x: &[T],
        residual: Option<&[T]>,
        affine: Affine<'_, T::Param>,
        y: &mut [T],
    ) -> Result<(), bn_core::Error> {
        let plan = match plan::<T>(&self.settings, shape) {
            Err(Problem::Core(error)) => return Err(error),
            Err(Problem::Channels { expected, got }) => {
                return Err(bn_core::Error::Length { what: "channels", expected, got });
            }
            // A plan has no other problems.
            Err(_) => return Err(bn_core::Error::NoChannels),
            Ok(plan) => plan,
        };
        let words = plan.workspace_best(Op::Inference, self.executor.width());
        if self.workspace.len() < words {
            self.workspace.resize(words, 0);
        }
        let run = Run::on(&*self.executor, &mut self.workspace);
        plan.inference(x, residual, affine, &self.running_mean, &self.running_var, y, run)
    }

    /// Checks the call of this rank, and makes the moments of its shard.
    fn own_moments(
        &mut self,
        shape: Shape,
        x: &[T],
        residual: Option<&[T]>,
        affine: &Affine<'_, T::Param>,
        y: usize,
    ) -> Result<BatchNorm<T>, Problem> {
        let plan = plan::<T>(&self.settings, shape)?;
        let (all, channels) = (shape.len(), shape.channels());
        length("x", Some(x.len()), all)?;
        length("y", Some(y), all)?;
        length("residual", residual.map(<[T]>::len), all)?;
        length("gamma", affine.gamma.map(<[T::Param]>::len), channels)?;
        length("beta", affine.beta.map(<[T::Param]>::len), channels)?;
        self.grow(&plan, Op::ForwardTraining)?;
        self.own_moments.fill(Moments::EMPTY);
        plan.moments(x, &mut self.own_moments, Run::on(&*self.executor, &mut self.workspace))?;
        Ok(plan)
    }

    /// Checks the call of this rank, and makes the sums of its shard.
    fn own_sums(&mut self, input: &Inputs<'_, T>, output: &Outputs<'_, T>) -> Result<BatchNorm<T>, Problem> {
        let shape = self.last.ok_or(Problem::NoForward)?;
        let plan = plan::<T>(&self.settings, shape)?;
        let (all, channels) = (shape.len(), shape.channels());
        length("x", Some(input.x.len()), all)?;
        length("y", input.y.map(<[T]>::len), all)?;
        length("dy", Some(input.dy.len()), all)?;
        length("gamma", input.gamma.map(<[T::Param]>::len), channels)?;
        length("dx", output.dx.as_ref().map(|o| o.len()), all)?;
        length("dresidual", output.dresidual.as_ref().map(|o| o.len()), all)?;
        length("dgamma", output.dgamma.as_ref().map(|o| o.len()), channels)?;
        length("dbeta", output.dbeta.as_ref().map(|o| o.len()), channels)?;
        self.grow(&plan, Op::Backward)?;
        let run = Run::on(&*self.executor, &mut self.workspace);
        plan.backward_sums(core_input(input, &self.moments), &mut self.own_sums, run)?;
        Ok(plan)
    }

    /// What goes before a call. A rank that took a checkpoint at another time than the others has it at another batch.
    fn call(&self, operation: Operation, layout: Option<Layout>, problem: Option<Problem>) -> Header {
        let origin = hash([self.origin, self.num_batches].into_iter());
        self.header.with_origin(origin).call(operation, layout, problem)
    }

    /// Workspace for an operation.
    fn grow(&mut self, plan: &BatchNorm<T>, op: Op) -> Result<(), Problem> {
        let words = plan.workspace_best(op, self.executor.width());
        if self.workspace.len() < words {
            self.workspace = filled(words)?;
        }
        Ok(())
    }

    /// Takes running statistics from a checkpoint: on all ranks the same, which the next forward or backward
    /// pass checks.
    ///
    /// # Errors
    /// [`bn_core::Error::Length`]; nothing has changed then.
    pub fn restore(&mut self, mean: &[T::Param], var: &[T::Param], num_batches: u64) -> Result<(), bn_core::Error> {
        for (what, got) in [("mean", mean.len()), ("var", var.len())] {
            if got != self.settings.channels {
                return Err(bn_core::Error::Length { what, expected: self.settings.channels, got });
            }
        }
        self.running_mean.copy_from_slice(mean);
        self.running_var.copy_from_slice(var);
        self.num_batches = num_batches;
        let words = mean.iter().chain(var).map(bits);
        self.origin = hash(words);
        Ok(())
    }

    /// The running mean of each channel: the same on all ranks.
    pub fn running_mean(&self) -> &[T::Param] {
        &self.running_mean
    }

    /// The running variance of each channel: the same on all ranks.
    pub fn running_var(&self) -> &[T::Param] {
        &self.running_var
    }

    /// Batches that entered the running statistics.
    pub fn num_batches(&self) -> u64 {
        self.num_batches
    }

    /// The statistics of all ranks' batches in the last forward pass: the same on all ranks. `None` before
    /// the first.
    pub fn moments(&self) -> Option<&[Moments]> {
        self.last.map(|_| &self.moments[..])
    }

    /// What was chosen about it.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The way that its messages take: never [`Exchange::Auto`].
    pub fn exchange(&self) -> Exchange {
        self.exchanger.way()
    }
}

impl<T: Element> fmt::Debug for SyncBatchNorm<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncBatchNorm")
            .field("rank", &self.comm.rank())
            .field("ranks", &self.comm.size())
            .field("settings", &self.settings)
            .field("exchange", &self.exchange())
            .field("threads", &self.executor.width())
            .field("num_batches", &self.num_batches)
            .finish_non_exhaustive()
    }
}

/// The plan of a shard.
fn plan<T: Element>(settings: &Settings, shape: Shape) -> Result<BatchNorm<T>, Problem> {
    if shape.channels() != settings.channels {
        return Err(Problem::Channels { expected: settings.channels, got: shape.channels() });
    }
    let plan = BatchNorm::new(shape, settings.epsilon)?.with_activation(settings.activation)?.with_isa(settings.isa);
    Ok(if settings.one_value { plan.allow_one_value() } else { plan })
}

fn core_input<'a, T: Element>(input: &Inputs<'a, T>, moments: &'a [Moments]) -> BackwardInput<'a, T> {
    let Inputs { x, y, dy, gamma } = *input;
    BackwardInput { x, y, dy, gamma, statistics: Statistics::Batch(moments) }
}

fn length(what: &'static str, got: Option<usize>, expected: usize) -> Result<(), Problem> {
    match got {
        Some(got) if got != expected => Err(bn_core::Error::Length { what, expected, got }.into()),
        _ => Ok(()),
    }
}

/// A parameter as a word. A method of `Param` is found on a type parameter, but not on `T::Param`.
fn bits<P: Param>(value: &P) -> u64 {
    value.to_f64().to_bits()
}

/// The parameter of this value.
fn of<P: Param>(value: f64) -> P {
    P::from_f64(value)
}
