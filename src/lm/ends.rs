//! Where a walk from a contribution ends ([`super::weight`]): the tensors that are to be edited.

use super::path::{EditTarget, Part};
use super::quantised::{self, Found};
use super::rows::{is_scalar, is_transparent, keeps_rows};
use super::weight::{Stop, Walk};
use crate::onnx::{DataType, NodeId, Storage, TensorId, Use, ValueId, constant};

impl Walk<'_, '_> {
    /// Takes the weight behind an input; `d_model` is its axis `from_end`, counted from the last one.
    pub(super) fn weight(&mut self, entry: Use, from_end: usize) -> Result<(), Stop> {
        let graph = self.graph;
        let first = graph.input(entry.node, entry.slot).expect("the caller has seen it");
        let first_entry = entry;
        let (mut value, mut from_end, mut entry) = (first, from_end, entry);
        let tensor = loop {
            if let Some(tensor) = graph.tensor(value) {
                break tensor;
            }
            let Some(node) = graph.producer(value) else {
                return Err(self.stop(Some(entry.node), value, "the weight is no constant of the file"));
            };
            let mut slot = 0;
            match graph.op(node) {
                op if is_transparent(op) => {}
                "Transpose" => {
                    let rank = graph.rank_of(value).unwrap_or(2);
                    let reversed = || (0..rank as i64).rev().collect();
                    let perm: Vec<i64> = graph.node(node).attr("perm").map_or_else(reversed, |a| a.ints.clone());
                    let axis = perm.len().checked_sub(1 + from_end).and_then(|at| usize::try_from(perm[at]).ok());
                    let Some(axis) = axis.filter(|&axis| axis < perm.len()) else {
                        return Err(self.stop(
                            Some(node),
                            value,
                            "the weight is transposed in a way that is not followed",
                        ));
                    };
                    from_end = perm.len() - 1 - axis;
                }
                "Mul" if [0, 1].iter().any(|&s| graph.input(node, s).is_some_and(|v| is_scalar(graph, v))) => {
                    slot = usize::from(graph.input(node, 0).is_some_and(|v| is_scalar(graph, v)));
                }
                // the router's pick of experts keeps the axes behind the first
                "Gather" | "GatherND" if graph.is_dynamic(value) => {
                    let experts = self.fixed(node, 0).and_then(|v| graph.rank_of(v));
                    let axis = graph.node(node).attr_i("axis", 0);
                    let batched = graph.node(node).attr_i("batch_dims", 0) != 0;
                    let one_index = graph.op(node) == "Gather"
                        || graph.input(node, 1).and_then(|v| graph.last_dimension(v)) == Some(1);
                    if axis != 0 || batched || !one_index || experts.is_none_or(|rank| from_end + 1 >= rank) {
                        return Err(self.stop(Some(node), value, "the weight is picked in a way that is not followed"));
                    }
                }
                "Squeeze" | "Unsqueeze" | "Reshape"
                    if graph.is_dynamic(value) && from_end == 0 && keeps_rows(graph, node) => {}
                "DequantizeLinear" => {
                    let found = quantised::dequantize_linear(graph, node, from_end);
                    let found = found.map_err(|reason| self.not_rounded(node, value, &reason))?;
                    return self.take(Found { entry, ..found }, node, value);
                }
                _ => {
                    let reason = "the weight is computed in a way that is not followed";
                    return Err(self.stop(Some(node), value, reason));
                }
            }
            if graph.is_dynamic(value) {
                self.read_only_by(value, entry.node)?;
                entry = Use { node, slot };
            }
            value = graph.input(node, slot).expect("these operators have an input");
        };
        let rank = graph.model.tensor(tensor).shape.len();
        let convolves = graph.op(first_entry.node) == "Conv";
        if !(2..=if convolves { 5 } else { 3 }).contains(&rank) || from_end >= rank {
            return Err(self.stop(Some(entry.node), value, format!("the weight has {rank} dimensions")));
        }
        let target = self.target(tensor, rank - 1 - from_end, value, entry.node)?;
        self.path.weights.push(target);
        self.path.entries.push(entry);
        self.path.parts.push(Part { target, bias: false, entry, turns: self.turns.clone() });
        Ok(())
    }

