//! How a run ended, in a word and in a line.

use super::number;
use super::{AnswerPair, ClassResult, RunResult, VerifyResult};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Verified, guard passed.
    Published,
    /// Verified; the guard did not pass and the user overrode it.
    Overridden,
    /// The guard did not pass: no model.
    GuardRefused,
    /// The rewritten model is not what it should be: no model.
    NotVerified,
}

impl Verdict {
    /// The verdict in words, lower case.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Overridden => "published against the guard",
            Self::GuardRefused => "not published, the guard refused",
            Self::NotVerified => "not published, verification failed",
        }
    }
}

impl VerifyResult {
    /// What the logits may differ from run-time ablation; none where weights were rounded to a coarse grid or edited
    /// through a norm, which changes them more than arithmetic does.
    #[must_use]
    pub fn allowed(&self) -> Option<f64> {
        self.bound.filter(|_| self.inexact.is_empty())
    }
}

impl RunResult {
    /// How the run ended; a failed verification outweighs the guard.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match (self.verify.passed, self.guard.passed, self.guard.overridden) {
            (false, _, _) => Verdict::NotVerified,
            (true, true, _) => Verdict::Published,
            (true, false, true) => Verdict::Overridden,
            (true, false, false) => Verdict::GuardRefused,
        }
    }

    /// The verdict in one line: what false and true refusal did, and whether a model was published.
    #[must_use]
    pub fn headline(&self) -> String {
        let change = |before: &ClassResult, after: &ClassResult| {
            format!("{} → {}", number::percent(before.refusal_rate), number::percent(after.refusal_rate))
        };
        let (before, after) = (&self.eval.before, &self.eval.after);
        format!(
            "false refusal {}; true refusal {}; {}",
            change(&before.pseudo_harmful, &after.pseudo_harmful),
            change(&before.harmful, &after.harmful),
            self.verdict().words()
        )
    }

    /// Up to `count` answers that tell most: pseudo-harmful prompts that were refused and are answered now, and
    /// last a harmful one, a lost refusal before a kept one.
    #[must_use]
    pub fn telling_answers(&self, count: usize) -> Vec<&AnswerPair> {
        let answers = &self.eval.answers;
        let of = |class: &'static str, before: bool, after: bool| {
            answers.iter().filter(move |a| {
                !a.condition.starts_with("wrapped")
                    && a.class == class
                    && a.refused_before == before
                    && a.refused_after == after
            })
        };
        let mut harmful = of("harmful", true, false).chain(of("harmful", true, true));
        let last = if count > 1 { harmful.next() } else { None };
        let mut picked: Vec<&AnswerPair> = of("pseudo_harmful", true, false)
            .chain(of("pseudo_harmful", true, true))
            .chain(of("pseudo_harmful", false, true))
            .chain(of("pseudo_harmful", false, false))
            .take(count - usize::from(last.is_some()))
            .collect();
        picked.extend(last);
        picked
    }
}
