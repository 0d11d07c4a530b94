//! Ranks with shards of one batch, against the exact result, the result of one process, and each other.

mod common;
#[path = "../../bn-core/tests/common/mod.rs"]
mod reference;

use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Element, GradSums, Gradients, Isa, Layout, Moments, Op, Run, Shape,
    Statistics,
};
use bn_mpi::{Error, Exchange, Inputs, Outputs, ParameterGradients, Settings, SyncBatchNorm};
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use reference::problem::{Real, bound};
use reference::{Channel, Random, mean_var, places};
use std::time::Duration;

fn main() {
    if common::part().is_none() {
        return common::on_ranks(&[1, 2, 3, 4], "equal and unequal shards", Duration::from_secs(60));
    }
    bn_mpi::abort_on_panic();
    let universe = mpi::initialize().expect("MPI starts once");
    let world = universe.world();
    let mut worst = Worst::default();
    for exchange in [Exchange::Gather, Exchange::Scatter] {
        all_shapes::<f32>(&world, exchange, &mut worst);
        all_shapes::<f64>(&world, exchange, &mut worst);
    }
    too_few_values(&world);
    any_group_of_ranks(&world);
    if world.rank() == 0 {
        println!("    worst, of its bound: {worst:.3?}");
    }
}

/// Worst errors, each relative to its bound.
#[derive(Clone, Copy, Debug, Default)]
struct Worst {
    y: f64,
    dx: f64,
    /// dgamma and dbeta.
    parameters: f64,
    /// y and dx against one process, in units of 4 ulp of its largest value.
    one_process: f64,
}

/// Images per rank: equal shards, unequal ones, one empty one, all but one empty.
fn shards(ranks: usize) -> Vec<Vec<usize>> {
    let mut empty_last: Vec<usize> = (0..ranks).map(|r| 3 + 2 * r).collect();
    empty_last[ranks - 1] = if ranks > 1 { 0 } else { 6 };
    let mut empty_first = vec![5; ranks];
    empty_first[0] = if ranks > 1 { 0 } else { 5 };
    let mut alone = vec![0; ranks];
    alone[ranks / 2] = 9;
    vec![vec![6; ranks], (0..ranks).map(|r| 2 + 4 * r + r % 2).collect(), empty_last, empty_first, alone]
}

fn all_shapes<T: Real>(world: &SimpleCommunicator, exchange: Exchange, worst: &mut Worst) {
    let mut seed = 1;
    for shards in shards(world.size() as usize) {
        for (layout, channels, spatial) in [
            (Layout::Nchw, 3, 49),
            (Layout::Nhwc, 21, 20),
            (Layout::Nhwc, 64, 1),
            (Layout::Nchw, 1, 300),
            (Layout::Nhwc, 5, 1),
        ] {
            for ratio in [0.0, 1.0, 1e3, 1e5] {
                seed += 1;
                let case = Case::<T>::new(seed, layout, &shards, channels, spatial, ratio, seed % 3 == 0);
                case.check(world, exchange, worst);
            }
        }
    }
}

/// A batch, the same on all ranks, and how it is cut.
struct Case<T> {
    layout: Layout,
    shards: Vec<usize>,
    channels: usize,
    spatial: usize,
    activation: Activation,
    epsilon: f64,
    x: Vec<T>,
    dy: Vec<T>,
    residual: Option<Vec<T>>,
    gamma: Vec<T>,
    beta: Vec<T>,
}

/// What a pass forward and back has made of a shard, or of all.
#[derive(Clone, PartialEq)]
struct Made<T> {
    y: Vec<T>,
    dx: Vec<T>,
    dgamma: Vec<T>,
    dbeta: Vec<T>,
    moments: Vec<Moments>,
}

