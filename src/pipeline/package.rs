//! A folder with several models in it: which `.onnx` files are variants of the chat model, which are something else,
//! and what every one of them is made of.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use globset::GlobBuilder;

use super::files::ModelFiles;
use super::opened::takes_embeddings;
use super::walk::{Entry, Left, walk};
use crate::error::Error;
use crate::onnx::{DataType, Graph, Model};

/// What a variant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A language model, with the embedding file that belongs to it, if any.
    Model,
    /// A token embedding that goes with no model by its name: any model that takes embeddings may be run with it.
    Embedding,
}

/// An `.onnx` file that is baked.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Its path in the package, with `/`.
    pub name: String,
    /// Its path in the package.
    pub relative: PathBuf,
    /// What it is.
    pub role: Role,
    /// Where it is, and the folder with its configs.
    pub files: ModelFiles,
    /// Every file that baking it writes, relative to the package.
    pub writes: BTreeSet<PathBuf>,
    /// The embedding file among these.
    embedding: Option<PathBuf>,
}

/// An `.onnx` file that is no language model.
#[derive(Debug, Clone)]
pub struct Other {
    /// Its path in the package.
    pub relative: PathBuf,
    /// Why it is none.
    pub reason: String,
    /// The file and its external data, relative to the package.
    pub reads: BTreeSet<PathBuf>,
}

/// What a user named as `MODEL`: a folder with all that is in it, or one file with its companions.
#[derive(Debug, Clone)]
pub struct Package {
    /// The folder.
    pub root: PathBuf,
    /// What is baked, sorted by path.
    pub variants: Vec<Variant>,
    /// Other `.onnx` files, sorted by path.
    pub others: Vec<Other>,
    /// What does not go into the output.
    pub left_out: Vec<Left>,
    /// Whether there is one model and nothing else to tell of.
    pub lone: bool,
    /// Whether a folder was named.
    pub folder: bool,
    files: Vec<Entry>,
}

/// What an `.onnx` file looks like from its inputs and outputs.
enum Kind {
    /// A language model, or a part of one.
    Model,
    /// Turns token ids into embeddings.
    Embedding,
    /// Neither, with the reason.
    Other(&'static str),
}

impl Package {
    /// Looks at `MODEL`: an `.onnx` file, or a folder. Nothing is read in the folders `except`.
    ///
    /// # Errors
    /// If there is no language model, or if a folder cannot be read. A file that is no valid ONNX counts as a model:
    /// opening it tells what is wrong.
    pub fn find(path: &Path, except: &[PathBuf]) -> Result<Self, Error> {
        let meta = std::fs::metadata(path).map_err(|e| {
            Error::usage(
                format!("cannot read model `{}`: {e}", path.display()),
                "pass an `.onnx` file or the folder that holds it",
            )
        })?;
        if meta.is_file() { Ok(Self::of_file(ModelFiles::of_file(path))) } else { Self::of_folder(path, except) }
    }

    /// One `.onnx` file with the configs, tokenizer and licence beside it.
    pub fn of_file(files: ModelFiles) -> Self {
        let root = files.root.clone();
        let entries = files.companions();
        let relative = files.relative();
        let variants = vec![Variant::model(&root, relative, files)];
        let others = Vec::new();
        Self { root, variants, others, left_out: Vec::new(), lone: true, folder: false, files: entries }
    }

