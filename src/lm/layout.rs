//! Which axis of the residual stream is what.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::Interface;
use super::rows::{handed_on, keeps_rows};
use crate::onnx::ops::WeightUse;
use crate::onnx::{Graph, NodeId, ValueId};

/// The axes of the residual stream where it starts: `[batch, n_pos, d_model]` in most exports, `[n_pos, batch, d_model]`,
/// `[batch * n_pos, d_model]` or `[batch, d_model, 1, n_pos]` in others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct StreamLayout {
    /// The axis of the batch; the same as [`Self::position`] where rows of all sequences follow one another, a whole
    /// sequence at a time; `None` where the stream has no batch, or it was not found.
    pub batch: Option<usize>,
    /// The axis of the positions; `None` where it was not found, so that nothing can be measured there.
    pub position: Option<usize>,
    /// The axis of length `d_model`; counted from the end of three where the rank is unknown.
    pub width: usize,
    /// Number of axes; `None` where the file does not tell.
    pub rank: Option<usize>,
}

impl StreamLayout {
    /// `[batch, n_pos, d_model]`.
    pub const PLAIN: Self = Self { batch: Some(0), position: Some(1), width: 2, rank: Some(3) };

    /// Whether this is `[batch, n_pos, d_model]`.
    pub fn is_plain(&self) -> bool {
        *self == Self::PLAIN
    }
}

impl StreamLayout {
    /// The axis of length `d_model`, counted from the end.
    pub fn from_end(&self) -> usize {
        self.rank.unwrap_or(3).saturating_sub(1 + self.width)
    }

    /// The permutation that brings a value to `[batch, .., d_model]`, or only its channels to the end where the batch does
    /// not matter; `None` where it is so already.
    pub(crate) fn rows_order(&self, by_batch: bool) -> Option<Vec<usize>> {
        let rank = self.rank?;
        let batch = self.batch.filter(|&batch| by_batch && Some(batch) != self.position);
        let rest = (0..rank).filter(|&axis| axis != self.width && Some(axis) != batch);
        let order: Vec<usize> = batch.into_iter().chain(rest).chain([self.width]).collect();
        (!order.iter().copied().eq(0..rank)).then_some(order)
    }

    /// What is likely of a stream of `rank` axes whose operators do not tell more than where its channels are.
    pub(super) fn by_rank(rank: Option<usize>, from_end: usize) -> Self {
        let width = rank.unwrap_or(3).saturating_sub(1 + from_end);
        let (batch, position) = match (rank, from_end) {
            (Some(3) | None, 0) => (Some(0), Some(1)),
            (Some(2), 0) => (Some(0), Some(0)),
            _ => (None, None),
        };
        Self { batch, position, width, rank }
    }

    pub(super) fn of(axes: &[Axis]) -> Option<Self> {
        let at = |axis: Axis| axes.iter().position(|&a| a == axis);
        let width = at(Axis::Width)?;
        let rows = at(Axis::Rows);
        Some(Self {
            batch: at(Axis::Batch).or(rows),
            position: at(Axis::Position).or(rows),
            width,
            rank: Some(axes.len()),
        })
    }
}

/// What lies along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    Batch,
    Position,
    /// Positions of all sequences, one sequence after the other.
    Rows,
    Width,
    /// Anything else, axes of length 1 among them.
    Other,
}

/// No way from the tokens to the stream has more nodes than this one after the other.
const MAX_DEPTH: usize = 96;

/// The axes of the value that the stream starts with, read off the way from the tokens to it. `None` where an operator
/// on it does not tell.
pub(super) fn of_origin(graph: &Graph<'_>, interface: &Interface, origin: ValueId) -> Option<Vec<Axis>> {
    let mut walk = Walk { graph, interface, known: HashMap::new() };
    walk.axes(origin, MAX_DEPTH)
}

struct Walk<'g, 'm> {
    graph: &'g Graph<'m>,
    interface: &'g Interface,
    known: HashMap<ValueId, Option<Vec<Axis>>>,
}

