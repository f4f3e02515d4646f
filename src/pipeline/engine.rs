//! Runs prompts through instrumented sessions, in batches, and hands each row's results on.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array3, ArrayD, Axis};

use super::opened::Understood;
use super::stage::Stage;
use crate::edit::{Ablated, Addition, Edit, GatedTerm, Writes};
use crate::error::Error;
use crate::instrument::{self, Cut, Request, SessionModel};
use crate::lm::{Interface, Padding, ResidPoint};
use crate::onnx::ops::{ActivationRounding, WeightLayout};
use crate::onnx::{DataType, Graph, TensorRef};
use crate::runtime::batch::{self, Batch, Layout, Sharing, Splitting};
use crate::runtime::prefix::{ALIKE, Behind, Prefix};
use crate::runtime::reading::{Positions, Reading, Run};
use crate::runtime::session::{Integers, OrtModel, Runtime, Weights};
use crate::runtime::{Backend, Decoding, RuntimeError, Tensor};

pub mod cost;
mod generator;
mod positions;
mod reading;
mod split;

pub use generator::{Generation, Generator, Progress};
use reading::Readings;
use split::Begun;

/// Bytes of float32 logits that one run returns at most, if one row's do not take more.
const LOGITS_BUDGET: usize = 256 << 20;

/// A tensor that ONNX Runtime holds.
type Value = <OrtModel as Backend>::Value;

/// Who is told how far the work is.
pub trait Observer: Sync {
    /// A stage of `total` steps begins.
    fn start(&self, stage: &Stage, total: u64);
    /// Some steps are done.
    fn advance(&self, steps: u64);
    /// Whether anybody is told.
    fn listens(&self) -> bool {
        true
    }
    /// The stage turned out to have so many steps in all.
    fn expect(&self, _: u64) {}
    /// Some tokens were generated on the way.
    fn tokens(&self, _: u64) {}
    /// The stage is over.
    fn finish(&self);
    /// Something worth a line.
    fn note(&self, text: &str);
}

/// What the graph computes on 8-bit integers.
pub(super) fn integers(graph: &Graph<'_>) -> Integers {
    let rounds = |how| graph.nodes().any(|node| graph.rounding(node) == how);
    let multiplies = |node| {
        let layout = graph.weighted(node).map(|weighted| weighted.layout);
        matches!(layout, Some(WeightLayout::Integer | WeightLayout::ScaledInteger { .. }))
    };
    if rounds(ActivationRounding::Stored) {
        Integers::Stored
    } else if graph.nodes().any(multiplies) {
        Integers::Products
    } else {
        Integers::None
    }
}

/// Says nothing.
pub struct Silent;

impl Observer for Silent {
    fn listens(&self) -> bool {
        false
    }
    fn start(&self, _: &Stage, _: u64) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}

/// What a whole engine does to the stream while it runs, in every session that it builds.
#[derive(Debug, Clone, PartialEq)]
pub struct Steering {
    /// Vectors `v` of the ablation `x - (x.v) v`, `[d_model]` each ([`Ablated::hook`]).
    pub directions: Vec<Vec<f32>>,
    /// The writes that they are ablated from.
    pub writes: Writes,
    /// Layer and vector of each addition, `[d_model]`.
    pub additions: Vec<(usize, Vec<f32>)>,
    /// Gated terms, which sessions hold as constants.
    pub gates: Vec<GatedTerm>,
}

impl Steering {
    /// What a bake of `edit` is compared with.
    pub fn of(edit: &Edit) -> Self {
        let single = |a: &Addition| (a.layer, a.scaled().iter().map(|v| *v as f32).collect());
        Self {
            directions: edit.ablation().iter().flat_map(|all| all.vectors()).map(Ablated::hook).collect(),
            writes: edit.ablation().map(|ablation| ablation.writes().clone()).unwrap_or_default(),
            additions: edit.additions().iter().map(single).collect(),
            gates: edit.gates().to_vec(),
        }
    }

