//! Several directions, chosen writes and several additions in every export of the zoo: the written file's stream is
//! looked at, its logits are those of run-time steering, and a proof that is given another edit fails.

mod common;
#[path = "common/zoo.rs"]
#[allow(dead_code, reason = "only entries and references are used")]
mod zoo;

use std::sync::atomic::AtomicBool;

use common::{bake_options, runtime};
use lancet::bake::{PlanOptions, QuantisedMode};
use lancet::edit::{Ablation, Addition, Direction, Edit, Writes};
use lancet::instrument::Request;
use lancet::lm::ResidPoint;
use lancet::pipeline::consumer::{Consumer, prove};
use lancet::pipeline::engine::{Engine, Row, Silent};
use lancet::pipeline::{BakeOptions, Opened, Understood, bake_only, check, direction_file};

/// A vector without a pattern.
fn vector(seed: usize, width: usize) -> Vec<f64> {
    (0..width).map(|i| ((i * i + 7 * seed * i + 3 * seed + 11) as f64 * 0.618).sin()).collect()
}

/// Two orthonormal directions, the second of them by half where `partial`.
fn span(width: usize, partial: bool) -> Ablation {
    let directions = [1, 2].map(|seed| Direction::new(vector(seed, width)).unwrap());
    Ablation::of_span(directions.to_vec()).unwrap().with_strengths(if partial { &[1.0, 0.5] } else { &[1.0, 1.0] })
}

fn dot(x: &[f32], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * y).sum()
}

fn length(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// `resid_pre` of every layer and the last `resid_post`, by prompt: each `[n_pos, d_model]`.
fn streams(engine: &Engine<'_>, prompts: &[Vec<u32>]) -> Result<Vec<Vec<Vec<f32>>>, lancet::Error> {
    let layers = engine.model.lm.n_layers();
    let mut probes: Vec<_> = (0..layers).map(|layer| (layer, ResidPoint::Pre)).collect();
    probes.push((layers - 1, ResidPoint::Post));
    let request = Request { probes, last_positions: prompts[0].len(), ..Request::default() };
    let rows: Vec<Row<'_>> = prompts.iter().map(|ids| Row { tokens: ids, direction: 0 }).collect();
    let mut all = vec![Vec::new(); prompts.len()];
    engine.visit(&mut engine.session(request)?, &rows, &[], |found| {
        all[found.row] = found.probes;
        Ok(())
    })?;
    Ok(all)
}

/// One export while it is looked at.
struct Export<'a> {
    opened: &'a Opened,
    model: &'a Understood<'a>,
    engine: Engine<'a>,
    prompts: &'a [Vec<u32>],
    /// Whether vectors are held so finely that the proof tells two apart which differ by a fifth.
    fine: bool,
    failures: Vec<String>,
}

impl Export<'_> {
    /// Bakes the edit, holds it to run-time steering and to the proof, hands the streams of base and output to `look`, and
    /// sees the proof of another edit fail.
    fn bake(
        &mut self,
        what: &str,
        (edit, other): (&Edit, &Edit),
        look: impl Fn(&[Vec<f32>], &[Vec<f32>]) -> Result<(), String>,
    ) -> Result<(), lancet::Error> {
        let edit = &direction_file::as_stored(edit)?;
        let folder = tempfile::tempdir().unwrap();
        let (out, never) = (folder.path().join("out"), AtomicBool::new(false));
        // rounding of quantised weights has bounds of its own (tests/quantised.rs)
        let options = BakeOptions { quantised: QuantisedMode::Nodes, ..bake_options(&out, &never) };
        let row = bake_only(self.opened, edit, &options, &Silent)?;
        let mut failures = row.verify.failures;
        let mut written = Opened::new(&out.join(self.opened.files.relative()))?;
        written.config.clone_from(&self.opened.config);
        let understood = written.understand()?;
        let after = Engine { model: &understood, ..self.engine };
        let found = check::logits(&self.engine, &after, edit, self.prompts)?;
        if found.max_abs_logit_diff.is_nan() || found.max_abs_logit_diff > found.bound {
            failures.push(format!("logits differ from run-time steering: {found:?}"));
        }
        if found.max_stream_leak.is_nan() || found.max_stream_leak > found.leak_bound {
            failures.push(format!("the stream differs along a direction from run-time steering: {found:?}"));
        }
        for (was, is) in streams(&self.engine, self.prompts)?.iter().zip(streams(&after, self.prompts)?) {
            failures.extend(look(was, &is).err());
        }
        let consumer = Consumer { runtime: runtime(), prompts: self.prompts, cancelled: &never };
        let proved = |edit: &Edit| prove(&consumer, (self.opened, self.model), (&written, Ok(&understood)), edit);
        let proof = proved(edit)?;
        failures.extend(proof.failures);
        // where the stream is read at the layer of an addition, its numbers are proved too
        let unread = proof.unchecked.iter().any(|one| one.contains("nothing reads the stream"));
        if edit.ablation().is_none() && !unread && self.fine && proved(other)?.failures.is_empty() {
            failures.push("the proof of another vector passes as well".into());
        }
        let options = PlanOptions { quantised: QuantisedMode::Nodes, ..PlanOptions::default() };
        let plans = self.model.plan(&direction_file::as_stored(other)?, &options)?;
        if plans.verify(self.opened, &written)?.passed() {
            failures.push("the bytes of another edit pass as well".into());
        }
        self.failures.extend(failures.into_iter().map(|failure| format!("{what}: {failure}")));
        Ok(())
    }
}

