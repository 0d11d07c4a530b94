//! Running averages whose weight depends on how many batches there were: zero-debiased and cumulative.

mod common;
use bn_core::{Error, Moments, Momentum, RunningStats, Variance};
use common::Random;
use common::problem::{Real, bits};

/// Batches of 3 channels whose means and variances wander.
fn batches(n: usize, seed: u64) -> Vec<[Moments; 3]> {
    let mut r = Random(seed);
    (0..n)
        .map(|_| [0; 3].map(|_| Moments { count: 8, mean: 5.0 + r.normal(), m2: 8.0 * (0.5 + r.uniform()) }))
        .collect()
}

/// Arrays and count, as a checkpoint has them.
#[derive(Clone, Debug, PartialEq)]
struct State<P> {
    mean: [P; 3],
    var: [P; 3],
    num_batches: u64,
}

impl<P: Real> State<P> {
    fn new(mean: f64, var: f64) -> Self {
        State { mean: [P::of(mean); 3], var: [P::of(var); 3], num_batches: 0 }
    }
    fn update(&mut self, rule: RunningStats, batch: &[Moments; 3]) {
        let skipped = rule.update(batch, &mut self.mean, &mut self.var, Some(&mut self.num_batches));
        assert_eq!(skipped, Ok(0));
    }
}

/// The average that starts at 0, over 1 − decayᵗ: Adam's correction, TF's zero_debias.
#[test]
fn zero_debias_is_the_corrected_average() {
    let batches = batches(2000, 1);
    for decay in [0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 0.999_999] {
        for (rule, variance) in
            [(RunningStats::keras(decay), Variance::Biased), (RunningStats::pytorch(1.0 - decay), Variance::Unbiased)]
        {
            let rule = rule.unwrap().with_zero_debias();
            assert!(rule.zero_debias() && rule.variance() == variance);
            // Initial values do not matter.
            let mut states = [State::<f64>::new(0.0, 1.0), State::new(-1e6, 1e9)];
            let mut biased = [[0.0_f64; 2]; 3];
            for (i, batch) in batches.iter().enumerate() {
                states.iter_mut().for_each(|s| s.update(rule, batch));
                // 1 − decayᵗ = (1 − decay)·Σ decayᵏ, k < t: all positive.
                let t = i as i32 + 1;
                let correction = -(t as f64 * decay.ln()).exp_m1();
                for (c, m) in batch.iter().enumerate() {
                    let new = [m.mean, if variance == Variance::Biased { m.m2 / 8.0 } else { m.m2 / 7.0 }];
                    for k in 0..2 {
                        biased[c][k] = decay * biased[c][k] + (1.0 - decay) * new[k];
                        let exact = biased[c][k] / correction;
                        for s in &states {
                            let got = if k == 0 { s.mean[c] } else { s.var[c] };
                            // 1 − decay itself is rounded, by 2⁻⁵⁴; so is ln, by 2⁻⁵³ of a small one.
                            let bound = 1e-13 + 3e-16 / (1.0 - decay);
                            assert!((got - exact).abs() <= bound * exact, "{decay} {t}: {got} {exact}");
                        }
                    }
                }
            }
            assert_eq!(states[0], states[1]);
        }
    }
}

/// By hand, and by 1/w_t = Σ (1 − w)ᵏ, k < t, whose terms are all positive.
#[test]
fn zero_debias_weights() {
    let rule = |w| RunningStats::new(Momentum::WeighNew(w), Variance::Biased).unwrap().with_zero_debias();
    let half = [1.0, 2.0 / 3.0, 4.0 / 7.0, 8.0 / 15.0, 16.0 / 31.0];
    for (n, expected) in half.into_iter().enumerate() {
        assert!((rule(0.5).weight(n as u64) - expected).abs() < 2e-16);
    }
    let near = |w: f64, n: u64, expected: f64, bound: f64| {
        let got = rule(w).weight(n);
        assert!((got - expected).abs() <= bound * expected, "w {w:e} after {n}: {got:e}, expected {expected:e}");
        assert!(got <= 1.0 && got >= w && got >= 1.0 / (n as f64 + 1.0));
    };
    for w in [1e-300, 1e-30, 1e-17, 1e-16, 3e-16, 1e-9, 1e-5, 0.001, 0.01, 0.1, 0.3, 0.7, 0.999, 1.0 - 1e-16, 1.0] {
        near(w, 0, 1.0, 1e-15);
        near(w, 1, 1.0 / (2.0 - w), 1e-15);
        near(w, 2, 1.0 / (3.0 - 3.0 * w + w * w), 1e-15);
        let (mut power, mut total) = (1.0, 0.0);
        for n in 0..1000 {
            total += power;
            power *= 1.0 - w;
            near(w, n, 1.0 / total, 2e-13);
        }
        near(w, u64::MAX, w.max(2f64.powi(-64)), if w < 1e-16 { 1.0 } else { 1e-15 });
    }
    near(1e-18, 999_999_999_999_999_999, 1e-18 / (1.0 - (-1f64).exp()), 1e-15);
    near(1e-9, 999_999_999, 1e-9 / (1.0 - (1e9 * (-1e-9f64).ln_1p()).exp()), 1e-15);
    // The limit for w → 0.
    for w in [0.0, 5e-324, 1e-310] {
        for n in [0, 1, 2, 9, 999] {
            assert_eq!(rule(w).weight(n), 1.0 / (n + 1) as f64);
        }
    }
    // A decay is one minus a weight.
    let decay = RunningStats::keras(0.75).unwrap().with_zero_debias();
    assert_eq!(
        (0..9).map(|n| decay.weight(n)).collect::<Vec<_>>(),
        (0..9).map(|n| rule(0.25).weight(n)).collect::<Vec<_>>()
    );
}

