//! Where the library may be, and what the names of files and folders tell about it.

use super::follow::{Told, follow};
use super::{Environment, Flavour, FoundLibrary, Located, OLDEST_VERSION, Source};

use std::env::consts::{ARCH, OS};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long Python may take to say where `onnxruntime` is.
const PYTHON_PATIENCE: Duration = Duration::from_secs(3);

/// Says where the package is without importing it, nor anything from the working folder.
const PYTHON_QUESTION: &str = "import sys
sys.path = [p for p in sys.path if p]
import importlib.util
spec = importlib.util.find_spec('onnxruntime')
for folder in (spec.submodule_search_locations or []) if spec else []:
    print(folder)";

/// The executable's folder and `../lib`, for the executable as called and as the links to it
/// resolve.
pub(super) fn executable_folders(environment: &Environment) -> Vec<PathBuf> {
    let Some(executable) = &environment.executable else {
        return Vec::new();
    };
    let mut folders = Vec::new();
    for file in [executable.clone(), real(executable)] {
        let Some(folder) = file.parent() else {
            continue;
        };
        for folder in std::iter::once(folder.to_owned()).chain(folder.parent().map(|above| above.join("lib"))) {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    folders
}

/// The folders with an `onnxruntime` package's libraries in the environments that the variables
/// name.
pub(super) fn environment_packages(environment: &Environment) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(|name| environment.variable(name)) {
        let root = Path::new(root);
        let mut sites = vec![root.join("Lib").join("site-packages")];
        for lib in ["lib", "lib64"].map(|name| root.join(name)) {
            sites.extend(entries(&lib).into_iter().filter(|path| {
                path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("python"))
            }));
        }
        folders.extend(sites.into_iter().flat_map(|site| {
            // `lib/python3.11` holds `site-packages`; on Windows it is named above already.
            [site.join("site-packages"), site].map(|site| site.join("onnxruntime").join("capi"))
        }));
    }
    folders
}

/// The same for the Python that runs, by asking it; any failure is an empty answer.
pub(super) fn asked_packages(environment: &Environment) -> Vec<PathBuf> {
    for python in environment.pythons() {
        let mut command = Command::new(python);
        command.args(["-c", PYTHON_QUESTION]).env("PYTHONIOENCODING", "utf-8").env("PYTHONSAFEPATH", "1");
        let mut folders = Vec::new();
        let outcome = follow(command, Some(PYTHON_PATIENCE), &mut |told| {
            if let Told::Output(line) = told {
                folders.push(PathBuf::from(line.trim_end()).join("capi"));
            }
        });
        if outcome.is_ok_and(|status| status.success()) {
            folders.retain(|folder| folder.is_absolute());
            return folders;
        }
    }
    Vec::new()
}

/// The folders that the variables of the system's loader name; never the working folder.
pub(super) fn loader_folders(environment: &Environment) -> Vec<PathBuf> {
    let names: &[&str] = match OS {
        "windows" => &["PATH"],
        "macos" => &["DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"],
        _ => &["LD_LIBRARY_PATH"],
    };
    let mut folders: Vec<PathBuf> = names
        .iter()
        .filter_map(|name| environment.variable(name))
        .flat_map(|list| std::env::split_paths(list).collect::<Vec<_>>())
        .filter(|folder| folder.is_absolute())
        .collect();
    if let Some(root) = environment.variable("CONDA_PREFIX") {
        folders.push(Path::new(root).join("lib"));
    }
    // Windows ships an old `onnxruntime.dll` of its own, whose name tells no version.
    if let Some(windows) = environment.variable("SYSTEMROOT") {
        folders.retain(|folder| !folder.starts_with(windows));
    }
    folders
}

/// Where the system keeps shared libraries.
pub(super) fn system_folders() -> Vec<PathBuf> {
    let multiarch = format!("{ARCH}-linux-gnu");
    let folders: Vec<PathBuf> = match OS {
        "windows" => Vec::new(),
        "macos" => ["/opt/homebrew/lib", "/usr/local/lib", "/usr/lib"].map(PathBuf::from).into(),
        _ => vec![
            "/usr/local/lib".into(),
            Path::new("/usr/local/lib").join(&multiarch),
            "/usr/local/lib64".into(),
            "/usr/lib".into(),
            Path::new("/usr/lib").join(&multiarch),
            "/usr/lib64".into(),
            "/lib64".into(),
        ],
    };
    folders
}

/// The cache's installs: those of the wanted flavour first, then the newest.
pub(super) fn cached_folders(environment: &Environment, flavour: Flavour) -> Vec<PathBuf> {
    let Ok(cache) = environment.cache_dir() else {
        return Vec::new();
    };
    let mut installs: Vec<(bool, Vec<u64>, PathBuf)> = entries(&cache.join("onnxruntime"))
        .into_iter()
        .filter_map(|path| {
            let (version, of) = path.file_name()?.to_str()?.rsplit_once('-')?;
            Some((of == flavour.to_string(), numbers(version)?, path))
        })
        .collect();
    installs.sort();
    installs.into_iter().rev().map(|(_, _, path)| path).collect()
}

