//! NCHW against NHWC: statistics and gradients within their bounds in both, whatever is elementwise with
//! the same bits, and the same bits in all where the layouts coincide.
#![cfg_attr(feature = "libfuzzer", no_main)]

use bn_core::{Affine, Moments, Op, Run, Shape};
use bn_fuzz::{Input, by_type, check_backward, check_forward, fuzz_target, transposed, turned};
use bn_oracle::problem::{Backward, Forward, Number, Problem, Through};

fuzz_target!(|input: Input| by_type!(input, go));

fn go<T: Number>(input: &Input) {
    let p = input.problem::<T>(input.small_shape());
    let q = transposed(&p);
    let how = input.how();
    let last = p.shape.layout() == bn_core::Layout::Nhwc;
    let same = |a: &[T], b: &[T], what: &str| {
        let a = turned(a, last, p.shape);
        assert!(a.iter().zip(b).all(|(a, b)| a.bits() == b.bits()), "{what} differs between the layouts");
    };
    let (a, b) = (p.forward(how), q.forward(how));
    check_forward(&p, &a);
    check_forward(&q, &b);
    same(&p.inference(how), &q.inference(how), "inference");
    // From the same statistics, the same y.
    let b = Forward { y: normalize(&q, &a.moments), moments: a.moments.clone() };
    same(&a.y, &b.y, "normalize");
    let through = input.through(&p);
    let (da, db): (Backward<T>, Backward<T>) = (p.backward(how, &a, through), q.backward(how, &b, through));
    check_backward(&p, &a, &da, through);
    check_backward(&q, &b, &db, through);
    same(&da.dresidual, &db.dresidual, "dresidual");
    if through == Through::Running {
        same(&da.dx, &db.dx, "frozen dx");
    }

    // One position, or one channel: one tensor, two names.
    let (n, c, s) = (p.shape.batch(), p.shape.channels(), p.shape.spatial());
    let other = |shape: Result<Shape, bn_core::Error>| Problem { shape: shape.expect("legal"), ..p.clone() };
    if s == 1 || c == 1 {
        let r = other(Shape::new(q.shape.layout(), n, c, &[s]));
        let e = r.forward(how);
        assert!(e.bits() == a.bits(), "coinciding layouts, other bits");
        assert!(r.backward(how, &e, through).bits() == da.bits(), "coinciding layouts, other gradients");
    }
    // Rows of NHWC are rows, whether positions or images. (With one channel it is NCHW, where they are not.)
    if last && c > 1 {
        let r = other(Shape::nhwc(1, c, &[n, s]));
        assert!(r.forward(how).bits() == a.bits(), "images as positions, other bits");
    }
}

fn normalize<T: Number>(p: &Problem<T>, moments: &[Moments]) -> Vec<T> {
    let bn = p.plan(bn_core::Isa::detect());
    let mut words = vec![0; bn.workspace_best(Op::ForwardTraining, 1)];
    let mut y = p.x.clone();
    let affine = Affine { gamma: p.gamma.as_deref(), beta: p.beta.as_deref() };
    bn.normalize(&p.x, p.residual.as_deref(), affine, moments, &mut y[..], Run::serial(&mut words)).expect("legal");
    y
}
