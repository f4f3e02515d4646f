//! A change to a graph as a value, applied to a decoded graph in memory ([`super::lower`] turns it into splices
//! of the file), and the file that splices make.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use prost::Message;

use super::graph::{Graph, NodeId, Use, ValueId};
use super::index::{FrameId, Model};
use super::proto::{GraphProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto};
use super::wire::{put_bytes, varint};

/// Where a node is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before every other node.
    First,
    /// Right before this one.
    Before(NodeId),
    /// Right after this one.
    After(NodeId),
}

/// Nodes, tensors, inputs and outputs to add to a flat graph, and names of present nodes to change.
#[derive(Debug, Clone, Default)]
pub struct Patch {
    /// Nodes to add.
    pub nodes: Vec<(Place, NodeProto)>,
    /// New names for present inputs; the empty name drops an optional input.
    pub rewires: Vec<(Use, String)>,
    /// New names for outputs of present nodes, also for those that a file leaves unnamed. With a node that defines
    /// the old name, every reader reads that one instead.
    pub renames: Vec<(NodeId, usize, String)>,
    /// Initializers to add, with their data.
    pub initializers: Vec<TensorProto>,
    /// Names of initializers that are added when the file is written.
    pub promised: Vec<String>,
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
            && self.renames.is_empty()
            && self.initializers.is_empty()
            && self.promised.is_empty()
            && self.inputs.is_empty()
            && self.outputs.is_empty()
    }

    /// Names that the patch defines.
    fn defined(&self) -> impl Iterator<Item = &str> {
        self.nodes
            .iter()
            .flat_map(|(_, node)| node.output.iter().map(String::as_str))
            .chain(self.initializers.iter().filter_map(|t| t.name.as_deref()))
            .chain(self.inputs.iter().filter_map(|i| i.name.as_deref()))
            .chain(self.promised.iter().map(String::as_str))
            .chain(self.renames.iter().map(|(.., name)| name.as_str()))
    }

    /// Values whose names the patch frees, by renaming the outputs that have them.
    fn freed(&self, graph: &Graph<'_>) -> HashSet<ValueId> {
        self.renames.iter().filter_map(|(n, slot, _)| graph.output(*n, *slot)).collect()
    }

    /// A name that the patch defines although a value has it already: one of the graph, or another one of the patch,
    /// which may stand for a value of the graph under its old name.
    pub fn taken(&self, graph: &Graph<'_>) -> Option<&str> {
        let freed = self.freed(graph);
        let mut seen = HashSet::new();
        let of_graph = |name: &str| graph.value(name).is_some_and(|value| !freed.contains(&value));
        self.defined().find(|name| of_graph(name) || !seen.insert(*name))
    }

    /// Checks that every name that the patch defines is new or free, and that every name it reads is defined by
    /// the graph or by the patch.
    ///
    /// # Panics
    /// If not: a patch is made by this crate, so that would be a bug that must not reach a file.
    pub fn check(&self, graph: &Graph<'_>) {
        if let Some(name) = self.taken(graph) {
            panic!("the patch redefines `{name}`");
        }
        let defined: HashSet<&str> = self.defined().collect();
        for value in self.freed(graph) {
            assert!(defined.contains(graph.name(value)), "the patch leaves `{}` undefined", graph.name(value));
        }
        let known = |name: &str| name.is_empty() || graph.value(name).is_some() || defined.contains(name);
        for input in self.nodes.iter().flat_map(|(_, node)| &node.input) {
            assert!(known(input), "the patch reads the undefined `{input}`");
        }
        let mut uses = HashSet::new();
        for (at, name) in &self.rewires {
            assert!(known(name), "the patch rewires to the undefined `{name}`");
            assert!(
                uses.insert(*at),
                "the patch leads input {} of node {} twice, last to `{name}`",
                at.slot,
                at.node.0
            );
        }
    }

    /// The graph with the patch applied. `proto` is the flat graph that the node ids refer to.
    pub fn apply(&self, proto: &mut GraphProto) {
        for (at, name) in &self.rewires {
            proto.node[at.node.0].input[at.slot].clone_from(name);
        }
        for (node, slot, name) in &self.renames {
            let outputs = &mut proto.node[node.0].output;
            if outputs.len() <= *slot {
                outputs.resize(slot + 1, String::new());
            }
            outputs[*slot].clone_from(name);
        }
        // 2n: before node n, 2n + 1: after it
        let mut added: BTreeMap<usize, Vec<NodeProto>> = BTreeMap::new();
        for (place, node) in &self.nodes {
            let key = match place {
                Place::First => 0,
                Place::Before(n) => 2 * n.0,
                Place::After(n) => 2 * n.0 + 1,
            };
            added.entry(key).or_default().push(node.clone());
        }
        let old = std::mem::take(&mut proto.node);
        for (index, node) in old.into_iter().enumerate() {
            proto.node.extend(added.remove(&(2 * index)).unwrap_or_default());
            proto.node.push(node);
            proto.node.extend(added.remove(&(2 * index + 1)).unwrap_or_default());
        }
        proto.node.extend(added.remove(&0).unwrap_or_default()); // a graph without nodes
        proto.initializer.extend(self.initializers.iter().cloned());
        proto.input.extend(self.inputs.iter().cloned());
        proto.output.extend(self.outputs.iter().cloned());
    }
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
    /// More bytes after these, which whoever writes the file makes.
    pub hole: Option<Hole>,
}