impl Walk<'_, '_> {
    fn axes(&mut self, value: ValueId, depth: usize) -> Option<Vec<Axis>> {
        if let Some(known) = self.known.get(&value) {
            return known.clone();
        }
        let found = depth.checked_sub(1).and_then(|depth| self.find(value, depth));
        self.known.insert(value, found.clone());
        found
    }

    fn find(&mut self, value: ValueId, depth: usize) -> Option<Vec<Axis>> {
        let graph = self.graph;
        let name = graph.name(value);
        if self.interface.inputs_embeds.as_deref() == Some(name) {
            return Some(vec![Axis::Batch, Axis::Position, Axis::Width]);
        }
        if self.interface.input_ids == name || self.interface.position_ids.as_deref() == Some(name) {
            let single = graph.declared_shape(value).is_some_and(|shape| shape.len() == 1);
            return Some(if single { vec![Axis::Position] } else { vec![Axis::Batch, Axis::Position] });
        }
        let node = graph.producer(value)?;
        let mut input = |slot: usize| graph.input(node, slot).and_then(|v| self.axes(v, depth));
        let table = graph.input(node, 0).is_some_and(|v| !graph.is_dynamic(v));
        match graph.weighted(node).map(|weighted| weighted.work) {
            Some(WeightUse::Lookup) if table && graph.node(node).attr_i("axis", 0) == 0 => {
                let mut axes = input(1)?;
                axes.push(Axis::Width);
                return Some(axes);
            }
            Some(WeightUse::Product) => {
                let mut axes = input(0)?;
                *axes.last_mut()? = Axis::Width;
                return Some(axes);
            }
            _ => {}
        }
        match graph.op(node) {
            "EmbedLayerNormalization" => Some(vec![Axis::Batch, Axis::Position, Axis::Width]),
            "OneHot" => {
                let mut axes = input(0)?;
                axes.push(Axis::Other);
                (graph.node(node).attr_i("axis", -1) == -1).then_some(axes)
            }
            "Unsqueeze" | "Squeeze" | "Transpose" => rearranged(graph, node, &input(0)?),
            "Reshape" => reshaped(graph, node, &input(0)?),
            "Flatten" => {
                let axes = input(0)?;
                let last = axes.last().copied()?;
                let whole = [-1, axes.len() as i64 - 1].contains(&graph.node(node).attr_i("axis", 1));
                let rows = flattened(&axes[..axes.len() - 1])?;
                whole.then(|| vec![rows, last])
            }
            "If" => handed_on(graph, node).and_then(|v| self.axes(v, depth)),
            "Where" => Self::widest([input(1), input(2), input(0)]),
            "Expand" | "Slice" | "ScatterND" | "ScatterElements" => input(0),
            "Concat" => {
                let inputs = graph.node(node).input.len().min(8);
                Self::widest((0..inputs).map(input))
            }
            op if ELEMENTWISE.contains(&op) || op.ends_with("LayerNormalization") || op == "RMSNormalization" => {
                let inputs = graph.node(node).input.len().min(8);
                Self::widest((0..inputs).map(input))
            }
            _ => None,
        }
    }

    /// Of values that are broadcast against each other, the axes of the one with most of them.
    fn widest(all: impl IntoIterator<Item = Option<Vec<Axis>>>) -> Option<Vec<Axis>> {
        let told = |axes: &Vec<Axis>| (axes.len(), axes.iter().filter(|&&a| a != Axis::Other).count());
        all.into_iter().flatten().max_by_key(told)
    }
}

