//! Calibrating: several lambdas, strengths and additions on one collection, each measured on the test prompts with the
//! steering at run time; no model is written.

use super::choose::{Choice, Chooser};
use super::collect::{self, Activations, RefusalTokens, encode};
use super::engine::{Engine, Observer, Steering};
use super::evaluate::{Compared, Measured};
use super::guard::{self, Guard};
use super::opened::Opened;
use super::running::Running;
use super::stage::{Answers, Stage};
use super::variant::Clock;
use super::{add, cross, direction_file, evaluate};
use crate::chat::Chat;
use crate::edit::{Addition, Edit};
use crate::error::{Error, Kind};
use crate::eval::outcome::Outcome;
use crate::linalg::cosine;
use crate::method::direction::diff_in_means;
use crate::method::prompts::{PromptClass, Prompts};
use crate::method::select::Rules;
use crate::report::{ClassResult, SCHEMA, SweepResult, SweepRow};

/// What is tried and how it is judged.
pub struct SweepOptions<'a> {
    /// Lambdas of the partial orthogonalisation.
    pub lambdas: Vec<f64>,
    /// Shares of the component that are ablated, above 0 and at most 1.
    pub strengths: Vec<f64>,
    /// Factors of the activation addition; 0 adds nothing.
    pub alphas: Vec<f64>,
    /// Rules of the selection.
    pub rules: Rules,
    /// Refusal tokens.
    pub refusal_tokens: RefusalTokens,
    /// What is measured of every setting; the refusal tokens in it are those that the collection finds. Cost is left out.
    pub settings: evaluate::Settings,
    /// Prompts with other pseudo-harmful sets, by name; harmful and harmless prompts are the run's own.
    pub cross: &'a [(String, Prompts)],
    /// What a setting must keep.
    pub guard: &'a Guard,
}

/// A setting that was measured: its edit as a file holds it.
pub struct Setting {
    /// Index of its row.
    pub row: usize,
    /// What it would be named: `0.5`, with `-s0.8` for a strength and `-a2` for an addition.
    pub name: String,
    /// The direction and its selection.
    pub choice: Choice,
}

/// What a sweep gives.
pub struct Swept {
    /// The table.
    pub result: SweepResult,
    /// Every setting that has a direction.
    pub settings: Vec<Setting>,
    /// SHA-256 of the model.
    pub model_sha256: String,
}

/// Collects once, then selects and measures every setting, and recommends the one with the most compliance on
/// pseudo-harmful prompts that is within the policy.
///
/// # Errors
/// If a run fails. A setting without a direction is no error but a row that says why.
pub fn sweep(
    running: &Running<'_>,
    opened: &Opened,
    options: &mut SweepOptions<'_>,
    observer: &dyn Observer,
) -> Result<Swept, Error> {
    let mut clock = Clock::start();
    let Running { chat, prompts, .. } = *running;
    let model = opened.understand()?;
    let engine = running.engine(&model);
    let model_sha256 = opened.sha256()?;
    let refusal_tokens = &options.refusal_tokens;
    let inputs = collect::Inputs { chat, prompts, refusal_tokens, model_sha256: &model_sha256, partial: None };
    let (activations, _) = collect::collect(&engine, &inputs, observer)?;
    clock.lap("collect");
    options.settings.refusal_tokens.clone_from(&activations.info.refusal_tokens);
    let mut chooser = Chooser::new(&engine, chat, &activations, options.rules, observer)?;
    let (mut result, settings) = over(running, engine, (&activations, &mut chooser), options, &mut clock, observer)?;
    result.model = opened.files.onnx.display().to_string();
    result.seconds = clock.seconds;
    Ok(Swept { result, settings, model_sha256 })
}

