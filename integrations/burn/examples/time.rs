//! Times this crate beside burn's own layer, in rounds that take turns, and prints medians and their ratios.
//!
//! `cargo run --release --example time [ROUNDS]`

use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Distribution, Tensor};
use std::time::{Duration, Instant};

const SHAPES: [[usize; 4]; 3] = [[32, 64, 56, 56], [32, 256, 14, 14], [32, 512, 7, 7]];

/// One of the implementations.
type Forward = fn(&BatchNorm, Tensor<4>) -> Tensor<4>;

fn theirs(layer: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    layer.forward(x)
}

fn ours(layer: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    bn_burn::forward(layer, x).expect("shapes that agree")
}

fn time(layer: &BatchNorm, x: &Tensor<4>, dy: Option<&Tensor<4>>, forward: Forward) -> Duration {
    let x = x.clone();
    let start = Instant::now();
    let y = forward(layer, x);
    if let Some(dy) = dy {
        // As in a network, where dy comes from the layers behind.
        std::hint::black_box((y * dy.clone()).sum().backward());
    } else {
        std::hint::black_box(y);
    }
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(15, |n| n.parse().expect("a number of rounds"));
    println!("Median milliseconds of {rounds} rounds, f32, Flex, {} threads.\n", rayon::current_num_threads());
    println!("| shape | pass | burn | bn-burn | ratio |");
    println!("|---|---|---|---|---|");
    let device = Device::flex().autodiff();
    for shape in SHAPES {
        let x = Tensor::<4>::random(shape, Distribution::Normal(1.0, 2.0), &device);
        let dy = Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let layer = BatchNormConfig::new(shape[1]).init(&device);
        let (valid, plain, tracked) = (layer.clone().valid(), x.clone().inner(), x.clone().require_grad());
        let passes = [
            ("inference", &valid, &plain, None),
            ("forward", &layer, &x, None),
            ("forward and backward", &layer, &tracked, Some(&dy)),
        ];
        for (pass, layer, x, dy) in passes {
            let mut times = [Vec::new(), Vec::new()];
            // The first round is not counted.
            for round in 0..=rounds {
                for (forward, times) in [theirs as Forward, ours].into_iter().zip(&mut times) {
                    let time = time(layer, x, dy, forward);
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
}
