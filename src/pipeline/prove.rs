//! Verifying what is on disk: one model, or a whole package against its base.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::beside;
use super::consumer::{self, Consumer, Found};
use super::opened::{Opened, Plans, Understood};
use super::package::{Package, Role, Variant, shown};
use super::publish::of_variant;
use super::variant::Running;
use super::{BakeOptions, verdict, verify_prompts};
use crate::bake::{self as baking, BakePlan, PlanOptions, verify_bytes};
use crate::error::{Error, Kind};
use crate::lm::{EmbeddingFile, Refusal};
use crate::method::direction::Direction;
use crate::onnx::{Graph, Model};
use crate::report::package::VariantVerify;
use crate::report::{FileRow, PackageVerify, Unexplained, UnexplainedKind, VerifyResult};

/// Verifies `out` against what `plans` make of `base`: bytes and leak, and its logits where it can be run.
///
/// # Errors
/// If a file cannot be read, if `out` is not understood, or if a run fails. What is found is no error.
pub fn model(
    base: (&Opened, &Understood<'_>),
    out: &Opened,
    plans: &Plans,
    direction: &Direction,
    runs: &Runs<'_>,
) -> Result<VerifyResult, Error> {
    let bytes = plans.verify(base.0, out)?;
    let running = match runs {
        Runs::Compared(running) => Some(*running),
        Runs::Not | Runs::Whole(_) => None,
    };
    let written = out.understand();
    let other = other_model(base.1, &written);
    let written = running.and_then(|_| written.ok());
    let unfed = written.as_ref().and_then(|out| [base.1, out].into_iter().find_map(|m| m.lm.interface.unfed.as_ref()));
    let logits = match (running, &written) {
        (Some(running), Some(out)) if unfed.is_none() => Some(running.check(base.1, out, direction)?),
        _ => None,
    };
    let mut found = verdict(&bytes, logits.as_ref(), plans.inexact());
    found.take(match runs {
        Runs::Not => {
            let what = "that the written model loads, and what its stream keeps of the direction: it was not run, and \
                        only its bytes were compared";
            Found { unchecked: vec![what.into()], ..Found::default() }
        }
        Runs::Whole(consumer) => {
            let mut whole = consumer::prove(consumer, base, out, direction)?;
            whole
                .unchecked
                .push("the logits against run-time ablation of the base: there are no prompts for it".into());
            whole
        }
        Runs::Compared(running) => {
            let prompts = verify_prompts(running.chat, running.prompts)?;
            let Running { runtime, cancelled, .. } = **running;
            consumer::prove(&Consumer { runtime, prompts: &prompts, cancelled }, base, out, direction)?
        }
    });
    found.passed &= other.is_none();
    found.failures.extend(other);
    Ok(found)
}

/// How what was written is another model than its base: one that is not understood, or of other dimensions. Lancet
/// could not verify, measure or edit such a file again.
fn other_model(base: &Understood<'_>, written: &Result<Understood<'_>, Refusal>) -> Option<String> {
    let size = |model: &Understood<'_>| (model.lm.n_layers(), model.lm.d_model());
    match written {
        Ok(written) if size(written) == size(base) => None,
        Ok(written) => {
            let ((layers, width), (was, wide)) = (size(written), size(base));
            Some(format!("the output has {layers} layers of width {width}, the base {was} of {wide}"))
        }
        Err(refusal) => Some(format!("the output is not understood any more: {refusal}")),
    }
}

/// How a written model is run when it is verified.
pub enum Runs<'a> {
    /// Not at all.
    Not,
    /// Its files whole, and what its stream keeps is looked at.
    Whole(Consumer<'a>),
    /// The same, and its logits are compared with run-time ablation of the base.
    Compared(&'a Running<'a>),
}

impl<'a> Runs<'a> {
    /// Whether whoever runs it asked to stop.
    fn is_cancelled(&self) -> bool {
        match self {
            Self::Not => false,
            Self::Whole(consumer) => consumer.cancelled.load(Ordering::Relaxed),
            Self::Compared(running) => running.cancelled.load(Ordering::Relaxed),
        }
    }
}

/// What a bake of `base` with these options plans. Which quantised writers it gives to nodes because rounding leaves or
/// costs too much is computed again: no output is asked.
///
/// # Errors
/// As [`Understood::plan`], or if a weight cannot be read.
pub fn plans(
    base: (&Opened, &Understood<'_>),
    direction: &Direction,
    options: &BakeOptions<'_>,
) -> Result<Plans, Error> {
    let (opened, model) = base;
    let asked = options.plan(Vec::new());
    let again = |by_nodes| model.plan(direction, &PlanOptions { by_nodes, ..asked.clone() });
    let mut plans = model.plan(direction, &asked)?;
    // where nodes cannot be inserted, rounding is what there is
    if let (Some(file), Some(plan)) = (&opened.embedding, &mut plans.embedding)
        && let Some(past) = past_limits(file, plan, options)?
        && let Ok(other) = again(past)
    {
        *plan = other.embedding.expect("it was planned before");
    }
    if let Some(past) = past_limits(&opened.model, &plans.main, options)?
        && let Ok(other) = again(past)
    {
        plans.main = other.main;
    }
    Ok(plans)
}

/// The quantised writers of one file that get nodes instead, if any: they are rounded in memory to tell.
fn past_limits(model: &Model, plan: &BakePlan, options: &BakeOptions<'_>) -> Result<Option<BTreeSet<String>>, Error> {
    if !options.may_fall_back() {
        return Ok(None);
    }
    Ok(options.past_limits(&baking::rehearse(model, plan, options.cancelled)?, plan))
}

/// An embedding file without a model: its plan, which is made for the width of the direction.
///
/// # Errors
/// If the graph makes no embedding, or one of another width.
pub fn embedding_plan(base: &Model, direction: &Direction, options: &PlanOptions) -> Result<BakePlan, Error> {
    let file = EmbeddingFile::new(Graph::new(base), None, Some(direction.width()))?;
    let writer = std::slice::from_ref(&file.writer);
    Ok(BakePlan::new(&file.graph, writer, direction.width(), direction, options)?)
}

/// The same as [`model`] for an embedding file without one.
///
/// # Errors
/// If a file cannot be read.
pub fn embedding(base: &Model, out: &Path, plan: &BakePlan) -> Result<VerifyResult, Error> {
    Ok(verdict(&verify_bytes(base, &Model::open(out)?, plan)?, None, plan.inexact().into_iter().collect()))
}

/// Adds what was found beside a model to what was found in it.
pub fn with_files(mut result: VerifyResult, base: &Opened, out: &Opened) -> Result<VerifyResult, Error> {
    let found = beside::of_file(base, out)?;
    result.passed &= found.is_empty();
    result.failures.extend(found.iter().map(sentence));
    result.unexplained.extend(found);
    Ok(result)
}

/// Verifies the folder `out` against `base`: every variant, and that nothing else came in, went away or changed.
///
/// # Errors
/// If a file cannot be read, or a run is interrupted, with the file's name. What is found is no error.
pub fn package(
    base: &Package,
    out: &Path,
    direction: &Direction,
    options: &BakeOptions<'_>,
    runs: &Runs<'_>,
) -> Result<PackageVerify, Error> {
    if !out.is_dir() {
        return Err(Error::usage(
            format!("`{}` is a folder with several models, `{}` is no folder", base.root.display(), out.display()),
            "pass two folders, or two files",
        ));
    }
    let mut result = PackageVerify { unexplained: beside::folder(base, out, direction)?, ..Default::default() };
    for variant in &base.variants {
        if !out.join(&variant.relative).is_file() {
            let reason = Some("not in the output".into());
            result.left_out.push(FileRow { file: variant.name.clone(), reason });
            continue;
        }
        let verify = match one(variant, out, direction, options, runs) {
            Ok(verify) => verify,
            Err(error) => unlike(error, runs).map_err(of_variant(base, variant))?,
        };
        result.variants.push(VariantVerify { model: variant.name.clone(), verify });
    }
    if result.variants.is_empty() {
        result.failures.push("the output has no model of the base".into());
    }
    result.failures.extend(result.unexplained.iter().map(sentence));
    for other in &base.others {
        let file = shown(&other.relative);
        if !result.unexplained.iter().any(|u| other.reads.iter().any(|path| shown(path) == u.file)) {
            result.copied.push(FileRow { file, reason: Some(other.reason.clone()) });
        }
    }
    result.passed = result.failures.is_empty() && result.variants.iter().all(|v| v.verify.passed);
    Ok(result)
}

/// A model of the output that cannot be held against the base at all does not verify.
fn unlike(error: Error, runs: &Runs<'_>) -> Result<VerifyResult, Error> {
    let interrupted = runs.is_cancelled();
    if interrupted || error.kind() != Kind::Failed {
        return Err(error);
    }
    let mut words = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        words.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Ok(VerifyResult { passed: false, failures: vec![words], ..Default::default() })
}

/// A difference as a sentence.
fn sentence(found: &Unexplained) -> String {
    match found.kind {
        UnexplainedKind::Tensor | UnexplainedKind::Node => {
            format!("`{}` of `{}` {}", found.name, found.file, found.detail)
        }
        _ => format!("`{}` {}", found.file, found.detail),
    }
}

fn one(
    variant: &Variant,
    out: &Path,
    direction: &Direction,
    options: &BakeOptions<'_>,
    runs: &Runs<'_>,
) -> Result<VerifyResult, Error> {
    let place = out.join(&variant.relative);
    if variant.role == Role::Embedding {
        let base = Model::open(&variant.files.onnx)?;
        let asked = options.plan(Vec::new());
        let mut plan = embedding_plan(&base, direction, &asked)?;
        if let Some(by_nodes) = past_limits(&base, &plan, options)?
            && let Ok(other) = embedding_plan(&base, direction, &PlanOptions { by_nodes, ..asked })
        {
            plan = other;
        }
        return Ok(within(variant, embedding(&base, &place, &plan)?));
    }
    let base = Opened::of(variant.files.clone())?;
    let understood = base.understand()?;
    let written = base.again(place.parent().unwrap_or(out))?;
    let plans = plans((&base, &understood), direction, options)?;
    Ok(within(variant, model((&base, &understood), &written, &plans, direction, runs)?))
}

/// The same with files relative to the package.
fn within(variant: &Variant, mut found: VerifyResult) -> VerifyResult {
    let folder = variant.relative.parent().unwrap_or(Path::new(""));
    for difference in &mut found.unexplained {
        difference.file = shown(&folder.join(&difference.file));
    }
    found
}
