//! Results on packages: folders with several models, one direction for all.

use serde::{Deserialize, Serialize};

use super::layout::{Cell, LABEL, Style, Tone, columns, fact, labelled, plain, shorten_middle, single_line, table};
use super::number::{MISSING, bytes, count, percent, seconds, significant};
use super::text::worst_leak;
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

/// Edits by what they are: `13 weights`, `5 weights, 8 rounded`, `1 weights, 12 nodes`.
pub(super) fn treatments<'a>(all: impl Iterator<Item = &'a str>) -> String {
    let mut counts = [("weights", 0), ("rounded", 0), ("nodes", 0)];
    for treatment in all {
        let at = match treatment {
            "nodes" => 2,
            "rounded" => 1,
            _ => 0,
        };
        counts[at].1 += 1;
    }
    counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", ")
}

/// A table whose first column, the names, gives way where the line is too long.
fn named_table(
    out: &mut String,
    style: Style,
    width: usize,
    header: &[&str],
    right: &[bool],
    mut rows: Vec<Vec<Cell>>,
) {
    let widest = |i: usize| rows.iter().map(|r| columns(&r[i].0)).max().unwrap_or(0).max(columns(header[i]));
    let others: usize = (1..header.len()).map(|i| widest(i) + 2).sum();
    let room = width.saturating_sub(others + 2).max(16);
    // where names do not fit, what all have in common says nothing
    let fits = widest(0) <= room;
    let common = common_ends(&rows.iter().map(|row| row[0].0.as_str()).collect::<Vec<_>>());
    for row in &mut rows {
        let name = std::mem::take(&mut row[0].0);
        let short = if fits { name.as_str() } else { &name[common.0..name.len() - common.1] };
        row[0].0 = shorten_middle(short, room);
    }
    table(out, style, header, right, &rows);
}

/// Bytes that all names begin with, up to the last `/`, and the extension if all have one.
fn common_ends(names: &[&str]) -> (usize, usize) {
    let folder = |name: &str| name.rfind('/').map_or(0, |at| at + 1);
    let Some(first) = names.first().map(|name| &name[..folder(name)]) else { return (0, 0) };
    let start = if names.iter().all(|name| name.starts_with(first)) { first.len() } else { 0 };
    let end = if names.iter().all(|name| name.ends_with(".onnx")) { ".onnx".len() } else { 0 };
    (start, end)
}

/// The rows of the table: a variant each, with its refusals where they were measured.
fn variant_table(out: &mut String, style: Style, width: usize, variants: &[VariantResult]) {
    let measured = variants.iter().any(|v| v.eval.is_some());
    let mut header = vec!["variant", "edits", "leak", "verified"];
    if measured {
        header.extend(["pseudo-harmful", "harmful", "harmless"]);
    }
    let mut rows: Vec<Vec<Cell>> = variants
        .iter()
        .map(|v| {
            let verified = if v.verify.passed { ("yes".into(), Tone::Good) } else { ("NO".into(), Tone::Bad) };
            let mut row = vec![
                plain(single_line(&v.model)),
                plain(treatments(v.edits.iter().map(|e| e.treatment.as_str()))),
                plain(worst_leak(&v.edits).map_or_else(|| MISSING.to_owned(), |(_, leak)| significant(leak))),
                verified,
            ];
            let lost = v.guard.as_ref().is_some_and(|g| !g.passed);
            match &v.eval {
                Some(eval) => {
                    let after = eval.after.rows();
                    row.extend(eval.before.rows().iter().zip(after).map(|((class, before), (_, after))| {
                        let tone = if *class == "harmful" && lost { Tone::Bad } else { Tone::Plain };
                        let rate = percent(before.refusal_rate);
                        let rate = rate.trim_end_matches([' ', '%']);
                        (format!("{rate} → {}", percent(after.refusal_rate)), tone)
                    }));
                }
                None if measured => row.extend((0..3).map(|_| plain(MISSING))),
                None => {}
            }
            row
        })
        .collect();
    let mut right = vec![false, false, true, false, true, true, true];
    let widest = |i: usize| rows.iter().map(|r| columns(&r[i].0)).max().unwrap_or(0).max(columns(header[i]));
    if (0..header.len()).map(|i| widest(i) + 2).sum::<usize>() > width {
        // the leak is in the JSON too; what was refused is what people look for
        header.remove(2);
        right.remove(2);
        rows.iter_mut().for_each(|row| drop(row.remove(2)));
    }
    named_table(out, style, width, &header, &right[..header.len()], rows);
}

