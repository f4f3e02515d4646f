//! Control vectors in GGUF files, as llama.cpp's `cvector-generator` and repeng's `export_gguf` write them: a vector a
//! layer, which joins the residual stream at every position.
//!
//! # Which layer
//!
//! The tensor `direction.N` joins what leaves block `N`, with blocks counted from 0. That is `resid_post[N]`, and so
//! `resid_pre[N + 1]`.
//!
//! - llama.cpp: `common_control_vector_load_one` (`common/common.cpp`) lays `direction.N` at `n_embd * (N - 1)` of a
//!   buffer. `llama_adapter_cvec::apply` (`src/llama-adapter.cpp`) gives block `il`, from 1, what lies at
//!   `n_embd * (il - 1)`, so `il` is `N`. The graphs (`src/models/`) call `build_cvec(cur, il)` on the sum of the
//!   stream and the block's last write, and name the result `l_out`. Vectors of blocks that the model lacks are left
//!   out without a word.
//! - repeng: `ControlModel` wraps `model.layers[N]` and adds `directions[N]` to what it returns (`repeng/control.py`).
//!   `export_gguf` calls that `direction.N`.
//!
//! That is where vectors are added. Where they were measured is another matter: repeng measures `direction.N` on what
//! leaves block `N`, and `cvector-generator` on what leaves block `N - 1`, as it counts its vectors from 1 (`mean.hpp`,
//! `pca.hpp`).
//!
//! No file can change what leaves block 0: llama.cpp refuses one with a `direction.0`, and so does this module.
//!
//! # What is read
//!
//! Little-endian GGUF 2 and 3, under the rules of llama.cpp's own reader (`ggml/src/gguf.cpp`): tensors follow one
//! another in the order of their list, without gaps. llama.cpp takes float32 vectors only; here float16, bfloat16 and
//! float64 are read too. `controlvector.layer_count` is not read, as writers disagree on what it counts. A file that
//! names no architecture is a control vector if its tensors are those of one, as llama.cpp does not read the name.

use std::collections::{BTreeMap, BTreeSet};

use super::floats::{ByteOrder, Float};
use super::shown;

const MAGIC: &[u8] = b"GGUF";

/// `general.architecture` of a control vector.
const ARCHITECTURE: &str = "controlvector";

/// Where data begin, in bytes, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u32 = 32;

/// Axes of a tensor, at most (`GGML_MAX_DIMS`).
const MOST_AXES: u32 = 4;

/// Layers are below this.
const MOST_LAYERS: usize = 1 << 20;

/// A vector a layer, which joins the residual stream at every position.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlVector {
    /// The kind of model that it was made for, as its maker names it: an architecture of llama.cpp or a `model_type` of
    /// transformers (`llama`, `qwen2`).
    pub model_hint: Option<String>,
    /// By block, from 1: the vector that joins `resid_post` of that block, which is `resid_pre` of the next.
    /// `[d_model]`, finite, all of one length; at least one.
    pub layers: BTreeMap<usize, Vec<f64>>,
}

/// What a GGUF file holds that is no control vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A language model.
    Model,
    /// Low-rank changes to the weights of a model.
    Adapter,
    /// What `general.type` calls it.
    Other(String),
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Model => f.write_str("a model"),
            Self::Adapter => f.write_str("an adapter (LoRA)"),
            Self::Other(kind) => write!(f, "a file of the type `{kind}`"),
        }
    }
}

