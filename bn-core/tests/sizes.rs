//! Every size around every boundary of the code: lanes, visits of four, first-level sums of 16,
//! pieces and blocks of 256 vectors, folded rows, cells. At each: every ISA has the bits of the
//! portable one, and those are right.

mod common;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, GradSums, Gradients, Isa, Layout, Moments, Op, Run, Shape, Statistics,
};
use common::problem::{Problem, Real, Worst, bits, compare, random, with_workspace};

/// Around lanes (8 of f64, 16 of f32), two and four of them, and the small images of networks.
const LANES: [usize; 22] = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 49, 63, 64, 65, 127, 128, 129];

/// Around visits of four items, chains of 4 visits, blocks of 64 visits.
const ITEMS: [usize; 16] = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 63, 65, 255, 256, 257];

/// Positions of a plane around a run of 16 vectors, a piece (one to four runs by the number of
/// images), and two pieces: in f64 half of it.
const PLANES: [usize; 17] =
    [127, 128, 129, 255, 256, 257, 511, 513, 1023, 1024, 1025, 2047, 2049, 4095, 4096, 4097, 8200];

fn check<T: Real>(layout: Layout, n: usize, c: usize, s: usize, worst: &mut Worst) {
    let shape = Shape::new(layout, n, c, &[s]).unwrap();
    // gamma, beta and residual, or none of them; a mask, or none.
    let (affine, relu) = ((n + c + s).is_multiple_of(2), (n + s).is_multiple_of(3));
    let activation = if relu { Activation::Relu } else { Activation::Identity };
    let p: Problem<T> = random(shape, activation, affine, (n * 1_000_003 + c * 1009 + s) as u64);
    compare(&p, Isa::PORTABLE, worst);
    let all = |isa| {
        let f = p.forward(isa);
        let mean: Vec<T> = f.moments.iter().map(|m| T::of(m.mean)).collect();
        let var: Vec<T> = f.moments.iter().map(|m| T::of(m.variance())).collect();
        let of = |statistics| p.backward(isa, &f.y, statistics).bits();
        let batch = of(Statistics::Batch(&f.moments));
        let rounded = of(Statistics::Rounded { mean: &mean, var: &var });
        let running = of(Statistics::Running { mean: &mean, var: &var });
        (f.bits(), batch, rounded, running)
    };
    let portable = all(Isa::PORTABLE);
    for isa in Isa::available() {
        assert!(all(isa) == portable, "{shape:?} of {}: {isa:?} has other bits", core::any::type_name::<T>());
    }
}

fn both(layout: Layout, n: usize, c: usize, s: usize) {
    let mut worst = Worst::default();
    check::<f32>(layout, n, c, s, &mut worst);
    check::<f64>(layout, n, c, s, &mut worst);
}

#[test]
fn planes_of_few_images() {
    for s in LANES {
        for n in [1, 2, 3, 4, 5, 8, 17] {
            for c in [1, 3] {
                both(Layout::Nchw, n, c, s);
            }
        }
    }
}

#[test]
fn large_planes() {
    for s in PLANES {
        for n in [1, 2, 3, 4, 6] {
            both(Layout::Nchw, n, 2, s);
        }
    }
}

#[test]
fn planes_of_many_images() {
    for n in ITEMS {
        for s in [16, 17, 49, 64, 65] {
            both(Layout::Nchw, n, 2, s);
        }
    }
}

#[test]
fn rows() {
    for c in LANES {
        for n in ITEMS {
            if n * c <= 12_000 {
                both(Layout::Nhwc, n, c, 1);
            }
        }
    }
}

#[test]
fn rows_of_positions() {
    for (n, s) in [(1, 6), (3, 5), (2, 49)] {
        for c in LANES {
            both(Layout::Nhwc, n, c, s);
        }
    }
}

#[test]
fn planes_of_less_than_a_vector() {
    for s in 2..16 {
        for n in [1, 3, 4, 9, 64] {
            for c in [1, 2, 5, 16, 33] {
                both(Layout::Nchw, n, c, s);
            }
        }
    }
}

/// More blocks than cells: 33 and more of them, cut into 32.
#[test]
fn more_blocks_than_cells() {
    both(Layout::Nhwc, 256 * 40 + 3, 17, 1);
    both(Layout::Nhwc, 256 * 36 + 1, 3, 1);
    both(Layout::Nchw, 1, 1, 256 * 16 * 35 + 7);
    both(Layout::Nchw, 16 * 4 * 33 + 1, 1, 17);
    both(Layout::Nchw, 5, 2, 1024 * 34);
}

