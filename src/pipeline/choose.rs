//! Selecting: candidates are scored with themselves ablated everywhere, on the validation prompts, as far as the choice
//! needs it (METHOD steps 5 to 7; [`Race`]).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::collect::{Activations, encode, labelled};
use super::engine::{Engine, Observer, Row, Session};
use super::journal::Journal;
use super::stage::Stage;
use crate::chat::Chat;
use crate::edit::{Ablation, Edit};
use crate::error::Error;
use crate::instrument::Request;
use crate::lm::ResidPoint;
use crate::method::cosmic::Concept;
use crate::method::layers::projections;
use crate::method::prompts::{PerClass, PromptClass, Split};
use crate::method::race::{Job, Race};
use crate::method::score::{kl_divergence, mean, refusal_score, softmax};
use crate::method::select::{Candidate, Discarded, Rules, ScoreBy, candidates};
use crate::report::{Baseline, CandidateRow, PositionLabel, SelectResult, Selected, finite};

/// What the entries of candidates in a journal are called.
const JOURNAL: &str = "candidate";

/// How often they are kept.
const OFTEN: Duration = Duration::from_secs(20);

/// A selected edit and how it was chosen.
pub struct Choice {
    /// The edit.
    pub edit: Edit,
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
    scorer: Scorer,
    /// Token ids of the validation prompts.
    prompts: PerClass<Vec<Vec<u32>>>,
    /// Next-token probabilities of the unchanged model for each harmless prompt, `[d_vocab]`.
    base: Vec<Vec<f64>>,
    baseline: Baseline,
    /// Scores of the harmful prompts on the unchanged model.
    harmful_base: Vec<f64>,
    /// What was measured, by the bits of the vector that was ablated.
    known: HashMap<Vec<u32>, PerClass<Vec<f64>>>,
    /// Where that is kept, if anywhere.
    journal: Option<&'a Journal>,
}

/// What a prompt scores.
enum Scorer {
    /// By the refusal tokens.
    Tokens(Vec<u32>),
    /// By its activations.
    Cosmic(Concept),
}

impl Scorer {
    fn new(score: ScoreBy, activations: &Activations) -> Result<Self, Error> {
        let tokens = &activations.info.refusal_tokens;
        match score {
            ScoreBy::Tokens if tokens.is_empty() => Err(Error::usage(
                "without refusal tokens prompts cannot be scored by them",
                "pass `--score cosmic`, or name the first words of the model's refusals with `--refusal-tokens`",
            )),
            ScoreBy::Tokens => Ok(Self::Tokens(tokens.clone())),
            ScoreBy::Cosmic => Ok(Self::Cosmic(Concept::new(&activations.means))),
        }
    }

    /// What has to be run for it, beside the next-token scores.
    fn request(&self, positions: usize) -> Request {
        let (probes, last_positions) = match self {
            Self::Tokens(_) => (Vec::new(), 1),
            Self::Cosmic(concept) => {
                (concept.layers().iter().map(|layer| (*layer, ResidPoint::Pre)).collect(), positions)
            }
        };
        Request { probes, logits: 1, last_positions, directions: 1, ..Request::default() }
    }

    /// The score of a prompt whose next token has the probabilities `p`.
    fn of(&self, class: PromptClass, p: &[f64], probes: &[Vec<f32>]) -> f64 {
        match self {
            Self::Tokens(tokens) => refusal_score(p, tokens),
            Self::Cosmic(concept) => concept.score(class, probes),
        }
    }
}

