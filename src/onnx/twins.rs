//! `DequantizeLinear` nodes that do the same. ONNX Runtime's offline optimisation gives every reader of a dequantised
//! value a node of its own; read as one value they are the residual stream that they stand for.

use std::collections::{HashMap, HashSet};

use prost::Message;

use super::captured::captured;
use super::flat::Flat;
use super::ops::Domain;
use super::proto::{AttributeProto, NodeProto};

/// A reader that was led from a twin to the first node of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redirected {
    /// The reader, by its place in the flat graph.
    pub node: usize,
    /// Which of its inputs.
    pub slot: usize,
}

/// What makes two nodes twins: the body they stand in, what they read, and their attributes.
type Kind = (usize, Vec<String>, Vec<Vec<u8>>);

/// Leads every reader of a twin to the first node that computes the same, and returns these readers: in the file they
/// read the twin. Twins stay in the graph, without readers.
pub(super) fn merge(flat: &mut Flat) -> Vec<Redirected> {
    let outputs: HashSet<&str> = flat.graph.output.iter().filter_map(|o| o.name.as_deref()).collect();
    let mut first: HashMap<Kind, String> = HashMap::new();
    let mut twins: HashMap<String, String> = HashMap::new();
    for (index, node) in flat.graph.node.iter().enumerate().filter(|(_, node)| is_dequantize(node)) {
        let (Some(output), Some(origin)) = (node.output.first(), flat.origins[index]) else { continue };
        let mut attributes: Vec<Vec<u8>> = node.attribute.iter().map(AttributeProto::encode_to_vec).collect();
        attributes.sort();
        let key: Kind = (origin.instance, node.input.clone(), attributes);
        match first.get(&key) {
            Some(same) if !outputs.contains(output.as_str()) => {
                twins.insert(output.clone(), same.clone());
            }
            _ => {
                first.entry(key).or_insert_with(|| output.clone());
            }
        }
    }
    if twins.is_empty() {
        return Vec::new();
    }
    // subgraphs read by name what no input slot tells
    for name in flat.graph.node.iter().flat_map(captured) {
        twins.remove(&name);
    }
    let mut redirected = Vec::new();
    for (node, proto) in flat.graph.node.iter_mut().enumerate() {
        for (slot, input) in proto.input.iter_mut().enumerate() {
            if let Some(same) = twins.get(input) {
                input.clone_from(same);
                redirected.push(Redirected { node, slot });
            }
        }
    }
    redirected
}

fn is_dequantize(node: &NodeProto) -> bool {
    node.op() == "DequantizeLinear" && Domain::of(node.domain.as_deref()).is_some()
}
