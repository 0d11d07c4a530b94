//! Times this crate's layer beside candle-nn's, in rounds that take turns, and prints medians and their ratios.
//!
//! `cargo run --release --example time [ROUNDS]`

use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use std::time::{Duration, Instant};

const SHAPES: [[usize; 4]; 3] = [[32, 64, 56, 56], [32, 256, 14, 14], [32, 512, 7, 7]];

/// One of the layers.
type Forward<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

fn time(x: &Tensor, dy: Option<&Tensor>, forward: Forward<'_>) -> Result<Duration> {
    let start = Instant::now();
    let y = forward(x)?;
    if let Some(dy) = dy {
        // As in a network, where dy comes from the layers behind.
        std::hint::black_box((y * dy)?.sum_all()?.backward()?);
    } else {
        std::hint::black_box(y);
    }
    Ok(start.elapsed())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).map_or(15, |n| n.parse().expect("a number of rounds"));
    println!("Median milliseconds of {rounds} rounds, f32, {} threads.\n", rayon::current_num_threads());
    println!("| shape | pass | candle-nn | bn-candle | ratio |");
    println!("|---|---|---|---|---|");
    for shape in SHAPES {
        let x = Tensor::randn(1f32, 2.0, &shape, &Device::Cpu)?;
        let dy = Tensor::randn(0f32, 1.0, &shape, &Device::Cpu)?;
        let channels = shape[1];
        let [mean, beta] = [(); 2].map(|()| Tensor::zeros(channels, DType::F32, &Device::Cpu));
        let [var, gamma] = [(); 2].map(|()| Tensor::ones(channels, DType::F32, &Device::Cpu));
        let (mean, var) = (mean?, var?);
        let (gamma, beta) = (Var::from_tensor(&gamma?)?, Var::from_tensor(&beta?)?);
        let affine = (gamma.as_tensor().clone(), beta.as_tensor().clone());
        let ours = bn_candle::BatchNorm::new(&mean, &var, Some(affine.clone()), 1e-5, 0.1)?;
        let theirs = candle_nn::BatchNorm::new(channels, mean, var, affine.0, affine.1, 1e-5)?;

        let tracked = Var::from_tensor(&x)?;
        let passes = [
            ("inference", false, &x, None),
            ("forward", true, &x, None),
            ("forward and backward", true, tracked.as_tensor(), Some(&dy)),
        ];
        for (pass, train, x, dy) in passes {
            let layers: [Forward<'_>; 2] = [&|x| theirs.forward_t(x, train), &|x| ours.forward_t(x, train)];
            let mut times = [Vec::new(), Vec::new()];
            // The first round is not counted.
            for round in 0..=rounds {
                for (layer, times) in layers.iter().zip(&mut times) {
                    let time = time(x, dy, layer)?;
                    if round > 0 {
                        times.push(time);
                    }
                }
            }
            let [theirs, ours] = times.map(median);
            let name = shape.map(|d| d.to_string()).join("×");
            println!("| {name} | {pass} | {theirs:.2} | {ours:.2} | {:.1} |", theirs / ours);
        }
    }
    Ok(())
}
