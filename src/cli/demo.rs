//! The whole job on the bundled chat model.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lancet::chat::ChatOptions;
use lancet::eval::policy::Limit;
use lancet::method::prompts::{LoadOptions, SplitSizes};
use lancet::pipeline::collect::RefusalTokens;
use lancet::pipeline::files::ModelFiles;
use lancet::pipeline::{self, BakeOptions, Method, Package, RunOptions};
use lancet::prompt_files::{self, PromptLocation};

use super::args::{ChatArgs, DemoArgs};
use super::commands::{Context, Ending, finish_run, refuse_existing, running};
use super::measuring;
use super::method;
use super::runtime::load_runtime;

macro_rules! bundled {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/chat/", $name)).as_slice())),*]
    };
}

/// The chat model, its tokenizer and its prompts.
const FILES: &[(&str, &[u8])] = bundled![
    "model.onnx",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "prompts/harmful_train.json",
    "prompts/harmful_val.json",
    "prompts/harmful_test.json",
    "prompts/pseudo_harmful_train.json",
    "prompts/pseudo_harmful_val.json",
    "prompts/pseudo_harmful_test.json",
    "prompts/harmless_train.json",
    "prompts/harmless_val.json",
    "prompts/harmless_test.json",
    "prompts/guard/contrasts.json",
];

/// `lancet demo`.
pub fn demo(context: &Context, args: &DemoArgs) -> anyhow::Result<Ending> {
    let out = match &args.output {
        Some(out) => out.clone(),
        None => fresh(Path::new("lancet-demo")),
    };
    refuse_existing(&out)?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder for the bundled model")?;
    lancet::files::abandon_too(folder.path());
    let prompts_folder = folder.path().join("prompts");
    std::fs::create_dir_all(prompts_folder.join("guard")).context("cannot unpack the bundled model")?;
    for (name, bytes) in FILES {
        std::fs::write(folder.path().join(name), bytes).with_context(|| format!("cannot unpack `{name}`"))?;
    }
    let package = Package::of_file(ModelFiles::of_file(&folder.path().join("model.onnx")));
    let source = package.pick(None)?;
    let opened = source.opened()?;
    let chat = pipeline::load_chat(&opened.files, None, ChatOptions::default())?;
    let sizes = SplitSizes::default();
    let prompts =
        prompt_files::load(PromptLocation::Folder(&prompts_folder), &LoadOptions { sizes, ..LoadOptions::default() })
            .map_err(lancet::Error::from)?;
    let guard = measuring::guard(&args.guard)?;
    let seed = LoadOptions::default().seed;
    // a short job: everything that needs no further file is measured
    let mut measured = args.measuring.clone();
    measured.samples = measured.samples.max(1);
    measured.also_system.get_or_insert_with(|| "You are a helpful assistant.".into());
    let guard_sets = measuring::guard_sets(&measured, Some(&prompts_folder), &guard.policy.guard_sets())?;
    let settings = measuring::settings(context, opened, &chat, &measured, &ChatArgs::default(), guard_sets, seed)?;
    let runtime = load_runtime(context, &args.runtime)?;
    let harmful_drop = guard.policy.limit(Limit::HarmfulDrop).unwrap_or(1.0);
    let method = method::method(&args.method, harmful_drop, false)?;
    let options = RunOptions {
        sweep: if method == Method::Wang { vec![0.0, 0.5, 1.0] } else { Vec::new() },
        method,
        lambda: args.method.lambda.unwrap_or(1.0),
        strength: args.method.strength.unwrap_or(1.0),
        alpha: args.method.add,
        budget: None,
        rules: method::rules(&args.method, harmful_drop),
        refusal_tokens: RefusalTokens::Automatic,
        settings,
        guard,
        bake: BakeOptions {
            out: &out,
            weights_only: false,
            quantised: Default::default(),
            max_rounding_error: None,
            runtime: None,
            sync: true,
            cancelled: &context.cancelled,
        },
        command: std::env::args().collect(),
        seed,
    };
    let ready = pipeline::preflight(&package, &out)?;
    let running = running(context, &runtime, &chat, &prompts, args.runtime.batch_size);
    let result = pipeline::run(&ready, source, &running, options, &context.ui)?;
    finish_run(context, &result)
}

/// `stem`, or `stem-2`, `stem-3`, ... : the first that does not exist.
fn fresh(stem: &Path) -> PathBuf {
    if !stem.exists() {
        return stem.to_path_buf();
    }
    (2..).map(|n| PathBuf::from(format!("{}-{n}", stem.display()))).find(|p| !p.exists()).expect("numbers do not end")
}
