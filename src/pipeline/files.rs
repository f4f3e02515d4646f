//! One model's files: the `.onnx` file, what its configs say, what belongs to it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::walk::{Entry, Left, Listing, is_marked_report, is_report};
use crate::error::Error;
use crate::files::{self, Place, Stray};
use crate::lm::ModelConfig;
use crate::runtime::Sampling;

/// A model as the user named it.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The `.onnx` file.
    pub onnx: PathBuf,
    /// The folder with configs and tokenizer; `onnx` lies in it or in a subfolder.
    pub root: PathBuf,
}

impl ModelFiles {
    /// An `.onnx` file named by its path: its configs are in its folder, or in the one above where that is called
    /// `onnx` (Hugging Face).
    pub fn of_file(model: &Path) -> Self {
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
        Self { onnx: model.to_path_buf(), root }
    }

    /// The `.onnx` file relative to the root: where it goes in the output folder.
    pub fn relative(&self) -> PathBuf {
        self.onnx
            .strip_prefix(&self.root)
            .map_or_else(|_| self.onnx.file_name().map(PathBuf::from).unwrap_or_default(), Path::to_path_buf)
    }

    /// The token embedding's own file beside the model: the one that `genai_config.json` names; `embed_tokens.onnx`,
    /// with the suffix of the model's name (`decoder_model_merged_q4.onnx` goes with `embed_tokens_q4.onnx`), or
    /// without; else the only one there is.
    ///
    /// # Errors
    /// If there are several and none has the model's suffix.
    pub fn embedding(&self) -> Result<Option<PathBuf>, Error> {
        let folder = self.onnx.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let named = self.json("genai_config.json")?.and_then(|config| {
            let name = config.pointer("/model/embedding/filename")?.as_str()?;
            // a plain name: nothing outside the folder is ever opened
            Path::new(name).file_name().filter(|n| *n == name).map(|n| folder.join(n))
        });
        if let Some(named) = named.filter(|path| path.is_file()) {
            return Ok(Some(named));
        }
        let stem = self.onnx.file_stem().and_then(|s| s.to_str()).unwrap_or("");
        let known = ["decoder_model_merged", "decoder_model", "decoder_with_past_model", "model"];
        let suffix = known.iter().find_map(|name| stem.strip_prefix(name)).unwrap_or("");
        for name in [format!("embed_tokens{suffix}.onnx"), "embed_tokens.onnx".into()] {
            let fitting = folder.join(name);
            if fitting.is_file() {
                return Ok(Some(fitting));
            }
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
        let unreadable = |why: String| {
            Error::usage(format!("cannot read `{}`: {why}", path.display()), "correct or remove the file")
        };
        match Place::new(&self.root).map_err(Stray::Io).and_then(|place| place.real(&path)) {
            Ok(_) => {}
            Err(Stray::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(stray) => return Err(unreadable(format!("it is {stray}"))),
        }
        let bytes = files::read(&path, files::MAX_CONFIG).map_err(|e| unreadable(e.to_string()))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::usage(format!("`{}` is not valid JSON: {e}", path.display()), "correct or remove the file")
        })
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
                d_head: number(text, &["head_dim"]).or_else(|| width?.checked_div(heads?)),
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

    /// How many tokens there are, from `config.json`, `genai_config.json` or `tokenizer.json`; `None` where none tells it.
    pub(super) fn vocabulary(&self) -> Option<u64> {
        let json = |name: &str| self.json(name).ok().flatten();
        let of_config = || {
            let config = json("config.json")?;
            config.pointer("/text_config/vocab_size").or_else(|| config.get("vocab_size"))?.as_u64()
        };
        let of_genai = || json("genai_config.json")?.pointer("/model/vocab_size")?.as_u64();
        let of_tokenizer = || match json("tokenizer.json")?.pointer("/model/vocab")? {
            Value::Object(tokens) => u64::try_from(tokens.len()).ok(),
            Value::Array(tokens) => u64::try_from(tokens.len()).ok(),
            _ => None,
        };
        of_config().or_else(of_genai).or_else(of_tokenizer)
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

    /// How many tokens the model is made for, from `config.json` or `genai_config.json`. Families without a table of
    /// positions may be run beyond.
    ///
    /// # Errors
    /// If one is there and is no JSON.
    pub fn max_positions(&self) -> Result<Option<usize>, Error> {
        const NAMES: [&str; 5] =
            ["n_positions", "max_position_embeddings", "max_seq_len", "n_ctx", "max_sequence_length"];
        let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        if let Some(config) = self.json("config.json")? {
            let text = config.get("text_config").unwrap_or(&config);
            let told = NAMES.iter().find_map(|name| number(text.get(*name)?));
            if told.is_some() {
                return Ok(told);
            }
        }
        Ok(self.json("genai_config.json")?.and_then(|config| number(config.pointer("/model/context_length")?)))
    }

    /// The sampling that the model's makers recommend, from `generation_config.json` or `genai_config.json`: `None`
    /// where they recommend greedy answers. What they leave out is transformers' default (temperature 1, the 50
    /// likeliest tokens, all of their probability).
    ///
    /// # Errors
    /// If one is there and is no JSON.
    pub fn sampling(&self, seed: u64) -> Result<Option<Sampling>, Error> {
        let found = match self.json("generation_config.json")? {
            Some(config) => Some(config),
            None => self.json("genai_config.json")?.and_then(|config| config.get("search").cloned()),
        };
        let Some(config) = found.filter(|c| c.get("do_sample").and_then(Value::as_bool) == Some(true)) else {
            return Ok(None);
        };
        let number = |name: &str, default: f64| config.get(name).and_then(Value::as_f64).unwrap_or(default);
        let top_k = config.get("top_k").and_then(Value::as_u64).unwrap_or(50);
        Ok(Some(Sampling {
            temperature: number("temperature", 1.0),
            top_p: number("top_p", 1.0),
            top_k: usize::try_from(top_k).unwrap_or(0),
            seed,
        }))
    }

    /// Configs, tokenizer, template and licence files of the root: what goes with one file of a folder. A link of such a
    /// name that leads elsewhere is refused.
    pub(super) fn companions(&self) -> Listing {
        let mut listing = Listing::default();
        let Ok(place) = Place::new(&self.root) else { return listing };
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().filter_map(Result::ok);
        for path in entries.map(|entry| entry.path()) {
            let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|name| is_companion(name)) else {
                continue;
            };
            let relative = PathBuf::from(name);
            match place.real(&path) {
                Ok(real) => {
                    let meta = std::fs::metadata(&real).ok().filter(std::fs::Metadata::is_file);
                    if let Some(meta) = meta.filter(|_| !is_marked_report(&real)) {
                        listing.files.push(Entry { relative, bytes: meta.len(), real });
                    }
                }
                Err(stray) => listing.refused.push(Left { relative, reason: stray.to_string() }),
            }
        }
        listing.files.sort();
        listing.refused.sort();
        listing
    }
}

/// Whether a file of this name belongs to the model beside it.
fn is_companion(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or("");
    let known = matches!(extension, "json" | "jinja" | "txt" | "model" | "md" | "tiktoken")
        || name.starts_with("LICENSE")
        || name.starts_with("NOTICE");
    known && !name.starts_with("lancet") && !is_report(Path::new(name))
}
