//! Selecting: every candidate is scored with itself ablated everywhere, on the validation prompts
//! (METHOD steps 5 to 7).

use std::collections::{BTreeMap, HashMap, HashSet};

use super::collect::{Activations, encode, labelled};
use super::engine::{Engine, Observer, Row, Session};
use super::stage::Stage;
use crate::chat::Chat;
use crate::error::Error;
use crate::instrument::Request;
use crate::method::direction::Direction;
use crate::method::layers::projections;
use crate::method::prompts::{PerClass, PromptClass, Split};
use crate::method::score::{kl_divergence, mean, refusal_score, softmax};
use crate::method::select::{Candidate, CandidateScores, Discarded, Rules, candidates, select};
use crate::report::{Baseline, CandidateRow, PositionLabel, SelectResult, Selected, finite};

/// A selected direction and how it was chosen.
pub struct Choice {
    /// The direction.
    pub direction: Direction,
    /// What is reported.
    pub result: SelectResult,
}

/// Scores all candidates, each with the whole component ablated, and selects one.
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
    Chooser::new(engine, chat, activations, *rules, observer)?.choose(lambda, 1.0, observer)
}

/// Chooses for several lambdas and strengths: the unchanged model runs once, and so does a candidate that another lambda
/// has too.
pub struct Chooser<'a> {
    engine: Engine<'a>,
    chat: &'a Chat,
    activations: &'a Activations,
    rules: Rules,
    session: Session,
    /// Class, index in it, tokens.
    prompts: Vec<(PromptClass, usize, Vec<u32>)>,
    /// Logits of the unchanged model, `[d_vocab]` a prompt.
    base: Vec<Vec<f32>>,
    baseline: Baseline,
    /// Share of the harmful prompts that the unchanged model refuses.
    harmful_refused: f64,
    /// What was measured, by the bits of the vector that was ablated.
    known: HashMap<Vec<u32>, CandidateScores>,
}

/// Share of positive scores.
fn share(scores: &[f64]) -> f64 {
    scores.iter().filter(|s| **s > 0.0).count() as f64 / scores.len().max(1) as f64
}

impl<'a> Chooser<'a> {
    /// Runs the unchanged model on the validation prompts.
    ///
    /// # Errors
    /// If a run fails.
    pub fn new(
        engine: &Engine<'a>,
        chat: &'a Chat,
        activations: &'a Activations,
        rules: Rules,
        observer: &dyn Observer,
    ) -> Result<Self, Error> {
        let info = &activations.info;
        let mut prompts = Vec::new();
        for class in PromptClass::ALL {
            for (at, ids) in encode(chat, info.prompts.get(class, Split::Val))?.into_iter().enumerate() {
                prompts.push((class, at, ids));
            }
        }
        let mut session =
            engine.session(Request { logits: 1, last_positions: 1, ablation: true, ..Request::default() })?;
        // a zero direction: the base model, bit for bit
        let zero = [vec![0.0f32; engine.model.lm.d_model()]];
        let rows: Vec<Row<'_>> = prompts.iter().map(|(.., ids)| Row { tokens: ids, direction: 0 }).collect();
        let mut base: Vec<Vec<f32>> = vec![Vec::new(); prompts.len()];
        observer.start(&Stage::ScoreValidation, prompts.len() as u64);
        engine.visit(&mut session, &rows, &zero, |found| {
            base[found.row] = found.logits;
            observer.advance(1);
            Ok(())
        })?;
        observer.finish();
        let scores_of = |class: PromptClass| -> Vec<f64> {
            let of_class = prompts.iter().zip(&base).filter(|((c, ..), _)| *c == class);
            of_class.map(|(_, logits)| refusal_score(&softmax(logits), &info.refusal_tokens)).collect()
        };
        let harmful = scores_of(PromptClass::Harmful);
        let baseline = Baseline {
            refusal_score: mean(&scores_of(PromptClass::PseudoHarmful)),
            harmful_refusal_score: mean(&harmful),
            harmless_refusal_score: mean(&scores_of(PromptClass::Harmless)),
        };
        let harmful_refused = share(&harmful);
        let known = HashMap::new();
        let engine = *engine;
        Ok(Self { engine, chat, activations, rules, session, prompts, base, baseline, harmful_refused, known })
    }

