//! Residual streams that are written in unusual ways: fused into a product, along other axes, behind adapters that a
//! caller feeds, through operators that hide types. Each changed fixture computes what the plain one does, so that
//! PyTorch's values of that one hold for it; what cannot be followed is refused by name.

mod common;
#[path = "common/zoo.rs"]
#[allow(dead_code, reason = "`tests/zoo.rs` checks the rest")]
mod zoo;

use std::time::{Duration, Instant};

use common::{Sandbox, fixture};
use lancet::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attr_int, node, type_proto,
};
use lancet::runtime::session::{Device, Runtime};
use prost::Message;

/// A fixture of two layers: `x + s * (h W)` four times, the embedding scaled by a number too.
const PLAIN: &str = "zoo/granite/dynamo18/model.onnx";

/// Its sums: what it is called, the stream before, the scaled write, the product, the activation and the weight.
const SUMS: [[&str; 6]; 4] = [
    ["add_7", "mul", "mul_57", "linear_3", "view_11", "val_227"],
    ["add_9", "add_7", "mul_61", "linear_6", "mul_60", "val_236"],
    ["add_14", "add_9", "mul_115", "linear_10", "view_17", "val_382"],
    ["add_16", "add_14", "mul_119", "linear_13", "mul_118", "val_390"],
];

/// The number that writes are scaled by.
const SCALE: &str = "val_228";

const D: i64 = 32;

/// What of a changed fixture is compared with PyTorch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// Logits of the baked file, logits under run-time ablation, the stream.
    All,
    /// The same without the stream.
    Logits,
}

fn changed(change: impl FnOnce(&mut GraphProto)) -> Sandbox {
    let sandbox = Sandbox::new();
    let mut model = ModelProto::decode(std::fs::read(fixture(PLAIN)).unwrap().as_slice()).unwrap();
    change(model.graph.as_mut().unwrap());
    for entry in std::fs::read_dir(fixture(PLAIN).parent().unwrap()).unwrap().map(Result::unwrap) {
        if entry.path().extension().is_none_or(|e| e != "onnx") {
            sandbox.write(&format!("m/{}", entry.file_name().to_string_lossy()), std::fs::read(entry.path()).unwrap());
        }
    }
    sandbox.write("m/model.onnx", model.encode_to_vec());
    let direction: Vec<f32> = (0..D).map(|i| if i % 3 == 0 { 0.25 } else { -0.125 }).collect();
    sandbox.write_direction("d.safetensors", &direction);
    sandbox
}

/// Edits the changed fixture by the reference direction and compares with PyTorch. Returns how many writers were
/// treated by weights and by nodes.
#[track_caller]
fn exact(sandbox: &Sandbox, compared: Compared) -> (usize, usize) {
    let entry: zoo::Entry = serde_json::from_value(serde_json::json!({
        "arch": "granite", "exporter": "strange", "dtype": "float32", "model": sandbox.path("m/model.onnx"),
    }))
    .unwrap();
    let runtime = Runtime::load(&common::onnxruntime_library(), Device::Cpu, 1).unwrap();
    let edited = match zoo::check(&entry, &runtime) {
        zoo::Outcome::Edited(edited) => edited,
        zoo::Outcome::Refused(reason) => panic!("refused: {reason}"),
    };
    let failures: Vec<&String> = match compared {
        Compared::All => edited.failures.iter().collect(),
        Compared::Logits => edited.failures.iter().filter(|f| !f.contains("the stream cannot be read")).collect(),
    };
    assert!(failures.is_empty(), "{failures:?}");
    let (stream, logits, _) = zoo::bounds("float32");
    assert!(edited.logits_error <= logits && edited.ablation_relative <= logits, "{edited:?}");
    assert!(compared == Compared::Logits || edited.stream_error <= stream, "{edited:?}");
    assert_eq!(edited.writers, (1, 2, 2), "{edited:?}");
    (edited.weights, edited.nodes)
}

/// Both `bake` and `inspect` refuse, with these words.
#[track_caller]
fn refused(sandbox: &Sandbox, words: &[&str]) {
    sandbox.refused_without_hint(
        &mut sandbox.lancet(&["bake", "m", "--direction", "d.safetensors", "-o", "out"]),
        1,
        &[words, &["hint: "]].concat(),
    );
    assert!(!sandbox.path("out").exists());
}

