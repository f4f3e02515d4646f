//! The projection `x <- x - (x.r) r` (Wang et al. 2025, eq. 4), along one or more orthonormal directions, and the addition `x <- x + v` (eq. 5) as standard ONNX
//! operators.

use super::residual::{Contribution, SKIP_SUM_OUTPUT};
use super::{Refusal, Role};
use crate::onnx::graph::Graph;
use crate::onnx::patch::{Patch, Place};
use crate::onnx::proto::{NodeProto, TensorProto, attr_int, attr_ints, node};
use crate::onnx::{DataType, Use, ValueId};

/// Where the directions come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectionSource {
    /// Graph inputs of these names, at least one: float32 `[batch, 1, d_model]`, one direction a row of the batch; a zero
    /// row changes nothing. They are projected out one after the other.
    Inputs(Vec<String>),
    /// Initializers, a pair for each direction, in the type of the values they are applied to. They are projected out one
    /// after the other.
    Constants(Vec<Constant>),
}

/// A direction in two initializers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constant {
    /// Name of the one that holds it as a column, `[d_model, 1]`.
    pub column: String,
    /// Name of the one that holds it as a row, `[d_model]`, times its strength.
    pub row: String,
}

/// Where an added vector comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdditionSource {
    /// A graph input of this name: float32 `[batch, 1, d_model]`, one vector a row; a zero row changes nothing.
    Input(String),
    /// An initializer `[d_model]` in the type of the values that it is added to.
    Constant(String),
}

impl DirectionSource {
    fn is_fed(&self) -> bool {
        matches!(self, Self::Inputs(_))
    }
}

impl AdditionSource {
    fn is_fed(&self) -> bool {
        matches!(self, Self::Input(_))
    }
}

/// What is done to a contribution: the projection, then the addition.
#[derive(Debug, Clone, Copy, Default)]
pub struct Steps<'a> {
    /// What is projected out.
    pub ablation: Option<&'a DirectionSource>,
    /// What is added.
    pub addition: Option<&'a AdditionSource>,
}

/// The operator set from which on a value can be cast to the type of another.
const CAST_LIKE: i64 = 15;

/// Element type of what is written: that of the value, or of the sum that it joins and of its other terms, which is the
/// same. `None` where the file does not tell; constants are then cast to the value's own type.
pub fn write_type(graph: &Graph<'_>, contribution: &Contribution) -> Option<DataType> {
    let sum = contribution.site.map(|site| site.node);
    let terms = sum.into_iter().flat_map(|node| (0..2).filter_map(move |slot| graph.input(node, slot)));
    let results = sum
        .into_iter()
        .flat_map(|node| [0, SKIP_SUM_OUTPUT].into_iter().filter_map(move |slot| graph.output(node, slot)));
    std::iter::once(contribution.value).chain(results).chain(terms).find_map(|value| graph.elem_type(value))
}

/// Every write needs an element type, or an operator set in which a constant can be cast to that of another value.
pub(super) fn check_types(graph: &Graph<'_>, contributions: &[Contribution]) -> Result<(), Refusal> {
    let casts = graph.model.opset("").or_else(|| graph.model.opset("ai.onnx")).unwrap_or(0) >= CAST_LIKE;
    let unknown = contributions.iter().find(|c| !casts && write_type(graph, c).is_none());
    match unknown.and_then(|c| Some((c, graph.producer(c.value).or(c.site.map(|s| s.node))?))) {
        Some((c, node)) => {
            Err(Refusal::on_stream(graph, node, Some(c.value), "the element type of the write is unknown"))
        }
        None => Ok(()),
    }
}

/// Adds to `patch` the projection of one contribution ([`steer`]).
pub fn project(graph: &Graph<'_>, patch: &mut Patch, contribution: &Contribution, source: &DirectionSource, tag: &str) {
    steer(graph, patch, contribution, Steps { ablation: Some(source), addition: None }, tag);
}

