//! The conformance set: one table of batch normalizations, and a hash of the bits of each result.
//!
//! The hashes are equal on every ISA and target; [`bn_core::BITS_VERSION`] says which ones are
//! meant. Data come from integers, so nothing but bn-core can make them differ. No allocation: the
//! caller brings memory, and what does not fit is skipped and says so, so that a controller with
//! 16 KB of memory can be compared on what it can hold.
//!
//! ```
//! let mut arena = [0; bn_conformance::SMALL_WORDS];
//! let mut hashes = 0;
//! bn_conformance::inference::<f32>(bn_core::Isa::detect(), &mut arena, &mut |case| {
//!     hashes += matches!(case.outcome, bn_conformance::Outcome::Hash(_)) as usize;
//! });
//! assert!(hashes > 90);
//! ```

#![no_std]
#![warn(missing_docs)]

mod data;
mod deploy;
mod hash;
mod problems;

use bn_core::{
    Affine, BackwardInput, BatchNorm, Error, GradSums, Gradients, Isa, Moments, Momentum, Op, Prepared, Run,
    RunningStats, Shape, Statistics, Stride, Strides, Variance, merge_moments,
};
use bytemuck::Pod;
use data::{Pattern, Random, Tested, TestedParam, factors, parameters, statistics, tensor};
pub use deploy::deployment;
use hash::Hash;
use problems::{PROBLEMS, Problem};

/// Words of memory for the small problems (10 KB): what [`small`] needs.
pub const SMALL_WORDS: usize = 1280;
/// Words of memory for all problems (640 KB).
pub const ALL_WORDS: usize = 80 * 1024;

/// A result of the set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// The element type.
    pub element: &'static str,
    /// The operation.
    pub operation: &'static str,
    /// The tensor, named after its layout, its shape, and what is special about its values.
    pub problem: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// The hash of all results.
    Hash(u64),
    /// It needs more memory.
    Skipped,
    /// It was refused: a mistake of the set or of the library.
    Failed(Error),
}

/// Who is told of each case.
pub type Report<'a> = &'a mut dyn FnMut(Case);

/// An element type of the set. This trait is sealed.
#[allow(private_bounds, reason = "a sealed trait")]
pub trait Element: bn_core::Element<Param: TestedParam> + Tested {}
impl Element for f32 {}
impl Element for f64 {}
#[cfg(feature = "half")]
impl Element for half::f16 {}
#[cfg(feature = "half")]
impl Element for half::bf16 {}

/// All that fits into the memory, and the hash of all hashes: that of a whole run is of interest
/// only if nothing was skipped.
pub fn all(isa: Isa, arena: &mut [u64], report: Report<'_>) -> u64 {
    let mut total = Hash::NEW;
    let mut report = |case: Case| {
        if let Outcome::Hash(h) = case.outcome {
            total.u64(h);
        }
        report(case);
    };
    of_element::<f32>(isa, arena, &mut report);
    of_element::<f64>(isa, arena, &mut report);
    #[cfg(feature = "half")]
    of_element::<half::f16>(isa, arena, &mut report);
    #[cfg(feature = "half")]
    of_element::<half::bf16>(isa, arena, &mut report);
    total.value()
}

/// All of one element type that fits into the memory.
pub fn of_element<T: Element>(isa: Isa, arena: &mut [u64], report: Report<'_>) {
    inference::<T>(isa, arena, report);
    training::<T>(isa, arena, report);
    // Half-precision types have the statistics of f32.
    if T::NAME == <T::Param as Tested>::NAME {
        running::<T>(arena, report);
        deployment::<T>(arena, report);
    }
    backward::<T>(isa, arena, report);
}

/// The hash of all hashes with memory of a fixed size, so that it is the same number everywhere.
pub fn small(isa: Isa, arena: &mut [u64; SMALL_WORDS]) -> u64 {
    all(isa, arena, &mut |_| {})
}

/// Hands out parts of the memory.
struct Arena<'a>(&'a mut [u64]);

