//! The residual stream, traced by data flow from the unembedding back to the embedding.
//!
//! No name is looked at. The stream is the chain of sums in which one term feeds all the others: in
//! `x + f(norm(x))` the term `x` is an ancestor of the other one. A sum of two terms of which neither
//! feeds the other (parallel blocks, `attn + mlp`) is opened until one term does. Where no term feeds
//! the others, the sum is the start of the stream (token plus position embedding).

use std::collections::{BTreeSet, HashSet};

use super::role::{is_attention, role};
use super::rows::hands_on;
use super::weight::trace_weight;
use super::{Interface, Layer, Refusal, Role, StreamLayout};
use crate::onnx::{Graph, NodeId, Use, ValueId};

/// A value of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamValue {
    /// A named value.
    Value(ValueId),
    /// The sum inside a fused add-and-norm node whose sum output (3) the file leaves unnamed.
    Sum(NodeId),
}

/// One term that is added to the stream.
#[derive(Debug, Clone)]
pub struct Contribution {
    /// The value that is added.
    pub value: ValueId,
    /// Where it is added; `None` where the value itself starts the stream (all its readers read the stream).
    pub site: Option<Use>,
    /// Bias input of a fused add-and-norm node, which is part of the same sum.
    pub bias: Option<Use>,
    /// What it comes from; a sum of attention and MLP output counts as attention.
    pub role: Role,
    /// The block it belongs to; `None` for embeddings.
    pub layer: Option<Layer>,
}

/// One block: where the stream enters and leaves it.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// `resid_pre`.
    pub pre: StreamValue,
    /// `resid_mid`, in sequential blocks.
    pub mid: Option<StreamValue>,
    /// `resid_post`.
    pub post: StreamValue,
}

/// The unembedding: the product that makes logits.
#[derive(Debug, Clone, Copy)]
pub struct Unembedding {
    /// The product.
    pub node: NodeId,
    /// Which of its inputs is the activation.
    pub slot: usize,
}

/// The residual stream of a model.
#[derive(Debug, Clone)]
pub struct ResidualStream {
    /// Width.
    pub d_model: usize,
    /// The value that the stream starts with: the embedding, or the sum of several.
    pub origin: ValueId,
    /// Blocks in order.
    pub blocks: Vec<Block>,
    /// Everything that is added, embeddings first, then in the order of the blocks.
    pub contributions: Vec<Contribution>,
    /// Where the stream is read for the last time.
    pub unembedding: Unembedding,
    /// Which of its axes is what.
    pub layout: StreamLayout,
}

/// A term of a sum: the value, and the input that holds it.
#[derive(Debug, Clone, Copy)]
struct Term {
    value: ValueId,
    site: Use,
}

/// One sum on the stream.
struct Group {
    before: ValueId,
    after: StreamValue,
    contributions: Vec<Term>,
    biases: Vec<Use>,
}

/// The fused add-and-norm operators of ONNX Runtime: slot of their bias input.
fn skip_norm_bias(op: &str) -> Option<usize> {
    match op {
        "SkipSimplifiedLayerNormalization" => Some(3),
        "SkipLayerNormalization" => Some(4),
        _ => None,
    }
}

/// Output of a fused add-and-norm node that holds the sum.
pub(crate) const SKIP_SUM_OUTPUT: usize = 3;

/// Follows `Cast` and the like back to the value they hand on.
pub(super) fn root(graph: &Graph<'_>, mut value: ValueId) -> ValueId {
    while let Some(node) = graph.producer(value) {
        match graph.input(node, 0) {
            Some(input) if hands_on(graph, node) => value = input,
            _ => break,
        }
    }
    value
}

fn refuse(graph: &Graph<'_>, node: NodeId, tensor: Option<ValueId>, reason: impl Into<String>) -> Refusal {
    Refusal {
        node: graph.node(node).label().to_string(),
        op: graph.op_name(node),
        tensor: tensor.map_or_else(String::new, |v| graph.name(v).to_string()),
        reason: reason.into(),
        hint: "the stream passes an operator that Lancet cannot follow; export the model again without custom or \
               fused operators there, or report the node"
            .into(),
    }
}

