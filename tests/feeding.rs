//! One model with many interfaces: other inputs, other axes, logits of the last token only. What is measured on each is
//! what is measured on the plain graph, or the interface is refused by name; an edit needs none of it.

mod common;

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock};

use common::{Sandbox, fixture, found as found_in, json, only, some_direction, value_info as info};
use lancet::edit::Writes;
use lancet::instrument::Request;
use lancet::lm::ResidPoint;
use lancet::onnx::proto::{
    GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, attr_int, dimension, node,
    type_proto,
};
use lancet::pipeline::Opened;
use lancet::pipeline::divergence::{self, Room};
use lancet::pipeline::engine::{Engine, Generation, Observer, Row, Steering};
use lancet::pipeline::likelihood::{Query, log_likelihoods};
use lancet::pipeline::stage::Stage;
use lancet::runtime::Decoding;
use lancet::runtime::reading::Positions;
use lancet::runtime::session::{Device, Runtime};
use prost::Message;

const INT64: i32 = 7;
const FLOAT: i32 = 1;
const BOOL: i32 = 9;
const INT8: i32 = 3;

/// A copy of the chat fixture with a changed graph.
fn variant(change: impl FnOnce(&mut GraphProto)) -> Sandbox {
    let sandbox = Sandbox::with_fixture("chat");
    let path = sandbox.path("model/model.onnx");
    let mut model = ModelProto::decode(std::fs::read(&path).unwrap().as_slice()).unwrap();
    change(model.graph.as_mut().unwrap());
    std::fs::write(path, model.encode_to_vec()).unwrap();
    sandbox.write_direction("d.safetensors", &some_direction(96));
    sandbox
}

