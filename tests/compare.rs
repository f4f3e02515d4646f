//! `lancet compare`: rows, recommendation, direction files, sets on sets; that rows equal what `run` measures after baking;
//! and that what is baked with a strength and an addition is what was measured.

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
const FEW: [&str; 15] = [
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
    "--wrapped-prompts",
    "0",
    "--no-cost",
    "--kl-positions",
    "1",
];

fn command(name: &str) -> assert_cmd::Command {
    onnx_runtime();
    let mut command = lancet();
    command.arg(name).arg(fixture("chat")).arg("--prompts").arg(fixture("chat").join("prompts"));
    command.args(FEW);
    command
}

/// A grid of directions, shared by the tests of this file.
fn grid() -> &'static (PathBuf, Value) {
    static GRID: OnceLock<(PathBuf, Value)> = OnceLock::new();
    GRID.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lancet-compare");
        let _ = fs::remove_dir_all(&folder);
        let result = json(&mut compare(&folder), 0);
        (folder, result)
    })
}

fn compare(out: &Path) -> assert_cmd::Command {
    let mut compare = command("compare");
    compare.args([
        "--methods",
        "wang",
        "--lambdas",
        "1,0.5,0.99999999999999",
        "--strengths",
        "1,0.75",
        "--additions",
        "0,2",
    ]);
    compare.args(["--max-harmful-drop", "0.1"]).arg("-o").arg(out);
    compare
}

fn row<'r>(result: &'r Value, name: &str) -> &'r Value {
    rows(result).iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("{name} was not tried"))
}

fn rows(result: &Value) -> &[Value] {
    result["rows"].as_array().unwrap()
}

fn refused(row: &Value) -> u64 {
    row["classes"]["pseudo_harmful"]["refused"].as_u64().unwrap()
}

/// Whether a row keeps to the policy and lowers false refusal.
fn holds(row: &Value, result: &Value) -> bool {
    row["guard"]["passed"] == true && refused(row) < refused(&rows(result)[0])
}

#[test]
fn methods_are_compared_and_the_best_within_the_policy_is_recommended() {
    onnx_runtime();
    let sandbox = Sandbox::new();
    sandbox.write(
        "text.txt",
        "Put the kettle on, and wait until it boils. Then pour the water over the leaves. ".repeat(20),
    );
    let mut compare = lancet();
    compare.arg("compare").arg(fixture("chat-guard")).arg("--prompts").arg(fixture("chat").join("prompts"));
    compare.args(["--json", "--max-new-tokens", "12", "--n-train", "64", "--wrapped-prompts", "8"]);
    compare.current_dir(sandbox.root()).args(["--perplexity", "text.txt", "-o", "out", "--report", "report.html"]);
    let result = json(&mut compare, 0);

    // the baselines, the lambdas, the further methods, and gates as far as one holds
    let kinds: Vec<&str> = rows(&result).iter().map(|row| row["setting"]["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[..6], ["unchanged", "system_prompt", "refusal", "wang", "wang", "wang"]);
    assert_eq!(kinds[6..12], ["refined"; 6]);
    assert!(kinds.len() > 12 && kinds[12..].iter().all(|kind| *kind == "gate"));
    let refined: Vec<&str> =
        rows(&result)[6..12].iter().map(|row| row["setting"]["method"].as_str().unwrap()).collect();
    assert_eq!(refined, ["rank:2", "probes:2", "sra", "ace", "layers", "va"]);
    for row in rows(&result).iter().filter(|row| row["failure"].is_null()) {
        assert_eq!(row["classes"]["pseudo_harmful"]["total"], 32, "validation prompts: {row}");
        assert!(row["perplexity"]["value"].is_f64() && row["wrapped_refusal_rate"].is_f64(), "{row}");
        assert!(row["classes"]["harmful"]["refusal_interval"]["low"].is_f64());
    }
    // ablating true refusal itself lowers it
    let baseline = row(&result, "refusal");
    let score = |row: &Value| row["classes"]["harmful"]["mean_refusal_score"].as_f64().unwrap();
    assert!(score(baseline) < score(&rows(&result)[0]) && baseline["guard"]["passed"] == false, "{baseline}");

    // the model is asked with the system prompt, without an edit
    let prompted = row(&result, "system-prompt");
    assert!(prompted["setting"]["text"].as_str().unwrap().contains("only look harmful"), "{prompted}");
    assert!(prompted["failure"].is_null() && prompted["cost"].is_null() && prompted["guard"].is_object(), "{prompted}");
    assert_ne!(score(prompted), score(&rows(&result)[0]));
    assert!(!sandbox.path("out/system-prompt.safetensors").exists());

    // weights cost nothing at inference, gates do
    assert_eq!(row(&result, "wang-lambda-1")["cost"], serde_json::json!({ "kind": "nothing" }));
    let gate = &rows(&result)[12];
    assert_eq!(gate["cost"]["kind"], "nodes");
    let decoding = gate["cost"]["latencies"].as_array().unwrap().last().unwrap();
    assert!(decoding["name"] == "decoding, a token" && decoding["after"].as_f64().unwrap() > 0.0, "{gate}");

    let best = &result["recommendation"];
    assert_eq!(best["kind"], "row", "{best}");
    let recommended = &rows(&result)[usize::try_from(best["row"].as_u64().unwrap()).unwrap()];
    assert!(holds(recommended, &result));
    assert!(rows(&result).iter().filter(|row| holds(row, &result)).all(|row| refused(row) >= refused(recommended)));
    let others = rows(&result).iter().filter(|row| holds(row, &result) && row["same_as"].is_null()).count() - 1;
    assert_eq!(best["second"].is_null(), others == 0, "{best}");
    if others > 0 {
        let p = best["second"]["p_value"].as_f64().unwrap();
        assert_eq!(best["second"]["significant"], p <= 0.05);
    }

    // every edit has its direction file, and the result is beside them
    for row in rows(&result)[2..].iter().filter(|row| row["failure"].is_null()) {
        let path = sandbox.path("out").join(format!("{}.safetensors", row["name"].as_str().unwrap()));
        let edit = lancet::pipeline::direction_file::load(&path).unwrap();
        let has_term = row["setting"]["kind"] == "gate" || row["setting"]["method"] == "va";
        assert_eq!(edit.gates().is_empty(), !has_term);
    }
    let read = |name: &str| fs::read_to_string(sandbox.path(name)).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&read("out/compare.json")).unwrap(), result);
    for page in ["out/compare.html", "report.html"] {
        assert!(read(page).contains("True refusal against false refusal") && read(page).contains("<svg"), "{page}");
    }
    assert!(read("report.md").contains(recommended["name"].as_str().unwrap()));

    // a folder that is there is refused before any work
    let again = sandbox.lancet(&["compare", fixture("chat-guard").to_str().unwrap(), "-o", "out"]).output().unwrap();
    assert_eq!(again.status.code(), Some(2), "{}", String::from_utf8_lossy(&again.stderr));
}