impl ResidualStream {
    /// What is to be projected while the model runs: the same as the contributions, but the start of the stream as one
    /// value, since a single embedding of positions has no batch. A fused add-and-norm node reads its parts.
    pub fn writes(&self, graph: &Graph<'_>) -> Vec<Contribution> {
        let fused = graph.producer(self.origin).is_some_and(|node| skip_norm_bias(graph.op(node)).is_some());
        if fused {
            return self.contributions.clone();
        }
        let start = Contribution { value: self.origin, site: None, bias: None, role: Role::Embed, layer: None };
        let rest = self.contributions.iter().filter(|c| c.role != Role::Embed).cloned();
        std::iter::once(start).chain(rest).collect()
    }

    /// The write that ends the block before `layer`, at least 1: what is added to it is added to `resid_pre[layer]`,
    /// for the norm of a fused add-and-norm node too.
    pub fn last_before(&self, layer: usize) -> Option<&Contribution> {
        let before = Layer(layer.checked_sub(1)?);
        self.contributions.iter().rev().find(|c| c.layer == Some(before))
    }

    /// Whether another stream has the same blocks and contributions.
    pub fn matches(&self, other: &Self) -> bool {
        let shape = |s: &Self| {
            let roles: Vec<_> = s.contributions.iter().map(|c| (c.role, c.layer)).collect();
            (s.d_model, s.blocks.len(), roles)
        };
        shape(self) == shape(other)
    }

    /// Traces the stream of `graph` that ends in `logits`.
    ///
    /// # Errors
    /// The node at which the data flow is not understood.
    pub fn trace(graph: &Graph<'_>, interface: &Interface, logits: ValueId) -> Result<Self, Refusal> {
        let unembedding = find_unembedding(graph, logits)?;
        let activation = graph.input(unembedding.node, unembedding.slot).expect("found as an input");
        let last = final_stream(graph, activation, unembedding.node)?;
        let mut groups = Vec::new();
        let mut current = last;
        let start = loop {
            let (node, terms) = match current {
                StreamValue::Sum(node) => (Some(node), dynamic_terms(graph, node)),
                StreamValue::Value(value) => (graph.producer(root(graph, value)), terms_of(graph, value)),
            };
            if terms.len() < 2 {
                break Vec::new();
            }
            match split(graph, terms.clone()) {
                Some((stream, contributions)) => {
                    let contributions = leaves(graph, interface, stream, contributions);
                    let mut biases: BTreeSet<Use> = BTreeSet::new();
                    biases.extend(node.and_then(|n| bias_use(graph, n)));
                    biases.extend(opened_biases(graph, node, &contributions));
                    let biases = biases.into_iter().collect();
                    groups.push(Group { before: stream, after: current, contributions, biases });
                    current = StreamValue::Value(stream);
                }
                None => break flatten(graph, terms),
            }
        };
        groups.reverse();
        let origin = match current {
            StreamValue::Value(value) => root(graph, value),
            StreamValue::Sum(node) => {
                return Err(refuse(graph, node, None, "the residual stream has no blocks"));
            }
        };
        check_origin(graph, origin, interface)?;
        let mut contributions = origin_contributions(graph, origin, start);
        let blocks = blocks(graph, interface, &groups, origin, &mut contributions);
        if blocks.is_empty() {
            let node = graph.producer(origin).unwrap_or(unembedding.node);
            return Err(refuse(graph, node, Some(origin), "no block reads the residual stream and adds to it"));
        }
        let d_model = width(graph, &contributions, origin)
            .ok_or_else(|| refuse(graph, unembedding.node, Some(activation), "the width of the stream is unknown"))?;
        Ok(Self { d_model, origin, blocks, contributions, unembedding, layout: StreamLayout::PLAIN })
    }
}

