//! Which element belongs to which block and cell: functions of the shape alone.
//!
//! ```text
//! items        images (planes geometry) or rows (rows geometry) of the tensor
//! visit        up to four items a quarter of the tensor apart: item v, q + v, 2q + v, 3q + v;
//!              the up to three items that four do not divide make one last visit
//! block        visits summed in f32 without a break; at most 256 elements per virtual lane: 16 per
//!              first-level sum, 16 of those per second-level sum; blocks add up in f64
//! cell         consecutive blocks of a channel whose elements share a pivot; at most 32 per channel,
//!              of at least two (rows) or four (planes) blocks each if there is more than one; cells
//!              join in order: the unit of work that another thread may take
//! ```
//!
//! Nothing here depends on the ISA, on caches, on the workspace or on the width of a pointer.

use super::Layout;

/// Elements that a pivot is made of.
pub(crate) const SAMPLES: usize = 16;
/// Addends of one f32 sum.
pub(crate) const CHAIN: usize = 16;
/// Cells per channel.
const MAX_CELLS: usize = 32;
/// Blocks per cell, where there is more than one cell, so that sampling a pivot costs little: blocks
/// of planes are smaller, and their samples are taken one by one.
const PLANE_BLOCKS: usize = 4;
const ROW_BLOCKS: usize = 2;

/// ⌊n/d⌋. Nothing here divides by 0, but the compiler does not see that; with these a release build
/// holds no path to a panic (which `ci/firmware.sh` proves).
#[inline(always)]
pub(crate) fn div(n: usize, d: usize) -> usize {
    debug_assert!(d > 0);
    n / d.max(1)
}

/// n mod d; see [`div`].
#[inline(always)]
pub(crate) fn rem(n: usize, d: usize) -> usize {
    debug_assert!(d > 0);
    n % d.max(1)
}

/// ⌈n/d⌉; see [`div`].
#[inline(always)]
pub(crate) fn ceil(n: usize, d: usize) -> usize {
    debug_assert!(d > 0);
    n.div_ceil(d.max(1))
}

/// Where part `i` starts when `n` is cut into `parts` whose sizes differ by at most one.
#[inline(always)]
pub(crate) fn part(n: usize, parts: usize, i: usize) -> usize {
    debug_assert!(i <= parts);
    div(n, parts) * i + rem(n, parts).min(i)
}

/// `⌊n · fraction / 2³²⌋` or one less, below `n`.
#[inline(always)]
fn scale(fraction: u32, n: usize) -> usize {
    let (n, f) = (n as u64, fraction as u64);
    ((((n >> 16) * f) >> 16) + (((n & 0xffff) * f) >> 32)) as usize
}

/// Fraction i of the golden-ratio sequence: never periodic in step with the data.
#[inline(always)]
fn golden(i: usize) -> u32 {
    (i as u32).wrapping_mul(0x9e37_79b9).wrapping_add(0x8000_0000)
}

/// The place of sample `i` among `n`, stratified: one somewhere in each sixteenth.
#[inline(always)]
pub(crate) fn sample_stratified(i: usize, n: usize) -> usize {
    scale(((i as u32) << 28) | (golden(i) >> 4), n)
}

/// The place of sample `i` among `n`, aperiodic.
#[inline(always)]
pub(crate) fn sample_anywhere(i: usize, n: usize) -> usize {
    scale(golden(i), n)
}

/// Items in lockstep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visits {
    quarter: usize,
    left: usize,
}

/// Items `first`, `first + step`, … (`count` of them).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit {
    pub(crate) first: usize,
    pub(crate) step: usize,
    pub(crate) count: usize,
}

impl Visit {
    #[inline(always)]
    pub(crate) fn item(&self, t: usize) -> usize {
        self.first + t * self.step
    }
}

