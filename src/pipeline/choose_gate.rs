//! Choosing a gated ablation: gates are fitted at each layer on activations of single prompts, those of the layers that hold
//! best for sources they were not fitted on are tried at run time on validation prompts, and one is chosen.

use ndarray::{Axis, Slice};
use rayon::prelude::*;

use super::collect::{Activations, encode, labelled};
use super::engine::{Engine, Observer, Row, Steering};
use super::observe::{self, AtPosition, Positions};
use super::stage::Stage;
use crate::chat::Chat;
use crate::edit::{Direction, Edit, Factor, GatedTerm};
use crate::error::Error;
use crate::instrument::Request;
use crate::linalg::{cosine, dot};
use crate::method::direction::diff_in_means;
use crate::method::gate::{self, Fit, Gate, HeldOut, Source};
use crate::method::prompts::{Both, Hand, PromptClass, Prompts, PromptsOf, SourceName, Split, sources};
use crate::method::score::{kl_divergence, mean, refusal_score, softmax};
use crate::report::{
    GateCandidate, GateDiscarded, GateLayer, GateResult, GateScores, GateSetting, GateSource, GateTerm, PerClass,
    false_refusal, finite,
};

/// Refused train prompts of each class that a source must have to be used.
const FEWEST_REFUSED: usize = 8;

/// Prompts of each class whose other positions are looked at.
const OBSERVED: usize = 32;

/// How gates are fitted and which are tried.
#[derive(Debug, Clone, PartialEq)]
pub struct GateRules {
    /// Shrinkage of the discriminants, above 0 and at most 1.
    pub shrinkage: f64,
    /// Numbers of layers that are tried at run time.
    pub counts: Vec<usize>,
    /// Shares of the refused harmful train prompts of any source for which a gate may open, in the order in which they are
    /// tried: as far as the first of which a setting holds.
    pub opens: Vec<f64>,
    /// Factors that are tried.
    pub alphas: Vec<f64>,
    /// Layers from this share of the model on are left alone.
    pub layer_share: f64,
    /// Largest mean harmless KL divergence, in nats.
    pub kl_threshold: f64,
    /// Largest share of the harmful validation prompts that may no longer be refused.
    pub harmful_drop: f64,
}

impl Default for GateRules {
    fn default() -> Self {
        Self {
            shrinkage: 0.1,
            counts: vec![1, 2, 4],
            opens: vec![0.02, 0.01],
            alphas: vec![1.0, 2.0],
            layer_share: 0.8,
            kl_threshold: 0.05,
            harmful_drop: 0.02,
        }
    }
}

/// What sets a candidate apart.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Setting {
    count: usize,
    open: f64,
    alpha: f64,
}

impl GateRules {
    /// Prompts that the choice runs, those that several settings run for each of them; about.
    pub fn prompt_runs(&self, prompts: &Prompts) -> usize {
        let of = |both: &Both| both.pseudo_harmful.len() + both.harmful.len();
        let all = sources(prompts);
        let harmless = |split| prompts.get(PromptClass::Harmless, split).len();
        let train = all.iter().map(|source| of(&source.train)).sum::<usize>() + harmless(Split::Train);
        let val = all.iter().map(|source| of(&source.val)).sum::<usize>() + harmless(Split::Val);
        // as a rule one of the first share holds
        let settings = self.counts.len() * self.alphas.len();
        // some prompts of each class are answered, and run with their answers
        train + 2 * PromptClass::ALL.len() * OBSERVED + (1 + settings) * val
    }

    /// Every setting that opens for so many, where so many layers have a gate; none twice.
    fn grid(&self, layers: usize, open: f64) -> Vec<Setting> {
        let mut all: Vec<Setting> = Vec::new();
        for &count in &self.counts {
            for &alpha in &self.alphas {
                let setting = Setting { count: count.min(layers), open, alpha };
                if !all.contains(&setting) {
                    all.push(setting);
                }
            }
        }
        all
    }
}

/// A chosen gated ablation and how it was chosen.
pub struct GateChoice {
    /// The edit.
    pub edit: Edit,
    /// What is reported.
    pub result: GateResult,
}

