//! Where a board has its memory, and how the program for each target is linked.

use std::{env, fs, path::Path};

#[cfg(feature = "net")]
mod net {
    use bn_core::{Affine, BatchNorm, Prepared, Shape};
    use std::{fs, path::Path};

    include!("src/net-parameters.rs");

    /// Writes the parameters of bin/net.rs, and what they are prepared to: a table for flash.
    pub fn prepare(out: &Path) {
        let [gamma, beta, mean, var] = trained();
        let bn = BatchNorm::<f32>::new(Shape::nhwc(1, CHANNELS, &[1]).unwrap(), EPSILON).unwrap();
        let mut table = [Prepared::default(); CHANNELS];
        bn.prepare(Affine::new(&gamma, &beta), &mean, &var, &mut table).unwrap();
        let mut text = fs::read_to_string("src/net-parameters.rs").expect("it is beside build.rs");
        text += "\nstatic TABLE: [Prepared<f32>; CHANNELS] = [\n";
        for Prepared { mean, scale, shift } in table {
            // The shortest decimals that are these numbers again.
            text += &format!("    Prepared {{ mean: {mean:?}, scale: {scale:?}, shift: {shift:?} }},\n");
        }
        text += "];\n";
        fs::write(out.join("net.rs"), text).expect("OUT_DIR can be written");
    }
}

/// Where the vectors, the program and its memory go, and how much of that the set may have.
struct Board {
    name: &'static str,
    vectors: u32,
    flash: (u32, u32),
    ram: (u32, u32),
    arena_words: usize,
}

const K: u32 = 1024;
const BOARDS: [Board; 4] = [
    // Cortex-M0 with 16 KB.
    Board { name: "microbit", vectors: 0, flash: (64, 256 * K - 64), ram: (0x2000_0000, 16 * K), arena_words: 1408 },
    // Cortex-M4 (mps2-an386) and M7 (mps2-an500).
    Board {
        name: "mps2",
        vectors: 0,
        flash: (64, 4096 * K - 64),
        ram: (0x2000_0000, 4096 * K),
        arena_words: 80 * 1024,
    },
    // Cortex-M55.
    Board {
        name: "an547",
        vectors: 0x1000_0000,
        // Both in one memory: that for code does not hold what is optimised for speed.
        flash: (0x3100_0000, 3072 * K),
        ram: (0x3130_0000, 1024 * K),
        arena_words: 80 * 1024,
    },
    // RISC-V.
    Board {
        name: "virt",
        // It has none: the first instruction is that of the program.
        vectors: 0,
        flash: (0x8000_0000, 8192 * K),
        ram: (0x8080_0000, 8192 * K),
        arena_words: 80 * 1024,
    },
];

fn main() {
    println!("cargo::rerun-if-env-changed=BN_BOARD");
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-changed=src/net-parameters.rs");
    let var = |name: &str| env::var(name).unwrap_or_default();
    let arch = var("CARGO_CFG_TARGET_ARCH");
    let mut words = 80 * 1024;
    #[cfg(feature = "net")]
    net::prepare(Path::new(&var("OUT_DIR")));
    if var("CARGO_CFG_TARGET_OS") == "none" {
        let default = if arch == "riscv32" { "virt" } else { "mps2" };
        let wanted = env::var("BN_BOARD").unwrap_or(default.into());
        let board = BOARDS.iter().find(|b| b.name == wanted).expect("BN_BOARD names a board that build.rs knows");
        let script = format!(
            "MEMORY {{\n  VECTORS : ORIGIN = {:#x}, LENGTH = 64\n  FLASH : ORIGIN = {:#x}, LENGTH = {:#x}\n  RAM : ORIGIN = {:#x}, LENGTH = {:#x}\n}}\n{}",
            board.vectors,
            board.flash.0,
            board.flash.1,
            board.ram.0,
            board.ram.1,
            fs::read_to_string("link.ld").expect("link.ld is beside build.rs"),
        );
        let path = Path::new(&var("OUT_DIR")).join("board.ld");
        fs::write(&path, script).expect("OUT_DIR can be written");
        println!("cargo::rustc-link-arg-bins=-T{}", path.display());
        println!("cargo::rustc-link-arg-bins=--nmagic");
        words = board.arena_words;
    } else if arch == "wasm32" {
        println!("cargo::rustc-link-arg-bins=--no-entry");
        println!("cargo::rustc-link-arg-bins=--export=run");
    }
    println!("cargo::rustc-env=BN_ARENA_WORDS={words}");
}
