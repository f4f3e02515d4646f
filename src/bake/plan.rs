//! What a bake will change, as a value: tensors to edit, nodes to insert, metadata to add.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::addition::{self, Added, AddedTo};
use super::constants::Constants;
use super::error::BakeError;
use super::gate::{self, Gated};
use super::hash::sha256;
use super::kernel::{self, Aim, Along};
use super::layout::check_aliases;
use super::metadata::{fresh, keys, own_metadata};
use super::round::MOST_DIRECTIONS;
use crate::edit::{Ablated, Ablation, Edit, Writes};
use crate::lm::projection::{Steps, steer, write_type};
use crate::lm::{
    EmbeddingFile, LanguageModel, Layer, Reason, ResidualStream, Treatment, Writer, WriterKind, tensor_label,
};
use crate::onnx::lower::splices;
use crate::onnx::patch::{Patch, Splice};
use crate::onnx::{DataType, Graph, Model, Quantised, Storage, TensorId};

/// Metadata keys that a bake adds start with this.
pub const METADATA_PREFIX: &str = "lancet.";

/// Metadata key, behind the prefix, of the version that baked a model.
pub(super) const VERSION_KEY: &str = "version";

/// Metadata key, behind the prefix, of the quantised writers that got nodes. Its value is their names with blanks
/// between.
const BY_NODES_KEY: &str = "quantised_by_nodes";

/// What is done to quantised weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantisedMode {
    /// They are rounded. Those whose leak or error is past the limits ([`super::limits`]) get nodes instead.
    #[default]
    Auto,
    /// They are rounded, whatever that leaves or costs.
    Round,
    /// They are left as they are, and the projection is inserted after their write.
    Nodes,
}

impl QuantisedMode {
    /// Its name on the command line and in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Round => "round",
            Self::Nodes => "nodes",
        }
    }
}

/// How a bake is planned.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Whether no nodes may be added. A tensor that others read too is then edited in a copy, and where a norm follows
    /// the write, the direction is turned by that norm.
    pub weights_only: bool,
    /// What is done to quantised weights.
    pub quantised: QuantisedMode,
    /// Writers of quantised weights that get nodes although they could be rounded ([`super::limits::past_limits`]).
    pub by_nodes: BTreeSet<String>,
    /// More metadata entries; keys get the prefix `lancet.` if they lack it.
    pub metadata: Vec<(String, String)>,
}

/// What a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// A matrix that activations are multiplied with.
    Matrix,
    /// A table that rows are looked up in.
    Rows,
    /// A bias.
    Vector,
}

/// A tensor to edit.
#[derive(Debug, Clone)]
pub struct TensorEdit {
    /// The tensor.
    pub tensor: TensorId,
    /// Its name, or that of the value of its `Constant` node.
    pub name: String,
    /// What it holds.
    pub part: Part,
    /// The writer it belongs to (the first, where several share it).
    pub kind: WriterKind,
    /// That writer's block.
    pub layer: Option<Layer>,
    /// Element type.
    pub dtype: DataType,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// The axis of length `d_model`.
    pub axis: usize,
    /// Index of another edit of the same bytes in the plan. That edit is made, and this one with it.
    pub same_bytes_as: Option<usize>,
    /// The name of a new initializer that holds the edited values, where others read the tensor too.
    pub copy: Option<String>,
    /// Where a norm follows the write: the directions as that norm turns them, `[d_model]` each, orthonormal. `None` where
    /// the plan's own directions are taken off.
    pub turned: Option<Vec<Vec<f64>>>,
    /// How the weight is quantised; the shape is then that of the matrix.
    pub quantised: Option<Quantised>,
    /// What is added to a bias besides, `[d_model]`.
    pub plus: Option<Vec<f64>>,
    /// The writer that it belongs to, as in [`NodeEdit::writer`].
    pub writer: String,
}

impl TensorEdit {
    /// The tensor whose scales may grow with the edit.
    pub fn scales(&self) -> Option<TensorId> {
        self.quantised.filter(|q| q.own_scales && self.copy.is_none()).map(|q| q.scales)
    }

