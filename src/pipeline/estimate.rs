//! How long a run will take: a short probe of the model, and the prompts that each stage runs. And what a run leaves out to
//! end in time.

use std::fmt;
use std::time::Instant;

use super::engine::cost::Workload;
use super::engine::{Engine, Generation, Observer};
use super::evaluate::{self, Settings};
use super::refine;
use super::settings::SearchRules;
use super::stage::Stage;
use super::{Method, RunOptions};
use crate::error::Error;
use crate::eval::policy::{Limit, Policy};
use crate::method::classes::PerClass;
use crate::method::prompts::{PromptClass, Prompts, Split};
use crate::method::select::Search;
use crate::report::number::seconds;
use crate::report::{Budget, Omission};
use crate::runtime::{Decoding, RuntimeError};

/// Tokens of an answer that the probe makes.
const PROBED: usize = 6;

/// Seconds that the probe takes at most, about.
const PATIENCE: f64 = 20.0;

/// Characters of a prompt of usual length: a longer one takes as many times longer to read.
const USUAL_PROMPT: usize = 120;

/// Characters of a text that are taken for a token.
const CHARACTERS: usize = 4;

/// Share of the runs of an exhaustive selection that is left where candidates leave early: what it was on the bundled
/// model and on a real one, rounded up.
fn share(search: Search) -> f64 {
    match search {
        Search::Exhaustive => 1.0,
        Search::Certain => 0.5,
        Search::Racing => 0.25,
    }
}

/// Seconds that a model takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Speed {
    /// For a prompt among as many others as a run holds, with the first token of its answer.
    pub prompt: f64,
    /// For each further token of its answer.
    pub token: f64,
    /// For a token of an answer that is made alone.
    pub alone: f64,
}

/// Measures how fast a model runs, on as many of `prompts` as a run holds; on fewer where that would take long.
///
/// # Errors
/// If a run fails, or on cancellation.
pub fn probe(engine: &Engine<'_>, prompts: &[Vec<u32>], observer: &dyn Observer) -> Result<Speed, Error> {
    let how = |max_new_tokens| Generation { max_new_tokens, stop: Vec::new(), decoding: Decoding::Greedy, samples: 1 };
    let mut generator = engine.generator()?;
    let mut timed = |prompts: &[Vec<u32>], tokens: usize| -> Result<(f64, u64), Error> {
        let (begun, mut made) = (Instant::now(), 0);
        generator.answers(prompts, &how(tokens), |done| made += done.tokens)?;
        Ok((begun.elapsed().as_secs_f64(), made))
    };
    let rows = prompts.len().min(engine.batch);
    observer.start(&Stage::MeasureSpeed, rows as u64);
    // the first run of a session sets up its memory
    timed(&prompts[..rows.min(1)], 1)?;
    let (one, _) = timed(&prompts[..rows.min(1)], PROBED)?;
    let rows = rows.min((PATIENCE / (2.0 * one).max(1e-3)) as usize).max(rows.min(1));
    let ((first, n), (whole, tokens)) = (timed(&prompts[..rows], 1)?, timed(&prompts[..rows], PROBED)?);
    observer.advance(rows as u64);
    observer.finish();
    let further = tokens.saturating_sub(n).max(1) as f64;
    Ok(Speed {
        prompt: first / rows.max(1) as f64,
        token: (whole - first).max(0.0) / further,
        alone: one / PROBED as f64,
    })
}

/// What takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Train prompts are run.
    Collect,
    /// Validation prompts are run under candidates, and answered under settings.
    Select,
    /// Further settings are tried.
    Sweep,
    /// Test prompts are answered, before and after, by every variant.
    Answers,
    /// Later KL, perplexity, multiple choice, file size, memory and latency.
    Others,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Collect => "collect",
            Self::Select => "select",
            Self::Sweep => "sweep",
            Self::Answers => "answers",
            Self::Others => "other measurements",
        })
    }
}

/// Seconds that each part of a job is expected to take.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected(pub Vec<(Work, f64)>);

impl Expected {
    /// All parts together, in seconds.
    pub fn total(&self) -> f64 {
        self.0.iter().map(|(_, seconds)| seconds).sum()
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected: about {} (", seconds(self.total()))?;
        for (at, (work, time)) in self.0.iter().enumerate() {
            write!(f, "{}{work} {}", if at > 0 { ", " } else { "" }, seconds(*time))?;
        }
        f.write_str("), less where answers end early; beside it loading, writing and verifying")
    }
}

/// The prompts and the sizes that the time of a run depends on.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The prompts.
    pub prompts: &'a Prompts,
    /// Positions and layers that candidates come from.
    pub candidates: (usize, usize),
    /// Variants that are measured before and after.
    pub variants: usize,
}

