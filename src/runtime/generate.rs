//! Greedy generation with a KV cache, batched.

use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array2, Axis, concatenate};

use super::backend::{Backend, RuntimeError};
use super::batch::{self, Batch};
use crate::lm::Interface;

/// When to stop.
#[derive(Debug, Clone)]
pub struct Limits {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
    /// Token to pad with.
    pub pad: u32,
}

/// Index of the largest value; the first one on a tie, as torch does.
pub fn argmax(values: impl IntoIterator<Item = f32>) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, value) in values.into_iter().enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// Answers of one batch of prompts, token by token, without the stop token. `logits` is the name of an
/// output with the logits of the last position, `[rows, 1, d_vocab]`. A merged decoder has a `decoder` of its own
/// for every step after the first.
///
/// # Errors
/// If a run fails, or on [`RuntimeError::Cancelled`].
pub fn greedy<B: Backend>(
    backend: &mut B,
    mut decoder: Option<&mut B>,
    interface: &Interface,
    logits: &str,
    prompts: &[&[u32]],
    limits: &Limits,
    cancelled: &AtomicBool,
) -> Result<Vec<Vec<u32>>, RuntimeError> {
    let rows = prompts.len();
    let mut answers: Vec<Vec<u32>> = vec![Vec::new(); rows];
    let mut done = vec![false; rows];
    let start = Batch::new(prompts, limits.pad);
    let (mut ids, mut mask) = (start.ids, start.mask);
    let caching = !interface.cache.is_empty();
    // the first step of a merged decoder runs a branch that takes no cache
    let mut cache = if decoder.is_some() {
        Vec::new()
    } else {
        batch::empty_cache(backend, interface, rows, ids.ncols() + limits.max_new_tokens)?
    };
    let mut outputs = vec![logits.to_string()];
    outputs.extend(interface.cache.iter().map(|slot| slot.present.clone()));
    for step in 0..limits.max_new_tokens {
        if cancelled.load(Ordering::Relaxed) {
            return Err(RuntimeError::Cancelled);
        }
        let backend = match &mut decoder {
            Some(decoder) if step > 0 => &mut **decoder,
            _ => &mut *backend,
        };
        let feeds = batch::feeds(backend, interface, &ids, &mask)?;
        let mut inputs: Vec<(String, &B::Value)> = feeds.iter().map(|(name, value)| (name.clone(), value)).collect();
        inputs.extend(interface.cache.iter().zip(&cache).map(|(slot, value)| (slot.past.clone(), value)));
        let mut found = backend.run(inputs, &outputs)?.into_iter();
        let values = backend.download(&found.next().expect("the logits were asked for"))?;
        cache = found.collect();
        let mut next = Array2::from_elem((rows, 1), i64::from(limits.pad));
        for row in 0..rows {
            if done[row] {
                continue;
            }
            let of_row = values.index_axis(Axis(0), row);
            let last = of_row.index_axis(Axis(0), of_row.len_of(Axis(0)) - 1);
            let token = u32::try_from(argmax(last.iter().copied())).expect("a vocabulary fits in u32");
            if limits.stop.contains(&token) {
                done[row] = true;
            } else {
                answers[row].push(token);
                next[[row, 0]] = i64::from(token);
            }
        }
        if done.iter().all(|d| *d) {
            break;
        }
        let ones = Array2::ones((rows, 1));
        mask = concatenate(Axis(1), &[mask.view(), ones.view()]).expect("one row each");
        ids = if caching { next } else { concatenate(Axis(1), &[ids.view(), next.view()]).expect("one row each") };
    }
    Ok(answers)
}
