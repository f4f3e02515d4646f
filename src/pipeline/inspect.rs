//! What a model is, as data.

use std::collections::BTreeMap;

use super::opened::{Opened, Understood};
use super::package::{Package, Variant, VariantRole};
use super::understood::UnderstoodVariant;
use crate::error::Error;
use crate::lm::{EmbeddingFile, Refusal, Writer, tensor_label};
use crate::onnx::ops::{WeightUse, Weighted};
use crate::onnx::{Graph, Model};
use crate::report::{InspectResult, InspectShared, PackageInspect, VariantInspect, WriterRow};

/// Describes an understood model.
pub fn describe(opened: &Opened, model: &Understood<'_>) -> InspectResult {
    let lm = &model.lm;
    let tied = model.writers().filter(|(_, writer)| writer.tied);
    InspectResult {
        n_layers: lm.n_layers(),
        d_model: lm.d_model(),
        d_vocab: model.vocabulary(),
        tied: tied.filter_map(|(graph, w)| Some(tensor_label(graph, w.weights.first()?.tensor))).collect(),
        writers: model.writers().map(|(graph, writer)| row(graph, writer)).collect(),
        interface: Some(lm.interface.clone()),
        ..bare(opened)
    }
}

/// Describes a model that is refused.
pub fn refused(opened: &Opened, refusal: &Refusal) -> InspectResult {
    InspectResult { refusals: vec![refusal.clone()], ..bare(opened) }
}

/// Describes variants of a package: the picked one, or all of them.
pub fn package(package: &Package, picked: Option<&Variant>) -> PackageInspect {
    let chosen = |variant: &&Variant| picked.is_none_or(|picked| picked.relative == variant.relative);
    let shared = InspectShared {
        model: package.named().display().to_string(),
        copied: package.copied_rows(),
        left_out: package.left_out_rows(),
    };
    PackageInspect::new(shared, package.variants.iter().filter(chosen).map(variant).collect())
}

/// What the weights of a variant that was understood are held in, and what it is.
pub fn understood(base: &UnderstoodVariant<'_>) -> (String, InspectResult) {
    match &base.model {
        Some(model) => (precision(&model.graphs()), describe(base.opened, model)),
        None => embedding(&base.opened.model),
    }
}

fn variant(variant: &Variant) -> VariantInspect {
    let (precision, inspect) = match (variant.role, variant.opened()) {
        (_, Err(error)) => (String::new(), unreadable(variant, &error)),
        (VariantRole::Embedding, Ok(opened)) => embedding(&opened.model),
        (VariantRole::Model, Ok(opened)) => match opened.understand() {
            Ok(model) => (precision(&model.graphs()), describe(opened, &model)),
            Err(refusal) => {
                let graphs: Vec<Graph<'_>> = opened.models().map(Graph::new).collect();
                (precision(&graphs.iter().collect::<Vec<_>>()), refused(opened, &refusal))
            }
        },
    };
    VariantInspect { model: variant.name.clone(), precision, inspect }
}

/// The same of an embedding file that goes with no model by its name.
fn embedding(model: &Model) -> (String, InspectResult) {
    let mut found = file(&[model]);
    let graph = Graph::new(model);
    let held = precision(&[&graph]);
    match EmbeddingFile::new(graph, None, None) {
        Ok(file) => {
            let shape = file.writer.weights.first().map(|w| &file.graph.model.tensor(w.tensor).shape);
            found.d_model = shape.and_then(|s| usize::try_from(*s.last()?).ok()).unwrap_or(0);
            found.writers = vec![row(&file.graph, &file.writer)];
        }
        Err(refusal) => found.refusals = vec![refusal],
    }
    (held, found)
}

/// Describes a file that cannot be read.
fn unreadable(variant: &Variant, error: &Error) -> InspectResult {
    let hint = error.hint().unwrap_or_default();
    let row = Refusal { node: "(file)".into(), reason: error.chain(), hint, ..Default::default() };
    let model = variant.files.onnx.display().to_string();
    InspectResult { model, refusals: vec![row], ..InspectResult::default() }
}

/// What weights are held in, in words: `float16`, or `4 bits (MatMulNBits), float16` with the widest float type of
/// the rest by bytes.
pub fn precision(graphs: &[&Graph<'_>]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut floats: BTreeMap<&str, u64> = BTreeMap::new();
    for graph in graphs {
        for node in graph.nodes() {
            let Some(Weighted { work, layout, .. }) = graph.weighted(node) else { continue };
            let held = match (work, layout.words(graph.node(node))) {
                (_, Some(words)) => words,
                (WeightUse::Dequantises, None) => {
                    match graph.input(node, 0).and_then(|value| graph.tensor_ref(value)) {
                        Some(tensor) => format!("{} ({})", tensor.dtype.name(), graph.op(node)),
                        None => continue,
                    }
                }
                (_, None) => continue,
            };
            if !words.contains(&held) {
                words.push(held);
            }
        }
        for tensor in graph.model.tensors.iter().filter(|t| t.dtype.is_float()) {
            *floats.entry(tensor.dtype.name()).or_default() += tensor.shape.iter().product::<u64>();
        }
    }
    words.sort();
    words.extend(floats.into_iter().max_by_key(|(_, n)| *n).map(|(name, _)| name.to_string()));
    words.join(", ")
}

fn bare(opened: &Opened) -> InspectResult {
    file(&opened.models().collect::<Vec<_>>())
}

/// What a file says of itself; the model first, then its embedding file.
fn file(models: &[&Model]) -> InspectResult {
    let model = models[0];
    let proto = &model.skeleton;
    let producer = [proto.producer_name.as_deref(), proto.producer_version.as_deref()];
    InspectResult {
        model: model.path.display().to_string(),
        n_layers: 0,
        d_model: 0,
        d_vocab: None,
        writers: Vec::new(),
        refusals: Vec::new(),
        interface: None,
        opset: model.opset("").or_else(|| model.opset("ai.onnx")).unwrap_or(0),
        ir_version: proto.ir_version.unwrap_or(0),
        producer: producer.into_iter().flatten().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" "),
        file_bytes: models
            .iter()
            .map(|m| {
                let external = m.external_files();
                m.file_len + external.iter().filter_map(|(_, p)| p.metadata().ok()).map(|m| m.len()).sum::<u64>()
            })
            .sum(),
        external_files: models[1..]
            .iter()
            .filter_map(|m| Some(m.path.file_name()?.to_string_lossy().into_owned()))
            .chain(models.iter().flat_map(|m| m.external_files().into_iter().map(|(location, _)| location)))
            .collect(),
        tied: Vec::new(),
    }
}

fn row(graph: &Graph<'_>, writer: &Writer) -> WriterRow {
    let target = writer.weights.first();
    let tensor = target.map(|t| graph.model.tensor(t.tensor));
    let value = writer.writes[0].value;
    WriterRow {
        kind: writer.kind,
        layer: writer.layer.map(|l| l.0),
        initializer: target.map(|t| tensor_label(graph, t.tensor)),
        n_weights: writer.weights.len(),
        dtype: match target.and_then(|t| t.quantised) {
            Some(quantised) => Some(quantised.words()),
            None => tensor.map(|t| t.dtype).or_else(|| graph.elem_type(value)).map(|d| d.name().to_string()),
        },
        shape: target.map(|t| t.shape(graph.model)),
        treatment: writer.treatment,
        reason: writer.reason.clone(),
    }
}
