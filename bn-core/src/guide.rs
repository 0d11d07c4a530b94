//! What the stages are good for, by worked examples. Nothing here is code but the examples.
//!
//! The whole operations are made of stages, and each stage is public: [`BatchNorm::moments`] and
//! [`BatchNorm::normalize`]; [`BatchNorm::backward_sums`] and [`BatchNorm::backward_apply`]. What goes from one to the
//! next, [`Moments`] and [`GradSums`], is a few f64 per channel, can be merged, and can be sent anywhere.
//!
//! - [Micro-batches that make one batch](#micro-batches-that-make-one-batch)
//! - [Ghost batch norm](#ghost-batch-norm)
//! - [Synchronized batch norm](#synchronized-batch-norm)
//! - [A data set larger than memory](#a-data-set-larger-than-memory)
//! - [Population statistics](#population-statistics)
//! - [Masked batches](#masked-batches)
//! - [Batch renormalization](#batch-renormalization)
//! - [Folding](#folding)
//! - [Statistics as arrays](#statistics-as-arrays)
//!
//! # Micro-batches that make one batch
//! Gradient accumulation usually normalizes each micro-batch by itself (that is ghost batch norm,
//! below). With the stages the micro-batches are one batch: the same y and the same gradients as if all
//! of it had been there at once, for a second visit to each micro-batch in each direction.
//!
//! ```
//! use bn_core::*;
//! // 6 rows of 2 features, in micro-batches of 2 rows.
//! let x: Vec<f32> = (0..12).map(|i| (i * i % 7) as f32).collect();
//! let dy: Vec<f32> = (0..12).map(|i| (i * 5 % 11) as f32).collect();
//! let (gamma, beta) = ([2.0, 0.5], [0.0, 1.0]);
//! let affine = Affine::new(&gamma, &beta);
//! let bn = BatchNorm::<f32>::new(Shape::dense(2, 2)?, 1e-5)?;
//! let mut workspace = [0; 1024];
//!
//! // Forward: the statistics of all, then y of each.
//! let mut moments = [Moments::EMPTY; 2];
//! for x in x.chunks(4) {
//!     bn.moments(x, &mut moments, Run::serial(&mut workspace))?;
//! }
//! let mut y = [0.0; 12];
//! for (x, y) in x.chunks(4).zip(y.chunks_mut(4)) {
//!     bn.normalize(x, None, affine, &moments, y, Run::serial(&mut workspace))?;
//! }
//!
//! // Backward: the sums of all, then dx of each; dgamma and dbeta come out of the sums.
//! let statistics = Statistics::Batch(&moments);
//! let mut sums = [GradSums::default(); 2];
//! for (x, dy) in x.chunks(4).zip(dy.chunks(4)) {
//!     let mut part = [GradSums::default(); 2];
//!     let input = BackwardInput { x, y: None, dy, gamma: Some(&gamma), statistics };
//!     bn.backward_sums(input, &mut part, Run::serial(&mut workspace))?;
//!     sums.iter_mut().zip(&part).for_each(|(all, part)| all.merge(part));
//! }
//! let (mut dx, mut dgamma, mut dbeta) = ([0.0; 12], [0.0; 2], [0.0; 2]);
//! for ((x, dy), dx) in x.chunks(4).zip(dy.chunks(4)).zip(dx.chunks_mut(4)) {
//!     let input = BackwardInput { x, y: None, dy, gamma: Some(&gamma), statistics };
//!     let output = Gradients {
//!         dx: Some(dx.into()),
//!         dgamma: Some(&mut dgamma),
//!         dbeta: Some(&mut dbeta),
//!         ..Default::default()
//!     };
//!     bn.backward_apply(input, &sums, output, Run::serial(&mut workspace))?;
//! }
//!
//! // The same in one piece.
//! let bn = BatchNorm::<f32>::new(Shape::dense(6, 2)?, 1e-5)?;
//! let (mut y1, mut moments1) = ([0.0; 12], [Moments::EMPTY; 2]);
//! bn.forward_training(&x, None, affine, &mut y1, &mut moments1, Run::serial(&mut workspace))?;
//! let (mut dx1, mut dgamma1, mut dbeta1) = ([0.0; 12], [0.0; 2], [0.0; 2]);
//! let statistics = Statistics::Batch(&moments1);
//! let input = BackwardInput { x: &x, y: None, dy: &dy, gamma: Some(&gamma), statistics };
//! let output = Gradients {
//!     dx: Some((&mut dx1).into()),
//!     dgamma: Some(&mut dgamma1),
//!     dbeta: Some(&mut dbeta1),
//!     ..Default::default()
//! };
//! bn.backward(input, output, Run::serial(&mut workspace))?;
//! let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5);
//! assert!(near(&y, &y1) && near(&dx, &dx1) && near(&dgamma, &dgamma1) && near(&dbeta, &dbeta1));
//! # Ok::<(), Error>(())
//! ```
//!
//! # Ghost batch norm
//! A large batch, normalized in small parts each by its own statistics, regularizes as small batches do
//! (Hoffer, Hubara & Soudry, "Train longer, generalize better", 2017). Each part is a call of its own; the
//! gradients of gamma and beta add up. The running statistics are updated by each part, or once by all
//! of them merged; the paper does the former.
//!
//! ```
//! use bn_core::*;
//! // 8 rows of one feature: ghosts of 4, about 10 and about −10.
//! let x = [9.0, 10.0, 10.0, 11.0, -12.0, -10.0, -10.0, -8.0_f32];
//! let dy = [1.0, 2.0, 0.0, 4.0, 3.0, 0.0, 1.0, 5.0_f32];
//! let ghost = BatchNorm::<f32>::new(Shape::dense(4, 1)?, 0.0)?;
//! let rule = RunningStats::pytorch(0.1)?;
//! let (mut running_mean, mut running_var) = ([0.0_f32], [1.0_f32]);
//! let (mut dgamma, mut dbeta) = ([0.0_f32], [0.0_f32]);
//! let (mut y, mut dx) = ([0.0; 8], [0.0; 8]);
//! let mut all = [Moments::EMPTY];
//! let mut workspace = [0; 1024];
//! for i in [0..4, 4..8] {
//!     let (x, y, dy, dx) = (&x[i.clone()], &mut y[i.clone()], &dy[i.clone()], &mut dx[i.clone()]);
//!     let mut moments = [Moments::EMPTY];
//!     ghost.forward_training(x, None, Affine::NONE, y, &mut moments, Run::serial(&mut workspace))?;
//!     rule.update(&moments, &mut running_mean, &mut running_var, None)?;
//!     merge_moments(&mut all, &moments)?;
//!
//!     let (mut dg, mut db) = ([0.0], [0.0]);
//!     let input = BackwardInput { x, y: None, dy, gamma: None, statistics: Statistics::Batch(&moments) };
//!     let output = Gradients {
//!         dx: Some(dx.into()),
//!         dgamma: Some(&mut dg),
//!         dbeta: Some(&mut db),
//!         ..Default::default()
//!     };
//!     ghost.backward(input, output, Run::serial(&mut workspace))?;
//!     dgamma[0] += dg[0];
//!     dbeta[0] += db[0];
//! }
//! // Both ghosts are the same but for shift and scale, so normalized they are the same.
//! assert_eq!(y[..4], y[4..]);
//! // Σ dy·x̂, and x̂ = −√2, 0, 0, √2 in both.
//! let root = 2.0_f32.sqrt();
//! assert!((dgamma[0] - (-1.0 + 4.0 - 3.0 + 5.0) * root).abs() < 1e-5);
//! assert_eq!(dbeta, [16.0]);
//! // 0, then 0.1·10, then 0.9·1 − 0.1·10.
//! assert!((running_mean[0] - (0.9 * 1.0 - 1.0)).abs() < 1e-6);
//! // The statistics of all: Σ x² = 402 + 408.
//! assert_eq!(all, [Moments { count: 8, mean: 0.0, m2: 810.0 }]);
//! # Ok::<(), Error>(())
//! ```
//!
//! # Synchronized batch norm
//! Processes that have a part of the batch each (data parallelism) exchange moments forward and sums
//! backward: 24 and 16 bytes per channel. The parts may differ in size, and be empty. For equal bits
//! everywhere merge in a fixed order, that of the ranks, on each process.
//!
//! ```
//! use bn_core::*;
//! // Three ranks with 3, 0 and 1 images of 2 channels and 2 positions.
//! let images = [3, 0, 1];
//! let start = [0, 12, 12, 16];
//! let x: Vec<f32> = (0..16).map(|i| 100.0 + (i * i % 13) as f32).collect();
//! let dy: Vec<f32> = (0..16).map(|i| (i * 3 % 8) as f32).collect();
//! let plan = |rank: usize| BatchNorm::<f32>::new(Shape::nchw(images[rank], 2, &[2])?, 1e-5);
//! let part = |rank: usize| start[rank]..start[rank + 1];
//! let mut workspace = [0; 1024];
//!
//! // On each rank: moments of its part. An all-gather, and merging in the order of ranks:
//! let mut moments = [Moments::EMPTY; 2];
//! for rank in 0..3 {
//!     let mut own = [Moments::EMPTY; 2];
//!     plan(rank)?.moments(&x[part(rank)], &mut own, Run::serial(&mut workspace))?;
//!     merge_moments(&mut moments, &own)?;
//! }
//! // On each rank: its part of y; then the sums, and an all-reduce of those.
//! let statistics = Statistics::Batch(&moments);
//! let (mut y, mut dx) = ([0.0; 16], [0.0; 16]);
//! let mut sums = [GradSums::default(); 2];
//! for rank in 0..3 {
//!     let (x, y, dy) = (&x[part(rank)], &mut y[part(rank)], &dy[part(rank)]);
//!     plan(rank)?.normalize(x, None, Affine::NONE, &moments, y, Run::serial(&mut workspace))?;
//!     let mut own = [GradSums::default(); 2];
//!     let input = BackwardInput { x, y: None, dy, gamma: None, statistics };
//!     plan(rank)?.backward_sums(input, &mut own, Run::serial(&mut workspace))?;
//!     sums.iter_mut().zip(&own).for_each(|(all, own)| all.merge(own));
//! }
//! // On each rank: its part of dx. dgamma and dbeta are those of the whole batch on all of them: do
//! // not add them up again.
//! let mut dgamma = [[0.0; 2]; 3];
//! for rank in 0..3 {
//!     let (x, dy, dx) = (&x[part(rank)], &dy[part(rank)], &mut dx[part(rank)]);
//!     let input = BackwardInput { x, y: None, dy, gamma: None, statistics };
//!     let output = Gradients { dx: Some(dx.into()), dgamma: Some(&mut dgamma[rank]), ..Default::default() };
//!     plan(rank)?.backward_apply(input, &sums, output, Run::serial(&mut workspace))?;
//! }
//!
//! // One process with all four images.
//! let bn = BatchNorm::<f32>::new(Shape::nchw(4, 2, &[2])?, 1e-5)?;
//! let (mut y1, mut moments1) = ([0.0; 16], [Moments::EMPTY; 2]);
//! bn.forward_training(&x, None, Affine::NONE, &mut y1, &mut moments1, Run::serial(&mut workspace))?;
//! let (mut dx1, mut dgamma1) = ([0.0; 16], [0.0; 2]);
//! let statistics = Statistics::Batch(&moments1);
//! let input = BackwardInput { x: &x, y: None, dy: &dy, gamma: None, statistics };
//! let output = Gradients { dx: Some((&mut dx1).into()), dgamma: Some(&mut dgamma1), ..Default::default() };
//! bn.backward(input, output, Run::serial(&mut workspace))?;
//! let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5);
//! assert!(near(&y, &y1) && near(&dx, &dx1));
//! assert!(dgamma.iter().all(|d| near(d, &dgamma1)));
//! # Ok::<(), Error>(())
//! ```
//!
//! # A data set larger than memory
//! Moments of chunks, as they are read; then the chunks once more, to be standardized. The last chunk may
//! be shorter: plans are cheap to make. [`Moments::push`] takes single values. Nothing is lost to a mean
//! that is large against the deviations.
//!
//! ```
//! use bn_core::*;
//! /// Rows 100·k … of a table of 250 rows with 2 columns: i mod 5 above a million, and constant.
//! fn read(k: usize) -> Vec<f32> {
//!     (100 * k..250.min(100 * k + 100)).flat_map(|i| [1e6 + (i % 5) as f32, 7.0]).collect()
//! }
//! let plan = |chunk: &[f32]| BatchNorm::<f32>::new(Shape::dense(chunk.len() / 2, 2)?, 0.0);
//! let mut workspace = [0; 1024];
//!
//! let mut moments = [Moments::EMPTY; 2];
//! for k in 0..3 {
//!     let x = read(k);
//!     plan(&x)?.moments(&x, &mut moments, Run::serial(&mut workspace))?;
//! }
//! assert_eq!(moments[0].count, 250);
//! assert!((moments[0].mean - 1_000_002.0).abs() < 1e-8 && (moments[0].variance() - 2.0).abs() < 1e-8);
//! for k in 0..3 {
//!     let mut x = read(k);
//!     let bn = plan(&x)?;
//!     // In place, with the statistics as if they were running statistics.
//!     let (mut mean, mut var) = ([0.0; 2], [0.0; 2]);
//!     moments_to_mean_var(&moments, Variance::Biased, &mut mean, &mut var)?;
//!     bn.inference_in_place(&mut x, None, Affine::NONE, &mean, &var, Run::serial(&mut workspace))?;
//!     for (i, row) in x.chunks(2).enumerate() {
//!         let exact = ((i % 5) as f32 - 2.0) / 2.0_f32.sqrt();
//!         assert!((row[0] - exact).abs() < 1e-6 && row[1] == 0.0);
//!     }
//! }
//! # Ok::<(), Error>(())
//! ```
//! (A mean that f32 cannot hold is rounded by `moments_to_mean_var`; [`BatchNorm::normalize`] takes the moments
//! as they are.)
//!
//! # Population statistics
//! Instead of running averages over a training in which the network has changed, inference may use
//! statistics of the finished network, over as many batches as one likes. Two ways:
//! - Ioffe & Szegedy 2015, Algorithm 2: the average of the batches' means, and of their unbiased
//!   variances. It leaves out how the batches' means differ from each other.
//! - "Precise" statistics: those of all values together ([`Moments::merge`]). They do not depend on how the
//!   data were cut into batches. (Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3, compare
//!   them with running averages.)
//!
//! ```
//! use bn_core::*;
//! let batches = [[1.0, 3.0_f32], [5.0, 7.0], [0.0, 2.0]];
//! let bn = BatchNorm::<f32>::new(Shape::dense(2, 1)?, 0.0)?;
//! let mut workspace = [0; 1024];
//!
//! let algorithm2 = RunningStats::new(Momentum::Cumulative, Variance::Unbiased)?;
//! let (mut mean, mut var, mut num_batches) = ([0.0_f64], [0.0_f64], 0);
//! let mut population = [Moments::EMPTY];
//! for x in &batches {
//!     let mut moments = [Moments::EMPTY];
//!     bn.moments(x, &mut moments, Run::serial(&mut workspace))?;
//!     algorithm2.update(&moments, &mut mean, &mut var, Some(&mut num_batches))?;
//!     merge_moments(&mut population, &moments)?;
//! }
//! // Means 2, 6, 1; unbiased variances 2, 2, 2.
//! assert!((mean[0] - 3.0).abs() < 1e-15 && (var[0] - 2.0).abs() < 1e-15 && num_batches == 3);
//! // Σ (x − 3)² = 4 + 0 + 4 + 16 + 9 + 1.
//! assert!((population[0].mean - 3.0).abs() < 1e-15 && (population[0].m2 - 34.0).abs() < 1e-13);
//! let (mut mean, mut var) = ([0.0_f32], [0.0_f32]);
//! moments_to_mean_var(&population, Variance::Unbiased, &mut mean, &mut var)?;
//! assert_eq!((mean, var), ([3.0], [6.8]));
//! # Ok::<(), Error>(())
//! ```
//!
//! # Masked batches
//! Sequences of unequal length, padded to the longest: the padding must count neither in statistics
//! nor in gradients. Channels last, the positions of a sequence are together, so each sequence is a shard:
//! one plan per length, on the part of its row that is not padding. The rest is not read or
//! written.
//!
//! ```
//! use bn_core::*;
//! // 3 sequences of 4, 1 and 0 of at most 4 positions, with 2 channels; NaN is padding.
//! let lengths = [4, 1, 0];
//! let pad = f32::NAN;
//! let x = [
//!     1.0, 10.0, 2.0, 20.0, 3.0, 40.0, 4.0, 30.0, //
//!     10.0, 0.0, pad, pad, pad, pad, pad, pad, //
//!     pad, pad, pad, pad, pad, pad, pad, pad,
//! ];
//! let dy: Vec<f32> = (0..24).map(|i| (i * i % 5) as f32).collect();
//! let plan = |length| BatchNorm::<f32>::new(Shape::nhwc(1, 2, &[length])?, 1e-5);
//! let real = |i: usize| i * 8..i * 8 + lengths[i] * 2;
//! let mut workspace = [0; 1024];
//!
//! let mut moments = [Moments::EMPTY; 2];
//! for (i, &length) in lengths.iter().enumerate() {
//!     plan(length)?.moments(&x[real(i)], &mut moments, Run::serial(&mut workspace))?;
//! }
//! assert_eq!((moments[0].count, moments[0].mean, moments[1].mean), (5, 4.0, 20.0));
//! let statistics = Statistics::Batch(&moments);
//! let (mut y, mut dx) = ([0.0; 24], [0.0; 24]);
//! let mut sums = [GradSums::default(); 2];
//! for (i, &length) in lengths.iter().enumerate() {
//!     let (x, y, dy) = (&x[real(i)], &mut y[real(i)], &dy[real(i)]);
//!     plan(length)?.normalize(x, None, Affine::NONE, &moments, y, Run::serial(&mut workspace))?;
//!     let mut part = [GradSums::default(); 2];
//!     let input = BackwardInput { x, y: None, dy, gamma: None, statistics };
//!     plan(length)?.backward_sums(input, &mut part, Run::serial(&mut workspace))?;
//!     sums.iter_mut().zip(&part).for_each(|(all, part)| all.merge(part));
//! }
//! for (i, &length) in lengths.iter().enumerate() {
//!     let input = BackwardInput { x: &x[real(i)], y: None, dy: &dy[real(i)], gamma: None, statistics };
//!     let output = Gradients { dx: Some((&mut dx[real(i)]).into()), ..Default::default() };
//!     plan(length)?.backward_apply(input, &sums, output, Run::serial(&mut workspace))?;
//! }
//!
//! // The same without padding: 5 rows of 2 features.
//! let bn = BatchNorm::<f32>::new(Shape::dense(5, 2)?, 1e-5)?;
//! let (mut y1, mut dx1, mut moments1) = ([0.0; 10], [0.0; 10], [Moments::EMPTY; 2]);
//! bn.forward_training(&x[..10], None, Affine::NONE, &mut y1, &mut moments1, Run::serial(&mut workspace))?;
//! let statistics = Statistics::Batch(&moments1);
//! let input = BackwardInput { x: &x[..10], y: None, dy: &dy[..10], gamma: None, statistics };
//! let output = Gradients { dx: Some((&mut dx1).into()), ..Default::default() };
//! bn.backward(input, output, Run::serial(&mut workspace))?;
//! let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5);
//! assert!(near(&y[..10], &y1) && near(&dx[..10], &dx1));
//! assert!(y[10..].iter().chain(&dx[10..]).all(|&v| v == 0.0), "padding has been written");
//! # Ok::<(), Error>(())
//! ```
//!
//! Channels first, the positions of a channel are together, and [`Strides`] say how far apart the channels
//! are:
//!
//! ```
//! use bn_core::*;
//! // 2 channels of a sequence of 3 of at most 5 positions.
//! let pad = f32::NAN;
//! let x = [1.0, 2.0, 3.0, pad, pad, 10.0, 30.0, 50.0, pad, pad];
//! let stride = Stride { batch: 0, inner: 5 };
//! let bn = BatchNorm::<f32>::new(Shape::nchw(1, 2, &[3])?, 0.0)?
//!     .with_strides(Strides { x: stride, y: stride, ..Strides::DENSE })?;
//! let (mut y, mut moments, mut workspace) = ([pad; 10], [Moments::EMPTY; 2], [0; 1024]);
//! let real = ..5 + 3;
//! bn.moments(&x[real], &mut moments, Run::serial(&mut workspace))?;
//! assert_eq!(moments.map(|m| (m.count, m.mean)), [(3, 2.0), (3, 30.0)]);
//! bn.normalize(&x[real], None, Affine::NONE, &moments, &mut y[real], Run::serial(&mut workspace))?;
//! let root = 1.5_f32.sqrt();
//! for y in y.chunks(5) {
//!     assert!((y[0] + root).abs() < 1e-6 && y[1] == 0.0 && (y[2] - root).abs() < 1e-6);
//!     assert!(y[3].is_nan() && y[4].is_nan(), "padding has been written");
//! }
//! # Ok::<(), Error>(())
//! ```
//!
//! # Batch renormalization
//! [`Renorm`] has one step with its gradients. Here is a training that starts as batch normalization and
//! widens the limits: once no limit is reached, training gives what inference gives.
//!
//! ```
//! use bn_core::*;
//! let bn = BatchNorm::<f64>::new(Shape::dense(4, 1)?, 1e-3)?;
//! let rule = RunningStats::new(Momentum::WeighNew(0.01), Variance::Biased)?;
//! let (mut mean, mut var) = ([0.0], [1.0]);
//! let (mut y, mut inference) = ([0.0; 4], [0.0; 4]);
//! let mut workspace = [0; 1024];
//! for step in 0..400 {
//!     let x = [0, 1, 2, 3].map(|i| 2.0 + ((4 * step + i) as f64 * 1.7).sin());
//!     let widened = (step as f64 / 200.0).min(1.0);
//!     let renorm = Renorm::new(1.0 + 2.0 * widened, 5.0 * widened)?;
//!
//!     let (mut moments, mut factors) = ([Moments::EMPTY], [RenormFactor::default()]);
//!     bn.moments(&x, &mut moments, Run::serial(&mut workspace))?;
//!     renorm.factors(&moments, &mean, &var, bn.epsilon(), &mut factors)?;
//!     let (mut gamma_r, mut beta_d) = ([0.0], [0.0]);
//!     renorm_affine(&factors, Affine::NONE, &mut gamma_r, &mut beta_d)?;
//!     let affine = Affine::new(&gamma_r, &beta_d);
//!     bn.normalize(&x, None, affine, &moments, &mut y, Run::serial(&mut workspace))?;
//!
//!     bn.inference(&x, None, Affine::NONE, &mean, &var, &mut inference, Run::serial(&mut workspace))?;
//!     let same = y.iter().zip(&inference).all(|(y, i)| (y - i).abs() < 1e-12);
//!     if step == 0 {
//!         assert!(!same && factors == [RenormFactor { r: 1.0, d: 0.0 }]);
//!     } else if step >= 200 {
//!         assert!(same, "step {step}: {factors:?}");
//!     }
//!     rule.update(&moments, &mut mean, &mut var, None)?;
//! }
//! # Ok::<(), Error>(())
//! ```
//!
//! # Folding
//! For deployment, batch normalization can vanish into the layer before or behind it: see [`Fold`] for
//! the layouts of weights, and for what that costs in digits where means are large.
//!
//! ```
//! use bn_core::*;
//! let (gamma, beta) = ([0.5, 2.0, 1.0, 1.5_f32], [0.0, 0.25, -1.0, 2.0_f32]);
//! let (mean, var) = ([0.5, -1.0, 2.0, 0.0_f32], [1.0, 0.5, 4.0, 0.125_f32]);
//! let fold = Fold::running(Affine::new(&gamma, &beta), &mean, &var, 1e-5)?.flush_subnormals();
//! let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5);
//!
//! // A convolution over 3 positions of a signal: 2 groups of 1 input and 2 outputs, 2 taps, padding 1.
//! fn convolution(x: &[f32; 6], weight: &[f32], bias: &[f32]) -> Vec<f32> {
//!     let at = |channel: usize, p: usize| if (1..4).contains(&p) { x[3 * channel + p - 1] } else { 0.0 };
//!     (0..16)
//!         .map(|i| (i / 4, i % 4))
//!         .map(|(o, p)| bias[o] + weight[2 * o] * at(o / 2, p) + weight[2 * o + 1] * at(o / 2, p + 1))
//!         .collect()
//! }
//! let x = [1.0, -2.0, 0.5, 3.0, 0.25, -1.0];
//! let (mut weight, mut bias) = ([1.0, 0.5, -1.0, 2.0, 0.25, 1.0, -0.5, 3.0], [0.0, 1.0, -1.0, 0.5]);
//! let mut unfolded = convolution(&x, &weight, &bias);
//! let bn = BatchNorm::<f32>::new(Shape::nchw(1, 4, &[4])?, 1e-5)?;
//! let run = &mut [0; 1024];
//! bn.inference_in_place(&mut unfolded, None, Affine::new(&gamma, &beta), &mean, &var, Run::serial(run))?;
//! // 1 input per group × 2 taps.
//! fold.into_preceding(2, &mut weight, &mut bias)?;
//! assert!(near(&convolution(&x, &weight, &bias), &unfolded));
//!
//! // A dense layer of 4 inputs and 2 outputs behind batch normalization.
//! fn dense(x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
//!     let row = |w: &[f32]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
//!     weight.chunks(4).zip(bias).map(|(w, b)| row(w) + b).collect()
//! }
//! let x = [1.0, -2.0, 0.5, 3.0];
//! let (mut weight, mut bias) = ([1.0, 0.5, -1.0, 2.0, 0.25, 1.0, -0.5, 3.0], [0.0; 2]);
//! let mut normal = x;
//! let bn = BatchNorm::<f32>::new(Shape::dense(1, 4)?, 1e-5)?;
//! bn.inference_in_place(&mut normal, None, Affine::new(&gamma, &beta), &mean, &var, Run::serial(run))?;
//! let unfolded = dense(&normal, &weight, &bias);
//! fold.into_following(2, 1, 1, &mut weight, &mut bias)?;
//! assert!(near(&dense(&x, &weight, &bias), &unfolded));
//! # Ok::<(), Error>(())
//! ```
//!
//! # Statistics as arrays
//! A framework keeps a batch's statistics as two arrays of floats between forward and backward. They
//! may go in and out: [`moments_to_mean_var`], [`moments_to_mean_inverse_std`], and back. For a backward
//! pass hand rounded ones over as [`Statistics::Rounded`], which measures what rounding has done to the mean.
//!
//! ```
//! use bn_core::*;
//! let bn = BatchNorm::<f32>::new(Shape::dense(4, 1)?, 1e-5)?;
//! let (x, dy) = ([16_777_213.0_f32, 16_777_214.0, 16_777_215.0, 16_777_216.0], [1.0, 0.0, 2.0, 0.0]);
//! let mut workspace = [0; 1024];
//! let (mut y, mut moments) = ([0.0; 4], [Moments::EMPTY]);
//! bn.forward_training(&x, None, Affine::NONE, &mut y, &mut moments, Run::serial(&mut workspace))?;
//!
//! // What PyTorch saves: the mean, whose half is lost to f32 here, and the inverse deviation.
//! let (mut save_mean, mut save_invstd) = ([0.0_f32], [0.0_f32]);
//! moments_to_mean_inverse_std(&moments, bn.epsilon(), &mut save_mean, &mut save_invstd)?;
//!
//! // Backward has those only.
//! let (mut saved, mut mean, mut var) = ([Moments::EMPTY], [0.0_f32], [0.0_f32]);
//! moments_from_mean_inverse_std(4, &save_mean, &save_invstd, bn.epsilon(), &mut saved)?;
//! moments_to_mean_var(&saved, Variance::Biased, &mut mean, &mut var)?;
//! let mut dx = [[0.0; 4]; 2];
//! let statistics = [Statistics::Batch(&moments), Statistics::Rounded { mean: &mean, var: &var }];
//! for (statistics, dx) in statistics.into_iter().zip(&mut dx) {
//!     let input = BackwardInput { x: &x, y: None, dy: &dy, gamma: None, statistics };
//!     let output = Gradients { dx: Some(dx.into()), ..Default::default() };
//!     bn.backward(input, output, Run::serial(&mut workspace))?;
//! }
//! assert!(mean[0] as f64 != moments[0].mean);
//! assert!(dx[0].iter().zip(&dx[1]).all(|(a, b)| (a - b).abs() < 1e-6));
//! # Ok::<(), Error>(())
//! ```

#[allow(unused_imports, reason = "what the page links to")]
use crate::*;
