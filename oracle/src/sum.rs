//! Exact sums.

use crate::big::{Dyadic, Real, decode};
use dashu_int::IBig;

/// Exponent of limb 0's lowest bit: below that of the product of two subnormals.
const LOWEST: i32 = -2176;
/// Limbs of 32 bits up to the product of the two largest numbers, and room for 2⁶⁴ of them.
const LIMBS: usize = 136;
/// Additions that a limb has room for before carries must move.
const ROOM: u32 = 1 << 30;

/// The exact sum of any number of f64 values and of products of two: one long fixed-point number.
///
/// Limbs are signed and hold 32 bits each, so that additions need no carries.
#[derive(Clone)]
pub struct Sum {
    limbs: [i64; LIMBS],
    /// The limbs in use.
    first: usize,
    end: usize,
    room: u32,
}

impl Default for Sum {
    fn default() -> Self {
        Sum { limbs: [0; LIMBS], first: LIMBS, end: 0, room: ROOM }
    }
}

impl Sum {
    /// Adds v.
    #[inline]
    pub fn add(&mut self, v: f64) {
        let (m, e) = decode(v);
        self.put(m.unsigned_abs().into(), e, m < 0);
    }

    /// Adds a·b.
    #[inline]
    pub fn add_product(&mut self, a: f64, b: f64) {
        let ((ma, ea), (mb, eb)) = (decode(a), decode(b));
        self.put(ma.unsigned_abs() as u128 * mb.unsigned_abs() as u128, ea + eb, (ma < 0) != (mb < 0));
    }

    /// Adds ±m·2^e, m < 2¹⁰⁶.
    #[inline]
    fn put(&mut self, m: u128, e: i32, negative: bool) {
        if m == 0 {
            return;
        }
        if self.room == 0 {
            self.carry();
        }
        self.room -= 1;
        let place = (e - LOWEST) as usize;
        let (first, shift) = (place / 32, place % 32);
        let (low, high) = (((m as u64) as u128) << shift, (m >> 64) << shift);
        let sign = if negative { -1 } else { 1 };
        let chunk = |v: u128, i: usize| ((v >> (32 * i)) as u32) as i64 * sign;
        for i in 0..3 {
            self.limbs[first + i] += chunk(low, i);
        }
        for i in 0..3 {
            self.limbs[first + 2 + i] += chunk(high, i);
        }
        self.first = self.first.min(first);
        self.end = self.end.max(first + 5);
    }

    fn carry(&mut self) {
        for i in 0..LIMBS - 1 {
            let carry = self.limbs[i] >> 32;
            self.limbs[i] -= carry << 32;
            self.limbs[i + 1] += carry;
        }
        self.end = LIMBS;
        self.room = ROOM;
    }

    pub(crate) fn dyadic(&self) -> Dyadic {
        let mut m = IBig::ZERO;
        for i in (self.first..self.end).rev() {
            m = (m << 32) + self.limbs[i];
        }
        Dyadic { m, e: (LOWEST + 32 * self.first as i32).into() }.reduced()
    }

    /// The sum, correctly rounded.
    pub fn real(&self) -> Real {
        self.dyadic().real()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost() {
        let mut s = Sum::default();
        for v in [1e300, 1.0, -1e300, 1e-300, f64::MIN_POSITIVE / 4.0] {
            s.add(v);
        }
        s.add(-1.0);
        s.add(-1e-300);
        assert_eq!(s.real(), (f64::MIN_POSITIVE / 4.0).into());
        // The product of the two smallest numbers, and of the two largest.
        let tiny = f64::from_bits(1);
        let mut p = Sum::default();
        p.add_product(tiny, tiny);
        p.add_product(f64::MAX, f64::MAX);
        p.add_product(-f64::MAX, f64::MAX);
        assert_eq!((p.dyadic().m, p.dyadic().e), (1.into(), -2148));
    }

    #[test]
    fn sums_of_integers() {
        let (mut s, mut q, mut exact, mut squares) = (Sum::default(), Sum::default(), 0i128, 0i128);
        let mut seed = 3u64;
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let v = (seed as i64) >> 20;
            s.add(v as f64);
            q.add_product(v as f64, v as f64 * 0.5);
            exact += v as i128;
            squares += v as i128 * v as i128;
        }
        s.carry();
        assert_eq!(s.dyadic().sub(&Dyadic { m: exact.into(), e: 0 }), Dyadic::zero());
        assert_eq!(q.dyadic().sub(&Dyadic { m: squares.into(), e: -1 }).reduced(), Dyadic::zero());
    }

    #[test]
    fn many_large_addends() {
        let mut s = Sum::default();
        for _ in 0..100_000 {
            s.add_product(f64::MAX, -f64::MAX);
        }
        let mut one = Sum::default();
        one.add_product(f64::MAX, f64::MAX);
        assert_eq!(s.dyadic().add(&one.dyadic().mul(&Dyadic::integer(100_000))).reduced(), Dyadic::zero());
    }
}
