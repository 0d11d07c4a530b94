//! A test that starts itself under `mpirun`, once for each number of ranks.
#![allow(dead_code, reason = "each test file uses its part")]

use std::env;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// How to start ranks, but for their number: another MPI wants something else.
const MPIRUN: &str = "mpirun --allow-run-as-root --oversubscribe --bind-to none -n";

/// Set for the ranks, and what they are to do.
const PART: &str = "BN_MPI_TEST_PART";

/// What this process is to do as a rank, or `None` if it is the one that starts them.
pub fn part() -> Option<String> {
    env::var(PART).ok()
}

/// Runs this program's part on so many ranks, and says how it ended and how long it took. Ranks that have not ended
/// after `limit` are killed, and the test fails.
pub fn start(ranks: usize, part: &str, limit: Duration) -> (ExitStatus, Duration) {
    let mpirun = env::var("BN_MPIRUN").unwrap_or_else(|_| MPIRUN.into());
    let program = env::current_exe().expect("this program has a path");
    let started = Instant::now();
    let seconds = limit.as_secs().to_string();
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &seconds]).args(mpirun.split_whitespace()).arg(ranks.to_string()).arg(program);
    let status = command.env(PART, part).status().expect("`timeout` and `mpirun` can be started");
    let took = started.elapsed();
    assert!(status.code() != Some(124), "{part} on {ranks} ranks did not end within {limit:?}");
    (status, took)
}

/// Runs this program's part on these numbers of ranks: all must end well within `limit`.
pub fn on_ranks(numbers: &[usize], part: &str, limit: Duration) {
    for &ranks in numbers {
        let (status, took) = start(ranks, part, limit);
        assert!(status.success(), "{part} on {ranks} ranks: {status}");
        println!("{part} on {ranks} ranks: ok, {:.1} s", took.as_secs_f64());
    }
}
