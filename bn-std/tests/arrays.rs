//! The layer on arrays: the same bits as on slices, for every rank; and arrays that are refused.
#![cfg(feature = "ndarray")]

mod common;

use bn_core::{Activation, Layout, Shape};
use bn_std::{BatchNormLayer, Error};
use common::{Random, assert_bits};
use ndarray::{
    Array, Array1, Array2, Array4, ArrayD, ArrayView, ArrayViewMut, Dimension, IntoDimension, Ix6, ShapeBuilder, s,
};

fn layer() -> BatchNormLayer<f32> {
    BatchNormLayer::new(3).unwrap().with_activation(Activation::Relu).unwrap()
}

fn same_as_slices<D: Dimension>(layout: Layout, dimensions: impl IntoDimension<Dim = D>, shape: Shape) {
    let dimensions = dimensions.into_dimension();
    let mut random = Random(1);
    let mut array = || {
        let values = random.values::<f32>(shape.len(), 1.0);
        Array::from_shape_vec(dimensions.clone(), values).unwrap()
    };
    let (x, residual, dy) = (array(), array(), array());
    let zeros = Array::<f32, D>::zeros(dimensions.clone());
    let (mut y, mut dx, mut dr) = (zeros.clone(), zeros.clone(), zeros);
    let mut bn = layer();
    bn.forward_array(layout, &x, Some(&residual), &mut y).unwrap();
    bn.backward_array(&x, Some(&y), &dy, Some(&mut dx), Some(&mut dr)).unwrap();

    let mut by_slices = layer();
    let slice = |a: &Array<f32, D>| a.as_slice().unwrap().to_vec();
    let mut expected = [slice(&y), slice(&dx), slice(&dr)].map(|s| vec![0.0; s.len()]);
    let [e_y, e_dx, e_dr] = &mut expected;
    by_slices.forward(shape, &slice(&x), Some(&slice(&residual)), &mut e_y[..]).unwrap();
    let out = (Some((&mut e_dx[..]).into()), Some((&mut e_dr[..]).into()));
    by_slices.backward(&slice(&x), Some(e_y), &slice(&dy), out.0, out.1).unwrap();
    for (what, got, expected) in [("y", &y, &e_y), ("dx", &dx, &e_dx), ("dresidual", &dr, &e_dr)] {
        assert_bits(&format!("{what} of {dimensions:?} in {layout:?}"), got.as_slice().unwrap(), expected);
    }
    assert_eq!(bn.state(), by_slices.state());
    assert_eq!(bn.grad_gamma(), by_slices.grad_gamma());

    let (mut x_to_y, mut dy_to_dx, mut dr_in_place) = (x.clone(), dy.clone(), dr.clone());
    let mut bn = layer();
    bn.forward_array_in_place(layout, &mut x_to_y, Some(&residual)).unwrap();
    assert_eq!(x_to_y, y);
    bn.backward_array_in_place(&x, Some(&y), &mut dy_to_dx, Some(&mut dr_in_place)).unwrap();
    assert_eq!((dy_to_dx, dr_in_place), (dx, dr));
}

#[test]
fn every_rank_in_both_layouts() {
    use Layout::{Nchw, Nhwc};
    same_as_slices(Nchw, [8, 3], Shape::nchw(8, 3, &[]).unwrap());
    same_as_slices(Nhwc, [8, 3], Shape::dense(8, 3).unwrap());
    same_as_slices(Nchw, [2, 3, 7], Shape::nchw(2, 3, &[7]).unwrap());
    same_as_slices(Nhwc, [2, 7, 3], Shape::nhwc(2, 3, &[7]).unwrap());
    same_as_slices(Nchw, [2, 3, 7, 5], Shape::nchw(2, 3, &[7, 5]).unwrap());
    same_as_slices(Nhwc, [2, 7, 5, 3], Shape::nhwc(2, 3, &[7, 5]).unwrap());
    same_as_slices(Nchw, [2, 3, 7, 5, 2], Shape::nchw(2, 3, &[7, 5, 2]).unwrap());
    same_as_slices(Nhwc, [2, 7, 5, 2, 3], Shape::nhwc(2, 3, &[7, 5, 2]).unwrap());
    // A rank that is only known at run time.
    same_as_slices(Nhwc, vec![2, 7, 5, 3], Shape::nhwc(2, 3, &[7, 5]).unwrap());
}

