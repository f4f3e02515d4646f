//! The residual stream, traced by data flow from the unembedding back to the embedding.
//!
//! No name is looked at. The stream is the chain of sums in which one term feeds all the others: in
//! `x + f(norm(x))` the term `x` is an ancestor of the other one. A sum of two terms of which neither
//! feeds the other (parallel blocks, `attn + mlp`) is opened until one term does. Where no term feeds
//! the others, the sum is the start of the stream (token plus position embedding).

use std::collections::{HashMap, HashSet};

use super::layout::{self, Axis};
use super::role::{is_attention, role};
use super::rows::{self, handed_on, root};
pub(crate) use super::sum::SKIP_SUM_OUTPUT;
pub use super::sum::StreamValue;
use super::sum::{Term, dynamic_terms, skip_norm_bias};
use super::tail::final_stream;
use super::weight::trace_weight;
use super::{Interface, Layer, Refusal, Role, StreamLayout, sum};
use crate::onnx::ops::{WeightLayout, WeightUse};
use crate::onnx::{Graph, NodeId, Use, ValueId};

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
    /// Which of its axes is what.
    pub layout: StreamLayout,
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
    /// Which axis of the stream is what, where its first block leaves it.
    pub layout: StreamLayout,
    layouts: HashMap<StreamValue, StreamLayout>,
}

/// One sum on the stream.
struct Group {
    before: ValueId,
    after: StreamValue,
    contributions: Vec<Term>,
    biases: Vec<Use>,
}

impl ResidualStream {
    /// What is to be projected while the model runs: the same as the contributions, but the start of the stream as one
    /// value, since a single embedding of positions has no batch. A fused add-and-norm node reads its parts.
    pub fn writes(&self, graph: &Graph<'_>) -> Vec<Contribution> {
        let fused = graph.producer(self.origin).is_some_and(|node| skip_norm_bias(graph.op(node)).is_some());
        if fused {
            return self.contributions.clone();
        }
        let layout = self.layout_of(StreamValue::Value(self.origin));
        let start = Contribution { value: self.origin, site: None, bias: None, role: Role::Embed, layer: None, layout };
        let rest = self.contributions.iter().filter(|c| c.role != Role::Embed).cloned();
        std::iter::once(start).chain(rest).collect()
    }

    /// The write that ends the block before `layer`, at least 1: what is added to it is added to `resid_pre[layer]`,
    /// for the norm of a fused add-and-norm node too.
    pub fn last_before(&self, layer: usize) -> Option<&Contribution> {
        let before = Layer(layer.checked_sub(1)?);
        self.contributions.iter().rev().find(|c| c.layer == Some(before))
    }

    /// Which axis of a value of the stream is what: blocks may hold it with its batch and positions in one axis.
    pub fn layout_of(&self, value: StreamValue) -> StreamLayout {
        self.layouts.get(&value).copied().unwrap_or(self.layout)
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
        let Sums { groups, start, origin } = sums(graph, interface, last)?;
        check_origin(graph, origin, interface)?;
        check_start(graph, origin, &start)?;
        let axes = Axes::new(graph, interface, origin, &groups)?;
        let mut contributions = origin_contributions(graph, origin, start, &axes)?;
        let blocks = blocks(graph, interface, &groups, origin, &axes, &mut contributions)?;
        if blocks.is_empty() {
            let node = graph.producer(origin).unwrap_or(unembedding.node);
            return Err(Refusal::on_stream(
                graph,
                node,
                Some(origin),
                "no block reads the residual stream and adds to it",
            ));
        }
        let d_model = width(graph, &contributions, origin).ok_or_else(|| {
            Refusal::on_stream(graph, unembedding.node, Some(activation), "the width of the stream is unknown")
        })?;
        check_widths(graph, &contributions, d_model)?;
        let layouts = axes.layouts;
        let layout = layouts.get(&blocks[0].post).copied().unwrap_or(StreamLayout::PLAIN);
        Ok(Self { d_model, origin, blocks, contributions, unembedding, layout, layouts })
    }
}

