//! From a contribution back to the weights that make it.
//!
//! The walk passes only operators under which making every row of the operand orthogonal to a direction makes
//! every row of the result orthogonal to it: sums, picks, scatters and linear combinations of rows, factors that
//! are one number a row. It ends at products with constant weights and at lookups in constant tables. Whatever
//! else is met ends in a [`Refusal`], and the projection is inserted after the write instead.
//!
//! To add a pattern, add an arm to `Walk::step`.

use std::collections::HashSet;

use super::Refusal;
use super::path::{EditTarget, Turn, WeightPath};
use super::quantised;
use super::rows::{
    adds_or_sets, carried, einsum_weight, handed_on, is_row_factor, is_same_along_rows, is_transparent, keeps_rows,
    picks_weight, reads_elements,
};
use crate::onnx::ops::WeightUse;
use crate::onnx::{Graph, NodeId, Use, ValueId, constant};

/// Why the weights behind a write cannot be edited, and at which node.
#[derive(Debug, Clone)]
pub struct Stop {
    /// The node and the reason.
    pub refusal: Box<Refusal>,
    /// Whether the weight is quantised in a way that is not read, so that it cannot be rounded.
    pub quantised: bool,
}

impl From<Stop> for Refusal {
    fn from(stop: Stop) -> Self {
        *stop.refusal
    }
}

impl WeightPath {
    /// Adds the bias input of a fused add-and-norm node.
    ///
    /// # Errors
    /// If it is no constant vector of `d_model` values.
    pub fn add_bias(&mut self, graph: &Graph<'_>, bias: Use, d_model: usize) -> Result<(), Stop> {
        let path = std::mem::take(self);
        let mut walk = Walk { path, ..Walk::new(graph, Some(d_model)) };
        let value = graph.input(bias.node, bias.slot).expect("the bias was found as an input");
        let found = walk.bias(value, bias, 0);
        *self = walk.path;
        found
    }
}

/// Walks from a contribution to the weights that make it. `width` is `d_model` where it is known, and lies along axis
/// `axis` of the contribution, counted from the end.
///
/// # Errors
/// The node behind which the weights cannot be edited exactly, and why.
pub fn trace_weight(graph: &Graph<'_>, value: ValueId, width: Option<usize>, axis: usize) -> Result<WeightPath, Stop> {
    run(Walk { axis, ..Walk::new(graph, width) }, value)
}

/// The same through norms, whose scales and means turn the direction ([`super::path::Part::turns`]). Weights found so cannot be
/// edited exactly: the norm's own factor depends on them.
///
/// # Errors
/// The node behind which the weights cannot be found.
pub fn trace_weight_through_norms(graph: &Graph<'_>, value: ValueId, d_model: usize) -> Result<WeightPath, Stop> {
    run(Walk { through_norms: true, ..Walk::new(graph, Some(d_model)) }, value)
}

fn run(mut walk: Walk<'_, '_>, value: ValueId) -> Result<WeightPath, Stop> {
    let graph = walk.graph;
    walk.open.push((value, None, Vec::new(), walk.axis));
    while let Some((value, reader, turns, axis)) = walk.open.pop() {
        if walk.seen.insert(value) {
            (walk.turns, walk.axis) = (turns, axis);
            walk.step(value, reader)?;
        }
    }
    let Walk { path, .. } = walk;
    if path.weights.is_empty() {
        let node = graph.producer(value);
        return Err(stop(graph, node, value, "no weight was found behind the write"));
    }
    let first = path.width(graph);
    let same = |t: &EditTarget| Some(t.width(graph.model)) == first.map(|d| d as u64);
    match path.weights.iter().all(same) {
        true => Ok(path),
        false => Err(stop(graph, graph.producer(value), value, "its weights are of different widths")),
    }
}

