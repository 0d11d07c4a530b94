//! The conformance set, with memory of a fixed size, so that its hash is one number.

use bn_conformance::{Case, Outcome, SMALL_WORDS, of_element};
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
    of_element::<f32>(isa, &mut arena, &mut report);
    #[cfg(feature = "f64")]
    of_element::<f64>(isa, &mut arena, &mut report);
    #[cfg(feature = "half")]
    {
        of_element::<half::f16>(isa, &mut arena, &mut report);
        of_element::<half::bf16>(isa, &mut arena, &mut report);
    }
    hash
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