impl Job<'_> {
    /// What a run with `options` is expected to take, with answers of full length.
    pub fn expected(&self, options: &RunOptions<'_>, speed: Speed) -> Expected {
        let count = |split: Split| PerClass::from_fn(|class| self.prompts.get(class, split).len() as f64);
        let sum = |of: PerClass<f64>| of.into_array().iter().sum::<f64>();
        let (positions, layers) = self.candidates;
        let val = sum(count(Split::Val));
        let settings = &options.settings;
        let directions = |search, n: usize| val + n as f64 * share(search) * (positions * layers) as f64 * val;
        let (select, tried) = match &options.method {
            Method::Wang => (directions(options.rules.search, 1), 0),
            Method::Refined(how) => {
                let more = refine::prompt_runs(*how, self.prompts, layers) as f64;
                (directions(options.rules.search, 1) + more, 0)
            }
            Method::Gate(rules) => (rules.prompt_runs(self.prompts) as f64, 0),
            Method::Auto(SearchRules { lambdas, gate, rules, .. }) => {
                let gates = gate.as_ref().map_or(0.0, |gate| gate.prompt_runs(self.prompts) as f64);
                (directions(rules.search, lambdas.len()) + gates, 1 + lambdas.len() + usize::from(gate.is_some()))
            }
        };
        let searched = match tried {
            0 => 0.0,
            n => n as f64 * self.answers(&settings.for_search(), speed),
        };
        let further = match options.sweep.len() as f64 {
            0.0 => 0.0,
            // the unchanged model is answered for once
            n => n * select * speed.prompt + (n + 1.0) * self.answers(&settings.for_sweep(), speed),
        };
        let both = 2.0 * self.variants as f64;
        let all = [
            (Work::Collect, sum(count(Split::Train)) * speed.prompt),
            (Work::Select, select * speed.prompt + searched),
            (Work::Sweep, further),
            (Work::Answers, both * self.answers(settings, speed)),
            (Work::Others, both * self.others(settings, speed)),
        ];
        Expected(all.into_iter().filter(|(_, seconds)| *seconds > 0.0).collect())
    }

    /// Seconds for one model's answers.
    fn answers(&self, settings: &Settings, speed: Speed) -> f64 {
        let each = speed.prompt + settings.max_new_tokens.saturating_sub(1) as f64 * speed.token;
        let of_ask = settings.asks.iter().map(|ask| {
            let prompts = |class: &PromptClass| self.prompts.get(*class, settings.split).len().min(ask.limit);
            let samples = ask.sampled.map_or(1, |(_, samples)| samples);
            (ask.classes.iter().map(prompts).sum::<usize>() * samples) as f64
        });
        of_ask.sum::<f64>() * each + guard_sets(settings, speed)
    }

    /// Seconds for what else is measured of one model.
    fn others(&self, settings: &Settings, speed: Speed) -> f64 {
        let harmless = self.prompts.get(PromptClass::Harmless, Split::Test).len() as f64;
        let later = if settings.kl_positions > 1 { harmless * speed.prompt } else { 0.0 };
        // a token that is read takes no longer than one that is written
        let read = |characters: usize| (characters / CHARACTERS) as f64 * speed.token;
        let text = settings.perplexity.as_ref().map_or(0.0, |(text, _)| read(text.len()));
        let questions = settings.multiple_choice.as_ref().map_or(0.0, |(items, _)| items.items.len() as f64);
        let Workload { prompt_tokens, decode_tokens, .. } = Workload::default();
        let timed =
            evaluate::COST_PAIRS as f64 * (decode_tokens as f64 * speed.alone + prompt_tokens as f64 * speed.token);
        later + text + questions * speed.prompt + if settings.cost { timed } else { 0.0 }
    }
}

/// Seconds for one model's answers to the guard sets.
fn guard_sets(settings: &Settings, speed: Speed) -> f64 {
    let tokens = settings.max_new_tokens.min(evaluate::GUARD_SET_TOKENS);
    let answer = tokens.saturating_sub(1) as f64 * speed.token;
    let prompts = settings.guard_sets.iter().flat_map(|set| set.to_refuse.iter().chain(&set.safe));
    let read = |characters: usize| (characters as f64 / USUAL_PROMPT as f64).max(1.0) * speed.prompt;
    prompts.map(|prompt| read(prompt.turns().iter().map(|turn| turn.text.chars().count()).sum()) + answer).sum()
}

