//! The wire-level index of an `.onnx` file: every tensor's name, type, dimensions and byte range, the
//! frames (length-delimited messages) that a splice must mend, and a skeleton of the model without
//! its weights. Weights are never read.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::error::OnnxError;
use super::external;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto,
};
use super::tensor::{DataType, Storage, TensorId, TensorRef};
use super::wire::{Field, Reader, Value, put_bytes};

/// Tensor payloads up to this many bytes stay in the skeleton: shape constants, scalars, axes.
const INLINE_LIMIT: u64 = 1024;

/// Messages may nest this deep (a subgraph in a subgraph takes three levels).
const MAX_DEPTH: usize = 60;

/// So many nodes a file may have, those of its functions and subgraphs counted; the largest exports have some hundred
/// thousand.
const MAX_NODES: usize = 1_000_000;

/// Memory that the structure of a file may take: this, and so many times the length of the file, up to a limit.
/// Messages without content take a few bytes in a file and some hundred in memory; real ones take about twenty times
/// their bytes.
const STRUCTURE: (u64, u64, u64) = (256 << 20, 64, 4 << 30);

/// `TensorProto.index`, which is Lancet's own.
const INDEX_FIELD: u32 = 536_870_911;

/// Fields of the messages that the skeleton keeps ([`super::proto`]); others are documentation, or unknown.
mod fields {
    pub const MODEL: &[u32] = &[1, 2, 3, 4, 5, 7, 8, 14, 25];
    pub const FUNCTION: &[u32] = &[1, 4, 5, 6, 7, 9, 10, 11, 12, 13];
    pub const GRAPH: &[u32] = &[1, 2, 5, 11, 12, 13, 14, 15];
    pub const NODE: &[u32] = &[1, 2, 3, 4, 5, 7, 8];
    pub const ATTRIBUTE: &[u32] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 20, 21, 22];
    pub const TENSOR: &[u32] = &[1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14];
    pub const SPARSE: &[u32] = &[1, 2, 3];
}

/// A frame's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameId(pub usize);

/// One length-delimited message in the file.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The message that holds this one; `None` for the file itself.
    pub parent: Option<FrameId>,
    /// Offset of the length prefix (0 for the file).
    pub prefix: u64,
    /// The message's bytes.
    pub body: Range<u64>,
}

/// The places of the parts of a graph or of a local function.
#[derive(Debug, Clone)]
pub struct GraphIndex {
    /// The graph's own frame.
    pub frame: FrameId,
    /// Each node, in file order.
    pub nodes: Vec<NodeIndex>,
}

/// The place of a node and of the graphs in its attributes.
#[derive(Debug, Clone)]
pub struct NodeIndex {
    /// The node's frame.
    pub frame: FrameId,
    /// Subgraphs in attribute order.
    pub graphs: Vec<GraphIndex>,
}

/// An indexed model file. Holds no weights: memory is the size of the graph structure.
///
/// ```
/// use std::path::Path;
/// use lancet::onnx::Model;
///
/// let model = Model::open(Path::new("fixtures/chat/model.onnx"))?;
/// let table = model.tensors.iter().find(|tensor| tensor.name == "model.embed_tokens.weight").expect("it is there");
/// assert_eq!(table.dtype.to_string(), "float32");
/// assert_eq!(table.shape, [1400, 96]);
/// # Ok::<(), lancet::onnx::OnnxError>(())
/// ```
#[derive(Debug)]
pub struct Model {
    /// The `.onnx` file, as it was named.
    pub path: PathBuf,
    /// Its length in bytes.
    pub file_len: u64,
    /// The model without tensor payloads above 1 KiB; [`Model::tensor_of`] leads to their bytes.
    pub skeleton: ModelProto,
    /// Every tensor, nested ones included.
    pub tensors: Vec<TensorRef>,
    /// The main graph's places.
    pub graph_index: GraphIndex,
    /// The places of the local functions, in file order.
    pub functions: Vec<GraphIndex>,
    frames: Vec<Frame>,
}

