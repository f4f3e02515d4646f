//! The whole job, as prose: open, collect, select, bake, verify, evaluate, guard, publish, report.

pub mod add;
mod bench;
mod beside;
mod bytes;
mod card;
pub mod check;
pub mod choose;
pub mod choose_gate;
pub mod collect;
pub mod compare;
pub mod consumer;
mod cross;
pub mod direction_file;
pub mod divergence;
pub mod engine;
pub mod estimate;
pub mod evaluate;
pub mod files;
pub mod guard;
mod hindered;
pub mod inspect;
pub mod journal;
mod kind;
pub mod likelihood;
pub mod multiple_choice;
pub mod observe;
pub mod opened;
pub mod package;
pub mod perplexity;
pub mod prove;
mod publish;
mod ranking;
pub mod refine;
pub mod running;
mod search;
pub mod settings;
pub mod stage;
mod trial;
pub mod understood;
pub mod variant;
mod verdict;
mod walk;
mod weights;
mod write;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::bake::{self, BakePlan, GUARD, GuardMark, PlanOptions, QuantisedMode, Staging};
use crate::chat::Chat;
use crate::edit::Edit;
use crate::error::Error;
use crate::method::prompts::{PromptClass, Prompts, Split};
use crate::method::refine::Refinement;
use crate::method::select::Rules;
use crate::report::{
    AdditionResult, ClassCounts, CollectSummary, CompareResult, Found, Outputs, PackageBake, Provenance, RunResult,
    RunShared, SearchResult, SelectResult, VariantResult,
};
use crate::runtime::session::Runtime;

use bench::Bench;
use choose::Choice;
use choose_gate::{GateChoice, GateRules};
use collect::{Activations, RefusalTokens};
use engine::{Engine, Observer};
use files::ModelFiles;
pub use guard::Guard;
use journal::Journal;
pub use opened::{Opened, Understood};
pub use package::{Package, Variant};
pub use publish::{Ready, preflight};
use refine::Refiner;
use running::Running;
use search::Searched;
use settings::SearchRules;
use variant::{BakeJob, Clock, Measuring};
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
    /// Whether everything is on the disk before it is published. Without, a power cut may leave an output that is not
    /// complete.
    pub sync: bool,
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
    fn past_limits(&self, edits: &[bake::EditResult], plan: &BakePlan) -> Option<BTreeSet<String>> {
        let past = bake::limits::past_limits(edits, plan.d_model(), self.max_rounding_error);
        (self.may_fall_back() && !past.is_empty()).then_some(past)
    }
}

/// How the edit of a run is found.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Settings of both others are tried on validation prompts, and the best that keeps to the policy is taken.
    Auto(SearchRules),
    /// One direction is selected and ablated everywhere (Wang et al. 2025).
    Wang,
    /// A direction is selected, and a further method makes something of it.
    Refined(Refinement),
    /// A gate is fitted at each layer, and the one that validation prompts choose opens an ablation at its layer.
    Gate(GateRules),
}

/// Everything `run` can be told. Lambda, strength, factor and rules of the selection are read by [`Method::Wang`] and
/// [`Method::Refined`] alone.
pub struct RunOptions<'a> {
    /// How the edit is found.
    pub method: Method,
    /// Lambda of the partial orthogonalisation.
    pub lambda: f64,
    /// Strength of the ablation, above 0 and at most 1.
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
    /// Seconds that the run may take, where it is to leave out what does not fit.
    pub budget: Option<f64>,
    /// How and where the model is baked.
    pub bake: BakeOptions<'a>,
    /// The command line, for the report.
    pub command: Vec<String>,
    /// Seed of the prompt sampling, for the report.
    pub seed: u64,
}

