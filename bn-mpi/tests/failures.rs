//! One rank errs: every rank is told so, by the same error, within seconds; and the layer goes on working.

mod common;

use bn_core::{Activation, Affine, Executor, RunningStats, Shape};
use bn_mpi::{
    Error, Exchange, Inputs, Outputs, ParameterGradients, Problem, Setting, Settings, SyncBatchNorm, abort_on_panic,
};
use mpi::Rank;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use std::time::Duration;

/// What the ranks have for all of it.
const LIMIT: Duration = Duration::from_secs(10);

fn main() {
    match common::part().as_deref() {
        None => {
            common::on_ranks(&[1, 2, 3, 4], "errors", LIMIT);
            // What no message can tell ends the program, but does not hang it.
            let (status, took) = common::start(3, "a panic", LIMIT);
            assert!(!status.success(), "a panic went well");
            println!("a panic on 3 ranks: ended, {:.1} s", took.as_secs_f64());
        }
        Some("a panic") => {
            abort_on_panic();
            with_world(|world| {
                let mut bn = SyncBatchNorm::<f32>::new(world, Settings::new(1)).unwrap();
                assert!(world.rank() != 1, "rank 1 panics, as this test wants it");
                bn.forward(rows(2, 1), &[1.0, 2.0], None, Affine::NONE, &mut [0.0; 2]).unwrap();
            });
        }
        Some(_) => {
            abort_on_panic();
            with_world(|world| {
                for exchange in [Exchange::Gather, Exchange::Scatter] {
                    for odd in 0..world.size() {
                        settings(world, exchange, odd);
                        for check in [true, false] {
                            calls(world, exchange, odd, check);
                        }
                        other_lengths(world, exchange, odd);
                    }
                }
                exchanges(world);
            });
        }
    }
}

fn with_world(body: impl FnOnce(&SimpleCommunicator)) {
    let universe = mpi::initialize().expect("MPI starts once");
    body(&universe.world());
}

fn rows(rows: usize, channels: usize) -> Shape {
    Shape::dense(rows, channels).unwrap()
}

/// The rank that is said to differ from rank 0, where it is `odd` that does.
fn differing(odd: Rank) -> Rank {
    odd.max(1)
}

#[track_caller]
fn differs<T: core::fmt::Debug>(result: Result<T, Error>, expected: Setting, odd: Rank, world: &SimpleCommunicator) {
    if world.size() == 1 {
        return;
    }
    match result.expect_err("an error on every rank") {
        Error::Differs { what, rank, .. } => assert_eq!((what, rank), (expected, differing(odd))),
        other => panic!("{other}, expected that {expected} differs"),
    }
}

/// One rank brings other settings, or bad ones.
fn settings(world: &SimpleCommunicator, exchange: Exchange, odd: Rank) {
    let mine = world.rank() == odd;
    let good = Settings::new(8).with_exchange(exchange);
    let new = |other: Settings| SyncBatchNorm::<f32>::new(world, if mine { other } else { good });
    differs(new(Settings::new(9).with_exchange(exchange)), Setting::Channels, odd, world);
    differs(new(Settings::new(1 << 20).with_exchange(exchange)), Setting::Channels, odd, world);
    differs(new(good.with_epsilon(1e-3)), Setting::Epsilon, odd, world);
    differs(new(good.with_activation(Activation::Relu)), Setting::Activation, odd, world);
    differs(new(good.allow_one_value()), Setting::OneValue, odd, world);
    differs(new(good.with_running_stats(RunningStats::keras(0.99).unwrap())), Setting::RunningRule, odd, world);
    differs(new(good.without_running_stats()), Setting::RunningRule, odd, world);
    differs(new(good.with_exchange(Exchange::Auto)), Setting::Exchange, odd, world);
    differs(new(good.without_call_check()), Setting::Exchange, odd, world);

    let element = if mine {
        SyncBatchNorm::<f64>::new(world, good).map(drop)
    } else {
        SyncBatchNorm::<f32>::new(world, good).map(drop)
    };
    differs(element, Setting::Element, odd, world);

    let refused = |problem| Error::Refused { rank: odd, problem };
    let error = new(good.with_epsilon(-1.0)).unwrap_err();
    assert_eq!(error, refused(Problem::Core(bn_core::Error::Epsilon { got: -1.0 })));
    assert_eq!(error.to_string(), format!("on rank {odd}: epsilon is -1, expected a finite number ≥ 0"));
    let error = new(Settings::new(0)).unwrap_err();
    assert_eq!(error, refused(Problem::Core(bn_core::Error::NoChannels)));
    let clamp = Activation::Clamp { lo: 2.0, hi: 1.0 };
    let error = new(good.with_activation(clamp)).unwrap_err();
    assert_eq!(error, refused(Problem::Core(bn_core::Error::Activation { got: clamp })));
    let error = new(Settings::new(1 << 40).with_exchange(exchange)).unwrap_err();
    assert!(matches!(error, Error::Refused { rank, problem: Problem::MessageTooLong { .. } } if rank == odd));
}

