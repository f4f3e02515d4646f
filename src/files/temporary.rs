//! Folders in which an output is made before it is published. Each says whose it is: a lock that its process holds
//! tells a living one from what a killed one left, and the next one beside it cleans that up.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Begins the name of every folder and file that is not yet published.
pub const PREFIX: &str = ".lancet-";

/// Ends the name of a single file that is not yet published.
pub const PART: &str = ".part";

/// First line of the file that says whose a folder is.
const MARK: &str = "lancet staging 1\n";

/// The file that says whose a folder is; its owner holds a lock on it.
const OWNER: &str = "owner";

/// The folder in it that is published.
const CONTENT: &str = "output";

/// How often a new folder is tried, should another process clean it up before it is locked.
const ATTEMPTS: usize = 16;

/// The folders of this process, to be removed where it is stopped.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Held while something is published.
static PUBLISHING: Mutex<()> = Mutex::new(());

/// A folder beside an output, `.lancet-…`, with a lock in it. Dropped, it is gone with all that is left in it.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    owner: File,
}

impl Temporary {
    /// A new one in `parent`.
    ///
    /// # Errors
    /// Whatever the operating system reports.
    pub fn new_in(parent: &Path) -> io::Result<Self> {
        let mut last = io::Error::other("it is removed again and again");
        for _ in 0..ATTEMPTS {
            match Self::attempt(parent) {
                Ok(Some(made)) => return Ok(made),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// `None` where another process took the folder for one that was left.
    fn attempt(parent: &Path) -> io::Result<Option<Self>> {
        // the permissions of a temporary folder: nobody else looks in while it is made
        let path = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?.keep();
        registered().push(path.clone());
        let made = (|| {
            let mut owner = OpenOptions::new().read(true).append(true).create_new(true).open(path.join(OWNER))?;
            match owner.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                // a file system without locks: such folders are never taken for left ones
                Err(TryLockError::Error(_)) => {}
            }
            owner.write_all(MARK.as_bytes())?;
            let content = path.join(CONTENT);
            fs::create_dir(&content)?;
            #[cfg(unix)]
            fs::set_permissions(&content, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            Ok(Some(owner))
        })();
        match made {
            Ok(Some(owner)) => Ok(Some(Self { path, owner })),
            failed => {
                forget(&path);
                let _ = fs::remove_dir_all(&path); // the other process removes it too, or the first error is reported
                failed.map(|_| None)
            }
        }
    }

    /// The folder to write into.
    pub fn content(&self) -> PathBuf {
        self.path.join(CONTENT)
    }

    /// Notes which file of [`Self::content`] goes where in the folder beside, the one that makes the others whole last:
    /// should this process be killed before that one is there, the next one takes the others back.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note(&mut self, moves: &[(PathBuf, PathBuf)]) -> io::Result<()> {
        let lines: Vec<(&str, &str)> = moves.iter().filter_map(|(a, b)| Some((a.to_str()?, b.to_str()?))).collect();
        if lines.len() == moves.len() {
            self.owner.write_all(serde_json::to_string(&lines)?.as_bytes())?;
            self.owner.sync_all()?;
            super::sync_folder(&self.path)?;
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // nothing else can be done
        forget(&self.path);
    }
}

/// While it is held, [`abandon_all`] waits: something is being published.
pub fn publishing() -> MutexGuard<'static, ()> {
    PUBLISHING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a temporary folder removed by [`abandon_all`] too.
pub fn abandon_too(path: &Path) {
    registered().push(path.to_path_buf());
}

/// Removes every folder of this process, which is about to end, and takes half-published files back. Gives up after
/// `patience`: what is left then is cleaned up by the next run.
pub fn abandon_all(patience: Duration) {
    let started = Instant::now();
    let _publishing = loop {
        match PUBLISHING.try_lock() {
            Ok(guard) => break guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) if started.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(std::sync::TryLockError::WouldBlock) => return,
        }
    };
    for path in std::mem::take(&mut *registered()) {
        undo(&path);
        // threads that still write may add a file meanwhile
        while fs::remove_dir_all(&path).is_err() && path.exists() && started.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes what killed processes left in `parent`, and returns what that was. A folder whose owner lives stays.
pub fn sweep(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let mut removed: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| is_unpublished(&entry.file_name()))
        .map(|entry| entry.path())
        .filter(|path| left(path).unwrap_or(false))
        .collect();
    removed.sort();
    removed
}

/// Whether a name is one that unpublished folders and files have.
pub fn is_unpublished(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX))
}

/// Removes one folder or file if its owner is dead.
fn left(path: &Path) -> io::Result<bool> {
    let kind = path.symlink_metadata()?.file_type();
    if kind.is_file() && path.to_string_lossy().ends_with(PART) {
        let file = super::open(path)?;
        if file.try_lock().is_err() {
            return Ok(false);
        }
        fs::remove_file(path)?;
        return Ok(true);
    }
    if !kind.is_dir() {
        return Ok(false);
    }
    let owner = match super::open(&path.join(OWNER)) {
        Ok(owner) => owner,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // killed before it said whose it is; a folder with anything in it is not ours
            fs::remove_dir(path)?;
            return Ok(true);
        }
        Err(error) => return Err(error),
    };
    if owner.try_lock().is_err() {
        return Ok(false);
    }
    let mut head = Vec::new();
    (&owner).take(MARK.len() as u64).read_to_end(&mut head)?;
    // killed between the file and its first line, it is empty
    if !MARK.as_bytes().starts_with(&head) {
        return Ok(false);
    }
    undo(path);
    fs::remove_dir_all(path)?;
    Ok(true)
}

