//! What a contribution comes from: attention, which mixes tokens, or an MLP, which works on one token at a time.

use std::collections::HashSet;

use super::Interface;
use super::residual::root;
use super::rows::picks_weight;
use crate::onnx::{Graph, ValueId};

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
        if is_attention(op) {
            return Role::Attn;
        }
        // shapes are read from anywhere and say nothing about mixing
        if matches!(op, "Shape" | "Size") {
            continue;
        }
        stack.extend(graph.all_inputs(node));
    }
    if has_activation_product(graph, floor, value) { Role::Attn } else { Role::Mlp }
}

/// Whether two activations that both come from the stream are multiplied as matrices on the way.
fn has_activation_product(graph: &Graph<'_>, floor: ValueId, value: ValueId) -> bool {
    let stop = graph.producer(floor);
    let mut seen = HashSet::new();
    let mut stack = vec![value];
    while let Some(value) = stack.pop() {
        if value == floor || !graph.is_dynamic(value) || !seen.insert(value) {
            continue;
        }
        let Some(node) = graph.producer(value) else { continue };
        if Some(node) == stop {
            continue;
        }
        if matches!(graph.op(node), "Shape" | "Size") {
            continue;
        }
        let inputs = graph.all_inputs(node);
        // experts multiply weights that were gathered by a router; gathered weights are no activation
        let activations = inputs.iter().filter(|v| graph.is_dynamic(**v) && !picks_weight(graph, **v)).count();
        if matches!(graph.op(node), "MatMul" | "FusedMatMul" | "Einsum") && activations >= 2 {
            return true;
        }
        stack.extend(inputs);
    }
    false
}
