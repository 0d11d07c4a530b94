//! Which instructions the kernels use: chosen at run time, provable by holding an [`Isa`].

use core::fmt;

/// A vector instruction set that this CPU has.
///
/// A value of this type proves that: its only safe constructors ask the CPU. Every ISA gives the
/// same bits; choosing one by hand is for tests and measurements.
///
/// ```
/// use bn_core::Isa;
/// let isa = Isa::detect();
/// assert!(Isa::available().any(|a| a == isa));
/// assert_eq!(Isa::by_name("portable"), Some(Isa::PORTABLE));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(IsaKind);

/// The names of the instruction sets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[non_exhaustive]
pub enum IsaKind {
    /// What the target guarantees at compile time: SSE2, NEON, simd128, or scalar code.
    Portable,
    /// AVX2 with F16C (x86).
    Avx2,
    /// AVX-512 F, VL, BW and DQ (x86).
    Avx512,
}

impl IsaKind {
    const ALL: [IsaKind; 3] = [IsaKind::Portable, IsaKind::Avx2, IsaKind::Avx512];

    /// The name as [`Isa::by_name`] takes it: "portable", "avx2" or "avx512".
    pub const fn name(self) -> &'static str {
        match self {
            IsaKind::Portable => "portable",
            IsaKind::Avx2 => "avx2",
            IsaKind::Avx512 => "avx512",
        }
    }
}

impl Isa {
    /// The instruction set that every CPU of the compilation target has.
    pub const PORTABLE: Isa = Isa(IsaKind::Portable);

    /// The best one that this CPU has.
    ///
    /// The CPU is asked once. On bare metal (`target_os = "none"`) x86 answers "portable"; see
    /// [`Isa::assume`].
    pub fn detect() -> Isa {
        if supported(IsaKind::Avx512) {
            Isa(IsaKind::Avx512)
        } else if supported(IsaKind::Avx2) {
            Isa(IsaKind::Avx2)
        } else {
            Isa::PORTABLE
        }
    }

    /// This instruction set, if the CPU has it.
    pub fn new(kind: IsaKind) -> Option<Isa> {
        supported(kind).then_some(Isa(kind))
    }

    /// This instruction set, without asking the CPU.
    ///
    /// # Safety
    /// The CPU supports every instruction of it and the operating system saves its registers.
    pub const unsafe fn assume(kind: IsaKind) -> Isa {
        Isa(kind)
    }

    /// All that this CPU has, the slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        IsaKind::ALL.into_iter().filter_map(Isa::new)
    }

    /// The one of this name, if the CPU has it.
    pub fn by_name(name: &str) -> Option<Isa> {
        Isa::available().find(|isa| isa.kind().name() == name)
    }

    /// Which one this is.
    pub const fn kind(self) -> IsaKind {
        self.0
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

// Not x86-64: what lacks SSE2 there (kernels, x86_64-unknown-none) calculates in software, which
// rounds as it should, and has no wider instructions either.
#[cfg(all(target_arch = "x86", not(target_feature = "sse2")))]
compile_error!("bn-core needs SSE2 on x86: x87 arithmetic rounds differently");

#[cfg(target_feature = "sse2")]
fn supported(kind: IsaKind) -> bool {
    cpufeatures::new!(has_avx2, "avx2");
    cpufeatures::new!(has_avx512, "avx2", "avx512f", "avx512vl", "avx512bw", "avx512dq");
    match kind {
        IsaKind::Portable => true,
        IsaKind::Avx2 => has_avx2::get() && has_f16c(),
        IsaKind::Avx512 => has_avx512::get() && has_f16c(),
    }
}

/// `cpufeatures` does not know F16C: bit 29 of ECX in leaf 1. Its registers are those of AVX2, whose
/// support by the operating system has been checked by then. The answer is kept, as under a
/// hypervisor the question takes microseconds.
#[cfg(target_feature = "sse2")]
fn has_f16c() -> bool {
    #[cfg(target_arch = "x86")]
    use core::arch::x86::__cpuid;
    #[cfg(target_arch = "x86_64")]
    use core::arch::x86_64::__cpuid;
    use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
    const NOT_ASKED: u8 = 2;
    static ANSWER: AtomicU8 = AtomicU8::new(NOT_ASKED);
    let mut answer = ANSWER.load(Relaxed);
    if answer == NOT_ASKED {
        #[allow(unused_unsafe, reason = "__cpuid became safe after our minimum version")]
        // SAFETY: leaf 1 exists on every CPU with SSE2.
        let ecx = unsafe { __cpuid(1) }.ecx;
        answer = (ecx >> 29) as u8 & 1;
        ANSWER.store(answer, Relaxed);
    }
    answer == 1
}

#[cfg(not(target_feature = "sse2"))]
fn supported(kind: IsaKind) -> bool {
    kind == IsaKind::Portable
}