impl<T: Real> Case<T> {
    fn new(
        seed: u64,
        layout: Layout,
        shards: &[usize],
        channels: usize,
        spatial: usize,
        ratio: f64,
        relu: bool,
    ) -> Self {
        let mut random = Random(seed);
        let len = shards.iter().sum::<usize>() * channels * spatial;
        let mut normals = |len: usize, mean: f64| (0..len).map(|_| T::of(mean + random.normal())).collect::<Vec<T>>();
        Case {
            layout,
            shards: shards.to_vec(),
            channels,
            spatial,
            activation: if relu { Activation::Relu } else { Activation::Identity },
            epsilon: 1e-5,
            x: normals(len, ratio),
            dy: normals(len, 0.3),
            residual: relu.then(|| normals(len, 0.0)),
            gamma: normals(channels, 0.5),
            beta: normals(channels, 0.0),
        }
    }

    fn shape(&self, batch: usize) -> Shape {
        Shape::new(self.layout, batch, self.channels, &[self.spatial]).unwrap()
    }

    /// The elements of a rank's shard: batches are the outermost dimension of both layouts.
    fn range(&self, rank: usize) -> core::ops::Range<usize> {
        let image = self.channels * self.spatial;
        let first: usize = self.shards[..rank].iter().sum();
        first * image..(first + self.shards[rank]) * image
    }