    fn of_folder(root: &Path, except: &[PathBuf]) -> Result<Self, Error> {
        let listing = walk(root, except)?;
        let found: Vec<&PathBuf> =
            listing.files.iter().map(|file| &file.relative).filter(|path| is_onnx(path)).collect();
        let is_embedding = |path: &Path| file_name(path).starts_with("embed");
        let sole = match found.iter().filter(|path| !is_embedding(path)).collect::<Vec<_>>().as_slice() {
            [one] => Some(**one),
            _ => None,
        };
        let mut variants = Vec::new();
        let mut embeddings = Vec::new();
        let mut others = Vec::new();
        for relative in found {
            let kind = match Model::open(&root.join(relative)) {
                _ if Some(relative) == sole => Kind::Model,
                Ok(model) => kind(&model, is_embedding(relative)),
                Err(_) => Kind::Model,
            };
            let mut other = |reason: &str| {
                let reads = parts(root, relative);
                others.push(Other { relative: relative.clone(), reason: reason.into(), reads });
            };
            match kind {
                Kind::Model => {
                    let files = ModelFiles { onnx: root.join(relative), root: config_folder(root, relative) };
                    variants.push(Variant::model(root, relative.clone(), files));
                }
                Kind::Embedding => embeddings.push(relative.clone()),
                Kind::Other(reason) => other(reason),
            }
        }
        let taken = variants.iter().any(|v| Model::open(&v.files.onnx).is_ok_and(|model| takes_embeddings(&model)));
        for relative in embeddings {
            if variants.iter().any(|v| v.embedding.as_ref() == Some(&relative)) {
                continue;
            }
            if taken {
                variants.push(Variant::embedding(root, relative));
            } else {
                let reads = parts(root, &relative);
                others.push(Other { relative, reason: "no model of this folder takes its embeddings".into(), reads });
            }
        }
        if variants.is_empty() {
            let what: Vec<String> = others.iter().map(|o| format!("`{}` {}", shown(&o.relative), o.reason)).collect();
            return Err(match what.as_slice() {
                [] => Error::usage(
                    format!("no `.onnx` file in `{}` or its folders", root.display()),
                    "pass the `.onnx` file itself",
                ),
                _ => Error::usage(
                    format!("no language model in `{}`: {}", root.display(), what.join("; ")),
                    "pass the `.onnx` file of the language model, or its folder",
                ),
            });
        }
        variants.sort_by(|a, b| a.relative.cmp(&b.relative));
        others.sort_by(|a, b| a.relative.cmp(&b.relative));
        let lone = variants.len() == 1 && others.is_empty();
        let root = root.to_path_buf();
        Ok(Self { root, variants, others, left_out: listing.left, lone, folder: true, files: listing.files })
    }

    /// The language models, by name.
    pub fn models(&self) -> impl Iterator<Item = &Variant> {
        self.variants.iter().filter(|v| v.role == Role::Model)
    }

    /// The one model that is meant: by its path in the package, its file name, or that without `.onnx`.
    ///
    /// # Errors
    /// Usage: a name that is none or several, or no name where there are several models.
    pub fn pick(&self, name: Option<&str>) -> Result<&Variant, Error> {
        let all: Vec<&Variant> = self.models().collect();
        let list = all.iter().map(|v| format!("`{}`", v.name)).collect::<Vec<_>>().join(", ");
        let several = |among: String| {
            Error::usage(
                format!("several models to choose from in `{}`: {among}", self.root.display()),
                "pick one with `--variant NAME`, or pass its path",
            )
        };
        let Some(name) = name else {
            return match all.as_slice() {
                [one] => Ok(one),
                _ => Err(several(list)),
            };
        };
        let name = name.strip_prefix("./").unwrap_or(name);
        let exact = |v: &&&Variant| v.name == name;
        let file = |v: &&&Variant| file_name(&v.relative) == name;
        let stem = |v: &&&Variant| v.relative.file_stem().is_some_and(|s| s == name);
        for fits in [&exact as &dyn Fn(&&&Variant) -> bool, &file, &stem] {
            match all.iter().filter(fits).copied().collect::<Vec<_>>().as_slice() {
                [] => {}
                [one] => return Ok(one),
                many => {
                    return Err(several(many.iter().map(|v| format!("`{}`", v.name)).collect::<Vec<_>>().join(", ")));
                }
            }
        }
        Err(Error::usage(
            format!("`{}` has no model `{name}`; it has {list}", self.root.display()),
            "give the path of a model in the folder, or its file name",
        ))
    }

