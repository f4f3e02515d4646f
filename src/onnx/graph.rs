//! Def-use view of one graph: who produces a value, who reads it, what is constant.

use std::collections::HashMap;

use super::index::Model;
use super::proto::{GraphProto, NodeProto, dimension};
use super::tensor::{DataType, TensorId, TensorRef};
use super::wire::unpack_varints;

/// A value (edge) of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// A node of the graph, by its place in the file.
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

/// The main graph of a model with its def-use chains.
///
/// Values that subgraphs (`If`, `Loop`, `Scan` bodies) capture count as used by the node that holds
/// the subgraph, with a slot past its inputs.
pub struct Graph<'m> {
    /// The model this is a view of.
    pub model: &'m Model,
    proto: &'m GraphProto,
    names: Vec<String>,
    ids: HashMap<String, ValueId>,
    producer: Vec<Option<NodeId>>,
    uses: Vec<Vec<Use>>,
    initializer: Vec<Option<TensorId>>,
    dynamic: Vec<bool>,
    order: Vec<usize>,
}

impl<'m> Graph<'m> {
    /// Builds the view. Nodes need not be in topological order.
    pub fn new(model: &'m Model) -> Self {
        let proto = model.skeleton.graph.as_ref().expect("`Model::open` refuses a file without a graph");
        let mut graph = Self {
            model,
            proto,
            names: Vec::new(),
            ids: HashMap::new(),
            producer: Vec::new(),
            uses: Vec::new(),
            initializer: Vec::new(),
            dynamic: Vec::new(),
            order: Vec::new(),
        };
        for tensor in &proto.initializer {
            let id = graph.intern(tensor.name.as_deref().unwrap_or(""));
            graph.initializer[id.0] = Model::tensor_of(tensor);
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
        graph.sort();
        graph.mark_dynamic();
        graph
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
        let nodes = self.proto.node.len();
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

    /// A value is dynamic if it depends on a graph input that is no initializer's default.
    fn mark_dynamic(&mut self) {
        self.dynamic = vec![false; self.names.len()];
        for input in &self.proto.input {
            if let Some(id) = self.ids.get(input.name.as_deref().unwrap_or("")).copied() {
                self.dynamic[id.0] = self.initializer[id.0].is_none();
            }
        }
        let mut by_rank: Vec<usize> = (0..self.proto.node.len()).filter(|&n| self.order[n] != usize::MAX).collect();
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

    /// The graph as decoded (weights stripped).
    pub fn proto(&self) -> &'m GraphProto {
        self.proto
    }

    /// Every node id in file order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.proto.node.len()).map(NodeId)
    }

    /// The node `id`.
    pub fn node(&self, id: NodeId) -> &'m NodeProto {
        &self.proto.node[id.0]
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
    pub fn op(&self, id: NodeId) -> &'m str {
        let node = self.node(id);
        let domain = node.domain.as_deref().unwrap_or("");
        let local = self
            .model
            .skeleton
            .functions
            .iter()
            .any(|f| f.domain.as_deref().unwrap_or("") == domain && f.name.as_deref() == node.op_type.as_deref());
        match domain {
            "" | "ai.onnx" | "com.microsoft" if !local => node.op(),
            _ => "",
        }
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
        self.proto.node[node.0].output.iter().filter(|name| !name.is_empty()).map(|name| self.ids[name])
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

    /// Whether the value depends on what the caller feeds.
    pub fn is_dynamic(&self, id: ValueId) -> bool {
        self.dynamic[id.0]
    }

    /// Topological rank of a node.
    pub fn rank(&self, node: NodeId) -> usize {
        self.order[node.0]
    }

    /// Whether the graph returns this value.
    pub fn is_output(&self, id: ValueId) -> bool {
        self.proto.output.iter().any(|o| o.name.as_deref() == Some(self.name(id)))
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
    pub fn small_tensor(&self, id: ValueId) -> Option<&'m super::proto::TensorProto> {
        let wanted = self.tensor(id)?;
        if let Some(node) = self.producer(id) {
            return self.node(node).attr("value")?.t.as_ref();
        }
        self.proto.initializer.iter().find(|t| Model::tensor_of(t) == Some(wanted))
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
            .proto
            .value_info
            .iter()
            .chain(&self.proto.input)
            .chain(&self.proto.output)
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
            .proto
            .value_info
            .iter()
            .chain(&self.proto.input)
            .chain(&self.proto.output)
            .find(|info| info.name.as_deref() == Some(name))?;
        let shape = info.tensor()?.shape.as_ref()?;
        Some(
            shape
                .dim
                .iter()
                .map(|d| match &d.value {
                    Some(dimension::Value::DimValue(v)) => Some(*v),
                    _ => None,
                })
                .collect(),
        )
    }

    /// Walks producers back from `from` and tells whether `target` is met, not passing `target`.
    /// `target` itself counts.
    pub fn depends_on(&self, from: ValueId, target: ValueId) -> bool {
        let floor = self.producer(target).map_or(0, |n| self.rank(n));
        let mut seen = std::collections::HashSet::new();
        let mut stack = vec![from];
        while let Some(value) = stack.pop() {
            if value == target {
                return true;
            }
            let Some(node) = self.producer(value) else { continue };
            if self.rank(node) < floor || self.rank(node) == usize::MAX || !seen.insert(node) {
                continue;
            }
            stack.extend(self.all_inputs(node).into_iter().filter(|&v| self.is_dynamic(v)));
        }
        false
    }

    /// A name that the graph does not use yet, starting with `stem`.
    pub fn fresh_name(&self, stem: &str) -> String {
        let mut name = stem.to_string();
        let mut n = 1;
        while self.ids.contains_key(&name) {
            n += 1;
            name = format!("{stem}.{n}");
        }
        name
    }
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
