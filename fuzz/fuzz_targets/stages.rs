//! Statistics and sums of shards, merged in any split, equal those of the whole within their bounds, and so
//! do the results made from them.
#![cfg_attr(feature = "libfuzzer", no_main)]

use bn_core::{Affine, BackwardInput, GradSums, Gradients, Moments, Op, Run, Shape, Statistics, merge_moments};
use bn_fuzz::{Input, by_type, check_forward, check_shards, fuzz_target};
use bn_oracle::bounds;
use bn_oracle::problem::{Backward, Forward, Number, Problem, Scalar};

fuzz_target!(|input: Input| by_type!(input, go));

fn go<T: Number>(input: &Input) {
    let p = input.problem::<T>(input.small_shape());
    let (c, isa) = (p.shape.channels(), input.how().isa);
    let image = c * p.shape.spatial();
    // Cuts of the batch, some of them empty.
    let mut cuts: Vec<usize> = (0..3)
        .map(|i| (input.choice >> (16 * i)) as usize % (p.shape.batch() + 1))
        .chain([0, p.shape.batch()])
        .collect();
    cuts.sort_unstable();
    let shards: Vec<(usize, usize)> = cuts.windows(2).map(|w| (w[0], w[1])).collect();
    let shard = |(from, to): (usize, usize)| -> Problem<T> {
        let of = |v: &[T]| v[from * image..to * image].to_vec();
        let shape = Shape::new(p.shape.layout(), to - from, c, &[p.shape.spatial()]).expect("part of a legal shape");
        Problem { shape, x: of(&p.x), dy: of(&p.dy), residual: p.residual.as_ref().map(|r| of(r)), ..p.clone() }
    };

    // Moments of each on its own, merged from either end; or all into the same ones.
    let mut parts: Vec<Vec<Moments>> = Vec::new();
    let mut same = vec![Moments::EMPTY; c];
    for &s in &shards {
        let q = shard(s);
        let bn = q.plan(isa);
        let mut words = vec![0; bn.workspace_min(Op::ForwardTraining)];
        let mut m = vec![Moments::EMPTY; c];
        bn.moments(&q.x, &mut m, Run::serial(&mut words)).expect("legal");
        bn.moments(&q.x, &mut same, Run::serial(&mut words)).expect("legal");
        parts.push(m);
    }
    if input.extra % 2 == 1 {
        parts.reverse();
    }
    let mut merged = vec![Moments::EMPTY; c];
    for m in &parts {
        merge_moments(&mut merged, m).expect("as many channels");
    }
    let normalize = |moments: Vec<Moments>| -> Forward<T> {
        let mut y = Vec::new();
        for &s in &shards {
            let q = shard(s);
            let bn = q.plan(isa);
            let mut words = vec![0; bn.workspace_min(Op::ForwardTraining)];
            let mut part = q.x.clone();
            let affine = Affine { gamma: p.gamma.as_deref(), beta: p.beta.as_deref() };
            let run = Run::serial(&mut words);
            bn.normalize(&q.x, q.residual.as_deref(), affine, &moments, &mut part[..], run).expect("legal");
            y.extend(part);
        }
        Forward { y, moments }
    };
    check_forward(&p, &normalize(same));
    let forward = normalize(merged);
    check_forward(&p, &forward);

    // One value at a time, from f64: by far more exact than f32 needs.
    if T::FORMAT.name == "f32" {
        for channel in 0..c {
            let mut m = Moments::EMPTY;
            for i in p.places(channel) {
                m.push(p.x[i].wide());
            }
            let made = Forward { y: forward.y.clone(), moments: vec![m; c] };
            let e: bounds::Forward = p.judge_forward(channel, &made);
            assert!(e.mean <= 1.0 && e.variance <= 1.0, "pushed: {e:?}");
        }
    }

    // Gradients by stages.
    let mut sums = vec![GradSums::default(); c];
    let blank = T::Param::of(f64::NAN);
    let mut made = Backward::<T> { dx: vec![], dresidual: vec![], dgamma: vec![blank; c], dbeta: vec![blank; c] };
    let inputs: Vec<(Problem<T>, Vec<T>)> =
        shards.iter().map(|&(a, b)| (shard((a, b)), forward.y[a * image..b * image].to_vec())).collect();
    let mut words = vec![0; 4096];
    let what = |q: &Problem<T>, y: &Vec<T>, f: &mut dyn FnMut(&bn_core::BatchNorm<T>, BackwardInput<'_, T>)| {
        let statistics = Statistics::Batch(&forward.moments);
        let input = BackwardInput { x: &q.x, y: Some(y), dy: &q.dy, gamma: p.gamma.as_deref(), statistics };
        f(&q.plan(isa), input);
    };
    for (q, y) in &inputs {
        what(q, y, &mut |bn, input| {
            let mut part = vec![GradSums::default(); c];
            bn.backward_sums(input, &mut part, Run::serial(&mut words)).expect("legal");
            for (a, b) in sums.iter_mut().zip(&part) {
                a.merge(b);
            }
        });
    }
    for (q, y) in &inputs {
        what(q, y, &mut |bn, input| {
            let (mut dx, mut dresidual) = (q.x.clone(), q.x.clone());
            let gradients = Gradients {
                dx: Some((&mut dx[..]).into()),
                dresidual: Some((&mut dresidual[..]).into()),
                dgamma: Some(&mut made.dgamma),
                dbeta: Some(&mut made.dbeta),
            };
            bn.backward_apply(input, &sums, gradients, Run::serial(&mut words)).expect("legal");
            made.dx.extend(dx);
            made.dresidual.extend(dresidual);
        });
    }
    check_shards(&p, &forward, &made);
}
