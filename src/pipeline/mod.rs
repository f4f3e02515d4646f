//! The whole job, as prose: open, collect, select, bake, verify, evaluate, guard, publish, report.

pub mod check;
pub mod choose;
pub mod collect;
pub mod direction_file;
pub mod engine;
pub mod evaluate;
pub mod files;
pub mod inspect;
pub mod opened;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::bake::{self, PlanOptions, Staging};
use crate::chat::Chat;
use crate::error::Error;
use crate::method::direction::Direction;
use crate::method::prompts::{PromptClass, Prompts, Split};
use crate::method::select::Rules;
use crate::report::{
    BakeResult, ClassCounts, CollectSummary, EditRow, GuardResult, Outputs, Provenance, RunResult, VerifyResult,
};
use crate::runtime::session::Runtime;

use collect::RefusalTokens;
use engine::{Engine, Observer};
use files::ModelFiles;
use opened::Plans;
pub use opened::{Opened, Understood};

/// Prompts that a written model's logits are compared on.
const VERIFY_PROMPTS: usize = 8;

/// What the guard allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guard {
    /// Largest drop of the harmful refusal rate, as a share (0.02 is two points).
    pub max_harmful_drop: f64,
    /// Publish all the same, and say so in the provenance.
    pub force: bool,
}

/// How and where a model is baked.
#[derive(Debug, Clone, Copy)]
pub struct BakeOptions<'a> {
    /// Where the model goes: a folder, or an `.onnx` file.
    pub out: &'a Path,
    /// No added nodes.
    pub weights_only: bool,
    /// Set by Ctrl-C.
    pub cancelled: &'a AtomicBool,
}

/// Everything `run` can be told.
pub struct RunOptions<'a> {
    /// Lambda of the partial orthogonalisation.
    pub lambda: f64,
    /// Rules of the selection.
    pub rules: Rules,
    /// Refusal tokens.
    pub refusal_tokens: RefusalTokens,
    /// New tokens at most, a test prompt.
    pub max_new_tokens: usize,
    /// The guard.
    pub guard: Guard,
    /// How and where the model is baked.
    pub bake: BakeOptions<'a>,
    /// Rows a run.
    pub batch: usize,
    /// The command line, for the report.
    pub command: Vec<String>,
    /// Seed of the prompt sampling, for the report.
    pub seed: u64,
}

/// Loads the tokenizer and template for a model.
///
/// # Errors
/// If there are none, or if they are broken.
pub fn load_chat(
    files: &ModelFiles,
    tokenizer: Option<&Path>,
    options: crate::chat::ChatOptions<'_>,
) -> Result<Chat, Error> {
    let onnx_folder = files.onnx.parent().map(Path::to_path_buf).unwrap_or_default();
    let folders: Vec<&Path> = match tokenizer {
        Some(folder) => vec![folder],
        None if onnx_folder == files.root => vec![files.root.as_path()],
        None => vec![files.root.as_path(), onnx_folder.as_path()],
    };
    Ok(Chat::load(&folders, options)?)
}

/// Token to pad with: any will do, padded positions are masked.
pub fn pad_token(chat: &Chat) -> u32 {
    let ids = chat.special_ids();
    ids.pad.or(ids.eos).or(ids.bos).unwrap_or(0)
}