    fn affine(&self) -> Affine<'_, T> {
        Affine::new(&self.gamma, &self.beta)
    }

    fn plan(&self, batch: usize) -> (BatchNorm<T>, Vec<u64>) {
        let plan = BatchNorm::new(self.shape(batch), self.epsilon).unwrap().with_activation(self.activation).unwrap();
        let words = plan.workspace_best(Op::ForwardTraining, 1).max(plan.workspace_best(Op::Backward, 1));
        (plan, vec![0; words])
    }

    /// This rank's part, by the library; each rank on another ISA.
    fn on_this_rank(&self, world: &SimpleCommunicator, exchange: Exchange) -> (Made<T>, Vec<u64>) {
        let rank = world.rank() as usize;
        let isas: Vec<Isa> = Isa::available().collect();
        let settings = Settings::new(self.channels)
            .with_epsilon(self.epsilon)
            .with_activation(self.activation)
            .with_exchange(exchange)
            .with_isa(isas[rank % isas.len()]);
        let mut bn = SyncBatchNorm::<T>::new(world, settings).unwrap();
        assert_eq!(bn.exchange(), exchange);
        let at = self.range(rank);
        let (x, dy) = (&self.x[at.clone()], &self.dy[at.clone()]);
        let residual = self.residual.as_ref().map(|r| &r[at.clone()]);
        let (mut y, mut dx) = (vec![T::of(7.0); at.len()], vec![T::of(7.0); at.len()]);
        let (mut dgamma, mut dbeta) = (vec![T::of(0.0); self.channels], vec![T::of(0.0); self.channels]);
        let (mut own_dgamma, mut own_dbeta) = (dgamma.clone(), dbeta.clone());
        let shape = self.shape(self.shards[rank]);
        assert_eq!(bn.forward(shape, x, residual, self.affine(), &mut y), Ok(0));
        let inputs = Inputs { x, y: Some(&y), dy, gamma: Some(&self.gamma) };
        let outputs = Outputs { dgamma: Some(&mut own_dgamma), dbeta: Some(&mut own_dbeta), ..Outputs::default() };
        bn.backward(inputs, outputs, ParameterGradients::OfThisRank).unwrap();
        let outputs =
            Outputs { dx: Some(&mut dx), dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta), ..Outputs::default() };
        bn.backward(inputs, outputs, ParameterGradients::OfAllRanks).unwrap();

        // What the ranks add to gamma's and beta's gradient is all of it.
        for (own, all) in [(&own_dgamma, &dgamma), (&own_dbeta, &dbeta)] {
            let mut sum = vec![0.0; self.channels];
            let own: Vec<f64> = own.iter().map(|v| v.wide()).collect();
            world.all_reduce_into(&own[..], &mut sum[..], mpi::collective::SystemOperation::sum());
            let mut size = vec![0.0; self.channels];
            let own: Vec<f64> = own.iter().map(|v| v.abs()).collect();
            world.all_reduce_into(&own[..], &mut size[..], mpi::collective::SystemOperation::sum());
            for ((sum, size), all) in sum.iter().zip(&size).zip(all) {
                assert!((sum - all.wide()).abs() <= 2.0 * T::ROUNDING * (size + all.wide().abs()));
            }
        }
        let moments = bn.moments().unwrap().to_vec();
        // All that is said to be the same on all ranks.
        let mut same: Vec<u64> = bn.running_mean().iter().chain(bn.running_var()).map(|v| v.bits()).collect();
        same.extend(dgamma.iter().chain(&dbeta).map(|v| v.bits()));
        same.extend(moments.iter().flat_map(|m| [m.count, m.mean.to_bits(), m.m2.to_bits()]));
        (Made { y, dx, dgamma, dbeta, moments }, same)
    }

    /// The whole batch, by bn-core in one process.
    fn in_one_process(&self) -> Made<T> {
        let (plan, mut workspace) = self.plan(self.shards.iter().sum());
        let mut moments = vec![Moments::EMPTY; self.channels];
        let (mut y, mut dx) = (vec![T::of(0.0); self.x.len()], vec![T::of(0.0); self.x.len()]);
        let (mut dgamma, mut dbeta) = (vec![T::of(0.0); self.channels], vec![T::of(0.0); self.channels]);
        let run = Run::serial(&mut workspace);
        plan.forward_training(&self.x, self.residual.as_deref(), self.affine(), &mut y[..], &mut moments, run).unwrap();
        let input = self.input(&self.x, &y, &self.dy, &moments);
        let output = Gradients {
            dx: Some((&mut dx[..]).into()),
            dgamma: Some(&mut dgamma),
            dbeta: Some(&mut dbeta),
            ..Gradients::default()
        };
        plan.backward(input, output, Run::serial(&mut workspace)).unwrap();
        Made { y, dx, dgamma, dbeta, moments }
    }

    /// The shards one after the other by bn-core's stages in one process, merged in the order of the ranks: what the
    /// ranks must make to the bit, whatever MPI does. Tensors are those of all ranks.
    fn shard_by_shard(&self) -> Made<T> {
        let ranks = 0..self.shards.len();
        let mut moments = vec![Moments::EMPTY; self.channels];
        for rank in ranks.clone() {
            let (plan, mut workspace) = self.plan(self.shards[rank]);
            let mut own = vec![Moments::EMPTY; self.channels];
            plan.moments(&self.x[self.range(rank)], &mut own, Run::serial(&mut workspace)).unwrap();
            bn_core::merge_moments(&mut moments, &own).unwrap();
        }
        let mut y = vec![T::of(0.0); self.x.len()];
        let mut sums = vec![GradSums::default(); self.channels];
        for rank in ranks.clone() {
            let (plan, mut workspace) = self.plan(self.shards[rank]);
            let at = self.range(rank);
            let residual = self.residual.as_ref().map(|r| &r[at.clone()]);
            let (x, dy, y) = (&self.x[at.clone()], &self.dy[at.clone()], &mut y[at.clone()]);
            plan.normalize(x, residual, self.affine(), &moments, &mut *y, Run::serial(&mut workspace)).unwrap();
            let mut own = sums.clone();
            plan.backward_sums(self.input(x, y, dy, &moments), &mut own, Run::serial(&mut workspace)).unwrap();
            sums.iter_mut().zip(&own).for_each(|(sums, own)| sums.merge(own));
        }
        let mut dx = vec![T::of(0.0); self.x.len()];
        let (mut dgamma, mut dbeta) = (vec![T::of(0.0); self.channels], vec![T::of(0.0); self.channels]);
        for rank in ranks {
            let (plan, mut workspace) = self.plan(self.shards[rank]);
            let at = self.range(rank);
            let input = self.input(&self.x[at.clone()], &y[at.clone()], &self.dy[at.clone()], &moments);
            let output = Gradients {
                dx: Some((&mut dx[at]).into()),
                dgamma: Some(&mut dgamma),
                dbeta: Some(&mut dbeta),
                ..Gradients::default()
            };
            plan.backward_apply(input, &sums, output, Run::serial(&mut workspace)).unwrap();
        }
        Made { y, dx, dgamma, dbeta, moments }
    }

    fn input<'a>(&'a self, x: &'a [T], y: &'a [T], dy: &'a [T], moments: &'a [Moments]) -> BackwardInput<'a, T> {
        BackwardInput { x, y: Some(y), dy, gamma: Some(&self.gamma), statistics: Statistics::Batch(moments) }
    }

    fn check(&self, world: &SimpleCommunicator, exchange: Exchange, worst: &mut Worst) {
        let (made, same) = self.on_this_rank(world, exchange);

        // The same bits on every rank.
        let mut of_all = vec![0; same.len() * world.size() as usize];
        world.all_gather_into(&same[..], &mut of_all[..]);
        for other in of_all.chunks_exact(same.len()) {
            assert!(other == same, "bits differ between ranks");
        }

        // The bits that merging in the order of the ranks gives, so also the same from run to run.
        let ordered = self.shard_by_shard();
        let at = self.range(world.rank() as usize);
        assert!(made.y == ordered.y[at.clone()] && made.dx == ordered.dx[at.clone()], "y or dx: other bits");
        assert!(made.moments == ordered.moments, "moments: other bits than merged by rank");
        assert!(made.dgamma == ordered.dgamma && made.dbeta == ordered.dbeta, "gradients: other bits");

        // One process. Its own bits where there is one rank only.
        let one = self.in_one_process();
        let shape = self.shape(self.shards.iter().sum());
        if world.size() == 1 {
            assert!(made.y == one.y && made.moments == one.moments && made.dbeta == one.dbeta, "one rank: other bits");
        }
        let everywhere: Vec<usize> = (0..shape.len()).collect();
        let four_ulp = |values: &mut dyn Iterator<Item = f64>| {
            let largest = values.fold(T::ROUNDING, |m: f64, v| m.max(v.abs()));
            4.0 * 2.0 * T::ROUNDING * largest.log2().floor().exp2()
        };
        for c in 0..self.channels {
            let at: Vec<usize> = places(shape, c).collect();
            let mut near = |what: &str, got: &[T], expected: &[T], at: &[usize], among: &[usize]| {
                let m = one.moments[c];
                // For f64 elements: a mean in f64 is known no better than this.
                let mean = 16.0 * f64::EPSILON * (1.0 + m.mean.abs() / (m.variance() + self.epsilon).sqrt());
                let bound = four_ulp(&mut among.iter().map(|&i| expected[i].wide())) + mean;
                for &i in at {
                    let off = (got[i].wide() - expected[i].wide()).abs() / bound;
                    assert!(off <= 1.0, "{what} of channel {c} is {off} times 4 ulp from one process, {shape:?}");
                    worst.one_process = worst.one_process.max(off);
                }
            };
            near("y", &ordered.y, &one.y, &at, &everywhere);
            if self.activation == Activation::Identity {
                // With a ReLU, a y next to 0 may pass dy in one and not in the other.
                // The sums over a channel, dgamma and dbeta, may all but cancel: they have their bound below.
                near("dx", &ordered.dx, &one.dx, &at, &everywhere);
                self.exact(&ordered, c, &at, worst);
            }
        }
        assert!(worst.y <= 1.0 && worst.dx <= 1.0 && worst.parameters <= 1.0, "beyond the bounds: {worst:?}");
    }

    /// A channel against plain loops in f64.
    fn exact(&self, made: &Made<T>, c: usize, at: &[usize], worst: &mut Worst) {
        let x: Vec<f64> = at.iter().map(|&i| self.x[i].wide()).collect();
        let dy: Vec<f64> = at.iter().map(|&i| self.dy[i].wide()).collect();
        let (mean, var) = mean_var(x.iter().copied());
        let (gamma, beta) = (self.gamma[c].wide(), self.beta[c].wide());
        let channel = Channel { mean, var, gamma, beta, epsilon: self.epsilon };
        let top = x.iter().fold(1.0f64, |m, &x| m.max(channel.y(x).abs()));
        let (dx, dgamma, dbeta) = reference::backward(&channel, &x, &dy);
        let n = x.len() as f64;
        let spread = dy.iter().fold(0.0f64, |m, d| m.max((d - dbeta / n).abs()));
        let s = (gamma * channel.inverse_std()).abs();
        // What f64 leaves of a mean 1e5 standard deviations away; of no account beside the bound of f32.
        let bound = bound::<T>(&channel) + 8.0 * f64::EPSILON * mean.abs() * channel.inverse_std();
        for (j, &i) in at.iter().enumerate() {
            worst.y = worst.y.max((made.y[i].wide() - channel.y(x[j])).abs() / (bound * top));
            worst.dx = worst.dx.max((made.dx[i].wide() - dx[j]).abs() / (bound * s * spread));
        }
        for (got, exact) in [(made.dgamma[c], dgamma), (made.dbeta[c], dbeta)] {
            let bound = bound * spread * n + T::ROUNDING * exact.abs();
            worst.parameters = worst.parameters.max((got.wide() - exact).abs() / bound);
        }
    }
}

