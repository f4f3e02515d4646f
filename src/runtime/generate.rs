//! Generation with a KV cache, batched; without one where the graph has none.
//!
//! Answers end at different times, so the batch is filled up as it runs: prompts that wait are run by themselves, and
//! their cache is put beside that of the answers under way (continuous batching; Yu et al., *Orca*, OSDI 2022, section
//! 4). A row of fewer positions is padded on the side where the graph bears it ([`Layout`]).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array2, ArrayD, ArrayView3, Axis, Slice};

use super::backend::{Backend, Fill, Pick, RuntimeError, Tensor};
use super::batch::{self, Batch, Layout, Splitting};
use super::prefix::{ALIKE, Behind, Prefix};
use super::reading::{Reading, Run};
use super::sample::Chooser;
pub use super::sample::argmax;
use crate::lm::Interface;
use crate::onnx::DataType;

/// When to stop.
#[derive(Debug, Clone)]
pub struct Limits {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
    /// Token to pad with.
    pub pad: u32,
    /// Tokens that the model can be fed with, where a table of the graph bounds them: an answer ends there.
    pub positions: Option<usize>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Generated {
    /// New tokens, without the one that ended the answer.
    pub ids: Vec<u32>,
    /// Whether a stop token ended it; if not, it was cut at a limit.
    pub finished: bool,
}

/// An answer to make.
pub struct Job<'p> {
    /// The prompt's token ids.
    pub prompt: &'p [u32],
    /// Chooses its tokens.
    pub chooser: Chooser,
}

/// A loaded model to generate with.
pub struct Decoder<'s, B: Backend> {
    /// The model. A merged decoder's plain branch, which is run where there is no past.
    pub first: &'s mut B,
    /// A merged decoder's branch that takes a cache.
    pub then: Option<&'s mut B>,
    /// How both are fed.
    pub interface: &'s Interface,
    /// Name of an output with the logits of the last position, or of all.
    pub logits: &'s str,
    /// How it is read.
    pub reading: &'s Reading,
    /// Whether it holds one position, not as many as are fed.
    pub cut: bool,
    /// How answers of different lengths share a run; `None` where only equal lengths do.
    pub layout: Option<Layout>,
    /// How the end of a row can be run behind a cache of its beginning.
    pub splitting: Splitting,
    /// The cache of what all prompts begin with.
    pub prefix: Option<&'s Prefix<B::Value>>,
    /// Vectors that every row is fed in every run, float32 `[d_model]`, by the name of the input `[rows, 1, d_model]`.
    pub steering: &'s [(String, Vec<f32>)],
}

/// An answer in the making.
struct Work<'p> {
    job: Job<'p>,
    found: Generated,
    done: bool,
}

impl Work<'_> {
    /// Takes the next token, chosen from logits `[d_vocab]`; returns it.
    fn step(&mut self, logits: &[f32], limits: &Limits) -> Result<u32, RuntimeError> {
        if !logits.iter().all(|v| *v < f32::INFINITY) {
            return Err(RuntimeError::not_finite(self.job.prompt));
        }
        let token = self.job.chooser.choose(logits);
        if limits.stop.contains(&token) {
            self.found.finished = true;
            self.done = true;
        } else {
            self.found.ids.push(token);
            let full = limits.positions.is_some_and(|limit| self.tokens() > limit);
            self.done = full || self.found.ids.len() == limits.max_new_tokens;
        }
        Ok(token)
    }

    /// Tokens of prompt and answer.
    fn tokens(&self) -> usize {
        self.job.prompt.len() + self.found.ids.len()
    }

    /// Prompt and answer.
    fn text(&self) -> Vec<u32> {
        [self.job.prompt, &self.found.ids].concat()
    }
}

/// Answers under way, one a row.
struct Rows<V> {
    /// Index of each row's answer.
    answers: Vec<usize>,
    /// Tokens of each row that the cache holds.
    held: Vec<usize>,
    /// The token that each row goes on with.
    next: Vec<i64>,
    /// Positions that the cache has, padding included.
    width: usize,
    /// The cache, in the order of the interface.
    cache: Vec<V>,
}

