//! Activation addition in a file (Wang et al. 2025, eq. 5: `x^l <- x^l + alpha r^l`): the vector joins the write that
//! ends the block before the layer, in its bias where that is exact and nobody else's, else by one `Add` node.
//!
//! The write is ablated first and the vector added to what is left, so that the vector itself keeps its component along
//! the direction; what later blocks write is ablated as ever. Run-time steering ([`crate::lm::projection::steer`])
//! computes the same in the same order.

use serde::{Deserialize, Serialize};

use super::constants::store;
use super::error::BakeError;
use super::hash::sha256;
use super::metadata::own_metadata;
use super::plan::{Part, TensorEdit};
use crate::edit::{Ablation, Addition, Edit, Writes};
use crate::lm::projection::{AdditionSource, Steps, steer, write_type};
use crate::lm::{Layer, Writer};
use crate::onnx::patch::Patch;
use crate::onnx::{DataType, Graph, Model, TensorId, ValueId};

/// Metadata keys, behind the prefix.
const STRENGTH: &str = "strength";
const WRITES: &str = "writes";
const ALPHA: &str = "addition_alpha";
const LAYER: &str = "addition_layer";
const SHA256: &str = "addition_sha256";

/// What the vector of an addition became part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AddedTo {
    /// An existing bias, which was edited.
    Bias,
    /// Nodes that were inserted after the write.
    Nodes,
}

impl std::fmt::Display for AddedTo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bias => "bias",
            Self::Nodes => "nodes",
        })
    }
}

/// Where the vector of an addition went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Added {
    /// What it became part of.
    pub place: AddedTo,
    /// The tensor that was edited, or the value that the node reads.
    pub target: String,
}

/// The writer that a vector joins.
pub(super) struct Joined<'w> {
    pub name: &'w str,
    pub writer: &'w Writer,
    addition: &'w Addition,
    /// Whether the edit adds no other vector.
    sole: bool,
}

/// The writers that end the blocks before the layers of the additions, of those that this file holds.
pub(super) fn joined<'w>(named: &'w [(String, &'w Writer)], edit: &'w Edit) -> Vec<Joined<'w>> {
    let joined = |addition: &'w Addition| {
        let before = Layer(addition.layer.checked_sub(1)?);
        let (name, writer) = named.iter().rev().find(|(_, writer)| writer.layer == Some(before))?;
        Some(Joined { name, writer, addition, sole: edit.additions().len() == 1 })
    };
    edit.additions().iter().filter_map(joined).collect()
}

/// Adds the vector to a bias that is edited in place anyway, added to the whole write as it is, and read by nothing
/// else.
pub(super) fn into_bias(graph: &Graph<'_>, joined: &Joined<'_>, tensors: &mut [TensorEdit]) -> Option<Added> {
    let tensor = plain_bias(graph, joined.writer)?;
    let width = joined.addition.vector.len() as u64;
    let index = tensors.iter().position(|edit| edit.tensor == tensor && edit.part == Part::Vector)?;
    let edit = &tensors[index];
    let alone = edit.same_bytes_as.is_none() && tensors.iter().all(|other| other.same_bytes_as != Some(index));
    if !alone || edit.copy.is_some() || edit.turned.is_some() || edit.shape.iter().product::<u64>() != width {
        return None;
    }
    let edit = &mut tensors[index];
    edit.plus = Some(joined.addition.scaled());
    Some(Added { place: AddedTo::Bias, target: edit.name.clone() })
}

/// The bias that is added last to the only write of a writer, with no factor behind it.
fn plain_bias(graph: &Graph<'_>, writer: &Writer) -> Option<TensorId> {
    let [write] = writer.writes.as_slice() else { return None };
    let constant = |value: ValueId| {
        let tensor = graph.tensor(value)?;
        let ours = writer.biases.iter().any(|bias| bias.tensor == tensor);
        (ours && graph.uses(value).len() == 1).then_some(tensor)
    };
    if let Some(fused) = write.bias {
        return constant(graph.input(fused.node, fused.slot)?);
    }
    let mut value = write.value;
    loop {
        let node = graph.producer(value)?;
        match graph.op(node) {
            "Identity" | "Reshape" | "Cast" => value = graph.input(node, 0)?,
            "Add" => {
                return (0..2).find_map(|slot| constant(graph.input(node, slot)?));
            }
            "Gemm" => {
                let beta = graph.node(node).attr("beta").and_then(|a| a.f).unwrap_or(1.0);
                return constant(graph.input(node, 2)?).filter(|_| beta == 1.0);
            }
            _ => return None,
        }
    }
}

