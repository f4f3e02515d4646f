//! Patches that expose the residual stream and put a steerable ablation into it, and the in-memory
//! model that a session runs: weights stay in the original files, nodes that nothing needs are gone.

mod join;
mod whole;
mod widen;

use join::join_embedding;
pub use whole::{Wanted, Whole, WholeModel, whole};
use widen::widen_bfloat16;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use prost::Message;

use crate::edit::{GatedTerm, Writes};
use crate::lm::interface::Line;
use crate::lm::projection::{self, AdditionSource, DirectionSource, Steps};
use crate::lm::residual::SKIP_SUM_OUTPUT;
use crate::lm::{EmbeddingFile, LanguageModel, ResidPoint, ResidualStream, StreamValue, gating};
use crate::onnx::patch::{Patch, Place};
use crate::onnx::proto::{
    Dimension, ModelProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attr_int,
    dimension, node, type_proto,
};
use crate::onnx::{DataType, Graph, Model, NodeId, OnnxError, Storage, Use};

/// Name of the graph input that holds direction `n` of those that are ablated, one a batch row, float32
/// `[batch, 1, d_model]`.
pub fn direction_input(n: usize) -> String {
    if n == 0 { "lancet.direction".into() } else { format!("lancet.direction.{n}") }
}

/// Name of the graph input that holds vector `n` of those that are added, one a batch row, float32
/// `[batch, 1, d_model]`.
pub fn addition_input(n: usize) -> String {
    if n == 0 { "lancet.addition".into() } else { format!("lancet.addition.{n}") }
}

/// Tensors above this size are referenced where they lie instead of being copied into the session's model.
const REFERENCE_ABOVE: u64 = 1024;

/// Where positions are picked from what a session returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cut {
    /// In the graph, of values that lie as `[batch, n_pos, _]`.
    #[default]
    InGraph,
    /// By whoever reads them: values are returned as they lie in the graph, with all positions.
    Outside,
}

/// What a session is to compute.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Stream values to return, at the last `last_positions` positions, as float32.
    pub probes: Vec<(usize, ResidPoint)>,
    /// How many positions, counted from the end, probes return.
    pub last_positions: usize,
    /// Return logits of this many positions, counted from the end; 0 returns none.
    pub logits: usize,
    /// Return the KV cache.
    pub cache: bool,
    /// Ablate so many directions, given as graph inputs ([`direction_input`]), from the writes that `writes` names.
    pub directions: usize,
    /// The writes that directions are ablated from.
    pub writes: Writes,
    /// Add the vectors given as graph inputs ([`addition_input`]) to `resid_pre` of these layers, at least 1 and each once,
    /// after the ablation of the write that they join.
    pub additions: Vec<usize>,
    /// Gated terms to add to the stream, after the ablation and the addition.
    pub gates: Vec<GatedTerm>,
    /// Merged decoders: the branch that reads a KV cache.
    pub cached_branch: bool,
    /// Compute bfloat16 graphs in float32: ONNX Runtime's CPU provider has no bfloat16 products.
    pub widen_bfloat16: bool,
    /// Where positions are picked.
    pub cut: Cut,
}

/// Which positions of logits a session computes and returns; a file that has the last one only does so whatever is said
/// here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those that were asked for.
    Asked,
    /// All are computed, those that were asked for are returned.
    Picked,
    /// All are computed and returned.
    All,
}

/// A model to run, held in memory without its weights.
pub struct SessionModel {
    /// An encoded `ModelProto` whose initializers point into the original files.
    pub bytes: Vec<u8>,
    /// Names of the probe outputs, in the order of the request.
    pub probes: Vec<String>,
    /// Name of the logits output; it holds the positions that were asked for.
    pub logits: Option<String>,
    /// Which positions of logits are computed and returned.
    pub scope: Scope,
    /// Names of the inputs that are left after pruning.
    pub inputs: Vec<String>,
    /// Names of the inputs that hold what is done to the stream, directions before vectors to add, as they were before
    /// pruning.
    pub steering: Vec<String>,
}

/// Name of a probe's output.
fn probe_name(layer: usize, point: ResidPoint) -> String {
    let point = match point {
        ResidPoint::Pre => "resid_pre",
        ResidPoint::Mid => "resid_mid",
        ResidPoint::Post => "resid_post",
    };
    format!("lancet.{point}.{layer}")
}

