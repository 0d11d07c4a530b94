//! The set on this machine: nothing refused, nothing skipped, and the same on each of its ISAs.

use bn_conformance::{ALL_WORDS, Case, Outcome, SMALL_WORDS};
use bn_core::Isa;

fn run(isa: Isa, words: usize) -> (Vec<Case>, u64) {
    let mut cases = Vec::new();
    let total = bn_conformance::all(isa, &mut vec![0; words], &mut |c| cases.push(c));
    (cases, total)
}

#[test]
fn nothing_is_refused_or_skipped() {
    let (cases, _) = run(Isa::PORTABLE, ALL_WORDS);
    for c in cases {
        assert!(matches!(c.outcome, Outcome::Hash(_)), "{c:?}");
    }
}

#[test]
fn every_isa_gives_the_same_bits() {
    let portable = run(Isa::PORTABLE, ALL_WORDS);
    for isa in Isa::available() {
        let other = run(isa, ALL_WORDS);
        for (a, b) in portable.0.iter().zip(&other.0) {
            assert_eq!(a, b, "{isa:?}");
        }
        assert_eq!(portable.1, other.1);
    }
}

/// Less memory leaves cases out and changes none: a workspace of any size gives the same bits.
#[test]
fn memory_changes_no_hash() {
    let (all, _) = run(Isa::detect(), ALL_WORDS);
    let (small, _) = run(Isa::detect(), SMALL_WORDS);
    let hashes = small.iter().zip(&all).filter(|(s, _)| s.outcome != Outcome::Skipped);
    let mut n = 0;
    for (s, a) in hashes {
        assert_eq!(s, a);
        n += 1;
    }
    assert!(n * 2 > all.len(), "{n} of {} cases fit into {SMALL_WORDS} words", all.len());
}

/// The names tell cases apart.
#[test]
fn cases_have_names_of_their_own() {
    let (cases, _) = run(Isa::detect(), ALL_WORDS);
    let names: std::collections::HashSet<_> = cases.iter().map(|c| (c.element, c.operation, c.problem)).collect();
    assert_eq!(names.len(), cases.len());
}

/// The bits are those of the record, whatever the machine: who changes them raises
/// [`bn_core::BITS_VERSION`], says so in CHANGELOG.md, and makes a new record
/// (`examples/record.rs`).
#[test]
fn bits_are_those_of_the_record() {
    let record = include_str!("../bits/1.txt");
    assert!(record.starts_with(&format!("# BITS_VERSION {}:", bn_core::BITS_VERSION)));
    let mut recorded: std::collections::HashMap<&str, &str> =
        record.lines().skip(1).map(|line| line.rsplit_once(' ').unwrap()).collect();
    let (cases, _) = run(Isa::detect(), ALL_WORDS);
    let elements: std::collections::HashSet<_> = cases.iter().map(|c| c.element).collect();
    for c in cases {
        let name = format!("{} {} {}", c.element, c.operation, c.problem);
        let Outcome::Hash(hash) = c.outcome else { panic!("{c:?}") };
        let expected = recorded.remove(name.as_str());
        assert_eq!(expected, Some(format!("{hash:016x}").as_str()), "{name}: other bits than the record's");
    }
    // Types that this build has not stay; nothing else does.
    recorded.retain(|name, _| elements.contains(name.split(' ').next().unwrap_or_default()));
    assert!(recorded.is_empty(), "recorded, and not run: {recorded:?}");
}
