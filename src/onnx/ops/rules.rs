//! What the operators do to shapes and elements: the part of the table that no schema states.

use super::Domain;

/// How rank and last dimension of an output follow from the inputs. What is not said of an output is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Output 0 has the shape of input 0.
    Keep,
    /// Every output has the shape of input 0.
    KeepAll,
    /// Output 0 has the shape of input 1.
    Second,
    /// NumPy broadcasting of all inputs.
    Broadcast,
    /// Outputs 0 and 3 are the broadcast sum of inputs 0 and 1.
    SkipNorm,
    /// NumPy's `matmul` of inputs 0 and 1, with `transA` and `transB`.
    Product,
    /// A product of input 0 with a packed matrix that gives `N` columns.
    PackedProduct,
    /// `Gemm`: two dimensions.
    Gemm,
    /// `DynamicQuantizeLinear`: as input 0, and two scalars.
    DynamicQuantize,
    /// A row for each index.
    Gather,
    /// The same from a table of packed codes.
    GatherBlockQuantized,
    /// A slice for each index tuple.
    GatherNd,
    /// The `k` largest along an axis.
    TopK,
    /// Two dimensions.
    Flatten,
    /// By the equation.
    Einsum,
    /// To the shape in input 1.
    Reshape,
    /// Broadcast to the shape in input 1.
    Expand,
    /// The shape in input 0.
    ShapeInput,
    /// The shape in the attribute `shape`.
    ShapeAttribute,
    /// Axes in another order.
    Transpose,
    /// Joined along an axis.
    Concat,
    /// Cut along an axis.
    Split,
    /// Cut along `axes`.
    Slice,
    /// Axes of one element added.
    Unsqueeze,
    /// Axes of one element dropped.
    Squeeze,
    /// Folded along `axes`.
    Reduce,
    /// Folded along the attribute `axis`.
    ArgReduce,
    /// An axis for the classes.
    OneHot,
    /// Rank as input 0, sizes by repetition.
    Tile,
    /// Rank as input 0.
    Rank,
    /// Output 0 has three dimensions (attention on packed heads).
    Rank3,
    /// One dimension of unknown size.
    Vector,
    /// One dimension, of the rank of input 0 (`Shape`).
    ShapeOf,
    /// No dimensions.
    Scalar,
    /// What all subgraphs return there, if they agree.
    Branches,
    /// By the node's attributes (`Constant`).
    Constant,
    /// Nothing is known.
    Unknown,
}

/// The shape rule of an operator.
pub(super) fn shape(domain: Domain, name: &str) -> Rule {
    match (domain, name) {
        (Domain::Microsoft, name) => microsoft(name),
        (Domain::Standard, name) => standard(name),
    }
}

fn standard(name: &str) -> Rule {
    match name {
        "Abs"
        | "Acos"
        | "Acosh"
        | "Asin"
        | "Asinh"
        | "Atan"
        | "Atanh"
        | "Bernoulli"
        | "BitCast"
        | "BitwiseNot"
        | "Cast"
        | "CastLike"
        | "Ceil"
        | "Celu"
        | "Clip"
        | "Cos"
        | "Cosh"
        | "CumProd"
        | "CumSum"
        | "Elu"
        | "Erf"
        | "Exp"
        | "EyeLike"
        | "Floor"
        | "Gelu"
        | "HardSigmoid"
        | "HardSwish"
        | "Hardmax"
        | "Identity"
        | "IsInf"
        | "IsNaN"
        | "LayerNormalization"
        | "LeakyRelu"
        | "Log"
        | "LogSoftmax"
        | "LpNormalization"
        | "MeanVarianceNormalization"
        | "Mish"
        | "Neg"
        | "Not"
        | "QuantizeLinear"
        | "RMSNormalization"
        | "RandomNormalLike"
        | "RandomUniformLike"
        | "Reciprocal"
        | "Relu"
        | "ReverseSequence"
        | "RotaryEmbedding"
        | "Round"
        | "Scatter"
        | "ScatterElements"
        | "ScatterND"
        | "Selu"
        | "Shrink"
        | "Sigmoid"
        | "Sign"
        | "SimplifiedLayerNormalization"
        | "Sin"
        | "Sinh"
        | "Softmax"
        | "Softplus"
        | "Softsign"
        | "Sqrt"
        | "Swish"
        | "Tan"
        | "Tanh"
        | "TensorScatter"
        | "ThresholdedRelu"
        | "Trilu"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "LRN" => Rule::Keep,
        "Dropout" => Rule::KeepAll,
        "Add" | "And" | "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "Div" | "Equal" | "Greater"
        | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Max" | "Mean" | "Min" | "Mod" | "Mul" | "Or" | "Pow" | "Sub"
        | "Sum" | "Where" | "Xor" => Rule::Broadcast,
        // the slope is broadcast to the input, not the input to the slope
        "PRelu" => Rule::Keep,
        "DynamicQuantizeLinear" => Rule::DynamicQuantize,
        "GatherND" => Rule::GatherNd,
        "GatherElements" => Rule::Second,
        "TopK" => Rule::TopK,
        "Flatten" => Rule::Flatten,
        "Reshape" => Rule::Reshape,
        "Expand" => Rule::Expand,
        "ConstantOfShape" => Rule::ShapeInput,
        "RandomNormal" | "RandomUniform" => Rule::ShapeAttribute,
        "Transpose" => Rule::Transpose,
        "Concat" => Rule::Concat,
        "Split" => Rule::Split,
        "Slice" => Rule::Slice,
        "Unsqueeze" => Rule::Unsqueeze,
        "Squeeze" => Rule::Squeeze,
        "ReduceL1" | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" | "ReduceMean" | "ReduceMin"
        | "ReduceProd" | "ReduceSum" | "ReduceSumSquare" => Rule::Reduce,
        "ArgMax" | "ArgMin" => Rule::ArgReduce,
        "OneHot" => Rule::OneHot,
        "Tile" => Rule::Tile,
        "Pad" | "ConvTranspose" | "AveragePool" | "MaxPool" | "GlobalAveragePool" | "GlobalMaxPool"
        | "DepthToSpace" | "SpaceToDepth" | "BatchNormalization" | "Resize" | "Attention" => Rule::Rank,
        "Range" => Rule::Vector,
        "Shape" => Rule::ShapeOf,
        "Size" => Rule::Scalar,
        "If" => Rule::Branches,
        "Constant" => Rule::Constant,
        _ => Rule::Unknown,
    }
}