/// Why no control vector was read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GgufError {
    /// A version that is not read.
    #[error("it is a GGUF file of version {got}, and versions 2 and 3 are read")]
    Version {
        /// The version.
        got: u32,
    },
    /// Numbers with their highest byte first.
    #[error("it is a big-endian GGUF file, and little-endian ones are read")]
    BigEndian,
    /// The file ends inside its header.
    #[error("it is a GGUF file that ends within {within}")]
    Truncated {
        /// Where.
        within: &'static str,
    },
    /// An entry or tensor contradicts the format.
    #[error("it is a damaged GGUF file: {what}")]
    Damaged {
        /// The contradiction.
        what: String,
    },
    /// Another kind of file.
    #[error("it is {content} for the architecture `{architecture}` in GGUF, not a control vector")]
    OtherContent {
        /// What it is.
        content: Content,
        /// Its `general.architecture`.
        architecture: String,
    },
    /// No tensors.
    #[error("it is a control vector without vectors")]
    NoVectors,
    /// A tensor that is no vector of a layer.
    #[error("its tensor `{tensor}` is not called `direction.N` with a layer N from 1")]
    Name {
        /// The tensor.
        tensor: String,
    },
    /// A tensor of more than one axis, or of none, or without elements.
    #[error("its tensor `{tensor}` has the shape {shape:?}, not [d_model]")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape, the fastest axis first.
        shape: Vec<u64>,
    },
    /// Vectors of different lengths.
    #[error("its tensor `{tensor}` has {got} elements, and those before it have {expected}")]
    Width {
        /// The tensor.
        tensor: String,
        /// Elements of the first tensor.
        expected: u64,
        /// Elements of this one.
        got: u64,
    },
    /// Numbers of a type that is not read.
    #[error("its tensor `{tensor}` has the type {got}; expected F32, F16, BF16 or F64")]
    Type {
        /// The tensor.
        tensor: String,
        /// The type.
        got: String,
    },
    /// NaN or infinity.
    #[error("element {index} of its tensor `{tensor}` is {value}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Which element.
        index: usize,
        /// Its value.
        value: f64,
    },
}

impl GgufError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::OtherContent { content: Content::Model, .. } => {
                "give the control vector, as llama.cpp's `cvector-generator` or repeng's `export_gguf` writes it; \
                 a model is edited as an ONNX export, which Lancet takes as MODEL"
            }
            Self::OtherContent { content: Content::Adapter, .. } => {
                "merge the adapter into its model before that is exported to ONNX; what is read here is a control \
                 vector, as llama.cpp's `cvector-generator` or repeng's `export_gguf` writes it"
            }
            Self::Version { .. } | Self::BigEndian | Self::OtherContent { .. } => {
                "give a control vector that a current `cvector-generator` of llama.cpp or `export_gguf` of repeng wrote"
            }
            Self::Truncated { .. } | Self::Damaged { .. } => {
                "fetch or write the file again: a part of it is missing or changed"
            }
            Self::Type { .. } => "write the control vector with float32 numbers, as llama.cpp itself asks for",
            Self::NotFinite { .. } => "write the control vector again; equal prompts in both classes are a usual cause",
            Self::NoVectors | Self::Name { .. } | Self::Shape { .. } | Self::Width { .. } => {
                "give a control vector with one tensor `direction.N` of shape [d_model] for each layer N, from 1"
            }
        }
        .into()
    }
}

/// Whether a file begins as one.
pub fn is(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// The control vector of a file. What another kind of file is, is told from its first entries alone, so a part of it
/// from its start is enough for that.
///
/// # Errors
/// [`GgufError`].
pub fn control_vector(bytes: &[u8]) -> Result<ControlVector, GgufError> {
    let mut header = Header { rest: bytes.strip_prefix(MAGIC).unwrap_or_default() };
    header.version()?;
    let (tensors, entries) = (header.u64()?, header.u64()?);
    let mut metadata = Metadata::default();
    let all = metadata.read(&mut header, entries);
    if let Some(error) = metadata.other_content() {
        return Err(error);
    }
    all?;
    let tensors = tensors_of(&mut header, tensors)?;
    let data = data(bytes, header.rest, metadata.alignment()?)?;
    Ok(ControlVector { layers: layers(&tensors, data, metadata.alignment()?)?, model_hint: metadata.model_hint })
}

/// What is left of a header.
struct Header<'a> {
    rest: &'a [u8],
}

impl<'a> Header<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], GgufError> {
        let cut = usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length));
        let (taken, rest) = cut.ok_or(GgufError::Truncated { within: "its header" })?;
        self.rest = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("4 bytes were taken")))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("8 bytes were taken")))
    }

    fn text(&mut self) -> Result<&'a str, GgufError> {
        let length = self.u64()?;
        let text = std::str::from_utf8(self.take(length)?);
        text.map_err(|_| GgufError::Damaged { what: "a name or text of its header is not UTF-8".into() })
    }

    /// Passes the version, if it is one that is read.
    fn version(&mut self) -> Result<(), GgufError> {
        match self.u32()? {
            2 | 3 => Ok(()),
            other if (1..=3).contains(&other.swap_bytes()) => Err(GgufError::BigEndian),
            got => Err(GgufError::Version { got }),
        }
    }
}

