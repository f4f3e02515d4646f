//! The results of commands on a package: one variant is told in full, of several each has a row.

use super::super::document::{Block, Column, Document, Facts, Look, Section, Table, Text};
use super::super::number::{MISSING, bytes, count, seconds, significant};
use super::super::{
    BakeShared, FileKind, FileRow, PackageBake, PackageInspect, PackageVerify, PromptClass, VariantResult, VerifyResult,
};
use super::change::{self, treatments, worst_leak};
use super::inspect::{self, refusal};
use super::words::{or_missing, passed, rates};

/// What `lancet bake` did: one model in full, of several a row each.
#[must_use]
pub fn bake(result: &PackageBake) -> Document {
    let shared = &result.shared;
    let output = match shared.published {
        true => Text::of(Look::Path, &shared.output),
        false => Text::from("not written"),
    };
    if let ([only], true) = (result.variants.as_slice(), !measured(&result.variants)) {
        let sections = vec![files(change::written(&only.bake, output), &shared.copied, &shared.left_out)];
        return Document { sections, ..Document::default() };
    }
    let line = format!(
        "{} in {}; {} copied; {} in {}",
        count(result.n_edits(), "edit"),
        count(result.variants.len(), "variant"),
        count(shared.copied.len(), "other file"),
        bytes(shared.bytes_written),
        seconds(shared.seconds.values().sum())
    );
    let section = table_of_all(&result.variants, shared);
    let section = section.summary(Facts::default().summary("Baked", line).summary("Package", output));
    Document { sections: vec![section], ..Document::default() }
}

/// Every variant of a package within a run; `None` where there is one model and nothing else to tell of.
pub(super) fn variants(variants: &[VariantResult], shared: &BakeShared) -> Option<Section> {
    let others = shared.copied.iter().any(|row| row.kind == FileKind::OtherModel);
    let more = variants.len() > 1 || others || !shared.left_out.is_empty();
    more.then(|| table_of_all(variants, shared))
}

fn table_of_all(variants: &[VariantResult], shared: &BakeShared) -> Section {
    let complaints = variants.iter().flat_map(|variant| {
        let guard = variant.guard.iter().flat_map(|g| g.reasons.iter().map(|r| format!("guard: {r}")));
        variant.verify.failures.iter().cloned().chain(guard).map(|text| about(&variant.model, &text))
    });
    let section = Section::new("variants", "Every variant of the package").summary(table(variants));
    files(section.summary(Block::List(complaints.collect())), &shared.copied, &shared.left_out)
}

fn measured(variants: &[VariantResult]) -> bool {
    variants.iter().any(|v| v.eval.is_some())
}

fn table(variants: &[VariantResult]) -> Table {
    let measured = measured(variants);
    let mut columns = vec![
        Column::words("variant").shortened(),
        Column::words("weights").full(),
        Column::words("edits"),
        Column::numbers("leak").optional(),
        Column::words("verified"),
    ];
    if measured {
        columns.push(Column::words("guard").optional());
        columns.extend(PromptClass::OF_TABLES.map(|class| Column::numbers(class.word())));
    }
    let rows = variants.iter().map(|v| {
        let mut row = vec![
            Text::from(&v.model),
            Text::from(&v.precision),
            Text::from(treatments(v.bake.edits.iter().map(|e| e.treatment))),
            Text::from(or_missing(worst_leak(&v.bake.edits), |(_, leak)| significant(leak))),
            passed(v.verify.passed),
        ];
        if measured {
            row.push(v.guard.as_ref().map_or_else(|| Text::from(MISSING), |guard| passed(guard.passed)));
            row.extend([0, 1, 2].map(|class| match &v.eval {
                Some(eval) => rates(&[eval.before.rows()[class].1, eval.after.rows()[class].1]),
                None => Text::from(MISSING),
            }));
        }
        row
    });
    Table::new("variants", "Every variant", columns).with(rows)
}

/// A sentence about one of the variants.
fn about(variant: &str, text: &str) -> Text {
    Text::of(Look::Code, variant).then(format!(": {text}"))
}

/// Models that were copied and what was left out, a line each.
fn files(mut section: Section, copied: &[FileRow], left_out: &[FileRow]) -> Section {
    let models: Vec<&FileRow> = copied.iter().filter(|row| row.kind == FileKind::OtherModel).collect();
    for (title, rows) in [("Copied as they are:", models), ("Left out:", left_out.iter().collect())] {
        if !rows.is_empty() {
            let item = |row: &&FileRow| {
                Text::of(Look::Code, &row.file).then(" ").then(row.reason.as_deref().unwrap_or_default())
            };
            section = section
                .summary(Block::Heading(Text::from(title)))
                .summary(Block::List(rows.iter().map(item).collect()));
        }
    }
    section
}

