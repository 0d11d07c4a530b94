//! candle-nn, which knows NCHW only. It allocates its outputs. Its gradients come from automatic
//! differentiation of the whole forward pass: no backward pass of its own to time.

use anyhow::{Result, ensure};
use bn_benches::data::{Data, EPSILON};
use bn_benches::{Operation, Subject};
use candle_core::{Device, Tensor};
use candle_nn::{BatchNorm, ModuleT};

/// As in records.
pub const NAME: &str = "candle-nn";

/// Training forward and inference.
pub fn subjects<'a>(data: &Data) -> Result<Vec<Subject<'a>>> {
    let channels = data.shape.channels();
    let dims = (data.shape.batch(), channels, data.shape.spatial());
    let x = Tensor::from_slice(&data.x, dims, &Device::Cpu)?;
    [(Operation::Forward, true), (Operation::Inference, false)]
        .into_iter()
        .map(|(operation, training)| {
            let of_channels = |v: &[f32]| Tensor::from_slice(v, channels, &Device::Cpu);
            let layer = BatchNorm::new(
                channels,
                of_channels(&data.mean)?,
                of_channels(&data.var)?,
                of_channels(&data.gamma)?,
                of_channels(&data.beta)?,
                f64::from(EPSILON),
            )?;
            let right = layer.forward_t(&x, training)?.flatten_all()?.to_vec1::<f32>()?;
            // Its answer is checked once: copying it out with every call would be timed.
            let mut first = Some(right);
            let x = x.clone();
            // The running statistics move with every training call, and are not used by it.
            Ok(Subject {
                library: NAME.into(),
                variant: "cpu".into(),
                operation,
                workspace: 0,
                call: Box::new(move |data: &mut Data| {
                    let y = layer.forward_t(&x, training)?;
                    if let Some(right) = first.take() {
                        ensure!(right.len() == data.y.len());
                        data.y.copy_from_slice(&right);
                    }
                    std::hint::black_box(y);
                    Ok(())
                }),
            })
        })
        .collect()
}