/// The sums of the stream from its start on, and what it starts with.
struct Sums {
    groups: Vec<Group>,
    /// The terms of the first value, where it is a sum.
    start: Vec<Term>,
    origin: ValueId,
}

fn sums(graph: &Graph<'_>, interface: &Interface, last: StreamValue) -> Result<Sums, Refusal> {
    let mut groups = Vec::new();
    let mut current = last;
    let start = loop {
        let (node, terms) = match current {
            StreamValue::Sum(node) => (Some(node), sum::terms_of_node(graph, node)?),
            StreamValue::Value(value) => (graph.producer(root(graph, value)), sum::terms_of(graph, value)?),
        };
        if terms.len() < 2 {
            break Vec::new();
        }
        let opened = sum::split(graph, terms)?;
        let Some(stream) = opened.stream else { break sum::flatten(graph, opened.terms)? };
        let contributions = sum::leaves(graph, interface, stream, opened.terms)?;
        let sites = contributions.iter().map(|term| term.site.node);
        let mut biases: Vec<Use> = node.into_iter().chain(sites).filter_map(|n| sum::bias_use(graph, n)).collect();
        biases.sort_unstable();
        biases.dedup();
        if let Some(lost) = biases.get(contributions.len()) {
            return Err(Refusal::on_stream(graph, lost.node, Some(stream), "the sum adds more biases than writes"));
        }
        groups.push(Group { before: stream, after: current, contributions, biases });
        current = StreamValue::Value(stream);
    };
    groups.reverse();
    match current {
        StreamValue::Value(value) => Ok(Sums { groups, start, origin: root(graph, value) }),
        StreamValue::Sum(node) => Err(Refusal::on_stream(graph, node, None, "the residual stream has no blocks")),
    }
}

/// Which axis is what in every value of a stream.
struct Axes<'g, 'm> {
    graph: &'g Graph<'m>,
    origin: ValueId,
    layouts: HashMap<StreamValue, StreamLayout>,
    /// The axes of values that others hand on; `None` where the way from the tokens does not tell.
    known: HashMap<ValueId, Option<Vec<Axis>>>,
}

impl<'g, 'm> Axes<'g, 'm> {
    fn new(graph: &'g Graph<'m>, interface: &Interface, origin: ValueId, groups: &[Group]) -> Result<Self, Refusal> {
        let told = layout::of_origin(graph, interface, origin);
        let mut axes = Self { graph, origin, layouts: HashMap::new(), known: HashMap::from([(origin, told)]) };
        // where the way from the tokens does not tell, the norms do
        let mut values = vec![origin];
        values.extend(groups.iter().flat_map(|g| [Some(g.before), g.after.value()]).flatten());
        let anywhere = layout::normalised_axis(graph, &values);
        axes.insert(StreamValue::Value(origin), anywhere)?;
        for group in groups {
            axes.insert(StreamValue::Value(group.before), anywhere)?;
            match group.after.value() {
                Some(value) => {
                    let same = follow(graph, &axes.known, group.before);
                    axes.known.entry(root(graph, value)).or_insert(same);
                    axes.insert(group.after, anywhere)?;
                }
                None => {
                    let same = axes.layouts[&StreamValue::Value(group.before)];
                    axes.layouts.insert(group.after, same);
                }
            }
        }
        Ok(axes)
    }

    /// Finds the layout of one value.
    fn insert(&mut self, value: StreamValue, anywhere: Option<usize>) -> Result<(), Refusal> {
        let Some(id) = value.value() else { return Ok(()) };
        let normed = layout::normalised_axis(self.graph, &[id]);
        let told = follow(self.graph, &self.known, id);
        let layout = match (told.as_deref().and_then(StreamLayout::of), normed) {
            (Some(told), Some(normed)) if told.from_end() != normed => {
                return Err(
                    self.unknown(id, "norms are taken along another axis than that of the embedding's channels")
                );
            }
            (Some(told), _) => told,
            (None, _) => {
                let Some(from_end) = normed.or(anywhere) else {
                    return Err(self.unknown(id, "which axis of the stream holds the channels is unknown"));
                };
                let likely = StreamLayout::by_rank(self.graph.rank_of(id), from_end);
                if self.positions_first() { StreamLayout { batch: None, position: None, ..likely } } else { likely }
            }
        };
        if layout.rank.is_none() && layout.from_end() > 0 {
            let reason = "the number of axes of the stream is unknown, and its channels are not the last one";
            return Err(self.unknown(id, reason));
        }
        self.layouts.insert(value, layout);
        Ok(())
    }

