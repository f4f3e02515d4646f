//! Files that hold a model's weights in a form that is not edited: what becomes of them beside an edited model.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::kind::Blocked;
use super::walk::Entry;
use crate::files::{first_bytes, is_lfs_pointer};
use crate::onnx::Model;

/// Endings of weights in other formats.
const FORMATS: [&str; 13] = [
    ".safetensors",
    ".safetensors.index.json",
    ".bin.index.json",
    ".gguf",
    ".ggml",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".tflite",
    ".pte",
    ".pkl",
];

/// Beginnings and endings of weights in other formats whose endings alone say little.
const NAMED: [(&str, &str); 4] =
    [("pytorch_model", ".bin"), ("openvino_", ".bin"), ("openvino_", ".xml"), ("adapter_model", ".bin")];

/// Endings of text files without which a model does not run.
const NEEDED: [&str; 5] = ["json", "jinja", "txt", "model", "tiktoken"];

/// What a file is that holds weights.
pub(super) enum Weights {
    /// Left out, with the reason.
    Other(String),
    /// Refuses the package.
    Blocked(Blocked),
}

/// What a file that no model of the folder reads holds of weights.
pub(super) fn of(file: &Entry) -> Option<Weights> {
    let name = file.relative.file_name()?.to_string_lossy().to_ascii_lowercase();
    if name.ends_with(".ort") || first_bytes(&file.real, 8).get(4..) == Some(b"ORTM".as_slice()) {
        return Some(Weights::Blocked(Blocked::new(
            "is a model in ONNX Runtime's own format, which is not edited: it would stay as it is beside the edited one",
            "leave it out with `--only` and the models to bake, and convert the baked model again",
        )));
    }
    let named = NAMED.iter().any(|(start, end)| name.starts_with(start) && name.ends_with(end));
    if named || FORMATS.iter().any(|end| name.ends_with(end)) {
        return Some(Weights::Other("weights in another format, which would stay as they were".into()));
    }
    let extension = Path::new(&name).extension().and_then(|e| e.to_str()).unwrap_or("");
    (NEEDED.contains(&extension) && is_lfs_pointer(&file.real)).then(|| Weights::Blocked(pointer()))
}

/// The refusal of a file that was not downloaded.
pub(super) fn pointer() -> Blocked {
    Blocked::new(
        "is a Git LFS pointer: the file itself was not downloaded",
        "fetch it with `git lfs pull`, or download it again",
    )
}

/// A path with `/`, as every result shows it.
pub fn shown(path: &Path) -> String {
    path.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// An `.onnx` file and its external data, relative to `root`; of one that cannot be read, what is named like it.
pub(super) fn parts(root: &Path, relative: &Path, model: Option<&Model>) -> BTreeSet<PathBuf> {
    let folder = relative.parent().unwrap_or(Path::new(""));
    let mut parts = BTreeSet::from([relative.to_path_buf()]);
    match model {
        Some(model) => parts.extend(model.external_files().into_iter().map(|(location, _)| {
            let plain = Path::new(&location).components().filter(|part| matches!(part, Component::Normal(_)));
            folder.join(plain.collect::<PathBuf>())
        })),
        None => {
            let name = file_name(relative);
            let entries = std::fs::read_dir(root.join(folder)).into_iter().flatten().filter_map(Result::ok);
            let names = entries.filter_map(|e| e.file_name().into_string().ok());
            let like = |found: &String| {
                let rest = found.strip_prefix(name.as_str());
                rest.is_some_and(|rest| rest.starts_with("_data") || rest.starts_with(".data"))
            };
            parts.extend(names.filter(like).map(|found| folder.join(found)));
        }
    }
    parts
}

/// The same for an `.onnx` file that is named by its path.
pub(super) fn undownloaded(path: &Path) -> Option<Blocked> {
    missing(crate::files::folder_of(path), Path::new(path.file_name()?))
}

/// What was not downloaded: the file itself or its external data are Git LFS pointers.
pub(super) fn missing(root: &Path, relative: &Path) -> Option<Blocked> {
    let model = Model::open(&root.join(relative)).ok();
    let found = parts(root, relative, model.as_ref()).into_iter().find(|path| is_lfs_pointer(&root.join(path)))?;
    Some(match found == relative {
        true => pointer(),
        false => {
            Blocked { reason: format!("needs `{}`, which {}", shown(&found), pointer().reason), hint: pointer().hint }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_weights_are_told_by_name_or_content() {
        let folder = tempfile::tempdir().unwrap();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";
        for (name, bytes, wanted) in [
            ("model.ort", "", "blocked"),
            ("engine.dat", "\u{18}\u{0}\u{0}\u{0}ORTM", "blocked"),
            ("model.safetensors", "x", "left"),
            ("model.safetensors.index.json", "{}", "left"),
            ("pytorch_model-00001-of-2.bin", "x", "left"),
            ("tokenizer.json", pointer, "blocked"),
            ("logo.png", pointer, "copied"),
            ("voices.bin", "x", "copied"),
            ("tokenizer.json", "{}", "copied"),
        ] {
            let real = folder.path().join(name);
            std::fs::write(&real, bytes).unwrap();
            let found = match of(&Entry { relative: Path::new("onnx").join(name), bytes: 0, real }) {
                None => "copied",
                Some(Weights::Other(_)) => "left",
                Some(Weights::Blocked(_)) => "blocked",
            };
            assert_eq!(found, wanted, "{name}");
        }
    }
}
