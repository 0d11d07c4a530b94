//! What the main operations take on a Cortex-M: instructions per element and per channel, and stack.
//!
//! Instructions are counted by an emulator whose clock is its count of instructions
//! (`-icount shift=0`: one per nanosecond), read by the SysTick timer at 25 MHz, so to 40
//! instructions. Stack is measured by painting what lies below it.

#![no_std]
#![no_main]

#[cfg(target_arch = "arm")]
mod cost {
    use bn_core::{
        Activation, Affine, BackwardInput, BatchNorm, GradSums, Gradients, Isa, Layout, Moments, Prepared, Run, Shape,
        Statistics,
    };
    use core::arch::asm;
    use core::hint::black_box;
    use runner::Line;

    /// Elements of the largest tensor.
    const ELEMENTS: usize = 1 << 14;
    const CHANNELS: usize = 64;
    const WORKSPACE: usize = 8192;

    struct Buffers {
        x: [f32; ELEMENTS],
        y: [f32; ELEMENTS],
        dy: [f32; ELEMENTS],
        parameters: [[f32; CHANNELS]; 6],
        prepared: [Prepared<f32>; CHANNELS],
        moments: [Moments; CHANNELS],
        sums: [GradSums; CHANNELS],
        workspace: [u64; WORKSPACE],
    }

    static mut BUFFERS: Buffers = Buffers {
        x: [0.0; ELEMENTS],
        y: [0.0; ELEMENTS],
        dy: [0.0; ELEMENTS],
        parameters: [[0.0; CHANNELS]; 6],
        prepared: [Prepared { mean: 0.0, scale: 0.0, shift: 0.0 }; CHANNELS],
        moments: [Moments::EMPTY; CHANNELS],
        sums: [GradSums { dbeta: 0.0, dot: 0.0 }; CHANNELS],
        workspace: [0; WORKSPACE],
    };

    #[derive(Clone, Copy)]
    enum Operation {
        Apply,
        Inference,
        Training,
        Moments,
        Normalize,
        Backward,
        BackwardSums,
        BackwardApply,
        BackwardFrozen,
        BackwardFromOutput,
    }

    const OPERATIONS: [(&str, Operation); 10] = [
        ("apply", Operation::Apply),
        ("inference", Operation::Inference),
        ("training", Operation::Training),
        ("moments", Operation::Moments),
        ("normalize", Operation::Normalize),
        ("backward", Operation::Backward),
        ("backward_sums", Operation::BackwardSums),
        ("backward_apply", Operation::BackwardApply),
        ("backward_frozen", Operation::BackwardFrozen),
        ("backward_from_output", Operation::BackwardFromOutput),
    ];

    /// Instructions, and bytes of stack.
    struct Cost {
        instructions: u32,
        stack: u32,
    }

    const SYST_CSR: *mut u32 = 0xe000_e010 as *mut u32;
    const SYST_RVR: *mut u32 = 0xe000_e014 as *mut u32;
    const SYST_CVR: *mut u32 = 0xe000_e018 as *mut u32;
    const PER_TICK: u32 = 40;
    /// The timer has 24 bits, and counts down.
    const MOST: u32 = 0x00ff_ffff;

    const PAINT: u32 = 0x5aa5_c33c;
    const PAINTED: usize = 64 * 1024;

    /// Measures a call.
    #[inline(never)]
    fn measure(call: &mut dyn FnMut()) -> Cost {
        let sp: usize;
        // SAFETY: the memory of the boards that this runs on goes on for megabytes below the stack;
        // the last words are left alone, as this function may keep something there. The timer is
        // nobody else's.
        unsafe {
            asm!("mov {}, sp", out(reg) sp);
            let (low, high) = ((sp - PAINTED) as *mut u32, (sp - 64) as *mut u32);
            let mut p = low;
            while p < high {
                p.write_volatile(PAINT);
                p = p.add(1);
            }
            SYST_RVR.write_volatile(MOST);
            SYST_CVR.write_volatile(0);
            SYST_CSR.write_volatile(5);
            let before = SYST_CVR.read_volatile();
            call();
            let after = SYST_CVR.read_volatile();
            SYST_CSR.write_volatile(0);
            let mut p = low;
            while p < high && p.read_volatile() == PAINT {
                p = p.add(1);
            }
            // The first reading is 0 until the timer has been loaded.
            let before = if before == 0 { MOST } else { before };
            Cost { instructions: (before - after) * PER_TICK, stack: (sp - p as usize) as u32 }
        }
    }

