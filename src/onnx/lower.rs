//! A patch of the flat graph as splices of the file.
//!
//! What the patch does to an inlined node is done in the body that the node comes from. The body of a local
//! function may serve several calls; then the patch must do the same for each of them, and it is written once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use prost::Message;

use super::error::OnnxError;
use super::flat::{Body, Origin};
use super::graph::{Graph, NodeId};
use super::index::{FrameId, Model};
use super::ops::Domain;
use super::patch::{Patch, Place, Splice};
use super::proto::{AttributeProto, NodeProto, TensorProto, attribute_type, node};
use super::unfuse;
use super::wire::{Reader, Value, put_bytes};

/// `NodeProto.input`.
const INPUT: u32 = 1;
/// `NodeProto.output`.
const OUTPUT: u32 = 2;

/// The splices that make `patch` in the model's file.
///
/// # Errors
/// If the file can no longer be read as it was indexed, or where a function body serves several calls and only
/// some of them are patched.
pub fn splices(patch: &Patch, graph: &Graph<'_>) -> Result<Vec<Splice>, OnnxError> {
    let model = graph.model;
    let mut bodies: BTreeMap<Body, Vec<(usize, Changes)>> = BTreeMap::new();
    for (instance, changes) in by_instance(patch, graph)? {
        bodies.entry(graph.flat().instances[instance].body.clone()).or_default().push((instance, changes));
    }
    let mut reader = Reader::open(&model.path)?;
    let mut splices = Vec::new();
    let mut read: HashSet<String> = HashSet::new();
    for (body, mut patched) in bodies {
        if let Body::Function(number) = body {
            check_every_call(graph, number, &patched)?;
        }
        let (_, mut changes) = patched.swap_remove(0);
        changes.nodes.sort_by_key(|(position, _)| *position);
        match body {
            Body::Function(number) => changes.own_constants(patch, model, number)?,
            _ => read.extend(changes.nodes.iter().flat_map(|(_, n)| n.input.iter().cloned())),
        }
        changes.splices(&mut reader, model, &body, &mut splices)?;
    }
    let main = &model.graph_index;
    let end = model.frame(main.frame).body.end;
    let mut insert = |number: u32, body: &[u8]| {
        let mut bytes = Vec::new();
        put_bytes(&mut bytes, number, body);
        splices.push(Splice::new(end..end, main.frame, bytes));
    };
    for tensor in &patch.initializers {
        if read.contains(tensor.name.as_deref().unwrap_or("")) {
            insert(5, &tensor.encode_to_vec());
        }
    }
    patch.inputs.iter().for_each(|input| insert(11, &input.encode_to_vec()));
    patch.outputs.iter().for_each(|output| insert(12, &output.encode_to_vec()));
    Ok(splices)
}

/// Places in a body for each of its nodes: before it, between it and the sum that is a part of it, the sum, after it.
const PLACES: usize = 4;
const BEFORE: usize = 0;
const WITHIN: usize = 1;
const SUM: usize = 2;
const AFTER: usize = 3;

/// What a patch does to one use of a body, in the body's own names.
#[derive(Debug, Default)]
struct Changes {
    /// Position ([`PLACES`] for each node of the body) and node.
    nodes: Vec<(usize, NodeProto)>,
    /// Node, slot, new name.
    rewires: Vec<(usize, usize, String)>,
    renames: Vec<(usize, usize, String)>,
}

