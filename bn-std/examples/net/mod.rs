//! A small network for the examples: (dense → batch normalization → ReLU), once or more, → dense.
//!
//! Everything is plain slices: row-major `rows × features`, f32.
#![allow(dead_code, reason = "each example uses its part")]

pub mod batch_norm;
pub mod data;
pub mod dense;
pub mod loss;
pub mod timer;
pub mod train;

use batch_norm::{BatchNormOptions, Normalization};
use bn_core::{Activation, Moments};
use dense::Dense;
use rand::Rng;
use timer::Timer;

/// Hidden layers, and a dense one that gives the logits.
///
/// Training and inference are different methods. Only training takes `&mut self`: inference cannot move the running
/// statistics, whatever it is called on.
#[derive(Clone)]
pub struct Network {
    hidden: Vec<Hidden>,
    last: Dense,
}

/// Where a hidden layer normalizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// dense → BN → ReLU, as in Ioffe & Szegedy 2015.
    BeforeActivation,
    /// dense → ReLU → BN.
    AfterActivation,
}

#[derive(Clone)]
struct Hidden {
    dense: Dense,
    norm: Option<(Place, Normalization)>,
}

/// What passes through a network: reused from batch to batch, and no part of the model.
#[derive(Default)]
pub struct Buffers {
    hidden: Vec<HiddenBuffers>,
    /// The network's output.
    pub logits: Vec<f32>,
    /// The gradient of the logits, which the loss fills in.
    pub dlogits: Vec<f32>,
    /// The kernels' workspace.
    workspace: Vec<u64>,
    /// How long the calls of the kernels took.
    pub times: BatchNormTimes,
}

/// What passes through a hidden layer.
#[derive(Default)]
struct HiddenBuffers {
    /// x of the normalization: the dense layer's output, behind the ReLU where that comes first.
    z: Vec<f32>,
    /// y of the normalization: the layer's output.
    h: Vec<f32>,
    dh: Vec<f32>,
    dz: Vec<f32>,
}

impl Buffers {
    fn fit(&mut self, layers: usize) {
        self.hidden.resize_with(layers, HiddenBuffers::default);
    }
}

/// The time of each call of the batch normalization.
#[derive(Default)]
pub struct BatchNormTimes {
    pub forward_training: Timer,
    pub backward: Timer,
    pub inference: Timer,
}

impl Network {
    /// Without normalization; `widths` are those of the input, of the hidden layers, and the number of classes.
    pub fn new(widths: &[usize], rng: &mut impl Rng) -> Self {
        let mut layers: Vec<Dense> =
            widths.windows(2).map(|pair| Dense::new(pair[0], pair[1], rng).with_bias()).collect();
        let last = layers.pop().expect("a network has an input and an output");
        Network { hidden: layers.into_iter().map(|dense| Hidden { dense, norm: None }).collect(), last }
    }

    /// The same weights, with a normalization in each hidden layer.
    pub fn with_batch_norm(mut self, place: Place, options: BatchNormOptions) -> Self {
        for layer in &mut self.hidden {
            let activation = match place {
                Place::BeforeActivation => {
                    // Subtracting the mean takes out whatever a bias adds, so its gradient would be 0; beta does its
                    // work.
                    layer.dense = layer.dense.clone().without_bias();
                    Activation::Relu
                }
                Place::AfterActivation => Activation::Identity,
            };
            layer.norm = Some((place, Normalization::new(layer.dense.outputs(), activation, options)));
        }
        self
    }

    /// Multiplies the weights of all dense layers.
    pub fn scale_weights(&mut self, factor: f32) {
        self.hidden.iter_mut().map(|layer| &mut layer.dense).chain([&mut self.last]).for_each(|d| d.scale(factor));
    }

    /// Training mode: normalizes by this batch, whose statistics enter the running ones. Leaves the logits in
    /// `buffers`, with all that [`backward`](Self::backward) needs.
    pub fn forward_training(&mut self, x: &[f32], buffers: &mut Buffers) -> Result<(), bn_core::Error> {
        buffers.fit(self.hidden.len());
        let Buffers { hidden, logits, workspace, times, .. } = buffers;
        let mut x = x;
        for (layer, HiddenBuffers { z, h, .. }) in self.hidden.iter_mut().zip(hidden) {
            layer.forward_dense(x, z, h);
            match &mut layer.norm {
                Some((_, norm)) => norm.forward_training(z, h, workspace, &mut times.forward_training)?,
                None => relu(z, h),
            }
            x = h;
        }
        self.last.forward(x, logits);
        Ok(())
    }

