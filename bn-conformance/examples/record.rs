//! Prints the hash of every case as this machine's portable code gives it: what `bits/` records.
//!
//! ```text
//! cargo run --release -p bn-conformance --features half --example record > bn-conformance/bits/1.txt
//! ```

use bn_conformance::{ALL_WORDS, Outcome};

fn main() {
    println!("# BITS_VERSION {}: element type, operation, problem, hash of the result.", bn_core::BITS_VERSION);
    bn_conformance::all(bn_core::Isa::PORTABLE, &mut vec![0; ALL_WORDS], &mut |case| {
        let Outcome::Hash(hash) = case.outcome else { panic!("{case:?}") };
        println!("{} {} {} {hash:016x}", case.element, case.operation, case.problem);
    });
}
