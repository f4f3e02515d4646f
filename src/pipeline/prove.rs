//! Verifying what is on disk: one model, or a whole package against its base.

use std::path::Path;

use super::opened::{Opened, Plans, Understood};
use super::package::{Package, Role, Variant, shown};
use super::publish::{equal, of_variant};
use super::variant::Running;
use super::verdict;
use crate::bake::{self as baking, BakePlan, PlanOptions, verify_bytes};
use crate::error::Error;
use crate::lm::EmbeddingFile;
use crate::method::direction::Direction;
use crate::onnx::{Graph, Model};
use crate::report::package::VariantVerify;
use crate::report::{FileRow, PackageVerify, VerifyResult};

/// Verifies `out` against what `plans` make of `base`: bytes and leak, and its logits where it can be run.
///
/// # Errors
/// If a file cannot be read, if `out` is not understood, or if a run fails. What is found is no error.
pub fn model(
    base: (&Opened, &Understood<'_>),
    out: &Opened,
    plans: &Plans,
    direction: &Direction,
    running: Option<&Running<'_>>,
) -> Result<VerifyResult, Error> {
    let written = running.map(|_| out.understand()).transpose()?;
    let unfed = written.as_ref().and_then(|out| [base.1, out].into_iter().find_map(|m| m.lm.interface.unfed.as_ref()));
    let logits = match (running, &written) {
        (Some(running), Some(out)) if unfed.is_none() => Some(running.check(base.1, out, direction)?),
        _ => None,
    };
    let mut found = verdict(&plans.verify(base.0, out)?, logits.as_ref(), plans.inexact());
    found.unchecked.extend(unfed.map(|refusal| format!("the model was not run: {refusal}")));
    Ok(found)
}

/// What a bake planned, as the metadata of what it wrote tell: which quantised writers were rounded, and which got nodes.
/// `direction` is the one that [`baking::as_baked`] gives.
///
/// # Errors
/// As [`Understood::plan`].
pub fn plans(
    base: &Understood<'_>,
    out: &Opened,
    direction: &Direction,
    options: &PlanOptions,
) -> Result<Plans, Error> {
    let main = base.plan(direction, &as_written(options, &out.model))?;
    match &out.embedding {
        Some(embedding) => Ok(Plans { main: main.main, ..base.plan(direction, &as_written(options, embedding))? }),
        None => Ok(main),
    }
}

fn as_written(options: &PlanOptions, out: &Model) -> PlanOptions {
    let quantised = baking::mode_of(out).unwrap_or(options.quantised);
    PlanOptions { quantised, by_nodes: baking::by_nodes_of(out), ..options.clone() }
}

/// An embedding file without a model: its plan, which is made for the width of the direction.
///
/// # Errors
/// If the graph makes no embedding, or one of another width.
pub fn embedding_plan(base: &Model, direction: &Direction, options: &PlanOptions) -> Result<BakePlan, Error> {
    let file = EmbeddingFile::new(Graph::new(base), Some(direction.width()))?;
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

/// Verifies the folder `out` against `base`: every variant that it has, and that no other model changed or came in.
///
/// # Errors
/// If a file cannot be read, a graph is not understood, or a run fails, with the file's name.
pub fn package(
    base: &Package,
    out: &Path,
    direction: &Direction,
    options: &PlanOptions,
    running: Option<&Running<'_>>,
) -> Result<PackageVerify, Error> {
    let found = Package::find(out, &[])?;
    if !found.folder {
        return Err(Error::usage(
            format!("`{}` is a folder with several models, `{}` is one file", base.root.display(), out.display()),
            "pass two folders, or two files",
        ));
    }
    let mut result = PackageVerify::default();
    for variant in &base.variants {
        if !out.join(&variant.relative).is_file() {
            let reason = Some("not in the output".into());
            result.left_out.push(FileRow { file: variant.name.clone(), reason });
            continue;
        }
        let verify = one(variant, out, direction, options, running).map_err(of_variant(base, variant))?;
        result.variants.push(VariantVerify { model: variant.name.clone(), verify });
    }
    if result.variants.is_empty() {
        result.failures.push("the output has no model of the base".into());
    }
    for other in &base.others {
        let file = shown(&other.relative);
        let own = other.reads.iter().filter(|path| !base.variants.iter().any(|v| v.writes.contains(*path)));
        let mut same = true;
        for path in own {
            let (a, b) = (base.root.join(path), out.join(path));
            same &= b.is_file() && equal(&a, &b, None)?;
        }
        match same {
            true => result.copied.push(FileRow { file, reason: Some(other.reason.clone()) }),
            false => result.failures.push(format!("`{file}` is not in the output as it was")),
        }
    }
    let known: Vec<&Path> = base.onnx_files().collect();
    for path in found.onnx_files().filter(|path| !known.contains(path)) {
        result.failures.push(format!("`{}` is not in the base", shown(path)));
    }
    result.passed = result.failures.is_empty() && result.variants.iter().all(|v| v.verify.passed);
    Ok(result)
}

fn one(
    variant: &Variant,
    out: &Path,
    direction: &Direction,
    options: &PlanOptions,
    running: Option<&Running<'_>>,
) -> Result<VerifyResult, Error> {
    let place = out.join(&variant.relative);
    if variant.role == Role::Embedding {
        let base = Model::open(&variant.files.onnx)?;
        let written = Model::open(&place)?;
        let direction = baking::as_baked(&written, direction)?;
        let plan = embedding_plan(&base, &direction, &as_written(options, &written))?;
        return embedding(&base, &place, &plan);
    }
    let base = Opened::of(variant.files.clone())?;
    let understood = base.understand()?;
    let written = base.again(place.parent().unwrap_or(out))?;
    let direction = baking::as_baked(&written.model, direction)?;
    let plans = plans(&understood, &written, &direction, options)?;
    model((&base, &understood), &written, &plans, &direction, running)
}
