//! Folders with several models, through the binary: every variant is edited and proved, everything else is copied, and
//! where one thing stands in the way nothing is left behind.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    Sandbox, assert_same, copy_folder, fixture, json, only, onnx_runtime, snapshot, some_direction, value_info, width,
};
use lancet::edit::Direction;
use lancet::onnx::DataType;
use lancet::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    ValueInfoProto, node,
};
use lancet::pipeline::engine::Observer;
use lancet::pipeline::stage::Stage;
use lancet::pipeline::{self, BakeOptions, Package};
use lancet::runtime::session::{Device, Runtime};
use lancet::runtime::{Backend, Tensor};
use ndarray::ArrayD;
use prost::Message;
use serde_json::{Value, json as value};

const CONFIGS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// An onnx-community style folder `pkg` of the bundled model, and a direction file `d`.
fn sandbox(variants: &[(&str, &str)]) -> Sandbox {
    let sandbox = Sandbox::new();
    for name in CONFIGS {
        sandbox.write(&format!("pkg/{name}"), fs::read(fixture("chat").join(name)).unwrap());
    }
    for (name, source) in variants {
        sandbox.write(&format!("pkg/onnx/{name}"), fs::read(fixture(source).join("model.onnx")).unwrap());
    }
    sandbox.write_direction("d", &some_direction(width("chat")));
    sandbox
}

fn two() -> Sandbox {
    sandbox(&[("model.onnx", "chat"), ("model_fp16.onnx", "chat-fp16")])
}

/// A graph from one input to one output that holds no language model.
fn small_model(input: &str, output: &str) -> Vec<u8> {
    let info = |name: &str| ValueInfoProto { name: Some(name.into()), ..Default::default() };
    let node = NodeProto {
        op_type: Some("Identity".into()),
        input: vec![input.into()],
        output: vec![output.into()],
        ..Default::default()
    };
    let graph =
        GraphProto { node: vec![node], input: vec![info(input)], output: vec![info(output)], ..Default::default() };
    let opset_import = vec![OperatorSetIdProto { domain: None, version: Some(17) }];
    ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..Default::default() }.encode_to_vec()
}

fn bake<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["bake", "pkg", "--direction", "d", "-o", "out", "--json"], more].concat()
}

fn names(rows: &Value, key: &str) -> Vec<String> {
    rows.as_array().unwrap().iter().map(|row| row[key].as_str().unwrap().to_string()).collect()
}

fn decode(path: &Path) -> ModelProto {
    ModelProto::decode(fs::read(path).unwrap().as_slice()).unwrap()
}

/// Moves the large initializers that `which` names a file for to external data beside `to`.
fn externalise(from: &Path, to: &Path, which: impl Fn(usize, &str) -> Option<String>) {
    let mut model = decode(from);
    let mut files: std::collections::BTreeMap<String, Vec<u8>> = Default::default();
    let mut moved = 0;
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let Some(raw) = tensor.raw_data.take() else { continue };
        let file = if raw.len() > 1024 { which(moved, tensor.name.as_deref().unwrap()) } else { None };
        let Some(file) = file else {
            tensor.raw_data = Some(raw);
            continue;
        };
        moved += 1;
        let bytes = files.entry(file.clone()).or_default();
        let entry = |key: &str, v: String| StringStringEntryProto { key: Some(key.into()), value: Some(v) };
        tensor.external_data = vec![
            entry("location", file),
            entry("offset", bytes.len().to_string()),
            entry("length", raw.len().to_string()),
        ];
        tensor.data_location = Some(1);
        bytes.extend(raw);
    }
    assert!(moved > 3, "{moved} tensors were moved");
    fs::write(to, model.encode_to_vec()).unwrap();
    for (name, bytes) in files {
        fs::write(to.with_file_name(name), bytes).unwrap();
    }
}

