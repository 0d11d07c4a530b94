//! What has no tensor: folding into the weights of a neighbour, and batch renormalization's parameters.

use crate::data::Pattern;
use crate::hash::Hash;
use crate::problems::Problem;
use crate::{Arena, Element, Ran, Report, Stop, each};
use bn_core::{Error, Fold, Renorm, RenormFactor, renorm_affine, renorm_gradients};

/// Folding into the layer before and the layer behind, and batch renormalization.
pub fn deployment<T: Element>(arena: &mut [u64], report: Report<'_>) {
    each::<T>("fold", false, arena, report, |p, a| fold::<T>(p, a, false));
    each::<T>("fold-flushed", false, arena, report, |p, a| fold::<T>(p, a, true));
    each::<T>("renorm", false, arena, report, |p, mut a| {
        let x = p.x::<T>(&mut a)?;
        let (moments, affine) = (p.statistics(&mut a, x)?, p.affine::<T::Param>(&mut a)?);
        let mean = p.parameters::<T::Param>(&mut a, 6, Pattern::Spread)?;
        let var = p.parameters(&mut a, 7, Pattern::Variance)?;
        let factors = a.take::<RenormFactor>(p.channels).ok_or(Stop::Memory)?;
        let gamma_r = p.parameters::<T::Param>(&mut a, 11, Pattern::Spread)?;
        let beta_d = p.parameters(&mut a, 12, Pattern::Spread)?;
        let mut h = Hash::NEW;
        for (r_max, d_max) in [(1.0, 0.0), (1.5, 0.25), (3.0, 5.0)] {
            Renorm::new(r_max, d_max)?.factors(moments, mean, var, 1e-3, factors)?;
            for f in factors.iter() {
                h.all(&[f.r, f.d]);
            }
            renorm_gradients(factors, gamma_r, beta_d)?;
            h.all(gamma_r);
            renorm_affine(factors, affine, gamma_r, beta_d)?;
            h.all(gamma_r);
            h.all(beta_d);
        }
        Ok(h)
    });
}

/// Every way of folding, of weights with three taps.
fn fold<T: Element>(p: &Problem, mut a: Arena<'_>, flush: bool) -> Ran {
    const TAPS: usize = 3;
    let affine = p.affine::<T::Param>(&mut a)?;
    let (mean, var) = (p.parameters(&mut a, 6, Pattern::Spread)?, p.parameters(&mut a, 7, Pattern::Variance)?);
    let mut fold = Fold::running(affine, mean, var, 1e-5)?;
    if flush {
        fold = fold.flush_subnormals();
    }
    let weight = a.take::<T::Param>(p.channels * TAPS).ok_or(Stop::Memory)?;
    let bias = a.take::<T::Param>(p.channels).ok_or(Stop::Memory)?;
    let mut h = Hash::NEW;
    let pattern = if flush { Pattern::Tiny } else { p.x };
    for way in 0..4 {
        crate::data::parameters(weight, p.seed(13 + way), pattern);
        crate::data::parameters(bias, p.seed(17), Pattern::Spread);
        let done = match way {
            0 => fold.into_preceding(TAPS, weight, bias),
            1 => fold.into_preceding_transposed(1, 1, TAPS, weight, bias),
            2 => fold.into_following(1, 1, TAPS, weight, &mut bias[..1]),
            _ => fold.scale_shift(&mut weight[..p.channels], bias),
        };
        match done {
            // As it must be where a folded weight is too large.
            Err(Error::Unfoldable { .. }) => h.u64(way as u64),
            other => {
                other?;
                h.all(weight);
                h.all(bias);
            }
        }
    }
    Ok(h)
}
