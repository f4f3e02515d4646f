//! Results on packages: folders with several models, one direction for all.

use serde::{Deserialize, Serialize};

use super::{BakeResult, ClassTable, EditRow, GuardResult, InspectResult, RefusalToken, VerifyResult};

/// What the direction did to one variant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Effect {
    /// The variant as it was.
    pub before: ClassTable,
    /// The variant as it was written.
    pub after: ClassTable,
    /// Mean `KL(before || after)` over harmless prompts at the first response position, in nats.
    pub harmless_kl: Option<f64>,
    /// Longest answer generated, in tokens.
    pub max_new_tokens: usize,
}

/// One variant of a package, baked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VariantResult {
    /// Its path in the package.
    pub model: String,
    /// What its weights are held in: `float16`, `4 bits (MatMulNBits), float16`.
    pub precision: String,
    /// Every edit.
    pub edits: Vec<EditRow>,
    /// Proof of the change, after reloading.
    pub verify: VerifyResult,
    /// Bytes written for it, model and external data; what another variant wrote already counts there.
    pub bytes_written: u64,
    /// Wall-clock time in seconds, measuring included.
    pub seconds: f64,
    /// Before and after; `None` where it was not measured.
    pub eval: Option<Effect>,
    /// Whether true refusal stayed; `None` where it was not measured.
    pub guard: Option<GuardResult>,
}

/// A file that was copied, or left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FileRow {
    /// Its path in the package.
    pub file: String,
    /// Why it was not edited, or left out; `None` for a copied file that is no model.
    pub reason: Option<String>,
}

/// What was done with a package.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PackageResult {
    /// The input folder.
    pub model: String,
    /// The output folder.
    pub output: String,
    /// Whether it was published.
    pub published: bool,
    /// SHA-256 of the direction, hexadecimal.
    pub direction_sha256: String,
    /// Tokens of the refusal scores; empty where nothing was measured.
    pub refusal_tokens: Vec<RefusalToken>,
    /// Every variant, sorted by path.
    pub variants: Vec<VariantResult>,
    /// Files that are in the output as they were, sorted by path.
    pub copied: Vec<FileRow>,
    /// What is not in the output, sorted by path.
    pub left_out: Vec<FileRow>,
    /// Number of edits in all variants.
    pub n_edits: usize,
    /// Bytes in the output folder.
    pub bytes_written: u64,
    /// Wall-clock time in seconds.
    pub seconds: f64,
}

/// One variant of a package, inspected.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VariantInspect {
    /// Its path in the package.
    pub variant: String,
    /// What its weights are held in.
    pub precision: String,
    /// What is in it.
    #[serde(flatten)]
    pub inspect: InspectResult,
}

/// What `lancet inspect` found in a package.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PackageInspect {
    /// The folder.
    pub model: String,
    /// Every variant, sorted by path.
    pub variants: Vec<VariantInspect>,
    /// Files that a bake copies as they are.
    pub copied: Vec<FileRow>,
    /// What a bake leaves out.
    pub left_out: Vec<FileRow>,
}

/// One variant of a package, verified.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VariantVerify {
    /// Its path in the package.
    pub model: String,
    /// What was found.
    #[serde(flatten)]
    pub verify: VerifyResult,
}

/// What `lancet verify` found in a package.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PackageVerify {
    /// Whether every check of every variant passed, and no other model changed.
    pub passed: bool,
    /// Every variant that the output has, sorted by path.
    pub variants: Vec<VariantVerify>,
    /// Models that are not edited, and equal.
    pub copied: Vec<FileRow>,
    /// Models of the base that the output lacks.
    pub left_out: Vec<FileRow>,
    /// What failed beyond the variants, one sentence each.
    pub failures: Vec<String>,
    /// Every difference between the two folders that the edit does not explain, beyond those of the variants.
    #[serde(default)]
    pub unexplained: Vec<super::Unexplained>,
}

impl PackageVerify {
    /// What was found where there is one model: its own result with what was found beside it.
    pub fn into_lone(mut self) -> VerifyResult {
        let mut only = self.variants.pop().map(|v| v.verify).unwrap_or_default();
        only.passed = self.passed;
        only.failures.extend(self.failures);
        only.unexplained.extend(self.unexplained);
        only
    }
}

impl PackageResult {
    /// Whether every variant is what it should be.
    #[must_use]
    pub fn verified(&self) -> bool {
        self.variants.iter().all(|v| v.verify.passed)
    }

    /// The result of a package of one model as that model's own.
    ///
    /// # Panics
    /// If there is no variant.
    #[must_use]
    pub fn into_lone(mut self) -> (BakeResult, VerifyResult) {
        let only = self.variants.swap_remove(0);
        let bake = BakeResult {
            edits: only.edits,
            output: self.output,
            bytes_written: self.bytes_written,
            seconds: self.seconds,
            direction_sha256: self.direction_sha256,
        };
        (bake, only.verify)
    }

    /// What the guard says against publishing, each with its variant; empty where it passed or was overridden.
    #[must_use]
    pub fn guarded(&self) -> Vec<String> {
        let refused = self.variants.iter().filter_map(|v| Some((v, v.guard.as_ref()?)));
        refused
            .filter(|(_, guard)| !guard.passed && !guard.overridden)
            .flat_map(|(v, guard)| guard.reasons.iter().map(move |reason| format!("`{}`: {reason}", v.model)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;

    #[test]
    fn one_variant_that_fails_fails_the_package() {
        let mut package = sample::package();
        assert!(package.verified() && package.guarded().is_empty());
        let guard = package.variants[0].guard.as_mut().unwrap();
        (guard.passed, guard.reasons) = (false, vec!["harmful refusal falls".into()]);
        assert_eq!(package.guarded(), ["`onnx/model.onnx`: harmful refusal falls"]);
        package.variants[0].guard.as_mut().unwrap().overridden = true;
        assert!(package.guarded().is_empty());
        package.variants[1].verify.passed = false;
        assert!(!package.verified());
    }
}