/// Below two values in total is an error on all ranks; nothing has been written then.
fn too_few_values(world: &SimpleCommunicator) {
    let last = world.rank() == world.size() - 1;
    for (values, allowed) in [(0, false), (1, false), (0, true)] {
        let mut settings = Settings::new(2);
        if allowed {
            settings = settings.allow_one_value();
        }
        let mut bn = SyncBatchNorm::<f32>::new(world, settings).unwrap();
        let rows = if last { values } else { 0 };
        let (x, mut y) = (vec![3.0; 2 * rows], vec![7.0; 2 * rows]);
        let error = bn.forward(Shape::dense(rows, 2).unwrap(), &x, None, Affine::NONE, &mut y);
        let expected = if allowed { 1 } else { 2 };
        assert_eq!(error, Err(Error::TooFewValues { expected, got: values as u64 }));
        assert!(y.iter().all(|&v| v == 7.0) && bn.num_batches() == 0 && bn.moments().is_none());
        assert_eq!((bn.running_mean(), bn.running_var()), (&[0.0; 2][..], &[1.0; 2][..]));
    }
    // One that is allowed: y = beta.
    let mut bn = SyncBatchNorm::<f32>::new(world, Settings::new(1).allow_one_value()).unwrap();
    let rows = usize::from(last);
    let mut y = vec![7.0; rows];
    bn.forward(Shape::dense(rows, 1).unwrap(), &vec![3.0; rows], None, Affine::NONE, &mut y).unwrap();
    assert!(y.iter().all(|&v| v == 0.0));
}

