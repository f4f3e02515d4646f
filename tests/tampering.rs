//! Outputs that were tampered with, each in one way: `verify` fails every one, and passes what was not touched.
//!
//! A file that does not come out byte for byte when it is only decoded and encoded again is tampered with as bytes
//! alone, so that no change but the intended one is there to be seen.

#[path = "common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::lancet;
use lancet::onnx::proto::{
    AttributeProto, FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    ValueInfoProto,
};
use prost::Message;

/// Models to tamper with: floats, halves, external data, nodes, norms after the write, mixtures of experts, local
/// functions, quantised weights.
const MODELS: &[&str] = &[
    "chat/model.onnx",
    "chat-fp16/model.onnx",
    "chat-bf16/model.onnx",
    "chat-genai-int4/model.onnx",
    "chat-guard/model.onnx",
    "chat-package/onnx/model_q4.onnx",
    "chat-package/onnx/model_q4f16.onnx",
    "chat-package/onnx/model_int8.onnx",
    "chat-package/onnx/model_bnb4.onnx",
    "quant/genai-qmoe",
    "quant/static-qdq.onnx",
    "zoo/gemma2",
    "zoo/gpt2",
    "zoo/phi",
];

/// What was done to a model: `base` is the model before the bake, `edited` names the tensors that the bake changed.
/// `None` where the model has nothing to do it to.
type Tampering = fn(&mut ModelProto, &ModelProto, &[String]) -> Option<()>;

