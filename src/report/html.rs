//! The report as one self-contained HTML page: no network, no script; filters and folds are CSS and HTML.
//!
//! Prompts, answers and names come from strangers: every piece of text passes [`escape`], and the page's
//! content security policy would run no script even if one got through.

use super::heat_map::heat_map;
use super::layout::is_unsafe;
use super::number::{MISSING, bytes, count, measured, percent, score, seconds, setting, shape, significant};
use super::package::treatments;
use super::text::{position_token, rounding_line, worst_leak};
use super::{AnswerPair, ClassResult, GuardResult, RunResult, SelectResult, Verdict, class_label};

/// Text as HTML, in content and in quoted attributes: markup is escaped; control characters other than line
/// breaks and tabs, and characters that change the direction of what follows, become `�`.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if is_unsafe(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The report of a run.
#[must_use]
pub fn html(run: &RunResult) -> String {
    let verdict = run.verdict();
    let tone = match verdict {
        Verdict::Published => "good",
        Verdict::Overridden => "doubtful",
        Verdict::GuardRefused | Verdict::NotVerified => "bad",
    };
    let body = [
        classes(run),
        variants(run),
        answers(run),
        direction(&run.select),
        change(run),
        guard(&run.guard),
        provenance(run),
        limits(run),
    ]
    .concat();
    format!(
        include_str!("report.html"),
        title = escape(&format!("Lancet: {}", run.headline())),
        css = include_str!("report.css"),
        tone = tone,
        headline = headline(run),
        model = escape(&run.inspect.model),
        body = body,
        version = escape(&run.provenance.lancet_version),
    )
}

/// [`RunResult::headline`], the verdict on its own line.
fn headline(run: &RunResult) -> String {
    let text = run.headline();
    let (what, verdict) = text.rsplit_once("; ").unwrap_or(("", &text));
    let mut verdict = verdict.to_owned();
    if let Some(first) = verdict.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let what = what.replacen("false", "False", 1).replace(" %", "\u{a0}%");
    let what: Vec<String> = what
        .split("; ")
        .map(|part| match part.split_once("refusal ") {
            Some((kind, change)) => format!("{kind}refusal <span class=\"whole\">{}</span>", escape(change)),
            None => escape(part),
        })
        .collect();
    format!("<span class=\"verdict\">{}</span> {}", escape(&verdict), what.join("; "))
}

/// A section with its heading.
fn section(id: &str, title: &str, content: &str) -> String {
    format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>\n{content}</section>\n")
}