#[test]
fn weights_without_a_schedule() {
    let weight = |momentum, n| RunningStats::new(momentum, Variance::Biased).unwrap().weight(n);
    for n in [0, 1, 1000, u64::MAX] {
        assert_eq!(weight(Momentum::WeighNew(0.1), n), 0.1);
        assert_eq!(weight(Momentum::WeighOld(0.75), n), 0.25);
    }
    assert_eq!([0, 1, 3].map(|n| weight(Momentum::Cumulative, n)), [1.0, 0.5, 0.25]);
    assert_eq!(weight(Momentum::Cumulative, u64::MAX), 2f64.powi(-64));
    // It has no bias, and stays what it is.
    let cumulative = RunningStats::new(Momentum::Cumulative, Variance::Biased).unwrap().with_zero_debias();
    assert_eq!([0, 1, 3].map(|n| cumulative.weight(n)), [1.0, 0.5, 0.25]);
}

/// Each framework's rule, for the moments 1 … 4: mean 2.5, variance 1.25 or, unbiased, 5/3.
#[test]
fn conventions() {
    let moments = [Moments { count: 4, mean: 2.5, m2: 5.0 }];
    for (rule, new, var) in [
        (RunningStats::pytorch(0.25), 0.25, 5.0 / 3.0),
        (RunningStats::burn(0.25), 0.25, 1.25),
        (RunningStats::keras(0.25), 0.75, 1.25),
        (RunningStats::onnx(0.25), 0.75, 1.25),
    ] {
        let (mut running_mean, mut running_var) = ([10.0], [20.0]);
        rule.unwrap().update(&moments, &mut running_mean, &mut running_var, None).unwrap();
        let close = |got: f64, expected: f64| (got - expected).abs() < 1e-14 * expected;
        assert!(close(running_mean[0], (1.0 - new) * 10.0 + new * 2.5), "{rule:?}: {running_mean:?}");
        assert!(close(running_var[0], (1.0 - new) * 20.0 + new * var), "{rule:?}: {running_var:?}");
    }
    for rule in [RunningStats::pytorch, RunningStats::burn, RunningStats::keras, RunningStats::onnx] {
        assert_eq!(rule(1.5), Err(Error::Momentum { got: 1.5 }));
    }
}

/// A training that is saved and loaded after every batch goes on as if it had not been.
fn save_and_load<P: Real>(bound: f64) {
    let batches = batches(500, 2);
    let rules = [
        RunningStats::new(Momentum::Cumulative, Variance::Unbiased),
        RunningStats::keras(0.99).map(RunningStats::with_zero_debias),
        RunningStats::pytorch(0.1).map(RunningStats::with_zero_debias),
    ];
    for rule in rules.map(Result::unwrap) {
        let mut kept = State::<P>::new(0.0, 1.0);
        let mut saved: State<Vec<u8>> = State { mean: Default::default(), var: Default::default(), num_batches: 0 };
        let write = |a: [P; 3]| a.map(|v| bytemuck::bytes_of(&v).to_vec());
        let read = |a: &[Vec<u8>; 3]| [0, 1, 2].map(|c| bytemuck::pod_read_unaligned::<P>(&a[c]));
        (saved.mean, saved.var) = (write(kept.mean), write(kept.var));
        let mut totals = [[0.0; 2]; 3];
        for (i, batch) in batches.iter().enumerate() {
            kept.update(rule, batch);
            let mut loaded = State { mean: read(&saved.mean), var: read(&saved.var), num_batches: saved.num_batches };
            loaded.update(rule, batch);
            saved = State { mean: write(loaded.mean), var: write(loaded.var), num_batches: loaded.num_batches };
            assert_eq!(bits(&loaded.mean), bits(&kept.mean));
            assert_eq!(bits(&loaded.var), bits(&kept.var));
            assert_eq!((loaded.num_batches, kept.num_batches), (i as u64 + 1, i as u64 + 1));
            for (c, m) in batch.iter().enumerate() {
                totals[c][0] += m.mean;
                totals[c][1] += m.m2 / 7.0;
                if rule.momentum() == Momentum::Cumulative {
                    for (got, total) in [(kept.mean[c], totals[c][0]), (kept.var[c], totals[c][1])] {
                        let exact = total / (i + 1) as f64;
                        assert!((got.wide() - exact).abs() <= bound * exact, "{i}: {got:?} {exact}");
                    }
                }
            }
        }
    }
}

