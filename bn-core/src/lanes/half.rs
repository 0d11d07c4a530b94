//! The 16-bit formats, bit by bit: without branches, so that a loop over lanes becomes vectors on
//! any target. What the instructions of F16C and AVX-512 do, these do too.

/// 2¹¹²: from the exponents of binary16 to those of f32.
const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
const INFINITY: u32 = 0x7f80_0000;

/// Exact.
#[inline(always)]
pub(crate) fn widen_f16(h: u16) -> f32 {
    let magnitude = ((h & 0x7fff) as u32) << 13;
    // The product is exact, also for subnormal halves.
    let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
    let special = finite | INFINITY;
    let bits = if magnitude >= 0x7c00 << 13 { special } else { finite };
    f32::from_bits(bits | ((h & 0x8000) as u32) << 16)
}

/// To nearest, ties to even; NaN stays NaN, and becomes quiet.
#[inline(always)]
pub(crate) fn narrow_f16(v: f32) -> u16 {
    let bits = v.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Below 2⁻¹⁴: adding ½ leaves the bits that a subnormal half has, rounded by the addition.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    let nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    let special = if magnitude > INFINITY { nan } else { 0x7c00 };
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    let rounded = if magnitude >= (127 + 16) << 23 { special } else { finite };
    (rounded | (bits >> 16 & 0x8000)) as u16
}

/// Exact.
#[inline(always)]
pub(crate) fn widen_bf16(h: u16) -> f32 {
    f32::from_bits((h as u32) << 16)
}

