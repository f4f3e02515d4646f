//! What every graph must be before anything looks at it: every name made once and before it is read, no value that
//! depends on itself, and no calls that grow beyond all measure. ONNX Runtime loads no file that fails here.

use std::collections::{HashMap, HashSet, VecDeque};

use super::captured::captured;
use super::error::OnnxError;
use super::flat::{self, MAX_INLINED};
use super::index::Model;
use super::proto::{GraphProto, NodeProto};

/// Checks the graph and the local functions of a model.
///
/// # Errors
/// [`OnnxError::BadGraph`], or [`OnnxError::TooLarge`] where the calls of local functions multiply.
pub(super) fn check(model: &Model) -> Result<(), OnnxError> {
    let Some(main) = &model.skeleton.graph else { return Ok(()) };
    graph(main, &Around::Nothing)?;
    for function in &model.skeleton.functions {
        let mut made: HashSet<&str> = HashSet::new();
        for input in &function.input {
            define(&mut made, input, "an input of a local function")?;
        }
        body(&function.node, made, &Around::Nothing)?;
    }
    growth(model, main)
}

fn bad(reason: String) -> OnnxError {
    OnnxError::BadGraph { reason }
}

/// Names that a subgraph sees besides its own.
enum Around<'a> {
    Nothing,
    Scope(&'a HashSet<&'a str>, &'a Around<'a>),
}

impl Around<'_> {
    fn has(&self, name: &str) -> bool {
        let mut around = self;
        while let Self::Scope(names, outer) = around {
            if names.contains(name) {
                return true;
            }
            around = outer;
        }
        false
    }
}

fn define<'a>(made: &mut HashSet<&'a str>, name: &'a str, what: &str) -> Result<(), OnnxError> {
    if name.is_empty() {
        return Err(bad(format!("{what} has no name")));
    }
    if made.insert(name) { Ok(()) } else { Err(bad(format!("`{name}` is defined twice"))) }
}

/// A main graph or a subgraph.
fn graph<'a>(graph: &'a GraphProto, around: &Around<'_>) -> Result<(), OnnxError> {
    let mut made: HashSet<&'a str> = HashSet::new();
    let dense = graph.initializer.iter().map(|t| &t.name);
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|t| &t.name);
    for name in dense.chain(sparse) {
        define(&mut made, name.as_deref().unwrap_or(""), "an initializer")?;
    }
    let mut inputs: HashSet<&str> = HashSet::new();
    for input in &graph.input {
        define(&mut inputs, input.name.as_deref().unwrap_or(""), "an input of the graph")?;
    }
    // an input may have an initializer, as its default
    made.extend(inputs);
    let made = body(&graph.node, made, around)?;
    for output in &graph.output {
        let name = output.name.as_deref().unwrap_or("");
        if !made.contains(name) && !around.has(name) {
            return Err(bad(format!("nothing makes the output `{name}`")));
        }
    }
    Ok(())
}

/// The nodes of a graph or function; returns all names that are there in the end.
fn body<'a>(
    nodes: &'a [NodeProto],
    mut made: HashSet<&'a str>,
    around: &Around<'_>,
) -> Result<HashSet<&'a str>, OnnxError> {
    let given = made.clone();
    for node in nodes {
        if node.op().is_empty() {
            return Err(bad(format!("the node `{}` has no operator", node.label())));
        }
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            define(&mut made, output, "an output")?;
        }
    }
    for node in nodes {
        for input in node.input.iter().filter(|name| !name.is_empty()) {
            if !made.contains(input.as_str()) && !around.has(input) {
                return Err(bad(format!("the node `{}` reads `{input}`, which nothing makes", node.label())));
            }
        }
        for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            self::graph(inner, &Around::Scope(&made, around))?;
        }
    }
    acyclic(nodes, given)?;
    Ok(made)
}

