//! The proof itself is proved: edits that are sabotaged on purpose fail, honest ones pass.

#[path = "common/mod.rs"]
mod common;
#[path = "common/zoo.rs"]
#[allow(dead_code, reason = "only entries and references are used")]
mod zoo;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use common::runtime;
use lancet::bake::limits::past_limits;
use lancet::bake::{ApplyOptions, PlanOptions, apply};
use lancet::edit::{Direction, Edit};
use lancet::lm::Treatment;
use lancet::onnx::proto::{AttributeProto, ModelProto};
use lancet::pipeline::Opened;
use lancet::pipeline::consumer::{Consumer, Found, prove};
use lancet::pipeline::opened::Understood;
use libtest_mimic::{Arguments, Failed, Trial};
use prost::Message;

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = vec![
        Trial::test("a_file_that_does_not_load_fails", what_is_loaded),
        Trial::test("a_file_that_computes_other_logits_fails", what_is_looked_at),
    ];
    for entry in zoo::entries().into_iter().filter(|entry| entry.model.is_some() && entry.runs()) {
        trials.push(Trial::test(format!("{}::{}", entry.arch, entry.exporter), move || {
            let reference = zoo::reference(&entry.arch);
            let path = zoo::zoo().join(entry.model.as_ref().unwrap());
            every_writer(&path, &reference.direction.clone().into(), &reference.ids)
        }));
    }
    let folder = common::fixture("quant");
    let index: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("index.json")).unwrap()).unwrap();
    for entry in index.as_array().unwrap() {
        let Some(file) = entry["file"].as_str().filter(|_| entry["run"] == true) else { continue };
        if entry["format"].as_str().unwrap().starts_with("QLinear") {
            continue;
        }
        let path = folder.join(file);
        trials.push(Trial::test(format!("quant::{}", entry["name"].as_str().unwrap()), move || {
            let (ids, direction) = quantised();
            every_writer(&path, &direction, &ids)
        }));
    }
    let sampled =
        trials.into_iter().enumerate().map(|(index, trial)| trial.with_ignored_flag(common::is_left_out(index, 8)));
    libtest_mimic::run(&arguments, sampled.collect()).exit();
}

/// Prompts and direction of `fixtures/quant`.
fn quantised() -> (Vec<Vec<u32>>, Edit) {
    let stored = |file: &str, tensor: &str| {
        let bytes = std::fs::read(common::fixture("quant").join(file)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = tensors.tensor(tensor).unwrap();
        (view.shape().to_vec(), view.data().to_vec())
    };
    let (shape, bytes) = stored("input_ids.safetensors", "input_ids");
    let ids: Vec<u32> =
        bytes.chunks_exact(8).map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap()).collect();
    let (_, bytes) = stored("direction.safetensors", "direction");
    let values = bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
    (ids.chunks_exact(shape[1]).map(<[u32]>::to_vec).collect(), Direction::new(values.collect()).unwrap().into())
}

/// Bakes the first direction into what `sabotage` leaves of an understood model, and looks for the second in what was
/// written.
fn baked(
    opened: &Opened,
    out: &Path,
    (direction, proved): (&Edit, &Edit),
    ids: &[Vec<u32>],
    sabotage: &dyn Fn(&mut Understood<'_>),
) -> Result<Found, Failed> {
    let honest = opened.understand()?;
    let mut understood = opened.understand()?;
    sabotage(&mut understood);
    let mut plans = understood.plan(direction, &PlanOptions::default())?;
    let never = AtomicBool::new(false);
    std::fs::create_dir_all(out)?;
    let options = ApplyOptions::new(&never);
    let edits = apply(&opened.model, &plans.main, out, &options, &|_, _| ())?;
    let past = past_limits(&edits, direction.width(), None);
    if !past.is_empty() {
        // as the pipeline does it: what rounding costs too much gets nodes
        std::fs::remove_dir_all(out)?;
        std::fs::create_dir_all(out)?;
        plans = understood.plan(direction, &PlanOptions { by_nodes: past, ..PlanOptions::default() })?;
        apply(&opened.model, &plans.main, out, &options, &|_, _| ())?;
    }
    if let (Some(model), Some(plan)) = (&opened.embedding, &plans.embedding) {
        apply(model, plan, out, &options, &|_, _| ())?;
    }
    let written = written(opened, out)?;
    let consumer = Consumer { runtime: runtime(), prompts: ids, cancelled: &never };
    Ok(prove(&consumer, (opened, &honest), (&written, written.understand().as_ref()), proved)?)
}

/// What was written for a model into a folder.
fn written(opened: &Opened, folder: &Path) -> Result<Opened, lancet::Error> {
    opened.again(&folder.join(opened.model.path.file_name().expect("an opened file has a name")))
}

/// The same direction with its entries in another order.
fn another(edit: &Edit) -> Edit {
    let mut values = edit.ablation().expect("a direction").units();
    values.rotate_left(1);
    Direction::new(values).unwrap().into()
}

/// A file that ONNX Runtime does not load, while it loads the base, fails.
fn what_is_loaded() -> Result<(), Failed> {
    let (ids, direction) = quantised();
    let never = AtomicBool::new(false);
    let consumer = Consumer { runtime: runtime(), prompts: &ids, cancelled: &never };
    let opened = Opened::new(&common::fixture("quant/nbits4-b32-sym.onnx"))?;
    let base = opened.understand()?;
    let folder = tempfile::tempdir()?;
    let honest = folder.path().join("honest");
    let found = baked(&opened, &honest, (&direction, &direction), &ids, &|_| ())?;
    assert_eq!(found.failures, Vec::<String>::new());
    // an attribute of a wrong type, which Lancet does not read
    let file = honest.join(opened.files.relative());
    let mut model = ModelProto::decode(std::fs::read(&file)?.as_slice())?;
    let node = model.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op() == "Softmax").unwrap();
    node.attribute.retain(|a| a.name.as_deref() != Some("axis"));
    node.attribute.push(AttributeProto {
        name: Some("axis".into()),
        s: Some(b"last".to_vec()),
        r#type: Some(3),
        ..Default::default()
    });
    std::fs::write(&file, model.encode_to_vec())?;
    let broken = written(&opened, &honest)?;
    let found = prove(&consumer, (&opened, &base), (&broken, broken.understand().as_ref()), &direction)?;
    assert!(found.failures.iter().any(|f| f.contains("does not load")), "{found:?}");
    Ok(())
}

