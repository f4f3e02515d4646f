//! Graphs that no exporter makes: refused with node, operator, tensor and a hint, or edited exactly; never edited wrongly.

mod common;
#[path = "common/zoo.rs"]
#[allow(dead_code, reason = "`tests/zoo.rs` checks the rest")]
mod zoo;

use std::path::Path;

use common::{Sandbox, fixture};
use lancet::onnx::proto::{AttributeProto, ModelProto, NodeProto, OperatorSetIdProto, node};
use lancet::runtime::session::{Device, Runtime};
use prost::Message;

/// A fixture of two layers like llama's, and its architecture.
const PLAIN: (&str, &str) = ("zoo/granite/dynamo18/model.onnx", "granite");

/// Writes a changed copy of the fixture with its data, and a direction for it.
fn strange(change: impl FnOnce(&mut ModelProto)) -> Sandbox {
    strange_from(PLAIN.0, change)
}

fn strange_from(name: &str, change: impl FnOnce(&mut ModelProto)) -> Sandbox {
    let sandbox = Sandbox::new();
    let source = fixture(name);
    let mut model = ModelProto::decode(std::fs::read(&source).unwrap().as_slice()).unwrap();
    change(&mut model);
    for entry in std::fs::read_dir(source.parent().unwrap()).unwrap().map(Result::unwrap) {
        if entry.path().extension().is_none_or(|e| e != "onnx") {
            sandbox.write(&format!("m/{}", entry.file_name().to_string_lossy()), std::fs::read(entry.path()).unwrap());
        }
    }
    sandbox.write("m/model.onnx", model.encode_to_vec());
    sandbox.write_direction("d.safetensors", &unit());
    sandbox
}

fn unit() -> Vec<f32> {
    (0..32).map(|i| if i % 3 == 0 { 0.25 } else { -0.125 }).collect()
}

/// The sums of the stream, in order: outputs of `Add` nodes that two later nodes at least read, one of them an `Add`.
fn sums(model: &ModelProto) -> Vec<String> {
    let nodes = &model.graph.as_ref().unwrap().node;
    let readers = |name: &str| nodes.iter().filter(|n| n.input.iter().any(|i| i == name)).collect::<Vec<&NodeProto>>();
    nodes
        .iter()
        .filter(|n| n.op() == "Add")
        .map(|n| n.output[0].clone())
        .filter(|name| {
            let readers = readers(name);
            readers.len() >= 2 && readers.iter().any(|r| r.op() == "Add")
        })
        .collect()
}

/// Puts a node of another domain between a value and its readers.
fn interpose(model: &mut ModelProto, value: &str, mut mystery: NodeProto) {
    mystery.domain = Some("com.example".into());
    let out = mystery.output[0].clone();
    let graph = model.graph.as_mut().unwrap();
    let at = graph.node.iter().position(|n| n.output.iter().any(|o| o == value)).unwrap();
    for node in &mut graph.node[at + 1..] {
        node.input.iter_mut().filter(|i| *i == value).for_each(|i| i.clone_from(&out));
    }
    graph.node.insert(at + 1, mystery);
    model.opset_import.push(OperatorSetIdProto { domain: Some("com.example".into()), version: Some(1) });
}

