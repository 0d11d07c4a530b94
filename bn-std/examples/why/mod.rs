//! The experiments: what is trained, and how it is told.

pub mod averages;
pub mod grids;
pub mod landscape;
pub mod plot;
pub mod report;

use crate::net::batch_norm::BatchNormOptions;
use crate::net::data::{Samples, Split};
use crate::net::train::{Epoch, Observer, Settings, train};
use crate::net::{Buffers, Network, Place};
use anyhow::Result;
use indicatif::ProgressBar;
use plot::{BLUE, Dash, GREEN, Marker, Series, VERMILION};
use plotters::style::RGBColor;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rayon::prelude::*;

const TEST_SHARE: f64 = 0.2;
/// Hidden layers, and neurons in each. With a single one there is little that BN has to put right.
pub const HIDDEN: [usize; 4] = [64; 4];
pub const BATCH: usize = 64;
/// Where the network without BN learns well too: see the figure of learning rates.
pub const LEARNING_RATE: f32 = 0.1;

/// What all experiments share.
pub struct Lab {
    pub seeds: Vec<u64>,
    pub starts: Vec<Start>,
    pub epochs: usize,
    /// Fewer points, to see that everything runs.
    pub quick: bool,
    pub bar: ProgressBar,
}

/// A seed's split of the data, its initial weights, and its order of batches: the same for all that are compared.
pub struct Start {
    pub data: Split,
    plain: Network,
    order: Xoshiro256PlusPlus,
}

/// Whether, and where, a network normalizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    With,
    Without,
    AfterActivation,
}

/// A network to be trained.
#[derive(Clone, Copy)]
pub struct Task {
    pub kind: Kind,
    pub learning_rate: f32,
    /// What the initial weights (He et al. 2015) are multiplied by.
    pub scale: f32,
    pub batch: usize,
}

/// How that went.
pub struct Outcome {
    epochs: Vec<Epoch>,
    /// The final accuracy with the exact statistics of the training set in place of the running ones.
    pub population_accuracy: f64,
}

impl Lab {
    pub fn new(seeds: Vec<u64>, quick: bool, bar: ProgressBar) -> Result<Self> {
        let digits = Samples::digits()?;
        let starts = seeds.iter().map(|&seed| Start::new(&digits, seed)).collect();
        Ok(Lab { seeds, starts, epochs: if quick { 4 } else { 30 }, quick, bar })
    }

    /// Steps of SGD in an epoch.
    pub fn steps_per_epoch(&self, batch: usize) -> usize {
        let order: Vec<usize> = (0..self.starts.first().map_or(0, |s| s.data.train.rows())).collect();
        crate::net::train::batches(&order, batch).count()
    }

    /// All points of a grid, or every so many of them to be quick.
    pub fn thinned<T: Copy>(&self, values: &[T], quick: &[T]) -> Vec<T> {
        if self.quick { quick.to_vec() } else { values.to_vec() }
    }

    /// Runs `work` for each item and each seed; by item, then by seed.
    pub fn for_each_seed<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T, &Start) -> Result<R> + Sync,
    ) -> Result<Vec<Vec<R>>> {
        let jobs: Vec<(&T, &Start)> =
            items.iter().flat_map(|item| self.starts.iter().map(move |s| (item, s))).collect();
        // In the order of the jobs, whichever is done first.
        let results: Result<Vec<R>> = jobs
            .par_iter()
            .with_max_len(1)
            .map(|(item, start)| {
                let result = work(item, start);
                self.bar.inc(1);
                result
            })
            .collect();
        let mut results = results?.into_iter();
        Ok(items.iter().map(|_| results.by_ref().take(self.starts.len()).collect()).collect())
    }

    /// Trains each of these from each seed.
    pub fn train_all(&self, tasks: &[Task]) -> Result<Vec<Vec<Outcome>>> {
        self.for_each_seed(tasks, |task, start| {
            let mut network = start.network(task);
            let epochs = start.train(&mut network, task, self.epochs, &mut |_: &Epoch| {})?;
            let population_accuracy = start.population_accuracy(&network)?;
            Ok(Outcome { epochs, population_accuracy })
        })
    }
}

impl Start {
    fn new(digits: &Samples, seed: u64) -> Self {
        // Not `SmallRng`, whose numbers differ between platforms.
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let data = digits.split(TEST_SHARE, &mut rng);
        let widths = [&[digits.features()], &HIDDEN[..], &[digits.classes()]].concat();
        let plain = Network::new(&widths, &mut rng);
        Start { data, plain, order: rng }
    }

    pub fn network(&self, task: &Task) -> Network {
        let mut network = self.plain.clone();
        network.scale_weights(task.scale);
        match task.kind.place() {
            Some(place) => network.with_batch_norm(place, BatchNormOptions::default()),
            None => network,
        }
    }

    pub fn train(
        &self,
        network: &mut Network,
        task: &Task,
        epochs: usize,
        observer: &mut impl Observer,
    ) -> Result<Vec<Epoch>, bn_core::Error> {
        let settings = Settings { epochs, batch: task.batch, learning_rate: task.learning_rate };
        let (buffers, timer) = (&mut Buffers::default(), &mut Default::default());
        train(network, &self.data, &settings, &mut self.order.clone(), buffers, timer, observer)
    }