impl<'a> Arena<'a> {
    /// `len` values, or nothing if they do not fit.
    fn take<V: Pod>(&mut self, len: usize) -> Option<&'a mut [V]> {
        let bytes = len.checked_mul(size_of::<V>())?;
        let (head, tail) = core::mem::take(&mut self.0).split_at_mut_checked(bytes.div_ceil(8))?;
        self.0 = tail;
        // By way of bytes: a size of V need not divide whole words.
        let head = bytemuck::cast_slice_mut::<u64, u8>(head).get_mut(..bytes)?;
        bytemuck::try_cast_slice_mut(head).ok()
    }

    /// What is left, as a workspace.
    fn workspace(self) -> &'a mut [u64] {
        self.0
    }
}

/// Why a case has no hash.
enum Stop {
    Memory,
    Refused(Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        match e {
            // The workspace is what is left of the memory.
            Error::Workspace { .. } => Stop::Memory,
            e => Stop::Refused(e),
        }
    }
}

type Ran = Result<Hash, Stop>;

impl Problem {
    fn len(&self) -> usize {
        self.batch * self.channels * self.spatial
    }

    fn shape(&self) -> Result<Shape, Stop> {
        Ok(Shape::new(self.layout, self.batch, self.channels, &[self.spatial])?)
    }

    fn plan<T: Element>(&self, isa: Isa) -> Result<BatchNorm<T>, Stop> {
        let plan = BatchNorm::new(self.shape()?, 1e-5)?.with_activation(self.activation)?.with_isa(isa);
        Ok(plan.allow_one_value())
    }

    /// Runs in an image, and elements in a run.
    fn runs(&self) -> (usize, usize) {
        match self.layout {
            bn_core::Layout::Nchw => (self.channels, self.spatial),
            _ => (self.spatial, self.channels),
        }
    }

    /// So many elements between runs, and between images.
    fn gaps(&self, inner: usize, batch: usize) -> Stride {
        let (runs, run) = self.runs();
        Stride { inner: run + inner, batch: runs * (run + inner) + batch }
    }

    /// Every operand with gaps of its own, but for the residual.
    fn strides(&self) -> Strides {
        let (x, y) = (self.gaps(3, 5), self.gaps(1, 0));
        Strides { x, y, dy: y, dx: self.gaps(2, 1), dresidual: x, ..Default::default() }
    }

    /// Memory for an operand with gaps, something other than 0.
    fn room<'a, T: Element>(&self, a: &mut Arena<'a>, stride: Stride) -> Result<&'a mut [T], Stop> {
        self.output(a, stride.span(&self.shape()?)?)
    }

    /// Such an operand, from what it is without gaps.
    fn spread<'a, T: Element>(&self, a: &mut Arena<'a>, stride: Stride, dense: &[T]) -> Result<&'a mut [T], Stop> {
        let to = self.room::<T>(a, stride)?;
        let (runs, run) = self.runs();
        for (i, from) in dense.chunks_exact(run).enumerate() {
            let at = i / runs * stride.batch + i % runs * stride.inner;
            if let Some(to) = to.get_mut(at..at + run) {
                to.copy_from_slice(from);
            }
        }
        Ok(to)
    }

    fn seed(&self, role: u32) -> u32 {
        let sizes = [self.batch, self.channels, self.spatial, self.x as usize];
        sizes.iter().fold(role, |s, &n| s.wrapping_mul(31).wrapping_add(n as u32))
    }

    fn order(&self) -> (bn_core::Layout, usize, usize) {
        (self.layout, self.channels, self.spatial)
    }

    fn tensor<'a, T: Element>(&self, a: &mut Arena<'a>, role: u32, p: Pattern, rotated: usize) -> Option<&'a mut [T]> {
        let t = a.take(self.len())?;
        tensor(t, self.seed(role), p, rotated, self.order());
        Some(t)
    }

    fn x<'a, T: Element>(&self, a: &mut Arena<'a>) -> Result<&'a mut [T], Stop> {
        self.tensor(a, 1, self.x, 0).ok_or(Stop::Memory)
    }

    /// The gradient of the output: where x has many patterns so has it, in another order.
    fn dy<'a, T: Element>(&self, a: &mut Arena<'a>) -> Result<&'a mut [T], Stop> {
        let pattern = match self.x {
            Pattern::Spread | Pattern::Constant | Pattern::Tiny => Pattern::Spread,
            p => p,
        };
        self.tensor(a, 2, pattern, 4).ok_or(Stop::Memory)
    }

    fn residual<'a, T: Element>(&self, a: &mut Arena<'a>) -> Result<Option<&'a [T]>, Stop> {
        if !self.residual {
            return Ok(None);
        }
        Ok(Some(self.tensor(a, 3, Pattern::Spread, 0).ok_or(Stop::Memory)?))
    }

    fn affine<'a, P: TestedParam + bn_core::Param>(&self, a: &mut Arena<'a>) -> Result<Affine<'a, P>, Stop> {
        if !self.affine {
            return Ok(Affine::NONE);
        }
        let gamma = a.take(self.channels).ok_or(Stop::Memory)?;
        factors(gamma, self.seed(4));
        Ok(Affine::new(gamma, self.parameters(a, 5, Pattern::Spread)?))
    }

    fn parameters<'a, P: Tested>(&self, a: &mut Arena<'a>, role: u32, p: Pattern) -> Result<&'a mut [P], Stop> {
        let to = a.take(self.channels).ok_or(Stop::Memory)?;
        parameters(to, self.seed(role), p);
        Ok(to)
    }

    /// Something other than 0, so that what is not written shows.
    fn output<'a, V: Pod>(&self, a: &mut Arena<'a>, len: usize) -> Result<&'a mut [V], Stop> {
        let to = a.take(len).ok_or(Stop::Memory)?;
        bytemuck::cast_slice_mut::<V, u8>(to).fill(0x55);
        Ok(to)
    }

    fn statistics<'a, T: Element>(&self, a: &mut Arena<'a>, x: &[T]) -> Result<&'a mut [Moments], Stop> {
        let moments = a.take(self.channels).ok_or(Stop::Memory)?;
        statistics(x, moments, self.order());
        Ok(moments)
    }
}

