//! Direction files: safetensors with a tensor `direction`, or `.npy`.

mod npy;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::edit::{Ablation, Addition, Edit, Factor, GatedTerm, Shape};
use crate::edit::{Direction, DirectionError};
use crate::error::Error;
use crate::files;
use crate::report::{Found, GateResult, GateSetting, SearchSetting, SelectResult};

/// What the metadata of a file says of how its edit was found.
fn origin(found: &Found) -> Vec<(&'static str, String)> {
    match found {
        Found::Select(SelectResult { selected, .. }) => vec![
            ("lancet.layer", selected.layer.to_string()),
            ("lancet.position", selected.position.to_string()),
            ("lancet.lambda", selected.lambda.to_string()),
            ("lancet.refusal_score", selected.refusal_score.to_string()),
            ("lancet.harmful_refusal_score", selected.harmful_refusal_score.to_string()),
            ("lancet.kl", selected.kl.to_string()),
        ],
        Found::Gate(GateResult { selected, .. }) => origin_of_gates(selected),
    }
}

fn origin_of_gates(GateSetting { layers, alpha, .. }: &GateSetting) -> Vec<(&'static str, String)> {
    vec![
        ("lancet.method", "gate".to_string()),
        ("lancet.layers", layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ("lancet.factor", alpha.to_string()),
    ]
}

/// What the metadata of a file says of the setting that its edit is of.
fn origin_of_setting(setting: &SearchSetting) -> Vec<(&'static str, String)> {
    let method = |name: &str, position: Option<i64>, layer: Option<usize>| {
        let place =
            [("lancet.layer", layer.map(|at| at.to_string())), ("lancet.position", position.map(|at| at.to_string()))];
        let place = place.into_iter().filter_map(|(key, at)| Some((key, at?)));
        std::iter::once(("lancet.method", name.to_string())).chain(place).collect::<Vec<_>>()
    };
    match setting {
        SearchSetting::Unchanged | SearchSetting::Gate { gates: None } => Vec::new(),
        SearchSetting::Gate { gates: Some(gates) } => origin_of_gates(gates),
        SearchSetting::Refusal { position, layer } => method("refusal", *position, *layer),
        SearchSetting::Wang { lambda, position, layer, .. } => {
            let mut entries = method("wang", *position, *layer);
            entries.push(("lancet.lambda", lambda.to_string()));
            entries
        }
    }
}

/// Writes an edit with its provenance, numbers as float32: what is ablated as the tensor `direction`, `[d_model]`, with
/// its strength; the vector of an addition as `addition`, `[d_model]`, before its factor; the gated term `n` as
/// `gate.n.vector`, `[d_model]`, `gate.n.weights`, `[factors, d_model]`, and `gate.n.offsets`, `[factors]`. Files with
/// gated terms are of version 2, all others of version 1.
///
/// # Errors
/// If it cannot be written.
pub fn save(path: &Path, edit: &Edit, found: &Found, model_sha256: &str) -> Result<(), Error> {
    write(path, edit, origin(found), model_sha256)
}

/// The same of a setting that was tried.
///
/// # Errors
/// As [`save`].
pub(super) fn save_setting(path: &Path, edit: &Edit, setting: &SearchSetting, model_sha256: &str) -> Result<(), Error> {
    write(path, edit, origin_of_setting(setting), model_sha256)
}

fn write(path: &Path, edit: &Edit, origin: Vec<(&str, String)>, model_sha256: &str) -> Result<(), Error> {
    let own =
        [("lancet.version", env!("CARGO_PKG_VERSION").to_string()), ("lancet.source_sha256", model_sha256.to_string())];
    let metadata = own.into_iter().chain(origin).map(|(key, value)| (key.to_string(), value)).collect();
    super::write_whole(path, &encode(edit, metadata)?)
}

/// An edit as a direction file, with these entries of metadata beside its own.
fn encode(edit: &Edit, mut metadata: HashMap<String, String>) -> Result<Vec<u8>, Error> {
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let single = |values: &mut dyn Iterator<Item = f64>| values.flat_map(|v| (v as f32).to_le_bytes()).collect();
    if let Some(ablation) = edit.ablation() {
        let unit = ablation.unit();
        tensors.push(("direction".into(), vec![unit.len()], single(&mut unit.iter().copied())));
        metadata.insert(STRENGTH.into(), ablation.strength().to_string());
    }
    if let Some(addition) = edit.addition() {
        let vector = &addition.vector;
        tensors.push(("addition".into(), vec![vector.len()], single(&mut vector.iter().copied())));
        metadata.insert(LAYER.into(), addition.layer.to_string());
        metadata.insert(POSITION.into(), addition.position.to_string());
        metadata.insert(ALPHA.into(), addition.alpha.to_string());
    }
    for (n, term) in edit.gates().iter().enumerate() {
        let (width, factors) = (term.vector().len(), term.factors());
        let shapes: Vec<&str> = factors.iter().map(|factor| factor.shape.name()).collect();
        let weights = single(&mut factors.iter().flat_map(|factor| factor.weights.iter().copied()));
        let offsets = single(&mut factors.iter().map(|factor| factor.offset));
        tensors.push((gate_key(n, "vector"), vec![width], single(&mut term.vector().iter().copied())));
        tensors.push((gate_key(n, "weights"), vec![factors.len(), width], weights));
        tensors.push((gate_key(n, "offsets"), vec![factors.len()], offsets));
        metadata.insert(format!("lancet.{}", gate_key(n, "layer")), term.layer().to_string());
        metadata.insert(format!("lancet.{}", gate_key(n, "shapes")), shapes.join(" "));
        metadata.insert(FORMAT.into(), "2".into());
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the buffer fits the shape"))
    });
    let bytes = safetensors::serialize(views, Some(metadata));
    let bytes = bytes.map_err(|e| Error::failed(format!("cannot encode the edit: {e}")))?;
    Ok(in_order(bytes))
}

