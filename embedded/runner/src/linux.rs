//! Linux, without Rust's standard library: so every target needs `core` alone. The first argument
//! names the ISA; without one it is detected.

use bn_core::{Isa, IsaKind};
use core::ffi::{CStr, c_char, c_int};

#[link(name = "c")]
unsafe extern "C" {
    #[link_name = "write"]
    fn libc_write(file: c_int, text: *const u8, len: usize) -> isize;
    #[link_name = "exit"]
    fn libc_exit(status: c_int) -> !;
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let isa = if argc > 1 {
        // SAFETY: there are `argc` arguments, each a C string.
        let name = unsafe { CStr::from_ptr(*argv.add(1)) };
        match name.to_str().ok().and_then(Isa::by_name) {
            Some(isa) => isa,
            None => {
                print(b"no such ISA here\n\0");
                return 3;
            }
        }
    } else {
        Isa::detect()
    };
    // Which ISA that is, where several are possible.
    let mut line = crate::Line::new();
    line.text("isa ");
    line.text(match isa.kind() {
        IsaKind::Portable => "portable",
        kind => kind.name(),
    });
    line.print();
    if crate::program(isa) { 0 } else { 1 }
}

/// Prints text that ends with a zero.
pub fn print(text: &[u8]) {
    // SAFETY: a slice; the zero is not for printing. Nobody misses what could not be written: the
    // last line is awaited.
    unsafe { libc_write(1, text.as_ptr(), text.len() - 1) };
}

/// Ends the process.
pub fn exit(good: bool) -> ! {
    // SAFETY: no threads, no handlers.
    unsafe { libc_exit(if good { 0 } else { 1 }) }
}

/// Referred to by unwinding tables of the prebuilt `core`; nothing unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