/// Long runs are mapped in parts far apart, past the caches, and with a table of constants for many channels; images
/// few at a time are not. The bits are the same, wherever the outputs begin, and where a value or a channel needs f64.
#[test]
fn long_runs_have_the_bits_of_short_ones() {
    for (layout, n, c, s, few) in [
        (Layout::Nhwc, 1100, 2048, 1, 37),
        (Layout::Nhwc, 2100, 1024, 1, 37),
        (Layout::Nhwc, 2200, 1000, 1, 37),
        (Layout::Nchw, 9, 4, 70_001, 1),
        // Images that begin alike in a cache line, two at once, and that do not.
        (Layout::Nchw, 1851, 32, 49, 25),
        (Layout::Nchw, 701, 21, 197, 25),
    ] {
        let shape = Shape::new(layout, n, c, &[s]).unwrap();
        let mut p: Problem<f32> = random(shape, Activation::Identity, true, 5);
        p.gamma.as_mut().unwrap()[c - 1] = 1e-41;
        let (len, image) = (shape.len(), c * s);
        for i in [0, len / 2 + 3, len - 1] {
            p.dy[i] = f32::MAX;
        }
        let mut expected = None;
        for isa in Isa::available() {
            let bn = BatchNorm::<f32>::new(shape, 1e-5).unwrap().with_isa(isa);
            let affine = Affine { gamma: p.gamma.as_deref(), beta: None };
            let words = bn.workspace_best(Op::Backward, 1);
            let mut moments = vec![Moments::EMPTY; c];
            let mut sums = vec![GradSums { dbeta: 0.0, dot: 0.0 }; c];
            with_workspace(words, |ws| bn.moments(&p.x, &mut moments, Run::serial(ws)).unwrap());
            let statistics = Statistics::Batch(&moments);
            let whole = BackwardInput { x: &p.x, y: None, dy: &p.dy, gamma: affine.gamma, statistics };
            with_workspace(words, |ws| bn.backward_sums(whole, &mut sums, Run::serial(ws)).unwrap());
            for skip in [0, 4, 7, 12] {
                let (mut y, mut dx) = (vec![0.0; skip + len], vec![0.0; skip + len]);
                with_workspace(words, |ws| {
                    bn.normalize(&p.x, None, affine, &moments, &mut y[skip..], Run::serial(ws)).unwrap();
                    let out = Gradients { dx: Some((&mut dx[skip..]).into()), ..Default::default() };
                    bn.backward_apply(whole, &sums, out, Run::serial(ws)).unwrap();
                });
                let results = [bits(&y[skip..]), bits(&dx[skip..])];
                assert!(
                    results == *expected.get_or_insert_with(|| results.clone()),
                    "{shape:?} {isa:?} from {skip} on"
                );
            }
        }
        let (mut y, mut dx) = (vec![0.0; len], vec![0.0; len]);
        let bn = BatchNorm::<f32>::new(shape, 1e-5).unwrap();
        let mut moments = vec![Moments::EMPTY; c];
        let mut sums = vec![GradSums { dbeta: 0.0, dot: 0.0 }; c];
        let words = bn.workspace_best(Op::Backward, 1);
        with_workspace(words, |ws| bn.moments(&p.x, &mut moments, Run::serial(ws)).unwrap());
        let (gamma, statistics) = (p.gamma.as_deref(), Statistics::Batch(&moments));
        let whole = BackwardInput { x: &p.x, y: None, dy: &p.dy, gamma, statistics };
        with_workspace(words, |ws| bn.backward_sums(whole, &mut sums, Run::serial(ws)).unwrap());
        for first in (0..n).step_by(few) {
            let at = first * image..(first + few).min(n) * image;
            let part = Shape::new(layout, at.len() / image, c, &[s]).unwrap();
            let bn = BatchNorm::<f32>::new(part, 1e-5).unwrap();
            let (x, dy) = (&p.x[at.clone()], &p.dy[at.clone()]);
            with_workspace(bn.workspace_min(Op::Backward), |ws| {
                let affine = Affine { gamma, beta: None };
                bn.normalize(x, None, affine, &moments, &mut y[at.clone()], Run::serial(ws)).unwrap();
                let out = Gradients { dx: Some((&mut dx[at]).into()), ..Default::default() };
                let input = BackwardInput { x, y: None, dy, gamma, statistics };
                bn.backward_apply(input, &sums, out, Run::serial(ws)).unwrap();
            });
        }
        assert!(expected == Some([bits(&y), bits(&dx)]), "{shape:?}: {few} images at a time");
    }
}