/// What may be left out, in the order in which it is.
const OMISSIONS: [Omission; 10] = [
    Omission::ExhaustiveSearch,
    Omission::Sweep,
    Omission::Cost,
    Omission::LaterKl,
    Omission::SafeContrasts,
    Omission::Perplexity,
    Omission::MultipleChoice,
    Omission::OtherConditions,
    Omission::OtherLambdas,
    Omission::OtherMethods,
];

/// Leaves something out. Returns whether there was anything to leave out.
fn leave_out(part: Omission, options: &mut RunOptions<'_>) -> bool {
    let RunOptions { settings, guard, .. } = options;
    let free = |policy: &Policy, limit: Limit| policy.limit(limit).is_none();
    match part {
        Omission::ExhaustiveSearch => {
            let exhaustive = options.rules.search == Search::Exhaustive;
            if exhaustive {
                options.rules.search = Search::Certain;
            }
            exhaustive
        }
        Omission::Sweep => !std::mem::take(&mut options.sweep).is_empty(),
        Omission::Cost => std::mem::take(&mut settings.cost),
        Omission::LaterKl => std::mem::replace(&mut settings.kl_positions, 1) > 1,
        Omission::SafeContrasts => {
            settings.guard_sets.iter_mut().map(|set| std::mem::take(&mut set.safe).len()).sum::<usize>() > 0
        }
        Omission::Perplexity => free(&guard.policy, Limit::PerplexityRatio) && settings.perplexity.take().is_some(),
        Omission::MultipleChoice => {
            free(&guard.policy, Limit::AccuracyLoss) && settings.multiple_choice.take().is_some()
        }
        Omission::OtherConditions => {
            let further = settings.asks.iter_mut().skip(1).filter(|ask| ask.classes.len() > 1);
            further.map(|ask| ask.classes = vec![PromptClass::Harmful]).count() > 0
        }
        Omission::OtherLambdas => match &mut options.method {
            Method::Auto(SearchRules { lambdas, .. }) if lambdas.len() > 1 => {
                lambdas.truncate(1);
                true
            }
            _ => false,
        },
        // gates take the time; a direction and its answers are what is left
        Omission::OtherMethods => match &mut options.method {
            Method::Auto(SearchRules { lambdas, gate, .. }) if !lambdas.is_empty() => gate.take().is_some(),
            _ => false,
        },
    }
}

/// Leaves out of `options` what does not fit into so many seconds, as little as does, and never what the guard needs.
pub fn fit(job: &Job<'_>, options: &mut RunOptions<'_>, speed: Speed, seconds: f64) -> Budget {
    let asked = job.expected(options, speed).total();
    let mut budget = Budget { seconds, asked, expected: asked, omitted: Vec::new() };
    for part in OMISSIONS {
        if budget.expected <= seconds {
            break;
        }
        if leave_out(part, options) {
            budget.omitted.push(part);
            budget.expected = job.expected(options, speed).total();
        }
    }
    budget
}

/// Tells how long a run will take, and leaves out what does not fit into the time that it was given. Where nobody is told
/// and no time was given, nothing is measured; a probe that fails is told, and ends nothing.
///
/// # Errors
/// On cancellation, and if the probe fails though a time was given.
pub fn plan(
    engine: &Engine<'_>,
    prompts: &[Vec<u32>],
    job: &Job<'_>,
    options: &mut RunOptions<'_>,
    observer: &dyn Observer,
) -> Result<Option<Budget>, Error> {
    if options.budget.is_none() && !observer.listens() {
        return Ok(None);
    }
    let speed = match probe(engine, prompts, observer) {
        Ok(speed) => speed,
        Err(error @ Error::Runtime(RuntimeError::Cancelled)) => return Err(error),
        Err(error) if options.budget.is_some() => return Err(error),
        // a model that cannot generate is told of where it must
        Err(_) => return Ok(None),
    };
    let budget = options.budget.map(|seconds| fit(job, options, speed, seconds));
    observer.note(&job.expected(options, speed).to_string());
    if let Some(budget) = &budget {
        observer.note(&format!("budget: {budget}"));
    }
    Ok(budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_each_part_and_the_whole() {
        let expected = Expected(vec![(Work::Collect, 20.0), (Work::Select, 100.0), (Work::Answers, 600.0)]);
        assert_eq!(
            expected.to_string(),
            "expected: about 12 min 00 s (collect 20.0 s, select 1 min 40 s, answers 10 min 00 s), less where answers end \
             early; beside it loading, writing and verifying"
        );
    }
}
