//! Brings written files to the disk while others are still written or read, on a thread of its own.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// A file that could not be brought to the disk, and why.
pub type Unwritten = (PathBuf, io::Error);

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
    pub fn start(&self, path: &Path) {
        let mut state = self.shared.lock();
        if !state.wanted.contains(path) {
            state.wanted.insert(path.to_path_buf());
            self.shared.changed.notify_all();
        }
    }

    /// Waits until every file that it was told of is on the disk. The files may be moved or removed afterwards.
    ///
    /// # Errors
    /// The first file that could not be synced since the last call. Those that waited then were not synced.
    pub fn settle(&self) -> Result<(), Unwritten> {
        if self.thread.is_none() {
            self.shared.work(|state| state.wanted.is_empty());
        }
        let mut state = self.shared.lock();
        while state.failed.is_none() && (state.busy || !state.wanted.is_empty()) {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failed.take().map_or(Ok(()), Err)
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
            if let Err(error) = synced {
                state.wanted.clear();
                state.failed.get_or_insert((path, error));
            }
            self.changed.notify_all();
        }
    }
}

/// Brings one file to the disk.
fn sync(path: &Path) -> io::Result<()> {
    // a file that may only be read can be synced through any handle, but on Windows
    let mut options = OpenOptions::new();
    let file: File = options.read(true).write(cfg!(windows)).open(path)?;
    file.sync_all()
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
            disk.start(&there);
        }
        disk.settle().unwrap();
        disk.start(&absent);
        let (path, error) = disk.settle().unwrap_err();
        assert_eq!((path, error.kind()), (absent.clone(), io::ErrorKind::NotFound));
        disk.start(&there);
        disk.settle().unwrap();
        // what is left is left
        disk.start(&absent);
        drop(disk);
    }

    #[test]
    fn without_a_thread_files_are_synced_when_they_are_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        std::fs::write(&there, b"x").unwrap();
        let disk = WriteBack { shared: Arc::default(), thread: None };
        disk.start(&there);
        disk.settle().unwrap();
        disk.start(&folder.path().join("absent"));
        assert!(disk.settle().is_err());
    }
}
