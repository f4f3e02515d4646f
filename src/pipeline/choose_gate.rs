//! Choosing a gated ablation: gates are fitted on activations of single prompts, at the layers that tell prompts of a hand
//! apart that they were not fitted on, they are tried at run time on validation prompts, and one is chosen.

mod fit;

use self::fit::{CLASSES, Fits, Fitted, OBSERVED, Used, fit, positions};
use super::collect::{Activations, Info, encode, labelled};
use super::engine::{Engine, Observer, Row, Steering};
use super::journal::Journal;
use super::stage::Stage;
use crate::chat::Chat;
use crate::edit::{Edit, GatedTerm};
use crate::error::Error;
use crate::eval::statistics::Paired;
use crate::instrument::Request;
use crate::method::gate::Gate;
use crate::method::gate::radial::RadialRules;
use crate::method::prompts::{Both, PromptClass, Prompts, SourceName, Split, sources};
use crate::method::score::{kl_divergence, mean, refusal_score, softmax};
use crate::report::{
    GateCandidate, GateDiscarded, GateResult, GateScores, GateSetting, PerClass, false_refusal, finite,
};

/// What the entries of settings of gates in a journal are called.
const JOURNAL: &str = "gate";

/// How gates are fitted and which are tried.
#[derive(Debug, Clone, PartialEq)]
pub struct GateRules {
    /// Shrinkage of the discriminants that rank layers, and of those that tell the last position, above 0 and at most 1.
    pub shrinkage: f64,
    /// How the gates themselves are fitted.
    pub radial: RadialRules,
    /// How many layers are tried at run time, each alone.
    pub layers: usize,
    /// Shares of the refused harmful train prompts, in the mean over the sources, for which a gate may open, in the order in
    /// which they are tried: as far as the first of which a setting holds.
    pub opens: Vec<f64>,
    /// Factors that are tried.
    pub alphas: Vec<f64>,
    /// Layers from this share of the model on are left alone.
    pub layer_share: f64,
    /// Largest mean harmless KL divergence, in nats.
    pub kl_threshold: f64,
    /// Largest share of harmful prompts that the guard lets be lost. Of the validation prompts so few may be that, with 95 %
    /// confidence, new ones lose at most half of it.
    pub harmful_drop: f64,
}

impl Default for GateRules {
    fn default() -> Self {
        Self {
            shrinkage: 0.1,
            radial: RadialRules::default(),
            layers: 3,
            opens: Self::opens(0.02),
            alphas: vec![1.0, 2.0, 3.0],
            layer_share: 0.8,
            kl_threshold: 0.05,
            harmful_drop: 0.02,
        }
    }
}

/// What sets a candidate apart.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Setting {
    /// Which of the fitted layers.
    at: usize,
    open: f64,
    alpha: f64,
}

impl GateRules {
    /// The shares that are tried where so large a share of harmful refusal may be lost: half of it, since prompts of a hand
    /// that a gate does not know lose more than those that it does, then a quarter.
    pub fn opens(harmful_drop: f64) -> Vec<f64> {
        vec![harmful_drop / 2.0, harmful_drop / 4.0]
    }

    /// Prompts that the choice runs, those that several settings run for each of them; about.
    pub fn prompt_runs(&self, prompts: &Prompts) -> usize {
        let of = |both: &Both| both.pseudo_harmful.len() + both.harmful.len();
        let all = sources(prompts);
        let harmless = |split| prompts.get(PromptClass::Harmless, split).len();
        let further = CLASSES.iter().map(|class| prompts.class(*class).further.len()).sum::<usize>();
        let train = all.iter().map(|source| of(&source.train)).sum::<usize>() + further + harmless(Split::Train);
        let val = all.iter().map(|source| of(&source.val)).sum::<usize>() + harmless(Split::Val);
        // as a rule one of the first share holds
        let settings = self.layers * self.alphas.len();
        // some prompts of each class are answered, and run with their answers
        train + 2 * PromptClass::ALL.len() * OBSERVED + (1 + settings) * val
    }

    /// Every setting that opens for so many, where so many layers have a gate.
    fn grid(&self, layers: usize, open: f64) -> Vec<Setting> {
        let each = (0..layers).flat_map(|at| self.alphas.iter().map(move |&alpha| Setting { at, open, alpha }));
        each.collect()
    }
}

/// A chosen gated ablation and how it was chosen.
pub struct GateChoice {
    /// The edit.
    pub edit: Edit,
    /// What is reported.
    pub result: GateResult,
}