    /// The vectors by the inputs that a session has for them.
    fn inputs(&self, built: &SessionModel) -> Vec<(String, Vec<f32>)> {
        let all = built.steering.iter().zip(self.vectors());
        let wanted = all.filter(|(name, _)| built.inputs.contains(name));
        wanted.map(|(name, vector)| (name.clone(), vector.to_vec())).collect()
    }

    /// All vectors, in the order of the inputs of a session.
    fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        let added = self.additions.iter().map(|(_, vector)| vector);
        self.directions.iter().chain(added).map(Vec::as_slice)
    }
}

/// One prompt to run, with the direction to ablate meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Row<'p> {
    /// Token ids.
    pub tokens: &'p [u32],
    /// Index into the directions of the call.
    pub direction: usize,
}

/// What a row gave.
pub struct RowResult {
    /// Index of the row.
    pub row: usize,
    /// Probes, each `[last_positions, d_model]` row-major, in the order of the request.
    pub probes: Vec<Vec<f32>>,
    /// Logits of the last positions, `[positions, d_vocab]` row-major; what was asked for is usually one.
    pub logits: Vec<f32>,
}

/// A model and what is needed to run it.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    /// ONNX Runtime.
    pub runtime: &'a Runtime,
    /// The model.
    pub model: &'a Understood<'a>,
    /// Rows a run.
    pub batch: usize,
    /// Token to pad with.
    pub pad: u32,
    /// Set by Ctrl-C.
    pub cancelled: &'a AtomicBool,
    /// What is done to the stream in every session; `None` leaves it to the request.
    pub steered: Option<&'a Steering>,
}

/// A loaded instrumented model.
pub struct Session {
    model: OrtModel,
    built: SessionModel,
    interface: Interface,
    /// Where positions are picked.
    cut: Cut,
    /// Positions that logits are returned of; 0 for none.
    logits: usize,
    /// Positions that probes are returned of.
    last_positions: usize,
    /// Whether the KV cache is among the outputs.
    returns_cache: bool,
    /// How the end of a row can be run behind a cache of its beginning.
    splitting: Splitting,
    readings: Readings,
    /// Common beginnings that were run.
    begun: Begun,
}

/// What a visit runs.
struct Fed<'f> {
    rows: &'f [Row<'f>],
    directions: &'f [Vec<f32>],
    /// The common beginning of all rows, which was run before.
    prefix: Option<&'f Prefix<Value>>,
    /// Which cache of it each row has.
    keys: &'f [usize],
}

impl Session {
    /// Runs a batch behind `past`, if there is one. Returns probes and logits as they lie in the graph.
    fn arrays(
        &mut self,
        engine: &Engine<'_>,
        batch: &Batch,
        directions: &[&[f32]],
        past: Option<Vec<Value>>,
    ) -> Result<Vec<ArrayD<f32>>, RuntimeError> {
        let outputs: Vec<String> = self.built.probes.iter().chain(&self.built.logits).cloned().collect();
        let found = self.run(engine, batch, directions, past, &outputs)?;
        found.iter().map(|v| self.model.download(v)).collect()
    }

    /// Runs all but the last piece of a long batch. Returns that piece, and the cache in front of it.
    fn run_ahead(
        &mut self,
        engine: &Engine<'_>,
        batch: Batch,
        directions: &[&[f32]],
        mut past: Option<Vec<Value>>,
    ) -> Result<(Batch, Option<Vec<Value>>), RuntimeError> {
        let columns = batch.ids.ncols();
        let begin = batch.mask.ncols() - columns;
        let pieces = batch::pieces(begin, columns, self.last_positions.max(self.logits));
        let Some((last, ahead)) = pieces.split_last().filter(|_| self.splitting != Splitting::Never) else {
            return Ok((batch, past));
        };
        for piece in ahead {
            past = Some(self.cache(engine, &batch.columns(piece.clone()), directions, past)?);
        }
        Ok((batch.columns(last.clone()), past))
    }

