//! Calls cut into tasks, for task graphs.

use crate::backward::{BackwardInput, Gradients, Targets};
use crate::batch_norm::{Affine, BatchNorm, Output};
use crate::element::Element;
use crate::error::Error;
use crate::exec::{Body, Phase, Progress, Run, Shared};
use crate::inference::Prepared;
use crate::moments::Moments;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A call as phases of tasks, for a scheduler whose jobs must not wait for one another.
///
/// An [`Executor`](crate::Executor) is called and returns when a phase is done. This is the other way round: the
/// scheduler asks for the [`tasks`](Self::tasks) of a phase, calls [`run_task`](Self::run_task) once for
/// each, on any threads and in any order, and when all have returned goes on to the next phase with
/// [`advance`](Self::advance). The bits are those of the call itself.
///
/// However it is used there is no undefined behaviour: tasks that are run too often do nothing, and
/// `advance` is an error then, as it is before all tasks of a phase have been run. A call that is given up
/// leaves its outputs partly written.
///
/// ```
/// use bn_core::{Affine, BatchNorm, Moments, Op, Shape};
/// let bn = BatchNorm::<f32>::new(Shape::nhwc(4, 8, &[64, 64])?, 1e-5)?;
/// let x: Vec<f32> = (0..bn.shape().len()).map(|i| (i % 17) as f32).collect();
/// let (mut y, mut moments) = (vec![0.0; x.len()], vec![Moments::EMPTY; 8]);
/// let mut workspace = vec![0; bn.workspace_best(Op::ForwardTraining, 2)];
/// let mut call =
///     bn.forward_training_tasks(&x, None, Affine::NONE, &mut y[..], &mut moments, 2, &mut workspace)?;
/// loop {
///     std::thread::scope(|s| (0..call.tasks()).for_each(|_| drop(s.spawn(|| call.run_task()))));
///     if !call.advance()? {
///         break;
///     }
/// }
/// drop(call);
/// assert_eq!(moments[0].count, 4 * 64 * 64);
/// # Ok::<(), bn_core::Error>(())
/// ```
pub struct Tasks<'a, T: Element> {
    bn: BatchNorm<T>,
    call: Call<'a, T>,
    workspace: Shared<u64>,
    words: usize,
    width: usize,
    /// The number of the phase, and how it is cut; none when the call is done.
    index: usize,
    phase: Option<Phase>,
    progress: Progress,
    life: PhantomData<&'a mut [u64]>,
}

