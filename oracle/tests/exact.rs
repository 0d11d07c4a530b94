//! The oracle is right: numbers worked out by hand, inputs whose statistics are exact by construction, and
//! plain f64 on benign data.

use bn_oracle::bounds::Activation;
use bn_oracle::data::{Family, Random, Range, values};
use bn_oracle::{Channel, Real};

/// A channel of four values, and all that follows, in numbers that f64 holds exactly.
struct Worked {
    x: [f64; 4],
    dy: [f64; 4],
    gamma: f64,
    beta: f64,
    mean: f64,
    variance: f64,
    y: [f64; 4],
    dx: [f64; 4],
    dgamma: f64,
    dbeta: f64,
}

/// ε is 4 in both.
const WORKED: [Worked; 2] = [
    // mean = 16/4 = 4; x − mean = −3 −1 1 3; var = (9 + 1 + 1 + 9)/4 = 5; σ = √(5 + 4) = 3; s = 6/3 = 2.
    // y = 2·(−3 −1 1 3) + 1.
    // Σdy = 4, mean 1; dot = Σ dy·(x − mean) = 9 + 3 + 3 + 21 = 36; dγ = 36/3 = 12; dot/(n·σ²) = 36/(4·9) = 1;
    // dx = 2·((dy − 1) − 1·(x − mean)) = 2·(−4+3, −4+1, 2−1, 6−3).
    Worked {
        x: [1.0, 3.0, 5.0, 7.0],
        dy: [-3.0, -3.0, 3.0, 7.0],
        gamma: 6.0,
        beta: 1.0,
        mean: 4.0,
        variance: 5.0,
        y: [-5.0, -1.0, 3.0, 7.0],
        dx: [-2.0, -6.0, 2.0, 6.0],
        dgamma: 12.0,
        dbeta: 4.0,
    },
    // mean = 4/4 = 1; x − mean = −6 2 2 2; var = (36 + 4 + 4 + 4)/4 = 12; σ = √16 = 4; s = 8/4 = 2.
    // y = 2·(−6 2 2 2) − 3.
    // Σdy = 4, mean 1; dot = 42 + 2 + 8 + 12 = 64; dγ = 64/4 = 16; dot/(n·σ²) = 64/(4·16) = 1;
    // dx = 2·((dy − 1) − 1·(x − mean)) = 2·(−8+6, 0−2, 3−2, 5−2).
    Worked {
        x: [-5.0, 3.0, 3.0, 3.0],
        dy: [-7.0, 1.0, 4.0, 6.0],
        gamma: 8.0,
        beta: -3.0,
        mean: 1.0,
        variance: 12.0,
        y: [-15.0, 1.0, 1.0, 1.0],
        dx: [-4.0, -4.0, 2.0, 6.0],
        dgamma: 16.0,
        dbeta: 4.0,
    },
];

fn exactly(v: f64) -> Real {
    v.into()
}

#[test]
fn worked_by_hand() {
    for w in &WORKED {
        let ch = Channel::batch(w.x.into_iter(), 4.0);
        assert_eq!((ch.mean(), ch.variance()), (exactly(w.mean), exactly(w.variance)));
        assert_eq!(ch.m2(), exactly(4.0 * w.variance));
        let b = ch.backward(w.gamma, w.x.into_iter().zip(w.dy).map(|(x, dy)| (x, dy, 1.0)));
        assert_eq!((b.dgamma(), b.dbeta()), (exactly(w.dgamma), exactly(w.dbeta)));
        for i in 0..4 {
            assert_eq!(ch.y(w.x[i], w.gamma, w.beta, 0.0), exactly(w.y[i]));
            assert_eq!(ch.y(w.x[i], w.gamma, w.beta, 0.5), exactly(w.y[i] + 0.5));
            assert_eq!(b.dx(w.x[i], w.dy[i], 1.0), exactly(w.dx[i]));
        }
        // With the same statistics given: y is the same, dx is s·dy, s = 2.
        let given = Channel::given(w.mean, w.variance, 4.0);
        let b = given.backward(w.gamma, w.x.into_iter().zip(w.dy).map(|(x, dy)| (x, dy, 1.0)));
        assert_eq!((b.dgamma(), b.dbeta()), (exactly(w.dgamma), exactly(w.dbeta)));
        for i in 0..4 {
            assert_eq!(given.y(w.x[i], w.gamma, w.beta, 0.0), exactly(w.y[i]));
            assert_eq!(b.dx(w.x[i], w.dy[i], 1.0), exactly(2.0 * w.dy[i]));
        }
        // A variance that somebody has rounded, to itself.
        let same = ch.clone().with_variance(w.variance);
        assert_eq!(same.y(w.x[0], w.gamma, w.beta, 0.0), exactly(w.y[0]));
    }
}

