//! Not a test but a program (`harness = false`): runs the set on one instruction set of this machine, and prints what the
//! programs in `embedded/` print of theirs. `ci/targets.sh` compares them.
//!
//! ```text
//! cargo test -p bn-conformance --features half --test hashes -- [portable|avx2|avx512]
//! ```

use bn_conformance::{ALL_WORDS, Outcome};
use bn_core::{Isa, IsaKind};
use std::process::ExitCode;

fn main() -> ExitCode {
    let isa = match std::env::args().nth(1) {
        Some(name) => Isa::by_name(&name),
        None => Some(Isa::detect()),
    };
    let Some(isa) = isa else {
        eprintln!("no such ISA here");
        return ExitCode::from(3);
    };
    let name = match isa.kind() {
        IsaKind::Portable => "portable",
        kind => kind.name(),
    };
    println!("isa {name}");
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
    println!("end");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
