//! The reference is right: by numbers worked out by hand, and by its own differences.
//!
//! Everything else is measured by the functions of `common`, so they are measured by something that
//! needs no program.

mod common;
use bn_core::{Activation, Shape};
use common::problem::{Problem, activate, mask};
use common::{Channel, Random, backward, mean_var, places, sum};

/// A channel of four values, and all that follows, in numbers that f64 holds exactly.
struct Worked {
    x: [f64; 4],
    dy: [f64; 4],
    channel: Channel,
    y: [f64; 4],
    dx: [f64; 4],
    dgamma: f64,
    dbeta: f64,
}

/// ε is 4 in all, so that variances of 5, 12, 0 and 21 have deviations of 3, 4, 2 and 5.
const WORKED: [Worked; 4] = [
    // mean = 16/4 = 4; x − mean = −3 −1 1 3; var = (9 + 1 + 1 + 9)/4 = 5; σ = √(5 + 4) = 3; s = 6/3 = 2.
    // y = 2·(−3 −1 1 3) + 1.
    // Σdy = 4, mean 1; dot = Σ dy·(x − mean) = 9 + 3 + 3 + 21 = 36; dγ = 36/3 = 12; dot/(n·σ²) = 36/(4·9) = 1;
    // dx = 2·((dy − 1) − 1·(x − mean)) = 2·(−4+3, −4+1, 2−1, 6−3).
    Worked {
        x: [1.0, 3.0, 5.0, 7.0],
        dy: [-3.0, -3.0, 3.0, 7.0],
        channel: Channel { mean: 4.0, var: 5.0, gamma: 6.0, beta: 1.0, epsilon: 4.0 },
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
        channel: Channel { mean: 1.0, var: 12.0, gamma: 8.0, beta: -3.0, epsilon: 4.0 },
        y: [-15.0, 1.0, 1.0, 1.0],
        dx: [-4.0, -4.0, 2.0, 6.0],
        dgamma: 16.0,
        dbeta: 4.0,
    },
    // A constant: mean = 10; var = 0; σ = √4 = 2; s = −2/2 = −1; y = β.
    // Σdy = 12, mean 3; dot = 0; dx = −1·(dy − 3).
    Worked {
        x: [10.0, 10.0, 10.0, 10.0],
        dy: [1.0, 2.0, 3.0, 6.0],
        channel: Channel { mean: 10.0, var: 0.0, gamma: -2.0, beta: 5.0, epsilon: 4.0 },
        y: [5.0, 5.0, 5.0, 5.0],
        dx: [2.0, 1.0, 0.0, -3.0],
        dgamma: 0.0,
        dbeta: 12.0,
    },
    // mean = 400/4 = 100; x − mean = −5 −3 1 7; var = (25 + 9 + 1 + 49)/4 = 21; σ = √25 = 5; s = −10/5 = −2.
    // y = −2·(−5 −3 1 7) + 1.
    // Σdy = −8, mean −2; dot = −15 − 15 − 7 − 63 = −100; dγ = −100/5 = −20; dot/(n·σ²) = −100/(4·25) = −1;
    // dx = −2·((dy + 2) + 1·(x − mean)) = −2·(5−5, 7−3, −5+1, −7+7).
    Worked {
        x: [95.0, 97.0, 101.0, 107.0],
        dy: [3.0, 5.0, -7.0, -9.0],
        channel: Channel { mean: 100.0, var: 21.0, gamma: -10.0, beta: 1.0, epsilon: 4.0 },
        y: [11.0, 7.0, -1.0, -13.0],
        dx: [0.0, -8.0, 8.0, 0.0],
        dgamma: -20.0,
        dbeta: -8.0,
    },
];

#[test]
fn worked_by_hand() {
    for w in WORKED {
        assert_eq!(mean_var(w.x.into_iter()), (w.channel.mean, w.channel.var));
        assert_eq!(w.x.map(|x| w.channel.y(x)), w.y);
        let (dx, dgamma, dbeta) = backward(&w.channel, &w.x, &w.dy);
        // The reference multiplies by 1/3 and 1/5, which f64 does not hold: hence not to the last bit.
        for (a, b) in dx.iter().zip(w.dx) {
            assert!((a - b).abs() < 1e-14, "{a} {b}");
        }
        assert!((dgamma - w.dgamma).abs() < 1e-14, "{dgamma} {}", w.dgamma);
        assert_eq!(dbeta, w.dbeta);
    }
}

/// The same numbers as tensors of 2 images × 4 channels × 2 positions, element by element as they lie
/// in memory.
#[test]
fn worked_by_hand_as_tensors() {
    // Image 0 has the first two values of each channel, image 1 the last two.
    #[rustfmt::skip]
    let nchw = [
        1., 3.,   -5., 3.,   10., 10.,   95., 97.,
        5., 7.,    3., 3.,   10., 10.,  101., 107.,
    ];
    #[rustfmt::skip]
    let nhwc = [
        1., -5., 10.,  95.,    3., 3., 10.,  97.,
        5.,  3., 10., 101.,    7., 3., 10., 107.,
    ];
    for (shape, x) in [(Shape::nchw(2, 4, &[2]).unwrap(), nchw), (Shape::nhwc(2, 4, &[2]).unwrap(), nhwc)] {
        let mut dy = vec![0.0; 16];
        for (c, w) in WORKED.iter().enumerate() {
            for (i, (v, g)) in places(shape, c).zip(w.x.iter().zip(w.dy)) {
                assert_eq!(x[i], *v, "{shape:?} channel {c}");
                dy[i] = g;
            }
        }
        let p = Problem::<f64> {
            seed: 0,
            shape,
            epsilon: 4.0,
            activation: Activation::Identity,
            x: x.to_vec(),
            dy,
            residual: None,
            gamma: Some(WORKED.map(|w| w.channel.gamma).to_vec()),
            beta: Some(WORKED.map(|w| w.channel.beta).to_vec()),
        };
        let f = p.exact_forward();
        let b = p.exact_backward(&f.channels, &f.y);
        for (c, w) in WORKED.iter().enumerate() {
            assert_eq!(f.channels[c], w.channel);
            assert_eq!(places(shape, c).map(|i| f.y[i]).collect::<Vec<_>>(), w.y);
            for (i, dx) in places(shape, c).zip(w.dx) {
                assert!((b.dx[i] - dx).abs() < 1e-14, "{} {dx}", b.dx[i]);
            }
            assert!((b.dgamma[c] - w.dgamma).abs() < 1e-14);
            assert_eq!(b.dbeta[c], w.dbeta);
        }
        // What bounds are made of: |s|·max |dy − mean dy| = 2·6, 2·8, 1·3, 2·7.
        assert_eq!(f.top, [7.0, 15.0, 5.0, 13.0]);
        for (a, b) in b.spread.iter().zip([12.0, 16.0, 3.0, 14.0]) {
            assert!((a - b).abs() < 1e-14, "{a} {b}");
        }
    }
}