const TAMPERINGS: &[(&str, Tampering)] = &[
    ("one edited tensor as in the base", |m, base, edited| {
        let name = edited.iter().rev().find(|name| tensor(m, name).is_some_and(|t| raw(t).is_some()))?;
        *tensor(m, name)? = tensor(&mut base.clone(), name)?.clone();
        Some(())
    }),
    ("all edited tensors but one as in the base", |m, base, edited| {
        let mut others = edited.iter().skip(1).filter(|name| {
            let (Some(now), Some(was)) = (tensor(m, name), tensor(&mut base.clone(), name).cloned()) else {
                return false;
            };
            raw(now).is_some() && std::mem::replace(now, was.clone()) != was
        });
        let any = others.next().is_some();
        others.for_each(drop);
        any.then_some(())
    }),
    ("two edited tensors swapped", |m, _, edited| {
        let (a, b) = edited.iter().enumerate().find_map(|(at, a)| {
            let dims = tensor(m, a).filter(|t| t.raw_data.is_some())?.dims.clone();
            let b = edited[at + 1..].iter().find(|b| tensor(m, b).is_some_and(|t| t.dims == dims))?;
            Some((a.clone(), b.clone()))
        })?;
        let first = tensor(m, &a)?.raw_data.clone();
        let second = std::mem::replace(&mut tensor(m, &b)?.raw_data, first);
        tensor(m, &a)?.raw_data = second;
        Some(())
    }),
    ("an edit along the wrong axis of a square weight", |m, base, edited| {
        let (name, was) = edited.iter().find_map(|name| {
            let was = tensor(&mut base.clone(), name)?.clone();
            let square = was.dims.len() == 2 && was.dims[0] == was.dims[1];
            (square && was.data_type == Some(1) && was.raw_data.is_some()).then_some((name, was))
        })?;
        let now = raw(tensor(m, name)?)?;
        let along = turned(&was, 0);
        // the honest edit is one of the two, up to rounding
        let differ = now.iter().zip(&along).filter(|(a, b)| a != b).count();
        *now = if differ * 8 < now.len() { turned(&was, 1) } else { along };
        Some(())
    }),
    ("lowest bit of an edited value", |m, _, edited| flip(tensor(m, edited.first()?)?, 0, 1)),
    ("lowest bit of the last edited value", |m, _, edited| {
        let tensor = tensor(m, edited.last()?)?;
        let width = width(tensor)?;
        let at = raw(tensor)?.len().checked_sub(width)?;
        flip(tensor, at, 1)
    }),
    ("sign of an edited value", |m, _, edited| {
        let tensor = tensor(m, edited.first()?)?;
        let width = width(tensor)?;
        flip(tensor, width - 1, 0x80)
    }),
    ("an edited tensor of zeros", |m, _, edited| {
        raw(tensor(m, edited.first()?)?)?.fill(0);
        Some(())
    }),
    ("a value that is no number", |m, _, edited| {
        let tensor = tensor(m, edited.first()?)?;
        let width = width(tensor)?;
        raw(tensor)?[..width].fill(0xff);
        Some(())
    }),
    ("one bit of a tensor that is not edited", |m, _, edited| flip(untouched(m, edited)?, 0, 1)),
    ("dimensions of a tensor turned", |m, _, edited| {
        let tensor = tensor(m, edited.first()?)?;
        (tensor.dims.len() == 2 && tensor.dims[0] != tensor.dims[1]).then(|| tensor.dims.reverse())
    }),
    ("type of a tensor changed", |m, _, edited| {
        untouched(m, edited)?.data_type = Some(6);
        Some(())
    }),
    ("a tensor added", |m, _, _| {
        let added = TensorProto {
            name: Some("extra".into()),
            data_type: Some(1),
            raw_data: Some(vec![0; 4]),
            dims: vec![1],
            ..Default::default()
        };
        m.graph.as_mut()?.initializer.push(added);
        Some(())
    }),
    ("a tensor renamed", |m, _, edited| {
        let name = untouched(m, edited)?.name.clone()?;
        untouched(m, edited)?.name = Some("renamed".into());
        for node in &mut m.graph.as_mut()?.node {
            node.input.iter_mut().filter(|input| **input == name).for_each(|input| *input = "renamed".into());
        }
        Some(())
    }),
    ("two tensors in another order", |m, _, _| {
        let all = &mut m.graph.as_mut()?.initializer;
        (all.len() > 1).then(|| all.swap(0, 1))
    }),
    ("a node added", |m, _, _| {
        let added = NodeProto {
            op_type: Some("Identity".into()),
            input: vec![m.graph.as_ref()?.input.first()?.name.clone()?],
            output: vec!["extra_output".into()],
            ..Default::default()
        };
        m.graph.as_mut()?.node.push(added);
        Some(())
    }),
    ("a node removed", |m, _, _| m.graph.as_mut()?.node.pop().map(|_| ())),
    ("two nodes in another order", |m, _, _| {
        let all = &mut m.graph.as_mut()?.node;
        (all.len() > 1).then(|| all.swap(0, 1))
    }),
    ("a node renamed", |m, _, _| {
        m.graph.as_mut()?.node.first_mut()?.name = Some("renamed".into());
        Some(())
    }),
    ("a node of another operator", |m, _, _| {
        m.graph.as_mut()?.node.iter_mut().find(|n| n.op() == "Add")?.op_type = Some("Sub".into());
        Some(())
    }),
    ("a node of another domain", |m, _, _| {
        m.graph.as_mut()?.node.first_mut()?.domain = Some("other".into());
        Some(())
    }),
    ("a node that reads something else", |m, _, _| {
        let all = &mut m.graph.as_mut()?.node;
        let node = all.iter_mut().find(|n| n.input.len() == 2 && n.input[0] != n.input[1])?;
        node.input.swap(0, 1);
        Some(())
    }),
    ("an attribute added", |m, _, _| {
        let added = AttributeProto { name: Some("extra".into()), i: Some(1), ..Default::default() };
        m.graph.as_mut()?.node.first_mut()?.attribute.push(added);
        Some(())
    }),
    ("an attribute changed", |m, _, _| {
        let all = m.graph.as_mut()?.node.iter_mut().flat_map(|n| &mut n.attribute);
        let attribute = all.into_iter().find(|a| a.i.is_some_and(|i| i != 0) || a.f.is_some_and(|f| f != 0.0))?;
        attribute.i = attribute.i.map(|i| i + 1);
        attribute.f = attribute.f.map(|f| f * 2.0);
        Some(())
    }),
    ("another opset", |m, _, _| {
        let import = m.opset_import.first_mut()?;
        import.version = Some(import.version? + 1);
        Some(())
    }),
    ("an opset added", |m, _, _| {
        let added = OperatorSetIdProto { domain: Some("other".into()), version: Some(1) };
        m.opset_import.push(added);
        Some(())
    }),
    ("another IR version", |m, _, _| {
        m.ir_version = Some(m.ir_version? + 1);
        Some(())
    }),
    ("another producer", |m, _, _| {
        m.producer_name = Some("someone".into());
        Some(())
    }),
    ("a version of the model", |m, _, _| {
        m.model_version = Some(7);
        Some(())
    }),
    ("another name of the graph", |m, _, _| {
        m.graph.as_mut()?.name = Some("other".into());
        Some(())
    }),
    ("a metadata entry added", |m, _, _| entry(m, "author", "someone")),
    ("a strength in the metadata", |m, _, _| entry(m, "lancet.strength", "1e-15")),
    ("a mode in the metadata", |m, _, _| entry(m, "lancet.quantised", "nodes")),
    ("another direction in the metadata", |m, _, _| {
        let found = m.metadata_props.iter_mut().find(|e| e.key.as_deref() == Some("lancet.direction_sha256"))?;
        found.value = Some("0".repeat(64));
        Some(())
    }),
    ("a local function added", |m, _, _| {
        let added = FunctionProto { name: Some("extra".into()), domain: Some("other".into()), ..Default::default() };
        m.functions.push(added);
        Some(())
    }),
    ("an input added", |m, _, _| {
        m.graph.as_mut()?.input.push(named("extra"));
        Some(())
    }),
    ("an output added", |m, _, _| {
        let name = m.graph.as_ref()?.node.last()?.output.first()?.clone();
        m.graph.as_mut()?.output.push(named(&name));
        Some(())
    }),
    ("an output renamed", |m, _, _| {
        m.graph.as_mut()?.output.first_mut()?.name = Some("other".into());
        Some(())
    }),
    ("a declared value added", |m, _, _| {
        m.graph.as_mut()?.value_info.push(named("extra"));
        Some(())
    }),
];

