//! KL divergence of a model from its base at the first response positions, along the base's own answers.

use std::collections::BTreeMap;

use super::engine::{Engine, Observer, Row, Session};
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
    /// Response positions that the row's logits are wanted of.
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
            found.push(Span { prompt, positions: end - begin, tokens });
        }
    }
    found
}

/// Positions of `d_vocab` float32 logits that there is room for in memory.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// That one run returns, all rows together.
    pub returned: usize,
    /// That the base has made and that wait for those of the other model.
    pub kept: usize,
}

impl Room {
    /// What there is for two models: a run returns logits beside those that are kept.
    pub fn of(base: &Engine<'_>, other: &Engine<'_>) -> Self {
        Self { returned: base.room().min(other.room()) / 4, kept: base.room_to_keep() }
    }
}

/// Mean `KL(base || other) = sum p (ln(p + 1e-6) - ln(q + 1e-6))` in float64 (published code; METHOD.md, step 7) at each
/// of the first `positions` response positions, in nats.
///
/// `prompts` are token ids, none empty; `answers` the base model's greedy answers to them, without stop tokens. Both
/// models read the base's tokens. An answer counts up to the position that predicts its end, so position 0 counts
/// every prompt. The result does not depend on `room`.
///
/// # Errors
/// If a run fails, on cancellation, or if the two models' vocabularies differ.
pub fn measure(
    base: &Engine<'_>,
    other: &Engine<'_>,
    (prompts, answers): (&[Vec<u32>], &[Vec<u32>]),
    positions: usize,
    room: Room,
    observer: &dyn Observer,
) -> Result<Divergence, Error> {
    if positions == 0 || prompts.len() != answers.len() || prompts.iter().any(Vec::is_empty) {
        return Err(Error::failed(format!(
            "cannot compare {} prompts with {} answers at {positions} positions",
            prompts.len(),
            answers.len()
        )));
    }
    let room = Room { returned: room.returned.max(1), ..room };
    let chunk = positions.min(room.returned);
    let mut of_prompts = spans(prompts, answers, positions, chunk);
    let mut found = by_spans(base, other, &of_prompts, room, observer)?;
    if found.is_none() {
        observer.note(LAST_ONLY);
        of_prompts = spans(prompts, answers, positions, 1);
        found = by_spans(base, other, &of_prompts, room, observer)?;
    }
    Ok(summary(by_prompt(prompts.len(), &of_prompts, &found.unwrap_or_default()), positions))
}

/// The divergences at every position of each span, in their order, `[span][position]`; `None` where a span has several
/// positions and a model returns the last one only.
///
/// One model's weights are in memory at a time: of as many spans as there is room to keep, the base's logits wait
/// until the other model has run them too.
fn by_spans(
    base: &Engine<'_>,
    other: &Engine<'_>,
    spans: &[Span],
    room: Room,
    observer: &dyn Observer,
) -> Result<Option<Vec<Vec<f64>>>, Error> {
    let Some(chunk) = spans.iter().map(|span| span.positions).max() else { return Ok(Some(Vec::new())) };
    let request = Request { logits: chunk, last_positions: 1, ..Request::default() };
    let returns_too_few = |session: &Session| chunk > 1 && session.positions() == Positions::Last;
    let size = base.batch.min(other.batch).clamp(1, (room.returned / chunk).max(1));
    let (base, other) = (Engine { batch: size, ..*base }, Engine { batch: size, ..*other });
    let lengths: Vec<usize> = spans.iter().map(|span| span.tokens.len()).collect();
    let batches = batch::plan(&lengths, size, &base.model.lm.interface);
    let mut found = vec![Vec::new(); spans.len()];
    observer.start(&Stage::Divergence, spans.len() as u64);
    for round in rounds(&batches, spans, room.kept) {
        let mut session = base.session(request.clone())?;
        if returns_too_few(&session) {
            observer.finish();
            return Ok(None);
        }
        let width = session.width();
        let mut kept: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        visit(&base, &mut session, round, spans, |span, logits| {
            kept.insert(span, logits);
        })?;
        drop(session);
        let mut session = other.session(request.clone())?;
        if returns_too_few(&session) {
            observer.finish();
            return Ok(None);
        }
        if width != session.width() {
            let other = session.width();
            return Err(Error::failed(format!("vocabularies of {width} and {other} tokens do not compare")));
        }
        visit(&other, &mut session, round, spans, |span, logits| {
            let of_base = kept.remove(&span).unwrap_or_default();
            let pairs = of_base.chunks_exact(width).zip(logits.chunks_exact(width));
            found[span] = pairs.map(|(p, q)| kl_divergence(&softmax(p), &softmax(q))).collect();
            observer.advance(1);
        })?;
    }
    observer.finish();
    Ok(Some(found))
}