/// The product nearest to the logits, through operators that keep each position's vocabulary together. A sum of two
/// activations comes before any unembedding: a graph that returns the stream itself has none.
fn find_unembedding(graph: &Graph<'_>, logits: ValueId) -> Result<Unembedding, Refusal> {
    let mut value = logits;
    loop {
        let Some(node) = graph.producer(value) else {
            return Err(Refusal {
                node: "(graph)".into(),
                op: String::new(),
                tensor: graph.name(value).into(),
                reason: "the logits are not computed by any node".into(),
                hint: "is this a causal language model? Lancet needs one with a logits output".into(),
            });
        };
        let dynamic: Vec<usize> = (0..graph.node(node).input.len())
            .filter(|&slot| graph.input(node, slot).is_some_and(|v| graph.is_dynamic(v)))
            .collect();
        let product = matches!(
            graph.op(node),
            "MatMul"
                | "Gemm"
                | "FusedMatMul"
                | "MatMulNBits"
                | "MatMulBnb4"
                | "MatMulInteger"
                | "DynamicQuantizeMatMul"
                | "MatMulIntegerToFloat"
                | "Einsum"
                | "Conv"
        );
        if matches!(graph.op(node), "QLinearMatMul" | "QGemm" | "QAttention") {
            return Err(refuse(graph, node, Some(value), "the logits are computed by an operator on integers"));
        }
        // With dynamic quantisation the scale is computed from the activation too; the product is found on
        // the way back through the first dynamic input.
        if dynamic_terms(graph, node).len() >= 2 {
            return Err(Refusal {
                hint: "is this a causal language model? Lancet needs one with a logits output; export the task \
                       text-generation, with the head"
                    .into(),
                ..refuse(graph, node, Some(value), "no product comes between the stream and the logits")
            });
        }
        match dynamic.as_slice() {
            [slot, ..] if product => return Ok(Unembedding { node, slot: *slot }),
            [slot, ..] => value = graph.input(node, *slot).expect("it is dynamic, so it is there"),
            [] => return Err(refuse(graph, node, Some(value), "the logits do not depend on the input")),
        }
    }
}

/// The stream value that the final norm reads: the nearest sum of two activations behind the unembedding.
fn final_stream(graph: &Graph<'_>, activation: ValueId, unembedding: NodeId) -> Result<StreamValue, Refusal> {
    let mut found: Vec<StreamValue> = Vec::new();
    let mut seen = HashSet::new();
    let mut stack = vec![activation];
    while let Some(value) = stack.pop() {
        if !graph.is_dynamic(value) || !seen.insert(value) {
            continue;
        }
        let Some(node) = graph.producer(value) else { continue };
        let op = graph.op(node);
        if skip_norm_bias(op).is_some() {
            let sum = match graph.output(node, SKIP_SUM_OUTPUT) {
                Some(sum) => StreamValue::Value(sum),
                None => StreamValue::Sum(node),
            };
            if !found.contains(&sum) {
                found.push(sum);
            }
        } else if dynamic_terms(graph, node).len() >= 2 {
            found.push(StreamValue::Value(value));
        } else if matches!(
            op,
            "Slice" | "Gather" | "GatherND" | "GatherElements" | "Reshape" | "Expand" | "Squeeze" | "Unsqueeze"
        ) {
            stack.extend(graph.input(node, 0));
        } else {
            stack.extend(graph.all_inputs(node));
        }
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(refuse(graph, unembedding, Some(activation), "no residual stream leads to the unembedding")),
        _ => Err(refuse(
            graph,
            unembedding,
            Some(activation),
            format!("{} sums lead to the unembedding, the residual stream would be one", found.len()),
        )),
    }
}

/// The activations that a sum adds; empty for anything that is no sum.
fn dynamic_terms(graph: &Graph<'_>, node: NodeId) -> Vec<Term> {
    let slots = match graph.op(node) {
        "Add" => 0..2,
        "Sum" => 0..graph.node(node).input.len(),
        op if skip_norm_bias(op).is_some() => 0..2,
        _ => return Vec::new(),
    };
    slots
        .filter_map(|slot| Some(Term { value: graph.input(node, slot)?, site: Use { node, slot } }))
        .filter(|term| graph.is_dynamic(term.value))
        .collect()
}

/// The activations whose sum a value is, `Cast` and the like aside; empty for anything else, so for the normalised
/// output of a fused add-and-norm node.
fn terms_of(graph: &Graph<'_>, value: ValueId) -> Vec<Term> {
    let value = root(graph, value);
    match graph.producer(value) {
        Some(node)
            if skip_norm_bias(graph.op(node)).is_some() && graph.output(node, SKIP_SUM_OUTPUT) != Some(value) =>
        {
            Vec::new()
        }
        Some(node) => dynamic_terms(graph, node),
        None => Vec::new(),
    }
}

fn bias_use(graph: &Graph<'_>, node: NodeId) -> Option<Use> {
    let slot = skip_norm_bias(graph.op(node))?;
    graph.input(node, slot).map(|_| Use { node, slot })
}