/// Takes back the files of an output of several that was published in part: those that are still the very files in
/// `staging`, unless the last is there too.
fn undo(staging: &Path) {
    let Ok(text) = super::read_text(&staging.join(OWNER), super::MAX_CONFIG) else { return };
    let Some(moves) = text.strip_prefix(MARK) else { return };
    let Ok(moves) = serde_json::from_str::<Vec<(PathBuf, PathBuf)>>(moves) else { return };
    let parent = super::folder_of(staging);
    let plain = |path: &Path| path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let moves: Vec<(PathBuf, PathBuf)> = moves
        .into_iter()
        .filter(|(from, to)| plain(from) && plain(to))
        .map(|(from, to)| (staging.join(CONTENT).join(from), parent.join(to)))
        .collect();
    if moves.last().is_none_or(|(from, to)| same_file(from, to)) {
        return;
    }
    for (from, to) in moves {
        if same_file(&from, &to) {
            let _ = fs::remove_file(to); // what cannot be removed stays, and is refused as an existing output
        }
    }
}

/// Whether two paths are one file.
fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |path: &Path| path.symlink_metadata().ok().filter(|m| m.is_file()).map(|m| (m.dev(), m.ino()));
        id(a).is_some() && id(a) == id(b)
    }
    #[cfg(not(unix))]
    {
        let _ = (a, b);
        false
    }
}

fn registered() -> MutexGuard<'static, Vec<PathBuf>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn forget(path: &Path) {
    registered().retain(|known| known != path);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a killed process leaves: the same files, and no lock.
    fn killed(parent: &Path, name: &str, owner: Option<&str>) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir_all(path.join(CONTENT)).unwrap();
        fs::write(path.join(CONTENT).join("model.onnx"), "half").unwrap();
        if let Some(owner) = owner {
            fs::write(path.join(OWNER), owner).unwrap();
        }
        path
    }

    #[test]
    fn what_a_killed_process_left_goes_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let alive = Temporary::new_in(parent.path()).unwrap();
        let dead = killed(parent.path(), ".lancet-dead", Some(MARK));
        let early = killed(parent.path(), ".lancet-early", Some(""));
        let foreign = killed(parent.path(), ".lancet-foreign", Some("mine"));
        let unmarked = killed(parent.path(), ".lancet-unmarked", None);
        fs::write(parent.path().join(".lancet-x.part"), "half").unwrap();
        fs::create_dir(parent.path().join(".lancet-bare")).unwrap();
        let mut removed =
            vec![parent.path().join(".lancet-bare"), dead.clone(), early.clone(), parent.path().join(".lancet-x.part")];
        removed.sort();
        assert_eq!(sweep(parent.path()), removed);
        assert!(!dead.exists() && !early.exists() && foreign.exists() && unmarked.exists());
        assert!(alive.content().is_dir());
        drop(alive);
        let names: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[cfg(unix)]
    #[test]
    fn half_of_an_output_is_taken_back_and_a_whole_one_stays() {
        for whole in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let path = killed(parent.path(), ".lancet-dead", None);
            let content = path.join(CONTENT);
            fs::write(content.join("data"), "weights").unwrap();
            fs::write(path.join(OWNER), format!("{MARK}[[\"data\",\"data\"],[\"model.onnx\",\"out.onnx\"]]")).unwrap();
            fs::hard_link(content.join("data"), parent.path().join("data")).unwrap();
            if whole {
                fs::hard_link(content.join("model.onnx"), parent.path().join("out.onnx")).unwrap();
            }
            sweep(parent.path());
            assert_eq!(parent.path().join("data").exists(), whole);
            assert!(!path.exists());
        }
    }
}
