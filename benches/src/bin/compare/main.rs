//! Times this library, its peers and the memory in one run; see benches/README.md.

mod accuracy;
#[cfg(feature = "candle")]
mod candle;
mod machine;
mod measure;
mod onednn;
mod plot;
mod record;
mod report;

use anyhow::{Context, Result, bail, ensure};
use bn_benches::shapes::{Case, layout_name};
use bn_core::{Isa, Layout};
use clap::{Args, Parser, Subcommand, ValueEnum};
use record::Record;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// Times bn, its peers and the memory: same process, same tensors, turn by turn.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Measures; prints the tables, and writes the record and the plots
    Run {
        #[command(flatten)]
        options: Options,
        /// Threads; each number has a process of its own
        #[arg(long, value_delimiter = ',', default_value = "1,2")]
        threads: Vec<usize>,
        /// Layouts; each has a process of its own
        #[arg(long, value_delimiter = ',', default_value = "nhwc,nchw")]
        layouts: Vec<LayoutName>,
        /// The record's directory: the file is `<machine>/<date>.csv` in it
        #[arg(long, default_value = "benches/record")]
        record: PathBuf,
        /// The record's file, instead
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Prints the tables of records, which are taken together
    Report {
        #[arg(required = true)]
        records: Vec<PathBuf>,
        /// For a README
        #[arg(long)]
        markdown: bool,
    },
    /// Draws ratios.svg and limit.svg of records, which are taken together
    Plot {
        #[arg(required = true)]
        records: Vec<PathBuf>,
        /// Where to
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// How wrong each library's training forward pass is, in standard deviations, as the mean grows against them
    Accuracy {
        #[command(flatten)]
        options: Options,
        /// Mean over standard deviation
        #[arg(long, value_delimiter = ',', default_value = "1,1e3,1e4,1e5,1e6,1e7")]
        ratios: Vec<f32>,
        /// Threads
        #[arg(long, default_value_t = 1)]
        threads: usize,
        /// For a README
        #[arg(long)]
        markdown: bool,
    },
    /// One layout and number of threads: what `run` and `accuracy` start
    #[command(hide = true)]
    Measure {
        #[command(flatten)]
        options: Options,
        #[arg(long)]
        threads: usize,
        #[arg(long)]
        layout: LayoutName,
        /// Errors at these ratios instead of times
        #[arg(long, value_delimiter = ',')]
        ratios: Vec<f32>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum LayoutName {
    Nhwc,
    Nchw,
}

impl LayoutName {
    fn layout(self) -> Layout {
        match self {
            LayoutName::Nhwc => Layout::Nhwc,
            LayoutName::Nchw => Layout::Nchw,
        }
    }
}

/// What to measure, and how long.
#[derive(Args, Clone)]
struct Options {
    /// libdnnl.so.3 of oneDNN 3: the OpenMP build is the fastest known for NHWC
    #[arg(long)]
    onednn_nhwc: Option<PathBuf>,
    /// Another oneDNN 3: the TBB build is the fastest known for plain NCHW. Both are measured in both layouts
    #[arg(long)]
    onednn_nchw: Option<PathBuf>,
    /// Shapes, as in the table: 32x64x56x56; all by default
    #[arg(long, value_delimiter = ',')]
    shapes: Vec<String>,
    /// ISAs of this library: portable, avx2, avx512; all by default
    #[arg(long, value_delimiter = ',')]
    isas: Vec<String>,
    /// Times of each subject, of which the median counts
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Calls are repeated until they should take so long
    #[arg(long, default_value_t = 2.0)]
    sample_ms: f64,
}

impl Options {
    fn wants(&self, case: &Case) -> bool {
        self.shapes.is_empty() || self.shapes.iter().any(|s| s == case.name)
    }

    fn wants_isa(&self, isa: Isa) -> bool {
        self.isas.is_empty() || self.isas.iter().any(|name| name == isa.kind().name())
    }

    fn check(&self) -> Result<()> {
        for name in &self.shapes {
            ensure!(Case::named(name).is_some(), "no shape {name:?} in the table");
        }
        for name in &self.isas {
            ensure!(Isa::by_name(name).is_some(), "no ISA {name:?} on this CPU");
        }
        for path in self.libraries() {
            ensure!(path.is_file(), "no file {}", path.display());
        }
        ensure!(self.rounds > 0 && self.sample_ms >= 0.0, "nothing to measure");
        Ok(())
    }

    fn libraries(&self) -> impl Iterator<Item = &PathBuf> {
        self.onednn_nhwc.iter().chain(&self.onednn_nchw)
    }

    /// As arguments for the measuring process.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--rounds={}", self.rounds), format!("--sample-ms={}", self.sample_ms)];
        let path = |name: &str, p: &PathBuf| format!("--onednn-{name}={}", p.display());
        arguments.extend(self.onednn_nhwc.iter().map(|p| path("nhwc", p)));
        arguments.extend(self.onednn_nchw.iter().map(|p| path("nchw", p)));
        arguments.extend(self.shapes.iter().map(|s| format!("--shapes={s}")));
        arguments.extend(self.isas.iter().map(|s| format!("--isas={s}")));
        arguments
    }
}

fn main() -> Result<()> {
    match Cli::parse().action {
        Action::Run { options, threads, layouts, record, out } => {
            options.check()?;
            let mut all = Record { facts: measure::facts(&options), rows: Vec::new() };
            let out = match out {
                Some(out) => out,
                None => record.join(machine::slug(&all.facts)).join(format!("{}.csv", all.fact("date").unwrap_or("?"))),
            };
            for layout in layouts {
                for &threads in &threads {
                    all.extend(&measure_apart(&options, layout.layout(), threads, &[])?)?;
                }
            }
            write(&out, &all.csv()?)?;
            show(&report::report(&all, false))?;
            plot::write(&all, out.parent().unwrap_or(Path::new(".")))
        }
        Action::Report { records, markdown } => show(&report::report(&Record::read(&records)?, markdown)),
        Action::Plot { records, out } => plot::write(&Record::read(&records)?, &out),
        Action::Accuracy { mut options, ratios, threads, markdown } => {
            if options.shapes.is_empty() {
                options.shapes = vec!["32x64x56x56".into()];
            }
            options.check()?;
            ensure!(ratios.iter().all(|r| r.is_finite()) && !ratios.is_empty(), "ratios are finite numbers");
            let mut lines = String::new();
            for layout in [Layout::Nhwc, Layout::Nchw] {
                lines += &measure_apart(&options, layout, threads, &ratios)?;
            }
            show(&accuracy::table(&lines, &ratios, markdown)?)
        }
        Action::Measure { options, threads, layout, ratios } => {
            options.check()?;
            show(&if ratios.is_empty() {
                measure::run(&options, layout.layout(), threads)?
            } else {
                accuracy::run(&options, layout.layout(), threads, &ratios)?
            })
        }
    }
}

/// To whoever listens: a pipe that closed early is no error.
fn show(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text).with_context(|| path.display().to_string())?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

/// In a process of its own, as OpenMP reads the number of threads when it is loaded, and TBB the CPUs that
/// the process may use.
fn measure_apart(options: &Options, layout: Layout, threads: usize, ratios: &[f32]) -> Result<String> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("measure").args(options.arguments()).args(ratios.iter().map(|r| format!("--ratios={r}")));
    command.arg(format!("--threads={threads}")).arg(format!("--layout={}", layout_name(layout)));
    for variable in ["OMP_NUM_THREADS", "RAYON_NUM_THREADS"] {
        command.env(variable, threads.to_string());
    }
    // What lies beside a library is what it needs.
    let beside: Vec<&Path> = options.libraries().filter_map(|p| p.parent()).collect();
    let mut search: Vec<PathBuf> = beside.iter().map(|p| p.to_path_buf()).collect();
    search.extend(env::var_os("LD_LIBRARY_PATH").iter().flat_map(env::split_paths));
    if !search.is_empty() {
        command.env("LD_LIBRARY_PATH", env::join_paths(search)?);
    }
    if let Some(opencl) = beside.iter().map(|d| d.join("libintelocl.so")).find(|p| p.is_file())
        && env::var_os("OCL_ICD_FILENAMES").is_none()
    {
        command.env("OCL_ICD_FILENAMES", opencl);
    }
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("measuring {} with {threads} threads: {}", layout_name(layout), output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}
