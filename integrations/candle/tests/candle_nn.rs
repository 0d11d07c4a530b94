//! Against candle-nn's layer and candle's automatic differentiation, in f64.

use bn_candle::{BatchNorm, inference, training};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Error, ModuleT, Result, Tensor, Var};
use candle_nn::{BatchNormConfig, VarBuilder, VarMap};

const CPU: Device = Device::Cpu;
const EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;
const SHAPES: [&[usize]; 7] =
    [&[2, 1], &[7, 3], &[64, 33], &[5, 4, 6], &[3, 5, 4, 7], &[4, 17, 9, 8], &[2, 3, 2, 3, 4]];

/// Numbers of about −1 to 1 that are exact in every type of 8 bits or more of mantissa.
fn numbers(seed: u64, dims: &[usize]) -> Result<Tensor> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 56) as f64 - 127.0) / 128.0
    };
    let values: Vec<f64> = std::iter::repeat_with(next).take(dims.iter().product()).collect();
    Tensor::from_vec(values, dims, &CPU)
}

/// How far two tensors are apart, relative to the largest of the second and 1.
fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    assert_eq!(a.dims(), b.dims());
    let largest = b.abs()?.max_all()?.to_scalar::<f64>()?;
    // NaN counts as far.
    let values = (a - b)?.abs()?.flatten_all()?.to_vec1::<f64>()?;
    let far = values.into_iter().fold(0.0, |far, v| if v > far || v.is_nan() { v } else { far });
    Ok(far / largest.max(1.0))
}

#[track_caller]
fn near(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) -> Result<()> {
    let distance = distance(a, b)?;
    assert!(distance <= tolerance, "{what} of {:?}: {distance:e} > {tolerance:e}", b.shape());
    Ok(())
}

/// What y may differ by: rounding to the type, and for f32 the contract of bn-core.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-13,
        DType::F32 => 2e-6,
        DType::F16 => 1.0 / 2048.0,
        _ => 1.0 / 256.0,
    }
}

fn parameter_type(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The same numbers for both layers, in f64 and in the type to be tested.
struct Case {
    x: Var,
    gamma: Var,
    beta: Var,
    mean: Tensor,
    var: Tensor,
    /// Factors of y in the loss.
    weights: Tensor,
}

impl Case {
    fn new(dims: &[usize], dtype: DType) -> Result<Case> {
        let parameters = parameter_type(dtype);
        let parameter = |seed, mean: f64| (numbers(seed, &dims[1..2])? + mean)?.to_dtype(parameters);
        Ok(Case {
            x: Var::from_tensor(&(numbers(1, dims)? + 0.5)?.to_dtype(dtype)?)?,
            gamma: Var::from_tensor(&parameter(2, 1.5)?)?,
            beta: Var::from_tensor(&parameter(3, 0.0)?)?,
            mean: parameter(4, 0.0)?,
            var: parameter(5, 1.5)?,
            weights: numbers(6, dims)?.to_dtype(dtype)?,
        })
    }

    fn wide(&self) -> Result<Case> {
        let wide = |t: &Tensor| t.detach().to_dtype(DType::F64);
        Ok(Case {
            x: Var::from_tensor(&wide(&self.x)?)?,
            gamma: Var::from_tensor(&wide(&self.gamma)?)?,
            beta: Var::from_tensor(&wide(&self.beta)?)?,
            mean: wide(&self.mean)?,
            var: wide(&self.var)?,
            weights: wide(&self.weights)?,
        })
    }

    fn affine(&self) -> (Tensor, Tensor) {
        (self.gamma.as_tensor().clone(), self.beta.as_tensor().clone())
    }

    fn ours(&self) -> Result<BatchNorm> {
        BatchNorm::new(&self.mean, &self.var, Some(self.affine()), EPSILON, MOMENTUM)
    }

    fn theirs(&self) -> Result<candle_nn::BatchNorm> {
        let (channels, (gamma, beta)) = (self.mean.dims()[0], self.affine());
        candle_nn::BatchNorm::new(channels, self.mean.clone(), self.var.clone(), gamma, beta, EPSILON)
    }

    fn gradients(&self, y: &Tensor) -> Result<GradStore> {
        (y * &self.weights)?.sum_all()?.backward()
    }
}

/// The gradients of x, gamma and beta, within so much; they are sums, so their rounding is that of many.
#[track_caller]
fn near_gradients(a: (&Case, &GradStore), b: (&Case, &GradStore), tolerance: f64) -> Result<()> {
    let pairs = [("dx", &a.0.x, &b.0.x), ("dgamma", &a.0.gamma, &b.0.gamma), ("dbeta", &a.0.beta, &b.0.beta)];
    for (what, ours, theirs) in pairs {
        near(what, a.1.get(ours).expect(what), b.1.get(theirs).expect(what), tolerance)?;
    }
    Ok(())
}

#[test]
fn training_agrees_in_every_type() -> Result<()> {
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        for dims in SHAPES {
            let case = Case::new(dims, dtype)?;
            let exact = case.wide()?;
            let (ours, theirs) = (case.ours()?, exact.theirs()?);
            // Twice: the running statistics go on from where they are.
            for _ in 0..2 {
                let (y, right) = (ours.forward_t(&case.x, true)?, theirs.forward_t(&exact.x, true)?);
                assert_eq!(y.dtype(), dtype);
                near("y", &y, &right, tolerance(dtype))?;
                let gradients = (case.gradients(&y)?, exact.gradients(&right)?);
                near_gradients((&case, &gradients.0), (&exact, &gradients.1), tolerance(dtype))?;
            }
            let parameters = tolerance(parameter_type(dtype));
            near("running_mean", ours.running_mean(), theirs.running_mean(), parameters)?;
            near("running_var", ours.running_var(), theirs.running_var(), parameters)?;
        }
    }
    Ok(())
}