/// Biases of fused nodes that were opened on the way to the contributions.
fn opened_biases(graph: &Graph<'_>, top: Option<NodeId>, contributions: &[Term]) -> Vec<Use> {
    contributions
        .iter()
        .map(|term| term.site.node)
        .filter(|node| Some(*node) != top)
        .filter_map(|node| bias_use(graph, node))
        .collect()
}

/// Splits a sum into the stream and what is added to it, opening inner sums until one term feeds all
/// the others. `None` where no term does: the sum starts the stream.
fn split(graph: &Graph<'_>, mut terms: Vec<Term>) -> Option<(ValueId, Vec<Term>)> {
    loop {
        let stream = (0..terms.len()).find(|&candidate| {
            let stream = root(graph, terms[candidate].value);
            terms.iter().enumerate().all(|(other, term)| other == candidate || feeds(graph, stream, term.value))
        });
        if let Some(stream) = stream {
            let stream = terms.remove(stream);
            return Some((stream.value, terms));
        }
        open_latest(graph, &mut terms)?;
    }
}

/// Replaces the term that is computed last by the terms of its own sum. `None` if no term is a sum.
fn open_latest(graph: &Graph<'_>, terms: &mut Vec<Term>) -> Option<()> {
    let (index, inner) = terms
        .iter()
        .enumerate()
        .filter_map(|(index, term)| {
            let inner = terms_of(graph, term.value);
            let node = graph.producer(root(graph, term.value))?;
            (inner.len() >= 2).then_some((graph.rank(node), index, inner))
        })
        .max_by_key(|(rank, ..)| *rank)
        .map(|(_, index, inner)| (index, inner))?;
    terms.splice(index..=index, inner);
    Some(())
}

/// Contributions that are sums of attention and MLP (parallel blocks that add the two first), opened until each part
/// is one or the other.
fn leaves(graph: &Graph<'_>, interface: &Interface, stream: ValueId, contributions: Vec<Term>) -> Vec<Term> {
    let open = |term: Term| -> Vec<Term> {
        let role = |part: &Term| role(graph, interface, stream, part.value);
        let parts = flatten(graph, vec![term]);
        if parts.iter().all(|part| role(part) == role(&parts[0])) {
            return vec![term];
        }
        leaves(graph, interface, stream, terms_of(graph, term.value))
    };
    contributions.into_iter().flat_map(open).collect()
}

/// All terms of a sum and of the sums in it.
fn flatten(graph: &Graph<'_>, mut terms: Vec<Term>) -> Vec<Term> {
    while open_latest(graph, &mut terms).is_some() {}
    terms
}

/// Whether `target` depends on `stream`, or on another output of the fused node that computes it.
fn feeds(graph: &Graph<'_>, stream: ValueId, target: ValueId) -> bool {
    match graph.producer(stream) {
        Some(node) => graph.outputs(node).any(|output| graph.depends_on(target, output)),
        None => graph.depends_on(target, stream),
    }
}

/// The refusal of a stream that seems to start at `node` and does not.
fn not_followed(graph: &Graph<'_>, node: NodeId, origin: ValueId) -> Refusal {
    let reason = "the residual stream cannot be followed past this node";
    if !graph.op(node).ends_with("Normalization") {
        return refuse(graph, node, Some(origin), reason);
    }
    Refusal {
        hint: "the stream itself is normalised between its blocks (as in the first GPT), so that no edit of what is \
               added to it keeps it orthogonal to a direction; Lancet edits models that normalise what a block reads \
               or what it writes"
            .into(),
        ..refuse(graph, node, Some(origin), format!("{reason}: a norm of the stream as a whole"))
    }
}

/// The start of the stream must be an embedding: it may not hide a block behind an unknown operator.
fn check_origin(graph: &Graph<'_>, origin: ValueId, interface: &Interface) -> Result<(), Refusal> {
    let mut seen = HashSet::new();
    let mut stack = vec![origin];
    while let Some(value) = stack.pop() {
        if !graph.is_dynamic(value) || !seen.insert(value) {
            continue;
        }
        if interface.cache.iter().any(|slot| slot.past == graph.name(value)) {
            let node = graph.producer(origin).expect("it depends on the KV cache, so a node computes it");
            return Err(not_followed(graph, node, origin));
        }
        let Some(node) = graph.producer(value) else { continue };
        if matches!(graph.op(node), "Shape" | "Size") {
            continue; // positions are counted from the length of the cache
        }
        let inputs = graph.all_inputs(node);
        let product = matches!(graph.op(node), "MatMul" | "FusedMatMul" | "Softmax")
            && inputs.iter().filter(|v| graph.is_dynamic(**v)).count()
                >= if graph.op(node) == "Softmax" { 1 } else { 2 };
        if product || is_attention(graph.op(node)) {
            let at = graph.producer(origin).unwrap_or(node);
            return Err(not_followed(graph, at, origin));
        }
        stack.extend(inputs);
    }
    Ok(())
}

