//! The commands on models.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use lancet::bake::QuantisedMode;
use lancet::chat::{Chat, ChatError, ChatOptions};
use lancet::edit::{Addition, Edit};
use lancet::error::Error;
use lancet::eval::policy::Limit;
use lancet::files;
use lancet::method::prompts::{GuardSet, LoadOptions, OverlapPolicy, Prompts, SplitSizes};
use lancet::pipeline::choose_gate::GateChoice;
use lancet::pipeline::collect::{self, Activations, RefusalTokens};
use lancet::pipeline::consumer::Consumer;
use lancet::pipeline::engine::Engine;
use lancet::pipeline::prove::Runs;
use lancet::pipeline::refine::Refiner;
use lancet::pipeline::running::Running;
use lancet::pipeline::understood::UnderstoodVariant;
use lancet::pipeline::variant::Measuring;
use lancet::pipeline::{
    self, BakeOptions, Opened, Package, Ready, RunOptions, choose, choose_gate, direction_file, evaluate, inspect,
    prove,
};
use lancet::prompt_files::{self, PromptLocation};
use lancet::report::document::Document;
use lancet::report::{
    BakeShared, EvalShared, Found, PackageBake, PackageEval, Results, RunResult, Treatment, VariantResult, describe,
};
use lancet::runtime::session::Runtime;
use serde::Serialize;

use super::args::{
    BakeArgs, ChatArgs, CollectArgs, DirectionArgs, EvalArgs, InspectArgs, MeasureArgs, PromptArgs, Quantised, RunArgs,
    SelectArgs, TreatmentArgs, VariantArgs, VerifyArgs,
};
use super::measuring;
use super::method::{SelectMethod, method, of_select, refusal_tokens, rules};
use super::runtime::{at_hand, load_runtime};
use super::ui::{self, Ui};

/// What every command is given.
pub struct Context {
    /// The printer.
    pub ui: Ui,
    /// Results as JSON.
    pub json: bool,
    /// Set by Ctrl-C.
    pub cancelled: Arc<AtomicBool>,
}

/// How a command ended.
pub enum Ending {
    /// Done.
    Done,
    /// A result was printed, and it is a refusal or a failure.
    Failed,
    /// The guard refused.
    Guarded,
}

/// The prompts that the flags name.
pub fn load_prompts(args: &PromptArgs, paper: bool, ui: &Ui) -> Result<Prompts, Error> {
    let sizes = SplitSizes { train: args.n_train, val: args.n_val, test: args.n_test };
    let base = if paper { LoadOptions::published() } else { LoadOptions::default() };
    let overlap = if paper { base.overlap } else { OverlapPolicy::RefuseInSample };
    let options = LoadOptions { sizes, seed: args.seed, overlap, ..base };
    let location = match (&args.prompts, &args.harmful, &args.pseudo_harmful, &args.harmless) {
        (Some(folder), ..) => PromptLocation::Folder(folder),
        (None, Some(harmful), Some(pseudo_harmful), Some(harmless)) => {
            PromptLocation::Files { harmful, pseudo_harmful, harmless }
        }
        _ => PromptLocation::Bundled,
    };
    let prompts = prompt_files::load(location, &options)?;
    for note in prompts.origin.notes() {
        ui.say(&note);
    }
    Ok(prompts)
}

/// Tokenizer and template.
pub fn load_chat(opened: &Opened, args: &ChatArgs) -> Result<Chat, Error> {
    let template = match &args.chat_template {
        Some(path) => Some(files::read_text(path, files::MAX_SETTINGS).map_err(|e| {
            Error::usage(format!("cannot read chat template `{}`: {e}", path.display()), "give a Jinja file")
        })?),
        None => None,
    };
    let options = ChatOptions {
        system: args.system.as_deref(),
        template_override: template.as_deref(),
        enable_thinking: args.thinking,
        date: None,
    };
    pipeline::load_chat(&opened.files, args.tokenizer.as_deref(), options)
}

/// The one model that is meant.
pub fn open(path: &Path, variant: &VariantArgs) -> Result<Opened, Error> {
    Package::find(path, &[])?.take(variant.variant.as_deref())
}

/// How models are run.
pub fn running<'a>(
    context: &'a Context,
    runtime: &'a Runtime,
    chat: &'a Chat,
    prompts: &'a Prompts,
    batch: usize,
) -> Running<'a> {
    Running { runtime, chat, prompts, batch, cancelled: &context.cancelled }
}

