//! Descriptors, and the plans that they mean.

use crate::operands::{Mistake, Mistakes, status};
use arbitrary::Arbitrary;
use batchnorm::*;
use bn_core::{Activation, BatchNorm, Error, Isa, IsaKind, Layout, Shape, Stride, Strides};
use bn_fuzz::finite;
use bn_oracle::problem::Number;
use core::ptr::{null, null_mut};

#[derive(Arbitrary, Clone, Debug)]
pub struct Input {
    pub dtype: u8,
    last: bool,
    dims: [u8; 3],
    /// Now and then enough elements for more than one thread.
    size: u8,
    activation: u8,
    bounds: [u32; 2],
    epsilon: Option<u32>,
    one_value: bool,
    isa: u8,
    /// Mostly dense.
    strides: [(u8, u8, u8); 6],
}

/// Strides of the operands, as they are numbered.
pub fn strides(d: &mut batchnorm_desc) -> [&mut batchnorm_stride; 6] {
    [&mut d.x, &mut d.residual, &mut d.y, &mut d.dy, &mut d.dx, &mut d.dresidual]
}

/// How many runs an image has, and how long they are.
fn runs(last: bool, channels: usize, spatial: usize) -> (usize, usize) {
    if last { (spatial, channels) } else { (channels, spatial) }
}

/// The strides of one half of the channels of a tensor, and where the other half starts.
pub fn half_of(d: &batchnorm_desc) -> (batchnorm_stride, usize) {
    let (runs, run) = runs(d.layout == BATCHNORM_NHWC, d.channels, d.spatial);
    let batch = runs.saturating_mul(run).saturating_mul(2);
    if d.layout == BATCHNORM_NHWC {
        (batchnorm_stride { batch, inner: run.saturating_mul(2) }, run)
    } else {
        (batchnorm_stride { batch, inner: run }, runs.saturating_mul(run))
    }
}

impl Input {
    pub fn dtype(&self) -> u32 {
        self.dtype as u32 % 4
    }

    /// The descriptor, without mistakes in it.
    pub fn descriptor(&self) -> batchnorm_desc {
        let [batch, channels, spatial] = self.dims.map(|n| n as usize);
        // Nothing at all is among them, but not first.
        let (batch, channels) = ((batch + 2) % 8, channels % 40 + 1);
        let least = (1_usize << 17).div_ceil(channels * batch.max(1));
        let spatial = if self.size == 255 { least } else { (spatial + 5) % 40 };
        let (runs, run) = runs(self.last, channels, spatial);
        let stride = |(kind, a, b): (u8, u8, u8)| {
            let inner = run + a as usize % 9;
            match kind % 8 {
                1 => batchnorm_stride { batch: 0, inner },
                2 => batchnorm_stride { batch: runs * inner + b as usize % 9, inner },
                3 => batchnorm_stride { batch: inner, inner: batch * inner + b as usize % 9 },
                _ => batchnorm_stride::default(),
            }
        };
        let [x, y, residual, dy, dx, dresidual] = self.strides.map(stride);
        batchnorm_desc {
            struct_size: size_of::<batchnorm_desc>() as u32,
            layout: self.last as u32,
            dtype: self.dtype(),
            activation: self.activation as u32 % 4,
            // What this CPU has is numbered from 1.
            isa: self.isa as u32 % (1 + Isa::available().count() as u32),
            flags: self.one_value as u32,
            act_a: finite(self.bounds[0]).abs(),
            act_b: finite(self.bounds[0]).abs() + finite(self.bounds[1]).abs(),
            epsilon: self.epsilon.map_or(1e-5, |bits| finite(bits).abs()),
            batch,
            channels,
            spatial,
            x,
            y,
            residual,
            dy,
            dx,
            dresidual,
            executor: null(),
            workspace: null_mut(),
            workspace_bytes: 0,
        }
    }
}

