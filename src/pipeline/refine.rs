//! Further methods ([`crate::method::refine`]): what they need of the model is run here, and what they give is tried on
//! the validation prompts.

use std::collections::BTreeSet;

use super::choose::Choice;
use super::collect::{Activations, encode, is_kept};
use super::direction_file;
use super::engine::{Engine, Observer, Row, Steering};
use super::observe;
use super::stage::Stage;
use crate::chat::Chat;
use crate::edit::{Ablation, Direction, Edit, Writes};
use crate::error::Error;
use crate::instrument::Request;
use crate::linalg::{cosine, dot, sub};
use crate::method::direction::{diff_in_means, partially_orthogonalise};
use crate::method::prompts::{PromptClass, Prompts, Split, abilities};
use crate::method::refine::abilities::{RIDGE, residualise};
use crate::method::refine::{Refinement, affine, groups, layers};
use crate::method::score::{kl_divergence, mean, refusal_score, softmax};
use crate::report::{LayerGroup, Refined, RefinedBy, finite};

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

    /// A direction for each of `count` groups of pseudo-harmful prompts, freed of those of as many groups of harmful ones.
    fn groups(&self, count: usize, place: (i64, usize), lambda: f64) -> Result<(Ablation, RefinedBy), Error> {
        let of = |class: PromptClass| -> Result<(Vec<Vec<f64>>, Vec<usize>), Error> {
            let prompts = self.encoded(class, Split::Train)?;
            let tokens = &self.activations.info.refusal_tokens;
            let found = observe::at(&self.engine, place, &prompts, tokens, self.observer)?;
            let kept: Vec<usize> = (0..prompts.len()).filter(|&at| is_kept(class, found.scores[at])).collect();
            let rows = found.layers[0].select(ndarray::Axis(0), &kept);
            let groups = groups::groups(&rows, count);
            let wide = |row: &usize| rows.row(*row).iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
            let mean = |group: &Vec<usize>| {
                let members: Vec<Vec<f64>> = group.iter().map(wide).collect();
                groups::mean(&members.iter().map(Vec::as_slice).collect::<Vec<_>>())
            };
            Ok((groups.iter().map(mean).collect(), groups.iter().map(Vec::len).collect()))
        };
        let (pseudo, pseudo_harmful) = of(PromptClass::PseudoHarmful)?;
        let (refused, harmful) = of(PromptClass::Harmful)?;
        let ablation = groups::ablation(&pseudo, &refused, &self.mean(PromptClass::Harmless, place), lambda)?;
        Ok((ablation, RefinedBy::Groups { pseudo_harmful, harmful }))
    }

    /// The direction without what abilities have of it.
    fn abilities(&self, place: (i64, usize), lambda: f64) -> Result<(Direction, RefinedBy), Error> {
        let harmless = self.mean(PromptClass::Harmless, place);
        let mut atoms = Vec::new();
        let all = abilities();
        for ability in &all {
            let prompts = encode(self.chat, &ability.prompts)?;
            let tokens = &self.activations.info.refusal_tokens;
            let found = observe::at(&self.engine, place, &prompts, tokens, self.observer)?;
            let rows: Vec<Vec<f64>> =
                found.layers[0].rows().into_iter().map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect();
            atoms.push(sub(&groups::mean(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>()), &harmless));
        }
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
            without.push(mean(&self.scores(&self.probabilities(Some(&edit), &prompts)?)));
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

    /// Next-token probabilities under an edit, `[d_vocab]` for each prompt.
    fn probabilities(&self, edit: Option<&Edit>, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f64>>, Error> {
        let steering = edit.map(Steering::of);
        let engine = Engine { steered: steering.as_ref(), ..self.engine };
        let mut session = engine.brief_session(Request { logits: 1, last_positions: 1, ..Request::default() })?;
        let rows: Vec<Row<'_>> = prompts.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
        let mut all = vec![Vec::new(); rows.len()];
        self.observer.start(&Stage::ScoreRefined, rows.len() as u64);
        engine.visit(&mut session, &rows, &[], |found| {
            all[found.row] = softmax(&found.logits);
            self.observer.advance(1);
            Ok(())
        })?;
        self.observer.finish();
        Ok(all)
    }

    fn scores(&self, probabilities: &[Vec<f64>]) -> Vec<f64> {
        probabilities.iter().map(|p| refusal_score(p, &self.activations.info.refusal_tokens)).collect()
    }

    /// Mean refusal scores of pseudo-harmful and of harmful validation prompts under an edit, and the mean divergence of
    /// the harmless ones.
    fn validate(&self, edit: &Edit) -> Result<[f64; 3], Error> {
        let mut means = [0.0; 3];
        for (mean_of, class) in means.iter_mut().zip([PromptClass::PseudoHarmful, PromptClass::Harmful]) {
            let prompts = self.encoded(class, Split::Val)?;
            *mean_of = mean(&self.scores(&self.probabilities(Some(edit), &prompts)?));
        }
        let harmless = self.encoded(PromptClass::Harmless, Split::Val)?;
        let (before, after) = (self.probabilities(None, &harmless)?, self.probabilities(Some(edit), &harmless)?);
        means[2] = mean(&before.iter().zip(&after).map(|(p, q)| kl_divergence(p, q)).collect::<Vec<_>>());
        Ok(means)
    }
}