/// Whether the nodes can be computed one after the other, in whatever order.
fn acyclic<'a>(nodes: &'a [NodeProto], mut there: HashSet<&'a str>) -> Result<(), OnnxError> {
    let producers: HashMap<&str, usize> = nodes
        .iter()
        .enumerate()
        .flat_map(|(index, node)| node.output.iter().map(move |name| (name.as_str(), index)))
        .filter(|(name, _)| !name.is_empty())
        .collect();
    let mut waiting: Vec<usize> = vec![0; nodes.len()];
    let mut readers: HashMap<usize, Vec<usize>> = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        let inner = captured(node);
        let read = node.input.iter().map(String::as_str).chain(inner.iter().map(String::as_str));
        for name in read.filter(|name| !there.contains(name)) {
            if let Some(&producer) = producers.get(name) {
                waiting[index] += 1;
                readers.entry(producer).or_default().push(index);
            }
        }
        // in the usual order nothing has to wait
        if waiting[index] == 0 {
            there.extend(node.output.iter().map(String::as_str));
        }
    }
    let mut ready: VecDeque<usize> = (0..nodes.len()).filter(|&index| waiting[index] == 0).collect();
    let mut done = 0;
    while let Some(index) = ready.pop_front() {
        done += 1;
        for &reader in readers.get(&index).map_or(&[][..], Vec::as_slice) {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.push_back(reader);
            }
        }
    }
    match waiting.iter().position(|&count| count > 0).filter(|_| done < nodes.len()) {
        Some(index) => Err(bad(format!("the node `{}` depends on what it computes", nodes[index].label()))),
        None => Ok(()),
    }
}

/// Refuses functions that call themselves, and files whose calls would be inlined to more than [`MAX_INLINED`] nodes.
fn growth(model: &Model, main: &GraphProto) -> Result<(), OnnxError> {
    let functions = flat::functions(model);
    if functions.is_empty() {
        return Ok(());
    }
    let bodies = &model.skeleton.functions;
    let calls: Vec<Vec<usize>> = bodies.iter().map(|f| all_calls(&f.node, &functions)).collect();
    // callees first
    let mut callers: Vec<Vec<usize>> = vec![Vec::new(); bodies.len()];
    let mut waiting: Vec<usize> = calls.iter().map(Vec::len).collect();
    for (caller, callees) in calls.iter().enumerate() {
        callees.iter().for_each(|&callee| callers[callee].push(caller));
    }
    let mut ready: Vec<usize> = (0..bodies.len()).filter(|&f| waiting[f] == 0).collect();
    let mut sizes: Vec<usize> = vec![0; bodies.len()];
    let mut done = 0;
    while let Some(function) = ready.pop() {
        done += 1;
        let inner = calls[function].iter().fold(0usize, |sum, &callee| sum.saturating_add(sizes[callee]));
        sizes[function] = inner.saturating_add(count(&bodies[function].node));
        for &caller in &callers[function] {
            waiting[caller] -= 1;
            if waiting[caller] == 0 {
                ready.push(caller);
            }
        }
    }
    if let Some(function) = waiting.iter().position(|&count| count > 0).filter(|_| done < bodies.len()) {
        let name = bodies[function].name.as_deref().unwrap_or("");
        return Err(bad(format!("the local function `{name}` calls itself")));
    }
    let total = all_calls(&main.node, &functions).iter().fold(0usize, |sum, &f| sum.saturating_add(sizes[f]));
    if total > MAX_INLINED {
        return Err(OnnxError::TooLarge {
            path: model.path.clone(),
            reason: format!("the calls of its local functions stand for more than {MAX_INLINED} nodes"),
        });
    }
    Ok(())
}

/// Number of nodes, those of subgraphs counted.
fn count(nodes: &[NodeProto]) -> usize {
    nodes.iter().fold(0, |sum, node| sum.saturating_add(1 + flat::nodes_within(&node.attribute)))
}