impl Model {
    /// Indexes the `.onnx` file at `path`, and checks that every tensor's bytes are there.
    ///
    /// # Errors
    /// Any [`OnnxError`]; nothing is ever written.
    pub fn open(path: &Path) -> Result<Self, OnnxError> {
        let mut reader = Reader::open(path)?;
        let len = reader.len();
        if len == 0 {
            return Err(reader.not_onnx("the file is empty"));
        }
        let (base, factor, most) = STRUCTURE;
        let budget = len.saturating_mul(factor).saturating_add(base).min(most);
        let mut scan = Scan { frames: Vec::new(), tensors: Vec::new(), files: HashMap::new(), nodes: 0, budget };
        let root = scan.frame(None, 0, 0..len);
        let mut graph_index = None;
        let mut functions = Vec::new();
        let skeleton = scan.model(&mut reader, root, &mut graph_index, &mut functions)?;
        let skeleton = ModelProto::decode(skeleton.as_slice()).map_err(|e| reader.not_onnx(e.to_string()))?;
        let Some(graph_index) = graph_index else {
            return Err(reader.not_onnx("it has no graph"));
        };
        if skeleton.ir_version.is_none() && skeleton.opset_import.is_empty() {
            return Err(reader.not_onnx("it has neither an IR version nor an opset"));
        }
        for function in &skeleton.functions {
            if let Some(attribute) = function.attribute_proto.iter().find(|attribute| holds_external(attribute)) {
                let (function, attribute) = (text(&function.name), text(&attribute.name));
                let what = format!("the default of `{attribute}` in function `{function}`, which has external data,");
                return Err(OnnxError::Unsupported { what });
            }
        }
        let model = Self {
            path: path.to_path_buf(),
            file_len: len,
            skeleton,
            tensors: scan.tensors,
            graph_index,
            functions,
            frames: scan.frames,
        };
        super::check::check(&model)?;
        Ok(model)
    }

    /// The frame `id`.
    pub fn frame(&self, id: FrameId) -> &Frame {
        &self.frames[id.0]
    }

    /// The tensor `id`.
    pub fn tensor(&self, id: TensorId) -> &TensorRef {
        &self.tensors[id.0]
    }

    /// The indexed tensor behind a `TensorProto` of the skeleton.
    pub fn tensor_of(tensor: &TensorProto) -> Option<TensorId> {
        usize::try_from(tensor.index?).ok().map(TensorId)
    }

    /// Takes the index off a skeleton tensor, leaving what the file had.
    pub fn unmark(tensor: &mut TensorProto) {
        tensor.index = None;
    }

    /// Version of the opset `domain` (`""` for the default one).
    pub fn opset(&self, domain: &str) -> Option<i64> {
        self.skeleton
            .opset_import
            .iter()
            .find(|entry| entry.domain.as_deref().unwrap_or("") == domain)
            .and_then(|entry| entry.version)
    }

    /// The external data files, each once, with the location as the model writes it.
    pub fn external_files(&self) -> Vec<(String, PathBuf)> {
        let mut files: Vec<(String, PathBuf)> = Vec::new();
        let mut seen: HashSet<&str> = HashSet::new();
        for tensor in &self.tensors {
            if let Storage::External { location, path, .. } = &tensor.storage
                && seen.insert(location)
            {
                files.push((location.clone(), path.clone()));
            }
        }
        files
    }
}

struct Scan {
    frames: Vec<Frame>,
    tensors: Vec<TensorRef>,
    /// External files that were found, with their lengths, by location.
    files: HashMap<String, (PathBuf, u64)>,
    nodes: usize,
    /// Bytes of memory that are left for the structure.
    budget: u64,
}

fn text(name: &Option<String>) -> &str {
    name.as_deref().unwrap_or_default()
}

/// Whether a tensor in an attribute, or in a graph within, has external data.
fn holds_external(attribute: &AttributeProto) -> bool {
    let external = |tensor: &TensorProto| tensor.data_location == Some(1) || !tensor.external_data.is_empty();
    let sparse = |sparse: &SparseTensorProto| sparse.values.iter().chain(&sparse.indices).any(external);
    let in_graph = |graph: &GraphProto| {
        graph.initializer.iter().any(external)
            || graph.sparse_initializer.iter().any(sparse)
            || graph.node.iter().flat_map(|node| &node.attribute).any(holds_external)
    };
    attribute.t.iter().chain(&attribute.tensors).any(external)
        || attribute.sparse_tensor.iter().any(sparse)
        || attribute.g.iter().chain(&attribute.graphs).any(in_graph)
}

