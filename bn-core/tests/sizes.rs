//! Every size around every boundary of the code: lanes, visits of four, first-level sums of 16,
//! pieces and blocks of 256 vectors, folded rows, cells. At each: every ISA has the bits of the
//! portable one, and those are right.

mod common;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, GradSums, Gradients, Isa, Layout, Moments, Op, Run, Shape, Statistics,
};
use common::problem::{Problem, Real, Worst, compare, random, with_workspace};
use common::{Number, Random, Threads, same};

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

/// The stages that write tensors, on data that is the same all over again, so that a long run can be had in parts.
struct Long<T: Number> {
    shape: Shape,
    activation: Activation,
    x: Vec<T>,
    dy: Vec<T>,
    residual: Option<Vec<T>>,
    gamma: Vec<T::Param>,
    moments: Vec<Moments>,
    sums: Vec<GradSums>,
}

impl<T: Number> Long<T> {
    fn new(shape: Shape, fused: bool) -> Self {
        let (len, c) = (shape.len(), shape.channels());
        let mut r = Random(5);
        let mut tensor = || -> Vec<T> {
            // Of normal numbers there are as many as differ.
            let some: Vec<T> = (0..4099).map(|_| T::of(r.normal())).collect();
            (0..len).map(|i| some[i % 4099]).collect()
        };
        let (mut x, mut dy) = (tensor(), tensor());
        let residual = fused.then(tensor);
        // A value and a channel that need f64.
        x[len / 3] = T::of(3e4);
        for i in [0, len / 2 + 3, len - 1] {
            dy[i] = T::of(f32::MAX.into());
        }
        let mut gamma: Vec<T::Param> = (0..c).map(|c| (1.0 + (c % 7) as f32).into()).collect();
        gamma[c - 1] = 1e-41.into();
        let moments = (0..c).map(|c| Moments { count: 1000, mean: 0.01 * (c % 11) as f64, m2: 900.0 + c as f64 });
        let sums = (0..c).map(|c| GradSums { dbeta: (c % 5) as f64, dot: (c % 3) as f64 });
        let activation = if fused { Activation::Relu } else { Activation::Identity };
        let (moments, sums) = (moments.collect(), sums.collect());
        Long { shape, activation, x, dy, residual, gamma, moments, sums }
    }

    /// y, dx and dresidual of so many images from one on, written from `skip` elements behind the start of a cache line on.
    fn part(&self, isa: Isa, threads: usize, first: usize, images: usize, skip: usize) -> [Vec<T>; 3] {
        let (c, s) = (self.shape.channels(), self.shape.spatial());
        let at = first * c * s..(first + images) * c * s;
        let shape = Shape::new(self.shape.layout(), images, c, &[s]).unwrap();
        let bn = BatchNorm::<T>::new(shape, 1e-5).unwrap().with_isa(isa).with_activation(self.activation).unwrap();
        let affine = Affine { gamma: Some(&self.gamma), beta: None };
        let (x, dy, residual) = (&self.x[at.clone()], &self.dy[at.clone()], self.residual.as_ref().map(|r| &r[at]));
        let executor = Threads(threads);
        let line = 64 / size_of::<T>();
        let mut of_all = [(); 3].map(|()| vec![T::of(0.0); line + skip + x.len()]);
        let starts = [0, 1, 2].map(|i| of_all[i].as_ptr().align_offset(64) + skip);
        let [y, dx, dresidual] = of_all.each_mut();
        let [y, dx, dresidual] =
            [&mut y[starts[0]..], &mut dx[starts[1]..], &mut dresidual[starts[2]..]].map(|to| &mut to[..x.len()]);
        with_workspace(bn.workspace_best(Op::Backward, threads), |ws| {
            bn.normalize(x, residual, affine, &self.moments, &mut *y, Run::on(&executor, ws)).unwrap();
            let statistics = Statistics::Batch(&self.moments);
            let input = BackwardInput { x, y: Some(&*y), dy, gamma: affine.gamma, statistics };
            let out = Gradients {
                dx: Some((&mut *dx).into()),
                dresidual: residual.map(|_| (&mut *dresidual).into()),
                ..Default::default()
            };
            bn.backward_apply(input, &self.sums, out, Run::on(&executor, ws)).unwrap();
        });
        [y.to_vec(), dx.to_vec(), dresidual.to_vec()]
    }
}

fn long_run<T: Number>(layout: Layout, n: usize, c: usize, s: usize, few: usize, fused: bool) {
    // The same bytes of every type.
    let n = n * 4 / size_of::<T>();
    let shape = Shape::new(layout, n, c, &[s]).unwrap();
    let p = Long::<T>::new(shape, fused);
    let mut expected = [const { Vec::new() }; 3];
    for first in (0..n).step_by(few) {
        let part = p.part(Isa::PORTABLE, 1, first, few.min(n - first), 0);
        expected.iter_mut().zip(part).for_each(|(all, part)| all.extend(part));
    }
    for isa in Isa::available() {
        let runs: &[(usize, usize)] = match size_of::<T>() {
            _ if fused => &[(1, 4), (3, 0)],
            4 => &[(1, 0), (1, 4), (1, 7), (1, 12), (3, 7)],
            _ => &[(1, 0), (1, 12), (3, 7)],
        };
        for &(threads, skip) in runs {
            let got = p.part(isa, threads, 0, n, skip);
            let what = (core::any::type_name::<T>(), shape, isa, threads, fused);
            assert!(
                (0..3).all(|i| same(&got[i], &expected[i])),
                "{what:?}, from {skip} on: other bits than {few} images at a time"
            );
        }
    }
}

/// Long runs are mapped in parts far apart, past the caches, and with a table of constants for many channels; images
/// few at a time are not. The bits are the same, wherever the outputs begin, with threads, with a residual and a mask,
/// and where a value or a channel needs f64.
#[test]
fn long_runs_have_the_bits_of_short_ones() {
    for (layout, n, c, s, few) in [
        (Layout::Nhwc, 1600, 2048, 1, 37),
        (Layout::Nhwc, 3100, 1024, 1, 37),
        (Layout::Nhwc, 3100, 1000, 1, 37),
        (Layout::Nchw, 12, 4, 70_001, 1),
        // Images that begin alike in a cache line, two at once, and that do not.
        (Layout::Nchw, 1851, 32, 49, 25),
        (Layout::Nchw, 701, 21, 197, 25),
    ] {
        for fused in [false, true] {
            every_type!(long_run(layout, n, c, s, few, fused));
        }
    }
}
