//! candle's layouts as bn-core's.

use bn_core::{Shape, Stride};
use candle_core::{Layout, Result, Tensor};

/// The order of the dimensions in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// As the framework has them.
    ChannelsSecond,
    ChannelsLast,
}

/// The shape of a tensor whose dimensions are in this order.
pub(crate) fn shape(order: Order, dims: &[usize]) -> Result<Shape> {
    let shape = match order {
        Order::ChannelsSecond => Shape::nchw(dims[0], dims[1], &dims[2..]),
        Order::ChannelsLast => Shape::nhwc(dims[0], dims[dims.len() - 1], &dims[1..dims.len() - 1]),
    };
    shape.map_err(crate::wrap)
}

/// How far apart the images and the runs of a tensor are whose dimensions are in this order; `None` where its
/// runs are not contiguous, or an element is there more than once.
pub(crate) fn stride(order: Order, layout: &Layout) -> Option<Stride> {
    let (dims, strides) = (layout.dims(), layout.stride());
    if dims.contains(&0) {
        return Some(Stride::default());
    }
    let (run, runs) = match order {
        Order::ChannelsSecond => (2..dims.len(), 1..2),
        Order::ChannelsLast => (dims.len() - 1..dims.len(), 1..dims.len() - 1),
    };
    let step = |range: std::ops::Range<usize>| step(&dims[range.clone()], &strides[range]);
    // 0: nothing is stepped over.
    (step(run)? <= 1).then_some(Stride { batch: step(0..1)?, inner: step(runs)? })
}

/// The step through dimensions that are one when flattened, 0 where there is at most one element.
fn step(dims: &[usize], strides: &[usize]) -> Option<usize> {
    let mut step = 0;
    let mut next = None;
    for (&dim, &stride) in dims.iter().zip(strides).rev().filter(|(dim, _)| **dim != 1) {
        // candle's stride of 0 repeats elements; bn-core's means dense.
        if stride == 0 || next.is_some_and(|next| stride != next) {
            return None;
        }
        if next.is_none() {
            step = stride;
        }
        next = Some(stride * dim);
    }
    Some(step)
}

/// The tensor's part of its storage, from the first to the last element.
pub(crate) fn span<'s, T>(storage: &'s [T], layout: &Layout) -> &'s [T] {
    let (dims, strides) = (layout.dims(), layout.stride());
    let len = match dims.contains(&0) {
        true => 0,
        false => dims.iter().zip(strides).map(|(dim, stride)| (dim - 1) * stride).sum::<usize>() + 1,
    };
    &storage[layout.start_offset()..][..len]
}

/// x with its dimensions in an order that it can be read in as it lies in memory; copied where there is none.
pub(crate) fn ordered(x: &Tensor) -> Result<(Order, Tensor)> {
    if stride(Order::ChannelsSecond, x.layout()).is_some() {
        return Ok((Order::ChannelsSecond, x.clone()));
    }
    let last = channels_last(x)?;
    match stride(Order::ChannelsLast, last.layout()) {
        Some(_) => Ok((Order::ChannelsLast, last)),
        None => Ok((Order::ChannelsSecond, x.contiguous()?)),
    }
}

fn channels_last(x: &Tensor) -> Result<Tensor> {
    let dims: Vec<usize> = std::iter::once(0).chain(2..x.rank()).chain([1]).collect();
    x.permute(dims)
}

/// y with its channels where candle has them.
pub(crate) fn channels_second(order: Order, y: Tensor) -> Result<Tensor> {
    match order {
        Order::ChannelsSecond => Ok(y),
        Order::ChannelsLast => {
            let dims: Vec<usize> = [0, y.rank() - 1].into_iter().chain(1..y.rank() - 1).collect();
            y.permute(dims)
        }
    }
}