/// Who is told what while answers are made.
pub struct Told<'t> {
    /// The logits of the first response position of a job, by its index.
    pub first: &'t mut dyn FnMut(usize, &[f32]),
    /// The number of tokens and of answers that a run has brought.
    pub run: &'t mut dyn FnMut(usize, usize),
}

/// Answers to all jobs, in order, with at most `at_once` under way at a time.
///
/// # Errors
/// If a run fails, on logits that are no numbers, on a prompt that is longer than the model's positions, or on
/// [`RuntimeError::Cancelled`].
pub fn generate<B: Backend>(
    decoder: &mut Decoder<'_, B>,
    jobs: Vec<Job<'_>>,
    at_once: usize,
    limits: &Limits,
    told: &mut Told<'_>,
    cancelled: &AtomicBool,
) -> Result<Vec<Generated>, RuntimeError> {
    let longest = jobs.iter().map(|job| job.prompt.len()).max().unwrap_or(0);
    if let Some(limit) = limits.positions.filter(|limit| longest > *limit) {
        return Err(RuntimeError::Positions { tokens: longest, limit });
    }
    let done = limits.max_new_tokens == 0;
    let width = decoder.reading.width;
    if let Some(token) = jobs.iter().flat_map(|job| job.prompt).find(|token| **token as usize >= width) {
        return Err(RuntimeError::Vocabulary { token: *token, vocabulary: width });
    }
    let work: Vec<Work<'_>> = jobs.into_iter().map(|job| Work { job, found: Generated::default(), done }).collect();
    let mut desk = Desk { decoder, work, limits, told };
    let mut waiting: VecDeque<usize> = desk.longest_first((0..desk.work.len()).collect());
    let mut rows: Option<Rows<B::Value>> = None;
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(RuntimeError::Cancelled);
        }
        let under_way = rows.as_ref().map_or(0, |rows| desk.open(rows).len());
        if under_way == 0 && waiting.is_empty() {
            return Ok(desk.work.into_iter().map(|w| w.found).collect());
        }
        let free = desk.room(rows.as_ref(), &waiting, at_once).saturating_sub(under_way);
        // one place at a time would run prompts one by one
        let enough = free >= waiting.len().min((at_once / 4).max(1));
        if !waiting.is_empty() && (under_way == 0 || (enough && desk.joins())) {
            let mut parts: Vec<Rows<B::Value>> = rows.into_iter().collect();
            let mut free = free.max(1);
            while free > 0 && !waiting.is_empty() {
                let joining = desk.take(&mut waiting, free);
                free -= joining.len();
                parts.push(desk.begin(joining)?);
                if !desk.joins() {
                    break;
                }
            }
            rows = desk.merge(parts)?;
        } else if let Some(mut current) = rows.take() {
            if limits.positions.is_some_and(|limit| current.width >= limit) || current.width >= desk.longest(&current) {
                // its padding would lead it over the limit, or over what there is room for
                current = desk.narrow(current)?;
            }
            if limits.positions.is_some_and(|limit| current.width >= limit) {
                waiting.extend(desk.open(&current).into_iter().map(|at| current.answers[at]));
                waiting = desk.longest_first(waiting.into());
                continue;
            }
            let next = desk.step(current)?;
            let open = desk.open(&next).len();
            // rows that are done are dropped once they are half of a batch (measured: 16 % less CPU time for 16 answers of
            // 3 to 92 tokens by a model of 100 million parameters)
            rows = Some(if 2 * open <= next.answers.len() && open > 0 { desk.narrow(next)? } else { next });
        }
    }
}