/// The type of a value in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar { size: u64 },
    U32,
    Text,
    Array,
}

impl Kind {
    fn read(header: &mut Header<'_>) -> Result<Self, GgufError> {
        Ok(match header.u32()? {
            0 | 1 | 7 => Self::Scalar { size: 1 },
            2 | 3 => Self::Scalar { size: 2 },
            4 => Self::U32,
            5 | 6 => Self::Scalar { size: 4 },
            8 => Self::Text,
            9 => Self::Array,
            10..=12 => Self::Scalar { size: 8 },
            got => return Err(GgufError::Damaged { what: format!("no value has the type {got}") }),
        })
    }

    /// Passes a value of this type.
    fn skip(self, header: &mut Header<'_>) -> Result<(), GgufError> {
        match self {
            Self::Scalar { size } => header.take(size).map(drop),
            Self::U32 => header.take(4).map(drop),
            Self::Text => header.text().map(drop),
            Self::Array => Self::skip_array(header),
        }
    }

    /// Passes the elements of an array. Arrays of arrays are refused, as llama.cpp does.
    fn skip_array(header: &mut Header<'_>) -> Result<(), GgufError> {
        let (elements, count) = (Self::read(header)?, header.u64()?);
        match elements {
            Self::Scalar { size } => header.take(size.saturating_mul(count)).map(drop),
            Self::U32 => header.take(count.saturating_mul(4)).map(drop),
            Self::Text => (0..count).try_for_each(|_| header.text().map(drop)),
            Self::Array => Err(GgufError::Damaged { what: "an array of its header holds arrays".into() }),
        }
    }
}

/// The entries of the header that are used.
#[derive(Default)]
struct Metadata {
    architecture: Option<String>,
    content: Option<String>,
    model_hint: Option<String>,
    alignment: Option<u32>,
}

impl Metadata {
    /// Reads the entries, and keeps those before the first that is damaged.
    fn read(&mut self, header: &mut Header<'_>, count: u64) -> Result<(), GgufError> {
        let mut keys = BTreeSet::new();
        for _ in 0..count {
            let key = header.text()?;
            if !keys.insert(key) {
                return Err(GgufError::Damaged { what: format!("it has two entries `{}`", shown(key)) });
            }
            self.entry(key, header)?;
        }
        Ok(())
    }

    fn entry(&mut self, key: &str, header: &mut Header<'_>) -> Result<(), GgufError> {
        let kind = Kind::read(header)?;
        let text = match key {
            "general.architecture" => &mut self.architecture,
            "general.type" => &mut self.content,
            "controlvector.model_hint" => &mut self.model_hint,
            "general.alignment" if kind == Kind::U32 => {
                self.alignment = Some(header.u32()?);
                return Ok(());
            }
            "general.alignment" => return Err(GgufError::Damaged { what: format!("`{key}` is no uint32") }),
            _ => return kind.skip(header),
        };
        if kind != Kind::Text {
            return Err(GgufError::Damaged { what: format!("`{key}` is no text") });
        }
        *text = Some(header.text()?.to_owned());
        Ok(())
    }

    /// That the file is of another kind, where its entries say so.
    fn other_content(&self) -> Option<GgufError> {
        let architecture = self.architecture.as_deref().filter(|name| *name != ARCHITECTURE)?;
        let content = match self.content.as_deref() {
            None | Some("model") => Content::Model,
            Some("adapter") => Content::Adapter,
            Some(other) => Content::Other(shown(other)),
        };
        Some(GgufError::OtherContent { content, architecture: shown(architecture) })
    }

    /// What offsets of data are multiples of, in bytes.
    fn alignment(&self) -> Result<u64, GgufError> {
        let alignment = self.alignment.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(GgufError::Damaged {
                what: format!("`general.alignment` is {alignment}, which is no power of 2"),
            });
        }
        Ok(u64::from(alignment))
    }
}

/// A tensor as the header describes it.
struct Tensor<'a> {
    name: &'a str,
    layer: usize,
    width: u64,
    float: Float,
    offset: u64,
}