/// Builds the in-memory model for `request`.
///
/// # Errors
/// If tensor data that must be copied cannot be read.
pub fn instrument(
    graph: &Graph<'_>,
    lm: &LanguageModel,
    embedding: Option<&EmbeddingFile<'_>>,
    request: &Request,
) -> Result<SessionModel, OnnxError> {
    let mut patch = Patch::default();
    let mut int64s: Vec<TensorProto> = Vec::new();
    let stream = lm.stream(request.cached_branch);
    steer(graph, stream, request, &mut patch)?;
    let mut probes = Vec::new();
    for &(layer, point) in &request.probes {
        let block = &stream.blocks[layer];
        let value = match point {
            ResidPoint::Pre => Some(block.pre),
            ResidPoint::Mid => block.mid,
            ResidPoint::Post => Some(block.post),
        };
        let Some(value) = value else { continue };
        let (mut source, place) = stream_name(graph, &mut patch, value);
        let name = probe_name(layer, point);
        if request.cut == Cut::InGraph {
            if !has_positions(graph, value) {
                source = with_positions(&mut patch, lm, place, &source, &name, &mut int64s);
            }
            source = last_positions(&mut patch, place, &source, &name, request.last_positions, &mut int64s);
        }
        patch.nodes.push((
            place,
            node("Cast", &name, &[&source], &[&name], vec![attr_int("to", i64::from(DataType::FLOAT.0))]),
        ));
        patch.outputs.push(value_info(&name, DataType::FLOAT, &[]));
        probes.push(name);
    }
    let found = (request.logits > 0).then(|| last_logits(graph, lm, request, &mut patch, &mut int64s));
    let (logits, scope) = found.map_or((None, Scope::Asked), |(name, scope)| (Some(name), scope));
    int64s.dedup_by(|a, b| a.name == b.name);
    patch.initializers.extend(int64s);
    if request.cached_branch {
        // what the merged decoder returns is joined from its plain branch: lead it to the other one
        for output in graph.proto().output.iter().filter_map(|o| graph.value(o.name.as_deref()?)) {
            if let (Some(join), Some(cached)) = (graph.producer(output), graph.alternate(output)) {
                patch.rewires.push((Use { node: join, slot: 0 }, graph.name(cached).to_string()));
            }
        }
    }
    names_are_free(&patch, graph)?;
    patch.check(graph);

    let mut proto = flat_model(graph);
    let main = proto.graph.as_mut().expect("a flat model has a graph");
    patch.apply(main);
    let mut wanted: HashSet<String> = probes.iter().cloned().chain(logits.iter().cloned()).collect();
    if request.cache {
        wanted.extend(lm.interface.cache.iter().map(|slot| slot.present.clone()));
    }
    main.output.retain(|o| o.name.as_deref().is_some_and(|n| wanted.contains(n)));
    if request.cache {
        // an exporter's declared shapes may contradict what is computed; only names and types are kept
        for output in &mut main.output {
            if let Some(type_proto::Value::TensorType(t)) = output.r#type.as_mut().and_then(|t| t.value.as_mut()) {
                t.shape = None;
            }
        }
    }
    prune(&mut proto);
    reference_weights(&mut proto, graph.model)?;
    if let (Some(embedding), Some(fed)) = (embedding, &lm.interface.inputs_embeds) {
        join_embedding(&mut proto, embedding, fed)?;
    }
    if request.widen_bfloat16 {
        widen_bfloat16(proto.graph.as_mut().expect("still there"));
    }
    let main = proto.graph.as_ref().expect("still there");
    let sparse = main.sparse_initializer.iter().filter_map(|t| t.values.as_ref());
    let defaults: HashSet<&str> = main.initializer.iter().chain(sparse).filter_map(|t| t.name.as_deref()).collect();
    let inputs =
        main.input.iter().filter_map(|i| i.name.clone()).filter(|name| !defaults.contains(name.as_str())).collect();
    let added = (0..request.additions.len()).map(addition_input);
    let steering = (0..request.directions).map(direction_input).chain(added).collect();
    Ok(SessionModel { bytes: proto.encode_to_vec(), probes, logits, scope, inputs, steering })
}

