//! KL divergence of a model from its base at the first response positions, along the base's own answers.

use super::engine::{Engine, Observer, Row};
use super::likelihood::{LAST_ONLY, too_few};
use super::stage::Stage;
use crate::error::Error;
use crate::instrument::Request;
use crate::method::score::{kl_divergence, mean, softmax};
use crate::report::finite;
use crate::report::scores::{Divergence, PositionKl};
use crate::runtime::batch;
use crate::runtime::reading::Positions;

/// A run's row: a prompt with the begin of its answer.
struct Span {
    prompt: usize,
    /// The first response position that the row's logits are wanted of.
    begin: usize,
    /// How many positions.
    positions: usize,
    tokens: Vec<u32>,
}

/// Rows for the first `positions` response positions of every prompt, each with at most `chunk` of them.
///
/// Response position `j` is predicted from the prompt and the answer's first `j` tokens. An answer of `n` tokens has
/// `n + 1` positions: the last one predicts its end.
fn spans(prompts: &[Vec<u32>], answers: &[Vec<u32>], positions: usize, chunk: usize) -> Vec<Span> {
    let mut found = Vec::new();
    for (prompt, (tokens, answer)) in prompts.iter().zip(answers).enumerate() {
        let count = positions.min(answer.len() + 1);
        for begin in (0..count).step_by(chunk) {
            let end = (begin + chunk).min(count);
            let tokens = [tokens.as_slice(), &answer[..end - 1]].concat();
            found.push(Span { prompt, begin, positions: end - begin, tokens });
        }
    }
    found
}

/// Mean `KL(base || other) = sum p (ln(p + 1e-6) - ln(q + 1e-6))` in float64 (published code; METHOD.md, step 7) at each
/// of the first `positions` response positions, in nats.
///
/// `prompts` are token ids, none empty; `answers` the base model's greedy answers to them, without stop tokens. Both
/// models read the base's tokens. An answer counts up to the position that predicts its end, so position 0 counts
/// every prompt. Logits are kept for one batch only.
///
/// # Errors
/// If a run fails, on cancellation, or if the two models' vocabularies differ.
pub fn measure(
    base: &Engine<'_>,
    other: &Engine<'_>,
    prompts: &[Vec<u32>],
    answers: &[Vec<u32>],
    positions: usize,
    observer: &dyn Observer,
) -> Result<Divergence, Error> {
    if positions == 0 || prompts.len() != answers.len() || prompts.iter().any(Vec::is_empty) {
        return Err(Error::failed(format!(
            "cannot compare {} prompts with {} answers at {positions} positions",
            prompts.len(),
            answers.len()
        )));
    }
    // both models' logits of a batch are there at once
    let room = (base.room().min(other.room()) / 2).max(1);
    let mut found: Vec<Vec<f64>> =
        answers.iter().map(|answer| vec![f64::NAN; positions.min(answer.len() + 1)]).collect();
    let mut spans_found = spans(prompts, answers, positions, positions.min(room));
    let Some(chunk) = spans_found.iter().map(|s| s.positions).max() else { return Ok(Divergence::default()) };
    let request = Request { logits: chunk, last_positions: 1, ..Request::default() };
    let mut sessions = (base.session(request.clone())?, other.session(request)?);
    if chunk > 1 && [&sessions.0, &sessions.1].iter().any(|session| session.positions() == Positions::Last) {
        observer.note(LAST_ONLY);
        spans_found = spans(prompts, answers, positions, 1);
    }
    let spans = spans_found;
    let width = sessions.0.width();
    if width != sessions.1.width() {
        let other = sessions.1.width();
        return Err(Error::failed(format!("vocabularies of {width} and {other} tokens do not compare")));
    }
    let size = base.batch.min(other.batch).clamp(1, (room / chunk).max(1));
    let engines = (Engine { batch: size, ..*base }, Engine { batch: size, ..*other });
    let lengths: Vec<usize> = spans.iter().map(|s| s.tokens.len()).collect();
    observer.start(&Stage::Divergence, spans.len() as u64);
    for members in batch::plan(&lengths, size, &base.model.lm.interface) {
        let rows: Vec<Row<'_>> = members.iter().map(|&at| Row { tokens: &spans[at].tokens, direction: 0 }).collect();
        // of the positions that a row returns, the last ones are its own
        let own = |row: usize, mut logits: Vec<f32>| -> Result<Vec<f32>, Error> {
            let wanted = spans[members[row]].positions;
            let returned = logits.len() / width.max(1);
            let skip = returned.checked_sub(wanted).ok_or_else(|| too_few(returned, wanted))?;
            Ok(logits.split_off(skip * width))
        };
        let mut kept = vec![Vec::new(); rows.len()];
        engines.0.visit(&mut sessions.0, &rows, &[], |result| {
            kept[result.row] = own(result.row, result.logits)?;
            Ok(())
        })?;
        engines.1.visit(&mut sessions.1, &rows, &[], |result| {
            let logits = own(result.row, result.logits)?;
            let base_logits = std::mem::take(&mut kept[result.row]);
            let span = &spans[members[result.row]];
            for (at, (p, q)) in base_logits.chunks_exact(width).zip(logits.chunks_exact(width)).enumerate() {
                found[span.prompt][span.begin + at] = kl_divergence(&softmax(p), &softmax(q));
            }
            observer.advance(1);
            Ok(())
        })?;
    }
    observer.finish();
    Ok(summary(found, positions))
}

/// Means of `[prompt][position]`.
fn summary(prompts: Vec<Vec<f64>>, positions: usize) -> Divergence {
    let at = |position: usize| prompts.iter().filter_map(|of| of.get(position).copied()).collect::<Vec<f64>>();
    let positions = (0..positions)
        .map(|position| (position, at(position)))
        .filter(|(_, values)| !values.is_empty())
        .map(|(position, values)| PositionKl { position, prompts: values.len(), mean: mean(&values) })
        .collect();
    let all: Vec<f64> = prompts.iter().flatten().copied().collect();
    Divergence { positions, mean: finite(mean(&all)), prompts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_count_up_to_their_end() {
        let prompts = [vec![1, 2], vec![3], vec![4]];
        let answers = [vec![10, 11, 12, 13], vec![20], vec![]];
        let found = spans(&prompts, &answers, 3, 8);
        let rows: Vec<(usize, usize, &[u32])> =
            found.iter().map(|s| (s.begin, s.positions, s.tokens.as_slice())).collect();
        assert_eq!(rows, [(0, 3, &[1, 2, 10, 11][..]), (0, 2, &[3, 20][..]), (0, 1, &[4][..])]);
        let cut = spans(&prompts, &answers, 5, 2);
        let rows: Vec<(usize, usize, &[u32])> =
            cut.iter().take(3).map(|s| (s.begin, s.positions, s.tokens.as_slice())).collect();
        let whole = [1, 2, 10, 11, 12, 13];
        assert_eq!(rows, [(0, 2, &whole[..3]), (2, 2, &whole[..5]), (4, 1, &whole[..6])]);
        assert!(cut.iter().all(|s| s.positions <= s.tokens.len()));
    }

    #[test]
    fn means_are_over_the_prompts_that_reach_a_position() {
        let found = summary(vec![vec![1.0, 3.0], vec![2.0]], 3);
        let rows: Vec<(usize, usize, f64)> = found.positions.iter().map(|p| (p.position, p.prompts, p.mean)).collect();
        assert_eq!(rows, [(0, 2, 1.5), (1, 1, 3.0)]);
        assert_eq!(found.mean, Some(2.0));
        assert_eq!(summary(Vec::new(), 3), Divergence::default());
    }
}