/// Width of the tables that the stream starts with, where they are all of one width.
pub(super) fn table_width(graph: &Graph<'_>, origin: ValueId) -> Option<usize> {
    let mut widths = HashSet::new();
    let mut seen = HashSet::new();
    let mut open = vec![origin];
    while let Some(value) = open.pop() {
        let Some(node) = graph.producer(value).filter(|_| graph.is_dynamic(value) && seen.insert(value)) else {
            continue;
        };
        let table = graph.input(node, 0).filter(|v| graph.op(node) == "Gather" && !graph.is_dynamic(*v));
        match table.map(|v| graph.tensor_ref(v)) {
            Some(Some(table)) if table.dtype.is_float() => widths.extend(table.shape.last()),
            Some(_) => {}
            None if matches!(graph.op(node), "Shape" | "Size") => {}
            None => open.extend(graph.all_inputs(node)),
        }
    }
    match widths.into_iter().collect::<Vec<u64>>().as_slice() {
        [one] => usize::try_from(*one).ok().filter(|&d| d > 1),
        _ => None,
    }
}

/// Operators on single elements.
const ELEMENTWISE: [&str; 22] = [
    "Add",
    "Sub",
    "Sum",
    "Mul",
    "Div",
    "Cast",
    "CastLike",
    "Identity",
    "Dropout",
    "Clip",
    "Min",
    "Max",
    "Equal",
    "Not",
    "And",
    "Mod",
    "QuantizeLinear",
    "DequantizeLinear",
    "Neg",
    "Abs",
    "Pow",
    "Sqrt",
];

/// The axes of what a node makes that moves them, adds some of length 1 or takes such away.
pub(super) fn rearranged(graph: &Graph<'_>, node: NodeId, axes: &[Axis]) -> Option<Vec<Axis>> {
    let proto = graph.node(node);
    let given = match graph.input(node, 1) {
        Some(axes) => Some(graph.const_ints(axes)?),
        None => proto.attr("axes").map(|a| a.ints.clone()),
    };
    let within = |at: i64, rank: usize| usize::try_from(if at < 0 { at + rank as i64 } else { at }).ok();
    match graph.op(node) {
        "Transpose" => {
            let reversed = || (0..axes.len() as i64).rev().collect();
            let perm: Vec<i64> = proto.attr("perm").map_or_else(reversed, |a| a.ints.clone());
            if perm.len() != axes.len() {
                return None;
            }
            perm.iter().map(|&at| axes.get(usize::try_from(at).ok()?).copied()).collect()
        }
        "Unsqueeze" => {
            let given = given?;
            let rank = axes.len() + given.len();
            let new: Vec<usize> = given.iter().map(|&at| within(at, rank)).collect::<Option<_>>()?;
            let mut old = axes.iter().copied();
            (0..rank).map(|at| if new.contains(&at) { Some(Axis::Other) } else { old.next() }).collect()
        }
        "Squeeze" => {
            let gone: Vec<usize> = given?.iter().map(|&at| within(at, axes.len())).collect::<Option<_>>()?;
            let kept = axes.iter().enumerate().filter(|(at, _)| !gone.contains(at)).map(|(_, axis)| *axis);
            Some(kept.collect())
        }
        _ => None,
    }
}

/// The axes of what a node makes that hands on rows ([`handed_on`]).
pub(super) fn handed(graph: &Graph<'_>, node: NodeId, axes: &[Axis]) -> Option<Vec<Axis>> {
    match graph.op(node) {
        "Squeeze" | "Unsqueeze" => rearranged(graph, node, axes),
        "Reshape" => reshaped(graph, node, axes),
        "Flatten" => match axes {
            [rows @ .., last] => Some(vec![flattened(rows)?, *last]),
            [] => None,
        },
        "If" => {
            let rank = graph.output(node, 0).and_then(|v| graph.rank_of(v));
            (rank == Some(axes.len())).then(|| axes.to_vec())
        }
        _ => Some(axes.to_vec()),
    }
}

/// One axis for several.
fn flattened(axes: &[Axis]) -> Option<Axis> {
    let told: Vec<Axis> = axes.iter().copied().filter(|&a| a != Axis::Other).collect();
    match told.as_slice() {
        [one] if *one != Axis::Width => Some(*one),
        [Axis::Batch, Axis::Position] => Some(Axis::Rows),
        [Axis::Position, Axis::Batch] => Some(Axis::Other),
        _ => None,
    }
}