/// Refuses a file that has values of names that the session's own nodes and inputs have.
fn names_are_free(patch: &Patch, graph: &Graph<'_>) -> Result<(), OnnxError> {
    match patch.taken(graph) {
        Some(name) => Err(OnnxError::Unsupported {
            what: format!("running a graph that has a value named `{name}`, a name that Lancet keeps for itself,"),
        }),
        None => Ok(()),
    }
}

/// The flat graph as a model of its own, without functions and metadata.
fn flat_model(graph: &Graph<'_>) -> ModelProto {
    let skeleton = &graph.model.skeleton;
    ModelProto {
        graph: Some(graph.proto().clone()),
        functions: Vec::new(),
        opset_import: skeleton.opset_import.iter().chain(&graph.flat().imports).cloned().collect(),
        metadata_props: Vec::new(),
        ..skeleton.clone()
    }
}

/// The name of an output that the file leaves unnamed; it gets one in `patch` the first time.
fn output_name(graph: &Graph<'_>, patch: &mut Patch, node: NodeId, slot: usize) -> String {
    let named = patch.renames.iter().find(|(n, s, _)| *n == node && *s == slot);
    if let Some((.., name)) = named {
        return name.clone();
    }
    let name = graph.fresh_name(&format!("lancet.output.{}.{slot}", node.0));
    patch.renames.push((node, slot, name.clone()));
    name
}

/// Puts what an edit does into the stream: the ablation into writes, each addition into the write that it joins, and the
/// gated terms behind the sums of their layers.
///
/// # Errors
/// A gated term that cannot be added at its layer.
fn steer(graph: &Graph<'_>, stream: &ResidualStream, request: &Request, patch: &mut Patch) -> Result<(), OnnxError> {
    project(graph, stream, request, patch);
    let mut store = |patch: &mut Patch, tensor| patch.initializers.push(tensor);
    gating::gate(graph, stream, &request.gates, "", (patch, &mut store))
        .map_err(|refusal| OnnxError::Unsupported { what: format!("an edit of this graph ({refusal})") })?;
    Ok(())
}

/// Puts the ablation into the writes that it acts on, and each addition into the write that it joins.
fn project(graph: &Graph<'_>, stream: &ResidualStream, request: &Request, patch: &mut Patch) {
    let directions: Vec<String> = (0..request.directions).map(direction_input).collect();
    let vectors: Vec<String> = (0..request.additions.len()).map(addition_input).collect();
    let Some(first) = directions.first().or(vectors.first()) else { return };
    for name in directions.iter().chain(&vectors) {
        patch.inputs.push(value_info(name, DataType::FLOAT, &["lancet_batch", "1", "lancet_d_model"]));
    }
    projection::prepare(patch, first);
    let joined: Vec<Option<Use>> =
        request.additions.iter().map(|layer| stream.last_before(*layer).and_then(|c| c.site)).collect();
    let vectors: Vec<AdditionSource> = vectors.into_iter().map(AdditionSource::Input).collect();
    let ablates = !directions.is_empty();
    let directions = DirectionSource::Inputs(directions);
    for (index, contribution) in stream.writes(graph).iter().enumerate() {
        let (kind, layer) = (contribution.role.of_write(), contribution.layer.map(|layer| layer.0));
        let added = joined.iter().position(|site| site.is_some() && *site == contribution.site);
        let steps = Steps {
            ablation: (ablates && request.writes.contains(kind, layer)).then_some(&directions),
            addition: added.map(|at| &vectors[at]),
        };
        if steps.ablation.is_some() || steps.addition.is_some() {
            projection::steer(graph, patch, contribution, steps, &format!("ablate.{index}"));
        }
    }
}

/// A name for a stream value, and the place from which it is there.
fn stream_name(graph: &Graph<'_>, patch: &mut Patch, value: StreamValue) -> (String, Place) {
    match value {
        StreamValue::Sum(node) => (output_name(graph, patch, node, SKIP_SUM_OUTPUT), Place::After(node)),
        StreamValue::Value(value) => {
            let Some(producer) = graph.producer(value) else {
                // a graph input that is steered: its readers read another value
                let steered = patch.rewires.iter().find(|(reader, _)| graph.uses(value).contains(reader));
                let name = steered.map_or_else(|| graph.name(value).to_string(), |(_, name)| name.clone());
                return (name, Place::First);
            };
            (graph.name(value).to_string(), Place::After(producer))
        }
    }
}

