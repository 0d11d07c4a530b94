//! Shows on handwritten digits what batch normalization is good for, and what it is not: figures and a page of numbers.
//!
//! ```text
//! cargo run --release --example why_it_works
//! cargo run --release --example why_it_works -- --help
//! ```
//!
//! The experiments are in `why/`; the network and its training are those of the example `digits`, deeper. The same
//! seeds write the same files.

mod net;
mod why;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use clap::builder::RangedU64ValueParser;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use why::report::{Section, markdown};
use why::{Lab, averages, grids, landscape};

/// Trains small networks on handwritten digits with and without batch normalization, at many settings, and writes
/// figures (SVG) and a summary (README.md) of what shows.
#[derive(Parser, Debug)]
#[command(name = "why_it_works", allow_negative_numbers = true)]
struct Args {
    /// Folder to write into; it is made if there is none [default: docs/why, with --quick target/why-quick]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Few points and short training: seconds instead of minutes, to see that it runs
    #[arg(long)]
    quick: bool,

    /// Runs of each setting, each with its own split, weights and order of batches [default: 5, with --quick 2]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=100))]
    seeds: Option<usize>,

    /// The first seed; the next ones count up
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Args {
    fn out(&self) -> &Path {
        // A quick look shall not replace the real thing.
        self.out.as_deref().unwrap_or(Path::new(if self.quick { "target/why-quick" } else { "docs/why" }))
    }

    fn seeds(&self) -> Vec<u64> {
        let n = self.seeds.unwrap_or(if self.quick { 2 } else { 5 });
        (0..n as u64).map(|i| self.seed.wrapping_add(i)).collect()
    }
}

/// An experiment, by how many networks it trains.
struct Experiment {
    name: &'static str,
    runs: fn(&Lab) -> usize,
    sections: fn(&Lab) -> Result<Vec<Section>>,
}

const EXPERIMENTS: [Experiment; 7] = [
    Experiment {
        name: "learning rates",
        runs: grids::rate_runs,
        sections: |lab| Ok(vec![grids::learning_rates(lab)?]),
    },
    Experiment {
        name: "initial scales",
        runs: grids::scale_runs,
        sections: |lab| Ok(vec![grids::initial_scales(lab)?]),
    },
    Experiment { name: "steps", runs: landscape::step_runs, sections: |lab| Ok(vec![landscape::steps(lab)?]) },
    Experiment {
        name: "landscape",
        runs: landscape::landscape_runs,
        sections: |lab| Ok(vec![landscape::landscape(lab)?]),
    },
    Experiment { name: "batch sizes", runs: grids::batch_runs, sections: |lab| Ok(vec![grids::batch_sizes(lab)?]) },
    Experiment { name: "before and after", runs: grids::place_runs, sections: |lab| Ok(vec![grids::places(lab)?]) },
    Experiment { name: "running statistics", runs: averages::runs, sections: averages::averages },
];

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let began = Instant::now();
    let out = args.out();
    check_folder(out)?;
    let bar = ProgressBar::no_length()
        .with_style(ProgressStyle::with_template("{pos:>3}/{len} networks  {msg:20}  {elapsed}  {wide_bar}")?);
    let lab = Lab::new(args.seeds(), args.quick, bar)?;
    let runs = EXPERIMENTS.iter().map(|e| (e.runs)(&lab)).sum::<usize>();
    lab.bar.set_length(runs as u64);

    let mut sections = Vec::new();
    for experiment in &EXPERIMENTS {
        lab.bar.set_message(experiment.name);
        sections.extend((experiment.sections)(&lab).with_context(|| format!("experiment \"{}\"", experiment.name))?);
    }
    let mut bytes = 0;
    let mut files = vec![("README.md".to_owned(), markdown(&lab, &sections))];
    for section in &sections {
        files.push((format!("{}.svg", section.file), section.figure.svg()?));
    }
    for (name, text) in files {
        let path = out.join(name);
        std::fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        bytes += text.len();
    }
    lab.bar.finish_and_clear();

    let mut stdout = std::io::stdout().lock();
    for section in &sections {
        writeln!(stdout, "{}\n    {}: {}\n", section.claim, section.verdict.name().trim_matches('*'), section.seen)?;
    }
    let (files, seconds) = (sections.len(), began.elapsed().as_secs_f64());
    writeln!(
        stdout,
        "{runs} networks in {seconds:.0} s. {files} figures and README.md ({} kB) in {}",
        bytes / 1000,
        out.display()
    )?;
    Ok(())
}

/// Before minutes of work: that its results can be written.
fn check_folder(out: &Path) -> Result<()> {
    ensure!(!out.is_file(), "--out {}: this is a file, not a folder", out.display());
    std::fs::create_dir_all(out).with_context(|| format!("--out {}: cannot make this folder", out.display()))?;
    let readme = out.join("README.md");
    // Opened, not written: what is there stays until there is something new.
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(&readme);
    opened.with_context(|| format!("--out {}: cannot write README.md there", out.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
        let args = |more: &[&str]| Args::try_parse_from([&["why_it_works"], more].concat()).unwrap();
        assert_eq!((args(&[]).out(), args(&[]).seeds()), (Path::new("docs/why"), vec![1, 2, 3, 4, 5]));
        assert_eq!(args(&["--quick"]).out(), Path::new("target/why-quick"));
        assert_eq!(args(&["--seeds", "2", "--seed", "7", "--quick", "--out", "x"]).seeds(), [7, 8]);
    }

    #[test]
    fn bad_arguments_say_what_is_wrong() {
        for (args, complaint) in [
            (["--seeds", "0"], "0 is not in 1..=100"),
            (["--seeds", "x"], "invalid digit"),
            (["--seed", "-1"], "'-1'"),
            (["--outt", "x"], "--out"),
        ] {
            let message = Args::try_parse_from(["why_it_works", args[0], args[1]]).unwrap_err().to_string();
            assert!(message.contains(complaint), "{args:?}: {message}");
        }
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert!(check_folder(&file).unwrap_err().to_string().contains("a file, not a folder"));
        assert!(check_folder(&file.join("below")).unwrap_err().to_string().contains("cannot make"));
    }
}
