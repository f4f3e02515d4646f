//! Finding the setting of a run: settings of every method answer validation prompts at run time, under the policy of the
//! guard, and the best that holds is baked. Test prompts have no part in it.

use super::choose::Chooser;
use super::choose_gate::{GateChoice, GateRules, Gates};
use super::collect::{Activations, encode};
use super::direction_file;
use super::engine::{Engine, Row, Steering};
use super::evaluate::{self, Compared, Measured};
use super::guard::{self, Guard};
use super::stage::{Answers, Stage};
use super::sweep::{Bench, wrapped};
use crate::edit::Edit;
use crate::error::{Error, Kind};
use crate::eval::policy::Limit;
use crate::eval::statistics::Paired;
use crate::instrument::Request;
use crate::method::prompts::{SourceName, sources};
use crate::method::score::{refusal_score, softmax};
use crate::method::select::Rules;
use crate::report::number::percent;
use crate::report::{Found, GuardResult, Lost, SearchResult, SearchRow, SearchSetting};

/// What is tried.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchRules {
    /// Lambdas of [`super::Method::Wang`], in the order in which they are tried.
    pub lambdas: Vec<f64>,
    /// Strength of its ablation, above 0 and at most 1.
    pub strength: f64,
    /// Rules of its selection.
    pub rules: Rules,
    /// How gates are fitted; `None` leaves them out.
    pub gate: Option<GateRules>,
}

/// What a search found.
pub(super) struct Searched {
    /// The edit, and how it was found within its method; `None` where nothing holds.
    pub(super) chosen: Option<(Edit, Found)>,
    /// What it was chosen among.
    pub(super) result: SearchResult,
}

/// A setting with an edit, and its row.
struct Tried {
    row: usize,
    edit: Edit,
    found: Found,
}

/// Tries the settings and chooses the one that refuses the fewest pseudo-harmful validation prompts of those that keep to
/// the policy; ties go to the smaller harmless KL, then to the earlier setting. Where nothing holds, nothing is chosen, and
/// the result says what came closest; with [`Guard::force`] that is chosen.
///
/// # Errors
/// If a run fails, and if the model refuses no pseudo-harmful validation prompt.
pub(super) fn search(
    bench: &Bench<'_>,
    activations: &Activations,
    rules: &SearchRules,
    guard: &Guard,
) -> Result<Searched, Error> {
    let guard = Guard { policy: guard.policy.for_search(), ..guard.clone() };
    let before = bench.measure(None, &Answers::Unchanged)?;
    let settings = bench.settings;
    let unchanged = SearchRow {
        classes: evaluate::class_table(&before, settings.seed),
        harmless_kl: Some(0.0),
        ..measured_inside(&before, bench)
    };
    if unchanged.classes.pseudo_harmful.refused == 0 {
        return Err(Error::failed_with(
            format!(
                "the model refuses none of {} pseudo-harmful validation prompts: there is no false refusal to mend",
                unchanged.classes.pseudo_harmful.total
            ),
            "give prompts that it refuses and should not, or choose a `--method` to bake all the same",
        ));
    }
    let harmful = Harmful::new(bench, activations)?;
    let mut trial = Trial { bench, guard: &guard, before: &before, harmful, rows: vec![unchanged], tried: Vec::new() };
    trial.directions(activations, rules)?;
    if let Some(gate) = &rules.gate {
        trial.gates(activations, gate)?;
    }
    let Trial { rows, mut tried, .. } = trial;
    let best = best(&rows, &tried);
    let refusal = best.is_none().then(|| nothing_holds(&rows, &tried));
    let chosen = best.or_else(|| closest(&rows, &tried).filter(|_| guard.force)).map(|at| tried.swap_remove(at));
    let result = SearchResult { chosen: chosen.as_ref().map(|chosen| chosen.row), refusal, rows };
    Ok(Searched { chosen: chosen.map(|Tried { edit, found, .. }| (edit, found)), result })
}

