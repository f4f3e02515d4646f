//! `lancet compare`.

use std::path::Path;

use clap::{Args, ValueEnum};
use lancet::edit::Ablation;
use lancet::error::Error;
use lancet::eval::policy::Limit;
use lancet::method::prompts::{PromptClass, Prompts, Split, SplitSizes};
use lancet::method::refine::Refinement;
use lancet::pipeline::compare::{self, CompareOptions, Prompted};
use lancet::pipeline::settings::SearchRules;
use lancet::pipeline::{self, Opened};
use lancet::prompt_files;
use lancet::report::{COMMENT, describe, document};

use super::args::{
    ChatArgs, CrossSet, MethodArgs, PromptArgs, RuntimeOptions, ScoreName, TokenArgs, VariantArgs, above_zero,
    cross_set, finite, non_negative, unit_interval,
};
use super::commands::{self, Context, Ending, check_report, print, write_report};
use super::measuring::{self, LimitArgs, MeasuringArgs};
use super::method;
use super::runtime::load_runtime;
use super::ui::Ui;

/// Whose settings are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compared {
    /// The unchanged model with a system prompt that asks it to answer what only looks harmful: a baseline, which no file
    /// holds.
    SystemPrompt,
    /// The true-refusal direction itself ablated (Arditi et al. 2024): a baseline, which should lose true refusal.
    Refusal,
    /// One direction ablated at every write (Wang et al. 2025).
    Wang,
    /// A direction for each of some groups of pseudo-harmful prompts (`--ranks`).
    Rank,
    /// Directions that tell pseudo-harmful from harmless prompts, one after another (`--ranks`).
    Probes,
    /// The direction without what abilities have of it.
    Sra,
    /// The harmless mean's component put back.
    Ace,
    /// Only writes of layers that matter ablated.
    Layers,
    /// At one layer the decision to answer made to follow the judgement of harm.
    Va,
    /// Gated ablations at one layer, as far as the first that keeps to the policy.
    Gate,
}

/// `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// An `.onnx` file, or a folder that holds one.
    pub model: std::path::PathBuf,
    /// New folder for a direction file a setting, which `bake` takes, and for `compare.json`, `.html` and `.md`.
    #[arg(short, long, value_name = "DIR")]
    pub output: std::path::PathBuf,
    /// Write the report (HTML) here too, and beside it as JSON and Markdown.
    #[arg(long, value_name = "FILE")]
    pub report: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub variant: VariantArgs,
    #[command(flatten)]
    pub settings: SettingArgs,
    #[command(flatten)]
    pub measuring: MeasuringArgs,
    #[command(flatten)]
    pub tokens: TokenArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub chat: ChatArgs,
    #[command(flatten)]
    pub runtime: RuntimeOptions,
}

/// Which settings are tried.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingArgs {
    /// Whose settings are tried, comma-separated.
    #[arg(
        long,
        value_enum,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "system-prompt,refusal,wang,rank,probes,sra,ace,layers,va,gate"
    )]
    pub methods: Vec<Compared>,
    /// Numbers of groups of the method `rank`, and of probes of the method `probes`.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "2", value_parser = rank)]
    pub ranks: Vec<usize>,
    /// Lambdas of the partial orthogonalisation.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,0.5,0", value_parser = unit_interval)]
    pub lambdas: Vec<f64>,
    /// Shares of the direction's component that are ablated, each with every lambda.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1", value_parser = above_zero)]
    pub strengths: Vec<f64>,
    /// Factors of the true-refusal vector that is added, each with every lambda and strength; 0 adds none.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0", value_parser = finite, allow_negative_numbers = true)]
    pub additions: Vec<f64>,
    /// A pseudo-harmful set to take the direction from and to try it on, for each pair of sets, with the first lambda. May be
    /// given several times.
    #[arg(long, value_name = "NAME=FILE", value_parser = cross_set)]
    pub cross: Vec<CrossSet>,
    /// Exactly the published selection: no guard and no degenerate-candidate rule.
    #[arg(long)]
    pub paper: bool,
    /// Score every candidate on every validation prompt, also those that cannot win.
    #[arg(long)]
    pub exhaustive: bool,
    /// Largest mean harmless KL of a candidate.
    #[arg(long, default_value_t = 0.2, value_parser = non_negative)]
    pub kl_threshold: f64,
}

impl SettingArgs {
    /// The further methods, in the order in which they are named.
    fn refinements(&self) -> Vec<Refinement> {
        let of = |method: &Compared| match method {
            Compared::SystemPrompt | Compared::Refusal | Compared::Wang | Compared::Gate => Vec::new(),
            Compared::Rank => self.ranks.iter().map(|&count| Refinement::Groups { count }).collect(),
            Compared::Probes => self.ranks.iter().map(|&count| Refinement::Probes { count }).collect(),
            Compared::Sra => vec![Refinement::Abilities],
            Compared::Ace => vec![Refinement::Affine],
            Compared::Layers => vec![Refinement::Layers],
            Compared::Va => vec![Refinement::Aligned],
        };
        self.methods.iter().flat_map(of).collect()
    }

