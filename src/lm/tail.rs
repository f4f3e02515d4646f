//! The way from the residual stream to the logits: the final norm and what moves rows about. Whatever else is met there
//! may hide a writer, and is refused.

use std::collections::HashSet;

use super::Refusal;
use super::rows::{handed_on, is_row_factor};
use super::sum::{SKIP_SUM_OUTPUT, StreamValue, dynamic_terms, skip_norm_bias};
use crate::onnx::{Graph, NodeId, ValueId, constant};

/// Operators that move rows of their first input.
const MOVES: [&str; 11] = [
    "Slice",
    "Gather",
    "GatherND",
    "GatherElements",
    "Reshape",
    "Expand",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Transpose",
    "Split",
];

/// Norms, whose first input is what they normalise.
const NORMS: [&str; 5] = [
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    "RMSNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
];

/// Operators of norms that are spelled out, and of activations that are rounded to 8 bits.
const PARTS: [&str; 33] = [
    "Cast",
    "CastLike",
    "Identity",
    "Dropout",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Sqrt",
    "Reciprocal",
    "Neg",
    "Abs",
    "Clip",
    "Max",
    "Min",
    "ReduceMean",
    "ReduceSum",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceMax",
    "ReduceMin",
    "Concat",
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "Round",
    "Where",
    "IsNaN",
    "IsInf",
    "Not",
    "Tanh",
    "Sum",
];

/// The stream value that the final norm reads: the one sum of two activations behind the unembedding.
///
/// # Errors
/// The node on the way that is no part of a norm, or that adds something behind the last sum.
pub(super) fn final_stream(
    graph: &Graph<'_>,
    activation: ValueId,
    unembedding: NodeId,
) -> Result<StreamValue, Refusal> {
    let mut found: Vec<StreamValue> = Vec::new();
    let mut strange: Option<Refusal> = None;
    let mut seen = HashSet::new();
    let mut open = vec![activation];
    while let Some(value) = open.pop() {
        if !graph.is_dynamic(value) || !seen.insert(value) {
            continue;
        }
        let Some(node) = graph.producer(value) else {
            let reason = "a graph input joins the way from the residual stream to the logits";
            strange = strange.or_else(|| Some(Refusal::on_stream(graph, unembedding, Some(value), reason)));
            continue;
        };
        let op = graph.op(node);
        let sum = match graph.output(node, SKIP_SUM_OUTPUT).filter(|_| skip_norm_bias(op).is_some()) {
            Some(sum) => StreamValue::Value(sum),
            None if skip_norm_bias(op).is_some() => StreamValue::Sum(node),
            None => StreamValue::Value(value),
        };
        if skip_norm_bias(op).is_some() || dynamic_terms(graph, node).len() >= 2 {
            if !found.contains(&sum) {
                found.push(sum);
            }
        } else if let Some(passed) = handed_on(graph, node) {
            open.push(passed);
        } else if MOVES.contains(&op) {
            open.extend(graph.input(node, 0));
        } else if NORMS.contains(&op) || PARTS.contains(&op) {
            if let Some(added) = added_behind(graph, node) {
                return Err(added);
            }
            open.extend(graph.all_inputs(node));
        } else {
            strange = strange.or_else(|| Some(Refusal::on_stream(graph, node, Some(value), not_a_norm(graph, node))));
            open.extend(graph.all_inputs(node));
        }
    }
    match (found.as_slice(), strange) {
        ([], None) => {
            Err(Refusal::on_stream(graph, unembedding, Some(activation), "no residual stream leads to the unembedding"))
        }
        ([one], None) => Ok(*one),
        (_, Some(strange)) => Err(strange),
        (several, None) => Err(Refusal::on_stream(
            graph,
            unembedding,
            Some(activation),
            format!("{} sums lead to the unembedding, the residual stream would be one", several.len()),
        )),
    }
}

fn not_a_norm(graph: &Graph<'_>, node: NodeId) -> String {
    let gemm = graph.op(node) == "Gemm" && graph.input(node, 2).is_some_and(|c| graph.is_dynamic(c));
    match gemm {
        true => "a product that also adds an activation comes between the residual stream and the logits".into(),
        false => format!(
            "`{}` comes between the residual stream and the logits, and is no part of a norm",
            graph.op_name(node)
        ),
    }
}

/// A constant vector that is added to the stream itself, no norm between: it would be a write.
fn added_behind(graph: &Graph<'_>, node: NodeId) -> Option<Refusal> {
    if !matches!(graph.op(node), "Add" | "Sub" | "Sum") {
        return None;
    }
    let inputs = || (0..graph.node(node).input.len()).filter_map(|slot| graph.input(node, slot));
    let constant =
        inputs().find(|&v| !graph.is_dynamic(v) && !is_row_factor(graph, v, 0) && !constant::is_zero(graph, v))?;
    let normed = inputs().filter(|&v| graph.is_dynamic(v)).all(|v| is_normed(graph, v));
    let reason = "a constant is added to the residual stream behind its last sum";
    (!normed).then(|| Refusal::on_stream(graph, node, Some(constant), reason))
}

/// Whether a value is what a norm returns, scaled, shifted, cast or moved.
fn is_normed(graph: &Graph<'_>, value: ValueId) -> bool {
    let mut value = value;
    while let Some(node) = graph.producer(value) {
        let op = graph.op(node);
        let mut dynamic = graph.all_inputs(node).into_iter().filter(|&v| graph.is_dynamic(v));
        let (first, second) = (dynamic.next(), dynamic.next());
        match op {
            _ if NORMS.contains(&op) => return true,
            _ if skip_norm_bias(op).is_some() => return graph.output(node, SKIP_SUM_OUTPUT) != Some(value),
            "Mul" | "Div" if second.is_some() => return true,
            "Mul" | "Div" | "Add" | "Sub" if first.is_some() => value = first.unwrap_or(value),
            _ if MOVES.contains(&op) || PARTS.contains(&op) => match graph.input(node, 0) {
                Some(input) if graph.is_dynamic(input) => value = input,
                _ => return false,
            },
            _ => return false,
        }
    }
    false
}
