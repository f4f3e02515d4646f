//! Times the stages of a bake on one model: `cargo run --release --example bench_stages -- MODEL.onnx DIRECTION.npy`.
//!
//! Prints the median of five runs of each: writing the edited file alone, with checksums, with the sync to
//! disk, and the comparison of every byte afterwards; and a plain copy of the file, in turn with them. For a quantised
//! model also how many weights are rounded a second while it is written.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use lancet::bake::{ApplyOptions, BakePlan, Durability, PlanOptions, apply, verify_bytes};
use lancet::lm::LanguageModel;
use lancet::onnx::{Graph, Model};
use lancet::pipeline::{Opened, direction_file};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, direction] = arguments.as_slice() else {
        return Err("usage: bench_stages MODEL.onnx DIRECTION.npy".into());
    };
    let opened = Opened::new(Path::new(model))?;
    let graph = Graph::new(&opened.model);
    let lm = LanguageModel::new(&graph, &opened.config)?;
    let plan = BakePlan::new(&graph, &lm, &direction_file::load(Path::new(direction))?, &PlanOptions::default())?;
    let beside = opened.files.onnx.parent().ok_or("no folder")?.parent().ok_or("no folder above")?;
    let cancelled = AtomicBool::new(false);
    let mut rows: Vec<(&str, Vec<f64>)> =
        ["copy", "write", "write, checksums", "write, checksums, sync", "compare"].map(|n| (n, Vec::new())).into();
    // the quantised weights alone, the float ones copied
    let mut quantised = plan.clone();
    quantised.tensors.retain(|edit| edit.quantised.is_some());
    if !quantised.tensors.is_empty() {
        rows.push(("write, quantised only", Vec::new()));
    }
    for run in 0..6 {
        for row in &mut rows {
            let folder = tempfile::tempdir_in(beside)?;
            let out = folder.path().join("model.onnx");
            let options = |hash, sync| ApplyOptions {
                hash,
                sync: if sync { Durability::Now } else { Durability::Never },
                ..ApplyOptions::new(&cancelled)
            };
            let mut started = Instant::now();
            match row.0 {
                "copy" => drop(std::fs::copy(&opened.files.onnx, &out)?),
                "write, quantised only" => {
                    drop(apply(&opened.model, &quantised, folder.path(), &options(false, false), &|_, _| ())?)
                }
                "write" => drop(apply(&opened.model, &plan, folder.path(), &options(false, false), &|_, _| ())?),
                "write, checksums" => {
                    drop(apply(&opened.model, &plan, folder.path(), &options(true, false), &|_, _| ())?)
                }
                "compare" => {
                    apply(&opened.model, &plan, folder.path(), &options(false, false), &|_, _| ())?;
                    let written = Model::open(&out)?;
                    started = Instant::now();
                    assert!(verify_bytes(&opened.model, &written, &plan)?.passed());
                }
                _ => drop(apply(&opened.model, &plan, folder.path(), &options(true, true), &|_, _| ())?),
            }
            if run > 0 {
                row.1.push(started.elapsed().as_secs_f64());
            }
        }
    }
    let median = |times: &[f64]| {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let copy = median(&rows[0].1);
    for (name, times) in &rows {
        println!("{name:24} {:6.2} s   {:5.2} x copy", median(times), median(times) / copy);
    }
    let rounded: u64 = plan.tensors.iter().filter_map(|t| Some(t.quantised?.shape().iter().product::<u64>())).sum();
    if rounded > 0 {
        let million = rounded as f64 / 1e6;
        println!(
            "{million:.0} million quantised weights rounded, {:.0} million a second",
            million / median(&rows[5].1)
        );
    }
    Ok(())
}
