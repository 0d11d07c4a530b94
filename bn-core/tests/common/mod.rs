//! The specification, to be read: batch normalization in plain f64 loops over a channel, two passes,
//! no vectors. And what several test files share.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod problem;

use bn_core::{Element, Executor, Layout, Shape, Stride};
use core::fmt::Debug;

/// An element type: f32, f64, and with feature `half` f16 and bf16.
pub trait Number: Element<Param: From<f32> + Into<f64>> + Into<f64> + Debug {
    /// It is what the kernels calculate in.
    const CALCULATES: bool;
    fn of(v: f64) -> Self;
}

macro_rules! number {
    ($($t:ty, $calculates:expr, $of:expr;)*) => {$(
        impl Number for $t {
            const CALCULATES: bool = $calculates;
            fn of(v: f64) -> Self {
                $of(v)
            }
        }
    )*};
}
number!(f32, true, |v| v as f32; f64, true, f64::from;);
#[cfg(feature = "half")]
number!(half::f16, false, half::f16::from_f64; half::bf16, false, half::bf16::from_f64;);

/// Runs `$f` for every element type.
#[macro_export]
macro_rules! every_type {
    ($f:ident($($argument:expr),*)) => {
        $f::<f32>($($argument),*);
        $f::<f64>($($argument),*);
        #[cfg(feature = "half")]
        {
            $f::<half::f16>($($argument),*);
            $f::<half::bf16>($($argument),*);
        }
    };
}

/// A number's bits, all NaN alike: their payloads are no promise.
pub fn number_bits(v: impl Into<f64>) -> u64 {
    let v = v.into();
    if v.is_nan() { u64::MAX } else { v.to_bits() }
}

/// Whether both have the same bits.
pub fn same<T: Number>(a: &[T], b: &[T]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(&a, &b)| number_bits(a) == number_bits(b))
}

/// Takes the tickets of a call in turn.
pub struct Turns(pub usize);

impl Executor for Turns {
    fn width(&self) -> usize {
        self.0
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        (0..tickets).for_each(|_| task());
    }
}

/// One scoped thread for each ticket.
pub struct Threads(pub usize);

impl Executor for Threads {
    fn width(&self) -> usize {
        self.0
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        std::thread::scope(|s| (0..tickets).for_each(|_| drop(s.spawn(task))));
    }
}

/// The places of a channel's elements, in order of image and position.
pub fn places(shape: Shape, channel: usize) -> impl Iterator<Item = usize> + Clone {
    let (c, s) = (shape.channels(), shape.spatial());
    (0..shape.batch()).flat_map(move |n| {
        (0..s).map(move |p| match shape.layout() {
            Layout::Nchw => (n * c + channel) * s + p,
            Layout::Nhwc => (n * s + p) * c + channel,
            _ => unreachable!(),
        })
    })
}

/// Where element `i` of a dense tensor is in a strided one; strides as [`Stride`] has them.
pub fn place(shape: Shape, s: Stride, i: usize) -> usize {
    let (runs, run) = match shape.layout() {
        Layout::Nchw => (shape.channels(), shape.spatial()),
        _ => (shape.spatial(), shape.channels()),
    };
    let inner = if s.inner == 0 { run } else { s.inner };
    let batch = if s.batch == 0 { runs * inner } else { s.batch };
    i / (runs * run) * batch + i / run % runs * inner + i % run
}

/// Strides of some kind: dense, a slice of a wider tensor, gaps of all kinds, images inside runs.
pub fn stride(shape: Shape, kind: usize, r: &mut Random) -> Stride {
    let (runs, run) = match shape.layout() {
        Layout::Nchw => (shape.channels(), shape.spatial()),
        _ => (shape.spatial(), shape.channels()),
    };
    let inner = run + r.below(20);
    match kind {
        0 => Stride::default(),
        1 => Stride { batch: 0, inner },
        2 => Stride { batch: runs * run + 1 + r.below(40), inner: 0 },
        3 => Stride { batch: runs * inner + r.below(40), inner },
        _ => Stride { batch: inner, inner: shape.batch() * inner + r.below(9) },
    }
}

/// What the reference knows of a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Channel {
    pub mean: f64,
    /// Biased.
    pub var: f64,
    pub gamma: f64,
    pub beta: f64,
    pub epsilon: f64,
}

impl Channel {
    /// 1/√(var + ε), and 0 for 1/0.
    pub fn inverse_std(&self) -> f64 {
        let v = self.var + self.epsilon;
        if v == 0.0 { 0.0 } else { 1.0 / v.sqrt() }
    }
    pub fn y(&self, x: f64) -> f64 {
        self.gamma * (x - self.mean) * self.inverse_std() + self.beta
    }
}

/// A sum without rounding to speak of (Neumaier), so that the reference is better than f64 loops.
pub fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut s, mut c) = (0.0f64, 0.0f64);
    for v in values {
        let t = s + v;
        c += if s.abs() >= v.abs() { (s - t) + v } else { (v - t) + s };
        s = t;
    }
    s + c
}

/// Mean and biased variance, in two passes.
pub fn mean_var(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count() as f64;
    let mean = sum(values.clone()) / n;
    // The mean is rounded to f64; the second term puts that right.
    let off = sum(values.clone().map(|v| v - mean)) / n;
    let mean = mean + off;
    (mean, sum(values.map(|v| (v - mean) * (v - mean))) / n)
}

/// The gradients of a channel in training: (dx, dgamma, dbeta).
pub fn backward(ch: &Channel, x: &[f64], dy: &[f64]) -> (Vec<f64>, f64, f64) {
    let (n, r) = (x.len() as f64, ch.inverse_std());
    let dbeta = sum(dy.iter().copied());
    // Centring dy changes nothing, as Σ (x − mean) = 0, but keeps the digits.
    let mean_dy = dbeta / n;
    let dot = sum(x.iter().zip(dy).map(|(x, dy)| (x - ch.mean) * (dy - mean_dy)));
    let dx =
        x.iter().zip(dy).map(|(x, dy)| ch.gamma * r * ((dy - mean_dy) - (x - ch.mean) * r * (dot * r / n))).collect();
    (dx, dot * r, dbeta)
}

/// A small generator with known sequence (SplitMix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In (0, 1).
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
