//! Who makes the constants of a [`Map`](super::Map): one channel at a time, or eight, whose divisions and roots then do not
//! wait for one another.
//!
//! One by one they take 18 ns, most of it the wait for a root and the divisions before and behind it, and a call; that is
//! as long as 30 to 100 elements, and tensors without spatial positions have no more in a channel.

use super::Coefficients;
use crate::dispatch::{Task, dispatch};
use crate::element::Param;
use crate::isa::Isa;
use crate::lanes::{Base, Lanes};

/// Channels at once.
pub(crate) const GROUP: usize = 8;

/// A number of each.
pub(crate) type Group = [f64; GROUP];

/// What a map takes its constants from.
pub(crate) trait Source<S, const K: usize>: Sync {
    /// Those of a channel.
    fn of(&self, channel: usize) -> Coefficients<S, K>;

    /// The narrow ones of [`GROUP`] channels from `first` on, which are there: the bits that [`Source::of`] gives.
    /// `false` where they do not suffice for each of the channels, or that is not seen at a glance, and where one of them is NaN
    /// (see [`Lanes::store_bf16`]): one by one, then.
    /// On bare metal, whose walk takes channels one by one, always, or the code would be there for nothing.
    fn group(&self, first: usize, to: &mut [[S; GROUP]; K]) -> bool;
}

impl<S, F: Fn(usize) -> Coefficients<S, K> + Sync, const K: usize> Source<S, K> for F {
    #[inline(always)]
    fn of(&self, channel: usize) -> Coefficients<S, K> {
        self(channel)
    }
    fn group(&self, _: usize, _: &mut [[S; GROUP]; K]) -> bool {
        false
    }
}

/// A [`Source`] whose groups are made with the vectors of an ISA, from gathering on. (Numbers that are stored one by one in one
/// function and loaded as vectors in another wait for each other: that gained nothing.)
pub(crate) trait Maker<S, const K: usize> {
    /// [`Source::group`]; must be `#[inline(always)]`.
    fn make<L: Lanes>(&self, lanes: L, first: usize, to: &mut [[S; GROUP]; K]) -> bool;
}

/// [`Source::group`] by a [`Maker`], in a shell of the ISA.
#[inline(always)]
pub(crate) fn make<S: Param, const K: usize>(
    isa: Isa,
    maker: &impl Maker<S, K>,
    first: usize,
    to: &mut [[S; GROUP]; K],
) -> bool {
    !Base::SINGLE && dispatch(isa, Make { maker, first, to })
}

struct Make<'a, M, S, const K: usize> {
    maker: &'a M,
    first: usize,
    to: &'a mut [[S; GROUP]; K],
}

impl<M: Maker<S, K>, S: Param, const K: usize> Task for Make<'_, M, S, K> {
    type Element = S;
    type Output = bool;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> bool {
        self.maker.make(lanes, self.first, self.to)
    }
}

/// A number of each channel.
#[inline(always)]
pub(crate) fn each(f: impl Fn(usize) -> f64) -> Group {
    let mut group = [0.0; GROUP];
    for i in 0..GROUP {
        group[i] = f(i);
    }
    group
}

/// Whether something holds of each channel. No jumps between them.
#[inline(always)]
pub(crate) fn all(f: impl Fn(usize) -> bool) -> bool {
    let mut all = true;
    for i in 0..GROUP {
        all &= f(i);
    }
    all
}

/// Entries of a slice with one per channel, or what stands for an absent one.
#[inline(always)]
pub(crate) fn entries<P: Param>(slice: Option<&[P]>, first: usize, absent: f64) -> Group {
    match slice.and_then(|s| s.get(first..)?.first_chunk::<GROUP>()) {
        Some(some) => each(|i| some[i].to_f64()),
        None => [absent; GROUP],
    }
}

