//! What operators do to rows of the last dimension: which hand them on whole, which scale each by one number, which
//! only ask for their shape.

use crate::onnx::{Graph, NodeId, Use, ValueId};

/// Operators that hand a tensor on unchanged, as far as its place in the stream goes.
pub(super) fn is_transparent(op: &str) -> bool {
    matches!(op, "Cast" | "Identity" | "Dropout")
}

/// Whether a node hands on its first input with every row of the last dimension whole and in order.
pub(super) fn hands_on(graph: &Graph<'_>, node: NodeId) -> bool {
    match graph.op(node) {
        op if is_transparent(op) => true,
        "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" => keeps_rows(graph, node),
        // an activation that static quantisation rounds to 8 bits and back
        "QuantizeLinear" => true,
        "DequantizeLinear" => {
            let source = graph.input(node, 0).and_then(|v| graph.producer(v));
            source.is_some_and(|n| graph.op(n) == "QuantizeLinear")
        }
        _ => false,
    }
}

/// Whether the last dimension of output 0 is that of input 0, and more than one element.
pub(super) fn keeps_rows(graph: &Graph<'_>, node: NodeId) -> bool {
    let input = graph.input(node, 0).and_then(|v| graph.last_dimension(v));
    let output = graph.output(node, 0).and_then(|v| graph.last_dimension(v));
    input.is_some_and(|d| d > 1) && input == output
}

/// Whether a use of a value asks for its elements, and not for its shape alone.
pub(super) fn reads_elements(graph: &Graph<'_>, one: Use, depth: usize) -> bool {
    if is_idle(graph, one.node) {
        return false;
    }
    match graph.op(one.node) {
        "Shape" | "Size" => false,
        "Slice" | "Identity" | "Cast" | "Unsqueeze" | "Squeeze" | "Reshape" | "Transpose" if depth > 0 => {
            let moved = one.slot == 0 && !graph.outputs(one.node).any(|v| graph.is_output(v));
            let mut readers = graph.outputs(one.node).flat_map(|v| graph.uses(v)).peekable();
            !moved || readers.peek().is_none() || readers.any(|next| reads_elements(graph, *next, depth - 1))
        }
        _ => true,
    }
}

/// Whether nobody reads what a node computes: a twin whose readers were led to another node, or dead code.
pub(super) fn is_idle(graph: &Graph<'_>, node: NodeId) -> bool {
    graph.outputs(node).all(|v| graph.uses(v).is_empty() && !graph.is_output(v))
}

/// Whether a constant has one element.
pub(super) fn is_scalar(graph: &Graph<'_>, value: ValueId) -> bool {
    let mut value = value;
    loop {
        if let Some(tensor) = graph.tensor_ref(value) {
            return tensor.elements() == 1;
        }
        let Some(node) = graph.producer(value) else { return false };
        match graph.op(node) {
            "Constant" => return graph.node(node).attr("value_float").or(graph.node(node).attr("value_int")).is_some(),
            op if is_transparent(op) && !graph.is_dynamic(value) => match graph.input(node, 0) {
                Some(next) => value = next,
                None => return false,
            },
            _ => return false,
        }
    }
}

/// Whether a value is one number for all channels of a row.
pub(super) fn is_row_factor(graph: &Graph<'_>, value: ValueId) -> bool {
    graph.last_dimension(value) == Some(1) || graph.rank_of(value) == Some(0) || is_scalar(graph, value)
}

/// Whether indices are the same for every channel: spread from one number a row.
pub(super) fn is_same_along_rows(graph: &Graph<'_>, value: ValueId) -> bool {
    let mut value = value;
    while let Some(node) = graph.producer(value) {
        match graph.op(node) {
            "Expand" | "Tile" => {
                return graph.input(node, 0).is_some_and(|v| graph.last_dimension(v) == Some(1));
            }
            "Cast" | "Identity" => match graph.input(node, 0) {
                Some(input) => value = input,
                None => return false,
            },
            _ => return false,
        }
    }
    false
}

/// Whether a scatter sets or adds rows; products and extremes are no linear combination.
pub(super) fn adds_or_sets(graph: &Graph<'_>, node: NodeId) -> bool {
    let reduction = graph.node(node).attr("reduction").and_then(|a| a.s.clone());
    matches!(reduction.as_deref(), None | Some(b"none" | b"add"))
}

/// Whether a value is zero whatever is fed.
pub(super) fn is_zero(graph: &Graph<'_>, value: ValueId) -> bool {
    if let Some(tensor) = graph.tensor_ref(value) {
        let zero = |t: &crate::onnx::proto::TensorProto| {
            let raw = t.raw_data.as_deref().unwrap_or(&[]);
            (!raw.is_empty() && raw.iter().all(|b| *b == 0))
                || (raw.is_empty() && !t.float_data.is_empty() && t.float_data.iter().all(|v| *v == 0.0))
        };
        // only what the skeleton holds whole
        return tensor.elements() > 0 && tensor.elements() <= 64 && graph.small_tensor(value).is_some_and(zero);
    }
    let Some(node) = graph.producer(value) else { return false };
    match graph.op(node) {
        "ConstantOfShape" => match graph.node(node).attr("value").and_then(|a| a.t.as_ref()) {
            Some(t) => {
                let raw = t.raw_data.as_deref().unwrap_or(&[]);
                raw.iter().all(|b| *b == 0)
                    && t.float_data.iter().all(|v| *v == 0.0)
                    && t.int32_data.iter().all(|v| *v == 0)
            }
            None => true,
        },
        "Cast" | "Identity" | "Expand" | "Reshape" | "Unsqueeze" | "Squeeze" => {
            graph.input(node, 0).is_some_and(|v| is_zero(graph, v))
        }
        _ => false,
    }
}

/// Whether a dynamic value is picked from constant weights (mixture of experts).
pub(super) fn picks_weight(graph: &Graph<'_>, value: ValueId) -> bool {
    let mut value = value;
    for _ in 0..16 {
        let Some(node) = graph.producer(value) else { return false };
        match graph.op(node) {
            "Gather" | "GatherND" | "GatherElements" | "Transpose" | "Cast" | "Reshape" | "Unsqueeze" | "Squeeze" => {
                match graph.input(node, 0) {
                    Some(input) if !graph.is_dynamic(input) => return true,
                    Some(input) => value = input,
                    None => return false,
                }
            }
            _ => return false,
        }
    }
    false
}

/// The constant operand of an `Einsum` of two, and the axis (counted from its end) that becomes the last one of the
/// result: `bshd,hdm->bsm` gives `(1, 0)`. Each entry of the result along that axis depends on the weight's entry alone.
pub(super) fn einsum_weight(graph: &Graph<'_>, node: NodeId) -> Option<(usize, usize)> {
    let equation = graph.node(node).attr("equation")?.s.clone()?;
    let equation: String = String::from_utf8(equation).ok()?.split_whitespace().collect();
    let (operands, result) = equation.split_once("->")?;
    let operands: Vec<&str> = operands.split(',').collect();
    let last = result.chars().last().filter(char::is_ascii_alphabetic)?;
    let slot = operands.iter().position(|operand| operand.contains(last))?;
    let (weight, other) = (operands[slot], operands[1 - slot.min(1)]);
    let fixed = graph.input(node, slot).is_some_and(|v| !graph.is_dynamic(v) || picks_weight(graph, v));
    let plain = operands.len() == 2 && !other.contains(last) && weight.matches(last).count() == 1;
    let from_end = weight.chars().rev().position(|c| c == last)?;
    (fixed && plain && !weight.contains('.')).then_some((slot, from_end))
}
