//! What the tests of the command line share: the binary, a sandbox that notices what was touched, ONNX Runtime.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use assert_cmd::Command;
use lancet::bake::QuantisedMode;
use lancet::onnx::proto::{Dimension, TensorShapeProto, TypeProto, ValueInfoProto, dimension, type_proto};
use lancet::pipeline::BakeOptions;
use lancet::runtime::session::{Device, Runtime};
use serde_json::Value;

/// Whether the `index`th of many cases is left out: of cases that each say little more than the others, `cargo test`
/// without `--release` tries one of `every`.
pub fn is_left_out(index: usize, every: usize) -> bool {
    cfg!(debug_assertions) && !index.is_multiple_of(every)
}

/// The binary, at a fixed width and without colour.
pub fn lancet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lancet"));
    command.env("COLUMNS", "100").env("NO_COLOR", "1").env_remove("CLICOLOR_FORCE");
    command
}

/// Has ONNX Runtime installed in Lancet's cache, once a test binary. The second time it is there already.
pub fn onnx_runtime() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let output = lancet().args(["runtime", "install"]).output().unwrap();
        assert!(
            output.status.success(),
            "`lancet runtime install` failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
}

/// ONNX Runtime's library, installed into Lancet's cache if there is none.
pub fn onnxruntime_library() -> PathBuf {
    use lancet::runtime::locate::{Environment, Flavour, Options, install, locate};
    let environment = Environment::process();
    let options = Options { explicit: None, flavour: Flavour::Cpu, environment: &environment };
    match locate(&options).unwrap() {
        Some(found) => found.path,
        None => install(Flavour::Cpu, &mut |_| {}).unwrap().path,
    }
}

/// ONNX Runtime on the CPU with one thread, loaded once a test binary.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::load(&onnxruntime_library(), Device::Cpu, 1).unwrap())
}

/// A bake into a scratch folder, without a runtime.
pub fn bake_options<'a>(out: &'a Path, cancelled: &'a AtomicBool) -> BakeOptions<'a> {
    BakeOptions {
        out,
        weights_only: false,
        quantised: QuantisedMode::Auto,
        max_rounding_error: None,
        runtime: None,
        sync: false,
        cancelled,
    }
}

/// A folder of the fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Copies a folder, folders in it included.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file and folder below `root`, hidden ones too, with the files' bytes.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let bytes = if entry.file_type().unwrap().is_dir() {
                open.push(path.clone());
                None
            } else {
                Some(fs::read(&path).unwrap_or_default())
            };
            found.insert(path.strip_prefix(root).unwrap().to_path_buf(), bytes);
        }
    }
    found
}

/// Panics with names only if two snapshots differ.
pub fn assert_same(before: &BTreeMap<PathBuf, Option<Vec<u8>>>, after: &BTreeMap<PathBuf, Option<Vec<u8>>>) {
    let left: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    let gone: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    assert!(gone.is_empty(), "removed: {gone:?}");
    let changed: Vec<_> = before.iter().filter(|(path, bytes)| after[*path] != **bytes).map(|(path, _)| path).collect();
    assert!(changed.is_empty(), "changed: {changed:?}");
}

/// A temporary folder that the commands run in.
pub struct Sandbox {
    folder: tempfile::TempDir,
}

impl Sandbox {
    /// An empty one.
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// One with a copy of a fixture under `model`.
    pub fn with_fixture(name: &str) -> Self {
        let sandbox = Self::new();
        copy_folder(&fixture(name), &sandbox.path("model"));
        sandbox
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its own path.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into it.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Writes a safetensors file with one float32 vector.
    pub fn write_direction(&self, name: &str, values: &[f32]) -> PathBuf {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![values.len()], &bytes).unwrap();
        self.write(name, safetensors::serialize([("direction", view)], None).unwrap())
    }

    /// The binary, run in this folder.
    pub fn lancet(&self, arguments: &[&str]) -> Command {
        let mut command = lancet();
        command.current_dir(self.root()).args(arguments);
        command
    }

    /// Runs a command that must be refused: exit code, words of the message, and nothing touched. Returns stderr.
    #[track_caller]
    pub fn refused_without_hint(&self, command: &mut Command, code: i32, words: &[&str]) -> String {
        let before = snapshot(self.root());
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(output.stdout.is_empty(), "stdout: {}", String::from_utf8_lossy(&output.stdout));
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert!(stderr.contains("error: "), "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
        }
        assert_same(&before, &snapshot(self.root()));
        stderr
    }

    /// The same, and with a hint after a blank line.
    #[track_caller]
    pub fn refused(&self, command: &mut Command, code: i32, words: &[&str]) -> String {
        let stderr = self.refused_without_hint(command, code, words);
        assert!(stderr.contains("\n\nhint: "), "no hint in: {stderr}");
        stderr
    }
}

/// Runs a command that must end with `code`, and parses its stdout, which must be one JSON value and nothing else.
#[track_caller]
pub fn json(command: &mut Command, code: i32) -> Value {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}\n{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("stdout is not one JSON value ({e}): {}", String::from_utf8_lossy(&output.stdout)))
}

/// A direction of the chat fixture's width that is neither zero nor one of its axes.
pub fn some_direction(width: usize) -> Vec<f32> {
    (0..width).map(|i| ((i * 37 + 11) % 23) as f32 - 10.5).collect()
}

/// `d_model` of a fixture, from its config.
pub fn width(name: &str) -> usize {
    let config: Value = serde_json::from_slice(&fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
    usize::try_from(config["hidden_size"].as_u64().unwrap()).unwrap()
}

/// The one variant of a result.
pub fn only(result: &Value) -> &Value {
    let variants = result["variants"].as_array().unwrap_or_else(|| panic!("no variants: {result}"));
    assert_eq!(variants.len(), 1, "{result}");
    &variants[0]
}

/// What a verification found under `key` in each variant and beside them: `failures`, `unexplained`, `unchecked`.
pub fn found(result: &Value, key: &str) -> Vec<Value> {
    let variants = result["variants"].as_array().unwrap_or_else(|| panic!("no variants: {result}"));
    let parts = variants.iter().map(|variant| &variant["verify"][key]).chain([&result["shared"][key]]);
    parts.filter_map(Value::as_array).flatten().cloned().collect()
}

/// A declared value of an element type; dimensions that are no numbers are open.
pub fn value_info(name: &str, dtype: i32, dims: &[&str]) -> ValueInfoProto {
    let dim = |text: &&str| Dimension {
        value: Some(match text.parse() {
            Ok(n) => dimension::Value::DimValue(n),
            Err(_) => dimension::Value::DimParam((*text).to_string()),
        }),
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(dtype), shape };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None }),
    }
}
