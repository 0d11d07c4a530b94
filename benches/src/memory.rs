//! What the memory gives: reads, copies and triads, in several ways each. The fastest is the limit.

use crate::data::Data;
use crate::{Operation, Subject};
use bn_core::Executor;
use bn_std::Rayon;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes below which a tensor stays on one thread, as the kernels do it.
const SMALL: usize = 64 << 10;
/// Bytes of a part that a thread takes at once, at least.
const PART: usize = 512 << 10;

/// Three pointers, at elements that no other thread has meanwhile.
#[derive(Clone, Copy)]
struct Streams {
    x: *const f32,
    dy: *const f32,
    out: *mut f32,
    len: usize,
}

// SAFETY: the parts of different threads are disjoint.
unsafe impl Sync for Streams {}

/// Works on a part.
type Kernel = unsafe fn(Streams);

/// All ways of all operations. The tensors' lengths must be multiples of 16.
pub fn subjects<'a>(threads: usize) -> Vec<Subject<'a>> {
    let mut all: Vec<(Operation, &str, Kernel)> = vec![(Operation::Copy, "memcpy", memcpy)];
    #[cfg(target_arch = "x86_64")]
    all.extend(x86::kernels());
    let subject = |(operation, variant, kernel): (Operation, &str, Kernel)| Subject {
        library: "memory".into(),
        variant: variant.into(),
        operation,
        workspace: 0,
        call: Box::new(move |data: &mut Data| {
            // Backward writes dx, forward y.
            let out = if operation == Operation::Triad { &mut data.dx } else { &mut data.y };
            assert_eq!(data.x.len() % 16, 0);
            let all = Streams { x: data.x.as_ptr(), dy: data.dy.as_ptr(), out: out.as_mut_ptr(), len: data.x.len() };
            // SAFETY: the tensors have this length, and are borrowed meanwhile.
            unsafe { spread(all, threads, kernel) };
            Ok(())
        }),
    };
    all.into_iter().map(subject).collect()
}

/// # Safety
/// The pointers are valid for `all.len` elements.
unsafe fn spread(all: Streams, threads: usize, kernel: Kernel) {
    let bytes = 4 * all.len;
    if threads == 1 || bytes < SMALL {
        // SAFETY: as promised.
        return unsafe { kernel(all) };
    }
    let parts = (bytes / PART).clamp(threads, 16 * threads);
    let part = all.len.div_ceil(parts).next_multiple_of(16);
    let claimed = AtomicUsize::new(0);
    let streams = &all;
    Rayon::global().run(threads, &|| {
        loop {
            let first = part * claimed.fetch_add(1, Relaxed);
            if first >= streams.len {
                break;
            }
            let len = part.min(streams.len - first);
            // SAFETY: each part is claimed once, and lies inside.
            unsafe {
                let (x, dy, out) = (streams.x.add(first), streams.dy.add(first), streams.out.add(first));
                kernel(Streams { x, dy, out, len });
            }
        }
    });
}

/// # Safety
/// The pointers are valid for `s.len` elements.
unsafe fn memcpy(s: Streams) {
    // SAFETY: as promised; tensors do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(s.x, s.out, s.len) };
}