fn ints(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(INT64),
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

fn float(name: &str, value: f32) -> TensorProto {
    TensorProto { name: Some(name.into()), data_type: Some(FLOAT), float_data: vec![value], ..Default::default() }
}

fn declare(graph: &mut GraphProto, name: &str, dtype: i32, dims: &[&str]) {
    let new = info(name, dtype, dims);
    match graph.input.iter_mut().find(|i| i.name.as_deref() == Some(name)) {
        Some(old) => *old = new,
        None => graph.input.push(new),
    }
}

/// Leaves the sizes of every output open.
fn open_outputs(graph: &mut GraphProto) {
    for output in &mut graph.output {
        let Some(type_proto::Value::TensorType(t)) = output.r#type.as_mut().unwrap().value.as_mut() else { continue };
        t.shape = None;
    }
}

/// Lets readers of `from` read `to`.
fn rewire(graph: &mut GraphProto, from: &str, to: &str) {
    for node in &mut graph.node {
        node.input.iter_mut().filter(|i| *i == from).for_each(|i| *i = to.into());
    }
}

fn front(graph: &mut GraphProto, nodes: Vec<NodeProto>) {
    graph.node.splice(0..0, nodes);
}

fn cast(from: &str, to: &str, dtype: i32) -> NodeProto {
    node("Cast", to, &[from], &[to], vec![attr_int("to", i64::from(dtype))])
}

fn turned(from: &str, to: &str) -> NodeProto {
    let mut made = node("Transpose", to, &[from], &[to], vec![]);
    made.attribute.push(lancet::onnx::proto::AttributeProto {
        name: Some("perm".into()),
        ints: vec![1, 0, 2],
        r#type: Some(7), // AttributeProto.INTS
        ..Default::default()
    });
    made
}

/// Position of the node that computes a value.
fn maker(graph: &GraphProto, value: &str) -> usize {
    graph.node.iter().position(|n| n.output.iter().any(|o| o == value)).unwrap()
}

/// Everything that is measured on a model, by prompts of several lengths that share batches where they may.
#[derive(Debug)]
struct Numbers {
    logits: Vec<f32>,
    stream: Vec<f32>,
    answers: Vec<Vec<u32>>,
    likelihoods: Vec<f64>,
    divergence: Vec<f64>,
    positions: Positions,
    notes: usize,
}

/// Counts what is said.
#[derive(Default)]
struct Counted(Mutex<usize>);

impl Observer for Counted {
    fn start(&self, _: &Stage, _: u64) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {
        *self.0.lock().unwrap() += 1;
    }
}

fn prompts() -> Vec<Vec<u32>> {
    [9, 12, 7, 12]
        .iter()
        .zip(0u32..)
        .map(|(n, row)| (0..*n).map(|at| 5 + (37 * at + 11 * row) % 1300).collect())
        .collect()
}

fn numbers(sandbox: &Sandbox, new_tokens: usize) -> Numbers {
    numbers_at(&sandbox.path("model"), new_tokens)
}

fn numbers_at(model: &std::path::Path, new_tokens: usize) -> Numbers {
    let opened = Opened::new(model).unwrap();
    let model = opened.understand().unwrap();
    let runtime = Runtime::load(&common::onnxruntime_library(), Device::Cpu, 1).unwrap();
    let never = AtomicBool::new(false);
    let engine = Engine { runtime: &runtime, model: &model, batch: 4, pad: 0, cancelled: &never, steered: None };
    let prompts = prompts();
    let rows: Vec<Row<'_>> = prompts.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
    let probes = (0..model.lm.n_layers()).map(|layer| (layer, ResidPoint::Pre)).collect();
    let mut session = engine.session(Request { probes, last_positions: 3, logits: 1, ..Request::default() }).unwrap();
    let mut found = vec![(Vec::new(), Vec::new()); rows.len()];
    engine
        .visit(&mut session, &rows, &[], |row| {
            found[row.row] = (row.logits, row.probes.concat());
            Ok(())
        })
        .unwrap();
    let (logits, stream): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let how = Generation { max_new_tokens: new_tokens, stop: vec![], decoding: Decoding::Greedy, samples: 1 };
    let answers = engine.generator().unwrap().answers(&prompts, &how, |_| ()).unwrap();
    let answers: Vec<Vec<u32>> = answers.into_iter().map(|mut samples| samples.remove(0).ids).collect();
    let queries: Vec<Query<'_>> = prompts.iter().map(|tokens| Query { tokens, scored: 4 }).collect();
    let told = Counted::default();
    let likelihoods = log_likelihoods(&engine, &queries, 16, engine.room(), |_| ()).unwrap().concat();
    let length = 96f32.sqrt().recip();
    let steering = Steering {
        directions: vec![vec![length; 96]],
        writes: Writes::default(),
        additions: vec![(2, vec![0.05; 96])],
        gates: Vec::new(),
    };
    let steered = Engine { steered: Some(&steering), ..engine };
    let given: Vec<Vec<u32>> = prompts.iter().map(|tokens| tokens[..2].to_vec()).collect();
    let kl = divergence::measure(&engine, &steered, (&prompts, &given), 3, Room::of(&engine, &steered), &told).unwrap();
    let positions = engine.session(Request { logits: 2, last_positions: 1, ..Request::default() }).unwrap().positions();
    Numbers {
        logits: logits.concat(),
        stream: stream.concat(),
        answers,
        likelihoods,
        divergence: kl.prompts.concat(),
        positions,
        notes: *told.0.lock().unwrap(),
    }
}

fn plain() -> &'static Numbers {
    static PLAIN: OnceLock<Numbers> = OnceLock::new();
    PLAIN.get_or_init(|| numbers_at(&fixture("chat"), 4))
}

#[track_caller]
fn near(what: &str, one: &[f64], other: &[f64], tolerance: f64) {
    assert_eq!(one.len(), other.len(), "{what}");
    let worst = one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let finite = one.iter().chain(other).all(|v| v.is_finite());
    assert!(finite && worst <= tolerance, "{what}: off by {worst:.2e}");
}

#[track_caller]
fn same(sandbox: &Sandbox) -> Numbers {
    let found = numbers(sandbox, 4);
    let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let plain = plain();
    assert!(plain.divergence.iter().any(|kl| *kl > 1e-3), "{:?}", plain.divergence);
    near("logits", &wide(&found.logits), &wide(&plain.logits), 2e-4);
    near("stream", &wide(&found.stream), &wide(&plain.stream), 2e-4);
    near("likelihoods", &found.likelihoods, &plain.likelihoods, 2e-4);
    near("divergence", &found.divergence, &plain.divergence, 2e-4);
    assert_eq!(found.answers, plain.answers);
    found
}

