//! Integers times powers of two, their roots, and how they round.

use dashu_base::{BitTest, Sign, Signed, SquareRoot, UnsignedAbs};
use dashu_int::{IBig, UBig};

/// Bits that roots are taken to before more are asked for.
pub const PRECISION: usize = 320;

/// A number as `hi + lo`: hi is the number correctly rounded to f64 (to nearest, ties to even,
/// subnormals and infinity as IEEE 754 has them), lo what is left of it, correct to some 50 bits.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Real {
    /// The number, correctly rounded.
    pub hi: f64,
    /// What the rounding lost; 0 where hi is infinite.
    pub lo: f64,
}

impl Real {
    /// |got − this|, with the digits that hi alone does not have.
    pub fn distance(&self, got: f64) -> f64 {
        if got == self.hi { self.lo.abs() } else { ((got - self.hi) - self.lo).abs() }
    }
}

impl From<f64> for Real {
    fn from(hi: f64) -> Real {
        Real { hi, lo: 0.0 }
    }
}

/// m·2^e, exactly.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dyadic {
    pub(crate) m: IBig,
    pub(crate) e: i64,
}

/// Mantissa and exponent of a finite number.
#[inline]
pub(crate) fn decode(v: f64) -> (i64, i32) {
    assert!(v.is_finite(), "the oracle knows finite numbers only");
    let bits = v.to_bits();
    let (exponent, fraction) = ((bits >> 52 & 0x7ff) as i32, (bits & ((1 << 52) - 1)) as i64);
    let (m, e) = if exponent == 0 { (fraction, -1074) } else { (fraction | 1 << 52, exponent - 1075) };
    // Without trailing zeros the integers that follow stay short.
    let zeros = if m == 0 { 0 } else { m.trailing_zeros() as i32 };
    let m = m >> zeros;
    (if v.is_sign_negative() { -m } else { m }, e + zeros)
}

impl Dyadic {
    pub(crate) fn zero() -> Self {
        Dyadic { m: IBig::ZERO, e: 0 }
    }
    pub(crate) fn of(v: f64) -> Self {
        let (m, e) = decode(v);
        Dyadic { m: m.into(), e: e.into() }
    }
    pub(crate) fn integer(v: u64) -> Self {
        Dyadic { m: v.into(), e: 0 }
    }
    pub(crate) fn is_zero(&self) -> bool {
        self.m.is_zero()
    }
    pub(crate) fn add(&self, o: &Dyadic) -> Dyadic {
        if self.is_zero() {
            return o.clone();
        }
        if o.is_zero() {
            return self.clone();
        }
        let (high, low) = if self.e >= o.e { (self, o) } else { (o, self) };
        Dyadic { m: (&high.m << (high.e - low.e) as usize) + &low.m, e: low.e }
    }
    pub(crate) fn neg(&self) -> Dyadic {
        Dyadic { m: -&self.m, e: self.e }
    }
    pub(crate) fn sub(&self, o: &Dyadic) -> Dyadic {
        self.add(&o.neg())
    }
    pub(crate) fn mul(&self, o: &Dyadic) -> Dyadic {
        if self.is_zero() || o.is_zero() {
            return Dyadic::zero();
        }
        Dyadic { m: &self.m * &o.m, e: self.e + o.e }
    }
    /// The same number without trailing zeros in m.
    pub(crate) fn reduced(self) -> Dyadic {
        match self.m.trailing_zeros() {
            None => Dyadic::zero(),
            Some(z) => Dyadic { m: self.m >> z, e: self.e + z as i64 },
        }
    }
    /// Correctly rounded.
    pub(crate) fn real(&self) -> Real {
        round(self.m.sign(), &self.m.clone().unsigned_abs(), self.e, false)
    }
    /// self/q, correctly rounded; q > 0.
    pub(crate) fn over(&self, q: &Dyadic) -> Real {
        if self.is_zero() {
            return Real::default();
        }
        let (a, b) = (self.m.clone().unsigned_abs(), q.m.clone().unsigned_abs());
        // A quotient of more than 128 bits leaves the remainder nothing to say but "more than that".
        let shift = (b.bit_len() + 140).saturating_sub(a.bit_len());
        let a = a << shift;
        let quotient = &a / &b;
        let sticky = &quotient * &b != a;
        round(self.m.sign(), &quotient, self.e - q.e - shift as i64, sticky)
    }
}

