//! Verifying a written model by loading it again: logits against run-time ablation of the base model, and
//! what is left of the direction in the stream.

use super::engine::{Engine, Row, Steering};
use crate::edit::{Ablated, Ablation, Edit};
use crate::error::Error;
use crate::instrument::Request;
use crate::linalg::{dot_f32, norm};
use crate::lm::{ResidPoint, Treatment};
use crate::method::score::{kl_divergence, mean, softmax};
use crate::onnx::ops::ActivationRounding;
use crate::onnx::{DataType, Graph};

/// What reloading showed.
#[derive(Debug, Clone)]
pub struct LogitReport {
    /// Largest absolute difference of a logit.
    pub max_abs_logit_diff: f64,
    /// Mean KL divergence of the next-token distributions.
    pub kl: f64,
    /// Largest `|r.x| / |x|` over `resid_pre` of every layer and the last `resid_post`, last position; with a strength
    /// below 1 or an addition, beyond what the steered base keeps there.
    pub max_stream_leak: f64,
    /// What the difference may be, for the model's precision.
    pub bound: f64,
    /// Bound of the leak.
    pub leak_bound: f64,
    /// Prompts compared.
    pub n_prompts: usize,
}

/// Relative rounding of the coarsest type that the writers or the stream are held in.
fn precision(engine: &Engine<'_>) -> f64 {
    let mut coarsest: f64 = f64::from(f32::EPSILON);
    let mut see = |dtype: DataType| {
        coarsest = coarsest.max(match dtype {
            DataType::FLOAT16 => 2f64.powi(-10),
            DataType::BFLOAT16 => 2f64.powi(-7),
            _ => f64::from(f32::EPSILON),
        });
    };
    for (graph, writer) in engine.model.writers() {
        for target in &writer.weights {
            see(graph.model.tensor(target.tensor).dtype);
        }
        if writer.treatment == Treatment::Nodes {
            see(graph.elem_type(writer.writes[0].value).unwrap_or(DataType::FLOAT));
        }
    }
    // activations of 8 bits round differently as soon as anything before them does
    if quantises_activations(&engine.model.graph) { coarsest.max(2f64.powi(-7)) } else { coarsest }
}

/// Share of the direction that rounded weights may leave in the stream. The bake allows 1e-3 of the component of a
/// weight (1e-2 at 2 bits), which is itself a part of the write.
const ROUNDED_LEAK: f64 = 5e-3;

/// Whether a writer's weights are rounded to a quantised grid.
fn is_rounded(engine: &Engine<'_>) -> bool {
    engine.model.writers().any(|(_, writer)| writer.treatment == Treatment::Rounded)
}

/// Whether products are computed on quantised activations.
fn quantises_activations(graph: &Graph<'_>) -> bool {
    graph.nodes().any(|node| graph.rounding(node) != ActivationRounding::No)
}

/// The components of a value of the stream, `[d_model]`, along each direction.
fn components<'a>(x: &'a [f32], directions: &'a [Ablated]) -> impl Iterator<Item = f64> + 'a {
    directions.iter().map(|one| dot_f32(x, one.unit()))
}

/// Compares `out` with `base` under run-time steering by `edit` (METHOD steps 8 and 9).
///
/// # Errors
/// If a run fails.
pub fn logits(base: &Engine<'_>, out: &Engine<'_>, edit: &Edit, prompts: &[Vec<u32>]) -> Result<LogitReport, Error> {
    let rows: Vec<Row<'_>> = prompts.iter().map(|t| Row { tokens: t, direction: 0 }).collect();
    let steering = Steering::of(edit);
    let base = Engine { steered: Some(&steering), ..*base };
    let mut expected = vec![Vec::new(); rows.len()];
    // what the steered stream itself keeps of the direction: nothing, unless it is told to
    let mut kept = vec![Vec::new(); rows.len()];
    let whole = edit.leaves_nothing();
    let directions = edit.ablation().map(Ablation::vectors).unwrap_or_default();
    let mut probes: Vec<(usize, ResidPoint)> = (0..out.model.lm.n_layers()).map(|l| (l, ResidPoint::Pre)).collect();
    probes.push((out.model.lm.n_layers() - 1, ResidPoint::Post));
    let request = Request { probes, last_positions: 1, logits: 1, ..Request::default() };
    let own = if whole || directions.is_empty() { Vec::new() } else { request.probes.clone() };
    let mut hooked = base.brief_session(Request { probes: own, ..request.clone() })?;
    base.visit(&mut hooked, &rows, &[], |found| {
        kept[found.row] = found.probes.iter().flat_map(|probe| components(probe, directions)).collect();
        expected[found.row] = found.logits;
        Ok(())
    })?;
    // so that the weights of one model are in memory at a time
    drop(hooked);
    let mut plain = out.brief_session(request)?;
    let (mut diff, mut scale, mut leak, mut kl) = (0.0f64, 1.0f64, 0.0f64, Vec::new());
    out.visit(&mut plain, &rows, &[], |found| {
        let want = &expected[found.row];
        if want.len() != found.logits.len() {
            let (base, out) = (want.len(), found.logits.len());
            return Err(Error::failed(format!("vocabularies of {base} and {out} tokens do not compare")));
        }
        for (a, b) in want.iter().zip(&found.logits) {
            diff = diff.max((f64::from(*a) - f64::from(*b)).abs());
            scale = scale.max(f64::from(*a).abs());
        }
        kl.push(kl_divergence(&softmax(want), &softmax(&found.logits)));
        let mut kept = kept[found.row].iter();
        for probe in &found.probes {
            let x: Vec<f64> = probe.iter().map(|v| f64::from(*v)).collect();
            for component in components(probe, directions) {
                let kept = kept.next().copied().unwrap_or(0.0);
                leak = leak.max((component - kept).abs() / norm(&x).max(1e-30));
            }
        }
        Ok(())
    })?;
    let eps = precision(out);
    Ok(LogitReport {
        max_abs_logit_diff: diff,
        kl: mean(&kl),
        max_stream_leak: leak,
        // Rounding of every write adds up over the layers. The weights of a float16 model were rounded once
        // more by the bake, those of a float32 one differ by the order of sums only.
        bound: (if eps > 1e-6 { 8.0 } else { 64.0 } * eps * scale).max(1e-4),
        // A component that stays is moved by the rounding of all that is computed from it.
        leak_bound: (if whole { 4.0 } else { 16.0 } * eps).max(if is_rounded(out) { ROUNDED_LEAK } else { 1e-4 }),
        n_prompts: rows.len(),
    })
}
