//! `lancet verify` as a control over one model: what the output says of itself is compared and never believed, what
//! differs is named, and what was not checked is said.

mod common;

use std::fs;

use lancet::onnx::proto::{AttributeProto, ModelProto, StringStringEntryProto, node};
use prost::Message as _;
use serde_json::Value;

use common::{Sandbox, fixture, found, json, only, some_direction, width};

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_fixture("chat");
    sandbox.write_direction("d.safetensors", &some_direction(width("chat")));
    sandbox
}

fn bake(sandbox: &Sandbox, out: &str, more: &[&str]) {
    let words = ["bake", "model/model.onnx", "--direction", "d.safetensors", "-o", out, "--quiet"];
    let output = sandbox.lancet(&[&words, more].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn verify(sandbox: &Sandbox, out: &str, more: &[&str], code: i32) -> Value {
    let words = ["verify", "model/model.onnx", out, "--direction", "d.safetensors", "--bytes-only", "--json"];
    json(&mut sandbox.lancet(&[&words, more].concat()), code)
}

fn decode(sandbox: &Sandbox, file: &str) -> ModelProto {
    ModelProto::decode(fs::read(sandbox.path(file)).unwrap().as_slice()).unwrap()
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
}

fn says(result: &Value, what: &str) -> bool {
    found(result, "failures").iter().any(|f| f.as_str().unwrap().contains(what))
}

fn lists(result: &Value, kind: &str, name: &str) -> bool {
    found(result, "unexplained").iter().any(|u| u["kind"] == kind && u["name"] == name)
}

#[test]
fn strength_and_treatment_come_from_who_asks() {
    let sandbox = sandbox();
    bake(&sandbox, "half.onnx", &["--strength", "0.5"]);
    bake(&sandbox, "whole.onnx", &[]);
    let failed = verify(&sandbox, "half.onnx", &[], 1);
    assert!(says(&failed, "says strength 0.5") && says(&failed, "pass `--strength 0.5`"), "{failed}");
    assert_eq!(verify(&sandbox, "half.onnx", &["--strength", "0.5"], 0)["shared"]["passed"], true);
    let failed = verify(&sandbox, "whole.onnx", &["--strength", "0.5"], 1);
    assert!(says(&failed, "pass `--strength 1`") && !found(&failed, "unexplained").is_empty(), "{failed}");
    assert_eq!(verify(&sandbox, "whole.onnx", &[], 0)["shared"]["passed"], true);
    // where the embedding makes the logits too, a copy of it is edited instead of nodes
    bake(&sandbox, "alone.onnx", &["--weights-only"]);
    assert_eq!(verify(&sandbox, "alone.onnx", &["--weights-only"], 0)["shared"]["passed"], true);
    let same = decode(&sandbox, "alone.onnx").graph.unwrap() == decode(&sandbox, "whole.onnx").graph.unwrap();
    verify(&sandbox, "alone.onnx", &[], i32::from(!same));
    // another direction
    let mut turned = some_direction(width("chat"));
    turned[0] += 0.25;
    sandbox.write_direction("d.safetensors", &turned);
    let failed = verify(&sandbox, "whole.onnx", &[], 1);
    assert!(says(&failed, "another direction"), "{failed}");
}

#[test]
fn the_base_with_a_claim_is_not_a_bake() {
    let sandbox = sandbox();
    let base = decode(&sandbox, "model/model.onnx");
    for strength in ["1e-15", "0", "-1", "NaN", "1"] {
        let mut claims = base.clone();
        claims.metadata_props.push(entry("lancet.strength", strength));
        sandbox.write("claims.onnx", claims.encode_to_vec());
        let failed = verify(&sandbox, "claims.onnx", &[], 1);
        assert!(lists(&failed, "metadata", "lancet.strength"), "{failed}");
        assert!(says(&failed, "the output is the base: nothing was edited"), "{failed}");
    }
    // asked for on purpose, so little changes no stored value, and then there is nothing to publish or to pass
    let little = ["--strength", "1e-15"];
    let words = ["bake", "model/model.onnx", "--direction", "d.safetensors", "-o", "little.onnx", "--quiet"];
    let refused = sandbox.lancet(&[words.as_slice(), &little].concat()).output().unwrap();
    if !refused.status.success() {
        assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
        assert!(!sandbox.path("little.onnx").exists());
        verify(&sandbox, "model/model.onnx", &little, 1);
    }
}

#[test]
fn differences_are_listed_with_kind_and_name() {
    let sandbox = sandbox();
    bake(&sandbox, "out.onnx", &[]);
    let clean = decode(&sandbox, "out.onnx");
    let tampered = |change: &dyn Fn(&mut ModelProto)| {
        let mut model = clean.clone();
        change(&mut model);
        sandbox.write("tampered.onnx", model.encode_to_vec());
        verify(&sandbox, "tampered.onnx", &[], 1)
    };
    let result = tampered(&|m| {
        let input = m.graph.as_ref().unwrap().node[0].output[0].clone();
        m.graph.as_mut().unwrap().node.push(node("Identity", "extra", &[&input], &["nowhere"], vec![]));
    });
    assert!(lists(&result, "node", "extra"), "{result}");
    let name = clean.graph.as_ref().unwrap().node[3].label().to_string();
    let result = tampered(&|m| {
        let attribute = AttributeProto { name: Some("more".into()), i: Some(1), r#type: Some(2), ..Default::default() };
        m.graph.as_mut().unwrap().node[3].attribute.push(attribute);
    });
    assert!(lists(&result, "node", &name) && result.to_string().contains("`more` was added"), "{result}");
    let result = tampered(&|m| m.opset_import[0].version = m.opset_import[0].version.map(|v| v + 1));
    assert!(lists(&result, "model", "opset import `ai.onnx`"), "{result}");
    let result = tampered(&|m| m.metadata_props.push(entry("lancet.layer", "3")));
    assert!(lists(&result, "metadata", "lancet.layer"), "{result}");
    // another version is said, and everything is compared all the same
    let at = clean.metadata_props.iter().position(|p| p.key.as_deref() == Some("lancet.version")).unwrap();
    let mut model = clean.clone();
    model.metadata_props[at].value = Some("0.0.3".into());
    sandbox.write("other.onnx", model.encode_to_vec());
    let mut text = sandbox.lancet(&["verify", "model/model.onnx", "other.onnx", "--direction", "d.safetensors"]);
    let passed = verify(&sandbox, "other.onnx", &[], 0);
    assert!(only(&passed)["verify"]["unchecked"].to_string().contains("0.0.3"), "{passed}");
    let printed = text.arg("--bytes-only").output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("not checked: that the written model loads"), "{printed}");
}

#[cfg(unix)]
#[test]
fn more_external_files_than_a_process_may_hold_open() {
    let sandbox = sandbox();
    let mut model = decode(&sandbox, "model/model.onnx");
    let mut files = 0;
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let Some(raw) = tensor.raw_data.take() else { continue };
        let name = format!("w{files}.bin");
        sandbox.write(&format!("model/{name}"), raw);
        tensor.data_location = Some(1);
        tensor.external_data = vec![entry("location", &name)];
        files += 1;
    }
    assert!(files > 20, "the fixture has {files} tensors");
    sandbox.write("model/model.onnx", model.encode_to_vec());
    let binary = env!("CARGO_BIN_EXE_lancet");
    for words in [
        vec!["bake", "model/model.onnx", "--direction", "d.safetensors", "-o", "out"],
        vec!["verify", "model/model.onnx", "out", "--direction", "d.safetensors", "--bytes-only"],
    ] {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "ulimit -n 24; exec \"$0\" \"$@\"", binary]).args(&words).env("RAYON_NUM_THREADS", "2");
        let output = shell.current_dir(sandbox.root()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_model_without_a_tokenizer_is_run_on_made_up_tokens() {
    let sandbox = sandbox();
    fs::remove_file(sandbox.path("model/tokenizer.json")).unwrap();
    bake(&sandbox, "out", &[]);
    common::onnx_runtime();
    let words = ["verify", "model/model.onnx", "out", "--direction", "d.safetensors", "--json"];
    let result = json(&mut sandbox.lancet(&words), 0);
    let stream = &only(&result)["verify"]["stream"];
    let (before, after) = (stream["share_before"].as_f64().unwrap(), stream["share_after"].as_f64().unwrap());
    assert!(before > 0.1 && after < 1e-6 && stream["probes"] == 13, "{result}");
    assert!(only(&result)["verify"]["unchecked"].to_string().contains("no prompts"), "{result}");
    // a weight put back shows in the stream even where nobody compares bytes
    let mut written = decode(&sandbox, "out/model.onnx");
    let base = decode(&sandbox, "model/model.onnx");
    let (now, was) = (written.graph.as_mut().unwrap(), base.graph.unwrap());
    let changed = now.initializer.iter_mut().zip(&was.initializer).rfind(|(now, was)| now != was).unwrap();
    changed.0.clone_from(changed.1);
    fs::write(sandbox.path("out/model.onnx"), written.encode_to_vec()).unwrap();
    let result = json(&mut sandbox.lancet(&words), 1);
    assert!(says(&result, "not every write is ablated"), "{result}");
    assert!(says(&result, "of its bytes are not those"), "{result}");
}

#[test]
fn another_model_in_the_place_of_the_output_is_named() {
    let sandbox = sandbox();
    fs::copy(fixture("zoo/llama/optimum/model.onnx"), sandbox.path("other.onnx")).unwrap();
    let failed = verify(&sandbox, "other.onnx", &[], 1);
    assert!(says(&failed, "the output has 2 layers of width 32, the base 6 of 96"), "{failed}");
    assert!(!only(&failed)["verify"]["unchecked"].to_string().contains("whether the edit was needed"), "{failed}");
}
