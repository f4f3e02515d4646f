//! What a bake will change, as a value: tensors to edit, nodes to insert, metadata to add.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::addition::{self, Added, AddedTo};
use super::constants::Constants;
use super::error::BakeError;
use super::gate::{self, Gated};
use super::hash::sha256;
use super::kernel::{self, Aim};
use super::layout::check_aliases;
use super::metadata::{fresh, keys, own_metadata};
use crate::edit::{Ablation, Edit};
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
    /// Where a norm follows the write: the direction as that norm turns it, `[d_model]`, length 1. `None` where the
    /// plan's own direction is taken off.
    pub turned: Option<Vec<f64>>,
    /// How the weight is quantised; the shape is then that of the matrix.
    pub quantised: Option<Quantised>,
    /// Share of the component that is taken off.
    pub strength: f64,
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

    /// The edit along `r`, `[d_model]`.
    pub(super) fn aim<'a>(&'a self, r: &'a [f64]) -> Aim<'a> {
        Aim { r, strength: self.strength, plus: self.plus.as_deref() }
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
    /// Where the vector of an addition went, where this file has its layer.
    pub added: Option<Added>,
    /// Where the gated terms went, in the order of the edit; none in a file without a stream.
    pub gated: Vec<Gated>,
    /// `metadata_props` entries to add.
    pub metadata: Vec<(String, String)>,
    /// SHA-256 of the unit direction as little-endian float32; empty where none is ablated.
    pub direction_sha256: String,
    /// The unit direction that is ablated, `[d_model]`; empty where none is.
    pub(super) unit: Vec<f64>,
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
        let choice = Choice { options, ablation };
        let mut needing = choice.needing_nodes(&named)?;
        let edited = named.iter().filter(|(n, w)| w.treatment != Treatment::Elsewhere && !choice.by_nodes(n, w));
        let tensors = match ablation {
            Some(ablation) => tensor_edits(graph, edited, ablation)?,
            None => Vec::new(),
        };
        let mut tensors = check_aliases(graph.model, tensors)?;
        let joined = addition::joined(&named, edit);
        let added = match &joined {
            Some(joined) if !choice.by_nodes(joined.name, joined.writer) => {
                addition::into_bias(graph, joined, &mut tensors)
            }
            _ => None,
        };
        if let Some(joined) = joined.as_ref().filter(|_| added.is_none() && options.weights_only) {
            let reason = "the vector of the addition needs a bias of its own there".to_string();
            return Err(BakeError::NeedsNodes { writer: joined.name.to_string(), reason });
        }
        let (patch, nodes, constants) = (Patch::default(), Vec::new(), Constants::default());
        let mut insertion = Insertion { graph, choice, joined, constants, patch, nodes, added };
        if let Some(ablation) = ablation.filter(|_| options.weights_only) {
            for (name, writer) in needing.drain(..) {
                tensors.extend(super::alone::edits(graph, writer, name, d_model, ablation, &mut insertion.patch)?);
            }
        }
        for (name, writer) in needing {
            insertion.project(name, writer)?;
        }
        let Insertion { joined, mut patch, nodes, mut added, .. } = insertion;
        if let Some(joined) = joined.as_ref().filter(|_| added.is_none()) {
            added = Some(addition::node(graph, joined, &mut patch)?);
        }
        let known = own_metadata(graph.model, gate::SHA256);
        let gated = gate::terms(graph, &streams, edit.gates(), (options.weights_only, known), &mut patch)?;
        patch.check(graph);
        let splices = splices(&patch, graph)?;
        let direction_sha256 = ablation.map(|ablation| sha256(ablation.unit())).unwrap_or_default();
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
        let unit = ablation.map(|ablation| ablation.unit().to_vec()).unwrap_or_default();
        Ok(Self { tensors, nodes, patch, splices, added, gated, metadata, direction_sha256, unit, d_model })
    }

    /// Names of the tensors whose edit is not exact, because a norm behind it depends on the edited weight, or because
    /// the weight is rounded to a coarse grid.
    pub fn inexact(&self) -> Vec<String> {
        let inexact =
            |edit: &&TensorEdit| edit.quantised.is_some() || (edit.turned.is_some() && edit.part != Part::Vector);
        let turned = self.tensors.iter().filter(inexact);
        turned.map(|edit| edit.name.clone()).collect()
    }

    /// The direction that an edit takes off, `[d_model]`.
    pub(super) fn unit_of<'a>(&'a self, edit: &'a TensorEdit) -> &'a [f64] {
        edit.turned.as_deref().unwrap_or(&self.unit)
    }

    /// The unit direction that is ablated, `[d_model]`; empty where none is.
    pub fn unit(&self) -> &[f64] {
        &self.unit
    }

    /// Width of the stream.
    pub fn d_model(&self) -> usize {
        self.d_model
    }
}

