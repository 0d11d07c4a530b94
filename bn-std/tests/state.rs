//! Checkpoints: PyTorch's, round trips, and those that do not fit.

mod common;

use bn_core::Shape;
use bn_std::{BatchNormLayer, Error, Mode, State};
use common::{Random, Real};
use serde_json::Value;

/// The source is named in the file.
const GOLDEN: &str = include_str!("golden/state_dict.json");

fn numbers<T: Real>(value: &Value) -> Vec<T> {
    value.as_array().unwrap().iter().map(|v| T::of(v.as_f64().unwrap())).collect()
}

fn pytorch_state_dict_gives_pytorch_inference<T: Real>(bound: f64) {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let case = &golden["state_dict"];
    let arrays = &case["arrays"];
    let state = State {
        weight: Some(numbers(&arrays["weight"])),
        bias: Some(numbers(&arrays["bias"])),
        running_mean: numbers(&arrays["running_mean"]),
        running_var: numbers(&arrays["running_var"]),
        num_batches_tracked: arrays["num_batches_tracked"][0].as_f64().unwrap() as u64,
    };
    let number = |name: &str| case[name].as_u64().unwrap() as usize;
    let spatial: Vec<usize> = numbers::<f64>(&case["spatial"]).iter().map(|v| *v as usize).collect();
    let (channels, positions) = (number("channels"), spatial.iter().product::<usize>());
    let epsilon = case["eps"].as_f64().unwrap();
    let mut bn = BatchNormLayer::<T>::new(channels).unwrap().with_epsilon(epsilon).unwrap().with_mode(Mode::Inference);
    bn.load_state(&state).unwrap();
    assert_eq!(state.num_batches_tracked, 5);

    let (x, expected) = (numbers::<T>(&case["x"]), numbers::<f64>(&case["inference_y"]));
    let mut y = vec![T::of(0.0); x.len()];
    let off = |y: &[T], expected: &[f64]| y.iter().zip(expected).map(|(y, e)| (y.wide() - e).abs()).fold(0.0, f64::max);
    bn.forward(Shape::nchw(number("batch"), channels, &spatial).unwrap(), &x, None, &mut y[..]).unwrap();
    assert_eq!(expected.len(), y.len());
    assert!(off(&y, &expected) <= bound, "{:e}", off(&y, &expected));

    // And in the other layout.
    let last = |v: &[f64]| -> Vec<f64> {
        let place = |i: usize| {
            let (n, p, c) = (i / channels / positions, i / channels % positions, i % channels);
            (n * channels + c) * positions + p
        };
        (0..v.len()).map(|i| v[place(i)]).collect()
    };
    let x: Vec<T> = last(&x.iter().map(|v| v.wide()).collect::<Vec<_>>()).into_iter().map(T::of).collect();
    bn.forward(Shape::nhwc(number("batch"), channels, &spatial).unwrap(), &x, None, &mut y[..]).unwrap();
    assert!(off(&y, &last(&expected)) <= bound, "{:e}", off(&y, &last(&expected)));
}

#[test]
fn pytorch_f32() {
    pytorch_state_dict_gives_pytorch_inference::<f32>(1e-6);
}

#[test]
fn pytorch_f64() {
    pytorch_state_dict_gives_pytorch_inference::<f64>(1e-13);
}

/// A layer that has trained.
fn trained<T: Real>(channels: usize) -> BatchNormLayer<T> {
    let mut bn = BatchNormLayer::new(channels).unwrap();
    let mut random = Random(9);
    bn.gamma_mut().unwrap().copy_from_slice(&random.values(channels, 0.5));
    bn.beta_mut().unwrap().copy_from_slice(&random.values(channels, -1.0));
    let x = random.values::<T>(channels * 10, 2.0);
    let mut y = x.clone();
    bn.forward(Shape::dense(10, channels).unwrap(), &x, None, &mut y[..]).unwrap();
    bn
}

