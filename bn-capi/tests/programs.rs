//! C programs, written from the header alone, against the built libraries.
//!
//! They need the libraries (in BATCHNORM_LIBRARIES, or as their users build them, by `cargo build --release -p bn-capi`) and
//! gcc: `ci/capi.sh` sees to that, and runs these tests.

use bn_core::{
    Affine, BackwardInput, BatchNorm, Element, Gradients, Moments, Op, Run, RunningStats, Shape, Statistics,
};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where the libraries are.
fn libraries() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // target/debug/deps/programs-…
        let exe = std::env::current_exe().unwrap();
        let release = exe.ancestors().nth(3).unwrap().join("release");
        let libraries = std::env::var_os("BATCHNORM_LIBRARIES").map_or(release, PathBuf::from);
        // Programs ask for the name that the library was given.
        std::fs::create_dir_all(libraries.join("c-programs")).unwrap();
        std::fs::copy(libraries.join("libbatchnorm.so"), libraries.join("c-programs/libbatchnorm.so.0.1")).unwrap();
        libraries
    })
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

#[derive(Clone, Copy, PartialEq)]
enum Link {
    Shared,
    Static,
    /// By dlopen alone.
    Not,
}

/// Compiles a program of tests/c; warnings are errors.
fn program(name: &str, link: Link) -> PathBuf {
    let libraries = libraries();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let suffix = if link == Link::Static { "-static" } else { "" };
    let out = libraries.join("c-programs").join(format!("{}{suffix}", name.replace('.', "-")));
    let mut gcc = if name.ends_with(".cpp") {
        let mut gcc = Command::new("g++");
        gcc.arg("-std=c++11");
        gcc
    } else {
        let mut gcc = Command::new("gcc");
        gcc.arg("-std=c99");
        gcc
    };
    gcc.args(["-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-D_POSIX_C_SOURCE=200809L", "-I"]);
    gcc.arg(root.join("include")).arg(root.join("tests/c").join(name)).arg("-o").arg(&out);
    match link {
        Link::Shared => {
            gcc.arg("-L").arg(libraries).arg("-lbatchnorm");
            gcc.arg("-Wl,-rpath,$ORIGIN");
        }
        Link::Static => {
            gcc.arg(libraries.join("libbatchnorm.a"));
        }
        Link::Not => {}
    }
    run(gcc.args(["-lpthread", "-ldl", "-lm"]));
    out
}

/// 16ths from −8 to below 8: what `get_noise` of check.h makes.
fn noise<T>(n: usize, mut seed: u32, of: fn(f32) -> T) -> Vec<T> {
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        of(((seed >> 24) as i32 - 128) as f32 / 16.0)
    };
    (0..n).map(|_| next()).collect()
}

fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// What step.c does, with bn-core.
fn step<T: Element>(
    dtype: &str,
    shape: Shape,
    of: fn(f32) -> T,
    parameter: fn(f32) -> T::Param,
    descend: fn(&mut T::Param, T::Param),
    bytes: fn(&[T]) -> Vec<u8>,
    parameter_bytes: fn(&[T::Param]) -> Vec<u8>,
) -> String {
    let (n, channels) = (shape.len(), shape.channels());
    let bn = BatchNorm::<T>::new(shape, 1e-5).unwrap().with_activation(bn_core::Activation::Relu).unwrap();
    let (x, residual, dy) = (noise(n, 1, of), noise(n, 2, of), noise(n, 3, of));
    let (mut gamma, mut beta) = (noise(channels, 4, parameter), noise(channels, 5, parameter));
    let (mut mean, mut var) = (noise(channels, 6, parameter), vec![parameter(1.0); channels]);
    let (mut y, mut dx, mut dr) = (vec![of(0.0); n], vec![of(0.0); n], vec![of(0.0); n]);
    let (mut dgamma, mut dbeta) = (vec![parameter(0.0); channels], vec![parameter(0.0); channels]);
    let mut moments = vec![Moments::EMPTY; channels];
    let words = bn.workspace_best(Op::Backward, 1).max(bn.workspace_best(Op::ForwardTraining, 1));
    let mut workspace = vec![0; words];

    let affine = Affine::new(&gamma, &beta);
    bn.forward_training(&x, Some(&residual), affine, &mut y[..], &mut moments, Run::serial(&mut workspace)).unwrap();
    let mut batches = 0;
    let rule = RunningStats::pytorch(0.1).unwrap();
    rule.update(&moments, &mut mean, &mut var, Some(&mut batches)).unwrap();
    let statistics = Statistics::Batch(&moments);
    let input = BackwardInput { x: &x, y: Some(&y), dy: &dy, gamma: Some(&gamma), statistics };
    let output = Gradients {
        dx: Some((&mut dx[..]).into()),
        dresidual: Some((&mut dr[..]).into()),
        dgamma: Some(&mut dgamma),
        dbeta: Some(&mut dbeta),
    };
    bn.backward(input, output, Run::serial(&mut workspace)).unwrap();
    gamma.iter_mut().zip(&dgamma).for_each(|(p, d)| descend(p, *d));
    beta.iter_mut().zip(&dbeta).for_each(|(p, d)| descend(p, *d));

    let moments = moments.iter().flat_map(|m| [m.count, m.mean.to_bits(), m.m2.to_bits()]);
    let moments = moments.flat_map(u64::to_ne_bytes).collect();
    let results = [
        ("y", bytes(&y)),
        ("moments", moments),
        ("running_mean", parameter_bytes(&mean)),
        ("running_var", parameter_bytes(&var)),
        ("dx", bytes(&dx)),
        ("dresidual", bytes(&dr)),
        ("gamma", parameter_bytes(&gamma)),
        ("beta", parameter_bytes(&beta)),
    ];
    let layout = if shape.layout() == bn_core::Layout::Nchw { "nchw" } else { "nhwc" };
    let mut text = String::new();
    for (what, bytes) in results {
        writeln!(text, "{dtype} {layout} {what} {:016x}", hash(bytes)).unwrap();
    }
    text
}

