//! Further methods ([`crate::method::refine`]): what they need of the model is run here, and what they give is tried on
//! the validation prompts.

use std::collections::BTreeSet;

use ndarray::{Array2, Axis};

use super::choose::Choice;
use super::collect::{Activations, encode};
use super::direction_file;
use super::engine::{Engine, Observer, Row, Steering};
use super::observe::{self, AtPosition};
use super::stage::Stage;
use crate::chat::Chat;
use crate::edit::{Ablation, Direction, Edit, Writes};
use crate::error::Error;
use crate::instrument::Request;
use crate::linalg::{cosine, dot, sub};
use crate::method::direction::{diff_in_means, partially_orthogonalise};
use crate::method::gate::{Discriminant, GateError, auc, discriminant};
use crate::method::prompts::{PromptClass, Prompts, Split, abilities};
use crate::method::refine::abilities::{RIDGE, residualise};
use crate::method::refine::{Refinement, affine, align, groups, layers, probes};
use crate::method::score::{kl_divergence, mean, refusal_score, softmax};
use crate::method::select::Rules;
use crate::report::{LayerGroup, Refined, RefinedBy, finite};

/// Prompts of the two kinds cannot be told apart, or one kind has none.
fn no_discriminant(error: &GateError) -> Error {
    Error::failed_with(
        format!("no discriminant can be fitted to the train prompts: {error}"),
        "more prompts may help; or choose another `--method`",
    )
}

/// A model, its prompts and what was collected of it.
pub struct Refiner<'a> {
    /// The model.
    pub engine: Engine<'a>,
    /// Its chat format.
    pub chat: &'a Chat,
    /// What was collected of it.
    pub activations: &'a Activations,
    /// Whom the progress is told.
    pub observer: &'a dyn Observer,
}

/// Prompts that a method runs once the direction is selected.
pub fn prompt_runs(how: Refinement, prompts: &Prompts, n_layers: usize) -> usize {
    let count = |class, split| prompts.get(class, split).len();
    let val = |class| count(class, Split::Val);
    let tried = val(PromptClass::PseudoHarmful) + val(PromptClass::Harmful) + 2 * val(PromptClass::Harmless);
    tried
        + match how {
            Refinement::Groups { .. } => {
                count(PromptClass::PseudoHarmful, Split::Train) + count(PromptClass::Harmful, Split::Train)
            }
            Refinement::Probes { .. } => {
                count(PromptClass::PseudoHarmful, Split::Train) + count(PromptClass::Harmless, Split::Train)
            }
            Refinement::Aligned => {
                PromptClass::ALL.iter().map(|class| count(*class, Split::Train) + count(*class, Split::Val)).sum()
            }
            Refinement::Abilities => abilities().iter().map(|ability| ability.prompts.len()).sum(),
            Refinement::Affine => 0,
            Refinement::Layers => layers::groups(n_layers).len() * val(PromptClass::PseudoHarmful),
        }
}

