//! Installs the ONNX Runtime shared library into Lancet's cache.
//!
//! The source is the wheel on the Python package index, fetched by pip so that the user's own
//! settings (index, proxy, certificates, `find-links`) hold. Which wheel is fixed by [`super::wheel`],
//! whatever Python runs pip, and its SHA-256 is checked by pip and again here. An install appears
//! whole, by one rename, or not at all.

use super::follow::{Told, follow};
use super::search::{described, entries, library_in, name_version};
use super::wheel::{WHEEL_ABI, WHEEL_PYTHON, Wheel, pinned_version};
use super::{Environment, Flavour, LocateError, Located, PYTHON_VARIABLE, Source};

use crate::files;

use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::env::consts::OS;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// How long `pip --version` may take (a cold start on a slow disk takes seconds).
const PIP_PATIENCE: Duration = Duration::from_secs(30);
/// How many of pip's last lines an error keeps.
const LINES_KEPT: usize = 12;
/// How names of temporary folders begin, and the age at which one is an orphan's.
const TEMPORARY: &str = ".installing.";
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// What happens while [`install`] works, for a progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstallEvent<'a> {
    /// The command that fetches is about to run.
    Command(&'a str),
    /// It printed this line.
    Line(&'a str),
    /// So many bytes of the wheel are here.
    Bytes {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: Option<u64>,
    },
    /// The wheel is here and its SHA-256 is being checked.
    Verifying(&'a Path),
    /// This file is being unpacked from the wheel.
    Unpacking(&'a str),
}

/// Fetches the pinned library for this machine into Lancet's cache, or returns the one that is
/// there already.
///
/// Needs a Python with pip, and what that pip needs (mostly the network). Safe in several processes
/// at once.
pub fn install(flavour: Flavour, on_event: &mut dyn FnMut(InstallEvent<'_>)) -> Result<Located, LocateError> {
    install_in(&Environment::process(), flavour, on_event)
}

/// As [`install`], with the cache and the Python of `environment`.
pub fn install_in(
    environment: &Environment,
    flavour: Flavour,
    on_event: &mut dyn FnMut(InstallEvent<'_>),
) -> Result<Located, LocateError> {
    install_wheel(environment, Wheel::pinned(flavour)?, on_event)
}

fn install_wheel(
    environment: &Environment,
    wheel: &Wheel,
    on_event: &mut dyn FnMut(InstallEvent<'_>),
) -> Result<Located, LocateError> {
    let cache = environment.cache_dir()?.join("onnxruntime");
    let target = cache.join(format!("{}-{}", pinned_version(wheel.flavour), wheel.flavour));
    if let Some(located) = installed(&target, wheel.flavour) {
        return Ok(located);
    }
    fs::create_dir_all(&cache).map_err(failed("create folder", &cache))?;
    remove_orphans(&cache);
    // Removed when dropped, whichever way this function is left. Inside the cache, so that the rename is one.
    let temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempdir_in(&cache)
        .map_err(failed("create a temporary folder in", &cache))?;
    crate::files::abandon_too(temporary.path());

    let archive = download(environment, wheel, temporary.path(), on_event)?;
    on_event(InstallEvent::Verifying(&archive));
    verify(&archive, wheel.sha256)?;
    let unpacked = temporary.path().join("unpacked");
    unpack(&archive, &unpacked, wheel.flavour, on_event)?;
    publish(&unpacked, &target, &temporary, wheel.flavour)
}

/// The install at `target`, if it is whole.
fn installed(target: &Path, flavour: Flavour) -> Option<Located> {
    let located = described(library_in(target)?, Source::Cache);
    (flavour == Flavour::Cpu || located.cuda).then_some(located)
}

/// Removes what processes that were killed left behind. Only tidiness, so a failure is not one.
fn remove_orphans(cache: &Path) {
    for path in entries(cache) {
        let is_temporary = path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(TEMPORARY));
        let age = fs::metadata(&path)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if is_temporary && age.is_some_and(|age| age > ORPHAN_AGE) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// A way to run pip.
struct Pip {
    program: OsString,
    arguments: &'static [&'static str],
}

impl Pip {
    /// The first that runs.
    fn find(environment: &Environment) -> Result<Self, LocateError> {
        const MODULE: &[&str] = &["-m", "pip"];
        let pythons = environment.pythons();
        let by_name = !pythons.is_empty() && environment.variable(PYTHON_VARIABLE).is_none();
        let mut ways: Vec<Self> = pythons.into_iter().map(|program| Self { program, arguments: MODULE }).collect();
        if by_name {
            ways.extend(["pip3", "pip"].map(|name| Self { program: name.into(), arguments: &[] }));
        }
        let mut tried = Vec::new();
        for pip in ways {
            let mut command = pip.command();
            command.arg("--version");
            let mut last = String::new();
            let outcome = follow(command, Some(PIP_PATIENCE), &mut |told| {
                if let Told::Output(line) | Told::Error(line) = told {
                    last = line.to_owned();
                }
            });
            let reason = match outcome {
                Ok(status) if status.success() => return Ok(pip),
                Ok(_) if !last.is_empty() => last,
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            tried.push(format!("`{}`: {reason}", pip.name()));
        }
        Err(LocateError::NoPip { tried })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Safe path: no `pip.py` from the working folder.
        command.args(self.arguments).env("PYTHONSAFEPATH", "1").env("PYTHONUNBUFFERED", "1");
        command
    }

    fn name(&self) -> String {
        let mut name = self.program.to_string_lossy().into_owned();
        for argument in self.arguments {
            name = format!("{name} {argument}");
        }
        name
    }
}

/// Lets pip fetch the wheel into `temporary`.
fn download(
    environment: &Environment,
    wheel: &Wheel,
    temporary: &Path,
    on_event: &mut dyn FnMut(InstallEvent<'_>),
) -> Result<PathBuf, LocateError> {
    let pip = Pip::find(environment)?;
    let requirements = temporary.join("requirements.txt");
    fs::write(&requirements, format!("{} --hash=sha256:{}\n", wheel.requirement(), wheel.sha256))
        .map_err(failed("write", &requirements))?;
    let destination = temporary.join("wheel");
    fs::create_dir(&destination).map_err(failed("create folder", &destination))?;

    let mut command = pip.command();
    command
        .args(["download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar", "off"])
        .args(["--disable-pip-version-check", "--implementation", "cp", "--abi", WHEEL_ABI])
        .args(["--python-version", WHEEL_PYTHON, "--platform", wheel.platform])
        .args(["--require-hashes", "--requirement"])
        .arg(&requirements)
        .arg("--dest")
        .arg(&destination);
    on_event(InstallEvent::Command(&shown(&command)));
    // pip downloads into the temporary folder first. There its growth can be seen, and nothing stays behind.
    command.env("TMPDIR", temporary).env("TEMP", temporary).env("TMP", temporary);

    let mut kept: VecDeque<String> = VecDeque::new();
    let mut done = 0;
    let status = follow(command, None, &mut |told| match told {
        Told::Output(line) | Told::Error(line) => {
            if !line.trim().is_empty() {
                if kept.len() == LINES_KEPT {
                    kept.pop_front();
                }
                kept.push_back(line.to_owned());
                on_event(InstallEvent::Line(line));
            }
        }
        Told::Tick => {
            let now = largest_wheel(temporary);
            if now > done {
                done = now;
                on_event(InstallEvent::Bytes { done, total: Some(wheel.bytes) });
            }
        }
    })
    .map_err(failed("run pip for", &destination))?;

    let archive = destination.join(wheel.file_name());
    if status.success() && archive.is_file() {
        let done = fs::metadata(&archive).map_or(wheel.bytes, |metadata| metadata.len());
        on_event(InstallEvent::Bytes { done, total: Some(wheel.bytes) });
        return Ok(archive);
    }
    if status.success() {
        kept.push_back(format!("it left no `{}`", wheel.file_name()));
    }
    Err(LocateError::Pip {
        program: pip.name(),
        package: wheel.requirement(),
        folder: destination,
        status,
        output: kept.into(),
    })
}

/// A command as one would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| {
        let word = word.to_string_lossy();
        if word.contains(char::is_whitespace) { format!("\"{word}\"") } else { word.into_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The size of the largest `.whl` in `folder` and its folders; pip's own are one deep.
fn largest_wheel(folder: &Path) -> u64 {
    let nested = entries(folder).into_iter().flat_map(|path| {
        let inner = entries(&path);
        std::iter::once(path).chain(inner)
    });
    nested
        .filter(|path| path.extension() == Some(OsStr::new("whl")))
        .filter_map(|path| Some(fs::metadata(path).ok()?.len()))
        .max()
        .unwrap_or(0)
}

/// Refuses a file with another SHA-256.
fn verify(path: &Path, expected: &str) -> Result<(), LocateError> {
    let mut file = files::open(path).map_err(failed("read", path))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(failed("read", path))? {
            0 => break,
            read => hasher.update(&block[..read]),
        }
    }
    let got: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if got == expected {
        return Ok(());
    }
    Err(LocateError::Hash { path: path.to_owned(), expected: expected.to_owned(), got })
}

/// Unpacks the library, for CUDA its providers too, and the licence texts, into the new folder
/// `into`.
fn unpack(
    archive: &Path,
    into: &Path,
    flavour: Flavour,
    on_event: &mut dyn FnMut(InstallEvent<'_>),
) -> Result<(), LocateError> {
    let damaged = |reason: String| LocateError::Wheel { path: archive.to_owned(), reason };
    fs::create_dir(into).map_err(failed("create folder", into))?;
    let file = files::open(archive).map_err(failed("read", archive))?;
    let mut wheel = zip::ZipArchive::new(BufReader::new(file)).map_err(|error| damaged(error.to_string()))?;
    for index in 0..wheel.len() {
        let mut entry = wheel.by_index(index).map_err(|error| damaged(error.to_string()))?;
        let name = entry.name().map_err(|error| damaged(error.to_string()))?.into_owned();
        let Some(name) = wanted(&name, flavour, OS) else {
            continue;
        };
        on_event(InstallEvent::Unpacking(name));
        let path = into.join(name);
        let mut file = File::create(&path).map_err(failed("write", &path))?;
        let mut block = vec![0; 1 << 20];
        loop {
            match entry.read(&mut block).map_err(|error| damaged(error.to_string()))? {
                0 => break,
                read => file.write_all(&block[..read]).map_err(failed("write", &path))?,
            }
        }
        file.sync_all().map_err(failed("write", &path))?;
    }
    sync_folder(into)?;
    match installed(into, flavour) {
        Some(_) => Ok(()),
        None => Err(damaged(format!("it holds no library for {flavour}"))),
    }
}

/// The file name to unpack an entry of the wheel under, if it is wanted. It never has a folder in
/// it.
fn wanted<'a>(entry: &'a str, flavour: Flavour, os: &str) -> Option<&'a str> {
    let name = entry.strip_prefix("onnxruntime/")?;
    if name == "LICENSE" || name == "ThirdPartyNotices.txt" {
        return Some(name);
    }
    let name = name.strip_prefix("capi/").filter(|name| !name.contains(['/', '\\', ':']))?;
    let (prefix, suffix) = match os {
        "windows" => ("onnxruntime_providers_", ".dll"),
        _ => ("libonnxruntime_providers_", ".so"),
    };
    let is_provider = name.starts_with(prefix) && name.ends_with(suffix);
    (name_version(name, os).is_some() || (is_provider && flavour == Flavour::Cuda)).then_some(name)
}

/// Gives the unpacked folder its final name. Where another process was first, its install is taken.
fn publish(unpacked: &Path, target: &Path, temporary: &TempDir, flavour: Flavour) -> Result<Located, LocateError> {
    let mut outcome = fs::rename(unpacked, target);
    if outcome.is_err() && installed(target, flavour).is_none() && target.exists() {
        // What is there is not an install: someone took the library out of it.
        let _ = fs::rename(target, temporary.path().join("replaced"));
        outcome = fs::rename(unpacked, target);
    }
    match (outcome, installed(target, flavour)) {
        (Ok(()), Some(located)) => {
            sync_folder(target.parent().expect("the target was joined to the cache"))?;
            Ok(located)
        }
        (Err(_), Some(located)) => Ok(located),
        (Err(source), None) => Err(failed("rename the finished install to", target)(source)),
        (Ok(()), None) => Err(failed("read", target)(io::ErrorKind::NotFound.into())),
    }
}

/// Makes the names in a folder durable, where the system can.
fn sync_folder(folder: &Path) -> Result<(), LocateError> {
    files::sync_folder(folder).map_err(failed("write", folder))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LocateError {
    let path = path.to_owned();
    move |source| LocateError::Io { action, path, source }
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::follow::testing::{alone, script};
    use super::super::{CACHE_VARIABLE, LocateError};
    use super::*;
    use std::env::consts::ARCH;

    /// Answers `--version`, then does `body` with the folder for the wheel in `$dest`.
    fn fake_pip(folder: &Path, body: &str) -> Environment {
        let body = format!(
            "case \"$*\" in *--version*) echo 'pip 99.0'; exit 0;; esac\n\
             while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n{body}"
        );
        Environment::isolated()
            .with_variable(PYTHON_VARIABLE, script(folder, &body))
            .with_variable(CACHE_VARIABLE, folder.join("cache"))
    }

    fn left_in_cache(folder: &Path) -> Vec<PathBuf> {
        entries(&folder.join("cache/onnxruntime"))
    }

    fn library() -> &'static str {
        if cfg!(target_os = "macos") { "libonnxruntime.1.32.0.dylib" } else { "libonnxruntime.so.1.32.0" }
    }

    /// A small wheel at `path`, and its entry in the table.
    fn small_wheel(path: &Path, names: &[&str]) -> Wheel {
        let mut archive = zip::ZipWriter::new(File::create(path).unwrap());
        for name in names {
            archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(name.as_bytes()).unwrap();
        }
        archive.finish().unwrap();
        let bytes = fs::read(path).unwrap();
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Wheel {
            flavour: Flavour::Cpu,
            os: OS,
            arch: ARCH,
            platform: "any",
            sha256: Box::leak(sha256.into_boxed_str()),
            bytes: bytes.len() as u64,
        }
    }

    #[test]
    fn only_libraries_and_licences_are_unpacked() {
        for (entry, os, cpu, cuda) in [
            ("onnxruntime/capi/libonnxruntime.so.1.32.0", "linux", true, true),
            ("onnxruntime/capi/libonnxruntime_providers_cuda.so", "linux", false, true),
            ("onnxruntime/capi/libonnxruntime_providers_shared.so", "linux", false, true),
            ("onnxruntime/capi/onnxruntime_pybind11_state.so", "linux", false, false),
            ("onnxruntime/capi/libonnxruntime.1.32.0.dylib", "macos", true, true),
            ("onnxruntime/capi/onnxruntime.dll", "windows", true, true),
            ("onnxruntime/capi/onnxruntime_providers_cuda.dll", "windows", false, true),
            ("onnxruntime/capi/DirectML.dll", "windows", false, false),
            ("onnxruntime/LICENSE", "linux", true, true),
            ("onnxruntime/ThirdPartyNotices.txt", "linux", true, true),
            ("onnxruntime/__init__.py", "linux", false, false),
            ("onnxruntime/capi/", "linux", false, false),
            ("onnxruntime/capi/libonnxruntime_providers_/../../x.so", "linux", false, false),
            ("../onnxruntime/capi/libonnxruntime.so", "linux", false, false),
        ] {
            assert_eq!(wanted(entry, Flavour::Cpu, os).is_some(), cpu, "{entry}");
            assert_eq!(wanted(entry, Flavour::Cuda, os).is_some(), cuda, "{entry}");
        }
    }

    #[test]
    fn a_failing_pip_gives_its_last_lines_and_a_hint() {
        let _alone = alone();
        let root = TempDir::new().unwrap();
        let environment = fake_pip(root.path(), "echo 'ERROR: no route to host' >&2; exit 3");
        let wheel = small_wheel(&root.path().join("unused.whl"), &[]);
        let mut events = Vec::new();
        let error = install_wheel(&environment, &wheel, &mut |event| events.push(format!("{event:?}"))).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("onnxruntime==1.32.0") && message.contains("exit status: 3"), "{message}");
        assert!(message.contains("\n  ERROR: no route to host"), "{message}");
        let hint = error.hint().unwrap();
        for way in ["pip install onnxruntime", "--ort-lib", "ORT_DYLIB_PATH", "lancet runtime install"] {
            assert!(hint.contains(way), "{hint}");
        }
        assert!(events[0].starts_with("Command") && events[0].contains("--require-hashes"), "{events:?}");
        assert!(events.iter().any(|event| event.contains("no route to host")), "{events:?}");
        assert_eq!(left_in_cache(root.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn no_python_and_no_pip_say_so() {
        let _alone = alone();
        let root = TempDir::new().unwrap();
        let wheel = small_wheel(&root.path().join("unused.whl"), &[]);
        let without_pip = script(root.path(), "echo 'No module named pip' >&2; exit 1");
        for (python, part) in
            [(PathBuf::from("/no/such/python"), "/no/such/python -m pip"), (without_pip, "No module named pip")]
        {
            let environment = Environment::isolated()
                .with_variable(PYTHON_VARIABLE, python)
                .with_variable(CACHE_VARIABLE, root.path().join("cache"));
            let error = install_wheel(&environment, &wheel, &mut |_| {}).unwrap_err();
            assert!(matches!(&error, LocateError::NoPip { .. }), "{error:?}");
            assert!(error.to_string().contains(part), "{error}");
            assert!(error.hint().unwrap().contains("LANCET_PYTHON"));
        }
        assert_eq!(left_in_cache(root.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_wheel_with_another_sum_is_refused() {
        let _alone = alone();
        let root = TempDir::new().unwrap();
        let wheel = small_wheel(&root.path().join("good.whl"), &["onnxruntime/LICENSE"]);
        let body = format!("printf garbage > \"$dest/{}\"", wheel.file_name());
        let error = install_wheel(&fake_pip(root.path(), &body), &wheel, &mut |_| {}).unwrap_err();
        let LocateError::Hash { expected, got, .. } = &error else { panic!("{error:?}") };
        assert_eq!(expected, wheel.sha256);
        assert_ne!(got, expected);
        assert_eq!(left_in_cache(root.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_wheel_without_the_library_or_no_wheel_at_all_is_refused() {
        let _alone = alone();
        let root = TempDir::new().unwrap();
        let source = root.path().join("empty.whl");
        let wheel = small_wheel(&source, &["onnxruntime/LICENSE"]);
        let body = format!("cp '{}' \"$dest/{}\"", source.display(), wheel.file_name());
        let error = install_wheel(&fake_pip(root.path(), &body), &wheel, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("holds no library for cpu"), "{error}");

        let error = install_wheel(&fake_pip(root.path(), "exit 0"), &wheel, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("it left no `onnxruntime-1.32.0-"), "{error}");
        assert_eq!(left_in_cache(root.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn an_install_is_whole_is_found_again_and_mends_a_broken_one() {
        let _alone = alone();
        let root = TempDir::new().unwrap();
        let source = root.path().join("small.whl");
        let entry = format!("onnxruntime/capi/{}", library());
        let wheel = small_wheel(&source, &["onnxruntime/LICENSE", &entry, "onnxruntime/__init__.py"]);
        let body = format!("cp '{}' \"$dest/{}\"", source.display(), wheel.file_name());
        let environment = fake_pip(root.path(), &body);
        let target = root.path().join("cache/onnxruntime/1.32.0-cpu");
        // Someone took the library out of an earlier install.
        fs::create_dir_all(&target).unwrap();
        fs::write(target.join("LICENSE"), "old").unwrap();

        let mut last = None;
        let located = install_wheel(&environment, &wheel, &mut |event| {
            if let InstallEvent::Bytes { done, total } = event {
                last = Some((done, total));
            }
        })
        .unwrap();
        assert_eq!((&located.path, located.source), (&target.join(library()), Source::Cache));
        assert_eq!(last, Some((wheel.bytes, Some(wheel.bytes))));
        assert_eq!(fs::read_to_string(&located.path).unwrap(), entry);
        let names: Vec<_> = entries(&target).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["LICENSE", library()]);
        assert_eq!(left_in_cache(root.path()), [target]);

        // The second time nothing runs.
        let environment = environment.with_variable(PYTHON_VARIABLE, "/no/such/python");
        let again = install_wheel(&environment, &wheel, &mut |_| panic!("nothing to do")).unwrap();
        assert_eq!(again, located);
    }

    #[test]
    fn two_installs_at_once_are_one() {
        let _alone = alone();
        let root = TempDir::new().unwrap();
        let source = root.path().join("small.whl");
        let wheel = small_wheel(&source, &[&format!("onnxruntime/capi/{}", library())]);
        let body = format!("sleep 0.2; cp '{}' \"$dest/{}\"", source.display(), wheel.file_name());
        let environment = fake_pip(root.path(), &body);
        let found: Vec<Located> = std::thread::scope(|scope| {
            let one = || install_wheel(&environment, &wheel, &mut |_| {}).unwrap();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(found.iter().all(|located| *located == found[0] && located.path.is_file()));
        assert_eq!(left_in_cache(root.path()).len(), 1);
    }
}
