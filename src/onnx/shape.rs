//! Rank and last dimension of what an operator computes, as far as needed to tell whether it keeps rows of `d_model`
//! values whole. The rules are the table's ([`super::ops::Rule`]).

use super::facts::{Scope, constant_fact};
use super::ops::{Elements, Operator, Rule};
use super::proto::NodeProto;
use super::tensor::DataType;

/// Number of steps that a value is followed back. Exporters compute shapes in fewer.
const STEPS: usize = 64;

/// Rank and last dimension of a value, where known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Number of dimensions.
    pub rank: Option<usize>,
    /// Size of the last dimension.
    pub last: Option<u64>,
}

impl Shape {
    fn of_rank(rank: usize) -> Self {
        Self { rank: Some(rank), last: None }
    }
}

/// The axes that a node names.
enum Axes {
    /// The node names none, so that the operator's default holds.
    Absent,
    /// The node names these.
    These(Vec<i64>),
    /// They are computed when the model runs, and not known.
    Unknown,
}

/// The shape of output `slot` of a node.
pub(super) fn output(scope: &dyn Scope, node: &NodeProto, operator: &'static Operator, slot: usize) -> Shape {
    Node { scope, node, operator }.output(slot)
}

/// Whether `axis` is the last one of a value of this rank; negative axes count from the end.
fn is_last(axis: i64, rank: Option<usize>) -> Option<bool> {
    if axis < 0 {
        return Some(axis == -1);
    }
    let rank = i64::try_from(rank?).ok()?;
    Some(axis.checked_add(1) == Some(rank))
}

/// Whether one of `axes` is the last one; `None` where that is not known.
fn meets_last(axes: &[i64], rank: Option<usize>) -> Option<bool> {
    let each: Vec<Option<bool>> = axes.iter().map(|&axis| is_last(axis, rank)).collect();
    if each.contains(&Some(true)) { Some(true) } else { each.iter().all(|one| *one == Some(false)).then_some(false) }
}

/// A node with the scope of what it reads.
struct Node<'a> {
    scope: &'a dyn Scope,
    node: &'a NodeProto,
    operator: &'static Operator,
}

