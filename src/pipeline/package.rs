//! A folder with several models in it: which `.onnx` files are variants of the chat model, which are something else,
//! and what every one of them is made of.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use globset::GlobBuilder;

use super::files::ModelFiles;
use super::kind::{Blocked, Evidence, Kind, kind};
use super::opened::{Opened, takes_embeddings};
use super::walk::{Entry, Left, Listing, walk};
pub use super::weights::shown;
use super::weights::{self, Weights, file_name, missing, parts};
use crate::error::Error;
use crate::onnx::Model;
use crate::report::{FileKind, FileRow};

/// What a variant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VariantRole {
    /// A language model, with the embedding file that belongs to it, if any.
    Model,
    /// A token embedding that goes with no model by its name: any model that takes embeddings may be run with it.
    Embedding,
}

/// An `.onnx` file that is baked. It is opened where the package is found, and stays open.
pub struct Variant {
    /// Its path in the package, with `/`.
    pub name: String,
    /// Its path in the package.
    pub relative: PathBuf,
    /// What it is.
    pub role: VariantRole,
    /// Where it is, and the folder with its configs.
    pub files: ModelFiles,
    /// Every file that baking it writes, relative to the package.
    pub writes: BTreeSet<PathBuf>,
    /// The embedding file among these.
    embedding: Option<PathBuf>,
    /// Its files, where they can be read.
    opened: Option<Opened>,
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

/// A file that can neither be edited nor stay beside an edited model as it is.
#[derive(Debug, Clone)]
pub struct Hindrance {
    /// Its path in the package.
    pub relative: PathBuf,
    /// Why, and what to do.
    pub why: Blocked,
    /// The file and its external data, relative to the package.
    pub reads: BTreeSet<PathBuf>,
}

/// What a user named as `MODEL`: a folder with all that is in it, or one file with its companions.
pub struct Package {
    /// The folder.
    pub root: PathBuf,
    /// What is baked, sorted by path.
    pub variants: Vec<Variant>,
    /// Other `.onnx` files, sorted by path.
    pub others: Vec<Other>,
    /// Files that refuse the whole package unless `--only` leaves them out, sorted by path.
    pub hindrances: Vec<Hindrance>,
    /// What does not go into the output.
    pub left_out: Vec<Left>,
    /// Of these, files that hold weights.
    pub weights_left: Vec<Left>,
    /// Links that lead elsewhere, pipes, devices: with these, nothing is made of the folder.
    pub refused: Vec<Left>,
    /// Whether there is one model and nothing else to tell of.
    pub lone: bool,
    /// Whether a folder was named.
    pub folder: bool,
    files: Vec<Entry>,
}

/// The `.onnx` files of a folder, sorted into what they are.
#[derive(Default)]
struct Sorted {
    variants: Vec<Variant>,
    embeddings: Vec<(PathBuf, Model)>,
    others: Vec<Other>,
    hindrances: Vec<Hindrance>,
}

impl Sorted {
    /// Sorts one file in; `model` is none where it cannot be read.
    fn add(&mut self, root: &Path, relative: &Path, kind: Kind, model: Option<Model>) {
        match (kind, model) {
            (Kind::Embedding, Some(model)) => self.embeddings.push((relative.to_path_buf(), model)),
            (Kind::Model | Kind::Embedding, model) => {
                let files = ModelFiles { onnx: root.join(relative), root: config_folder(root, relative) };
                self.variants.push(Variant::model(root, relative.to_path_buf(), files, model));
            }
            (Kind::Other { reason, .. }, model) => {
                let reads = parts(root, relative, model.as_ref());
                self.others.push(Other { relative: relative.to_path_buf(), reason, reads });
            }
            (Kind::Blocked(why), model) => {
                let reads = parts(root, relative, model.as_ref());
                self.hindrances.push(Hindrance { relative: relative.to_path_buf(), why, reads });
            }
        }
    }

