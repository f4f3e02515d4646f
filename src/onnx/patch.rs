//! A change to a graph as a value: applied to a decoded graph in memory, or lowered to splices of the
//! file that leave every other byte as it is.

use std::collections::BTreeMap;
use std::ops::Range;

use prost::Message;

use super::error::OnnxError;
use super::graph::{Graph, NodeId, Use};
use super::index::{FrameId, Model};
use super::proto::{GraphProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto};
use super::wire::{Reader, Value, put_bytes, varint};

/// Nodes, tensors, inputs and outputs to add, and inputs of present nodes to rewire.
#[derive(Debug, Clone, Default)]
pub struct Patch {
    /// Nodes to add, each right after a present one (`None`: first).
    pub nodes: Vec<(Option<NodeId>, NodeProto)>,
    /// New names for present inputs; the empty name drops an optional input.
    pub rewires: Vec<(Use, String)>,
    /// Names for outputs that a node computes but the file leaves unnamed.
    pub named_outputs: Vec<(NodeId, usize, String)>,
    /// Initializers to add, with their data.
    pub initializers: Vec<TensorProto>,
    /// Graph inputs to add.
    pub inputs: Vec<ValueInfoProto>,
    /// Graph outputs to add.
    pub outputs: Vec<ValueInfoProto>,
}

impl Patch {
    /// Whether the patch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.rewires.is_empty()
            && self.named_outputs.is_empty()
            && self.initializers.is_empty()
            && self.inputs.is_empty()
            && self.outputs.is_empty()
    }

    /// Checks that every name that the patch defines is new, and that every name it reads is defined by
    /// the graph or by the patch.
    ///
    /// # Panics
    /// If not: a patch is made by this crate, so that would be a bug that must not reach a file.
    pub fn check(&self, graph: &Graph<'_>) {
        let defined: Vec<&str> = self
            .nodes
            .iter()
            .flat_map(|(_, node)| node.output.iter().map(String::as_str))
            .chain(self.initializers.iter().filter_map(|t| t.name.as_deref()))
            .chain(self.inputs.iter().filter_map(|i| i.name.as_deref()))
            .chain(self.named_outputs.iter().map(|(_, _, name)| name.as_str()))
            .collect();
        for name in &defined {
            assert!(graph.value(name).is_none(), "the patch redefines `{name}`");
        }
        let known = |name: &str| name.is_empty() || graph.value(name).is_some() || defined.contains(&name);
        for (_, node) in &self.nodes {
            for input in &node.input {
                assert!(known(input), "the patch reads the undefined `{input}`");
            }
        }
        for (_, name) in &self.rewires {
            assert!(known(name), "the patch rewires to the undefined `{name}`");
        }
    }

    /// The graph with the patch applied. `proto` is the graph that the node ids refer to.
    pub fn apply(&self, proto: &mut GraphProto) {
        for (at, name) in &self.rewires {
            proto.node[at.node.0].input[at.slot].clone_from(name);
        }
        for (node, slot, name) in &self.named_outputs {
            let outputs = &mut proto.node[node.0].output;
            if outputs.len() <= *slot {
                outputs.resize(slot + 1, String::new());
            }
            outputs[*slot].clone_from(name);
        }
        let mut added: BTreeMap<usize, Vec<NodeProto>> = BTreeMap::new();
        for (after, node) in &self.nodes {
            added.entry(after.map_or(0, |n| n.0 + 1)).or_default().push(node.clone());
        }
        let old = std::mem::take(&mut proto.node);
        proto.node = added.remove(&0).unwrap_or_default();
        for (index, node) in old.into_iter().enumerate() {
            proto.node.push(node);
            proto.node.extend(added.remove(&(index + 1)).unwrap_or_default());
        }
        proto.initializer.extend(self.initializers.iter().cloned());
        proto.input.extend(self.inputs.iter().cloned());
        proto.output.extend(self.outputs.iter().cloned());
    }

    /// The patch as splices of the model's file.
    ///
    /// # Errors
    /// If the file can no longer be read as it was indexed.
    pub fn splices(&self, model: &Model) -> Result<Vec<Splice>, OnnxError> {
        assert!(self.named_outputs.is_empty(), "only in-memory patches name outputs");
        let graph = model.graph_index.frame;
        let graph_body = model.frame(graph).body.clone();
        let mut splices = Vec::new();
        let mut reader = Reader::open(&model.path)?;
        for (at, name) in &self.rewires {
            let frame = model.graph_index.nodes[at.node.0].frame;
            let range = input_field(&mut reader, model, frame, at.slot)?;
            let mut bytes = Vec::new();
            put_bytes(&mut bytes, 1, name.as_bytes());
            splices.push(Splice { at: range, frame, bytes });
        }
        let mut insert = |at: u64, number: u32, body: &[u8]| {
            let mut bytes = Vec::new();
            put_bytes(&mut bytes, number, body);
            splices.push(Splice { at: at..at, frame: graph, bytes });
        };
        for (after, node) in &self.nodes {
            let at = match after {
                Some(node) => model.frame(model.graph_index.nodes[node.0].frame).body.end,
                None => graph_body.start,
            };
            insert(at, 1, &node.encode_to_vec());
        }
        for tensor in &self.initializers {
            insert(graph_body.end, 5, &tensor.encode_to_vec());
        }
        for input in &self.inputs {
            insert(graph_body.end, 11, &input.encode_to_vec());
        }
        for output in &self.outputs {
            insert(graph_body.end, 12, &output.encode_to_vec());
        }
        Ok(splices)
    }
}

