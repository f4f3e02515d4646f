//! Results as plain data, and what people read of them: terminal text, Markdown, one HTML page.
//!
//! The types are the JSON contract: every `--json` output is one of them, and every other room fills them.
//! Rates, drops and leaks are fractions (0.344, not 34.4). No field ever holds NaN or an infinity (JSON has
//! neither): what could not be measured is `None`, see [`finite`].

mod addition;
mod budget;
mod compare;
pub mod describe;
pub mod document;
mod gate;
mod layers;
pub mod layout;
mod measured;
pub mod number;
mod refined;
pub mod results;
#[cfg(test)]
mod rich;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod schema;
pub mod scores;
mod search;
pub mod stream_graph;
mod verdict;

use serde::{Deserialize, Serialize};

pub use crate::bake::{Added, AddedTo, EditResult, Finding, FindingKind, Gated};
pub use crate::eval::answers::{ClassResult, JudgeCounts};
pub use crate::eval::condition::Condition;
pub use crate::eval::evidence::{Check, Unit};
pub use crate::eval::outcome::{Outcome, OutcomeCounts as Outcomes};
pub use crate::eval::policy::Limit;
pub use crate::eval::statistics::Interval;
pub use crate::lm::{Interface, Reason, Refusal, Treatment, WriterKind};
pub use crate::method::classes::{Dress, GuardSet, Hand, PerClass, PromptClass, SourceName};
pub use crate::method::layers::LayerProjection;
pub use crate::method::select::{Discarded, ScoreBy, Search};
pub use addition::{AdditionResult, AdditionRow};
pub use budget::{Budget, Omission};
pub use compare::{AddedCost, CompareResult, CompareRow, CrossRow, Estimate, Recommendation, Versus, WhyBest, WhyNone};
pub use gate::{
    GateCandidate, GateDiscarded, GateLayer, GateResult, GateScores, GateSetting, GateSource, GateTerm, Refused,
    false_refusal,
};
pub use measured::{
    Answer, AnswerPair, BeforeAfter, ClassRow, ClassTable, ConditionResult, Cost, Decoding, EvalResult, GuardResult,
    GuardSetRow, Latency, Measured, ModelEval, OneCondition, Ratio, SetRow, Setup,
};
pub use refined::{LayerGroup, Refined, RefinedBy};
pub use results::{
    BakeResult, BakeShared, EvalShared, FileKind, FileRow, Found, InspectShared, PackageBake, PackageEval,
    PackageInspect, PackageVerify, Results, RunResult, RunShared, VariantEval, VariantInspect, VariantResult,
    VariantVerify, VerifyShared,
};
pub use search::{Lost, SearchResult, SearchRow, SearchSetting};
pub use verdict::Verdict;

/// Version of the JSON layout that [`RunResult::schema`] holds.
pub const SCHEMA: u32 = 4;

/// Longest Markdown summary of a run, in characters: that of a comment on a pull request.
pub const COMMENT: usize = 8000;

/// A run as a page.
#[must_use]
pub fn html(run: &RunResult) -> String {
    document::html(&describe::run(run))
}

/// A run as Markdown of at most [`COMMENT`] characters.
#[must_use]
pub fn markdown(run: &RunResult) -> String {
    document::markdown(&describe::run(run), COMMENT)
}

/// `Some(value)` where `value` is a number that JSON can hold, `None` for NaN and infinities.
#[must_use]
pub fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// A candidate direction and how it fared on val.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CandidateRow {
    /// Token position, negative, from the end of the prompt.
    pub position: i64,
    /// Absolute layer.
    pub layer: usize,
    /// Norm of the false-refusal vector after partial orthogonalisation, before it is made unit.
    pub raw_norm: f64,
    /// Mean refusal score on pseudo-harmful val under ablation, in nats; `None` where none was run.
    pub refusal_score: Option<f64>,
    /// Mean refusal score on harmful val under ablation, in nats.
    pub harmful_refusal_score: Option<f64>,
    /// Mean harmless `KL(base || ablated)` at the first response position, in nats.
    pub kl: Option<f64>,
    /// Validation prompts of each class that the means are over.
    #[serde(default)]
    pub prompts: ClassCounts,
    /// Why it was discarded; `None` where it was not.
    pub discarded: Option<Discarded>,
}