/// The discriminant of a layer, and what is taken off behind it.
struct Fitted {
    layer: usize,
    fit: Fit,
    /// The true-refusal direction of the layer, `r`.
    direction: Direction,
    /// Components along `r` of the harmless prompts, ascending.
    harmless: Vec<f64>,
}

impl Fitted {
    /// `m`, the median of the harmless prompts.
    fn floor(&self) -> f64 {
        self.harmless[self.harmless.len() / 2]
    }

    /// How well the discriminants of the layer hold for sources that they were not fitted on.
    fn worth(&self) -> f64 {
        self.fit.generalises()
    }

    fn term(&self, gate: &Gate, position: &Gate, alpha: f64) -> Result<GatedTerm, Error> {
        let gates = [gate, position].map(|gate| Factor::gate(gate.direction.unit(), gate.threshold, gate.ramp));
        Ok(GatedTerm::ablation(self.layer, gates.into(), &self.direction, self.floor(), alpha)?)
    }

    fn row(&self, gate: &Gate, position: &Gate, all: &[Used]) -> GateTerm {
        let source = |(used, held): (&Used, &HeldOut)| GateSource {
            source: used.of.source,
            pseudo_harmful: used.pseudo_harmful,
            harmful: used.harmful,
            opens_pseudo_harmful: held.open,
            opens_harmful: held.shut,
            auc: held.auc,
        };
        GateTerm {
            layer: self.layer,
            threshold: gate.threshold,
            ramp: gate.ramp,
            floor: self.floor(),
            cosine: finite(cosine(gate.direction.unit(), self.direction.unit())),
            opens_elsewhere: position.held_out.iter().map(|held| held.shut).sum(),
            sources: all.iter().zip(&gate.held_out).map(source).collect(),
        }
    }
}

/// A source that gates are fitted on.
#[derive(Clone)]
struct Used {
    of: PromptsOf,
    /// Its pseudo-harmful train prompts that the model refuses; the others are not used.
    pseudo_harmful: usize,
    /// The same of the harmful ones.
    harmful: usize,
}

/// The best layers first, none beside one before it as long as others are left: layers that lie side by side say the same.
fn spread(mut fitted: Vec<Fitted>, most: usize) -> Vec<Fitted> {
    fitted.sort_by(|a, b| b.worth().total_cmp(&a.worth()).then(a.layer.cmp(&b.layer)));
    let mut chosen: Vec<Fitted> = Vec::new();
    while chosen.len() < most && !fitted.is_empty() {
        let apart = |one: &Fitted| chosen.iter().all(|other| one.layer.abs_diff(other.layer) > 1);
        let next = fitted.iter().position(apart).unwrap_or(0);
        chosen.push(fitted.remove(next));
    }
    chosen
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
    /// Indices of the settings that hold, the one that leaves the least false refusal first.
    ranked: Vec<usize>,
    /// What is reported of any choice.
    result: GateResult,
}

impl Gates {
    /// Fits gates and tries settings of them.
    ///
    /// # Errors
    /// If a run fails, and if no layer has a gate.
    pub fn search(
        engine: &Engine<'_>,
        chat: &Chat,
        activations: &Activations,
        rules: &GateRules,
        observer: &dyn Observer,
    ) -> Result<Self, Error> {
        let info = &activations.info;
        let Fits { fitted, layers, sources, left_out } = fit(engine, chat, activations, rules, observer)?;
        let fitted = spread(fitted, rules.counts.iter().copied().max().unwrap_or(1));
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
        gates.try_all(engine, validation, &info.refusal_tokens, rules, observer)?;
        Ok(gates)
    }