/// Logits of the second response position for each of `jobs`, run alone and beside the others in the decoder's layout:
/// what tells whether rows of different lengths may share a run.
///
/// # Errors
/// As [`generate`].
pub fn side_by_side<B: Backend>(
    decoder: &mut Decoder<'_, B>,
    jobs: Vec<Job<'_>>,
    limits: &Limits,
) -> Result<[Vec<Vec<f32>>; 2], RuntimeError> {
    let told = &mut Told { first: &mut |_, _| (), run: &mut |_, _| () };
    let work = jobs.into_iter().map(|job| Work { job, found: Generated::default(), done: false }).collect();
    let mut desk = Desk { decoder, work, limits, told };
    let mut alone = Vec::new();
    let mut begun = Vec::new();
    for answer in 0..desk.work.len() {
        let rows = desk.begin(vec![answer])?;
        let copy = desk.gather(&[(&rows, vec![0])])?;
        let (_, logits) = desk.advance(copy)?;
        alone.push(desk.decoder.reading.last(&logits, 0).into_owned());
        begun.push(rows);
    }
    let parts: Vec<_> = begun.iter().map(|rows| (rows, vec![0])).collect();
    let rows = desk.gather(&parts)?;
    let (rows, logits) = desk.advance(rows)?;
    let together = (0..rows.answers.len()).map(|at| desk.decoder.reading.last(&logits, at).into_owned()).collect();
    Ok([alone, together])
}

/// What it takes to make answers.
struct Desk<'d, 's, 'p, 't, B: Backend> {
    decoder: &'d mut Decoder<'s, B>,
    work: Vec<Work<'p>>,
    limits: &'d Limits,
    told: &'d mut Told<'t>,
}

impl<B: Backend> Desk<'_, '_, '_, '_, B> {
    fn longest_first(&self, mut answers: Vec<usize>) -> VecDeque<usize> {
        answers.retain(|&answer| !self.work[answer].done);
        answers.sort_by_key(|&answer| (std::cmp::Reverse(self.work[answer].tokens()), answer));
        answers.into()
    }

    /// Rows of answers that are not done.
    fn open(&self, rows: &Rows<B::Value>) -> Vec<usize> {
        (0..rows.answers.len()).filter(|&at| !self.work[rows.answers[at]].done).collect()
    }

    /// Whether answers can join others that are under way.
    fn joins(&self) -> bool {
        self.decoder.layout.is_some() && self.caches()
    }

    /// Rows that the cache may hold, by the longest of them with its answer.
    fn room(&self, rows: Option<&Rows<B::Value>>, waiting: &VecDeque<usize>, at_once: usize) -> usize {
        let next = waiting.front().map_or(0, |&answer| self.whole(answer));
        let longest = next.max(rows.map_or(0, |rows| self.longest(rows)));
        batch::rows_held(self.decoder.interface, longest, at_once)
    }

    /// Tokens of a prompt with the longest answer that it may get.
    fn whole(&self, answer: usize) -> usize {
        self.work[answer].job.prompt.len() + self.limits.max_new_tokens
    }

    /// The same of the longest of the answers under way. The cache needs no more positions.
    fn longest(&self, rows: &Rows<B::Value>) -> usize {
        self.open(rows).into_iter().map(|at| self.whole(rows.answers[at])).max().unwrap_or(0)
    }

    /// Takes answers that may share their first run.
    fn take(&self, waiting: &mut VecDeque<usize>, at_most: usize) -> Vec<usize> {
        let interface = self.decoder.interface;
        let lengths: Vec<usize> = waiting.iter().map(|&answer| self.work[answer].tokens()).collect();
        // they wait longest first, as batches are planned
        let taken = batch::plan(&lengths, at_most, interface).into_iter().next().unwrap_or_default();
        waiting.drain(..taken.len()).collect()
    }

    /// Whether a run goes on from what the one before returned of the cache.
    fn caches(&self) -> bool {
        !self.decoder.interface.cache.is_empty() && !self.decoder.interface.feeding.restarts()
    }