    /// The package without the variants that no pattern fits, and without what belongs to them alone. A pattern
    /// fits the path in the package or the file name.
    ///
    /// # Errors
    /// Usage: a broken pattern, or one that fits no variant.
    pub fn only(mut self, patterns: &[String]) -> Result<Self, Error> {
        if patterns.is_empty() {
            return Ok(self);
        }
        let list = self.variants.iter().map(|v| format!("`{}`", v.name)).collect::<Vec<_>>().join(", ");
        let mut globs = Vec::new();
        for pattern in patterns {
            let glob = GlobBuilder::new(pattern).literal_separator(true).build().map_err(|e| {
                Error::usage(format!("`--only {pattern}` is no pattern: {}", e.kind()), "`*_q4*.onnx` is one")
            })?;
            let glob = glob.compile_matcher();
            let fits = |path: &Path| glob.is_match(path) || path.file_name().is_some_and(|n| glob.is_match(n));
            let embeddings = self.variants.iter().filter_map(|v| v.embedding.as_deref());
            if !self.variants.iter().map(|v| v.relative.as_path()).chain(embeddings).any(fits) {
                return Err(Error::usage(
                    format!("`--only {pattern}` fits no model of `{}`", self.root.display()),
                    format!("it has {list}"),
                ));
            }
            globs.push(glob);
        }
        let fits =
            |path: &Path| globs.iter().any(|g| g.is_match(path) || path.file_name().is_some_and(|n| g.is_match(n)));
        let (mut kept, gone): (Vec<_>, Vec<_>) = self.variants.into_iter().partition(|v| fits(&v.relative));
        // an embedding file that was asked for, though its model was not
        for path in gone.iter().filter_map(|v| v.embedding.clone()).filter(|path| fits(path)) {
            if !kept.iter().any(|v| v.writes.contains(&path)) {
                kept.push(Variant::embedding(&self.root, path));
            }
        }
        kept.sort_by(|a, b| a.relative.cmp(&b.relative));
        let needed: BTreeSet<&PathBuf> =
            kept.iter().flat_map(|v| &v.writes).chain(self.others.iter().flat_map(|o| &o.reads)).collect();
        let mut dropped: BTreeSet<PathBuf> = BTreeSet::new();
        for variant in &gone {
            for path in variant.writes.iter().filter(|path| !needed.contains(path)) {
                if dropped.insert(path.clone()) {
                    let reason = match *path == variant.relative {
                        true => "not named by `--only`".to_string(),
                        false => format!("belongs to `{}`", variant.name),
                    };
                    self.left_out.push(Left { relative: path.clone(), reason });
                }
            }
        }
        self.files.retain(|file| !dropped.contains(&file.relative));
        self.left_out.sort();
        self.variants = kept;
        Ok(self)
    }

    /// Every `.onnx` file of the folder, sorted.
    pub fn onnx_files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.relative.as_path()).filter(|path| is_onnx(path))
    }

    /// The files that are copied as they are, sorted.
    pub fn copied(&self) -> impl Iterator<Item = &Entry> {
        self.files.iter().filter(|file| !self.variants.iter().any(|v| v.writes.contains(&file.relative)))
    }
}

impl Variant {
    /// The model at `relative` in `root`, with everything that its bake writes.
    fn model(root: &Path, relative: PathBuf, files: ModelFiles) -> Self {
        let folder = relative.parent().unwrap_or(Path::new(""));
        let mut writes = parts(root, &relative);
        let embedding = Model::open(&files.onnx)
            .is_ok_and(|model| takes_embeddings(&model))
            .then(|| files.embedding().ok().flatten())
            .flatten()
            .and_then(|path| Some(folder.join(path.file_name()?)));
        if let Some(embedding) = &embedding {
            writes.extend(parts(root, embedding));
        }
        Self { name: shown(&relative), relative, role: Role::Model, files, writes, embedding }
    }

    fn embedding(root: &Path, relative: PathBuf) -> Self {
        let files = ModelFiles { onnx: root.join(&relative), root: config_folder(root, &relative) };
        let writes = parts(root, &relative);
        Self { name: shown(&relative), relative, role: Role::Embedding, files, writes, embedding: None }
    }
}

