//! Statistics as the arrays that frameworks keep, in and out.

mod common;
use bn_core::{
    Error, Moments, Variance, moments_from_mean_inverse_std, moments_from_mean_var, moments_to_mean_inverse_std,
    moments_to_mean_var,
};
use common::Random;
use common::problem::Real;

const SENTINEL: f64 = -77.25;

fn random(n: usize, count: u64, seed: u64) -> Vec<Moments> {
    let mut r = Random(seed);
    let size = |r: &mut Random| 10f64.powf(8.0 * r.uniform() - 4.0);
    (0..n).map(|_| Moments { count, mean: r.normal() * size(&mut r), m2: count as f64 * size(&mut r) }).collect()
}

fn arrays<P: Real>(moments: &[Moments], variance: Variance) -> (Vec<P>, Vec<P>) {
    let (mut mean, mut var) = (vec![P::of(SENTINEL); moments.len()], vec![P::of(SENTINEL); moments.len()]);
    moments_to_mean_var(moments, variance, &mut mean, &mut var).unwrap();
    (mean, var)
}

/// One rounding on the way out, none on the way in.
fn mean_and_variance<P: Real>() {
    for count in [1, 2, 3, 1000] {
        for variance in [Variance::Biased, Variance::Unbiased] {
            let moments = random(40, count, 3);
            let moments: Vec<_> =
                moments.into_iter().map(|m| if count == 1 { Moments { m2: 0.0, ..m } } else { m }).collect();
            let (mean, var) = arrays::<P>(&moments, variance);
            let mut back = vec![Moments { count: 99, mean: f64::NAN, m2: f64::NAN }; moments.len()];
            moments_from_mean_var(count, &mean, &var, variance, &mut back).unwrap();
            for ((m, b), (mean, var)) in moments.iter().zip(&back).zip(mean.iter().zip(&var)) {
                let n = if variance == Variance::Biased { count } else { count - 1 };
                assert_eq!(mean.wide(), P::of(m.mean).wide());
                assert_eq!(var.wide(), P::of(if n == 0 { 0.0 } else { m.m2 / n as f64 }).wide());
                assert_eq!((b.count, b.mean), (count, mean.wide()));
                assert!((b.m2 - m.m2).abs() <= 1.01 * (P::ROUNDING + 2.0 * f64::ROUNDING) * m.m2);
            }
        }
    }
}

#[test]
fn mean_and_variance_and_back() {
    mean_and_variance::<f32>();
    mean_and_variance::<f64>();
}

/// The inverse survives the way in and out; the variance does where ε is not far above it.
fn mean_and_inverse<P: Real>() {
    for epsilon in [0.0, 1e-5, 1.0, 1e3] {
        let moments = random(40, 16, 4);
        let (mut mean, mut inverse) = (vec![P::of(SENTINEL); 40], vec![P::of(SENTINEL); 40]);
        moments_to_mean_inverse_std(&moments, epsilon, &mut mean, &mut inverse).unwrap();
        let mut back = vec![Moments::EMPTY; 40];
        moments_from_mean_inverse_std(16, &mean, &inverse, epsilon, &mut back).unwrap();
        for ((m, b), (mean, r)) in moments.iter().zip(&back).zip(mean.iter().zip(&inverse)) {
            let exact = 1.0 / (m.m2 / 16.0 + epsilon).sqrt();
            assert_eq!(mean.wide(), P::of(m.mean).wide());
            assert!((r.wide() - exact).abs() <= 1.01 * (P::ROUNDING + 3.0 * f64::ROUNDING) * exact);
            assert_eq!((b.count, b.mean), (16, mean.wide()));
            assert!(b.m2 >= 0.0);
            // Where 1/r² < ε, r was rounded up from below 1/√ε.
            let (again, most) = (b.inverse_std(epsilon), 1.01 * (P::ROUNDING + 4.0 * f64::ROUNDING));
            assert!((again - r.wide()).abs() <= if b.m2 == 0.0 { most } else { 1e-15 } * exact);
            let digits = 2.1 * (P::ROUNDING + 6.0 * f64::ROUNDING) * (m.m2 / 16.0 + epsilon);
            assert!((b.variance() - m.variance()).abs() <= digits, "{epsilon}: {m:?} {b:?}");
        }
    }
}

#[test]
fn mean_and_inverse_std_and_back() {
    mean_and_inverse::<f32>();
    mean_and_inverse::<f64>();
}

