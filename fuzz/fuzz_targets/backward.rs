//! Gradients, through any statistics, against the oracle; in place, and with any workspace: the same bits.
#![cfg_attr(feature = "libfuzzer", no_main)]

use bn_core::{BackwardInput, Gradients, Op, Run, Statistics};
use bn_fuzz::{Input, by_type, check_backward, fuzz_target};
use bn_oracle::problem::{How, Number, Scalar, Through};

fuzz_target!(|input: Input| by_type!(input, go));

fn go<T: Number>(input: &Input) {
    let p = input.problem::<T>(input.small_shape());
    let through = input.through(&p);
    let forward = p.forward(input.how());
    let made = p.backward(input.how(), &forward, through);
    check_backward(&p, &forward, &made, through);
    let bits = made.bits();
    assert!(p.backward(How::default(), &forward, through).bits() == bits, "another workspace or ISA, other bits");

    // dx over dy, and nothing else asked for; and the parameters' gradients alone.
    let statistics = match through {
        Through::Batch => Statistics::Batch(&forward.moments),
        Through::Running => Statistics::Running { mean: &p.running.0, var: &p.running.1 },
        Through::Rounded => return,
    };
    let bn = p.plan(input.how().isa);
    let mut words = vec![0; bn.workspace_min(Op::Backward) + input.extra as usize];
    let what = BackwardInput { x: &p.x, y: Some(&forward.y), dy: &[], gamma: p.gamma.as_deref(), statistics };
    let mut dx = p.dy.clone();
    bn.backward_in_place(&mut dx, what, Gradients::default(), Run::serial(&mut words)).expect("legal");
    assert!(dx.iter().zip(&made.dx).all(|(a, b)| a.bits() == b.bits()), "in place, other bits");

    let mut dgamma = made.dgamma.clone();
    dgamma.fill(<T::Param as Scalar>::of(f64::NAN));
    let alone = Gradients { dgamma: Some(&mut dgamma), ..Gradients::default() };
    bn.backward(BackwardInput { dy: &p.dy, ..what }, alone, Run::serial(&mut words)).expect("legal");
    assert!(dgamma.iter().zip(&made.dgamma).all(|(a, b)| a.bits() == b.bits()), "dgamma alone, other bits");
}
