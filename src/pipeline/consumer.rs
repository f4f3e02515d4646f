//! The proof that does not look through the eyes of the edit: what was written is loaded as a consumer loads it and run,
//! and every value that a normalisation or the unembedding reads is looked at in the whole graph ([`crate::proof`]).

mod judged;
mod run;

use std::collections::HashSet;

pub use run::{Consumer, Found};

use self::judged::Judged;
use self::run::{Looked, Run};
use super::opened::{Opened, Understood};
use crate::edit::Edit;
use crate::error::Error;
use crate::lm::{EmbeddingFile, Refusal};
use crate::onnx::Graph;
use crate::report::StreamProof;

/// Prompts that are run, at most; all their positions are looked at.
const PROMPTS: usize = 4;

/// Positions of a prompt that are run, at most.
const POSITIONS: usize = 160;

/// Tokens of a made-up prompt.
const ROW: usize = 24;

/// Runs the files of `out` whole and measures what they keep of what `edit` ablates, beside `base`.
///
/// # Errors
/// If a file cannot be read, or on cancellation. What the runs show is no error.
pub fn prove(
    consumer: &Consumer<'_>,
    base: (&Opened, &Understood<'_>),
    (out, understood): (&Opened, Result<&Understood<'_>, &Refusal>),
    edit: &Edit,
) -> Result<Found, Error> {
    let mut found = Found::default();
    let made_up = made_up(base.1);
    let given = if consumer.prompts.is_empty() { &made_up } else { consumer.prompts };
    let prompts: Vec<&[u32]> =
        given.iter().take(PROMPTS).map(|p| &p[..p.len().min(POSITIONS)]).filter(|p| !p.is_empty()).collect();
    let interface = &base.1.lm.interface;
    let run = Run { consumer, interface, embedding: base.1.embedding.as_ref(), prompts: &prompts };
    // the CPU provider of ONNX Runtime 1.32 can end the process where it loads weights that are packed for CUDA
    if let Some(refusal) = interface.cuda_only.as_ref().filter(|_| !consumer.runtime.is_cuda()) {
        found.unchecked.push(format!("the output was neither loaded nor run: {refusal}"));
        return Ok(found);
    }
    if let Some(refusal) = &interface.unfed {
        if run.loaded(base.0, out, &mut found).is_some() {
            found.unchecked.push(format!("the output was loaded and not run: {refusal}"));
        }
        return Ok(found);
    }
    let written = run.published(base.0, out, &mut found)?;
    let width = edit.width();
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
        let judged = Judged { run: &run, opened: base.0, base: base.1, out: understood, edit };
        // the files as loaded take the branch without a cache
        let written = written.as_ref().filter(|_| at == 0);
        judged.branch((&before, branches.0), (&after, branches.1), written, &mut found, &mut proof)?;
    }
    found.stream = edit.ablation().map(|_| proof);
    Ok(found)
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

impl crate::report::VerifyResult {
    /// Takes in what running the published files showed.
    pub fn take(&mut self, found: Found) {
        self.passed &= found.failures.is_empty();
        self.failures.extend(found.failures);
        self.unchecked.extend(found.unchecked);
        self.stream = found.stream;
    }
}
