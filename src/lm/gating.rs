//! Gated terms ([`GatedTerm`]) as standard ONNX operators on a value of the stream.
//!
//! The term is computed in float32 from the sum that is `resid_pre` of its layer, and added to it. Where an operator
//! makes that sum alone, every reader of it reads the changed one. Where the sum is made inside a fused add-and-norm node,
//! the term joins the write that this node adds, so that its norm sees the term too.

use std::collections::BTreeSet;

use super::Refusal;
use super::projection::write_type;
use super::residual::{ResidualStream, SKIP_SUM_OUTPUT};
use super::rows::root;
use super::sum::{StreamValue, bias_use, skip_norm_bias};
use crate::edit::{GatedTerm, RadialBasis, Reading, Shape};
use crate::onnx::patch::{Patch, Place};
use crate::onnx::proto::{AttributeProto, TensorProto, attr_int, attr_ints, node};
use crate::onnx::{DataType, Graph, NodeId, Use, ValueId};

/// Takes a constant that the nodes read into a patch.
pub type Store<'s> = dyn FnMut(&mut Patch, TensorProto) + 's;

/// Adds to `patch` the nodes of `terms`, in each layer in their order: each reads the stream as the one before it left
/// it. Names start with `lancet.gate.` and the layer; `branch` ends them where a model computes its stream twice.
/// Returns the name of the value that each term changes.
///
/// # Errors
/// A layer that the model does not have, or a sum that nothing can be added to.
pub fn gate(
    graph: &Graph<'_>,
    stream: &ResidualStream,
    terms: &[GatedTerm],
    branch: &str,
    (patch, store): (&mut Patch, &mut Store<'_>),
) -> Result<Vec<String>, Refusal> {
    let mut changed = vec![String::new(); terms.len()];
    let layers: BTreeSet<usize> = terms.iter().map(GatedTerm::layer).collect();
    for layer in layers {
        let here: Vec<usize> = (0..terms.len()).filter(|&index| terms[index].layer() == layer).collect();
        let site = Site::of(graph, stream, layer)?;
        let mut name = site.enter(graph, patch, &format!("gate.{layer}{branch}"));
        for (count, &index) in here.iter().enumerate() {
            let number = if count == 0 { String::new() } else { format!(".{}", count + 1) };
            let tag = format!("gate.{layer}{number}{branch}");
            let result = match count + 1 == here.len() {
                true => site.result(graph, &tag),
                false => graph.fresh_name(&format!("lancet.{tag}.changed")),
            };
            let mut emit = Emit { graph, term: &terms[index], tag: &tag, site: &site, store, patch };
            let sum = emit.sum(&name);
            emit.add_term(&sum, &name, &result);
            changed[index] = site.name(graph);
            name = result;
        }
        site.leave(patch, &name);
    }
    Ok(changed)
}

/// What an input reads, where `patch` may have led it elsewhere; empty where it reads nothing.
fn input(graph: &Graph<'_>, patch: &Patch, at: Use) -> String {
    let led = patch.rewires.iter().find(|(one, _)| *one == at).map(|(_, name)| name.clone());
    led.unwrap_or_else(|| graph.input(at.node, at.slot).map_or_else(String::new, |value| graph.name(value).to_string()))
}

/// Where a value of the stream can be changed for all that read it.
struct Site {
    at: At,
    /// The order of its axes in which channels lie along the last one.
    order: Option<Vec<usize>>,
    /// Element type of the stream; `None` where it is unknown.
    dtype: Option<DataType>,
}

#[derive(Clone, Copy)]
enum At {
    /// A named value, with the output that makes it.
    Value { value: ValueId, producer: NodeId, slot: usize },
    /// The sum inside a fused add-and-norm node, by its input that is a write and not the stream so far.
    Fused(Use),
}

impl Site {
    /// `resid_pre` of a layer.
    fn of(graph: &Graph<'_>, stream: &ResidualStream, layer: usize) -> Result<Self, Refusal> {
        let Some(block) = stream.blocks.get(layer) else {
            let layers = stream.blocks.len();
            return Err(Refusal {
                node: "(graph)".into(),
                op: String::new(),
                tensor: format!("resid_pre of layer {layer}"),
                reason: format!("the edit has a gated term at layer {layer}, and the model has {layers} layers"),
                hint: "give an edit that was made for this model".into(),
            });
        };
        let layout = stream.layout_of(block.pre);
        let (at, order) = match block.pre {
            StreamValue::Sum(node) => (At::fused(graph, stream, layer, node), layout.rows_order(false)),
            StreamValue::Value(value) => {
                // whatever hands the sum on, as a cast does for the norm alone, hands the changed one on
                let source = root(graph, value);
                let fused = StreamValue::Value(source).source(graph);
                let last = graph.last_dimension(source).is_none_or(|d| d == stream.d_model as u64);
                if source != value && !(last && layout.from_end() == 0) {
                    let reason = "which axis of this value of the stream holds the channels is unknown";
                    return Err(refused(graph, source, reason));
                }
                let at = match fused {
                    StreamValue::Sum(node) => At::fused(graph, stream, layer, node),
                    StreamValue::Value(source) => At::of(graph, source)?,
                };
                (at, layout.rows_order(false).filter(|_| source == value))
            }
        };
        let write = || stream.last_before(layer).and_then(|write| write_type(graph, write));
        Ok(Self { at, order, dtype: at.dtype(graph).or_else(write) })
    }

    fn place(&self) -> Place {
        match self.at {
            At::Value { producer, .. } => Place::After(producer),
            At::Fused(at) => Place::Before(at.node),
        }
    }

    /// The name of the value that changes.
    fn name(&self, graph: &Graph<'_>) -> String {
        match self.at {
            At::Value { value, .. } => graph.name(value).to_string(),
            At::Fused(at) => match graph.output(at.node, SKIP_SUM_OUTPUT) {
                Some(sum) => graph.name(sum).to_string(),
                None => graph.node(at.node).label().to_string(),
            },
        }
    }

    /// Frees the place for the terms. Returns the name of what they are added to.
    fn enter(&self, graph: &Graph<'_>, patch: &mut Patch, tag: &str) -> String {
        match self.at {
            At::Value { producer, slot, .. } => {
                let raw = graph.fresh_name(&format!("lancet.{tag}.raw"));
                patch.renames.push((producer, slot, raw.clone()));
                raw
            }
            At::Fused(at) => input(graph, patch, at),
        }
    }

    /// The name of what the last term makes.
    fn result(&self, graph: &Graph<'_>, tag: &str) -> String {
        match self.at {
            At::Value { value, .. } => graph.name(value).to_string(),
            At::Fused(_) => graph.fresh_name(&format!("lancet.{tag}.changed")),
        }
    }

    /// Leads the readers to what the last term made.
    fn leave(&self, patch: &mut Patch, result: &str) {
        if let At::Fused(at) = self.at {
            patch.rewires.retain(|(other, _)| *other != at);
            patch.rewires.push((at, result.to_string()));
        }
    }
}

impl At {
    fn of(graph: &Graph<'_>, value: ValueId) -> Result<Self, Refusal> {
        let Some(producer) = graph.producer(value) else {
            let reason = "nothing in the graph makes this value of the stream, so no term can be added to it";
            return Err(refused(graph, value, reason));
        };
        let slot = graph.node(producer).output.iter().position(|name| name == graph.name(value));
        match (skip_norm_bias(graph.op(producer)).is_some(), slot) {
            (false, Some(slot)) => Ok(Self::Value { value, producer, slot }),
            _ => Err(refused(graph, value, "the stream is no sum there that a term could be added to")),
        }
    }

    /// Terms join the write: what is added must be computed from the stream for the sum to be traced ([`super::residual`]).
    fn fused(graph: &Graph<'_>, stream: &ResidualStream, layer: usize, node: NodeId) -> Self {
        let before = layer.checked_sub(1).and_then(|before| stream.blocks.get(before));
        let known: Vec<StreamValue> =
            before.iter().flat_map(|block| [Some(block.pre), block.mid]).flatten().map(|v| v.source(graph)).collect();
        let is_stream = |slot: &usize| {
            let value = graph.input(node, *slot);
            value.is_some_and(|value| known.contains(&StreamValue::Value(value).source(graph)))
        };
        Self::Fused(Use { node, slot: (0..2).find(|slot| !is_stream(slot)).unwrap_or(0) })
    }

    fn dtype(self, graph: &Graph<'_>) -> Option<DataType> {
        match self {
            Self::Value { value, .. } => graph.elem_type(value),
            Self::Fused(Use { node, .. }) => {
                let terms = (0..2).filter_map(|slot| graph.input(node, slot));
                terms.chain(graph.output(node, 0)).find_map(|value| graph.elem_type(value))
            }
        }
    }
}

fn refused(graph: &Graph<'_>, value: ValueId, reason: &str) -> Refusal {
    let node = graph.producer(value).or_else(|| graph.uses(value).first().map(|one| one.node));
    Refusal::on_stream(graph, node.unwrap_or(NodeId(0)), Some(value), reason)
}

/// The nodes of one term while they are made.
struct Emit<'a, 's> {
    graph: &'a Graph<'a>,
    term: &'a GatedTerm,
    tag: &'a str,
    site: &'a Site,
    store: &'a mut Store<'s>,
    patch: &'a mut Patch,
}

impl Emit<'_, '_> {
    fn label(&self, part: &str) -> String {
        self.graph.fresh_name(&format!("lancet.{}.{part}", self.tag))
    }

    /// A node; its output is named after `part`.
    fn node(&mut self, op: &str, part: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.label(part);
        let made = node(op, &output, inputs, &[&output], attributes);
        self.patch.nodes.push((self.site.place(), made));
        output
    }

    /// A float32 constant.
    fn constant(&mut self, part: &str, values: &[f64], dims: Vec<i64>) -> String {
        let name = self.label(part);
        let tensor = TensorProto {
            name: Some(name.clone()),
            dims,
            data_type: Some(DataType::FLOAT.0),
            raw_data: Some(values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect()),
            ..Default::default()
        };
        (self.store)(self.patch, tensor);
        name
    }

    /// The stream that the term reads, where `name` is what it is added to.
    fn sum(&mut self, name: &str) -> String {
        let At::Fused(at) = self.site.at else { return name.to_string() };
        let other = input(self.graph, self.patch, Use { slot: 1 - at.slot, ..at });
        let sum = self.node("Add", "sum", &[name, &other], vec![]);
        let bias = bias_use(self.graph, at.node).map(|bias| input(self.graph, self.patch, bias));
        match bias.filter(|bias| !bias.is_empty()) {
            Some(bias) => self.node("Add", "biased_sum", &[&sum, &bias], vec![]),
            None => sum,
        }
    }

    /// The radial basis functions at `x`: `|y - z|^2` of `y = P x + t` is taken apart as `|y|^2 - 2 y.z + |z|^2`.
    fn radial(&mut self, x: &str, basis: &RadialBasis, label: &dyn Fn(&str) -> String) -> String {
        let (k, m) = (basis.dims(), basis.count());
        let dims = |rows: usize, columns: usize| vec![rows as i64, columns as i64];
        let columns = |values: &[f64], rows: usize| -> Vec<f64> {
            let columns = values.len() / rows;
            (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
        };
        let projection = self.constant(&label("projection"), &columns(&basis.projection, k), dims(basis.width(), k));
        let shift = self.constant(&label("shift"), &basis.shift, vec![k as i64]);
        let twice: Vec<f64> = columns(&basis.centers, m).iter().map(|z| 2.0 * z).collect();
        let centers = self.constant(&label("centers"), &twice, dims(k, m));
        let squares: Vec<f64> = basis.squares().iter().map(|square| -square).collect();
        let squares = self.constant(&label("squares"), &squares, vec![m as i64]);
        let ones = self.constant(&label("ones"), &vec![1.0; k], dims(k, 1));
        let weights = self.constant(&label("weights"), &basis.weights, dims(m, 1));
        let projected = self.node("MatMul", &label("projected"), &[x, &projection], vec![]);
        let y = self.node("Add", &label("placed"), &[&projected, &shift], vec![]);
        let squared = self.node("Mul", &label("squared"), &[&y, &y], vec![]);
        let length = self.node("MatMul", &label("length"), &[&squared, &ones], vec![]);
        let products = self.node("MatMul", &label("products"), &[&y, &centers], vec![]);
        let nearness = self.node("Add", &label("nearness"), &[&products, &squares], vec![]);
        let exponent = self.node("Sub", &label("exponent"), &[&nearness, &length], vec![]);
        let each = self.node("Exp", &label("each"), &[&exponent], vec![]);
        self.node("MatMul", &label("product"), &[&each, &weights], vec![])
    }

    /// `result = to + term(sum)`.
    fn add_term(&mut self, sum: &str, to: &str, result: &str) {
        let (term, dtype, order) = (self.term, self.site.dtype, self.site.order.clone());
        let width = term.vector().len() as i64;
        let cast = |dtype: DataType| vec![attr_int("to", i64::from(dtype.0))];
        let perm = |order: &[usize]| vec![attr_ints("perm", order.iter().map(|&axis| axis as i64).collect())];
        let mut x = sum.to_string();
        if dtype != Some(DataType::FLOAT) {
            x = self.node("Cast", "wide", &[&x], cast(DataType::FLOAT));
        }
        if let Some(order) = &order {
            x = self.node("Transpose", "in_rows", &[&x], perm(order));
        }
        let mut amount: Option<String> = None;
        for (index, factor) in term.factors().iter().enumerate() {
            let label = |part: &str| format!("{part}.{index}");
            let offset = self.constant(&label("offset"), &[factor.offset], vec![1]);
            let read = match &factor.reading {
                Reading::Linear(weights) => {
                    let column = self.constant(&label("weights"), weights, vec![width, 1]);
                    self.node("MatMul", &label("product"), &[&x, &column], vec![])
                }
                Reading::Radial(basis) => self.radial(&x, basis, &label),
            };
            let mut value = self.node("Add", &label("shifted"), &[&read, &offset], vec![]);
            if factor.shape != Shape::Identity {
                value = self.node("Relu", &label("above"), &[&value], vec![]);
            }
            if factor.shape == Shape::Clipped {
                let one = self.constant(&label("one"), &[1.0], vec![1]);
                value = self.node("Min", &label("clipped"), &[&value, &one], vec![]);
            }
            amount = Some(match amount {
                None => value,
                Some(before) => self.node("Mul", &label("amount"), &[&before, &value], vec![]),
            });
        }
        let amount = amount.expect("a term has a factor");
        let row = self.constant("vector", term.vector(), vec![width]);
        let mut along = self.node("Mul", "along", &[&amount, &row], vec![]);
        if let Some(order) = &order {
            let mut back = vec![0; order.len()];
            order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
            along = self.node("Transpose", "from_rows", &[&along], perm(&back));
        }
        along = match dtype {
            Some(DataType::FLOAT) => along,
            Some(dtype) => self.node("Cast", "narrow", &[&along], cast(dtype)),
            None => self.node("CastLike", "narrow", &[&along, to], vec![]),
        };
        let name = self.label("result");
        self.patch.nodes.push((self.site.place(), node("Add", &name, &[to, &along], &[result], vec![])));
    }
}