fn microsoft(name: &str) -> Rule {
    match name {
        "BiasGelu"
        | "FastGelu"
        | "Gelu"
        | "QuickGelu"
        | "QuantizeLinear"
        | "RotaryEmbedding"
        | "Trilu"
        | "GemmaRotaryEmbedding"
        | "MRotaryEmbedding"
        | "ScaledSiLU"
        | "BiasSoftmax"
        | "QLinearLeakyRelu"
        | "QLinearSigmoid"
        | "QLinearSoftmax"
        | "BiasAdd" => Rule::Keep,
        "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => Rule::SkipNorm,
        "MatMulInteger16" | "FusedMatMulActivation" => Rule::Product,
        "FusedGemm" | "GemmFloat8" => Rule::Gemm,
        "GatherND" => Rule::GatherNd,
        "Attention"
        | "DecoderMaskedMultiHeadAttention"
        | "DecoderMaskedSelfAttention"
        | "GroupQueryAttention"
        | "MultiHeadAttention"
        | "SparseAttention"
        | "EmbedLayerNormalization" => Rule::Rank3,
        "Range" => Rule::Vector,
        _ => Rule::Unknown,
    }
}

/// Inputs in which an operator is linear, or affine, while the others are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linear {
    /// In none, as far as is known.
    No,
    /// In each of the first ones.
    First(usize),
    /// In each.
    All,
}

/// In which inputs an operator is linear.
pub(super) fn linear(name: &str) -> Linear {
    match name {
        // one input, moved or scaled
        "Identity" | "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten" | "Expand" | "Tile" | "Slice"
        | "Split" | "Gather" | "GatherND" | "GatherElements" | "Neg" | "ReduceSum" | "ReduceMean" | "CumSum"
        | "Trilu" | "Pad" | "DepthToSpace" | "SpaceToDepth" | "Div" | "GlobalAveragePool" | "AveragePool"
        | "MatMulNBits" | "MatMulBnb4" | "ReverseSequence" => Linear::First(1),
        "Add" | "Sub" | "Mul" | "MatMul" | "FusedMatMul" | "TransposeMatMul" | "BiasAdd" => Linear::First(2),
        "Gemm" | "Conv" | "ConvTranspose" => Linear::First(3),
        "Sum" | "Mean" | "Concat" | "Einsum" => Linear::All,
        _ => Linear::No,
    }
}

/// What becomes of the elements of input 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elements {
    /// Handed on as they are, each at its place.
    Same,
    /// Handed on at their places in another type, perhaps rounded.
    Converted,
    /// Output elements are input elements, at other places, some of them several times or not at all.
    Moved,
    /// Something else is computed.
    Computed,
}

/// What becomes of the elements of an operator's first input.
pub(super) fn elements(domain: Domain, name: &str) -> Elements {
    match (domain, name) {
        (Domain::Standard, "Identity" | "Dropout" | "MemcpyFromHost" | "MemcpyToHost") => Elements::Same,
        (Domain::Standard, "Cast" | "CastLike") => Elements::Converted,
        (
            Domain::Standard,
            "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Transpose" | "Expand" | "Tile" | "Slice" | "Gather"
            | "GatherND" | "GatherElements",
        ) => Elements::Moved,
        _ => Elements::Computed,
    }
}
