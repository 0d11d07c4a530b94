//! Every size around every boundary of the code: lanes, visits of four, first-level sums of 16,
//! pieces and blocks of 256 vectors, folded rows, cells. At each: every ISA has the bits of the
//! portable one, and those are right.

mod common;
use bn_core::{Activation, Isa, Layout, Shape, Statistics};
use common::problem::{Problem, Real, Worst, compare, random};

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
