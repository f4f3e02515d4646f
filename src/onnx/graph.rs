//! Def-use view of one graph: who produces a value, who reads it, what is constant.

use std::collections::{HashMap, HashSet};

use super::flat::Flat;
use super::index::{FrameId, Model};
use super::proto::{Dimension, GraphProto, NodeProto, ValueInfoProto, dimension};
use super::shape::{self, Shape};
use super::tensor::{DataType, TensorId, TensorRef};
use super::wire::unpack_varints;

/// The IR version since which an initializer that is a graph input too is a default.
const DEFAULTS_SINCE: i64 = 4;

/// A value (edge) of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// A node of the flat graph, by its place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// One use of a value: input `slot` of `node`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Use {
    /// The reader.
    pub node: NodeId,
    /// Which of its inputs.
    pub slot: usize,
}

/// The graph of a model with its def-use chains, local functions and merged decoders' branches inlined
/// ([`Flat`]).
///
/// Values that the remaining subgraphs (`If`, `Loop`, `Scan` bodies) capture count as used by the node that
/// holds the subgraph, with a slot past its inputs.
pub struct Graph<'m> {
    /// The model this is a view of.
    pub model: &'m Model,
    flat: Flat,
    names: Vec<String>,
    ids: HashMap<String, ValueId>,
    producer: Vec<Option<NodeId>>,
    uses: Vec<Vec<Use>>,
    initializer: Vec<Option<TensorId>>,
    /// Places of the initializers in the flat graph.
    stored: HashMap<TensorId, usize>,
    /// Initializers that a caller may replace, as they are graph inputs too.
    defaults: HashSet<ValueId>,
    dynamic: Vec<bool>,
    order: Vec<usize>,
    known: Vec<bool>,
    shapes: Vec<Shape>,
}