pub(super) struct Walk<'g, 'm> {
    pub(super) graph: &'g Graph<'m>,
    pub(super) width: Option<usize>,
    pub(super) path: WeightPath,
    /// Values to follow, each with the node that led to it, what turns the direction before, and the axis of `d_model`.
    open: Vec<(ValueId, Option<NodeId>, Vec<Turn>, usize)>,
    seen: HashSet<ValueId>,
    /// What turns the direction between the write and the value at hand.
    pub(super) turns: Vec<Turn>,
    /// The axis of `d_model` in the value at hand, counted from the end.
    axis: usize,
    /// Whether norms are walked through.
    through_norms: bool,
}

impl<'g, 'm> Walk<'g, 'm> {
    fn new(graph: &'g Graph<'m>, width: Option<usize>) -> Self {
        Self {
            graph,
            width,
            path: WeightPath::default(),
            open: Vec::new(),
            seen: HashSet::new(),
            turns: Vec::new(),
            axis: 0,
            through_norms: false,
        }
    }

    /// A scale of the channels by a constant.
    fn turn(&mut self, scale: ValueId, node: NodeId, value: ValueId) -> Result<(), Stop> {
        let found = constant::vector(self.graph, scale)
            .map_err(|error| self.stop(Some(node), value, format!("the scale of the norm cannot be read: {error}")))?;
        match found.filter(|g| g.len() == 1 || Some(g.len()) == self.width) {
            Some(scale) => self.turns.push(Turn::Scale(scale)),
            None => return Err(self.stop(Some(node), value, "the scale of the norm is no constant of the file")),
        }
        Ok(())
    }

    /// A fused norm: scale input 1, bias input 2 of those that take the mean off.
    fn norm(&mut self, node: NodeId, value: ValueId) -> Result<(), Stop> {
        let centred = self.graph.op(node) == "LayerNormalization";
        let last = self.graph.input(node, 0).and_then(|v| self.graph.rank_of(v)).map_or(-1, |rank| rank as i64 - 1);
        if ![-1, last].contains(&self.graph.node(node).attr_i("axis", -1)) {
            return Err(self.stop(Some(node), value, "the norm is over more than the channels"));
        }
        if let Some(bias) = self.graph.input(node, 2).filter(|_| centred) {
            self.bias(bias, Use { node, slot: 2 }, 0)?;
        }
        if let Some(scale) = self.graph.input(node, 1) {
            self.turn(scale, node, value)?;
        }
        if centred {
            self.turns.push(Turn::Centre);
        }
        self.follow(self.graph.input(node, 0), node);
        Ok(())
    }

    pub(super) fn stop(&self, node: Option<NodeId>, value: ValueId, reason: impl Into<String>) -> Stop {
        stop(self.graph, node, value, reason)
    }

    /// A quantised weight that cannot be rounded.
    pub(super) fn not_rounded(&self, node: NodeId, value: ValueId, reason: &str) -> Stop {
        Stop { quantised: true, ..self.stop(Some(node), value, format!("the weight is quantised, and {reason}")) }
    }

    /// Input `slot` if it depends on what is fed.
    fn moving(&self, node: NodeId, slot: usize) -> Option<ValueId> {
        self.graph.input(node, slot).filter(|v| self.graph.is_dynamic(*v))
    }

    /// Input `slot` if it is constant.
    pub(super) fn fixed(&self, node: NodeId, slot: usize) -> Option<ValueId> {
        self.graph.input(node, slot).filter(|v| !self.graph.is_dynamic(*v))
    }

    pub(super) fn follow(&mut self, value: Option<ValueId>, node: NodeId) {
        let (turns, axis) = (self.turns.clone(), self.axis);
        self.open.extend(value.map(|v| (v, Some(node), turns, axis)));
    }

    /// Follows the first input of a node that hands on rows along an axis of its own.
    fn carry(&mut self, node: NodeId, value: ValueId, reason: &str) -> Result<(), Stop> {
        let Some(axis) = carried(self.graph, node, self.axis) else {
            return Err(self.stop(Some(node), value, reason));
        };
        self.axis = axis;
        self.follow(self.graph.input(node, 0), node);
        Ok(())
    }

