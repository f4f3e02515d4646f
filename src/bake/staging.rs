//! A temporary folder beside the output, whose content is renamed into place when it is complete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::apply::folder;
use super::error::BakeError;
use super::layout::{model_name, normal};
use crate::files::{self, Temporary};
use crate::onnx::Model;

/// Longest name of a file or folder on common file systems, in bytes.
const MAX_NAME: usize = 255;

/// The output while it is made. Dropped without [`Staging::publish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Staging {
    temporary: Temporary,
    content: PathBuf,
    out: PathBuf,
    /// Name of the model file where the output is that file alone; `None` where it is a folder.
    single: Option<PathBuf>,
    swept: Vec<PathBuf>,
    /// Whether the names of what is published reach the disk.
    synced: bool,
}

impl Staging {
    /// Creates a temporary folder beside `out`, and cleans up what killed runs left there. An `out` that ends in
    /// `.onnx` stands for that one file and the external data of `model` beside it; any other is a folder.
    ///
    /// # Errors
    /// [`BakeError::OutputExists`] for anything that publishing would have to overwrite; a name that is too long.
    pub fn new(out: &Path, model: &Model) -> Result<Self, BakeError> {
        let single = out.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")).then(|| model_name(model));
        let parent = folder(out);
        check_name(out)?;
        let swept = files::sweep(parent);
        refuse_existing(out)?;
        if single.is_some() {
            for (location, _) in model.external_files() {
                refuse_existing(&parent.join(normal(&location)))?;
            }
        }
        let create = |source| BakeError::Io { action: "create", path: parent.to_path_buf(), source };
        fs::create_dir_all(parent).map_err(create)?;
        let temporary = Temporary::new_in(parent).map_err(create)?;
        let content = temporary.content();
        Ok(Self { temporary, content, out: out.to_path_buf(), single, swept, synced: true })
    }

    /// The same with or without the names brought to the disk by [`Self::publish`]. Without, a power cut may undo what was
    /// published, or part of it.
    #[must_use]
    pub fn synced(self, synced: bool) -> Self {
        Self { synced, ..self }
    }

    /// The folder to write into.
    pub fn path(&self) -> &Path {
        &self.content
    }

    /// What killed runs had left beside the output; it is gone now.
    pub fn swept(&self) -> &[PathBuf] {
        &self.swept
    }

    /// Moves what was written to its place. Returns the published paths, the model file last.
    ///
    /// # Errors
    /// If the output appeared meanwhile, or the operating system refuses. What was moved is taken back.
    pub fn publish(mut self) -> Result<Vec<PathBuf>, BakeError> {
        if self.synced {
            sync_folders(self.path())?;
        }
        let _publishing = files::publishing();
        let published = match self.single.take() {
            None => {
                move_folder(self.path(), &self.out)?;
                if self.synced {
                    sync(folder(&self.out))?;
                }
                vec![self.out.clone()]
            }
            Some(model) => self.publish_files(&model)?,
        };
        Ok(published)
    }

    fn publish_files(&mut self, model: &Path) -> Result<Vec<PathBuf>, BakeError> {
        let mut found = Vec::new();
        list(self.path(), Path::new(""), &mut found)?;
        found.sort_by_key(|file| file == model);
        let name = self.out.file_name().map(PathBuf::from).unwrap_or_default();
        let moves: Vec<(PathBuf, PathBuf)> =
            found.into_iter().map(|file| (file.clone(), if file == model { name.clone() } else { file })).collect();
        self.temporary.note(&moves).map_err(BakeError::write(self.path(), 0))?;
        let parent = folder(&self.out).to_path_buf();
        let mut done = Moved::new(self.synced);
        for (from, to) in moves {
            done.place(&self.path().join(&from), &parent, &to)?;
        }
        Ok(done.keep())
    }
}

/// What was moved so far. Dropped without [`Moved::keep`], it is taken back, with the folders made for it.
struct Moved {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    /// Whether every new name reaches the disk at once.
    synced: bool,
}

impl Moved {
    fn new(synced: bool) -> Self {
        Self { files: Vec::new(), folders: Vec::new(), synced }
    }

    /// Moves a file to `relative` in `parent` without ever replacing one.
    fn place(&mut self, from: &Path, parent: &Path, relative: &Path) -> Result<(), BakeError> {
        let to = parent.join(relative);
        let error = |source| BakeError::Io { action: "create", path: to.clone(), source };
        let mut at = parent.to_path_buf();
        for part in relative.parent().into_iter().flat_map(Path::components) {
            at.push(part);
            match fs::create_dir(&at) {
                Ok(()) => self.folders.push(at.clone()),
                Err(failed) if failed.kind() == io::ErrorKind::AlreadyExists => {}
                Err(failed) => return Err(error(failed)),
            }
        }
        move_file(from, &to)?;
        self.files.push(to.clone());
        if !self.synced {
            return Ok(());
        }
        sync(folder(&to))?;
        self.folders.iter().rev().try_for_each(|made| sync(folder(made)))
    }

