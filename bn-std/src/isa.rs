//! The instruction set, as the environment wants it.

use crate::error::Error;
use bn_core::Isa;
use std::ffi::OsStr;
use std::sync::OnceLock;

/// The environment variable that [`isa()`](fn@isa) reads: "BN_ISA".
///
/// ```
/// assert_eq!(bn_std::ISA_VARIABLE, "BN_ISA");
/// ```
pub const ISA_VARIABLE: &str = "BN_ISA";

/// The instruction set to use: the one that `BN_ISA` names, else the best of this CPU.
///
/// `BN_ISA` is "portable", "avx2" or "avx512", as [`Isa::by_name`] takes it; unset or empty leaves
/// the choice to [`Isa::detect`]. It is read once, at the first call: later changes have no effect.
/// Every [`BatchNormLayer`](crate::BatchNormLayer) asks here; plans made by [`bn_core::BatchNorm::new`]
/// do not (bn-core knows no environment): give them the result by [`bn_core::BatchNorm::with_isa`].
///
/// All instruction sets give the same bits; forcing one is for tests and measurements. That is why a
/// name that cannot be had is an error and not ignored: a test of AVX-512 that silently ran
/// something else would lie.
///
/// # Errors
/// [`Error::Isa`], at every call, where `BN_ISA` is no name, or the name of an instruction set that
/// this CPU or operating system does not support.
///
/// ```
/// use bn_core::{BatchNorm, Shape};
/// let plan = BatchNorm::<f32>::new(Shape::dense(32, 8)?, 1e-5)?.with_isa(bn_std::isa()?);
/// println!("running on {:?}", plan.isa());
/// # Ok::<(), bn_std::Error>(())
/// ```
pub fn isa() -> Result<Isa, Error> {
    static CHOICE: OnceLock<Result<Isa, Error>> = OnceLock::new();
    CHOICE.get_or_init(|| choose(std::env::var_os(ISA_VARIABLE).as_deref())).clone()
}

fn choose(name: Option<&OsStr>) -> Result<Isa, Error> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(Isa::detect()) };
    let isa = name.to_str().and_then(Isa::by_name);
    isa.ok_or_else(|| Error::Isa { got: name.to_string_lossy().into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_or_empty_is_the_best() {
        assert_eq!(choose(None), Ok(Isa::detect()));
        assert_eq!(choose(Some(OsStr::new(""))), Ok(Isa::detect()));
    }

    #[test]
    fn every_available_name_is_taken() {
        for isa in Isa::available() {
            assert_eq!(choose(Some(OsStr::new(isa.kind().name()))), Ok(isa));
        }
    }

    #[test]
    fn unknown_and_unsupported_names_are_errors() {
        let unsupported = ["portable", "avx2", "avx512"]
            .into_iter()
            .filter(|name| !Isa::available().any(|a| a.kind().name() == *name));
        for name in ["AVX2", "avx2 ", "sse2", "neon", "0"].into_iter().chain(unsupported) {
            let error = choose(Some(OsStr::new(name))).unwrap_err();
            assert_eq!(error, Error::Isa { got: name.into() });
            let message = error.to_string();
            assert!(
                message.starts_with(&format!("BN_ISA is {name:?}, ")) && message.contains(": portable"),
                "{message}"
            );
        }
    }
}