/// `lancet run`.
pub fn run(context: &Context, args: &RunArgs) -> anyhow::Result<Ending> {
    let package = Package::find(&args.model, &[])?.only(&args.only.only)?;
    let source = package.pick(args.variant.variant.as_deref())?;
    let opened = source.opened()?;
    refuse_existing(&args.output)?;
    if let Some(path) = &args.report {
        check_report(path)?;
    }
    let chat = load_chat(opened, &args.chat)?;
    let prompts = load_prompts(&args.prompts, args.method.paper, &context.ui)?;
    let tokens = refusal_tokens(&args.tokens, &chat)?;
    let guard = measuring::guard(&args.guard)?;
    measuring::note_too_few(context, &guard, &prompts);
    let harmful_drop = guard.policy.limit(Limit::HarmfulDrop).unwrap_or(1.0);
    let method = method(&args.method, harmful_drop, !args.sweep.is_empty())?;
    let (measured, seed) = (&args.measuring, args.prompts.seed);
    let guard_sets = measuring::guard_sets(measured, args.prompts.prompts.as_deref(), &guard.policy.guard_sets())?;
    let runtime = load_runtime(context, &args.runtime)?;
    let options = RunOptions {
        method,
        lambda: args.method.lambda.unwrap_or(1.0),
        strength: args.method.strength.unwrap_or(1.0),
        alpha: args.method.add,
        sweep: args.sweep.clone(),
        rules: rules(&args.method, harmful_drop),
        refusal_tokens: tokens,
        settings: measuring::settings(context, opened, &chat, measured, &args.chat, guard_sets, seed)?,
        guard,
        budget: args.budget,
        bake: BakeOptions { sync: !args.disk.no_sync, ..bake_options(context, args.treatment, &args.output)? },
        command: std::env::args().collect(),
        seed,
    };
    let ready = pipeline::preflight(&package, &args.output)?;
    let running = running(context, &runtime, &chat, &prompts, args.runtime.batch_size);
    let result = pipeline::run(&ready, source, &running, options, &context.ui)?;
    if let Some(path) = &args.report {
        write_report(path, &lancet::report::html(&result), &lancet::report::markdown(&result), &result)?;
    }
    finish_run(context, &result)
}

/// Prints what a run did and says how it ended.
pub fn finish_run(context: &Context, result: &RunResult) -> anyhow::Result<Ending> {
    if let Some(why) = result.nothing_holds() {
        print(context, result, || describe::run(result))?;
        context.ui.say(&format!("nothing was published: {why}"));
        return Ok(Ending::Guarded);
    }
    finish(context, result, &result.shared.bake, || describe::run(result))
}

/// Writes a report as a page, and beside it its Markdown and its result as JSON.
pub fn write_report(path: &Path, page: &str, markdown: &str, result: &impl Serialize) -> anyhow::Result<()> {
    pipeline::write_whole(path, page.as_bytes())?;
    pipeline::write_whole(&path.with_extension("json"), &serde_json::to_vec_pretty(result)?)?;
    pipeline::write_whole(&path.with_extension("md"), markdown.as_bytes())?;
    Ok(())
}

/// Refuses, before the work, a report that would replace what Lancet did not write, or that cannot be written.
pub fn check_report(path: &Path) -> Result<(), Error> {
    let (json, markdown) = (path.with_extension("json"), path.with_extension("md"));
    if path == json || path == markdown {
        return Err(Error::usage(
            format!("the report `{}` is a page, and its JSON and Markdown go beside it", path.display()),
            "give a name that ends in `.html`",
        ));
    }
    [path, &json, &markdown].into_iter().try_for_each(pipeline::check_place)
}

/// What is printed after a model was published: a result that cannot be printed does not undo the job, and says so.
fn published(out: &str, printed: anyhow::Result<()>) -> anyhow::Result<()> {
    if let Err(error) = printed {
        ui::warn(&format!("note: `{out}` was published; only its result could not be printed: {error:#}"));
    }
    Ok(())
}

