//! The same bits from every instruction set, with any workspace, also where elements are not finite.
#![cfg_attr(feature = "libfuzzer", no_main)]

use bn_core::Isa;
use bn_fuzz::{Input, by_type, fuzz_target};
use bn_oracle::problem::{How, Number, Scalar, Through};

fuzz_target!(|input: Input| by_type!(input, go));

fn go<T: Number>(input: &Input) {
    let mut p = input.problem::<T>(input.shape(1, 6000));
    let wild = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0];
    for i in 0..(input.choice % 5) as usize {
        let at = (input.choice as usize >> (8 * i)) % p.shape.len();
        let v = <T as Scalar>::of(wild[(input.choice as usize >> (3 * i)) % 4]);
        if i % 2 == 0 { p.x[at] = v } else { p.dy[at] = v }
    }
    let of = |how: How<'_>| {
        let forward = p.forward(how);
        let ways = [Through::Batch, Through::Rounded];
        let mut gradients = p.backward(how, &forward, ways[input.through as usize % 2]).bits();
        gradients.extend(p.backward(how, &forward, Through::Running).bits());
        let inference: Vec<u64> = p.inference(how).into_iter().map(|y| y.bits()).collect();
        (forward.bits(), inference, gradients)
    };
    let portable = of(How { isa: Isa::PORTABLE, ..How::default() });
    for isa in Isa::available() {
        let got = of(How { isa, ..input.how() });
        assert!(got.0 == portable.0, "training differs on {isa:?}");
        assert!(got.1 == portable.1, "inference differs on {isa:?}");
        assert!(got.2 == portable.2, "gradients differ on {isa:?}");
    }
}