macro_rules! bytes_of {
    () => {
        |v| v.iter().flat_map(|v| v.to_ne_bytes()).collect()
    };
}

/// All steps of step.c.
fn steps() -> String {
    use half::{bf16, f16};
    let shapes = [Shape::nchw(9, 37, &[401]).unwrap(), Shape::nhwc(9, 37, &[401]).unwrap()];
    let mut text = String::new();
    for s in shapes {
        text += &step::<f32>("f32", s, |v| v, |v| v, |p, d| *p -= 0.125 * d, bytes_of!(), bytes_of!());
    }
    for s in shapes {
        text += &step::<f64>("f64", s, f64::from, f64::from, |p, d| *p -= 0.125 * d, bytes_of!(), bytes_of!());
    }
    for s in shapes {
        text += &step::<f16>("f16", s, f16::from_f32, |v| v, |p, d| *p -= 0.125 * d, bytes_of!(), bytes_of!());
    }
    for s in shapes {
        text += &step::<bf16>("bf16", s, bf16::from_f32, |v| v, |p, d| *p -= 0.125 * d, bytes_of!(), bytes_of!());
    }
    text
}

#[test]
#[ignore = "needs the libraries and gcc: ci/capi.sh"]
fn a_training_step_has_the_bits_of_rust() {
    let expected = steps();
    assert_eq!(expected.lines().count(), 64);
    for link in [Link::Shared, Link::Static] {
        let program = program("step.c", link);
        for executor in ["serial", "threads", "own"] {
            for isa in bn_core::Isa::available() {
                let name = format!("{isa:?}");
                let got = run(Command::new(&program).arg(executor).env("BN_ISA", &name));
                assert_eq!(got, expected, "{executor}, {name}");
            }
        }
    }
}

#[test]
#[ignore = "needs the libraries and gcc: ci/capi.sh"]
fn every_status_has_a_way_to_it() {
    run(&mut Command::new(program("statuses.c", Link::Shared)));
}

#[test]
#[ignore = "needs the libraries and gcc: ci/capi.sh"]
fn operands_may_be_one_another_as_allowed() {
    run(&mut Command::new(program("aliases.c", Link::Shared)));
}

#[test]
#[ignore = "needs the libraries and gcc: ci/capi.sh"]
fn the_environment_of_the_caller_changes_nothing() {
    for link in [Link::Shared, Link::Static] {
        run(&mut Command::new(program("environment.c", link)));
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
#[ignore = "needs the libraries and gcc: ci/capi.sh"]
fn without_memory_calls_are_refused() {
    run(&mut Command::new(program("memory.c", Link::Shared)));
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs the libraries and gcc: ci/capi.sh"]
fn it_can_be_loaded_and_unloaded_again_and_again() {
    run(Command::new(program("unload.c", Link::Not)).arg(libraries().join("libbatchnorm.so")));
}

#[test]
#[ignore = "needs the libraries and gcc: ci/capi.sh"]
fn cpp_takes_the_header() {
    run(&mut Command::new(program("header.cpp", Link::Shared)));
}
