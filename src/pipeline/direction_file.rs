//! Direction files: safetensors with a tensor `direction`, or `.npy`.

mod npy;

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::Error;
use crate::files;
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
        (STRENGTH.to_string(), direction.strength().to_string()),
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
    Ok(Direction::new(single(direction.unit()))?.with_strength(direction.strength()).with_addition(addition))
}

/// Metadata of a direction file.
const STRENGTH: &str = "lancet.strength";
const LAYER: &str = "lancet.addition_layer";
const POSITION: &str = "lancet.addition_position";
const ALPHA: &str = "lancet.addition_alpha";

/// Layers and positions of an addition are below this.
const MOST_PLACES: u64 = 1 << 20;

/// Reads a direction: the tensor `direction` of a safetensors file (or its only tensor), or a `.npy` of
/// shape `[d_model]`; float16, float32 or float64 of either byte order, in safetensors also bfloat16. A file of Lancet's
/// own also says the strength, and may hold an addition.
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
    let bytes = files::read(path, files::MAX_DIRECTION).map_err(|e| bad(e.to_string()))?;
    if bytes.is_empty() {
        return Err(bad("it is empty".into()));
    }
    if npy::is(&bytes) {
        return Ok(Direction::new(npy::vector(&bytes).map_err(bad)?)?);
    }
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("it is neither `.npy` nor safetensors ({e})")))?;
    let names = tensors.names();
    let view = match tensors.tensor("direction") {
        Ok(view) => view,
        Err(_) if names.len() == 1 => tensors.tensor(names[0]).map_err(|e| bad(e.to_string()))?,
        Err(_) => {
            let shown: Vec<String> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
            return Err(bad(format!("of its {} tensors none is `direction`: {}", names.len(), shown.join(", "))));
        }
    };
    if view.shape().iter().filter(|d| **d != 1).count() > 1 {
        return Err(bad(format!("its shape is {:?}", view.shape())));
    }
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let strength = match metadata.get(STRENGTH) {
        None => 1.0,
        Some(text) => number(text)
            .filter(|s| *s > 0.0 && *s <= 1.0)
            .ok_or_else(|| bad("its strength is not above 0 and at most 1".into()))?,
    };
    let addition = match tensors.tensor("addition") {
        Err(_) => None,
        Ok(vector) => {
            Some(addition(&metadata, &vector).map_err(|what| bad(format!("its addition is damaged: {what}")))?)
        }
    };
    let values = decode(&view).ok_or_else(|| bad(format!("its type is {:?}", view.dtype())))?;
    Ok(Direction::new(values)?.with_strength(strength).with_addition(addition))
}

fn number(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|v| v.is_finite())
}

/// The addition of a file, or what is wrong with it in words.
fn addition(metadata: &HashMap<String, String>, vector: &TensorView<'_>) -> Result<Addition, String> {
    let text = |key: &str| metadata.get(key).ok_or_else(|| format!("it lacks `{key}`"));
    let odd = |key: &str, text: &str, expected: &str| {
        let start: String = text.chars().take(40).collect();
        format!("`{key}` is `{start}`, not {expected}")
    };
    let layer = text(LAYER)?;
    let at = layer.parse::<u64>().ok().filter(|layer| (1..MOST_PLACES).contains(layer));
    let at = at.ok_or_else(|| odd(LAYER, layer, "a layer from 1"))?;
    let alpha = text(ALPHA)?;
    let position = match metadata.get(POSITION) {
        None => -1,
        Some(text) => {
            let position = text.parse::<i64>().ok().filter(|p| *p < 0 && p.unsigned_abs() < MOST_PLACES);
            position.ok_or_else(|| odd(POSITION, text, "a negative position"))?
        }
    };
    let values = decode(vector).ok_or_else(|| format!("its type is {:?}", vector.dtype()))?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err("it is not finite".to_owned());
    }
    Ok(Addition {
        vector: values,
        layer: usize::try_from(at).map_err(|_| odd(LAYER, layer, "a layer from 1"))?,
        position,
        alpha: number(alpha).ok_or_else(|| odd(ALPHA, alpha, "a number"))?,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(metadata: &[(&str, &str)], addition: &[f32]) -> Vec<u8> {
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (direction, addition) = (bytes(&[3.0, 4.0]), bytes(addition));
        let view = |data| TensorView::new(Dtype::F32, vec![2], data).unwrap();
        let metadata = metadata.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
        safetensors::serialize([("direction", view(&direction)), ("addition", view(&addition))], Some(metadata))
            .unwrap()
    }

    fn load_bytes(bytes: &[u8]) -> Result<Direction, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d");
        std::fs::write(&path, bytes).unwrap();
        load(&path)
    }

    #[test]
    fn numbers_of_an_addition_are_read_exactly_or_refused() {
        let good = [(LAYER, "3"), (POSITION, "-2"), (ALPHA, "0.5")];
        let direction = load_bytes(&file(&good, &[1.0, 2.0])).unwrap();
        let found = direction.addition().unwrap();
        assert_eq!((found.layer, found.position, found.alpha), (3, -2, 0.5));
        for (key, text) in [
            (LAYER, "1e300"),
            (LAYER, "-1"),
            (LAYER, "0"),
            (LAYER, "2.5"),
            (LAYER, "18446744073709551615"),
            (LAYER, "99999999999999999999999"),
            (POSITION, "0"),
            (POSITION, "1"),
            (POSITION, "-9223372036854775808"),
            (POSITION, "-1e9"),
            (ALPHA, "NaN"),
            (ALPHA, "inf"),
            (ALPHA, "1e999"),
        ] {
            let metadata: Vec<(&str, &str)> =
                good.iter().map(|(k, v)| if *k == key { (key, text) } else { (*k, *v) }).collect();
            let message = load_bytes(&file(&metadata, &[1.0, 2.0])).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains(text), "{key} {text}: {message}");
        }
        assert!(load_bytes(&file(&good, &[1.0, f32::INFINITY])).is_err());
        assert!(load_bytes(&file(&good[..1], &[1.0, 2.0])).unwrap_err().to_string().contains("it lacks"));
    }

    #[test]
    fn what_is_no_direction_is_told_in_words() {
        let cases: [(&[u8], &str); 4] = [
            (b"", "it is empty"),
            (b"\x93NUMPY", "header"),
            (b"hello world", "neither `.npy` nor safetensors"),
            (&[0xff; 64], "neither `.npy` nor safetensors"),
        ];
        for (bytes, words) in cases {
            let error = load_bytes(bytes).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.hint().is_some());
        }
    }
}