/// The same safetensors file with the keys of its header sorted, so that equal edits make equal files: the crate keeps its
/// metadata in no order. Files that are no safetensors are returned as they are.
fn in_order(bytes: Vec<u8>) -> Vec<u8> {
    let header = |bytes: &[u8]| -> Option<(Vec<u8>, usize)> {
        let length = u64::from_le_bytes(bytes.first_chunk::<8>().copied()?) as usize;
        let mut sorted: BTreeMap<String, serde_json::Value> = serde_json::from_slice(bytes.get(8..8 + length)?).ok()?;
        sorted.values_mut().for_each(serde_json::Value::sort_all_objects);
        let mut sorted = serde_json::to_vec(&sorted).ok()?;
        // data begin at the same place
        sorted.resize(length.max(sorted.len()), b' ');
        (sorted.len() == length).then_some((sorted, length))
    };
    match header(&bytes) {
        Some((sorted, length)) => [&bytes[..8], &sorted, &bytes[8 + length..]].concat(),
        None => bytes,
    }
}

/// The name of a part of the gated term `n`.
fn gate_key(n: usize, part: &str) -> String {
    format!("gate.{n}.{part}")
}

/// The edit as [`save`] and [`load`] hand it on: rounded to float32, the direction then normalised.
///
/// # Errors
/// Never for an edit that is one; the same checks run again.
pub fn as_stored(edit: &Edit) -> Result<Edit, Error> {
    let single = |values: &[f64]| values.iter().map(|v| f64::from(*v as f32)).collect::<Vec<f64>>();
    let ablation = match edit.ablation() {
        Some(found) => {
            let direction = Direction::new(single(found.unit()))?;
            Some(Ablation::new(direction).with_strength(found.strength()))
        }
        None => None,
    };
    let addition = edit.addition().map(|a| Addition { vector: single(&a.vector), ..a.clone() });
    Ok(Edit::new(ablation, addition, edit.gates().iter().map(GatedTerm::rounded).collect())?)
}

/// Metadata of a direction file.
const FORMAT: &str = "lancet.format";
const STRENGTH: &str = "lancet.strength";
const LAYER: &str = "lancet.addition_layer";
const POSITION: &str = "lancet.addition_position";
const ALPHA: &str = "lancet.addition_alpha";

/// Gated terms that are read, at most.
const MOST_GATES: usize = 64;

/// Layers and positions are below this.
const MOST_PLACES: u64 = 1 << 20;

