//! Why no library could be found or installed, and what the user can do about it.

use super::search::library_pattern;
use super::{CACHE_VARIABLE, Flavour, FoundLibrary, LIBRARY_VARIABLE, OLDEST_VERSION, PYTHON_VARIABLE, Source};

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why no library could be found or installed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum LocateError {
    #[error("`{}`, given by the {asked_by}, does not exist", path.display())]
    Missing { path: PathBuf, asked_by: Source },
    #[error("folder `{}`, given by the {asked_by}, holds no `{expected}`", path.display())]
    NoLibrary { path: PathBuf, asked_by: Source, expected: &'static str },
    #[error(
        "`{}`, given by the {asked_by}, is ONNX Runtime {version}, older than {OLDEST_VERSION}",
        path.display()
    )]
    TooOld { path: PathBuf, version: String, asked_by: Source },
    #[error("found no ONNX Runtime shared library{}", passed_over(skipped))]
    NotFound { skipped: Vec<FoundLibrary> },
    #[error("no folder for caches is known for this user")]
    NoCacheFolder,
    #[error("there is no pinned {flavour} build of ONNX Runtime for `{os}` on `{arch}`")]
    NoWheel { flavour: Flavour, os: &'static str, arch: &'static str },
    #[error("found no pip that runs: {}", tried.join("; "))]
    NoPip { tried: Vec<String> },
    #[error(
        "`{program} download` of `{package}` into `{}` failed ({status}){}",
        folder.display(),
        indented(output)
    )]
    Pip { program: String, package: String, folder: PathBuf, status: ExitStatus, output: Vec<String> },
    #[error("`{}` has SHA-256 `{got}`, expected `{expected}`", path.display())]
    Hash { path: PathBuf, expected: String, got: String },
    #[error("`{}` is not the wheel it should be: {reason}", path.display())]
    Wheel { path: PathBuf, reason: String },
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl LocateError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        const BY_HAND: &str = "run `pip install onnxruntime` yourself (its environment being \
                               active), or point `--ort-lib` or `ORT_DYLIB_PATH` at a copy of \
                               the library";
        Some(match self {
            Self::Missing { asked_by: Source::Environment, .. }
            | Self::NoLibrary { asked_by: Source::Environment, .. } => {
                format!("correct `{LIBRARY_VARIABLE}`, or unset it to have the library searched for")
            }
            Self::Missing { .. } | Self::NoLibrary { .. } => {
                let pattern = library_pattern();
                format!("give the file `{pattern}` or its folder, or give neither to search")
            }
            Self::TooOld { .. } => "give a newer one, or let `lancet runtime install` fetch one".into(),
            Self::NotFound { .. } => format!("`lancet runtime install` fetches it; or {BY_HAND}"),
            Self::NoCacheFolder => {
                format!("set `{CACHE_VARIABLE}` to a folder that may be written")
            }
            Self::NoWheel { flavour: Flavour::Cuda, .. } => {
                "install without CUDA, or point `--ort-lib` at a build for this machine".into()
            }
            Self::NoWheel { .. } => "point `--ort-lib` or `ORT_DYLIB_PATH` at a build for this machine".into(),
            Self::NoPip { .. } => {
                format!("set `{PYTHON_VARIABLE}` to a Python that has pip and repeat, or {BY_HAND}")
            }
            Self::Pip { .. } => format!(
                "fetching needs the network, or pip's own settings for a mirror, a proxy or \
                 `find-links`; with that in place repeat `lancet runtime install`, or {BY_HAND}"
            ),
            Self::Hash { .. } => "the download was damaged or replaced: repeat it, and if it \
                                  stays so do not use that source"
                .into(),
            Self::Wheel { .. } => BY_HAND.into(),
            Self::Io { path, .. } => {
                let path = path.display();
                format!("see that `{path}` can be written and has room, or set `{CACHE_VARIABLE}`")
            }
        })
    }
}

fn passed_over(skipped: &[FoundLibrary]) -> String {
    let lines = skipped.iter().filter_map(|candidate| {
        Some(format!("`{}` passed over: {}", candidate.located.path.display(), candidate.skipped.as_ref()?))
    });
    indented(&lines.collect::<Vec<_>>())
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}
