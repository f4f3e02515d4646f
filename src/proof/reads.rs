//! Where a graph reads its residual stream, found from what its operators are.
//!
//! The stream is read by normalisations whose result goes into a product, and by whatever leads to the unembedding. The
//! search knows no writers, no blocks and no names. A value counts as the stream's unless it is plainly something else:
//! the result of a product (queries that are normalised), of a product of activations, or a sum of such results that
//! does not lead to the logits without a product in between. What an unknown operator makes counts as the stream's.

use std::collections::HashSet;

use super::operators::{Kind, SUM_OUTPUT, added, data, kind, terms};
use crate::onnx::{Graph, NodeId, ValueId};

/// A value that is read, named or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// A named value.
    Value(ValueId),
    /// The sum of a fused add-and-norm node whose output for it (3) the file leaves unnamed.
    UnnamedSum(NodeId),
}

/// Values between a product and the one number a position that is made of it, at most.
const NUMBER_STEPS: usize = 24;

/// Which axis of a value the width of the stream lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// This axis, from the end where negative: the one that the normalisation is over.
    Axis(i64),
    /// The last axis if it is as long as the stream is wide, else the only one that is.
    Fitting,
}

/// One read of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Read {
    /// What is read.
    pub place: Place,
    /// How it lies.
    pub width: Width,
    /// The node that reads it.
    pub reader: NodeId,
}

impl Read {
    /// The value that is read, if it has a name.
    fn value(&self) -> Option<ValueId> {
        match self.place {
            Place::Value(value) => Some(value),
            Place::UnnamedSum(_) => None,
        }
    }
}

/// The reads of the stream that lead to `logits`, in the order of the computation. `d_model` is the width of the
/// stream; values that are surely of another width are left out.
pub fn stream_reads(graph: &Graph<'_>, logits: ValueId, d_model: usize) -> Vec<Read> {
    let search = Search::new(graph, logits);
    let mut found: Vec<Read> = Vec::new();
    for node in search.by_rank.iter().copied().filter(|node| search.leads.contains(node)) {
        for read in search.norms(node) {
            let stream = read.value().is_none_or(|value| search.is_stream(value));
            if stream && search.feeds_a_product(node, read.value()) {
                found.push(read);
            }
        }
    }
    found.extend(search.last_reads());
    found.retain(|read| fits(graph, read, d_model as u64));
    let mut seen = HashSet::new();
    found.retain(|read| seen.insert(read.place));
    let rank = |read: &Read| match read.place {
        Place::Value(value) => graph.producer(value).map_or(0, |node| 1 + graph.rank(node)),
        Place::UnnamedSum(node) => 1 + graph.rank(node),
    };
    found.sort_by_key(rank);
    found
}

/// Whether a value may be as wide as the stream.
fn fits(graph: &Graph<'_>, read: &Read, d_model: u64) -> bool {
    match (read.place, read.width) {
        (Place::Value(value), Width::Axis(-1)) => graph.last_dimension(value).is_none_or(|last| last == d_model),
        _ => true,
    }
}

struct Search<'g, 'm> {
    graph: &'g Graph<'m>,
    by_rank: Vec<NodeId>,
    kinds: Vec<Kind>,
    /// For each value: whether it is made within a block, by a product and what follows it.
    made: Vec<bool>,
    /// Nodes that the logits depend on.
    leads: HashSet<NodeId>,
    /// Activations of the products nearest to the logits.
    activations: Vec<ValueId>,
    /// Values that lead to those activations without a product in between.
    unbroken: HashSet<ValueId>,
    /// Every value that some normalisation reads.
    normalised: HashSet<ValueId>,
}

