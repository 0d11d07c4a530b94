//! The loss along its gradient, after Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?"

use super::plot::{Axis, Figure, Marker, Panel, Series};
use super::report::{Section, Table, Verdict, number, times};
use super::{Kind, LEARNING_RATE, Lab, Spread, Start, Task};
use crate::net::loss::softmax_cross_entropy;
use crate::net::train::Observer;
use crate::net::{Buffers, Network};
use anyhow::Result;

const KINDS: [Kind; 2] = [Kind::With, Kind::Without];

/// What a step down the gradient leads to.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// The loss there.
    pub loss: f64,
    /// ‖g′ − g‖₂ of the gradients there and here: how badly one predicts the other.
    pub distance: f64,
    /// ‖g′ − g‖ / ‖g‖.
    pub relative: f64,
    /// ‖g′ − g‖ / ‖step · g‖: the effective β-smoothness.
    pub smoothness: f64,
}

type OfProbe = fn(&Probe) -> f64;

/// Takes steps of these sizes from where a network is, each from there, down the gradient of a batch.
///
/// The direction is that of the parameters' own gradients, gamma's and beta's among them.
pub fn along_gradient(
    network: &Network,
    (x, labels): (&[f32], &[usize]),
    steps: &[f32],
    buffers: &mut Buffers,
) -> Result<(f64, Vec<Probe>), bn_core::Error> {
    let mut here = network.clone();
    let (loss, gradient) = loss_and_gradient(&mut here, x, labels, buffers)?;
    let norm = l2(gradient.iter().copied().map(f64::from));
    let mut probes = Vec::new();
    for &step in steps {
        let mut there = here.clone();
        there.step(step);
        let (loss, other) = loss_and_gradient(&mut there, x, labels, buffers)?;
        let distance = l2(gradient.iter().zip(&other).map(|(&a, &b)| f64::from(b) - f64::from(a)));
        let relative = distance / norm;
        probes.push(Probe { loss, distance, relative, smoothness: relative / f64::from(step) });
    }
    Ok((loss, probes))
}

/// In training mode; all groups of parameters in a row.
fn loss_and_gradient(
    network: &mut Network,
    x: &[f32],
    labels: &[usize],
    buffers: &mut Buffers,
) -> Result<(f64, Vec<f32>), bn_core::Error> {
    network.forward_training(x, buffers)?;
    let loss = softmax_cross_entropy(&buffers.logits, labels, &mut buffers.dlogits);
    network.backward(x, buffers)?;
    Ok((loss, network.parameters().flat_map(|(_, gradient)| gradient.iter().copied()).collect()))
}

