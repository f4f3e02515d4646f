//! Sweeps: rows against what `run` measures after baking, the recommendation, exit codes, cross-set tables; and that
//! what is baked with a strength and an addition is what was measured.

mod common;
#[path = "common/zoo.rs"]
#[allow(dead_code, reason = "the other tests of the zoo use the rest")]
mod zoo;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use common::{Sandbox, fixture, json, lancet, only, onnx_runtime};
use lancet::bake::QuantisedMode;
use lancet::edit::{Ablation, Addition, Direction, Edit};
use lancet::pipeline::engine::{Engine, Silent};
use lancet::pipeline::{BakeOptions, Opened, bake_only, check};
use lancet::report::{AddedTo, VariantResult};
use lancet::runtime::session::{Device, Runtime};
use serde_json::Value;

/// Few prompts and few tokens: the same for every command.
const FEW: [&str; 19] = [
    "--json",
    "--quiet",
    "--max-new-tokens",
    "8",
    "--n-train",
    "32",
    "--n-val",
    "8",
    "--n-test",
    "12",
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

fn command(name: &str) -> assert_cmd::Command {
    let mut command = lancet();
    command.arg(name).arg(fixture("chat")).arg("--prompts").arg(fixture("chat").join("prompts"));
    command.args(FEW);
    command
}

/// One sweep, shared by the tests of this file.
fn swept() -> &'static (PathBuf, Value) {
    static SWEPT: OnceLock<(PathBuf, Value)> = OnceLock::new();
    SWEPT.get_or_init(|| {
        onnx_runtime();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lancet-sweep");
        let _ = fs::remove_dir_all(&folder);
        let result = json(&mut sweep(&folder), 0);
        (folder, result)
    })
}

fn sweep(out: &Path) -> assert_cmd::Command {
    let mut sweep = command("sweep");
    sweep.args(["--lambda", "1,0.5", "--strength", "1,0.75", "--add", "0,2", "--max-harmful-drop", "0.1"]);
    sweep.arg("-o").arg(out);
    sweep
}

fn row(result: &Value, lambda: f64, strength: f64, alpha: f64) -> &Value {
    let wanted = [lambda, strength, alpha];
    let rows = result["rows"].as_array().unwrap();
    rows.iter()
        .find(|row| [&row["lambda"], &row["strength"], &row["alpha"]].map(Value::as_f64) == wanted.map(Some))
        .expect("the setting was tried")
}

