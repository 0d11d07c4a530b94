//! Measures the library by the oracle over generated cases, and prints the worst errors as tables.
//!
//! ```text
//! cargo run --release -p bn-oracle --features half --example sweep -- [--cases N] [--seed N] [--large LOG2]
//!                                                     [--threads N] [--write FILE] [--case NUMBER]
//! ```
//! Case i of a seed is the same on every machine. `--large 24` adds channels of up to 2²⁴ elements.
//! `--write` puts the tables between the marks of a markdown file. `--case` runs one case and prints it.

use bn_core::{Isa, Layout, Shape};
use bn_oracle::bounds::limit;
use bn_oracle::data::{Family, Gradient, Random};
use bn_oracle::problem::{How, Number, Problem, Through};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Operation {
    Training,
    Inference,
    Backward,
    Frozen,
}

impl Operation {
    const ALL: [Operation; 4] = [Operation::Training, Operation::Inference, Operation::Backward, Operation::Frozen];

    fn title(self) -> &'static str {
        match self {
            Operation::Training => "Training",
            Operation::Inference => "Inference",
            Operation::Backward => "Backward through batch statistics",
            Operation::Frozen => "Backward through running statistics",
        }
    }

    /// What is measured, and the bound of each.
    fn quantities(self) -> &'static [(&'static str, f64)] {
        match self {
            Operation::Training => &[("y", limit::Y), ("mean", limit::MEAN), ("variance", limit::VARIANCE)],
            Operation::Inference => &[("y", limit::INFERENCE)],
            Operation::Backward => {
                &[("dx", limit::DX), ("dgamma", limit::DGAMMA), ("dbeta", limit::DBETA), ("dx, flat", f64::INFINITY)]
            }
            Operation::Frozen => {
                &[("dx", limit::FROZEN_DX), ("dgamma", limit::FROZEN_SUMS), ("dbeta", limit::FROZEN_SUMS)]
            }
        }
    }
}

/// What is wrong by how much, and in which case.
type Worst = (f64, u64);

#[derive(Default)]
struct Tables {
    /// By operation, type, family, layout; then of each quantity.
    worst: BTreeMap<(Operation, &'static str, &'static str, bool), Vec<Worst>>,
    cases: BTreeMap<(Operation, &'static str, &'static str, bool), u64>,
    channels: u64,
    elements: u64,
}

impl Tables {
    fn add(&mut self, key: (Operation, &'static str, &'static str, bool), case: u64, errors: &[f64]) {
        let worst = self.worst.entry(key).or_insert_with(|| vec![(0.0, 0); errors.len()]);
        for (w, &e) in worst.iter_mut().zip(errors) {
            if !(e <= w.0) {
                *w = (e, case);
            }
        }
        *self.cases.entry(key).or_default() += 1;
    }

    fn merge(&mut self, o: Tables) {
        for (key, errors) in o.worst {
            let worst = self.worst.entry(key).or_insert_with(|| vec![(0.0, 0); errors.len()]);
            for (w, e) in worst.iter_mut().zip(errors) {
                if !(e.0 <= w.0) {
                    *w = e;
                }
            }
        }
        for (key, n) in o.cases {
            *self.cases.entry(key).or_default() += n;
        }
        self.channels += o.channels;
        self.elements += o.elements;
    }
}

/// Worst of all channels.
fn measure<T: Number>(op: Operation, p: &Problem<T>, how: How<'_>, through: Through) -> Vec<f64> {
    let mut worst = vec![0.0f64; op.quantities().len()];
    let mut take = |errors: &[f64]| {
        for (w, e) in worst.iter_mut().zip(errors) {
            // NaN is worse than anything.
            *w = if e.is_nan() { f64::INFINITY } else { w.max(*e) };
        }
    };
    let channels = 0..p.shape.channels();
    match op {
        Operation::Training => {
            let made = p.forward(how);
            for c in channels {
                let e = p.judge_forward(c, &made);
                take(&[e.y, e.mean, e.variance]);
            }
        }
        Operation::Inference => {
            let made = p.inference(how);
            for c in channels {
                take(&[p.judge_inference(c, &made)]);
            }
        }
        Operation::Backward | Operation::Frozen => {
            let forward = p.forward(how);
            let made = p.backward(how, &forward, through);
            for c in channels {
                let e = p.judge_backward(c, &forward, &made, through);
                take(&[e.dx, e.dgamma, e.dbeta, e.dx_flat]);
            }
        }
    }
    worst
}

/// A shape with `n` or a few more values per channel.
fn shape(r: &mut Random, n: usize, most: usize) -> Shape {
    let spatial = match r.below(4) {
        0 => 1,
        1 => n,
        _ => 1 + (n as f64).powf(r.uniform()) as usize,
    };
    let batch = n.div_ceil(spatial);
    let channels = 1 + r.below((most / (batch * spatial)).clamp(1, 40));
    let layout = if r.below(2) == 0 { Layout::Nchw } else { Layout::Nhwc };
    Shape::new(layout, batch, channels, &[spatial]).expect("small shapes")
}