    /// Runs a batch behind `past`, which holds the first columns of the batch's mask; behind none where there is none.
    fn run(
        &mut self,
        engine: &Engine<'_>,
        batch: &Batch,
        directions: &[&[f32]],
        past: Option<Vec<Value>>,
        outputs: &[String],
    ) -> Result<Vec<Value>, RuntimeError> {
        let Self { model, built, interface, .. } = self;
        let mut feeds = batch::feeds(model, interface, &batch.ids, &batch.mask, Layout::Left)?;
        feeds.extend(engine.steering_feeds(model, built, directions)?);
        let cache = match past {
            Some(past) => past,
            None => batch::empty_cache(model, interface, batch.ids.nrows(), batch.ids.ncols())?,
        };
        let mut inputs: Vec<_> = feeds.iter().map(|(name, value)| (name.clone(), value)).collect();
        inputs.extend(interface.cache.iter().zip(&cache).map(|(slot, value)| (slot.past.clone(), value)));
        model.run(inputs, outputs)
    }

    /// Which positions the file returns logits of.
    pub fn positions(&self) -> Positions {
        self.readings.logits.as_ref().map_or(Positions::Every, |reading| reading.positions)
    }

    /// Logits a position, `d_vocab`; 0 for a session without.
    pub fn width(&self) -> usize {
        self.readings.logits.as_ref().map_or(0, |reading| reading.width)
    }

    /// How logits are read.
    ///
    /// # Errors
    /// If the session returns none.
    fn reading(&self) -> Result<&Reading, Error> {
        self.readings.logits.as_ref().ok_or_else(|| Error::failed("the session returns no logits"))
    }
}