impl RunOptions<'_> {
    /// The further lambdas.
    fn as_sweep(&self) -> SearchRules {
        SearchRules {
            lambdas: self.sweep.clone(),
            strengths: vec![self.strength],
            alphas: vec![0.0],
            rules: self.rules,
            refinements: Vec::new(),
            gate: None,
            refusal: false,
        }
    }

    /// What the written models say of how they were made, beside what every bake says.
    fn metadata(&self, found: &FoundEdit, model_sha256: &str) -> Vec<(String, String)> {
        let mut entries = Vec::new();
        if let Some(Found::Select(SelectResult { selected, .. })) = &found.found {
            entries.push(("lancet.lambda".into(), selected.lambda.to_string()));
            entries.push(("lancet.layer".into(), selected.layer.to_string()));
            entries.push(("lancet.position".into(), selected.position.to_string()));
        }
        entries.push(("lancet.source_sha256".into(), model_sha256.into()));
        entries
    }
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

/// Runs the whole job and returns its report: the variant `source` gives the direction, and every variant is baked and
/// measured. Nothing is left at the output unless verification and guard pass for each. What the search for the edit has
/// found is kept beside the output ([`journal`]) until there is a result, so that the same run goes on after a kill.
///
/// # Errors
/// Any stage's; a failed guard is no error here but a result with nothing published.
pub fn run(
    ready: &Ready<'_>,
    source: &Variant,
    running: &Running<'_>,
    options: RunOptions<'_>,
    observer: &dyn Observer,
) -> Result<RunResult, Error> {
    let mut journal = None;
    let result = run_kept(ready, source, running, options, &mut journal, observer);
    match (journal, &result) {
        (Some(journal), Ok(_)) => journal.remove(),
        (Some(journal), Err(_)) => journal.note_kept(observer),
        (None, _) => {}
    }
    result
}

/// The same, with the journal in `kept` from when there is one.
fn run_kept(
    ready: &Ready<'_>,
    source: &Variant,
    running: &Running<'_>,
    mut options: RunOptions<'_>,
    kept: &mut Option<Journal>,
    observer: &dyn Observer,
) -> Result<RunResult, Error> {
    let mut clock = Clock::start();
    let Running { runtime, chat, prompts, .. } = *running;

    // 1. the variant that gives the direction
    let (package, out) = (ready.package, options.bake.out);
    publish::check_names(out)?;
    let chosen = ready.variants.iter().position(|base| base.variant.relative == source.relative).ok_or_else(|| {
        Error::usage(
            format!("`{}` is not among the models to bake", source.files.onnx.display()),
            "let `--only` name the variant that the direction comes from",
        )
    })?;
    let base = &ready.variants[chosen];
    let (opened, model) = base.model.as_ref().map(|model| (base.opened, model)).ok_or_else(|| {
        Error::usage(format!("`{}` is an embedding file", source.name), "let `--variant` name a language model")
    })?;
    let staging = Staging::new(out, &opened.model)?.synced(options.bake.sync);
    tell(package, &staging, observer);
    let engine = running.engine(model);
    let model_sha256 = opened.sha256()?;
    let journal = kept.insert(running.journal(out, &model_sha256)?);
    clock.lap("inspect");
    let job = estimate::Job {
        prompts,
        candidates: (chat.post_instruction_suffix()?.len(), model.lm.n_layers()),
        variants: ready.variants.iter().filter(|base| base.model.is_some()).count(),
    };
    let probed = collect::encode(chat, prompts.get(PromptClass::Harmless, Split::Train))?;
    let budget = estimate::plan(&engine, &probed, &job, &mut options, observer)?;
    clock.lap("probe");

    // 2. activations of the prompts that the model refuses and answers as it should
    let inputs = collect::Inputs {
        chat,
        prompts,
        refusal_tokens: &options.refusal_tokens,
        model_sha256: &model_sha256,
        partial: None,
    };
    let (activations, resumed) = journal.collect(&engine, &inputs, observer)?;
    let collected = summary(&activations, resumed, None, clock.lap("collect"));

    // 3. the edit; what is baked is what the direction file will hold, so that anyone can repeat and verify it from that
    options.settings.refusal_tokens.clone_from(&activations.info.refusal_tokens);
    let mut found = find(running, engine, &activations, &options, &mut clock, (observer, journal))?;
    clock.lap("select");
    let edit = found.edit.as_ref().map(direction_file::as_stored).transpose()?;
    if let Some(sweep) = &mut found.sweep {
        sweep.model = opened.files.onnx.display().to_string();
    }

    // 4. for every variant: the edit; proof by bytes, leak and logits of the file as written; before and after, and
    //    the guard on what was measured on the written model
    let measuring = Measuring { running: *running, settings: &options.settings, guard: &options.guard };
    let plan = options.bake.plan(options.metadata(&found, &model_sha256));
    let outcomes = match &edit {
        Some(edit) => {
            let job = BakeJob { edit, options: &options.bake, plan, measuring: Some(&measuring), observer };
            publish::stage(ready, &job, &staging, &mut clock)?
        }
        None => Vec::new(),
    };
    if let (Some(addition), Some(baked)) = (&mut found.addition, outcomes.get(chosen)) {
        addition.baked = baked.added.first().cloned();
    }

    // 5. what became of them; a variant that fails or is refused stops them all
    let mut shared = RunShared {
        bake: publish::shared(package, &options.bake, &outcomes),
        direction_from: source.name.clone(),
        collect: collected,
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
        },
        outputs: Outputs::default(),
        addition: found.addition,
        sweep: found.sweep,
        budget,
        found: found.found,
        search: found.search,
    };
    shared.bake.refusal_tokens = collect::labelled(&activations.info.refusal_tokens, chat);
    shared.bake.bytes_written = bytes::folder_bytes(staging.path());
    shared.bake.seconds = clock.seconds;
    let mut result = RunResult::new(shared, outcomes.into_iter().map(|baked| baked.result).collect());

    // 6. publish, whole or not at all
    if let Some(edit) = edit.filter(|_| result.verified() && result.guard_allows()) {
        result.shared.bake.published = true;
        result.shared.outputs = publish::outputs(out, &source.relative);
        publish::reports(&result, &edit, &staging)?;
        staging.publish()?;
    }
    Ok(result)
}