impl<'a> Chooser<'a> {
    /// Runs the unchanged model on the validation prompts.
    ///
    /// # Errors
    /// If a run fails, and if prompts are to be scored by refusal tokens and there are none.
    pub fn new(
        engine: &Engine<'a>,
        chat: &'a Chat,
        activations: &'a Activations,
        rules: Rules,
        observer: &dyn Observer,
    ) -> Result<Self, Error> {
        let info = &activations.info;
        let prompts = PerClass::try_from_fn(|class| encode(chat, info.prompts.get(class, Split::Val)))?;
        let scorer = Scorer::new(rules.score, activations)?;
        let mut session = engine.session(scorer.request(info.suffix.len()))?;
        // a zero direction: the base model, bit for bit
        let zero = [vec![0.0f32; engine.model.lm.d_model()]];
        let places: Vec<(PromptClass, usize)> =
            prompts.iter().flat_map(|(class, of)| (0..of.len()).map(move |at| (class, at))).collect();
        let row = |&(class, at): &(PromptClass, usize)| Row { tokens: &prompts.get(class)[at], direction: 0 };
        let rows: Vec<Row<'_>> = places.iter().map(row).collect();
        let mut base = vec![Vec::new(); prompts.harmless.len()];
        let mut scores = prompts.as_ref().map(|of| vec![0.0; of.len()]);
        observer.start(&Stage::ScoreValidation, rows.len() as u64);
        engine.visit(&mut session, &rows, &zero, |found| {
            let (class, at) = places[found.row];
            let p = softmax(&found.logits);
            scores.get_mut(class)[at] = scorer.of(class, &p, &found.probes);
            if class == PromptClass::Harmless {
                base[at] = p;
            }
            observer.advance(1);
            Ok(())
        })?;
        observer.finish();
        let baseline = Baseline {
            refusal_score: mean(&scores.pseudo_harmful),
            harmful_refusal_score: mean(&scores.harmful),
            harmless_refusal_score: mean(&scores.harmless),
        };
        let harmful_base = scores.harmful;
        let known = HashMap::new();
        let engine = *engine;
        Ok(Self {
            engine,
            chat,
            activations,
            rules,
            session,
            scorer,
            prompts,
            base,
            baseline,
            harmful_base,
            known,
            journal: None,
        })
    }

    /// The same, with what was measured kept in a journal, and found again there.
    #[must_use]
    pub fn kept_in(self, journal: Option<&'a Journal>) -> Self {
        Self { journal, ..self }
    }

    /// Scores the candidates of `lambda` with the share `strength` of the component ablated, as far as the choice needs
    /// it ([`Rules::search`]), and selects one.
    ///
    /// # Errors
    /// If a run fails, or if no candidate is left.
    pub fn choose(&mut self, lambda: f64, strength: f64, observer: &dyn Observer) -> Result<Choice, Error> {
        let activations = self.activations;
        let mut all = candidates(&activations.means, lambda, &self.rules);
        for candidate in &mut all {
            candidate.measured = hook(candidate, strength).map(|hook| self.recall(bits(&hook))).unwrap_or_default();
        }
        let winner = self.race(&mut all, strength, observer)?;
        let Some(winner) = winner else { return Err(nothing_left(&all)) };
        let winner = &all[winner];
        let scores = winner.measured.as_ref().map(|values| mean(values));
        let selected = Selected {
            position: winner.position,
            layer: winner.layer,
            lambda,
            refusal_score: scores.pseudo_harmful,
            harmful_refusal_score: scores.harmful,
            kl: scores.harmless,
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
            paper: Rules { search: Rules::PAPER.search, ..self.rules } == Rules::PAPER,
            search: self.rules.search,
            score: self.rules.score,
            layers: projections(&activations.means, winner.position, lambda, direction.unit()),
            refined: None,
        };
        Ok(Choice { edit: Ablation::new(direction).with_strength(strength).into(), result })
    }

    /// What was measured with a vector ablated.
    fn recall(&self, vector: Vec<u32>) -> PerClass<Vec<f64>> {
        let known = self.known.get(&vector).cloned();
        let kept = || self.journal?.get(JOURNAL, &self.key(vector));
        known.or_else(kept).unwrap_or_default()
    }

    fn key(&self, vector: Vec<u32>) -> (&str, ScoreBy, Vec<u32>) {
        (&self.activations.info.fingerprint, self.rules.score, vector)
    }