impl Node<'_> {
    fn name(&self, slot: usize) -> Option<&str> {
        self.node.input.get(slot).map(String::as_str).filter(|name| !name.is_empty())
    }

    fn input(&self, slot: usize) -> Shape {
        self.name(slot).map_or_else(Shape::default, |name| self.scope.fact(name).shape)
    }

    fn ints(&self, slot: usize) -> Option<Vec<i64>> {
        self.scope.ints(self.name(slot)?)
    }

    /// Axes as an input of newer versions or an attribute of older ones.
    fn axes(&self, slot: usize) -> Axes {
        match (self.name(slot), self.node.attr("axes")) {
            (Some(name), _) => self.scope.ints(name).map_or(Axes::Unknown, Axes::These),
            (None, Some(attribute)) => Axes::These(attribute.ints.clone()),
            (None, None) => Axes::Absent,
        }
    }

    fn attr_u(&self, name: &str) -> Option<usize> {
        usize::try_from(self.node.attr_i(name, 0)).ok()
    }

    fn output(&self, slot: usize) -> Shape {
        let first = self.input(0);
        match self.operator.shape {
            Rule::KeepAll => first,
            Rule::SkipNorm if slot == 0 || slot == 3 => broadcast(first, self.input(1)),
            Rule::DynamicQuantize if slot > 0 => Shape::of_rank(0),
            Rule::TopK => self.top_k(),
            Rule::Split => self.along_axis(self.node.attr_i("axis", 0)),
            _ if slot > 0 => Shape::default(),
            Rule::Keep | Rule::DynamicQuantize => first,
            Rule::Second => self.input(1),
            Rule::Broadcast => (1..self.node.input.len()).fold(first, |shape, slot| broadcast(shape, self.input(slot))),
            Rule::Product => self.product(),
            Rule::PackedProduct => {
                let n = u64::try_from(self.node.attr_i("N", 0)).ok().filter(|n| *n > 0);
                Shape { rank: first.rank, last: n }
            }
            Rule::Gemm => self.gemm(),
            Rule::Gather => self.gather(),
            Rule::GatherBlockQuantized => self.gather_block_quantized(),
            Rule::GatherNd => self.gather_nd().unwrap_or_default(),
            Rule::Flatten => Shape::of_rank(2),
            Rule::Einsum => self.einsum().unwrap_or_default(),
            Rule::Reshape => self.reshape(),
            Rule::Expand => self.expand(),
            Rule::ShapeInput => self.shape_value(self.name(0)),
            Rule::ShapeAttribute => self.node.attr("shape").map_or_else(Shape::default, |a| sizes(&a.ints)),
            Rule::Transpose => self.transpose(),
            Rule::Concat => self.concat(),
            Rule::Slice => self.slice(),
            Rule::Unsqueeze => self.unsqueeze(),
            Rule::Squeeze => self.squeeze(),
            Rule::Reduce => self.reduce(),
            Rule::ArgReduce => self.fold(&[self.node.attr_i("axis", 0)]),
            Rule::OneHot => self.one_hot(),
            Rule::Tile => {
                let whole = self.ints(1).is_some_and(|repeats| repeats.last() == Some(&1));
                Shape { rank: first.rank, last: first.last.filter(|_| whole) }
            }
            Rule::Rank => Shape { rank: first.rank, last: None },
            Rule::Rank3 => Shape::of_rank(3),
            Rule::Vector => Shape::of_rank(1),
            Rule::ShapeOf => Shape { rank: Some(1), last: shape_length(self.scope, self.node).map(|n| n as u64) },
            Rule::Scalar => Shape::of_rank(0),
            Rule::Constant => constant_fact(self.node).shape,
            Rule::SkipNorm | Rule::Branches | Rule::Unknown => Shape::default(),
        }
    }

    fn top_k(&self) -> Shape {
        let first = self.input(0);
        let k = match self.name(1) {
            Some(_) => self.ints(1).and_then(|k| u64::try_from(*k.first()?).ok()),
            None => self.node.attr("k").and_then(|a| u64::try_from(a.i?).ok()),
        };
        let last = match is_last(self.node.attr_i("axis", -1), first.rank) {
            Some(true) => k,
            Some(false) => first.last,
            None => None,
        };
        Shape { rank: first.rank, last }
    }

    /// The shape of input 0, of which the size along `axis` may change.
    fn along_axis(&self, axis: i64) -> Shape {
        let first = self.input(0);
        Shape { rank: first.rank, last: first.last.filter(|_| is_last(axis, first.rank) == Some(false)) }
    }

    fn gemm(&self) -> Shape {
        let transposed = self.node.attr_i("transB", 0) != 0;
        let stored = self.name(1).and_then(|name| self.scope.dims(name));
        let last = match (transposed, stored) {
            (true, Some(dims)) => dims.first().copied(),
            (true, None) => None,
            (false, _) => self.input(1).last,
        };
        Shape { rank: Some(2), last }
    }

    fn product(&self) -> Shape {
        let (a, b) = (self.input(0), self.input(1));
        let rank = match (a.rank, b.rank) {
            (Some(a), Some(b)) if a >= 2 && b >= 2 => Some(a.max(b)),
            _ => None,
        };
        let plain = self.node.attr_i("transB", 0) == 0 && b.rank.is_some_and(|r| r >= 2);
        // a vector on the left leaves the columns last too, but one axis fewer
        Shape { rank, last: b.last.filter(|_| plain && a.rank != Some(0)) }
    }

    fn gather(&self) -> Shape {
        let (data, indices) = (self.input(0), self.input(1));
        // `GatherBlockQuantized` calls it `gather_axis`
        let axis = self.node.attr_i("axis", self.node.attr_i("gather_axis", 0));
        let rank = data.rank.zip(indices.rank).and_then(|(d, i)| d.checked_add(i)?.checked_sub(1));
        let last = match is_last(axis, data.rank) {
            Some(false) => data.last,
            Some(true) if indices.rank.is_some_and(|rank| rank > 0) => indices.last,
            _ => None,
        };
        Shape { rank, last }
    }

    /// ONNX Runtime's lookup in a quantised table; bytes hold several codes each.
    fn gather_block_quantized(&self) -> Shape {
        let gathered = self.gather();
        let data = self.input(0);
        if is_last(self.node.attr_i("gather_axis", 0), data.rank) != Some(false) {
            return Shape { last: None, ..gathered };
        }
        let bytes = self.name(0).and_then(|name| self.scope.fact(name).dtype) == Some(DataType::UINT8);
        let bits = u64::try_from(self.node.attr_i("bits", 4)).unwrap_or(8).clamp(1, 8);
        let last = gathered.last.and_then(|last| if bytes { Some(last.checked_mul(8)? / bits) } else { Some(last) });
        Shape { last, ..gathered }
    }

    fn gather_nd(&self) -> Option<Shape> {
        let (data, indices) = (self.input(0), self.input(1));
        let batch = self.attr_u("batch_dims")?;
        let Some(deep) = indices.last.and_then(|k| usize::try_from(k).ok()) else { return Some(Shape::default()) };
        let taken = deep.checked_add(batch)?;
        let rank = data.rank.zip(indices.rank).and_then(|(d, i)| d.checked_add(i)?.checked_sub(1)?.checked_sub(taken));
        let whole = data.rank.is_some_and(|rank| taken < rank);
        Some(Shape { rank, last: data.last.filter(|_| whole) })
    }

    /// Rank of the result, and its last dimension where an operand ends with the same letter.
    fn einsum(&self) -> Option<Shape> {
        let equation = self.node.attr("equation")?.s.as_deref()?;
        let equation: String = std::str::from_utf8(equation).ok()?.split_whitespace().collect();
        let (operands, result) = equation.split_once("->")?;
        let rank = (!result.contains('.')).then_some(result.len());
        let last = result.chars().last().filter(char::is_ascii_alphabetic)?;
        let sizes = operands.split(',').enumerate().filter(|(_, operand)| operand.ends_with(last));
        let last = sizes.filter_map(|(slot, _)| self.input(slot).last).next();
        let letters = |text: &str| text.chars().filter(char::is_ascii_alphabetic).count();
        let ellipsis = operands.split(',').position(|operand| operand.starts_with("..."));
        let like = ellipsis.and_then(|slot| {
            let gone = letters(operands.split(',').nth(slot)?);
            self.input(slot).rank?.checked_add(letters(result))?.checked_sub(gone)
        });
        Some(Shape { rank: rank.or(like), last })
    }

    fn reshape(&self) -> Shape {
        let data = self.input(0);
        let target = self.shape_value(self.name(1));
        if self.node.attr_i("allowzero", 0) != 0 {
            return target;
        }
        // 0 copies the dimension at the same place, -1 takes what is left
        let dims = self.ints(1);
        let last = match dims.as_deref() {
            Some([rest @ .., 0 | -1]) if Some(rest.len() + 1) == data.rank && rest.iter().all(|&d| d == 0) => data.last,
            Some([rest @ .., 0]) if Some(rest.len() + 1) == data.rank => data.last,
            _ => target.last,
        };
        Shape { rank: target.rank, last }
    }

    fn expand(&self) -> Shape {
        let (first, target) = (self.input(0), self.shape_value(self.name(1)));
        let wide = match (first.last, target.last) {
            (Some(1), Some(d)) => Some(d),
            (Some(d), _) if d > 1 => Some(d),
            _ => None,
        };
        Shape { rank: first.rank.zip(target.rank).map(|(a, b)| a.max(b)), last: wide }
    }

    fn transpose(&self) -> Shape {
        let first = self.input(0);
        let stored = self.name(0).and_then(|name| self.scope.dims(name));
        let Some(perm) = self.node.attr("perm").map(|a| a.ints.as_slice()) else {
            // the axes in reverse order
            let last = if first.rank == Some(1) { first.last } else { stored.and_then(|dims| dims.first().copied()) };
            return Shape { rank: first.rank, last };
        };
        let from = perm.last().and_then(|&axis| usize::try_from(axis).ok());
        let last = match from {
            Some(from) if from + 1 == perm.len() => first.last,
            Some(from) => stored.and_then(|dims| dims.get(from).copied()),
            None => None,
        };
        Shape { rank: first.rank.or(Some(perm.len())), last }
    }

    fn concat(&self) -> Shape {
        let parts: Vec<Shape> = (0..self.node.input.len()).map(|slot| self.input(slot)).collect();
        let rank = parts.iter().find_map(|part| part.rank);
        let aside = is_last(self.node.attr_i("axis", 0), rank) == Some(false);
        Shape { rank, last: parts.iter().find_map(|part| part.last).filter(|_| aside) }
    }

    fn slice(&self) -> Shape {
        let first = self.input(0);
        let kept = match self.axes(3) {
            Axes::These(axes) => meets_last(&axes, first.rank) == Some(false),
            Axes::Absent | Axes::Unknown => false,
        };
        Shape { rank: first.rank, last: first.last.filter(|_| kept) }
    }

    fn unsqueeze(&self) -> Shape {
        let first = self.input(0);
        let Axes::These(axes) = self.axes(1) else { return Shape::default() };
        let rank = first.rank.and_then(|rank| rank.checked_add(axes.len()));
        // an axis at the front leaves the last one whatever the rank is, unless there was none
        let front = axes.iter().all(|&axis| axis == 0) && first.last.is_some();
        let last = match meets_last(&axes, rank) {
            Some(true) => Some(1),
            Some(false) => first.last,
            None => first.last.filter(|_| front),
        };
        Shape { rank, last }
    }

    fn squeeze(&self) -> Shape {
        let first = self.input(0);
        let axes = match self.axes(1) {
            Axes::These(axes) => axes,
            Axes::Unknown => return Shape::default(),
            // every axis of one element
            Axes::Absent => {
                return match (first.rank, first.last) {
                    (Some(0), _) | (Some(1), Some(1)) => Shape::of_rank(0),
                    (Some(1), Some(_)) => first,
                    _ => Shape::default(),
                };
            }
        };
        let rank = first.rank.and_then(|rank| rank.checked_sub(axes.len()));
        Shape { rank, last: first.last.filter(|_| meets_last(&axes, first.rank) == Some(false)) }
    }

    fn reduce(&self) -> Shape {
        let first = self.input(0);
        match self.axes(1) {
            Axes::These(axes) if !axes.is_empty() => self.fold(&axes),
            Axes::Unknown => {
                let keep = self.node.attr_i("keepdims", 1) != 0;
                Shape { rank: first.rank.filter(|_| keep), last: None }
            }
            // no axes are all axes, unless the node says that they are none
            _ if self.node.attr_i("noop_with_empty_axes", 0) != 0 => first,
            _ if self.node.attr_i("keepdims", 1) != 0 => {
                Shape { rank: first.rank, last: first.rank.filter(|rank| *rank > 0).map(|_| 1) }
            }
            _ => Shape::of_rank(0),
        }
    }

    /// The shape of input 0 with `axes` folded to one element, or dropped.
    fn fold(&self, axes: &[i64]) -> Shape {
        let first = self.input(0);
        let keep = self.node.attr_i("keepdims", 1) != 0;
        let rank = if keep { first.rank } else { first.rank.and_then(|rank| rank.checked_sub(axes.len())) };
        let last = match meets_last(axes, first.rank) {
            Some(true) => keep.then_some(1),
            Some(false) => first.last,
            None => None,
        };
        Shape { rank, last }
    }

    fn one_hot(&self) -> Shape {
        let first = self.input(0);
        let rank = first.rank.and_then(|rank| rank.checked_add(1));
        let depth = self.ints(1).and_then(|d| u64::try_from(*d.first()?).ok());
        let last = match is_last(self.node.attr_i("axis", -1), rank) {
            Some(true) => depth,
            Some(false) => first.last,
            None => None,
        };
        Shape { rank, last }
    }

    /// The shape that a one-dimensional integer value stands for; a last entry of 0 or -1 is unknown.
    fn shape_value(&self, name: Option<&str>) -> Shape {
        let Some(mut name) = name else { return Shape::default() };
        for _ in 0..STEPS {
            if let Some(dims) = self.scope.ints(name) {
                return sizes(&dims);
            }
            let Some((node, operator)) = self.scope.producer(name) else { return Shape::default() };
            match operator.shape {
                _ if matches!(operator.elements, Elements::Same | Elements::Converted) => match node.input.first() {
                    Some(input) => name = input,
                    None => return Shape::default(),
                },
                Rule::ShapeOf if node.attr_i("start", 0) == 0 && node.attr("end").is_none() => {
                    return node.input.first().map_or_else(Shape::default, |input| self.scope.fact(input).shape);
                }
                Rule::Concat => {
                    let lengths: Option<usize> = node.input.iter().map(|part| self.length(part, STEPS)).sum();
                    let last = node.input.last().and_then(|part| match self.scope.ints(part) {
                        Some(dims) => sizes(&dims).last,
                        None => self.dimension(part, STEPS),
                    });
                    return Shape { rank: lengths, last };
                }
                _ => return Shape::default(),
            }
        }
        Shape::default()
    }

    /// Number of elements of a one-dimensional integer value.
    fn length(&self, name: &str, steps: usize) -> Option<usize> {
        if let Some(dims) = self.scope.ints(name) {
            return Some(dims.len());
        }
        let (node, operator) = self.scope.producer(name)?;
        let ints = |slot: usize| node.input.get(slot).and_then(|name| self.scope.ints(name));
        match operator.shape {
            _ if matches!(operator.elements, Elements::Same | Elements::Converted) => {
                self.length(node.input.first()?, steps.checked_sub(1)?)
            }
            Rule::Unsqueeze => Some(1),
            Rule::Reshape => ints(1).filter(|d| d == &[-1] || d == &[1]).map(|_| 1),
            // a single index keeps its own rank
            Rule::Gather => ints(1).map(|d| d.len()),
            Rule::Slice => {
                let (from, to) = (ints(1)?, ints(2)?);
                let (from, to) = (*from.first()?, *to.first()?);
                let length = to.checked_sub(from)?;
                usize::try_from(length).ok().filter(|_| from >= 0 && to < 16)
            }
            Rule::ShapeOf => shape_length(self.scope, node),
            _ => None,
        }
    }

    /// The last dimension of some value that a shape part was read from: `Gather(Shape(x), -1)`.
    fn dimension(&self, name: &str, steps: usize) -> Option<u64> {
        let (node, operator) = self.scope.producer(name)?;
        let source = |shape_of: &NodeProto| Some(self.scope.fact(shape_of.input.first()?).shape);
        match operator.shape {
            _ if matches!(operator.elements, Elements::Same | Elements::Converted) => {
                self.dimension(node.input.first()?, steps.checked_sub(1)?)
            }
            Rule::Unsqueeze | Rule::Squeeze | Rule::Reshape => {
                self.dimension(node.input.first()?, steps.checked_sub(1)?)
            }
            Rule::Gather | Rule::Slice => {
                let (shape_of, reader) = self.scope.producer(node.input.first()?)?;
                if reader.shape != Rule::ShapeOf || node_cuts_shape(shape_of) {
                    return None;
                }
                let source = source(shape_of)?;
                let at = *self.scope.ints(node.input.get(1)?)?.last()?;
                source.last.filter(|_| is_last(at, source.rank) == Some(true))
            }
            Rule::ShapeOf => {
                let source = source(node)?;
                let start = node.attr_i("start", 0);
                source.last.filter(|_| node.attr("end").is_none() && is_last(start, source.rank) == Some(true))
            }
            _ => None,
        }
    }
}