/// The same on activations that are there; the model's name and the times are left to the caller.
///
/// # Errors
/// As [`sweep`].
pub(super) fn over(
    running: &Running<'_>,
    engine: Engine<'_>,
    (activations, chooser): (&Activations, &mut Chooser<'_>),
    options: &SweepOptions<'_>,
    clock: &mut Clock,
    observer: &dyn Observer,
) -> Result<(SweepResult, Vec<Setting>), Error> {
    let Running { chat, prompts, .. } = *running;
    let addition = match options.alphas.iter().any(|alpha| *alpha != 0.0) {
        true => Some(add::choose(&engine, chat, activations, 1.0, &options.rules, observer)?.0),
        false => None,
    };
    clock.lap("select");
    let settings = &options.settings;
    let bench = Bench { engine, chat, prompts, settings, observer };
    let before = bench.measure(None, &Answers::Unchanged)?;
    let base_row = SweepRow {
        strength: 1.0,
        classes: evaluate::class_table(&before, settings.seed),
        harmless_kl: Some(0.0),
        ..SweepRow::default()
    };
    let mut rows = vec![wrapped_into(&before, settings, base_row)];
    clock.lap("evaluate");
    let mut found = Vec::new();
    for (lambda, strength, alpha) in grid(options) {
        let name = setting_name(lambda, strength, alpha);
        let blank = SweepRow { lambda: Some(lambda), strength, alpha, ..SweepRow::default() };
        let choice = match chooser.choose(lambda, strength, observer) {
            Ok(choice) => choice,
            Err(error) if matches!(error, Error::Guard { .. } | Error::Other { kind: Kind::Failed, .. }) => {
                rows.push(SweepRow { failure: Some(error.to_string()), ..blank });
                continue;
            }
            Err(error) => return Err(error),
        };
        clock.lap("select");
        let vector = addition.clone().map(|a| Addition { alpha, ..a });
        // what is measured is what a direction file holds
        let edit = direction_file::as_stored(&choice.edit.with_addition(vector))?;
        let after = bench.measure(Some(&edit), &Answers::Setting { name: name.clone() })?;
        let Compared { result: eval, evidence } = evaluate::compare(&before, &after, settings, chat, Vec::new());
        let selected = &choice.result.selected;
        let row = SweepRow {
            position: selected.position,
            layer: selected.layer,
            cosine: cosine_with_true(activations, &edit, selected.position, selected.layer),
            val_refusal_score: crate::report::finite(selected.refusal_score),
            classes: eval.after.clone(),
            harmless_kl: eval.harmless_kl,
            guard: Some(guard::judge(&evidence, options.guard)),
            ..blank
        };
        let choice = Choice { edit, result: choice.result };
        found.push(Setting { row: rows.len(), name, choice });
        rows.push(wrapped_into(&after, settings, row));
        clock.lap("evaluate");
    }
    let (recommended, reason) = recommend(&rows);
    let cross = match options.cross {
        [] => Vec::new(),
        sets => {
            let own = cross::Own { activations, rules: options.rules };
            let lambda = options.lambdas.first().copied().unwrap_or(1.0);
            let rows = cross::table(&bench, &own, sets, lambda)?;
            clock.lap("cross");
            rows
        }
    };
    let result = SweepResult {
        schema: SCHEMA,
        model: String::new(),
        rows,
        recommended,
        reason,
        cross,
        seconds: std::collections::BTreeMap::new(),
    };
    Ok((result, found))
}

/// Every setting, lambda by lambda; without repetitions.
fn grid(options: &SweepOptions<'_>) -> Vec<(f64, f64, f64)> {
    let mut all: Vec<(f64, f64, f64)> = Vec::new();
    for &lambda in &options.lambdas {
        for &strength in &options.strengths {
            for &alpha in &options.alphas {
                if !all.contains(&(lambda, strength, alpha)) {
                    all.push((lambda, strength, alpha));
                }
            }
        }
    }
    all
}

fn setting_name(lambda: f64, strength: f64, alpha: f64) -> String {
    let mut name = lambda.to_string();
    if strength != 1.0 {
        name += &format!("-s{strength}");
    }
    if alpha != 0.0 {
        name += &format!("-a{alpha}");
    }
    name
}

/// Cosine of what an edit ablates with the true-refusal vector of a position and layer; `None` where that has no length.
fn cosine_with_true(activations: &Activations, edit: &Edit, position: i64, layer: usize) -> Option<f64> {
    let mean = |class| activations.of(class).mean(position, layer);
    let r = diff_in_means(&mean(PromptClass::Harmful), &mean(PromptClass::Harmless));
    crate::report::finite(cosine(edit.ablation()?.vectors()[0].unit(), &r))
}

/// Prompts, ready to be asked under one edit after another.
pub(super) struct Bench<'a> {
    pub engine: Engine<'a>,
    pub chat: &'a Chat,
    pub prompts: &'a Prompts,
    pub settings: &'a evaluate::Settings,
    pub observer: &'a dyn Observer,
}

impl Bench<'_> {
    pub(super) fn measure(&self, edit: Option<&Edit>, whose: &Answers) -> Result<Measured, Error> {
        let steering = edit.map(Steering::of);
        let engine = Engine { steered: steering.as_ref(), ..self.engine };
        let Self { chat, prompts, settings, observer, .. } = *self;
        let mut measured = evaluate::measure(&engine, chat, prompts, settings, whose, observer)?;
        evaluate::judge_answers(&mut [&mut measured], settings, engine.cancelled, observer)?;
        Ok(measured)
    }

    /// How many of some prompts are refused under an edit; no scores.
    pub(super) fn refusals(&self, edit: Option<&Edit>, texts: &[String], stage: &Stage) -> Result<ClassResult, Error> {
        let steering = edit.map(Steering::of);
        let engine = Engine { steered: steering.as_ref(), ..self.engine };
        let Self { chat, settings, observer, .. } = *self;
        observer.start(stage, texts.len() as u64);
        let rows = encode(chat, texts)?;
        let answers = engine.answers(&rows, settings.max_new_tokens, &settings.stop, |n| observer.advance(n))?;
        observer.finish();
        let mut refused = 0;
        for ids in answers {
            refused += usize::from(settings.patterns.outcome(&chat.decode(&ids, true)?) == Outcome::Refused);
        }
        Ok(ClassResult::new(refused, texts.len(), &[]))
    }
}

