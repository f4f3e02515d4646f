//! What each result tells, as a [`Document`]: every fact is worded once, for all renderers.

mod ability;
mod change;
mod compare;
mod direction;
mod gate;
mod guard;
mod guard_sets;
mod inspect;
mod package;
mod provenance;
mod refusals;
mod search;
#[cfg(test)]
mod tests;
mod words;

pub use compare::compare;
pub use direction::{collect, select};
pub use gate::select_gate;
pub use package::{bake, inspect, verify};

use super::document::{Block, Detail, Document, Look, Section, Text};
use super::{Found, PackageEval, RunResult, VariantEval, Verdict};

/// The whole job, the verdict first. Of several variants, the one that the direction comes from is told in full.
#[must_use]
pub fn run(run: &RunResult) -> Document {
    let shared = &run.shared;
    let look = match run.verdict() {
        Verdict::Published => Look::Good,
        Verdict::Overridden => Look::Doubtful,
        Verdict::GuardRefused | Verdict::NothingHolds | Verdict::NotVerified => Look::Bad,
    };
    let source = run.source();
    let eval = source.and_then(|v| v.eval.as_ref());
    let mut sections = Vec::new();
    if let Some(eval) = eval {
        sections.extend([
            refusals::classes(&[&eval.before, &eval.after], eval.judge.as_deref()),
            refusals::conditions(&refusals::Asked::both(eval)),
        ]);
        sections.extend(guard_sets::both(eval));
        sections.push(ability::both(eval));
        sections.extend(eval.cost.as_ref().map(ability::cost));
    }
    sections.extend(package::variants(&run.variants, &shared.bake));
    sections.extend(source.and_then(|v| v.guard.as_ref()).map(guard::guard));
    sections.extend(eval.map(refusals::telling));
    sections.extend(shared.sweep.iter().flat_map(|result| compare::section(result, Detail::Full)));
    sections.extend(shared.search.as_ref().map(|found| {
        let test = eval.map(|eval| (&eval.after, eval.harmless_kl));
        search::search(found, test)
    }));
    match &shared.found {
        Some(Found::Select(select)) => {
            sections.push(direction::direction(select));
            sections.extend(shared.addition.as_ref().map(|addition| direction::addition(addition, select)));
        }
        Some(Found::Gate(found)) => sections.push(gate::gate(found)),
        None => {}
    }
    sections.extend(source.map(|v| change::change(&v.bake, &v.verify)));
    sections.push(provenance::provenance(run));
    if let Some(eval) = eval {
        sections.extend([provenance::limits(eval, shared.sweep.is_some()), refusals::answers(eval)]);
    }
    Document {
        title: Text::of(look, run.headline()),
        subject: Text::of(Look::Path, &shared.bake.model),
        made_by: Text::from(format!("Lancet {}", shared.provenance.lancet_version)),
        sections,
    }
}

/// What `lancet eval` measured: of one model without its name, of several each below its own.
#[must_use]
pub fn eval(result: &PackageEval) -> Document {
    let several = result.variants.len() > 1;
    let sections = result.variants.iter().flat_map(|VariantEval { model, eval }| {
        let heading = several.then(|| {
            let title = Block::Heading(Text::of(Look::Code, model));
            Section::new("variant", "Variant").summary(title)
        });
        let refusals = [
            refusals::classes(&[&eval.classes], eval.judge.as_deref()),
            refusals::conditions(&refusals::Asked::alone(eval)),
        ];
        heading.into_iter().chain(refusals).chain(guard_sets::alone(eval)).chain([ability::alone(eval)])
    });
    Document { sections: sections.collect(), ..Document::default() }
}