    /// What the edit makes of each vector of the tensor, where it takes off what is `along`.
    pub(super) fn aim<'a>(&'a self, along: &[Along<'a>]) -> Aim<'a> {
        Aim { along: along.to_vec(), plus: self.plus.as_deref() }
    }

    /// Whether `d_model` is the axis along which elements lie side by side.
    pub fn d_model_last(&self) -> bool {
        self.axis + 1 == self.shape.len()
    }

    /// How the tensor is edited.
    pub fn treatment(&self) -> Treatment {
        match (&self.copy, &self.turned) {
            (None, None) if self.quantised.is_some() => Treatment::Rounded,
            (None, None) => Treatment::Weights,
            (Some(_), None) => Treatment::Copy,
            (None, Some(_)) => Treatment::Turned,
            (Some(_), Some(_)) => Treatment::TurnedCopy,
        }
    }

    /// Bytes of the elements, or of the codes.
    pub fn bytes(&self) -> u64 {
        if let Some(quantised) = &self.quantised {
            return quantised.bytes();
        }
        self.shape.iter().product::<u64>() * kernel::width(self.dtype) as u64
    }
}

/// A writer after which the projection is inserted.
#[derive(Debug, Clone)]
pub struct NodeEdit {
    /// `embed`, `layer.3.mlp_out`.
    pub writer: String,
    /// What the writer is.
    pub kind: WriterKind,
    /// Its block.
    pub layer: Option<Layer>,
    /// Its weight, or the written value where the weight was not found.
    pub name: String,
    /// Element type of the written value.
    pub dtype: DataType,
    /// Dimensions of the weight.
    pub shape: Option<Vec<u64>>,
    /// Why weights alone would not do.
    pub reason: Reason,
    /// How the weight is quantised, where it was found.
    pub quantised: Option<Quantised>,
}

/// Everything a bake will change. Nothing is written before [`super::apply`].
///
/// ```
/// use std::path::Path;
/// use std::sync::atomic::AtomicBool;
/// use lancet::bake::{ApplyOptions, BakePlan, PlanOptions, apply, verify_bytes};
/// use lancet::lm::{LanguageModel, ModelConfig};
/// use lancet::edit::{Direction, Edit};
/// use lancet::onnx::{Graph, Model};
///
/// let model = Model::open(Path::new("fixtures/chat/model.onnx"))?;
/// let graph = Graph::new(&model);
/// let lm = LanguageModel::new(&graph, &ModelConfig::default()).map_err(|refusal| refusal.reason)?;
/// let direction = Direction::new((0..lm.d_model()).map(|i| (i as f64).sin()).collect())?;
///
/// let plan = BakePlan::new(&graph, &lm, &Edit::from(direction), &PlanOptions::default())?;
/// assert_eq!((plan.tensors.len(), plan.nodes.len()), (13, 0));
///
/// let folder = tempfile::tempdir()?;
/// let cancelled = AtomicBool::new(false);
/// apply(&model, &plan, folder.path(), &ApplyOptions::new(&cancelled), &|_written, _total| ())?;
/// let written = Model::open(&folder.path().join("model.onnx"))?;
/// assert!(verify_bytes(&model, &written, &plan)?.passed());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct BakePlan {
    /// Tensors edited in place, each once.
    pub tensors: Vec<TensorEdit>,
    /// Writers whose projection is inserted.
    pub nodes: Vec<NodeEdit>,
    /// The insertion.
    pub patch: Patch,
    pub(super) splices: Vec<Splice>,
    /// Where the vectors of additions went, in the order of their layers, of those whose layer this file has.
    pub added: Vec<Added>,
    /// Where the gated terms went, in the order of the edit; none in a file without a stream.
    pub gated: Vec<Gated>,
    /// `metadata_props` entries to add.
    pub metadata: Vec<(String, String)>,
    /// SHA-256 of the unit directions, one behind the other, as little-endian float32; empty where none is ablated.
    pub direction_sha256: String,
    /// What is ablated; empty where nothing is.
    ablated: Vec<Ablated>,
    d_model: usize,
}

/// What one file holds of a language model, so what of it can be edited.
#[derive(Clone)]
pub struct Held<'a> {
    /// The writers in the file.
    pub writers: &'a [Writer],
    /// Width of the stream.
    pub d_model: usize,
    /// The streams that the file computes: none in a file with embeddings alone, two in a merged decoder.
    pub streams: Vec<&'a ResidualStream>,
}

