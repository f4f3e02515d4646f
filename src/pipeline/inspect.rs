//! What a model is, as data.

use super::opened::{Opened, Understood};
use crate::lm::{LanguageModel, Refusal, Writer, tensor_label};
use crate::onnx::Graph;
use crate::report::{InspectResult, RefusalRow, WriterRow};

/// Describes an understood model.
pub fn describe(opened: &Opened, model: &Understood<'_>) -> InspectResult {
    let Understood { graph, lm, .. } = model;
    let tied = model.writers().filter(|(_, writer)| writer.tied);
    InspectResult {
        n_layers: lm.n_layers(),
        d_model: lm.d_model(),
        d_vocab: vocabulary(graph, lm),
        tied: tied.filter_map(|(graph, w)| Some(tensor_label(graph, w.weights.first()?.tensor))).collect(),
        writers: model.writers().map(|(graph, writer)| row(graph, writer)).collect(),
        interface: serde_json::to_value(&lm.interface).expect("plain data"),
        ..bare(opened)
    }
}

/// Describes a model that is refused.
pub fn refused(opened: &Opened, refusal: &Refusal) -> InspectResult {
    let row = RefusalRow {
        node: refusal.node.clone(),
        op: refusal.op.clone(),
        tensor: refusal.tensor.clone(),
        reason: refusal.reason.clone(),
        hint: refusal.hint.clone(),
    };
    InspectResult { refusals: vec![row], ..bare(opened) }
}

fn bare(opened: &Opened) -> InspectResult {
    let model = &opened.model;
    let proto = &model.skeleton;
    let producer = [proto.producer_name.as_deref(), proto.producer_version.as_deref()];
    InspectResult {
        model: model.path.display().to_string(),
        n_layers: 0,
        d_model: 0,
        d_vocab: None,
        writers: Vec::new(),
        refusals: Vec::new(),
        interface: serde_json::Value::Null,
        opset: model.opset("").or_else(|| model.opset("ai.onnx")).unwrap_or(0),
        ir_version: proto.ir_version.unwrap_or(0),
        producer: producer.into_iter().flatten().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" "),
        file_bytes: opened
            .models()
            .map(|m| {
                let external = m.external_files();
                m.file_len + external.iter().filter_map(|(_, p)| p.metadata().ok()).map(|m| m.len()).sum::<u64>()
            })
            .sum(),
        external_files: opened
            .embedding
            .iter()
            .filter_map(|m| Some(m.path.file_name()?.to_string_lossy().into_owned()))
            .chain(opened.models().flat_map(|m| m.external_files().into_iter().map(|(location, _)| location)))
            .collect(),
        tied: Vec::new(),
    }
}

fn row(graph: &Graph<'_>, writer: &Writer) -> WriterRow {
    let target = writer.weights.first();
    let tensor = target.map(|t| graph.model.tensor(t.tensor));
    let value = writer.writes[0].value;
    WriterRow {
        kind: writer.kind.name().into(),
        layer: writer.layer.map(|l| l.0),
        initializer: target.map(|t| tensor_label(graph, t.tensor)),
        n_weights: writer.weights.len(),
        dtype: tensor.map(|t| t.dtype).or_else(|| graph.elem_type(value)).map(|d| d.name().to_string()),
        shape: tensor.map(|t| t.shape.clone()),
        treatment: writer.treatment.name().into(),
        reason: writer.reason.clone(),
    }
}

fn vocabulary(graph: &Graph<'_>, lm: &LanguageModel) -> Option<usize> {
    let declared = graph
        .declared_shape(graph.value(&lm.interface.logits)?)
        .and_then(|shape| usize::try_from((*shape.last()?)?).ok());
    declared.or_else(|| {
        let node = lm.residual.unembedding.node;
        let weight = graph.input(node, 1 - lm.residual.unembedding.slot.min(1))?;
        let shape = &graph.tensor_ref(weight)?.shape;
        let other = shape.iter().find(|&&d| d != lm.d_model() as u64)?;
        usize::try_from(*other).ok()
    })
}
