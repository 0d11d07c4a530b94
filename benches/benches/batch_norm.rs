//! `cargo bench -p bn-benches -- FILTER`, where names are layout/operation/shape/ISA/threads, as in
//! `nhwc/forward/32x64x56x56/avx512/2`, and FILTER is a regular expression of them.
//!
//! By default: the best ISA, one and two threads, the operations that every library has. `BN_BENCH=all`
//! adds the other ISAs and operations.

use bn_benches::check::Answer;
use bn_benches::data::Data;
use bn_benches::shapes::{CASES, layout_name};
use bn_benches::{Operation, Subject, ours};
use bn_core::{Isa, Layout, Shape};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// The tensors of the last shape: the next benchmark mostly has the same.
#[derive(Default)]
struct Cache {
    data: Option<Data>,
    answer: Option<(Operation, Answer)>,
}

impl Cache {
    /// The operation, whose answer has been found right.
    fn subject(
        &mut self,
        shape: Shape,
        operation: Operation,
        isa: Isa,
        threads: usize,
    ) -> (&mut Data, Subject<'static>) {
        if self.data.as_ref().is_some_and(|d| d.shape != shape) {
            *self = Cache::default();
        }
        let data = self.data.get_or_insert_with(|| Data::new(shape));
        if self.answer.as_ref().is_none_or(|(of, _)| *of != operation) {
            self.answer = Some((operation, Answer::new(data, operation)));
        }
        let mut subject = ours::subject(data, operation, isa, threads).expect("a shape of the table");
        if let Some((_, answer)) = &self.answer {
            answer.check(&mut subject, data, ours::TOLERANCE).expect("the right answer");
        }
        (data, subject)
    }
}

fn batch_norm(criterion: &mut Criterion) {
    let all = std::env::var("BN_BENCH").is_ok_and(|v| v == "all");
    let isas: Vec<Isa> = if all { Isa::available().collect() } else { vec![Isa::detect()] };
    let operations = if all { Operation::KERNELS } else { Operation::COMMON };
    let mut cache = Cache::default();
    for case in CASES {
        for layout in [Layout::Nhwc, Layout::Nchw] {
            let Ok(Some(shape)) = case.shape(layout) else { continue };
            for &operation in operations {
                let name = format!("{}/{}/{}", layout_name(layout), operation.name(), case.name);
                let mut group = criterion.benchmark_group(name);
                group.throughput(Throughput::BytesDecimal(operation.bytes(case.len()) as u64));
                for &isa in &isas {
                    for threads in [1, 2] {
                        // Only what the filter leaves gets here.
                        let id = BenchmarkId::new(isa.kind().name(), threads);
                        group.bench_function(id, |bencher| {
                            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                            // From a thread of the pool, so that the calling thread works too.
                            pool.install(|| {
                                let (data, mut subject) = cache.subject(shape, operation, isa, threads);
                                bencher.iter(|| (subject.call)(data).expect("checked before"));
                            });
                        });
                    }
                }
                group.finish();
            }
        }
    }
}

criterion_group! {
    name = benches;
    // Some five minutes for all of the default; `--measurement-time` and the like change it.
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .nresamples(2_000)
        .without_plots()
        .configure_from_args();
    targets = batch_norm
}
criterion_main!(benches);
