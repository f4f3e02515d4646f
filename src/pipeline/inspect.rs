//! What a model is, as data.

use crate::lm::{LanguageModel, Refusal, Treatment, Writer, tensor_label};
use crate::onnx::{Graph, Model};
use crate::report::{InspectResult, RefusalRow, WriterRow};

/// Describes an understood model.
pub fn describe(model: &Model, graph: &Graph<'_>, lm: &LanguageModel) -> InspectResult {
    let tied: Vec<String> = lm
        .writers
        .iter()
        .filter(|w| w.tied)
        .filter_map(|w| Some(tensor_label(graph, w.weights.first()?.tensor)))
        .collect();
    InspectResult {
        n_layers: lm.n_layers(),
        d_model: lm.d_model(),
        d_vocab: vocabulary(graph, lm),
        writers: lm.writers.iter().map(|w| row(graph, w)).collect(),
        interface: serde_json::to_value(&lm.interface).expect("plain data"),
        tied,
        ..bare(model)
    }
}

/// Describes a model that is refused.
pub fn refused(model: &Model, refusal: &Refusal) -> InspectResult {
    let row = RefusalRow {
        node: refusal.node.clone(),
        op: refusal.op.clone(),
        tensor: refusal.tensor.clone(),
        reason: refusal.reason.clone(),
        hint: refusal.hint.clone(),
    };
    InspectResult { refusals: vec![row], ..bare(model) }
}

fn bare(model: &Model) -> InspectResult {
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
        file_bytes: model.file_len
            + model.external_files().iter().filter_map(|(_, p)| p.metadata().ok()).map(|m| m.len()).sum::<u64>(),
        external_files: model.external_files().into_iter().map(|(location, _)| location).collect(),
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
        treatment: match writer.treatment {
            Treatment::Weights => "weights".into(),
            Treatment::Nodes => "nodes".into(),
        },
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