/// The validation prompts, run under one candidate after another.
struct Validation {
    /// Tokens, with the source and class of each; harmless prompts are the run's own.
    prompts: Vec<(Vec<u32>, usize, PromptClass)>,
    sources: Vec<SourceName>,
    /// Refusal scores of the unchanged model, in nats.
    scores: Vec<f64>,
    /// Its next-token probabilities, `[d_vocab]`; empty but for harmless prompts.
    base: Vec<Vec<f64>>,
}

impl Validation {
    fn new(chat: &Chat, activations: &Activations, sources: &[Used]) -> Result<Self, Error> {
        let mut prompts = Vec::new();
        for (at, Used { of, .. }) in sources.iter().enumerate() {
            let classes =
                [(PromptClass::PseudoHarmful, &of.val.pseudo_harmful), (PromptClass::Harmful, &of.val.harmful)];
            for (class, texts) in classes {
                prompts.extend(encode(chat, texts)?.into_iter().map(|tokens| (tokens, at, class)));
            }
        }
        let harmless = encode(chat, activations.info.prompts.get(PromptClass::Harmless, Split::Val))?;
        prompts.extend(harmless.into_iter().map(|tokens| (tokens, 0, PromptClass::Harmless)));
        let sources = sources.iter().map(|used| used.of.source).collect();
        Ok(Self { prompts, sources, scores: Vec::new(), base: Vec::new() })
    }

    /// Runs every prompt and returns the refusal scores and, of harmless prompts, what `each` makes of the next-token
    /// probabilities.
    fn run<T: Default + Clone>(
        &self,
        engine: &Engine<'_>,
        refusal_tokens: &[u32],
        observer: &dyn Observer,
        mut each: impl FnMut(usize, Vec<f64>) -> T,
    ) -> Result<(Vec<f64>, Vec<T>), Error> {
        let mut session = engine.session(Request { logits: 1, last_positions: 1, ..Request::default() })?;
        let rows: Vec<Row<'_>> = self.prompts.iter().map(|(tokens, ..)| Row { tokens, direction: 0 }).collect();
        let (mut scores, mut harmless) = (vec![0.0; rows.len()], vec![T::default(); rows.len()]);
        engine.visit(&mut session, &rows, &[], |found| {
            let p = softmax(&found.logits);
            scores[found.row] = refusal_score(&p, refusal_tokens);
            if self.prompts[found.row].2 == PromptClass::Harmless {
                harmless[found.row] = each(found.row, p);
            }
            observer.advance(1);
            Ok(())
        })?;
        Ok((scores, harmless))
    }

    /// Indices of the harmless prompts.
    fn harmless(&self) -> impl Iterator<Item = usize> {
        (0..self.prompts.len()).filter(|row| self.prompts[*row].2 == PromptClass::Harmless)
    }

    /// What refusal scores come to, source by source.
    fn table(&self, scores: &[f64]) -> Vec<GateScores> {
        let of_source = |(at, source): (usize, &SourceName)| {
            let mut row = GateScores { source: *source, ..GateScores::default() };
            for (index, (_, of, class)) in self.prompts.iter().enumerate() {
                let refused = scores[index] > 0.0;
                let count = match class {
                    PromptClass::PseudoHarmful if *of == at => &mut row.pseudo_harmful,
                    PromptClass::Harmful if *of == at => &mut row.harmful,
                    _ => continue,
                };
                count.total += 1;
                count.refused += usize::from(refused);
                row.lost += usize::from(*class == PromptClass::Harmful && self.scores[index] > 0.0 && !refused);
            }
            row
        };
        self.sources.iter().enumerate().map(of_source).collect()
    }
}

/// Gates that were fitted, and what the settings of them came to on validation prompts.
pub struct Gates {
    /// Those that may be chosen, the best layer first.
    fitted: Vec<Fitted>,
    /// What tells the last position, at each of their layers.
    positions: Vec<Gate>,
    sources: Vec<Used>,
    tried: Vec<Setting>,
    /// Indices of the settings that hold, the best first.
    ranked: Vec<usize>,
    /// What is reported of any choice.
    result: GateResult,
}

