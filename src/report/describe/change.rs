//! What was changed in a model's files, and the proof of it.

use super::super::document::{Block, Column, Facts, Look, Section, Table, Text};
use super::super::number::{MISSING, bytes, count, seconds, shape, significant};
use super::super::{BakeResult, EditResult, Reason, StreamProof, Treatment, VerifyResult};
use super::words::or_missing;

/// What was written for one model, and where it is.
pub(super) fn written(bake: &BakeResult, output: Text) -> Section {
    let facts = by_nodes(edited(Facts::default(), bake), &bake.edits).summary("Model", output);
    Section::new("change", "What changed").summary(facts)
}

/// What the verification of one model found.
pub(super) fn verification(verify: &VerifyResult) -> Section {
    let section = Section::new("verification", "Verification").summary(checks(verify));
    section.summary(Block::List(remarks(verify).collect()))
}

/// Edits and their proof within a run.
pub(super) fn change(bake: &BakeResult, verify: &VerifyResult) -> Section {
    let section = Section::new("change", "What changed in the model")
        .summary(edited(Facts::default(), bake).summary("Verified", verified(verify)))
        .summary(Block::List(remarks(verify).collect()))
        .full(checks(verify));
    if bake.edits.is_empty() {
        return section;
    }
    section.full(Block::folded(format!("All {}", count(bake.edits.len(), "edit")), edits(&bake.edits)))
}

/// Whether every check passed, with the numbers that tell most.
fn verified(verify: &VerifyResult) -> Text {
    let outcome = super::words::passed(verify.passed);
    let mut parts = vec![match verify.changed_bytes_outside_plan {
        0 => "no byte changed outside the plan".to_owned(),
        n => format!("{n} bytes changed outside the plan"),
    }];
    if let Some(difference) = verify.max_abs_logit_diff {
        let bound = verify.allowed().map(|b| format!(" (bound {})", significant(b))).unwrap_or_default();
        let prompts = count(verify.n_prompts, "prompt");
        let why = if verify.inexact.is_empty() { "" } else { ", as weights are not exact" };
        parts.push(format!("logits within {} of run-time ablation{bound} on {prompts}{why}", significant(difference)));
    }
    if let Some(leak) = verify.max_stream_leak {
        parts.push(format!("largest leak in the stream {}", significant(leak)));
    }
    outcome.then(format!(": {}", parts.join("; ")))
}

/// Each check with its number.
fn checks(verify: &VerifyResult) -> Table {
    let bound = match (verify.bound, verify.inexact.is_empty()) {
        (Some(bound), true) => format!("at most {}", significant(bound)),
        (Some(_), false) => "not exact".to_owned(),
        (None, _) => String::new(),
    };
    let none = String::new;
    let mut rows = vec![
        ("bytes changed outside the plan", verify.changed_bytes_outside_plan.to_string(), "0".to_owned()),
        ("largest logit difference from run-time ablation", significant(verify.max_abs_logit_diff), bound),
        ("mean KL from run-time ablation, nats", significant(verify.kl), none()),
        ("largest leak in the residual stream", significant(verify.max_stream_leak), none()),
        ("prompts compared", verify.n_prompts.to_string(), none()),
    ];
    if let Some(stream) = &verify.stream {
        let probed = |s: &StreamProof| format!("{}, {}", count(s.probes, "place"), count(s.positions, "position"));
        rows.push(("share of the direction in what norms read, base", significant(stream.share_before), none()));
        rows.push(("the same, output", significant(stream.share_after), probed(stream)));
    }
    let columns = [Column::words("check").shortened(), Column::numbers("measured"), Column::numbers("allowed")];
    let rows = rows.into_iter().map(|(check, value, allowed)| [check.to_owned(), value, allowed].map(Text::from));
    Table::new("verification", "Checks of the verification", columns).with(rows)
}

/// What is not exact, what failed, what was not checked.
fn remarks(verify: &VerifyResult) -> impl Iterator<Item = Text> {
    let inexact = verify.inexact.first().map(|first| {
        let more = verify.inexact.len() - 1;
        let others = if more == 0 { String::new() } else { format!(" and {}", count(more, "more tensor")) };
        Text::of(Look::Code, first).then(format!(
            "{others}: rounded, or edited behind a norm, which is not exact; the differences in logits are the cost"
        ))
    });
    let failures = verify.failures.iter().map(Text::from);
    let unchecked = verify.unchecked.iter().map(|what| Text::from(format!("not checked: {what}")));
    inexact.into_iter().chain(failures).chain(unchecked)
}

