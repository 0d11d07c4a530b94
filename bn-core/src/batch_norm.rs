//! The plan of a batch normalization: what is validated once and run many times.

use crate::activation::{Activation, Rectifier};
use crate::backward::SUM_WORDS;
use crate::element::{Element, Param};
use crate::engine::Engine;
use crate::error::{Error, length};
use crate::isa::Isa;
use crate::layout::Place;
use crate::shape::{Operand, Shape, Stride, Strides};
use core::marker::PhantomData;
use core::mem::MaybeUninit;

/// A batch normalization of tensors of one shape and element type: small, `Copy`, checked once.
///
/// The operations are methods: [`forward_training`](Self::forward_training),
/// [`inference`](Self::inference), [`backward`](Self::backward), and the stages that they are made
/// of. All take raw slices, allocate nothing and do not panic; errors come before anything is
/// written, but [`Error::Executor`].
///
/// ```
/// use bn_core::{Affine, BatchNorm, Moments, Run, Shape};
///
/// // Two positions of two channels: 1 and 3, 10 and 30.
/// let bn = BatchNorm::<f32>::new(Shape::nhwc(1, 2, &[2])?, 0.0)?;
/// let x = [1.0, 10.0, 3.0, 30.0];
/// let mut y = [0.0; 4];
/// let mut moments = [Moments::EMPTY; 2];
/// let mut workspace = [0; 1024];
/// bn.forward_training(&x, None, Affine::NONE, &mut y[..], &mut moments, Run::serial(&mut workspace))?;
/// assert_eq!((moments[1].mean, moments[1].m2), (20.0, 200.0));
/// assert_eq!(y, [-1.0, -1.0, 1.0, 1.0]);
/// # Ok::<(), bn_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<T: Element> {
    pub(crate) shape: Shape,
    /// Resolved, by operand.
    strides: [Stride; 6],
    /// [`Strides::given`].
    strided: u8,
    pub(crate) epsilon: f64,
    pub(crate) activation: Activation,
    /// The same for the kernels.
    pub(crate) rectifier: Rectifier<T::Param>,
    pub(crate) one_value: bool,
    pub(crate) engine: Engine,
    element: PhantomData<T>,
}

/// Channels whose sums the smallest workspace of a backward pass holds: enough of a row to fill
/// vectors.
const MIN_BAND: usize = 64;

/// An operation, when its workspace is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// [`BatchNorm::forward_training`], and [`BatchNorm::moments`] and [`BatchNorm::normalize`].
    ForwardTraining,
    /// [`BatchNorm::inference`] and [`BatchNorm::apply`]. ([`BatchNorm::prepare`] takes no workspace.)
    Inference,
    /// [`BatchNorm::backward`], with any statistics, its two stages, and [`BatchNorm::backward_from_output`].
    Backward,
}

impl<T: Element> BatchNorm<T> {
    /// A plan for this shape: no activation, the best ISA of this CPU.
    ///
    /// Epsilon is added to the biased variance, as everywhere, and so in units of x²; 0 is legal.
    ///
    /// # Errors
    /// [`Error::Epsilon`] where it is negative, infinite or NaN.
    pub fn new(shape: Shape, epsilon: f64) -> Result<Self, Error> {
        Self::of(shape, epsilon, Activation::Identity, Strides::DENSE, Isa::detect(), false)
    }

    /// All of a plan at once, so that it is made where it stays: with the [errors](Error) of its caller.
    #[inline(always)]
    pub(crate) fn of<E: From<Error>>(
        shape: Shape,
        epsilon: f64,
        activation: Activation,
        strides: Strides,
        isa: Isa,
        one_value: bool,
    ) -> Result<Self, E> {
        crate::error::epsilon(epsilon)?;
        activation.check::<T::Param>()?;
        let strided = strides.given();
        let strides = strides.resolve(&shape)?;
        Ok(BatchNorm {
            shape,
            strides,
            strided,
            epsilon,
            activation,
            rectifier: Rectifier::new::<T>(activation),
            one_value,
            engine: Engine::new::<T>(shape, &strides, isa),
            element: PhantomData,
        })
    }

    /// With an activation of the result: y = act(γ·x̂ + β + residual).
    ///
    /// # Errors
    /// [`Error::Activation`] where its parameters make no sense.
    pub fn with_activation(mut self, activation: Activation) -> Result<Self, Error> {
        self.set_activation(activation)?;
        Ok(self)
    }

    /// As [`with_activation`](Self::with_activation), in place: nothing is moved, which counts where the stack is small.
    /// Nor has anything changed where it fails.
    ///
    /// # Errors
    /// As there.
    pub fn set_activation(&mut self, activation: Activation) -> Result<(), Error> {
        activation.check::<T::Param>()?;
        self.activation = activation;
        self.rectifier = Rectifier::new::<T>(activation);
        Ok(())
    }