/// What becomes of a field in the skeleton.
enum Keep {
    /// It stays as it is, if its message has such a field.
    Field,
    /// Its content is replaced.
    Content(Vec<u8>),
}

/// What a length-delimited field holds, by message and field number.
impl Scan {
    /// Takes what a message needs in memory from the budget.
    fn spend(&mut self, reader: &Reader, bytes: usize) -> Result<(), OnnxError> {
        self.budget = self.budget.checked_sub(bytes as u64).ok_or_else(|| OnnxError::TooLarge {
            path: reader.path().to_path_buf(),
            reason: "its graph has more parts than any model of its size".into(),
        })?;
        Ok(())
    }

    fn frame(&mut self, parent: Option<FrameId>, prefix: u64, body: Range<u64>) -> FrameId {
        self.frames.push(Frame { parent, prefix, body });
        FrameId(self.frames.len() - 1)
    }

    fn child(&mut self, parent: FrameId, field: &Field) -> Option<FrameId> {
        match &field.value {
            Value::Bytes { prefix, body } => Some(self.frame(Some(parent), *prefix, body.clone())),
            _ => None,
        }
    }

    /// Walks the fields of `frame`, of which the skeleton keeps those in `known`, as `visit` says.
    fn walk(
        &mut self,
        reader: &mut Reader,
        frame: FrameId,
        depth: usize,
        known: &[u32],
        mut visit: impl FnMut(&mut Self, &mut Reader, &Field) -> Result<Keep, OnnxError>,
    ) -> Result<Vec<u8>, OnnxError> {
        if depth > MAX_DEPTH {
            return Err(reader.not_onnx(format!("messages nest deeper than {MAX_DEPTH} levels")));
        }
        let body = self.frames[frame.0].body.clone();
        let mut out = Vec::new();
        let mut at = body.start;
        while at < body.end {
            let field = reader.field(at, body.end)?;
            match visit(self, reader, &field)? {
                Keep::Content(stripped) => put_bytes(&mut out, field.number, &stripped),
                Keep::Field if known.contains(&field.number) => {
                    // small messages and numbers grow about eightfold when they are decoded
                    let bytes = usize::try_from(field.end - field.start).unwrap_or(usize::MAX);
                    self.spend(reader, bytes.saturating_mul(8))?;
                    reader.copy(field.start..field.end, &mut out)?;
                }
                Keep::Field => {}
            }
            at = field.end;
        }
        Ok(out)
    }

    fn model(
        &mut self,
        reader: &mut Reader,
        root: FrameId,
        graph_index: &mut Option<GraphIndex>,
        functions: &mut Vec<GraphIndex>,
    ) -> Result<Vec<u8>, OnnxError> {
        self.walk(reader, root, 0, fields::MODEL, |scan, reader, field| match field.number {
            7 => {
                let Some(frame) = scan.child(root, field) else {
                    return Err(reader.not_onnx("field 7 is no graph"));
                };
                if graph_index.is_some() {
                    return Err(OnnxError::Unsupported { what: "a model file with two graph fields".into() });
                }
                let (index, bytes) = scan.graph(reader, frame, 1)?;
                *graph_index = Some(index);
                Ok(Keep::Content(bytes))
            }
            25 => match scan.child(root, field) {
                Some(frame) => {
                    let mut nodes = Vec::new();
                    let bytes =
                        scan.walk(reader, frame, 1, fields::FUNCTION, |scan, reader, field| match field.number {
                            7 => match scan.child(frame, field) {
                                Some(node) => {
                                    let (index, bytes) = scan.node(reader, node, 2)?;
                                    nodes.push(index);
                                    Ok(Keep::Content(bytes))
                                }
                                None => Ok(Keep::Field),
                            },
                            _ => Ok(Keep::Field),
                        })?;
                    scan.spend(reader, 2 * size_of::<FunctionProto>())?;
                    functions.push(GraphIndex { frame, nodes });
                    Ok(Keep::Content(bytes))
                }
                None => Ok(Keep::Field),
            },
            // training_info (20) holds whole graphs that inference never reads
            1..=64 => Ok(Keep::Field),
            other => Err(reader.not_onnx(format!("unknown field {other} at byte {}", field.start))),
        })
    }

