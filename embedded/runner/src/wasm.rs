//! WebAssembly: `run` is called by, and text goes to, `wasm.mjs`.

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    /// Prints `len` bytes of the memory.
    fn write(text: *const u8, len: usize);
}

#[unsafe(no_mangle)]
extern "C" fn run() -> bool {
    crate::program(bn_core::Isa::detect())
}

/// Prints text that ends with a zero.
pub fn print(text: &[u8]) {
    // SAFETY: a slice; the zero is not for printing.
    unsafe { write(text.as_ptr(), text.len() - 1) };
}

/// Traps.
pub fn exit(_: bool) -> ! {
    core::arch::wasm32::unreachable()
}
