//! What each result tells, as a [`Document`]: every fact is worded once, for all renderers.

mod ability;
mod change;
mod direction;
mod guard;
mod inspect;
pub mod package;
mod provenance;
mod refusals;
mod sweep;
#[cfg(test)]
mod tests;
mod words;

pub use change::{bake, verify};
pub use direction::{collect, select};
pub use inspect::inspect;
pub use sweep::sweep;

use super::document::{Detail, Document, Look, Text};
use super::{ModelEval, RunResult, Verdict};

/// The whole job, the verdict first.
#[must_use]
pub fn run(run: &RunResult) -> Document {
    let eval = &run.eval;
    let look = match run.verdict() {
        Verdict::Published => Look::Good,
        Verdict::Overridden => Look::Doubtful,
        Verdict::GuardRefused | Verdict::NotVerified => Look::Bad,
    };
    let mut sections = vec![
        refusals::classes(&[&eval.before, &eval.after], eval.judge.as_deref()),
        refusals::conditions(&refusals::Asked::both(eval)),
        ability::both(eval),
    ];
    sections.extend(eval.cost.as_ref().map(ability::cost));
    sections.extend(run.package.as_ref().map(package::variants));
    sections.extend([guard::guard(&run.guard), refusals::telling(run)]);
    sections.extend(run.sweep.iter().flat_map(|result| sweep::section(result, Detail::Full)));
    sections.push(direction::direction(&run.select));
    sections.extend(run.addition.as_ref().map(|addition| direction::addition(addition, &run.select)));
    sections.extend([
        change::change(&run.bake, &run.verify),
        provenance::provenance(run),
        provenance::limits(run),
        refusals::answers(eval),
    ]);
    Document {
        title: Text::of(look, run.headline()),
        subject: Text::of(Look::Path, &run.inspect.model),
        made_by: Text::from(format!("Lancet {}", run.provenance.lancet_version)),
        sections,
    }
}

/// What `lancet eval` measured of one model.
#[must_use]
pub fn model_eval(eval: &ModelEval) -> Document {
    let sections = vec![
        refusals::classes(&[&eval.classes], eval.judge.as_deref()),
        refusals::conditions(&refusals::Asked::alone(eval)),
        ability::alone(eval),
    ];
    Document { sections, ..Document::default() }
}
