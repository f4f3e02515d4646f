//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::measuring::{GuardArgs, MeasuringArgs};
use super::method::{METHODS, MethodName};

/// Where models run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// CUDA if it works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA, or an error.
    Cuda,
}

/// Whether threads spin while they wait for one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SpinArg {
    /// Unless other work keeps a quarter of the processors busy as Lancet starts.
    Auto,
    /// Always: fastest where nothing else runs.
    On,
    /// Never: leaves the time to others.
    Off,
}

/// How models run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Runtime")]
pub struct RuntimeOptions {
    /// Execution provider.
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceArg,
    /// GPU memory that CUDA takes at most, in gigabytes; a run that needs more fails [default: no limit].
    #[arg(long, value_name = "GB", value_parser = positive)]
    pub cuda_memory: Option<f64>,
    /// ONNX Runtime's shared library, or the folder that holds it.
    #[arg(long, value_name = "PATH")]
    pub ort_lib: Option<PathBuf>,
    /// Do not install ONNX Runtime if none is found.
    #[arg(long)]
    pub no_install: bool,
    /// Threads of a run; 0 leaves it to ONNX Runtime.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Whether threads spin while they wait for one another.
    #[arg(long, value_enum, default_value = "auto")]
    pub spin: SpinArg,
    /// Prompts a run at most; there are fewer where they are long, or where their KV caches would fill the memory.
    #[arg(long, default_value_t = 32, value_parser = at_least_one)]
    pub batch_size: usize,
}

/// Tokenizer and template.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Chat format")]
pub struct ChatArgs {
    /// Folder with `tokenizer.json` and its configs, if not the model's own.
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Chat template to use instead of the model's.
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// System prompt, put before every instruction.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// `enable_thinking` of the template.
    #[arg(long, value_name = "BOOL")]
    pub thinking: Option<bool>,
}

/// Prompt sets.
#[derive(Debug, Args)]
#[command(next_help_heading = "Prompts")]
pub struct PromptArgs {
    /// Folder with `{harmful,pseudo_harmful,harmless}_{train,val,test}.{json,jsonl,csv,txt}`; without any, the bundled prompts serve.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["harmful", "pseudo_harmful", "harmless"])]
    pub prompts: Option<PathBuf>,
    /// One file of harmful prompts, split by the seed.
    #[arg(long, value_name = "FILE", requires_all = ["pseudo_harmful", "harmless"])]
    pub harmful: Option<PathBuf>,
    /// One file of pseudo-harmful prompts.
    #[arg(long, value_name = "FILE", requires_all = ["harmful", "harmless"])]
    pub pseudo_harmful: Option<PathBuf>,
    /// One file of harmless prompts.
    #[arg(long, value_name = "FILE", requires_all = ["harmful", "pseudo_harmful"])]
    pub harmless: Option<PathBuf>,
    /// Seed of the sampling and splitting (Python's `random.sample`, as the published code draws).
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Train prompts a class.
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    pub n_train: usize,
    /// Validation prompts a class.
    #[arg(long, default_value_t = 32, value_parser = at_least_one)]
    pub n_val: usize,
    /// Test prompts a class.
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    pub n_test: usize,
}

/// A direction file, and what of it is meant.
#[derive(Debug, Args)]
pub struct DirectionArgs {
    /// Direction: safetensors with a tensor `direction`, `.npy`, or a file of `torch.save`, of shape [d_model]; or a control
    /// vector in GGUF, which is added.
    #[arg(long, value_name = "FILE")]
    pub direction: PathBuf,
    /// The tensor to take, where the file of another program holds several.
    #[arg(long, value_name = "NAME")]
    pub direction_tensor: Option<String>,
    /// The vector to take from an array of several: its index along each axis but the last, such as 12 or -1,12.
    #[arg(long, value_name = "INDEX", value_delimiter = ',', allow_negative_numbers = true)]
    pub direction_row: Vec<i64>,
}

