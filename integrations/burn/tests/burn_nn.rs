//! Against burn's own layer and its automatic differentiation, in f64.

use bn_burn::{Error, Training, forward, inference, training};
use burn::module::{Module, Param, RunningState};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};

const EPSILON: f64 = 1e-5;
const TYPES: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::BF16];

/// Numbers of about −1 to 1 that are exact in every type of 8 bits or more of mantissa.
fn numbers<const D: usize>(seed: u64, dims: [usize; D]) -> Tensor<D> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 56) as f64 - 127.0) / 128.0
    };
    let values: Vec<f64> = std::iter::repeat_with(next).take(dims.iter().product()).collect();
    Tensor::from_data(TensorData::new(values, dims), (&Device::flex().autodiff(), DType::F64))
}

fn values<const D: usize>(t: &Tensor<D>) -> Vec<f64> {
    t.to_data_as::<f64>().try_to_vec().unwrap()
}

/// A tensor of the same numbers with no history: burn's `detach` would keep that gradients are required.
fn copy<const D: usize>(t: &Tensor<D>, dtype: DType) -> Tensor<D> {
    Tensor::from_data(t.to_data(), (&t.device(), dtype))
}

#[track_caller]
fn near<const D: usize>(what: &str, a: &Tensor<D>, b: &Tensor<D>, tolerance: f64) {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let largest = b.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
    // NaN counts as far.
    let far = a.iter().zip(&b).map(|(a, b)| (a - b).abs() / largest).find(|d| !(*d <= tolerance));
    assert!(far.is_none(), "{what}: {far:?} > {tolerance:e}");
}

/// What y and the gradients may differ by: for f32 the contract of bn-core; in 16 bits their rounding, by half a unit,
/// and that of the variance that the backward pass has.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-13,
        DType::F32 => 2e-6,
        DType::F16 => 1.5 / 2048.0,
        _ => 1.5 / 256.0,
    }
}

/// A layer, an x, and what y is multiplied by in the loss.
struct Case<const D: usize> {
    layer: BatchNorm,
    x: Tensor<D>,
    weights: Tensor<D>,
}

impl<const D: usize> Case<D> {
    fn new(dims: [usize; D], dtype: DType) -> Self {
        Self::of((numbers(1, dims) + 0.5).cast(dtype).require_grad(), dtype)
    }

    fn of(x: Tensor<D>, dtype: DType) -> Self {
        let channels = x.dims()[1];
        // Rounded to 8 bits of mantissa, so that they are the same in every type.
        let parameter = |seed, mean: f64| (numbers(seed, [channels]) + mean).cast(DType::BF16).cast(dtype);
        let layer = BatchNorm {
            gamma: Param::from_tensor(parameter(2, 1.5)),
            beta: Param::from_tensor(parameter(3, 0.0)),
            running_mean: RunningState::new(parameter(4, 0.0)),
            running_var: RunningState::new(parameter(5, 1.5)),
            ..BatchNormConfig::new(channels).init(&Device::flex().autodiff())
        };
        Case { layer, weights: numbers(6, x.dims()).cast(dtype), x }
    }

    /// The same in f64, exactly.
    fn wide(&self) -> Self {
        Self::of(copy(&self.x, DType::F64).require_grad(), DType::F64)
    }

    fn gradients(&self, y: &Tensor<D>) -> Gradients {
        (y.clone() * self.weights.clone()).sum().backward()
    }

    #[track_caller]
    fn near_gradients(&self, y: &Tensor<D>, exact: &Self, right: &Tensor<D>, tolerance: f64) {
        let (ours, theirs) = (self.gradients(y), exact.gradients(right));
        near("dx", &self.x.grad(&ours).unwrap(), &exact.x.grad(&theirs).unwrap(), tolerance);
        let (ours, theirs) = ((&self.layer, &ours), (&exact.layer, &theirs));
        let gamma = |(layer, gradients): (&BatchNorm, &Gradients)| layer.gamma.val().grad(gradients).unwrap();
        let beta = |(layer, gradients): (&BatchNorm, &Gradients)| layer.beta.val().grad(gradients).unwrap();
        near("dgamma", &gamma(ours), &gamma(theirs), tolerance);
        near("dbeta", &beta(ours), &beta(theirs), tolerance);
    }
}

fn in_every_shape(dtype: DType, check: impl Check) {
    check.of(Case::new([2, 1], dtype));
    check.of(Case::new([7, 3], dtype));
    check.of(Case::new([64, 33], dtype));
    check.of(Case::new([5, 4, 6], dtype));
    check.of(Case::new([3, 5, 4, 7], dtype));
    check.of(Case::new([4, 17, 9, 8], dtype));
    check.of(Case::new([2, 3, 2, 3, 4], dtype));
}