/// Reads a direction: the tensor `direction` of a safetensors file (or its only tensor), or a `.npy` of
/// shape `[d_model]`; float16, float32 or float64 of either byte order, in safetensors also bfloat16. A file of Lancet's
/// own also says the strength, and may hold an addition and gated terms ([`save`]); with gated terms it may lack the
/// direction.
///
/// # Errors
/// If the file is neither, the direction is zero or not finite, or it is of a later version.
pub fn load(path: &Path) -> Result<Edit, Error> {
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
        return Ok(Direction::new(npy::vector(&bytes).map_err(bad)?)?.into());
    }
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("it is neither `.npy` nor safetensors ({e})")))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    if let Some(version) = metadata.get(FORMAT).filter(|version| !matches!(version.as_str(), "1" | "2")) {
        let start: String = version.chars().take(40).collect();
        return Err(Error::usage(
            format!("`{}` is a direction file of version {start}, and this Lancet reads 1 and 2", path.display()),
            "use the version of Lancet that wrote it",
        ));
    }
    let gates = gates(&metadata, &tensors).map_err(|what| bad(format!("its gated terms are damaged: {what}")))?;
    let names = tensors.names();
    let view = match tensors.tensor("direction") {
        Ok(view) => Some(view),
        Err(_) if !gates.is_empty() => None,
        Err(_) if names.len() == 1 => Some(tensors.tensor(names[0]).map_err(|e| bad(e.to_string()))?),
        Err(_) => {
            let shown: Vec<String> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
            return Err(bad(format!("of its {} tensors none is `direction`: {}", names.len(), shown.join(", "))));
        }
    };
    let ablation = match view {
        Some(view) => Some(ablation(&metadata, &view).map_err(|error| match error {
            Unread::Words(what) => bad(what),
            Unread::Direction(error) => error.into(),
        })?),
        None => None,
    };
    let addition = match tensors.tensor("addition") {
        Err(_) => None,
        Ok(vector) => {
            Some(addition(&metadata, &vector).map_err(|what| bad(format!("its addition is damaged: {what}")))?)
        }
    };
    Ok(Edit::new(ablation, addition, gates)?)
}

/// Why a direction was not read.
enum Unread {
    /// In words.
    Words(String),
    /// It is none.
    Direction(DirectionError),
}

/// The direction of a file with its strength.
fn ablation(metadata: &HashMap<String, String>, view: &TensorView<'_>) -> Result<Ablation, Unread> {
    if view.shape().iter().filter(|d| **d != 1).count() > 1 {
        return Err(Unread::Words(format!("its shape is {:?}", view.shape())));
    }
    let strength = match metadata.get(STRENGTH) {
        None => 1.0,
        Some(text) => number(text)
            .filter(|s| *s > 0.0 && *s <= 1.0)
            .ok_or_else(|| Unread::Words("its strength is not above 0 and at most 1".into()))?,
    };
    let values = decode(view).ok_or_else(|| Unread::Words(format!("its type is {:?}", view.dtype())))?;
    Ok(Ablation::new(Direction::new(values).map_err(Unread::Direction)?).with_strength(strength))
}

/// The gated terms of a file, or what is wrong with them in words.
fn gates(metadata: &HashMap<String, String>, tensors: &SafeTensors<'_>) -> Result<Vec<GatedTerm>, String> {
    let known = |name: &str| (0..MOST_GATES).any(|n| GATE_PARTS.iter().any(|part| gate_key(n, part) == name));
    if let Some(other) = tensors.names().into_iter().find(|name| name.starts_with("gate.") && !known(name)) {
        return Err(format!("`{}` is no part of one", other.chars().take(40).collect::<String>()));
    }
    let count = (0..MOST_GATES).take_while(|n| tensors.tensor(&gate_key(*n, "vector")).is_ok()).count();
    if tensors.names().iter().filter(|name| name.starts_with("gate.")).count() != count * GATE_PARTS.len() {
        return Err("a part of one is missing".into());
    }
    (0..count).map(|n| gate(metadata, tensors, n)).collect()
}

/// The tensors of one gated term.
const GATE_PARTS: [&str; 3] = ["vector", "weights", "offsets"];

