//! For tests: portable lanes that note which memory they read and write, in order. What makes kernels fast (how often an
//! element is read, which streams go on side by side, what is stored past the caches) is tested so, without a clock.

use super::portable::{self, Portable};
use super::{Lanes, Real, Scalar, Vector};
use core::ops::{Add, Mul, Sub};
use std::cell::{Cell, RefCell};
use std::vec::Vec;

/// What was done to a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    /// A store past the caches.
    Past,
    Fence,
    /// A line was asked for.
    Ask,
    /// Lanes were asked whether they are finite.
    Check,
}

/// That, and the address: where a vector starts, or what line was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    pub(crate) address: usize,
}

/// What is so on one ISA and not on another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ways {
    /// Whether a vector past the caches is [a line](Lanes::lines).
    pub(crate) lines: bool,
    /// Whether lines [ahead](Lanes::ahead) are asked for.
    pub(crate) ahead: bool,
}

std::thread_local! {
    static WAYS: Cell<Ways> = const { Cell::new(Ways { lines: false, ahead: false }) };
    static EVENTS: RefCell<Option<Vec<Event>>> = const { RefCell::new(None) };
}

/// Whether kernels run on traced lanes.
pub(crate) fn on() -> bool {
    EVENTS.with_borrow(|e| e.is_some())
}

/// What a call does.
pub(crate) fn trace(ways: Ways, call: impl FnOnce()) -> Vec<Event> {
    WAYS.set(ways);
    EVENTS.set(Some(Vec::new()));
    call();
    EVENTS.take().expect("set above")
}

fn note(kind: Kind, address: usize) {
    EVENTS.with_borrow_mut(|e| e.as_mut().expect("only while traced").push(Event { kind, address }));
}

/// With the widest walks that any ISA has.
#[derive(Clone, Copy)]
pub(crate) struct Traced;

#[derive(Clone, Copy)]
pub(crate) struct Noted<V>(V);

#[cfg(feature = "half")]
macro_rules! half {
    ($load:ident, $store:ident $(, $dealt:ident)?) => {
        unsafe fn $load<$(const $dealt: bool)?>(self, p: *const u16) -> Self::F32 {
            note(Kind::Read, p.addr());
            // SAFETY: by the caller.
            Noted(unsafe { Portable.$load::<$($dealt)?>(p) })
        }
        unsafe fn $store<const PAST: bool $(, const $dealt: bool)?>(v: Self::F32, p: *mut u16) {
            note(if PAST { Kind::Past } else { Kind::Write }, p.addr());
            // SAFETY: by the caller.
            unsafe { Portable::$store::<PAST $(, $dealt)?>(v.0, p) }
        }
    };
}

impl Lanes for Traced {
    const STREAMS: usize = 4;
    const ABREAST: usize = 4;
    type F32 = Noted<portable::F32>;
    type F64 = Noted<portable::F64>;

    fn lines(self) -> bool {
        WAYS.get().lines
    }
    fn ahead(self) -> bool {
        WAYS.get().ahead
    }
    fn ask<T>(self, p: *const T, after: usize) {
        note(Kind::Ask, p.addr() + after);
    }
    fn fence(self) {
        note(Kind::Fence, 0);
    }
    fn quotient(self, a: Self::F64, b: Self::F64) -> Self::F64 {
        Noted(Portable.quotient(a.0, b.0))
    }
    fn root(self, v: Self::F64) -> Self::F64 {
        Noted(Portable.root(v.0))
    }
    fn rounded(self, v: Self::F64) -> Self::F64 {
        Noted(Portable.rounded(v.0))
    }
    unsafe fn store_rounded(self, v: Self::F64, p: *mut f32) {
        // SAFETY: by the caller.
        unsafe { Portable.store_rounded(v.0, p) }
    }
    #[cfg(feature = "half")]
    half!(load_f16, store_f16);
    #[cfg(feature = "half")]
    half!(load_bf16, store_bf16, DEALT);
}

macro_rules! operators {
    ($($op:ident, $f:ident;)*) => {$(
        impl<V: Vector> $op for Noted<V> {
            type Output = Self;
            fn $f(self, o: Self) -> Self {
                Noted(self.0.$f(o.0))
            }
        }
    )*};
}
operators!(Add, add; Sub, sub; Mul, mul;);

impl<V: Vector<Token = Portable>> Real for Noted<V> {
    type Token = Traced;
    fn constant<S: Scalar>(_: Traced, v: S) -> Self {
        Noted(V::constant(Portable, v))
    }
    fn if_less(self, other: Self, yes: Self, no: Self) -> Self {
        Noted(self.0.if_less(other.0, yes.0, no.0))
    }
}

impl<V: Vector<Token = Portable>> Vector for Noted<V> {
    type Scalar = V::Scalar;
    type Mask = V::Mask;
    type Wide = Noted<V::Wide>;

    fn splat(_: Traced, v: V::Scalar) -> Self {
        Noted(V::splat(Portable, v))
    }
    unsafe fn load(_: Traced, p: *const V::Scalar) -> Self {
        note(Kind::Read, p.addr());
        // SAFETY: by the caller.
        Noted(unsafe { V::load(Portable, p) })
    }
    unsafe fn store(self, p: *mut V::Scalar) {
        note(Kind::Write, p.addr());
        // SAFETY: by the caller.
        unsafe { self.0.store(p) }
    }
    unsafe fn stream(self, p: *mut V::Scalar) {
        note(Kind::Past, p.addr());
        // SAFETY: by the caller.
        unsafe { self.0.store(p) }
    }
    fn abs(self) -> Self {
        Noted(self.0.abs())
    }
    fn clear_below(self, n: usize) -> Self {
        Noted(self.0.clear_below(n))
    }
    fn lt(self, other: Self) -> V::Mask {
        self.0.lt(other.0)
    }
    fn finite(self) -> V::Mask {
        note(Kind::Check, 0);
        self.0.finite()
    }
    fn all(mask: V::Mask) -> bool {
        V::all(mask)
    }
    fn select(mask: V::Mask, yes: Self, no: Self) -> Self {
        Noted(V::select(mask, yes.0, no.0))
    }
    fn widen(self) -> [Self::Wide; 2] {
        self.0.widen().map(Noted)
    }
}