fn one<T: Number>(case: u64, op: Operation, r: &mut Random, large: Option<u32>, into: &mut Tables, print: bool) {
    let shape = match large {
        // The whole count in one channel, or halved between two.
        Some(log2) => {
            let n = 1usize << log2;
            let images = r.pick(&[1, 4, 32]);
            match r.below(3) {
                0 => Shape::nhwc(images, 2, &[n / images]),
                _ => Shape::nchw(images, 1, &[n / images]),
            }
            .expect("shapes that fit memory")
        }
        None => {
            let n = 2f64.powf(1.0 + 11.0 * r.uniform().powf(0.8)) as usize;
            shape(r, n.max(2), 3000)
        }
    };
    let family = r.pick(&Family::ALL);
    let gradient = r.pick(&Gradient::ALL);
    let p = Problem::<T>::random(shape, family, gradient, r);
    let isas: Vec<Isa> = Isa::available().collect();
    let how = How { isa: r.pick(&isas), ..How::default() };
    let through = match op {
        Operation::Frozen => Through::Running,
        // A variance beyond what the parameters' type holds has no rounded form.
        _ if r.below(4) == 0 => Through::Rounded,
        _ => Through::Batch,
    };
    let through = if through == Through::Rounded && !roundable(&p) { Through::Batch } else { through };
    let errors = measure(op, &p, how, through);
    if print {
        println!(
            "case {case}: {op:?} {} {family:?} {gradient:?} {shape:?} ε = {} {:?} residual {} {through:?} {how:?}",
            T::FORMAT.name,
            p.epsilon,
            p.activation,
            p.residual.is_some(),
            how = how.isa
        );
        println!("  γ {:?}\n  β {:?}\n  running {:?}", p.gamma, p.beta, p.running);
        for c in 0..shape.channels() {
            let (x, dy) = (p.gather(c, &p.x), p.gather(c, &p.dy));
            let few = |v: &[f64]| v.iter().take(12).map(|v| format!("{v:e}")).collect::<Vec<_>>().join(" ");
            println!("  channel {c}: x {} …\n    dy {} …", few(&x), few(&dy));
        }
    }
    let last = shape.layout() == Layout::Nhwc;
    for ((what, limit), e) in op.quantities().iter().zip(&errors) {
        let promised = if *what == "variance" { limit::CONTRACT_VARIANCE } else { limit::CONTRACT };
        // Sums in f64 may be as wrong as follows; the rest, as promised.
        let summed = !matches!((op, *what), (Operation::Inference, _) | (Operation::Frozen, "dx"));
        let bound = match T::FORMAT.name {
            "f64" if summed => T::FORMAT.follows(*limit),
            _ => limit.min(promised),
        };
        if !(*e <= bound) && *what != "dx, flat" || print {
            println!("case {case}: {op:?} {} {family:?} {gradient:?} {shape:?}: {what} {e:.1} units", T::FORMAT.name);
        }
    }
    into.add((op, T::FORMAT.name, family.name(), last), case, &errors);
    if matches!(op, Operation::Backward | Operation::Frozen) {
        into.add((op, T::FORMAT.name, gradient.name(), last), case, &errors);
    }
    into.channels += shape.channels() as u64;
    into.elements += shape.len() as u64;
}

/// Whether the variances of all channels are normal numbers of the parameters' type, or 0 exactly.
fn roundable<T: Number>(p: &Problem<T>) -> bool {
    // The parameters of narrow types are f32.
    let (low, high) = if T::FORMAT.name == "f64" { (1e-300, 1e300) } else { (1e-37, 1e38) };
    (0..p.shape.channels()).all(|c| {
        let v = p.channel(c).variance().hi;
        v == 0.0 || (low..high).contains(&v)
    })
}

/// Case `i` of a seed. The large ones come last, with their own numbers.
fn run(seed: u64, case: u64, large: Option<u32>, into: &mut Tables, print: bool) {
    let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ case.wrapping_mul(0xd134_2543_de82_ef95));
    r.bits();
    let op = Operation::ALL[(case % 4) as usize];
    match case / 4 % 8 {
        2 | 5 if large.is_none_or(|l| l <= 22) => one::<f64>(case, op, &mut r, large, into, print),
        6 => one::<half::f16>(case, op, &mut r, large, into, print),
        7 => one::<half::bf16>(case, op, &mut r, large, into, print),
        _ => one::<f32>(case, op, &mut r, large, into, print),
    }
}