fn l2(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

// ---- Growing steps from a few moments of training

/// The probes of one network at one moment.
struct Ray {
    loss: f64,
    probes: Vec<Probe>,
}

fn moment_name(epochs: usize) -> String {
    match epochs {
        0 => "at the start".into(),
        1 => "after 1 epoch".into(),
        n => format!("after {n} epochs"),
    }
}

pub fn step_runs(lab: &Lab) -> usize {
    2 * lab.starts.len()
}

/// The loss and the gradient at growing step sizes: at the start, after an epoch, and later.
pub fn steps(lab: &Lab) -> Result<Section> {
    let epochs = lab.thinned(&[0, 1, 10], &[0, 1]);
    let sizes: Vec<f32> = (0..=25).map(|i| 10f32.powf(-3.0 + 0.2 * i as f32)).collect();
    let tasks = KINDS.map(Task::new);
    let rays = lab.for_each_seed(&tasks, |task, start| -> Result<Vec<Ray>> {
        let order: Vec<usize> = (0..start.data.train.rows()).collect();
        let (mut x, mut labels) = (Vec::new(), Vec::new());
        start.data.train.gather(&order, &mut x, &mut labels);
        let ray = |epochs| {
            let mut network = start.network(task);
            start.train(&mut network, task, epochs, &mut |_: &_| {})?;
            let (loss, probes) = along_gradient(&network, (&x, &labels), &sizes, &mut Buffers::default())?;
            Ok(Ray { loss, probes })
        };
        epochs.iter().map(|&epochs| ray(epochs)).collect()
    })?;
    // By network, moment, and size.
    let spread = |kind: usize, moment: usize, of: OfProbe| -> Vec<(f64, Spread)> {
        let at = |i: usize| Spread::of(rays[kind].iter().map(|seed| of(&seed[moment].probes[i])));
        sizes.iter().enumerate().map(|(i, &size)| (f64::from(size), at(i))).collect()
    };
    let mut panels = Vec::new();
    let (loss_range, gradient_range) = ((1e-4, 1e4), (1e-3, 1e3));
    let measures: [(&str, &str, OfProbe, (f64, f64)); 2] = [
        ("loss,", "loss after the step", |p| p.loss, loss_range),
        ("gradient,", "‖g′ − g‖ / ‖g‖", |p| p.relative, gradient_range),
    ];
    for (title, label, of, limits) in measures {
        let all: Vec<f64> = (0..2)
            .flat_map(|kind| (0..epochs.len()).map(move |moment| (kind, moment)))
            .flat_map(|(kind, moment)| spread(kind, moment, of))
            .flat_map(|(_, s)| [s.low, s.high])
            .collect();
        for (moment, &epoch) in epochs.iter().enumerate() {
            panels.push(Panel {
                title: format!("{title} {}", moment_name(epoch)),
                x: Axis::log("step size (times the gradient)", 1e-3, 1e2),
                y: Axis::log_over(label, all.iter().copied(), limits),
                series: (0..2).map(|kind| KINDS[kind].long_series(&spread(kind, moment, of))).collect(),
            });
        }
    }
    let figure = Figure {
        title: "One step down the gradient, at growing step sizes".into(),
        note: format!(
            "Over the whole training set: the loss after a step, and the change of the gradient g to g′. Lines: medians of {} seeds; bands: lowest to highest.",
            lab.starts.len()
        ),
        columns: epochs.len(),
        panels,
    };

    // The largest of the tried sizes up to which every step lowers the loss.
    let reach = |kind: usize, moment: usize| {
        Spread::of(rays[kind].iter().map(|seed| {
            let Ray { loss, probes } = &seed[moment];
            let good = probes.iter().take_while(|p| p.loss < *loss).count();
            good.checked_sub(1).map_or(0.0, |last| f64::from(sizes[last]))
        }))
    };
    // The worst loss of all step sizes, over the loss before the step.
    let worst = |kind: usize, moment: usize| {
        Spread::of(rays[kind].iter().map(|seed| {
            let Ray { loss, probes } = &seed[moment];
            probes.iter().map(|p| p.loss).fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) })
                / loss
        }))
    };
    let mut table = Table::new(&[
        "",
        "largest step that still lowers the loss: with BN",
        "without",
        "worst loss over all steps, against that before: with BN",
        "without",
    ]);
    let mut wins = 0;
    let mut calmer = 0;
    for (moment, &epoch) in epochs.iter().enumerate() {
        let (a, b, c, d) = (reach(0, moment), reach(1, moment), worst(0, moment), worst(1, moment));
        wins += usize::from(a.median > b.median);
        calmer += usize::from(c.median < d.median);
        table.row([moment_name(epoch), number(a), number(b), times(c), times(d)]);
    }
    let n = epochs.len();
    let verdict = Verdict::of(wins == n && calmer == n, wins + calmer > 0);
    Ok(Section {
        claim: "Along the gradient the loss is smoother with BN: larger steps still lower it".into(),
        verdict,
        seen: format!("larger usable steps at {wins} of {n} moments, lower worst loss at {calmer} of {n}"),
        title: "Steps down the gradient".into(),
        file: "steps",
        figure,
        text: format!(
            "From the same moment of training ({LEARNING_RATE} as the learning rate so far), steps of 0.001 to 100 times the \
             gradient, each from the same point. Smooth means: a larger step still does what the gradient promised. \
             Losses beyond the axis are drawn at its end.\n\n{}\n\
             Where the loss with BN does not explode at huge steps, that is partly the arithmetic of BN: the loss does not \
             depend on the length of the weights before a normalization, so a huge step only turns them. It does depend \
             on those of the last layer, which is not normalized.\n",
            table.markdown()
        ),
    })
}

// ---- During training

/// What is measured every few steps of training.
#[derive(Clone, Copy)]
struct Variation {
    step: usize,
    loss: (f64, f64),
    distance: (f64, f64),
    relative: f64,
    smoothness: f64,
}

type OfVariation = fn(&Variation) -> f64;

