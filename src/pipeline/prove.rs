//! Verifying what is on disk against its base: every variant, and what lies beside them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::beside;
use super::consumer::{self, Consumer, Found};
use super::hindered;
use super::opened::{Opened, Plans, Understood};
use super::package::{Other, Package, Variant, shown};
use super::running::Running;
use super::understood::UnderstoodVariant;
use super::{BakeOptions, verdict, verify_prompts};
use crate::bake::{self as baking, BakePlan, PlanOptions};
use crate::edit::Edit;
use crate::error::{Error, Kind};
use crate::lm::Refusal;
use crate::onnx::Model;
use crate::report::{FileKind, FileRow, PackageVerify, VariantVerify, VerifyResult};

/// What was written for a variant, opened again.
pub struct WrittenVariant<'a> {
    /// Its files.
    pub opened: &'a Opened,
    /// The language model in them, or why it is not understood; `None` for an embedding file without a model.
    pub model: Option<Result<&'a Understood<'a>, &'a Refusal>>,
}

/// Verifies `out` against what `plans` make of `base`: bytes and leak, and its logits where it can be run.
///
/// # Errors
/// If a file cannot be read, or if a run fails. What is found is no error.
pub fn variant(
    base: &UnderstoodVariant<'_>,
    out: &WrittenVariant<'_>,
    plans: &Plans,
    edit: &Edit,
    runs: &Runs<'_>,
) -> Result<VerifyResult, Error> {
    let bytes = plans.verify(base.opened, out.opened)?;
    let (Some(model), Some(written)) = (&base.model, out.model) else {
        return Ok(verdict(&bytes, None, plans.inexact()));
    };
    let running = match runs {
        Runs::Compared(running) => Some(*running),
        Runs::Not | Runs::Whole(_) => None,
    };
    let fed = |on: &Running<'_>, model: &Understood<'_>| model.lm.interface.unfed_on(on.runtime.is_cuda()).is_none();
    let logits = match (running, written) {
        (Some(running), Ok(written)) if fed(running, model) && fed(running, written) => {
            Some(running.check(model, written, edit)?)
        }
        _ => None,
    };
    let mut found = verdict(&bytes, logits.as_ref(), plans.inexact());
    let of_base = (base.opened, model);
    found.take(match runs {
        Runs::Not => {
            let what = "that the written model loads, and what its stream keeps of the direction: it was not run, and \
                        only its bytes were compared";
            Found { unchecked: vec![what.into()], ..Found::default() }
        }
        Runs::Whole(consumer) => {
            let mut whole = consumer::prove(consumer, of_base, (out.opened, written), edit)?;
            whole
                .unchecked
                .push("the logits against run-time ablation of the base: there are no prompts for it".into());
            whole
        }
        Runs::Compared(running) => {
            let prompts = verify_prompts(running.chat, running.prompts)?;
            let Running { runtime, cancelled, .. } = **running;
            let consumer = Consumer { runtime, prompts: &prompts, cancelled };
            consumer::prove(&consumer, of_base, (out.opened, written), edit)?
        }
    });
    let other = other_model(model, written);
    found.passed &= other.is_none();
    found.failures.extend(other);
    Ok(found)
}

