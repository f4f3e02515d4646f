//! The terminal text of what was measured: outcomes, conditions, ability, cost, the guard's checks.

use super::html::measured;
use super::layout::{Cell, Style, Tone, columns, fact, plain, shorten, single_line, table};
use super::number::{MISSING, bytes, count, percent, significant};
use super::{
    ClassResult, ClassTable, Condition, Cost, EvalResult, GuardResult, Interval, OneCondition, Outcomes, SetRow,
};

/// `92.2 → 28.1 %`.
fn change(before: f64, after: f64) -> String {
    format!("{} → {}", percent(before).trim_end_matches(" %"), percent(after))
}

/// ` (0.0068 to 0.0112)`, or nothing.
pub(super) fn between(interval: Option<Interval>, write: impl Fn(f64) -> String) -> String {
    let known = interval.filter(|i| i.low.is_finite() && i.high.is_finite());
    known.map_or_else(String::new, |i| format!(" ({} to {})", write(i.low), write(i.high)))
}

/// A table without the last columns that do not fit into `width`.
pub(super) fn fitted(
    out: &mut String,
    style: Style,
    width: usize,
    header: &[&str],
    right: &[bool],
    rows: &[Vec<Cell>],
) {
    let widest = |i: usize| {
        rows.iter().filter_map(|r| r.get(i)).map(|c| columns(&c.0)).max().unwrap_or(0).max(columns(header[i])) + 2
    };
    let mut used = 0;
    let n = (0..header.len())
        .take_while(|i| {
            used += widest(*i);
            *i < 2 || used <= width
        })
        .count();
    let rows: Vec<Vec<Cell>> = rows.iter().map(|r| r.iter().take(n).cloned().collect()).collect();
    table(out, style, &header[..n], &right[..n], &rows);
}

