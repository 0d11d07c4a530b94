//! Whether a subject's answer is right, before it is timed.

use crate::data::{Data, EPSILON, channel};
use crate::{Operation, Subject};
use anyhow::{Result, ensure};
use half::bf16;

/// The right answer of an operation, from loops in f64.
pub struct Answer {
    operation: Operation,
    tensor: Vec<f32>,
    /// dgamma and dbeta.
    gradients: Option<[Vec<f64>; 2]>,
    /// Elements of a channel.
    count: f64,
    /// What an absolute error is measured by: at least 1.
    scale: f64,
}

impl Answer {
    /// Of a batch norm.
    pub fn new(data: &Data, operation: Operation) -> Self {
        let shape = data.shape;
        let (channels, count) = (shape.channels(), shape.values_per_channel() as f64);
        let channels_of: Vec<u32> = (0..shape.len()).map(|i| channel(&shape, i) as u32).collect();
        let each = |f: &mut dyn FnMut(usize, usize)| {
            for (i, &c) in channels_of.iter().enumerate() {
                f(i, c as usize);
            }
        };
        let running = matches!(operation, Operation::Inference | Operation::InferenceBf16 | Operation::FrozenDx);
        let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
        if running {
            mean = data.mean.iter().map(|&v| f64::from(v)).collect();
            var = data.var.iter().map(|&v| f64::from(v)).collect();
        } else {
            each(&mut |i, c| mean[c] += f64::from(data.x[i]));
            mean.iter_mut().for_each(|m| *m /= count);
            each(&mut |i, c| var[c] += (f64::from(data.x[i]) - mean[c]).powi(2));
            var.iter_mut().for_each(|v| *v /= count);
        }
        let inverse: Vec<f64> = var.iter().map(|v| 1.0 / (v + f64::from(EPSILON)).sqrt()).collect();
        let normal = |i: usize, c: usize| (f64::from(data.x[i]) - mean[c]) * inverse[c];
        let z = |i: usize, c: usize| f64::from(data.gamma[c]) * normal(i, c) + f64::from(data.beta[c]);
        let mut tensor = vec![0.0f32; shape.len()];
        let mut gradients = None;
        if operation.is_backward() {
            // The mask is that of y in f32, as the subjects see it.
            let dy = |i: usize, c: usize| {
                if operation.is_relu() && z(i, c) as f32 <= 0.0 { 0.0 } else { f64::from(data.dy[i]) }
            };
            let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
            if !running {
                each(&mut |i, c| {
                    dbeta[c] += dy(i, c);
                    dgamma[c] += dy(i, c) * normal(i, c);
                });
            }
            each(&mut |i, c| {
                let inner = dy(i, c) - dbeta[c] / count - normal(i, c) * dgamma[c] / count;
                tensor[i] = (f64::from(data.gamma[c]) * inverse[c] * inner) as f32;
            });
            gradients = (!running).then_some([dgamma, dbeta]);
        } else {
            let relu = operation.is_relu();
            each(&mut |i, c| tensor[i] = if relu { z(i, c).max(0.0) } else { z(i, c) } as f32);
        }
        let scale = tensor.iter().fold(1.0f64, |m, v| m.max(f64::from(v.abs())));
        Answer { operation, tensor, gradients, count, scale }
    }

    /// Calls the subject once, and compares what it wrote.
    ///
    /// # Errors
    /// Where it differs by more than `tolerance`: of the largest value of the tensor, and, in sums, of
    /// the number of addends.
    pub fn check(&self, subject: &mut Subject<'_>, data: &mut Data, tolerance: f64) -> Result<()> {
        let operation = self.operation;
        debug_assert_eq!(subject.operation, operation);
        // What is not written shows.
        data.y.fill(f32::NAN);
        data.dx.fill(f32::NAN);
        data.bf16[1].fill(bf16::NAN);
        data.bf16[3].fill(bf16::NAN);
        data.dgamma.fill(f32::NAN);
        data.dbeta.fill(f32::NAN);
        if operation == Operation::BackwardRelu {
            let shape = data.shape;
            let forward = Answer::new(data, Operation::ForwardRelu).tensor;
            debug_assert_eq!(forward.len(), shape.len());
            data.y.copy_from_slice(&forward);
        }
        (subject.call)(data)?;
        let who = format!("{} {} {}", subject.library, subject.variant, operation.name());
        let error = match (operation.is_bf16(), operation.is_backward()) {
            (false, false) => self.distance(&data.y),
            (false, true) => self.distance(&data.dx),
            (true, false) => self.distance_bf16(&data.bf16[1]),
            (true, true) => self.distance_bf16(&data.bf16[3]),
        };
        let allowed = if operation.is_bf16() { 1.0 / 256.0 } else { tolerance };
        ensure!(error <= allowed, "{who}: wrong by {error:e} of the largest value");
        if let Some([dgamma, dbeta]) = &self.gradients {
            for (name, right, got) in [("dgamma", dgamma, &data.dgamma), ("dbeta", dbeta, &data.dbeta)] {
                let pairs = right.iter().zip(got).map(|(r, g)| (r - f64::from(*g)).abs() / self.count);
                let error = worst(pairs);
                ensure!(error <= tolerance, "{who}: {name} wrong by {error:e} per addend");
            }
        }
        Ok(())
    }

    /// Calls a forward pass once, and returns how far what it wrote is from the right answer at most.
    ///
    /// # Errors
    /// Those of the call.
    pub fn error(&self, subject: &mut Subject<'_>, data: &mut Data) -> Result<f64> {
        debug_assert_eq!((subject.operation, self.operation), (Operation::Forward, Operation::Forward));
        data.y.fill(f32::NAN);
        (subject.call)(data)?;
        Ok(self.distance(&data.y) * self.scale)
    }

    fn distance(&self, got: &[f32]) -> f64 {
        let pairs = self.tensor.iter().zip(got);
        worst(pairs.map(|(a, b)| f64::from((a - b).abs()))) / self.scale
    }

    fn distance_bf16(&self, got: &[bf16]) -> f64 {
        let pairs = self.tensor.iter().zip(got);
        worst(pairs.map(|(a, b)| f64::from((a - b.to_f32()).abs()))) / self.scale
    }
}

/// The largest; NaN is worst.
fn worst(errors: impl Iterator<Item = f64>) -> f64 {
    errors.fold(0.0, |worst, e| if e <= worst { worst } else { if e.is_nan() { f64::INFINITY } else { e } })
}
