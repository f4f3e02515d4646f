//! The whole path on small models made here: plan, apply, publish, verify, and a second reader.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};
use prost::Message;

mod disk;
mod proof;
mod reference;
mod writes;

use super::*;
use crate::edit::Direction;
use crate::lm::{LanguageModel, ModelConfig, Treatment};
use crate::onnx::proto::*;
use crate::onnx::{DataType, Graph, Model, Storage};

const D: usize = 64;
const V: usize = 96;
const F: usize = 160;

/// Where a fixture's weights go.
#[derive(Clone, Copy, PartialEq)]
enum Store {
    Raw,
    Values,
    Int32,
    OneFile,
    ManyFiles,
}

#[derive(Clone, Copy)]
struct Spec {
    dtype: DataType,
    store: Store,
    gemm: bool,
    bias: bool,
    tied: bool,
    ir_version: i64,
    poison: Option<f32>,
}

const PLAIN: Spec = Spec {
    dtype: DataType::FLOAT,
    store: Store::Raw,
    gemm: false,
    bias: false,
    tied: false,
    ir_version: 8,
    poison: None,
};

/// Deterministic values around 0, of standard deviation about 0.3.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..len).map(|_| next() - next() + (next() - 0.5) * 0.1).collect()
}

fn stored(dtype: DataType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DataType::FLOAT => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DataType::DOUBLE => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
        DataType::FLOAT16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

struct Builder {
    spec: Spec,
    folder: PathBuf,
    graph: GraphProto,
    data: Vec<u8>,
}

fn entry(key: &str, value: impl ToString) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value.to_string()) }
}

impl Builder {
    fn weight(&mut self, name: &str, shape: &[usize]) {
        let elements: usize = shape.iter().product();
        let mut values = noise(name.bytes().map(u64::from).sum(), elements);
        if name == "down"
            && let Some(poison) = self.spec.poison
        {
            values[elements / 2] = poison;
        }
        let raw = stored(self.spec.dtype, &values);
        let mut tensor = TensorProto {
            name: Some(name.into()),
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: Some(self.spec.dtype.0),
            ..Default::default()
        };
        match self.spec.store {
            Store::Raw => tensor.raw_data = Some(raw),
            Store::Values if self.spec.dtype == DataType::DOUBLE => {
                tensor.double_data = values.iter().map(|v| f64::from(*v)).collect();
            }
            Store::Values => tensor.float_data = values,
            Store::Int32 => {
                tensor.int32_data = raw.chunks_exact(2).map(|b| i32::from(u16::from_le_bytes([b[0], b[1]]))).collect();
            }
            Store::OneFile => {
                // unaligned on purpose
                self.data.push(0xaa);
                tensor.data_location = Some(1);
                tensor.external_data = vec![
                    entry("location", "weights.data"),
                    entry("offset", self.data.len()),
                    entry("length", raw.len()),
                ];
                self.data.extend(raw);
            }
            Store::ManyFiles => {
                let location = format!("sub/{name}.bin");
                std::fs::create_dir_all(self.folder.join("sub")).unwrap();
                std::fs::write(self.folder.join(&location), raw).unwrap();
                tensor.data_location = Some(1);
                tensor.external_data = vec![entry("location", location)];
            }
        }
        self.graph.initializer.push(tensor);
    }

    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.graph.node.push(node(op, output, inputs, &[output], attributes));
    }

    /// `input W`, `W` named `name` of `[k, D]` or, as the operand of a Gemm with `transB`, `[D, k]`.
    fn write(&mut self, input: &str, name: &str, k: usize) {
        let output = format!("{name}.out");
        if self.spec.gemm {
            self.weight(name, &[D, k]);
            let mut inputs = vec![input, name];
            let bias = format!("{name}.bias");
            if self.spec.bias {
                self.weight(&bias, &[D]);
                inputs.push(&bias);
            }
            self.node("Gemm", &inputs, &output, vec![attr_int("transB", 1)]);
        } else {
            self.weight(name, &[k, D]);
            if self.spec.bias {
                let (bias, product) = (format!("{name}.bias"), format!("{name}.product"));
                self.weight(&bias, &[1, D]);
                self.node("MatMul", &[input, name], &product, vec![]);
                self.node("Add", &[&bias, &product], &output, vec![]);
            } else {
                self.node("MatMul", &[input, name], &output, vec![]);
            }
        }
    }
}

