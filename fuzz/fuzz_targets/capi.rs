//! The C library with any descriptor, and pointers that are valid for the sizes that its header states and no
//! more: the status that the header names, the bits of bn-core, and nothing else written.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm::*;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, GradSums, Gradients, Isa, IsaKind, Layout, Moments, Op,
    Prepared, Run, Shape, Statistics, Stride, Strides,
};
use bn_fuzz::finite;
use bn_oracle::problem::{Number, Scalar};
use core::ffi::c_void;
use core::ptr::{null, null_mut};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Clone, Debug)]
struct Input {
    double: bool,
    last: bool,
    dims: [u8; 3],
    /// Enough elements for more than one thread.
    large: bool,
    activation: u8,
    bounds: [u32; 2],
    epsilon: Option<u32>,
    one_value: bool,
    isa: u8,
    /// Mostly dense.
    strides: [(u8, u8, u8); 6],
    /// A field that is overwritten with anything, and with what.
    wild: [(u8, u64); 2],
    executor: u8,
    workspace: Workspace,
    call: u8,
    /// Which operands are not wanted.
    absent: u16,
    /// An operand that is NULL or not aligned.
    fault: (u8, Fault),
    alias: Alias,
    counts: bool,
    numbers: [u32; 8],
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Workspace {
    Allocated,
    Least,
    More(u8),
    OneByteLess,
    Misaligned,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Null,
    Misaligned,
}

/// Which operand is at the place of which other one.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Alias {
    None,
    YIsX,
    YIsResidual,
    DxIsDy,
    DresidualIsDy,
    /// One element behind its start.
    DxInDy,
    DgammaIsDbeta,
    MomentsIsWorkspace,
}

fuzz_target!(|input: Input| if input.double { go::<f64>(&input) } else { go::<f32>(&input) });

const X: usize = 0;
const RESIDUAL: usize = 1;
const Y: usize = 2;
const DY: usize = 3;
const DX: usize = 4;
const DRESIDUAL: usize = 5;
const GAMMA: usize = 6;
const BETA: usize = 7;
const MEAN: usize = 8;
const VAR: usize = 9;
const DGAMMA: usize = 10;
const DBETA: usize = 11;
const MOMENTS: usize = 12;
const SUMS: usize = 13;
const PREPARED: usize = 14;
const ALL: usize = 15;

/// What a call takes: operands that must be there, that may be NULL, and (of both) those that are written; and
/// what its workspace is for.
struct Call {
    must: &'static [usize],
    may: &'static [usize],
    writes: &'static [usize],
    op: Option<Op>,
}

const CALLS: [Call; 11] = [
    Call {
        must: &[X, Y, MOMENTS],
        may: &[RESIDUAL, GAMMA, BETA],
        writes: &[Y, MOMENTS],
        op: Some(Op::ForwardTraining),
    },
    Call { must: &[X, Y, MEAN, VAR], may: &[RESIDUAL, GAMMA, BETA], writes: &[Y], op: Some(Op::Inference) },
    Call { must: &[MEAN, VAR, PREPARED], may: &[GAMMA, BETA], writes: &[PREPARED], op: None },
    Call { must: &[X, Y, PREPARED], may: &[RESIDUAL], writes: &[Y], op: Some(Op::Inference) },
    Call {
        must: &[X, Y, DY, MOMENTS],
        may: &[GAMMA, DX, DRESIDUAL, DGAMMA, DBETA],
        writes: &[DX, DRESIDUAL, DGAMMA, DBETA],
        op: Some(Op::Backward),
    },
    Call {
        must: &[X, Y, DY, MEAN, VAR],
        may: &[GAMMA, DX, DRESIDUAL, DGAMMA, DBETA],
        writes: &[DX, DRESIDUAL, DGAMMA, DBETA],
        op: Some(Op::Backward),
    },
    Call {
        must: &[Y, DY, MOMENTS],
        may: &[GAMMA, BETA, DX, DGAMMA, DBETA],
        writes: &[DX, DGAMMA, DBETA],
        op: Some(Op::Backward),
    },
    Call { must: &[X, MOMENTS], may: &[], writes: &[MOMENTS], op: Some(Op::ForwardTraining) },
    Call { must: &[X, Y, MOMENTS], may: &[RESIDUAL, GAMMA, BETA], writes: &[Y], op: Some(Op::ForwardTraining) },
    Call { must: &[X, Y, DY, MOMENTS, SUMS], may: &[], writes: &[SUMS], op: Some(Op::Backward) },
    Call {
        must: &[X, Y, DY, MOMENTS, SUMS],
        may: &[GAMMA, DX, DRESIDUAL],
        writes: &[DX, DRESIDUAL],
        op: Some(Op::Backward),
    },
];