/// The method's settings.
#[derive(Debug, Args)]
#[command(next_help_heading = "Method")]
pub struct MethodArgs {
    /// How the edit is found (docs/methods.md).
    #[arg(long, visible_alias = "setting", long_help = METHODS)]
    pub method: Option<MethodName>,
    /// Partial orthogonalisation: 1 removes all of the true-refusal component, 0 none of it; 1 if not given.
    #[arg(long, value_parser = unit_interval)]
    pub lambda: Option<f64>,
    /// Share of the direction's component that is ablated; 1, all of it, if not given.
    #[arg(long, value_parser = above_zero)]
    pub strength: Option<f64>,
    /// Add the true-refusal vector too, times this factor, at the layer where it makes harmless prompts refused most.
    #[arg(long, value_name = "ALPHA", default_value_t = 0.0, value_parser = finite, allow_negative_numbers = true)]
    pub add: f64,
    /// Exactly the published procedure: no guard and no degenerate-candidate rule in the selection.
    #[arg(long)]
    pub paper: bool,
    /// Score every candidate on every validation prompt, also those that cannot win.
    #[arg(long)]
    pub exhaustive: bool,
    /// Largest mean harmless KL of a candidate.
    #[arg(long, default_value_t = 0.2, value_parser = non_negative)]
    pub kl_threshold: f64,
    /// By what `wang` compares its candidates.
    #[arg(long, value_enum, default_value_t)]
    pub score: ScoreName,
}

/// What a prompt scores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ScoreName {
    /// The probability of the refusal tokens at the first response position.
    #[default]
    Tokens,
    /// How like those of refused prompts its activations are (COSMIC): for models whose refusals begin like answers, with
    /// `--refusal-tokens none`.
    Cosmic,
}

/// Refusal tokens.
#[derive(Debug, Args)]
#[command(next_help_heading = "Prompts")]
pub struct TokenArgs {
    /// First words of the model's refusals (or token ids), comma-separated: `"I,As"`; `none` where refusals begin like
    /// answers (see `--score`). Automatic if not given.
    #[arg(long, value_name = "LIST")]
    pub refusal_tokens: Option<String>,
}

/// Which of several models.
#[derive(Debug, Args)]
pub struct VariantArgs {
    /// Which model of a folder with several: its path in the folder, or its file name.
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
}

/// Which models of a package are baked.
#[derive(Debug, Args)]
pub struct OnlyArgs {
    /// Bake only the models of the folder that fit this pattern (path or file name, `*_q4*.onnx`), and leave the others
    /// out of the output. May be given several times.
    #[arg(long, value_name = "GLOB")]
    pub only: Vec<String>,
}

/// `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where the model and report go; must not exist yet. A fresh folder under `lancet-demo` if not given.
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub runtime: RuntimeOptions,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub measuring: MeasuringArgs,
    #[command(flatten)]
    pub guard: GuardArgs,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// An `.onnx` file, or a folder; of several models in it, `--variant` gives the direction and all are baked.
    pub model: PathBuf,
    /// New folder for the model with its configs and tokenizer, or a new `.onnx` file.
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    #[command(flatten)]
    pub variant: VariantArgs,
    #[command(flatten)]
    pub only: OnlyArgs,
    #[command(flatten)]
    pub disk: DiskArgs,
    /// Write the report (HTML) here too, and beside it as JSON and Markdown, also when the guard refuses.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Measure these lambdas as well, at run time, for the trade-off in the report.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = unit_interval)]
    pub sweep: Vec<f64>,
    /// Leave out what does not fit into this time (`30m`, `1h 30m`), but nothing that the guard needs.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub budget: Option<f64>,
    #[command(flatten)]
    pub measuring: MeasuringArgs,
    #[command(flatten)]
    pub treatment: TreatmentArgs,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub tokens: TokenArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    pub guard: GuardArgs,
    #[command(flatten)]
    pub chat: ChatArgs,
    #[command(flatten)]
    pub runtime: RuntimeOptions,
}

/// `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// An `.onnx` file, or a folder: of several models in it, each is told of shortly.
    pub model: PathBuf,
    #[command(flatten)]
    pub variant: VariantArgs,
    /// Write a picture of the stream here: `.svg`, or Mermaid under any other name (`.mmd`, `.md`).
    #[arg(long, value_name = "FILE")]
    pub graph: Option<PathBuf>,
}