    /// The training set in batches, in a fixed order.
    pub fn training_batches(&self) -> Vec<Vec<f32>> {
        let order: Vec<usize> = (0..self.data.train.rows()).collect();
        let gather = |batch| {
            let mut x = Vec::new();
            self.data.train.gather(batch, &mut x, &mut Vec::new());
            x
        };
        crate::net::train::batches(&order, BATCH).map(gather).collect()
    }

    fn population_accuracy(&self, network: &Network) -> Result<f64, bn_core::Error> {
        let population = network.population(&self.training_batches(), &mut Vec::new())?;
        let mut network = network.clone();
        for (norm, moments) in network.norms_mut().zip(&population) {
            norm.running_mean = moments.iter().map(|m| m.mean as f32).collect();
            norm.running_var = moments.iter().map(|m| m.variance() as f32).collect();
        }
        self.accuracy(&network)
    }

    /// On the test set, with the running statistics.
    pub fn accuracy(&self, network: &Network) -> Result<f64, bn_core::Error> {
        crate::net::train::evaluate(network, &self.data.test, BATCH, &mut Buffers::default())
    }
}

impl Kind {
    fn place(self) -> Option<Place> {
        match self {
            Kind::With => Some(Place::BeforeActivation),
            Kind::Without => None,
            Kind::AfterActivation => Some(Place::AfterActivation),
        }
    }

    pub fn style(self) -> (RGBColor, Marker) {
        match self {
            Kind::With => (BLUE, Marker::Circle),
            Kind::Without => (VERMILION, Marker::Triangle),
            Kind::AfterActivation => (GREEN, Marker::Square),
        }
    }

    /// Of a line without markers.
    pub fn dash(self) -> Dash {
        match self {
            Kind::With => Dash::Solid,
            Kind::Without => Dash::Dashed,
            Kind::AfterActivation => Dash::Dotted,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::With => "with BN",
            Kind::Without => "without BN",
            Kind::AfterActivation => "BN after the ReLU",
        }
    }

    /// A line of medians and a band from the lowest to the highest.
    pub fn series(self, points: &[(f64, Spread)]) -> Series {
        let (color, marker) = self.style();
        series(self.name(), color, marker, points)
    }

    /// The same without markers, where there are many points.
    pub fn long_series(self, points: &[(f64, Spread)]) -> Series {
        Series { marker: Marker::None, dash: self.dash(), ..self.series(points) }
    }
}

pub fn series(name: &str, color: RGBColor, marker: Marker, points: &[(f64, Spread)]) -> Series {
    Series {
        name: name.into(),
        color,
        marker,
        dash: Dash::Solid,
        line: points.iter().map(|&(x, s)| (x, s.median)).collect(),
        band: points.iter().map(|&(x, s)| (x, s.low, s.high)).collect(),
    }
}

impl Task {
    pub fn new(kind: Kind) -> Self {
        Task { kind, learning_rate: LEARNING_RATE, scale: 1.0, batch: BATCH }
    }
}

impl Outcome {
    /// Of an epoch, from 0; infinite once it has diverged.
    pub fn loss(&self, epoch: usize) -> f64 {
        self.epochs.get(epoch).map(|e| e.loss).filter(|loss| loss.is_finite()).unwrap_or(f64::INFINITY)
    }

    /// After an epoch, from 0; that of the last one if it diverged before.
    pub fn accuracy(&self, epoch: usize) -> f64 {
        self.epochs.get(epoch).or(self.epochs.last()).map_or(0.0, |e| e.test_accuracy)
    }

    pub fn final_accuracy(&self) -> f64 {
        self.accuracy(usize::MAX)
    }

    /// Epochs until a test accuracy was reached.
    pub fn epochs_to(&self, goal: f64) -> f64 {
        self.epochs.iter().position(|e| e.test_accuracy >= goal).map_or(f64::INFINITY, |i| (i + 1) as f64)
    }
}

/// The middle and the ends of some runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    /// NaN counts as the largest. Of an even number, the median is the mean of the two in the middle.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut v: Vec<f64> = values.into_iter().map(|v| if v.is_nan() { f64::INFINITY } else { v }).collect();
        v.sort_unstable_by(f64::total_cmp);
        let (Some(&low), Some(&high)) = (v.first(), v.last()) else {
            return Spread { median: f64::NAN, low: f64::NAN, high: f64::NAN };
        };
        let (a, b) = (v[(v.len() - 1) / 2], v[v.len() / 2]);
        Spread { median: if a == b { a } else { (a + b) / 2.0 }, low, high }
    }

    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Spread { median: f(self.median), low: f(self.low), high: f(self.high) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ends() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, low: 1.0, high: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0]), Spread { median: 2.5, low: 1.0, high: 4.0 });
        let diverged = Spread::of([f64::NAN, f64::INFINITY, 1.0]);
        assert_eq!(diverged, Spread { median: f64::INFINITY, low: 1.0, high: f64::INFINITY });
        assert!(Spread::of([]).median.is_nan());
    }
}
