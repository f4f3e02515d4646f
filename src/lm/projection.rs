//! The projection `x <- x - (x.r) r` (Wang et al. 2025, eq. 4) as standard ONNX operators.

use super::residual::Contribution;
use crate::onnx::graph::Graph;
use crate::onnx::patch::Patch;
use crate::onnx::proto::{TensorProto, attr_int, node};
use crate::onnx::{DataType, Use, ValueId};

/// Where the direction comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectionSource {
    /// A graph input of this name: float32 `[batch, 1, d_model]`, one direction a row; a zero row changes nothing.
    Input(String),
    /// Two initializers: the direction as a column `[d_model, 1]` and as a row `[d_model]`, in the
    /// type of the values they are applied to.
    Constants {
        /// Name of the column.
        column: String,
        /// Name of the row.
        row: String,
    },
}

/// Adds to `patch` the projection of one contribution, right after the contribution is computed, and
/// leads its reader (all its readers where the contribution starts the stream) to the result.
pub fn project(graph: &Graph<'_>, patch: &mut Patch, contribution: &Contribution, source: &DirectionSource, tag: &str) {
    let mut value = graph.name(contribution.value).to_string();
    let mut after = graph.producer(contribution.value);
    if let Some(bias) = contribution.bias {
        let bias_value = graph.input(bias.node, bias.slot).expect("the bias was found as an input");
        // the bias may be computed after the contribution
        if let Some(node) = graph.producer(bias_value)
            && after.is_none_or(|a| graph.rank(node) > graph.rank(a))
        {
            after = Some(node);
        }
        let output = graph.fresh_name(&format!("lancet.{tag}.biased"));
        patch.nodes.push((after, node("Add", &output, &[&value, graph.name(bias_value)], &[output.as_str()], vec![])));
        patch.rewires.push((bias, String::new()));
        value = output;
    }
    let dtype = graph.elem_type(contribution.value).unwrap_or(DataType::FLOAT);
    let result = emit(graph, patch, after, &value, dtype, source, tag);
    match contribution.site {
        Some(site) => patch.rewires.push((site, result)),
        None => {
            for one in readers(graph, contribution.value) {
                patch.rewires.push((one, result.clone()));
            }
        }
    }
}

/// Readers of a value that can be rewired.
pub fn readers(graph: &Graph<'_>, value: ValueId) -> Vec<Use> {
    graph.uses(value).iter().copied().filter(|one| one.slot < graph.node(one.node).input.len()).collect()
}

fn emit(
    graph: &Graph<'_>,
    patch: &mut Patch,
    after: Option<crate::onnx::NodeId>,
    value: &str,
    dtype: DataType,
    source: &DirectionSource,
    tag: &str,
) -> String {
    let mut add = |op: &str, part: &str, inputs: &[&str], attributes: Vec<_>| {
        let output = graph.fresh_name(&format!("lancet.{tag}.{part}"));
        patch.nodes.push((after, node(op, &output, inputs, &[output.as_str()], attributes)));
        output
    };
    match source {
        DirectionSource::Constants { column, row } => {
            let component = add("MatMul", "component", &[value, column], vec![]);
            let along = add("Mul", "along", &[&component, row], vec![]);
            add("Sub", "projected", &[value, &along], vec![])
        }
        DirectionSource::Input(direction) => {
            let wide = if dtype == DataType::FLOAT {
                value.to_string()
            } else {
                add("Cast", "wide", &[value], vec![attr_int("to", i64::from(DataType::FLOAT.0))])
            };
            let product = add("Mul", "product", &[&wide, direction], vec![]);
            // ReduceSum takes its axes as an input from opset 13 on; MatMul with a column of ones would do
            // as well, but keeps ONNX Runtime from fusing.
            let component = if graph.model.opset("").unwrap_or(0) >= 13 {
                add("ReduceSum", "component", &[&product, LAST_AXIS], vec![attr_int("keepdims", 1)])
            } else {
                let axes = crate::onnx::proto::AttributeProto {
                    name: Some("axes".into()),
                    ints: vec![-1],
                    r#type: Some(crate::onnx::proto::attribute_type::INTS),
                    ..Default::default()
                };
                add("ReduceSum", "component", &[&product], vec![axes, attr_int("keepdims", 1)])
            };
            let along = add("Mul", "along", &[&component, direction], vec![]);
            let projected = add("Sub", "projected", &[&wide, &along], vec![]);
            if dtype == DataType::FLOAT {
                projected
            } else {
                add("Cast", "narrow", &[&projected], vec![attr_int("to", i64::from(dtype.0))])
            }
        }
    }
}

/// Initializer with the axis `-1`, which a patch with [`DirectionSource::Input`] needs.
pub const LAST_AXIS: &str = "lancet.last_axis";

/// The tensor named [`LAST_AXIS`].
pub fn last_axis() -> TensorProto {
    int64s(LAST_AXIS, &[-1])
}

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
