//! The floating-point environment: rounding to nearest, subnormals kept, nothing trapped.
//!
//! The caller may have others set, and gets them back as they were, flags included.

pub(crate) use target::{set, swap};

/// Runs `f` in the default environment, and restores what was found, also where `f` unwinds.
pub(crate) fn with_default<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(target::Saved);
    impl Drop for Restore {
        fn drop(&mut self) {
            set(self.0);
        }
    }
    let _restore = Restore(swap());
    call(f)
}

/// A call of its own: no arithmetic of `f` moves out from between the changes of environment.
#[inline(never)]
fn call<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(all(any(target_arch = "x86", target_arch = "x86_64"), target_feature = "sse"))]
mod target {
    use core::arch::asm;

    /// MXCSR.
    pub(crate) type Saved = u32;
    /// All exceptions masked, to nearest, neither FTZ nor DAZ, no flags.
    const DEFAULT: Saved = 0x1f80;

    /// Sets the default; gives what it was.
    pub(crate) fn swap() -> Saved {
        let mut found: Saved = 0;
        // SAFETY: writes the register to the variable.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut found, options(nostack)) };
        set(DEFAULT);
        found
    }

    pub(crate) fn set(value: Saved) {
        // SAFETY: a value that was in the register, or the default.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, readonly)) };
    }
}

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod target {
    use core::arch::asm;

    /// FPCR and FPSR.
    pub(crate) type Saved = (u64, u64);
    /// FIZ, AH, NEP; traps; FZ16; RMode; FZ; DN.
    const CLEARED: u64 = 0b111 | 0x9f << 8 | 1 << 19 | 3 << 22 | 1 << 24 | 1 << 25;

    /// Sets the default; gives what it was.
    pub(crate) fn swap() -> Saved {
        let (control, flags): (u64, u64);
        // SAFETY: reads two registers.
        unsafe {
            asm!("mrs {}, fpcr", "mrs {}, fpsr", out(reg) control, out(reg) flags, options(nostack));
        }
        set((control & !CLEARED, flags));
        (control, flags)
    }

    pub(crate) fn set((control, flags): Saved) {
        // SAFETY: values that were in the registers, or the defaults.
        unsafe {
            asm!("msr fpcr, {}", "msr fpsr, {}", in(reg) control, in(reg) flags, options(nostack));
        }
    }
}

#[cfg(all(target_arch = "arm", any(target_abi = "eabihf", target_os = "android")))]
mod target {
    use core::arch::asm;

    /// FPSCR.
    pub(crate) type Saved = u32;
    /// Traps; FZ16; RMode; FZ; DN. Not LTPSIZE (Armv8.1-M), whose default is not 0.
    const CLEARED: Saved = 0x9f << 8 | 1 << 19 | 3 << 22 | 1 << 24 | 1 << 25;

    /// Sets the default; gives what it was.
    pub(crate) fn swap() -> Saved {
        let found: Saved;
        // SAFETY: reads a register.
        unsafe { asm!("vmrs {}, fpscr", out(reg) found, options(nostack)) };
        set(found & !CLEARED);
        found
    }

    pub(crate) fn set(value: Saved) {
        // SAFETY: a value that was in the register, or the default.
        unsafe { asm!("vmsr fpscr, {}", in(reg) value, options(nostack)) };
    }
}

/// Software floating point has no environment; wasm's cannot be changed; RISC-V has no flush-to-zero.
#[cfg(not(any(
    all(any(target_arch = "x86", target_arch = "x86_64"), target_feature = "sse"),
    all(target_arch = "aarch64", target_feature = "neon"),
    all(target_arch = "arm", any(target_abi = "eabihf", target_os = "android")),
)))]
mod target {
    #[derive(Clone, Copy)]
    pub(crate) struct Saved;
    pub(crate) fn swap() -> Saved {
        Saved
    }
    pub(crate) fn set(_: Saved) {}
}
