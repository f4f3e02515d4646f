//! Single files that Lancet writes: whole or not at all, and never in the place of what it did not write.

use std::io::{self, Write};
use std::path::Path;

use crate::error::Error;
use crate::files::{self, PART, PREFIX, folder_of, written_by_lancet};

/// Checks, before any work, that a file can be put at `path`: its folder is there and can be written to, and what has the
/// name already is a file that Lancet wrote. Links are not followed.
///
/// # Errors
/// Usage, with what stands in the way.
pub fn check_place(path: &Path) -> Result<(), Error> {
    replaceable(path)?;
    let folder = folder_of(path);
    let probe = tempfile::Builder::new().prefix(PREFIX).suffix(PART).tempfile_in(folder);
    match probe {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::usage(
            format!("cannot write `{}`: {error}", path.display()),
            "make the folder first, or choose one that can be written to",
        )),
    }
}

/// The same for a folder that is made at the end, with those above it: the nearest that is there can be written to.
///
/// # Errors
/// Usage, with what stands in the way.
pub fn check_new_folder(path: &Path) -> Result<(), Error> {
    let known = path.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok());
    check_place(&known.unwrap_or(Path::new(".")).join(path.file_name().unwrap_or_default()))
}

fn replaceable(path: &Path) -> Result<(), Error> {
    if path.symlink_metadata().is_err() || written_by_lancet(path) {
        return Ok(());
    }
    Err(Error::usage(
        format!("`{}` exists already, and Lancet did not write it", path.display()),
        "remove it or choose another name; only a file that Lancet wrote is replaced",
    ))
}

/// Writes a file beside its place and moves it there, so that it appears whole or not at all. It replaces only a file
/// that Lancet wrote.
///
/// # Errors
/// If it cannot be written, or if something else has its name.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replaceable(path)?;
    let failed = |e: io::Error| {
        Error::failed_with(
            format!("cannot write `{}`: {e}", path.display()),
            "check the folder, its permissions and its free space",
        )
    };
    let folder = folder_of(path);
    let mut file = tempfile::Builder::new().prefix(PREFIX).suffix(PART).tempfile_in(folder).map_err(failed)?;
    let _ = file.as_file().try_lock(); // where there are no locks, nobody takes it for a left one either
    file.write_all(bytes).map_err(failed)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(failed)?;
    }
    file.as_file().sync_all().map_err(failed)?;
    let moved = match path.symlink_metadata() {
        Ok(_) => file.persist(path),
        Err(_) => file.persist_noclobber(path),
    };
    moved.map_err(|e| failed(e.error))?;
    files::sync_folder(folder).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_its_own_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.md");
        check_place(&path).unwrap();
        write_whole(&path, b"### first\n\n<!-- Lancet -->\n").unwrap();
        check_place(&path).unwrap();
        write_whole(&path, b"### second\n\n<!-- Lancet -->\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"### second\n\n<!-- Lancet -->\n");
        std::fs::write(&path, "mine").unwrap();
        for result in [check_place(&path), write_whole(&path, b"### Lancet: third")] {
            assert!(result.unwrap_err().to_string().contains("Lancet did not write it"));
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        let error = check_place(&folder.path().join("absent/a.md")).unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Usage);
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a.md"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_never_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (link, target) = (folder.path().join("report.md"), folder.path().join("target.md"));
        std::fs::write(&target, "### Lancet: mine").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(check_place(&link).is_err() && write_whole(&link, b"### Lancet: other").is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"### Lancet: mine");
    }
}
