//! Operands as C sees them, what may be wrong with a call, and what is expected of it.

use arbitrary::Arbitrary;
use batchnorm::*;
use bn_core::{Error, GradSums, Moments, Prepared};
use bn_fuzz::finite;
use bn_oracle::problem::Scalar;
use core::ffi::c_void;
use core::ptr::null_mut;

/// Mistakes of a call. Mostly none: without one there are results to compare. Of two either may be named.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Mistakes(Option<(Mistake, Option<Mistake>)>);

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
pub enum Mistake {
    /// An operand is not there.
    Null(u8),
    /// An operand is not aligned.
    Misaligned(u8),
    /// An operand is in the place of another one, or behind its first entry.
    Overlap { from: u8, to: u8, shifted: bool },
    /// A field of the descriptor, or an argument, is anything.
    Field(u8, u64),
    /// There is no descriptor, or one that is not aligned.
    Descriptor { null: bool },
    /// The workspace is a byte smaller than it has to be.
    Workspace,
    /// The executor has no function, or one that runs nothing.
    Executor { null: bool },
    /// The moments of a channel have another count.
    Count,
}

impl Mistakes {
    pub fn iter(&self) -> impl Iterator<Item = Mistake> + use<> {
        let all = self.0;
        all.into_iter().flat_map(|(first, second)| [Some(first), second]).flatten()
    }
}

/// Something at an address of C. Exactly so large, so that the address sanitizer sees what is beside it.
#[derive(Clone, Copy)]
pub struct Operand {
    pub at: *mut c_void,
    pub bytes: usize,
    /// Of an entry.
    size: usize,
    align: usize,
    must: bool,
    written: bool,
}

impl Operand {
    pub fn new<P>(v: &mut [P]) -> Self {
        let at = v.as_mut_ptr().cast();
        Operand { at, bytes: size_of_val(v), size: size_of::<P>(), align: align_of::<P>(), must: true, written: false }
    }

    pub fn written(self) -> Self {
        Operand { written: true, ..self }
    }

    /// NULL is legal.
    pub fn optional(self) -> Self {
        Operand { must: false, ..self }
    }

    pub fn absent_if(self, absent: bool) -> Self {
        if absent { Operand { at: null_mut(), ..self.optional() } } else { self }
    }
}

impl Mistake {
    /// Makes the mistake, if it is one of operands: the status that it has. `legal` says of two of them, the second at
    /// the place of the first, or behind its first entry, that this is no mistake, or may be none.
    pub fn make(
        self,
        operands: &mut [Operand],
        legal: impl Fn(usize, usize, bool) -> bool,
    ) -> Option<batchnorm_status> {
        let n = operands.len();
        match self {
            Mistake::Null(i) if operands[i as usize % n].must => {
                operands[i as usize % n].at = null_mut();
                Some(BATCHNORM_ERROR_NULL)
            }
            Mistake::Misaligned(i) if !operands[i as usize % n].at.is_null() => {
                let at = &mut operands[i as usize % n].at;
                // Also where it was not before.
                *at = at.map_addr(|address| address | 1);
                Some(BATCHNORM_ERROR_ALIGNMENT)
            }
            Mistake::Overlap { from, to, shifted } => {
                let (from, to) = (from as usize % n, to as usize % n);
                let (there, moved) = (operands[from], operands[to]);
                let shift = if shifted { there.size } else { 0 };
                let absent = there.at.is_null() || moved.at.is_null();
                let shared = shift < there.bytes && (there.written || moved.written);
                if from == to || absent || !shared || legal(from, to, shifted) {
                    return None;
                }
                let at = there.at.wrapping_byte_add(shift);
                let aligned = at.addr().is_multiple_of(moved.align);
                if moved.bytes > 0 || aligned {
                    operands[to].at = at;
                }
                // What is empty shares nothing.
                match (moved.bytes, aligned) {
                    (0, _) => None,
                    (_, true) => Some(BATCHNORM_ERROR_OVERLAP),
                    (_, false) => Some(BATCHNORM_ERROR_ALIGNMENT),
                }
            }
            _ => None,
        }
    }
}

/// The numbers of a call: of one size, in any order, none of them 0.
#[derive(Arbitrary, Clone, Debug)]
pub struct Numbers {
    of: [u32; 8],
    /// Another one among those of an operand, and where.
    odd: Option<(u8, u16, Odd)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Odd {
    Zero,
    Tiny,
    Huge,
    Infinite,
    Nan,
    Any(u32),
}

impl Numbers {
    fn number(&self, i: usize) -> f64 {
        finite(self.of[i % 8] & 0x3fff_ffff | 0x3000_0000) * (1.0 - (i % 13) as f64 / 6.5)
    }