    /// The first run of some answers: prompts, and what was made of them so far. Takes a token each.
    fn begin(&mut self, answers: Vec<usize>) -> Result<Rows<B::Value>, RuntimeError> {
        let texts: Vec<Vec<u32>> = answers.iter().map(|&answer| self.work[answer].text()).collect();
        let batch = Batch::new(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>(), self.limits.pad);
        let mut batch = batch.fitted(self.decoder.interface, self.limits.pad)?;
        let width = batch.ids.ncols();
        let mut past = None;
        if let Some(prefix) = self.decoder.prefix {
            let rows: Vec<Behind> = texts.iter().map(|text| Behind { tokens: text.len(), key: ALIKE }).collect();
            past = Some(prefix.past(&*self.decoder.first, self.decoder.interface, &rows)?);
            batch = batch.columns(prefix.tokens.len()..width);
        }
        let columns = batch.ids.ncols();
        if self.decoder.splitting != Splitting::Never && self.decoder.then.is_none() {
            let pieces = batch::pieces(width - columns, columns, 1);
            for piece in &pieces[..pieces.len().saturating_sub(1)] {
                let (_, cache) = self.run(&batch.columns(piece.clone()), past, false)?;
                let shapes: Vec<_> = cache.iter().map(|part| self.decoder.first.shape(part)).collect();
                batch::check_cache(self.decoder.interface, &shapes, piece.end)?;
                past = Some(cache);
            }
            batch = batch.columns(pieces.last().cloned().unwrap_or(width - columns..width));
        }
        let (logits, cache) = self.run(&batch, past, false)?;
        let held = texts.iter().map(Vec::len).collect();
        let next = vec![i64::from(self.limits.pad); answers.len()];
        let mut rows = Rows { answers, held, next, width, cache };
        self.choose(&mut rows, &logits, true)?;
        Ok(rows)
    }

    /// One more token for each answer under way.
    fn step(&mut self, rows: Rows<B::Value>) -> Result<Rows<B::Value>, RuntimeError> {
        if !self.caches() {
            // every run starts anew
            let open = self.open(&rows).into_iter().map(|at| rows.answers[at]).collect();
            return self.begin(open);
        }
        let (mut rows, logits) = self.advance(rows)?;
        self.choose(&mut rows, &logits, false)?;
        Ok(rows)
    }

    /// Runs the token that each row goes on with.
    fn advance(&mut self, mut rows: Rows<B::Value>) -> Result<(Rows<B::Value>, ArrayD<f32>), RuntimeError> {
        let layout = self.decoder.layout.unwrap_or(Layout::Left);
        let mut mask = Array2::zeros((rows.answers.len(), rows.width + 1));
        for (mut row, held) in mask.rows_mut().into_iter().zip(&rows.held) {
            let real = match layout {
                Layout::Left => Slice::from(rows.width - held..),
                Layout::Right => Slice::from(..=*held),
            };
            row.slice_axis_mut(Axis(0), real).fill(1);
        }
        let ids = Array2::from_shape_vec((rows.next.len(), 1), rows.next.clone()).expect("a token a row");
        let (logits, cache) = self.run(&Batch { ids, mask }, Some(std::mem::take(&mut rows.cache)), true)?;
        rows.cache = cache;
        rows.width += 1;
        rows.held.iter_mut().for_each(|held| *held += 1);
        Ok((rows, logits))
    }

    /// Takes the next token of each answer that is not done.
    fn choose(&mut self, rows: &mut Rows<B::Value>, logits: &ArrayD<f32>, begins: bool) -> Result<(), RuntimeError> {
        let (mut tokens, mut ended) = (0, 0);
        for at in self.open(rows) {
            let last = self.decoder.reading.last(logits, at);
            let answer = rows.answers[at];
            if begins && self.work[answer].found.ids.is_empty() {
                (self.told.first)(answer, &last);
            }
            rows.next[at] = i64::from(self.work[answer].step(&last, self.limits)?);
            tokens += 1;
            ended += usize::from(self.work[answer].done);
        }
        (self.told.run)(tokens, ended);
        Ok(())
    }

    /// Puts rows beside each other, without those that are done.
    fn merge(&self, mut parts: Vec<Rows<B::Value>>) -> Result<Option<Rows<B::Value>>, RuntimeError> {
        parts.retain(|part| !self.open(part).is_empty());
        if parts.len() <= 1 {
            return Ok(parts.pop());
        }
        let parts: Vec<_> = parts.iter().map(|part| (part, self.open(part))).collect();
        self.gather(&parts).map(Some)
    }

