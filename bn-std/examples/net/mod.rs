//! A small network for the examples: dense → batch normalization → ReLU → dense.
//!
//! Everything is plain slices: row-major `rows × features`, f32.

pub mod batch_norm;
pub mod data;
pub mod dense;
pub mod loss;
pub mod timer;
pub mod train;

use batch_norm::{BatchNormOptions, BatchNormRelu};
use dense::Dense;
use rand::Rng;
use timer::Timer;

/// dense → (BN →) ReLU → dense.
///
/// Training and inference are different methods. Only training takes `&mut self`: inference cannot move the running
/// statistics, whatever it is called on.
#[derive(Clone)]
pub struct Network {
    first: Dense,
    norm: Option<BatchNormRelu>,
    second: Dense,
}

/// What passes through a network: reused from batch to batch, and no part of the model.
#[derive(Default)]
pub struct Buffers {
    /// The output of the first dense layer: x of the normalization.
    z: Vec<f32>,
    /// The hidden layer's output, behind the ReLU: y of the normalization.
    h: Vec<f32>,
    /// The network's output.
    pub logits: Vec<f32>,
    /// The gradient of the logits, which the loss fills in.
    pub dlogits: Vec<f32>,
    dh: Vec<f32>,
    dz: Vec<f32>,
    /// The kernels' workspace.
    workspace: Vec<u64>,
    /// How long the calls of the kernels took.
    pub times: BatchNormTimes,
}

/// The time of each call of the batch normalization.
#[derive(Default)]
pub struct BatchNormTimes {
    pub forward_training: Timer,
    pub backward: Timer,
    pub inference: Timer,
}

impl Network {
    /// Without normalization.
    pub fn new(inputs: usize, hidden: usize, classes: usize, rng: &mut impl Rng) -> Self {
        Network {
            first: Dense::new(inputs, hidden, rng).with_bias(),
            norm: None,
            second: Dense::new(hidden, classes, rng).with_bias(),
        }
    }

    /// The same weights, with a normalization before the ReLU.
    pub fn with_batch_norm(mut self, options: BatchNormOptions) -> Self {
        // Subtracting the mean takes out whatever a bias adds, so its gradient would be 0; beta does its work.
        self.first = self.first.without_bias();
        self.norm = Some(BatchNormRelu::new(self.first.outputs(), options));
        self
    }

    /// Training mode: normalizes by this batch, whose statistics enter the running ones. Leaves the logits in
    /// `buffers`, with all that [`backward`](Self::backward) needs.
    pub fn forward_training(&mut self, x: &[f32], buffers: &mut Buffers) -> Result<(), bn_core::Error> {
        let Buffers { z, h, logits, workspace, times, .. } = buffers;
        self.first.forward(x, z);
        h.resize(z.len(), 0.0);
        match &mut self.norm {
            Some(norm) => norm.forward_training(z, h, workspace, &mut times.forward_training)?,
            None => relu(z, h),
        }
        self.second.forward(h, logits);
        Ok(())
    }

    /// Inference mode: normalizes by the running statistics, so that each row's result is its own, and changes
    /// nothing in the network. Leaves the logits in `buffers`.
    pub fn inference(&self, x: &[f32], buffers: &mut Buffers) -> Result<(), bn_core::Error> {
        let Buffers { z, h, logits, workspace, times, .. } = buffers;
        self.first.forward(x, z);
        h.resize(z.len(), 0.0);
        match &self.norm {
            Some(norm) => norm.inference(z, h, workspace, &mut times.inference)?,
            None => relu(z, h),
        }
        self.second.forward(h, logits);
        Ok(())
    }

    /// The gradients of all parameters, from `buffers.dlogits`, for the batch that `forward_training` has just seen.
    pub fn backward(&mut self, x: &[f32], buffers: &mut Buffers) -> Result<(), bn_core::Error> {
        let Buffers { z, h, dlogits, dh, dz, workspace, times, .. } = buffers;
        self.second.backward(h, dlogits);
        self.second.backward_input(dlogits, dh);
        dz.resize(dh.len(), 0.0);
        match &mut self.norm {
            Some(norm) => norm.backward(z, h, dh, dz, workspace, &mut times.backward)?,
            None => relu_backward(h, dh, dz),
        }
        self.first.backward(x, dz);
        Ok(())
    }