#[test]
fn by_hand() {
    let m = Moments { count: 5, mean: 2.0, m2: 20.0 };
    assert_eq!((m.inverse_std(0.0), m.inverse_std(12.0), Moments::EMPTY.inverse_std(4.0)), (0.5, 0.25, 0.5));
    assert_eq!(Moments::from_mean_inverse_std(5, 2.0, 0.5, 0.0), m);
    assert_eq!(Moments::from_mean_inverse_std(5, 2.0, 0.25, 12.0), m);
    // A constant channel: the convention, and what 1/√0 gives elsewhere.
    let constant = Moments { count: 5, mean: 2.0, m2: 0.0 };
    assert_eq!(constant.inverse_std(0.0), 0.0);
    assert_eq!(Moments::from_mean_inverse_std(5, 2.0, 0.0, 0.0), constant);
    assert_eq!(Moments::from_mean_inverse_std(5, 2.0, f64::INFINITY, 0.0), constant);
    // 1/√ε rounded up: the variance would be negative.
    let up = (1.0 / 1e-5_f64.sqrt()) as f32 as f64 * 1.0000001;
    assert_eq!(Moments::from_mean_inverse_std(5, 2.0, up, 1e-5), constant);

    // No values; and what cannot be represented.
    let mut m = [Moments { count: 9, mean: 9.0, m2: 9.0 }];
    moments_from_mean_var(0, &[f32::NAN], &[f32::NAN], Variance::Biased, &mut m).unwrap();
    assert_eq!(m, [Moments::EMPTY]);
    moments_from_mean_inverse_std(0, &[1.0], &[1.0], 0.5, &mut m).unwrap();
    assert_eq!(m, [Moments::EMPTY]);
    moments_from_mean_var(1, &[3.0], &[f64::NAN], Variance::Unbiased, &mut m).unwrap();
    assert_eq!(m, [Moments { count: 1, mean: 3.0, m2: 0.0 }]);
    let far = [Moments { count: 1, mean: 1e300, m2: f64::NAN }];
    let (mean, var) = arrays::<f32>(&far, Variance::Biased);
    assert!(mean[0] == f32::INFINITY && var[0].is_nan());
}

/// NaN spoils its channel, and is no error; a negative number is one.
#[test]
fn values() {
    let mut m = [Moments::EMPTY; 3];
    moments_from_mean_var(4, &[1.0, f32::NAN, 3.0], &[0.0, -0.0, f32::NAN], Variance::Biased, &mut m).unwrap();
    assert!(m[0] == Moments { count: 4, mean: 1.0, m2: 0.0 } && m[1].mean.is_nan() && m[2].m2.is_nan());
    moments_from_mean_inverse_std(4, &[1.0, f32::NAN, 3.0], &[0.5, 1.0, f32::NAN], 0.0, &mut m).unwrap();
    assert!(m[0] == Moments { count: 4, mean: 1.0, m2: 16.0 } && m[1].mean.is_nan() && m[2].m2.is_nan());

    let before = [Moments { count: 7, mean: 7.0, m2: 7.0 }; 3];
    let mut m = before;
    let bad = [1.0, f32::NAN, -0.5];
    let error = moments_from_mean_var(4, &[1.0; 3], &bad, Variance::Biased, &mut m).unwrap_err();
    assert_eq!((error, m), (Error::Value { what: "var", channel: 2, got: -0.5 }, before));
    assert_eq!(error.to_string(), "var of channel 2 is -0.5, expected a number ≥ 0");
    let error = moments_from_mean_inverse_std(4, &[1.0; 3], &bad, 0.0, &mut m).unwrap_err();
    assert_eq!((error, m), (Error::Value { what: "inverse_std", channel: 2, got: -0.5 }, before));
    for epsilon in [-1e-5, f64::NAN, f64::INFINITY] {
        let got = moments_from_mean_inverse_std(4, &[1.0; 3], &[1.0; 3], epsilon, &mut m).unwrap_err();
        assert!(matches!(got, Error::Epsilon { got } if got.to_bits() == epsilon.to_bits()) && m == before);
        let (mut mean, mut inverse) = ([SENTINEL; 3], [SENTINEL; 3]);
        let got = moments_to_mean_inverse_std(&m, epsilon, &mut mean, &mut inverse).unwrap_err();
        assert!(matches!(got, Error::Epsilon { .. }) && (mean, inverse) == ([SENTINEL; 3], [SENTINEL; 3]));
    }
}

#[test]
fn lengths() {
    let before = [Moments { count: 7, mean: 7.0, m2: 7.0 }; 3];
    for (mean_len, second_len) in [(2, 3), (4, 3), (3, 2), (3, 4), (0, 0)] {
        let wrong = |second| {
            let (what, got) = if mean_len == 3 { (second, second_len) } else { ("mean", mean_len) };
            Err(Error::Length { what, expected: 3, got })
        };
        let (mut mean, mut second) = (vec![SENTINEL; mean_len], vec![SENTINEL; second_len]);
        let mut m = before;
        let [biased, unbiased] = [Variance::Biased, Variance::Unbiased];
        assert_eq!(moments_to_mean_var(&m, biased, &mut mean, &mut second), wrong("var"));
        assert_eq!(moments_to_mean_inverse_std(&m, 1.0, &mut mean, &mut second), wrong("inverse_std"));
        assert_eq!(moments_from_mean_var(4, &mean, &second, unbiased, &mut m), wrong("var"));
        assert_eq!(moments_from_mean_inverse_std(4, &mean, &second, 1.0, &mut m), wrong("inverse_std"));
        assert!(m == before && mean.iter().chain(&second).all(|&v| v == SENTINEL));
    }
}

/// Counts are public: what cannot be counted any more stays at the most, in builds that check for overflow too.
#[test]
fn counts_end_at_the_largest() {
    let full = Moments { count: u64::MAX - 1, mean: 2.0, m2: 1.0 };
    let mut m = full;
    m.merge(&full);
    assert_eq!((m.count, m.mean, m.m2), (u64::MAX, 2.0, 2.0));
    m.push(2.0);
    assert_eq!((m.count, m.mean), (u64::MAX, 2.0));
}
