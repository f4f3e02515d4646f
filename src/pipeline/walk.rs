//! What lies in a folder: plain files and links to them, nothing outside it but what a link to a file names.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// Folders of version control and of download tools: they describe the input, not what is made of it.
const BOOKKEEPING: [&str; 5] = [".git", ".hg", ".svn", ".jj", ".bzr"];

/// A file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its place, relative to the folder.
    pub relative: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
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
}

/// Lists `root`. Folders that are one of `except` (by their real path) are not entered. Links are followed: to files
/// wherever they are (the layout of the Hugging Face cache), to folders only within `root`.
///
/// # Errors
/// If a folder cannot be read.
pub fn walk(root: &Path, except: &[PathBuf]) -> Result<Listing, Error> {
    let real = real(root)?;
    let mut listing = Listing::default();
    enter(&Start { root, real: &real, except }, Path::new(""), &mut vec![real.clone()], &mut listing)?;
    listing.files.sort();
    listing.left.sort();
    Ok(listing)
}

struct Start<'a> {
    root: &'a Path,
    real: &'a Path,
    except: &'a [PathBuf],
}

fn real(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(|e| unreadable(path, &e))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::usage(format!("cannot read `{}`: {error}", path.display()), "check that it exists, and its permissions")
}

/// `above` holds the real paths of the folders on the way here: a link back to one of them would never end.
fn enter(start: &Start<'_>, under: &Path, above: &mut Vec<PathBuf>, listing: &mut Listing) -> Result<(), Error> {
    let folder = start.root.join(under);
    for entry in std::fs::read_dir(&folder).map_err(|e| unreadable(&folder, &e))? {
        let entry = entry.map_err(|e| unreadable(&folder, &e))?;
        let relative = under.join(entry.file_name());
        let path = entry.path();
        let mut leave =
            |reason: &str| listing.left.push(Left { relative: relative.clone(), reason: reason.to_string() });
        let Ok(meta) = std::fs::metadata(&path) else {
            leave("a link that leads nowhere");
            continue;
        };
        if meta.is_file() {
            if is_report(&relative) {
                leave("the report of an earlier run");
            } else {
                listing.files.push(Entry { relative, bytes: meta.len() });
            }
            continue;
        }
        if !meta.is_dir() {
            leave("neither a file nor a folder");
            continue;
        }
        let real = real(&path)?;
        if start.except.contains(&real) {
            continue;
        }
        let name = entry.file_name();
        if BOOKKEEPING.iter().any(|known| name == *known) || relative.ends_with(".cache/huggingface") {
            leave("bookkeeping of version control or downloads");
        } else if path.join("lancet.json").is_file() {
            leave("the output of an earlier run");
        } else if above.contains(&real) {
            leave("a link to a folder that holds it");
        } else if !real.starts_with(start.real) {
            leave("a link to a folder outside");
        } else {
            above.push(real);
            enter(start, &relative, above, listing)?;
            above.pop();
        }
    }
    Ok(())
}

/// Whether a file is one that `lancet run` puts beside a model.
fn is_report(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return false };
    ["json", "html", "direction.safetensors"].iter().any(|end| {
        name.strip_suffix(end)
            .and_then(|n| n.strip_suffix('.'))
            .is_some_and(|n| n == "lancet" || n.ends_with(".lancet"))
    })
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
                "m.lancet.html",
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
        assert_eq!(files, [".cache/y", ".gitattributes", "a.onnx", "mylancet.json"]);
        assert_eq!(
            left,
            [".cache/huggingface", ".git", "lancet.direction.safetensors", "lancet.json", "m.lancet.html", "old"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_to_files_and_within_the_folder() {
        use std::os::unix::fs::symlink;
        let outer = tempfile::tempdir().unwrap();
        write(outer.path(), &["blobs/1", "root/sub/a", "elsewhere/secret"]);
        let root = outer.path().join("root");
        symlink(outer.path().join("blobs/1"), root.join("model.onnx")).unwrap();
        symlink(root.join("sub"), root.join("alias")).unwrap();
        symlink(&root, root.join("sub/loop")).unwrap();
        symlink(outer.path().join("elsewhere"), root.join("out")).unwrap();
        symlink(outer.path().join("absent"), root.join("dangling")).unwrap();
        let listing = walk(&root, &[]).unwrap();
        let (files, left) = names(&listing);
        assert_eq!(files, ["alias/a", "model.onnx", "sub/a"]);
        assert_eq!(left, ["alias/loop", "dangling", "out", "sub/loop"]);
        assert_eq!(listing.files[1].bytes, 7);
    }
}