impl<'a> From<&'a LanguageModel> for Held<'a> {
    fn from(lm: &'a LanguageModel) -> Self {
        let streams = std::iter::once(&lm.residual).chain(&lm.cached).collect();
        Self { writers: &lm.writers, d_model: lm.d_model(), streams }
    }
}

impl<'a> From<&'a EmbeddingFile<'_>> for Held<'a> {
    fn from(file: &'a EmbeddingFile<'_>) -> Self {
        Self { writers: std::slice::from_ref(&file.writer), d_model: file.d_model, streams: Vec::new() }
    }
}

impl BakePlan {
    /// Plans the edit of what one file holds.
    ///
    /// # Errors
    /// An edit of another width, a writer that needs nodes where they are forbidden, a tensor whose bytes another one
    /// shares, a layer that a gated term cannot be added at.
    pub fn new<'h>(
        graph: &Graph<'_>,
        held: impl Into<Held<'h>>,
        edit: &Edit,
        options: &PlanOptions,
    ) -> Result<Self, BakeError> {
        let Held { writers, d_model, streams } = held.into();
        edit.check_width(d_model)?;
        let named = named(writers);
        let ablation = edit.ablation();
        let choice = Choice::new(options, ablation, &named);
        let mut needing = choice.needing_nodes(&named)?;
        let by_weights =
            |n: &str, w: &Writer| w.treatment != Treatment::Elsewhere && choice.acts_on(w) && !choice.by_nodes(n, w);
        let edited = named.iter().filter(|(n, w)| by_weights(n, w));
        let tensors = match ablation {
            Some(ablation) => tensor_edits(graph, edited, ablation)?,
            None => Vec::new(),
        };
        let mut tensors = check_aliases(graph.model, tensors)?;
        let joined = addition::joined(&named, edit);
        let mut added = vec![None; joined.len()];
        for (joined, added) in joined.iter().zip(&mut added) {
            if !choice.by_nodes(joined.name, joined.writer) {
                *added = addition::into_bias(graph, joined, &mut tensors);
            }
            if let (None, true) = (&added, options.weights_only) {
                let reason = "the vector of the addition needs a bias of its own there".to_string();
                return Err(BakeError::NeedsNodes { writer: joined.name.to_string(), reason });
            }
        }
        let (patch, nodes, constants) = (Patch::default(), Vec::new(), Constants::default());
        let mut insertion = Insertion { graph, choice: &choice, joined, constants, patch, nodes, added };
        if let Some(ablation) = ablation.filter(|_| options.weights_only) {
            for (name, writer) in needing.drain(..) {
                tensors.extend(super::alone::edits(graph, writer, name, d_model, ablation, &mut insertion.patch)?);
            }
        }
        for (name, writer) in needing {
            insertion.project(name, writer)?;
        }
        let Insertion { joined, mut patch, nodes, mut added, .. } = insertion;
        for (joined, added) in joined.iter().zip(&mut added).filter(|(_, added)| added.is_none()) {
            *added = Some(addition::node(graph, joined, &mut patch)?);
        }
        let added = added.into_iter().flatten().collect();
        let known = own_metadata(graph.model, gate::SHA256);
        let gated = gate::terms(graph, &streams, edit.gates(), (options.weights_only, known), &mut patch)?;
        patch.check(graph);
        let splices = splices(&patch, graph)?;
        let direction_sha256 = ablation.map(|ablation| sha256(&ablation.units())).unwrap_or_default();
        let mut extra = options.metadata.clone();
        if named.iter().any(|(_, w)| w.treatment == Treatment::Rounded) {
            extra.push(("quantised".into(), options.quantised.name().into()));
            // also where there are none: an earlier bake may have left an entry
            extra.push((BY_NODES_KEY.into(), options.by_nodes.iter().cloned().collect::<Vec<_>>().join(" ")));
        }
        extra.extend(addition::metadata(graph.model, edit));
        extra.extend(gate::metadata(edit.gates()));
        let identity = match ablation {
            Some(_) => ("direction_sha256", direction_sha256.clone()),
            None => ("edit_sha256", gate::edit_sha256(edit)),
        };
        let metadata = metadata(graph.model, identity, &extra);
        let ablated = ablation.map(|ablation| ablation.vectors().to_vec()).unwrap_or_default();
        Ok(Self { tensors, nodes, patch, splices, added, gated, metadata, direction_sha256, ablated, d_model })
    }

    /// Names of the tensors whose edit is not exact, because a norm behind it depends on the edited weight, or because
    /// the weight is rounded to a coarse grid.
    pub fn inexact(&self) -> Vec<String> {
        let inexact =
            |edit: &&TensorEdit| edit.quantised.is_some() || (edit.turned.is_some() && edit.part != Part::Vector);
        let turned = self.tensors.iter().filter(inexact);
        turned.map(|edit| edit.name.clone()).collect()
    }

    /// What an edit takes off.
    pub(super) fn along<'a>(&'a self, edit: &'a TensorEdit) -> Vec<Along<'a>> {
        match &edit.turned {
            // only whole components are taken off through a norm
            Some(turned) => turned.iter().map(|r| Along { r, strength: 1.0 }).collect(),
            None => self.ablated.iter().map(|one| Along { r: one.unit(), strength: one.strength() }).collect(),
        }
    }

    /// The directions that the edit of a quantised weight takes off whole, `[d_model]` each.
    pub(super) fn directions<'a>(&'a self, edit: &'a TensorEdit) -> Vec<&'a [f64]> {
        self.along(edit).into_iter().map(|along| along.r).collect()
    }

    /// Whether a part of a component is to stay.
    pub(super) fn is_partial(&self) -> bool {
        self.ablated.iter().any(|one| one.strength() < 1.0)
    }

    /// What is ablated; empty where nothing is.
    pub fn ablated(&self) -> &[Ablated] {
        &self.ablated
    }

    /// Width of the stream.
    pub fn d_model(&self) -> usize {
        self.d_model
    }
}

