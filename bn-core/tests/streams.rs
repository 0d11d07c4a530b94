//! Outputs that are stored past the caches, where they cannot all start at the same place of a line: planes with gaps,
//! pieces of a plane, two outputs. What is calculated element by element is the same in parts too small for that.

mod common;
use bn_core::{Affine, BackwardInput, BatchNorm, Executor, Gradients, Isa, Layout, Op, Run, Serial, Shape, Statistics};
use bn_core::{Stride, Strides};
use common::{Number, Turns, same};

/// Bytes of a call's operands that are stored past the caches, and not in its parts.
const LARGE: usize = 23 << 20;

/// What lies between the elements, and no result is. (Every type has it.)
const GAP: f64 = 1024.0;

/// One after the other, with a period that no plane has.
fn values<T: Number>(n: usize) -> Vec<T> {
    (0..n).map(|i| T::of((i % 61) as f64 - 20.0)).collect()
}

/// Inference over planes of one channel.
fn inference<T: Number>(bn: &BatchNorm<T>, x: &[T], y: &mut [T], executor: &dyn Executor) {
    let (mean, var): ([T::Param; 1], [T::Param; 1]) = ([3.0f32.into()], [4.0f32.into()]);
    let mut ws = vec![0; bn.workspace_best(Op::Inference, executor.width())];
    bn.inference(x, None, Affine::NONE, &mean, &var, y, Run::on(executor, &mut ws)).unwrap();
}

/// The same in parts of a thousand elements.
fn in_parts<T: Number>(x: &[T]) -> Vec<T> {
    let mut y = vec![T::of(GAP); x.len()];
    for (x, y) in x.chunks(1000).zip(y.chunks_mut(1000)) {
        let bn = BatchNorm::<T>::new(Shape::nchw(1, 1, &[x.len()]).unwrap(), 1e-3).unwrap();
        inference(&bn, x, y, &Serial);
    }
    y
}

fn isas() -> Vec<Isa> {
    Isa::available().collect()
}

/// One plane, of which each of three tasks has a few pieces.
fn pieces<T: Number>() {
    let n = LARGE / size_of::<T>() / 2 + 13;
    let x = values::<T>(n);
    let expected = in_parts(&x);
    for isa in isas() {
        let bn = BatchNorm::<T>::new(Shape::nchw(1, 1, &[n]).unwrap(), 1e-3).unwrap().with_isa(isa);
        for executor in [&Serial as &dyn Executor, &Turns(3)] {
            let mut y = vec![T::of(GAP); n];
            inference(&bn, &x, &mut y, executor);
            assert!(same(&y, &expected), "{bn:?}, {} wide", executor.width());
        }
    }
}

#[test]
fn pieces_of_a_plane() {
    every_type!(pieces());
}

/// Images whose planes have gaps between them, each starting at another place of a line: long ones, and some that are
/// too short to be worth it.
fn gaps<T: Number>(plane: usize) {
    let images = LARGE / size_of::<T>() / 2 / plane + 1;
    let stride = Stride { batch: plane + 5, inner: plane };
    let shape = Shape::nchw(images, 1, &[plane]).unwrap();
    let x = values::<T>(shape.len());
    let expected = in_parts(&x);
    for isa in isas() {
        let bn = BatchNorm::<T>::new(shape, 1e-3).unwrap().with_isa(isa);
        // x dense, and y in every second channel of something larger: planes that are not runs of an image.
        for y_stride in [stride, Stride { batch: 2 * plane + 5, inner: plane + 3 }] {
            let bn = bn.with_strides(Strides { y: y_stride, ..Strides::DENSE }).unwrap();
            let mut y = vec![T::of(GAP); (images - 1) * y_stride.batch + plane];
            inference(&bn, &x, &mut y, &Serial);
            for (image, y) in y.chunks(y_stride.batch).enumerate() {
                let (y, gap) = y.split_at(plane);
                assert!(same(y, &expected[image * plane..][..plane]), "image {image} of {bn:?}");
                assert!(gap.iter().all(|&v| v.into() == GAP), "written behind image {image} of {bn:?}");
            }
        }
    }
}