    /// Takes the quantised weight that an operator reads, and its bias.
    pub(super) fn quantised(
        &mut self,
        node: NodeId,
        value: ValueId,
        bias: Option<usize>,
        found: Result<Found, String>,
    ) -> Result<(), Stop> {
        let found = found.map_err(|reason| self.not_rounded(node, value, &reason))?;
        if let Some(slot) = bias
            && let Some(bias) = self.graph.input(node, slot)
        {
            self.bias(bias, Use { node, slot }, 0)?;
        }
        self.take(found, node, value)
    }

    fn take(&mut self, found: Found, node: NodeId, value: ValueId) -> Result<(), Stop> {
        let quantised = found.quantised;
        if self.width.is_some_and(|w| w as u64 != quantised.width()) {
            let (shape, width) = (quantised.shape(), self.width.unwrap_or(0));
            return Err(self.stop(Some(node), value, format!("the weight is {shape:?}, d_model is {width}")));
        }
        let target = EditTarget { tensor: found.codes, axis: quantised.axis(), quantised: Some(quantised) };
        self.path.weights.push(target);
        self.path.entries.push(found.entry);
        self.path.parts.push(Part { target, bias: false, entry: found.entry, turns: self.turns.clone() });
        Ok(())
    }

    /// `DequantizeLinear` of an activation: what `QuantizeLinear` made, or a row of a quantised table.
    pub(super) fn dequantised(&mut self, node: NodeId, value: ValueId) -> Result<(), Stop> {
        let graph = self.graph;
        let source = graph.input(node, 0).expect("it has an input");
        let producer = graph.producer(source);
        match producer.map(|n| graph.op(n)) {
            Some("QuantizeLinear") => {
                self.read_only_by(source, node)?;
                let quantize = producer.expect("seen in the match");
                self.follow(graph.input(quantize, 0), quantize);
                Ok(())
            }
            Some("Gather") => {
                self.read_only_by(source, node)?;
                self.path.lookup = true;
                let lookup = producer.expect("seen in the match");
                self.quantised(node, value, None, quantised::dequantized_lookup(graph, node, lookup))
            }
            _ => Err(self.stop(Some(node), value, "the write is dequantised in a way that is not followed")),
        }
    }

    /// A constant bias whose axis `axis`, counted from the end, is `d_model`.
    pub(super) fn bias(&mut self, value: ValueId, entry: Use, axis: usize) -> Result<(), Stop> {
        let graph = self.graph;
        if constant::is_zero(graph, value) {
            return Ok(());
        }
        let mut at = value;
        while graph.tensor(at).is_none() {
            match graph.producer(at).filter(|&n| is_transparent(graph.op(n))).and_then(|n| graph.input(n, 0)) {
                Some(next) => at = next,
                None => return Err(self.stop(Some(entry.node), value, "the bias is no constant of the file")),
            }
        }
        let tensor = graph.tensor(at).expect("the loop ends at a tensor");
        let shape = &graph.model.tensor(tensor).shape;
        let Some(axis) = shape.len().checked_sub(1 + axis).filter(|&axis| shape[axis] > 1) else {
            return Err(self.stop(Some(entry.node), value, "the bias is one number for all channels"));
        };
        let target = self.target(tensor, axis, at, entry.node)?;
        self.path.biases.push(target);
        self.path.entries.push(entry);
        self.path.parts.push(Part { target, bias: true, entry, turns: self.turns.clone() });
        Ok(())
    }

    fn target(&self, tensor: TensorId, axis: usize, value: ValueId, user: NodeId) -> Result<EditTarget, Stop> {
        let found = self.graph.model.tensor(tensor);
        let stop = |reason: String| Err(self.stop(Some(user), value, reason));
        if !found.dtype.is_float() {
            return stop(format!("the weight is stored as {}", found.dtype));
        }
        let halves = matches!(found.dtype, DataType::FLOAT16 | DataType::BFLOAT16);
        match found.storage {
            Storage::Embedded { .. } | Storage::External { .. } => {}
            Storage::Varints { .. } if halves => {}
            _ => return stop("the weight's values are stored in a form that is not read".into()),
        }
        if self.width.is_some_and(|w| found.shape[axis] != w as u64) {
            return stop(format!("the weight is {:?}, d_model is {}", found.shape, self.width.unwrap_or(0)));
        }
        Ok(EditTarget { tensor, axis, quantised: None })
    }
}