impl<'g, 'm> Search<'g, 'm> {
    fn new(graph: &'g Graph<'m>, logits: ValueId) -> Self {
        let kinds: Vec<Kind> = graph.nodes().map(|node| kind(graph, node)).collect();
        let mut by_rank: Vec<NodeId> = graph.nodes().filter(|node| graph.rank(*node) != usize::MAX).collect();
        by_rank.sort_by_key(|node| graph.rank(*node));
        let mut search = Self {
            graph,
            by_rank,
            kinds,
            made: Vec::new(),
            leads: HashSet::new(),
            activations: Vec::new(),
            unbroken: HashSet::new(),
            normalised: HashSet::new(),
        };
        search.made = search.what_is_made();
        search.leads = search.what_leads_to(logits);
        search.activations = search.unembedded(logits);
        search.unbroken = search.without_products(search.activations.clone());
        search.normalised = graph.nodes().flat_map(|node| search.norms(node)).filter_map(|read| read.value()).collect();
        search
    }

    fn kind(&self, node: NodeId) -> Kind {
        self.kinds[node.0]
    }

    /// One pass in the order of the computation.
    fn what_is_made(&self) -> Vec<bool> {
        let graph = self.graph;
        let count = graph.value_count();
        let mut made = vec![false; count];
        // made of sizes, ids and tables alone, so before any block
        let mut early = vec![true; count];
        for &node in &self.by_rank {
            let kind = self.kind(node);
            let inputs: Vec<ValueId> = data(graph, node, kind).into_iter().map(|(_, value)| value).collect();
            let all_early = inputs.iter().all(|value| early[value.0]);
            let all_made = !inputs.is_empty() && inputs.iter().all(|value| made[value.0]);
            let later: Vec<ValueId> = inputs.iter().copied().filter(|value| !early[value.0]).collect();
            let (is_made, is_early) = match kind {
                Kind::Product | Kind::Mixing => (true, false),
                Kind::ProductAndSum => (added(graph, node, kind).is_none_or(|value| made[value.0]), false),
                Kind::Sum | Kind::Pass => (all_made, all_early),
                // a factor that no block made, such as a mask, hands the other value on
                Kind::Scale => match later.as_slice() {
                    [one] => (made[one.0], false),
                    _ => (!all_early, all_early),
                },
                Kind::Function | Kind::Norm | Kind::SumAndNorm => (!all_early, all_early),
                Kind::Lookup | Kind::Source => (false, true),
                Kind::Unknown => (false, all_early),
            };
            for (slot, name) in graph.node(node).output.iter().enumerate() {
                let Some(output) = graph.value(name).filter(|_| !name.is_empty()) else { continue };
                let sum = kind == Kind::SumAndNorm && slot == SUM_OUTPUT;
                made[output.0] = if sum { all_made } else { is_made };
                early[output.0] = is_early;
            }
        }
        made
    }

    fn what_leads_to(&self, logits: ValueId) -> HashSet<NodeId> {
        let mut found = HashSet::new();
        let mut open = vec![logits];
        while let Some(value) = open.pop() {
            if let Some(node) = self.graph.producer(value)
                && found.insert(node)
            {
                open.extend(self.graph.all_inputs(node));
            }
        }
        found
    }

    /// The activations of the products nearest to the logits: one, or more where the vocabulary is split.
    fn unembedded(&self, logits: ValueId) -> Vec<ValueId> {
        let graph = self.graph;
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut open = vec![logits];
        while let Some(value) = open.pop() {
            let Some(node) = graph.producer(value).filter(|_| seen.insert(value)) else { continue };
            let kind = self.kind(node);
            let inputs = data(graph, node, kind).into_iter().map(|(_, value)| value);
            match kind {
                Kind::Product | Kind::ProductAndSum | Kind::Mixing => found.extend(inputs),
                _ => open.extend(inputs),
            }
        }
        found
    }