impl<'m> Graph<'m> {
    /// Builds the view. Nodes need not be in topological order.
    pub fn new(model: &'m Model) -> Self {
        let mut graph = Self {
            model,
            flat: Flat::new(model),
            names: Vec::new(),
            ids: HashMap::new(),
            producer: Vec::new(),
            uses: Vec::new(),
            initializer: Vec::new(),
            stored: HashMap::new(),
            defaults: HashSet::new(),
            dynamic: Vec::new(),
            order: Vec::new(),
            known: Vec::new(),
            shapes: Vec::new(),
        };
        let proto = std::mem::take(&mut graph.flat.graph);
        for (index, tensor) in proto.initializer.iter().enumerate() {
            let id = graph.intern(tensor.name.as_deref().unwrap_or(""));
            let found = Model::tensor_of(tensor);
            graph.initializer[id.0] = found;
            graph.stored.extend(found.map(|found| (found, index)));
        }
        for (index, node) in proto.node.iter().enumerate() {
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                let id = graph.intern(output);
                graph.producer[id.0] = Some(NodeId(index));
            }
        }
        for (index, node) in proto.node.iter().enumerate() {
            for (slot, input) in node.input.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                let id = graph.intern(input);
                graph.uses[id.0].push(Use { node: NodeId(index), slot });
            }
            for (extra, name) in captured(node).into_iter().enumerate() {
                let id = graph.intern(&name);
                graph.uses[id.0].push(Use { node: NodeId(index), slot: node.input.len() + extra });
            }
        }
        graph.known = proto.node.iter().map(|node| is_known(model, node)).collect();
        graph.flat.graph = proto;
        graph.mark_defaults();
        graph.sort();
        graph.mark_dynamic();
        graph.shapes = shape::infer(&graph);
        graph
    }

    /// The flat graph with the places of its nodes in the file.
    pub fn flat(&self) -> &Flat {
        &self.flat
    }

    /// For a value that a merged decoder returns: the same value in the branch with a cache.
    pub fn alternate(&self, id: ValueId) -> Option<ValueId> {
        self.flat.alternate.get(self.name(id)).and_then(|name| self.value(name))
    }

    fn intern(&mut self, name: &str) -> ValueId {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = ValueId(self.names.len());
        self.names.push(name.to_string());
        self.ids.insert(name.to_string(), id);
        self.producer.push(None);
        self.uses.push(Vec::new());
        self.initializer.push(None);
        id
    }

    /// Kahn's algorithm; a node on a cycle keeps rank `usize::MAX` and is never walked through.
    fn sort(&mut self) {
        let nodes = self.proto().node.len();
        let mut missing: Vec<usize> = vec![0; nodes];
        for (value, uses) in self.uses.iter().enumerate() {
            if self.producer[value].is_some() {
                for one in uses {
                    missing[one.node.0] += 1;
                }
            }
        }
        self.order = vec![usize::MAX; nodes];
        let mut ready: std::collections::VecDeque<usize> = (0..nodes).filter(|&n| missing[n] == 0).collect();
        let mut rank = 0;
        while let Some(node) = ready.pop_front() {
            self.order[node] = rank;
            rank += 1;
            for output in self.outputs(NodeId(node)).collect::<Vec<_>>() {
                for one in &self.uses[output.0] {
                    missing[one.node.0] -= 1;
                    if missing[one.node.0] == 0 {
                        ready.push_back(one.node.0);
                    }
                }
            }
        }
    }

    /// Finds the graph inputs that have an initializer. From IR version 4 on that initializer is a default; before,
    /// every initializer had to be listed among the inputs (ONNX IR specification, "Graphs"). Unless all weights are
    /// such defaults, they are inputs like others from here on.
    fn mark_defaults(&mut self) {
        if self.model.skeleton.ir_version.is_some_and(|version| version < DEFAULTS_SINCE) {
            return;
        }
        let inputs = self.flat.graph.input.iter().filter_map(|input| self.value(input.name.as_deref()?));
        self.defaults = inputs.filter(|id| self.initializer[id.0].is_some()).collect();
        if !self.lists_weights() {
            self.defaults.iter().for_each(|id| self.initializer[id.0] = None);
        }
    }

    /// Whether the defaults are the model's own weights: an exporter that went on to list every initializer among the
    /// inputs (`keep_initializers_as_inputs`). Measured by elements, since adapters are many small tensors.
    fn lists_weights(&self) -> bool {
        let size = |id: usize| self.initializer[id].map_or(0, |tensor| self.model.tensor(tensor).elements());
        let all: u64 = (0..self.names.len()).map(size).fold(0, u64::saturating_add);
        let listed: u64 = self.defaults.iter().map(|id| size(id.0)).fold(0, u64::saturating_add);
        listed >= all - all / 10
    }

    /// A value is dynamic if it depends on a graph input that is not taken for a weight.
    fn mark_dynamic(&mut self) {
        self.dynamic = vec![false; self.names.len()];
        for input in &self.flat.graph.input {
            if let Some(id) = self.ids.get(input.name.as_deref().unwrap_or("")).copied() {
                self.dynamic[id.0] = self.initializer[id.0].is_none();
            }
        }
        let mut by_rank: Vec<usize> = (0..self.proto().node.len()).filter(|&n| self.order[n] != usize::MAX).collect();
        by_rank.sort_by_key(|&n| self.order[n]);
        for node in by_rank {
            let node = NodeId(node);
            let random = self.node(node).op().starts_with("Random");
            if random || self.all_inputs(node).iter().any(|v| self.dynamic[v.0]) {
                for output in self.outputs(node).collect::<Vec<_>>() {
                    self.dynamic[output.0] = true;
                }
            }
        }
    }

    /// The flat graph as decoded (weights stripped).
    pub fn proto(&self) -> &GraphProto {
        &self.flat.graph
    }

    /// Every node id in the order of the flat graph.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.proto().node.len()).map(NodeId)
    }

    /// The node `id`.
    pub fn node(&self, id: NodeId) -> &NodeProto {
        &self.proto().node[id.0]
    }

    /// `op` of the node, with its domain unless that is the default one.
    pub fn op_name(&self, id: NodeId) -> String {
        let node = self.node(id);
        match node.domain.as_deref().unwrap_or("") {
            "" | "ai.onnx" => node.op().to_string(),
            domain => format!("{domain}.{}", node.op()),
        }
    }

    /// The operator if it is of the default domain or of a domain whose operators Lancet knows
    /// (ONNX Runtime's contrib operators); else `""`, so that a custom operator of a known name is not
    /// taken for it. A call of a local function is such a custom operator.
    pub fn op(&self, id: NodeId) -> &str {
        if self.known[id.0] { self.node(id).op() } else { "" }
    }

    /// A value's id, if the graph has the name.
    pub fn value(&self, name: &str) -> Option<ValueId> {
        self.ids.get(name).copied()
    }

    /// A value's name.
    pub fn name(&self, id: ValueId) -> &str {
        &self.names[id.0]
    }

    /// The node that computes the value; `None` for inputs and initializers.
    pub fn producer(&self, id: ValueId) -> Option<NodeId> {
        self.producer[id.0]
    }

    /// The value's readers.
    pub fn uses(&self, id: ValueId) -> &[Use] {
        &self.uses[id.0]
    }

    /// Input `slot` of the node, if given.
    pub fn input(&self, node: NodeId, slot: usize) -> Option<ValueId> {
        self.node(node).input.get(slot).filter(|name| !name.is_empty()).and_then(|name| self.value(name))
    }

    /// The node's outputs that have a name.
    pub fn outputs(&self, node: NodeId) -> impl Iterator<Item = ValueId> + '_ {
        self.proto().node[node.0].output.iter().filter(|name| !name.is_empty()).map(|name| self.ids[name])
    }

    /// Output `slot` of the node, if it has a name.
    pub fn output(&self, node: NodeId, slot: usize) -> Option<ValueId> {
        self.node(node).output.get(slot).filter(|name| !name.is_empty()).and_then(|name| self.value(name))
    }

    /// The node's inputs, and what its subgraphs capture.
    pub fn all_inputs(&self, node: NodeId) -> Vec<ValueId> {
        let proto = self.node(node);
        let mut all: Vec<ValueId> =
            proto.input.iter().filter(|name| !name.is_empty()).filter_map(|name| self.value(name)).collect();
        all.extend(captured(proto).iter().filter_map(|name| self.value(name)));
        all
    }

    /// Whether the value is an initializer that is also a graph input (IR version 4 and later): whoever runs the model
    /// may replace it, so that its elements and its sizes are a default and no constant. Such a value is dynamic and has
    /// no [`Self::tensor`], as any other input, except in files that list nearly all of their weights (by elements)
    /// among the inputs: there they are read as weights, and only this function tells.
    pub fn is_default(&self, id: ValueId) -> bool {
        self.defaults.contains(&id)
    }

    /// Whether the value depends on what the caller feeds; see [`Self::is_default`] for inputs with defaults.
    pub fn is_dynamic(&self, id: ValueId) -> bool {
        self.dynamic[id.0]
    }

    /// Topological rank of a node.
    pub fn rank(&self, node: NodeId) -> usize {
        self.order[node.0]
    }

    /// Whether the graph returns this value.
    pub fn is_output(&self, id: ValueId) -> bool {
        self.proto().output.iter().any(|o| o.name.as_deref() == Some(self.name(id)))
    }

    /// The tensor a value is: an initializer, or the value of a `Constant` node.
    pub fn tensor(&self, id: ValueId) -> Option<TensorId> {
        if let Some(tensor) = self.initializer[id.0] {
            return Some(tensor);
        }
        let node = self.node(self.producer(id)?);
        if node.op() != "Constant" {
            return None;
        }
        node.attr("value").and_then(|a| a.t.as_ref()).and_then(Model::tensor_of)
    }

    /// The same as [`Graph::tensor`], with its header.
    pub fn tensor_ref(&self, id: ValueId) -> Option<&'m TensorRef> {
        self.tensor(id).map(|t| self.model.tensor(t))
    }

    /// Values of a small integer constant (at most 128 elements): shapes, axes, permutations.
    pub fn const_ints(&self, id: ValueId) -> Option<Vec<i64>> {
        if self.is_default(id) {
            return None;
        }
        if let Some(node) = self.producer(id).map(|n| self.node(n))
            && node.op() == "Constant"
        {
            if let Some(a) = node.attr("value_int") {
                return a.i.map(|i| vec![i]);
            }
            if let Some(a) = node.attr("value_ints") {
                return Some(a.ints.clone());
            }
        }
        let tensor = self.small_tensor(id)?;
        let raw = tensor.raw_data.as_deref().unwrap_or(&[]);
        Some(match DataType(tensor.data_type?) {
            DataType::INT64 if !raw.is_empty() => {
                raw.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("chunks of 8"))).collect()
            }
            DataType::INT64 => tensor.int64_data.clone(),
            DataType::INT32 if !raw.is_empty() => {
                raw.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes(b.try_into().expect("chunks of 4")))).collect()
            }
            DataType::INT32 => tensor.int32_data.iter().map(|&i| i64::from(i)).collect(),
            _ => return None,
        })
    }

    /// The skeleton's own copy of a small tensor.
    pub fn small_tensor(&self, id: ValueId) -> Option<&super::proto::TensorProto> {
        let wanted = self.tensor(id)?;
        if let Some(node) = self.producer(id) {
            return self.node(node).attr("value")?.t.as_ref();
        }
        self.stored.get(&wanted).map(|&index| &self.proto().initializer[index])
    }

    /// Element type of a value, from declarations where there are any, else from the operators.
    pub fn elem_type(&self, id: ValueId) -> Option<DataType> {
        self.elem_type_within(id, 64)
    }

    fn elem_type_within(&self, id: ValueId, depth: usize) -> Option<DataType> {
        if let Some(tensor) = self.tensor_ref(id) {
            return Some(tensor.dtype);
        }
        let name = self.name(id);
        if let Some(declared) = self
            .proto()
            .value_info
            .iter()
            .chain(&self.proto().input)
            .chain(&self.proto().output)
            .find(|info| info.name.as_deref() == Some(name))
            .and_then(|info| info.tensor()?.elem_type)
            .filter(|&code| code != 0)
        {
            return Some(DataType(declared));
        }
        let node = self.producer(id)?;
        let proto = self.node(node);
        let from =
            |slot: usize| depth.checked_sub(1).and_then(|depth| self.elem_type_within(self.input(node, slot)?, depth));
        match proto.op() {
            "Cast" => proto.attr("to").and_then(|a| a.i).map(|code| DataType(code as i32)),
            "Shape" | "Size" | "ArgMax" | "NonZero" => Some(DataType::INT64),
            "DequantizeLinear" => from(1),
            "Where" => from(1),
            "ConstantOfShape" => proto
                .attr("value")
                .and_then(|a| a.t.as_ref()?.data_type)
                .map_or(Some(DataType::FLOAT), |code| Some(DataType(code))),
            "GatherBlockQuantized" => from(2),
            "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual" | "Not" | "And" | "Or" | "IsNaN" => {
                Some(DataType::BOOL)
            }
            _ => from(0),
        }
    }

    /// Dimensions of a graph input or output or of a value that the file declares; `None` stands for
    /// a symbolic dimension.
    pub fn declared_shape(&self, id: ValueId) -> Option<Vec<Option<i64>>> {
        if let Some(tensor) = self.tensor_ref(id) {
            return Some(tensor.shape.iter().map(|&d| i64::try_from(d).ok()).collect());
        }
        let name = self.name(id);
        let info = self
            .proto()
            .value_info
            .iter()
            .chain(&self.proto().input)
            .chain(&self.proto().output)
            .find(|info| info.name.as_deref() == Some(name))?;
        dimensions(info)
    }

    /// Dimensions of every value that the file declares, by name.
    pub(super) fn declared_shapes(&self) -> HashMap<&str, Vec<Option<i64>>> {
        let infos = self.proto().value_info.iter().chain(&self.proto().input).chain(&self.proto().output);
        infos.filter_map(|info| Some((info.name.as_deref()?, dimensions(info)?))).collect()
    }

    /// Whether a tensor lies in a function body that is also called where the flat graph does not look.
    pub fn is_opaque(&self, tensor: TensorId) -> bool {
        let within = |frame: Option<FrameId>| {
            std::iter::successors(frame, |&frame| self.model.frame(frame).parent)
                .any(|frame| self.flat.opaque_calls.iter().any(|&f| self.model.functions[f].frame == frame))
        };
        !self.flat.opaque_calls.is_empty() && within(Some(self.model.tensor(tensor).frame))
    }

    /// Number of values.
    pub(super) fn n_values(&self) -> usize {
        self.names.len()
    }

    /// Number of dimensions of a value, from the operators, else as declared.
    pub fn rank_of(&self, id: ValueId) -> Option<usize> {
        self.shapes[id.0].rank
    }

    /// Size of a value's last dimension, from the operators.
    pub fn last_dimension(&self, id: ValueId) -> Option<u64> {
        self.shapes[id.0].last
    }

    /// Walks producers back from `from` and tells whether the elements of `target` are met, not passing `target`.
    /// `target` itself counts; what is computed from its shape alone does not.
    pub fn depends_on(&self, from: ValueId, target: ValueId) -> bool {
        let floor = self.producer(target).map_or(0, |n| self.rank(n));
        let mut seen = std::collections::HashSet::new();
        let mut stack = vec![from];
        while let Some(value) = stack.pop() {
            if value == target {
                return true;
            }
            let Some(node) = self.producer(value) else { continue };
            let shape_only = matches!(self.op(node), "Shape" | "Size");
            if shape_only || self.rank(node) < floor || self.rank(node) == usize::MAX || !seen.insert(node) {
                continue;
            }
            stack.extend(self.all_inputs(node).into_iter().filter(|&v| self.is_dynamic(v)));
        }
        false
    }

    /// A name that neither the graph nor an inlined body uses yet, starting with `stem`.
    pub fn fresh_name(&self, stem: &str) -> String {
        let used = |name: &str| {
            self.ids.contains_key(name)
                || self.flat.instances.iter().any(|i| i.locals().any(|local| local == name))
                || self.flat.graph.node.iter().any(|node| node.name.as_deref() == Some(name))
        };
        let mut name = stem.to_string();
        let mut n = 1;
        while used(&name) {
            n += 1;
            name = format!("{stem}.{n}");
        }
        name
    }
}