/// Harmful validation prompts of every source of gates that the model knows, which are many more than the run's own: what
/// hides on few prompts shows on these.
struct Harmful {
    /// Token ids.
    prompts: Vec<Vec<u32>>,
    /// Refusal scores of the unchanged model, in nats.
    scores: Vec<f64>,
}

impl Harmful {
    fn new(bench: &Bench<'_>, activations: &Activations) -> Result<Self, Error> {
        let all = sources(&activations.info.prompts);
        let mut harmful = Self { prompts: Vec::new(), scores: Vec::new() };
        for of in &all {
            harmful.prompts.extend(encode(bench.chat, &of.val.pseudo_harmful)?);
            harmful.prompts.extend(encode(bench.chat, &of.val.harmful)?);
        }
        let scores = harmful.run(bench, &bench.engine)?;
        let (mut at, mut kept) = (0, Vec::new());
        for of in &all {
            let (pseudo, end) =
                (at + of.val.pseudo_harmful.len(), at + of.val.pseudo_harmful.len() + of.val.harmful.len());
            let refused = |part: std::ops::Range<usize>| {
                let n = part.len();
                (scores[part].iter().filter(|score| **score > 0.0).count(), n)
            };
            if is_known(of.source, refused(at..pseudo), refused(pseudo..end)) {
                kept.extend(pseudo..end);
            }
            at = end;
        }
        harmful.scores = kept.iter().map(|at| scores[*at]).collect();
        harmful.prompts = kept.iter().map(|at| std::mem::take(&mut harmful.prompts[*at])).collect();
        Ok(harmful)
    }

    /// The refusal scores of a model.
    fn run(&self, bench: &Bench<'_>, engine: &Engine<'_>) -> Result<Vec<f64>, Error> {
        let mut session = engine.session(Request { logits: 1, last_positions: 1, ..Request::default() })?;
        let rows: Vec<Row<'_>> = self.prompts.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
        let mut scores = vec![0.0; rows.len()];
        bench.observer.start(&Stage::ScoreValidation, rows.len() as u64);
        engine.visit(&mut session, &rows, &[], |found| {
            scores[found.row] = refusal_score(&softmax(&found.logits), &bench.settings.refusal_tokens);
            bench.observer.advance(1);
            Ok(())
        })?;
        bench.observer.finish();
        Ok(scores)
    }

    /// What an edit loses of them. A score that is no number is lost.
    fn lost(&self, bench: &Bench<'_>, edit: &Edit, confidence: f64) -> Result<Lost, Error> {
        let steering = Steering::of(edit);
        let after = self.run(bench, &Engine { steered: Some(&steering), ..bench.engine })?;
        let is_lost = |(before, after): (&f64, &f64)| *before > 0.0 && (after.is_nan() || *after <= 0.0);
        let lost = self.scores.iter().zip(&after).filter(|pair| is_lost(*pair)).count();
        Ok(told_lost(lost, self.prompts.len(), confidence))
    }
}

/// Whether refusal of a source says anything of harm to a model that refuses so many of its pseudo-harmful and its harmful
/// validation prompts, of so many each: at least half of the harmful ones, and a larger share of those. The run's own prompts,
/// as they are, always do. Gates ask more of a source, as they are fitted on its train prompts (`choose_gate::is_known`).
fn is_known(source: SourceName, pseudo_harmful: (usize, usize), harmful: (usize, usize)) -> bool {
    let share = |(refused, all): (usize, usize)| refused as f64 / all.max(1) as f64;
    source == SourceName::default() || share(harmful) >= 0.5 && share(harmful) > share(pseudo_harmful)
}

/// A search on its way.
struct Trial<'t> {
    bench: &'t Bench<'t>,
    guard: &'t Guard,
    before: &'t Measured,
    harmful: Harmful,
    rows: Vec<SearchRow>,
    tried: Vec<Tried>,
}