/// Models that were copied and what was left out, a line each.
fn files(out: &mut String, style: Style, width: usize, copied: &[FileRow], left_out: &[FileRow]) {
    let models: Vec<&FileRow> = copied.iter().filter(|row| row.reason.is_some()).collect();
    for (title, rows) in [("Copied as they are:", models), ("Left out:", left_out.iter().collect())] {
        for (i, row) in rows.iter().enumerate() {
            if i == 0 {
                out.push_str(&format!("\n{}\n", style.paint(Tone::Faint, title)));
            }
            let reason = row.reason.as_deref().unwrap_or_default();
            labelled(out, style, ("  -", 4), &format!("`{}` {reason}", row.file), (width, usize::MAX));
        }
    }
}

/// What failed in a variant, and what its guard says.
fn complaints(out: &mut String, style: Style, width: usize, variants: &[VariantResult]) {
    for variant in variants {
        let guard = variant.guard.iter().flat_map(|g| g.reasons.iter().map(|r| format!("guard: {r}")));
        for text in variant.verify.failures.iter().cloned().chain(guard) {
            labelled(out, style, ("  -", 4), &format!("`{}`: {text}", variant.model), (width, usize::MAX));
        }
    }
}

/// The variants of a package in a run's summary.
pub(super) fn variants_summary(out: &mut String, width: usize, style: Style, package: &PackageResult) {
    variant_table(out, style, width, &package.variants);
    complaints(out, style, width, &package.variants);
    files(out, style, width, &package.copied, &package.left_out);
}

/// What `bake` did with a package: a row a variant.
#[must_use]
pub fn package_summary(package: &PackageResult, width: usize, style: Style) -> String {
    let mut out = String::new();
    variants_summary(&mut out, width, style, package);
    out.push('\n');
    let copied = count(package.copied.len(), "other file");
    let line = format!(
        "{} in {}; {copied} copied; {} in {}",
        count(package.n_edits, "edit"),
        count(package.variants.len(), "variant"),
        bytes(package.bytes_written),
        seconds(package.seconds)
    );
    fact(&mut out, style, width, "Baked", &line);
    let output = if package.published { single_line(&package.output) } else { "not written".to_owned() };
    out.push_str(&format!("{}{output}\n", style.paint(Tone::Faint, &format!("{:<LABEL$}", "Package"))));
    out
}

/// What is in a package: a row a variant.
#[must_use]
pub fn package_inspect(package: &PackageInspect, width: usize, style: Style) -> String {
    let mut out = format!("{}\n\n", style.paint(Tone::Strong, &single_line(&package.model)));
    let number = |n: usize| if n == 0 { MISSING.to_owned() } else { n.to_string() };
    let rows: Vec<Vec<Cell>> = package
        .variants
        .iter()
        .map(|v| {
            let i = &v.inspect;
            vec![
                plain(single_line(&v.variant)),
                plain(bytes(i.file_bytes)),
                plain(single_line(&v.precision)),
                plain(number(i.n_layers)),
                plain(number(i.d_model)),
                match i.refusals.is_empty() {
                    true => plain(treatments(i.writers.iter().map(|w| w.treatment.as_str()))),
                    false => ("refused".to_owned(), Tone::Bad),
                },
            ]
        })
        .collect();
    let header = ["variant", "size", "weights", "layers", "d_model", "edits"];
    named_table(&mut out, style, width, &header, &[false, true, false, true, true, false], rows);
    let refused = package.variants.iter().flat_map(|v| v.inspect.refusals.iter().map(move |r| (v, r)));
    for (i, (variant, refusal)) in refused.enumerate() {
        if i == 0 {
            out.push_str(&format!("\n{}\n", style.paint(Tone::Bad, "Refused:")));
        }
        let node = format!("`{}`: node `{}`: {}", variant.variant, refusal.node, refusal.reason);
        labelled(&mut out, style, ("  -", 4), &node, (width, usize::MAX));
        if !refusal.hint.is_empty() {
            labelled(&mut out, style, ("    hint:", 10), &refusal.hint, (width, usize::MAX));
        }
    }
    files(&mut out, style, width, &package.copied, &package.left_out);
    out
}

