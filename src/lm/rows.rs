//! What operators do to rows of the last dimension: which hand them on whole, which scale each by one number, which
//! only ask for their shape.

use std::collections::HashSet;

use crate::onnx::proto::GraphProto;
use crate::onnx::{Graph, NodeId, Use, ValueId};

/// Operators that hand a tensor on unchanged, as far as its place in the stream goes.
pub(super) fn is_transparent(op: &str) -> bool {
    matches!(op, "Cast" | "CastLike" | "Identity" | "Dropout")
}

/// The value that a node hands on with every row whole and in order: its first input, or what both branches of an `If`
/// pass on (`If(dim == 1) { Squeeze } else { Identity }`).
pub(super) fn handed_on(graph: &Graph<'_>, node: NodeId) -> Option<ValueId> {
    match graph.op(node) {
        "If" => passed(graph, node),
        _ if hands_on(graph, node) => graph.input(node, 0),
        _ => None,
    }
}

/// Whether a value is one vector at every position, times a number that the position gives: a gated term that was added
/// to a model.
pub(super) fn is_scaled_vector(graph: &Graph<'_>, value: ValueId) -> bool {
    let Some(node) = graph.producer(root(graph, value)).filter(|node| graph.op(*node) == "Mul") else { return false };
    let inputs = [0, 1].map(|slot| graph.input(node, slot));
    let [Some(one), Some(other)] = inputs else { return false };
    let pair = |number: ValueId, row: ValueId| {
        let fixed = !graph.is_dynamic(row) && graph.last_dimension(row).is_some_and(|d| d > 1);
        fixed && graph.is_dynamic(number) && graph.last_dimension(number) == Some(1)
    };
    pair(one, other) || pair(other, one)
}

/// Follows `Cast` and the like back to the value they hand on.
pub(super) fn root(graph: &Graph<'_>, mut value: ValueId) -> ValueId {
    while let Some(input) = graph.producer(value).and_then(|node| handed_on(graph, node)) {
        value = input;
    }
    value
}