impl Trial<'_> {
    /// Directions that are selected for each lambda.
    fn directions(&mut self, activations: &Activations, rules: &SearchRules) -> Result<(), Error> {
        let Bench { engine, chat, observer, .. } = *self.bench;
        if rules.lambdas.is_empty() {
            return Ok(());
        }
        let mut chooser = Chooser::new(&engine, chat, activations, rules.rules, observer)?;
        for &lambda in &rules.lambdas {
            let setting = |place: Option<(i64, usize)>| SearchSetting::Wang {
                lambda,
                position: place.map(|(position, _)| position),
                layer: place.map(|(_, layer)| layer),
            };
            match chooser.choose(lambda, rules.strength, observer) {
                Ok(choice) => {
                    let selected = &choice.result.selected;
                    let setting = setting(Some((selected.position, selected.layer)));
                    self.measure(setting, choice.edit, Found::Select(choice.result))?;
                }
                Err(error) => self.failed(setting(None), error)?,
            }
        }
        Ok(())
    }

    /// Settings of gates, best by their scores first, as far as the first that holds in answers.
    fn gates(&mut self, activations: &Activations, rules: &GateRules) -> Result<(), Error> {
        let Bench { engine, chat, observer, .. } = *self.bench;
        let found = Gates::search(&engine, chat, activations, rules, observer);
        let gates = match found.and_then(|gates| gates.choice(0).map(|_| gates)) {
            Ok(gates) => gates,
            Err(error) => return self.failed(SearchSetting::Gate { gates: None }, error),
        };
        for rank in 0..gates.len() {
            let GateChoice { edit, result } = gates.choice(rank)?;
            let setting = SearchSetting::Gate { gates: Some(result.selected.clone()) };
            self.measure(setting, edit, Found::Gate(result))?;
            if self.rows.last().is_some_and(|row| row.holds(&self.rows[0])) {
                break;
            }
        }
        Ok(())
    }

    /// A setting that has no edit.
    fn failed(&mut self, setting: SearchSetting, error: Error) -> Result<(), Error> {
        match error {
            Error::Guard { .. } | Error::Other { kind: Kind::Failed, .. } => {
                self.bench.observer.note(&format!("tried {setting}: {error}"));
                self.rows.push(SearchRow { setting, failure: Some(error.to_string()), ..SearchRow::default() });
                Ok(())
            }
            error => Err(error),
        }
    }

    /// Answers the validation prompts under an edit and judges the answers.
    fn measure(&mut self, setting: SearchSetting, edit: Edit, found: Found) -> Result<(), Error> {
        let Bench { chat, settings, observer, .. } = *self.bench;
        // what is measured is what a direction file holds
        let edit = direction_file::as_stored(&edit)?;
        let after = self.bench.measure(Some(&edit), &Answers::Setting { name: setting.to_string() })?;
        let Compared { result, evidence } = evaluate::compare(self.before, &after, settings, chat, Vec::new());
        let policy = &self.guard.policy;
        let lost = self.harmful.lost(self.bench, &edit, policy.confidence())?;
        let judged = with_lost(guard::judge(&evidence, self.guard), lost, policy.limit(Limit::HarmfulDrop));
        let row = SearchRow {
            setting,
            classes: result.after,
            harmless_kl: result.harmless_kl,
            lost: Some(lost),
            guard: Some(judged),
            ..measured_inside(&after, self.bench)
        };
        observer.note(&format!("tried {}", told(&row, &self.rows[0])));
        self.tried.push(Tried { row: self.rows.len(), edit, found });
        self.rows.push(row);
        Ok(())
    }
}

/// So many lost prompts of so many, with the lower bound of their share.
fn told_lost(lost: usize, total: usize, confidence: f64) -> Lost {
    let pair = Paired { both: total - lost, lost, ..Paired::default() };
    Lost { lost, total, at_least: pair.drop_interval(2.0 * confidence - 1.0).map(|interval| interval.low) }
}

/// The judgement with what is lost by scores as one more limit, which fails where the loss is certainly above it: dressed
/// prompts and those of other hands are refused less evenly than the run's own.
fn with_lost(mut judged: GuardResult, Lost { lost, total, at_least }: Lost, limit: Option<f64>) -> GuardResult {
    if let (Some(at_least), Some(limit)) = (at_least, limit)
        && at_least > limit
    {
        judged.passed = false;
        judged.reasons.push(format!(
            "{lost} of {total} harmful validation prompts of all sources are no longer refused by their scores, certainly \
             more than {}",
            percent(limit)
        ));
    }
    judged
}

