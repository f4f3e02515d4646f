//! What the operators say about the shapes of values: rank and last dimension, as far as needed to tell whether
//! an operator keeps rows of `d_model` values whole. Declared shapes are asked only for the rank, and only where
//! the operators are silent: exporters contradict themselves there.

use super::graph::{Graph, NodeId, ValueId};
use super::tensor::DataType;

/// Rank and last dimension of a value, where known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Number of dimensions.
    pub rank: Option<usize>,
    /// Size of the last dimension.
    pub last: Option<u64>,
}

/// Shapes of all values, by id.
pub(super) fn infer(graph: &Graph<'_>) -> Vec<Shape> {
    let declared = graph.declared_shapes();
    let mut shapes: Vec<Shape> = (0..graph.n_values())
        .map(ValueId)
        .map(|id| match (graph.tensor_ref(id), declared.get(graph.name(id))) {
            (Some(tensor), _) => Shape { rank: Some(tensor.shape.len()), last: tensor.shape.last().copied() },
            (None, Some(dims)) if graph.producer(id).is_none() => {
                let last = dims.last().copied().flatten().and_then(|d| u64::try_from(d).ok());
                Shape { rank: Some(dims.len()), last }
            }
            (None, Some(dims)) => Shape { rank: Some(dims.len()), last: None },
            (None, None) => Shape::default(),
        })
        .collect();
    let mut order: Vec<NodeId> = graph.nodes().filter(|&n| graph.rank(n) != usize::MAX).collect();
    order.sort_by_key(|&n| graph.rank(n));
    for node in order {
        for slot in 0..graph.node(node).output.len() {
            let Some(output) = graph.output(node, slot) else { continue };
            if graph.tensor_ref(output).is_some() {
                continue;
            }
            let found = Node { graph, shapes: &shapes, node }.output(slot);
            let known = shapes[output.0];
            shapes[output.0] = Shape { rank: found.rank.or(known.rank), last: found.last };
        }
    }
    shapes
}

/// A node with the shapes of what it reads.
struct Node<'a> {
    graph: &'a Graph<'a>,
    shapes: &'a [Shape],
    node: NodeId,
}