/// Edits by what they are: `13 weights`, `5 weights, 8 rounded`, `1 weights, 12 nodes`.
pub(super) fn treatments(all: impl Iterator<Item = Treatment>) -> String {
    let mut counts = [(Treatment::Weights, 0), (Treatment::Rounded, 0), (Treatment::Nodes, 0)];
    for treatment in all {
        let at = match treatment {
            Treatment::Nodes => 2,
            Treatment::Rounded => 1,
            Treatment::Weights | Treatment::Copy | Treatment::Turned | Treatment::TurnedCopy | Treatment::Elsewhere => {
                0
            }
        };
        counts[at].1 += 1;
    }
    counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", ")
}

/// How many tensors were edited in which way, and what that left of the direction.
fn edited(facts: Facts, bake: &BakeResult) -> Facts {
    let with = |treatment| bake.edits.iter().filter(|e| e.treatment == treatment).count();
    let (weights, rounded, nodes) = (with(Treatment::Weights), with(Treatment::Rounded), with(Treatment::Nodes));
    let copies = with(Treatment::Copy) + with(Treatment::TurnedCopy);
    let turned = with(Treatment::Turned) + with(Treatment::TurnedCopy);
    let others = bake.edits.len() - weights - rounded - nodes - copies - with(Treatment::Turned);
    let grid = if rounded == 1 { "rounded to its own grid" } else { "rounded to their own grid" };
    let ways = [
        (weights, "tensor", "edited"),
        (rounded, "quantised tensor", grid),
        (nodes, "write", "projected by inserted nodes"),
        (copies, "shared tensor", "edited in a copy"),
        (turned, "tensor", "edited through a norm, which is not exact"),
        (others, "edit", "otherwise"),
        (bake.gated.len(), "gated term", "inserted as nodes"),
    ];
    let nothing = bake.edits.is_empty() && bake.gated.is_empty();
    let ways = ways.into_iter().enumerate().filter(|(i, (n, ..))| *n > 0 || nothing && *i == 0);
    let ways: Vec<String> =
        ways.map(|(_, way)| way).map(|(n, what, how)| format!("{} {how}", count(n, what))).collect();
    let line = format!("{}; {} written in {}", ways.join(", "), bytes(bake.bytes_written), seconds(bake.seconds));
    let mut facts = facts.summary("Baked", line);
    for gated in &bake.gated {
        let line = Text::from(format!("layer {}, at ", gated.layer)).code(&gated.target);
        facts = facts.summary("Gated term", line);
    }
    if let Some((edit, leak)) = worst_leak(&bake.edits) {
        let line = format!("at most {} left (was {}), in ", significant(leak), significant(edit.leak_before));
        facts = facts.summary("Leak", Text::from(line).code(&edit.initializer));
    }
    match rounding(&bake.edits) {
        Some(line) => facts.summary("Rounding", line),
        None => facts,
    }
}

/// What rounding quantised weights left and cost at most, beside rounding them to nearest.
fn rounding(edits: &[EditResult]) -> Option<String> {
    let share = |leak: fn(&EditResult) -> Option<f64>| {
        let shares = edits.iter().filter(|e| e.rounding.is_some()).filter_map(move |e| Some(leak(e)? / e.leak_before?));
        shares.filter(|share| share.is_finite()).max_by(f64::total_cmp)
    };
    let rounded = edits.iter().filter_map(|e| e.rounding.as_ref());
    let ratio = rounded.map(|r| r.error / r.error_nearest).filter(|r| r.is_finite());
    let ratio = ratio.max_by(f64::total_cmp);
    Some(format!(
        "leaves {:.2} % of the component at most (to nearest: {:.0} %), error x{:.2} of nearest rounding at most",
        100.0 * share(|e| e.leak_after)?,
        100.0 * share(|e| e.rounding.map(|r| r.leak_nearest))?,
        ratio?
    ))
}

