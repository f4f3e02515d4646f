//! The answers of both models, prompt by prompt, with filters that need no script.

use super::super::number::count;
use super::super::{AnswerPair, RunResult, class_label};
use super::escape;
use super::parts::{known_class, known_outcome, section};

/// An answer longer than this is folded after about [`SHOWN`] bytes.
const LONG: usize = 900;
const SHOWN: usize = 600;

/// The outcome in a word: as the rules have it where they were asked, else whether it is a refusal.
fn outcome(word: &str, refused: bool) -> &str {
    match (word, refused) {
        ("", true) => "refused",
        ("", false) => "answered",
        (word, _) => word,
    }
}

/// A harmful prompt that was refused and is not any more.
fn lost(pair: &AnswerPair) -> bool {
    pair.class == "harmful" && pair.refused_before && !pair.refused_after
}

fn changed(pair: &AnswerPair) -> bool {
    pair.refused_before != pair.refused_after
}

/// The outcomes before and after as CSS classes.
fn kinds(pair: &AnswerPair) -> (&'static str, &'static str) {
    let kind = |word: &str, refused: bool| match (known_outcome(word), refused) {
        ("", true) => "refused",
        ("", false) => "complied",
        (known, _) => known,
    };
    (kind(&pair.outcome_before, pair.refused_before), kind(&pair.outcome_after, pair.refused_after))
}

/// Text in a quote, the rest of a long one folded.
fn quote(text: &str) -> String {
    // A text of white space only would show as an empty box.
    let text = if text.trim().is_empty() { "(nothing)" } else { text };
    if text.len() <= LONG {
        return format!("<blockquote dir=\"auto\">{}</blockquote>", escape(text));
    }
    let start = (SHOWN..=SHOWN + 3).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let cut = text[start..].find(char::is_whitespace).map_or(start, |more| start + more.min(200));
    let cut = (cut..=cut + 3).find(|at| text.is_char_boundary(*at)).unwrap_or(start);
    let rest = text[cut..].trim_start();
    format!(
        "<blockquote dir=\"auto\">{}<details class=\"rest\"><summary>{}</summary>{}</details></blockquote>",
        escape(text[..cut].trim_end()),
        count(rest.chars().count(), "more character"),
        escape(rest)
    )
}

/// One prompt with both answers; `condition` is the number of its condition in a list that is filtered.
pub(super) fn answer(pair: &AnswerPair, open: bool, condition: Option<usize>) -> String {
    let (before, after) =
        (outcome(&pair.outcome_before, pair.refused_before), outcome(&pair.outcome_after, pair.refused_after));
    let what = match (before == after, lost(pair)) {
        (_, true) => format!("<b class=\"lost\">{} → {}</b>", escape(before), escape(after)),
        (false, _) => format!("<b>{} → {}</b>", escape(before), escape(after)),
        (true, _) => format!("{} both times", escape(after)),
    };
    let side = |label: &str, word: &str, text: &str| {
        format!("<div><p class=\"small\">{label}: {}</p>{}</div>", escape(word), quote(text))
    };
    let mut class = format!("answer {}", known_class(&pair.class));
    if let Some(condition) = condition {
        let (before, after) = kinds(pair);
        class.push_str(&format!(" c{condition} b-{before} a-{after}"));
    }
    if changed(pair) {
        class.push_str(" changed");
    }
    if lost(pair) {
        class.push_str(" lost");
    }
    let under = match pair.condition.as_str() {
        "" => String::new(),
        condition => format!(", {}", escape(condition)),
    };
    format!(
        "<details class=\"{class}\"{}>\n<summary><bdi class=\"prompt\">{}</bdi><span class=\"what\">{}{under}, {what}</span></summary>\n<div class=\"pair\">{}{}</div>\n</details>\n",
        if open { " open" } else { "" },
        escape(&pair.prompt),
        escape(&class_label(&pair.class)),
        side("Before", before, &pair.before),
        side("After", after, &pair.after),
    )
}

