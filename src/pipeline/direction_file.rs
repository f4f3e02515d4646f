//! Direction files: safetensors with a tensor `direction`, or `.npy`.

mod floats;
mod gates;
mod gguf;
mod npy;
mod pickle;
mod vectors;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::edit::{Ablation, Addition, Direction, Edit, EditError, GatedTerm, WriteKind, Writes};
use crate::error::Error;
use crate::files;
use crate::report::{Found, GateResult, GateSetting, SearchSetting, SelectResult};
use floats::{ByteOrder, Float};
use vectors::Vectors;

/// What the metadata of a file says of how its edit was found.
fn origin(found: &Found) -> Vec<(&'static str, String)> {
    match found {
        Found::Select(SelectResult { selected, refined, .. }) => {
            let scores = match refined {
                Some(refined) => [refined.refusal_score, refined.harmful_refusal_score, refined.kl],
                None => [selected.refusal_score, selected.harmful_refusal_score, selected.kl],
            };
            let [refusal_score, harmful_refusal_score, kl] = scores.map(|score| score.to_string());
            let method = refined.as_ref().map(|refined| ("lancet.method", refined.by.method().to_string()));
            let own = [
                ("lancet.layer", selected.layer.to_string()),
                ("lancet.position", selected.position.to_string()),
                ("lancet.lambda", selected.lambda.to_string()),
                ("lancet.refusal_score", refusal_score),
                ("lancet.harmful_refusal_score", harmful_refusal_score),
                ("lancet.kl", kl),
            ];
            own.into_iter().chain(method).collect()
        }
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
    let (method, lambda, position, layer) = match setting {
        SearchSetting::Unchanged | SearchSetting::SystemPrompt { .. } | SearchSetting::Gate { gates: None } => {
            return Vec::new();
        }
        SearchSetting::Gate { gates: Some(gates) } => return origin_of_gates(gates),
        SearchSetting::Refusal { position, layer } => ("refusal".to_string(), None, position, layer),
        SearchSetting::Wang { lambda, position, layer, .. } => ("wang".to_string(), Some(lambda), position, layer),
        SearchSetting::Refined { method, lambda, position, layer } => {
            (method.to_string(), Some(lambda), position, layer)
        }
    };
    let entries = [
        ("lancet.method", Some(method)),
        ("lancet.layer", layer.map(|at| at.to_string())),
        ("lancet.position", position.map(|at| at.to_string())),
        ("lancet.lambda", lambda.map(f64::to_string)),
    ];
    entries.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// Writes an edit with its provenance, numbers as float32: what is ablated as the tensor `direction`, `[d_model]`, or
/// `[k, d_model]` for several directions, with the strength or strengths, and the writes where not all are meant; the vector
/// of an addition as `addition`, `[d_model]`, before its factor, those of several as `addition.n`; the gated term `n` as
/// `gate.n.vector`, `[d_model]`, `gate.n.weights`, `[factors, d_model]`, and `gate.n.offsets`, `[factors]`. Files of one
/// direction at every write and one addition at most are of version 1, all others of version 2.
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

/// Tensors of a file that is written: name, shape, and bytes.
type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;

/// Little-endian float32.
fn single(values: &mut dyn Iterator<Item = f64>) -> Vec<u8> {
    values.flat_map(|v| (v as f32).to_le_bytes()).collect()
}

/// An edit as a direction file, with these entries of metadata beside its own.
fn encode(edit: &Edit, mut metadata: HashMap<String, String>) -> Result<Vec<u8>, Error> {
    let mut tensors = Tensors::new();
    if let Some(ablation) = edit.ablation() {
        let (units, k) = (ablation.units(), ablation.vectors().len());
        let shape = if k == 1 { vec![ablation.width()] } else { vec![k, ablation.width()] };
        tensors.push(("direction".into(), shape, single(&mut units.iter().copied())));
        let mut strengths: Vec<String> = ablation.strengths().iter().map(f64::to_string).collect();
        if strengths.iter().all(|strength| *strength == strengths[0]) {
            strengths.truncate(1);
        }
        metadata.insert(STRENGTH.into(), strengths.join(" "));
        let Writes { layers, kinds } = ablation.writes();
        if let Some(layers) = layers {
            metadata.insert(LAYERS.into(), layers.iter().map(usize::to_string).collect::<Vec<_>>().join(" "));
        }
        if let Some(kinds) = kinds {
            metadata.insert(KINDS.into(), kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" "));
        }
        if k > 1 || !ablation.writes().is_all() {
            metadata.insert(FORMAT.into(), "2".into());
        }
    }
    let several = edit.additions().len() > 1;
    for (n, addition) in edit.additions().iter().enumerate() {
        let vector = &addition.vector;
        let Keys { tensor, layer, position, alpha } = Keys::of(several.then_some(n));
        tensors.push((tensor, vec![vector.len()], single(&mut vector.iter().copied())));
        metadata.insert(layer, addition.layer.to_string());
        metadata.insert(position, addition.position.to_string());
        metadata.insert(alpha, addition.alpha.to_string());
        if several {
            metadata.insert(FORMAT.into(), "2".into());
        }
    }
    if let Some(version) = gates::encode(edit.gates(), &mut tensors, &mut metadata) {
        metadata.insert(FORMAT.into(), version.into());
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

/// The edit as [`save`] and [`load`] hand it on: rounded to float32, the direction then normalised.
///
/// # Errors
/// Never for an edit that is one; the same checks run again.
pub fn as_stored(edit: &Edit) -> Result<Edit, Error> {
    let single = |values: &[f64]| values.iter().map(|v| f64::from(*v as f32)).collect::<Vec<f64>>();
    let ablation = match edit.ablation() {
        Some(found) => {
            let directions = found.vectors().iter().map(|one| Direction::new(single(one.unit())));
            let stored = Ablation::of_orthonormal(directions.collect::<Result<_, _>>()?)?;
            Some(stored.with_strengths(&found.strengths()).on(found.writes().clone()))
        }
        None => None,
    };
    let addition = |a: &Addition| Addition { vector: single(&a.vector), ..a.clone() };
    let additions = edit.additions().iter().map(addition).collect();
    Ok(Edit::new(ablation, additions, edit.gates().iter().map(GatedTerm::rounded).collect())?)
}

/// Metadata of a direction file.
const FORMAT: &str = "lancet.format";
const STRENGTH: &str = "lancet.strength";
const LAYERS: &str = "lancet.writes_layers";
const KINDS: &str = "lancet.writes_kinds";
const LAYER: &str = "lancet.addition_layer";
const POSITION: &str = "lancet.addition_position";
const ALPHA: &str = "lancet.addition_alpha";

/// Where a direction file holds an addition: its tensor, and the keys of its metadata.
struct Keys {
    tensor: String,
    layer: String,
    position: String,
    alpha: String,
}

impl Keys {
    /// Of addition `n` of several, or of the only one.
    fn of(n: Option<usize>) -> Self {
        let of = |key: &str| n.map_or_else(|| key.to_string(), |n| format!("{key}.{n}"));
        Self { tensor: of("addition"), layer: of(LAYER), position: of(POSITION), alpha: of(ALPHA) }
    }
}

/// Additions that are read, at most.
const MOST_ADDITIONS: usize = 1024;

/// Layers and positions are below this.
const MOST_PLACES: u64 = 1 << 20;

/// Which vector is meant of a file that holds several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pick {
    /// The tensor, where a file has several.
    pub tensor: Option<String>,
    /// Its place in an array of vectors: a number for each axis but the last, where those below 0 count from the end.
    pub row: Vec<i64>,
}

/// Reads a direction: the tensor `direction` of a safetensors file (or its only tensor), or a `.npy` of
/// shape `[d_model]`; float16, float32 or float64 of either byte order, in safetensors also bfloat16. A file of Lancet's
/// own also says the strength, and may hold several directions, additions and gated terms ([`save`]); with additions or
/// gated terms of version 2 it may lack the direction.
///
/// # Errors
/// If the file is neither, the direction is zero or not finite, or it is of a later version.
pub fn load(path: &Path) -> Result<Edit, Error> {
    load_picked(path, &Pick::default())
}

/// The same, of files that other programs write too: an array of vectors in `.npy` or safetensors, tensors of PyTorch's
/// `torch.save`, of which `pick` names one, and control vectors in GGUF, which are added and not ablated
/// (docs/edits.md).
///
/// # Errors
/// As [`load`], and where `pick` names nothing, or one thing of several is to be named.
pub fn load_picked(path: &Path, pick: &Pick) -> Result<Edit, Error> {
    let bad = |what: String| {
        Error::usage(
            format!("`{}` holds no direction: {what}", path.display()),
            "give a safetensors file with a tensor `direction` of shape [d_model], or a `.npy` of that shape",
        )
    };
    let start = || files::first_bytes(path, GGUF_START);
    let bytes = match files::read(path, files::MAX_DIRECTION) {
        Ok(bytes) => bytes,
        // a model is larger, and its beginning says what it is
        Err(_) if gguf::is(&start()) => start(),
        Err(error) => return Err(bad(error.to_string())),
    };
    if bytes.is_empty() {
        return Err(bad("it is empty".into()));
    }
    let elsewhere = Elsewhere { path, pick };
    if npy::is(&bytes) {
        let vectors = npy::read(&bytes).map_err(|error| bad(error.to_string()))?;
        return elsewhere.row(&vectors);
    }
    if gguf::is(&bytes) {
        return elsewhere.control_vector(&bytes);
    }
    let tensors = match SafeTensors::deserialize(&bytes) {
        Ok(tensors) => tensors,
        // the size of a header may look like the beginning of a pickle, so these come second
        Err(_) if pickle::is(&bytes) => return elsewhere.torch(&bytes),
        Err(e) => return Err(bad(format!("it is neither `.npy` nor safetensors ({e})"))),
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    if let Some(version) = metadata.get(FORMAT).filter(|version| !matches!(version.as_str(), "1" | "2" | "3")) {
        let start = shown(version);
        return Err(Error::usage(
            format!("`{}` is a direction file of version {start}, and this Lancet reads 1 to 3", path.display()),
            "use the version of Lancet that wrote it",
        ));
    }
    if *pick != Pick::default() {
        return elsewhere.tensor(&tensors);
    }
    let gates =
        gates::decode(&metadata, &tensors).map_err(|what| bad(format!("its gated terms are damaged: {what}")))?;
    let additions = additions(&metadata, &tensors).map_err(|what| bad(format!("its addition is damaged: {what}")))?;
    let own = metadata.contains_key(FORMAT);
    let names = tensors.names();
    let view = match tensors.tensor("direction") {
        Ok(view) => Some(view),
        Err(_) if !gates.is_empty() || (own && !additions.is_empty()) => None,
        Err(_) if names.len() == 1 => Some(tensors.tensor(names[0]).map_err(|e| bad(e.to_string()))?),
        Err(_) => {
            let shown: Vec<String> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
            return Err(bad(format!("of its {} tensors none is `direction`: {}", names.len(), shown.join(", "))));
        }
    };
    let ablation = match view {
        Some(view) => Some(ablation(&metadata, &view).map_err(|error| match error {
            Unread::Words(what) => bad(what),
            Unread::Edit(error) => error.into(),
        })?),
        None => None,
    };
    Ok(Edit::new(ablation, additions, gates)?)
}

/// Bytes from which a GGUF file tells what it is.
const GGUF_START: u64 = 1 << 16;

/// A file of another program, and what is meant of it.
struct Elsewhere<'a> {
    path: &'a Path,
    pick: &'a Pick,
}

impl Elsewhere<'_> {
    fn bad(&self, what: &dyn std::fmt::Display, hint: String) -> Error {
        Error::usage(format!("`{}` holds no direction: {what}", self.path.display()), hint)
    }

    /// The picked vector of an array, ablated everywhere.
    fn row(&self, vectors: &Vectors) -> Result<Edit, Error> {
        let row = vectors.row(&self.pick.row).map_err(|error| self.bad(&error, error.hint()))?;
        Ok(Direction::new(row.to_vec())?.into())
    }

    /// The picked tensor of a safetensors file.
    fn tensor(&self, tensors: &SafeTensors<'_>) -> Result<Edit, Error> {
        let names = tensors.names();
        let name = match &self.pick.tensor {
            Some(name) => name.as_str(),
            None if names.len() == 1 => names[0],
            None => "direction",
        };
        let view = tensors.tensor(name).map_err(|_| self.no_tensor(name, &names))?;
        let vectors = Vectors::of_tensor(&view)
            .map_err(|error| self.bad(&error, "name another tensor with `--direction-tensor`".into()))?;
        self.row(&vectors)
    }

    /// The picked tensor of a file of PyTorch.
    fn torch(&self, bytes: &[u8]) -> Result<Edit, Error> {
        let all = pickle::tensors(bytes).map_err(|error| self.bad(&error, error.hint()))?;
        let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        let found = match (&self.pick.tensor, all.as_slice()) {
            (Some(name), all) => {
                all.iter().find(|one| one.name == *name).ok_or_else(|| self.no_tensor(name, &names))?
            }
            (None, [only]) => only,
            (None, all) => {
                all.iter().find(|one| one.name == "direction").ok_or_else(|| self.no_tensor("direction", &names))?
            }
        };
        self.row(&found.vectors)
    }

    fn no_tensor(&self, name: &str, names: &[&str]) -> Error {
        let list: Vec<String> = names.iter().take(8).map(|name| format!("`{}`", shown(name))).collect();
        let more = if names.len() > list.len() { ", .." } else { "" };
        let what = format!("of its {} tensors none is `{}`: {}{more}", names.len(), shown(name), list.join(", "));
        self.bad(&what, "name one with `--direction-tensor`".into())
    }

    /// A control vector: what it holds for block `N` joins `resid_post[N]`, which is `resid_pre[N + 1]`, as llama.cpp adds
    /// it.
    fn control_vector(&self, bytes: &[u8]) -> Result<Edit, Error> {
        let found = gguf::control_vector(bytes).map_err(|error| self.bad(&error, error.hint()))?;
        if *self.pick != Pick::default() {
            return Err(Error::usage(
                format!("`{}` is a control vector, and all of its layers are added", self.path.display()),
                "leave `--direction-tensor` and `--direction-row` out; `--add` scales it",
            ));
        }
        let addition = |(block, vector)| Addition { vector, layer: block + 1, position: -1, alpha: 1.0 };
        Ok(Edit::new(None, found.layers.into_iter().map(addition).collect(), Vec::new())?)
    }
}

/// The start of a text of a file, for a message: at most 40 characters, control characters spelled out.
fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_debug).collect()
}

