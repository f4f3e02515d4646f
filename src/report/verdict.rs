//! How a run ended, in a word and in a line.

use super::number;
use super::{AnswerPair, ClassResult, EvalResult, PromptClass, RunResult, VerifyResult};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Verified, guard passed.
    Published,
    /// Verified; the guard did not pass and the user overrode it.
    Overridden,
    /// The guard did not pass: no model.
    GuardRefused,
    /// No setting of the search keeps to the policy: no model.
    NothingHolds,
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
            Self::NothingHolds => "not published, no setting holds",
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
    /// How the run ended; a failed verification outweighs the guard, and one variant all others.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let forced = self.variants.iter().filter_map(|v| v.guard.as_ref()).any(|g| !g.passed && g.overridden);
        if self.nothing_holds().is_some() {
            return Verdict::NothingHolds;
        }
        match (self.verified(), self.guard_allows(), forced) {
            (false, _, _) => Verdict::NotVerified,
            (true, false, _) => Verdict::GuardRefused,
            (true, true, true) => Verdict::Overridden,
            (true, true, false) => Verdict::Published,
        }
    }

    /// The verdict in one line: what false and true refusal did in the variant that the direction comes from, and
    /// whether a model was published.
    #[must_use]
    pub fn headline(&self) -> String {
        let words = self.verdict().words();
        let Some(eval) = self.source().and_then(|v| v.eval.as_ref()) else { return words.into() };
        let change = |before: &ClassResult, after: &ClassResult| {
            format!("{} → {}", number::percent(before.refusal_rate), number::percent(after.refusal_rate))
        };
        format!(
            "false refusal {}; true refusal {}; {words}",
            change(&eval.before.pseudo_harmful, &eval.after.pseudo_harmful),
            change(&eval.before.harmful, &eval.after.harmful),
        )
    }
}

impl EvalResult {
    /// Up to `count` answers that tell most: pseudo-harmful prompts that were refused and are answered now, and
    /// last a harmful one, a lost refusal before a kept one.
    #[must_use]
    pub fn telling_answers(&self, count: usize) -> Vec<&AnswerPair> {
        let answers = &self.answers;
        let of = |class: PromptClass, before: bool, after: bool| {
            answers.iter().filter(move |a| {
                a.condition.wrapper().is_none()
                    && !a.condition.is_guard_set()
                    && a.class == class
                    && a.refused_before == before
                    && a.refused_after == after
            })
        };
        let mut harmful = of(PromptClass::Harmful, true, false).chain(of(PromptClass::Harmful, true, true));
        let last = if count > 1 { harmful.next() } else { None };
        let mut picked: Vec<&AnswerPair> = of(PromptClass::PseudoHarmful, true, false)
            .chain(of(PromptClass::PseudoHarmful, true, true))
            .chain(of(PromptClass::PseudoHarmful, false, true))
            .chain(of(PromptClass::PseudoHarmful, false, false))
            .take(count - usize::from(last.is_some()))
            .collect();
        picked.extend(last);
        picked
    }
}
