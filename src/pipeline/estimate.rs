//! How long a job will take: a short probe of the model, and the prompts that each stage runs.

use std::fmt;
use std::time::Instant;

use super::engine::{Engine, Generation};
use super::evaluate::Settings;
use crate::error::Error;
use crate::method::classes::PerClass;
use crate::method::prompts::{PromptClass, Prompts, Split};
use crate::method::select::{Rules, Search};
use crate::report::number::seconds;
use crate::runtime::Decoding;

/// Tokens of an answer that the probe makes.
const PROBED: usize = 6;

/// Share of the runs of an exhaustive selection that is left where candidates leave early: what it was on the bundled
/// model and on a real one, rounded up.
fn share(search: Search) -> f64 {
    match search {
        Search::Exhaustive => 1.0,
        Search::Certain => 0.5,
        Search::Racing => 0.25,
    }
}

/// Seconds that a model takes for a prompt, and for a token of an answer, in full batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Of a prompt that is run.
    pub prompt: f64,
    /// Of a token that is generated.
    pub token: f64,
}

/// Measures how fast a model runs, on as many of `prompts` as a batch holds. None measures nothing.
///
/// # Errors
/// If a run fails, or on cancellation.
pub fn probe(engine: &Engine<'_>, prompts: &[Vec<u32>]) -> Result<Speed, Error> {
    let prompts = &prompts[..prompts.len().min(engine.batch)];
    let how = |max_new_tokens| Generation { max_new_tokens, stop: Vec::new(), decoding: Decoding::Greedy, samples: 1 };
    let mut generator = engine.generator()?;
    // the first run of a session sets up its memory
    generator.answers(prompts, &how(1), |_| ())?;
    let begun = Instant::now();
    // every prompt is run before its first token
    let (mut prompt, mut tokens) = (0.0, 0);
    generator.answers(prompts, &how(PROBED), |done| {
        tokens += done.tokens;
        if tokens <= prompts.len() as u64 {
            prompt = begun.elapsed().as_secs_f64();
        }
    })?;
    let rest = begun.elapsed().as_secs_f64() - prompt;
    let (n, further) = (prompts.len().max(1) as f64, tokens.saturating_sub(prompts.len() as u64).max(1) as f64);
    Ok(Speed { prompt: prompt / n, token: rest / further })
}

/// What takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Train prompts are run.
    Collect,
    /// Validation prompts are run under candidates.
    Select,
    /// Further settings are tried.
    Sweep,
    /// Test prompts are answered, before and after, by every variant.
    Answers,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Collect => "collect",
            Self::Select => "select",
            Self::Sweep => "sweep",
            Self::Answers => "answers",
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
        f.write_str("expected: ")?;
        for (work, time) in &self.0 {
            // an answer may end early
            let most = if *work == Work::Collect { "" } else { "up to " };
            write!(f, "{work} {most}{}, ", seconds(*time))?;
        }
        write!(f, "up to {} in all, beside reading and writing files", seconds(self.total()))
    }
}

/// A job whose time is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The prompts.
    pub prompts: &'a Prompts,
    /// Positions and layers that candidates come from.
    pub candidates: (usize, usize),
    /// The rules of the selection.
    pub rules: &'a Rules,
    /// Settings that are tried besides.
    pub further: usize,
    /// Variants that are measured before and after.
    pub variants: usize,
}

impl Job<'_> {
    /// What it is expected to take at most.
    pub fn expected(&self, settings: &Settings, speed: Speed) -> Expected {
        let count = |split: Split| PerClass::from_fn(|class| self.prompts.get(class, split).len() as f64);
        let sum = |of: PerClass<f64>| of.into_array().iter().sum::<f64>();
        let (positions, layers) = self.candidates;
        let val = sum(count(Split::Val));
        let select = val + share(self.rules.search) * (positions * layers) as f64 * val;
        let answers = |settings: &Settings| -> f64 {
            let of_ask = settings.asks.iter().map(|ask| {
                let prompts = |class: &PromptClass| self.prompts.get(*class, Split::Test).len().min(ask.limit);
                let samples = ask.sampled.map_or(1, |(_, samples)| samples);
                (ask.classes.iter().map(prompts).sum::<usize>() * samples) as f64
            });
            of_ask.sum::<f64>() * (speed.prompt + settings.max_new_tokens as f64 * speed.token)
        };
        let further = self.further as f64 * (select * speed.prompt + answers(&settings.for_sweep()));
        let all = [
            (Work::Collect, sum(count(Split::Train)) * speed.prompt),
            (Work::Select, select * speed.prompt),
            (Work::Sweep, further),
            (Work::Answers, 2.0 * self.variants as f64 * answers(settings)),
        ];
        Expected(all.into_iter().filter(|(_, seconds)| *seconds > 0.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_each_part_and_the_whole() {
        let expected = Expected(vec![(Work::Collect, 20.0), (Work::Select, 100.0), (Work::Answers, 600.0)]);
        assert_eq!(
            expected.to_string(),
            "expected: collect 20.0 s, select up to 1 min 40 s, answers up to 10 min 00 s, up to 12 min 00 s in all, \
             beside reading and writing files"
        );
    }
}
