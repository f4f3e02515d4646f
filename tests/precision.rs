//! Precision and padding on the bundled model: the float16 and bfloat16 versions of it, each baked and loaded
//! again, against run-time ablation; and prompts alone against the same prompts padded in a batch.

mod common;

use std::sync::atomic::AtomicBool;

use common::fixture;
use lancet::chat::ChatOptions;
use lancet::edit::{Direction, Edit};
use lancet::instrument::Request;
use lancet::lm::ResidPoint;
use lancet::method::prompts::{LoadOptions, PromptClass, Split};
use lancet::pipeline::engine::{Engine, Row, Silent};
use lancet::pipeline::{self, BakeOptions, Opened, check, collect};
use lancet::prompt_files::{self, PromptLocation};
use lancet::runtime::session::{Device, Runtime};

fn runtime() -> Runtime {
    Runtime::load(&common::onnxruntime_library(), Device::Cpu, 0).unwrap()
}

/// The selected direction of the bundled model, from the independent implementation.
fn direction() -> Edit {
    let bytes = std::fs::read(fixture("chat/reference.safetensors")).unwrap();
    let reference: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("chat/reference.json")).unwrap()).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor("direction.lambda_1").unwrap();
    let values: Vec<f64> = view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
    let [n_pos, n_layers, d_model] = *view.shape() else { panic!("three dimensions") };
    let at = &reference["lambdas"]["1"]["selected"];
    let row = usize::try_from(n_pos as i64 + at["position"].as_i64().unwrap()).unwrap();
    let start = (row * n_layers + usize::try_from(at["layer"].as_u64().unwrap()).unwrap()) * d_model;
    Direction::new(values[start..start + d_model].to_vec()).unwrap().into()
}

fn prompts(chat: &lancet::chat::Chat) -> Vec<Vec<u32>> {
    let folder = fixture("chat/prompts");
    let all = prompt_files::load(PromptLocation::Folder(&folder), &LoadOptions::default()).unwrap();
    PromptClass::ALL.iter().flat_map(|c| collect::encode(chat, &all.get(*c, Split::Test)[..8]).unwrap()).collect()
}

/// Bakes a fixture and compares: largest logit difference from run-time ablation, and largest leak in the stream.
fn baked(name: &str) -> check::LogitReport {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let opened = Opened::new(&fixture(name)).unwrap();
    let chat = pipeline::load_chat(&opened.files, None, ChatOptions::default()).unwrap();
    let cancelled = AtomicBool::new(false);
    let options = BakeOptions {
        out: &out,
        weights_only: true,
        quantised: Default::default(),
        max_rounding_error: None,
        runtime: None,
        sync: true,
        cancelled: &cancelled,
    };
    let bytes = pipeline::bake_only(&opened, &direction(), &options, &Silent).unwrap().verify;
    assert_eq!(bytes.changed_bytes_outside_plan, 0);
    let written = Opened::new(&out).unwrap();
    let (model, out_model) = (opened.understand().unwrap(), written.understand().unwrap());
    let runtime = runtime();
    let pad = pipeline::pad_token(&chat);
    let engine = Engine { runtime: &runtime, model: &model, batch: 8, pad, cancelled: &cancelled, steered: None };
    let out_engine = Engine { model: &out_model, ..engine };
    check::logits(&engine, &out_engine, &direction(), &prompts(&chat)).unwrap()
}

#[test]
fn float32_equals_run_time_ablation_within_1e_4() {
    let report = baked("chat");
    assert!(report.max_abs_logit_diff < 1e-4, "{report:?}");
    assert!(report.max_stream_leak < 1e-6, "{report:?}");
}

#[test]
fn float16_equals_run_time_ablation_within_two_hundredths() {
    let report = baked("chat-fp16");
    assert!(report.max_abs_logit_diff < 2e-2, "{report:?}");
    assert!(report.kl < 1e-5, "{report:?}");
    assert!(report.max_stream_leak < 1e-4, "{report:?}");
}

#[test]
fn bfloat16_equals_run_time_ablation_within_a_tenth() {
    let report = baked("chat-bf16");
    assert!(report.max_abs_logit_diff < 1e-1, "{report:?}");
    assert!(report.kl < 1e-4, "{report:?}");
    assert!(report.max_stream_leak < 1e-3, "{report:?}");
}

#[test]
fn padded_and_unpadded_prompts_agree_in_logits_and_stream() {
    let opened = Opened::new(&fixture("chat")).unwrap();
    let chat = pipeline::load_chat(&opened.files, None, ChatOptions::default()).unwrap();
    let model = opened.understand().unwrap();
    let runtime = runtime();
    let cancelled = AtomicBool::new(false);
    let pad = pipeline::pad_token(&chat);
    let prompts = prompts(&chat);
    let lengths: std::collections::BTreeSet<usize> = prompts.iter().map(Vec::len).collect();
    assert!(lengths.len() > 3, "prompts of several lengths");
    let run = |batch: usize| {
        let engine = Engine { runtime: &runtime, model: &model, batch, pad, cancelled: &cancelled, steered: None };
        let probes = (0..model.lm.n_layers()).map(|l| (l, ResidPoint::Pre)).collect();
        let mut session =
            engine.session(Request { probes, last_positions: 4, logits: 1, ..Request::default() }).unwrap();
        let rows: Vec<Row<'_>> = prompts.iter().map(|t| Row { tokens: t, direction: 0 }).collect();
        let mut out = vec![Vec::new(); rows.len()];
        engine
            .visit(&mut session, &rows, &[], |found| {
                out[found.row] = found.probes.concat();
                out[found.row].extend(found.logits);
                Ok(())
            })
            .unwrap();
        out
    };
    for (alone, padded) in run(1).iter().zip(run(24)) {
        let worst = alone.iter().zip(&padded).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        assert!(worst < 1e-4, "{worst}");
    }
    // and so do the answers
    let answers = |batch: usize| {
        let engine = Engine { runtime: &runtime, model: &model, batch, pad, cancelled: &cancelled, steered: None };
        let stop = pipeline::stop_tokens(&opened.files, &chat).unwrap();
        engine.answers(&prompts, 16, &stop, |_| ()).unwrap()
    };
    assert_eq!(answers(1), answers(24));
}
