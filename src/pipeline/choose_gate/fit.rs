//! Fitting gates on activations of single prompts.

use std::collections::HashMap;
use std::ops::Range;

use ndarray::{Array2, ArrayView1, Axis, Slice};
use rayon::prelude::*;

use super::GateRules;
use crate::chat::Chat;
use crate::edit::{Direction, Factor, GatedTerm};
use crate::error::Error;
use crate::linalg::dot;
use crate::method::direction::diff_in_means;
use crate::method::gate::radial::{self, RadialFit};
use crate::method::gate::{self, Gate, Generalises, HeldOut, Source};
use crate::method::prompts::{Hand, PromptClass, PromptsOf, SourceName, Split, normalised, sources};
use crate::pipeline::collect::{Activations, Info, encode};
use crate::pipeline::engine::{Engine, Observer};
use crate::pipeline::observe::{self, AtPosition, Positions};
use crate::report::{GateLayer, GateSource, GateTerm};

/// Refused train prompts of each class that a source must have to be used.
const FEWEST_REFUSED: usize = 8;

/// Prompts of each class whose other positions are looked at.
pub(super) const OBSERVED: usize = 32;

/// The gate of a layer, before its threshold, and what is taken off behind it.
pub(super) struct Fitted {
    pub layer: usize,
    /// How well discriminants of the layer hold for sources that they were not fitted on.
    pub ranked: Generalises,
    pub fit: RadialFit,
    /// The true-refusal direction of the layer, `r`.
    pub direction: Direction,
    /// Components along `r` of the harmless prompts, ascending.
    pub harmless: Vec<f64>,
}

impl Fitted {
    /// `m`, the median of the harmless prompts.
    fn floor(&self) -> f64 {
        self.harmless[self.harmless.len() / 2]
    }

    pub fn gate(&self, open: f64) -> Gate {
        self.fit.gate(open, self.ranked.aucs.as_deref())
    }

    pub fn term(&self, gate: &Gate, position: &Gate, alpha: f64) -> Result<GatedTerm, Error> {
        let gates = [gate, position].map(|gate| Factor::gate(gate.reading.clone(), gate.threshold, gate.ramp));
        Ok(GatedTerm::ablation(self.layer, gates.into(), &self.direction, self.floor(), alpha)?)
    }

    pub fn row(&self, gate: &Gate, position: &Gate, all: &[Used]) -> GateTerm {
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
            centers: self.fit.basis.count(),
            opens_elsewhere: position.held_out.iter().map(|held| held.shut).sum(),
            sources: all.iter().zip(&gate.held_out).map(source).collect(),
        }
    }
}

/// A source that gates are fitted on.
#[derive(Clone)]
pub(super) struct Used {
    pub of: PromptsOf,
    /// Its pseudo-harmful train prompts that the model refuses; the others are not used.
    pub pseudo_harmful: usize,
    /// The same of the harmful ones.
    pub harmful: usize,
}

/// The best layers first, `most` of them, none beside one before it as long as others are left: layers that lie side by side
/// say the same.
fn spread(mut ranked: Vec<(usize, f64)>, most: usize) -> Vec<usize> {
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < most && !ranked.is_empty() {
        let apart = |(layer, _): &(usize, f64)| chosen.iter().all(|other| layer.abs_diff(*other) > 1);
        let next = ranked.iter().position(apart).unwrap_or(0);
        chosen.push(ranked.remove(next).0);
    }
    chosen
}

/// What was fitted.
pub(super) struct Fits {
    pub fitted: Vec<Fitted>,
    /// Every layer that was looked at.
    pub layers: Vec<GateLayer>,
    /// What the gates are fitted on.
    pub sources: Vec<Used>,
    /// Sources of which the model refuses too few prompts, less than half of the harmful ones, or less of them than of the
    /// pseudo-harmful ones: to it they say nothing of harm.
    pub left_out: Vec<SourceName>,
}