    /// Whether the stream starts with its positions in front of its batch.
    fn positions_first(&self) -> bool {
        let origin = self.known.get(&self.origin).and_then(Option::as_deref).unwrap_or_default();
        let at = |axis: Axis| origin.iter().position(|&a| a == axis);
        at(Axis::Position).zip(at(Axis::Batch)).is_some_and(|(position, batch)| position < batch)
    }

    fn unknown(&self, value: ValueId, reason: &str) -> Refusal {
        let graph = self.graph;
        let node = graph.producer(value).or_else(|| graph.uses(value).first().map(|one| one.node));
        Refusal {
            node: node.map_or_else(|| "(graph)".into(), |n| graph.node(n).label().to_string()),
            op: node.map_or_else(String::new, |n| graph.op_name(n)),
            tensor: graph.name(value).into(),
            reason: reason.into(),
            hint: "Lancet edits streams whose batch, positions and channels it can tell apart; report the node".into(),
        }
    }

    /// That of a contribution to a value of the stream.
    fn of(&self, value: ValueId, joined: StreamValue) -> StreamLayout {
        let stream = self.layouts.get(&joined).copied().unwrap_or(StreamLayout::PLAIN);
        match (self.graph.rank_of(value), stream.rank) {
            (Some(own), Some(rank)) if own != rank => StreamLayout {
                batch: None,
                position: None,
                width: own.saturating_sub(1 + stream.from_end()),
                rank: Some(own),
            },
            _ => stream,
        }
    }
}

/// The axes of a value that hands on one whose axes are known.
fn follow(graph: &Graph<'_>, known: &HashMap<ValueId, Option<Vec<Axis>>>, value: ValueId) -> Option<Vec<Axis>> {
    let mut way = Vec::new();
    let mut at = value;
    let mut axes = loop {
        if let Some(known) = known.get(&at) {
            break known.clone()?;
        }
        let node = graph.producer(at)?;
        way.push(node);
        at = handed_on(graph, node)?;
    };
    for node in way.into_iter().rev() {
        axes = layout::handed(graph, node, &axes)?;
    }
    Some(axes)
}

/// Every write whose weights tell how wide it is must be as wide as the stream: no runtime adds up others.
fn check_widths(graph: &Graph<'_>, contributions: &[Contribution], d_model: usize) -> Result<(), Refusal> {
    for write in contributions {
        let path = trace_weight(graph, write.value, None, write.layout.from_end());
        let other = path.ok().and_then(|path| path.width(graph)).filter(|&width| width != d_model && width != 1);
        let node = graph.producer(write.value).or(write.site.map(|site| site.node));
        if let Some((width, node)) = other.zip(node) {
            let reason = format!("the write is {width} wide, the residual stream {d_model}");
            let hint = "the file contradicts itself, and no runtime can run it; export the model again".into();
            return Err(Refusal { hint, ..Refusal::on_stream(graph, node, Some(write.value), reason) });
        }
    }
    Ok(())
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
        let weighted = graph.weighted(node);
        let product = weighted.is_some_and(|of| matches!(of.work, WeightUse::Product | WeightUse::Contraction));
        if weighted.is_some_and(|of| of.layout == WeightLayout::AllIntegers) {
            return Err(Refusal::on_stream(
                graph,
                node,
                Some(value),
                "the logits are computed by an operator on integers",
            ));
        }
        // With dynamic quantisation the scale is computed from the activation too; the product is found on
        // the way back through the first dynamic input.
        if dynamic_terms(graph, node).len() >= 2 {
            return Err(Refusal {
                hint: "is this a causal language model? Lancet needs one with a logits output; export the task \
                       text-generation, with the head"
                    .into(),
                ..Refusal::on_stream(graph, node, Some(value), "no product comes between the stream and the logits")
            });
        }
        match dynamic.as_slice() {
            [slot, ..] if product => return Ok(Unembedding { node, slot: *slot }),
            [slot, ..] => value = graph.input(node, *slot).expect("it is dynamic, so it is there"),
            [] => return Err(Refusal::on_stream(graph, node, Some(value), "the logits do not depend on the input")),
        }
    }
}