    fn keep(mut self) -> Vec<PathBuf> {
        self.folders.clear();
        std::mem::take(&mut self.files)
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file); // the first error is the one to report
        }
        for made in self.folders.iter().rev() {
            let _ = fs::remove_dir(made); // one that something else came into stays
        }
    }
}

fn refuse_existing(path: &Path) -> Result<(), BakeError> {
    // a dangling link counts as present
    if path.symlink_metadata().is_ok() { Err(exists(path)) } else { Ok(()) }
}

fn exists(path: &Path) -> BakeError {
    BakeError::OutputExists { path: path.to_path_buf() }
}

fn check_name(out: &Path) -> Result<(), BakeError> {
    let invalid = |words: &'static str| BakeError::Io {
        action: "create",
        path: out.to_path_buf(),
        source: io::Error::new(io::ErrorKind::InvalidFilename, words),
    };
    match out.file_name() {
        None => Err(invalid("the output has no name")),
        Some(name) if name.len() > MAX_NAME => Err(invalid("its name is longer than 255 bytes")),
        Some(_) => Ok(()),
    }
}

/// Renames a folder to a name that nothing has, not even an empty folder.
fn move_folder(from: &Path, to: &Path) -> Result<(), BakeError> {
    let renaming = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => exists(to),
        _ => BakeError::Io { action: "rename to", path: to.to_path_buf(), source },
    };
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // a file system or a kernel without it
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {}
            Err(error) => return Err(renaming(error.into())),
        }
    }
    // making the folder fails where anything has the name; the rename replaces this empty one, and no other
    #[cfg(unix)]
    fs::create_dir(to).map_err(renaming)?;
    #[cfg(not(unix))]
    refuse_existing(to)?;
    fs::rename(from, to).map_err(renaming)
}

/// Moves a file without ever replacing one: a second name first; the old one goes with its folder.
fn move_file(from: &Path, to: &Path) -> Result<(), BakeError> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(failed) if failed.kind() == io::ErrorKind::AlreadyExists => Err(exists(to)),
        // a file system without hard links
        Err(_) => {
            refuse_existing(to)?;
            fs::rename(from, to).map_err(|source| BakeError::Io { action: "rename to", path: to.to_path_buf(), source })
        }
    }
}

fn sync(path: &Path) -> Result<(), BakeError> {
    files::sync_folder(path).map_err(BakeError::write(path, 0))
}

/// Makes the names in a folder and in all folders below it durable.
fn sync_folders(path: &Path) -> Result<(), BakeError> {
    for entry in fs::read_dir(path).map_err(BakeError::read(path))? {
        let entry = entry.map_err(BakeError::read(path))?;
        if entry.file_type().map_err(BakeError::read(path))?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    sync(path)
}

/// Files below `root`, relative to it.
fn list(root: &Path, under: &Path, found: &mut Vec<PathBuf>) -> Result<(), BakeError> {
    let path = root.join(under);
    for entry in fs::read_dir(&path).map_err(BakeError::read(&path))? {
        let entry = entry.map_err(BakeError::read(&path))?;
        let relative = under.join(entry.file_name());
        if entry.file_type().map_err(BakeError::read(&path))?.is_dir() {
            list(root, &relative, found)?;
        } else {
            found.push(relative);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_never_takes_the_place_of_anything() {
        let parent = tempfile::tempdir().unwrap();
        let (from, to) = (parent.path().join("from"), parent.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("a"), "a").unwrap();
        fs::create_dir(&to).unwrap();
        assert!(matches!(move_folder(&from, &to), Err(BakeError::OutputExists { .. })), "an empty folder was replaced");
        fs::remove_dir(&to).unwrap();
        fs::write(&to, "mine").unwrap();
        assert!(matches!(move_folder(&from, &to), Err(BakeError::OutputExists { .. })));
        assert_eq!(fs::read(&to).unwrap(), b"mine");
        fs::remove_file(&to).unwrap();
        move_folder(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("a")).unwrap(), b"a");
    }

    #[test]
    fn files_that_were_moved_are_taken_back_with_their_folders() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path();
        for name in ["a", "b"] {
            fs::write(root.join(name), name).unwrap();
        }
        let mut moved = Moved::new(true);
        moved.place(&root.join("a"), root, Path::new("new/deep/a")).unwrap();
        fs::write(root.join("taken"), "mine").unwrap();
        assert!(matches!(moved.place(&root.join("b"), root, Path::new("taken")), Err(BakeError::OutputExists { .. })));
        drop(moved);
        assert!(!root.join("new").exists());
        assert_eq!(fs::read(root.join("taken")).unwrap(), b"mine");
        let mut moved = Moved::new(true);
        moved.place(&root.join("a"), root, Path::new("new/a")).unwrap();
        assert_eq!(moved.keep(), [root.join("new/a")]);
        assert!(root.join("new/a").is_file());
    }
}
