//! Writers, and how each one's write is made orthogonal to a direction: by editing its tensors where that is
//! exact, else by nodes after it. [`super::weight`] finds the tensors.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::path::{EditTarget, WeightPath};
use super::residual::{Contribution, ResidualStream};
use super::weight::{Stop, trace_weight};
use super::{Layer, Role};
use crate::edit::WriteKind;
use crate::onnx::ops::WeightLayout;
use crate::onnx::{Graph, Model, NodeId, Quantised, Storage, TensorId, Use, ValueId};

/// What a writer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WriterKind {
    /// Token embedding.
    #[default]
    Embed,
    /// A second embedding: learned positions, token types.
    PosEmbed,
    /// Output projection of attention.
    AttnOut,
    /// Output projection of an MLP, or of all experts of a mixture.
    MlpOut,
}

impl WriterKind {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::PosEmbed => "pos_embed",
            Self::AttnOut => "attn_out",
            Self::MlpOut => "mlp_out",
        }
    }

    /// The kind of what it writes.
    pub fn of_write(self) -> WriteKind {
        match self {
            Self::Embed | Self::PosEmbed => WriteKind::Embed,
            Self::AttnOut => WriteKind::AttnOut,
            Self::MlpOut => WriteKind::MlpOut,
        }
    }

    /// Whether it starts the stream and belongs to no block.
    pub fn is_embedding(self) -> bool {
        matches!(self, Self::Embed | Self::PosEmbed)
    }
}

impl std::fmt::Display for WriterKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How a writer's write is made orthogonal to the direction.
///
/// What is found in a graph is `Weights`, `Rounded`, `Nodes` or `Elsewhere`. `Copy`, `Turned` and `TurnedCopy` are what
/// a bake with `--weights-only` does in place of `Nodes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Treatment {
    /// The weight (and bias) tensors are edited in place: `W' = W - r r^T W`.
    #[default]
    Weights,
    /// The same for quantised weights, which are rounded to their own grid so that the write stays orthogonal.
    Rounded,
    /// A copy of the tensor is edited, since others read the tensor too.
    Copy,
    /// The tensor is edited along the direction as the norm behind it turns it, which is not exact.
    Turned,
    /// Both: a copy, edited along the turned direction.
    TurnedCopy,
    /// Weights alone cannot be exact: the projection is inserted after the write as standard operators.
    Nodes,
    /// The write is made in another file, and edited there ([`super::EmbeddingFile`]).
    Elsewhere,
}

impl Treatment {
    /// What reports call it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Rounded => "rounded",
            Self::Copy => "copy",
            Self::Turned => "turned",
            Self::TurnedCopy => "turned copy",
            Self::Nodes => "nodes",
            Self::Elsewhere => "elsewhere",
        }
    }
}

impl std::fmt::Display for Treatment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.words())
    }
}

/// Why a writer is not edited, or not edited exactly, by its weights. The first three are found in the graph, the others
/// are decided by a bake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// Its weight is quantised in a way that cannot be rounded to its own grid.
    Unroundable {
        /// What stands against it, and where.
        detail: String,
    },
    /// Others read its tensors too.
    Shared {
        /// Which tensor, and who reads it.
        detail: String,
    },
    /// No weights were found behind the write, or none that can be edited exactly.
    NotFound {
        /// What stands against it, and where.
        detail: String,
    },
    /// Its weight is quantised and the strength is below 1: rounding can take off the whole component only.
    PartialStrength,
    /// Its weight is quantised and more directions are ablated than rounding can take off at once.
    ManyDirections,
    /// Rounding its quantised weight leaves too much of the direction, or costs too much.
    TooCoarse,
    /// Its weight is quantised, and nodes were asked for.
    NodesAsked,
    /// The norm behind the write turns the direction, so that an edit of the weight is not quite exact.
    Turned,
}

