//! The calls with a descriptor.

use crate::descriptor::{self, half_of, plan, spoil, strides};
use crate::operands::{
    Bits, Mistake, Mistakes, Numbers, Operand, judge, moments_bits, prepared_bits, status, sums_bits,
};
use arbitrary::Arbitrary;
use batchnorm::*;
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, GradSums, Gradients, Layout, Moments, Op, Prepared, Run,
    Shape, Statistics, Stride,
};
use bn_oracle::problem::Number;
use core::cell::Cell;
use core::ffi::c_void;
use core::ops::Range;
use core::ptr::{null, null_mut};
use half::{bf16, f16};

#[derive(Arbitrary, Clone, Debug)]
pub struct Input {
    descriptor: descriptor::Input,
    call: u8,
    /// Which operands are not wanted.
    absent: u16,
    alias: Alias,
    executor: Option<u8>,
    workspace: Workspace,
    mistakes: Mistakes,
    numbers: Numbers,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Workspace {
    Allocated,
    Least,
    More(u8),
}

/// Which tensors have a place in common, with the same strides.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Alias {
    None,
    /// An output is an input, or two.
    InPlace(u8),
    /// Two tensors are the halves of one that has twice the channels.
    Beside(u8, u8),
}

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

/// # Safety
/// The pointers are as the header wants them, or the descriptor is refused.
unsafe fn call(which: usize, d: *const batchnorm_desc, p: &[*mut c_void; ALL]) -> batchnorm_status {
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

/// The buffers of a call: each of exactly the size that the header states.
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
    /// The moments are those of x.
    fn new(n: &Numbers, bn: &BatchNorm<T>, span: impl Fn(usize) -> usize) -> Self {
        let c = bn.shape().channels();
        let mut b = Buffers {
            tensors: core::array::from_fn(|i| n.values(i, span(i))),
            params: core::array::from_fn(|i| n.values(GAMMA + i, c)),
            moments: vec![Moments::EMPTY; c],
            sums: n.sums(SUMS, c),
            prepared: n.prepared(PREPARED, c),
        };
        b.params[VAR - GAMMA] = n.variances(VAR, c);
        let mut words = vec![0; bn.workspace_best(Op::ForwardTraining, 1)];
        bn.moments(&b.tensors[X], &mut b.moments, Run::serial(&mut words)).expect("legal");
        b
    }

    fn operand(&mut self, i: usize) -> Operand {
        match i {
            MOMENTS => Operand::new(&mut self.moments),
            SUMS => Operand::new(&mut self.sums),
            PREPARED => Operand::new(&mut self.prepared),
            _ if i < GAMMA => Operand::new(&mut self.tensors[i]),
            _ => Operand::new(&mut self.params[i - GAMMA]),
        }
    }

    fn bits(&self) -> Vec<Vec<u64>> {
        let tensors = self.tensors.iter().map(|t| t.bits());
        let arrays = [moments_bits(&self.moments), sums_bits(&self.sums), prepared_bits(&self.prepared)];
        tensors.chain(self.params.iter().map(|p| p.bits())).chain(arrays).collect()
    }
}

/// What an executor is to do, and whether it was asked to.
struct Context {
    lost: bool,
    called: Cell<bool>,
}

/// The tickets, in turn, from the last one; or, to be found out, none.
unsafe extern "C" fn backwards(
    ctx: *mut c_void,
    tickets: usize,
    task: unsafe extern "C" fn(*mut c_void, usize),
    arg: *mut c_void,
) {
    // SAFETY: this is what the context is.
    let context = unsafe { &*ctx.cast::<Context>() };
    context.called.set(true);
    if !context.lost {
        // SAFETY: as the header has it.
        (0..tickets).rev().for_each(|ticket| unsafe { task(arg, ticket) });
    }
}

/// Tensors with a place in common.
#[derive(Clone, Copy)]
enum Shared {
    /// The output is where the first one is, and so is the second one, if it is there.
    Place {
        from: &'static [usize],
        to: usize,
    },
    Halves(usize, usize),
}