#[test]
fn masks() {
    // The first worked example with dy twice as large at the two elements that the slope of ½ halves.
    let w = &WORKED[0];
    let ch = Channel::batch(w.x.into_iter(), 4.0);
    let relu = Activation::LeakyRelu(0.5);
    let dy = [-6.0, -6.0, 3.0, 7.0];
    let b = ch.backward(6.0, (0..4).map(|i| (w.x[i], dy[i], relu.factor(w.y[i]))));
    assert_eq!((b.dgamma(), b.dbeta()), (exactly(12.0), exactly(4.0)));
    for i in 0..4 {
        assert_eq!(b.dx(w.x[i], dy[i], relu.factor(w.y[i])), exactly(w.dx[i]));
    }
    assert_eq!(relu.forward(exactly(-3.0)), exactly(-1.5));
    assert_eq!(Activation::Relu.forward(exactly(-3.0)), exactly(0.0));
    assert_eq!(Activation::Relu.factor(0.0), 0.0);
    let clamp = Activation::Clamp(0.0, 6.0);
    assert_eq!([-1.0, 3.0, 7.0].map(|z| clamp.forward(exactly(z)).hi), [0.0, 3.0, 6.0]);
    assert_eq!([0.0, 3.0, 6.0].map(|y| clamp.factor(y)), [0.0, 1.0, 0.0]);
}

#[test]
fn nothing_cancels() {
    // The smallest and the largest f32 in one channel; 1 and its neighbour; ±the largest.
    let tiny = f32::from_bits(1) as f64;
    let max = f32::MAX as f64;
    for (a, b) in [(tiny, 0.0), (1.0, 1.0 + f32::EPSILON as f64), (max, -max), (1.0, tiny), (1.0, 1.0 + f64::EPSILON)] {
        let ch = Channel::batch([a, b].into_iter(), 0.0);
        assert_eq!(ch.y(a, 1.0, 0.0, 0.0), exactly(if a > b { 1.0 } else { -1.0 }));
        assert_eq!(ch.y(b, 3.0, 0.5, 0.0), exactly(0.5 + if a > b { -3.0 } else { 3.0 }));
        // dy is a·x̂ + b for any two values: dx is 0.
        let back = ch.backward(1.0, [(a, 1e10, 1.0), (b, 1e-10, 1.0)].into_iter());
        assert_eq!(back.dx(a, 1e10, 1.0), exactly(0.0));
    }
    // A constant channel: x̂ = 0 by definition where ε = 0.
    let ch = Channel::batch([0.1; 7].into_iter(), 0.0);
    assert_eq!((ch.mean(), ch.variance(), ch.y(0.1, 2.0, 0.7, 0.0)), (exactly(0.1), exactly(0.0), exactly(0.7)));
    let b = ch.backward(1.0, [(0.1, 1.0, 1.0); 7].into_iter());
    assert_eq!((b.dgamma(), b.dbeta(), b.dx(0.1, 1.0, 1.0)), (exactly(0.0), exactly(7.0), exactly(0.0)));
}

/// Pairs m ± d with d a power of two, as oneDNN's benchdnn builds them: the mean is m, the variance the mean
/// of d², and both are numbers that f32 holds.
#[test]
fn exact_by_construction() {
    let mut r = Random(1);
    for round in 0..500 {
        let pairs = 1 << (round % 8);
        let mean = (r.below(256) as f64 - 128.0) * 2f64.powi(-(r.below(8) as i32));
        let d: Vec<f64> = (0..pairs).map(|_| 2f64.powi(-(r.below(4) as i32))).collect();
        let x: Vec<f64> = d.iter().flat_map(|d| [mean + d, mean - d]).collect();
        let variance = d.iter().map(|d| d * d).sum::<f64>() / pairs as f64;
        let ch = Channel::batch(x.iter().copied(), 0.0);
        assert_eq!((ch.mean(), ch.variance()), (exactly(mean), exactly(variance)));
        assert_eq!((mean as f32 as f64, variance as f32 as f64), (mean, variance), "f32 holds them");
    }
    // And those that the sweep draws.
    for seed in 0..100 {
        let x = values(Family::Pairs, &mut Random(seed), 64, &Range::F32);
        let ch = Channel::batch(x.iter().copied(), 0.0);
        assert_eq!(ch.mean().lo, 0.0);
        assert_eq!(ch.mean().hi as f32 as f64, ch.mean().hi);
        assert_eq!(ch.variance().hi as f32 as f64, ch.variance().hi);
    }
}

