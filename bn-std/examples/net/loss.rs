//! Softmax cross-entropy, and the accuracy.

/// The mean over the rows of −ln softmax(logits)[label], and its gradient.
pub fn softmax_cross_entropy(logits: &[f32], labels: &[usize], dlogits: &mut Vec<f32>) -> f64 {
    dlogits.clear();
    let rows = labels.len() as f32;
    let mut total = 0.0;
    for (logits, &label) in rows_of(logits, labels).zip(labels) {
        // ln Σ exp(l) = max + ln Σ exp(l − max): no exponential overflows, and the sum is at least 1.
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
        total += f64::from(sum.ln() + (max - logits[label]));
        // softmax − one-hot, over the rows for the mean.
        let of_class = |(class, l): (usize, &f32)| {
            let softmax = (l - max).exp() / sum;
            (if class == label { softmax - 1.0 } else { softmax }) / rows
        };
        dlogits.extend(logits.iter().enumerate().map(of_class));
    }
    total / f64::from(rows)
}

/// Rows whose largest logit is that of their label. A NaN is larger than nothing: such rows are wrong.
pub fn count_correct(logits: &[f32], labels: &[usize]) -> usize {
    rows_of(logits, labels)
        .zip(labels)
        .filter(|&(logits, &label)| logits.iter().enumerate().all(|(class, &l)| class == label || l < logits[label]))
        .count()
}

fn rows_of<'a>(logits: &'a [f32], labels: &[usize]) -> core::slice::ChunksExact<'a, f32> {
    logits.chunks_exact((logits.len() / labels.len().max(1)).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_logits_do_not_overflow() {
        let mut dlogits = Vec::new();
        let loss = softmax_cross_entropy(&[1000.0, 0.0, 0.0, -1000.0], &[1, 0], &mut dlogits);
        assert_eq!(loss, 500.0);
        assert_eq!(dlogits, [0.5, -0.5, 0.0, 0.0]);
    }

    #[test]
    fn nan_is_wrong_and_seen() {
        assert_eq!(count_correct(&[f32::NAN, 1.0, 1.0, 0.0], &[0, 0]), 1);
        assert!(softmax_cross_entropy(&[f32::NAN, 1.0], &[1], &mut Vec::new()).is_nan());
    }
}