fn tensors_of<'a>(header: &mut Header<'a>, count: u64) -> Result<Vec<Tensor<'a>>, GgufError> {
    let mut tensors: Vec<Tensor<'a>> = Vec::new();
    let mut layers = BTreeSet::new();
    for _ in 0..count {
        let tensor = Tensor::read(header)?;
        if !layers.insert(tensor.layer) {
            return Err(GgufError::Damaged { what: format!("it has two tensors `{}`", tensor.name) });
        }
        if let Some(first) = tensors.first().filter(|first| first.width != tensor.width) {
            return Err(GgufError::Width { tensor: tensor.name.into(), expected: first.width, got: tensor.width });
        }
        tensors.push(tensor);
    }
    if tensors.is_empty() { Err(GgufError::NoVectors) } else { Ok(tensors) }
}

impl<'a> Tensor<'a> {
    fn read(header: &mut Header<'a>) -> Result<Self, GgufError> {
        let name = header.text()?;
        let layer = layer(name).ok_or_else(|| GgufError::Name { tensor: shown(name) })?;
        let axes = header.u32()?;
        if axes > MOST_AXES {
            return Err(GgufError::Damaged { what: format!("`{name}` has {axes} axes") });
        }
        let shape: Vec<u64> = (0..axes).map(|_| header.u64()).collect::<Result<_, _>>()?;
        let width = match shape.split_first() {
            Some((&width, others)) if width > 0 && others.iter().all(|size| *size == 1) => width,
            _ => return Err(GgufError::Shape { tensor: name.into(), shape }),
        };
        let kind = header.u32()?;
        let float = float(kind).ok_or_else(|| GgufError::Type { tensor: name.into(), got: type_name(kind) })?;
        Ok(Self { name, layer, width, float, offset: header.u64()? })
    }

    /// Size in bytes, as near as an integer can say.
    fn size(&self) -> u64 {
        self.width.saturating_mul(self.float.size() as u64)
    }

    /// The numbers, out of the data of the file.
    fn values(&self, data: &[u8]) -> Result<Vec<f64>, GgufError> {
        let start = usize::try_from(self.offset).ok();
        let end = self.offset.checked_add(self.size()).and_then(|end| usize::try_from(end).ok());
        let bytes = start.zip(end).and_then(|(start, end)| data.get(start..end));
        let bytes = bytes.ok_or(GgufError::Truncated { within: "its vectors" })?;
        let values = self.float.decode(bytes, ByteOrder::Little);
        match values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            Some((index, &value)) => Err(GgufError::NotFinite { tensor: self.name.into(), index, value }),
            None => Ok(values),
        }
    }
}

/// The layer in the name of a tensor, from 1, spelled without sign or leading zero, so that each has one name.
fn layer(name: &str) -> Option<usize> {
    let digits = name.strip_prefix("direction.")?;
    let plain = digits.starts_with(|first: char| matches!(first, '1'..='9'));
    digits.parse().ok().filter(|layer| plain && *layer < MOST_LAYERS)
}

/// The floating-point type with this number in `ggml_type`.
fn float(kind: u32) -> Option<Float> {
    Some(match kind {
        0 => Float::F32,
        1 => Float::F16,
        28 => Float::F64,
        30 => Float::BF16,
        _ => return None,
    })
}

/// Types of `ggml_type` that are no floating-point ones: quantised ones and integers.
const OTHER_TYPES: [(u32, &str); 30] = [
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

fn type_name(kind: u32) -> String {
    match OTHER_TYPES.iter().find(|(number, _)| *number == kind) {
        Some((_, name)) => (*name).into(),
        None => format!("number {kind}, which is unknown"),
    }
}

/// The data of a file, of which the header ends where `rest` begins.
fn data<'a>(bytes: &'a [u8], rest: &[u8], alignment: u64) -> Result<&'a [u8], GgufError> {
    let header = (bytes.len() - rest.len()) as u64;
    let start = header.checked_next_multiple_of(alignment).and_then(|start| usize::try_from(start).ok());
    start.and_then(|start| bytes.get(start..)).ok_or(GgufError::Truncated { within: "its header" })
}