    /// Keeps what was measured since it was kept last.
    fn keep(&mut self, all: &[Candidate], strength: f64) -> Result<(), Error> {
        let mut more = Vec::new();
        for candidate in all {
            let Some(hook) = hook(candidate, strength) else { continue };
            let vector = bits(&hook);
            let measured = candidate.measured.clone();
            if self.known.get(&vector) != Some(&measured) && measured != PerClass::default() {
                self.known.insert(vector.clone(), measured.clone());
                more.push((vector, measured));
            }
        }
        let Some(journal) = self.journal else { return Ok(()) };
        let entries: Vec<_> = more.into_iter().map(|(vector, measured)| (self.key(vector), measured)).collect();
        journal.put_all(JOURNAL, entries.iter().map(|(key, measured)| (key, measured)))
    }

    /// Measures the candidates as far as the choice needs it, and returns the index of the winner.
    fn race(&mut self, all: &mut [Candidate], strength: f64, observer: &dyn Observer) -> Result<Option<usize>, Error> {
        let harmful_base = self.harmful_base.clone();
        let race = Race {
            n_layers: self.engine.model.lm.n_layers(),
            rules: &self.rules.clone(),
            prompts: self.prompts.as_ref().map(Vec::len),
            harmful_base: &harmful_base,
        };
        observer.start(&Stage::ScoreCandidates, race.at_most(all));
        let (mut done, mut saved) = (0, Instant::now());
        let winner = loop {
            let jobs = race.next(all);
            if jobs.is_empty() {
                break race.finish(all);
            }
            done += jobs.iter().map(|job| job.prompts.len() as u64).sum::<u64>();
            self.measure(all, &jobs, strength, observer)?;
            observer.expect(done + race.at_most(all));
            if saved.elapsed() > OFTEN {
                self.keep(all, strength)?;
                saved = Instant::now();
            }
        };
        observer.finish();
        self.keep(all, strength)?;
        Ok(winner)
    }

    /// Runs what `jobs` ask for, each prompt with its candidate ablated everywhere, and adds it to what was measured.
    fn measure(
        &mut self,
        all: &mut [Candidate],
        jobs: &[Job],
        strength: f64,
        observer: &dyn Observer,
    ) -> Result<(), Error> {
        let Self { engine, session, scorer, prompts, base, .. } = self;
        let directions: Vec<Vec<f32>> =
            jobs.iter().map(|job| hook(&all[job.candidate], strength).unwrap_or_default()).collect();
        let places: Vec<(usize, usize)> =
            jobs.iter().enumerate().flat_map(|(at, job)| job.prompts.clone().map(move |prompt| (at, prompt))).collect();
        let row = |&(at, prompt): &(usize, usize)| Row { tokens: &prompts.get(jobs[at].class)[prompt], direction: at };
        let rows: Vec<Row<'_>> = places.iter().map(row).collect();
        let mut found: Vec<Vec<f64>> = jobs.iter().map(|job| vec![0.0; job.prompts.len()]).collect();
        engine.visit(session, &rows, &directions, |result| {
            let (at, prompt) = places[result.row];
            let q = softmax(&result.logits);
            found[at][prompt - jobs[at].prompts.start] = match jobs[at].class {
                PromptClass::Harmless => kl_divergence(&base[prompt], &q),
                class @ (PromptClass::Harmful | PromptClass::PseudoHarmful) => scorer.of(class, &q, &result.probes),
            };
            observer.advance(1);
            Ok(())
        })?;
        for (job, values) in jobs.iter().zip(found) {
            all[job.candidate].measured.get_mut(job.class).extend(values);
        }
        Ok(())
    }
}

/// What is ablated when a candidate is tried, `[d_model]`; `None` where it has no direction.
fn hook(candidate: &Candidate, strength: f64) -> Option<Vec<f32>> {
    let direction = candidate.direction.clone()?;
    Some(Ablation::new(direction).with_strength(strength).vectors()[0].hook())
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
    let score = |values: &Vec<f64>| if values.is_empty() { None } else { finite(mean(values)) };
    let scores = candidate.measured.as_ref().map(score);
    CandidateRow {
        position: candidate.position,
        layer: candidate.layer,
        raw_norm: candidate.raw_norm,
        refusal_score: scores.pseudo_harmful,
        harmful_refusal_score: scores.harmful,
        kl: scores.harmless,
        prompts: candidate.measured.as_ref().map(Vec::len),
        discarded: candidate.discarded,
    }
}