/// Where the numbers of large cases start.
const LARGE: u64 = 1 << 40;

/// The size of a large case: each from 2¹⁶ up, the larger the fewer.
fn large_sizes(top: u32) -> Vec<u32> {
    (16..=top).flat_map(|l| std::iter::repeat_n(l, if l >= 23 { 8 } else { 16 })).collect()
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut cases, mut seed, mut large, mut threads) = (10_000u64, 1u64, 0u32, 2usize);
    let (mut write, mut only) = (None, None);
    while let Some(a) = args.next() {
        let value = args.next().unwrap_or_default();
        let number = || value.parse().unwrap_or_else(|_| panic!("{a} takes a number"));
        match a.as_str() {
            "--cases" => cases = number(),
            "--seed" => seed = number(),
            "--large" => large = number() as u32,
            "--threads" => threads = number() as usize,
            "--case" => only = Some(number()),
            "--write" => write = Some(value),
            _ => panic!("unknown argument {a}"),
        }
    }
    let sizes = large_sizes(large);
    let size_of = |case: u64| (case >= LARGE).then(|| sizes[(case - LARGE) as usize]);
    if let Some(case) = only {
        run(seed, case, size_of(case), &mut Tables::default(), true);
        return;
    }
    let start = Instant::now();
    let (next, total) = (AtomicU64::new(0), cases + sizes.len() as u64);
    let all = Mutex::new(Tables::default());
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                let mut mine = Tables::default();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= total {
                        break;
                    }
                    let case = if i < cases { i } else { LARGE + (i - cases) };
                    run(seed, case, size_of(case), &mut mine, false);
                }
                all.lock().expect("no thread panics").merge(mine);
            });
        }
    });
    let tables = all.into_inner().expect("no thread panics");
    let report = report(&tables, cases, seed, large, sizes.len());
    println!("{report}\n{:.0} s", start.elapsed().as_secs_f64());
    if let Some(file) = write {
        put(&file, &report);
    }
}

fn report(t: &Tables, cases: u64, seed: u64, large: u32, large_cases: usize) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let mut line = |s: &str| writeln!(out, "{s}").expect("strings take everything");
    line(&format!(
        "{} cases ({} channels, {:.0} million elements): `cargo run --release -p bn-oracle --features half \
         --example sweep -- --cases {cases} --seed {seed} --large {large}`.",
        cases + large_cases as u64,
        t.channels,
        t.elements as f64 / 1e6
    ));
    for op in Operation::ALL {
        let quantities = op.quantities();
        line(&format!("\n### {}\n", op.title()));
        let mut head = "| type | data | cases |".to_string();
        for layout in ["NCHW", "NHWC"] {
            for (q, _) in quantities {
                head += &format!(" {q}, {layout} |");
            }
        }
        line(&head);
        line(&format!("|---|---|---:|{}", "---:|".repeat(2 * quantities.len())));
        let keys: Vec<_> = t.worst.keys().filter(|k| k.0 == op).map(|k| (k.1, k.2)).collect();
        let mut done = Vec::new();
        for (name, family) in keys {
            if done.contains(&(name, family)) {
                continue;
            }
            done.push((name, family));
            let n: u64 = [false, true].iter().filter_map(|l| t.cases.get(&(op, name, family, *l))).sum();
            let mut row = format!("| {name} | {family} | {n} |");
            for last in [false, true] {
                for q in 0..quantities.len() {
                    let w = t.worst.get(&(op, name, family, last)).map_or(0.0, |w| w[q].0);
                    row += &format!(" {w:.2} |");
                }
            }
            line(&row);
        }
        let mut row = "| | **worst** | |".to_string();
        let mut bound = "| | bound (sums in f64: × 9) | |".to_string();
        for last in [false, true] {
            for (q, (_, limit)) in quantities.iter().enumerate() {
                let worst = t.worst.iter().filter(|(k, _)| k.0 == op && k.3 == last).map(|(_, w)| w[q]);
                let w = worst.fold((0.0, 0), |a: Worst, b| if b.0 <= a.0 { a } else { b });
                row += &format!(" **{:.2}** |", w.0);
                bound += &if limit.is_finite() { format!(" {limit} |") } else { " – |".into() };
            }
        }
        line(&row);
        line(&bound);
    }
    out
}

/// Replaces what stands between the marks.
fn put(file: &str, report: &str) {
    const BEGIN: &str = "<!-- sweep: begin -->\n";
    const END: &str = "<!-- sweep: end -->";
    let text = std::fs::read_to_string(file).expect("the file exists");
    let (before, rest) = text.split_once(BEGIN).expect("the file has the marks");
    let (_, after) = rest.split_once(END).expect("the file has both marks");
    std::fs::write(file, format!("{before}{BEGIN}{report}{END}{after}")).expect("the file can be written");
}