fn at(graph: &GraphProto, output: &str) -> usize {
    graph.node.iter().position(|n| n.output.iter().any(|o| o == output)).unwrap()
}

fn floats(graph: &GraphProto, name: &str) -> Vec<f32> {
    let tensor = graph.initializer.iter().find(|t| t.name.as_deref() == Some(name)).unwrap();
    let entry = |key: &str| {
        let found = tensor.external_data.iter().find(|e| e.key.as_deref() == Some(key))?;
        found.value.clone()
    };
    let stored = entry("location").map(|location| {
        let all = std::fs::read(fixture(PLAIN).with_file_name(location)).unwrap();
        let number = |key: &str| entry(key).map_or(0, |value| value.parse::<usize>().unwrap());
        all[number("offset")..number("offset") + number("length")].to_vec()
    });
    let raw = stored.as_deref().or(tensor.raw_data.as_deref()).unwrap_or(&[]);
    match raw.is_empty() {
        true => tensor.float_data.clone(),
        false => raw.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
    }
}

fn tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(1),
        raw_data: Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ..Default::default()
    }
}

fn int64s(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: vec![values.len() as i64],
        data_type: Some(7),
        raw_data: Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ..Default::default()
    }
}

fn attr_float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { name: Some(name.into()), f: Some(value), r#type: Some(1), ..Default::default() }
}

fn attr_ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { name: Some(name.into()), ints: values.to_vec(), r#type: Some(7), ..Default::default() }
}

fn float_info(name: &str, dims: Option<&[i64]>) -> ValueInfoProto {
    use lancet::onnx::proto::{Dimension, dimension};
    let dim = |d: &i64| Dimension { value: Some(dimension::Value::DimValue(*d)) };
    let shape = dims.map(|dims| TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let value = Some(type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(1), shape }));
    ValueInfoProto { name: Some(name.into()), r#type: Some(TypeProto { value, denotation: None }) }
}

fn transpose(from: &str, to: &str, perm: &[i64]) -> NodeProto {
    node("Transpose", to, &[from], &[to], vec![attr_ints("perm", perm)])
}

/// Which operands of the fused product are transposed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transposed {
    Neither,
    A,
    B,
}

/// Makes `Gemm(h, W, C = x, alpha = s)` of a sum and the product that it reads, as ONNX Runtime's MatMulAddFusion does.
fn fuse(graph: &mut GraphProto, sum: [&str; 6], transposed: Transposed, beta: f32) {
    let [result, stream, scaled, product, activation, weight] = sum;
    let scale = floats(graph, SCALE)[0];
    let name = |part: &str| format!("{result}.{part}");
    let width = graph.initializer.iter().find(|t| t.name.as_deref() == Some(weight)).unwrap().dims[0];
    graph.initializer.push(int64s(&name("in"), &[-1, width]));
    graph.initializer.push(int64s(&name("out"), &[-1, D]));
    let (mut a, mut b) = (name("h"), weight.to_string());
    let mut nodes = vec![
        node("Reshape", &name("h"), &[activation, &name("in")], &[&name("h")], vec![]),
        node("Reshape", &name("x"), &[stream, &name("out")], &[&name("x")], vec![]),
    ];
    let mut attributes = vec![attr_float("alpha", scale), attr_float("beta", beta)];
    if transposed == Transposed::A {
        nodes.push(transpose(&a, &name("h.t"), &[1, 0]));
        a = name("h.t");
        attributes.push(attr_int("transA", 1));
    }
    if transposed == Transposed::B {
        let (values, d) = (floats(graph, weight), D as usize);
        let turned: Vec<f32> =
            (0..values.len()).map(|i| values[(i % (values.len() / d)) * d + i / (values.len() / d)]).collect();
        b = name("w.t");
        graph.initializer.push(tensor(&b, &[D, width], &turned));
        attributes.push(attr_int("transB", 1));
    }
    nodes.extend([
        node("Gemm", &name("fused"), &[&a, &b, &name("x")], &[&name("y")], attributes),
        node("Shape", &name("shape"), &[stream], &[&name("shape")], vec![]),
        node("Reshape", result, &[&name("y"), &name("shape")], &[result], vec![]),
    ]);
    let place = at(graph, result);
    graph.node.splice(place..=place, nodes);
    graph.node.retain(|n| n.output[0] != scaled && n.output[0] != product);
}