/// Declared dimensions; `None` stands for a symbolic one.
fn dimensions(info: &ValueInfoProto) -> Option<Vec<Option<i64>>> {
    let shape = info.tensor()?.shape.as_ref()?;
    let size = |d: &Dimension| match d.value {
        Some(dimension::Value::DimValue(v)) => Some(v),
        _ => None,
    };
    Some(shape.dim.iter().map(size).collect())
}

/// Whether a node's operator is what its name says: of the default domain or ONNX Runtime's own, and no local function.
fn is_known(model: &Model, node: &NodeProto) -> bool {
    let domain = node.domain.as_deref().unwrap_or("");
    matches!(domain, "" | "ai.onnx" | "com.microsoft")
        && !model
            .skeleton
            .functions
            .iter()
            .any(|f| f.domain.as_deref().unwrap_or("") == domain && f.name.as_deref() == node.op_type.as_deref())
}

/// Names that the subgraphs of a node read from outside.
pub fn captured(node: &NodeProto) -> Vec<String> {
    fn visit(graph: &GraphProto, out: &mut Vec<String>) {
        let mut inner: std::collections::HashSet<&str> = graph
            .input
            .iter()
            .filter_map(|i| i.name.as_deref())
            .chain(graph.initializer.iter().filter_map(|t| t.name.as_deref()))
            .collect();
        for node in &graph.node {
            inner.extend(node.output.iter().map(String::as_str));
        }
        let mut wanted: Vec<String> = Vec::new();
        for node in &graph.node {
            wanted.extend(node.input.iter().filter(|n| !n.is_empty()).cloned());
            wanted.extend(captured(node));
        }
        wanted.extend(graph.output.iter().filter_map(|o| o.name.clone()));
        out.extend(wanted.into_iter().filter(|name| !inner.contains(name.as_str())));
    }
    let mut out = Vec::new();
    for attribute in &node.attribute {
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            visit(graph, &mut out);
        }
    }
    out.sort();
    out.dedup();
    out
}