impl Input {
    /// What the call shares; operands that it has, and that are there, count.
    fn shared(&self, call: &Call, has: impl Fn(usize) -> bool) -> Option<Shared> {
        match self.alias {
            Alias::None => None,
            Alias::InPlace(n) => {
                let all: &[(&[usize], usize)] = if call.writes.contains(&Y) {
                    &[(&[X], Y), (&[RESIDUAL], Y), (&[X, RESIDUAL], Y)]
                } else {
                    &[(&[DY], DX), (&[DY], DRESIDUAL)]
                };
                let (from, to) = all[n as usize % all.len()];
                (has(to) && from.iter().all(|&i| has(i))).then_some(Shared::Place { from, to })
            }
            Alias::Beside(a, b) => {
                let tensors: Vec<usize> = (X..GAMMA).filter(|&i| has(i)).collect();
                let [a, b] = [a, b].map(|i| tensors.get(i as usize % tensors.len().max(1)).copied());
                (a != b).then_some(Shared::Halves(a?, b?))
            }
        }
    }
}

/// Where the runs of a tensor start, and how long they are.
fn places(shape: Shape, s: Stride) -> impl Iterator<Item = Range<usize>> {
    let (runs, run) = match shape.layout() {
        Layout::Nchw => (shape.channels(), shape.spatial()),
        _ => (shape.spatial(), shape.channels()),
    };
    (0..shape.batch()).flat_map(move |n| (0..runs).map(move |r| n * s.batch + r * s.inner)).map(move |at| at..at + run)
}

/// Two tensors as halves of one, the second one at a distance; between their elements it is what it was.
fn whole<V: Copy>(
    mut between: Vec<V>,
    distance: usize,
    [first, second]: [&[V]; 2],
    places: impl Iterator<Item = Range<usize>>,
) -> Vec<V> {
    for run in places {
        between[run.start + distance..run.end + distance].copy_from_slice(&second[run.clone()]);
        between[run.clone()].copy_from_slice(&first[run]);
    }
    between
}

pub fn go(input: &Input) {
    match input.descriptor.dtype() {
        BATCHNORM_F32 => run::<f32>(input),
        BATCHNORM_F64 => run::<f64>(input),
        BATCHNORM_F16 => run::<f16>(input),
        _ => run::<bf16>(input),
    }
}

/// Elements of a tensor at most.
const MOST: usize = 3 << 16;