/// What ONNX Runtime loads is not what Lancet read: the file is changed after it was opened.
fn what_is_looked_at() -> Result<(), Failed> {
    let (ids, direction) = quantised();
    let never = AtomicBool::new(false);
    let consumer = Consumer { runtime: runtime(), prompts: &ids, cancelled: &never };
    let opened = Opened::new(&common::fixture("quant/nbits4-b32-sym.onnx"))?;
    let folder = tempfile::tempdir()?;
    let found = baked(&opened, folder.path(), (&direction, &direction), &ids, &|_| ())?;
    assert_eq!(found.failures, Vec::<String>::new());
    let written = written(&opened, folder.path())?;
    let file = folder.path().join(opened.files.relative());
    let mut bytes = std::fs::read(&file)?;
    let model = ModelProto::decode(bytes.as_slice())?;
    let mut scales = model.graph.as_ref().unwrap().initializer.iter().filter_map(|tensor| {
        let raw =
            tensor.raw_data.as_ref().filter(|raw| tensor.dims.len() == 1 && raw.len() == 4 * direction.width())?;
        Some(raw.as_slice())
    });
    let scale = scales.next_back().expect("the scale of a norm");
    let at = bytes.windows(scale.len()).position(|window| window == scale).expect("it lies in the file");
    // another scale for half of the channels
    for value in bytes[at..at + scale.len() / 2].as_chunks_mut::<4>().0 {
        *value = (f32::from_le_bytes(*value) * 1.5).to_le_bytes();
    }
    std::fs::write(&file, bytes)?;
    let base = opened.understand()?;
    let found = prove(&consumer, (&opened, &base), (&written, written.understand().as_ref()), &direction)?;
    assert!(found.failures.iter().any(|f| f.contains("computes other logits")), "{found:?}");
    Ok(())
}

/// The honest edit passes; the one that leaves out a single writer fails, whichever it is.
fn every_writer(path: &Path, direction: &Edit, ids: &[Vec<u32>]) -> Result<(), Failed> {
    let opened = Opened::new(path)?;
    let folder = tempfile::tempdir()?;
    let found = baked(&opened, &folder.path().join("honest"), (direction, direction), ids, &|_| ())?;
    if std::env::var_os("LANCET_SHOW").is_some() {
        println!("{} {found:?}", path.display());
    }
    if !found.failures.is_empty() {
        return Err(found.failures.join("; ").into());
    }
    let writers = opened.understand()?.lm.writers;
    let mut missed = Vec::new();
    for (index, _) in writers.iter().enumerate().filter(|(_, writer)| writer.treatment != Treatment::Elsewhere) {
        let out = folder.path().join(index.to_string());
        let found = baked(&opened, &out, (direction, direction), ids, &|understood| {
            understood.lm.writers.remove(index);
        })?;
        if std::env::var_os("LANCET_SHOW").is_some() {
            println!("{} without {index}: {:?} {:?}", path.display(), found.failures, found.stream);
        }
        if found.failures.is_empty() {
            missed.push(format!("writer {index} left out: {:?}", found.stream));
        }
    }
    // weights that are square along both axes, edited along the other one
    let turn = |understood: &mut Understood<'_>| {
        let mut any = false;
        for target in understood.lm.writers.iter_mut().flat_map(|writer| &mut writer.weights) {
            let shape = target.shape(&opened.model);
            if target.quantised.is_none() && shape.len() == 2 && shape[0] == shape[1] {
                target.axis = 1 - target.axis;
                any = true;
            }
        }
        any
    };
    if turn(&mut opened.understand()?) {
        let out = folder.path().join("turned");
        let found = baked(&opened, &out, (direction, direction), ids, &|understood| {
            turn(understood);
        })?;
        if found.failures.is_empty() {
            missed.push(format!("square weights edited along the wrong axis: {:?}", found.stream));
        }
    }
    let found = baked(&opened, &folder.path().join("another"), (&another(direction), direction), ids, &|_| ())?;
    if found.failures.is_empty() {
        missed.push(format!("another direction ablated: {:?}", found.stream));
    }
    if missed.is_empty() { Ok(()) } else { Err(missed.join("; ").into()) }
}