fn hands_on(graph: &Graph<'_>, node: NodeId) -> bool {
    match graph.op(node) {
        op if is_transparent(op) => true,
        "Reshape" | "Flatten" => keeps_rows(graph, node),
        "Squeeze" | "Unsqueeze" => keeps_rows(graph, node) || carried(graph, node, 0) == Some(0),
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

/// What both branches of an `If` return: a value from outside, through nodes that only take axes of length 1 away.
fn passed(graph: &Graph<'_>, node: NodeId) -> Option<ValueId> {
    let branches: Vec<&GraphProto> = graph.node(node).attribute.iter().filter_map(|a| a.g.as_ref()).collect();
    let source = |branch: &GraphProto| {
        let mut name = branch.output.first()?.name.clone()?;
        for _ in 0..=branch.node.len() {
            let Some(inner) = branch.node.iter().find(|n| n.output.contains(&name)) else {
                let own = branch.initializer.iter().any(|t| t.name.as_ref() == Some(&name));
                return graph.value(&name).filter(|_| !own);
            };
            let standard = matches!(inner.domain.as_deref().unwrap_or(""), "" | "ai.onnx");
            if !standard || !matches!(inner.op(), "Identity" | "Squeeze") {
                return None;
            }
            name = inner.input.first()?.clone();
        }
        None
    };
    match branches.as_slice() {
        [one, other] if one.output.len() == 1 && other.output.len() == 1 => {
            let value = source(one)?;
            // `Squeeze` of the last axis would need it to be of length 1
            (source(other) == Some(value) && graph.last_dimension(value).is_some_and(|d| d > 1)).then_some(value)
        }
        _ => None,
    }
}

/// Constant axes: an input from some operator set on, an attribute before.
fn axes(graph: &Graph<'_>, node: NodeId, slot: usize) -> Option<Vec<i64>> {
    match graph.input(node, slot) {
        Some(axes) => graph.const_ints(axes),
        None => graph.node(node).attr("axes").map(|a| a.ints.clone()),
    }
}

/// An axis counted from the end; `None` where that takes a rank which is unknown.
fn from_end(axis: i64, rank: Option<usize>) -> Option<usize> {
    let axis = if axis < 0 { -axis - 1 } else { rank? as i64 - 1 - axis };
    usize::try_from(axis).ok()
}

/// The axis of `d_model` in the first input of a node, if it is axis `axis` of output 0, both counted from the end:
/// every row along it is a row of the input, or a sum of such rows, with its channels in order. `None` for operators
/// under which that is not so, or not known.
pub(super) fn carried(graph: &Graph<'_>, node: NodeId, axis: usize) -> Option<usize> {
    let rank = graph.input(node, 0).and_then(|v| graph.rank_of(v));
    let attribute = |name: &str, default: i64| graph.node(node).attr_i(name, default);
    // the axis of the input that becomes `axis` when those in `gone` are taken away
    let without = |gone: &[usize]| (0..axis + gone.len() + 1).filter(|a| !gone.contains(a)).nth(axis);
    let all = |given: &[i64], rank| given.iter().map(|&a| from_end(a, rank)).collect::<Option<Vec<usize>>>();
    match graph.op(node) {
        op if is_transparent(op) => Some(axis),
        "If" => passed(graph, node).filter(|_| axis == 0).map(|_| 0),
        "Transpose" => {
            let perm = match graph.node(node).attr("perm") {
                Some(perm) => perm.ints.clone(),
                None => (0..rank? as i64).rev().collect(),
            };
            let source = *perm.get(perm.len().checked_sub(axis + 1)?)?;
            perm.len().checked_sub(1 + usize::try_from(source).ok()?)
        }
        "Unsqueeze" => {
            let given = axes(graph, node, 1)?;
            let new = all(&given, rank.map(|rank| rank + given.len()))?;
            (!new.contains(&axis)).then(|| axis - new.iter().filter(|&&a| a < axis).count())
        }
        "Squeeze" => match axes(graph, node, 1) {
            Some(given) if !given.is_empty() => without(&all(&given, rank)?),
            _ => (axis == 0 && keeps_rows(graph, node)).then_some(0),
        },
        "Reshape" | "Flatten" | "Expand" => (axis == 0 && keeps_rows(graph, node)).then_some(0),
        "Slice" => {
            let given = match graph.input(node, 1) {
                Some(_) => graph.input(node, 3).and_then(|v| graph.const_ints(v)),
                None => graph.node(node).attr("axes").map(|a| a.ints.clone()),
            };
            let elsewhere = given.and_then(|given| all(&given, rank)).is_some_and(|cut| !cut.contains(&axis));
            let steps = graph.input(node, 4).map_or(Some(vec![1]), |v| graph.const_ints(v));
            let whole = axis == 0 && keeps_rows(graph, node) && steps.is_some_and(|s| s.iter().all(|&s| s == 1));
            (elsewhere || whole).then_some(axis)
        }
        "Split" | "Concat" => {
            let default = if graph.op(node) == "Split" { 0 } else { -1 };
            (from_end(attribute("axis", default), rank)? != axis).then_some(axis)
        }
        "ReduceSum" | "ReduceMean" => {
            let given = axes(graph, node, 1).unwrap_or_default();
            if given.is_empty() {
                return (attribute("noop_with_empty_axes", 0) != 0 && graph.input(node, 1).is_some()).then_some(axis);
            }
            let gone = all(&given, rank)?;
            if attribute("keepdims", 1) != 0 { (!gone.contains(&axis)).then_some(axis) } else { without(&gone) }
        }
        "Gather" => {
            let at = from_end(attribute("axis", 0), rank)?;
            let indices = graph.input(node, 1).and_then(|v| graph.rank_of(v))?;
            match (axis < at, axis >= at + indices) {
                (true, _) => Some(axis),
                (_, true) => Some(axis + 1 - indices),
                _ => None,
            }
        }
        "GatherND" => {
            let depth = graph.input(node, 1).and_then(|v| graph.last_dimension(v))?;
            let picked = u64::try_from(attribute("batch_dims", 0)).ok()?.checked_add(depth)?;
            (axis == 0 && picked < rank? as u64).then_some(0)
        }
        _ => None,
    }
}

/// Whether a use of a value asks for its elements, and not for its shape alone.
pub(super) fn reads_elements(graph: &Graph<'_>, one: Use) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![one];
    while let Some(one) = open.pop() {
        if !seen.insert(one) || is_idle(graph, one.node) {
            continue;
        }
        match graph.op(one.node) {
            "Shape" | "Size" => {}
            "Slice" | "Identity" | "Cast" | "Unsqueeze" | "Squeeze" | "Reshape" | "Transpose"
                if one.slot == 0 && seen.len() < MOVES =>
            {
                if graph.outputs(one.node).any(|v| graph.is_output(v)) {
                    return true;
                }
                open.extend(graph.outputs(one.node).flat_map(|v| graph.uses(v)));
            }
            _ => return true,
        }
    }
    false
}

/// Past this many readers that only move a value, it counts as read.
const MOVES: usize = 256;

/// Whether nobody reads what a node computes: a twin whose readers were led to another node, or dead code.
pub(super) fn is_idle(graph: &Graph<'_>, node: NodeId) -> bool {
    graph.outputs(node).all(|v| graph.uses(v).is_empty() && !graph.is_output(v))
}

/// Whether a constant has one element.
pub(super) fn is_scalar(graph: &Graph<'_>, value: ValueId) -> bool {
    let mut value = value;
    loop {
        if graph.is_default(value) {
            return false;
        }
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

/// Whether a value is one number for all channels of a row, if the channels lie along axis `axis` from the end.
pub(super) fn is_row_factor(graph: &Graph<'_>, value: ValueId, axis: usize) -> bool {
    let one = axis == 0 && graph.last_dimension(value) == Some(1);
    one || graph.rank_of(value).is_some_and(|rank| rank <= axis) || is_scalar(graph, value)
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
    if operands.len() != 2 {
        return None;
    }
    let last = result.chars().last().filter(char::is_ascii_alphabetic)?;
    let slot = operands.iter().position(|operand| operand.contains(last))?;
    let (weight, other) = (operands[slot], operands[1 - slot]);
    let fixed = graph.input(node, slot).is_some_and(|v| !graph.is_dynamic(v) || picks_weight(graph, v));
    let plain = !other.contains(last) && weight.matches(last).count() == 1;
    let from_end = weight.chars().rev().position(|c| c == last)?;
    (fixed && plain && !weight.contains('.')).then_some((slot, from_end))
}