#[track_caller]
fn refused(sandbox: &Sandbox, words: &[&str]) {
    sandbox.refused_without_hint(
        &mut sandbox.lancet(&["bake", "m", "--direction", "d.safetensors", "-o", "out"]),
        1,
        &[words, &["hint: "]].concat(),
    );
    let output = sandbox.lancet(&["inspect", "m", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let refusal = &common::only(&found)["inspect"]["refusals"][0];
    for key in ["node", "op", "tensor", "reason", "hint"] {
        assert!(refusal[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {refusal}");
    }
    assert!(!Path::new(&sandbox.path("out")).exists());
}

#[test]
fn an_unknown_operator_on_the_stream_is_refused_by_name() {
    let sandbox = strange(|model| {
        let value = sums(model)[1].clone();
        interpose(model, &value, node("Mystery", "mystery.7", &[&value], &["mystery.out"], vec![]));
    });
    refused(&sandbox, &["mystery.7", "com.example.Mystery", "mystery.out", "cannot be followed"]);
}

#[test]
fn an_unknown_operator_that_is_named_like_a_known_one_is_refused() {
    let sandbox = strange(|model| {
        let value = sums(model)[1].clone();
        interpose(model, &value, node("Identity", "not.identity", &[&value], &["not.identity.out"], vec![]));
    });
    refused(&sandbox, &["not.identity", "com.example.Identity"]);
}

#[test]
fn a_second_way_from_the_stream_to_the_logits_is_refused() {
    let sandbox = strange(|model| {
        // an early sum is added once more right before the unembedding
        let early = sums(model)[0].clone();
        let graph = model.graph.as_mut().unwrap();
        let last = graph.node.iter().rposition(|n| matches!(n.op(), "MatMul" | "Gemm")).unwrap();
        let activation = graph.node[last].input[0].clone();
        graph.node[last].input[0] = "detour.out".into();
        graph.node.insert(last, node("Mul", "detour", &[&activation, &early], &["detour.out"], vec![]));
    });
    refused(&sandbox, &["sums lead to the unembedding"]);
}

#[test]
fn a_stream_that_is_normalised_between_blocks_is_refused() {
    // the blocks hand on the normalised output of a fused node in place of its sum
    let sandbox = strange_from("zoo/llama/genai-fp32/model.onnx", |model| {
        let graph = model.graph.as_mut().unwrap();
        let fused = |n: &NodeProto| n.op() == "SkipSimplifiedLayerNormalization" && n.output.len() == 4;
        let found = graph.node.iter().filter(|n| fused(n)).nth(1).unwrap();
        let (normed, sum) = (found.output[0].clone(), found.output[3].clone());
        let readers = graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|i| **i == sum);
        assert!(readers.map(|input| input.clone_from(&normed)).count() > 0);
    });
    refused(&sandbox, &["SkipSimplifiedLayerNormalization", "cannot be followed", "a norm of the stream as a whole"]);
}

#[test]
fn a_graph_that_returns_the_stream_has_no_unembedding() {
    // the last sum begins with the MLP's write: behind it lies a product, which is no unembedding
    let sandbox = strange(|model| {
        let stream = sums(model);
        let graph = model.graph.as_mut().unwrap();
        let before = stream.last().unwrap();
        let last = graph.node.iter_mut().rfind(|n| n.op() == "Add" && n.input.contains(before)).unwrap();
        last.input.sort_by_key(|name| name == before);
        let returned = last.output[0].clone();
        let at = graph.node.iter().position(|n| n.output.contains(&returned)).unwrap();
        graph.node.truncate(at + 1);
        graph.node.push(node("Identity", "returned", &[&returned], &["logits"], vec![]));
    });
    // it makes no vocabulary of logits, in a folder and alone
    sandbox.refused_without_hint(&mut sandbox.lancet(&["inspect", "m"]), 2, &["32 classes", "96 tokens"]);
    let words = ["`model.onnx` is no language model", "32 classes"];
    let arguments = ["bake", "m/model.onnx", "--direction", "d.safetensors", "-o", "out"];
    sandbox.refused_without_hint(&mut sandbox.lancet(&arguments), 1, &words);
}

#[test]
fn an_mlp_that_asks_for_the_shape_of_attention_is_an_mlp() {
    // torch 2.4 computes the shapes of an MLP from those of the attention before it
    let sandbox = strange(|model| {
        let first = sums(model)[0].clone();
        let graph = model.graph.as_mut().unwrap();
        let at = graph.node.iter().position(|n| n.output[0] == first).unwrap();
        let made = |name: &str| graph.node.iter().position(|n| n.output.iter().any(|o| o == name));
        let write = graph.node[at].input.iter().max_by_key(|name| made(name)).unwrap().clone();
        let gate = at + graph.node[at..].iter().position(|n| n.op() == "MatMul").unwrap();
        let normed = std::mem::replace(&mut graph.node[gate].input[0], "again".into());
        graph.node.insert(gate, node("Reshape", "again", &[&normed, "shape"], &["again"], vec![]));
        graph.node.insert(gate, node("Shape", "shape", &[&write], &["shape"], vec![]));
    });
    assert_eq!(exact(&sandbox, PLAIN.1), (5, 0));
}

#[test]
fn an_unknown_reader_beside_a_write_keeps_its_input() {
    // somebody else reads the write of a layer: editing its weight would change what that one reads
    let sandbox = strange(|model| {
        let stream = sums(model);
        let graph = model.graph.as_mut().unwrap();
        let sum = graph.node.iter().find(|n| n.op() == "Add" && n.output[0] == stream[1]).unwrap();
        let write = sum.input.iter().find(|name| !stream.contains(name)).unwrap().clone();
        let at = graph.node.iter().position(|n| n.output.contains(&write)).unwrap();
        graph.node.insert(at + 1, node("Abs", "probe", &[&write], &["probe.out"], vec![]));
        let mut output = graph.output[0].clone();
        output.name = Some("probe.out".into());
        graph.output.push(output);
    });
    let output = sandbox.lancet(&["inspect", "m", "--json"]).output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes: Vec<&serde_json::Value> = common::only(&found)["inspect"]["writers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|w| w["treatment"] == "nodes")
        .collect();
    assert_eq!(nodes.len(), 1, "{found}");
    assert!(nodes[0]["reason"]["detail"].as_str().unwrap().contains("also read by node `probe`"), "{found}");
    let bake = sandbox.lancet(&["bake", "m", "--direction", "d.safetensors", "-o", "out"]).output().unwrap();
    assert!(bake.status.success(), "{}", String::from_utf8_lossy(&bake.stderr));
}

/// Edits a changed fixture by its reference direction and compares with PyTorch. Returns how many writers were treated
/// by weights and by nodes.
#[track_caller]
fn exact(sandbox: &Sandbox, arch: &str) -> (usize, usize) {
    let entry: zoo::Entry = serde_json::from_value(serde_json::json!({
        "arch": arch, "exporter": "strange", "dtype": "float32", "model": sandbox.path("m/model.onnx"),
    }))
    .unwrap();
    let runtime = Runtime::load(&common::onnxruntime_library(), Device::Cpu, 1).unwrap();
    let zoo::Outcome::Edited(edited) = zoo::check(&entry, &runtime) else { panic!("refused") };
    assert!(edited.failures.is_empty(), "{:?}", edited.failures);
    let (stream, logits, _) = zoo::bounds("float32");
    assert!(edited.stream_error <= stream && edited.logits_error <= logits, "{edited:?}");
    (edited.weights, edited.nodes)
}

#[test]
fn products_spelled_as_einsum_are_edited_by_their_weights() {
    for equation in ["bsi,io->bso", "bsi, io -> bso", "...i,io->...o"] {
        let sandbox = strange(|model| {
            let graph = model.graph.as_mut().unwrap();
            let stored: Vec<String> = graph.initializer.iter().filter_map(|t| t.name.clone()).collect();
            let mut changed = 0;
            for product in graph.node.iter_mut().filter(|n| n.op() == "MatMul" && stored.contains(&n.input[1])) {
                product.op_type = Some("Einsum".into());
                product.attribute = vec![AttributeProto {
                    name: Some("equation".into()),
                    s: Some(equation.as_bytes().to_vec()),
                    r#type: Some(3), // AttributeProto.STRING
                    ..Default::default()
                }];
                changed += 1;
            }
            assert!(changed >= 14, "{changed} products of activations and weights");
        });
        assert_eq!(exact(&sandbox, PLAIN.1), (5, 0));
    }
}

/// ONNX Runtime's older name of `FusedMatMul`: all that Lancet knows of it is one entry of the operator table.
#[test]
fn products_of_an_older_contrib_operator_are_edited_by_their_weights() {
    let sandbox = strange(|model| {
        let graph = model.graph.as_mut().unwrap();
        let products = graph.node.iter_mut().filter(|n| n.op() == "MatMul");
        for product in products {
            product.op_type = Some("TransposeMatMul".into());
            product.domain = Some("com.microsoft".into());
        }
        model.opset_import.push(OperatorSetIdProto { domain: Some("com.microsoft".into()), version: Some(1) });
    });
    assert_eq!(exact(&sandbox, PLAIN.1), (5, 0));
}

/// Doubles the sign of every product in a list of nodes: nothing changes, but no weight is found behind it.
fn negate_twice(nodes: &mut Vec<NodeProto>, within: &str) {
    let mut out = Vec::new();
    for (number, mut one) in std::mem::take(nodes).into_iter().enumerate() {
        if !matches!(one.op(), "MatMul" | "Gemm") {
            out.push(one);
            continue;
        }
        let [first, second] = ["a", "b"].map(|step| format!("{within}.twice.{number}.{step}"));
        let result = std::mem::replace(&mut one.output[0], first.clone());
        out.push(one);
        out.push(node("Neg", &first, &[&first], &[&second], vec![]));
        out.push(node("Neg", &second, &[&second], &[&result], vec![]));
    }
    *nodes = out;
}

#[test]
fn nodes_go_into_both_branches_of_a_merged_decoder() {
    let sandbox = strange_from("zoo/llama/optimum121-merged/decoder_model_merged.onnx", |model| {
        let graph = model.graph.as_mut().unwrap();
        let branching = graph.node.iter_mut().find(|n| n.op() == "If").unwrap();
        for attribute in &mut branching.attribute {
            let name = attribute.name.clone().unwrap();
            negate_twice(&mut attribute.g.as_mut().unwrap().node, &name);
        }
    });
    assert_eq!(exact(&sandbox, "llama"), (1, 4));
    let output = sandbox.lancet(&["bake", "m", "--direction", "d.safetensors", "-o", "out"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = std::fs::read(sandbox.path("out/model.onnx")).unwrap();
    let written = ModelProto::decode(bytes.as_slice()).unwrap();
    let branching = written.graph.as_ref().unwrap().node.iter().find(|n| n.op() == "If").unwrap();
    for attribute in &branching.attribute {
        let nodes = &attribute.g.as_ref().unwrap().node;
        let added = nodes.iter().filter(|n| n.name.as_deref().is_some_and(|n| n.starts_with("lancet."))).count();
        assert_eq!(added, 3 * 4, "{:?}", attribute.name);
    }
}

#[test]
fn nodes_go_into_function_bodies_once_for_all_their_calls() {
    for (fixture, arch, layers) in [
        ("zoo/gpt_neox/torchscript-functions/model.onnx", "gpt_neox", 3),
        ("zoo/llama/dynamo-export24/model.onnx", "llama", 2),
    ] {
        let sandbox = strange_from(fixture, |model| {
            for (number, function) in model.functions.iter_mut().enumerate() {
                let has = function.opset_import.iter().any(|i| i.domain.as_deref().unwrap_or("").is_empty());
                assert!(has, "{:?} imports the standard operators", function.name);
                negate_twice(&mut function.node, &format!("f{number}"));
            }
        });
        let (_, nodes) = exact(&sandbox, arch);
        // what gpt_neox's parallel blocks add is one sum
        assert!(nodes >= layers, "{fixture}: {nodes} writers by nodes");
    }
}

#[test]
fn a_function_that_serves_writes_and_something_else_is_not_changed_for_both() {
    // one more call of a layer's function, whose result nobody uses for the stream
    let sandbox = strange_from("zoo/gpt_neox/torchscript-functions/model.onnx", |model| {
        for (number, function) in model.functions.iter_mut().enumerate() {
            negate_twice(&mut function.node, &format!("f{number}"));
        }
        let layer = |n: &NodeProto| n.op().contains("GPTNeoXLayer");
        let body = model.functions.iter_mut().find(|f| f.node.iter().any(layer)).unwrap();
        let last = body.node.iter().rposition(layer).unwrap();
        let mut again = body.node[last].clone();
        again.name = Some("once.more".into());
        again.output.iter_mut().for_each(|name| *name = format!("once.more.{name}"));
        body.node.insert(last + 1, again);
    });
    sandbox.write_direction("d.safetensors", &unit()[..16]);
    let output = sandbox.lancet(&["bake", "m", "--direction", "d.safetensors", "-o", "out"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("adding nodes to the local function"), "{stderr}");
    assert!(!sandbox.path("out").exists());
}

#[test]
fn an_embedding_file_that_is_missing_is_asked_for() {
    let sandbox = strange_from("zoo/llama/split/decoder_model_merged.onnx", |_| ());
    let output = sandbox.lancet(&["bake", "m", "--direction", "d.safetensors", "-o", "out"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("inputs_embeds") && stderr.contains("embed_tokens.onnx"), "{stderr}");
}