impl Reason {
    /// Whether it is that the weight is quantised.
    pub fn is_quantised(&self) -> bool {
        matches!(
            self,
            Self::Unroundable { .. }
                | Self::PartialStrength
                | Self::ManyDirections
                | Self::TooCoarse
                | Self::NodesAsked
        )
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unroundable { detail } | Self::Shared { detail } | Self::NotFound { detail } => detail,
            Self::PartialStrength => {
                "its weight is quantised, and rounding knows how to take off the whole component only"
            }
            Self::ManyDirections => "its weight is quantised, and rounding can take off four directions at most",
            Self::TooCoarse => "its weight is quantised too coarsely: rounding leaves too much, or costs too much",
            Self::NodesAsked => "its weight is quantised, and nodes were asked for",
            Self::Turned => {
                "the norm behind it turns the direction: the write is orthogonal, its length is not quite that of an \
                 exact edit"
            }
        })
    }
}

/// One writer to the residual stream.
#[derive(Debug, Clone)]
pub struct Writer {
    /// What it is.
    pub kind: WriterKind,
    /// Its block; `None` for embeddings.
    pub layer: Option<Layer>,
    /// Its writes: one, or one in each branch of a merged decoder.
    pub writes: Vec<Contribution>,
    /// Its weights, where they were found: one, or one for each expert.
    pub weights: Vec<EditTarget>,
    /// Biases that are part of the write.
    pub biases: Vec<EditTarget>,
    /// How the write is made orthogonal.
    pub treatment: Treatment,
    /// Why not by weights; `None` where it is.
    pub reason: Option<Reason>,
    /// Whether the weight also makes the logits.
    pub tied: bool,
}

impl Writer {
    /// Why its quantised weight cannot be rounded, where that is what stands against it.
    pub fn cannot_be_rounded(&self) -> Option<&str> {
        match &self.reason {
            Some(Reason::Unroundable { detail }) => Some(detail),
            _ => None,
        }
    }
}

/// What was found behind one contribution.
struct Traced {
    path: Option<WeightPath>,
    reason: Option<Reason>,
    tied: bool,
}

/// All writers with their treatment. `streams` holds the model's stream, and for a merged decoder that of its other
/// branch, with the same writers in the same order.
pub fn writers(graph: &Graph<'_>, streams: &[&ResidualStream]) -> Vec<Writer> {
    let d_model = streams[0].d_model;
    let mut traced: Vec<Vec<Traced>> =
        streams.iter().map(|stream| stream.contributions.iter().map(|c| trace(graph, c, d_model)).collect()).collect();
    let unembeddings =
        streams.iter().map(|s| Use { node: s.unembedding.node, slot: 1 - s.unembedding.slot.min(1) }).collect();
    let sharing = Sharing::of(graph, traced.iter().flatten().filter_map(|t| t.path.as_ref()), unembeddings);
    // One treatment forces another where two writers share a tensor, so repeat until nothing changes.
    let wanted = loop {
        let wanted: HashSet<Use> = traced
            .iter()
            .flatten()
            .filter(|t| t.reason.is_none())
            .filter_map(|t| t.path.as_ref())
            .flat_map(|path| path.entries.iter().copied())
            .collect();
        let mut changed = false;
        for one in traced.iter_mut().flatten().filter(|t| t.reason.is_none()) {
            let path = one.path.as_ref().expect("without a path there is a reason");
            if let Some((detail, tied)) = sharing.conflict(path, &wanted) {
                (one.reason, one.tied) = (Some(Reason::Shared { detail }), tied);
                changed = true;
            }
        }
        // what one branch needs nodes for gets nodes in the other one too
        for index in 0..traced[0].len() {
            let reason = traced.iter().find_map(|branch| branch[index].reason.clone());
            for branch in traced.iter_mut().filter(|_| reason.is_some()) {
                if branch[index].reason.is_none() {
                    branch[index].reason.clone_from(&reason);
                    changed = true;
                }
            }
        }
        if !changed {
            break wanted;
        }
    };
    for path in traced.iter_mut().flatten().filter_map(|t| t.path.as_mut()) {
        path.weights = sharing.own_scales(path, &wanted);
    }
    let mut embeddings = 0;
    let mut found = Vec::new();
    for (index, contribution) in streams[0].contributions.iter().enumerate() {
        let one = &traced[0][index];
        found.push(Writer {
            kind: kind(contribution, &mut embeddings),
            layer: contribution.layer,
            writes: streams.iter().map(|stream| stream.contributions[index].clone()).collect(),
            weights: one.path.as_ref().map(|p| p.weights.clone()).unwrap_or_default(),
            biases: one.path.as_ref().map(|p| p.biases.clone()).unwrap_or_default(),
            treatment: match &one.reason {
                None => by_weights(one.path.as_ref()),
                Some(_) if is_fed(graph, contribution) => Treatment::Elsewhere,
                Some(_) => Treatment::Nodes,
            },
            reason: one.reason.clone(),
            tied: one.tied,
        });
    }
    if streams.len() > 1 {
        merge_targets(&mut found, &traced);
    }
    found
}