/// To nearest, ties to even; NaN stays NaN, and becomes quiet.
#[inline(always)]
pub(crate) fn narrow_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits >> 16 | 0x40;
    (if bits & 0x7fff_ffff > INFINITY { nan } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// All bits alike for all NaN.
    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    #[test]
    fn every_half_and_back() {
        for h in 0..=u16::MAX {
            assert!(same(widen_f16(h), ::half::f16::from_bits(h).to_f32()), "{h:#x}");
            assert!(same(widen_bf16(h), ::half::bf16::from_bits(h).to_f32()), "{h:#x}");
            if !widen_f16(h).is_nan() {
                assert_eq!(narrow_f16(widen_f16(h)), h);
            }
            if !widen_bf16(h).is_nan() {
                assert_eq!(narrow_bf16(widen_bf16(h)), h);
            }
        }
    }

    /// Around every half: the tie to its neighbour, and the floats next to both.
    fn floats() -> Vec<f32> {
        let mut floats: Vec<f32> = std::vec![f32::NAN, -f32::NAN, f32::MAX, f32::MIN];
        // NaNs of each sign that rounding would take for infinity, or carry over.
        floats.extend([0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff].map(f32::from_bits));
        for h in 0..=u16::MAX {
            for bits in [::half::f16::from_bits(h).to_f32().to_bits(), (h as u32) << 16] {
                let step = 1 << if bits == (h as u32) << 16 { 15 } else { 12 };
                for near in [0, step] {
                    let at = bits.wrapping_add(near);
                    floats.extend([at.wrapping_sub(1), at, at.wrapping_add(1)].map(f32::from_bits));
                }
            }
        }
        floats.extend((0..1000).map(|i| f32::from_bits((113 << 23) - 500_000 + i * 997)));
        floats
    }

    #[test]
    fn rounding() {
        for v in floats() {
            let (f, b) = (::half::f16::from_f32_const(v), ::half::bf16::from_f32_const(v));
            if v.is_nan() {
                assert!(widen_f16(narrow_f16(v)).is_nan() && widen_bf16(narrow_bf16(v)).is_nan());
            } else {
                assert_eq!(narrow_f16(v), f.to_bits(), "{v:e}");
                assert_eq!(narrow_bf16(v), b.to_bits(), "{v:e}");
            }
        }
    }

    /// Every ISA converts as the code above does.
    #[test]
    fn every_isa() {
        use crate::dispatch::{Task, dispatch};
        use crate::isa::Isa;
        use crate::lanes::{Lanes, Vector, lane_of};
        struct Convert([u16; 16]);
        impl Task for Convert {
            type Element = f32;
            type Output = ([f32; 16], [f32; 16], [[u16; 16]; 3]);
            #[inline(always)]
            fn run<L: Lanes>(self, lanes: L) -> Self::Output {
                let (mut f, mut b, [mut nf, mut nb, mut back]) = ([0.0; 16], [0.0; 16], [[0; 16]; 3]);
                // SAFETY: arrays of 16.
                unsafe {
                    lanes.load_f16(self.0.as_ptr()).store(f.as_mut_ptr());
                    lanes.load_bf16::<false>(self.0.as_ptr()).store(b.as_mut_ptr());
                    // Widened as one type and rounded to the other, every kind of rounding occurs.
                    L::store_f16::<false>(lanes.load_bf16::<false>(self.0.as_ptr()), nf.as_mut_ptr());
                    L::store_bf16::<false, false>(lanes.load_f16(self.0.as_ptr()), nb.as_mut_ptr());
                    L::store_bf16::<false, false>(lanes.load_bf16::<false>(self.0.as_ptr()), back.as_mut_ptr());
                }
                (f, b, [nf, nb, back])
            }
        }
        struct Narrow([f32; 16]);
        impl Task for Narrow {
            type Element = f32;
            type Output = [[u16; 16]; 2];
            #[inline(always)]
            fn run<L: Lanes>(self, lanes: L) -> Self::Output {
                let mut to = [[0; 16]; 2];
                // SAFETY: arrays of 16.
                unsafe {
                    L::store_f16::<false>(L::F32::load(lanes, self.0.as_ptr()), to[0].as_mut_ptr());
                    L::store_bf16::<false, false>(L::F32::load(lanes, self.0.as_ptr()), to[1].as_mut_ptr());
                    let (mut hand, mut dealt) = (self.0, [0; 16]);
                    for i in 0..16 {
                        hand[if L::DEALS { lane_of(i) } else { i }] = self.0[i];
                    }
                    L::store_bf16::<false, true>(L::F32::load(lanes, hand.as_ptr()), dealt.as_mut_ptr());
                    assert_eq!(dealt, to[1]);
                }
                to
            }
        }
        /// The lanes of what was loaded dealt, and what is written of them.
        struct Deal([u16; 16]);
        impl Task for Deal {
            type Element = f32;
            type Output = (bool, [f32; 16], [u16; 16]);
            #[inline(always)]
            fn run<L: Lanes>(self, lanes: L) -> Self::Output {
                let (mut v, mut back) = ([0.0; 16], [0; 16]);
                // SAFETY: arrays of 16.
                unsafe {
                    let dealt = lanes.load_bf16::<true>(self.0.as_ptr());
                    dealt.store(v.as_mut_ptr());
                    L::store_bf16::<false, true>(dealt, back.as_mut_ptr());
                }
                (L::DEALS, v, back)
            }
        }
        /// What was loaded dealt, in order again; and zeroed below each element.
        struct Order([u16; 16]);
        impl Task for Order {
            type Element = f32;
            type Output = ([f32; 16], [[f32; 16]; 17]);
            #[inline(always)]
            fn run<L: Lanes>(self, lanes: L) -> Self::Output {
                let (mut all, mut above) = ([0.0; 16], [[0.0; 16]; 17]);
                // SAFETY: arrays of 16.
                unsafe {
                    let dealt = lanes.load_bf16::<true>(self.0.as_ptr());
                    let in_order = |v: L::F32| if L::DEALS { v.in_order() } else { v };
                    in_order(dealt).store(all.as_mut_ptr());
                    for n in 0..=16 {
                        let above_n = if L::DEALS { dealt.clear_below_dealt(n) } else { dealt.clear_below(n) };
                        in_order(above_n).store(above[n].as_mut_ptr());
                    }
                }
                (all, above)
            }
        }
        let floats = floats();
        for isa in Isa::available() {
            for v in floats.as_chunks::<16>().0 {
                // NaN as vectors have it where they are rounded to bfloat16.
                let nan = |v: f32| f32::from_bits(v.to_bits() & 0xffff_0000 | 0x40_0000);
                let [f, _] = dispatch(isa, Narrow(*v));
                let [_, b] = dispatch(isa, Narrow(v.map(|v| if v.is_nan() { nan(v) } else { v })));
                for i in 0..16 {
                    assert!(same(widen_f16(f[i]), widen_f16(narrow_f16(v[i]))), "{isa:?} {:#x}", v[i].to_bits());
                    assert!(same(widen_bf16(b[i]), widen_bf16(narrow_bf16(v[i]))), "{isa:?} {:#x}", v[i].to_bits());
                }
            }
            for start in (0..=u16::MAX).step_by(16) {
                let h: [u16; 16] = core::array::from_fn(|i| start + i as u16);
                let (all, above) = dispatch(isa, Order(h));
                for i in 0..16 {
                    assert!(same(all[i], widen_bf16(h[i])), "{isa:?} {:#x}", h[i]);
                    for n in 0..=16 {
                        let expected = if i < n { 0.0 } else { all[i] };
                        assert!(same(above[n][i], expected), "{isa:?} {:#x}, {i} of those from {n} on", h[i]);
                    }
                }
                let (deals, dealt, again) = dispatch(isa, Deal(h));
                for i in 0..16 {
                    let lane = if deals { lane_of(i) } else { i };
                    assert!(same(dealt[lane], widen_bf16(h[i])), "{isa:?} {:#x}", h[i]);
                    assert!(same(widen_bf16(again[i]), widen_bf16(h[i])), "{isa:?} {:#x}: {:#x}", h[i], again[i]);
                }
                let (f, b, [nf, nb, back]) = dispatch(isa, Convert(h));
                for i in 0..16 {
                    assert!(same(f[i], widen_f16(h[i])) && same(b[i], widen_bf16(h[i])), "{isa:?} {:#x}", h[i]);
                    // Signalling NaN too.
                    assert!(same(widen_bf16(back[i]), widen_bf16(h[i])), "{isa:?} {:#x}: {:#x}", h[i], back[i]);
                    let (wf, wb) = (narrow_f16(widen_bf16(h[i])), narrow_bf16(widen_f16(h[i])));
                    assert!(same(widen_f16(nf[i]), widen_f16(wf)), "{isa:?} {:#x}: {:#x} {wf:#x}", h[i], nf[i]);
                    // A half that is NaN may have more in it than bfloat16 has room for.
                    let more = widen_f16(h[i]).is_nan() && widen_f16(h[i]).to_bits() & 0xffff != 0;
                    assert!(more || same(widen_bf16(nb[i]), widen_bf16(wb)), "{isa:?} {:#x}", h[i]);
                }
            }
        }
    }
}