#[test]
fn inference_agrees_in_every_type() -> Result<()> {
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        for dims in SHAPES {
            let case = Case::new(dims, dtype)?;
            let exact = case.wide()?;
            let (ours, theirs) = (case.ours()?, exact.theirs()?);
            let (y, right) = (ours.forward_t(&case.x, false)?, theirs.forward_t(&exact.x, false)?);
            near("y", &y, &right, tolerance(dtype))?;
            // The statistics of the forward pass, also when they have moved before the backward pass.
            ours.forward_t(&case.x, true)?;
            let gradients = (case.gradients(&y)?, exact.gradients(&right)?);
            near_gradients((&case, &gradients.0), (&exact, &gradients.1), tolerance(dtype))?;
            assert!(gradients.0.get(ours.running_mean()).is_none(), "the statistics are constants");
        }
    }
    Ok(())
}

/// Views of a tensor of 6×8×5×4, and whether bn-core can read them as they lie with channels second, so that the bits are
/// those of the copy.
type View = fn(&Tensor) -> Result<Tensor>;
const VIEWS: [(&str, bool, View); 11] = [
    ("channels of a wider tensor", true, |x| x.narrow(1, 2, 3)),
    ("images of a longer one", true, |x| x.narrow(0, 1, 4)),
    ("rows of planes", true, |x| x.narrow(2, 1, 3)),
    ("columns of planes", true, |x| x.narrow(3, 1, 2)),
    ("channels before images", true, |x| x.transpose(0, 1)),
    ("channels last", false, |x| x.permute((0, 3, 1, 2))),
    ("channels of channels last", false, |x| x.permute((0, 3, 1, 2))?.narrow(1, 1, 2)),
    ("transposed planes", true, |x| x.transpose(2, 3)),
    ("broadcast images", true, |x| x.narrow(0, 0, 1)?.expand((3, 8, 5, 4))),
    ("one position", true, |x| x.narrow(2, 3, 1)?.narrow(3, 2, 1)),
    ("transposed rows", true, |x| x.flatten_from(1)?.t()),
];

