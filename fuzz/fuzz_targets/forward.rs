//! Training against the oracle; in place, by stages and with any workspace: the same bits. NaN and infinity
//! stay in their channel.
#![cfg_attr(feature = "libfuzzer", no_main)]

use bn_core::{Affine, Moments, Op, Run};
use bn_fuzz::{Input, by_type, check_forward, fuzz_target};
use bn_oracle::problem::{Forward, How, Number, Scalar};

fuzz_target!(|input: Input| by_type!(input, go));

fn go<T: Number>(input: &Input) {
    let p = input.problem::<T>(input.small_shape());
    let made = p.forward(input.how());
    check_forward(&p, &made);
    let bits = made.bits();
    assert!(p.forward(How::default()).bits() == bits, "another workspace or ISA, other bits");

    let bn = p.plan(input.how().isa);
    let affine = Affine { gamma: p.gamma.as_deref(), beta: p.beta.as_deref() };
    let mut words = vec![0; bn.workspace_min(Op::ForwardTraining)];
    let residual = p.residual.as_deref();
    let mut moments = vec![Moments { count: 1, mean: 2.0, m2: 3.0 }; p.shape.channels()];
    let mut y = p.x.clone();
    bn.forward_training_in_place(&mut y, residual, affine, &mut moments, Run::serial(&mut words)).expect("legal");
    assert!(Forward { y, moments }.bits() == bits, "in place, other bits");

    let mut moments = vec![Moments::EMPTY; p.shape.channels()];
    let mut y = p.x.clone();
    bn.moments(&p.x, &mut moments, Run::serial(&mut words)).expect("legal");
    bn.normalize(&p.x, residual, affine, &moments, &mut y[..], Run::serial(&mut words)).expect("legal");
    assert!(Forward { y, moments }.bits() == bits, "by stages, other bits");

    // One element that is no number spoils its channel and no other.
    let mut spoilt = p.clone();
    let at = input.choice as usize % p.shape.len();
    spoilt.x[at] = <T as Scalar>::of([f64::NAN, f64::INFINITY, f64::NEG_INFINITY][input.choice as usize % 3]);
    let after = spoilt.forward(input.how());
    for c in 0..p.shape.channels() {
        if p.places(c).any(|i| i == at) {
            let m = after.moments[c];
            assert!(!(m.mean.is_finite() && m.m2.is_finite()), "{m:?}");
            continue;
        }
        assert_eq!(after.moments[c], made.moments[c], "channel {c}");
        assert!(p.places(c).all(|i| after.y[i].bits() == made.y[i].bits()), "channel {c}");
    }
}
