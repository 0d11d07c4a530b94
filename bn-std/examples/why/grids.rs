//! Networks trained at every point of a grid: learning rates, initial scales, batch sizes, places of BN.

use super::plot::{Axis, Dash, Figure, Marker, PURPLE, Panel, Series};
use super::report::{Section, Table, Verdict, count, digits, number, percent, signed};
use super::{BATCH, Kind, LEARNING_RATE, Lab, Outcome, Spread, Task, series};
use anyhow::Result;

/// A test accuracy that counts as having learned.
const GOAL: f64 = 0.95;
const BOTH: [Kind; 2] = [Kind::With, Kind::Without];
const THREE: [Kind; 3] = [Kind::With, Kind::AfterActivation, Kind::Without];

const RATES: [f32; 8] = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
const RATE_CURVES: [f32; 4] = [0.01, 0.1, 1.0, 3.0];
const SCALES: [f32; 7] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
const SCALE_CURVES: [f32; 4] = [0.03, 0.3, 1.0, 3.0];
const BATCHES: [f32; 8] = [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
const PLACES: [f32; 3] = [0.01, 0.1, 1.0];

/// Runs for each value of something and each kind of network.
struct Grid {
    values: Vec<f32>,
    kinds: Vec<Kind>,
    epochs: usize,
    /// By value, kind, seed.
    outcomes: Vec<Vec<Outcome>>,
}

impl Grid {
    fn train(lab: &Lab, values: &[f32], kinds: &[Kind], task: impl Fn(f32, Task) -> Task) -> Result<Grid> {
        let pairs = values.iter().flat_map(|&value| kinds.iter().map(move |&kind| (value, kind)));
        let tasks: Vec<Task> = pairs.map(|(value, kind)| task(value, Task::new(kind))).collect();
        let outcomes = lab.train_all(&tasks)?;
        Ok(Grid { values: values.to_vec(), kinds: kinds.to_vec(), epochs: lab.epochs, outcomes })
    }

    fn spread(&self, value: usize, kind: usize, of: impl Fn(&Outcome) -> f64) -> Spread {
        Spread::of(self.outcomes[value * self.kinds.len() + kind].iter().map(of))
    }

    /// For each value.
    fn over_values(&self, kind: usize, of: impl Fn(&Outcome) -> f64) -> Vec<(f64, Spread)> {
        (0..self.values.len()).map(|v| (f64::from(self.values[v]), self.spread(v, kind, &of))).collect()
    }

    /// For each epoch, from 1.
    fn over_epochs(&self, value: usize, kind: usize, of: impl Fn(&Outcome, usize) -> f64) -> Vec<(f64, Spread)> {
        (0..self.epochs).map(|e| ((e + 1) as f64, self.spread(value, kind, |o| of(o, e)))).collect()
    }

    /// The training loss at one value.
    fn loss_panel(&self, value: usize, title: String) -> Panel {
        let values = self.outcomes.iter().flatten().flat_map(|o| (0..self.epochs).map(|e| o.loss(e)));
        let y = Axis::log_over("training loss", values, (1e-4, 1e2));
        let lines =
            (0..self.kinds.len()).map(|k| self.kinds[k].long_series(&self.over_epochs(value, k, Outcome::loss)));
        Panel { title, x: Axis::count("epoch", self.epochs), y, series: lines.collect() }
    }

    /// The final accuracy over all values.
    fn accuracy_panel(&self, title: &str, x: Axis) -> Panel {
        let lines = (0..self.kinds.len())
            .map(|k| self.kinds[k].series(&in_percent(self.over_values(k, Outcome::final_accuracy))));
        Panel { title: title.into(), x, y: percent_axis("test accuracy, %"), series: lines.collect() }
    }

    /// The epochs until the goal over all values.
    fn speed_panel(&self, title: &str, x: Axis) -> Panel {
        // "Never" is drawn at the top.
        let epochs = |kind| {
            let points = self.over_values(kind, |o| o.epochs_to(GOAL));
            points.into_iter().map(|(v, s)| (v, s.map(|e| e.min(self.epochs as f64 + 1.0)))).collect::<Vec<_>>()
        };
        let lines = (0..self.kinds.len()).map(|k| self.kinds[k].series(&epochs(k)));
        let y = Axis::count(&format!("epochs to {:.0} % (top: never)", GOAL * 100.0), self.epochs + 1);
        Panel { title: title.into(), x, y, series: lines.collect() }
    }

    /// Of each value: epochs to the goal, and the final accuracy.
    fn table(&self, label: &str, show: impl Fn(f32) -> String) -> Table {
        let goal = format!("epochs to {:.0} %: {}", GOAL * 100.0, self.kinds[0].name());
        let accuracy = format!("final accuracy, %: {}", self.kinds[0].name());
        let mut header = vec![label, &goal];
        header.extend(self.kinds[1..].iter().map(|k| k.name()));
        header.push(&accuracy);
        header.extend(self.kinds[1..].iter().map(|k| k.name()));
        let mut table = Table::new(&header);
        for (v, &value) in self.values.iter().enumerate() {
            let kinds = 0..self.kinds.len();
            let speeds = kinds.clone().map(|k| count(self.spread(v, k, |o| o.epochs_to(GOAL))));
            let accuracies = kinds.map(|k| percent(self.spread(v, k, Outcome::final_accuracy)));
            table.row([show(value)].into_iter().chain(speeds).chain(accuracies));
        }
        table
    }

    /// The values at which the median run ends above the goal, in order.
    fn working(&self, kind: usize) -> Vec<f32> {
        let good = |&v: &usize| self.spread(v, kind, Outcome::final_accuracy).median >= GOAL;
        (0..self.values.len()).filter(good).map(|v| self.values[v]).collect()
    }

    /// The best median of final accuracies, and the fewest median epochs to the goal.
    fn best(&self, kind: usize) -> (f64, f64) {
        let all = 0..self.values.len();
        let accuracy = all.clone().map(|v| self.spread(v, kind, Outcome::final_accuracy).median).fold(0.0, f64::max);
        let speed = all.map(|v| self.spread(v, kind, |o| o.epochs_to(GOAL)).median).fold(f64::INFINITY, f64::min);
        (accuracy, speed)
    }
}

fn in_percent(points: Vec<(f64, Spread)>) -> Vec<(f64, Spread)> {
    points.into_iter().map(|(x, s)| (x, s.map(|v| v * 100.0))).collect()
}

fn percent_axis(label: &str) -> Axis {
    Axis::linear(label, &[0.0, 20.0, 40.0, 60.0, 80.0, 100.0])
}

fn floats(values: &[f32]) -> Vec<f64> {
    // By way of text: 0.1, not 0.10000000149.
    values.iter().map(|v| v.to_string().parse().unwrap_or_default()).collect()
}

fn range(values: &[f32]) -> String {
    match values {
        [] => "nowhere".into(),
        [one] => format!("at {one}"),
        [first, .., last] => format!("from {first} to {last} (×{})", digits(f64::from(last / first))),
    }
}

fn note(lab: &Lab, more: &str) -> String {
    format!("Lines: medians of {} seeds; bands: lowest to highest.{more}", lab.starts.len())
}

fn epochs_word(epochs: f64) -> String {
    if epochs.is_infinite() { "never".into() } else { format!("{epochs}") }
}

pub fn rate_runs(lab: &Lab) -> usize {
    2 * lab.thinned(&RATES, &RATE_CURVES).len() * lab.starts.len()
}

pub fn learning_rates(lab: &Lab) -> Result<Section> {
    let values = lab.thinned(&RATES, &RATE_CURVES);
    let grid = Grid::train(lab, &values, &BOTH, |learning_rate, task| Task { learning_rate, ..task })?;
    let mut panels: Vec<Panel> = (0..values.len())
        .filter(|&v| RATE_CURVES.contains(&values[v]))
        .map(|v| grid.loss_panel(v, format!("learning rate {}", values[v])))
        .collect();
    let x = Axis::log_at("learning rate", &[0.01, 0.1, 1.0, 10.0], &floats(&values));
    panels.push(grid.accuracy_panel("after the last epoch", x.clone()));
    panels.push(grid.speed_panel("how soon it has learned", x));
    let (with, without) = (grid.working(0), grid.working(1));
    let ((best_with, soon_with), (best_without, soon_without)) = (grid.best(0), grid.best(1));
    let wider = with.len() > without.len();
    let highest = with.last() > without.last();
    let faster = soon_with < soon_without;
    let faster_everywhere = (0..values.len())
        .filter(|&v| grid.spread(v, 0, |o| o.epochs_to(GOAL)).median < grid.spread(v, 1, |o| o.epochs_to(GOAL)).median)
        .count();
    Ok(Section {
        claim: "BN learns faster, and bears higher learning rates".into(),
        verdict: Verdict::of(wider && highest && faster, wider || highest || faster),
        seen: format!(
            "≥ {:.0} % {} with, {} without; soonest after {} and {} epochs",
            GOAL * 100.0,
            range(&with),
            range(&without),
            epochs_word(soon_with),
            epochs_word(soon_without)
        ),
        title: "Learning rates".into(),
        file: "learning-rates",
        figure: Figure {
            title: "Training at several learning rates".into(),
            note: note(lab, " A loss that is no number any more is drawn at the top."),
            columns: 3,
            panels,
        },
        text: format!(
            "Of the runs that fail, those at 10 % give the same answer for every image, and those at 0 % have a loss that is no \
             number any more.\n\n{}\nThe median run ends at {:.0} % or more {} with BN, {} without. With BN it is there sooner at {} of {} \
             learning rates. At the best one for each, the accuracy is {:.1} % with and {:.1} % without.\n",
            grid.table("learning rate", |v| v.to_string()).markdown(),
            GOAL * 100.0,
            range(&with),
            range(&without),
            faster_everywhere,
            values.len(),
            best_with * 100.0,
            best_without * 100.0,
        ),
    })
}

pub fn scale_runs(lab: &Lab) -> usize {
    2 * lab.thinned(&SCALES, &SCALE_CURVES).len() * lab.starts.len()
}

pub fn initial_scales(lab: &Lab) -> Result<Section> {
    let values = lab.thinned(&SCALES, &SCALE_CURVES);
    let grid = Grid::train(lab, &values, &BOTH, |scale, task| Task { scale, ..task })?;
    let mut panels: Vec<Panel> = (0..values.len())
        .filter(|&v| SCALE_CURVES.contains(&values[v]))
        .map(|v| grid.loss_panel(v, format!("initial weights × {}", values[v])))
        .collect();
    let x = Axis::log_at("factor of all initial weights", &[0.01, 0.1, 1.0, 10.0], &floats(&values));
    panels.push(grid.accuracy_panel("after the last epoch", x.clone()));
    panels.push(grid.speed_panel("how soon it has learned", x));
    let (with, without) = (grid.working(0), grid.working(1));
    Ok(Section {
        claim: "With BN it matters less how the weights are initialized".into(),
        verdict: Verdict::of(with.len() > without.len(), with.len() == without.len() && with != without),
        seen: format!("≥ {:.0} % {} with, {} without", GOAL * 100.0, range(&with), range(&without)),
        title: "Initial scales".into(),
        file: "initial-scales",
        figure: Figure {
            title: "Training from initial weights of several scales".into(),
            note: note(lab, " 1 is He et al.'s scale. A loss that is no number is drawn at the top."),
            columns: 3,
            panels,
        },
        text: format!(
            "All weights, also those of the last layer, are multiplied by the factor; 1 is He et al.'s.\n\n{}\n\
             Normalized layers give the same output at any scale (as long as the variance is well above ε), but they do not learn \
             alike: the gradient goes with 1/scale, so that in units of the weights a step goes with 1/scale². Small \
             weights are soon turned, and grow; large ones hardly move. The last layer is not normalized, and starts \
             with large logits where its weights are large.\n",
            grid.table("factor", |v| v.to_string()).markdown()
        ),
    })
}

pub fn batch_runs(lab: &Lab) -> usize {
    2 * lab.thinned(&BATCHES, &[2.0, 16.0, 64.0]).len() * lab.starts.len()
}

pub fn batch_sizes(lab: &Lab) -> Result<Section> {
    let values = lab.thinned(&BATCHES, &[2.0, 16.0, 64.0]);
    let grid = Grid::train(lab, &values, &BOTH, |batch, task| Task {
        batch: batch as usize,
        learning_rate: LEARNING_RATE * batch / BATCH as f32,
        ..task
    })?;
    let x = Axis::log_at("images in a batch", &floats(&values), &floats(&values));
    let population = in_percent(grid.over_values(0, |o| o.population_accuracy));
    let exact = Series {
        dash: Dash::Dashed,
        ..series("with BN, exact population statistics", PURPLE, Marker::Square, &population)
    };
    let mut accuracy = grid.accuracy_panel("after the last epoch", x.clone());
    accuracy.series.push(exact.clone());
    let mut medians = accuracy.series.clone();
    medians.iter_mut().for_each(|s| s.band.clear());
    let zoom = Panel {
        title: "the same, enlarged, medians".into(),
        x: x.clone(),
        y: Axis::linear("test accuracy, %", &[90.0, 92.0, 94.0, 96.0, 98.0, 100.0]),
        series: medians,
    };
    let last = grid.epochs - 1;
    let losses: Vec<Vec<(f64, Spread)>> = (0..2).map(|k| grid.over_values(k, |o| o.loss(last))).collect();
    let loss = Panel {
        title: "training loss of the last epoch".into(),
        x,
        y: Axis::log_over("loss", losses.iter().flatten().flat_map(|(_, s)| [s.low, s.high]), (1e-4, 1e2)),
        series: losses.iter().zip(BOTH).map(|(points, kind)| kind.series(points)).collect(),
    };
    let mut table = Table::new(&[
        "batch",
        "with BN, %",
        "with BN, exact statistics, %",
        "without BN, %",
        "last training loss: with BN",
        "without",
    ]);
    for (v, batch) in values.iter().enumerate() {
        table.row([
            batch.to_string(),
            percent(grid.spread(v, 0, Outcome::final_accuracy)),
            percent(grid.spread(v, 0, |o| o.population_accuracy)),
            percent(grid.spread(v, 1, Outcome::final_accuracy)),
            number(losses[0][v].1),
            number(losses[1][v].1),
        ]);
    }
    let accuracy_of = |v: usize, kind| grid.spread(v, kind, Outcome::final_accuracy);
    let at = |batch: f32| values.iter().position(|&v| v == batch).unwrap_or(0);
    let (two, full) = (at(2.0), at(64.0));
    let hurts = |kind| accuracy_of(two, kind).high < accuracy_of(full, kind).low;
    let best =
        (0..values.len()).max_by(|&a, &b| accuracy_of(a, 0).median.total_cmp(&accuracy_of(b, 0).median)).unwrap_or(0);
    let drop = |kind| (accuracy_of(full, kind).median - accuracy_of(two, kind).median) * 100.0;
    let repaired = (grid.spread(two, 0, |o| o.population_accuracy).median - accuracy_of(two, 0).median) * 100.0;
    let panels = vec![accuracy, zoom, loss];
    Ok(Section {
        claim: "Small batches hurt BN".into(),
        verdict: Verdict::of(hurts(0) && !hurts(1), drop(0) > 1.0 && drop(0) > drop(1)),
        seen: format!(
            "from batches of 64 to batches of 2, {} points of accuracy with BN, {} without",
            signed(-drop(0)),
            signed(-drop(1))
        ),
        title: "Batch sizes".into(),
        file: "batch-sizes",
        figure: Figure {
            title: "Batches down to two images".into(),
            note: note(
                lab,
                &format!(
                    " The learning rate goes with the batch: {LEARNING_RATE} at {BATCH}. Below an axis: at its end."
                ),
            ),
            columns: 3,
            panels,
        },
        text: format!(
            "The learning rate is {LEARNING_RATE} · batch / {BATCH}, so that an epoch goes equally far at each size; the epochs \
             are the same.\n\n{}\n\
             Between batches of 64 and of 2, accuracy changes by {} points with BN and by {} without. With BN the \
             best size is {}. Two things are wrong with small batches. Their statistics are noisy, which shows in the \
             training loss: a pair of images normalizes to ±1, whatever is in it. And the running statistics average \
             about 10 batches, which are few images then: with the exact statistics of the training set instead, \
             accuracy at batches of 2 changes by {} points.\n",
            table.markdown(),
            signed(-drop(0)),
            signed(-drop(1)),
            values[best],
            signed(repaired)
        ),
    })
}

pub fn place_runs(lab: &Lab) -> usize {
    3 * lab.thinned(&PLACES, &[0.1, 1.0]).len() * lab.starts.len()
}

pub fn places(lab: &Lab) -> Result<Section> {
    let values = lab.thinned(&PLACES, &[0.1, 1.0]);
    let grid = Grid::train(lab, &values, &THREE, |learning_rate, task| Task { learning_rate, ..task })?;
    let rename =
        |s: Series| if s.name == Kind::With.name() { Series { name: "BN before the ReLU".into(), ..s } } else { s };
    let mut panels: Vec<Panel> =
        (0..values.len()).map(|v| grid.loss_panel(v, format!("training loss, learning rate {}", values[v]))).collect();
    for (v, value) in values.iter().enumerate() {
        let lines: Vec<Series> =
            (0..3).map(|k| THREE[k].long_series(&in_percent(grid.over_epochs(v, k, Outcome::accuracy)))).collect();
        // The last stretch is where they differ: leave out what is still being learned.
        panels.push(Panel {
            title: format!("test accuracy, learning rate {value}"),
            x: Axis::count("epoch", grid.epochs),
            y: Axis::linear("test accuracy, %", &[80.0, 85.0, 90.0, 95.0, 100.0]),
            series: lines,
        });
    }
    for panel in &mut panels {
        panel.series = panel.series.drain(..).map(rename).collect();
    }
    // One is better where all its seeds are: the ranges do not overlap.
    let apart = |v: usize, of: &dyn Fn(&Outcome) -> f64| {
        let (before, after) = (grid.spread(v, 0, of), grid.spread(v, 1, of));
        if before.low > after.high {
            "before"
        } else if after.low > before.high {
            "after"
        } else {
            "neither"
        }
    };
    let last = grid.epochs - 1;
    let mut table = Table::new(&[
        "learning rate",
        "last training loss: BN before the ReLU",
        "after",
        "without BN",
        "final accuracy, %: BN before the ReLU",
        "after",
        "without BN",
    ]);
    for (v, value) in values.iter().enumerate() {
        let losses = (0..3).map(|k| number(grid.spread(v, k, |o| o.loss(last))));
        let accuracies = (0..3).map(|k| percent(grid.spread(v, k, Outcome::final_accuracy)));
        table.row([value.to_string()].into_iter().chain(losses).chain(accuracies));
    }
    let accuracies: Vec<&str> = (0..values.len()).map(|v| apart(v, &|o| o.final_accuracy())).collect();
    let losses: Vec<&str> = (0..values.len()).map(|v| apart(v, &|o| -o.loss(last))).collect();
    let tell = |v: usize| {
        let median = |k| grid.spread(v, k, Outcome::final_accuracy).median * 100.0;
        format!("{}: {:.1} % before, {:.1} % after", values[v], median(0), median(1))
    };
    let medians: Vec<String> = (0..values.len()).map(tell).collect();
    // "better before at 0.1, after at 1", of what is apart.
    let sides = |apart: &[&str]| {
        let at = |side: &str| {
            let rates = values.iter().zip(apart).filter(|(_, a)| **a == side).map(|(v, _)| v.to_string());
            rates.collect::<Vec<_>>().join(" and ")
        };
        let parts = ["before", "after"].map(|side| (side, at(side)));
        let parts =
            parts.iter().filter(|(_, at)| !at.is_empty()).map(|(side, at)| format!("better {side} the ReLU at {at}"));
        let all = parts.collect::<Vec<_>>().join(", ");
        if all.is_empty() { "not apart at any learning rate".into() } else { all }
    };
    let clear = |apart: &[&str]| apart.iter().filter(|&&side| side != "neither").count();
    let verdict = Verdict::of(clear(&accuracies) == values.len(), clear(&accuracies) + clear(&losses) > 0);
    Ok(Section {
        claim: "It matters whether BN stands before or after the activation (opinions differ on which is better)"
            .into(),
        verdict,
        seen: format!(
            "accuracy by learning rate: {}; the seeds' ranges: {}. Training loss: {}",
            medians.join("; "),
            sides(&accuracies),
            sides(&losses)
        ),
        title: "Before and after the activation".into(),
        file: "before-after",
        figure: Figure {
            title: "BN before the ReLU, and after it".into(),
            note: note(lab, " Accuracies below 80 % are drawn at the bottom."),
            columns: values.len(),
            panels,
        },
        text: format!(
            "dense → BN → ReLU, as Ioffe & Szegedy have it; dense → ReLU → BN; and no BN.\n\n{}\n\
             One place counts as better where the ranges of the seeds do not overlap. Accuracy after the last epoch: {}. \
             Training loss of the last epoch: {}.\n",
            table.markdown(),
            sides(&accuracies),
            sides(&losses)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_words() {
        assert_eq!(range(&[]), "nowhere");
        assert_eq!(range(&[0.1]), "at 0.1");
        assert_eq!(range(&[0.01, 0.1, 1.0]), "from 0.01 to 1 (×100)");
        assert_eq!(floats(&[0.1, 3.0]), [0.1, 3.0]);
    }
}