/// What `lancet inspect` found: one model in full, of several a row each.
#[must_use]
pub fn inspect(package: &PackageInspect) -> Document {
    let shared = &package.shared;
    if let [only] = package.variants.as_slice() {
        let sections = vec![files(inspect::model(&only.inspect), &shared.copied, &shared.left_out)];
        return Document { subject: Text::of(Look::Path, &only.inspect.model), sections, ..Document::default() };
    }
    let number = |n: usize| if n == 0 { MISSING.to_owned() } else { n.to_string() };
    let columns = [
        Column::words("variant").shortened(),
        Column::numbers("size"),
        Column::words("weights"),
        Column::numbers("layers"),
        Column::numbers("d_model"),
        Column::words("edits"),
    ];
    let rows = package.variants.iter().map(|v| {
        let i = &v.inspect;
        let edits = match i.refusals.is_empty() {
            true => Text::from(treatments(i.writers.iter().map(|w| w.treatment))),
            false => Text::of(Look::Bad, "refused"),
        };
        let facts = [v.model.clone(), bytes(i.file_bytes), v.precision.clone()];
        let facts = facts.into_iter().chain([number(i.n_layers), number(i.d_model)]);
        facts.map(Text::from).chain([edits]).collect::<Vec<_>>()
    });
    let section = Section::new("variants", "Variants").summary(Table::new("plain", "Variants", columns).with(rows));
    let refused = package.variants.iter().flat_map(|v| v.inspect.refusals.iter().map(move |r| (v, r)));
    let refused: Vec<Text> = refused.map(|(v, r)| Text::of(Look::Code, &v.model).then(": ").join(refusal(r))).collect();
    let section = match refused.is_empty() {
        true => section,
        false => section.summary(Block::Heading(Text::of(Look::Bad, "Refused:"))).summary(Block::List(refused)),
    };
    let sections = vec![files(section, &shared.copied, &shared.left_out)];
    Document { subject: Text::of(Look::Path, &shared.model), sections, ..Document::default() }
}

/// What `lancet verify` found: one model in full, of several a row each.
#[must_use]
pub fn verify(package: &PackageVerify) -> Document {
    let shared = &package.shared;
    let failures = package.failures();
    let title = match (shared.passed, package.variants.len()) {
        (true, 0 | 1) => Text::of(Look::Good, "verified: every check passed"),
        (true, _) => Text::of(Look::Good, "verified: every check of every variant passed"),
        (false, 0 | 1) => {
            Text::of(Look::Bad, format!("not verified: {} failed", count(failures.len().max(1), "check")))
        }
        (false, _) => Text::of(Look::Bad, "not verified"),
    };
    if let ([only], true) = (package.variants.as_slice(), shared.left_out.is_empty()) {
        let found = VerifyResult { failures, ..only.verify.clone() };
        let sections = vec![files(change::verification(&found), &shared.copied, &shared.left_out)];
        return Document { title, sections, ..Document::default() };
    }
    let columns = [
        Column::words("variant").shortened(),
        Column::numbers("bytes outside the plan"),
        Column::numbers("logit difference"),
        Column::numbers("allowed"),
        Column::numbers("leak"),
        Column::words("verified"),
    ];
    let rows = package.variants.iter().map(|v| {
        let found = &v.verify;
        let numbers = [found.max_abs_logit_diff, found.allowed(), found.max_stream_leak].map(significant);
        let facts = [v.model.clone(), found.changed_bytes_outside_plan.to_string()];
        facts.into_iter().chain(numbers).map(Text::from).chain([passed(found.passed)]).collect::<Vec<_>>()
    });
    let failures = package.variants.iter().flat_map(|v| v.verify.failures.iter().map(|f| about(&v.model, f)));
    let failures = failures.chain(shared.failures.iter().map(Text::from));
    let unchecked = package.variants.iter().flat_map(|v| {
        v.verify.unchecked.iter().map(|what| Text::of(Look::Code, &v.model).then(format!(", not checked: {what}")))
    });
    let section = Section::new("variants", "Variants")
        .summary(Table::new("plain", "Variants", columns).with(rows))
        .summary(Block::List(failures.chain(unchecked).collect()));
    Document { title, sections: vec![files(section, &shared.copied, &shared.left_out)], ..Document::default() }
}
