//! One flat graph of a model: calls of local functions replaced by the functions' nodes, and an `If` on a
//! graph input (the merged decoders' `use_cache_branch`) by the nodes of both branches. Every node knows the
//! place in the file that it comes from, so that what is found in the flat graph can be edited in the file.
//!
//! The names of inlined values get the name of the call in front. Weights stay where they are: two nodes made of
//! one `Constant` of a function body lead to the same tensor.

use std::collections::{HashMap, HashSet};

use super::index::{GraphIndex, Model};
use super::ops::Domain;
use super::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, node};
use super::twins::Redirected;

/// Calls of local functions are inlined up to this depth. Deeper ones stay calls, which no rule takes for an operator.
const MAX_DEPTH: usize = 32;

/// So many nodes may come from inlined calls and branches, with the nodes of their subgraphs. `onnx::check` refuses a
/// file that would exceed it; what only the attributes of calls multiply is met here, and then nothing is inlined.
pub(super) const MAX_INLINED: usize = 500_000;

/// So many bytes of names may be given to inlined values and nodes.
const MAX_NAME_BYTES: usize = 1 << 28;

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
    /// Names in the body by names in the flat graph, for names of its own that differ.
    local: HashMap<String, String>,
    /// The body around a branch, whose names it sees.
    outer: Option<usize>,
}

impl Instance {
    /// Names that only this body knows.
    pub fn locals(&self) -> impl Iterator<Item = &str> {
        self.local.values().map(String::as_str)
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
        Self::build(model, Inline::Yes).unwrap_or_else(|| Self::build(model, Inline::No).expect("nothing is inlined"))
    }

    /// `None` where the flat graph would grow beyond all measure.
    fn build(model: &Model, inline: Inline) -> Option<Self> {
        let main = model.skeleton.graph.as_ref().expect("`Model::open` refuses a file without a graph");
        let mut taken: HashSet<String> = HashSet::new();
        taken.extend(main.input.iter().filter_map(|i| i.name.clone()));
        taken.extend(main.initializer_names().map(str::to_string));
        taken.extend(main.node.iter().flat_map(|n| n.output.iter().cloned()));
        let mut builder = Builder {
            model,
            inline,
            functions: functions(model),
            callable: HashMap::new(),
            taken: Names { taken, next: HashMap::new() },
            node_names: Names {
                taken: main.node.iter().filter_map(|n| n.name.clone()).collect(),
                next: HashMap::new(),
            },
            nodes_left: MAX_INLINED,
            bytes_left: MAX_NAME_BYTES,
            exhausted: false,
            flags: bool_inputs(main),
            flat: Self {
                graph: GraphProto {
                    node: Vec::new(),
                    name: main.name.clone(),
                    initializer: main.initializer.clone(),
                    input: main.input.clone(),
                    output: main.output.clone(),
                    value_info: main.value_info.clone(),
                    quantization_annotation: main.quantization_annotation.clone(),
                    sparse_initializer: main.sparse_initializer.clone(),
                },
                origins: Vec::new(),
                instances: vec![Instance { body: Body::Main, local: HashMap::new(), outer: None }],
                alternate: HashMap::new(),
                opaque_calls: HashSet::new(),
                imports: Vec::new(),
                redirected: Vec::new(),
                unfused: HashMap::new(),
            },
        };
        builder.nodes(&main.node, &Scope::main());
        if builder.exhausted {
            return None;
        }
        let mut flat = builder.flat;
        let opset = model.opset("").or_else(|| model.opset("ai.onnx")).unwrap_or(0);
        let functions = functions(model);
        flat.unfused = super::unfuse::split(&mut flat, opset, |node| called(&functions, node).is_none());
        flat.redirected = super::twins::merge(&mut flat);
        Some(flat)
    }

    /// The name that a value of the flat graph has in an instance.
    pub fn local<'a>(&'a self, instance: usize, flat: &'a str) -> &'a str {
        let around = std::iter::successors(Some(instance), |&at| self.instances[at].outer);
        around.filter_map(|at| self.instances[at].local.get(flat)).next().map_or(flat, String::as_str)
    }
}

/// Whether calls and branches are inlined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inline {
    Yes,
    No,
}

/// The local functions by domain, name and overload.
pub(super) type Functions = HashMap<(String, String, String), usize>;

fn text(name: &Option<String>) -> String {
    name.clone().unwrap_or_default()
}

