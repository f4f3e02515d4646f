//! Direction files: safetensors with a tensor `direction`, or `.npy`.

use std::collections::HashMap;
use std::path::Path;

use ndarray_npy::ReadNpyExt;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::Error;
use crate::method::direction::Direction;
use crate::report::SelectResult;

/// Writes the unit direction as float32 `[d_model]` with its provenance.
///
/// # Errors
/// If it cannot be written.
pub fn save(path: &Path, direction: &Direction, select: &SelectResult, model_sha256: &str) -> Result<(), Error> {
    let bytes: Vec<u8> = direction.unit().iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![direction.width()], &bytes).expect("the buffer fits the shape");
    let selected = &select.selected;
    let metadata = HashMap::from([
        ("lancet.version".to_string(), env!("CARGO_PKG_VERSION").to_string()),
        ("lancet.source_sha256".to_string(), model_sha256.to_string()),
        ("lancet.layer".to_string(), selected.layer.to_string()),
        ("lancet.position".to_string(), selected.position.to_string()),
        ("lancet.lambda".to_string(), selected.lambda.to_string()),
        ("lancet.refusal_score".to_string(), selected.refusal_score.to_string()),
        ("lancet.harmful_refusal_score".to_string(), selected.harmful_refusal_score.to_string()),
        ("lancet.kl".to_string(), selected.kl.to_string()),
    ]);
    let bytes = safetensors::serialize([("direction", view)], Some(metadata))
        .map_err(|e| Error::failed(format!("cannot encode the direction: {e}")))?;
    super::write_whole(path, &bytes)
}

/// The direction as [`save`] and [`load`] hand it on: rounded to float32, then normalised.
///
/// # Errors
/// Never for a direction that is one; the same checks run again.
pub fn as_stored(direction: &Direction) -> Result<Direction, Error> {
    Ok(Direction::new(direction.unit().iter().map(|v| f64::from(*v as f32)).collect())?)
}

/// Reads a direction: the tensor `direction` of a safetensors file (or its only tensor), or a `.npy` of
/// shape `[d_model]`; float16, bfloat16, float32 or float64.
///
/// # Errors
/// If the file is neither, or the direction is zero or not finite.
pub fn load(path: &Path) -> Result<Direction, Error> {
    let bad = |what: String| {
        Error::usage(
            format!("`{}` holds no direction: {what}", path.display()),
            "give a safetensors file with a tensor `direction` of shape [d_model], or a `.npy` of that shape",
        )
    };
    let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let values = if bytes.starts_with(b"\x93NUMPY") {
        ndarray::Array1::<f64>::read_npy(bytes.as_slice())
            .map(|a| a.to_vec())
            .or_else(|_| {
                ndarray::Array1::<f32>::read_npy(bytes.as_slice()).map(|a| a.iter().map(|v| f64::from(*v)).collect())
            })
            .map_err(|e| bad(e.to_string()))?
    } else {
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let names = tensors.names();
        let view = match tensors.tensor("direction") {
            Ok(view) => view,
            Err(_) if names.len() == 1 => tensors.tensor(names[0]).map_err(|e| bad(e.to_string()))?,
            Err(_) => return Err(bad(format!("its tensors are {names:?}"))),
        };
        if view.shape().iter().filter(|d| **d != 1).count() > 1 {
            return Err(bad(format!("its shape is {:?}", view.shape())));
        }
        decode(&view).ok_or_else(|| bad(format!("its type is {:?}", view.dtype())))?
    };
    Ok(Direction::new(values)?)
}

fn decode(view: &TensorView<'_>) -> Option<Vec<f64>> {
    let data = view.data();
    Some(match view.dtype() {
        Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("chunks of 8"))).collect(),
        Dtype::F32 => {
            data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("chunks of 4")))).collect()
        }
        Dtype::F16 => data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        _ => return None,
    })
}
