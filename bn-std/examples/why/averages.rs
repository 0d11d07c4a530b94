//! Running statistics: how long they remember, and how far they are from the population's.
//!
//! Training does not look at them. So one training run carries any number of them along, and each is tried out.

use super::plot::{Axis, BLUE, Dash, Figure, GREEN, GREY, Marker, PURPLE, Panel, Series, VERMILION};
use super::report::{Section, Table, Verdict, count, digits, number, percent, signed};
use super::{BATCH, Kind, LEARNING_RATE, Lab, Spread, Start, Task, series};
use crate::net::Network;
use crate::net::train::Observer;
use anyhow::Result;
use bn_core::{Moments, Momentum, RunningStats, Variance};
use plotters::style::RGBColor;

/// Weights of the old value.
const DECAYS: [f64; 4] = [0.0, 0.9, 0.99, 0.999];
const STYLES: [(RGBColor, Marker); 4] =
    [(VERMILION, Marker::Triangle), (BLUE, Marker::Circle), (GREEN, Marker::Square), (PURPLE, Marker::Cross)];

/// Running statistics that started at 0, without the weight that those zeros still have after `steps` updates:
/// running / (1 − decay^steps), as in Adam.
fn debiased(running: &[f32], decay: f64, steps: u64) -> Vec<f32> {
    let weight = 1.0 - decay.powf(steps as f64);
    running.iter().map(|&r| if weight > 0.0 { (f64::from(r) / weight) as f32 } else { r }).collect()
}

/// Running statistics of all layers under one rule.
struct Average {
    decay: f64,
    debias: bool,
    rule: RunningStats,
    /// By layer: mean and variance.
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Average {
    fn new(decay: f64, debias: bool, network: &Network) -> Result<Self> {
        // From mean 0 and variance 1, as all frameworks do, or from nothing.
        let variance = if debias { 0.0 } else { 1.0 };
        let layer = |channels| (vec![0.0; channels], vec![variance; channels]);
        let layers = network.norms().map(|norm| layer(norm.moments().len())).collect();
        let rule = RunningStats::new(Momentum::WeighOld(decay), Variance::Unbiased)?;
        Ok(Average { decay, debias, rule, layers })
    }

    fn update(&mut self, network: &Network) -> Result<(), bn_core::Error> {
        for ((mean, var), norm) in self.layers.iter_mut().zip(network.norms()) {
            self.rule.update(norm.moments(), mean, var, None)?;
        }
        Ok(())
    }

    /// What inference would use after so many updates.
    fn statistics(&self, steps: u64) -> Vec<(Vec<f32>, Vec<f32>)> {
        let read = |running: &Vec<f32>| {
            if self.debias { debiased(running, self.decay, steps) } else { running.clone() }
        };
        self.layers.iter().map(|(mean, var)| (read(mean), read(var))).collect()
    }
}

/// How good some statistics are at a moment of training.
#[derive(Clone, Copy)]
struct Quality {
    accuracy: f64,
    /// The root mean square, over all channels, of (mean − population mean) / population standard deviation.
    mean_error: f64,
    /// That of ln(variance / population variance).
    var_error: f64,
}

type OfQuality = fn(&Quality) -> f64;

/// Updates the averages, and measures them at some steps.
struct Watch<'a> {
    start: &'a Start,
    batches: Vec<Vec<f32>>,
    averages: Vec<Average>,
    measure_at: &'a [u64],
    steps: u64,
    /// By moment: one per average, and last that of the population's own statistics.
    seen: Vec<Vec<Quality>>,
}

impl Observer for Watch<'_> {
    fn after_step(&mut self, network: &Network) -> Result<(), bn_core::Error> {
        self.steps += 1;
        for average in &mut self.averages {
            average.update(network)?;
        }
        if self.measure_at.contains(&self.steps) {
            let population = network.population(&self.batches, &mut Vec::new())?;
            let exact = population
                .iter()
                .map(|layer| {
                    let var = |m: &Moments| m.variance_unbiased() as f32;
                    (layer.iter().map(|m| m.mean as f32).collect(), layer.iter().map(var).collect())
                })
                .collect();
            let all = self.averages.iter().map(|a| a.statistics(self.steps)).chain([exact]);
            let quality: Result<Vec<Quality>, _> =
                all.map(|statistics| judge(self.start, network, &population, &statistics)).collect();
            self.seen.push(quality?);
        }
        Ok(())
    }
}

