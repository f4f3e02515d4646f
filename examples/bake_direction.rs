//! Takes a direction out of a model file, writes the result beside it, and compares every byte.
//!
//! ```sh
//! cargo run --example bake_direction -- MODEL.onnx DIRECTION.npy OUT
//! ```
//!
//! The direction is a `.safetensors` or `.npy` file with one vector of `d_model` numbers. `OUT` is a new folder. No ONNX
//! Runtime is needed. What this does not do, and `lancet bake` does: copy the tokenizer and the configs, run the written
//! file, or measure whether the model still refuses harmful prompts.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use lancet::bake::{ApplyOptions, BakePlan, PlanOptions, Staging, apply, verify_bytes};
use lancet::edit::Edit;
use lancet::lm::{LanguageModel, ModelConfig};
use lancet::onnx::{Graph, Model};
use lancet::pipeline::direction_file;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, direction, out] = arguments.as_slice() else {
        return Err("usage: bake_direction MODEL.onnx DIRECTION.npy OUT".into());
    };
    let direction = direction_file::load(Path::new(direction))?;
    let tensors = bake(Path::new(model), &direction, Path::new(out))?;
    println!("{tensors} tensors edited, every byte of `{out}` is as planned");
    Ok(())
}

/// Bakes `direction` into the model at `path` and publishes it as the folder `out`. Returns the number of edited tensors.
fn bake(path: &Path, edit: &Edit, out: &Path) -> Result<usize, Box<dyn Error>> {
    let model = Model::open(path)?;
    let graph = Graph::new(&model);
    let lm = LanguageModel::new(&graph, &ModelConfig::default()).map_err(|refusal| refusal.reason)?;

    // A plan is a value: it says which tensors change and which nodes are added, before anything is written.
    let plan = BakePlan::new(&graph, &lm, edit, &PlanOptions::default())?;

    // The files are written into a temporary folder and renamed to their place at the end.
    let staging = Staging::new(out, &model)?;
    let cancelled = AtomicBool::new(false);
    let edits = apply(&model, &plan, staging.path(), &ApplyOptions::new(&cancelled), &|_written, _total| ())?;

    // The edit is made again from the base, and every byte of the output is compared with it.
    let file = path.file_name().ok_or("the model has no file name")?;
    let report = verify_bytes(&model, &Model::open(&staging.path().join(file))?, &plan)?;
    if !report.passed() {
        return Err(format!("the written file is not as planned: {report:?}").into());
    }
    staging.publish()?;
    Ok(edits.len())
}

#[test]
fn the_bundled_model_loses_a_direction() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let direction = lancet::edit::Direction::new((1..=96).map(f64::from).collect()).unwrap();
    let base = Path::new("fixtures/chat/model.onnx");
    assert_eq!(bake(base, &direction.into(), &out).unwrap(), 13);
    // Only metadata were added to the file: the tensors are where they were.
    let length = |path: &Path| std::fs::metadata(path).unwrap().len();
    let grown = length(&out.join("model.onnx")) - length(base);
    assert!((1..1024).contains(&grown), "{grown} bytes more");
}
