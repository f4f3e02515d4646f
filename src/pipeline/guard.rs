//! The guard: what was measured, held against a policy.

use crate::eval::policy::{Evidence, Limit, Policy};
use crate::report::GuardResult;

/// What a model must keep to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Guard {
    /// The limits.
    pub policy: Policy,
    /// Publish all the same, and say so in the provenance.
    pub force: bool,
}

/// The guard's judgement of what was measured.
pub fn judge(evidence: &Evidence, guard: &Guard) -> GuardResult {
    let judgement = guard.policy.judge(evidence);
    let harmful = evidence.harmful.unwrap_or_default();
    let share = |n: usize| if harmful.total() == 0 { 0.0 } else { n as f64 / harmful.total() as f64 };
    let mut checks = judgement.checks;
    for check in checks.iter_mut().filter(|check| !check.key.shows_bound()) {
        check.bound = None;
    }
    GuardResult {
        passed: judgement.passed,
        harmful_before: share(harmful.before()),
        harmful_after: share(harmful.after()),
        drop: harmful.drop().unwrap_or_default(),
        drop_bound: harmful.drop_upper(guard.policy.confidence()),
        limit: guard.policy.limit(Limit::HarmfulDrop).unwrap_or(1.0),
        reasons: checks.iter().filter(|c| !c.passed).map(|c| c.words.clone()).collect(),
        not_measured: judgement.not_measured,
        too_few_refused: judgement.too_few_refused,
        checks,
        overridden: !judgement.passed && guard.force,
    }
}