    /// Drops rows that are done, and columns that no row needs any more.
    fn narrow(&self, rows: Rows<B::Value>) -> Result<Rows<B::Value>, RuntimeError> {
        if !self.caches() {
            return Ok(rows);
        }
        let open = self.open(&rows);
        self.gather(&[(&rows, open)])
    }

    /// The chosen rows of several parts, as one.
    fn gather(&self, parts: &[(&Rows<B::Value>, Vec<usize>)]) -> Result<Rows<B::Value>, RuntimeError> {
        let layout = self.decoder.layout.unwrap_or(Layout::Left);
        let fill = match layout {
            Layout::Left => Fill::Front,
            Layout::Right => Fill::Back,
        };
        let all = || parts.iter().flat_map(|(part, kept)| kept.iter().map(move |&at| (*part, at)));
        let interface = self.decoder.interface;
        let cache = interface.cache.iter().enumerate().map(|(slot, axes)| {
            let positions = |part: &Rows<B::Value>, at: usize| match layout {
                Layout::Left => part.width - part.held[at]..part.width,
                Layout::Right => 0..part.held[at],
            };
            let picks: Vec<Pick<'_, B::Value>> = all()
                .map(|(part, at)| Pick {
                    value: &part.cache[slot],
                    rows: part.answers.len(),
                    row: at,
                    positions: positions(part, at),
                })
                .collect();
            self.decoder.first.gather_rows(&picks, batch::axes(axes), fill)
        });
        Ok(Rows {
            cache: cache.collect::<Result<_, _>>()?,
            answers: all().map(|(part, at)| part.answers[at]).collect(),
            held: all().map(|(part, at)| part.held[at]).collect(),
            next: all().map(|(part, at)| part.next[at]).collect(),
            width: all().map(|(part, at)| part.held[at]).max().unwrap_or(0),
        })
    }

    /// Logits, read by the decoder's reading, and the cache of one run. `further` tells that the cache holds whole rows.
    fn run(
        &mut self,
        fed: &Batch,
        past: Option<Vec<B::Value>>,
        further: bool,
    ) -> Result<(ArrayD<f32>, Vec<B::Value>), RuntimeError> {
        let caches = self.caches();
        let decoder = &mut *self.decoder;
        let layout = if further { decoder.layout.unwrap_or(Layout::Left) } else { Layout::Left };
        let interface = decoder.interface;
        let merged = decoder.then.is_some();
        let backend = match &mut decoder.then {
            Some(then) if further => &mut **then,
            _ => &mut *decoder.first,
        };
        let mut feeds = batch::feeds(backend, interface, &fed.ids, &fed.mask, layout)?;
        let (rows, tokens) = fed.ids.dim();
        for (name, vector) in decoder.steering {
            let row = ArrayView3::from_shape((1, 1, vector.len()), vector).expect("one row of its own length");
            let all = row.broadcast((rows, 1, vector.len())).expect("one row fits every row").to_owned();
            feeds.push((name.clone(), backend.upload(Tensor::F32(all.into_dyn()), DataType::FLOAT)?));
        }
        let past = match past {
            Some(past) => past,
            // the plain branch of a merged decoder takes no cache
            None if merged => Vec::new(),
            None => batch::empty_cache(backend, interface, rows, tokens + self.limits.max_new_tokens)?,
        };
        let mut inputs: Vec<(String, &B::Value)> = feeds.iter().map(|(name, value)| (name.clone(), value)).collect();
        inputs.extend(interface.cache.iter().zip(&past).map(|(slot, value)| (slot.past.clone(), value)));
        let mut outputs = vec![decoder.logits.to_string()];
        if caches {
            outputs.extend(interface.cache.iter().map(|slot| slot.present.clone()));
        }
        let mut found = backend.run(inputs, &outputs)?.into_iter();
        let logits = backend.download(&found.next().expect("the logits were asked for"))?;
        decoder.reading.check(logits.shape(), Run { rows, tokens, positions: if decoder.cut { 1 } else { tokens } })?;
        Ok((logits, found.collect()))
    }
}
