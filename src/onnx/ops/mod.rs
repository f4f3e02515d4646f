//! What Lancet knows of each operator, in one table: which outputs have which element type, how the shape of the result
//! follows from the inputs, in which inputs the operator is linear, and what becomes of the elements of its first
//! input.
//!
//! An operator is its domain, its name and its version. One that is not here (a custom operator, a newer one, a call of
//! a local function) has unknown types and shapes. `docs/operators.md` tells how to add one.

mod outputs;
mod rules;
mod weights;

use std::collections::HashMap;
use std::sync::LazyLock;

pub use rules::{Elements, Linear, Rule};
pub use weights::{ActivationRounding, WeightLayout, WeightUse, Weighted};

use super::proto::NodeProto;
use super::tensor::DataType;

/// The domains whose operators Lancet knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Domain {
    /// The ONNX specification's own: `""`, also written `ai.onnx`.
    Standard,
    /// ONNX Runtime's contrib operators: `com.microsoft`.
    Microsoft,
}

impl Domain {
    /// The domain that a file names; `None` for any other than the two.
    pub fn of(domain: Option<&str>) -> Option<Self> {
        match domain.unwrap_or("") {
            "" | "ai.onnx" => Some(Self::Standard),
            "com.microsoft" => Some(Self::Microsoft),
            _ => None,
        }
    }

    /// Whether a node is of the standard domain.
    pub fn is_standard(node: &NodeProto) -> bool {
        Self::of(node.domain.as_deref()) == Some(Self::Standard)
    }
}

/// How the element type of an output is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// That of these inputs, which share one: those of them whose type is known agree, or it is unknown.
    Same(&'static [usize]),
    /// The same for all inputs from this one on.
    All(usize),
    /// Always this one.
    Fixed(DataType),
    /// What an integer attribute says; else by another rule.
    Attribute(&'static str, &'static Type),
    /// That of an input, if it is given; else by another rule.
    Given(usize, &'static Type),
    /// That of the tensor in the attribute `value`, else float32 (`ConstantOfShape`).
    Value,
    /// That of the tensor in an attribute (`Constant`).
    Constant,
    /// What all subgraphs of the node return there, if they agree (`If`).
    Branches,
    /// Nothing is known: sequences, optionals, loops, types that the schema leaves open.
    Unknown,
}

/// One operator.
#[derive(Debug, Clone, Copy)]
pub struct Operator {
    /// Its domain.
    pub domain: Domain,
    /// Its name.
    pub name: &'static str,
    /// First and last version of the operator set for which this holds.
    pub versions: (i64, i64),
    /// The rule of each output's type.
    outputs: &'static [Type],
    /// Whether the last rule holds for all outputs from there on.
    variadic: bool,
    /// How shapes follow.
    pub shape: Rule,
    /// Inputs in each of which the operator is linear while the others are held.
    pub linear: Linear,
    /// What becomes of the elements of input 0.
    pub elements: Elements,
    /// The weight that it reads, where it is an operator that does.
    pub weighted: Option<Weighted>,
    /// Whether it rounds activations to 8 bits.
    pub rounding: ActivationRounding,
}

impl Operator {
    /// How the type of output `slot` is found.
    pub fn output(&self, slot: usize) -> Type {
        let last = self.outputs.last().filter(|_| self.variadic);
        self.outputs.get(slot).or(last).copied().unwrap_or(Type::Unknown)
    }

    /// Whether the operator is linear (or affine) in input `slot` while the other inputs are held.
    pub fn is_linear_in(&self, slot: usize) -> bool {
        match self.linear {
            Linear::No => false,
            Linear::First(count) => slot < count,
            Linear::All => true,
        }
    }
}

/// The table by name; a name of both domains, or one whose rules changed, has several entries.
static TABLE: LazyLock<HashMap<&'static str, Vec<Operator>>> = LazyLock::new(|| {
    let mut table: HashMap<&'static str, Vec<Operator>> = HashMap::new();
    for group in outputs::GROUPS {
        for name in group.names.split_whitespace() {
            let weights = weights::find(group.domain, name);
            table.entry(name).or_default().push(Operator {
                domain: group.domain,
                name,
                versions: group.versions,
                outputs: group.outputs,
                variadic: group.variadic,
                shape: weights.map_or_else(|| rules::shape(group.domain, name), |entry| entry.shape),
                linear: rules::linear(name),
                elements: rules::elements(group.domain, name),
                weighted: weights.map(|entry| entry.weighted),
                rounding: weights::rounding(group.domain, name),
            });
        }
    }
    table
});