/// The vectors by layer. Each tensor must begin where the one before it ends, so that none share bytes and all together
/// are no larger than the file.
fn layers(tensors: &[Tensor<'_>], data: &[u8], alignment: u64) -> Result<BTreeMap<usize, Vec<f64>>, GgufError> {
    let mut layers = BTreeMap::new();
    let mut expected = 0u64;
    for tensor in tensors {
        if tensor.offset != expected {
            let what = format!("`{}` begins at byte {}, and its place is {expected}", tensor.name, tensor.offset);
            return Err(GgufError::Damaged { what });
        }
        layers.insert(tensor.layer, tensor.values(data)?);
        let end = expected.checked_add(tensor.size()).and_then(|end| end.checked_next_multiple_of(alignment));
        expected = end.ok_or(GgufError::Truncated { within: "its vectors" })?;
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/directions/", $name)).as_slice()
        };
    }

    /// What repeng's `ControlVector("qwen2", {3: .., 1: ..}).export_gguf` writes for two vectors of four numbers.
    const REPENG: &[u8] = fixture!("repeng.gguf");

    /// What the `gguf` package writes for float16, bfloat16 and float64 vectors, with `add_custom_alignment(8)`.
    const TYPES: &[u8] = fixture!("types.gguf");

    #[test]
    fn the_vectors_of_repeng_are_read() {
        let found = control_vector(REPENG).unwrap();
        assert_eq!(found.model_hint.as_deref(), Some("qwen2"));
        let expected = [(1, vec![0.5, -1.0, 0.25, 2.0]), (3, vec![f64::from(0.1f32), -0.0, 1e30f32.into(), -3.0])];
        assert_eq!(found.layers, BTreeMap::from(expected));
    }

    #[test]
    fn every_float_type_is_read() {
        let found = control_vector(TYPES).unwrap();
        assert_eq!(found.model_hint, None);
        let expected = [1.5, -2.0, 0.25];
        assert_eq!(found.layers, BTreeMap::from([1, 2, 30].map(|layer| (layer, expected.to_vec()))));
    }

    /// A file that can be broken part by part.
    struct Parts {
        version: u32,
        entries: Vec<Vec<u8>>,
        tensors: Vec<Vec<u8>>,
        alignment: usize,
        data: Vec<u8>,
    }

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&text(key), &kind.to_le_bytes()[..], value].concat()
    }

    fn tensor(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let shape: Vec<u8> =
            (shape.len() as u32).to_le_bytes().into_iter().chain(shape.iter().flat_map(|s| s.to_le_bytes())).collect();
        [&text(name), &shape, &kind.to_le_bytes()[..], &offset.to_le_bytes()].concat()
    }

    impl Parts {
        fn new() -> Self {
            Self {
                version: 3,
                entries: vec![entry("general.architecture", 8, &text("controlvector"))],
                tensors: vec![tensor("direction.1", &[2], 0, 0), tensor("direction.2", &[2], 0, 32)],
                alignment: 32,
                data: [
                    &1f32.to_le_bytes()[..],
                    &2f32.to_le_bytes(),
                    &[0; 24],
                    &3f32.to_le_bytes(),
                    &4f32.to_le_bytes(),
                ]
                .concat(),
            }
        }

        fn bytes(&self) -> Vec<u8> {
            let counts = [self.tensors.len() as u64, self.entries.len() as u64].map(u64::to_le_bytes).concat();
            let mut bytes = [MAGIC, &self.version.to_le_bytes(), &counts].concat();
            bytes.extend(self.entries.concat());
            bytes.extend(self.tensors.concat());
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(&self.data);
            bytes
        }

        fn with_entry(mut self, bytes: Vec<u8>) -> Self {
            self.entries.push(bytes);
            self
        }

        fn with_second(mut self, bytes: Vec<u8>) -> Self {
            self.tensors[1] = bytes;
            self
        }
    }

    #[test]
    fn entries_of_every_type_are_passed() {
        let mut parts = Parts { version: 2, ..Parts::new() };
        for (kind, size) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8), (12, 8)]
        {
            parts = parts.with_entry(entry(&format!("a.{kind}"), kind, &vec![0xff; size]));
            let array = [&u32::to_le_bytes(kind)[..], &3u64.to_le_bytes(), &vec![0xff; 3 * size]].concat();
            parts = parts.with_entry(entry(&format!("b.{kind}"), 9, &array));
        }
        let texts = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &text("one"), &text("")].concat();
        let parts = parts.with_entry(entry("texts", 9, &texts)).with_entry(entry("text", 8, &text("x")));
        let found = control_vector(&parts.bytes()).unwrap();
        assert_eq!(found.layers, BTreeMap::from([(1, vec![1.0, 2.0]), (2, vec![3.0, 4.0])]));
        let mut nameless = Parts::new();
        nameless.entries.clear();
        assert_eq!(control_vector(&nameless.bytes()).unwrap(), found);
    }

    #[test]
    fn other_files_are_called_what_they_are() {
        let file = |architecture: &str, content: Option<&str>| {
            let mut parts = Parts::new();
            parts.entries = vec![entry("general.architecture", 8, &text(architecture))];
            parts.entries.extend(content.map(|content| entry("general.type", 8, &text(content))));
            parts.tensors = vec![tensor("token_embd.weight", &[32, 2], 12, 0)];
            control_vector(&parts.bytes()).unwrap_err()
        };
        for (architecture, content, words, advice) in [
            ("llama", None, "a model for the architecture `llama`", "ONNX"),
            ("qwen2", Some("model"), "a model for the architecture `qwen2`", "ONNX"),
            ("llama", Some("adapter"), "an adapter (LoRA) for the architecture `llama`", "merge"),
            ("clip", Some("mmproj"), "a file of the type `mmproj` for the architecture `clip`", "current"),
            ("a\u{1b}[0m", None, "`a\\u{1b}[0m`", "ONNX"),
        ] {
            let error = file(architecture, content);
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.hint().contains(advice), "{}", error.hint());
        }
        // the first entries of a large file are enough
        let mut parts = Parts::new();
        parts.entries = vec![entry("general.architecture", 8, &text("llama"))];
        let whole = parts.with_entry(entry("tokenizer.ggml.tokens", 8, &text("many"))).bytes();
        let start = whole.windows(4).position(|w| w == b"many").unwrap();
        assert!(matches!(control_vector(&whole[..start]), Err(GgufError::OtherContent { .. })));
    }

    #[test]
    fn damaged_headers_are_told_in_words() {
        let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
        let endless = [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
        // as many elements as make 0 bytes where 64 bits are all
        let [double, single] = [(12u32, 61), (4, 62)]
            .map(|(kind, power)| [&kind.to_le_bytes()[..], &(1u64 << power).to_le_bytes()].concat());
        let new = Parts::new;
        for (parts, words) in [
            (Parts { version: 1, ..new() }, "of version 1, and versions 2 and 3"),
            (Parts { version: 4, ..new() }, "of version 4"),
            (Parts { version: 3u32.swap_bytes(), ..new() }, "big-endian"),
            (Parts { tensors: vec![], ..new() }, "without vectors"),
            (new().with_entry(entry("x", 9, &nested)), "holds arrays"),
            (new().with_entry(entry("x", 9, &endless)), "ends within its header"),
            (new().with_entry(entry("x", 9, &double)), "ends within its header"),
            (new().with_entry(entry("x", 9, &single)), "ends within its header"),
            (new().with_entry(entry("x", 13, &[])), "no value has the type 13"),
            (new().with_entry(entry("general.architecture", 8, &text("controlvector"))), "two entries `general.archi"),
            (new().with_entry(entry("controlvector.model_hint", 4, &[0; 4])), "`controlvector.model_hint` is no text"),
            (new().with_entry(entry("general.alignment", 8, &text("32"))), "`general.alignment` is no uint32"),
            (new().with_entry(entry("general.alignment", 4, &0u32.to_le_bytes())), "is 0, which is no power of 2"),
            (new().with_entry(entry("general.alignment", 4, &24u32.to_le_bytes())), "is 24, which is no power"),
            (new().with_entry(entry("general.alignment", 4, &(1u32 << 31).to_le_bytes())), "within its header"),
            (new().with_entry(entry("\u{e9}", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])), "not UTF-8"),
            (new().with_entry([&u64::MAX.to_le_bytes()[..], b"x"].concat()), "ends within its header"),
        ] {
            let error = control_vector(&parts.bytes()).unwrap_err();
            assert!(error.to_string().contains(words), "{error}, not {words}");
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn damaged_tensors_are_told_in_words() {
        let second =
            |name: &str, shape: &[u64], kind, offset| Parts::new().with_second(tensor(name, shape, kind, offset));
        for (parts, words) in [
            (second("direction.0", &[2], 0, 32), "`direction.0` is not called `direction.N`"),
            (second("direction.-1", &[2], 0, 32), "not called"),
            (second("direction.+2", &[2], 0, 32), "not called"),
            (second("direction.02", &[2], 0, 32), "not called"),
            (second("direction.2.weight", &[2], 0, 32), "not called"),
            (second("direction.", &[2], 0, 32), "not called"),
            (second("direction.18446744073709551616", &[2], 0, 32), "not called"),
            (second("direction.1048576", &[2], 0, 32), "not called"),
            (second("output.weight", &[2], 0, 32), "`output.weight` is not called"),
            (second("direction.1", &[2], 0, 32), "two tensors `direction.1`"),
            (second("direction.2", &[], 0, 32), "has the shape [], not [d_model]"),
            (second("direction.2", &[0], 0, 32), "has the shape [0]"),
            (second("direction.2", &[1, 2], 0, 32), "has the shape [1, 2]"),
            (second("direction.2", &[1; 5], 0, 32), "has 5 axes"),
            (second("direction.2", &[3], 0, 32), "has 3 elements, and those before it have 2"),
            (second("direction.2", &[2], 8, 32), "has the type Q8_0; expected F32, F16, BF16 or F64"),
            (second("direction.2", &[2], 12, 32), "has the type Q4_K"),
            (second("direction.2", &[2], 26, 32), "has the type I32"),
            (second("direction.2", &[2], 77, 32), "has the type number 77, which is unknown"),
            (second("direction.2", &[2], 0, 0), "`direction.2` begins at byte 0, and its place is 32"),
            (second("direction.2", &[2], 0, 8), "begins at byte 8"),
            (second("direction.2", &[2], 0, 64), "begins at byte 64"),
            (second("direction.2", &[2], 0, u64::MAX), "begins at byte 18446744073709551615"),
            (second("direction.2", &[2], 28, 32), "ends within its vectors"),
        ] {
            let error = control_vector(&parts.bytes()).unwrap_err();
            assert!(error.to_string().contains(words), "{error}, not {words}");
        }
        // axes of size 1 behind the vector count for nothing, as `ggml_n_dims` says
        assert!(control_vector(&second("direction.2", &[2, 1, 1, 1], 0, 32).bytes()).is_ok());
    }

    #[test]
    fn sizes_past_the_file_and_past_integers_are_refused() {
        for width in [3, 1 << 40, u64::MAX / 4, u64::MAX / 4 + 2, u64::MAX] {
            let parts =
                Parts { tensors: vec![tensor("direction.1", &[width], 0, 0)], data: vec![0; 8], ..Parts::new() };
            let error = control_vector(&parts.bytes()).unwrap_err();
            assert_eq!(error, GgufError::Truncated { within: "its vectors" }, "{width}");
        }
        let mut counts = Parts::new().bytes();
        for place in [8, 16] {
            let mut bytes = counts.clone();
            bytes[place..place + 8].fill(0xff);
            assert!(control_vector(&bytes).is_err());
        }
        counts.truncate(counts.len() - 1);
        assert_eq!(control_vector(&counts), Err(GgufError::Truncated { within: "its vectors" }));
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut parts = Parts::new();
            parts.data[4..8].copy_from_slice(&value.to_le_bytes());
            let error = control_vector(&parts.bytes()).unwrap_err().to_string();
            assert!(error.contains("element 1 of its tensor `direction.1` is"), "{error}");
        }
    }

    #[test]
    fn no_cut_or_changed_file_panics() {
        for whole in [REPENG, TYPES, &Parts::new().bytes()] {
            for cut in 0..whole.len() {
                let _ = control_vector(&whole[..cut]);
            }
            super::super::tests::changed(whole, 35_000, |bytes| drop(control_vector(bytes)));
        }
    }
}
