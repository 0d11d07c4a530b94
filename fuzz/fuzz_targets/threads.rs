//! The same bits on any number of threads, with any workspace and whatever the executor's habits. Serial
//! results are what the other targets check.
#![cfg_attr(feature = "libfuzzer", no_main)]

use bn_core::{Executor, Isa};
use bn_fuzz::{Input, by_type, fuzz_target};
use bn_oracle::problem::{How, Number};

fuzz_target!(|input: Input| by_type!(input, go));

/// Threads, one per ticket; or fewer that take tickets in turn; or one.
struct Threads {
    width: usize,
    at_once: usize,
}

impl Executor for Threads {
    fn width(&self) -> usize {
        self.width
    }
    fn run(&self, tickets: usize, task: &(dyn Fn() + Sync)) {
        let mut left = tickets;
        while left > 0 {
            let now = left.min(self.at_once);
            std::thread::scope(|s| {
                for _ in 1..now {
                    s.spawn(task);
                }
                task();
            });
            left -= now;
        }
    }
}

fn go<T: Number>(input: &Input) {
    // Below 2¹⁷ elements a call stays on its thread.
    let p = input.problem::<T>(input.shape(1 << 17, 3 << 16));
    let isa = Isa::detect();
    let threads = Threads { width: input.choice as usize % 9 + 1, at_once: (input.choice >> 8) as usize % 4 + 1 };
    let through = input.through(&p);
    let run = |how: How<'_>| {
        let forward = p.forward(how);
        let gradients = p.backward(how, &forward, through).bits();
        let inference: Vec<u64> = p.inference(how).into_iter().map(|y| y.bits()).collect();
        (forward.bits(), inference, gradients)
    };
    let serial = run(How { isa, ..How::default() });
    for workspace in [None, Some(0), Some(input.extra as usize), Some(16 * input.extra as usize)] {
        let got = run(How { isa, executor: &threads, workspace });
        assert!(got.0 == serial.0, "training differs with {} threads, workspace {workspace:?}", threads.width);
        assert!(got.1 == serial.1, "inference differs with {} threads, workspace {workspace:?}", threads.width);
        assert!(got.2 == serial.2, "gradients differ with {} threads, workspace {workspace:?}", threads.width);
    }
}
