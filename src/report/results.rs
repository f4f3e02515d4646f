//! The one shape of every command's result: what is true of the whole, and a row for each variant of the model. A lone
//! `.onnx` file is a package of one variant.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::budget::Budget;
use super::{
    AdditionResult, CollectSummary, CompareResult, EditResult, EvalResult, Finding, GateResult, Gated, GuardResult,
    InspectResult, ModelEval, Outputs, Provenance, RefusalToken, SCHEMA, SearchResult, SelectResult, VerifyResult,
};

/// What a command found or did: `shared` is true of the whole package, `variants` has each of its models, sorted by path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Results<S, V> {
    /// Layout of this JSON: [`SCHEMA`].
    pub schema: u32,
    /// What is true of all variants together.
    pub shared: S,
    /// Every variant, sorted by path.
    pub variants: Vec<V>,
}

impl<S, V> Results<S, V> {
    /// A result in the layout of this version.
    pub fn new(shared: S, variants: Vec<V>) -> Self {
        Self { schema: SCHEMA, shared, variants }
    }
}

impl<S: Default, V> Default for Results<S, V> {
    fn default() -> Self {
        Self::new(S::default(), Vec::new())
    }
}

/// What `lancet inspect` found.
pub type PackageInspect = Results<InspectShared, VariantInspect>;

/// What `lancet bake` did.
pub type PackageBake = Results<BakeShared, VariantResult>;

/// What `lancet verify` found.
pub type PackageVerify = Results<VerifyShared, VariantVerify>;

/// What `lancet eval` measured.
pub type PackageEval = Results<EvalShared, VariantEval>;

/// The whole job: what `lancet run` did.
pub type RunResult = Results<RunShared, VariantResult>;

/// What was written for one variant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BakeResult {
    /// Every edit.
    pub edits: Vec<EditResult>,
    /// Where gated terms were inserted, in the order of the edit.
    #[serde(default)]
    pub gated: Vec<Gated>,
    /// Bytes written for it, model and external data; what another variant wrote already counts there.
    pub bytes_written: u64,
    /// Wall-clock time of planning, writing and hashing, in seconds.
    pub seconds: f64,
}

/// One variant, baked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VariantResult {
    /// Its path in the package.
    pub model: String,
    /// What its weights are held in: `float16`, `4 bits (MatMulNBits), float16`.
    pub precision: String,
    /// What it is.
    pub inspect: InspectResult,
    /// What was written.
    pub bake: BakeResult,
    /// Proof of the change, after reloading.
    pub verify: VerifyResult,
    /// Before and after; `None` where it was not measured.
    pub eval: Option<EvalResult>,
    /// Whether true refusal stayed; `None` where it was not measured.
    pub guard: Option<GuardResult>,
}

/// What a file of a package is that was not edited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// No model: a config, a tokenizer, a licence. It is copied.
    #[default]
    Companion,
    /// An `.onnx` file that is no language model. It is copied.
    OtherModel,
    /// A file, folder or link that stays behind, or a variant that is not in the output.
    LeftOut,
    /// A file or link that stands against editing the package.
    Refused,
}

/// A file that was copied, or left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FileRow {
    /// Its path in the package.
    pub file: String,
    /// What it is.
    pub kind: FileKind,
    /// Why it was not edited, or left out; `None` for a companion.
    pub reason: Option<String>,
}

/// What `lancet bake` did with all variants together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BakeShared {
    /// The input: a folder, or the `.onnx` file that was named.
    pub model: String,
    /// The output: a folder, or an `.onnx` file.
    pub output: String,
    /// Whether it was published.
    pub published: bool,
    /// SHA-256 of the direction, hexadecimal.
    pub direction_sha256: String,
    /// Tokens of the refusal scores; empty where nothing was measured.
    pub refusal_tokens: Vec<RefusalToken>,
    /// Files that are in the output as they were, sorted by path.
    pub copied: Vec<FileRow>,
    /// What is not in the output, sorted by path.
    pub left_out: Vec<FileRow>,
    /// Bytes in the output, all files together.
    pub bytes_written: u64,
    /// Wall-clock time of each step, in seconds.
    pub seconds: BTreeMap<String, f64>,
}

/// How an edit was found: in JSON the key `select` or the key `gate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// A direction was selected.
    Select(SelectResult),
    /// Gates were fitted and chosen.
    Gate(GateResult),
}

/// What `lancet run` did with all variants together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RunShared {
    /// What was written.
    #[serde(flatten)]
    pub bake: BakeShared,
    /// The variant that the direction comes from, by its path in the package.
    pub direction_from: String,
    /// Activations.
    pub collect: CollectSummary,
    /// The edit; none where a search found none that holds.
    #[serde(flatten)]
    pub found: Option<Found>,
    /// What it was chosen among, where its setting was searched for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchResult>,
    /// Activation addition, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addition: Option<AdditionResult>,
    /// Other lambdas on the test prompts, where they were tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<CompareResult>,
    /// The time that the run was given, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// How to get it again.
    pub provenance: Provenance,
    /// Where everything is.
    pub outputs: Outputs,
}