    /// Embedding files that go with no model by their names: variants of their own where a model takes embeddings.
    fn place_embeddings(&mut self, root: &Path) {
        let taken = self.variants.iter().any(|v| v.opened.as_ref().is_some_and(|o| takes_embeddings(&o.model)));
        for (relative, model) in std::mem::take(&mut self.embeddings) {
            if self.variants.iter().any(|v| v.embedding.as_ref() == Some(&relative)) {
                continue;
            }
            if taken {
                self.variants.push(Variant::embedding(root, relative, model));
            } else {
                let reason = "no model of this folder takes its embeddings".into();
                self.add(root, &relative, Kind::Other { reason, evidence: Evidence::Names }, Some(model));
            }
        }
    }

    /// Files that no model reads and that hold weights all the same: copies in other formats, and pointers to what was
    /// not downloaded. Returns what is left out.
    fn add_weights(&mut self, listing: &Listing) -> Vec<Left> {
        let known: BTreeSet<PathBuf> = self
            .variants
            .iter()
            .flat_map(|v| &v.writes)
            .chain(self.others.iter().flat_map(|o| &o.reads))
            .chain(self.hindrances.iter().flat_map(|h| &h.reads))
            .cloned()
            .collect();
        let mut left = Vec::new();
        for file in listing.files.iter().filter(|file| !known.contains(&file.relative)) {
            match weights::of(file) {
                None => {}
                Some(Weights::Other(reason)) => left.push(Left { relative: file.relative.clone(), reason }),
                Some(Weights::Blocked(why)) => {
                    let (relative, reads) = (file.relative.clone(), BTreeSet::from([file.relative.clone()]));
                    self.hindrances.push(Hindrance { relative, why, reads });
                }
            }
        }
        left
    }
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
        let Listing { files: entries, refused, .. } = files.companions();
        let relative = files.relative();
        let model = Model::open(&files.onnx).ok();
        let variants = vec![Variant::model(&root, relative, files, model)];
        Self {
            root,
            variants,
            others: Vec::new(),
            hindrances: Vec::new(),
            left_out: Vec::new(),
            weights_left: Vec::new(),
            refused,
            lone: true,
            folder: false,
            files: entries,
        }
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
        let mut sorted = Sorted::default();
        for relative in found {
            let model = Model::open(&root.join(relative)).ok();
            let kind = match &model {
                Some(model) => {
                    let files = ModelFiles { onnx: root.join(relative), root: config_folder(root, relative) };
                    kind(model, is_embedding(relative), &|| files.vocabulary())
                }
                None => missing(root, relative).map_or(Kind::Model, Kind::Blocked),
            };
            let kind = match kind {
                Kind::Other { evidence: Evidence::Names, .. } | Kind::Embedding if Some(relative) == sole => {
                    Kind::Model
                }
                kind => kind,
            };
            sorted.add(root, relative, kind, model);
        }
        sorted.place_embeddings(root);
        let mut left_out = listing.left.clone();
        let weights_left = sorted.add_weights(&listing);
        left_out.extend(weights_left.iter().cloned());
        left_out.sort();
        let Sorted { mut variants, mut others, mut hindrances, .. } = sorted;
        variants.sort_by(|a, b| a.relative.cmp(&b.relative));
        others.sort_by(|a, b| a.relative.cmp(&b.relative));
        hindrances.sort_by(|a, b| a.relative.cmp(&b.relative));
        if variants.is_empty() {
            return Err(no_model(root, &others, &hindrances, &listing.refused));
        }
        let lone = variants.len() == 1 && others.is_empty() && hindrances.is_empty();
        let files = listing.files.into_iter().filter(|f| left_out.iter().all(|l| l.relative != f.relative)).collect();
        let (root, refused) = (root.to_path_buf(), listing.refused);
        Ok(Self { root, variants, others, hindrances, left_out, weights_left, refused, lone, folder: true, files })
    }

    /// What the user named: the folder, or the one file.
    pub fn named(&self) -> &Path {
        match self.variants.as_slice() {
            [only] if !self.folder => &only.files.onnx,
            _ => &self.root,
        }
    }