/// `collect`.
#[derive(Debug, Args)]
pub struct CollectArgs {
    /// An `.onnx` file, or a folder that holds one.
    pub model: PathBuf,
    /// New file for the activations (safetensors).
    #[arg(short, long, value_name = "ACTS")]
    pub output: PathBuf,
    #[command(flatten)]
    pub variant: VariantArgs,
    #[command(flatten)]
    pub tokens: TokenArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    pub chat: ChatArgs,
    #[command(flatten)]
    pub runtime: RuntimeOptions,
    /// Take duplicates and overlaps as the published code does.
    #[arg(long)]
    pub paper: bool,
}

/// `select`.
#[derive(Debug, Args)]
pub struct SelectArgs {
    /// An `.onnx` file, or a folder that holds one.
    pub model: PathBuf,
    /// What `collect` wrote.
    #[arg(long, value_name = "ACTS")]
    pub activations: PathBuf,
    /// New file for the direction (safetensors).
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    #[command(flatten)]
    pub variant: VariantArgs,
    #[command(flatten)]
    pub method: MethodArgs,
    /// Largest drop of harmful refusal on the validation prompts, as a share.
    #[arg(long, default_value_t = 0.02, value_parser = unit_interval)]
    pub max_harmful_drop: f64,
    #[command(flatten)]
    pub chat: ChatArgs,
    #[command(flatten)]
    pub runtime: RuntimeOptions,
}

/// A pseudo-harmful set by name.
#[derive(Debug, Clone)]
pub struct CrossSet {
    /// Its name.
    pub name: String,
    /// Its file.
    pub file: PathBuf,
}

/// `bake`.
#[derive(Debug, Args)]
pub struct BakeArgs {
    /// An `.onnx` file, or a folder: every model in it is baked, and everything else in it copied.
    pub model: PathBuf,
    #[command(flatten)]
    pub direction: DirectionArgs,
    /// New folder, or new `.onnx` file.
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Share of the direction's component that is ablated, if not what the file says.
    #[arg(long, value_parser = above_zero)]
    pub strength: Option<f64>,
    /// Factor of the vector to add that the file holds, if not what it says; 0 adds nothing.
    #[arg(long, value_name = "ALPHA", value_parser = finite, allow_negative_numbers = true)]
    pub add: Option<f64>,
    #[command(flatten)]
    pub only: OnlyArgs,
    #[command(flatten)]
    pub disk: DiskArgs,
    #[command(flatten)]
    pub treatment: TreatmentArgs,
    /// Prove the bytes only: do not run what was written. Without it the written files are run where ONNX Runtime is
    /// installed.
    #[arg(long, conflicts_with = "measure")]
    pub bytes_only: bool,
    /// Measure each model before and after with ONNX Runtime, and publish nothing where one loses true refusal. The
    /// options below are of use with it only.
    #[arg(long)]
    pub measure: bool,
    #[command(flatten)]
    pub measuring: MeasureArgs,
}

/// How the output reaches the disk.
#[derive(Debug, Clone, Copy, Args)]
pub struct DiskArgs {
    /// Do not wait until the output is on the disk: for scratch space. After a power cut it may be incomplete, or not
    /// there; everything is verified all the same.
    #[arg(long)]
    pub no_sync: bool,
}

/// How writers are treated.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Treatment")]
pub struct TreatmentArgs {
    /// Add no nodes: edit copies of shared tensors, and work through norms, which is not quite exact.
    #[arg(long)]
    pub weights_only: bool,
    /// Quantised weights: `round` them to their own grid so that the write stays orthogonal, leave them and insert
    /// `nodes`, or `auto`: round, but for those where that leaves or costs too much.
    #[arg(long, value_enum, default_value_t = Quantised::Auto)]
    pub quantised: Quantised,
    /// With `--quantised auto`: the largest error that rounding may cost, as a multiple of nearest rounding's, in place of
    /// the built-in limits; a weight beyond it gets nodes.
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    pub max_rounding_error: Option<f64>,
}

/// A finite number of at least 1.
fn ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if ratio.is_finite() && ratio >= 1.0 { Ok(ratio) } else { Err("it is a number of at least 1".into()) }
}

