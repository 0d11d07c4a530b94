//! Forward, inference and backward give the same bits with any number of threads, in reverse order,
//! with any workspace.

mod common;

use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, Executor, Gradients, Layout, Moments, Op, Run, Serial, Shape,
    Statistics, Tasks,
};
use bn_std::Rayon;
use common::executors::{Log, Reversed, Rush, Threads};
use common::{Number, Random, Real, difference, moment_bits};
use std::sync::{LazyLock, Mutex};

/// Batch, channels, spatial dimensions.
type Dimensions = (usize, usize, &'static [usize]);

/// The batch norms of ResNet-50.
const RESNET_50: [Dimensions; 9] = [
    (1, 64, &[112, 112]),
    (2, 64, &[56, 56]),
    (1, 256, &[56, 56]),
    (3, 128, &[28, 28]),
    (1, 512, &[28, 28]),
    (5, 256, &[14, 14]),
    (2, 1024, &[14, 14]),
    (6, 512, &[7, 7]),
    (3, 2048, &[7, 7]),
];

/// Few channels and one large image: only its positions can be shared out.
const FEW_CHANNELS: [Dimensions; 3] = [(1, 1, &[512, 513]), (1, 3, &[384, 401]), (1, 8, &[256, 255])];

const ODD: [Dimensions; 12] = [
    // Tiny.
    (2, 1, &[]),
    (1, 1, &[2]),
    (2, 3, &[2, 2]),
    (3, 17, &[3, 5]),
    // Planes of 7 × 7, in batches that four does not divide.
    (7, 33, &[7, 7]),
    (67, 20, &[7, 7]),
    // Dense.
    (2, 7, &[]),
    (1023, 100, &[]),
    (70000, 1, &[]),
    (33, 3000, &[]),
    // Sound, volume.
    (5, 24, &[701]),
    (2, 12, &[6, 20, 21]),
];

static POOL: LazyLock<rayon::ThreadPool> =
    LazyLock::new(|| rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap());

/// In turn, by the seed.
const ACTIVATIONS: [Activation; 4] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { slope: 0.25 },
    Activation::Clamp { lo: -0.5, hi: 1.5 },
];

struct Problem<T: Number> {
    bn: BatchNorm<T>,
    x: Vec<T>,
    residual: Option<Vec<T>>,
    dy: Vec<T>,
    gamma: Vec<T::Param>,
    beta: Vec<T::Param>,
    mean: Vec<T::Param>,
    var: Vec<T::Param>,
}

/// Everything that the calls write.
struct Results<T: Number> {
    y: Vec<T>,
    inference: Vec<T>,
    moments: Vec<Moments>,
    gradients: Made<T>,
    /// With rounded and running statistics; and of the call that needs no x, where the activation can be undone.
    others: Vec<Made<T>>,
}

/// What a backward pass writes.
struct Made<T: Number> {
    dx: Vec<T>,
    dresidual: Vec<T>,
    dgamma: Vec<T::Param>,
    dbeta: Vec<T::Param>,
}

impl<T: Number<Param: Real>> Made<T> {
    fn new(n: usize, c: usize) -> Self {
        let (n, c) = (vec![T::of(0.0); n], vec![T::Param::of(0.0); c]);
        Made { dx: n.clone(), dresidual: n, dgamma: c.clone(), dbeta: c }
    }
    fn all(&mut self, dresidual: bool) -> Gradients<'_, T> {
        Gradients {
            dx: Some(self.dx.as_mut_slice().into()),
            dresidual: dresidual.then(|| self.dresidual.as_mut_slice().into()),
            dgamma: Some(&mut self.dgamma),
            dbeta: Some(&mut self.dbeta),
        }
    }
    fn difference(&self, expected: &Self) -> Option<String> {
        let name = |name: &'static str| move |difference| format!("{name}: {difference}");
        (difference(&self.dx, &expected.dx).map(name("dx")))
            .or_else(|| difference(&self.dresidual, &expected.dresidual).map(name("dresidual")))
            .or_else(|| difference(&self.dgamma, &expected.dgamma).map(name("dgamma")))
            .or_else(|| difference(&self.dbeta, &expected.dbeta).map(name("dbeta")))
    }
}