/// A path with `/`, as every result shows it.
pub fn shown(path: &Path) -> String {
    path.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// An `.onnx` file and its external data, relative to `root`; of one that cannot be read, what is named like it.
fn parts(root: &Path, relative: &Path) -> BTreeSet<PathBuf> {
    let folder = relative.parent().unwrap_or(Path::new(""));
    let mut parts = BTreeSet::from([relative.to_path_buf()]);
    match Model::open(&root.join(relative)) {
        Ok(model) => parts.extend(model.external_files().into_iter().map(|(location, _)| {
            let plain = Path::new(&location).components().filter(|part| matches!(part, Component::Normal(_)));
            folder.join(plain.collect::<PathBuf>())
        })),
        Err(_) => {
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

/// The folder with the configs of the model at `relative`: the nearest with a tokenizer from the model's own up to the
/// package's, else the nearest with a config, else the package's.
fn config_folder(root: &Path, relative: &Path) -> PathBuf {
    let folders: Vec<PathBuf> = relative
        .ancestors()
        .skip(1)
        .map(|a| if a.as_os_str().is_empty() { root.to_path_buf() } else { root.join(a) })
        .collect();
    let with = |names: &[&str]| folders.iter().find(|f| names.iter().any(|name| f.join(name).is_file())).cloned();
    with(&["tokenizer.json"])
        .or_else(|| with(&["config.json", "genai_config.json"]))
        .unwrap_or_else(|| root.to_path_buf())
}

/// Tells a language model from what else lies in such folders. In doubt it is one: a model that is not understood is
/// refused, a part of one that is copied would stay as it was without a word.
fn kind(model: &Model, named_embedding: bool) -> Kind {
    let graph = Graph::new(model);
    let proto = graph.proto();
    let fed = proto.input.iter().filter(|i| {
        let name = i.name.as_deref().unwrap_or("");
        graph.value(name).is_none_or(|v| graph.tensor(v).is_none())
    });
    let (mut tokens, mut embeddings, mut hidden, mut cache) = (false, false, false, false);
    for input in fed {
        let name = input.name.as_deref().unwrap_or("").to_ascii_lowercase();
        let dtype = input.tensor().map(|t| DataType(t.elem_type.unwrap_or(0)));
        let whole = dtype.is_none_or(|d| matches!(d, DataType::INT64 | DataType::INT32));
        tokens |= whole && (name.contains("input_ids") || matches!(name.as_str(), "input" | "tokens" | "ids"));
        embeddings |= name.contains("inputs_embeds");
        hidden |= name.contains("hidden");
        cache |= name.contains("past_key") || name.contains("past_value") || name.contains("past.");
    }
    let outputs: Vec<String> =
        proto.output.iter().filter_map(|o| o.name.as_deref()).map(str::to_ascii_lowercase).collect();
    let logits = outputs.iter().any(|name| name == "logits");
    let names_states = |name: &String| {
        ["hidden", "embed", "feature", "pool", "state", "encod", "present", "past"]
            .iter()
            .any(|word| name.contains(word))
    };
    let may_be_logits = logits || outputs.iter().any(|name| !names_states(name));
    if cache || (logits && hidden) {
        return Kind::Model;
    }
    if tokens && !logits && (named_embedding || outputs.iter().any(|name| name.contains("inputs_embeds"))) {
        return Kind::Embedding;
    }
    match (tokens || embeddings, may_be_logits) {
        (false, _) => Kind::Other("takes no token ids"),
        (true, false) => Kind::Other("makes no logits"),
        (true, true) => Kind::Model,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};

    fn onnx(inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
        let info = |name: &&str| ValueInfoProto { name: Some((*name).into()), ..Default::default() };
        let node = NodeProto {
            op_type: Some("Mystery".into()),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: outputs.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let graph = GraphProto {
            node: vec![node],
            input: inputs.iter().map(info).collect(),
            output: outputs.iter().map(info).collect(),
            ..Default::default()
        };
        let opset_import = vec![OperatorSetIdProto { domain: None, version: Some(17) }];
        ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..Default::default() }.encode_to_vec()
    }

    fn decoder() -> Vec<u8> {
        onnx(&["input_ids", "attention_mask"], &["logits"])
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        folder
    }

    #[test]
    fn models_are_told_from_inputs_and_outputs() {
        for (inputs, outputs, wanted) in [
            (&["input_ids", "attention_mask"][..], &["logits"][..], "model"),
            (&["l_input_ids_"], &["1207"], "model"),
            (&["inputs_embeds", "past_key_values.0.key"], &["logits", "present.0.key"], "model"),
            (&["inputs_embeds", "past_key_values.0.key"], &["hidden_states", "present.0.key"], "model"),
            (&["hidden_states"], &["logits"], "model"),
            (&["input_ids", "encoder_hidden_states"], &["logits"], "model"),
            (&["input_ids"], &["inputs_embeds"], "embedding"),
            (&["input_ids", "image_features"], &["inputs_embeds"], "embedding"),
            (&["pixel_values"], &["image_features"], "takes no token ids"),
            (&["pixel_values"], &["logits"], "takes no token ids"),
            (&["input_features"], &["last_hidden_state"], "takes no token ids"),
            (&["input_ids", "attention_mask"], &["last_hidden_state", "sentence_embedding"], "makes no logits"),
        ] {
            let folder = folder(&[("m.onnx", onnx(inputs, outputs))]);
            let found = match kind(&Model::open(&folder.path().join("m.onnx")).unwrap(), false) {
                Kind::Model => "model",
                Kind::Embedding => "embedding",
                Kind::Other(reason) => reason,
            };
            assert_eq!(found, wanted, "{inputs:?} {outputs:?}");
        }
    }

    #[test]
    fn configs_are_the_nearest_with_a_tokenizer() {
        let text = || b"{}".to_vec();
        let found = folder(&[
            ("tokenizer.json", text()),
            ("onnx/config.json", text()),
            ("onnx/model.onnx", decoder()),
            ("genai/genai_config.json", text()),
            ("genai/tokenizer.json", text()),
            ("genai/model.onnx", decoder()),
        ]);
        let package = Package::find(found.path(), &[]).unwrap();
        let roots: Vec<_> = package.variants.iter().map(|v| (v.name.as_str(), v.files.root.clone())).collect();
        assert_eq!(
            roots,
            [("genai/model.onnx", found.path().join("genai")), ("onnx/model.onnx", found.path().to_path_buf())]
        );
        assert!(!package.lone && package.folder);
    }

    #[test]
    fn an_embedding_that_no_model_takes_is_copied() {
        let embedding = || onnx(&["input_ids"], &["inputs_embeds"]);
        let found = folder(&[("model.onnx", decoder()), ("embed_tokens.onnx", embedding())]);
        let package = Package::find(found.path(), &[]).unwrap();
        assert_eq!(package.variants.len(), 1);
        assert_eq!(package.others[0].reason, "no model of this folder takes its embeddings");
        let taker = onnx(&["inputs_embeds"], &["logits"]);
        let found = folder(&[
            ("decoder_model_merged_q4.onnx", taker),
            ("embed_tokens_q4.onnx", embedding()),
            ("embed_tokens.onnx", embedding()),
        ]);
        let package = Package::find(found.path(), &[]).unwrap();
        let names: Vec<_> = package.variants.iter().map(|v| (v.name.as_str(), v.role)).collect();
        assert_eq!(names, [("decoder_model_merged_q4.onnx", Role::Model), ("embed_tokens.onnx", Role::Embedding)]);
        assert!(package.variants[0].writes.contains(Path::new("embed_tokens_q4.onnx")));
        assert_eq!(package.pick(None).unwrap().name, "decoder_model_merged_q4.onnx", "an embedding is no choice");
    }

    #[test]
    fn a_folder_without_a_language_model_says_what_it_has() {
        let found = folder(&[
            ("vision.onnx", onnx(&["pixel_values"], &["image_features"])),
            ("audio.onnx", onnx(&["input_features"], &["audio_features"])),
        ]);
        let error = Package::find(found.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("`audio.onnx` takes no token ids; `vision.onnx` takes no token ids"), "{error}");
    }
}
