//! The tensors that every operation is run on.

use crate::data::Pattern::{self, *};
use bn_core::Activation::{self, *};
use bn_core::Layout::{self, *};

/// A tensor, and what is asked of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem {
    pub(crate) name: &'static str,
    pub(crate) layout: Layout,
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) spatial: usize,
    pub(crate) x: Pattern,
    pub(crate) activation: Activation,
    /// Whether there are gamma and beta.
    pub(crate) affine: bool,
    pub(crate) residual: bool,
    /// Whether only the operations in place are run, which need the least memory.
    pub(crate) large: bool,
}

const fn p(
    name: &'static str,
    layout: Layout,
    [batch, channels, spatial]: [usize; 3],
    x: Pattern,
    activation: Activation,
    affine: bool,
    residual: bool,
) -> Problem {
    Problem { name, layout, batch, channels, spatial, x, activation, affine, residual, large: false }
}

const fn large(p: Problem) -> Problem {
    Problem { large: true, ..p }
}

const LEAKY: Activation = LeakyRelu { slope: 0.01 };
const CLAMP: Activation = Clamp { lo: -0.5, hi: 1.5 };

/// Small ones first: in memory for 16 KB. A vector has 16 lanes for f32 and 8 for f64, so sizes lie
/// about those.
#[rustfmt::skip]
pub(crate) const PROBLEMS: &[Problem] = &[
    // Planes of one vector, one less, one more; two and a little; more images than one visit.
    p("nchw-1x1x16",            Nchw, [1, 1, 16],    Spread,    Identity, false, false),
    p("nchw-2x3x17",            Nchw, [2, 3, 17],    Spread,    Relu,     true,  false),
    p("nchw-5x2x15",            Nchw, [5, 2, 15],    Spread,    Identity, true,  true),
    p("nchw-3x1x31",            Nchw, [3, 1, 31],    Offset,    LEAKY,    true,  false),
    p("nchw-4x2x33",            Nchw, [4, 2, 33],    Spread,    Relu,     true,  true),
    p("nchw-7x3x8",             Nchw, [7, 3, 8],     Spread,    CLAMP,    true,  false),
    p("nchw-6x3x9-far",         Nchw, [6, 3, 9],     Far,       Identity, true,  false),
    p("nchw-3x2x7",             Nchw, [3, 2, 7],     Spread,    Relu,     false, true),
    p("nchw-9x3x1",             Nchw, [9, 3, 1],     Spread,    Identity, true,  false),
    p("nchw-2x2x24-subnormal",  Nchw, [2, 2, 24],    Subnormal, Identity, true,  false),
    p("nchw-2x2x19-huge",       Nchw, [2, 2, 19],    Huge,      Relu,     true,  false),
    p("nchw-2x2x20-tiny",       Nchw, [2, 2, 20],    Tiny,      Identity, false, false),
    p("nchw-2x2x18-constant",   Nchw, [2, 2, 18],    Constant,  LEAKY,    true,  true),
    p("nchw-2x2x21-two",        Nchw, [2, 2, 21],    TwoValued, Identity, true,  false),
    p("nchw-1x11x17-mixed",     Nchw, [1, 11, 17],   Mixed,     Relu,     true,  false),
    // Rows: narrow ones are folded, wide ones have a part of a vector at the end.
    p("nhwc-21x1",              Nhwc, [21, 1, 1],    Spread,    Relu,     true,  false),
    p("nhwc-13x2",              Nhwc, [13, 2, 1],    Spread,    Identity, true,  false),
    p("nhwc-3x3x5",             Nhwc, [3, 3, 5],     Spread,    Relu,     true,  true),
    p("nhwc-25x3",              Nhwc, [25, 3, 1],    Offset,    LEAKY,    true,  false),
    p("nhwc-2x8x3",             Nhwc, [2, 8, 3],     Spread,    CLAMP,    true,  true),
    p("nhwc-9x15",              Nhwc, [9, 15, 1],    Spread,    Relu,     true,  false),
    p("nhwc-5x16",              Nhwc, [5, 16, 1],    Spread,    Identity, true,  true),
    p("nhwc-7x17",              Nhwc, [7, 17, 1],    Offset,    Relu,     true,  false),
    p("nhwc-2x33",              Nhwc, [2, 33, 1],    Spread,    Identity, false, false),
    p("nhwc-3x49",              Nhwc, [3, 49, 1],    Spread,    LEAKY,    true,  false),
    p("nhwc-1x7-one",           Nhwc, [1, 7, 1],     Spread,    Identity, true,  false),
    p("nhwc-17x5-far",          Nhwc, [17, 5, 1],    Far,       Identity, true,  false),
    p("nhwc-5x9-huge",          Nhwc, [5, 9, 1],     Huge,      Identity, true,  false),
    p("nhwc-6x8-subnormal",     Nhwc, [6, 8, 1],     Subnormal, Identity, true,  false),
    p("nhwc-12x3-constant",     Nhwc, [12, 3, 1],    Constant,  Identity, true,  false),
    p("nhwc-9x11-mixed",        Nhwc, [9, 11, 1],    Mixed,     Relu,     true,  false),
    p("nhwc-4x22-mixed",        Nhwc, [4, 22, 1],    Mixed,     Identity, true,  true),
    // Several pieces of a plane, several blocks, several cells.
    p("nchw-2x11x19-mixed",     Nchw, [2, 11, 19],   Mixed,     Identity, true,  true),
    p("nchw-70x2x17",           Nchw, [70, 2, 17],   Spread,    Relu,     true,  false),
    p("nchw-130x1x9",           Nchw, [130, 1, 9],   Offset,    Identity, true,  false),
    p("nchw-3x2x600",           Nchw, [3, 2, 600],   Spread,    Identity, true,  true),
    p("nchw-9x11x50-mixed",     Nchw, [9, 11, 50],   Mixed,     Relu,     true,  false),
    p("nchw-1x1x2500",          Nchw, [1, 1, 2500],  Offset,    Relu,     true,  false),
    p("nhwc-301x17",            Nhwc, [301, 17, 1],  Spread,    Relu,     true,  false),
    p("nhwc-300x11-mixed",      Nhwc, [300, 11, 1],  Mixed,     Identity, true,  false),
    large(p("nchw-5x1x4200",    Nchw, [5, 1, 4200],  Spread,    Identity, true,  false)),
    large(p("nchw-66x2x150",    Nchw, [66, 2, 150],  Offset,    Relu,     true,  false)),
    // More blocks than cells.
    large(p("nchw-530x1x33",    Nchw, [530, 1, 33],  Spread,    Identity, true,  false)),
    large(p("nchw-530x1x65",    Nchw, [530, 1, 65],  Spread,    Identity, true,  false)),
    large(p("nhwc-8301x3",      Nhwc, [8301, 3, 1],  Offset,    Identity, true,  false)),
    large(p("nhwc-1100x16",     Nhwc, [1100, 16, 1], Spread,    Relu,     true,  false)),
    large(p("nhwc-2700x11-mixed", Nhwc, [2700, 11, 1], Mixed,   Identity, true,  false)),
];