    /// Scores all candidates of `lambda` with the share `strength` of the component ablated, and selects one.
    ///
    /// # Errors
    /// If a run fails, or if no candidate is left.
    pub fn choose(&mut self, lambda: f64, strength: f64, observer: &dyn Observer) -> Result<Choice, Error> {
        let activations = self.activations;
        let mut all = candidates(&activations.means, lambda, &self.rules);
        let mut directions = Vec::new();
        for candidate in &mut all {
            candidate.direction = candidate.direction.take().map(|direction| direction.with_strength(strength));
            directions.extend(candidate.direction.as_ref().map(Direction::hook));
        }
        self.measure(directions, observer)?;
        for candidate in &mut all {
            candidate.scores = candidate.direction.as_ref().map(|direction| self.known[&bits(&direction.hook())]);
        }
        let winner = select(&mut all, self.engine.model.lm.n_layers(), self.harmful_refused, &self.rules);
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
        let info = &activations.info;
        let label = |id: u32| self.chat.token_label(id);
        let n_pos = info.suffix.len() as i64;
        let result = SelectResult {
            selected,
            baseline: self.baseline.clone(),
            kept: activations.means.as_ref().map(|means| means.count()),
            total: PerClass::from_fn(|class| info.prompts.get(class, Split::Train).len()),
            refusal_tokens: labelled(&info.refusal_tokens, self.chat),
            refusal_tokens_chosen: info.refusal_tokens_chosen,
            candidates: all.iter().map(row).collect(),
            positions: info
                .suffix
                .iter()
                .enumerate()
                .map(|(at, &id)| PositionLabel { position: at as i64 - n_pos, token: label(id) })
                .collect(),
            paper: self.rules == Rules::PAPER,
            layers: projections(&activations.means, winner.position, lambda, direction.unit()),
        };
        Ok(Choice { direction, result })
    }

    /// Measures what is not known yet: every validation prompt with each vector ablated.
    fn measure(&mut self, mut directions: Vec<Vec<f32>>, observer: &dyn Observer) -> Result<(), Error> {
        let mut seen = HashSet::new();
        directions.retain(|direction| {
            let key = bits(direction);
            !self.known.contains_key(&key) && seen.insert(key)
        });
        let Self { engine, activations, session, prompts, base, .. } = self;
        let tokens = &activations.info.refusal_tokens;
        let rows: Vec<(usize, usize)> =
            (0..directions.len()).flat_map(|d| (0..prompts.len()).map(move |p| (d, p))).collect();
        let run: Vec<Row<'_>> = rows.iter().map(|&(d, p)| Row { tokens: &prompts[p].2, direction: d }).collect();
        let count = |class| prompts.iter().filter(|(c, ..)| *c == class).count();
        // for each vector: scores of harmful and pseudo-harmful, KL of harmless
        let empty = PerClass::from_fn(|class| vec![0.0; count(class)]);
        let mut tallies = vec![empty; directions.len()];
        observer.start(&Stage::ScoreCandidates, rows.len() as u64);
        engine.visit(session, &run, &directions, |found| {
            let (direction, prompt) = rows[found.row];
            let q = softmax(&found.logits);
            let (class, at, _) = &prompts[prompt];
            tallies[direction].get_mut(*class)[*at] = match class {
                PromptClass::Harmless => kl_divergence(&softmax(&base[prompt]), &q),
                PromptClass::Harmful | PromptClass::PseudoHarmful => refusal_score(&q, tokens),
            };
            observer.advance(1);
            Ok(())
        })?;
        observer.finish();
        for (direction, PerClass { harmful, pseudo_harmful, harmless: kl }) in directions.iter().zip(&tallies) {
            let scores = CandidateScores {
                refusal_score: mean(pseudo_harmful),
                harmful_refusal_score: mean(harmful),
                harmful_refused: share(harmful),
                kl: mean(kl),
            };
            self.known.insert(bits(direction), scores);
        }
        Ok(())
    }
}

fn bits(vector: &[f32]) -> Vec<u32> {
    vector.iter().map(|v| v.to_bits()).collect()
}

/// Every candidate was discarded: the guard's refusal if the guard discarded one, else a plain failure.
fn nothing_left(all: &[Candidate]) -> Error {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for discarded in all.iter().filter_map(|candidate| candidate.discarded.as_ref()) {
        *reasons.entry(discarded.short()).or_default() += 1;
    }
    let guarded = all.iter().any(|candidate| matches!(candidate.discarded, Some(Discarded::TrueRefusal { .. })));
    let list: Vec<String> = reasons.iter().map(|(reason, n)| format!("{reason}: {n}")).collect();
    let message = format!("all {} candidate directions were discarded ({})", all.len(), list.join(", "));
    if guarded {
        Error::Guard { message: format!("{message}: those that are left lower true refusal") }
    } else {
        Error::failed_with(message, "more prompts, another lambda, or a higher `--kl-threshold` may leave one")
    }
}

fn row(candidate: &Candidate) -> CandidateRow {
    let score = |get: fn(&CandidateScores) -> f64| candidate.scores.as_ref().map(get).and_then(finite);
    CandidateRow {
        position: candidate.position,
        layer: candidate.layer,
        raw_norm: candidate.raw_norm,
        refusal_score: score(|s| s.refusal_score),
        harmful_refusal_score: score(|s| s.harmful_refusal_score),
        kl: score(|s| s.kl),
        discarded: candidate.discarded,
    }
}
