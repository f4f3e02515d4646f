//! What lies in a folder: plain files, and links within it or within its repository of the Hugging Face cache.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::files::{self, Place, Stray};

/// A file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its place, relative to the folder.
    pub relative: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// The plain file that it is, or that it is a link to.
    pub real: PathBuf,
}

/// Something that stays behind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Left {
    /// Its place, relative to the folder.
    pub relative: PathBuf,
    /// Why.
    pub reason: String,
}

/// Everything below a folder, sorted.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Files, and links to files.
    pub files: Vec<Entry>,
    /// What is no file of the folder.
    pub left: Vec<Left>,
    /// Links that lead elsewhere, pipes, devices: with these, nothing is made of the folder.
    pub refused: Vec<Left>,
}

/// Lists `root`. Folders that are one of `except` (by their real path) are not entered. Links are followed within `root`
/// and to the blobs of the same repository of the Hugging Face cache ([`Place`]).
///
/// # Errors
/// If a folder cannot be read.
pub fn walk(root: &Path, except: &[PathBuf]) -> Result<Listing, Error> {
    let place = Place::new(root).map_err(|e| unreadable(root, &e))?;
    let real = root.canonicalize().map_err(|e| unreadable(root, &e))?;
    let mut listing = Listing::default();
    let start = Start { root, real: &real, place: &place, except };
    enter(&start, Path::new(""), &mut vec![real.clone()], &mut listing)?;
    listing.files.sort();
    listing.left.sort();
    listing.refused.sort();
    Ok(listing)
}

struct Start<'a> {
    root: &'a Path,
    /// Its real path.
    real: &'a Path,
    place: &'a Place,
    except: &'a [PathBuf],
}

impl Start<'_> {
    /// Whether the target of a link, a real path, lies below a folder of the root that is not entered.
    fn in_an_output(&self, real: &Path) -> bool {
        let mut above =
            real.ancestors().skip(1).take_while(|folder| folder.starts_with(self.real) && *folder != self.real);
        above.any(|folder| self.except.iter().any(|known| known == folder) || folder.join(JSON).is_file())
    }
}

/// The report that marks a folder as an output.
const JSON: &str = "lancet.json";

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::usage(format!("cannot read `{}`: {error}", path.display()), "check that it exists, and its permissions")
}

/// `above` holds the real paths of the folders on the way here: a link back to one of them would never end.
fn enter(start: &Start<'_>, under: &Path, above: &mut Vec<PathBuf>, listing: &mut Listing) -> Result<(), Error> {
    let folder = start.root.join(under);
    for entry in std::fs::read_dir(&folder).map_err(|e| unreadable(&folder, &e))? {
        let entry = entry.map_err(|e| unreadable(&folder, &e))?;
        let (name, path) = (entry.file_name(), entry.path());
        let relative = under.join(&name);
        let mut leave =
            |reason: &str| listing.left.push(Left { relative: relative.clone(), reason: reason.to_string() });
        if files::is_unpublished(&name) {
            leave("left by a run that is under way or was killed");
            continue;
        }
        if files::is_hidden(&name) {
            leave("hidden, as what version control, editors and other programs keep: no part of a model");
            continue;
        }
        let real = match start.place.real(&path) {
            Ok(real) => real,
            Err(Stray::Io(error)) => return Err(unreadable(&path, &error)),
            Err(stray) => {
                listing.refused.push(Left { relative, reason: stray.to_string() });
                continue;
            }
        };
        if path.is_symlink() && start.in_an_output(&real) {
            leave("a link into the output of an earlier run");
            continue;
        }
        let meta = std::fs::metadata(&real).map_err(|e| unreadable(&path, &e))?;
        if meta.is_file() {
            if is_report(&relative) || is_marked_report(&real) {
                leave("the report of an earlier run");
            } else {
                listing.files.push(Entry { relative, bytes: meta.len(), real });
            }
            continue;
        }
        if start.except.contains(&real) {
            continue;
        }
        if path.join(JSON).is_file() {
            leave("the output of an earlier run");
        } else if above.contains(&real) {
            leave("a link to a folder that holds it");
        } else {
            above.push(real);
            enter(start, &relative, above, listing)?;
            above.pop();
        }
    }
    Ok(())
}

/// Whether a file is one that `lancet run` puts beside a model.
pub(super) fn is_report(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return false };
    ["json", "html", "md", "direction.safetensors"].iter().any(|end| {
        name.strip_suffix(end)
            .and_then(|n| n.strip_suffix('.'))
            .is_some_and(|n| n == "lancet" || n.ends_with(".lancet"))
    })
}

/// Whether a file is a report that `--report` put there, under whatever name.
pub(super) fn is_marked_report(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    matches!(extension, "html" | "json" | "md") && files::written_by_lancet(path)
}