fn origin_contributions(graph: &Graph<'_>, origin: ValueId, start: Vec<Term>) -> Vec<Contribution> {
    if start.is_empty() {
        return vec![Contribution { value: origin, site: None, bias: None, role: Role::Embed, layer: None }];
    }
    start
        .into_iter()
        .map(|term| Contribution {
            value: term.value,
            site: Some(term.site),
            bias: bias_use(graph, term.site.node).filter(|_| term.site.slot == 0),
            role: Role::Embed,
            layer: None,
        })
        .collect()
}

/// Orders sums into blocks. A block is an attention write and an MLP write, in one sum or in two.
fn blocks(
    graph: &Graph<'_>,
    interface: &Interface,
    groups: &[Group],
    origin: ValueId,
    contributions: &mut Vec<Contribution>,
) -> Vec<Block> {
    struct Open {
        block: Block,
        has_attn: bool,
        has_mlp: bool,
    }
    let mut blocks: Vec<Open> = Vec::new();
    for group in groups {
        let roles: Vec<Role> =
            group.contributions.iter().map(|t| role(graph, interface, group.before, t.value)).collect();
        let attn = roles.contains(&Role::Attn);
        let begins = match blocks.last() {
            None => true,
            Some(open) => open.has_mlp || (attn && open.has_attn),
        };
        if begins {
            let pre = if blocks.is_empty() { StreamValue::Value(origin) } else { StreamValue::Value(group.before) };
            let block = Block { pre, mid: None, post: group.after };
            blocks.push(Open { block, has_attn: false, has_mlp: false });
        }
        let layer = Layer(blocks.len() - 1);
        let open = blocks.last_mut().expect("pushed above");
        if !begins {
            open.block.mid = Some(open.block.post);
            open.block.post = group.after;
        }
        open.has_attn |= attn;
        open.has_mlp |= roles.contains(&Role::Mlp);
        for (index, (term, role)) in group.contributions.iter().zip(roles).enumerate() {
            // a fused bias belongs to one contribution only, or it would be projected twice
            let bias = if index == 0 { group.biases.first().copied() } else { group.biases.get(index).copied() };
            contributions.push(Contribution {
                value: term.value,
                site: Some(term.site),
                bias,
                role,
                layer: Some(layer),
            });
        }
    }
    blocks.into_iter().map(|open| open.block).collect()
}

/// Width of the stream: last dimension of the embedding, or of what is declared.
fn width(graph: &Graph<'_>, contributions: &[Contribution], origin: ValueId) -> Option<usize> {
    let declared = |value: ValueId| {
        let last = *graph.declared_shape(value)?.last()?;
        usize::try_from(last?).ok().filter(|&d| d > 1)
    };
    let inferred = |value: ValueId| usize::try_from(graph.last_dimension(value)?).ok().filter(|&d| d > 1);
    let embedding = contributions
        .iter()
        .filter(|c| c.role == Role::Embed)
        .find_map(|c| trace_weight(graph, c.value, None).ok().and_then(|path| path.width(graph)));
    embedding
        .or_else(|| {
            contributions
                .iter()
                .filter(|c| c.role != Role::Embed)
                .find_map(|c| trace_weight(graph, c.value, None).ok().and_then(|path| path.width(graph)))
        })
        .or_else(|| declared(origin))
        .or_else(|| contributions.iter().find_map(|c| declared(c.value)))
        .or_else(|| contributions.iter().find_map(|c| norm_width(graph, c)))
        .or_else(|| std::iter::once(origin).chain(contributions.iter().map(|c| c.value)).find_map(inferred))
}

/// Width read off the scale of the fused norm that adds a contribution (quantised graphs).
fn norm_width(graph: &Graph<'_>, contribution: &Contribution) -> Option<usize> {
    let node = contribution.site?.node;
    skip_norm_bias(graph.op(node))?;
    let scale = graph.tensor_ref(graph.input(node, 2)?)?;
    usize::try_from(*scale.shape.last()?).ok()
}
