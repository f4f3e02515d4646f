//! What a loaded session returns, and how its model may be batched: found by a run of a few tokens, not assumed.

use ndarray::ArrayD;

use super::{Engine, Fed, Row, RowResult, Session};
use crate::error::Error;
use crate::instrument::{Cut, Scope, direction_input};
use crate::lm::{Padding, Refusal};
use crate::onnx::ops::ActivationRounding;
use crate::onnx::{DataType, Graph};
use crate::runtime::RuntimeError;
use crate::runtime::batch::{Batch, Sharing};
use crate::runtime::reading::{Reading, Run};

/// Tokens of a row of the run that shapes are read off. No axis of a model is as short and as odd.
const TOKENS: usize = 5;

/// How the outputs of a session are read.
#[derive(Debug, Clone)]
pub struct Readings {
    /// Each probe, in the order of the request.
    pub probes: Vec<Reading>,
    /// The logits, if they were asked for.
    pub logits: Option<Reading>,
}

/// Positions that an output of a run holds, of `tokens` that were fed.
pub fn positions(session: &Session, tokens: usize) -> (usize, usize) {
    let cut = |asked: usize| match session.cut {
        Cut::InGraph => asked.min(tokens),
        Cut::Outside => tokens,
    };
    let logits = match session.built.scope {
        Scope::All => tokens,
        Scope::Asked | Scope::Picked => cut(session.logits),
    };
    (cut(session.last_positions), logits)
}

/// Runs a few tokens and tells how each output lies. `None` where some output is not `[rows, positions, width]` and the
/// session picks positions as if it were.
///
/// # Errors
/// If the run fails, or if the axes of an output cannot be told apart.
pub fn learn(engine: &Engine<'_>, session: &mut Session) -> Result<Option<Readings>, Error> {
    let length = session.interface.feeding.length;
    let tokens = length.unwrap_or(TOKENS);
    let alone = session.interface.single || session.cut == Cut::Outside;
    let (of_probes, of_logits) = positions(session, tokens);
    // rows and positions must differ in number
    let rows = if alone { 1 } else { (2..).find(|n| ![of_probes, of_logits, tokens].contains(n)).unwrap_or(2) };
    let rows = session.interface.feeding.rows.unwrap_or(rows);
    let prompts: Vec<Vec<u32>> = (0..rows).map(|row| made_up(engine, row, tokens)).collect();
    let arrays = run(engine, session, &prompts)?;
    let d_model = engine.model.lm.d_model();
    let (probes, logits) = arrays.split_at(session.built.probes.len());
    let read = |name: &str, array: &ArrayD<f32>, positions: usize, width: Option<usize>| {
        let run = Run { rows, tokens, positions };
        let found = Reading::of_rows(name, array.shape(), run, width);
        match session.cut {
            Cut::InGraph => Ok(found),
            Cut::Outside => Reading::of_one(name, array.shape(), run, width)
                .map(Some)
                .ok_or_else(|| unreadable(name, array.shape(), tokens, width)),
        }
    };
    let found = session.built.probes.iter().zip(probes);
    let found = found.map(|(name, array)| read(name, array, of_probes, Some(d_model)));
    let probes: Option<Vec<Reading>> = found.collect::<Result<Vec<_>, Refusal>>()?.into_iter().collect();
    let name = engine.model.lm.interface.logits.as_str();
    let logits = logits.first().map(|array| read(name, array, of_logits, None)).transpose()?;
    Ok(match (probes, logits) {
        (Some(probes), None) => Some(Readings { probes, logits: None }),
        (Some(probes), Some(Some(logits))) => Some(Readings { probes, logits: Some(logits) }),
        _ => None,
    })
}

/// The refusal of an output whose axes cannot be told apart.
fn unreadable(name: &str, shape: &[usize], tokens: usize, width: Option<usize>) -> Refusal {
    let width = width.map(|d| format!(" of {d} values each")).unwrap_or_default();
    Refusal {
        node: "(graph)".into(),
        op: String::new(),
        tensor: name.into(),
        reason: format!("the model returns {shape:?} for one row of {tokens} tokens, which is not {tokens} positions{width}"),
        hint: "`bake` edits the model all the same; to measure it, export it with a stream and logits of [batch, positions, \
               width]"
            .into(),
    }
}

