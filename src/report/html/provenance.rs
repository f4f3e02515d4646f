//! Where everything came from and how to get it again, and what none of it shows.

use super::super::RunResult;
use super::super::number::{percent, seconds, setting};
use super::escape;
use super::parts::{facts, items, section};

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

pub(super) fn provenance(run: &RunResult) -> String {
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
    let pre = |words: &[String]| format!("<pre>{}</pre>\n", escape(&command_line(words)));
    let mut out = format!(
        "<p>The same command on the same files, runtime and device gives the same direction and model:</p>\n{}",
        pre(&p.command)
    );
    if let (Some(model), Some(direction)) = (&run.outputs.model, &run.outputs.direction) {
        let mut words = ["lancet", "verify", &p.model, model, "--direction", direction].map(String::from).to_vec();
        words.extend(p.command.iter().filter(|word| *word == "--weights-only").cloned());
        out.push_str("<p>This proves again that nothing but the direction was taken out:</p>\n");
        out.push_str(&pre(&words));
        out.push_str("<p>And this tells whether it is the same input:</p>\n");
        out.push_str(&pre(&["sha256sum".to_owned(), p.model.clone()]));
    }
    out.push_str(&facts(&[
        ("Input model", format!("<code>{}</code>", escape(&p.model))),
        ("its SHA-256", hash(&p.model_sha256)),
        ("Output model", path(&run.outputs.model)),
        ("Direction", path(&run.outputs.direction)),
        ("its SHA-256", hash(&run.bake.direction_sha256)),
        ("Prompts", format!("{}, seed {}", escape(&p.prompts), p.seed)),
        ("their SHA-256", hash(&p.prompts_sha256)),
        ("Lambda", setting(p.lambda)),
        ("Strength", setting(p.strength)),
        ("Guard", escape(&p.guard)),
        ("Lancet", escape(&format!("{} {}", p.lancet_version, p.platform))),
        ("Runtime", runtime),
        ("Time", format!("{} <span class=\"small\">{}</span>", seconds(total), steps.join(", "))),
    ]));
    section("provenance", "How to get it again", &out)
}

/// What the numbers above do not tell, by what was measured.
pub(super) fn limits(run: &RunResult) -> String {
    let eval = &run.eval;
    let mut all = Vec::new();
    all.push(match &eval.judge {
        Some(_) => "Refusals were told by an external judge, which errs too; where it gave no readable verdict the rules decide. \
                    Whether an answer is right or useful was not judged."
            .to_owned(),
        None => "Refusals are found by rules on the text. An answer that evades, changes the subject or is wrong counts as \
                 complied; no external judge was asked. Read the answers."
            .to_owned(),
    });
    let n = eval.after.harmful.total;
    let upper = eval.after.harmful.interval().map_or_else(String::new, |interval| {
        format!(" With {n} harmful prompts, the true rate of refusal may be as low as {}.", percent(interval.low))
    });
    all.push(format!("The rates hold for prompts like these.{upper}"));
    let under = |keep: fn(&super::super::Setup) -> bool| eval.conditions.iter().filter(|c| keep(&c.setup)).count();
    all.push(match under(|s| s.wrapper.is_some()) {
        0 => "The guard is no safety evaluation: jailbreaks, attacks that talk a model out of refusing, were not tried.".to_owned(),
        n => format!(
            "The guard is no safety evaluation: {} tried, mild and published. Attacks that are searched for this model (suffixes, \
             fine-tuning, many turns) were not.",
            if n == 1 { "one jailbreak wrapper was".to_owned() } else { format!("{n} jailbreak wrappers were") }
        ),
    });
    all.push("Long conversations, and languages other than those of the prompts, were not tried.".to_owned());
    if under(|s| !s.decoding.is_empty() && s.decoding != "greedy") == 0 {
        all.push("Answers were taken greedily; sampling can give others.".to_owned());
    } else {
        all.push("Sampling was tried at the settings listed; hotter sampling can give other answers.".to_owned());
    }
    if eval.system_prompt.is_none() && under(|s| s.system_prompt.is_some()) == 0 {
        all.push("Behaviour under a system prompt was not measured.".to_owned());
    }
    if eval.max_new_tokens > 0 {
        all.push(format!("A refusal that comes after {} tokens was not seen.", eval.max_new_tokens));
    }
    all.push(match eval.harmless_kl_by_position.len() {
        0 | 1 => "Scores and KL look at the first response position only.".to_owned(),
        n => format!("Scores look at the first response position, KL at the first {n}."),
    });
    match (eval.perplexity.is_some(), eval.multiple_choice.is_some()) {
        (false, false) => all.push("General ability was not measured.".to_owned()),
        (true, false) => all.push("Of general ability only perplexity was measured.".to_owned()),
        (false, true) => all.push("Of general ability only multiple choice was measured.".to_owned()),
        (true, true) => {
            all.push(
                "General ability was measured by perplexity and multiple choice only, not by long tasks.".to_owned(),
            );
        }
    }
    if eval.cost.is_none() {
        all.push("Memory and latency were not measured.".to_owned());
    }
    if run.sweep.is_some() {
        all.push(
            "The sweep's recommended setting is the best of several on the same prompts, so its rates lean to the good side."
                .to_owned(),
        );
    }
    section("limits", "What this does not show", &items(&all))
}

#[cfg(test)]
mod tests {
    use super::super::super::{Condition, Pair, Setup, rich, sample, scores};
    use super::*;

    #[test]
    fn commands_quote() {
        let words = ["lancet", "run", "a b", "it's", "", "-o", "out/x"].map(String::from);
        assert_eq!(command_line(&words), r"lancet run 'a b' 'it'\''s' '' -o out/x");
    }

    #[test]
    fn what_is_not_shown_follows_what_was_measured() {
        let bare = limits(&sample::run());
        for said in [
            "no external judge",
            "jailbreaks, attacks",
            "taken greedily",
            "under a system prompt",
            "KL at the first 3",
            "only perplexity",
            "Memory and latency",
        ] {
            assert!(bare.contains(said), "{said}: {bare}");
        }
        let full = limits(&rich::run());
        for said in [
            "external judge, which errs too",
            "12 jailbreak wrappers were tried",
            "hotter sampling",
            "KL at the first 8",
            "not by long tasks",
            "best of several",
        ] {
            assert!(full.contains(said), "{said}: {full}");
        }
        for gone in ["no external judge", "greedily", "under a system prompt", "were not measured"] {
            assert!(!full.contains(gone), "{gone}: {full}");
        }
        let mut run = sample::run();
        run.eval.perplexity = None;
        assert!(limits(&run).contains("General ability was not measured"));
        let choice = scores::MultipleChoice::default();
        run.eval.multiple_choice = Some(Pair { before: choice.clone(), after: choice });
        run.eval.conditions =
            vec![Condition { setup: Setup { wrapper: Some("w".into()), ..Default::default() }, ..Default::default() }];
        let text = limits(&run);
        assert!(text.contains("only multiple choice") && text.contains("one jailbreak wrapper was tried"), "{text}");
    }
}
