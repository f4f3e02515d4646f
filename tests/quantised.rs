//! Quantised models in every format, one test per file of `fixtures/quant`: what rounding makes of each writer, what is
//! left of the direction when ONNX Runtime runs the result, and that bakes are repeatable.

#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::runtime;
use common::snapshot;
use lancet::bake::QuantisedMode;
use lancet::bake::limits::MAX_NOISE;
use lancet::edit::{Ablation, Direction, Edit};
use lancet::instrument::Request;
use lancet::linalg::{dot_f32, norm};
use lancet::lm::ResidPoint;
use lancet::pipeline::engine::{Engine, Row, Silent};
use lancet::pipeline::{BakeOptions, Opened, bake_only};
use lancet::report::{BakeResult, EditResult, Reason, Treatment, VerifyResult};
use libtest_mimic::{Arguments, Failed, Trial};
use serde::Deserialize;

/// A file, as `tools/quant/random_models.py` and `random_genai.py` write it down.
#[derive(Debug, Clone, Deserialize)]
struct Entry {
    name: String,
    file: Option<PathBuf>,
    format: String,
    bits: u8,
    quantised_writers: usize,
    /// Whether ONNX Runtime's CPU provider runs it.
    run: bool,
    /// Whether it cannot be rounded.
    #[serde(default)]
    refuse: bool,
}

/// Largest share of the stream that may lie along the direction where weights are quantised: columns may keep 1e-3 of
/// their component, and that is some 0.14 of the stream at its worst place. Activations that are rounded before a product
/// change nothing here: they only mix columns that are orthogonal already.
const SHARE: f64 = 2e-4;

/// The same at 2 bits, where columns may keep 1e-2.
const SHARE_AT_2_BITS: f64 = 2e-3;

/// The same where the writes themselves are rounded to 8 bits when the model runs (static QDQ). A step is 1/255 of the
/// range, which is some 8 standard deviations, so rounding leaves 8 / 255 / sqrt(12) = 0.009 of a standard deviation along
/// any direction, beside a length of 16 of them: 6e-4 a rounding. Six lie on the path, and the worst position of
/// several is taken. No edit of the weights changes that.
const SHARE_OF_ROUNDED_WRITES: f64 = 5e-3;

/// The same with projections inserted and float32 values: rounding of the arithmetic.
const SHARE_OF_NODES: f64 = 1e-5;

impl Entry {
    fn path(&self) -> Option<PathBuf> {
        self.file.as_ref().map(|file| folder().join(file))
    }

    /// The stream itself is of integers.
    fn has_integer_stream(&self) -> bool {
        self.format.starts_with("QLinear")
    }

    /// Writes are rounded to 8 bits when the model runs.
    fn rounds_writes(&self) -> bool {
        self.format == "static QDQ"
    }

    /// Largest share of the stream that may be left.
    fn share(&self) -> f64 {
        match self.bits {
            _ if self.rounds_writes() => SHARE_OF_ROUNDED_WRITES,
            2 => SHARE_AT_2_BITS,
            _ => SHARE,
        }
    }

    fn is_half(&self) -> bool {
        self.name.contains("fp16") || self.name.ends_with("-cuda")
    }
}

fn folder() -> PathBuf {
    common::fixture("quant")
}