/// The bits are tested in tests/groups.rs; here, that channels are taken at once where they can be.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Rectifier;
    use crate::activation::{ANY, PLAIN};
    use crate::kernel::backward_apply::{Apply, ApplyFrozen, Parts, constants, constants_of_group, scales_of_group};
    use crate::kernel::normalize::{Normalize, split, split_group};
    use crate::kernel::{Map, factor_is_inside};
    use crate::lanes::Scalar;

    /// A group with another number in one place.
    fn but(group: Group, i: usize, v: f64) -> Group {
        each(|j| if i == j { v } else { group[j] })
    }

    #[test]
    fn all_is_each() {
        assert!(all(|_| true) && !all(|_| false));
        for i in 0..GROUP {
            assert!(!all(|j| i != j));
        }
    }

    #[test]
    fn what_is_inside() {
        fn of<S: Scalar>() {
            for v in [0.0, 1.0, S::SAFE_MIN, S::SAFE_MAX] {
                assert!(factor_is_inside::<S>(v) && factor_is_inside::<S>(-v), "{v:e}");
            }
            for v in [S::SAFE_MIN.next_down(), S::SAFE_MAX.next_up(), f64::INFINITY, f64::NAN] {
                assert!(!factor_is_inside::<S>(v) && !factor_is_inside::<S>(-v), "{v:e}");
            }
        }
        of::<f32>();
        of::<f64>();
    }

    #[test]
    fn constants_forward() {
        let (mean, v, gamma, beta) =
            (each(|i| i as f64 - 3.3), each(|i| 0.1 + i as f64), each(|i| 1.5 - i as f64), each(|i| 0.7 * i as f64));
        let m2 = v.map(|v| 1000.0 * v);
        let mut to = [[0.0f32; GROUP]; 3];
        for reach in [None, Some(&m2)] {
            assert!(split_group(Base::BASE, &mut to, &mean, &v, &gamma, &beta, reach));
            for i in 0..GROUP {
                let one = split::<f32>(mean[i], gamma[i] * (1.0 / v[i].sqrt()), beta[i], reach.map(|m2| m2[i]));
                assert!(one.safe);
                assert_eq!(one.narrow, [0, 1, 2].map(|k| to[k][i]), "channel {i}");
            }
        }
        let huge = 1e100;
        for i in 0..GROUP {
            let mut group = |mean: &Group, v: &Group, gamma: &Group, beta: &Group, m2: Option<&Group>| {
                split_group(Base::BASE, &mut to, mean, v, gamma, beta, m2)
            };
            assert!(!group(&but(mean, i, -huge), &v, &gamma, &beta, None));
            assert!(!group(&mean, &v, &gamma, &beta, Some(&but(m2, i, huge))));
            assert!(!group(&mean, &but(v, i, 0.0), &gamma, &beta, None));
            assert!(!group(&mean, &v, &but(gamma, i, f64::NAN), &beta, None));
            assert!(!group(&mean, &v, &but(gamma, i, -huge), &beta, None));
            assert!(!group(&mean, &v, &gamma, &but(beta, i, -huge), None));
            assert!(!group(&but(mean, i, f64::NAN), &v, &gamma, &beta, Some(&m2)));
            assert!(!group(&but(mean, i, f64::INFINITY), &v, &gamma, &beta, Some(&m2)));
        }
    }

    #[test]
    fn constants_backward() {
        let parts = || Parts {
            mean: each(|i| i as f64 - 3.3),
            m2: each(|i| 10.0 + i as f64),
            n: each(|i| 20.0 + i as f64),
            gamma: each(|i| 1.5 - i as f64),
            dbeta: each(|i| 0.3 - i as f64),
            dot: each(|i| 2.0 - 0.3 * i as f64),
        };
        let mut to = [[0.0f32; GROUP]; 5];
        assert!(constants_of_group(Base::BASE, &mut to, &parts(), 1e-5));
        let p = parts();
        for i in 0..GROUP {
            let variance = p.m2[i] / p.n[i] + 1e-5;
            let (c, s) = (p.dot[i] / (p.n[i] * variance), p.gamma[i] * (1.0 / variance.sqrt()));
            let one = constants::<f32>([p.dbeta[i] / p.n[i], p.mean[i], c, s], variance.sqrt(), 0.0);
            assert!(one.safe);
            assert_eq!(one.narrow, [0, 1, 2, 3, 4].map(|k| to[k][i]), "channel {i}");
        }
        let huge = 1e100;
        for i in 0..GROUP {
            for other in [
                Parts { mean: but(p.mean, i, huge), ..parts() },
                Parts { m2: but(p.m2, i, huge), ..parts() },
                Parts { m2: but(p.m2, i, -20.0 - i as f64), ..parts() },
                Parts { gamma: but(p.gamma, i, huge), ..parts() },
                Parts { gamma: but(p.gamma, i, 1.0 / huge), ..parts() },
                Parts { dbeta: but(p.dbeta, i, -huge), ..parts() },
                Parts { dot: but(p.dot, i, 0.0), ..parts() },
                Parts { dot: but(p.dot, i, huge), ..parts() },
                Parts { dot: but(p.dot, i, f64::NAN), ..parts() },
            ] {
                assert!(!constants_of_group(Base::BASE, &mut to, &other, 1e-5), "channel {i}");
            }
        }
        let (mut to, scales) = ([[0.0f32; GROUP]; 1], each(|i| 1.5 - i as f64));
        assert!(scales_of_group(&mut to, &scales));
        assert_eq!(to[0].map(f64::from), scales);
        assert!((0..GROUP).all(|i| !scales_of_group(&mut to, &but(scales, i, huge))));
    }

    /// Has groups, and no channels.
    struct Groups;
    impl<const K: usize> Source<f32, K> for Groups {
        fn of(&self, channel: usize) -> Coefficients<f32, K> {
            panic!("channel {channel} by itself")
        }
        fn group(&self, first: usize, to: &mut [[f32; GROUP]; K]) -> bool {
            *to = [[first as f32; GROUP]; K];
            true
        }
    }

    #[test]
    fn maps_ask_for_groups() {
        fn asks<M: Map<f32, I, J, K, O>, const I: usize, const J: usize, const K: usize, const O: usize>(op: M) {
            let mut to = [[0.0; GROUP]; K];
            assert!(op.group(40, &mut to) && to == [[40.0; GROUP]; K]);
        }
        let activation = &Rectifier::IDENTITY;
        let forward = Normalize::<f32, PLAIN, true> { activation, residual: true, coefficients: &Groups };
        asks::<_, 1, 1, 3, 1>(forward);
        asks::<_, 2, 2, 3, 1>(forward);
        let backward = Apply::<f32, ANY> { activation, inverse: 1.0, coefficients: &Groups };
        asks::<_, 2, 2, 5, 1>(backward);
        asks::<_, 3, 2, 5, 2>(backward);
        asks::<_, 1, 1, 1, 1>(ApplyFrozen::<f32, ANY> { activation, coefficients: &Groups });
    }
}