#[test]
fn views_give_what_their_copies_give() -> Result<()> {
    for (name, same_bits, view) in VIEWS {
        let base = Var::from_tensor(&numbers(7, &[6, 8, 5, 4])?.to_dtype(DType::F32)?)?;
        let exact_base = Var::from_tensor(&base.detach().to_dtype(DType::F64)?)?;
        let (x, exact) = (view(&base)?, view(&exact_base)?);
        assert!(!x.is_contiguous() || name == "images of a longer one", "{name}");
        let case = Case::new(x.dims(), DType::F32)?;
        let wide = case.wide()?;
        let (gamma, beta) = (case.gamma.as_tensor(), case.beta.as_tensor());

        let (y, moments) = training(&x, Some((gamma, beta)), EPSILON)?;
        let (copied, moments_copied) = training(&x.contiguous()?, Some((gamma, beta)), EPSILON)?;
        let eval = inference(&x, Some((gamma, beta)), &case.mean, &case.var, EPSILON)?;
        let bits = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        if same_bits {
            assert_eq!(bits(&y)?, bits(&copied)?, "{name}");
            assert_eq!(moments, moments_copied, "{name}");
        }
        let right = wide.theirs()?.forward_t(&exact, true)?;
        near(name, &y, &right, tolerance(DType::F32))?;
        near(name, &eval, &wide.theirs()?.forward_t(&exact, false)?, tolerance(DType::F32))?;

        // To the tensor behind the view. dy comes in a view's order, too.
        let permuted = |y: &Tensor, weights: &Tensor| {
            let flip = |t: &Tensor| t.transpose(0, 1);
            (flip(y)? * flip(weights)?)?.sum_all()?.backward()
        };
        let gradients = (permuted(&y, &case.weights)?, permuted(&right, &wide.weights)?);
        near(name, gradients.0.get(&base).unwrap(), gradients.1.get(&exact_base).unwrap(), tolerance(DType::F32))?;
        near(name, gradients.0.get(gamma).unwrap(), gradients.1.get(&wide.gamma).unwrap(), tolerance(DType::F32))?;
    }
    Ok(())
}

/// A view that has elements twice: no strides of an operand are like that, so it is copied.
#[test]
fn windows_that_overlap() -> Result<()> {
    let x = numbers(9, &[20, 3])?.to_dtype(DType::F32)?.unfold(0, 8, 4)?;
    assert_eq!((x.dims(), x.stride()), (&[4, 3, 8][..], &[12, 1, 3][..]));
    let (y, moments) = training(&x, None, EPSILON)?;
    let (copied, moments_copied) = training(&x.contiguous()?, None, EPSILON)?;
    assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, copied.flatten_all()?.to_vec1::<f32>()?);
    assert_eq!(moments, moments_copied);
    Ok(())
}

#[test]
fn channels_last_stays_channels_last() -> Result<()> {
    let x = numbers(1, &[3, 5, 4, 8])?.permute((0, 3, 1, 2))?;
    let (y, _) = training(&x, None, EPSILON)?;
    assert_eq!(y.stride(), x.stride());
    // The gradient of a sum is broadcast from one number, which no stride of bn-core means.
    let x = Var::from_tensor(&x)?;
    let (y, _) = training(&x, None, EPSILON)?;
    let gradients = y.sum_all()?.backward()?;
    near("dx", gradients.get(&x).unwrap(), &x.zeros_like()?, 1e-12)
}

#[test]
fn large_means_cost_no_digits() -> Result<()> {
    let dims = [8, 3, 6, 6];
    let x = (numbers(1, &dims)? + 30_000.0)?.to_dtype(DType::F32)?;
    let case = Case { x: Var::from_tensor(&x)?, ..Case::new(&dims, DType::F32)? };
    let exact = case.wide()?;
    let (y, right) = (case.ours()?.forward_t(&case.x, true)?, exact.theirs()?.forward_t(&exact.x, true)?);
    near("y", &y, &right, 2e-6)?;
    let gradients = (case.gradients(&y)?, exact.gradients(&right)?);
    near_gradients((&case, &gradients.0), (&exact, &gradients.1), 2e-6)?;
    // What the case is for.
    assert!(distance(&case.theirs()?.forward_t(&case.x, true)?, &right)? > 1e-4);
    Ok(())
}

