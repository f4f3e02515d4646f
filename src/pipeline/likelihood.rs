//! Log-likelihoods of given tokens: queries grouped into runs whose logits fit a fixed room.

use std::collections::HashMap;
use std::ops::Range;

use super::engine::{Engine, Observer, Row};
use super::stage::Stage;
use crate::error::Error;
use crate::instrument::Request;
use crate::method::score::log_softmax;
use crate::runtime::reading::Positions;

/// Tokens whose end is scored, given all that is before it.
#[derive(Debug, Clone, Copy)]
pub struct Query<'t> {
    /// Token ids, the scored ones last.
    pub tokens: &'t [u32],
    /// How many of the last tokens are scored: at least 1, fewer than there are tokens.
    pub scored: usize,
}

/// A run's row: an input, the positions of it that are wanted, and who wants them.
struct Span<'t> {
    input: &'t [u32],
    /// Logits of this many last positions are wanted.
    positions: usize,
    /// Query and the range of its tokens that the last positions predict.
    wanted: Vec<(usize, Range<usize>)>,
}

/// Cuts queries into spans of at most `chunk` positions. What a span is given is all of the query before its end, so
/// cutting changes no number; queries that differ in their last token only share a span.
fn spans<'t>(queries: &[Query<'t>], chunk: usize) -> Vec<Span<'t>> {
    let mut found: Vec<Span<'t>> = Vec::new();
    let mut known: HashMap<&[u32], usize> = HashMap::new();
    for (index, query) in queries.iter().enumerate() {
        let first = query.tokens.len() - query.scored;
        let mut begin = first;
        while begin < query.tokens.len() {
            let end = (begin + chunk).min(query.tokens.len());
            let input = &query.tokens[..end - 1];
            let at = *known.entry(input).or_insert_with(|| {
                found.push(Span { input, positions: 0, wanted: Vec::new() });
                found.len() - 1
            });
            found[at].positions = found[at].positions.max(end - begin);
            found[at].wanted.push((index, begin..end));
            begin = end;
        }
    }
    found
}

/// Log-likelihood of each scored token of each query, in nats: `[query][scored token]`.
///
/// `chunk` bounds the positions that a row returns logits of; `room` (see [`Engine::room`]) bounds rows times
/// positions: cutting runs a query more than once and changes no number. Where the file returns logits of the last
/// position only, every scored token is a run of its own. `advance` is told of every span that is done.
///
/// # Errors
/// If a run fails, on cancellation, or if a token is outside the model's vocabulary.
pub fn log_likelihoods(
    engine: &Engine<'_>,
    queries: &[Query<'_>],
    chunk: usize,
    room: usize,
    mut advance: impl FnMut(u64),
) -> Result<Vec<Vec<f64>>, Error> {
    scored(engine, queries, (chunk, room), (&mut |_, _| (), &mut advance))
}

/// The same as a stage of `observer`.
pub(super) fn observed(
    engine: &Engine<'_>,
    queries: &[Query<'_>],
    bounds: (usize, usize),
    (observer, stage): (&dyn Observer, &Stage),
) -> Result<Vec<Vec<f64>>, Error> {
    let mut begin = |spans, positions| {
        if positions == Positions::Last {
            observer.note(LAST_ONLY);
        }
        observer.start(stage, spans);
    };
    let found = scored(engine, queries, bounds, (&mut begin, &mut |spans| observer.advance(spans)))?;
    observer.finish();
    Ok(found)
}

/// Told of the number of spans and of the positions that the file returns, before the first run; and of spans that are done.
type Told<'t> = (&'t mut dyn FnMut(u64, Positions), &'t mut dyn FnMut(u64));

fn scored(
    engine: &Engine<'_>,
    queries: &[Query<'_>],
    (chunk, room): (usize, usize),
    (begin, advance): Told<'_>,
) -> Result<Vec<Vec<f64>>, Error> {
    let chunk = chunk.clamp(1, room);
    let mut spans_found = spans(queries, chunk);
    let mut found: Vec<Vec<f64>> = queries.iter().map(|q| vec![0.0; q.scored]).collect();
    let Some(positions) = spans_found.iter().map(|s| s.positions).max() else { return Ok(found) };
    let mut session = engine.session(Request { logits: positions, last_positions: 1, ..Request::default() })?;
    if session.positions() == Positions::Last {
        spans_found = spans(queries, 1);
    }
    let spans = spans_found;
    let engine = Engine { batch: engine.batch.clamp(1, (room / positions).max(1)), ..*engine };
    let rows: Vec<Row<'_>> = spans.iter().map(|s| Row { tokens: s.input, direction: 0 }).collect();
    let width = session.width();
    begin(spans.len() as u64, session.positions());
    engine.visit(&mut session, &rows, &[], |result| {
        let span = &spans[result.row];
        let returned = result.logits.len() / width.max(1);
        for (query, range) in &span.wanted {
            let (tokens, scored) = (queries[*query].tokens, queries[*query].scored);
            for at in range.clone() {
                // the last position of the input predicts the token that ends the range
                let position = returned.checked_sub(range.end - at).ok_or_else(|| too_few(returned, range.end - at))?;
                let logits = &result.logits[position * width..(position + 1) * width];
                let value = log_softmax(logits, tokens[at]).ok_or_else(|| outside(tokens[at], width))?;
                found[*query][at + scored - tokens.len()] = value;
            }
        }
        advance(1);
        Ok(())
    })?;
    Ok(found)
}

/// What is said where a file returns logits of the last position only.
pub(super) const LAST_ONLY: &str = "the model returns logits of the last token only: every position that is scored is a run of its own, which takes longer";

pub(super) fn too_few(returned: usize, wanted: usize) -> Error {
    Error::failed(format!("the model returned logits of {returned} positions where {wanted} were asked for"))
}

fn outside(token: u32, width: usize) -> Error {
    Error::failed_with(
        format!("token {token} is outside the model's vocabulary of {width}"),
        "the tokenizer belongs to another model: give the right one with `--tokenizer`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_query_is_cut_and_equal_inputs_are_run_once() {
        let (a, b, c) = ([1, 2, 3, 4, 5, 6], [1, 2, 3, 7], [1, 2, 3, 8]);
        let queries =
            [Query { tokens: &a, scored: 5 }, Query { tokens: &b, scored: 1 }, Query { tokens: &c, scored: 1 }];
        let found = spans(&queries, 2);
        let inputs: Vec<usize> = found.iter().map(|s| s.input.len()).collect();
        assert_eq!(inputs, [2, 4, 5, 3]);
        assert_eq!(found[0].wanted, [(0, 1..3)]);
        assert_eq!(found[2].wanted, [(0, 5..6)]);
        assert_eq!(found[3].wanted, [(1, 3..4), (2, 3..4)]);
        assert!(found.iter().all(|s| s.positions <= s.input.len()));
        assert_eq!(spans(&queries, 9).len(), 2);
    }
}
