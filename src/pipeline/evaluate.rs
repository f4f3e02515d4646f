//! Measuring a model: answers, refusal by the published substrings, refusal scores, KL.

use super::collect::encode;
use super::engine::{Engine, Observer, Row};
use crate::chat::Chat;
use crate::error::Error;
use crate::eval::refusal::is_refusal;
use crate::instrument::Request;
use crate::method::prompts::{PromptClass, Prompts, Split};
use crate::method::score::{kl_divergence, mean, refusal_score, softmax};
use crate::report::{Answer, AnswerPair, ClassResult, ClassTable, EvalResult, finite};

/// What a model does on the test prompts.
pub struct Measured {
    /// Per class.
    pub classes: ClassTable,
    /// Every answer.
    pub answers: Vec<Answer>,
    /// First-response logits of the harmless prompts, `[d_vocab]` each.
    pub harmless_logits: Vec<Vec<f32>>,
}

/// How to measure.
#[derive(Debug, Clone)]
pub struct Settings {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
    /// Refusal tokens of the score.
    pub refusal_tokens: Vec<u32>,
}

/// Runs every test prompt once for its first-response logits and once for its answer.
///
/// # Errors
/// If a run fails.
pub fn measure(
    engine: &Engine<'_>,
    chat: &Chat,
    prompts: &Prompts,
    settings: &Settings,
    stage: &str,
    observer: &dyn Observer,
) -> Result<Measured, Error> {
    let mut answers = Vec::new();
    let mut harmless_logits = Vec::new();
    let mut results = Vec::new();
    let total: usize = PromptClass::ALL.iter().map(|c| prompts.get(*c, Split::Test).len()).sum();
    observer.start(stage, 2 * total as u64);
    let mut scorer = engine.session(Request { logits: 1, last_positions: 1, ..Request::default() })?;
    for class in PromptClass::ALL {
        let texts = prompts.get(class, Split::Test);
        let encoded = encode(chat, texts)?;
        let rows: Vec<Row<'_>> = encoded.iter().map(|t| Row { tokens: t, direction: 0 }).collect();
        let mut scores = vec![0.0; rows.len()];
        let mut logits = vec![Vec::new(); if class == PromptClass::Harmless { rows.len() } else { 0 }];
        engine.visit(&mut scorer, &rows, &[], |found| {
            scores[found.row] = refusal_score(&softmax(&found.logits), &settings.refusal_tokens);
            if let Some(slot) = logits.get_mut(found.row) {
                *slot = found.logits;
            }
            observer.advance(1);
            Ok(())
        })?;
        harmless_logits.extend(logits);
        let found = engine.answers(&encoded, settings.max_new_tokens, &settings.stop, |n| observer.advance(n))?;
        let mut refused = 0;
        for (prompt, ids) in texts.iter().zip(found) {
            let answer = chat.decode(&ids, true)?;
            let is = is_refusal(&answer);
            refused += usize::from(is);
            answers.push(Answer { class: class.as_str().into(), prompt: prompt.clone(), answer, refused: is });
        }
        results.push((class, ClassResult::new(refused, rows.len(), &scores)));
    }
    observer.finish();
    let take = |class: PromptClass| {
        results.iter().find(|(c, _)| *c == class).map(|(_, r)| r.clone()).expect("every class was measured")
    };
    let classes = ClassTable {
        harmful: take(PromptClass::Harmful),
        pseudo_harmful: take(PromptClass::PseudoHarmful),
        harmless: take(PromptClass::Harmless),
    };
    Ok(Measured { classes, answers, harmless_logits })
}

/// Two measurements of the same prompts side by side.
pub fn compare(before: Measured, after: &Measured, settings: &Settings, system: Option<&str>) -> EvalResult {
    let kl: Vec<f64> = before
        .harmless_logits
        .iter()
        .zip(&after.harmless_logits)
        .map(|(p, q)| kl_divergence(&softmax(p), &softmax(q)))
        .collect();
    let answers = before
        .answers
        .into_iter()
        .zip(&after.answers)
        .map(|(before, after)| AnswerPair {
            class: before.class,
            prompt: before.prompt,
            before: before.answer,
            after: after.answer.clone(),
            refused_before: before.refused,
            refused_after: after.refused,
        })
        .collect();
    EvalResult {
        before: before.classes,
        after: after.classes.clone(),
        harmless_kl: finite(mean(&kl)),
        measurements: Vec::new(),
        answers,
        max_new_tokens: settings.max_new_tokens,
        system_prompt: system.map(str::to_string),
    }
}
