//! Finds and reads a model's tokenizer, chat template and special tokens, as `transformers` does.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value as Json};
use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, Tokenizer};

use super::error::ChatError;
use super::growth;
use crate::files;

/// The largest published `tokenizer.json` holds about 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
const MAX_CONFIG_BYTES: u64 = 64 << 20;
/// Tokenizers in forms that need a conversion first.
const OTHER_TOKENIZERS: [&str; 6] =
    ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json", "vocab.txt"];

/// The files of one model, read.
pub(super) struct Source {
    pub(super) tokenizer: Tokenizer,
    pub(super) tokenizer_path: PathBuf,
    /// Template text and the place it is from.
    pub(super) template: Option<(String, String)>,
    /// Special tokens by name (`bos_token`, ..), in the order of the files.
    pub(super) special_tokens: Vec<(String, SpecialToken)>,
    /// Token ids that `generation_config.json` and its like name.
    pub(super) ids: ConfiguredIds,
}

/// The value of a special token entry: one token, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SpecialToken {
    One(String),
    Many(Vec<String>),
}

/// Special token ids named in the model's (not the tokenizer's) configuration.
#[derive(Debug, Default)]
pub(super) struct ConfiguredIds {
    pub(super) bos: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) eos: Vec<u32>,
}

impl Source {
    /// Reads the tokenizer from the first folder that has one, and the rest from that folder or,
    /// where it lacks them, from the others in order.
    pub(super) fn read(folders: &[&Path]) -> Result<Self, ChatError> {
        let home = folders
            .iter()
            .position(|folder| is_there(&folder.join("tokenizer.json")))
            .ok_or_else(|| tokenizer_missing(folders))?;
        let mut folders: Vec<&Path> = folders.to_vec();
        folders[..=home].rotate_right(1);
        let tokenizer_path = folders[0].join("tokenizer.json");
        let mut tokenizer = read_tokenizer(&tokenizer_path)?;

        let config = first_json(&folders, "tokenizer_config.json")?;
        let special_tokens = read_special_tokens(&folders, config.as_ref())?;
        if let Some(config) = &config {
            add_missing_tokens(&mut tokenizer, config, &special_tokens, &tokenizer_path)?;
        }
        Ok(Self {
            tokenizer,
            tokenizer_path,
            template: read_template(&folders)?,
            special_tokens,
            ids: read_ids(&folders)?,
        })
    }
}

fn tokenizer_missing(folders: &[&Path]) -> ChatError {
    let unreadable =
        folders.iter().flat_map(|folder| OTHER_TOKENIZERS.map(|name| folder.join(name))).find(|path| path.is_file());
    ChatError::TokenizerMissing { searched: folders.iter().map(|folder| folder.to_path_buf()).collect(), unreadable }
}

/// Reads a tokenizer and turns off what would make a text's tokens depend on chance or on other
/// texts: BPE dropout, truncation, padding.
fn read_tokenizer(path: &Path) -> Result<Tokenizer, ChatError> {
    let bytes = read_bytes(path, MAX_TOKENIZER_BYTES)?;
    let mut tokenizer = guarded(path, || {
        let mut tokenizer = Tokenizer::from_bytes(bytes)?;
        tokenizer.with_truncation(None)?;
        Ok(tokenizer)
    })?;
    growth::check(&tokenizer).map_err(|reason| ChatError::TokenizerUnbounded { path: path.to_owned(), reason })?;
    tokenizer.with_padding(None);
    let without_dropout = match tokenizer.get_model() {
        ModelWrapper::BPE(model) if model.dropout.is_some() => {
            let mut model = model.clone();
            model.dropout = None;
            Some(model)
        }
        _ => None,
    };
    if let Some(model) = without_dropout {
        tokenizer.with_model(model);
    }
    if tokenizer.get_vocab_size(true) == 0 {
        return Err(ChatError::TokenizerInvalid {
            path: path.to_owned(),
            reason: "its vocabulary is empty".to_owned(),
        });
    }
    Ok(tokenizer)
}

