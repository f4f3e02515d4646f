//! The KV cache of what several prompts begin with.
//!
//! A batch lies as it does without: padded on the left. The first columns, as many as the common beginning has tokens,
//! are taken from the cache, the others are run:
//!
//! ```text
//!            cache     run
//! long       a b c d | e f g h
//! short      - a b c | d x y z
//! ```
//!
//! So every token has the same place among the keys, and sees the same ones, as if all columns had been run.

use std::collections::HashMap;

use super::backend::{Backend, Fill, Pick, RuntimeError};
use super::batch;
use crate::lm::Interface;

/// The key of rows that are all run alike.
pub const ALIKE: usize = usize::MAX;

/// What runs of a common beginning left in the KV cache.
#[derive(Debug)]
pub struct Prefix<V> {
    /// The beginning.
    pub tokens: Vec<u32>,
    /// The cache of each run in the order of the interface, and how many rows it holds.
    runs: Vec<(Vec<V>, usize)>,
    /// Run and row by what was done to the stream meanwhile.
    places: HashMap<usize, (usize, usize)>,
}

/// A row that begins with it.
#[derive(Debug, Clone, Copy)]
pub struct Behind {
    /// Tokens of the row, the beginning included.
    pub tokens: usize,
    /// What is done to the stream.
    pub key: usize,
}

impl<V> Prefix<V> {
    /// A beginning of which nothing was run yet.
    pub fn new(tokens: &[u32]) -> Self {
        Self { tokens: tokens.to_vec(), runs: Vec::new(), places: HashMap::new() }
    }

    /// Whether the cache of a key is there.
    pub fn has(&self, key: usize) -> bool {
        self.places.contains_key(&key)
    }

    /// Number of keys whose cache is there.
    pub fn held(&self) -> usize {
        self.places.len()
    }

    /// Adds the cache of a run with one row for each of `keys`.
    pub fn add(&mut self, cache: Vec<V>, keys: &[usize]) {
        self.places.extend(keys.iter().enumerate().map(|(row, key)| (*key, (self.runs.len(), row))));
        self.runs.push((cache, keys.len()));
    }

    /// The cache in front of the columns that are run. The longest row takes all of the beginning.
    ///
    /// # Errors
    /// If the backend cannot put rows together.
    pub fn past<B: Backend<Value = V>>(
        &self,
        backend: &B,
        interface: &Interface,
        rows: &[Behind],
    ) -> Result<Vec<V>, RuntimeError> {
        let longest = rows.iter().map(|row| row.tokens).max().unwrap_or(0);
        let of_slot = |(at, slot)| {
            let pick = |row: &Behind| {
                let (run, held_at) = self.places[&row.key];
                let (cache, held) = &self.runs[run];
                let taken = self.tokens.len().saturating_sub(longest - row.tokens);
                Pick { value: &cache[at], rows: *held, row: held_at, positions: 0..taken }
            };
            let picks: Vec<Pick<'_, V>> = rows.iter().map(pick).collect();
            backend.gather_rows(&picks, batch::axes(slot), Fill::Front)
        };
        interface.cache.iter().enumerate().map(of_slot).collect()
    }
}

/// Tokens that all of `rows` begin with, less those that each must still run: `keep` at least. 0 where nothing is saved
/// with so many keys.
pub fn common(rows: &[&[u32]], keys: usize, keep: usize) -> usize {
    let Some((first, others)) = rows.split_first() else { return 0 };
    let alike = |other: &&[u32]| first.iter().zip(*other).take_while(|(a, b)| a == b).count();
    let shared = others.iter().map(alike).min().unwrap_or(0);
    let shortest = rows.iter().map(|row| row.len()).min().unwrap_or(0);
    if rows.len() <= keys { 0 } else { shared.min(shortest.saturating_sub(keep.max(1))) }
}

#[cfg(test)]
mod tests {
    use super::common;

    #[test]
    fn what_rows_have_in_common_leaves_each_its_end() {
        let rows: [&[u32]; 3] = [&[1, 2, 3, 4, 9, 9], &[1, 2, 3, 4, 8], &[1, 2, 3, 7, 7]];
        assert_eq!(common(&rows, 1, 1), 3);
        assert_eq!(common(&rows, 1, 3), 2);
        assert_eq!(common(&rows[..2], 1, 1), 4);
        assert_eq!(common(&[&[1, 2], &[1, 2]], 1, 1), 1);
        // as many keys as rows: nothing is run twice
        assert_eq!(common(&rows, 3, 1), 0);
        assert_eq!(common(&[], 1, 1), 0);
    }
}