    /// With an ISA chosen by hand. The results are the same on each.
    pub fn with_isa(mut self, isa: Isa) -> Self {
        self.set_isa(isa);
        self
    }

    /// As [`with_isa`](Self::with_isa), in place.
    pub fn set_isa(&mut self, isa: Isa) {
        self.engine.isa = isa;
        // What is staged is another's where elements are taken one by one.
        self.engine.stride::<T>(&self.strides);
    }

    /// With operands that are parts of larger tensors. Results are those of dense operands, bit for bit;
    /// where runs are at least a vector long (16 elements), so is the speed, but for NHWC beyond the caches: only dense rows are
    /// written past them.
    ///
    /// A strided operand's slice starts at its first element and reaches at least to its last; what
    /// lies between its runs, and behind them, is neither read nor written.
    ///
    /// # Errors
    /// [`Error::Stride`] where elements would overlap, or reach beyond the address space.
    pub fn with_strides(mut self, strides: Strides) -> Result<Self, Error> {
        self.set_strides(strides)?;
        Ok(self)
    }

    /// As [`with_strides`](Self::with_strides), in place: nothing has changed where it fails.
    ///
    /// # Errors
    /// As there.
    pub fn set_strides(&mut self, strides: Strides) -> Result<(), Error> {
        self.strides = strides.resolve(&self.shape)?;
        self.strided = strides.given();
        self.engine.stride::<T>(&self.strides);
        Ok(())
    }

    /// Allows training on a single value per channel, whose variance is 0, so that y = β (plus
    /// residual). Without this that is [`Error::TooFewValues`], as in PyTorch.
    pub fn allow_one_value(mut self) -> Self {
        self.set_one_value(true);
        self
    }

    /// Whether that is allowed, in place.
    pub fn set_one_value(&mut self, allowed: bool) {
        self.one_value = allowed;
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }
    /// The strides, with zeros replaced by what they mean.
    pub fn strides(&self) -> Strides {
        let [x, y, residual, dy, dx, dresidual] = self.strides;
        Strides { x, y, residual, dy, dx, dresidual }
    }
    fn stride(&self, operand: Operand) -> Stride {
        // There is one of each.
        self.strides.get(operand as usize).copied().unwrap_or_default()
    }
    /// What is added to the variance.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }
    /// The activation.
    pub fn activation(&self) -> Activation {
        self.activation
    }
    /// The instructions in use.
    pub fn isa(&self) -> Isa {
        self.engine.isa
    }

    /// Words of workspace that an operation needs: at most 1024 (8 KB), however many channels there
    /// are.
    pub fn workspace_min(&self, op: Op) -> usize {
        let e = &self.engine;
        match op {
            Op::ForwardTraining => e.reduce_min::<T, 1, 2>().max(e.map_min::<T, 3>()),
            Op::Inference => e.map_min::<T, 3>(),
            Op::Backward => {
                let kept = if e.whole() { self.shape.channels() } else { MIN_BAND.min(self.shape.channels()) };
                kept * SUM_WORDS + self.backward_scratch()
            }
        }
    }

    /// Words of workspace beyond which more does not help, with `width` threads
    /// ([`crate::Executor::width`]): at most 8192 (64 KB) per thread, and beyond that per channel, for all threads
    /// together, 96 (768 bytes) for sums with more than one thread and 64 (512 bytes) for the constants of many
    /// channels; backward keeps 3 (24 bytes) per channel between its passes. Tensors too small for threads need what one does.
    pub fn workspace_best(&self, op: Op, width: usize) -> usize {
        let e = &self.engine;
        let width = e.worth(width);
        match op {
            Op::ForwardTraining => e.reduce_best::<T, 1, 2>(width).max(e.map_best::<T, 3>(width)),
            Op::Inference => e.map_best::<T, 3>(width),
            Op::Backward => {
                let scratch = e.reduce_best::<T, 2, 3>(width).max(e.map_best::<T, 5>(width));
                scratch.saturating_add(self.shape.channels().saturating_mul(SUM_WORDS))
            }
        }
    }

