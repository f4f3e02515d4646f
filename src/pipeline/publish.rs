//! A whole package: every variant baked, everything else copied, published at once or not at all.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::bytes::{BLOCK, is_single};
use super::card;
use super::engine::Observer;
use super::hindered::{affected, unhindered};
use super::kind::{Evidence, Kind, kind};
use super::opened::Plans;
use super::package::{Other, Package, Variant, VariantRole, shown};
use super::stage::Stage;
use super::understood::UnderstoodVariant;
use super::variant::{self, BakeJob, Baked, Clock, Desk};
use super::walk::{Entry, is_report};
use super::{BakeOptions, direction_file, write_whole};
use crate::bake::{BakeError, Staging};
use crate::edit::Edit;
use crate::error::Error;
use crate::files;
use crate::onnx::Model;
use crate::report::{self, BakeShared, Outputs, RunResult, RunShared};

/// Refuses an output whose report would get a name that is too long, before any work.
pub(super) fn check_names(out: &Path) -> Result<(), Error> {
    let longest = out.with_extension("lancet.direction.safetensors");
    let length = longest.file_name().map_or(0, std::ffi::OsStr::len);
    match is_single(out) && length > 255 {
        true => Err(Error::usage(
            format!(
                "the name of `{}` is too long: with the reports beside it, it has {length} of 255 bytes",
                out.display()
            ),
            "choose a shorter name, or a folder for the output",
        )),
        false => Ok(()),
    }
}

/// A package that can be baked: nothing stands in the way, and every variant is understood.
pub struct Ready<'p> {
    /// What was found where the user pointed.
    pub package: &'p Package,
    /// Its variants, understood, in the package's order.
    pub variants: Vec<UnderstoodVariant<'p>>,
}

impl<'p> Ready<'p> {
    /// The first language model.
    ///
    /// # Errors
    /// Usage: there are embedding files only.
    pub fn first_model(&self) -> Result<&UnderstoodVariant<'p>, Error> {
        self.variants.iter().find(|base| base.model.is_some()).ok_or_else(|| {
            Error::usage(
                "an embedding file alone cannot be run",
                "let `--only` name a model, or ask for no measurement",
            )
        })
    }
}

/// Refuses a package in which anything stands in the way, before a byte is written: a variant that is not understood,
/// two of different width, an output that cannot hold them, a full disk.
///
/// # Errors
/// The first of these, with the file's name.
pub fn preflight<'p>(package: &'p Package, out: &Path) -> Result<Ready<'p>, Error> {
    if is_single(out) && !package.lone {
        return Err(Error::usage(
            format!(
                "the output `{}` is one file, and `{}` holds more than one model",
                out.display(),
                package.root.display()
            ),
            "choose a new folder for the output, or pass one model by its path",
        ));
    }
    let mut variants: Vec<UnderstoodVariant<'p>> = Vec::new();
    for variant in &package.variants {
        let base = trace(variant).map_err(package.of_variant(variant))?;
        let known = variants.iter().find_map(|other| Some((other.d_model()?, &other.variant.name)));
        if let (Some((other, known)), Some(width)) = (known, base.d_model())
            && other != width
        {
            return Err(Error::failed_with(
                format!("d_model is {width} in `{}` and {other} in `{known}`: no direction fits both", variant.name),
                "pick those of one width with `--only`",
            ));
        }
        variants.push(base);
    }
    unhindered(package)?;
    let mut parts = package.variants.iter().flat_map(|variant| &variant.writes);
    if let Some(path) = parts.find(|path| is_report(path)) {
        return Err(Error::failed_with(
            format!("a model has a part called `{}`, as the reports of `lancet run` are", shown(path)),
            "give the file another name; if it holds external data, correct their `location` in the model",
        ));
    }
    let existing = out.ancestors().skip(1).find(|path| path.is_dir()).unwrap_or(Path::new("."));
    room(package, 0, existing, is_single(out))?;
    Ok(Ready { package, variants })
}

fn trace(variant: &Variant) -> Result<UnderstoodVariant<'_>, Error> {
    let opened = variant.opened()?;
    if variant.role == VariantRole::Model {
        language_model(&opened.model, variant)?;
    }
    UnderstoodVariant::new(variant)
}

