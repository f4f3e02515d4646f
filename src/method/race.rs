//! Which validation prompts each candidate direction still has to be measured on, and which candidate wins.
//!
//! The published procedure measures every candidate on every prompt and then discards most. Here the same rules are
//! applied as soon as they can be decided:
//!
//! 1. Candidates that are out whatever they score (no direction, the last layers, rounding noise) are not measured.
//! 2. Harmless prompts come first. A candidate leaves once its mean KL divergence is past the limit whatever the
//!    remaining prompts say.
//! 3. The pseudo-harmful prompts of those that are left decide their order.
//! 4. Harmful prompts are run for the best one only; if it lowers true refusal past the guard's limit it leaves, and the
//!    next one is the best.
//!
//! [`Search::Racing`] goes further: prompts of both classes are measured in rounds, and a candidate that is behind by three
//! standard errors waits (a race; Maron and Moore, *Hoeffding Races*, NIPS 1993). It is measured on if all that are ahead
//! of it leave. [`Search::Certain`] never changes the choice; [`Search::Exhaustive`] measures everything.

use std::ops::Range;

use super::classes::{PerClass, PromptClass};
use super::score::mean;
use super::select::{Candidate, Discarded, Rules, Search};

/// Prompts of a class that are measured in a round.
const ROUND: usize = 8;

/// Standard errors by which a candidate must be behind to wait.
const CLEARLY: f64 = 3.0;

/// The smoothed KL divergence of one prompt may be a little below zero. It is taken to be above minus this, in nats.
const KL_SLACK: f64 = 0.01;

/// Prompts to measure one candidate on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Index of the candidate.
    pub candidate: usize,
    /// Class of the prompts.
    pub class: PromptClass,
    /// Which validation prompts of the class, from the first one that the candidate was not measured on.
    pub prompts: Range<usize>,
}

/// What all candidates of a race have in common.
#[derive(Debug)]
pub struct Race<'r> {
    /// Number of layers of the model.
    pub n_layers: usize,
    /// The rules.
    pub rules: &'r Rules,
    /// Validation prompts of each class.
    pub prompts: PerClass<usize>,
    /// Refusal score of each harmful validation prompt on the unchanged model, in nats.
    pub harmful_base: &'r [f64],
}