    /// The language models, by name.
    pub fn models(&self) -> impl Iterator<Item = &Variant> {
        self.variants.iter().filter(|v| v.role == VariantRole::Model)
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

    /// The one model that is meant, out of the package.
    ///
    /// # Errors
    /// As [`Self::pick`], or if its files cannot be read.
    pub fn take(mut self, name: Option<&str>) -> Result<Opened, Error> {
        let relative = self.pick(name)?.relative.clone();
        self.variants.retain(|variant| variant.relative == relative);
        self.variants.pop().expect("it was picked").into_opened()
    }

    /// The package without the variants that no pattern fits, without what belongs to them alone, and without what
    /// could only be refused.
    ///
    /// # Errors
    /// Usage: a broken pattern, one that fits no variant, or a name that several have.
    pub fn only(mut self, patterns: &[String]) -> Result<Self, Error> {
        if patterns.is_empty() {
            return Ok(self);
        }
        let chosen = self.chosen(patterns)?;
        let (mut kept, mut gone): (Vec<_>, Vec<_>) =
            self.variants.into_iter().partition(|v| chosen.contains(&v.relative));
        // an embedding file that was asked for, though its model was not
        for variant in &mut gone {
            let file = variant.opened.as_mut().and_then(|opened| opened.embedding.take());
            if let (Some(path), Some(file)) = (&variant.embedding, file)
                && chosen.contains(path)
                && !kept.iter().any(|v| v.writes.contains(path))
            {
                kept.push(Variant::embedding(&self.root, path.clone(), file));
            }
        }
        kept.sort_by(|a, b| a.relative.cmp(&b.relative));
        let needed: BTreeSet<&PathBuf> =
            kept.iter().flat_map(|v| &v.writes).chain(self.others.iter().flat_map(|o| &o.reads)).collect();
        let mut dropped: BTreeSet<PathBuf> = BTreeSet::new();
        let mut left_out = std::mem::take(&mut self.left_out);
        let mut drop = |path: &PathBuf, reason: String| {
            if !needed.contains(path) && dropped.insert(path.clone()) {
                left_out.push(Left { relative: path.clone(), reason });
            }
        };
        for variant in &gone {
            for path in &variant.writes {
                match *path == variant.relative {
                    true => drop(path, "not named by `--only`".into()),
                    false => drop(path, format!("belongs to `{}`", variant.name)),
                }
            }
        }
        for Hindrance { relative, why, reads } in std::mem::take(&mut self.hindrances) {
            for path in &reads {
                match *path == relative {
                    true => drop(path, format!("not named by `--only`; it {}", why.reason)),
                    false => drop(path, format!("belongs to `{}`", shown(&relative))),
                }
            }
        }
        self.files.retain(|file| !dropped.contains(&file.relative));
        left_out.sort();
        self.left_out = left_out;
        self.variants = kept;
        Ok(self)
    }

    /// The `.onnx` files that patterns name. A pattern with `/` is a path in the package. One without is the path of a
    /// file at its top if there is one, else a file name, which only one may have unless the pattern has `*` or the like.
    fn chosen(&self, patterns: &[String]) -> Result<BTreeSet<PathBuf>, Error> {
        let candidates: BTreeSet<&Path> = (self.variants.iter().map(|v| v.relative.as_path()))
            .chain(self.variants.iter().filter_map(|v| v.embedding.as_deref()))
            .chain(self.hindrances.iter().map(|h| h.relative.as_path()))
            .collect();
        let mut chosen = BTreeSet::new();
        for pattern in patterns {
            let plain = pattern.strip_prefix("./").unwrap_or(pattern);
            let glob = GlobBuilder::new(plain).literal_separator(true).build().map_err(|e| {
                Error::usage(format!("`--only {pattern}` is no pattern: {}", e.kind()), "`*_q4*.onnx` is one")
            })?;
            let glob = glob.compile_matcher();
            let by_path: BTreeSet<&Path> = candidates.iter().copied().filter(|path| glob.is_match(path)).collect();
            let by_name = candidates.iter().copied().filter(|path| path.file_name().is_some_and(|n| glob.is_match(n)));
            let several = plain.contains(['*', '?', '[', '{']);
            let found: BTreeSet<&Path> = match plain.contains('/') || plain.len() < pattern.len() {
                true => by_path,
                false if !several && !by_path.is_empty() => by_path,
                false => by_path.into_iter().chain(by_name).collect(),
            };
            self.check_named(pattern, &found, several)?;
            chosen.extend(found.into_iter().map(Path::to_path_buf));
        }
        chosen.retain(|path| self.hindrances.iter().all(|h| h.relative != *path));
        Ok(chosen)
    }

    fn check_named(&self, pattern: &str, found: &BTreeSet<&Path>, several: bool) -> Result<(), Error> {
        let names = |paths: &mut dyn Iterator<Item = &Path>| {
            paths.map(|path| format!("`{}`", shown(path))).collect::<Vec<_>>().join(", ")
        };
        if found.len() > 1 && !several {
            return Err(Error::usage(
                format!("`--only {pattern}` names several files: {}", names(&mut found.iter().copied())),
                "give the path of one in the folder, or a pattern with `*`",
            ));
        }
        let blocked = self.hindrances.iter().find(|h| found.contains(h.relative.as_path()));
        match (blocked, found.len()) {
            (_, 0) => Err(Error::usage(
                format!("`--only {pattern}` fits no model of `{}`", self.root.display()),
                format!("it has {}", names(&mut self.variants.iter().map(|v| v.relative.as_path()))),
            )),
            (Some(hindrance), 1) => Err(hindrance.error()),
            _ => Ok(()),
        }
    }

    /// Every `.onnx` file of the folder, sorted.
    pub fn onnx_files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.relative.as_path()).filter(|path| is_onnx(path))
    }

    /// An error with the file it is of, where there are several.
    pub(super) fn of_variant(&self, variant: &Variant) -> impl FnOnce(Error) -> Error + use<> {
        let name = (!self.lone).then(|| variant.name.clone());
        move |error| match name {
            Some(name) => error.of_file(name),
            None => error,
        }
    }

    /// Files that are copied as they are; of models, the reason.
    pub(super) fn copied_rows(&self) -> Vec<FileRow> {
        let row = |path: &Path| {
            let other = self.others.iter().find(|o| o.relative == path);
            let kind = if other.is_some() { FileKind::OtherModel } else { FileKind::Companion };
            FileRow { file: shown(path), kind, reason: other.map(|o| o.reason.clone()) }
        };
        self.copied().map(|file| row(&file.relative)).collect()
    }

    /// What is left out, and why.
    pub(super) fn left_out_rows(&self) -> Vec<FileRow> {
        let row = |path: &Path, kind, reason: String| FileRow { file: shown(path), kind, reason: Some(reason) };
        let left = self.left_out.iter().map(|l| row(&l.relative, FileKind::LeftOut, l.reason.clone()));
        let refused =
            self.refused.iter().map(|l| row(&l.relative, FileKind::Refused, format!("refused: {}", l.reason)));
        let hindrances = self
            .hindrances
            .iter()
            .map(|h| row(&h.relative, FileKind::Refused, format!("refused: it {}", h.why.reason)));
        let mut rows: Vec<FileRow> = left.chain(refused).chain(hindrances).collect();
        rows.sort_by(|a, b| a.file.cmp(&b.file));
        rows
    }

    /// The files that are copied as they are, sorted.
    pub fn copied(&self) -> impl Iterator<Item = &Entry> {
        self.files.iter().filter(|file| !self.variants.iter().any(|v| v.writes.contains(&file.relative)))
    }
}