    /// Every value behind `open` that is reached without a product, `open` included.
    fn without_products(&self, mut open: Vec<ValueId>) -> HashSet<ValueId> {
        let graph = self.graph;
        let mut found = HashSet::new();
        while let Some(value) = open.pop() {
            if !found.insert(value) {
                continue;
            }
            let Some(node) = graph.producer(value) else { continue };
            let kind = self.kind(node);
            match kind {
                Kind::Product | Kind::Mixing | Kind::Unknown => {}
                Kind::ProductAndSum => open.extend(added(graph, node, kind)),
                _ => open.extend(data(graph, node, kind).into_iter().map(|(_, value)| value)),
            }
        }
        found
    }

    fn is_stream(&self, value: ValueId) -> bool {
        !self.made[value.0] || self.unbroken.contains(&value)
    }

    /// What `node` reads if it is a normalisation, or the reduction inside one that is spelled out.
    fn norms(&self, node: NodeId) -> Vec<Read> {
        let graph = self.graph;
        let read =
            |value: ValueId, axis: i64| Read { place: Place::Value(value), width: Width::Axis(axis), reader: node };
        let first = graph.input(node, 0).filter(|value| graph.is_dynamic(*value));
        match self.kind(node) {
            Kind::Norm => first.map(|value| read(self.uncentred(value), self.norm_axis(node))).into_iter().collect(),
            Kind::SumAndNorm => {
                let place = graph.output(node, SUM_OUTPUT).map_or(Place::UnnamedSum(node), Place::Value);
                vec![Read { place, width: Width::Axis(-1), reader: node }]
            }
            Kind::Function => self.reduced(node).into_iter().map(|(value, axis)| read(value, axis)).collect(),
            _ => Vec::new(),
        }
    }

    fn norm_axis(&self, node: NodeId) -> i64 {
        match self.graph.op(node) {
            // over each channel, or over groups of them
            "InstanceNormalization" | "GroupNormalization" | "MeanVarianceNormalization" => 1,
            _ => self.graph.node(node).attr_i("axis", -1),
        }
    }

    /// The value that a reduction is over, with its axis: of `mean(x ^ 2)` and of `mean((x - mean(x)) ^ 2)` it is `x`.
    fn reduced(&self, node: NodeId) -> Option<(ValueId, i64)> {
        let graph = self.graph;
        let op = graph.op(node);
        let (squares, sums) = (matches!(op, "ReduceL2" | "ReduceSumSquare"), matches!(op, "ReduceMean" | "ReduceSum"));
        if !squares && !sums {
            return None;
        }
        let axis = match graph.input(node, 1) {
            Some(axes) => graph.const_ints(axes)?,
            None => graph.node(node).attr("axes")?.ints.clone(),
        };
        let [axis] = axis.as_slice() else { return None };
        let (value, squared) = self.unsquared(graph.input(node, 0)?);
        // a plain sum is no norm; a plain mean is the first half of one
        (squares || squared || op == "ReduceMean").then_some((value, *axis)).filter(|(v, _)| graph.is_dynamic(*v))
    }

    /// Goes back over squares, casts and centring to the value itself, and tells whether a square was met.
    fn unsquared(&self, mut value: ValueId) -> (ValueId, bool) {
        let graph = self.graph;
        let mut squared = false;
        while let Some(node) = graph.producer(value) {
            let Some(input) = graph.input(node, 0) else { break };
            match graph.op(node) {
                "Pow" => squared = true,
                "Mul" if graph.input(node, 1) == Some(input) => squared = true,
                "Mul" | "Div" if graph.input(node, 1).is_some_and(|v| !graph.is_dynamic(v)) && squared => {}
                "Sub" if self.is_mean_of(graph.input(node, 1), input) => {}
                "Cast" | "Identity" | "Abs" => {}
                _ => break,
            }
            value = input;
        }
        (value, squared)
    }

    /// Goes back over casts and a centring that is spelled out before a normalisation in one node.
    fn uncentred(&self, value: ValueId) -> ValueId {
        let (mut at, mut found) = (value, value);
        while let Some(node) = self.graph.producer(at) {
            let Some(input) = self.graph.input(node, 0) else { break };
            match self.graph.op(node) {
                "Sub" if self.is_mean_of(self.graph.input(node, 1), input) => found = input,
                "Cast" | "Identity" => {}
                _ => break,
            }
            at = input;
        }
        found
    }