/// Whether a stream value is surely `[batch, n_pos, d_model]`.
fn has_positions(graph: &Graph<'_>, value: StreamValue) -> bool {
    match value {
        StreamValue::Value(value) => graph.rank_of(value) == Some(3),
        StreamValue::Sum(node) => graph.input(node, 0).is_some_and(|v| graph.rank_of(v) == Some(3)),
    }
}

/// Gives a value that may be held as `[batch * n_pos, d_model]` its batch back.
fn with_positions(
    patch: &mut Patch,
    lm: &LanguageModel,
    place: Place,
    source: &str,
    name: &str,
    int64s: &mut Vec<TensorProto>,
) -> String {
    let [batch, shape, output] = ["batch", "shape", "whole"].map(|part| format!("{name}.{part}"));
    // tokens of one sequence have no axis of rows
    if lm.interface.feeding.tokens == Line::Flat {
        let one = "lancet.one_row";
        if !int64s.iter().any(|t| t.name.as_deref() == Some(one)) {
            int64s.push(projection::int64s(one, &[1, -1, lm.d_model() as i64]));
        }
        patch.nodes.push((place, node("Reshape", &output, &[source, one], &[&output], vec![])));
        return output;
    }
    for (name, values) in [("lancet.first", vec![0]), ("lancet.rest", vec![-1, lm.d_model() as i64])] {
        if !int64s.iter().any(|t| t.name.as_deref() == Some(name)) {
            int64s.push(projection::int64s(name, &values));
        }
    }
    let ids = format!("{name}.ids_shape");
    let mut add = |op: &str, inputs: &[&str], output: &str, attributes| {
        patch.nodes.push((place, node(op, output, inputs, &[output], attributes)));
    };
    add("Shape", &[&lm.interface.input_ids], &ids, vec![]);
    add("Gather", &[&ids, "lancet.first"], &batch, vec![]);
    add("Concat", &[&batch, "lancet.rest"], &shape, vec![attr_int("axis", 0)]);
    add("Reshape", &[source, &shape], &output, vec![]);
    output
}

/// Adds the slice `[-count:]` along axis 1.
fn last_positions(
    patch: &mut Patch,
    place: Place,
    source: &str,
    name: &str,
    count: usize,
    int64s: &mut Vec<TensorProto>,
) -> String {
    let count = i64::try_from(count).expect("positions fit in i64");
    let starts = format!("lancet.from.{count}");
    for (name, value) in [(starts.as_str(), -count), ("lancet.to_end", i64::MAX), ("lancet.positions_axis", 1)] {
        if !int64s.iter().any(|t| t.name.as_deref() == Some(name)) {
            int64s.push(projection::int64s(name, &[value]));
        }
    }
    let output = format!("{name}.last");
    let inputs = [source, &starts, "lancet.to_end", "lancet.positions_axis"];
    patch.nodes.push((place, node("Slice", &output, &inputs, &[&output], vec![])));
    output
}