/// The axes of what a `Reshape` makes that leaves the last axis as it is, or of one of token ids.
pub(super) fn reshaped(graph: &Graph<'_>, node: NodeId, axes: &[Axis]) -> Option<Vec<Axis>> {
    let value = graph.output(node, 0)?;
    let rank = graph.rank_of(value)?;
    let target = graph.input(node, 1).and_then(|v| graph.const_ints(v));
    let ends_in_width = axes.last() == Some(&Axis::Width);
    if axes.contains(&Axis::Width) && !(ends_in_width && keeps_rows(graph, node)) {
        return None;
    }
    let rows = if ends_in_width { &axes[..axes.len() - 1] } else { axes };
    let wanted = if ends_in_width { rank.checked_sub(1)? } else { rank };
    let told: Vec<Axis> = rows.iter().copied().filter(|&a| a != Axis::Other).collect();
    // sizes of 1 and -1 in front: every position of every sequence in one axis
    let fixed = target.as_deref().is_some_and(|t| t.iter().take(wanted).all(|d| [1, -1].contains(d)));
    let rows = match (wanted, told.as_slice()) {
        (1, _) => vec![flattened(rows)?],
        (2, [Axis::Position]) => vec![Axis::Batch, Axis::Position],
        (n, _) if fixed && n > 1 => {
            let open = target?.iter().take(n).position(|&d| d == -1)?;
            (0..n).map(|at| if at == open { flattened(rows) } else { Some(Axis::Other) }).collect::<Option<_>>()?
        }
        (2, [Axis::Batch, Axis::Position] | [Axis::Rows]) => vec![Axis::Batch, Axis::Position],
        (2, [Axis::Position, Axis::Batch]) => vec![Axis::Position, Axis::Batch],
        (n, _) if n == rows.len() => rows.to_vec(),
        _ => return None,
    };
    Some(rows.into_iter().chain(ends_in_width.then_some(Axis::Width)).collect())
}

/// The axis of `d_model`, counted from the end, that norms of a stream value are taken along. Norms are met through
/// operators on single elements; `None` where there are none, or several that disagree.
pub(super) fn normalised_axis(graph: &Graph<'_>, values: &[ValueId]) -> Option<usize> {
    let mut found = HashSet::new();
    let mut seen = HashSet::new();
    let mut open: Vec<ValueId> = values.to_vec();
    while let Some(value) = open.pop() {
        if !seen.insert(value) || seen.len() > 4096 {
            continue;
        }
        for one in graph.uses(value) {
            let op = graph.op(one.node);
            let rank = graph.rank_of(value);
            let counted = |axis: i64| {
                let axis = if axis < 0 { -axis - 1 } else { rank? as i64 - 1 - axis };
                usize::try_from(axis).ok()
            };
            if op.starts_with("Skip") && op.ends_with("LayerNormalization") && one.slot < 2 {
                found.insert(Some(0));
            } else if matches!(op, "LayerNormalization" | "SimplifiedLayerNormalization" | "RMSNormalization") {
                found.insert(counted(graph.node(one.node).attr_i("axis", -1)));
            } else if matches!(op, "ReduceMean" | "ReduceL2" | "ReduceSumSquare" | "LpNormalization") {
                let axes = match graph.input(one.node, 1) {
                    Some(axes) => graph.const_ints(axes),
                    None => graph.node(one.node).attr("axes").map(|a| a.ints.clone()),
                };
                match (op, axes.as_deref()) {
                    ("LpNormalization", _) => found.insert(counted(graph.node(one.node).attr_i("axis", -1))),
                    (_, Some([axis])) => found.insert(counted(*axis)),
                    _ => false,
                };
            } else if matches!(op, "Cast" | "Pow" | "Mul" | "Identity") {
                let own = (0..2)
                    .filter_map(|slot| graph.input(one.node, slot))
                    .all(|v| seen.contains(&v) || !graph.is_dynamic(v));
                open.extend(graph.outputs(one.node).filter(|_| own));
            }
        }
    }
    match found.into_iter().collect::<Option<Vec<usize>>>()?.as_slice() {
        [one] => Some(*one),
        _ => None,
    }
}
