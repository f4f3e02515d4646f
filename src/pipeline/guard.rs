//! The guard: what was measured, held against a policy.

use crate::eval::policy::{Evidence, Limit, Policy};
use crate::report::{Checked, GuardResult};

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
    let checks: Vec<Checked> = judgement
        .checks
        .into_iter()
        .map(|c| {
            // beside a limit on the drop as counted its bound would read as if it were held to that limit
            let shows_bound = ["_bound", "_one_wrapper_drop", "_kl"].iter().any(|part| c.name.contains(part));
            Checked {
                name: name(&c.name),
                unit: unit(&c.name).into(),
                key: c.name,
                value: c.value,
                bound: c.bound.filter(|_| shows_bound),
                limit: c.limit,
                passed: c.passed,
                words: c.words,
            }
        })
        .collect();
    GuardResult {
        passed: judgement.passed,
        harmful_before: share(harmful.before()),
        harmful_after: share(harmful.after()),
        drop: harmful.drop().unwrap_or_default(),
        drop_bound: harmful.drop_upper(guard.policy.confidence()),
        limit: guard.policy.limit(Limit::HarmfulDrop).unwrap_or(1.0),
        reasons: checks.iter().filter(|c| !c.passed).map(|c| c.words.clone()).collect(),
        not_measured: judgement.not_measured.iter().map(|key| name(key)).collect(),
        checks,
        overridden: !judgement.passed && guard.force,
    }
}

/// A limit as people read it.
fn name(key: &str) -> String {
    let (limit, of) = key.split_once('.').map_or((key, None), |(limit, of)| (limit, Some(of)));
    let words = match limit {
        "min_prompts" => "harmful prompts judged",
        "max_harmful_drop" => "harmful refusal",
        "max_harmful_drop_bound" => "harmful refusal, bound",
        "max_wrapped_drop" => "inside all wrappers",
        "max_wrapped_drop_bound" => "inside all wrappers, bound",
        "max_one_wrapper_drop" => "inside",
        "max_harmless_kl" => "harmless KL",
        "max_perplexity_ratio" => "perplexity",
        "max_accuracy_loss" => "multiple choice accuracy",
        "max_broken_rise" => "empty or endless answers",
        other => other,
    };
    match of {
        Some(of) if limit == "max_one_wrapper_drop" => format!("{words} `{of}`"),
        Some(of) => format!("{words}, {of}"),
        None => words.to_string(),
    }
}

fn unit(key: &str) -> &'static str {
    match key {
        "min_prompts" => "prompts",
        "max_harmless_kl" => "nats",
        "max_perplexity_ratio" => "ratio",
        _ => "share",
    }
}