/// The local functions of a model.
pub(super) fn functions(model: &Model) -> Functions {
    let mut found = Functions::new();
    for (number, f) in model.skeleton.functions.iter().enumerate() {
        found.entry((text(&f.domain), text(&f.name), text(&f.overload))).or_insert(number);
    }
    found
}

/// The function that a node calls.
pub(super) fn called(functions: &Functions, node: &NodeProto) -> Option<usize> {
    if functions.is_empty() {
        return None;
    }
    functions.get(&(text(&node.domain), text(&node.op_type), text(&node.overload))).copied()
}

/// Names that are given already.
struct Names {
    taken: HashSet<String>,
    /// The number that a stem gets next.
    next: HashMap<String, usize>,
}

impl Names {
    /// `stem`, with a number where it is taken.
    fn unique(&mut self, stem: &str) -> String {
        if self.taken.insert(stem.to_string()) {
            return stem.to_string();
        }
        let next = self.next.entry(stem.to_string()).or_insert(1);
        loop {
            *next += 1;
            let name = format!("{stem}.{next}");
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
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

/// Attributes of a function's call, by name.
type Attributes<'a> = HashMap<&'a str, &'a AttributeProto>;

/// Names and attributes that hold in a body.
struct Scope<'a> {
    instance: usize,
    /// The prefix that the names of its nodes get.
    label: String,
    /// Flat names by local ones, for the names that the body defines.
    names: HashMap<String, String>,
    /// The scope around, whose names it sees. A name that no scope has is the same in the flat graph.
    outer: Option<&'a Scope<'a>>,
    /// In a function: what its attributes are in this call.
    attributes: Option<&'a Attributes<'a>>,
    depth: usize,
}

impl Scope<'_> {
    fn main() -> Self {
        Self { instance: 0, label: String::new(), names: HashMap::new(), outer: None, attributes: None, depth: 0 }
    }

    fn find(&self, local: &str) -> Option<&str> {
        let mut scope = self;
        loop {
            if let Some(name) = scope.names.get(local) {
                return Some(name);
            }
            scope = scope.outer?;
        }
    }

    fn flat(&self, local: &str) -> String {
        if local.is_empty() {
            return String::new();
        }
        self.find(local).unwrap_or(local).to_string()
    }

    /// Whether every name is the same in the flat graph.
    fn is_plain(&self) -> bool {
        self.attributes.is_none() && self.names.is_empty() && self.outer.is_none_or(Scope::is_plain)
    }
}

struct Builder<'m> {
    model: &'m Model,
    inline: Inline,
    functions: Functions,
    /// Whether a function may be inlined, once that is known.
    callable: HashMap<usize, bool>,
    /// Every name of a value of the flat graph so far.
    taken: Names,
    /// The same for nodes.
    node_names: Names,
    nodes_left: usize,
    bytes_left: usize,
    exhausted: bool,
    /// Values that are a bool graph input.
    flags: HashSet<String>,
    flat: Flat,
}

impl<'m> Builder<'m> {
    fn nodes(&mut self, nodes: &'m [NodeProto], scope: &Scope<'_>) {
        for (index, original) in nodes.iter().enumerate() {
            if self.exhausted {
                return;
            }
            let node = self.copy(original, scope);
            let function = called(&self.functions, &node);
            if let Some(number) = function
                && self.inline == Inline::Yes
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
            self.inlined(node, original, Origin { instance: scope.instance, node: index }, scope);
        }
    }

    /// Adds a node that is no call.
    fn inlined(&mut self, mut node: NodeProto, original: &'m NodeProto, origin: Origin, scope: &Scope<'_>) {
        if matches!(node.op(), "Identity" | "Cast" | "Squeeze" | "Reshape")
            && node.input.first().is_some_and(|input| self.flags.contains(input))
        {
            self.flags.extend(node.output.first().cloned());
        }
        self.note_opaque_calls(original);
        if scope.depth > 0 {
            // the same node of two calls needs two names
            let stem = format!("{}/{}", scope.label, original.label());
            self.spend(0, stem.len());
            node.name = Some(self.node_names.unique(&stem));
        }
        self.push(node, Some(origin));
    }