/// The edit of a run, and how it was found; no edit where a search found none that holds.
#[derive(Default)]
struct FoundEdit {
    edit: Option<Edit>,
    found: Option<Found>,
    search: Option<SearchResult>,
    addition: Option<AdditionResult>,
    sweep: Option<CompareResult>,
}

/// Finds the edit as the method tells.
fn find(
    running: &Running<'_>,
    engine: Engine<'_>,
    activations: &Activations,
    options: &RunOptions<'_>,
    clock: &mut Clock,
    (observer, journal): (&dyn Observer, &Journal),
) -> Result<FoundEdit, Error> {
    let Running { chat, prompts, .. } = *running;
    match &options.method {
        Method::Auto(rules) => {
            let settings = options.settings.for_search();
            let bench = Bench { engine, chat, prompts, settings: &settings, observer, journal: Some(journal) };
            let Searched { chosen, result } = search::search(&bench, activations, rules, &options.guard)?;
            let (edit, found) = chosen.unzip();
            Ok(FoundEdit { edit, found: found.flatten(), search: Some(result), ..FoundEdit::default() })
        }
        Method::Wang | Method::Refined(_) => select(running, engine, activations, options, clock, (observer, journal)),
        Method::Gate(rules) => {
            let GateChoice { edit, result } =
                choose_gate::choose(&engine, chat, activations, rules, observer, Some(journal))?;
            Ok(FoundEdit { edit: Some(edit), found: Some(Found::Gate(result)), ..FoundEdit::default() })
        }
    }
}

