//! The language model in the graph: its interface, its residual stream, and what writes to it.

pub mod alone;
pub mod embedding;
mod ends;
pub mod gating;
pub mod interface;
pub mod layout;
pub mod path;
pub mod projection;
mod quantised;
pub mod residual;
mod role;
mod rows;
mod sum;
mod tail;
pub mod weight;
pub mod writer;

use serde::{Deserialize, Serialize};

pub use embedding::EmbeddingFile;
pub use interface::{CacheSlot, Interface, ModelConfig, Padding};
pub use layout::StreamLayout;
pub use path::EditTarget;
pub use residual::{Contribution, ResidualStream, StreamValue};
pub use role::Role;
pub use writer::{Reason, Treatment, Writer, WriterKind};

use crate::onnx::{Graph, NodeId, TensorId, ValueId};

/// A layer (block) by its absolute number, counted from 0 at the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Layer(pub usize);

/// A place in a block where the residual stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResidPoint {
    /// The stream that enters the block, `resid_pre[l]`.
    Pre,
    /// The stream between attention and MLP, `resid_mid[l]`; absent in parallel blocks.
    Mid,
    /// The stream that leaves the block, `resid_post[l]`.
    Post,
}

/// Something in the graph that Lancet does not understand, as data: `inspect` lists it, an edit stops.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Refusal {
    /// The name of the node; `(graph)` or `(file)`, in parentheses, where it is about none.
    pub node: String,
    /// Its operator; empty where it is about no node.
    pub op: String,
    /// The value or tensor in question.
    pub tensor: String,
    /// Why it cannot be handled.
    pub reason: String,
    /// What to do.
    pub hint: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at node `{}` (op `{}`, tensor `{}`)", self.reason, self.node, self.op, self.tensor)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// Of a node on the residual stream that is not followed.
    fn on_stream(graph: &Graph<'_>, node: NodeId, tensor: Option<ValueId>, reason: impl Into<String>) -> Self {
        Self {
            node: graph.node(node).label().to_string(),
            op: graph.op_name(node),
            tensor: tensor.map_or_else(String::new, |v| graph.name(v).to_string()),
            reason: reason.into(),
            hint: "the stream passes an operator that Lancet cannot follow; export the model again without custom or \
                   fused operators there, or report the node"
                .into(),
        }
    }
}

/// A chat model's graph, understood.
///
/// ```
/// use std::path::Path;
/// use lancet::lm::{LanguageModel, ModelConfig, Treatment};
/// use lancet::onnx::{Graph, Model};
///
/// let model = Model::open(Path::new("fixtures/chat/model.onnx"))?;
/// let lm = LanguageModel::new(&Graph::new(&model), &ModelConfig::default()).map_err(|refusal| refusal.reason)?;
/// assert_eq!((lm.n_layers(), lm.d_model(), lm.writers.len()), (6, 96, 13));
/// assert!(lm.writers.iter().all(|writer| writer.treatment == Treatment::Weights));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct LanguageModel {
    /// How it is fed and what it returns.
    pub interface: Interface,
    /// The residual stream.
    pub residual: ResidualStream,
    /// Merged decoders: the stream in the branch that reads a KV cache.
    pub cached: Option<ResidualStream>,
    /// Every writer with the treatment that makes its write orthogonal to a direction.
    pub writers: Vec<Writer>,
}

impl LanguageModel {
    /// Finds interface, residual stream and writers from the graph's data flow.
    ///
    /// # Errors
    /// The first thing that is not understood, with its node.
    pub fn new(graph: &Graph<'_>, config: &ModelConfig) -> Result<Self, Refusal> {
        let interface = Interface::new(graph, config)?;
        let logits = graph.value(&interface.logits).ok_or_else(|| Refusal {
            node: "(graph)".into(),
            op: String::new(),
            tensor: interface.logits.clone(),
            reason: "no node computes the logits".into(),
            hint: "the file is broken; export the model again".into(),
        })?;
        let residual = ResidualStream::trace(graph, &interface, logits)?;
        let cached = match graph.alternate(logits) {
            Some(logits) => Some(ResidualStream::trace(graph, &interface, logits)?),
            None => None,
        };
        let mut streams = vec![&residual];
        streams.extend(&cached);
        streams.iter().try_for_each(|stream| projection::check_types(graph, &stream.contributions))?;
        if let [plain, cached] = streams.as_slice()
            && !plain.matches(cached)
        {
            return Err(Refusal {
                node: "(graph)".into(),
                op: "If".into(),
                tensor: interface.logits.clone(),
                reason: "the two branches of the merged decoder hold different residual streams".into(),
                hint: "export the model without merging".into(),
            });
        }
        let writers = writer::writers(graph, &streams);
        Ok(Self { interface, residual, cached, writers })
    }

    /// The residual stream, for a merged decoder in the branch that reads a KV cache if `cached`.
    pub fn stream(&self, cached: bool) -> &ResidualStream {
        self.cached.as_ref().filter(|_| cached).unwrap_or(&self.residual)
    }

    /// Number of blocks.
    pub fn n_layers(&self) -> usize {
        self.residual.blocks.len()
    }

    /// Width of the residual stream.
    pub fn d_model(&self) -> usize {
        self.residual.d_model
    }
}

/// A tensor's own name, or that of the value of its `Constant` node.
pub fn tensor_label(graph: &Graph<'_>, tensor: TensorId) -> String {
    let name = &graph.model.tensor(tensor).name;
    if !name.is_empty() {
        return name.clone();
    }
    graph
        .nodes()
        .filter(|&n| graph.op(n) == "Constant")
        .flat_map(|n| graph.outputs(n))
        .find(|&v| graph.tensor(v) == Some(tensor))
        .map_or_else(|| format!("tensor {}", tensor.0), |v| graph.name(v).to_string())
}
