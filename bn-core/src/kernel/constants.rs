//! Who makes the constants of a [`Map`](super::Map): one channel at a time, or eight, whose divisions and roots then do not
//! wait for one another.
//!
//! One by one they take 18 ns, most of it the wait for a root and the divisions before and behind it, and a call; that is
//! as long as 30 to 100 elements, and tensors without spatial positions have no more in a channel.

use super::Coefficients;
use crate::element::Param;

/// Channels at once.
pub(crate) const GROUP: usize = 8;

/// A number of each.
pub(crate) type Group = [f64; GROUP];

/// What a map takes its constants from.
pub(crate) trait Source<S, const K: usize>: Sync {
    /// Those of a channel.
    fn of(&self, channel: usize) -> Coefficients<S, K>;

    /// The narrow ones of [`GROUP`] channels from `first` on, which are there: the bits that [`Source::of`] gives.
    /// `false` where they do not suffice for each of the channels, or that is not seen at a glance: one by one, then.
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