    /// Which values there are: ordinary ones, or such as lead through all the f64 paths.
    #[derive(Clone, Copy, PartialEq)]
    enum Values {
        Ordinary,
        Extreme,
    }

    fn cost(op: Operation, values: Values, layout: Layout, batch: usize, channels: usize, spatial: usize) -> Cost {
        // SAFETY: the only thread, and no other reference lives across calls of this.
        let b = unsafe { &mut *(&raw mut BUFFERS) };
        let n = batch * channels * spatial;
        for i in 0..n {
            let noise = ((i as u32).wrapping_mul(2_654_435_769) >> 16) as i32 - 32768;
            let channel = if layout == Layout::Nchw { i / spatial % channels } else { i % channels };
            let scale = match (values, channel % 4) {
                (Values::Extreme, 1) => 1.0e33,
                (Values::Extreme, 2) => 1.0e-42,
                (Values::Extreme, 3) => 0.0,
                _ => 1.0 / 65536.0,
            };
            (b.x[i], b.dy[i]) = (noise as f32 * scale, (noise ^ 0x555) as f32 * scale);
        }
        let [gamma, beta, mean, var, dgamma, dbeta] = &mut b.parameters;
        for (c, var) in var.iter_mut().enumerate() {
            (gamma[c], beta[c], mean[c], *var) = (1.25, 0.5, 0.25, 2.0);
            if values == Values::Extreme && c % 4 == 0 {
                gamma[c] = 1.0e38;
            }
        }
        let (gamma, beta, mean, var) = (&gamma[..channels], &beta[..channels], &mean[..channels], &var[..channels]);
        let (x, y, dy) = (&mut b.x[..n], &mut b.y[..n], &b.dy[..n]);
        let (prepared, moments) = (&mut b.prepared[..channels], &mut b.moments[..channels]);
        let (dgamma, dbeta) = (&mut dgamma[..channels], &mut dbeta[..channels]);
        let workspace = &mut b.workspace[..];
        let affine = Affine::new(gamma, beta);
        let bn = Shape::new(layout, batch, channels, &[spatial])
            .and_then(|shape| BatchNorm::<f32>::new(shape, 1e-5))
            .and_then(|bn| bn.with_activation(black_box(Activation::Relu)))
            .unwrap()
            .with_isa(Isa::PORTABLE);
        let prepared_well = bn.prepare(affine, mean, var, prepared);
        let mut good = true;
        let cost = match op {
            Operation::Apply => {
                if prepared_well.is_err() {
                    prepared.fill(Prepared { mean: 0.25, scale: 1.0, shift: 0.5 });
                }
                measure(&mut || good = bn.apply(x, None, prepared, &mut *y, Run::serial(workspace)).is_ok())
            }
            Operation::Inference => measure(&mut || {
                good = bn.inference(x, None, affine, mean, var, &mut *y, Run::serial(workspace)).is_ok();
            }),
            Operation::Training => measure(&mut || {
                good = bn.forward_training(x, None, affine, &mut *y, moments, Run::serial(workspace)).is_ok();
            }),
            Operation::Moments => {
                moments.fill(Moments::EMPTY);
                measure(&mut || good = bn.moments(x, moments, Run::serial(workspace)).is_ok())
            }
            Operation::Normalize => {
                good = bn.forward_training(x, None, affine, &mut *y, moments, Run::serial(workspace)).is_ok();
                measure(&mut || {
                    good &= bn.normalize(x, None, affine, moments, &mut *y, Run::serial(workspace)).is_ok();
                })
            }
            _ => {
                good = bn.forward_training(x, None, affine, &mut *y, moments, Run::serial(workspace)).is_ok();
                let (y, moments, sums) = (&*y, &*moments, &mut b.sums[..channels]);
                // SAFETY: dx is a place of its own, unused until now.
                let dx = unsafe { &mut (&mut *(&raw mut DX))[..n] };
                let statistics = match op {
                    Operation::BackwardFrozen => Statistics::Running { mean, var },
                    _ => Statistics::Batch(moments),
                };
                let gamma = Some(gamma);
                match op {
                    Operation::BackwardSums => measure(&mut || {
                        let input = BackwardInput { x, y: Some(y), dy, gamma, statistics };
                        good &= bn.backward_sums(input, sums, Run::serial(workspace)).is_ok();
                    }),
                    Operation::BackwardApply => {
                        let input = BackwardInput { x, y: Some(y), dy, gamma, statistics };
                        good &= bn.backward_sums(input, sums, Run::serial(workspace)).is_ok();
                        measure(&mut || {
                            let output = Gradients { dx: Some((&mut *dx).into()), ..Default::default() };
                            let input = BackwardInput { x, y: Some(y), dy, gamma, statistics };
                            good &= bn.backward_apply(input, sums, output, Run::serial(workspace)).is_ok();
                        })
                    }
                    Operation::BackwardFromOutput => {
                        let leaky = Activation::LeakyRelu { slope: 0.25 };
                        let bn = bn.with_activation(black_box(leaky)).unwrap();
                        measure(&mut || {
                            let output = Gradients { dx: Some((&mut *dx).into()), ..Default::default() };
                            let run = Run::serial(workspace);
                            good &= bn.backward_from_output(y, dy, affine, moments, output, run).is_ok();
                        })
                    }
                    _ => measure(&mut || {
                        let output = Gradients {
                            dx: Some((&mut *dx).into()),
                            dresidual: None,
                            dgamma: Some(&mut *dgamma),
                            dbeta: Some(&mut *dbeta),
                        };
                        let input = BackwardInput { x, y: Some(y), dy, gamma, statistics };
                        good &= bn.backward(input, output, Run::serial(workspace)).is_ok();
                    }),
                }
            }
        };
        assert!(good, "the operation was refused");
        cost
    }