/// Logits of the positions that are asked for, computed from these positions only where the unembedding is a plain
/// product: the activation is sliced before it. Returns the output's name, and which positions it holds.
fn last_logits(
    graph: &Graph<'_>,
    lm: &LanguageModel,
    request: &Request,
    patch: &mut Patch,
    int64s: &mut Vec<TensorProto>,
) -> (String, Scope) {
    let at = lm.stream(request.cached_branch).unembedding;
    let activation = graph.input(at.node, at.slot).expect("found as an input");
    let logits = graph.value(&lm.interface.logits).expect("the interface names a value of the graph");
    let mut value = if request.cached_branch { graph.alternate(logits).unwrap_or(logits) } else { logits };
    let mut plain = true;
    // nothing between product and logits may depend on the number of positions
    while let Some(producer) = graph.producer(value) {
        if producer == at.node {
            break;
        }
        plain &= matches!(graph.op(producer), "Cast" | "Identity" | "Mul" | "Div" | "Tanh" | "Add");
        let Some(next) = graph.all_inputs(producer).into_iter().find(|v| graph.is_dynamic(*v)) else { break };
        value = next;
    }
    let op = graph.op(at.node);
    plain &= matches!(op, "MatMul" | "MatMulNBits" | "FusedMatMul") && graph.rank_of(activation) == Some(3);
    plain &= request.cut == Cut::InGraph;
    let name = "lancet.logits".to_string();
    let after = graph.producer(logits).map_or(Place::First, Place::After);
    if plain {
        let source = graph.name(activation).to_string();
        let place = Place::Before(at.node);
        let sliced = last_positions(patch, place, &source, "lancet.final", request.logits, int64s);
        patch.rewires.push((Use { node: at.node, slot: at.slot }, sliced));
        patch.nodes.push((
            after,
            node("Cast", &name, &[graph.name(logits)], &[&name], vec![attr_int("to", i64::from(DataType::FLOAT.0))]),
        ));
        patch.outputs.push(value_info(&name, DataType::FLOAT, &[]));
        return (name, Scope::Asked);
    }
    // the second axis holds positions only where there are three
    let (source, scope) = match graph.rank_of(logits) == Some(3) && request.cut == Cut::InGraph {
        true => {
            let whole = graph.name(logits);
            (last_positions(patch, after, whole, "lancet.logits", request.logits, int64s), Scope::Picked)
        }
        false => (graph.name(logits).to_string(), Scope::All),
    };
    let to = vec![attr_int("to", i64::from(DataType::FLOAT.0))];
    patch.nodes.push((after, node("Cast", &name, &[&source], &[&name], to)));
    patch.outputs.push(value_info(&name, DataType::FLOAT, &[]));
    (name, scope)
}

/// A tensor value; dimensions that parse as numbers are fixed, none at all leaves the rank open.
fn value_info(name: &str, dtype: DataType, dims: &[&str]) -> ValueInfoProto {
    let shape = (!dims.is_empty()).then(|| TensorShapeProto {
        dim: dims
            .iter()
            .map(|d| Dimension {
                value: Some(match d.parse() {
                    Ok(n) => dimension::Value::DimValue(n),
                    Err(_) => dimension::Value::DimParam((*d).to_string()),
                }),
            })
            .collect(),
    });
    let tensor = type_proto::Tensor { elem_type: Some(dtype.0), shape };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None }),
    }
}

/// Drops nodes, inputs, initializers and declared values that no output needs. ONNX Runtime does not.
fn prune(proto: &mut ModelProto) {
    let main = proto.graph.as_mut().expect("an indexed model has a graph");
    let mut producers = std::collections::HashMap::new();
    for (index, node) in main.node.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            producers.insert(output.clone(), index);
        }
    }
    let mut needed: HashSet<String> = HashSet::new();
    let mut keep = vec![false; main.node.len()];
    let mut stack: Vec<String> = main.output.iter().filter_map(|o| o.name.clone()).collect();
    while let Some(name) = stack.pop() {
        if !needed.insert(name.clone()) {
            continue;
        }
        if let Some(&index) = producers.get(&name)
            && !std::mem::replace(&mut keep[index], true)
        {
            stack.extend(main.node[index].input.iter().filter(|i| !i.is_empty()).cloned());
            stack.extend(crate::onnx::captured::captured(&main.node[index]));
        }
    }
    let mut index = 0;
    main.node.retain(|_| {
        index += 1;
        keep[index - 1]
    });
    let is_needed = |name: &Option<String>| name.as_ref().is_some_and(|n| needed.contains(n));
    main.initializer.retain(|t| is_needed(&t.name));
    main.sparse_initializer.retain(|t| t.values.as_ref().is_some_and(|values| is_needed(&values.name)));
    main.input.retain(|i| is_needed(&i.name));
    // declared shapes of inner values may name the full number of positions
    main.value_info.clear();
    main.quantization_annotation.clear();
    proto.metadata_props.clear();
}