struct Watch<'a> {
    every: usize,
    step: usize,
    sizes: &'a [f32],
    buffers: Buffers,
    seen: Vec<Variation>,
}

impl Observer for Watch<'_> {
    fn before_step(&mut self, network: &Network, x: &[f32], labels: &[usize]) -> Result<(), bn_core::Error> {
        if self.step.is_multiple_of(self.every) {
            let (_, probes) = along_gradient(network, (x, labels), self.sizes, &mut self.buffers)?;
            let ends = |of: OfProbe| {
                let spread = Spread::of(probes.iter().map(of));
                (spread.low, spread.high)
            };
            self.seen.push(Variation {
                step: self.step,
                loss: ends(|p| p.loss),
                distance: ends(|p| p.distance),
                relative: ends(|p| p.relative).1,
                smoothness: ends(|p| p.smoothness).1,
            });
        }
        self.step += 1;
        Ok(())
    }
}

pub fn landscape_runs(lab: &Lab) -> usize {
    2 * lab.starts.len()
}

/// Loss range, gradient predictiveness and effective smoothness during training.
pub fn landscape(lab: &Lab) -> Result<Section> {
    let sizes: Vec<f32> = (1..=8).map(|i| 0.5 * i as f32 * LEARNING_RATE).collect();
    let tasks = KINDS.map(Task::new);
    let per_epoch = lab.steps_per_epoch(super::BATCH);
    let watched = lab.for_each_seed(&tasks, |task, start: &Start| {
        let mut watch = Watch { every: 4, step: 0, sizes: &sizes, buffers: Buffers::default(), seen: Vec::new() };
        start.train(&mut start.network(task), task, lab.epochs, &mut watch)?;
        Ok(watch.seen)
    })?;
    // The median over the seeds and over the measurements in an epoch.
    let by_epoch = |kind: usize, of: OfVariation| -> Vec<(f64, f64)> {
        let median = |epoch: usize| {
            let all = watched[kind].iter().flatten().filter(|v| v.step / per_epoch == epoch).map(of);
            ((epoch as f64 + 0.5) * per_epoch as f64, Spread::of(all).median)
        };
        (0..lab.epochs).map(median).collect()
    };
    let band = |kind: usize, low: OfVariation, high: OfVariation| -> Series {
        let (low, high) = (by_epoch(kind, low), by_epoch(kind, high));
        let (color, _) = KINDS[kind].style();
        Series {
            name: KINDS[kind].name().into(),
            color,
            marker: Marker::None,
            dash: KINDS[kind].dash(),
            band: low.iter().zip(&high).map(|(&(x, low), &(_, high))| (x, low, high)).collect(),
            line: high,
        }
    };
    let measures: [(&str, &str, OfVariation, OfVariation); 3] = [
        ("loss, over the steps", "loss", |v| v.loss.0, |v| v.loss.1),
        ("gradients' distance, over the steps", "‖g′ − g‖₂", |v| v.distance.0, |v| v.distance.1),
        ("effective β-smoothness, worst step", "max ‖g′ − g‖ / ‖step · g‖", |v| v.smoothness, |v| v.smoothness),
    ];
    let panels = measures
        .into_iter()
        .map(|(title, label, low, high)| {
            let series: Vec<Series> = (0..2).map(|kind| band(kind, low, high)).collect();
            let values: Vec<f64> =
                series.iter().flat_map(|s| &s.band).flat_map(|&(_, low, high)| [low, high]).collect();
            Panel {
                title: title.into(),
                x: Axis::count("training step", lab.epochs * per_epoch),
                y: Axis::log_over(label, values.into_iter(), (1e-5, 1e5)),
                series,
            }
        })
        .collect();
    let figure = Figure {
        title: "The landscape around the path of training".into(),
        note: format!(
            "From every fourth training step, 8 steps of 0.5 to 4 times the learning rate ({LEARNING_RATE}). Bands: the range over \
             these, line: its upper end; medians of each epoch and of {} seeds.",
            lab.starts.len()
        ),
        columns: 3,
        panels,
    };
    // Early: the first third of training, where the loss is still going down.
    let early = lab.epochs.div_ceil(3) * per_epoch;
    let median = |kind: usize, late: bool, of: OfVariation| {
        Spread::of(
            watched[kind]
                .iter()
                .map(|seed| Spread::of(seed.iter().filter(|v| (v.step >= early) == late).map(of)).median),
        )
    };
    let rows: [(&str, OfVariation); 4] = [
        ("range of the loss: highest − lowest", |v| v.loss.1 - v.loss.0),
        ("distance of the gradients, ‖g′ − g‖₂, largest", |v| v.distance.1),
        ("the same over ‖g‖", |v| v.relative),
        ("effective β-smoothness, largest", |v| v.smoothness),
    ];
    let mut table = Table::new(&["", "first third of training: with BN", "without", "the rest: with BN", "without"]);
    let (mut first, mut rest, mut raw, mut fair) = (0, 0, 0, 0);
    for (i, (name, of)) in rows.into_iter().enumerate() {
        let cells = [(0, false), (1, false), (0, true), (1, true)].map(|(kind, late)| median(kind, late, of));
        let (a, b) = (cells[0].median < cells[1].median, cells[2].median < cells[3].median);
        first += usize::from(a);
        rest += usize::from(b);
        *(if i < 2 { &mut raw } else { &mut fair }) += usize::from(a) + usize::from(b);
        let [a, b, c, d] = cells.map(number);
        table.row([name.into(), a, b, c, d]);
    }
    Ok(Section {
        claim: "During training the loss varies less along the gradient, and gradients predict each other better, with BN (Santurkar et al. 2018)".into(),
        verdict: Verdict::of(first + rest == 8, first + rest > 0),
        seen: format!("lower with BN in {first} of 4 measures in the first third of training, in {rest} of 4 later"),
        title: "The landscape during training".into(),
        file: "landscape",
        figure,
        text: format!(
            "Santurkar et al.'s measures, on the batch that is being learned. The first two are in the units of the \
             loss and of its gradient, and shrink as these do, so that a network that has learned better looks \
             smoother by them for that reason alone; the last two are ratios, which do not. Lower with BN: \
             {raw} of 4 comparisons in absolute numbers, {fair} of 4 in ratios. Smoothness is per unit of the parameters, \
             of which both networks have nearly the same, but not all the same: gamma and beta stand in for biases.\n\n{}",
            table.markdown()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loss of a step, step by hand; and for tiny steps, what the gradient promises.
    #[test]
    fn the_loss_along_the_gradient() -> Result<()> {
        let start = &Lab::new(vec![3], true, indicatif::ProgressBar::hidden())?.starts[0];
        for kind in KINDS {
            let network = start.network(&Task::new(kind));
            let buffers = &mut Buffers::default();
            let (mut x, mut labels) = (Vec::new(), Vec::new());
            start.data.train.gather(&(0..100).collect::<Vec<_>>(), &mut x, &mut labels);
            let (loss, probes) = along_gradient(&network, (&x, &labels), &[0.0, 2e-3, 0.5], buffers)?;

            let mut moved = network.clone();
            let (here, gradient) = loss_and_gradient(&mut moved, &x, &labels, buffers)?;
            assert_eq!(loss, here);
            assert_eq!((probes[0].loss, probes[0].distance), (loss, 0.0));
            let squared = l2(gradient.iter().map(|&g| f64::from(g))).powi(2);
            let (promised, got) = (squared * 2e-3, loss - probes[1].loss);
            assert!((got / promised - 1.0).abs() < 0.1, "{kind:?}: {got} instead of {promised}");

            for ((values, _), g) in moved.parameters().zip(groups(&network, &gradient)) {
                values.iter_mut().zip(g).for_each(|(v, g)| *v -= 0.5 * g);
            }
            let (there, other) = loss_and_gradient(&mut moved, &x, &labels, buffers)?;
            assert_eq!(probes[2].loss, there);
            let distance = l2(gradient.iter().zip(&other).map(|(a, b)| f64::from(b - a)));
            assert!((probes[2].distance / distance - 1.0).abs() < 1e-5);
            assert!((probes[2].smoothness * 0.5 * squared.sqrt() / distance - 1.0).abs() < 1e-5);
        }
        Ok(())
    }

    fn groups<'a>(network: &Network, gradient: &'a [f32]) -> Vec<&'a [f32]> {
        let mut rest = gradient;
        let lengths: Vec<usize> = network.clone().parameters().map(|(values, _)| values.len()).collect();
        let cut = |len: usize| {
            let (group, after) = rest.split_at(len);
            rest = after;
            group
        };
        lengths.into_iter().map(cut).collect()
    }
}
