//! Flex's layouts as bn-core's.

use bn_core::{Shape, Stride};
use burn::backend::flex::{FlexTensor, Layout};

/// The order of the dimensions in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// As the framework has them.
    ChannelsSecond,
    ChannelsLast,
}

/// The shape of a tensor whose dimensions are in this order.
pub(crate) fn shape(order: Order, dims: &[usize]) -> Result<Shape, bn_core::Error> {
    match order {
        Order::ChannelsSecond => Shape::nchw(dims[0], dims[1], &dims[2..]),
        Order::ChannelsLast => Shape::nhwc(dims[0], dims[dims.len() - 1], &dims[1..dims.len() - 1]),
    }
}

/// How far apart the images and the runs of a tensor are whose dimensions are in this order; `None` where its
/// runs are not contiguous, or go backwards, or an element is there more than once.
pub(crate) fn stride(order: Order, layout: &Layout) -> Option<Stride> {
    let (dims, strides) = (layout.shape(), layout.strides());
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
fn step(dims: &[usize], strides: &[isize]) -> Option<usize> {
    let mut step = 0;
    let mut next = None;
    for (&dim, &stride) in dims.iter().zip(strides).rev().filter(|(dim, _)| **dim != 1) {
        // A stride of 0 repeats elements in burn; bn-core's means dense.
        let stride = usize::try_from(stride).ok().filter(|&stride| stride > 0)?;
        if next.is_some_and(|next| stride != next) {
            return None;
        }
        if next.is_none() {
            step = stride;
        }
        next = Some(stride * dim);
    }
    Some(step)
}

/// The tensor's part of its storage, from the first to the last element, where [`stride`] has found its strides.
pub(crate) fn span<'s, T>(storage: &'s [T], layout: &Layout) -> &'s [T] {
    let last = |(&dim, &stride): (&usize, &isize)| (dim - 1) * stride.unsigned_abs();
    let len = match layout.num_elements() {
        0 => 0,
        _ => layout.shape().iter().zip(layout.strides()).filter(|(dim, _)| **dim > 1).map(last).sum::<usize>() + 1,
    };
    &storage[layout.start_offset()..][..len]
}

/// x with its dimensions in an order that it can be read in as it lies in memory; copied where there is none.
pub(crate) fn ordered(x: FlexTensor) -> (Order, FlexTensor) {
    if stride(Order::ChannelsSecond, x.layout()).is_some() {
        return (Order::ChannelsSecond, x);
    }
    let last = permuted(Order::ChannelsLast, x.clone());
    match stride(Order::ChannelsLast, last.layout()) {
        Some(_) => (Order::ChannelsLast, last),
        None => (Order::ChannelsSecond, x.to_contiguous()),
    }
}

/// A tensor of burn's order with its dimensions in this order, so that it can be read.
pub(crate) fn in_order(order: Order, t: FlexTensor) -> FlexTensor {
    let t = permuted(order, t);
    if stride(order, t.layout()).is_some() { t } else { t.to_contiguous() }
}

fn permuted(order: Order, t: FlexTensor) -> FlexTensor {
    match order {
        Order::ChannelsSecond => t,
        Order::ChannelsLast => {
            let rank = t.layout().num_dims();
            let axes: Vec<usize> = std::iter::once(0).chain(2..rank).chain([1]).collect();
            let layout = t.layout().permute(&axes);
            t.with_layout(layout)
        }
    }
}

/// A dense tensor's layout whose dimensions are in this order, with its channels where burn has them.
pub(crate) fn channels_second(order: Order, dims: &[usize]) -> Layout {
    let layout = Layout::contiguous(dims.to_vec().into());
    match order {
        Order::ChannelsSecond => layout,
        Order::ChannelsLast => {
            let axes: Vec<usize> = [0, dims.len() - 1].into_iter().chain(1..dims.len() - 1).collect();
            layout.permute(&axes)
        }
    }
}