#[test]
fn views_go_in_as_they_are() {
    let x: Vec<f32> = Random(1).values(24, 0.0);
    let (mut y, mut expected) = (vec![0.0; 24], vec![0.0; 24]);
    let view = ArrayView::from_shape((2, 3, 4), &x).unwrap();
    let mut out = ArrayViewMut::from_shape((2, 3, 4), &mut y).unwrap();
    layer().forward_array(Layout::Nchw, &view, None, &mut out).unwrap();
    layer().forward(Shape::nchw(2, 3, &[4]).unwrap(), &x, None, &mut expected[..]).unwrap();
    assert_bits("y", &y, &expected);
    // A part that is contiguous.
    let x = Array2::from_shape_fn((10, 3), |(n, c)| (n * c) as f32);
    let mut y = x.clone();
    let mut part = y.slice_mut(s![2..6, ..]);
    layer().forward_array(Layout::Nhwc, &x.slice(s![2..6, ..]), None, &mut part).unwrap();
    assert_eq!(y.row(9), x.row(9));
    assert_ne!(y.row(5), x.row(5));
}

#[test]
fn wrong_arrays_are_refused_and_nothing_changes() {
    let dimensions = (2, 3, 4, 5);
    let x = Array4::from_shape_fn(dimensions, |(n, c, h, w)| (n * c + h * w) as f32);
    let mut bn = layer();
    let mut y = x.clone();
    bn.forward_array(Layout::Nchw, &x, None, &mut y).unwrap();
    let state = bn.state();
    let (mut out, untouched) = (x.clone(), x.clone());

    let fortran = Array4::from_elem(dimensions.f(), 1.0f32);
    let transposed = Array4::<f32>::zeros((5, 4, 3, 2)).reversed_axes();
    let strided = Array4::<f32>::zeros((2, 3, 4, 10));
    for bad in [&fortran.view(), &transposed.view(), &strided.slice(s![.., .., .., ..;2])] {
        assert_eq!(bad.shape(), x.shape());
        let not = |what| Err(Error::NotStandard { what });
        assert_eq!(bn.forward_array(Layout::Nchw, bad, None, &mut out).map(drop), not("x"));
        assert_eq!(bn.forward_array(Layout::Nchw, &x, Some(bad), &mut out).map(drop), not("residual"));
        assert_eq!(bn.backward_array(bad, Some(&y), &x, Some(&mut out), None), not("x"));
        assert_eq!(bn.backward_array(&x, Some(bad), &x, Some(&mut out), None), not("y"));
        assert_eq!(bn.backward_array(&x, Some(&y), bad, Some(&mut out), None), not("dy"));
    }
    let mut fortran = fortran;
    let not = |what| Err(Error::NotStandard { what });
    assert_eq!(bn.forward_array(Layout::Nchw, &x, None, &mut fortran).map(drop), not("y"));
    assert_eq!(bn.forward_array_in_place(Layout::Nchw, &mut fortran, None).map(drop), not("x"));
    assert_eq!(bn.backward_array(&x, Some(&y), &x, Some(&mut fortran), None), not("dx"));
    assert_eq!(bn.backward_array(&x, Some(&y), &x, None, Some(&mut fortran)), not("dresidual"));
    assert_eq!(bn.backward_array_in_place(&x, Some(&y), &mut fortran, None), not("dy"));

    // As many elements, other dimensions.
    let other = Array4::<f32>::zeros((2, 3, 5, 4));
    let differs = Error::Dimensions { what: "residual", expected: vec![2, 3, 4, 5], got: vec![2, 3, 5, 4] };
    assert_eq!(bn.forward_array(Layout::Nchw, &x, Some(&other), &mut out), Err(differs));
    let smaller = Array4::<f32>::zeros((1, 3, 4, 5));
    let expected = Shape::nchw(2, 3, &[4, 5]).unwrap();
    let got = Shape::nchw(1, 3, &[4, 5]).unwrap();
    assert_eq!(bn.backward_array(&smaller, None, &smaller, None, None), Err(Error::Shape { expected, got }));
    assert_eq!(bn.forward_array(Layout::Nhwc, &x, None, &mut out), Err(Error::Channels { expected: 3, got: 5 }));

    let rank = |got| Err::<usize, _>(Error::Rank { what: "x", got });
    let one = Array1::<f32>::zeros(3);
    assert_eq!(bn.forward_array(Layout::Nhwc, &one, None, &mut one.clone()), rank(1));
    let six = Array::<f32, Ix6>::zeros((1, 3, 2, 2, 2, 2));
    assert_eq!(bn.forward_array(Layout::Nchw, &six, None, &mut six.clone()), rank(6));
    assert_eq!(bn.backward_array(&six, None, &six, None, None), rank(6).map(drop));
    let none = ArrayD::<f32>::zeros(vec![]);
    assert_eq!(bn.forward_array_in_place(Layout::Nchw, &mut none.clone(), None), rank(0));

    assert_eq!((out, bn.state()), (untouched, state));
    assert_eq!(bn.grad_beta(), Some(&[0.0; 3][..]));
    let mut dx = x.clone();
    bn.backward_array(&x, Some(&y), &x, Some(&mut dx), None).unwrap();
    let fresh = &mut layer();
    assert_eq!(fresh.backward_array(&x, Some(&y), &x, None, None), Err(Error::NoForward));
}
