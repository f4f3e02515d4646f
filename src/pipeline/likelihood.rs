//! Log-likelihoods of given tokens: queries grouped into runs whose logits fit a fixed room.

use std::collections::HashMap;
use std::ops::Range;

use super::engine::{Engine, Row};
use crate::error::Error;
use crate::instrument::Request;
use crate::method::score::log_softmax;

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
/// positions: cutting runs a query more than once and changes no number. `advance` is told of every span that is done.
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
    let chunk = chunk.clamp(1, room);
    let spans = spans(queries, chunk);
    let mut found: Vec<Vec<f64>> = queries.iter().map(|q| vec![0.0; q.scored]).collect();
    let Some(positions) = spans.iter().map(|s| s.positions).max() else { return Ok(found) };
    let mut session = engine.session(Request { logits: positions, last_positions: 1, ..Request::default() })?;
    let engine = Engine { batch: engine.batch.clamp(1, (room / positions).max(1)), ..*engine };
    let rows: Vec<Row<'_>> = spans.iter().map(|s| Row { tokens: s.input, direction: 0 }).collect();
    let mut vocabulary = Vocabulary::new(positions);
    engine.visit(&mut session, &rows, &[], |result| {
        let span = &spans[result.row];
        let width = vocabulary.of(&result.logits, span.input.len())?;
        let returned = result.logits.len() / width;
        for (query, range) in &span.wanted {
            let (tokens, scored) = (queries[*query].tokens, queries[*query].scored);
            for at in range.clone() {
                // the last position of the input predicts the token that ends the range
                let position = returned - (range.end - at);
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

/// How many spans [`log_likelihoods`] will run.
pub(super) fn steps(queries: &[Query<'_>], chunk: usize, room: usize) -> u64 {
    spans(queries, chunk.clamp(1, room)).len() as u64
}

/// The width of the logits, which no graph need declare.
pub(super) struct Vocabulary {
    positions: usize,
    width: Option<usize>,
}

impl Vocabulary {
    /// For a session that returns logits of `positions`.
    pub(super) fn new(positions: usize) -> Self {
        Self { positions, width: None }
    }

    /// `d_vocab`, from a row's `[returned, d_vocab]` logits. A batch of short rows returns fewer positions than were
    /// asked for, so that it is told by a row with `tokens` for all of them: batches are run longest first.
    ///
    /// # Errors
    /// If the logits have another size than the rows before.
    pub(super) fn of(&mut self, logits: &[f32], tokens: usize) -> Result<usize, Error> {
        if self.width.is_none() && tokens >= self.positions {
            self.width = Some(logits.len() / self.positions);
        }
        self.width
            .filter(|width| *width > 0 && logits.len().is_multiple_of(*width))
            .ok_or_else(|| Error::failed(format!("the model returned {} logits for {tokens} tokens", logits.len())))
    }
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

    #[test]
    fn the_vocabulary_is_told_by_a_row_that_fills_the_positions() {
        let mut vocabulary = Vocabulary::new(3);
        assert!(vocabulary.of(&[0.0; 20], 2).is_err());
        assert_eq!(vocabulary.of(&[0.0; 30], 3).unwrap(), 10);
        assert_eq!(vocabulary.of(&[0.0; 20], 2).unwrap(), 10);
        assert!(vocabulary.of(&[0.0; 25], 2).is_err());
    }
}
