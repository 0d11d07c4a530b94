//! The measuring process: one layout, one number of threads, all shapes, all libraries.
//!
//! Each shape has one set of tensors. All subjects take turns on it, round after round, so that what the
//! machine does meanwhile hits all alike.

use crate::Options;
use crate::machine::{self, Facts};
use crate::onednn::OneDnn;
use crate::record::{Record, Row};
use anyhow::{Context, Result, ensure};
use bn_benches::check::Answer;
use bn_benches::data::Data;
use bn_benches::shapes::{CASES, Case, layout_name};
use bn_benches::{Operation, Subject, memory, ours, scalar};
use bn_core::{Isa, Layout};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How far a peer's answer may be from the right one.
const PEER_TOLERANCE: f64 = 1e-3;
/// After a library with threads of its own, which go on looking for work for a while.
const SETTLE: Duration = Duration::from_millis(10);
/// A call that takes so long needs none before it to warm up.
const LONG: f64 = 5e-3;

/// Measures, and returns the record's text.
pub fn run(options: &Options, layout: Layout, threads: usize) -> Result<String> {
    in_pool(threads, || measure_all(options, layout, threads)?.csv())
}

/// Runs `f` on as many threads of rayon's, on as many CPUs.
pub fn in_pool(threads: usize, f: impl FnOnce() -> Result<String> + Send) -> Result<String> {
    let cpus = machine::cpus();
    if cfg!(target_os = "linux") {
        ensure!(cpus.len() >= threads, "{threads} threads wanted, {} CPUs to be had", cpus.len());
        machine::pin(&cpus[..threads])?;
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    // From a thread of the pool, so that the calling thread works too, as it does in the peers. Objects of the
    // peers stay on this thread.
    rayon::scope(|_| f())
}

fn measure_all(options: &Options, layout: Layout, threads: usize) -> Result<Record> {
    let mut record = Record::default();
    let peers = OneDnn::load_all(options.libraries())?;
    for peer in &peers {
        record.facts.push((peer.name.clone(), peer.version.clone()));
    }
    #[cfg(feature = "candle")]
    record.facts.push((crate::candle::NAME.into(), "0.11".into()));
    for case in CASES.iter().filter(|c| options.wants(c)) {
        if case.shape(layout)?.is_some() {
            let started = Instant::now();
            let rows = measure(options, case, layout, threads, &peers)
                .with_context(|| format!("{} {}", layout_name(layout), case.name))?;
            eprintln!(
                "{} {} threads {}: {} subjects, {:.1} s",
                layout_name(layout),
                case.name,
                threads,
                rows.len(),
                started.elapsed().as_secs_f64()
            );
            record.rows.extend(rows);
        }
    }
    Ok(record)
}

/// What every run of these options says of itself.
pub fn facts(options: &Options) -> Facts {
    let mut facts = machine::facts();
    facts.push(("rounds".into(), options.rounds.to_string()));
    facts.push(("least sample".into(), format!("{} ms", options.sample_ms)));
    facts
}

/// The subjects of one library, and whether it brings threads of its own.
pub struct Group<'a> {
    foreign: bool,
    pub subjects: Vec<Timed<'a>>,
}

pub struct Timed<'a> {
    pub subject: Subject<'a>,
    calls: usize,
    warm: bool,
    /// Seconds per call.
    samples: Vec<f64>,
}

fn measure(options: &Options, case: &Case, layout: Layout, threads: usize, peers: &[Rc<OneDnn>]) -> Result<Vec<Row>> {
    let Some(shape) = case.shape(layout)? else { return Ok(Vec::new()) };
    let mut data = Data::new(shape);
    let mut groups = groups(options, threads, peers, &mut data)?;
    check(&mut groups, &mut data)?;
    for timed in groups.iter_mut().flat_map(|g| &mut g.subjects) {
        // The first call may have made threads, code and pages; another one may have been interrupted.
        let mut seconds = f64::INFINITY;
        for i in 0..4 {
            seconds = timed.time(&mut data)?.min(seconds);
            if i > 0 && seconds > LONG {
                break;
            }
        }
        timed.calls = (options.sample_ms * 1e-3 / seconds.max(1e-9)).ceil().clamp(1.0, 1e5) as usize;
        timed.warm = seconds < LONG;
    }
    let mut foreign = true;
    for round in 0..options.rounds {
        // Another one begins each round.
        let first = round % groups.len();
        for g in (first..groups.len()).chain(0..first) {
            if foreign {
                std::thread::sleep(SETTLE);
            }
            foreign = groups[g].foreign;
            for timed in &mut groups[g].subjects {
                if timed.warm {
                    (timed.subject.call)(&mut data)?;
                }
                let seconds = timed.time(&mut data)?;
                timed.samples.push(seconds);
            }
        }
    }
    let rows = groups.into_iter().flat_map(|g| g.subjects).map(|t| t.row(case, layout, threads));
    Ok(rows.collect())
}