#[test]
fn every_setting_of_the_grid_is_measured_once() {
    let (folder, result) = grid();
    assert_eq!(rows(result).len(), 1 + 3 * 2 * 2);
    assert!(rows(result)[0]["guard"].is_null());
    for row in &rows(result)[1..] {
        if row["failure"].is_null() {
            assert_eq!(row["classes"]["pseudo_harmful"]["total"], 8);
            assert!(row["harmless_kl"].is_f64() && row["guard"]["passed"].is_boolean());
        }
    }
    // lambda 1: the direction is orthogonal to the true-refusal one
    assert!(row(result, "wang-lambda-1")["cosine"].as_f64().unwrap().abs() < 1e-5);
    // another lambda that gives the same edit as a file holds it has the answers of the first
    let same = row(result, "wang-lambda-0.99999999999999");
    assert_eq!(same["same_as"], 1, "{same}");
    let (mut same, mut first) = (same.clone(), row(result, "wang-lambda-1").clone());
    for row in [&mut same, &mut first] {
        for key in ["name", "same_as", "setting"] {
            row.as_object_mut().unwrap().remove(key).unwrap();
        }
    }
    assert_eq!(same, first);
    assert!(rows(result).iter().any(|row| holds(row, result)), "nothing was gained");
    assert_eq!(result["recommendation"]["kind"], "row");
    let names = ["wang-lambda-1", "wang-lambda-1-addition-2", "wang-lambda-0.5-strength-0.75-addition-2"];
    assert!(names.iter().all(|name| folder.join(format!("{name}.safetensors")).is_file()));
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn a_second_comparison_gives_the_same_bytes() {
    let (folder, first) = grid();
    let sandbox = Sandbox::new();
    let out = sandbox.path("again");
    let second = json(&mut compare(&out), 0);
    let lasting = |value: &Value| {
        let mut value = value.clone();
        for key in ["seconds", "output"] {
            value.as_object_mut().unwrap().remove(key).unwrap();
        }
        serde_json::to_string(&value).unwrap()
    };
    assert_eq!(lasting(first), lasting(&second));
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(folder), names(&out));
    for name in names(folder).iter().filter(|name| name.to_string_lossy().ends_with(".safetensors")) {
        assert_eq!(fs::read(folder.join(name)).unwrap(), fs::read(out.join(name)).unwrap(), "{name:?}");
    }
}

