//! One flat graph of a model: calls of local functions replaced by the functions' nodes, and an `If` on a
//! graph input (the merged decoders' `use_cache_branch`) by the nodes of both branches. Every node knows the
//! place in the file that it comes from, so that what is found in the flat graph can be edited in the file.
//!
//! The names of inlined values get the name of the call in front. Weights stay where they are: two nodes made of
//! one `Constant` of a function body lead to the same tensor.

use std::collections::{HashMap, HashSet};

use super::index::{GraphIndex, Model};
use super::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, node};
use super::twins::Redirected;

/// Calls may nest this deep; deeper ones stay calls, which nothing takes for a known operator.
const MAX_DEPTH: usize = 32;

/// A list of nodes in the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Body {
    /// The main graph.
    Main,
    /// The local function of this number.
    Function(usize),
    /// A subgraph, by the way to it from the main graph: node, then which of its subgraphs.
    Branch(Vec<(usize, usize)>),
}

impl Body {
    /// Its places in the file.
    pub fn places<'m>(&self, model: &'m Model) -> &'m GraphIndex {
        match self {
            Self::Main => &model.graph_index,
            Self::Function(number) => &model.functions[*number],
            Self::Branch(steps) => {
                steps.iter().fold(&model.graph_index, |graph, (node, which)| &graph.nodes[*node].graphs[*which])
            }
        }
    }
}

/// One use of a body: the main graph, a branch, or one call of a function.
#[derive(Debug)]
pub struct Instance {
    /// What is used.
    pub body: Body,
    /// Names in the body by names in the flat graph, for names that differ.
    local: HashMap<String, String>,
}

impl Instance {
    /// Names that only this body knows.
    pub fn locals(&self) -> impl Iterator<Item = &str> {
        self.local.values().map(String::as_str)
    }

    /// The name that a value of the flat graph has in this body.
    pub fn local<'a>(&'a self, flat: &'a str) -> &'a str {
        self.local.get(flat).map_or(flat, String::as_str)
    }
}

/// Where a node of the flat graph stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Index into [`Flat::instances`].
    pub instance: usize,
    /// Index of the node in its body.
    pub node: usize,
}

/// A flat graph.
#[derive(Debug)]
pub struct Flat {
    /// The graph. Where both branches of an `If` are in it, its outputs are those of the branch without a cache.
    pub graph: GraphProto,
    /// For each node its place; `None` for the `Identity` nodes that join names.
    pub origins: Vec<Option<Origin>>,
    /// Every use of a body; the main graph first.
    pub instances: Vec<Instance>,
    /// For each value that an inlined `If` returns: its name in the other branch, the one with a cache.
    pub alternate: HashMap<String, String>,
    /// Local functions that are also called where the flat graph does not look (loops, other subgraphs).
    pub opaque_calls: HashSet<usize>,
    /// Operator sets that the functions import and the model does not.
    pub imports: Vec<OperatorSetIdProto>,
    /// Inputs that read another value in the file, which is computed in the same way (`onnx::twins`).
    pub redirected: Vec<Redirected>,
    /// Sums that are part of a `Gemm` in the file, each with the product that is its other part (`onnx::unfuse`).
    pub unfused: HashMap<usize, usize>,
}

impl Flat {
    /// Flattens `model`.
    pub fn new(model: &Model) -> Self {
        let main = model.skeleton.graph.as_ref().expect("`Model::open` refuses a file without a graph");
        let mut taken: HashSet<String> = HashSet::new();
        taken.extend(main.input.iter().filter_map(|i| i.name.clone()));
        taken.extend(main.initializer.iter().filter_map(|t| t.name.clone()));
        taken.extend(main.node.iter().flat_map(|n| n.output.iter().cloned()));
        let mut builder = Builder {
            model,
            taken,
            node_names: main.node.iter().filter_map(|n| n.name.clone()).collect(),
            flags: bool_inputs(main),
            flat: Self {
                graph: GraphProto { node: Vec::new(), ..main.clone() },
                origins: Vec::new(),
                instances: vec![Instance { body: Body::Main, local: HashMap::new() }],
                alternate: HashMap::new(),
                opaque_calls: HashSet::new(),
                imports: Vec::new(),
                redirected: Vec::new(),
                unfused: HashMap::new(),
            },
        };
        builder.nodes(
            &main.node,
            &Scope { instance: 0, label: String::new(), names: HashMap::new(), attributes: None, depth: 0 },
        );
        let mut flat = builder.flat;
        let opset = model.opset("").or_else(|| model.opset("ai.onnx")).unwrap_or(0);
        let called = |node: &NodeProto| {
            model
                .skeleton
                .functions
                .iter()
                .any(|f| f.name == node.op_type && f.domain.as_deref().unwrap_or("").is_empty())
        };
        flat.unfused = super::unfuse::split(&mut flat, opset, |node| !called(node));
        flat.redirected = super::twins::merge(&mut flat);
        flat
    }
}

