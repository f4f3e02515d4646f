//! The proof that does not look through the eyes of the edit: what was written is loaded as a consumer loads it and run,
//! and every value that a normalisation or the unembedding reads is looked at in the whole graph ([`crate::proof`]).

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use ndarray::{Array2, ArrayD, IxDyn};

use super::engine::integers;
use super::opened::{Opened, Understood};
use crate::error::Error;
use crate::instrument::{DIRECTION_INPUT, Wanted, Whole, WholeModel, whole};
use crate::lm::{EmbeddingFile, Interface, Refusal, ResidualStream, Treatment};
use crate::method::direction::Direction;
use crate::onnx::ops::ActivationRounding;
use crate::onnx::{DataType, Graph, ValueId};
use crate::proof::measure::{Rows, difference};
use crate::proof::{Kept, Place, Read, Tolerance, stream_reads};
use crate::report::StreamProof;
use crate::runtime::batch::{self, Layout};
use crate::runtime::session::{OrtModel, Runtime, Weights};
use crate::runtime::{Backend, RuntimeError, Tensor};

/// Prompts that are run, at most; all their positions are looked at.
const PROMPTS: usize = 4;

/// Positions of a prompt that are run, at most.
const POSITIONS: usize = 160;

/// Tokens of a made-up prompt.
const ROW: usize = 24;

/// What the models are run with.
#[derive(Clone, Copy)]
pub struct Consumer<'a> {
    /// ONNX Runtime.
    pub runtime: &'a Runtime,
    /// Token ids of the prompts; where there are none, ids all over the vocabulary serve: what a graph reads does not
    /// depend on what is said.
    pub prompts: &'a [Vec<u32>],
    /// Set by Ctrl-C.
    pub cancelled: &'a AtomicBool,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The measurement; `None` where the graph could not be run.
    pub stream: Option<StreamProof>,
    /// What failed, one sentence each.
    pub failures: Vec<String>,
    /// What could not be checked, one sentence each.
    pub unchecked: Vec<String>,
}