impl<T: Number<Param: Real>> Results<T> {
    fn new(n: usize, c: usize) -> Self {
        let zeros = vec![T::of(0.0); n];
        Results {
            y: zeros.clone(),
            inference: zeros,
            moments: vec![Moments::EMPTY; c],
            gradients: Made::new(n, c),
            others: Vec::new(),
        }
    }
}

/// Runs the tasks of each phase on the pool.
fn schedule<T: Number>(mut call: Tasks<'_, T>) {
    loop {
        POOL.scope(|s| (0..call.tasks()).for_each(|_| s.spawn(|_| call.run_task())));
        if !call.advance().unwrap() {
            return;
        }
    }
}

/// How much workspace a run gets.
#[derive(Clone, Copy, Debug)]
enum Words {
    Min,
    /// Enough for three tasks at once, not for the results of cells.
    ThreeTimesMin,
    Best,
}

impl<T: Number<Param: Real>> Problem<T> {
    fn new(layout: Layout, (batch, channels, spatial): Dimensions, seed: u64) -> Self {
        let shape = Shape::new(layout, batch, channels, spatial).unwrap();
        let bn = BatchNorm::new(shape, 1e-5).unwrap();
        let mut random = Random(seed);
        // A mean far from 0 makes every change in the order of additions show.
        let far = if T::of(30.0 + 1e-3) == T::of(30.0) { 3.0 } else { 30.0 };
        let x = random.values(shape.len(), far);
        Problem {
            // Each activation with a residual and without.
            bn: bn.with_activation(ACTIVATIONS[seed as usize % 4]).unwrap(),
            x,
            residual: (seed % 5 % 2 == 1).then(|| random.values(shape.len(), -1.0)),
            dy: random.values(shape.len(), -0.5),
            gamma: random.values(channels, 0.5),
            beta: random.values(channels, -1.0),
            mean: random.values(channels, far),
            var: random.values(channels, 0.1),
        }
    }