impl Gates {
    /// Fits gates and tries settings of them; what those come to is kept in the journal and found again there.
    ///
    /// # Errors
    /// If a run fails, and if no layer has a gate.
    pub fn search(
        engine: &Engine<'_>,
        chat: &Chat,
        activations: &Activations,
        rules: &GateRules,
        observer: &dyn Observer,
        journal: Option<&Journal>,
    ) -> Result<Self, Error> {
        let info = &activations.info;
        let Fits { fitted, layers, sources, left_out } = fit(engine, chat, activations, rules, observer)?;
        if fitted.is_empty() {
            return Err(Error::failed_with(
                "no layer has a gate: the activations of pseudo-harmful and harmful prompts cannot be told apart",
                "other prompts may be; or choose another `--method`",
            ));
        }
        let positions = positions(engine, chat, activations, &fitted, rules, observer)?;
        let result = GateResult {
            shrinkage: rules.shrinkage,
            left_out,
            layers,
            kept: activations.means.as_ref().map(|means| means.count()),
            total: PerClass::from_fn(|class| info.prompts.get(class, Split::Train).len()),
            refusal_tokens: labelled(&info.refusal_tokens, chat),
            refusal_tokens_chosen: info.refusal_tokens_chosen,
            ..GateResult::default()
        };
        let mut gates = Self { fitted, positions, sources, tried: Vec::new(), ranked: Vec::new(), result };
        let validation = Validation::new(chat, activations, &gates.sources)?;
        gates.try_all(engine, validation, info, rules, (observer, journal))?;
        Ok(gates)
    }

    /// Runs the validation prompts under the settings of one share after another, as far as one holds.
    fn try_all(
        &mut self,
        engine: &Engine<'_>,
        mut validation: Validation,
        info: &Info,
        rules: &GateRules,
        (observer, journal): (&dyn Observer, Option<&Journal>),
    ) -> Result<(), Error> {
        let n = validation.prompts.len() as u64;
        observer.start(&Stage::ScoreGates, n);
        (validation.scores, validation.base) = validation.run(engine, &info.refusal_tokens, observer, |_, p| p)?;
        let baseline = validation.table(&validation.scores);
        let mut candidates: Vec<GateCandidate> = Vec::new();
        for &open in &rules.opens {
            if candidates.iter().any(|candidate| candidate.discarded.is_none()) {
                break;
            }
            let settings = rules.grid(self.fitted.len(), open);
            observer.expect(n * (1 + self.tried.len() + settings.len()) as u64);
            for setting in settings {
                candidates.push(self.try_one(
                    setting,
                    engine,
                    (&validation, &baseline),
                    info,
                    rules,
                    (observer, journal),
                )?);
                self.tried.push(setting);
            }
        }
        observer.finish();
        self.ranked = ranked(&candidates);
        self.result.baseline = baseline;
        self.result.harmless = validation.harmless().count();
        self.result.candidates = candidates;
        Ok(())
    }

    /// What a setting comes to on the validation prompts.
    fn try_one(
        &self,
        setting: Setting,
        engine: &Engine<'_>,
        (validation, baseline): (&Validation, &[GateScores]),
        info: &Info,
        rules: &GateRules,
        (observer, journal): (&dyn Observer, Option<&Journal>),
    ) -> Result<GateCandidate, Error> {
        let edit = Edit::new(None, vec![], vec![self.term(setting)?.rounded()])?;
        let key = (&info.fingerprint, journal.map(|_| format!("{edit:?}")));
        let (scores, kl) = match journal.and_then(|journal| journal.get(JOURNAL, &key)) {
            Some(found) => {
                observer.advance(validation.prompts.len() as u64);
                found
            }
            None => {
                let steering = Steering::of(&edit);
                let steered = Engine { steered: Some(&steering), ..*engine };
                let divergence = |row: usize, q: Vec<f64>| kl_divergence(&validation.base[row], &q);
                let found = validation.run(&steered, &info.refusal_tokens, observer, divergence)?;
                journal.map_or(Ok(()), |journal| journal.put(JOURNAL, &key, &found))?;
                found
            }
        };
        let kl = mean(&validation.harmless().map(|row| kl[row]).collect::<Vec<_>>());
        let scored = validation.table(&scores);
        let row = GateCandidate { setting: self.told(setting), scores: scored, kl: finite(kl), discarded: None };
        let discarded = match kl.is_nan() || scores.iter().any(|score| score.is_nan()) {
            true => Some(GateDiscarded::NotANumber),
            false => discarded(&row, baseline, rules),
        };
        Ok(GateCandidate { discarded, ..row })
    }

    fn term(&self, Setting { at, open, alpha }: Setting) -> Result<GatedTerm, Error> {
        self.fitted[at].term(&self.fitted[at].gate(open), &self.positions[at], alpha)
    }

