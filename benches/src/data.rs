//! The tensors that all subjects read and write, one after the other.

use bn_core::Shape;
use bytemuck::{Pod, Zeroable};
use half::bf16;
use std::ops::{Deref, DerefMut};

/// A tensor at the beginning of a page, with another place among sixteen pages than the tensors it is read with.
///
/// Left to the allocator, x and dy were sometimes a multiple of 256 MB apart. Zen 4 takes the same place of two such pages for the same line:
/// the sums of both took twice as long in one run, and not in the next.
pub struct Tensor<T> {
    pages: Vec<Page>,
    /// Pages before the first.
    before: usize,
    len: usize,
    element: std::marker::PhantomData<T>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Places of pages.
const PLACES: usize = 16;

impl<T: Pod> Tensor<T> {
    /// Of zeros, from a page on whose number is `place` modulo 16.
    pub fn new(len: usize, place: usize) -> Self {
        let pages = vec![Page::zeroed(); (len * size_of::<T>()).div_ceil(size_of::<Page>()) + PLACES];
        let first = pages.as_ptr().addr() / size_of::<Page>();
        let before = (place + PLACES - first % PLACES) % PLACES;
        let mut tensor = Tensor { pages, before, len, element: std::marker::PhantomData };
        // So that no page is the kernel's shared page of zeros, which is faster to read.
        tensor.fill(T::zeroed());
        tensor
    }
}

impl<T: Pod> Deref for Tensor<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.pages[self.before..])[..self.len]
    }
}

impl<T: Pod> DerefMut for Tensor<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.pages[self.before..])[..self.len]
    }
}

/// Operands of every operation. The inputs are exact in bf16, so that one reference serves both types.
pub struct Data {
    /// What the tensors' shape is.
    pub shape: Shape,
    /// Input.
    pub x: Tensor<f32>,
    /// Output.
    pub y: Tensor<f32>,
    /// Gradient of the output.
    pub dy: Tensor<f32>,
    /// Gradient of the input.
    pub dx: Tensor<f32>,
    /// x, y, dy, dx in bf16.
    pub bf16: [Tensor<bf16>; 4],
    /// Factors.
    pub gamma: Vec<f32>,
    /// Offsets.
    pub beta: Vec<f32>,
    /// Running statistics.
    pub mean: Vec<f32>,
    /// Running statistics.
    pub var: Vec<f32>,
    /// Output.
    pub dgamma: Vec<f32>,
    /// Output.
    pub dbeta: Vec<f32>,
}

/// Of the variance.
pub const EPSILON: f32 = 1e-5;

impl Data {
    /// The same numbers each time: about normal, with another mean and deviation in each channel.
    pub fn new(shape: Shape) -> Self {
        let (len, channels) = (shape.len(), shape.channels());
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut of_channel = |low: f32, high: f32| -> Vec<f32> {
            (0..channels).map(|_| low + (high - low) * random.uniform()).collect()
        };
        let (gamma, beta) = (of_channel(0.5, 1.5), of_channel(-1.0, 1.0));
        let (mean, var) = (of_channel(-0.5, 0.5), of_channel(0.5, 2.0));
        let (centre, spread) = (of_channel(-1.0, 1.0), of_channel(0.5, 2.0));
        let mut data = Data {
            shape,
            x: Tensor::new(len, 0),
            y: Tensor::new(len, 4),
            dy: Tensor::new(len, 8),
            dx: Tensor::new(len, 12),
            bf16: std::array::from_fn(|i| Tensor::new(len, 4 * i)),
            gamma,
            beta,
            mean,
            var,
            dgamma: vec![0.0; channels],
            dbeta: vec![0.0; channels],
        };
        for i in 0..len {
            let c = channel(&shape, i);
            let x = bf16::from_f32(centre[c] + spread[c] * random.normal());
            let dy = bf16::from_f32(0.25 + random.normal());
            (data.bf16[0][i], data.bf16[2][i]) = (x, dy);
            (data.x[i], data.dy[i]) = (x.to_f32(), dy.to_f32());
        }
        data
    }

    /// Other numbers for x: each channel with this mean and a deviation of 1, as far as f32 holds them, to be normalized without scale
    /// and shift, so that y is in deviations. Those in bf16 stay.
    pub fn set_mean(&mut self, mean: f32) {
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        self.x.iter_mut().for_each(|x| *x = mean + random.normal());
        self.gamma.fill(1.0);
        self.beta.fill(0.0);
    }
}

/// The channel of an element.
pub fn channel(shape: &Shape, i: usize) -> usize {
    match shape.layout() {
        bn_core::Layout::Nhwc => i % shape.channels(),
        _ => i / shape.spatial() % shape.channels(),
    }
}

/// Xorshift (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// From 0 to 1.
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }
    /// Four uniform numbers of 16 bits, added up: mean 0, variance 1, at most 3.5.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum::<u64>();
        (sum as f32 / 65535.0 - 2.0) * 3f32.sqrt()
    }
}