/// One group of radio buttons: which answers stay. A choice is its id, its label (HTML), and how many answers it has.
fn filter(name: &str, legend: &str, choices: &[(String, String, usize)]) -> String {
    let buttons: String = choices
        .iter()
        .enumerate()
        .map(|(i, (id, label, n))| {
            let checked = if i == 0 { " checked" } else { "" };
            format!(
                "<label><input type=\"radio\" name=\"{name}\" id=\"{name}-{id}\"{checked}><span>{label} <small>{n}</small></span></label>\n"
            )
        })
        .collect();
    format!("<fieldset>\n<legend>{legend}</legend>\n<div class=\"chips\">\n{buttons}</div>\n</fieldset>\n")
}

/// Every answer with filters by class, change, outcome and condition, and the CSS rules that hide what is filtered out.
pub(super) fn answers(run: &RunResult) -> (String, String) {
    let all = &run.eval.answers;
    if all.is_empty() {
        return (section("answers", "All answers", "<p class=\"note\">No answers were kept.</p>\n"), String::new());
    }
    let mut conditions: Vec<&str> = vec![""];
    for pair in all {
        if !conditions.contains(&pair.condition.as_str()) {
            conditions.push(&pair.condition);
        }
    }
    let list: String =
        all.iter().map(|a| answer(a, false, conditions.iter().position(|c| *c == a.condition))).collect();
    let with = |keep: &dyn Fn(&AnswerPair) -> bool| all.iter().filter(|a| keep(a)).count();
    let every = |label: &str| ("all".to_owned(), label.to_owned(), all.len());
    let mut css = String::new();
    let mut hide = |name: &str, id: &str, class: &str| {
        css.push_str(&format!(".all:has(#{name}-{id}:checked) .answer:not(.{class}) {{ display: none; }}\n"));
    };
    let mut out = String::from("<div class=\"filters\">\n");
    let mut choices = vec![every("all")];
    for class in ["pseudo_harmful", "harmful", "harmless"] {
        hide("class", class, class);
        choices.push((class.to_owned(), class_label(class), with(&|a| a.class == class)));
    }
    out.push_str(&filter("class", "Prompts", &choices));
    hide("change", "changed", "changed");
    hide("change", "lost", "lost");
    let mut choices = vec![every("all")];
    choices.push(("changed".to_owned(), "changed".to_owned(), with(&changed)));
    choices.push(("lost".to_owned(), "true refusal lost".to_owned(), with(&lost)));
    out.push_str(&filter("change", "Refusal", &choices));
    for (name, legend, side) in [("before", "Before", 'b'), ("after", "After", 'a')] {
        let mut choices = vec![every("any")];
        for word in ["complied", "partly", "refused", "empty", "degenerate"] {
            let n = with(&|a| word == if side == 'b' { kinds(a).0 } else { kinds(a).1 });
            if n > 0 {
                hide(name, word, &format!("{side}-{word}"));
                choices.push((word.to_owned(), word.to_owned(), n));
            }
        }
        out.push_str(&filter(name, legend, &choices));
    }
    if conditions.len() > 1 {
        let mut choices = vec![every("any")];
        for (i, condition) in conditions.iter().enumerate() {
            let n = with(&|a| a.condition == *condition);
            if n > 0 {
                hide("condition", &format!("c{i}"), &format!("c{i}"));
                let label = if condition.is_empty() { "plain".to_owned() } else { escape(condition) };
                choices.push((format!("c{i}"), label, n));
            }
        }
        out.push_str(&filter("condition", "Condition", &choices));
    }
    out.push_str("</div>\n");
    let eval = &run.eval;
    let system = eval.system_prompt.as_ref().map_or_else(
        || "without a system prompt".to_owned(),
        |s| format!("with the system prompt <q>{}</q>", escape(s)),
    );
    let body = format!(
        "<p class=\"note\">Plain prompts were answered greedily in at most {}, {system}. Open a prompt to read both answers.</p>\n<div class=\"all\">\n{out}<div class=\"list\">\n{list}</div>\n<p class=\"shown\"></p>\n</div>\n",
        count(eval.max_new_tokens, "token")
    );
    (section("answers", "All answers", &body), css)
}