    /// A node with flat names and with the attributes of its call.
    fn copy(&mut self, original: &NodeProto, scope: &Scope<'_>) -> NodeProto {
        let names = |names: &[String]| names.iter().map(|name| scope.flat(name)).collect();
        let attribute: Vec<AttributeProto> = original.attribute.iter().filter_map(|a| resolve(a, scope)).collect();
        let node = NodeProto {
            input: names(&original.input),
            output: names(&original.output),
            name: original.name.clone(),
            op_type: original.op_type.clone(),
            attribute,
            domain: original.domain.clone(),
            overload: original.overload.clone(),
        };
        if scope.depth > 0 {
            let bytes = node.input.iter().chain(&node.output).map(String::len).sum();
            self.spend(1 + nodes_within(&node.attribute), bytes);
        }
        node
    }

    /// Takes what an inlined node needs from the budget.
    fn spend(&mut self, nodes: usize, bytes: usize) {
        match (self.nodes_left.checked_sub(nodes), self.bytes_left.checked_sub(bytes)) {
            (Some(nodes), Some(bytes)) => (self.nodes_left, self.bytes_left) = (nodes, bytes),
            _ => self.exhausted = true,
        }
    }

    fn push(&mut self, node: NodeProto, origin: Option<Origin>) {
        self.flat.graph.node.push(node);
        self.flat.origins.push(origin);
    }

    /// Whether a function means the same operators as the model. A domain that the model lacks is imported.
    fn same_opsets(&mut self, function: usize) -> bool {
        if let Some(&known) = self.callable.get(&function) {
            return known;
        }
        let found = self.imports_fit(function);
        self.callable.insert(function, found);
        found
    }

    fn imports_fit(&mut self, function: usize) -> bool {
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
        self.spend(0, stem.len());
        self.taken.unique(stem)
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

    fn instance(&mut self, body: Body, names: &HashMap<String, String>, outer: Option<usize>) -> usize {
        let local = names.iter().map(|(local, flat)| (flat.clone(), local.clone())).collect();
        self.flat.instances.push(Instance { body, local, outer });
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
        let instance = self.instance(Body::Function(number), &names, None);
        let mut attributes: HashMap<&str, &AttributeProto> = HashMap::new();
        for attribute in function.attribute_proto.iter().chain(&call.attribute) {
            attributes.insert(attribute.name.as_deref().unwrap_or(""), attribute);
        }
        let label = call_label(call);
        let attributes = Some(&attributes);
        let inner = Scope { instance, label, names, outer: None, attributes, depth: scope.depth + 1 };
        self.nodes(&function.node, &inner);
        for (from, to) in joined {
            self.push(node("Identity", &to, &[&from], &[&to], vec![]), None);
        }
    }

    /// Whether a node is an `If` on a bool graph input.
    fn is_branching(&self, node: &NodeProto) -> bool {
        let plain = self.inline == Inline::Yes && Domain::is_standard(node);
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
            // a branch may define a name that the scopes around it have too
            let mut names = HashMap::new();
            for tensor in &graph.initializer {
                let name = tensor.name.clone().unwrap_or_default();
                let flat = self.fresh(&format!("{prefix}/{name}"));
                names.insert(name, flat.clone());
                self.flat.graph.initializer.push(TensorProto { name: Some(flat), ..tensor.clone() });
            }
            for sparse in &graph.sparse_initializer {
                let mut sparse = sparse.clone();
                let Some(values) = &mut sparse.values else { continue };
                let name = values.name.clone().unwrap_or_default();
                let flat = self.fresh(&format!("{prefix}/{name}"));
                names.insert(name, flat.clone());
                values.name = Some(flat);
                self.flat.graph.sparse_initializer.push(sparse);
            }
            self.name_outputs(&graph.node, &prefix, &mut names);
            let body = Body::Branch(steps.iter().copied().chain([(index, which)]).collect());
            let instance = self.instance(body, &names, Some(scope.instance));
            for info in &graph.value_info {
                let local = info.name.as_deref().unwrap_or("");
                if let Some(flat) = names.get(local) {
                    let mut info = info.clone();
                    info.name = Some(flat.clone());
                    self.flat.graph.value_info.push(info);
                }
            }
            let (outer, depth) = (Some(scope), scope.depth + 1);
            let inner = Scope { instance, label: prefix, names, outer, attributes: None, depth };
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

    /// Remembers functions that are called where the flat graph does not look: in subgraphs which stay as they are, and
    /// calls that stay calls.
    fn note_opaque_calls(&mut self, node: &'m NodeProto) {
        let mut stack: Vec<&NodeProto> = vec![node];
        while let Some(node) = stack.pop() {
            if let Some(number) = called(&self.functions, node)
                && self.flat.opaque_calls.insert(number)
            {
                stack.extend(&self.model.skeleton.functions[number].node);
            }
            stack.extend(node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).flat_map(|g| &g.node));
        }
    }
}

/// Number of nodes in the subgraphs of attributes.
pub(super) fn nodes_within(attributes: &[AttributeProto]) -> usize {
    let mut stack: Vec<&GraphProto> = attributes.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).collect();
    let mut count = 0usize;
    while let Some(graph) = stack.pop() {
        count = count.saturating_add(graph.node.len());
        stack.extend(graph.node.iter().flat_map(|n| &n.attribute).flat_map(|a| a.g.iter().chain(&a.graphs)));
    }
    count
}