    /// What a backward pass reads.
    fn input<'a>(&'a self, y: &'a [T], statistics: Statistics<'a, T::Param>) -> BackwardInput<'a, T> {
        BackwardInput { x: &self.x, y: Some(y), dy: &self.dy, gamma: Some(&self.gamma), statistics }
    }

    /// Whether there is a backward pass from the output.
    fn invertible(&self) -> bool {
        let activation = self.bn.activation();
        self.residual.is_none() && matches!(activation, Activation::Identity | Activation::LeakyRelu { .. })
    }

    /// Memory for an operation: garbage in it must not matter either.
    fn workspace(&self, op: Op, words: Words, width: usize) -> Vec<u64> {
        let len = match words {
            Words::Min => self.bn.workspace_min(op),
            Words::ThreeTimesMin => 3 * self.bn.workspace_min(op),
            Words::Best => self.bn.workspace_best(op, width),
        };
        vec![0xfff4_dead_fff4_beef; len]
    }

    /// In one call each.
    fn run(&self, executor: &dyn Executor, words: Words) -> Results<T> {
        let bn = &self.bn;
        let mut r = Results::new(self.x.len(), self.gamma.len());
        let workspace = |op| self.workspace(op, words, executor.width());
        let (residual, affine) = (self.residual.as_deref(), Affine::new(&self.gamma, &self.beta));
        let mut memory = workspace(Op::ForwardTraining);
        let run = Run::on(executor, &mut memory);
        bn.forward_training(&self.x, residual, affine, &mut r.y[..], &mut r.moments, run).unwrap();
        let mut memory = workspace(Op::Inference);
        let run = Run::on(executor, &mut memory);
        bn.inference(&self.x, residual, affine, &self.mean, &self.var, &mut r.inference[..], run).unwrap();
        let mut memory = workspace(Op::Backward);
        let run = Run::on(executor, &mut memory);
        let output = r.gradients.all(self.residual.is_some());
        bn.backward(self.input(&r.y, Statistics::Batch(&r.moments)), output, run).unwrap();
        r
    }

    /// The same, and the other backward passes.
    fn run_all(&self, executor: &dyn Executor, words: Words) -> Results<T> {
        let (bn, mut r) = (&self.bn, self.run(executor, words));
        let mut memory = self.workspace(Op::Backward, words, executor.width());
        let made = || Made::new(self.x.len(), self.gamma.len());
        let (mean, var) = (&self.mean[..], &self.var[..]);
        for statistics in [Statistics::Rounded { mean, var }, Statistics::Running { mean, var }] {
            let (mut made, run) = (made(), Run::on(executor, &mut memory));
            bn.backward(self.input(&r.y, statistics), made.all(self.residual.is_some()), run).unwrap();
            r.others.push(made);
        }
        if self.invertible() {
            let (mut made, run) = (made(), Run::on(executor, &mut memory));
            let affine = Affine::new(&self.gamma, &self.beta);
            bn.backward_from_output(&r.y, &self.dy, affine, &r.moments, made.all(false), run).unwrap();
            r.others.push(made);
        }
        r
    }

    /// As tasks, handed out by a scheduler that knows nothing of calls.
    fn run_tasks(&self, width: usize) -> Results<T> {
        let bn = &self.bn;
        let mut r = Results::new(self.x.len(), self.gamma.len());
        let (residual, affine) = (self.residual.as_deref(), Affine::new(&self.gamma, &self.beta));
        let mut memory = self.workspace(Op::ForwardTraining, Words::Best, width);
        let (y, moments) = (&mut r.y[..], &mut r.moments);
        schedule(bn.forward_training_tasks(&self.x, residual, affine, y, moments, width, &mut memory).unwrap());
        let y = &mut r.inference[..];
        schedule(bn.inference_tasks(&self.x, residual, affine, &self.mean, &self.var, y, width, &mut memory).unwrap());
        let mut memory = self.workspace(Op::Backward, Words::Best, width);
        let (input, output) =
            (self.input(&r.y, Statistics::Batch(&r.moments)), r.gradients.all(self.residual.is_some()));
        schedule(bn.backward_tasks(input, output, width, &mut memory).unwrap());
        r
    }

    fn check(&self) {
        let expected = self.run_all(&Serial, Words::Best);
        assert!(expected.y.iter().any(|v| v.wide() != 0.0));
        assert!(expected.gradients.dgamma.iter().all(|v| v.wide().is_finite()));
        let rayon = Rayon::on(&POOL);
        let executors: [(&str, &dyn Executor, &[Words]); 8] = [
            ("1 thread", &Threads(1), &[Words::Min]),
            ("2 threads", &Threads(2), &[Words::Best]),
            ("3 threads", &Threads(3), &[Words::Best, Words::ThreeTimesMin]),
            ("7 threads", &Threads(7), &[Words::Min, Words::Best]),
            ("16 threads", &Threads(16), &[Words::Best]),
            ("rayon, 16 threads", &rayon, &[Words::Best]),
            ("5 threads in reverse order", &Reversed(5), &[Words::Best, Words::ThreeTimesMin]),
            ("4 threads at once", &Rush(4), &[Words::Best]),
        ];
        for (name, executor, workspaces) in executors {
            for &words in workspaces {
                let got = self.run_all(executor, words);
                self.compare(&got, &expected, &format!("{name}, workspace {words:?}"));
            }
        }
        self.compare(&self.run_tasks(6), &expected, "6 tasks");
    }

    fn compare(&self, got: &Results<T>, expected: &Results<T>, how: &str) {
        let context = format!("{:?} {:?} {how}", self.bn.shape(), self.bn.activation());
        for (what, got, expected) in [("y", &got.y, &expected.y), ("inference", &got.inference, &expected.inference)] {
            assert_eq!(difference(got, expected), None, "{context}: {what}");
        }
        assert_eq!(got.gradients.difference(&expected.gradients), None, "{context}");
        for (which, (got, expected)) in got.others.iter().zip(&expected.others).enumerate() {
            let which = ["rounded statistics", "running statistics", "from the output"][which];
            assert_eq!(got.difference(expected), None, "{context}: {which}");
        }
        assert_eq!(moment_bits(&got.moments), moment_bits(&expected.moments), "{context}: moments");
    }
}

fn check<T: Number<Param: Real>>(layout: Layout) {
    for (i, dimensions) in RESNET_50.into_iter().chain(FEW_CHANNELS).chain(ODD).enumerate() {
        Problem::<T>::new(layout, dimensions, i as u64).check();
    }
}

