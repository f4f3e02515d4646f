//! The fixtures are the files that `fixtures/MANIFEST.json` lists, byte for byte, and small.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), out);
        } else {
            out.push(entry.path());
        }
    }
}

#[test]
fn the_manifest_lists_every_file_and_its_bytes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(root.join("MANIFEST.json")).unwrap()).unwrap();
    let listed: BTreeMap<String, serde_json::Value> = serde_json::from_value(manifest["files"].clone()).unwrap();
    let mut found = Vec::new();
    files(&root, &mut found);
    let mut names: Vec<String> = found
        .iter()
        .map(|p| p.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/"))
        .filter(|n| n != "MANIFEST.json")
        .collect();
    names.sort();
    assert_eq!(names, listed.keys().cloned().collect::<Vec<_>>(), "run `python tools/manifest.py`");
    let (mut chat, mut all) = (0, 0);
    for (name, entry) in &listed {
        let bytes = std::fs::read(root.join(name)).unwrap();
        assert_eq!(bytes.len() as u64, entry["bytes"].as_u64().unwrap(), "{name}");
        let sum: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(sum, entry["sha256"].as_str().unwrap(), "{name}");
        all += bytes.len();
        if name.starts_with("chat/") || name.starts_with("chat-guard/") {
            chat += bytes.len();
        }
    }
    assert!(chat <= 8_000_000, "the chat models and their prompts take {chat} bytes");
    assert!(all <= 42_000_000, "all fixtures take {all} bytes");
}
