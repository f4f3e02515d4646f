//! What prompts share - a run, and the cache of their beginning - changes no number: also in graphs that bear it only where
//! prompts are short, or not at all.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use common::{Sandbox, fixture};
use lancet::instrument::Request;
use lancet::onnx::proto::{GraphProto, ModelProto, TensorProto, attr_int, node};
use lancet::pipeline::Opened;
use lancet::pipeline::engine::{Engine, Row};
use lancet::runtime::batch::Splitting;
use lancet::runtime::session::{Device, Runtime};
use prost::Message;

/// Prompts of other lengths that begin alike, of tokens that every model here has.
fn prompts() -> Vec<Vec<u32>> {
    let begin: Vec<u32> = (0..20).map(|at| 2 + 5 * at % 22).collect();
    let rest = |row: u32| (0..4 + 3 * row).map(move |at| 2 + (7 * at + 11 * row) % 22);
    (0..4).map(|row| begin.iter().copied().chain(rest(row)).collect()).collect()
}

/// Logits of every prompt, at most `batch` a run, and whether beginnings were shared. `splitting` is taken for granted.
fn logits(path: &Path, batch: usize, splitting: Option<Splitting>) -> (Vec<Vec<f32>>, bool) {
    let opened = Opened::new(path).unwrap();
    let model = opened.understand().unwrap();
    if let Some(way) = splitting {
        model.splitting.set(way).unwrap();
    }
    let runtime = Runtime::load(&common::onnxruntime_library(), Device::Cpu, 1).unwrap();
    let cancelled = AtomicBool::new(false);
    let engine = Engine { runtime: &runtime, model: &model, batch, pad: 0, cancelled: &cancelled, steered: None };
    let mut session = engine.session(Request { logits: 1, last_positions: 1, ..Request::default() }).unwrap();
    let prompts = prompts();
    let rows: Vec<Row<'_>> = prompts.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
    let mut logits = vec![Vec::new(); rows.len()];
    engine
        .visit(&mut session, &rows, &[], |found| {
            logits[found.row] = found.logits;
            Ok(())
        })
        .unwrap();
    let compared = *model.compared.lock().unwrap();
    (logits, compared != (0, 0))
}

/// The bundled chat model with another graph.
fn variant(change: impl FnOnce(&mut GraphProto)) -> Sandbox {
    let sandbox = Sandbox::with_fixture("chat");
    let path = sandbox.path("model/model.onnx");
    let mut model = ModelProto::decode(std::fs::read(&path).unwrap().as_slice()).unwrap();
    change(model.graph.as_mut().unwrap());
    std::fs::write(path, model.encode_to_vec()).unwrap();
    sandbox
}

fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: vec![values.len() as i64],
        data_type: Some(7),
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

#[track_caller]
fn same(one: &[Vec<f32>], other: &[Vec<f32>]) {
    for (at, (a, b)) in one.iter().zip(other).enumerate() {
        let off = a.iter().zip(b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(!a.is_empty() && a.len() == b.len() && off < 1e-3, "prompt {at}: {off}");
    }
}

#[test]
fn a_beginning_is_shared_where_the_graph_bears_it() {
    let path = fixture("chat").join("model.onnx");
    let (shared, compared) = logits(&path, 4, None);
    assert!(compared);
    let (whole, compared) = logits(&path, 1, Some(Splitting::Never));
    assert!(!compared);
    same(&shared, &whole);
}

/// Rotary angles of another scale as soon as there are more than 22 tokens, as long-context models switch them: the
/// beginning alone is shorter, each prompt is longer.
#[test]
fn angles_that_change_with_the_length_are_noticed() {
    let sandbox = variant(|graph| {
        let used = "scaled_positions";
        for input in graph.node.iter_mut().flat_map(|node| &mut node.input).filter(|input| *input == "position_ids") {
            *input = used.into();
        }
        graph.initializer.extend([ints("one", &[1]), ints("most", &[22]), ints("three", &[3])]);
        let first = [
            node("Shape", "all", &["attention_mask"], &["mask_shape"], vec![]),
            node("Gather", "keys", &["mask_shape", "one"], &["n_keys"], vec![attr_int("axis", 0)]),
            node("Greater", "many", &["n_keys", "most"], &["is_long"], vec![]),
            node("Where", "factor", &["is_long", "three", "one"], &["position_factor"], vec![]),
            node("Mul", "scale", &["position_ids", "position_factor"], &[used], vec![]),
        ];
        graph.node.splice(0..0, first);
    });
    let path = sandbox.path("model/model.onnx");
    let (found, _) = logits(&path, 4, None);
    let (whole, _) = logits(&path, 1, Some(Splitting::Never));
    same(&found, &whole);
}

/// The graph returns the last 14 positions of its cache only.
#[test]
fn a_cache_that_is_cut_in_the_graph_is_noticed() {
    let sandbox = variant(|graph| {
        let mut kept = Vec::new();
        for value in graph.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
            if let Some(part) = value.strip_prefix("present.") {
                let grown = format!("grown.{part}");
                kept.push((grown.clone(), value.clone()));
                *value = grown;
            }
        }
        kept.sort();
        kept.dedup();
        assert_eq!(kept.len(), 12);
        graph.initializer.extend([ints("from", &[-14]), ints("to", &[i64::MAX]), ints("positions_axis", &[2])]);
        graph.node.extend(kept.iter().map(|(grown, present)| {
            node("Slice", &format!("cut {present}"), &[grown, "from", "to", "positions_axis"], &[present], vec![])
        }));
    });
    let path = sandbox.path("model/model.onnx");
    let (found, compared) = logits(&path, 4, None);
    assert!(!compared, "a beginning of 20 tokens was found in a cache of 14");
    let (whole, _) = logits(&path, 1, Some(Splitting::Never));
    same(&found, &whole);
}

/// One scale for all rows: what a row becomes would depend on the others.
#[test]
fn rows_that_are_rounded_by_one_scale_run_alone() {
    for name in ["dynamic-int8", "dynamic-int8-fused", "dynamic-uint8"] {
        let path = fixture("quant").join(format!("{name}.onnx"));
        let (one, _) = logits(&path, 1, None);
        let (many, compared) = logits(&path, 4, None);
        assert_eq!(one, many, "{name}");
        assert!(!compared, "{name}");
    }
}