/// The newest library of a folder.
pub(super) fn library_in(folder: &Path) -> Option<PathBuf> {
    entries(folder)
        .into_iter()
        .filter(|path| path.file_name().and_then(OsStr::to_str).is_some_and(|name| name_version(name, OS).is_some()))
        .filter(|path| path.is_file())
        .map(|path| (version_of_file(&path).as_deref().and_then(numbers), path))
        .max()
        .map(|(_, path)| path)
}

/// What a library at `path` is, from the names around it.
pub(super) fn described(path: PathBuf, source: Source) -> Located {
    let provider = match OS {
        "windows" => "onnxruntime_providers_cuda.dll",
        _ => "libonnxruntime_providers_cuda.so",
    };
    let cuda = path.with_file_name(provider).is_file();
    let version = version_of_file(&path).or_else(|| version_of_folder(&path));
    Located { path, source, version, cuda }
}

/// Whether it may be used.
pub(super) fn judged(located: Located) -> FoundLibrary {
    let old = located.version.as_deref().filter(|version| too_old(version));
    let skipped = old.map(|version| format!("ONNX Runtime {version} is older than {OLDEST_VERSION}"));
    FoundLibrary { located, skipped }
}

/// The version in the file's name or in that of the file it links to, whichever tells more.
fn version_of_file(path: &Path) -> Option<String> {
    [path.to_owned(), real(path)]
        .iter()
        .filter_map(|path| name_version(path.file_name()?.to_str()?, OS)?.map(str::to_owned))
        .max_by_key(|version| version.split('.').count())
}

/// The version in the name of a folder of the cache (`1.32.0-cpu`), or in a Python package's
/// `.dist-info`.
fn version_of_folder(path: &Path) -> Option<String> {
    let folder = path.parent()?;
    if let Some((version, "cpu" | "cuda")) = folder.file_name()?.to_str()?.rsplit_once('-') {
        return numbers(version).map(|_| version.to_owned());
    }
    if !folder.ends_with("onnxruntime/capi") {
        return None;
    }
    entries(folder.parent()?.parent()?).iter().find_map(|path| {
        let (name, version) = path.file_name()?.to_str()?.strip_suffix(".dist-info")?.split_once('-')?;
        (name.starts_with("onnxruntime") && numbers(version).is_some()).then(|| version.to_owned())
    })
}

/// `None` if `name` is not the library's on system `os` (a provider's is not), else the version
/// that it tells.
pub(super) fn name_version<'a>(name: &'a str, os: &str) -> Option<Option<&'a str>> {
    let rest = match os {
        "windows" => return name.eq_ignore_ascii_case("onnxruntime.dll").then_some(None),
        "macos" => name.strip_prefix("libonnxruntime")?.strip_suffix(".dylib")?,
        _ => name.strip_prefix("libonnxruntime.so")?,
    };
    match rest.strip_prefix('.') {
        Some(version) => numbers(version).map(|_| Some(version)),
        None => rest.is_empty().then_some(None),
    }
}

/// The library's name as a pattern for messages.
pub(super) fn library_pattern() -> &'static str {
    match OS {
        "windows" => "onnxruntime.dll",
        "macos" => "libonnxruntime*.dylib",
        _ => "libonnxruntime.so*",
    }
}

/// The parts of a dotted version, to compare as numbers.
fn numbers(version: &str) -> Option<Vec<u64>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

/// Whether a version is known to be before [`OLDEST_VERSION`]; a major number alone tells nothing.
pub(super) fn too_old(version: &str) -> bool {
    let oldest = numbers(OLDEST_VERSION).expect("the constant is dotted numbers");
    numbers(version).is_some_and(|version| version.len() >= oldest.len() && version < oldest)
}

/// The entries of a folder in the order of their names; none where it cannot be read.
pub(super) fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = read.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

pub(super) fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_library_itself_has_its_name() {
        for (os, name, expected) in [
            ("linux", "libonnxruntime.so", Some(None)),
            ("linux", "libonnxruntime.so.1", Some(Some("1"))),
            ("linux", "libonnxruntime.so.1.32.0", Some(Some("1.32.0"))),
            ("linux", "libonnxruntime_providers_cuda.so", None),
            ("linux", "libonnxruntime_providers_shared.so.1.32.0", None),
            ("linux", "libonnxruntime4j_jni.so", None),
            ("linux", "libonnxruntime.so.1.32.0.bak", None),
            ("linux", "libonnxruntime.so.", None),
            ("linux", "libonnxruntime.sox", None),
            ("macos", "libonnxruntime.dylib", Some(None)),
            ("macos", "libonnxruntime.1.32.0.dylib", Some(Some("1.32.0"))),
            ("macos", "libonnxruntime_providers_shared.dylib", None),
            ("windows", "onnxruntime.dll", Some(None)),
            ("windows", "OnnxRuntime.DLL", Some(None)),
            ("windows", "onnxruntime_providers_cuda.dll", None),
        ] {
            assert_eq!(name_version(name, os), expected, "{name} on {os}");
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        for (version, old) in [
            ("1.18.1", true),
            ("1.2", true),
            ("0.9.9", true),
            ("1.19", false),
            ("1.19.0", false),
            ("1.100.0", false),
            ("2.0", false),
            ("1", false),
        ] {
            assert_eq!(too_old(version), old, "{version}");
        }
    }
}