/// What `verify` found in a package: a row a variant.
#[must_use]
pub fn package_verify(package: &PackageVerify, width: usize, style: Style) -> String {
    let (tone, words) = match package.passed {
        true => (Tone::Good, "verified: every check of every variant passed"),
        false => (Tone::Bad, "not verified"),
    };
    let mut out = format!("{}\n\n", style.paint(tone, words));
    let rows: Vec<Vec<Cell>> = package
        .variants
        .iter()
        .map(|v| {
            vec![
                plain(single_line(&v.model)),
                plain(v.verify.changed_bytes_outside_plan.to_string()),
                plain(significant(v.verify.max_abs_logit_diff)),
                plain(significant(v.verify.allowed())),
                plain(significant(v.verify.max_stream_leak)),
                if v.verify.passed { ("yes".into(), Tone::Good) } else { ("NO".into(), Tone::Bad) },
            ]
        })
        .collect();
    let header = ["variant", "bytes outside the plan", "logit difference", "allowed", "leak", "verified"];
    named_table(&mut out, style, width, &header, &[false, true, true, true, true, false], rows);
    let own = package.variants.iter().flat_map(|v| v.verify.failures.iter().map(|f| format!("`{}`: {f}", v.model)));
    for failure in own.chain(package.failures.iter().cloned()) {
        labelled(&mut out, style, ("  -", 4), &failure, (width, usize::MAX));
    }
    for variant in &package.variants {
        for unchecked in &variant.verify.unchecked {
            let words = format!("`{}`, not checked: {unchecked}", variant.model);
            labelled(&mut out, style, ("  -", 4), &words, (width, usize::MAX));
        }
    }
    files(&mut out, style, width, &package.copied, &package.left_out);
    out
}

#[cfg(test)]
mod tests {
    use super::super::{ClassResult, sample};
    use super::*;

    fn package() -> PackageResult {
        let run = sample::run();
        let effect = Effect { before: run.eval.before.clone(), after: run.eval.after.clone(), ..Default::default() };
        let variant = |model: &str, eval: Option<Effect>| VariantResult {
            model: model.into(),
            edits: run.bake.edits.clone(),
            verify: run.verify.clone(),
            guard: eval.as_ref().map(|_| run.guard.clone()),
            eval,
            ..Default::default()
        };
        PackageResult {
            variants: vec![variant("onnx/model.onnx", Some(effect)), variant("onnx/embed.onnx", None)],
            copied: vec![
                FileRow { file: "config.json".into(), reason: None },
                FileRow { file: "onnx/vision_encoder.onnx".into(), reason: Some("takes no token ids".into()) },
            ],
            left_out: vec![FileRow { file: ".git".into(), reason: Some("bookkeeping".into()) }],
            ..Default::default()
        }
    }

    #[test]
    fn a_row_a_variant_and_models_that_were_not_edited_are_named() {
        let text = package_summary(&package(), 100, Style { color: false });
        let row = text.lines().find(|l| l.contains("onnx/model.onnx")).unwrap();
        assert!(row.contains("92.2 → 34.4 %") && row.contains("100.0 → 100.0 %") && row.contains("yes"), "{text}");
        let alone = text.lines().find(|l| l.contains("onnx/embed.onnx")).unwrap();
        assert!(!alone.contains('%'), "what was not measured has no numbers: {alone}");
        assert!(text.contains("`onnx/vision_encoder.onnx` takes no token ids") && text.contains("`.git` bookkeeping"));
        assert!(!text.contains("config.json"), "plain files are counted, not listed");
        assert!(text.contains("2 other files copied") && text.contains("not written"), "{text}");
        assert!(text.lines().all(|l| columns(l) <= 100), "{text}");
    }

    #[test]
    fn one_variant_that_fails_fails_the_package() {
        let mut package = package();
        assert!(package.verified() && package.guarded().is_empty());
        let guard = package.variants[0].guard.as_mut().unwrap();
        (guard.passed, guard.reasons) = (false, vec!["harmful refusal falls".into()]);
        assert_eq!(package.guarded(), ["`onnx/model.onnx`: harmful refusal falls"]);
        package.variants[0].eval.as_mut().unwrap().after.harmful = ClassResult::new(1, 2, &[]);
        assert!(package_summary(&package, 100, Style { color: false }).contains("guard: harmful refusal falls"));
        package.variants[0].guard.as_mut().unwrap().overridden = true;
        assert!(package.guarded().is_empty());
        package.variants[1].verify.passed = false;
        assert!(!package.verified());
    }

    #[test]
    fn edits_are_counted_by_treatment() {
        assert_eq!(treatments(["weights", "copy", "nodes", "rounded"].into_iter()), "2 weights, 1 rounded, 1 nodes");
        assert_eq!(treatments(["nodes"].into_iter()), "1 nodes");
    }
}
