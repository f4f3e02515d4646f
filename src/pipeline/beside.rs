//! What lies beside the models of an output, held against what a bake puts there: every file by its bytes, its kind and
//! its permissions. Nothing that the output says of itself decides what is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::bytes::equal;
use super::card;
use super::direction_file;
use super::opened::Opened;
use super::package::{Package, shown};
use super::walk::{Thing, everything};
use crate::bake::sha256;
use crate::edit::{Addition, Edit, GatedTerm};
use crate::error::Error;
use crate::files::{self, Place};
use crate::onnx::Model;
use crate::report::{Finding, FindingKind, RunResult};

/// Largest report that is read, in bytes.
const MAX_REPORT: u64 = 256 << 20;

/// Largest difference of two directions that are one, rounded to float32 or not.
const SAME: f64 = 1e-6;

/// The files that `run` puts into an output folder.
const REPORTS: [&str; 4] = [JSON, "lancet.html", "lancet.md", DIRECTION];
const JSON: &str = "lancet.json";
const DIRECTION: &str = "lancet.direction.safetensors";

/// A file of the base that the output must have.
struct Expected {
    /// Its plain file in the base.
    real: PathBuf,
    /// What the output holds in its place.
    content: Content,
}

enum Content {
    /// The same bytes.
    Same,
    /// The card with the notice.
    Card,
    /// A model or its data, edited: its bytes are proved with the model.
    Edited,
}

/// Every difference between the folder `out` and what a bake of `base` against `direction` puts there, beside the bytes of
/// the edited models.
///
/// # Errors
/// If a folder or a file of the base cannot be read.
pub(super) fn folder(base: &Package, out: &Path, edit: &Edit) -> Result<Vec<Finding>, Error> {
    let expected = expected(base);
    let place = Place::new(out).map_err(|e| {
        Error::usage(format!("cannot read `{}`: {e}", out.display()), "pass the folder that `lancet bake` wrote")
    })?;
    let mut found: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut differences = Vec::new();
    for (relative, thing) in everything(out)? {
        let path = out.join(&relative);
        let what = match (thing, place.download(&path)) {
            (Thing::File, _) => {
                found.insert(relative, path);
                continue;
            }
            // a snapshot of the download cache: a link stands for each file
            (Thing::Link, Some(real)) => {
                found.insert(relative, real);
                continue;
            }
            (Thing::Link, None) => (FindingKind::Link, "is a link"),
            (Thing::Special, _) => (FindingKind::Link, "is neither a file nor a folder"),
            (Thing::EmptyFolder, _) => (FindingKind::AddedFile, "is an empty folder, which is not in the base"),
        };
        differences.push(difference(what.0, &relative, what.1));
    }
    for (relative, wanted) in &expected {
        match found.get(relative) {
            None => differences.push(difference(FindingKind::MissingFile, relative, "is not in the output")),
            Some(path) => differences.extend(compare(relative, wanted, path)?),
        }
    }
    let reports: BTreeSet<&str> = REPORTS.into_iter().filter(|name| found.contains_key(Path::new(name))).collect();
    for relative in found.keys().filter(|path| !expected.contains_key(*path)) {
        if !reports.iter().any(|name| Path::new(name) == relative) {
            differences.push(difference(FindingKind::AddedFile, relative, "is not in the base"));
        }
    }
    differences.extend(own_files(base, out, edit, &reports)?);
    differences.sort();
    Ok(differences)
}

/// Differences of the files of one model that lies alone: links, and permissions.
pub fn of_file(base: &Opened, out: &Opened) -> Vec<Finding> {
    let mut differences = Vec::new();
    let mut pairs: Vec<(PathBuf, PathBuf)> = Vec::new();
    let with_data = |model: &Model| -> Vec<PathBuf> {
        let folder = files::folder_of(&model.path).to_path_buf();
        let data = model.external_files().into_iter().map(|(location, _)| folder.join(location));
        std::iter::once(model.path.clone()).chain(data).collect()
    };
    for (a, b) in base.models().zip(out.models()) {
        pairs.extend(with_data(a).into_iter().zip(with_data(b)));
    }
    for (from, to) in pairs {
        let name = PathBuf::from(to.file_name().unwrap_or_default());
        let linked = to.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
        let downloaded = Place::new(files::folder_of(&to)).is_ok_and(|place| place.download(&to).is_some());
        if linked && !downloaded {
            differences.push(difference(FindingKind::Link, &name, "is a link"));
        }
        differences.extend(modes(&name, &from, &to));
    }
    differences
}

fn difference(kind: FindingKind, relative: &Path, detail: impl Into<String>) -> Finding {
    Finding { kind, file: shown(relative), name: String::new(), detail: detail.into() }
}

fn expected(base: &Package) -> BTreeMap<PathBuf, Expected> {
    let mut expected = BTreeMap::new();
    for file in base.copied() {
        let content = match card::is_card(&file.relative) && file.bytes <= card::MAX_CARD {
            true => Content::Card,
            false => Content::Same,
        };
        expected.insert(file.relative.clone(), Expected { real: file.real.clone(), content });
    }
    for relative in base.variants.iter().flat_map(|variant| &variant.writes) {
        let real = base.root.join(relative);
        expected.insert(relative.clone(), Expected { real, content: Content::Edited });
    }
    expected
}