/// The operator of this domain, name and version of its operator set; a file that does not say the version means the
/// newest.
pub fn find(domain: Domain, name: &str, version: Option<i64>) -> Option<&'static Operator> {
    let version = version.unwrap_or(i64::MAX);
    let fits = |o: &&Operator| o.domain == domain && (o.versions.0..=o.versions.1).contains(&version);
    TABLE.get(name)?.iter().find(fits)
}

/// Every entry of the table.
pub fn all() -> impl Iterator<Item = &'static Operator> {
    TABLE.values().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(domain, name, version)` and the rule of its outputs.
    #[test]
    fn types_follow_the_schemas() {
        use Domain::{Microsoft, Standard};
        use Type::{All, Attribute, Branches, Fixed, Given, Same, Unknown, Value};
        let bool = Fixed(DataType::BOOL);
        let int64 = Fixed(DataType::INT64);
        for (domain, name, version, slot, wanted) in [
            (Standard, "Cast", 13, 0, Attribute("to", &Unknown)),
            (Standard, "CastLike", 15, 0, Same(&[1])),
            (Standard, "OneHot", 11, 0, Same(&[2])),
            (Standard, "If", 16, 0, Branches),
            (Standard, "If", 16, 7, Branches),
            (Standard, "Loop", 16, 0, Unknown),
            (Standard, "Scan", 16, 1, Unknown),
            (Standard, "Where", 16, 0, Same(&[1, 2])),
            (Standard, "Gather", 13, 0, Same(&[0])),
            (Standard, "GatherND", 13, 0, Same(&[0])),
            (Standard, "GatherElements", 13, 0, Same(&[0])),
            (Standard, "DequantizeLinear", 10, 0, Fixed(DataType::FLOAT)),
            (Standard, "DequantizeLinear", 19, 0, Same(&[1])),
            (Standard, "DequantizeLinear", 23, 0, Attribute("output_dtype", &Same(&[1]))),
            (Standard, "QuantizeLinear", 21, 0, Attribute("output_dtype", &Given(2, &Fixed(DataType::UINT8)))),
            (Standard, "DynamicQuantizeLinear", 11, 0, Fixed(DataType::UINT8)),
            (Standard, "DynamicQuantizeLinear", 11, 1, Fixed(DataType::FLOAT)),
            (Standard, "DynamicQuantizeLinear", 11, 2, Fixed(DataType::UINT8)),
            (Standard, "Less", 13, 0, bool),
            (Standard, "GreaterOrEqual", 16, 0, bool),
            (Standard, "IsNaN", 13, 0, bool),
            (Standard, "Shape", 15, 0, int64),
            (Standard, "Size", 13, 0, int64),
            (Standard, "NonZero", 13, 0, int64),
            (Standard, "ArgMax", 13, 0, int64),
            (Standard, "TopK", 11, 0, Same(&[0])),
            (Standard, "TopK", 11, 1, int64),
            (Standard, "ConstantOfShape", 9, 0, Value),
            (Standard, "Range", 11, 0, Same(&[0, 1, 2])),
            (Standard, "RandomNormal", 1, 0, Attribute("dtype", &Fixed(DataType::FLOAT))),
            (Standard, "RandomNormalLike", 1, 0, Attribute("dtype", &Same(&[0]))),
            (Standard, "EyeLike", 9, 0, Attribute("dtype", &Same(&[0]))),
            (Standard, "Bernoulli", 15, 0, Attribute("dtype", &Same(&[0]))),
            (Standard, "SequenceAt", 11, 0, Unknown),
            (Standard, "SplitToSequence", 11, 0, Unknown),
            (Standard, "Optional", 15, 0, Unknown),
            (Standard, "ConcatFromSequence", 11, 0, Unknown),
            (Standard, "Concat", 13, 0, All(0)),
            (Standard, "Split", 18, 5, Same(&[0])),
            (Standard, "QLinearMatMul", 10, 0, Same(&[7])),
            (Standard, "MatMulInteger", 10, 0, Fixed(DataType::INT32)),
            (Standard, "LayerNormalization", 17, 1, Attribute("stash_type", &Fixed(DataType::FLOAT))),
            (Standard, "SimplifiedLayerNormalization", 21, 0, Same(&[1])),
            (Standard, "RMSNormalization", 23, 0, Same(&[1])),
            (Microsoft, "MatMulNBits", 1, 0, Same(&[0, 2, 5])),
            (Microsoft, "QMoE", 1, 0, Same(&[0, 1, 4, 7, 10, 14])),
            (Microsoft, "MoE", 1, 0, Same(&[0, 1, 2, 3, 4, 5, 6, 7])),
            (Microsoft, "GroupQueryAttention", 1, 1, Same(&[3, 4])),
            (Microsoft, "GatherBlockQuantized", 1, 0, Same(&[2])),
            (Microsoft, "DynamicQuantizeMatMul", 1, 0, Fixed(DataType::FLOAT)),
            (Microsoft, "SkipSimplifiedLayerNormalization", 1, 2, Fixed(DataType::FLOAT)),
            (Microsoft, "QLinearAdd", 1, 0, Same(&[0, 2, 3, 5, 7])),
            (Microsoft, "QGemm", 1, 0, Given(8, &Fixed(DataType::FLOAT))),
        ] {
            let operator = find(domain, name, Some(version)).unwrap_or_else(|| panic!("{name} {version}"));
            assert_eq!(operator.output(slot), wanted, "{name} {version}, output {slot}");
        }
        assert_eq!(find(Standard, "Relu", None).unwrap().output(1), Unknown, "an output that there is not");
    }

    #[test]
    fn an_operator_is_its_domain_name_and_version() {
        for (domain, name, version) in [
            (Domain::Microsoft, "Constant", None),
            (Domain::Microsoft, "MatMul", None),
            (Domain::Standard, "MatMulNBits", None),
            (Domain::Standard, "Mystery", None),
            (Domain::Standard, "RMSNormalization", Some(22)),
            (Domain::Standard, "Upsample", Some(13)),
        ] {
            assert!(find(domain, name, version).is_none(), "{name} {version:?}");
        }
        assert_eq!(Domain::of(Some("ai.onnx")), Some(Domain::Standard));
        assert_eq!(Domain::of(None), Some(Domain::Standard));
        assert_eq!(Domain::of(Some("com.example")), None);
        assert_eq!(Domain::of(Some("ai.onnx.ml")), None);
        assert!(all().count() > 350, "{}", all().count());
    }

    #[test]
    fn every_operator_with_a_weight_has_types_and_no_second_shape() {
        for entry in weights::ENTRIES {
            let found = find(entry.domain, entry.name, None).unwrap_or_else(|| panic!("{} has no types", entry.name));
            assert_eq!((found.shape, found.weighted), (entry.shape, Some(entry.weighted)), "{}", entry.name);
            assert_eq!(
                rules::shape(entry.domain, entry.name),
                Rule::Unknown,
                "{}: its shape is said twice",
                entry.name
            );
        }
    }

    #[test]
    fn linear_inputs() {
        for (domain, name, wanted) in [
            (Domain::Standard, "MatMul", [true, true, false]),
            (Domain::Standard, "Gemm", [true, true, true]),
            (Domain::Standard, "Div", [true, false, false]),
            (Domain::Standard, "Softmax", [false, false, false]),
            (Domain::Standard, "Sum", [true, true, true]),
            (Domain::Microsoft, "MatMulNBits", [true, false, false]),
        ] {
            let operator = find(domain, name, None).unwrap();
            assert_eq!([0, 1, 2].map(|slot| operator.is_linear_in(slot)), wanted, "{name}");
        }
    }
}
