//! What a walk from a contribution finds: the tensors to edit, and where they enter the computation.

use crate::onnx::{Graph, Model, Quantised, TensorId, Use};

/// A tensor to edit, and the axis along which `d_model` lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EditTarget {
    /// The tensor.
    pub tensor: TensorId,
    /// Its axis of length `d_model`.
    pub axis: usize,
    /// How its codes are to be read, if it is quantised; the axis is then one of [`Quantised::shape`].
    pub quantised: Option<Quantised>,
}

impl EditTarget {
    /// Dimensions of the weight: the tensor's own, or those of the matrix that its codes stand for.
    pub fn shape(&self, model: &Model) -> Vec<u64> {
        self.quantised.map_or_else(|| model.tensor(self.tensor).shape.clone(), |q| q.shape())
    }

    /// Length of its `d_model` axis.
    pub fn width(&self, model: &Model) -> u64 {
        self.shape(model)[self.axis]
    }
}

/// The way from a contribution to its weights.
#[derive(Debug, Clone, Default)]
pub struct WeightPath {
    /// The weights: one, or one for each expert.
    pub weights: Vec<EditTarget>,
    /// Every bias on the way.
    pub biases: Vec<EditTarget>,
    /// Whether rows are looked up by token or position, not multiplied.
    pub lookup: bool,
    /// The places where the chains of constants behind weights and biases enter the computation.
    pub entries: Vec<Use>,
    /// The same, tensor by tensor.
    pub parts: Vec<Part>,
}

/// What a norm does to the direction, from the write back to the weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// A scale a channel, `[d_model]`: `r . (g * x) = (g * r) . x`.
    Scale(Vec<f64>),
    /// The mean over the channels is taken off: `r . (x - mean x) = (r - mean r) . x`.
    Centre,
}

/// One tensor of a path.
#[derive(Debug, Clone)]
pub struct Part {
    /// The tensor, and its axis of length `d_model`.
    pub target: EditTarget,
    /// Whether it is a bias.
    pub bias: bool,
    /// Where it enters the computation.
    pub entry: Use,
    /// What norms on the way do to a direction.
    pub turns: Vec<Turn>,
}

impl WeightPath {
    /// `d_model` as the weights have it.
    pub fn width(&self, graph: &Graph<'_>) -> Option<usize> {
        usize::try_from(self.weights.first()?.width(graph.model)).ok()
    }
}
