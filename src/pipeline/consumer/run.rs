//! Running the whole graph of one side, and the files as a consumer loads them.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use ndarray::{Array2, ArrayD, IxDyn};

use crate::edit::Ablated;
use crate::error::Error;
use crate::instrument::{Wanted, Whole, WholeModel, direction_input, whole};
use crate::lm::{EmbeddingFile, Interface, ResidualStream};
use crate::onnx::{DataType, Graph, ValueId};
use crate::pipeline::engine::integers;
use crate::pipeline::opened::Opened;
use crate::proof::measure::{Rows, difference};
use crate::proof::{Place, Read, stream_reads};
use crate::report::StreamProof;
use crate::runtime::batch::{self, Layout};
use crate::runtime::session::{OrtModel, Runtime, Weights};
use crate::runtime::{Backend, RuntimeError, Tensor};

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

/// One of the two models.
pub(super) struct Looked<'a> {
    pub graph: &'a Graph<'a>,
    pub embedding: Option<&'a EmbeddingFile<'a>>,
    pub width: usize,
}

/// What leads to the logits, and where it reads the stream. A merged decoder has two of them, one without a KV cache and
/// one with it.
pub(super) struct Branch {
    pub logits: ValueId,
    pub reads: Vec<Read>,
}

impl Looked<'_> {
    /// The branch that returns the value `logits`, then the one with a cache where there is one.
    pub fn branches(&self, logits: &str) -> Vec<Branch> {
        let plain = self.graph.value(logits);
        let cached = plain.and_then(|logits| self.graph.alternate(logits));
        let of = |logits| Branch { logits, reads: stream_reads(self.graph, logits, self.width) };
        plain.into_iter().chain(cached).map(of).collect()
    }

    fn bfloat16(&self) -> bool {
        let models = std::iter::once(self.graph.model).chain(self.embedding.map(|e| e.graph.model));
        models.flat_map(|model| &model.tensors).any(|t| t.dtype == DataType::BFLOAT16)
    }

    pub fn name(&self, place: Place) -> String {
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
pub(super) struct Run<'a> {
    pub consumer: &'a Consumer<'a>,
    pub interface: &'a Interface,
    /// The file that makes the embeddings, as the base has it.
    pub embedding: Option<&'a EmbeddingFile<'a>>,
    pub prompts: &'a [&'a [u32]],
}

impl Run<'_> {
    /// Why a run failed, if it did; being stopped is no such reason.
    pub fn failed(&self, ran: Result<(), Error>) -> Result<Option<String>, Error> {
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
    pub fn published(&self, base: &Opened, out: &Opened, found: &mut Found) -> Result<Option<Vec<ArrayD<f32>>>, Error> {
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
    pub fn loaded(&self, base: &Opened, out: &Opened, found: &mut Found) -> Option<(OrtModel, Option<OrtModel>)> {
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
    pub fn own_difference(&self, before: (&Looked<'_>, &Branch), opened: &Opened) -> Result<Option<f64>, Error> {
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
    pub fn visit(
        &self,
        (looked, branch): (&Looked<'_>, &Branch),
        ablated: Option<(&ResidualStream, &[Ablated])>,
        mut each: impl FnMut(Look) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let runtime = self.consumer.runtime;
        let wanted = branch.wanted();
        let how = Whole {
            wanted: &wanted,
            embedding: looked.embedding.zip(self.interface.inputs_embeds.as_deref()),
            ablated: ablated.map(|(stream, all)| (stream, all.len())),
            widen_bfloat16: runtime.provider() == "cpu" && looked.bfloat16(),
        };
        let WholeModel { bytes, outputs, steered } = whole(looked.graph, &how)?;
        let mut model = runtime.session(&bytes, integers(looked.graph), Weights::Mapped)?;
        for (index, prompt) in self.prompts.iter().enumerate() {
            self.check_cancelled()?;
            let mut feeds = self.feeds(&model, prompt)?;
            // where nothing depends on them, the inputs are gone
            let acts = ablated.filter(|_| steered.contains(&true));
            for (n, one) in acts.iter().flat_map(|(_, all)| all.iter().enumerate()) {
                let rows = self.ids(&model, prompt).nrows();
                let row: Vec<f32> = one.direction().hook().repeat(rows);
                let row = ArrayD::from_shape_vec(IxDyn(&[rows, 1, one.unit().len()]), row).expect("one vector a row");
                feeds.push((direction_input(n), model.upload(Tensor::F32(row), DataType::FLOAT)?));
            }
            let inputs = feeds.iter().map(|(name, value)| (name.clone(), value)).collect();
            let mut found = model.run(inputs, &outputs)?;
            let logits = model.download(&found.pop().expect("the logits were wanted last"))?;
            let mut look = Look { prompt: index, values: Vec::new(), rounding: 0.0, logits };
            // what no steered write leads to is as it was
            let seen = found.iter().enumerate().filter(|(at, _)| ablated.is_none() || steered[*at]);
            for (at, value) in seen {
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
pub(super) struct Look {
    pub prompt: usize,
    /// What each read holds, by its place in the branch.
    pub values: Vec<(usize, Rows)>,
    /// Relative rounding of the coarsest type that they are held in.
    pub rounding: f64,
    pub logits: ArrayD<f32>,
}

/// Relative rounding of float32: half a spacing at 1.
pub(super) const ROUNDING_OF_SINGLES: f64 = 1.0 / 16_777_216.0;

/// Relative rounding of a float type: half a spacing at 1.
pub(super) fn rounding_of(dtype: DataType) -> Option<f64> {
    match dtype {
        DataType::FLOAT | DataType::DOUBLE => Some(ROUNDING_OF_SINGLES),
        DataType::FLOAT16 => Some(2f64.powi(-11)),
        DataType::BFLOAT16 => Some(2f64.powi(-8)),
        _ => None,
    }
}