/// What is done to quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quantised {
    /// Round, with nodes where that leaves or costs too much.
    Auto,
    /// Round whatever it leaves and costs; refuse what cannot be rounded.
    Round,
    /// Leave the weights as they are and project what they write.
    Nodes,
}

/// What `bake --measure` measures with.
#[derive(Debug, Args)]
pub struct MeasureArgs {
    #[command(flatten)]
    pub measuring: MeasuringArgs,
    #[command(flatten)]
    pub tokens: TokenArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    pub guard: GuardArgs,
    #[command(flatten)]
    pub chat: ChatArgs,
    #[command(flatten)]
    pub runtime: RuntimeOptions,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The model before.
    pub base: PathBuf,
    /// The model after.
    pub out: PathBuf,
    #[command(flatten)]
    pub direction: DirectionArgs,
    /// Share of the direction's component that was ablated, if not what the direction file says.
    #[arg(long, value_parser = above_zero)]
    pub strength: Option<f64>,
    /// Factor of the vector that was added, if not what the direction file says; 0 for none.
    #[arg(long, value_name = "ALPHA", value_parser = finite, allow_negative_numbers = true)]
    pub add: Option<f64>,
    /// Compare bytes only: needs no runtime. Whether the model loads and what its stream keeps is then not checked.
    #[arg(long)]
    pub bytes_only: bool,
    /// How it was baked. What the output says of that is compared, and never believed.
    #[command(flatten)]
    pub treatment: TreatmentArgs,
    /// The models that were baked, as `--only` of the bake named them; none of the others may be in OUT.
    #[arg(long, value_name = "GLOB")]
    pub only: Vec<String>,
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    pub chat: ChatArgs,
    #[command(flatten)]
    pub runtime: RuntimeOptions,
}

/// `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// An `.onnx` file, or a folder that holds one.
    pub model: PathBuf,
    #[command(flatten)]
    pub variant: VariantArgs,
    #[command(flatten)]
    pub measuring: MeasuringArgs,
    /// Leave out the guard sets: contrasts, other languages, several turns, ordered refusals and long prompts.
    #[arg(long, help_heading = "Measuring", conflicts_with = "contrasts")]
    pub no_guard_sets: bool,
    #[command(flatten)]
    pub tokens: TokenArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    pub chat: ChatArgs,
    #[command(flatten)]
    pub runtime: RuntimeOptions,
}

/// `runtime`.
#[derive(Debug, Args)]
pub struct RuntimeArgs {
    /// What about it.
    #[command(subcommand)]
    pub action: RuntimeAction,
}

/// `runtime install`, `runtime info`.
#[derive(Debug, Subcommand)]
pub enum RuntimeAction {
    /// Install the pinned ONNX Runtime into Lancet's cache, from its PyPI wheel.
    Install {
        /// The build with the CUDA execution provider.
        #[arg(long)]
        cuda: bool,
    },
    /// Which libraries were found, and which one is used.
    Info {
        /// Look for this library first.
        #[arg(long, value_name = "PATH")]
        ort_lib: Option<PathBuf>,
        /// Search for a build with CUDA.
        #[arg(long)]
        cuda: bool,
    },
}

/// A length of time in seconds.
fn time(text: &str) -> Result<f64, String> {
    match text.parse::<jiff::SignedDuration>().map(|time| time.as_secs_f64()) {
        Ok(seconds) if seconds > 0.0 => Ok(seconds),
        _ => Err("expected a time, such as `30m` or `1h 30m`".into()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number above 0".into()),
    }
}

pub fn unit_interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

pub fn cross_set(text: &str) -> Result<CrossSet, String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok(CrossSet { name: name.to_string(), file: PathBuf::from(file) })
        }
        _ => Err("expected NAME=FILE".into()),
    }
}

pub fn above_zero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("expected a number above 0, at most 1".into()),
    }
}

pub fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err("expected a number".into()),
    }
}

pub fn non_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number of at least 0".into()),
    }
}

pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(value) if value > 0 => Ok(value),
        _ => Err("expected a whole number of at least 1".into()),
    }
}