/// Overwrites fields with anything.
pub fn spoil(d: &mut batchnorm_desc, mistakes: &Mistakes) {
    for mistake in mistakes.iter() {
        let Mistake::Field(field, v) = mistake else { continue };
        let (small, large, real) = (v as u32, v as usize, f64::from_bits(v));
        match field % 22 {
            0 => d.struct_size = small,
            1 => d.layout = small,
            // None that exists: the buffers are of the one that was there.
            2 => d.dtype = small.max(4),
            3 => d.activation = small,
            4 => d.isa = small,
            5 => d.flags = small,
            6 => d.act_a = real,
            7 => d.act_b = real,
            8 => d.epsilon = real,
            9 => d.batch = large,
            10 => d.channels = large,
            11 => d.spatial = large,
            n if n % 2 == 0 => strides(d)[(n as usize - 12) / 2 % 6].batch = large,
            n => strides(d)[(n as usize - 12) / 2 % 6].inner = large,
        }
    }
}

/// The plan that a descriptor means, or all that may be wrong with it.
pub fn plan<T: Number>(d: &batchnorm_desc) -> Result<BatchNorm<T>, Vec<batchnorm_status>> {
    if d.struct_size as usize != size_of::<batchnorm_desc>() {
        return Err(vec![BATCHNORM_ERROR_STRUCT_SIZE]);
    }
    let mut wrong = Vec::new();
    let exist = [
        (d.dtype, BATCHNORM_BF16),
        (d.layout, BATCHNORM_NHWC),
        (d.activation, BATCHNORM_CLAMP),
        (d.flags, BATCHNORM_ALLOW_ONE_VALUE),
        (d.isa, BATCHNORM_ISA_AVX512),
    ];
    if exist.iter().any(|(got, last)| got > last) {
        wrong.push(BATCHNORM_ERROR_ENUM);
    }
    let isa = match d.isa {
        BATCHNORM_ISA_PORTABLE => Some(Isa::PORTABLE),
        BATCHNORM_ISA_AVX2 => Isa::new(IsaKind::Avx2),
        BATCHNORM_ISA_AVX512 => Isa::new(IsaKind::Avx512),
        _ => Some(Isa::detect()),
    };
    if isa.is_none() {
        wrong.push(BATCHNORM_ERROR_ISA);
    }
    // SAFETY: an executor is there, if it is not NULL.
    if unsafe { d.executor.as_ref() }.is_some_and(|e| e.run.is_none()) {
        wrong.push(BATCHNORM_ERROR_NULL);
    }
    let activation = match d.activation {
        BATCHNORM_RELU => Activation::Relu,
        BATCHNORM_LEAKY_RELU => Activation::LeakyRelu { slope: d.act_a },
        BATCHNORM_CLAMP => Activation::Clamp { lo: d.act_a, hi: d.act_b },
        _ => Activation::Identity,
    };
    let stride = |s: batchnorm_stride| Stride { batch: s.batch, inner: s.inner };
    let strides = Strides {
        x: stride(d.x),
        y: stride(d.y),
        residual: stride(d.residual),
        dy: stride(d.dy),
        dx: stride(d.dx),
        dresidual: stride(d.dresidual),
    };
    let layout = if d.layout == BATCHNORM_NCHW { Layout::Nchw } else { Layout::Nhwc };
    // Each step alone: which of several mistakes is named, the header does not say.
    let any = BatchNorm::<T>::new(Shape::dense(2, 1).expect("small"), 0.0).expect("legal");
    wrong.extend(any.with_activation(activation).err().map(status));
    wrong.extend(BatchNorm::<T>::new(any.shape(), d.epsilon).err().map(status));
    let shape = Shape::new(layout, d.batch, d.channels, &[d.spatial]);
    wrong.extend(shape.err().map(status));
    if let Ok(shape) = shape {
        wrong.extend(BatchNorm::<T>::new(shape, 0.0).and_then(|bn| bn.with_strides(strides)).err().map(status));
    }
    let make = || -> Result<BatchNorm<T>, Error> {
        let bn = BatchNorm::new(shape?, d.epsilon)?.with_activation(activation)?.with_strides(strides)?;
        let bn = bn.with_isa(isa.unwrap_or(Isa::PORTABLE));
        Ok(if d.flags == BATCHNORM_ALLOW_ONE_VALUE { bn.allow_one_value() } else { bn })
    };
    if wrong.is_empty() { Ok(make().expect("nothing wrong with it")) } else { Err(wrong) }
}
