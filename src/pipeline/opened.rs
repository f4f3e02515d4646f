//! A model as the user named it: its files, the graph in them, and the language model in the graph.

use std::path::Path;
use std::sync::{Mutex, OnceLock};

use sha2::{Digest, Sha256};

use super::files::ModelFiles;
use super::weights::undownloaded;
use crate::bake::{BakeError, BakePlan, ByteReport, PlanOptions, hex, verify_bytes};
use crate::edit::Edit;
use crate::error::Error;
use crate::lm::{EmbeddingFile, Interface, LanguageModel, ModelConfig, Refusal, Writer};
use crate::onnx::{Graph, Model};
use crate::runtime::batch::{Layout, Sharing, Splitting};

/// An opened model, or an embedding file that goes with no model by its name.
pub struct Opened {
    /// Where it is.
    pub files: ModelFiles,
    /// The indexed file.
    pub model: Model,
    /// The file with its token embedding, where that is another one.
    pub embedding: Option<Model>,
    /// Dimensions from its configs.
    pub config: ModelConfig,
    /// SHA-256 over its files, once asked for.
    sha256: OnceLock<String>,
}

/// A model's graph, understood.
pub struct Understood<'m> {
    /// The graph.
    pub graph: Graph<'m>,
    /// The language model in it.
    pub lm: LanguageModel,
    /// The file that the stream starts in, where that is another one.
    pub embedding: Option<EmbeddingFile<'m>>,
    /// Which rows may share a run; found when the model is first run.
    pub sharing: OnceLock<Sharing>,
    /// How the end of a row can be run behind a cache of its beginning, once a run told.
    pub splitting: OnceLock<Splitting>,
    /// Tokens of the longest row that was compared, split and whole, and of the longest beginning that it was split
    /// behind; 0 before.
    pub compared: Mutex<(usize, usize)>,
    /// How answers of different lengths share a run, where they cannot be padded in front, once a run told.
    pub layout: OnceLock<Option<Layout>>,
}

/// What a bake changes in each file of a model.
pub struct Plans {
    /// The model file.
    pub main: BakePlan,
    /// The embedding file.
    pub embedding: Option<BakePlan>,
}

/// Whether a graph must be fed with embeddings, which another file makes. An input with an initializer of its name has a
/// default, and need not be fed.
pub fn takes_embeddings(model: &Model) -> bool {
    model.skeleton.graph.iter().any(|graph| {
        let mut inputs = graph.input.iter().filter_map(|input| input.name.as_deref());
        inputs.any(|name| name == EMBEDS) && !graph.initializer_names().any(|name| name == EMBEDS)
    })
}

/// The input for embeddings, as exporters call it.
const EMBEDS: &str = "inputs_embeds";

/// The refusal to run an embedding file that takes features with every prompt.
fn no_text_alone(feature: &str) -> Refusal {
    Refusal {
        node: "(embedding file)".into(),
        op: String::new(),
        tensor: feature.into(),
        reason: "the embedding file takes features of a fixed size with every prompt, so none is of text alone".into(),
        hint:
            "`bake` edits the model all the same; to measure it, export the embedding with an open number of features"
                .into(),
    }
}

/// Indexes an `.onnx` file; one that was not downloaded is told as such.
///
/// # Errors
/// If it cannot be read.
pub fn open_model(path: &Path) -> Result<Model, Error> {
    Model::open(path).map_err(|error| match undownloaded(path) {
        Some(why) => Error::failed_with(format!("`{}` {}", path.display(), why.reason), why.hint),
        None => error.into(),
    })
}

