//! A short summary that fits a pull request comment.

use super::layout::{shorten, single_line};
use super::number::{percent, score, setting, significant};
use super::{RunResult, class_label};

/// Longest prompt or answer, in columns.
const LONGEST: usize = 160;

/// Text as a code span, in which nothing is markup and nobody is mentioned: a fence longer than any run of
/// backticks inside, one line, pipes escaped so that it may stand in a table.
#[must_use]
pub fn code(text: &str) -> String {
    let text = single_line(text).replace('|', "\\|");
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    // The spaces are stripped by the renderer; they keep a backtick at either end apart from the fence.
    let pad = if text.starts_with('`') || text.ends_with('`') || text.is_empty() { " " } else { "" };
    format!("{fence}{pad}{text}{pad}{fence}")
}

/// The run as GitHub-flavoured Markdown.
#[must_use]
pub fn markdown(run: &RunResult) -> String {
    let mut out = format!("### Lancet: {}\n\n", run.headline());
    out.push_str("| class | refused before | refused after | score before | score after |\n");
    out.push_str("|---|--:|--:|--:|--:|\n");
    for ((class, before), (_, after)) in run.eval.before.rows().into_iter().zip(run.eval.after.rows()) {
        out.push_str(&format!(
            "| {} | {} ({}/{}) | {} ({}/{}) | {} | {} |\n",
            class_label(class),
            percent(before.refusal_rate),
            before.refused,
            before.total,
            percent(after.refusal_rate),
            after.refused,
            after.total,
            score(before.mean_refusal_score),
            score(after.mean_refusal_score),
        ));
    }
    let (selected, guard, verify) = (&run.select.selected, &run.guard, &run.verify);
    out.push_str(&format!(
        "\n- Model {}, layer {}, position {}, lambda {}; harmless KL {}\n",
        code(&run.provenance.model),
        selected.layer,
        selected.position,
        setting(selected.lambda),
        significant(run.eval.harmless_kl),
    ));
    out.push_str(&format!(
        "- Verification {}: largest logit difference {}, {} bytes changed outside the plan\n",
        if verify.passed { "passed" } else { "**failed**" },
        significant(verify.max_abs_logit_diff),
        verify.changed_bytes_outside_plan,
    ));
    out.push_str(&format!(
        "- Guard {}: true refusal fell by {}, limit {}\n",
        match (guard.passed, guard.overridden) {
            (true, _) => "passed",
            (false, true) => "**failed and overridden**",
            (false, false) => "**failed**",
        },
        percent(guard.drop),
        percent(guard.limit),
    ));
    for reason in verify.failures.iter().chain(&guard.reasons) {
        out.push_str(&format!("  - {}\n", code(reason)));
    }
    let answers = run.telling_answers(3);
    if !answers.is_empty() {
        out.push_str("\n| class | prompt | before | after |\n|---|---|---|---|\n");
        for answer in answers {
            let cell = |text: &str| code(&shorten(&single_line(text), LONGEST));
            out.push_str(&format!(
                "| {} | {} | {} | {} |\n",
                code(&class_label(&answer.class)),
                cell(&answer.prompt),
                cell(&answer.before),
                cell(&answer.after)
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn code_spans_hold_anything() {
        assert_eq!(code("a"), "`a`");
        assert_eq!(code("a|b"), "`a\\|b`");
        assert_eq!(code("a``b`"), "``` a``b` ```");
        assert_eq!(code("x\n| y |\n"), "`x \\| y \\|`");
        assert_eq!(code(""), "`  `");
    }

    #[test]
    fn rows_stay_rows() {
        let mut run = sample::run();
        run.eval.answers[0].after = "a | b\n\n# @team <img> ``` ".into();
        let text = markdown(&run);
        let table: Vec<&str> = text.lines().filter(|l| l.starts_with('|')).collect();
        assert_eq!(table.len(), 5 + 5);
        for row in &table[5..] {
            assert_eq!(row.replace("\\|", "").matches('|').count(), 5, "{row}");
        }
        assert!(!text.lines().any(|l| l.starts_with("# ")));
    }
}
