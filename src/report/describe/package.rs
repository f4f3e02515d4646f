//! Packages: folders with several models, one direction for all.

use super::super::document::{Block, Column, Document, Facts, Look, Section, Table, Text};
use super::super::number::{MISSING, bytes, count, seconds, significant};
use super::super::{FileRow, PackageInspect, PackageResult, PackageVerify, VariantResult};
use super::change::{treatments, worst_leak};
use super::inspect::refusal;
use super::words::{or_missing, passed, rates};

/// What `lancet bake` did with a package: a row a variant.
#[must_use]
pub fn bake(package: &PackageResult) -> Document {
    let line = format!(
        "{} in {}; {} copied; {} in {}",
        count(package.n_edits, "edit"),
        count(package.variants.len(), "variant"),
        count(package.copied.len(), "other file"),
        bytes(package.bytes_written),
        seconds(package.seconds)
    );
    let output = match package.published {
        true => Text::of(Look::Path, &package.output),
        false => Text::from("not written"),
    };
    let section = variants(package).summary(Facts::default().summary("Baked", line).summary("Package", output));
    Document { sections: vec![section], ..Document::default() }
}

/// Every variant of a package within a run.
pub(super) fn variants(package: &PackageResult) -> Section {
    let complaints = package.variants.iter().flat_map(|variant| {
        let guard = variant.guard.iter().flat_map(|g| g.reasons.iter().map(|r| format!("guard: {r}")));
        variant.verify.failures.iter().cloned().chain(guard).map(|text| about(&variant.model, &text))
    });
    let section = Section::new("variants", "Every variant of the package").summary(table(&package.variants));
    files(section.summary(Block::List(complaints.collect())), &package.copied, &package.left_out)
}

fn table(variants: &[VariantResult]) -> Table {
    let measured = variants.iter().any(|v| v.eval.is_some());
    let mut columns = vec![
        Column::words("variant").shortened(),
        Column::words("weights").full(),
        Column::words("edits"),
        Column::numbers("leak").optional(),
        Column::words("verified"),
    ];
    if measured {
        columns.push(Column::words("guard").optional());
        columns.extend(["pseudo-harmful", "harmful", "harmless"].map(Column::numbers));
    }
    let rows = variants.iter().map(|v| {
        let mut row = vec![
            Text::from(&v.model),
            Text::from(&v.precision),
            Text::from(treatments(v.edits.iter().map(|e| e.treatment.as_str()))),
            Text::from(or_missing(worst_leak(&v.edits), |(_, leak)| significant(leak))),
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
    let models: Vec<&FileRow> = copied.iter().filter(|row| row.reason.is_some()).collect();
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

/// What is in a package: a row a variant.
#[must_use]
pub fn inspect(package: &PackageInspect) -> Document {
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
            true => Text::from(treatments(i.writers.iter().map(|w| w.treatment.as_str()))),
            false => Text::of(Look::Bad, "refused"),
        };
        let facts = [v.variant.clone(), bytes(i.file_bytes), v.precision.clone()];
        let facts = facts.into_iter().chain([number(i.n_layers), number(i.d_model)]);
        facts.map(Text::from).chain([edits]).collect::<Vec<_>>()
    });
    let section = Section::new("variants", "Variants").summary(Table::new("plain", "Variants", columns).with(rows));
    let refused = package.variants.iter().flat_map(|v| v.inspect.refusals.iter().map(move |r| (v, r)));
    let refused: Vec<Text> =
        refused.map(|(v, r)| Text::of(Look::Code, &v.variant).then(": ").join(refusal(r))).collect();
    let section = match refused.is_empty() {
        true => section,
        false => section.summary(Block::Heading(Text::of(Look::Bad, "Refused:"))).summary(Block::List(refused)),
    };
    let sections = vec![files(section, &package.copied, &package.left_out)];
    Document { subject: Text::of(Look::Path, &package.model), sections, ..Document::default() }
}

/// What `lancet verify` found in a package: a row a variant.
#[must_use]
pub fn verify(package: &PackageVerify) -> Document {
    let title = match package.passed {
        true => Text::of(Look::Good, "verified: every check of every variant passed"),
        false => Text::of(Look::Bad, "not verified"),
    };
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
    let failures = failures.chain(package.failures.iter().map(Text::from));
    let unchecked = package.variants.iter().flat_map(|v| {
        v.verify.unchecked.iter().map(|what| Text::of(Look::Code, &v.model).then(format!(", not checked: {what}")))
    });
    let section = Section::new("variants", "Variants")
        .summary(Table::new("plain", "Variants", columns).with(rows))
        .summary(Block::List(failures.chain(unchecked).collect()));
    Document { title, sections: vec![files(section, &package.copied, &package.left_out)], ..Document::default() }
}