/// The further lambdas of a run answer its test prompts, as the baked model does.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn rows_equal_what_run_measures_on_the_baked_model() {
    for strength in ["1", "0.75"] {
        let sandbox = Sandbox::new();
        let mut run = command("run");
        run.args(["--lambda", "0.5", "--strength", strength, "--sweep", "1,0.5", "--force", "--min-prompts", "0"]);
        let ran = json(run.arg("-o").arg(sandbox.path("out")), 0);
        let one = only(&ran);
        assert_eq!(one["verify"]["passed"], true, "{}", one["verify"]);
        let sweep = &ran["shared"]["sweep"];
        assert_eq!(rows(sweep).len(), 3);
        let row = rows(sweep).iter().find(|row| row["setting"]["lambda"] == 0.5).unwrap();
        assert_eq!(row["setting"]["layer"], ran["shared"]["select"]["selected"]["layer"]);
        for class in ["pseudo_harmful", "harmful", "harmless"] {
            let (ours, theirs) = (&row["classes"][class], &one["eval"]["after"][class]);
            assert_eq!(ours["refused"], theirs["refused"], "{class} with strength {strength}");
            let score = |class: &Value| class["mean_refusal_score"].as_f64().unwrap();
            assert!((score(ours) - score(theirs)).abs() < 1e-3, "{class} with strength {strength}");
        }
        let kl = |value: &Value| value.as_f64().unwrap();
        assert!((kl(&row["harmless_kl"]) - kl(&one["eval"]["harmless_kl"])).abs() < 1e-5);
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn bake_follows_from_a_direction_file_and_verify_repeats_it() {
    let (folder, _) = grid();
    let sandbox = Sandbox::new();
    let direction = folder.join("wang-lambda-1-strength-0.75-addition-2.safetensors");
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
    // another direction of the same grid has another vector beside it, or none
    let (code, _) = verify("part", &folder.join("wang-lambda-1-strength-0.75.safetensors"), &[]);
    assert_eq!(code, Some(1));
}

/// Nothing is published, so a policy that nothing keeps to is told, and no error.
#[test]
fn where_nothing_holds_what_came_closest_is_told() {
    let sandbox = Sandbox::new();
    // every edit changes the next-token probabilities of harmless prompts a little, so none keeps to this limit
    let policy = ["--methods", "wang", "--lambdas", "1", "--max-harmless-kl", "0"];
    let mut compare = command("compare");
    let result = json(compare.args(policy).arg("-o").arg(sandbox.path("out")), 0);
    let expected = serde_json::json!({ "kind": "nothing", "why": "policy", "closest": 1 });
    assert_eq!(result["recommendation"], expected);
    assert!(sandbox.path("out/compare.json").is_file() && sandbox.path("out/wang-lambda-1.safetensors").is_file());
    let page = fs::read_to_string(sandbox.path("out/compare.html")).unwrap();
    assert!(page.contains("no setting is recommended") && page.contains("outside the policy"));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let sandbox = Sandbox::new();
    let model = fixture("chat");
    let model = model.to_str().unwrap();
    for (flags, word) in [
        (["--lambdas", "1,2"], "from 0 to 1"),
        (["--strengths", "0"], "above 0"),
        (["--cross", "a.txt"], "NAME=FILE"),
        (["--methods", "other"], "possible values"),
        (["--output", "out.onnx"], "not a model"),
    ] {
        let output = sandbox.lancet(&["compare", model, "-o", "out"]).args(flags).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(word), "{stderr}");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn directions_of_sets_are_tried_on_sets() {
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
    let mut compare = command("compare");
    compare.current_dir(sandbox.root()).args(["--methods", "wang", "--lambdas", "1", "-o", "out"]);
    compare.args(["--cross", "first=xstest.csv", "--cross", "second=other.txt"]);
    let result = json(&mut compare, 0);
    let found = result["cross"].as_array().unwrap();
    let pairs: Vec<_> = found.iter().map(|r| (r["from"].as_str().unwrap(), r["on"].as_str().unwrap())).collect();
    assert_eq!(pairs, [("first", "first"), ("first", "second"), ("second", "first"), ("second", "second")]);
    for row in found {
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
    let (folder, _) = grid();
    let added = folder.join("wang-lambda-1-addition-2.safetensors");
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
        let added = model.plan(&edit, &Default::default()).unwrap().main.added.pop().expect("the layer is in the file");
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