/// Adds to `patch` the steps of one contribution: right before the sum that reads it, or, where the
/// contribution starts the stream, right after it is computed, under its own name, so that every reader reads the
/// projected one.
pub fn steer(graph: &Graph<'_>, patch: &mut Patch, contribution: &Contribution, steps: Steps<'_>, tag: &str) {
    let dtype = write_type(graph, contribution);
    let name = graph.name(contribution.value).to_string();
    let fed = [steps.ablation.is_some_and(DirectionSource::is_fed), steps.addition.is_some_and(AdditionSource::is_fed)];
    let order = contribution.layout.rows_order(fed.contains(&true));
    // one of several embeddings may lack the batch, and gets it by broadcasting
    let flat = contribution.role != Role::Embed || contribution.site.is_none();
    let flat = flat && contribution.layout.rank.or(graph.rank_of(contribution.value)).is_none_or(|rank| rank != 3);
    let emit = Emit { graph, dtype, steps, tag, flat, order };
    match (contribution.site, graph.producer(contribution.value)) {
        (Some(site), _) => {
            let place = Place::Before(site.node);
            let mut value = name;
            if let Some(bias) = contribution.bias.filter(|_| steps.ablation.is_some()) {
                let bias_value = graph.input(bias.node, bias.slot).expect("the bias was found as an input");
                let output = graph.fresh_name(&format!("lancet.{tag}.biased"));
                let add = node("Add", &output, &[&value, graph.name(bias_value)], &[output.as_str()], vec![]);
                patch.nodes.push((place, add));
                patch.rewires.push((bias, String::new()));
                value = output;
            }
            let result = graph.fresh_name(&format!("lancet.{tag}.projected"));
            emit.nodes(patch, place, &value, &result);
            patch.rewires.push((site, result));
        }
        (None, Some(producer)) => {
            let slot = graph.node(producer).output.iter().position(|output| *output == name);
            let raw = graph.fresh_name(&format!("lancet.{tag}.raw"));
            emit.nodes(patch, Place::After(producer), &raw, &name);
            patch.renames.push((producer, slot.expect("it computes the value"), raw));
        }
        (None, None) => {
            let result = graph.fresh_name(&format!("lancet.{tag}.projected"));
            emit.nodes(patch, Place::First, &name, &result);
            patch.rewires.extend(readers(graph, contribution.value).into_iter().map(|one| (one, result.clone())));
        }
    }
}

/// Readers of a value that can be rewired.
fn readers(graph: &Graph<'_>, value: ValueId) -> Vec<Use> {
    graph.uses(value).iter().copied().filter(|one| one.slot < graph.node(one.node).input.len()).collect()
}

/// The projection of one value.
struct Emit<'a> {
    graph: &'a Graph<'a>,
    /// Element type of the value; `None` where it is unknown.
    dtype: Option<DataType>,
    steps: Steps<'a>,
    tag: &'a str,
    /// The value may have another rank than three.
    flat: bool,
    /// The order of its axes in which rows lie along the last one.
    order: Option<Vec<usize>>,
}

