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

    /// The shape of a tensor whose dimensions are `dims`, in the order of `layout`: N, C and the spatial ones, or N,
    /// the spatial ones and C.
    ///
    /// # Errors
    /// [`Error::Rank`] where there are fewer than two; as [`Shape::new`].
    pub fn from_dims(layout: Layout, dims: &[usize]) -> Result<Self, Error> {
        match (layout, dims) {
            (Layout::Nchw, [batch, channels, spatial @ ..]) | (Layout::Nhwc, [batch, spatial @ .., channels]) => {
                Self::new(layout, *batch, *channels, spatial)
            }
            _ => Err(Error::Rank { expected: 2, got: dims.len() }),
        }
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

/// How far apart the images and the runs of an operand are, in elements; 0 means dense.
///
/// (In a framework's strides 0 repeats one element: [`Stride::from_dims`] tells them apart.)
///
/// A run is what is contiguous: the positions of a channel in NCHW, the channels of a position in
/// NHWC. So one channel slice of a wider tensor, one part of a concatenation, planes with padding
/// behind them, or a block of nChw8c (as NHWC of 8 channels) is an operand as it stands.
///
/// ```
/// use bn_core::{Affine, BatchNorm, Run, Shape, Stride, Strides};
/// // Channels 2 and 3 of NHWC images of 4 channels and 2 positions.
/// let bn = BatchNorm::<f32>::new(Shape::nhwc(1, 2, &[2])?, 0.0)?
///     .with_strides(Strides { x: Stride { batch: 0, inner: 4 }, ..Strides::DENSE })?;
/// let x = [0.0, 0.0, 3.0, 5.0, 0.0, 0.0, 7.0, 9.0];
/// let (mut y, mut workspace) = ([0.0; 4], [0; 1024]);
/// bn.inference(&x[2..], None, Affine::NONE, &[3.0, 5.0], &[4.0; 2], &mut y[..], Run::serial(&mut workspace))?;
/// assert_eq!(y, [0.0, 0.0, 2.0, 2.0]);
/// # Ok::<(), bn_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stride {
    /// From an image to the next.
    pub batch: usize,
    /// From a channel to the next (NCHW), or from a position to the next (NHWC).
    pub inner: usize,
}

/// The strides of each operand. Those of an operand that a call does not have must make sense too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Strides {
    /// Of the input.
    pub x: Stride,
    /// Of the output.
    pub y: Stride,
    /// Of the residual.
    pub residual: Stride,
    /// Of the gradient of the output.
    pub dy: Stride,
    /// Of the gradient of the input.
    pub dx: Stride,
    /// Of the gradient of the residual.
    pub dresidual: Stride,
}

/// One of the tensors that a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    X,
    Y,
    Residual,
    Dy,
    Dx,
    Dresidual,
}

impl Operand {
    const ALL: [Operand; 6] = [Operand::X, Operand::Y, Operand::Residual, Operand::Dy, Operand::Dx, Operand::Dresidual];

    pub(crate) fn name(self) -> &'static str {
        const NAMES: [&str; 6] = ["x", "y", "residual", "dy", "dx", "dresidual"];
        NAMES.get(self as usize).copied().unwrap_or_default()
    }
}

impl Strides {
    /// Each of them, by operand.
    pub(crate) fn all(&self) -> [Stride; 6] {
        let Strides { x, y, residual, dy, dx, dresidual } = *self;
        [x, y, residual, dy, dx, dresidual]
    }

    /// A bit for each operand, by its number: whether it was given a stride, even one that is what dense means.
    pub(crate) fn given(&self) -> u8 {
        let mut bits = 0;
        for (i, stride) in self.all().iter().enumerate() {
            bits |= u8::from(*stride != Stride::default()) << i;
        }
        bits
    }

    /// All dense.
    pub const DENSE: Strides = {
        let d = Stride { batch: 0, inner: 0 };
        Strides { x: d, y: d, residual: d, dy: d, dx: d, dresidual: d }
    };

    /// Each of them, with zeros replaced by what they mean.
    pub(crate) fn resolve(&self, shape: &Shape) -> Result<[Stride; 6], Error> {
        let mut all = self.all();
        for (operand, stride) in Operand::ALL.iter().zip(&mut all) {
            let resolved = stride.resolve(shape);
            *stride = resolved.ok_or(Error::Stride { what: operand.name(), got: *stride })?;
        }
        Ok(all)
    }
}