/// The buffers of a call: each of exactly the size that the header states, so that the address sanitizer sees
/// what is beside them.
#[derive(Clone)]
struct Buffers<T: Number> {
    tensors: [Vec<T>; 6],
    /// From GAMMA to DBETA.
    params: [Vec<T::Param>; 6],
    moments: Vec<Moments>,
    sums: Vec<GradSums>,
    prepared: Vec<Prepared<T::Param>>,
}

impl<T: Number> Buffers<T> {
    fn pointers(&mut self) -> [*mut c_void; ALL] {
        let mut all = [null_mut(); ALL];
        for (i, t) in self.tensors.iter_mut().enumerate() {
            all[i] = t.as_mut_ptr().cast();
        }
        for (i, p) in self.params.iter_mut().enumerate() {
            all[GAMMA + i] = p.as_mut_ptr().cast();
        }
        all[MOMENTS] = self.moments.as_mut_ptr().cast();
        all[SUMS] = self.sums.as_mut_ptr().cast();
        all[PREPARED] = self.prepared.as_mut_ptr().cast();
        all
    }

    /// All there is, with all NaN alike.
    fn bits(&self) -> Vec<Vec<u64>> {
        let f64s = |v: Vec<f64>| v.iter().map(|v| v.bits()).collect::<Vec<u64>>();
        let mut all: Vec<Vec<u64>> = self.tensors.iter().map(|t| t.iter().map(|v| v.bits()).collect()).collect();
        all.extend(self.params.iter().map(|p| p.iter().map(|v| v.bits()).collect()));
        all.push(f64s(self.moments.iter().flat_map(|m| [m.count as f64, m.mean, m.m2]).collect()));
        all.push(f64s(self.sums.iter().flat_map(|s| [s.dbeta, s.dot]).collect()));
        all.push(self.prepared.iter().flat_map(|p| [p.mean.bits(), p.scale.bits(), p.shift.bits()]).collect());
        all
    }
}

/// The tickets, in turn, from the last one; or, to be found out, none.
unsafe extern "C" fn backwards(
    ctx: *mut c_void,
    tickets: usize,
    task: unsafe extern "C" fn(*mut c_void, usize),
    arg: *mut c_void,
) {
    if ctx.is_null() {
        // SAFETY: as the header has it.
        (0..tickets).rev().for_each(|ticket| unsafe { task(arg, ticket) });
    }
}

fn status(e: Error) -> batchnorm_status {
    match e {
        Error::NoChannels => BATCHNORM_ERROR_CHANNELS,
        Error::ShapeOverflow => BATCHNORM_ERROR_SIZE,
        Error::Stride { .. } => BATCHNORM_ERROR_STRIDE,
        Error::Epsilon { .. } => BATCHNORM_ERROR_EPSILON,
        Error::Activation { .. } => BATCHNORM_ERROR_ACTIVATION,
        Error::TooFewValues { .. } => BATCHNORM_ERROR_TOO_FEW_VALUES,
        Error::Count { .. } => BATCHNORM_ERROR_COUNT,
        Error::NotInvertible { .. } => BATCHNORM_ERROR_NOT_INVERTIBLE,
        Error::Unpreparable { .. } => BATCHNORM_ERROR_UNPREPARABLE,
        e => panic!("{e}"),
    }
}

