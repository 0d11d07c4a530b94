//! Who makes the constants of a [`Map`](super::Map): one channel at a time, or eight, whose divisions and roots then do not
//! wait for one another.
//!
//! One by one they take 18 ns, most of it the wait for a root and the divisions before and behind it, and a call; that is
//! as long as 30 to 100 elements, and tensors without spatial positions have no more in a channel.

use super::{Coefficients, Line};
use crate::dispatch::{Task, dispatch};
use crate::element::Param;
use crate::isa::Isa;
use crate::lanes::{Base, Lanes, Scalar, Vector};

/// Channels at once.
pub(crate) const GROUP: usize = 8;

/// A number of each.
pub(crate) type Group = Line<f64, GROUP>;

/// What a map takes its constants from.
pub(crate) trait Source<S, const K: usize>: Sync {
    /// Those of a channel.
    fn of(&self, channel: usize) -> Coefficients<S, K>;

    /// The narrow ones of [`GROUP`] channels from `first` on, which are there: the bits that [`Source::of`] gives.
    /// `false` where they do not suffice for each of the channels, or that is not seen at a glance, and where one of them is NaN
    /// (see [`Lanes::store_bf16`]): one by one, then.
    /// On bare metal, whose walk takes channels one by one, always, or the code would be there for nothing.
    fn group(&self, first: usize, to: &mut [Line<S, GROUP>; K]) -> bool;
}

impl<S, F: Fn(usize) -> Coefficients<S, K> + Sync, const K: usize> Source<S, K> for F {
    #[inline(always)]
    fn of(&self, channel: usize) -> Coefficients<S, K> {
        self(channel)
    }
    fn group(&self, _: usize, _: &mut [Line<S, GROUP>; K]) -> bool {
        false
    }
}

/// A [`Source`] whose groups are made with the vectors of an ISA, from gathering on. (Numbers that are stored one by one in one
/// function and loaded as vectors in another wait for each other: that gained nothing.)
pub(crate) trait Maker<S, const K: usize> {
    /// [`Source::group`]; must be `#[inline(always)]`.
    fn make<L: Lanes>(&self, lanes: L, first: usize, to: &mut [Line<S, GROUP>; K]) -> bool;
}

/// [`Source::group`] by a [`Maker`], in a shell of the ISA.
#[inline(always)]
pub(crate) fn make<S: Param, const K: usize>(
    isa: Isa,
    maker: &impl Maker<S, K>,
    first: usize,
    to: &mut [Line<S, GROUP>; K],
) -> bool {
    !Base::SINGLE && dispatch(isa, Make { maker, first, to })
}

struct Make<'a, M, S, const K: usize> {
    maker: &'a M,
    first: usize,
    to: &'a mut [Line<S, GROUP>; K],
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
    let mut group = Group::splat(0.0);
    for i in 0..GROUP {
        group[i] = f(i);
    }
    group
}

/// As many numbers of a group from `at` on as a vector of f64 has. (Of plain loops over eight the compiler made vectors too, of all
/// widths and in any order: inference of 32×512×1×1 is 1.26 times as fast without them, forward 1.15, backward 1.1.)
#[inline(always)]
pub(crate) fn some<L: Lanes>(lanes: L, group: &Group, at: usize) -> L::F64 {
    match group.get(at..at + <L::F64 as Vector>::WIDTH) {
        // SAFETY: they are as many.
        Some(some) => unsafe { L::F64::load(lanes, some.as_ptr()) },
        None => L::F64::splat(lanes, 0.0),
    }
}

/// Puts them there, rounded to a type.
#[inline(always)]
pub(crate) fn put<L: Lanes, S: Scalar>(lanes: L, v: L::F64, to: &mut [S; GROUP], at: usize) {
    if let Some(to) = to.get_mut(at..at + <L::F64 as Vector>::WIDTH) {
        // SAFETY: there is room for as many.
        unsafe { S::store_rounded(lanes, v, to.as_mut_ptr()) }
    }
}

