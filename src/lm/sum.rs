//! Sums on the residual stream: which of their terms is the stream, and which are added to it.

use std::collections::{HashMap, HashSet};

use super::role::role;
use super::rows::root;
use super::{Interface, Refusal, Role};
use crate::onnx::{Graph, NodeId, Use, ValueId, constant};

/// No sum of a model has more terms, the sums in it opened (a mixture may add up each of its experts).
const MAX_TERMS: usize = 1024;

/// No write of a model is put together by more sums than this.
const MAX_OPENED: usize = 128;

/// A term of a sum: the value, and the input that holds it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    pub value: ValueId,
    pub site: Use,
}

/// A value of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamValue {
    /// A named value.
    Value(ValueId),
    /// The sum inside a fused add-and-norm node whose sum output (3) the file leaves unnamed.
    Sum(NodeId),
}

impl StreamValue {
    /// The sum that a value comes from, behind casts and the like; the same for all values that hand it on.
    #[must_use]
    pub fn source(self, graph: &Graph<'_>) -> Self {
        let Self::Value(value) = self else { return self };
        let value = root(graph, value);
        match graph.producer(value) {
            Some(node)
                if skip_norm_bias(graph.op(node)).is_some() && graph.output(node, SKIP_SUM_OUTPUT) == Some(value) =>
            {
                Self::Sum(node)
            }
            _ => Self::Value(value),
        }
    }

    /// The value, where it has a name.
    pub(super) fn value(self) -> Option<ValueId> {
        match self {
            Self::Value(value) => Some(value),
            Self::Sum(_) => None,
        }
    }
}

/// Output of a fused add-and-norm node that holds the sum.
pub(crate) const SKIP_SUM_OUTPUT: usize = 3;

/// The fused add-and-norm operators of ONNX Runtime: slot of their bias input.
pub(super) fn skip_norm_bias(op: &str) -> Option<usize> {
    match op {
        "SkipSimplifiedLayerNormalization" => Some(3),
        "SkipLayerNormalization" => Some(4),
        _ => None,
    }
}

/// The bias input of a fused add-and-norm node.
pub(super) fn bias_use(graph: &Graph<'_>, node: NodeId) -> Option<Use> {
    let slot = skip_norm_bias(graph.op(node))?;
    graph.input(node, slot).map(|_| Use { node, slot })
}

/// Input slots of what a node adds up.
fn slots(graph: &Graph<'_>, node: NodeId) -> std::ops::Range<usize> {
    match graph.op(node) {
        "Add" => 0..2,
        "Sum" => 0..graph.node(node).input.len(),
        op if skip_norm_bias(op).is_some() => 0..2,
        _ => 0..0,
    }
}

/// The activations that a sum adds; empty for anything that is no sum.
pub(super) fn dynamic_terms(graph: &Graph<'_>, node: NodeId) -> Vec<Term> {
    slots(graph, node)
        .filter_map(|slot| Some(Term { value: graph.input(node, slot)?, site: Use { node, slot } }))
        .filter(|term| graph.is_dynamic(term.value))
        .collect()
}

/// The same for a sum on the stream, where a constant may not be among them.
pub(super) fn terms_of_node(graph: &Graph<'_>, node: NodeId) -> Result<Vec<Term>, Refusal> {
    let terms = dynamic_terms(graph, node);
    let mut constants = slots(graph, node).filter_map(|slot| graph.input(node, slot));
    match constants.find(|&v| !graph.is_dynamic(v) && !constant::is_zero(graph, v)).filter(|_| terms.len() >= 2) {
        Some(constant) => {
            Err(Refusal::on_stream(graph, node, Some(constant), "a constant is added to the stream with activations"))
        }
        None => Ok(terms),
    }
}

/// The activations whose sum a value is, `Cast` and the like aside; empty for anything else, so for the normalised
/// output of a fused add-and-norm node.
pub(super) fn terms_of(graph: &Graph<'_>, value: ValueId) -> Result<Vec<Term>, Refusal> {
    let value = root(graph, value);
    match graph.producer(value) {
        Some(node)
            if skip_norm_bias(graph.op(node)).is_some() && graph.output(node, SKIP_SUM_OUTPUT) != Some(value) =>
        {
            Ok(Vec::new())
        }
        Some(node) => terms_of_node(graph, node),
        None => Ok(Vec::new()),
    }
}

/// Terms of a sum that are opened one after the other, the one that is computed last first.
struct Opening<'g, 'm> {
    graph: &'g Graph<'m>,
    terms: Vec<Held>,
}

/// A term with what is known of it.
#[derive(Clone, Copy)]
struct Held {
    term: Term,
    /// The value that it hands on.
    root: ValueId,
    /// Rank of the node that computes that one, from 1 on; 0 for a graph input.
    rank: usize,
    /// Whether it is known to be no sum.
    closed: bool,
}

impl<'g, 'm> Opening<'g, 'm> {
    fn new(graph: &'g Graph<'m>, terms: Vec<Term>) -> Self {
        let mut opening = Self { graph, terms: Vec::new() };
        opening.terms = terms.into_iter().map(|term| opening.held(term)).collect();
        opening
    }

    fn held(&self, term: Term) -> Held {
        let root = root(self.graph, term.value);
        let rank = self.graph.producer(root).map_or(0, |node| self.graph.rank(node).saturating_add(1));
        Held { term, root, rank, closed: false }
    }

    fn into_terms(self) -> Vec<Term> {
        self.terms.into_iter().map(|held| held.term).collect()
    }

