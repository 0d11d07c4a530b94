//! The training loop, and the evaluation on a test set.

use super::data::{Samples, Split};
use super::loss::{count_correct, softmax_cross_entropy};
use super::timer::Timer;
use super::{Buffers, Network};
use rand::Rng;
use rand::seq::SliceRandom;

/// How to train.
pub struct Settings {
    /// Passes over the training set.
    pub epochs: usize,
    /// Rows per step.
    pub batch: usize,
    /// The step of SGD.
    pub learning_rate: f32,
}

/// How an epoch went.
pub struct Epoch {
    /// The mean loss of its batches, each before its step.
    pub loss: f64,
    /// The share of the test set that is recognised after it.
    pub test_accuracy: f64,
}

/// Looks on while a network is trained.
pub trait Observer {
    /// Before a step: the network has the gradients of this batch.
    fn before_step(&mut self, _: &Network, _x: &[f32], _labels: &[usize]) -> Result<(), bn_core::Error> {
        Ok(())
    }
    /// After a step.
    fn after_step(&mut self, _: &Network) -> Result<(), bn_core::Error> {
        Ok(())
    }
    /// After an epoch.
    fn after_epoch(&mut self, _: &Epoch) {}
}

/// One that only sees epochs.
impl<F: FnMut(&Epoch)> Observer for F {
    fn after_epoch(&mut self, epoch: &Epoch) {
        self(epoch);
    }
}

/// Trains, testing after each epoch. Stops early where the loss is no longer finite: that network is beyond repair.
pub fn train(
    network: &mut Network,
    data: &Split,
    settings: &Settings,
    rng: &mut impl Rng,
    buffers: &mut Buffers,
    step_timer: &mut Timer,
    observer: &mut impl Observer,
) -> Result<Vec<Epoch>, bn_core::Error> {
    let (mut x, mut labels) = (Vec::new(), Vec::new());
    let Split { train, test } = data;
    let mut order: Vec<usize> = (0..train.rows()).collect();
    let mut epochs = Vec::new();
    for _ in 0..settings.epochs {
        order.shuffle(rng);
        let mut loss = 0.0;
        for batch in batches(&order, settings.batch) {
            train.gather(batch, &mut x, &mut labels);
            loss += step_timer.time(batch.len(), || -> Result<f64, bn_core::Error> {
                network.forward_training(&x, buffers)?;
                let loss = softmax_cross_entropy(&buffers.logits, &labels, &mut buffers.dlogits);
                network.backward(&x, buffers)?;
                observer.before_step(network, &x, &labels)?;
                network.step(settings.learning_rate);
                Ok(loss * batch.len() as f64)
            })?;
            observer.after_step(network)?;
        }
        let test_accuracy = evaluate(network, test, settings.batch, buffers)?;
        let epoch = Epoch { loss: loss / train.rows() as f64, test_accuracy };
        observer.after_epoch(&epoch);
        let finite = epoch.loss.is_finite();
        epochs.push(epoch);
        if !finite {
            break;
        }
    }
    Ok(epochs)
}

/// The share of rows that is recognised, in inference mode.
pub fn evaluate(
    network: &Network,
    samples: &Samples,
    batch: usize,
    buffers: &mut Buffers,
) -> Result<f64, bn_core::Error> {
    let (mut x, mut labels) = (Vec::new(), Vec::new());
    let order: Vec<usize> = (0..samples.rows()).collect();
    let mut correct = 0;
    for indices in order.chunks(batch) {
        samples.gather(indices, &mut x, &mut labels);
        network.inference(&x, buffers)?;
        correct += count_correct(&buffers.logits, &labels);
    }
    Ok(correct as f64 / samples.rows() as f64)
}

/// Cuts an epoch into batches; the last one may be smaller.
///
/// A single row that would be left over joins the batch before it: alone it has no variance, and normalized by itself
/// every channel would be beta, whatever the image. bn-core refuses that (`Error::TooFewValues`). Leaving the row out
/// is the other way, and PyTorch's `drop_last`; but then not every image is seen once per epoch.
pub fn batches(order: &[usize], batch: usize) -> impl Iterator<Item = &[usize]> {
    let mut rest = order;
    core::iter::from_fn(move || {
        let len = if rest.len() <= batch + 1 { rest.len() } else { batch };
        let (next, after) = rest.split_at(len);
        rest = after;
        (!next.is_empty()).then_some(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_batch_is_a_single_row() {
        let order: Vec<usize> = (0..9).collect();
        let lengths = |batch| batches(&order, batch).map(<[usize]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(4), [4, 5]);
        assert_eq!(lengths(2), [2, 2, 2, 3]);
        assert_eq!(lengths(7), [7, 2]);
        assert_eq!(lengths(8), [9]);
        assert_eq!(lengths(9), [9]);
        assert_eq!(lengths(100), [9]);
        assert!(batches(&order, 4).flatten().eq(&order));
        assert_eq!(batches(&[], 4).count(), 0);
    }
}