/// Which writers are edited by weights and which by nodes.
struct Choice<'a> {
    options: &'a PlanOptions,
    ablation: Option<&'a Ablation>,
    /// Which writes it acts on.
    writes: Writes,
    /// Tensors of the writers that it does not act on, with the names of these.
    outside: HashMap<TensorId, &'a str>,
}

impl<'a> Choice<'a> {
    fn new(options: &'a PlanOptions, ablation: Option<&'a Ablation>, named: &'a [(String, &'a Writer)]) -> Self {
        let writes = ablation.map(|ablation| ablation.writes().clone()).unwrap_or_default();
        let choice = Self { options, ablation, writes, outside: HashMap::new() };
        let mut outside = HashMap::new();
        for (name, writer) in named.iter().filter(|(_, writer)| !choice.acts_on(writer)) {
            let targets = writer.weights.iter().chain(&writer.biases);
            outside.extend(targets.map(|target| (target.tensor, name.as_str())));
        }
        Self { outside, ..choice }
    }

    /// Whether the write of a writer is ablated.
    fn acts_on(&self, writer: &Writer) -> bool {
        self.ablation.is_some() && self.writes.contains(writer.kind.of_write(), writer.layer.map(|layer| layer.0))
    }

    /// A writer that is not to be edited and reads a tensor of this one.
    fn shared_with(&self, writer: &Writer) -> Option<&str> {
        let mut tensors = writer.weights.iter().chain(&writer.biases);
        tensors.find_map(|target| self.outside.get(&target.tensor).copied())
    }

    /// Why quantised weights cannot be rounded for what is ablated.
    fn no_rounding(&self) -> Option<Reason> {
        let ablation = self.ablation?;
        match ablation.vectors() {
            _ if ablation.is_partial() => Some(Reason::PartialStrength),
            vectors if vectors.len() <= MOST_DIRECTIONS => None,
            _ => Some(Reason::ManyDirections),
        }
    }

    /// Whether the projection of a writer is inserted as nodes.
    fn by_nodes(&self, name: &str, writer: &Writer) -> bool {
        match writer.treatment {
            _ if !self.acts_on(writer) => false,
            Treatment::Nodes => true,
            Treatment::Elsewhere => false,
            _ if self.shared_with(writer).is_some() => true,
            Treatment::Rounded if self.no_rounding().is_some() => true,
            Treatment::Rounded => {
                self.options.quantised == QuantisedMode::Nodes || self.options.by_nodes.contains(name)
            }
            Treatment::Weights | Treatment::Copy | Treatment::Turned | Treatment::TurnedCopy => false,
        }
    }

    /// The writers whose projection is inserted.
    ///
    /// # Errors
    /// If the options forbid what one of them needs.
    fn needing_nodes<'w>(&self, named: &'w [(String, &'w Writer)]) -> Result<Vec<&'w (String, &'w Writer)>, BakeError> {
        let round = self.options.quantised == QuantisedMode::Round;
        let rounded = |writer: &Writer| writer.treatment == Treatment::Rounded && self.acts_on(writer);
        if round
            && let Some(reason) = self.no_rounding()
            && let Some((name, _)) = named.iter().find(|(_, w)| rounded(w))
        {
            return Err(BakeError::CannotRound { writer: name.clone(), reason: reason.to_string() });
        }
        let needing: Vec<&(String, &Writer)> = named.iter().filter(|(n, w)| self.by_nodes(n, w)).collect();
        if self.options.weights_only {
            if let Some((name, other)) = needing.iter().find_map(|(n, w)| Some((n, self.shared_with(w)?))) {
                let reason = format!("its weight is also that of `{other}`, which is not to be edited");
                return Err(BakeError::NeedsNodes { writer: name.clone(), reason });
            }
            if let Some((name, _)) = needing.iter().find(|(_, w)| rounded(w)) {
                let asked = || "its weight is quantised, and `--quantised nodes` was asked for".to_string();
                let reason = self.no_rounding().map_or_else(asked, |reason| reason.to_string());
                return Err(BakeError::NeedsNodes { writer: name.clone(), reason });
            }
        }
        if round && let Some((name, reason)) = needing.iter().find_map(|(n, w)| Some((n, w.cannot_be_rounded()?))) {
            return Err(BakeError::CannotRound { writer: name.clone(), reason: reason.into() });
        }
        Ok(needing)
    }

    /// Why a writer got nodes.
    fn reason(&self, name: &str, writer: &Writer) -> Reason {
        match (&writer.reason, self.shared_with(writer), self.no_rounding()) {
            (Some(reason), ..) => reason.clone(),
            (None, Some(other), _) => {
                Reason::Shared { detail: format!("`{other}`, which is not to be edited, has the same weight") }
            }
            (None, None, _) if self.options.by_nodes.contains(name) => Reason::TooCoarse,
            (None, None, Some(reason)) => reason,
            (None, None, None) => Reason::NodesAsked,
        }
    }
}

/// Nodes while they are inserted, writer by writer.
struct Insertion<'a> {
    graph: &'a Graph<'a>,
    choice: &'a Choice<'a>,
    /// The writers that vectors of additions join.
    joined: Vec<addition::Joined<'a>>,
    constants: Constants,
    patch: Patch,
    nodes: Vec<NodeEdit>,
    /// Where each of these vectors went.
    added: Vec<Option<Added>>,
}

