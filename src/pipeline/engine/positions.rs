//! How many tokens a graph has positions for, where a table of it bounds them.

use crate::lm::WriterKind;
use crate::onnx::{Graph, NodeId, ValueId};

use super::super::opened::Understood;

/// Tokens that can be fed, past ones included: the graph's fixed number of them, the room of its cache, or the shortest table of learned positions, of rotary angles, or of a mask
/// or bias that is cut to length (MPT; a slice that is too long is silently short). `None` where nothing bounds them.
pub fn limit(model: &Understood<'_>) -> Option<usize> {
    let graph = &model.graph;
    let interface = &model.lm.interface;
    let learned: Vec<_> = model
        .lm
        .writers
        .iter()
        .filter(|writer| writer.kind == WriterKind::PosEmbed)
        .flat_map(|writer| &writer.weights)
        .map(|target| target.tensor)
        .collect();
    let fed = graph.value(interface.inputs_embeds.as_ref().unwrap_or(&interface.input_ids));
    let ids = interface.position_ids.as_deref().and_then(|name| graph.value(name));
    let told = |index: ValueId| {
        ids.is_some_and(|ids| graph.depends_on(index, ids)) && !fed.is_some_and(|fed| graph.depends_on(index, fed))
    };
    let tables = graph.nodes().filter_map(|node| {
        let (slot, index) = match graph.op(node) {
            "Gather" => (0, Some(graph.input(node, 1)?)),
            "RotaryEmbedding" if graph.node(node).domain() == "com.microsoft" => (2, None),
            "GroupQueryAttention" => (7, None),
            "Slice" => return cut(graph, node),
            _ => return None,
        };
        let table = graph.input(node, slot)?;
        let shape = &graph.tensor_ref(table)?.shape;
        let rows = usize::try_from(*shape.first()?).ok().filter(|_| shape.len() == 2)?;
        match index {
            // a type embedding has fewer rows than any prompt has tokens, and its index does not come from positions
            Some(index) if told(index) || graph.tensor(table).is_some_and(|t| learned.contains(&t) && rows > 2) => {
                Some(rows.saturating_sub(offset(graph, index)))
            }
            Some(_) => None,
            None => Some(rows),
        }
    });
    tables.chain(interface.feeding.length).chain(interface.feeding.room()).min()
}

/// Length of the axis along which a constant is cut to a length that depends on the run.
fn cut(graph: &Graph<'_>, node: NodeId) -> Option<usize> {
    let shape = &graph.tensor_ref(graph.input(node, 0)?)?.shape;
    let bounds = [1, 2].into_iter().filter_map(|slot| graph.input(node, slot));
    let varies = bounds.into_iter().any(|bound| graph.is_dynamic(bound));
    let axes = graph.input(node, 3).and_then(|axes| graph.const_ints(axes)).filter(|_| varies)?;
    let lengths = axes.into_iter().filter_map(|axis| {
        let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
        usize::try_from(*shape.get(usize::try_from(axis).ok()?)?).ok()
    });
    // a pair or triple is no table of positions
    lengths.filter(|length| *length > 4).min()
}

/// What is added to positions before the lookup (OPT adds 2).
fn offset(graph: &Graph<'_>, index: ValueId) -> usize {
    let mut value = index;
    for _ in 0..8 {
        let Some(node) = graph.producer(value) else { break };
        match graph.op(node) {
            "Cast" | "Identity" | "Unsqueeze" | "Squeeze" | "Reshape" | "Slice" => {}
            "Add" => return constant(graph, node).unwrap_or(0),
            _ => break,
        }
        let Some(next) = graph.input(node, 0) else { break };
        value = next;
    }
    0
}

/// The constant operand of a sum, if it is one number.
fn constant(graph: &Graph<'_>, node: NodeId) -> Option<usize> {
    let operand = (0..2).filter_map(|slot| graph.const_ints(graph.input(node, slot)?)).next()?;
    match operand.as_slice() {
        [one] => usize::try_from(*one).ok(),
        _ => None,
    }
}
