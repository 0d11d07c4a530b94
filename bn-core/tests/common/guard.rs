//! Memory beside unmapped pages: one byte read or written outside of it faults.

use core::ops::{Deref, DerefMut};
use core::ptr::{null_mut, write_bytes};

/// Where a slice lies in its pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum At {
    /// Away from both ends: nothing faults. What the others are compared with.
    Inside,
    /// From the first byte on.
    Front,
    /// Up to the last byte.
    End,
}

/// What new memory is filled with: NaN as any element type, and no small number as a word.
const GARBAGE: u8 = 0xff;

/// `count` equal pieces of whole pages, with an unmapped page before, between and behind them.
struct Pieces {
    base: *mut u8,
    all: usize,
    /// Bytes of a piece.
    size: usize,
    /// Bytes from a piece to the next.
    step: usize,
}

fn page() -> usize {
    // SAFETY: a question.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

impl Pieces {
    fn new(count: usize, bytes: usize) -> Pieces {
        let size = bytes.next_multiple_of(page());
        let step = size + page();
        let all = page() + count * step;
        // SAFETY: new memory at a place of the system's choice.
        let base = unsafe { libc::mmap(null_mut(), all, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0) };
        assert!(base != libc::MAP_FAILED, "no memory");
        let pieces = Pieces { base: base.cast(), all, size, step };
        for i in 0..if size == 0 { 0 } else { count } {
            // SAFETY: whole pages of the mapping above, which nothing else knows of yet.
            unsafe {
                let at = pieces.piece(i);
                assert_eq!(libc::mprotect(at.cast(), size, libc::PROT_READ | libc::PROT_WRITE), 0);
                write_bytes(at, GARBAGE, size);
            }
        }
        pieces
    }

    fn piece(&self, i: usize) -> *mut u8 {
        // SAFETY: within the mapping.
        unsafe { self.base.add(page() + i * self.step) }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        // SAFETY: the whole of what was mapped.
        unsafe { libc::munmap(self.base.cast(), self.all) };
    }
}

/// How far from the start of its piece something of `bytes` lies.
fn offset(at: At, size: usize, bytes: usize) -> usize {
    match at {
        At::Front => 0,
        At::End => size - bytes,
        // A line and some; a multiple of the size of any element.
        At::Inside => 80,
    }
}

/// A slice in pages of its own.
pub struct Guarded<T> {
    _pieces: Pieces,
    first: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    pub fn new(at: At, values: &[T]) -> Self {
        let bytes = size_of_val(values);
        let pieces = Pieces::new(1, if at == At::Inside { bytes + 256 } else { bytes });
        // SAFETY: within the piece, whose start and end are aligned to pages.
        let first: *mut T = unsafe { pieces.piece(0).add(offset(at, pieces.size, bytes)).cast() };
        assert!(first.is_aligned());
        // SAFETY: the piece holds that many, and is apart from the values.
        unsafe { first.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Guarded { _pieces: pieces, first, len: values.len() }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: initialised, and owned by self.
        unsafe { core::slice::from_raw_parts(self.first, self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { core::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

/// A tensor each of whose runs lies in pages of its own: no slice, since the gaps are not there.
pub struct Runs<T> {
    _pieces: Pieces,
    /// The first element of the first run.
    pub first: *mut T,
    run: usize,
    /// Elements from a run to the next.
    pub step: usize,
    count: usize,
}

impl<T: Copy> Runs<T> {
    pub fn new(at: At, run: usize, values: &[T]) -> Self {
        let (count, bytes) = (values.len() / run, run * size_of::<T>());
        let pieces = Pieces::new(count, if at == At::Inside { bytes + 256 } else { bytes });
        // SAFETY: within the first piece.
        let first: *mut T = unsafe { pieces.piece(0).add(offset(at, pieces.size, bytes)).cast() };
        let step = pieces.step / size_of::<T>();
        for (i, values) in values.chunks_exact(run).enumerate() {
            // SAFETY: each piece holds a run.
            unsafe { first.add(i * step).copy_from_nonoverlapping(values.as_ptr(), run) };
        }
        Runs { _pieces: pieces, first, run, step, count }
    }

    /// From the first element to the last one.
    pub fn span(&self) -> usize {
        (self.count - 1) * self.step + self.run
    }

    /// The elements, without the gaps.
    pub fn values(&self) -> Vec<T> {
        // SAFETY: each piece holds a run, initialised.
        let run = |i| unsafe { core::slice::from_raw_parts(self.first.add(i * self.step), self.run) };
        (0..self.count).flat_map(|i| run(i).iter().copied()).collect()
    }
}
