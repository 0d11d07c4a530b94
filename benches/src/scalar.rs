//! What a careful programmer writes in an hour: two passes for the statistics, sums in f64, memory in its
//! own order, on each thread a part of it.

use crate::data::{Data, EPSILON};
use crate::{Operation, Subject};
use bn_core::{Layout, Shape};
use rayon::prelude::*;

/// Forward, backward and inference.
pub fn subjects<'a>(shape: Shape, threads: usize) -> Vec<Subject<'a>> {
    let runs = Runs::new(shape, threads);
    let subject = |operation, call| Subject {
        library: "scalar".into(),
        variant: "two-pass".into(),
        operation,
        workspace: 0,
        call,
    };
    vec![
        subject(
            Operation::Forward,
            Box::new(move |data| {
                let (mean, var) = runs.statistics(&data.x);
                runs.normalize(data, &mean, &var);
                Ok(())
            }),
        ),
        subject(Operation::Backward, {
            let mut statistics = None;
            Box::new(move |data| {
                let (mean, var) = statistics.get_or_insert_with(|| runs.statistics(&data.x));
                runs.backward(data, mean, var);
                Ok(())
            })
        }),
        subject(
            Operation::Inference,
            Box::new(move |data| {
                let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
                let (mean, var) = (wide(&data.mean), wide(&data.var));
                runs.normalize(data, &mean, &var);
                Ok(())
            }),
        ),
    ]
}

/// Runs of contiguous elements: the planes of NCHW, each of one channel; the rows of NHWC.
#[derive(Clone, Copy)]
struct Runs {
    len: usize,
    /// Runs that a thread takes.
    chunk: usize,
    channels: usize,
    rows: bool,
    count: f64,
}

impl Runs {
    fn new(shape: Shape, threads: usize) -> Self {
        let rows = shape.layout() == Layout::Nhwc;
        let len = if rows { shape.channels() } else { shape.spatial() };
        let runs = shape.len() / len;
        // Whole images, so that a part begins with channel 0.
        let chunk = if rows { runs.div_ceil(threads) } else { shape.batch().div_ceil(threads) * shape.channels() };
        Runs { len, chunk, channels: shape.channels(), rows, count: shape.values_per_channel() as f64 }
    }

    /// Σ of two values per element, by channel.
    fn sums(&self, x: &[f32], dy: &[f32], value: impl Fn(usize, f64, f64) -> [f64; 2] + Sync) -> Vec<[f64; 2]> {
        let part = self.chunk * self.len;
        let parts = x.par_chunks(part).zip(dy.par_chunks(part)).map(|(x, dy)| {
            let mut sums = vec![[0.0; 2]; self.channels];
            for (i, (x, dy)) in x.chunks_exact(self.len).zip(dy.chunks_exact(self.len)).enumerate() {
                if self.rows {
                    for c in 0..self.len {
                        let [a, b] = value(c, x[c].into(), dy[c].into());
                        sums[c][0] += a;
                        sums[c][1] += b;
                    }
                } else {
                    let c = i % self.channels;
                    let mut sum = [0.0; 2];
                    for (x, dy) in x.iter().zip(dy) {
                        let [a, b] = value(c, f64::from(*x), f64::from(*dy));
                        sum[0] += a;
                        sum[1] += b;
                    }
                    sums[c][0] += sum[0];
                    sums[c][1] += sum[1];
                }
            }
            sums
        });
        parts
            .reduce_with(|mut a, b| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a = [a[0] + b[0], a[1] + b[1]]);
                a
            })
            .unwrap_or_default()
    }

    fn statistics(&self, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let sums = self.sums(x, x, |_, x, _| [x, 0.0]);
        let mean: Vec<f64> = sums.iter().map(|s| s[0] / self.count).collect();
        let squares = self.sums(x, x, |c, x, _| [(x - mean[c]) * (x - mean[c]), 0.0]);
        let var = squares.iter().map(|s| s[0] / self.count).collect();
        (mean, var)
    }

    fn map(&self, out: &mut [f32], x: &[f32], dy: &[f32], value: impl Fn(usize, f32, f32) -> f32 + Sync) {
        let part = self.chunk * self.len;
        out.par_chunks_mut(part).zip(x.par_chunks(part)).zip(dy.par_chunks(part)).for_each(|((out, x), dy)| {
            let runs = out.chunks_exact_mut(self.len).zip(x.chunks_exact(self.len)).zip(dy.chunks_exact(self.len));
            for (i, ((out, x), dy)) in runs.enumerate() {
                let first = if self.rows { 0 } else { i % self.channels };
                for (j, ((out, x), dy)) in out.iter_mut().zip(x).zip(dy).enumerate() {
                    *out = value(if self.rows { j } else { first }, *x, *dy);
                }
            }
        });
    }

    fn normalize(&self, data: &mut Data, mean: &[f64], var: &[f64]) {
        let scale = scale(&data.gamma, var);
        let mean: Vec<f32> = mean.iter().map(|&m| m as f32).collect();
        let beta = &data.beta;
        self.map(&mut data.y, &data.x, &data.x, |c, x, _| (x - mean[c]) * scale[c] + beta[c]);
    }

    fn backward(&self, data: &mut Data, mean: &[f64], var: &[f64]) {
        let sums = self.sums(&data.x, &data.dy, |c, x, dy| [dy, dy * (x - mean[c])]);
        let scale = scale(&data.gamma, var);
        let mut factor = vec![0.0; self.channels];
        let mut average = vec![0.0; self.channels];
        for (c, [dbeta, dot]) in sums.into_iter().enumerate() {
            let inverse = 1.0 / (var[c] + f64::from(EPSILON)).sqrt();
            (data.dbeta[c], data.dgamma[c]) = (dbeta as f32, (dot * inverse) as f32);
            (average[c], factor[c]) = ((dbeta / self.count) as f32, (dot * inverse * inverse / self.count) as f32);
        }
        let mean: Vec<f32> = mean.iter().map(|&m| m as f32).collect();
        self.map(&mut data.dx, &data.x, &data.dy, |c, x, dy| scale[c] * (dy - average[c] - (x - mean[c]) * factor[c]));
    }
}

fn scale(gamma: &[f32], var: &[f64]) -> Vec<f32> {
    gamma.iter().zip(var).map(|(g, v)| (f64::from(*g) / (v + f64::from(EPSILON)).sqrt()) as f32).collect()
}