/// The same on the bytes of the file.
type OnBytes = fn(&mut Vec<u8>);

const BYTES: &[(&str, OnBytes)] = &[
    ("a byte appended", |bytes| bytes.push(0)),
    ("the last byte cut off", |bytes| {
        bytes.pop();
    }),
    ("half of the file", |bytes| bytes.truncate(bytes.len() / 2)),
    // protobuf joins a repeated message with the first: the graph gets an output more
    ("a second graph appended", |bytes| bytes.extend([0x3a, 5, 0x62, 3, 0x0a, 1, b'x'])),
    ("a description of the model appended", |bytes| bytes.extend([0x32, 1, b'x'])),
    ("an unknown field appended", |bytes| bytes.extend([0xfa, 0x7f, 1, b'x'])),
    ("one bit in the middle", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }),
];

fn tensor<'m>(model: &'m mut ModelProto, name: &str) -> Option<&'m mut TensorProto> {
    model.graph.as_mut()?.initializer.iter_mut().find(|t| t.name.as_deref() == Some(name))
}

/// A float tensor that the bake left as it was.
fn untouched<'m>(model: &'m mut ModelProto, edited: &[String]) -> Option<&'m mut TensorProto> {
    let all = model.graph.as_mut()?.initializer.iter_mut();
    all.into_iter().find(|t| {
        let own = edited.iter().any(|name| Some(name.as_str()) == t.name.as_deref())
            || t.name.as_deref().unwrap_or_default().starts_with("lancet.");
        !own && t.raw_data.as_ref().is_some_and(|raw| raw.len() >= 4) && t.data_type != Some(6)
    })
}

fn raw(tensor: &mut TensorProto) -> Option<&mut Vec<u8>> {
    tensor.raw_data.as_mut().filter(|raw| !raw.is_empty())
}

fn width(tensor: &TensorProto) -> Option<usize> {
    let count = usize::try_from(tensor.dims.iter().product::<i64>()).ok()?;
    tensor.raw_data.as_ref()?.len().checked_div(count).filter(|width| *width > 0)
}

fn flip(tensor: &mut TensorProto, at: usize, bits: u8) -> Option<()> {
    *raw(tensor)?.get_mut(at)? ^= bits;
    Some(())
}

fn entry(model: &mut ModelProto, key: &str, value: &str) -> Option<()> {
    let added = StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
    model.metadata_props.push(added);
    Some(())
}

fn named(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.into()), r#type: None }
}

/// Entry `i` of the direction, before it is made unit.
fn direction_entry(i: usize) -> f64 {
    f64::from(((i * 37) % 11) as u32) - 5.0
}

/// A square float32 weight without the direction along one of its axes, as raw data.
fn turned(tensor: &TensorProto, axis: usize) -> Vec<u8> {
    let values: Vec<f64> = (tensor.raw_data.as_ref().unwrap().as_chunks::<4>().0.iter())
        .map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
        .collect();
    let n = values.len().isqrt();
    let length = (0..n).map(|i| direction_entry(i).powi(2)).sum::<f64>().sqrt();
    let r = |i: usize| direction_entry(i) / length;
    let at = |along: usize, across: usize| if axis == 0 { along * n + across } else { across * n + along };
    let mut out = values.clone();
    for across in 0..n {
        let share: f64 = (0..n).map(|i| r(i) * values[at(i, across)]).sum();
        for along in 0..n {
            out[at(along, across)] -= r(along) * share;
        }
    }
    out.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect()
}