/// Refuses a file that was named as a model and, by what it computes, is none.
fn language_model(model: &Model, variant: &Variant) -> Result<(), Error> {
    match kind(model, false, &|| variant.files.vocabulary()) {
        Kind::Model | Kind::Embedding | Kind::Other { evidence: Evidence::Names, .. } => Ok(()),
        Kind::Other { reason, evidence: Evidence::Graph } => Err(Error::failed_with(
            format!("`{}` is no language model: it {reason}", variant.name),
            "pass the `.onnx` file of the language model, or its folder",
        )),
        Kind::Blocked(why) => Err(Error::failed_with(format!("`{}` {}", variant.name, why.reason), why.hint)),
    }
}

/// Checks that there is room at `place` for the whole package, `grown` bytes larger than it is.
/// Returns its bytes.
fn room(package: &Package, grown: u64, place: &Path, single: bool) -> Result<u64, Error> {
    let copied: u64 = if single { 0 } else { package.copied().map(|file| file.bytes).sum() };
    let written: BTreeSet<&PathBuf> = package.variants.iter().flat_map(|v| &v.writes).collect();
    let size = |path: &&PathBuf| std::fs::metadata(package.root.join(path)).map_or(0, |m| m.len());
    let needed = copied + grown + written.iter().map(size).sum::<u64>();
    let path = place.to_path_buf();
    match fs4::available_space(&path) {
        Ok(available) if available < needed => Err(BakeError::NoSpace { path, needed, available }.into()),
        Ok(_) => Ok(needed),
        Err(source) => Err(BakeError::Io { action: "read", path, source }.into()),
    }
}

/// Bakes every variant into the staging folder and copies everything else there. Nothing is published yet.
///
/// # Errors
/// The first thing that stands in the way, with the file's name where there are several.
pub(super) fn stage(
    ready: &Ready<'_>,
    job: &BakeJob<'_>,
    staging: &Staging,
    clock: &mut Clock,
) -> Result<Vec<Baked>, Error> {
    let package = ready.package;
    let single = is_single(job.options.out);
    let mut plans = Vec::new();
    for base in &ready.variants {
        plans.push(base.plan(job.edit, &job.plan).map_err(package.of_variant(base.variant))?);
    }
    let needed = room(package, plans.iter().map(Plans::growth).sum(), staging.path(), single)?;
    let mut desk = Desk::new(package, staging, job, needed);
    let mut outcomes = Vec::new();
    for (base, plans) in ready.variants.iter().zip(plans) {
        let outcome = variant::bake(base, plans, &mut desk, clock);
        outcomes.push(outcome.map_err(package.of_variant(base.variant))?);
    }
    if !single {
        for other in &package.others {
            unaffected(package, other, &desk)?;
        }
        copy(package, &desk, job.options, job.observer)?;
    }
    desk.settle()?;
    clock.lap("bake");
    Ok(outcomes)
}

/// Refuses a package in which the bake changed what a model reads that is not baked.
fn unaffected(package: &Package, other: &Other, desk: &Desk<'_>) -> Result<(), Error> {
    match affected(package, other, |path| desk.writer(path).is_some(), |path| desk.place(path))? {
        Some(path) => {
            let writer = desk.writer(&path).unwrap_or_default();
            Err(Error::failed_with(
                format!(
                    "`{}` is not baked but reads `{}`, which the bake of `{writer}` changes",
                    shown(&other.relative),
                    shown(&path)
                ),
                "export it with external data of its own, or take it out of the folder",
            ))
        }
        None => Ok(()),
    }
}

/// Copies every file that no variant writes: its contents, and who may read and write it. A link becomes a plain file, a
/// model card gets a notice.
fn copy(package: &Package, desk: &Desk<'_>, options: &BakeOptions<'_>, observer: &dyn Observer) -> Result<(), Error> {
    let files: Vec<_> = package.copied().filter(|file| desk.writer(&file.relative).is_none()).collect();
    let total = files.iter().map(|file| file.bytes).sum();
    observer.start(&Stage::WriteOtherFiles, total);
    for file in files {
        let to = desk.place(&file.relative);
        let folder = files::folder_of(&to);
        std::fs::create_dir_all(folder).map_err(failed("create", folder, total))?;
        match card::is_card(&file.relative) && file.bytes <= card::MAX_CARD {
            true => copy_card(file, &to)?,
            false => copy_file(file, &to, options, observer)?,
        }
        files::copy_mode(&file.real, &to).map_err(failed("write", &to, total))?;
        desk.save(&to)?;
    }
    observer.finish();
    Ok(())
}