/// Graph inputs of type bool.
fn bool_inputs(main: &GraphProto) -> HashSet<String> {
    let is_bool = |code: Option<i32>| code == Some(super::tensor::DataType::BOOL.0);
    main.input
        .iter()
        .filter(|input| input.tensor().is_some_and(|t| is_bool(t.elem_type)))
        .filter_map(|input| input.name.clone())
        .collect()
}

/// Names and attributes that hold in a body.
struct Scope<'a> {
    instance: usize,
    /// What stands in front of the names of its nodes.
    label: String,
    /// Flat names by local ones; a name that is not here is the same in the flat graph.
    names: HashMap<String, String>,
    /// In a function: what its attributes are in this call.
    attributes: Option<HashMap<&'a str, &'a AttributeProto>>,
    depth: usize,
}

impl Scope<'_> {
    fn flat(&self, local: &str) -> String {
        self.names.get(local).map_or_else(|| local.to_string(), Clone::clone)
    }
}

struct Builder<'m> {
    model: &'m Model,
    /// Every name of a value of the flat graph so far.
    taken: HashSet<String>,
    /// The same for nodes.
    node_names: HashSet<String>,
    /// Values that are a bool graph input.
    flags: HashSet<String>,
    flat: Flat,
}

impl<'m> Builder<'m> {
    fn nodes(&mut self, nodes: &'m [NodeProto], scope: &Scope<'_>) {
        for (index, original) in nodes.iter().enumerate() {
            let mut node = original.clone();
            for name in node.input.iter_mut().chain(&mut node.output).filter(|name| !name.is_empty()) {
                *name = scope.flat(name);
            }
            node.attribute = original.attribute.iter().filter_map(|a| resolve(a, scope)).collect();
            let function = self.function(&node);
            if let Some(number) = function
                && scope.depth < MAX_DEPTH
                && self.same_opsets(number)
            {
                self.call(number, &node, scope);
                continue;
            }
            if self.is_branching(&node) && !matches!(self.flat.instances[scope.instance].body, Body::Function(_)) {
                self.branches(index, &node, original, scope);
                continue;
            }
            if matches!(node.op(), "Identity" | "Cast" | "Squeeze" | "Reshape")
                && node.input.first().is_some_and(|input| self.flags.contains(input))
            {
                self.flags.extend(node.output.first().cloned());
            }
            self.note_opaque_calls(original);
            if scope.depth > 0 {
                // the same node of two calls needs two names
                let stem = format!("{}/{}", scope.label, original.label());
                node.name = Some(unique(&mut self.node_names, &stem));
            }
            self.push(node, Some(Origin { instance: scope.instance, node: index }));
        }
    }

    fn push(&mut self, node: NodeProto, origin: Option<Origin>) {
        self.flat.graph.node.push(node);
        self.flat.origins.push(origin);
    }

    /// The function that a node calls.
    fn function(&self, node: &NodeProto) -> Option<usize> {
        let text = |name: &Option<String>| name.clone().unwrap_or_default();
        self.model.skeleton.functions.iter().position(|f| {
            f.name == node.op_type && text(&f.domain) == text(&node.domain) && text(&f.overload) == text(&node.overload)
        })
    }

    /// Whether a function means the same operators as the model. A domain that the model lacks is imported.
    fn same_opsets(&mut self, function: usize) -> bool {
        let wanted = &self.model.skeleton.functions[function].opset_import;
        let known = |import: &OperatorSetIdProto, all: &[OperatorSetIdProto]| {
            let domain = import.domain.as_deref().unwrap_or("");
            all.iter().find(|i| i.domain.as_deref().unwrap_or("") == domain).map(|i| i.version)
        };
        let mut missing = Vec::new();
        for import in wanted {
            match known(import, &self.model.skeleton.opset_import).or_else(|| known(import, &self.flat.imports)) {
                Some(version) if version == import.version => {}
                Some(_) => return false,
                None => missing.push(import.clone()),
            }
        }
        self.flat.imports.extend(missing);
        true
    }

