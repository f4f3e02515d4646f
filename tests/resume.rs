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

/// `lancet run` on the guard model, with the output `out`.
fn search(out: &Path) -> assert_cmd::Command {
    common::onnx_runtime();
    let mut run = common::lancet();
    run.arg("run").arg(common::fixture("chat-guard")).arg("--prompts").arg(common::fixture("chat").join("prompts"));
    run.arg("-o").arg(out).args(["--json", "--no-cost", "--kl-positions", "1", "--wrapped-prompts", "4"]);
    run.args(["--max-new-tokens", "8", "--n-train", "64", "--n-test", "64"]);
    run
}

/// A search that is killed has kept what it had found: the same command takes that over, ends as one that was never
/// stopped, and leaves nothing behind.
#[test]
fn a_killed_search_goes_on_to_the_same_setting() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let whole = common::json(&mut search(&place("whole")), 0);

    let (out, kept) = (place("out"), place("out.partial"));
    let command = search(&out);
    let mut child = std::process::Command::new(command.get_program())
        .args(command.get_args())
        .envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let results = kept.join("results.jsonl");
    let lines = || std::fs::read(&results).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count());
    // candidates of some lambdas, and the answers to a setting
    let has_answers = || {
        let text = std::fs::read_to_string(&results).unwrap_or_default();
        text.lines().any(|line| line.contains("pseudo_harmful") && line.contains("\"setting\""))
    };
    while !has_answers() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed, with {} lines", lines());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.exists() && kept.join("activations").is_file());
    // what is cut in the middle of a line is measured again
    let text = std::fs::read(&results).unwrap();
    std::fs::write(&results, [&text[..], b"[\"cut"].concat()).unwrap();

    // under another policy nothing that was judged counts, and what was collected does
    let other = place("other.partial");
    std::fs::create_dir(&other).unwrap();
    for name in ["activations", "results.jsonl"] {
        std::fs::copy(kept.join(name), other.join(name)).unwrap();
    }
    let output = search(&place("other")).args(["--max-wrapped-drop", "0.5"]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("answers, wang-lambda-1 "), "{told}");
    for left in [place("other"), other] {
        std::fs::remove_dir_all(left).unwrap_or_default();
    }

    let output = search(&out).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("going on with what an earlier run has left"), "{told}");
    assert!(!told.contains("answers, wang-lambda-1 "), "the first setting is not answered again: {told}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["shared"]["search"], whole["shared"]["search"]);
    assert_eq!(
        found["shared"]["collect"]["resumed"],
        found["shared"]["collect"]["prompts"]["harmful"].as_u64().unwrap() * 3
    );
    let model = |out: &Path| std::fs::read(out.join("model.onnx")).unwrap();
    assert!(model(&out) == model(&place("whole")), "the models differ");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// What else has the name of the folder is left alone, and told before the work.
#[test]
fn another_folder_of_that_name_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("out.partial");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("notes.txt"), "mine").unwrap();
    let output = search(&folder.path().join("out")).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("out.partial` is not Lancet's"), "{told}");
    assert_eq!(std::fs::read(kept.join("notes.txt")).unwrap(), b"mine");
}