/// 16-bit float bits of a varint payload (`int32_data`).
pub fn varint_halves(bytes: &[u8]) -> Option<Vec<u16>> {
    unpack_varints(bytes)?.into_iter().map(|v| u16::try_from(v & 0xffff_ffff).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{
        ModelProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, node, type_proto,
    };
    use prost::Message;

    fn open(model: &ModelProto) -> Model {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        Model::open(&path).unwrap()
    }

    fn floats(name: &str, dims: &[i64]) -> TensorProto {
        let count = usize::try_from(dims.iter().product::<i64>()).unwrap();
        TensorProto {
            name: Some(name.into()),
            dims: dims.to_vec(),
            data_type: Some(1),
            float_data: vec![1.0; count],
            ..Default::default()
        }
    }

    fn input(name: &str, dims: &[Option<i64>]) -> ValueInfoProto {
        let dim = dims.iter().map(|d| Dimension { value: d.map(dimension::Value::DimValue) }).collect();
        let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(TensorShapeProto { dim }) };
        let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
        ValueInfoProto { name: Some(name.into()), r#type: Some(r#type) }
    }

    /// `y = x w + x a b`, where `listed` are inputs with an initializer.
    fn adapter(ir_version: i64, listed: &[&str]) -> ModelProto {
        let nodes = vec![
            node("MatMul", "base", &["x", "w"], &["base"], vec![]),
            node("MatMul", "down", &["x", "a"], &["down"], vec![]),
            node("MatMul", "up", &["down", "b"], &["up"], vec![]),
            node("Add", "sum", &["base", "up"], &["y"], vec![]),
        ];
        let mut inputs = vec![input("x", &[None, Some(32)])];
        inputs.extend(listed.iter().map(|name| input(name, &[None, None])));
        let graph = GraphProto {
            node: nodes,
            input: inputs,
            output: vec![input("y", &[])],
            initializer: vec![floats("w", &[32, 32]), floats("a", &[32, 2]), floats("b", &[2, 32])],
            ..Default::default()
        };
        ModelProto {
            ir_version: Some(ir_version),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
            graph: Some(graph),
            ..Default::default()
        }
    }

    #[test]
    fn an_initializer_that_is_an_input_is_a_default_since_ir_4() {
        // IR version, listed inputs; which of `w` and `b` are defaults, and which are dynamic
        for (ir, listed, defaults, dynamic) in [
            (8, &["a", "b"][..], [false, true], [false, true]),
            (4, &["b"], [false, true], [false, true]),
            (3, &["w", "a", "b"], [false, false], [false, false]),
            (8, &[], [false, false], [false, false]),
            // all weights listed: read as weights, and still known as defaults
            (8, &["w", "a", "b"], [true, true], [false, false]),
        ] {
            let model = open(&adapter(ir, listed));
            let graph = Graph::new(&model);
            let of = |f: &dyn Fn(ValueId) -> bool| ["w", "b"].map(|name| f(graph.value(name).unwrap()));
            assert_eq!(of(&|v| graph.is_default(v)), defaults, "{ir} {listed:?}");
            assert_eq!(of(&|v| graph.is_dynamic(v)), dynamic, "{ir} {listed:?}");
            assert_eq!(of(&|v| graph.tensor(v).is_none()), dynamic, "{ir} {listed:?}");
        }
    }
}