/// Runs the files of `out` whole and measures what they keep of `direction`, beside `base`.
///
/// # Errors
/// If a file cannot be read, or on cancellation. What the runs show is no error.
pub fn prove(
    consumer: &Consumer<'_>,
    base: (&Opened, &Understood<'_>),
    (out, understood): (&Opened, Result<&Understood<'_>, &Refusal>),
    direction: &Direction,
) -> Result<Found, Error> {
    let mut found = Found::default();
    let made_up = made_up(base.1);
    let given = if consumer.prompts.is_empty() { &made_up } else { consumer.prompts };
    let prompts: Vec<&[u32]> =
        given.iter().take(PROMPTS).map(|p| &p[..p.len().min(POSITIONS)]).filter(|p| !p.is_empty()).collect();
    let run =
        Run { consumer, interface: &base.1.lm.interface, embedding: base.1.embedding.as_ref(), prompts: &prompts };
    if let Some(refusal) = base.1.lm.interface.unfed_on(consumer.runtime.is_cuda()) {
        if run.loaded(base.0, out, &mut found).is_some() {
            found.unchecked.push(format!("the output was loaded and not run: {refusal}"));
        }
        return Ok(found);
    }
    let written = run.published(base.0, out, &mut found)?;
    let width = direction.width();
    let graph = Graph::new(&out.model);
    let taken = base.1.lm.interface.inputs_embeds.as_deref();
    let embedding =
        (out.embedding.as_ref()).map(|model| EmbeddingFile::new(Graph::new(model), taken, Some(width))).transpose()?;
    let before = Looked { graph: &base.1.graph, embedding: base.1.embedding.as_ref(), width };
    let after = Looked { graph: &graph, embedding: embedding.as_ref(), width };
    let logits = &run.interface.logits;
    let (was, is) = (before.branches(logits), after.branches(logits));
    if was.len() != is.len() || is.is_empty() {
        found.failures.push(format!("the output computes `{logits}` in another way than the base"));
        return Ok(found);
    }
    let mut proof = StreamProof::default();
    for (at, branches) in was.iter().zip(&is).enumerate() {
        let judged = Judged { run: &run, opened: base.0, base: base.1, out: understood, direction };
        // the files as loaded take the branch without a cache
        let written = written.as_ref().filter(|_| at == 0);
        judged.branch((&before, branches.0), (&after, branches.1), written, &mut found, &mut proof)?;
    }
    found.stream = Some(proof);
    Ok(found)
}

/// What it takes to judge one branch of a model.
struct Judged<'a> {
    run: &'a Run<'a>,
    opened: &'a Opened,
    base: &'a Understood<'a>,
    out: Result<&'a Understood<'a>, &'a Refusal>,
    direction: &'a Direction,
}

impl Judged<'_> {
    /// Runs both sides and holds what the output keeps to what rounding explains.
    fn branch(
        &self,
        before: (&Looked<'_>, &Branch),
        after: (&Looked<'_>, &Branch),
        written: Option<&Vec<ArrayD<f32>>>,
        found: &mut Found,
        proof: &mut StreamProof,
    ) -> Result<(), Error> {
        let unit = self.direction.unit();
        let allowed = Allowed::for_base(self.base);
        let (mut was, mut is) = (Kept::default(), Kept::default());
        let ran = self.run.visit(before, None, |look| {
            was.take(&look.values, unit, allowed.at(look.rounding), 0.0);
            Ok(())
        });
        if let Some(reason) = self.run.failed(ran)? {
            found.unchecked.push(format!("what the stream keeps: ONNX Runtime cannot run the base: {reason}"));
            return Ok(());
        }
        if was.not_finite {
            found.unchecked.push("what the stream keeps: that of the base holds numbers that are not finite".into());
            return Ok(());
        }
        let largest = was.component;
        let mut apart = Some((0.0f64, 0.0f64));
        let mut coarsest = allowed.arithmetic;
        let ran = self.run.visit(after, None, |look| {
            is.take(&look.values, unit, allowed.at(look.rounding), largest);
            coarsest = coarsest.max(look.rounding);
            if let Some(written) = written {
                let more = difference(&written[look.prompt], &look.logits);
                apart = apart.zip(more).map(|(a, b)| (a.0.max(b.0), a.1.max(b.1)));
            }
            Ok(())
        });
        if let Some(reason) = self.run.failed(ran)? {
            found.failures.push(format!("ONNX Runtime runs the base and cannot run the output: {reason}"));
            return Ok(());
        }
        let bound = 256.0 * coarsest;
        if apart.is_none_or(|(apart, scale)| apart.is_nan() || apart > bound * scale.max(1.0)) {
            let own = self.run.own_difference(before, self.opened)?;
            found.failures.extend(other_logits(apart, own));
        }
        if is.positions == 0 {
            found.failures.push(
                "nothing that a normalisation or the unembedding reads is as wide as the direction in the output"
                    .into(),
            );
            return Ok(());
        }
        let judged = self.without_the_rest(after, &allowed, largest)?.unwrap_or_else(|| is.clone());
        let name = after.0.name(after.1.reads[judged.largest].place);
        if judged.not_finite {
            found.failures.push("the stream of the output holds numbers that are not finite".into());
        } else if judged.excess.is_nan() || judged.excess > 1.0 {
            let reader = after.0.graph.node(after.1.reads[judged.largest].reader).label();
            found.failures.push(format!(
                "`{name}`, which node `{reader}` reads, keeps {:.1} times what rounding explains of the direction: not every \
                 write is ablated",
                judged.excess
            ));
        }
        if was.excess <= 1.0 {
            found.unchecked.push(
                "the stream of the base holds nothing along the direction on these prompts, so nothing can be seen to go"
                    .into(),
            );
        }
        proof.probes += after.1.reads.len();
        proof.positions += is.positions;
        proof.share_before = proof.share_before.max(was.share);
        if proof.largest.is_empty() || is.share > proof.share_after {
            proof.share_after = is.share;
            proof.largest = name;
        }
        Ok(())
    }

    /// Where a part of the direction stays by intention, whether a write was missed is seen where all of it is taken off
    /// at run time, at the writes that were found. `None` where nothing stays.
    fn without_the_rest(
        &self,
        after: (&Looked<'_>, &Branch),
        allowed: &Allowed,
        largest: f64,
    ) -> Result<Option<Kept>, Error> {
        if self.direction.strength() >= 1.0 && self.direction.addition().is_none() {
            return Ok(None);
        }
        let understood = self.out.map_err(Clone::clone)?;
        let unit = self.direction.unit();
        let mut kept = Kept::default();
        self.run.visit(after, Some((&understood.lm.residual, unit)), |look| {
            kept.take(&look.values, unit, allowed.at(look.rounding), largest);
            Ok(())
        })?;
        Ok(Some(kept))
    }
}

/// What is wrong where the file as loaded and the graph that was looked at differ by more than rounding: `apart` is the
/// largest difference with the largest logit, `None` for another shape; `own` is the largest difference of the base,
/// which kernels of a few bits, chosen when a file is loaded, may bring.
fn other_logits(apart: Option<(f64, f64)>, own: Option<f64>) -> Option<String> {
    match apart {
        Some((apart, _)) if own.is_some_and(|own| apart <= 4.0 * own) => None,
        Some((apart, _)) => Some(format!(
            "the file as ONNX Runtime loads it computes other logits than the graph that was looked at (by {apart:.2e})"
        )),
        None => Some("the file as ONNX Runtime loads it returns logits of another shape".into()),
    }
}

/// A few rows of token ids, the same in every run.
fn made_up(base: &Understood<'_>) -> Vec<Vec<u32>> {
    // a file that does not tell its vocabulary has one of some size
    let vocabulary = base.vocabulary().unwrap_or(64).max(1);
    let marks = base.embedding.as_ref().map(marks).unwrap_or_default();
    let token = |row: usize, at: usize| {
        let first = (7919 * row + 104_729 * at + 5) % vocabulary;
        (first..first + vocabulary)
            .map(|token| token % vocabulary)
            .find(|token| !marks.contains(token))
            .unwrap_or(first)
    };
    let row = |row: usize| (0..ROW).map(|at| u32::try_from(token(row, at)).unwrap_or(0)).collect();
    (0..PROMPTS).map(row).collect()
}

/// Tokens that an embedding file may put features in the place of: the whole numbers that its graph holds.
fn marks(file: &EmbeddingFile<'_>) -> HashSet<usize> {
    if file.features.is_empty() {
        return HashSet::new();
    }
    let graph = &file.graph;
    let values = graph.nodes().flat_map(|node| graph.all_inputs(node));
    values.filter_map(|value| graph.const_ints(value)).flatten().filter_map(|n| usize::try_from(n).ok()).collect()
}

/// What is allowed for the types that a base computes in.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    /// What the stream may keep; the rounding of the read values' own type comes on top.
    stream: Tolerance,
    /// Relative rounding of the arithmetic, as it shows between two ways to run one graph.
    arithmetic: f64,
}

impl Allowed {
    fn for_base(base: &Understood<'_>) -> Self {
        let mut relative: f64 = 1e-5;
        let mut arithmetic: f64 = 0.0;
        let mut share: f64 = 0.0;
        let of_type = |dtype: Option<DataType>| match dtype {
            Some(DataType::FLOAT16) => 2f64.powi(-9),
            Some(DataType::BFLOAT16) => 2f64.powi(-6),
            _ => 0.0,
        };
        for (graph, writer) in base.writers() {
            for target in &writer.weights {
                let dtype = graph.model.tensor(target.tensor).dtype;
                relative = relative.max(of_type(Some(dtype)));
                arithmetic = arithmetic.max(rounding_of(dtype).unwrap_or(0.0));
                if let Some(quantised) = target.quantised.filter(|_| writer.treatment == Treatment::Rounded) {
                    let coarse = if quantised.bits <= 2 { 3e-2 } else { 5e-3 };
                    relative = relative.max(coarse);
                    share = share.max(0.2 * coarse);
                }
            }
            relative = relative.max(of_type(writer.writes.first().and_then(|write| graph.elem_type(write.value))));
        }
        let graph = &base.graph;
        // the stream itself is rounded to 8 bits there
        let fixed = graph.nodes().any(|node| graph.rounding(node) == ActivationRounding::Stored);
        // activations of 8 bits round differently as soon as anything before them does
        let rounds = [ActivationRounding::Dynamic, ActivationRounding::DynamicRows];
        let dynamic = graph.nodes().any(|node| rounds.contains(&graph.rounding(node)));
        Self {
            stream: Tolerance { rounding: if fixed { 2f64.powi(-8) } else { 0.0 }, relative, share },
            arithmetic: if fixed || dynamic { 2f64.powi(-8) } else { arithmetic },
        }
    }

    /// For values of a type that is rounded by `rounding`.
    fn at(&self, rounding: f64) -> Tolerance {
        Tolerance { rounding: rounding.max(self.stream.rounding), ..self.stream }
    }
}

/// One of the two models.
struct Looked<'a> {
    graph: &'a Graph<'a>,
    embedding: Option<&'a EmbeddingFile<'a>>,
    width: usize,
}

/// What leads to the logits, and where it reads the stream. A merged decoder has two of them, one without a KV cache and
/// one with it.
struct Branch {
    logits: ValueId,
    reads: Vec<Read>,
}

impl Looked<'_> {
    /// The branch that returns the value `logits`, then the one with a cache where there is one.
    fn branches(&self, logits: &str) -> Vec<Branch> {
        let plain = self.graph.value(logits);
        let cached = plain.and_then(|logits| self.graph.alternate(logits));
        let of = |logits| Branch { logits, reads: stream_reads(self.graph, logits, self.width) };
        plain.into_iter().chain(cached).map(of).collect()
    }

    fn bfloat16(&self) -> bool {
        let models = std::iter::once(self.graph.model).chain(self.embedding.map(|e| e.graph.model));
        models.flat_map(|model| &model.tensors).any(|t| t.dtype == DataType::BFLOAT16)
    }

    fn name(&self, place: Place) -> String {
        match place {
            Place::Value(value) => self.graph.name(value).to_string(),
            Place::UnnamedSum(node) => format!("sum of {}", self.graph.node(node).label()),
        }
    }
}

