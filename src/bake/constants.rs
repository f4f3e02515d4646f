//! Constants that a patch adds: initializers, or `Constant` nodes where the file is too old for them.

use super::error::BakeError;
use super::kernel;
use crate::edit::Ablation;
use crate::lm::projection::{Constant, DirectionSource};
use crate::onnx::lower::constant;
use crate::onnx::patch::{Patch, Place};
use crate::onnx::proto::TensorProto;
use crate::onnx::{DataType, Graph};

/// IR version from which initializers need not be graph inputs as well.
pub(super) const FREE_INITIALIZERS: i64 = 4;

/// Adds an initializer, or a `Constant` node to a file of an old IR version.
///
/// # Errors
/// Values that overflow the element type, or that all vanish in it.
pub(super) fn store(
    graph: &Graph<'_>,
    dtype: DataType,
    (name, values, dims): (&str, &[f64], Vec<i64>),
    patch: &mut Patch,
) -> Result<(), BakeError> {
    let mut raw = vec![0u8; values.len() * kernel::width(dtype)];
    kernel::encode(dtype, values, &mut raw);
    let mut stored = vec![0.0f64; values.len()];
    kernel::decode(dtype, &raw, &mut stored);
    if stored.iter().any(|v| !v.is_finite()) {
        return Err(BakeError::NotFinite { tensor: name.to_string() });
    }
    if values.iter().any(|v| *v != 0.0) && stored.iter().all(|v| *v == 0.0) {
        let reason = format!("every value of it is too small for {dtype}, so that nothing would be edited");
        return Err(BakeError::Vanishes { tensor: name.to_string(), reason });
    }
    let tensor = TensorProto {
        name: Some(name.to_string()),
        dims,
        data_type: Some(dtype.0),
        raw_data: Some(raw),
        ..Default::default()
    };
    put(graph, tensor, patch);
    Ok(())
}

/// Adds an initializer, or a `Constant` node to a file of an old IR version.
pub(super) fn put(graph: &Graph<'_>, tensor: TensorProto, patch: &mut Patch) {
    if graph.model.skeleton.ir_version.is_some_and(|version| version < FREE_INITIALIZERS) {
        let name = tensor.name.clone().unwrap_or_default();
        patch.nodes.push((Place::First, constant(&name, &tensor)));
    } else {
        patch.initializers.push(tensor);
    }
}

/// Initializers with the directions, a pair each for every element type: the column as it is, the row times the strength.
#[derive(Default)]
pub(super) struct Constants {
    known: Vec<(DataType, DirectionSource)>,
}

impl Constants {
    pub(super) fn source(
        &mut self,
        graph: &Graph<'_>,
        dtype: DataType,
        ablation: &Ablation,
        patch: &mut Patch,
    ) -> Result<DirectionSource, BakeError> {
        if let Some((_, source)) = self.known.iter().find(|(known, _)| *known == dtype) {
            return Ok(source.clone());
        }
        let suffix = if self.known.is_empty() { String::new() } else { format!(".{dtype}") };
        let mut add = |what: &str, values: &[f64], dims: Vec<i64>| {
            let name = graph.fresh_name(&format!("lancet.direction.{what}{suffix}"));
            store(graph, dtype, (&name, values, dims), patch)?;
            Ok::<String, BakeError>(name)
        };
        let mut constants = Vec::new();
        for (at, one) in ablation.vectors().iter().enumerate() {
            let number = if at == 0 { String::new() } else { format!(".{at}") };
            let (unit, d) = (one.unit(), one.unit().len() as i64);
            let row: Vec<f64> = unit.iter().map(|v| one.strength() * v).collect();
            constants.push(Constant {
                column: add(&format!("column{number}"), unit, vec![d, 1])?,
                row: add(&format!("row{number}"), &row, vec![d])?,
            });
        }
        let source = DirectionSource::Constants(constants);
        self.known.push((dtype, source.clone()));
        Ok(source)
    }
}