/// A thing in a folder as it lies there: no link is followed, nothing is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thing {
    /// A plain file.
    File,
    /// A symbolic link.
    Link,
    /// A folder with nothing in it.
    EmptyFolder,
    /// A pipe, a socket, a device.
    Special,
}

/// Everything below a folder, hidden things too, relative to it and sorted.
///
/// # Errors
/// If a folder cannot be read.
pub(super) fn everything(root: &Path) -> Result<Vec<(PathBuf, Thing)>, Error> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(under) = open.pop() {
        let folder = root.join(&under);
        let mut empty = true;
        for entry in std::fs::read_dir(&folder).map_err(|e| unreadable(&folder, &e))? {
            let entry = entry.map_err(|e| unreadable(&folder, &e))?;
            empty = false;
            let relative = under.join(entry.file_name());
            let kind = entry.file_type().map_err(|e| unreadable(&entry.path(), &e))?;
            match kind {
                kind if kind.is_symlink() => found.push((relative, Thing::Link)),
                kind if kind.is_dir() => open.push(relative),
                kind if kind.is_file() => found.push((relative, Thing::File)),
                _ => found.push((relative, Thing::Special)),
            }
        }
        if empty && !under.as_os_str().is_empty() {
            found.push((under, Thing::EmptyFolder));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
    }

    fn names(listing: &Listing) -> (Vec<&str>, Vec<&str>) {
        (
            listing.files.iter().map(|f| f.relative.to_str().unwrap()).collect(),
            listing.left.iter().map(|l| l.relative.to_str().unwrap()).collect(),
        )
    }

    #[test]
    fn reports_bookkeeping_and_outputs_stay_behind() {
        let folder = tempfile::tempdir().unwrap();
        write(
            folder.path(),
            &[
                "a.onnx",
                ".gitattributes",
                ".git/HEAD",
                ".cache/huggingface/x",
                ".cache/y",
                "lancet.json",
                "lancet.md",
                "m.lancet.html",
                ".lancet-a1b2c3/output/model.onnx",
                "mine.md",
                "lancet.direction.safetensors",
                "mylancet.json",
                "old/lancet.json",
                "old/model.onnx",
                "new/b.onnx",
            ],
        );
        let except = [folder.path().join("new").canonicalize().unwrap()];
        // the root's own report does not make it an output that is skipped
        let listing = walk(folder.path(), &except).unwrap();
        let (files, left) = names(&listing);
        assert_eq!(files, [".gitattributes", "a.onnx", "mine.md", "mylancet.json"]);
        assert_eq!(
            left,
            [
                ".cache",
                ".git",
                ".lancet-a1b2c3",
                "lancet.direction.safetensors",
                "lancet.json",
                "lancet.md",
                "m.lancet.html",
                "old"
            ]
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_within_the_folder_and_others_refuse_it() {
        use std::os::unix::fs::symlink;
        let outer = tempfile::tempdir().unwrap();
        write(
            outer.path(),
            &["root/sub/a", "root/.git/config", "root/old/lancet.json", "root/old/s/b", "elsewhere/secret"],
        );
        let root = outer.path().join("root");
        symlink(outer.path().join("elsewhere/secret"), root.join("notes.txt")).unwrap();
        symlink(root.join("sub"), root.join("alias")).unwrap();
        symlink(&root, root.join("sub/loop")).unwrap();
        symlink(outer.path().join("elsewhere"), root.join("out")).unwrap();
        symlink(outer.path().join("absent"), root.join("dangling")).unwrap();
        symlink(root.join(".git/config"), root.join("LICENSE.txt")).unwrap();
        symlink(root.join(".git"), root.join("git")).unwrap();
        symlink(root.join("old/s"), root.join("olds")).unwrap();
        let listing = walk(&root, &[]).unwrap();
        let (files, left) = names(&listing);
        assert_eq!(files, ["alias/a", "sub/a"]);
        assert_eq!(left, [".git", "alias/loop", "old", "olds", "sub/loop"]);
        assert_eq!(listing.files[0].bytes, 10);
        assert_eq!(listing.files[0].real, root.canonicalize().unwrap().join("sub/a"));
        let refused: Vec<_> =
            listing.refused.iter().map(|l| (l.relative.to_str().unwrap(), l.reason.as_str())).collect();
        let out = "a link that leads out of the model's folder";
        let hidden = "a link that leads to a hidden file or folder";
        let expected = [
            ("LICENSE.txt", hidden),
            ("dangling", "a link that leads nowhere"),
            ("git", hidden),
            ("notes.txt", out),
            ("out", out),
        ];
        assert_eq!(refused, expected);
    }
}