/// All libraries' subjects, on these data.
pub fn groups(options: &Options, threads: usize, peers: &[Rc<OneDnn>], data: &mut Data) -> Result<Vec<Group<'static>>> {
    let group = |foreign, subjects: Vec<Subject<'static>>| {
        let timed = |subject| Timed { subject, calls: 1, warm: true, samples: Vec::new() };
        Group { foreign, subjects: subjects.into_iter().map(timed).collect() }
    };
    let mut groups = vec![
        group(false, our_subjects(options, data, threads)?),
        group(false, memory::subjects(threads)),
        group(false, scalar::subjects(data.shape, threads)),
    ];
    for peer in peers {
        groups.push(group(true, peer.subjects(data)?));
    }
    #[cfg(feature = "candle")]
    if data.shape.layout() == Layout::Nchw || data.shape.spatial() == 1 {
        groups.push(group(true, crate::candle::subjects(data)?));
    }
    groups.retain(|g| !g.subjects.is_empty());
    Ok(groups)
}

/// Every ISA for what the peers do too, the best one for the rest.
fn our_subjects(options: &Options, data: &Data, threads: usize) -> Result<Vec<Subject<'static>>> {
    let mut subjects = Vec::new();
    for isa in Isa::available().filter(|i| options.wants_isa(*i)) {
        for &operation in Operation::KERNELS {
            if Operation::COMMON.contains(&operation) || isa == Isa::detect() {
                subjects.push(ours::subject(data, operation, isa, threads)?);
            }
        }
    }
    Ok(subjects)
}

fn check(groups: &mut [Group<'_>], data: &mut Data) -> Result<()> {
    for &operation in Operation::KERNELS {
        let mut answer = None;
        for timed in groups.iter_mut().flat_map(|g| &mut g.subjects).filter(|t| t.subject.operation == operation) {
            let tolerance = if timed.subject.library == "bn" { ours::TOLERANCE } else { PEER_TOLERANCE };
            answer.get_or_insert_with(|| Answer::new(data, operation)).check(&mut timed.subject, data, tolerance)?;
        }
    }
    // What the answers overwrote with NaN, or masked, is nothing to be timed with.
    data.y.fill(1.0);
    Ok(())
}

impl Timed<'_> {
    /// Seconds per call.
    fn time(&mut self, data: &mut Data) -> Result<f64> {
        let started = Instant::now();
        for _ in 0..self.calls {
            (self.subject.call)(data)?;
        }
        Ok(started.elapsed().as_secs_f64() / self.calls as f64)
    }

    fn row(mut self, case: &Case, layout: Layout, threads: usize) -> Row {
        self.samples.sort_by(f64::total_cmp);
        let at = |share: f64| self.samples[((self.samples.len() - 1) as f64 * share).round() as usize] * 1e6;
        let bytes = self.subject.operation.bytes(case.len());
        let us = |v: f64| (v * 1e4).round() / 1e4;
        Row {
            layout: layout_name(layout).into(),
            operation: self.subject.operation.name().into(),
            shape: case.name.into(),
            threads,
            library: self.subject.library,
            variant: self.subject.variant,
            median_us: us(at(0.5)),
            least_us: us(at(0.0)),
            quartiles_us: us(at(0.75) - at(0.25)),
            rounds: self.samples.len(),
            calls: self.calls,
            bytes,
            gb_per_s: us(bytes as f64 / at(0.5) / 1e3),
            workspace_bytes: self.subject.workspace,
        }
    }
}
