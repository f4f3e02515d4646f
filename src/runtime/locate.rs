//! Finds the ONNX Runtime shared library, or installs one ([`install`]).
//!
//! Order of search: the path asked for, `ORT_DYLIB_PATH`, beside the executable, an `onnxruntime`
//! Python package of the active environment, the system's library folders, Lancet's own cache. What
//! was asked for by name (the first two) is taken or is an error, never passed over. Nothing here
//! loads the library.

mod environment;
mod error;
mod follow;
mod install;
mod search;
mod wheel;

pub use environment::{Environment, cache_dir};
pub use error::LocateError;
pub use install::{InstallEvent, install, install_in};
pub use wheel::{PINNED_CUDA_VERSION, PINNED_VERSION, pinned_version};

use search::{
    absolute, asked_packages, cached_folders, described, environment_packages, executable_folders, judged, library_in,
    library_pattern, loader_folders, real, too_old,
};

use std::collections::HashSet;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The oldest ONNX Runtime that Lancet runs with.
pub const OLDEST_VERSION: &str = "1.19";

/// The variable that names the library, which `ort` knows too.
const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";
/// The variable that names the Python to ask and to run pip with, in place of the usual names.
const PYTHON_VARIABLE: &str = "LANCET_PYTHON";
/// The variable that moves Lancet's cache.
const CACHE_VARIABLE: &str = "LANCET_CACHE";

/// Where a library was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The path given on the command line or in the config file.
    Flag,
    /// The environment variable `ORT_DYLIB_PATH`.
    Environment,
    /// The executable's folder, or `lib` next to it.
    BesideExecutable,
    /// An `onnxruntime` or `onnxruntime-gpu` Python package.
    PythonPackage,
    /// A library folder of the system.
    System,
    /// Lancet's own cache, which [`install`] fills.
    Cache,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Flag => "flag `--ort-lib`",
            Self::Environment => "environment variable `ORT_DYLIB_PATH`",
            Self::BesideExecutable => "beside the executable",
            Self::PythonPackage => "Python package",
            Self::System => "system library folder",
            Self::Cache => "Lancet's cache",
        })
    }
}

/// Which build of ONNX Runtime is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Flavour {
    /// Any build will do.
    Cpu,
    /// One with the CUDA execution provider.
    Cuda,
}

impl fmt::Display for Flavour {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// A shared library that is there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Located {
    /// The library, as an absolute path (a bare name would make the loader search for itself).
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Which step of the search found it.
    pub source: Source,
    /// Its version, where a file or folder name tells it.
    pub version: Option<String>,
    /// Whether the CUDA execution provider lies beside it (its CUDA libraries may still be
    /// missing).
    pub cuda: bool,
}

/// A library the search came across, and whether it may be used.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FoundLibrary {
    /// What was found; for a named path that is not there, that path.
    #[serde(flatten)]
    pub located: Located,
    /// Why it is passed over, or `None` where it may be used.
    pub skipped: Option<String>,
}

/// What to search for, and in which surroundings.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The library, or a folder that holds it: taken, or an error.
    pub explicit: Option<&'a Path>,
    /// [`Flavour::Cuda`] prefers a library with the CUDA provider beside it, but takes another
    /// where none is.
    pub flavour: Flavour,
    /// Variables and folders to search; [`Environment::process`] in production.
    pub environment: &'a Environment,
}

/// Everything the search comes across, in the order of search, with what is passed over and why.
pub fn candidates(options: &Options<'_>) -> Vec<FoundLibrary> {
    let mut found: Vec<FoundLibrary> = named_paths(options)
        .map(|(path, source)| match named(path, source) {
            Ok(located) => FoundLibrary { located, skipped: None },
            Err(error) => FoundLibrary {
                located: Located { path: absolute(path), source, version: None, cuda: false },
                skipped: Some(error.to_string()),
            },
        })
        .collect();
    let mut seen: HashSet<PathBuf> = found.iter().map(|candidate| real(&candidate.located.path)).collect();
    let _ = search(options, &mut |candidate| {
        if seen.insert(real(&candidate.located.path)) {
            found.push(candidate);
        }
        ControlFlow::Continue(())
    });
    found
}

