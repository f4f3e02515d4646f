//! `--method auto`, the default of `run`: settings of every method answer validation prompts, and the best that keeps to the
//! policy is baked.

mod common;

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use common::{fixture, json, lancet, only, onnx_runtime};
use serde_json::Value;

fn run(model: &str, out: &Path, extra: &[&str]) -> Command {
    onnx_runtime();
    let mut command = lancet();
    command.arg("run").arg(fixture(model)).arg("--prompts").arg(fixture("chat").join("prompts"));
    command.arg("-o").arg(out).args(["--json", "--no-cost", "--kl-positions", "1"]);
    command.args(["--max-new-tokens", "12", "--n-train", "64", "--n-test", "64"]).args(extra);
    command
}

fn refused(row: &Value) -> u64 {
    row["classes"]["pseudo_harmful"]["refused"].as_u64().unwrap()
}

/// Every second prompt of a class becomes one of another class, which has no others then.
fn halve(prompts: &Path, split: &str, class: &str, other: &str) {
    let place = |class: &str| prompts.join(format!("{class}_{split}.json"));
    let rows: Vec<Value> = serde_json::from_slice(&fs::read(place(class)).unwrap()).unwrap();
    let (even, odd) = rows.into_iter().enumerate().partition::<Vec<_>, _>(|(at, _)| at % 2 == 0);
    for (class, half) in [(class, even), (other, odd)] {
        let half: Vec<Value> = half.into_iter().map(|(_, row)| row).collect();
        fs::write(place(class), serde_json::to_vec(&half).unwrap()).unwrap();
    }
}

/// The guard model loses true refusal under a blunt edit; a search finds a setting that keeps it.
#[test]
fn a_setting_is_found_and_published_with_nothing_given() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let result = json(&mut run("chat-guard", &out, &["--wrapped-prompts", "8"]), 0);
    let search = &result["shared"]["search"];
    let rows = search["rows"].as_array().unwrap();
    assert_eq!(rows[0]["setting"]["kind"], "unchanged");
    let kinds: Vec<&str> = rows[1..].iter().map(|row| row["setting"]["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[..3], ["wang"; 3]);
    assert!(kinds[3..].iter().all(|kind| *kind == "gate") && kinds.len() > 3);

    // none that holds refuses fewer pseudo-harmful prompts than the one that was chosen
    let chosen = &rows[usize::try_from(search["chosen"].as_u64().unwrap()).unwrap()];
    assert!(chosen["guard"]["passed"] == true && refused(chosen) < refused(&rows[0]));
    for row in rows.iter().filter(|row| row["guard"]["passed"] == true) {
        assert!(refused(row) >= refused(chosen), "{}", row["setting"]);
    }
    // no bound is asked of the few validation prompts, and every bound of the test prompts
    let keys = |guard: &Value| -> Vec<String> {
        let checks = guard["checks"].as_array().unwrap();
        checks.iter().map(|check| check["key"].as_str().unwrap().to_string()).collect()
    };
    assert!(keys(&chosen["guard"]).contains(&"max_harmful_drop".to_string()));
    assert!(!keys(&chosen["guard"]).iter().any(|key| key == "max_harmful_drop_bound" || key == "min_prompts"));
    let judged = keys(&only(&result)["guard"]);
    assert!(["max_harmful_drop_bound", "min_prompts"].iter().all(|key| judged.contains(&(*key).to_string())));
    assert_eq!(chosen["classes"]["harmful"]["total"], 32, "validation prompts");
    assert_eq!(only(&result)["eval"]["after"]["harmful"]["total"], 64, "test prompts");

    // what was baked is what was chosen
    assert_eq!(chosen["setting"]["kind"] == "gate", result["shared"]["gate"].is_object());
    assert_eq!(chosen["setting"]["kind"] == "wang", result["shared"]["select"].is_object());
    if let Some(selected) = result["shared"]["select"].get("selected") {
        assert_eq!(selected["lambda"], chosen["setting"]["lambda"]);
        assert_eq!(selected["layer"], chosen["setting"]["layer"]);
    }
    assert!(only(&result)["guard"]["passed"] == true && result["shared"]["published"] == true);
    let page = fs::read_to_string(out.join("lancet.html")).unwrap();
    assert!(page.contains("The search") && page.contains("chosen, on test prompts"));
}

/// Under a policy that nothing keeps to, nothing is published, and the user is told what came closest; `--force` takes it.
#[test]
fn where_nothing_holds_what_came_closest_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (out, report) = (folder.path().join("out"), folder.path().join("report.html"));
    // half of the prompts that the model refuses and should not are said to be harmless: whatever lowers false refusal
    // changes those, so that nothing keeps to this limit
    let prompts = folder.path().join("prompts");
    common::copy_folder(&fixture("chat").join("prompts"), &prompts);
    for split in ["val", "test"] {
        halve(&prompts, split, "pseudo_harmful", "harmless");
    }
    let prompts = prompts.to_str().unwrap();
    let policy = ["--max-harmless-kl", "0", "--wrapped-prompts", "0", "--prompts", prompts];
    let run = |model: &str, out: &Path, extra: &[&str]| {
        onnx_runtime();
        let mut command = lancet();
        command.arg("run").arg(fixture(model)).arg("-o").arg(out).args(["--json", "--no-cost", "--kl-positions", "1"]);
        command.args(["--max-new-tokens", "12", "--n-train", "64", "--n-test", "64"]).args(extra);
        command
    };
    let output = run("chat", &out, &policy).arg("--report").arg(&report).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("keeps to the policy; closest came"), "{told}");
    assert!(!out.exists());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(result["shared"]["search"]["chosen"].is_null() && result["shared"]["published"] == false);
    assert!(result["variants"].as_array().unwrap().is_empty());
    let page = fs::read_to_string(&report).unwrap();
    assert!(page.contains("no setting holds") && page.contains("The search"));

    let forced = json(run("chat", &out, &policy).arg("--force"), 0);
    assert!(forced["shared"]["search"]["chosen"].is_u64() && only(&forced)["guard"]["overridden"] == true);
}

#[test]
fn a_pinned_setting_is_not_searched_for() {
    let folder = tempfile::tempdir().unwrap();
    for (at, extra) in [&["--lambda", "1"][..], &["--setting", "wang"], &["--paper"]].into_iter().enumerate() {
        let out = folder.path().join(at.to_string());
        let result = json(run("chat", &out, extra).args(["--wrapped-prompts", "0"]), 0);
        assert!(result["shared"]["search"].is_null() && result["shared"]["select"].is_object(), "{extra:?}");
    }
    for extra in [&["--setting", "auto", "--lambda", "1"][..], &["--method", "auto", "--sweep", "0.5"]] {
        let output = run("chat", &folder.path().join("out"), extra).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{extra:?}");
    }
}

/// A model that refuses no pseudo-harmful prompt has nothing to mend.
#[test]
fn without_false_refusal_there_is_nothing_to_search_for() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts");
    common::copy_folder(&fixture("chat").join("prompts"), &prompts);
    halve(&prompts, "val", "harmless", "pseudo_harmful");
    onnx_runtime();
    let mut command = lancet();
    command.arg("run").arg(fixture("chat")).arg("--prompts").arg(&prompts).arg("-o").arg(folder.path().join("out"));
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("no false refusal to mend"), "{told}");
}