impl Visits {
    pub(crate) fn new(items: usize) -> Self {
        Visits { quarter: items / 4, left: items % 4 }
    }
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.quarter + (self.left > 0) as usize
    }
    /// Items of the largest visit.
    #[inline(always)]
    pub(crate) fn width(&self) -> usize {
        if self.quarter > 0 { 4 } else { self.left }
    }
    #[inline(always)]
    pub(crate) fn get(&self, v: usize) -> Visit {
        if v < self.quarter {
            Visit { first: v, step: self.quarter, count: 4 }
        } else {
            Visit { first: 4 * self.quarter, step: 1, count: self.left }
        }
    }
    /// Where the visits of four items that begin with `from` end, at most at `to`.
    #[inline(always)]
    pub(crate) fn fours(&self, from: usize, to: usize) -> usize {
        to.min(self.quarter).max(from)
    }
    /// Items in visits `from..to`.
    #[inline(always)]
    pub(crate) fn items(&self, from: usize, to: usize) -> usize {
        4 * (to.min(self.quarter) - from.min(self.quarter)) + if to > self.quarter { self.left } else { 0 }
    }
    /// The item that sample `i` of visits `from..to` is taken from: one somewhere in each sixteenth
    /// of their items, visit by visit.
    #[inline(always)]
    pub(crate) fn sample(&self, i: usize, from: usize, to: usize) -> usize {
        let j = sample_stratified(i, self.items(from, to));
        let visit = self.get((from + j / 4).min(self.quarter));
        visit.item(j % 4)
    }
}

/// NCHW with at least one vector per plane: a channel is one plane in each image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planes {
    pub(crate) channels: usize,
    pub(crate) positions: usize,
    pub(crate) visits: Visits,
    /// Vectors per plane; the last one overlaps its neighbour if the plane has no whole number.
    pub(crate) vectors: usize,
    /// Pieces that a plane is cut into.
    pub(crate) pieces: usize,
    /// Blocks that the visits are cut into.
    visit_blocks: usize,
    /// Whether one first-level sum spans all planes of a visit.
    pub(crate) spanning: bool,
    pub(crate) cells: usize,
}

/// A range of vectors of a plane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) first: usize,
    pub(crate) vectors: usize,
    pub(crate) elements: usize,
}

impl Planes {
    fn new(images: usize, channels: usize, positions: usize, lanes: usize) -> Self {
        let visits = Visits::new(images);
        let width = visits.width().max(1);
        let vectors = ceil(positions, lanes);
        let pieces = ceil(vectors, CHAIN * (CHAIN / width)).max(1);
        let runs = ceil(vectors, pieces).div_ceil(CHAIN);
        let spanning = vectors * width <= CHAIN;
        let per_block = match (pieces, spanning) {
            (2.., _) => 1,
            (_, true) => CHAIN,
            _ => div(CHAIN, width * runs).max(1),
        };
        let visit_blocks = ceil(visits.len(), per_block);
        // Cells of whole planes where there are some of them, so that the tensor is walked in order.
        let most = if visit_blocks >= PLANE_BLOCKS { visit_blocks.min(MAX_CELLS) } else { MAX_CELLS };
        let cells = (visit_blocks.saturating_mul(pieces) / PLANE_BLOCKS).min(most).max(1);
        Planes { channels, positions, visits, vectors, pieces, visit_blocks, spanning, cells }
    }

    pub(crate) fn piece(&self, p: usize, lanes: usize) -> Piece {
        let (first, end) = (part(self.vectors, self.pieces, p), part(self.vectors, self.pieces, p + 1));
        let elements = if end == self.vectors { self.positions } else { end * lanes } - first * lanes;
        Piece { first, vectors: end - first, elements }
    }

    /// The blocks of cell `g`, as a range.
    pub(crate) fn blocks(&self, g: usize) -> (usize, usize) {
        let blocks = self.all_blocks();
        (part(blocks, self.cells, g), part(blocks, self.cells, g + 1))
    }

    /// Blocks of a channel.
    pub(crate) fn all_blocks(&self) -> usize {
        self.visit_blocks * self.pieces
    }

    /// The visits of visit block `b`, as a range.
    pub(crate) fn block_visits(&self, b: usize) -> (usize, usize) {
        (part(self.visits.len(), self.visit_blocks, b), part(self.visits.len(), self.visit_blocks, b + 1))
    }

    /// Image and position that sample `i` of blocks `first..end` is taken from: a block somewhere in
    /// each sixteenth of them, an image of its, and a position somewhere in its piece.
    #[inline(always)]
    pub(crate) fn sample(&self, i: usize, first: usize, end: usize, lanes: usize) -> (usize, usize) {
        let block = first + sample_stratified(i, end - first);
        let (v0, v1) = self.block_visits(div(block, self.pieces));
        let piece = self.piece(rem(block, self.pieces), lanes);
        // Another order than that of the blocks.
        let item = self.visits.sample(i.wrapping_mul(7) % SAMPLES, v0, v1);
        (item, piece.first * lanes + sample_anywhere(i, piece.elements))
    }