fn value(name: &str, dtype: DataType, dims: &[&str]) -> ValueInfoProto {
    let dim = dims.iter().map(|d| Dimension { value: Some(dimension::Value::DimParam((*d).to_string())) }).collect();
    let tensor = type_proto::Tensor { elem_type: Some(dtype.0), shape: Some(TensorShapeProto { dim }) };
    let value = type_proto::Value::TensorType(tensor);
    ValueInfoProto { name: Some(name.into()), r#type: Some(TypeProto { value: Some(value), ..Default::default() }) }
}

/// One decoder block: embedding, attention, MLP, final norm, unembedding.
fn build(folder: &Path, spec: Spec, change: impl FnOnce(&mut ModelProto)) -> PathBuf {
    let mut b = Builder { spec, folder: folder.to_path_buf(), graph: GraphProto::default(), data: Vec::new() };
    b.weight("embedding", &[V, D]);
    b.node("Gather", &["embedding", "input_ids"], "x0", vec![]);
    for norm in ["norm1", "norm2", "norm3"] {
        b.weight(norm, &[D]);
    }
    b.node("SimplifiedLayerNormalization", &["x0", "norm1"], "n1", vec![]);
    for name in ["q", "k", "v"] {
        b.weight(name, &[D, D]);
        b.node("MatMul", &["n1", name], &format!("{name}.out"), vec![]);
    }
    let swap = AttributeProto {
        name: Some("perm".into()),
        ints: vec![0, 2, 1],
        r#type: Some(attribute_type::INTS),
        ..Default::default()
    };
    b.node("Transpose", &["k.out"], "kt", vec![swap]);
    b.node("MatMul", &["q.out", "kt"], "scores", vec![]);
    b.node("Softmax", &["scores"], "weights", vec![attr_int("axis", -1)]);
    b.node("MatMul", &["weights", "v.out"], "context", vec![]);
    b.write("context", "o", D);
    b.node("Add", &["x0", "o.out"], "x1", vec![]);
    b.node("SimplifiedLayerNormalization", &["x1", "norm2"], "n2", vec![]);
    b.weight("up", &[D, F]);
    b.node("MatMul", &["n2", "up"], "up.out", vec![]);
    b.node("Relu", &["up.out"], "hidden", vec![]);
    b.write("hidden", "down", F);
    b.node("Add", &["x1", "down.out"], "x2", vec![]);
    b.node("SimplifiedLayerNormalization", &["x2", "norm3"], "n3", vec![]);
    if spec.tied {
        let swap = AttributeProto {
            name: Some("perm".into()),
            ints: vec![1, 0],
            r#type: Some(attribute_type::INTS),
            ..Default::default()
        };
        b.node("Transpose", &["embedding"], "head", vec![swap]);
    } else {
        b.weight("head", &[D, V]);
    }
    b.node("MatMul", &["n3", "head"], "logits", vec![]);
    b.graph.name = Some("tiny".into());
    b.graph.input = vec![value("input_ids", DataType::INT64, &["batch", "n_pos"])];
    b.graph.output = vec![value("logits", spec.dtype, &["batch", "n_pos", "d_vocab"])];
    let mut model = ModelProto {
        ir_version: Some(spec.ir_version),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        producer_name: Some("a test".into()),
        graph: Some(b.graph),
        metadata_props: vec![entry("author", "nobody")],
        ..Default::default()
    };
    change(&mut model);
    if !b.data.is_empty() {
        b.data.extend(b"trailing bytes that no tensor owns");
        std::fs::write(folder.join("weights.data"), &b.data).unwrap();
    }
    let path = folder.join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

fn direction() -> Direction {
    Direction::new(noise(5, D).iter().map(|v| f64::from(*v)).collect()).unwrap()
}

fn plan(model: &Model, options: &PlanOptions) -> Result<BakePlan, BakeError> {
    let graph = Graph::new(model);
    let lm = LanguageModel::new(&graph, &ModelConfig::default()).unwrap();
    assert_eq!((lm.d_model(), lm.n_layers()), (D, 1));
    BakePlan::new(&graph, &lm, &direction().into(), options)
}

/// Plans, applies and publishes; returns the plan, the edits and the published model.
fn bake(base: &Path, out: &Path) -> Result<(BakePlan, Vec<EditResult>, PathBuf), BakeError> {
    bake_as(base, out, &PlanOptions { metadata: vec![("layer".into(), "3".into())], ..PlanOptions::default() })
}

fn bake_as(base: &Path, out: &Path, options: &PlanOptions) -> Result<(BakePlan, Vec<EditResult>, PathBuf), BakeError> {
    let model = Model::open(base).unwrap();
    let plan = plan(&model, options)?;
    let staging = Staging::new(out, &model)?;
    let told = Mutex::new((0, 0));
    let stop = AtomicBool::new(false);
    let edits = apply(&model, &plan, staging.path(), &ApplyOptions::new(&stop), &|done, total| {
        let mut told = told.lock().unwrap();
        *told = (told.0.max(done), total);
    })?;
    let (done, total) = *told.lock().unwrap();
    assert_eq!(done, total, "progress ends at its total");
    let published = staging.publish()?;
    let file = published.last().unwrap();
    let file = if file.is_dir() { file.join(base.file_name().unwrap()) } else { file.clone() };
    Ok((plan, edits, file))
}

fn verified(base: &Path, out: &Path, plan: &BakePlan) -> ByteReport {
    verify_bytes(&Model::open(base).unwrap(), &Model::open(out).unwrap(), plan).unwrap()
}

/// Everything in the folder, to see that an input stays as it is.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut stack = vec![folder.to_path_buf()];
    while let Some(at) = stack.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else {
                found.push((path.clone(), std::fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Bakes a fixture, verifies, bakes the result again, and checks all the numbers. `limit` bounds the relative leak.
fn round_trip(spec: Spec, limit: f64) {
    use protobuf::Message as _;
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    std::fs::create_dir(&input).unwrap();
    let base = build(&input, spec, |_| {});
    let before = contents(&input);
    let (plan, edits, out) = bake(&base, &folder.path().join("out")).unwrap();
    assert_eq!(contents(&input), before, "the input is never written to");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary folder is left");

    let weights = 2 + usize::from(!spec.tied) + if spec.bias { 2 } else { 0 };
    assert_eq!(edits.iter().filter(|e| e.treatment == Treatment::Weights).count(), weights);
    assert_eq!(edits.iter().filter(|e| e.treatment == Treatment::Nodes).count(), usize::from(spec.tied));
    for edit in edits.iter().filter(|e| e.treatment == Treatment::Weights) {
        let (was, is) = (edit.leak_before.unwrap(), edit.leak_after.unwrap());
        // A single vector may happen to hold next to no component; its norm is then what rounding is relative to.
        let was = if edit.part == Some(Part::Vector) { was.max(1.0) } else { was };
        assert!(is <= limit * was, "`{}`: {is} of {was}", edit.initializer);
        assert_ne!(edit.sha256_before, edit.sha256_after);
        assert!(edit.max_abs_delta.unwrap() > 0.0);
    }
    let report = verified(&base, &out, &plan);
    assert!(report.passed(), "{report:?}");
    assert_eq!((report.changed_bytes_outside_plan, &report.first_difference, report.metadata_entries), (0, &None, 3));
    assert_eq!(report.tensors.len(), weights);
    assert!(report.tensors_compared > 5);
    for (edit, found) in edits.iter().zip(&report.tensors) {
        assert_eq!(edit.initializer, found.initializer);
        assert!((edit.leak_after.unwrap() - found.leak_after).abs() <= 1e-12);
        let halves = matches!(edit.dtype, DataType::FLOAT16 | DataType::BFLOAT16);
        assert!(found.max_ulp <= if halves { 1.0 } else { 0.5 }, "{found:?}");
    }

    // A reader that shares no code with this crate.
    let bytes = std::fs::read(&out).unwrap();
    let parsed = onnx_protobuf::ModelProto::parse_from_bytes(&bytes).unwrap();
    assert_eq!(parsed.ir_version, spec.ir_version);
    let keys: Vec<&str> = parsed.metadata_props.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["author", "lancet.version", "lancet.direction_sha256", "lancet.layer"]);

    // The result is a language model of the same shape; baking it again changes at most rounding.
    let (_, again, twice) = bake(&out, &folder.path().join("again")).unwrap();
    let parsed = onnx_protobuf::ModelProto::parse_from_bytes(&std::fs::read(twice).unwrap()).unwrap();
    let mut keys: Vec<&str> = parsed.metadata_props.iter().map(|e| e.key.as_str()).collect();
    let all = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), all, "metadata keys stay distinct");
    let epsilon = match spec.dtype {
        DataType::FLOAT => f64::from(f32::EPSILON),
        DataType::FLOAT16 => f64::from(f16::EPSILON),
        DataType::BFLOAT16 => f64::from(bf16::EPSILON),
        _ => f64::EPSILON,
    };
    let first: Vec<&EditResult> = edits.iter().filter(|e| e.treatment == Treatment::Weights).collect();
    for (first, second) in first.iter().zip(again.iter().filter(|e| e.treatment == Treatment::Weights)) {
        assert_eq!(first.initializer, second.initializer);
        assert_eq!(first.sha256_after, second.sha256_before);
        // weights stay below 2, where neighbours are two epsilons apart at most
        assert!(second.max_abs_delta.unwrap() <= 2.0 * epsilon, "{second:?}");
    }
}

#[test]
fn float32_in_every_storage() {
    for store in [Store::Raw, Store::Values, Store::OneFile, Store::ManyFiles] {
        round_trip(Spec { store, ..PLAIN }, 1e-6);
        round_trip(Spec { store, gemm: true, bias: true, ..PLAIN }, 1e-6);
        round_trip(Spec { store, bias: true, tied: true, ..PLAIN }, 1e-6);
    }
}

#[test]
fn other_types_in_both_orientations() {
    for (dtype, limit) in [(DataType::FLOAT16, 1e-4), (DataType::BFLOAT16, 1e-3), (DataType::DOUBLE, 1e-14)] {
        for store in [Store::Raw, Store::OneFile] {
            for gemm in [false, true] {
                round_trip(Spec { dtype, store, gemm, ..PLAIN }, limit);
            }
        }
    }
    round_trip(Spec { dtype: DataType::DOUBLE, store: Store::Values, ..PLAIN }, 1e-14);
    round_trip(Spec { dtype: DataType::FLOAT16, tied: true, ..PLAIN }, 1e-4);
}

#[test]
fn halves_stored_as_varints() {
    for (dtype, limit) in [(DataType::FLOAT16, 1e-4), (DataType::BFLOAT16, 1e-3)] {
        for gemm in [false, true] {
            round_trip(Spec { dtype, store: Store::Int32, gemm, bias: false, ..PLAIN }, limit);
        }
    }
}

#[test]
fn a_tied_embedding_gets_nodes_that_a_second_trace_understands() {
    for ir_version in [3, 8] {
        let folder = tempfile::tempdir().unwrap();
        let base = build(folder.path(), Spec { tied: true, ir_version, ..PLAIN }, |_| {});
        let (plan, edits, out) = bake(&base, &folder.path().join("out")).unwrap();
        assert!(verified(&base, &out, &plan).passed());
        let edit = edits.iter().find(|e| e.treatment == Treatment::Nodes).unwrap();
        assert_eq!((edit.initializer.as_str(), edit.leak_after), ("embedding", None));
        assert!(edit.reason.as_ref().unwrap().to_string().contains("tied"), "{edit:?}");
        let model = Model::open(&out).unwrap();
        let graph = Graph::new(&model);
        let lm = LanguageModel::new(&graph, &ModelConfig::default()).unwrap();
        assert_eq!((lm.d_model(), lm.n_layers()), (D, 1));
        let nodes: Vec<&str> = graph.nodes().map(|n| graph.node(n).label()).collect();
        assert!(nodes.contains(&"lancet.embed.projected"), "{nodes:?}");
        assert_eq!(model.skeleton.ir_version, Some(ir_version));
        let added = model.tensors.iter().filter(|t| t.name.starts_with("lancet.direction.")).count();
        assert_eq!(added, 2);
    }
}

#[test]
fn weights_alone_untie_an_embedding_by_a_copy() {
    let options = PlanOptions { weights_only: true, ..PlanOptions::default() };
    for store in [Store::Raw, Store::OneFile, Store::ManyFiles] {
        let folder = tempfile::tempdir().unwrap();
        let base = build(folder.path(), Spec { tied: true, store, ..PLAIN }, |_| {});
        let (plan, edits, out) = bake_as(&base, &folder.path().join("out"), &options).unwrap();
        assert!(verified(&base, &out, &plan).passed());
        assert!(plan.nodes.is_empty() && plan.inexact().is_empty());
        let edit = edits.iter().find(|e| e.treatment == Treatment::Copy).unwrap();
        assert_eq!(edit.initializer, "embedding");
        assert!(edit.leak_after.unwrap() < 1e-5, "{edit:?}");
        // the original still makes the logits, the copy starts the stream
        let (was, is) = (Model::open(&base).unwrap(), Model::open(&out).unwrap());
        assert_eq!(is.tensors.len(), was.tensors.len() + 1);
        let graph = Graph::new(&is);
        let lm = LanguageModel::new(&graph, &ModelConfig::default()).unwrap();
        let embed = &lm.writers[0];
        assert_eq!(embed.treatment, crate::lm::Treatment::Weights, "{:?}", embed.reason);
        assert!(is.tensor(embed.weights[0].tensor).name.starts_with("lancet.embed.copy"));
        // a byte of the copy that differs is found
        let file = if store == Store::Raw { out.clone() } else { folder.path().join("out").join(location(&is)) };
        let mut bytes = std::fs::read(&file).unwrap();
        let at = match &is.tensor(embed.weights[0].tensor).storage {
            Storage::Embedded { offset, .. } | Storage::External { offset, .. } => *offset,
            other => panic!("{other:?}"),
        };
        bytes[usize::try_from(at).unwrap() + 3] ^= 0x40;
        std::fs::write(&file, bytes).unwrap();
        assert!(!verified(&base, &out, &plan).passed());
    }
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), Spec { tied: true, ir_version: 3, ..PLAIN }, |_| {});
    let error = bake_as(&base, &folder.path().join("out"), &options).unwrap_err();
    assert!(error.to_string().contains("IR version"), "{error}");
}