impl Variant {
    /// The model at `relative` in `root`, with everything that its bake writes; `model` is none where it cannot be read.
    fn model(root: &Path, relative: PathBuf, files: ModelFiles, model: Option<Model>) -> Self {
        let folder = relative.parent().unwrap_or(Path::new(""));
        let mut writes = parts(root, &relative, model.as_ref());
        let embedding = model
            .as_ref()
            .filter(|model| takes_embeddings(model))
            .and_then(|_| files.embedding().ok().flatten())
            .and_then(|path| Some(folder.join(path.file_name()?)));
        let opened = model.and_then(|model| Opened::with(files.clone(), model).ok());
        if let Some(embedding) = &embedding {
            writes.extend(parts(root, embedding, opened.as_ref().and_then(|opened| opened.embedding.as_ref())));
        }
        Self { name: shown(&relative), relative, role: VariantRole::Model, files, writes, embedding, opened }
    }

    fn embedding(root: &Path, relative: PathBuf, model: Model) -> Self {
        let files = ModelFiles { onnx: root.join(&relative), root: config_folder(root, &relative) };
        let writes = parts(root, &relative, Some(&model));
        let opened = Opened::with(files.clone(), model).ok();
        Self { name: shown(&relative), relative, role: VariantRole::Embedding, files, writes, embedding: None, opened }
    }

