//! The kinds of data that break batch normalizations.

/// A small generator with a known sequence (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In (0, 1).
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
    /// Below n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
    /// 1 or −1.
    pub fn sign(&mut self) -> f64 {
        if self.bits() & 1 == 0 { 1.0 } else { -1.0 }
    }
    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A kind of data for x.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Normal, mean/std from 0 to 10⁷.
    Ratio,
    /// Normal, of every magnitude from subnormal to the top of the range.
    Magnitude,
    /// Normal, and one value far away.
    Outlier,
    /// One value.
    Constant,
    /// Two values, far apart or neighbours.
    TwoValued,
    /// Ascending or descending, about a large mean or not.
    Sorted,
    /// Of a period from 2 to 64.
    Periodic,
    /// Huge, with alternating signs.
    Alternating,
    /// Each value of a magnitude of its own.
    Mixed,
    /// A few ulps about a mean.
    Ulps,
    /// Addends that a sum in element precision loses, all to the same side.
    Lossy,
    /// Pairs m ± d with powers of two: mean and variance are exact.
    Pairs,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 12] = [
        Family::Ratio,
        Family::Magnitude,
        Family::Outlier,
        Family::Constant,
        Family::TwoValued,
        Family::Sorted,
        Family::Periodic,
        Family::Alternating,
        Family::Mixed,
        Family::Ulps,
        Family::Lossy,
        Family::Pairs,
    ];

    /// As the tables say it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Ratio => "mean/std 0 to 1e7",
            Family::Magnitude => "every magnitude",
            Family::Outlier => "one outlier",
            Family::Constant => "constant",
            Family::TwoValued => "two-valued",
            Family::Sorted => "sorted",
            Family::Periodic => "periodic",
            Family::Alternating => "alternating huge signs",
            Family::Mixed => "mixed magnitudes",
            Family::Ulps => "a few ulps",
            Family::Lossy => "addends that get lost",
            Family::Pairs => "exact pairs",
        }
    }
}

/// A kind of data for dy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gradient {
    /// Normal.
    Normal,
    /// Normal, with a mean up to 10⁷ times that.
    LargeMean,
    /// a·x̂ + b and very little else: dx is all cancellation.
    Parallel,
    /// Normal, of every magnitude.
    Magnitude,
    /// Normal, and one value far away.
    Outlier,
    /// Two values, by the sign of x − mean or at random.
    TwoValued,
}

impl Gradient {
    /// All of them.
    pub const ALL: [Gradient; 6] = [
        Gradient::Normal,
        Gradient::LargeMean,
        Gradient::Parallel,
        Gradient::Magnitude,
        Gradient::Outlier,
        Gradient::TwoValued,
    ];

    /// As the tables say it.
    pub fn name(self) -> &'static str {
        match self {
            Gradient::Normal => "dy normal",
            Gradient::LargeMean => "dy with a large mean",
            Gradient::Parallel => "dy parallel to x̂",
            Gradient::Magnitude => "dy of every magnitude",
            Gradient::Outlier => "dy with one outlier",
            Gradient::TwoValued => "dy two-valued",
        }
    }
}

/// What an element type can hold: how to round to it, and the powers of two of its smallest and largest
/// magnitudes worth trying.
#[derive(Clone, Copy)]
pub struct Range {
    /// Rounds.
    pub round: fn(f64) -> f64,
    /// The smallest power of two.
    pub low: i32,
    /// The largest.
    pub high: i32,
    /// The lowest for which a standard deviation's square is still a normal number.
    pub low_std: i32,
    /// Digits.
    pub digits: i32,
}

impl Range {
    /// f32: everything.
    pub const F32: Range = Range { round: |v| v as f32 as f64, low: -149, high: 127, low_std: -149, digits: 24 };
    /// f64: the documented range.
    pub const F64: Range = Range { round: |v| v, low: -1074, high: 498, low_std: -495, digits: 53 };