/// A failure to read or write, told apart from a full disk.
fn failed(action: &'static str, path: &Path, needed: u64) -> impl FnOnce(io::Error) -> BakeError {
    let path = path.to_path_buf();
    move |source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BakeError::NoSpace { path, needed, available: 0 },
        _ => BakeError::Io { action, path, source },
    }
}

fn copy_file(file: &Entry, to: &Path, options: &BakeOptions<'_>, observer: &dyn Observer) -> Result<(), Error> {
    let mut input = files::open(&file.real).map_err(failed("read", &file.real, 0))?;
    let mut output = File::create_new(to).map_err(failed("create", to, file.bytes))?;
    let mut block = vec![0u8; BLOCK.min(file.bytes.max(1)) as usize];
    loop {
        if options.cancelled.load(Ordering::Relaxed) {
            return Err(BakeError::Cancelled.into());
        }
        match input.read(&mut block) {
            Ok(0) => break,
            Ok(n) => {
                output.write_all(&block[..n]).map_err(failed("write", to, file.bytes))?;
                observer.advance(n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read", &file.real, 0)(error).into()),
        }
    }
    Ok(())
}

fn copy_card(file: &Entry, to: &Path) -> Result<(), Error> {
    let card = files::read(&file.real, card::MAX_CARD).map_err(failed("read", &file.real, 0))?;
    let mut output = File::create_new(to).map_err(failed("create", to, file.bytes))?;
    output.write_all(&card::edited(&card)).map_err(failed("write", to, file.bytes))?;
    Ok(())
}

/// What is told of a package beside its variants. Whether it was published, the bytes and the time come last.
pub(super) fn shared(package: &Package, options: &BakeOptions<'_>, outcomes: &[Baked]) -> BakeShared {
    let single = is_single(options.out);
    BakeShared {
        model: package.named().display().to_string(),
        output: options.out.display().to_string(),
        direction_sha256: outcomes.first().map(|o| o.direction_sha256.clone()).unwrap_or_default(),
        copied: if single { Vec::new() } else { package.copied_rows() },
        left_out: package.left_out_rows(),
        ..BakeShared::default()
    }
}

/// Where everything that `run` publishes goes: into the output folder, or beside the one output file.
pub(super) fn outputs(out: &Path, model: &Path) -> Outputs {
    let single = is_single(out);
    let place = |name: &str| {
        let file = format!("lancet.{name}");
        Some(if single { out.with_extension(file) } else { out.join(file) }.display().to_string())
    };
    Outputs {
        model: Some(if single { out.to_path_buf() } else { out.join(model) }.display().to_string()),
        report_html: place("html"),
        report_json: place("json"),
        report_markdown: place("md"),
        direction: place("direction.safetensors"),
    }
}

/// Writes the direction and the reports into the staging folder.
///
/// # Errors
/// If one cannot be written.
pub(super) fn reports(result: &RunResult, edit: &Edit, staging: &Staging) -> Result<(), Error> {
    let RunShared { outputs, found, provenance, .. } = &result.shared;
    let stage = |place: &Option<String>| {
        let name = place.as_deref().and_then(|place| Path::new(place).file_name());
        staging.path().join(name.expect("every output has a file name"))
    };
    let found = found.as_ref().expect("what has an edit tells how it was found");
    direction_file::save(&stage(&outputs.direction), edit, found, &provenance.model_sha256)?;
    write_whole(&stage(&outputs.report_html), report::html(result).as_bytes())?;
    let json = serde_json::to_vec_pretty(result).expect("plain data");
    write_whole(&stage(&outputs.report_json), &json)?;
    write_whole(&stage(&outputs.report_markdown), report::markdown(result).as_bytes())
}
