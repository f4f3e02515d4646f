//! What a contribution comes from: attention, which mixes tokens, or an MLP, which works on one token at a time.

use std::collections::HashSet;

use super::Interface;
use super::rows::{picks_weight, root};
use crate::edit::WriteKind;
use crate::onnx::{Graph, NodeId, ValueId};

/// What a contribution comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding, or whatever starts the stream.
    Embed,
    /// Attention, or another operator that mixes tokens.
    Attn,
    /// Anything that works on one token at a time.
    Mlp,
}

impl Role {
    /// The kind of write that comes from it.
    pub fn of_write(self) -> WriteKind {
        match self {
            Self::Embed => WriteKind::Embed,
            Self::Attn => WriteKind::AttnOut,
            Self::Mlp => WriteKind::MlpOut,
        }
    }
}

/// Operators that mix tokens.
pub(super) fn is_attention(op: &str) -> bool {
    matches!(
        op,
        "Attention"
            | "MultiHeadAttention"
            | "GroupQueryAttention"
            | "DecoderMaskedMultiHeadAttention"
            | "DecoderMaskedSelfAttention"
            | "PackedMultiHeadAttention"
            | "PagedAttention"
            | "SparseAttention"
            | "LinearAttention"
            | "RotaryEmbedding"
            | "Conv"
            | "Scan"
            | "Loop"
            | "GRU"
            | "LSTM"
            | "RNN"
    )
}

/// Attention if the way back to the stream meets the KV cache, the mask or positions, or a product of
/// two activations; MLP otherwise.
pub(super) fn role(graph: &Graph<'_>, interface: &Interface, stream: ValueId, value: ValueId) -> Role {
    let floor = root(graph, stream);
    let stop = graph.producer(floor);
    let mut met: Vec<NodeId> = Vec::new();
    let mut seen = HashSet::new();
    let mut stack = vec![value];
    while let Some(at) = stack.pop() {
        if at == floor || !graph.is_dynamic(at) || !seen.insert(at) {
            continue;
        }
        let name = graph.name(at);
        if interface.cache.iter().any(|slot| slot.past == name)
            || interface.attention_mask.as_deref() == Some(name)
            || interface.position_ids.as_deref() == Some(name)
        {
            return Role::Attn;
        }
        let Some(node) = graph.producer(at) else { continue };
        if Some(node) == stop {
            continue;
        }
        let op = graph.op(node);
        if is_attention(op) && !is_pointwise(graph, node) {
            return Role::Attn;
        }
        // shapes are read from anywhere and say nothing about mixing
        if matches!(op, "Shape" | "Size") {
            continue;
        }
        met.push(node);
        stack.extend(graph.all_inputs(node));
    }
    if has_activation_product(graph, floor, met) { Role::Attn } else { Role::Mlp }
}

/// Whether a `Conv` is a product at every position.
fn is_pointwise(graph: &Graph<'_>, node: NodeId) -> bool {
    let kernel = graph.input(node, 1).and_then(|v| graph.tensor_ref(v)).and_then(|t| t.shape.get(2..));
    graph.op(node) == "Conv" && kernel.is_some_and(|kernel| !kernel.is_empty() && kernel.iter().all(|&k| k == 1))
}

/// Whether two activations that both come from the stream are multiplied as matrices by one of `nodes`. Weights that a
/// caller feeds (adapters) come from elsewhere.
fn has_activation_product(graph: &Graph<'_>, floor: ValueId, mut nodes: Vec<NodeId>) -> bool {
    nodes.sort_by_key(|&node| graph.rank(node));
    nodes.dedup();
    let mut fed: HashSet<ValueId> = match graph.producer(floor) {
        Some(node) => graph.outputs(node).collect(),
        None => HashSet::from([floor]),
    };
    for node in nodes {
        let inputs = graph.all_inputs(node);
        // experts multiply weights that were gathered by a router; gathered weights are no activation
        let activation = |v: &&ValueId| fed.contains(*v) && !picks_weight(graph, **v);
        let plain = graph.weighted(node).is_some_and(|weighted| weighted.is_plain_product());
        let product = plain || graph.op(node) == "Einsum";
        if product && inputs.iter().filter(activation).count() >= 2 {
            return true;
        }
        if inputs.iter().any(|v| fed.contains(v)) {
            fed.extend(graph.outputs(node));
        }
    }
    false
}