/// Without ε a constant channel has 1/σ = 1/0, which the library defines as 0.
#[test]
fn constant_without_epsilon() {
    let ch = Channel { mean: 3.0, var: 0.0, gamma: 2.0, beta: 7.0, epsilon: 0.0 };
    assert_eq!(ch.y(3.0), 7.0);
    assert_eq!(backward(&ch, &[3.0; 3], &[1.0, 2.0, 6.0]), (vec![0.0; 3], 0.0, 9.0));
}

/// 2⁶⁰ + 1 − 2⁶⁰ is 0 in f64, whichever end one starts from.
#[test]
fn sums_keep_what_f64_loses() {
    let big = 2f64.powi(60);
    assert_eq!((big + 1.0) - big, 0.0);
    assert_eq!(sum([big, 1.0, -big].into_iter()), 1.0);
    assert_eq!(sum([1.0, big, 1.0, -big].into_iter()), 2.0);
}

#[test]
fn activations_by_hand() {
    let z = [-8.0, -0.5, 0.0, 0.5, 6.0, 8.0];
    let leaky = Activation::LeakyRelu { slope: 0.25 };
    let relu6 = Activation::Clamp { lo: 0.0, hi: 6.0 };
    let table = [
        (Activation::Identity, [-8.0, -0.5, 0.0, 0.5, 6.0, 8.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (Activation::Relu, [0.0, 0.0, 0.0, 0.5, 6.0, 8.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
        (leaky, [-2.0, -0.125, 0.0, 0.5, 6.0, 8.0], [0.25, 0.25, 0.25, 1.0, 1.0, 1.0]),
        (relu6, [0.0, 0.0, 0.0, 0.5, 6.0, 6.0], [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
    ];
    for (a, y, slope) in table {
        assert_eq!(z.map(|z| activate(a, z)), y, "{a:?}");
        assert_eq!(y.map(|y| mask(a, y, 4.0)), slope.map(|s| 4.0 * s), "{a:?}");
    }
}

/// The gradient of Σ w·y by central differences of fourth order. Their error is about (h/σ)⁴ from the
/// curvature and 2⁻⁵³·|mean|/h from rounding; at h = 2e-3·σ the latter leads (halving h doubles the
/// error), with 6e-12.
#[test]
fn gradients_are_differences() {
    let mut r = Random(1);
    let mut worst = 0.0f64;
    for (n, epsilon, mean, std) in
        [(2, 1.0, 0.0, 1.0), (3, 0.1, 5.0, 2.0), (10, 1e-5, -1.0, 0.1), (50, 0.0, 20.0, 3.0), (7, 1e-3, 0.0, 1e-2)]
    {
        let x: Vec<f64> = (0..n).map(|_| mean + std * r.normal()).collect();
        let w: Vec<f64> = (0..n).map(|_| 1.0 + r.normal()).collect();
        let (gamma, beta) = (1.0 + r.normal(), r.normal());
        let channel = |x: &[f64], gamma, beta| {
            let (mean, var) = mean_var(x.iter().copied());
            Channel { mean, var, gamma, beta, epsilon }
        };
        let loss = |x: &[f64], gamma, beta| {
            let ch = channel(x, gamma, beta);
            sum(x.iter().zip(&w).map(|(&x, w)| w * ch.y(x)))
        };
        let difference =
            |f: &dyn Fn(f64) -> f64, h: f64| (8.0 * (f(h) - f(-h)) - (f(2.0 * h) - f(-2.0 * h))) / (12.0 * h);
        let ch = channel(&x, gamma, beta);
        let (dx, dgamma, dbeta) = backward(&ch, &x, &w);
        let h = 2e-3 / ch.inverse_std();
        // The gradients' own sizes: |γ|/σ·Σ|w| for x, Σ|w| for gamma and beta.
        let size = sum(w.iter().map(|w| w.abs()));
        for i in 0..n {
            let moved = |h: f64| {
                let mut x = x.clone();
                x[i] += h;
                loss(&x, gamma, beta)
            };
            worst = worst.max((dx[i] - difference(&moved, h)).abs() / (size * gamma.abs() * ch.inverse_std()));
        }
        worst = worst.max((dgamma - difference(&|h| loss(&x, gamma + h, beta), 1e-3)).abs() / size);
        worst = worst.max((dbeta - difference(&|h| loss(&x, gamma, beta + h), 1e-3)).abs() / size);
    }
    println!("worst difference: {worst:e}");
    assert!(worst < 1e-10, "{worst:e}");
}