impl Node<'_> {
    fn input(&self, slot: usize) -> Shape {
        self.graph.input(self.node, slot).map_or_else(Shape::default, |v| self.shapes[v.0])
    }

    fn ints(&self, slot: usize, attribute: &str) -> Option<Vec<i64>> {
        match self.graph.input(self.node, slot) {
            Some(value) => self.graph.const_ints(value),
            None => self.graph.node(self.node).attr(attribute).map(|a| a.ints.clone()),
        }
    }

    fn output(&self, slot: usize) -> Shape {
        let proto = self.graph.node(self.node);
        let first = self.input(0);
        match self.graph.op(self.node) {
            "Cast" | "Identity" | "Dropout" | "Softmax" | "Sigmoid" | "Tanh" | "Relu" | "Gelu" | "FastGelu"
            | "BiasGelu" | "QuickGelu" | "Neg" | "Sqrt" | "Exp" | "Log" | "Erf" | "Reciprocal" | "Abs" | "Clip"
            | "Trilu" | "CumSum" | "ScatterElements" | "ScatterND" | "RotaryEmbedding" | "LeakyRelu" | "Elu"
            | "Softplus" | "Swish" | "Not" | "DequantizeLinear" | "QuantizeLinear" | "Sin" | "Cos"
                if slot == 0 =>
            {
                first
            }
            "LayerNormalization" | "SimplifiedLayerNormalization" | "RMSNormalization" if slot == 0 => first,
            "SkipSimplifiedLayerNormalization" | "SkipLayerNormalization" if slot == 0 || slot == 3 => {
                broadcast(first, self.input(1))
            }
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" | "Equal" | "Less" | "Greater" | "And" | "Or"
            | "Sum" | "Mean" | "PRelu" => {
                (1..proto.input.len()).fold(first, |shape, slot| broadcast(shape, self.input(slot)))
            }
            "Where" => broadcast(first, broadcast(self.input(1), self.input(2))),
            "MatMul" | "FusedMatMul" => self.product(),
            "MatMulNBits" | "MatMulBnb4" => {
                let n = proto.attr_i("N", 0);
                Shape { rank: first.rank, last: u64::try_from(n).ok().filter(|n| *n > 0) }
            }
            "MatMulInteger" | "DynamicQuantizeMatMul" | "MatMulIntegerToFloat" => {
                let weight = self.input(1);
                Shape { rank: first.rank, last: weight.last.filter(|_| weight.rank == Some(2)) }
            }
            "Gemm" => {
                let weight = self.graph.input(self.node, 1).and_then(|v| self.graph.tensor_ref(v));
                let axis = usize::from(proto.attr_i("transB", 0) == 0);
                let last = weight.and_then(|t| t.shape.get(axis).copied());
                let plain = if proto.attr_i("transB", 0) == 0 { self.input(1).last } else { None };
                Shape { rank: Some(2), last: last.or(plain) }
            }
            "MoE" | "QMoE" if slot == 0 => first,
            "DynamicQuantizeLinear" => {
                if slot == 0 {
                    first
                } else {
                    Shape { rank: Some(0), last: None }
                }
            }
            "GatherBlockQuantized" => self.gather_block_quantized(),
            "Gather" => self.gather(),
            "GatherND" => {
                let indices = self.input(1);
                let batch = usize::try_from(proto.attr_i("batch_dims", 0)).unwrap_or(0);
                let deep = indices.last.and_then(|k| usize::try_from(k).ok());
                let rank = first.rank.zip(indices.rank).zip(deep).map(|((d, i), k)| d + i - 1 - k - batch);
                let whole = first.rank.zip(deep).is_some_and(|(rank, k)| batch + k < rank);
                Shape { rank, last: first.last.filter(|_| whole) }
            }
            "TopK" => {
                let axis = proto.attr_i("axis", -1);
                let along_last = axis == -1 || first.rank.is_some_and(|rank| axis + 1 == rank as i64);
                let k = self.ints(1, "k").and_then(|k| u64::try_from(*k.first()?).ok());
                Shape { rank: first.rank, last: if along_last { k } else { first.last } }
            }
            "Flatten" => Shape { rank: Some(2), last: None },
            "Einsum" => self.einsum().unwrap_or_default(),
            "GatherElements" => self.input(1),
            "Reshape" => self.reshape(),
            "Expand" => {
                let target = self.target();
                let wide = match (first.last, target.last) {
                    (Some(1), Some(d)) => Some(d),
                    (Some(d), _) if d > 1 => Some(d),
                    _ => None,
                };
                Shape { rank: first.rank.zip(target.rank).map(|(a, b)| a.max(b)), last: wide }
            }
            "ConstantOfShape" => self.shape_value(self.graph.input(self.node, 0)),
            "Transpose" => {
                let rank = first.rank;
                let perm = proto.attr("perm").map(|a| a.ints.clone());
                let kept = perm.as_ref().is_some_and(|p| p.last().is_some_and(|&l| l as usize + 1 == p.len()));
                let moved = self.graph.input(self.node, 0).and_then(|v| self.graph.tensor_ref(v)).and_then(|t| {
                    let from = perm.as_ref().map_or(Some(0), |p| p.last().and_then(|&l| usize::try_from(l).ok()))?;
                    t.shape.get(from).copied()
                });
                Shape { rank: rank.or(perm.map(|p| p.len())), last: if kept { first.last } else { moved } }
            }
            "Concat" | "Split" => {
                let axis = proto.attr_i("axis", 0);
                let along_last = first.rank.is_none_or(|rank| axis == -1 || axis + 1 == rank as i64);
                Shape { rank: first.rank, last: first.last.filter(|_| !along_last) }
            }
            "Slice" => {
                let touched = self.ints(3, "axes").is_none_or(|axes| {
                    axes.iter().any(|&a| a == -1 || first.rank.is_none_or(|rank| a + 1 == rank as i64))
                });
                Shape { rank: first.rank, last: first.last.filter(|_| !touched) }
            }
            "Unsqueeze" => {
                let Some(axes) = self.ints(1, "axes") else { return Shape::default() };
                let rank = first.rank.map(|r| r + axes.len());
                let at_end = axes.iter().any(|&a| a == -1 || rank.is_some_and(|rank| a + 1 == rank as i64));
                let sure = rank.is_some() || axes.iter().all(|&a| a == 0);
                Shape { rank, last: if at_end { Some(1) } else { first.last.filter(|_| sure) } }
            }
            "Squeeze" => {
                let Some(axes) = self.ints(1, "axes") else { return Shape::default() };
                let at_end = axes.iter().any(|&a| first.rank.is_none_or(|rank| a == -1 || a + 1 == rank as i64));
                Shape { rank: first.rank.map(|r| r.saturating_sub(axes.len())), last: first.last.filter(|_| !at_end) }
            }
            op if op.starts_with("Reduce") => {
                let keep = proto.attr_i("keepdims", 1) != 0;
                let Some(axes) = self.ints(1, "axes") else { return Shape::default() };
                let at_end = axes.iter().any(|&a| first.rank.is_none_or(|rank| a == -1 || a + 1 == rank as i64));
                let rank = first.rank.map(|r| if keep { r } else { r.saturating_sub(axes.len()) });
                let last = match (at_end, keep) {
                    (true, true) => Some(1),
                    (true, false) => None,
                    (false, _) => first.last,
                };
                Shape { rank, last }
            }
            "GroupQueryAttention" | "MultiHeadAttention" | "DecoderMaskedMultiHeadAttention" if slot == 0 => {
                Shape { rank: Some(3), last: None }
            }
            _ => Shape::default(),
        }
    }

    /// Rank of the result, and its last dimension where an operand ends with the same letter.
    fn einsum(&self) -> Option<Shape> {
        let equation = self.graph.node(self.node).attr("equation")?.s.clone()?;
        let equation: String = String::from_utf8(equation).ok()?.split_whitespace().collect();
        let (operands, result) = equation.split_once("->")?;
        let rank = (!result.contains('.')).then_some(result.len());
        let last = result.chars().last().filter(char::is_ascii_alphabetic)?;
        let sizes = operands.split(',').enumerate().filter(|(_, operand)| operand.ends_with(last));
        let last = sizes.filter_map(|(slot, _)| self.input(slot).last).next();
        let ellipsis = operands.split(',').position(|operand| operand.starts_with("..."));
        let like = ellipsis.and_then(|slot| {
            let letters = operands.split(',').nth(slot)?.chars().filter(char::is_ascii_alphabetic).count();
            let kept = result.chars().filter(char::is_ascii_alphabetic).count();
            Some(self.input(slot).rank? + kept - letters)
        });
        Some(Shape { rank: rank.or(like), last })
    }

    fn product(&self) -> Shape {
        let (a, b) = (self.input(0), self.input(1));
        let rank = match (a.rank, b.rank) {
            (Some(a), Some(b)) if a >= 2 && b >= 2 => Some(a.max(b)),
            _ => None,
        };
        let plain = self.graph.node(self.node).attr_i("transB", 0) == 0 && b.rank.is_some_and(|r| r >= 2);
        Shape { rank, last: b.last.filter(|_| plain) }
    }

    fn gather(&self) -> Shape {
        let (data, indices) = (self.input(0), self.input(1));
        let axis = self.graph.node(self.node).attr_i("axis", 0);
        let rank = data.rank.zip(indices.rank).map(|(d, i)| d + i - 1);
        let along_last = axis == -1 || data.rank.is_none_or(|rank| axis + 1 == rank as i64);
        Shape { rank, last: if along_last { None } else { data.last } }
    }

    /// ONNX Runtime's lookup in a quantised table; bytes hold several codes each.
    fn gather_block_quantized(&self) -> Shape {
        let gathered = self.gather();
        let bytes = self.graph.input(self.node, 0).and_then(|v| self.graph.elem_type(v)) == Some(DataType::UINT8);
        let bits = u64::try_from(self.graph.node(self.node).attr_i("bits", 4)).unwrap_or(8).clamp(1, 8);
        Shape { last: gathered.last.map(|last| if bytes { last * 8 / bits } else { last }), ..gathered }
    }

    fn reshape(&self) -> Shape {
        let data = self.input(0);
        let target = self.target();
        // 0 copies the dimension at the same place, -1 takes what is left
        let dims = self.graph.input(self.node, 1).and_then(|v| self.graph.const_ints(v));
        let last = match dims.as_deref() {
            Some([rest @ .., 0 | -1]) if Some(rest.len() + 1) == data.rank && rest.iter().all(|&d| d == 0) => data.last,
            Some([rest @ .., 0]) if Some(rest.len() + 1) == data.rank => data.last,
            _ => target.last,
        };
        Shape { rank: target.rank, last }
    }

    /// Shape that input 1 asks for; a last entry of 0 or -1 is unknown.
    fn target(&self) -> Shape {
        self.shape_value(self.graph.input(self.node, 1))
    }

    /// The shape that a one-dimensional integer value stands for.
    fn shape_value(&self, value: Option<ValueId>) -> Shape {
        let graph = self.graph;
        let Some(mut value) = value else { return Shape::default() };
        loop {
            if let Some(dims) = graph.const_ints(value) {
                let last = dims.last().and_then(|&d| u64::try_from(d).ok()).filter(|&d| d > 0);
                return Shape { rank: Some(dims.len()), last };
            }
            let Some(node) = graph.producer(value) else { return Shape::default() };
            match graph.op(node) {
                "Cast" | "Identity" => match graph.input(node, 0) {
                    Some(input) => value = input,
                    None => return Shape::default(),
                },
                "Shape" if graph.node(node).attr_i("start", 0) == 0 && graph.node(node).attr("end").is_none() => {
                    return graph.input(node, 0).map_or_else(Shape::default, |v| self.shapes[v.0]);
                }
                "Concat" => {
                    let parts: Vec<ValueId> = graph.node(node).input.iter().filter_map(|n| graph.value(n)).collect();
                    let tail = parts.last().copied();
                    let lengths: Option<usize> = parts.iter().map(|&part| self.length(part)).sum();
                    let last = tail.and_then(|part| match graph.const_ints(part) {
                        Some(dims) => dims.last().and_then(|&d| u64::try_from(d).ok()).filter(|&d| d > 0),
                        None => self.dimension(part),
                    });
                    return Shape { rank: lengths, last };
                }
                _ => return Shape::default(),
            }
        }
    }

    /// Number of elements of a one-dimensional integer value.
    fn length(&self, value: ValueId) -> Option<usize> {
        let graph = self.graph;
        if let Some(dims) = graph.const_ints(value) {
            return Some(dims.len());
        }
        let node = graph.producer(value)?;
        match graph.op(node) {
            "Cast" | "Identity" => self.length(graph.input(node, 0)?),
            "Unsqueeze" => Some(1),
            "Reshape" => graph.const_ints(graph.input(node, 1)?).filter(|d| d == &[-1] || d == &[1]).map(|_| 1),
            // a single index keeps its own rank
            "Gather" => graph.const_ints(graph.input(node, 1)?).map(|d| d.len()),
            "Slice" => {
                let (from, to) = (graph.const_ints(graph.input(node, 1)?)?, graph.const_ints(graph.input(node, 2)?)?);
                let length = (*to.first()?).checked_sub(*from.first()?)?;
                usize::try_from(length).ok().filter(|_| from[0] >= 0 && to[0] < 16)
            }
            "Shape" => {
                let rank = self.shapes[graph.input(node, 0)?.0].rank;
                let at = |attribute: &str, default: Option<i64>| {
                    let index = graph.node(node).attr(attribute).and_then(|a| a.i).or(default)?;
                    if index < 0 { Some(index + rank? as i64) } else { Some(index) }
                };
                let end = at("end", rank.map(|rank| rank as i64))?;
                usize::try_from(end - at("start", Some(0))?).ok()
            }
            _ => None,
        }
    }

    /// The last dimension of some value that a shape part was read from: `Gather(Shape(x), -1)`.
    fn dimension(&self, value: ValueId) -> Option<u64> {
        let graph = self.graph;
        let node = graph.producer(value)?;
        match graph.op(node) {
            "Unsqueeze" | "Squeeze" | "Cast" | "Identity" | "Reshape" => self.dimension(graph.input(node, 0)?),
            "Gather" | "Slice" => {
                let shape = graph.producer(graph.input(node, 0)?).filter(|&n| graph.op(n) == "Shape")?;
                let source = self.shapes[graph.input(shape, 0)?.0];
                let at = *graph.const_ints(graph.input(node, 1)?)?.last()?;
                let is_last = at == -1 || source.rank.is_some_and(|rank| at + 1 == rank as i64);
                source.last.filter(|_| is_last)
            }
            "Shape" => {
                let source = self.shapes[graph.input(node, 0)?.0];
                let start = graph.node(node).attr_i("start", 0);
                let is_last = start == -1 || source.rank.is_some_and(|rank| start + 1 == rank as i64);
                source.last.filter(|_| is_last)
            }
            _ => None,
        }
    }
}

/// NumPy broadcasting of the last dimension: a known size above 1 wins, as the model would not run otherwise.
fn broadcast(a: Shape, b: Shape) -> Shape {
    let rank = a.rank.zip(b.rank).map(|(a, b)| a.max(b));
    let scalar = |s: Shape| s.rank == Some(0);
    let last = match (a.last, b.last) {
        (Some(d), _) | (_, Some(d)) if d > 1 => Some(d),
        (Some(1), Some(1)) => Some(1),
        _ if scalar(a) => b.last,
        _ if scalar(b) => a.last,
        _ => None,
    };
    let last = match (a.last, b.last) {
        (Some(x), Some(y)) => Some(x.max(y)),
        _ => last,
    };
    Shape { rank, last }
}
