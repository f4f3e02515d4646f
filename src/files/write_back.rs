//! Brings written files to the disk while others are still written or read, on a thread of its own.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// A file that could not be brought to the disk.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{}`", path.display())]
pub struct Unwritten {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Syncs the files that it is told of, one after the other, in the order of their names. Each may be told of as often as
/// more was written to it: then it is synced again, and only what is new takes time. Dropped, it finishes the file at
/// hand and leaves the others.
#[derive(Debug)]
pub struct WriteBack {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: BTreeSet<PathBuf>,
    /// Whether a file is being synced.
    busy: bool,
    closed: bool,
    /// The first failure that was not told yet.
    failed: Option<Unwritten>,
    /// Each file that was synced, with its bytes at that time.
    #[cfg(test)]
    synced: Vec<(PathBuf, u64)>,
}

impl WriteBack {
    /// Starts the thread. Where the system gives none, the files are synced in [`Self::settle`].
    pub fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = Builder::new().name("write-back".into()).spawn(move || own.work(|state| state.closed)).ok();
        Self { shared, thread }
    }

    /// Has a file synced soon. What is written to it later needs another call.
    ///
    /// # Errors
    /// The first file that could not be synced since the last error. Those that waited then were not synced.
    pub fn start(&self, path: &Path) -> Result<(), Unwritten> {
        let mut state = self.shared.lock();
        if let Some(failed) = state.failed.take() {
            return Err(failed);
        }
        if !state.wanted.contains(path) {
            state.wanted.insert(path.to_path_buf());
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    /// Waits until every file that it was told of is on the disk. The files may be moved or removed afterwards.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn settle(&self) -> Result<(), Unwritten> {
        while !self.settled(Duration::from_secs(60))? {}
        Ok(())
    }

    /// The same for as long as `patience` lasts. Tells whether every file is on the disk.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn settled(&self, patience: Duration) -> Result<bool, Unwritten> {
        if self.thread.is_none() {
            self.shared.work(|state| state.wanted.is_empty());
        }
        let until = Instant::now() + patience;
        let mut state = self.shared.lock();
        loop {
            if let Some(failed) = state.failed.take() {
                return Err(failed);
            }
            let left = until.saturating_duration_since(Instant::now());
            match state.busy || !state.wanted.is_empty() {
                false => return Ok(true),
                true if left.is_zero() => return Ok(false),
                true => state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
    }

    /// Each file that was synced so far, in order, with its bytes at that time.
    #[cfg(test)]
    pub(crate) fn synced(&self) -> Vec<(PathBuf, u64)> {
        self.shared.lock().synced.clone()
    }
}

impl Default for WriteBack {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it does not panic
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs what is wanted until `done` says so.
    fn work(&self, done: impl Fn(&State) -> bool) {
        let mut state = self.lock();
        while !done(&state) {
            let Some(path) = state.wanted.pop_first() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy = true;
            drop(state);
            let synced = sync(&path);
            state = self.lock();
            state.busy = false;
            match synced {
                Err(source) => {
                    state.wanted.clear();
                    state.failed.get_or_insert(Unwritten { path, source });
                }
                #[cfg(test)]
                Ok(bytes) => state.synced.push((path, bytes)),
                #[cfg(not(test))]
                Ok(_) => (),
            }
            self.changed.notify_all();
        }
    }
}

/// Brings one file to the disk. Returns its bytes.
fn sync(path: &Path) -> io::Result<u64> {
    // a file that may only be read can be synced through any handle, but on Windows
    let mut options = OpenOptions::new();
    let file: File = options.read(true).write(cfg!(windows)).open(path)?;
    let bytes = file.metadata()?.len();
    file.sync_all()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_synced_and_failures_are_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let (there, absent) = (folder.path().join("there"), folder.path().join("absent"));
        std::fs::write(&there, b"x").unwrap();
        let disk = WriteBack::new();
        disk.settle().unwrap();
        for _ in 0..100 {
            disk.start(&there).unwrap();
        }
        disk.settle().unwrap();
        assert_eq!(disk.synced().last(), Some(&(there.clone(), 1)));
        disk.start(&absent).unwrap();
        let Unwritten { path, source } = disk.settle().unwrap_err();
        assert_eq!((path, source.kind()), (absent.clone(), io::ErrorKind::NotFound));
        disk.start(&there).unwrap();
        disk.settle().unwrap();
        // what is left is left
        disk.start(&absent).unwrap();
        drop(disk);
    }

    #[test]
    fn without_a_thread_files_are_synced_when_they_are_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        std::fs::write(&there, b"x").unwrap();
        let disk = WriteBack { shared: Arc::default(), thread: None };
        disk.start(&there).unwrap();
        disk.settle().unwrap();
        disk.start(&folder.path().join("absent")).unwrap();
        assert!(!matches!(disk.settled(Duration::ZERO), Ok(true)));
    }
}
