//! Writers: from a contribution back to the tensors that make it.
//!
//! To add a pattern, add an arm to [`trace_weight`]: it walks from the contribution towards the weight
//! through operators under which projecting the weight equals projecting the write.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::residual::{Contribution, ResidualStream, Role, is_transparent};
use super::{Layer, Refusal};
use crate::onnx::{DataType, Graph, NodeId, Storage, TensorId, Use, ValueId};

/// What a writer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WriterKind {
    /// Token embedding.
    Embed,
    /// A second embedding: learned positions, token types.
    PosEmbed,
    /// Output projection of attention.
    AttnOut,
    /// Output projection of an MLP.
    MlpOut,
}

/// How a writer's write is made orthogonal to the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Treatment {
    /// The weight (and bias) tensors are edited in place: `W' = W - r r^T W`.
    Weights,
    /// Weights alone cannot be exact: the projection is inserted after the write as standard operators.
    Nodes,
}

/// A tensor to edit, and the axis along which `d_model` lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EditTarget {
    /// The tensor.
    pub tensor: TensorId,
    /// Its axis of length `d_model`.
    pub axis: usize,
}

/// One writer to the residual stream.
#[derive(Debug, Clone)]
pub struct Writer {
    /// What it is.
    pub kind: WriterKind,
    /// Its block; `None` for embeddings.
    pub layer: Option<Layer>,
    /// Index into [`ResidualStream::contributions`].
    pub contribution: usize,
    /// The weight, where it was found.
    pub weight: Option<EditTarget>,
    /// Biases that are part of the write.
    pub biases: Vec<EditTarget>,
    /// How the write is made orthogonal.
    pub treatment: Treatment,
    /// Why not by weights; `None` where it is.
    pub reason: Option<String>,
}

/// The way from a contribution to its weight.
#[derive(Debug, Clone)]
pub struct WeightPath {
    /// The weight.
    pub weight: EditTarget,
    /// Every bias on the way.
    pub biases: Vec<EditTarget>,
    /// Whether the weight is looked up by token or position, not multiplied.
    pub lookup: bool,
    /// The places where the chains of constants behind weight and biases enter the computation.
    pub entries: Vec<Use>,
}

impl WeightPath {
    /// `d_model` as the weight has it.
    pub fn width(&self, graph: &Graph<'_>) -> usize {
        let tensor = graph.model.tensor(self.weight.tensor);
        usize::try_from(tensor.shape[self.weight.axis]).unwrap_or(usize::MAX)
    }
}

