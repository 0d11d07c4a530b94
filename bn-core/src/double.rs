//! Single f64 numbers, as cheap as they can be had where f64 is software: comparisons are of integers, and a square root
//! is a quarter of the code that libm has for it.

use crate::lanes::{Base, Lanes};

/// The magnitude of infinity; those above it are NaN.
const INFINITE: u64 = f64::INFINITY.to_bits();

/// |v| as an integer, ordered as the numbers are.
#[inline(always)]
fn magnitude(v: f64) -> u64 {
    v.to_bits() & (u64::MAX >> 1)
}

/// v = 0. In halves, as the compiler makes a comparison of numbers of the whole.
#[inline(always)]
pub(crate) fn is_zero(v: f64) -> bool {
    let bits = v.to_bits();
    ((bits >> 32) as u32) << 1 | bits as u32 == 0
}

#[inline(always)]
pub(crate) fn is_nan(v: f64) -> bool {
    magnitude(v) > INFINITE
}

#[inline(always)]
pub(crate) fn is_finite(v: f64) -> bool {
    magnitude(v) < INFINITE
}

/// |v| > limit, a positive number; not where v is NaN.
#[inline(always)]
pub(crate) fn exceeds(v: f64, limit: f64) -> bool {
    magnitude(v) > limit.to_bits() && !is_nan(v)
}

/// |v| < limit, a positive number; not where v is NaN.
#[inline(always)]
pub(crate) fn is_below(v: f64, limit: f64) -> bool {
    magnitude(v) < limit.to_bits()
}

/// v = w.
#[inline(always)]
pub(crate) fn same(v: f64, w: f64) -> bool {
    !is_nan(v) && (v.to_bits() == w.to_bits() || (is_zero(v) && is_zero(w)))
}

/// v < w; not where either is NaN.
#[cfg_attr(target_os = "none", inline(never))]
pub(crate) fn less(v: f64, w: f64) -> bool {
    if !Base::SINGLE {
        return v < w;
    }
    // Differences of numbers that are not the same do not vanish; of NaN, and of the same infinity, they are NaN.
    let d = v - w;
    d.to_bits().wrapping_sub((1 << 63) + 1) < INFINITE
}

/// √v, rounded to nearest.
#[inline(always)]
pub(crate) fn sqrt(v: f64) -> f64 {
    if Base::SINGLE { root(v) } else { libm::sqrt(v) }
}

/// The same in integers.
#[cfg_attr(
    not(any(test, bn_single, target_os = "none")),
    allow(dead_code, reason = "other targets have an instruction")
)]
#[inline(never)]
fn root(v: f64) -> f64 {
    const FRACTION: u32 = f64::MANTISSA_DIGITS - 1;
    const ONE: u64 = 1 << FRACTION;
    let bits = v.to_bits();
    if is_zero(v) || bits >= INFINITE {
        // A zero, or infinity, is its own root.
        return if bits == INFINITE || is_zero(v) { v } else { f64::from_bits(bits | f64::NAN.to_bits()) };
    }
    let (mut exponent, mut m) = ((bits >> FRACTION) as i32, bits & (ONE - 1));
    if exponent > 0 {
        m |= ONE;
    } else {
        exponent = 1;
        while m < ONE {
            m <<= 1;
            exponent -= 1;
        }
    }
    // v = m/2⁵²·2²ᵏ with m/2⁵² from 1 to 4.
    let k = (exponent - 1023) >> 1;
    m <<= (exponent - 1023) & 1;
    // Bit by bit: q, which is twice the root of m·2⁵⁴ rounded down, and what its square lacks, over the bit at hand.
    let (mut rest, mut q, mut bit) = (m << 1, 0, ONE << 1);
    while bit != 0 {
        if rest >= q + bit {
            rest -= q + bit;
            q += 2 * bit;
        }
        rest <<= 1;
        bit >>= 1;
    }
    // No root is halfway between two numbers: its square would have twice as many digits.
    f64::from_bits(((q + 2) >> 2).wrapping_add(((k + 1022) as u64) << FRACTION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_rounded_to_nearest() {
        let check = |bits: u64| {
            let v = f64::from_bits(bits);
            // The standard library's is an instruction, or libm's.
            let (got, expected) = (root(v), v.sqrt());
            assert!(got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()), "{v:e}: {got:e}");
        };
        for special in [0.0, f64::INFINITY, f64::NAN, f64::MAX, 1.0, 2.0, 4.0] {
            for v in [special, -special] {
                check(v.to_bits());
            }
        }
        let mut random = 1_u64;
        let mut next = || {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            random ^ (random >> 32)
        };
        for exponent in 0..2047 {
            for i in 0..500 {
                let fraction = next() >> 12;
                // Also the ends, and the neighbours of squares.
                let square = f64::from_bits(1023 << 52 | fraction).powi(2).to_bits() & (u64::MAX >> 12);
                for fraction in [i, !i, fraction, square, square.wrapping_sub(1), square.wrapping_add(1)] {
                    check(exponent << 52 | (fraction & (u64::MAX >> 12)));
                }
            }
        }
    }

    #[test]
    fn comparisons_are_those_of_numbers() {
        let all = [0.0, f64::MIN_POSITIVE / 4.0, 0.5, 1.0, 1.5, f64::MAX, f64::INFINITY, f64::NAN];
        for v in all.iter().flat_map(|&v| [v, -v]) {
            assert_eq!(is_zero(v), v == 0.0);
            assert_eq!(is_nan(v), v.is_nan());
            assert_eq!(is_finite(v), v.is_finite());
            for w in all.iter().flat_map(|&w| [w, -w]) {
                assert_eq!((same(v, w), less(v, w)), (v == w, v < w));
                if w > 0.0 {
                    assert_eq!((exceeds(v, w), is_below(v, w)), (v.abs() > w, v.abs() < w), "{v:e} {w:e}");
                }
            }
        }
    }
}
