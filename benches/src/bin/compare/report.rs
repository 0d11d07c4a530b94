//! Tables of a record, and what is to be reached.

use crate::record::{Record, Row};
use bn_benches::Operation;
use bn_benches::shapes::CASES;
use comfy_table::{CellAlignment, Table, presets};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The slowest last.
const ISAS: [&str; 3] = ["avx512", "avx2", "portable"];
pub const LAYOUTS: [&str; 2] = ["nhwc", "nchw"];

/// A record, as questions are asked of it. Times are medians in µs.
pub struct Times<'r> {
    record: &'r Record,
    /// By layout, shape, threads.
    at: BTreeMap<(&'r str, &'r str, usize), Vec<&'r Row>>,
    /// This library's best ISA that was measured.
    pub isa: &'r str,
}

/// One of the measured points.
#[derive(Clone, Copy, PartialEq)]
pub struct Point<'r> {
    pub layout: &'r str,
    pub shape: &'r str,
    pub threads: usize,
}

impl<'r> Times<'r> {
    pub fn new(record: &'r Record) -> Self {
        let mut at: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for row in &record.rows {
            at.entry((&row.layout[..], &row.shape[..], row.threads)).or_default().push(row);
        }
        let ours = |isa: &&str| record.rows.iter().any(|r| r.library == "bn" && r.variant == **isa);
        Times { record, at, isa: ISAS.into_iter().find(ours).unwrap_or("portable") }
    }

    pub fn threads(&self) -> BTreeSet<usize> {
        self.record.rows.iter().map(|r| r.threads).collect()
    }