    fn step(&mut self, value: ValueId, reader: Option<NodeId>) -> Result<(), Stop> {
        let graph = self.graph;
        let Some(node) = graph.producer(value) else {
            return Err(self.stop(None, value, "the write comes straight from a graph input"));
        };
        if let Some(reader) = reader.filter(|_| !self.through_norms) {
            self.read_only_by(value, reader)?;
        }
        if constant::is_zero(graph, value) {
            return Ok(());
        }
        let op = graph.op(node);
        match op {
            _ if is_transparent(op) => self.follow(graph.input(node, 0), node),
            "If" => match handed_on(graph, node).filter(|_| self.axis == 0) {
                Some(passed) => self.follow(Some(passed), node),
                None => return Err(self.stop(Some(node), value, "the write passes `If`")),
            },
            "Squeeze" if self.axis == 0 && self.column(node).is_some() => {
                let product = self.column(node).expect("seen in the guard");
                self.read_only_by(graph.input(node, 0).expect("it has one"), node)?;
                self.weight(Use { node: product, slot: 0 }, 1)?;
            }
            "Reshape" if self.axis == 0 && self.reshapes_to_width(node) => self.follow(graph.input(node, 0), node),
            "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Slice" | "Split" | "Transpose" | "Expand" => {
                self.carry(node, value, &format!("`{op}` may move the dimension of the channels"))?;
            }
            "ReduceSum" | "ReduceMean" => self.carry(node, value, "the write is summed over its channels")?,
            "Concat" => self.parts(node, value)?,
            "Mul" | "Div" => match quantised::scaled_integer_product(graph, node) {
                Some(found) => self.quantised(node, value, None, found)?,
                None => self.scaled(node, value)?,
            },
            // x - mean(x) of a norm that is spelled out
            "Sub" if self.through_norms && graph.input(node, 1).is_some_and(|v| is_row_factor(graph, v, 0)) => {
                self.turns.push(Turn::Centre);
                self.follow(graph.input(node, 0), node);
            }
            "Add" | "Sub" | "Sum" => self.terms(node)?,
            "MatMul" if self.axis == 1 && self.fixed(node, 0).is_some() && self.moving(node, 1).is_some() => {
                self.weight(Use { node, slot: 0 }, 1)?;
            }
            "Conv" => self.pointwise(node, value)?,
            _ if self.axis != 0 => {
                let reason =
                    format!("the write passes `{}`, and its channels are not the last axis", graph.op_name(node));
                return Err(self.stop(Some(node), value, reason));
            }
            _ => self.step_by_rows(node, value)?,
        }
        Ok(())
    }

