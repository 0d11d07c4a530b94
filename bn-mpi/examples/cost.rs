//! What the exchange costs: measures it, and models it for more ranks than there are here. Prints docs/cost.md.
//!
//! ```text
//! cargo build --release --example cost
//! mpirun -n 2 target/release/examples/cost > docs/cost.md
//! ```

use bn_core::{Affine, BatchNorm, Moments, Op, Run, Shape};
use bn_mpi::{Exchange, Settings, SyncBatchNorm};
use mpi::collective::{SystemOperation, UnsafeUserOperation};
use mpi::datatype::{MutView, UserDatatype, View};
use mpi::ffi::MPI_Datatype;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::time::Instant;

fn main() {
    bn_mpi::abort_on_panic();
    let universe = mpi::initialize().expect("MPI starts once");
    let world = universe.world();
    assert!(world.size() >= 2, "start this on 2 ranks or more");
    let measured = measure_exchanges(&world);
    let trees = trees(&world);
    let machine = machine(&world);
    if world.rank() == 0 {
        println!("{}", HEAD.trim_start());
        println!("## Measured: {} ranks on one machine, by shared memory\n", world.size());
        print!("{measured}");
        println!("\n{trees}\n");
        model(&machine);
    }
}

const HEAD: &str = "
# What synchronization costs

Printed by `examples/cost.rs`, which measures the constants where it runs and simulates the rest. P ranks, C channels.
Times of one run on a shared machine: good for proportions, not for the last digit.
";

const CHANNELS: [usize; 4] = [64, 256, 1024, 2048];