/// One rank calls a layer of other channels, or makes one.
fn other_lengths(world: &SimpleCommunicator, exchange: Exchange, odd: Rank) {
    let new = |channels| SyncBatchNorm::<f32>::new(world, Settings::new(channels).with_exchange(exchange));
    let (mut small, mut large) = (new(1).unwrap(), new(4096).unwrap());
    let mine = world.rank() == odd;
    for _ in 0..2 {
        let call = if mine {
            large.forward(rows(2, 4096), &[1.0; 8192], None, Affine::NONE, &mut [0.0; 8192])
        } else {
            small.forward(rows(2, 1), &[1.0, 2.0], None, Affine::NONE, &mut [0.0; 2])
        };
        differs(call, Setting::Channels, odd, world);
        let call = if mine {
            new(4096).map(drop)
        } else {
            small.forward(rows(2, 1), &[1.0, 2.0], None, Affine::NONE, &mut [0.0; 2]).map(drop)
        };
        differs(call, Setting::Operation, odd, world);
    }
    large.forward(rows(2, 4096), &[1.0; 8192], None, Affine::NONE, &mut [0.0; 8192]).unwrap();
}

/// Runs nothing, on as many threads as one likes.
struct Lazy;

impl Executor for Lazy {
    fn width(&self) -> usize {
        2
    }
    fn run(&self, _: usize, _: &(dyn Fn() + Sync)) {}
}

/// One rank calls something wrong.
fn calls(world: &SimpleCommunicator, exchange: Exchange, odd: Rank, check: bool) {
    const CHANNELS: usize = 8;
    const LEN: usize = 3 * CHANNELS;
    let mine = world.rank() == odd;
    let mut settings = Settings::new(CHANNELS).with_exchange(exchange).with_activation(Activation::Relu);
    if !check {
        settings = settings.without_call_check();
    }
    let mut bn = SyncBatchNorm::<f32>::new(world, settings).unwrap();
    let mut twin = SyncBatchNorm::<f32>::new(world, settings).unwrap();
    let shape = rows(3, CHANNELS);
    let x: Vec<f32> = (0..LEN).map(|i| (i * i % 31) as f32 + world.rank() as f32).collect();
    let mut y = [7.0; LEN];
    let refused = |problem| Err(Error::Refused { rank: odd, problem });
    let length = |what, expected, got| refused(bn_core::Error::Length { what, expected, got }.into());

    // Backward before forward: all of them, so rank 0 is the first.
    let input = Inputs { x: &x, y: Some(&x), dy: &x, gamma: None };
    let error = bn.backward(input, Outputs::default(), ParameterGradients::OfAllRanks);
    assert_eq!(error, Err(Error::Refused { rank: 0, problem: Problem::NoForward }));

    // Lengths.
    let short = |n: usize| if mine { n - 1 } else { n };
    let got = bn.forward(shape, &x[..short(LEN)], None, Affine::NONE, &mut y);
    assert_eq!(got, length("x", LEN, LEN - 1).map(|()| 0));
    let got = bn.forward(shape, &x, None, Affine::NONE, &mut y[..short(LEN)]);
    assert_eq!(got, length("y", LEN, LEN - 1).map(|()| 0));
    let got = bn.forward(shape, &x, Some(&x[..short(LEN)]), Affine::NONE, &mut y);
    assert_eq!(got, length("residual", LEN, LEN - 1).map(|()| 0));
    let gamma = [1.0; CHANNELS];
    let affine = Affine { gamma: Some(&gamma[..short(CHANNELS)]), beta: None };
    let got = bn.forward(shape, &x, None, affine, &mut y);
    assert_eq!(got, length("gamma", CHANNELS, CHANNELS - 1).map(|()| 0));

    // Channels and layout of the shape.
    let other = if mine { rows(2, CHANNELS + 4) } else { shape };
    let got = bn.forward(other, &x, None, Affine::NONE, &mut y);
    assert_eq!(got, refused(Problem::Channels { expected: CHANNELS, got: CHANNELS + 4 }).map(|()| 0));
    let other = if mine { Shape::nchw(3, CHANNELS, &[]).unwrap() } else { shape };
    differs_or_runs(bn.forward(other, &x, None, Affine::NONE, &mut y), Setting::Layout, odd, world, &mut y);

    // Another layer, another operation.
    let layer = if mine { &mut twin } else { &mut bn };
    differs_or_runs(layer.forward(shape, &x, None, Affine::NONE, &mut y), Setting::Layer, odd, world, &mut y);
    if world.size() > 1 {
        assert!(y == [7.0; LEN] && bn.num_batches() == 0 && bn.moments().is_none(), "something was written");
        let error = if mine {
            bn.backward(input, Outputs::default(), ParameterGradients::OfAllRanks)
        } else {
            bn.forward(shape, &x, None, Affine::NONE, &mut y).map(drop)
        };
        assert_eq!(error, refused(Problem::NoForward));
    }

    // All well: the failures have left nothing behind.
    assert_eq!(bn.forward(shape, &x, None, Affine::NONE, &mut y), Ok(0));
    let moments = bn.moments().unwrap().to_vec();
    assert_eq!(moments[0].count, 3 * world.size() as u64);

    // Backward.
    let mut dx = [7.0; LEN];
    let mut back = |input: Inputs<'_, f32>, dx: &mut [f32]| {
        let output = Outputs { dx: Some(dx), ..Outputs::default() };
        bn.backward(input, output, ParameterGradients::OfAllRanks)
    };
    let good = Inputs { x: &x, y: Some(&y), dy: &x, gamma: None };
    let got = back(Inputs { dy: &x[..short(LEN)], ..good }, &mut dx);
    assert_eq!(got, length("dy", LEN, LEN - 1));
    let got = back(good, &mut dx[..short(LEN)]);
    assert_eq!(got, length("dx", LEN, LEN - 1));
    let got = back(Inputs { y: if mine { None } else { good.y }, ..good }, &mut dx);
    assert_eq!(got, refused(bn_core::Error::Missing { what: "y" }.into()));
    assert_eq!(dx, [7.0; LEN]);
    if world.size() > 1 {
        let error = if mine {
            bn.forward(shape, &x, None, Affine::NONE, &mut dx).map(drop)
        } else {
            bn.backward(good, Outputs::default(), ParameterGradients::OfAllRanks)
        };
        differs(error, Setting::Operation, odd, world);
    }
    let output = Outputs { dx: Some(&mut dx), ..Outputs::default() };
    assert_eq!(bn.backward(good, output, ParameterGradients::OfAllRanks), Ok(()));
    assert_ne!(dx, [7.0; LEN]);
    assert_eq!(bn.moments(), Some(&moments[..]));

    // Running statistics of another checkpoint on one rank.
    let (mean, var) = (vec![if mine { 1.0 } else { 2.0 }; CHANNELS], [1.0; CHANNELS]);
    bn.restore(&mean, &var, 1).unwrap();
    assert!(bn.restore(&mean[1..], &var, 1).is_err());
    let mut again = [7.0; LEN];
    let error = bn.forward(shape, &x, None, Affine::NONE, &mut again);
    differs_or_runs(error, Setting::RunningStatistics, odd, world, &mut again);
    bn.restore(&[0.0; CHANNELS], &var, 0).unwrap();
    assert_eq!(bn.forward(shape, &x, None, Affine::NONE, &mut again), Ok(0));
    assert_eq!(again, y);
    // The same checkpoint, taken once more by one rank alone.
    if mine {
        bn.restore(&[0.0; CHANNELS], &var, 0).unwrap();
    }
    again.fill(7.0);
    let error = bn.forward(shape, &x, None, Affine::NONE, &mut again);
    differs_or_runs(error, Setting::RunningStatistics, odd, world, &mut again);

    // An executor that does not do its work, on a tensor that is large enough for threads.
    let large = rows(1 << 17, CHANNELS);
    let (x, mut y) = (vec![1.0; large.len()], vec![7.0; large.len()]);
    let mut bn = SyncBatchNorm::<f32>::new(world, settings).unwrap();
    if mine {
        bn = bn.with_executor(Lazy);
    }
    match bn.forward(large, &x, None, Affine::NONE, &mut y).unwrap_err() {
        Error::Refused { rank, problem: Problem::Core(bn_core::Error::Executor { .. }) } => assert_eq!(rank, odd),
        other => panic!("{other}"),
    }
    assert!(y.iter().all(|&y| y == 7.0) && bn.num_batches() == 0);
}