    fn graph(&mut self, reader: &mut Reader, frame: FrameId, depth: usize) -> Result<(GraphIndex, Vec<u8>), OnnxError> {
        let mut nodes = Vec::new();
        self.spend(reader, 2 * size_of::<GraphProto>())?;
        let bytes = self.walk(reader, frame, depth, fields::GRAPH, |scan, reader, field| {
            Ok(match (field.number, scan.child_of(frame, field)) {
                (1, Some(child)) => {
                    let (index, bytes) = scan.node(reader, child, depth + 1)?;
                    nodes.push(index);
                    Keep::Content(bytes)
                }
                (5, Some(child)) => Keep::Content(scan.tensor(reader, child, depth + 1)?),
                (15, Some(child)) => Keep::Content(scan.sparse(reader, child, depth + 1)?),
                // inputs, outputs and inner values
                (11..=13, _) => {
                    scan.spend(reader, 3 * size_of::<ValueInfoProto>())?;
                    Keep::Field
                }
                _ => Keep::Field,
            })
        })?;
        Ok((GraphIndex { frame, nodes }, bytes))
    }

    /// A frame for the fields of a graph or attribute that hold messages with tensors in them.
    fn child_of(&mut self, parent: FrameId, field: &Field) -> Option<FrameId> {
        matches!(field.number, 1 | 5 | 6 | 10 | 11 | 15 | 22 | 23).then(|| self.child(parent, field)).flatten()
    }

    fn sparse(&mut self, reader: &mut Reader, frame: FrameId, depth: usize) -> Result<Vec<u8>, OnnxError> {
        self.spend(reader, 2 * size_of::<SparseTensorProto>())?;
        self.walk(reader, frame, depth, fields::SPARSE, |scan, reader, field| {
            let inner = matches!(field.number, 1 | 2).then(|| scan.child(frame, field)).flatten();
            match inner {
                Some(child) => scan.tensor(reader, child, depth + 1).map(Keep::Content),
                None => Ok(Keep::Field),
            }
        })
    }

    fn node(&mut self, reader: &mut Reader, frame: FrameId, depth: usize) -> Result<(NodeIndex, Vec<u8>), OnnxError> {
        let mut graphs = Vec::new();
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(OnnxError::TooLarge {
                path: reader.path().to_path_buf(),
                reason: format!("its graph has more than {MAX_NODES} nodes"),
            });
        }
        self.spend(reader, 2 * size_of::<NodeProto>() + size_of::<NodeIndex>())?;
        let bytes = self.walk(reader, frame, depth, fields::NODE, |scan, reader, field| {
            if field.number != 5 {
                return Ok(Keep::Field);
            }
            let Some(attribute) = scan.child(frame, field) else { return Ok(Keep::Field) };
            scan.spend(reader, 2 * size_of::<AttributeProto>())?;
            let bytes = scan.walk(reader, attribute, depth + 1, fields::ATTRIBUTE, |scan, reader, field| {
                Ok(match (field.number, scan.child_of(attribute, field)) {
                    (5 | 10, Some(child)) => Keep::Content(scan.tensor(reader, child, depth + 2)?),
                    (6 | 11, Some(child)) => {
                        let (index, bytes) = scan.graph(reader, child, depth + 2)?;
                        graphs.push(index);
                        Keep::Content(bytes)
                    }
                    (22 | 23, Some(child)) => Keep::Content(scan.sparse(reader, child, depth + 2)?),
                    _ => Keep::Field,
                })
            })?;
            Ok(Keep::Content(bytes))
        })?;
        Ok((NodeIndex { frame, graphs }, bytes))
    }

    fn tensor(&mut self, reader: &mut Reader, frame: FrameId, depth: usize) -> Result<Vec<u8>, OnnxError> {
        let mut payloads: Vec<(u32, Range<u64>)> = Vec::new();
        let mut unpacked = false;
        self.spend(reader, 2 * size_of::<TensorProto>() + size_of::<TensorRef>())?;
        let mut bytes = self.walk(reader, frame, depth, fields::TENSOR, |_, _, field| {
            Ok(match (&field.value, field.number) {
                (Value::Bytes { body, .. }, 4 | 5 | 7 | 9 | 10 | 11) => {
                    payloads.push((field.number, body.clone()));
                    if body.end - body.start > INLINE_LIMIT { Keep::Content(Vec::new()) } else { Keep::Field }
                }
                (_, 4 | 5 | 7 | 10 | 11) => {
                    unpacked = true;
                    Keep::Field
                }
                _ => Keep::Field,
            })
        })?;
        let header = TensorProto::decode(bytes.as_slice()).map_err(|e| reader.not_onnx(e.to_string()))?;
        let id = self.tensors.len();
        let tensor = tensor_ref(reader, &header, Payloads { found: &payloads, unpacked }, frame, &mut self.files)?;
        self.tensors.push(tensor);
        encode_key(INDEX_FIELD, WireType::Varint, &mut bytes);
        encode_varint(id as u64, &mut bytes);
        Ok(bytes)
    }
}

