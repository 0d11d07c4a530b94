//! Batch normalization of one channel.

use crate::big::{Dyadic, InverseRoot, Real};
use crate::sum::Sum;

/// The statistics that a channel is normalized with, exactly.
#[derive(Clone, Debug)]
pub struct Channel {
    /// n, or 1 where the statistics are given.
    n: Dyadic,
    count: u64,
    /// n·mean.
    s: Dyadic,
    /// n²·variance.
    v0: Dyadic,
    /// n²·ε.
    epsilon: Dyadic,
    given: bool,
    root: Option<InverseRoot>,
}

impl Channel {
    /// The statistics of a batch.
    ///
    /// # Panics
    /// If there are no values, or one is not finite.
    pub fn batch(x: impl Iterator<Item = f64>, epsilon: f64) -> Self {
        let (mut s, mut q, mut count) = (Sum::default(), Sum::default(), 0);
        for x in x {
            s.add(x);
            q.add_product(x, x);
            count += 1;
        }
        assert!(count > 0, "a batch has values");
        let (n, s) = (Dyadic::integer(count), s.dyadic());
        let v0 = n.mul(&q.dyadic()).sub(&s.mul(&s)).reduced();
        Self::new(n, count, s, v0, epsilon, false)
    }

    /// Statistics from elsewhere: inference, frozen batch normalization.
    pub fn given(mean: f64, variance: f64, epsilon: f64) -> Self {
        let one = Dyadic::integer(1);
        Self::new(one, 1, Dyadic::of(mean), Dyadic::of(variance), epsilon, true)
    }

    fn new(n: Dyadic, count: u64, s: Dyadic, v0: Dyadic, epsilon: f64, given: bool) -> Self {
        let epsilon = n.mul(&n).mul(&Dyadic::of(epsilon));
        let v = v0.add(&epsilon);
        let root = (!v.is_zero()).then(|| InverseRoot::new(v));
        Channel { n, count, s, v0, epsilon, given, root }
    }

    /// The same batch and mean, but a variance that somebody has rounded.
    pub fn with_variance(mut self, variance: f64) -> Self {
        self.v0 = self.n.mul(&self.n).mul(&Dyadic::of(variance));
        let v = self.v();
        self.root = (!v.is_zero()).then(|| InverseRoot::new(v));
        self
    }

    fn v(&self) -> Dyadic {
        self.v0.add(&self.epsilon).reduced()
    }

    /// Values that the statistics are of; 1 where they are given.
    pub fn count(&self) -> u64 {
        self.count
    }
    /// The mean.
    pub fn mean(&self) -> Real {
        self.s.over(&self.n)
    }
    /// The biased variance.
    pub fn variance(&self) -> Real {
        self.v0.over(&self.n.mul(&self.n))
    }
    /// Σ (x − mean)².
    pub fn m2(&self) -> Real {
        self.v0.over(&self.n)
    }
    /// factor/√(variance + ε); 0 where that divides by 0.
    pub fn scale(&self, factor: f64) -> Real {
        self.times_root(&Dyadic::of(factor).mul(&self.n), &Dyadic::zero())
    }

    /// a/√V + b; b where V is 0.
    fn times_root(&self, a: &Dyadic, b: &Dyadic) -> Real {
        self.root.as_ref().map_or_else(|| b.real(), |r| r.times_plus(a, b))
    }

    /// n·x − n·mean.
    fn centred(&self, x: f64) -> Dyadic {
        self.n.mul(&Dyadic::of(x)).sub(&self.s)
    }

    /// (x − mean)/√(variance + ε).
    pub fn normalized(&self, x: f64) -> Real {
        self.times_root(&self.centred(x), &Dyadic::zero())
    }

    /// γ·x̂ + β + residual.
    pub fn y(&self, x: f64, gamma: f64, beta: f64, residual: f64) -> Real {
        let term = if residual == 0.0 { Dyadic::of(beta) } else { Dyadic::of(beta).add(&Dyadic::of(residual)) };
        self.times_root(&Dyadic::of(gamma).mul(&self.centred(x)), &term)
    }

    /// The gradients of a channel, from x and from dz = dy·factor, the gradient behind the
    /// activation's mask.
    ///
    /// Factors are few: 0, 1, and the slope of a leaky rectifier.
    ///
    /// # Panics
    /// Where a number is not finite.
    pub fn backward(&self, gamma: f64, x_dy_factor: impl Iterator<Item = (f64, f64, f64)>) -> Backward<'_> {
        // Products of three are sums of products of two, for each factor.
        let mut classes: Vec<(f64, Sum, Sum)> = Vec::new();
        for (x, dy, factor) in x_dy_factor {
            if factor == 0.0 {
                continue;
            }
            let class = match classes.iter().position(|c| c.0 == factor) {
                Some(i) => i,
                None => {
                    classes.push((factor, Sum::default(), Sum::default()));
                    classes.len() - 1
                }
            };
            classes[class].1.add(dy);
            classes[class].2.add_product(dy, x);
        }
        let (mut sum, mut product) = (Dyadic::zero(), Dyadic::zero());
        for (factor, dy, dyx) in &classes {
            let factor = Dyadic::of(*factor);
            sum = sum.add(&factor.mul(&dy.dyadic()));
            product = product.add(&factor.mul(&dyx.dyadic()));
        }
        let d = self.n.mul(&product).sub(&self.s.mul(&sum)).reduced();
        let v = self.v();
        let root3 = (!v.is_zero() && !self.given).then(|| InverseRoot::new(v.mul(&v).mul(&v)));
        Backward { channel: self, gamma: Dyadic::of(gamma), sum: sum.reduced(), d, v, root3 }
    }
}

/// The gradients of a channel.
pub struct Backward<'a> {
    channel: &'a Channel,
    gamma: Dyadic,
    /// Σ dz.
    sum: Dyadic,
    /// n·Σ dz·(x − mean).
    d: Dyadic,
    v: Dyadic,
    root3: Option<InverseRoot>,
}

impl Backward<'_> {
    /// Σ dz.
    pub fn dbeta(&self) -> Real {
        self.sum.real()
    }
    /// Σ dz / n.
    pub fn mean_dz(&self) -> Real {
        self.sum.over(&self.channel.n)
    }
    /// Σ dz·x̂.
    pub fn dgamma(&self) -> Real {
        self.channel.times_root(&self.d, &Dyadic::zero())
    }
    /// Σ dz·(x − mean).
    pub fn dot(&self) -> Real {
        self.d.over(&self.channel.n)
    }
    /// dy·factor.
    pub fn dz(dy: f64, factor: f64) -> Real {
        Dyadic::of(dy).mul(&Dyadic::of(factor)).real()
    }
    /// The gradient of one x.
    pub fn dx(&self, x: f64, dy: f64, factor: f64) -> Real {
        let dz = Dyadic::of(dy).mul(&Dyadic::of(factor));
        let c = self.channel;
        if c.given {
            return c.times_root(&self.gamma.mul(&dz), &Dyadic::zero());
        }
        let Some(root3) = &self.root3 else { return Real::default() };
        let left = c.n.mul(&dz).sub(&self.sum).mul(&self.v);
        let right = c.centred(x).mul(&self.d);
        root3.times_plus(&self.gamma.mul(&left.sub(&right)), &Dyadic::zero())
    }
}