/// Layers on parts of the ranks do not see each other.
fn any_group_of_ranks(world: &SimpleCommunicator) {
    let rank = world.rank();
    let group = world.split_by_color(mpi::topology::Color::with_value(rank % 2)).unwrap();
    let mut bn = SyncBatchNorm::<f64>::new(&group, Settings::new(1)).unwrap();
    let x = [f64::from(rank), f64::from(rank) + 1.0];
    let mut y = [0.0; 2];
    for _ in 0..3 {
        bn.forward(Shape::dense(2, 1).unwrap(), &x, None, Affine::NONE, &mut y).unwrap();
    }
    let mut expected = Moments::EMPTY;
    for other in (rank % 2..world.size()).step_by(2) {
        expected.push(f64::from(other));
        expected.push(f64::from(other) + 1.0);
    }
    let got = bn.moments().unwrap()[0];
    assert_eq!(got.count, expected.count);
    assert!((got.mean - expected.mean).abs() < 1e-12 && (got.m2 - expected.m2).abs() < 1e-12);
    let before = bn.running_mean().to_vec();
    let mut y = [0.0; 2];
    bn.inference(Shape::dense(2, 1).unwrap(), &x, None, Affine::NONE, &mut y).unwrap();
    assert_eq!(bn.running_mean(), before);
    fn is_element<T: Element>(_: &SyncBatchNorm<'_, T>) {}
    is_element(&bn);
}
