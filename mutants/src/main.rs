//! A mutation test of bn-core: does a test fail when the code is wrong?
//!
//! A mutant is the code with one change (another operator, a function that returns at once, a match arm that is never
//! taken: those of cargo-mutants, and in the bodies of the crate's macros too). To build each would take more than a
//! minute, so a copy of the repository gets all that are drawn, each behind a question to an environment variable, and
//! the tests are built once. Then every test is run once to see how long it takes and which mutants it comes by; and for
//! each mutant those that come by it, the fast ones first, until one fails.
//!
//! See README.md for how to run it.

mod find;
mod run;
mod splice;
mod tree;

use anyhow::{Context, Result};
use clap::Parser;
use find::Mutant;
use run::{Outcome, Test};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[derive(Parser)]
#[command(about = "A mutation test of bn-core")]
struct Arguments {
    /// How many mutants to draw, of those there are.
    #[arg(long, default_value_t = 460)]
    count: usize,
    /// Which ones.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only in files whose path (below bn-core/src) has this in it.
    #[arg(long, default_value = "")]
    file: String,
    /// Elements one by one, as on bare metal: `--cfg bn_single`, with the tests of bn-core that the gate runs so.
    #[arg(long)]
    single: bool,
    /// Only these numbers of the draw.
    #[arg(long, value_delimiter = ',')]
    only: Vec<usize>,
    /// Tests that take longer, in seconds, run only for the mutants that the others leave.
    #[arg(long, default_value_t = 2.0)]
    quick: f64,
    /// Mutants at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// No new mutant after so many minutes.
    #[arg(long, default_value_t = 600)]
    minutes: u64,
    /// Only lists what is drawn.
    #[arg(long)]
    list: bool,
}

/// Files that are run only with `--single`,
const SINGLE: [&str; 2] = ["layout/scalar.rs", "lanes/single.rs"];
/// and functions of others.
const ALSO_SINGLE: [&str; 4] = ["Place::single", "Place::at", "Place::run", "take_in"];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().context("a parent")?.to_path_buf();
    let work = repository.join(if arguments.single { "target/mutants/single" } else { "target/mutants" });
    let tree = tree::Tree {
        copy: work.join("tree"),
        target: work.join("build"),
        flags: String::from(if arguments.single { "--cfg bn_single" } else { "" }),
        repository,
    };
    let found = find::find(&tree.sources(), &tree.cfg()?)?;
    let total = found.mutants.len();
    let mut drawn = found.mutants;
    drawn.retain(|m| {
        let single = SINGLE.contains(&m.file.as_str());
        let also = arguments.single && ALSO_SINGLE.contains(&m.function.as_str());
        (single == arguments.single || also) && m.file.contains(&arguments.file)
    });
    let eligible = drawn.len();
    fastrand::Rng::with_seed(arguments.seed).shuffle(&mut drawn);
    drawn.truncate(arguments.count);
    drawn.iter_mut().enumerate().for_each(|(i, m)| m.id = i + 1);
    let count = drawn.len();
    println!("{total} mutants, and {} in constants; {eligible} to draw from; {count} drawn", found.in_consts);
    if arguments.list {
        drawn.iter().for_each(|m| println!("{} {m}", m.id));
        return Ok(());
    }

    let not_viable = tree.settle(&mut drawn, &work.join("not-viable.json"))?;
    println!("{not_viable} do not compile; {} do", drawn.len());
    let targets: &[&str] = if arguments.single {
        &[
            "-p", "bn-core", "--test", "sizes", "--test", "strides", "--test", "tasks", "--test", "extremes", "--test",
            "limits",
        ]
    } else {
        &["-p", "bn-core", "-p", "bn-std", "-p", "bn-oracle", "-p", "bn-conformance", "--lib", "--test", "*"]
    };
    let start = Instant::now();
    let mut tests = tree.tests(targets)?;
    println!("built in {:.0?}", start.elapsed());
    run::measure(&mut tests, &work, arguments.jobs)?;
    tests.sort_by(|a, b| a.time.total_cmp(&b.time));
    let time: f64 = tests.iter().map(|t| t.time).sum();
    let slow = tests.split_off(tests.partition_point(|t| t.time < arguments.quick));
    println!("{} tests, which take {time:.0} s; {} of them are slow", tests.len() + slow.len(), slow.len());

    drawn.retain(|m| arguments.only.is_empty() || arguments.only.contains(&m.id));
    let log = Mutex::new(std::fs::File::options().create(true).append(true).open(work.join("results.jsonl"))?);
    let start = Instant::now();
    let judge_all = |drawn: &[Mutant], tests: &[Test]| {
        run::in_parallel(drawn.len(), arguments.jobs, |i| {
            if start.elapsed() > Duration::from_secs(60 * arguments.minutes) {
                return Ok(None);
            }
            let outcome = judge(&drawn[i], tests)?;
            println!("{} {}: {outcome}", drawn[i].id, drawn[i]);
            let mut line = serde_json::to_value(&drawn[i])?;
            line["outcome"] = json!(outcome);
            writeln!(log.lock().expect("no panic"), "{line}")?;
            Ok(Some(outcome))
        })
        .into_iter()
        .collect::<Result<Vec<_>>>()
    };
    let mut outcomes = judge_all(&drawn, &tests)?;
    println!("\nSlow tests, for those that are left:");
    let open = |o: &Option<String>| o.as_ref().is_some_and(|o| !o.starts_with("caught"));
    let left: Vec<usize> = (0..drawn.len()).filter(|&i| open(&outcomes[i])).collect();
    let again: Vec<Mutant> = left.iter().map(|&i| drawn[i].clone()).collect();
    for (i, outcome) in left.into_iter().zip(judge_all(&again, &slow)?) {
        let quick = outcomes[i].take().unwrap_or_default();
        outcomes[i] = Some(match outcome {
            Some(o) if o.starts_with("caught") => o,
            Some(o) => format!("{quick}, and {o} of the slow ones"),
            None => format!("{quick}; the slow ones were not run"),
        });
    }
    report(&drawn, outcomes);
    Ok(())
}

