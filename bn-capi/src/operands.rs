//! The buffers of a call: whether they are there, aligned, and apart.
//!
//! Pointers become references only behind [`Operands::apart`], and only those of arrays: tensors, which
//! may be one another, stay addresses.

use crate::status::{
    BATCHNORM_ERROR_ALIGNMENT, BATCHNORM_ERROR_NULL, BATCHNORM_ERROR_OVERLAP, BATCHNORM_ERROR_SIZE, Refused,
};
use bn_core::{Layout, Shape, Stride};
use core::ffi::c_void;

/// What a buffer is to the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// An array, or the workspace. The first, so that [`Operands::NONE`] is zeros.
    Other,
    X,
    Residual,
    Y,
    Dy,
    Dx,
    Dresidual,
}

impl Role {
    /// Whether an output of this role may be that input.
    fn may_be(self, input: Role) -> bool {
        matches!(
            (self, input),
            (Role::Y, Role::X | Role::Residual) | (Role::Dx, Role::Dy) | (Role::Dresidual, Role::Dy)
        )
    }
}

#[derive(Clone, Copy)]
struct Buffer {
    start: usize,
    end: usize,
    /// 0, 0 where it is no tensor.
    stride: Stride,
    role: Role,
    written: bool,
}

/// Buffers of a call at most: the one-call backward pass has them.
const MOST: usize = 11;

/// The extent of a tensor's parts, in elements.
#[derive(Clone, Copy)]
struct Extent {
    /// Runs of an image, elements of a run, images.
    runs: usize,
    run: usize,
    images: usize,
    size: usize,
}

/// The buffers of a call.
pub(crate) struct Operands {
    list: [Buffer; MOST],
    len: usize,
    extent: Extent,
}

/// An array of a call, checked to be there and aligned; not yet to be apart from the others.
pub(crate) struct Array<P> {
    ptr: *mut P,
    len: usize,
}

impl<P> Clone for Array<P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P> Copy for Array<P> {}