/// Bytes of the field that holds input `slot` of the node in `frame`.
fn input_field(reader: &mut Reader, model: &Model, frame: FrameId, slot: usize) -> Result<Range<u64>, OnnxError> {
    let body = model.frame(frame).body.clone();
    let (mut at, mut seen) = (body.start, 0);
    while at < body.end {
        let field = reader.field(at, body.end)?;
        if field.number == 1 && matches!(field.value, Value::Bytes { .. }) {
            if seen == slot {
                return Ok(field.start..field.end);
            }
            seen += 1;
        }
        at = field.end;
    }
    Err(reader.truncated("the file changed while it was read"))
}

/// Bytes of the `.onnx` file to replace (an empty range inserts).
#[derive(Debug, Clone)]
pub struct Splice {
    /// What to replace.
    pub at: Range<u64>,
    /// The innermost message that holds it.
    pub frame: FrameId,
    /// The replacement.
    pub bytes: Vec<u8>,
}

/// `metadata_props` entries as a splice at the end of the file (protobuf allows fields in any order, and
/// a repeated field anywhere).
pub fn metadata_splice(model: &Model, entries: &[(String, String)]) -> Splice {
    let mut bytes = Vec::new();
    for (key, value) in entries {
        let entry = StringStringEntryProto { key: Some(key.clone()), value: Some(value.clone()) };
        put_bytes(&mut bytes, 14, &entry.encode_to_vec());
    }
    Splice { at: model.file_len..model.file_len, frame: FrameId(0), bytes }
}

/// A stretch of the rewritten `.onnx` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// These bytes of the original.
    Copy(Range<u64>),
    /// These bytes instead of the range of the original.
    Literal {
        /// What they replace.
        replaces: Range<u64>,
        /// The new bytes.
        bytes: Vec<u8>,
    },
}

impl Segment {
    /// Length in the rewritten file.
    pub fn len(&self) -> u64 {
        match self {
            Self::Copy(range) => range.end - range.start,
            Self::Literal { bytes, .. } => bytes.len() as u64,
        }
    }

    /// Whether it takes no room in the rewritten file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The rewritten file: the original with `splices` done and the length prefix of every enclosing message
/// mended.
pub fn layout(model: &Model, splices: &[Splice]) -> Vec<Segment> {
    // Frames are numbered parents first, so walking down from the highest mends inner prefixes first.
    let mut delta: BTreeMap<usize, i64> = BTreeMap::new();
    for splice in splices {
        *delta.entry(splice.frame.0).or_default() +=
            splice.bytes.len() as i64 - (splice.at.end - splice.at.start) as i64;
    }
    let mut edits: Vec<(Range<u64>, Vec<u8>)> = splices.iter().map(|s| (s.at.clone(), s.bytes.clone())).collect();
    while let Some((id, change)) = delta.pop_last() {
        let frame = model.frame(FrameId(id));
        let Some(parent) = frame.parent else { continue };
        let old = frame.prefix..frame.body.start;
        let length = (frame.body.end - frame.body.start) as i64 + change;
        let new = varint(u64::try_from(length).expect("a splice never removes more than its frame holds"));
        let total = change + new.len() as i64 - (old.end - old.start) as i64;
        edits.push((old, new));
        *delta.entry(parent.0).or_default() += total;
    }
    // Stable: insertions at one place keep their order.
    edits.sort_by_key(|(range, _)| range.start);
    let mut segments = Vec::new();
    let mut at = 0;
    for (range, bytes) in edits {
        assert!(range.start >= at, "splices overlap");
        if range.start > at {
            segments.push(Segment::Copy(at..range.start));
        }
        at = range.end;
        segments.push(Segment::Literal { replaces: range, bytes });
    }
    if at < model.file_len {
        segments.push(Segment::Copy(at..model.file_len));
    }
    segments
}