#[test]
fn the_plain_graph_returns_every_position() {
    assert_eq!((plain().positions, plain().notes), (Positions::Every, 0));
    assert!(plain().answers.iter().all(|answer| answer.len() == 4));
}

#[test]
fn logits_of_the_last_token_only_are_measured_by_prefixes() {
    // sliced behind the unembedding `[B, 1, V]`
    let behind = variant(|graph| {
        let last = maker(graph, "logits");
        graph.node[last].output[0] = "all".into();
        graph.initializer.extend([
            ints("lo.from", &[1], &[-1]),
            ints("lo.to", &[1], &[i64::MAX]),
            ints("lo.axis", &[1], &[1]),
        ]);
        graph.node.push(node("Slice", "lo", &["all", "lo.from", "lo.to", "lo.axis"], &["logits"], vec![]));
        open_outputs(graph);
    });
    // picked before it: `[B, V]`, of no declared rank
    let before = variant(|graph| {
        let last = maker(graph, "logits");
        let activation = std::mem::replace(&mut graph.node[last].input[0], "lo.picked".into());
        graph.initializer.push(ints("lo.last", &[], &[-1]));
        graph
            .node
            .insert(last, node("Gather", "lo", &[&activation, "lo.last"], &["lo.picked"], vec![attr_int("axis", 1)]));
        open_outputs(graph);
    });
    // picked by the mask, as if padding were on the right: rows of one length only may share a run
    let by_mask = variant(|graph| {
        let last = maker(graph, "logits");
        let activation = std::mem::replace(&mut graph.node[last].input[0], "lo.picked".into());
        graph.initializer.extend([
            ints("lo.1", &[1], &[1]),
            ints("lo.one", &[1, 1], &[1]),
            ints("lo.to", &[1], &[i64::MAX]),
        ]);
        let nodes = [
            node("Shape", "lo.shape", &["input_ids"], &["lo.sizes"], vec![]),
            node("Gather", "lo.gather", &["lo.sizes", "lo.1"], &["lo.tokens"], vec![]),
            node("Neg", "lo.neg", &["lo.tokens"], &["lo.from"], vec![]),
            node("Slice", "lo.slice", &["attention_mask", "lo.from", "lo.to", "lo.1"], &["lo.mask"], vec![]),
            node("ReduceSum", "lo.sum", &["lo.mask", "lo.1"], &["lo.count"], vec![attr_int("keepdims", 1)]),
            node("Sub", "lo.sub", &["lo.count", "lo.one"], &["lo.index"], vec![]),
            node("GatherND", "lo", &[&activation, "lo.index"], &["lo.picked"], vec![attr_int("batch_dims", 1)]),
        ];
        graph.node.splice(last..last, nodes);
        open_outputs(graph);
    });
    for (name, sandbox) in [("behind", behind), ("before", before), ("by mask", by_mask)] {
        let found = same(&sandbox);
        assert_eq!((found.positions, found.notes), (Positions::Last, 1), "{name}");
    }
}

#[test]
fn a_time_major_stream_gives_the_plain_numbers() {
    let sandbox = variant(|graph| {
        let embedding = "/model/embed_tokens/Gather_output_0";
        for one in &mut graph.node {
            if one.op() != "Shape" {
                one.input.iter_mut().filter(|i| *i == embedding).for_each(|i| *i = "tm.start".into());
            }
        }
        let at = maker(graph, embedding);
        graph.node.insert(at + 1, turned(embedding, "tm.start"));
        for layer in 0..6 {
            let normed = format!("/model/layers.{layer}/input_layernorm/Mul_1_output_0");
            let back = format!("tm.{layer}.normed");
            rewire(graph, &normed, &back);
            let at = maker(graph, &normed);
            graph.node.insert(at + 1, turned(&normed, &back));
            let write = format!("/model/layers.{layer}/self_attn/o_proj/MatMul_output_0");
            let there = format!("tm.{layer}.write");
            rewire(graph, &write, &there);
            let at = maker(graph, &write);
            graph.node.insert(at + 1, turned(&write, &there));
        }
        let last = maker(graph, "logits");
        let activation = std::mem::replace(&mut graph.node[last].input[0], "tm.last".into());
        graph.node.insert(last, turned(&activation, "tm.last"));
    });
    same(&sandbox);
}

