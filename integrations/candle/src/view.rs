//! candle's layouts as bn-core's.

use bn_core::{Shape, Stride};
use candle_core::{Layout, Result, Tensor};

/// The order of the dimensions: NCHW as the framework has them, NHWC with the channels last.
pub(crate) use bn_core::Layout as Order;

/// The shape of a tensor whose dimensions are in this order.
pub(crate) fn shape(order: Order, dims: &[usize]) -> Result<Shape> {
    Shape::from_dims(order, dims).map_err(crate::wrap)
}

/// How far apart the images and the runs of a tensor are whose dimensions are in this order; `None` where it cannot
/// be read so.
pub(crate) fn stride(order: Order, layout: &Layout) -> Option<Stride> {
    Stride::from_dims(order, layout.dims(), layout.stride())
}

/// The tensor's part of its storage, from the first to the last element, where [`stride`] has found its strides.
pub(crate) fn span<'s, T>(storage: &'s [T], order: Order, layout: &Layout) -> Result<&'s [T]> {
    let len = stride(order, layout).unwrap_or_default().span(&shape(order, layout.dims())?).map_err(crate::wrap)?;
    Ok(&storage[layout.start_offset()..][..len])
}

/// x with its dimensions in an order that it can be read in as it lies in memory; copied where there is none.
pub(crate) fn ordered(x: &Tensor) -> Result<(Order, Tensor)> {
    if stride(Order::Nchw, x.layout()).is_some() {
        return Ok((Order::Nchw, x.clone()));
    }
    let last = channels_last(x)?;
    match stride(Order::Nhwc, last.layout()) {
        Some(_) => Ok((Order::Nhwc, last)),
        None => Ok((Order::Nchw, x.contiguous()?)),
    }
}

fn channels_last(x: &Tensor) -> Result<Tensor> {
    let dims: Vec<usize> = std::iter::once(0).chain(2..x.rank()).chain([1]).collect();
    x.permute(dims)
}

/// y with its channels where candle has them.
pub(crate) fn channels_second(order: Order, y: Tensor) -> Result<Tensor> {
    if order != Order::Nhwc {
        return Ok(y);
    }
    let dims: Vec<usize> = [0, y.rank() - 1].into_iter().chain(1..y.rank() - 1).collect();
    y.permute(dims)
}