    /// In the order of the table of shapes.
    pub fn points(&self, layout: &'r str, threads: usize) -> impl Iterator<Item = Point<'r>> {
        let point = move |c: &'static bn_benches::shapes::Case| Point { layout, shape: c.name, threads };
        CASES.iter().map(point).filter(|p| self.at.contains_key(&(p.layout, p.shape, p.threads)))
    }

    fn rows(&self, p: Point<'r>, operation: Operation) -> impl Iterator<Item = &'r Row> {
        let rows = self.at.get(&(p.layout, p.shape, p.threads)).map_or(&[][..], |rows| rows);
        rows.iter().copied().filter(move |r| r.operation == operation.name())
    }

    /// This library's, on an ISA.
    pub fn ours(&self, p: Point<'r>, operation: Operation, isa: &str) -> Option<&'r Row> {
        self.rows(p, operation).find(|r| r.library == "bn" && r.variant == isa)
    }

    /// The fastest of the peers.
    pub fn peer(&self, p: Point<'r>, operation: Operation) -> Option<&'r Row> {
        let peers = self.rows(p, operation).filter(|r| r.library != "bn");
        peers.min_by(|a, b| a.median_us.total_cmp(&b.median_us))
    }

    /// The fastest way of the memory.
    fn memory(&self, p: Point<'r>, operation: Operation) -> Option<&'r Row> {
        let ways = self.rows(p, operation).filter(|r| r.library == "memory");
        ways.min_by(|a, b| a.median_us.total_cmp(&b.median_us))
    }

    /// How many times as fast as the fastest of the peers.
    pub fn ratio(&self, p: Point<'r>, operation: Operation) -> Option<f64> {
        Some(self.peer(p, operation)?.median_us / self.ours(p, operation, self.isa)?.median_us)
    }

    /// The share of the speed that the memory allows: forward reads, and copies; backward reads both, and
    /// combines them; inference copies.
    pub fn of_limit(&self, p: Point<'r>, operation: Operation) -> Option<f64> {
        let time = |operation| Some(self.memory(p, operation)?.median_us);
        let limit = match operation {
            Operation::Forward => time(Operation::Read)? + time(Operation::Copy)?,
            Operation::Backward => time(Operation::ReadTwo)? + time(Operation::Triad)?,
            Operation::Inference => time(Operation::Copy)?,
            _ => return None,
        };
        Some(limit / self.ours(p, operation, self.isa)?.median_us)
    }

    /// The peers, by name, each with a letter.
    pub fn letters(&self) -> BTreeMap<&'r str, char> {
        let names: BTreeSet<&str> = self.record.rows.iter().map(|r| &r.library[..]).collect();
        let peers = names.into_iter().filter(|n| !["bn", "memory"].contains(n));
        peers.zip('A'..='Z').collect()
    }

    /// Bytes of the last cache level.
    fn cache(&self) -> Option<usize> {
        Some(self.record.fact("L3")?.strip_suffix('K')?.parse::<usize>().ok()? << 10)
    }

    /// Whether the tensors of an operation are more than the last cache holds.
    fn beyond_cache(&self, p: Point<'r>, operation: Operation) -> bool {
        let row = self.ours(p, operation, self.isa);
        row.zip(self.cache()).is_some_and(|(r, cache)| r.bytes > cache)
    }
}

fn is_big(p: &Point<'_>) -> bool {
    CASES.iter().any(|c| c.big && c.name == p.shape)
}

/// exp of the mean logarithm.
pub fn geometric_mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0), |(s, n), v| (s + v.ln(), n + 1));
    (n > 0).then(|| (sum / f64::from(n)).exp())
}

/// With three significant digits.
fn digits(v: f64) -> String {
    let places = (2 - v.abs().log10().floor() as i32).clamp(0, 4);
    format!("{v:.*}", places as usize)
}

fn or_dash(v: Option<f64>) -> String {
    v.map_or_else(|| "–".into(), digits)
}

/// The tables, in Markdown or for a terminal.
pub fn report(record: &Record, markdown: bool) -> String {
    let times = Times::new(record);
    let mut text = String::new();
    let mut add = |title: &str, table: Table| {
        let title = if markdown { format!("### {title}") } else { title.to_owned() };
        let _ = write!(text, "{title}\n\n{table}\n\n");
    };
    let new = |header: Vec<String>| {
        let mut table = Table::new();
        table.load_style(if markdown { presets::ASCII_MARKDOWN } else { presets::UTF8_FULL_CONDENSED });
        let columns = header.len();
        table.set_header(header);
        for i in 1..columns {
            if let Some(column) = table.column_mut(i) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    };
    let letters = times.letters();
    for layout in LAYOUTS {
        for threads in times.threads() {
            let points: Vec<Point<'_>> = times.points(layout, threads).collect();
            if points.is_empty() {
                continue;
            }
            let of = format!("{}, {threads} thread{}", layout.to_uppercase(), if threads == 1 { "" } else { "s" });
            let mut header = vec!["GB/s".to_owned()];
            for &operation in Operation::COMMON {
                let name = operation.name();
                header.extend([name.to_owned(), "best peer".into(), "×".into(), "of limit".into()]);
            }
            let mut table = new(header);
            for &p in &points {
                let mut row = vec![p.shape.to_owned()];
                for &operation in Operation::COMMON {
                    let peer = times.peer(p, operation);
                    let name = |r: &Row| format!("{} {}", digits(r.gb_per_s), letters[&r.library[..]]);
                    row.push(or_dash(times.ours(p, operation, times.isa).map(|r| r.gb_per_s)));
                    row.push(peer.map_or_else(|| "–".into(), name));
                    row.push(or_dash(times.ratio(p, operation)));
                    row.push(or_dash(times.of_limit(p, operation)));
                }
                table.add_row(row);
            }
            add(&format!("{of}: bn on {}, and the fastest peer", times.isa), table);

            let has = |o: &Operation| record.rows.iter().any(|r| r.operation == o.name());
            let extras: Vec<Operation> = Operation::EXTRAS.iter().copied().filter(has).collect();
            let mut header = vec!["GB/s".to_owned()];
            header.extend(extras.iter().map(|o| o.name().to_owned()));
            let mut table = new(header);
            for &p in &points {
                let speed = |&o: &Operation| or_dash(times.ours(p, o, times.isa).map(|r| r.gb_per_s));
                table.add_row(std::iter::once(p.shape.to_owned()).chain(extras.iter().map(speed)));
            }
            add(&format!("{of}: other operations of bn"), table);

            let slower: Vec<&str> = ISAS.into_iter().skip_while(|isa| *isa != times.isa).skip(1).collect();
            let mut header = vec![format!("speed / {}", times.isa)];
            header.extend(Operation::COMMON.iter().flat_map(|o| slower.iter().map(|i| format!("{} {i}", o.name()))));
            if !slower.is_empty() {
                let mut table = new(header);
                for &p in &points {
                    let pairs = Operation::COMMON.iter().flat_map(|o| slower.iter().map(move |i| (*o, *i)));
                    let speeds = pairs.map(|(o, isa)| or_dash(times.isa_ratio(p, o, isa)));
                    table.add_row(std::iter::once(p.shape.to_owned()).chain(speeds));
                }
                add(&format!("{of}: instruction sets"), table);
            }

            let memory = [Operation::Read, Operation::ReadTwo, Operation::Copy, Operation::Triad];
            let mut header = vec!["GB/s".to_owned()];
            header.extend(memory.iter().map(|o| o.name().to_owned()));
            let mut table = new(header);
            for &p in &points {
                let best = |r: &Row| format!("{} ({})", digits(r.gb_per_s), r.variant);
                let cells = memory.iter().map(|o| times.memory(p, *o).map_or_else(|| "–".into(), best));
                table.add_row(std::iter::once(p.shape.to_owned()).chain(cells));
            }
            add(&format!("{of}: the memory, and its fastest way"), table);
        }
    }
    let _ = writeln!(
        text,
        "GB/s count each tensor once: x and y; x, dy and dx. Peers: {}.\n",
        letters.iter().map(|(name, letter)| format!("{letter} {name}")).collect::<Vec<_>>().join(", ")
    );
    let mut header = vec!["aim".to_owned()];
    let columns: Vec<(&str, usize)> =
        LAYOUTS.into_iter().flat_map(|l| times.threads().into_iter().map(move |t| (l, t))).collect();
    header.extend(columns.iter().map(|(layout, threads)| format!("{} {threads} t", layout.to_uppercase())));
    let mut table = new(header);
    for aim in AIMS {
        let cells = columns.iter().map(|&(layout, threads)| {
            let least = if layout == "nhwc" { aim.nhwc } else { aim.nchw };
            let points: Vec<_> = times.points(layout, threads).collect();
            let worst = |v: f64| if v < least { " ✗" } else { "" };
            (aim.value)(&times, &points).map_or_else(|| "–".into(), |v| format!("{} ≥ {least}{}", digits(v), worst(v)))
        });
        table.add_row(std::iter::once(aim.name.to_owned()).chain(cells));
    }
    let mut add = |title: &str, table: Table| {
        let title = if markdown { format!("### {title}") } else { title.to_owned() };
        let _ = write!(text, "{title}\n\n{table}\n\n");
    };
    add(
        "What is to be reached (geometric means, beside peers and limit over the ten big shapes; ✗: not reached)",
        table,
    );
    let mut table = new(vec!["bytes".into(), "forward".into(), "backward".into(), "inference".into()]);
    for threads in times.threads() {
        let most = |operation: Operation, layout: &'static str| {
            let rows = times.points(layout, threads).filter_map(|p| times.ours(p, operation, times.isa));
            rows.max_by_key(|r| r.workspace_bytes)
        };
        for layout in LAYOUTS {
            let cell =
                |o| most(o, layout).map_or_else(|| "–".into(), |r| format!("{} ({})", r.workspace_bytes, r.shape));
            let name = format!("{} {threads} t", layout.to_uppercase());
            table.add_row(std::iter::once(name).chain(Operation::COMMON.iter().copied().map(cell)));
        }
    }
    add("Workspace, at most", table);
    text
}

impl<'r> Times<'r> {
    /// The share of the best ISA's speed.
    fn isa_ratio(&self, p: Point<'r>, operation: Operation, isa: &str) -> Option<f64> {
        Some(self.ours(p, operation, self.isa)?.median_us / self.ours(p, operation, isa)?.median_us)
    }
}

/// Something to be reached.
struct Aim {
    name: &'static str,
    nhwc: f64,
    nchw: f64,
    value: fn(&Times<'_>, &[Point<'_>]) -> Option<f64>,
}