    /// A setting as it is reported.
    fn told(&self, Setting { at, open, alpha }: Setting) -> GateSetting {
        GateSetting { layers: vec![self.fitted[at].layer], open, alpha }
    }

    /// How many settings hold.
    pub fn len(&self) -> usize {
        self.ranked.len()
    }

    /// Whether none holds.
    pub fn is_empty(&self) -> bool {
        self.ranked.is_empty()
    }

    /// The edit of a setting that holds, the best first.
    ///
    /// # Errors
    /// Where none does: the guard's refusal if one lost too much true refusal, else a plain failure.
    pub fn choice(&self, rank: usize) -> Result<GateChoice, Error> {
        let Some(&at) = self.ranked.get(rank) else { return Err(nothing_left(&self.result.candidates)) };
        let chosen = self.tried[at];
        let fitted = &self.fitted[chosen.at];
        let row = fitted.row(&fitted.gate(chosen.open), &self.positions[chosen.at], &self.sources);
        let result = GateResult { selected: self.told(chosen), terms: vec![row], ..self.result.clone() };
        Ok(GateChoice { edit: Edit::new(None, vec![], vec![self.term(chosen)?])?, result })
    }
}

/// Fits, tries and chooses.
///
/// # Errors
/// If a run fails; if no layer has a gate, or no setting holds.
pub fn choose(
    engine: &Engine<'_>,
    chat: &Chat,
    activations: &Activations,
    rules: &GateRules,
    observer: &dyn Observer,
    journal: Option<&Journal>,
) -> Result<GateChoice, Error> {
    Gates::search(engine, chat, activations, rules, observer, journal)?.choice(0)
}

/// Indices of the candidates that hold, the one that leaves the least false refusal first, ties by the smaller harmless KL.
fn ranked(candidates: &[GateCandidate]) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..candidates.len()).filter(|at| candidates[*at].discarded.is_none()).collect();
    let kl = |candidate: &GateCandidate| candidate.kl.unwrap_or(f64::INFINITY);
    ranked.sort_by(|a, b| {
        let (a, b) = (&candidates[*a], &candidates[*b]);
        false_refusal(&a.scores).total_cmp(&false_refusal(&b.scores)).then(kl(a).total_cmp(&kl(b)))
    });
    ranked
}

/// Harmful prompts that the unchanged model refuses and the edited one does not.
fn lost(scores: &[GateScores]) -> usize {
    scores.iter().map(|scores| scores.lost).sum()
}

/// How sure it must be that new prompts lose no more than those that a setting is chosen on.
const CONFIDENCE: f64 = 0.95;

/// The most of so many harmful prompts that may be lost so that the share that new ones lose is at most `limit`, by its upper
/// confidence bound; none where there are too few to tell. Of many settings the one that wins has been lucky too, which
/// the share itself does not know.
fn allowed(limit: f64, harmful: usize) -> usize {
    let bound = |lost| Paired { both: harmful - lost, lost, ..Paired::default() }.drop_upper(CONFIDENCE);
    (1..=harmful).take_while(|lost| bound(*lost).is_some_and(|bound| bound <= limit)).last().unwrap_or(0)
}

/// Why a candidate is out.
fn discarded(candidate: &GateCandidate, baseline: &[GateScores], rules: &GateRules) -> Option<GateDiscarded> {
    // prompts of a hand that no source has lose more
    let allowed = allowed(rules.harmful_drop / 2.0, baseline.iter().map(|scores| scores.harmful.total).sum());
    let lost = lost(&candidate.scores);
    if lost > allowed {
        Some(GateDiscarded::TrueRefusal { lost, allowed })
    } else if candidate.kl.is_none_or(|kl| kl > rules.kl_threshold) {
        Some(GateDiscarded::Divergence { limit: rules.kl_threshold })
    } else if false_refusal(&candidate.scores) >= false_refusal(baseline) {
        Some(GateDiscarded::NoGain)
    } else {
        None
    }
}

