//! Element types and shapes of all values, from the operators' rules ([`super::ops`]) in one pass over the graph.
//!
//! What a file declares is asked only where the rules are silent: exporters contradict themselves in declarations, and
//! a runtime computes what the rules say. Nothing is guessed from an input that no rule names.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{AttributeProto, attr_int, node};
    use crate::onnx::testing::{attribute, floats, int64s, model, open, typed};

    /// Type and rank of `y`, which the last of `nodes` makes. `f` is a float16 `[2, 3]` input, `i` int32 `[4]`, `c` a
    /// bool.
    fn fact(nodes: Vec<NodeProto>, declared: Option<ValueInfoProto>) -> (Option<i32>, Option<usize>) {
        let mut model = model(17, nodes, &[], &["y"]);
        let graph = model.graph.as_mut().unwrap();
        graph.input = vec![typed("f", 10, &[Some(2), Some(3)]), typed("i", 6, &[Some(4)]), typed("c", 9, &[])];
        graph.value_info.extend(declared);
        graph.initializer.push(int64s("zero", &[0]));
        graph.initializer.push(floats("one", &[1]));
        let opened = open(&model).unwrap();
        let graph = Graph::new(&opened);
        let value = graph.value("y").unwrap();
        (graph.elem_type(value).map(|dtype| dtype.0), graph.rank_of(value))
    }

    fn one(op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> Vec<NodeProto> {
        vec![node(op, "n", inputs, &["y"], attributes)]
    }

    #[test]
    fn types_come_from_the_input_that_the_rule_names() {
        let value = |code: i32| {
            let mut tensor = floats("", &[]);
            (tensor.data_type, tensor.dims, tensor.float_data) = (Some(code), vec![1], vec![]);
            tensor.int32_data = vec![1];
            vec![attribute("value", |a| a.t = Some(tensor))]
        };
        let mut custom = one("Relu", &["f"], vec![]);
        custom[0].domain = Some("com.example".into());
        for (nodes, wanted) in [
            (one("CastLike", &["i", "f"], vec![]), Some(10)),
            (one("OneHot", &["i", "zero", "one"], vec![]), Some(1)),
            (one("Where", &["c", "f", "f"], vec![]), Some(10)),
            (one("Cast", &["f"], vec![attr_int("to", 16)]), Some(16)),
            (one("Gather", &["f", "i"], vec![]), Some(10)),
            (one("Equal", &["f", "f"], vec![]), Some(9)),
            (one("QuantizeLinear", &["f", "one"], vec![]), Some(2)),
            (one("ConstantOfShape", &["zero"], vec![]), Some(1)),
            (one("ConstantOfShape", &["zero"], value(6)), Some(6)),
            (one("RandomNormalLike", &["f"], vec![]), Some(10)),
            (one("RandomNormal", &[], vec![attribute("shape", |a| a.ints = vec![2])]), Some(1)),
            (one("Add", &["f", "i"], vec![]), None),
            (one("Mystery", &["f"], vec![]), None),
            (one("SequenceAt", &["f", "zero"], vec![]), None),
            (one("Constant", &[], vec![attribute("value_ints", |a| a.ints = vec![1, 2])]), Some(7)),
            (custom, None),
        ] {
            let label = nodes[0].clone();
            assert_eq!(fact(nodes, None).0, wanted, "{label:?}");
        }
    }

    #[test]
    fn a_declaration_counts_only_where_the_rule_is_silent() {
        let declared = || Some(typed("y", 11, &[None]));
        assert_eq!(fact(one("Mystery", &["f"], vec![]), declared()), (Some(11), Some(1)));
        assert_eq!(fact(one("Relu", &["f"], vec![]), declared()), (Some(10), Some(2)));
    }

    #[test]
    fn branches_count_where_they_agree() {
        let branch = |name: &str, nodes: Vec<NodeProto>| {
            let result = nodes.last().unwrap().output[0].clone();
            let graph = model(17, nodes, &[], &[&result]).graph.unwrap();
            attribute(name, |a| a.g = Some(graph))
        };
        let chosen = |a: Vec<NodeProto>, b: Vec<NodeProto>| {
            // on a computed condition: an `If` on a bool input of the graph is inlined
            let condition = node("Not", "not", &["c"], &["d"], vec![]);
            vec![condition, node("If", "n", &["d"], &["y"], vec![branch("then_branch", a), branch("else_branch", b)])]
        };
        let squeezed = || vec![node("Squeeze", "s", &["f", "zero"], &["s"], vec![])];
        let whole = || vec![node("Identity", "w", &["f"], &["w"], vec![])];
        let other = || vec![node("Identity", "o", &["i"], &["o"], vec![])];
        // the inner name hides the outer one
        let hidden = || {
            let cast = node("Cast", "h", &["i"], &["f"], vec![attr_int("to", 10)]);
            vec![cast, node("Neg", "n2", &["f"], &["k"], vec![])]
        };
        assert_eq!(fact(chosen(whole(), whole()), None), (Some(10), Some(2)));
        assert_eq!(fact(chosen(squeezed(), whole()), None), (Some(10), None));
        assert_eq!(fact(chosen(other(), whole()), None), (None, None));
        assert_eq!(fact(chosen(hidden(), hidden()), None), (Some(10), Some(1)));
    }
}