#[test]
fn masks_of_other_types_and_ranks_are_made_as_the_graph_takes_them() {
    let added = |graph: &mut GraphProto| {
        graph.initializer.push(float("mk.bound", -1.0));
        rewire(graph, "attention_mask", "mk.ints");
    };
    let whole = |from: &str| {
        vec![
            node("Greater", "mk.greater", &[from, "mk.bound"], &["mk.keeps"], vec![]),
            cast("mk.keeps", "mk.ints", INT64),
        ]
    };
    let two = variant(|graph| {
        added(graph);
        declare(graph, "attention_mask", FLOAT, &["batch", "keys"]);
        front(graph, whole("attention_mask"));
    });
    let four = variant(|graph| {
        added(graph);
        declare(graph, "attention_mask", FLOAT, &["batch", "1", "queries", "keys"]);
        graph.initializer.extend([
            ints("mk.from", &[1], &[-1]),
            ints("mk.to", &[1], &[i64::MAX]),
            ints("mk.axis", &[1], &[2]),
            ints("mk.axes", &[2], &[1, 2]),
        ]);
        let mut nodes = vec![
            node("Slice", "mk.slice", &["attention_mask", "mk.from", "mk.to", "mk.axis"], &["mk.row"], vec![]),
            node("Squeeze", "mk.squeeze", &["mk.row", "mk.axes"], &["mk.two"], vec![]),
        ];
        nodes.extend(whole("mk.two"));
        front(graph, nodes);
    });
    let boolean = variant(|graph| {
        rewire(graph, "attention_mask", "mk.ints");
        declare(graph, "attention_mask", BOOL, &["batch", "keys"]);
        front(graph, vec![cast("attention_mask", "mk.ints", INT64)]);
    });
    // 1 hides a token
    let inverse = variant(|graph| {
        rewire(graph, "attention_mask", "mk.ints");
        declare(graph, "attention_mask", BOOL, &["batch", "keys"]);
        graph.initializer.extend([
            ints("mk.none", &[], &[0]),
            ints("mk.one", &[], &[1]),
            float("mk.low", -1e9),
            float("mk.zero", 0.0),
            float("mk.bound", -1.0),
        ]);
        let mut nodes =
            vec![node("Where", "mk.where", &["attention_mask", "mk.low", "mk.zero"], &["mk.added"], vec![])];
        nodes.extend(whole("mk.added"));
        front(graph, nodes);
    });
    for sandbox in [two, four, boolean, inverse] {
        same(&sandbox);
    }
}

#[test]
fn positions_and_tokens_of_other_ranks_are_fed() {
    let rope = variant(|graph| {
        rewire(graph, "position_ids", "mr.rows");
        declare(graph, "position_ids", INT64, &["3", "batch", "sequence"]);
        graph.initializer.push(ints("mr.first", &[], &[0]));
        front(
            graph,
            vec![node("Gather", "mr", &["position_ids", "mr.first"], &["mr.rows"], vec![attr_int("axis", 0)])],
        );
    });
    let places = variant(|graph| {
        rewire(graph, "position_ids", "cp.rows");
        graph.input.retain(|i| i.name.as_deref() != Some("position_ids"));
        declare(graph, "cache_position", INT64, &["sequence"]);
        graph.initializer.push(ints("cp.axis", &[1], &[0]));
        front(graph, vec![node("Unsqueeze", "cp", &["cache_position", "cp.axis"], &["cp.rows"], vec![])]);
    });
    let flat = variant(|graph| {
        rewire(graph, "input_ids", "fl.rows");
        declare(graph, "input_ids", INT64, &["sequence"]);
        graph.initializer.push(ints("fl.axis", &[1], &[0]));
        front(graph, vec![node("Unsqueeze", "fl", &["input_ids", "fl.axis"], &["fl.rows"], vec![])]);
    });
    for sandbox in [rope, places, flat] {
        same(&sandbox);
    }
}

/// Sets the declared dimensions of every part of the cache.
fn past(graph: &mut GraphProto, dtype: i32, dims: &[&str]) {
    let names: Vec<String> =
        graph.input.iter().filter_map(|i| i.name.clone()).filter(|n| n.starts_with("past")).collect();
    names.iter().for_each(|name| declare(graph, name, dtype, dims));
}