    /// Its files.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn opened(&self) -> Result<&Opened, Error> {
        self.opened.as_ref().ok_or_else(|| self.unreadable())
    }

    /// The same, for good.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn into_opened(self) -> Result<Opened, Error> {
        match self.opened {
            Some(opened) => Ok(opened),
            None => Err(self.unreadable()),
        }
    }

    /// Why its files cannot be read: they are opened again to tell.
    fn unreadable(&self) -> Error {
        let changed = || {
            let words = format!("`{}` changed while it was read", self.files.onnx.display());
            Error::failed_with(words, "run the command again when nothing writes to it")
        };
        Opened::of(self.files.clone()).err().unwrap_or_else(changed)
    }
}

fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
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

/// The error for a folder without a model that can be edited.
fn no_model(root: &Path, others: &[Other], hindrances: &[Hindrance], refused: &[Left]) -> Error {
    let mut what: Vec<String> = others.iter().map(|o| format!("`{}` {}", shown(&o.relative), o.reason)).collect();
    what.extend(hindrances.iter().map(|h| format!("`{}` {}", shown(&h.relative), h.why.reason)));
    what.extend(
        refused.iter().filter(|l| is_onnx(&l.relative)).map(|l| format!("`{}` is {}", shown(&l.relative), l.reason)),
    );
    what.sort();
    match what.as_slice() {
        [] => Error::usage(
            format!("no `.onnx` file in `{}` or its folders", root.display()),
            "pass the `.onnx` file itself",
        ),
        _ => Error::usage(
            format!("no language model in `{}`: {}", root.display(), what.join("; ")),
            hindrances.first().map_or("pass the `.onnx` file of the language model, or its folder", |h| &h.why.hint),
        ),
    }
}

impl Hindrance {
    /// The refusal that it is.
    pub fn error(&self) -> Error {
        Error::failed_with(format!("`{}` {}", shown(&self.relative), self.why.reason), self.why.hint.clone())
    }
}

impl Opened {
    /// Opens `MODEL`: an `.onnx` file, or a folder with one language model.
    ///
    /// # Errors
    /// If there is no model or several, or if it cannot be read.
    pub fn new(path: &Path) -> Result<Self, Error> {
        Package::find(path, &[])?.take(None)
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
        assert_eq!(
            names,
            [("decoder_model_merged_q4.onnx", VariantRole::Model), ("embed_tokens.onnx", VariantRole::Embedding)]
        );
        assert!(package.variants[0].writes.contains(Path::new("embed_tokens_q4.onnx")));
        assert_eq!(package.pick(None).unwrap().name, "decoder_model_merged_q4.onnx", "an embedding is no choice");
    }

    #[test]
    fn a_folder_without_a_language_model_says_what_it_has() {
        let found = folder(&[
            ("vision.onnx", onnx(&["pixel_values"], &["image_features"])),
            ("audio.onnx", onnx(&["input_features"], &["audio_features"])),
        ]);
        let error = Package::find(found.path(), &[]).err().unwrap().to_string();
        assert!(error.contains("`audio.onnx` takes no token ids; `vision.onnx` takes no token ids"), "{error}");
    }
}
