//! What is read from and put onto the disk, held to a few rules: only plain files are read, up to a size; links lead to
//! the same folder or the same download cache; nothing that Lancet did not write is replaced.

mod links;
mod ours;
mod temporary;
mod write_back;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

pub use links::{Place, Stray, is_hidden};
pub use ours::written_by_lancet;
pub use temporary::{PART, PREFIX, Temporary, abandon_all, abandon_too, is_unpublished, publishing, sweep};
pub use write_back::{Unwritten, WriteBack};

/// Largest config that is read, in bytes.
pub const MAX_CONFIG: u64 = 64 << 20;

/// Largest file of settings, patterns, wrappers or a policy that is read, in bytes.
pub const MAX_SETTINGS: u64 = 16 << 20;

/// Largest file of prompts, questions or text that is read, in bytes.
pub const MAX_TEXT: u64 = 256 << 20;

/// Largest direction file that is read, in bytes.
pub const MAX_DIRECTION: u64 = 64 << 20;

/// Largest file of activations that is read, in bytes.
pub const MAX_ACTIVATIONS: u64 = 2 << 30;

/// First bytes of a Git LFS pointer: a small text that stands for a file which was not downloaded.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Largest size of such a pointer, in bytes.
const MAX_POINTER: u64 = 1024;

/// Opens a plain file for reading. A named pipe, a device or a folder is refused, and opening one never waits.
///
/// # Errors
/// Whatever the operating system reports, or `InvalidInput` for what is no plain file.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // a pipe without a writer would wait for one
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    let file = options.open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {}, not a file", special(kind))))
}

/// Reads a plain file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; `FileTooLarge` for a longer one; `InvalidData` for a Git LFS pointer.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let words = format!("it is larger than {} MiB", limit >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, words));
    }
    if bytes.starts_with(LFS_POINTER) {
        let words = "it is a Git LFS pointer, not the file that it stands for: fetch that with `git lfs pull`";
        return Err(io::Error::new(io::ErrorKind::InvalidData, words));
    }
    Ok(bytes)
}

/// The same as text.
///
/// # Errors
/// As [`read`]; `InvalidData` for what is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// Whether a file is a Git LFS pointer: a small text in the place of a file that was not downloaded.
pub fn is_lfs_pointer(path: &Path) -> bool {
    let small = std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_POINTER);
    small && first_bytes(path, LFS_POINTER.len() as u64).starts_with(LFS_POINTER)
}

/// The first bytes of a plain file; fewer where it is shorter or cannot be read.
pub fn first_bytes(path: &Path, count: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Ok(file) = open(path) else { return bytes };
    match file.take(count).read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(_) => Vec::new(),
    }
}

/// What a thing that is no plain file is, in words.
fn special(kind: std::fs::FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a named pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_block_device() || kind.is_char_device() {
            return "a device";
        }
    }
    if kind.is_dir() { "a folder" } else { "a special file" }
}

/// The folder of a path; `.` where it names none.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the names in a folder durable, where the system has a notion of that.
///
/// # Errors
/// Whatever the operating system reports.
#[allow(clippy::disallowed_methods, reason = "a folder is opened, which `open` refuses")]
pub fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path).and_then(|folder| folder.sync_all()) } else { Ok(()) }
}

/// Gives a file the permissions of another one: who may read and write, nothing that makes it run.
///
/// # Errors
/// Whatever the operating system reports.
pub fn copy_mode(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = kept_mode(std::fs::metadata(from)?.permissions().mode());
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(mode))?;
    }
    #[cfg(not(unix))]
    let _ = (from, to);
    Ok(())
}

/// The permission bits that an output keeps of its input's.
pub fn kept_mode(mode: u32) -> u32 {
    mode & 0o666
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_of_limited_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"0123456789").unwrap();
        assert_eq!(read(&path, 10).unwrap(), b"0123456789");
        assert_eq!(read(&path, 9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(read(folder.path(), 9).unwrap_err().to_string().contains("a folder"));
        std::fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path, 9).unwrap_err().to_string().contains("UTF-8"));
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n").unwrap();
        assert!(is_lfs_pointer(&path));
        assert!(read(&path, 1 << 10).unwrap_err().to_string().contains("git lfs pull"));
        assert_eq!(first_bytes(&path, 7), b"version");
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_and_a_device_are_named_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(read(&pipe, 9).unwrap_err().to_string().contains("a named pipe"));
        assert!(read(Path::new("/dev/zero"), 9).unwrap_err().to_string().contains("a device"));
    }
}