/// Whether the stream starts with a graph input (`inputs_embeds`).
fn is_fed(graph: &Graph<'_>, contribution: &Contribution) -> bool {
    contribution.role == Role::Embed && graph.producer(super::rows::root(graph, contribution.value)).is_none()
}

/// The one writer of an embedding file.
pub(super) fn single(graph: &Graph<'_>, write: Contribution, d_model: usize) -> Writer {
    let mut traced = trace(graph, &write, d_model);
    // the graph returns the write itself: that is the one reader
    if let Some(path) = &mut traced.path {
        let wanted = path.entries.iter().copied().collect();
        let sharing = Sharing::of(graph, std::iter::once(&*path), Vec::new());
        path.weights = sharing.own_scales(path, &wanted);
        if let Some((detail, tied)) = sharing.conflict(path, &wanted) {
            (traced.reason, traced.tied) = (Some(Reason::Shared { detail }), tied);
        }
    }
    Writer {
        kind: WriterKind::Embed,
        layer: None,
        weights: traced.path.as_ref().map(|p| p.weights.clone()).unwrap_or_default(),
        biases: traced.path.as_ref().map(|p| p.biases.clone()).unwrap_or_default(),
        treatment: if traced.reason.is_none() { by_weights(traced.path.as_ref()) } else { Treatment::Nodes },
        reason: traced.reason,
        tied: traced.tied,
        writes: vec![write],
    }
}

/// How a write is treated whose weights can be edited.
fn by_weights(path: Option<&WeightPath>) -> Treatment {
    let quantised = path.is_some_and(|path| path.weights.iter().any(|target| target.quantised.is_some()));
    if quantised { Treatment::Rounded } else { Treatment::Weights }
}

/// Branches may hold weights of their own: a writer edits those of all of them.
fn merge_targets(writers: &mut [Writer], traced: &[Vec<Traced>]) {
    for (index, writer) in writers.iter_mut().enumerate() {
        for path in traced.iter().filter_map(|branch| branch[index].path.as_ref()) {
            for target in &path.weights {
                if !writer.weights.iter().any(|known| (known.tensor, known.axis) == (target.tensor, target.axis)) {
                    writer.weights.push(*target);
                }
            }
            for target in &path.biases {
                if !writer.biases.contains(target) {
                    writer.biases.push(*target);
                }
            }
        }
    }
}

fn trace(graph: &Graph<'_>, contribution: &Contribution, d_model: usize) -> Traced {
    let from_end = contribution.layout.from_end();
    let path = trace_weight(graph, contribution.value, Some(d_model), from_end).and_then(|mut path| {
        if let Some(site) = contribution.site {
            super::weight::check_readers(graph, contribution.value, site.node)?;
        }
        if let Some(fused) = contribution.bias {
            path.add_bias(graph, fused, d_model)?;
        }
        Ok(path)
    });
    match path {
        Ok(path) => Traced { path: Some(path), reason: None, tied: false },
        Err(Stop { refusal, quantised }) => {
            let detail = refusal.to_string();
            let reason = if quantised { Reason::Unroundable { detail } } else { Reason::NotFound { detail } };
            Traced { path: None, reason: Some(reason), tied: false }
        }
    }
}

fn kind(contribution: &Contribution, embeddings: &mut usize) -> WriterKind {
    match contribution.role {
        Role::Attn => WriterKind::AttnOut,
        Role::Mlp => WriterKind::MlpOut,
        Role::Embed => {
            *embeddings += 1;
            if *embeddings == 1 { WriterKind::Embed } else { WriterKind::PosEmbed }
        }
    }
}

