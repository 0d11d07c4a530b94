//! The conformance set, with memory of a fixed size, so that its hash is one number.

use bn_conformance::{Case, Element, Outcome, Report, SMALL_WORDS};
use bn_core::Isa;

/// A hash of the bits of all results: as [`bn_conformance::small`] has it, over the element types of this
/// build.
pub(crate) fn hash(isa: Isa) -> u64 {
    #[cfg(feature = "std")]
    let mut arena = std::vec![0; SMALL_WORDS];
    #[cfg(not(feature = "std"))]
    let mut arena = [0; SMALL_WORDS];
    // FNV-1a.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut report = |case: Case| {
        if let Outcome::Hash(h) = case.outcome {
            for b in h.to_le_bytes() {
                hash = (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    };
    element::<f32>(isa, &mut arena, true, &mut report);
    #[cfg(feature = "f64")]
    element::<f64>(isa, &mut arena, true, &mut report);
    #[cfg(feature = "half")]
    {
        // Their statistics are those of f32.
        element::<half::f16>(isa, &mut arena, false, &mut report);
        element::<half::bf16>(isa, &mut arena, false, &mut report);
    }
    hash
}

fn element<T: Element>(isa: Isa, arena: &mut [u64], statistics: bool, report: Report<'_>) {
    bn_conformance::inference::<T>(isa, arena, report);
    bn_conformance::training::<T>(isa, arena, report);
    if statistics {
        bn_conformance::running::<T>(arena, report);
    }
    bn_conformance::backward::<T>(isa, arena, report);
}

#[cfg(test)]
mod tests {
    #[cfg(all(feature = "f64", feature = "half"))]
    #[test]
    fn it_is_the_hash_of_the_set() {
        let isa = bn_core::Isa::detect();
        assert_eq!(super::hash(isa), bn_conformance::small(isa, &mut [0; bn_conformance::SMALL_WORDS]));
    }
}