/// Where the copy was stored.
fn location(model: &Model) -> String {
    let copy = model.tensors.iter().find(|t| t.name.starts_with("lancet.embed.copy")).unwrap();
    match &copy.storage {
        Storage::External { location, .. } => location.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_weight_that_is_not_finite_publishes_nothing() {
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for gemm in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let base = build(folder.path(), Spec { gemm, poison: Some(poison), ..PLAIN }, |_| {});
            let error = bake(&base, &folder.path().join("out")).unwrap_err();
            assert!(matches!(&error, BakeError::NotFinite { tensor } if tensor == "down"), "{error}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the input is there");
        }
    }
}

#[test]
fn nothing_is_overwritten_and_the_input_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), PLAIN, |_| {});
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    assert!(matches!(bake(&base, &out).unwrap_err(), BakeError::OutputExists { .. }));
    assert!(matches!(bake(&base, &base).unwrap_err(), BakeError::OutputExists { .. }));
    let model = Model::open(&base).unwrap();
    let plan = plan(&model, &PlanOptions::default()).unwrap();
    let stop = AtomicBool::new(false);
    let error = apply(&model, &plan, &out.join(".."), &ApplyOptions::new(&stop), &|_, _| {}).unwrap_err();
    assert!(matches!(error, BakeError::SourceFolder { .. }), "{error}");

    // An output that appears while the bake runs stays as it is.
    let late = folder.path().join("late");
    let staging = Staging::new(&late, &model).unwrap();
    apply(&model, &plan, staging.path(), &ApplyOptions::new(&stop), &|_, _| {}).unwrap();
    std::fs::create_dir(&late).unwrap();
    assert!(matches!(staging.publish().unwrap_err(), BakeError::OutputExists { .. }));
    assert_eq!(std::fs::read_dir(&late).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn a_cancelled_bake_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), Spec { store: Store::OneFile, ..PLAIN }, |_| {});
    let model = Model::open(&base).unwrap();
    let plan = plan(&model, &PlanOptions::default()).unwrap();
    let staging = Staging::new(&folder.path().join("out"), &model).unwrap();
    let stop = AtomicBool::new(false);
    let cancel = |_, _| stop.store(true, Ordering::Relaxed);
    let error = apply(&model, &plan, staging.path(), &ApplyOptions::new(&stop), &cancel).unwrap_err();
    assert!(matches!(error, BakeError::Cancelled));
    drop(staging);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_single_file_is_published_with_its_external_data() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    std::fs::create_dir(&input).unwrap();
    let base = build(&input, Spec { store: Store::ManyFiles, ..PLAIN }, |_| {});
    let target = folder.path().join("new/calm.onnx");
    let (plan, _, out) = bake(&base, &target).unwrap();
    assert_eq!(out, target);
    assert!(verified(&base, &out, &plan).passed());
    assert_eq!(std::fs::read_dir(folder.path().join("new")).unwrap().count(), 2, "the model and `sub`");
    // A second one would replace the first one's data.
    let error = bake(&base, &folder.path().join("new/calmer.onnx")).unwrap_err();
    assert!(matches!(&error, BakeError::OutputExists { path } if path.starts_with(folder.path().join("new/sub"))));
    // Embedded weights may be published beside their source.
    let alone = folder.path().join("alone");
    std::fs::create_dir(&alone).unwrap();
    let base = build(&alone, PLAIN, |_| {});
    let (plan, _, out) = bake(&base, &alone.join("calm.onnx")).unwrap();
    assert!(verified(&base, &out, &plan).passed());
}