/// ±(m + something in (0, 1) if sticky)·2^e, correctly rounded. With `sticky` m has more than 128 bits.
fn round(sign: Sign, m: &UBig, e: i64, sticky: bool) -> Real {
    if m.is_zero() {
        return Real::default();
    }
    let bits = m.bit_len() as i64;
    // The first 128 bits, and whether there is more.
    let (top, e, sticky) = if bits > 128 {
        let cut = (bits - 128) as usize;
        let more = m.trailing_zeros().is_some_and(|z| z < cut);
        (u128::try_from(m >> cut).unwrap_or(u128::MAX), e + cut as i64, sticky || more)
    } else {
        let v = u128::try_from(m).unwrap_or(u128::MAX);
        let z = v.leading_zeros();
        (v << z, e - z as i64, sticky)
    };
    // The value is top·2^e with top ≥ 2¹²⁷. Bits to drop: 75, more for subnormals.
    let drop = 75.max(-1074 - e);
    let (kept, rest) = match drop {
        ..128 => (top >> drop, top & ((1 << drop) - 1)),
        128 => (0, top),
        // Less than a quarter of the smallest subnormal.
        _ => return signed(sign, Real { hi: 0.0, lo: scale(top as f64, e) }),
    };
    let half = 1u128 << (drop - 1);
    let up = rest > half || (rest == half && (sticky || kept & 1 == 1));
    let kept = kept + up as u128;
    let hi = scale(kept as f64, e + drop);
    if hi.is_infinite() {
        return signed(sign, hi.into());
    }
    // What was dropped, less what rounding up has added.
    let lo = if up {
        let over = if drop == 128 { rest.wrapping_neg() } else { (1 << drop) - rest };
        -scale(over as f64, e)
    } else {
        scale(rest as f64, e)
    };
    signed(sign, Real { hi, lo })
}

fn signed(sign: Sign, r: Real) -> Real {
    if sign == Sign::Negative { Real { hi: -r.hi, lo: -r.lo } } else { r }
}

/// v·2^e for v with at most 53 bits whose result is exact, or lo's: rounded once or to 0.
fn scale(v: f64, e: i64) -> f64 {
    let power = |e: i64| f64::from_bits(((e + 1023) as u64) << 52);
    let mut v = v;
    let mut e = e;
    // From 2¹²⁷ down only the last step may meet subnormals.
    while e < -900 && v >= 1.0 {
        v *= power(-100);
        e += 100;
    }
    match e {
        1024.. => v * power(1023) * power((e - 1023).min(1023)),
        -1022..=1023 => v * power(e),
        -2000..-1022 => v * power(-1000) * power(e + 1000),
        _ => 0.0,
    }
}

/// 1/√v for v > 0: exactly, or from below to some precision.
#[derive(Clone, Debug)]
pub(crate) struct InverseRoot {
    v: Dyadic,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// √v.
    Root(Dyadic),
    /// 1/√v lies in [r, r + 2^r.e), r with [`PRECISION`] bits.
    Below(Dyadic),
}

impl InverseRoot {
    pub(crate) fn new(v: Dyadic) -> Self {
        let mut v = v.reduced();
        debug_assert!(v.m.is_positive() && !v.m.is_zero());
        if v.e % 2 != 0 {
            v = Dyadic { m: v.m << 1, e: v.e - 1 };
        }
        let m = v.m.clone().unsigned_abs();
        let root = m.sqrt();
        let kind = if &root * &root == m {
            Kind::Root(Dyadic { m: root.into(), e: v.e / 2 })
        } else {
            Kind::Below(below(&v, PRECISION))
        };
        InverseRoot { v, kind }
    }

    /// self·factor + term, correctly rounded.
    pub(crate) fn times_plus(&self, factor: &Dyadic, term: &Dyadic) -> Real {
        if factor.is_zero() {
            return term.real();
        }
        match &self.kind {
            Kind::Root(q) => factor.add(&term.mul(q)).over(q),
            Kind::Below(r) => {
                let mut precision = PRECISION;
                let mut r = r.clone();
                loop {
                    let low = factor.mul(&r).add(term);
                    let (a, b) = (low.real(), low.add(&Dyadic { m: factor.m.clone(), e: factor.e + r.e }).real());
                    if a.hi == b.hi {
                        return a;
                    }
                    // Irrational, so more digits settle it.
                    precision *= 2;
                    r = below(&self.v, precision);
                }
            }
        }
    }
}