    /// The lengths of tensors and of arrays with an entry per channel, which may be [`ABSENT`], and of the workspace. One
    /// function with loops: a check where an argument comes by is as much code as what is done with it.
    #[cfg_attr(target_os = "none", inline(never))]
    pub(crate) fn check(
        &self,
        tensors: &[(Operand, usize)],
        arrays: &[(&'static str, usize)],
        words: usize,
        workspace: usize,
    ) -> Result<(), Error> {
        debug_assert!(default_floating_point(), "bn-core needs round-to-nearest without flush-to-zero");
        for &(operand, got) in tensors {
            // A dense operand has its length; one that was given a stride at least reaches its last element.
            let span = self.stride(operand).resolved_span(&self.shape);
            let strided = self.strided >> operand as u32 & 1 == 1;
            if got != ABSENT && (!strided || got < span) {
                length(operand.name(), got, span)?;
            }
        }
        for &(what, got) in arrays {
            if got != ABSENT {
                length(what, got, self.shape.channels())?;
            }
        }
        if workspace < words { Err(Error::Workspace { expected: words, got: workspace }) } else { Ok(()) }
    }

    /// A call in place writes where it reads.
    pub(crate) fn check_in_place(&self, input: Operand, output: Operand) -> Result<(), Error> {
        let (input, output) = (self.stride(input), self.stride(output));
        if input == output { Ok(()) } else { Err(Error::InPlaceStrides { input, output }) }
    }

    pub(crate) fn place(&self, operand: Operand, ptr: *const T) -> Place<T> {
        self.engine.place(ptr.cast_mut(), self.stride(operand))
    }
}

/// Whether subnormals are kept and ties go to even: a precondition, checked in debug builds.
fn default_floating_point() -> bool {
    let black_box = core::hint::black_box::<f32>;
    let subnormal = black_box(f32::MIN_POSITIVE) * black_box(0.5);
    let (up, down) = (black_box(1.0) + black_box(6.0e-8), black_box(-1.0) - black_box(6.0e-8));
    subnormal > 0.0
        && up == 1.0 + f32::EPSILON
        && down == -1.0 - f32::EPSILON
        && black_box(1.0) + black_box(5.9e-8) == 1.0
}

/// gamma and beta, one per channel, each optional: absent, gamma is 1 and beta is 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Affine<'a, P> {
    /// The factor of each channel.
    pub gamma: Option<&'a [P]>,
    /// What is added to each channel.
    pub beta: Option<&'a [P]>,
}

impl<'a, P: Param> Affine<'a, P> {
    /// Neither.
    pub const NONE: Affine<'a, P> = Affine { gamma: None, beta: None };

    /// Both.
    pub fn new(gamma: &'a [P], beta: &'a [P]) -> Self {
        Affine { gamma: Some(gamma), beta: Some(beta) }
    }

    /// For [`BatchNorm::check`].
    pub(crate) fn lengths(&self) -> [(&'static str, usize); 2] {
        [("gamma", length_of(self.gamma)), ("beta", length_of(self.beta))]
    }

    #[inline(always)]
    pub(crate) fn gamma(&self, c: usize) -> f64 {
        entry(self.gamma, c, 1.0)
    }
    #[inline(always)]
    pub(crate) fn beta(&self, c: usize) -> f64 {
        entry(self.beta, c, 0.0)
    }
}

/// The length of what is not there: no slice has it.
pub(crate) const ABSENT: usize = usize::MAX;

/// A length for [`BatchNorm::check`].
#[inline(always)]
pub(crate) fn length_of<P>(slice: Option<&[P]>) -> usize {
    slice.map_or(ABSENT, <[P]>::len)
}

/// Entry `c` of a slice whose length has been checked, without a panicking path.
#[inline(always)]
pub(crate) fn entry<P: Param>(slice: Option<&[P]>, c: usize, absent: f64) -> f64 {
    slice.and_then(|s| s.get(c)).map_or(absent, |v| v.to_f64())
}

/// Where results go: `&mut [T]`, or `&mut [MaybeUninit<T>]`, of which all elements of the tensor are then initialised: all of the slice where
/// the operand is dense, and not the gaps, nor what lies behind, where it has [`Strides`].
pub struct Output<'a, T> {
    pub(crate) ptr: *mut T,
    pub(crate) len: usize,
    pub(crate) life: PhantomData<&'a mut [T]>,
}

impl<T> Output<'_, T> {
    /// Elements that it has room for.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there is room for none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<'a, T> From<&'a mut [T]> for Output<'a, T> {
    fn from(s: &'a mut [T]) -> Self {
        Output { ptr: s.as_mut_ptr(), len: s.len(), life: PhantomData }
    }
}

impl<'a, T> From<&'a mut [MaybeUninit<T>]> for Output<'a, T> {
    fn from(s: &'a mut [MaybeUninit<T>]) -> Self {
        Output { ptr: s.as_mut_ptr().cast(), len: s.len(), life: PhantomData }
    }
}

impl<'a, T, const N: usize> From<&'a mut [T; N]> for Output<'a, T> {
    fn from(s: &'a mut [T; N]) -> Self {
        Output::from(&mut s[..])
    }
}