/// A direction of the model's width, from the fixture or made up.
fn direction(model: &Path, at: &Path) -> PathBuf {
    let inspected = lancet().arg("inspect").arg(model).arg("--json").output().unwrap();
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    let width = common::only(&inspected)["inspect"]["d_model"].as_u64().expect("a width") as usize;
    let values: Vec<u8> = (0..width).flat_map(|i| (direction_entry(i) as f32).to_le_bytes()).collect();
    let header = format!(r#"{{"direction":{{"dtype":"F32","shape":[{width}],"data_offsets":[0,{}]}}}}"#, values.len());
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(values);
    let path = at.join("direction.safetensors");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The `.onnx` file of a fixture: itself, or the first in its folder.
fn model(name: &str) -> Option<PathBuf> {
    let path = common::fixture(name);
    if path.is_file() {
        return Some(path);
    }
    let mut open = vec![path];
    let mut found = Vec::default();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).ok()?.map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                open.push(entry);
            } else if entry.extension().is_some_and(|e| e == "onnx") {
                found.push(entry);
            }
        }
    }
    found.sort();
    found.into_iter().next()
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn every_tampering_fails_and_no_honest_output_does() {
    let mut table: Vec<(String, usize, bool)> = Vec::default();
    let mut passed: Vec<String> = Vec::default();
    for name in MODELS {
        let path = model(name).unwrap_or_else(|| panic!("{name} has no model"));
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        std::fs::create_dir(&base).unwrap();
        // the model and its external data, without what else lies there
        let beside = path.parent().unwrap();
        for entry in std::fs::read_dir(beside).unwrap().map(|e| e.unwrap().path()) {
            let other = entry.extension().is_some_and(|e| e == "onnx") && entry != path;
            if entry.is_file() && !other {
                std::fs::copy(&entry, base.join(entry.file_name().unwrap())).unwrap();
            }
        }
        let file = path.file_name().unwrap();
        let direction = direction(&base.join(file), folder.path());
        let out = folder.path().join("out");
        let mut bake = lancet();
        bake.arg("bake").arg(base.join(file)).arg("--direction").arg(&direction).arg("-o").arg(&out);
        let baked = bake.args(["--json", "--bytes-only", "-q"]).output().unwrap();
        assert!(baked.status.success(), "{name}: {}", String::from_utf8_lossy(&baked.stderr));
        let baked: serde_json::Value = serde_json::from_slice(&baked.stdout).unwrap();
        let edits = common::only(&baked)["bake"]["edits"].as_array().unwrap();
        let edited: Vec<String> = edits
            .iter()
            .filter(|e| e["treatment"] != "nodes")
            .map(|e| e["initializer"].as_str().unwrap().to_string())
            .collect();
        let written = out.join(file);
        let honest = std::fs::read(&written).unwrap();
        let verify = || {
            let mut verify = lancet();
            verify.arg("verify").arg(base.join(file)).arg(&written).arg("--direction").arg(&direction);
            let output = verify.args(["--bytes-only", "--json"]).output().unwrap();
            let code = output.status.code();
            assert!(matches!(code, Some(0..=2)), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            (code == Some(0), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (ok, words) = verify();
        assert!(ok, "{name}: the honest output does not verify: {words}");
        let mut count = 0;
        let mut attempt = |what: &str, bytes: &[u8]| {
            std::fs::write(&written, bytes).unwrap();
            count += 1;
            if verify().0 {
                passed.push(format!("{name}: {what}"));
            }
        };
        for (what, tamper) in BYTES {
            let mut bytes = honest.clone();
            tamper(&mut bytes);
            attempt(what, &bytes);
        }
        attempt("the base itself", &std::fs::read(base.join(file)).unwrap());
        let parsed = ModelProto::decode(honest.as_slice()).unwrap();
        let before = ModelProto::decode(std::fs::read(base.join(file)).unwrap().as_slice()).unwrap();
        let rewritten = parsed.encode_to_vec() == honest;
        if rewritten {
            for (what, tamper) in TAMPERINGS {
                let mut model = parsed.clone();
                if tamper(&mut model, &before, &edited).is_some() {
                    attempt(what, &model.encode_to_vec());
                }
            }
        }
        table.push(((*name).to_string(), count, rewritten));
    }
    println!("{table:?}");
    assert!(passed.is_empty(), "verified although tampered with: {passed:#?}");
    let thorough = table.iter().filter(|(_, count, _)| *count >= 25).count();
    assert!(thorough >= 8, "only {thorough} models were tampered with in 25 ways: {table:?}");
}
