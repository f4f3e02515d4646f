//! What the fuzz targets share: a scratch folder in memory, a whole bake with its proof, a mutator of protobufs.

pub mod proof;
pub mod wire;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A folder of this process, in memory where the system has such a place.
pub fn scratch() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let folder = base.join(format!("lancet-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        folder
    })
}

/// Writes a file below the scratch folder.
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch().join(name);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    std::fs::write(&path, bytes).expect("a file");
    path
}
