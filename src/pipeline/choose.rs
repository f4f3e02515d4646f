//! Selecting: every candidate is scored with itself ablated everywhere, on the validation prompts
//! (METHOD steps 5 to 7).

use super::collect::{Activations, encode};
use super::engine::{Engine, Observer, Row};
use crate::chat::Chat;
use crate::error::Error;
use crate::instrument::Request;
use crate::method::direction::Direction;
use crate::method::prompts::{PromptClass, Split};
use crate::method::score::{kl_divergence, mean, refusal_score, softmax};
use crate::method::select::{Candidate, CandidateScores, Rules, candidates, select};
use crate::report::{Baseline, ClassCounts, PositionLabel, RefusalToken, SelectResult, Selected, finite};

/// A selected direction and how it was chosen.
pub struct Choice {
    /// The direction.
    pub direction: Direction,
    /// What is reported.
    pub result: SelectResult,
}

/// Sums of one candidate over the validation prompts.
#[derive(Clone, Default)]
struct Tally {
    pseudo: Vec<f64>,
    harmful: Vec<f64>,
    kl: Vec<f64>,
}

/// Scores all candidates and selects one.
///
/// # Errors
/// If a run fails, or if there are no validation prompts.
pub fn choose(
    engine: &Engine<'_>,
    chat: &Chat,
    activations: &Activations,
    lambda: f64,
    rules: &Rules,
    observer: &dyn Observer,
) -> Result<Choice, Error> {
    let info = &activations.info;
    let tokens = &info.refusal_tokens;
    let mut all = candidates(
        activations.of(PromptClass::Harmful),
        activations.of(PromptClass::PseudoHarmful),
        activations.of(PromptClass::Harmless),
        lambda,
        rules,
    );
    let mut prompts: Vec<(PromptClass, usize, Vec<u32>)> = Vec::new();
    for class in PromptClass::ALL {
        for (at, ids) in encode(chat, info.prompts.get(class, Split::Val))?.into_iter().enumerate() {
            prompts.push((class, at, ids));
        }
    }
    // direction 0 is zero: the base model, bit for bit
    let mut directions = vec![vec![0.0f32; engine.model.lm.d_model()]];
    let mut owner = vec![None];
    for (index, candidate) in all.iter().enumerate() {
        if let Some(direction) = &candidate.direction {
            directions.push(direction.unit().iter().map(|v| *v as f32).collect());
            owner.push(Some(index));
        }
    }
    let mut session = engine.session(Request { logits: 1, last_positions: 1, ablation: true, ..Request::default() })?;
    observer.start("score candidates", (directions.len() * prompts.len()) as u64);

    let base_rows: Vec<Row<'_>> = prompts.iter().map(|(.., ids)| Row { tokens: ids, direction: 0 }).collect();
    let mut base: Vec<Vec<f32>> = vec![Vec::new(); prompts.len()];
    engine.visit(&mut session, &base_rows, &directions, |found| {
        base[found.row] = found.logits;
        observer.advance(1);
        Ok(())
    })?;
    let scores_of = |class: PromptClass| -> Vec<f64> {
        prompts
            .iter()
            .zip(&base)
            .filter(|((c, ..), _)| *c == class)
            .map(|(_, logits)| refusal_score(&softmax(logits), tokens))
            .collect()
    };
    let harmful_base = scores_of(PromptClass::Harmful);
    let share = |scores: &[f64]| scores.iter().filter(|s| **s > 0.0).count() as f64 / scores.len().max(1) as f64;
    let baseline = Baseline {
        refusal_score: mean(&scores_of(PromptClass::PseudoHarmful)),
        harmful_refusal_score: mean(&harmful_base),
        harmless_refusal_score: mean(&scores_of(PromptClass::Harmless)),
    };

    let rows: Vec<(usize, usize)> =
        (1..directions.len()).flat_map(|d| (0..prompts.len()).map(move |p| (d, p))).collect();
    let run: Vec<Row<'_>> = rows.iter().map(|&(d, p)| Row { tokens: &prompts[p].2, direction: d }).collect();
    let mut tallies: Vec<Tally> = vec![Tally::default(); all.len()];
    for (index, tally) in tallies.iter_mut().enumerate() {
        if all[index].direction.is_some() {
            let n = |class| prompts.iter().filter(|(c, ..)| *c == class).count();
            tally.pseudo = vec![0.0; n(PromptClass::PseudoHarmful)];
            tally.harmful = vec![0.0; n(PromptClass::Harmful)];
            tally.kl = vec![0.0; n(PromptClass::Harmless)];
        }
    }
    engine.visit(&mut session, &run, &directions, |found| {
        let (direction, prompt) = rows[found.row];
        let tally = &mut tallies[owner[direction].expect("only direction 0 has no owner")];
        let q = softmax(&found.logits);
        let (class, at, _) = &prompts[prompt];
        match class {
            PromptClass::PseudoHarmful => tally.pseudo[*at] = refusal_score(&q, tokens),
            PromptClass::Harmful => tally.harmful[*at] = refusal_score(&q, tokens),
            PromptClass::Harmless => tally.kl[*at] = kl_divergence(&softmax(&base[prompt]), &q),
        }
        observer.advance(1);
        Ok(())
    })?;
    observer.finish();
    for (candidate, tally) in all.iter_mut().zip(&tallies) {
        if candidate.direction.is_some() {
            candidate.scores = Some(CandidateScores {
                refusal_score: mean(&tally.pseudo),
                harmful_refusal_score: mean(&tally.harmful),
                harmful_refused: share(&tally.harmful),
                kl: mean(&tally.kl),
            });
        }
    }
    let winner = select(&mut all, engine.model.lm.n_layers(), share(&harmful_base), rules);
    let Some(winner) = winner else { return Err(nothing_left(&all)) };
    let winner = &all[winner];
    let scores = winner.scores.expect("only measured candidates win");
    let selected = Selected {
        position: winner.position,
        layer: winner.layer,
        lambda,
        refusal_score: scores.refusal_score,
        harmful_refusal_score: scores.harmful_refusal_score,
        kl: scores.kl,
    };
    let direction = winner.direction.clone().expect("only a direction can be measured");
    let counts = |count: &dyn Fn(PromptClass) -> usize| ClassCounts {
        harmful: count(PromptClass::Harmful),
        pseudo_harmful: count(PromptClass::PseudoHarmful),
        harmless: count(PromptClass::Harmless),
    };
    let n_pos = info.suffix.len() as i64;
    let result = SelectResult {
        selected,
        baseline,
        kept: counts(&|class| activations.of(class).count()),
        total: counts(&|class| info.prompts.get(class, Split::Train).len()),
        refusal_tokens: tokens.iter().map(|&id| RefusalToken { id, text: chat.token_label(id) }).collect(),
        refusal_tokens_chosen: info.refusal_tokens_chosen.clone(),
        candidates: all.iter().map(row).collect(),
        positions: info
            .suffix
            .iter()
            .enumerate()
            .map(|(at, &id)| PositionLabel { position: at as i64 - n_pos, token: chat.token_label(id) })
            .collect(),
        paper: *rules == Rules::PAPER,
    };
    Ok(Choice { direction, result })
}