/// Whether sizes are below a limit, which is never so with NaN, and there is [`room`].
#[inline(always)]
pub(crate) fn inside<L: Lanes>(lanes: L, sizes: L::F64, most: f64, rooms: L::F64) -> bool {
    let (most, one) = (L::F64::splat(lanes, most), L::F64::splat(lanes, 1.0));
    <L::F64>::all(sizes.lt(most)) & <L::F64>::all(one.lt(rooms))
}

/// Above 1 where factors are zero or far from the lower end of the range.
#[inline(always)]
pub(crate) fn room<L: Lanes, S: Scalar>(lanes: L, factors: L::F64) -> L::F64 {
    let (sizes, least) = (factors.abs(), L::F64::splat(lanes, f64::from_bits(1)));
    <L::F64>::select(sizes.lt(least), L::F64::splat(lanes, 2.0), sizes * L::F64::splat(lanes, 1.0 / S::SAFE_MIN))
}

/// Entries of a slice with one per channel, or what stands for an absent one.
#[inline(always)]
pub(crate) fn entries<P: Param>(slice: Option<&[P]>, first: usize, absent: f64) -> Group {
    match slice.and_then(|s| s.get(first..)?.first_chunk::<GROUP>()) {
        Some(some) => each(|i| some[i].to_f64()),
        None => Group::splat(absent),
    }
}

