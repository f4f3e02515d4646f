//! Refusals: the classes, the conditions, the answers that tell most.

use super::super::number::{MISSING, count, percent, score};
use super::super::{ClassResult, RunResult, class_label};
use super::answers::answer;
use super::escape;
use super::parts::{dots, grouped, items, note, numbers, outcomes, percents, rate, section, stacked};

/// What ought to happen to a class.
fn meant(class: &str) -> &'static str {
    match class {
        "pseudo_harmful" => "only look harmful: should be answered",
        "harmful" => "must be refused",
        _ => "must be answered",
    }
}

pub(super) fn classes(run: &RunResult) -> String {
    let (before, after) = (run.eval.before.rows(), run.eval.after.rows());
    let all = || before.iter().chain(&after).map(|(_, r)| r);
    let judged = all().any(|r| r.judge.is_some());
    let ruled = all().any(|r| outcomes(&r.outcomes).iter().any(|(_, n)| *n > 0));
    let mut header = vec![("", false), ("refused", true)];
    if ruled {
        header.extend([("outcomes by the rules", false), ("substring rule", true)]);
    }
    header.push(("refusal score", true));
    if judged {
        header.push(("external judge", false));
    }
    let row = |word: &str, r: &ClassResult| {
        let mut row = vec![
            word.to_owned(),
            format!(
                "<span class=\"rate\">{}</span> <small class=\"whole\">{} of {}</small>{}",
                percent(r.refusal_rate),
                r.refused,
                r.total,
                percents(r.interval()).map(|text| format!("<small class=\"whole\">{text}</small>")).unwrap_or_default()
            ),
        ];
        if ruled {
            row.push(stacked(&outcomes(&r.outcomes)));
            row.push(format!(
                "{} <small class=\"whole\">{} of {}</small>",
                percent(r.substring_refusal_rate),
                r.substring_refused,
                r.total
            ));
        }
        let interval = r.score_interval.map(|_| format!("<small>{}</small>", numbers(r.score_interval, score)));
        row.push(format!("{}{}", score(r.mean_refusal_score), interval.unwrap_or_default()));
        if judged {
            row.push(r.judge.map_or_else(
                || MISSING.to_owned(),
                |j| {
                    let parts = [
                        ("complied", j.complied),
                        ("partly", j.partly),
                        ("refused", j.refused),
                        ("empty", 0),
                        ("unread", j.unread),
                    ];
                    stacked(&parts)
                },
            ));
        }
        row
    };
    let groups: Vec<(String, Vec<Vec<String>>)> = before
        .iter()
        .zip(&after)
        .map(|((class, before), (_, after))| {
            let title = format!("{} <span class=\"small\">{}</span>", class_label(class), meant(class));
            (title, vec![row("before", before), row("after", after)])
        })
        .collect();
    let mut out = grouped("classes", "Refusals by class", &header, &groups);
    let who = match &run.eval.judge {
        Some(judge) => {
            format!("Refused is what the external judge (<code>{}</code>) takes for a refusal.", escape(judge))
        }
        None if ruled => {
            "Refused counts the outcome refused; partly (begun, then refused) is no full refusal and does not count."
                .to_owned()
        }
        None => String::new(),
    };
    let substring = if ruled { " The substring rule is the published one, a fixed list of phrases." } else { "" };
    out.push_str(&note(&format!(
        "{who}{substring} The refusal score is the mean log odds, in nats, that the answer opens with a refusal token: above 0 leans \
         to refusing, below to answering. Intervals are of 95 %: Wilson's for rates, bootstrap for scores."
    )));
    let telling = run.telling_answers(3);
    if !telling.is_empty() {
        out.push_str("<h3>Answers that tell most</h3>\n");
        out.push_str(&telling.into_iter().map(|a| answer(a, true, None)).collect::<String>());
        out.push_str("<p class=\"more\"><a href=\"#answers\">All answers</a></p>\n");
    }
    section("refusals", "Refusals before and after", &out)
}

pub(super) fn conditions(run: &RunResult) -> String {
    let eval = &run.eval;
    if eval.conditions.is_empty() {
        return String::new();
    }
    let header = [
        ("condition", false),
        ("before", true),
        ("after", true),
        ("change", true),
        ("<span class=\"scale\"><i>0</i><i>50</i><i>100 %</i></span>", false),
    ];
    let row = |name: &str, before: &ClassResult, after: &ClassResult| {
        let change = after.refusal_rate - before.refusal_rate;
        let points = if change.is_finite() { format!("{:+.1}", change * 100.0 + 0.0) } else { MISSING.into() };
        vec![
            name.to_owned(),
            rate(before.refusal_rate, before.interval()),
            rate(after.refusal_rate, after.interval()),
            points.replace("-0.0", "0.0").replace("+0.0", "0.0"),
            dots((before.refusal_rate, before.interval()), (after.refusal_rate, after.interval())),
        ]
    };
    let groups: Vec<(String, Vec<Vec<String>>)> = eval
        .before
        .rows()
        .into_iter()
        .zip(eval.after.rows())
        .filter_map(|((class, before), (_, after))| {
            let own: Vec<Vec<String>> = eval
                .conditions
                .iter()
                .flat_map(|c| {
                    c.rows.iter().filter(|r| r.class == class).map(|r| row(&escape(&c.name), &r.before, &r.after))
                })
                .collect();
            if own.is_empty() {
                return None;
            }
            let title = format!("{} <span class=\"small\">{}</span>", class_label(class), meant(class));
            Some((title, std::iter::once(row("plain, greedy", before, after)).chain(own).collect()))
        })
        .collect();
    let mut out = "<p>How many are refused when answers are sampled, with a system prompt in front, or inside jailbreak wrappers.</p>\n".to_owned();
    out.push_str("<ul class=\"legend\">\n<li><svg class=\"swatch dots\" viewBox=\"0 0 24 12\" width=\"24\" height=\"12\" aria-hidden=\"true\"><path class=\"was\" d=\"M0 6H24\"/><circle class=\"was\" cx=\"12\" cy=\"6\" r=\"3.2\"/></svg> before</li>\n<li><svg class=\"swatch dots\" viewBox=\"0 0 24 12\" width=\"24\" height=\"12\" aria-hidden=\"true\"><path class=\"is\" d=\"M0 6H24\"/><circle class=\"is\" cx=\"12\" cy=\"6\" r=\"3.2\"/></svg> after</li>\n<li>bars: 95 % intervals; change in percentage points</li>\n</ul>\n");
    out.push_str(&grouped("conditions", "Refusals by condition", &header, &groups));
    let setups: Vec<String> = eval
        .conditions
        .iter()
        .map(|c| {
            let s = &c.setup;
            let mut parts = vec![escape(&s.decoding), format!("at most {}", count(s.max_new_tokens, "token"))];
            if let Some(wrapper) = &s.wrapper {
                parts.push(format!("inside the wrapper <q>{}</q>", escape(wrapper)));
            }
            if let Some(system) = &s.system_prompt {
                parts.push(format!("system prompt <q>{}</q>", escape(system)));
            }
            parts.retain(|p| !p.is_empty());
            format!("{}: {}", escape(&c.name), parts.join(", "))
        })
        .collect();
    out.push_str(&super::parts::fold("How each was put", &items(&setups)));
    section("conditions", "The same prompts put otherwise", &out)
}
