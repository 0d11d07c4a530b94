//! Learns to read 1,797 handwritten digits with batch normalization, and without.
//!
//! ```text
//! cargo run --release --example digits
//! cargo run --release --example digits -- --help
//! ```
//!
//! The network is dense → BN → ReLU → dense, with softmax cross-entropy and plain SGD; beside it, the same without BN
//! learns from the same initial weights and the same batches in the same order. Training normalizes by the statistics
//! of each batch, testing by the running ones.

mod net;

use anyhow::{Context, Result, ensure};
use bn_core::{BatchNorm, Isa, RunningStats, Shape};
use clap::Parser;
use clap::builder::RangedU64ValueParser;
use comfy_table::{CellAlignment, Table, presets};
use core::time::Duration;
use indicatif::{ProgressBar, ProgressStyle};
use net::batch_norm::BatchNormOptions;
use net::data::{Samples, Split};
use net::timer::Timer;
use net::train::{Epoch, Settings, train};
use net::{Buffers, Network, Place};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use std::io::Write;
use std::process::ExitCode;

const TEST_SHARE: f64 = 0.2;
const GOAL: f64 = 0.95;

/// Trains a small network on handwritten digits with and without batch normalization, and compares them.
#[derive(Parser, Debug)]
#[command(
    name = "digits",
    allow_negative_numbers = true,
    after_help = "The learning rate decides how much BN helps. --lr 1 is a good one for the network without BN,\n\
                  which is then nearly as quick; at --lr 3 it learns nothing, and the one with BN still does."
)]
struct Args {
    /// Passes over the training set
    #[arg(long, default_value_t = 30, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    epochs: usize,

    /// Images per step of SGD, at least 2
    #[arg(long, default_value_t = 64, value_parser = parse_batch)]
    batch: usize,

    /// Neurons of the hidden layer
    #[arg(long, default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    hidden: usize,

    /// Learning rate, the same for both networks
    #[arg(long, default_value = "0.1", value_parser = parse_learning_rate)]
    lr: f32,

    /// Weight of a new batch in the running statistics, 0 to 1
    #[arg(long, default_value = "0.1", value_parser = parse_momentum)]
    momentum: f64,

    /// Added to the variance before its root is taken
    #[arg(long, default_value = "1e-5", value_parser = parse_epsilon)]
    epsilon: f64,

    /// Comparisons, each with its own split, weights and order of batches
    #[arg(long, default_value_t = 5, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    runs: usize,