/// Prints what was done with a model and says how it ended.
pub fn finish<S: Serialize>(
    context: &Context,
    result: &Results<S, VariantResult>,
    shared: &BakeShared,
    document: impl FnOnce() -> Document,
) -> anyhow::Result<Ending> {
    let printed = match context.json {
        true => ui::print_json(result),
        false => ui::show(&document()),
    };
    match shared.published {
        true => published(&shared.output, printed)?,
        false => printed?,
    }
    if !result.verified() {
        return Ok(Ending::Failed);
    }
    if !result.guard_allows() {
        context.ui.say(&format!("the guard refused to publish: {}", result.guard_reasons().join("; ")));
        return Ok(Ending::Guarded);
    }
    Ok(Ending::Done)
}

/// Prints a result, as JSON or as text.
pub fn print<R: Serialize>(context: &Context, result: &R, document: impl FnOnce() -> Document) -> anyhow::Result<()> {
    match context.json {
        true => ui::print_json(result),
        false => ui::show(&document()),
    }
}

/// An output that exists is refused before any work is done.
pub fn refuse_existing(out: &Path) -> Result<(), Error> {
    if out.symlink_metadata().is_ok() {
        return Err(lancet::bake::BakeError::OutputExists { path: out.to_path_buf() }.into());
    }
    Ok(())
}

/// `lancet inspect`.
pub fn inspect(context: &Context, args: &InspectArgs) -> anyhow::Result<Ending> {
    if let Some(path) = &args.graph {
        refuse_existing(path)?;
        pipeline::check_place(path)?;
    }
    let package = Package::find(&args.model, &[])?;
    let picked = args.variant.variant.as_deref().map(|name| package.pick(Some(name))).transpose()?;
    if let (None, [only]) = (picked, package.variants.as_slice()) {
        only.opened()?; // one file that cannot be read is an error, of several it is a row
    }
    let result = inspect::package(&package, picked);
    if let Some(path) = &args.graph {
        let [only] = result.variants.as_slice() else {
            let names = package.models().map(|v| v.name.as_str()).collect::<Vec<_>>().join("`, `");
            return Err(Error::usage(
                format!("a picture is of one model, `{}` has several: `{names}`", args.model.display()),
                "pick one with `--variant`",
            )
            .into());
        };
        let svg = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg"));
        let picture = match svg {
            true => lancet::report::stream_graph::svg(&only.inspect),
            false => lancet::report::stream_graph::mermaid(&only.inspect),
        };
        pipeline::write_whole(path, picture.as_bytes())?;
    }
    print(context, &result, || describe::inspect(&result))?;
    let refused = result.variants.iter().any(|v| !v.inspect.refusals.is_empty());
    Ok(if refused { Ending::Failed } else { Ending::Done })
}

/// `lancet collect`.
pub fn collect(context: &Context, args: &CollectArgs) -> anyhow::Result<Ending> {
    let started = Instant::now();
    let opened = open(&args.model, &args.variant)?;
    refuse_existing(&args.output)?;
    let mut partial = args.output.clone().into_os_string();
    partial.push(".partial");
    let partial = std::path::PathBuf::from(partial);
    pipeline::check_place(&args.output)?;
    pipeline::check_place(&partial)?;
    let chat = load_chat(&opened, &args.chat)?;
    let prompts = load_prompts(&args.prompts, args.paper, &context.ui)?;
    let tokens = refusal_tokens(&args.tokens, &chat)?;
    let model = opened.understand().map_err(Error::from)?;
    let runtime = load_runtime(context, &args.runtime)?;
    let engine = running(context, &runtime, &chat, &prompts, args.runtime.batch_size).engine(&model);
    let sha256 = opened.sha256()?;
    let inputs = collect::Inputs {
        chat: &chat,
        prompts: &prompts,
        refusal_tokens: &tokens,
        model_sha256: &sha256,
        partial: Some(&partial),
    };
    let (activations, resumed) = collect::collect(&engine, &inputs, &context.ui)?;
    activations.save(&args.output)?;
    let _ = std::fs::remove_file(&partial);
    let seconds = started.elapsed().as_secs_f64();
    let summary = pipeline::summary(&activations, resumed, Some(&args.output), seconds);
    print(context, &summary, || describe::collect(&summary))?;
    Ok(Ending::Done)
}