impl Emit<'_> {
    /// Adds nodes at `place` that compute `result` from `value`.
    fn nodes(&self, patch: &mut Patch, place: Place, value: &str, result: &str) {
        let Some(order) = &self.order else { return self.steps(patch, place, value, result) };
        let label = |part: &str| self.graph.fresh_name(&format!("lancet.{}.{part}", self.tag));
        let [rows, changed] = ["in_rows", "rows_changed"].map(label);
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
        let transpose = |name: &str, from: &str, to: &str, perm: &[usize]| {
            let perm = attr_ints("perm", perm.iter().map(|&axis| axis as i64).collect());
            (place, node("Transpose", &label(name), &[from], &[to], vec![perm]))
        };
        patch.nodes.push(transpose("to_rows", value, &rows, order));
        self.steps(patch, place, &rows, &changed);
        patch.nodes.push(transpose("from_rows", &changed, result, &back));
    }

    /// A constant in the type of `value`.
    fn like(&self, patch: &mut Patch, place: Place, (constant, value): (&str, &str)) -> String {
        if self.dtype.is_some() {
            return constant.to_string();
        }
        let name = self.graph.fresh_name(&format!("lancet.{}.like.{}", self.tag, patch.nodes.len()));
        patch.nodes.push((place, node("CastLike", &name, &[constant, value], &[&name], vec![])));
        name
    }

    /// A node that casts float32 to the type of the written value.
    fn restore(&self, name: &str, from: &str, like: &str, result: &str) -> NodeProto {
        match self.dtype {
            Some(dtype) => node("Cast", name, &[from], &[result], vec![attr_int("to", i64::from(dtype.0))]),
            None => node("CastLike", name, &[from, like], &[result], vec![]),
        }
    }

    fn steps(&self, patch: &mut Patch, place: Place, value: &str, result: &str) {
        match self.steps {
            Steps { ablation: Some(source), addition: None } => self.ablation(source, patch, place, value, result),
            Steps { ablation: Some(source), addition: Some(vector) } => {
                let ablated = self.graph.fresh_name(&format!("lancet.{}.before_addition", self.tag));
                self.ablation(source, patch, place, value, &ablated);
                self.addition(vector, patch, place, &ablated, result);
            }
            Steps { ablation: None, addition: Some(vector) } => self.addition(vector, patch, place, value, result),
            Steps { ablation: None, addition: None } => unreachable!("a contribution is steered for a reason"),
        }
    }

    /// `result = value + v`.
    fn addition(&self, vector: &AdditionSource, patch: &mut Patch, place: Place, value: &str, result: &str) {
        let label = |part: &str| self.graph.fresh_name(&format!("lancet.{}.{part}", self.tag));
        let name = match vector {
            AdditionSource::Constant(name) => {
                let name = self.like(patch, place, (name, value));
                let sum = node("Add", &label("addition.1"), &[value, &name], &[result], vec![]);
                patch.nodes.push((place, sum));
                return;
            }
            AdditionSource::Input(name) => name,
        };
        let mut count = 0;
        let mut add = |op: &str, inputs: &[&str], output: &str, attributes: Vec<_>| {
            count += 1;
            patch.nodes.push((place, node(op, &label(&format!("addition.{count}")), inputs, &[output], attributes)));
        };
        let mut at = value.to_string();
        let float = self.dtype == Some(DataType::FLOAT);
        if !float {
            let wide = label("addition_wide");
            add("Cast", &[&at], &wide, vec![attr_int("to", i64::from(DataType::FLOAT.0))]);
            at = wide;
        }
        if self.flat {
            let rows = label("addition_rows");
            add("Reshape", &[&at, ROWS], &rows, vec![]);
            at = rows;
        }
        let plain = float && !self.flat;
        let sum = if plain { result.to_string() } else { label("addition_sum") };
        add("Add", &[&at, name], &sum, vec![]);
        at = sum;
        if self.flat {
            let shape = label("addition_shape");
            add("Shape", &[value], &shape, vec![]);
            let whole = if float { result.to_string() } else { label("addition_whole") };
            add("Reshape", &[&at, &shape], &whole, vec![]);
            at = whole;
        }
        if !float {
            patch.nodes.push((place, self.restore(&label("addition.cast"), &at, value, result)));
        }
    }

    /// `result = value - (value.r) r`, along every direction.
    fn ablation(&self, source: &DirectionSource, patch: &mut Patch, place: Place, value: &str, result: &str) {
        let constants: Vec<[String; 2]> = match source {
            DirectionSource::Constants(all) => all
                .iter()
                .map(|Constant { column, row }| [column, row].map(|name| self.like(patch, place, (name, value))))
                .collect(),
            DirectionSource::Inputs(_) => Vec::new(),
        };
        let part = |name: &str, at: usize| if at == 0 { name.to_string() } else { format!("{name}.{at}") };
        let mut add = |op: &str, part: &str, inputs: &[&str], attributes: Vec<_>| {
            let label = self.graph.fresh_name(&format!(
                "lancet.{}.{}",
                self.tag,
                if part.is_empty() { "projected" } else { part }
            ));
            let output = if part.is_empty() { result.to_string() } else { label.clone() };
            patch.nodes.push((place, node(op, &label, inputs, &[output.as_str()], attributes)));
            output
        };
        match source {
            DirectionSource::Constants(_) => {
                let mut ablated = value.to_string();
                for (at, [column, row]) in constants.iter().enumerate() {
                    let component = add("MatMul", &part("component", at), &[&ablated, column], vec![]);
                    let along = add("Mul", &part("along", at), &[&component, row], vec![]);
                    let name = if at + 1 == constants.len() { String::new() } else { part("ablated", at) };
                    ablated = add("Sub", &name, &[&ablated, &along], vec![]);
                }
            }
            DirectionSource::Inputs(directions) => {
                let float = self.dtype == Some(DataType::FLOAT);
                let cast = |to: DataType| vec![attr_int("to", i64::from(to.0))];
                let mut wide =
                    if float { value.to_string() } else { add("Cast", "wide", &[value], cast(DataType::FLOAT)) };
                // a stream that is held as [batch * n_pos, d_model] meets its batch rows as [batch, n_pos, d_model]
                if self.flat {
                    wide = add("Reshape", "rows", &[&wide, ROWS], vec![]);
                }
                let mut ablated = wide;
                for (at, direction) in directions.iter().enumerate() {
                    let product = add("Mul", &part("product", at), &[&ablated, direction], vec![]);
                    // ReduceSum takes its axes as an input from opset 13 on; MatMul with a column of ones would do
                    // as well, but keeps ONNX Runtime from fusing.
                    let component = part("component", at);
                    let component = if self.graph.model.opset("").unwrap_or(0) >= 13 {
                        add("ReduceSum", &component, &[&product, LAST_AXIS], vec![attr_int("keepdims", 1)])
                    } else {
                        let axes = vec![attr_ints("axes", vec![-1]), attr_int("keepdims", 1)];
                        add("ReduceSum", &component, &[&product], axes)
                    };
                    let along = add("Mul", &part("along", at), &[&component, direction], vec![]);
                    let is_last = at + 1 == directions.len() && float && !self.flat;
                    let name = if is_last { String::new() } else { part("ablated", at) };
                    ablated = add("Sub", &name, &[&ablated, &along], vec![]);
                }
                if self.flat {
                    let shape = add("Shape", "shape", &[value], vec![]);
                    ablated = add("Reshape", if float { "" } else { "restored" }, &[&ablated, &shape], vec![]);
                }
                if !float {
                    let name = self.graph.fresh_name(&format!("lancet.{}.projected", self.tag));
                    patch.nodes.push((place, self.restore(&name, &ablated, value, result)));
                }
            }
        }
    }
}

