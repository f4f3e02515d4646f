//! Quantised weights that no quantiser writes so: refused by name, projected by nodes, or rounded; never edited wrongly.

mod common;

use std::collections::HashSet;

use common::{Sandbox, fixture};
use lancet::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorShapeProto, type_proto};
use prost::Message;
use serde_json::Value;

/// A changed copy of a file of `fixtures/quant`, and the direction that belongs to them.
fn strange(name: &str, change: impl FnOnce(&mut GraphProto)) -> Sandbox {
    let sandbox = Sandbox::new();
    let mut model = ModelProto::decode(std::fs::read(fixture("quant").join(name)).unwrap().as_slice()).unwrap();
    change(model.graph.as_mut().unwrap());
    sandbox.write("m.onnx", model.encode_to_vec());
    sandbox.write("d.safetensors", std::fs::read(fixture("quant/direction.safetensors")).unwrap());
    sandbox
}

/// The node that makes an attention or MLP write.
fn writer<'g>(graph: &'g mut GraphProto, projection: &str) -> &'g mut NodeProto {
    graph.node.iter_mut().find(|n| n.op() == "MatMulNBits" && n.label().contains(projection)).unwrap()
}

/// The raw bytes of input `slot` of a writer.
fn input<'g>(graph: &'g mut GraphProto, projection: &str, slot: usize) -> &'g mut Vec<u8> {
    let name = writer(graph, projection).input[slot].clone();
    let tensor = graph.initializer.iter_mut().find(|t| t.name.as_ref() == Some(&name)).unwrap();
    tensor.raw_data.as_mut().unwrap()
}