/// More elements than any file holds: their bytes, at 16 an element, and ten bytes a packed value still fit in 63 bits.
const MOST_ELEMENTS: u64 = 1 << 58;

/// Where the elements of a tensor are in the file.
struct Payloads<'a> {
    /// Fields with their bytes.
    found: &'a [(u32, Range<u64>)],
    /// Whether some elements are fields of their own.
    unpacked: bool,
}

fn tensor_ref(
    reader: &Reader,
    header: &TensorProto,
    payloads: Payloads<'_>,
    frame: FrameId,
    files: &mut HashMap<String, (PathBuf, u64)>,
) -> Result<TensorRef, OnnxError> {
    let name = header.name.clone().unwrap_or_default();
    let bad = |reason: String| OnnxError::BadTensor { tensor: name.clone(), reason };
    let dtype = DataType(header.data_type.unwrap_or(0));
    let mut shape = Vec::with_capacity(header.dims.len());
    for &dim in &header.dims {
        shape.push(u64::try_from(dim).map_err(|_| bad(format!("dimension {dim} is negative")))?);
    }
    // beside a dimension of 0 too: dimensions are multiplied in other orders later, and only some of them
    let most = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)));
    if most.is_none_or(|most| most > MOST_ELEMENTS) {
        return Err(bad(format!("dimensions {shape:?} overflow")));
    }
    let elements = shape.iter().product();
    let expected = dtype.bytes_for(elements);
    let check = |found: u64, what: &str| match expected {
        Some(expected) if expected != found => {
            Err(bad(format!("{what} has {found} bytes, {dtype} {shape:?} needs {expected}")))
        }
        _ => Ok(()),
    };
    let storage = if header.data_location == Some(1) {
        external_storage(reader.path(), header, &name, expected, files)?
    } else if payloads.unpacked || payloads.found.len() > 1 {
        Storage::Opaque
    } else {
        match payloads.found.first() {
            Some((9, body)) => {
                check(body.end - body.start, "raw_data")?;
                Storage::Embedded { offset: body.start, length: body.end - body.start }
            }
            Some((number @ (4 | 10), body)) => {
                let natural = if *number == 4 { DataType::FLOAT } else { DataType::DOUBLE };
                if dtype != natural {
                    return Err(bad(format!("{dtype} stored as {natural} values")));
                }
                check(body.end - body.start, "the value list")?;
                Storage::Embedded { offset: body.start, length: body.end - body.start }
            }
            Some((_, body)) => {
                let (length, a_value) = (body.end - body.start, dtype.elements_a_byte());
                if elements.div_ceil(a_value) > length {
                    return Err(bad(format!("the value list has {length} bytes, {dtype} {shape:?} needs more")));
                }
                Storage::Varints { offset: body.start, length }
            }
            None => Storage::Opaque,
        }
    };
    Ok(TensorRef { name, dtype, shape, storage, frame })
}

