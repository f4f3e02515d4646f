//! Files as bytes: whether two are the same, and how many there are.

use std::ops::Range;
use std::path::Path;

use crate::bake::BakeError;
use crate::error::Error;
use crate::files;
use crate::onnx::external::read_exact_at;

/// Bytes that are compared or copied at a time.
pub(super) const BLOCK: u64 = 4 << 20;

/// Whether an output is one `.onnx` file, and not a folder.
pub(super) fn is_single(out: &Path) -> bool {
    out.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}

/// Whether two files hold the same bytes: all, or those of a range.
pub(super) fn equal(a: &Path, b: &Path, range: Option<Range<u64>>) -> Result<bool, Error> {
    let read = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::from(BakeError::Io { action: "read", path, source })
    };
    let (left, right) = (files::open(a).map_err(read(a))?, files::open(b).map_err(read(b))?);
    let lengths = [left.metadata().map_err(read(a))?.len(), right.metadata().map_err(read(b))?.len()];
    let range = match range {
        Some(range) if range.end <= lengths[0].min(lengths[1]) => range,
        None if lengths[0] == lengths[1] => 0..lengths[0],
        _ => return Ok(false),
    };
    let (mut x, mut y) = (vec![0u8; BLOCK as usize], vec![0u8; BLOCK as usize]);
    let mut at = range.start;
    while at < range.end {
        let n = BLOCK.min(range.end - at) as usize;
        read_exact_at(&left, &mut x[..n], at).map_err(read(a))?;
        read_exact_at(&right, &mut y[..n], at).map_err(read(b))?;
        if x[..n] != y[..n] {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}

/// Bytes of all files in a folder.
pub(super) fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|e| match e.metadata() {
            Ok(meta) if meta.is_dir() => folder_bytes(&e.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