/// Points every large tensor of the graph to its bytes in the original files.
fn reference_weights(proto: &mut ModelProto, model: &Model) -> Result<(), OnnxError> {
    fn graph(g: &mut crate::onnx::proto::GraphProto, model: &Model, main: &Path) -> Result<(), OnnxError> {
        for tensor in &mut g.initializer {
            reference(tensor, model, main, true)?;
        }
        for tensor in g.sparse_initializer.iter_mut().flat_map(|t| t.values.iter_mut().chain(&mut t.indices)) {
            reference(tensor, model, main, false)?;
        }
        for n in &mut g.node {
            node_tensors(n, model, main)?;
        }
        Ok(())
    }
    fn node_tensors(n: &mut crate::onnx::proto::NodeProto, model: &Model, main: &Path) -> Result<(), OnnxError> {
        for attribute in &mut n.attribute {
            let sparse = attribute.sparse_tensor.iter_mut().flat_map(|t| t.values.iter_mut().chain(&mut t.indices));
            for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors).chain(sparse) {
                // ONNX Runtime reads external data of initializers only
                reference(tensor, model, main, false)?;
            }
            for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                graph(inner, model, main)?;
            }
        }
        Ok(())
    }
    let main = model.path.canonicalize().map_err(|source| OnnxError::Io { path: model.path.clone(), source })?;
    if let Some(g) = proto.graph.as_mut() {
        graph(g, model, &main)?;
    }
    for function in &mut proto.functions {
        for n in &mut function.node {
            node_tensors(n, model, &main)?;
        }
    }
    Ok(())
}

fn reference(tensor: &mut TensorProto, model: &Model, main: &Path, external: bool) -> Result<(), OnnxError> {
    let Some(id) = Model::tensor_of(tensor) else { return Ok(()) };
    Model::unmark(tensor);
    let indexed = model.tensors.get(id.0).ok_or_else(|| OnnxError::BadTensor {
        tensor: tensor.name.clone().unwrap_or_default(),
        reason: "its external data hold a key that Lancet keeps for itself".into(),
    })?;
    let (path, offset, length): (PathBuf, u64, u64) = match &indexed.storage {
        Storage::Embedded { offset, length } => (main.to_path_buf(), *offset, *length),
        Storage::External { path, offset, length, .. } => (path.clone(), *offset, *length),
        Storage::Varints { offset, length } => {
            if *length > REFERENCE_ABOVE {
                let bytes = read(main, *offset, *length)?;
                let values = crate::onnx::wire::unpack_varints(&bytes).ok_or_else(|| OnnxError::BadTensor {
                    tensor: indexed.name.clone(),
                    reason: "its packed values are malformed".into(),
                })?;
                match indexed.dtype {
                    DataType::INT64 => tensor.int64_data = values.into_iter().map(|v| v as i64).collect(),
                    DataType(12 | 13) => tensor.uint64_data = values,
                    _ => tensor.int32_data = values.into_iter().map(|v| v as i32).collect(),
                }
            }
            return Ok(());
        }
        Storage::Opaque => return Ok(()),
    };
    if length <= REFERENCE_ABOVE || !external {
        if matches!(indexed.storage, Storage::External { .. }) || length > REFERENCE_ABOVE {
            tensor.raw_data = Some(read(&path, offset, length)?);
            tensor.float_data.clear();
            tensor.double_data.clear();
            tensor.external_data.clear();
            tensor.data_location = None;
        }
        return Ok(());
    }
    let location = location(&path);
    let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
    tensor.raw_data = None;
    tensor.float_data.clear();
    tensor.double_data.clear();
    tensor.data_location = Some(1);
    tensor.external_data =
        vec![entry("location", location), entry("offset", offset.to_string()), entry("length", length.to_string())];
    Ok(())
}

fn read(path: &Path, offset: u64, length: u64) -> Result<Vec<u8>, OnnxError> {
    let io = |source| OnnxError::Io { path: path.to_path_buf(), source };
    let mut bytes = vec![0; usize::try_from(length).map_err(|e| io(std::io::Error::other(e)))?];
    let file = crate::files::open(path).map_err(io)?;
    crate::onnx::external::read_exact_at(&file, &mut bytes, offset).map_err(io)?;
    Ok(bytes)
}

/// A canonical path relative to the root that sessions resolve external data against.
fn location(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.trim_start_matches(r"\\?\").trim_start_matches('/').to_string()
}