#[test]
fn every_variant_is_baked_and_everything_else_copied() {
    let sandbox = two();
    sandbox.write("pkg/README.md", "# A model\n");
    sandbox.write("pkg/LICENSE", "mine\n");
    sandbox.write("pkg/images/a/logo.png", [0u8, 255, 1]);
    sandbox.write("pkg/.gitattributes", "*.onnx filter=lfs\n");
    sandbox.write("pkg/.git/HEAD", "ref: refs/heads/main\n");
    sandbox.write("pkg/.env", "HF_TOKEN=hf_secret\n");
    sandbox.write("pkg/lancet.html", "<html>old</html>");
    sandbox.write("pkg/onnx/vision_encoder.onnx", small_model("pixel_values", "image_features"));
    sandbox.write("pkg/onnx/sentence.onnx", small_model("input_ids", "last_hidden_state"));
    let script = sandbox.write("pkg/run.sh", "#!/bin/sh\n");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o4755)).unwrap();
    }
    let before = snapshot(&sandbox.path("pkg"));
    let result = json(&mut sandbox.lancet(&bake(&[])), 0);
    assert_same(&before, &snapshot(&sandbox.path("pkg")));

    assert_eq!(names(&result["variants"], "model"), ["onnx/model.onnx", "onnx/model_fp16.onnx"]);
    assert_eq!(result["shared"]["published"], true);
    for variant in result["variants"].as_array().unwrap() {
        assert_eq!(variant["verify"]["passed"], true);
        assert!(!variant["bake"]["edits"].as_array().unwrap().is_empty());
        let name = variant["model"].as_str().unwrap();
        // what the file alone would become
        let alone = format!("alone/{name}");
        let single = ["bake", &format!("pkg/{name}"), "--direction", "d", "-o", &alone, "--json"];
        fs::create_dir_all(sandbox.path("alone/onnx")).unwrap();
        json(&mut sandbox.lancet(&single), 0);
        assert_eq!(
            fs::read(sandbox.path(&alone)).unwrap(),
            fs::read(sandbox.path("out").join(name)).unwrap(),
            "{name}"
        );
        assert_ne!(
            fs::read(sandbox.path("pkg").join(name)).unwrap(),
            fs::read(sandbox.path("out").join(name)).unwrap()
        );
    }
    let gone = |path: &PathBuf| path.starts_with(".git") || path.ends_with(".env") || path.ends_with("lancet.html");
    let wanted: Vec<_> = before.keys().filter(|path| !gone(path)).collect();
    let after = snapshot(&sandbox.path("out"));
    assert_eq!(after.keys().collect::<Vec<_>>(), wanted);
    let card = String::from_utf8(after[Path::new("README.md")].clone().unwrap()).unwrap();
    assert!(card.contains("edited with Lancet") && card.ends_with("# A model\n"), "{card}");
    let changed = ["model.onnx", "model_fp16.onnx", "README.md"];
    for (path, bytes) in after.iter().filter(|(path, _)| !changed.iter().any(|name| path.ends_with(name))) {
        assert_eq!(*bytes, before[path], "{}", path.display());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(sandbox.path("out/run.sh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7111, 0, "{mode:o}");
    }
    assert_eq!(names(&result["shared"]["left_out"], "file"), [".env", ".git", "lancet.html"]);
    let models: Vec<(&str, &str)> = result["shared"]["copied"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| Some((row["file"].as_str()?, row["reason"].as_str()?)))
        .collect();
    assert_eq!(models, [("onnx/sentence.onnx", "makes no logits"), ("onnx/vision_encoder.onnx", "takes no token ids")]);
    let text = sandbox.lancet(&["inspect", "pkg"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("onnx/model_fp16.onnx") && text.contains("float16") && text.contains("13 weights"), "{text}");
    assert!(text.contains("`onnx/vision_encoder.onnx` takes no token ids"), "{text}");
}

#[test]
fn verify_notices_any_model_that_is_not_what_it_should_be() {
    let sandbox = two();
    sandbox.write("pkg/onnx/vision_encoder.onnx", small_model("pixel_values", "image_features"));
    json(&mut sandbox.lancet(&bake(&[])), 0);
    let verify = ["verify", "pkg", "out", "--direction", "d", "--bytes-only", "--json"];
    let passed = json(&mut sandbox.lancet(&verify), 0);
    assert_eq!(names(&passed["variants"], "model"), ["onnx/model.onnx", "onnx/model_fp16.onnx"]);
    assert_eq!(names(&passed["shared"]["copied"], "file"), ["onnx/vision_encoder.onnx"]);

    let fp16 = sandbox.path("out/onnx/model_fp16.onnx");
    let good = fs::read(&fp16).unwrap();
    fs::copy(sandbox.path("pkg/onnx/model_fp16.onnx"), &fp16).unwrap();
    let failed = json(&mut sandbox.lancet(&verify), 1);
    assert_eq!(failed["variants"][0]["verify"]["passed"], true);
    assert_eq!(failed["variants"][1]["verify"]["passed"], false, "an unedited variant passed");
    fs::write(&fp16, &good).unwrap();

    sandbox.write("out/onnx/vision_encoder.onnx", small_model("pixel_values", "other"));
    let failed = json(&mut sandbox.lancet(&verify), 1);
    assert!(failed["shared"]["failures"].to_string().contains("vision_encoder.onnx"), "{failed}");
    sandbox.write("out/onnx/vision_encoder.onnx", small_model("pixel_values", "image_features"));

    fs::write(sandbox.path("out/onnx/model_q4.onnx"), &good).unwrap();
    let failed = json(&mut sandbox.lancet(&verify), 1);
    assert!(failed["shared"]["failures"].to_string().contains("`onnx/model_q4.onnx` is not in the base"), "{failed}");
    fs::remove_file(sandbox.path("out/onnx/model_q4.onnx")).unwrap();

    // a part of what was baked is verified as such by name, never on the output's word
    let part = [&verify[..], &["--only", "onnx/model.onnx"]].concat();
    let failed = json(&mut sandbox.lancet(&part), 1);
    assert!(failed["shared"]["failures"].to_string().contains("`onnx/model_fp16.onnx` is not in the base"), "{failed}");
    fs::remove_file(&fp16).unwrap();
    let without = json(&mut sandbox.lancet(&verify), 1);
    assert_eq!(names(&without["shared"]["left_out"], "file"), ["onnx/model_fp16.onnx"]);
    assert_eq!(without["shared"]["unexplained"][0]["kind"], "missing_file");
    assert_eq!(json(&mut sandbox.lancet(&part), 0)["shared"]["passed"], true);
}

#[test]
fn only_leaves_the_others_out_with_what_is_theirs() {
    let sandbox = sandbox(&[("model_fp16.onnx", "chat-fp16")]);
    let model = sandbox.path("pkg/onnx/model.onnx");
    externalise(&fixture("chat").join("model.onnx"), &model, |_, _| Some("model.onnx_data".into()));
    sandbox.write("pkg/onnx/model_q4.onnx", "no model at all");
    sandbox.write("pkg/onnx/model_q4.onnx_data", "its weights");
    sandbox.refused(&mut sandbox.lancet(&bake(&[])), 1, &["`onnx/model_q4.onnx`", "is not an ONNX model"]);
    sandbox.refused(
        &mut sandbox.lancet(&bake(&["--only", "*_q8.onnx"])),
        2,
        &["--only *_q8.onnx", "`onnx/model.onnx`, `onnx/model_fp16.onnx`, `onnx/model_q4.onnx`"],
    );
    sandbox.refused(&mut sandbox.lancet(&bake(&["--only", "[z-a]"])), 2, &["is no pattern"]);
    let inspected = json(&mut sandbox.lancet(&["inspect", "pkg", "--json"]), 1);
    assert!(
        inspected["variants"][2]["inspect"]["refusals"][0]["reason"].as_str().unwrap().contains("is not an ONNX model")
    );

    let result = json(&mut sandbox.lancet(&bake(&["--only", "*_fp16.onnx"])), 0);
    assert_eq!(names(&result["variants"], "model"), ["onnx/model_fp16.onnx"]);
    assert_eq!(
        names(&result["shared"]["left_out"], "file"),
        ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx", "onnx/model_q4.onnx_data"]
    );
    let there: Vec<_> = fs::read_dir(sandbox.path("out/onnx")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(there, ["model_fp16.onnx"]);
    // by path, and several
    let more = ["--only", "onnx/model.onnx", "--only", "model_fp16.onnx"];
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    let result = json(&mut sandbox.lancet(&bake(&more)), 0);
    assert_eq!(names(&result["variants"], "model"), ["onnx/model.onnx", "onnx/model_fp16.onnx"]);
    assert!(sandbox.path("out/onnx/model.onnx_data").is_file());
}

#[test]
fn sidecars_keep_their_names_and_number() {
    let sandbox = sandbox(&[("model_fp16.onnx", "chat-fp16")]);
    externalise(&fixture("chat").join("model.onnx"), &sandbox.path("pkg/onnx/model.onnx"), |i, _| {
        Some(if i % 3 == 0 { "model.onnx_data".into() } else { format!("model.onnx_data_{}", i % 3) })
    });
    let before = snapshot(&sandbox.path("pkg"));
    json(&mut sandbox.lancet(&bake(&[])), 0);
    let after = snapshot(&sandbox.path("out"));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for name in ["model.onnx_data", "model.onnx_data_1", "model.onnx_data_2"] {
        let (a, b) = (&before[&Path::new("onnx").join(name)], &after[&Path::new("onnx").join(name)]);
        assert_eq!(a.as_ref().unwrap().len(), b.as_ref().unwrap().len());
        assert_ne!(a, b, "`{name}` has edited weights");
    }
    let verify = ["verify", "pkg", "out", "--direction", "d", "--bytes-only", "--json"];
    assert_eq!(json(&mut sandbox.lancet(&verify), 0)["shared"]["passed"], true);
}

#[test]
fn a_sidecar_of_two_models_is_edited_once_or_refused() {
    let sandbox = sandbox(&[]);
    fs::create_dir_all(sandbox.path("pkg/onnx")).unwrap();
    let all = |_: usize, _: &str| Some("shared_data".to_string());
    let (first, second) = (sandbox.path("pkg/onnx/decoder_model.onnx"), sandbox.path("pkg/onnx/other.onnx"));
    externalise(&fixture("chat").join("model.onnx"), &first, all);
    let mut twin = decode(&first);
    twin.producer_name = Some("another exporter".into());
    fs::write(&second, twin.encode_to_vec()).unwrap();
    let before = snapshot(&sandbox.path("pkg"));
    let result = json(&mut sandbox.lancet(&bake(&[])), 0);
    let after = snapshot(&sandbox.path("out"));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let bytes = |i: usize| result["variants"][i]["bake"]["bytes_written"].as_u64().unwrap();
    let sidecar = after[Path::new("onnx/shared_data")].as_ref().unwrap().len() as u64;
    assert!(bytes(0) > sidecar && bytes(1) < sidecar, "the shared file was written twice");
    let verify = ["verify", "pkg", "out", "--direction", "d", "--bytes-only", "--json"];
    assert_eq!(json(&mut sandbox.lancet(&verify), 0)["shared"]["passed"], true);

    // one of the two holds an edited weight itself: the file would have to be two things at once
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    let inner = decode(&fixture("chat").join("model.onnx"));
    let mut graph = twin.graph.take().unwrap();
    let edited = result["variants"][0]["bake"]["edits"][3]["initializer"].as_str().unwrap();
    let at = graph.initializer.iter().position(|t| t.name.as_deref() == Some(edited)).unwrap();
    let own = inner.graph.unwrap().initializer.into_iter().find(|t| t.name.as_deref() == Some(edited)).unwrap();
    assert!(own.raw_data.is_some());
    graph.initializer[at] = own;
    twin.graph = Some(graph);
    fs::write(&second, twin.encode_to_vec()).unwrap();
    let words = ["`onnx/other.onnx` and `onnx/decoder_model.onnx` share the file `onnx/shared_data`", "--only"];
    sandbox.refused(&mut sandbox.lancet(&bake(&[])), 1, &words);
    // one alone is fine, and the other's file stays because it is needed
    let result = json(&mut sandbox.lancet(&bake(&["--only", "decoder_model.onnx"])), 0);
    assert_eq!(names(&result["shared"]["left_out"], "file"), ["onnx/other.onnx"]);
}

#[test]
fn a_model_that_is_not_baked_never_reads_edited_weights() {
    let sandbox = sandbox(&[]);
    fs::create_dir_all(sandbox.path("pkg/onnx")).unwrap();
    let model = sandbox.path("pkg/onnx/model.onnx");
    externalise(&fixture("chat").join("model.onnx"), &model, |_, _| Some("data".into()));
    let weights = decode(&model).graph.unwrap().initializer;
    let external: Vec<_> = weights.into_iter().filter(|t| t.data_location == Some(1)).collect();
    let baked = json(&mut sandbox.lancet(&["bake", "pkg", "--direction", "d", "-o", "once", "--json"]), 0);
    let edited = names(&only(&baked)["bake"]["edits"], "initializer");
    let is_edited = |t: &lancet::onnx::proto::TensorProto| edited.contains(t.name.as_ref().unwrap());
    for (wanted, code) in [(false, 0), (true, 1)] {
        let tensor = external.iter().find(|t| is_edited(t) == wanted).unwrap().clone();
        let mut vision = ModelProto::decode(small_model("pixel_values", "image_features").as_slice()).unwrap();
        vision.graph.as_mut().unwrap().initializer = vec![tensor];
        sandbox.write("pkg/onnx/vision_encoder.onnx", vision.encode_to_vec());
        let mut command = sandbox.lancet(&bake(&[]));
        match code {
            0 => {
                assert_eq!(json(&mut command, 0)["shared"]["published"], true);
                fs::remove_dir_all(sandbox.path("out")).unwrap();
            }
            _ => {
                sandbox.refused(&mut command, 1, &["`onnx/vision_encoder.onnx` is not baked but reads `onnx/data`"]);
                // an output that was made without it, and got it afterwards
                fs::copy(sandbox.path("pkg/onnx/vision_encoder.onnx"), sandbox.path("once/onnx/vision_encoder.onnx"))
                    .unwrap();
                let verify = ["verify", "pkg", "once", "--direction", "d", "--bytes-only", "--json"];
                let failed = json(&mut sandbox.lancet(&verify), 1);
                let reads = "`onnx/vision_encoder.onnx` is not edited but reads `onnx/data`";
                assert!(failed["shared"]["failures"].to_string().contains(reads), "{failed}");
            }
        }
    }
}

#[test]
fn a_model_that_no_edit_reaches_does_not_verify_beside_an_edited_one() {
    let sandbox = sandbox(&[("model.onnx", "chat")]);
    sandbox.write("pkg/onnx/model.ort", [8u8, 0, 0, 0, b'O', b'R', b'T', b'M']);
    json(&mut sandbox.lancet(&bake(&["--only", "model.onnx"])), 0);
    let verify = ["verify", "pkg", "out", "--direction", "d", "--bytes-only", "--json"];
    json(sandbox.lancet(&verify).args(["--only", "model.onnx"]), 0);
    fs::copy(sandbox.path("pkg/onnx/model.ort"), sandbox.path("out/onnx/model.ort")).unwrap();
    sandbox.refused(&mut sandbox.lancet(&verify), 1, &["`onnx/model.ort`"]);
    json(sandbox.lancet(&verify).args(["--only", "model.onnx"]), 1);
}

#[test]
fn a_part_of_a_model_with_the_name_of_a_report_is_refused() {
    let sandbox = sandbox(&[]);
    let model = sandbox.path("pkg/model.onnx");
    externalise(&fixture("chat").join("model.onnx"), &model, |_, _| Some("lancet.json".into()));
    let words = ["a part called `lancet.json`", "give the file another name"];
    sandbox.refused(&mut sandbox.lancet(&bake(&[])), 1, &words);
}

#[test]
fn one_variant_that_is_not_understood_refuses_them_all_by_name() {
    let sandbox = two();
    let mut strange = decode(&fixture("chat").join("model.onnx"));
    let graph = strange.graph.as_mut().unwrap();
    let sum = "/model/layers.2/Add_1_output_0";
    let node = graph.node.iter_mut().find(|n| n.output[0] == sum).unwrap();
    (node.op_type, node.domain) = (Some("Mystery".into()), Some("com.example".into()));
    sandbox.write("pkg/onnx/model_strange.onnx", strange.encode_to_vec());
    sandbox.refused(
        &mut sandbox.lancet(&bake(&[])),
        1,
        &["`onnx/model_strange.onnx`", "cannot be followed", "com.example.Mystery", sum],
    );
    let inspected = json(&mut sandbox.lancet(&["inspect", "pkg", "--json"]), 1);
    assert_eq!(inspected["variants"][2]["inspect"]["refusals"][0]["tensor"], sum);
    assert_eq!(inspected["variants"][0]["inspect"]["refusals"], value!([]));
    json(&mut sandbox.lancet(&bake(&["--only", "model{,_fp16}.onnx"])), 0);
}

#[test]
fn variants_of_different_width_are_refused_by_name() {
    let sandbox = two();
    fs::copy(fixture("zoo/llama/optimum/model.onnx"), sandbox.path("pkg/onnx/model_small.onnx")).unwrap();
    sandbox.refused(
        &mut sandbox.lancet(&bake(&[])),
        1,
        &["d_model is 32 in `onnx/model_small.onnx` and 96 in `onnx/model.onnx`"],
    );
}

#[test]
fn what_needs_one_model_lists_them() {
    let sandbox = two();
    fs::write(sandbox.path("pkg/model.onnx"), fs::read(fixture("chat").join("model.onnx")).unwrap()).unwrap();
    let words = ["`model.onnx`, `onnx/model.onnx`, `onnx/model_fp16.onnx`", "--variant NAME"];
    for arguments in
        [&["run", "pkg", "-o", "out"][..], &["collect", "pkg", "-o", "acts"], &["compare", "pkg", "-o", "tried"]]
    {
        sandbox.refused(&mut sandbox.lancet(arguments), 2, &words);
    }
    let pick = |name: &str| {
        let found = json(&mut sandbox.lancet(&["inspect", "pkg", "--json", "--variant", name]), 0);
        only(&found)["inspect"].clone()
    };
    for (name, dtype, path) in [
        ("model_fp16", "float16", "pkg/onnx/model_fp16.onnx"),
        ("model_fp16.onnx", "float16", "pkg/onnx/model_fp16.onnx"),
        ("onnx/model.onnx", "float32", "pkg/onnx/model.onnx"),
        ("model.onnx", "float32", "pkg/model.onnx"),
    ] {
        let found = pick(name);
        assert_eq!((&found["writers"][0]["dtype"], &found["model"]), (&value!(dtype), &value!(path)), "{name}");
    }
    let mut none = sandbox.lancet(&["eval", "pkg", "--variant", "model_q4"]);
    sandbox.refused(&mut none, 2, &["has no model `model_q4`", "`onnx/model_fp16.onnx`"]);
    let mut both = sandbox.lancet(&["eval", "pkg", "--variant", "model"]);
    sandbox.refused(&mut both, 2, &["several models", "`model.onnx`, `onnx/model.onnx`"]);
    sandbox.refused(
        &mut sandbox.lancet(&["bake", "pkg", "--direction", "d", "-o", "out.onnx"]),
        2,
        &["`out.onnx` is one file", "more than one model"],
    );
}

#[test]
fn every_embedding_file_is_edited() {
    let sandbox = Sandbox::new();
    copy_folder(&fixture("zoo/llama/split"), &sandbox.path("pkg"));
    // a second one that goes with no model by its name: a runtime may still combine them
    let tied = fixture("zoo/llama_tied/split/embed_tokens.onnx");
    fs::copy(tied, sandbox.path("pkg/embed_tokens_other.onnx")).unwrap();
    sandbox.write_direction("d", &some_direction(32));
    let result = json(&mut sandbox.lancet(&bake(&[])), 0);
    assert_eq!(names(&result["variants"], "model"), ["decoder_model_merged.onnx", "embed_tokens_other.onnx"]);
    for variant in result["variants"].as_array().unwrap() {
        assert_eq!(variant["verify"]["passed"], true);
        assert!(variant["bake"]["edits"].as_array().unwrap().iter().any(|e| e["kind"] == "embed"), "{variant}");
    }
    for name in ["decoder_model_merged.onnx", "embed_tokens.onnx.data", "embed_tokens_other.onnx"] {
        assert_ne!(
            fs::read(sandbox.path("pkg").join(name)).unwrap(),
            fs::read(sandbox.path("out").join(name)).unwrap()
        );
    }
    let verify = ["verify", "pkg", "out", "--direction", "d", "--bytes-only", "--json"];
    assert_eq!(json(&mut sandbox.lancet(&verify), 0)["shared"]["passed"], true);
    let inspected = json(&mut sandbox.lancet(&["inspect", "pkg", "--json"]), 0);
    assert_eq!(inspected["variants"][1]["inspect"]["d_model"], 32);
    let result =
        json(&mut sandbox.lancet(&["bake", "pkg", "--direction", "d", "-o", "some", "--only", "embed*", "--json"]), 0);
    assert_eq!(names(&result["variants"], "model"), ["embed_tokens.onnx", "embed_tokens_other.onnx"]);
}

#[test]
fn genai_folders_and_merged_decoders_keep_their_layout() {
    let sandbox = Sandbox::new();
    for name in ["genai-fp32", "genai-int4", "optimum121-merged"] {
        copy_folder(&fixture("zoo/llama").join(name), &sandbox.path("pkg").join(name));
    }
    sandbox.write_direction("d", &some_direction(32));
    let before = snapshot(&sandbox.path("pkg"));
    let result = json(&mut sandbox.lancet(&bake(&[])), 0);
    let after = snapshot(&sandbox.path("out"));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert_eq!(
        names(&result["variants"], "model"),
        ["genai-fp32/model.onnx", "genai-int4/model.onnx", "optimum121-merged/decoder_model_merged.onnx"]
    );
    assert_eq!(names(&result["variants"], "precision")[0], "float32");
    assert!(names(&result["variants"], "precision")[1].contains("4 bits (MatMulNBits)"), "{result}");
    let config = Path::new("genai-int4/genai_config.json");
    assert_eq!(before[config], after[config]);
    let verify = ["verify", "pkg", "out", "--direction", "d", "--bytes-only", "--json"];
    assert_eq!(json(&mut sandbox.lancet(&verify), 0)["shared"]["passed"], true);
}

#[cfg(unix)]
#[test]
fn a_snapshot_of_links_becomes_plain_files() {
    use std::os::unix::fs::symlink;
    let plain = two();
    externalise(&fixture("chat").join("model.onnx"), &plain.path("pkg/onnx/model.onnx"), |_, _| {
        Some("model.onnx_data".into())
    });
    let sandbox = Sandbox::new();
    sandbox.write_direction("d", &some_direction(width("chat")));
    let root = sandbox.path("models--a--b/snapshots/0123");
    for (at, (path, bytes)) in snapshot(&plain.path("pkg")).into_iter().enumerate() {
        let Some(bytes) = bytes else { continue };
        sandbox.write(&format!("models--a--b/blobs/{at}"), bytes);
        let link = root.join(&path);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let up = "../".repeat(1 + path.components().count());
        symlink(format!("{up}blobs/{at}"), link).unwrap();
    }
    let snapshot_of = ["bake", "models--a--b/snapshots/0123", "--direction", "d", "-o", "out", "--json"];
    let result = json(&mut sandbox.lancet(&snapshot_of), 0);
    json(&mut plain.lancet(&bake(&[])), 0);
    assert_eq!(result["shared"]["left_out"], value!([]));
    assert_same(&snapshot(&plain.path("out")), &snapshot(&sandbox.path("out")));
    let links = snapshot(&sandbox.path("out")).into_keys().filter(|p| sandbox.path("out").join(p).is_symlink());
    assert_eq!(links.collect::<Vec<_>>(), Vec::<PathBuf>::new());
}

/// Stops the work when a stage begins.
struct Stopper<'a> {
    stage: &'a Stage,
    cancelled: &'a AtomicBool,
}

impl Observer for Stopper<'_> {
    fn start(&self, stage: &Stage, _: u64) {
        if stage == self.stage {
            self.cancelled.store(true, Ordering::SeqCst);
        }
    }
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}

#[test]
fn stopped_at_any_point_nothing_is_left() {
    let sandbox = two();
    let before = snapshot(sandbox.root());
    let out = sandbox.path("out");
    let edit = Direction::new(some_direction(width("chat")).into_iter().map(f64::from).collect()).unwrap().into();
    let write = |variant: &str| Stage::WriteModel { variant: Some(variant.into()) };
    for stage in &[write("onnx/model.onnx"), write("onnx/model_fp16.onnx"), Stage::WriteOtherFiles] {
        let cancelled = AtomicBool::new(false);
        let package = Package::find(&sandbox.path("pkg"), &[]).unwrap();
        let options = BakeOptions {
            out: &out,
            weights_only: false,
            quantised: Default::default(),
            max_rounding_error: None,
            runtime: None,
            sync: true,
            cancelled: &cancelled,
        };
        let stopper = Stopper { stage, cancelled: &cancelled };
        let ready = pipeline::preflight(&package, &out).unwrap();
        let error = pipeline::bake(&ready, &edit, &options, None, &stopper).unwrap_err();
        let words = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(words.contains("cancelled"), "{stage}: {words}");
        assert_same(&before, &snapshot(sandbox.root()));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn room_is_needed_for_the_whole_package_up_front() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(&self.0).status();
        }
    }
    let sandbox = two();
    let tiny = sandbox.path("tiny");
    fs::create_dir(&tiny).unwrap();
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=5m", "tmpfs"]).arg(&tiny).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no tmpfs can be mounted here");
        return;
    }
    let _mounted = Mounted(tiny);
    // either would fit alone
    let mut command = sandbox.lancet(&["bake", "pkg", "--direction", "d", "-o", "tiny/out"]);
    let stderr = sandbox.refused(&mut command, 1, &["not enough room"]);
    assert!(!stderr.contains("write the model"), "it began to write: {stderr}");
}