/// `tensor` of a safetensors file of the folder, as bytes.
fn stored(file: &str, tensor: &str) -> (Vec<usize>, Vec<u8>) {
    let bytes = std::fs::read(folder().join(file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(tensor).unwrap();
    (view.shape().to_vec(), view.data().to_vec())
}

fn direction() -> Direction {
    let (_, bytes) = stored("direction.safetensors", "direction");
    let values = bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
    Direction::new(values.collect()).unwrap()
}

/// The direction and two more, orthonormal.
fn span() -> Ablation {
    let width = direction().unit().len();
    let more = [1.0, 2.0].map(|seed| (0..width).map(|i| ((i * i) as f64 * 0.618 + seed * i as f64).sin()).collect());
    let [one, two] = more.map(|raw| Direction::new(raw).unwrap());
    Ablation::of_span(vec![direction(), one, two]).unwrap()
}

/// `[prompts][positions]`.
fn prompts() -> Vec<Vec<u32>> {
    let (shape, bytes) = stored("input_ids.safetensors", "input_ids");
    let ids: Vec<u32> =
        bytes.chunks_exact(8).map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap()).collect();
    ids.chunks_exact(shape[1]).map(<[u32]>::to_vec).collect()
}

/// An error with its causes.
fn words(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn main() {
    let arguments = Arguments::from_args();
    let text = std::fs::read_to_string(folder().join("index.json")).unwrap();
    let entries: Vec<Entry> = serde_json::from_str(&text).unwrap();
    assert!(entries.len() > 60, "the index lost its entries");
    let mut trials = vec![
        Trial::test("an_embedding_that_is_shared_with_the_head_is_edited_in_a_copy", untied),
        Trial::test("a_code_or_scale_that_changed_by_one_is_noticed", tampered),
    ];
    for (index, entry) in entries.into_iter().filter(|entry| entry.file.is_some()).enumerate() {
        let trial = Trial::test(entry.name.clone(), move || {
            let mut failures = Vec::new();
            check(&entry, &mut failures)?;
            if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
        });
        trials.push(trial.with_ignored_flag(common::is_left_out(index, 3)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// A bake of `path` into `out` by the direction, with the mode and without more nodes where told so.
fn bake(
    path: &Path,
    out: &Path,
    quantised: QuantisedMode,
    weights_only: bool,
) -> Result<(BakeResult, VerifyResult), lancet::Error> {
    bake_edit(path, out, quantised, weights_only, &direction().into())
}

/// The same for any edit.
fn bake_edit(
    path: &Path,
    out: &Path,
    quantised: QuantisedMode,
    weights_only: bool,
    edit: &Edit,
) -> Result<(BakeResult, VerifyResult), lancet::Error> {
    let never = AtomicBool::new(false);
    let opened = Opened::new(path)?;
    let options = BakeOptions {
        out,
        weights_only,
        quantised,
        max_rounding_error: None,
        runtime: None,
        sync: true,
        cancelled: &never,
    };
    bake_only(&opened, edit, &options, &Silent).map(|row| (row.bake, row.verify))
}

/// Where a bake of `path` into `out` puts the model.
fn baked(path: &Path, out: &Path) -> PathBuf {
    out.join(Opened::new(path).unwrap().files.relative())
}

fn check(entry: &Entry, failures: &mut Vec<String>) -> Result<(), Failed> {
    let path = entry.path().expect("entries without a file are left out");
    let temporary = tempfile::tempdir()?;
    let out = |name: &str| temporary.path().join(name);
    if entry.has_integer_stream() {
        for mode in [QuantisedMode::Auto, QuantisedMode::Round, QuantisedMode::Nodes] {
            match bake(&path, &out("never"), mode, false) {
                Ok(_) => failures.push(format!("{}: baked, although its stream is of integers", mode.name())),
                Err(error) => names_a_node(&words(&error), &path, failures),
            }
            if out("never").exists() {
                failures.push("a refused bake left something behind".into());
            }
        }
        return Ok(());
    }

    let (auto, verify) = bake(&path, &out("auto"), QuantisedMode::Auto, false)?;
    verified(&verify, "auto", failures);
    count(entry, &auto, failures);
    auto.edits.iter().filter(|row| row.treatment == Treatment::Rounded).for_each(|row| within_bounds(row, failures));
    repeatable(&path, &out("auto"), &temporary.path().join("alone"), failures)?;
    twice(&path, (&auto, &out("auto")), &out("twice"), failures)?;

    match bake(&path, &out("round"), QuantisedMode::Round, false) {
        Ok((round, verify)) => {
            verified(&verify, "round", failures);
            if entry.refuse {
                failures.push("rounded, although its layout is not known".into());
            }
            let nodes = round.edits.iter().filter(|row| row.treatment == Treatment::Nodes);
            for row in nodes.filter(|row| !matches!(row.reason, Some(Reason::Shared { .. }))) {
                failures.push(format!("round: `{}` got nodes: {:?}", row.writer, row.reason));
            }
        }
        Err(error) if entry.refuse => names_a_node(&words(&error), &path, failures),
        Err(error) => failures.push(format!("round: {}", words(&error))),
    }

    let (nodes, verify) = bake(&path, &out("nodes"), QuantisedMode::Nodes, false)?;
    verified(&verify, "nodes", failures);
    count(entry, &nodes, failures);
    for row in nodes.edits.iter().filter(|row| row.treatment == Treatment::Rounded) {
        failures.push(format!("nodes: `{}` was rounded", row.writer));
    }

    along_a_span(entry, &path, &out("span"), failures)?;
    if entry.run {
        let before = Ran::of(&path, None)?;
        let hooked = Ran::of(&path, Some(direction()))?;
        let auto = Ran::of(&baked(&path, &out("auto")), None)?;
        let nodes = Ran::of(&baked(&path, &out("nodes")), None)?;
        let share = entry.share();
        if before.share < 10.0 * share {
            failures.push(format!("the stream had {:.1e} along the direction: nothing is shown", before.share));
        }
        if auto.share > share {
            failures.push(format!("auto: the stream keeps {:.2e} along the direction, of {share:.1e}", auto.share));
        }
        let exact = if entry.rounds_writes() {
            share
        } else if entry.is_half() {
            SHARE
        } else {
            SHARE_OF_NODES
        };
        if nodes.share > exact {
            failures.push(format!("nodes: the stream keeps {:.2e} along the direction, of {exact:.1e}", nodes.share));
        }
        // the projection at run time is what nodes do, up to the order of arithmetic
        // (in float16 up to twenty roundings of it: the sum over 256 products is rounded in another order)
        let bound = if entry.is_half() { 1e-2 } else { 1e-5 };
        let gap = nodes.gap(&hooked);
        if gap > bound {
            failures.push(format!("nodes: logits are {gap:.2e} off run-time ablation, of {bound:.1e}"));
        }
        if std::env::var_os("LANCET_SHOW").is_some() {
            println!(
                "{:30} share {:.1e} -> auto {:.1e}, nodes {:.1e}; logits of nodes {gap:.1e} off, of auto {:.1e}",
                entry.name,
                before.share,
                auto.share,
                nodes.share,
                auto.gap(&hooked)
            );
        }
    }
    Ok(())
}

/// Three directions at once: nothing is left along any of them, in the weights and in the stream.
fn along_a_span(entry: &Entry, path: &Path, out: &Path, failures: &mut Vec<String>) -> Result<(), Failed> {
    let span = span();
    let edit = Edit::from(span.clone());
    let mode = if entry.refuse { QuantisedMode::Auto } else { QuantisedMode::Round };
    let (result, verify) = bake_edit(path, out, mode, false, &edit)?;
    verified(&verify, "span", failures);
    let rounded: Vec<&EditResult> = result.edits.iter().filter(|row| row.treatment == Treatment::Rounded).collect();
    if rounded.is_empty() && !entry.refuse {
        failures.push("span: nothing was rounded".into());
    }
    for row in rounded {
        let leak = if row.bits == Some(2) { 1e-2 } else { 1e-3 };
        let (before, after) = (row.leak_before.unwrap_or(f64::NAN), row.leak_after.unwrap_or(f64::NAN));
        if after.is_nan() || after > leak * before {
            failures.push(format!("span: `{}` keeps {after:.2e} of {before:.2e}", row.initializer));
        }
    }
    // what is rounded too coarsely gets nodes by default
    let (auto, verify) = bake_edit(path, &out.with_extension("auto"), QuantisedMode::Auto, false, &edit)?;
    verified(&verify, "span, auto", failures);
    for row in auto.edits.iter().filter(|row| row.treatment == Treatment::Rounded) {
        if row.rounding.is_none_or(|rounding| rounding.max_levels.is_nan() || rounding.max_levels > 1.001) {
            failures.push(format!("span: `{}` is rounded by default: {:?}", row.initializer, row.rounding));
        }
    }
    if !entry.run {
        return Ok(());
    }
    for vector in span.vectors() {
        let [before, after] = [path.to_path_buf(), baked(path, out)].map(|path| Ran::along(&path, None, vector.unit()));
        let (before, after, share) = (before?.share, after?.share, entry.share());
        if before < 10.0 * share || after > share {
            failures
                .push(format!("span: the stream keeps {after:.2e} of {before:.2e} along a direction, of {share:.1e}"));
        }
    }
    Ok(())
}

/// The words name a node of the file.
fn names_a_node(words: &str, path: &Path, failures: &mut Vec<String>) {
    let opened = Opened::new(path).unwrap();
    let nodes = opened.model.skeleton.graph.as_ref().map(|graph| graph.node.as_slice()).unwrap_or_default();
    let named = nodes
        .iter()
        .filter_map(|node| node.name.as_deref())
        .any(|name| !name.is_empty() && words.contains(&format!("`{name}`")));
    if !named {
        failures.push(format!("refused without the node's name: {words}"));
    }
}

fn verified(verify: &VerifyResult, mode: &str, failures: &mut Vec<String>) {
    if !verify.passed || verify.changed_bytes_outside_plan != 0 {
        failures.push(format!("{mode}: {:?}", verify.failures));
    }
}

/// As many quantised writers were treated as the index tells.
fn count(entry: &Entry, result: &BakeResult, failures: &mut Vec<String>) {
    let is_quantised =
        |row: &&EditResult| row.quantisation.is_some() || row.reason.as_ref().is_some_and(Reason::is_quantised);
    let writers: BTreeSet<&str> = result.edits.iter().filter(is_quantised).map(|row| row.writer.as_str()).collect();
    if writers.len() != entry.quantised_writers {
        failures.push(format!("{writers:?} are quantised writers, {} were expected", entry.quantised_writers));
    }
}

/// The bounds of a rounded tensor, and that nearest rounding is beyond the one that matters.
fn within_bounds(row: &EditResult, failures: &mut Vec<String>) {
    let name = format!("`{}` ({})", row.initializer, row.quantisation.as_deref().unwrap_or(""));
    let number = |value: Option<f64>| value.unwrap_or(f64::NAN);
    let (before, nearest, after) =
        (number(row.leak_before), number(row.rounding.map(|r| r.leak_nearest)), number(row.leak_after));
    let (error, error_nearest) = (number(row.rounding.map(|r| r.error)), number(row.rounding.map(|r| r.error_nearest)));
    let leak = if row.bits == Some(2) { 1e-2 } else { 1e-3 };
    // At 2 bits nearest rounding leaves nearly every code as it was: what it costs is the edit itself, which says nothing
    // about what an edit would have to cost. There the noise of the grid is the measure, as in `bake::limits`.
    let dear = match row.bits {
        Some(8) => 1.05 * error_nearest,
        Some(4) => 1.6 * error_nearest,
        _ => MAX_NOISE * number(row.rounding.map(|r| r.grid_noise)),
    };
    // a copy leaves its scales to the original, so they cannot grow, and values beyond the grid take its outermost level
    let near = row.treatment == Treatment::Copy || number(row.rounding.map(|r| r.max_levels)) <= 1.001;
    // NaN holds nowhere
    for (holds, what) in [
        (after <= leak * before, format!("leak {before:.2e} became {after:.2e}")),
        (nearest > leak * before, format!("nearest rounding leaves {nearest:.2e} of {before:.2e}, nothing is shown")),
        (error <= dear, format!("error {error:.3e} is {:.3} of nearest, of {dear:.3e}", error / error_nearest)),
        (near, format!("{} levels off", number(row.rounding.map(|r| r.max_levels)))),
        (row.sha256_before != row.sha256_after, "its codes did not change".to_string()),
    ] {
        if !holds {
            failures.push(format!("{name}: {what}"));
        }
    }
}

/// One thread writes the bytes that several write.
fn repeatable(path: &Path, first: &Path, out: &Path, failures: &mut Vec<String>) -> Result<(), Failed> {
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        pool.install(|| bake(path, out, QuantisedMode::Auto, false))?;
        if snapshot(first) != snapshot(out) {
            failures.push(format!("{threads} threads write other bytes"));
        }
        std::fs::remove_dir_all(out)?;
    }
    Ok(())
}

/// A second bake by the same direction finds next to nothing to take off, and changes next to nothing.
fn twice(
    path: &Path,
    (first, from): (&BakeResult, &Path),
    out: &Path,
    failures: &mut Vec<String>,
) -> Result<(), Failed> {
    let (second, verify) = bake(&baked(path, from), out, QuantisedMode::Round, false)?;
    verified(&verify, "the second bake", failures);
    for row in first.edits.iter().filter(|row| row.treatment == Treatment::Rounded) {
        let Some(again) = second.edits.iter().find(|other| other.initializer == row.initializer) else {
            failures.push(format!("the second bake does not edit `{}`", row.initializer));
            continue;
        };
        let (was, left, now) = (row.leak_before, row.leak_after, again.leak_before);
        // both tell of the same stored values, in float32
        if !left.zip(now).is_some_and(|(left, now)| (left - now).abs() <= 1e-5 * was.unwrap_or(0.0)) {
            failures.push(format!("`{}` was left with {left:?}, and has {now:?}", row.initializer));
        }
        // A quarter of the noise that the grid has anyway adds 3 % to it: sqrt(1 + 1/16).
        let little = again.rounding.is_some_and(|rounding| rounding.error <= 0.25 * rounding.grid_noise);
        let no_more = again.leak_after.zip(now).is_some_and(|(after, before)| after <= 1.01 * before);
        if !little || !no_more || again.rounding.is_none_or(|rounding| rounding.grown_scales != 0) {
            failures.push(format!("the second bake went on: {again:?}"));
        }
    }
    Ok(())
}

/// A run of a model on the prompts.
struct Ran {
    /// Largest share of the stream along the direction, over layers and positions.
    share: f64,
    /// `[prompts, positions, d_vocab]`.
    logits: Vec<f32>,
}

impl Ran {
    /// Runs a file; with a direction, that is ablated from every write meanwhile.
    fn of(path: &Path, ablated: Option<Direction>) -> Result<Self, Failed> {
        Self::along(path, ablated, direction().unit())
    }

    /// The same, looking along another unit vector.
    fn along(path: &Path, ablated: Option<Direction>, seen_along: &[f64]) -> Result<Self, Failed> {
        let opened = Opened::new(path)?;
        let model = opened.understand().map_err(|refusal| refusal.to_string())?;
        let never = AtomicBool::new(false);
        let engine = Engine { runtime: runtime(), model: &model, batch: 2, pad: 0, cancelled: &never, steered: None };
        let prompts = prompts();
        let (n_pos, d_model) = (prompts[0].len(), model.lm.d_model());
        let last = model.lm.n_layers() - 1;
        let mut probes: Vec<(usize, ResidPoint)> =
            (0..=last).flat_map(|layer| [(layer, ResidPoint::Pre), (layer, ResidPoint::Mid)]).collect();
        probes.push((last, ResidPoint::Post));
        let request = Request {
            probes,
            last_positions: n_pos,
            logits: n_pos,
            directions: usize::from(ablated.is_some()),
            ..Request::default()
        };
        let unit: Vec<f32> = direction().unit().iter().map(|v| *v as f32).collect();
        let directions: Vec<Vec<f32>> = ablated.iter().map(|_| unit.clone()).collect();
        let rows: Vec<Row<'_>> = prompts.iter().map(|ids| Row { tokens: ids, direction: 0 }).collect();
        let mut session = engine.brief_session(request)?;
        let mut logits = vec![Vec::new(); rows.len()];
        let (mut share, mut seen) = (0.0f64, 0);
        engine.visit(&mut session, &rows, &directions, |found| {
            for x in found.probes.iter().flat_map(|probe| probe.chunks_exact(d_model)) {
                let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                share = share.max(dot_f32(x, seen_along).abs() / norm(&wide));
                seen += 1;
            }
            logits[found.row] = found.logits;
            Ok(())
        })?;
        if seen < 3 * n_pos * rows.len() {
            return Err(format!("{seen} places of the stream were seen").into());
        }
        Ok(Self { share, logits: logits.concat() })
    }

    /// Largest difference of a logit over the other one's largest.
    fn gap(&self, other: &Self) -> f64 {
        assert_eq!(self.logits.len(), other.logits.len());
        let largest = other.logits.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let off = self.logits.iter().zip(&other.logits).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
        f64::from(off / largest)
    }
}

/// `--weights-only` gives a quantised embedding that also makes the logits a copy of its own.
fn untied() -> Result<(), Failed> {
    let mut failures = Vec::new();
    for name in ["genai-shared", "genai-shared-k_quant", "genai-shared-rtn_last"] {
        let path = folder().join(name).join("model.onnx");
        let temporary = tempfile::tempdir()?;
        let out = temporary.path().join("out");
        let (result, verify) = bake(&path, &out, QuantisedMode::Auto, true)?;
        verified(&verify, name, &mut failures);
        let embedding = result.edits.iter().find(|row| row.writer == "embed").ok_or("no embedding was edited")?;
        if embedding.treatment != Treatment::Copy || embedding.quantisation.is_none() {
            failures.push(format!("{name}: the embedding was treated by {}", embedding.treatment));
        }
        within_bounds(embedding, &mut failures);
        let (before, after) = (Ran::of(&path, None)?, Ran::of(&baked(&path, &out), None)?);
        if after.share > SHARE || before.share < 10.0 * SHARE {
            failures.push(format!("{name}: the stream keeps {:.2e} of {:.2e}", after.share, before.share));
        }
        let nodes = temporary.path().join("nodes");
        let Err(refused) = bake(&path, &nodes, QuantisedMode::Nodes, true) else {
            failures.push(format!("{name}: nodes were inserted although weights only were asked for"));
            continue;
        };
        if !words(&refused).contains("cannot be baked by its weights alone") || nodes.exists() {
            failures.push(format!("{name}: {}", words(&refused)));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
}

/// Every level is within one of the exact edit before and after such a change; only rounding again tells.
fn tampered() -> Result<(), Failed> {
    let base = folder().join("nbits8-b32-sym.onnx");
    let work = tempfile::tempdir()?;
    let sandbox = common::Sandbox::new();
    let out = work.path().join("out");
    bake(&base, &out, QuantisedMode::Auto, false)?;
    let written = baked(&base, &out);
    let arguments = |file: &Path| {
        let direction = folder().join("direction.safetensors");
        let words = ["verify", base.to_str().unwrap(), file.to_str().unwrap(), "--bytes-only", "--json", "--direction"];
        let mut all: Vec<String> = words.iter().map(ToString::to_string).collect();
        all.push(direction.to_str().unwrap().into());
        all
    };
    let verify = |file: &Path, code: i32| {
        let all = arguments(file);
        common::json(&mut sandbox.lancet(&all.iter().map(String::as_str).collect::<Vec<_>>()), code)
    };
    assert_eq!(verify(&written, 0)["shared"]["passed"], true);
    let (before, clean) = (std::fs::read(&base)?, std::fs::read(&written)?);
    let opened = Opened::new(&base)?;
    let model = opened.understand()?;
    let mut noticed = 0;
    for quantised in model.lm.writers.iter().flat_map(|w| &w.weights).filter_map(|w| Some((w.tensor, w.quantised?))) {
        let (codes, quantised) = quantised;
        for tensor in [codes, quantised.scales] {
            let lancet::onnx::Storage::Embedded { offset, length } = opened.model.tensor(tensor).storage else {
                panic!("the file holds its weights");
            };
            let (from, to) = (usize::try_from(offset).unwrap(), usize::try_from(offset + length).unwrap());
            // the first edited byte, and one in the middle
            let edited = (from..to).find(|&at| before[at] != clean[at]);
            for at in edited.into_iter().chain([from.midpoint(to) / 4 * 4]) {
                let mut bytes = clean.clone();
                bytes[at] ^= 1;
                std::fs::write(&written, &bytes)?;
                let result = verify(&written, 1);
                let result = &common::only(&result)["verify"];
                assert_eq!(result["passed"], false, "byte {at} of `{}`", opened.model.tensor(tensor).name);
                assert_eq!(result["changed_bytes_outside_plan"], 0);
                noticed += 1;
            }
        }
    }
    assert!(noticed >= 6, "only {noticed} changes were tried");
    Ok(())
}