/// `lancet select`.
pub fn select(context: &Context, args: &SelectArgs) -> anyhow::Result<Ending> {
    let opened = open(&args.model, &args.variant)?;
    refuse_existing(&args.output)?;
    pipeline::check_place(&args.output)?;
    let activations = Activations::load(&args.activations)?;
    let chat_args = ChatArgs {
        tokenizer: args.chat.tokenizer.clone(),
        chat_template: args.chat.chat_template.clone(),
        system: args.chat.system.clone().or_else(|| activations.info.system.clone()),
        thinking: args.chat.thinking,
    };
    let chat = load_chat(&opened, &chat_args)?;
    let model = opened.understand().map_err(Error::from)?;
    let (_, n_layers, d_model) = activations.means.harmless.shape();
    if (n_layers, d_model) != (model.lm.n_layers(), model.lm.d_model()) {
        return Err(Error::usage(
            format!(
                "`{}` was collected from a model of {n_layers} layers of width {d_model}, `{}` has {} of {}",
                args.activations.display(),
                opened.files.onnx.display(),
                model.lm.n_layers(),
                model.lm.d_model()
            ),
            "collect the activations of this model",
        )
        .into());
    }
    let sha256 = opened.sha256()?;
    if sha256 != activations.info.model_sha256 {
        context.ui.say("note: the activations were collected from other weights of the same shape");
    }
    let runtime = load_runtime(context, &args.runtime)?;
    let engine = Engine {
        runtime: &runtime,
        model: &model,
        batch: args.runtime.batch_size,
        pad: pipeline::pad_token(&chat),
        cancelled: &context.cancelled,
        steered: None,
    };
    let (edit, found) = match of_select(&args.method, args.max_harmful_drop)? {
        SelectMethod::Direction(refinement) => {
            let rules = rules(&args.method, args.max_harmful_drop);
            let mut chooser = choose::Chooser::new(&engine, &chat, &activations, rules, &context.ui)?;
            let (lambda, strength) = (args.method.lambda.unwrap_or(1.0), args.method.strength.unwrap_or(1.0));
            let mut choice = chooser.choose(lambda, strength, &context.ui)?;
            if args.method.add != 0.0 {
                let alpha = args.method.add;
                let (vector, _) = pipeline::add::choose(&engine, &chat, &activations, alpha, &rules, &context.ui)?;
                choice.edit = choice.edit.with_addition(Some(vector));
            }
            if let Some(how) = refinement {
                let refiner = Refiner { engine, chat: &chat, activations: &activations, observer: &context.ui };
                choice = refiner.refine(choice, how)?;
            }
            (choice.edit, Found::Select(choice.result))
        }
        SelectMethod::Gate(rules) => {
            let GateChoice { edit, result } =
                choose_gate::choose(&engine, &chat, &activations, &rules, &context.ui, None)?;
            (edit, Found::Gate(result))
        }
    };
    direction_file::save(&args.output, &edit, &found, &sha256)?;
    match &found {
        Found::Select(result) => print(context, result, || describe::select(result))?,
        Found::Gate(result) => print(context, result, || describe::select_gate(result))?,
    }
    Ok(Ending::Done)
}

fn bake_options<'a>(context: &'a Context, treatment: TreatmentArgs, out: &'a Path) -> anyhow::Result<BakeOptions<'a>> {
    let quantised = match treatment.quantised {
        Quantised::Auto => QuantisedMode::Auto,
        Quantised::Round => QuantisedMode::Round,
        Quantised::Nodes => QuantisedMode::Nodes,
    };
    let TreatmentArgs { weights_only, max_rounding_error, .. } = treatment;
    if max_rounding_error.is_some() && (quantised != QuantisedMode::Auto || weights_only) {
        return Err(Error::usage(
            "`--max-rounding-error` chooses between rounding and nodes, and here there is no choice",
            "leave it out, or bake with `--quantised auto` and without `--weights-only`",
        )
        .into());
    }
    let cancelled = &context.cancelled;
    Ok(BakeOptions { out, weights_only, quantised, max_rounding_error, runtime: None, sync: true, cancelled })
}