fn by_instance(patch: &Patch, graph: &Graph<'_>) -> Result<BTreeMap<usize, Changes>, OnnxError> {
    let flat = graph.flat();
    let origin = |id: NodeId| -> Result<Origin, OnnxError> {
        flat.origins[id.0].ok_or_else(|| OnnxError::Unsupported {
            what: format!("an edit where `{}` returns from a branch or a function", graph.node(id).label()),
        })
    };
    let mut found: BTreeMap<usize, Changes> = BTreeMap::new();
    for (place, node) in &patch.nodes {
        let (at, position) = match place {
            Place::First => (Origin { instance: 0, node: 0 }, 0),
            Place::Before(id) => {
                let part = if flat.unfused.contains_key(&id.0) { WITHIN } else { BEFORE };
                origin(*id).map(|o| (o, PLACES * o.node + part))?
            }
            Place::After(id) => {
                let part = if flat.unfused.contains_key(&(id.0 + 1)) { WITHIN } else { AFTER };
                origin(*id).map(|o| (o, PLACES * o.node + part))?
            }
        };
        let mut node = node.clone();
        for name in node.input.iter_mut().chain(&mut node.output) {
            *name = flat.local(at.instance, name).to_string();
        }
        found.entry(at.instance).or_default().nodes.push((position, node));
    }
    let parted = parted(patch, graph);
    for &sum in &parted {
        let origin = origin(NodeId(sum))?;
        let changes = found.entry(origin.instance).or_default();
        let mut made = sum_node(patch, graph, sum);
        for name in made.input.iter_mut().chain(&mut made.output) {
            *name = flat.local(origin.instance, name).to_string();
        }
        changes.nodes.push((PLACES * origin.node + SUM, made));
        changes.rewires.push((origin.node, unfuse::C, String::new()));
        let product = flat.unfused[&sum];
        if !patch.renames.iter().any(|(node, slot, _)| (node.0, *slot) == (product, 0)) {
            let name = graph.node(NodeId(product)).output[0].clone();
            changes.renames.push((origin.node, 0, name));
        }
    }
    let is_sum = |node: NodeId| flat.unfused.contains_key(&node.0);
    for (at, name) in patch.rewires.iter().filter(|(at, _)| !is_sum(at.node)) {
        let origin = origin(at.node)?;
        let name = flat.local(origin.instance, name).to_string();
        found.entry(origin.instance).or_default().rewires.push((origin.node, at.slot, name));
    }
    for (id, slot, name) in &patch.renames {
        // who reads a twin of the renamed value in the file is to read what takes its name, like everybody else
        let old = &graph.node(*id).output[*slot];
        for twin in flat.redirected.iter().filter(|t| graph.node(NodeId(t.node)).input[t.slot] == *old) {
            if patch.rewires.iter().any(|(at, _)| (at.node.0, at.slot) == (twin.node, twin.slot)) {
                continue;
            }
            // a sum that is part of a `Gemm` there reads what is its `C`; one that becomes a node reads the name
            // already
            let slot = if is_sum(NodeId(twin.node)) { unfuse::C } else { twin.slot };
            if is_sum(NodeId(twin.node)) && parted.contains(&twin.node) {
                continue;
            }
            let origin = origin(NodeId(twin.node))?;
            let name = flat.local(origin.instance, old).to_string();
            found.entry(origin.instance).or_default().rewires.push((origin.node, slot, name));
        }
        if is_sum(*id) {
            continue;
        }
        let origin = origin(*id)?;
        let name = flat.local(origin.instance, name).to_string();
        found.entry(origin.instance).or_default().renames.push((origin.node, *slot, name));
    }
    Ok(found)
}

/// The sums that are a part of a `Gemm` in the file and have to become nodes of their own: those that the patch
/// changes, or whose product it reads.
fn parted(patch: &Patch, graph: &Graph<'_>) -> BTreeSet<usize> {
    let unfused = &graph.flat().unfused;
    let read: HashSet<&str> = patch.nodes.iter().flat_map(|(_, n)| n.input.iter().map(String::as_str)).collect();
    let rewired: HashSet<&str> = patch.rewires.iter().map(|(_, name)| name.as_str()).collect();
    let changed: HashSet<usize> =
        patch.rewires.iter().map(|(at, _)| at.node.0).chain(patch.renames.iter().map(|(id, ..)| id.0)).collect();
    let parted = unfused.iter().filter(|(sum, product)| {
        let name = graph.node(NodeId(**product)).output[0].as_str();
        let renamed = changed.contains(*product) && patch.renames.iter().any(|(id, ..)| id.0 == **product);
        changed.contains(*sum) || renamed || read.contains(name) || rewired.contains(name)
    });
    parted.map(|(sum, _)| *sum).collect()
}

/// A sum as the patch leaves it, in the names of the flat graph.
fn sum_node(patch: &Patch, graph: &Graph<'_>, sum: usize) -> NodeProto {
    let mut made = graph.node(NodeId(sum)).clone();
    for (at, name) in patch.rewires.iter().filter(|(at, _)| at.node.0 == sum) {
        made.input[at.slot].clone_from(name);
    }
    for (_, slot, name) in patch.renames.iter().filter(|(id, ..)| id.0 == sum) {
        made.output[*slot].clone_from(name);
    }
    made
}

/// Whether every call of a function is patched alike.
fn check_every_call(graph: &Graph<'_>, number: usize, patched: &[(usize, Changes)]) -> Result<(), OnnxError> {
    let flat = graph.flat();
    let calls = flat.instances.iter().filter(|i| i.body == Body::Function(number)).count();
    let first = patched[0].1.without_names();
    let alike = patched.iter().all(|(_, changes)| changes.without_names() == first);
    if calls == patched.len() && alike && !flat.opaque_calls.contains(&number) {
        return Ok(());
    }
    let function = &graph.model.skeleton.functions[number];
    Err(OnnxError::Unsupported {
        what: format!(
            "adding nodes to the local function `{}`, which serves {calls} calls of which {} need them",
            function.name.as_deref().unwrap_or(""),
            patched.len()
        ),
    })
}