    static mut DX: [f32; ELEMENTS] = [0.0; ELEMENTS];

    pub fn run() {
        for (name, op) in OPERATIONS {
            for (layout_name, layout) in [("nchw", Layout::Nchw), ("nhwc", Layout::Nhwc)] {
                let of = |channels, m| cost(op, Values::Ordinary, layout, 1, channels, m).instructions;
                // Costs are a + channels·b + elements·c: three sizes tell b and c.
                let (small, long, wide) = (of(16, 256), of(16, 512), of(32, 256));
                let per_element = (long - small) as f32 / (16.0 * 256.0);
                let per_channel = (wide - small) as f32 / 16.0 - 256.0 * per_element;
                let mut stack = 0;
                for values in [Values::Ordinary, Values::Extreme] {
                    for (batch, channels, spatial) in [(1, 16, 256), (5, 3, 33), (9, 17, 7), (3, 2, 600)] {
                        stack = stack.max(cost(op, values, layout, batch, channels, spatial).stack);
                    }
                }
                let mut line = Line::new();
                for word in ["cost ", name, " ", layout_name, " "] {
                    line.text(word);
                }
                line.decimal((10.0 * per_element) as u32);
                line.text(" ");
                line.decimal(per_channel as u32);
                line.text(" ");
                line.decimal(stack);
                line.print();
            }
        }
    }
}

#[cfg(target_arch = "arm")]
#[unsafe(no_mangle)]
extern "Rust" fn program(_: bn_core::Isa) -> bool {
    cost::run();
    true
}

// Nothing to measure elsewhere.
#[cfg(not(target_arch = "arm"))]
runner::program!(|_, _, _| ());
