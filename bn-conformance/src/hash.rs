//! FNV-1a over the bits of results.

/// A hash in the making (Fowler, Noll & Vo, 64 bits, variant 1a).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hash(u64);

impl Hash {
    pub(crate) const NEW: Hash = Hash(0xcbf2_9ce4_8422_2325);

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ b as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn u64(&mut self, v: u64) {
        self.bytes(&v.to_le_bytes());
    }

    pub(crate) fn all<V: Bits>(&mut self, values: &[V]) {
        for v in values {
            v.hash(self);
        }
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

/// What has bits to be hashed. All NaNs count as one: which of two payloads an operation keeps is
/// not IEEE's to say, and differs between targets.
pub(crate) trait Bits {
    fn hash(&self, hash: &mut Hash);
}

impl Bits for f32 {
    fn hash(&self, hash: &mut Hash) {
        let v = if self.is_nan() { f32::NAN.to_bits() & 0x7fff_ffff } else { self.to_bits() };
        hash.bytes(&v.to_le_bytes());
    }
}

impl Bits for f64 {
    fn hash(&self, hash: &mut Hash) {
        hash.u64(if self.is_nan() { f64::NAN.to_bits() & (u64::MAX >> 1) } else { self.to_bits() });
    }
}

#[cfg(feature = "half")]
macro_rules! half {
    ($t:ty) => {
        impl Bits for $t {
            fn hash(&self, hash: &mut Hash) {
                let v = if self.is_nan() { <$t>::NAN.to_bits() & 0x7fff } else { self.to_bits() };
                hash.bytes(&v.to_le_bytes());
            }
        }
    };
}
#[cfg(feature = "half")]
half!(half::f16);
#[cfg(feature = "half")]
half!(half::bf16);

impl Bits for bn_core::Moments {
    fn hash(&self, hash: &mut Hash) {
        hash.u64(self.count);
        hash.all(&[self.mean, self.m2]);
    }
}

impl Bits for bn_core::GradSums {
    fn hash(&self, hash: &mut Hash) {
        hash.all(&[self.dbeta, self.dot]);
    }
}

impl<P: Bits> Bits for bn_core::Prepared<P> {
    fn hash(&self, hash: &mut Hash) {
        self.mean.hash(hash);
        self.scale.hash(hash);
        self.shift.hash(hash);
    }
}