    /// Replaces the term that is computed last by the terms of its own sum; `false` if no term is a sum.
    fn open_latest(&mut self) -> Result<bool, Refusal> {
        loop {
            let open = self.terms.iter().enumerate().filter(|(_, held)| !held.closed);
            let Some(index) = open.max_by_key(|(_, held)| held.rank).map(|(index, _)| index) else { return Ok(false) };
            let inner = terms_of(self.graph, self.terms[index].root)?;
            if inner.len() < 2 {
                self.terms[index].closed = true;
                continue;
            }
            let inner: Vec<Held> = inner.into_iter().map(|term| self.held(term)).collect();
            let node = inner[0].term.site.node;
            self.terms.splice(index..=index, inner);
            if self.terms.len() > MAX_TERMS {
                return Err(Refusal::on_stream(
                    self.graph,
                    node,
                    None,
                    format!("a sum opens into more than {MAX_TERMS} terms"),
                ));
            }
            return Ok(true);
        }
    }

    /// The term that feeds all the others.
    fn stream(&self) -> Result<Option<usize>, Refusal> {
        // what all the others are computed from is computed first
        let Some(first) = self.terms.iter().map(|held| held.rank).min() else { return Ok(None) };
        let candidates = (0..self.terms.len()).filter(|&index| self.terms[index].rank == first);
        let last = self.terms.iter().filter_map(|held| self.graph.producer(held.term.value));
        let last = last.map(|node| self.graph.rank(node)).max().unwrap_or(0);
        for candidate in candidates.take(4) {
            let stream = self.terms[candidate].root;
            let fed = fed_by(self.graph, stream, last);
            let mut others = self.terms.iter().enumerate().filter(|(index, _)| *index != candidate);
            if others.clone().all(|(_, held)| fed.contains(&held.term.value)) {
                if let Some((_, twice)) = others.find(|(_, held)| held.root == stream) {
                    return Err(twice_added(self.graph, twice.term));
                }
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }
}

fn twice_added(graph: &Graph<'_>, term: Term) -> Refusal {
    Refusal::on_stream(graph, term.site.node, Some(term.value), "the residual stream is added to itself")
}

/// Every value that is computed from the elements of `stream`, or from another output of the node that computes it, by
/// nodes up to rank `last`; the value itself is one of them.
fn fed_by(graph: &Graph<'_>, stream: ValueId, last: usize) -> HashSet<ValueId> {
    let mut open: Vec<ValueId> = match graph.producer(stream) {
        Some(node) => graph.outputs(node).collect(),
        None => vec![stream],
    };
    let mut fed: HashSet<ValueId> = open.iter().copied().collect();
    let mut seen = HashSet::new();
    while let Some(value) = open.pop() {
        for one in graph.uses(value) {
            let shape_only = matches!(graph.op(one.node), "Shape" | "Size");
            if shape_only || graph.rank(one.node) > last || !seen.insert(one.node) {
                continue;
            }
            open.extend(graph.outputs(one.node).filter(|&v| fed.insert(v)));
        }
    }
    fed
}

/// A sum, opened until one of its terms feeds all the others.
pub(super) struct Split {
    /// That term; `None` where there is none, and the sum starts the stream.
    pub stream: Option<ValueId>,
    /// The others.
    pub terms: Vec<Term>,
}

/// Splits a sum into the stream and what is added to it.
///
/// # Errors
/// The node at which the sum is not understood.
pub(super) fn split(graph: &Graph<'_>, terms: Vec<Term>) -> Result<Split, Refusal> {
    let mut opening = Opening::new(graph, terms.clone());
    for _ in 0..MAX_OPENED {
        if let Some(index) = opening.stream()? {
            let stream = opening.terms.remove(index).term.value;
            return Ok(Split { stream: Some(stream), terms: opening.into_terms() });
        }
        if !opening.open_latest()? {
            return Ok(Split { stream: None, terms });
        }
    }
    Err(too_deep(graph, terms[0]))
}

fn too_deep(graph: &Graph<'_>, term: Term) -> Refusal {
    let reason = format!("more than {MAX_OPENED} sums lie between what the stream was and what it becomes here");
    Refusal::on_stream(graph, term.site.node, Some(term.value), reason)
}

/// All terms of a sum and of the sums in it.
pub(super) fn flatten(graph: &Graph<'_>, terms: Vec<Term>) -> Result<Vec<Term>, Refusal> {
    let mut opening = Opening::new(graph, terms);
    while opening.open_latest()? {}
    Ok(opening.into_terms())
}

/// Contributions that are sums of attention and MLP (parallel blocks that add the two first), opened until each part
/// is one or the other.
pub(super) fn leaves(
    graph: &Graph<'_>,
    interface: &Interface,
    stream: ValueId,
    contributions: Vec<Term>,
) -> Result<Vec<Term>, Refusal> {
    let mut roles: HashMap<ValueId, Role> = HashMap::new();
    let mut role = |part: &Term| *roles.entry(part.value).or_insert_with(|| role(graph, interface, stream, part.value));
    let floor = root(graph, stream);
    let mut closed = Vec::new();
    let mut open: Vec<Term> = contributions.into_iter().rev().collect();
    while let Some(term) = open.pop() {
        if open.len() + closed.len() > MAX_OPENED {
            return Err(too_deep(graph, term));
        }
        let parts = flatten(graph, vec![term])?;
        if let Some(twice) = parts.iter().find(|part| root(graph, part.value) == floor) {
            return Err(twice_added(graph, *twice));
        }
        let first = role(&parts[0]);
        if parts.iter().all(|part| role(part) == first) {
            closed.push(term);
        } else {
            open.extend(terms_of(graph, term.value)?.into_iter().rev());
        }
    }
    Ok(closed)
}