    /// Runs the validation prompts under the settings of one share after another, as far as one holds.
    fn try_all(
        &mut self,
        engine: &Engine<'_>,
        mut validation: Validation,
        refusal_tokens: &[u32],
        rules: &GateRules,
        observer: &dyn Observer,
    ) -> Result<(), Error> {
        let n = validation.prompts.len() as u64;
        observer.start(&Stage::ScoreGates, n);
        (validation.scores, validation.base) = validation.run(engine, refusal_tokens, observer, |_, p| p)?;
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
                    refusal_tokens,
                    rules,
                    observer,
                )?);
                self.tried.push(setting);
            }
        }
        observer.finish();
        self.ranked = (0..candidates.len()).filter(|at| candidates[*at].discarded.is_none()).collect();
        let kl = |candidate: &GateCandidate| candidate.kl.unwrap_or(f64::INFINITY);
        self.ranked.sort_by(|a, b| {
            let (a, b) = (&candidates[*a], &candidates[*b]);
            false_refusal(&a.scores).total_cmp(&false_refusal(&b.scores)).then(kl(a).total_cmp(&kl(b)))
        });
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
        refusal_tokens: &[u32],
        rules: &GateRules,
        observer: &dyn Observer,
    ) -> Result<GateCandidate, Error> {
        let gates = self.terms(setting)?.iter().map(GatedTerm::rounded).collect();
        let steering = Steering::of(&Edit::new(None, vec![], gates)?);
        let steered = Engine { steered: Some(&steering), ..*engine };
        let divergence = |row: usize, q: Vec<f64>| kl_divergence(&validation.base[row], &q);
        let (scores, kl) = validation.run(&steered, refusal_tokens, observer, divergence)?;
        let kl = mean(&validation.harmless().map(|row| kl[row]).collect::<Vec<_>>());
        let scored = validation.table(&scores);
        let row = GateCandidate { setting: self.told(setting), scores: scored, kl: finite(kl), discarded: None };
        let discarded = match kl.is_nan() || scores.iter().any(|score| score.is_nan()) {
            true => Some(GateDiscarded::NotANumber),
            false => discarded(&row, baseline, rules),
        };
        Ok(GateCandidate { discarded, ..row })
    }

    /// Indices of the gates of a setting, in the order of their layers.
    fn picked(&self, count: usize) -> Vec<usize> {
        let mut picked: Vec<usize> = (0..count.min(self.fitted.len())).collect();
        picked.sort_unstable_by_key(|at| self.fitted[*at].layer);
        picked
    }

    fn terms(&self, Setting { count, open, alpha }: Setting) -> Result<Vec<GatedTerm>, Error> {
        let term = |at: usize| self.fitted[at].term(&self.fitted[at].fit.gate(open), &self.positions[at], alpha);
        self.picked(count).into_iter().map(term).collect()
    }

    /// A setting as it is reported.
    fn told(&self, Setting { count, open, alpha }: Setting) -> GateSetting {
        GateSetting { layers: self.picked(count).into_iter().map(|at| self.fitted[at].layer).collect(), open, alpha }
    }

    /// How many settings hold.
    pub fn len(&self) -> usize {
        self.ranked.len()
    }

    /// Whether none holds.
    pub fn is_empty(&self) -> bool {
        self.ranked.is_empty()
    }

    /// The edit of a setting that holds; the first leaves the least false refusal.
    ///
    /// # Errors
    /// Where none does: the guard's refusal if one lost too much true refusal, else a plain failure.
    pub fn choice(&self, rank: usize) -> Result<GateChoice, Error> {
        let Some(&at) = self.ranked.get(rank) else { return Err(nothing_left(&self.result.candidates)) };
        let chosen = self.tried[at];
        let row =
            |at: usize| self.fitted[at].row(&self.fitted[at].fit.gate(chosen.open), &self.positions[at], &self.sources);
        let terms = self.picked(chosen.count).into_iter().map(row).collect();
        let result = GateResult { selected: self.told(chosen), terms, ..self.result.clone() };
        Ok(GateChoice { edit: Edit::new(None, vec![], self.terms(chosen)?)?, result })
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
) -> Result<GateChoice, Error> {
    Gates::search(engine, chat, activations, rules, observer)?.choice(0)
}

/// What was fitted.
struct Fits {
    fitted: Vec<Fitted>,
    /// Every layer that was looked at.
    layers: Vec<GateLayer>,
    /// What the gates are fitted on.
    sources: Vec<Used>,
    /// Sources of which the model refuses too few prompts, less than half of the harmful ones, or less of them than of the
    /// pseudo-harmful ones: to it they say nothing of harm.
    left_out: Vec<SourceName>,
}

