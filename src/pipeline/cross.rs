//! Directions of pseudo-harmful sets on one another: from the train part of one set, tried on the test part of another.

use super::bench::Bench;
use super::choose::Chooser;
use super::collect::{Activations, encode};
use super::direction_file;
use super::engine::{Engine, Observer, Row};
use super::stage::Stage;
use crate::chat::Chat;
use crate::edit::Edit;
use crate::error::{Error, Kind};
use crate::instrument::Request;
use crate::linalg::cosine;
use crate::lm::ResidPoint;
use crate::method::activations::ActivationMeans;
use crate::method::prompts::{PromptClass, Prompts, Split};
use crate::method::score::{refusal_score, softmax};
use crate::method::select::Rules;
use crate::report::{ClassResult, CrossRow, finite};

/// What is there already, and every set shares.
pub(super) struct Own<'a> {
    /// Means of the run's own prompts: harmful and harmless hold for every set.
    pub activations: &'a Activations,
    /// Rules of the selection.
    pub rules: Rules,
}

/// Fewer kept train prompts than this give no usable mean.
const MIN_KEPT: usize = 4;

/// What is being done, for the progress.
fn stage(prompts: &str, direction_of: Option<&String>) -> Stage {
    Stage::Refusals { prompts: prompts.to_string(), direction_of: direction_of.cloned() }
}

/// All pairs. A set without a direction is noted and left out as a source.
///
/// # Errors
/// If a run fails.
pub(super) fn table(
    bench: &Bench<'_>,
    own: &Own<'_>,
    sets: &[(String, Prompts)],
    lambda: f64,
) -> Result<Vec<CrossRow>, Error> {
    let Bench { engine, chat, observer, .. } = bench;
    let mut directions: Vec<Option<Edit>> = Vec::new();
    for (name, prompts) in sets {
        let found = direction(engine, chat, own, prompts, lambda, *observer);
        directions.push(match found {
            Ok(direction) => Some(direction),
            Err(error) if matches!(error, Error::Guard { .. } | Error::Other { kind: Kind::Failed, .. }) => {
                observer.note(&format!("`{name}` gives no direction: {error}"));
                None
            }
            Err(error) => return Err(error),
        });
    }
    let pseudo = |prompts: &'_ Prompts| prompts.get(PromptClass::PseudoHarmful, Split::Test).to_vec();
    let mut before: Vec<ClassResult> = Vec::new();
    for (name, prompts) in sets {
        before.push(bench.refusals(None, &pseudo(prompts), &stage(name, None))?);
    }
    let harmful: Vec<String> = bench.prompts.get(PromptClass::Harmful, Split::Test).to_vec();
    let mut rows = Vec::new();
    for ((from, _), direction) in sets.iter().zip(&directions) {
        let Some(direction) = direction else { continue };
        let harmful_after =
            bench.refusals(Some(direction), &harmful, &stage(PromptClass::Harmful.word(), Some(from)))?;
        for ((on, prompts), (before, other)) in sets.iter().zip(before.iter().zip(&directions)) {
            let after = bench.refusals(Some(direction), &pseudo(prompts), &stage(on, Some(from)))?;
            rows.push(CrossRow {
                from: from.clone(),
                on: on.clone(),
                before: before.refusal_rate,
                after: after.refusal_rate,
                total: after.total,
                interval: after.interval(),
                harmful_after: harmful_after.refusal_rate,
                cosine: other.as_ref().and_then(|other| cosine_of(direction, other)),
            });
        }
    }
    Ok(rows)
}

/// The direction of one set: its own pseudo-harmful means beside the run's harmful and harmless ones.
fn direction(
    engine: &Engine<'_>,
    chat: &Chat,
    own: &Own<'_>,
    prompts: &Prompts,
    lambda: f64,
    observer: &dyn Observer,
) -> Result<Edit, Error> {
    let mut activations = own.activations.clone();
    activations.means.pseudo_harmful = means(engine, chat, own.activations, prompts, observer)?;
    activations.info.prompts = prompts.clone();
    let mut chooser = Chooser::new(engine, chat, &activations, own.rules, observer)?;
    let choice = chooser.choose(lambda, 1.0, observer)?;
    direction_file::as_stored(&choice.edit)
}

/// METHOD steps 3 and 4 for the pseudo-harmful train prompts of a set.
fn means(
    engine: &Engine<'_>,
    chat: &Chat,
    base: &Activations,
    prompts: &Prompts,
    observer: &dyn Observer,
) -> Result<ActivationMeans, Error> {
    let (n_pos, n_layers, d_model) = base.means.harmless.shape();
    let mut means = ActivationMeans::new(n_pos, n_layers, d_model);
    let encoded = encode(chat, prompts.get(PromptClass::PseudoHarmful, Split::Train))?;
    let rows: Vec<Row<'_>> = encoded.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
    let probes = (0..n_layers).map(|layer| (layer, ResidPoint::Pre)).collect();
    let mut session = engine.session(Request { probes, last_positions: n_pos, logits: 1, ..Request::default() })?;
    observer.start(&Stage::CollectActivations, rows.len() as u64);
    engine.visit(&mut session, &rows, &[], |found| {
        observer.advance(1);
        let score = refusal_score(&softmax(&found.logits), &base.info.refusal_tokens);
        if !base.info.keeps(PromptClass::PseudoHarmful, score) {
            return Ok(());
        }
        means.add(&found.probes);
        Ok(())
    })?;
    observer.finish();
    if means.count() < MIN_KEPT {
        return Err(Error::failed_with(
            format!(
                "the model refuses {} of {} train prompts, at least {MIN_KEPT} are needed",
                means.count(),
                rows.len()
            ),
            "give a larger set",
        ));
    }
    Ok(means)
}

/// Cosine of what two edits ablate.
fn cosine_of(one: &Edit, other: &Edit) -> Option<f64> {
    finite(cosine(one.ablation()?.vectors()[0].unit(), other.ablation()?.vectors()[0].unit()))
}
