//! `--method rank:K`, `probes:K`, `sra`, `ace`, `layers` and `va`: what each finds is computed again in plain float64, baked,
//! and proved.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::{fixture, json, lancet, onnx_runtime, onnxruntime_library};
use lancet::chat::{Chat, ChatOptions};
use lancet::edit::{Ablation, Edit};
use lancet::instrument::Request;
use lancet::lm::ResidPoint;
use lancet::method::prompts::{PromptClass, Split, abilities};
use lancet::pipeline::collect::{Activations, encode};
use lancet::pipeline::engine::{Engine, Row, Steering};
use lancet::pipeline::{Opened, Understood, direction_file, pad_token};
use lancet::runtime::session::{Device, Runtime};
use serde_json::Value;

/// Activations of the bundled chat model, and what each method makes of them.
struct Selected {
    folder: tempfile::TempDir,
}

impl Selected {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(extra: &[&str]) -> Self {
        onnx_runtime();
        let folder = tempfile::tempdir().unwrap();
        let mut collect = lancet();
        collect.arg("collect").arg(fixture("chat")).arg("--prompts").arg(fixture("chat/prompts")).args([
            "--n-train",
            "48",
            "--n-val",
            "12",
            "--n-test",
            "8",
        ]);
        collect.args(extra).arg("-o").arg(folder.path().join("acts")).assert().success();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The result of `select`, and the edit in its file.
    fn select(&self, method: &str) -> (Value, Edit) {
        self.select_with(method, method, &[])
    }

    fn select_with(&self, method: &str, file: &str, extra: &[&str]) -> (Value, Edit) {
        let mut command = lancet();
        command.arg("select").arg(fixture("chat")).arg("--activations").arg(self.path("acts")).args(extra);
        let result = json(command.args(["--json", "--method", method, "-o"]).arg(self.path(file)), 0);
        (result, direction_file::load(&self.path(file)).unwrap())
    }