    /// A step where the channels are the last axis, through what picks, scatters or multiplies rows.
    fn step_by_rows(&mut self, node: NodeId, value: ValueId) -> Result<(), Stop> {
        let graph = self.graph;
        let op = graph.op(node);
        match op {
            "Where" => {
                if !graph.input(node, 0).is_some_and(|v| is_row_factor(graph, v, 0)) {
                    return Err(self.stop(Some(node), value, "the write is masked channel by channel"));
                }
                self.rows_or_zero(node, &[1, 2], value)?;
            }
            "ScatterND" => {
                let deep = graph.input(node, 1).and_then(|v| graph.last_dimension(v));
                let rank = graph.input(node, 0).and_then(|v| graph.rank_of(v));
                let whole = deep.zip(rank).is_some_and(|(k, rank)| k < rank as u64);
                if !whole || !adds_or_sets(graph, node) {
                    return Err(self.stop(Some(node), value, "the write is scattered by element"));
                }
                self.rows_or_zero(node, &[0, 2], value)?;
            }
            "ScatterElements" | "GatherElements" => {
                let rows = graph.input(node, 1).is_some_and(|v| is_same_along_rows(graph, v));
                if !rows || !adds_or_sets(graph, node) {
                    return Err(self.stop(Some(node), value, format!("`{op}` moves single elements of the write")));
                }
                let slots: &[usize] = if op == "ScatterElements" { &[0, 2] } else { &[0] };
                self.rows_or_zero(node, slots, value)?;
            }
            _ if graph.weighted(node).is_some_and(|weighted| weighted.is_plain_product()) => {
                self.product(node, value)?
            }
            "Gemm" => {
                if self.moving(node, 0).is_none() {
                    return Err(self.stop(Some(node), value, "the weight is not operand B of this Gemm"));
                }
                if let Some(c) = graph.input(node, 2) {
                    self.bias(c, Use { node, slot: 2 }, 0)?;
                }
                let from_end = usize::from(graph.node(node).attr_i("transB", 0) != 0);
                self.weight(Use { node, slot: 1 }, from_end)?;
            }
            "Gather" | "GatherND" => {
                if self.fixed(node, 0).is_some() {
                    let rank = graph.input(node, 0).and_then(|v| graph.rank_of(v)).unwrap_or(0) as i64;
                    let rows = graph.op(node) == "Gather" && [0, -rank].contains(&graph.node(node).attr_i("axis", 0));
                    if !(rows && rank == 2 || keeps_rows(graph, node)) {
                        return Err(self.stop(Some(node), value, "the lookup is not by rows"));
                    }
                    self.path.lookup = true;
                    self.weight(Use { node, slot: 0 }, 0)?;
                } else {
                    self.carry(node, value, "channels are picked from an activation")?;
                }
            }
            "Einsum" => {
                let Some((slot, from_end)) = einsum_weight(graph, node) else {
                    return Err(self.stop(Some(node), value, "`Einsum` is no product of an activation and a weight"));
                };
                self.weight(Use { node, slot }, from_end)?;
            }
            "MoE" => self.experts(node, value)?,
            "LayerNormalization" | "SimplifiedLayerNormalization" | "RMSNormalization" if self.through_norms => {
                self.norm(node, value)?;
            }
            "LayerNormalization" | "SimplifiedLayerNormalization" | "RMSNormalization" => {
                return Err(self.stop(Some(node), value, "the write is normalised before it is added (post-norm)"));
            }
            "DequantizeLinear" => self.dequantised(node, value)?,
            "MatMulInteger" => return Err(self.stop(Some(node), value, "the weight's scale was not found")),
            _ => match graph.operator(node).zip(graph.weighted(node)) {
                Some((operator, weighted)) if weighted.layout.is_of_one_node() => {
                    self.path.lookup |= weighted.work == WeightUse::Lookup;
                    let found = quantised::read_by(graph, node, operator, self.width.map(|w| w as u64));
                    self.quantised(node, value, weighted.bias, found)?;
                }
                _ => return Err(self.stop(Some(node), value, format!("the write passes `{}`", graph.op_name(node)))),
            },
        }
        Ok(())
    }

    /// Every part of a `Concat` that joins rows.
    fn parts(&mut self, node: NodeId, value: ValueId) -> Result<(), Stop> {
        let graph = self.graph;
        for slot in 0..graph.node(node).input.len() {
            let part = graph.input(node, slot);
            if carried(graph, node, self.axis).is_none() || part.is_some_and(|v| !graph.is_dynamic(v)) {
                return Err(self.stop(Some(node), value, "the write is put together from several parts"));
            }
            self.follow(part, node);
        }
        Ok(())
    }