/// The library to use, if there is one.
///
/// A path given by name is used or is an error. Otherwise the first candidate that may be used
/// wins, and for [`Flavour::Cuda`] the first with the CUDA provider beside it, if any has.
pub fn locate(options: &Options<'_>) -> Result<Option<Located>, LocateError> {
    if let Some((path, source)) = named_paths(options).next() {
        return named(path, source).map(Some);
    }
    let mut best: Option<Located> = None;
    let _ = search(options, &mut |FoundLibrary { located, skipped }| {
        let fits = options.flavour == Flavour::Cpu || located.cuda;
        if skipped.is_none() && (fits || best.is_none()) {
            best = Some(located);
            if fits {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    });
    Ok(best)
}

/// As [`locate`], where none is an error that tells what was passed over.
pub fn require(options: &Options<'_>) -> Result<Located, LocateError> {
    locate(options)?.ok_or_else(|| LocateError::NotFound { skipped: candidates(options) })
}

/// The paths given by name, the strongest first.
fn named_paths<'a>(options: &Options<'a>) -> impl Iterator<Item = (&'a Path, Source)> + use<'a> {
    let flag = options.explicit.map(|path| (path, Source::Flag));
    let variable = options.environment.variable(LIBRARY_VARIABLE).map(|path| (Path::new(path), Source::Environment));
    flag.into_iter().chain(variable)
}

/// A library given by name: a file of any name, or a folder that holds one.
fn named(path: &Path, asked_by: Source) -> Result<Located, LocateError> {
    let path = absolute(path);
    let library = if path.is_dir() {
        // As unpacked releases and Python packages lay it out.
        let folders = [path.clone(), path.join("lib"), path.join("capi"), path.join("onnxruntime").join("capi")];
        folders.iter().find_map(|folder| library_in(folder)).ok_or_else(|| LocateError::NoLibrary {
            path: path.clone(),
            asked_by,
            expected: library_pattern(),
        })?
    } else if path.is_file() {
        path
    } else {
        return Err(LocateError::Missing { path, asked_by });
    };
    let located = described(library, asked_by);
    match located.version {
        Some(version) if too_old(&version) => Err(LocateError::TooOld { path: located.path, version, asked_by }),
        version => Ok(Located { version, ..located }),
    }
}

/// Visits what the unnamed steps of the search find, until `visit` breaks off.
fn search(options: &Options<'_>, visit: &mut dyn FnMut(FoundLibrary) -> ControlFlow<()>) -> ControlFlow<()> {
    let environment = options.environment;
    let mut look = |folder: &Path, source: Source| match library_in(folder) {
        Some(library) => visit(judged(described(library, source))),
        None => ControlFlow::Continue(()),
    };

    for folder in executable_folders(environment) {
        look(&folder, Source::BesideExecutable)?;
    }
    let mut packages = environment_packages(environment);
    packages.retain(|folder| library_in(folder).is_some());
    if packages.is_empty() {
        packages = asked_packages(environment);
    }
    for folder in packages {
        look(&folder, Source::PythonPackage)?;
    }
    for folder in loader_folders(environment).into_iter().chain(environment.system_folders.iter().cloned()) {
        look(&folder, Source::System)?;
    }
    for folder in cached_folders(environment, options.flavour) {
        look(&folder, Source::Cache)?;
    }
    ControlFlow::Continue(())
}

fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

#[cfg(all(test, unix))]
mod tests {
    use super::follow::testing::{alone, script};
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    /// The library's file name, with a version in it or without.
    fn name(version: &str) -> String {
        let dotted = if version.is_empty() { String::new() } else { format!(".{version}") };
        if cfg!(target_os = "macos") {
            format!("libonnxruntime{dotted}.dylib")
        } else {
            format!("libonnxruntime.so{dotted}")
        }
    }

    fn put(folder: &Path, version: &str) -> PathBuf {
        file(folder, &name(version))
    }

    fn file(folder: &Path, name: &str) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, "not really a library").unwrap();
        path
    }

    fn cuda(folder: &Path) {
        file(folder, "libonnxruntime_providers_cuda.so");
    }

    fn options(environment: &Environment) -> Options<'_> {
        Options { explicit: None, flavour: Flavour::Cpu, environment }
    }

    fn paths(candidates: &[FoundLibrary]) -> Vec<PathBuf> {
        candidates.iter().map(|candidate| candidate.located.path.clone()).collect()
    }

    /// One library in every place the search knows, in the order of search.
    fn everywhere(root: &Path) -> (Environment, Vec<(PathBuf, Source)>) {
        let found = vec![
            (put(&root.join("named"), "1.30.0"), Source::Environment),
            (put(&root.join("app/bin"), "1.29.0"), Source::BesideExecutable),
            (put(&root.join("app/lib"), "1.28.0"), Source::BesideExecutable),
            (put(&root.join("venv/lib/python3.11/site-packages/onnxruntime/capi"), "1.27.0"), Source::PythonPackage),
            (put(&root.join("system"), "1.26.0"), Source::System),
            (put(&root.join("cache/onnxruntime/1.25.0-cpu"), "1.25.0"), Source::Cache),
        ];
        let environment = Environment::isolated()
            .with_variable(LIBRARY_VARIABLE, root.join("named"))
            .with_executable(root.join("app/bin/lancet"))
            .with_variable("VIRTUAL_ENV", root.join("venv"))
            .with_system_folder(root.join("system"))
            .with_variable(CACHE_VARIABLE, root.join("cache"));
        (environment, found)
    }

    #[test]
    fn the_order_of_search_decides() {
        let root = TempDir::new().unwrap();
        let (environment, mut expected) = everywhere(root.path());
        let flag = put(&root.path().join("flag"), "1.20.0");
        let asked = Options { explicit: Some(&flag), ..options(&environment) };
        assert_eq!(locate(&asked).unwrap().unwrap().source, Source::Flag);

        let listed: Vec<_> = candidates(&options(&environment))
            .into_iter()
            .map(|candidate| (candidate.located.path, candidate.located.source))
            .collect();
        assert_eq!(listed, expected);

        // The first wins; without it, the next.
        let environment = environment.with_variable(LIBRARY_VARIABLE, "");
        expected.remove(0);
        while !expected.is_empty() {
            let (path, source) = expected.remove(0);
            let located = locate(&options(&environment)).unwrap().unwrap();
            assert_eq!((&located.path, located.source), (&path, source));
            fs::remove_file(path).unwrap();
        }
        assert_eq!(locate(&options(&environment)).unwrap(), None);
    }

    #[test]
    fn the_highest_version_of_a_folder_wins_and_providers_do_not_count() {
        let root = TempDir::new().unwrap();
        for version in ["1.9.0", "1.32.0", "1.4.1", ""] {
            put(root.path(), version);
        }
        file(root.path(), "libonnxruntime_providers_shared.so.9.9.9");
        cuda(root.path());
        let environment = Environment::isolated().with_system_folder(root.path());
        let located = locate(&options(&environment)).unwrap().unwrap();
        assert_eq!(located.path, root.path().join(name("1.32.0")));
        assert_eq!(located.version.as_deref(), Some("1.32.0"));

        let only_providers = TempDir::new().unwrap();
        cuda(only_providers.path());
        let environment = Environment::isolated().with_system_folder(only_providers.path());
        assert_eq!(locate(&options(&environment)).unwrap(), None);
    }

    #[test]
    fn a_link_tells_the_version_of_what_it_links_to() {
        let root = TempDir::new().unwrap();
        put(&root.path().join("real"), "1.18.0");
        let folder = root.path().join("linked");
        fs::create_dir(&folder).unwrap();
        let target = root.path().join("real").join(name("1.18.0"));
        std::os::unix::fs::symlink(target, folder.join(name(""))).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.join(name("1.40.0"))).unwrap();
        let environment = Environment::isolated().with_system_folder(&folder);
        let found = candidates(&options(&environment));
        assert_eq!(found[0].located.version.as_deref(), Some("1.18.0"));
        assert!(found[0].skipped.is_some());
    }

    #[test]
    fn an_old_version_is_passed_over_with_a_reason() {
        let root = TempDir::new().unwrap();
        let (old, new) = (root.path().join("old"), root.path().join("new"));
        put(&old, "1.18.1");
        let environment = Environment::isolated().with_system_folder(&old);
        let error = require(&options(&environment)).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("1.18.1 is older than 1.19") && message.contains("old"), "{message}");
        assert!(error.hint().unwrap().contains("lancet runtime install"));

        put(&new, "1.19.0");
        let environment = environment.with_system_folder(&new);
        let found = candidates(&options(&environment));
        assert_eq!(paths(&found), [old.join(name("1.18.1")), new.join(name("1.19.0"))]);
        assert_eq!(found[0].skipped.as_deref(), Some("ONNX Runtime 1.18.1 is older than 1.19"));
        assert_eq!(locate(&options(&environment)).unwrap().unwrap().path, new.join(name("1.19.0")));
    }

    #[test]
    fn what_is_named_is_taken_or_is_an_error() {
        let root = TempDir::new().unwrap();
        let (environment, _) = everywhere(root.path());
        let gone = root.path().join("gone");
        let empty = root.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let old = put(root.path(), "1.17.3");
        for (path, part) in [(&gone, "does not exist"), (&empty, "holds no"), (&old, "older than")] {
            let error = locate(&Options { explicit: Some(path), ..options(&environment) }).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(part) && message.contains("`--ort-lib`"), "{message}");
            assert!(message.contains(&path.display().to_string()), "{message}");
            assert!(error.hint().is_some());

            let environment = environment.clone().with_variable(LIBRARY_VARIABLE, path);
            let error = locate(&options(&environment)).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(part) && message.contains("`ORT_DYLIB_PATH`"), "{message}");
            let listed = candidates(&options(&environment));
            assert_eq!(listed[0].skipped.as_deref(), Some(message.as_str()));
            assert!(listed.len() > 1, "the rest is listed all the same");
        }
    }

    #[test]
    fn a_named_file_may_have_any_name_and_a_folder_any_usual_layout() {
        let root = TempDir::new().unwrap();
        let environment = Environment::isolated();
        let renamed = file(root.path(), "my-build.so");
        let asked = Options { explicit: Some(&renamed), ..options(&environment) };
        let located = locate(&asked).unwrap().unwrap();
        assert_eq!((located.path, located.version), (renamed, None));

        for layout in ["lib", "capi", "onnxruntime/capi"] {
            let root = TempDir::new().unwrap();
            let library = put(&root.path().join(layout), "1.30.0");
            let asked = Options { explicit: Some(root.path()), ..options(&environment) };
            assert_eq!(locate(&asked).unwrap().unwrap().path, library);
        }
    }

    #[test]
    fn cuda_prefers_a_library_with_its_provider() {
        let root = TempDir::new().unwrap();
        let (plain, gpu) = (root.path().join("plain"), root.path().join("gpu"));
        put(&plain, "1.32.0");
        put(&gpu, "1.31.1");
        let environment = Environment::isolated().with_system_folder(&plain).with_system_folder(&gpu);
        let wanted = Options { flavour: Flavour::Cuda, ..options(&environment) };
        let located = locate(&wanted).unwrap().unwrap();
        assert!(located.path.starts_with(&plain) && !located.cuda, "none has it: the first");
        cuda(&gpu);
        let located = locate(&wanted).unwrap().unwrap();
        assert!(located.path.starts_with(&gpu) && located.cuda);
        let located = locate(&options(&environment)).unwrap().unwrap();
        assert!(located.path.starts_with(&plain), "for the CPU any will do");
    }

    #[test]
    fn the_cache_gives_the_wanted_flavour_first_and_then_the_newest() {
        let root = TempDir::new().unwrap();
        let cache = root.path().join("onnxruntime");
        for install in ["1.9.0-cpu", "1.31.0-cpu", "1.32.0-cpu", "1.31.1-cuda"] {
            put(&cache.join(install), install.split('-').next().unwrap());
        }
        cuda(&cache.join("1.31.1-cuda"));
        put(&cache.join(".installing.abc"), "1.99.0");
        let environment = Environment::isolated().with_variable(CACHE_VARIABLE, root.path());
        let versions = |flavour| {
            let found = candidates(&Options { flavour, ..options(&environment) });
            found.into_iter().map(|one| one.located.version.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(versions(Flavour::Cpu), ["1.32.0", "1.31.0", "1.9.0", "1.31.1"]);
        assert_eq!(versions(Flavour::Cuda), ["1.31.1", "1.32.0", "1.31.0", "1.9.0"]);
    }

    #[test]
    fn the_version_may_stand_in_a_folder_name() {
        let root = TempDir::new().unwrap();
        put(&root.path().join("onnxruntime/1.32.0-cpu"), "");
        let site = root.path().join("venv/lib/python3.12/site-packages");
        put(&site.join("onnxruntime/capi"), "");
        file(&site.join("onnxruntime_gpu-1.31.1.dist-info"), "METADATA");
        let environment = Environment::isolated()
            .with_variable(CACHE_VARIABLE, root.path())
            .with_variable("VIRTUAL_ENV", root.path().join("venv"));
        let found = candidates(&options(&environment));
        let versions: Vec<_> = found.iter().map(|one| one.located.version.as_deref()).collect();
        assert_eq!(versions, [Some("1.31.1"), Some("1.32.0")]);
    }

    #[test]
    fn the_loader_path_is_searched_but_never_the_working_folder() {
        let root = TempDir::new().unwrap();
        put(root.path(), "1.30.0");
        let variable = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
        let list = std::env::join_paths([Path::new(""), Path::new("."), root.path()]).unwrap();
        let environment = Environment::isolated().with_variable(variable, list);
        assert_eq!(loader_folders(&environment), [root.path()]);
        assert_eq!(locate(&options(&environment)).unwrap().unwrap().source, Source::System);
    }

    #[test]
    fn python_is_asked_where_no_variable_names_an_environment() {
        let _alone = alone();
        let root = TempDir::new().unwrap();
        let package = root.path().join("somewhere/onnxruntime");
        let library = put(&package.join("capi"), "1.30.0");
        let python = script(root.path(), &format!("echo '{}'", package.display()));
        let environment = Environment::isolated().with_variable(PYTHON_VARIABLE, &python);
        let located = locate(&options(&environment)).unwrap().unwrap();
        assert_eq!((located.path, located.source), (library, Source::PythonPackage));

        // Its failures are no answer, and no error.
        for body in ["echo relative/onnxruntime", "exit 1", "echo noise >&2"] {
            script(root.path(), body);
            assert_eq!(locate(&options(&environment)).unwrap(), None, "{body}");
        }
        let environment = Environment::isolated().with_variable(PYTHON_VARIABLE, "/no/such/python");
        assert_eq!(locate(&options(&environment)).unwrap(), None);
    }

    #[test]
    fn a_candidate_serializes_flat() {
        let root = TempDir::new().unwrap();
        put(root.path(), "1.30.0");
        let environment = Environment::isolated().with_system_folder(root.path());
        let json = serde_json::to_value(&candidates(&options(&environment))[0]).unwrap();
        assert_eq!(json["source"], "system");
        assert_eq!(json["version"], "1.30.0");
        assert_eq!(json["cuda"], false);
        assert!(json["skipped"].is_null() && json["path"].is_string());
    }

    #[test]
    fn the_cache_folder_follows_its_variable() {
        let environment = Environment::isolated();
        assert!(matches!(environment.cache_dir(), Err(LocateError::NoCacheFolder)));
        let environment = environment.with_variable(CACHE_VARIABLE, "/some/cache");
        assert_eq!(environment.cache_dir().unwrap(), Path::new("/some/cache"));
    }
}
