//! Learns to read handwritten digits on 1, 2 and 4 ranks with the same batches: with statistics of all ranks' rows
//! (synchronized), and with those of each rank's own.
//!
//! ```text
//! cargo build --release --example digits
//! mpirun -n 4 target/release/examples/digits docs/digits.svg
//! ```
//!
//! The network is dense → BN → ReLU → dense, with softmax cross-entropy and plain SGD. Each rank has its share of every
//! batch; gradients are summed over the ranks by one all-reduce. Fewer than 4 ranks train on the groups that they make.

#[path = "../../bn-std/examples/net/data.rs"]
mod data;
#[path = "../../bn-std/examples/net/dense.rs"]
#[allow(dead_code, reason = "another example uses the rest")]
mod dense;
#[path = "../../bn-std/examples/net/loss.rs"]
mod loss;

use anyhow::{Context, Result, ensure};
use bn_core::{Activation, Affine, Shape};
use bn_mpi::{Inputs, Outputs, ParameterGradients, Settings, SyncBatchNorm};
use data::{Samples, Split};
use dense::Dense;
use mpi::collective::SystemOperation;
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::*;
use plotters::prelude::*;
use plotters::style::Color as _;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

const HIDDEN: usize = 64;
/// Rows per step, of all ranks together: on 4 ranks each normalizes by 4 rows where it is left alone.
const BATCH: usize = 16;
const EPOCHS: usize = 20;
const LEARNING_RATE: f32 = 0.1;
const SEED: u64 = 1;

fn main() -> Result<()> {
    bn_mpi::abort_on_panic();
    let universe = mpi::initialize().context("MPI has been started before")?;
    let world = universe.world();
    let digits = Samples::digits()?;
    let mut curves = Vec::new();
    for (ranks, synchronized) in [(1, true), (2, true), (4, true), (2, false), (4, false)] {
        if ranks > world.size() {
            continue;
        }
        // The first so many ranks train; the others wait for the next group.
        let color = if world.rank() < ranks { Color::with_value(0) } else { Color::undefined() };
        if let Some(group) = world.split_by_color(color) {
            curves.push(train(&digits, &group, synchronized)?);
        }
        world.barrier();
    }
    if world.rank() == 0 {
        report(&curves);
        if let Some(path) = std::env::args().nth(1) {
            plot(&curves, &path)?;
        }
    }
    Ok(())
}

/// How a training went.
struct Curve {
    ranks: i32,
    synchronized: bool,
    /// The mean loss of each epoch's batches.
    losses: Vec<f64>,
    accuracies: Vec<f64>,
}

/// Parameters of the batch normalization.
struct Norm<'c> {
    layer: SyncBatchNorm<'c, f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
}

fn train(digits: &Samples, group: &SimpleCommunicator, synchronized: bool) -> Result<Curve> {
    let (rank, ranks) = (group.rank() as usize, group.size() as usize);
    // The same numbers on every rank: data, weights, the order of the rows.
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let Split { train, test } = digits.split(0.2, &mut rng);
    let mut first = Dense::new(digits.features(), HIDDEN, &mut rng);
    let mut second = Dense::new(HIDDEN, digits.classes(), &mut rng).with_bias();

    // Left alone, each rank is a group of its own.
    let alone = group.split_by_color(Color::with_value(group.rank())).context("a group of one rank")?;
    let of = if synchronized { group } else { &alone };
    let settings = Settings::new(HIDDEN).with_activation(Activation::Relu);
    let mut norm = Norm {
        layer: SyncBatchNorm::new(of, settings)?,
        gamma: vec![1.0; HIDDEN],
        beta: vec![0.0; HIDDEN],
        dgamma: vec![0.0; HIDDEN],
        dbeta: vec![0.0; HIDDEN],
    };

    let mut curve = Curve { ranks: group.size(), synchronized, losses: Vec::new(), accuracies: Vec::new() };
    let mut order: Vec<usize> = (0..train.rows()).collect();
    let (mut x, mut labels) = (Vec::new(), Vec::new());
    let (mut z, mut logits, mut dlogits, mut dh) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..EPOCHS {
        order.shuffle(&mut rng);
        let mut loss = 0.0;
        for batch in order.chunks(BATCH) {
            // This rank's share; the last batch's shares are not equal.
            let share = &batch[batch.len() * rank / ranks..batch.len() * (rank + 1) / ranks];
            train.gather(share, &mut x, &mut labels);
            let shape = Shape::dense(share.len(), HIDDEN)?;
            first.forward(&x, &mut z);
            let mut h = vec![0.0; z.len()];
            norm.layer.forward(shape, &z, None, Affine::new(&norm.gamma, &norm.beta), &mut h)?;
            second.forward(&h, &mut logits);
            loss += loss::softmax_cross_entropy(&logits, &labels, &mut dlogits) * share.len() as f64;
            // Of the whole batch's mean loss, not of the share's.
            let weight = share.len() as f32 / batch.len() as f32;
            dlogits.iter_mut().for_each(|d| *d *= weight);
            second.backward(&h, &dlogits);
            second.backward_input(&dlogits, &mut dh);
            let mut dz = vec![0.0; dh.len()];
            let inputs = Inputs { x: &z, y: Some(&h), dy: &dh, gamma: Some(&norm.gamma) };
            let outputs = Outputs {
                dx: Some(&mut dz),
                dgamma: Some(&mut norm.dgamma),
                dbeta: Some(&mut norm.dbeta),
                ..Outputs::default()
            };
            // This rank's part of gamma's and beta's gradient is summed with all the others.
            norm.layer.backward(inputs, outputs, ParameterGradients::OfThisRank)?;
            first.backward(&x, &dz);
            step(group, &mut first, &mut norm, &mut second);
        }
        curve.losses.push(sum(group, &[loss])[0] / train.rows() as f64);
        // By rank 0's running statistics, as data-parallel training usually does; synchronized they are everybody's.
        let all: Vec<usize> = (0..test.rows()).collect();
        test.gather(&all, &mut x, &mut labels);
        first.forward(&x, &mut z);
        let mut h = vec![0.0; z.len()];
        let shape = Shape::dense(all.len(), HIDDEN)?;
        norm.layer.inference(shape, &z, None, Affine::new(&norm.gamma, &norm.beta), &mut h)?;
        second.forward(&h, &mut logits);
        curve.accuracies.push(loss::count_correct(&logits, &labels) as f64 / test.rows() as f64);
    }
    ensure!(curve.losses.iter().all(|loss| loss.is_finite()), "the training diverged");
    Ok(curve)
}