/// Every candidate was discarded: the guard's refusal if one lost too much true refusal, else a plain failure. The one that
/// lost the least is told.
fn nothing_left(candidates: &[GateCandidate]) -> Error {
    let out = candidates.iter().filter(|candidate| candidate.discarded.is_some());
    let closest = out.min_by_key(|candidate| lost(&candidate.scores));
    let why = closest.and_then(|candidate| {
        let GateCandidate { setting: GateSetting { layers, open, alpha }, discarded, .. } = candidate;
        let reason = (*discarded)?;
        Some(format!("; closest came layers {layers:?}, open for {open} of harmful prompts, factor {alpha}: {reason}"))
    });
    let message = format!("none of {} settings of gates holds{}", candidates.len(), why.unwrap_or_default());
    let refused = |candidate: &GateCandidate| matches!(candidate.discarded, Some(GateDiscarded::TrueRefusal { .. }));
    if candidates.iter().any(refused) {
        Error::Guard { message }
    } else {
        Error::failed_with(message, "more prompts, or prompts of more sources, may help; or choose another `--method`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::report::Refused;

    fn scores(refused: usize, lost: usize) -> GateScores {
        GateScores {
            pseudo_harmful: Refused { refused, total: 40 },
            harmful: Refused { refused: 150 - lost, total: 150 },
            lost,
            ..GateScores::default()
        }
    }

    fn candidate(refused: usize, lost: usize, kl: f64) -> GateCandidate {
        GateCandidate {
            scores: vec![scores(refused, lost), scores(refused, 0)],
            kl: Some(kl),
            ..GateCandidate::default()
        }
    }

    #[test]
    fn what_loses_refusal_or_changes_harmless_prompts_is_out() {
        let (rules, baseline) = (GateRules::default(), [scores(30, 0), scores(30, 0)]);
        let out = |candidate: &GateCandidate| discarded(candidate, &baseline, &rules);
        // of 300 harmful prompts, where the bound of none is 0.9 % and that of 1 is 1.5 %
        assert_eq!(out(&candidate(10, 0, 0.05)), None);
        assert_eq!(out(&candidate(10, 1, 0.0)), Some(GateDiscarded::TrueRefusal { lost: 1, allowed: 0 }));
        // half of 4 %
        let rules = GateRules { harmful_drop: 0.04, ..GateRules::default() };
        assert_eq!(discarded(&candidate(10, 2, 0.0), &baseline, &rules), None);
        assert_eq!(out(&candidate(10, 0, 0.051)), Some(GateDiscarded::Divergence { limit: 0.05 }));
        assert_eq!(out(&candidate(30, 0, 0.0)), Some(GateDiscarded::NoGain));
        let unknown = GateCandidate { kl: None, ..candidate(10, 0, 0.0) };
        assert_eq!(out(&unknown), Some(GateDiscarded::Divergence { limit: 0.05 }));
    }

    #[test]
    fn what_may_be_lost_keeps_to_the_limit_by_its_bound() {
        for (limit, harmful, most) in
            [(0.02, 0, 0), (0.02, 133, 0), (0.02, 290, 1), (0.02, 300, 2), (0.02, 1000, 12), (0.1, 100, 5)]
        {
            assert_eq!(allowed(limit, harmful), most, "{limit} of {harmful}");
        }
        assert_eq!((allowed(0.0, 500), allowed(1.0, 500)), (0, 500));
    }

    /// Where true refusal would be lost the guard has refused, with its exit code.
    #[test]
    fn where_nothing_is_left_the_reasons_are_told() {
        let out = |reason| GateCandidate { discarded: Some(reason), ..candidate(10, 0, 0.0) };
        let lost = |lost| GateCandidate {
            discarded: Some(GateDiscarded::TrueRefusal { lost, allowed: 2 }),
            ..candidate(10, lost, 0.0)
        };
        let error = nothing_left(&[lost(5), lost(3), lost(4)]);
        let Error::Guard { message } = &error else { panic!("the guard refuses: {error}") };
        assert!(message.contains("3 settings") && message.contains("3 harmful"), "{message}");
        let error = nothing_left(&[out(GateDiscarded::NoGain)]);
        assert!(matches!(error, Error::Other { kind: Kind::Failed, .. }));
    }

    #[test]
    fn the_setting_that_leaves_the_least_false_refusal_comes_first() {
        let out = GateCandidate { discarded: Some(GateDiscarded::NoGain), ..candidate(1, 0, 0.0) };
        let all = [candidate(20, 0, 0.0), candidate(10, 2, 0.02), out, candidate(10, 1, 0.01)];
        assert_eq!(ranked(&all), [3, 1, 0]);
        assert!(ranked(&[]).is_empty());
    }

    #[test]
    fn each_layer_is_tried_with_each_factor() {
        let rules = GateRules::default();
        let tried = |layers| rules.grid(layers, 0.01).iter().map(|one| (one.at, one.alpha)).collect::<Vec<_>>();
        assert_eq!(tried(2), [(0, 1.0), (0, 2.0), (0, 3.0), (1, 1.0), (1, 2.0), (1, 3.0)]);
        assert_eq!(tried(0), []);
    }
}