/// The gates of the layers that tell best what they were not fitted on, and how each layer did but the first and the last.
pub(super) fn fit(
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
    let own = info.prompts.get(PromptClass::Harmless, Split::Train);
    let of_sources = all.iter().flat_map(|of| [&of.train.pseudo_harmful[..], &of.train.harmful[..]]);
    let Seen { layers: observed, samples, scores } =
        Seen::of(engine, chat, &layers, std::iter::once(own).chain(of_sources), info, observer)?;
    let (harmless, samples) = samples.split_first().expect("harmless prompts are the first");
    // only what the model refuses tells false from true refusal, and only that can be lost
    let of_source = |at: usize| [&samples[2 * at], &samples[2 * at + 1]];
    let is_known = |at: &usize| {
        let [open, shut] = of_source(*at).map(|samples| (refused(samples, &scores).len(), samples.len()));
        is_known(all[*at].source.hand, open, shut)
    };
    let (known, unknown): (Vec<usize>, Vec<usize>) = (0..all.len()).partition(is_known);
    let mut whole: Vec<[Vec<usize>; 2]> =
        known.iter().map(|at| of_source(*at).map(|samples| refused(samples, &scores))).collect();
    let ranked: Vec<Result<Generalises, String>> = (&observed)
        .into_par_iter()
        .map(|observed| {
            let parts = parts(observed, &whole);
            gate::generalises(&views(&parts), rules.shrinkage).map_err(|error| error.to_string())
        })
        .collect();
    let worth = |(layer, found): (&usize, &Result<Generalises, String>)| Some((*layer, found.as_ref().ok()?.mean));
    let best = spread(layers.iter().zip(&ranked).filter_map(worth).collect(), rules.layers);
    // the others are dropped before more is run
    let mut observed: Vec<Array2<f32>> = {
        let mut all: Vec<Option<Array2<f32>>> = observed.into_iter().map(Some).collect();
        best.iter().map(|layer| all[layer - 1].take().expect("a layer is chosen once")).collect()
    };
    let further = CLASSES.map(|class| info.prompts.class(class).further.as_slice());
    let ids = prompt_ids(&all, further);
    if let Some(own) = known.iter().position(|at| all[*at].source == SourceName::default()) {
        // further prompts of the run's own hand, with those that were drawn
        let more = Seen::of(engine, chat, &best, further.into_iter(), info, observer)?;
        let first = observed.first().map_or(0, Array2::nrows);
        for (class, samples) in more.samples.iter().enumerate() {
            whole[own][class].extend(refused(samples, &more.scores).iter().map(|sample| first + sample));
        }
        for (rows, more) in observed.iter_mut().zip(&more.layers) {
            rows.append(Axis(0), more.view()).expect("activations of one layer are of one width");
        }
    }
    let fit_one = |(layer, observed): (&usize, &Array2<f32>)| -> Result<Fitted, String> {
        let parts = parts(observed, &whole);
        let prompts: Vec<usize> = whole.iter().flatten().flatten().map(|sample| ids[sample - harmless.len()]).collect();
        let fit = radial::fit(&views(&parts), &prompts, &rules.radial).map_err(|error| error.to_string())?;
        let mean = |class| activations.of(class).mean(-1, *layer);
        let direction = Direction::new(diff_in_means(&mean(PromptClass::Harmful), &mean(PromptClass::Harmless)))
            .map_err(|error| error.to_string())?;
        let rows = observed.slice_axis(Axis(0), Slice::from(harmless.clone()));
        let single = |row: ArrayView1<'_, f32>| row.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let mut harmless: Vec<f64> = rows.rows().into_iter().map(|row| dot(&single(row), direction.unit())).collect();
        harmless.sort_unstable_by(f64::total_cmp);
        let ranked = ranked[layer - 1].clone()?;
        Ok(Fitted { layer: *layer, ranked, fit, direction, harmless })
    };
    let fitted: Vec<Result<Fitted, String>> = best.par_iter().zip(&observed).map(fit_one).collect();
    let row = |(layer, found): (&usize, &Result<Generalises, String>)| {
        let failed = best.iter().zip(&fitted).find(|(one, _)| *one == layer).and_then(|(_, fit)| fit.as_ref().err());
        match (found, failed) {
            (Ok(found), None) => GateLayer { layer: *layer, generalises: Some(found.mean), failure: None },
            (Err(failure), _) | (_, Some(failure)) => {
                GateLayer { layer: *layer, generalises: None, failure: Some(failure.clone()) }
            }
        }
    };
    Ok(Fits {
        layers: layers.iter().zip(&ranked).map(row).collect(),
        sources: known
            .iter()
            .zip(&whole)
            .map(|(at, [open, shut])| Used { of: all[*at].clone(), pseudo_harmful: open.len(), harmful: shut.len() })
            .collect(),
        left_out: unknown.iter().map(|at| all[*at].source).collect(),
        fitted: fitted.into_iter().flatten().collect(),
    })
}

/// What is seen of prompts at their last position.
struct Seen {
    /// The stream at each layer, `[prompts, d_model]`.
    layers: Vec<Array2<f32>>,
    /// Which of its rows each list of prompts has.
    samples: Vec<Range<usize>>,
    /// Refusal score of each prompt, in nats.
    scores: Vec<f64>,
}

