//! A temporary sibling of the output, renamed into place when it is complete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::apply::{folder, sync_folder};
use super::error::BakeError;
use super::layout::{model_name, normal};
use crate::onnx::Model;

/// The output while it is made. Dropped without [`Staging::publish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Staging {
    temporary: TempDir,
    out: PathBuf,
    /// Name of the model file where the output is that file alone; `None` where it is a folder.
    single: Option<PathBuf>,
}

impl Staging {
    /// Creates a temporary folder beside `out`. An `out` that ends in `.onnx` stands for that one file and
    /// the external data of `model` beside it; any other is a folder.
    ///
    /// # Errors
    /// [`BakeError::OutputExists`] for anything that publishing would have to overwrite.
    pub fn new(out: &Path, model: &Model) -> Result<Self, BakeError> {
        let single = out.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")).then(|| model_name(model));
        refuse_existing(out)?;
        let parent = folder(out);
        if single.is_some() {
            for (location, _) in model.external_files() {
                refuse_existing(&parent.join(normal(&location)))?;
            }
        }
        let create = |source| BakeError::Io { action: "create", path: parent.to_path_buf(), source };
        fs::create_dir_all(parent).map_err(create)?;
        let Some(name) = out.file_name() else {
            return Err(create(io::Error::new(io::ErrorKind::InvalidInput, "the output has no name")));
        };
        let prefix = format!(".{}.lancet-", name.to_string_lossy());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let temporary = builder.tempdir_in(parent).map_err(create)?;
        Ok(Self { temporary, out: out.to_path_buf(), single })
    }

    /// The folder to write into.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Moves what was written to its place. Returns the published paths, the model file last.
    ///
    /// # Errors
    /// If the output appeared meanwhile, or the operating system refuses. What was moved is taken back.
    pub fn publish(self) -> Result<Vec<PathBuf>, BakeError> {
        sync_folder(self.path())?;
        let published = match &self.single {
            None => {
                refuse_existing(&self.out)?;
                rename(self.path(), &self.out)?;
                vec![self.out.clone()]
            }
            Some(model) => self.publish_files(model)?,
        };
        sync_folder(folder(&self.out))?;
        Ok(published)
    }

    fn publish_files(&self, model: &Path) -> Result<Vec<PathBuf>, BakeError> {
        let mut files = Vec::new();
        list(self.path(), Path::new(""), &mut files)?;
        files.sort_by_key(|file| file == model);
        let mut moved: Vec<PathBuf> = Vec::new();
        for file in files {
            let target = if file == model { self.out.clone() } else { folder(&self.out).join(&file) };
            if let Err(error) = place(&self.path().join(&file), &target) {
                for done in moved {
                    let _ = fs::remove_file(done); // the first error is the one to report
                }
                return Err(error);
            }
            moved.push(target);
        }
        Ok(moved)
    }
}

fn refuse_existing(path: &Path) -> Result<(), BakeError> {
    // a dangling link counts as present
    if path.symlink_metadata().is_ok() { Err(BakeError::OutputExists { path: path.to_path_buf() }) } else { Ok(()) }
}

fn rename(from: &Path, to: &Path) -> Result<(), BakeError> {
    fs::rename(from, to).map_err(|source| BakeError::Io { action: "rename to", path: to.to_path_buf(), source })
}

/// Moves a file without ever replacing one: a second name first, then the old one goes.
fn place(from: &Path, to: &Path) -> Result<(), BakeError> {
    let error = |source| BakeError::Io { action: "create", path: to.to_path_buf(), source };
    fs::create_dir_all(folder(to)).map_err(error)?;
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(failed) if failed.kind() == io::ErrorKind::AlreadyExists => {
            Err(BakeError::OutputExists { path: to.to_path_buf() })
        }
        // a file system without hard links
        Err(_) => {
            refuse_existing(to)?;
            rename(from, to)
        }
    }
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
