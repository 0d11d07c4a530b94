//! Images and their labels.

use anyhow::{Result, ensure};
use rand::Rng;
use rand::seq::SliceRandom;

/// Rows of features, each with a label.
pub struct Samples {
    x: Vec<f32>,
    labels: Vec<usize>,
    features: usize,
    classes: usize,
}

/// What is learned from, and what is only tested on.
pub struct Split {
    pub train: Samples,
    pub test: Samples,
}

impl Samples {
    /// The 1,797 handwritten digits of Alpaydin and Kaynak (UCI, "Optical Recognition of Handwritten Digits") that
    /// `smartcore` carries: 8 × 8 grey values, scaled to 0 … 1.
    pub fn digits() -> Result<Self> {
        let dataset = smartcore::dataset::digits::load_dataset();
        let (classes, brightest) = (10, 16.0);
        let (rows, features) = (dataset.num_samples, dataset.num_features);
        ensure!(
            rows > 0 && dataset.data.len() == rows * features && dataset.target.len() == rows,
            "the digits of smartcore are not {rows} rows of {features} values"
        );
        ensure!(
            dataset.target.iter().all(|&t| t.fract() == 0.0 && (0.0..classes as f32).contains(&t)),
            "a label of smartcore's digits is not 0 … 9"
        );
        Ok(Samples {
            x: dataset.data.iter().map(|v| v / brightest).collect(),
            labels: dataset.target.iter().map(|&t| t as usize).collect(),
            features,
            classes,
        })
    }

    pub fn rows(&self) -> usize {
        self.labels.len()
    }
    pub fn features(&self) -> usize {
        self.features
    }
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Copies rows, in this order.
    pub fn gather(&self, indices: &[usize], x: &mut Vec<f32>, labels: &mut Vec<usize>) {
        x.clear();
        labels.clear();
        for &i in indices {
            x.extend_from_slice(&self.x[i * self.features..(i + 1) * self.features]);
            labels.push(self.labels[i]);
        }
    }

    /// Sets a share of each class aside for testing. Drawn per class, so that the test set is not short of a digit by
    /// chance. The same people wrote both sets: on strangers' digits the accuracy would be lower.
    pub fn split(&self, test_share: f64, rng: &mut impl Rng) -> Split {
        let (mut train, mut test) = (Vec::new(), Vec::new());
        for class in 0..self.classes {
            let mut of_class: Vec<usize> = (0..self.rows()).filter(|&i| self.labels[i] == class).collect();
            of_class.shuffle(rng);
            let (first, rest) = of_class.split_at((of_class.len() as f64 * test_share).round() as usize);
            test.extend_from_slice(first);
            train.extend_from_slice(rest);
        }
        Split { train: self.subset(&train), test: self.subset(&test) }
    }

    fn subset(&self, indices: &[usize]) -> Samples {
        let (mut x, mut labels) = (Vec::new(), Vec::new());
        self.gather(indices, &mut x, &mut labels);
        Samples { x, labels, ..*self }
    }
}
