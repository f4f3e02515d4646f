//! What the fuzz targets share: a scratch folder in memory, a whole bake with its proof, a mutator of protobufs.

pub mod proof;
pub mod wire;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A folder of this process, below the one of the run (`FUZZ_SCRATCH`, which tools/fuzz/run.sh sets and removes).
pub fn scratch() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let run = std::env::var_os("FUZZ_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = run.join(format!("process-{}", std::process::id()));
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