impl Seen {
    fn of<'p>(
        engine: &Engine<'_>,
        chat: &Chat,
        layers: &[usize],
        lists: impl Iterator<Item = &'p [String]>,
        info: &Info,
        observer: &dyn Observer,
    ) -> Result<Self, Error> {
        let (mut prompts, mut samples) = (Vec::new(), Vec::new());
        for texts in lists {
            let first = prompts.len();
            prompts.extend(encode(chat, texts)?);
            samples.push(first..prompts.len());
        }
        let AtPosition { layers, scores } = match prompts.is_empty() {
            true => AtPosition { layers: Vec::new(), scores: Vec::new() },
            false => observe::last_position(engine, layers, &prompts, &info.refusal_tokens, observer)?,
        };
        Ok(Self { layers, samples, scores })
    }
}

/// Those of the samples that the model refuses.
fn refused(samples: &Range<usize>, scores: &[f64]) -> Vec<usize> {
    samples.clone().filter(|sample| scores[*sample] > 0.0).collect()
}

/// The classes that a gate tells apart, in the order of a source.
pub(super) const CLASSES: [PromptClass; 2] = [PromptClass::PseudoHarmful, PromptClass::Harmful];

/// The rows of each class of each source, `[samples, d_model]`.
fn parts(observed: &Array2<f32>, samples: &[[Vec<usize>; 2]]) -> Vec<[Array2<f64>; 2]> {
    let part = |samples: &Vec<usize>| observed.select(Axis(0), samples).mapv(f64::from);
    samples.iter().map(|[open, shut]| [part(open), part(shut)]).collect()
}

fn views(parts: &[[Array2<f64>; 2]]) -> Vec<Source<'_>> {
    parts.iter().map(|[open, shut]| Source { open: open.view(), shut: shut.view() }).collect()
}

/// A number for each prompt that is run: that of the request in it, however it is dressed, and in whatever source; those of a
/// family have one.
fn prompt_ids(all: &[PromptsOf], further: [&[String]; 2]) -> Vec<usize> {
    let mut known: HashMap<String, usize> = HashMap::new();
    let mut id = |prompt: &String| {
        let next = known.len();
        *known.entry(normalised(prompt)).or_insert(next)
    };
    let of_sources = all.iter().flat_map(|of| [&of.alike.pseudo_harmful[..], &of.alike.harmful[..]]);
    of_sources.chain(further).flatten().map(&mut id).collect()
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
pub(super) fn positions(
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::method::prompts::{Dress, Prompts};

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
    fn the_best_layers_lie_apart_while_others_are_left() {
        let ranked = vec![(4, 0.7), (5, 0.9), (6, 0.8), (8, 0.75), (9, 0.75)];
        assert_eq!(spread(ranked.clone(), 3), [5, 8, 6]);
        assert_eq!(spread(ranked, 9), [5, 8, 6, 9, 4]);
        assert!(spread(Vec::new(), 3).is_empty());
    }

    /// The same request is one prompt, in every source and dress.
    #[test]
    fn a_request_is_one_prompt_however_it_is_dressed() {
        let prompts = Prompts::bundled();
        let all = sources(&prompts);
        let further = [vec!["one more".to_string()], vec![all[0].train.harmful[2].clone()]];
        let ids = prompt_ids(&all, [&further[0], &further[1]]);
        let texts: Vec<&String> =
            all.iter().flat_map(|of| of.train.pseudo_harmful.iter().chain(&of.train.harmful)).collect();
        assert_eq!(ids.len(), texts.len() + 2);
        let own = all[0].train.pseudo_harmful.len();
        // every source, whatever it is dressed in, has the numbers of its plain prompts
        let mut number: HashMap<String, usize> = HashMap::new();
        let alike = all.iter().flat_map(|of| of.alike.pseudo_harmful.iter().chain(&of.alike.harmful));
        for (id, plain) in ids.iter().zip(alike) {
            assert_eq!(number.entry(normalised(plain)).or_insert(*id), id, "{plain}");
        }
        assert_eq!(number.len(), number.values().collect::<HashSet<_>>().len());
        let dressed = all.iter().find(|of| of.source.dress == Dress::Bypass).unwrap();
        assert_eq!(dressed.alike.harmful[2], all[0].train.harmful[2]);
        assert!(dressed.train.harmful[2].len() > all[0].train.harmful[2].len());
        assert!(ids[..texts.len()].iter().all(|id| *id != ids[texts.len()]));
        assert_eq!(ids[texts.len() + 1], ids[own + 2]);
    }
}
