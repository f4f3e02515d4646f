//! What an edit costs where a model runs: latency, memory and file size, two models side by side in one process.

use std::path::Path;
use std::time::Instant;

use ndarray::{Array2, Axis, concatenate};

use super::super::opened::Understood;
use super::{Engine, Session, positions};
use crate::error::Error;
use crate::instrument::{Request, SessionModel};
use crate::lm::Interface;
use crate::onnx::Model;
use crate::report::{BeforeAfter, Cost, Latency, Measured, Ratio};
use crate::runtime::batch::{self, Batch, Layout, Sharing};
use crate::runtime::session::OrtModel;
use crate::runtime::{Backend, RuntimeError};

/// Pairs that warm both models up and are not counted.
const WARM_UP: usize = 2;

/// Files up to this size are loaded once more while memory is measured, so that what the process sets up once is not
/// counted as the first model's.
const LOAD_AGAIN: u64 = 1 << 30;

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of a prompt; fewer where the model has no positions for them.
    pub prompt_tokens: usize,
    /// Rows of the batch whose prefill is measured beside that of one row.
    pub batch: usize,
    /// Tokens whose mean latency is one measurement of decoding.
    pub decode_tokens: usize,
    /// Pairs of measurements; an even number balances the order.
    pub pairs: usize,
}

impl Default for Workload {
    fn default() -> Self {
        Self { prompt_tokens: 128, batch: 4, decode_tokens: 16, pairs: 12 }
    }
}

/// A model to time.
struct Loaded<'a> {
    first: Part,
    /// A merged decoder's branch that takes a cache.
    then: Option<Part>,
    interface: Interface,
    logits: String,
    engine: Engine<'a>,
}

/// What runs.
struct Part {
    model: OrtModel,
    /// How Lancet built it; `None` for a file as it is.
    built: Option<SessionModel>,
}

impl From<Session> for Part {
    fn from(session: Session) -> Self {
        Self { model: session.model, built: Some(session.built) }
    }
}

/// Latencies of one measurement in seconds: prefill, prefill of a batch, decoding a token.
type Times = [f64; 3];

/// Measures two models in turns (before, after, after, before, ...), after a warm-up. Both are loaded as they are
/// published where that can be run, else both in Lancet's sessions. `advance` is told after each of
/// `workload.pairs` pairs.
///
/// # Errors
/// If ONNX Runtime refuses a model or a run fails, if the models' positions leave no room for the workload, or on
/// cancellation.
pub fn measure(
    before: &Engine<'_>,
    after: &Engine<'_>,
    workload: &Workload,
    mut advance: impl FnMut(u64),
) -> Result<Cost, Error> {
    let mut workload = Workload {
        batch: workload.batch.max(1),
        decode_tokens: workload.decode_tokens.max(1),
        pairs: workload.pairs.max(1),
        ..*workload
    };
    for engine in [before, after] {
        engine.feedable()?;
        if let Some(limit) = positions::limit(engine.model) {
            workload.prompt_tokens = workload.prompt_tokens.min(limit.saturating_sub(workload.decode_tokens));
        }
        if engine.model.lm.interface.single || engine.model.sharing.get() == Some(&Sharing::Single) {
            workload.batch = 1;
        }
    }
    if workload.prompt_tokens == 0 {
        return Err(Error::failed("the model has no positions left for what is to be measured"));
    }
    let measured = match [before, after].iter().all(|engine| runs_as_published(engine)) {
        true => Measured::Published,
        false => Measured::Session,
    };
    let file_bytes = BeforeAfter { before: file_bytes(before.model)?, after: file_bytes(after.model)? };
    let held = (file_bytes.before <= LOAD_AGAIN).then(|| load_and_run(before, measured, &workload)).transpose()?;
    let start = resident();
    let mut first = load_and_run(before, measured, &workload)?;
    let between = resident();
    let mut second = load_and_run(after, measured, &workload)?;
    let end = resident();
    drop(held);
    let growth = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
    let memory_bytes = BeforeAfter { before: growth(start, between), after: growth(between, end) };

    let mut found: [Vec<Times>; 2] = [Vec::new(), Vec::new()];
    for pair in 0..WARM_UP + workload.pairs {
        before.check_cancelled()?;
        let mut times = [Times::default(); 2];
        for turn in [pair % 2, 1 - pair % 2] {
            let loaded = if turn == 0 { &mut first } else { &mut second };
            times[turn] = loaded.times(&workload)?;
        }
        if pair >= WARM_UP {
            found.iter_mut().zip(times).for_each(|(all, one)| all.push(one));
            advance(1);
        }
    }
    let latency = |name: String, which: usize| {
        let median = |times: &[Times]| spread(times.iter().map(|t| t[which]).collect()).median;
        let pairs = found[0].iter().zip(&found[1]);
        let ratio = spread(pairs.map(|(before, after)| after[which] / before[which]).collect());
        Latency { name, before: median(&found[0]), after: median(&found[1]), ratio }
    };
    let Workload { prompt_tokens, batch, .. } = workload;
    let mut latencies = vec![latency(format!("prefill of {prompt_tokens} tokens"), 0)];
    if batch > 1 {
        latencies.push(latency(format!("prefill of {prompt_tokens} tokens, {batch} rows"), 1));
    }
    latencies.push(latency("decoding, a token".into(), 2));
    Ok(Cost { measured, file_bytes, memory_bytes, latencies })
}