/// Moves the external range of `name`.
fn move_tensor(model: &mut ModelProto, name: &str, offset: impl Fn(u64) -> u64) {
    let of = |model: &ModelProto, name: &str| {
        let graph = model.graph.as_ref().unwrap();
        let tensor = graph.initializer.iter().find(|t| t.name.as_deref() == Some(name)).unwrap();
        tensor.external_data[1].value.as_ref().unwrap().parse::<u64>().unwrap()
    };
    let to = offset(of(model, "o"));
    let graph = model.graph.as_mut().unwrap();
    let tensor = graph.initializer.iter_mut().find(|t| t.name.as_deref() == Some(name)).unwrap();
    tensor.external_data[1].value = Some(to.to_string());
}

#[test]
fn shared_bytes_are_edited_once_or_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let spec = Spec { store: Store::OneFile, ..PLAIN };
    // `q` (not a writer) on the bytes of `o` (a writer): the same range, and half of it.
    for by in [0, 1024] {
        let base = build(folder.path(), spec, |model| move_tensor(model, "q", |at| at + by));
        let out = folder.path().join(format!("out.{by}"));
        let (plan, _, out) = bake(&base, &out).unwrap();
        assert!(verified(&base, &out, &plan).passed());
        let [nodes] = plan.nodes.as_slice() else { panic!("{:?}", plan.nodes) };
        assert_eq!(nodes.name, "o");
        assert!(!plan.tensors.iter().any(|edit| edit.name == "o"));
    }
    // The two biases may be one.
    let base = build(folder.path(), Spec { bias: true, ..spec }, |model| {
        let graph = model.graph.as_ref().unwrap();
        let bias =
            graph.initializer.iter().find(|t| t.name.as_deref() == Some("o.bias")).unwrap().external_data.clone();
        let graph = model.graph.as_mut().unwrap();
        graph.initializer.iter_mut().find(|t| t.name.as_deref() == Some("down.bias")).unwrap().external_data = bias;
    });
    let (plan, edits, out) = bake(&base, &folder.path().join("out")).unwrap();
    assert_eq!(plan.tensors.iter().filter(|e| e.same_bytes_as.is_some()).count(), 1);
    let hashes: Vec<_> = edits.iter().filter(|e| e.initializer.ends_with("bias")).map(|e| &e.sha256_after).collect();
    assert_eq!(hashes[0], hashes[1]);
    assert!(verified(&base, &out, &plan).passed());
}

