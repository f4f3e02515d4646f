//! Choosing the vector of an activation addition (METHOD step 9): each candidate is added at its own layer while the
//! harmless validation prompts run.

use super::collect::{Activations, encode};
use super::engine::{Engine, Observer, Row};
use super::stage::Stage;
use crate::chat::Chat;
use crate::edit::Addition;
use crate::error::Error;
use crate::instrument::Request;
use crate::method::addition::{AdditionCandidate, candidates, select};
use crate::method::prompts::{PromptClass, Split};
use crate::method::score::{kl_divergence, mean, refusal_score, softmax};
use crate::method::select::Rules;
use crate::report::{AdditionResult, AdditionRow, finite};

/// Chooses the vector to add and returns it with factor `alpha`, and what is reported; where it was baked is not known yet.
/// The candidates are measured with factor 1, on the model without an ablation.
///
/// # Errors
/// If a run fails, if no candidate is left, or if there are no refusal tokens.
pub fn choose(
    engine: &Engine<'_>,
    chat: &Chat,
    activations: &Activations,
    alpha: f64,
    rules: &Rules,
    observer: &dyn Observer,
) -> Result<(Addition, AdditionResult), Error> {
    let info = &activations.info;
    if info.refusal_tokens.is_empty() {
        return Err(Error::usage(
            "an addition is chosen by the refusal tokens, and there are none",
            "name the first words of the model's refusals with `--refusal-tokens`, or leave `--add` out",
        ));
    }
    let n_layers = engine.model.lm.n_layers();
    let width = engine.model.lm.d_model();
    let (harmful, harmless) = (activations.of(PromptClass::Harmful), activations.of(PromptClass::Harmless));
    let mut all = candidates(harmful, harmless, rules);
    let prompts = encode(chat, info.prompts.get(PromptClass::Harmless, Split::Val))?;
    let to_run = all.iter().filter(|c| !c.is_out(n_layers, rules)).count();
    observer.start(&Stage::ScoreAdditions, (to_run * prompts.len()) as u64);
    for layer in 0..n_layers {
        let here: Vec<usize> =
            (0..all.len()).filter(|&c| all[c].layer == layer && !all[c].is_out(n_layers, rules)).collect();
        if here.is_empty() {
            continue;
        }
        let request = Request { logits: 1, last_positions: 1, additions: vec![layer], ..Request::default() };
        let mut session = engine.session(request)?;
        // the first adds nothing: the base model
        let mut vectors = vec![vec![0.0f32; width]];
        vectors.extend(here.iter().map(|&index| all[index].vector.iter().map(|v| *v as f32).collect()));
        let run = |v: usize| prompts.iter().map(move |tokens| Row { tokens, direction: v });
        let mut base = vec![Vec::new(); prompts.len()];
        let rows: Vec<Row<'_>> = run(0).collect();
        engine.visit(&mut session, &rows, &vectors, |found| {
            base[found.row] = softmax(&found.logits);
            Ok(())
        })?;
        let rows: Vec<Row<'_>> = (1..vectors.len()).flat_map(run).collect();
        let mut found = vec![(0.0, 0.0); rows.len()];
        engine.visit(&mut session, &rows, &vectors, |one| {
            let q = softmax(&one.logits);
            let kl = kl_divergence(&base[one.row % prompts.len()], &q);
            found[one.row] = (refusal_score(&q, &info.refusal_tokens), kl);
            observer.advance(1);
            Ok(())
        })?;
        for (&index, found) in here.iter().zip(found.chunks(prompts.len().max(1))) {
            let (scores, kl): (Vec<f64>, Vec<f64>) = found.iter().copied().unzip();
            all[index].scores = Some((mean(&scores), mean(&kl)));
        }
    }
    observer.finish();
    let Some(winner) = select(&mut all, n_layers, rules) else {
        return Err(Error::failed_with(
            format!("all {} vectors to add were discarded", all.len()),
            "more prompts may leave one; or leave the addition away",
        ));
    };
    let winner = &all[winner];
    let (refusal_score, kl) = winner.scores.expect("only measured candidates win");
    let reported = AdditionResult {
        alpha,
        position: winner.position,
        layer: winner.layer,
        refusal_score,
        kl,
        norm: crate::linalg::norm(&winner.vector),
        baked: None,
        candidates: all.iter().map(row).collect(),
    };
    Ok((winner.addition(alpha), reported))
}

fn row(candidate: &AdditionCandidate) -> AdditionRow {
    AdditionRow {
        position: candidate.position,
        layer: candidate.layer,
        refusal_score: candidate.scores.and_then(|(score, _)| finite(score)),
        kl: candidate.scores.and_then(|(_, kl)| finite(kl)),
        discarded: candidate.discarded,
    }
}