    fn fresh(&mut self, stem: &str) -> String {
        unique(&mut self.taken, stem)
    }

    /// Gives every value that `nodes` define a name of its own, unless it has one.
    fn name_outputs(&mut self, nodes: &[NodeProto], prefix: &str, names: &mut HashMap<String, String>) {
        for output in nodes.iter().flat_map(|n| &n.output).filter(|name| !name.is_empty()) {
            if !names.contains_key(output) {
                let flat = self.fresh(&format!("{prefix}/{output}"));
                names.insert(output.clone(), flat);
            }
        }
    }

    fn instance(&mut self, body: Body, names: &HashMap<String, String>) -> usize {
        let local = names.iter().map(|(local, flat)| (flat.clone(), local.clone())).collect();
        self.flat.instances.push(Instance { body, local });
        self.flat.instances.len() - 1
    }

    /// Replaces a call by the nodes of the function (ONNX IR spec, "Functions").
    fn call(&mut self, number: usize, call: &NodeProto, scope: &Scope<'_>) {
        let function: &'m FunctionProto = &self.model.skeleton.functions[number];
        let mut names: HashMap<String, String> = HashMap::new();
        for (slot, formal) in function.input.iter().enumerate() {
            names.insert(formal.clone(), call.input.get(slot).cloned().unwrap_or_default());
        }
        let mut joined = Vec::new();
        for (slot, formal) in function.output.iter().enumerate() {
            let Some(actual) = call.output.get(slot).filter(|name| !name.is_empty()) else { continue };
            match names.get(formal) {
                Some(passed) => joined.push((passed.clone(), actual.clone())),
                None => {
                    names.insert(formal.clone(), actual.clone());
                }
            }
        }
        self.name_outputs(&function.node, &call_label(call), &mut names);
        let instance = self.instance(Body::Function(number), &names);
        let mut attributes: HashMap<&str, &AttributeProto> = HashMap::new();
        for attribute in function.attribute_proto.iter().chain(&call.attribute) {
            attributes.insert(attribute.name.as_deref().unwrap_or(""), attribute);
        }
        let label = call_label(call);
        let inner = Scope { instance, label, names, attributes: Some(attributes), depth: scope.depth + 1 };
        self.nodes(&function.node, &inner);
        for (from, to) in joined {
            self.push(node("Identity", &to, &[&from], &[&to], vec![]), None);
        }
    }

    /// Whether a node is an `If` on a bool graph input.
    fn is_branching(&self, node: &NodeProto) -> bool {
        let plain = matches!(node.domain.as_deref().unwrap_or(""), "" | "ai.onnx");
        let graphs = node.attribute.iter().filter(|a| a.g.is_some()).count();
        let asks = node.input.first().is_some_and(|condition| self.flags.contains(condition));
        plain && node.op() == "If" && graphs == 2 && asks
    }

