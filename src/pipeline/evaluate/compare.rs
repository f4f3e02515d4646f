//! Two measurements of the same prompts side by side, and what the guard is shown of them.

use std::path::Path;

use super::{Measured, Set, Settings, guard_sets};
use crate::chat::Chat;
use crate::eval::answers::JudgedAnswer;
use crate::eval::outcome::Outcome;
use crate::eval::policy::Evidence;
use crate::eval::statistics::{CONFIDENCE, Paired, bootstrap_mean};
use crate::method::prompts::PromptClass;
use crate::method::score::{kl_divergence, mean, softmax};
use crate::report::{
    Answer, AnswerPair, BeforeAfter, ClassRow, ClassTable, ConditionResult, EvalResult, ModelEval, OneCondition,
    SetRow, finite,
};

/// Samples of a bootstrap.
const RESAMPLES: usize = 2000;

/// A comparison, and the evidence for the guard.
pub struct Compared {
    /// For the report.
    pub result: EvalResult,
    /// For the policy.
    pub evidence: Evidence,
}

/// The classes of the plain condition.
pub fn class_table(measured: &Measured, seed: u64) -> ClassTable {
    ClassTable::from_fn(|class| {
        let set = measured.sets.iter().find(|s| s.ask == 0 && s.class == class);
        set.map(|s| s.result(seed)).unwrap_or_default()
    })
}

fn pairs<'s>(before: &'s Set, after: &'s Set) -> impl Iterator<Item = (&'s JudgedAnswer, &'s JudgedAnswer)> {
    before.told.iter().zip(&after.told)
}

fn pair<T: Clone>(before: Option<&T>, after: Option<&T>) -> Option<BeforeAfter<T>> {
    before.zip(after).map(|(before, after)| BeforeAfter { before: before.clone(), after: after.clone() })
}

/// Two measurements of the same prompts side by side. `later` is the mean KL at the later response positions.
pub fn compare(before: &Measured, after: &Measured, settings: &Settings, chat: &Chat, later: Vec<f64>) -> Compared {
    let kl: Vec<f64> = before
        .harmless_logits
        .iter()
        .zip(&after.harmless_logits)
        .map(|(p, q)| kl_divergence(&softmax(p), &softmax(q)))
        .collect();
    let mut answers = Vec::new();
    let mut conditions: Vec<ConditionResult> = settings.asks[1..]
        .iter()
        .map(|ask| ConditionResult {
            condition: ask.condition.clone(),
            setup: ask.setup(chat, settings),
            rows: Vec::new(),
        })
        .collect();
    let mut evidence = Evidence { seed: settings.seed, ..Evidence::default() };
    let mut broken = Vec::new();
    for (a, b) in before.sets.iter().zip(&after.sets) {
        let ask = &settings.asks[a.ask];
        answers.extend(pairs(a, b).map(|(x, y)| AnswerPair {
            class: a.class,
            condition: ask.condition.clone(),
            prompt: x.asked.clone(),
            before: x.answer.clone(),
            after: y.answer.clone(),
            refused_before: x.refused(a.class),
            refused_after: y.refused(a.class),
            outcome_before: x.outcome,
            outcome_after: y.outcome,
        }));
        if a.ask > 0 {
            conditions[a.ask - 1].rows.push(SetRow {
                class: a.class,
                before: a.result(settings.seed),
                after: b.result(settings.seed),
            });
        }
        if ask.wrapper.is_none() {
            let is_broken = |t: &JudgedAnswer| matches!(t.outcome, Outcome::Empty | Outcome::Degenerate);
            broken.extend(pairs(a, b).map(|(x, y)| (is_broken(x), is_broken(y))));
        }
        if a.class == PromptClass::Harmful {
            let verdicts = pairs(a, b).map(|(x, y)| (x.refused(a.class), y.refused(a.class)));
            match &ask.wrapper {
                None if a.ask == 0 => evidence.harmful = Some(Paired::count(verdicts)),
                None => evidence.conditions.push((ask.condition.clone(), Paired::count(verdicts))),
                Some(wrapper) => evidence.wrapped.push((wrapper.name.clone(), Paired::count(verdicts))),
            }
        }
    }
    let (guard_sets, of_sets) = guard_sets::both(&before.guard_sets, &after.guard_sets, settings, &mut evidence);
    answers.extend(of_sets);
    evidence.harmless_kl = Some(kl.clone());
    evidence.broken = Some(Paired::count(broken));
    let perplexity = pair(before.perplexity.as_ref(), after.perplexity.as_ref());
    let multiple_choice = pair(before.multiple_choice.as_ref(), after.multiple_choice.as_ref());
    evidence.perplexity = perplexity.as_ref().map(|p| (p.before.mean_nll.exp(), p.after.mean_nll.exp()));
    evidence.accuracy = multiple_choice
        .as_ref()
        .map(|m| Paired::count(m.before.items.iter().zip(&m.after.items).map(|(a, b)| (a.right, b.right))));
    let mut by_position = later;
    if let Some(first) = by_position.first_mut() {
        *first = mean(&kl);
    }
    let result = EvalResult {
        before: class_table(before, settings.seed),
        after: class_table(after, settings.seed),
        harmless_kl: finite(mean(&kl)),
        harmless_kl_interval: bootstrap_mean(&kl, CONFIDENCE, RESAMPLES, settings.seed),
        harmless_kl_by_position: by_position,
        conditions,
        guard_sets,
        perplexity,
        multiple_choice,
        cost: None,
        answers,
        max_new_tokens: settings.max_new_tokens,
        system_prompt: chat.system().map(str::to_string),
        judge: settings.judge.as_deref().map(|(_, words)| words.clone()),
    };
    Compared { result, evidence }
}

/// One model alone.
pub fn alone(model: &Path, measured: Measured, settings: &Settings, chat: &Chat) -> ModelEval {
    let classes = class_table(&measured, settings.seed);
    let mut conditions: Vec<OneCondition> = settings.asks[1..]
        .iter()
        .map(|ask| OneCondition {
            condition: ask.condition.clone(),
            setup: ask.setup(chat, settings),
            rows: Vec::new(),
        })
        .collect();
    let mut answers = Vec::new();
    for set in &measured.sets {
        let class = set.class;
        let condition = &settings.asks[set.ask].condition;
        if set.ask > 0 {
            let result = set.result(settings.seed);
            conditions[set.ask - 1].rows.push(ClassRow { class, result });
        }
        answers.extend(set.told.iter().map(|told| Answer {
            class,
            condition: condition.clone(),
            prompt: told.asked.clone(),
            answer: told.answer.clone(),
            refused: told.refused(set.class),
            outcome: told.outcome,
        }));
    }
    let (guard_sets, of_sets) = guard_sets::alone(&measured.guard_sets, settings);
    answers.extend(of_sets);
    ModelEval {
        model: model.display().to_string(),
        classes,
        setup: settings.asks[0].setup(chat, settings),
        conditions,
        guard_sets,
        perplexity: measured.perplexity,
        multiple_choice: measured.multiple_choice,
        answers,
        max_new_tokens: settings.max_new_tokens,
        system_prompt: chat.system().map(str::to_string),
        judge: settings.judge.as_deref().map(|(_, words)| words.clone()),
    }
}