/// The prefix that the names of the values of a call get.
fn call_label(call: &NodeProto) -> String {
    let stem = call.name.as_deref().filter(|name| !name.is_empty()).or(call.output.first().map(String::as_str));
    stem.unwrap_or("call").to_string()
}

/// An attribute as it is in this scope: with the call's value where it refers to one of the function's own, and with
/// flat names in its subgraphs. The call's value has the flat names of the call's scope already: nothing in it is
/// renamed again, and an attribute that refers to itself ends here.
fn resolve(attribute: &AttributeProto, scope: &Scope<'_>) -> Option<AttributeProto> {
    if let (Some(wanted), Some(given)) = (&attribute.ref_attr_name, scope.attributes)
        && !wanted.is_empty()
    {
        return Some(AttributeProto { name: attribute.name.clone(), ..(*given.get(wanted.as_str())?).clone() });
    }
    let mut resolved = attribute.clone();
    for graph in resolved.g.iter_mut().chain(&mut resolved.graphs) {
        rename(graph, scope);
    }
    Some(resolved)
}

/// Gives the names that a subgraph captures their flat names.
fn rename(graph: &mut GraphProto, scope: &Scope<'_>) {
    if scope.is_plain() {
        return;
    }
    let defined = graph.node.iter().flat_map(|n| n.output.iter().cloned());
    let given = graph.input.iter().filter_map(|i| i.name.clone());
    let stored = graph.initializer_names().map(str::to_string);
    // what the subgraph defines keeps its name, and hides the same name outside
    let names = defined.chain(given).chain(stored).map(|own| (own.clone(), own)).collect();
    let (instance, attributes, outer) = (scope.instance, scope.attributes, Some(scope));
    let inner = Scope { instance, label: String::new(), names, outer, attributes, depth: scope.depth + 1 };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Graph;
    use crate::onnx::proto::{FunctionProto, ModelProto};
    use crate::onnx::testing::{attribute, model, open, typed};

    fn function(name: &str, attributes: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
        let import = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
        FunctionProto {
            name: Some(name.into()),
            domain: Some("com.example".into()),
            input: vec!["a".into()],
            output: vec!["b".into()],
            attribute: attributes.iter().map(ToString::to_string).collect(),
            node: nodes,
            opset_import: vec![import("", 17), import("com.example", 1)],
            ..Default::default()
        }
    }

    fn call(name: &str, to: &str, attributes: Vec<AttributeProto>) -> NodeProto {
        let mut call = node("f", name, &["x"], &[to], attributes);
        call.domain = Some("com.example".into());
        call
    }

    fn reference(name: &str) -> AttributeProto {
        attribute(name, |a| a.ref_attr_name = Some("body".into()))
    }

    fn branch(name: &str, nodes: Vec<NodeProto>) -> AttributeProto {
        let result = nodes.last().map(|n| n.output[0].clone()).unwrap_or_default();
        attribute(name, |a| a.g = model(17, nodes, &[], &[&result]).graph)
    }

    fn flat(model: &ModelProto) -> Vec<NodeProto> {
        let opened = open(model).unwrap();
        Graph::new(&opened).proto().node.clone()
    }

    #[test]
    fn ten_thousand_calls_of_one_name_are_read_in_time() {
        let started = std::time::Instant::now();
        let calls = (0..10_000).map(|n| call("same", &format!("y{n}"), vec![])).collect();
        let mut proto = model(17, calls, &["x"], &["y0"]);
        let body = vec![node("Neg", "n", &["a"], &["v"], vec![]), node("Neg", "n", &["v"], &["b"], vec![])];
        proto.functions = vec![function("f", &[], body)];
        let nodes = flat(&proto);
        assert_eq!(nodes.len(), 20_000);
        let names: HashSet<&str> = nodes.iter().flat_map(|n| n.name.as_deref()).collect();
        assert_eq!(names.len(), 20_000);
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }

    #[test]
    fn an_attribute_that_refers_to_itself_ends() {
        // f(body) has an If whose branch is `body`, and the call's `body` holds a reference to `body`
        let inner = node("If", "inner", &["x"], &["w"], vec![reference("then_branch"), reference("else_branch")]);
        let given = branch("body", vec![inner]);
        let mut proto = model(17, vec![call("call", "y", vec![given])], &["x"], &["y"]);
        let outer = node("If", "outer", &["a"], &["b"], vec![reference("then_branch"), reference("else_branch")]);
        proto.functions = vec![function("f", &["body"], vec![outer])];
        assert_eq!(flat(&proto).len(), 1);
    }

    #[test]
    fn an_attribute_of_a_call_keeps_the_names_of_its_caller() {
        // the function has a value `v` of its own; the caller's subgraph reads the main graph's `v`
        let given = branch("body", vec![node("Neg", "in", &["v"], &["w"], vec![])]);
        let main = vec![node("Abs", "abs", &["x"], &["v"], vec![]), call("call", "y", vec![given])];
        let mut proto = model(17, main, &["x"], &["y"]);
        let body = vec![
            node("Exp", "exp", &["a"], &["v"], vec![]),
            node("If", "if", &["v"], &["b"], vec![reference("then_branch"), reference("else_branch")]),
        ];
        proto.functions = vec![function("f", &["body"], body)];
        let nodes = flat(&proto);
        assert_eq!(nodes[2].input, ["call/v"]);
        let inner = nodes[2].attr("then_branch").unwrap().g.as_ref().unwrap();
        assert_eq!(inner.node[0].input, ["v"]);
    }

    #[test]
    fn attributes_that_multiply_are_not_inlined() {
        // each function hands its attribute on in a graph that holds it twice
        let mut proto = model(17, vec![], &["x"], &["y"]);
        let levels = 24;
        for level in 0..levels {
            let doubled = vec![
                node("If", "p", &["x"], &["w1"], vec![reference("then_branch"), reference("else_branch")]),
                node("If", "q", &["x"], &["w"], vec![reference("then_branch"), reference("else_branch")]),
            ];
            let mut next = node(&format!("f{}", level + 1), "c", &["a"], &["b"], vec![branch("body", doubled)]);
            next.domain = Some("com.example".into());
            let last = node("If", "o", &["a"], &["b"], vec![reference("then_branch"), reference("else_branch")]);
            let nodes = if level + 1 == levels { vec![last] } else { vec![next] };
            let mut made = function(&format!("f{level}"), &["body"], nodes);
            made.input.push("x".into());
            proto.functions.push(made);
        }
        let given = branch("body", vec![node("Neg", "in", &["x"], &["w"], vec![])]);
        let mut first = call("call", "y", vec![given]);
        first.op_type = Some("f0".into());
        proto.graph.as_mut().unwrap().node.push(first);
        let started = std::time::Instant::now();
        let nodes = flat(&proto);
        assert_eq!((nodes.len(), nodes[0].op()), (1, "f0"));
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }

    #[test]
    fn branches_in_branches_see_the_names_around_them() {
        let inner = vec![node("Neg", "n", &["v"], &["r"], vec![])];
        let nested = || {
            vec![
                node("Abs", "a", &["x"], &["v"], vec![]),
                node(
                    "If",
                    "in",
                    &["c"],
                    &["s"],
                    vec![branch("then_branch", inner.clone()), branch("else_branch", inner.clone())],
                ),
            ]
        };
        let outer =
            node("If", "out", &["c"], &["y"], vec![branch("then_branch", nested()), branch("else_branch", nested())]);
        let mut proto = model(17, vec![outer], &["x"], &["y"]);
        proto.graph.as_mut().unwrap().input.push(typed("c", 9, &[]));
        let opened = open(&proto).unwrap();
        let graph = Graph::new(&opened);
        let negs: Vec<NodeId> = graph.nodes().filter(|&n| graph.op(n) == "Neg").collect();
        assert_eq!(negs.len(), 4);
        for neg in negs {
            let read = &graph.node(neg).input[0];
            let producer = graph.producer(graph.value(read).unwrap()).unwrap();
            assert_eq!(graph.op(producer), "Abs", "{read}");
            let instance = graph.flat().origins[neg.0].unwrap().instance;
            assert_eq!(graph.flat().local(instance, read), "v");
        }
    }

    use crate::onnx::NodeId;
}
