//! Runs prompts through instrumented sessions, in batches, and hands each row's results on.

use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array3, Axis};

use super::opened::Understood;
use crate::error::Error;
use crate::instrument::{self, DIRECTION_INPUT, Request, SessionModel};
use crate::lm::Interface;
use crate::onnx::DataType;
use crate::runtime::batch::{self, Batch};
use crate::runtime::session::{OrtModel, Runtime};
use crate::runtime::{Backend, RuntimeError, Tensor};

/// Who is told how far the work is.
pub trait Observer: Sync {
    /// A stage of `total` steps begins.
    fn start(&self, stage: &str, total: u64);
    /// Some steps are done.
    fn advance(&self, steps: u64);
    /// The stage is over.
    fn finish(&self);
    /// Something worth a line.
    fn note(&self, text: &str);
}

/// Says nothing.
pub struct Silent;

impl Observer for Silent {
    fn start(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
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
}

/// A loaded instrumented model.
pub struct Session {
    model: OrtModel,
    built: SessionModel,
    interface: Interface,
}

impl Engine<'_> {
    /// Builds and loads a session.
    ///
    /// # Errors
    /// If ONNX Runtime refuses the model.
    pub fn session(&self, mut request: Request) -> Result<Session, Error> {
        request.widen_bfloat16 = self.runtime.provider() == "cpu" && self.has_bfloat16();
        let Understood { graph, lm, embedding } = self.model;
        let built = instrument::instrument(graph, lm, embedding.as_ref(), &request)?;
        let model = self.runtime.session(&built.bytes)?;
        // inputs that pruning removed are not fed
        let mut interface = self.model.lm.interface.clone();
        interface.cache.retain(|slot| built.inputs.contains(&slot.past));
        Ok(Session { model, built, interface })
    }

    /// Whether the file stores bfloat16 tensors.
    pub fn has_bfloat16(&self) -> bool {
        let embedding = self.model.embedding.as_ref().map(|e| e.graph.model);
        let mut models = embedding.into_iter().chain([self.model.graph.model]);
        models.any(|model| model.tensors.iter().any(|t| t.dtype == DataType::BFLOAT16))
    }

    /// Runs every row and hands the results on, in no particular order. `directions` holds a direction
    /// `[d_model]` each; it is read only by sessions with an ablation.
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
        for members in batch::plan(&lengths, self.batch, &session.interface) {
            self.check_cancelled()?;
            self.run_batch(session, rows, directions, &members, &mut each)?;
        }
        Ok(())
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
        rows: &[Row<'_>],
        directions: &[Vec<f32>],
        members: &[usize],
        each: &mut impl FnMut(RowResult) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Session { model, built, interface } = session;
        let prompts: Vec<&[u32]> = members.iter().map(|&i| rows[i].tokens).collect();
        let batch = Batch::new(&prompts, self.pad);
        let mut feeds = batch::feeds(model, interface, &batch.ids, &batch.mask)?;
        if built.inputs.iter().any(|name| name == DIRECTION_INPUT) {
            let width = self.model.lm.d_model();
            let mut values = Array3::zeros((members.len(), 1, width));
            for (at, &row) in members.iter().enumerate() {
                values.index_axis_mut(Axis(0), at).assign(
                    &ndarray::ArrayView2::from_shape((1, width), &directions[rows[row].direction])
                        .expect("a direction is d_model wide"),
                );
            }
            feeds.push((DIRECTION_INPUT.into(), model.upload(Tensor::F32(values.into_dyn()), DataType::FLOAT)?));
        }
        let cache = batch::empty_cache(model, interface, members.len(), batch.ids.ncols())?;
        let mut inputs: Vec<_> = feeds.iter().map(|(name, value)| (name.clone(), value)).collect();
        inputs.extend(interface.cache.iter().zip(&cache).map(|(slot, value)| (slot.past.clone(), value)));
        let outputs: Vec<String> = built.probes.iter().chain(&built.logits).cloned().collect();
        let found = model.run(inputs, &outputs)?;
        let mut arrays = found.iter().map(|v| model.download(v)).collect::<Result<Vec<_>, _>>()?;
        let logits = built.logits.as_ref().map(|_| arrays.pop().expect("logits were asked for last"));
        for (at, &row) in members.iter().enumerate() {
            let of_row =
                |array: &ndarray::ArrayD<f32>| array.index_axis(Axis(0), at).iter().copied().collect::<Vec<f32>>();
            let logits = logits.as_ref().map(of_row).unwrap_or_default();
            if logits.iter().any(|v| !v.is_finite()) {
                let ids: Vec<String> = rows[row].tokens.iter().take(12).map(ToString::to_string).collect();
                return Err(RuntimeError::NotFinite { prompt: ids.join(" ") }.into());
            }
            each(RowResult { row, probes: arrays.iter().map(of_row).collect(), logits })?;
        }
        Ok(())
    }

    /// Greedy answers to every prompt, in order, without stop tokens.
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
        let request = Request { logits: 1, cache: true, last_positions: 1, ..Request::default() };
        let mut session = self.session(request.clone())?;
        let mut decoder = match self.model.lm.cached {
            Some(_) => Some(self.session(Request { cached_branch: true, ..request })?),
            None => None,
        };
        let limits = crate::runtime::generate::Limits { max_new_tokens, stop: stop.to_vec(), pad: self.pad };
        let logits = session.built.logits.clone().expect("logits were asked for");
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let mut answers = vec![Vec::new(); prompts.len()];
        for members in batch::plan(&lengths, self.batch, &session.interface) {
            let rows: Vec<&[u32]> = members.iter().map(|&i| prompts[i].as_slice()).collect();
            let interface = decoder.as_ref().map_or(&session.interface, |d| &d.interface).clone();
            let found = crate::runtime::generate::greedy(
                &mut session.model,
                decoder.as_mut().map(|d| &mut d.model),
                &interface,
                &logits,
                &rows,
                &limits,
                self.cancelled,
            )?;
            done(members.len() as u64);
            for (index, answer) in members.into_iter().zip(found) {
                answers[index] = answer;
            }
        }
        Ok(answers)
    }
}