#[test]
fn without_gamma_and_beta() -> Result<()> {
    let case = Case::new(&[5, 4, 6], DType::F32)?;
    let exact = case.wide()?;
    let ours = BatchNorm::new(&case.mean, &case.var, None, EPSILON, MOMENTUM)?;
    let theirs = candle_nn::BatchNorm::new_no_bias(4, exact.mean.clone(), exact.var.clone(), EPSILON)?;
    for train in [true, false] {
        let (y, right) = (ours.forward_t(&case.x, train)?, theirs.forward_t(&exact.x, train)?);
        near("y", &y, &right, tolerance(DType::F32))?;
        let gradients = (case.gradients(&y)?, exact.gradients(&right)?);
        near("dx", gradients.0.get(&case.x).unwrap(), gradients.1.get(&exact.x).unwrap(), tolerance(DType::F32))?;
    }
    Ok(())
}

#[test]
fn only_what_is_tracked_has_gradients() -> Result<()> {
    let case = Case::new(&[5, 4, 6], DType::F32)?;
    let exact = case.wide()?;
    let x = case.x.detach();
    let (y, _) = training(&x, Some((&case.gamma, &case.beta.detach())), EPSILON)?;
    let right = exact.theirs()?.forward_t(&exact.x, true)?;
    let gradients = (case.gradients(&y)?, exact.gradients(&right)?);
    near("dgamma", gradients.0.get(&case.gamma).unwrap(), gradients.1.get(&exact.gamma).unwrap(), 2e-6)?;
    assert!(gradients.0.get(&x).is_none() && gradients.0.get(&case.beta).is_none());
    Ok(())
}

#[test]
fn checkpoints_are_candles() -> Result<()> {
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &CPU);
    let config = BatchNormConfig { momentum: 0.25, ..Default::default() };
    let ours = BatchNorm::load(4, config, vb.clone())?;
    let x = numbers(8, &[6, 4, 5])?.to_dtype(DType::F32)?;
    ours.forward_t(&x, true)?;
    // The variables of the map are those of the layer.
    let theirs = candle_nn::batch_norm(4, config, vb)?;
    assert_eq!(theirs.running_var().to_vec1::<f32>()?, ours.running_var().to_vec1::<f32>()?);
    assert_ne!(ours.running_var().to_vec1::<f32>()?, [1.0; 4]);
    near("y", &ours.forward_t(&x, false)?, &theirs.forward_t(&x, false)?, 1e-6)
}

#[test]
fn threads_change_no_bit() -> Result<()> {
    let case = Case::new(&[8, 16, 40, 40], DType::F32)?;
    let results = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let y = case.ours()?.forward_t(&case.x, true)?;
            let gradients = case.gradients(&y)?;
            let all = [&y, gradients.get(&case.x).unwrap(), gradients.get(&case.gamma).unwrap()];
            all.map(|t| t.flatten_all()?.to_vec1::<f32>()).into_iter().collect::<Result<Vec<_>>>()
        })
    };
    assert_eq!(results(1)?, results(3)?);
    Ok(())
}

fn of_core(error: Error) -> bn_core::Error {
    match error {
        Error::WrappedContext { wrapped, .. } => *wrapped.downcast().expect("bn-core's"),
        Error::WithBacktrace { inner, .. } => of_core(*inner),
        other => panic!("{other}"),
    }
}

fn without_backtrace(error: Error) -> Error {
    match error {
        Error::WithBacktrace { inner, .. } => *inner,
        other => other,
    }
}