    /// Puts the nodes of both branches into the flat graph.
    fn branches(&mut self, index: usize, call: &NodeProto, original: &'m NodeProto, scope: &Scope<'_>) {
        let steps = match &self.flat.instances[scope.instance].body {
            Body::Branch(steps) => steps.clone(),
            _ => Vec::new(),
        };
        let mut returned: [Vec<String>; 2] = [Vec::new(), Vec::new()];
        let graphs = original.attribute.iter().filter_map(|a| Some((a.name.as_deref()?, a.g.as_ref()?)));
        for (which, (attribute, graph)) in graphs.enumerate() {
            let cached = attribute == "then_branch";
            let prefix = format!("{}/{}", call_label(call), if cached { "then" } else { "else" });
            let mut names = scope.names.clone();
            // a branch may define a name that the scopes around it have too
            for local in graph
                .node
                .iter()
                .flat_map(|n| &n.output)
                .chain(graph.initializer.iter().filter_map(|t| t.name.as_ref()))
            {
                names.remove(local);
            }
            for tensor in &graph.initializer {
                let name = tensor.name.clone().unwrap_or_default();
                let flat = self.fresh(&format!("{prefix}/{name}"));
                names.insert(name, flat.clone());
                self.flat.graph.initializer.push(TensorProto { name: Some(flat), ..tensor.clone() });
            }
            self.name_outputs(&graph.node, &prefix, &mut names);
            let body = Body::Branch(steps.iter().copied().chain([(index, which)]).collect());
            let instance = self.instance(body, &names);
            for info in &graph.value_info {
                let local = info.name.as_deref().unwrap_or("");
                if let Some(flat) = names.get(local) {
                    let mut info = info.clone();
                    info.name = Some(flat.clone());
                    self.flat.graph.value_info.push(info);
                }
            }
            let inner = Scope { instance, label: prefix, names, attributes: None, depth: scope.depth + 1 };
            self.nodes(&graph.node, &inner);
            returned[usize::from(cached)] =
                graph.output.iter().map(|o| inner.flat(o.name.as_deref().unwrap_or(""))).collect();
        }
        for (slot, output) in call.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            if let Some(plain) = returned[0].get(slot) {
                self.push(node("Identity", output, &[plain], &[output], vec![]), None);
            }
            if let Some(cached) = returned[1].get(slot) {
                self.flat.alternate.insert(output.clone(), cached.clone());
            }
        }
    }

    /// Remembers functions that are called inside subgraphs which stay as they are.
    fn note_opaque_calls(&mut self, node: &NodeProto) {
        for graph in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            for inner in &graph.node {
                if let Some(number) = self.function(inner) {
                    self.note_function(number);
                }
                self.note_opaque_calls(inner);
            }
        }
        // a call that was not inlined
        if let Some(number) = self.function(node) {
            self.note_function(number);
        }
    }

    fn note_function(&mut self, number: usize) {
        if self.flat.opaque_calls.insert(number) {
            for inner in &self.model.skeleton.functions[number].node {
                self.note_opaque_calls(inner);
            }
        }
    }
}

/// `stem`, with a number where it is taken.
pub(super) fn unique(taken: &mut HashSet<String>, stem: &str) -> String {
    let mut name = stem.to_string();
    let mut n = 1;
    while !taken.insert(name.clone()) {
        n += 1;
        name = format!("{stem}.{n}");
    }
    name
}

/// What the values of a call are named after.
fn call_label(call: &NodeProto) -> String {
    let stem = call.name.as_deref().filter(|name| !name.is_empty()).or(call.output.first().map(String::as_str));
    stem.unwrap_or("call").to_string()
}

/// An attribute as it is in this scope: with the call's value where it refers to one of the function's own, and
/// with flat names in its subgraphs.
fn resolve(attribute: &AttributeProto, scope: &Scope<'_>) -> Option<AttributeProto> {
    let mut resolved = match (&attribute.ref_attr_name, &scope.attributes) {
        (Some(wanted), Some(given)) if !wanted.is_empty() => {
            AttributeProto { name: attribute.name.clone(), ..(*given.get(wanted.as_str())?).clone() }
        }
        _ => attribute.clone(),
    };
    for graph in resolved.g.iter_mut().chain(&mut resolved.graphs) {
        rename(graph, scope);
    }
    Some(resolved)
}

/// Gives the names that a subgraph captures their flat names.
fn rename(graph: &mut GraphProto, scope: &Scope<'_>) {
    if scope.names.is_empty() && scope.attributes.is_none() {
        return;
    }
    let mut names = scope.names.clone();
    let defined = graph.node.iter().flat_map(|n| n.output.iter().cloned());
    let given = graph.input.iter().filter_map(|i| i.name.clone());
    let stored = graph.initializer.iter().filter_map(|t| t.name.clone());
    for own in defined.chain(given).chain(stored).collect::<Vec<_>>() {
        names.remove(&own);
    }
    let attributes = scope.attributes.clone();
    let label = scope.label.clone();
    let inner = Scope { instance: scope.instance, label, names, attributes, depth: scope.depth + 1 };
    for node in &mut graph.node {
        for input in node.input.iter_mut().filter(|name| !name.is_empty()) {
            *input = inner.flat(input);
        }
        node.attribute = node.attribute.iter().filter_map(|a| resolve(a, &inner)).collect();
    }
    for output in &mut graph.output {
        output.name = output.name.as_deref().map(|name| inner.flat(name));
    }
}
