//! Element types and shapes of all values, from the operators' rules ([`super::ops`]) in one pass over the graph.
//!
//! What a file declares is asked only where the rules are silent: exporters contradict themselves in declarations, and a
//! runtime computes what the rules say. Nothing is guessed from an input that no rule names.

use std::collections::HashMap;

use super::constant;
use super::graph::{Graph, NodeId, ValueId};
use super::ops::{Operator, Rule, Type};
use super::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use super::shape::{self, Shape};
use super::tensor::DataType;

/// What is known of a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fact {
    /// Element type.
    pub dtype: Option<DataType>,
    /// Rank and last dimension.
    pub shape: Shape,
}

impl Fact {
    /// What two values have in common.
    fn common(self, other: Self) -> Self {
        Self {
            dtype: self.dtype.filter(|_| self.dtype == other.dtype),
            shape: Shape {
                rank: self.shape.rank.filter(|_| self.shape.rank == other.shape.rank),
                last: self.shape.last.filter(|_| self.shape.last == other.shape.last),
            },
        }
    }

    /// This, and the declared type and rank where it is silent.
    fn or_declared(self, info: Option<&ValueInfoProto>) -> Self {
        let declared = info.map(Self::declared).unwrap_or_default();
        Self {
            dtype: self.dtype.or(declared.dtype),
            shape: Shape { rank: self.shape.rank.or(declared.shape.rank), last: self.shape.last },
        }
    }

    /// What a declaration says.
    fn declared(info: &ValueInfoProto) -> Self {
        let Some(tensor) = info.tensor() else { return Self::default() };
        let dims = super::graph::dimensions(info);
        let last = dims.as_ref().and_then(|dims| u64::try_from((*dims.last()?)?).ok());
        Self {
            dtype: tensor.elem_type.filter(|&code| code != 0).map(DataType),
            shape: Shape { rank: dims.map(|dims| dims.len()), last },
        }
    }

    /// A tensor's type and dimensions.
    fn of(tensor: &TensorProto) -> Self {
        let last = tensor.dims.last().and_then(|&d| u64::try_from(d).ok());
        Self {
            dtype: tensor.data_type.filter(|&code| code != 0).map(DataType),
            shape: Shape { rank: Some(tensor.dims.len()), last },
        }
    }
}