    /// Elements per channel in cell `g`.
    pub(crate) fn count(&self, g: usize, lanes: usize) -> u64 {
        let (first, end) = self.blocks(g);
        (first..end)
            .map(|b| {
                let (v0, v1) = self.block_visits(div(b, self.pieces));
                self.visits.items(v0, v1) as u64 * self.piece(rem(b, self.pieces), lanes).elements as u64
            })
            .sum()
    }
}

/// NHWC, and NCHW with planes of less than a vector: rows whose elements belong to the channels in
/// turn, `adjacent` each.
///
/// Narrow rows are folded: `fold` consecutive rows are one row of `fold` times as many virtual
/// channels, which are merged at the end of a cell. Up to `fold − 1` rows are left over; they are
/// done in f64 with the last cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) channels: usize,
    pub(crate) adjacent: usize,
    pub(crate) fold: usize,
    /// Elements of a folded row.
    pub(crate) width: usize,
    pub(crate) visits: Visits,
    /// Folded rows.
    pub(crate) folded: usize,
    /// Unfolded rows left over.
    pub(crate) rest: usize,
    blocks: usize,
    pub(crate) cells: usize,
}

/// Visits of a block of the rows geometry: 4 rows each, so 16 · 16 rows.
const ROW_VISITS: usize = CHAIN / 4 * CHAIN;
/// Visits per first-level sum.
pub(crate) const ROW_CHAIN: usize = CHAIN / 4;

impl Rows {
    fn new(rows: usize, channels: usize, adjacent: usize, lanes: usize) -> Self {
        let base = channels * adjacent;
        let mut fold = 1;
        // At least three vectors wide. (The widest row decides the smallest workspace.)
        while base * fold < 3 * lanes {
            fold *= 2;
        }
        let folded = div(rows, fold);
        let visits = Visits::new(folded);
        let blocks = visits.len().div_ceil(ROW_VISITS);
        Rows {
            channels,
            adjacent,
            fold,
            width: base * fold,
            visits,
            rest: rem(rows, fold),
            folded,
            blocks,
            cells: (blocks / ROW_BLOCKS).clamp(1, MAX_CELLS),
        }
    }

    /// The blocks of cell `g`, as a range.
    pub(crate) fn cell_blocks(&self, g: usize) -> (usize, usize) {
        (part(self.blocks, self.cells, g), part(self.blocks, self.cells, g + 1))
    }

    /// The visits of block `b`, as a range.
    pub(crate) fn block_visits(&self, b: usize) -> (usize, usize) {
        (part(self.visits.len(), self.blocks, b), part(self.visits.len(), self.blocks, b + 1))
    }

    /// Rows left over that cell `g` does.
    pub(crate) fn rest_of(&self, g: usize) -> usize {
        if g + 1 == self.cells { self.rest } else { 0 }
    }

    /// The visits of cell `g`, as a range.
    pub(crate) fn cell_visits(&self, g: usize) -> (usize, usize) {
        let (first, end) = self.cell_blocks(g);
        if first == end { (0, 0) } else { (self.block_visits(first).0, self.block_visits(end - 1).1) }
    }

    /// Elements per channel in cell `g`.
    pub(crate) fn count(&self, g: usize) -> u64 {
        let (v0, v1) = self.cell_visits(g);
        (self.visits.items(v0, v1) as u64 * self.fold as u64 + self.rest_of(g) as u64) * self.adjacent as u64
    }
}

/// One of the two ways of walking a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grid {
    Planes(Planes),
    Rows(Rows),
}

impl Grid {
    pub(crate) fn new(layout: Layout, batch: usize, channels: usize, positions: usize, lanes: usize) -> Self {
        match layout {
            // NHWC with one channel is NCHW; NCHW with one position is NHWC.
            Layout::Nhwc if channels > 1 => Grid::Rows(Rows::new(batch * positions, channels, 1, lanes)),
            _ if positions < lanes => Grid::Rows(Rows::new(batch, channels, positions, lanes)),
            _ => Grid::Planes(Planes::new(batch, channels, positions, lanes)),
        }
    }

    /// Cells per channel.
    pub(crate) fn cells(&self) -> usize {
        match self {
            Grid::Planes(p) => p.cells,
            Grid::Rows(r) => r.cells,
        }
    }

    /// Elements per channel in cell `g`.
    pub(crate) fn count(&self, g: usize, lanes: usize) -> u64 {
        match self {
            Grid::Planes(p) => p.count(g, lanes),
            Grid::Rows(r) => r.count(g),
        }
    }
}
