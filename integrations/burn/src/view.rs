//! Flex's layouts as bn-core's.

use bn_core::{Shape, Stride};
use burn::backend::flex::{FlexTensor, Layout};

/// The order of the dimensions: NCHW as the framework has them, NHWC with the channels last.
pub(crate) use bn_core::Layout as Order;

/// How far apart the images and the runs of a tensor are whose dimensions are in this order; `None` where it cannot
/// be read so.
pub(crate) fn stride(order: Order, layout: &Layout) -> Option<Stride> {
    // A dimension of one is not stepped over, whatever its stride.
    let step = |(&dim, &stride)| if dim <= 1 { Some(0) } else { usize::try_from(stride).ok() };
    let strides: Option<Vec<usize>> = layout.shape().iter().zip(layout.strides()).map(step).collect();
    Stride::from_dims(order, layout.shape(), &strides?)
}

/// The tensor's part of its storage, from the first to the last element, where [`stride`] has found its strides.
pub(crate) fn span<'s, T>(storage: &'s [T], order: Order, layout: &Layout) -> Result<&'s [T], bn_core::Error> {
    let len = stride(order, layout).unwrap_or_default().span(&Shape::from_dims(order, layout.shape())?)?;
    Ok(&storage[layout.start_offset()..][..len])
}

/// x with its dimensions in an order that it can be read in as it lies in memory; copied where there is none.
pub(crate) fn ordered(x: FlexTensor) -> (Order, FlexTensor) {
    if stride(Order::Nchw, x.layout()).is_some() {
        return (Order::Nchw, x);
    }
    let last = permuted(Order::Nhwc, x.clone());
    match stride(Order::Nhwc, last.layout()) {
        Some(_) => (Order::Nhwc, last),
        None => (Order::Nchw, x.to_contiguous()),
    }
}

/// A tensor of burn's order with its dimensions in this order, so that it can be read.
pub(crate) fn in_order(order: Order, t: FlexTensor) -> FlexTensor {
    let t = permuted(order, t);
    if stride(order, t.layout()).is_some() { t } else { t.to_contiguous() }
}

fn permuted(order: Order, t: FlexTensor) -> FlexTensor {
    if order != Order::Nhwc {
        return t;
    }
    let rank = t.layout().num_dims();
    let axes: Vec<usize> = std::iter::once(0).chain(2..rank).chain([1]).collect();
    let layout = t.layout().permute(&axes);
    t.with_layout(layout)
}

/// A dense tensor's layout whose dimensions are in this order, with its channels where burn has them.
pub(crate) fn channels_second(order: Order, dims: &[usize]) -> Layout {
    let layout = Layout::contiguous(dims.to_vec().into());
    if order != Order::Nhwc {
        return layout;
    }
    let axes: Vec<usize> = [0, dims.len() - 1].into_iter().chain(1..dims.len() - 1).collect();
    layout.permute(&axes)
}