/// Why a direction was not read.
enum Unread {
    /// In words.
    Words(String),
    /// It is none.
    Edit(EditError),
}

impl From<EditError> for Unread {
    fn from(error: EditError) -> Self {
        Self::Edit(error)
    }
}

/// The directions of a file with their strengths, and the writes that they are ablated from. Only files of version 2 hold
/// several: the rows of other programs' matrices are no basis, but a direction a layer, say.
fn ablation(metadata: &HashMap<String, String>, view: &TensorView<'_>) -> Result<Ablation, Unread> {
    let words = |what: String| Unread::Words(what);
    let rows = match view.shape() {
        [rows, _] if metadata.contains_key(FORMAT) => *rows,
        shape if shape.iter().filter(|d| **d != 1).count() > 1 => {
            return Err(words(format!("its shape is {shape:?}; name a row of it with `--direction-row`")));
        }
        _ => 1,
    };
    let values = decode(view).ok_or_else(|| words(format!("its type is {:?}", view.dtype())))?;
    let directions: Vec<Direction> = match rows {
        0 | 1 => vec![Direction::new(values).map_err(EditError::from)?],
        rows if rows > Ablation::MOST_DIRECTIONS => return Err(EditError::Directions { got: rows }.into()),
        rows => {
            let of = values.chunks((values.len() / rows).max(1));
            of.map(|row| Direction::new(row.to_vec())).collect::<Result<_, _>>().map_err(EditError::from)?
        }
    };
    let strengths = match metadata.get(STRENGTH) {
        None => vec![1.0],
        Some(text) => (text.split(' ').map(number).collect::<Option<Vec<f64>>>())
            .filter(|all| all.iter().all(|s| *s > 0.0 && *s <= 1.0) && [1, directions.len()].contains(&all.len()))
            .ok_or_else(|| words("its strength is not above 0 and at most 1".into()))?,
    };
    let ablation = Ablation::of_orthonormal(directions)?;
    let ablation = match strengths.as_slice() {
        [one] => ablation.with_strength(*one),
        each => ablation.with_strengths(each),
    };
    Ok(ablation.on(writes(metadata).map_err(words)?))
}