#[test]
fn nchw_f32() {
    check::<f32>(Layout::Nchw);
}

#[test]
fn nhwc_f32() {
    check::<f32>(Layout::Nhwc);
}

#[test]
fn nchw_f64() {
    check::<f64>(Layout::Nchw);
}

#[test]
fn nhwc_f64() {
    check::<f64>(Layout::Nhwc);
}

#[cfg(feature = "half")]
#[test]
fn nchw_f16_and_nhwc_bf16() {
    check::<half::f16>(Layout::Nchw);
    check::<half::bf16>(Layout::Nhwc);
}

#[cfg(feature = "half")]
#[test]
fn nchw_bf16_and_nhwc_f16() {
    check::<half::bf16>(Layout::Nchw);
    check::<half::f16>(Layout::Nhwc);
}

/// Tasks that are run too seldom or too often are an error, and what is left over is harmless.
#[test]
fn tasks_are_counted() {
    let problem = Problem::<f32>::new(Layout::Nhwc, (2, 24, &[70, 70]), 0);
    let mut memory = vec![0; problem.bn.workspace_best(Op::Inference, 4)];
    let (mut y, affine) = (vec![0.0; problem.x.len()], Affine::new(&problem.gamma, &problem.beta));
    for extra in [-1, 1] {
        let (x, mean, var) = (&problem.x, &problem.mean, &problem.var);
        let mut call = problem.bn.inference_tasks(x, None, affine, mean, var, &mut y[..], 4, &mut memory).unwrap();
        assert_eq!(call.tasks(), 4);
        (0..4 + extra).for_each(|_| call.run_task());
        assert_eq!(call.advance(), Err(Error::Executor { expected: 4, got: (4 + extra) as usize }));
        if extra < 0 {
            call.run_task();
            assert_eq!(call.advance(), Ok(false));
            assert_eq!((call.tasks(), call.advance()), (0, Ok(false)));
            call.run_task();
        }

        assert!(difference(&y, &problem.run(&Serial, Words::Best).inference).is_none());
    }
}

/// The tests above would pass if nothing ever ran on two threads.
#[test]
fn large_tensors_are_shared_out_and_tiny_ones_are_not() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        for dimensions in RESNET_50.into_iter().chain(FEW_CHANNELS) {
            for width in [2, 3, 7, 16] {
                let log = Log { width, ..Log::default() };
                let problem = Problem::<f32>::new(layout, dimensions, 0);
                problem.run(&log, Words::Best);
                let phases = log.phases.into_inner().unwrap();
                // Sums and map in forward and in backward, and the map of inference. Maps can be cut as
                // finely as one likes, sums into their cells and tiles: at least eight of these.
                let shape = problem.bn.shape();
                // Where there are many channels the merging of cells, in either pass, and the parameters' gradients
                // are shared out too.
                let parts = width.min(shape.channels() / 128).max(1);
                let least = if parts > 1 { parts } else { width };
                let enough = least.min(8)..=width;
                assert!(phases.iter().all(|tickets| enough.contains(tickets)), "{phases:?} for {width}: {shape:?}");
                if parts > 1 {
                    assert!((6..=8).contains(&phases.len()), "{phases:?}: {shape:?}");
                    assert!(phases.iter().filter(|&&tickets| tickets == width).count() >= 3, "{phases:?}: {shape:?}");
                } else {
                    assert_eq!(phases.len(), 5, "{shape:?}");
                    assert_eq!([phases[1], phases[2], phases[4]], [width; 3], "maps of {shape:?}");
                }
            }
        }
        let log = Log { width: 16, ..Log::default() };
        for dimensions in ODD.into_iter().filter(|(n, c, s)| n * c * s.iter().product::<usize>() < 10_000) {
            Problem::<f32>::new(layout, dimensions, 0).run(&log, Words::Best);
        }
        assert_eq!(*log.phases.lock().unwrap(), []);
    }
}

#[test]
fn reverse_order_is_what_it_says() {
    let threads = Mutex::new(Vec::new());
    Reversed(4).run(4, &|| threads.lock().unwrap().push(std::thread::current().name().map(str::to_owned)));
    let names: Vec<String> = threads.into_inner().unwrap().into_iter().flatten().collect();
    assert_eq!(names, ["3", "2", "1", "0"]);
}
