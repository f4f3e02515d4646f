//! External data: containment of its paths, and positioned reads and writes.

use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::{LocationFault, OnnxError};
use crate::files::{Place, Stray, is_hidden};

/// Fills `buf` from `offset`; the file's cursor is not used, so threads may share the file.
///
/// # Errors
/// `UnexpectedEof` if the file is shorter, or whatever the operating system reports.
pub fn read_exact_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
    }
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < buf.len() {
            match std::os::windows::fs::FileExt::seek_read(file, &mut buf[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }
}

/// Writes all of `buf` at `offset`.
///
/// # Errors
/// Whatever the operating system reports, for example a full disk.
pub fn write_all_at(file: &File, buf: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::write_all_at(file, buf, offset)
    }
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < buf.len() {
            match std::os::windows::fs::FileExt::seek_write(file, &buf[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => done += n,
            }
        }
        Ok(())
    }
}

/// The file that `location` names, checked to lie in the folder of the model.
///
/// `location` is relative, has no `..`, and after links are followed the file is in the model's folder or, in the
/// Hugging Face cache, among the blobs of the same repository ([`Place`]).
///
/// # Errors
/// [`OnnxError::BadLocation`], [`OnnxError::EscapingExternal`], [`OnnxError::MissingExternal`].
pub fn resolve(model: &Path, location: &str, tensor: &str) -> Result<PathBuf, OnnxError> {
    let escaping = || OnnxError::EscapingExternal { tensor: tensor.into(), location: location.into() };
    let fault = |fault| OnnxError::BadLocation { tensor: tensor.into(), location: location.into(), fault };
    if location.contains("_ORT_MEM_ADDR_") {
        return Err(fault(LocationFault::Memory));
    }
    if location.contains('\\') {
        return Err(fault(LocationFault::Backslash));
    }
    let relative = Path::new(location);
    let lexically_inside = !location.is_empty()
        && !location.contains('\0')
        && relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !lexically_inside {
        return Err(escaping());
    }
    if relative.iter().any(|part| part != "." && is_hidden(part)) {
        return Err(fault(LocationFault::Hidden));
    }
    let folder = match model.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let path = folder.join(relative);
    let io = |path: &Path, source| OnnxError::Io { path: path.to_path_buf(), source };
    let place = Place::new(folder).map_err(|source| io(folder, source))?;
    match place.real(&path) {
        Ok(real) => Ok(real),
        Err(Stray::Outside(_)) => Err(escaping()),
        Err(Stray::Hidden) => Err(fault(LocationFault::Hidden)),
        Err(Stray::Dangling) => Err(OnnxError::MissingExternal { tensor: tensor.into(), path }),
        Err(Stray::Io(source)) if source.kind() == io::ErrorKind::NotFound => {
            Err(OnnxError::MissingExternal { tensor: tensor.into(), path })
        }
        Err(Stray::Io(source)) => Err(io(&path, source)),
        Err(Stray::Special(what)) => Err(io(&path, io::Error::other(format!("it is {what}, not a file")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("model");
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        let model = folder.join("m.onnx");
        std::fs::write(&model, b"x").unwrap();
        std::fs::write(folder.join("sub/w.bin"), b"x").unwrap();
        std::fs::write(outer.path().join("secret"), b"x").unwrap();
        assert!(resolve(&model, "sub/w.bin", "t").is_ok());
        assert!(resolve(&model, "./sub/w.bin", "t").is_ok());
        for bad in ["../secret", "sub/../../secret", "/etc/passwd", "", "..", "a\0b"] {
            assert!(matches!(resolve(&model, bad, "t"), Err(OnnxError::EscapingExternal { .. })), "{bad}");
        }
        for (bad, why) in [
            ("a\\b", LocationFault::Backslash),
            ("..\\secret", LocationFault::Backslash),
            ("*/_ORT_MEM_ADDR_/*", LocationFault::Memory),
            (".git/config", LocationFault::Hidden),
            ("./data/.env", LocationFault::Hidden),
        ] {
            let error = resolve(&model, bad, "t").unwrap_err();
            assert!(matches!(&error, OnnxError::BadLocation { fault, .. } if *fault == why), "{error}");
        }
        assert!(matches!(resolve(&model, "absent", "t"), Err(OnnxError::MissingExternal { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_to_the_blobs_of_the_same_repository_only() {
        let outer = tempfile::tempdir().unwrap();
        for (folder, allowed) in [("models--a--b/snapshots/1", true), ("model/snapshots/1", false)] {
            let folder = outer.path().join(folder);
            let blobs = folder.join("../../blobs");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::create_dir_all(&blobs).unwrap();
            std::fs::write(blobs.join("1"), b"x").unwrap();
            std::fs::write(blobs.join("2"), b"x").unwrap();
            std::os::unix::fs::symlink("../../blobs/1", folder.join("linked.onnx")).unwrap();
            std::os::unix::fs::symlink("../../blobs/2", folder.join("w.bin")).unwrap();
            match resolve(&folder.join("linked.onnx"), "w.bin", "t") {
                Ok(_) => assert!(allowed),
                Err(OnnxError::EscapingExternal { .. }) => assert!(!allowed),
                Err(other) => panic!("{other}"),
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_resolves_lies_inside(location in "[a-z./\\\\]{0,12}") {
            let folder = tempfile::tempdir().unwrap();
            let inner = folder.path().join("a");
            std::fs::create_dir_all(inner.join("b")).unwrap();
            std::fs::write(inner.join("m.onnx"), b"x").unwrap();
            std::fs::write(inner.join("b/c"), b"x").unwrap();
            std::fs::write(folder.path().join("c"), b"x").unwrap();
            if let Ok(path) = resolve(&inner.join("m.onnx"), &location, "t") {
                proptest::prop_assert!(path.starts_with(inner.canonicalize().unwrap()));
            }
        }
    }
}