/// The plan that a descriptor means, or all that may be wrong with it.
fn plan<T: Number>(d: &batchnorm_desc) -> Result<BatchNorm<T>, Vec<batchnorm_status>> {
    if d.struct_size as usize != size_of::<batchnorm_desc>() {
        return Err(vec![BATCHNORM_ERROR_STRUCT_SIZE]);
    }
    match d.dtype {
        BATCHNORM_F32 | BATCHNORM_F64 => {}
        BATCHNORM_F16 | BATCHNORM_BF16 => return Err(vec![BATCHNORM_ERROR_DTYPE]),
        _ => return Err(vec![BATCHNORM_ERROR_ENUM]),
    }
    let mut wrong = Vec::new();
    if d.layout > BATCHNORM_NHWC || d.activation > BATCHNORM_CLAMP || d.flags > BATCHNORM_ALLOW_ONE_VALUE || d.isa > 3 {
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

impl Input {
    fn descriptor(&self) -> batchnorm_desc {
        let [batch, channels, spatial] = self.dims;
        let (batch, channels) = (batch as usize % 8, channels as usize % 40 + 1);
        let spatial = if self.large { (1 << 17) / (channels * batch.max(1)) + 1 } else { spatial as usize % 40 };
        let (runs, run) = if self.last { (spatial, channels) } else { (channels, spatial) };
        let stride = |(kind, a, b): (u8, u8, u8)| {
            let inner = run + a as usize % 9;
            match kind % 8 {
                0 => batchnorm_stride { batch: 0, inner },
                1 => batchnorm_stride { batch: runs * inner + b as usize % 9, inner },
                2 => batchnorm_stride { batch: inner, inner: batch * inner + b as usize % 9 },
                _ => batchnorm_stride::default(),
            }
        };
        let [x, y, residual, dy, dx, dresidual] = self.strides.map(stride);
        let mut d = batchnorm_desc {
            struct_size: size_of::<batchnorm_desc>() as u32,
            layout: self.last as u32,
            dtype: self.double as u32,
            activation: self.activation as u32 % 4,
            isa: self.isa as u32 % 3,
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
        };
        for (field, v) in self.wild {
            match field {
                240 => d.struct_size = v as u32,
                241 => d.layout = v as u32,
                // Not the other of the two that there are: the buffers are of this one.
                242 => d.dtype = if v > 1 { v as u32 } else { 7 },
                243 => d.activation = v as u32,
                244 => d.isa = v as u32,
                245 => d.flags = v as u32,
                246 => d.act_a = f64::from_bits(v),
                247 => d.act_b = f64::from_bits(v),
                248 => d.epsilon = f64::from_bits(v),
                249 => d.batch = v as usize,
                250 => d.channels = v as usize,
                251 => d.spatial = v as usize,
                252 => d.x.inner = v as usize,
                253 => d.y.batch = v as usize,
                254 => d.dy.inner = v as usize,
                255 => d.dx.batch = v as usize,
                _ => {}
            }
        }
        // A type that the number cannot be, and no other one that exists.
        if d.dtype < 2 {
            d.dtype = self.double as u32;
        }
        d
    }
}

/// Elements that a tensor reaches over.
fn span(shape: Shape, s: Stride) -> Option<usize> {
    let (runs, run) = match shape.layout() {
        Layout::Nchw => (shape.channels(), shape.spatial()),
        _ => (shape.spatial(), shape.channels()),
    };
    if shape.is_empty() {
        return Some(0);
    }
    let images = (shape.batch() - 1).checked_mul(s.batch)?;
    images.checked_add((runs - 1).checked_mul(s.inner)?)?.checked_add(run)
}

/// # Safety
/// The pointers are as the header wants them, or the descriptor is refused.
unsafe fn call(which: usize, d: &batchnorm_desc, p: &[*mut c_void; ALL]) -> batchnorm_status {
    // SAFETY: by the caller.
    unsafe {
        match which {
            0 => batchnorm_forward_training(d, p[X], p[RESIDUAL], p[GAMMA], p[BETA], p[Y], p[MOMENTS].cast()),
            1 => batchnorm_forward_inference(d, p[X], p[RESIDUAL], p[GAMMA], p[BETA], p[MEAN], p[VAR], p[Y]),
            2 => batchnorm_prepare(d, p[GAMMA], p[BETA], p[MEAN], p[VAR], p[PREPARED].cast()),
            3 => batchnorm_apply(d, p[X], p[RESIDUAL], p[PREPARED].cast(), p[Y]),
            4 => {
                let m = p[MOMENTS].cast();
                batchnorm_backward(d, p[X], p[Y], p[DY], p[GAMMA], m, p[DX], p[DRESIDUAL], p[DGAMMA], p[DBETA])
            }
            5 => {
                let (mean, var, dx, dr) = (p[MEAN], p[VAR], p[DX], p[DRESIDUAL]);
                batchnorm_backward_inference(d, p[X], p[Y], p[DY], p[GAMMA], mean, var, dx, dr, p[DGAMMA], p[DBETA])
            }
            6 => {
                let m = p[MOMENTS].cast();
                batchnorm_backward_from_output(d, p[Y], p[DY], p[GAMMA], p[BETA], m, p[DX], p[DGAMMA], p[DBETA])
            }
            7 => batchnorm_moments_accumulate(d, p[X], p[MOMENTS].cast()),
            8 => batchnorm_normalize(d, p[X], p[RESIDUAL], p[GAMMA], p[BETA], p[MOMENTS].cast(), p[Y]),
            9 => batchnorm_backward_sums(d, p[X], p[Y], p[DY], p[MOMENTS].cast(), p[SUMS].cast()),
            _ => {
                let (m, s) = (p[MOMENTS].cast(), p[SUMS].cast());
                batchnorm_backward_apply(d, p[X], p[Y], p[DY], p[GAMMA], m, s, p[DX], p[DRESIDUAL])
            }
        }
    }
}

/// The same by bn-core, on slices; `there` says which operands are.
fn expected<T: Number>(
    which: usize,
    bn: &BatchNorm<T>,
    b: &mut Buffers<T>,
    there: &dyn Fn(usize) -> bool,
) -> Result<(), Error> {
    let mut words = vec![0; bn.workspace_best(CALLS[which].op.unwrap_or(Op::Inference), 1)];
    let run = Run::serial(&mut words);
    let [x, residual, y, dy, dx, dresidual] = &mut b.tensors;
    let [gamma, beta, mean, var, dgamma, dbeta] = &mut b.params;
    let residual = there(RESIDUAL).then_some(&residual[..]);
    let affine = Affine { gamma: there(GAMMA).then_some(&gamma[..]), beta: there(BETA).then_some(&beta[..]) };
    let statistics = if which == 5 { Statistics::Running { mean, var } } else { Statistics::Batch(&b.moments) };
    let input = BackwardInput { x, y: Some(y), dy, gamma: affine.gamma, statistics };
    let gradients = Gradients {
        dx: there(DX).then_some((&mut dx[..]).into()),
        dresidual: (which != 6 && there(DRESIDUAL)).then_some((&mut dresidual[..]).into()),
        dgamma: (which != 10 && there(DGAMMA)).then_some(&mut dgamma[..]),
        dbeta: (which != 10 && there(DBETA)).then_some(&mut dbeta[..]),
    };
    match which {
        0 => bn.forward_training(x, residual, affine, &mut y[..], &mut b.moments, run),
        1 => bn.inference(x, residual, affine, mean, var, &mut y[..], run),
        2 => bn.prepare(affine, mean, var, &mut b.prepared),
        3 => bn.apply(x, residual, &b.prepared, &mut y[..], run),
        4 | 5 => bn.backward(input, gradients, run),
        6 => bn.backward_from_output(y, dy, affine, &b.moments, gradients, run),
        7 => bn.moments(x, &mut b.moments, run),
        8 => bn.normalize(x, residual, affine, &b.moments, &mut y[..], run),
        9 => bn.backward_sums(input, &mut b.sums, run),
        _ => bn.backward_apply(input, &b.sums, gradients, run),
    }
}

fn go<T: Number>(input: &Input) {
    let which = input.call as usize % CALLS.len();
    let Call { must, may, writes, op } = &CALLS[which];
    let mut desc = input.descriptor();
    let lost = input.executor == 255;
    let executor = batchnorm_executor {
        run: Some(backwards),
        ctx: if lost { 1 as *mut c_void } else { null_mut() },
        width: input.executor as usize % 5,
    };
    if input.executor > 3 {
        desc.executor = &executor;
    }
    let float_only = input.double && matches!(which, 2 | 3);
    let bn = match plan::<T>(&desc) {
        Ok(bn) => bn,
        Err(mut wrong) => {
            // Nothing is there: a refused descriptor says of no memory how large it is.
            if float_only && !wrong.contains(&BATCHNORM_ERROR_STRUCT_SIZE) {
                wrong.push(BATCHNORM_ERROR_DTYPE);
            }
            // SAFETY: the descriptor is refused.
            let got = unsafe { call(which, &desc, &[64 as *mut c_void; ALL]) };
            assert!(wrong.contains(&got), "status {got}, expected one of {wrong:?}: {desc:?}");
            // SAFETY: as above.
            assert_eq!(unsafe { batchnorm_workspace_min(&desc, 0) }, 0);
            return;
        }
    };
    let (shape, s) = (bn.shape(), bn.strides());
    let spans = [s.x, s.residual, s.y, s.dy, s.dx, s.dresidual].map(|s| span(shape, s));
    if spans.iter().any(|s| s.is_none_or(|s| s > 1 << 17)) || shape.channels() > 1000 {
        return;
    }
    let spans = spans.map(Option::unwrap_or_default);
    for (number, op) in [Op::ForwardTraining, Op::Inference, Op::Backward].into_iter().enumerate() {
        // SAFETY: the descriptor's executor is there.
        let (least, best) =
            unsafe { (batchnorm_workspace_min(&desc, number as u32), batchnorm_workspace_best(&desc, number as u32)) };
        let width = if desc.executor.is_null() { 1 } else { executor.width.max(1) };
        assert_eq!((least, best), (8 * bn.workspace_min(op), 8 * bn.workspace_best(op, width)));
    }

    // Numbers of one size, in any order.
    let number = |i: usize| finite(input.numbers[i % 8] & 0x3fff_ffff | 0x3000_0000) * (1.0 - (i % 13) as f64 / 6.0);
    let c = shape.channels();
    let tensor = |n: usize, salt: usize| (0..n).map(|i| <T as Scalar>::of(number(i + salt))).collect::<Vec<T>>();
    let params = |salt: usize| (0..c).map(|i| <T::Param as Scalar>::of(number(i + salt))).collect::<Vec<T::Param>>();
    let mut b = Buffers {
        tensors: core::array::from_fn(|i| tensor(spans[i], 3 * i)),
        params: core::array::from_fn(|i| params(5 * i)),
        moments: vec![Moments::EMPTY; c],
        sums: (0..c).map(|i| GradSums { dbeta: number(i), dot: number(i + 1) }).collect(),
        prepared: vec![Prepared::default(); c],
    };
    b.params[VAR - GAMMA].iter_mut().for_each(|v| *v = <T::Param as Scalar>::of(v.wide().abs()));
    let mut words = vec![0; bn.workspace_best(Op::ForwardTraining, 1)];
    bn.moments(&b.tensors[X], &mut b.moments, Run::serial(&mut words)).expect("legal");
    if input.counts {
        b.moments[c / 2].count += 1;
    }

    // Which operands are there, what is wrong with them.
    let masked = bn.activation() != Activation::Identity;
    let is_tensor = |i: usize| i < GAMMA;
    // y is an input of backward calls only where there is a mask, or where it is in the place of x.
    let used = |i: usize| {
        let ignored = i == Y && matches!(which, 4 | 5 | 9 | 10) && !masked;
        (must.contains(&i) || may.contains(&i)) && !ignored
    };
    let there = |i: usize| may.contains(&i) && input.absent >> i & 1 == 0;
    let mut own = b.clone();
    let mut pointers = own.pointers();
    let mut wrong = Vec::new();
    for i in 0..ALL {
        if may.contains(&i) && !there(i) {
            pointers[i] = null_mut();
        }
    }

    // Aliases that are allowed have the same strides; what is in the common place is the input.
    let (from, to) = match input.alias {
        Alias::YIsX => (X, Y),
        Alias::YIsResidual => (RESIDUAL, Y),
        Alias::DxIsDy => (DY, DX),
        Alias::DresidualIsDy => (DY, DRESIDUAL),
        Alias::DxInDy => (DY, DX),
        Alias::DgammaIsDbeta => (DBETA, DGAMMA),
        Alias::None | Alias::MomentsIsWorkspace => (ALL, ALL),
    };
    let mut aliased = false;
    if to < ALL
        && used(from)
        && used(to)
        && !pointers[from].is_null()
        && !pointers[to].is_null()
        && writes.contains(&to)
    {
        let strides = [s.x, s.residual, s.y, s.dy, s.dx, s.dresidual];
        match input.alias {
            Alias::DgammaIsDbeta => {
                pointers[to] = pointers[from];
                wrong.push(BATCHNORM_ERROR_OVERLAP);
            }
            // Dense tensors, one of them shifted, always share an element, if there are two.
            Alias::DxInDy if desc.dy == batchnorm_stride::default() && desc.dx == desc.dy && spans[DY] > 1 => {
                pointers[to] = pointers[from].wrapping_byte_add(size_of::<T>());
                wrong.push(BATCHNORM_ERROR_OVERLAP);
            }
            Alias::DxInDy => {}
            _ if strides[from] == strides[to] => {
                pointers[to] = pointers[from];
                b.tensors[to] = b.tensors[from].clone();
                aliased = true;
            }
            // Other strides from the same place: refused, whatever they reach, if there is anything.
            _ if spans[from] > 0 => {
                pointers[to] = pointers[from];
                wrong.push(BATCHNORM_ERROR_OVERLAP);
            }
            _ => {}
        }
    }

    // The workspace, with a mark behind it.
    let mut space = Vec::new();
    if let Some(op) = *op {
        let least = bn.workspace_min(op);
        let (n, bytes) = match input.workspace {
            Workspace::Allocated => (0, 0),
            Workspace::Least => (least, 8 * least),
            Workspace::More(n) => (least + n as usize, 8 * (least + n as usize)),
            Workspace::OneByteLess => (least, 8 * least - 1),
            Workspace::Misaligned => (least + 1, 8 * least),
        };
        space = vec![u64::MAX; n];
        if n > 0 {
            desc.workspace = space.as_mut_ptr().cast();
            desc.workspace_bytes = bytes;
            match input.workspace {
                Workspace::OneByteLess => wrong.push(BATCHNORM_ERROR_WORKSPACE),
                Workspace::Misaligned => {
                    desc.workspace = desc.workspace.wrapping_byte_add(1);
                    wrong.push(BATCHNORM_ERROR_ALIGNMENT);
                }
                _ if input.alias == Alias::MomentsIsWorkspace && used(MOMENTS) && 3 * c <= n => {
                    pointers[MOMENTS] = desc.workspace;
                    wrong.push(BATCHNORM_ERROR_OVERLAP);
                }
                _ => {}
            }
        }
    }

    // One that is wrong by itself. Tensors without elements are not looked at.
    let (at, fault) = (input.fault.0 as usize % (2 * ALL), input.fault.1);
    if at < ALL && used(at) && !(is_tensor(at) && spans[at] == 0) && !pointers[at].is_null() && !aliased {
        match fault {
            Fault::Null if must.contains(&at) => {
                pointers[at] = null_mut();
                wrong.push(BATCHNORM_ERROR_NULL);
            }
            Fault::Misaligned => {
                pointers[at] = pointers[at].wrapping_byte_add(1);
                wrong.push(BATCHNORM_ERROR_ALIGNMENT);
            }
            _ => {}
        }
    }
    if float_only {
        wrong.push(BATCHNORM_ERROR_DTYPE);
    }

    let before = own.bits();
    let mut meant = b.clone();
    let result = expected(which, &bn, &mut meant, &there);
    wrong.extend(result.err().map(status));
    // SAFETY: every buffer has the size that the header states, or the call is refused.
    let got = unsafe { call(which, &desc, &pointers) };
    if lost && got == BATCHNORM_ERROR_EXECUTOR {
        return;
    }
    let after = own.bits();
    if !wrong.is_empty() {
        assert!(wrong.contains(&got), "status {got}, expected one of {wrong:?}");
        assert!(after == before, "status {got}, and something written");
        assert!(space.iter().all(|&w| w == u64::MAX), "status {got}, and the workspace written");
        return;
    }
    assert_eq!(got, BATCHNORM_OK);
    let mut meant = meant.bits();
    if aliased {
        // What is at the common place is the output; the place that was the output's is untouched.
        meant[from] = meant[to].clone();
        meant[to] = before[to].clone();
    }
    for (i, (after, meant)) in after.iter().zip(&meant).enumerate() {
        assert!(after == meant, "operand {i} has other bits than bn-core's, or was written");
    }
}