/// The functions that nodes call, subgraphs included, once for each call.
fn all_calls(nodes: &[NodeProto], functions: &flat::Functions) -> Vec<usize> {
    let mut stack: Vec<&NodeProto> = nodes.iter().collect();
    let mut found = Vec::new();
    while let Some(node) = stack.pop() {
        found.extend(flat::called(functions, node));
        stack.extend(node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).flat_map(|g| &g.node));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Graph;
    use crate::onnx::proto::{FunctionProto, ModelProto, OperatorSetIdProto, node};
    use crate::onnx::testing::{attribute, floats, input, model, open};

    fn refusal(model: &ModelProto) -> String {
        open(model).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn malformed_graphs_are_refused_by_name() {
        let neg = |name: &str, from: &str, to: &str| node("Neg", name, &[from], &[to], vec![]);
        let branch = |nodes| attribute("then_branch", |a| a.g = model(17, nodes, &[], &["inner"]).graph);
        for (nodes, outputs, words) in [
            (vec![neg("a", "x", "y")], &["z"][..], "nothing makes the output `z`"),
            (vec![neg("a", "x", "y")], &[""], "nothing makes the output ``"),
            (vec![neg("a", "w", "y")], &["y"], "the node `a` reads `w`, which nothing makes"),
            (vec![neg("a", "x", "y"), neg("b", "x", "y")], &["y"], "`y` is defined twice"),
            (vec![neg("a", "x", "x")], &["x"], "`x` is defined twice"),
            (vec![neg("a", "y", "y")], &["y"], "the node `a` depends on what it computes"),
            (vec![neg("a", "v", "y"), neg("b", "y", "v")], &["y"], "depends on what it computes"),
            (vec![neg("a", "x", "y"), node("", "b", &[], &["v"], vec![])], &["y"], "the node `b` has no operator"),
            (
                vec![node("If", "if", &["x"], &["y"], vec![branch(vec![neg("a", "y", "inner")])])],
                &["y"],
                "the node `if` depends on what it computes",
            ),
            (
                vec![node("If", "if", &["x"], &["y"], vec![branch(vec![neg("a", "inner", "inner")])])],
                &["y"],
                "the node `a` depends on what it computes",
            ),
        ] {
            let refusal = refusal(&model(17, nodes, &["x"], outputs));
            assert!(refusal.contains(words), "{refusal}");
        }
        let mut twice = model(17, vec![neg("a", "x", "y")], &["x"], &["y"]);
        twice.graph.as_mut().unwrap().initializer = vec![floats("w", &[1]), floats("w", &[1])];
        assert!(refusal(&twice).contains("`w` is defined twice"));
        let mut unnamed = model(17, vec![neg("a", "x", "y")], &["x"], &["y"]);
        unnamed.graph.as_mut().unwrap().input.push(input("", &[]));
        assert!(refusal(&unnamed).contains("an input of the graph has no name"));
        // nodes in any order are fine
        assert!(open(&model(17, vec![neg("b", "v", "y"), neg("a", "x", "v")], &["x"], &["y"])).is_ok());
    }

    /// A model whose function `f0` is `levels` functions deep, each calling the next `calls` times.
    fn chain(levels: usize, calls: usize) -> ModelProto {
        let mut proto = model(17, vec![], &["x"], &["y"]);
        let call = |to: usize, at: usize| {
            let from = if at == 0 { "a".to_string() } else { format!("v{at}") };
            let mut call = node(&format!("f{to}"), "call", &[&from], &[&format!("v{}", at + 1)], vec![]);
            call.domain = Some("com.example".into());
            call
        };
        for level in 0..levels {
            let mut nodes: Vec<NodeProto> = (0..calls).map(|at| call(level + 1, at)).collect();
            if level + 1 == levels {
                nodes = vec![node("Neg", "neg", &["a"], &[&format!("v{calls}")], vec![])];
            }
            let imports = ["", "com.example"];
            proto.functions.push(FunctionProto {
                name: Some(format!("f{level}")),
                domain: Some("com.example".into()),
                input: vec!["a".into()],
                output: vec![format!("v{calls}")],
                node: nodes,
                opset_import: imports
                    .map(|domain| OperatorSetIdProto {
                        domain: Some(domain.into()),
                        version: Some(if domain.is_empty() { 17 } else { 1 }),
                    })
                    .to_vec(),
                ..Default::default()
            });
        }
        let mut first = node("f0", "call", &["x"], &["y"], vec![]);
        first.domain = Some("com.example".into());
        proto.graph.as_mut().unwrap().node.push(first);
        proto
    }

    #[test]
    fn calls_that_multiply_are_refused() {
        for (levels, calls) in [(21, 2), (60, 2), (12, 10)] {
            let refusal = refusal(&chain(levels, calls));
            assert!(refusal.contains("stand for more than 500000 nodes"), "{refusal}");
        }
        let opened = open(&chain(8, 2)).unwrap();
        assert_eq!(Graph::new(&opened).nodes().filter(|_| true).count(), 128);
    }

    #[test]
    fn a_long_chain_of_functions_is_read_in_time_and_a_circle_is_refused() {
        let started = std::time::Instant::now();
        let opened = open(&chain(5000, 1)).unwrap();
        let graph = Graph::new(&opened);
        assert_eq!(graph.nodes().count(), 1, "a call deeper than the limit stays one");
        assert_eq!(graph.flat().opaque_calls.len(), 5000 - 32);
        assert!(started.elapsed().as_secs() < 10);
        let mut circle = chain(3, 1);
        circle.functions[2].node = vec![circle.functions[0].node[0].clone()];
        assert!(refusal(&circle).contains("calls itself"));
    }
}
