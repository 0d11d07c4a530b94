//! Every public operation of bn-core behind a symbol of its own.
//!
//! The panic handler calls a function that nobody defines: a program that links, with unused
//! sections removed, has no path to a panic. Options are arguments, not constants, so that nothing
//! is optimised away that a caller could ask for.
//!
//! Linking one symbol at a time also tells what it costs: `ci/firmware.sh size`.

#![no_std]

use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, Fold, GradSums, Gradients, Isa, IsaKind, Moments, Momentum,
    Op, Prepared, Renorm, RenormFactor, Run, RunningStats, Shape, Statistics, Stride, Strides, Variance, merge_moments,
    moments_from_mean_inverse_std, moments_from_mean_var, moments_to_mean_inverse_std, moments_to_mean_var,
    renorm_affine, renorm_gradients,
};
#[cfg(target_has_atomic = "ptr")]
use bn_core::{Executor, Tasks};
use core::mem::MaybeUninit;

unsafe extern "C" {
    /// Defined nowhere.
    fn a_panic_path_is_left() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: a program in which this could be reached does not link.
    unsafe { a_panic_path_is_left() }
}

type Result = core::result::Result<(), Error>;

macro_rules! surface {
    ($t:ty, $($name:ident)+) => { surface!(@ $t, $($name)+); };
    (@ $t:ty, $plan:ident $set:ident $training:ident $training_in_place:ident $training_uninit:ident $moments:ident
     $normalize:ident $inference:ident $inference_in_place:ident $prepare:ident $apply:ident
     $apply_in_place:ident $apply_plain:ident $backward:ident $backward_batch:ident $backward_in_place:ident
     $sums:ident $backward_apply:ident $running:ident $workspace:ident) => {
        type_of!($t, $plan $set $workspace $running);

        #[unsafe(no_mangle)]
        pub fn $training(
            bn: &BatchNorm<$t>,
            x: &[$t],
            residual: Option<&[$t]>,
            affine: &Affine<'_, $t>,
            y: &mut [$t],
            moments: &mut [Moments],
            workspace: &mut [u64],
        ) -> Result {
            bn.forward_training(x, residual, *affine, y, moments, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $training_uninit(
            bn: &BatchNorm<$t>,
            x: &[$t],
            residual: Option<&[$t]>,
            affine: &Affine<'_, $t>,
            y: &mut [MaybeUninit<$t>],
            moments: &mut [Moments],
            workspace: &mut [u64],
        ) -> Result {
            bn.forward_training(x, residual, *affine, y, moments, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $training_in_place(
            bn: &BatchNorm<$t>,
            x: &mut [$t],
            residual: Option<&[$t]>,
            affine: &Affine<'_, $t>,
            moments: &mut [Moments],
            workspace: &mut [u64],
        ) -> Result {
            bn.forward_training_in_place(x, residual, *affine, moments, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $moments(bn: &BatchNorm<$t>, x: &[$t], moments: &mut [Moments], workspace: &mut [u64]) -> Result {
            bn.moments(x, moments, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $normalize(
            bn: &BatchNorm<$t>,
            x: &[$t],
            residual: Option<&[$t]>,
            affine: &Affine<'_, $t>,
            moments: &[Moments],
            y: &mut [$t],
            workspace: &mut [u64],
        ) -> Result {
            bn.normalize(x, residual, *affine, moments, y, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $inference(
            bn: &BatchNorm<$t>,
            x: &[$t],
            residual: Option<&[$t]>,
            affine: &Affine<'_, $t>,
            mean: &[$t],
            var: &[$t],
            y: &mut [$t],
            workspace: &mut [u64],
        ) -> Result {
            bn.inference(x, residual, *affine, mean, var, y, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $inference_in_place(
            bn: &BatchNorm<$t>,
            x: &mut [$t],
            residual: Option<&[$t]>,
            affine: &Affine<'_, $t>,
            mean: &[$t],
            var: &[$t],
            workspace: &mut [u64],
        ) -> Result {
            bn.inference_in_place(x, residual, *affine, mean, var, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $prepare(
            bn: &BatchNorm<$t>,
            affine: &Affine<'_, $t>,
            mean: &[$t],
            var: &[$t],
            prepared: &mut [Prepared<$t>],
        ) -> Result {
            bn.prepare(*affine, mean, var, prepared)
        }

        #[unsafe(no_mangle)]
        pub fn $apply(
            bn: &BatchNorm<$t>,
            x: &[$t],
            residual: Option<&[$t]>,
            prepared: &[Prepared<$t>],
            y: &mut [$t],
            workspace: &mut [u64],
        ) -> Result {
            bn.apply(x, residual, prepared, y, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $apply_in_place(
            bn: &BatchNorm<$t>,
            x: &mut [$t],
            residual: Option<&[$t]>,
            prepared: &[Prepared<$t>],
            workspace: &mut [u64],
        ) -> Result {
            bn.apply_in_place(x, residual, prepared, Run::serial(workspace))
        }

        /// What most firmware wants: no residual.
        #[unsafe(no_mangle)]
        pub fn $apply_plain(
            bn: &BatchNorm<$t>,
            x: &mut [$t],
            prepared: &[Prepared<$t>],
            workspace: &mut [u64],
        ) -> Result {
            bn.apply_in_place(x, None, prepared, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $backward(
            bn: &BatchNorm<$t>,
            input: &BackwardInput<'_, $t>,
            output: Gradients<'_, $t>,
            workspace: &mut [u64],
        ) -> Result {
            bn.backward(*input, output, Run::serial(workspace))
        }

        /// What on-device training wants: all gradients through batch statistics, no residual.
        #[unsafe(no_mangle)]
        pub fn $backward_batch(
            bn: &BatchNorm<$t>,
            (x, y, dy): (&[$t], Option<&[$t]>, &[$t]),
            gamma: &[$t],
            moments: &[Moments],
            (dx, dgamma, dbeta): (&mut [$t], &mut [$t], &mut [$t]),
            workspace: &mut [u64],
        ) -> Result {
            let input = BackwardInput { x, y, dy, gamma: Some(gamma), statistics: Statistics::Batch(moments) };
            let output =
                Gradients { dx: Some(dx.into()), dresidual: None, dgamma: Some(dgamma), dbeta: Some(dbeta) };
            bn.backward(input, output, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $backward_in_place(
            bn: &BatchNorm<$t>,
            dy: &mut [$t],
            input: &BackwardInput<'_, $t>,
            output: Gradients<'_, $t>,
            workspace: &mut [u64],
        ) -> Result {
            bn.backward_in_place(dy, *input, output, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $sums(
            bn: &BatchNorm<$t>,
            input: &BackwardInput<'_, $t>,
            sums: &mut [GradSums],
            workspace: &mut [u64],
        ) -> Result {
            bn.backward_sums(*input, sums, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $backward_apply(
            bn: &BatchNorm<$t>,
            input: &BackwardInput<'_, $t>,
            sums: &[GradSums],
            output: Gradients<'_, $t>,
            workspace: &mut [u64],
        ) -> Result {
            bn.backward_apply(*input, sums, output, Run::serial(workspace))
        }
    };
}

/// What came to the operations above.
macro_rules! more {
    ($t:ty, $strides:ident $from_output:ident $from_output_in_place:ident $factors:ident $renorm_affine:ident
     $renorm_gradients:ident $fold_running:ident $fold_preceding:ident $fold_transposed:ident
     $fold_following:ident $fold_scale_shift:ident $to_var:ident $to_std:ident $of_var:ident $of_std:ident) => {
        #[unsafe(no_mangle)]
        pub fn $strides(bn: &BatchNorm<$t>, strides: &Strides) -> core::result::Result<BatchNorm<$t>, Error> {
            bn.with_strides(*strides)
        }

        #[unsafe(no_mangle)]
        pub fn $from_output(
            bn: &BatchNorm<$t>,
            (y, dy): (&[$t], &[$t]),
            affine: &Affine<'_, $t>,
            moments: &[Moments],
            output: Gradients<'_, $t>,
            workspace: &mut [u64],
        ) -> Result {
            bn.backward_from_output(y, dy, *affine, moments, output, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $from_output_in_place(
            bn: &BatchNorm<$t>,
            (y, dy): (&[$t], &mut [$t]),
            affine: &Affine<'_, $t>,
            moments: &[Moments],
            output: Gradients<'_, $t>,
            workspace: &mut [u64],
        ) -> Result {
            bn.backward_from_output_in_place(y, dy, *affine, moments, output, Run::serial(workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $factors(
            renorm: &Renorm,
            moments: &[Moments],
            (mean, var): (&[$t], &[$t]),
            epsilon: f64,
            factors: &mut [RenormFactor],
        ) -> Result {
            renorm.factors(moments, mean, var, epsilon, factors)
        }

        #[unsafe(no_mangle)]
        pub fn $renorm_affine(
            factors: &[RenormFactor],
            affine: &Affine<'_, $t>,
            gamma: &mut [$t],
            beta: &mut [$t],
        ) -> Result {
            renorm_affine(factors, *affine, gamma, beta)
        }

        #[unsafe(no_mangle)]
        pub fn $renorm_gradients(factors: &[RenormFactor], dgamma: &mut [$t], dbeta: &[$t]) -> Result {
            renorm_gradients(factors, dgamma, dbeta)
        }

        #[unsafe(no_mangle)]
        pub fn $fold_running<'a>(
            affine: &Affine<'a, $t>,
            mean: &'a [$t],
            var: &'a [$t],
            epsilon: f64,
        ) -> core::result::Result<Fold<'a, $t>, Error> {
            Fold::running(*affine, mean, var, epsilon)
        }

        #[unsafe(no_mangle)]
        pub fn $fold_preceding(table: &[Prepared<$t>], inputs: usize, weight: &mut [$t], bias: &mut [$t]) -> Result {
            Fold::prepared(table)?.flush_subnormals().into_preceding(inputs, weight, bias)
        }

        #[unsafe(no_mangle)]
        pub fn $fold_transposed(
            fold: Fold<'_, $t>,
            (inputs, groups, taps): (usize, usize, usize),
            weight: &mut [$t],
            bias: &mut [$t],
        ) -> Result {
            fold.into_preceding_transposed(inputs, groups, taps, weight, bias)
        }

        #[unsafe(no_mangle)]
        pub fn $fold_following(
            fold: Fold<'_, $t>,
            (outputs, groups, taps): (usize, usize, usize),
            weight: &mut [$t],
            bias: &mut [$t],
        ) -> Result {
            fold.into_following(outputs, groups, taps, weight, bias)
        }

        #[unsafe(no_mangle)]
        pub fn $fold_scale_shift(fold: Fold<'_, $t>, scale: &mut [$t], shift: &mut [$t]) -> Result {
            fold.scale_shift(scale, shift)
        }

        #[unsafe(no_mangle)]
        pub fn $to_var(moments: &[Moments], variance: Variance, mean: &mut [$t], var: &mut [$t]) -> Result {
            moments_to_mean_var(moments, variance, mean, var)
        }

        #[unsafe(no_mangle)]
        pub fn $to_std(moments: &[Moments], epsilon: f64, mean: &mut [$t], inverse: &mut [$t]) -> Result {
            moments_to_mean_inverse_std(moments, epsilon, mean, inverse)
        }

        #[unsafe(no_mangle)]
        pub fn $of_var(n: u64, mean: &[$t], var: &[$t], variance: Variance, moments: &mut [Moments]) -> Result {
            moments_from_mean_var(n, mean, var, variance, moments)
        }

        #[unsafe(no_mangle)]
        pub fn $of_std(n: u64, mean: &[$t], inverse: &[$t], epsilon: f64, moments: &mut [Moments]) -> Result {
            moments_from_mean_inverse_std(n, mean, inverse, epsilon, moments)
        }
    };
}

macro_rules! type_of {
    ($t:ty, $plan:ident $set:ident $workspace:ident $running:ident) => {
        #[unsafe(no_mangle)]
        pub fn $plan(
            shape: Shape,
            epsilon: f64,
            activation: Activation,
            isa: IsaKind,
            one_value: bool,
        ) -> core::result::Result<BatchNorm<$t>, Error> {
            let mut bn = BatchNorm::new(shape, epsilon)?.with_activation(activation)?;
            if let Some(isa) = Isa::new(isa) {
                bn = bn.with_isa(isa);
            }
            Ok(if one_value { bn.allow_one_value() } else { bn })
        }

        #[unsafe(no_mangle)]
        pub fn $set(
            bn: &mut BatchNorm<$t>,
            activation: Activation,
            strides: Strides,
            isa: Isa,
            one_value: bool,
        ) -> Result {
            bn.set_activation(activation)?;
            bn.set_isa(isa);
            bn.set_one_value(one_value);
            bn.set_strides(strides)
        }

        #[unsafe(no_mangle)]
        pub fn $workspace(bn: &BatchNorm<$t>, op: Op, width: usize) -> (usize, usize) {
            (bn.workspace_min(op), bn.workspace_best(op, width))
        }

        #[unsafe(no_mangle)]
        pub fn $running(
            rule: &RunningStats,
            batch: &[Moments],
            mean: &mut [$t],
            var: &mut [$t],
            num_batches: Option<&mut u64>,
        ) -> core::result::Result<usize, Error> {
            rule.update(batch, mean, var, num_batches)
        }
    };
}

surface! { f32,
    f32_plan f32_set f32_training f32_training_in_place f32_training_uninit f32_moments f32_normalize f32_inference
    f32_inference_in_place f32_prepare f32_apply f32_apply_in_place f32_apply_plain f32_backward
    f32_backward_batch f32_backward_in_place f32_backward_sums f32_backward_apply f32_running_update
    f32_workspace
}
surface! { f64,
    f64_plan f64_set f64_training f64_training_in_place f64_training_uninit f64_moments f64_normalize f64_inference
    f64_inference_in_place f64_prepare f64_apply f64_apply_in_place f64_apply_plain f64_backward
    f64_backward_batch f64_backward_in_place f64_backward_sums f64_backward_apply f64_running_update
    f64_workspace
}

more! { f32,
    f32_strides f32_from_output f32_from_output_in_place f32_renorm_factors f32_renorm_affine
    f32_renorm_gradients f32_fold_running f32_fold_preceding f32_fold_transposed f32_fold_following
    f32_fold_scale_shift f32_to_mean_var f32_to_mean_inverse_std f32_from_mean_var f32_from_mean_inverse_std
}
more! { f64,
    f64_strides f64_from_output f64_from_output_in_place f64_renorm_factors f64_renorm_affine
    f64_renorm_gradients f64_fold_running f64_fold_preceding f64_fold_transposed f64_fold_following
    f64_fold_scale_shift f64_to_mean_var f64_to_mean_inverse_std f64_from_mean_var f64_from_mean_inverse_std
}

/// What only runs where threads share a call: an executor that is not known here, and tasks.
#[cfg(target_has_atomic = "ptr")]
macro_rules! shared {
    ($t:ty, $training_on:ident $inference_on:ident $backward_on:ident $training_tasks:ident $inference_tasks:ident
     $apply_tasks:ident $backward_tasks:ident $run_tasks:ident) => {
        #[unsafe(no_mangle)]
        pub fn $training_on(
            bn: &BatchNorm<$t>,
            x: &[$t],
            affine: &Affine<'_, $t>,
            y: &mut [$t],
            moments: &mut [Moments],
            executor: &dyn Executor,
            workspace: &mut [u64],
        ) -> Result {
            bn.forward_training(x, None, *affine, y, moments, Run::on(executor, workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $inference_on(
            bn: &BatchNorm<$t>,
            x: &[$t],
            affine: &Affine<'_, $t>,
            mean: &[$t],
            var: &[$t],
            y: &mut [$t],
            executor: &dyn Executor,
            workspace: &mut [u64],
        ) -> Result {
            bn.inference(x, None, *affine, mean, var, y, Run::on(executor, workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $backward_on(
            bn: &BatchNorm<$t>,
            input: BackwardInput<'_, $t>,
            output: Gradients<'_, $t>,
            executor: &dyn Executor,
            workspace: &mut [u64],
        ) -> Result {
            bn.backward(input, output, Run::on(executor, workspace))
        }

        #[unsafe(no_mangle)]
        pub fn $training_tasks<'a>(
            bn: &BatchNorm<$t>,
            x: &'a [$t],
            residual: Option<&'a [$t]>,
            affine: &Affine<'a, $t>,
            y: &'a mut [$t],
            moments: &'a mut [Moments],
            width: usize,
            workspace: &'a mut [u64],
        ) -> core::result::Result<Tasks<'a, $t>, Error> {
            bn.forward_training_tasks(x, residual, *affine, y, moments, width, workspace)
        }

        #[unsafe(no_mangle)]
        pub fn $inference_tasks<'a>(
            bn: &BatchNorm<$t>,
            x: &'a [$t],
            residual: Option<&'a [$t]>,
            affine: &Affine<'a, $t>,
            mean: &'a [$t],
            var: &'a [$t],
            y: &'a mut [$t],
            width: usize,
            workspace: &'a mut [u64],
        ) -> core::result::Result<Tasks<'a, $t>, Error> {
            bn.inference_tasks(x, residual, *affine, mean, var, y, width, workspace)
        }

        #[unsafe(no_mangle)]
        pub fn $apply_tasks<'a>(
            bn: &BatchNorm<$t>,
            x: &'a [$t],
            residual: Option<&'a [$t]>,
            prepared: &'a [Prepared<$t>],
            y: &'a mut [$t],
            width: usize,
            workspace: &'a mut [u64],
        ) -> core::result::Result<Tasks<'a, $t>, Error> {
            bn.apply_tasks(x, residual, prepared, y, width, workspace)
        }

        #[unsafe(no_mangle)]
        pub fn $backward_tasks<'a>(
            bn: &BatchNorm<$t>,
            input: BackwardInput<'a, $t>,
            output: Gradients<'a, $t>,
            width: usize,
            workspace: &'a mut [u64],
        ) -> core::result::Result<Tasks<'a, $t>, Error> {
            bn.backward_tasks(input, output, width, workspace)
        }

        #[unsafe(no_mangle)]
        pub fn $run_tasks(call: &mut Tasks<'_, $t>) -> Result {
            loop {
                for _ in 0..call.tasks() {
                    call.run_task();
                }
                if !call.advance()? {
                    return Ok(());
                }
            }
        }
    };
}
#[cfg(target_has_atomic = "ptr")]
shared! { f32,
    f32_training_on f32_inference_on f32_backward_on f32_training_tasks f32_inference_tasks f32_apply_tasks
    f32_backward_tasks f32_run_tasks
}
#[cfg(target_has_atomic = "ptr")]
shared! { f64,
    f64_training_on f64_inference_on f64_backward_on f64_training_tasks f64_inference_tasks f64_apply_tasks
    f64_backward_tasks f64_run_tasks
}

#[unsafe(no_mangle)]
pub fn shape_new(
    layout: bn_core::Layout,
    batch: usize,
    channels: usize,
    spatial: &[usize],
) -> core::result::Result<Shape, Error> {
    Shape::new(layout, batch, channels, spatial)
}

#[unsafe(no_mangle)]
pub fn shape_from_dims(layout: bn_core::Layout, dims: &[usize]) -> core::result::Result<Shape, Error> {
    Shape::from_dims(layout, dims)
}

#[unsafe(no_mangle)]
pub fn shape_stride_from_dims(layout: bn_core::Layout, dims: &[usize], strides: &[usize]) -> Option<Stride> {
    Stride::from_dims(layout, dims, strides)
}

#[unsafe(no_mangle)]
pub fn shape_span(stride: Stride, shape: &Shape) -> core::result::Result<usize, Error> {
    stride.span(shape)
}

#[unsafe(no_mangle)]
pub fn moments_merge(into: &mut [Moments], from: &[Moments]) -> Result {
    merge_moments(into, from)
}

#[unsafe(no_mangle)]
pub fn moments_push(m: &mut Moments, x: f64) {
    m.push(x)
}

#[unsafe(no_mangle)]
pub fn running_rule(momentum: Momentum, variance: Variance) -> core::result::Result<RunningStats, Error> {
    RunningStats::new(momentum, variance)
}

#[unsafe(no_mangle)]
pub fn running_without_bias(rule: RunningStats) -> RunningStats {
    rule.with_zero_debias()
}