/// ⌊2^k/√m⌋ with `precision` bits, as a number, for v = m·2^e with even e.
fn below(v: &Dyadic, precision: usize) -> Dyadic {
    let m = v.m.clone().unsigned_abs();
    let k = precision + m.bit_len().div_ceil(2);
    // The root of the rounded-down quotient, rounded down, is that of the quotient.
    let r = ((UBig::ONE << (2 * k)) / m).sqrt();
    Dyadic { m: r.into(), e: -(k as i64) - v.e / 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn real(m: i128, e: i64) -> Real {
        Dyadic { m: m.into(), e }.real()
    }

    #[test]
    fn rounding_is_that_of_ieee() {
        let one = 1i128 << 60;
        assert_eq!(real(one, -60), 1.0.into());
        // 1 + half an ulp is a tie: to even. Half an ulp is 2⁻⁵³.
        let half = 1i128 << 7;
        assert_eq!(real(one + half, -60), Real { hi: 1.0, lo: 2f64.powi(-53) });
        assert_eq!(real(one + half + 1, -60), Real { hi: 1.0 + f64::EPSILON, lo: 2f64.powi(-60) - 2f64.powi(-53) });
        assert_eq!(real(one + half - 1, -60).hi, 1.0);
        assert_eq!(real(one + 3 * half, -60).hi, 1.0 + 2.0 * f64::EPSILON);
        assert_eq!(real(-one - 3 * half, -60), Real { hi: -1.0 - 2.0 * f64::EPSILON, lo: 2f64.powi(-53) });
        // Up to the next power of two.
        assert_eq!(real((1 << 54) - 1, -54).hi, 1.0);
        // Both ends of the range.
        assert_eq!(real(1, -1074).hi, f64::from_bits(1));
        assert_eq!(real(1, -1075).hi, 0.0);
        assert_eq!(real(3, -1075).hi, f64::from_bits(2));
        assert_eq!(real(5, -1076).hi, f64::from_bits(1));
        assert_eq!(real((1 << 60) + 1, -1135).hi, f64::from_bits(1));
        assert_eq!(real(1, -1200).hi, 0.0);
        assert_eq!(real(1, 1023).hi, 2f64.powi(1023));
        assert_eq!(real((1 << 53) - 1, 971).hi, f64::MAX);
        assert_eq!(real((1 << 54) - 1, 970).hi, f64::INFINITY);
        assert_eq!(real((1 << 54) - 2, 970).hi, f64::MAX);
        assert_eq!(real(-1, 1024).hi, f64::NEG_INFINITY);
        assert_eq!(real(1, 5000).hi, f64::INFINITY);
    }

    #[test]
    fn every_f64_is_itself() {
        let mut bits = 1u64;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(12345) ^ (bits >> 29);
            let v = f64::from_bits(bits);
            if v.is_finite() {
                assert_eq!(Dyadic::of(v).real(), v.into());
                let third = Dyadic::of(v).over(&Dyadic::integer(3));
                assert_eq!(third.hi, v / 3.0, "{v:e}");
            }
        }
        for v in [f64::MIN_POSITIVE, f64::from_bits(1), f64::MAX, 0.0, f64::MIN_POSITIVE - f64::from_bits(1)] {
            assert_eq!(Dyadic::of(v).real(), v.into());
        }
    }

    #[test]
    fn division_and_root_are_correctly_rounded() {
        let mut seed = 7u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let exponent = (seed >> 40) % 200 + 923;
            f64::from_bits(exponent << 52 | seed >> 12)
        };
        for _ in 0..20_000 {
            let (a, b) = (next(), next());
            assert_eq!(Dyadic::of(a).over(&Dyadic::of(b)).hi, a / b);
            // √a = a/√a.
            let root = InverseRoot::new(Dyadic::of(a)).times_plus(&Dyadic::of(a), &Dyadic::zero());
            assert_eq!(root.hi, a.sqrt());
        }
        // Squares take the exact way, also with ties: 3/√4 + 2⁻⁵³ … and a quotient that is no dyadic.
        let quarter = InverseRoot::new(Dyadic::of(16.0));
        assert_eq!(quarter.times_plus(&Dyadic::of(4.0), &Dyadic::of(2f64.powi(-53))).hi, 1.0);
        let third = InverseRoot::new(Dyadic::of(9.0));
        assert_eq!(third.times_plus(&Dyadic::of(1.0), &Dyadic::zero()).hi, 1.0 / 3.0);
        assert_eq!(third.times_plus(&Dyadic::of(3.0), &Dyadic::of(1.0)), 2.0.into());
    }

    #[test]
    fn the_rest_has_the_digits_that_rounding_lost() {
        // √2 = 1.41421356237309504880168872420969807856967…
        let two = Dyadic::of(2.0);
        let root = InverseRoot::new(two.clone()).times_plus(&two, &Dyadic::zero());
        assert_eq!(root.hi, std::f64::consts::SQRT_2);
        // √2 − hi, from (2 − hi²)/(2·hi) with hi² exact in two parts.
        let hi = Dyadic::of(root.hi);
        let rest = two.sub(&hi.mul(&hi)).over(&Dyadic::of(2.0 * root.hi));
        assert!((root.lo - rest.hi).abs() <= 1e-15 * root.lo.abs());
    }
}