/// Who else reads the tensors of the writers, by name or by bytes.
pub(super) struct Sharing<'g, 'm> {
    graph: &'g Graph<'m>,
    unembeddings: Vec<Use>,
    /// Tensors that two writers would edit along different axes, or by different scales.
    conflicting: HashSet<TensorId>,
    /// Tensors of codes by the tensor of their scales.
    scaled: HashMap<TensorId, HashSet<TensorId>>,
    /// Values that are a tensor.
    values: HashMap<TensorId, Vec<ValueId>>,
    /// For each tensor of a writer: every tensor whose bytes overlap with its own, itself included; `None` where
    /// they are not the same bytes of the same shape.
    aliases: HashMap<TensorId, Option<Vec<TensorId>>>,
}

impl<'g, 'm> Sharing<'g, 'm> {
    pub(super) fn of<'p>(
        graph: &'g Graph<'m>,
        paths: impl Iterator<Item = &'p WeightPath>,
        unembeddings: Vec<Use>,
    ) -> Self {
        let mut targets: HashMap<TensorId, &EditTarget> = HashMap::new();
        let mut scaled: HashMap<TensorId, HashSet<TensorId>> = HashMap::new();
        let mut conflicting = HashSet::new();
        for path in paths {
            for target in path.weights.iter().chain(&path.biases) {
                if let Some(quantised) = target.quantised {
                    scaled.entry(quantised.scales).or_default().insert(target.tensor);
                }
                if *targets.entry(target.tensor).or_insert(target) != target {
                    conflicting.insert(target.tensor);
                }
            }
        }
        let mut values: HashMap<TensorId, Vec<ValueId>> = HashMap::new();
        let stored = graph.proto().initializer.iter().filter_map(|t| graph.value(t.name.as_deref().unwrap_or("")));
        let constants = graph.nodes().filter(|&n| graph.op(n) == "Constant").flat_map(|n| graph.outputs(n));
        for value in stored.chain(constants) {
            if let Some(tensor) = graph.tensor(value) {
                values.entry(tensor).or_default().push(value);
            }
        }
        let aliases = aliases(graph.model, targets.keys().chain(scaled.keys()).copied());
        Self { graph, unembeddings, conflicting, scaled, values, aliases }
    }

    /// Why the tensors of a path cannot be edited in place, and whether one is tied to the unembedding.
    pub(super) fn conflict(&self, path: &WeightPath, wanted: &HashSet<Use>) -> Option<(String, bool)> {
        for target in path.weights.iter().chain(&path.biases) {
            let name = super::tensor_label(self.graph, target.tensor);
            if self.conflicting.contains(&target.tensor) {
                return Some((format!("`{name}` is read in two ways that need it edited differently"), false));
            }
            // the same codes stand for the same weight only with the same scales
            let same = |all: &&Vec<TensorId>| target.quantised.is_none() || all.len() == 1;
            let Some(all) = self.aliases.get(&target.tensor).and_then(Option::as_ref).filter(same) else {
                return Some((format!("`{name}` shares its bytes with another tensor"), false));
            };
            for &tensor in all {
                let Some(uses) = self.entries_of(tensor) else {
                    return Some((format!("`{name}` is also used outside the graph's own nodes"), false));
                };
                let mut others: Vec<Use> = uses.difference(wanted).copied().collect();
                others.sort_unstable();
                // the unembedding first: that is what a reader knows it by
                others.sort_by_key(|other| !self.unembeddings.iter().any(|u| u.node == other.node));
                if let Some(other) = others.first() {
                    let node = self.graph.node(other.node).label();
                    let tied = self.unembeddings.iter().any(|u| u.node == other.node);
                    let tie = if tied { "tied to the unembedding: " } else { "" };
                    return Some((format!("{tie}`{name}` is also read by node `{node}`"), tied));
                }
            }
        }
        None
    }

    /// The weights of a path, told which of the quantised ones have their scales for themselves.
    pub(super) fn own_scales(&self, path: &WeightPath, wanted: &HashSet<Use>) -> Vec<EditTarget> {
        let nodes: HashSet<NodeId> = wanted.iter().map(|one| one.node).collect();
        let alone = |q: Quantised| {
            let bytes = self.aliases.get(&q.scales).and_then(Option::as_ref).is_some_and(|all| all.len() == 1);
            let codes = self.scaled.get(&q.scales).is_some_and(|codes| codes.len() == 1);
            let entries = self.entries_of(q.scales).unwrap_or_default();
            let slots: HashSet<usize> = entries.iter().map(|one| one.slot).collect();
            let readers = match q.layout {
                WeightLayout::Integer => {
                    !entries.is_empty() && entries.iter().all(|one| self.scales_only(one.node, &nodes))
                }
                _ => entries.len() == 1 || entries.iter().all(|one| nodes.contains(&one.node)),
            };
            bytes && codes && slots.len() == 1 && readers
        };
        let told = |target: &EditTarget| EditTarget {
            quantised: target.quantised.map(|q| Quantised { own_scales: q.own_scales && alone(q), ..q }),
            ..*target
        };
        path.weights.iter().map(told).collect()
    }

    /// Whether a node is the product of the two scales of integer products of `nodes`, and of nothing else: what it
    /// returns may have readers that are no writers.
    fn scales_only(&self, factor: NodeId, nodes: &HashSet<NodeId>) -> bool {
        let graph = self.graph;
        let scaled = |one: &Use| {
            let product = graph.op(one.node) == "Mul" && one.slot < 2;
            let value = graph.input(one.node, 1 - one.slot.min(1)).filter(|_| product);
            let cast = |node: &NodeId| graph.op(*node) == "Cast";
            let producer = value.and_then(|v| graph.producer(v));
            let producer = match producer.filter(cast) {
                Some(node) => graph.input(node, 0).and_then(|v| graph.producer(v)),
                None => producer,
            };
            producer.is_some_and(|node| nodes.contains(&node))
        };
        graph.op(factor) == "Mul"
            && graph.outputs(factor).all(|value| !graph.is_output(value) && graph.uses(value).iter().all(scaled))
    }

    /// Every place where a tensor's value enters the computation, through `Cast`, `Transpose` and the like.
    /// `None` if it also leaves the graph or cannot be followed.
    fn entries_of(&self, tensor: TensorId) -> Option<HashSet<Use>> {
        let graph = self.graph;
        let mut entries = HashSet::new();
        let mut stack: Vec<ValueId> = self.values.get(&tensor).cloned().unwrap_or_default();
        if graph.is_opaque(tensor) {
            return None; // also part of a function body whose calls are not all seen
        }
        let mut seen: HashSet<ValueId> = HashSet::new();
        while let Some(value) = stack.pop() {
            if !seen.insert(value) {
                continue;
            }
            if graph.is_output(value) {
                return None;
            }
            for one in graph.uses(value) {
                if one.slot >= graph.node(one.node).input.len() {
                    return None; // captured by a subgraph
                }
                let outputs: Vec<ValueId> = graph.outputs(one.node).collect();
                if super::rows::is_idle(graph, one.node) {
                    // whoever reads it in the file was led to its twin
                } else if outputs.iter().any(|v| graph.is_dynamic(*v)) {
                    entries.insert(*one);
                } else if matches!(graph.op(one.node), "Shape" | "Size") {
                    // reads no values
                } else {
                    stack.extend(outputs);
                }
            }
        }
        Some(entries)
    }
}

/// Tensors that lie on the same bytes as each of `tensors`.
fn aliases(model: &Model, tensors: impl Iterator<Item = TensorId>) -> HashMap<TensorId, Option<Vec<TensorId>>> {
    let mut external: HashMap<&Path, Vec<(u64, u64, TensorId)>> = HashMap::new();
    for (index, tensor) in model.tensors.iter().enumerate() {
        if let Storage::External { path, offset, length, .. } = &tensor.storage {
            external.entry(path).or_default().push((*offset, offset + length, TensorId(index)));
        }
    }
    tensors
        .map(|id| {
            let tensor = model.tensor(id);
            let Storage::External { path, offset, length, .. } = &tensor.storage else {
                return (id, Some(vec![id]));
            };
            let mut all = Vec::new();
            for &(from, to, other) in &external[path.as_path()] {
                if other == id {
                    all.push(id);
                } else if from < offset + length && *offset < to {
                    let twin = model.tensor(other);
                    let same = (from, to) == (*offset, offset + length)
                        && twin.dtype == tensor.dtype
                        && twin.shape == tensor.shape;
                    if !same {
                        return (id, None);
                    }
                    all.push(other);
                }
            }
            (id, Some(all))
        })
        .collect()
}
