//! The zoo: exports of small random models by real exporters, each checked against PyTorch's hooked reference.
//! Shared by `tests/zoo.rs` and `tools/architectures.rs`.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use lancet::bake::QuantisedMode;
use lancet::edit::Direction;
use lancet::instrument::Request;
use lancet::lm::{ResidPoint, Treatment, WriterKind};
use lancet::pipeline::engine::{Engine, Row, Silent};
use lancet::pipeline::{BakeOptions, Opened, bake_only};
use lancet::report::VariantResult;
use lancet::runtime::session::Runtime;
use serde::Deserialize;

/// An export, or a failure to export, as `tools/zoo/export_*.py` writes it down.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    /// Architecture.
    pub arch: String,
    /// Exporter.
    pub exporter: String,
    /// Element type of the export.
    pub dtype: String,
    /// The `.onnx` file below `fixtures/zoo`; none if the export failed.
    pub model: Option<PathBuf>,
    /// The exporter's error.
    pub error: Option<String>,
    /// Largest difference of the unedited export's logits from PyTorch's, by ONNX Runtime's Python API.
    pub base_error: Option<f64>,
    /// Why ONNX Runtime's CPU provider cannot run the export.
    #[serde(default)]
    pub run_error: Option<String>,
    /// Number of blocks.
    #[serde(default)]
    pub layers: usize,
    /// Number of embeddings that write to the stream.
    #[serde(default)]
    pub embeddings: usize,
    /// Number of attention writers.
    #[serde(default)]
    pub attn: usize,
    /// Number of MLP writers; a mixture of experts counts once.
    #[serde(default)]
    pub mlp: usize,
}

/// What Lancet made of an export.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It was edited.
    Edited(Edited),
    /// It was refused, with the reason.
    Refused(String),
}

/// Measurements of an edited export.
#[derive(Debug, Clone)]
pub struct Edited {
    /// Writers edited by their weights.
    pub weights: usize,
    /// Writers with the projection inserted.
    pub nodes: usize,
    /// Writers found: embeddings, attention, MLP.
    pub writers: (usize, usize, usize),
    /// Largest difference of `resid_pre` (and of the last `resid_post`) from PyTorch, over the largest value.
    pub stream_error: f64,
    /// Largest difference of the baked file's logits from PyTorch with hooks.
    pub logits_error: f64,
    /// The same over the largest logit.
    pub logits_relative: f64,
    /// Largest difference of the baked file's logits from run-time ablation of the export itself, over the largest
    /// logit: what counts where the export was quantised.
    pub ablation_relative: f64,
    /// What `--weights-only` made of it; `None` where no writer needs nodes.
    pub alone: Option<Alone>,
    /// What the byte comparison and the checks of the written file found.
    pub failures: Vec<String>,
}

/// What `--weights-only` made of an export.
#[derive(Debug, Clone)]
pub enum Alone {
    /// It was edited: whether exactly, the difference of logits from PyTorch with hooks over the largest logit, and
    /// the share of the direction that is left in the stream.
    Edited {
        /// Only copies were needed.
        exact: bool,
        /// Over the largest logit.
        logits_relative: f64,
        /// `|r . x| / |x|`.
        leak: f64,
    },
    /// It was refused, with the reason.
    Refused(String),
}

/// The folder of the zoo; `LANCET_ZOO` names a larger one, made by the same scripts.
pub fn zoo() -> PathBuf {
    match std::env::var_os("LANCET_ZOO") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/zoo"),
    }
}

/// Every entry of every index, sorted.
pub fn entries() -> Vec<Entry> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(zoo().join("index")).expect("the zoo has an index") {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let found: Vec<Entry> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        all.extend(found);
    }
    all.sort_by(|a, b| (&a.arch, &a.exporter).cmp(&(&b.arch, &b.exporter)));
    all
}

/// What PyTorch made of an architecture.
pub struct Reference {
    /// Prompts of equal length.
    pub ids: Vec<Vec<u32>>,
    /// The direction that was ablated.
    pub direction: Direction,
    logits_ablated: Vec<f32>,
    /// `resid_pre` of every layer, then the last `resid_post`, `[n_layers + 1, prompts, n_pos, d_model]` row-major.
    pub resid_pre: Vec<f32>,
    /// Width.
    pub d_model: usize,
    d_vocab: usize,
}

