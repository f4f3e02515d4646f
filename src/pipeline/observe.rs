//! Activations of single prompts, not of their mean alone: what a gate is fitted on.

use ndarray::{Array2, ArrayView1, Axis};

use super::engine::{Engine, Observer, Row};
use super::stage::Stage;
use crate::error::Error;
use crate::instrument::Request;
use crate::lm::ResidPoint;
use crate::method::score::{refusal_score, softmax};

/// Positions from the end of a row that [`positions`] looks at.
const POSITIONS: usize = 64;

/// Tokens of each answer that it looks at.
const ANSWERED: usize = 16;

/// What is seen at one position of prompts.
pub struct AtPosition {
    /// The stream, `resid_pre[layer]` for each layer that was asked for, `[prompts, d_model]` each.
    pub layers: Vec<Array2<f32>>,
    /// Refusal score of each prompt, in nats.
    pub scores: Vec<f64>,
}

/// The stream at the last position of every prompt and each of `layers`, and the refusal scores.
///
/// # Errors
/// If a run fails.
pub fn last_position(
    engine: &Engine<'_>,
    layers: &[usize],
    prompts: &[Vec<u32>],
    refusal_tokens: &[u32],
    observer: &dyn Observer,
) -> Result<AtPosition, Error> {
    at_position(engine, (layers, -1), prompts, refusal_tokens, observer)
}

/// The stream at a position, negative from the end, and a layer, for every prompt, and the refusal scores.
///
/// # Errors
/// If a run fails.
pub fn at(
    engine: &Engine<'_>,
    (position, layer): (i64, usize),
    prompts: &[Vec<u32>],
    refusal_tokens: &[u32],
    observer: &dyn Observer,
) -> Result<AtPosition, Error> {
    at_position(engine, (&[layer], position), prompts, refusal_tokens, observer)
}

fn at_position(
    engine: &Engine<'_>,
    (layers, position): (&[usize], i64),
    prompts: &[Vec<u32>],
    refusal_tokens: &[u32],
    observer: &dyn Observer,
) -> Result<AtPosition, Error> {
    let back = usize::try_from(-position).expect("positions count from the end");
    let mut session = engine.session(Request { logits: 1, ..request(layers, back) })?;
    let rows: Vec<Row<'_>> = prompts.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
    let width = engine.model.lm.d_model();
    let mut all = vec![Array2::zeros((prompts.len(), width)); layers.len()];
    let mut scores = vec![0.0; prompts.len()];
    observer.start(&Stage::ObservePrompts, rows.len() as u64);
    engine.visit(&mut session, &rows, &[], |found| {
        for (layer, values) in all.iter_mut().zip(&found.probes) {
            let from = values.len() - back * width;
            layer.row_mut(found.row).assign(&ArrayView1::from(&values[from..from + width]));
        }
        scores[found.row] = refusal_score(&softmax(&found.logits), refusal_tokens);
        observer.advance(1);
        Ok(())
    })?;
    observer.finish();
    Ok(AtPosition { layers: all, scores })
}

/// The stream of a layer at positions of prompts and of their answers.
pub struct Positions {
    /// At the last position of each prompt, `[prompts, d_model]`.
    pub last: Array2<f32>,
    /// At all others that were looked at, `[positions, d_model]`.
    pub others: Array2<f32>,
}

/// Answers prompts with 16 greedy tokens, and returns for each of `layers` what `resid_pre` is at the last 64 positions of
/// prompt and answer together.
///
/// # Errors
/// If a run fails.
pub fn positions(
    engine: &Engine<'_>,
    layers: &[usize],
    prompts: &[Vec<u32>],
    observer: &dyn Observer,
) -> Result<Vec<Positions>, Error> {
    observer.start(&Stage::ObservePositions, 2 * prompts.len() as u64);
    let answers = engine.answers(prompts, ANSWERED, &[], |done| observer.advance(done))?;
    let whole: Vec<Vec<u32>> =
        prompts.iter().zip(&answers).map(|(prompt, answer)| [&prompt[..], answer].concat()).collect();
    let mut session = engine.session(request(layers, POSITIONS))?;
    let rows: Vec<Row<'_>> = whole.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
    let width = engine.model.lm.d_model();
    let mut found: Vec<Vec<Vec<f32>>> = vec![Vec::new(); rows.len()];
    engine.visit(&mut session, &rows, &[], |result| {
        found[result.row] = result.probes;
        observer.advance(1);
        Ok(())
    })?;
    observer.finish();
    // in the order of the prompts, whatever batches they were run in
    let of_layer = |layer: usize| {
        let (mut last, mut others) = (Array2::zeros((0, width)), Array2::zeros((0, width)));
        for (row, probes) in found.iter().enumerate() {
            // a shorter row is filled up at its beginning
            let backwards = probes[layer].rchunks_exact(width).take(whole[row].len()).enumerate();
            for (back, values) in backwards {
                let rows = if back == answers[row].len() { &mut last } else { &mut others };
                rows.push(Axis(0), ArrayView1::from(values)).expect("every position is of one width");
            }
        }
        Positions { last, others }
    };
    Ok((0..layers.len()).map(of_layer).collect())
}

fn request(layers: &[usize], last_positions: usize) -> Request {
    let probes = layers.iter().map(|layer| (*layer, ResidPoint::Pre)).collect();
    Request { probes, last_positions, ..Request::default() }
}