/// Walks from a contribution to the weight that makes it. `width` is `d_model` where it is known.
///
/// # Errors
/// The node behind which the weight cannot be projected exactly, and why.
pub fn trace_weight(graph: &Graph<'_>, value: ValueId, width: Option<usize>) -> Result<WeightPath, Refusal> {
    let mut biases = Vec::new();
    let mut entries = Vec::new();
    let mut value = value;
    loop {
        let Some(node) = graph.producer(value) else {
            return Err(stop(graph, None, value, "the write comes straight from a graph input"));
        };
        let proto = graph.node(node);
        let op = graph.op(node);
        let input = |slot: usize| graph.input(node, slot);
        let fixed = |slot: usize| input(slot).filter(|v| !graph.is_dynamic(*v));
        let moving = |slot: usize| input(slot).filter(|v| graph.is_dynamic(*v));
        match op {
            _ if is_transparent(op) => value = input(0).ok_or_else(|| stop(graph, Some(node), value, "no input"))?,
            "Reshape" => {
                if !keeps_last_dimension(graph, input(1), width) {
                    return Err(stop(graph, Some(node), value, "a reshape may move the last dimension"));
                }
                value = input(0).expect("a Reshape has data");
            }
            "Mul" | "Div" => {
                let (other, constant) = match (moving(0), fixed(1), moving(1), fixed(0)) {
                    (Some(x), Some(c), _, _) => (x, c),
                    (_, _, Some(x), Some(c)) if op == "Mul" => (x, c),
                    _ => return Err(stop(graph, Some(node), value, "the write is scaled by another activation")),
                };
                if !is_scalar(graph, constant) {
                    return Err(stop(graph, Some(node), value, "the write is scaled per channel"));
                }
                value = other;
            }
            "Add" => {
                let (other, constant, slot) = match (moving(0), fixed(1), moving(1), fixed(0)) {
                    (Some(x), Some(c), _, _) => (x, c, 1),
                    (_, _, Some(x), Some(c)) => (x, c, 0),
                    _ => return Err(stop(graph, Some(node), value, "the write is a sum of several activations")),
                };
                biases.push(bias(graph, constant, node, width)?);
                entries.push(Use { node, slot });
                value = other;
            }
            "MatMul" | "FusedMatMul" => {
                if moving(0).is_none() || proto.attr_i("transA", 0) != 0 || proto.attr_i("transBatchB", 0) != 0 {
                    return Err(stop(graph, Some(node), value, "the weight is not the right operand of this product"));
                }
                let Some(weight) = fixed(1) else {
                    return Err(stop(graph, Some(node), value, "both operands of the product are activations"));
                };
                let transposed = proto.attr_i("transB", 0) != 0;
                let weight = matrix(graph, weight, usize::from(!transposed), node, width)?;
                entries.push(Use { node, slot: 1 });
                return Ok(WeightPath { weight, biases, lookup: false, entries });
            }
            "Gemm" => {
                if moving(0).is_none() || proto.attr_i("transA", 0) != 0 {
                    return Err(stop(graph, Some(node), value, "the weight is not operand B of this Gemm"));
                }
                let Some(weight) = fixed(1) else {
                    return Err(stop(graph, Some(node), value, "both operands of the product are activations"));
                };
                if let Some(c) = input(2) {
                    biases.push(bias(graph, c, node, width)?);
                    entries.push(Use { node, slot: 2 });
                }
                let transposed = proto.attr_i("transB", 0) != 0;
                let weight = matrix(graph, weight, usize::from(!transposed), node, width)?;
                entries.push(Use { node, slot: 1 });
                return Ok(WeightPath { weight, biases, lookup: false, entries });
            }
            "Gather" => {
                let Some(table) = fixed(0) else {
                    return Err(stop(graph, Some(node), value, "positions are picked from an activation"));
                };
                let weight = matrix(graph, table, 1, node, width)?;
                let rank = graph.model.tensor(weight.tensor).shape.len() as i64;
                if ![0, -rank].contains(&proto.attr_i("axis", 0)) {
                    return Err(stop(graph, Some(node), value, "the lookup is not along the rows"));
                }
                entries.push(Use { node, slot: 0 });
                return Ok(WeightPath { weight, biases, lookup: true, entries });
            }
            "LayerNormalization" | "SimplifiedLayerNormalization" | "RMSNormalization" => {
                return Err(stop(graph, Some(node), value, "the write is normalised before it is added (post-norm)"));
            }
            "MatMulNBits"
            | "MatMulBnb4"
            | "MatMulInteger"
            | "DynamicQuantizeMatMul"
            | "GatherBlockQuantized"
            | "QMoE"
            | "MatMulIntegerToFloat"
            | "DequantizeLinear" => {
                return Err(stop(graph, Some(node), value, "the weight is quantised"));
            }
            _ => return Err(stop(graph, Some(node), value, format!("the write passes `{}`", graph.op_name(node)))),
        }
    }
}

fn stop(graph: &Graph<'_>, node: Option<NodeId>, value: ValueId, reason: impl Into<String>) -> Refusal {
    Refusal {
        node: node.map_or_else(|| "(graph)".into(), |n| graph.node(n).label().to_string()),
        op: node.map_or_else(String::new, |n| graph.op_name(n)),
        tensor: graph.name(value).into(),
        reason: reason.into(),
        hint: "the projection can be inserted after the write instead".into(),
    }
}

/// Whether a reshape to this shape leaves the last dimension as it is.
fn keeps_last_dimension(graph: &Graph<'_>, shape: Option<ValueId>, width: Option<usize>) -> bool {
    let Some(shape) = shape else { return false };
    let last = match graph.const_ints(shape) {
        Some(dims) => dims.last().copied(),
        None => graph
            .producer(shape)
            .filter(|&n| graph.op(n) == "Concat")
            .and_then(|n| graph.input(n, graph.node(n).input.len() - 1))
            .and_then(|part| graph.const_ints(part))
            .and_then(|dims| dims.last().copied()),
    };
    // Without a known width a literal last dimension is taken at its word: the weight's own is compared later.
    last.is_some_and(|d| d > 1 && width.is_none_or(|w| w as i64 == d))
}

fn is_scalar(graph: &Graph<'_>, value: ValueId) -> bool {
    let mut value = value;
    while let Some(node) = graph.producer(value) {
        if !is_transparent(graph.op(node)) {
            break;
        }
        value = graph.input(node, 0).expect("a Cast has an input");
    }
    graph.tensor_ref(value).is_some_and(|t| t.elements() == 1)
        || graph.producer(value).is_some_and(|n| graph.node(n).attr("value_float").is_some())
}