fn compare(relative: &Path, wanted: &Expected, found: &Path) -> Result<Vec<Finding>, Error> {
    let same = match wanted.content {
        Content::Edited => true,
        Content::Same => equal(&wanted.real, found, None)?,
        Content::Card => {
            let base = files::read(&wanted.real, card::MAX_CARD).map_err(|e| {
                Error::usage(format!("cannot read `{}`: {e}", wanted.real.display()), "check the file's permissions")
            })?;
            files::read(found, card::MAX_CARD * 2).is_ok_and(|bytes| bytes == card::edited(&base))
        }
    };
    let changed = difference(FindingKind::ChangedFile, relative, "is not in the output as it was");
    Ok((!same).then_some(changed).into_iter().chain(modes(relative, &wanted.real, found)).collect())
}

/// Whether a file of the output has the permissions that its input gives it.
fn modes(relative: &Path, from: &Path, to: &Path) -> Option<Finding> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.permissions().mode() & 0o7777);
        let (wanted, found) = (files::kept_mode(mode(from)?), mode(to)?);
        if wanted != found {
            let detail = format!("has the permissions {found:o}, not {wanted:o}");
            return Some(difference(FindingKind::Mode, relative, detail));
        }
    }
    #[cfg(not(unix))]
    let _ = (relative, from, to);
    None
}

/// The report and the direction of a run: each is there with the others, of the form that Lancet gives it, and says the
/// same as the others, the base and the direction.
fn own_files(base: &Package, out: &Path, edit: &Edit, reports: &BTreeSet<&str>) -> Result<Vec<Finding>, Error> {
    let mut differences = Vec::new();
    let mut changed =
        |name: &str, detail: &str| differences.push(difference(FindingKind::ChangedFile, Path::new(name), detail));
    for name in reports {
        if runs_or_is_open(&out.join(name)) {
            changed(name, "may be run, or written by everyone");
        }
    }
    let run = match reports.contains(JSON) {
        true => match report(&out.join(JSON)) {
            Some(run) => Some(run),
            None => {
                changed(JSON, "is no report of this version of Lancet, or holds what none has");
                None
            }
        },
        false => None,
    };
    if let Some(run) = &run {
        for problem in inconsistencies(run, base, edit)? {
            changed(JSON, &problem);
        }
    }
    if reports.contains(DIRECTION) && !same_edit(&out.join(DIRECTION), edit) {
        changed(DIRECTION, "holds another edit than the one that was given, or something else beside it");
    }
    for (name, text) in [
        ("lancet.html", run.as_ref().map(crate::report::html)),
        ("lancet.md", run.as_ref().map(crate::report::markdown)),
    ] {
        match text {
            _ if !reports.contains(name) => {}
            None => changed(name, "has no report `lancet.json` beside it that it could be of"),
            Some(text) => {
                if files::read(&out.join(name), MAX_REPORT).ok().as_deref() != Some(text.as_bytes()) {
                    changed(name, "does not say what `lancet.json` says");
                }
            }
        }
    }
    if reports.contains(JSON) {
        let lost = REPORTS.into_iter().filter(|name| !reports.contains(name));
        differences.extend(lost.map(|name| {
            difference(FindingKind::MissingFile, Path::new(name), "is not in the output beside `lancet.json`")
        }));
    }
    Ok(differences)
}

fn runs_or_is_open(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o7113 != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// A report, if it is the very text that its own values give.
fn report(path: &Path) -> Option<RunResult> {
    let bytes = files::read(path, MAX_REPORT).ok()?;
    let run: RunResult = serde_json::from_slice(&bytes).ok()?;
    (serde_json::to_vec_pretty(&run).ok()? == bytes).then_some(run)
}

/// What a report says that the base and the direction contradict.
fn inconsistencies(run: &RunResult, base: &Package, edit: &Edit) -> Result<Vec<String>, Error> {
    let mut problems = Vec::new();
    let version = env!("CARGO_PKG_VERSION");
    if run.shared.provenance.lancet_version != version {
        let other = &run.shared.provenance.lancet_version;
        problems.push(format!("names version `{other}` of Lancet, and this is {version}: verify it with that one"));
    }
    let mut hashes = BTreeSet::new();
    for variant in base.models() {
        hashes.insert(variant.opened()?.sha256()?);
    }
    if !hashes.contains(&run.shared.provenance.model_sha256) {
        problems.push("names another model than the base".into());
    }
    let ablated = edit.ablation().map(|ablation| sha256(&ablation.units()));
    if run.shared.bake.direction_sha256 != ablated.unwrap_or_default() {
        problems.push("names another direction than the one that was given".into());
    }
    if !run.verified() {
        problems.push("says itself that the model did not verify".into());
    }
    Ok(problems)
}

/// Whether a direction file beside a model holds `edit`, and nothing else.
fn same_edit(path: &Path, edit: &Edit) -> bool {
    let Ok(found) = direction_file::load(path) else { return false };
    let Ok(bytes) = files::read(path, files::MAX_DIRECTION) else { return false };
    let close = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= SAME);
    let ablated = match (found.ablation(), edit.ablation()) {
        (Some(found), Some(edit)) => {
            close(&found.units(), &edit.units())
                && close(&found.strengths(), &edit.strengths())
                && found.writes() == edit.writes()
        }
        (found, edit) => found.is_none() && edit.is_none(),
    };
    let same = |(a, b): (&Addition, &Addition)| a.layer == b.layer && close(&a.scaled(), &b.scaled());
    let (added, wanted) = (found.additions(), edit.additions());
    let added = added.len() == wanted.len() && added.iter().zip(wanted).all(same);
    let gates = |edit: &Edit| edit.gates().iter().map(GatedTerm::rounded).collect::<Vec<_>>();
    ablated && added && gates(&found) == gates(edit) && direction_file::is_plain(&bytes)
}