/// Which writers are edited by weights and which by nodes.
#[derive(Clone, Copy)]
struct Choice<'a> {
    options: &'a PlanOptions,
    ablation: Option<&'a Ablation>,
}

impl Choice<'_> {
    /// Whether a part of the component is to stay.
    fn partial(&self) -> bool {
        self.ablation.is_some_and(|ablation| ablation.strength() < 1.0)
    }

    /// Whether the projection of a writer is inserted as nodes.
    fn by_nodes(&self, name: &str, writer: &Writer) -> bool {
        match writer.treatment {
            _ if self.ablation.is_none() => false,
            Treatment::Nodes => true,
            Treatment::Rounded if self.partial() => true,
            Treatment::Rounded => {
                self.options.quantised == QuantisedMode::Nodes || self.options.by_nodes.contains(name)
            }
            Treatment::Weights | Treatment::Copy | Treatment::Turned | Treatment::TurnedCopy | Treatment::Elsewhere => {
                false
            }
        }
    }

    /// The writers whose projection is inserted.
    ///
    /// # Errors
    /// If the options forbid what one of them needs.
    fn needing_nodes<'w>(&self, named: &'w [(String, &'w Writer)]) -> Result<Vec<&'w (String, &'w Writer)>, BakeError> {
        let round = self.options.quantised == QuantisedMode::Round;
        let rounded = |writer: &Writer| writer.treatment == Treatment::Rounded;
        if round
            && self.partial()
            && let Some((name, _)) = named.iter().find(|(_, w)| rounded(w))
        {
            return Err(BakeError::CannotRound { writer: name.clone(), reason: Reason::PartialStrength.to_string() });
        }
        let needing: Vec<&(String, &Writer)> = named.iter().filter(|(n, w)| self.by_nodes(n, w)).collect();
        if let Some((name, _)) = needing.iter().find(|(_, w)| self.options.weights_only && rounded(w)) {
            let reason = match self.partial() {
                true => Reason::PartialStrength.to_string(),
                false => "its weight is quantised, and `--quantised nodes` was asked for".to_string(),
            };
            return Err(BakeError::NeedsNodes { writer: name.clone(), reason });
        }
        if round && let Some((name, reason)) = needing.iter().find_map(|(n, w)| Some((n, w.cannot_be_rounded()?))) {
            return Err(BakeError::CannotRound { writer: name.clone(), reason: reason.into() });
        }
        Ok(needing)
    }

    /// Why a writer got nodes.
    fn reason(&self, name: &str, writer: &Writer) -> Reason {
        match &writer.reason {
            Some(reason) => reason.clone(),
            None if self.options.by_nodes.contains(name) => Reason::TooCoarse,
            None if self.partial() => Reason::PartialStrength,
            None => Reason::NodesAsked,
        }
    }
}

/// Nodes while they are inserted, writer by writer.
struct Insertion<'a> {
    graph: &'a Graph<'a>,
    choice: Choice<'a>,
    /// The writer that the vector of an addition joins.
    joined: Option<addition::Joined<'a>>,
    constants: Constants,
    patch: Patch,
    nodes: Vec<NodeEdit>,
    /// Where that vector went.
    added: Option<Added>,
}

impl Insertion<'_> {
    /// Inserts the projection of a writer's write, in each branch of a merged decoder.
    fn project(&mut self, name: &str, writer: &Writer) -> Result<(), BakeError> {
        let graph = self.graph;
        let joined = self.joined.as_ref().filter(|joined| joined.name == name);
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
                Some(joined) => Some(addition::constant(graph, joined, dtype, &mut self.patch)?),
                None => None,
            };
            let steps = Steps { ablation: Some(&source), addition: vector.as_ref() };
            steer(graph, &mut self.patch, write, steps, &tag);
        }
        let written = writer.writes[0].value;
        if joined.is_some() {
            self.added = Some(Added { place: AddedTo::Nodes, target: graph.name(written).into() });
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
            ablation.direction().check_width(usize::try_from(target.width(graph.model)).unwrap_or(usize::MAX))?;
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
                strength: ablation.strength(),
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
