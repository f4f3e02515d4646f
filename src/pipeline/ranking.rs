//! Which of the settings that were tried is the best, by how much, and what came closest where none holds.

use crate::eval::statistics::{CONFIDENCE, Paired};
use crate::report::{GuardResult, Recommendation, SearchRow, Versus, WhyBest, WhyNone};

/// A difference is called significant where its p value is at most this.
const SIGNIFICANT: f64 = 1.0 - CONFIDENCE;

/// Indices of the edits that hold, the best first: the fewest pseudo-harmful prompts refused, ties by the smaller harmless KL,
/// then as they were tried. The first row is the unchanged model.
pub(super) fn ranked(rows: &[SearchRow]) -> Vec<usize> {
    ranked_of(rows, |row| row.setting.is_edit() && row.holds(&rows[0]))
}

/// Of the edits that lower false refusal, the best of those that fail the fewest limits.
pub(super) fn closest(rows: &[SearchRow]) -> Option<usize> {
    let gains = |row: &SearchRow| row.setting.is_edit() && row.gains(&rows[0]);
    let failed = |row: &SearchRow| row.guard.as_ref().map_or(usize::MAX, |guard| guard.reasons.len());
    let fewest = rows.iter().filter(|row| gains(row)).map(failed).min()?;
    ranked_of(rows, |row| gains(row) && failed(row) == fewest).first().copied()
}

/// Indices of the rows that `fit`, the best first.
fn ranked_of(rows: &[SearchRow], fits: impl Fn(&SearchRow) -> bool) -> Vec<usize> {
    let mut all: Vec<usize> = (0..rows.len()).filter(|at| fits(&rows[*at])).collect();
    all.sort_by(|a, b| {
        let (a, b) = (&rows[*a], &rows[*b]);
        let refused = |row: &SearchRow| row.classes.pseudo_harmful.refused;
        refused(a).cmp(&refused(b)).then(kl(a).total_cmp(&kl(b)))
    });
    all
}

fn kl(row: &SearchRow) -> f64 {
    row.harmless_kl.unwrap_or(f64::INFINITY)
}

/// A row, and whether each pseudo-harmful prompt is refused under its edit. Rows with the edit of an earlier one are left
/// out.
pub(super) type Refusals<'r> = (usize, &'r [bool]);

