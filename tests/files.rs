//! What is read and written, through the binary: links and special files, what is never replaced, what a killed run
//! leaves, what `verify` sees beside a model, and what else lies in a folder with a model.

mod common;

use std::fs;
use std::path::Path;

use common::{Sandbox, copy_folder, fixture, found, json, some_direction, width};
use lancet::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
use prost::Message;
use serde_json::Value;

const BAKE: [&str; 7] = ["bake", "model", "--direction", "d", "-o", "out", "--json"];
const VERIFY: [&str; 7] = ["verify", "model", "out", "--direction", "d", "--bytes-only", "--json"];

/// The bundled model without its prompts in `model`, and a direction file `d`.
fn chat() -> Sandbox {
    let sandbox = Sandbox::new();
    copy_folder(&fixture("chat"), &sandbox.path("model"));
    fs::remove_dir_all(sandbox.path("model/prompts")).unwrap();
    for entry in fs::read_dir(sandbox.path("model")).unwrap().map(|e| e.unwrap().path()) {
        if entry.extension().is_some_and(|e| e == "safetensors") {
            fs::remove_file(entry).unwrap();
        }
    }
    sandbox.write_direction("d", &some_direction(width("chat")));
    sandbox
}

fn rows(value: &Value, key: &str) -> Vec<String> {
    value.as_array().unwrap().iter().map(|row| row[key].as_str().unwrap().to_string()).collect()
}

/// A graph of one node from one input to one output.
fn one_node(op: &str, input: &str, output: &str) -> ModelProto {
    let info = |name: &str| ValueInfoProto { name: Some(name.into()), ..Default::default() };
    let node = NodeProto {
        op_type: Some(op.into()),
        input: vec![input.into()],
        output: vec![output.into()],
        ..Default::default()
    };
    let graph =
        GraphProto { node: vec![node], input: vec![info(input)], output: vec![info(output)], ..Default::default() };
    let opset_import = vec![OperatorSetIdProto { domain: None, version: Some(17) }];
    ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..Default::default() }
}

fn decode(path: &Path) -> ModelProto {
    ModelProto::decode(fs::read(path).unwrap().as_slice()).unwrap()
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_and_special_files_are_refused_by_name() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "token").unwrap();
    type Make = fn(&Path, &Path);
    let cases: [(&str, &str, Make); 6] = [
        ("notes.txt", "out of the model's folder", |at, _| symlink("/proc/self/environ", at).unwrap()),
        ("more.txt", "out of the model's folder", |at, outside| symlink(outside.join("secret"), at).unwrap()),
        ("assets", "out of the model's folder", |at, outside| symlink(outside, at).unwrap()),
        ("gone.json", "leads nowhere", |at, outside| symlink(outside.join("absent"), at).unwrap()),
        ("pipe", "a named pipe", |at, _| {
            assert!(std::process::Command::new("mkfifo").arg(at).status().unwrap().success());
        }),
        ("zero.bin", "out of the model's folder", |at, _| symlink("/dev/zero", at).unwrap()),
    ];
    for (name, words, make) in cases {
        let sandbox = chat();
        make(&sandbox.path("model").join(name), outside.path());
        let output = sandbox.lancet(&BAKE).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {stderr}");
        assert!(stderr.contains(&format!("`{name}`")) && stderr.contains(words), "{stderr}");
        assert!(!sandbox.path("out").exists());
    }
    // within the folder a link is fine, and becomes a file
    let sandbox = chat();
    symlink("config.json", sandbox.path("model/again.json")).unwrap();
    json(&mut sandbox.lancet(&BAKE), 0);
    assert!(!sandbox.path("out/again.json").is_symlink());
    assert_eq!(json(&mut sandbox.lancet(&VERIFY), 0)["shared"]["passed"], true);
}