impl Changes {
    /// The same with the names that the patch gives replaced by numbers in the order of their first use, so that the
    /// changes of two calls can be compared.
    fn without_names(&self) -> Vec<(usize, String, Vec<String>, Vec<String>)> {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for (_, node) in &self.nodes {
            for name in &node.output {
                let next = numbers.len();
                numbers.entry(name).or_insert(next);
            }
        }
        for (.., name) in &self.renames {
            let next = numbers.len();
            numbers.entry(name).or_insert(next);
        }
        let plain = |name: &String| numbers.get(name.as_str()).map_or_else(|| name.clone(), |n| format!("%{n}"));
        let mut all: Vec<_> = self
            .nodes
            .iter()
            .map(|(at, n)| {
                (*at, n.op().to_string(), n.input.iter().map(plain).collect(), n.output.iter().map(plain).collect())
            })
            .collect();
        let named = |what: &str, (node, slot, name): &(usize, usize, String)| {
            (PLACES * node, what.to_string(), vec![slot.to_string()], vec![plain(name)])
        };
        all.extend(self.rewires.iter().map(|r| named("rewire", r)));
        all.extend(self.renames.iter().map(|r| named("rename", r)));
        all
    }

    /// A function sees no initializers: those of the patch become `Constant` nodes of its body.
    fn own_constants(&mut self, patch: &Patch, model: &Model, number: usize) -> Result<(), OnnxError> {
        let function = &model.skeleton.functions[number];
        if !function.opset_import.iter().any(|i| Domain::of(i.domain.as_deref()) == Some(Domain::Standard)) {
            let name = function.name.as_deref().unwrap_or("");
            let what = format!("adding nodes to the local function `{name}`, which imports no standard operators");
            return Err(OnnxError::Unsupported { what });
        }
        // a copy of a tensor is an initializer, which a function does not see either, and is too large for a constant
        let made: HashSet<&str> = self.nodes.iter().flat_map(|(_, n)| &n.output).map(String::as_str).collect();
        let seen = |name: &str| {
            name.is_empty()
                || made.contains(name)
                || function.input.iter().any(|i| i == name)
                || function.node.iter().any(|n| n.output.iter().any(|o| o == name))
        };
        if let Some((.., name)) = self.rewires.iter().find(|(.., name)| !seen(name)) {
            let what = format!("leading a node of a local function to `{name}`, which it does not see");
            return Err(OnnxError::Unsupported { what });
        }
        let read: HashSet<String> = self.nodes.iter().flat_map(|(_, n)| n.input.iter().cloned()).collect();
        let wanted = patch.initializers.iter().filter(|t| t.name.as_ref().is_some_and(|name| read.contains(name)));
        let constants = wanted.map(|t| (0, constant(t.name.as_deref().unwrap_or(""), t))).collect::<Vec<_>>();
        self.nodes.splice(0..0, constants);
        Ok(())
    }

    fn splices(
        self,
        reader: &mut Reader,
        model: &Model,
        body: &Body,
        splices: &mut Vec<Splice>,
    ) -> Result<(), OnnxError> {
        let places = body.places(model);
        let number = if matches!(body, Body::Function(_)) { 7 } else { 1 };
        for (field, changes) in [(INPUT, self.rewires), (OUTPUT, self.renames)] {
            for (node, slot, name) in changes {
                let frame = places.nodes[node].frame;
                let at = name_field(reader, model, frame, field, slot)?;
                let mut bytes = Vec::new();
                put_bytes(&mut bytes, field, name.as_bytes());
                splices.push(Splice::new(at, frame, bytes));
            }
        }
        for (position, node) in self.nodes {
            // an insertion lies between two fields of the body: at the end of the node before it
            let at = match (position / PLACES, position % PLACES) {
                (0, BEFORE) => model.frame(places.frame).body.start,
                (index, BEFORE) => model.frame(places.nodes[index - 1].frame).body.end,
                (index, _) => model.frame(places.nodes[index].frame).body.end,
            };
            let mut bytes = Vec::new();
            put_bytes(&mut bytes, number, &node.encode_to_vec());
            splices.push(Splice::new(at..at, places.frame, bytes));
        }
        Ok(())
    }
}

/// A `Constant` node with this tensor.
pub fn constant(name: &str, tensor: &TensorProto) -> NodeProto {
    let value = AttributeProto {
        name: Some("value".into()),
        t: Some(tensor.clone()),
        r#type: Some(attribute_type::TENSOR),
        ..Default::default()
    };
    node("Constant", name, &[], &[name], vec![value])
}

/// Bytes of the field that holds input or output `slot` of the node in `frame`.
fn name_field(
    reader: &mut Reader,
    model: &Model,
    frame: FrameId,
    number: u32,
    slot: usize,
) -> Result<Range<u64>, OnnxError> {
    let body = model.frame(frame).body.clone();
    let (mut at, mut seen) = (body.start, 0);
    while at < body.end {
        let field = reader.field(at, body.end)?;
        if field.number == number && matches!(field.value, Value::Bytes { .. }) {
            if seen == slot {
                return Ok(field.start..field.end);
            }
            seen += 1;
        }
        at = field.end;
    }
    Err(reader.truncated("the file changed while it was read"))
}