/// A step of SGD down the gradients of all ranks.
fn step(group: &SimpleCommunicator, first: &mut Dense, norm: &mut Norm<'_>, second: &mut Dense) {
    let normalization = [(&mut norm.gamma[..], &norm.dgamma[..]), (&mut norm.beta[..], &norm.dbeta[..])];
    let parameters: Vec<_> = first.parameters().chain(normalization).chain(second.parameters()).collect();
    let own: Vec<f64> = parameters.iter().flat_map(|(_, gradient)| gradient.iter().map(|&g| f64::from(g))).collect();
    let mut all = sum(group, &own).into_iter();
    for (values, _) in parameters {
        for (value, gradient) in values.iter_mut().zip(&mut all) {
            *value -= LEARNING_RATE * gradient as f32;
        }
    }
}

fn sum(group: &SimpleCommunicator, own: &[f64]) -> Vec<f64> {
    let mut all = vec![0.0f64; own.len()];
    group.all_reduce_into(own, &mut all[..], SystemOperation::sum());
    all
}

fn report(curves: &[Curve]) {
    println!("| ranks | statistics | final loss | largest difference from one process | test accuracy |");
    println!("|---|---|---|---|---|");
    for curve in curves {
        let differences = curve.losses.iter().zip(&curves[0].losses).map(|(a, b)| (a / b - 1.0).abs());
        println!(
            "| {} | {} | {:.5} | {} | {:.1} % |",
            curve.ranks,
            match (curve.ranks, curve.synchronized) {
                (1, _) => "one process",
                (_, true) => "synchronized",
                (_, false) => "each rank's own",
            },
            curve.losses.last().copied().unwrap_or(f64::NAN),
            if curve.ranks == 1 { "–".into() } else { percent(differences.fold(0.0, f64::max)) },
            100.0 * curve.accuracies.last().copied().unwrap_or(f64::NAN),
        );
    }
}

fn percent(share: f64) -> String {
    if share < 1e-3 { format!("{:.1e} %", 100.0 * share) } else { format!("{:.0} %", 100.0 * share) }
}

/// The loss of each epoch.
fn plot(curves: &[Curve], path: &str) -> Result<()> {
    let area = SVGBackend::new(path, (760, 440)).into_drawing_area();
    area.fill(&WHITE)?;
    let losses = || curves.iter().flat_map(|c| c.losses.iter().copied());
    let (low, high) = (losses().fold(f64::MAX, f64::min), losses().fold(0.0, f64::max));
    let mut chart = ChartBuilder::on(&area)
        .caption("Training loss, batches of 16 digits on 1, 2 and 4 ranks", ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(0.5..EPOCHS as f64 + 0.5, (low * 0.8..high * 1.2).log_scale())?;
    chart
        .configure_mesh()
        .disable_mesh()
        .y_labels(5)
        .x_desc("epoch")
        .y_desc("mean loss of the epoch's batches")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .label_style(("sans-serif", 14))
        .draw()?;
    for curve in curves {
        let points = || curve.losses.iter().enumerate().map(|(i, &loss)| ((i + 1) as f64, loss));
        // What coincides is drawn one inside the other: a wide line, circles, crosses.
        let (name, color, width) = match (curve.ranks, curve.synchronized) {
            (1, _) => ("one process", RGBColor(170, 170, 170), 7),
            (2, true) => ("2 ranks, synchronized", RGBColor(0, 90, 181), 0),
            (_, true) => ("4 ranks, synchronized", RGBColor(0, 0, 0), 0),
            (2, false) => ("2 ranks, each its own", RGBColor(230, 140, 0), 2),
            (_, false) => ("4 ranks, each its own", RGBColor(200, 40, 40), 2),
        };
        let style = color.stroke_width(width.max(2));
        if width > 0 {
            let line = LineSeries::new(points(), color.stroke_width(width));
            chart
                .draw_series(line)?
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], style));
        } else if curve.ranks == 2 {
            let marks = points().map(|p| Circle::new(p, 6, style));
            chart.draw_series(marks)?.label(name).legend(move |(x, y)| Circle::new((x + 11, y), 6, style));
        } else {
            let marks = points().map(|p| Cross::new(p, 4, style));
            chart.draw_series(marks)?.label(name).legend(move |(x, y)| Cross::new((x + 11, y), 4, style));
        }
    }
    let position = SeriesLabelPosition::UpperRight;
    let mut labels = chart.configure_series_labels();
    labels.position(position).label_font(("sans-serif", 14)).legend_area_size(28);
    labels.background_style(WHITE).border_style(RGBColor(200, 200, 200)).draw()?;
    area.present()?;
    Ok(())
}
