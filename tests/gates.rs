//! Gated terms in every export of the zoo: what the written file's stream holds is what float64 makes of PyTorch's, its
//! logits are those of run-time steering, and a proof that is given another term fails.

mod common;
#[path = "common/zoo.rs"]
#[allow(dead_code, reason = "only entries and references are used")]
mod zoo;

use std::sync::atomic::AtomicBool;

use common::{bake_options, runtime};
use lancet::edit::{Ablation, Direction, Edit, Factor, GatedTerm, RadialBasis, Reading, Shape};
use lancet::instrument::Request;
use lancet::lm::ResidPoint;
use lancet::pipeline::consumer::{Consumer, prove};
use lancet::pipeline::engine::{Engine, Row, Silent};
use lancet::pipeline::{BakeOptions, Opened, bake_only, check, direction_file};

/// A vector without a pattern, of length 1.
fn vector(seed: usize, width: usize) -> Vec<f64> {
    let values: Vec<f64> = (0..width).map(|i| ((i * i + 7 * seed * i + 3 * seed + 11) as f64 * 0.618).sin()).collect();
    let length = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    values.iter().map(|v| v / length).collect()
}

/// A factor that is half open in the mean over `rows`.
fn factor(weights: &[f64], rows: &[Vec<f64>], shape: Shape) -> Factor {
    let along: Vec<f64> = rows.iter().map(|x| x.iter().zip(weights).map(|(x, w)| x * w).sum()).collect();
    let mean = along.iter().sum::<f64>() / along.len() as f64;
    let spread = (along.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / along.len() as f64).sqrt().max(1e-6);
    let weights: Vec<f64> = weights.iter().map(|w| w / (2.0 * spread)).collect();
    Factor::linear(weights, 0.5 - mean / (2.0 * spread), shape)
}

/// A factor that is open near some of the rows, half of it in the mean over a few of them.
fn near(rows: &[Vec<f64>]) -> Factor {
    let width = rows[0].len();
    let read: Vec<Factor> = (0..3).map(|at| factor(&vector(20 + at, width), rows, Shape::Identity)).collect();
    let place = |x: &Vec<f64>| read.iter().map(|one| one.of(x)).collect::<Vec<f64>>();
    let weights = [0.9, -0.4, 0.7, 1.1];
    let basis = RadialBasis {
        projection: read.iter().flat_map(|one| one.reading.linear().unwrap().to_vec()).collect(),
        shift: read.iter().map(|one| one.offset).collect(),
        centers: (0..weights.len()).flat_map(|at| place(&rows[at * rows.len() / weights.len()])).collect(),
        weights: weights.to_vec(),
    };
    Factor { reading: Reading::Radial(basis), offset: -0.2, shape: Shape::Clipped }
}

/// Three terms for one layer: a clipped factor times a ReLU, then a plain linear one, then one with radial basis functions;
/// each about as long as a tenth of the stream.
fn terms(layer: usize, rows: &[Vec<f64>]) -> Vec<GatedTerm> {
    let width = rows[0].len();
    let square: f64 = rows.iter().flatten().map(|x| x * x).sum::<f64>() / rows.len() as f64;
    let along = |seed, share: f64| vector(seed, width).iter().map(|v| share * square.sqrt() * v).collect();
    let two = [Shape::Clipped, Shape::Relu].map(|shape| factor(&vector(shape as usize, width), rows, shape));
    let one = factor(&vector(5, width), rows, Shape::Identity);
    vec![
        GatedTerm::new(layer, along(6, 0.1), two.to_vec()).unwrap().rounded(),
        GatedTerm::new(layer, along(8, 0.03), vec![one]).unwrap().rounded(),
        GatedTerm::new(layer, along(9, 0.1), vec![near(rows)]).unwrap().rounded(),
    ]
}

/// How one export fared.
#[derive(Default)]
struct Fared {
    failures: Vec<String>,
    /// Positions at which the clipped factor is neither shut nor wide open.
    between: usize,
    /// Nothing but products reads the stream at that layer: the model norms what it writes, not what it reads.
    unread: bool,
}