/// The discriminants of all layers but the first and the last ones, and how each did.
fn fit(
    engine: &Engine<'_>,
    chat: &Chat,
    activations: &Activations,
    rules: &GateRules,
    observer: &dyn Observer,
) -> Result<Fits, Error> {
    let info = &activations.info;
    let last = (engine.model.lm.n_layers() as f64 * rules.layer_share) as usize;
    let layers: Vec<usize> = (1..last).collect();
    let all = sources(&info.prompts);
    let (mut prompts, mut ends) = (Vec::new(), vec![0]);
    let of_sources = all.iter().flat_map(|of| [&of.train.pseudo_harmful[..], &of.train.harmful[..]]);
    for texts in of_sources.chain([info.prompts.get(PromptClass::Harmless, Split::Train)]) {
        prompts.extend(encode(chat, texts)?);
        ends.push(prompts.len());
    }
    let AtPosition { layers: observed, scores } =
        observe::last_position(engine, &layers, &prompts, &info.refusal_tokens, observer)?;
    // only what the model refuses tells false from true refusal, and only that can be lost
    let refused = |part: usize| -> Vec<usize> { (ends[part]..ends[part + 1]).filter(|at| scores[*at] > 0.0).collect() };
    let is_known = |at: &usize| {
        let of = |part: usize| (refused(part).len(), ends[part + 1] - ends[part]);
        is_known(all[*at].source.hand, of(2 * at), of(2 * at + 1))
    };
    let (known, unknown): (Vec<usize>, Vec<usize>) = (0..all.len()).partition(is_known);
    let found: Vec<Result<Fitted, (usize, String)>> = layers
        .into_par_iter()
        .zip(observed)
        .map(|(layer, observed)| {
            let observed = observed.mapv(f64::from);
            let part = |at: usize| observed.select(Axis(0), &refused(at));
            let parts: Vec<_> = known.iter().map(|at| (part(2 * at), part(2 * at + 1))).collect();
            let sources = parts.iter().map(|(open, shut)| Source { open: open.view(), shut: shut.view() });
            let fit = gate::fit(&sources.collect::<Vec<_>>(), rules.shrinkage);
            let mean = |class| activations.of(class).mean(-1, layer);
            let r = Direction::new(diff_in_means(&mean(PromptClass::Harmful), &mean(PromptClass::Harmless)));
            let fit = fit.map_err(|error| (layer, error.to_string()))?;
            let direction = r.map_err(|error| (layer, error.to_string()))?;
            let rows = observed.slice_axis(Axis(0), Slice::from(ends[2 * all.len()]..ends[2 * all.len() + 1]));
            let along = rows.rows().into_iter().map(|row| dot(&row.to_vec(), direction.unit()));
            let mut harmless: Vec<f64> = along.collect();
            harmless.sort_unstable_by(f64::total_cmp);
            Ok(Fitted { layer, fit, direction, harmless })
        })
        .collect();
    let row = |found: &Result<Fitted, (usize, String)>| match found {
        Ok(Fitted { layer, fit, .. }) => {
            GateLayer { layer: *layer, generalises: Some(fit.generalises()), failure: None }
        }
        Err((layer, failure)) => GateLayer { layer: *layer, generalises: None, failure: Some(failure.clone()) },
    };
    Ok(Fits {
        layers: found.iter().map(row).collect(),
        fitted: found.into_iter().flatten().collect(),
        sources: known
            .iter()
            .map(|at| Used {
                of: all[*at].clone(),
                pseudo_harmful: refused(2 * at).len(),
                harmful: refused(2 * at + 1).len(),
            })
            .collect(),
        left_out: unknown.iter().map(|at| all[*at].source).collect(),
    })
}