impl Opened {
    /// Opens a model whose files are known.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(files: ModelFiles) -> Result<Self, Error> {
        let model = open_model(&files.onnx)?;
        Self::with(files, model)
    }

    /// The same of a model whose `.onnx` file is open.
    ///
    /// # Errors
    /// If a config or the embedding file cannot be read.
    pub fn with(files: ModelFiles, model: Model) -> Result<Self, Error> {
        let config = files.config()?;
        let embedding = match takes_embeddings(&model) {
            true => files.embedding()?.map(|path| open_model(&path)).transpose()?,
            false => None,
        };
        Ok(Self { files, model, embedding, config, sha256: OnceLock::new() })
    }

    /// Opens what was made of this model: the file `onnx`, and in its folder an embedding file of this one's name.
    /// Dimensions are this model's, as what was made may have no configs beside it.
    ///
    /// # Errors
    /// If a file is not there, or cannot be read.
    pub fn again(&self, onnx: &Path) -> Result<Self, Error> {
        let folder = crate::files::folder_of(onnx).to_path_buf();
        let place = |model: &Model| folder.join(model.path.file_name().expect("an opened file has a name"));
        Ok(Self {
            model: Model::open(onnx)?,
            embedding: self.embedding.as_ref().map(|model| Model::open(&place(model))).transpose()?,
            files: ModelFiles { onnx: onnx.to_path_buf(), root: folder },
            config: self.config,
            sha256: OnceLock::new(),
        })
    }

    /// Finds the language model in the graph.
    ///
    /// # Errors
    /// The first thing that is not understood, with its node.
    pub fn understand(&self) -> Result<Understood<'_>, Refusal> {
        let graph = Graph::new(&self.model);
        let mut lm = LanguageModel::new(&graph, &self.config)?;
        let embedding = match (&lm.interface.inputs_embeds, &self.embedding) {
            (None, _) => None,
            (Some(name), Some(model)) => Some(EmbeddingFile::new(Graph::new(model), Some(name), Some(lm.d_model()))?),
            (Some(name), None) => {
                return Err(Refusal {
                    node: "(graph)".into(),
                    op: String::new(),
                    tensor: name.clone(),
                    reason: "the graph takes embeddings, not token ids: its embedding lives in another file".into(),
                    hint:
                        "put that file beside it as `embed_tokens.onnx` (with the same suffix, if any), or export the \
                           model with its embedding in the same graph"
                            .into(),
                });
            }
        };
        if let Some(embedding) = &embedding {
            if !embedding.others.is_empty() {
                lm.interface = Interface::beside(&graph, &self.config, &embedding.others)?;
            }
            lm.interface.input_ids.clone_from(&embedding.input_ids);
            if let Some(feature) = embedding.features.iter().find(|feature| !feature.is_empty()) {
                lm.interface.unfed.get_or_insert_with(|| no_text_alone(&feature.name));
            }
        }
        Ok(Understood {
            graph,
            lm,
            embedding,
            sharing: OnceLock::new(),
            splitting: OnceLock::new(),
            compared: Mutex::default(),
            layout: OnceLock::new(),
        })
    }

    /// Every indexed file.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        std::iter::once(&self.model).chain(&self.embedding)
    }

    /// SHA-256 over the `.onnx` files and their external data files in the order they are first named. The files are
    /// read once.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn sha256(&self) -> Result<String, Error> {
        use std::io::Read;
        if let Some(known) = self.sha256.get() {
            return Ok(known.clone());
        }
        let mut hasher = Sha256::new();
        let mut block = vec![0; 1 << 20];
        let files = self.models().flat_map(|model| {
            std::iter::once(model.path.clone()).chain(model.external_files().into_iter().map(|(_, path)| path))
        });
        for path in files {
            let io = |e| Error::failed(format!("cannot read `{}`: {e}", path.display()));
            let mut file = crate::files::open(&path).map_err(io)?;
            loop {
                match file.read(&mut block).map_err(io)? {
                    0 => break,
                    n => hasher.update(&block[..n]),
                }
            }
        }
        Ok(self.sha256.get_or_init(|| hex(&hasher.finalize())).clone())
    }
}