#[test]
fn schedules_across_save_and_load() {
    save_and_load::<f32>(3e-6);
    save_and_load::<f64>(1e-14);
}

/// What the documentation says of skipped channels.
#[test]
fn skipped_channels() {
    let cumulative = RunningStats::new(Momentum::Cumulative, Variance::Biased).unwrap();
    let debiased = RunningStats::new(Momentum::WeighNew(0.5), Variance::Biased).unwrap().with_zero_debias();
    let run = |rule: RunningStats, means: &[f64]| {
        let (mut mean, mut var, mut n) = ([0.0_f64], [1.0_f64], 0);
        let mut skips = 0;
        for &mean_now in means {
            let batch = [Moments { count: 2, mean: mean_now, m2: 4.0 }];
            skips += rule.update(&batch, &mut mean, &mut var, Some(&mut n)).unwrap();
        }
        assert_eq!(n, means.len() as u64);
        (mean[0], skips)
    };
    let near = |(mean, skips): (f64, usize), expected: f64| (mean - expected).abs() < 1e-15 && skips == 1;
    // As 3, 3, 9.
    assert!(near(run(cumulative, &[3.0, f64::NAN, 9.0]), 5.0));
    assert!(near(run(debiased, &[3.0, f64::NAN, 9.0]), (0.25 * 3.0 + 0.5 * 3.0 + 9.0) / 1.75));
    // The initial value stands in: as 0, 6, 3.
    assert!(near(run(cumulative, &[f64::INFINITY, 6.0, 3.0]), 3.0));
    assert!(near(run(debiased, &[f64::INFINITY, 6.0]), 6.0 * 2.0 / 3.0));

    // No values at all are skipped too; one value has a mean, but no unbiased variance.
    let unbiased = RunningStats::new(Momentum::Cumulative, Variance::Unbiased).unwrap();
    let (mut mean, mut var, mut n) = ([2.0, 2.0], [5.0, 5.0], 0);
    let batch = [Moments::EMPTY, Moments { count: 1, mean: 4.0, m2: 0.0 }];
    assert_eq!(unbiased.update(&batch, &mut mean, &mut var, Some(&mut n)), Ok(1));
    assert_eq!((mean, var, n), ([2.0, 4.0], [5.0, 5.0], 1));
    // Nor does a deviation that is no number come with a mean.
    let batch = [Moments { count: 1, mean: 4.0, m2: f64::NAN }, Moments { count: 1, mean: f64::NAN, m2: 0.0 }];
    assert_eq!(unbiased.update(&batch, &mut mean, &mut var, Some(&mut n)), Ok(2));
    assert_eq!((mean, var, n), ([2.0, 4.0], [5.0, 5.0], 2));
}

#[test]
fn a_count_is_needed() {
    let batch = [Moments { count: 2, mean: 1.0, m2: 4.0 }];
    for rule in [
        RunningStats::keras(0.9).unwrap().with_zero_debias(),
        RunningStats::pytorch(0.0).unwrap().with_zero_debias(),
        RunningStats::new(Momentum::Cumulative, Variance::Biased).unwrap(),
    ] {
        let (mut mean, mut var) = ([7.0_f32], [8.0_f32]);
        let expected = Err(Error::Missing { what: "num_batches" });
        assert_eq!(rule.update(&batch, &mut mean, &mut var, None), expected);
        assert_eq!((mean, var), ([7.0], [8.0]));
    }
    // Nor is it counted when something else is wrong.
    let (mut mean, mut var, mut n) = ([7.0_f32; 2], [8.0_f32], 3);
    let rule = RunningStats::keras(0.9).unwrap().with_zero_debias();
    let expected = Err(Error::Length { what: "running_mean", expected: 1, got: 2 });
    assert_eq!(rule.update(&batch, &mut mean, &mut var, Some(&mut n)), expected);
    assert_eq!((mean, var, n), ([7.0; 2], [8.0], 3));
}