/// The writes that the metadata name; all where they name none.
fn writes(metadata: &HashMap<String, String>) -> Result<Writes, String> {
    let layer = |word: &str| {
        let layer = word.parse::<u64>().ok().filter(|layer| *layer < MOST_PLACES);
        layer.and_then(|layer| usize::try_from(layer).ok()).ok_or_else(|| format!("`{}` is no layer", shown(word)))
    };
    let kind = |word: &str| {
        let kind = WriteKind::ALL.into_iter().find(|kind| kind.name() == word);
        kind.ok_or_else(|| format!("`{}` is no kind of write", shown(word)))
    };
    let layers = metadata.get(LAYERS).map(|text| text.split(' ').map(layer).collect()).transpose()?;
    let kinds = metadata.get(KINDS).map(|text| text.split(' ').map(kind).collect()).transpose()?;
    Ok(Writes { layers, kinds })
}

fn number(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|v| v.is_finite())
}

/// The additions of a file, or what is wrong with them in words.
fn additions(metadata: &HashMap<String, String>, tensors: &SafeTensors<'_>) -> Result<Vec<Addition>, String> {
    let several = (0..MOST_ADDITIONS).map(|n| Keys::of(Some(n)));
    let several = several.map_while(|keys| Some((tensors.tensor(&keys.tensor).ok()?, keys)));
    let only = Keys::of(None);
    let vectors: Vec<(TensorView<'_>, Keys)> = match tensors.tensor(&only.tensor) {
        Ok(vector) => vec![(vector, only)],
        Err(_) => several.collect(),
    };
    let found: Vec<Addition> =
        vectors.iter().map(|(vector, keys)| addition(metadata, vector, keys)).collect::<Result<_, _>>()?;
    let is_part = |name: &&str| *name == "addition" || name.starts_with("addition.");
    match tensors.names().into_iter().filter(is_part).count() == found.len() {
        true => Ok(found),
        false => Err("its vectors are not numbered one after the other".into()),
    }
}