/// The candidate that won.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Selected {
    /// Token position, negative, from the end of the prompt.
    pub position: i64,
    /// Absolute layer.
    pub layer: usize,
    /// Partial orthogonalisation lambda, 0 to 1.
    pub lambda: f64,
    /// Mean refusal score on pseudo-harmful val under ablation, in nats.
    pub refusal_score: f64,
    /// Mean refusal score on harmful val under ablation, in nats.
    pub harmful_refusal_score: f64,
    /// Mean harmless `KL(base || ablated)` at the first response position, in nats.
    pub kl: f64,
}

/// The unchanged model on val, in nats.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Baseline {
    /// Mean refusal score on pseudo-harmful val.
    pub refusal_score: f64,
    /// Mean refusal score on harmful val.
    pub harmful_refusal_score: f64,
    /// Mean refusal score on harmless val.
    pub harmless_refusal_score: f64,
}

/// Numbers of prompts, a class each.
pub type ClassCounts = PerClass<usize>;

/// A token that opens a refusal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RefusalToken {
    /// Its id in the vocabulary.
    pub id: u32,
    /// What it decodes to.
    pub text: String,
}

/// The token at a post-instruction position.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PositionLabel {
    /// Token position, negative, from the end of the prompt.
    pub position: i64,
    /// The token as text.
    pub token: String,
}

/// How the refusal tokens came about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TokenChoice {
    /// The user gave them.
    Given,
    /// They were chosen from what the model answers.
    #[default]
    Automatic,
}

impl std::fmt::Display for TokenChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Given => "given",
            Self::Automatic => "automatic",
        })
    }
}

/// What `lancet select` found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SelectResult {
    /// The winner.
    pub selected: Selected,
    /// The unchanged model.
    pub baseline: Baseline,
    /// Train prompts that passed the filter.
    pub kept: ClassCounts,
    /// Train prompts before the filter.
    pub total: ClassCounts,
    /// Tokens whose probability makes the refusal score; empty where the user said that there are none.
    pub refusal_tokens: Vec<RefusalToken>,
    /// Whether they were given.
    pub refusal_tokens_chosen: TokenChoice,
    /// Every candidate, discarded ones too.
    pub candidates: Vec<CandidateRow>,
    /// The post-instruction positions, with their tokens.
    pub positions: Vec<PositionLabel>,
    /// Whether the published procedure ran, without our additions.
    pub paper: bool,
    /// How much was measured before the choice.
    #[serde(default)]
    pub search: Search,
    /// What prompts scored.
    #[serde(default)]
    pub score: ScoreBy,
    /// The mean activations of the classes along the two directions, a layer each, at the selected position.
    #[serde(default)]
    pub layers: Vec<LayerProjection>,
    /// What a further method made of the selected direction, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refined: Option<Refined>,
}

/// What `lancet collect` did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CollectSummary {
    /// Prompts run, train and val together.
    pub prompts: ClassCounts,
    /// Of these, prompts taken over from an earlier, interrupted run.
    pub resumed: usize,
    /// Post-instruction positions, `k`.
    pub n_pos: usize,
    /// Blocks of the model, `L`.
    pub n_layers: usize,
    /// Width of the residual stream, `D`.
    pub d_model: usize,
    /// File with the mean activations; `None` where it was kept in memory.
    pub output: Option<String>,
    /// Wall-clock time in seconds.
    pub seconds: f64,
}

/// One writer to the residual stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WriterRow {
    /// What it is.
    pub kind: WriterKind,
    /// Absolute layer; `None` for embeddings.
    pub layer: Option<usize>,
    /// Name of the weight, where one was found; of the first one, where there is one for each expert.
    pub initializer: Option<String>,
    /// Number of weights: one, or one for each expert.
    #[serde(default)]
    pub n_weights: usize,
    /// Its element type.
    pub dtype: Option<String>,
    /// Its dimensions.
    pub shape: Option<Vec<u64>>,
    /// How its write would be made orthogonal to a direction.
    pub treatment: Treatment,
    /// Why not by weights; `None` where it is.
    pub reason: Option<Reason>,
}