#[test]
fn agrees_with_plain_f64_on_benign_data() {
    let mut r = Random(3);
    for round in 0..300 {
        let n = 2 + r.below(200);
        let (gamma, beta, epsilon) = (r.normal(), r.normal(), if round % 2 == 0 { 1e-5 } else { 0.0 });
        let x: Vec<f64> = (0..n).map(|_| 3.0 + r.normal()).collect();
        let dy: Vec<f64> = (0..n).map(|_| r.normal() - 0.5).collect();
        let factor = |i: usize| if i.is_multiple_of(3) { 0.25 } else { 1.0 };
        let count = n as f64;
        let mean = x.iter().sum::<f64>() / count;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let sigma = (variance + epsilon).sqrt();
        let dz: Vec<f64> = dy.iter().enumerate().map(|(i, d)| d * factor(i)).collect();
        let dbeta = dz.iter().sum::<f64>();
        let dgamma = x.iter().zip(&dz).map(|(x, d)| d * (x - mean) / sigma).sum::<f64>();
        let ch = Channel::batch(x.iter().copied(), epsilon);
        let b = ch.backward(gamma, (0..n).map(|i| (x[i], dy[i], factor(i))));
        let near = |a: f64, b: f64, scale: f64| assert!((a - b).abs() <= 1e-13 * scale, "{a:e} and {b:e}");
        near(ch.mean().hi, mean, 10.0);
        near(ch.variance().hi, variance, 10.0);
        near(b.dbeta().hi, dbeta, count);
        near(b.dgamma().hi, dgamma, 10.0 * count);
        near(b.dot().hi, dgamma * sigma, 10.0 * count);
        near(b.mean_dz().hi, dbeta / count, 1.0);
        near(ch.scale(gamma).hi, gamma / sigma, 10.0 / sigma);
        for i in 0..n {
            let hat = (x[i] - mean) / sigma;
            near(ch.normalized(x[i]).hi, hat, 100.0 / sigma);
            near(ch.y(x[i], gamma, beta, 0.0).hi, gamma * hat + beta, 100.0 / sigma);
            let dx = gamma / sigma * (dz[i] - dbeta / count - hat * dgamma / count);
            near(b.dx(x[i], dy[i], factor(i)).hi, dx, 100.0 / sigma);
        }
        // The gradient is orthogonal to 1 and, but for ε, to x̂.
        let total: f64 = (0..n).map(|i| b.dx(x[i], dy[i], factor(i)).hi).sum();
        near(total, 0.0, count * 10.0 / sigma);
    }
}

#[test]
fn differences_confirm_the_gradient() {
    // Σ dy·y differentiated by each x, γ and β, with a step that the exact y can resolve.
    let mut r = Random(9);
    let x: Vec<f64> = (0..9).map(|_| r.normal() * 2.0).collect();
    let dy: Vec<f64> = (0..9).map(|_| r.normal()).collect();
    let (gamma, beta, epsilon, step) = (1.3, 0.4, 1e-2, 2f64.powi(-17));
    let loss = |x: &[f64], gamma: f64, beta: f64| -> f64 {
        let ch = Channel::batch(x.iter().copied(), epsilon);
        let mut s = bn_oracle::Sum::default();
        for (x, dy) in x.iter().zip(&dy) {
            let y = ch.y(*x, gamma, beta, 0.0);
            s.add_product(*dy, y.hi);
            s.add_product(*dy, y.lo);
        }
        s.real().hi
    };
    let ch = Channel::batch(x.iter().copied(), epsilon);
    let b = ch.backward(gamma, x.iter().zip(&dy).map(|(x, dy)| (*x, *dy, 1.0)));
    for i in 0..9 {
        let shift = |h: f64| {
            let mut x = x.clone();
            x[i] += h;
            loss(&x, gamma, beta)
        };
        let difference = (shift(step) - shift(-step)) / (2.0 * step);
        assert!((difference - b.dx(x[i], dy[i], 1.0).hi).abs() < 1e-9);
    }
    let by_gamma = (loss(&x, gamma + step, beta) - loss(&x, gamma - step, beta)) / (2.0 * step);
    assert!((by_gamma - b.dgamma().hi).abs() < 1e-9);
    let by_beta = (loss(&x, gamma, beta + step) - loss(&x, gamma, beta - step)) / (2.0 * step);
    assert!((by_beta - b.dbeta().hi).abs() < 1e-9);
}