/// A constant matrix behind `Cast`, `Identity`, `Transpose`, and which of its stored axes is `axis` of
/// the matrix in use.
fn matrix(
    graph: &Graph<'_>,
    value: ValueId,
    axis: usize,
    user: NodeId,
    width: Option<usize>,
) -> Result<EditTarget, Refusal> {
    let (mut value, mut axis) = (value, axis);
    let tensor = loop {
        if let Some(tensor) = graph.tensor(value) {
            break tensor;
        }
        let Some(node) = graph.producer(value) else {
            return Err(stop(graph, Some(user), value, "the weight is no constant of the file"));
        };
        match graph.op(node) {
            op if is_transparent(op) => {}
            "Transpose" => {
                let perm = graph.node(node).attr("perm").map_or_else(|| vec![1, 0], |a| a.ints.clone());
                axis = match perm.as_slice() {
                    [1, 0] => 1 - axis,
                    [0, 1] => axis,
                    _ => return Err(stop(graph, Some(node), value, "the weight is transposed in more than two axes")),
                };
            }
            "Mul" if [0, 1].iter().any(|&s| graph.input(node, s).is_some_and(|v| is_scalar(graph, v))) => {
                let first = graph.input(node, 0).expect("a Mul has two inputs");
                let second = graph.input(node, 1).expect("a Mul has two inputs");
                value = if is_scalar(graph, first) { second } else { first };
                continue;
            }
            "DequantizeLinear" => return Err(stop(graph, Some(node), value, "the weight is quantised")),
            _ => return Err(stop(graph, Some(node), value, "the weight is computed in a way that is not followed")),
        }
        value = graph.input(node, 0).expect("these operators have an input");
    };
    let found = graph.model.tensor(tensor);
    if found.shape.len() != 2 {
        return Err(stop(graph, Some(user), value, format!("the weight has {} dimensions", found.shape.len())));
    }
    check_target(graph, tensor, axis, value, user, width)
}

/// A constant bias of `d_model` elements.
fn bias(graph: &Graph<'_>, value: ValueId, user: NodeId, width: Option<usize>) -> Result<EditTarget, Refusal> {
    let mut at = value;
    while graph.tensor(at).is_none() {
        match graph.producer(at).filter(|&n| is_transparent(graph.op(n))).and_then(|n| graph.input(n, 0)) {
            Some(next) => at = next,
            None => return Err(stop(graph, Some(user), value, "the bias is no constant of the file")),
        }
    }
    let tensor = graph.tensor(at).expect("the loop ends at a tensor");
    let shape = &graph.model.tensor(tensor).shape;
    let axis = shape.len().wrapping_sub(1);
    if shape.is_empty() || graph.model.tensor(tensor).elements() == 1 || shape[..axis].iter().any(|&d| d != 1) {
        return Err(stop(graph, Some(user), value, "the bias is no vector"));
    }
    check_target(graph, tensor, axis, at, user, width)
}

fn check_target(
    graph: &Graph<'_>,
    tensor: TensorId,
    axis: usize,
    value: ValueId,
    user: NodeId,
    width: Option<usize>,
) -> Result<EditTarget, Refusal> {
    let found = graph.model.tensor(tensor);
    if !found.dtype.is_float() {
        return Err(stop(graph, Some(user), value, format!("the weight is stored as {}", found.dtype)));
    }
    let halves = matches!(found.dtype, DataType::FLOAT16 | DataType::BFLOAT16);
    match found.storage {
        Storage::Embedded { .. } | Storage::External { .. } => {}
        Storage::Varints { .. } if halves => {}
        _ => return Err(stop(graph, Some(user), value, "the weight's values are stored in a form that is not read")),
    }
    if width.is_some_and(|w| found.shape[axis] != w as u64) {
        let reason = format!("the weight is {:?}, d_model is {}", found.shape, width.unwrap_or(0));
        return Err(stop(graph, Some(user), value, reason));
    }
    Ok(EditTarget { tensor, axis })
}

