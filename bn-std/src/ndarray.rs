//! The layer on arrays of `ndarray`.

use crate::error::Error;
use crate::layer::BatchNormLayer;
use bn_core::{Element, Layout, Shape};
use ndarray::{ArrayRef, Dimension};

/// # On arrays of `ndarray`
/// With feature `ndarray`. Arrays have 2 to 5 dimensions: batch, channels and up to 3 spatial ones, in
/// the order that the layout says; with 2, both layouts mean batch × channels. They must be in standard
/// (C-contiguous) layout: a transposed view is refused, not copied. Arrays and views of any kind of
/// storage go in as they are (`&array`, `&view`, `&mut array`).
impl<T: Element> BatchNormLayer<T> {
    /// [`forward`](Self::forward) on arrays.
    ///
    /// # Errors
    /// As there; [`Error::Rank`], [`Error::NotStandard`], [`Error::Dimensions`], where nothing has
    /// changed either.
    ///
    /// ```
    /// use bn_core::Layout;
    /// use ndarray::{Array4, arr2};
    /// let mut bn = bn_std::BatchNormLayer::<f32>::new(3)?;
    /// let x = Array4::from_shape_fn((2, 3, 4, 4), |(n, c, h, w)| (n + c * h + w) as f32);
    /// let mut y = Array4::zeros(x.raw_dim());
    /// bn.forward_array(Layout::Nchw, &x, None, &mut y)?;
    ///
    /// let rows = arr2(&[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]);
    /// let mut y = rows.clone();
    /// bn.forward_array(Layout::Nhwc, &rows, None, &mut y)?;
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn forward_array<D: Dimension>(
        &mut self,
        layout: Layout,
        x: &ArrayRef<T, D>,
        residual: Option<&ArrayRef<T, D>>,
        y: &mut ArrayRef<T, D>,
    ) -> Result<usize, Error> {
        let shape = shape("x", layout, x.shape())?;
        let residual = residual.map(|r| read("residual", r, x.shape())).transpose()?;
        let y = write("y", y, x.shape())?;
        self.forward(shape, read("x", x, x.shape())?, residual, y)
    }