fn mean_ratio(times: &Times<'_>, points: &[Point<'_>], operation: Operation) -> Option<f64> {
    geometric_mean(points.iter().filter(|p| is_big(p)).filter_map(|p| times.ratio(*p, operation)))
}

fn mean_of_limit(times: &Times<'_>, points: &[Point<'_>], operation: Operation) -> Option<f64> {
    geometric_mean(points.iter().filter(|p| is_big(p)).filter_map(|p| times.of_limit(*p, operation)))
}

fn mean_isa(times: &Times<'_>, points: &[Point<'_>], isa: &str) -> Option<f64> {
    if times.isa != "avx512" {
        return None;
    }
    let beyond = points.iter().filter(|p| times.beyond_cache(**p, Operation::Forward));
    geometric_mean(beyond.flat_map(|p| Operation::COMMON.iter().filter_map(|o| times.isa_ratio(*p, *o, isa))))
}

/// Speed of one operation of this library as a multiple of another's, in elements, over all shapes or those beyond the cache.
fn mean_beside(
    times: &Times<'_>,
    points: &[Point<'_>],
    operation: Operation,
    other: Operation,
    all: bool,
) -> Option<f64> {
    let points = points.iter().filter(|p| all || times.beyond_cache(**p, other));
    let us = |p: &Point<'_>, operation| Some(times.ours(*p, operation, times.isa)?.median_us);
    geometric_mean(points.filter_map(|p| Some(us(p, other)? / us(p, operation)?)))
}

const AIMS: [Aim; 14] = [
    Aim {
        name: "forward / best peer",
        nhwc: 1.6,
        nchw: 4.0,
        value: |times, points| mean_ratio(times, points, Operation::Forward),
    },
    Aim {
        name: "backward / best peer",
        nhwc: 1.35,
        nchw: 2.3,
        value: |times, points| mean_ratio(times, points, Operation::Backward),
    },
    Aim {
        name: "inference / best peer",
        nhwc: 1.1,
        nchw: 1.1,
        value: |times, points| mean_ratio(times, points, Operation::Inference),
    },
    Aim {
        name: "worst shape and operation / best peer",
        nhwc: 0.9,
        nchw: 1.2,
        value: |times, points| {
            let ratios = points.iter().flat_map(|p| Operation::COMMON.iter().filter_map(|o| times.ratio(*p, *o)));
            ratios.min_by(f64::total_cmp)
        },
    },
    Aim {
        name: "forward, of the limit",
        nhwc: 0.9,
        nchw: 0.85,
        value: |times, points| mean_of_limit(times, points, Operation::Forward),
    },
    Aim {
        name: "backward, of the limit",
        nhwc: 0.9,
        nchw: 0.85,
        value: |times, points| mean_of_limit(times, points, Operation::Backward),
    },
    Aim {
        name: "AVX2 / AVX-512 beyond the cache",
        nhwc: 0.9,
        nchw: 0.9,
        value: |times, points| mean_isa(times, points, "avx2"),
    },
    Aim {
        name: "portable / AVX-512 beyond the cache",
        nhwc: 0.55,
        nchw: 0.55,
        value: |times, points| mean_isa(times, points, "portable"),
    },
    Aim {
        name: "forward with ReLU / without",
        nhwc: 0.97,
        nchw: 0.97,
        value: |times, points| mean_beside(times, points, Operation::ForwardRelu, Operation::Forward, true),
    },
    // Seven tensors' traffic instead of five would be 0.71.
    Aim {
        name: "backward with ReLU / without",
        nhwc: 0.6,
        nchw: 0.6,
        value: |times, points| mean_beside(times, points, Operation::BackwardRelu, Operation::Backward, true),
    },
    Aim {
        name: "frozen dx / inference",
        nhwc: 1.0,
        nchw: 1.0,
        value: |times, points| mean_beside(times, points, Operation::FrozenDx, Operation::Inference, true),
    },
    Aim {
        name: "bf16 / f32 beyond the cache, forward",
        nhwc: 1.7,
        nchw: 1.7,
        value: |times, points| mean_beside(times, points, Operation::ForwardBf16, Operation::Forward, false),
    },
    Aim {
        name: "bf16 / f32 beyond the cache, backward",
        nhwc: 1.7,
        nchw: 1.7,
        value: |times, points| mean_beside(times, points, Operation::BackwardBf16, Operation::Backward, false),
    },
    Aim {
        name: "bf16 / f32 beyond the cache, inference",
        nhwc: 1.7,
        nchw: 1.7,
        value: |times, points| mean_beside(times, points, Operation::InferenceBf16, Operation::Inference, false),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn row(operation: &str, library: &str, variant: &str, median_us: f64) -> Row {
        Row {
            layout: "nchw".into(),
            operation: operation.into(),
            shape: "32x64x56x56".into(),
            threads: 1,
            library: library.into(),
            variant: variant.into(),
            median_us,
            least_us: median_us,
            quartiles_us: 0.0,
            rounds: 1,
            calls: 1,
            bytes: 51_380_224,
            gb_per_s: 51_380.224 / median_us,
            workspace_bytes: 0,
        }
    }

    #[test]
    fn ratios_and_limits() {
        let rows = vec![
            row("forward", "bn", "avx2", 200.0),
            row("forward", "bn", "avx512", 100.0),
            row("forward-relu", "bn", "avx512", 80.0),
            row("forward-bf16", "bn", "avx512", 50.0),
            row("forward", "onednn", "jit", 450.0),
            row("forward", "scalar", "two-pass", 500.0),
            row("read", "memory", "1-stream", 40.0),
            row("read", "memory", "4-streams", 30.0),
            row("copy", "memory", "memcpy", 60.0),
        ];
        let record = Record { facts: vec![("L3".into(), "32768K".into())], rows };
        let times = Times::new(&record);
        assert_eq!(times.isa, "avx512");
        let points: Vec<_> = times.points("nchw", 1).collect();
        assert_eq!(times.ratio(points[0], Operation::Forward), Some(4.5));
        assert_eq!(times.of_limit(points[0], Operation::Forward), Some(0.9));
        assert_eq!(mean_isa(&times, &points, "avx2"), Some(0.5));
        assert_eq!(times.ratio(points[0], Operation::Backward), None);
        let beside = |operation, all| mean_beside(&times, &points, operation, Operation::Forward, all);
        assert_eq!(beside(Operation::ForwardRelu, true), Some(1.25));
        assert_eq!(beside(Operation::ForwardBf16, false), Some(2.0));
        assert_eq!(beside(Operation::BackwardBf16, false), None);
        let text = report(&record, true);
        assert!(text.contains("4.50 ≥ 4") && text.contains("0.900 ≥ 0.85") && text.contains("0.500 ≥ 0.9 ✗"), "{text}");
    }

    #[test]
    fn means_and_digits() {
        assert_eq!(geometric_mean([1.0, 4.0].into_iter()), Some(2.0));
        assert_eq!(geometric_mean([].into_iter()), None);
        assert_eq!([123.4, 12.34, 1.234, 0.1234].map(digits), ["123", "12.3", "1.23", "0.123"]);
    }
}