    /// Seed of the first run; the next ones count up
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn parse_batch(text: &str) -> Result<usize> {
    let batch = text.parse().context("expected a whole number")?;
    ensure!(batch >= 2, "a batch needs at least 2 images: the variance of a single one is 0");
    Ok(batch)
}

fn parse_learning_rate(text: &str) -> Result<f32> {
    let rate: f32 = text.parse()?;
    ensure!(rate > 0.0 && rate.is_finite(), "expected a finite number above 0");
    Ok(rate)
}

/// What momentum and epsilon may be is the library's to say.
fn parse_momentum(text: &str) -> Result<f64> {
    let momentum = text.parse()?;
    RunningStats::pytorch(momentum)?;
    Ok(momentum)
}

fn parse_epsilon(text: &str) -> Result<f64> {
    let epsilon = text.parse()?;
    BatchNorm::<f32>::new(Shape::dense(2, 1)?, epsilon)?;
    Ok(epsilon)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // As clap puts it. A `Result` from main would add a backtrace where `RUST_BACKTRACE` is set.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let digits = Samples::digits()?;
    let settings = Settings { epochs: args.epochs, batch: args.batch, learning_rate: args.lr };
    let options = BatchNormOptions { epsilon: args.epsilon, running: RunningStats::pytorch(args.momentum)? };
    let mut out = std::io::stdout().lock();

    let mut with_bn = Summary::default();
    let mut without_bn = Summary::default();
    let bar = ProgressBar::new((2 * args.runs * args.epochs) as u64)
        .with_style(ProgressStyle::with_template("{pos:>3}/{len} epochs  {msg:49}  {wide_bar}")?);
    for run in 0..args.runs {
        let seed = args.seed.wrapping_add(run as u64);
        // Not `SmallRng`, whose numbers differ between platforms.
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let data = digits.split(TEST_SHARE, &mut rng);
        ensure!(
            args.batch <= data.train.rows(),
            "--batch {} is more than the {} images of the training set",
            args.batch,
            data.train.rows()
        );
        if run == 0 {
            introduce(&mut out, args, &digits, &data)?;
        }
        let plain = Network::new(&[digits.features(), args.hidden, digits.classes()], &mut rng);
        let normalized = plain.clone().with_batch_norm(Place::BeforeActivation, options);
        for (mut network, summary, name) in
            [(normalized, &mut with_bn, "with BN"), (plain, &mut without_bn, "without BN")]
        {
            // A copy: both see the same batches.
            let mut order_rng = rng.clone();
            let epochs = train(
                &mut network,
                &data,
                &settings,
                &mut order_rng,
                &mut summary.buffers,
                &mut summary.steps,
                &mut |epoch: &Epoch| {
                    bar.set_message(format!(
                        "seed {seed}, {name}: loss {:.4}, accuracy {:.1} %",
                        epoch.loss,
                        epoch.test_accuracy * 100.0
                    ));
                    bar.inc(1);
                },
            )?;
            // Those that were not run because the network diverged.
            bar.inc((args.epochs - epochs.len()) as u64);
            summary.runs.push(Outcome::of(&epochs));
        }
    }
    bar.finish_and_clear();
    writeln!(out, "{}", table(args, &with_bn, &without_bn))?;
    Ok(())
}

fn introduce(out: &mut impl Write, args: &Args, digits: &Samples, data: &Split) -> std::io::Result<()> {
    let Args { epochs, batch, hidden, lr, momentum, epsilon, runs, seed } = args;
    let (inputs, classes) = (digits.features(), digits.classes());
    let (all, train, test) = (digits.rows(), data.train.rows(), data.test.rows());
    let isa = Isa::detect().kind().name();
    writeln!(out, "Data     {all} handwritten digits of 8 × 8 pixels: {train} to train on, {test} to test on")?;
    writeln!(out, "Network  {inputs} → {hidden} → ReLU → {classes}, with BN before the ReLU, and without")?;
    writeln!(
        out,
        "SGD      learning rate {lr:?} for both (compare --lr 1 and --lr 3), batch {batch}, epochs {epochs}"
    )?;
    writeln!(out, "BN       epsilon {epsilon:?}, momentum {momentum:?}, {isa} kernels, one thread")?;
    writeln!(out, "Runs     {runs}, from seed {seed}; in each, both networks start from the same weights")?;
    writeln!(out, "         and see the same batches\n")
}

/// A network's runs.
#[derive(Default)]
struct Summary {
    runs: Vec<Outcome>,
    steps: Timer,
    buffers: Buffers,
}

/// How a run ended.
struct Outcome {
    /// Epochs until the test accuracy first was 95 %.
    epochs_to_goal: Option<usize>,
    final_accuracy: f64,
    diverged: bool,
}

impl Outcome {
    fn of(epochs: &[Epoch]) -> Self {
        Outcome {
            epochs_to_goal: epochs.iter().position(|e| e.test_accuracy >= GOAL).map(|i| i + 1),
            final_accuracy: epochs.last().map_or(0.0, |e| e.test_accuracy),
            diverged: epochs.last().is_some_and(|e| !e.loss.is_finite()),
        }
    }
}

fn table(args: &Args, with_bn: &Summary, without_bn: &Summary) -> Table {
    let both = [with_bn, without_bn];
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let title = if args.runs == 1 { String::new() } else { format!("median of {} runs (best – worst)", args.runs) };
    table.set_header([title.as_str(), "with BN", "without BN"]);
    let mut row = |label: String, [a, b]: [String; 2]| {
        table.add_row([label, a, b]);
    };
    row(format!("epochs to {:.0} % test accuracy", GOAL * 100.0), both.map(epochs_to_goal));
    row("final test accuracy".into(), both.map(final_accuracy));
    if both.iter().any(|s| s.runs.iter().any(|o| o.diverged)) {
        row(
            "diverged".into(),
            both.map(|s| format!("{} of {}", s.runs.iter().filter(|o| o.diverged).count(), args.runs)),
        );
    }
    let images = with_bn.steps.typical().map_or(0, |(rows, _)| rows);
    row(format!("whole training step, {images} images"), both.map(|s| microseconds(s.steps.typical())));
    let times = &with_bn.buffers.times;
    for (name, timer) in
        [("forward_training", &times.forward_training), ("backward", &times.backward), ("inference", &times.inference)]
    {
        let typical = timer.typical();
        let rows = typical.map_or(0, |(rows, _)| rows);
        row(format!("BN call: {name}, {rows} × {}", args.hidden), [microseconds(typical), String::new()]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn epochs_to_goal(summary: &Summary) -> String {
    let mut epochs: Vec<usize> = summary.runs.iter().map(|o| o.epochs_to_goal.unwrap_or(usize::MAX)).collect();
    epochs.sort_unstable();
    // "never", as the largest number, is the worst.
    spread(&epochs, "", |&n| if n == usize::MAX { "never".into() } else { n.to_string() })
}

fn final_accuracy(summary: &Summary) -> String {
    let mut accuracies: Vec<f64> = summary.runs.iter().map(|o| o.final_accuracy).collect();
    accuracies.sort_unstable_by(|a, b| b.total_cmp(a));
    spread(&accuracies, " %", |a| format!("{:.1}", a * 100.0))
}

/// The median and, unless all are the same, the ends, of values sorted from best to worst. Of an even number the median
/// is the worse one of the two in the middle.
fn spread<T>(sorted: &[T], unit: &str, show: impl Fn(&T) -> String) -> String {
    let (Some(best), Some(median), Some(worst)) = (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) else {
        return String::new();
    };
    let [best, median, worst] = [best, median, worst].map(show);
    if best == worst { median + unit } else { format!("{median}{unit} ({best} – {worst})") }
}

fn microseconds(typical: Option<(usize, Duration)>) -> String {
    typical.map_or(String::new(), |(_, time)| format!("{:.1} µs", time.as_secs_f64() * 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
        assert_eq!(Args::try_parse_from(["digits"]).unwrap().batch, 64);
    }

    #[test]
    fn bad_arguments_say_what_is_wrong() {
        for (args, complaint) in [
            (["--batch", "1"], "at least 2 images"),
            (["--batch", "0"], "at least 2 images"),
            (["--batch", "x"], "whole number"),
            (["--lr", "nan"], "above 0"),
            (["--lr", "-1"], "above 0"),
            (["--lr", "1e-50"], "above 0"),
            (["--lr", "inf"], "above 0"),
            (["--epochs", "0"], "0 is not in 1..=10000"),
            (["--hidden", "0"], "0 is not in 1..=4096"),
            (["--runs", "-1"], "'-1'"),
            (["--momentum", "1.5"], "from 0 to 1"),
            (["--epsilon", "-0.1"], "≥ 0"),
            (["--epsilon", "nan"], "≥ 0"),
            (["--epoch", "3"], "--epochs"),
        ] {
            let message = Args::try_parse_from(["digits", args[0], args[1]]).unwrap_err().to_string();
            assert!(message.contains(complaint), "{args:?}: {message}");
        }
    }
}
