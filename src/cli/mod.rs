//! The command line: parsing, one file a group of commands, and the only place that prints.

mod args;
mod commands;
mod compare;
mod config;
mod demo;
mod interrupt;
mod measuring;
mod method;
mod progress;
mod runtime;
mod ui;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, Parser, Subcommand};

use args::{BakeArgs, CollectArgs, DemoArgs, EvalArgs, InspectArgs, RunArgs, RuntimeArgs, SelectArgs, VerifyArgs};
use commands::Context;
pub use commands::Ending;
use compare::CompareArgs;
pub use interrupt::exit_code;
pub use ui::print_error;

/// Calibrates refusal in chat models already exported to ONNX.
///
/// Finds the false-refusal direction (Wang et al., ICLR 2025), bakes its ablation into the weights, proves what
/// changed, and refuses to publish a model that lost its true refusal.
///
/// Exit codes: 0 done; 1 understood and refused, or failed; 2 usage or environment; 3 the guard refused to publish;
/// 130 or 143 stopped by Ctrl-C or SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "lancet", version, args_override_self = true, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Print the result as JSON on stdout, and nothing else there.
    #[arg(long, global = true)]
    pub json: bool,
    /// TOML file with options by their long names; a flag beats it. A table named like a command holds for that one.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>, // read before parsing, see `config`
    /// No progress.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole job on the bundled chat model, with a report to look at.
    Demo(DemoArgs),
    /// The whole job: collect, select, bake, verify, evaluate, report.
    Run(RunArgs),
    /// What a model is: inputs, residual stream, writers, and what would be edited or refused and why.
    Inspect(InspectArgs),
    /// Mean activations and refusal scores a class; continues where it was stopped.
    Collect(CollectArgs),
    /// Candidate directions, their scores, and the selected one.
    Select(SelectArgs),
    /// Methods and settings on one collection: the trade-off, and which is best within the policy; writes no model.
    Compare(CompareArgs),
    /// The rewritten model from a direction; needs no runtime.
    Bake(BakeArgs),
    /// Proves the change: bytes, leak, logits against run-time ablation.
    Verify(VerifyArgs),
    /// Answers, refusal rates and refusal scores of a model.
    Eval(EvalArgs),
    /// ONNX Runtime: which one is used, and installing one.
    Runtime(RuntimeArgs),
}

impl Command {
    fn run(&self, context: &Context) -> anyhow::Result<Ending> {
        match self {
            Self::Demo(args) => demo::demo(context, args),
            Self::Run(args) => commands::run(context, args),
            Self::Inspect(args) => commands::inspect(context, args),
            Self::Collect(args) => commands::collect(context, args),
            Self::Select(args) => commands::select(context, args),
            Self::Compare(args) => compare::compare(context, args),
            Self::Bake(args) => commands::bake(context, args),
            Self::Verify(args) => commands::verify(context, args),
            Self::Eval(args) => commands::eval(context, args),
            Self::Runtime(args) => runtime::runtime(context, args),
        }
    }
}

/// Does what the process was called with.
///
/// # Errors
/// Whatever stands in the way.
pub fn run() -> anyhow::Result<Ending> {
    let cli = parse()?;
    let cancelled = Arc::new(AtomicBool::new(false));
    interrupt::listen(Arc::clone(&cancelled))?;
    let context = Context { ui: ui::Ui::new(cli.global.quiet), json: cli.global.json, cancelled };
    cli.command.run(&context)
}

/// Parses the arguments, with those of the config file before them.
fn parse() -> anyhow::Result<Cli> {
    let mut all: Vec<OsString> = std::env::args_os().collect();
    if let Some((path, command, at)) = config::named_in(&all) {
        // right after the command's name, so that what was typed comes later and wins
        let extra = config::arguments(&path, &command)?;
        all.splice(at..at, extra);
    }
    Ok(Cli::parse_from(all))
}
