//! The tests, one by one, with a mutant or without.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A test, how many seconds it takes, and which mutants it comes by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Test {
    pub executable: PathBuf,
    pub package: PathBuf,
    pub name: String,
    pub time: f64,
    pub reaches: HashSet<usize>,
}

impl Test {
    /// Where it is, for people: `bn-core sizes::name`.
    pub fn title(&self) -> String {
        let file = self.executable.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let target = file.rsplit_once('-').map_or(file.as_str(), |(t, _)| t);
        let package = self.package.file_name().unwrap_or_default().to_string_lossy();
        format!("{package} {target}::{}", self.name)
    }
}

#[derive(Debug, PartialEq)]
pub enum Outcome {
    Passed,
    Failed,
    TimedOut,
}

/// The names of an executable's tests.
pub fn list(executable: &Path, package: &Path) -> Result<Vec<String>> {
    let out = Command::new(executable).args(["--list", "--format", "terse"]).current_dir(package).output()?;
    let text = String::from_utf8(out.stdout)?;
    Ok(text.lines().filter_map(|l| l.strip_suffix(": test")).map(String::from).collect())
}

/// Runs a test. Memory is limited: a mutant may ask for all there is.
pub fn run(test: &Test, env: &[(&str, &str)], limit: Duration) -> Result<Outcome> {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"ulimit -v 12000000; ulimit -c 0; exec "$0" "$@""#])
        .arg(&test.executable)
        .args(["--exact", &test.name, "--test-threads=1", "-q"])
        .current_dir(&test.package)
        .env("CARGO_MANIFEST_DIR", &test.package)
        // The same cases each time; what fails is neither made smaller nor kept.
        .envs([("PROPTEST_RNG_SEED", "20260923"), ("PROPTEST_MAX_SHRINK_ITERS", "0")])
        .envs([("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true"), ("RUST_BACKTRACE", "0")])
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| test.title())?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(if status.success() { Outcome::Passed } else { Outcome::Failed });
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(Outcome::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs every test without a mutant: it must pass. Says how long it takes and what it comes by. What is known from an
/// earlier run of the same executables is taken from there.
pub fn measure(tests: &mut [Test], work: &Path, jobs: usize) -> Result<()> {
    let kept = work.join("tests.json");
    let modified = |path: &Path| path.metadata().and_then(|m| m.modified());
    let mut known: HashMap<(PathBuf, String), Test> = HashMap::new();
    if let Ok(text) = std::fs::read(&kept) {
        for test in serde_json::from_slice::<Vec<Test>>(&text)? {
            if modified(&test.executable).is_ok_and(|m| modified(&kept).is_ok_and(|k| m < k)) {
                known.insert((test.executable.clone(), test.name.clone()), test);
            }
        }
    }
    let done = in_parallel(tests.len(), jobs, |i| {
        if let Some(test) = known.get(&(tests[i].executable.clone(), tests[i].name.clone())) {
            return Ok((test.time, test.reaches.clone()));
        }
        let file = work.join(format!("reached-{i}"));
        let _ = std::fs::remove_file(&file);
        let env = [("BN_MUTANT", "all"), ("BN_MUTANT_REACHED", file.to_str().context("a path")?)];
        let start = Instant::now();
        let outcome = run(&tests[i], &env, Duration::from_secs(900))?;
        ensure!(outcome == Outcome::Passed, "{} fails without a mutant", tests[i].title());
        let ids = std::fs::read_to_string(&file).unwrap_or_default();
        Ok((start.elapsed().as_secs_f64(), ids.lines().filter_map(|l| l.parse().ok()).collect()))
    });
    for (test, measured) in tests.iter_mut().zip(done) {
        (test.time, test.reaches) = measured?;
    }
    Ok(std::fs::write(kept, serde_json::to_vec(tests)?)?)
}

/// Calls a function for each number, a few at a time, in order.
pub fn in_parallel<R: Send>(n: usize, jobs: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        break;
                    }
                    let result = f(i);
                    results.lock().expect("no panic").push((i, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no panic");
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, r)| r).collect()
}