/// Selects the direction, lets a further method make something of it, chooses the vector to add, and measures the further lambdas, as the options ask for.
fn select(
    running: &Running<'_>,
    engine: Engine<'_>,
    activations: &Activations,
    options: &RunOptions<'_>,
    clock: &mut Clock,
    (observer, journal): (&dyn Observer, &Journal),
) -> Result<FoundEdit, Error> {
    let Running { chat, prompts, .. } = *running;
    let mut chooser = choose::Chooser::new(&engine, chat, activations, options.rules, observer)?.kept_in(Some(journal));
    let mut choice = chooser.choose(options.lambda, options.strength, observer)?;
    if let Method::Refined(how) = options.method {
        choice = Refiner { engine, chat, activations, observer }.refine(choice, how)?;
    }
    let Choice { mut edit, result } = choice;
    let mut addition = None;
    if options.alpha != 0.0 {
        let (vector, chosen) = add::choose(&engine, chat, activations, options.alpha, &options.rules, observer)?;
        edit = edit.with_addition(Some(vector));
        addition = Some(chosen);
    }
    clock.lap("select");
    let sweep = match options.sweep.is_empty() {
        true => None,
        false => {
            let settings = options.settings.for_sweep();
            let bench = Bench { engine, chat, prompts, settings: &settings, observer, journal: Some(journal) };
            Some(compare::over(&bench, activations, (&options.as_sweep(), None), &options.guard, clock)?.0)
        }
    };
    Ok(FoundEdit { edit: Some(edit), found: Some(Found::Select(result)), addition, sweep, ..FoundEdit::default() })
}

/// Bakes `edit` into a copy of every variant of a package and verifies them. Without `measuring` no runtime is
/// needed, and a variant that does not verify is an error. With it, nothing is published where a variant does not
/// verify or the guard refuses one; the result tells.
///
/// # Errors
/// If the edit does not fit, if writing or a run fails.
pub fn bake(
    ready: &Ready<'_>,
    edit: &Edit,
    options: &BakeOptions<'_>,
    measuring: Option<&Measuring<'_>>,
    observer: &dyn Observer,
) -> Result<PackageBake, Error> {
    let mut clock = Clock::start();
    let package = ready.package;
    let any = ready.variants.first().expect("a package has a variant");
    let staging = Staging::new(options.out, &any.opened.model)?.synced(options.sync);
    tell(package, &staging, observer);
    let metadata = measuring.is_none().then(|| (GUARD.to_string(), GuardMark::NotMeasured.as_str().to_string()));
    let plan = options.plan(metadata.into_iter().collect());
    let outcomes = publish::stage(ready, &BakeJob { edit, options, plan, measuring, observer }, &staging, &mut clock)?;
    let mut shared = publish::shared(package, options, &outcomes);
    if let Some(Measuring { settings, running, .. }) = measuring {
        shared.refusal_tokens = collect::labelled(&settings.refusal_tokens, running.chat);
    }
    shared.bytes_written = bytes::folder_bytes(staging.path());
    let mut result = PackageBake::new(shared, outcomes.into_iter().map(|baked| baked.result).collect());
    if measuring.is_none()
        && let Some((base, failed)) = ready.variants.iter().zip(&result.variants).find(|(_, v)| !v.verify.passed)
    {
        let error = Error::failed_with(
            format!("the written model does not verify: {}", failed.verify.failures.join("; ")),
            "nothing was published; please report this with the model's `lancet inspect --json`",
        );
        return Err(package.of_variant(base.variant)(error));
    }
    if result.verified() && result.guard_allows() {
        staging.publish()?;
        result.shared.published = true;
    }
    clock.lap("publish");
    result.shared.seconds = clock.seconds;
    Ok(result)
}

/// Bakes `edit` into a copy of one model with its companions, and verifies the bytes; no runtime is needed. Returns
/// the row of that model.
///
/// # Errors
/// If the graph is not understood, if the edit does not fit, or if writing fails.
pub fn bake_only(
    opened: &Opened,
    edit: &Edit,
    options: &BakeOptions<'_>,
    observer: &dyn Observer,
) -> Result<VariantResult, Error> {
    let package = Package::of_file(opened.files.clone());
    let mut result = bake(&preflight(&package, options.out)?, edit, options, None, observer)?;
    Ok(result.variants.swap_remove(0))
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
    let (n_pos, n_layers, d_model) = activations.means.harmless.shape();
    CollectSummary {
        prompts: ClassCounts::from_fn(|class| activations.info.prompts.get(class, Split::Train).len()),
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