/// Every candidate was discarded: the guard's refusal if the guard discarded one, else a plain failure.
fn nothing_left(all: &[Candidate]) -> Error {
    let mut reasons: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for candidate in all {
        let reason = candidate.discarded.as_deref().unwrap_or("");
        let short = ["guard", "harmless KL", "layer", "degenerate", "a score is NaN"]
            .into_iter()
            .find(|s| reason.starts_with(s))
            .unwrap_or("no direction");
        *reasons.entry(short).or_default() += 1;
    }
    let list: Vec<String> = reasons.iter().map(|(reason, n)| format!("{reason}: {n}")).collect();
    let message = format!("all {} candidate directions were discarded ({})", all.len(), list.join(", "));
    if reasons.contains_key("guard") {
        Error::Guard { message: format!("{message}: those that are left lower true refusal") }
    } else {
        Error::failed_with(message, "more prompts, another lambda, or a higher `--kl-threshold` may leave one")
    }
}

fn row(candidate: &Candidate) -> crate::report::Candidate {
    let score = |get: fn(&CandidateScores) -> f64| candidate.scores.as_ref().map(get).and_then(finite);
    crate::report::Candidate {
        position: candidate.position,
        layer: candidate.layer,
        raw_norm: candidate.raw_norm,
        refusal_score: score(|s| s.refusal_score),
        harmful_refusal_score: score(|s| s.harmful_refusal_score),
        kl: score(|s| s.kl),
        discarded: candidate.discarded.clone(),
    }
}