/// What the wrapped prompts came to, taken together; `None` where there were none.
pub(super) fn wrapped(measured: &Measured, settings: &evaluate::Settings) -> Option<ClassResult> {
    let wrapped = measured.sets.iter().filter(|set| settings.asks[set.ask].wrapper.is_some());
    let results: Vec<ClassResult> = wrapped.map(|set| set.result(settings.seed)).collect();
    let sum = |get: fn(&ClassResult) -> usize| results.iter().map(get).sum();
    (!results.is_empty()).then(|| ClassResult::new(sum(|r| r.refused), sum(|r| r.total), &[]))
}

/// A row with that.
fn wrapped_into(measured: &Measured, settings: &evaluate::Settings, row: SweepRow) -> SweepRow {
    match wrapped(measured, settings) {
        Some(all) => {
            SweepRow { wrapped_refusal_rate: Some(all.refusal_rate), wrapped_interval: all.refusal_interval, ..row }
        }
        None => row,
    }
}

/// The setting with the lowest pseudo-harmful refusal rate among those within the policy; ties go to the smaller harmless
/// KL, then to the larger lambda, then to the earlier row. And why, in a sentence.
pub fn recommend(rows: &[SweepRow]) -> (Option<usize>, String) {
    let within = |row: &SweepRow| row.guard.as_ref().is_some_and(|guard| guard.passed);
    let kl = |row: &SweepRow| row.harmless_kl.unwrap_or(f64::INFINITY);
    let best = rows.iter().enumerate().filter(|(_, row)| within(row)).min_by(|(_, a), (_, b)| {
        let rate = |row: &SweepRow| row.classes.pseudo_harmful.refusal_rate;
        (rate(a).total_cmp(&rate(b)))
            .then(kl(a).total_cmp(&kl(b)))
            .then(b.lambda.unwrap_or(0.0).total_cmp(&a.lambda.unwrap_or(0.0)))
    });
    let tried = rows.iter().filter(|row| row.lambda.is_some());
    let Some((index, row)) = best else {
        let mut reasons: Vec<String> = tried
            .filter_map(|row| row.guard.as_ref().and_then(|g| g.reasons.first().cloned()).or(row.failure.clone()))
            .collect();
        reasons.dedup();
        let reason = match reasons.is_empty() {
            true => "no setting was tried".to_string(),
            false => format!("no setting is within the policy: {}", reasons.join("; ")),
        };
        return (None, reason);
    };
    let name = setting_name(row.lambda.unwrap_or(1.0), row.strength, row.alpha);
    let others = tried.clone().filter(|row| within(row)).count();
    let all = tried.count();
    let refused = &row.classes.pseudo_harmful;
    let reason = format!(
        "lambda {name}: {} of {} pseudo-harmful prompts are still refused, the fewest of the {others} settings within the \
         policy ({all} were tried)",
        refused.refused, refused.total
    );
    (Some(index), reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::GuardResult;

    fn row(lambda: f64, refused: usize, kl: f64, passed: bool) -> SweepRow {
        let mut row = SweepRow { lambda: Some(lambda), strength: 1.0, harmless_kl: Some(kl), ..SweepRow::default() };
        row.classes.pseudo_harmful = ClassResult::new(refused, 10, &[]);
        row.guard = Some(GuardResult { passed, reasons: vec!["too much".into()], ..GuardResult::default() });
        row
    }

    #[test]
    fn the_most_compliance_within_the_policy_is_recommended() {
        let mut rows = vec![
            SweepRow::default(),
            row(0.0, 0, 0.1, false),
            row(0.5, 2, 0.2, true),
            row(0.75, 2, 0.1, true),
            row(1.0, 2, 0.1, true),
            row(0.25, 3, 0.0, true),
        ];
        let (best, reason) = recommend(&rows);
        assert_eq!(best, Some(4));
        assert!(reason.contains("lambda 1: 2 of 10") && reason.contains("4 settings within the policy (5"), "{reason}");
        rows.iter_mut().filter_map(|row| row.guard.as_mut()).for_each(|guard| guard.passed = false);
        let (best, reason) = recommend(&rows);
        assert_eq!(best, None);
        assert_eq!(reason, "no setting is within the policy: too much");
        assert_eq!(recommend(&rows[..1]).1, "no setting was tried");
    }

    #[test]
    fn settings_have_short_names() {
        assert_eq!(setting_name(0.25, 1.0, 0.0), "0.25");
        assert_eq!(setting_name(1.0, 0.5, -2.0), "1-s0.5-a-2");
    }
}
