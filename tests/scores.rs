//! Perplexity, multiple choice and KL along answers against numbers from an independent computation
//! (`tools/scores_reference.py`: ONNX Runtime from Python, numpy float64, every sequence alone).

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::fixture;
use lancet::chat::{Chat, ChatOptions};
use lancet::multiple_choice::Items;
use lancet::pipeline::divergence::Room;
use lancet::pipeline::engine::{Engine, Observer, Silent};
use lancet::pipeline::files::ModelFiles;
use lancet::pipeline::stage::Stage;
use lancet::pipeline::{self, Opened, Understood, divergence, multiple_choice, perplexity};
use lancet::report::scores::Scoring;
use lancet::runtime::session::{Device, Runtime};
use serde_json::Value;

/// Perplexity, relative.
const PERPLEXITY: f64 = 1e-4;
/// Log-likelihoods, absolute, in nats.
const LIKELIHOOD: f64 = 1e-4;
/// KL, absolute, in nats.
const KL: f64 = 1e-5;

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("scores/expected.json")).unwrap()).unwrap()
}

fn opened(name: &str) -> Opened {
    let onnx = match name {
        "fp32" => fixture("chat/model.onnx"),
        _ => fixture("chat-package/onnx/model_q4.onnx"),
    };
    Opened::of(ModelFiles { onnx, root: fixture("chat") }).unwrap()
}

fn chat() -> Chat {
    pipeline::load_chat(&opened("fp32").files, None, ChatOptions::default()).unwrap()
}

fn runtime() -> Runtime {
    Runtime::load(&common::onnxruntime_library(), Device::Cpu, 0).unwrap()
}

static NOT_CANCELLED: AtomicBool = AtomicBool::new(false);

fn engine<'a>(runtime: &'a Runtime, model: &'a Understood<'a>, batch: usize) -> Engine<'a> {
    Engine { runtime, model, batch, pad: 0, cancelled: &NOT_CANCELLED, steered: None }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, got {value}"))
}