    fn is_mean_of(&self, mean: Option<ValueId>, value: ValueId) -> bool {
        let node = mean.and_then(|mean| self.graph.producer(mean));
        node.is_some_and(|node| {
            let reduces = self.graph.op(node) == "ReduceMean";
            let over = self.graph.input(node, 0);
            reduces && (over == Some(value) || over.is_some_and(|over| self.unsquared(over).0 == value))
        })
    }

    /// Whether what a normalisation of `own` returns goes into a product. Where it is added to the stream first, or is
    /// normalised again, it is the end of a write, and what it reads is none of the stream.
    fn feeds_a_product(&self, node: NodeId, own: Option<ValueId>) -> bool {
        let graph = self.graph;
        let mut seen = HashSet::new();
        let mut open: Vec<ValueId> = match self.kind(node) {
            Kind::SumAndNorm => graph.output(node, 0).into_iter().collect(),
            _ => graph.outputs(node).collect(),
        };
        while let Some(value) = open.pop() {
            if !seen.insert(value) || (Some(value) != own && self.normalised.contains(&value)) {
                continue;
            }
            for one in graph.uses(value) {
                let kind = self.kind(one.node);
                let among = data(graph, one.node, kind).iter().any(|(slot, _)| *slot == one.slot);
                match kind {
                    Kind::ProductAndSum if added(graph, one.node, kind) == Some(value) => {}
                    // a number a position is no use of the stream by a block: a gate, or a projection that was added
                    Kind::Product if self.is_number(one.node) => {}
                    Kind::Product | Kind::ProductAndSum | Kind::Mixing | Kind::Unknown => return true,
                    Kind::SumAndNorm | Kind::Source => {}
                    _ if !among || terms(graph, one.node, kind).len() >= 2 => {}
                    _ => open.extend(graph.outputs(one.node)),
                }
            }
        }
        false
    }

    /// Whether a product makes one number a position, or several that nothing but such a number is made of.
    fn is_number(&self, node: NodeId) -> bool {
        let graph = self.graph;
        let mut seen = HashSet::new();
        let mut open: Vec<ValueId> = graph.outputs(node).collect();
        while let Some(value) = open.pop() {
            if !seen.insert(value) || graph.last_dimension(value) == Some(1) {
                continue;
            }
            let uses = graph.uses(value);
            if uses.is_empty() || seen.len() > NUMBER_STEPS {
                return false;
            }
            open.extend(uses.iter().flat_map(|one| graph.outputs(one.node)));
        }
        true
    }

    /// The sums nearest to the unembedding, however the last normalisation is spelled, and what no rule knows there.
    fn last_reads(&self) -> Vec<Read> {
        let graph = self.graph;
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut open: Vec<(ValueId, Option<NodeId>)> = self.activations.iter().map(|value| (*value, None)).collect();
        while let Some((value, reader)) = open.pop() {
            let Some(node) = graph.producer(value).filter(|_| seen.insert(value)) else { continue };
            let kind = self.kind(node);
            let reader = reader.unwrap_or(node);
            let read = |place| Read { place, width: Width::Fitting, reader };
            match kind {
                Kind::SumAndNorm => {
                    let named = graph.output(node, SUM_OUTPUT).map_or(Place::UnnamedSum(node), Place::Value);
                    found.push(read(named));
                }
                Kind::Unknown | Kind::Product | Kind::Mixing => found.push(read(Place::Value(value))),
                Kind::ProductAndSum => found.push(read(Place::Value(value))),
                _ if terms(graph, node, kind).len() >= 2 => found.push(read(Place::Value(value))),
                _ => open.extend(data(graph, node, kind).into_iter().map(|(_, value)| (value, Some(node)))),
            }
        }
        found
    }
}