/// How what was written is another model than its base: one that is not understood, or of other dimensions. Lancet
/// could not verify, measure or edit such a file again.
fn other_model(base: &Understood<'_>, written: Result<&Understood<'_>, &Refusal>) -> Option<String> {
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
/// As [`UnderstoodVariant::plan`], or if a weight cannot be read.
pub fn plans(base: &UnderstoodVariant<'_>, edit: &Edit, options: &BakeOptions<'_>) -> Result<Plans, Error> {
    let asked = options.plan(Vec::new());
    let again = |by_nodes| base.plan(edit, &PlanOptions { by_nodes, ..asked.clone() });
    let mut plans = base.plan(edit, &asked)?;
    // where nodes cannot be inserted, rounding is what there is
    if let (Some(file), Some(plan)) = (&base.opened.embedding, &mut plans.embedding)
        && let Some(past) = past_limits(file, plan, options)?
        && let Ok(other) = again(past)
    {
        *plan = other.embedding.expect("it was planned before");
    }
    if let Some(past) = past_limits(&base.opened.model, &plans.main, options)?
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

/// Verifies `out` against `base`: every variant, and that nothing else came in, went away or changed. `out` is a folder,
/// or one `.onnx` file where the base has one variant.
///
/// # Errors
/// If a file of the base cannot be read or is not understood, or a run is interrupted, with the file's name. What is
/// found in the output is no error.
pub fn package(
    base: &Package,
    out: &Path,
    edit: &Edit,
    options: &BakeOptions<'_>,
    runs: &Runs<'_>,
) -> Result<PackageVerify, Error> {
    let file = !out.is_dir();
    if file && !base.lone {
        return Err(Error::usage(
            format!("`{}` is a folder with several models, `{}` is no folder", base.root.display(), out.display()),
            "pass two folders, or two files",
        ));
    }
    hindered::unhindered(base)?;
    let mut result = PackageVerify::default();
    if !file {
        result.shared.unexplained = beside::folder(base, out, edit)?;
        result.shared.failures = affected(base, out);
    }
    for variant in &base.variants {
        let place = if file { out.to_path_buf() } else { out.join(&variant.relative) };
        if !file && !place.is_file() {
            let reason = Some("not in the output".into());
            let row = FileRow { file: variant.name.clone(), kind: FileKind::LeftOut, reason };
            result.shared.left_out.push(row);
            continue;
        }
        let model = variant.name.clone();
        let (found, written) = one(variant, &place, edit, options, runs).map_err(base.of_variant(variant))?;
        let verify = if file { found } else { within(variant, found) };
        if let Some(written) = written.filter(|_| file) {
            result.shared.unexplained = beside::of_file(variant.opened()?, &written);
        }
        result.variants.push(VariantVerify { model, verify });
    }
    let shared = &mut result.shared;
    if result.variants.is_empty() {
        shared.failures.push("the output has no model of the base".into());
    }
    shared.failures.extend(shared.unexplained.iter().map(ToString::to_string));
    for other in &base.others {
        let file = shown(&other.relative);
        if !shared.unexplained.iter().any(|u| other.reads.iter().any(|path| shown(path) == u.file)) {
            shared.copied.push(FileRow { file, kind: FileKind::OtherModel, reason: Some(other.reason.clone()) });
        }
    }
    shared.passed = shared.failures.is_empty() && result.variants.iter().all(|v| v.verify.passed);
    Ok(result)
}

/// The models of `out` that are copied and read what differs from the base: they share data with one that is edited.
fn affected(base: &Package, out: &Path) -> Vec<String> {
    let written = |path: &Path| base.variants.iter().any(|variant| variant.writes.contains(path));
    let told = |other: &Other| match hindered::affected(base, other, written, |path| out.join(path)) {
        Ok(path) => {
            let (other, path) = (shown(&other.relative), shown(&path?));
            Some(format!("`{other}` is not edited but reads `{path}`, which differs from the base"))
        }
        Err(error) => Some(error.chain()),
    };
    base.others.iter().filter_map(told).collect()
}

/// Verifies what lies at `place` against one variant. Returns the output too, where it could be opened.
fn one(
    variant: &Variant,
    place: &Path,
    edit: &Edit,
    options: &BakeOptions<'_>,
    runs: &Runs<'_>,
) -> Result<(VerifyResult, Option<Opened>), Error> {
    let base = UnderstoodVariant::new(variant)?;
    let plans = plans(&base, edit, options)?;
    let written = match base.opened.again(place) {
        Ok(written) => written,
        Err(error) => return Ok((unlike(error, runs)?, None)),
    };
    let understood = base.model.as_ref().map(|_| written.understand());
    let output = WrittenVariant { opened: &written, model: understood.as_ref().map(Result::as_ref) };
    let found = self::variant(&base, &output, &plans, edit, runs).or_else(|error| unlike(error, runs))?;
    drop(understood);
    Ok((found, Some(written)))
}

/// An output that cannot be held against the base at all does not verify.
fn unlike(error: Error, runs: &Runs<'_>) -> Result<VerifyResult, Error> {
    if runs.is_cancelled() || error.kind() != Kind::Failed {
        return Err(error);
    }
    Ok(VerifyResult { passed: false, failures: vec![error.chain()], ..VerifyResult::default() })
}

/// The same with files relative to the package.
fn within(variant: &Variant, mut found: VerifyResult) -> VerifyResult {
    let folder = variant.relative.parent().unwrap_or(Path::new(""));
    for difference in &mut found.unexplained {
        difference.file = shown(&folder.join(&difference.file));
    }
    found
}
