//! Where a link of a model's folder may lead: to the folder itself, or to the blobs of the same Hugging Face
//! repository.

use std::io;
use std::path::{Path, PathBuf};

use super::special;

/// A folder that a user named, and what its links may lead to.
#[derive(Debug, Clone)]
pub struct Place {
    /// Real paths; a link leads below one of them.
    within: Vec<PathBuf>,
}

/// Why a path of a folder is not read.
#[derive(Debug)]
pub enum Stray {
    /// A link that leads nowhere.
    Dangling,
    /// A link that leads out of the folder, to this real path.
    Outside(PathBuf),
    /// Something hidden, or below a folder that is: its name begins with a dot ([`is_hidden`]).
    Hidden,
    /// A pipe, a socket, a device: what it is.
    Special(&'static str),
    /// The operating system refused.
    Io(io::Error),
}

/// Whether a name is one of those that systems hide. Version control, credentials, editors and caches keep their files
/// under such names, and models do not, but for the `.gitattributes` of their repositories.
pub fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") && name != ".gitattributes"
}

impl std::fmt::Display for Stray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dangling => f.write_str("a link that leads nowhere"),
            Self::Outside(_) => f.write_str("a link that leads out of the model's folder"),
            Self::Hidden => f.write_str("a link that leads to a hidden file or folder"),
            Self::Special(what) => f.write_str(what),
            Self::Io(error) => write!(f, "not readable: {error}"),
        }
    }
}

impl Place {
    /// The folder `root`. Where it is a snapshot of the Hugging Face cache (`models--ORG--NAME/snapshots/REVISION`, or
    /// a folder in one), the blobs of the same repository belong to it.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn new(root: &Path) -> io::Result<Self> {
        let real = root.canonicalize()?;
        let mut within = vec![real.clone()];
        let ancestors: Vec<&Path> = real.ancestors().collect();
        let named = |path: &Path, fits: &dyn Fn(&str) -> bool| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(fits)
        };
        // the revision's folder lies in `snapshots`, and that in the repository's
        let repository = ancestors.windows(3).find(|window| {
            named(window[1], &|name| name == "snapshots") && named(window[2], &|name| name.starts_with("models--"))
        });
        within.extend(repository.map(|window| window[2].join("blobs")));
        Ok(Self { within })
    }

    /// The file among the blobs of the download cache that a link of this place stands for.
    pub fn download(&self, path: &Path) -> Option<PathBuf> {
        let (_, blobs) = self.within.split_first()?;
        self.real(path).ok().filter(|real| real.is_file() && blobs.iter().any(|place| real.starts_with(place)))
    }

    /// The real path of a file or folder that lies in this place.
    ///
    /// # Errors
    /// [`Stray`] for what leads elsewhere, leads nowhere, or is neither a file nor a folder.
    pub fn real(&self, path: &Path) -> Result<PathBuf, Stray> {
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_ok() => {
                return Err(Stray::Dangling);
            }
            Err(error) => return Err(Stray::Io(error)),
        };
        let kind = real.symlink_metadata().map_err(Stray::Io)?.file_type();
        let below = self.within.iter().position(|place| real.starts_with(place));
        match below {
            // in the download cache a link stands for one file, never for all of them
            Some(1..) if kind.is_dir() => return Err(Stray::Outside(real)),
            Some(at) => {
                let mut parts = real.strip_prefix(&self.within[at]).into_iter().flat_map(Path::iter);
                if parts.any(is_hidden) {
                    return Err(Stray::Hidden);
                }
            }
            None => return Err(Stray::Outside(real)),
        }
        if kind.is_file() || kind.is_dir() { Ok(real) } else { Err(Stray::Special(special(kind))) }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(path: PathBuf) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    #[test]
    fn links_lead_to_the_folder_or_to_blobs_of_the_same_repository() {
        let outer = tempfile::tempdir().unwrap();
        let repository = outer.path().join("hub/models--a--b");
        let root = repository.join("snapshots/0123");
        write(root.join("plain"));
        write(root.join(".git/config"));
        write(repository.join("blobs/1"));
        write(repository.join("refs/main"));
        write(outer.path().join("hub/models--a--c/blobs/2"));
        write(outer.path().join("secret"));
        for (name, target) in [
            ("inside", root.join("plain")),
            ("blob", PathBuf::from("../../blobs/1")),
            ("blobs", PathBuf::from("../../blobs")),
            ("token", root.join(".git/config")),
            ("git", root.join(".git")),
            ("refs", repository.join("refs/main")),
            ("other", outer.path().join("hub/models--a--c/blobs/2")),
            ("secret", outer.path().join("secret")),
            ("environ", PathBuf::from("/proc/self/environ")),
            ("absent", root.join("nothing")),
        ] {
            symlink(target, root.join(name)).unwrap();
        }
        let pipe = root.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        fs::create_dir(root.join("onnx")).unwrap();
        symlink("../../../blobs/1", root.join("onnx/model.onnx")).unwrap();
        let place = Place::new(&root).unwrap();
        let word = |name: &str| match place.real(&root.join(name)) {
            Ok(_) => "fine",
            Err(Stray::Dangling) => "dangling",
            Err(Stray::Outside(_)) => "outside",
            Err(Stray::Hidden) => "hidden",
            Err(Stray::Special(_)) => "special",
            Err(Stray::Io(_)) => "io",
        };
        for (name, wanted) in [
            ("plain", "fine"),
            ("inside", "fine"),
            ("blob", "fine"),
            ("blobs", "outside"),
            ("token", "hidden"),
            ("git", "hidden"),
            ("onnx/model.onnx", "fine"),
            ("refs", "outside"),
            ("other", "outside"),
            ("secret", "outside"),
            ("environ", "outside"),
            ("absent", "dangling"),
            ("pipe", "special"),
            ("missing", "io"),
        ] {
            assert_eq!(word(name), wanted, "{name}");
        }
        // a folder of the snapshot belongs to the same repository
        assert!(Place::new(&root.join("onnx")).unwrap().real(&root.join("onnx/model.onnx")).is_ok());
        // a folder that only looks like the cache does not open the folder that its `blobs` leads to
        let forged = outer.path().join("models--x/snapshots/1");
        write(forged.join("plain"));
        symlink(outer.path(), outer.path().join("models--x/blobs")).unwrap();
        symlink("../../blobs/secret", forged.join("leak")).unwrap();
        assert!(matches!(Place::new(&forged).unwrap().real(&forged.join("leak")), Err(Stray::Outside(_))));
    }
}