/// The kernels in 64-byte steps, on the widest vectors there are. `S` parts are walked in lockstep.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Operation, Streams};
    use std::arch::x86_64::*;
    use std::hint::black_box;

    macro_rules! kernels {
        ($module:ident, $feature:literal, $lines:literal, $load:ident, $store:ident, $stream:ident,
         $splat:ident, $add:ident, $mul:ident, $or:expr) => {
            mod $module {
                use super::*;
                /// Vectors in four cache lines.
                const UNROLL: usize = $lines * 4;
                const LANES: usize = 16 / $lines;
                const STEP: usize = UNROLL * LANES;

                /// # Safety
                /// The CPU has the instructions; the pointers are valid for `s.len` elements.
                #[target_feature(enable = $feature)]
                pub unsafe fn read<const S: usize, const TWO: bool>(s: Streams) {
                    // SAFETY: as promised.
                    unsafe {
                        let mut sums = [$splat(0.0); UNROLL];
                        let far = s.len / S;
                        let whole = far / STEP * STEP;
                        for i in (0..whole).step_by(STEP) {
                            for stream in 0..S {
                                for u in 0..UNROLL {
                                    let at = stream * far + i + u * LANES;
                                    sums[u] = $or(sums[u], $load(s.x.add(at)));
                                    if TWO {
                                        sums[u] = $or(sums[u], $load(s.dy.add(at)));
                                    }
                                }
                            }
                        }
                        for stream in 0..S {
                            let end = if stream + 1 == S { s.len } else { (stream + 1) * far };
                            for at in stream * far + whole..end {
                                sums[0] = $or(sums[0], $splat(*s.x.add(at)));
                                if TWO {
                                    sums[0] = $or(sums[0], $splat(*s.dy.add(at)));
                                }
                            }
                        }
                        black_box(sums);
                    }
                }

                /// x, or x + ½·dy.
                ///
                /// # Safety
                /// The CPU has the instructions; the pointers are valid for `s.len` elements.
                #[target_feature(enable = $feature)]
                pub unsafe fn write<const S: usize, const TWO: bool, const NT: bool>(s: Streams) {
                    // SAFETY: as promised; where stores bypass the cache, lines are whole: the output begins
                    // with one, and the streams with multiples of 16 elements.
                    unsafe {
                        let far = s.len / S / 16 * 16;
                        let whole = far / STEP * STEP;
                        for i in (0..whole).step_by(STEP) {
                            for stream in 0..S {
                                for u in 0..UNROLL {
                                    let at = stream * far + i + u * LANES;
                                    let mut v = $load(s.x.add(at));
                                    if TWO {
                                        v = $add(v, $mul($splat(0.5), $load(s.dy.add(at))));
                                    }
                                    if NT {
                                        $stream(s.out.add(at), v);
                                    } else {
                                        $store(s.out.add(at), v);
                                    }
                                }
                            }
                        }
                        for stream in 0..S {
                            let end = if stream + 1 == S { s.len } else { (stream + 1) * far };
                            for at in stream * far + whole..end {
                                let dy = if TWO { *s.dy.add(at) } else { 0.0 };
                                *s.out.add(at) = *s.x.add(at) + 0.5 * dy;
                            }
                        }
                        if NT {
                            _mm_sfence();
                        }
                    }
                }

                pub fn all() -> [(Operation, &'static str, Kernel); 12] {
                    [
                        (Operation::Read, "1-stream", read::<1, false>),
                        (Operation::Read, "2-streams", read::<2, false>),
                        (Operation::Read, "4-streams", read::<4, false>),
                        (Operation::ReadTwo, "1-stream", read::<1, true>),
                        (Operation::ReadTwo, "2-streams", read::<2, true>),
                        (Operation::ReadTwo, "4-streams", read::<4, true>),
                        (Operation::Copy, "plain", write::<1, false, false>),
                        (Operation::Copy, "nt", write::<1, false, true>),
                        (Operation::Copy, "nt-2-streams", write::<2, false, true>),
                        (Operation::Triad, "plain", write::<1, true, false>),
                        (Operation::Triad, "nt", write::<1, true, true>),
                        (Operation::Triad, "nt-2-streams", write::<2, true, true>),
                    ]
                }
            }
        };
    }

    kernels!(
        avx512,
        "avx512f",
        1,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_stream_ps,
        _mm512_set1_ps,
        _mm512_add_ps,
        _mm512_mul_ps,
        |a, b| _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), _mm512_castps_si512(b)))
    );
    kernels!(
        avx,
        "avx",
        2,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_stream_ps,
        _mm256_set1_ps,
        _mm256_add_ps,
        _mm256_mul_ps,
        _mm256_or_ps
    );
    kernels!(
        sse,
        "sse2",
        4,
        _mm_loadu_ps,
        _mm_storeu_ps,
        _mm_stream_ps,
        _mm_set1_ps,
        _mm_add_ps,
        _mm_mul_ps,
        _mm_or_ps
    );

    pub fn kernels() -> [(Operation, &'static str, Kernel); 12] {
        if is_x86_feature_detected!("avx512f") {
            avx512::all()
        } else if is_x86_feature_detected!("avx") {
            avx::all()
        } else {
            sse::all()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bn_core::Shape;

    #[test]
    fn every_way_writes_what_it_should() {
        for threads in [1, 2] {
            let mut data = Data::new(Shape::dense(9, 1616 * 16).unwrap());
            for mut subject in subjects(threads) {
                data.y.fill(f32::NAN);
                data.dx.fill(f32::NAN);
                (subject.call)(&mut data).unwrap();
                for i in 0..data.x.len() {
                    match subject.operation {
                        Operation::Copy => assert_eq!(data.y[i], data.x[i], "{}", subject.variant),
                        Operation::Triad => {
                            assert_eq!(data.dx[i], data.x[i] + 0.5 * data.dy[i], "{}", subject.variant);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}
