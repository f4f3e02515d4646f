//! Operators that hold weights: what they compute with them, how the weights are stored, and how a shape follows. A new
//! product is one entry here; a new layout of its weight is one more reader in `lm/quantised.rs`.

use super::Domain::{Microsoft, Standard};
use super::{Domain, Rule};
use crate::onnx::proto::NodeProto;

/// An operator that reads a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighted {
    /// What it computes with the weight.
    pub work: WeightUse,
    /// How the weight is stored.
    pub layout: WeightLayout,
    /// The input that holds a bias, where the operator can take one.
    pub bias: Option<usize>,
}

impl Weighted {
    /// Whether it multiplies two tensors as they are: either may be an activation too.
    pub fn is_plain_product(&self) -> bool {
        self.work == WeightUse::Product && self.layout == WeightLayout::Floats && self.bias.is_none()
    }
}

/// What an operator computes with a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightUse {
    /// The product of the rows of input 0 with a matrix: the last axis of the result is new, the others stay.
    Product,
    /// A product by an equation or a kernel: the node tells the axes.
    Contraction,
    /// A row of a table for each index.
    Lookup,
    /// Products with the matrices of the experts that a router picks.
    Experts,
    /// The weight itself, as floating-point numbers.
    Dequantises,
}

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// Floating-point numbers.
    Floats,
    /// Packed codes with a scale for each block of a row: `MatMulNBits`.
    NBits,
    /// 4-bit codes of a float type, with a scale for each run of them: `MatMulBnb4`.
    Bnb4,
    /// A table of packed codes with a scale for each block of a row: `GatherBlockQuantized`.
    BlockTable,
    /// Matrices of experts as packed codes: `QMoE`.
    Experts,
    /// A matrix of 8 bits whose scale is multiplied in by a later node: `MatMulInteger`.
    Integer,
    /// A matrix of 8 bits with scales and zero points in these inputs.
    ScaledInteger {
        /// The input with the scales.
        scales: usize,
        /// The input with the zero points.
        zeros: usize,
    },
    /// Codes with scales and zero points in the next two inputs: `DequantizeLinear`.
    Linear,
    /// The activations, the weight and the result are all integers.
    AllIntegers,
}

/// Whether an operator rounds activations to 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationRounding {
    /// It does not.
    No,
    /// By one scale that it computes from all of them: what one row becomes depends on the others.
    Dynamic,
    /// By scales that it computes from parts of each row.
    DynamicRows,
    /// The same, where its attribute `accuracy_level` is 4.
    AtLevel4,
    /// By a scale that the file holds.
    Stored,
}

impl WeightLayout {
    /// What a weight is held in, in words that name the operator: `4 bits (MatMulNBits)`. `None` for floating-point
    /// numbers, and where the element type of the codes tells it.
    pub fn words(self, node: &NodeProto) -> Option<String> {
        let bits = |name: &str, default| format!("{} bits", node.attr_i(name, default));
        let held = match self {
            Self::Floats | Self::Linear => return None,
            Self::NBits | Self::BlockTable => bits("bits", 4),
            Self::Experts => bits("expert_weight_bits", 4),
            Self::Bnb4 => if node.attr_i("quant_type", 1) == 1 { "nf4" } else { "fp4" }.to_owned(),
            Self::Integer | Self::ScaledInteger { .. } | Self::AllIntegers => "8 bits".to_owned(),
        };
        Some(format!("{held} ({})", node.op()))
    }

    /// Whether one node reads codes and scales and returns floating-point numbers.
    pub fn is_of_one_node(self) -> bool {
        match self {
            Self::NBits | Self::Bnb4 | Self::BlockTable | Self::Experts | Self::ScaledInteger { .. } => true,
            Self::Floats | Self::Integer | Self::Linear | Self::AllIntegers => false,
        }
    }

    /// Whether a quantiser may have left one of the 8 bits unused, as the 8-bit products of some processors saturate:
    /// edited codes then stay within the range that the file uses.
    pub fn keeps_range(self) -> bool {
        match self {
            Self::Integer | Self::ScaledInteger { .. } | Self::Linear | Self::AllIntegers | Self::Bnb4 => true,
            Self::Floats | Self::NBits | Self::BlockTable | Self::Experts => false,
        }
    }
}