/// The addition that a tensor and the metadata under `keys` make, or what is wrong with it in words.
fn addition(metadata: &HashMap<String, String>, vector: &TensorView<'_>, keys: &Keys) -> Result<Addition, String> {
    let text = |key: &str| metadata.get(key).ok_or_else(|| format!("it lacks `{key}`"));
    let odd = |key: &str, text: &str, expected: &str| format!("`{key}` is `{}`, not {expected}", shown(text));
    let layer = text(&keys.layer)?;
    let at = layer.parse::<u64>().ok().filter(|layer| (1..MOST_PLACES).contains(layer));
    let at = at.ok_or_else(|| odd(&keys.layer, layer, "a layer from 1"))?;
    let alpha = text(&keys.alpha)?;
    let position = match metadata.get(&keys.position) {
        None => -1,
        Some(text) => {
            let position = text.parse::<i64>().ok().filter(|p| *p < 0 && p.unsigned_abs() < MOST_PLACES);
            position.ok_or_else(|| odd(&keys.position, text, "a negative position"))?
        }
    };
    let values = decode(vector).ok_or_else(|| format!("its type is {:?}", vector.dtype()))?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err("it is not finite".to_owned());
    }
    Ok(Addition {
        vector: values,
        layer: usize::try_from(at).map_err(|_| odd(&keys.layer, layer, "a layer from 1"))?,
        position,
        alpha: number(alpha).ok_or_else(|| odd(&keys.alpha, alpha, "a number"))?,
    })
}