    /// f16: everything. (Rounding is the caller's: this crate's arithmetic has no f16.)
    pub const F16: Range = Range { round: |v| v, low: -24, high: 15, low_std: -24, digits: 11 };
    /// bf16: everything; so for it.
    pub const BF16: Range = Range { round: |v| v, low: -133, high: 127, low_std: -133, digits: 8 };

    fn magnitude(&self, r: &mut Random) -> f64 {
        2f64.powi(self.low_std + r.below((self.high - 3 - self.low_std) as usize) as i32)
    }

    fn largest(&self) -> f64 {
        2f64.powi(self.high) * 1.9
    }
}

fn fill(x: &mut [f64], mut f: impl FnMut() -> f64) {
    for x in x {
        *x = f();
    }
}

/// n values of a channel.
pub fn values(family: Family, r: &mut Random, n: usize, range: &Range) -> Vec<f64> {
    let ten = |e: f64| 10f64.powf(e);
    let mut x = vec![0.0; n];
    match family {
        Family::Ratio => {
            let std = ten(6.0 * r.uniform() - 3.0);
            let mean = r.sign() * std * r.pick(&[0.0, 1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7]);
            fill(&mut x, || mean + std * r.normal());
        }
        Family::Magnitude => {
            let std = range.magnitude(r);
            let mean = r.pick(&[0.0, 1.0, 1.0, 3.0]) * std;
            fill(&mut x, || mean + std * r.normal());
        }
        Family::Outlier => {
            let std = ten(4.0 * r.uniform() - 2.0);
            let mean = r.pick(&[0.0, 1.0, 1e3]) * std;
            fill(&mut x, || mean + std * r.normal());
            let far = if r.below(4) == 0 { range.largest() } else { std * ten(8.0 * r.uniform()) };
            let at = r.below(n);
            x[at] = r.sign() * far;
        }
        Family::Constant => {
            let v = match r.below(3) {
                0 => range.largest() * r.sign(),
                1 => r.normal(),
                _ => range.magnitude(r) * r.normal(),
            };
            x.fill(v);
        }
        Family::TwoValued => {
            let a = (range.round)(if r.below(3) == 0 { range.magnitude(r) } else { r.normal() });
            let b = match r.below(3) {
                0 => a * (1.0 + 2f64.powi(1 - range.digits)),
                1 => a * (1.0 + r.normal()),
                _ => r.normal(),
            };
            let share = r.pick(&[0.5, 0.25, 0.1, 0.01]);
            fill(&mut x, || if r.uniform() < share { b } else { a });
        }
        Family::Sorted => {
            let (mut v, step) = (r.pick(&[0.0, 1.0, 1e3, 1e6]), r.sign() * ten(4.0 * r.uniform() - 3.0));
            fill(&mut x, || {
                v += step * r.uniform();
                v
            });
        }
        Family::Periodic => {
            let period = r.pick(&[2, 3, 4, 7, 8, 16, 31, 32, 64]);
            let std = ten(4.0 * r.uniform() - 2.0);
            let base: Vec<f64> = (0..period).map(|_| std * r.normal()).collect();
            let mean = r.pick(&[0.0, 1.0, 1e4]);
            for (i, x) in x.iter_mut().enumerate() {
                *x = mean + base[i % period];
            }
        }
        Family::Alternating => {
            let top = if r.below(2) == 0 { range.largest() } else { range.largest() * r.uniform() };
            let noise = r.pick(&[0.0, 0.1]);
            for (i, x) in x.iter_mut().enumerate() {
                *x = (if i % 2 == 0 { top } else { -top }) * (1.0 - noise * r.uniform());
            }
        }
        Family::Mixed => fill(&mut x, || range.magnitude(r) * r.normal() * 0.125),
        Family::Ulps => {
            let base = (range.round)(if r.below(2) == 0 { 1.0 + r.uniform() } else { range.magnitude(r) });
            let (ulp, width) = (base.abs() * 2f64.powi(1 - range.digits), r.pick(&[2, 4, 20]));
            fill(&mut x, || base + ulp * r.below(width) as f64);
        }
        Family::Lossy => {
            // One large square per stretch; the others are just below half its ulp, or of one value
            // whose low bits are lost at each addition.
            let stretch = r.pick(&[16, 64, 128, 256, 1024, 4096]);
            let width = r.pick(&[1, 8, 16, 64]);
            let small = 2f64.powf(-(range.digits as f64) / 2.0 + r.pick(&[0.0, 2.0, 4.0, 6.0]) - 0.01 * r.uniform());
            let pivot = r.pick(&[0.0, 0.0, 0.5]);
            for (i, x) in x.iter_mut().enumerate() {
                let large = i % stretch < width;
                let sign = if (i / 2) % 2 == i % 2 { 1.0 } else { -1.0 };
                *x = if large { sign } else { sign * small + pivot * small };
            }
        }
        Family::Pairs => {
            let mean = r.below(64) as f64 - 32.0;
            let mut d = 0.0;
            for (i, x) in x.iter_mut().enumerate() {
                if i % 2 == 0 {
                    d = 2f64.powi(-(r.below(4) as i32));
                }
                *x = if i + 1 == n && n % 2 == 1 { mean } else { mean + if i % 2 == 0 { d } else { -d } };
            }
        }
    }
    let top = (range.round)(range.largest());
    for x in &mut x {
        *x = (range.round)(x.clamp(-top, top));
    }
    x
}