/// What is called.
#[allow(clippy::large_enum_variant, reason = "there is no heap to put the large one on")]
enum Call<'a, T: Element> {
    Training { at: Operands<T>, affine: Affine<'a, T::Param>, moments: Shared<Moments> },
    Inference { at: Operands<T>, affine: Affine<'a, T::Param>, mean: &'a [T::Param], var: &'a [T::Param] },
    Apply { at: Operands<T>, prepared: &'a [Prepared<T::Param>] },
    Backward { input: BackwardInput<'a, T>, targets: Targets<T> },
}

struct Operands<T> {
    x: *const T,
    residual: Option<*const T>,
    y: *mut T,
}

impl<T> Operands<T> {
    fn new(x: &[T], residual: Option<&[T]>, y: Output<'_, T>) -> Self {
        Operands { x: x.as_ptr(), residual: residual.map(<[T]>::as_ptr), y: y.ptr }
    }
}

// SAFETY: addresses of slices that are borrowed for as long as the call lives; its tasks write
// disjoint elements, phase by phase.
unsafe impl<T: Element> Send for Call<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for Call<'_, T> {}

impl<'a, T: Element> Tasks<'a, T> {
    /// The operands have been checked.
    fn new(bn: &BatchNorm<T>, call: Call<'a, T>, width: usize, workspace: &'a mut [u64]) -> Self {
        let (words, workspace) = (workspace.len(), Shared(workspace.as_mut_ptr()));
        let progress = Progress::default();
        let mut tasks =
            Tasks { bn: *bn, call, workspace, words, width, index: 0, phase: None, progress, life: PhantomData };
        tasks.phase = tasks.walk(None);
        tasks
    }

    /// Tasks of this phase; 0 when the call is done. At most the width that was asked for: what they
    /// work on they claim from a common counter.
    pub fn tasks(&self) -> usize {
        self.phase.map_or(0, |p| p.tickets)
    }

    /// Runs one of them: to be called [`tasks`](Self::tasks) times.
    pub fn run_task(&self) {
        if self.phase.is_some() {
            self.walk(Some(&self.progress));
        }
    }

    /// On to the next phase: `false` where there is none, and all is written.
    ///
    /// # Errors
    /// [`Error::Executor`] where not every task of this phase has run exactly once.
    pub fn advance(&mut self) -> Result<bool, Error> {
        if let Some(phase) = self.phase {
            self.progress.check(phase)?;
            self.index += 1;
            self.progress = Progress::default();
            self.phase = self.walk(None);
        }
        Ok(self.phase.is_some())
    }

    /// Goes through the call to its phase of this number, if there is one, and runs one of its tickets,
    /// if progress is given.
    fn walk(&self, progress: Option<&Progress>) -> Option<Phase> {
        let zero = || AtomicUsize::new(0);
        let only = Only { index: self.index, progress, passed: zero(), tickets: zero(), cells: zero() };
        // SAFETY: the operands have been checked and are borrowed, the workspace as well; threads run
        // tickets of one phase at a time, as `advance` borrows mutably.
        unsafe {
            let run = &mut Run::only(self.workspace, self.words, self.width, &only);
            let bn = &self.bn;
            let walked = match &self.call {
                Call::Training { at, affine, moments } => {
                    bn.forward_at(at.x, at.residual, *affine, *moments, at.y, run)
                }
                Call::Inference { at, affine, mean, var } => {
                    bn.inference_at(at.x, at.residual, affine, mean, var, at.y, run)
                }
                Call::Apply { at, prepared } => bn.apply_prepared_at(at.x, at.residual, prepared, at.y, run),
                Call::Backward { input, targets } => bn.backward_at(&bn.view(input, input.dy.as_ptr()), targets, run),
            };
            debug_assert!(walked.is_ok(), "a walk has no executor that could fail");
        }
        let [passed, tickets, cells] = [only.passed, only.tickets, only.cells].map(AtomicUsize::into_inner);
        (passed > self.index).then_some(Phase { tickets, cells, slot: 0 })
    }
}

/// Lets one phase of a call through, which does nothing but in its phases.
pub(crate) struct Only<'a> {
    /// The number of the phase.
    index: usize,
    /// Of the phase, if one of its tickets is to be run.
    progress: Option<&'a Progress>,
    /// Phases that the walk has come by.
    passed: AtomicUsize,
    /// How the phase is cut.
    tickets: AtomicUsize,
    cells: AtomicUsize,
}

impl Only<'_> {
    /// # Safety
    /// From `base` on there are the slots of the phase, which nothing but its tickets uses.
    pub(crate) unsafe fn pass(&self, phase: Phase, base: Shared<u64>, body: &dyn Body) {
        if self.passed.fetch_add(1, Relaxed) == self.index {
            self.tickets.store(phase.tickets, Relaxed);
            self.cells.store(phase.cells, Relaxed);
            if let Some(progress) = self.progress {
                // SAFETY: by the caller.
                unsafe { progress.ticket(phase, base, body) };
            }
        }
    }
}

impl<T: Element> BatchNorm<T> {
    /// [`forward_training`](Self::forward_training) as tasks, `width` of them at once at most.
    ///
    /// # Errors
    /// As there; [`Error::Executor`] is for [`Tasks::advance`].
    #[allow(clippy::too_many_arguments, reason = "the operands of the operation")]
    pub fn forward_training_tasks<'a>(
        &self,
        x: &'a [T],
        residual: Option<&'a [T]>,
        affine: Affine<'a, T::Param>,
        y: impl Into<Output<'a, T>>,
        moments: &'a mut [Moments],
        width: usize,
        workspace: &'a mut [u64],
    ) -> Result<Tasks<'a, T>, Error>
    where
        T: 'a,
    {
        let y = y.into();
        self.check_training(x, residual, &affine, &y, moments, workspace.len())?;
        let at = Operands::new(x, residual, y);
        let call = Call::Training { at, affine, moments: Shared(moments.as_mut_ptr()) };
        Ok(Tasks::new(self, call, width, workspace))
    }

    /// [`inference`](Self::inference) as tasks.
    ///
    /// # Errors
    /// As there; [`Error::Executor`] is for [`Tasks::advance`].
    #[allow(clippy::too_many_arguments, reason = "the operands of the operation")]
    pub fn inference_tasks<'a>(
        &self,
        x: &'a [T],
        residual: Option<&'a [T]>,
        affine: Affine<'a, T::Param>,
        running_mean: &'a [T::Param],
        running_var: &'a [T::Param],
        y: impl Into<Output<'a, T>>,
        width: usize,
        workspace: &'a mut [u64],
    ) -> Result<Tasks<'a, T>, Error>
    where
        T: 'a,
    {
        let y = y.into();
        let lengths = Self::forward_lengths(x, residual, Some(&y));
        self.check_inference(&lengths, &affine, running_mean, running_var, workspace.len())?;
        let at = Operands::new(x, residual, y);
        let call = Call::Inference { at, affine, mean: running_mean, var: running_var };
        Ok(Tasks::new(self, call, width, workspace))
    }

    /// [`apply`](Self::apply) as tasks.
    ///
    /// # Errors
    /// As there; [`Error::Executor`] is for [`Tasks::advance`].
    pub fn apply_tasks<'a>(
        &self,
        x: &'a [T],
        residual: Option<&'a [T]>,
        prepared: &'a [Prepared<T::Param>],
        y: impl Into<Output<'a, T>>,
        width: usize,
        workspace: &'a mut [u64],
    ) -> Result<Tasks<'a, T>, Error>
    where
        T: 'a,
    {
        let y = y.into();
        self.check_apply(&Self::forward_lengths(x, residual, Some(&y)), prepared, workspace.len())?;
        let at = Operands::new(x, residual, y);
        Ok(Tasks::new(self, Call::Apply { at, prepared }, width, workspace))
    }

    /// [`backward`](Self::backward) as tasks.
    ///
    /// # Errors
    /// As there; [`Error::Executor`] is for [`Tasks::advance`].
    pub fn backward_tasks<'a>(
        &self,
        input: BackwardInput<'a, T>,
        output: Gradients<'a, T>,
        width: usize,
        workspace: &'a mut [u64],
    ) -> Result<Tasks<'a, T>, Error> {
        self.check_whole_backward(&input, &output, workspace.len())?;
        let call = Call::Backward { input, targets: output.targets() };
        Ok(Tasks::new(self, call, width, workspace))
    }
}
