//! Batch normalization with its parameters and statistics, and an activation in the same pass over memory.

use super::timer::Timer;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Gradients, Moments, Op, Run, RunningStats, Shape, Statistics,
};

/// What is chosen about a normalization.
#[derive(Clone, Copy)]
pub struct BatchNormOptions {
    /// Added to the variance.
    pub epsilon: f64,
    /// How running_mean and running_var follow the batches.
    pub running: RunningStats,
}

impl Default for BatchNormOptions {
    /// PyTorch's: epsilon 1e-5, momentum 0.1.
    fn default() -> Self {
        let running = RunningStats::pytorch(0.1).expect("0.1 is between 0 and 1");
        BatchNormOptions { epsilon: 1e-5, running }
    }
}

/// y = act(γ·x̂ + β) of `rows × channels`, and what it has learned and measured.
#[derive(Clone)]
pub struct Normalization {
    options: BatchNormOptions,
    activation: Activation,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    pub running_mean: Vec<f32>,
    pub running_var: Vec<f32>,
    /// The last batch's statistics, for its backward pass.
    moments: Vec<Moments>,
}

impl Normalization {
    pub fn new(channels: usize, activation: Activation, options: BatchNormOptions) -> Self {
        let (zeros, ones) = (vec![0.0; channels], vec![1.0; channels]);
        Normalization {
            options,
            activation,
            gamma: ones.clone(),
            beta: zeros.clone(),
            dgamma: zeros.clone(),
            dbeta: zeros.clone(),
            running_mean: zeros,
            running_var: ones,
            moments: vec![Moments::EMPTY; channels],
        }
    }

    /// y by the statistics of x, which also enter the running ones.
    pub fn forward_training(
        &mut self,
        x: &[f32],
        y: &mut [f32],
        workspace: &mut Vec<u64>,
        timer: &mut Timer,
    ) -> Result<(), bn_core::Error> {
        let plan = self.plan(x, Op::ForwardTraining, workspace)?;
        let affine = Affine::new(&self.gamma, &self.beta);
        timer.time(plan.shape().batch(), || {
            plan.forward_training(x, None, affine, y, &mut self.moments, Run::serial(workspace))
        })?;
        // Channels that it skips have statistics that are not finite; then neither is the loss, which the training
        // loop looks at.
        self.options.running.update(&self.moments, &mut self.running_mean, &mut self.running_var, None)?;
        Ok(())
    }

    /// y by the running statistics.
    pub fn inference(
        &self,
        x: &[f32],
        y: &mut [f32],
        workspace: &mut Vec<u64>,
        timer: &mut Timer,
    ) -> Result<(), bn_core::Error> {
        let plan = self.plan(x, Op::Inference, workspace)?;
        let affine = Affine::new(&self.gamma, &self.beta);
        timer.time(plan.shape().batch(), || {
            plan.inference(x, None, affine, &self.running_mean, &self.running_var, y, Run::serial(workspace))
        })
    }

    /// The statistics of the last batch in training mode.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// The first half of a training pass: merges the statistics of x into `moments`. Called with all batches of a data
    /// set, one after the other, it measures the population.
    pub fn measure(&self, x: &[f32], moments: &mut [Moments], workspace: &mut Vec<u64>) -> Result<(), bn_core::Error> {
        self.plan(x, Op::ForwardTraining, workspace)?.moments(x, moments, Run::serial(workspace))
    }

    /// The second half: y by these statistics.
    pub fn normalize(
        &self,
        x: &[f32],
        moments: &[Moments],
        y: &mut [f32],
        workspace: &mut Vec<u64>,
    ) -> Result<(), bn_core::Error> {
        let affine = Affine::new(&self.gamma, &self.beta);
        let plan = self.plan(x, Op::ForwardTraining, workspace)?;
        plan.normalize(x, None, affine, moments, y, Run::serial(workspace))
    }

    /// dx, and dgamma and dbeta for the next step, of the batch that `forward_training` has just seen. y is its
    /// output, which shows where a ReLU let values through.
    pub fn backward(
        &mut self,
        x: &[f32],
        y: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        workspace: &mut Vec<u64>,
        timer: &mut Timer,
    ) -> Result<(), bn_core::Error> {
        let plan = self.plan(x, Op::Backward, workspace)?;
        let input =
            BackwardInput { x, y: Some(y), dy, gamma: Some(&self.gamma), statistics: Statistics::Batch(&self.moments) };
        let output = Gradients {
            dx: Some(dx.into()),
            dgamma: Some(&mut self.dgamma),
            dbeta: Some(&mut self.dbeta),
            ..Gradients::default()
        };
        timer.time(plan.shape().batch(), || plan.backward(input, output, Run::serial(workspace)))
    }

    /// gamma and beta, each with its gradient.
    pub fn parameters(&mut self) -> impl Iterator<Item = (&mut [f32], &[f32])> {
        [(&mut self.gamma[..], &self.dgamma[..]), (&mut self.beta[..], &self.dbeta[..])].into_iter()
    }

    /// The plan for an x of this length, and workspace for it. A plan is a few checked numbers, quickly made: the last,
    /// smaller batch of an epoch just gets its own.
    fn plan(&self, x: &[f32], op: Op, workspace: &mut Vec<u64>) -> Result<BatchNorm<f32>, bn_core::Error> {
        let channels = self.gamma.len();
        let shape = Shape::dense(x.len() / channels.max(1), channels)?;
        let plan = BatchNorm::new(shape, self.options.epsilon)?.with_activation(self.activation)?;
        let words = plan.workspace_best(op, 1);
        if workspace.len() < words {
            workspace.resize(words, 0);
        }
        Ok(plan)
    }
}