    /// What `select` says where it fails with the exit code of usage.
    fn refused(&self, extra: &[&str]) -> String {
        let mut command = lancet();
        command.arg("select").arg(fixture("chat")).arg("--activations").arg(self.path("acts")).args(extra);
        let output = command.arg("-o").arg(self.path("none")).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{extra:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn activations(&self) -> Activations {
        Activations::load(&self.path("acts")).unwrap()
    }

    /// Bakes what a method found; the proof holds for it and for no other method's edit.
    fn bakes(&self, method: &str, other: &str) {
        let out = self.path(&format!("out-{method}"));
        let mut bake = lancet();
        bake.arg("bake").arg(fixture("chat")).arg("--direction").arg(self.path(method)).arg("-o").arg(&out);
        bake.assert().success();
        let verify = |direction: &str, code: i32| {
            let mut command = lancet();
            command.arg("verify").arg(fixture("chat")).arg(&out).arg("--json");
            json(command.arg("--direction").arg(self.path(direction)), code)
        };
        let proved = verify(method, 0);
        assert_eq!(proved["shared"]["passed"], true, "{method}");
        assert_eq!(verify(other, 1)["shared"]["passed"], false, "{method} beside {other}");
    }
}

/// What it takes to run the bundled chat model beside the command.
struct Ours {
    opened: Opened,
    runtime: Runtime,
    chat: Chat,
    never: AtomicBool,
}

impl Ours {
    fn new() -> Self {
        Self {
            opened: Opened::new(&fixture("chat").join("model.onnx")).unwrap(),
            runtime: Runtime::load(&onnxruntime_library(), Device::Cpu, 1).unwrap(),
            chat: Chat::load(&[&fixture("chat")], ChatOptions::default()).unwrap(),
            never: AtomicBool::new(false),
        }
    }

    fn engine<'a>(&'a self, model: &'a Understood<'a>, steered: Option<&'a Steering>) -> Engine<'a> {
        let Self { runtime, chat, never, .. } = self;
        Engine { runtime, model, batch: 1, pad: pad_token(chat), cancelled: never, steered }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn place(result: &Value) -> (i64, usize) {
    let selected = &result["selected"];
    (selected["position"].as_i64().unwrap(), usize::try_from(selected["layer"].as_u64().unwrap()).unwrap())
}

fn units(edit: &Edit) -> Vec<Vec<f64>> {
    edit.ablation().unwrap().vectors().iter().map(|one| one.unit().to_vec()).collect()
}

/// `resid_pre` of a prompt at a place, and the probability of each next token.
type Observed = (Vec<f64>, Vec<f64>);

/// Weights and offset of a linear function.
type Linear = (Vec<f64>, f64);

/// `resid_pre` of some prompts at a place, one after another in a session of its own, and the probability of each next
/// token.
fn rows_of(engine: &Engine<'_>, prompts: &[Vec<u32>], (position, layer): (i64, usize)) -> Vec<Observed> {
    let width = engine.model.lm.d_model();
    let back = usize::try_from(-position).unwrap();
    let probes = vec![(layer, ResidPoint::Pre)];
    let mut session =
        engine.session(Request { probes, last_positions: back, logits: 1, ..Request::default() }).unwrap();
    let mut rows = Vec::new();
    for tokens in prompts {
        engine
            .visit(&mut session, &[Row { tokens, direction: 0 }], &[], |found| {
                let x = &found.probes[0][found.probes[0].len() - back * width..][..width];
                let exp: Vec<f64> = found.logits.iter().map(|z| f64::from(*z).exp()).collect();
                let sum: f64 = exp.iter().sum();
                rows.push((x.iter().map(|x| f64::from(*x)).collect(), exp.iter().map(|e| e / sum).collect()));
                Ok(())
            })
            .unwrap();
    }
    rows
}

/// The mean of them.
fn mean_of(engine: &Engine<'_>, prompts: &[Vec<u32>], place: (i64, usize)) -> Vec<f64> {
    mean(&rows_of(engine, prompts, place).into_iter().map(|(x, _)| x).collect::<Vec<_>>())
}

fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    (0..rows[0].len()).map(|at| rows.iter().map(|row| row[at]).sum::<f64>() / rows.len() as f64).collect()
}

/// The discriminant of two classes from its definition, with the covariance of the channels within the classes, shrunk by a
/// tenth towards a multiple of the identity: weights and offset, 0 at the mean of `shut` and 1 at that of `open`.
fn discriminant(open: &[Vec<f64>], shut: &[Vec<f64>]) -> Linear {
    let d = open[0].len();
    let means = [open, shut].map(mean);
    let n = (open.len() + shut.len()) as f64;
    let mut covariance = vec![vec![0.0; d]; d];
    for (rows, mean) in [open, shut].iter().zip(&means) {
        for row in rows.iter() {
            let x = minus(row, mean);
            for (i, line) in covariance.iter_mut().enumerate() {
                line.iter_mut().zip(&x).for_each(|(c, y)| *c += x[i] * y / n);
            }
        }
    }
    let trace: f64 = (0..d).map(|at| covariance[at][at]).sum();
    for (i, line) in covariance.iter_mut().enumerate() {
        line.iter_mut().for_each(|c| *c *= 0.9);
        line[i] += 0.1 * trace / d as f64;
    }
    let w = solve(covariance, minus(&means[0], &means[1]));
    let (high, low) = (dot(&w, &means[0]), dot(&w, &means[1]));
    (w.iter().map(|w| w / (high - low)).collect(), -low / (high - low))
}

/// Solves `A x = b` by Gaussian elimination with pivots.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|i, j| a[*i][column].abs().total_cmp(&a[*j][column].abs())).unwrap();
        a.swap(column, pivot);
        b.swap(column, pivot);
        for row in column + 1..n {
            let share = a[row][column] / a[column][column];
            let above = a[column].clone();
            a[row].iter_mut().zip(&above).for_each(|(x, y)| *x -= share * y);
            b[row] -= share * b[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|at| a[row][at] * b[at]).sum();
        b[row] = (b[row] - known) / a[row][row];
    }
    b
}

#[test]
fn each_method_finds_what_its_equation_says() {
    let selected = Selected::new();
    let activations = selected.activations();
    let (published, wang) = selected.select("wang");
    let at = place(&published);
    let mean = |class: PromptClass, layer: usize| activations.of(class).mean(at.0, layer);
    let harmless = mean(PromptClass::Harmless, at.1);
    let w = minus(&mean(PromptClass::PseudoHarmful, at.1), &harmless);
    let r = minus(&mean(PromptClass::Harmful, at.1), &harmless);
    let unit = &units(&wang)[0];
    assert!(published["refined"].is_null());

    // one group is the published direction
    let (one, edit) = selected.select("rank:1");
    assert_eq!(place(&one), at);
    assert!(cosine(&units(&edit)[0], unit) > 1.0 - 1e-9);
    assert_eq!(one["refined"]["pseudo_harmful"][0], published["kept"]["pseudo_harmful"]);

    // several groups: orthonormal, and clear of true refusal
    let (three, edit) = selected.select("rank:3");
    let basis = units(&edit);
    assert_eq!(basis.len(), 3);
    assert_eq!(three["refined"]["cosines"].as_array().unwrap().len(), 3);
    for (i, a) in basis.iter().enumerate() {
        assert!(cosine(a, &r).abs() < 1e-5, "{}", cosine(a, &r));
        for (j, b) in basis.iter().enumerate() {
            assert!((dot(a, b) - f64::from(u8::from(i == j))).abs() < 1e-6);
        }
    }
    // with lambda 0 nothing is freed, and the span holds the difference of the means of all prompts together
    let (raw, edit) = selected.select_with("rank:3", "raw", &["--lambda", "0"]);
    let at_raw = place(&raw);
    let of = |class: PromptClass| activations.of(class).mean(at_raw.0, at_raw.1);
    let whole = minus(&of(PromptClass::PseudoHarmful), &of(PromptClass::Harmless));
    let within: f64 = units(&edit).iter().map(|q| dot(q, &whole).powi(2)).sum();
    assert!((within / dot(&whole, &whole) - 1.0).abs() < 1e-5, "{within}");

    // the harmless mean's component at every layer
    let (_, edit) = selected.select("ace");
    assert_eq!(units(&edit), units(&wang));
    let n_layers = activations.of(PromptClass::Harmless).shape().1;
    let mut component = 0.0;
    for layer in 1..n_layers {
        let added = edit.additions().iter().filter(|one| one.layer == layer);
        component += added.map(|one| dot(&one.scaled(), unit)).sum::<f64>();
        let wanted = dot(&mean(PromptClass::Harmless, layer), unit);
        assert!((component - wanted).abs() < 1e-5 * (1.0 + wanted.abs()), "layer {layer}: {component} for {wanted}");
    }
    assert!(edit.additions().iter().all(|one| cosine(&one.vector, unit).abs() > 1.0 - 1e-9));

    // what abilities have of the direction, by activations of a session of our own
    let (sra, edit) = selected.select("sra");
    let ours = Ours::new();
    let (model, chat) = (ours.opened.understand().unwrap(), &ours.chat);
    let engine = ours.engine(&model, None);
    let atoms: Vec<Vec<f64>> = abilities()
        .iter()
        .map(|ability| minus(&mean_of(&engine, &encode(chat, &ability.prompts).unwrap(), at), &harmless))
        .collect();
    let ridge = 0.01 * atoms.iter().map(|atom| dot(atom, atom)).sum::<f64>() / atoms.len() as f64;
    let gram = |i: usize, j: usize| dot(&atoms[i], &atoms[j]) + if i == j { ridge } else { 0.0 };
    let n = atoms.len();
    let weights = solve(
        (0..n).map(|i| (0..n).map(|j| gram(i, j)).collect()).collect(),
        atoms.iter().map(|atom| dot(atom, &w)).collect(),
    );
    let mut left = w.clone();
    for (atom, weight) in atoms.iter().zip(weights) {
        left.iter_mut().zip(atom).for_each(|(left, atom)| *left -= weight * atom);
    }
    let along = dot(&left, &r) / dot(&r, &r);
    left.iter_mut().zip(&r).for_each(|(left, r)| *left -= along * r);
    assert!(cosine(&units(&edit)[0], &left) > 1.0 - 1e-8, "{}", cosine(&units(&edit)[0], &left));
    assert!(cosine(&left, unit) < 1.0 - 1e-4, "the abilities take something off: {}", cosine(&left, unit));
    assert_eq!(sra["refined"]["abilities"].as_array().unwrap().len(), 5);

    // layers that leaving out costs more than a twentieth of the effect
    let (layers, edit) = selected.select("layers");
    let score = |value: &Value| value.as_f64().unwrap();
    let (base, all) = (score(&layers["baseline"]["refusal_score"]), score(&layers["selected"]["refusal_score"]));
    let groups = layers["refined"]["groups"].as_array().unwrap();
    let mut kept: Vec<usize> = Vec::new();
    for group in groups {
        let matters = score(&group["without"]) - all > 0.05 * (base - all);
        assert_eq!(group["ablated"], matters, "{group}");
        let of = |key: &str| usize::try_from(group[key].as_u64().unwrap()).unwrap();
        kept.extend((of("first")..=of("last")).filter(|_| matters));
    }
    let writes = edit.ablation().map(Ablation::writes).unwrap();
    assert!(!kept.is_empty() && kept.len() < n_layers, "{kept:?}");
    assert_eq!(writes.layers.as_ref().unwrap().iter().copied().collect::<Vec<_>>(), kept);
    assert_eq!(units(&edit), units(&wang));

    selected.bakes("rank:3", "rank:1");
    selected.bakes("ace", "wang");
    selected.bakes("layers", "wang");
    assert_eq!(names(&selected.path("out-layers")), names(&fixture("chat")));
}

/// Probes and discriminants from their definitions, on activations of a session of our own.
#[test]
fn discriminants_are_those_of_the_channels() {
    let selected = Selected::new();
    let activations = selected.activations();
    let ours = Ours::new();
    let (model, chat) = (ours.opened.understand().unwrap(), &ours.chat);
    let engine = ours.engine(&model, None);
    let tokens = &activations.info.refusal_tokens;
    let refused = |p: &[f64]| tokens.iter().map(|at| p[*at as usize]).sum::<f64>() > 0.5;
    let prompts = |class, split| encode(chat, activations.info.prompts.get(class, split)).unwrap();

    // probes: what the model refuses of the one class against what it answers of the other
    let (two, edit) = selected.select("probes:2");
    assert_eq!(two["refined"]["found"], 2);
    let at = place(&two);
    let kept = |class, wanted| -> Vec<Vec<f64>> {
        let rows = rows_of(&engine, &prompts(class, Split::Train), at);
        rows.into_iter().filter(|(_, p)| refused(p) == wanted).map(|(x, _)| x).collect()
    };
    let (mut open, mut shut) = (kept(PromptClass::PseudoHarmful, true), kept(PromptClass::Harmless, false));
    let mean_at = |class: PromptClass| activations.of(class).mean(at.0, at.1);
    let r = minus(&mean_at(PromptClass::Harmful), &mean_at(PromptClass::Harmless));
    let mut freed = Vec::new();
    for _ in 0..2 {
        let (w, _) = discriminant(&open, &shut);
        let length = dot(&w, &w).sqrt();
        let unit: Vec<f64> = w.iter().map(|w| w / length).collect();
        for row in open.iter_mut().chain(&mut shut) {
            let along = dot(row, &unit);
            row.iter_mut().zip(&unit).for_each(|(x, q)| *x -= along * q);
        }
        let share = dot(&unit, &r) / dot(&r, &r);
        freed.push(unit.iter().zip(&r).map(|(q, r)| q - share * r).collect::<Vec<f64>>());
    }
    let basis = units(&edit);
    assert_eq!(basis.len(), 2);
    assert!(cosine(&basis[0], &freed[0]) > 1.0 - 1e-6, "{}", cosine(&basis[0], &freed[0]));
    let within: f64 = basis.iter().map(|q| dot(q, &freed[1]).powi(2)).sum();
    assert!((within / dot(&freed[1], &freed[1]) - 1.0).abs() < 1e-6, "{within}");
    assert!(basis.iter().all(|q| cosine(q, &r).abs() < 1e-5));

    // va: the layer whose discriminants tell the validation prompts apart best, and the term from them
    let (va, edit) = selected.select("va");
    let auc = |high: &[f64], low: &[f64]| {
        let above = high.iter().flat_map(|a| low.iter().map(move |b| f64::from(a.total_cmp(b) as i8 + 1) / 2.0));
        above.sum::<f64>() / (high.len() * low.len()) as f64
    };
    let mut best: Option<(f64, usize, [Linear; 2], [f64; 2])> = None;
    for layer in 1..(model.lm.n_layers() as f64 * 0.8) as usize {
        let observed = [Split::Train, Split::Val]
            .map(|split| PromptClass::ALL.map(|class| (class, rows_of(&engine, &prompts(class, split), (-1, layer)))));
        let part = |split: usize, wanted: bool, answers: bool| -> Vec<Vec<f64>> {
            let of_class = |(class, rows): &(PromptClass, Vec<Observed>)| {
                let is_open = |p: &[f64]| if answers { !refused(p) } else { *class != PromptClass::Harmful };
                rows.iter().filter(|(_, p)| is_open(p) == wanted).map(|(x, _)| x.clone()).collect::<Vec<_>>()
            };
            observed[split].iter().flat_map(of_class).collect()
        };
        let found = [true, false].map(|answers| discriminant(&part(0, true, answers), &part(0, false, answers)));
        let aucs = [0, 1].map(|at| {
            let values = |wanted| -> Vec<f64> {
                part(1, wanted, at == 0).iter().map(|x| dot(&found[at].0, x) + found[at].1).collect()
            };
            auc(&values(true), &values(false))
        });
        let worth = aucs[0] + aucs[1];
        if best.as_ref().is_none_or(|(most, ..)| worth > most + 1e-9) {
            best = Some((worth, layer, found, aucs));
        }
    }
    let (_, layer, [(w, c), (u, e)], aucs) = best.unwrap();
    let told = &va["refined"];
    assert_eq!(told["layer"], layer, "{told}");
    for (key, auc) in ["answer_auc", "judge_auc"].iter().zip(aucs) {
        assert!((told[key].as_f64().unwrap() - auc).abs() < 1e-9, "{key}: {told} for {auc}");
    }
    assert!(edit.ablation().is_none() && edit.gates().len() == 1);
    let term = &edit.gates()[0];
    assert_eq!((term.layer(), term.factors().len()), (layer, 1));
    let length = dot(&w, &w);
    for (at, v) in term.vector().iter().enumerate() {
        assert!((v - w[at] / length).abs() < 1e-5 * (1.0 / length.sqrt()), "{at}: {v} for {}", w[at] / length);
    }
    let x = mean_of(&engine, &prompts(PromptClass::PseudoHarmful, Split::Test), (-1, layer));
    let wanted = dot(&minus(&u, &w), &x) + e - c;
    let amount = term.factors()[0].of(&x);
    assert!((amount - wanted).abs() < 1e-4 * (1.0 + wanted.abs()), "{amount} for {wanted}");

    selected.bakes("probes:2", "va");
    selected.bakes("va", "probes:2");
}

/// Without refusal tokens every prompt is kept, and candidates are compared by the activations that they leave.
#[test]
fn candidates_are_scored_by_activations_where_no_token_tells_refusals() {
    let selected = Selected::with(&["--refusal-tokens", "none"]);
    let activations = selected.activations();
    let (n_pos, n_layers, width) = activations.of(PromptClass::Harmless).shape();
    let (found, edit) = selected.select_with("wang", "cosmic", &["--score", "cosmic"]);
    assert_eq!((&found["score"], &found["kept"]), (&Value::from("cosmic"), &found["total"]));
    assert_eq!(found["refusal_tokens"].as_array().unwrap().len(), 0);
    let whole = |class: PromptClass, layer: usize| -> Vec<f64> {
        (1..=n_pos as i64).rev().flat_map(|back| activations.of(class).mean(-back, layer)).collect()
    };
    let alike = |layer: &usize| cosine(&whole(PromptClass::Harmful, *layer), &whole(PromptClass::Harmless, *layer));
    // a tenth of so few layers is one
    let layer = (0..n_layers).min_by(|a, b| alike(a).total_cmp(&alike(b))).unwrap();

    let ours = Ours::new();
    let (model, chat) = (ours.opened.understand().unwrap(), &ours.chat);
    let score = |class: PromptClass, edit: Option<&Edit>| {
        let steering = edit.map(Steering::of);
        let engine = ours.engine(&model, steering.as_ref());
        let probes = vec![(layer, ResidPoint::Pre)];
        let mut session = engine.session(Request { probes, last_positions: n_pos, ..Request::default() }).unwrap();
        let prompts = encode(chat, activations.info.prompts.get(class, Split::Val)).unwrap();
        let mut sum = 0.0;
        for tokens in &prompts {
            let row = [Row { tokens, direction: 0 }];
            let take = |found: lancet::pipeline::engine::RowResult| {
                let x: Vec<f64> = found.probes[0].iter().map(|x| f64::from(*x)).collect();
                assert_eq!(x.len(), n_pos * width);
                sum += cosine(&x, &whole(class, layer)) - cosine(&x, &whole(PromptClass::Harmless, layer));
                Ok(())
            };
            engine.visit(&mut session, &row, &[], take).unwrap();
        }
        sum / prompts.len() as f64
    };
    let told = |of: &str, key: &str| found[of][key].as_f64().unwrap();
    for (class, key) in [(PromptClass::PseudoHarmful, "refusal_score"), (PromptClass::Harmful, "harmful_refusal_score")]
    {
        let (before, after) = (score(class, None), score(class, Some(&edit)));
        assert!((told("baseline", key) - before).abs() < 1e-4, "{key}: {} for {before}", told("baseline", key));
        assert!((told("selected", key) - after).abs() < 1e-4, "{key}: {} for {after}", told("selected", key));
    }
    // the best of those that are left leaves the least
    let left = found["candidates"].as_array().unwrap().iter().filter(|one| one["discarded"].is_null());
    let scores: Vec<f64> = left.map(|one| one["refusal_score"].as_f64().unwrap()).collect();
    assert!(!scores.is_empty() && scores.iter().all(|one| *one >= told("selected", "refusal_score")), "{scores:?}");
    assert!(told("selected", "refusal_score") < told("baseline", "refusal_score"));

    assert!(selected.refused(&[]).contains("--score cosmic"));
    assert!(selected.refused(&["--score", "cosmic", "--method", "rank:2"]).contains("--method wang"));
    assert!(selected.refused(&["--score", "cosmic", "--add", "1"]).contains("--refusal-tokens"));
}

/// The model files of a folder.
fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files.filter(|name| name.ends_with(".onnx")).collect();
    names.sort();
    names
}

/// The whole job with such a method: published under the guard, told in the report, and found again by `verify`.
#[test]
fn a_run_with_a_further_method_is_told_and_proved() {
    onnx_runtime();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut run = lancet();
    run.arg("run").arg(fixture("chat")).arg("-o").arg(&out).args(["--json", "--method", "rank:2"]);
    run.arg("--prompts").arg(fixture("chat/prompts"));
    run.args(["--n-train", "48", "--n-val", "12", "--no-cost", "--kl-positions", "1"]);
    run.args(["--wrapped-prompts", "0", "--max-new-tokens", "12"]);
    let result = json(&mut run, 0);
    assert_eq!(result["shared"]["published"], true);
    let refined = &result["shared"]["select"]["refined"];
    assert_eq!((&refined["method"], refined["cosines"].as_array().unwrap().len()), (&Value::from("rank"), 2));
    let page = std::fs::read_to_string(out.join("lancet.html")).unwrap();
    assert!(page.contains("rank:2"), "the report tells the method");
    let mut verify = lancet();
    verify
        .arg("verify")
        .arg(fixture("chat"))
        .arg(&out)
        .arg("--direction")
        .arg(out.join("lancet.direction.safetensors"));
    verify.assert().success();
}

#[test]
fn a_method_that_there_is_not_is_refused() {
    for name in ["rank", "rank:0", "rank:17", "rank:x", "probes:0", "svd"] {
        let output = lancet().arg("run").arg(fixture("chat")).args(["-o", "x", "--method", name]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("rank:K") && told.contains("layers"), "{told}");
    }
    for extra in [&["--paper"][..], &["--add", "1"], &["--sweep", "0.5"]] {
        let mut run = lancet();
        run.arg("run").arg(fixture("chat")).args(["-o", "x", "--method", "ace"]).args(extra);
        let output = run.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{extra:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("--method wang"), "{extra:?}");
    }
}