fn run<T: Number>(input: &Input) {
    let which = input.call as usize % CALLS.len();
    let Call { must, may, writes, op } = &CALLS[which];
    let mut desc = input.descriptor.descriptor();
    // y is an input of these backward calls only where there is a mask.
    let ignored = |i: usize, identity: bool| i == Y && matches!(which, 4 | 5 | 9 | 10) && identity;
    let needs = |i: usize| must.contains(&i) || may.contains(&i);
    let there = |i: usize| must.contains(&i) || may.contains(&i) && input.absent >> i & 1 == 0;
    let identity = desc.activation == BATCHNORM_IDENTITY;
    let shared = input.shared(&CALLS[which], |i| there(i) && !ignored(i, identity));
    let halves = half_of(&desc).0;
    match shared {
        Some(Shared::Place { from, to }) => {
            let common = *strides(&mut desc)[from[0]];
            from.iter().chain([&to]).for_each(|&i| *strides(&mut desc)[i] = common);
        }
        Some(Shared::Halves(a, b)) => [a, b].into_iter().for_each(|i| *strides(&mut desc)[i] = halves),
        None => {}
    }
    spoil(&mut desc, &input.mistakes);

    let mistaken = |mistake: Mistake| input.mistakes.iter().any(|m| m == mistake);
    let lost = mistaken(Mistake::Executor { null: false });
    let context = Context { lost, called: Cell::new(false) };
    let null_run = mistaken(Mistake::Executor { null: true });
    let executor = batchnorm_executor {
        run: (!null_run).then_some(backwards),
        ctx: (&raw const context).cast_mut().cast(),
        width: input.executor.map_or(2, |width| width as usize % 5),
    };
    if input.executor.is_some() || lost || null_run {
        desc.executor = &executor;
    }

    let (no_descriptor, off) = (mistaken(Mistake::Descriptor { null: true }), Mistake::Descriptor { null: false });
    let no_form = T::FORMAT.name == "f64" && matches!(which, 2 | 3);
    let nowhere = [64 as *mut c_void; ALL];
    let refused = |at: *const batchnorm_desc, wrong: &[batchnorm_status]| {
        // SAFETY: the descriptor is refused, so that the pointers are not looked at.
        let (got, least, best) =
            unsafe { (call(which, at, &nowhere), batchnorm_workspace_min(at, 0), batchnorm_workspace_best(at, 0)) };
        assert!(wrong.contains(&got), "status {got}, expected one of {wrong:?}: {desc:?}");
        assert_eq!((least, best), (0, 0));
    };
    if no_descriptor || mistaken(off) {
        let (at, wrong) = if no_descriptor {
            (null(), BATCHNORM_ERROR_NULL)
        } else {
            ((&raw const desc).wrapping_byte_add(1), BATCHNORM_ERROR_ALIGNMENT)
        };
        refused(at, &[wrong]);
        return;
    }
    let bn = match plan::<T>(&desc) {
        Ok(bn) => bn,
        Err(mut wrong) => {
            // Which may be found first, but not without a descriptor.
            if no_form && wrong != [BATCHNORM_ERROR_STRUCT_SIZE] {
                wrong.push(BATCHNORM_ERROR_DTYPE);
            }
            refused(&desc, &wrong);
            return;
        }
    };
    let (shape, c) = (bn.shape(), bn.shape().channels());
    let s = bn.strides();
    let strided = [s.x, s.residual, s.y, s.dy, s.dx, s.dresidual];
    let spans = strided.map(|s| s.span(&shape).unwrap_or(usize::MAX));
    if spans.iter().any(|&n| n > MOST) || c > MOST {
        return;
    }
    let width = if desc.executor.is_null() { 1 } else { executor.width.max(1) };
    for (number, op) in [Op::ForwardTraining, Op::Inference, Op::Backward].into_iter().enumerate() {
        // SAFETY: the descriptor's executor is there.
        let (least, best) =
            unsafe { (batchnorm_workspace_min(&desc, number as u32), batchnorm_workspace_best(&desc, number as u32)) };
        assert_eq!((least, best), (8 * bn.workspace_min(op), 8 * bn.workspace_best(op, width)));
    }

    let mut b = Buffers::<T>::new(&input.numbers, &bn, |i| if i == X || needs(i) { spans[i] } else { 0 });
    if mistaken(Mistake::Count) {
        b.moments[c / 2].count += 1;
    }

    // Tensors without elements are not looked at.
    let identity = bn.activation() == Activation::Identity;
    let used = |i: usize| needs(i) && !ignored(i, identity) && !(i < GAMMA && spans[i] == 0);
    let has = |i: usize| used(i) && there(i);
    let mut own = b.clone();
    let shared = shared.filter(|shared| match shared {
        Shared::Place { from, to } => from.iter().chain([to]).all(|&i| has(i)),
        // Unless a mistake has made them anything else.
        Shared::Halves(x, y) => {
            has(*x) && has(*y) && [*x, *y].iter().all(|&i| *strides(&mut desc.clone())[i] == half_of(&desc).0)
        }
    });
    if let Some(Shared::Halves(x, y)) = shared {
        let distance = half_of(&desc).1;
        let between = input.numbers.values::<T>(15, distance + spans[x]);
        own.tensors[x] = whole(between, distance, [&b.tensors[x], &b.tensors[y]], places(shape, strided[x]));
    }

    let numbers: Vec<usize> = (0..ALL).filter(|&i| used(i)).collect();
    let mut operands: Vec<Operand> = Vec::new();
    for &i in &numbers {
        let operand = own.operand(i).absent_if(!there(i));
        let operand = if writes.contains(&i) { operand.written() } else { operand };
        operands.push(if may.contains(&i) { operand.optional() } else { operand });
    }
    let index = |i: usize| numbers.iter().position(|&n| n == i).expect("used");
    let mut wrong = Vec::new();
    match shared {
        Some(Shared::Place { from, to }) => {
            let at = operands[index(from[0])].at;
            for &i in from.iter().skip(1).chain([&to]) {
                operands[index(i)].at = at;
                if strided[i] == strided[from[0]] {
                    b.tensors[i] = b.tensors[from[0]].clone();
                } else {
                    wrong.push(BATCHNORM_ERROR_OVERLAP);
                }
            }
        }
        Some(Shared::Halves(x, y)) => {
            operands[index(y)].at = operands[index(x)].at.wrapping_byte_add(half_of(&desc).1 * size_of::<T>());
        }
        None => {}
    }

    // The workspace is an operand too.
    let mut space = Vec::new();
    if let Some(op) = *op {
        let least = bn.workspace_min(op);
        let words = match input.workspace {
            Workspace::Allocated => 0,
            Workspace::Least => least,
            Workspace::More(n) => least + n as usize,
        };
        space = vec![u64::MAX; words];
        if words > 0 {
            desc.workspace_bytes = 8 * words;
            if mistaken(Mistake::Workspace) {
                desc.workspace_bytes = 8 * least - 1;
                wrong.push(BATCHNORM_ERROR_WORKSPACE);
            }
            // No more is used than helps.
            let used = (desc.workspace_bytes / 8).min(bn.workspace_best(op, width));
            operands.push(Operand::new(&mut space[..used]).written().optional());
        }
    }
    let tensors = numbers.iter().filter(|&&i| i < GAMMA).count();
    let dense = BatchNorm::<T>::new(shape, 0.0).expect("legal").strides().x;
    wrong.extend(input.mistakes.iter().filter_map(|mistake| {
        mistake.make(&mut operands, |from, to, shifted| {
            if from >= tensors || to >= tensors || strided[numbers[from]] != strided[numbers[to]] {
                return false;
            }
            let pair = [numbers[from], numbers[to]];
            let written = pair.iter().filter(|i| writes.contains(i)).count();
            let allowed = [[X, Y], [RESIDUAL, Y], [DY, DX], [DY, DRESIDUAL]];
            let may_be = allowed.iter().any(|a| a.iter().all(|i| pair.contains(i)));
            // What is not dense may interleave.
            if shifted { strided[pair[0]] != dense } else { may_be && written == 1 }
        })
    }));
    if no_form {
        wrong.push(BATCHNORM_ERROR_DTYPE);
    }
    let mut pointers = [null_mut(); ALL];
    for (&i, operand) in numbers.iter().zip(&operands) {
        pointers[i] = operand.at;
    }
    if let Some(workspace) = operands.get(numbers.len()) {
        desc.workspace = workspace.at;
    }

    let before = own.bits();
    let mut meant = b.clone();
    let result = expected(which, &bn, &mut meant, &|i| may.contains(&i) && there(i));
    wrong.extend(result.err().map(status));
    // SAFETY: every buffer has the size that the header states, or the call is refused.
    let got = unsafe { call(which, &desc, &pointers) };
    if context.called.get() {
        assert!(wrong.is_empty(), "the executor was called, expected one of {wrong:?}");
        if lost {
            assert_eq!(got, BATCHNORM_ERROR_EXECUTOR);
            return;
        }
    }
    let mut bits = meant.bits();
    match shared {
        Some(Shared::Place { from, to }) => {
            // What is at the common place is the output; the others' own places are untouched.
            bits[from[0]] = core::mem::replace(&mut bits[to], before[to].clone());
            from.iter().skip(1).for_each(|&i| bits[i] = before[i].clone());
        }
        Some(Shared::Halves(x, y)) => {
            let between = before[x].clone();
            bits[x] = whole(between, half_of(&desc).1, [&bits[x], &bits[y]], places(shape, strided[x]));
            bits[y] = before[y].clone();
        }
        None => {}
    }
    judge(&wrong, got, &before, &own.bits(), &bits);
    assert!(wrong.is_empty() || space.iter().all(|&w| w == u64::MAX), "status {got}, and the workspace written");
}
