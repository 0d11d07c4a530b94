//! Inference against the oracle; in place, and prepared: the same bits.
#![cfg_attr(feature = "libfuzzer", no_main)]

use bn_core::{Affine, Error, Op, Prepared, Run};
use bn_fuzz::{Input, by_type, check_inference, fuzz_target};
use bn_oracle::problem::{How, Number};

fuzz_target!(|input: Input| by_type!(input, go));

fn go<T: Number>(input: &Input) {
    let p = input.problem::<T>(input.small_shape());
    let y = p.inference(input.how());
    check_inference(&p, &y);
    let same = |got: &[T], what: &str| {
        assert!(got.iter().zip(&y).all(|(a, b)| a.bits() == b.bits()), "{what}, other bits");
    };
    same(&p.inference(How::default()), "another workspace or ISA");

    let bn = p.plan(input.how().isa);
    let affine = Affine { gamma: p.gamma.as_deref(), beta: p.beta.as_deref() };
    let residual = p.residual.as_deref();
    let mut words = vec![0; bn.workspace_min(Op::Inference)];
    let mut got = p.x.clone();
    let (mean, var) = (&p.running.0, &p.running.1);
    bn.inference_in_place(&mut got, residual, affine, mean, var, Run::serial(&mut words)).expect("legal");
    same(&got, "in place");

    let mut prepared = vec![Prepared::<T::Param>::default(); p.shape.channels()];
    match bn.prepare(affine, mean, var, &mut prepared) {
        Ok(()) => {
            bn.apply(&p.x, residual, &prepared, &mut got[..], Run::serial(&mut words)).expect("legal");
            same(&got, "prepared");
        }
        Err(Error::Unpreparable { channel }) => {
            assert!(channel < p.shape.channels());
            assert!(prepared.iter().all(|p| *p == Prepared::default()), "an error, and something written");
        }
        Err(e) => panic!("{e}"),
    }
}