/// Recommends the best row that holds, and compares it with the second on the same pseudo-harmful prompts.
pub(super) fn recommend(rows: &[SearchRow], refusals: &[Refusals<'_>]) -> Recommendation {
    let of = |row: usize| refusals.iter().find(|(at, _)| *at == row).map(|(_, refused)| *refused);
    let mut ranked = ranked(rows).into_iter().filter_map(|row| Some((row, of(row)?)));
    let Some((row, refused)) = ranked.next() else {
        return Recommendation::Nothing { why: why_none(rows), closest: closest(rows) };
    };
    let second = ranked.next();
    let why = match second {
        None => WhyBest::OnlyOne,
        Some((other, _)) => why_best(&rows[row], &rows[other]),
    };
    Recommendation::Row { row, why, second: second.map(|(other, theirs)| versus(other, refused, theirs)) }
}

/// Why one row is before another.
fn why_best(best: &SearchRow, second: &SearchRow) -> WhyBest {
    if best.classes.pseudo_harmful.refused < second.classes.pseudo_harmful.refused {
        WhyBest::FewestRefused
    } else if kl(best) < kl(second) {
        WhyBest::SmallestKl
    } else {
        WhyBest::FirstTried
    }
}

fn why_none(rows: &[SearchRow]) -> WhyNone {
    let edits = || rows.iter().filter(|row| row.setting.is_edit());
    let measured = edits().any(|row| row.guard.is_some());
    match edits().any(|row| row.gains(&rows[0])) {
        _ if rows[0].classes.pseudo_harmful.refused == 0 => WhyNone::NoFalseRefusal,
        true => WhyNone::Policy,
        false if measured => WhyNone::NoGain,
        false => WhyNone::NotMeasured,
    }
}

/// The row `second`, whose refusals are `theirs`, beside the best one on the same prompts.
fn versus(second: usize, best: &[bool], theirs: &[bool]) -> Versus {
    let pairs = Paired::count(theirs.iter().copied().zip(best.iter().copied()));
    let p_value = pairs.mcnemar();
    Versus {
        row: second,
        only_best: pairs.gained,
        only_second: pairs.lost,
        difference: pairs.drop(),
        interval: pairs.drop_interval(CONFIDENCE),
        p_value,
        significant: p_value <= SIGNIFICANT,
    }
}

/// One setting in a line of the log.
pub(super) fn told(row: &SearchRow, unchanged: &SearchRow) -> String {
    let [before, after] = [unchanged, row].map(|row| &row.classes);
    let mut line = format!(
        "{}: refused {} -> {} of {} pseudo-harmful, {} -> {} of {} harmful prompts",
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

/// Why nothing holds: what came closest, and what it lost.
pub(super) fn nothing_holds(rows: &[SearchRow]) -> String {
    let n = rows.len() - 1;
    match closest(rows) {
        Some(at) => format!("none of {n} settings keeps to the policy; closest came {}", told(&rows[at], &rows[0])),
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
    use crate::report::{ClassResult, SearchSetting};

    fn row(lambda: f64, refused: usize, kl: f64, reasons: &[&str]) -> SearchRow {
        let mut row = SearchRow {
            setting: SearchSetting::Wang { lambda, strength: 1.0, alpha: 0.0, position: Some(-1), layer: Some(3) },
            harmless_kl: Some(kl),
            ..SearchRow::default()
        };
        row.classes.pseudo_harmful = ClassResult::new(refused, 10, &[]);
        row.classes.harmful = ClassResult::new(9, 10, &[]);
        let reasons = reasons.iter().map(ToString::to_string).collect::<Vec<_>>();
        row.guard = Some(GuardResult { passed: reasons.is_empty(), reasons, ..GuardResult::default() });
        row
    }

    fn all(rows: Vec<SearchRow>) -> Vec<SearchRow> {
        let mut unchanged = SearchRow::default();
        unchanged.classes.pseudo_harmful = ClassResult::new(8, 10, &[]);
        std::iter::once(unchanged).chain(rows).collect()
    }

    #[test]
    fn the_best_that_holds_is_first() {
        let rows =
            all(vec![row(0.0, 1, 0.1, &["lost"]), row(0.5, 4, 0.2, &[]), row(0.7, 4, 0.1, &[]), row(1.0, 8, 0.0, &[])]);
        assert_eq!(ranked(&rows), [3, 2], "the smaller KL of two that refuse the same");
        let rows = all(vec![row(1.0, 8, 0.0, &[]), row(0.0, 1, 0.1, &["lost"])]);
        assert!(ranked(&rows).is_empty(), "one refuses as many as before, one loses true refusal");
    }

    /// A system prompt may do better than every edit: it is shown, and no file can hold it.
    #[test]
    fn a_system_prompt_is_no_choice() {
        let prompt =
            || SearchRow { setting: SearchSetting::SystemPrompt { text: "Answer.".into() }, ..row(1.0, 0, 0.0, &[]) };
        let rows = all(vec![prompt(), row(0.5, 5, 0.1, &[])]);
        assert_eq!(ranked(&rows), [2]);
        assert_eq!(closest(&all(vec![prompt(), row(0.5, 5, 0.1, &["lost"])])), Some(2));
        let rows = all(vec![prompt(), row(0.5, 8, 0.1, &[])]);
        let nothing = Recommendation::Nothing { why: WhyNone::NoGain, closest: None };
        assert_eq!(recommend(&rows, &[(2, &first(8))]), nothing);
    }

    /// Where nothing holds the user is told what came closest.
    #[test]
    fn what_came_closest_is_told() {
        let rows = all(vec![
            row(0.0, 1, 0.1, &["plain refusal is lost", "wrapped refusal is lost"]),
            row(0.5, 5, 0.1, &["wrapped refusal is lost"]),
            row(1.0, 8, 0.0, &[]),
        ]);
        assert_eq!(closest(&rows), Some(2));
        let message = nothing_holds(&rows);
        assert!(message.contains("none of 3 settings") && message.contains("lambda 0.5"), "{message}");
        assert!(message.contains("8 -> 5 of 10 pseudo-harmful") && message.contains("wrapped refusal is lost"));
        let rows = all(vec![row(1.0, 8, 0.0, &[])]);
        assert!(nothing_holds(&rows).contains("lowers false refusal"));
    }

    /// Refusals of 10 prompts, the first `n` of them.
    fn first(n: usize) -> Vec<bool> {
        (0..10).map(|at| at < n).collect()
    }

    #[test]
    fn the_best_is_recommended_beside_the_second() {
        let rows = all(vec![row(1.0, 7, 0.1, &[]), row(0.5, 1, 0.1, &[]), row(0.0, 0, 0.1, &["lost"])]);
        let (seven, one) = (first(7), first(1));
        let found = recommend(&rows, &[(1, &seven), (2, &one)]);
        let Recommendation::Row { row: 2, why: WhyBest::FewestRefused, second: Some(second) } = found else {
            panic!("{found:?}")
        };
        assert_eq!((second.row, second.only_best, second.only_second), (1, 0, 6));
        // six prompts of which one alone refuses each: 2 / 2^6
        assert!((second.p_value - 0.03125).abs() < 1e-12 && second.significant);
        assert!((second.difference.unwrap() - 0.6).abs() < 1e-12);
        let five = first(5);
        let rows = all(vec![row(1.0, 5, 0.2, &[]), row(0.5, 5, 0.1, &[])]);
        let found = recommend(&rows, &[(1, &five), (2, &five)]);
        let Recommendation::Row { row: 2, why: WhyBest::SmallestKl, second: Some(second) } = found else {
            panic!("{found:?}")
        };
        assert!(second.p_value == 1.0 && !second.significant, "the same refusals");
    }

    /// A second row with the same edit is no other setting.
    #[test]
    fn equal_edits_are_not_compared_with_each_other() {
        let rows = all(vec![row(1.0, 5, 0.1, &[]), row(0.5, 5, 0.1, &[])]);
        let found = recommend(&rows, &[(1, &first(5))]);
        assert_eq!(found, Recommendation::Row { row: 1, why: WhyBest::OnlyOne, second: None });
    }

    #[test]
    fn why_nothing_is_recommended_is_told() {
        let why = |rows: &[SearchRow]| match recommend(rows, &[]) {
            Recommendation::Nothing { why, closest } => (why, closest),
            found => panic!("{found:?}"),
        };
        assert_eq!(why(&all(vec![])), (WhyNone::NotMeasured, None));
        assert_eq!(why(&all(vec![row(1.0, 8, 0.0, &[])])), (WhyNone::NoGain, None));
        assert_eq!(why(&all(vec![row(1.0, 2, 0.0, &["lost"])])), (WhyNone::Policy, Some(1)));
        let mut rows = all(vec![row(1.0, 0, 0.0, &[])]);
        rows[0].classes.pseudo_harmful = ClassResult::new(0, 10, &[]);
        assert_eq!(why(&rows), (WhyNone::NoFalseRefusal, None));
    }
}