/// Nodes and initializers that a patch with [`DirectionSource::Inputs`] needs besides the input itself.
pub fn prepare(patch: &mut Patch, direction: &str) {
    patch.initializers.push(int64s(LAST_AXIS, &[-1]));
    patch.initializers.push(int64s("lancet.batch_axis", &[0]));
    patch.initializers.push(int64s("lancet.all_positions", &[-1]));
    patch.initializers.push(int64s("lancet.width_axis", &[2]));
    let mut add = |op: &str, inputs: &[&str], output: &str, attributes: Vec<_>| {
        patch.nodes.push((Place::First, node(op, output, inputs, &[output], attributes)));
    };
    add("Shape", &[direction], "lancet.direction_shape", vec![]);
    add("Gather", &["lancet.direction_shape", "lancet.batch_axis"], "lancet.batch", vec![]);
    add("Gather", &["lancet.direction_shape", "lancet.width_axis"], "lancet.width", vec![]);
    let parts = ["lancet.batch", "lancet.all_positions", "lancet.width"];
    add("Concat", &parts, ROWS, vec![attr_int("axis", 0)]);
}

/// Value `[batch, -1, d_model]`, made by [`prepare`].
const ROWS: &str = "lancet.rows";

/// Initializer with the axis `-1`, made by [`prepare`].
const LAST_AXIS: &str = "lancet.last_axis";

/// A one-dimensional int64 tensor.
pub fn int64s(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: vec![values.len() as i64],
        data_type: Some(DataType::INT64.0),
        raw_data: Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ..Default::default()
    }
}