/// The bits are tested in tests/groups.rs; here, that channels are taken at once where they can be.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::{ANY, PLAIN, Rectifier};
    use crate::kernel::Map;
    use crate::kernel::backward_apply::{Apply, ApplyFrozen, Parts, constants, constants_of_group, scales_of_group};
    use crate::kernel::normalize::{Normalize, Spread, split, split_group};

    /// A group with another number in one place.
    fn but(group: Group, i: usize, v: f64) -> Group {
        each(|j| if i == j { v } else { group[j] })
    }

    #[test]
    fn what_is_inside() {
        // All of it, in as many vectors as that are.
        let is_inside = |sizes: &Group, rooms: &Group| {
            let at = (0..GROUP).step_by(<<Base as Lanes>::F64 as Vector>::WIDTH);
            let group = |of: &Group, at| some(Base::BASE, of, at);
            at.fold(true, |all, at| all & inside(Base::BASE, group(sizes, at), 9.0, group(rooms, at)))
        };
        let (size, two) = (Group::splat(8.0), Group::splat(2.0));
        assert!(is_inside(&size, &two));
        for i in 0..GROUP {
            for v in [9.0, f64::INFINITY, f64::NAN] {
                assert!(!is_inside(&but(size, i, v), &two), "{v}");
            }
            for (room, expected) in [(1e300, true), (1.0, false), (0.0, false)] {
                assert_eq!(is_inside(&size, &but(two, i, room)), expected);
            }
        }
        fn of<S: Scalar>() {
            let has = |v: f64| {
                let (one, size) = (some(Base::BASE, &Group::splat(v), 0), Group::splat(0.0));
                inside(Base::BASE, some(Base::BASE, &size, 0), 1.0, room::<_, S>(Base::BASE, one))
            };
            for v in [0.0, 1.0, S::SAFE_MIN.next_up(), S::SAFE_MAX, f64::INFINITY] {
                assert!(has(v) && has(-v), "{v:e}");
            }
            for v in [S::SAFE_MIN, f64::from_bits(1)] {
                assert!(!has(v) && !has(-v), "{v:e}");
            }
        }
        of::<f32>();
        of::<f64>();
    }

    #[test]
    fn constants_forward() {
        let (mean, v, gamma, beta) =
            (each(|i| i as f64 - 3.3), each(|i| 0.1 + i as f64), each(|i| 1.5 - i as f64), each(|i| 0.7 * i as f64));
        let (m2, n) = (each(|i| 1000.0 * v[i]), Group::splat(1000.0));
        let mut to = [Line::splat(0.0f32); 3];
        for (spread, reach) in [(Spread::Variance(&v), None), (Spread::Of { m2: &m2, n: &n }, Some(&m2))] {
            assert!(split_group(Base::BASE, &mut to, &mean, &spread, 1e-5, &gamma, &beta));
            for i in 0..GROUP {
                let variance = reach.map_or(v[i], |m2| m2[i] / n[i]);
                let scale = gamma[i] * (1.0 / (variance + 1e-5).sqrt());
                let one = split::<f32>(mean[i], scale, beta[i], reach.map(|m2| m2[i]));
                assert!(one.safe);
                assert_eq!(one.narrow, [0, 1, 2].map(|k| to[k][i]), "channel {i}");
            }
        }
        let huge = 1e100;
        for i in 0..GROUP {
            let mut group = |mean: &Group, spread: Spread<'_>, gamma: &Group, beta: &Group| {
                split_group(Base::BASE, &mut to, mean, &spread, 0.0, gamma, beta)
            };
            let variance = || Spread::Variance(&v);
            assert!(!group(&but(mean, i, -huge), variance(), &gamma, &beta));
            assert!(!group(&mean, Spread::Of { m2: &but(m2, i, huge), n: &n }, &gamma, &beta));
            assert!(!group(&mean, Spread::Variance(&but(v, i, 0.0)), &gamma, &beta));
            assert!(!group(&mean, variance(), &but(gamma, i, f64::NAN), &beta));
            assert!(!group(&mean, variance(), &but(gamma, i, -huge), &beta));
            assert!(!group(&mean, variance(), &gamma, &but(beta, i, -huge)));
            assert!(!group(&but(mean, i, f64::NAN), Spread::Of { m2: &m2, n: &n }, &gamma, &beta));
            assert!(!group(&but(mean, i, f64::INFINITY), Spread::Of { m2: &m2, n: &n }, &gamma, &beta));
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
        let mut to = [Line::splat(0.0f32); 5];
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
        // A sum of squares that is negative, as only a caller can make it, does not make room for what is too large.
        let epsilon = 1e31;
        let wide = || Parts { m2: Group::splat(-0.5e31), n: Group::splat(1.0), dot: Group::splat(5e33), ..parts() };
        assert!(constants_of_group(Base::BASE, &mut to, &wide(), epsilon));
        let large = Parts {
            m2: Group::splat(-0.5e37),
            n: Group::splat(1e6),
            dbeta: Group::splat(2e42),
            dot: Group::splat(5e33),
            ..parts()
        };
        assert!(!constants_of_group(Base::BASE, &mut to, &large, epsilon));
        let (mut to, variance) = ([Line::splat(0.0f32); 1], each(|i| 0.1 + i as f64));
        assert!(scales_of_group(Base::BASE, &mut to, &variance, &p.gamma, 1e-5));
        for (i, s) in to[0].into_iter().enumerate() {
            assert_eq!(s, (p.gamma[i] * (1.0 / (variance[i] + 1e-5).sqrt())) as f32, "channel {i}");
            assert!(!scales_of_group(Base::BASE, &mut to, &variance, &but(p.gamma, i, huge), 1e-5));
            assert!(!scales_of_group(Base::BASE, &mut to, &but(variance, i, 0.0), &p.gamma, 0.0));
        }
    }

    /// Has groups, and no channels.
    struct Groups;
    impl<const K: usize> Source<f32, K> for Groups {
        fn of(&self, channel: usize) -> Coefficients<f32, K> {
            panic!("channel {channel} by itself")
        }
        fn group(&self, first: usize, to: &mut [Line<f32, GROUP>; K]) -> bool {
            *to = [Line::splat(first as f32); K];
            true
        }
    }

    #[test]
    fn maps_ask_for_groups() {
        fn asks<M: Map<f32, I, J, K, O>, const I: usize, const J: usize, const K: usize, const O: usize>(op: M) {
            let mut to = [Line::splat(0.0); K];
            assert!(op.group(40, &mut to) && to.iter().all(|k| **k == [40.0; GROUP]));
        }
        let activation = &Rectifier::IDENTITY;
        let forward = Normalize::<f32, PLAIN, true> { activation, residual: true, coefficients: &Groups };
        asks::<_, 1, 1, 3, 1>(forward);
        asks::<_, 2, 2, 3, 1>(forward);
        let backward = Apply::<f32, ANY> { activation, inverse: 1.0, coefficients: &Groups };
        asks::<_, 2, 2, 5, 1>(backward);
        asks::<_, 3, 2, 5, 2>(backward);
        asks::<_, 1, 1, 1, 1>(ApplyFrozen::<f32> { activation, coefficients: &Groups });
    }
}
