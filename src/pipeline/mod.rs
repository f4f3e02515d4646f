//! The whole job, as prose: open, collect, select, bake, verify, evaluate, guard, publish, report.

pub mod add;
mod beside;
mod card;
pub mod check;
pub mod choose;
pub mod collect;
pub mod consumer;
mod cross;
pub mod direction_file;
pub mod divergence;
pub mod engine;
pub mod evaluate;
pub mod files;
pub mod guard;
pub mod inspect;
mod kind;
pub mod likelihood;
pub mod multiple_choice;
pub mod opened;
pub mod package;
pub mod perplexity;
pub mod prove;
mod publish;
pub mod sweep;
pub mod variant;
mod verdict;
mod walk;
mod weights;
mod write;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::bake::{self, BakePlan, PlanOptions, QuantisedMode, Staging};
use crate::chat::Chat;
use crate::error::Error;
use crate::method::direction::Direction;
use crate::method::prompts::{PromptClass, Prompts, Split};
use crate::method::select::Rules;
use crate::report::{
    BakeResult, ClassCounts, CollectSummary, Outputs, PackageResult, Provenance, RefusalToken, RunResult, VerifyResult,
};
use crate::runtime::session::Runtime;

use collect::RefusalTokens;
use engine::Observer;
use files::ModelFiles;
pub use guard::Guard;
pub use opened::{Opened, Understood};
pub use package::Package;
pub use publish::preflight;
use variant::{Clock, Measuring, Running};
pub use verdict::verdict;
pub use write::{check_new_folder, check_place, write_whole};

/// Prompts that a written model's logits are compared on.
const VERIFY_PROMPTS: usize = 8;

/// How and where a model is baked.
#[derive(Clone, Copy)]
pub struct BakeOptions<'a> {
    /// Where the model goes: a folder, or an `.onnx` file.
    pub out: &'a Path,
    /// No added nodes.
    pub weights_only: bool,
    /// What is done to quantised weights.
    pub quantised: QuantisedMode,
    /// With [`QuantisedMode::Auto`]: the error that rounding may cost, as a multiple of nearest rounding's, in place of
    /// the limits of [`bake::limits`].
    pub max_rounding_error: Option<f64>,
    /// What the written files are run with before they are published, where nothing is measured; `None` proves the bytes
    /// only.
    pub runtime: Option<&'a Runtime>,
    /// Set by Ctrl-C.
    pub cancelled: &'a AtomicBool,
}

impl std::fmt::Debug for BakeOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BakeOptions").field("out", &self.out).finish_non_exhaustive()
    }
}

impl BakeOptions<'_> {
    /// How each file's bake is planned.
    fn plan(&self, mut metadata: Vec<(String, String)>) -> PlanOptions {
        metadata.extend(self.max_rounding_error.map(|ratio| ("lancet.max_rounding_error".into(), ratio.to_string())));
        PlanOptions { weights_only: self.weights_only, quantised: self.quantised, metadata, ..PlanOptions::default() }
    }

    /// Whether a quantised writer may get nodes because rounding leaves or costs too much.
    fn may_fall_back(&self) -> bool {
        self.quantised == QuantisedMode::Auto && !self.weights_only
    }

    /// The quantised writers of a file that get nodes instead, as their edits tell; `None` where there are none.
    fn past_limits(&self, edits: &[bake::Edit], plan: &BakePlan) -> Option<BTreeSet<String>> {
        let past = bake::limits::past_limits(edits, plan.unit().len(), self.max_rounding_error);
        (self.may_fall_back() && !past.is_empty()).then_some(past)
    }
}

/// Everything `run` can be told.
pub struct RunOptions<'a> {
    /// Lambda of the partial orthogonalisation.
    pub lambda: f64,
    /// Share of the component that is ablated, above 0 and at most 1.
    pub strength: f64,
    /// Factor of an activation addition; 0 adds nothing.
    pub alpha: f64,
    /// Rules of the selection.
    pub rules: Rules,
    /// Refusal tokens.
    pub refusal_tokens: RefusalTokens,
    /// Further lambdas to measure at run time for the trade-off in the report; may be empty.
    pub sweep: Vec<f64>,
    /// What is measured before and after. The refusal tokens in it are those that the collection finds.
    pub settings: evaluate::Settings,
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