impl Stride {
    /// From a tensor as frameworks describe it: the sizes of its dimensions, in the order of `layout` as in
    /// [`Shape::from_dims`], and how many elements apart neighbours are in each of them.
    ///
    /// `None` where this layout cannot read the tensor as it lies in memory: its runs are not contiguous, the positions
    /// of an image not evenly spaced, an element is there more than once (a stride of 0, or windows that overlap), or there
    /// are fewer than two dimensions, or not as many strides. Another order of the dimensions may do, as NHWC does for a tensor "in
    /// channels-last format"; if none does it has to be copied.
    ///
    /// ```
    /// use bn_core::{Layout, Shape, Stride};
    /// // A tensor of 2 × 3 × 4 × 5 (N, C, H, W), stored with its channels last, in a buffer of 8 channels.
    /// let (dims, strides) = ([2, 3, 4, 5], [160, 1, 40, 8]);
    /// assert_eq!(Stride::from_dims(Layout::Nchw, &dims, &strides), None);
    ///
    /// let nhwc = |of: [usize; 4]| [of[0], of[2], of[3], of[1]];
    /// let stride = Stride::from_dims(Layout::Nhwc, &nhwc(dims), &nhwc(strides)).unwrap();
    /// assert_eq!(stride, Stride { batch: 160, inner: 8 });
    /// // From the first element to the last one: what the slice has to have.
    /// assert_eq!(stride.span(&Shape::from_dims(Layout::Nhwc, &nhwc(dims))?)?, 160 + 19 * 8 + 3);
    /// # Ok::<(), bn_core::Error>(())
    /// ```
    pub fn from_dims(layout: Layout, dims: &[usize], strides: &[usize]) -> Option<Self> {
        if dims.len() < 2 || strides.len() != dims.len() {
            return None;
        }
        if dims.contains(&0) {
            return Some(Stride::default());
        }
        let (runs, run) = match layout {
            Layout::Nchw => (1..2, 2..dims.len()),
            Layout::Nhwc => (1..dims.len() - 1, dims.len() - 1..dims.len()),
        };
        let step = |of: core::ops::Range<usize>| flat_step(dims.get(of.clone())?, strides.get(of)?);
        // 0: nothing is stepped over.
        let stride = (step(run)? <= 1).then_some(Stride { batch: step(0..1)?, inner: step(runs)? })?;
        let shape = Shape::from_dims(layout, dims).ok()?;
        stride.resolve(&shape).map(|_| stride)
    }

    /// Elements that an operand's slice needs to have: from its first to its last one.
    ///
    /// # Errors
    /// [`Error::Stride`] where such an operand of this shape would overlap itself, or reach beyond the address space.
    pub fn span(self, shape: &Shape) -> Result<usize, Error> {
        match self.resolve(shape) {
            Some(resolved) => Ok(resolved.resolved_span(shape)),
            None => Err(Error::Stride { what: "the operand", got: self }),
        }
    }

    /// Runs in an image, and elements in a run.
    fn runs(shape: &Shape) -> (usize, usize) {
        match shape.layout {
            Layout::Nchw => (shape.channels, shape.spatial),
            Layout::Nhwc => (shape.spatial, shape.channels),
        }
    }

    /// With zeros replaced by what they mean; `None` where elements would overlap or the whole
    /// would not fit the address space.
    fn resolve(self, shape: &Shape) -> Option<Self> {
        let (runs, run) = Self::runs(shape);
        let inner = if self.inner == 0 { run } else { self.inner };
        let image = runs.checked_mul(inner)?;
        // What is not stepped over need not be right.
        let batch = if self.batch == 0 || shape.batch <= 1 { image } else { self.batch };
        let inner = if runs <= 1 { run } else { inner };
        let resolved = Stride { batch, inner };
        // Runs nest in images, or images in runs.
        let (of_runs, of_images) = (Self::reach(runs, inner, run)?, Self::reach(shape.batch, batch, run)?);
        let nested = inner >= run && batch >= of_runs || batch >= run && inner >= of_images;
        let span = Self::reach(shape.batch, batch, of_runs)?;
        let good = shape.is_empty() || nested && span.checked_mul(8)? <= isize::MAX as usize;
        good.then_some(resolved)
    }

    /// Elements from the first to the last of `n` things of `size`, `step` apart.
    fn reach(n: usize, step: usize, size: usize) -> Option<usize> {
        n.saturating_sub(1).checked_mul(step)?.checked_add(size)
    }

    /// Elements that a slice needs, of an operand whose strides are resolved.
    pub(crate) fn resolved_span(self, shape: &Shape) -> usize {
        let (runs, run) = Self::runs(shape);
        if shape.is_empty() { 0 } else { (shape.batch - 1) * self.batch + (runs - 1) * self.inner + run }
    }
}

/// The step through dimensions that are one when flattened; 0 where there is at most one element.
fn flat_step(dims: &[usize], strides: &[usize]) -> Option<usize> {
    let (mut step, mut next) = (0, None);
    for (&dim, &stride) in dims.iter().zip(strides).rev() {
        if dim == 1 {
            continue;
        }
        if stride == 0 || next.is_some_and(|next| stride != next) {
            return None;
        }
        if next.is_none() {
            step = stride;
        }
        next = Some(stride.checked_mul(dim)?);
    }
    Some(step)
}
