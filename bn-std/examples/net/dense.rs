//! A dense layer: y = x·W + b.

use rand::{Rng, RngExt};

/// y = x·W + b, with its gradients.
#[derive(Clone)]
pub struct Dense {
    outputs: usize,
    /// `inputs × outputs`: the inner loops below run along a row, over neighbouring outputs, which the compiler turns
    /// into vector code. The other order would make them sums, whose order it may not change.
    weights: Vec<f32>,
    bias: Vec<f32>,
    dweights: Vec<f32>,
    dbias: Vec<f32>,
}

impl Dense {
    /// Without bias; weights as He et al. 2015 ("Delving Deep into Rectifiers") scale them for a ReLU: variance
    /// 2/inputs.
    pub fn new(inputs: usize, outputs: usize, rng: &mut impl Rng) -> Self {
        let bound = (6.0 / inputs as f32).sqrt();
        let weights: Vec<f32> = (0..inputs * outputs).map(|_| rng.random_range(-bound..bound)).collect();
        let dweights = vec![0.0; weights.len()];
        Dense { outputs, weights, bias: Vec::new(), dweights, dbias: Vec::new() }
    }

    /// With a bias, of 0 so far.
    pub fn with_bias(mut self) -> Self {
        self.bias = vec![0.0; self.outputs];
        self.dbias = vec![0.0; self.outputs];
        self
    }

    /// With no bias any more.
    pub fn without_bias(mut self) -> Self {
        self.bias.clear();
        self.dbias.clear();
        self
    }

    /// Multiplies the weights.
    pub fn scale(&mut self, factor: f32) {
        self.weights.iter_mut().for_each(|w| *w *= factor);
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    fn inputs(&self) -> usize {
        self.weights.len() / self.outputs
    }

    /// y from x.
    pub fn forward(&self, x: &[f32], y: &mut Vec<f32>) {
        y.clear();
        y.resize(x.len() / self.inputs() * self.outputs, 0.0);
        for (x, y) in x.chunks_exact(self.inputs()).zip(y.chunks_exact_mut(self.outputs)) {
            if !self.bias.is_empty() {
                y.copy_from_slice(&self.bias);
            }
            for (&x, weights) in x.iter().zip(self.weights.chunks_exact(self.outputs)) {
                add_scaled(y, x, weights);
            }
        }
    }

    /// The gradients dW = xᵀ·dy and db = Σ dy, kept for the next step.
    pub fn backward(&mut self, x: &[f32], dy: &[f32]) {
        let inputs = self.inputs();
        self.dweights.fill(0.0);
        self.dbias.fill(0.0);
        for (x, dy) in x.chunks_exact(inputs).zip(dy.chunks_exact(self.outputs)) {
            for (&x, dweights) in x.iter().zip(self.dweights.chunks_exact_mut(self.outputs)) {
                add_scaled(dweights, x, dy);
            }
            add_scaled(&mut self.dbias, 1.0, dy);
        }
    }

    /// dx = dy·Wᵀ. The first layer of a network has no use for it.
    pub fn backward_input(&self, dy: &[f32], dx: &mut Vec<f32>) {
        dx.clear();
        for dy in dy.chunks_exact(self.outputs) {
            dx.extend(
                self.weights.chunks_exact(self.outputs).map(|w| w.iter().zip(dy).map(|(w, dy)| w * dy).sum::<f32>()),
            );
        }
    }

    /// Weights and bias, each with its gradient.
    pub fn parameters(&mut self) -> impl Iterator<Item = (&mut [f32], &[f32])> {
        let weights = (&mut self.weights[..], &self.dweights[..]);
        let bias = (&mut self.bias[..], &self.dbias[..]);
        [weights, bias].into_iter().filter(|(values, _)| !values.is_empty())
    }
}

/// y += a·x.
fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}
