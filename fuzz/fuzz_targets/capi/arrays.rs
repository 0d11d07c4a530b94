//! The calls without a descriptor, on arrays alone.

use crate::operands::{Bits, Mistake, Mistakes, Numbers, Operand, judge, moments_bits, prepared_bits, status};
use arbitrary::Arbitrary;
use batchnorm::*;
use bn_core::{Error, Fold, Moments, Momentum, Param, Prepared, RunningStats, Variance, merge_moments};
use bn_oracle::problem::Scalar;

#[derive(Arbitrary, Clone, Debug)]
pub struct Input {
    call: Call,
    dtype: u8,
    sizes: [u8; 3],
    rule: u8,
    momentum: u32,
    unbiased: bool,
    num_batches: Option<u64>,
    skipped: bool,
    mistakes: Mistakes,
    numbers: Numbers,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Call {
    Merge,
    Update,
    Before,
    After,
}

/// The arguments that are numbers.
struct Arguments {
    dtype: u32,
    rule: u32,
    momentum: f64,
    unbiased: u32,
    /// Channels; outputs and inputs of each; or outputs, channels and taps.
    sizes: [usize; 3],
}

/// The arrays of all calls: those that are not the call's are empty.
#[derive(Clone)]
struct Buffers<P> {
    moments: Vec<Moments>,
    from: Vec<Moments>,
    num_batches: Vec<u64>,
    mean: Vec<P>,
    var: Vec<P>,
    skipped: Vec<usize>,
    prepared: Vec<Prepared<f32>>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl<P: Scalar> Buffers<P> {
    fn bits(&self) -> Vec<Vec<u64>> {
        vec![
            moments_bits(&self.moments),
            moments_bits(&self.from),
            self.num_batches.clone(),
            self.mean.bits(),
            self.var.bits(),
            self.skipped.iter().map(|&n| n as u64).collect(),
            prepared_bits(&self.prepared),
            self.weight.bits(),
            self.bias.bits(),
        ]
    }
}

impl Input {
    fn arguments(&self) -> Arguments {
        let mut a = Arguments {
            dtype: self.dtype as u32 % 4,
            rule: self.rule as u32 % 3,
            momentum: self.momentum as f64 / u32::MAX as f64,
            unbiased: self.unbiased as u32,
            // 0 among them, but not first.
            sizes: self.sizes.map(|n| (n as usize + 3) % 20),
        };
        for mistake in self.mistakes.iter() {
            let Mistake::Field(field, v) = mistake else { continue };
            match field % 7 {
                // None that exists: the arrays are of the one above.
                0 => a.dtype = (v as u32).max(4),
                1 => a.rule = v as u32,
                2 => a.unbiased = v as u32,
                3 => a.momentum = f64::from_bits(v),
                // More than memory holds, of any type.
                n => a.sizes[n as usize - 4] = usize::MAX >> (v % 3),
            }
        }
        a
    }
}

pub fn go(input: &Input) {
    let arguments = input.arguments();
    if arguments.dtype == BATCHNORM_F64 { run::<f64>(input, &arguments) } else { run::<f32>(input, &arguments) }
}

fn rule(a: &Arguments) -> Result<RunningStats, batchnorm_status> {
    let momentum = match a.rule {
        BATCHNORM_WEIGH_NEW => Momentum::WeighNew(a.momentum),
        BATCHNORM_WEIGH_OLD => Momentum::WeighOld(a.momentum),
        BATCHNORM_CUMULATIVE => Momentum::Cumulative,
        _ => return Err(BATCHNORM_ERROR_ENUM),
    };
    let variance = match a.unbiased {
        0 => Variance::Biased,
        1 => Variance::Unbiased,
        _ => return Err(BATCHNORM_ERROR_ENUM),
    };
    RunningStats::new(momentum, variance).map_err(status)
}

fn run<P: Param + Scalar>(input: &Input, a: &Arguments) {
    let mut wrong = Vec::new();
    let [first, second, third] = a.sizes;
    let times = |sizes: &[usize]| sizes.iter().fold(1, |n: u128, &size| n.saturating_mul(size as u128));
    // Entries of the moments, the prepared table, the weight and the bias.
    let lengths = match input.call {
        Call::Merge | Call::Update => [first as u128, 0, 0, 0],
        Call::Before => [0, first as u128, times(&[first, second]), first as u128],
        Call::After => [0, second as u128, times(&a.sizes), first as u128],
    };
    let sizes = [size_of::<Moments>(), size_of::<Prepared<f32>>(), size_of::<f32>(), size_of::<f32>()];
    let too_many = |(n, size): (u128, usize)| n.saturating_mul(size as u128) > isize::MAX as u128;
    let [channels, entries, weights, outputs] = if lengths.into_iter().zip(sizes).any(too_many) {
        wrong.push(BATCHNORM_ERROR_SIZE);
        [0; 4]
    } else {
        lengths.map(|n| n as usize)
    };

    let n = &input.numbers;
    let statistics = if matches!(input.call, Call::Update) { channels } else { 0 };
    let b = Buffers::<P> {
        moments: n.moments(0, channels),
        from: n.moments(1, channels - statistics),
        num_batches: vec![input.num_batches.unwrap_or_default()],
        mean: n.values(2, statistics),
        var: n.variances(3, statistics),
        skipped: vec![usize::MAX],
        prepared: n.prepared(4, entries),
        weight: n.values(5, weights),
        bias: n.values(6, outputs),
    };
    let mut own = b.clone();
    let mut operands = match input.call {
        Call::Merge => vec![Operand::new(&mut own.moments).written(), Operand::new(&mut own.from)],
        Call::Update => vec![
            Operand::new(&mut own.moments),
            Operand::new(&mut own.num_batches).written().optional().absent_if(input.num_batches.is_none()),
            Operand::new(&mut own.mean).written(),
            Operand::new(&mut own.var).written(),
            Operand::new(&mut own.skipped).written().optional().absent_if(!input.skipped),
        ],
        Call::Before | Call::After => vec![
            Operand::new(&mut own.prepared),
            Operand::new(&mut own.weight).written(),
            Operand::new(&mut own.bias).written(),
        ],
    };
    wrong.extend(input.mistakes.iter().filter_map(|mistake| mistake.make(&mut operands, |_, _, _| false)));

    let mut meant = b.clone();
    if let Err(errors) = expected(input, a, &mut meant) {
        // What is too large to be there has no channels in bn-core's call only.
        let too_large = wrong.contains(&BATCHNORM_ERROR_SIZE);
        wrong.extend(errors.into_iter().filter(|&e| !(too_large && e == BATCHNORM_ERROR_CHANNELS)));
    }
    let p: Vec<_> = operands.iter().map(|o| o.at).collect();
    // SAFETY: every array has the size that the header states, or the call is refused.
    let got = unsafe {
        match input.call {
            Call::Merge => batchnorm_moments_merge(first, p[0].cast(), p[1].cast()),
            Call::Update => {
                let (moments, batches, skipped) = (p[0].cast(), p[1].cast(), p[4].cast());
                let Arguments { dtype, rule, momentum, unbiased, .. } = *a;
                batchnorm_running_update(dtype, first, moments, rule, momentum, unbiased, batches, p[2], p[3], skipped)
            }
            Call::Before => batchnorm_fold_before(p[0].cast(), first, second, p[1].cast(), p[2].cast()),
            Call::After => batchnorm_fold_after(p[0].cast(), first, second, third, p[1].cast(), p[2].cast()),
        }
    };
    judge(&wrong, got, &b.bits(), &own.bits(), &meant.bits());
}

/// The same by bn-core, or all that may be wrong with the arguments.
fn expected<P: Param>(input: &Input, a: &Arguments, b: &mut Buffers<P>) -> Result<(), Vec<batchnorm_status>> {
    let [outputs, inputs, taps] = a.sizes;
    let one = |e: Error| vec![status(e)];
    match input.call {
        Call::Merge => merge_moments(&mut b.moments, &b.from).map_err(one),
        Call::Update => {
            let mut wrong = Vec::new();
            if a.dtype > BATCHNORM_BF16 {
                wrong.push(BATCHNORM_ERROR_ENUM);
            }
            let num_batches = input.num_batches.is_some().then_some(&mut b.num_batches[0]);
            let result =
                rule(a).and_then(|rule| rule.update(&b.moments, &mut b.mean, &mut b.var, num_batches).map_err(status));
            match result {
                Ok(skipped) if input.skipped => b.skipped[0] = skipped,
                Ok(_) => {}
                Err(e) => wrong.push(e),
            }
            if wrong.is_empty() { Ok(()) } else { Err(wrong) }
        }
        Call::Before => {
            let fold = Fold::prepared(&b.prepared).map_err(one)?;
            fold.into_preceding(inputs, &mut b.weight, &mut b.bias).map_err(one)
        }
        Call::After => {
            let fold = Fold::prepared(&b.prepared).map_err(one)?;
            fold.into_following(outputs, 1, taps, &mut b.weight, &mut b.bias).map_err(one)
        }
    }
}