impl Splice {
    /// A splice of bytes alone.
    pub fn new(at: Range<u64>, frame: FrameId, bytes: Vec<u8>) -> Self {
        Self { at, frame, bytes, hole: None }
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64 + self.hole.map_or(0, |hole| hole.len)
    }
}

/// A place in a splice for bytes that are made when the file is written, such as an edited copy of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// Number of bytes.
    pub len: u64,
    /// A number that tells the bytes to whoever made the splice.
    pub tag: usize,
}

/// `metadata_props` entries as a splice at the end of the file (protobuf allows fields in any order, and
/// a repeated field anywhere).
pub fn metadata_splice(model: &Model, entries: &[(String, String)]) -> Splice {
    let mut bytes = Vec::new();
    for (key, value) in entries {
        let entry = StringStringEntryProto { key: Some(key.clone()), value: Some(value.clone()) };
        put_bytes(&mut bytes, 14, &entry.encode_to_vec());
    }
    Splice::new(model.file_len..model.file_len, FrameId(0), bytes)
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
        /// Further bytes after `bytes`, which are made when the file is written.
        hole: Option<Hole>,
    },
}

impl Segment {
    /// Length in the rewritten file.
    pub fn len(&self) -> u64 {
        match self {
            Self::Copy(range) => range.end - range.start,
            Self::Literal { bytes, hole, .. } => bytes.len() as u64 + hole.map_or(0, |hole| hole.len),
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
        *delta.entry(splice.frame.0).or_default() += splice.len() as i64 - (splice.at.end - splice.at.start) as i64;
    }
    let mut edits: Vec<(Range<u64>, Vec<u8>, Option<Hole>)> =
        splices.iter().map(|s| (s.at.clone(), s.bytes.clone(), s.hole)).collect();
    while let Some((id, change)) = delta.pop_last() {
        let frame = model.frame(FrameId(id));
        let Some(parent) = frame.parent else { continue };
        let old = frame.prefix..frame.body.start;
        let length = (frame.body.end - frame.body.start) as i64 + change;
        let new = varint(u64::try_from(length).expect("a splice never removes more than its frame holds"));
        let total = change + new.len() as i64 - (old.end - old.start) as i64;
        edits.push((old, new, None));
        *delta.entry(parent.0).or_default() += total;
    }
    // Stable: insertions at one place keep their order.
    edits.sort_by_key(|(range, ..)| range.start);
    let mut segments = Vec::new();
    let mut at = 0;
    for (range, bytes, hole) in edits {
        assert!(range.start >= at, "splices overlap");
        if range.start > at {
            segments.push(Segment::Copy(at..range.start));
        }
        at = range.end;
        segments.push(Segment::Literal { replaces: range, bytes, hole });
    }
    if at < model.file_len {
        segments.push(Segment::Copy(at..model.file_len));
    }
    segments
}
