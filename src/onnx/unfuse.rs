//! `Gemm` nodes that add an activation, as a product and a sum. ONNX Runtime's offline optimisation makes
//! `Gemm(x, W, C = residual)` of a product and the sum of the residual stream that reads it; read as two nodes they are
//! the stream that they stand for. [`super::lower`] writes them as two where a patch has to.

use std::collections::{HashMap, HashSet};

use super::flat::Flat;
use super::proto::{NodeProto, node};

/// The operator set from which on a `Gemm` can do without `C`.
const FREE_C: i64 = 11;

/// Input slot of `C`.
pub(super) const C: usize = 2;

/// Makes two nodes of every `Gemm` that adds an activation as it is, and returns the products by their sums, by their
/// places in the flat graph. The sum comes right after its product, and has its place in the file.
pub(super) fn split(flat: &mut Flat, opset: i64, is_operator: impl Fn(&NodeProto) -> bool) -> HashMap<usize, usize> {
    let fused = match opset >= FREE_C {
        true => fused(flat, is_operator),
        false => HashSet::new(),
    };
    let mut sums = HashMap::new();
    if fused.is_empty() {
        return sums;
    }
    let mut names: HashSet<String> =
        flat.graph.node.iter().flat_map(|n| n.output.iter().chain(&n.input)).cloned().collect();
    names.extend(flat.graph.initializer.iter().filter_map(|t| t.name.clone()));
    names.extend(flat.graph.input.iter().filter_map(|i| i.name.clone()));
    names.extend(flat.instances.iter().flat_map(|instance| instance.locals().map(str::to_string)));
    let nodes = std::mem::take(&mut flat.graph.node);
    let origins = std::mem::take(&mut flat.origins);
    for (index, (mut product, origin)) in nodes.into_iter().zip(origins).enumerate() {
        if !fused.contains(&index) {
            flat.graph.node.push(product);
            flat.origins.push(origin);
            continue;
        }
        let added = std::mem::take(&mut product.input[C]);
        product.input.truncate(C);
        let name = unique(&mut names, &format!("{}.product", product.output[0]));
        let result = std::mem::replace(&mut product.output[0], name.clone());
        let label = format!("{}.sum", product.label());
        sums.insert(flat.graph.node.len() + 1, flat.graph.node.len());
        flat.graph.node.extend([product, sum(&label, &name, &added, &result)]);
        flat.origins.extend([origin, origin]);
    }
    sums
}

/// The sum of a product and what was `C`.
pub(super) fn sum(label: &str, product: &str, added: &str, result: &str) -> NodeProto {
    node("Add", label, &[product, added], &[result], vec![])
}

/// Places of the nodes to split.
fn fused(flat: &Flat, is_operator: impl Fn(&NodeProto) -> bool) -> HashSet<usize> {
    let mut fixed: HashSet<&str> = flat.graph.initializer.iter().filter_map(|t| t.name.as_deref()).collect();
    let mut found = HashSet::new();
    for (index, node) in flat.graph.node.iter().enumerate() {
        let inputs = || node.input.iter().map(String::as_str).filter(|name| !name.is_empty());
        let captures = node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
        if !captures && inputs().all(|name| fixed.contains(name)) {
            fixed.extend(node.output.iter().map(String::as_str));
        }
        // an attribute whose value is 0 may lack it
        let beta = node.attr("beta").map_or(1.0, |a| a.f.unwrap_or(0.0));
        let adds = node.input.get(C).is_some_and(|c| !c.is_empty() && !fixed.contains(c.as_str()));
        let gemm = node.op() == "Gemm" && matches!(node.domain.as_deref().unwrap_or(""), "" | "ai.onnx");
        if gemm && adds && beta == 1.0 && flat.origins[index].is_some() && is_operator(node) {
            found.insert(index);
        }
    }
    found
}

/// `stem`, with a number where it is taken.
fn unique(taken: &mut HashSet<String>, stem: &str) -> String {
    let mut name = stem.to_string();
    let mut n = 1;
    while !taken.insert(name.clone()) {
        n += 1;
        name = format!("{stem}.{n}");
    }
    name
}