/// Reads it.
pub fn reference(arch: &str) -> Reference {
    let bytes = std::fs::read(zoo().join(arch).join("reference.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> (Vec<usize>, Vec<f32>) {
        let view = tensors.tensor(name).unwrap();
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (view.shape().to_vec(), values)
    };
    let ids = tensors.tensor("input_ids").unwrap();
    let flat: Vec<u32> = ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    let (_, direction) = floats("direction");
    let (shape, logits_ablated) = floats("logits_ablated");
    let (_, resid_pre) = floats("resid_pre");
    let direction: Vec<f64> = direction.into_iter().map(f64::from).collect();
    let width = direction.len();
    Reference {
        ids: flat.chunks_exact(ids.shape()[1]).map(<[u32]>::to_vec).collect(),
        d_model: width,
        direction: Direction::new(direction).unwrap(),
        logits_ablated,
        resid_pre,
        d_vocab: shape[2],
    }
}

/// Bakes an export, runs both files, and compares with PyTorch.
pub fn check(entry: &Entry, runtime: &Runtime) -> Outcome {
    let path = zoo().join(entry.model.as_ref().expect("an entry that was exported"));
    let reference = reference(&entry.arch);
    let opened = Opened::new(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let model = match opened.understand() {
        Ok(model) => model,
        Err(refusal) => return Outcome::Refused(refusal.to_string()),
    };
    let lm = &model.lm;
    let count = |kinds: &[WriterKind]| lm.writers.iter().filter(|w| kinds.contains(&w.kind)).count();
    let treated = |treatment| model.writers().filter(|(_, w)| w.treatment == treatment).count();
    let mut edited = Edited {
        weights: treated(Treatment::Weights),
        // quantised writers get nodes here: what rounding does to them is held by `tests/quantised.rs`
        nodes: treated(Treatment::Nodes) + treated(Treatment::Rounded),
        writers: (
            count(&[WriterKind::Embed, WriterKind::PosEmbed]),
            count(&[WriterKind::AttnOut]),
            count(&[WriterKind::MlpOut]),
        ),
        stream_error: f64::NAN,
        logits_error: f64::NAN,
        logits_relative: f64::NAN,
        ablation_relative: f64::NAN,
        alone: None,
        failures: Vec::new(),
    };
    if lm.d_model() != reference.d_model {
        edited.failures.push(format!("d_model is {}, not {}", lm.d_model(), reference.d_model));
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let never = AtomicBool::new(false);
    let options = BakeOptions {
        out: &out,
        weights_only: false,
        quantised: QuantisedMode::Nodes,
        max_rounding_error: None,
        runtime: None,
        sync: true,
        cancelled: &never,
    };
    match bake_only(&opened, &reference.direction.clone().into(), &options, &Silent) {
        Ok(row) => edited.failures.extend(row.verify.failures),
        Err(error) => return Outcome::Refused(error.to_string()),
    }
    if !entry.runs() {
        return Outcome::Edited(edited);
    }
    let engine = Engine { runtime, model: &model, batch: 2, pad: 0, cancelled: &never, steered: None };
    let n_pos = reference.ids[0].len();
    let mut probes: Vec<(usize, ResidPoint)> = (0..lm.n_layers()).map(|l| (l, ResidPoint::Pre)).collect();
    probes.push((lm.n_layers() - 1, ResidPoint::Post));
    let request = Request { probes, last_positions: n_pos, ..Request::default() };
    let rows: Vec<Row<'_>> = reference.ids.iter().map(|ids| Row { tokens: ids, direction: 0 }).collect();
    let per_row = n_pos * reference.d_model;
    let largest = largest(&reference.resid_pre);
    let mut stream_error = 0.0f64;
    let ran = engine.session(request).and_then(|mut session| {
        engine.visit(&mut session, &rows, &[], |found| {
            for (layer, probe) in found.probes.iter().enumerate() {
                let at = (layer * rows.len() + found.row) * per_row;
                let wanted = &reference.resid_pre[at..at + per_row];
                stream_error = stream_error.max(difference(probe, wanted) / largest);
            }
            Ok(())
        })
    });
    match ran {
        Ok(()) => edited.stream_error = stream_error,
        Err(error) => edited.failures.push(format!("the stream cannot be read: {error}")),
    }

    let mut written = Opened::new(&out.join(opened.files.relative())).unwrap();
    written.config = opened.config;
    let out_model = match written.understand() {
        Ok(model) => model,
        Err(refusal) => {
            edited.failures.push(format!("the written file is not understood again: {refusal}"));
            return Outcome::Edited(edited);
        }
    };
    if !lm.interface.cache.is_empty()
        && let Err(failure) = generate(&engine, &reference.ids)
    {
        edited.failures.push(failure);
    }
    let mut hooked = vec![Vec::new(); rows.len()];
    let unit: Vec<f32> = reference.direction.unit().iter().map(|v| *v as f32).collect();
    let request = Request { logits: n_pos, directions: 1, ..Request::default() };
    let ran = engine.session(request).and_then(|mut session| {
        engine.visit(&mut session, &rows, &[unit], |found| {
            hooked[found.row] = found.logits;
            Ok(())
        })
    });
    if let Err(error) = ran {
        edited.failures.push(format!("the export cannot be run with ablation: {error}"));
        return Outcome::Edited(edited);
    }
    let engine = Engine { model: &out_model, ..engine };
    let per_row = n_pos * reference.d_vocab;
    let (mut logits_error, mut ablation_error) = (0.0f64, 0.0f64);
    let ran = engine.session(Request { logits: n_pos, ..Request::default() }).and_then(|mut session| {
        engine.visit(&mut session, &rows, &[], |found| {
            let wanted = &reference.logits_ablated[found.row * per_row..(found.row + 1) * per_row];
            logits_error = logits_error.max(difference(&found.logits, wanted));
            ablation_error = ablation_error.max(difference(&found.logits, &hooked[found.row]));
            Ok(())
        })
    });
    match ran {
        Ok(()) => {
            let largest = self::largest(&reference.logits_ablated);
            edited.logits_error = logits_error;
            edited.logits_relative = logits_error / largest;
            edited.ablation_relative = ablation_error / largest;
        }
        Err(error) => edited.failures.push(format!("the written file cannot be run: {error}")),
    }
    if edited.nodes > 0 {
        let out = folder.path().join("alone");
        let options = BakeOptions {
            out: &out,
            weights_only: true,
            quantised: Default::default(),
            max_rounding_error: None,
            runtime: None,
            sync: true,
            cancelled: &never,
        };
        edited.alone = Some(match bake_only(&opened, &reference.direction.clone().into(), &options, &Silent) {
            Err(error) => Alone::Refused(chain(&error)),
            Ok(VariantResult { verify, .. }) => {
                edited.failures.extend(verify.failures);
                match alone(&out.join(opened.files.relative()), &opened, &reference, verify.inexact.is_empty(), runtime)
                {
                    Ok(found) => found,
                    Err(error) => {
                        edited.failures.push(format!("the file of --weights-only: {}", chain(&error)));
                        return Outcome::Edited(edited);
                    }
                }
            }
        });
    }
    Outcome::Edited(edited)
}

/// Whether greedy generation with the KV cache gives the tokens that running everything anew for each token gives.
fn generate(engine: &Engine<'_>, prompts: &[Vec<u32>]) -> Result<(), String> {
    let text = |error: lancet::Error| format!("generation fails: {}", chain(&error));
    let cached = engine.answers(prompts, NEW_TOKENS, &[], |_| ()).map_err(text)?;
    let mut anew = prompts.to_vec();
    let mut session = engine.session(Request { logits: 1, ..Request::default() }).map_err(text)?;
    for _ in 0..NEW_TOKENS {
        let rows: Vec<Row<'_>> = anew.iter().map(|ids| Row { tokens: ids, direction: 0 }).collect();
        let mut next = vec![0; rows.len()];
        let visit = |found: lancet::pipeline::engine::RowResult| {
            next[found.row] = lancet::runtime::generate::argmax(found.logits) as u32;
            Ok(())
        };
        engine.visit(&mut session, &rows, &[], visit).map_err(text)?;
        anew.iter_mut().zip(next).for_each(|(ids, token)| ids.push(token));
    }
    let anew: Vec<Vec<u32>> = anew.iter().map(|ids| ids[prompts[0].len()..].to_vec()).collect();
    match cached == anew {
        true => Ok(()),
        false => Err(format!("with the KV cache the model answers {cached:?}, without it {anew:?}")),
    }
}

/// Tokens generated to compare with and without the cache: past the sliding windows of the zoo (16).
const NEW_TOKENS: usize = 14;

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Runs what `--weights-only` wrote.
fn alone(
    path: &Path,
    opened: &Opened,
    reference: &Reference,
    exact: bool,
    runtime: &Runtime,
) -> Result<Alone, lancet::Error> {
    let mut written = Opened::new(path)?;
    written.config = opened.config;
    let model = written.understand()?;
    let never = AtomicBool::new(false);
    let engine = Engine { runtime, model: &model, batch: 2, pad: 0, cancelled: &never, steered: None };
    let n_pos = reference.ids[0].len();
    let mut probes: Vec<(usize, ResidPoint)> = (0..model.lm.n_layers()).map(|l| (l, ResidPoint::Pre)).collect();
    probes.push((model.lm.n_layers() - 1, ResidPoint::Post));
    let rows: Vec<Row<'_>> = reference.ids.iter().map(|ids| Row { tokens: ids, direction: 0 }).collect();
    let mut session = engine.session(Request { probes, last_positions: n_pos, logits: n_pos, ..Request::default() })?;
    let per_row = n_pos * reference.d_vocab;
    let (mut logits_error, mut leak) = (0.0f64, 0.0f64);
    engine.visit(&mut session, &rows, &[], |found| {
        let wanted = &reference.logits_ablated[found.row * per_row..(found.row + 1) * per_row];
        logits_error = logits_error.max(difference(&found.logits, wanted));
        for x in found.probes.iter().flat_map(|probe| probe.chunks_exact(reference.d_model)) {
            let along: f64 = x.iter().zip(reference.direction.unit()).map(|(x, r)| f64::from(*x) * r).sum();
            let norm = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            leak = leak.max(along.abs() / norm);
        }
        Ok(())
    })?;
    let logits_relative = logits_error / largest(&reference.logits_ablated);
    Ok(Alone::Edited { exact, logits_relative, leak })
}

/// Largest absolute value.
fn largest(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max)
}

/// Largest absolute difference; NaN counts, and so does another length.
fn difference(found: &[f32], wanted: &[f32]) -> f64 {
    if found.len() != wanted.len() {
        return f64::INFINITY;
    }
    let mut worst = 0.0f64;
    for (a, b) in found.iter().zip(wanted) {
        let off = (f64::from(*a) - f64::from(*b)).abs();
        worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
    }
    worst
}

impl Entry {
    /// Whether the export can be run here: Lancet runs bfloat16 graphs in float32, ONNX Runtime's CPU provider does not.
    pub fn runs(&self) -> bool {
        self.run_error.is_none() || self.dtype == "bfloat16"
    }

    /// Whether the exporter quantised the weights, so that PyTorch's numbers are out of reach.
    pub fn is_quantised(&self) -> bool {
        self.exporter.ends_with("int4")
    }

    /// Embeddings that can be told apart: an export of fixed length folds the positions into a constant.
    pub fn told_embeddings(&self) -> usize {
        if self.exporter.ends_with("-static") { 1 } else { self.embeddings }
    }
}

/// Bounds for a precision: of the stream over its largest value, of logits, of logits over the largest.
pub fn bounds(dtype: &str) -> (f64, f64, f64) {
    match dtype {
        "float32" => (1e-4, 2e-4, 2e-4),
        "float16" => (4e-3, f64::INFINITY, 4e-3),
        _ => (3e-2, f64::INFINITY, 3e-2),
    }
}
