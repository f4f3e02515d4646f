//! The method against numbers from an independent float64 implementation (`tools/reference.py`, PyTorch with
//! hooks on the bundled model): scores, filter, means, directions, candidate scores, selection, and logits
//! under ablation.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use lancet::chat::ChatOptions;
use lancet::edit::{Ablation, Addition, Direction, Edit};
use lancet::instrument::Request;
use lancet::linalg::cosine;
use lancet::method::prompts::{LoadOptions, PromptClass, Prompts};
use lancet::method::select::{Rules, Search, candidates};
use lancet::pipeline::collect::{self, RefusalTokens};
use lancet::pipeline::engine::{Engine, Row, Silent, Steering};
use lancet::pipeline::{self, Opened, choose};
use lancet::prompt_files::{self, PromptLocation};
use lancet::runtime::session::{Device, Runtime};
use safetensors::SafeTensors;
use serde_json::Value;

/// Our degenerate rule without the guard: the rules that `tools/reference.py` applies.
const RULES: Rules = Rules { negligible_norm: Some(1e-4), ..Rules::PAPER };

fn fixture() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/chat"))
}

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixture().join("reference.json")).unwrap()).unwrap()
}

fn doubles(tensors: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = tensors.tensor(name).unwrap();
    view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn prompts() -> Prompts {
    let folder = fixture().join("prompts");
    prompt_files::load(PromptLocation::Folder(&folder), &LoadOptions::default()).unwrap()
}

#[test]
fn everything_equals_the_independent_implementation() {
    let reference = reference();
    let bytes = std::fs::read(fixture().join("reference.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let opened = Opened::new(fixture()).unwrap();
    let chat = pipeline::load_chat(&opened.files, None, ChatOptions::default()).unwrap();
    let model = opened.understand().unwrap();
    let runtime = Runtime::load(&common::onnxruntime_library(), Device::Cpu, 0).unwrap();
    let cancelled = AtomicBool::new(false);
    let engine = Engine {
        runtime: &runtime,
        model: &model,
        batch: 16,
        pad: pipeline::pad_token(&chat),
        cancelled: &cancelled,
        steered: None,
    };
    let prompts = prompts();
    let ids: Vec<u32> = serde_json::from_value(reference["refusal_token_ids"].clone()).unwrap();
    // the words give the same tokens
    let by_word = [chat.first_token_after_prompt("I").unwrap(), chat.first_token_after_prompt("As").unwrap()];
    assert_eq!(by_word.as_slice(), ids.as_slice());
    let inputs = collect::Inputs {
        chat: &chat,
        prompts: &prompts,
        refusal_tokens: &RefusalTokens::Given(ids),
        model_sha256: "",
        partial: None,
    };
    let (activations, _) = collect::collect(&engine, &inputs, &Silent).unwrap();

    // kept prompts and means
    for class in PromptClass::ALL {
        let want = reference["kept"][class.as_str()].as_u64().unwrap();
        assert_eq!(activations.of(class).count() as u64, want, "{class} kept");
        let means = activations.of(class).means();
        let want = doubles(&tensors, &format!("mean.{}", class.as_str()));
        assert!(cosine(&means, &want) > 0.999_999_9, "{class} means");
        let worst = means.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-4, "{class} means differ by {worst}");
    }

    for lambda in [1.0, 0.5, 0.0] {
        let key = lambda.to_string();
        let expected = &reference["lambdas"][&key];
        // directions, each against its own
        let directions = doubles(&tensors, &format!("direction.lambda_{key}"));
        let (_, n_layers, d_model) = activations.means.harmless.shape();
        let ours = candidates(&activations.means, lambda, &RULES);
        for (index, candidate) in ours.iter().enumerate() {
            let want = &directions[index * d_model..(index + 1) * d_model];
            // the zero difference at layer 0 has no direction to compare
            if candidate.degenerate || candidate.direction.is_none() {
                assert_eq!(candidate.layer, 0);
                continue;
            }
            let got = candidate.direction.as_ref().unwrap().unit();
            let cosine = cosine(got, want);
            assert!(
                cosine >= 0.99999,
                "lambda {lambda} position {} layer {}: {cosine}",
                candidate.position,
                candidate.layer
            );
        }
        // scores and selection
        let choice = choose::choose(&engine, &chat, &activations, lambda, &RULES, &Silent).unwrap();
        let selected = &choice.result.selected;
        assert_eq!(selected.position, expected["selected"]["position"].as_i64().unwrap(), "lambda {lambda}");
        assert_eq!(selected.layer as u64, expected["selected"]["layer"].as_u64().unwrap(), "lambda {lambda}");
        // what is left out changes no choice
        let runs = |choice: &choose::Choice| -> usize {
            choice.result.candidates.iter().flat_map(|c| c.prompts.into_array()).sum()
        };
        for search in [Search::Certain, Search::Racing] {
            let rules = Rules { search, ..RULES };
            let less = choose::choose(&engine, &chat, &activations, lambda, &rules, &Silent).unwrap();
            let found = &less.result.selected;
            assert_eq!(
                (found.position, found.layer),
                (selected.position, selected.layer),
                "lambda {lambda} {search:?}"
            );
            assert!((found.refusal_score - selected.refusal_score).abs() <= 1e-3, "lambda {lambda} {search:?}");
            assert!((found.harmful_refusal_score - selected.harmful_refusal_score).abs() <= 1e-3);
            assert!((found.kl - selected.kl).abs() <= 1e-3, "lambda {lambda} {search:?}");
            assert!(2 * runs(&less) < runs(&choice), "{} of {} runs", runs(&less), runs(&choice));
        }
        let rows = expected["candidates"].as_array().unwrap();
        assert_eq!(rows.len(), choice.result.candidates.len());
        assert_eq!(rows.len() % n_layers, 0);
        for (row, ours) in rows.iter().zip(&choice.result.candidates) {
            assert_eq!(row["position"].as_i64().unwrap(), ours.position);
            assert_eq!(row["layer"].as_u64().unwrap() as usize, ours.layer);
            assert_eq!(row["discarded"].is_null(), ours.discarded.is_none(), "{row} {:?}", ours.discarded);
            if ours.layer == 0 {
                continue; // rounding noise: nothing to agree on
            }
            let raw = row["raw_norm"].as_f64().unwrap();
            assert!((raw - ours.raw_norm).abs() <= 1e-4 * raw.max(1.0), "raw norm {raw} {}", ours.raw_norm);
            for (name, got) in [
                ("refusal_score", ours.refusal_score),
                ("harmful_refusal_score", ours.harmful_refusal_score),
                ("kl", ours.kl),
            ] {
                let want = row[name].as_f64().unwrap();
                assert!((want - got.unwrap()).abs() <= 1e-3, "lambda {lambda} {name}: {want} against {got:?} in {row}");
            }
        }
        // the means of the classes along the directions of every layer
        let rows = expected["layers"].as_array().unwrap();
        assert_eq!(rows.len(), choice.result.layers.len());
        for (row, ours) in rows.iter().zip(&choice.result.layers) {
            assert_eq!(row["layer"].as_u64().unwrap() as usize, ours.layer);
            assert_eq!(row["cosine"].as_f64().is_some(), ours.cosine.is_some(), "layer {}", ours.layer);
            if let (Some(want), Some(got)) = (row["cosine"].as_f64(), ours.cosine) {
                assert!((want - got).abs() < 1e-5, "cosine {want} against {got}");
            }
            for (name, got) in
                [("on_true", ours.on_true), ("on_false", ours.on_false), ("on_selected", ours.on_selected)]
            {
                for (want, got) in row[name].as_array().unwrap().iter().zip(got.into_array()) {
                    let want = want.as_f64().unwrap();
                    assert!(
                        (want - got).abs() < 2e-4,
                        "lambda {lambda} layer {} {name}: {want} against {got}",
                        ours.layer
                    );
                }
            }
        }
        for (class, got) in [
            ("pseudo_harmful", choice.result.baseline.refusal_score),
            ("harmful", choice.result.baseline.harmful_refusal_score),
            ("harmless", choice.result.baseline.harmless_refusal_score),
        ] {
            let want = reference["baseline"][class].as_f64().unwrap();
            assert!((want - got).abs() <= 1e-3, "baseline {class}: {want} against {got}");
        }
    }

    // the vector to add
    let (_, added) = pipeline::add::choose(&engine, &chat, &activations, 1.0, &RULES, &Silent).unwrap();
    let want = &reference["addition"];
    assert_eq!(added.position, want["selected"]["position"].as_i64().unwrap());
    assert_eq!(added.layer as u64, want["selected"]["layer"].as_u64().unwrap());
    let measured: Vec<_> = added.candidates.iter().filter(|c| c.refusal_score.is_some()).collect();
    let rows = want["candidates"].as_array().unwrap();
    assert_eq!(rows.len(), measured.len());
    for (row, ours) in rows.iter().zip(measured) {
        assert_eq!(
            (row["position"].as_i64().unwrap(), row["layer"].as_u64().unwrap()),
            (ours.position, ours.layer as u64)
        );
        for (name, got) in [("refusal_score", ours.refusal_score), ("kl", ours.kl)] {
            let want = row[name].as_f64().unwrap();
            assert!((want - got.unwrap()).abs() <= 1e-3, "addition {name}: {want} against {got:?}");
        }
    }

    // logits with a part of the component ablated, and with the vector added besides
    let (_, n_layers, d_model) = activations.means.harmless.shape();
    let selected = &reference["lambdas"]["1"]["selected"];
    let row = |place: &Value| {
        let n_pos = activations.info.suffix.len() as i64;
        let position = (n_pos + place["position"].as_i64().unwrap()) as usize;
        (position * n_layers + place["layer"].as_u64().unwrap() as usize) * d_model
    };
    let directions = doubles(&tensors, "direction.lambda_1");
    let unit = directions[row(selected)..][..d_model].to_vec();
    let edit = Edit::from(Ablation::new(Direction::new(unit).unwrap()).with_strength(0.5));
    let at = row(&want["selected"]);
    let means =
        [PromptClass::Harmful, PromptClass::Harmless].map(|c| doubles(&tensors, &format!("mean.{}", c.as_str())));
    let vector: Vec<f64> = (at..at + d_model).map(|i| f64::from((means[0][i] - means[1][i]) as f32)).collect();
    let addition = Addition { vector, layer: added.layer, position: added.position, alpha: 1.0 };
    // in the order of the file: the sample of `prompts` is shuffled
    let path = fixture().join("prompts/pseudo_harmful_test.json");
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let texts: Vec<String> = rows[..4].iter().map(|row| row["instruction"].as_str().unwrap().to_string()).collect();
    let encoded = collect::encode(&chat, &texts).unwrap();
    for (name, edit) in
        [("logits.share_half", edit.clone()), ("logits.half_and_added", edit.with_addition(Some(addition)))]
    {
        let steering = Steering::of(&edit);
        let engine = Engine { steered: Some(&steering), ..engine };
        let mut session = engine.session(Request { logits: 1, last_positions: 1, ..Request::default() }).unwrap();
        let rows: Vec<Row<'_>> = encoded.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
        let view = tensors.tensor(name).unwrap();
        let want: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let mut worst = 0.0f32;
        let visit = |found: lancet::pipeline::engine::RowResult| {
            let want = &want[found.row * found.logits.len()..][..found.logits.len()];
            worst = want.iter().zip(&found.logits).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
            Ok(())
        };
        engine.visit(&mut session, &rows, &[], visit).unwrap();
        assert!(worst < 2e-3, "{name}: logits differ by {worst}");
    }
}