/// The edit of a file, with the strength and the addition that the flags give instead of its own.
fn steered(from: &DirectionArgs, strength: Option<f64>, add: Option<f64>) -> Result<Edit, Error> {
    let file = &from.direction;
    let pick = direction_file::Pick { tensor: from.direction_tensor.clone(), row: from.direction_row.clone() };
    let edit = direction_file::load_picked(file, &pick)?;
    let ablation = match (edit.ablation().cloned(), strength) {
        (Some(ablation), Some(strength)) => Some(ablation.with_strength(strength)),
        (None, Some(_)) => {
            return Err(Error::usage(
                format!("`{}` holds no direction to ablate, so none of a strength", file.display()),
                "leave `--strength` out",
            ));
        }
        (ablation, None) => ablation,
    };
    let with = |addition: &Addition| Addition { alpha: add.unwrap_or(addition.alpha), ..addition.clone() };
    let additions = edit.additions().iter().map(with).collect();
    match (edit.additions(), add) {
        ([], Some(alpha)) if alpha != 0.0 => {
            return Err(Error::usage(
                format!("`{}` holds no vector to add", file.display()),
                "make one with `lancet run --add` or `lancet compare --additions`",
            ));
        }
        _ => {}
    }
    Ok(Edit::new(ablation, additions, edit.gates().to_vec())?)
}

/// `lancet bake`.
pub fn bake(context: &Context, args: &BakeArgs) -> anyhow::Result<Ending> {
    let package = Package::find(&args.model, &[])?.only(&args.only.only)?;
    let edit = steered(&args.direction, args.strength, args.add)?;
    let options = BakeOptions { sync: !args.disk.no_sync, ..bake_options(context, args.treatment, &args.output)? };
    refuse_existing(options.out)?;
    let ready = pipeline::preflight(&package, options.out)?;
    let result = match args.measure {
        true => bake_measured(context, &args.measuring, &ready, &edit, &options)?,
        false => {
            let runtime = if args.bytes_only { None } else { at_hand(&args.measuring.runtime)? };
            let options = BakeOptions { runtime: runtime.as_ref(), ..options };
            let result = pipeline::bake(&ready, &edit, &options, None, &context.ui)?;
            not_measured(context, &result);
            result
        }
    };
    finish(context, &result, &result.shared, || describe::bake(&result))
}

/// Says what a bake without `--measure` does not tell.
fn not_measured(context: &Context, result: &PackageBake) {
    let inexact = || result.variants.iter().filter(|v| !v.verify.inexact.is_empty());
    if inexact().any(|v| v.bake.edits.iter().any(|e| e.treatment == Treatment::Rounded)) {
        context
            .ui
            .say("note: rounded weights are not quite exact in this model; `lancet verify` measures the difference");
    } else if inexact().next().is_some() {
        context.ui.say(
            "note: weights alone are not exact in this model; `lancet verify --weights-only` measures the difference",
        );
    }
    context.ui.say(
        "note: `bake` measures no refusal unless `--measure` is given; `lancet eval` tells what the result refuses",
    );
}

/// `lancet bake --measure`: the chat format and the refusal tokens are those of the first model.
fn bake_measured(
    context: &Context,
    args: &MeasureArgs,
    ready: &Ready<'_>,
    edit: &Edit,
    options: &BakeOptions<'_>,
) -> Result<PackageBake, Error> {
    let first = ready.first_model()?;
    let chat = load_chat(first.opened, &args.chat)?;
    let prompts = load_prompts(&args.prompts, false, &context.ui)?;
    let tokens = refusal_tokens(&args.tokens, &chat)?;
    let guard = measuring::guard(&args.guard)?;
    measuring::note_too_few(context, &guard, &prompts);
    let (measured, seed) = (&args.measuring, args.prompts.seed);
    let guard_sets = measuring::guard_sets(measured, args.prompts.prompts.as_deref(), &guard.policy.guard_sets())?;
    let runtime = load_runtime(context, &args.runtime)?;
    let running = running(context, &runtime, &chat, &prompts, args.runtime.batch_size);
    let refusal_tokens = chosen_tokens(context, tokens, first, &running)?;
    let mut settings = measuring::settings(context, first.opened, &chat, measured, &args.chat, guard_sets, seed)?;
    settings.refusal_tokens = refusal_tokens;
    let measuring = Measuring { running, settings: &settings, guard: &guard };
    pipeline::bake(ready, edit, options, Some(&measuring), &context.ui)
}