/// Runs the whole job and returns its report: `opened`, a variant of `package`, gives the direction, and every variant
/// is baked and measured. Nothing is left at `out` unless verification and guard pass for each.
///
/// # Errors
/// Any stage's; a failed guard is no error here but `guard.passed = false` with nothing published.
pub fn run(
    package: &Package,
    opened: &Opened,
    chat: &Chat,
    prompts: &Prompts,
    runtime: &Runtime,
    mut options: RunOptions<'_>,
    observer: &dyn Observer,
) -> Result<RunResult, Error> {
    let mut clock = Clock::start();

    // 1. the model and its residual stream, and the others of its package
    let staging = Staging::new(options.bake.out, &opened.model)?;
    tell(package, &staging, observer);
    publish::preflight(package, options.bake.out)?;
    publish::check_names(options.bake.out)?;
    let chosen = package.variants.iter().position(|v| v.files.onnx == opened.files.onnx);
    let chosen = chosen.ok_or_else(|| {
        Error::usage(
            format!("`{}` is not among the models to bake", opened.files.onnx.display()),
            "let `--only` name the variant that the direction comes from",
        )
    })?;
    let model = opened.understand()?;
    let inspected = inspect::describe(opened, &model);
    let running = Running { runtime, chat, prompts, batch: options.batch, cancelled: options.bake.cancelled };
    let engine = running.engine(&model);
    let model_sha256 = opened.sha256()?;
    clock.lap("inspect");

    // 2. activations of the prompts that the model refuses and answers as it should
    let inputs = collect::Inputs {
        chat,
        prompts,
        refusal_tokens: &options.refusal_tokens,
        model_sha256: &model_sha256,
        partial: None,
    };
    let (activations, resumed) = collect::collect(&engine, &inputs, observer)?;
    let collected = summary(&activations, resumed, None, clock.lap("collect"));

    // 3. the direction
    let mut chooser = choose::Chooser::new(&engine, chat, &activations, options.rules, observer)?;
    let mut choice = chooser.choose(options.lambda, options.strength, observer)?;
    let mut addition = None;
    if options.alpha != 0.0 {
        let (vector, chosen) = add::choose(&engine, chat, &activations, options.alpha, &options.rules, observer)?;
        choice.direction = choice.direction.with_addition(Some(vector));
        addition = Some(chosen);
    }
    // what is baked is what the direction file will hold, so that anyone can repeat and verify it from that
    let direction = direction_file::as_stored(&choice.direction)?;
    clock.lap("select");

    // 4. for every variant: the edit; proof by bytes, leak and logits of the file as written; before and after, and
    //    the guard on what was measured on the written model
    let metadata = vec![
        ("lancet.lambda".to_string(), format!("{}", options.lambda)),
        ("lancet.layer".to_string(), choice.result.selected.layer.to_string()),
        ("lancet.position".to_string(), choice.result.selected.position.to_string()),
        ("lancet.source_sha256".to_string(), model_sha256.clone()),
    ];
    options.settings.refusal_tokens.clone_from(&activations.info.refusal_tokens);
    let swept = match options.sweep.as_slice() {
        [] => None,
        lambdas => {
            let sweep = sweep::SweepOptions {
                lambdas: lambdas.to_vec(),
                strengths: vec![options.strength],
                alphas: vec![0.0],
                rules: options.rules,
                refusal_tokens: options.refusal_tokens.clone(),
                settings: options.settings.for_sweep(),
                cross: &[],
                guard: &options.guard,
            };
            let (mut found, _) =
                sweep::over(&running, engine, (&activations, &mut chooser), &sweep, &mut clock, observer)?;
            found.model = opened.files.onnx.display().to_string();
            Some(found)
        }
    };
    let measuring = Measuring { running, settings: &options.settings, guard: &options.guard };
    let plan_options = options.bake.plan(metadata);
    let bake_options = (&options.bake, &plan_options);
    let mut outcomes =
        publish::stage(package, &direction, bake_options, Some(&measuring), &staging, &mut clock, observer)?;
    let tokens = choice.result.refusal_tokens.clone();
    let mut of_package = (!package.lone).then(|| publish::result(package, &options.bake, tokens, &outcomes));

    // 5. the chosen variant's results; a variant that fails or is refused stops them all
    let variant::Outcome { mut bake, mut verify, eval, guard, added, .. } = outcomes.swap_remove(chosen);
    if let (Some(addition), Some(added)) = (&mut addition, added) {
        addition.treatment = added.treatment.into();
        addition.target = added.target;
    }
    let (eval, mut guard) = eval.zip(guard).expect("every model is measured");
    bake.bytes_written = publish::folder_bytes(staging.path());
    if let Some(found) = &of_package {
        verify.passed = found.verified();
        guard.passed = found.variants.iter().filter_map(|v| v.guard.as_ref()).all(|g| g.passed);
        guard.overridden = !guard.passed && options.guard.force;
        let others = found.variants.iter().enumerate().filter(|(at, _)| *at != chosen);
        for (_, other) in others {
            verify.failures.extend(other.verify.failures.iter().map(|f| format!("`{}`: {f}", other.model)));
            let reasons = other.guard.iter().flat_map(|g| &g.reasons);
            guard.reasons.extend(reasons.map(|r| format!("`{}`: {r}", other.model)));
        }
    }
    let publish = verify.passed && (guard.passed || guard.overridden);
    let guard_words = guard.words();
    let out = options.bake.out;
    let single = publish::is_single(out);
    let place = |name: &str| {
        if single { out.with_extension(format!("lancet.{name}")) } else { out.join(format!("lancet.{name}")) }
    };
    let seconds = clock.seconds;
    if let Some(found) = &mut of_package {
        found.published = publish;
        found.bytes_written = bake.bytes_written;
        found.seconds = seconds.values().sum();
    }
    let mut result = RunResult {
        schema: crate::report::SCHEMA,
        inspect: inspected,
        collect: collected,
        select: choice.result,
        bake,
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
            strength: options.strength,
            guard: guard_words,
        },
        outputs: Outputs::default(),
        addition,
        sweep: swept,
        package: of_package,
        seconds,
    };

    // 6. publish, whole or not at all
    if publish {
        let path = if single { out.to_path_buf() } else { out.join(&package.variants[chosen].relative) };
        result.outputs = Outputs {
            model: Some(path.display().to_string()),
            report_html: Some(place("html").display().to_string()),
            report_json: Some(place("json").display().to_string()),
            report_markdown: Some(place("md").display().to_string()),
            direction: Some(place("direction.safetensors").display().to_string()),
        };
        let stage = |name: &str| {
            let path = place(name);
            staging.path().join(path.file_name().expect("made from a file name"))
        };
        direction_file::save(&stage("direction.safetensors"), &direction, &result.select, &model_sha256)?;
        write_whole(&stage("html"), crate::report::html(&result).as_bytes())?;
        let json = serde_json::to_vec_pretty(&result).expect("plain data");
        write_whole(&stage("json"), &json)?;
        write_whole(&stage("md"), crate::report::markdown(&result).as_bytes())?;
        staging.publish()?;
    }
    Ok(result)
}

