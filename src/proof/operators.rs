//! What the search for reads of the stream asks about an operator.
//!
//! The list here resembles what `lm` traces by, and stays apart on purpose: an operator that one of them has wrong must
//! not be wrong in the other by the same line. An operator that is not in the list is what the operator table says.

use crate::onnx::ops::WeightUse;
use crate::onnx::{Graph, NodeId, ValueId};

/// What an operator does, as far as the search needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A product with a weight matrix or between activations, a convolution, or a mixture of experts.
    Product,
    /// A product whose third input is added to it.
    ProductAndSum,
    /// Attention, or another operator that mixes positions.
    Mixing,
    /// A sum or difference of values, or a choice between values.
    Sum,
    /// Hands its first input on: the same numbers in another type, shape or order.
    Pass,
    /// A product or quotient of two values, number by number.
    Scale,
    /// A function of each number, or a reduction.
    Function,
    /// A normalisation in one node.
    Norm,
    /// A sum of two values and the normalisation of that sum in one node.
    SumAndNorm,
    /// Reads rows of a table.
    Lookup,
    /// Makes numbers from sizes, or from nothing.
    Source,
    /// Anything else.
    Unknown,
}

/// Output of a [`Kind::SumAndNorm`] node that holds the sum.
pub(super) const SUM_OUTPUT: usize = 3;

pub(super) fn kind(graph: &Graph<'_>, node: NodeId) -> Kind {
    match graph.op(node) {
        "MatMul"
        | "FusedMatMul"
        | "MatMulNBits"
        | "MatMulBnb4"
        | "MatMulInteger"
        | "DynamicQuantizeMatMul"
        | "MatMulIntegerToFloat"
        | "MatMulFpQ4"
        | "QLinearMatMul"
        | "Einsum"
        | "Conv"
        | "ConvInteger"
        | "ConvTranspose"
        | "QLinearConv"
        | "MoE"
        | "QMoE" => Kind::Product,
        "Gemm" | "FusedGemm" | "QGemm" | "FusedConv" => Kind::ProductAndSum,
        "Attention"
        | "QAttention"
        | "MultiHeadAttention"
        | "GroupQueryAttention"
        | "DecoderMaskedMultiHeadAttention"
        | "DecoderMaskedSelfAttention"
        | "PackedMultiHeadAttention"
        | "PagedAttention"
        | "SparseAttention"
        | "LinearAttention"
        | "CausalConvWithState"
        | "RotaryEmbedding"
        | "Loop"
        | "Scan"
        | "GRU"
        | "LSTM"
        | "RNN" => Kind::Mixing,
        "Add" | "Sub" | "Sum" | "Mean" | "Where" | "Concat" | "ScatterND" | "ScatterElements" | "Max" | "Min"
        | "QLinearAdd" => Kind::Sum,
        "Identity"
        | "Cast"
        | "CastLike"
        | "Reshape"
        | "Squeeze"
        | "Unsqueeze"
        | "Flatten"
        | "Transpose"
        | "Slice"
        | "Split"
        | "Expand"
        | "Dropout"
        | "QuantizeLinear"
        | "DequantizeLinear"
        | "DynamicQuantizeLinear"
        | "Pad"
        | "Tile"
        | "GatherND"
        | "GatherElements"
        | "Trilu"
        | "Clip"
        | "DepthToSpace"
        | "SpaceToDepth" => Kind::Pass,
        "Mul" | "Div" => Kind::Scale,
        "Pow" | "Sqrt" | "Reciprocal" | "Exp" | "Log" | "Erf" | "Tanh" | "Sigmoid" | "Relu" | "LeakyRelu" | "Elu"
        | "Selu" | "Celu" | "Gelu" | "FastGelu" | "BiasGelu" | "QuickGelu" | "Swish" | "Silu" | "HardSwish"
        | "HardSigmoid" | "Mish" | "Softplus" | "Softsign" | "ThresholdedRelu" | "PRelu" | "Softmax" | "LogSoftmax"
        | "Abs" | "Neg" | "Sin" | "Cos" | "Floor" | "Ceil" | "Round" | "Sign" | "Mod" | "CumSum" | "TopK"
        | "ArgMax" | "ArgMin" | "ReduceMean" | "ReduceSum" | "ReduceL1" | "ReduceL2" | "ReduceSumSquare"
        | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceLogSumExp" | "Equal" | "Less" | "LessOrEqual"
        | "Greater" | "GreaterOrEqual" | "And" | "Or" | "Not" | "Xor" | "IsNaN" | "IsInf" | "NonZero" | "OneHot" => {
            Kind::Function
        }
        "LayerNormalization"
        | "SimplifiedLayerNormalization"
        | "RMSNormalization"
        | "LpNormalization"
        | "MeanVarianceNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "GroupNorm" => Kind::Norm,
        "SkipSimplifiedLayerNormalization" | "SkipLayerNormalization" => Kind::SumAndNorm,
        "Gather" | "GatherBlockQuantized" => match graph.input(node, 0) {
            Some(table) if graph.is_dynamic(table) => Kind::Pass,
            _ => Kind::Lookup,
        },
        "Shape" | "Size" | "Range" | "ConstantOfShape" | "EyeLike" => Kind::Source,
        _ => match graph.weighted(node).map(|weighted| weighted.work) {
            Some(WeightUse::Product | WeightUse::Contraction | WeightUse::Experts) => Kind::Product,
            Some(WeightUse::Lookup) => Kind::Lookup,
            Some(WeightUse::Dequantises) => Kind::Pass,
            None => Kind::Unknown,
        },
    }
}

/// The inputs whose numbers the node's first output is made of, as far as they depend on what is fed; sizes, indices,
/// masks and scales that an operator takes beside them are left out.
pub(super) fn data(graph: &Graph<'_>, node: NodeId, kind: Kind) -> Vec<(usize, ValueId)> {
    let count = graph.node(node).input.len();
    let slots: Vec<usize> = match (kind, graph.op(node)) {
        (Kind::Pass | Kind::Norm, _) => vec![0],
        (Kind::SumAndNorm, _) => vec![0, 1],
        (Kind::Sum, "Where") => vec![1, 2],
        (Kind::Sum, "ScatterND" | "ScatterElements") => vec![0, 2],
        (Kind::Lookup | Kind::Source, _) => Vec::new(),
        _ => (0..count).collect(),
    };
    slots
        .into_iter()
        .filter_map(|slot| Some((slot, graph.input(node, slot)?)))
        .filter(|(_, value)| graph.is_dynamic(*value))
        .collect()
}

/// The values whose sum the node's first output is; fewer than two where it is no sum of activations.
pub(super) fn terms(graph: &Graph<'_>, node: NodeId, kind: Kind) -> Vec<ValueId> {
    let sum = matches!(graph.op(node), "Add" | "Sum" | "QLinearAdd") || kind == Kind::SumAndNorm;
    if !sum {
        return Vec::new();
    }
    data(graph, node, kind).into_iter().map(|(_, value)| value).collect()
}

/// The value that is added to a product in the same node, where it is an activation.
pub(super) fn added(graph: &Graph<'_>, node: NodeId, kind: Kind) -> Option<ValueId> {
    let slot = match (kind, graph.op(node)) {
        (Kind::ProductAndSum, "FusedConv") => 3,
        (Kind::ProductAndSum, _) => 2,
        _ => return None,
    };
    graph.input(node, slot).filter(|value| graph.is_dynamic(*value))
}