    /// Every term of a sum: activations are followed, constants are biases.
    fn terms(&mut self, node: NodeId) -> Result<(), Stop> {
        for slot in 0..self.graph.node(node).input.len() {
            match (self.moving(node, slot), self.fixed(node, slot)) {
                (Some(term), _) => self.follow(Some(term), node),
                (None, Some(constant)) => self.bias(constant, Use { node, slot }, self.axis)?,
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// A value on the way may have no other reader: the edit would change what that one reads.
    pub(super) fn read_only_by(&self, value: ValueId, reader: NodeId) -> Result<(), Stop> {
        check_readers(self.graph, value, reader)
    }

    /// A reshape to a last dimension of `d_model`. What comes before it is compared with `d_model` in turn.
    fn reshapes_to_width(&self, node: NodeId) -> bool {
        let input = self.graph.input(node, 0).and_then(|v| self.graph.last_dimension(v));
        let output = self.graph.output(node, 0).and_then(|v| self.graph.last_dimension(v));
        let fits = output.is_some_and(|d| d > 1 && self.width.is_none_or(|w| w as u64 == d));
        fits && input.is_none_or(|d| Some(d) == output)
    }

    /// The product `W x` of weights `[.., d_model, d_mlp]` with a column `[.., d_mlp, 1]` whose last axis this `Squeeze`
    /// takes away (experts that a router picked).
    fn column(&self, node: NodeId) -> Option<NodeId> {
        let graph = self.graph;
        let value = graph.input(node, 0)?;
        let axes = match graph.input(node, 1) {
            Some(axes) => graph.const_ints(axes)?,
            None => graph.node(node).attr("axes")?.ints.clone(),
        };
        let last = graph.rank_of(value).map_or(-1, |rank| rank as i64 - 1);
        let product = graph.producer(value).filter(|&n| matches!(graph.op(n), "MatMul"))?;
        let (weight, column) = (graph.input(product, 0)?, graph.input(product, 1)?);
        let held = !graph.is_dynamic(weight) || picks_weight(graph, weight);
        let one = graph.last_dimension(column) == Some(1) && graph.is_dynamic(column);
        (matches!(axes.as_slice(), [a] if *a == -1 || *a == last) && held && one).then_some(product)
    }

    /// A factor of one number a row commutes with the projection; a factor a channel does not.
    fn scaled(&mut self, node: NodeId, value: ValueId) -> Result<(), Stop> {
        let graph = self.graph;
        let slots: &[(usize, usize)] = if graph.op(node) == "Div" { &[(0, 1)] } else { &[(0, 1), (1, 0)] };
        let found = slots.iter().find_map(|&(rows, factor)| {
            let rows = self.moving(node, rows)?;
            graph.input(node, factor).filter(|f| is_row_factor(graph, *f, self.axis)).map(|_| rows)
        });
        match found {
            Some(rows) => self.follow(Some(rows), node),
            None if self.through_norms && self.axis == 0 => {
                let scaled =
                    slots.iter().find_map(|&(rows, scale)| Some((self.moving(node, rows)?, self.fixed(node, scale)?)));
                let Some((rows, scale)) = scaled.filter(|_| graph.op(node) == "Mul") else {
                    return Err(self.stop(Some(node), value, "the write is scaled by another activation"));
                };
                self.turn(scale, node, value)?;
                self.follow(Some(rows), node);
            }
            None if slots.iter().any(|&(_, factor)| self.fixed(node, factor).is_some()) => {
                return Err(self.stop(Some(node), value, "the write is scaled per channel"));
            }
            None => return Err(self.stop(Some(node), value, "the write is scaled by another activation")),
        }
        Ok(())
    }

    /// Inputs that hold rows; a constant one must be zero.
    fn rows_or_zero(&mut self, node: NodeId, slots: &[usize], value: ValueId) -> Result<(), Stop> {
        for &slot in slots {
            match (self.moving(node, slot), self.fixed(node, slot)) {
                (Some(rows), _) => self.follow(Some(rows), node),
                (None, Some(constant)) if constant::is_zero(self.graph, constant) => {}
                _ => return Err(self.stop(Some(node), value, "the write is mixed with a constant")),
            }
        }
        Ok(())
    }

    /// `x W` ends at `W`, constant or picked from a constant by a router. `A x` combines rows of `x`.
    fn product(&mut self, node: NodeId, value: ValueId) -> Result<(), Stop> {
        let graph = self.graph;
        let proto = graph.node(node);
        if ["transA", "transBatchA", "transBatchB"].iter().any(|a| proto.attr_i(a, 0) != 0) {
            return Err(self.stop(Some(node), value, "the weight is not the right operand of this product"));
        }
        let transposed = proto.attr_i("transB", 0) != 0;
        match (self.fixed(node, 1), self.moving(node, 1)) {
            (Some(_), _) if self.moving(node, 0).is_some() => {
                self.weight(Use { node, slot: 1 }, usize::from(transposed))?
            }
            (None, Some(right)) if picks_weight(graph, right) => {
                self.weight(Use { node, slot: 1 }, usize::from(transposed))?;
            }
            (None, Some(right)) if !transposed && graph.rank_of(right).is_some_and(|rank| rank >= 2) => {
                self.follow(Some(right), node);
            }
            _ => return Err(self.stop(Some(node), value, "both operands of the product are activations")),
        }
        Ok(())
    }

    /// A `Conv` that is a product at every position: `W` is `[d_model, d_in, 1, 1]`, its bias `[d_model]`.
    fn pointwise(&mut self, node: NodeId, value: ValueId) -> Result<(), Stop> {
        let graph = self.graph;
        let proto = graph.node(node);
        let shape = self.fixed(node, 1).and_then(|v| graph.tensor_ref(v)).map(|t| t.shape.clone()).unwrap_or_default();
        let padded = proto.attr("pads").is_some_and(|pads| pads.ints.iter().any(|&p| p != 0));
        if shape.len() < 3 || shape[2..].iter().any(|&k| k != 1) || padded || proto.attr_i("group", 1) != 1 {
            return Err(self.stop(Some(node), value, "`Conv` is no product at every position"));
        }
        if self.axis + 2 != shape.len() || self.moving(node, 0).is_none() {
            return Err(self.stop(Some(node), value, "the channels of `Conv` are not those of the stream"));
        }
        if let Some(bias) = graph.input(node, 2) {
            self.bias(bias, Use { node, slot: 2 }, 0)?;
        }
        self.weight(Use { node, slot: 1 }, shape.len() - 1)
    }

    /// The fused operator (ONNX Runtime's `MoE`): `fc2_experts_weights` is input 4, its bias input 5. The weights
    /// are `[experts, d_model, d_mlp]` in newer versions and `[experts, d_mlp, d_model]` in older ones; the first
    /// layer's weights tell which.
    fn experts(&mut self, node: NodeId, value: ValueId) -> Result<(), Stop> {
        let graph = self.graph;
        let shape = |slot: usize| graph.input(node, slot).and_then(|v| graph.tensor_ref(v)).map(|t| t.shape.clone());
        let d = graph.input(node, 0).and_then(|v| graph.last_dimension(v)).or(self.width.map(|w| w as u64));
        let (Some(first), Some(second), Some(d)) = (shape(2), shape(4), d) else {
            return Err(self.stop(Some(node), value, "the experts' weights are no constants of the file"));
        };
        let newer = match (first.as_slice(), second.as_slice()) {
            ([_, a, b], [_, ..]) if second.len() == 3 && (*b == d) != (*a == d) => *b == d,
            ([_, ..], [_, a, b]) if (*a == d) != (*b == d) => *a == d,
            _ => return Err(self.stop(Some(node), value, "the orientation of the experts' weights is ambiguous")),
        };
        if let Some(c) = graph.input(node, 5) {
            self.bias(c, Use { node, slot: 5 }, 0)?;
        }
        self.weight(Use { node, slot: 4 }, usize::from(newer))
    }
}

/// Whether `reader` is the only node that reads the elements of a value.
///
/// # Errors
/// The other one.
pub(super) fn check_readers(graph: &Graph<'_>, value: ValueId, reader: NodeId) -> Result<(), Stop> {
    let other = graph
        .uses(value)
        .iter()
        .find(|one| one.node != reader && reads_elements(graph, **one))
        .map(|one| graph.node(one.node).label().to_string());
    match other {
        Some(other) => Err(stop(graph, Some(reader), value, format!("the write is also read by node `{other}`"))),
        None if graph.is_output(value) => Err(stop(graph, Some(reader), value, "the write is also an output")),
        None => Ok(()),
    }
}

fn stop(graph: &Graph<'_>, node: Option<NodeId>, value: ValueId, reason: impl Into<String>) -> Stop {
    let refusal = Refusal {
        node: node.map_or_else(|| "(graph)".into(), |n| graph.node(n).label().to_string()),
        op: node.map_or_else(String::new, |n| graph.op_name(n)),
        tensor: graph.name(value).into(),
        reason: reason.into(),
        hint: "the projection can be inserted after the write instead".into(),
    };
    Stop { refusal: Box::new(refusal), quantised: false }
}