    /// Those of an operand, by way of `of`.
    fn all<S: Clone>(&self, operand: usize, n: usize, of: impl Fn(f64) -> S) -> Vec<S> {
        // They repeat after this many.
        let few: Vec<S> = (0..8 * 13).map(|i| of(self.number(i + 3 * operand))).collect();
        let mut v: Vec<S> = few.iter().cycle().take(n).cloned().collect();
        if let Some((at, place, odd)) = self.odd
            && at as usize % 16 == operand
            && n > 0
        {
            v[place as usize % n] = of(match odd {
                Odd::Zero => 0.0,
                Odd::Tiny => f32::from_bits(1).into(),
                Odd::Huge => f32::MAX.into(),
                Odd::Infinite => f64::INFINITY,
                Odd::Nan => f64::NAN,
                Odd::Any(bits) => f32::from_bits(bits).into(),
            });
        }
        v
    }

    fn wide(&self, operand: usize, n: usize) -> Vec<f64> {
        self.all(operand, n, |v| v)
    }

    pub fn values<S: Scalar>(&self, operand: usize, n: usize) -> Vec<S> {
        self.all(operand, n, S::of)
    }

    pub fn variances<S: Scalar>(&self, operand: usize, n: usize) -> Vec<S> {
        self.all(operand, n, |v| S::of(v.abs()))
    }

    pub fn moments(&self, operand: usize, n: usize) -> Vec<Moments> {
        let v = self.wide(operand, 2 * n);
        let count = |i: usize| self.of[i % 8] as u64 % 5;
        (0..n).map(|i| Moments { count: count(i), mean: v[2 * i], m2: v[2 * i + 1].abs() }).collect()
    }

    pub fn sums(&self, operand: usize, n: usize) -> Vec<GradSums> {
        self.wide(operand, 2 * n).chunks_exact(2).map(|v| GradSums { dbeta: v[0], dot: v[1] }).collect()
    }

    pub fn prepared<P: Scalar>(&self, operand: usize, n: usize) -> Vec<Prepared<P>> {
        let constants = self.wide(operand, 3 * n);
        let entry = |v: &[f64]| Prepared { mean: P::of(v[0]), scale: P::of(v[1]), shift: P::of(v[2]) };
        constants.chunks_exact(3).map(entry).collect()
    }
}

/// The bits of an array, with all NaN alike.
pub trait Bits {
    fn bits(&self) -> Vec<u64>;
}

impl<S: Scalar> Bits for [S] {
    fn bits(&self) -> Vec<u64> {
        self.iter().map(|v| v.bits()).collect()
    }
}

pub fn moments_bits(v: &[Moments]) -> Vec<u64> {
    v.iter().flat_map(|m| [m.count, m.mean.bits(), m.m2.bits()]).collect()
}

pub fn sums_bits(v: &[GradSums]) -> Vec<u64> {
    v.iter().flat_map(|s| [s.dbeta.bits(), s.dot.bits()]).collect()
}

pub fn prepared_bits<P: Scalar>(v: &[Prepared<P>]) -> Vec<u64> {
    v.iter().flat_map(|p| [p.mean.bits(), p.scale.bits(), p.shift.bits()]).collect()
}

/// What an error of bn-core is in C.
pub fn status(e: Error) -> batchnorm_status {
    match e {
        Error::NoChannels => BATCHNORM_ERROR_CHANNELS,
        Error::ShapeOverflow => BATCHNORM_ERROR_SIZE,
        Error::Stride { .. } => BATCHNORM_ERROR_STRIDE,
        Error::Epsilon { .. } => BATCHNORM_ERROR_EPSILON,
        Error::Momentum { .. } => BATCHNORM_ERROR_MOMENTUM,
        Error::Activation { .. } => BATCHNORM_ERROR_ACTIVATION,
        Error::TooFewValues { .. } => BATCHNORM_ERROR_TOO_FEW_VALUES,
        Error::Count { .. } => BATCHNORM_ERROR_COUNT,
        Error::NotInvertible { .. } => BATCHNORM_ERROR_NOT_INVERTIBLE,
        Error::Missing { .. } => BATCHNORM_ERROR_NULL,
        Error::Unpreparable { .. } => BATCHNORM_ERROR_UNPREPARABLE,
        Error::Unfoldable { .. } => BATCHNORM_ERROR_UNFOLDABLE,
        e => panic!("{e}"),
    }
}

/// Fails unless a call has answered with one of what is wrong, and written nothing; or, if nothing is, with
/// BATCHNORM_OK, and written what is meant.
pub fn judge(
    wrong: &[batchnorm_status],
    got: batchnorm_status,
    before: &[Vec<u64>],
    after: &[Vec<u64>],
    meant: &[Vec<u64>],
) {
    if wrong.is_empty() {
        assert_eq!(got, BATCHNORM_OK);
        for (i, (after, meant)) in after.iter().zip(meant).enumerate() {
            assert!(after == meant, "operand {i} has other bits than bn-core's, or was written");
        }
    } else {
        assert!(wrong.contains(&got), "status {got}, expected one of {wrong:?}");
        assert!(after == before, "status {got}, and something written");
    }
}