/// Adds the tokens that `tokenizer_config.json` lists and `tokenizer.json` lacks, as `transformers`
/// does, where they get the ids that the file says.
fn add_missing_tokens(
    tokenizer: &mut Tokenizer,
    config: &Map<String, Json>,
    special_tokens: &[(String, SpecialToken)],
    path: &Path,
) -> Result<(), ChatError> {
    let Some(listed) = config.get("added_tokens_decoder").and_then(Json::as_object) else {
        return Ok(());
    };
    let is_special = |content: &str| {
        special_tokens.iter().any(|(_, token)| match token {
            SpecialToken::One(one) => one == content,
            SpecialToken::Many(many) => many.iter().any(|one| one == content),
        })
    };
    let known = tokenizer.get_added_tokens_decoder();
    let mut listed: Vec<(u32, &Json)> = listed
        .iter()
        .filter_map(|(id, token)| Some((id.parse().ok()?, token)))
        .filter(|(id, _)| !known.contains_key(id))
        .collect();
    listed.sort_by_key(|(id, _)| *id);
    let mut next = tokenizer.get_vocab_size(true);
    let mut missing = Vec::new();
    for (id, entry) in listed {
        let Some(content) = token_content(entry) else {
            continue;
        };
        match tokenizer.token_to_id(content) {
            Some(existing) if existing == id => {}
            None if id as usize == next => next += 1,
            _ => continue,
        }
        let flag = |name: &str| entry.get(name).and_then(Json::as_bool);
        let special = flag("special").unwrap_or(false) || is_special(content);
        missing.push(
            AddedToken::from(content, special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .normalized(flag("normalized").unwrap_or(!special)),
        );
    }
    guarded(path, || tokenizer.add_tokens(missing))?;
    Ok(())
}

/// Runs a part of the tokenizers library that panics on some files (a merge shorter than the
/// subword prefix, an id of `u32::MAX`).
fn guarded<T>(path: &Path, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, ChatError> {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // What a panic leaves half done is dropped with the error, and so is what it would print.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(hook);
    drop(one);
    result
        .unwrap_or_else(|_| Err("the tokenizers library fails on it".into()))
        .map_err(|error| ChatError::TokenizerInvalid { path: path.to_owned(), reason: error.to_string() })
}

/// Special tokens of `tokenizer_config.json`; those of `special_tokens_map.json` fill in, and win
/// where the former is of the old kind without `added_tokens_decoder`.
fn read_special_tokens(
    folders: &[&Path],
    config: Option<&Map<String, Json>>,
) -> Result<Vec<(String, SpecialToken)>, ChatError> {
    let mut tokens: Vec<(String, SpecialToken)> = Vec::new();
    let mut old_kind = true;
    if let Some(config) = config {
        old_kind = !config.contains_key("added_tokens_decoder");
        collect_special_tokens(config, &mut tokens, true);
        if let Some(Json::Object(extra)) = config.get("extra_special_tokens") {
            collect_special_tokens(extra, &mut tokens, false);
        }
    }
    if let Some(map) = first_json(folders, "special_tokens_map.json")? {
        collect_special_tokens(&map, &mut tokens, old_kind);
    }
    Ok(tokens)
}

fn collect_special_tokens(entries: &Map<String, Json>, tokens: &mut Vec<(String, SpecialToken)>, wins: bool) {
    for (name, value) in entries {
        let token = match value {
            Json::Array(list) if name == "additional_special_tokens" => SpecialToken::Many(
                list.iter().filter_map(|token| token_content(token).map(ToOwned::to_owned)).collect(),
            ),
            _ if name.ends_with("_token") => match token_content(value) {
                Some(content) => SpecialToken::One(content.to_owned()),
                None => continue,
            },
            _ => continue,
        };
        match tokens.iter_mut().find(|(existing, _)| existing == name) {
            Some(existing) if wins => existing.1 = token,
            Some(_) => {}
            None => tokens.push((name.clone(), token)),
        }
    }
}

/// The text of a token written as a string or as an object with `content`.
fn token_content(value: &Json) -> Option<&str> {
    value.as_str().or_else(|| value.get("content").and_then(Json::as_str))
}

/// The template of the first folder that has one: `chat_template.jinja`, else the entry of
/// `tokenizer_config.json`, else that of `chat_template.json`.
fn read_template(folders: &[&Path]) -> Result<Option<(String, String)>, ChatError> {
    for folder in folders {
        let path = folder.join("chat_template.jinja");
        if is_there(&path) {
            let bytes = read_bytes(&path, MAX_CONFIG_BYTES)?;
            let text = String::from_utf8(bytes).map_err(|error| ChatError::Read {
                path: path.clone(),
                source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
            })?;
            return Ok(Some((text, format!("`{}`", path.display()))));
        }
        for name in ["tokenizer_config.json", "chat_template.json"] {
            let path = folder.join(name);
            if !is_there(&path) {
                continue;
            }
            let config = read_json(&path)?;
            if let Some(entry) = config.get("chat_template").filter(|entry| !entry.is_null()) {
                let text = template_of_entry(entry, &path)?;
                return Ok(Some((text, format!("`{}`", path.display()))));
            }
        }
    }
    Ok(None)
}

/// The template of a `chat_template` entry: the text itself, or the one named `default` (else the
/// first) of a list of `{name, template}` or of an object by name.
fn template_of_entry(entry: &Json, path: &Path) -> Result<String, ChatError> {
    let shape = |field: &str, expected, got: &Json| ChatError::JsonShape {
        path: path.to_owned(),
        field: field.to_owned(),
        expected,
        got: kind(got),
    };
    let named: Vec<(&str, &Json)> = match entry {
        Json::String(text) => return Ok(text.clone()),
        Json::Array(list) => list
            .iter()
            .map(|item| {
                let name = item.get("name").and_then(Json::as_str).unwrap_or_default();
                (name, item.get("template").unwrap_or(&Json::Null))
            })
            .collect(),
        Json::Object(map) => map.iter().map(|(name, text)| (name.as_str(), text)).collect(),
        other => return Err(shape("chat_template", "a string or a list", other)),
    };
    let chosen =
        named.iter().find(|(name, _)| *name == "default").or(named.first()).map_or(&Json::Null, |(_, text)| *text);
    chosen.as_str().map(ToOwned::to_owned).ok_or_else(|| shape("chat_template[..].template", "a string", chosen))
}

/// Token ids of `generation_config.json`, `genai_config.json` and `config.json`; the first to name
/// an id wins, the ends of generation add up.
fn read_ids(folders: &[&Path]) -> Result<ConfiguredIds, ChatError> {
    let mut ids = ConfiguredIds::default();
    for name in ["generation_config.json", "genai_config.json", "config.json"] {
        let Some(config) = first_json(folders, name)? else {
            continue;
        };
        let config = match config.get("model") {
            Some(Json::Object(model)) if name == "genai_config.json" => model,
            _ => &config,
        };
        let list = |field: &str| -> Vec<u32> {
            let entry = config.get(field);
            let items = entry.and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
            let single = entry.filter(|entry| entry.is_number());
            let all = items.iter().chain(single);
            all.filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
        };
        ids.bos = ids.bos.or(list("bos_token_id").first().copied());
        ids.pad = ids.pad.or(list("pad_token_id").first().copied());
        for id in list("eos_token_id") {
            if !ids.eos.contains(&id) {
                ids.eos.push(id);
            }
        }
    }
    Ok(ids)
}

fn first_json(folders: &[&Path], name: &str) -> Result<Option<Map<String, Json>>, ChatError> {
    folders.iter().map(|folder| folder.join(name)).find(|path| is_there(path)).map(|path| read_json(&path)).transpose()
}

fn read_json(path: &Path) -> Result<Map<String, Json>, ChatError> {
    let bytes = read_bytes(path, MAX_CONFIG_BYTES)?;
    let value: Json =
        serde_json::from_slice(&bytes).map_err(|source| ChatError::Json { path: path.to_owned(), source })?;
    match value {
        Json::Object(map) => Ok(map),
        other => Err(ChatError::JsonShape {
            path: path.to_owned(),
            field: "the whole".to_owned(),
            expected: "an object",
            got: kind(&other),
        }),
    }
}

/// Whether there is something of this name. What is no file (a named pipe, a link that leads nowhere) is told of when
/// it is read, never taken for absent.
fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, ChatError> {
    files::read(path, limit).map_err(|source| match source.kind() {
        ErrorKind::FileTooLarge => ChatError::FileTooLarge { path: path.to_owned(), limit },
        _ => ChatError::Read { path: path.to_owned(), source },
    })
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}
