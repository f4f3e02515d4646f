//! The verdict over bytes and logits: what was found, in sentences.

use super::check::LogitReport;
use crate::bake::{ByteReport, Claim, Extent, Finding, FindingKind, METADATA_PREFIX};
use crate::report::VerifyResult;

/// Differences that are told one by one in sentences; the list has more of them.
const TOLD: usize = 20;

/// The verdict over bytes and logits; `logits` are `None` where the output was not run.
pub fn verdict(bytes: &ByteReport, logits: Option<&LogitReport>, inexact: Vec<String>) -> VerifyResult {
    let mut failures = Vec::new();
    let mut unchecked = bytes.unchecked.clone();
    match bytes.extent {
        Extent::Nothing => failures.push("there is nothing to check: no tensor is edited, and no node is added".into()),
        Extent::Untouched => failures.push("the output is the base: nothing was edited".into()),
        Extent::Void => {
            failures.push("the output is the base: nothing was edited, as the strength changes no stored value".into());
        }
        // of an output that is another file nothing is known
        Extent::Already if !bytes.passed() => {}
        Extent::Already => unchecked.push(
            "whether the edit was needed: the weights of the base keep nothing along the direction that their type can \
             hold, so that it changes no value"
                .into(),
        ),
        Extent::Edited => {}
    }
    failures.extend(bytes.claims.iter().map(claimed));
    if bytes.changed_bytes_outside_plan > 0 {
        failures.push(format!("{} bytes outside the plan differ", bytes.changed_bytes_outside_plan));
    }
    // entries of our own were told as claims
    let told = |finding: &&Finding| finding.kind != FindingKind::Metadata || !finding.name.starts_with(METADATA_PREFIX);
    let all: Vec<&Finding> = bytes.findings.listed.iter().filter(told).collect();
    failures.extend(all.iter().take(TOLD).map(ToString::to_string));
    let more = all.len().saturating_sub(TOLD) + bytes.findings.more;
    if more > 0 {
        failures.push(format!("and {more} more differences"));
    }
    if failures.is_empty() && !bytes.passed() {
        failures.push("an edited tensor is not what the plan computes".into());
    }
    failures.extend(logits.map(|logits| of_logits(logits, &inexact)).unwrap_or_default());
    VerifyResult {
        passed: failures.is_empty(),
        max_abs_logit_diff: logits.map(|l| l.max_abs_logit_diff),
        kl: logits.map(|l| l.kl),
        max_stream_leak: logits.map(|l| l.max_stream_leak),
        changed_bytes_outside_plan: bytes.changed_bytes_outside_plan,
        bound: logits.map(|l| l.bound),
        n_prompts: logits.map_or(0, |l| l.n_prompts),
        inexact,
        failures,
        unexplained: bytes.findings.listed.clone(),
        stream: None,
        unchecked,
    }
}

fn of_logits(logits: &LogitReport, inexact: &[String]) -> Vec<String> {
    let mut failures = Vec::new();
    // a NaN must fail too
    let beyond = inexact.is_empty() && logits.max_abs_logit_diff > logits.bound;
    if logits.max_abs_logit_diff.is_nan() || beyond {
        failures.push(format!(
            "a logit differs from run-time ablation by {:.3e}, more than {:.3e}",
            logits.max_abs_logit_diff, logits.bound
        ));
    }
    if logits.max_stream_leak.is_nan() || logits.max_stream_leak > logits.leak_bound {
        failures.push(format!(
            "the stream keeps {:.3e} of the direction, more than {:.3e}",
            logits.max_stream_leak, logits.leak_bound
        ));
    }
    failures
}

/// What the output says of itself and was not asked for, with what to ask for to verify that.
fn claimed(claim: &Claim) -> String {
    let (said, computed) = (claim.said.as_deref(), claim.computed.as_deref());
    let option = match claim.key.as_str() {
        "strength" => Some(("strength", "--strength", "1")),
        "addition_alpha" => Some(("an addition with factor", "--add", "0")),
        "quantised" => Some(("quantised weights treated by", "--quantised", "auto")),
        "max_rounding_error" => Some(("largest rounding error", "--max-rounding-error", "none")),
        _ => None,
    };
    match (option, said, computed) {
        (Some((words, flag, _)), Some(said), computed) => {
            let asked = computed.map_or_else(|| "none of that was asked for".into(), |c| format!("{c} was asked for"));
            format!("the output's metadata says {words} {said}, and {asked}; pass `{flag} {said}` to verify that")
        }
        (Some((words, flag, usual)), None, Some(computed)) => {
            let way = match usual {
                "none" => format!("leave `{flag}` out"),
                usual => format!("pass `{flag} {usual}`"),
            };
            format!(
                "the output's metadata does not say {words} {computed}, which was asked for; {way} if it was not so"
            )
        }
        (_, Some(said), Some(_)) if claim.key == "direction_sha256" => {
            format!("the output's metadata says that it was baked with another direction, of SHA-256 {said}")
        }
        (_, Some(said), Some(computed)) => {
            format!("metadata entry `{METADATA_PREFIX}{}` is `{said}`, and the edit gives `{computed}`", claim.key)
        }
        (_, Some(said), None) => format!("metadata entry `{METADATA_PREFIX}{}` was added: `{said}`", claim.key),
        (_, None, computed) => {
            let gives = computed.unwrap_or_default();
            format!("metadata entry `{METADATA_PREFIX}{}` is missing; the edit gives `{gives}`", claim.key)
        }
    }
}