/// What is in one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InspectResult {
    /// Path of the model.
    pub model: String,
    /// Blocks, `L`.
    pub n_layers: usize,
    /// Width of the residual stream, `D`.
    pub d_model: usize,
    /// Size of the vocabulary, where the graph says it.
    pub d_vocab: Option<usize>,
    /// Writers, from the embedding on.
    pub writers: Vec<WriterRow>,
    /// What stands in the way; empty where the model can be edited.
    pub refusals: Vec<Refusal>,
    /// Inputs, KV cache and outputs; `None` where the graph is not understood.
    pub interface: Option<Interface>,
    /// Opset of the default domain.
    pub opset: i64,
    /// IR version.
    pub ir_version: i64,
    /// Producer name and version; empty where the file has none.
    pub producer: String,
    /// Size of the `.onnx` file, in bytes.
    pub file_bytes: u64,
    /// Files with external data, relative to the model.
    pub external_files: Vec<String>,
    /// Notes on tensors that serve twice, one sentence each.
    pub tied: Vec<String>,
}

/// What the verification of one model found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VerifyResult {
    /// Whether every check passed.
    pub passed: bool,
    /// Largest absolute difference of a logit, baked against run-time ablation; `None` without a runtime.
    pub max_abs_logit_diff: Option<f64>,
    /// Mean KL between the two, in nats.
    pub kl: Option<f64>,
    /// Largest `|r . x| / |x|` over the stream of the baked model, 0 to 1.
    pub max_stream_leak: Option<f64>,
    /// Bytes that differ and should not; 0 is the only good value.
    pub changed_bytes_outside_plan: u64,
    /// Largest allowed `max_abs_logit_diff`.
    pub bound: Option<f64>,
    /// Prompts compared.
    pub n_prompts: usize,
    /// Tensors whose edit cannot be exact by weights alone: the difference of the logits is their cost, and has no
    /// bound.
    #[serde(default)]
    pub inexact: Vec<String>,
    /// What failed, one sentence each.
    pub failures: Vec<String>,
    /// Every difference between base and output that the edit does not explain.
    #[serde(default)]
    pub unexplained: Vec<Finding>,
    /// What the published files keep of the direction when they are run whole; `None` where they were not run.
    #[serde(default)]
    pub stream: Option<StreamProof>,
    /// What was not checked, and why, one sentence each.
    #[serde(default)]
    pub unchecked: Vec<String>,
}

/// What the published files keep of the direction, measured by running them whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StreamProof {
    /// Values that were probed: what normalisations and the unembedding read.
    pub probes: usize,
    /// Positions of all prompts that were looked at.
    pub positions: usize,
    /// Largest `|r . x| / |x|` over all probes of the base, 0 to 1.
    pub share_before: f64,
    /// The same of the output.
    pub share_after: f64,
    /// Name of the value that keeps most, in the output.
    pub largest: String,
}

/// What it takes to get the same result again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Provenance {
    /// Version of Lancet.
    pub lancet_version: String,
    /// Path of the input model.
    pub model: String,
    /// SHA-256 of the input model, hexadecimal.
    pub model_sha256: String,
    /// Version of ONNX Runtime; `None` where none ran.
    pub onnxruntime_version: Option<String>,
    /// Execution provider: `cpu`, `cuda`.
    pub execution_provider: String,
    /// Operating system and processor: `linux-x86_64`.
    #[serde(default)]
    pub platform: String,
    /// Seed of the split.
    pub seed: u64,
    /// Where the prompts came from: `bundled`, or a path.
    pub prompts: String,
    /// SHA-256 over the prompts in the order of use, hexadecimal.
    pub prompts_sha256: String,
    /// The command line, program first.
    pub command: Vec<String>,
    /// Partial orthogonalisation lambda, 0 to 1.
    pub lambda: f64,
    /// Strength: the share of the component along the direction that was ablated, above 0 and at most 1.
    #[serde(default)]
    pub strength: f64,
}