/// Runs the whole job and returns its report. Nothing is left at `out` unless verification and guard pass.
///
/// # Errors
/// Any stage's; a failed guard is no error here but `guard.passed = false` with nothing published.
pub fn run(
    opened: &Opened,
    chat: &Chat,
    prompts: &Prompts,
    runtime: &Runtime,
    options: &RunOptions<'_>,
    observer: &dyn Observer,
) -> Result<RunResult, Error> {
    let mut seconds = BTreeMap::new();
    let mut clock = Instant::now();
    let mut lap = |name: &str| {
        let took = clock.elapsed().as_secs_f64();
        clock = Instant::now();
        seconds.insert(name.to_string(), took);
        took
    };

    // 1. the model and its residual stream
    let staging = Staging::new(options.bake.out, &opened.model)?;
    let model = opened.understand()?;
    let inspected = inspect::describe(opened, &model);
    let pad = pad_token(chat);
    let engine = Engine { runtime, model: &model, batch: options.batch, pad, cancelled: options.bake.cancelled };
    let model_sha256 = opened.sha256()?;
    lap("inspect");

    // 2. activations of the prompts that the model refuses and answers as it should
    let inputs = collect::Inputs {
        chat,
        prompts,
        refusal_tokens: &options.refusal_tokens,
        model_sha256: &model_sha256,
        partial: None,
    };
    let (activations, resumed) = collect::collect(&engine, &inputs, observer)?;
    let collected = summary(&activations, resumed, None, lap("collect"));

    // 3. the direction
    let choice = choose::choose(&engine, chat, &activations, options.lambda, &options.rules, observer)?;
    // what is baked is what the direction file will hold, so that anyone can repeat and verify it from that
    let direction = direction_file::as_stored(&choice.direction)?;
    lap("select");

    // 4. the edit
    let mut metadata = vec![
        ("lancet.lambda".to_string(), format!("{}", options.lambda)),
        ("lancet.layer".to_string(), choice.result.selected.layer.to_string()),
        ("lancet.position".to_string(), choice.result.selected.position.to_string()),
        ("lancet.source_sha256".to_string(), model_sha256.clone()),
    ];
    if options.guard.force {
        metadata.push(("lancet.guard".into(), "forced".into()));
    }
    let plan_options = PlanOptions { weights_only: options.bake.weights_only, metadata };
    let plans = model.plan(&direction, &plan_options)?;
    let mut baked = bake_into(opened, &plans, &staging, &options.bake, observer)?;
    baked.seconds = lap("bake");

    // 5. proof: bytes, leak, logits of the file as written
    let mut written = Opened::new(&staging.path().join(opened.files.relative()))?;
    written.config = opened.config; // a single file has no configs beside it
    let out_model = written.understand()?;
    let out_engine = Engine { model: &out_model, ..engine };
    let test = verify_prompts(chat, prompts)?;
    let logits = check::logits(&engine, &out_engine, &direction, &test)?;
    let bytes = plans.verify(opened, &written)?;
    let verify = verdict(&bytes, Some(&logits), plans.inexact());
    lap("verify");

    // 6. before and after
    let settings = evaluate::Settings {
        max_new_tokens: options.max_new_tokens,
        stop: stop_tokens(&opened.files, chat)?,
        refusal_tokens: activations.info.refusal_tokens.clone(),
    };
    let before = evaluate::measure(&engine, chat, prompts, &settings, "answers before", observer)?;
    let after = evaluate::measure(&out_engine, chat, prompts, &settings, "answers after", observer)?;
    let eval = evaluate::compare(before, &after, &settings, chat.system());
    lap("evaluate");

    // 7. the guard, on what was measured on the written model
    let guard = judge(&eval.before.harmful, &eval.after.harmful, options.guard);
    let publish = verify.passed && (guard.passed || guard.overridden);
    let out = options.bake.out;
    let single = out.extension().is_some_and(|e| e == "onnx");
    let place = |name: &str| {
        if single { out.with_extension(format!("lancet.{name}")) } else { out.join(format!("lancet.{name}")) }
    };
    let mut result = RunResult {
        schema: crate::report::SCHEMA,
        inspect: inspected,
        collect: collected,
        select: choice.result,
        bake: baked,
        verify,
        eval,
        guard,
        provenance: Provenance {
            lancet_version: env!("CARGO_PKG_VERSION").into(),
            model: opened.files.onnx.display().to_string(),
            model_sha256: model_sha256.clone(),
            onnxruntime_version: Some(Runtime::build_info()),
            execution_provider: runtime.provider().into(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            seed: options.seed,
            prompts: prompts_words(prompts),
            prompts_sha256: prompts.fingerprint(),
            command: options.command.clone(),
            lambda: options.lambda,
        },
        outputs: Outputs { model: None, report_html: None, report_json: None, direction: None },
        seconds: BTreeMap::new(),
    };
    drop(out_model);
    drop(written);

    // 8. publish, whole or not at all
    if publish {
        let path = if single { out.to_path_buf() } else { out.join(opened.files.relative()) };
        result.outputs = Outputs {
            model: Some(path.display().to_string()),
            report_html: Some(place("html").display().to_string()),
            report_json: Some(place("json").display().to_string()),
            direction: Some(place("direction.safetensors").display().to_string()),
        };
    }
    result.seconds = seconds;
    if publish {
        let stage = |name: &str| {
            let path = place(name);
            staging.path().join(path.file_name().expect("made from a file name"))
        };
        direction_file::save(&stage("direction.safetensors"), &direction, &result.select, &model_sha256)?;
        write_whole(&stage("html"), crate::report::html(&result).as_bytes())?;
        let json = serde_json::to_vec_pretty(&result).expect("plain data");
        write_whole(&stage("json"), &json)?;
        staging.publish()?;
    }
    Ok(result)
}

/// Bakes `direction` into a copy of the model at `out` and verifies the bytes; no runtime is needed.
///
/// # Errors
/// If the graph is not understood, if the direction does not fit, or if writing fails.
pub fn bake_only(
    opened: &Opened,
    direction: &Direction,
    options: &BakeOptions<'_>,
    observer: &dyn Observer,
) -> Result<(BakeResult, VerifyResult), Error> {
    let started = Instant::now();
    let staging = Staging::new(options.out, &opened.model)?;
    let model = opened.understand()?;
    let metadata = vec![("lancet.guard".to_string(), "not measured".to_string())];
    let plans = model.plan(direction, &PlanOptions { weights_only: options.weights_only, metadata })?;
    let mut baked = bake_into(opened, &plans, &staging, options, observer)?;
    let written = Opened::new(&staging.path().join(opened.files.relative()))?;
    let bytes = plans.verify(opened, &written)?;
    let verify = verdict(&bytes, None, plans.inexact());
    drop(written);
    if !verify.passed {
        return Err(Error::failed_with(
            format!("the written model does not verify: {}", verify.failures.join("; ")),
            "nothing was published; please report this with the model's `lancet inspect --json`",
        ));
    }
    staging.publish()?;
    baked.seconds = started.elapsed().as_secs_f64();
    Ok((baked, verify))
}

fn bake_into(
    opened: &Opened,
    plans: &Plans,
    staging: &Staging,
    options: &BakeOptions<'_>,
    observer: &dyn Observer,
) -> Result<BakeResult, Error> {
    let relative = opened.files.relative();
    let folder = staging.path().join(relative.parent().unwrap_or(Path::new("")));
    std::fs::create_dir_all(&folder)
        .map_err(|e| Error::failed(format!("cannot create `{}`: {e}", folder.display())))?;
    let single = options.out.extension().is_some_and(|e| e == "onnx");
    if !single {
        opened.files.copy_companions(staging.path())?;
    }
    let mut edits = Vec::new();
    let parts = opened.embedding.iter().zip(&plans.embedding).chain([(&opened.model, &plans.main)]);
    for (model, plan) in parts {
        let total = std::sync::OnceLock::new();
        let seen = std::sync::atomic::AtomicU64::new(0);
        let progress = |done: u64, all: u64| {
            total.get_or_init(|| observer.start("write the model", all));
            let before = seen.fetch_max(done, std::sync::atomic::Ordering::Relaxed);
            observer.advance(done.saturating_sub(before));
        };
        edits.extend(bake::apply(model, plan, &folder, &bake::ApplyOptions::new(options.cancelled), &progress)?);
        if total.get().is_some() {
            observer.finish();
        }
    }
    let bytes_written = folder_bytes(staging.path());
    Ok(BakeResult {
        edits: edits.iter().map(edit_row).collect(),
        output: options.out.display().to_string(),
        bytes_written,
        seconds: 0.0,
        direction_sha256: plans.main.direction_sha256.clone(),
    })
}

fn edit_row(edit: &bake::Edit) -> EditRow {
    // both sides are the same JSON contract
    serde_json::from_value(serde_json::to_value(edit).expect("plain data")).expect("an edit is a row of the report")
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|e| match e.metadata() {
            Ok(meta) if meta.is_dir() => folder_bytes(&e.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// A handful of prompts of each class.
///
/// # Errors
/// If the template refuses one.
pub fn verify_prompts(chat: &Chat, prompts: &Prompts) -> Result<Vec<Vec<u32>>, Error> {
    let mut out = Vec::new();
    for class in PromptClass::ALL {
        let texts = prompts.get(class, Split::Val);
        out.extend(collect::encode(chat, &texts[..texts.len().min(VERIFY_PROMPTS.div_ceil(3))])?);
    }
    Ok(out)
}

/// The verdict over bytes and logits.
pub fn verdict(bytes: &bake::ByteReport, logits: Option<&check::LogitReport>, inexact: Vec<String>) -> VerifyResult {
    let mut failures = Vec::new();
    if bytes.changed_bytes_outside_plan > 0 {
        failures.push(format!("{} bytes outside the plan differ", bytes.changed_bytes_outside_plan));
    }
    failures.extend(bytes.changed_tensors.iter().map(|what| format!("not to be edited: {what}")));
    if failures.is_empty() && !bytes.passed() {
        failures.push("an edited tensor is not what the plan computes".into());
    }
    if let Some(logits) = logits {
        // a NaN must fail too
        let beyond = inexact.is_empty() && logits.max_abs_logit_diff > logits.bound;
        if logits.max_abs_logit_diff.is_nan() || beyond {
            failures.push(format!(
                "a logit differs from run-time ablation by {:.3e}, more than {:.3e}",
                logits.max_abs_logit_diff, logits.bound
            ));
        }
        if logits.max_stream_leak.is_nan() || logits.max_stream_leak > logits.leak_bound {
            failures.push(format!(
                "the stream keeps {:.3e} of the direction, more than {:.3e}",
                logits.max_stream_leak, logits.leak_bound
            ));
        }
    }
    VerifyResult {
        passed: failures.is_empty(),
        max_abs_logit_diff: logits.map(|l| l.max_abs_logit_diff),
        kl: logits.map(|l| l.kl),
        max_stream_leak: logits.map(|l| l.max_stream_leak),
        changed_bytes_outside_plan: bytes.changed_bytes_outside_plan,
        bound: logits.map(|l| l.bound),
        n_prompts: logits.map_or(0, |l| l.n_prompts),
        inexact,
        failures,
    }
}

/// The guard's judgement of two harmful refusal rates.
pub fn judge(before: &crate::report::ClassResult, after: &crate::report::ClassResult, guard: Guard) -> GuardResult {
    let drop = before.refusal_rate - after.refusal_rate;
    let mut reasons = Vec::new();
    if before.total == 0 {
        reasons.push("no harmful prompt was measured".to_string());
    } else if before.refused == 0 {
        reasons.push("the base model refuses no harmful prompt: there is no true refusal to keep".to_string());
    }
    if drop > guard.max_harmful_drop + 1e-12 {
        reasons.push(format!(
            "harmful refusal falls from {:.1} % to {:.1} %, by {:.1} points; the limit is {:.1}",
            100.0 * before.refusal_rate,
            100.0 * after.refusal_rate,
            100.0 * drop,
            100.0 * guard.max_harmful_drop
        ));
    }
    let passed = reasons.is_empty();
    GuardResult {
        passed,
        harmful_before: before.refusal_rate,
        harmful_after: after.refusal_rate,
        drop,
        limit: guard.max_harmful_drop,
        reasons,
        overridden: !passed && guard.force,
    }
}

/// Summary of a collection.
pub fn summary(
    activations: &collect::Activations,
    resumed: usize,
    output: Option<&Path>,
    seconds: f64,
) -> CollectSummary {
    let (n_pos, n_layers, d_model) = activations.means[0].shape();
    let count = |class| activations.info.prompts.get(class, Split::Train).len();
    CollectSummary {
        prompts: ClassCounts {
            harmful: count(PromptClass::Harmful),
            pseudo_harmful: count(PromptClass::PseudoHarmful),
            harmless: count(PromptClass::Harmless),
        },
        resumed,
        n_pos,
        n_layers,
        d_model,
        output: output.map(|p| p.display().to_string()),
        seconds,
    }
}

/// Tokens that end an answer: the configs', else the tokenizer's.
///
/// # Errors
/// If a config is broken.
pub fn stop_tokens(files: &ModelFiles, chat: &Chat) -> Result<Vec<u32>, Error> {
    let found = files.stop_tokens()?;
    Ok(if found.is_empty() { chat.special_ids().eos.into_iter().collect() } else { found })
}

fn prompts_words(prompts: &Prompts) -> String {
    use crate::method::prompts::PromptSource;
    match &prompts.origin.source {
        PromptSource::Bundled { version } => format!("bundled, version {version}"),
        PromptSource::Folder { path } => format!("folder {path}"),
        PromptSource::Files => "one file a class".into(),
    }
}

/// Writes a file beside its place and moves it there, so that it appears whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    use std::io::Write;
    let io = |e: std::io::Error| {
        Error::failed_with(
            format!("cannot write `{}`: {e}", path.display()),
            "check the folder, its permissions and its free space",
        )
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(io)?;
    }
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}