impl Refiner<'_> {
    /// What the method makes of a selected direction. The strength of its ablation is kept.
    ///
    /// # Errors
    /// If a run fails, or where nothing is left of the direction.
    pub fn refine(&self, choice: Choice, how: Refinement) -> Result<Choice, Error> {
        let Choice { edit, mut result } = choice;
        let Some(selected) = edit.ablation() else { return Ok(Choice { edit, result }) };
        let strength = selected.strengths()[0];
        let (position, layer) = (result.selected.position, result.selected.layer);
        let lambda = result.selected.lambda;
        let (refined, by) = match how {
            Refinement::Groups { count } => {
                let (ablation, by) = self.groups(count, (position, layer), lambda)?;
                (ablation.with_strength(strength).into(), by)
            }
            Refinement::Probes { count } => {
                let (ablation, by) = self.probes(count, (position, layer), lambda)?;
                (ablation.with_strength(strength).into(), by)
            }
            Refinement::Abilities => {
                let (direction, by) = self.abilities((position, layer), lambda)?;
                (Ablation::new(direction).with_strength(strength).into(), by)
            }
            Refinement::Affine => (self.affine(selected, position)?, RefinedBy::Affine),
            Refinement::Layers => {
                let scores = (result.baseline.refusal_score, result.selected.refusal_score);
                let (ablation, by) = self.layers(selected, scores)?;
                (ablation.into(), by)
            }
            Refinement::Aligned => self.aligned(strength)?,
        };
        let refined = direction_file::as_stored(&refined)?;
        let unit = selected.vectors()[0].unit();
        let directions = refined.ablation().map(Ablation::vectors).unwrap_or_default();
        let cosines = directions.iter().map(|one| finite(cosine(one.unit(), unit))).collect();
        let [refusal_score, harmful_refusal_score, kl] = self.validate(&refined)?;
        result.refined = Some(Refined { by, cosines, refusal_score, harmful_refusal_score, kl });
        Ok(Choice { edit: refined, result })
    }

    /// The mean activation of a class at a place, `[d_model]`.
    fn mean(&self, class: PromptClass, (position, layer): (i64, usize)) -> Vec<f64> {
        self.activations.of(class).mean(position, layer)
    }

    fn encoded(&self, class: PromptClass, split: Split) -> Result<Vec<Vec<u32>>, Error> {
        encode(self.chat, self.activations.info.prompts.get(class, split))
    }

    /// What is seen at a place of the prompts of some sets, which are run together, set by set.
    fn observed(&self, place: (i64, usize), sets: &[Vec<Vec<u32>>]) -> Result<Vec<AtPosition>, Error> {
        let tokens = &self.activations.info.refusal_tokens;
        let found = observe::at(&self.engine, place, &sets.concat(), tokens, self.observer)?;
        let mut from = 0;
        let of = |set: &Vec<Vec<u32>>| {
            let rows: Vec<usize> = (from..from + set.len()).collect();
            from += set.len();
            AtPosition {
                layers: found.layers.iter().map(|layer| layer.select(Axis(0), &rows)).collect(),
                scores: rows.iter().map(|&row| found.scores[row]).collect(),
            }
        };
        Ok(sets.iter().map(of).collect())
    }

    /// A direction for each of `count` groups of pseudo-harmful prompts, freed of those of as many groups of harmful ones.
    fn groups(&self, count: usize, place: (i64, usize), lambda: f64) -> Result<(Ablation, RefinedBy), Error> {
        let classes = [PromptClass::PseudoHarmful, PromptClass::Harmful];
        let prompts = classes.map(|class| self.encoded(class, Split::Train));
        let [pseudo_harmful, harmful] = prompts;
        let seen = self.observed(place, &[pseudo_harmful?, harmful?])?;
        let [(pseudo, pseudo_harmful), (refused, harmful)] = [0, 1].map(|at| {
            let AtPosition { layers, scores } = &seen[at];
            let kept: Vec<usize> =
                (0..scores.len()).filter(|&row| self.activations.info.keeps(classes[at], scores[row])).collect();
            let rows = layers[0].select(Axis(0), &kept);
            let groups = groups::groups(&rows, count);
            let means = groups.iter().map(|group| groups::mean(&rows.select(Axis(0), group)));
            (means.collect::<Vec<_>>(), groups.iter().map(Vec::len).collect::<Vec<_>>())
        });
        let ablation = groups::ablation(&pseudo, &refused, &self.mean(PromptClass::Harmless, place), lambda)?;
        Ok((ablation, RefinedBy::Groups { pseudo_harmful, harmful }))
    }

    /// Directions that tell the refused pseudo-harmful from the answered harmless prompts, freed of true refusal.
    fn probes(&self, count: usize, place: (i64, usize), lambda: f64) -> Result<(Ablation, RefinedBy), Error> {
        let classes = [PromptClass::PseudoHarmful, PromptClass::Harmless];
        let [pseudo_harmful, harmless] = classes.map(|class| self.encoded(class, Split::Train));
        let seen = self.observed(place, &[pseudo_harmful?, harmless?])?;
        let [open, shut] = [0, 1].map(|at| {
            let AtPosition { layers, scores } = &seen[at];
            let kept: Vec<usize> =
                (0..scores.len()).filter(|&row| self.activations.info.keeps(classes[at], scores[row])).collect();
            layers[0].select(Axis(0), &kept).mapv(f64::from)
        });
        let units = probes::probes(&open, &shut, count, probes::SHRINKAGE).map_err(|error| no_discriminant(&error))?;
        let harmless = self.mean(PromptClass::Harmless, place);
        let ends: Vec<Vec<f64>> =
            units.iter().map(|unit| unit.iter().zip(&harmless).map(|(q, mean)| q + mean).collect()).collect();
        let ablation = groups::ablation(&ends, &[self.mean(PromptClass::Harmful, place)], &harmless, lambda)?;
        Ok((ablation, RefinedBy::Probes { found: units.len() }))
    }

    /// The term that makes the decision to answer follow the judgement of harm, at the layer whose discriminants tell the
    /// validation prompts apart best.
    fn aligned(&self, strength: f64) -> Result<(Edit, RefinedBy), Error> {
        let last = (self.engine.model.lm.n_layers() as f64 * Rules::PAPER.layer_share) as usize;
        let layers: Vec<usize> = (1..last).collect();
        let splits = [Split::Train, Split::Val];
        let sets = splits.map(|split| PromptClass::ALL.map(|class| self.encoded(class, split)));
        let (mut prompts, mut labels) = (Vec::new(), Vec::new());
        for (split, classes) in splits.into_iter().zip(sets) {
            for (class, set) in PromptClass::ALL.into_iter().zip(classes) {
                let set = set?;
                labels.extend(vec![(split, class == PromptClass::Harmful); set.len()]);
                prompts.extend(set);
            }
        }
        let tokens = &self.activations.info.refusal_tokens;
        let AtPosition { layers: observed, scores } =
            observe::last_position(&self.engine, &layers, &prompts, tokens, self.observer)?;
        // numbers of the prompts of a split that are, or are not, answered, or judged harmless
        let rows = |split: Split, answered: bool, wanted: bool| -> Vec<usize> {
            let is_open = |at: usize| if answered { scores[at] <= 0.0 } else { !labels[at].1 };
            (0..labels.len()).filter(|&at| labels[at].0 == split && is_open(at) == wanted).collect()
        };
        let of_layer = |observed: &Array2<f32>, answered: bool| -> Result<(f64, Discriminant), GateError> {
            let [open, shut] = [true, false]
                .map(|wanted| observed.select(Axis(0), &rows(Split::Train, answered, wanted)).mapv(f64::from));
            let found = discriminant(open.view(), shut.view(), align::SHRINKAGE)?;
            let values = |wanted| -> Vec<f64> {
                let value = |at: usize| found.of(&observed.row(at).iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
                rows(Split::Val, answered, wanted).into_iter().map(value).collect()
            };
            Ok((auc(&values(true), &values(false)), found))
        };
        let fitted: Vec<_> = observed
            .iter()
            .zip(&layers)
            .map(|(observed, &layer)| Ok((layer, of_layer(observed, true)?, of_layer(observed, false)?)))
            .collect::<Result<_, GateError>>()
            .map_err(|error| no_discriminant(&error))?;
        // where all validation prompts are of one kind, nothing is known
        let known = |auc: f64| if auc.is_nan() { 0.5 } else { auc };
        let worth =
            |(_, answer, judge): &(usize, (f64, Discriminant), (f64, Discriminant))| known(answer.0) + known(judge.0);
        let best = fitted.into_iter().rev().max_by(|a, b| worth(a).total_cmp(&worth(b)));
        let Some((layer, (answer_auc, answer), (judge_auc, judge))) = best else {
            return Err(Error::failed("the model has no layer at which answers could be aligned"));
        };
        let term = align::term(layer, &answer, &judge, strength)?;
        let by = RefinedBy::Aligned { layer, answer_auc: finite(answer_auc), judge_auc: finite(judge_auc) };
        Ok((Edit::new(None, Vec::new(), vec![term])?, by))
    }

    /// The direction without what abilities have of it.
    fn abilities(&self, place: (i64, usize), lambda: f64) -> Result<(Direction, RefinedBy), Error> {
        let harmless = self.mean(PromptClass::Harmless, place);
        let all = abilities();
        let prompts =
            all.iter().map(|ability| encode(self.chat, &ability.prompts)).collect::<Result<Vec<_>, Error>>()?;
        let seen = self.observed(place, &prompts)?;
        let atoms: Vec<Vec<f64>> = seen.iter().map(|seen| sub(&groups::mean(&seen.layers[0]), &harmless)).collect();
        let w = diff_in_means(&self.mean(PromptClass::PseudoHarmful, place), &harmless);
        let r = diff_in_means(&self.mean(PromptClass::Harmful, place), &harmless);
        let left = residualise(&w, &atoms, RIDGE).map_err(|error| {
            Error::failed(format!("the activations of the ability prompts cannot be used: {error}"))
        })?;
        let direction = Direction::new(partially_orthogonalise(&left, &r, lambda))?;
        let names = all.iter().map(|ability| ability.name.to_string()).collect();
        Ok((direction, RefinedBy::Abilities { abilities: names }))
    }

    /// The ablation with what harmless prompts have there put back.
    fn affine(&self, selected: &Ablation, position: i64) -> Result<Edit, Error> {
        let one = &selected.vectors()[0];
        let harmless = self.activations.of(PromptClass::Harmless);
        let (_, n_layers, _) = harmless.shape();
        // with a part ablated, that part of the mean is missing
        let along: Vec<f64> =
            (0..n_layers).map(|layer| one.strength() * dot(&harmless.mean(position, layer), one.unit())).collect();
        let additions = affine::additions(&along, one.unit(), position);
        Ok(Edit::new(Some(selected.clone()), additions, Vec::new())?)
    }

    /// The ablation at writes of the layers that matter; `(base, all)` are the scores of the unchanged model and with every
    /// write ablated.
    fn layers(&self, selected: &Ablation, (base, all): (f64, f64)) -> Result<(Ablation, RefinedBy), Error> {
        let n_layers = self.engine.model.lm.n_layers();
        let ranges = layers::groups(n_layers);
        let prompts = self.encoded(PromptClass::PseudoHarmful, Split::Val)?;
        let mut without = Vec::new();
        for left_out in &ranges {
            let others = Writes::of_layers((0..n_layers).filter(|layer| !left_out.contains(layer)));
            let edit = Edit::from(selected.clone().on(others));
            let mut scores = Vec::new();
            self.run(Some(&edit), &prompts, |_, p| scores.push(self.score(&p)))?;
            without.push(mean(&scores));
        }
        let needed = layers::needed(base, all, &without, layers::SHARE);
        let kept: BTreeSet<usize> =
            ranges.iter().zip(&needed).filter(|(_, needed)| **needed).flat_map(|(range, _)| range.clone()).collect();
        let told = ranges.iter().zip(&without).zip(&needed).map(|((range, without), needed)| LayerGroup {
            first: range.start,
            last: range.end - 1,
            without: *without,
            ablated: *needed,
        });
        let writes = if kept.len() == n_layers { Writes::default() } else { Writes::of_layers(kept) };
        Ok((selected.clone().on(writes), RefinedBy::Layers { groups: told.collect() }))
    }

    /// Runs prompts under an edit, and hands on the number of each prompt and its next-token probabilities, `[d_vocab]`.
    fn run(
        &self,
        edit: Option<&Edit>,
        prompts: &[Vec<u32>],
        mut each: impl FnMut(usize, Vec<f64>),
    ) -> Result<(), Error> {
        let steering = edit.map(Steering::of);
        let engine = Engine { steered: steering.as_ref(), ..self.engine };
        let mut session = engine.brief_session(Request { logits: 1, last_positions: 1, ..Request::default() })?;
        let rows: Vec<Row<'_>> = prompts.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
        self.observer.start(&Stage::ScoreRefined, rows.len() as u64);
        engine.visit(&mut session, &rows, &[], |found| {
            each(found.row, softmax(&found.logits));
            self.observer.advance(1);
            Ok(())
        })?;
        self.observer.finish();
        Ok(())
    }

    fn score(&self, p: &[f64]) -> f64 {
        refusal_score(p, &self.activations.info.refusal_tokens)
    }

    /// Mean refusal scores of pseudo-harmful and of harmful validation prompts under an edit, and the mean divergence of
    /// the harmless ones.
    fn validate(&self, edit: &Edit) -> Result<[f64; 3], Error> {
        let harmless = self.encoded(PromptClass::Harmless, Split::Val)?;
        let mut base = vec![Vec::new(); harmless.len()];
        self.run(None, &harmless, |row, p| base[row] = p)?;
        let refusable = [PromptClass::PseudoHarmful, PromptClass::Harmful].map(|class| self.encoded(class, Split::Val));
        let [pseudo_harmful, harmful] = refusable;
        let sets = [pseudo_harmful?, harmful?, harmless];
        let (first, second) = (sets[0].len(), sets[0].len() + sets[1].len());
        let mut values = vec![0.0; second + sets[2].len()];
        self.run(Some(edit), &sets.concat(), |row, q| {
            values[row] = if row < second { self.score(&q) } else { kl_divergence(&base[row - second], &q) };
        })?;
        Ok([&values[..first], &values[first..second], &values[second..]].map(mean))
    }
}