/// Every place where a tensor's value enters the computation, through `Cast`, `Transpose` and the like.
/// `None` if it also leaves the graph or cannot be followed.
fn entries_of(graph: &Graph<'_>, tensor: TensorId) -> Option<HashSet<Use>> {
    let mut entries = HashSet::new();
    let mut stack: Vec<ValueId> = Vec::new();
    for initializer in &graph.proto().initializer {
        if crate::onnx::Model::tensor_of(initializer) == Some(tensor) {
            stack.extend(graph.value(initializer.name.as_deref().unwrap_or("")));
        }
    }
    for node in graph.nodes().filter(|&n| graph.node(n).op() == "Constant") {
        stack.extend(graph.outputs(node).filter(|&v| graph.tensor(v) == Some(tensor)));
    }
    while let Some(value) = stack.pop() {
        if graph.is_output(value) {
            return None;
        }
        for one in graph.uses(value) {
            if one.slot >= graph.node(one.node).input.len() {
                return None; // captured by a subgraph
            }
            let outputs: Vec<ValueId> = graph.outputs(one.node).collect();
            if outputs.iter().any(|v| graph.is_dynamic(*v)) {
                entries.insert(*one);
            } else if matches!(graph.op(one.node), "Shape" | "Size") {
                // reads no values
            } else {
                stack.extend(outputs);
            }
        }
    }
    Some(entries)
}

/// All writers with their treatment.
pub fn writers(graph: &Graph<'_>, residual: &ResidualStream) -> Vec<Writer> {
    let traced: Vec<Result<WeightPath, Refusal>> = residual
        .contributions
        .iter()
        .map(|c| {
            let mut path = trace_weight(graph, c.value, Some(residual.d_model))?;
            if let Some(fused) = c.bias {
                let value = graph.input(fused.node, fused.slot).expect("the bias was found as an input");
                path.biases.push(bias(graph, value, fused.node, Some(residual.d_model))?);
                path.entries.push(fused);
            }
            Ok(path)
        })
        .collect();

    // A tensor may be edited in place only if every use of it is a write that wants the same edit.
    let mut claimed: HashMap<TensorId, (usize, HashSet<Use>)> = HashMap::new();
    let mut conflicting: HashSet<TensorId> = HashSet::new();
    for path in traced.iter().flatten() {
        for target in std::iter::once(&path.weight).chain(&path.biases) {
            let entry = claimed.entry(target.tensor).or_insert_with(|| (target.axis, HashSet::new()));
            entry.1.extend(path.entries.iter().copied());
            if entry.0 != target.axis {
                conflicting.insert(target.tensor);
            }
        }
    }
    // One treatment forces another where two writers share a tensor, so repeat until nothing changes.
    let mut reasons: Vec<Option<String>> = traced.iter().map(|t| t.as_ref().err().map(ToString::to_string)).collect();
    loop {
        let mut changed = false;
        for (index, path) in traced.iter().enumerate() {
            let Ok(path) = path else { continue };
            if reasons[index].is_some() {
                continue;
            }
            for target in std::iter::once(&path.weight).chain(&path.biases) {
                let name = &graph.model.tensor(target.tensor).name;
                let wanted: HashSet<Use> = traced
                    .iter()
                    .zip(&reasons)
                    .filter(|(_, reason)| reason.is_none())
                    .filter_map(|(t, _)| t.as_ref().ok())
                    .flat_map(|t| t.entries.iter().copied())
                    .collect();
                let shared = match entries_of(graph, target.tensor) {
                    Some(uses) => uses.difference(&wanted).next().copied(),
                    None => {
                        reasons[index] = Some(format!("`{name}` is also used outside the graph's own nodes"));
                        changed = true;
                        break;
                    }
                };
                if let Some(other) = shared {
                    let node = graph.node(other.node);
                    let tied = if other.node == residual.unembedding.node { "tied to the unembedding: " } else { "" };
                    reasons[index] = Some(format!("{tied}`{name}` is also read by node `{}`", node.label()));
                    changed = true;
                    break;
                }
                if conflicting.contains(&target.tensor) {
                    reasons[index] = Some(format!("`{name}` is written along both of its axes"));
                    changed = true;
                    break;
                }
            }
        }
        if !changed {
            break;
        }
    }

    let mut embeddings = 0;
    residual
        .contributions
        .iter()
        .enumerate()
        .zip(traced.iter().zip(reasons))
        .map(|((index, contribution), (path, reason))| {
            let path = path.as_ref().ok();
            Writer {
                kind: kind(contribution, &mut embeddings),
                layer: contribution.layer,
                contribution: index,
                weight: path.map(|p| p.weight),
                biases: path.map(|p| p.biases.clone()).unwrap_or_default(),
                treatment: if reason.is_none() { Treatment::Weights } else { Treatment::Nodes },
                reason,
            }
        })
        .collect()
}

fn kind(contribution: &Contribution, embeddings: &mut usize) -> WriterKind {
    match contribution.role {
        Role::Attn => WriterKind::AttnOut,
        Role::Mlp => WriterKind::MlpOut,
        Role::Embed => {
            *embeddings += 1;
            if *embeddings == 1 { WriterKind::Embed } else { WriterKind::PosEmbed }
        }
    }
}