impl Race<'_> {
    /// Runs of a prompt that the race still takes at most.
    pub fn at_most(&self, candidates: &[Candidate]) -> u64 {
        let exhaustive = self.rules.search == Search::Exhaustive;
        let PerClass { harmful, pseudo_harmful, harmless } = self.prompts;
        let each = pseudo_harmful + harmless + if exhaustive { harmful } else { 0 };
        let runs = candidates.iter().filter(|c| c.direction.is_some() && (exhaustive || self.reason(c).is_none()));
        runs.map(|c| each.saturating_sub(c.measured.iter().map(|(_, values)| values.len()).sum()) as u64).sum()
    }

    /// What is to be measured next; nothing once the choice is made.
    pub fn next(&self, candidates: &[Candidate]) -> Vec<Job> {
        if self.rules.search == Search::Exhaustive {
            let measurable = (0..candidates.len()).filter(|&at| candidates[at].direction.is_some());
            return measurable
                .flat_map(|at| PromptClass::ALL.map(|class| self.rest(candidates, at, class, usize::MAX)))
                .flatten()
                .collect();
        }
        let left: Vec<usize> = (0..candidates.len()).filter(|&at| self.reason(&candidates[at]).is_none()).collect();
        let goes_on: Vec<usize> = left.iter().copied().filter(|&at| !self.is_behind(candidates, &left, at)).collect();
        // a race looks at both classes in turn, so that the worse ones wait early
        let turn = if self.rules.search == Search::Racing { ROUND } else { usize::MAX };
        let longest = self.prompts.harmless.max(self.prompts.pseudo_harmful);
        for until in (1..=longest.div_ceil(turn).max(1)).map(|turns| turns.saturating_mul(turn)) {
            for class in [PromptClass::Harmless, PromptClass::PseudoHarmful] {
                let begun = |&&at: &&usize| candidates[at].measured.get(class).len() < until;
                let jobs: Vec<Job> =
                    goes_on.iter().filter(begun).filter_map(|&at| self.rest(candidates, at, class, ROUND)).collect();
                if !jobs.is_empty() {
                    return jobs;
                }
            }
        }
        let best = self.best(candidates, &left);
        best.and_then(|at| self.rest(candidates, at, PromptClass::Harmful, ROUND)).into_iter().collect()
    }

    /// Marks who is out and why, and returns the index of the winner: the lowest mean refusal score on pseudo-harmful
    /// prompts, ties by (score, layer, position). Nothing is left to measure when it is called.
    pub fn finish(&self, candidates: &mut [Candidate]) -> Option<usize> {
        let reasons: Vec<Option<Discarded>> = candidates.iter().map(|candidate| self.reason(candidate)).collect();
        let left: Vec<usize> = (0..candidates.len()).filter(|&at| reasons[at].is_none()).collect();
        let behind: Vec<bool> =
            (0..candidates.len()).map(|at| reasons[at].is_none() && self.is_behind(candidates, &left, at)).collect();
        for ((candidate, reason), behind) in candidates.iter_mut().zip(reasons).zip(behind) {
            let prompts = candidate.measured.pseudo_harmful.len();
            candidate.discarded = reason.or(behind.then_some(Discarded::Outscored { prompts }));
        }
        self.best(candidates, &left)
    }

    /// Prompts of a class that a candidate was not measured on, `at_most` so many.
    fn rest(&self, candidates: &[Candidate], candidate: usize, class: PromptClass, at_most: usize) -> Option<Job> {
        let done = candidates[candidate].measured.get(class).len();
        let end = done.saturating_add(at_most).min(*self.prompts.get(class));
        (done < end).then_some(Job { candidate, class, prompts: done..end })
    }

    /// Of the candidates that were measured on every pseudo-harmful prompt, the one that refuses them least.
    fn best(&self, candidates: &[Candidate], left: &[usize]) -> Option<usize> {
        let complete = |at: &&usize| candidates[**at].measured.pseudo_harmful.len() == self.prompts.pseudo_harmful;
        let place = |at: usize| {
            let Candidate { measured, layer, position, .. } = &candidates[at];
            (mean(&measured.pseudo_harmful), *layer, *position)
        };
        let order = |a: &&usize, b: &&usize| {
            let (a, b) = (place(**a), place(**b));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2))
        };
        left.iter().filter(complete).min_by(order).copied()
    }

    /// Whether some other candidate refuses pseudo-harmful prompts clearly less, by the prompts that both were measured on.
    fn is_behind(&self, candidates: &[Candidate], left: &[usize], candidate: usize) -> bool {
        let own = &candidates[candidate].measured.pseudo_harmful;
        if self.rules.search != Search::Racing || own.len() == self.prompts.pseudo_harmful {
            return false;
        }
        left.iter().filter(|&&other| other != candidate).any(|&other| {
            let other = &candidates[other].measured.pseudo_harmful;
            let more: Vec<f64> = own.iter().zip(other).map(|(own, other)| own - other).collect();
            clearly_above(&more, 0.0)
        })
    }

    /// Why a candidate is out, by what was measured of it so far.
    fn reason(&self, candidate: &Candidate) -> Option<Discarded> {
        // floor(0.8 L), as the published code has it
        let last = (self.n_layers as f64 * self.rules.layer_share) as usize;
        let measured = &candidate.measured;
        if candidate.direction.is_none() {
            return Some(Discarded::NoDirection);
        }
        if measured.iter().any(|(_, values)| values.iter().any(|value| value.is_nan())) {
            return Some(Discarded::NotANumber);
        }
        if candidate.layer >= last {
            return Some(Discarded::LastLayers { layer: candidate.layer, from: last });
        }
        if candidate.degenerate {
            return Some(Discarded::Degenerate);
        }
        self.divergence(&measured.harmless).or_else(|| self.lost_refusals(&measured.harmful))
    }

    /// The limit of the mean KL divergence, by the prompts that were measured.
    fn divergence(&self, measured: &[f64]) -> Option<Discarded> {
        let (n, limit) = (self.prompts.harmless, self.rules.kl_threshold);
        let least = measured.iter().sum::<f64>() - KL_SLACK * (n - measured.len()) as f64;
        // with every prompt measured this is the mean, as it is reported
        let certain = match measured.len() == n {
            true => mean(measured) > limit,
            false => least > limit * n as f64,
        };
        let out = certain || (self.rules.search == Search::Racing && clearly_above(measured, limit));
        out.then(|| Discarded::Divergence { kl: Some(mean(measured)).filter(|kl| kl.is_finite()), limit })
    }

    /// The guard of the selection: the share of harmful prompts whose score is positive may not drop past the limit.
    fn lost_refusals(&self, measured: &[f64]) -> Option<Discarded> {
        let limit = self.rules.harmful_drop?;
        let n = self.harmful_base.len().max(1) as f64;
        let refuses = |scores: &[f64]| scores.iter().filter(|score| **score > 0.0).count() as f64;
        let (before, rest) = self.harmful_base.split_at(measured.len().min(self.harmful_base.len()));
        // every prompt that is left may still turn out to be refused
        let gained = rest.len() as f64 - refuses(rest);
        let drop = (refuses(before) - refuses(measured) - gained) / n;
        (drop > limit + 1e-12).then_some(Discarded::TrueRefusal { drop })
    }
}