/// Whether a source says anything of harm to a model that refuses so many of its pseudo-harmful and its harmful prompts, of
/// so many each: enough of both, and, but for the run's own prompts, at least half of the harmful ones and no smaller share
/// of those.
fn is_known(hand: Hand, pseudo_harmful: (usize, usize), harmful: (usize, usize)) -> bool {
    let share = |(refused, all): (usize, usize)| refused as f64 / all.max(1) as f64;
    let enough = pseudo_harmful.0.min(harmful.0) >= FEWEST_REFUSED;
    enough && (hand == Hand::Own || share(harmful) >= share(pseudo_harmful).max(0.5))
}

/// What tells the last position of a prompt from all others, at each layer.
fn positions(
    engine: &Engine<'_>,
    chat: &Chat,
    activations: &Activations,
    fitted: &[Fitted],
    rules: &GateRules,
    observer: &dyn Observer,
) -> Result<Vec<Gate>, Error> {
    let layers: Vec<usize> = fitted.iter().map(|fitted| fitted.layer).collect();
    let mut prompts = Vec::new();
    for class in PromptClass::ALL {
        let texts = activations.info.prompts.get(class, Split::Train);
        prompts.extend(encode(chat, &texts[..texts.len().min(OBSERVED)])?);
    }
    let separate = |Positions { last, others }: Positions| {
        let (last, others) = (last.mapv(f64::from), others.mapv(f64::from));
        gate::separate(last.view(), others.view(), rules.shrinkage)
            .map_err(|error| Error::failed(format!("the last position cannot be told from others: {error}")))
    };
    observe::positions(engine, &layers, &prompts, observer)?.into_iter().map(separate).collect()
}

/// Why a candidate is out.
fn discarded(candidate: &GateCandidate, baseline: &[GateScores], rules: &GateRules) -> Option<GateDiscarded> {
    let harmful: usize = baseline.iter().map(|scores| scores.harmful.total).sum();
    let allowed = (rules.harmful_drop * harmful as f64) as usize;
    let lost = candidate.scores.iter().map(|scores| scores.lost).sum();
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
    let lost = |candidate: &&GateCandidate| candidate.scores.iter().map(|scores| scores.lost).sum::<usize>();
    let closest = candidates.iter().filter(|candidate| candidate.discarded.is_some()).min_by_key(lost);
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
            harmful: Refused { refused: 50 - lost, total: 50 },
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
        // 2 % of 100 harmful prompts
        assert_eq!(out(&candidate(10, 2, 0.05)), None);
        assert_eq!(out(&candidate(10, 3, 0.0)), Some(GateDiscarded::TrueRefusal { lost: 3, allowed: 2 }));
        assert_eq!(out(&candidate(10, 0, 0.051)), Some(GateDiscarded::Divergence { limit: 0.05 }));
        assert_eq!(out(&candidate(30, 0, 0.0)), Some(GateDiscarded::NoGain));
        let unknown = GateCandidate { kl: None, ..candidate(10, 0, 0.0) };
        assert_eq!(out(&unknown), Some(GateDiscarded::Divergence { limit: 0.05 }));
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
    fn a_source_that_the_model_does_not_refuse_says_nothing() {
        assert!(is_known(Hand::Bundled, (40, 100), (97, 100)) && is_known(Hand::Contrasts, (100, 100), (100, 100)));
        assert!(!is_known(Hand::Bundled, (10, 100), (45, 100)), "most harmful prompts are answered");
        assert!(!is_known(Hand::Contrasts, (80, 100), (60, 100)), "pseudo-harmful prompts are refused more");
        assert!(is_known(Hand::Own, (80, 100), (60, 100)), "the run's own prompts are what it is about");
        for hand in [Hand::Own, Hand::Requests] {
            assert!(!is_known(hand, (7, 100), (90, 100)), "hardly any pseudo-harmful prompt is refused");
            assert!(!is_known(hand, (0, 0), (0, 0)));
        }
    }

    #[test]
    fn settings_are_tried_once() {
        let rules = GateRules::default();
        let counts = |layers| rules.grid(layers, 0.02).iter().map(|setting| setting.count).collect::<Vec<_>>();
        assert_eq!(counts(30), [1, 1, 2, 2, 4, 4]);
        assert_eq!(counts(2), [1, 1, 2, 2]);
    }
}