#[test]
fn every_setting_is_measured_and_the_best_within_the_policy_recommended() {
    let (folder, result) = swept();
    let rows = result["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1 + 2 * 2 * 2);
    assert!(rows[0]["lambda"].is_null() && rows[0]["guard"].is_null());
    for row in &rows[1..] {
        if row["failure"].is_null() {
            assert_eq!(row["classes"]["pseudo_harmful"]["total"], 12);
            assert!(row["harmless_kl"].as_f64().is_some() && row["guard"]["passed"].is_boolean());
        }
    }
    // lambda 1: the direction is orthogonal to the true-refusal one
    assert!(row(result, 1.0, 1.0, 0.0)["cosine"].as_f64().unwrap().abs() < 1e-5);
    let recommended = &rows[usize::try_from(result["recommended"].as_u64().unwrap()).unwrap()];
    assert_eq!(recommended["guard"]["passed"], true);
    let refused = |row: &Value| row["classes"]["pseudo_harmful"]["refused"].as_u64().unwrap();
    let within = rows.iter().filter(|row| row["guard"]["passed"] == true);
    assert!(within.clone().all(|row| refused(row) >= refused(recommended)));
    assert!(refused(recommended) < refused(&rows[0]), "nothing was gained");
    let again: Value = serde_json::from_slice(&fs::read(folder.join("sweep.json")).unwrap()).unwrap();
    assert_eq!(&again, result);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn a_second_sweep_gives_the_same_bytes() {
    let (folder, first) = swept();
    let sandbox = Sandbox::new();
    let out = sandbox.path("again");
    let second = json(&mut sweep(&out), 0);
    let without_times = |value: &Value| {
        let mut value = value.clone();
        value.as_object_mut().unwrap().remove("seconds").unwrap();
        serde_json::to_string(&value).unwrap()
    };
    assert_eq!(without_times(first), without_times(&second));
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(folder), names(&out));
    for name in names(folder).iter().filter(|name| name.to_string_lossy().ends_with(".safetensors")) {
        // safetensors keeps metadata in a map of no order
        let read = |folder: &Path| lancet::pipeline::direction_file::load(&folder.join(name)).unwrap();
        assert_eq!(read(folder), read(&out), "{name:?}");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn rows_equal_what_run_measures_on_the_baked_model() {
    let (_, result) = swept();
    for (lambda, strength, alpha) in [("0.5", "1", "0"), ("1", "0.75", "2")] {
        let sandbox = Sandbox::new();
        let mut run = command("run");
        run.args(["--lambda", lambda, "--strength", strength, "--add", alpha, "--force", "--max-harmful-drop", "0.1"]);
        let ran = json(run.arg("-o").arg(sandbox.path("out")), 0);
        let one = only(&ran);
        assert_eq!(one["verify"]["passed"], true, "{}", one["verify"]);
        let row = row(result, lambda.parse().unwrap(), strength.parse().unwrap(), alpha.parse().unwrap());
        assert_eq!(row["layer"], ran["shared"]["select"]["selected"]["layer"]);
        for class in ["pseudo_harmful", "harmful", "harmless"] {
            let (ours, theirs) = (&row["classes"][class], &one["eval"]["after"][class]);
            assert_eq!(ours["refused"], theirs["refused"], "{class} with lambda {lambda}");
            let score = |class: &Value| class["mean_refusal_score"].as_f64().unwrap();
            assert!((score(ours) - score(theirs)).abs() < 1e-3, "{class} with lambda {lambda}");
        }
        let kl = |value: &Value| value.as_f64().unwrap();
        assert!((kl(&row["harmless_kl"]) - kl(&one["eval"]["harmless_kl"])).abs() < 1e-5);
        if alpha != "0" {
            assert_eq!(ran["shared"]["addition"]["baked"]["place"], "nodes");
            assert_eq!(ran["shared"]["addition"]["alpha"], 2.0);
        }
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn bake_follows_from_a_direction_of_the_sweep_and_verify_repeats_it() {
    let (folder, _) = swept();
    let sandbox = Sandbox::new();
    let direction = folder.join("direction-1-s0.75-a2.safetensors");
    let bake = |out: &str, more: &[&str]| {
        let mut bake = lancet();
        bake.arg("bake").arg(fixture("chat")).arg("--direction").arg(&direction).arg("-o").arg(sandbox.path(out));
        json(bake.args(["--json", "--quiet"]).args(more), 0)
    };
    // strength and factor are those of the file, or of the flags; what the model says of itself is compared with them
    let verify = |out: &str, direction: &Path, more: &[&str]| {
        let mut verify = lancet();
        verify.arg("verify").arg(fixture("chat")).arg(sandbox.path(out)).arg("--direction").arg(direction);
        verify.arg("--prompts").arg(fixture("chat").join("prompts"));
        verify.args(more);
        verify.args(["--json", "--quiet", "--n-val", "6"]).output().map(|o| (o.status.code(), o.stdout)).unwrap()
    };
    bake("part", &[]);
    bake("whole", &["--strength", "1", "--add", "0"]);
    bake("other", &["--add=-1"]);
    let asked: [(&str, &[&str]); 3] =
        [("part", &[]), ("whole", &["--strength", "1", "--add", "0"]), ("other", &["--add=-1"])];
    for (out, more) in asked {
        let (code, stdout) = verify(out, &direction, more);
        assert_eq!(code, Some(0), "{out}: {}", String::from_utf8_lossy(&stdout));
    }
    let (code, stdout) = verify("other", &direction, &["--bytes-only"]);
    assert!(code == Some(1) && String::from_utf8_lossy(&stdout).contains("pass `--add -1` to verify that"));
    // another direction of the same sweep has another vector beside it, or none
    let (code, _) = verify("part", &folder.join("direction-1-s0.75.safetensors"), &[]);
    assert_eq!(code, Some(1));
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn nothing_within_the_policy_is_exit_code_3() {
    onnx_runtime();
    let sandbox = Sandbox::new();
    let mut sweep = command("sweep");
    sweep.args(["--lambda", "0", "--paper", "--max-harmful-drop", "0"]).arg("-o").arg(sandbox.path("out"));
    let result = json(&mut sweep, 3);
    assert!(result["recommended"].is_null());
    assert!(
        result["reason"]
            .as_str()
            .unwrap()
            .contains("no setting is within the policy: refusal of harmful prompts went from")
    );
    assert!(sandbox.path("out/sweep.json").is_file() && sandbox.path("out/direction-0.safetensors").is_file());
    // the table tells the same
    let mut again = lancet();
    again.arg("sweep").arg(fixture("chat")).arg("--prompts").arg(fixture("chat").join("prompts")).args(&FEW[1..]);
    let output = again.args(["--lambda", "0", "--paper", "--max-harmful-drop", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("no setting is within the policy"));
}

#[test]
fn what_cannot_be_swept_is_refused() {
    let sandbox = Sandbox::new();
    let model = fixture("chat");
    let model = model.to_str().unwrap();
    for (flags, word) in
        [(["--lambda", "1,2"], "from 0 to 1"), (["--strength", "0"], "above 0"), (["--cross", "a.txt"], "NAME=FILE")]
    {
        let output = sandbox.lancet(&["sweep", model]).args(flags).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(word), "{stderr}");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn directions_of_sets_are_tried_on_sets() {
    onnx_runtime();
    let sandbox = Sandbox::new();
    let read = |split: &str| -> Vec<String> {
        let path = fixture("chat").join(format!("prompts/pseudo_harmful_{split}.json"));
        let rows: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        rows.as_array().unwrap().iter().map(|row| row["instruction"].as_str().unwrap().to_string()).collect()
    };
    // two halves of the prompts, in two formats of published sets
    let (all, half) = (read("train"), 64);
    let mut csv = String::from("id,type,prompt\n");
    for (id, prompt) in all[..half].iter().enumerate() {
        csv += &format!("{id},homonyms,\"{prompt}\"\n");
    }
    csv += "900,contrast_homonyms,\"not a pseudo-harmful prompt\"\n";
    sandbox.write("xstest.csv", csv);
    sandbox.write("other.txt", all[half..].join("\n"));
    let mut sweep = command("sweep");
    sweep.current_dir(sandbox.root()).args([
        "--lambda",
        "1",
        "--cross",
        "first=xstest.csv",
        "--cross",
        "second=other.txt",
    ]);
    let result = json(&mut sweep, 0);
    let rows = result["cross"].as_array().unwrap();
    let pairs: Vec<_> = rows.iter().map(|r| (r["from"].as_str().unwrap(), r["on"].as_str().unwrap())).collect();
    assert_eq!(pairs, [("first", "first"), ("first", "second"), ("second", "first"), ("second", "second")]);
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap();
        assert!(number("total") >= 6.0 && number("after") <= number("before"), "{row}");
        let own = row["from"] == row["on"];
        assert!(if own { (number("cosine") - 1.0).abs() < 1e-9 } else { number("cosine") > 0.5 }, "{row}");
    }
}

#[test]
fn what_a_strength_or_an_addition_does_not_go_with_is_refused() {
    let sandbox = Sandbox::new();
    let axis = |width: usize, at: usize| (0..width).map(|i| f32::from(u8::from(i == at)) + 0.1).collect::<Vec<f32>>();
    let plain = sandbox.write_direction("plain.safetensors", &axis(common::width("chat"), 3));
    let width = model_width("chat-genai-int4");
    let other = sandbox.write_direction("int4.safetensors", &axis(width, 3));
    let bake = |model: &str, direction: &Path, flags: &[&str]| {
        let model = fixture(model);
        let mut bake = sandbox.lancet(&["bake", model.to_str().unwrap(), "-o", "out", "--quiet"]);
        bake.arg("--direction").arg(direction).args(flags);
        bake
    };
    let round = ["--strength", "0.5", "--quantised", "round"];
    sandbox.refused(&mut bake("chat-genai-int4", &other, &round), 1, &["cannot be rounded", "whole component only"]);
    sandbox.refused(&mut bake("chat", &plain, &["--add", "1"]), 2, &["holds no vector to add"]);
    // with a vector beside it: the bundled model has no bias that could hold it
    let (folder, _) = swept();
    let added = folder.join("direction-1-a2.safetensors");
    sandbox.refused(&mut bake("chat", &added, &["--weights-only"]), 1, &["needs a bias of its own"]);
}

fn model_width(name: &str) -> usize {
    let opened = Opened::new(&fixture(name)).unwrap();
    let model = opened.understand().unwrap();
    model.lm.d_model()
}

/// Strength 0.6 and an addition, baked into every export of the zoo, against the same at run time.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn additions_and_strengths_bake_as_they_run() {
    let runtime = Runtime::load(&common::onnxruntime_library(), Device::Cpu, 1).unwrap();
    let never = AtomicBool::new(false);
    let (mut bias, mut nodes, mut refused, mut failures) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for entry in zoo::entries().into_iter().filter(|entry| entry.model.is_some() && entry.runs()) {
        let name = format!("{}::{}", entry.arch, entry.exporter);
        let path = zoo::zoo().join(entry.model.as_ref().unwrap());
        let reference = zoo::reference(&entry.arch);
        let opened = Opened::new(&path).unwrap();
        let model = opened.understand().unwrap();
        let layer = model.lm.n_layers() - 1;
        let vector = (0..reference.d_model).map(|i| ((i * 29 + 3) % 17) as f64 / 17.0 - 0.4).collect();
        let addition = Addition { vector, layer, position: -1, alpha: 0.5 };
        let unit = reference.direction.unit().to_vec();
        let ablation = Ablation::new(Direction::new(unit).unwrap()).with_strength(0.6);
        let edit = Edit::from(ablation).with_addition(Some(addition));
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let options = BakeOptions {
            out: &out,
            weights_only: false,
            quantised: QuantisedMode::Auto,
            max_rounding_error: None,
            runtime: None,
            sync: true,
            cancelled: &never,
        };
        match bake_only(&opened, &edit, &options, &Silent) {
            Ok(VariantResult { verify, .. }) => assert!(verify.passed, "{name}: {:?}", verify.failures),
            Err(error) => {
                refused.push(format!("{name}: {error}"));
                continue;
            }
        }
        let added = model.plan(&edit, &Default::default()).unwrap().main.added.expect("the layer is in the file");
        if added.place == AddedTo::Bias {
            bias.push(name.clone())
        } else {
            nodes.push(name.clone())
        }
        let mut written = Opened::new(&out.join(opened.files.relative())).unwrap();
        written.config = opened.config;
        let out_model = written.understand().unwrap();
        let engine = Engine { runtime: &runtime, model: &model, batch: 2, pad: 0, cancelled: &never, steered: None };
        match check::logits(&engine, &Engine { model: &out_model, ..engine }, &edit, &reference.ids) {
            Ok(found) => {
                let within = found.max_abs_logit_diff <= found.bound && found.max_stream_leak <= found.leak_bound;
                if !within {
                    failures.push(format!("{name} ({}): {found:?}", entry.dtype));
                }
            }
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    println!("{} by a bias, {} by a node, refused: {refused:#?}\nby a bias: {bias:?}", bias.len(), nodes.len());
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(bias.len() >= 4 && nodes.len() >= 20, "{} {}", bias.len(), nodes.len());
    assert!(refused.iter().all(|one| one.contains("merged decoder")), "{refused:#?}");
}