/// Whether a file has the form that [`save`] gives it: no tensors and no metadata but Lancet's own.
pub(super) fn is_plain(bytes: &[u8]) -> bool {
    let (Ok(tensors), Ok((_, header))) = (SafeTensors::deserialize(bytes), SafeTensors::read_metadata(bytes)) else {
        return false;
    };
    let metadata = header.metadata().clone().unwrap_or_default();
    let ours = |name: &str| {
        matches!(name, "direction" | "addition") || name.starts_with("gate.") || name.starts_with("addition.")
    };
    gates::decode(&metadata, &tensors).is_ok()
        && additions(&metadata, &tensors).is_ok()
        && tensors.iter().all(|(name, view)| ours(name) && view.dtype() == Dtype::F32)
        && metadata.keys().all(|key| key.starts_with("lancet."))
}

fn decode(view: &TensorView<'_>) -> Option<Vec<f64>> {
    Some(Float::of(view.dtype())?.decode(view.data(), ByteOrder::Little))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Factor, RadialBasis, Reading, Shape};

    /// Calls `read` with `times` changed copies of a file: bytes replaced by random and by extreme ones, numbers of 8
    /// bytes by powers of 2 and their neighbours, parts cut out, doubled or cut off. The same copies every time.
    pub(super) fn changed(whole: &[u8], times: usize, read: impl Fn(&[u8])) {
        // xorshift64, Marsaglia 2003
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as usize % below
        };
        for _ in 0..times {
            let mut bytes = whole.to_vec();
            for _ in 0..=random(3) {
                let (start, end) = (random(bytes.len()), random(bytes.len()));
                match random(6) {
                    0 => bytes[start] = random(256) as u8,
                    1 => bytes[start] = [0, 0xff, 0x7f, 0x80][random(4)],
                    2 => {
                        let number = (1u64 << random(64)).wrapping_add(random(3) as u64).wrapping_sub(1);
                        let end = bytes.len().min(start + 8);
                        bytes[start..end].copy_from_slice(&number.to_le_bytes()[..end - start]);
                    }
                    3 if start < end && end - start < bytes.len() => drop(bytes.drain(start..end)),
                    4 if start < end => bytes.extend_from_within(start..end),
                    _ => bytes.truncate(start.max(1)),
                }
            }
            read(&bytes);
        }
    }

    #[test]
    fn texts_are_shown_harmlessly() {
        assert_eq!(super::shown("a\u{1b}[0m\n"), "a\\u{1b}[0m\\n");
        assert_eq!(super::shown(&"x".repeat(100)).len(), 40);
    }

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
        let found = &direction.additions()[0];
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
    fn no_vector_of_an_addition_is_left_unread() {
        let vector: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let load_named = |names: &[&str]| {
            let view = || TensorView::new(Dtype::F32, vec![2], &vector).unwrap();
            let keys = [("", ""), (".0", "0"), (".1", "1")].map(|(end, n)| (end, format!("{n}2")));
            let entries = keys.iter().flat_map(|(end, layer)| {
                [(format!("{LAYER}{end}"), layer.clone()), (format!("{ALPHA}{end}"), "1".to_string())]
            });
            let metadata = entries.chain([(FORMAT.to_string(), "2".to_string())]).collect();
            load_bytes(&safetensors::serialize(names.iter().map(|name| (*name, view())), Some(metadata)).unwrap())
        };
        assert_eq!(load_named(&["addition.0", "addition.1"]).unwrap().additions().len(), 2);
        for names in [&["addition", "addition.0"][..], &["addition.0", "addition.2"], &["addition.0", "addition.x"]] {
            assert!(load_named(names).unwrap_err().to_string().contains("not numbered"), "{names:?}");
        }
    }

    fn gated() -> Edit {
        let factor = |seed: f64, shape| Factor::linear(vec![seed, -seed, 0.5], seed / 3.0, shape);
        let basis = RadialBasis {
            projection: vec![0.5, 0.1, -3.0, 2.0, 0.0, 0.7],
            shift: vec![0.3, -0.2],
            centers: vec![0.1, 0.2, -1.0, 4.0, 0.0, 0.6],
            weights: vec![1.0, -2.5, 0.1],
        };
        let near = Factor { reading: Reading::Radial(basis), offset: -0.5, shape: Shape::Clipped };
        let two = vec![near, factor(7.0, Shape::Relu)];
        let gates = vec![
            GatedTerm::new(3, vec![0.1, 0.0, -2.0], two).unwrap(),
            GatedTerm::new(1, vec![1.0, 1.0, 1e-3], vec![factor(-1.0, Shape::Identity)]).unwrap(),
        ];
        Edit::new(None, vec![], gates).unwrap()
    }

    fn span() -> Ablation {
        let rows = [vec![1.0, 2.0, -0.5], vec![0.3, 0.1, 7.0]];
        Ablation::of_span(rows.into_iter().map(|row| Direction::new(row).unwrap()).collect()).unwrap()
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
            Edit::new(Some(ablation.clone()), vec![addition.clone()], terms.clone()).unwrap(),
            Edit::new(None, vec![addition.clone()], terms).unwrap(),
            Edit::new(None, vec![Addition { layer: 5, ..addition.clone() }, addition], vec![]).unwrap(),
            Edit::from(ablation.clone().on(Writes::of_layers([2, 3]))),
            Edit::from(span().with_strengths(&[1.0, 0.25])),
            Edit::from(span().on(Writes { layers: None, kinds: Some([WriteKind::AttnOut].into()) })),
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
    fn a_matrix_of_another_program_is_no_basis() {
        let bytes = encode(&Edit::from(span()), HashMap::new()).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let with = |metadata: &[(&str, &str)]| {
            let metadata = metadata.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect();
            load_bytes(&safetensors::serialize(tensors.tensors(), Some(metadata)).unwrap())
        };
        assert_eq!(with(&[(FORMAT, "2")]).unwrap().ablation().unwrap().vectors().len(), 2);
        for (metadata, words) in [
            (&[][..], "its shape is [2, 3]; name a row of it with `--direction-row`"),
            (&[(FORMAT, "2"), (STRENGTH, "1 0.5 1")], "its strength is not"),
            (&[(FORMAT, "2"), (STRENGTH, "1 0")], "its strength is not"),
            (&[(FORMAT, "2"), (LAYERS, "1 x")], "`x` is no layer"),
            (&[(FORMAT, "2"), (KINDS, "attn_out heads")], "`heads` is no kind of write"),
        ] {
            let message = with(metadata).unwrap_err().to_string();
            assert!(message.contains(words), "{metadata:?}: {message}");
        }
        let rows: Vec<u8> = [1.0f32, 0.0, 1.0, 0.5].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![2, 2], &rows).unwrap();
        let metadata = HashMap::from([(FORMAT.to_string(), "2".to_string())]);
        let bytes = safetensors::serialize([("direction", view)], Some(metadata)).unwrap();
        assert!(load_bytes(&bytes).unwrap_err().to_string().contains("not orthogonal"));
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
            ("gate.0.offsets", None, &[][..], "`gate.0.offsets` is missing"),
            ("gate.0.vector", None, &[], "a part of one is missing"),
            ("gate.1.vector", Some(("gate.1.vector", 3)), &[], "a vector of it is zero"),
            ("gate.1.vector", Some(("gate.1.vector", 2)), &[], "has the shape"),
            ("", Some(("gate.2.other", 1)), &[], "is no part of one"),
            ("", None, &[("lancet.gate.0.layer", "0")], "its layer must be at least 1"),
            ("", None, &[("lancet.gate.0.layer", "-1")], "`-1` is no layer"),
            ("", None, &[("lancet.gate.0.shapes", "clipped sigmoid")], "`sigmoid` is no shape"),
            ("", None, &[("lancet.gate.0.shapes", "clipped")], "has the shape"),
            ("", None, &[(FORMAT, "4")], "of version 4, and this Lancet reads 1 to 3"),
            ("gate.0.radial.0.shift", None, &[], "`gate.0.radial.0.shift` is missing"),
            ("gate.0.radial.0.centers", Some(("gate.0.radial.0.centers", 4)), &[], "its centers have the shape"),
            ("", Some(("gate.0.radial.2.shift", 2)), &[], "factor 2 reads something"),
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

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/directions").join(name)
    }

    #[test]
    fn a_control_vector_is_added_behind_its_blocks() {
        let edit = load(&fixture("repeng.gguf")).unwrap();
        let layers: Vec<usize> = edit.additions().iter().map(|one| one.layer).collect();
        assert_eq!((layers, edit.ablation()), (vec![2, 4], None));
        assert_eq!(edit.additions()[0].scaled(), [0.5, -1.0, 0.25, 2.0]);
        let pick = Pick { tensor: None, row: vec![1] };
        let error = load_picked(&fixture("repeng.gguf"), &pick).unwrap_err();
        assert!(error.to_string().contains("all of its layers are added"), "{error}");
    }

    #[test]
    fn a_vector_of_several_is_named() {
        let pick = |tensor: Option<&str>, row: &[i64]| Pick { tensor: tensor.map(str::to_string), row: row.to_vec() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.npy");
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        let numbers = [1.0f32, 0.0, 0.0, 0.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes);
        let start = [b"\x93NUMPY\x01\x00".as_slice(), &u16::try_from(header.len()).unwrap().to_le_bytes()].concat();
        std::fs::write(&path, start.into_iter().chain(header.bytes()).chain(numbers).collect::<Vec<u8>>()).unwrap();
        let error = load(&path).unwrap_err();
        assert!(error.hint().unwrap().contains("--direction-row"), "{error}");
        let unit = |edit: Edit| edit.ablation().unwrap().units();
        assert_eq!(unit(load_picked(&path, &pick(None, &[1])).unwrap()), [0.0, 0.6, 0.8]);
        assert_eq!(unit(load_picked(&path, &pick(None, &[-2])).unwrap()), [1.0, 0.0, 0.0]);
        assert!(load_picked(&path, &pick(None, &[2])).is_err());

        let several = load(&fixture("dictionary.pt")).unwrap_err();
        assert!(several.hint().unwrap().contains("--direction-tensor"), "{several}");
        let named = pickle::tensors(&std::fs::read(fixture("dictionary.pt")).unwrap()).unwrap();
        for one in named {
            let row = if one.vectors.axes().is_empty() { vec![] } else { vec![0; one.vectors.axes().len()] };
            let found = load_picked(&fixture("dictionary.pt"), &pick(Some(&one.name), &row)).unwrap();
            assert_eq!(found.width(), one.vectors.width(), "{}", one.name);
        }
        assert!(load_picked(&fixture("dictionary.pt"), &pick(Some("no such"), &[])).is_err());
        assert!(load(&fixture("view.pt")).unwrap().ablation().is_some());
    }
}
