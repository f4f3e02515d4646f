//! A collection that is stopped keeps what it has, and goes on from there to the same result.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lancet::chat::ChatOptions;
use lancet::method::prompts::{LoadOptions, PromptClass};
use lancet::pipeline::collect::{self, RefusalTokens};
use lancet::pipeline::engine::{Engine, Observer, Silent};
use lancet::pipeline::stage::Stage;
use lancet::pipeline::{self, Opened};
use lancet::prompt_files::{self, PromptLocation};
use lancet::runtime::session::{Device, Runtime};

/// Stops the work after some prompts, as Ctrl-C would.
struct StopAfter<'a> {
    left: AtomicU64,
    cancelled: &'a AtomicBool,
}

impl Observer for StopAfter<'_> {
    fn start(&self, _: &Stage, _: u64) {}
    fn advance(&self, steps: u64) {
        if self.left.fetch_sub(steps, Ordering::Relaxed) <= steps {
            self.cancelled.store(true, Ordering::Relaxed);
        }
    }
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}

#[test]
fn a_stopped_collection_goes_on_to_the_same_means() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat");
    let runtime = Runtime::load(&common::onnxruntime_library(), Device::Cpu, 0).unwrap();
    let opened = Opened::new(&fixture).unwrap();
    let chat = pipeline::load_chat(&opened.files, None, ChatOptions::default()).unwrap();
    let model = opened.understand().unwrap();
    let folder = fixture.join("prompts");
    let prompts = prompt_files::load(PromptLocation::Folder(&folder), &LoadOptions::default()).unwrap();
    let tokens = RefusalTokens::Given(vec![
        chat.first_token_after_prompt("I").unwrap(),
        chat.first_token_after_prompt("As").unwrap(),
    ]);
    let cancelled = AtomicBool::new(false);
    let pad = pipeline::pad_token(&chat);
    let engine = Engine { runtime: &runtime, model: &model, batch: 16, pad, cancelled: &cancelled, steered: None };
    let temporary = tempfile::tempdir().unwrap();
    let partial = temporary.path().join("acts.partial");
    let inputs = |partial| collect::Inputs {
        chat: &chat,
        prompts: &prompts,
        refusal_tokens: &tokens,
        model_sha256: "the model",
        partial,
    };

    let stop = StopAfter { left: AtomicU64::new(100), cancelled: &cancelled };
    let error = collect::collect(&engine, &inputs(Some(&partial)), &stop).unwrap_err();
    assert_eq!(error.to_string(), "interrupted");
    assert!(partial.is_file(), "what was collected is kept");
    cancelled.store(false, Ordering::Relaxed);

    let (resumed, before) = collect::collect(&engine, &inputs(Some(&partial)), &Silent).unwrap();
    assert!((100..384).contains(&before), "{before} prompts were not run again");
    let (whole, none) = collect::collect(&engine, &inputs(None), &Silent).unwrap();
    assert_eq!(none, 0);
    for class in PromptClass::ALL {
        let (a, b) = (resumed.of(class), whole.of(class));
        assert_eq!(a.count(), b.count());
        let worst = a.means().iter().zip(b.means()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-9, "{class}: {worst}");
    }
    // another question is not answered from that file
    let other = collect::Inputs { model_sha256: "another model", ..inputs(Some(&partial)) };
    assert_eq!(collect::collect(&engine, &other, &Silent).unwrap().1, 0);
}
