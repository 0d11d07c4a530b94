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
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tree::Tree;

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

/// A way to build bn-core, and the tests that are run so.
struct Build {
    name: &'static str,
    /// `--cfg` flags.
    flags: &'static str,
    tests: &'static [&'static str],
}

/// As on any machine; and element by element, as on bare metal, with those tests that the gate runs so.
const BUILDS: [Build; 2] = [
    Build {
        name: "vectors",
        flags: "",
        tests: &["-p", "bn-core", "-p", "bn-std", "-p", "bn-oracle", "-p", "bn-conformance", "--lib", "--test", "*"],
    },
    Build {
        name: "single",
        flags: "--cfg bn_single",
        tests: &[
            "-p", "bn-core", "--test", "sizes", "--test", "strides", "--test", "tasks", "--test", "extremes", "--test",
            "limits",
        ],
    },
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().context("a parent")?.to_path_buf();
    let work = repository.join("target/mutants");
    let trees = BUILDS.each_ref().map(|b| Tree {
        copy: work.join(b.name).join("tree"),
        target: work.join(b.name).join("build"),
        flags: b.flags.to_string(),
        repository: repository.clone(),
    });
    // Those of the first build, and what only the others have.
    let (mut all, mut has, mut in_consts) = (vec![], vec![], 0);
    for tree in &trees {
        let found = find::find(&tree.sources(), &tree.cfg()?)?;
        let names: HashSet<String> = found.mutants.iter().map(Mutant::to_string).collect();
        all.extend(
            found.mutants.into_iter().filter(|m| !has.iter().any(|h: &HashSet<String>| h.contains(&m.to_string()))),
        );
        has.push(names);
        in_consts = in_consts.max(found.in_consts);
    }
    let total = all.len();
    let mut drawn = all;
    drawn.retain(|m| m.file.contains(&arguments.file));
    let eligible = drawn.len();
    fastrand::Rng::with_seed(arguments.seed).shuffle(&mut drawn);
    drawn.truncate(arguments.count);
    drawn.iter_mut().enumerate().for_each(|(i, m)| m.id = i + 1);
    println!("{total} mutants, and {in_consts} in constants; {eligible} to draw from; {} drawn", drawn.len());
    if arguments.list {
        drawn.iter().for_each(|m| println!("{} {m}", m.id));
        return Ok(());
    }
    let log = Mutex::new(std::fs::File::options().create(true).append(true).open({
        std::fs::create_dir_all(&work)?;
        work.join("results.jsonl")
    })?);
    let start = Instant::now();
    // What became of each, where it compiles.
    let mut outcomes: BTreeMap<usize, String> = BTreeMap::new();
    let wanted = |m: &Mutant| arguments.only.is_empty() || arguments.only.contains(&m.id);
    for ((build, tree), has) in BUILDS.iter().zip(&trees).zip(&has) {
        let work = work.join(build.name);
        let mut mutants: Vec<Mutant> = drawn.iter().filter(|m| has.contains(&m.to_string())).cloned().collect();
        let not_viable = tree.settle(&mut mutants, &work.join("not-viable.json"))?;
        println!("\n{}: {not_viable} do not compile; {} do", build.name, mutants.len());
        let built = Instant::now();
        let mut tests = tree.tests(build.tests)?;
        println!("built in {:.0?}", built.elapsed());
        run::measure(&mut tests, &work, arguments.jobs)?;
        tests.sort_by(|a, b| a.time.total_cmp(&b.time));
        let time: f64 = tests.iter().map(|t| t.time).sum();
        let slow = tests.split_off(tests.partition_point(|t| t.time < arguments.quick));
        println!("{} tests, which take {time:.0} s; {} of them are slow", tests.len() + slow.len(), slow.len());
        for tests in [&tests, &slow] {
            // Those that are wanted and that nothing has caught.
            let caught = |o: &String| o.starts_with("caught");
            let open: Vec<&Mutant> =
                mutants.iter().filter(|m| wanted(m) && !outcomes.get(&m.id).is_some_and(caught)).collect();
            println!("{} tests for {} mutants:", tests.len(), open.len());
            let judged = run::in_parallel(open.len(), arguments.jobs, |i| -> Result<Option<String>> {
                if start.elapsed() > Duration::from_secs(60 * arguments.minutes) {
                    return Ok(None);
                }
                let outcome = judge(open[i], tests)?;
                println!("{} {}: {outcome}", open[i].id, open[i]);
                let mut line = serde_json::to_value(open[i])?;
                (line["build"], line["outcome"]) = (json!(build.name), json!(outcome));
                writeln!(log.lock().expect("no panic"), "{line}")?;
                Ok(Some(outcome))
            });
            for (m, outcome) in open.iter().zip(judged) {
                let outcome = outcome?.unwrap_or_else(|| "no time left".into());
                let before = outcomes.remove(&m.id).filter(|_| !caught(&outcome)).map(|b| format!("{b}, "));
                outcomes.insert(m.id, before.unwrap_or_default() + &outcome);
            }
        }
    }
    report(&drawn, &outcomes);
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

fn report(drawn: &[Mutant], outcomes: &BTreeMap<usize, String>) {
    let (mut by_file, mut survivors, mut caught) = (BTreeMap::new(), vec![], 0);
    for mutant in drawn {
        let Some(outcome) = outcomes.get(&mutant.id) else { continue };
        let file: &mut (usize, usize) = by_file.entry(&mutant.file).or_default();
        file.1 += 1;
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
    let (run, not) = (outcomes.len(), drawn.len() - outcomes.len());
    println!(
        "\n{caught} of {run} caught ({:.1} %); {not} not run or not viable",
        100.0 * caught as f64 / run.max(1) as f64
    );
}