#[test]
fn fixed_sizes_are_filled_up() {
    let cache = variant(|graph| {
        past(graph, FLOAT, &["1", "2", "32", "24"]);
        open_outputs(graph);
    });
    let tokens = variant(|graph| {
        for name in ["input_ids", "position_ids", "attention_mask"] {
            declare(graph, name, INT64, &["1", "24"]);
        }
        past(graph, FLOAT, &["1", "2", "0", "24"]);
        open_outputs(graph);
    });
    for sandbox in [cache, tokens] {
        same(&sandbox);
    }
}

#[test]
fn sparse_weights_and_adapters_and_defaults_change_nothing() {
    let down = "/model/layers.3/mlp/down_proj/MatMul_output_0";
    let sparse = variant(|graph| {
        let weight = graph.node[maker(graph, down)].input[1].clone();
        let at = graph.initializer.iter().position(|t| t.name.as_ref() == Some(&weight)).unwrap();
        let dense = graph.initializer.remove(at);
        let n = dense.dims.iter().product::<i64>();
        let indices = ints("", &[n], &(0..n).collect::<Vec<i64>>());
        let dims = dense.dims.clone();
        let values = TensorProto { dims: vec![n], ..dense };
        graph.sparse_initializer.push(SparseTensorProto { values: Some(values), indices: Some(indices), dims });
    });
    let adapter = |defaults: bool| {
        variant(move |graph| {
            let at = maker(graph, down);
            let read = graph.node[at].input[0].clone();
            graph.node[at].output[0] = "ad.base".into();
            let nodes = [
                node("MatMul", "ad.a", &[&read, "lora_A"], &["ad.narrow"], vec![]),
                node("MatMul", "ad.b", &["ad.narrow", "lora_B"], &["ad.added"], vec![]),
                node("Add", "ad.sum", &["ad.base", "ad.added"], &[down], vec![]),
            ];
            graph.node.splice(at + 1..at + 1, nodes);
            for (name, dims) in [("lora_A", ["240", "4"]), ("lora_B", ["4", "96"])] {
                declare(graph, name, FLOAT, &dims);
                if defaults {
                    let dims: Vec<i64> = dims.iter().map(|d| d.parse().unwrap()).collect();
                    let float_data = vec![0.0; usize::try_from(dims[0] * dims[1]).unwrap()];
                    let name = Some(name.into());
                    let data_type = Some(FLOAT);
                    graph.initializer.push(TensorProto { name, dims, data_type, float_data, ..Default::default() });
                }
            }
        })
    };
    same(&sparse);
    for defaults in [false, true] {
        let sandbox = adapter(defaults);
        let mut bake = sandbox.lancet(&["bake", "model", "--direction", "d.safetensors", "-o", "out"]);
        assert!(bake.output().unwrap().status.success());
        let baked = Opened::new(&sandbox.path("out")).unwrap();
        assert!(baked.understand().unwrap().lm.interface.unfed.is_none());
        let opened = Opened::new(&sandbox.path("model")).unwrap();
        // how an adapter's block is told is the trace's own matter
        if opened.understand().is_ok_and(|model| model.lm.n_layers() == 6) {
            same(&sandbox);
        }
    }
}