/// `mean(harmful) - mean(harmless)` of the bundled model: without it, true refusal is gone.
fn true_refusal() -> Vec<f32> {
    let bytes = fs::read(fixture("chat/reference.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let row = |name: &str| -> Vec<f64> {
        let view = tensors.tensor(name).unwrap();
        let [n_pos, n_layers, d_model] = *view.shape() else { panic!("three dimensions") };
        let all: Vec<f64> = view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
        let at = ((n_pos - 1) * n_layers + 3) * d_model;
        all[at..at + d_model].to_vec()
    };
    row("mean.harmful").iter().zip(row("mean.harmless")).map(|(a, b)| (a - b) as f32).collect()
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn run_bakes_and_measures_every_variant_and_bake_measures_the_same() {
    onnx_runtime();
    let sandbox = two();
    copy_folder(&fixture("chat").join("prompts"), &sandbox.path("prompts"));
    let sizes = [
        "--prompts",
        "prompts",
        "--max-new-tokens",
        "12",
        "--n-test",
        "16",
        "--min-prompts",
        "0",
        "--max-harmful-drop-bound",
        "off",
        "--wrapped-prompts",
        "0",
        "--no-cost",
        "--kl-positions",
        "1",
        "--json",
    ];
    let mut run = sandbox.lancet(&["run", "pkg", "-o", "out", "--variant", "model_fp16", "--method", "wang"]);
    let run = json(run.args(sizes), 0);
    assert_eq!(run["variants"][1]["guard"]["passed"], true);
    assert!(run["shared"]["outputs"]["model"].as_str().unwrap().ends_with("out/onnx/model_fp16.onnx"));
    let variants = run["variants"].as_array().unwrap();
    assert_eq!(names(&run["variants"], "model"), ["onnx/model.onnx", "onnx/model_fp16.onnx"]);
    assert_eq!(run["shared"]["direction_from"], "onnx/model_fp16.onnx");
    for variant in variants {
        let rate = |when: &str, class: &str| variant["eval"][when][class]["refusal_rate"].as_f64().unwrap();
        assert!(rate("after", "pseudo_harmful") < 0.5 * rate("before", "pseudo_harmful"), "{variant}");
        assert!(rate("after", "harmful") >= rate("before", "harmful") - 0.02, "{variant}");
        assert!(
            variant["verify"]["max_abs_logit_diff"].as_f64().unwrap() <= variant["verify"]["bound"].as_f64().unwrap()
        );
        assert_eq!(variant["guard"]["passed"], true);
    }
    let html = fs::read_to_string(sandbox.path("out/lancet.html")).unwrap();
    // the page escapes the slash too
    assert!(html.contains("Every variant of the package") && html.contains("onnx&#x2f;model.onnx"));

    let tokens: Vec<String> =
        run["shared"]["select"]["refusal_tokens"].as_array().unwrap().iter().map(|t| t["id"].to_string()).collect();
    let tokens = tokens.join(",");
    let direction = ["--direction", "out/lancet.direction.safetensors", "--measure", "--refusal-tokens", &tokens];
    let mut bake = sandbox.lancet(&["bake", "pkg", "-o", "again"]);
    let baked = json(bake.args(direction).args(sizes), 0);
    for (a, b) in variants.iter().zip(baked["variants"].as_array().unwrap()) {
        assert_eq!((&a["eval"], &a["guard"]), (&b["eval"], &b["guard"]));
    }
    let mut verify = sandbox.lancet(&["verify", "pkg", "out", "--direction", "out/lancet.direction.safetensors"]);
    let verified = json(verify.args(["--prompts", "prompts", "--json"]), 0);
    assert!(verified["variants"][0]["verify"]["max_abs_logit_diff"].as_f64().unwrap() < 1e-4);
}

/// The direction that the independent reference selects at lambda 1 (`fixtures/chat/reference.json`): position -1, layer 2.
fn false_refusal() -> Vec<f32> {
    let bytes = fs::read(fixture("chat/reference.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor("direction.lambda_1").unwrap();
    let [n_pos, n_layers, d_model] = *view.shape() else { panic!("three dimensions") };
    let all = view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32);
    all.skip(((n_pos - 1) * n_layers + 2) * d_model).take(d_model).collect()
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn every_form_of_the_chat_model_ends_up_alike() {
    onnx_runtime();
    let sandbox = two();
    copy_folder(&fixture("chat-package/onnx"), &sandbox.path("pkg/onnx"));
    copy_folder(&fixture("chat-genai-int4"), &sandbox.path("pkg/genai-int4"));
    sandbox.write_direction("d", &false_refusal());
    let before = snapshot(&sandbox.path("pkg"));
    let prompts = fixture("chat/prompts");
    // the costs of nine models are not what is shown here
    let measured = ["--measure", "--max-new-tokens", "12", "--refusal-tokens", "I,As", "--no-cost"];
    let mut command = sandbox.lancet(&bake(&measured));
    let result = json(command.arg("--prompts").arg(prompts), 0);
    let after = snapshot(&sandbox.path("out"));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());

    let variants = result["variants"].as_array().unwrap();
    let rate = |variant: &Value, when: &str, class: &str| {
        let found = &variant["eval"][when][class];
        assert_eq!(found["total"], 128, "{found}");
        found["refusal_rate"].as_f64().unwrap()
    };
    let full = variants.iter().find(|variant| variant["model"] == "onnx/model.onnx").unwrap();
    assert!(rate(full, "after", "pseudo_harmful") < 0.2 && rate(full, "before", "pseudo_harmful") > 0.95);
    let mut quantised = 0;
    let mut failures = Vec::new();
    for variant in variants {
        let name = variant["model"].as_str().unwrap();
        assert_eq!(variant["verify"]["passed"], true, "{name}");
        for class in ["harmful", "pseudo_harmful", "harmless"] {
            let (found, wanted) = (rate(variant, "after", class), rate(full, "after", class));
            if (found - wanted).abs() > 0.05 {
                failures.push(format!("{name}: {class} is refused at {found}, at {wanted} in float32"));
            }
        }
        if rate(variant, "after", "harmful") < rate(variant, "before", "harmful") - 0.02 {
            failures.push(format!("{name}: true refusal fell"));
        }
        if rate(variant, "before", "pseudo_harmful") < 0.95 {
            failures.push(format!("{name}: did not over-refuse, nothing is shown"));
        }
        let edits = variant["bake"]["edits"].as_array().unwrap();
        assert_eq!(edits.len(), 13, "{name}: the embedding and two writers a block");
        let treated = edits.iter().filter(|edit| edit["bits"].is_number()).count();
        assert!(treated == 0 || treated >= 12, "{name}: {treated} quantised writers");
        quantised += usize::from(treated > 0);
    }
    assert_eq!((variants.len(), quantised), (9, 7));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn the_guard_stops_a_whole_package() {
    onnx_runtime();
    let sandbox = two();
    copy_folder(&fixture("chat").join("prompts"), &sandbox.path("prompts"));
    sandbox.write_direction("d", &true_refusal());
    let sizes = [
        "--measure",
        "--prompts",
        "prompts",
        "--max-new-tokens",
        "12",
        "--n-test",
        "16",
        "--min-prompts",
        "0",
        "--max-harmful-drop-bound",
        "off",
        "--wrapped-prompts",
        "0",
        "--no-cost",
        "--kl-positions",
        "1",
    ];
    let before = snapshot(sandbox.root());
    let mut refused = sandbox.lancet(&bake(&sizes));
    let result = json(&mut refused, 3);
    assert_eq!(result["shared"]["published"], false);
    for variant in result["variants"].as_array().unwrap() {
        assert_eq!(variant["guard"]["passed"], false, "{variant}");
    }
    assert_same(&before, &snapshot(sandbox.root()));
    // the note stands behind all that the edit says of itself
    let weaker = ["--strength", "0.99"];
    let forced = json(sandbox.lancet(&bake(&sizes)).args(weaker).arg("--force"), 0);
    assert_eq!(
        (&forced["shared"]["published"], &forced["variants"][0]["guard"]["overridden"]),
        (&value!(true), &value!(true))
    );
    let written = decode(&sandbox.path("out/onnx/model.onnx"));
    let entry = written.metadata_props.iter().find(|e| e.key.as_deref() == Some("lancet.guard")).unwrap();
    assert_eq!(entry.value.as_deref(), Some("forced"));
    let verify = ["verify", "pkg", "out", "--direction", "d", "--bytes-only", "--json"];
    json(sandbox.lancet(&verify).args(weaker), 0);
    // a model whose guard passes is not marked
    sandbox.write_direction("d", &false_refusal());
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    let passed = json(sandbox.lancet(&bake(&sizes)).arg("--force"), 0);
    assert_eq!(passed["variants"][0]["guard"]["passed"], true);
    let written = decode(&sandbox.path("out/onnx/model.onnx"));
    assert!(written.metadata_props.iter().all(|e| e.key.as_deref() != Some("lancet.guard")));
}

#[test]
fn a_folder_with_one_model_is_a_package_of_one_and_copied_whole() {
    let sandbox = sandbox(&[("model.onnx", "chat")]);
    sandbox.write("pkg/images/logo.png", [1u8, 2, 3]);
    let result = json(&mut sandbox.lancet(&bake(&[])), 0);
    assert!(only(&result)["bake"]["edits"].as_array().is_some_and(|e| e.len() == 13), "{result}");
    let files = |name: &str| snapshot(&sandbox.path(name)).into_keys().collect::<Vec<_>>();
    assert_eq!(files("pkg"), files("out"));
    let inspected = json(&mut sandbox.lancet(&["inspect", "pkg", "--json"]), 0);
    assert_eq!(only(&inspected)["inspect"]["d_model"], 96);
    // a file takes its configs along, from the folder above
    json(&mut sandbox.lancet(&["bake", "pkg/onnx/model.onnx", "--direction", "d", "-o", "file", "--json"]), 0);
    assert!(sandbox.path("file/onnx/model.onnx").is_file() && sandbox.path("file/tokenizer.json").is_file());
    assert!(!sandbox.path("file/images").exists());
}

/// A fixture's graph, changed, beside its external data.
fn change(sandbox: &Sandbox, file: &str, change: impl FnOnce(&mut GraphProto)) {
    let mut model = ModelProto::decode(fs::read(sandbox.path(file)).unwrap().as_slice()).unwrap();
    change(model.graph.as_mut().unwrap());
    fs::write(sandbox.path(file), model.encode_to_vec()).unwrap();
}

/// A constant of the file.
fn constant(name: &str, dims: &[i64], data_type: i32, raw: Vec<u8>) -> TensorProto {
    let (name, dims) = (Some(name.into()), dims.to_vec());
    TensorProto { name, dims, data_type: Some(data_type), raw_data: Some(raw), ..Default::default() }
}

/// Bakes `pkg` and verifies it with ONNX Runtime: what the stream keeps is measured on the files as published.
#[track_caller]
fn baked_and_run(sandbox: &Sandbox) -> Value {
    let result = json(&mut sandbox.lancet(&bake(&[])), 0);
    let verify = json(&mut sandbox.lancet(&["verify", "pkg", "out", "--direction", "d", "--json"]), 0);
    let stream = &only(&verify)["verify"]["stream"];
    assert!(stream["share_before"].as_f64().unwrap() > 1e-2, "{verify}");
    assert!(stream["share_after"].as_f64().unwrap() < 1e-5, "{verify}");
    result
}

#[test]
fn an_embedding_file_that_takes_image_features_is_edited_behind_them() {
    onnx_runtime();
    let sandbox = Sandbox::new();
    copy_folder(&fixture("zoo/llama/split"), &sandbox.path("pkg"));
    let direction = some_direction(32);
    sandbox.write_direction("d", &direction);
    // as onnxruntime-genai's Phi-3-vision: features take the places of token 5
    change(&sandbox, "pkg/embed_tokens.onnx", |graph| {
        graph.node[0].output[0] = "text".into();
        graph.input.push(value_info("image_features", 1, &["num_image_tokens", "32"]));
        graph.initializer.push(constant("image_token", &[], 7, 5i64.to_le_bytes().to_vec()));
        let perm =
            AttributeProto { name: Some("perm".into()), ints: vec![1, 0], r#type: Some(7), ..Default::default() };
        graph.node.extend([
            node("Equal", "is_image", &["input_ids", "image_token"], &["is_image"], vec![]),
            node("NonZero", "where", &["is_image"], &["where"], vec![]),
            node("Transpose", "rows", &["where"], &["rows"], vec![perm]),
            node("ScatterND", "scatter", &["text", "rows", "image_features"], &["inputs_embeds"], vec![]),
        ]);
    });
    let result = baked_and_run(&sandbox);
    let embed = only(&result)["bake"]["edits"].as_array().unwrap().iter().find(|e| e["kind"] == "embed").unwrap();
    assert_eq!(embed["treatment"], "nodes", "{embed}");

    // text and image positions alike are those of the base without the direction
    let runtime = Runtime::load(&common::onnxruntime_library(), Device::Cpu, 1).unwrap();
    let features: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
    let embeddings = |folder: &str| {
        let mut model = runtime.published(&sandbox.path(folder).join("embed_tokens.onnx")).unwrap();
        let ids = ArrayD::from_shape_vec(vec![1, 5], vec![3, 5, 7, 5, 9]).unwrap();
        let ids = model.upload(Tensor::I64(ids), DataType::INT64).unwrap();
        let rows = ArrayD::from_shape_vec(vec![2, 32], features.clone()).unwrap();
        let rows = model.upload(Tensor::F32(rows), DataType::FLOAT).unwrap();
        let fed = vec![("input_ids".to_string(), &ids), ("image_features".to_string(), &rows)];
        let found = model.run(fed, &["inputs_embeds".to_string()]).unwrap();
        model.download(&found[0]).unwrap().into_raw_vec_and_offset().0
    };
    let (before, after) = (embeddings("pkg"), embeddings("out"));
    let length: f64 = direction.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    for (x, y) in before.chunks(32).zip(after.chunks(32)) {
        let along: f64 = x.iter().zip(&direction).map(|(x, r)| f64::from(*x) * f64::from(*r) / length).sum();
        assert!(along.abs() > 1e-3, "the base has something to lose");
        for ((x, y), r) in x.iter().zip(y).zip(&direction) {
            let wanted = f64::from(*x) - along * f64::from(*r) / length;
            assert!((wanted - f64::from(*y)).abs() < 1e-6, "{wanted} {y}");
        }
    }
}

#[test]
fn an_embedding_file_that_makes_an_input_for_each_layer_too_feeds_its_decoder() {
    onnx_runtime();
    let sandbox = Sandbox::new();
    copy_folder(&fixture("zoo/llama/split"), &sandbox.path("pkg"));
    sandbox.write_direction("d", &some_direction(32));
    // as Gemma 3n: a small embedding of its own that the decoder writes into the stream
    change(&sandbox, "pkg/embed_tokens.onnx", |graph| {
        let table: Vec<u8> = (0..96 * 6).flat_map(|i| ((i as f32 * 0.71).sin()).to_le_bytes()).collect();
        graph.initializer.push(constant("per_layer", &[96, 6], 1, table));
        graph.node.push(node("Gather", "per_layer", &["per_layer", "input_ids"], &["per_layer_inputs"], vec![]));
        graph.output.push(value_info("per_layer_inputs", 1, &["batch", "sequence", "6"]));
    });
    let missing = ["bake", "pkg/decoder_model_merged.onnx", "--direction", "d", "-o", "alone"];
    change(&sandbox, "pkg/decoder_model_merged.onnx", |graph| {
        let weight: Vec<u8> = (0..6 * 32).flat_map(|i| ((i as f32 * 0.53).cos()).to_le_bytes()).collect();
        graph.initializer.push(constant("per_layer_projection", &[6, 32], 1, weight));
        graph.input.push(value_info("per_layer_inputs", 1, &["batch", "sequence", "6"]));
        let down = graph.node.iter().position(|n| n.output[0] == "linear_6").unwrap();
        graph.node[down].output[0] = "down".into();
        let product = ["per_layer_inputs", "per_layer_projection"];
        graph.node.splice(
            down + 1..down + 1,
            [
                node("MatMul", "per_layer", &product, &["per_layer"], vec![]),
                node("Add", "joined", &["down", "per_layer"], &["linear_6"], vec![]),
            ],
        );
    });
    baked_and_run(&sandbox);
    assert!(sandbox.lancet(&missing).output().unwrap().status.success());
}

#[test]
fn a_quantised_embedding_of_two_decoders_keeps_the_nodes_that_rounding_fell_back_to() {
    let sandbox = Sandbox::new();
    copy_folder(&fixture("zoo/llama/split"), &sandbox.path("pkg"));
    sandbox.write_direction("d", &some_direction(32));
    change(&sandbox, "pkg/embed_tokens.onnx", |graph| {
        // far from the ends of the grid, so that nearest rounding is the least that rounding can cost
        let levels = (0..96 * 32).flat_map(|i: i32| ((i * 89 % 101) as i8 - 50).to_le_bytes()).collect();
        graph.initializer =
            vec![constant("levels", &[96, 32], 3, levels), constant("scale", &[], 1, 0.01f32.to_le_bytes().to_vec())];
        graph.node = vec![
            node("DequantizeLinear", "dequantise", &["levels", "scale"], &["table"], vec![]),
            node("Gather", "embed", &["table", "input_ids"], &["inputs_embeds"], vec![]),
        ];
    });
    fs::copy(sandbox.path("pkg/decoder_model_merged.onnx"), sandbox.path("pkg/decoder_model.onnx")).unwrap();
    let result = json(&mut sandbox.lancet(&bake(&["--max-rounding-error", "1"])), 0);
    assert_eq!(names(&result["variants"], "model"), ["decoder_model.onnx", "decoder_model_merged.onnx"]);
    for variant in result["variants"].as_array().unwrap() {
        let edits = variant["bake"]["edits"].as_array().unwrap();
        let embed = edits.iter().find(|edit| edit["kind"] == "embed").unwrap();
        assert_eq!((&embed["treatment"], &variant["verify"]["passed"]), (&value!("nodes"), &value!(true)), "{variant}");
    }
}

#[test]
fn an_embedding_file_that_cannot_do_without_features_is_edited_and_not_run() {
    let sandbox = Sandbox::new();
    copy_folder(&fixture("zoo/llama/split"), &sandbox.path("pkg"));
    sandbox.write_direction("d", &some_direction(32));
    change(&sandbox, "pkg/embed_tokens.onnx", |graph| {
        graph.node[0].output[0] = "text".into();
        graph.input.push(value_info("speaker", 1, &["1", "32"]));
        graph.node.push(node("Add", "voiced", &["text", "speaker"], &["inputs_embeds"], vec![]));
    });
    let inspected = json(&mut sandbox.lancet(&["inspect", "pkg", "--json"]), 0);
    let unfed = &only(&inspected)["inspect"]["interface"]["unfed"];
    assert_eq!(unfed["tensor"], "speaker", "{inspected}");
    assert!(unfed["reason"].as_str().unwrap().contains("features of a fixed size"), "{unfed}");
    let result = json(&mut sandbox.lancet(&bake(&[])), 0);
    assert!(only(&result)["bake"]["edits"].as_array().unwrap().iter().any(|edit| edit["kind"] == "embed"), "{result}");
    // two outputs, and none is what the decoder takes
    change(&sandbox, "pkg/embed_tokens.onnx", |graph| {
        graph.output = vec![value_info("text", 1, &[]), value_info("speech", 1, &[])];
        graph.node[1].output[0] = "speech".into();
    });
    let mut refused = sandbox.lancet(&["bake", "pkg", "--direction", "d", "-o", "refused"]);
    sandbox.refused(&mut refused, 1, &["has several outputs, and none is called `inputs_embeds`", "text, speech"]);
}