/// Where the names that a node reads are looked up.
pub(super) trait Scope {
    /// What is known of a value.
    fn fact(&self, name: &str) -> Fact;
    /// The elements of a small integer constant.
    fn ints(&self, name: &str) -> Option<Vec<i64>>;
    /// All dimensions of a constant tensor.
    fn dims(&self, name: &str) -> Option<Vec<u64>>;
    /// The node that computes a value, with its operator.
    fn producer(&self, name: &str) -> Option<(&NodeProto, &'static Operator)>;
    /// The operator of a node.
    fn operator(&self, node: &NodeProto) -> Option<&'static Operator>;
}

/// What is known of every value, by id.
pub(super) fn infer(graph: &Graph<'_>) -> Vec<Fact> {
    let declared = graph.declarations();
    let facts = (0..graph.n_values()).map(ValueId).map(|id| start(graph, id, &declared)).collect();
    let mut main = Main { graph, facts };
    let mut order: Vec<NodeId> = graph.nodes().filter(|&n| graph.rank(n) != usize::MAX).collect();
    order.sort_by_key(|&n| graph.rank(n));
    for id in order {
        let node = graph.node(id);
        let found = outputs(&main, node);
        for (slot, fact) in found.into_iter().enumerate() {
            if let Some(output) = graph.output(id, slot).filter(|&output| graph.tensor(output).is_none()) {
                main.facts[output.0] = fact.or_declared(declared.get(graph.name(output)).copied());
            }
        }
    }
    main.facts
}

/// What is known of a value before any node is looked at.
fn start(graph: &Graph<'_>, id: ValueId, declared: &HashMap<&str, &ValueInfoProto>) -> Fact {
    let info = declared.get(graph.name(id)).copied();
    if let Some(tensor) = graph.tensor_ref(id).filter(|_| info.is_none() || !graph.is_default(id)) {
        let shape = Shape { rank: Some(tensor.shape.len()), last: tensor.shape.last().copied() };
        return Fact { dtype: Some(tensor.dtype), shape };
    }
    if let Some(sparse) = graph.sparse(id) {
        let last = sparse.dims.last().and_then(|&d| u64::try_from(d).ok());
        let dtype = sparse.values.as_ref().and_then(|values| values.data_type).map(DataType);
        return Fact { dtype, shape: Shape { rank: Some(sparse.dims.len()), last } };
    }
    match (graph.producer(id), info) {
        (None, Some(info)) => Fact::declared(info),
        // a node on a cycle, or one that comes later in the pass
        (Some(_), info) => Fact::default().or_declared(info),
        (None, None) => Fact::default(),
    }
}

/// What is known of each output of a node.
fn outputs(scope: &dyn Scope, node: &NodeProto) -> Vec<Fact> {
    let Some(operator) = scope.operator(node) else { return vec![Fact::default(); node.output.len()] };
    if operator.shape == Rule::Branches {
        return branches(scope, node);
    }
    (0..node.output.len())
        .map(|slot| Fact {
            dtype: dtype(scope, node, operator.output(slot)),
            shape: shape::output(scope, node, operator, slot),
        })
        .collect()
}

/// The element type that a rule gives.
fn dtype(scope: &dyn Scope, node: &NodeProto, rule: Type) -> Option<DataType> {
    let given = |slot: usize| node.input.get(slot).filter(|name| !name.is_empty());
    let of = |slot: usize| given(slot).and_then(|name| scope.fact(name).dtype);
    match rule {
        Type::Same(slots) => agreed(slots.iter().filter_map(|&slot| of(slot))),
        Type::All(from) => agreed((from..node.input.len()).filter_map(of)),
        Type::Fixed(dtype) => Some(dtype),
        Type::Attribute(name, other) => match node.attr(name).and_then(|a| a.i).filter(|&code| code != 0) {
            Some(code) => i32::try_from(code).ok().map(DataType),
            None => dtype(scope, node, *other),
        },
        Type::Given(slot, other) => match given(slot) {
            Some(name) => scope.fact(name).dtype,
            None => dtype(scope, node, *other),
        },
        Type::Value => match node.attr("value") {
            Some(attribute) => attribute.t.as_ref().and_then(|t| t.data_type).map(DataType),
            None => Some(DataType::FLOAT),
        },
        Type::Constant => constant_fact(node).dtype,
        Type::Branches | Type::Unknown => None,
    }
}

/// The one type that all are.
fn agreed(mut types: impl Iterator<Item = DataType>) -> Option<DataType> {
    let first = types.next()?;
    types.all(|dtype| dtype == first).then_some(first)
}

/// Type and shape of a `Constant`, from whichever of its attributes is set.
pub(super) fn constant_fact(node: &NodeProto) -> Fact {
    let vector =
        |dtype, len: usize| Fact { dtype: Some(dtype), shape: Shape { rank: Some(1), last: Some(len as u64) } };
    let scalar = |dtype| Fact { dtype: Some(dtype), shape: Shape { rank: Some(0), last: None } };
    let [attribute] = node.attribute.as_slice() else { return Fact::default() };
    match attribute.name.as_deref().unwrap_or("") {
        "value" => attribute.t.as_ref().map(Fact::of).unwrap_or_default(),
        "sparse_value" => attribute.sparse_tensor.as_ref().map_or_else(Fact::default, |sparse| {
            let last = sparse.dims.last().and_then(|&d| u64::try_from(d).ok());
            let dtype = sparse.values.as_ref().and_then(|values| values.data_type).map(DataType);
            Fact { dtype, shape: Shape { rank: Some(sparse.dims.len()), last } }
        }),
        "value_float" => scalar(DataType::FLOAT),
        "value_int" => scalar(DataType::INT64),
        "value_string" => scalar(DataType::STRING),
        "value_floats" => vector(DataType::FLOAT, attribute.floats.len()),
        "value_ints" => vector(DataType::INT64, attribute.ints.len()),
        "value_strings" => vector(DataType::STRING, attribute.strings.len()),
        _ => Fact::default(),
    }
}

/// What the branches of an `If` agree on, output by output.
fn branches(scope: &dyn Scope, node: &NodeProto) -> Vec<Fact> {
    let graphs: Vec<&GraphProto> = node.attribute.iter().filter_map(|a| a.g.as_ref()).collect();
    let mut returned = graphs.iter().map(|graph| Inner::new(scope, graph).returned());
    let Some(first) = returned.next().filter(|_| graphs.len() == 2) else {
        return vec![Fact::default(); node.output.len()];
    };
    let second = returned.next().unwrap_or_default();
    (0..node.output.len())
        .map(|slot| match (first.get(slot), second.get(slot)) {
            (Some(a), Some(b)) => a.common(*b),
            _ => Fact::default(),
        })
        .collect()
}

/// The flat graph.
struct Main<'a> {
    graph: &'a Graph<'a>,
    facts: Vec<Fact>,
}

