//! A step of a small network: a depthwise convolution of 3 × 3, then batch normalization with ReLU (NHWC).
//!
//! First inference, with the constants that the build has prepared on the host (build.rs), from flash and in place. Then
//! a step of fine-tuning: training forward, running statistics, backward, and gradient descent on gamma, beta and the
//! convolution; after which the device prepares its own constants. The same program in C is
//! `bn-capi/examples/firmware/net.c`, and its results have the same bits.

#![no_std]
#![no_main]

use bn_core::{
    Activation, Affine, BackwardInput, BatchNorm, Error, Gradients, Isa, Moments, Prepared, Run, RunningStats, Shape,
    Statistics,
};
use runner::Line;

include!(concat!(env!("OUT_DIR"), "/net.rs"));

const BATCH: usize = 2;
const SIDE: usize = 8;
const LEN: usize = BATCH * SIDE * SIDE * CHANNELS;

/// All that the program has: no heap.
struct Net {
    x: [f32; LEN],
    z: [f32; LEN],
    y: [f32; LEN],
    /// dy, then the gradient of z in its place.
    dz: [f32; LEN],
    target: [f32; LEN],
    weight: [f32; 9 * CHANNELS],
    parameters: [[f32; CHANNELS]; 4],
    dgamma: [f32; CHANNELS],
    dbeta: [f32; CHANNELS],
    own: [Prepared<f32>; CHANNELS],
    moments: [Moments; CHANNELS],
    batches: u64,
    workspace: [u64; 128],
}

static mut NET: Net = Net {
    x: [0.0; LEN],
    z: [0.0; LEN],
    y: [0.0; LEN],
    dz: [0.0; LEN],
    target: [0.0; LEN],
    weight: [0.0; 9 * CHANNELS],
    parameters: [[0.0; CHANNELS]; 4],
    dgamma: [0.0; CHANNELS],
    dbeta: [0.0; CHANNELS],
    own: [Prepared { mean: 0.0, scale: 0.0, shift: 0.0 }; CHANNELS],
    moments: [Moments::EMPTY; CHANNELS],
    batches: 0,
    workspace: [0; 128],
};

/// Each product of the convolution: of which output, input, and weight.
fn each(mut f: impl FnMut(usize, usize, usize)) {
    for out in 0..LEN {
        let (c, w, h) = (out % CHANNELS, out / CHANNELS % SIDE, out / CHANNELS / SIDE % SIDE);
        for i in 0..3 {
            for j in 0..3 {
                if (1..=SIDE).contains(&(h + i)) && (1..=SIDE).contains(&(w + j)) {
                    f(out, out + (i * SIDE + j) * CHANNELS - (SIDE + 1) * CHANNELS, (i * 3 + j) * CHANNELS + c);
                }
            }
        }
    }
}

impl Net {
    fn convolve(&mut self) {
        self.z.fill(0.0);
        each(|out, from, k| self.z[out] += self.x[from] * self.weight[k]);
    }

    /// Gradient descent on the weights, whose gradient is that of z times x.
    fn descend(&mut self) {
        let mut gradient = [0.0; 9 * CHANNELS];
        each(|out, from, k| gradient[k] += self.dz[out] * self.x[from]);
        let [gamma, beta, ..] = &mut self.parameters;
        let all = [(&mut self.weight[..], &gradient[..]), (gamma, &self.dgamma), (beta, &self.dbeta)];
        for (values, gradient) in all {
            for (v, g) in values.iter_mut().zip(gradient) {
                *v -= g;
            }
        }
    }

    /// The mean squared distance of y from the target, and its gradient.
    fn loss(&mut self) -> f32 {
        let mut sum = 0.0;
        for ((y, t), d) in self.y.iter().zip(&self.target).zip(&mut self.dz) {
            sum += (y - t) * (y - t);
            *d = 2.0 * (y - t) / LEN as f32;
        }
        sum / LEN as f32
    }

    fn run(&mut self, isa: Isa) -> Result<bool, Error> {
        let mut seed = 1;
        self.x.fill_with(|| draw(&mut seed));
        self.target.fill_with(|| 1.0 + draw(&mut seed));
        self.weight.fill_with(|| draw(&mut seed));
        self.parameters = trained();
        let shape = Shape::nhwc(BATCH, CHANNELS, &[SIDE, SIDE])?;
        let mut bn = BatchNorm::<f32>::new(shape, EPSILON)?;
        bn.set_activation(Activation::Relu)?;
        bn.set_isa(isa);

        self.convolve();
        bn.apply_in_place(&mut self.z, None, &TABLE, Run::serial(&mut self.workspace))?;
        print_bits("inference", &self.z);

        self.convolve();
        let [gamma, beta, mean, var] = &mut self.parameters;
        let (affine, moments) = (Affine::new(gamma, beta), &mut self.moments);
        bn.forward_training(&self.z, None, affine, &mut self.y[..], moments, Run::serial(&mut self.workspace))?;
        RunningStats::pytorch(0.1)?.update(moments, mean, var, Some(&mut self.batches))?;
        let before = self.loss();
        let input = BackwardInput {
            x: &self.z,
            y: Some(&self.y),
            dy: &[],
            gamma: Some(&self.parameters[0]),
            statistics: Statistics::Batch(&self.moments),
        };
        let output = Gradients { dgamma: Some(&mut self.dgamma), dbeta: Some(&mut self.dbeta), ..Default::default() };
        bn.backward_in_place(&mut self.dz, input, output, Run::serial(&mut self.workspace))?;
        self.descend();
        let [gamma, beta, mean, var] = &self.parameters;
        for (name, values) in [
            ("gamma", &gamma[..]),
            ("beta", beta),
            ("weight", &self.weight),
            ("running_mean", mean),
            ("running_var", var),
        ] {
            print_bits(name, values);
        }

        bn.prepare(Affine::new(gamma, beta), mean, var, &mut self.own)?;
        self.convolve();
        let [gamma, beta, ..] = &self.parameters;
        let (affine, moments) = (Affine::new(gamma, beta), &mut self.moments);
        bn.forward_training(&self.z, None, affine, &mut self.y[..], moments, Run::serial(&mut self.workspace))?;
        let after = self.loss();
        bn.apply_in_place(&mut self.z, None, &self.own, Run::serial(&mut self.workspace))?;
        print_bits("tuned", &self.z);
        Ok(after < before)
    }
}

fn print(text: &str) {
    let mut line = Line::new();
    line.text(text);
    line.print();
}

/// FNV-1a over the bits.
fn print_bits(name: &str, values: &[f32]) {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
    let mut line = Line::new();
    line.text(name);
    line.text(" ");
    line.hex(hash);
    line.print();
}

#[unsafe(no_mangle)]
extern "Rust" fn program(isa: Isa) -> bool {
    // SAFETY: called once, from the only thread.
    let net = unsafe { &mut *(&raw mut NET) };
    match net.run(isa) {
        Ok(fallen) => {
            print(if fallen { "the loss has fallen" } else { "the loss has NOT fallen" });
            fallen
        }
        Err(_) => {
            print("refused");
            false
        }
    }
}
