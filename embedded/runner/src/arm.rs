//! Cortex-M: printing and ending by semihosting.

use core::arch::{asm, global_asm};

global_asm!(
    ".section .vectors, \"a\"",
    ".word stack_top",
    ".word reset",
    // Every fault ends in the emulator's timeout otherwise.
    ".rept 14",
    ".word fault",
    ".endr",
    ".section .reset, \"ax\"",
    ".global reset",
    ".thumb_func",
    "reset:",
    ".if {fpu}",
    // CPACR: full access to the FPU, before any function may push its registers.
    "ldr r0, =0xe000ed88",
    "ldr r1, [r0]",
    "ldr r2, =0x00f00000",
    "orrs r1, r2",
    "str r1, [r0]",
    "dsb",
    "isb",
    ".endif",
    "bl start",
    ".thumb_func",
    "fault:",
    "bl stop",
    ".ltorg",
    fpu = const cfg!(target_abi = "eabihf") as usize,
);

unsafe extern "C" {
    static data_from: u64;
    static mut data_start: u64;
    static mut data_end: u64;
    static mut bss_start: u64;
    static mut bss_end: u64;
}

#[unsafe(no_mangle)]
extern "C" fn start() -> ! {
    // SAFETY: the linker script gives sections whole words; volatile, so that this does not become
    // a call of something that needs what is being set up here.
    unsafe {
        let (mut from, mut to) = (&raw const data_from, &raw mut data_start);
        while to < &raw mut data_end {
            to.write_volatile(from.read_volatile());
            (from, to) = (from.add(1), to.add(1));
        }
        let mut to = &raw mut bss_start;
        while to < &raw mut bss_end {
            to.write_volatile(0);
            to = to.add(1);
        }
    }
    exit(crate::program(bn_core::Isa::detect()))
}

#[unsafe(no_mangle)]
extern "C" fn stop() -> ! {
    print(b"fault\n\0");
    exit(false)
}

/// Asks the emulator.
fn semihosting(operation: usize, argument: usize) {
    // SAFETY: the breakpoint is the emulator's, which reads what the argument points to.
    unsafe {
        asm!("bkpt 0xab", inout("r0") operation => _, in("r1") argument, options(nostack));
    }
}

/// Prints text that ends with a zero.
pub fn print(text: &[u8]) {
    const WRITE0: usize = 4;
    semihosting(WRITE0, text.as_ptr() as usize);
}

/// Ends the emulator.
pub fn exit(good: bool) -> ! {
    const REPORT_EXCEPTION: usize = 0x18;
    const APPLICATION_EXIT: usize = 0x2_0026;
    const RUN_TIME_ERROR: usize = 0x2_0023;
    loop {
        semihosting(REPORT_EXCEPTION, if good { APPLICATION_EXIT } else { RUN_TIME_ERROR });
    }
}