/// Where everything is. `None` where it was not written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Outputs {
    /// The rewritten model; `None` where it was not published.
    pub model: Option<String>,
    /// The HTML report.
    pub report_html: Option<String>,
    /// This result as JSON.
    pub report_json: Option<String>,
    /// The summary as Markdown.
    #[serde(default)]
    pub report_markdown: Option<String>,
    /// The direction file.
    pub direction: Option<String>,
}

/// Why a `report.json` could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no JSON, or not a run's.
    #[error("this is not a Lancet report: {0}")]
    Json(#[from] serde_json::Error),
    /// It was written by another version of Lancet.
    #[error(
        "the report has schema version {0}, this Lancet reads version {SCHEMA}: read it with the Lancet that wrote it"
    )]
    Version(u64),
}

impl RunResult {
    /// The run in a `report.json`.
    ///
    /// # Errors
    /// If it is none, or of another [`SCHEMA`]: nothing is guessed into the fields that an older one lacks.
    pub fn from_json(text: &str) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct Version {
            schema: u64,
        }
        let Version { schema } = serde_json::from_str(text)?;
        if schema != u64::from(SCHEMA) {
            return Err(ReadError::Version(schema));
        }
        Ok(serde_json::from_str(text)?)
    }
}

/// A class as people read it: `pseudo-harmful`.
#[must_use]
pub fn class_label(class: PromptClass) -> String {
    class.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_keeps_every_field() {
        let run = sample::run();
        let json = serde_json::to_string(&run).expect("plain data serialises");
        assert_eq!(serde_json::from_str::<RunResult>(&json).expect("own output parses"), run);
    }

    #[test]
    fn reports_of_other_versions_are_refused_in_words() {
        let json = serde_json::to_string(&rich::run()).expect("plain data serialises");
        assert_eq!(RunResult::from_json(&json).expect("own output parses"), rich::run());
        let old = json.replacen("\"schema\":4", "\"schema\":3", 1);
        let error = RunResult::from_json(&old).expect_err("another version").to_string();
        assert_eq!(
            error,
            "the report has schema version 3, this Lancet reads version 4: read it with the Lancet that wrote it"
        );
        assert!(
            RunResult::from_json("[]").expect_err("no object").to_string().starts_with("this is not a Lancet report")
        );
    }

    #[test]
    fn json_holds_the_contract() {
        let json = serde_json::to_value(sample::run()).expect("plain data serialises");
        for pointer in [
            "/schema",
            "/shared/select/selected/harmful_refusal_score",
            "/shared/select/baseline/refusal_score",
            "/shared/select/kept/pseudo_harmful",
            "/shared/select/refusal_tokens/0/id",
            "/shared/select/candidates/0/raw_norm",
            "/variants/0/inspect/writers/0/treatment",
            "/variants/0/inspect/refusals",
            "/variants/0/bake/edits/1/leak_after",
            "/variants/0/verify/changed_bytes_outside_plan",
            "/variants/0/eval/before/pseudo_harmful/refusal_rate",
            "/variants/0/eval/after/harmful/mean_refusal_score",
            "/variants/0/guard/passed",
        ] {
            assert!(json.pointer(pointer).is_some_and(|v| !v.is_null()), "{pointer} is missing");
        }
    }

    #[test]
    fn verdicts() {
        let mut run = sample::run();
        assert_eq!(run.verdict(), Verdict::Published);
        sample::guard(&mut run).passed = false;
        assert_eq!(run.verdict(), Verdict::GuardRefused);
        sample::guard(&mut run).overridden = true;
        assert_eq!(run.verdict(), Verdict::Overridden);
        run.variants[0].verify.passed = false;
        assert_eq!(run.verdict(), Verdict::NotVerified);
    }

    #[test]
    fn a_lost_refusal_is_shown() {
        let mut run = sample::run();
        let lost = AnswerPair {
            class: PromptClass::Harmful,
            prompt: "lost".into(),
            refused_before: true,
            ..Default::default()
        };
        sample::eval(&mut run).answers.push(lost);
        let picked = sample::eval(&mut run).telling_answers(3);
        assert_eq!(picked.len(), 3);
        assert!(picked[..2].iter().all(|a| a.refused_before && !a.refused_after));
        assert_eq!(picked[2].prompt, "lost");
        assert!(sample::eval(&mut run).telling_answers(0).is_empty());
    }
}
