//! `--method gate`: a gate that is fitted, chosen, baked and proved.

mod common;

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use common::{fixture, json, lancet, only, onnx_runtime};
use lancet::edit::{GatedTerm, Shape};
use lancet::pipeline::direction_file;
use serde_json::Value;

fn run(model: &str, out: &Path, extra: &[&str]) -> Command {
    onnx_runtime();
    let mut command = lancet();
    command.arg("run").arg(fixture(model)).arg("--prompts").arg(fixture("chat").join("prompts"));
    command.arg("-o").arg(out).args(["--json", "--no-cost", "--kl-positions", "1", "--wrapped-prompts", "0"]);
    command.args(["--max-new-tokens", "12", "--n-test", "64", "--method", "gate"]).args(extra);
    command
}

fn refused(scores: &Value, class: &str) -> u64 {
    scores.as_array().unwrap().iter().map(|row| row[class]["refused"].as_u64().unwrap()).sum()
}

#[test]
fn a_gate_is_fitted_and_chosen_and_what_it_makes_is_proved() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let result = json(&mut run("chat-guard", &out, &[]), 0);
    let gate = &result["shared"]["gate"];
    assert!(result["shared"]["select"].is_null() && result["shared"]["published"] == true);

    // the winner refuses the fewest pseudo-harmful prompts of those that hold
    let candidates = gate["candidates"].as_array().unwrap();
    let winner =
        candidates.iter().find(|row| ["layers", "open", "alpha"].iter().all(|key| row[*key] == gate["selected"][*key]));
    let winner = winner.filter(|row| row["discarded"].is_null()).expect("the winner is among the candidates");
    assert!(refused(&winner["scores"], "pseudo_harmful") < refused(&gate["baseline"], "pseudo_harmful"));
    let lost: u64 = winner["scores"].as_array().unwrap().iter().map(|row| row["lost"].as_u64().unwrap()).sum();
    let harmful: u64 =
        winner["scores"].as_array().unwrap().iter().map(|row| row["harmful"]["total"].as_u64().unwrap()).sum();
    assert!(50 * lost <= harmful, "{lost} of {harmful} are lost, and 2 % may be");
    assert!(winner["kl"].as_f64().unwrap() <= 0.05);

    // the file holds a term a layer: two clipped factors that open, and one that takes off what is above the floor
    let edit = direction_file::load(&out.join("lancet.direction.safetensors")).unwrap();
    assert!(edit.ablation().is_none() && edit.additions().is_empty());
    let layers: Vec<usize> = edit.gates().iter().map(GatedTerm::layer).collect();
    let told: Vec<usize> = serde_json::from_value(gate["selected"]["layers"].clone()).unwrap();
    assert_eq!(layers, told);
    for (term, row) in edit.gates().iter().zip(gate["terms"].as_array().unwrap()) {
        let shapes: Vec<Shape> = term.factors().iter().map(|factor| factor.shape).collect();
        assert_eq!(shapes, [Shape::Clipped, Shape::Clipped, Shape::Relu]);
        let [gate, _, above] = term.factors() else { panic!("three factors") };
        let basis = gate.reading.radial().expect("the gate opens near what it knows");
        assert_eq!(basis.count() as u64, row["centers"].as_u64().unwrap());
        let ramp = row["ramp"].as_f64().unwrap();
        assert!(row["threshold"].as_f64().unwrap() >= 0.25 && ramp >= 0.25, "it is shut far from all that it knows");
        assert!((gate.offset * ramp + row["threshold"].as_f64().unwrap()).abs() < 1e-4);
        assert_eq!(gate.of(&vec![1e3; basis.width()]), 0.0);
        assert!((above.offset + row["floor"].as_f64().unwrap()).abs() < 1e-4);
        assert!(row["opens_elsewhere"].as_f64().unwrap() < 0.01);
        // in the mean over the sources, and five times as far in any
        let sources = row["sources"].as_array().unwrap();
        let opens: Vec<f64> = sources.iter().map(|source| source["opens_harmful"].as_f64().unwrap()).collect();
        assert!(opens.iter().sum::<f64>() <= gate_share(&result) * opens.len() as f64 + 1e-6, "{opens:?}");
        assert!(opens.iter().all(|opens| *opens <= 5.0 * gate_share(&result)), "{opens:?}");
        // of the run's own prompts those count that the collection kept, by the same refusal scores
        let own = &row["sources"][0];
        assert_eq!(own["source"], serde_json::json!({"hand": "own", "dress": "plain"}));
        for class in ["pseudo_harmful", "harmful"] {
            assert_eq!(own[class], result["shared"]["gate"]["kept"][class], "{class}");
        }
    }
    assert_eq!(only(&result)["bake"]["gated"].as_array().unwrap().len(), layers.len());
    assert!(only(&result)["guard"]["passed"] == true);

    // anyone can prove it from the file, and a base that is no base fails
    let verify = |base: &Path, code| {
        let mut command = lancet();
        command.arg("verify").arg(base).arg(&out).arg("--json");
        json(command.arg("--direction").arg(out.join("lancet.direction.safetensors")), code)
    };
    assert_eq!(verify(&fixture("chat-guard"), 0)["shared"]["passed"], true);
    assert_eq!(verify(&fixture("chat"), 1)["shared"]["passed"], false);

    let page = fs::read_to_string(out.join("lancet.html")).unwrap();
    assert!(page.contains("The gate") && page.contains("Validation prompts"));
}

/// The share of harmful prompts for which the chosen gates may open.
fn gate_share(result: &Value) -> f64 {
    result["shared"]["gate"]["selected"]["open"].as_f64().unwrap()
}

#[test]
fn options_of_another_method_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for extra in [&["--lambda", "0.5"][..], &["--paper"], &["--add", "1"], &["--strength", "0.5"], &["--sweep", "0.5"]]
    {
        let output = run("chat-guard", &folder.path().join("out"), extra).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{extra:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("--method wang"), "{extra:?}");
    }
}

/// `select --method gate` from a file of activations finds what `run` does.
#[test]
fn select_finds_the_same_gate() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    onnx_runtime();
    let mut collect = lancet();
    collect.arg("collect").arg(fixture("chat-guard")).arg("--prompts").arg(fixture("chat").join("prompts"));
    collect.arg("-o").arg(place("acts")).assert().success();
    let select = |name: &str| {
        let mut command = lancet();
        command.arg("select").arg(fixture("chat-guard")).arg("--activations").arg(place("acts"));
        json(command.args(["--json", "--method", "gate", "-o"]).arg(place(name)), 0)
    };
    let (first, second) = (select("first"), select("second"));
    assert_eq!(first, second);
    assert!(fs::read(place("first")).unwrap() == fs::read(place("second")).unwrap(), "the files differ");
    let ran = json(&mut run("chat-guard", &place("out"), &[]), 0);
    assert_eq!(ran["shared"]["gate"], first);
}
