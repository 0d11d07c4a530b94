//! How long calls take.

use core::time::Duration;
use std::collections::BTreeMap;
use std::time::Instant;

/// The times of calls, by how many rows they were of.
#[derive(Default)]
pub struct Timer(BTreeMap<usize, Vec<Duration>>);

impl Timer {
    /// Calls `f` and notes how long it took.
    pub fn time<R>(&mut self, rows: usize, f: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = f();
        self.0.entry(rows).or_default().push(start.elapsed());
        result
    }

    /// The number of rows that most calls had, and the median of their times: the first call of all, and the few that
    /// the operating system breaks in on, do not move it.
    pub fn typical(&self) -> Option<(usize, Duration)> {
        let (&rows, times) = self.0.iter().max_by_key(|(_, times)| times.len())?;
        let mut times = times.clone();
        times.sort_unstable();
        Some((rows, times[times.len() / 2]))
    }
}