    /// A step of plain SGD down the gradients of the last [`backward`](Self::backward).
    pub fn step(&mut self, learning_rate: f32) {
        for (values, gradients) in self.parameters() {
            for (value, gradient) in values.iter_mut().zip(gradients) {
                *value -= learning_rate * gradient;
            }
        }
    }

    /// What is learned, each with its gradient. The running statistics are not: they are measured.
    fn parameters(&mut self) -> impl Iterator<Item = (&mut [f32], &[f32])> {
        let norm = self.norm.iter_mut().flat_map(BatchNormRelu::parameters);
        self.first.parameters().chain(norm).chain(self.second.parameters())
    }
}

fn relu(x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        // Not `x.max(0.0)`, which would hide a NaN: a network that has diverged is to be seen to.
        *y = if x < 0.0 { 0.0 } else { x };
    }
}

fn relu_backward(y: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
        *dx = if y > 0.0 { dy } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt, SeedableRng};

    const ROWS: usize = 32;
    const INPUTS: usize = 12;
    const HIDDEN: usize = 20;
    const CLASSES: usize = 5;

    fn setup(with_norm: bool) -> (Network, Vec<f32>, Vec<usize>) {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(7);
        let mut network = Network::new(INPUTS, HIDDEN, CLASSES, rng);
        if with_norm {
            network = network.with_batch_norm(BatchNormOptions::default());
        }
        let x = (0..ROWS * INPUTS).map(|_| rng.random_range(0.0..1.0)).collect();
        let labels = (0..ROWS).map(|_| rng.random_range(0..CLASSES)).collect();
        // Away from gamma = 1 and biases of 0, where some mistakes cancel.
        for (values, _) in network.parameters() {
            for value in values {
                *value += rng.random_range(-0.2..0.2);
            }
        }
        (network, x, labels)
    }

    fn loss(network: &mut Network, x: &[f32], labels: &[usize], buffers: &mut Buffers) -> f64 {
        network.forward_training(x, buffers).unwrap();
        loss::softmax_cross_entropy(&buffers.logits, labels, &mut buffers.dlogits)
    }

    /// Every group of parameters against central differences of the loss.
    #[test]
    fn gradients_are_those_of_the_loss() {
        let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        for with_norm in [false, true] {
            let (mut network, x, labels) = setup(with_norm);
            let buffers = &mut Buffers::default();
            loss(&mut network, &x, &labels, buffers);
            network.backward(&x, buffers).unwrap();
            let gradients: Vec<Vec<f32>> = network.parameters().map(|(_, gradient)| gradient.to_vec()).collect();
            assert_eq!(gradients.len(), if with_norm { 5 } else { 4 });
            for (group, gradient) in gradients.iter().enumerate() {
                let mut at = |i: usize, by: f32| {
                    let mut moved = network.clone();
                    let (values, _) = moved.parameters().nth(group).unwrap();
                    values[i] += by;
                    loss(&mut moved, &x, &labels, buffers)
                };
                let h = 2e-3;
                let mut off = |i: usize| (at(i, h) - at(i, -h)) / f64::from(2.0 * h) - f64::from(gradient[i]);
                let off: Vec<f64> = (0..gradient.len()).map(&mut off).collect();
                let gradient: Vec<f64> = gradient.iter().copied().map(f64::from).collect();
                // Differences round, and some cross a kink of the ReLU.
                let error = norm(&off) / norm(&gradient);
                assert!(error < 0.005, "group {group}, BN {with_norm}: off by {error} of its size");
            }
        }
    }

    #[test]
    fn inference_looks_at_each_row_alone() {
        let (mut network, x, labels) = setup(true);
        let buffers = &mut Buffers::default();
        for _ in 0..10 {
            loss(&mut network, &x, &labels, buffers);
        }
        network.inference(&x, buffers).unwrap();
        let together = buffers.logits.clone();
        let mut alone = Vec::new();
        for row in x.chunks_exact(INPUTS) {
            network.inference(row, buffers).unwrap();
            alone.extend_from_slice(&buffers.logits);
        }
        assert_eq!(together, alone);
    }
}