/// Whether ONNX Runtime can be given the file itself: one that is steered is none.
fn runs_as_published(engine: &Engine<'_>) -> bool {
    let Understood { lm, embedding, .. } = engine.model;
    let plain = lm.cached.is_none() && lm.interface.use_cache_branch.is_none() && embedding.is_none();
    plain && engine.steered.is_none() && !(engine.runtime.provider() == "cpu" && engine.has_bfloat16())
}

/// Bytes of a model's files, external data included.
fn file_bytes(model: &Understood<'_>) -> Result<u64, Error> {
    let models = model.embedding.as_ref().map(|e| e.graph.model).into_iter().chain([model.graph.model]);
    let bytes = |path: &Path| {
        let meta = std::fs::metadata(path);
        meta.map(|m| m.len()).map_err(|e| Error::failed(format!("cannot read `{}`: {e}", path.display())))
    };
    let of = |model: &Model| -> Result<u64, Error> {
        let external = model.external_files().into_iter().map(|(_, path)| bytes(&path));
        external.chain([bytes(&model.path)]).sum()
    };
    models.map(of).sum()
}

/// Resident set of the process in bytes.
fn resident() -> Option<u64> {
    parse_resident(&crate::files::read_text(Path::new("/proc/self/status"), crate::files::MAX_SETTINGS).ok()?)
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn load_and_run<'a>(engine: &Engine<'a>, measured: Measured, workload: &Workload) -> Result<Loaded<'a>, Error> {
    let model = engine.model;
    let mut loaded = match measured {
        Measured::Published => Loaded {
            first: Part { model: engine.runtime.published(&model.graph.model.path)?, built: None },
            then: None,
            interface: model.lm.interface.clone(),
            logits: model.lm.interface.logits.clone(),
            engine: *engine,
        },
        Measured::Session => {
            let request = Request { logits: 1, cache: true, last_positions: 1, ..Request::default() };
            let session = engine.session(request.clone())?;
            let then = match model.lm.cached {
                Some(_) => Some(engine.cached_branch(&session, request)?),
                None => None,
            };
            Loaded {
                logits: session.built.logits.clone().expect("logits were asked for"),
                interface: then.as_ref().map_or(&session.interface, |then| &then.interface).clone(),
                first: session.into(),
                then: then.map(Part::from),
                engine: *engine,
            }
        }
    };
    loaded.times(&Workload { decode_tokens: 1, batch: 1, ..*workload })?;
    Ok(loaded)
}