    /// Inference mode: normalizes by the running statistics, so that each row's result is its own, and changes
    /// nothing in the network. Leaves the logits in `buffers`.
    pub fn inference(&self, x: &[f32], buffers: &mut Buffers) -> Result<(), bn_core::Error> {
        buffers.fit(self.hidden.len());
        let Buffers { hidden, logits, workspace, times, .. } = buffers;
        let mut x = x;
        for (layer, HiddenBuffers { z, h, .. }) in self.hidden.iter().zip(hidden) {
            layer.forward_dense(x, z, h);
            match &layer.norm {
                Some((_, norm)) => norm.inference(z, h, workspace, &mut times.inference)?,
                None => relu(z, h),
            }
            x = h;
        }
        self.last.forward(x, logits);
        Ok(())
    }

    /// The gradients of all parameters, from `buffers.dlogits`, for the batch that `forward_training` has just seen.
    pub fn backward(&mut self, x: &[f32], buffers: &mut Buffers) -> Result<(), bn_core::Error> {
        let Buffers { hidden, dlogits, workspace, times, .. } = buffers;
        let mut rest = &mut hidden[..];
        // The layer above, and the gradient of its dense part's output.
        let (mut above, mut dy) = (&mut self.last, &dlogits[..]);
        for layer in self.hidden.iter_mut().rev() {
            let Some((HiddenBuffers { z, h, dh, dz }, below)) = rest.split_last_mut() else { break };
            rest = below;
            above.backward(h, dy);
            above.backward_input(dy, dh);
            dz.resize(dh.len(), 0.0);
            match &mut layer.norm {
                Some((place, norm)) => {
                    norm.backward(z, h, dh, dz, workspace, &mut times.backward)?;
                    if *place == Place::AfterActivation {
                        stop_where_relu_did(z, dz);
                    }
                }
                None => {
                    dz.copy_from_slice(dh);
                    stop_where_relu_did(h, dz);
                }
            }
            (above, dy) = (&mut layer.dense, dz);
        }
        above.backward(x, dy);
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
    pub fn parameters(&mut self) -> impl Iterator<Item = (&mut [f32], &[f32])> {
        let hidden = self.hidden.iter_mut().flat_map(|Hidden { dense, norm }| {
            dense.parameters().chain(norm.iter_mut().flat_map(|(_, norm)| norm.parameters()))
        });
        hidden.chain(self.last.parameters())
    }

    /// The normalizations, from the input on; none in a network without.
    pub fn norms(&self) -> impl Iterator<Item = &Normalization> {
        self.hidden.iter().filter_map(|layer| layer.norm.as_ref()).map(|(_, norm)| norm)
    }

    /// The normalizations, to be changed.
    pub fn norms_mut(&mut self) -> impl Iterator<Item = &mut Normalization> {
        self.hidden.iter_mut().filter_map(|layer| layer.norm.as_mut()).map(|(_, norm)| norm)
    }

    /// The exact statistics of each normalization's input over a whole data set, given in batches, as Ioffe & Szegedy's
    /// Algorithm 2 wants them for inference: the moments of all batches merged. Layer by layer, each on inputs that were
    /// normalized by the exact statistics of the layers before it, as they will be in inference.
    ///
    /// (The paper averages the variances of the batches. Merging also counts how far apart the batches' means are, so that
    /// it does not matter how the data are cut into batches.)
    pub fn population(
        &self,
        batches: &[Vec<f32>],
        workspace: &mut Vec<u64>,
    ) -> Result<Vec<Vec<Moments>>, bn_core::Error> {
        let mut x = batches.to_vec();
        let (mut z, mut all) = (vec![Vec::new(); batches.len()], Vec::new());
        for layer in &self.hidden {
            let mut moments = layer.norm.as_ref().map(|(_, norm)| vec![Moments::EMPTY; norm.moments().len()]);
            for (x, z) in x.iter_mut().zip(&mut z) {
                let mut h = Vec::new();
                layer.forward_dense(x, z, &mut h);
                *x = h;
                if let (Some((_, norm)), Some(moments)) = (&layer.norm, &mut moments) {
                    norm.measure(z, moments, workspace)?;
                }
            }
            for (x, z) in x.iter_mut().zip(&z) {
                match (&layer.norm, &moments) {
                    (Some((_, norm)), Some(moments)) => norm.normalize(z, moments, x, workspace)?,
                    _ => relu(z, x),
                }
            }
            all.extend(moments);
        }
        Ok(all)
    }
}

impl Hidden {
    /// All before the normalization, and as much room in h as it will need.
    fn forward_dense(&self, x: &[f32], z: &mut Vec<f32>, h: &mut Vec<f32>) {
        self.dense.forward(x, z);
        h.resize(z.len(), 0.0);
        if let Some((Place::AfterActivation, _)) = self.norm {
            z.iter_mut().for_each(|z| *z = positive(*z));
        }
    }
}

/// Not `x.max(0.0)`, which would hide a NaN: a network that has diverged is to be seen to.
fn positive(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

fn relu(x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = positive(x);
    }
}

/// The gradient before a ReLU, from the one behind it and its output y.
fn stop_where_relu_did(y: &[f32], dy_to_dx: &mut [f32]) {
    for (d, &y) in dy_to_dx.iter_mut().zip(y) {
        *d = if y > 0.0 { *d } else { 0.0 };
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

    fn setup(hidden: usize, place: Option<Place>) -> (Network, Vec<f32>, Vec<usize>) {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(7);
        let widths = [vec![INPUTS], vec![HIDDEN; hidden], vec![CLASSES]].concat();
        let mut network = Network::new(&widths, rng);
        if let Some(place) = place {
            network = network.with_batch_norm(place, BatchNormOptions::default());
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
        let (before, after) = (Place::BeforeActivation, Place::AfterActivation);
        let networks = [
            (1, None, 4),
            (1, Some(before), 5),
            (1, Some(after), 6),
            (3, None, 8),
            (3, Some(before), 11),
            (3, Some(after), 14),
        ];
        for (hidden, place, groups) in networks {
            let (mut network, x, labels) = setup(hidden, place);
            let buffers = &mut Buffers::default();
            loss(&mut network, &x, &labels, buffers);
            network.backward(&x, buffers).unwrap();
            let gradients: Vec<Vec<f32>> = network.parameters().map(|(_, gradient)| gradient.to_vec()).collect();
            assert_eq!(gradients.len(), groups);
            for (group, gradient) in gradients.iter().enumerate() {
                let mut at = |i: usize, by: f32| {
                    let mut moved = network.clone();
                    let (values, _) = moved.parameters().nth(group).unwrap();
                    values[i] += by;
                    loss(&mut moved, &x, &labels, buffers)
                };
                let h = 1e-3;
                let mut off = |i: usize| (at(i, h) - at(i, -h)) / f64::from(2.0 * h) - f64::from(gradient[i]);
                let off: Vec<f64> = (0..gradient.len()).map(&mut off).collect();
                let gradient: Vec<f64> = gradient.iter().copied().map(f64::from).collect();
                // Differences round, and some cross a kink of the ReLU: the more, the more of them are in line.
                let bound = if hidden == 1 { 0.005 } else { 0.1 };
                let error = norm(&off) / norm(&gradient);
                assert!(error < bound, "{hidden} hidden, {place:?}, group {group}: off by {error} of its size");
            }
        }
    }

    #[test]
    fn inference_looks_at_each_row_alone() {
        let (mut network, x, labels) = setup(2, Some(Place::BeforeActivation));
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

    /// Against f64 loops over a layer's input, and against a training pass over the whole set as one batch.
    #[test]
    fn the_population_is_that_of_all_rows() {
        for place in [Place::BeforeActivation, Place::AfterActivation] {
            let (mut network, x, _) = setup(3, Some(place));
            let (buffers, workspace) = (&mut Buffers::default(), &mut Vec::new());
            // 32 rows, unevenly; a batch of one is fine, since nothing is normalized by its own statistics.
            let (a, rest) = x.split_at(20 * INPUTS);
            let (b, c) = rest.split_at(11 * INPUTS);
            let merged = network.population(&[a.to_vec(), b.to_vec(), c.to_vec()], workspace).unwrap();
            assert_eq!(merged.len(), 3);

            let mut z = Vec::new();
            network.hidden[0].forward_dense(&x, &mut z, &mut Vec::new());
            for (channel, moments) in merged[0].iter().enumerate() {
                let values: Vec<f64> = z.chunks_exact(HIDDEN).map(|row| f64::from(row[channel])).collect();
                let mean = values.iter().sum::<f64>() / ROWS as f64;
                let m2 = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
                assert_eq!(moments.count, ROWS as u64);
                assert!((moments.mean - mean).abs() < 1e-6 * (1.0 + mean.abs()), "{} and {mean}", moments.mean);
                assert!((moments.m2 - m2).abs() <= 1e-5 * m2, "{} and {m2}", moments.m2);
            }

            network.forward_training(&x, buffers).unwrap();
            let whole = network.population(core::slice::from_ref(&x), workspace).unwrap();
            for ((merged, whole), norm) in merged.iter().zip(&whole).zip(network.norms()) {
                assert_eq!(whole, norm.moments());
                for (a, b) in merged.iter().zip(whole) {
                    let std = b.variance().sqrt();
                    assert!((a.mean - b.mean).abs() <= 1e-4 * std && (a.m2 - b.m2).abs() <= 1e-4 * b.m2);
                }
            }
        }
    }
}