/// The edit that leaves most of the direction, with what it leaves.
pub(super) fn worst_leak(edits: &[EditResult]) -> Option<(&EditResult, f64)> {
    edits.iter().filter_map(|e| e.leak_after.map(|leak| (e, leak))).max_by(|a, b| a.1.total_cmp(&b.1))
}

/// Quantised writers by nodes that the summary of a bake names.
const NODES_TOLD: usize = 6;

fn by_nodes(facts: Facts, edits: &[EditResult]) -> Facts {
    let of_quantised =
        |e: &&EditResult| e.treatment == Treatment::Nodes && e.reason.as_ref().is_some_and(Reason::is_quantised);
    let all: Vec<&EditResult> = edits.iter().filter(of_quantised).collect();
    let told = all.iter().take(NODES_TOLD).fold(facts, |facts, edit| {
        let reason = edit.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        facts.summary("By nodes", Text::of(Look::Code, &edit.writer).then(reason))
    });
    match all.len().checked_sub(NODES_TOLD) {
        Some(more @ 1..) => told.summary("By nodes", format!("{more} more; `--json` tells all")),
        _ => told,
    }
}

/// What an edit table says of an edit in one column.
type Cell = fn(&EditResult) -> Text;

/// Every edit with what it left of the direction; columns on rounding where a quantised tensor was edited.
fn edits(all: &[EditResult]) -> Table {
    fn text(text: &Option<String>) -> Text {
        Text::from(text.as_deref().unwrap_or(MISSING))
    }
    fn hash(hash: &Option<String>) -> Text {
        hash.as_deref().map_or_else(|| Text::from(MISSING), |h| Text::of(Look::Code, h.get(..12).unwrap_or(h)))
    }
    fn number(value: Option<f64>) -> Text {
        Text::from(significant(value))
    }
    let quantised = all.iter().any(|e| e.quantisation.is_some() || e.rounding.is_some());
    let (words, numbers) = (Column::words as fn(&'static str) -> Column, Column::numbers as fn(&'static str) -> Column);
    // the title, how it is aligned, whether it is about rounding, what it says
    type Told = (&'static str, fn(&'static str) -> Column, bool, Cell);
    let columns: [Told; 18] = [
        ("tensor", words, false, |e| Text::of(Look::Code, &e.initializer)),
        ("layer", numbers, false, |e| Text::from(or_missing(e.layer, |l| l.0.to_string()))),
        ("writer", words, false, |e| Text::from(e.kind.name())),
        ("treatment", words, false, |e| {
            Text::from(e.treatment.words()).aside(e.reason.as_ref().map(Reason::to_string).unwrap_or_default())
        }),
        ("dtype", words, false, |e| Text::from(e.dtype.name())),
        ("shape", numbers, false, |e| Text::from(shape(e.shape.as_deref()))),
        ("leak before", numbers, false, |e| number(e.leak_before)),
        ("leak after", numbers, false, |e| number(e.leak_after)),
        ("leak, to nearest", numbers, true, |e| number(e.rounding.map(|r| r.leak_nearest))),
        ("largest change", numbers, false, |e| number(e.max_abs_delta)),
        ("quantised as", words, true, |e| text(&e.quantisation)),
        ("error", numbers, true, |e| number(e.rounding.map(|r| r.error))),
        ("error, to nearest", numbers, true, |e| number(e.rounding.map(|r| r.error_nearest))),
        ("grid noise", numbers, true, |e| number(e.rounding.map(|r| r.grid_noise))),
        ("levels moved", numbers, true, |e| number(e.rounding.map(|r| r.max_levels))),
        ("scales grown", numbers, true, |e| Text::from(or_missing(e.rounding, |r| r.grown_scales.to_string()))),
        ("SHA-256 before", words, false, |e| hash(&e.sha256_before)),
        ("SHA-256 after", words, false, |e| hash(&e.sha256_after)),
    ];
    let shown: Vec<Told> = columns.into_iter().filter(|(_, _, rounding, _)| quantised || !rounding).collect();
    let titles = shown.iter().map(|(title, column, ..)| column(title));
    let rows = all.iter().map(|edit| shown.iter().map(|(.., cell)| cell(edit)).collect::<Vec<_>>());
    Table::new("edits", "Edits", titles).with(rows)
}