/// An error where there is another rank to differ from; one rank alone may call what it likes.
#[track_caller]
fn differs_or_runs(result: Result<usize, Error>, what: Setting, odd: Rank, world: &SimpleCommunicator, y: &mut [f32]) {
    if world.size() == 1 {
        assert_eq!(result, Ok(0));
        y.fill(7.0);
    } else {
        differs(result, what, odd, world);
        assert!(y.iter().all(|&v| v == 7.0), "an error, and y was written");
    }
}

/// The ways that messages take are chosen by ranks and channels, and give the same bits.
fn exchanges(world: &SimpleCommunicator) {
    let x: Vec<f64> = (0..3 * 37).map(|i| (i as f64).sin() * 1e3 + f64::from(world.rank())).collect();
    let bits = [Exchange::Gather, Exchange::Scatter].map(|exchange| {
        let settings = Settings::new(37).with_exchange(exchange);
        let mut bn = SyncBatchNorm::<f64>::new(world, settings).unwrap();
        let mut y = vec![0.0; x.len()];
        bn.forward(rows(3, 37), &x, None, Affine::NONE, &mut y).unwrap();
        (y.iter().map(|y| y.to_bits()).collect::<Vec<_>>(), bn.moments().unwrap().to_vec())
    });
    assert!(bits[0] == bits[1]);
    assert_eq!(SyncBatchNorm::<f64>::new(world, Settings::new(1)).unwrap().exchange(), Exchange::Gather);
}
