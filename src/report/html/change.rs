//! What was changed in the files: proof, every edit, every variant of a package.

use super::super::number::{MISSING, bytes, count, percent, setting, shape, significant};
use super::super::package::treatments;
use super::super::text::{rounding_line, worst_leak};
use super::super::{EditRow, RunResult};
use super::escape;
use super::parts::{facts, fold, items, passed, section, table};

/// Every variant of the package, with what the direction did to it.
pub(super) fn variants(run: &RunResult) -> String {
    let Some(package) = &run.package else { return String::new() };
    let rows: Vec<Vec<String>> = package
        .variants
        .iter()
        .map(|v| {
            let mut row = vec![
                format!("<code>{}</code> <span class=\"small\">{}</span>", escape(&v.model), escape(&v.precision)),
                escape(&treatments(v.edits.iter().map(|e| e.treatment.as_str()))),
                worst_leak(&v.edits).map_or_else(|| MISSING.to_owned(), |(_, leak)| significant(leak)),
                passed(v.verify.passed),
                v.guard.as_ref().map_or_else(|| MISSING.to_owned(), |g| passed(g.passed)),
            ];
            match &v.eval {
                Some(eval) => row.extend(eval.before.rows().iter().zip(eval.after.rows()).map(|((_, a), (_, b))| {
                    format!("<span class=\"whole\">{} → {}</span>", percent(a.refusal_rate), percent(b.refusal_rate))
                })),
                None => row.extend((0..3).map(|_| MISSING.to_owned())),
            }
            row
        })
        .collect();
    let header = [
        ("variant", false),
        ("edits", false),
        ("largest leak", true),
        ("verified", false),
        ("guard", false),
        ("pseudo-harmful refused", true),
        ("harmful refused", true),
        ("harmless refused", true),
    ];
    let mut out = table("variants", "Every variant", &header, &rows);
    let named = package.copied.iter().filter(|row| row.reason.is_some()).map(|row| ("copied", row));
    let files: Vec<String> = named
        .chain(package.left_out.iter().map(|row| ("left out", row)))
        .map(|(what, row)| {
            let reason = row.reason.as_deref().unwrap_or_default();
            format!("<code>{}</code> {what}: {}", escape(&row.file), escape(reason))
        })
        .collect();
    if !files.is_empty() {
        out.push_str(&items(&files));
    }
    section("variants", "Every variant of the package", &out)
}

pub(super) fn change(run: &RunResult) -> String {
    let (bake, verify) = (&run.bake, &run.verify);
    let with = |t: &str| bake.edits.iter().filter(|e| e.treatment == t).count();
    let others = bake.edits.len() - with("nodes") - with("rounded");
    let edited: Vec<String> = [
        (others, "tensor", ""),
        (with("rounded"), "quantised tensor", " rounded on the grid of the scales"),
        (with("nodes"), "write", " projected by inserted standard ONNX operators"),
    ]
    .into_iter()
    .filter(|(n, _, how)| *n > 0 || how.is_empty() && bake.edits.is_empty())
    .map(|(n, what, how)| format!("{}{how}", count(n, what)))
    .collect();
    let bound = verify.allowed().map(|b| format!(", at most {} allowed", setting(b))).unwrap_or_default();
    let mut rows = vec![
        ("Edited", format!("{}; {} written", edited.join("; "), bytes(bake.bytes_written))),
        ("Bytes changed elsewhere", verify.changed_bytes_outside_plan.to_string()),
        (
            "Logits",
            format!(
                "within {} of run-time ablation{bound}; KL {}; {}",
                significant(verify.max_abs_logit_diff),
                significant(verify.kl),
                count(verify.n_prompts, "prompt")
            ),
        ),
        (
            "Leak in the stream",
            format!(
                "{} <span class=\"small\">largest share of the residual stream that still lies along the direction</span>",
                significant(verify.max_stream_leak)
            ),
        ),
    ];
    if let Some(line) = rounding_line(&bake.edits) {
        rows.push(("Rounding", line));
    }
    if let Some((edit, leak)) = worst_leak(&bake.edits) {
        rows.push((
            "Leak in a tensor",
            format!(
                "at most {} (was {}), in <code>{}</code>",
                significant(leak),
                significant(edit.leak_before),
                escape(&edit.initializer)
            ),
        ));
    }
    let mut out = if verify.passed {
        "<p>Every check passed.</p>\n".to_owned()
    } else {
        let failures: Vec<String> = verify.failures.iter().map(|f| escape(f)).collect();
        format!(
            "<p class=\"failed\">Verification failed.</p>\n{}",
            if failures.is_empty() { String::new() } else { items(&failures) }
        )
    };
    out.push_str(&facts(&rows));
    if !bake.edits.is_empty() {
        out.push_str(&fold(&format!("All {}", count(bake.edits.len(), "edit")), &edits(&bake.edits)));
    }
    section("change", "What changed in the model", &out)
}

/// Every edit with what it left of the direction; columns on rounding where a quantised tensor was edited.
fn edits(all: &[EditRow]) -> String {
    let quantised = all.iter().any(|e| e.quantisation.is_some() || e.leak_nearest.is_some());
    let text = |text: &Option<String>| text.as_deref().map_or_else(|| MISSING.into(), escape);
    let hash = |h: &Option<String>| {
        h.as_ref().map_or_else(|| MISSING.into(), |h| format!("<code>{}</code>", escape(h.get(..12).unwrap_or(h))))
    };
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|e| {
            let reason = e.reason.as_ref().map(|r| format!(" <span class=\"small words\">{}</span>", escape(r)));
            let mut row = vec![
                format!("<code>{}</code>", escape(&e.initializer)),
                e.layer.map_or_else(|| MISSING.into(), |l| l.to_string()),
                escape(&e.kind),
                format!("{}{}", escape(&e.treatment), reason.unwrap_or_default()),
                text(&e.dtype),
                shape(e.shape.as_deref()),
                significant(e.leak_before),
                significant(e.leak_after),
            ];
            if quantised {
                row.push(significant(e.leak_nearest));
            }
            row.push(significant(e.max_abs_delta));
            if quantised {
                row.extend([
                    text(&e.quantisation),
                    significant(e.error),
                    significant(e.error_nearest),
                    significant(e.grid_noise),
                    significant(e.max_levels),
                    e.grown_scales.map_or_else(|| MISSING.into(), |n| n.to_string()),
                ]);
            }
            row.extend([hash(&e.sha256_before), hash(&e.sha256_after)]);
            row
        })
        .collect();
    let mut header = vec![
        ("tensor", false),
        ("layer", true),
        ("writer", false),
        ("treatment", false),
        ("dtype", false),
        ("shape", true),
        ("leak before", true),
        ("leak after", true),
    ];
    if quantised {
        header.push(("leak, to nearest", true));
    }
    header.push(("largest change", true));
    if quantised {
        header.extend([
            ("quantised as", false),
            ("error", true),
            ("error, to nearest", true),
            ("grid noise", true),
            ("levels moved", true),
            ("scales grown", true),
        ]);
    }
    header.extend([("SHA-256 before", false), ("SHA-256 after", false)]);
    table("edits", "Edits", &header, &rows)
}