fn gate(metadata: &HashMap<String, String>, tensors: &SafeTensors<'_>, n: usize) -> Result<GatedTerm, String> {
    let values = |part: &str, shape: &[usize]| {
        let name = gate_key(n, part);
        let view = tensors.tensor(&name).map_err(|_| format!("`{name}` is missing"))?;
        if view.shape() != shape {
            return Err(format!("`{name}` has the shape {:?}, not {shape:?}", view.shape()));
        }
        decode(&view).ok_or_else(|| format!("`{name}` has the type {:?}", view.dtype()))
    };
    let text = |part: &str| {
        let key = format!("lancet.{}", gate_key(n, part));
        metadata.get(&key).cloned().ok_or_else(|| format!("it lacks `{key}`"))
    };
    let start = |text: &str| text.chars().take(40).collect::<String>();
    let layer = text("layer")?;
    let at = layer.parse::<u64>().ok().filter(|layer| *layer < MOST_PLACES).and_then(|l| usize::try_from(l).ok());
    let at = at.ok_or_else(|| format!("`{}` is no layer", start(&layer)))?;
    let shapes = text("shapes")?;
    let shape = |word: &str| Shape::ALL.into_iter().find(|shape| shape.name() == word);
    let shapes: Vec<Shape> = (shapes.split(' ').map(|word| shape(word).ok_or(word)).collect::<Result<_, _>>())
        .map_err(|word| format!("`{}` is no shape", start(word)))?;
    let vector = tensors.tensor(&gate_key(n, "vector")).map_err(|e| e.to_string())?;
    let width = vector.shape().iter().product::<usize>();
    let vector = values("vector", &[width])?;
    let weights = values("weights", &[shapes.len(), width])?;
    let offsets = values("offsets", &[shapes.len()])?;
    let factors = shapes.into_iter().zip(weights.chunks(width.max(1))).zip(offsets);
    let factors = factors.map(|((shape, weights), offset)| Factor { weights: weights.to_vec(), offset, shape });
    GatedTerm::new(at, vector, factors.collect()).map_err(|error| error.to_string())
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
    let ours = |name: &str| matches!(name, "direction" | "addition") || name.starts_with("gate.");
    gates(&metadata, &tensors).is_ok()
        && tensors.iter().all(|(name, view)| ours(name) && view.dtype() == Dtype::F32)
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

    fn load_bytes(bytes: &[u8]) -> Result<Edit, Error> {
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

    fn gated() -> Edit {
        let factor = |seed: f64, shape| Factor { weights: vec![seed, -seed, 0.5], offset: seed / 3.0, shape };
        let two = vec![factor(0.1, Shape::Clipped), factor(7.0, Shape::Relu)];
        let gates = vec![
            GatedTerm::new(3, vec![0.1, 0.0, -2.0], two).unwrap(),
            GatedTerm::new(1, vec![1.0, 1.0, 1e-3], vec![factor(-1.0, Shape::Identity)]).unwrap(),
        ];
        Edit::new(None, None, gates).unwrap()
    }

    #[test]
    fn an_edit_comes_back_as_it_is_stored() {
        let direction = Direction::new(vec![1.0, 2.0, -0.5]).unwrap();
        let ablation = Ablation::new(direction).with_strength(0.5);
        let addition = Addition { vector: vec![0.1, 0.2, 0.3], layer: 2, position: -3, alpha: 1.5 };
        let terms = gated().gates().to_vec();
        for edit in [
            gated(),
            Edit::from(ablation.clone()),
            Edit::new(Some(ablation.clone()), Some(addition.clone()), terms.clone()).unwrap(),
            Edit::new(None, Some(addition), terms).unwrap(),
        ] {
            let stored = as_stored(&edit).unwrap();
            let bytes = encode(&stored, HashMap::new()).unwrap();
            assert_eq!(load_bytes(&bytes).unwrap(), stored);
            assert!(is_plain(&bytes));
        }
        // what an older Lancet reads says nothing of versions
        let (_, header) = SafeTensors::read_metadata(&encode(&ablation.into(), HashMap::new()).unwrap()).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap().get(FORMAT), None);
    }

    #[test]
    fn damaged_terms_and_later_versions_are_refused_in_words() {
        let whole = encode(&gated(), HashMap::new()).unwrap();
        let tensors = SafeTensors::deserialize(&whole).unwrap();
        let (_, header) = SafeTensors::read_metadata(&whole).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let broken = |left_out: &str, more: Option<(&str, usize)>, changes: &[(&str, &str)]| {
            let mut metadata = metadata.clone();
            metadata.extend(changes.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())));
            let zeros = vec![0u8; 4 * more.map_or(0, |(_, len)| len)];
            let mut views: Vec<(String, TensorView<'_>)> =
                tensors.tensors().into_iter().filter(|(name, _)| name != left_out).collect();
            views.extend(
                more.map(|(name, len)| (name.to_string(), TensorView::new(Dtype::F32, vec![len], &zeros).unwrap())),
            );
            load_bytes(&safetensors::serialize(views, Some(metadata)).unwrap()).unwrap_err().to_string()
        };
        for (left_out, more, changes, words) in [
            ("gate.0.offsets", None, &[][..], "a part of one is missing"),
            ("gate.0.vector", None, &[], "a part of one is missing"),
            ("gate.1.vector", Some(("gate.1.vector", 3)), &[], "a vector of it is zero"),
            ("gate.1.vector", Some(("gate.1.vector", 2)), &[], "has the shape"),
            ("", Some(("gate.2.other", 1)), &[], "is no part of one"),
            ("", None, &[("lancet.gate.0.layer", "0")], "its layer must be at least 1"),
            ("", None, &[("lancet.gate.0.layer", "-1")], "`-1` is no layer"),
            ("", None, &[("lancet.gate.0.shapes", "clipped sigmoid")], "`sigmoid` is no shape"),
            ("", None, &[("lancet.gate.0.shapes", "clipped")], "has the shape"),
            ("", None, &[(FORMAT, "3")], "of version 3, and this Lancet reads 1 and 2"),
        ] {
            let message = broken(left_out, more, changes);
            assert!(message.contains(words), "{left_out} {changes:?}: {message}");
        }
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