/// Bakes `from` to `to` and verifies it; returns the edits.
#[track_caller]
fn bake(sandbox: &Sandbox, from: &str, to: &str) -> Vec<Value> {
    let output = sandbox.lancet(&["bake", from, "--direction", "d.safetensors", "-o", to, "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let verify = ["verify", from, to, "--direction", "d.safetensors", "--bytes-only"];
    let verified = sandbox.lancet(&verify).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    common::only(&result)["bake"]["edits"].as_array().unwrap().clone()
}

/// Treatments by writer, in order.
fn treatments(edits: &[Value]) -> Vec<(&str, &str)> {
    edits.iter().map(|e| (e["writer"].as_str().unwrap(), e["treatment"].as_str().unwrap())).collect()
}

#[track_caller]
fn treated(edits: &[Value], writer: &str, treatment: &str) {
    assert!(treatments(edits).contains(&(writer, treatment)), "{:?}", treatments(edits));
}

#[test]
fn scales_that_two_writers_share_stay() {
    let sandbox = strange("nbits4-b128-sym.onnx", |graph| {
        let scales = writer(graph, "o_proj").input[2].clone();
        writer(graph, "down_proj").input[2] = scales;
    });
    for edit in bake(&sandbox, "m.onnx", "out.onnx") {
        assert!(edit["grown_scales"].as_u64().is_none_or(|grown| grown == 0), "{edit}");
    }
}

/// Puts all nodes into both branches of an `If` on `use_cache_branch`, as merged decoders have them.
fn merge(graph: &mut GraphProto, change: impl FnOnce(&mut GraphProto)) {
    let nodes = std::mem::take(&mut graph.node);
    let whole = GraphProto { node: nodes, output: graph.output.clone(), ..GraphProto::default() };
    let mut other = whole.clone();
    // what a branch computes has names of its own, but for what the `If` returns
    let returned: HashSet<String> = graph.output.iter().map(|o| o.name.clone().unwrap()).collect();
    let own: HashSet<String> = whole.node.iter().flat_map(|n| n.output.clone()).filter(|o| !o.is_empty()).collect();
    for node in &mut other.node {
        for name in node.input.iter_mut().chain(&mut node.output) {
            if own.contains(name) && !returned.contains(name) {
                name.push_str(".else");
            }
        }
    }
    let mut branches = [whole, other];
    change(&mut branches[0]);
    graph.initializer.extend(branches.iter_mut().flat_map(|branch| std::mem::take(&mut branch.initializer)));
    let mut condition = graph.input[0].clone();
    condition.name = Some("use_cache_branch".into());
    let boolean = type_proto::Tensor { elem_type: Some(9), shape: Some(TensorShapeProto::default()) };
    condition.r#type.as_mut().unwrap().value = Some(type_proto::Value::TensorType(boolean));
    graph.input.push(condition);
    let attribute = |(name, branch): (&str, GraphProto)| AttributeProto {
        name: Some(name.into()),
        r#type: Some(5),
        g: Some(branch),
        ..AttributeProto::default()
    };
    graph.node.push(NodeProto {
        op_type: Some("If".into()),
        input: vec!["use_cache_branch".into()],
        output: graph.output.iter().map(|o| o.name.clone().unwrap()).collect(),
        attribute: ["then_branch", "else_branch"].into_iter().zip(branches).map(attribute).collect(),
        ..NodeProto::default()
    });
}

/// The bytes of every tensor of a written model.
fn tensors(sandbox: &Sandbox, name: &str) -> Vec<(String, Vec<u8>)> {
    let model = ModelProto::decode(std::fs::read(sandbox.path(name)).unwrap().as_slice()).unwrap();
    let tensors = model.graph.unwrap().initializer.into_iter();
    tensors.map(|t| (t.name.clone().unwrap(), t.encode_to_vec())).collect()
}

/// Names of the scales that a bake changed.
fn changed_scales(sandbox: &Sandbox) -> Vec<String> {
    let after = tensors(sandbox, "out.onnx");
    let pairs = tensors(sandbox, "m.onnx").into_iter().zip(after);
    pairs.filter(|(a, b)| a.0 == b.0 && a.1 != b.1 && a.0.contains("scale")).map(|(a, _)| a.0).collect()
}

#[test]
fn scales_grow_in_a_merged_decoder_whose_branches_read_them_for_the_same_writes() {
    for name in ["dynamic-uint8-channel-7bit.onnx", "nbits8-b16-asym.onnx"] {
        let sandbox = strange(name, |graph| merge(graph, |_| {}));
        let edits = bake(&sandbox, "m.onnx", "out.onnx");
        for writer in ["layer.0.attn_out", "layer.0.mlp_out"] {
            treated(&edits, writer, "rounded");
        }
        assert!(!changed_scales(&sandbox).is_empty(), "{name}");
    }
}

#[test]
fn scales_of_one_branch_that_something_else_reads_stay() {
    let sandbox = strange("nbits8-b16-asym.onnx", |graph| {
        let initializers = graph.initializer.clone();
        merge(graph, |branch| {
            // one branch has a copy of the weight, whose scales, as many as it has itself, a query projection reads too
            for slot in [1, 2] {
                let name = writer(branch, "o_proj").input[slot].clone();
                let mut copy = initializers.iter().find(|t| t.name.as_ref() == Some(&name)).unwrap().clone();
                copy.name = Some(format!("{name}.copy"));
                branch.initializer.push(copy);
                writer(branch, "o_proj").input[slot] = format!("{name}.copy");
            }
            let scales = writer(branch, "o_proj").input[2].clone();
            writer(branch, "q_proj").input[2] = scales;
        });
    });
    bake(&sandbox, "m.onnx", "out.onnx");
    let changed = changed_scales(&sandbox);
    assert!(changed.iter().all(|name| !name.ends_with(".copy")), "{changed:?}");
}

#[test]
fn scales_whose_product_with_the_activation_scale_has_another_reader_stay() {
    let factor = |graph: &GraphProto, projection: &str| {
        let node =
            graph.node.iter().find(|n| n.label().contains(projection) && n.label().ends_with("scales_mul")).unwrap();
        (node.input[1].clone(), node.output[0].clone())
    };
    let mut scales = String::new();
    let sandbox = strange("dynamic-int8.onnx", |graph| {
        let (_, other) = factor(graph, "gate_proj");
        let product;
        (scales, product) = factor(graph, "o_proj");
        let input = graph.node.iter_mut().flat_map(|n| &mut n.input).find(|input| **input == other).unwrap();
        *input = product;
    });
    bake(&sandbox, "m.onnx", "out.onnx");
    let changed = changed_scales(&sandbox);
    assert!(!changed.contains(&scales), "{changed:?} with {scales}");
}

#[test]
fn codes_that_are_read_with_two_scales_get_nodes() {
    let sandbox = strange("nbits4-b128-sym.onnx", |graph| {
        let codes = writer(graph, "o_proj").input[1].clone();
        writer(graph, "down_proj").input[1] = codes;
    });
    let edits = bake(&sandbox, "m.onnx", "out.onnx");
    treated(&edits, "layer.0.attn_out", "nodes");
    treated(&edits, "layer.0.mlp_out", "nodes");
}

#[test]
fn scales_that_would_pass_their_type_stay_finite() {
    // one row's small scale would have to grow to what float16 cannot hold
    let sandbox = strange("nbits4-b32-sym-fp16.onnx", |graph| {
        for (row, scale) in input(graph, "o_proj", 2).as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *scale = half::f16::from_f32(if row == 5 { 60.0 } else { 65000.0 }).to_le_bytes();
        }
    });
    bake(&sandbox, "m.onnx", "out.onnx");
    // and one is so small that the factor of its growth overflows
    let sandbox = strange("nbits4-b32-sym.onnx", |graph| {
        input(graph, "o_proj", 2).as_chunks_mut::<4>().0[7] = 1e-42f32.to_le_bytes();
    });
    treated(&bake(&sandbox, "m.onnx", "out.onnx"), "layer.0.attn_out", "nodes");
}

#[test]
fn blocks_that_do_not_exist_are_refused_by_name() {
    let sandbox = strange("nbits4-b16-gidx.onnx", |graph| {
        input(graph, "o_proj", 4).as_chunks_mut::<4>().0[3] = 99i32.to_le_bytes();
    });
    let mut command = sandbox.lancet(&["bake", "m.onnx", "--direction", "d.safetensors", "-o", "out.onnx"]);
    sandbox.refused(&mut command, 1, &["g_idx", "_Q4", "blocks that it does not have"]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn attributes_that_contradict_the_tensors_get_nodes() {
    for attribute in ["K", "N", "bits", "block_size"] {
        // a K of 3 or 7 would be a matrix that is padded to its one block
        for value in [-1, 0, 3, 7, 1 << 40, 1 << 62, i64::MAX, i64::MIN] {
            if attribute == "K" && (1..=32).contains(&value) {
                continue;
            }
            let sandbox = strange("nbits4-b32-asym.onnx", |graph| {
                let attributes = &mut writer(graph, "o_proj").attribute;
                let is = |a: &&mut AttributeProto| a.name.as_deref() == Some(attribute);
                attributes.iter_mut().find(is).unwrap().i = Some(value);
            });
            treated(&bake(&sandbox, "m.onnx", "out.onnx"), "layer.0.attn_out", "nodes");
        }
    }
}

#[test]
fn a_baked_model_can_be_baked_again() {
    for name in ["nbits4-b32-sym.onnx", "dynamic-uint8-tied.onnx", "nbits8-b32-sym.onnx"] {
        let sandbox = strange(name, |_| {});
        let first = bake(&sandbox, "m.onnx", "once.onnx");
        let second = bake(&sandbox, "once.onnx", "twice.onnx");
        assert_eq!(treatments(&first), treatments(&second), "{name}");
        let twice = ModelProto::decode(std::fs::read(sandbox.path("twice.onnx")).unwrap().as_slice()).unwrap();
        let nodes = twice.graph.unwrap().node;
        let names: HashSet<&str> = nodes.iter().map(NodeProto::label).collect();
        assert_eq!(names.len(), nodes.len(), "{name}: nodes of one name");
    }
}

#[test]
fn a_stricter_bound_of_the_error_sends_writers_to_nodes_and_verify_knows() {
    let sandbox = strange("nbits4-b32-sym.onnx", |_| {});
    let bake = |out: &str, more: &[&str]| {
        let bake = ["bake", "m.onnx", "--direction", "d.safetensors", "-o", out, "--max-rounding-error"];
        sandbox.lancet(&[&bake, more].concat()).output().unwrap()
    };
    assert!(bake("strict.onnx", &["1.2"]).status.success());
    let model = ModelProto::decode(std::fs::read(sandbox.path("strict.onnx")).unwrap().as_slice()).unwrap();
    let told = |key: &str| model.metadata_props.iter().find(|p| p.key() == key).map(|p| p.value().to_string());
    assert_eq!(told("lancet.max_rounding_error").as_deref(), Some("1.2"));
    let by_nodes = told("lancet.quantised_by_nodes").unwrap();
    assert_eq!(by_nodes, "layer.0.attn_out layer.0.mlp_out", "errors of 1.3 times nearest rounding's");
    let verify = ["verify", "m.onnx", "strict.onnx", "--direction", "d.safetensors", "--bytes-only"];
    let asked = sandbox.lancet(&[verify.as_slice(), &["--max-rounding-error", "1.2"]].concat()).output().unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stdout));
    // what the file says of itself is not believed: who asks has to know
    let unasked = sandbox.lancet(&verify).output().unwrap();
    assert_eq!(unasked.status.code(), Some(1));
    let said = String::from_utf8(unasked.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("pass `--max-rounding-error 1.2` to verify that"), "{said}");
    for wrong in [["0.5", "--quiet"].as_slice(), &["1.5", "--quantised", "round"], &["1.5", "--weights-only"]] {
        assert_eq!(bake("never.onnx", wrong).status.code(), Some(2), "{wrong:?}");
    }
}