impl Insertion<'_> {
    /// Inserts the projection of a writer's write, in each branch of a merged decoder.
    fn project(&mut self, name: &str, writer: &Writer) -> Result<(), BakeError> {
        let graph = self.graph;
        let joined = self.joined.iter().position(|joined| joined.name == name);
        let Some(ablation) = self.choice.ablation else { return Ok(()) };
        for (branch, write) in writer.writes.iter().enumerate() {
            let dtype = write_type(graph, write).unwrap_or(DataType::FLOAT);
            if !dtype.is_float() {
                let reason = format!("the projection cannot be inserted after a {dtype} value");
                return Err(BakeError::Unsupported { tensor: graph.name(write.value).into(), reason });
            }
            let source = self.constants.source(graph, dtype, ablation, &mut self.patch)?;
            let tag = if branch == 0 { name.to_string() } else { format!("{name}.cached") };
            let vector = match joined {
                Some(at) => Some(addition::constant(graph, &self.joined[at], dtype, &mut self.patch)?),
                None => None,
            };
            let steps = Steps { ablation: Some(&source), addition: vector.as_ref() };
            steer(graph, &mut self.patch, write, steps, &tag);
        }
        let written = writer.writes[0].value;
        if let Some(at) = joined {
            self.added[at] = Some(Added { place: AddedTo::Nodes, target: graph.name(written).into() });
        }
        let target = writer.weights.first();
        let dtype = match target {
            Some(target) => graph.model.tensor(target.tensor).dtype,
            None => write_type(graph, &writer.writes[0]).unwrap_or(DataType::FLOAT),
        };
        self.nodes.push(NodeEdit {
            writer: name.to_string(),
            kind: writer.kind,
            layer: writer.layer,
            name: target.map_or_else(|| graph.name(written).to_string(), |target| tensor_label(graph, target.tensor)),
            dtype,
            shape: target.map(|target| target.shape(graph.model)),
            quantised: target.and_then(|target| target.quantised),
            reason: self.choice.reason(name, writer),
        });
        Ok(())
    }
}