impl Loaded<'_> {
    fn times(&mut self, workload: &Workload) -> Result<Times, Error> {
        let of_batch = self.answer(workload.batch, workload.prompt_tokens, 0)?.0;
        let (prefill, decode) = self.answer(1, workload.prompt_tokens, workload.decode_tokens)?;
        Ok([prefill, of_batch, decode / workload.decode_tokens as f64])
    }

    /// Seconds of the prompts' run, and of all runs after it. Tokens are made up, and the same for every model.
    fn answer(&mut self, rows: usize, prompt: usize, new_tokens: usize) -> Result<(f64, f64), RuntimeError> {
        let vocabulary = self.engine.model.vocabulary().unwrap_or(256) as i64;
        let token = |row: usize, column: usize| (7 * row + 13 * column + 5) as i64 % vocabulary;
        let mut ids = Array2::from_shape_fn((rows, prompt), |(row, column)| token(row, column));
        let mut mask = Array2::ones((rows, prompt));
        let mut cache = match self.then {
            Some(_) => Vec::new(),
            None => batch::empty_cache(
                &self.first.model,
                &self.interface,
                self.interface.feeding.rows.unwrap_or(rows),
                prompt + new_tokens,
            )?,
        };
        let restarts = self.interface.feeding.restarts();
        let caching = !self.interface.cache.is_empty() && !restarts;
        let mut outputs = vec![self.logits.clone()];
        if caching {
            outputs.extend(self.interface.cache.iter().map(|slot| slot.present.clone()));
        }
        let mut spent = [0.0; 2];
        for step in 0..=new_tokens {
            let Part { model, built } = match &mut self.then {
                Some(then) if step > 0 => then,
                _ => &mut self.first,
            };
            let fed = Batch { ids: ids.clone(), mask: mask.clone() };
            let fed = if caching { fed } else { fed.fitted(&self.interface, 0)? };
            let mut feeds = batch::feeds(model, &self.interface, &fed.ids, &fed.mask, Layout::Left)?;
            if let Some(built) = built {
                feeds.extend(self.engine.steering_feeds(model, built, &vec![&[][..]; fed.ids.nrows()])?);
            }
            let mut inputs: Vec<_> = feeds.iter().map(|(name, value)| (name.clone(), value)).collect();
            inputs.extend(self.interface.cache.iter().zip(&cache).map(|(slot, value)| (slot.past.clone(), value)));
            let started = Instant::now();
            let found = model.run(inputs, &outputs)?;
            spent[step.min(1)] += started.elapsed().as_secs_f64();
            if !restarts {
                cache = found.into_iter().skip(1).collect();
            }
            let next = Array2::from_shape_fn((rows, 1), |(row, _)| token(row, prompt + step));
            let ones = Array2::ones((rows, 1));
            mask = concatenate(Axis(1), &[mask.view(), ones.view()]).expect("one row each");
            ids = if caching { next } else { concatenate(Axis(1), &[ids.view(), next.view()]).expect("one row each") };
        }
        Ok((spent[0], spent[1]))
    }
}

/// Median of values, one at least, and its 95 % interval (order statistics): the extremes of fewer than 6 values.
fn spread(mut values: Vec<f64>) -> Ratio {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let median = (values[(n - 1) / 2] + values[n / 2]) / 2.0;
    let rank = rank(n);
    Ratio { median, low: values[rank], high: values[n - 1 - rank], n }
}

/// The rank from 0 of the order statistic that the median of a distribution is below with a probability of at most
/// 2.5 %; 0 where there is none.
fn rank(n: usize) -> usize {
    // sums of the binomial distribution of n coins
    let mut term = 0.5f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let mut sum = 0.0;
    for k in 0..n {
        sum += term;
        if sum > 0.025 {
            return k.saturating_sub(1);
        }
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::{Ratio, parse_resident, rank, spread};

    #[test]
    fn intervals_are_those_of_the_sign_test() {
        // Conover, Practical Nonparametric Statistics: 95 % intervals of the median
        for (n, expected) in [(1, 0), (5, 0), (6, 0), (9, 1), (12, 2), (20, 5)] {
            assert_eq!(rank(n), expected, "{n}");
        }
        let found = spread((1..=12).rev().map(f64::from).collect());
        assert_eq!(found, Ratio { median: 6.5, low: 3.0, high: 10.0, n: 12 });
        assert_eq!(spread(vec![2.0]), Ratio { median: 2.0, low: 2.0, high: 2.0, n: 1 });
    }

    #[test]
    fn the_resident_set_is_read_from_what_linux_tells() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t1\n"), Some(2 << 20));
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }
}