#[test]
fn a_product_that_adds_the_stream_is_a_write() {
    for (sums, transposed) in [
        (&SUMS[3..], Transposed::Neither),
        (&SUMS[1..2], Transposed::B),
        (&SUMS[..], Transposed::Neither),
        (&SUMS[..], Transposed::B),
    ] {
        let sandbox = changed(|graph| sums.iter().for_each(|sum| fuse(graph, *sum, transposed, 1.0)));
        assert_eq!(exact(&sandbox, Compared::All), (5, 0));
    }
}

#[test]
fn a_product_that_adds_the_stream_is_written_as_two_nodes_where_its_weight_is_shared() {
    // another output reads the weight of the last block: projected after the product, before the stream is added
    let sandbox = changed(|graph| {
        SUMS.iter().for_each(|sum| fuse(graph, *sum, Transposed::A, 1.0));
        for sum in [&SUMS[0], &SUMS[3]] {
            let name = format!("{}.probe", sum[0]);
            graph.node.push(node("Abs", &name, &[sum[5]], &[&name], vec![]));
            graph.output.push(float_info(&name, None));
        }
    });
    assert_eq!(exact(&sandbox, Compared::All), (3, 2));
    let output = sandbox.lancet(&["bake", "m", "--direction", "d.safetensors", "-o", "out"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written = ModelProto::decode(std::fs::read(sandbox.path("out/model.onnx")).unwrap().as_slice()).unwrap();
    let gemms: Vec<&NodeProto> = written.graph.as_ref().unwrap().node.iter().filter(|n| n.op() == "Gemm").collect();
    let adding = gemms.iter().filter(|n| n.input.get(2).is_some_and(|c| !c.is_empty())).count();
    assert_eq!((gemms.len(), adding), (4, 2));
}

#[test]
fn a_product_that_adds_a_scaled_stream_is_refused_by_name() {
    let sandbox = changed(|graph| fuse(graph, SUMS[3], Transposed::Neither, 0.5));
    refused(&sandbox, &["add_16.fused", "Gemm", "adds an activation"]);
    let sandbox = changed(|graph| fuse(graph, SUMS[1], Transposed::Neither, 0.5));
    refused(&sandbox, &["add_9.fused", "Gemm", "cannot be followed"]);
}

#[test]
fn what_joins_the_way_to_the_logits_is_refused_by_name() {
    // an operator that may hide a write, a product, a constant on the last sum, and a weighted mean with an early one
    type Change = fn(&mut GraphProto) -> NodeProto;
    let cases: [(Change, &str); 3] = [
        (
            |graph| {
                graph.initializer.push(tensor("behind.w", &[D, D], &vec![0.5; (D * D) as usize]));
                node("MatMul", "behind", &["add_16", "behind.w"], &["behind.out"], vec![])
            },
            "no part of a norm",
        ),
        (
            |graph| {
                graph.initializer.push(tensor("behind.b", &[D], &[0.5; D as usize]));
                node("Add", "behind", &["add_16", "behind.b"], &["behind.out"], vec![])
            },
            "a constant is added to the residual stream",
        ),
        (|_| node("CumSum", "behind", &["add_16", "val_43"], &["behind.out"], vec![]), "no part of a norm"),
    ];
    for (change, reason) in cases {
        let sandbox = changed(|graph| {
            let made = change(graph);
            let place = at(graph, "add_16");
            for reader in &mut graph.node[place + 1..] {
                reader.input.iter_mut().filter(|i| *i == "add_16").for_each(|i| *i = "behind.out".into());
            }
            graph.node.insert(place + 1, made);
        });
        refused(&sandbox, &["behind", reason]);
    }
}

#[test]
fn a_constant_in_a_sum_of_the_stream_is_refused_by_name() {
    let sandbox = changed(|graph| {
        graph.initializer.push(tensor("constant", &[D], &[0.5; D as usize]));
        let place = at(graph, "add_9");
        graph.node[place] = node("Sum", "three", &["add_7", "mul_61", "constant"], &["add_9"], vec![]);
    });
    refused(&sandbox, &["three", "Sum", "a constant is added"]);
}

#[test]
fn a_block_without_what_the_others_have_is_refused() {
    let sandbox = changed(|graph| {
        for reader in &mut graph.node {
            reader.input.iter_mut().filter(|i| *i == "add_16").for_each(|i| *i = "add_14".into());
        }
    });
    refused(&sandbox, &["block 1 has no feed-forward write"]);
}

/// Makes a write in the new layout; `None` leads the old one there.
type Write<'a> = &'a dyn Fn(&mut GraphProto, [&str; 6]) -> Option<Vec<NodeProto>>;

/// Puts the stream into another layout: `to` and `from` make the nodes that lead a value there and back.
fn relaid(
    graph: &mut GraphProto,
    to: &dyn Fn(&str, &str) -> Vec<NodeProto>,
    from: &dyn Fn(&str, &str) -> Vec<NodeProto>,
    write: Write<'_>,
) {
    let relaid = |name: &str| format!("{name}.laid");
    let stream: Vec<&str> = std::iter::once("mul").chain(SUMS.iter().map(|sum| sum[0])).collect();
    for sum in SUMS {
        let made = write(graph, sum).unwrap_or_else(|| to(sum[2], &relaid(sum[2])));
        let place = at(graph, sum[0]);
        let added =
            node("Add", &format!("{}.sum", sum[0]), &[&relaid(sum[1]), &relaid(sum[2])], &[&relaid(sum[0])], vec![]);
        let back = from(&relaid(sum[0]), sum[0]);
        graph.node.splice(place..=place, made.into_iter().chain([added]).chain(back));
    }
    let place = at(graph, stream[0]);
    graph.node.splice(place + 1..place + 1, to(stream[0], &relaid(stream[0])));
    // what reads the embedding reads it back from the new layout
    let back = from(&relaid("mul"), "mul.back");
    let after = at(graph, &relaid("mul"));
    for reader in &mut graph.node[after + 1..] {
        reader.input.iter_mut().filter(|i| *i == "mul").for_each(|i| *i = "mul.back".into());
    }
    graph.node.splice(after + 1..after + 1, back);
}

#[test]
fn a_stream_with_its_positions_first_is_edited() {
    let turn = |from: &str, to: &str| vec![transpose(from, to, &[1, 0, 2])];
    let sandbox = changed(|graph| relaid(graph, &turn, &turn, &|_, _| None));
    assert_eq!(exact(&sandbox, Compared::Logits), (5, 0));
    // by nodes
    let sandbox = changed(|graph| {
        let negated = |from: &str, to: &str| {
            let (one, two) = (format!("{from}.one"), format!("{from}.two"));
            vec![
                node("Neg", &one, &[from], &[&one], vec![]),
                node("Neg", &two, &[&one], &[&two], vec![]),
                transpose(&two, to, &[1, 0, 2]),
            ]
        };
        relaid(graph, &negated, &turn, &|_, _| None);
    });
    assert_eq!(exact(&sandbox, Compared::Logits), (0, 5));
}

/// `[batch, n_pos, d]` to `[batch, d, 1, n_pos]`.
fn to_channels(from: &str, to: &str) -> Vec<NodeProto> {
    let turned = format!("{to}.turned");
    vec![transpose(from, &turned, &[0, 2, 1]), node("Unsqueeze", to, &[&turned, "axis.2"], &[to], vec![])]
}

/// And back.
fn from_channels(from: &str, to: &str) -> Vec<NodeProto> {
    let turned = format!("{to}.turned");
    vec![node("Squeeze", &turned, &[from, "axis.2"], &[&turned], vec![]), transpose(&turned, to, &[0, 2, 1])]
}

#[test]
fn a_stream_with_its_channels_first_is_edited_along_its_channels() {
    // writes by 1x1 convolutions, their weights `[d, d_in, 1, 1]`
    let sandbox = changed(|graph| {
        graph.initializer.push(int64s("axis.2", &[2]));
        relaid(graph, &to_channels, &from_channels, &|graph, [_, _, scaled, product, activation, weight]| {
            let (values, d) = (floats(graph, weight), D as usize);
            let inner = values.len() / d;
            let turned: Vec<f32> = (0..values.len()).map(|i| values[(i % inner) * d + i / inner]).collect();
            let name = |part: &str| format!("{product}.{part}");
            graph.initializer.push(tensor(&name("w"), &[D, inner as i64, 1, 1], &turned));
            graph.node.retain(|n| n.output[0] != scaled && n.output[0] != product);
            let mut nodes = to_channels(activation, &name("in"));
            nodes.push(node("Conv", &name("conv"), &[&name("in"), &name("w")], &[&name("out")], vec![]));
            let laid = format!("{scaled}.laid");
            nodes.push(node("Mul", scaled, &[&name("out"), SCALE], &[&laid], vec![]));
            Some(nodes)
        });
    });
    assert_eq!(exact(&sandbox, Compared::Logits), (5, 0));
    // writes that are laid out anew by operators behind which no weight is found
    let sandbox = changed(|graph| {
        graph.initializer.push(int64s("axis.2", &[2]));
        let negated = |from: &str, to: &str| {
            let (one, two) = (format!("{from}.one"), format!("{from}.two"));
            let mut nodes =
                vec![node("Neg", &one, &[from], &[&one], vec![]), node("Neg", &two, &[&one], &[&two], vec![])];
            nodes.extend(to_channels(&two, to));
            nodes
        };
        relaid(graph, &negated, &from_channels, &|_, _| None);
    });
    assert_eq!(exact(&sandbox, Compared::Logits), (0, 5));
}

#[test]
fn a_write_behind_an_adapter_that_a_caller_feeds_is_projected_by_nodes() {
    for rank in [4, 0] {
        let sandbox = changed(|graph| {
            let a: Vec<f32> = (0..48 * rank).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect();
            graph.initializer.push(tensor("lora.a", &[48, rank], &a));
            graph.initializer.push(tensor("lora.b", &[rank, D], &vec![0.0; (rank * D) as usize]));
            for name in ["lora.a", "lora.b"] {
                graph.input.push(float_info(name, None));
            }
            let place = at(graph, "linear_6");
            graph.node[place].output[0] = "base".into();
            let adapter = [
                node("MatMul", "lora.down", &["mul_60", "lora.a"], &["lora.down"], vec![]),
                node("MatMul", "lora.up", &["lora.down", "lora.b"], &["lora.up"], vec![]),
                node("Add", "lora.sum", &["base", "lora.up"], &["linear_6"], vec![]),
            ];
            graph.node.splice(place + 1..place + 1, adapter);
        });
        assert_eq!(exact(&sandbox, Compared::All), (4, 1), "rank {rank}");
    }
}

/// Puts nodes between the product of a write and what scales it.
fn behind(graph: &mut GraphProto, product: &str, nodes: Vec<NodeProto>) {
    let place = at(graph, product);
    graph.node[place].output[0] = format!("{product}.raw");
    graph.node.splice(place + 1..place + 1, nodes);
}

#[test]
fn a_cast_to_the_type_of_another_value_is_followed() {
    let sandbox = changed(|graph| {
        let cast = node("CastLike", "like", &["linear_6.raw", "add_7"], &["linear_6"], vec![]);
        behind(graph, "linear_6", vec![cast]);
    });
    assert_eq!(exact(&sandbox, Compared::All), (5, 0));
}

/// `If(size == 1) { Squeeze } else { Identity }`, as torchscript leaves a `squeeze`, of `[batch, 1, n_pos, d]`.
fn squeezed(from: &str, to: &str) -> Vec<NodeProto> {
    let name = |part: &str| format!("{to}.{part}");
    let branch = |op: &str, inputs: &[&str]| GraphProto {
        name: Some(op.into()),
        node: vec![node(op, &name(op), inputs, &[&name(op)], vec![])],
        output: vec![float_info(&name(op), None)],
        ..Default::default()
    };
    let graph = |name: &str, graph: GraphProto| AttributeProto {
        name: Some(name.into()),
        g: Some(graph),
        r#type: Some(5),
        ..Default::default()
    };
    let high = name("high");
    vec![
        node("Unsqueeze", &high, &[from, "if.axis"], &[&high], vec![]),
        node("Shape", &name("shape"), &[&high], &[&name("shape")], vec![]),
        node("Gather", &name("size"), &[&name("shape"), "if.axis"], &[&name("size")], vec![]),
        node("Equal", &name("one"), &[&name("size"), "if.axis"], &[&name("one")], vec![]),
        node(
            "If",
            to,
            &[&name("one")],
            &[to],
            vec![
                graph("then_branch", branch("Squeeze", &[&high, "if.axis"])),
                graph("else_branch", branch("Identity", &[&high])),
            ],
        ),
    ]
}

#[test]
fn a_branch_that_only_takes_an_axis_away_is_followed() {
    // on a write, and on the stream itself
    let sandbox = changed(|graph| {
        graph.initializer.push(int64s("if.axis", &[1]));
        behind(graph, "linear_6", squeezed("linear_6.raw", "linear_6"));
    });
    assert_eq!(exact(&sandbox, Compared::All), (5, 0));
    let sandbox = changed(|graph| {
        graph.initializer.push(int64s("if.axis", &[1]));
        behind(graph, "add_9", squeezed("add_9.raw", "add_9"));
    });
    assert_eq!(exact(&sandbox, Compared::All), (5, 0));
}

#[test]
fn one_hot_embeddings_are_a_lookup() {
    let sandbox = changed(|graph| {
        graph.initializer.push(int64s("depth", &[96]));
        graph.initializer.push(tensor("off.on", &[2], &[0.0, 1.0]));
        let place = at(graph, "embedding");
        let table = graph.node[place].input[0].clone();
        let nodes = [
            node("OneHot", "one.hot", &["input_ids", "depth", "off.on"], &["one.hot"], vec![]),
            node("MatMul", "lookup", &["one.hot", &table], &["embedding"], vec![]),
        ];
        graph.node.splice(place..=place, nodes);
    });
    assert_eq!(exact(&sandbox, Compared::All), (5, 0));
}

#[test]
fn channels_in_another_order_are_not_the_writes_own() {
    // a pick of all channels and a slice backwards keep their number, and not their order; a transposition of a write
    // as long as it is wide keeps its shape
    let sandbox = changed(|graph| {
        let backwards: Vec<i64> = (0..D).rev().collect();
        graph.initializer.push(int64s("backwards", &backwards));
        for (name, values) in [("s.from", [-1]), ("s.to", [i64::MIN]), ("s.axis", [-1]), ("s.step", [-1])] {
            graph.initializer.push(int64s(name, &values));
        }
        let twice = |from: &str, to: &str| {
            let half = format!("{to}.half");
            vec![
                node("Gather", &half, &[from, "backwards"], &[&half], vec![attr_int("axis", -1)]),
                node("Slice", to, &[&half, "s.from", "s.to", "s.axis", "s.step"], &[to], vec![]),
            ]
        };
        behind(graph, "linear_6", twice("linear_6.raw", "linear_6"));
        behind(graph, "linear_10", twice("linear_10.raw", "linear_10"));
    });
    assert_eq!(exact(&sandbox, Compared::All), (3, 2));
}

#[test]
fn sums_that_double_are_refused_at_once() {
    let doubled = |graph: &mut GraphProto, fibonacci: bool| {
        let place = at(graph, "add_9");
        let mut names = vec!["add_7".to_string(), "add_9".to_string()];
        let mut nodes = Vec::new();
        for step in 0..200 {
            let (last, before) = (names[names.len() - 1].clone(), names[names.len() - 2].clone());
            let name = format!("double.{step}");
            let other = if fibonacci { &before } else { &last };
            nodes.push(node("Add", &name, &[&last, other], &[&name], vec![]));
            names.push(name);
        }
        let end = names.pop().unwrap();
        for reader in &mut graph.node[place + 1..] {
            reader.input.iter_mut().filter(|i| *i == "add_9").for_each(|i| i.clone_from(&end));
        }
        graph.node.splice(place + 1..place + 1, nodes);
    };
    for fibonacci in [false, true] {
        let sandbox = changed(|graph| doubled(graph, fibonacci));
        let begun = Instant::now();
        refused(&sandbox, &["double.", "Add"]);
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn constants_that_double_behind_a_weight_are_met_once() {
    let sandbox = changed(|graph| {
        let mut name = "val_236".to_string();
        let mut nodes = Vec::new();
        for step in 0..60 {
            let next = format!("constant.{step}");
            nodes.push(node("Min", &next, &[&name, &name], &[&next], vec![]));
            name = next;
        }
        let place = at(graph, "linear_6");
        graph.node[place].input[1] = name;
        graph.node.splice(place..place, nodes);
    });
    assert_eq!(exact(&sandbox, Compared::All), (4, 1));
}