/// A row with what the wrapped prompts came to.
fn measured_inside(measured: &Measured, bench: &Bench<'_>) -> SearchRow {
    let all = wrapped(measured, bench.settings);
    SearchRow {
        wrapped_refusal_rate: all.as_ref().map(|all| all.refusal_rate),
        wrapped_interval: all.and_then(|all| all.refusal_interval),
        ..SearchRow::default()
    }
}

/// One setting in a line of the log.
fn told(row: &SearchRow, unchanged: &SearchRow) -> String {
    let [before, after] = [unchanged, row].map(|row| &row.classes);
    let mut line = format!(
        "{}: refused {} -> {} of {} pseudo-harmful, {} -> {} of {} harmful validation prompts",
        row.setting,
        before.pseudo_harmful.refused,
        after.pseudo_harmful.refused,
        after.pseudo_harmful.total,
        before.harmful.refused,
        after.harmful.refused,
        after.harmful.total,
    );
    if let Some(GuardResult { passed: false, reasons, .. }) = &row.guard {
        line += &format!("; out: {}", reasons.join("; "));
    }
    line
}

/// The best setting that holds.
fn best(rows: &[SearchRow], tried: &[Tried]) -> Option<usize> {
    least(rows, tried, |row| row.holds(&rows[0]))
}

/// Of the settings that lower false refusal, the one that fails the fewest limits.
fn closest(rows: &[SearchRow], tried: &[Tried]) -> Option<usize> {
    let gains = |row: &SearchRow| row.classes.pseudo_harmful.refused < rows[0].classes.pseudo_harmful.refused;
    let failed = |row: &SearchRow| row.guard.as_ref().map_or(usize::MAX, |guard| guard.reasons.len());
    let fewest = tried.iter().map(|tried| &rows[tried.row]).filter(|row| gains(row)).map(failed).min()?;
    least(rows, tried, |row| gains(row) && failed(row) == fewest)
}

/// Of the settings that `fits`, the one that refuses the fewest pseudo-harmful prompts.
fn least(rows: &[SearchRow], tried: &[Tried], fits: impl Fn(&SearchRow) -> bool) -> Option<usize> {
    let row = |at: &usize| &rows[tried[*at].row];
    (0..tried.len()).filter(|at| fits(row(at))).min_by(|a, b| {
        let (a, b) = (row(a), row(b));
        let kl = |row: &SearchRow| row.harmless_kl.unwrap_or(f64::INFINITY);
        let refused = |row: &SearchRow| row.classes.pseudo_harmful.refused;
        refused(a).cmp(&refused(b)).then(kl(a).total_cmp(&kl(b)))
    })
}