#[test]
fn planes_with_gaps() {
    every_type!(gaps(10_007));
    every_type!(gaps(211));
}

/// `len` elements that start so many bytes behind the start of a line.
fn at<T>(buffer: &mut [T], bytes: usize, len: usize) -> &mut [T] {
    let first = (64 + bytes - buffer.as_ptr().addr() % 64) / size_of::<T>();
    let part = &mut buffer[first..first + len];
    assert_eq!(part.as_ptr().addr() % 64, bytes);
    part
}

/// dx and dresidual, at the same place of a line and not: what is streamed where both may be is the same.
fn two_outputs<T: Number>(layout: Layout, channels: usize, positions: usize) {
    let images = LARGE / size_of::<T>() / 3 / (channels * positions) + 1;
    let shape = Shape::new(layout, images, channels, &[positions]).unwrap();
    let n = shape.len();
    let dy = values::<T>(n);
    let param = |v: f32| -> Vec<T::Param> { vec![v.into(); channels] };
    let (mean, var) = (param(0.0), param(0.25));
    // With ε = 0 that is twice dy.
    let expected: Vec<T> = dy.iter().map(|&v| T::of(2.0 * v.into())).collect();
    for isa in isas() {
        let bn = BatchNorm::<T>::new(shape, 0.0).unwrap().with_isa(isa);
        for offsets in [[0, 0], [8, 8], [0, 8], [16, 8]] {
            let mut buffers = [(); 2].map(|()| vec![T::of(GAP); n + 128 / size_of::<T>()]);
            let mut ws = vec![0; bn.workspace_best(Op::Backward, 1)];
            let [dx, dresidual] = &mut buffers;
            let (dx, dresidual) = (at(dx, offsets[0], n), at(dresidual, offsets[1], n));
            let statistics = Statistics::Running { mean: &mean, var: &var };
            let input = BackwardInput { x: &dy, y: None, dy: &dy, gamma: None, statistics };
            let (dx_to, dr_to) = (Some((&mut *dx).into()), Some((&mut *dresidual).into()));
            let output = Gradients { dx: dx_to, dresidual: dr_to, ..Gradients::default() };
            bn.backward(input, output, Run::serial(&mut ws)).unwrap();
            assert!(same(dx, &expected), "dx of {bn:?} at {offsets:?}");
            assert!(same(dresidual, &dy), "dresidual of {bn:?} at {offsets:?}");
            let written = buffers.iter().flatten().filter(|&&v| v.into() != GAP).count();
            assert_eq!(written, 2 * n, "written beside the outputs of {bn:?} at {offsets:?}");
        }
    }
}

#[test]
fn outputs_at_different_places_of_a_line() {
    every_type!(two_outputs(Layout::Nchw, 3, 1023));
    every_type!(two_outputs(Layout::Nhwc, 67, 9));
}

/// In place nothing is stored past the caches, whatever the size, or what comes before the first line would be mapped
/// twice; and no task maps what is another's.
fn in_place<T: Number>(shape: Shape, gap: usize) {
    let (c, s) = (shape.channels(), shape.spatial());
    let apart = Stride { batch: 0, inner: if gap > 0 { s + gap } else { 0 } };
    let len = shape.len() + gap * shape.batch() * c - gap;
    let x = values::<T>(len);
    let is_gap = |i: usize| gap > 0 && i % (s + gap) >= s;
    let twice = |i: usize| T::of(x[i].into() * if is_gap(i) { 1.0 } else { 2.0 });
    let expected: Vec<T> = (0..len).map(twice).collect();
    let param = |v: f32| -> Vec<T::Param> { vec![v.into(); c] };
    let (mean, var) = (param(0.0), param(0.25));
    for isa in isas() {
        let strides = Strides { x: apart, y: apart, ..Strides::DENSE };
        let bn = BatchNorm::<T>::new(shape, 0.0).unwrap().with_isa(isa).with_strides(strides).unwrap();
        for executor in [&Serial as &dyn Executor, &Turns(3)] {
            let mut buffer = vec![T::of(GAP); len + 128 / size_of::<T>()];
            let mut ws = vec![0; bn.workspace_best(Op::Inference, executor.width())];
            let over = at(&mut buffer, 8, len);
            over.copy_from_slice(&x);
            bn.inference_in_place(over, None, Affine::NONE, &mean, &var, Run::on(executor, &mut ws)).unwrap();
            assert!(same(over, &expected), "{bn:?}, {} wide", executor.width());
        }
    }
}