/// An initializer with the vector, in the type of the write.
///
/// # Errors
/// A vector that overflows that type.
pub(super) fn constant(
    graph: &Graph<'_>,
    joined: &Joined<'_>,
    dtype: DataType,
    patch: &mut Patch,
) -> Result<AdditionSource, BakeError> {
    let name = match joined.sole {
        true => graph.fresh_name("lancet.addition.vector"),
        false => graph.fresh_name(&format!("lancet.addition.vector.{}", joined.addition.layer)),
    };
    let dims = vec![joined.addition.vector.len() as i64];
    store(graph, dtype, (&name, &joined.addition.scaled(), dims), patch)?;
    Ok(AdditionSource::Constant(name))
}

/// Adds the vector to the write by a node of its own.
///
/// # Errors
/// A write that is held in no float type.
pub(super) fn node(graph: &Graph<'_>, joined: &Joined<'_>, patch: &mut Patch) -> Result<Added, BakeError> {
    let write = &joined.writer.writes[0];
    let dtype = write_type(graph, write).unwrap_or(DataType::FLOAT);
    let target = graph.name(write.value).to_string();
    if !dtype.is_float() {
        let reason = format!("nothing can be added after a {dtype} value");
        return Err(BakeError::Unsupported { tensor: target, reason });
    }
    let vector = constant(graph, joined, dtype, patch)?;
    let steps = Steps { ablation: None, addition: Some(&vector) };
    steer(graph, patch, write, steps, &format!("{}.addition", joined.name));
    Ok(Added { place: AddedTo::Nodes, target })
}

/// The metadata entries that tell the strength, the writes and the additions. They are written where the strength is below
/// 1, where not all writes are ablated, where there are additions, and where an earlier bake of the model wrote them.
/// `verify` takes them from its own options and compares.
pub(super) fn metadata(model: &Model, edit: &Edit) -> Vec<(String, String)> {
    let mut entries = Vec::new();
    if let Some(ablation) = edit.ablation() {
        if ablation.is_partial() || own_metadata(model, STRENGTH).is_some() {
            entries.push((STRENGTH.to_string(), strengths(ablation)));
        }
        if !ablation.writes().is_all() || own_metadata(model, WRITES).is_some() {
            entries.push((WRITES.to_string(), writes(ablation.writes())));
        }
    }
    let each = |of: &dyn Fn(&Addition) -> String| edit.additions().iter().map(of).collect::<Vec<_>>().join(" ");
    match edit.additions() {
        [] if own_metadata(model, ALPHA).is_some() => entries.push((ALPHA.to_string(), "0".to_string())),
        [] => {}
        all => {
            let vectors: Vec<f64> = all.iter().flat_map(|addition| addition.vector.iter().copied()).collect();
            entries.extend([
                (ALPHA.to_string(), each(&|addition| addition.alpha.to_string())),
                (LAYER.to_string(), each(&|addition| addition.layer.to_string())),
                (SHA256.to_string(), sha256(&vectors)),
            ]);
        }
    }
    entries
}

/// The strengths of an ablation: one number where all are the same.
fn strengths(ablation: &Ablation) -> String {
    let mut all: Vec<String> = ablation.strengths().iter().map(f64::to_string).collect();
    all.dedup();
    match all.as_slice() {
        [only] => only.clone(),
        _ => ablation.strengths().iter().map(f64::to_string).collect::<Vec<_>>().join(" "),
    }
}

/// The writes that are ablated, as `layers 3 4, attn_out mlp_out`; `all` for all of them.
fn writes(writes: &Writes) -> String {
    let layers = writes.layers.as_ref().map(|layers| {
        let names: Vec<String> = layers.iter().map(usize::to_string).collect();
        format!("layers {}", names.join(" "))
    });
    let kinds = writes.kinds.as_ref().map(|kinds| {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        names.join(" ")
    });
    let parts: Vec<String> = layers.into_iter().chain(kinds).collect();
    if parts.is_empty() { "all".into() } else { parts.join(", ") }
}
