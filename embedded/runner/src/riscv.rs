//! RISC-V on qemu's `virt`: a UART, and a device whose register ends the emulator.

use core::arch::global_asm;

global_asm!(
    ".section .reset, \"ax\"",
    ".global reset",
    "reset:",
    "la sp, stack_top",
    "la t0, fault",
    "csrw mtvec, t0",
    "call start",
    ".balign 4",
    "fault:",
    "call stop",
);

unsafe extern "C" {
    static mut bss_start: u64;
    static mut bss_end: u64;
}

#[unsafe(no_mangle)]
extern "C" fn start() -> ! {
    // SAFETY: the linker script gives the section whole words. (There is no .data to copy: the
    // programs have no initialised statics; `link.ld` would place it.)
    unsafe {
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

/// Prints text that ends with a zero.
pub fn print(text: &[u8]) {
    const UART: *mut u8 = 0x1000_0000 as *mut u8;
    for &b in text.iter().take_while(|b| **b != 0) {
        // SAFETY: the transmit register, which the emulator always takes from.
        unsafe { UART.write_volatile(b) };
    }
}

/// Ends the emulator.
pub fn exit(good: bool) -> ! {
    const TEST: *mut u32 = 0x10_0000 as *mut u32;
    loop {
        // SAFETY: the register that ends the emulator: 0x5555 with success, 0x3333 with a status.
        unsafe { TEST.write_volatile(if good { 0x5555 } else { 1 << 16 | 0x3333 }) };
    }
}