/// One operator of the table.
pub(super) struct Entry {
    pub domain: Domain,
    pub name: &'static str,
    pub shape: Rule,
    pub weighted: Weighted,
}

const fn entry(domain: Domain, name: &'static str, shape: Rule, work: WeightUse, layout: WeightLayout) -> Entry {
    Entry { domain, name, shape, weighted: Weighted { work, layout, bias: None } }
}

impl Entry {
    const fn with_bias(mut self, slot: usize) -> Self {
        self.weighted.bias = Some(slot);
        self
    }
}

use WeightLayout::{AllIntegers, BlockTable, Bnb4, Floats, Integer, Linear, NBits, ScaledInteger};
use WeightUse::{Contraction, Dequantises, Lookup, Product};

/// Every operator that reads a weight.
#[rustfmt::skip]
pub(super) const ENTRIES: &[Entry] = &[
    entry(Standard, "MatMul", Rule::Product, Product, Floats),
    entry(Microsoft, "FusedMatMul", Rule::Product, Product, Floats),
    entry(Microsoft, "TransposeMatMul", Rule::Product, Product, Floats),
    entry(Standard, "Gemm", Rule::Gemm, Product, Floats).with_bias(2),
    entry(Standard, "Einsum", Rule::Einsum, Contraction, Floats),
    entry(Standard, "Conv", Rule::Rank, Contraction, Floats).with_bias(2),
    entry(Standard, "Gather", Rule::Gather, Lookup, Floats),
    entry(Microsoft, "MoE", Rule::Keep, WeightUse::Experts, Floats),
    entry(Microsoft, "MatMulNBits", Rule::PackedProduct, Product, NBits).with_bias(5),
    entry(Microsoft, "MatMulBnb4", Rule::PackedProduct, Product, Bnb4),
    entry(Standard, "MatMulInteger", Rule::Product, Product, Integer),
    entry(Microsoft, "DynamicQuantizeMatMul", Rule::Product, Product, ScaledInteger { scales: 2, zeros: 3 }).with_bias(4),
    entry(Microsoft, "MatMulIntegerToFloat", Rule::Product, Product, ScaledInteger { scales: 3, zeros: 5 }).with_bias(6),
    entry(Microsoft, "GatherBlockQuantized", Rule::GatherBlockQuantized, Lookup, BlockTable),
    entry(Microsoft, "QMoE", Rule::Keep, WeightUse::Experts, WeightLayout::Experts).with_bias(7),
    entry(Standard, "DequantizeLinear", Rule::Keep, Dequantises, Linear),
    entry(Microsoft, "DequantizeLinear", Rule::Keep, Dequantises, Linear),
    entry(Standard, "QLinearMatMul", Rule::Unknown, Contraction, AllIntegers),
    entry(Microsoft, "QGemm", Rule::Unknown, Contraction, AllIntegers),
    entry(Microsoft, "QAttention", Rule::Rank3, Contraction, AllIntegers),
];

/// What is in the table of an operator that reads a weight.
pub(super) fn find(domain: Domain, name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.domain == domain && entry.name == name)
}

/// Whether an operator rounds activations to 8 bits.
pub(super) fn rounding(domain: Domain, name: &str) -> ActivationRounding {
    match (domain, name) {
        (_, "QuantizeLinear" | "QGemm" | "QAttention") => ActivationRounding::Stored,
        (_, name) if name.starts_with("QLinear") => ActivationRounding::Stored,
        (Domain::Standard, "DynamicQuantizeLinear") => ActivationRounding::Dynamic,
        (Domain::Microsoft, "DynamicQuantizeMatMul" | "MatMulIntegerToFloat") => ActivationRounding::Dynamic,
        (Domain::Microsoft, "MatMulNBits") => ActivationRounding::AtLevel4,
        _ => ActivationRounding::No,
    }
}
