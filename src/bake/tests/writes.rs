//! Ablations of chosen writes where a weight serves a write that is chosen and one that is not.

use super::{PLAIN, Spec, Store, build, direction};
use crate::bake::{BakeError, BakePlan, PlanOptions};
use crate::edit::{Ablation, WriteKind, Writes};
use crate::lm::{LanguageModel, ModelConfig, Reason, WriterKind};
use crate::onnx::{Graph, Model};

/// The plan of an ablation of what attention writes.
fn plan(base: &std::path::Path, weights_only: bool) -> Result<BakePlan, BakeError> {
    let model = Model::open(base).unwrap();
    let graph = Graph::new(&model);
    let lm = LanguageModel::new(&graph, &ModelConfig::default()).unwrap();
    let writes = Writes { layers: None, kinds: Some([WriteKind::AttnOut].into()) };
    let edit = Ablation::new(direction()).on(writes).into();
    BakePlan::new(&graph, &lm, &edit, &PlanOptions { weights_only, ..PlanOptions::default() })
}

#[test]
fn only_the_chosen_write_is_edited() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), Spec { bias: true, ..PLAIN }, |_| {});
    let plan = plan(&base, false).unwrap();
    let edited: Vec<(&str, WriterKind)> = plan.tensors.iter().map(|edit| (edit.name.as_str(), edit.kind)).collect();
    assert_eq!(edited, [("o", WriterKind::AttnOut), ("o.bias", WriterKind::AttnOut)]);
    assert!(plan.nodes.is_empty());
    assert!(plan.metadata.contains(&("lancet.writes".into(), "attn_out".into())), "{:?}", plan.metadata);
}

#[test]
fn a_weight_that_another_write_has_too_stays_and_nodes_do_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), Spec { bias: true, ..PLAIN }, |model| {
        let graph = model.graph.as_mut().unwrap();
        let inputs = graph.node.iter_mut().flat_map(|node| &mut node.input);
        inputs.filter(|input| *input == "down.bias").for_each(|input| *input = "o.bias".into());
    });
    let mixed = plan(&base, false).unwrap();
    assert!(mixed.tensors.is_empty(), "{:?}", mixed.tensors);
    let [node] = mixed.nodes.as_slice() else { panic!("{:?}", mixed.nodes) };
    assert_eq!(node.kind, WriterKind::AttnOut);
    assert!(matches!(&node.reason, Reason::Shared { detail } if detail.contains("layer.0.mlp_out")), "{node:?}");
    let refused = plan(&base, true).unwrap_err().to_string();
    assert!(refused.contains("not to be edited"), "{refused}");
}

/// Two tensors on the same bytes: editing one would edit the other.
#[test]
fn bytes_that_another_write_has_too_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), Spec { bias: true, store: Store::OneFile, ..PLAIN }, |model| {
        let graph = model.graph.as_mut().unwrap();
        let find = |graph: &crate::onnx::proto::GraphProto, name: &str| {
            graph.initializer.iter().position(|tensor| tensor.name.as_deref() == Some(name)).unwrap()
        };
        let (of, to) = (find(graph, "o.bias"), find(graph, "down.bias"));
        graph.initializer[to].external_data = graph.initializer[of].external_data.clone();
    });
    assert!(matches!(plan(&base, false), Err(BakeError::Aliased { .. })));
}