/// The median time of a collective call, in µs, with all ranks starting together.
fn time(world: &SimpleCommunicator, mut call: impl FnMut()) -> f64 {
    const CALLS: usize = 401;
    let mut times: Vec<f64> = (0..CALLS)
        .map(|_| {
            world.barrier();
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    times[CALLS / 2]
}

/// Layers on shards of two rows, where next to nothing but the exchange is done, against plain all-reduces.
fn measure_exchanges(world: &SimpleCommunicator) -> String {
    let mut text = String::from(
        "Median µs of one forward pass's exchange, merging included. *Sums*: a plain all-reduce of Σx and Σx² (no \
         fixed order, and useless where the mean is large). *User operation*: an all-reduce by Chan's formula (no fixed \
         order). *Gather* and *scatter*: this crate, with the check of calls and without; here the two rows' own \
         moments and normalization are in the times, as in the last column without MPI.\n\n\
         | C | sums | user operation | gather | gather, no check | scatter | scatter, no check | without MPI |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for channels in CHANNELS {
        let own = vec![1.0f64; 2 * channels];
        let mut all = own.clone();
        let sums = time(world, || world.all_reduce_into(&own[..], &mut all[..], SystemOperation::sum()));
        let moments = vec![Moments { count: 2, mean: f64::from(world.rank()), m2: 1.0 }; channels];
        let user = time(world, || drop(black_box(user_operation(world, &moments))));
        let shape = Shape::dense(2, channels).expect("a shape");
        let x: Vec<f32> = (0..2 * channels).map(|i| (i % 13) as f32 + world.rank() as f32).collect();
        let mut y = vec![0.0f32; x.len()];
        let mut layer = |exchange, check: bool| {
            let settings = Settings::new(channels).with_exchange(exchange).without_running_stats();
            let settings = if check { settings } else { settings.without_call_check() };
            let mut bn = SyncBatchNorm::<f32>::new(world, settings).expect("the same everywhere");
            time(world, || drop(black_box(bn.forward(shape, &x, None, Affine::NONE, &mut y))))
        };
        let [gather, quick_gather] = [true, false].map(|check| layer(Exchange::Gather, check));
        let [scatter, quick_scatter] = [true, false].map(|check| layer(Exchange::Scatter, check));
        let plan = BatchNorm::<f32>::new(shape, 1e-5).expect("a plan");
        let (mut workspace, mut m) = (vec![0; plan.workspace_best(Op::ForwardTraining, 1)], moments.clone());
        let alone = time(world, || {
            let run = Run::serial(&mut workspace);
            let _ = black_box(plan.forward_training(&x, None, Affine::NONE, &mut y[..], &mut m, run));
        });
        text += &format!(
            "| {channels} | {sums:.1} | {user:.1} | {gather:.1} | {quick_gather:.1} | {scatter:.1} | \
             {quick_scatter:.1} | {alone:.1} |\n"
        );
    }
    text
}

/// An all-reduce of moments by a user operation.
fn user_operation(world: &SimpleCommunicator, own: &[Moments]) -> Vec<Moments> {
    /// # Safety
    /// MPI passes two arrays of so many moments.
    unsafe extern "C" fn merge(from: *mut c_void, to: *mut c_void, len: *mut c_int, _: *mut MPI_Datatype) {
        // SAFETY: by the caller; Moments is plain data of 24 bytes, as the datatype says.
        unsafe {
            let len = *len as usize;
            let from = core::slice::from_raw_parts(from.cast::<Moments>(), len);
            let to = core::slice::from_raw_parts_mut(to.cast::<Moments>(), len);
            for (to, from) in to.iter_mut().zip(from) {
                // The left operand is that of the lower ranks.
                let mut merged = *from;
                merged.merge(to);
                *to = merged;
            }
        }
    }
    // SAFETY: merging is associative but for rounding, and keeps to the signature.
    let operation = unsafe { UnsafeUserOperation::associative(merge) };
    let three = UserDatatype::contiguous(3, &u64::equivalent_datatype());
    let mut all = vec![Moments::EMPTY; own.len()];
    // SAFETY: one element of the datatype is the 24 bytes of one Moments.
    let (send, mut receive) = unsafe {
        let count = own.len() as i32;
        let words: &[u64] = bytemuck::cast_slice(own);
        let receive: &mut [u64] = bytemuck::cast_slice_mut(&mut all);
        (View::with_count_and_datatype(words, count, &three), MutView::with_count_and_datatype(receive, count, &three))
    };
    world.all_reduce_into(&send, &mut receive, &operation);
    all
}

/// Whether the user operation gives the bits that the order of ranks gives.
fn trees(world: &SimpleCommunicator) -> String {
    let moments = |rank: usize| -> Vec<Moments> {
        let of = |c: usize| ((rank * 7919 + c * 104_729) % 1009) as f64;
        (0..2048).map(|c| Moments { count: 50 + rank as u64, mean: of(c) / 3.0, m2: of(c + 1) / 7.0 }).collect()
    };
    let mut expected = moments(0);
    for rank in 1..world.size() as usize {
        bn_core::merge_moments(&mut expected, &moments(rank)).expect("the same length");
    }
    let got = user_operation(world, &moments(world.rank() as usize));
    let other = got.iter().zip(&expected).filter(|(a, b)| a != b).count();
    format!(
        "On {} ranks {other} of 2048 channels have other bits by the user operation than merged in the order of the ranks.",
        world.size()
    )
}

/// What a message and a merge take.
struct Network {
    name: &'static str,
    /// Seconds per message.
    latency: f64,
    /// Seconds per byte.
    per_byte: f64,
}

struct Machine {
    here: Network,
    /// Seconds to merge one channel of one rank.
    merge: f64,
    /// Mean over median of a message's time: what the operating system and other users add.
    noise: f64,
}

fn machine(world: &SimpleCommunicator) -> Machine {
    let (rank, other) = (world.rank(), world.process_at_rank(1 - world.rank().min(1)));
    let mut mean_over_median = 0.0;
    let mut ping = |bytes: usize| {
        const ROUNDS: usize = 400;
        let (out, mut back) = (vec![1u8; bytes], vec![0u8; bytes]);
        let mut times = Vec::new();
        world.barrier();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            match rank {
                0 => {
                    other.send(&out[..]);
                    other.receive_into(&mut back[..]);
                }
                1 => {
                    other.receive_into(&mut back[..]);
                    other.send(&out[..]);
                }
                _ => {}
            }
            times.push(start.elapsed().as_secs_f64() / 2.0);
        }
        times.sort_unstable_by(f64::total_cmp);
        let median = times[ROUNDS / 2];
        // Without the worst hundredth, where a rank has lost its core.
        let kept = &times[..ROUNDS - ROUNDS / 100];
        mean_over_median = kept.iter().sum::<f64>() / kept.len() as f64 / median;
        median
    };
    let (large, small) = (ping(1 << 20), ping(16));
    let moments: Vec<Moments> = (0..4096).map(|i| Moments { count: 100, mean: i as f64, m2: 3.0 }).collect();
    let mut sum = moments.clone();
    let start = Instant::now();
    for _ in 0..500 {
        bn_core::merge_moments(&mut sum, black_box(&moments)).expect("the same length");
    }
    let merge = start.elapsed().as_secs_f64() / (500.0 * 4096.0);
    black_box(sum);
    let here =
        Network { name: "shared memory (measured)", latency: small, per_byte: (large - small) / (1 << 20) as f64 };
    Machine { here, merge, noise: mean_over_median.clamp(1.0, 2.0) }
}

/// A step of a schedule: everybody sends so many bytes to a partner, in a pattern.
struct Step {
    distance: usize,
    bytes: f64,
}

/// Rounds whose messages double: recursive doubling, as MPI libraries gather short vectors.
fn all_gather(ranks: usize, block: f64, network: &Network) -> Vec<Step> {
    let doubling = powers(ranks).map(|d| Step { distance: d, bytes: block * d.min(ranks - d) as f64 }).collect();
    let ring = (1..ranks).map(|_| Step { distance: 1, bytes: block }).collect();
    quicker([doubling, ring], network)
}

/// Bruck's algorithm (half of all blocks in each round), or pairs.
fn all_to_all(ranks: usize, block: f64, network: &Network) -> Vec<Step> {
    let bruck = powers(ranks).map(|d| Step { distance: d, bytes: block * (ranks / 2) as f64 }).collect();
    let pairs = (1..ranks).map(|d| Step { distance: d, bytes: block }).collect();
    quicker([bruck, pairs], network)
}

/// The whole vector in each round, or halving and doubling (Rabenseifner).
fn all_reduce(ranks: usize, bytes: f64, network: &Network) -> Vec<Step> {
    let whole = powers(ranks).map(|d| Step { distance: d, bytes }).collect();
    let halves = powers(ranks).chain(powers(ranks)).enumerate();
    let rounds = powers(ranks).count();
    let halving = halves
        .map(|(i, d)| Step { distance: d, bytes: bytes / f64::powi(2.0, 1 + i.min(2 * rounds - 1 - i) as i32) })
        .collect();
    quicker([whole, halving], network)
}

fn powers(ranks: usize) -> impl Iterator<Item = usize> {
    core::iter::successors(Some(1), |d| Some(d * 2)).take_while(move |&d| d < ranks)
}

fn quicker(ways: [Vec<Step>; 2], network: &Network) -> Vec<Step> {
    let [a, b] = ways;
    if paper(&a, network) <= paper(&b, network) { a } else { b }
}

/// The time on paper.
fn paper(steps: &[Step], network: &Network) -> f64 {
    steps.iter().map(|s| network.latency + s.bytes * network.per_byte).sum()
}

/// The time when the last rank is done, where each message takes a random extra time and nobody goes on
/// before its partner's has come.
struct Simulation {
    clocks: Vec<f64>,
    next: Vec<f64>,
    random: u64,
    noise: f64,
}

impl Simulation {
    fn new(ranks: usize, noise: f64) -> Self {
        Simulation { clocks: vec![0.0; ranks], next: vec![0.0; ranks], random: 1, noise }
    }

    fn run(&mut self, steps: &[Step], network: &Network) {
        let ranks = self.clocks.len();
        for step in steps {
            for rank in 0..ranks {
                self.random =
                    self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let uniform = ((self.random >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
                let extra = -uniform.ln() * (self.noise - 1.0);
                let from = (rank + ranks - step.distance) % ranks;
                let message = (network.latency + step.bytes * network.per_byte) * (1.0 + extra);
                self.next[rank] = self.clocks[rank].max(self.clocks[from]) + message;
            }
            core::mem::swap(&mut self.clocks, &mut self.next);
        }
    }

    fn work(&mut self, seconds: f64) {
        self.clocks.iter_mut().for_each(|clock| *clock += seconds);
    }

    fn end(&self) -> f64 {
        self.clocks.iter().copied().fold(0.0, f64::max)
    }
}

/// What travels.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Sums,
    Gather,
    Scatter,
}

/// The schedules of one pass: collectives, and merges (of ranks × channels) after each.
fn schedules(way: Way, ranks: usize, channels: usize, network: &Network) -> Vec<(Vec<Step>, usize)> {
    let part = channels.div_ceil(ranks);
    let pair = |channels: usize| 16.0 * channels as f64;
    let check = (all_gather(ranks, 16.0, network), 0);
    match way {
        Way::Sums => vec![(all_reduce(ranks, pair(channels) + 8.0, network), 0)],
        Way::Gather => vec![check, (all_gather(ranks, 16.0 + pair(channels), network), ranks * channels)],
        Way::Scatter => vec![
            check,
            (all_to_all(ranks, 16.0 + pair(part), network), ranks * part),
            (all_gather(ranks, pair(part), network), 0),
        ],
    }
}

fn on_paper(way: Way, ranks: usize, channels: usize, network: &Network, merge: f64) -> f64 {
    let passes = schedules(way, ranks, channels, network);
    passes.iter().map(|(steps, merges)| paper(steps, network) + *merges as f64 * merge).sum()
}

fn simulated(way: Way, ranks: usize, channels: usize, network: &Network, machine: &Machine) -> f64 {
    let mut simulation = Simulation::new(ranks, machine.noise);
    for (steps, merges) in schedules(way, ranks, channels, network) {
        simulation.run(&steps, network);
        simulation.work(merges as f64 * machine.merge);
    }
    simulation.end()
}

/// Bytes that a rank receives in a pass.
fn received(way: Way, ranks: usize, channels: usize, network: &Network) -> f64 {
    schedules(way, ranks, channels, network).iter().flat_map(|(steps, _)| steps).map(|step| step.bytes).sum()
}

/// ResNet-50's batch normalizations: channels, and how many layers have them.
const RESNET50: [(usize, usize); 6] = [(64, 7), (128, 8), (256, 16), (512, 11), (1024, 7), (2048, 4)];
/// Operations of a training step: 4.1·10⁹ multiplications and additions forward, twice that backward.
const OPERATIONS_PER_IMAGE: f64 = 3.0 * 2.0 * 4.1e9;
const IMAGES: f64 = 32.0;
/// What a rank is supposed to make of them per second.
const OPERATIONS_PER_SECOND: f64 = 1e12;

fn model(machine: &Machine) {
    let Machine { here, merge, noise } = machine;
    let infiniband = Network { name: "100 Gbit/s InfiniBand (assumed)", latency: 1.5e-6, per_byte: 1.0 / 12e9 };
    let ethernet = Network { name: "10 Gbit/s Ethernet (assumed)", latency: 20e-6, per_byte: 1.0 / 1.2e9 };
    let step = IMAGES * OPERATIONS_PER_IMAGE / OPERATIONS_PER_SECOND;
    println!("## On paper\n");
    println!("With α the latency of a message, β the time of a byte, γ the time to merge a channel of one rank:\n");
    println!("```text");
    println!("check      α·log₂P + 16·P·β");
    println!("gather     check + α·log₂P + 16·P·(C + 1)·β + P·C·γ");
    println!("scatter    check + 2·α·log₂P + (8·log₂P·(C + P) + 16·C)·β + C·γ    (Bruck; α·P, 16·(2C + P)·β in pairs)");
    println!("sums       α·log₂P + 16·C·β·log₂P    (or 2·α·log₂P + 32·C·β)");
    println!("```\n");
    println!(
        "The gather's P·C is what the fixed order costs: a tree would need C·log₂P. A scatter brings it back to C,"
    );
    println!("with the same bits, for one more collective; the 16 bytes of each rank remain.\n");
    println!("| constant | α, µs | 1/β, GB/s |");
    println!("|---|---|---|");
    for network in [here, &infiniband, &ethernet] {
        println!("| {} | {:.2} | {:.1} |", network.name, network.latency * 1e6, 1e-9 / network.per_byte);
    }
    println!(
        "\nγ = {:.1} ns (measured). Messages vary: mean over median {:.2} (measured), simulated as an",
        merge * 1e9,
        noise
    );
    println!("exponential extra time of each message; nobody goes on before its partner's message is there.\n");

    println!("## Simulated: one pass, µs until the last rank is done\n");
    println!("One rank per node, {}. In brackets the time on paper. KB: received by each rank.\n", infiniband.name);
    println!("| P | C | sums | gather | KB | scatter | KB | `Auto` takes |");
    println!("|---|---|---|---|---|---|---|---|");
    let both = |way, ranks, channels, network: &Network| {
        let (real, ideal) =
            (simulated(way, ranks, channels, network, machine), on_paper(way, ranks, channels, network, *merge));
        format!("{:.0} ({:.0})", real * 1e6, ideal * 1e6)
    };
    for ranks in [2, 8, 64, 512, 4096] {
        for channels in [64, 512, 2048] {
            let cell = |way| both(way, ranks, channels, &infiniband);
            let kb = |way| format!("{:.1}", received(way, ranks, channels, &infiniband) / 1e3);
            println!(
                "| {ranks} | {channels} | {} | {} | {} | {} | {} | {:?} |",
                cell(Way::Sums),
                cell(Way::Gather),
                kb(Way::Gather),
                cell(Way::Scatter),
                kb(Way::Scatter),
                Exchange::Auto.choose(ranks, channels),
            );
        }
    }

    println!("\n## Simulated: share of a ResNet-50 step\n");
    println!(
        "53 layers, forward and backward, {IMAGES} images per rank; {:.0} ms of work per step at 10¹² operations per",
        step * 1e3
    );
    println!("second and rank (assumed; on ranks k times as quick the shares are k times as large). `Auto`.\n");
    println!("| P | KB per rank and step | {} | share | {} | share |", infiniband.name, ethernet.name);
    println!("|---|---|---|---|---|---|");
    let auto = |ranks, channels| match Exchange::Auto.choose(ranks, channels) {
        Exchange::Scatter => Way::Scatter,
        _ => Way::Gather,
    };
    let of_network = |ranks: usize, network: &Network| -> f64 {
        let of = |&(channels, layers): &(usize, usize)| {
            2.0 * layers as f64 * simulated(auto(ranks, channels), ranks, channels, network, machine)
        };
        RESNET50.iter().map(of).sum()
    };
    for ranks in core::iter::successors(Some(2), |p| Some(p * 2)).take_while(|&p| p <= 4096) {
        let kb: f64 = RESNET50
            .iter()
            .map(|&(c, layers)| 2.0 * layers as f64 * received(auto(ranks, c), ranks, c, &infiniband) / 1e3)
            .sum();
        let [a, b] = [&infiniband, &ethernet].map(|network| of_network(ranks, network));
        let share = |t: f64| format!("{:.1} ms | {:.2} %", t * 1e3, 100.0 * t / (step + t));
        println!("| {ranks} | {kb:.0} | {} | {} |", share(a), share(b));
    }

    let exchanges: f64 = RESNET50.iter().map(|&(_, layers)| layers as f64).sum();
    let gradient = step / 3.0 / exchanges;
    println!("\n## Where overlap would pay\n");
    println!(
        "Backward, the gradient of the following convolution's weights needs nothing of this exchange. It is a third of"
    );
    println!(
        "the work: {:.1} ms per layer on average at 10¹² operations per second. Begun after the sums and ended after",
        gradient * 1e3
    );
    println!(
        "that gradient, the whole exchange is hidden where it is shorter. Forward, the next layer needs y. Only the"
    );
    println!(
        "exchange of one half of the channels can be hidden, behind the convolution that makes the other half: what is"
    );
    println!(
        "left has all of the latencies and half of the data. The last column is what that wins, before what cutting the"
    );
    println!("convolution in two costs.\n");
    println!("| P | C | network | exchange, µs | hidden backward | of it latency | forward in halves wins |");
    println!("|---|---|---|---|---|---|---|");
    for network in [&infiniband, &ethernet] {
        for (ranks, channels) in [(8, 64), (8, 2048), (64, 2048), (512, 256), (4096, 256), (4096, 2048)] {
            let way = auto(ranks, channels);
            let whole = simulated(way, ranks, channels, network, machine);
            let half = simulated(way, ranks, channels / 2, network, machine);
            let latency: f64 = schedules(way, ranks, channels, network)
                .iter()
                .map(|(steps, _)| steps.len() as f64 * network.latency)
                .sum();
            println!(
                "| {ranks} | {channels} | {} | {:.0} | {:.0} % | {:.0} % | {:.0} µs |",
                network.name,
                whole * 1e6,
                100.0 * (gradient / whole).min(1.0),
                100.0 * (latency / whole).min(1.0),
                (whole - half).max(0.0) * 1e6,
            );
        }
    }
    println!(
        "\nThe library does not overlap. It would pay first backward, where half of the shares above would go: by Ethernet,"
    );
    println!(
        "and wherever ranks are ten or more times as quick as supposed. Forward, halves win microseconds of a layer that"
    );
    println!("takes milliseconds.");
}
