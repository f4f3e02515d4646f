//! Def-use view of one graph: who produces a value, who reads it, what is constant.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use super::captured::captured;
use super::constant;
use super::facts::{self, Fact};
use super::flat::Flat;
use super::index::{FrameId, Model};
use super::ops::{self, ActivationRounding, Domain, Elements, Operator, Weighted};
use super::proto::{Dimension, GraphProto, NodeProto, SparseTensorProto, ValueInfoProto, dimension};
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
///
/// ```
/// use std::path::Path;
/// use lancet::onnx::{Graph, Model};
///
/// let model = Model::open(Path::new("fixtures/chat/model.onnx"))?;
/// let graph = Graph::new(&model);
/// let logits = graph.value("logits").expect("the model has an output of this name");
/// let node = graph.producer(logits).expect("a node computes it");
/// assert_eq!(graph.op_name(node), "MatMul");
/// assert!(graph.uses(logits).is_empty());
/// # Ok::<(), lancet::onnx::OnnxError>(())
/// ```
pub struct Graph<'m> {
    /// The model this is a view of.
    pub model: &'m Model,
    flat: Flat,
    names: Vec<String>,
    ids: HashMap<String, ValueId>,
    producer: Vec<Option<NodeId>>,
    uses: Vec<Vec<Use>>,
    /// What the subgraphs of each node read from outside.
    captured: Vec<Vec<ValueId>>,
    initializer: Vec<Option<TensorId>>,
    /// Places of the initializers in the flat graph.
    stored: HashMap<TensorId, usize>,
    /// Initializers that a caller may replace, as they are graph inputs too.
    defaults: HashSet<ValueId>,
    /// Places of the sparse initializers in the flat graph.
    sparse: HashMap<ValueId, usize>,
    /// Places of the declarations, counted through `value_info`, inputs and outputs.
    declared: HashMap<ValueId, usize>,
    returned: HashSet<ValueId>,
    dynamic: Vec<bool>,
    order: Vec<usize>,
    operators: Operators,
    known: Vec<Option<&'static Operator>>,
    facts: Vec<Fact>,
    /// Names that are no values of the flat graph and may not be given again either.
    names_inside: OnceLock<HashSet<String>>,
    /// Bodies of the functions that are also called where the flat graph does not look.
    opaque_bodies: OnceLock<HashSet<FrameId>>,
}

/// Which operators of the table the nodes of a model are.
pub(super) struct Operators {
    standard: Option<i64>,
    microsoft: Option<i64>,
    /// Domain and name of the local functions, which are called like operators.
    functions: HashSet<(String, String)>,
}

impl Operators {
    fn new(model: &Model) -> Self {
        let text = |name: &Option<String>| name.clone().unwrap_or_default();
        let functions = model.skeleton.functions.iter().map(|f| (text(&f.domain), text(&f.name))).collect();
        let standard = model.opset("").or_else(|| model.opset("ai.onnx"));
        Self { standard, microsoft: model.opset("com.microsoft"), functions }
    }