#[test]
fn a_quantised_cache_is_fed_and_returned() {
    let sandbox = variant(|graph| {
        graph.initializer.push(float("kv.scale", 0.02));
        graph.initializer.push(TensorProto {
            name: Some("kv.zero".into()),
            data_type: Some(INT8),
            int32_data: vec![0],
            ..Default::default()
        });
        past(graph, INT8, &["batch", "2", "past", "24"]);
        let names = |infos: &[ValueInfoProto], stem: &str| -> Vec<String> {
            infos.iter().filter_map(|i| i.name.clone()).filter(|n| n.starts_with(stem)).collect()
        };
        let mut first = Vec::new();
        for name in names(&graph.input, "past") {
            let wide = format!("{name}.wide");
            rewire(graph, &name, &wide);
            first.push(node("DequantizeLinear", &wide, &[&name, "kv.scale", "kv.zero"], &[&wide], vec![]));
        }
        for name in names(&graph.output, "present") {
            let wide = format!("{name}.wide");
            rewire(graph, &name, &wide);
            let at = maker(graph, &name);
            graph.node[at].output.iter_mut().filter(|o| **o == name).for_each(|o| o.clone_from(&wide));
            graph.node.push(node("QuantizeLinear", &name, &[&wide, "kv.scale", "kv.zero"], &[&name], vec![]));
            let output = graph.output.iter_mut().find(|o| o.name.as_ref() == Some(&name)).unwrap();
            *output = info(&name, INT8, &["batch", "2", "total", "24"]);
        }
        front(graph, first);
    });
    // without a past nothing is rounded; one new token is made without one
    let found = numbers(&sandbox, 3);
    let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    near("logits", &wide(&found.logits), &wide(&plain().logits), 2e-4);
    near("stream", &wide(&found.stream), &wide(&plain().stream), 2e-4);
    for (one, other) in found.answers.iter().zip(&plain().answers) {
        assert_eq!((one.len(), one[0]), (3, other[0]));
    }
}

#[test]
fn what_cannot_be_fed_is_edited_all_the_same_and_said() {
    let unknown = variant(|graph| {
        declare(graph, "write_indices", INT64, &["batch"]);
        graph.initializer.extend([ints("sc.zero", &[], &[0]), ints("sc.axis", &[1], &[1])]);
        rewire(graph, "position_ids", "sc.sum");
        front(
            graph,
            vec![
                node("Mul", "sc.mul", &["write_indices", "sc.zero"], &["sc.none"], vec![]),
                node("Unsqueeze", "sc.un", &["sc.none", "sc.axis"], &["sc.column"], vec![]),
                node("Add", "sc.add", &["position_ids", "sc.column"], &["sc.sum"], vec![]),
            ],
        );
    });
    let dark = variant(|graph| {
        // nothing shows what a float of the mask means
        rewire(graph, "attention_mask", "mk.ints");
        declare(graph, "attention_mask", FLOAT, &["batch", "keys"]);
        graph.initializer.push(float("mk.scale", 1.0));
        front(
            graph,
            vec![node("Erf", "mk.erf", &["attention_mask"], &["mk.odd"], vec![]), cast("mk.odd", "mk.ints", INT64)],
        );
    });
    for (sandbox, input, words) in [
        (unknown, "write_indices", "an input that Lancet does not know"),
        (dark, "attention_mask", "does not show which values hide"),
    ] {
        let inspected = json(&mut sandbox.lancet(&["inspect", "model", "--json"]), 0);
        let found = &only(&inspected)["inspect"];
        assert_eq!(found["interface"]["unfed"]["tensor"], input);
        assert_eq!(found["writers"].as_array().unwrap().len(), 13);
        assert_eq!(found["refusals"], serde_json::json!([]));
        let text = sandbox.lancet(&["inspect", "model"]).output().unwrap();
        let text = String::from_utf8_lossy(&text.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("Not run") && text.contains(words), "{text}");
        let bake = sandbox.lancet(&["bake", "model", "--direction", "d.safetensors", "-o", "out"]).output().unwrap();
        assert!(bake.status.success(), "{}", String::from_utf8_lossy(&bake.stderr));
        common::onnx_runtime();
        let arguments = ["verify", "model", "out", "--direction", "d.safetensors", "--json"];
        let verify = sandbox.lancet(&arguments).output().unwrap();
        let verify: serde_json::Value = serde_json::from_slice(&verify.stdout).unwrap();
        let unchecked = only(&verify)["verify"]["unchecked"].to_string();
        assert!(unchecked.contains("not run") && unchecked.contains(input), "{verify}");
        assert_eq!(found_in(&verify, "failures"), Vec::<serde_json::Value>::new());
        let words = [words, input, "hint: "];
        sandbox.refused_without_hint(&mut sandbox.lancet(&["collect", "model", "-o", "a"]), 1, &words);
        sandbox.refused_without_hint(&mut sandbox.lancet(&["eval", "model"]), 1, &words);
    }
}