/// What became of a mutant, and which test saw it.
fn judge(mutant: &Mutant, tests: &[Test]) -> Result<String> {
    let id = mutant.id.to_string();
    let mut coming_by = 0;
    for test in tests.iter().filter(|t| t.reaches.contains(&mutant.id)) {
        coming_by += 1;
        let limit = Duration::from_secs_f64((5.0 * test.time).max(20.0));
        match run::run(test, &[("BN_MUTANT", &id)], limit)? {
            Outcome::Passed => {}
            Outcome::Failed => return Ok(format!("caught by {}", test.title())),
            Outcome::TimedOut => return Ok(format!("caught (time) by {}", test.title())),
        }
    }
    Ok(if coming_by == 0 { "not run".into() } else { format!("not caught by {coming_by} tests") })
}

fn report(drawn: &[Mutant], outcomes: Vec<Option<String>>) {
    let (mut by_file, mut survivors, mut run, mut caught) = (BTreeMap::new(), vec![], 0, 0);
    for (mutant, outcome) in drawn.iter().zip(outcomes) {
        let Some(outcome) = outcome else { continue };
        let file: &mut (usize, usize) = by_file.entry(&mutant.file).or_default();
        (run, file.1) = (run + 1, file.1 + 1);
        if outcome.starts_with("caught") {
            (caught, file.0) = (caught + 1, file.0 + 1);
        } else {
            survivors.push(format!("{} {mutant}: {outcome}", mutant.id));
        }
    }
    println!("\nCaught, by file:");
    for (file, (caught, run)) in by_file {
        println!("{caught:4} of {run:4}  {file}");
    }
    println!("\nNot caught:");
    survivors.iter().for_each(|s| println!("{s}"));
    println!("\n{caught} of {run} caught ({:.1} %)", 100.0 * caught as f64 / run.max(1) as f64);
}