impl<'m> Understood<'m> {
    /// The graphs of its files, the embedding's first.
    pub fn graphs(&self) -> Vec<&Graph<'m>> {
        self.embedding.iter().map(|file| &file.graph).chain([&self.graph]).collect()
    }

    /// Number of tokens that the logits are about, `d_vocab`, where the file tells.
    pub fn vocabulary(&self) -> Option<usize> {
        let Self { graph, lm, .. } = self;
        let declared = graph
            .declared_shape(graph.value(&lm.interface.logits)?)
            .and_then(|shape| usize::try_from((*shape.last()?)?).ok());
        declared.or_else(|| {
            let node = lm.residual.unembedding.node;
            let weight = graph.input(node, 1 - lm.residual.unembedding.slot.min(1))?;
            let shape = &graph.tensor_ref(weight)?.shape;
            let other = shape.iter().find(|&&d| d != lm.d_model() as u64)?;
            usize::try_from(*other).ok()
        })
    }

    /// Every writer, in whatever file.
    pub fn writers(&self) -> impl Iterator<Item = (&Graph<'_>, &Writer)> {
        let elsewhere = self.embedding.iter().map(|file| (&file.graph, &file.writer));
        let fed = self.embedding.is_some();
        let own = self.lm.writers.iter().filter(move |w| !(fed && w.treatment == crate::lm::Treatment::Elsewhere));
        elsewhere.chain(own.map(|writer| (&self.graph, writer)))
    }

    /// Plans the edit.
    ///
    /// # Errors
    /// An edit of another width, or a writer that cannot be edited as `options` want it.
    pub fn plan(&self, edit: &Edit, options: &PlanOptions) -> Result<Plans, Error> {
        for addition in edit.additions() {
            let reason = match (self.lm.n_layers(), &self.lm.cached) {
                (_, Some(_)) => "a merged decoder holds every write twice; export the model without merging".into(),
                (n, None) if !(1..=n).contains(&addition.layer) => {
                    format!("its layer is {}, the model has layers 1 to {n} to add to", addition.layer)
                }
                _ => String::new(),
            };
            if !reason.is_empty() {
                return Err(BakeError::NoAddition { reason }.into());
            }
        }
        let main = BakePlan::new(&self.graph, &self.lm, edit, options)?;
        let embedding = match &self.embedding {
            Some(file) => Some(BakePlan::new(&file.graph, file, edit, options)?),
            None => None,
        };
        Ok(Plans { main, embedding })
    }
}

impl Plans {
    /// Bytes by which the files grow: copies of tensors that serve twice.
    pub fn growth(&self) -> u64 {
        let plans = self.embedding.iter().chain([&self.main]);
        plans.flat_map(|plan| &plan.tensors).filter(|tensor| tensor.copy.is_some()).map(|tensor| tensor.bytes()).sum()
    }

    /// Whether nodes are inserted into a file.
    pub fn adds_nodes(&self) -> bool {
        self.embedding.iter().chain([&self.main]).any(|plan| !plan.patch.nodes.is_empty())
    }

    /// Names of the tensors whose edit is not exact.
    pub fn inexact(&self) -> Vec<String> {
        self.embedding.iter().chain([&self.main]).flat_map(BakePlan::inexact).collect()
    }

    /// Compares every file of `out` with what the plans make of `base`.
    ///
    /// # Errors
    /// If a file cannot be read, or if `out` lacks one.
    pub fn verify(&self, base: &Opened, out: &Opened) -> Result<ByteReport, Error> {
        let mut report = verify_bytes(&base.model, &out.model, &self.main)?;
        if let (Some(plan), Some(model)) = (&self.embedding, &base.embedding) {
            let other = out.embedding.as_ref().ok_or_else(|| {
                Error::usage(
                    format!("`{}` has no embedding file beside it", out.files.onnx.display()),
                    "pass the folder that `lancet bake` wrote",
                )
            })?;
            report.merge(verify_bytes(model, other, plan)?);
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, TensorProto, ValueInfoProto};

    #[test]
    fn an_input_with_a_default_need_not_be_fed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        let open = |initializer: Vec<TensorProto>| {
            let input = vec![ValueInfoProto { name: Some(EMBEDS.into()), ..Default::default() }];
            let graph = GraphProto { input, initializer, ..Default::default() };
            let model = ModelProto { ir_version: Some(8), graph: Some(graph), ..Default::default() };
            std::fs::write(&path, model.encode_to_vec()).unwrap();
            Model::open(&path).unwrap()
        };
        assert!(takes_embeddings(&open(vec![])));
        let default = TensorProto {
            name: Some(EMBEDS.into()),
            data_type: Some(1),
            dims: vec![1],
            float_data: vec![0.0],
            ..Default::default()
        };
        assert!(!takes_embeddings(&open(vec![default])));
    }
}