#[test]
fn every_tampered_byte_is_found() {
    let folder = tempfile::tempdir().unwrap();
    for (n, store) in [Store::Raw, Store::OneFile].into_iter().enumerate() {
        let input = folder.path().join(format!("in{n}"));
        std::fs::create_dir(&input).unwrap();
        let base = build(&input, Spec { store, tied: true, ..PLAIN }, |_| {});
        let (plan, _, out) = bake(&base, &folder.path().join(format!("out{n}"))).unwrap();
        let clean = std::fs::read(&out).unwrap();
        let file = if store == Store::Raw { out.clone() } else { out.with_file_name("weights.data") };
        let bytes = std::fs::read(&file).unwrap();
        // Exponent bytes of elements everywhere; headers are avoided so that the model still opens.
        let base_model = Model::open(&base).unwrap();
        let edited: Vec<&str> = plan.tensors.iter().map(|e| e.name.as_str()).collect();
        let out_model = Model::open(&out).unwrap();
        for tensor in &out_model.tensors {
            let (crate::onnx::Storage::Embedded { offset, length }
            | crate::onnx::Storage::External { offset, length, .. }) = &tensor.storage
            else {
                continue;
            };
            if tensor.name.starts_with("lancet") && store != Store::Raw {
                continue; // in the other file
            }
            let at = (*offset + length / 2) as usize | 3;
            let at = at - (at - *offset as usize) % 4 + 3;
            let mut tampered = bytes.clone();
            tampered[at] ^= 0x02;
            std::fs::write(&file, &tampered).unwrap();
            let report = verify_bytes(&base_model, &Model::open(&out).unwrap(), &plan).unwrap();
            assert!(!report.passed(), "`{}`", tensor.name);
            if edited.contains(&tensor.name.as_str()) {
                assert_eq!(report.changed_bytes_outside_plan, 0);
                assert!(report.tensors.iter().any(|t| t.initializer == tensor.name && t.differing_bytes == 1));
            } else {
                assert_eq!(report.changed_bytes_outside_plan, 1, "`{}`", tensor.name);
                let expected = Difference { file: file.clone(), offset: at as u64 };
                assert_eq!(report.first_difference, Some(expected));
            }
        }
        std::fs::write(&file, &bytes).unwrap();
        // Foreign metadata and anything else at the end.
        let more = ModelProto { metadata_props: vec![entry("author", "somebody")], ..Default::default() };
        std::fs::write(&out, [clean.clone(), more.encode_to_vec()].concat()).unwrap();
        let report = verified(&base, &out, &plan);
        assert!(!report.passed());
        assert!(
            report.findings.listed.iter().any(|f| f.kind == FindingKind::Metadata && f.name == "author"),
            "{report:?}"
        );
        std::fs::write(&out, &clean).unwrap();
        assert!(verified(&base, &out, &plan).passed());
    }
}

#[test]
fn a_direction_of_another_width_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), PLAIN, |_| {});
    let model = Model::open(&base).unwrap();
    let graph = Graph::new(&model);
    let lm = LanguageModel::new(&graph, &ModelConfig::default()).unwrap();
    let narrow = Direction::new(vec![1.0; D - 1]).unwrap();
    let error = BakePlan::new(&graph, &lm, &narrow.into(), &PlanOptions::default()).unwrap_err();
    assert!(matches!(error, BakeError::Direction { .. }) && error.hint().is_some());
}