#[test]
fn errors_are_candles() -> Result<()> {
    let case = Case::new(&[5, 4, 6], DType::F32)?;
    let layer = case.ours()?;
    let x = case.x.as_tensor();
    let affine = Some((case.gamma.as_tensor(), case.beta.as_tensor()));
    let fails = |x: &Tensor| [true, false].map(|train| without_backtrace(layer.forward_t(x, train).unwrap_err()));

    for error in fails(&x.to_dtype(DType::U32)?) {
        assert!(matches!(error, Error::UnsupportedDTypeForOp(DType::U32, "batch-norm")), "{error}");
    }
    for error in fails(&x.to_dtype(DType::F64)?) {
        let right = matches!(error, Error::UnexpectedDType { expected: DType::F64, got: DType::F32, .. });
        assert!(right, "{error}");
    }
    for error in fails(&x.flatten_all()?) {
        assert!(error.to_string().contains("at least two dimensions"), "{error}");
    }
    for error in fails(&x.narrow(1, 0, 3)?) {
        assert_eq!(of_core(error), bn_core::Error::Length { what: "gamma", expected: 3, got: 4 });
    }
    for error in fails(&Tensor::zeros((5, 0, 6), DType::F32, &CPU)?) {
        assert_eq!(of_core(error), bn_core::Error::NoChannels);
    }
    let one = training(&x.narrow(0, 0, 1)?.narrow(2, 0, 1)?, affine, EPSILON).unwrap_err();
    assert_eq!(of_core(one), bn_core::Error::TooFewValues { expected: 2, got: 1 });
    let none = training(&Tensor::zeros((0, 4, 6), DType::F32, &CPU)?, affine, EPSILON).unwrap_err();
    assert_eq!(of_core(none), bn_core::Error::TooFewValues { expected: 2, got: 0 });
    let epsilon = training(x, affine, -1.0).unwrap_err();
    assert!(epsilon.to_string().contains("epsilon is -1"), "{epsilon}");
    assert_eq!(of_core(epsilon), bn_core::Error::Epsilon { got: -1.0 });
    let square = x.narrow(2, 0, 4)?.narrow(0, 0, 1)?.squeeze(0)?;
    let rank = without_backtrace(training(x, Some((&square, &square)), EPSILON).unwrap_err());
    assert!(matches!(rank, Error::UnexpectedNumberOfDims { expected: 1, got: 2, .. }), "{rank}");
    // No batch that failed has moved anything.
    assert_eq!(layer.running_mean().to_vec1::<f32>()?, case.mean.to_vec1::<f32>()?);

    let new = |mean: &Tensor, var: &Tensor, momentum| {
        without_backtrace(BatchNorm::new(mean, var, Some(case.affine()), EPSILON, momentum).unwrap_err())
    };
    assert_eq!(of_core(new(&case.mean, &case.var, 1.5)), bn_core::Error::Momentum { got: 1.5 });
    let error = new(&case.mean, &case.var.narrow(0, 0, 3)?, 0.1);
    assert!(matches!(error, Error::UnexpectedShape { .. }), "{error}");
    let error = new(&case.mean, &case.var.to_dtype(DType::F64)?, 0.1);
    assert!(matches!(error, Error::UnexpectedDType { msg: "running_var", .. }), "{error}");

    // Statistics of another type, found after the batch's.
    let plain = BatchNorm::new(&case.mean, &case.var, None, EPSILON, MOMENTUM)?;
    let error = without_backtrace(plain.forward_t(&x.to_dtype(DType::F64)?, true).unwrap_err());
    assert!(matches!(error, Error::UnexpectedDType { msg: "running_mean", .. }), "{error}");
    assert_eq!(plain.running_mean().to_vec1::<f32>()?, case.mean.to_vec1::<f32>()?);

    // Empty batches are legal where nothing is made of them.
    for dims in [[0, 4, 6], [5, 4, 0]] {
        let x = Var::zeros(&dims, DType::F32, &CPU)?;
        let y = layer.forward_t(&x, false)?;
        assert_eq!(y.dims(), dims);
        let gradients = case.gamma.detach().broadcast_mul(&y.sum((0, 2))?)?.sum_all()?.backward()?;
        assert_eq!(gradients.get(&x).unwrap().dims(), dims);
        assert_eq!(gradients.get(&case.gamma).unwrap().to_vec1::<f32>()?, [0.0; 4]);
    }
    Ok(())
}