/// Parts of `batches` whose spans have at most `keep` positions together, if one batch has no more.
fn rounds<'b>(batches: &'b [Vec<usize>], spans: &[Span], keep: usize) -> Vec<&'b [Vec<usize>]> {
    let positions = |batch: &Vec<usize>| batch.iter().map(|&span| spans[span].positions).sum::<usize>();
    let mut found = Vec::new();
    let (mut begin, mut sum) = (0, 0);
    for (at, batch) in batches.iter().enumerate() {
        if at > begin && sum + positions(batch) > keep {
            found.push(&batches[begin..at]);
            (begin, sum) = (at, 0);
        }
        sum += positions(batch);
    }
    if begin < batches.len() {
        found.push(&batches[begin..]);
    }
    found
}

/// Runs the spans of `batches` and hands the logits of each on, float32 `[positions, d_vocab]` by rows.
///
/// # Errors
/// If a run fails, on cancellation, or if a row returns fewer positions than its span has.
fn visit(
    engine: &Engine<'_>,
    session: &mut Session,
    batches: &[Vec<usize>],
    spans: &[Span],
    mut each: impl FnMut(usize, Vec<f32>),
) -> Result<(), Error> {
    let width = session.width();
    for members in batches {
        let rows: Vec<Row<'_>> = members.iter().map(|&at| Row { tokens: &spans[at].tokens, direction: 0 }).collect();
        engine.visit(session, &rows, &[], |result| {
            // of the positions that a row returns, the last ones are its own
            let (span, mut logits) = (members[result.row], result.logits);
            let (wanted, returned) = (spans[span].positions, logits.len() / width.max(1));
            let skip = returned.checked_sub(wanted).ok_or_else(|| too_few(returned, wanted))?;
            each(span, logits.split_off(skip * width));
            Ok(())
        })?;
    }
    Ok(())
}

/// The divergences of every prompt by position, `[prompt][position]`, out of those of the spans, `[span][position]`.
fn by_prompt(prompts: usize, spans: &[Span], values: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut found = vec![Vec::new(); prompts];
    // the spans of a prompt lie one behind the other
    for (span, values) in spans.iter().zip(values) {
        found[span.prompt].extend(values);
    }
    found
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
        let of = |spans: &[Span]| Vec::from_iter(spans.iter().map(|s| (s.prompt, s.positions, s.tokens.clone())));
        assert_eq!(of(&found), [(0, 3, vec![1, 2, 10, 11]), (1, 2, vec![3, 20]), (2, 1, vec![4])]);
        let cut = spans(&prompts, &answers, 5, 2);
        let whole = [1, 2, 10, 11, 12, 13];
        let expected = [(0, 2, whole[..3].to_vec()), (0, 2, whole[..5].to_vec()), (0, 1, whole[..6].to_vec())];
        assert_eq!(of(&cut[..3]), expected);
        assert!(cut.iter().all(|s| s.positions <= s.tokens.len()));
    }

    #[test]
    fn rounds_hold_what_may_be_kept() {
        let spans = spans(&[vec![1], vec![2], vec![3]], &[vec![4; 9], vec![5; 9], vec![]], 4, 4);
        let batches = [vec![0], vec![1, 2]];
        let of = |keep| rounds(&batches, &spans, keep).iter().map(|round| round.len()).collect::<Vec<_>>();
        assert_eq!(of(9), [2]);
        assert_eq!(of(8), [1, 1]);
        assert_eq!(of(1), [1, 1]);
        assert!(rounds(&[], &spans, 1).is_empty());
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