fn hash_of(results: &[&dyn Fn(&mut Hash)]) -> Hash {
    let mut h = Hash::NEW;
    for r in results {
        r(&mut h);
    }
    h
}

/// Runs an operation on every problem.
fn each<T: Element>(
    operation: &'static str,
    in_place: bool,
    arena: &mut [u64],
    report: Report<'_>,
    mut run: impl FnMut(&Problem, Arena<'_>) -> Ran,
) {
    for p in PROBLEMS {
        if p.large && !in_place {
            continue;
        }
        let outcome = match run(p, Arena(arena)) {
            Ok(h) => Outcome::Hash(h.value()),
            Err(Stop::Memory) => Outcome::Skipped,
            Err(Stop::Refused(e)) => Outcome::Failed(e),
        };
        report(Case { element: T::NAME, operation, problem: p.name, outcome });
    }
}

/// Inference: in one call, in place, prepared and applied.
pub fn inference<T: Element>(isa: Isa, arena: &mut [u64], report: Report<'_>) {
    each::<T>("inference", false, arena, report, |p, mut a| {
        let (x, residual, affine) = (p.x::<T>(&mut a)?, p.residual(&mut a)?, p.affine(&mut a)?);
        let (mean, var) = (p.parameters(&mut a, 6, Pattern::Spread)?, p.parameters(&mut a, 7, Pattern::Variance)?);
        let y = p.output::<T>(&mut a, p.len())?;
        p.plan(isa)?.inference(x, residual, affine, mean, var, &mut *y, Run::serial(a.workspace()))?;
        Ok(hash_of(&[&|h| h.all(y)]))
    });
    each::<T>("inference-in-place", true, arena, report, |p, mut a| {
        let (x, residual, affine) = (p.x::<T>(&mut a)?, p.residual(&mut a)?, p.affine(&mut a)?);
        let (mean, var) = (p.parameters(&mut a, 6, Pattern::Spread)?, p.parameters(&mut a, 7, Pattern::Variance)?);
        p.plan(isa)?.inference_in_place(x, residual, affine, mean, var, Run::serial(a.workspace()))?;
        Ok(hash_of(&[&|h| h.all(x)]))
    });
    each::<T>("prepare-apply", true, arena, report, |p, mut a| {
        let plan = p.plan::<T>(isa)?;
        let x = p.x::<T>(&mut a)?;
        let (affine, residual) = (p.affine(&mut a)?, p.residual(&mut a)?);
        let (mean, var) = (p.parameters(&mut a, 6, Pattern::Spread)?, p.parameters(&mut a, 7, Pattern::Variance)?);
        let prepared = p.output::<Prepared<T::Param>>(&mut a, p.channels)?;
        let mut h = Hash::NEW;
        match plan.prepare(affine, mean, var, prepared) {
            Err(Error::Unpreparable { channel }) => {
                // As it must be where gamma is too large; then with beta alone.
                h.u64(channel as u64);
                plan.prepare(Affine { gamma: None, ..affine }, mean, var, prepared)?;
            }
            other => other?,
        }
        plan.apply_in_place(x, residual, prepared, Run::serial(a.workspace()))?;
        h.all(prepared);
        h.all(x);
        Ok(h)
    });
}

/// Training: in one call, in place, with strides, in stages.
pub fn training<T: Element>(isa: Isa, arena: &mut [u64], report: Report<'_>) {
    each::<T>("training", false, arena, report, |p, mut a| {
        let (x, residual, affine) = (p.x::<T>(&mut a)?, p.residual(&mut a)?, p.affine(&mut a)?);
        let (y, moments) = (p.output::<T>(&mut a, p.len())?, p.output(&mut a, p.channels)?);
        p.plan(isa)?.forward_training(x, residual, affine, &mut *y, moments, Run::serial(a.workspace()))?;
        Ok(hash_of(&[&|h| h.all(y), &|h| h.all(moments)]))
    });
    each::<T>("training-in-place", true, arena, report, |p, mut a| {
        let (x, residual, affine) = (p.x::<T>(&mut a)?, p.residual(&mut a)?, p.affine(&mut a)?);
        let moments = p.output(&mut a, p.channels)?;
        p.plan(isa)?.forward_training_in_place(x, residual, affine, moments, Run::serial(a.workspace()))?;
        Ok(hash_of(&[&|h| h.all(x), &|h| h.all(moments)]))
    });
    each::<T>("training-strided", false, arena, report, |p, mut a| {
        let (strides, dense) = (p.strides(), p.x::<T>(&mut a)?);
        let x = p.spread(&mut a, strides.x, dense)?;
        let (residual, affine) = (p.residual(&mut a)?, p.affine(&mut a)?);
        let (y, moments) = (p.room::<T>(&mut a, strides.y)?, p.output(&mut a, p.channels)?);
        let plan = p.plan(isa)?.with_strides(strides)?;
        plan.forward_training(x, residual, affine, &mut *y, moments, Run::serial(a.workspace()))?;
        Ok(hash_of(&[&|h| h.all(y), &|h| h.all(moments)]))
    });
    // Statistics of two batches; the second one is normalized with them.
    each::<T>("moments-normalize", false, arena, report, |p, mut a| {
        let plan = p.plan::<T>(isa)?;
        let (x, residual, affine) = (p.x::<T>(&mut a)?, p.residual(&mut a)?, p.affine(&mut a)?);
        let (y, moments) = (p.output::<T>(&mut a, p.len())?, p.output(&mut a, p.channels)?);
        let workspace = a.workspace();
        moments.fill(Moments::EMPTY);
        plan.moments(x, moments, Run::serial(workspace))?;
        tensor(x, p.seed(8), Pattern::Spread, 0, p.order());
        plan.moments(x, moments, Run::serial(workspace))?;
        plan.normalize(x, residual, affine, moments, &mut *y, Run::serial(workspace))?;
        Ok(hash_of(&[&|h| h.all(y), &|h| h.all(moments)]))
    });
}

/// Running statistics, under every rule, and merging.
pub fn running<T: Element>(arena: &mut [u64], report: Report<'_>) {
    each::<T>("running", false, arena, report, |p, mut a| {
        let x = p.x::<T>(&mut a)?;
        let (moments, other) = (p.statistics(&mut a, x)?, a.take::<Moments>(p.channels).ok_or(Stop::Memory)?);
        let mut h = Hash::NEW;
        let rules = [
            RunningStats::pytorch(0.1)?,
            RunningStats::keras(0.99)?,
            RunningStats::onnx(0.9)?,
            RunningStats::new(Momentum::Cumulative, Variance::Biased)?,
            RunningStats::new(Momentum::Cumulative, Variance::Unbiased)?,
            RunningStats::new(Momentum::WeighNew(1.0), Variance::Biased)?,
            RunningStats::new(Momentum::WeighOld(1.0), Variance::Unbiased)?,
        ];
        let (mean, var) =
            (p.parameters::<T::Param>(&mut a, 6, Pattern::Spread)?, p.parameters(&mut a, 7, Pattern::Variance)?);
        let mut batches = 2;
        for rule in rules {
            let skipped = rule.update(moments, mean, var, Some(&mut batches))?;
            h.u64(skipped as u64);
            h.u64(batches);
            h.all(mean);
            h.all(var);
        }
        let mut random = Random::new(p.seed(9));
        for m in other.iter_mut() {
            *m = Moments::EMPTY;
            for i in 0..3 {
                m.push(T::draw(&mut random, Pattern::Spread, i, 3).value());
            }
        }
        merge_moments(other, moments)?;
        h.all(other);
        Ok(h)
    });
}

/// Backward: through the statistics of the batch, exact and rounded; through running statistics; in
/// place; in stages.
pub fn backward<T: Element>(isa: Isa, arena: &mut [u64], report: Report<'_>) {
    each::<T>("backward", false, arena, report, |p, a| gradients::<T>(isa, p, a, How::Batch));
    each::<T>("backward-rounded", false, arena, report, |p, a| gradients::<T>(isa, p, a, How::Rounded));
    each::<T>("backward-running", false, arena, report, |p, a| gradients::<T>(isa, p, a, How::Running));
    each::<T>("backward-stages", false, arena, report, |p, a| gradients::<T>(isa, p, a, How::Stages));
    each::<T>("backward-in-place", true, arena, report, |p, a| gradients::<T>(isa, p, a, How::InPlace));
    each::<T>("backward-strided", false, arena, report, |p, mut a| {
        let (strides, plan) = (p.strides(), p.plan::<T>(isa)?.with_strides(p.strides())?);
        let (x, dy) = (p.x::<T>(&mut a)?, p.dy::<T>(&mut a)?);
        let moments = p.statistics(&mut a, x)?;
        let (x, dy) = (p.spread(&mut a, strides.x, x)?, p.spread(&mut a, strides.dy, dy)?);
        let y = match p.tensor::<T>(&mut a, 10, Pattern::Activated, 0) {
            _ if p.activation == bn_core::Activation::Identity => None,
            Some(y) => Some(&*p.spread(&mut a, strides.y, y)?),
            None => return Err(Stop::Memory),
        };
        let gamma = p.affine::<T::Param>(&mut a)?.gamma;
        let (dx, dr) = (p.room::<T>(&mut a, strides.dx)?, p.room::<T>(&mut a, strides.dresidual)?);
        let input = BackwardInput { x, y, dy, gamma, statistics: Statistics::Batch(moments) };
        let output =
            Gradients { dx: Some((&mut *dx).into()), dresidual: Some((&mut *dr).into()), ..Default::default() };
        plan.backward(input, output, Run::serial(a.workspace()))?;
        Ok(hash_of(&[&|h| h.all(dx), &|h| h.all(dr)]))
    });
    // From y alone, where the activation can be undone; else without one.
    each::<T>("backward-from-output", false, arena, report, |p, mut a| {
        let activation = match p.activation {
            keep @ (bn_core::Activation::Identity | bn_core::Activation::LeakyRelu { .. }) => keep,
            _ => bn_core::Activation::Identity,
        };
        let plan = p.plan::<T>(isa)?.with_activation(activation)?;
        let (x, dy, affine) = (p.x::<T>(&mut a)?, p.dy::<T>(&mut a)?, p.affine::<T::Param>(&mut a)?);
        let moments = p.statistics(&mut a, x)?;
        let y = p.output::<T>(&mut a, p.len())?;
        let (dgamma, dbeta) = (p.output::<T::Param>(&mut a, p.channels)?, p.output::<T::Param>(&mut a, p.channels)?);
        let workspace = a.workspace();
        plan.normalize(x, None, affine, moments, &mut *y, Run::serial(workspace))?;
        let output = Gradients { dgamma: Some(dgamma), dbeta: Some(dbeta), ..Default::default() };
        match plan.backward_from_output_in_place(y, dy, affine, moments, output, Run::serial(workspace)) {
            // As it must be where gamma is 0: the same without it.
            Err(Error::NotInvertible { .. }) => {
                let output = Gradients { dgamma: Some(dgamma), dbeta: Some(dbeta), ..Default::default() };
                let affine = Affine { gamma: None, ..affine };
                plan.backward_from_output_in_place(y, dy, affine, moments, output, Run::serial(workspace))?;
            }
            other => other?,
        }
        Ok(hash_of(&[&|h| h.all(dy), &|h| h.all(dgamma), &|h| h.all(dbeta)]))
    });
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Batch,
    Rounded,
    Running,
    Stages,
    InPlace,
}

fn gradients<T: Element>(isa: Isa, p: &Problem, mut a: Arena<'_>, how: How) -> Ran {
    let plan = p.plan::<T>(isa)?;
    let (x, dy) = (p.x::<T>(&mut a)?, p.dy::<T>(&mut a)?);
    let y = match p.activation {
        bn_core::Activation::Identity => None,
        _ => Some(&*p.tensor::<T>(&mut a, 10, Pattern::Activated, 0).ok_or(Stop::Memory)?),
    };
    let gamma = p.affine::<T::Param>(&mut a)?.gamma;
    let moments = p.statistics(&mut a, x)?;
    let (mean, var) = match how {
        How::Running => (p.parameters(&mut a, 6, Pattern::Spread)?, p.parameters(&mut a, 7, Pattern::Variance)?),
        _ => {
            let (mean, var) = (p.output(&mut a, p.channels)?, p.output(&mut a, p.channels)?);
            for (m, (mean, var)) in moments.iter().zip(mean.iter_mut().zip(var.iter_mut())) {
                (*mean, *var) = (T::Param::rounded(m.mean), T::Param::rounded(m.variance()));
            }
            (mean, var)
        }
    };
    let statistics = match how {
        How::Rounded => Statistics::Rounded { mean, var },
        How::Running => Statistics::Running { mean, var },
        _ => Statistics::Batch(moments),
    };
    let (dgamma, dbeta) = (p.output::<T::Param>(&mut a, p.channels)?, p.output::<T::Param>(&mut a, p.channels)?);
    let sums = p.output::<GradSums>(&mut a, if how == How::Stages { p.channels } else { 0 })?;
    let dr = if p.residual { Some(p.output::<T>(&mut a, p.len())?) } else { None };
    let dx = if how == How::InPlace { &mut [] } else { p.output::<T>(&mut a, p.len())? };
    let workspace = a.workspace();
    // Nothing is written, nor the sums begun, where the workspace is too small.
    if workspace.len() < plan.workspace_min(Op::Backward) {
        return Err(Stop::Memory);
    }
    let mut dr = dr;
    let output =
        Gradients { dx: None, dresidual: dr.as_deref_mut().map(Into::into), dgamma: Some(dgamma), dbeta: Some(dbeta) };
    let mut h = Hash::NEW;
    if how == How::InPlace {
        let input = BackwardInput { x, y, dy: &[], gamma, statistics };
        plan.backward_in_place(dy, input, output, Run::serial(workspace))?;
        h.all(dy);
    } else {
        let input = BackwardInput { x, y, dy, gamma, statistics };
        let output = Gradients { dx: Some((&mut *dx).into()), ..output };
        if how == How::Stages {
            plan.backward_sums(input, sums, Run::serial(workspace))?;
            plan.backward_apply(input, sums, output, Run::serial(workspace))?;
            h.all(sums);
        } else {
            plan.backward(input, output, Run::serial(workspace))?;
        }
        h.all(dx);
    }
    h.all(dgamma);
    h.all(dbeta);
    if let Some(dr) = dr {
        h.all(dr);
    }
    Ok(h)
}