    /// The operator of a node, unless it is a custom one or a call of a local function.
    pub fn of(&self, node: &NodeProto) -> Option<&'static Operator> {
        let domain = Domain::of(node.domain.as_deref())?;
        if !self.functions.is_empty() {
            let call = (node.domain.clone().unwrap_or_default(), node.op().to_string());
            if self.functions.contains(&call) {
                return None;
            }
        }
        let version = match domain {
            Domain::Standard => self.standard,
            Domain::Microsoft => self.microsoft,
        };
        ops::find(domain, node.op(), version)
    }
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
            captured: Vec::new(),
            initializer: Vec::new(),
            stored: HashMap::new(),
            defaults: HashSet::new(),
            sparse: HashMap::new(),
            declared: HashMap::new(),
            returned: HashSet::new(),
            dynamic: Vec::new(),
            order: Vec::new(),
            operators: Operators::new(model),
            known: Vec::new(),
            facts: Vec::new(),
            names_inside: OnceLock::new(),
            opaque_bodies: OnceLock::new(),
        };
        let proto = std::mem::take(&mut graph.flat.graph);
        for (index, tensor) in proto.initializer.iter().enumerate() {
            let id = graph.intern(tensor.name.as_deref().unwrap_or(""));
            let found = Model::tensor_of(tensor);
            graph.initializer[id.0] = found;
            graph.stored.extend(found.map(|found| (found, index)));
        }
        for (index, sparse) in proto.sparse_initializer.iter().enumerate() {
            if let Some(name) = sparse.values.as_ref().and_then(|values| values.name.as_deref()) {
                let id = graph.intern(name);
                graph.sparse.insert(id, index);
            }
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
            let captured: Vec<ValueId> = captured(node).iter().map(|name| graph.intern(name)).collect();
            for (extra, id) in captured.iter().enumerate() {
                graph.uses[id.0].push(Use { node: NodeId(index), slot: node.input.len() + extra });
            }
            graph.captured.push(captured);
        }
        graph.known = proto.node.iter().map(|node| graph.operators.of(node)).collect();
        for (index, info) in infos(&proto).enumerate() {
            if let Some(id) = info.name.as_deref().and_then(|name| graph.value(name)) {
                graph.declared.entry(id).or_insert(index);
            }
        }
        graph.returned = proto.output.iter().filter_map(|o| graph.value(o.name.as_deref()?)).collect();
        graph.flat.graph = proto;
        graph.mark_defaults();
        graph.sort();
        graph.mark_dynamic();
        graph.facts = facts::infer(&graph);
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
            let random = self.node(node).op().starts_with("Random") || self.op(node) == "Bernoulli";
            // what converts input 0 takes a type from any other input, no elements
            let converts = self.operator(node).is_some_and(|operator| operator.elements == Elements::Converted);
            let given = if converts { 1 } else { usize::MAX };
            if random || self.all_inputs(node).iter().take(given).any(|v| self.dynamic[v.0]) {
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
        if Domain::is_standard(node) {
            return node.op().to_string();
        }
        format!("{}.{}", node.domain.as_deref().unwrap_or(""), node.op())
    }

    /// The name of the operator, if it is one that Lancet's table ([`super::ops`]) knows; else `""`, so that a custom
    /// operator of a known name is not taken for it. A call of a local function is such a custom operator.
    pub fn op(&self, id: NodeId) -> &'static str {
        self.known[id.0].map_or("", |operator| operator.name)
    }

    /// What Lancet knows of the node's operator.
    pub fn operator(&self, id: NodeId) -> Option<&'static Operator> {
        self.known[id.0]
    }

    /// What a node computes with a weight and how the weight is stored, where its operator reads one.
    pub fn weighted(&self, id: NodeId) -> Option<Weighted> {
        self.operator(id)?.weighted
    }

    /// Whether a node rounds activations to 8 bits; never [`ActivationRounding::AtLevel4`], which the node's attribute settles.
    pub fn rounding(&self, id: NodeId) -> ActivationRounding {
        match self.operator(id).map_or(ActivationRounding::No, |operator| operator.rounding) {
            ActivationRounding::AtLevel4 if self.node(id).attr_i("accuracy_level", 0) == 4 => {
                ActivationRounding::DynamicRows
            }
            ActivationRounding::AtLevel4 => ActivationRounding::No,
            other => other,
        }
    }

    /// The operators of the model's versions.
    pub(super) fn operators(&self) -> &Operators {
        &self.operators
    }

    /// Number of values; their ids are below it.
    pub fn value_count(&self) -> usize {
        self.names.len()
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
        all.extend(&self.captured[node.0]);
        all
    }

    /// Whether the value is an initializer that is also a graph input (IR version 4 and later): whoever runs the model
    /// may replace it, so that its elements and its sizes are a default and no constant. Such a value is dynamic and
    /// has no [`Self::tensor`], as any other input, except in files that list nearly all of their weights (by elements)
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
        self.returned.contains(&id)
    }

    /// The tensor a value is: an initializer, or the value of a `Constant` node.
    pub fn tensor(&self, id: ValueId) -> Option<TensorId> {
        if let Some(tensor) = self.initializer[id.0] {
            return Some(tensor);
        }
        let node = self.constant_node(id)?;
        node.attr("value").and_then(|a| a.t.as_ref()).and_then(Model::tensor_of)
    }

    /// The standard `Constant` node that a value comes from.
    fn constant_node(&self, id: ValueId) -> Option<&NodeProto> {
        let node = self.producer(id).filter(|&node| self.op(node) == "Constant")?;
        Some(self.node(node))
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
        match self.constant_node(id) {
            Some(node) => constant::node_ints(node),
            None => constant::ints(self.small_tensor(id)?),
        }
    }

    /// The skeleton's own copy of a small tensor.
    pub fn small_tensor(&self, id: ValueId) -> Option<&super::proto::TensorProto> {
        let wanted = self.tensor(id)?;
        if let Some(node) = self.constant_node(id) {
            return node.attr("value")?.t.as_ref();
        }
        self.stored.get(&wanted).map(|&index| &self.proto().initializer[index])
    }

    /// A sparse initializer. It has no [`Self::tensor`], as its elements are two of them; type and shape are known.
    pub fn sparse(&self, id: ValueId) -> Option<&SparseTensorProto> {
        self.sparse.get(&id).map(|&index| &self.proto().sparse_initializer[index])
    }

    /// Element type of a value, from the operators; from declarations where those are silent. Where a declaration
    /// contradicts the operator, the operator is right: no runtime loads such a file.
    pub fn elem_type(&self, id: ValueId) -> Option<DataType> {
        self.facts[id.0].dtype
    }

    /// Dimensions of a graph input or output or of a value that the file declares; `None` stands for
    /// a symbolic dimension.
    pub fn declared_shape(&self, id: ValueId) -> Option<Vec<Option<i64>>> {
        if let Some(tensor) = self.tensor_ref(id) {
            return Some(tensor.shape.iter().map(|&d| i64::try_from(d).ok()).collect());
        }
        dimensions(self.declaration(id)?)
    }

    /// What the file declares of a value.
    fn declaration(&self, id: ValueId) -> Option<&ValueInfoProto> {
        let index = *self.declared.get(&id)?;
        let (inner, inputs) = (self.proto().value_info.len(), self.proto().input.len());
        match index.checked_sub(inner) {
            None => self.proto().value_info.get(index),
            Some(index) if index < inputs => self.proto().input.get(index),
            Some(index) => self.proto().output.get(index - inputs),
        }
    }

    /// All declarations, by name.
    pub(super) fn declarations(&self) -> HashMap<&str, &ValueInfoProto> {
        self.declared.keys().filter_map(|&id| Some((self.name(id), self.declaration(id)?))).collect()
    }

    /// Whether a tensor lies in a function body that is also called where the flat graph does not look.
    pub fn is_opaque(&self, tensor: TensorId) -> bool {
        if self.flat.opaque_calls.is_empty() {
            return false;
        }
        let bodies = self.opaque_bodies.get_or_init(|| {
            self.flat.opaque_calls.iter().map(|&function| self.model.functions[function].frame).collect()
        });
        let frame = Some(self.model.tensor(tensor).frame);
        std::iter::successors(frame, |&frame| self.model.frame(frame).parent).any(|frame| bodies.contains(&frame))
    }

    /// Every value.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.names.len()).map(ValueId)
    }

    /// Number of values.
    pub(super) fn n_values(&self) -> usize {
        self.names.len()
    }

    /// Number of dimensions of a value, from the operators, else as declared.
    pub fn rank_of(&self, id: ValueId) -> Option<usize> {
        self.facts[id.0].shape.rank
    }

    /// Size of a value's last dimension, from the operators.
    pub fn last_dimension(&self, id: ValueId) -> Option<u64> {
        self.facts[id.0].shape.last
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

    /// A name that no value and no node of the graph, of its subgraphs or of a function body has yet, starting with
    /// `stem`.
    pub fn fresh_name(&self, stem: &str) -> String {
        let inside = self.names_inside.get_or_init(|| names_inside(self));
        let used = |name: &str| self.ids.contains_key(name) || inside.contains(name);
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
pub(super) fn dimensions(info: &ValueInfoProto) -> Option<Vec<Option<i64>>> {
    let shape = info.tensor()?.shape.as_ref()?;
    let size = |d: &Dimension| match d.value {
        Some(dimension::Value::DimValue(v)) => Some(v),
        _ => None,
    };
    Some(shape.dim.iter().map(size).collect())
}

/// All declarations of a graph, those of its inputs and outputs last.
fn infos(graph: &GraphProto) -> impl Iterator<Item = &ValueInfoProto> {
    graph.value_info.iter().chain(&graph.input).chain(&graph.output)
}

/// Names that stand in the file, or in the flat graph, besides those of the flat graph's values.
fn names_inside(graph: &Graph<'_>) -> HashSet<String> {
    let mut names: HashSet<String> = HashSet::new();
    let skeleton = &graph.model.skeleton;
    let bodies = skeleton.functions.iter().map(|f| &f.node);
    let main = skeleton.graph.iter().map(|g| &g.node);
    let mut nodes: Vec<&NodeProto> = bodies.chain(main).flatten().chain(&graph.proto().node).collect();
    for function in &skeleton.functions {
        names.extend(function.input.iter().chain(&function.output).cloned());
    }
    names.extend(graph.proto().value_info.iter().filter_map(|info| info.name.clone()));
    while let Some(node) = nodes.pop() {
        names.extend(node.name.clone());
        names.extend(node.input.iter().chain(&node.output).cloned());
        for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            names.extend(inner.initializer.iter().filter_map(|t| t.name.clone()));
            names.extend(infos(inner).filter_map(|info| info.name.clone()));
            nodes.extend(&inner.node);
        }
    }
    names.extend(graph.flat.instances.iter().flat_map(|i| i.locals().map(str::to_string)));
    names
}

/// 16-bit float bits of a varint payload (`int32_data`).
pub fn varint_halves(bytes: &[u8]) -> Option<Vec<u16>> {
    unpack_varints(bytes)?.into_iter().map(|v| u16::try_from(v & 0xffff_ffff).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{ModelProto, node};
    use crate::onnx::testing::{floats, input, model, open};

    /// `y = x w + x a b`, where `listed` are inputs with an initializer.
    fn adapter(ir_version: i64, listed: &[&str]) -> ModelProto {
        let nodes = vec![
            node("MatMul", "base", &["x", "w"], &["base"], vec![]),
            node("MatMul", "down", &["x", "a"], &["down"], vec![]),
            node("MatMul", "up", &["down", "b"], &["up"], vec![]),
            node("Add", "sum", &["base", "up"], &["y"], vec![]),
        ];
        let mut model = model(17, nodes, &["x"], &["y"]);
        model.ir_version = Some(ir_version);
        let graph = model.graph.as_mut().unwrap();
        graph.input = vec![input("x", &[None, Some(32)])];
        graph.input.extend(listed.iter().map(|name| input(name, &[None, None])));
        graph.initializer = vec![floats("w", &[32, 32]), floats("a", &[32, 2]), floats("b", &[2, 32])];
        model
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
            let model = open(&adapter(ir, listed)).unwrap();
            let graph = Graph::new(&model);
            let of = |f: &dyn Fn(ValueId) -> bool| ["w", "b"].map(|name| f(graph.value(name).unwrap()));
            assert_eq!(of(&|v| graph.is_default(v)), defaults, "{ir} {listed:?}");
            assert_eq!(of(&|v| graph.is_dynamic(v)), dynamic, "{ir} {listed:?}");
            assert_eq!(of(&|v| graph.tensor(v).is_none()), dynamic, "{ir} {listed:?}");
            // the declared sizes of a default are open, so that those of the initializer say nothing
            let last = graph.last_dimension(graph.value("b").unwrap());
            assert_eq!(last, (!defaults[1]).then_some(32), "{ir} {listed:?}");
        }
    }

    #[test]
    fn fresh_names_avoid_every_name_of_the_file() {
        let mut inner = model(17, vec![node("Neg", "lancet.n", &["x"], &["lancet.v"], vec![])], &[], &["lancet.v"]);
        let mut inner = inner.graph.take().unwrap();
        inner.initializer.push(floats("lancet.i", &[1]));
        let mut branch = crate::onnx::proto::attr_int("then_branch", 0);
        branch.i = None;
        branch.g = Some(inner.clone());
        let mut other = branch.clone();
        other.name = Some("else_branch".into());
        let nodes = vec![
            node("Neg", "lancet.node", &["x"], &["lancet.value"], vec![]),
            node("If", "if", &["c"], &["y"], vec![branch, other]),
        ];
        let opened = open(&model(17, nodes, &["x", "c"], &["y"])).unwrap();
        let graph = Graph::new(&opened);
        for stem in ["lancet.node", "lancet.value", "lancet.n", "lancet.v", "lancet.i"] {
            assert_eq!(graph.fresh_name(stem), format!("{stem}.2"));
        }
        assert_eq!(graph.fresh_name("lancet.free"), "lancet.free");
    }

    #[test]
    fn a_sparse_initializer_is_a_constant_of_known_shape() {
        let mut proto = model(17, vec![node("MatMul", "m", &["x", "s"], &["y"], vec![])], &["x"], &["y"]);
        let mut values = floats("s", &[1]);
        values.float_data = vec![2.0];
        let mut indices = floats("", &[1]);
        (indices.float_data, indices.int64_data, indices.data_type) = (vec![], vec![3], Some(7));
        let sparse = SparseTensorProto { values: Some(values), indices: Some(indices), dims: vec![4, 6] };
        proto.graph.as_mut().unwrap().sparse_initializer.push(sparse);
        let opened = open(&proto).unwrap();
        let graph = Graph::new(&opened);
        let value = graph.value("s").unwrap();
        assert_eq!(graph.sparse(value).unwrap().dims, [4, 6]);
        assert!(!graph.is_dynamic(value) && graph.tensor(value).is_none());
        assert_eq!((graph.rank_of(value), graph.last_dimension(value)), (Some(2), Some(6)));
        assert_eq!(graph.elem_type(value), Some(DataType::FLOAT));
    }
}