/// A function generic over the number of dimensions.
trait Check {
    fn of<const D: usize>(&self, case: Case<D>);
}

#[test]
fn training_agrees_in_every_type() {
    struct Trains(DType);
    impl Check for Trains {
        fn of<const D: usize>(&self, case: Case<D>) {
            let (exact, tolerance) = (case.wide(), tolerance(self.0));
            // Twice: the running statistics go on from where they are.
            for _ in 0..2 {
                let y = forward(&case.layer, case.x.clone()).unwrap();
                let right = exact.layer.forward(exact.x.clone());
                assert_eq!(y.dtype(), self.0);
                near("y", &y, &right, tolerance);
                case.near_gradients(&y, &exact, &right, tolerance);
            }
            // In 16 bits both the old and the new ones are rounded.
            let (ours, theirs) = (&case.layer, &exact.layer);
            near("mean", &ours.running_mean.value_sync(), &theirs.running_mean.value_sync(), 4.0 * tolerance);
            near("var", &ours.running_var.value_sync(), &theirs.running_var.value_sync(), 4.0 * tolerance);
        }
    }
    for dtype in TYPES {
        in_every_shape(dtype, Trains(dtype));
    }
}

#[test]
fn inference_agrees_in_every_type() {
    struct Infers(DType);
    impl Check for Infers {
        fn of<const D: usize>(&self, case: Case<D>) {
            let (exact, tolerance) = (case.wide(), tolerance(self.0));
            // Without automatic differentiation.
            let plain = |case: &Case<D>| (case.layer.clone().valid(), case.x.clone().inner());
            let ((layer, x), (exact_layer, exact_x)) = (plain(&case), plain(&exact));
            near("y", &forward(&layer, x).unwrap(), &exact_layer.forward(exact_x), tolerance);
            // With it, through the statistics as constants.
            let infer = |case: &Case<D>| {
                let layer = &case.layer;
                let statistics = [&layer.running_mean, &layer.running_var].map(RunningState::value);
                (layer.gamma.val(), layer.beta.val(), statistics)
            };
            let (gamma, beta, [mean, var]) = infer(&case);
            let y = inference(case.x.clone(), gamma, beta, mean, var, EPSILON).unwrap();
            let (gamma, beta, [mean, var]) = infer(&exact);
            let right = burn::tensor::module::batch_norm(exact.x.clone(), gamma, beta, mean, var, EPSILON);
            near("y", &y, &right, tolerance);
            case.near_gradients(&y, &exact, &right, tolerance);
        }
    }
    for dtype in TYPES {
        in_every_shape(dtype, Infers(dtype));
    }
}

/// Views of a tensor of 6×8×5×4, and whether bn-core can read them as they lie with channels second, so that the bits are
/// those of the copy.
type View = fn(Tensor<4>) -> Tensor<4>;
const VIEWS: [(&str, bool, View); 11] = [
    ("channels of a wider tensor", true, |x| x.narrow(1, 2, 3)),
    ("images of a longer one", true, |x| x.narrow(0, 1, 4)),
    ("rows of planes", true, |x| x.narrow(2, 1, 3)),
    ("columns of planes", true, |x| x.narrow(3, 1, 2)),
    ("channels before images", true, |x| x.swap_dims(0, 1)),
    ("channels last", false, |x| x.permute([0, 3, 1, 2])),
    ("channels of channels last", false, |x| x.permute([0, 3, 1, 2]).narrow(1, 1, 2)),
    ("transposed planes", true, |x| x.swap_dims(2, 3)),
    ("flipped planes", true, |x| x.flip([3])),
    ("broadcast images", true, |x| x.narrow(0, 0, 1).expand([3, 8, 5, 4])),
    ("one position", true, |x| x.narrow(2, 3, 1).narrow(3, 2, 1)),
];

#[test]
fn views_give_what_their_copies_give() {
    for (name, same_bits, view) in VIEWS {
        let base = numbers(7, [6, 8, 5, 4]).cast(DType::F32).require_grad();
        let exact_base = copy(&base, DType::F64).require_grad();
        let case = Case::of(view(base.clone()), DType::F32);
        let exact = Case::of(view(exact_base.clone()), DType::F64);
        let (gamma, beta) = (case.layer.gamma.val(), case.layer.beta.val());

        let y = training(case.x.clone(), gamma.clone(), beta.clone(), EPSILON).unwrap().y;
        // Through the data: dense.
        let copied = training(copy(&case.x, DType::F32), gamma, beta, EPSILON).unwrap().y;
        if same_bits {
            assert_eq!(values(&y), values(&copied), "{name}");
        }
        let right = exact.layer.forward(exact.x.clone());
        near(name, &y, &right, tolerance(DType::F32));

        // To the tensor behind the view. dy comes in a view's order, too.
        let permuted = |case: &Case<4>, y: Tensor<4>| {
            (y.permute([2, 0, 3, 1]) * case.weights.clone().permute([2, 0, 3, 1])).sum().backward()
        };
        let (ours, theirs) = (permuted(&case, y), permuted(&exact, right));
        near(name, &base.grad(&ours).unwrap(), &exact_base.grad(&theirs).unwrap(), tolerance(DType::F32));
    }
}