#[test]
fn a_buffer_of_fixed_length_is_filled_from_its_begin() {
    let answers = |length: Option<i64>| {
        let sandbox = Sandbox::with_fixture("zoo/llama/genai-fp32");
        let path = sandbox.path("model/model.onnx");
        let mut model = ModelProto::decode(std::fs::read(&path).unwrap().as_slice()).unwrap();
        let graph = model.graph.as_mut().unwrap();
        for input in graph.input.iter_mut().filter(|i| i.name.as_ref().unwrap().starts_with("past")) {
            let Some(type_proto::Value::TensorType(t)) = input.r#type.as_mut().unwrap().value.as_mut() else {
                continue;
            };
            let dims = &mut t.shape.as_mut().unwrap().dim;
            if let Some(n) = length {
                dims[2].value = Some(dimension::Value::DimValue(n));
            }
        }
        open_outputs(graph);
        std::fs::write(path, model.encode_to_vec()).unwrap();
        let opened = Opened::new(&sandbox.path("model")).unwrap();
        let model = opened.understand().unwrap();
        let runtime = Runtime::load(&common::onnxruntime_library(), Device::Cpu, 1).unwrap();
        let never = AtomicBool::new(false);
        let engine = Engine { runtime: &runtime, model: &model, batch: 4, pad: 0, cancelled: &never, steered: None };
        let prompts: Vec<Vec<u32>> = prompts().iter().map(|p| p.iter().map(|t| t % 32).collect()).collect();
        let how = Generation { max_new_tokens: 20, stop: vec![], decoding: Decoding::Greedy, samples: 1 };
        engine.generator().unwrap().answers(&prompts, &how, |_| ()).unwrap()
    };
    let (open, fixed) = (answers(None), answers(Some(24)));
    for (prompt, (open, fixed)) in prompts().iter().zip(open.iter().zip(&fixed)) {
        // an answer ends where the buffer does
        let room = 25 - prompt.len();
        assert_eq!(fixed[0].ids, open[0].ids[..room.min(20)]);
    }
}

#[test]
fn values_of_names_that_a_session_needs_are_refused_by_name() {
    for (name, command) in [("lancet.logits", "eval"), ("lancet.rows", "verify")] {
        let sandbox = variant(|graph| {
            let inner = graph.node[0].output[0].clone();
            for node in &mut graph.node {
                node.input.iter_mut().chain(&mut node.output).filter(|value| **value == inner).for_each(|value| {
                    *value = name.into();
                });
            }
        });
        let words = ["bake", "model", "--direction", "d.safetensors", "-o", "out", "--bytes-only"];
        assert!(sandbox.lancet(&words).output().unwrap().status.success(), "the edit needs no session");
        let words = "has a value named";
        if command == "eval" {
            sandbox.refused(&mut sandbox.lancet(&["eval", "model"]), 1, &[words, name]);
        } else {
            let verify = ["verify", "model", "out", "--direction", "d.safetensors", "--json"];
            let found = json(&mut sandbox.lancet(&verify), 1);
            let failures = found_in(&found, "failures");
            assert!(failures.iter().any(|f| f.as_str().unwrap().contains(&format!("{words} `{name}`"))), "{found}");
        }
    }
}

#[test]
fn experts_packed_for_another_provider_are_edited_and_not_run() {
    let sandbox = Sandbox::new();
    common::copy_folder(&fixture("quant/genai-qmoe-cuda"), &sandbox.path("model"));
    sandbox.write_direction("d.safetensors", &some_direction(256));
    let found = json(&mut sandbox.lancet(&["inspect", "model", "--json"]), 0);
    let interface = &only(&found)["inspect"]["interface"];
    assert!(interface["unfed"].is_null(), "CUDA runs it: {interface}");
    let refusal = &interface["cuda_only"];
    assert_eq!(refusal["op"], "com.microsoft.QMoE");
    assert!(refusal["reason"].as_str().unwrap().contains("packed for CUDA"), "{refusal}");
    json(&mut sandbox.lancet(&["bake", "model", "--direction", "d.safetensors", "-o", "out", "--json"]), 0);
    let verify = ["verify", "model", "out", "--direction", "d.safetensors", "--json"];
    let verified = json(&mut sandbox.lancet(&verify), 0);
    let unchecked = only(&verified)["verify"]["unchecked"].to_string();
    assert!(unchecked.contains("neither loaded nor run"), "{unchecked}");
}