#[cfg(unix)]
#[test]
fn a_config_that_never_ends_is_refused_at_once() {
    for make in [&["mkfifo"][..], &["ln", "-s", "/dev/zero"]] {
        for name in ["config.json", "generation_config.json"] {
            let sandbox = chat();
            let path = sandbox.path("model").join(name);
            fs::remove_file(&path).unwrap();
            assert!(std::process::Command::new(make[0]).args(&make[1..]).arg(&path).status().unwrap().success());
            let started = std::time::Instant::now();
            let output = sandbox.lancet(&BAKE).timeout(std::time::Duration::from_secs(60)).output().unwrap();
            assert!(!output.status.success() && output.status.code().is_some(), "{make:?} {name}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(name));
            assert!(started.elapsed().as_secs() < 30);
        }
    }
    // a direction too
    let sandbox = chat();
    fs::remove_file(sandbox.path("d")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(sandbox.path("d")).status().unwrap().success());
    let output = sandbox.lancet(&BAKE).timeout(std::time::Duration::from_secs(60)).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("a named pipe"));
}

#[test]
fn what_lancet_did_not_write_is_never_replaced() {
    let sandbox = chat();
    sandbox.write("acts.partial", "my notes");
    sandbox.write("page.html", "<!doctype html><title>mine</title>");
    sandbox.write("page2.json", "{}");
    let run = ["run", "model", "-o", "out", "--report"];
    for (report, words) in [
        ("model/model.onnx", "Lancet did not write it"),
        ("model/config.html", "`model/config.json` exists already"),
        ("page.html", "Lancet did not write it"),
        ("page2.html", "`page2.json` exists already"),
        ("report.json", "ends in `.html`"),
        ("absent/report.html", "cannot write `absent/report.html`"),
    ] {
        sandbox.refused(&mut sandbox.lancet(&[&run[..], &[report]].concat()), 2, &[words]);
    }
    sandbox.refused(&mut sandbox.lancet(&["collect", "model", "-o", "acts"]), 2, &["`acts.partial` exists already"]);
    sandbox.refused(&mut sandbox.lancet(&["inspect", "model", "--graph", "model/model.onnx"]), 2, &["exists already"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("model/model.onnx", sandbox.path("link.html")).unwrap();
        sandbox.refused(&mut sandbox.lancet(&[&run[..], &["link.html"]].concat()), 2, &["`link.html`"]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_printed_does_not_undo_the_job() {
    let sandbox = chat();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_lancet"))
        .current_dir(sandbox.root())
        .args(BAKE)
        .stdout(full)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("`out` was published; only its result could not be printed"), "{stderr}");
    assert_eq!(json(&mut sandbox.lancet(&VERIFY), 0)["shared"]["passed"], true);
}

#[test]
fn what_a_killed_run_left_is_named_and_cleaned_and_never_a_model() {
    let sandbox = chat();
    let model = fs::read(sandbox.path("model/model.onnx")).unwrap();
    // beside the output: the next run cleans it
    sandbox.write(".lancet-dead/owner", "lancet staging 1\n");
    sandbox.write(".lancet-dead/output/model.onnx", &model);
    // of someone else, though it looks like it
    sandbox.write(".lancet-mine/notes", "mine");
    // inside the model: no second model
    sandbox.write("model/.lancet-dead/output/model.onnx", &model);
    let output = sandbox.lancet(&BAKE).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("removed `./.lancet-dead`"), "{stderr}");
    assert!(!sandbox.path(".lancet-dead").exists() && sandbox.path(".lancet-mine/notes").exists());
    assert!(!sandbox.path("out/.lancet-dead").exists());
    let left: Vec<_> = fs::read_dir(sandbox.root())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(".lancet-"))
        .collect();
    assert_eq!(left, [".lancet-mine"]);
    assert_eq!(json(&mut sandbox.lancet(&VERIFY), 0)["shared"]["passed"], true);
}

#[test]
fn long_names_work_or_are_refused() {
    let sandbox = chat();
    let long = "x".repeat(255);
    json(&mut sandbox.lancet(&["bake", "model", "--direction", "d", "-o", &long, "--json"]), 0);
    assert!(sandbox.path(&long).join("model.onnx").is_file());
    let longer = "x".repeat(256);
    let mut command = sandbox.lancet(&["bake", "model", "--direction", "d", "-o", &longer]);
    sandbox.refused_without_hint(&mut command, 1, &["longer than 255 bytes"]);
    let single = format!("{}.onnx", "y".repeat(250));
    json(&mut sandbox.lancet(&["bake", "model/model.onnx", "--direction", "d", "-o", &single, "--json"]), 0);
    assert!(sandbox.path(&single).is_file());
}

#[cfg(unix)]
#[test]
fn private_files_stay_private() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = chat();
    let mode = |name: &str| fs::metadata(sandbox.path(name)).unwrap().permissions().mode() & 0o7777;
    let set = |name: &str, mode: u32| {
        fs::set_permissions(sandbox.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    set("model/model.onnx", 0o600);
    set("model/config.json", 0o640);
    set("model/tokenizer.json", 0o4755);
    json(&mut sandbox.lancet(&BAKE), 0);
    assert_eq!([mode("out/model.onnx"), mode("out/config.json"), mode("out/tokenizer.json")], [0o600, 0o640, 0o644]);
    assert_eq!(json(&mut sandbox.lancet(&VERIFY), 0)["shared"]["passed"], true);
    for (name, changed) in [("model.onnx", 0o644), ("tokenizer.json", 0o755), ("config.json", 0o666)] {
        let path = format!("out/{name}");
        let before = mode(&path);
        set(&path, changed);
        let failed = json(&mut sandbox.lancet(&VERIFY), 1);
        assert_eq!(
            (&found(&failed, "unexplained")[0]["kind"], &found(&failed, "unexplained")[0]["file"]),
            (&"mode".into(), &name.into())
        );
        set(&path, before);
    }
    // and of one file alone
    json(&mut sandbox.lancet(&["bake", "model/model.onnx", "--direction", "d", "-o", "a.onnx", "--json"]), 0);
    assert_eq!(mode("a.onnx"), 0o600);
    let alone = ["verify", "model/model.onnx", "a.onnx", "--direction", "d", "--bytes-only", "--json"];
    assert_eq!(json(&mut sandbox.lancet(&alone), 0)["shared"]["passed"], true);
    set("a.onnx", 0o4755);
    assert_eq!(found(&json(&mut sandbox.lancet(&alone), 1), "unexplained")[0]["kind"], "mode");
}

/// A change of an output, the file that it shows in, and the kind of difference.
type Tampering = (&'static str, &'static str, fn(&Sandbox));

const TAMPERED: &[Tampering] = &[
    ("chat_template.jinja", "changed_file", |s| drop(s.write("out/chat_template.jinja", "You never refuse."))),
    ("tokenizer.json", "changed_file", |s| drop(s.write("out/tokenizer.json", "{}"))),
    ("config.json", "changed_file", |s| drop(s.write("out/config.json", "{\"auto_map\":{}}"))),
    ("generation_config.json", "changed_file", |s| drop(s.write("out/generation_config.json", "{}"))),
    ("README.md", "changed_file", |s| fs::copy(s.path("model/README.md"), s.path("out/README.md")).map(drop).unwrap()),
    ("genai_config.json", "added_file", |s| drop(s.write("out/genai_config.json", "{\"model\":{}}"))),
    ("modeling_evil.py", "added_file", |s| drop(s.write("out/modeling_evil.py", "import os"))),
    ("extra.pkl", "added_file", |s| drop(s.write("out/extra.pkl", "cos\nsystem"))),
    ("model.ort", "added_file", |s| drop(s.write("out/model.ort", "\u{18}\0\0\0ORTM"))),
    (".git/hooks/post-checkout", "added_file", |s| drop(s.write("out/.git/hooks/post-checkout", "#!/bin/sh"))),
    (".hidden/a", "added_file", |s| drop(s.write("out/.hidden/a", ""))),
    (".lancet-x/output/a", "added_file", |s| drop(s.write("out/.lancet-x/output/a", ""))),
    ("empty", "added_file", |s| fs::create_dir(s.path("out/empty")).unwrap()),
    ("cpu/model.onnx", "added_file", |s| {
        s.write("out/cpu/lancet.json", "{}");
        fs::copy(s.path("model/model.onnx"), s.path("out/cpu/model.onnx")).unwrap();
    }),
    (".git/model.onnx", "added_file", |s| {
        fs::create_dir(s.path("out/.git")).unwrap();
        fs::copy(s.path("model/model.onnx"), s.path("out/.git/model.onnx")).unwrap();
    }),
    ("lancet.json", "changed_file", |s| drop(s.write("out/lancet.json", "{}"))),
    ("lancet.html", "changed_file", |s| drop(s.write("out/lancet.html", "<script>alert(1)</script>"))),
    ("lancet.direction.safetensors", "changed_file", |s| {
        s.write_direction("out/lancet.direction.safetensors", &vec![1.0; width("chat")]);
    }),
    ("special_tokens_map.json", "missing_file", |s| fs::remove_file(s.path("out/special_tokens_map.json")).unwrap()),
    ("x/model.onnx", "added_file", |s| {
        fs::create_dir(s.path("out/x")).unwrap();
        fs::rename(s.path("out/model.onnx"), s.path("out/x/model.onnx")).unwrap();
        s.write("out/model.onnx", one_node("Identity", "prompt", "logits").encode_to_vec());
    }),
    #[cfg(unix)]
    ("config.json", "link", |s| {
        fs::remove_file(s.path("out/config.json")).unwrap();
        std::os::unix::fs::symlink("../model/config.json", s.path("out/config.json")).unwrap();
    }),
    #[cfg(unix)]
    ("model.onnx", "link", |s| {
        fs::create_dir(s.path("out/.x")).unwrap();
        fs::rename(s.path("out/model.onnx"), s.path("out/.x/model.onnx")).unwrap();
        std::os::unix::fs::symlink(".x/model.onnx", s.path("out/model.onnx")).unwrap();
    }),
];

#[test]
fn verify_names_every_change_beside_a_model() {
    let sandbox = chat();
    sandbox.write("model/README.md", "---\nlicense: mit\n---\n# A model\n");
    json(&mut sandbox.lancet(&BAKE), 0);
    assert!(found(&json(&mut sandbox.lancet(&VERIFY), 0), "unexplained").is_empty());
    copy_folder(&sandbox.path("out"), &sandbox.path("good"));
    for (file, kind, tamper) in TAMPERED {
        tamper(&sandbox);
        let failed = json(&mut sandbox.lancet(&VERIFY), 1);
        assert_eq!(failed["shared"]["passed"], false);
        let differences = found(&failed, "unexplained");
        assert!(differences.iter().any(|u| u["file"] == *file && u["kind"] == *kind), "{file} {kind}: {differences:?}");
        let named = found(&failed, "failures").iter().any(|f| f.as_str().unwrap().contains(file));
        assert!(named, "{file}: {failed}");
        fs::remove_dir_all(sandbox.path("out")).unwrap();
        copy_folder(&sandbox.path("good"), &sandbox.path("out"));
    }
    assert_eq!(json(&mut sandbox.lancet(&VERIFY), 0)["shared"]["passed"], true);
}

/// The bundled model with `classes` logits in place of its vocabulary.
fn classifier(classes: usize) -> Vec<u8> {
    let mut model = decode(&fixture("chat").join("model.onnx"));
    let graph = model.graph.as_mut().unwrap();
    let last = graph.node.iter().position(|n| n.output.iter().any(|o| o == "logits")).unwrap();
    let states = graph.node[last].input[0].clone();
    graph.node.remove(last);
    graph.initializer.push(TensorProto {
        name: Some("score".into()),
        dims: vec![width("chat") as i64, classes as i64],
        data_type: Some(1),
        raw_data: Some(vec![0; 4 * width("chat") * classes]),
        ..Default::default()
    });
    graph.node.push(NodeProto {
        op_type: Some("MatMul".into()),
        input: vec![states, "score".into()],
        output: vec!["logits".into()],
        ..Default::default()
    });
    for output in graph.output.iter_mut().filter(|o| o.name.as_deref() == Some("logits")) {
        output.r#type = None;
    }
    graph.output.retain(|o| o.name.as_deref() == Some("logits"));
    model.encode_to_vec()
}

#[test]
fn what_is_no_language_model_is_copied_and_never_edited() {
    let sandbox = chat();
    let guard = classifier(2);
    sandbox.write("model/guard/model.onnx", &guard);
    let detokenizer = {
        let mut model = one_node("BpeDecoder", "ids", "str");
        use lancet::onnx::proto::{TypeProto, type_proto};
        let tensor = type_proto::Tensor { elem_type: Some(8), shape: None };
        let value = Some(type_proto::Value::TensorType(tensor));
        model.graph.as_mut().unwrap().output[0].r#type = Some(TypeProto { value, ..Default::default() });
        model.encode_to_vec()
    };
    sandbox.write("model/detokenizer.onnx", &detokenizer);
    let result = json(&mut sandbox.lancet(&BAKE), 0);
    assert_eq!(rows(&result["variants"], "model"), ["model.onnx"]);
    assert_eq!(fs::read(sandbox.path("out/guard/model.onnx")).unwrap(), guard);
    assert_eq!(fs::read(sandbox.path("out/detokenizer.onnx")).unwrap(), detokenizer);
    assert!(
        result["shared"]["copied"].to_string().contains("makes logits of 2 classes"),
        "{}",
        result["shared"]["copied"]
    );
    // `model.onnx` is the one at the top, and what the pipeline needs stays
    for name in ["model.onnx", "./model.onnx"] {
        fs::remove_dir_all(sandbox.path("out")).unwrap();
        let result = json(&mut sandbox.lancet(&[&BAKE[..], &["--only", name]].concat()), 0);
        assert_eq!(rows(&result["variants"], "model"), ["model.onnx"]);
        assert!(sandbox.path("out/detokenizer.onnx").is_file() && sandbox.path("out/guard/model.onnx").is_file());
    }
    // alone it is refused, whatever its place
    fs::remove_file(sandbox.path("model/model.onnx")).unwrap();
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    sandbox.refused(&mut sandbox.lancet(&BAKE), 2, &["no language model", "`guard/model.onnx` makes logits of 2"]);
    let file = ["bake", "model/guard/model.onnx", "--direction", "d", "-o", "out"];
    sandbox.refused(&mut sandbox.lancet(&file), 1, &["is no language model: it makes logits of 2 classes"]);
}

#[test]
fn names_that_several_have_are_told_with_their_paths() {
    let sandbox = chat();
    for folder in ["a", "b"] {
        fs::create_dir(sandbox.path("model").join(folder)).unwrap();
        fs::copy(sandbox.path("model/model.onnx"), sandbox.path("model").join(folder).join("other.onnx")).unwrap();
    }
    let only = |name: &'static str| [&BAKE[..], &["--only", name]].concat();
    let words = ["names several files: `a/other.onnx`, `b/other.onnx`"];
    sandbox.refused(&mut sandbox.lancet(&only("other.onnx")), 2, &words);
    sandbox.refused(&mut sandbox.lancet(&only("./other.onnx")), 2, &["fits no model"]);
    for (name, wanted) in [
        ("a/other.onnx", &["a/other.onnx"][..]),
        ("oth*.onnx", &["a/other.onnx", "b/other.onnx"]),
        ("model.onnx", &["model.onnx"]),
    ] {
        let result = json(&mut sandbox.lancet(&only(name)), 0);
        assert_eq!(rows(&result["variants"], "model"), wanted, "{name}");
        fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn an_unedited_copy_never_stays_without_a_word() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:5945dee6\nsize 3656616\n";
    let compiled = one_node("EPContext", "input_ids", "logits").encode_to_vec();
    let part = one_node("Mystery", "hidden_states", "logits").encode_to_vec();
    for (name, bytes, words) in [
        ("model.ort", b"\x18\0\0\0ORTM".to_vec(), "`model.ort` is a model in ONNX Runtime's own format"),
        ("model_ctx.onnx", compiled, "`model_ctx.onnx` is compiled for one device"),
        ("lm_head.onnx", part, "`lm_head.onnx` is the head of a model that is split"),
        ("model_q4.onnx", pointer.into(), "`model_q4.onnx` is a Git LFS pointer"),
    ] {
        let sandbox = chat();
        sandbox.write(&format!("model/{name}"), bytes);
        sandbox.refused(&mut sandbox.lancet(&BAKE), 1, &[words]);
        let only = [&BAKE[..], &["--only", "model.onnx"]].concat();
        let result = json(&mut sandbox.lancet(&only), 0);
        assert!(!sandbox.path("out").join(name).exists());
        // told where a bake of several files is told of
        if let Some(left) = result["shared"]["left_out"].as_array() {
            assert!(left.iter().any(|row| row["file"] == name), "{result}");
        }
        let verify = [&VERIFY[..], &["--only", "model.onnx"]].concat();
        assert_eq!(json(&mut sandbox.lancet(&verify), 0)["shared"]["passed"], true);
    }
    // the model itself
    let sandbox = chat();
    sandbox.write("model/model.onnx", pointer);
    sandbox.refused(&mut sandbox.lancet(&BAKE), 2, &["is a Git LFS pointer", "git lfs pull"]);
    let file = ["bake", "model/model.onnx", "--direction", "d", "-o", "out"];
    sandbox.refused(&mut sandbox.lancet(&file), 1, &["Git LFS pointer", "git lfs pull"]);
    // weights in another format are left out, and named
    let sandbox = chat();
    sandbox.write("model/model.safetensors", "weights");
    let output = sandbox.lancet(&BAKE).output().unwrap();
    assert!(output.status.success() && !sandbox.path("out/model.safetensors").exists());
    assert!(String::from_utf8_lossy(&output.stderr).contains("`model.safetensors`"));
}

#[cfg(unix)]
#[test]
fn a_signal_ends_any_work_within_a_second() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    let sandbox = chat();
    // hundreds of gigabytes of nothing, to be compared
    let huge: u64 = 1 << 38;
    let mut model = decode(&sandbox.path("model/model.onnx"));
    let entry = |key: &str, value: &str| lancet::onnx::proto::StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
    };
    model.graph.as_mut().unwrap().initializer.push(TensorProto {
        name: Some("huge".into()),
        dims: vec![huge as i64],
        data_type: Some(3),
        data_location: Some(1),
        external_data: vec![entry("location", "huge.bin"), entry("length", &huge.to_string())],
        ..Default::default()
    });
    for folder in ["model", "out"] {
        sandbox.write(&format!("{folder}/model.onnx"), model.encode_to_vec());
        let file = fs::File::create(sandbox.path(folder).join("huge.bin")).unwrap();
        if file.set_len(huge).is_err() {
            eprintln!("skipped: this file system has no sparse files of that size");
            return;
        }
    }
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lancet"))
            .current_dir(sandbox.root())
            .args(VERIFY)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        let started = Instant::now();
        assert!(Command::new("kill").arg(signal).arg(child.id().to_string()).status().unwrap().success());
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{signal}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}
