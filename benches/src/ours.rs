//! This library's operations.

use crate::data::{Data, EPSILON};
use crate::{Call, Operation, Subject};
use anyhow::{Result, bail};
use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Element, Executor, Gradients, Isa, Moments, Op, Run, Serial, Shape,
    Statistics,
};
use bn_std::Rayon;

/// How far its answers may be from the right ones.
pub const TOLERANCE: f64 = 4e-6;

/// One operation, on the threads of the rayon pool that the call is made from, or on one.
///
/// # Errors
/// What bn-core returns; an operation that is no batch norm.
pub fn subject<'a>(data: &Data, operation: Operation, isa: Isa, threads: usize) -> Result<Subject<'a>> {
    let (call, workspace) = if operation.is_bf16() {
        call_bf16(data, operation, isa, threads)?
    } else {
        call::<f32>(data.shape, &data.x, operation, isa, threads, |data| {
            let Data { x, y, dy, dx, .. } = data;
            Operands { x, y, dy, dx }
        })?
    };
    let variant = isa.kind().name().into();
    Ok(Subject { library: "bn".into(), variant, operation, workspace, call })
}

#[cfg(feature = "half")]
fn call_bf16<'a>(data: &Data, operation: Operation, isa: Isa, threads: usize) -> Result<(Call<'a>, usize)> {
    call::<half::bf16>(data.shape, &data.bf16[0], operation, isa, threads, |data| {
        let [x, y, dy, dx] = &mut data.bf16;
        Operands { x, y, dy, dx }
    })
}

#[cfg(not(feature = "half"))]
fn call_bf16<'a>(_: &Data, operation: Operation, _: Isa, _: usize) -> Result<(Call<'a>, usize)> {
    bail!("{} wants the feature `half`", operation.name())
}

struct Operands<'d, T> {
    x: &'d [T],
    y: &'d mut [T],
    dy: &'d [T],
    dx: &'d mut [T],
}

struct Parameters {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    var: Vec<f32>,
}

fn call<'a, T: Element<Param = f32>>(
    shape: Shape,
    x: &[T],
    operation: Operation,
    isa: Isa,
    threads: usize,
    operands: fn(&mut Data) -> Operands<'_, T>,
) -> Result<(Call<'a>, usize)> {
    let relu = if operation.is_relu() { Activation::Relu } else { Activation::Identity };
    let plan = BatchNorm::<T>::new(shape, f64::from(EPSILON))?.with_isa(isa).with_activation(relu)?;
    let op = match operation {
        Operation::Forward | Operation::ForwardRelu | Operation::ForwardBf16 => Op::ForwardTraining,
        Operation::Inference | Operation::InferenceBf16 => Op::Inference,
        _ => Op::Backward,
    };
    let executor: Box<dyn Executor> = if threads > 1 { Box::new(Rayon::global()) } else { Box::new(Serial) };
    let mut workspace = vec![0u64; plan.workspace_best(op, threads)];
    let bytes = size_of_val(&workspace[..]);
    let mut moments = vec![Moments::EMPTY; shape.channels()];
    if op == Op::Backward {
        let mut workspace = vec![0; plan.workspace_best(Op::ForwardTraining, 1)];
        plan.moments(x, &mut moments, Run::serial(&mut workspace))?;
    }
    // The parameters are borrowed from the data beside the tensors: copies are simpler, and as fast.
    let mut parameters: Option<Parameters> = None;
    let call: Call<'a> = Box::new(move |data| {
        let p = parameters.get_or_insert_with(|| Parameters {
            gamma: data.gamma.clone(),
            beta: data.beta.clone(),
            mean: data.mean.clone(),
            var: data.var.clone(),
        });
        let affine = Affine::new(&p.gamma, &p.beta);
        let (mut dgamma, mut dbeta) = (std::mem::take(&mut data.dgamma), std::mem::take(&mut data.dbeta));
        let Operands { x, y, dy, dx } = operands(data);
        let run = Run::on(&*executor, &mut workspace);
        match operation {
            Operation::Forward | Operation::ForwardRelu | Operation::ForwardBf16 => {
                plan.forward_training(x, None, affine, y, &mut moments, run)?;
            }
            Operation::Inference | Operation::InferenceBf16 => {
                plan.inference(x, None, affine, &p.mean, &p.var, y, run)?;
            }
            Operation::Backward | Operation::BackwardRelu | Operation::BackwardBf16 => {
                let y = operation.is_relu().then_some(&*y);
                let statistics = Statistics::Batch(&moments);
                let input = BackwardInput { x, y, dy, gamma: Some(&p.gamma), statistics };
                let output = Gradients {
                    dx: Some(dx.into()),
                    dgamma: Some(&mut dgamma),
                    dbeta: Some(&mut dbeta),
                    ..Gradients::default()
                };
                plan.backward(input, output, run)?;
            }
            Operation::FrozenDx => {
                let statistics = Statistics::Running { mean: &p.mean, var: &p.var };
                let input = BackwardInput { x, y: None, dy, gamma: Some(&p.gamma), statistics };
                plan.backward(input, Gradients { dx: Some(dx.into()), ..Gradients::default() }, run)?;
            }
            Operation::Read | Operation::ReadTwo | Operation::Copy | Operation::Triad => {
                bail!("{} is no batch norm", operation.name())
            }
        }
        (data.dgamma, data.dbeta) = (dgamma, dbeta);
        Ok(())
    });
    Ok((call, bytes))
}