impl Scope for Main<'_> {
    fn fact(&self, name: &str) -> Fact {
        self.graph.value(name).map_or_else(Fact::default, |id| self.facts[id.0])
    }

    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.graph.const_ints(self.graph.value(name)?)
    }

    fn dims(&self, name: &str) -> Option<Vec<u64>> {
        let id = self.graph.value(name).filter(|&id| !self.graph.is_default(id))?;
        self.graph.tensor_ref(id).map(|tensor| tensor.shape.clone())
    }

    fn producer(&self, name: &str) -> Option<(&NodeProto, &'static Operator)> {
        let node = self.graph.producer(self.graph.value(name)?)?;
        Some((self.graph.node(node), self.graph.operator(node)?))
    }

    fn operator(&self, node: &NodeProto) -> Option<&'static Operator> {
        self.graph.operators().of(node)
    }
}

/// A subgraph, with the scope around it.
struct Inner<'a> {
    outer: &'a dyn Scope,
    graph: &'a GraphProto,
    facts: HashMap<&'a str, Fact>,
    tensors: HashMap<&'a str, &'a TensorProto>,
    producers: HashMap<&'a str, &'a NodeProto>,
}

impl<'a> Inner<'a> {
    /// Looks at the nodes of `graph` in their order, which the ONNX specification wants to be one of computation.
    fn new(outer: &'a dyn Scope, graph: &'a GraphProto) -> Self {
        let tensors: HashMap<&str, &TensorProto> =
            graph.initializer.iter().filter_map(|t| Some((t.name.as_deref()?, t))).collect();
        let mut facts: HashMap<&str, Fact> = tensors.iter().map(|(name, t)| (*name, Fact::of(t))).collect();
        // a name of the subgraph hides the same name outside, also before its node was looked at
        let own = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).filter(|name| !name.is_empty());
        facts.extend(own.map(|name| (name, Fact::default())));
        facts.extend(graph.input.iter().filter_map(|i| Some((i.name.as_deref()?, Fact::declared(i)))));
        let mut inner = Self { outer, graph, facts, tensors, producers: HashMap::new() };
        for node in &graph.node {
            let found = outputs(&inner, node);
            for (name, fact) in node.output.iter().zip(found).filter(|(name, _)| !name.is_empty()) {
                inner.facts.insert(name, fact);
                inner.producers.insert(name, node);
            }
        }
        inner
    }

    /// What is known of each of its results.
    fn returned(&self) -> Vec<Fact> {
        let of = |info: &ValueInfoProto| self.fact(info.name.as_deref().unwrap_or("")).or_declared(Some(info));
        self.graph.output.iter().map(of).collect()
    }
}

impl Scope for Inner<'_> {
    fn fact(&self, name: &str) -> Fact {
        self.facts.get(name).copied().unwrap_or_else(|| self.outer.fact(name))
    }

    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        if let Some(tensor) = self.tensors.get(name) {
            return constant::ints(tensor);
        }
        match self.producers.get(name) {
            Some(node) => {
                self.operator(node).filter(|op| op.shape == Rule::Constant).and_then(|_| constant::node_ints(node))
            }
            None if self.facts.contains_key(name) => None,
            None => self.outer.ints(name),
        }
    }

    fn dims(&self, name: &str) -> Option<Vec<u64>> {
        match self.tensors.get(name) {
            Some(tensor) => tensor.dims.iter().map(|&d| u64::try_from(d).ok()).collect(),
            None if self.facts.contains_key(name) => None,
            None => self.outer.dims(name),
        }
    }

    fn producer(&self, name: &str) -> Option<(&NodeProto, &'static Operator)> {
        match self.producers.get(name) {
            Some(node) => Some((*node, self.operator(node)?)),
            None if self.facts.contains_key(name) => None,
            None => self.outer.producer(name),
        }
    }

    fn operator(&self, node: &NodeProto) -> Option<&'static Operator> {
        self.outer.operator(node)
    }
}