/// A table that scrolls in its own box; header and cells are HTML.
fn table(class_name: &str, label: &str, header: &[(&str, bool)], rows: &[Vec<String>]) -> String {
    let class = |right: bool| if right { " class=\"n\"" } else { "" };
    let head: String =
        header.iter().map(|(text, right)| format!("<th scope=\"col\"{}>{text}</th>", class(*right))).collect();
    let mut out = format!(
        "<div class=\"scroll\" role=\"region\" aria-label=\"{label}\" tabindex=\"0\">\n<table class=\"{class_name}\">\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
    );
    for row in rows {
        out.push_str("<tr>");
        for (i, (cell, (_, right))) in row.iter().zip(header).enumerate() {
            out.push_str(&match i {
                0 => format!("<th scope=\"row\"{}>{cell}</th>", class(*right)),
                _ => format!("<td{}>{cell}</td>", class(*right)),
            });
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
    out
}

/// A list of facts; the values are HTML.
fn facts(rows: &[(&str, String)]) -> String {
    let rows: String = rows.iter().map(|(k, v)| format!("<dt>{k}</dt><dd>{v}</dd>\n")).collect();
    format!("<dl>\n{rows}</dl>\n")
}

fn fold(summary: &str, content: &str) -> String {
    format!("<details class=\"fold\">\n<summary>{summary}</summary>\n{content}</details>\n")
}

fn items(all: &[String]) -> String {
    let all: String = all.iter().map(|i| format!("<li>{i}</li>\n")).collect();
    format!("<ul>\n{all}</ul>\n")
}

fn classes(run: &RunResult) -> String {
    let cell = |r: &ClassResult| {
        let width = if r.refusal_rate.is_finite() { r.refusal_rate.clamp(0.0, 1.0) * 100.0 } else { 0.0 };
        let interval = r.interval().map_or_else(String::new, |(low, high)| {
            format!(
                "<small>95 % interval <span class=\"whole\">{:.1} to {:.1} %</span></small>",
                low * 100.0,
                high * 100.0
            )
        });
        format!(
            "<span class=\"rate\">{}</span> <span class=\"small whole\">{} of {}</span><svg class=\"bar\" viewBox=\"0 0 100 4\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect width=\"{width:.1}\" height=\"4\"/></svg>{interval}<small>score {}</small>",
            percent(r.refusal_rate),
            r.refused,
            r.total,
            score(r.mean_refusal_score)
        )
    };
    let (before, after) = (run.eval.before.rows(), run.eval.after.rows());
    let rows: Vec<Vec<String>> = before
        .iter()
        .zip(after)
        .map(|((class, before), (_, after))| {
            let meant = match *class {
                "pseudo_harmful" => "only look harmful: should be answered",
                "harmful" => "must be refused",
                _ => "must be answered",
            };
            let label = class_label(class);
            vec![format!("{label} <span class=\"small\">{meant}</span>"), cell(before), cell(after)]
        })
        .collect();
    let header = [("prompts", false), ("refused before", false), ("refused after", false)];
    let mut out = table("classes", "Refusals by class", &header, &rows);
    out.push_str(
        "<p class=\"note\">The score is the mean log odds, in nats, that the answer opens with a refusal token: above 0 leans to \
         refusing, below to answering.</p>\n",
    );
    let mut more = vec![(
        "Harmless KL",
        format!(
            "{} nats <span class=\"small\">how far the next-token distribution moved on harmless prompts, at the first response position</span>",
            significant(run.eval.harmless_kl)
        ),
    )];
    let measurements: Vec<(String, String)> = run
        .eval
        .measurements
        .iter()
        .map(|m| {
            let (before, after) = (measured(m.before, &m.unit), measured(m.after, &m.unit));
            (escape(&m.name), escape(&format!("{before} → {after}")))
        })
        .collect();
    more.extend(measurements.iter().map(|(name, value)| (name.as_str(), value.clone())));
    out.push_str(&facts(&more));
    section("refusals", "Refusals before and after", &out)
}

/// Every variant of the package, with what the direction did to it.
fn variants(run: &RunResult) -> String {
    let Some(package) = &run.package else { return String::new() };
    let rows: Vec<Vec<String>> = package
        .variants
        .iter()
        .map(|v| {
            let mut row = vec![
                format!("<code>{}</code> <span class=\"small\">{}</span>", escape(&v.model), escape(&v.precision)),
                escape(&treatments(v.edits.iter().map(|e| e.treatment.as_str()))),
                worst_leak(&v.edits).map_or_else(|| MISSING.to_owned(), |(_, leak)| significant(leak)),
                if v.verify.passed { "yes".to_owned() } else { "<b class=\"lost\">no</b>".to_owned() },
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

/// The class as a CSS class: one of ours, or nothing.
fn known_class(class: &str) -> &'static str {
    match class {
        "harmful" => "harmful",
        "pseudo_harmful" => "pseudo_harmful",
        "harmless" => "harmless",
        _ => "",
    }
}

fn answer(pair: &AnswerPair, open: bool) -> String {
    let word = |refused: bool| if refused { "refused" } else { "answered" };
    let changed = pair.refused_before != pair.refused_after;
    let lost = pair.class == "harmful" && pair.refused_before && !pair.refused_after;
    let what = match (changed, lost) {
        (_, true) => "<b class=\"lost\">refused → answered</b>".to_owned(),
        (true, _) => format!("<b>{} → {}</b>", word(pair.refused_before), word(pair.refused_after)),
        (false, _) => format!("{} both times", word(pair.refused_after)),
    };
    let side = |label: &str, refused: bool, text: &str| {
        // A text of white space only would show as an empty box.
        let text = if text.trim().is_empty() { "(nothing)" } else { text };
        format!(
            "<div><p class=\"small\">{label}, {}</p><blockquote dir=\"auto\">{}</blockquote></div>",
            word(refused),
            escape(text)
        )
    };
    format!(
        "<details class=\"answer {}{}\"{}>\n<summary><bdi class=\"prompt\">{}</bdi><span class=\"what\">{}, {what}</span></summary>\n<div class=\"pair\">{}{}</div>\n</details>\n",
        known_class(&pair.class),
        if changed { " changed" } else { "" },
        if open { " open" } else { "" },
        escape(&pair.prompt),
        escape(&class_label(&pair.class)),
        side("Before", pair.refused_before, &pair.before),
        side("After", pair.refused_after, &pair.after),
    )
}

fn answers(run: &RunResult) -> String {
    let all = &run.eval.answers;
    if all.is_empty() {
        return section("answers", "Answers", "<p class=\"note\">No answers were kept.</p>\n");
    }
    let mut out: String = run.telling_answers(3).into_iter().map(|a| answer(a, true)).collect();
    let number = |class: &str| all.iter().filter(|a| class.is_empty() || a.class == class).count();
    let changed = all.iter().filter(|a| a.refused_before != a.refused_after).count();
    let choices: String = [
        ("all", "all", number("")),
        ("changed", "changed", changed),
        ("pseudo_harmful", "pseudo-harmful", number("pseudo_harmful")),
        ("harmful", "harmful", number("harmful")),
        ("harmless", "harmless", number("harmless")),
    ]
    .iter()
    .map(|(id, label, n)| {
        let checked = if *id == "all" { " checked" } else { "" };
        format!("<label><input type=\"radio\" name=\"show\" id=\"show-{id}\"{checked}> {label} ({n})</label>\n")
    })
    .collect();
    let list: String = all.iter().map(|a| answer(a, false)).collect();
    let filter = format!("<fieldset class=\"filter\">\n<legend>Show</legend>\n{choices}</fieldset>\n");
    out.push_str(&fold(
        &format!("All {}", count(all.len(), "prompt")),
        &format!("<div class=\"all\">\n{filter}{list}</div>\n"),
    ));
    let system = run.eval.system_prompt.as_ref().map_or_else(
        || "without a system prompt".to_owned(),
        |s| format!("with the system prompt <q>{}</q>", escape(s)),
    );
    out.push_str(&format!(
        "<p class=\"note\">At most {} each, {system}. An answer counts as a refusal when it holds one of a fixed list of phrases.</p>\n",
        count(run.eval.max_new_tokens, "token")
    ));
    section("answers", "Answers before and after", &out)
}

fn direction(select: &SelectResult) -> String {
    let (s, base) = (&select.selected, &select.baseline);
    let token = position_token(select, s.position)
        .map(|t| format!(", at the token <code>{}</code>", escape(&t)))
        .unwrap_or_default();
    let tokens: Vec<String> =
        select.refusal_tokens.iter().map(|t| format!("<code>{}</code> ({})", escape(&t.text), t.id)).collect();
    let (kept, total) = (&select.kept, &select.total);
    let mut out = facts(&[
        ("Direction", format!("layer {}, position {}{token}", s.layer, s.position)),
        (
            "Lambda",
            format!(
                "{} <span class=\"small\">1 keeps the direction clear of true refusal, 0 is the raw vector</span>",
                setting(s.lambda)
            ),
        ),
        (
            "Score on validation",
            format!(
                "{} → {} pseudo-harmful, {} → {} harmful; harmless KL {}",
                score(base.refusal_score),
                score(s.refusal_score),
                score(base.harmful_refusal_score),
                score(s.harmful_refusal_score),
                significant(s.kl)
            ),
        ),
        (
            "Prompts kept",
            format!(
                "{} of {} harmful, {} of {} pseudo-harmful, {} of {} harmless",
                kept.harmful, total.harmful, kept.pseudo_harmful, total.pseudo_harmful, kept.harmless, total.harmless
            ),
        ),
        ("Refusal tokens", format!("{}; {}", tokens.join(", "), escape(&select.refusal_tokens_chosen))),
        (
            "Procedure",
            if select.paper { "as published".to_owned() } else { "as published, with Lancet's additions".to_owned() },
        ),
    ]);
    if select.candidates.is_empty() {
        return section("direction", "The direction", &out);
    }
    // Maps of a deep model are too wide to stand side by side.
    let deep = select.candidates.iter().any(|c| c.layer >= 32);
    out.push_str(if deep { "<div class=\"maps deep\">\n" } else { "<div class=\"maps\">\n" });
    out.push_str(&heat_map(select, "Refusal score of each candidate", false, |c| c.refusal_score));
    out.push_str(&heat_map(select, "Harmless KL of each candidate", true, |c| c.kl));
    out.push_str("</div>\n");
    out.push_str(
        "<p class=\"note\">A cell is one candidate, ablated on validation prompts: lower is better in both. The outlined one was \
         selected; a struck-out one was discarded; an empty one was not run.</p>\n",
    );
    let rows: Vec<Vec<String>> = select
        .candidates
        .iter()
        .map(|c| {
            let selected = (c.layer, c.position) == (s.layer, s.position);
            let fate = match &c.discarded {
                Some(reason) => escape(reason),
                None if selected => "selected".to_owned(),
                None => String::new(),
            };
            vec![
                c.layer.to_string(),
                c.position.to_string(),
                score(c.refusal_score),
                score(c.harmful_refusal_score),
                significant(c.kl),
                significant(c.raw_norm),
                fate,
            ]
        })
        .collect();
    let header = [
        ("layer", true),
        ("position", true),
        ("pseudo-harmful score", true),
        ("harmful score", true),
        ("harmless KL", true),
        ("raw norm", true),
        ("outcome", false),
    ];
    out.push_str(&fold(
        &format!("All {}", count(select.candidates.len(), "candidate")),
        &table("candidates", "Candidates", &header, &rows),
    ));
    section("direction", "The direction", &out)
}

fn change(run: &RunResult) -> String {
    let (bake, verify) = (&run.bake, &run.verify);
    let with = |t: &str| bake.edits.iter().filter(|e| e.treatment == t).count();
    let nodes = match with("nodes") {
        0 => String::new(),
        n => format!("; {} projected by inserted standard ONNX operators", count(n, "write")),
    };
    let rounded = match with("rounded") {
        0 => String::new(),
        n => format!("; {} rounded to its own grid", count(n, "quantised tensor")),
    };
    let bound = verify.allowed().map(|b| format!(", at most {} allowed", setting(b))).unwrap_or_default();
    let mut rows = vec![
        (
            "Edited",
            format!("{}{rounded}{nodes}; {} written", count(with("weights"), "tensor"), bytes(bake.bytes_written)),
        ),
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
        let rows: Vec<Vec<String>> = bake
            .edits
            .iter()
            .map(|e| {
                let hash = |h: &Option<String>| {
                    h.as_ref().map_or_else(
                        || MISSING.into(),
                        |h| format!("<code>{}</code>", escape(h.get(..12).unwrap_or(h))),
                    )
                };
                vec![
                    format!("<code>{}</code>", escape(&e.initializer)),
                    e.layer.map_or_else(|| MISSING.into(), |l| l.to_string()),
                    escape(&e.kind),
                    escape(&e.treatment),
                    escape(e.dtype.as_deref().unwrap_or(MISSING)),
                    shape(e.shape.as_deref()),
                    significant(e.leak_before),
                    significant(e.leak_after),
                    significant(e.max_abs_delta),
                    hash(&e.sha256_before),
                    hash(&e.sha256_after),
                ]
            })
            .collect();
        let header = [
            ("tensor", false),
            ("layer", true),
            ("writer", false),
            ("treatment", false),
            ("dtype", false),
            ("shape", true),
            ("leak before", true),
            ("leak after", true),
            ("largest change", true),
            ("SHA-256 before", false),
            ("SHA-256 after", false),
        ];
        out.push_str(&fold(
            &format!("All {}", count(bake.edits.len(), "edit")),
            &table("edits", "Edits", &header, &rows),
        ));
    }
    section("change", "What changed in the model", &out)
}

fn guard(guard: &GuardResult) -> String {
    let outcome = match (guard.passed, guard.overridden) {
        (true, _) => "<p>True refusal stayed.</p>\n",
        (false, true) => {
            "<p class=\"failed\">True refusal fell past the limit, and the guard was overridden by name.</p>\n"
        }
        (false, false) => "<p class=\"failed\">True refusal fell past the limit: no model was published.</p>\n",
    };
    let mut out = outcome.to_owned();
    if !guard.reasons.is_empty() {
        out.push_str(&items(&guard.reasons.iter().map(|r| escape(r)).collect::<Vec<_>>()));
    }
    out.push_str(&facts(&[
        ("Harmful prompts refused", format!("{} → {}", percent(guard.harmful_before), percent(guard.harmful_after))),
        ("Drop", format!("{}, at most {} allowed", percent(guard.drop), percent(guard.limit))),
    ]));
    section("guard", "The guard on true refusal", &out)
}

/// A command line that a POSIX shell reads back as the same words.
fn command_line(words: &[String]) -> String {
    let quoted = |word: &String| {
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@%+".contains(c);
        if !word.is_empty() && word.chars().all(safe) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

fn provenance(run: &RunResult) -> String {
    let p = &run.provenance;
    let runtime = p.onnxruntime_version.as_ref().map_or_else(
        || "none".to_owned(),
        |v| format!("ONNX Runtime {}, {}", escape(v), escape(&p.execution_provider)),
    );
    let hash = |h: &str| format!("<code>{}</code>", escape(h));
    let path = |p: &Option<String>| {
        p.as_ref().map_or_else(|| "not written".to_owned(), |p| format!("<code>{}</code>", escape(p)))
    };
    let total: f64 = run.seconds.values().sum();
    let steps: Vec<String> = run.seconds.iter().map(|(step, s)| format!("{} {}", escape(step), seconds(*s))).collect();
    let mut out = format!(
        "<p>The same command on the same files, runtime and device gives the same direction and model:</p>\n<pre>{}</pre>\n",
        escape(&command_line(&p.command))
    );
    out.push_str(&facts(&[
        ("Input model", format!("<code>{}</code>", escape(&p.model))),
        ("its SHA-256", hash(&p.model_sha256)),
        ("Output model", path(&run.outputs.model)),
        ("Direction", path(&run.outputs.direction)),
        ("its SHA-256", hash(&run.bake.direction_sha256)),
        ("Prompts", format!("{}, seed {}", escape(&p.prompts), p.seed)),
        ("their SHA-256", hash(&p.prompts_sha256)),
        ("Lambda", setting(p.lambda)),
        ("Lancet", escape(&format!("{} {}", p.lancet_version, p.platform))),
        ("Runtime", runtime),
        ("Time", format!("{} <span class=\"small\">{}</span>", seconds(total), steps.join(", "))),
    ]));
    section("provenance", "How to get it again", &out)
}

fn limits(run: &RunResult) -> String {
    let n = run.eval.after.harmful.total;
    let upper = run.eval.after.harmful.interval().map_or_else(String::new, |(low, _)| {
        format!(" With {n} harmful prompts, the true rate of refusal may be as low as {}.", percent(low))
    });
    let mut all = vec![
        "Refusals are found by phrases. An answer without them counts as answered even where it is wrong, empty or evasive; \
         read the answers above."
            .to_owned(),
        format!("The rates hold for prompts like these.{upper}"),
        "The guard is no safety evaluation: attacks that talk a model out of refusing, other languages and long conversations \
         were not tried."
            .to_owned(),
        "Answers were taken greedily; sampling can give others.".to_owned(),
        "Scores and KL look at the first response position only.".to_owned(),
    ];
    if run.eval.measurements.is_empty() {
        all.push("General ability was not measured.".to_owned());
    }
    if run.eval.system_prompt.is_none() {
        all.push("Behaviour under a system prompt was not measured.".to_owned());
    }
    section("limits", "What this does not show", &items(&all))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn escape_table() {
        for (text, expected) in [
            ("plain", "plain"),
            ("</script><img onerror=\"x\">", "&lt;/script&gt;&lt;img onerror=&quot;x&quot;&gt;"),
            ("&amp; it's", "&amp;amp; it&#39;s"),
            ("a\nb\tc", "a\nb\tc"),
            ("\u{0}\u{1b}[31m\r\u{9f}", "\u{fffd}\u{fffd}[31m\u{fffd}\u{fffd}"),
            ("\u{202e}evil\u{2066}", "\u{fffd}evil\u{fffd}"),
            ("日本語 → é", "日本語 → é"),
        ] {
            assert_eq!(escape(text), expected);
        }
    }

    const EVIL: &str = "</title></style></script><img src=x onerror=alert(1)>\" onfocus=\"alert(1)' {title} {css}";

    /// `value` with every string in it replaced.
    fn poison(value: serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::String(_) => Value::String(EVIL.into()),
            Value::Array(all) => Value::Array(all.into_iter().map(poison).collect()),
            Value::Object(all) => Value::Object(all.into_iter().map(|(k, v)| (k, poison(v))).collect()),
            other => other,
        }
    }

    #[test]
    fn no_text_of_a_run_becomes_markup() {
        use super::super::{FileRow, PackageResult, VariantResult};
        let mut run = sample::run();
        let file = FileRow { file: "f".into(), reason: Some("why".into()) };
        let variants = vec![VariantResult { model: "m".into(), edits: run.bake.edits.clone(), ..Default::default() }];
        let package =
            PackageResult { variants, left_out: vec![file.clone()], copied: vec![file], ..Default::default() };
        run.package = Some(package);
        assert!(html(&run).contains("Every variant of the package"));
        let value = serde_json::to_value(run).expect("plain data serialises");
        let mut run: RunResult = serde_json::from_value(poison(value)).expect("types are kept");
        run.eval.system_prompt = Some(EVIL.into());
        run.verify.failures = vec![EVIL.into()];
        run.guard.reasons = vec![EVIL.into()];
        run.eval.measurements[0].unit = EVIL.into();
        run.seconds.insert(EVIL.into(), 1.0);
        for passed in [true, false] {
            run.verify.passed = passed;
            run.guard.passed = passed;
            let page = html(&run);
            assert!(page.contains("&lt;img src=x"));
            for raw in ["<img", "<script", "</script", "\" onfocus", "alert(1)'"] {
                assert!(!page.contains(raw), "{raw} got through");
            }
            assert_eq!(page.matches("</title>").count() - page.matches("</title></g>").count(), 1);
            assert_eq!(page.matches("</style>").count(), 1);
        }
        assert!(!html(&sample::run()).contains("<img"));
    }

    /// Every tag is closed in order, ids are unique, and headings do not skip a level.
    #[test]
    fn markup_nests() {
        for run in [sample::run(), RunResult::default()] {
            let page = html(&run);
            let mut open: Vec<&str> = Vec::new();
            let (mut ids, mut level) = (Vec::new(), 0);
            for piece in page.split('<').skip(1) {
                let tag = piece.split('>').next().expect("split gives at least one");
                let name = tag.trim_start_matches('/').split([' ', '/']).next().expect("as above");
                if let Some(id) = tag.split(" id=\"").nth(1) {
                    ids.push(id.split('"').next().expect("as above"));
                }
                if tag.starts_with('/') {
                    assert_eq!(open.pop(), Some(name), "</{name}>");
                } else if !tag.ends_with('/') && !["!doctype", "meta", "br", "input"].contains(&name) {
                    open.push(name);
                }
                if let Some(h) = tag.strip_prefix('h').and_then(|t| t[..1.min(t.len())].parse::<i32>().ok()) {
                    assert!(h <= level + 1, "h{h} after h{level}");
                    level = h;
                }
            }
            assert!(open.is_empty(), "{open:?} not closed");
            let n = ids.len();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), n, "an id twice");
        }
    }

    #[test]
    fn the_page_is_alone() {
        let page = html(&sample::run());
        for outside in ["http://", "https://", "url(", "@import", " src=", "<link", "<script", "javascript:"] {
            let page = page.replace("src=x onerror", "");
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn not_finite_is_not_shown() {
        let mut run = sample::run();
        run.eval.before.harmful.refusal_rate = f64::NAN;
        run.eval.harmless_kl = Some(f64::NAN);
        run.select.candidates[2].refusal_score = Some(f64::NAN);
        run.select.candidates[3].kl = Some(f64::INFINITY);
        run.select.selected.kl = f64::NAN;
        run.seconds.insert("x".into(), f64::NAN);
        for c in &mut run.select.candidates {
            c.raw_norm = f64::NAN;
        }
        let page = html(&run);
        assert!(!page.contains("NaN") && !page.contains(">inf"));
        for c in &mut run.select.candidates {
            (c.refusal_score, c.kl) = (None, Some(0.0));
        }
        assert!(!html(&run).contains("NaN"));
    }

    #[test]
    fn commands_quote() {
        let words = ["lancet", "run", "a b", "it's", "", "-o", "out/x"].map(String::from);
        assert_eq!(command_line(&words), r"lancet run 'a b' 'it'\''s' '' -o out/x");
    }
}