impl Branch {
    fn wanted(&self) -> Vec<Wanted> {
        let reads = self.reads.iter().map(|read| match read.place {
            Place::Value(value) => Wanted::Value(value),
            Place::UnnamedSum(node) => Wanted::Unnamed(node, 3),
        });
        reads.chain([Wanted::Value(self.logits)]).collect()
    }
}

/// The prompts and how they are fed.
struct Run<'a> {
    consumer: &'a Consumer<'a>,
    interface: &'a Interface,
    /// The file that makes the embeddings, as the base has it.
    embedding: Option<&'a EmbeddingFile<'a>>,
    prompts: &'a [&'a [u32]],
}

impl Run<'_> {
    /// Why a run failed, if it did; being stopped is no such reason.
    fn failed(&self, ran: Result<(), Error>) -> Result<Option<String>, Error> {
        self.check_cancelled()?;
        Ok(ran.err().map(|error| error.to_string()))
    }

    fn check_cancelled(&self) -> Result<(), Error> {
        match self.consumer.cancelled.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(RuntimeError::Cancelled.into()),
            false => Ok(()),
        }
    }

    /// Logits of every prompt, from the files as a consumer loads them; `None` where they cannot be run so.
    fn published(&self, base: &Opened, out: &Opened, found: &mut Found) -> Result<Option<Vec<ArrayD<f32>>>, Error> {
        let mut models = out.models();
        if self.consumer.runtime.provider() == "cpu"
            && models.any(|model| model.tensors.iter().any(|t| t.dtype == DataType::BFLOAT16))
        {
            found.unchecked.push(
                "the files as a consumer loads them were not run: ONNX Runtime's CPU provider computes no bfloat16; the \
                 same graph was run in float32"
                    .into(),
            );
            return Ok(None);
        }
        let Some((mut model, mut embedding)) = self.loaded(base, out, found) else { return Ok(None) };
        let mut all = Vec::new();
        for prompt in self.prompts {
            self.check_cancelled()?;
            match self.consume(&mut model, embedding.as_mut(), prompt) {
                Ok(logits) => all.push(logits),
                Err(reason) => {
                    let of_base = self.load(base).and_then(|(mut m, mut e)| self.consume(&mut m, e.as_mut(), prompt));
                    let words = format!("ONNX Runtime cannot run the output as it loads it: {reason}");
                    match of_base {
                        Ok(_) => found.failures.push(words),
                        Err(_) => found.unchecked.push(format!("{words}; nor the base")),
                    }
                    return Ok(None);
                }
            }
        }
        Ok(Some(all))
    }

    /// Loads the files as a consumer does. `None`, with what that means, where ONNX Runtime refuses them.
    fn loaded(&self, base: &Opened, out: &Opened, found: &mut Found) -> Option<(OrtModel, Option<OrtModel>)> {
        let reason = match self.load(out) {
            Ok(loaded) => return Some(loaded),
            Err(reason) => reason,
        };
        let (was, is) = (base.model.path.display(), out.model.path.display());
        match self.load(base) {
            Ok(_) => found.failures.push(format!("ONNX Runtime loads `{was}` and does not load `{is}`: {reason}")),
            Err(_) => found.unchecked.push(format!("ONNX Runtime loads neither `{was}` nor `{is}`: {reason}")),
        }
        None
    }

    /// The largest difference between the logits of a base as it is loaded and of its graph as it is looked at.
    fn own_difference(&self, before: (&Looked<'_>, &Branch), opened: &Opened) -> Result<Option<f64>, Error> {
        let Some(written) = self.published(opened, opened, &mut Found::default())? else { return Ok(None) };
        let mut most = Some(0.0f64);
        self.visit(before, None, |look| {
            let more = difference(&written[look.prompt], &look.logits);
            most = most.zip(more).map(|(most, more)| most.max(more.0));
            Ok(())
        })?;
        Ok(most)
    }

    fn load(&self, opened: &Opened) -> Result<(OrtModel, Option<OrtModel>), RuntimeError> {
        let load = |path: &Path| self.consumer.runtime.published(path);
        let embedding = opened.embedding.as_ref().map(|model| load(&model.path)).transpose()?;
        Ok((load(&opened.model.path)?, embedding))
    }

    fn consume(
        &self,
        model: &mut OrtModel,
        embedding: Option<&mut OrtModel>,
        prompt: &[u32],
    ) -> Result<ArrayD<f32>, RuntimeError> {
        let mut feeds = self.feeds(model, prompt)?;
        if let (Some(session), Some(file), Some(fed)) = (embedding, self.embedding, &self.interface.inputs_embeds) {
            let mut own = self.feeds(session, prompt)?;
            for feature in &file.features {
                if session.input_type(&feature.name).is_none() || own.iter().any(|(name, _)| *name == feature.name) {
                    continue;
                }
                let shape = IxDyn(&feature.shape);
                let none = match feature.dtype.is_float() {
                    true => Tensor::F32(ArrayD::zeros(shape)),
                    false => Tensor::I64(ArrayD::zeros(shape)),
                };
                own.push((feature.name.clone(), session.upload(none, feature.dtype)?));
            }
            let (mut outputs, mut taken) = (vec![file.graph.name(file.output).to_string()], vec![fed.clone()]);
            for other in file.others.iter().filter(|other| model.input_type(other).is_some()) {
                outputs.push(other.clone());
                taken.push(other.clone());
            }
            let inputs = own.iter().map(|(name, value)| (name.clone(), value)).collect();
            feeds.extend(taken.into_iter().zip(session.run(inputs, &outputs)?));
        }
        let inputs = feeds.iter().map(|(name, value)| (name.clone(), value)).collect();
        let outputs = [self.interface.logits.clone()];
        let found = model.run(inputs, &outputs)?;
        model.download(&found[0])
    }

    /// Everything that a model is fed for one prompt, as far as it has the inputs.
    fn feeds(
        &self,
        model: &OrtModel,
        prompt: &[u32],
    ) -> Result<Vec<(String, <OrtModel as Backend>::Value)>, RuntimeError> {
        let ids = self.ids(model, prompt);
        let mask = Array2::ones(ids.dim());
        let mut feeds = batch::feeds(model, self.interface, &ids, &mask, Layout::Left)?;
        let mut interface = self.interface.clone();
        interface.cache.retain(|slot| model.input_type(&slot.past).is_some());
        let cache = batch::empty_cache(model, &interface, ids.nrows(), ids.ncols())?;
        feeds.extend(interface.cache.iter().map(|slot| slot.past.clone()).zip(cache));
        if let Some((name, dtype)) =
            interface.use_cache_branch.as_ref().and_then(|name| Some((name, model.input_type(name)?)))
        {
            let flag = Tensor::Bool(ArrayD::from_elem(IxDyn(&[1]), false));
            feeds.push((name.clone(), model.upload(flag, dtype)?));
        }
        Ok(feeds)
    }

    /// The token ids `[rows, positions]` of one prompt: one row, unless the file fixes their number; the prompt over and
    /// over where it fixes the positions.
    fn ids(&self, model: &OrtModel, prompt: &[u32]) -> Array2<i64> {
        let fixed = model.input_shape(&self.interface.input_ids).unwrap_or_default();
        let size = |axis: usize| fixed.get(axis).copied().flatten().filter(|n| (1..=1 << 16).contains(n));
        let shape = (size(0).unwrap_or(1), size(1).unwrap_or(prompt.len()));
        Array2::from_shape_fn(shape, |(_, at)| i64::from(prompt[at % prompt.len()]))
    }

    /// Runs the whole graph of one side on every prompt, and hands on what it shows.
    fn visit(
        &self,
        (looked, branch): (&Looked<'_>, &Branch),
        ablated: Option<(&ResidualStream, &[f64])>,
        mut each: impl FnMut(Look) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let runtime = self.consumer.runtime;
        let wanted = branch.wanted();
        let how = Whole {
            wanted: &wanted,
            embedding: looked.embedding.zip(self.interface.inputs_embeds.as_deref()),
            ablated: ablated.map(|(stream, _)| stream),
            widen_bfloat16: runtime.provider() == "cpu" && looked.bfloat16(),
        };
        let WholeModel { bytes, outputs } = whole(looked.graph, &how)?;
        let mut model = runtime.session(&bytes, integers(looked.graph), Weights::Mapped)?;
        for (index, prompt) in self.prompts.iter().enumerate() {
            self.check_cancelled()?;
            let mut feeds = self.feeds(&model, prompt)?;
            if let Some((_, unit)) = ablated {
                let rows = self.ids(&model, prompt).nrows();
                let row: Vec<f32> = unit.iter().map(|v| *v as f32).collect::<Vec<_>>().repeat(rows);
                let row = ArrayD::from_shape_vec(IxDyn(&[rows, 1, unit.len()]), row).expect("one vector a row");
                feeds.push((DIRECTION_INPUT.into(), model.upload(Tensor::F32(row), DataType::FLOAT)?));
            }
            let inputs = feeds.iter().map(|(name, value)| (name.clone(), value)).collect();
            let mut found = model.run(inputs, &outputs)?;
            let logits = model.download(&found.pop().expect("the logits were wanted last"))?;
            let mut look = Look { prompt: index, values: Vec::new(), rounding: 0.0, logits };
            for (at, value) in found.iter().enumerate() {
                let Some(of_type) = rounding_of(OrtModel::element_type(value)) else { continue };
                if let Some(rows) = Rows::of(&model.download(value)?, branch.reads[at].width, looked.width) {
                    look.rounding = look.rounding.max(of_type);
                    look.values.push((at, rows));
                }
            }
            each(look)?;
        }
        Ok(())
    }
}

/// What a run of one prompt shows.
struct Look {
    prompt: usize,
    /// What each read holds, by its place in the branch.
    values: Vec<(usize, Rows)>,
    /// Relative rounding of the coarsest type that they are held in.
    rounding: f64,
    logits: ArrayD<f32>,
}

/// Relative rounding of a float type: half a spacing at 1.
fn rounding_of(dtype: DataType) -> Option<f64> {
    match dtype {
        DataType::FLOAT | DataType::DOUBLE => Some(2f64.powi(-24)),
        DataType::FLOAT16 => Some(2f64.powi(-11)),
        DataType::BFLOAT16 => Some(2f64.powi(-8)),
        _ => None,
    }
}

impl crate::report::VerifyResult {
    /// Takes in what running the published files showed.
    pub fn take(&mut self, found: Found) {
        self.passed &= found.failures.is_empty();
        self.failures.extend(found.failures);
        self.unchecked.extend(found.unchecked);
        self.stream = found.stream;
    }
}