    /// What is tried, where so large a share of harmful refusal may be lost.
    fn rules(&self, max_harmful_drop: f64) -> SearchRules {
        let method = MethodArgs {
            method: None,
            lambda: None,
            strength: None,
            add: 0.0,
            paper: self.paper,
            exhaustive: self.exhaustive,
            kl_threshold: self.kl_threshold,
            score: ScoreName::Tokens,
        };
        let tries = |method| self.methods.contains(&method);
        SearchRules {
            lambdas: if tries(Compared::Wang) { self.lambdas.clone() } else { Vec::new() },
            strengths: self.strengths.clone(),
            alphas: self.additions.clone(),
            refinements: self.refinements(),
            rules: method::rules(&method, max_harmful_drop),
            gate: tries(Compared::Gate).then(|| method::gates(&method, max_harmful_drop)),
            refusal: tries(Compared::Refusal),
        }
    }
}

/// A number of groups.
fn rank(text: &str) -> Result<usize, String> {
    let most = Ablation::MOST_DIRECTIONS;
    let count = text.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("the number of groups or probes is 1 to {most}"))
}

/// `lancet compare`.
pub fn compare(context: &Context, args: &CompareArgs) -> anyhow::Result<Ending> {
    let opened = commands::open(&args.model, &args.variant)?;
    check_output(&args.output)?;
    if let Some(path) = &args.report {
        check_report(path)?;
    }
    let chat = commands::load_chat(&opened, &args.chat)?;
    let prompts = commands::load_prompts(&args.prompts, args.settings.paper, &context.ui)?;
    let cross = cross_sets(&args.settings.cross, &prompts, &args.prompts, &context.ui)?;
    let tokens = method::refusal_tokens(&args.tokens, &chat)?;
    let policy = measuring::policy(&args.limits)?;
    let runtime = load_runtime(context, &args.runtime)?;
    let options = CompareOptions {
        rules: args.settings.rules(policy.limit(Limit::HarmfulDrop).unwrap_or(1.0)),
        out: &args.output,
        prompted: args.settings.methods.contains(&Compared::SystemPrompt).then(|| permissive(&opened, &args.chat)),
        refusal_tokens: tokens,
        settings: measuring::settings(
            context,
            &opened,
            &chat,
            &args.measuring,
            &args.chat,
            Vec::new(),
            args.prompts.seed,
        )?,
        cross: &cross,
        policy: &policy,
    };
    let running = commands::running(context, &runtime, &chat, &prompts, args.runtime.batch_size);
    let mut comparison = compare::compare(&running, &opened, &options, &context.ui)?;
    compare::write(&mut comparison, &opened, &args.output)?;
    let result = &comparison.result;
    let document = describe::compare(result);
    if let Some(path) = &args.report {
        write_report(path, &document::html(&document), &document::markdown(&document, COMMENT), result)?;
    }
    print(context, result, || document)?;
    Ok(Ending::Done)
}

/// The permissive system prompt, after the user's own where there is one.
fn permissive(opened: &Opened, chat: &ChatArgs) -> Prompted {
    let own = chat.system.iter().map(String::as_str);
    let text = own.chain([compare::PERMISSIVE]).collect::<Vec<_>>().join("\n\n");
    let args = ChatArgs { system: Some(text.clone()), ..chat.clone() };
    Prompted { text, chat: commands::load_chat(opened, &args).map_err(|error| error.to_string()) }
}

/// Refuses, before the work, an output that exists, that cannot be made, or that is named as a model.
fn check_output(output: &Path) -> Result<(), Error> {
    if output.extension().is_some_and(|end| end.eq_ignore_ascii_case("onnx")) {
        return Err(Error::usage(
            format!("the output `{}` is a folder of direction files, not a model", output.display()),
            "give a name that does not end in `.onnx`",
        ));
    }
    commands::refuse_existing(output)?;
    pipeline::check_new_folder(output)
}

/// The prompts with each other set in place of the pseudo-harmful ones.
fn cross_sets(
    sets: &[CrossSet],
    prompts: &Prompts,
    args: &PromptArgs,
    ui: &Ui,
) -> Result<Vec<(String, Prompts)>, Error> {
    let mut found: Vec<(String, Prompts)> = Vec::new();
    for CrossSet { name, file } in sets {
        if found.iter().any(|(known, _)| known == name) {
            return Err(Error::usage(format!("two sets are named `{name}`"), "give each `--cross` a name of its own"));
        }
        let parsed = prompt_files::load_file(file, PromptClass::PseudoHarmful, false)?;
        let sizes = SplitSizes { train: args.n_train, val: args.n_val, test: args.n_test };
        let all = prompts.with_pseudo_harmful(&parsed, sizes, args.seed)?;
        let count = |split| all.get(PromptClass::PseudoHarmful, split).len();
        let fitted = SplitSizes { train: count(Split::Train), val: count(Split::Val), test: count(Split::Test) };
        if fitted != sizes {
            ui.say(&format!(
                "note: `{name}` has {} prompts: {} train, {} val, {} test",
                parsed.prompts.len(),
                fitted.train,
                fitted.val,
                fitted.test
            ));
        }
        found.push((name.clone(), all));
    }
    Ok(found)
}