fn count(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

/// The largest difference.
fn worst(found: &[f64], want: &Value) -> f64 {
    let want = want.as_array().unwrap();
    assert_eq!(found.len(), want.len());
    found.iter().zip(want).map(|(found, want)| (found - number(want)).abs()).fold(0.0, f64::max)
}

/// Counts steps, to see that what is announced is done.
#[derive(Default)]
struct Steps(std::sync::Mutex<(u64, u64)>);

impl Observer for Steps {
    fn start(&self, _: &Stage, total: u64) {
        self.0.lock().unwrap().0 += total;
    }
    fn advance(&self, steps: u64) {
        self.0.lock().unwrap().1 += steps;
    }
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}

impl Steps {
    #[track_caller]
    fn check(&self) {
        let (announced, done) = *self.0.lock().unwrap();
        assert!(announced > 0 && announced == done, "{announced} steps announced, {done} done");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn perplexity_equals_the_independent_computation() {
    let (expected, chat, runtime) = (expected(), chat(), runtime());
    let text = perplexity::read_text(&fixture("scores/text.txt")).unwrap();
    for name in ["fp32", "q4"] {
        let opened = opened(name);
        let model = opened.understand().unwrap();
        for want in expected[name]["perplexity"].as_array().unwrap() {
            let options = perplexity::Options {
                context: count(&want["context"]),
                stride: Some(count(&want["stride"])),
                bos: want["bos"].as_bool().unwrap(),
            };
            for batch in [1, 5] {
                let steps = Steps::default();
                let found =
                    perplexity::measure(&engine(&runtime, &model, batch), &chat, &text, &options, &steps).unwrap();
                steps.check();
                let (value, wanted) = (found.perplexity.unwrap(), number(&want["perplexity"]));
                let off = (value / wanted - 1.0).abs();
                println!("{name} {options:?} batch {batch}: perplexity {value:.3}, off by {off:.1e}");
                assert!(off < PERPLEXITY, "{name} {options:?}: {value}, expected {wanted}");
                assert_eq!(found.tokens, count(&want["tokens"]));
                assert!((found.mean_nll - number(&want["mean_nll"])).abs() < 1e-5);
                assert!((found.bits_per_byte - number(&want["bits_per_byte"])).abs() < 1e-5);
                assert_eq!((found.bos, found.bytes), (options.bos, text.len()));
                let windows = want["windows"].as_array().unwrap();
                assert_eq!(found.windows.len(), windows.len());
                for (found, want) in found.windows.iter().zip(windows) {
                    assert_eq!(found.tokens, count(&want["tokens"]));
                    assert!((found.nll / number(&want["nll"]) - 1.0).abs() < PERPLEXITY);
                }
            }
        }
    }
}

#[test]
fn defaults_follow_the_model_and_short_texts_are_refused() {
    let (chat, runtime, opened) = (chat(), runtime(), opened("fp32"));
    let model = opened.understand().unwrap();
    let engine = engine(&runtime, &model, 4);
    let options = perplexity::Options::of_model(&opened.files).unwrap();
    assert_eq!((options.context, options.stride, options.bos), (256, None, true));
    let text = perplexity::read_text(&fixture("scores/text.txt")).unwrap();
    let found = perplexity::measure(&engine, &chat, &text, &options, &Silent).unwrap();
    assert_eq!((found.context, found.stride), (256, 128));
    let want = &expected()["fp32"]["perplexity"][0];
    assert!((found.perplexity.unwrap() / number(&want["perplexity"]) - 1.0).abs() < PERPLEXITY);

    for text in ["", "a"] {
        let error = perplexity::measure(&engine, &chat, text, &options, &Silent).unwrap_err();
        let words = format!("expected at least 2 tokens, got {}", text.len());
        assert!(error.to_string().ends_with(&words), "{error}");
        assert!(error.hint().is_some());
    }
    for (context, stride) in [(1, None), (8, Some(0)), (8, Some(9))] {
        let options = perplexity::Options { context, stride, bos: true };
        assert!(perplexity::measure(&engine, &chat, &text, &options, &Silent).is_err(), "{options:?}");
    }
    let cancelled = AtomicBool::new(true);
    let engine = Engine { cancelled: &cancelled, ..engine };
    assert!(perplexity::measure(&engine, &chat, &text, &options, &Silent).is_err());
    cancelled.store(false, Ordering::Relaxed);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn multiple_choice_equals_the_independent_computation() {
    let (expected, chat, runtime) = (expected(), chat(), runtime());
    for name in ["fp32", "q4"] {
        let opened = opened(name);
        let model = opened.understand().unwrap();
        for want in expected[name]["multiple_choice"].as_array().unwrap() {
            let path = |key: &str| want[key].as_str().map(|file| fixture("scores").join(file));
            let options = multiple_choice::Options {
                scoring: serde_json::from_value(want["scoring"].clone()).unwrap(),
                shots: count(&want["shots"]),
                chat_template: want["chat"].as_bool().unwrap(),
                bos: want["bos"].as_bool().unwrap(),
                context: want["context"].as_u64().map(|n| usize::try_from(n).unwrap()),
            };
            let items = Items::load(&path("file").unwrap(), path("examples").as_deref(), options.shots).unwrap();
            let case = format!("{name} {} {options:?}", want["file"]);
            let steps = Steps::default();
            let found =
                multiple_choice::measure(&engine(&runtime, &model, 6), &chat, &items, &options, &steps).unwrap();
            steps.check();
            let rows = want["items"].as_array().unwrap();
            assert_eq!(found.items.len(), rows.len(), "{case}");
            let mut off: f64 = 0.0;
            for (at, (found, want)) in found.items.iter().zip(rows).enumerate() {
                off = off.max(worst(&found.log_likelihoods, &want["log_likelihoods"]));
                assert_eq!(found.answer, count(&want["answer"]), "{case}, item {at}");
                assert_eq!(found.chosen, count(&want["chosen"]), "{case}, item {at}");
                assert_eq!(found.right, want["chosen"] == want["answer"], "{case}, item {at}");
                let normalised = want["chosen_normalised"].as_u64().map(|n| usize::try_from(n).unwrap());
                assert_eq!(found.chosen_normalised, normalised, "{case}, item {at}");
            }
            println!("{case}: accuracy {:.4}, log-likelihoods off by {off:.1e}", found.accuracy);
            assert!(off < LIKELIHOOD, "{case}: off by {off}");
            // written with seven decimals
            let equal = |found: f64, want: &Value| (found - number(want)).abs() < 1e-7;
            assert!(equal(found.accuracy, &want["accuracy"]), "{case}");
            assert_eq!(found.accuracy_normalised.is_some(), options.scoring == Scoring::Text);
            if let Some(normalised) = found.accuracy_normalised {
                assert!(equal(normalised, &want["accuracy_normalised"]), "{case}");
            }
            assert_eq!(found.truncated, count(&want["truncated"]), "{case}");
            let subjects = want["subjects"].as_object().unwrap();
            assert_eq!(found.subjects.len(), subjects.len(), "{case}");
            for of in &found.subjects {
                assert!(equal(of.accuracy, &subjects[&of.subject]), "{case}, {}", of.subject);
            }
        }
    }
}

#[test]
fn kl_along_answers_equals_the_independent_computation() {
    let (want, chat, runtime) = (expected()["kl"].clone(), chat(), runtime());
    let (base, other) = (opened("fp32"), opened("q4"));
    let (base, other) = (base.understand().unwrap(), other.understand().unwrap());
    let positions = count(&want["positions"]);
    let instructions: Vec<String> = serde_json::from_value(want["instructions"].clone()).unwrap();
    let prompts: Vec<Vec<u32>> = instructions.iter().map(|text| chat.encode_prompt(text).unwrap()).collect();
    let answers: Vec<Vec<u32>> = serde_json::from_value(want["answers"].clone()).unwrap();
    let stop = chat.special_ids().stop.clone();
    let own = engine(&runtime, &base, 8).answers(&prompts, positions, &stop, |_| {}).unwrap();
    for (own, answer) in own.iter().zip(&answers) {
        assert_eq!(own[..answer.len()], answer[..], "the base model's own answers");
    }
    // the last one keeps the base's logits of a few positions only, so that both models are loaded several times
    for (batch, small) in [(1, None), (5, None), (5, Some(Room { returned: 6, kept: 7 }))] {
        let (base, other) = (engine(&runtime, &base, batch), engine(&runtime, &other, batch));
        let (room, steps) = (small.unwrap_or_else(|| Room::of(&base, &other)), Steps::default());
        let texts = (prompts.as_slice(), answers.as_slice());
        let found = divergence::measure(&base, &other, texts, positions, room, &steps).unwrap();
        steps.check();
        let mut off: f64 = 0.0;
        for (found, want) in found.prompts.iter().zip(want["values"].as_array().unwrap()) {
            off = off.max(worst(found, want));
        }
        println!("batch {batch}, {room:?}: KL off by {off:.1e}");
        assert!(off < KL, "off by {off}");
        let means: Vec<f64> = found.positions.iter().map(|p| p.mean).collect();
        assert!(worst(&means, &want["means"]) < KL);
        let counts: Vec<usize> = found.positions.iter().map(|p| p.prompts).collect();
        assert_eq!(serde_json::to_value(counts).unwrap(), want["counts"]);
        assert!((found.mean.unwrap() - number(&want["mean"])).abs() < KL);
        let same = divergence::measure(&base, &base, texts, positions, room, &Silent).unwrap();
        assert!(same.prompts.iter().flatten().all(|kl| *kl == 0.0));
        let fewer = (texts.0, &texts.1[1..]);
        assert!(divergence::measure(&base, &other, fewer, positions, room, &Silent).is_err());
    }
}