/// Bakes `direction` into a copy of every variant of a package and verifies them. Without `measuring` no runtime is
/// needed, and a variant that does not verify is an error. With it, nothing is published where a variant does not
/// verify or the guard refuses one; the result tells.
///
/// # Errors
/// If a graph is not understood, if the direction does not fit, if writing or a run fails.
pub fn bake(
    package: &Package,
    direction: &Direction,
    options: &BakeOptions<'_>,
    measuring: Option<&Measuring<'_>>,
    observer: &dyn Observer,
) -> Result<PackageResult, Error> {
    let mut clock = Clock::start();
    let any = package.variants.first().expect("a package has a variant");
    let staging =
        Staging::new(options.out, &opened::open_model(&any.files.onnx).map_err(publish::of_variant(package, any))?)?;
    tell(package, &staging, observer);
    publish::preflight(package, options.out)?;
    let metadata = measuring.is_none().then(|| (variant::GUARD_KEY.to_string(), "not measured".to_string()));
    let plan_options = options.plan(metadata.into_iter().collect());
    let outcomes =
        publish::stage(package, direction, (options, &plan_options), measuring, &staging, &mut clock, observer)?;
    let tokens = measuring.map(|m| {
        let ids = m.settings.refusal_tokens.iter();
        ids.map(|&id| RefusalToken { id, text: m.running.chat.token_label(id) }).collect()
    });
    let mut result = publish::result(package, options, tokens.unwrap_or_default(), &outcomes);
    result.bytes_written = publish::folder_bytes(staging.path());
    if measuring.is_none()
        && let Some((at, failed)) = result.variants.iter().enumerate().find(|(_, v)| !v.verify.passed)
    {
        let error = Error::failed_with(
            format!("the written model does not verify: {}", failed.verify.failures.join("; ")),
            "nothing was published; please report this with the model's `lancet inspect --json`",
        );
        return Err(publish::of_variant(package, &package.variants[at])(error));
    }
    if result.verified() && result.guarded().is_empty() {
        staging.publish()?;
        result.published = true;
    }
    clock.lap("publish");
    result.seconds = clock.seconds.values().sum();
    Ok(result)
}

/// Bakes `direction` into a copy of one model at `out`, with its companions, and verifies the bytes; no runtime is
/// needed.
///
/// # Errors
/// If the graph is not understood, if the direction does not fit, or if writing fails.
pub fn bake_only(
    opened: &Opened,
    direction: &Direction,
    options: &BakeOptions<'_>,
    observer: &dyn Observer,
) -> Result<(BakeResult, VerifyResult), Error> {
    let result = bake(&Package::of_file(opened.files.clone()), direction, options, None, observer)?;
    Ok(result.into_lone())
}

/// Names what killed runs had left beside the output, which is gone now, and weights that are left out of it.
fn tell(package: &Package, staging: &Staging, observer: &dyn Observer) {
    for path in staging.swept() {
        observer.note(&format!("note: removed `{}`, which a run that was killed had left", path.display()));
    }
    for left in &package.weights_left {
        observer.note(&format!("note: left out `{}`: {}", package::shown(&left.relative), left.reason));
    }
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
