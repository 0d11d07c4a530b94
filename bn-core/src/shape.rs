//! Shapes, checked once.

use crate::error::Error;
pub use crate::layout::Layout;

/// The shape of a tensor: batch × channels × any number of spatial dimensions, dense, in the order
/// that its [`Layout`] says.
///
/// Statistics of a channel are over the batch and all spatial positions.
///
/// ```
/// use bn_core::{Layout, Shape};
/// let images = Shape::nhwc(32, 64, &[56, 56])?;
/// assert_eq!((images.len(), images.values_per_channel()), (32 * 64 * 56 * 56, 32 * 56 * 56));
/// let sound = Shape::nchw(16, 64, &[16_000])?;
/// let features = Shape::dense(128, 1024)?;
/// assert_eq!(features.layout(), Layout::Nhwc);
/// # Ok::<(), bn_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    layout: Layout,
    batch: usize,
    channels: usize,
    spatial: usize,
}

impl Shape {
    /// A shape of `batch` × `channels` × the product of `spatial`.
    ///
    /// No spatial dimensions mean one position. A batch, or a spatial dimension, of 0 is legal: such
    /// a tensor has no elements.
    ///
    /// # Errors
    /// [`Error::NoChannels`]; [`Error::ShapeOverflow`] where 8 bytes times the number of elements
    /// would not fit `isize`.
    pub fn new(layout: Layout, batch: usize, channels: usize, spatial: &[usize]) -> Result<Self, Error> {
        if channels == 0 {
            return Err(Error::NoChannels);
        }
        // With a zero among them the order of the factors must not matter.
        let product = |acc: Option<usize>, &d: &usize| acc.and_then(|p: usize| p.checked_mul(d.max(1)));
        let positions = spatial.iter().fold(Some(1), product).ok_or(Error::ShapeOverflow)?;
        [batch, channels, 8]
            .iter()
            .fold(Some(positions), product)
            .filter(|&n| n <= isize::MAX as usize)
            .ok_or(Error::ShapeOverflow)?;
        let spatial = if spatial.contains(&0) { 0 } else { positions };
        Ok(Shape { layout, batch, channels, spatial })
    }

    /// batch × channels × spatial (NCHW, NCW, NCDHW).
    ///
    /// # Errors
    /// As [`Shape::new`].
    pub fn nchw(batch: usize, channels: usize, spatial: &[usize]) -> Result<Self, Error> {
        Self::new(Layout::Nchw, batch, channels, spatial)
    }

    /// batch × spatial × channels (NHWC, NWC, NDHWC).
    ///
    /// # Errors
    /// As [`Shape::new`].
    pub fn nhwc(batch: usize, channels: usize, spatial: &[usize]) -> Result<Self, Error> {
        Self::new(Layout::Nhwc, batch, channels, spatial)
    }

    /// batch × channels, as behind a dense layer.
    ///
    /// # Errors
    /// As [`Shape::new`].
    pub fn dense(batch: usize, channels: usize) -> Result<Self, Error> {
        Self::new(Layout::Nhwc, batch, channels, &[])
    }

    /// The order of the dimensions.
    pub fn layout(&self) -> Layout {
        self.layout
    }
    /// Images, or rows of a dense tensor.
    pub fn batch(&self) -> usize {
        self.batch
    }
    /// Channels, or features of a dense tensor.
    pub fn channels(&self) -> usize {
        self.channels
    }
    /// Positions of an image: the product of the spatial dimensions.
    pub fn spatial(&self) -> usize {
        self.spatial
    }
    /// Elements in all.
    pub fn len(&self) -> usize {
        self.batch * self.channels * self.spatial
    }
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.batch == 0 || self.spatial == 0
    }
    /// Values that the statistics of a channel are made of.
    pub fn values_per_channel(&self) -> u64 {
        self.batch as u64 * self.spatial as u64
    }
}