/// Writers with their names, made unique by a counter: `embed`, `layer.3.mlp_out`, `layer.3.mlp_out.2`.
fn named(writers: &[Writer]) -> Vec<(String, &Writer)> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut name = |writer: &Writer| {
        let kind = writer.kind.name();
        let name = match writer.layer {
            Some(layer) => format!("layer.{}.{kind}", layer.0),
            None => kind.to_string(),
        };
        let seen = seen.entry(name.clone()).or_default();
        *seen += 1;
        if *seen == 1 { name } else { format!("{name}.{seen}") }
    };
    writers.iter().map(|writer| (name(writer), writer)).collect()
}

fn tensor_edits<'w>(
    graph: &Graph<'_>,
    writers: impl Iterator<Item = &'w (String, &'w Writer)>,
    ablation: &Ablation,
) -> Result<Vec<TensorEdit>, BakeError> {
    let mut edits: Vec<TensorEdit> = Vec::new();
    for (writer_name, writer) in writers {
        let lookup = matches!(writer.kind, WriterKind::Embed | WriterKind::PosEmbed);
        let part = if lookup { Part::Rows } else { Part::Matrix };
        let weights = writer.weights.iter().map(|w| (*w, part));
        let targets = weights.chain(writer.biases.iter().map(|b| (*b, Part::Vector)));
        for (target, part) in targets {
            if let Some(known) = edits.iter().find(|e| e.tensor == target.tensor) {
                assert_eq!(known.axis, target.axis, "writers that disagree on an axis are treated by nodes");
                continue;
            }
            let tensor = graph.model.tensor(target.tensor);
            if tensor.elements() == 0 {
                continue; // nothing is written, and nothing is there to edit
            }
            let name = tensor_label(graph, target.tensor);
            let unsupported = |reason: &str| BakeError::Unsupported { tensor: name.clone(), reason: reason.into() };
            if !tensor.dtype.is_float() && target.quantised.is_none() {
                return Err(unsupported(&format!("it is {}", tensor.dtype)));
            }
            ablation.check_width(usize::try_from(target.width(graph.model)).unwrap_or(usize::MAX))?;
            match tensor.storage {
                Storage::Embedded { .. } | Storage::External { .. } => {}
                Storage::Varints { .. } if kernel::is_half(tensor.dtype) => {}
                _ => return Err(unsupported("its values are spread over several fields")),
            }
            edits.push(TensorEdit {
                tensor: target.tensor,
                part,
                kind: writer.kind,
                layer: writer.layer,
                dtype: tensor.dtype,
                shape: target.shape(graph.model),
                axis: target.axis,
                same_bytes_as: None,
                copy: None,
                turned: None,
                quantised: target.quantised,
                plus: None,
                writer: writer_name.clone(),
                name,
            });
        }
    }
    Ok(edits)
}

/// Entries with keys that the model does not have yet.
fn metadata(model: &Model, identity: (&str, String), extra: &[(String, String)]) -> Vec<(String, String)> {
    let mut taken = keys(model);
    let own = [(VERSION_KEY, env!("CARGO_PKG_VERSION")), (identity.0, identity.1.as_str())];
    own.into_iter()
        .chain(extra.iter().map(|(key, value)| (key.as_str(), value.as_str())))
        .map(|(key, value)| (fresh(&mut taken, key), value.to_string()))
        .collect()
}