/// The edits of one export. Returns what failed, and what was refused.
fn check_one(entry: &zoo::Entry) -> Result<(Vec<String>, Vec<String>), lancet::Error> {
    let opened = Opened::new(&zoo::zoo().join(entry.model.as_ref().unwrap()))?;
    let model = opened.understand()?;
    let reference = zoo::reference(&entry.arch);
    let (layers, width) = (model.lm.n_layers(), reference.d_model);
    let never = AtomicBool::new(false);
    let engine = Engine { runtime: runtime(), model: &model, batch: 2, pad: 0, cancelled: &never, steered: None };
    let fine = entry.dtype != "bfloat16";
    let mut export =
        Export { opened: &opened, model: &model, engine, prompts: &reference.ids, fine, failures: Vec::new() };
    // what a sum in this type keeps of a write that holds nothing
    let rounding = match entry.dtype.as_str() {
        "float16" => 5e-3,
        "bfloat16" => 4e-2,
        _ => 2e-4,
    };
    let whole = span(width, false);
    let units = whole.units();
    let units: Vec<&[f64]> = units.chunks(width).collect();
    let mut refused = Vec::new();
    let mut take = |result: Result<(), lancet::Error>| refused.extend(result.err().map(|error| error.chain()));

    // nothing is left along either direction, anywhere
    let other = Edit::from(Ablation::new(whole.vectors()[0].direction().clone()));
    take(export.bake("span", (&whole.clone().into(), &other), |_, is| {
        for (at, values) in is.iter().enumerate() {
            for x in values.chunks_exact(width) {
                if let Some(left) = units.iter().map(|q| dot(x, q).abs()).find(|left| *left > rounding * length(x)) {
                    return Err(format!("{left:.2e} of {:.2e} is left at value {at}", length(x)));
                }
            }
        }
        Ok(())
    }));

    // the last layer adds nothing along either direction, the one before it does
    let last = Writes::of_layers([layers - 1]);
    let scoped = Edit::from(whole.clone().on(last.clone()));
    let partly = Edit::from(span(width, true).on(last));
    take(export.bake("writes of one layer", (&scoped, &partly), |was, is| {
        let adds = |of: &[Vec<f32>], layer: usize, q: &[f64]| {
            let rows = of[layer].chunks_exact(width).zip(of[layer + 1].chunks_exact(width));
            rows.map(|(before, after)| (dot(after, q) - dot(before, q)).abs() / length(after).max(length(before)))
                .fold(0.0, f64::max)
        };
        for q in &units {
            let (own, base) = (adds(is, layers - 1, q), adds(was, layers - 1, q));
            if own > rounding {
                return Err(format!("the last layer adds {own:.2e} along a direction, in the base {base:.2e}"));
            }
            for layer in 0..layers - 1 {
                let (own, base) = (adds(is, layer, q), adds(was, layer, q));
                if (own - base).abs() > rounding {
                    return Err(format!("layer {layer} adds {own:.2e} along a direction, in the base {base:.2e}"));
                }
            }
        }
        Ok(())
    }));

    // a vector joins the stream at the first layer that can take one, and another what leaves the last block
    if layers > 1 {
        let addition = |layer: usize, alpha| Addition { vector: vector(layer + 3, width), layer, position: -1, alpha };
        let both = Edit::new(None, vec![addition(1, 0.05), addition(layers, 0.1)], vec![])?;
        let one = Edit::new(None, vec![addition(1, 0.06), addition(layers, 0.1)], vec![])?;
        let vectors = both.additions().to_vec();
        take(export.bake("additions", (&both, &one), |was, is| {
            let (before, after) = (was[1].chunks_exact(width), is[1].chunks_exact(width));
            let scaled = vectors[0].scaled();
            for (x, y) in before.zip(after) {
                let wrong = |((x, y), v): ((&f32, &f32), &f64)| (f64::from(*y) - f64::from(*x) - v).abs();
                let off = x.iter().zip(y).zip(&scaled).map(wrong).fold(0.0, f64::max);
                if off > rounding * length(x).max(1.0) {
                    return Err(format!("the stream of layer 1 is off what was added by {off:.2e}"));
                }
            }
            Ok(())
        }));
    }
    Ok((export.failures, refused))
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn spans_writes_and_additions_bake_as_they_run() {
    let (mut failures, mut refused, mut checked) = (Vec::new(), Vec::new(), 0);
    for entry in zoo::entries().into_iter().filter(|entry| entry.model.is_some() && entry.runs()) {
        let name = format!("{}::{} ({})", entry.arch, entry.exporter, entry.dtype);
        match check_one(&entry) {
            Err(error) => failures.push(format!("{name}: {}", error.chain())),
            Ok((failed, not_baked)) => {
                checked += 1;
                failures.extend(failed.iter().map(|failure| format!("{name}: {failure}")));
                refused.extend(not_baked.iter().map(|reason| format!("{name}: {reason}")));
            }
        }
    }
    println!("{checked} checked, refused: {refused:#?}");
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(checked >= 100, "{checked}");
    // one body of a function serves several layers; the branches of a merged decoder hold every write twice
    let known = ["calls of which", "a merged decoder holds every write twice"];
    assert!(refused.iter().all(|one| known.iter().any(|words| one.contains(words))), "{refused:#?}");
}