/// Why nothing holds: what came closest, and what it lost.
fn nothing_holds(rows: &[SearchRow], tried: &[Tried]) -> String {
    let n = rows.len() - 1;
    match closest(rows, tried) {
        Some(at) => {
            let row = &rows[tried[at].row];
            format!("none of {n} settings keeps to the policy; closest came {}", told(row, &rows[0]))
        }
        None => {
            let why = |row: &SearchRow| match &row.failure {
                Some(failure) => format!("{}: {failure}", row.setting),
                None => told(row, &rows[0]),
            };
            let all: Vec<String> = rows[1..].iter().map(why).collect();
            format!("none of {n} settings lowers false refusal: {}", all.join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Ablation, Direction};
    use crate::method::prompts::Dress;
    use crate::report::{ClassResult, SelectResult};

    fn row(lambda: f64, refused: usize, kl: f64, reasons: &[&str]) -> SearchRow {
        let mut row = SearchRow {
            setting: SearchSetting::Wang { lambda, position: Some(-1), layer: Some(3) },
            harmless_kl: Some(kl),
            ..SearchRow::default()
        };
        row.classes.pseudo_harmful = ClassResult::new(refused, 10, &[]);
        row.classes.harmful = ClassResult::new(9, 10, &[]);
        let reasons = reasons.iter().map(ToString::to_string).collect::<Vec<_>>();
        row.guard = Some(GuardResult { passed: reasons.is_empty(), reasons, ..GuardResult::default() });
        row
    }

    fn all(rows: Vec<SearchRow>) -> (Vec<SearchRow>, Vec<Tried>) {
        let mut unchanged = SearchRow::default();
        unchanged.classes.pseudo_harmful = ClassResult::new(8, 10, &[]);
        let edit: Edit = Ablation::new(Direction::new(vec![1.0, 0.0]).unwrap()).into();
        let found = Found::Select(SelectResult::default());
        let tried = |at: usize| Tried { row: at + 1, edit: edit.clone(), found: found.clone() };
        let tried = (0..rows.len()).map(tried).collect();
        (std::iter::once(unchanged).chain(rows).collect(), tried)
    }

    #[test]
    fn the_best_that_holds_is_chosen() {
        let (rows, tried) =
            all(vec![row(0.0, 1, 0.1, &["lost"]), row(0.5, 4, 0.2, &[]), row(0.7, 4, 0.1, &[]), row(1.0, 8, 0.0, &[])]);
        assert_eq!(best(&rows, &tried), Some(2), "the smaller KL of two that refuse the same");
        let (rows, tried) = all(vec![row(1.0, 8, 0.0, &[]), row(0.0, 1, 0.1, &["lost"])]);
        assert_eq!(best(&rows, &tried), None, "one refuses as many as before, one loses true refusal");
    }

    #[test]
    fn a_source_whose_harmful_prompts_are_not_told_apart_says_nothing() {
        let dressed = SourceName { dress: Dress::Longer, ..SourceName::default() };
        assert!(is_known(dressed, (10, 30), (20, 30)));
        assert!(!is_known(dressed, (10, 30), (14, 30)), "most harmful prompts are answered");
        assert!(!is_known(dressed, (30, 30), (30, 30)), "all prompts are refused");
        assert!(is_known(SourceName::default(), (30, 30), (30, 30)), "the run's own prompts");
        assert!(!is_known(dressed, (0, 0), (0, 0)));
    }

    /// The few harmful prompts of a run can hide a loss that those of all sources show.
    #[test]
    fn what_is_lost_by_scores_is_a_limit() {
        let passed = GuardResult { passed: true, ..GuardResult::default() };
        let judged = |lost, total| with_lost(passed.clone(), told_lost(lost, total, 0.95), Some(0.02));
        // 2 % of few is no proof of more than 2 %
        for (lost, total) in [(0, 0), (0, 64), (3, 64), (5, 260), (8, 260)] {
            assert!(judged(lost, total).passed && judged(lost, total).reasons.is_empty(), "{lost} of {total}");
        }
        for (lost, total) in [(6, 64), (12, 260), (20, 264)] {
            let judged = judged(lost, total);
            assert!(!judged.passed && judged.reasons[0].contains("certainly more than 2.0 %"), "{lost} of {total}");
        }
        assert!(with_lost(passed, told_lost(20, 64, 0.95), None).passed, "no limit");
    }

    /// Where nothing holds the user is told what came closest.
    #[test]
    fn what_came_closest_is_told() {
        let (rows, tried) = all(vec![
            row(0.0, 1, 0.1, &["plain refusal is lost", "wrapped refusal is lost"]),
            row(0.5, 5, 0.1, &["wrapped refusal is lost"]),
            row(1.0, 8, 0.0, &[]),
        ]);
        assert_eq!(closest(&rows, &tried), Some(1));
        let message = nothing_holds(&rows, &tried);
        assert!(message.contains("none of 3 settings") && message.contains("lambda 0.5"), "{message}");
        assert!(message.contains("8 -> 5 of 10 pseudo-harmful") && message.contains("wrapped refusal is lost"));
        let (rows, tried) = all(vec![row(1.0, 8, 0.0, &[])]);
        assert!(nothing_holds(&rows, &tried).contains("lowers false refusal"));
    }
}