/// The refusal of a stream that seems to start at `node` and does not.
fn not_followed(graph: &Graph<'_>, node: NodeId, origin: ValueId) -> Refusal {
    let reason = "the residual stream cannot be followed past this node";
    if !graph.op(node).ends_with("Normalization") {
        return Refusal::on_stream(graph, node, Some(origin), reason);
    }
    Refusal {
        hint: "the stream itself is normalised between its blocks (as in the first GPT), so that no edit of what is \
               added to it keeps it orthogonal to a direction; Lancet edits models that normalise what a block reads \
               or what it writes"
            .into(),
        ..Refusal::on_stream(graph, node, Some(origin), format!("{reason}: a norm of the stream as a whole"))
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
        let fed = inputs.iter().filter(|v| graph.is_dynamic(**v)).count();
        let plain = graph.weighted(node).is_some_and(|weighted| weighted.is_plain_product());
        let product = plain && fed >= 2 || graph.op(node) == "Softmax" && fed >= 1;
        let adds = graph.op(node) == "Gemm" && graph.input(node, 2).is_some_and(|c| graph.is_dynamic(c));
        if product || adds || is_attention(graph.op(node)) {
            let at = graph.producer(origin).unwrap_or(node);
            return Err(not_followed(graph, at, origin));
        }
        stack.extend(inputs);
    }
    Ok(())
}

/// A stream may not start inside a node that computes another output from it, as a fused sum and norm does: what is
/// projected after the node would not reach that output. Two activations in a sum are each projected before the node.
fn check_start(graph: &Graph<'_>, origin: ValueId, start: &[Term]) -> Result<(), Refusal> {
    let others = |node: NodeId| graph.outputs(node).any(|other| other != origin && !graph.uses(other).is_empty());
    match graph.producer(origin).filter(|&node| start.len() < 2 && others(node)) {
        Some(node) => {
            let reason = "the residual stream starts inside a node that computes another output from it, as a sum fused \
                          with its norm does: no projection reaches both";
            let hint = "export the model again with that sum and its norm as nodes of their own".into();
            Err(Refusal { hint, ..Refusal::on_stream(graph, node, Some(origin), reason) })
        }
        None => Ok(()),
    }
}

fn origin_contributions(
    graph: &Graph<'_>,
    origin: ValueId,
    start: Vec<Term>,
    axes: &Axes<'_, '_>,
) -> Result<Vec<Contribution>, Refusal> {
    let at = StreamValue::Value(origin);
    let one = |value, site| Contribution {
        value,
        site,
        bias: None,
        role: Role::Embed,
        layer: None,
        layout: axes.of(value, at),
    };
    if start.is_empty() {
        return Ok(vec![one(origin, None)]);
    }
    let mut biases: Vec<Use> = start.iter().filter_map(|term| sum::bias_use(graph, term.site.node)).collect();
    biases.extend(graph.producer(origin).and_then(|node| sum::bias_use(graph, node)));
    biases.sort_unstable();
    biases.dedup();
    if let Some(lost) = biases.get(start.len()) {
        return Err(Refusal::on_stream(graph, lost.node, Some(origin), "the sum adds more biases than writes"));
    }
    let mut found: Vec<Contribution> = start.into_iter().map(|term| one(term.value, Some(term.site))).collect();
    found.iter_mut().zip(biases).for_each(|(write, bias)| write.bias = Some(bias));
    Ok(found)
}