/// A view that has elements twice: no strides of an operand are like that, so it is copied.
#[test]
fn windows_that_overlap() {
    let x: Tensor<3> = numbers(9, [20, 3]).cast(DType::F32).unfold(0, 8, 4);
    assert_eq!(x.dims(), [4, 3, 8]);
    let [gamma, beta] = [1, 2].map(|seed| numbers(seed, [3]).cast(DType::F32));
    let y = training(x.clone(), gamma.clone(), beta.clone(), EPSILON).unwrap().y;
    let copied = training(copy(&x, DType::F32), gamma, beta, EPSILON).unwrap().y;
    assert_eq!(values(&y), values(&copied));
}

#[test]
fn channels_last_stays_channels_last() {
    use burn::backend::Flex;
    let nhwc = numbers(1, [3, 4, 8, 5]).inner();
    let case = Case::<4>::of(nhwc.permute([0, 3, 1, 2]), DType::F64);
    let [gamma, beta] = [&case.layer.gamma, &case.layer.beta].map(|p| p.val().inner());
    let y = training(case.x.clone(), gamma, beta, EPSILON).unwrap().y;
    let strides = |t: Tensor<4>| t.try_into_primitive::<Flex>().unwrap().layout().strides().to_vec();
    assert_eq!(strides(y), strides(case.x));
}

#[test]
fn large_means_cost_no_digits() {
    let x = (numbers(1, [8, 3, 6, 6]) + 30_000.0).cast(DType::F32).require_grad();
    let case = Case::of(x, DType::F32);
    let exact = case.wide();
    let y = forward(&case.layer, case.x.clone()).unwrap();
    let right = exact.layer.forward(exact.x.clone());
    near("y", &y, &right, 2e-6);
    case.near_gradients(&y, &exact, &right, 2e-6);
    // What the case is for.
    let theirs = values(&Case::of(case.x.clone(), DType::F32).layer.forward(case.x.clone()));
    let far = theirs.iter().zip(values(&right)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far > 1e-4, "{far}");
}

#[test]
fn statistics_are_burns_and_have_no_gradients() {
    let case = Case::new([5, 4, 6], DType::F32);
    let exact = case.wide();
    let (gamma, beta) = (case.layer.gamma.val(), case.layer.beta.val());
    let Training { mean, variance, .. } = training(case.x.clone(), gamma, beta, EPSILON).unwrap();
    let (gamma, beta) = (exact.layer.gamma.val(), exact.layer.beta.val());
    let right = burn::tensor::module::batch_norm_train(exact.x.clone(), gamma, beta, EPSILON);
    near("mean", &mean, &right.mean, 1e-7);
    near("variance", &variance, &right.variance, 1e-7);
    assert!(!mean.is_tracked() && !variance.is_tracked());
}

#[test]
fn gradient_checkpointing_changes_no_bit() {
    let results = |device: &Device| {
        let layer = BatchNormConfig::new(4).init(device);
        let base = Tensor::<3>::from_data(numbers(1, [5, 4, 6]).to_data(), (device, DType::F32)).require_grad();
        // Memory-bound: made again for the backward pass.
        let x = base.clone().mul_scalar(3.0).add_scalar(1.0);
        let y = forward(&layer, x).unwrap();
        let gradients = (y.clone() * y.clone() * y).sum().backward();
        [base.grad(&gradients).unwrap().reshape([120]), layer.gamma.val().grad(&gradients).unwrap()].map(|g| values(&g))
    };
    let device = Device::flex().autodiff();
    let plain = results(&device);
    assert!(plain[0].iter().any(|v| v.abs() > 0.1));
    assert_eq!(plain, results(&device.gradient_checkpointing()));
}

