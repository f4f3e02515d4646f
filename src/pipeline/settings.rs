//! Every setting that is tried on one collection of activations, method by method: the one place that lists them with
//! their edits.

use super::add;
use super::bench::Bench;
use super::choose::{Choice, Chooser};
use super::choose_gate::{GateChoice, GateRules, Gates};
use super::collect::Activations;
use super::refine::Refiner;
use crate::edit::{Addition, Edit};
use crate::error::Error;
use crate::method::refine::Refinement;
use crate::method::select::Rules;
use crate::report::{Found, SearchSetting};

/// What is tried.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchRules {
    /// Lambdas of [`super::Method::Wang`], in the order in which they are tried.
    pub lambdas: Vec<f64>,
    /// Strengths of its ablation, above 0 and at most 1, each with every lambda.
    pub strengths: Vec<f64>,
    /// Factors of an activation addition beside its ablation, each with every lambda and strength; 0 adds nothing.
    pub alphas: Vec<f64>,
    /// Rules of its selection.
    pub rules: Rules,
    /// What else is made of the direction of the first lambda and strength.
    pub refinements: Vec<Refinement>,
    /// How gates are fitted; `None` leaves them out.
    pub gate: Option<GateRules>,
    /// Whether the true-refusal direction itself is ablated as well: a baseline.
    pub refusal: bool,
}

impl SearchRules {
    /// Lambda, strength and factor of every setting of directions, lambda by lambda; none twice.
    fn grid(&self) -> Vec<(f64, f64, f64)> {
        let mut all: Vec<(f64, f64, f64)> = Vec::new();
        for &lambda in &self.lambdas {
            for &strength in &self.strengths {
                for &alpha in &self.alphas {
                    if !all.contains(&(lambda, strength, alpha)) {
                        all.push((lambda, strength, alpha));
                    }
                }
            }
        }
        all
    }
}

/// The edit of a setting.
pub(super) struct Candidate {
    pub(super) edit: Edit,
    /// How it was found; `None` for a baseline.
    pub(super) found: Option<Found>,
}

/// Is given a setting with its edit, or with the reason why it has none, and tells whether the setting holds. An error
/// ends the listing.
pub(super) type Take<'t> = &'t mut dyn FnMut(SearchSetting, Result<Candidate, Error>) -> Result<bool, Error>;

/// Hands every setting on, method by method.
///
/// # Errors
/// What `take` returns; if a run fails that all settings of a method need.
pub(super) fn each(
    bench: &Bench<'_>,
    activations: &Activations,
    rules: &SearchRules,
    take: Take<'_>,
) -> Result<(), Error> {
    if rules.refusal {
        refusal(bench, activations, rules.rules, take)?;
    }
    if !rules.lambdas.is_empty() || !rules.refinements.is_empty() {
        directions(bench, activations, rules, take)?;
    }
    match &rules.gate {
        Some(gate) => gates(bench, activations, gate, take),
        None => Ok(()),
    }
}

/// The true-refusal direction `r = h[harmful] - h[harmless]` of one position and layer, ablated at every write (Arditi et
/// al., *Refusal in Language Models Is Mediated by a Single Direction*, 2024): of all places the one that makes harmful
/// validation prompts refused least, of those that change harmless prompts little. That it must induce refusal when it is
/// added is not asked for.
fn refusal(bench: &Bench<'_>, activations: &Activations, rules: Rules, take: Take<'_>) -> Result<(), Error> {
    let Bench { engine, chat, observer, .. } = *bench;
    // harmful prompts in the place of the pseudo-harmful ones: what is raced for is their refusal
    let mut harmful = activations.clone();
    harmful.means.pseudo_harmful = activations.means.harmful.clone();
    harmful.info.prompts.sets.pseudo_harmful = activations.info.prompts.sets.harmful.clone();
    let rules = Rules { harmful_drop: None, ..rules };
    // the classes are others here, so nothing is kept under the names of these
    let found = Chooser::new(&engine, chat, &harmful, rules, observer)?.choose(0.0, 1.0, observer);
    let (position, layer) = place(&found);
    take(SearchSetting::Refusal { position, layer }, found.map(|choice| Candidate { edit: choice.edit, found: None }))?;
    Ok(())
}

/// Position and layer of what was selected; `None` where nothing was.
fn place(found: &Result<Choice, Error>) -> (Option<i64>, Option<usize>) {
    found.as_ref().ok().map(|choice| (choice.result.selected.position, choice.result.selected.layer)).unzip()
}

/// Directions that are selected for each lambda and strength.
fn directions(bench: &Bench<'_>, activations: &Activations, rules: &SearchRules, take: Take<'_>) -> Result<(), Error> {
    let Bench { engine, chat, observer, .. } = *bench;
    let addition = match rules.alphas.iter().any(|alpha| *alpha != 0.0) {
        true => Some(add::choose(&engine, chat, activations, 1.0, &rules.rules, observer)?.0),
        false => None,
    };
    let mut chooser = Chooser::new(&engine, chat, activations, rules.rules, observer)?.kept_in(bench.journal);
    for (lambda, strength, alpha) in rules.grid() {
        let found = chooser.choose(lambda, strength, observer);
        let (position, layer) = place(&found);
        let setting = SearchSetting::Wang { lambda, strength, alpha, position, layer };
        let vector = addition.clone().map(|vector| Addition { alpha, ..vector });
        let candidate = |Choice { edit, result }| Candidate {
            edit: edit.with_addition(vector),
            found: Some(Found::Select(result)),
        };
        take(setting, found.map(candidate))?;
    }
    let refiner = Refiner { engine, chat, activations, observer };
    let (lambda, strength) = (rules.lambdas.first().unwrap_or(&1.0), rules.strengths.first().unwrap_or(&1.0));
    for &method in &rules.refinements {
        let selected = chooser.choose(*lambda, *strength, observer);
        let (position, layer) = place(&selected);
        let setting = SearchSetting::Refined { method, lambda: *lambda, position, layer };
        let found = selected.and_then(|choice| refiner.refine(choice, method));
        take(setting, found.map(|Choice { edit, result }| Candidate { edit, found: Some(Found::Select(result)) }))?;
    }
    Ok(())
}

/// Settings of gates, best by their scores first, as far as the first that holds.
fn gates(bench: &Bench<'_>, activations: &Activations, rules: &GateRules, take: Take<'_>) -> Result<(), Error> {
    let Bench { engine, chat, observer, .. } = *bench;
    let found = Gates::search(&engine, chat, activations, rules, observer, bench.journal);
    let gates = match found.and_then(|gates| gates.choice(0).map(|_| gates)) {
        Ok(gates) => gates,
        Err(error) => return take(SearchSetting::Gate { gates: None }, Err(error)).map(|_| ()),
    };
    for rank in 0..gates.len() {
        let GateChoice { edit, result } = gates.choice(rank)?;
        let setting = SearchSetting::Gate { gates: Some(result.selected.clone()) };
        if take(setting, Ok(Candidate { edit, found: Some(Found::Gate(result)) }))? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_grid_are_listed_once() {
        let rules = SearchRules {
            lambdas: vec![1.0, 0.5, 1.0],
            strengths: vec![1.0, 0.5],
            alphas: vec![0.0],
            rules: Rules::PAPER,
            refinements: Vec::new(),
            gate: None,
            refusal: false,
        };
        assert_eq!(rules.grid(), [(1.0, 1.0, 0.0), (1.0, 0.5, 0.0), (0.5, 1.0, 0.0), (0.5, 0.5, 0.0)]);
    }
}