/// Whether the mean of what `values` are a sample of is above `bound` by [`CLEARLY`] standard errors. A round at least.
fn clearly_above(values: &[f64], bound: f64) -> bool {
    let n = values.len() as f64;
    if values.len() < ROUND {
        return false;
    }
    let center = mean(values);
    let variance = values.iter().map(|value| (value - center).powi(2)).sum::<f64>() / (n - 1.0);
    center - CLEARLY * (variance / n).sqrt() > bound
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::Direction;

    const N: usize = 32;

    /// What a candidate would score on every prompt, in the order of the prompts.
    struct Truth {
        candidate: Candidate,
        scores: PerClass<Vec<f64>>,
    }

    /// Noise between -0.5 and 0.5 that is the same in every run.
    fn noise(seed: usize, at: usize) -> f64 {
        let mixed = (seed as u64 * 1_000_003 + at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        mixed as f64 / f64::from(1 << 24) - 0.5
    }

    fn truth(layer: usize, score: f64, kl: f64, refuses: usize) -> Truth {
        let of = |mean: f64, spread: f64, seed: usize| (0..N).map(move |at| mean + spread * noise(seed, at));
        Truth {
            candidate: Candidate {
                position: -1,
                layer,
                raw_norm: 1.0,
                direction: Direction::new(vec![1.0, 0.0]).ok(),
                degenerate: false,
                measured: PerClass::default(),
                discarded: None,
            },
            scores: PerClass {
                harmful: (0..N).map(|at| if at < refuses { 2.0 } else { -2.0 }).collect(),
                pseudo_harmful: of(score, 1.0, layer).collect(),
                harmless: of(kl, kl, 100 + layer).collect(),
            },
        }
    }

    /// Runs the race. Returns the winner, the reasons, and how many prompts were run.
    fn run(truths: &[Truth], search: Search, harmful_drop: Option<f64>) -> (Option<usize>, Vec<Candidate>, usize) {
        let rules = Rules { search, harmful_drop, ..Rules::PAPER };
        let base = vec![2.0; N];
        let race = Race { n_layers: 100, rules: &rules, prompts: PerClass::from_fn(|_| N), harmful_base: &base };
        let mut candidates: Vec<Candidate> = truths.iter().map(|truth| truth.candidate.clone()).collect();
        let mut runs = 0;
        loop {
            let jobs = race.next(&candidates);
            if jobs.is_empty() {
                break;
            }
            for Job { candidate, class, prompts } in jobs {
                runs += prompts.len();
                let scores = &truths[candidate].scores.get(class)[prompts];
                candidates[candidate].measured.get_mut(class).extend(scores);
            }
        }
        (race.finish(&mut candidates), candidates, runs)
    }

    /// Forty candidates: most change harmless prompts too much, the best two lower true refusal.
    fn many() -> Vec<Truth> {
        let of = |layer: usize| match layer {
            7 => truth(layer, -4.0, 0.05, 20),
            9 => truth(layer, -3.5, 0.05, 31),
            11 => truth(layer, -3.0, 0.05, 32),
            _ if layer.is_multiple_of(3) => truth(layer, layer as f64 / 4.0, 0.1, 32),
            _ => truth(layer, -6.0, 0.3 + layer as f64 / 10.0, 32),
        };
        (0..40).map(of).collect()
    }

    #[test]
    fn every_search_makes_the_same_choice_and_runs_less() {
        for (drop, winner) in [(None, 7), (Some(0.04), 9), (Some(0.0), 11)] {
            let found = [Search::Exhaustive, Search::Certain, Search::Racing].map(|how| run(&many(), how, drop));
            assert_eq!(found.each_ref().map(|f| f.0), [Some(winner); 3]);
            let [all, certain, racing] = found.map(|f| f.2);
            assert_eq!(all, 40 * 3 * N);
            assert!(2 * certain < all && racing < certain, "{all} {certain} {racing}");
        }
    }

    #[test]
    fn who_waits_is_measured_on_when_those_ahead_leave() {
        // the first two are far ahead, and fail on harmful prompts
        let all = [truth(1, -9.0, 0.05, 0), truth(2, -8.9, 0.05, 0), truth(3, 1.0, 0.05, 32), truth(4, 6.0, 0.05, 32)];
        let (winner, candidates, _) = run(&all, Search::Racing, Some(0.0));
        assert_eq!(winner, Some(2));
        assert!(matches!(candidates[0].discarded, Some(Discarded::TrueRefusal { .. })));
        assert_eq!(candidates[0].measured.harmful.len(), ROUND);
        assert_eq!(candidates[2].measured.pseudo_harmful.len(), N);
        assert_eq!(candidates[3].discarded, Some(Discarded::Outscored { prompts: ROUND }));
        let (winner, ..) = run(&all, Search::Racing, None);
        assert_eq!(winner, Some(0));
    }

    #[test]
    fn a_drop_is_certain_only_when_the_rest_cannot_make_up_for_it() {
        let rules = Rules { harmful_drop: Some(0.0), ..Rules::PAPER };
        let base = [1.0, 1.0, -1.0, -1.0];
        let race = Race { n_layers: 9, rules: &rules, prompts: PerClass::from_fn(|_| 4), harmful_base: &base };
        assert_eq!(race.lost_refusals(&[-1.0, -1.0]), None);
        assert_eq!(race.lost_refusals(&[-1.0, -1.0, -1.0]), Some(Discarded::TrueRefusal { drop: 0.25 }));
        assert_eq!(race.lost_refusals(&[-1.0, -1.0, 1.0, 1.0]), None);
    }

    #[test]
    fn a_divergence_is_out_when_the_rest_cannot_lower_its_mean() {
        let rules = Rules { search: Search::Certain, ..Rules::PAPER };
        let race = Race { n_layers: 9, rules: &rules, prompts: PerClass::from_fn(|_| 4), harmful_base: &[] };
        assert_eq!(race.divergence(&[0.7]), None);
        assert!(matches!(race.divergence(&[0.9]), Some(Discarded::Divergence { kl: Some(kl), .. }) if kl == 0.9));
        assert!(race.divergence(&[f64::INFINITY]).is_some_and(|d| d == Discarded::Divergence { kl: None, limit: 0.2 }));
        assert_eq!(race.divergence(&[0.2; 4]), None);
        assert!(race.divergence(&[0.2, 0.2, 0.2, 0.21]).is_some());
    }

    fn candidate(position: i64, layer: usize, score: f64, kl: f64, refused: usize) -> Candidate {
        Candidate {
            position,
            layer,
            raw_norm: 1.0,
            direction: Direction::new(vec![1.0, 0.0]).ok(),
            degenerate: false,
            measured: PerClass {
                harmful: (0..10).map(|at| if at < refused { 3.0 } else { -3.0 }).collect(),
                pseudo_harmful: vec![score; 10],
                harmless: vec![kl; 10],
            },
            discarded: None,
        }
    }

    fn select(candidates: &mut [Candidate], rules: &Rules) -> Option<usize> {
        let base = [3.0; 10];
        let race = Race { n_layers: 10, rules, prompts: PerClass::from_fn(|_| 10), harmful_base: &base };
        assert!(race.next(candidates).is_empty());
        race.finish(candidates)
    }

    const RULES: Rules = Rules { harmful_drop: Some(0.0), negligible_norm: Some(1e-4), ..Rules::PAPER };

    #[test]
    fn the_lowest_score_wins_and_ties_go_to_the_lower_layer_then_the_earlier_position() {
        let mut all =
            vec![candidate(-1, 2, -1.0, 0.1, 10), candidate(-2, 1, -1.0, 0.1, 10), candidate(-3, 1, -1.0, 0.1, 10)];
        assert_eq!(select(&mut all, &RULES), Some(2));
        all[0].measured.pseudo_harmful = vec![-1.5; 10];
        assert_eq!(select(&mut all, &RULES), Some(0));
    }

    #[test]
    fn every_rule_discards_with_its_reason() {
        let mut all = vec![
            candidate(-1, 8, -9.0, 0.1, 10),
            candidate(-1, 1, f64::NAN, 0.1, 10),
            candidate(-1, 2, -9.0, 0.21, 10),
            candidate(-1, 3, -9.0, 0.1, 9),
            Candidate { measured: PerClass::default(), direction: None, ..candidate(-1, 4, 0.0, 0.0, 10) },
            Candidate { degenerate: true, ..candidate(-1, 5, -9.0, 0.1, 10) },
            candidate(-1, 7, 5.0, 0.2, 10),
        ];
        assert_eq!(select(&mut all, &RULES), Some(6));
        let words = |c: Option<Discarded>| c.map(|reason| reason.to_string()).unwrap_or_default();
        let reasons: Vec<String> = all.iter().map(|c| words(c.discarded)).collect();
        for (reason, part) in
            reasons.iter().zip(["last part", "NaN", "KL", "guard", "zero or not finite", "degenerate", ""])
        {
            assert!(reason.contains(part), "{reason} should say {part}");
        }
        // the published procedure knows no guard
        assert_eq!(select(&mut all, &Rules::PAPER), Some(3));
    }
}
