//! What the subgraphs of a node read of the graph around them.

use std::collections::HashSet;

use super::proto::NodeProto;

/// Names that the subgraphs of a node read from outside.
pub fn captured(node: &NodeProto) -> Vec<String> {
    let mut out: HashSet<&str> = HashSet::new();
    capture(node, &mut out);
    let mut out: Vec<String> = out.into_iter().map(str::to_string).collect();
    out.sort();
    out
}

/// Adds the names that the subgraphs of a node read from outside.
fn capture<'a>(node: &'a NodeProto, out: &mut HashSet<&'a str>) {
    for graph in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
        let mut wanted: HashSet<&str> = HashSet::new();
        for inner in &graph.node {
            wanted.extend(inner.input.iter().map(String::as_str).filter(|name| !name.is_empty()));
            capture(inner, &mut wanted);
        }
        wanted.extend(graph.output.iter().filter_map(|o| o.name.as_deref()));
        let given = graph.input.iter().filter_map(|i| i.name.as_deref());
        let made = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
        for name in given.chain(graph.initializer_names()).chain(made) {
            wanted.remove(name);
        }
        out.extend(wanted);
    }
}
