//! Not a test but a program (`harness = false`): runs the set on one instruction set of this machine, and prints what the
//! programs in `embedded/` print of theirs. `ci/targets.sh` compares them. Or prints what `bits/` records, which is what the
//! portable code gives.
//!
//! ```text
//! cargo test -p bn-conformance --features half --test hashes -- [portable|avx2|avx512]
//! cargo test -p bn-conformance --features half --test hashes -- record > bn-conformance/bits/1.txt
//! ```

use bn_conformance::{ALL_WORDS, Outcome};
use bn_core::{BITS_VERSION, Isa};
use std::process::ExitCode;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let record = argument.as_deref() == Some("record");
    let isa = match argument {
        _ if record => Some(Isa::PORTABLE),
        Some(name) => Isa::by_name(&name),
        None => Some(Isa::detect()),
    };
    let Some(isa) = isa else {
        eprintln!("no such ISA here");
        return ExitCode::from(3);
    };
    if record {
        println!("# BITS_VERSION {BITS_VERSION}: element type, operation, problem, hash of the result.");
    } else {
        println!("isa {}", isa.kind().name());
    }
    let mut good = true;
    bn_conformance::all(isa, &mut vec![0; ALL_WORDS], &mut |case| {
        print!("{} {} {} ", case.element, case.operation, case.problem);
        match case.outcome {
            Outcome::Hash(hash) => println!("{hash:016x}"),
            other => {
                println!("{other:?}");
                good = false;
            }
        }
    });
    if !record {
        println!("end");
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