/// n values of dy for a channel of x.
pub fn gradients(kind: Gradient, r: &mut Random, x: &[f64], range: &Range) -> Vec<f64> {
    let n = x.len();
    let mut dy = vec![0.0; n];
    match kind {
        Gradient::Normal => fill(&mut dy, || r.normal()),
        Gradient::LargeMean => {
            let mean = r.sign() * r.pick(&[1.0, 1e2, 1e4, 1e5, 1e7]);
            fill(&mut dy, || mean + r.normal());
        }
        Gradient::Parallel => {
            let mean = x.iter().map(|x| x / n as f64).sum::<f64>();
            let top = x.iter().fold(0.0f64, |m, x| m.max((x - mean).abs()));
            let rms = (x.iter().map(|x| ((x - mean) / top).powi(2)).sum::<f64>() / n as f64).sqrt() * top;
            let (a, b, noise) = (r.normal(), r.pick(&[0.0, 1.0, 100.0]), r.pick(&[0.0, 1e-6, 1e-3]));
            for (dy, x) in dy.iter_mut().zip(x) {
                let hat = if rms > 0.0 { (x - mean) / rms } else { 0.0 };
                *dy = a * hat + b + noise * r.normal();
            }
        }
        Gradient::Magnitude => {
            let std = 2f64.powi(range.low_std + r.below((range.high - 4 - range.low_std) as usize) as i32);
            fill(&mut dy, || std * r.normal());
        }
        Gradient::Outlier => {
            fill(&mut dy, || r.normal());
            let at = r.below(n);
            dy[at] = 10f64.powf(30.0 * r.uniform());
        }
        Gradient::TwoValued => {
            let (a, b) = (r.normal(), r.normal());
            let mean = x.iter().map(|x| x / n as f64).sum::<f64>();
            let aligned = r.below(2) == 0;
            for (dy, x) in dy.iter_mut().zip(x) {
                *dy = if if aligned { *x > mean } else { r.below(2) == 0 } { a } else { b };
            }
        }
    }
    let top = (range.round)(range.largest());
    for dy in &mut dy {
        *dy = (range.round)(if dy.is_nan() { 0.0 } else { dy.clamp(-top, top) });
    }
    dy
}

/// The elements of a channel, image by image, in a dense tensor of batch × channels × spatial
/// positions.
pub fn places(
    channels_last: bool,
    batch: usize,
    channels: usize,
    spatial: usize,
    channel: usize,
) -> impl Iterator<Item = usize> + Clone {
    (0..batch).flat_map(move |b| {
        (0..spatial).map(move |p| {
            if channels_last { (b * spatial + p) * channels + channel } else { (b * channels + channel) * spatial + p }
        })
    })
}