#[test]
fn state_goes_there_and_back() {
    let state = trained::<f32>(7).state();
    let mut bn = BatchNormLayer::<f32>::new(7).unwrap();
    assert_ne!(bn.state(), state);
    bn.load_state(&state).unwrap();
    assert_eq!(bn.state(), state);

    let mut bare = BatchNormLayer::<f32>::new(7).unwrap().without_gamma().without_beta();
    bare.load_state(&State { weight: None, bias: None, ..state.clone() }).unwrap();
    assert_eq!(bare.running_var(), state.running_var);
}

#[test]
fn states_that_do_not_fit_change_nothing() {
    let mut bn = trained::<f32>(3);
    let before = bn.state();
    let good = State {
        weight: Some(vec![2.0; 3]),
        bias: Some(vec![3.0; 3]),
        running_mean: vec![4.0; 3],
        running_var: vec![0.0; 3],
        num_batches_tracked: 9,
    };
    let core = Error::Core;
    let length = |what, got| core(bn_core::Error::Length { what, expected: 3, got });
    let value = |what, channel, got| Error::Value { what, channel, got };
    let inf = f32::INFINITY;
    let with = |change: &dyn Fn(&mut State<f32>)| {
        let mut state = good.clone();
        change(&mut state);
        state
    };
    for (state, error) in [
        (with(&|s| s.weight = None), core(bn_core::Error::Missing { what: "weight" })),
        (with(&|s| s.bias = None), core(bn_core::Error::Missing { what: "bias" })),
        (with(&|s| s.weight = Some(vec![1.0; 2])), length("weight", 2)),
        (with(&|s| s.bias = Some(vec![1.0; 4])), length("bias", 4)),
        (with(&|s| s.running_mean = vec![]), length("running_mean", 0)),
        (with(&|s| s.running_var.push(1.0)), length("running_var", 4)),
        (with(&|s| s.weight = Some(vec![1.0, -inf, 1.0])), value("weight", 1, f64::NEG_INFINITY)),
        (with(&|s| s.bias = Some(vec![inf, 1.0, 1.0])), value("bias", 0, f64::INFINITY)),
        (with(&|s| s.running_mean[2] = inf), value("running_mean", 2, f64::INFINITY)),
        (with(&|s| s.running_var[0] = inf), value("running_var", 0, f64::INFINITY)),
        (with(&|s| s.running_var[1] = -0.5), value("running_var", 1, -0.5)),
    ] {
        assert_eq!(bn.load_state(&state), Err(error.clone()), "{state:?}");
        assert_eq!(bn.state(), before);
        assert!(!error.to_string().is_empty());
    }
    let nan = bn.load_state(&with(&|s| s.running_var[1] = f32::NAN));
    assert!(matches!(nan, Err(Error::Value { what: "running_var", channel: 1, got }) if got.is_nan()));
    assert_eq!(bn.state(), before);
    let mut bare = BatchNormLayer::<f32>::new(3).unwrap().without_gamma();
    assert_eq!(bare.load_state(&good), Err(core(bn_core::Error::Unused { what: "weight" })));
    let mut bare = BatchNormLayer::<f32>::new(3).unwrap().without_beta();
    assert_eq!(bare.load_state(&good), Err(core(bn_core::Error::Unused { what: "bias" })));
    bn.load_state(&good).unwrap();
    assert_eq!(bn.state(), good);
}

#[cfg(feature = "serde")]
mod serde {
    use super::*;

    #[test]
    fn round_trips_keep_every_bit() {
        let state = trained::<f32>(40).state();
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State<f32>>(&text).unwrap(), state);
        let state = trained::<f64>(40).state();
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State<f64>>(&text).unwrap(), state);
    }

    #[test]
    fn names_are_those_of_pytorch() {
        let state = BatchNormLayer::<f32>::new(1).unwrap().state();
        let written = serde_json::to_value(&state).unwrap();
        let mut names: Vec<&String> = written.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(names, ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]);
    }

    #[test]
    fn what_pytorch_may_leave_out_may_be_missing() {
        let state: State<f32> = serde_json::from_str(r#"{"running_mean": [0.5], "running_var": [2]}"#).unwrap();
        let expected = State { running_mean: vec![0.5], running_var: vec![2.0], ..State::default() };
        assert_eq!(state, expected);
        assert!(serde_json::from_str::<State<f32>>(r#"{"running_mean": [0.5]}"#).is_err());
    }
}
