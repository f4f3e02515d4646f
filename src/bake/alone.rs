//! The edits of `--weights-only`: copies of shared tensors, and directions turned by norms.

use super::constants::FREE_INITIALIZERS;
use super::error::BakeError;
use super::plan::{Part, TensorEdit};
use crate::edit::{Ablation, Direction};
use crate::lm::alone::{Replacement, replacements, turned};
use crate::lm::path::Turn;
use crate::lm::{Writer, WriterKind, tensor_label};
use crate::onnx::patch::{Patch, Place};
use crate::onnx::{Graph, Storage};

/// The edits that replace the nodes after `writer`. Where an edit is made in a copy of the tensor, the patch makes the
/// writer read the copy.
pub(super) fn edits(
    graph: &Graph<'_>,
    writer: &Writer,
    name: &str,
    d_model: usize,
    ablation: &Ablation,
    patch: &mut Patch,
) -> Result<Vec<TensorEdit>, BakeError> {
    let refused = |reason: String| BakeError::NeedsNodes { writer: name.to_string(), reason };
    let found = replacements(graph, writer, d_model).map_err(|refusal| refused(refusal.to_string()))?;
    let mut edits: Vec<TensorEdit> = Vec::new();
    // what is empty writes nothing
    for one in found.into_iter().filter(|one| graph.model.tensor(one.target.tensor).elements() > 0) {
        let unit = match one.turns.is_empty() {
            true => None,
            false if ablation.is_partial() => {
                return Err(refused(
                    "a norm behind it turns the direction, and only the whole component can be taken off through it"
                        .into(),
                ));
            }
            false => Some(all_turned(ablation, &one.turns).ok_or_else(|| {
                refused("the norm behind it takes a direction off altogether, or its scale is not finite".into())
            })?),
        };
        let known = edits
            .iter()
            .find(|edit| edit.tensor == one.target.tensor && edit.turned == unit && edit.axis == one.target.axis);
        let copy = match known {
            Some(edit) => edit.copy.clone(),
            None => {
                let edit = edit(graph, writer, &one, unit, edits.len(), name)?;
                let copy = edit.copy.clone();
                patch.promised.extend(copy.clone());
                edits.push(edit);
                copy
            }
        };
        if let Some(copy) = copy {
            lead(graph, patch, &one, &copy).map_err(refused)?;
        }
    }
    Ok(edits)
}

/// The directions of an ablation as the norms behind a tensor turn them, made orthonormal again; `None` where one goes.
fn all_turned(ablation: &Ablation, turns: &[Turn]) -> Option<Vec<Vec<f64>>> {
    let turned = ablation.vectors().iter().map(|one| turned(one.unit(), turns)).collect::<Option<Vec<_>>>()?;
    let [only] = turned.as_slice() else {
        let directions = turned.into_iter().map(Direction::new).collect::<Result<_, _>>().ok()?;
        let span = Ablation::of_span(directions).ok()?;
        return Some(span.vectors().iter().map(|one| one.unit().to_vec()).collect());
    };
    Some(vec![only.clone()])
}

fn edit(
    graph: &Graph<'_>,
    writer: &Writer,
    one: &Replacement,
    turned: Option<Vec<Vec<f64>>>,
    number: usize,
    name: &str,
) -> Result<TensorEdit, BakeError> {
    let tensor = graph.model.tensor(one.target.tensor);
    let label = tensor_label(graph, one.target.tensor);
    if one.copy && matches!(tensor.storage, Storage::Varints { .. }) {
        let reason = "it is shared and its values are stored as `int32_data`".into();
        return Err(BakeError::Unsupported { tensor: label, reason });
    }
    if one.copy && graph.model.skeleton.ir_version.is_some_and(|version| version < FREE_INITIALIZERS) {
        let reason = "it is shared, and a file of this old IR version takes no new initializer".into();
        return Err(BakeError::Unsupported { tensor: label, reason });
    }
    let part = match (one.bias, writer.kind) {
        (true, _) => Part::Vector,
        (false, WriterKind::Embed | WriterKind::PosEmbed) => Part::Rows,
        (false, _) => Part::Matrix,
    };
    Ok(TensorEdit {
        tensor: one.target.tensor,
        name: label,
        part,
        kind: writer.kind,
        layer: writer.layer,
        dtype: tensor.dtype,
        shape: one.target.shape(graph.model),
        axis: one.target.axis,
        same_bytes_as: None,
        copy: one.copy.then(|| graph.fresh_name(&format!("lancet.{name}.copy.{number}"))),
        turned,
        quantised: one.target.quantised,
        plus: None,
        writer: name.to_string(),
    })
}

/// Leads an entry to the copy, through copies of the nodes that lie between the tensor and the entry.
fn lead(graph: &Graph<'_>, patch: &mut Patch, one: &Replacement, copy: &str) -> Result<(), String> {
    let mut chain = Vec::new();
    let mut value = graph.input(one.entry.node, one.entry.slot).expect("the walk came this way");
    while graph.tensor(value) != Some(one.target.tensor) {
        let node = graph.producer(value).ok_or("its tensor is reached in a way that is not followed")?;
        let leads = |slot: usize| {
            let input = graph.input(node, slot)?;
            let scalar = graph.tensor_ref(input).is_some_and(|t| t.elements() <= 1);
            (!scalar).then_some((slot, input))
        };
        let (slot, next) = (0..graph.node(node).input.len())
            .find_map(leads)
            .ok_or("its tensor is reached in a way that is not followed")?;
        chain.push((node, slot));
        value = next;
    }
    let mut name = copy.to_string();
    for (step, (node, slot)) in chain.into_iter().rev().enumerate() {
        let mut again = graph.node(node).clone();
        again.input[slot].clone_from(&name);
        name = graph.fresh_name(&format!("{copy}.{}.{step}", one.entry.node.0));
        again.output = vec![name.clone()];
        again.name = Some(name.clone());
        patch.nodes.push((Place::Before(one.entry.node), again));
    }
    patch.rewires.push((one.entry, name));
    Ok(())
}