/// Number of sizes that a `Shape` node returns.
fn shape_length(scope: &dyn Scope, node: &NodeProto) -> Option<usize> {
    let rank = i64::try_from(scope.fact(node.input.first()?).shape.rank?).ok()?;
    let at = |attribute: &str, default: i64| {
        let index = node.attr_i(attribute, default);
        if index < 0 { index.saturating_add(rank) } else { index }.clamp(0, rank)
    };
    usize::try_from(at("end", rank) - at("start", 0)).ok()
}

/// Whether a `Shape` node returns a part of the shape only.
fn node_cuts_shape(node: &NodeProto) -> bool {
    node.attr_i("start", 0) != 0 || node.attr("end").is_some()
}

/// The shape with these sizes; a last one of 0 or less is unknown.
fn sizes(dims: &[i64]) -> Shape {
    let last = dims.last().and_then(|&d| u64::try_from(d).ok()).filter(|&d| d > 0);
    Shape { rank: Some(dims.len()), last }
}

/// NumPy broadcasting. Where one size is not known, a known one above 1 wins, as the model would not run otherwise.
fn broadcast(a: Shape, b: Shape) -> Shape {
    let rank = a.rank.zip(b.rank).map(|(a, b)| a.max(b));
    let last = match (a.last, b.last) {
        (Some(1), Some(d)) | (Some(d), Some(1)) => Some(d),
        (Some(x), Some(y)) => (x == y).then_some(x),
        (Some(d), None) if d > 1 || b.rank == Some(0) => Some(d),
        (None, Some(d)) if d > 1 || a.rank == Some(0) => Some(d),
        _ => None,
    };
    Shape { rank, last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Graph;
    use crate::onnx::proto::{AttributeProto, attr_int, node};
    use crate::onnx::testing::{attribute, floats, input, int64s, model, open};

    fn ints(name: &str, values: &[i64]) -> AttributeProto {
        attribute(name, |a| a.ints = values.to_vec())
    }

    /// Rank and last dimension of the output of one node on `x` `[2, ?, 6]`, float32; other names are int64 vectors, or
    /// float32 tensors where they begin with `f` and their dimensions.
    fn shape_of(
        opset: i64,
        op: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> (Option<usize>, Option<u64>) {
        let domain = op.split_once('.').map(|(domain, _)| domain.replace("ms", "com.microsoft"));
        let mut one = node(op.rsplit('.').next().unwrap(), "n", &[], &["y"], attributes);
        one.domain = domain;
        let mut model = model(opset, Vec::new(), &[], &["y"]);
        let graph = model.graph.as_mut().unwrap();
        graph.input = vec![input("x", &[Some(2), None, Some(6)])];
        for (index, text) in inputs.iter().enumerate() {
            let numbers = |text: &str| text.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<i64>>();
            one.input.push(match text.strip_prefix('f') {
                _ if *text == "x" || text.is_empty() => (*text).to_string(),
                Some(dims) => {
                    graph.initializer.push(floats(&format!("i{index}"), &numbers(dims)));
                    format!("i{index}")
                }
                None => {
                    graph.initializer.push(int64s(&format!("i{index}"), &numbers(text)));
                    format!("i{index}")
                }
            });
        }
        graph.node.push(one);
        let opened = open(&model).unwrap();
        let graph = Graph::new(&opened);
        let value = graph.value("y").unwrap();
        (graph.rank_of(value), graph.last_dimension(value))
    }

    #[test]
    fn shapes_follow_the_operators() {
        let axis = |value| vec![attr_int("axis", value)];
        let keep = |value| vec![attr_int("keepdims", value)];
        for (opset, op, inputs, attributes, wanted) in [
            (17, "Relu", &["x"][..], vec![], (Some(3), Some(6))),
            (17, "Mystery", &["x"], vec![], (None, None)),
            (17, "ms.Relu", &["x"], vec![], (None, None)),
            (17, "Add", &["x", "f 6"], vec![], (Some(3), Some(6))),
            (17, "Mul", &["x", "f 4 1 1 1"], vec![], (Some(4), Some(6))),
            (17, "MatMul", &["x", "f 6 5"], vec![], (Some(3), Some(5))),
            (17, "Gemm", &["x", "f 5 6"], vec![attr_int("transB", 1)], (Some(2), Some(5))),
            (17, "ms.MatMulNBits", &["x"], vec![attr_int("N", 9)], (Some(3), Some(9))),
            // no axes are all axes (ONNX specification, ReduceSum)
            (13, "ReduceSum", &["x"], vec![], (Some(3), Some(1))),
            (13, "ReduceSum", &["x", ""], keep(0), (Some(0), None)),
            (13, "ReduceSum", &["x", " "], vec![], (Some(3), Some(1))),
            (13, "ReduceSum", &["x", " "], keep(0), (Some(0), None)),
            (13, "ReduceSum", &["x", " "], vec![attr_int("noop_with_empty_axes", 1)], (Some(3), Some(6))),
            (18, "ReduceMean", &["x", "-1"], vec![], (Some(3), Some(1))),
            (18, "ReduceMean", &["x", "-2"], vec![], (Some(3), Some(6))),
            (17, "ReduceMean", &["x"], vec![ints("axes", &[1]), attr_int("keepdims", 0)], (Some(2), Some(6))),
            (17, "ReduceMean", &["x"], vec![ints("axes", &[0, 1, 2, 2]), attr_int("keepdims", 0)], (None, None)),
            (17, "Squeeze", &["x", "0"], vec![], (Some(2), Some(6))),
            (17, "Squeeze", &["x", "-1"], vec![], (Some(2), None)),
            (17, "Squeeze", &["x", "0 0 0 0"], vec![], (None, Some(6))),
            (17, "Squeeze", &["x"], vec![], (None, None)),
            (17, "Squeeze", &["f 1"], vec![], (Some(0), None)),
            (17, "Unsqueeze", &["x", "-1"], vec![], (Some(4), Some(1))),
            (17, "Unsqueeze", &["x", "-2"], vec![], (Some(4), Some(6))),
            (17, "Transpose", &["x"], vec![ints("perm", &[1, 0, 2])], (Some(3), Some(6))),
            (17, "Transpose", &["x"], vec![ints("perm", &[0, 1, -7])], (Some(3), None)),
            (17, "Transpose", &["f 4 5"], vec![], (Some(2), Some(4))),
            (17, "Gather", &["x", "0 1"], axis(1), (Some(3), Some(6))),
            (17, "Gather", &["x", "0 1"], axis(-1), (Some(3), Some(2))),
            (17, "Gather", &["x", "0 1"], axis(-2), (Some(3), Some(6))),
            (17, "GatherND", &["x", "0 1 0 0 0"], vec![], (None, None)),
            (17, "GatherND", &["x", "0"], vec![], (Some(2), Some(6))),
            (17, "GatherND", &["x", "0"], vec![attr_int("batch_dims", i64::MAX)], (None, None)),
            (17, "Concat", &["x", "x"], axis(-1), (Some(3), None)),
            (17, "Concat", &["x", "x"], axis(-3), (Some(3), Some(6))),
            (17, "Slice", &["x", "0", "1", "1"], vec![], (Some(3), Some(6))),
            (17, "Slice", &["x", "0", "1"], vec![], (Some(3), None)),
            (17, "TopK", &["x", "4"], vec![], (Some(3), Some(4))),
            (17, "Reshape", &["x", "0 0 -1"], vec![], (Some(3), Some(6))),
            (17, "Reshape", &["x", "0 0 0"], vec![attr_int("allowzero", 1)], (Some(3), None)),
            (17, "Reshape", &["x", "-1 12"], vec![], (Some(2), Some(12))),
            (17, "Expand", &["f 1", "3 7"], vec![], (Some(2), Some(7))),
            (17, "ConstantOfShape", &["3 7"], vec![], (Some(2), Some(7))),
            (17, "OneHot", &["x", "9", "f 2"], vec![], (Some(4), Some(9))),
            (17, "ArgMax", &["x"], keep(0), (Some(2), Some(6))),
            (17, "Shape", &["x"], vec![], (Some(1), Some(3))),
            (17, "Shape", &["x"], vec![attr_int("start", 1), attr_int("end", 2)], (Some(1), Some(1))),
            (17, "Shape", &["x"], vec![attr_int("start", -2)], (Some(1), Some(2))),
            (17, "Tile", &["x", "1 2 1"], vec![], (Some(3), Some(6))),
            (17, "Tile", &["x", "1 2 2"], vec![], (Some(3), None)),
            (17, "Range", &["f", "f", "f"], vec![], (Some(1), None)),
            (17, "Loop", &["x"], vec![], (None, None)),
        ] {
            let found = shape_of(opset, op, inputs, attributes.clone());
            assert_eq!(found, wanted, "{op} {inputs:?} {attributes:?}");
        }
    }

    #[test]
    fn broadcasting() {
        let shape = |rank, last| Shape { rank: Some(rank), last };
        for (a, b, wanted) in [
            (shape(3, Some(6)), shape(1, Some(1)), Some(6)),
            (shape(3, Some(6)), shape(3, None), Some(6)),
            (shape(3, Some(1)), shape(3, None), None),
            (shape(3, Some(1)), shape(0, None), Some(1)),
            (shape(1, Some(0)), shape(1, Some(1)), Some(0)),
            (shape(1, Some(2)), shape(1, Some(3)), None),
        ] {
            assert_eq!(broadcast(a, b).last, wanted, "{a:?} {b:?}");
            assert_eq!(broadcast(b, a).last, wanted, "{b:?} {a:?}");
        }
    }
}