fn judge(
    start: &Start,
    network: &Network,
    population: &[Vec<Moments>],
    statistics: &[(Vec<f32>, Vec<f32>)],
) -> Result<Quality, bn_core::Error> {
    let mut network = network.clone();
    let (mut mean_error, mut var_error, mut channels) = (0.0, 0.0, 0.0);
    for ((norm, exact), (mean, var)) in network.norms_mut().zip(population).zip(statistics) {
        for ((m, &mean), &var) in exact.iter().zip(mean).zip(var) {
            // A neuron that is the same for all images has no scale to measure by.
            if m.m2 > 0.0 {
                mean_error += (f64::from(mean) - m.mean).powi(2) / m.variance();
                var_error += (f64::from(var).max(1e-12) / m.variance_unbiased()).ln().powi(2);
                channels += 1.0;
            }
        }
        norm.running_mean.clone_from(mean);
        norm.running_var.clone_from(var);
    }
    let accuracy = start.accuracy(&network)?;
    Ok(Quality { accuracy, mean_error: (mean_error / channels).sqrt(), var_error: (var_error / channels).sqrt() })
}

pub fn runs(lab: &Lab) -> usize {
    lab.starts.len()
}

/// Lei Mao's caveat, and the distance from the population.
pub fn averages(lab: &Lab) -> Result<Vec<Section>> {
    let last = (lab.epochs * lab.steps_per_epoch(BATCH)) as u64;
    let mut measure_at: Vec<u64> =
        [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 400, 500, 700, 1000].into();
    measure_at.retain(|&step| step < last);
    measure_at.push(last);
    let watched = lab.for_each_seed(&[Task::new(Kind::With)], |task, start| {
        let mut network = start.network(task);
        let averages: Result<Vec<Average>> = [false, true]
            .into_iter()
            .flat_map(|debias| DECAYS.map(|decay| (decay, debias)))
            .map(|(decay, debias)| Average::new(decay, debias, &network))
            .collect();
        let batches = start.training_batches();
        let mut watch =
            Watch { start, batches, averages: averages?, measure_at: &measure_at, steps: 0, seen: Vec::new() };
        start.train(&mut network, task, lab.epochs, &mut watch)?;
        Ok(watch.seen)
    })?;
    let seeds = &watched[0];
    let n = DECAYS.len();
    let spread = |which: usize, moment: usize, of: OfQuality| {
        Spread::of(seeds.iter().map(|seed| seed.get(moment).map_or(f64::NAN, |q| of(&q[which]))))
    };
    let curve = |which: usize, of: OfQuality| -> Vec<(f64, Spread)> {
        measure_at.iter().enumerate().map(|(i, &step)| (step as f64, spread(which, i, of))).collect()
    };
    let line = |decay: usize, debias: usize, of: OfQuality, factor: f64| {
        let points: Vec<_> =
            curve(debias * n + decay, of).into_iter().map(|(x, s)| (x, s.map(|v| v * factor))).collect();
        series(&format!("momentum {}", DECAYS[decay]), STYLES[decay].0, STYLES[decay].1, &points)
    };
    let steps = || Axis::log("training steps so far", 0.9, last as f64 * 1.1);
    let titles = ["from mean 0, variance 1", "with zero-debias"];

    let panel = |debias: usize| {
        let mut series: Vec<Series> = (0..n).map(|d| line(d, debias, |q| q.accuracy, 100.0)).collect();
        let exact = curve(2 * n, |q| q.accuracy).into_iter().map(|(x, s)| (x, s.median * 100.0)).collect();
        let name = "exact population statistics".into();
        series.push(Series {
            name,
            color: GREY,
            marker: Marker::None,
            dash: Dash::Dashed,
            line: exact,
            band: Vec::new(),
        });
        Panel {
            title: titles[debias].into(),
            x: steps(),
            y: Axis::linear("validation accuracy, %", &[0.0, 20.0, 40.0, 60.0, 80.0, 100.0]),
            series,
        }
    };
    let mut enlarged = panel(1);
    enlarged.title = "zero-debias, enlarged, medians".into();
    enlarged.y = Axis::linear("validation accuracy, %", &[85.0, 90.0, 95.0, 100.0]);
    enlarged.x = Axis::log_at("training steps so far", &[20.0, 50.0, 100.0, 200.0, 500.0], &[20.0, last as f64]);
    for series in &mut enlarged.series {
        series.band.clear();
        series.line.retain(|&(step, _)| step >= 20.0);
    }
    let note =
        |more: &str| format!("Momentum: weight of the old value. Lines: medians of {} seeds{more}", lab.starts.len());
    let momentum_figure = Figure {
        title: "Validation accuracy while training, by the momentum of the running statistics".into(),
        note: note("; bands: lowest to highest. Zero-debias: running / (1 − momentum^steps)."),
        columns: 3,
        panels: vec![panel(0), panel(1), enlarged],
    };
    // A few moments in the table: the first step, and about each of these shares of the run.
    let mut shown: Vec<usize> =
        [10, 50, 100, 200, last].iter().filter_map(|&step| measure_at.iter().rposition(|&m| m <= step)).collect();
    shown.dedup();
    let mut header = vec!["momentum".to_owned(), "zero-debias".to_owned()];
    header.extend(shown.iter().map(|&i| format!("accuracy, %, after {} steps", measure_at[i])));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = Table::new(&header);
    for which in 0..2 * n {
        let cells = shown.iter().map(|&i| percent(spread(which, i, |q| q.accuracy)));
        let debias = if which < n { "no" } else { "yes" };
        table.row([DECAYS[which % n].to_string(), debias.into()].into_iter().chain(cells));
    }
    let cells = shown.iter().map(|&i| percent(spread(2 * n, i, |q| q.accuracy)));
    table.row(["exact".to_owned(), String::new()].into_iter().chain(cells));

    // Steps until within two points of what the exact statistics give, and from then on.
    let lag = |which: usize| {
        let median = |i| spread(which, i, |q| q.accuracy).median;
        let near = |&i: &usize| median(i) >= spread(2 * n, i, |q| q.accuracy).median - 0.02;
        let good = (0..measure_at.len()).rev().take_while(near).last();
        good.map_or(f64::INFINITY, |i| measure_at[i] as f64)
    };
    let told = |which: usize| count(Spread::of([lag(which)]));
    let slow = lag(3) > 4.0 * lag(1);
    let repaired = lag(n + 3) < lag(3);
    let end = measure_at.len() - 1;
    let at_end = |which| spread(which, end, |q| q.accuracy);
    let jumpy = at_end(0).median < at_end(1).median || at_end(0).low < at_end(1).low;
    let all_lags = |debias: usize| -> String {
        (0..n).map(|d| format!("{} with {}", told(debias * n + d), DECAYS[d])).collect::<Vec<_>>().join(", ")
    };
    let rest = lab.starts.first().map_or(0, |s| s.data.train.rows() % BATCH);
    let momentum = Section {
        claim:
            "A large momentum makes validation accuracy lag in short trainings (Lei Mao's caveat); zero-debias helps"
                .into(),
        verdict: Verdict::of(slow && repaired, slow || repaired),
        seen: format!(
            "steps until within two points of the exact statistics, for good: {} at 0.9, {} at 0.999; with zero-debias {} and {}",
            told(1),
            told(3),
            told(n + 1),
            told(n + 3)
        ),
        title: "Momentum and validation accuracy".into(),
        file: "momentum",
        figure: momentum_figure,
        text: format!(
            "The same training run (learning rate {LEARNING_RATE}, batch {BATCH}), tested with running statistics of four momenta, \
             as TensorFlow and Keras mean them: the weight of the **old** value (PyTorch's 0.1 is 0.9 here). Training does not \
             depend on them, only what is seen of it.\n\n{}\n\
             Steps until the median accuracy is within two points of that with the exact statistics, and stays there: without \
             zero-debias {}; with it {}. After {last} steps momentum 0, which takes the statistics of the last batch alone \
             (the rest of an epoch: {rest} images), {} (worst seed {:.1} %, with 0.9 {:.1} %).\n\n\
             Zero-debias takes out the weight of the start, not the memory: at 0.999 the statistics are then a nearly even average \
             over the whole run so far, of weights long gone.\n",
            table.markdown(),
            all_lags(0),
            all_lags(1),
            if jumpy { "is no better than a longer memory" } else { "does as well as a longer memory" },
            at_end(0).low * 100.0,
            at_end(1).low * 100.0,
        ),
    };

    let measures: [(&str, OfQuality); 2] =
        [("error of the mean, σ", |q| q.mean_error), ("error of variance, ln", |q| q.var_error)];
    let mut panels = Vec::new();
    for (label, of) in measures {
        let all: Vec<f64> = (0..2 * n).flat_map(|which| curve(which, of)).flat_map(|(_, s)| [s.low, s.high]).collect();
        for (debias, title) in titles.iter().enumerate() {
            panels.push(Panel {
                title: (*title).into(),
                x: steps(),
                y: Axis::log_over(label, all.iter().copied(), (1e-4, 1e3)),
                series: (0..n).map(|d| line(d, debias, of, 1.0)).collect(),
            });
        }
    }
    let population_figure = Figure {
        title: "How far running statistics are from the exact ones of the training set".into(),
        note: note(
            ", of the root mean square over all 256 channels; bands: lowest to highest. σ: the exact standard deviation; ln: logarithm of running over exact variance.",
        ),
        columns: 2,
        panels,
    };
    let mut table =
        Table::new(&["momentum", "zero-debias", "error of the mean, σ", "error of the variance, ln", "accuracy, %"]);
    for which in 0..2 * n {
        let debias = if which < n { "no" } else { "yes" };
        let (mean, var) = (spread(which, end, |q| q.mean_error), spread(which, end, |q| q.var_error));
        table.row([DECAYS[which % n].to_string(), debias.into(), number(mean), number(var), percent(at_end(which))]);
    }
    let exact = at_end(2 * n);
    table.row(["exact".into(), String::new(), "0".into(), "0".into(), percent(exact)]);
    let best_mean = (0..2 * n).map(|w| spread(w, end, |q| q.mean_error).median).fold(f64::INFINITY, f64::min);
    // Positive where the exact statistics are better.
    let gains: Vec<f64> = (0..2 * n).map(|which| (exact.median - at_end(which).median) * 100.0).collect();
    let noise = 2.0 * 100.0 / lab.starts.first().map_or(1, |s| s.data.test.rows()) as f64;
    let list = |gains: &[f64]| {
        let each = gains.iter().zip(DECAYS).map(|(&gain, decay)| format!("{} at {decay}", signed(gain)));
        each.collect::<Vec<_>>().join(", ")
    };
    let better = gains.iter().filter(|&&gain| gain > noise).count();
    let population = Section {
        claim: "For inference the exact statistics of the training set (Ioffe & Szegedy, Algorithm 2) are better than running ones".into(),
        verdict: Verdict::of(better == 2 * n, better > 0),
        seen: format!("points of accuracy at the end that the exact ones gain over momenta: {}; with zero-debias {}", list(&gains[..n]), list(&gains[n..])),
        title: "Running and exact statistics".into(),
        file: "population",
        figure: population_figure,
        text: format!(
            "The exact statistics are `Moments` merged over all batches of the training set, layer by layer, with the weights of that \
             moment. Errors are root mean squares over all channels: of the mean in standard deviations of the population, of the \
             variance as the logarithm of the ratio (0.1: about 10 %).\n\nAfter {last} steps:\n\n{}\n\
             Points of accuracy that the exact statistics gain over running ones: {}; with zero-debias {}. Differences of less than \
             two images of the test set ({:.1} points) say nothing.\n\n\
             The smallest error of a running mean is {} σ. A short memory is noisy, a long one is late: the weights have moved \
             since. The exact statistics are neither, and cost one pass over the training set. See \
             [batch sizes](#batch-sizes) for what they gain with small batches.\n",
            table.markdown(),
            list(&gains[..n]),
            list(&gains[n..]),
            noise,
            digits(best_mean)
        ),
    };
    Ok(vec![momentum, population])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is averaged is found again exactly if it does not change, however short the average has run; and otherwise
    /// the weights are those of an average.
    #[test]
    fn debiasing_takes_out_the_zeros() -> Result<()> {
        let moments = [Moments { count: 4, mean: 3.0, m2: 6.0 }];
        for decay in DECAYS {
            let rule = RunningStats::new(Momentum::WeighOld(decay), Variance::Unbiased)?;
            let (mut mean, mut var) = ([0.0f32], [0.0f32]);
            for steps in 1..=20 {
                rule.update(&moments, &mut mean, &mut var, None)?;
                let (mean, var) = (debiased(&mean, decay, steps)[0], debiased(&var, decay, steps)[0]);
                assert!((mean - 3.0).abs() < 1e-4 && (var - 2.0).abs() < 1e-4, "{decay}, {steps}: {mean}, {var}");
            }
        }
        // 0.5·1 + 0.25·4 over weights of 0.75: the first value was 4.
        assert_eq!(debiased(&[1.5], 0.5, 2), [2.0]);
        assert_eq!(debiased(&[0.0], 0.9, 0), [0.0]);
        Ok(())
    }

    /// The population's own statistics have no error, and twice the variance has one of ln 2.
    #[test]
    fn errors_are_measured_from_the_population() -> Result<()> {
        let start = &Lab::new(vec![5], true, indicatif::ProgressBar::hidden())?.starts[0];
        let mut network = start.network(&Task::new(Kind::With));
        start.train(&mut network, &Task::new(Kind::With), 1, &mut |_: &_| {})?;
        let population = network.population(&start.training_batches(), &mut Vec::new())?;
        let with = |shift: f64, factor: f64| -> Vec<(Vec<f32>, Vec<f32>)> {
            let layer = |layer: &Vec<Moments>| {
                let mean = layer.iter().map(|m| (m.mean + shift * m.variance().sqrt()) as f32).collect();
                (mean, layer.iter().map(|m| (m.variance_unbiased() * factor) as f32).collect())
            };
            population.iter().map(layer).collect()
        };
        let exact = judge(start, &network, &population, &with(0.0, 1.0))?;
        assert!(exact.mean_error < 1e-5 && exact.var_error < 1e-5 && exact.accuracy > 0.5);
        let off = judge(start, &network, &population, &with(0.5, 2.0))?;
        assert!((off.mean_error - 0.5).abs() < 1e-4 && (off.var_error - 2f64.ln()).abs() < 1e-4);
        Ok(())
    }
}
