//! What the criterion benchmarks and the program `compare` share: shapes, data, references, and this
//! library's operations as things to time.

pub mod check;
pub mod data;
pub mod memory;
pub mod ours;
pub mod scalar;
pub mod shapes;

use data::Data;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Training forward, f32.
    Forward,
    /// dx, dgamma and dbeta of a training step, f32.
    Backward,
    /// With running statistics, f32.
    Inference,
    /// [`Operation::Forward`] with ReLU fused in.
    ForwardRelu,
    /// [`Operation::Backward`] behind a fused ReLU: reads y as well.
    BackwardRelu,
    /// dx alone, of a frozen layer.
    FrozenDx,
    /// [`Operation::Forward`] on bf16 tensors.
    ForwardBf16,
    /// [`Operation::Backward`] on bf16 tensors.
    BackwardBf16,
    /// [`Operation::Inference`] on bf16 tensors.
    InferenceBf16,
    /// Reads one tensor.
    Read,
    /// Reads two tensors.
    ReadTwo,
    /// Reads one, writes one.
    Copy,
    /// Reads two, writes one.
    Triad,
}

impl Operation {
    /// Batch norms; those on bf16 want the feature `half`.
    pub const KERNELS: &[Operation] = &[
        Operation::Forward,
        Operation::Backward,
        Operation::Inference,
        Operation::ForwardRelu,
        Operation::BackwardRelu,
        Operation::FrozenDx,
        #[cfg(feature = "half")]
        Operation::ForwardBf16,
        #[cfg(feature = "half")]
        Operation::BackwardBf16,
        #[cfg(feature = "half")]
        Operation::InferenceBf16,
    ];
    /// Those that are timed of this library alone.
    pub const EXTRAS: &[Operation] = &[
        Operation::ForwardRelu,
        Operation::BackwardRelu,
        Operation::FrozenDx,
        Operation::ForwardBf16,
        Operation::BackwardBf16,
        Operation::InferenceBf16,
    ];
    /// Those that the peers have too.
    pub const COMMON: &[Operation] = &[Operation::Forward, Operation::Backward, Operation::Inference];

    /// As in names of benchmarks and records.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Forward => "forward",
            Operation::Backward => "backward",
            Operation::Inference => "inference",
            Operation::ForwardRelu => "forward-relu",
            Operation::BackwardRelu => "backward-relu",
            Operation::FrozenDx => "frozen-dx",
            Operation::ForwardBf16 => "forward-bf16",
            Operation::BackwardBf16 => "backward-bf16",
            Operation::InferenceBf16 => "inference-bf16",
            Operation::Read => "read",
            Operation::ReadTwo => "read-two",
            Operation::Copy => "copy",
            Operation::Triad => "triad",
        }
    }

    /// Bytes that it must move for tensors of so many elements: each tensor read or written once.
    pub const fn bytes(self, elements: usize) -> usize {
        let (tensors, size) = match self {
            Operation::Read => (1, 4),
            Operation::Forward
            | Operation::Inference
            | Operation::ForwardRelu
            | Operation::FrozenDx
            | Operation::ReadTwo
            | Operation::Copy => (2, 4),
            Operation::Backward | Operation::Triad => (3, 4),
            Operation::BackwardRelu => (4, 4),
            Operation::ForwardBf16 | Operation::InferenceBf16 => (2, 2),
            Operation::BackwardBf16 => (3, 2),
        };
        tensors * size * elements
    }

    /// Whether its tensors are bf16.
    pub const fn is_bf16(self) -> bool {
        matches!(self, Operation::ForwardBf16 | Operation::BackwardBf16 | Operation::InferenceBf16)
    }
    /// Whether it writes gradients.
    pub const fn is_backward(self) -> bool {
        matches!(self, Operation::Backward | Operation::BackwardRelu | Operation::BackwardBf16 | Operation::FrozenDx)
    }
    /// Whether there is a ReLU in it.
    pub const fn is_relu(self) -> bool {
        matches!(self, Operation::ForwardRelu | Operation::BackwardRelu)
    }
}

/// One call.
pub type Call<'a> = Box<dyn FnMut(&mut Data) -> anyhow::Result<()> + 'a>;

/// Something to time.
pub struct Subject<'a> {
    /// Who does it: "bn", "memory", or a peer.
    pub library: String,
    /// Which of its ways.
    pub variant: String,
    /// What it does.
    pub operation: Operation,
    /// Bytes of workspace that the caller brings.
    pub workspace: usize,
    /// Does it once.
    pub call: Call<'a>,
}