/// Tokens of a row that means nothing: other ones for each row.
pub(super) fn made_up(engine: &Engine<'_>, row: usize, tokens: usize) -> Vec<u32> {
    let vocabulary = engine.model.vocabulary().unwrap_or(64).clamp(1, 512);
    let token = |at: usize| u32::try_from((11 * row + 7 * at + 3) % vocabulary).unwrap_or(0);
    (0..tokens).map(token).collect()
}

/// Probes and logits of made-up rows, as the session returns them. A session that steers does nothing meanwhile.
fn run(engine: &Engine<'_>, session: &mut Session, prompts: &[Vec<u32>]) -> Result<Vec<ArrayD<f32>>, RuntimeError> {
    let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let batch = Batch::new(&rows, engine.pad).fitted(&session.interface, engine.pad)?;
    session.arrays(engine, &batch, &vec![&[][..]; rows.len()], None)
}

/// Share of the stream that may be left along a direction that was ablated from all of it.
const LEFT: f64 = 0.02;

/// Checks that a session whose stream lies otherwise than `[batch, n_pos, d_model]` ablates along the right axis: of a
/// direction that is fed, the probes hold nothing.
///
/// # Errors
/// If a run fails, or if the ablation misses.
pub fn check_ablation(engine: &Engine<'_>, session: &mut Session) -> Result<(), Error> {
    if !session.built.inputs.contains(&direction_input(0)) {
        return Ok(());
    }
    let width = engine.model.lm.d_model();
    let value = |at: usize| ((37 * at + 11) % 23) as f64 - 10.7;
    let length = (0..width).map(|at| value(at).powi(2)).sum::<f64>().sqrt();
    let unit: Vec<f32> = (0..width).map(|at| (value(at) / length) as f32).collect();
    // the direction of the row, not the one that the whole engine steers by
    let engine = Engine { steered: None, ..*engine };
    let tokens = made_up(&engine, 0, session.interface.feeding.length.unwrap_or(TOKENS));
    let batch = Batch::new(&[&tokens], engine.pad).fitted(&session.interface, engine.pad)?;
    let arrays = session.arrays(&engine, &batch, &vec![unit.as_slice(); batch.ids.nrows()], None)?;
    for (reading, array) in session.readings.probes.iter().zip(&arrays) {
        for x in reading.row(array, 0).chunks_exact(width) {
            let dot = |y: &[f32]| x.iter().zip(y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let left = dot(&unit).abs() / dot(x).sqrt().max(f64::MIN_POSITIVE);
            if left.is_nan() || left > LEFT {
                return Err(Refusal {
                    node: "(graph)".into(),
                    op: String::new(),
                    tensor: reading.name.clone(),
                    reason: "the residual stream lies in an order of axes in which no ablation can be tried at run time"
                        .into(),
                    hint: "`bake` edits the model all the same; to measure it, export it with a stream of [batch, positions, \
                           width]"
                        .into(),
                }
                .into());
            }
        }
    }
    Ok(())
}

/// Whether a row's numbers depend on the other rows of a run, and on what it is run behind: activations are rounded to 8
/// bits by one scale for all of them.
pub(super) fn couples_rows(engine: &Engine<'_>) -> bool {
    let graph: &Graph<'_> = &engine.model.graph;
    graph.nodes().any(|node| graph.rounding(node) == ActivationRounding::Dynamic)
}

/// Tells which rows may share a run: the last position of a row among others must be what it is alone.
///
/// # Errors
/// If a run fails.
pub fn sharing(engine: &Engine<'_>, session: &mut Session) -> Result<Sharing, Error> {
    if session.interface.single || session.interface.feeding.length.is_some() || couples_rows(engine) {
        return Ok(Sharing::Single);
    }
    let short = made_up(engine, 1, TOKENS - 2);
    let ways = [(Sharing::Padded, [TOKENS, TOKENS - 2, TOKENS]), (Sharing::EqualLengths, [TOKENS - 2; 3])];
    let alone = match last(engine, session, std::slice::from_ref(&short), 0) {
        Err(Error::Runtime(RuntimeError::NotFinite { .. })) => return Ok(Sharing::Single),
        found => found?,
    };
    for (way, lengths) in ways {
        if way == Sharing::Padded && session.interface.padding != Padding::Left {
            continue;
        }
        let rows: Vec<Vec<u32>> = (0..3).map(|row| made_up(engine, row, lengths[row])).collect();
        let among = last(engine, session, &rows, 1);
        // some graphs fail on a batch, and run its rows one by one
        if among.is_ok_and(|among| alike(&alone, &among, tolerance(engine))) {
            return Ok(way);
        }
    }
    Ok(Sharing::Single)
}

/// The last position of every output for one row of made-up ones.
fn last(engine: &Engine<'_>, session: &mut Session, prompts: &[Vec<u32>], row: usize) -> Result<Vec<Vec<f32>>, Error> {
    let rows: Vec<Row<'_>> = prompts.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
    let members: Vec<usize> = (0..rows.len()).collect();
    let d_model = engine.model.lm.d_model();
    let mut found = Vec::new();
    let width = session.width();
    let each = &mut |result: RowResult| {
        if result.row == row {
            let tail = |values: &Vec<f32>, width: usize| values[values.len().saturating_sub(width)..].to_vec();
            found = result.probes.iter().map(|probe| tail(probe, d_model)).collect();
            found.push(tail(&result.logits, width));
        }
        Ok(())
    };
    engine.run_batch(session, &Fed { rows: &rows, directions: &[], prefix: None, keys: &[] }, &members, each)?;
    Ok(found)
}

/// Whether two sets of vectors are the same but for rounding: no entry, and not the entry in the middle of all
/// differences, is further off than a share of the largest, and of the middle, distance of an entry from the vector's
/// mean. The middle keeps one huge channel of a stream from hiding errors in all others, the mean what an offset common
/// to all logits would hide. Vectors that are no numbers are like nothing.
pub(super) fn alike(one: &[Vec<f32>], other: &[Vec<f32>], tolerance: f32) -> bool {
    let same = |one: &Vec<f32>, other: &Vec<f32>| {
        let mean = (one.iter().map(|v| f64::from(*v)).sum::<f64>() / one.len().max(1) as f64) as f32;
        let of = |mut values: Vec<f32>| {
            values.sort_unstable_by(f32::total_cmp);
            // the middle and the largest; NaN sorts last
            (values.get(values.len() / 2).copied().unwrap_or(0.0), values.last().copied().unwrap_or(0.0))
        };
        let spread = of(one.iter().map(|v| (v - mean).abs()).collect());
        let off = of(one.iter().zip(other).map(|(a, b)| (a - b).abs()).collect());
        one.len() == other.len()
            && spread.1.is_finite()
            && off.0 <= tolerance * spread.0
            && off.1 <= tolerance * spread.1
    };
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
}

/// Share of a value that rounding may change where other rows are computed beside.
pub(super) fn tolerance(engine: &Engine<'_>) -> f32 {
    let graph: &Graph<'_> = &engine.model.graph;
    let half = |dtype: DataType| matches!(dtype, DataType::FLOAT16 | DataType::BFLOAT16);
    let coarse = graph.nodes().any(|node| graph.rounding(node) != ActivationRounding::No)
        || graph.model.tensors.iter().any(|t| half(t.dtype));
    if coarse { 0.1 } else { 2e-3 }
}

#[cfg(test)]
mod tests {
    use super::alike;

    #[test]
    fn rounding_is_no_difference_and_nothing_else_is_none() {
        let one = vec![vec![1.0, -2.0], vec![10.0, 0.0]];
        assert!(alike(&one, &[vec![1.001, -2.0], vec![10.001, 0.0]], 2e-3));
        assert!(!alike(&one, &[vec![1.1, -2.0], vec![10.0, 0.0]], 2e-3));
        assert!(!alike(&one, &[vec![f32::NAN, -2.0], vec![10.0, 0.0]], 2e-3));
        assert!(!alike(&[vec![f32::NAN]], &[vec![f32::NAN]], 2e-3));
        assert!(!alike(&one, &one[..1], 2e-3));
        // a huge channel hides no other one, and a common offset none at all
        let wide: Vec<f32> = (0..100).map(|at| (at % 7) as f32).collect();
        let with = |huge: f32, off: f32| vec![wide.iter().map(|v| v * off).chain([huge]).collect::<Vec<f32>>()];
        assert!(alike(&with(1e4, 1.0), &with(1e4, 1.0001), 2e-3));
        assert!(!alike(&with(1e4, 1.0), &with(1e4, 1.1), 2e-3));
        let lifted = |off: f32| vec![wide.iter().map(|v| v * off - 1e4).collect::<Vec<f32>>()];
        assert!(!alike(&lifted(1.0), &lifted(1.1), 2e-3));
    }
}
