//! Looks for data that make the library as wrong as can be: mutates values of 256 rows (one block) and
//! keeps what is worse.
//!
//! ```text
//! cargo run --release -p bn-oracle --example search -- [SECONDS] [SEED]
//! ```

use bn_core::Shape;
use bn_oracle::bounds::Activation;
use bn_oracle::data::Random;
use bn_oracle::problem::{How, Problem, Through};
use std::time::{Duration, Instant};

const ROWS: usize = 256;
const CHANNELS: usize = 48;
const QUANTITIES: [&str; 5] = ["y", "mean", "variance", "dx", "dgamma"];

/// x and dy of a channel.
type Data = (Vec<f32>, Vec<f32>);

fn random(r: &mut Random) -> Data {
    let few = 1 + r.below(4);
    let palette: Vec<f32> = (0..few).map(|_| (r.normal() * 4f64.powi(-(r.below(8) as i32))) as f32).collect();
    let other: Vec<f32> = (0..few).map(|_| r.normal() as f32).collect();
    let period = r.pick(&[1, 2, 4, 16, 64, 256]);
    let pick = |i: usize, r: &mut Random, of: &[f32]| {
        if period == 1 { r.pick(of) } else { of[i % period % of.len()] }
    };
    ((0..ROWS).map(|i| pick(i, r, &palette)).collect(), (0..ROWS).map(|i| pick(i, r, &other)).collect())
}

fn mutate(d: &Data, r: &mut Random) -> Data {
    let (mut x, mut dy) = d.clone();
    for _ in 0..1 + r.below(3) {
        let v = if r.below(3) == 0 { &mut dy } else { &mut x };
        let (from, to) = (r.below(ROWS), r.below(ROWS));
        let old = v[to];
        match r.below(5) {
            // Another value of its own, for one or for all of a kind.
            0 => v[to] = v[from],
            1 => {
                let new = v[from];
                v.iter_mut().filter(|v| **v == old).for_each(|v| *v = new);
            }
            // A few ulps, or another size, for all of a kind.
            2 => {
                let by = r.below(64) as i32 - 32;
                v.iter_mut()
                    .filter(|v| **v == old)
                    .for_each(|v| *v = f32::from_bits(v.to_bits().wrapping_add_signed(by)));
            }
            3 => {
                let by = (1.0 + r.normal() * 0.3) as f32;
                v.iter_mut().filter(|v| **v == old).for_each(|v| *v *= by);
            }
            _ => v[to] = old * (2f64.powi(r.below(24) as i32 - 12) * r.sign()) as f32,
        }
    }
    let good = |v: &f32| v.is_finite() && v.abs() < 1e6 && (*v == 0.0 || v.abs() > 1e-6);
    if x.iter().chain(&dy).all(good) { (x, dy) } else { d.clone() }
}

/// Units by which each channel is wrong.
fn judge(data: &[Data]) -> Vec<[f64; 5]> {
    let shape = Shape::dense(ROWS, CHANNELS).expect("a small shape");
    let mut p = Problem::<f32> {
        shape,
        epsilon: 0.0,
        activation: Activation::Identity,
        x: vec![0.0; shape.len()],
        dy: vec![0.0; shape.len()],
        residual: None,
        gamma: None,
        beta: None,
        running: (vec![0.0; CHANNELS], vec![1.0; CHANNELS]),
    };
    for (c, (x, dy)) in data.iter().enumerate() {
        for i in 0..ROWS {
            (p.x[i * CHANNELS + c], p.dy[i * CHANNELS + c]) = (x[i], dy[i]);
        }
    }
    let forward = p.forward(How::default());
    let made = p.backward(How::default(), &forward, Through::Batch);
    let of = |c: usize| {
        let (f, b) = (p.judge_forward(c, &forward), p.judge_backward(c, &forward, &made, Through::Batch));
        [f.y, f.mean, f.variance, b.dx, b.dgamma]
    };
    (0..CHANNELS).map(of).collect()
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let (seconds, seed) = (args.next().unwrap_or(30), args.next().unwrap_or(1));
    let mut r = Random(seed);
    for (q, name) in QUANTITIES.iter().enumerate() {
        let end = Instant::now() + Duration::from_secs(seconds) / QUANTITIES.len() as u32;
        let mut best: Vec<Data> = (0..CHANNELS).map(|_| random(&mut r)).collect();
        let mut score: Vec<f64> = judge(&best).iter().map(|e| e[q]).collect();
        let mut rounds = 0;
        while Instant::now() < end {
            rounds += 1;
            let tries: Vec<Data> = best.iter().map(|d| mutate(d, &mut r)).collect();
            for (c, e) in judge(&tries).iter().enumerate() {
                if e[q] >= score[c] {
                    (best[c], score[c]) = (tries[c].clone(), e[q]);
                }
            }
            // The worst half starts again from the best, now and then.
            if rounds % 500 == 0 {
                let mut order: Vec<usize> = (0..CHANNELS).collect();
                order.sort_by(|a, b| score[*b].total_cmp(&score[*a]));
                for i in CHANNELS / 2..CHANNELS {
                    let from = order[r.below(CHANNELS / 8)];
                    best[order[i]] = if r.below(3) == 0 { random(&mut r) } else { best[from].clone() };
                    score[order[i]] = if best[order[i]] == best[from] { score[from] } else { 0.0 };
                }
            }
        }
        let top = score.iter().copied().fold(0.0, f64::max);
        println!("{name}: {top:.2} units after {} tries", rounds * CHANNELS);
    }
}