/// Orders sums into blocks. A block is an attention write and an MLP write, in one sum or in two.
fn blocks(
    graph: &Graph<'_>,
    interface: &Interface,
    groups: &[Group],
    origin: ValueId,
    axes: &Axes<'_, '_>,
    contributions: &mut Vec<Contribution>,
) -> Result<Vec<Block>, Refusal> {
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
        // a vector that is added by a number a position is no block of its own
        let gated = group.contributions.iter().all(|term| rows::is_scaled_vector(graph, term.value));
        let begins = match blocks.last() {
            None => true,
            Some(_) if gated => false,
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
            if !gated {
                open.block.mid = Some(open.block.post);
            }
            open.block.post = group.after;
        }
        open.has_attn |= attn;
        open.has_mlp |= roles.contains(&Role::Mlp) && !gated;
        for (index, (term, role)) in group.contributions.iter().zip(roles).enumerate() {
            // a fused bias belongs to one contribution only, or it would be projected twice
            let bias = if index == 0 { group.biases.first().copied() } else { group.biases.get(index).copied() };
            contributions.push(Contribution {
                value: term.value,
                site: Some(term.site),
                bias,
                role,
                layer: Some(layer),
                layout: axes.of(term.value, StreamValue::Value(group.before)),
            });
        }
    }
    for (what, has) in
        [("attention", &(|b: &Open| b.has_attn) as &dyn Fn(&Open) -> bool), ("feed-forward", &|b| b.has_mlp)]
    {
        let without: Vec<usize> = (0..blocks.len()).filter(|&n| !has(&blocks[n])).collect();
        if let ([one], true) = (without.as_slice(), blocks.len() > 1) {
            let value = blocks[*one].block.post;
            let node = match value {
                StreamValue::Value(value) => graph.producer(root(graph, value)),
                StreamValue::Sum(node) => Some(node),
            };
            let reason = format!("block {one} has no {what} write, which every other block has");
            return Err(Refusal::on_stream(
                graph,
                node.unwrap_or(groups[0].contributions[0].site.node),
                value.value(),
                reason,
            ));
        }
    }
    Ok(blocks.into_iter().map(|open| open.block).collect())
}

/// Width of the stream: last dimension of the embedding, or of what is declared.
fn width(graph: &Graph<'_>, contributions: &[Contribution], origin: ValueId) -> Option<usize> {
    let from_end = contributions.first()?.layout.from_end();
    let declared = |value: ValueId| {
        let shape = graph.declared_shape(value)?;
        let size = shape[shape.len().checked_sub(1 + from_end)?];
        usize::try_from(size?).ok().filter(|&d| d > 1)
    };
    let last = |value: ValueId| usize::try_from(graph.last_dimension(value)?).ok().filter(|&d| d > 1);
    let inferred = |value: ValueId| last(value).filter(|_| from_end == 0);
    let embedding = contributions
        .iter()
        .filter(|c| c.role == Role::Embed)
        .find_map(|c| trace_weight(graph, c.value, None, c.layout.from_end()).ok().and_then(|path| path.width(graph)));
    embedding
        .or_else(|| {
            contributions.iter().filter(|c| c.role != Role::Embed).find_map(|c| {
                trace_weight(graph, c.value, None, c.layout.from_end()).ok().and_then(|path| path.width(graph))
            })
        })
        .or_else(|| declared(origin))
        .or_else(|| contributions.iter().find_map(|c| declared(c.value)))
        .or_else(|| contributions.iter().find_map(|c| norm_width(graph, c)))
        .or_else(|| std::iter::once(origin).chain(contributions.iter().map(|c| c.value)).find_map(inferred))
        .or_else(|| layout::table_width(graph, origin))
}

/// Width read off the scale of the fused norm that adds a contribution (quantised graphs).
fn norm_width(graph: &Graph<'_>, contribution: &Contribution) -> Option<usize> {
    let node = contribution.site?.node;
    skip_norm_bias(graph.op(node))?;
    let scale = graph.tensor_ref(graph.input(node, 2)?)?;
    usize::try_from(*scale.shape.last()?).ok()
}
