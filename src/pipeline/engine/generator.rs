//! A model that answers: loaded once, it generates for many sets of prompts.

use super::{Engine, Session, positions};
use crate::error::Error;
use crate::instrument::{Cut, Request, Scope};
use crate::lm::Padding;
use crate::runtime::batch;
use crate::runtime::generate::{self, Decoder, Generated, Job, Limits};
use crate::runtime::{Decoding, RuntimeError};

/// How answers are made.
#[derive(Debug, Clone)]
pub struct Generation {
    /// New tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
    /// How tokens are chosen.
    pub decoding: Decoding,
    /// Answers to each prompt. Greedy ones are all the same and made once.
    pub samples: usize,
}

/// What was done since the last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// New tokens, those that ended an answer included.
    pub tokens: u64,
    /// Answers made, greedy repetitions included.
    pub answers: u64,
}

/// A loaded model that generates.
pub struct Generator<'a> {
    engine: &'a Engine<'a>,
    session: Session,
    /// A merged decoder's branch that takes a cache.
    then: Option<Session>,
    /// Tokens that a table of the graph has positions for.
    positions: Option<usize>,
    /// Tokens that the model's config has positions for.
    declared: Option<usize>,
}

impl Engine<'_> {
    /// Loads the model to generate with.
    ///
    /// # Errors
    /// If ONNX Runtime refuses the model, or if the graph is of one length.
    pub fn generator(&self) -> Result<Generator<'_>, Error> {
        self.feedable()?;
        let interface = &self.model.lm.interface;
        if let Some(length) = interface.feeding.length.filter(|_| interface.padding != Padding::Left) {
            return Err(Error::failed_with(
                format!("the graph takes {length} tokens a run, no more and no less: it cannot generate"),
                "export the model with a dynamic sequence length",
            ));
        }
        let request = Request { logits: 1, cache: true, last_positions: 1, ..Request::default() };
        let session = self.session(request.clone())?;
        let then = match self.model.lm.cached {
            Some(_) => Some(self.cached_branch(&session, request)?),
            None => None,
        };
        Ok(Generator { engine: self, session, then, positions: positions::limit(self.model), declared: None })
    }
}

impl Generator<'_> {
    /// Tells how many tokens the model's config has positions for ([`ModelFiles::max_positions`]). Answers end there if
    /// a table of the graph holds the positions; else a run that fails beyond it is said to be too long.
    ///
    /// [`ModelFiles::max_positions`]: super::super::files::ModelFiles::max_positions
    #[must_use]
    pub fn with_positions(mut self, declared: Option<usize>) -> Self {
        self.declared = declared;
        self.positions = self.positions.map(|found| declared.map_or(found, |declared| declared.min(found)));
        self
    }

    /// Tokens that prompt and answer may have together, less the last one: where a table of the graph bounds them.
    pub fn positions(&self) -> Option<usize> {
        self.positions
    }

    /// `samples` answers to each prompt, in order. What is sampled depends on the seed, the prompt's index and the
    /// sample's index, not on the batches. `done` is told after every run and at the end of a batch.
    ///
    /// # Errors
    /// If a setting makes no sense, a run fails, a prompt is too long, logits are not finite, or on cancellation.
    pub fn answers(
        &mut self,
        prompts: &[Vec<u32>],
        how: &Generation,
        mut done: impl FnMut(Progress),
    ) -> Result<Vec<Vec<Generated>>, Error> {
        how.decoding.check()?;
        let greedy = how.decoding == Decoding::Greedy;
        let made = if greedy { how.samples.min(1) } else { how.samples };
        let mut answers = vec![vec![Generated::default(); how.samples]; prompts.len()];
        let limits = Limits {
            max_new_tokens: how.max_new_tokens,
            stop: how.stop.clone(),
            pad: self.engine.pad,
            positions: self.positions,
        };
        // a row a sample; those of a prompt lie side by side
        let rows: Vec<(usize, usize)> = (0..prompts.len()).flat_map(|p| (0..made).map(move |s| (p, s))).collect();
        let lengths: Vec<usize> = rows.iter().map(|&(prompt, _)| prompts[prompt].len()).collect();
        for members in batch::plan(&lengths, self.engine.batch, &self.session.interface) {
            let rows: Vec<(usize, usize)> = members.iter().map(|&i| rows[i]).collect();
            let job = |&(prompt, sample): &(usize, usize)| Job {
                prompt: &prompts[prompt],
                chooser: how.decoding.chooser(prompt, sample),
            };
            let found = self.batch(rows.iter().map(job).collect(), &limits, &mut |tokens| {
                done(Progress { tokens: tokens as u64, answers: 0 });
            })?;
            let copies = if greedy { how.samples } else { 1 };
            done(Progress { tokens: 0, answers: (rows.len() * copies) as u64 });
            for ((prompt, sample), answer) in rows.into_iter().zip(found) {
                match greedy {
                    true => answers[prompt].fill(answer),
                    false => answers[prompt][sample] = answer,
                }
            }
        }
        Ok(answers)
    }

    fn batch(
        &mut self,
        jobs: Vec<Job<'_>>,
        limits: &Limits,
        told: &mut dyn FnMut(usize),
    ) -> Result<Vec<Generated>, Error> {
        let longest = jobs.iter().map(|job| job.prompt.len()).max().unwrap_or(0);
        let mut runs = 0;
        let interface = self.then.as_ref().map_or(&self.session.interface, |then| &then.interface).clone();
        let steering = self.engine.steered.map(|s| s.inputs(&self.session.built)).unwrap_or_default();
        let reading = self.session.reading()?.clone();
        let mut decoder = Decoder {
            first: &mut self.session.model,
            then: self.then.as_mut().map(|then| &mut then.model),
            interface: &interface,
            logits: self.session.built.logits.as_deref().expect("logits were asked for"),
            reading: &reading,
            cut: self.session.built.scope != Scope::All && self.session.cut == Cut::InGraph,
            steering: &steering,
        };
        let counted = &mut |tokens| {
            runs += 1;
            told(tokens);
        };
        let found = generate::generate(&mut decoder, jobs, limits, counted, self.engine.cancelled);
        Ok(found.map_err(|error| match (error, self.declared) {
            (RuntimeError::Run { .. }, Some(limit)) if longest + runs > limit => {
                RuntimeError::Positions { tokens: longest + runs, limit }
            }
            (error, _) => error,
        })?)
    }
}