impl Engine<'_> {
    /// Builds and loads a session for many runs, and finds out how what it returns is to be read.
    ///
    /// # Errors
    /// If ONNX Runtime refuses the model, if its inputs cannot be fed, or if what it returns cannot be read.
    pub fn session(&self, request: Request) -> Result<Session, Error> {
        self.open(request, Weights::Packed)
    }

    /// The same for a few runs.
    ///
    /// # Errors
    /// As [`Engine::session`].
    pub fn brief_session(&self, request: Request) -> Result<Session, Error> {
        self.open(request, Weights::Mapped)
    }

    fn open(&self, mut request: Request, weights: Weights) -> Result<Session, Error> {
        self.feedable()?;
        let steers = request.directions > 0 || !request.additions.is_empty() || self.steered.is_some();
        // what steers must know how the stream lies, though nobody asked for it
        let guarded = steers && request.probes.is_empty();
        if guarded {
            request.probes = vec![(0, ResidPoint::Pre), (self.model.lm.n_layers() - 1, ResidPoint::Post)];
            request.last_positions = request.last_positions.max(1);
        }
        let mut failed = None;
        for cut in [Cut::InGraph, Cut::Outside] {
            let mut session = self.load(Request { cut, ..request.clone() }, weights)?;
            let readings = match (reading::learn(self, &mut session), cut) {
                (Ok(Some(readings)), _) => readings,
                (Ok(None), _) => continue,
                // a stream of other axes cannot be steered in batches
                (Err(Error::Runtime(error @ RuntimeError::Run { .. })), Cut::InGraph) => {
                    failed = Some(error);
                    continue;
                }
                (Err(error), _) => return Err(failed.map_or(error, Error::from)),
            };
            for (probe, (layer, point)) in readings.probes.iter().zip(&request.probes).filter(|_| !guarded) {
                if probe.positions == Positions::Last && request.last_positions > 1 {
                    return Err(Error::failed_with(
                        format!("the stream of layer {layer} ({point:?}) holds the last position only"),
                        "export the model so that its last token is picked behind the last layer",
                    ));
                }
            }
            session.readings = readings;
            if steers && cut == Cut::Outside {
                reading::check_ablation(self, &mut session)?;
            }
            if guarded {
                session.built.probes.clear();
                session.readings.probes.clear();
            }
            let sharing = self.sharing(&mut session)?;
            session.interface.single |= sharing == Sharing::Single;
            if sharing == Sharing::EqualLengths {
                session.interface.padding = Padding::EqualLengths;
            }
            session.splitting = self.splitting(&mut session)?;
            return Ok(session);
        }
        Err(failed
            .map_or_else(|| Error::failed("the axes of what the model returns cannot be told apart"), Error::from))
    }

    /// Loads the branch of a merged decoder that takes a cache; it returns what the plain branch returns.
    ///
    /// # Errors
    /// If ONNX Runtime refuses the model.
    fn cached_branch(&self, plain: &Session, request: Request) -> Result<Session, Error> {
        let mut session = self.load(Request { cached_branch: true, cut: plain.cut, ..request }, Weights::Packed)?;
        session.readings = plain.readings.clone();
        session.interface.single = plain.interface.single;
        session.interface.padding = plain.interface.padding;
        Ok(session)
    }

    /// Checks that the model can be run.
    ///
    /// # Errors
    /// The refusal of the input that cannot be filled.
    pub fn feedable(&self) -> Result<(), Error> {
        let refusal = self.model.lm.interface.unfed_on(self.runtime.is_cuda());
        refusal.cloned().map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    fn load(&self, mut request: Request, weights: Weights) -> Result<Session, Error> {
        if let Some(steering) = self.steered {
            request.directions = steering.directions.len();
            request.writes.clone_from(&steering.writes);
            request.additions = steering.additions.iter().map(|(layer, _)| *layer).collect();
            request.gates.clone_from(&steering.gates);
        }
        // the cache of a common beginning serves many rows
        request.cache |= request.logits > 0;
        request.widen_bfloat16 = self.runtime.provider() == "cpu" && self.has_bfloat16();
        let Understood { graph, lm, embedding, .. } = self.model;
        let built = instrument::instrument(graph, lm, embedding.as_ref(), &request)?;
        let model = self.runtime.session(&built.bytes, integers(graph), weights)?;
        // inputs that pruning removed are not fed
        let mut interface = self.model.lm.interface.clone();
        interface.cache.retain(|slot| built.inputs.contains(&slot.past));
        let Request { cut, logits, last_positions, cache: returns_cache, .. } = request;
        let readings = Readings { probes: Vec::new(), logits: None };
        Ok(Session {
            model,
            built,
            interface,
            cut,
            logits,
            last_positions,
            returns_cache,
            splitting: Splitting::Never,
            readings,
            begun: Begun::default(),
        })
    }

    /// Which rows may share a run: found once a model.
    fn sharing(&self, session: &mut Session) -> Result<Sharing, Error> {
        if session.cut == Cut::Outside || session.interface.single {
            return Ok(Sharing::Single);
        }
        if let Some(known) = self.model.sharing.get() {
            return Ok(*known);
        }
        let found = reading::sharing(self, session)?;
        Ok(*self.model.sharing.get_or_init(|| found))
    }

    /// Whether the file stores bfloat16 tensors.
    pub fn has_bfloat16(&self) -> bool {
        let embedding = self.model.embedding.as_ref().map(|e| e.graph.model);
        let mut models = embedding.into_iter().chain([self.model.graph.model]);
        models.any(|model| model.tensors.iter().any(|t| t.dtype == DataType::BFLOAT16))
    }

    /// Runs every row and hands the results on, in no particular order. `directions` holds what is done to the stream
    /// meanwhile: the directions that are ablated, `[d_model]` each, and behind them the vectors that are added, as many of
    /// each as the session was asked for (what is missing does nothing). It is read only by sessions that steer, and not
    /// where the whole engine does.
    ///
    /// # Errors
    /// If a run fails, if logits are not finite, or on cancellation.
    pub fn visit(
        &self,
        session: &mut Session,
        rows: &[Row<'_>],
        directions: &[Vec<f32>],
        mut each: impl FnMut(RowResult) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let lengths: Vec<usize> = rows.iter().map(|r| r.tokens.len()).collect();
        let width = session.width();
        let outside = rows.iter().flat_map(|row| row.tokens).find(|token| width > 0 && **token as usize >= width);
        if let Some(token) = outside {
            return Err(RuntimeError::Vocabulary { token: *token, vocabulary: width }.into());
        }
        // rows are told apart by what is done to them, where they do not all get the same
        let keyed =
            self.steered.is_none() && session.built.steering.iter().any(|name| session.built.inputs.contains(name));
        let keys: Vec<usize> = match keyed {
            true => {
                let known: Vec<usize> = directions.iter().map(|direction| session.begun.key(direction)).collect();
                rows.iter().map(|row| known.get(row.direction).copied().unwrap_or(ALIKE)).collect()
            }
            false => vec![ALIKE; rows.len()],
        };
        let shared = self.common(session, rows, keys.iter().collect::<HashSet<_>>().len(), directions)?;
        let at_once = if shared > 0 && session.splitting == Splitting::Alone { 1 } else { self.batch };
        for group in split::groups(&session.interface, &keys, shared) {
            let prefix = match shared {
                0 => None,
                tokens => {
                    let members = group.iter().map(|&row| (keys[row], rows[row].direction));
                    Some(self.begin(session, &rows[0].tokens[..tokens], members, directions)?)
                }
            };
            let fed = Fed { rows, directions, prefix: prefix.as_ref(), keys: &keys };
            let of_group: Vec<usize> = group.iter().map(|&row| lengths[row]).collect();
            for members in batch::plan(&of_group, at_once, &session.interface) {
                let members: Vec<usize> = members.into_iter().map(|at| group[at]).collect();
                let positions = reading::positions(session, lengths[members[0]] - shared).1;
                for members in members.chunks(self.rows_at_once(positions)) {
                    self.check_cancelled()?;
                    self.run_batch(session, &fed, members, &mut each)?;
                }
            }
            session.begun.keep(prefix);
        }
        Ok(())
    }

    /// Rows whose logits at `positions` positions fit into the budget; one at least.
    fn rows_at_once(&self, positions: usize) -> usize {
        (self.room() / positions.max(1)).max(1)
    }

    /// Positions of `d_vocab` float32 logits that a run may return, all rows together: 256 MB of them, one at least.
    pub fn room(&self) -> usize {
        self.positions_in(LOGITS_BUDGET)
    }

    /// The same for logits that are kept while another model runs: 256 MB, or a quarter of the bytes of this model's
    /// weights if that is more.
    pub fn room_to_keep(&self) -> usize {
        let bytes = |tensor: &TensorRef| tensor.dtype.bytes_for(tensor.elements()).unwrap_or(0);
        let weights: u64 = self.model.graph.model.tensors.iter().map(bytes).sum();
        self.positions_in(LOGITS_BUDGET.max(usize::try_from(weights / 4).unwrap_or(usize::MAX)))
    }

    /// Positions of `d_vocab` float32 logits in `bytes` bytes; one at least.
    fn positions_in(&self, bytes: usize) -> usize {
        // a file that does not tell its vocabulary is taken to have a large one
        let vocabulary = self.model.vocabulary().unwrap_or(1 << 18);
        (bytes / (size_of::<f32>() * vocabulary.max(1))).max(1)
    }

    /// Stops here if the user asked for it.
    ///
    /// # Errors
    /// [`RuntimeError::Cancelled`].
    pub fn check_cancelled(&self) -> Result<(), Error> {
        if self.cancelled.load(Ordering::Relaxed) { Err(RuntimeError::Cancelled.into()) } else { Ok(()) }
    }

    fn run_batch(
        &self,
        session: &mut Session,
        fed: &Fed<'_>,
        members: &[usize],
        each: &mut impl FnMut(RowResult) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Fed { rows, directions, prefix, keys } = *fed;
        let prompts: Vec<&[u32]> = members.iter().map(|&i| rows[i].tokens).collect();
        let mut batch = Batch::new(&prompts, self.pad).fitted(&session.interface, self.pad)?;
        let mut past = None;
        if let Some(prefix) = prefix {
            let behind = |&row: &usize| Behind { tokens: rows[row].tokens.len(), key: keys[row] };
            let rows: Vec<Behind> = members.iter().map(behind).collect();
            past = Some(prefix.past(&session.model, &session.interface, &rows)?);
            batch = batch.columns(prefix.tokens.len()..batch.mask.ncols());
        }
        let mut vectors: Vec<&[f32]> = members
            .iter()
            .map(|&row| directions.get(rows[row].direction).map_or(&[] as &[f32], Vec::as_slice))
            .collect();
        vectors.resize(batch.ids.nrows(), &[]);
        let (batch, past) = session.run_ahead(self, batch, &vectors, past)?;
        let (n_rows, tokens) = batch.ids.dim();
        let arrays = session.arrays(self, &batch, &vectors, past)?;
        let (of_probes, of_logits) = reading::positions(session, tokens);
        let Readings { probes, logits } = &session.readings;
        let (probe_arrays, logit_arrays) = arrays.split_at(probes.len());
        for (reading, array) in probes.iter().zip(probe_arrays) {
            reading.check(array.shape(), Run { rows: n_rows, tokens, positions: of_probes })?;
        }
        let logits = logits.as_ref().zip(logit_arrays.first());
        if let Some((reading, array)) = logits {
            reading.check(array.shape(), Run { rows: n_rows, tokens, positions: of_logits })?;
        }
        // the last positions of a row, where all are returned
        let tail = |mut values: Vec<f32>, width: usize, positions: usize| {
            values.split_off(values.len().saturating_sub(width * positions))
        };
        for (at, &row) in members.iter().enumerate() {
            let of_row = |(reading, array): (&Reading, &ArrayD<f32>)| {
                tail(reading.row(array, at), reading.width, session.last_positions)
            };
            let found = logits.map(|(reading, array)| tail(reading.row(array, at), reading.width, session.logits));
            let logits = found.unwrap_or_default();
            if logits.iter().any(|v| !v.is_finite()) {
                return Err(RuntimeError::not_finite(rows[row].tokens).into());
            }
            each(RowResult { row, probes: probes.iter().zip(probe_arrays).map(of_row).collect(), logits })?;
        }
        Ok(())
    }

    /// The inputs of a session that steers, for one vector a row as [`Engine::visit`] takes them.
    fn steering_feeds(
        &self,
        model: &OrtModel,
        built: &SessionModel,
        rows: &[&[f32]],
    ) -> Result<Vec<(String, Value)>, RuntimeError> {
        let width = self.model.lm.d_model();
        let mut feeds = Vec::new();
        for (part, name) in built.steering.iter().enumerate().filter(|(_, name)| built.inputs.contains(name)) {
            let mut values = Array3::zeros((rows.len(), 1, width));
            for (at, row) in rows.iter().enumerate() {
                let vector = match self.steered {
                    Some(steering) => steering.vectors().nth(part),
                    None => row.get(part * width..(part + 1) * width),
                };
                if let Some(vector) = vector {
                    let vector = ndarray::ArrayView2::from_shape((1, width), vector).expect("a vector is d_model wide");
                    values.index_axis_mut(Axis(0), at).assign(&vector);
                }
            }
            feeds.push((name.clone(), model.upload(Tensor::F32(values.into_dyn()), DataType::FLOAT)?));
        }
        Ok(feeds)
    }

    /// Greedy answers to every prompt, in order, without stop tokens. [`Generator`] keeps its session and can more.
    ///
    /// # Errors
    /// If a run fails, or on cancellation.
    pub fn answers(
        &self,
        prompts: &[Vec<u32>],
        max_new_tokens: usize,
        stop: &[u32],
        mut done: impl FnMut(u64),
    ) -> Result<Vec<Vec<u32>>, Error> {
        let how = Generation { max_new_tokens, stop: stop.to_vec(), decoding: Decoding::Greedy, samples: 1 };
        let found = self.generator()?.answers(prompts, &how, |progress| {
            if progress.answers > 0 {
                done(progress.answers);
            }
        })?;
        Ok(found.into_iter().map(|mut samples| samples.remove(0).ids).collect())
    }
}