/// Outcomes by the rules, and what the published rule says: a row a class; nothing where there are none.
pub(super) fn outcomes(out: &mut String, style: Style, width: usize, before: &ClassTable, after: Option<&ClassTable>) {
    type Column = (&'static str, fn(&Outcomes) -> usize);
    const NAMES: [Column; 5] = [
        ("complied", |o| o.complied),
        ("partly", |o| o.partly),
        ("refused", |o| o.refused),
        ("empty", |o| o.empty),
        ("degenerate", |o| o.degenerate),
    ];
    let tables: Vec<&ClassTable> = std::iter::once(before).chain(after).collect();
    let results = || tables.iter().flat_map(|t| t.rows()).map(|(_, r)| r);
    let found: Vec<_> = NAMES.iter().filter(|(_, of)| results().any(|r| of(&r.outcomes) > 0)).collect();
    if found.is_empty() {
        return;
    }
    let judged = results().any(|r| r.judge.is_some());
    let both = |class: usize, of: &dyn Fn(&ClassResult) -> String| {
        let all: Vec<String> = tables.iter().map(|t| of(t.rows()[class].1)).collect();
        plain(all.join(" → "))
    };
    let rows: Vec<Vec<Cell>> = (0..3)
        .map(|class| {
            let mut row = vec![plain(super::class_label(before.rows()[class].0))];
            row.extend(found.iter().map(|(_, of)| both(class, &|r| of(&r.outcomes).to_string())));
            if judged {
                row.push(both(class, &|r| {
                    r.judge.map_or_else(|| MISSING.into(), |j| (j.refused + j.partly).to_string())
                }));
            }
            row.push(both(class, &|r| r.substring_refused.to_string()));
            row
        })
        .collect();
    let mut header = vec![""];
    header.extend(found.iter().map(|(name, _)| *name));
    if judged {
        header.push("judge: refused");
    }
    header.push("substring rule");
    let right: Vec<bool> = (0..header.len()).map(|i| i > 0).collect();
    out.push('\n');
    fitted(out, style, width, &header, &right, &rows);
}

/// Refusal rates a condition; several wrappers as one row, with the one that lost most true refusal under it.
pub(super) fn conditions(out: &mut String, style: Style, width: usize, all: &[Condition]) {
    if all.is_empty() {
        return;
    }
    let cell = |row: Option<&SetRow>| match row {
        Some(r) => plain(change(r.before.refusal_rate, r.after.refusal_rate)),
        None => plain(MISSING),
    };
    let classes = ["pseudo_harmful", "harmful", "harmless"];
    let line = |name: &str, c: &Condition| {
        let mut row = vec![plain(shorten(&single_line(name), 32))];
        row.extend(classes.iter().map(|class| cell(c.rows.iter().find(|r| r.class == *class))));
        row
    };
    let (wrapped, others): (Vec<&Condition>, Vec<&Condition>) = all.iter().partition(|c| c.setup.wrapper.is_some());
    let mut rows: Vec<Vec<Cell>> = others.iter().map(|c| line(&c.name, c)).collect();
    if wrapped.len() > 3 {
        let pooled: Vec<SetRow> = classes
            .iter()
            .filter_map(|class| {
                let own: Vec<&SetRow> = wrapped.iter().flat_map(|c| &c.rows).filter(|r| r.class == *class).collect();
                let sum = |pick: fn(&SetRow) -> &ClassResult| {
                    let refused = own.iter().map(|r| pick(r).refused).sum();
                    ClassResult::new(refused, own.iter().map(|r| pick(r).total).sum(), &[])
                };
                let row = SetRow { class: (*class).into(), before: sum(|r| &r.before), after: sum(|r| &r.after) };
                (!own.is_empty()).then_some(row)
            })
            .collect();
        let pooled = Condition { rows: pooled, ..Condition::default() };
        rows.push(line(&format!("inside {}", count(wrapped.len(), "wrapper")), &pooled));
        let lost = |c: &Condition| {
            let row = c.rows.iter().find(|r| r.class == "harmful");
            row.map_or(f64::NEG_INFINITY, |r| r.before.refusal_rate - r.after.refusal_rate)
        };
        if let Some(worst) = wrapped.iter().max_by(|a, b| lost(a).total_cmp(&lost(b))) {
            rows.push(line(&format!("  most in {}", worst.setup.wrapper.as_deref().unwrap_or_default()), worst));
        }
    } else {
        rows.extend(wrapped.iter().map(|c| line(&c.name, c)));
    }
    out.push('\n');
    let header = ["refused", "pseudo-harmful", "harmful", "harmless"];
    fitted(out, style, width, &header, &[false, true, true, true], &rows);
}

/// The further conditions of one model alone, a line each.
pub(super) fn one_model(out: &mut String, style: Style, width: usize, all: &[OneCondition]) {
    if all.is_empty() {
        return;
    }
    let cell = |condition: &OneCondition, class: &str| {
        let row = condition.rows.iter().find(|r| r.class == class);
        plain(row.map_or_else(|| MISSING.to_owned(), |r| percent(r.result.refusal_rate)))
    };
    let line = |c: &OneCondition| {
        let classes = ["pseudo_harmful", "harmful", "harmless"];
        let name = plain(shorten(&single_line(&c.name), 32));
        std::iter::once(name).chain(classes.map(|class| cell(c, class))).collect::<Vec<Cell>>()
    };
    let rows: Vec<Vec<Cell>> = all.iter().map(line).collect();
    out.push('\n');
    let header = ["refused", "pseudo-harmful", "harmful", "harmless"];
    fitted(out, style, width, &header, &[false, true, true, true], &rows);
}

/// KL, perplexity, multiple choice, a line each.
pub(super) fn ability(out: &mut String, width: usize, eval: &EvalResult) {
    let interval = between(eval.harmless_kl_interval, significant);
    let mut lines =
        vec![format!("harmless KL {} nats at the first response position{interval}", significant(eval.harmless_kl))];
    if let Some(both) = &eval.perplexity {
        let (before, after) = (significant(both.before.perplexity), significant(both.after.perplexity));
        lines.push(format!("perplexity {before} → {after}{}", between(both.after.interval, significant)));
    }
    if let Some(both) = &eval.multiple_choice {
        let (before, after) = (percent(both.before.accuracy), percent(both.after.accuracy));
        lines.push(format!("multiple choice {before} → {after}{}", between(both.after.interval, percent)));
    }
    out.push('\n');
    for line in lines {
        out.push_str(&format!("  {}\n", shorten(&line, width.saturating_sub(2))));
    }
}

/// Size, memory and latency as facts.
pub(super) fn cost(out: &mut String, style: Style, width: usize, cost: &Cost) {
    let mut parts = vec![format!("file {} → {}", bytes(cost.file_bytes.before), bytes(cost.file_bytes.after))];
    if let (Some(before), Some(after)) = (cost.memory_bytes.before, cost.memory_bytes.after) {
        parts.push(format!("memory {} → {}", bytes(before), bytes(after)));
    }
    let three = |v: f64| if v.is_finite() { format!("{v:.3}") } else { MISSING.into() };
    parts.extend(
        cost.latencies.iter().map(|l| {
            format!("{} x{} ({} to {})", l.name, three(l.ratio.median), three(l.ratio.low), three(l.ratio.high))
        }),
    );
    fact(out, style, width, "Cost", &parts.join("; "));
}

/// Every limit of the guard; nothing where the result holds none.
pub(super) fn checks(out: &mut String, style: Style, width: usize, guard: &GuardResult) {
    if guard.checks.is_empty() {
        return;
    }
    let rows: Vec<Vec<Cell>> = guard
        .telling()
        .into_iter()
        .map(|c| {
            vec![
                plain(shorten(&single_line(&c.name), 32)),
                if c.passed { ("passed".to_owned(), Tone::Good) } else { ("FAILED".to_owned(), Tone::Bad) },
                plain(measured(c, c.value)),
                plain(measured(c, c.bound)),
                plain(measured(c, Some(c.limit))),
            ]
        })
        .collect();
    let header = ["limit on", "", "measured", "confidence bound", "limit"];
    out.push('\n');
    fitted(out, style, width, &header, &[false, false, true, true, true], &rows);
}