impl<'a, P: 'a> Array<P> {
    /// # Safety
    /// The caller of the library vouches for the memory; it is not written meanwhile:
    /// [`Operands::apart`].
    pub(crate) unsafe fn get(self) -> &'a [P] {
        // SAFETY: by the caller; the size has been checked.
        unsafe { core::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// # Safety
    /// As [`Self::get`], nor read.
    pub(crate) unsafe fn get_mut(self) -> &'a mut [P] {
        // SAFETY: by the caller; the size has been checked.
        unsafe { core::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

impl Operands {
    /// Of a call on arrays alone, unless a [shape](Self::set_shape) is set.
    pub(crate) const NONE: Operands = {
        let nothing =
            Buffer { start: 0, end: 0, stride: Stride { batch: 0, inner: 0 }, role: Role::Other, written: false };
        Operands { list: [nothing; MOST], len: 0, extent: Extent { runs: 0, run: 0, images: 0, size: 0 } }
    };

    /// Tensors are of this shape, and elements of this size. (In place: the list is half of the stack that this takes.)
    pub(crate) fn set_shape(&mut self, shape: Shape, size: usize) {
        let (runs, run) = match shape.layout() {
            Layout::Nhwc => (shape.spatial(), shape.channels()),
            _ => (shape.channels(), shape.spatial()),
        };
        let images = if shape.is_empty() { 0 } else { shape.batch() };
        self.extent = Extent { runs, run, images, size };
    }

    fn push(&mut self, start: usize, bytes: usize, stride: Stride, role: Role, written: bool) -> Result<(), Refused> {
        let end = start.checked_add(bytes).ok_or(Refused(BATCHNORM_ERROR_SIZE))?;
        // What is empty overlaps nothing, wherever it is.
        if bytes == 0 {
            return Ok(());
        }
        debug_assert!(self.len < MOST);
        if let Some(slot) = self.list.get_mut(self.len) {
            *slot = Buffer { start, end, stride, role, written };
            self.len += 1;
        }
        Ok(())
    }

    /// Elements that a tensor of these (resolved) strides spans.
    pub(crate) fn span(&self, stride: Stride) -> usize {
        let Extent { runs, run, images, .. } = self.extent;
        if images == 0 { 0 } else { (images - 1) * stride.batch + (runs - 1) * stride.inner + run }
    }

    /// A tensor with resolved strides; `None` where it is NULL and may be. One without elements may be NULL
    /// in any case.
    pub(crate) fn tensor<T>(
        &mut self,
        ptr: *const c_void,
        optional: bool,
        stride: Stride,
        role: Role,
        written: bool,
    ) -> Result<Option<*mut T>, Refused> {
        let span = self.span(stride);
        if ptr.is_null() && optional {
            return Ok(None);
        }
        if span > 0 {
            present::<T>(ptr)?;
            self.push(ptr.addr(), span * self.extent.size, stride, role, written)?;
        }
        Ok(Some(ptr.cast_mut().cast()))
    }

    /// An array that must be there.
    pub(crate) fn array<P>(&mut self, ptr: *const c_void, len: usize, written: bool) -> Result<Array<P>, Refused> {
        present::<P>(ptr)?;
        let bytes = len.checked_mul(size_of::<P>()).filter(|&b| b <= isize::MAX as usize);
        let bytes = bytes.ok_or(Refused(BATCHNORM_ERROR_SIZE))?;
        self.push(ptr.addr(), bytes, Stride::default(), Role::Other, written)?;
        Ok(Array { ptr: ptr.cast_mut().cast(), len })
    }

    /// An array that may be NULL.
    pub(crate) fn optional<P>(
        &mut self,
        ptr: *const c_void,
        len: usize,
        written: bool,
    ) -> Result<Option<Array<P>>, Refused> {
        if ptr.is_null() { Ok(None) } else { self.array(ptr, len, written).map(Some) }
    }

    /// Checks that no output shares memory with another buffer, but as allowed.
    pub(crate) fn apart(&self) -> Result<(), Refused> {
        let list = || self.list.iter().take(self.len);
        for (i, a) in list().enumerate() {
            for b in list().skip(i + 1) {
                let shared = a.start < b.end && b.start < a.end;
                if (a.written || b.written) && shared && !self.allowed(a, b) {
                    return Err(Refused(BATCHNORM_ERROR_OVERLAP));
                }
            }
        }
        Ok(())
    }

    /// Whether two buffers whose ranges overlap are one operand in two roles, or interleaved without a
    /// common element.
    #[cold]
    fn allowed(&self, a: &Buffer, b: &Buffer) -> bool {
        let same_strides = a.stride == b.stride && a.role != Role::Other && b.role != Role::Other;
        if !same_strides {
            return false;
        }
        let distance = a.start.abs_diff(b.start);
        if distance == 0 {
            return (a.written && !b.written && a.role.may_be(b.role))
                || (b.written && !a.written && b.role.may_be(a.role));
        }
        let Extent { size, .. } = self.extent;
        distance.checked_rem(size) == Some(0) && self.interleaved(distance / size.max(1), a.stride)
    }

    /// Whether tensors of the same strides that start `distance` elements apart have no element in common,
    /// by one of the periods that the elements have: slices of the channels, images or positions of
    /// one larger tensor. (Where there is another reason they count as overlapping.)
    fn interleaved(&self, distance: usize, Stride { batch, inner }: Stride) -> bool {
        let Extent { runs, run, images, .. } = self.extent;
        // Elements are in windows of `width`, one in each period.
        let free = |period: usize, width: usize| match distance.checked_rem(period) {
            Some(shift) => shift >= width && period - shift >= width,
            None => false,
        };
        let of_runs = runs.saturating_sub(1).saturating_mul(inner).saturating_add(run);
        let of_images = images.saturating_sub(1).saturating_mul(batch).saturating_add(run);
        let divides = |a: usize, b: usize| b.checked_rem(a) == Some(0);
        free(batch, of_runs)
            || free(inner, of_images)
            || (free(inner, run) && divides(inner, batch))
            || (free(batch, run) && divides(batch, inner))
    }
}

/// Whether a pointer is there and aligned.
pub(crate) fn present<P>(ptr: *const c_void) -> Result<(), Refused> {
    if ptr.is_null() {
        Err(Refused(BATCHNORM_ERROR_NULL))
    } else if !ptr.cast::<P>().is_aligned() {
        Err(Refused(BATCHNORM_ERROR_ALIGNMENT))
    } else {
        Ok(())
    }
}

/// A reference to what a caller of the library points to.
///
/// # Safety
/// The caller vouches for the memory, if the pointer is not NULL.
pub(crate) unsafe fn read<P: Copy>(ptr: *const P) -> Result<P, Refused> {
    present::<P>(ptr.cast())?;
    // SAFETY: by the caller; it is aligned.
    Ok(unsafe { ptr.read() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::vec::Vec;

    fn of(shape: Shape) -> Operands {
        let mut operands = Operands::NONE;
        operands.set_shape(shape, 4);
        operands
    }

    fn elements(shape: Shape, s: Stride, first: usize) -> HashSet<usize> {
        let (runs, run) = match shape.layout() {
            Layout::Nhwc => (shape.spatial(), shape.channels()),
            _ => (shape.channels(), shape.spatial()),
        };
        let mut all = HashSet::new();
        for n in 0..shape.batch() {
            for r in 0..runs {
                all.extend((0..run).map(|i| first + n * s.batch + r * s.inner + i));
            }
        }
        all
    }

    #[test]
    fn what_is_empty_overlaps_nothing() {
        let memory = [0_f32; 4];
        let whole = memory.as_ptr().cast();
        let within = memory[2..].as_ptr().cast();
        for (len, expected) in [(0, Ok(())), (1, Err(Refused(BATCHNORM_ERROR_OVERLAP)))] {
            let mut to = Operands::NONE;
            to.array::<f32>(whole, memory.len(), true).unwrap();
            to.array::<f32>(within, len, true).unwrap();
            assert_eq!(to.apart(), expected);
        }
    }

    /// Whatever counts as interleaved has no element in common; and the usual slices count.
    #[test]
    fn interleaved_tensors_share_no_element() {
        let mut found = 0;
        for layout in [Layout::Nchw, Layout::Nhwc] {
            for batch in 1..4 {
                for (channels, spatial) in [(1, 1), (2, 3), (3, 2), (2, 2), (1, 4), (4, 1)] {
                    let shape = Shape::new(layout, batch, channels, &[spatial]).unwrap();
                    let steps: Vec<usize> = (1..26).collect();
                    for &b in &steps {
                        for &i in &steps {
                            let strides =
                                bn_core::Strides { x: Stride { batch: b, inner: i }, ..bn_core::Strides::DENSE };
                            let plan = bn_core::BatchNorm::<f32>::new(shape, 0.0).unwrap().with_strides(strides);
                            let Ok(plan) = plan else { continue };
                            let s = plan.strides().x;
                            let operands = of(shape);
                            let at_0 = elements(shape, s, 0);
                            assert_eq!(at_0.iter().max().unwrap() + 1, operands.span(s));
                            for distance in 1..40 {
                                if operands.interleaved(distance, s) {
                                    assert!(at_0.is_disjoint(&elements(shape, s, distance)));
                                    found += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
        assert!(found > 1000);
        // Two halves of the channels, in either layout.
        let shape = Shape::nhwc(2, 4, &[5]).unwrap();
        assert!(of(shape).interleaved(4, Stride { batch: 40, inner: 8 }));
        assert!(!of(shape).interleaved(3, Stride { batch: 40, inner: 8 }));
        let shape = Shape::nchw(2, 4, &[5]).unwrap();
        assert!(of(shape).interleaved(20, Stride { batch: 40, inner: 5 }));
        assert!(!of(shape).interleaved(15, Stride { batch: 40, inner: 5 }));
    }
}
