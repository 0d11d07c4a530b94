//! Runs parts of the conformance set, and prints a line per case: element type, operation, problem,
//! and the hash of the result, `skip` (not enough memory) or `fail`.
//!
//! What a platform needs is little and the same everywhere: a start, a way to print, an end.

#![no_std]

use bn_conformance::{Case, Outcome};
use bn_core::Isa;

#[cfg(target_arch = "arm")]
#[path = "arm.rs"]
pub mod platform;
#[cfg(target_os = "linux")]
#[path = "linux.rs"]
pub mod platform;
#[cfg(target_arch = "riscv32")]
#[path = "riscv.rs"]
pub mod platform;
#[cfg(target_arch = "wasm32")]
#[path = "wasm.rs"]
pub mod platform;

/// What a program runs.
pub type Part = fn(Isa, &mut [u64], &mut dyn FnMut(Case));

/// Defines what the platform calls once it is up: `false` if a case was refused.
#[macro_export]
macro_rules! program {
    ($part:expr) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn program(isa: bn_core::Isa) -> bool {
            $crate::run(isa, $part)
        }
    };
}

unsafe extern "Rust" {
    /// By [`program!`].
    safe fn program(isa: Isa) -> bool;
}

const ARENA_WORDS: usize = {
    let digits = env!("BN_ARENA_WORDS").as_bytes();
    let (mut n, mut i) = (0, 0);
    while i < digits.len() {
        n = n * 10 + (digits[i] - b'0') as usize;
        i += 1;
    }
    n
};

static mut ARENA: [u64; ARENA_WORDS] = [0; ARENA_WORDS];

/// Runs a part and prints its cases.
pub fn run(isa: Isa, part: Part) -> bool {
    // SAFETY: called once, from the only thread.
    let arena = unsafe { &mut *(&raw mut ARENA) };
    let mut good = true;
    part(isa, arena, &mut |case| {
        let mut line = Line::new();
        for word in [case.element, case.operation, case.problem] {
            line.text(word);
            line.text(" ");
        }
        match case.outcome {
            Outcome::Hash(h) => line.hex(h),
            Outcome::Skipped => line.text("skip"),
            Outcome::Failed(_) => {
                good = false;
                line.text("fail")
            }
        }
        line.print();
    });
    // Whoever reads this knows that nothing was cut off.
    let mut line = Line::new();
    line.text("end");
    line.print();
    good
}

/// A line of text: without `core::fmt`, which takes more flash than all else here.
pub struct Line {
    text: [u8; 96],
    len: usize,
}

impl Line {
    /// Nothing.
    #[allow(clippy::new_without_default, reason = "a private helper")]
    pub fn new() -> Self {
        Line { text: [0; 96], len: 0 }
    }
    /// Appends text; what does not fit is lost.
    pub fn text(&mut self, s: &str) {
        for &b in s.as_bytes() {
            // The last two places are the end's.
            if self.len < self.text.len() - 2 {
                self.text[self.len] = b;
                self.len += 1;
            }
        }
    }
    /// Appends 16 hexadecimal digits.
    pub fn hex(&mut self, v: u64) {
        for i in (0..16).rev() {
            let digit = (v >> (4 * i)) as usize & 15;
            self.text(&"0123456789abcdef"[digit..digit + 1]);
        }
    }
    /// Appends a decimal number.
    pub fn decimal(&mut self, v: u32) {
        if v >= 10 {
            self.decimal(v / 10);
        }
        let digit = (v % 10) as usize;
        self.text(&"0123456789"[digit..digit + 1]);
    }
    /// Prints it, with a line's end and a zero behind that.
    pub fn print(mut self) {
        self.text[self.len] = b'\n';
        self.text[self.len + 1] = 0;
        platform::print(&self.text[..self.len + 2]);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    platform::print(b"panic\n\0");
    platform::exit(false)
}
