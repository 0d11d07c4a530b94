//! The executor on rayon: every ticket once, from wherever it is called.

mod common;

use bn_core::{Activation, Executor, Serial, Shape};
use bn_std::{BatchNormLayer, Rayon};
use common::{Random, assert_bits};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

fn count(executor: &dyn Executor, tickets: usize) -> usize {
    let count = AtomicUsize::new(0);
    executor.run(tickets, &|| {
        count.fetch_add(1, Relaxed);
    });
    count.into_inner()
}

#[test]
fn every_ticket_runs_once() {
    let (one, three) = (pool(1), pool(3));
    let shared = Arc::new(pool(2));
    for executor in [Rayon::global(), Rayon::default(), Rayon::on(&one), Rayon::on(&three), Rayon::shared(shared)] {
        for tickets in [0, 1, 2, 3, 7, 16, 1000] {
            assert_eq!(count(&executor, tickets), tickets);
            // From inside of the same pool, and of another one.
            assert_eq!(three.install(|| count(&executor, tickets)), tickets);
        }
    }
}

#[test]
fn width_is_that_of_the_pool() {
    let (two, five) = (pool(2), pool(5));
    assert_eq!(Rayon::on(&five).width(), 5);
    assert_eq!(two.install(|| Rayon::on(&five).width()), 5);
    assert_eq!(Rayon::global().width(), rayon::current_num_threads());
    assert_eq!(five.install(|| Rayon::global().width()), 5);
}

/// Tickets run on the calling thread and on the pool's others: each waits for the others.
#[test]
fn tickets_run_at_once_on_the_threads_of_the_pool() {
    let three = pool(3);
    let (barrier, ids) = (std::sync::Barrier::new(3), Mutex::new(HashSet::new()));
    Rayon::on(&three).run(3, &|| {
        barrier.wait();
        ids.lock().unwrap().insert(std::thread::current().id());
    });
    let ids = ids.into_inner().unwrap();
    assert!(ids.len() == 3 && ids.contains(&std::thread::current().id()));
}

/// y, dx and what the layer has become, after a step with this seed.
fn step(mut bn: BatchNormLayer<f32>, seed: u64) -> Vec<f32> {
    let shape = Shape::nhwc(6, 6, &[64, 64]).unwrap();
    let mut random = Random(seed);
    let (x, dy) = (random.values::<f32>(shape.len(), 5.0), random.values::<f32>(shape.len(), -1.0));
    let (mut y, mut dx) = (x.clone(), x.clone());
    bn.forward(shape, &x, None, &mut y[..]).unwrap();
    bn.backward(&x, Some(&y), &dy, Some((&mut dx[..]).into()), None).unwrap();
    [&y[..], &dx, bn.running_mean(), bn.running_var(), bn.grad_gamma().unwrap(), bn.grad_beta().unwrap()].concat()
}

fn layer() -> BatchNormLayer<f32> {
    BatchNormLayer::new(6).unwrap().with_activation(Activation::Relu).unwrap()
}

/// More layers than threads, each inside a task of the pool that it runs on itself: no deadlock, and
/// the bits of a single thread.
#[test]
fn layers_inside_a_parallel_region() {
    let expected: Vec<_> = (0..12).map(|seed| step(layer().with_executor(Serial), seed)).collect();
    for threads in [1, 2, 3, 16] {
        let outer = Arc::new(pool(threads));
        let inner = Arc::new(pool(2));
        for nested in [Rayon::global(), Rayon::shared(Arc::clone(&outer)), Rayon::shared(inner)] {
            let got: Vec<_> = outer.install(|| {
                (0..12).into_par_iter().map(|seed| step(layer().with_executor(nested.clone()), seed)).collect()
            });
            for (got, expected) in got.iter().zip(&expected) {
                assert_bits("a nested layer", got, expected);
            }
        }
    }
}

/// Pools that call each other back and forth.
#[test]
fn pools_inside_pools() {
    let (a, b) = (pool(2), pool(1));
    let total = AtomicUsize::new(0);
    Rayon::on(&a).run(4, &|| {
        Rayon::on(&b).run(3, &|| {
            total.fetch_add(count(&Rayon::on(&a), 5), Relaxed);
        });
    });
    assert_eq!(total.into_inner(), 4 * 3 * 5);
}

/// A panic in a task comes out, and the pool lives on.
#[test]
fn panics_come_out() {
    let two = pool(2);
    let executor = Rayon::on(&two);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        executor.run(4, &|| std::panic::resume_unwind(Box::new("on purpose")));
    }));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"on purpose"));
    assert_eq!(count(&executor, 4), 4);
}
