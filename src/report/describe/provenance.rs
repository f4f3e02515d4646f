//! Where everything came from and how to get it again, and what none of it shows.

use super::super::document::{Block, Facts, Look, Section, Text};
use super::super::number::{percent, seconds, setting};
use super::super::{Decoding, EvalResult, GuardResult, GuardSet, RunResult, Setup};

/// Where everything is, and how to get it again.
pub(super) fn provenance(run: &RunResult) -> Section {
    let (p, outputs, bake) = (&run.shared.provenance, &run.shared.outputs, &run.shared.bake);
    let path = |path: &Option<String>| match path {
        Some(path) => Text::of(Look::Path, path),
        None => Text::from("not written"),
    };
    let hash = |hash: &str| Text::of(Look::Code, hash);
    let runtime = match &p.onnxruntime_version {
        Some(version) => format!("ONNX Runtime {version}, {}", p.execution_provider),
        None => "none".to_owned(),
    };
    let steps: Vec<String> = bake.seconds.iter().map(|(step, s)| format!("{step} {}", seconds(*s))).collect();
    let total = Text::from(seconds(bake.seconds.values().sum())).aside(steps.join(", "));
    let facts = Facts::default()
        .full("Input", Text::of(Look::Path, &p.model))
        .full("its SHA-256", hash(&p.model_sha256))
        .summary("Model", path(&outputs.model))
        .summary("Report", path(&outputs.report_html))
        .full("Direction file", path(&outputs.direction))
        .full("its SHA-256", hash(&bake.direction_sha256))
        .full("Prompts", format!("{}, seed {}", p.prompts, p.seed))
        .full("their SHA-256", hash(&p.prompts_sha256))
        .full("Lambda", setting(p.lambda))
        .full("Strength", setting(p.strength))
        .full("Guard", run.source().and_then(|v| v.guard.as_ref()).map_or_else(String::new, GuardResult::words))
        .full("Lancet", format!("{} {}", p.lancet_version, p.platform))
        .full("Runtime", runtime)
        .full("Time", total);
    let facts = match &run.shared.budget {
        Some(budget) => facts.summary("Budget", budget.to_string()),
        None => facts,
    };
    let text = |words: &str| Block::Paragraph(Text::from(words));
    let section = Section::new("provenance", "Where it is and how to get it again")
        .summary(facts)
        .full(text("The same command on the same files, runtime and device gives the same direction and model:"))
        .full(Block::command(&p.command));
    let (Some(model), Some(direction)) = (&outputs.model, &outputs.direction) else {
        return section;
    };
    let mut words = ["lancet", "verify", &p.model, model, "--direction", direction].map(String::from).to_vec();
    words.extend(p.command.iter().filter(|word| *word == "--weights-only").cloned());
    section
        .full(text("This proves again that nothing but the direction was taken out:"))
        .full(Block::command(&words))
        .full(text("And this tells whether it is the same input:"))
        .full(Block::command(&["sha256sum".to_owned(), p.model.clone()]))
}

/// What the numbers of a run do not tell, by what was measured. `swept` tells that several settings were tried.
pub(super) fn limits(eval: &EvalResult, swept: bool) -> Section {
    let under = |keep: fn(&Setup) -> bool| eval.conditions.iter().filter(|c| keep(&c.setup)).count();
    let mut all = Vec::new();
    let mut say = |words: &str| all.push(Text::from(words));
    say(match &eval.judge {
        Some(_) => {
            "Refusals were told by an external judge, which errs too; where it gave no readable verdict the rules decide. \
             Whether an answer is right or useful was not judged."
        }
        None => {
            "Refusals are found by rules on the text. An answer that evades, changes the subject or is wrong counts as \
             complied; no external judge was asked. Read the answers."
        }
    });
    let n = eval.after.harmful.total;
    let upper = eval.after.harmful.interval().map_or_else(String::new, |interval| {
        format!(" With {n} harmful prompts, the true rate of refusal may be as low as {}.", percent(interval.low))
    });
    say(&format!("The rates hold for prompts like these.{upper}"));
    let tried = match under(|s| s.wrapper.is_some()) {
        0 => "jailbreaks, attacks that talk a model out of refusing, were not tried.".to_owned(),
        n => format!(
            "{} tried, mild and published. Attacks that are searched for this model (suffixes, fine-tuning, many turns) \
             were not.",
            if n == 1 { "one jailbreak wrapper was".to_owned() } else { format!("{n} jailbreak wrappers were") }
        ),
    };
    say(&format!("The guard is no safety evaluation: {tried}"));
    let was_asked = |set: GuardSet| eval.guard_sets.iter().any(|row| row.set == set && row.to_refuse.before.total > 0);
    say(match (was_asked(GuardSet::Turns), was_asked(GuardSet::Languages)) {
        (true, true) => "Long conversations were not tried, and other languages on a few prompts each.",
        (true, false) => "Long conversations, and languages other than those of the prompts, were not tried.",
        (false, true) => "Several turns were not tried, and other languages on a few prompts each.",
        (false, false) => "Several turns, and languages other than those of the prompts, were not tried.",
    });
    say(match under(|s| s.decoding != Decoding::Greedy) {
        0 => "Answers were taken greedily; sampling can give others.",
        _ => "Sampling was tried at the settings listed; hotter sampling can give other answers.",
    });
    if eval.system_prompt.is_none() && under(|s| s.system_prompt.is_some()) == 0 {
        say("Behaviour under a system prompt was not measured.");
    }
    if eval.max_new_tokens > 0 {
        say(&format!("A refusal that comes after {} tokens was not seen.", eval.max_new_tokens));
    }
    match eval.harmless_kl_by_position.len() {
        0 | 1 => say("Scores and KL look at the first response position only."),
        n => say(&format!("Scores look at the first response position, KL at the first {n}.")),
    }
    say(match (eval.perplexity.is_some(), eval.multiple_choice.is_some()) {
        (false, false) => "General ability was not measured.",
        (true, false) => "Of general ability only perplexity was measured.",
        (false, true) => "Of general ability only multiple choice was measured.",
        (true, true) => "General ability was measured by perplexity and multiple choice only, not by long tasks.",
    });
    if eval.cost.is_none() {
        say("Memory and latency were not measured.");
    }
    if swept {
        say(
            "The sweep's recommended setting is the best of several on the same prompts, so its rates lean to the good side.",
        );
    }
    Section::new("limits", "What this does not show").full(Block::List(all))
}
