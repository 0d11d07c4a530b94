//! The backend extension, and its gradients.

use crate::flex::{self, Kept};
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Flex, backend_extension};

/// `batch_norm` and `batch_norm_train` of burn's `ModuleOps`, by their signatures, on Flex and on automatic
/// differentiation over it.
///
/// They are an extension since burn calls its own: an application cannot replace an operation of a backend.
/// Arguments are not checked; [`training`](crate::training) and [`inference`](crate::inference) do that.
#[backend_extension(Flex, Autodiff)]
pub trait BatchNormOps: Backend {
    /// y = γ·(x − mean)/√(variance + ε) + β. Mean and variance are constants to the gradients.
    fn bn_inference(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self>;

    /// The same with the statistics of the batch, the mean and the biased variance, which are returned too and have no
    /// gradients.
    fn bn_train(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl BatchNormOps for Flex {
    fn bn_inference(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        epsilon: f64,
    ) -> FlexTensor {
        flex::batch_norm(x, gamma, beta, mean, variance, epsilon)
    }

    fn bn_train(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        epsilon: f64,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [y, mean, variance] = flex::batch_norm_train(x, gamma, beta, epsilon);
        (y, mean, variance)
    }
}

/// The backward step of both operations.
#[derive(Debug)]
struct BatchNormStep;

/// x and gamma are checkpoints: burn keeps them, or makes them again.
#[derive(Clone, Debug)]
struct State {
    x: NodeId,
    gamma: NodeId,
    kept: Kept,
    epsilon: f64,
}

impl Backward<Flex, 3> for BatchNormStep {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let State { x, gamma, kept, epsilon } = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let x = checkpointer.retrieve_node_output::<FlexTensor>(x);
        let gamma = checkpointer.retrieve_node_output::<FlexTensor>(gamma);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = flex::backward(x, gamma, kept, epsilon, dy, wanted);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

/// Applies a forward pass that returns y and the statistics that it was by.
fn record<C: CheckpointStrategy>(
    [x, gamma, beta]: [FloatTensor<Autodiff<Flex, C>>; 3],
    epsilon: f64,
    forward: impl FnOnce([FlexTensor; 3]) -> (FlexTensor, Kept),
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = [x.node(), gamma.node(), beta.node()];
    match BatchNormStep.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let (at_x, at_gamma) = (prep.checkpoint(&x), prep.checkpoint(&gamma));
            let (y, kept) = forward([x, gamma, beta].map(|t| t.into_primitive()));
            prep.finish(State { x: at_x, gamma: at_gamma, kept, epsilon }, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward([x, gamma, beta].map(|t| t.into_primitive())).0),
    }
}

impl<C: CheckpointStrategy> BatchNormOps for Autodiff<Flex, C> {
    fn bn_inference(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let (mean, variance) = (mean.into_primitive(), variance.into_primitive());
        record::<C>([x, gamma, beta], epsilon, |[x, gamma, beta]| {
            let y = flex::batch_norm(x, gamma, beta, mean.clone(), variance.clone(), epsilon);
            (y, Kept::Running { mean, variance })
        })
    }

    fn bn_train(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let mut statistics = None;
        let y = record::<C>([x, gamma, beta], epsilon, |[x, gamma, beta]| {
            let [y, mean, variance] = flex::batch_norm_train(x, gamma, beta, epsilon);
            statistics = Some((mean.clone(), variance.clone()));
            (y, Kept::Batch { mean, variance })
        });
        let (mean, variance) = statistics.expect("a forward pass has been made");
        (y, Self::from_inner(mean), Self::from_inner(variance))
    }
}