/// The refusal tokens that were given, or those that a model shows on the prompts.
fn chosen_tokens(
    context: &Context,
    tokens: RefusalTokens,
    model: &UnderstoodVariant<'_>,
    running: &Running<'_>,
) -> Result<Vec<u32>, Error> {
    match (tokens, &model.model) {
        (RefusalTokens::Given(ids), _) => Ok(ids),
        (RefusalTokens::Automatic, Some(model)) => {
            collect::choose_tokens(&running.engine(model), running.chat, running.prompts, &context.ui)
        }
        (RefusalTokens::Automatic, None) => Ok(Vec::new()),
    }
}

/// `lancet verify`.
pub fn verify(context: &Context, args: &VerifyArgs) -> anyhow::Result<Ending> {
    // an output inside the base folder is no part of it
    let inside: Vec<_> =
        args.out.canonicalize().into_iter().filter(|out| !args.base.canonicalize().is_ok_and(|b| b == *out)).collect();
    let package = Package::find(&args.base, &inside)?.only(&args.only)?;
    let edit = steered(&args.direction, args.strength, args.add)?;
    let options = bake_options(context, args.treatment, &args.out)?;
    if !args.out.exists() {
        return Err(Error::usage(
            format!("cannot read `{}`: there is no such file or folder", args.out.display()),
            "pass what `lancet bake` or `lancet run` wrote",
        )
        .into());
    }
    let (mut chat, mut runtime) = (None, None);
    if !args.bytes_only {
        let first = package.models().next();
        let first = first.ok_or_else(|| Error::usage("no model to run", "give `--bytes-only`"))?;
        chat = match load_chat(first.opened()?, &args.chat) {
            Ok(chat) => Some((chat, load_prompts(&args.prompts, false, &context.ui)?)),
            // the model is run on made-up tokens, and that is said
            Err(Error::Chat(ChatError::TokenizerMissing { .. })) if args.chat.tokenizer.is_none() => None,
            Err(error) => return Err(error.into()),
        };
        runtime = Some(load_runtime(context, &args.runtime)?);
    }
    let cancelled = &context.cancelled;
    let running = chat
        .as_ref()
        .zip(runtime.as_ref())
        .map(|((chat, prompts), runtime)| running(context, runtime, chat, prompts, args.runtime.batch_size));
    let runs = match (&running, &runtime) {
        (Some(running), _) => Runs::Compared(running),
        (None, Some(runtime)) => Runs::Whole(Consumer { runtime, prompts: &[], cancelled }),
        (None, None) => Runs::Not,
    };
    let result = prove::package(&package, &args.out, &edit, &options, &runs)?;
    print(context, &result, || describe::verify(&result))?;
    Ok(if result.shared.passed { Ending::Done } else { Ending::Failed })
}

/// `lancet eval`: every model of a folder, or the picked one. The chat format and the refusal tokens are those of the
/// first.
pub fn eval(context: &Context, args: &EvalArgs) -> anyhow::Result<Ending> {
    let package = Package::find(&args.model, &[])?;
    let picked = match &args.variant.variant {
        Some(name) => vec![package.pick(Some(name))?],
        None => package.models().collect(),
    };
    let models = picked.into_iter().map(UnderstoodVariant::new).collect::<Result<Vec<_>, _>>()?;
    let first = models.first().ok_or_else(|| Error::usage("no model to run", "pass a language model"))?;
    let chat = load_chat(first.opened, &args.chat)?;
    let prompts = load_prompts(&args.prompts, false, &context.ui)?;
    let tokens = refusal_tokens(&args.tokens, &chat)?;
    let (measured, seed) = (&args.measuring, args.prompts.seed);
    let wanted = if args.no_guard_sets { &[][..] } else { &GuardSet::ALL };
    let guard_sets = measuring::guard_sets(measured, args.prompts.prompts.as_deref(), wanted)?;
    let runtime = load_runtime(context, &args.runtime)?;
    let running = running(context, &runtime, &chat, &prompts, args.runtime.batch_size);
    let refusal_tokens = chosen_tokens(context, tokens, first, &running)?;
    let mut settings = measuring::settings(context, first.opened, &chat, measured, &args.chat, guard_sets, seed)?;
    settings.refusal_tokens = refusal_tokens;
    let shared = EvalShared {
        model: package.named().display().to_string(),
        refusal_tokens: collect::labelled(&settings.refusal_tokens, &chat),
    };
    let result = PackageEval::new(shared, evaluate::each(&models, &running, &settings, &context.ui)?);
    print(context, &result, || describe::eval(&result))?;
    Ok(Ending::Done)
}