/// One variant, inspected.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VariantInspect {
    /// Its path in the package.
    pub model: String,
    /// What its weights are held in.
    pub precision: String,
    /// What is in it.
    pub inspect: InspectResult,
}

/// What `lancet inspect` found of the whole package.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InspectShared {
    /// The input: a folder, or the `.onnx` file that was named.
    pub model: String,
    /// Files that a bake copies as they are.
    pub copied: Vec<FileRow>,
    /// What a bake leaves out.
    pub left_out: Vec<FileRow>,
}

/// One variant, verified.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VariantVerify {
    /// Its path in the package.
    pub model: String,
    /// What was found.
    pub verify: VerifyResult,
}

/// What `lancet verify` found of the whole package.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VerifyShared {
    /// Whether every check of every variant passed, and nothing else differs.
    pub passed: bool,
    /// Models that are not edited, and equal.
    pub copied: Vec<FileRow>,
    /// Models of the base that the output lacks.
    pub left_out: Vec<FileRow>,
    /// What failed beyond the variants, one sentence each.
    pub failures: Vec<String>,
    /// Every difference that the edit does not explain, beyond those of the variants.
    pub unexplained: Vec<Finding>,
}

/// One variant, measured as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VariantEval {
    /// Its path in the package.
    pub model: String,
    /// What was measured.
    pub eval: ModelEval,
}

/// What `lancet eval` tells of all variants together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EvalShared {
    /// The input: a folder, or the `.onnx` file that was named.
    pub model: String,
    /// Tokens of the refusal scores.
    pub refusal_tokens: Vec<RefusalToken>,
}

impl PackageVerify {
    /// Every sentence on what failed, with the variant's path where there are several.
    pub fn failures(&self) -> Vec<String> {
        let of_variants = self.variants.iter().map(|v| (v.model.as_str(), v.verify.failures.as_slice()));
        named(of_variants).chain(self.shared.failures.iter().cloned()).collect()
    }
}

impl<S> Results<S, VariantResult> {
    /// Whether every variant is what it should be.
    #[must_use]
    pub fn verified(&self) -> bool {
        self.variants.iter().all(|v| v.verify.passed)
    }

    /// Every sentence on what failed, with the variant's path where there are several.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        named(self.variants.iter().map(|v| (v.model.as_str(), v.verify.failures.as_slice()))).collect()
    }

    /// Whether the guard lets every variant be published that was measured: it passed, or the user overrode it.
    #[must_use]
    pub fn guard_allows(&self) -> bool {
        self.variants.iter().filter_map(|v| v.guard.as_ref()).all(|guard| guard.passed || guard.overridden)
    }

    /// What the guard says against publishing, with the variant's path where there are several.
    #[must_use]
    pub fn guard_reasons(&self) -> Vec<String> {
        named(self.variants.iter().map(|variant| {
            let refusing = variant.guard.as_ref().filter(|guard| !guard.passed && !guard.overridden);
            (variant.model.as_str(), refusing.map_or(&[][..], |guard| &guard.reasons[..]))
        }))
        .collect()
    }

    /// Number of edits in all variants.
    #[must_use]
    pub fn n_edits(&self) -> usize {
        self.variants.iter().map(|v| v.bake.edits.len()).sum()
    }
}

impl RunResult {
    /// Why no setting of a search holds; `None` where one does, or none was searched for.
    #[must_use]
    pub fn nothing_holds(&self) -> Option<&str> {
        self.shared.search.as_ref().filter(|search| search.chosen.is_none())?.refusal.as_deref()
    }

    /// The variant that the direction comes from; `None` only where there is no variant.
    #[must_use]
    pub fn source(&self) -> Option<&VariantResult> {
        self.variants.iter().find(|v| v.model == self.shared.direction_from)
    }
}

/// Sentences about variants, each with the variant's path where there are several.
fn named<'a>(variants: impl ExactSizeIterator<Item = (&'a str, &'a [String])>) -> impl Iterator<Item = String> {
    let several = variants.len() > 1;
    variants.flat_map(move |(model, sentences)| {
        sentences.iter().map(move |sentence| if several { format!("`{model}`: {sentence}") } else { sentence.clone() })
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample;

    #[test]
    fn one_variant_that_fails_fails_the_package() {
        let mut package = sample::package();
        assert!(package.verified() && package.guard_allows());
        let guard = package.variants[0].guard.as_mut().unwrap();
        (guard.passed, guard.reasons) = (false, vec!["harmful refusal falls".into()]);
        assert!(!package.guard_allows());
        assert_eq!(package.guard_reasons(), ["`onnx/model.onnx`: harmful refusal falls"]);
        package.variants[0].guard.as_mut().unwrap().overridden = true;
        assert!(package.guard_allows() && package.guard_reasons().is_empty());
        package.variants[1].verify.passed = false;
        assert!(!package.verified());
    }
}
