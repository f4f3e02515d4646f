//! Direction files: safetensors with a tensor `direction`, or `.npy`.

use std::collections::HashMap;
use std::path::Path;

use ndarray_npy::ReadNpyExt;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::Error;
use crate::method::direction::{Addition, Direction};
use crate::report::SelectResult;

/// Writes the unit direction as float32 `[d_model]` with its provenance: strength, and the vector of an addition as a
/// tensor `addition`, `[d_model]`, before its factor.
///
/// # Errors
/// If it cannot be written.
pub fn save(path: &Path, direction: &Direction, select: &SelectResult, model_sha256: &str) -> Result<(), Error> {
    let bytes: Vec<u8> = direction.unit().iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![direction.width()], &bytes).expect("the buffer fits the shape");
    let selected = &select.selected;
    let mut metadata = HashMap::from([
        ("lancet.version".to_string(), env!("CARGO_PKG_VERSION").to_string()),
        ("lancet.source_sha256".to_string(), model_sha256.to_string()),
        ("lancet.layer".to_string(), selected.layer.to_string()),
        ("lancet.position".to_string(), selected.position.to_string()),
        ("lancet.lambda".to_string(), selected.lambda.to_string()),
        ("lancet.refusal_score".to_string(), selected.refusal_score.to_string()),
        ("lancet.harmful_refusal_score".to_string(), selected.harmful_refusal_score.to_string()),
        ("lancet.kl".to_string(), selected.kl.to_string()),
        (STRENGTH.to_string(), direction.share().to_string()),
    ]);
    let addition: Vec<u8> =
        direction.addition().iter().flat_map(|a| &a.vector).flat_map(|v| (*v as f32).to_le_bytes()).collect();
    let mut views = vec![("direction", view)];
    if let Some(found) = direction.addition() {
        let shape = vec![found.vector.len()];
        views.push(("addition", TensorView::new(Dtype::F32, shape, &addition).expect("the buffer fits the shape")));
        metadata.insert(LAYER.to_string(), found.layer.to_string());
        metadata.insert(POSITION.to_string(), found.position.to_string());
        metadata.insert(ALPHA.to_string(), found.alpha.to_string());
    }
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|e| Error::failed(format!("cannot encode the direction: {e}")))?;
    super::write_whole(path, &bytes)
}

/// The direction as [`save`] and [`load`] hand it on: rounded to float32, then normalised.
///
/// # Errors
/// Never for a direction that is one; the same checks run again.
pub fn as_stored(direction: &Direction) -> Result<Direction, Error> {
    let single = |values: &[f64]| values.iter().map(|v| f64::from(*v as f32)).collect::<Vec<f64>>();
    let addition = direction.addition().map(|a| Addition { vector: single(&a.vector), ..a.clone() });
    Ok(Direction::new(single(direction.unit()))?.with_share(direction.share()).with_addition(addition))
}

/// Metadata of a direction file.
const STRENGTH: &str = "lancet.strength";
const LAYER: &str = "lancet.addition_layer";
const POSITION: &str = "lancet.addition_position";
const ALPHA: &str = "lancet.addition_alpha";

/// Reads a direction: the tensor `direction` of a safetensors file (or its only tensor), or a `.npy` of
/// shape `[d_model]`; float16, bfloat16, float32 or float64. A file of Lancet's own also says the strength, and may hold
/// an addition.
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
    let bytes = crate::files::read(path, crate::files::MAX_DIRECTION).map_err(|e| bad(e.to_string()))?;
    let (mut share, mut addition) = (1.0, None);
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
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let number = |key: &str| metadata.get(key).map(|text| text.parse::<f64>().ok().filter(|v| v.is_finite()));
        if let Some(found) = number(STRENGTH) {
            share = found
                .filter(|s| *s > 0.0 && *s <= 1.0)
                .ok_or_else(|| bad("its strength is not above 0 and at most 1".into()))?;
        }
        if let Ok(vector) = tensors.tensor("addition") {
            let place = || Some((number(LAYER)??, number(ALPHA)??, number(POSITION).flatten().unwrap_or(-1.0)));
            let found = place().zip(decode(&vector)).filter(|(_, v)| v.iter().all(|x| x.is_finite()));
            let ((layer, alpha, position), vector) = found.ok_or_else(|| bad("its addition is damaged".into()))?;
            addition = Some(Addition { vector, layer: layer as usize, position: position as i64, alpha });
        }
        decode(&view).ok_or_else(|| bad(format!("its type is {:?}", view.dtype())))?
    };
    Ok(Direction::new(values)?.with_share(share).with_addition(addition))
}

/// Whether a file has the form that [`save`] gives it: no tensors and no metadata but Lancet's own.
pub(super) fn is_plain(bytes: &[u8]) -> bool {
    let (Ok(tensors), Ok((_, header))) = (SafeTensors::deserialize(bytes), SafeTensors::read_metadata(bytes)) else {
        return false;
    };
    let metadata = header.metadata().clone().unwrap_or_default();
    tensors.iter().all(|(name, view)| matches!(name, "direction" | "addition") && view.dtype() == Dtype::F32)
        && metadata.keys().all(|key| key.starts_with("lancet."))
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
