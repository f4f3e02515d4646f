//! The model's folder: which `.onnx` file is meant, what its configs say, what is copied beside the result.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::Error;
use crate::lm::ModelConfig;

/// A model as the user named it.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The `.onnx` file.
    pub onnx: PathBuf,
    /// The folder with configs and tokenizer; `onnx` lies in it or in a subfolder.
    pub root: PathBuf,
}

/// Order of preference among the `.onnx` files of a folder.
const PREFERRED: [&str; 3] = ["model.onnx", "decoder_model_merged.onnx", "decoder_model.onnx"];

impl ModelFiles {
    /// Resolves `MODEL`: an `.onnx` file, or a folder that holds one (itself or under `onnx/`).
    ///
    /// # Errors
    /// If there is no such file, or several and none has a usual name.
    pub fn find(model: &Path) -> Result<Self, Error> {
        let usage = |message: String, hint: &str| Error::usage(message, hint);
        let meta = std::fs::metadata(model).map_err(|e| {
            usage(
                format!("cannot read model `{}`: {e}", model.display()),
                "pass an `.onnx` file or the folder that holds it",
            )
        })?;
        if meta.is_file() {
            let folder = match model.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
                _ => PathBuf::from("."),
            };
            let named_onnx = folder.file_name().is_some_and(|n| n == "onnx");
            let has_config = |dir: &Path| dir.join("tokenizer.json").is_file() || dir.join("config.json").is_file();
            let root = match folder.parent() {
                Some(parent) if named_onnx && !folder.join("tokenizer.json").is_file() && has_config(parent) => {
                    parent.to_path_buf()
                }
                _ => folder,
            };
            return Ok(Self { onnx: model.to_path_buf(), root });
        }
        let mut found = Vec::new();
        for folder in [model.to_path_buf(), model.join("onnx")] {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            let mut here: Vec<PathBuf> = entries
                .filter_map(Result::ok)
                .map(|e| e.path())
                .filter(|p| p.extension().is_some_and(|e| e == "onnx") && p.is_file())
                .filter(|p| p.file_name().is_none_or(|n| !n.to_string_lossy().starts_with("embed_tokens")))
                .collect();
            here.sort();
            for name in PREFERRED {
                if let Some(path) = here.iter().find(|p| p.file_name().is_some_and(|n| n == name)) {
                    return Ok(Self { onnx: path.clone(), root: model.to_path_buf() });
                }
            }
            found.extend(here);
        }
        match found.as_slice() {
            [one] => Ok(Self { onnx: one.clone(), root: model.to_path_buf() }),
            [] => Err(usage(
                format!("no `.onnx` file in `{}` or its `onnx/` folder", model.display()),
                "pass the `.onnx` file itself",
            )),
            many => {
                let names: Vec<String> = many.iter().map(|p| format!("`{}`", p.display())).collect();
                Err(usage(
                    format!("several models to choose from: {}", names.join(", ")),
                    "pass one of them by its path",
                ))
            }
        }
    }

    /// The `.onnx` file relative to the root: where it goes in the output folder.
    pub fn relative(&self) -> PathBuf {
        self.onnx
            .strip_prefix(&self.root)
            .map_or_else(|_| self.onnx.file_name().map(PathBuf::from).unwrap_or_default(), Path::to_path_buf)
    }

    /// The token embedding's own file beside the model: `embed_tokens.onnx`, with the suffix of the model's name
    /// (`decoder_model_merged_q4.onnx` goes with `embed_tokens_q4.onnx`), else the only one there is.
    ///
    /// # Errors
    /// If there are several and none has the model's suffix.
    pub fn embedding(&self) -> Result<Option<PathBuf>, Error> {
        let folder = self.onnx.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let stem = self.onnx.file_stem().and_then(|s| s.to_str()).unwrap_or("");
        let known = ["decoder_model_merged", "decoder_model", "decoder_with_past_model", "model"];
        let suffix = known.iter().find_map(|name| stem.strip_prefix(name)).unwrap_or("");
        let fitting = folder.join(format!("embed_tokens{suffix}.onnx"));
        if fitting.is_file() {
            return Ok(Some(fitting));
        }
        let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
        let mut found: Vec<PathBuf> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "onnx") && path.is_file())
            .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("embed")))
            .collect();
        found.sort();
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(Error::usage(
                format!("several embedding files beside `{}`, none of its suffix", self.onnx.display()),
                format!("keep the one that belongs to it, or name it `embed_tokens{suffix}.onnx`"),
            )),
        }
    }

    fn json(&self, name: &str) -> Result<Option<Value>, Error> {
        let path = self.root.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                Error::usage(format!("`{}` is not valid JSON: {e}", path.display()), "correct or remove the file")
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => {
                Err(Error::usage(format!("cannot read `{}`: {e}", path.display()), "check the file's permissions"))
            }
        }
    }

    /// Dimensions from `config.json` or `genai_config.json`.
    ///
    /// # Errors
    /// If one is there and is no JSON.
    pub fn config(&self) -> Result<ModelConfig, Error> {
        let number = |v: &Value, keys: &[&str]| {
            keys.iter().find_map(|k| v.get(*k).and_then(Value::as_u64)).and_then(|n| usize::try_from(n).ok())
        };
        if let Some(config) = self.json("config.json")? {
            let text = config.get("text_config").unwrap_or(&config);
            let heads = number(text, &["num_attention_heads", "n_head", "num_heads"]);
            let width = number(text, &["hidden_size", "n_embd", "d_model"]);
            return Ok(ModelConfig {
                n_layers: number(text, &["num_hidden_layers", "n_layer", "num_layers"]),
                n_kv_heads: number(text, &["num_key_value_heads"]).or(heads),
                d_head: number(text, &["head_dim"]).or_else(|| Some(width? / heads?)),
            });
        }
        if let Some(config) = self.json("genai_config.json")?
            && let Some(decoder) = config.pointer("/model/decoder")
        {
            return Ok(ModelConfig {
                n_layers: number(decoder, &["num_hidden_layers"]),
                n_kv_heads: number(decoder, &["num_key_value_heads", "num_attention_heads"]),
                d_head: number(decoder, &["head_size"]),
            });
        }
        Ok(ModelConfig::default())
    }

    /// Tokens that end an answer, from `generation_config.json`, `genai_config.json` or `config.json`.
    ///
    /// # Errors
    /// If one is there and is no JSON.
    pub fn stop_tokens(&self) -> Result<Vec<u32>, Error> {
        let ids = |v: &Value| -> Vec<u32> {
            let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
            match v {
                Value::Array(all) => all.iter().filter_map(one).collect(),
                other => one(other).into_iter().collect(),
            }
        };
        for (file, pointer) in [
            ("generation_config.json", "/eos_token_id"),
            ("genai_config.json", "/model/eos_token_id"),
            ("config.json", "/eos_token_id"),
        ] {
            if let Some(value) = self.json(file)?
                && let Some(found) = value.pointer(pointer)
            {
                let found = ids(found);
                if !found.is_empty() {
                    return Ok(found);
                }
            }
        }
        Ok(Vec::new())
    }

    /// Configs, tokenizer, template and licence files of the root, as plain files, into `out`.
    ///
    /// # Errors
    /// If one cannot be copied.
    pub fn copy_companions(&self, out: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut copied = Vec::new();
        let entries = std::fs::read_dir(&self.root).map_err(|e| {
            Error::usage(format!("cannot list `{}`: {e}", self.root.display()), "check its permissions")
        })?;
        for path in entries.filter_map(Result::ok).map(|e| e.path()) {
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
            let companion = matches!(extension, "json" | "jinja" | "txt" | "model" | "md" | "tiktoken")
                || name.starts_with("LICENSE")
                || name.starts_with("NOTICE");
            if companion && path.is_file() && !name.starts_with("lancet") {
                let to = out.join(name);
                // contents only: a link or an odd mode stays behind
                std::fs::copy(&path, &to).map_err(|e| {
                    Error::failed(format!("cannot copy `{}` to `{}`: {e}", path.display(), to.display()))
                })?;
                copied.push(PathBuf::from(name));
            }
        }
        copied.sort();
        Ok(copied)
    }
}
