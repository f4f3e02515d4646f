//! A model that answers: loaded once, it generates for many sets of prompts.

use super::{Engine, Row, Session, Value, positions, reading};
use crate::error::Error;
use crate::instrument::{Cut, Request, Scope};
use crate::lm::interface::Past;
use crate::lm::{Interface, Padding};
use crate::runtime::batch::{Layout, Splitting};
use crate::runtime::generate::{self, Decoder, Generated, Job, Limits, Told};
use crate::runtime::prefix::{ALIKE, Prefix};
use crate::runtime::session::OrtModel;
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
    /// How answers of different lengths share a run; `None` where only equal lengths do.
    layout: Option<Layout>,
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
        let positions = positions::limit(self.model);
        let mut found = Generator { engine: self, session, then, positions, declared: None, layout: None };
        found.layout = found.find_layout()?;
        Ok(found)
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
    /// sample's index, not on the batches. `done` is told after every run.
    ///
    /// # Errors
    /// If a setting makes no sense, a run fails, a prompt is too long, logits are not finite, or on cancellation.
    pub fn answers(
        &mut self,
        prompts: &[Vec<u32>],
        how: &Generation,
        done: impl FnMut(Progress),
    ) -> Result<Vec<Vec<Generated>>, Error> {
        self.answers_and_first(prompts, how, &mut |_, _| (), done)
    }

    /// The same; `first` is told the logits `[d_vocab]` of the first response position, by the index of the prompt, once a
    /// sample.
    ///
    /// # Errors
    /// As [`Generator::answers`].
    pub fn answers_and_first(
        &mut self,
        prompts: &[Vec<u32>],
        how: &Generation,
        first: &mut dyn FnMut(usize, &[f32]),
        mut done: impl FnMut(Progress),
    ) -> Result<Vec<Vec<Generated>>, Error> {
        how.decoding.check()?;
        let greedy = how.decoding == Decoding::Greedy;
        // greedy answers to a prompt are all the same
        let (made, copies) = if greedy { (how.samples.min(1), how.samples) } else { (how.samples, 1) };
        let limits = Limits {
            max_new_tokens: how.max_new_tokens,
            stop: how.stop.clone(),
            pad: self.engine.pad,
            positions: self.positions,
        };
        let rows: Vec<(usize, usize)> = (0..prompts.len()).flat_map(|p| (0..made).map(move |s| (p, s))).collect();
        let job = |&(prompt, sample): &(usize, usize)| Job {
            prompt: &prompts[prompt],
            chooser: how.decoding.chooser(prompt, sample),
        };
        let mut runs = 0;
        let mut told = Told {
            first: &mut |row, logits| first(rows[row].0, logits),
            run: &mut |tokens, ended| {
                runs += 1;
                done(Progress { tokens: tokens as u64, answers: (ended * copies) as u64 });
            },
        };
        let found = self.generate(rows.iter().map(job).collect(), &limits, &mut told);
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let found = found.map_err(|error| match (error, self.declared) {
            (Error::Runtime(RuntimeError::Run { .. }), Some(limit)) if longest + runs > limit => {
                RuntimeError::Positions { tokens: longest + runs, limit }.into()
            }
            (error, _) => error,
        })?;
        let mut answers = vec![Vec::with_capacity(how.samples); prompts.len()];
        for ((prompt, _), answer) in rows.into_iter().zip(found) {
            answers[prompt].extend(std::iter::repeat_n(answer, copies));
        }
        Ok(answers)
    }

    /// How rows of different lengths share a run.
    fn find_layout(&mut self) -> Result<Option<Layout>, Error> {
        let Interface { padding, single, feeding, cache, .. } = &self.session.interface;
        if *single || cache.is_empty() || feeding.restarts() {
            return Ok(None);
        }
        if *padding == Padding::Left {
            return Ok(Some(Layout::Left));
        }
        if feeding.past != Past::Empty || cache.iter().any(|slot| slot.window.is_some()) || self.then.is_some() {
            return Ok(None);
        }
        let engine = self.engine;
        if let Some(known) = engine.model.layout.get() {
            return Ok(*known);
        }
        let prompts = [5, 3, 4].map(|tokens| reading::made_up(engine, tokens, tokens));
        let job = |prompt| Job { prompt, chooser: Decoding::Greedy.chooser(0, 0) };
        let jobs = prompts.iter().map(|prompt| job(prompt.as_slice())).collect();
        let limits = Limits { max_new_tokens: 2, stop: Vec::new(), pad: engine.pad, positions: self.positions };
        let found = self.decode(Some(Layout::Right), None, |decoder| generate::side_by_side(decoder, jobs, &limits));
        let layout = match found {
            Ok([alone, together]) if reading::alike(&alone, &together, reading::tolerance(engine)) => {
                Some(Layout::Right)
            }
            // some operators take one number of positions for all rows
            Ok(_) | Err(Error::Runtime(RuntimeError::Run { .. } | RuntimeError::Output { .. })) => None,
            Err(error) => return Err(error),
        };
        Ok(*engine.model.layout.get_or_init(|| layout))
    }

    fn generate(&mut self, jobs: Vec<Job<'_>>, limits: &Limits, told: &mut Told<'_>) -> Result<Vec<Generated>, Error> {
        let Self { engine, session, layout, then, .. } = self;
        let (engine, layout) = (*engine, *layout);
        let prompts: Vec<Row<'_>> = jobs.iter().map(|job| Row { tokens: job.prompt, direction: 0 }).collect();
        // a merged decoder's plain branch takes no cache; rows that begin one by one must be able to go on together
        let usable = then.is_none() && (layout.is_some() || session.splitting == Splitting::Together);
        let common = if usable { engine.common(session, &prompts, 1, &[])? } else { 0 };
        let prefix = match common {
            0 => None,
            tokens => Some(engine.begin(session, &prompts[0].tokens[..tokens], [(ALIKE, 0)].into_iter(), &[])?),
        };
        let (batch, cancelled) = (engine.batch, engine.cancelled);
        let found = self.decode(layout, prefix.as_ref(), |decoder| {
            generate::generate(decoder, jobs, batch, limits, told, cancelled)
        });
        self.session.begun.keep(prefix);
        found
    }

    /// Does `work` with a decoder.
    fn decode<T>(
        &mut self,
        layout: Option<Layout>,
        prefix: Option<&Prefix<Value>>,
        work: impl FnOnce(&mut Decoder<'_, OrtModel>) -> Result<T, RuntimeError>,
    ) -> Result<T, Error> {
        let Self { engine, session, then, .. } = self;
        let mut interface = then.as_ref().map_or(&session.interface, |then| &then.interface).clone();
        // rows that cannot share a run behind a cache begin one by one
        interface.single |= prefix.is_some() && session.splitting == Splitting::Alone;
        let steering = engine.steered.map(|s| s.inputs(&session.built)).unwrap_or_default();
        let reading = session.reading()?.clone();
        let mut decoder = Decoder {
            logits: session.built.logits.as_deref().expect("logits were asked for"),
            cut: session.built.scope != Scope::All && session.cut == Cut::InGraph,
            first: &mut session.model,
            then: then.as_mut().map(|then| &mut then.model),
            interface: &interface,
            reading: &reading,
            layout,
            splitting: session.splitting,
            prefix,
            steering: &steering,
        };
        Ok(work(&mut decoder)?)
    }
}