fn external_storage(
    model: &Path,
    header: &TensorProto,
    name: &str,
    expected: Option<u64>,
    files: &mut HashMap<String, (PathBuf, u64)>,
) -> Result<Storage, OnnxError> {
    let bad = |reason: String| OnnxError::BadTensor { tensor: name.into(), reason };
    // where a key stands twice, some readers take the first entry and some the last
    let entry = |key: &str| {
        let mut entries = header.external_data.iter().filter(|e| e.key.as_deref() == Some(key));
        match (entries.next(), entries.next()) {
            (_, Some(_)) => Err(bad(format!("its external data have two entries `{key}`"))),
            (first, None) => Ok(first.and_then(|e| e.value.as_deref())),
        }
    };
    let number = |key: &str| match entry(key)? {
        Some(text) => text.trim().parse::<u64>().map(Some).map_err(|_| bad(format!("external `{key}` is `{text}`"))),
        None => Ok(None),
    };
    let location = entry("location")?.ok_or_else(|| bad("external data without a location".into()))?;
    let (path, len) = match files.get(location) {
        Some(found) => found.clone(),
        None => {
            let path = external::resolve(model, location, name)?;
            let len = std::fs::metadata(&path).map_err(|source| OnnxError::Io { path: path.clone(), source })?.len();
            files.insert(location.to_string(), (path.clone(), len));
            (path, len)
        }
    };
    let offset = number("offset")?.unwrap_or(0);
    let length = match (number("length")?, expected) {
        (Some(given), Some(expected)) if given != expected => {
            return Err(bad(format!("external length is {given}, its type and dimensions need {expected}")));
        }
        (Some(length), _) | (None, Some(length)) => length,
        (None, None) => len.saturating_sub(offset),
    };
    let end = offset.checked_add(length).ok_or_else(|| bad("external offset and length overflow".into()))?;
    if end > len {
        return Err(OnnxError::ShortExternal { tensor: name.into(), path, end, len });
    }
    Ok(Storage::External { location: location.into(), path, offset, length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{StringStringEntryProto, node};
    use crate::onnx::testing::{floats, model, open, open_in};

    fn open_bytes(bytes: &[u8]) -> Result<Model, OnnxError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, bytes).unwrap();
        Model::open(&path)
    }

    /// A model file with this graph field.
    fn with_graph(graph: &[u8]) -> Vec<u8> {
        let mut bytes = model(17, vec![], &[], &[]).encode_to_vec();
        let empty = bytes.windows(2).position(|pair| pair == [0x3a, 0]).unwrap();
        bytes.splice(empty..empty + 2, []);
        put_bytes(&mut bytes, 7, graph);
        bytes
    }

    #[test]
    fn marks_of_our_own_in_a_file_are_ignored() {
        let mut proto = model(17, vec![node("Add", "n", &["a", "b"], &["y"], vec![])], &[], &["y"]);
        let (mut a, mut b) = (floats("a", &[2]), floats("b", &[3]));
        // the key of earlier versions, and the field of this one
        a.external_data = vec![StringStringEntryProto { key: Some("lancet.tensor".into()), value: Some("1".into()) }];
        b.index = Some(0);
        proto.graph.as_mut().unwrap().initializer = vec![a, b];
        let opened = open(&proto).unwrap();
        let stored = &opened.skeleton.graph.as_ref().unwrap().initializer;
        let found: Vec<&str> =
            stored.iter().map(|t| opened.tensor(Model::tensor_of(t).unwrap()).name.as_str()).collect();
        assert_eq!(found, ["a", "b"]);
        // in external data too
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("w.bin"), [0; 12]).unwrap();
        let entry =
            |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
        let b = &mut proto.graph.as_mut().unwrap().initializer[1];
        b.float_data.clear();
        b.data_location = Some(1);
        b.external_data = vec![entry("lancet.tensor", "0"), entry("location", "w.bin")];
        let opened = open_in(folder.path(), &proto).unwrap();
        let stored = &opened.skeleton.graph.as_ref().unwrap().initializer[1];
        assert_eq!(opened.tensor(Model::tensor_of(stored).unwrap()).name, "b");
        assert_eq!(stored.external_data.len(), 2, "what the file has stays");
        let mut unmarked = stored.clone();
        Model::unmark(&mut unmarked);
        assert_eq!(Model::tensor_of(&unmarked), None);
    }

    #[test]
    fn external_data_that_one_reader_finds_elsewhere_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.bin"), [0; 8]).unwrap();
        std::fs::write(folder.path().join("b.bin"), [1; 8]).unwrap();
        let entry =
            |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
        let mut proto = model(17, vec![node("Add", "n", &["a", "x"], &["y"], vec![])], &["x"], &["y"]);
        let mut stored = floats("a", &[2]);
        stored.float_data.clear();
        stored.data_location = Some(1);
        stored.external_data = vec![entry("location", "a.bin")];
        let mut function = FunctionProto { name: Some("f".into()), ..Default::default() };
        function.attribute_proto =
            vec![AttributeProto { name: Some("value".into()), t: Some(stored.clone()), ..Default::default() }];
        proto.graph.as_mut().unwrap().initializer = vec![stored];
        open_in(folder.path(), &proto).unwrap();
        let mut twice = proto.clone();
        twice.graph.as_mut().unwrap().initializer[0].external_data.push(entry("location", "b.bin"));
        let refusal = open_in(folder.path(), &twice).unwrap_err().to_string();
        assert!(refusal.contains("two entries `location`"), "{refusal}");
        proto.functions = vec![function];
        let refusal = open_in(folder.path(), &proto).unwrap_err().to_string();
        assert!(refusal.contains("the default of `value` in function `f`"), "{refusal}");
    }

    #[test]
    fn masses_of_empty_messages_are_refused() {
        let nodes: Vec<u8> = [0x0a, 0].repeat(1_200_000);
        let refusal = open_bytes(&with_graph(&nodes)).unwrap_err().to_string();
        assert!(refusal.contains("more than 1000000 nodes"), "{refusal}");
        // empty attributes of one node, and empty declarations
        let mut one = Vec::new();
        put_bytes(&mut one, 1, &[0x2a, 0].repeat(1_200_000));
        for graph in [one, [0x6a, 0].repeat(3_000_000)] {
            let refusal = open_bytes(&with_graph(&graph)).unwrap_err().to_string();
            assert!(refusal.contains("more parts than any model of its size"), "{refusal}");
        }
    }

    /// Sizes that are multiplied later, by bytes an element: 2^62 floats, and packed values that are far too few.
    #[test]
    fn tensors_that_claim_more_than_they_hold_are_refused() {
        let refused = |code: i32, dims: &[i64], values: usize| {
            let tensor = TensorProto {
                name: Some("w".into()),
                data_type: Some(code),
                dims: dims.to_vec(),
                int32_data: vec![1; values],
                ..Default::default()
            };
            let mut proto = model(17, vec![], &[], &[]);
            proto.graph.as_mut().unwrap().initializer = vec![tensor];
            open(&proto).err().map(|error| error.to_string()).unwrap_or_default()
        };
        for code in [1, 10, 7, 22, 0] {
            assert!(refused(code, &[1 << 60, 4], 0).contains("overflow"), "type {code}");
            assert!(refused(code, &[0, 1 << 62], 0).contains("overflow"), "type {code}");
        }
        for (code, dims, values, wrong) in [
            (10, [1 << 40, 4], 8, true),
            (10, [2, 4], 8, false),
            (10, [2, 4], 7, true),
            (3, [2, 4], 7, true),
            // two 4-bit values, four 2-bit values share one
            (22, [2, 4], 4, false),
            (22, [2, 4], 3, true),
            (25, [2, 4], 2, false),
        ] {
            let said = refused(code, &dims, values);
            assert_eq!(said.contains("needs more"), wrong, "{values} values of type {code}: {said}");
        }
    }

    #[test]
    fn an_operator_without_a_name_is_refused() {
        let refusal = open_bytes(&with_graph(&[0x0a, 0])).unwrap_err().to_string();
        assert!(refusal.contains("has no operator"), "{refusal}");
    }
}