    /// [`forward_in_place`](Self::forward_in_place) on arrays.
    ///
    /// # Errors
    /// As [`forward_array`](Self::forward_array).
    ///
    /// ```
    /// use bn_core::Layout;
    /// use ndarray::arr2;
    /// let mut bn = bn_std::BatchNormLayer::<f64>::new(2)?.with_epsilon(0.0)?;
    /// let mut x = arr2(&[[1.0, 10.0], [3.0, 30.0]]);
    /// bn.forward_array_in_place(Layout::Nhwc, &mut x, None)?;
    /// assert_eq!(x, arr2(&[[-1.0, -1.0], [1.0, 1.0]]));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn forward_array_in_place<D: Dimension>(
        &mut self,
        layout: Layout,
        x_to_y: &mut ArrayRef<T, D>,
        residual: Option<&ArrayRef<T, D>>,
    ) -> Result<usize, Error> {
        let shape = shape("x", layout, x_to_y.shape())?;
        let residual = residual.map(|r| read("residual", r, x_to_y.shape())).transpose()?;
        let x_to_y = x_to_y.as_slice_mut().ok_or(Error::NotStandard { what: "x" })?;
        self.forward_in_place(shape, x_to_y, residual)
    }

    /// [`backward`](Self::backward) on arrays, in the layout that the forward pass had.
    ///
    /// # Errors
    /// As there; [`Error::Rank`], [`Error::NotStandard`], [`Error::Dimensions`] and [`Error::Shape`],
    /// where nothing has changed either.
    ///
    /// ```
    /// use bn_core::Layout;
    /// use ndarray::Array3;
    /// let mut bn = bn_std::BatchNormLayer::<f32>::new(3)?;
    /// let x = Array3::from_shape_fn((2, 5, 3), |(n, t, c)| (n * t + c) as f32);
    /// let (mut y, mut dx) = (x.clone(), x.clone());
    /// bn.forward_array(Layout::Nhwc, &x, None, &mut y)?;
    /// bn.backward_array(&x, None, &y, Some(&mut dx), None)?;
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn backward_array<D: Dimension>(
        &mut self,
        x: &ArrayRef<T, D>,
        y: Option<&ArrayRef<T, D>>,
        dy: &ArrayRef<T, D>,
        dx: Option<&mut ArrayRef<T, D>>,
        dresidual: Option<&mut ArrayRef<T, D>>,
    ) -> Result<(), Error> {
        self.check_last(x.shape())?;
        let y = y.map(|y| read("y", y, x.shape())).transpose()?;
        let dy = read("dy", dy, x.shape())?;
        let dx = dx.map(|dx| write("dx", dx, x.shape())).transpose()?;
        let dresidual = dresidual.map(|dr| write("dresidual", dr, x.shape())).transpose()?;
        self.backward(read("x", x, x.shape())?, y, dy, dx.map(Into::into), dresidual.map(Into::into))
    }

    /// [`backward_in_place`](Self::backward_in_place) on arrays.
    ///
    /// # Errors
    /// As [`backward_array`](Self::backward_array).
    ///
    /// ```
    /// use bn_core::Layout;
    /// use ndarray::Array2;
    /// let mut bn = bn_std::BatchNormLayer::<f64>::new(3)?;
    /// let x = Array2::from_shape_fn((4, 3), |(n, c)| (n * n + c) as f64);
    /// let (mut y, mut dy) = (x.clone(), Array2::ones((4, 3)));
    /// bn.forward_array(Layout::Nhwc, &x, None, &mut y)?;
    /// bn.backward_array_in_place(&x, None, &mut dy, None)?;
    /// assert_eq!(dy, Array2::<f64>::zeros((4, 3)));
    /// # Ok::<(), bn_std::Error>(())
    /// ```
    pub fn backward_array_in_place<D: Dimension>(
        &mut self,
        x: &ArrayRef<T, D>,
        y: Option<&ArrayRef<T, D>>,
        dy_to_dx: &mut ArrayRef<T, D>,
        dresidual: Option<&mut ArrayRef<T, D>>,
    ) -> Result<(), Error> {
        self.check_last(x.shape())?;
        let y = y.map(|y| read("y", y, x.shape())).transpose()?;
        let dy_to_dx = write("dy", dy_to_dx, x.shape())?;
        let dresidual = dresidual.map(|dr| write("dresidual", dr, x.shape())).transpose()?;
        self.backward_in_place(read("x", x, x.shape())?, y, dy_to_dx, dresidual.map(Into::into))
    }

    /// Whether x can be that of the last forward pass.
    fn check_last(&self, x: &[usize]) -> Result<(), Error> {
        let expected = self.last_shape()?;
        let got = shape("x", expected.layout(), x)?;
        if got == expected { Ok(()) } else { Err(Error::Shape { expected, got }) }
    }
}

/// The shape of an array.
fn shape(what: &'static str, layout: Layout, dimensions: &[usize]) -> Result<Shape, Error> {
    let (batch, channels, spatial) = match (dimensions, layout) {
        ([] | [_] | [_, _, _, _, _, _, ..], _) => return Err(Error::Rank { what, got: dimensions.len() }),
        ([batch, channels, spatial @ ..], Layout::Nchw) => (batch, channels, spatial),
        ([batch, spatial @ .., channels], _) => (batch, channels, spatial),
    };
    Ok(Shape::new(layout, *batch, *channels, spatial)?)
}

fn read<'a, T, D: Dimension>(what: &'static str, a: &'a ArrayRef<T, D>, x: &[usize]) -> Result<&'a [T], Error> {
    same(what, a.shape(), x)?;
    a.as_slice().ok_or(Error::NotStandard { what })
}

fn write<'a, T, D: Dimension>(
    what: &'static str,
    a: &'a mut ArrayRef<T, D>,
    x: &[usize],
) -> Result<&'a mut [T], Error> {
    same(what, a.shape(), x)?;
    a.as_slice_mut().ok_or(Error::NotStandard { what })
}

fn same(what: &'static str, got: &[usize], expected: &[usize]) -> Result<(), Error> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::Dimensions { what, expected: expected.to_vec(), got: got.to_vec() })
    }
}