/// Hands on `resid_pre` of a layer: prompt, position, and the vector there.
fn stream(
    engine: &Engine<'_>,
    layer: usize,
    prompts: &[Vec<u32>],
    mut each: impl FnMut(usize, usize, &[f32]),
) -> Result<(), lancet::Error> {
    let (probes, width) = (vec![(layer, ResidPoint::Pre)], engine.model.lm.d_model());
    let request = Request { probes, last_positions: prompts[0].len(), ..Request::default() };
    let rows: Vec<Row<'_>> = prompts.iter().map(|ids| Row { tokens: ids, direction: 0 }).collect();
    engine.visit(&mut engine.session(request)?, &rows, &[], |found| {
        let positions = found.probes[0].chunks_exact(width).enumerate();
        positions.for_each(|(position, x)| each(found.row, position, x));
        Ok(())
    })
}

fn check_one(entry: &zoo::Entry) -> Result<Fared, lancet::Error> {
    let mut fared = Fared::default();
    let opened = Opened::new(&zoo::zoo().join(entry.model.as_ref().unwrap()))?;
    let model = opened.understand()?;
    let reference = zoo::reference(&entry.arch);
    let (layer, width) = (model.lm.n_layers() - 1, reference.d_model);
    let (prompts, n_pos) = (reference.ids.len(), reference.ids[0].len());
    let mut rows: Vec<Vec<f64>> = reference.resid_pre[layer * prompts * n_pos * width..][..prompts * n_pos * width]
        .chunks_exact(width)
        .map(|row| row.iter().map(|x| f64::from(*x)).collect())
        .collect();
    let never = AtomicBool::new(false);
    let plain = Engine { runtime: runtime(), model: &model, batch: 2, pad: 0, cancelled: &never, steered: None };
    if model.writers().any(|(_, writer)| writer.weights.iter().any(|weight| weight.quantised.is_some())) {
        // PyTorch ran the weights before they were quantised
        stream(&plain, layer, &reference.ids, |row, position, x| {
            rows[row * n_pos + position] = x.iter().map(|x| f64::from(*x)).collect();
        })?;
    }
    let terms = terms(layer, &rows);
    let opens = &terms[0].factors()[0];
    fared.between = rows.iter().filter(|x| (0.01..0.99).contains(&opens.of(x))).count();
    let edit = Edit::new(None, vec![], terms.clone())?;

    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = bake_options(&out, &never);
    let row = bake_only(&opened, &edit, &options, &Silent)?;
    fared.failures.extend(row.verify.failures);
    let mut written = Opened::new(&out.join(opened.files.relative()))?;
    written.config = opened.config;
    let out_model = written.understand()?;
    if (out_model.lm.n_layers(), out_model.lm.d_model()) != (model.lm.n_layers(), width) {
        fared.failures.push("the written file is understood as another model".into());
    }

    // the stream of the written file, against PyTorch's through the terms
    let engine = Engine { model: &out_model, ..plain };
    let largest = rows.iter().flatten().fold(0.0f64, |most, x| most.max(x.abs()));
    let mut worst = 0.0f64;
    stream(&engine, layer, &reference.ids, |row, position, x| {
        let mut wanted = rows[row * n_pos + position].clone();
        terms.iter().for_each(|term| _ = term.apply(&mut wanted));
        worst = x.iter().zip(&wanted).fold(worst, |worst, (x, want)| worst.max((f64::from(*x) - want).abs()));
    })?;
    // what an export in this type is off PyTorch itself, times what the factors make of it
    let bound = match entry.dtype.as_str() {
        "float16" => 0.03,
        "bfloat16" => 0.2,
        _ => 1e-4,
    };
    if worst.is_nan() || worst > bound * largest {
        fared.failures.push(format!("the stream is {worst:.2e} off float64, of {largest:.2e}"));
    }

    let found = check::logits(&plain, &engine, &edit, &reference.ids)?;
    if found.max_abs_logit_diff.is_nan() || found.max_abs_logit_diff > found.bound {
        fared.failures.push(format!("logits differ from run-time steering: {found:?}"));
    }
    let consumer = Consumer { runtime: runtime(), prompts: &reference.ids, cancelled: &never };
    let proved = |edit: &Edit| prove(&consumer, (&opened, &model), (&written, Ok(&out_model)), edit);
    let honest = proved(&edit)?;
    fared.failures.extend(honest.failures);
    if honest.unchecked.iter().any(|one| one.contains("nothing reads the stream at layer")) {
        fared.unread = true;
        return Ok(fared);
    }
    fared.failures.extend(honest.unchecked.into_iter().filter(|one| one.contains("what is added")));
    // a threshold that is a quarter of the ramp away, and known activations that weigh more
    let mut factors = terms[0].factors().to_vec();
    factors[0].offset += 0.25;
    let moved = GatedTerm::new(layer, terms[0].vector().to_vec(), factors)?;
    let Factor { reading, offset, shape } = terms[2].factors()[0].clone();
    let heavier = Factor { reading: reading.scaled(1.3), offset, shape };
    let heavier = GatedTerm::new(layer, terms[2].vector().to_vec(), vec![heavier])?;
    for (at, other) in [(0, moved), (2, heavier)] {
        let mut others = terms.clone();
        others[at] = other;
        if !proved(&Edit::new(None, vec![], others)?)?
            .failures
            .iter()
            .any(|failure| failure.contains("what the edit makes of it"))
        {
            fared.failures.push(format!("a proof with another term {at} passes"));
        }
    }
    Ok(fared)
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn terms_bake_as_they_run() {
    let (mut failures, mut refused, mut unread, mut checked) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for entry in zoo::entries().into_iter().filter(|entry| entry.model.is_some() && entry.runs()) {
        let name = format!("{}::{} ({})", entry.arch, entry.exporter, entry.dtype);
        match check_one(&entry) {
            Err(error) => refused.push(format!("{name}: {}", error.chain())),
            Ok(fared) => {
                checked += 1;
                unread.extend(fared.unread.then(|| entry.arch.clone()));
                failures.extend(fared.failures.iter().map(|failure| format!("{name}: {failure}")));
                if fared.between == 0 {
                    failures.push(format!("{name}: the gate is nowhere between shut and open, so nothing is shown"));
                }
            }
        }
    }
    println!("{checked} checked, refused: {refused:#?}");
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(checked >= 100, "{checked}");
    // one body of a function serves several layers, and its nodes would change them all
    assert!(refused.iter().all(|one| one.contains("calls of which 1 need them")), "{refused:#?}");
    assert!(unread.iter().all(|arch| arch == "olmo2"), "{unread:?}");
}

/// A direction beside a gated term: both are in the file, and it computes what steering does.
#[test]
fn a_direction_and_a_term_go_together() {
    let opened = Opened::new(&common::fixture("chat/model.onnx")).unwrap();
    let model = opened.understand().unwrap();
    let width = model.lm.d_model();
    let factor = |seed, shape| Factor::linear(vector(seed, width), 0.3, shape);
    let term = GatedTerm::new(4, vector(9, width), vec![factor(2, Shape::Clipped), factor(3, Shape::Relu)]).unwrap();
    let ablation = Ablation::new(Direction::new(vector(4, width)).unwrap());
    let edit = direction_file::as_stored(&Edit::new(Some(ablation), vec![], vec![term]).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (out, never) = (folder.path().join("out"), AtomicBool::new(false));
    let options = bake_options(&out, &never);
    let row = bake_only(&opened, &edit, &options, &Silent).unwrap();
    assert!(row.verify.passed, "{:?}", row.verify.failures);
    let mut written = Opened::new(&out.join("model.onnx")).unwrap();
    written.config = opened.config;
    let out_model = written.understand().unwrap();
    let engine = Engine { runtime: runtime(), model: &model, batch: 2, pad: 0, cancelled: &never, steered: None };
    let prompts = vec![vec![5, 9, 300, 17, 44], vec![8, 2, 1000, 64, 31, 7]];
    let found = check::logits(&engine, &Engine { model: &out_model, ..engine }, &edit, &prompts).unwrap();
    assert!(found.max_abs_logit_diff <= found.bound && found.max_stream_leak <= found.leak_bound, "{found:?}");
    // twice would act twice
    let again = BakeOptions { out: &folder.path().join("again"), ..options };
    let error = bake_only(&written, &edit, &again, &Silent).unwrap_err();
    assert!(error.chain().contains("would act twice"), "{}", error.chain());
    // without its term, steering computes something else
    let half = Edit::from(edit.ablation().unwrap().clone());
    let found = check::logits(&engine, &Engine { model: &out_model, ..engine }, &half, &prompts).unwrap();
    assert!(found.max_abs_logit_diff > 10.0 * found.bound, "{found:?}");
    let consumer = Consumer { runtime: runtime(), prompts: &prompts, cancelled: &never };
    let proof = prove(&consumer, (&opened, &model), (&written, Ok(&out_model)), &edit).unwrap();
    assert!(proof.failures.is_empty(), "{proof:?}");
    // the terms' own numbers cannot be held to the base's where the stream before them changes
    assert!(proof.unchecked.iter().any(|one| one.contains("numbers of the gated terms")), "{proof:?}");
}