#[test]
fn only_what_is_tracked_has_gradients() {
    let case = Case::new([5, 4, 6], DType::F32);
    let exact = case.wide();
    let gamma = case.layer.gamma.val();
    let (x, beta) = (copy(&case.x, DType::F32), copy(&case.layer.beta.val(), DType::F32));
    let y = training(x.clone(), gamma.clone(), beta.clone(), EPSILON).unwrap().y;
    let right = exact.layer.forward(exact.x.clone());
    let (ours, theirs) = (case.gradients(&y), exact.gradients(&right));
    near("dgamma", &gamma.grad(&ours).unwrap(), &exact.layer.gamma.val().grad(&theirs).unwrap(), 2e-6);
    assert!(x.grad(&ours).is_none() && beta.grad(&ours).is_none());
    // Nothing at all is tracked.
    let y = training(x, copy(&gamma, DType::F32), beta, EPSILON).unwrap().y;
    assert!(!y.is_tracked());
    near("y", &y, &right, 2e-6);
}

#[test]
fn a_frozen_layer_infers() {
    let case = Case::new([5, 4, 6], DType::F32);
    let (ours, theirs) = (case.layer.clone().freeze(), case.wide().layer.freeze());
    let before = values(&ours.running_mean.value_sync());
    let y = forward(&ours, case.x.clone()).unwrap();
    near("y", &y, &theirs.forward(case.wide().x), 2e-6);
    assert_eq!(values(&ours.running_mean.value_sync()), before);
    // dx goes through it.
    let gradients = y.sum().backward();
    assert!(values(&case.x.grad(&gradients).unwrap()).iter().all(|dx| *dx > 0.0));
}

#[test]
fn threads_change_no_bit() {
    let case = Case::new([8, 16, 40, 40], DType::F32);
    let results = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let y = forward(&case.layer, case.x.clone()).unwrap();
            let gradients = case.gradients(&y);
            [values(&y), values(&case.x.grad(&gradients).unwrap())]
        })
    };
    assert_eq!(results(1), results(3));
}

#[test]
fn errors_come_before_anything_moves() {
    let case = Case::new([5, 4, 6], DType::F32);
    let layer = &case.layer;
    let before = values(&layer.running_mean.value_sync());
    let core = |error: Error| match error {
        Error::Core(error) => error,
        other => panic!("{other}"),
    };

    let error = forward(layer, case.x.clone().narrow(1, 0, 3)).unwrap_err();
    assert_eq!(error.to_string(), "running_mean has 4 elements, expected 3");
    assert_eq!(core(error), bn_core::Error::Length { what: "running_mean", expected: 3, got: 4 });
    let wider = BatchNorm { gamma: Case::new([5, 7, 6], DType::F32).layer.gamma, ..layer.clone() };
    let error = forward(&wider, case.x.clone()).unwrap_err();
    assert_eq!(core(error), bn_core::Error::Length { what: "gamma", expected: 4, got: 7 });
    let error = forward(layer, case.x.clone().narrow(0, 0, 1).narrow(2, 0, 1)).unwrap_err();
    assert_eq!(core(error), bn_core::Error::TooFewValues { expected: 2, got: 1 });
    let error = forward(layer, case.x.clone().cast(DType::F64)).unwrap_err();
    assert!(matches!(error, Error::DType { what: "running_mean", got: DType::F32 }), "{error}");
    let error = training(case.x.clone().cast(DType::F64), layer.gamma.val(), layer.beta.val(), EPSILON).unwrap_err();
    assert!(matches!(error, Error::DType { what: "gamma", got: DType::F32 }), "{error}");
    let error = forward(layer, case.x.clone().reshape([120])).unwrap_err();
    assert!(matches!(error, Error::Rank { got: 1 }), "{error}");
    let error = forward(&BatchNorm { epsilon: -1.0, ..layer.clone() }, case.x.clone()).unwrap_err();
    assert_eq!(core(error), bn_core::Error::Epsilon { got: -1.0 });
    let of_another_type = RunningState::new(copy(&layer.running_var.value(), DType::F64));
    let error = forward(&BatchNorm { running_var: of_another_type, ..layer.clone() }, case.x.clone()).unwrap_err();
    assert!(matches!(error, Error::DType { what: "running_var", got: DType::F64 }), "{error}");
    assert_eq!(values(&layer.running_mean.value_sync()), before);

    // Empty batches are legal where nothing is made of them.
    let [mean, var] = [&layer.running_mean, &layer.running_var].map(RunningState::value);
    let empty = Tensor::<3>::zeros([0, 4, 6], &case.x.device());
    let y = inference(empty, layer.gamma.val(), layer.beta.val(), mean, var, EPSILON).unwrap();
    assert_eq!(y.dims(), [0, 4, 6]);
    let gradients = (y.sum() + layer.gamma.val().sum()).backward();
    assert_eq!(values(&layer.gamma.val().grad(&gradients).unwrap()), [1.0; 4]);
}