#[test]
fn nothing_in_place() {
    let n = LARGE / 8;
    in_place::<f32>(Shape::nchw(1, 1, &[n]).unwrap(), 0);
    in_place::<f32>(Shape::nchw(3, 2, &[n / 6]).unwrap(), 0);
    in_place::<f32>(Shape::nchw(3, 2, &[n / 6]).unwrap(), 6);
    in_place::<f32>(Shape::nchw(3, 2, &[1000]).unwrap(), 6);
    in_place::<f32>(Shape::nhwc(n / 50, 50, &[]).unwrap(), 0);
}

/// Long rows that are mapped in parts, within the caches and past them, with here and there a vector that the fast way does not
/// do: of a channel whose constants do not suffice, or with a result that a slope brings back.
fn parts_with_exceptions<T: Number>(rows: usize, channels: usize) {
    let shape = Shape::nhwc(rows, channels, &[]).unwrap();
    let mut x = values::<T>(shape.len());
    // Rounded to what the type has.
    let huge = T::of(if size_of::<T>() == 8 { -1e300 } else { -6e4 });
    x.iter_mut().step_by(70_001).for_each(|v| *v = huge);
    let param = |f: &dyn Fn(usize) -> f32| -> Vec<T::Param> { (0..channels).map(|c| f(c).into()).collect() };
    let (mean, var) = (param(&|c| c as f32), param(&|c| 0.5 + c as f32));
    let gamma = param(&|c| if c % 37 == 5 { 1e-38 } else { 3e34 });
    let beta = param(&|c| if c % 37 == 5 { 1e-37 } else { 0.25 });
    let affine = Affine::new(&gamma, &beta);
    let activation = bn_core::Activation::LeakyRelu { slope: 2.0f64.powi(-30) };
    for isa in isas() {
        let plan = |rows| {
            let bn = BatchNorm::<T>::new(Shape::nhwc(rows, channels, &[]).unwrap(), 1e-3).unwrap();
            bn.with_activation(activation).unwrap().with_isa(isa)
        };
        let apply = |bn: &BatchNorm<T>, x: &[T], y: &mut [T]| {
            let mut ws = vec![0; bn.workspace_best(Op::Inference, 1)];
            bn.inference(x, None, affine, &mean, &var, y, Run::serial(&mut ws)).unwrap();
        };
        let (mut expected, mut y) = (x.clone(), vec![T::of(GAP); x.len()]);
        let some = 50 * channels;
        for (x, y) in x.chunks(some).zip(expected.chunks_mut(some)) {
            apply(&plan(x.len() / channels), x, y);
        }
        apply(&plan(rows), &x, &mut y);
        assert!(same(&y, &expected), "{rows} rows of {channels}, {isa:?}");
    }
}

#[test]
fn exceptions_in_parts_far_apart() {
    for channels in [64, 50] {
        every_type!(parts_with_exceptions((2 << 20) / channels / 2, channels));
    }
    parts_with_exceptions::<f32>(LARGE / 8 / 80, 80);
    parts_with_exceptions::<f64>(LARGE / 16 / 70, 70);
}
