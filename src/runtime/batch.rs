//! Batches of prompts, and the feeds of one run.

use ndarray::{Array2, ArrayD, Axis, IxDyn, Slice};

use super::backend::{Backend, RuntimeError, Tensor};
use crate::lm::{Interface, Padding};
use crate::onnx::DataType;

/// Groups prompts into batches of at most `size` rows: by length, longest first, so that padding is
/// small and memory peaks in the first run. Returns indices into `lengths`.
pub fn plan(lengths: &[usize], size: usize, interface: &Interface) -> Vec<Vec<usize>> {
    let size = if interface.single { 1 } else { size.max(1) };
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for index in order {
        let fits = batches.last().is_some_and(|batch| {
            batch.len() < size && (interface.padding == Padding::Left || lengths[batch[0]] == lengths[index])
        });
        if fits {
            batches.last_mut().expect("it fits into the last one").push(index);
        } else {
            batches.push(vec![index]);
        }
    }
    batches
}

/// A batch of token sequences, padded on the left.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, `[rows, n_pos]`.
    pub ids: Array2<i64>,
    /// 1 where a token is real.
    pub mask: Array2<i64>,
}

impl Batch {
    /// Pads `rows` on the left with token `pad` (any valid token: it is masked).
    pub fn new(rows: &[&[u32]], pad: u32) -> Self {
        let width = rows.iter().map(|r| r.len()).max().unwrap_or(0);
        let mut ids = Array2::from_elem((rows.len(), width), i64::from(pad));
        let mut mask = Array2::zeros((rows.len(), width));
        for (row, tokens) in rows.iter().enumerate() {
            let skip = width - tokens.len();
            for (at, token) in tokens.iter().enumerate() {
                ids[[row, skip + at]] = i64::from(*token);
                mask[[row, skip + at]] = 1;
            }
        }
        Self { ids, mask }
    }
}

/// Position of each token among the real ones of its row; padding gets 1, as transformers does.
pub fn positions(mask: &Array2<i64>) -> Array2<i64> {
    let mut out = mask.clone();
    for mut row in out.rows_mut() {
        let mut seen = 0;
        for value in &mut row {
            *value = if *value == 0 {
                1
            } else {
                seen += 1;
                seen - 1
            };
        }
    }
    out
}

/// Everything but the KV cache for one run. `mask` covers past and present, `ids` the present only.
///
/// # Errors
/// If the backend cannot hold a tensor.
pub fn feeds<B: Backend>(
    backend: &B,
    interface: &Interface,
    ids: &Array2<i64>,
    mask: &Array2<i64>,
) -> Result<Vec<(String, B::Value)>, RuntimeError> {
    let mut out = Vec::new();
    let present = ids.ncols();
    let mut push = |name: &Option<String>, tensor: Tensor| -> Result<(), RuntimeError> {
        if let Some(name) = name
            && let Some(dtype) = backend.input_type(name)
        {
            out.push((name.clone(), backend.upload(tensor, dtype)?));
        }
        Ok(())
    };
    push(&Some(interface.input_ids.clone()), Tensor::I64(ids.clone().into_dyn()))?;
    push(&interface.attention_mask, Tensor::I64(mask.clone().into_dyn()))?;
    let all = positions(mask);
    let tail = all.slice_axis(Axis(1), Slice::from(all.ncols() - present..)).to_owned();
    push(&interface.position_ids, Tensor::I64(tail.into_dyn()))?;
    push(&interface.token_type_ids, Tensor::I64(Array2::zeros(ids.dim()).into_dyn()))?;
    push(&interface.num_logits_to_keep, Tensor::I64(ArrayD::from_elem(IxDyn(&[]), 0)))?;
    Ok(out)
}

/// An empty KV cache for `rows` sequences of up to `positions` tokens.
///
/// # Errors
/// If the backend cannot hold a tensor.
pub fn empty_cache<B: Backend>(
    backend: &B,
    interface: &Interface,
    rows: usize,
    positions: usize,
) -> Result<Vec<B::Value>, RuntimeError> {
    interface
        .cache
        .iter()
        .map(|slot| {
            let mut shape = slot.empty.clone();
            shape[slot.batch_axis] *= rows;
            if let (Some(window), Some(axis)) = (slot.window, slot.sequence_axis) {
                shape[axis] = window.max(positions);
            }
            let dtype = backend.input_type(&slot.past).unwrap_or(DataType::FLOAT);
            backend.upload(Tensor::F32(ArrayD::zeros(IxDyn(&shape))), dtype)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(padding: Padding) -> Interface {
        Interface {
            input_ids: "input_ids".into(),
            inputs_embeds: None,
            attention_mask: None,
            position_ids: None,
            token_type_ids: None,
            use_cache_branch: None,
            num_logits_to_keep: None,
            cache: vec![],
            logits: "logits".into(),
            padding,
            single: false,
        }
    }

    #[test]
    fn padding_is_on_the_left_and_positions_count_real_tokens() {
        let batch = Batch::new(&[&[5, 6, 7], &[8]], 0);
        assert_eq!(batch.ids, ndarray::array![[5, 6, 7], [0, 0, 8]]);
        assert_eq!(batch.mask, ndarray::array![[1, 1, 1], [0, 0, 1]]);
        assert_eq!(positions(&batch.mask), ndarray::array![[0, 1, 2], [1, 1, 0]]);
    }

    #[test]
    fn every_prompt_is_in_one_batch_and_lengths_stay_apart_without_positions() {
        let lengths = [3, 5, 3, 4, 5, 5];
        for padding in [Padding::Left, Padding::EqualLengths] {
            let batches = plan(&lengths, 2, &interface(padding));
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
            assert!(batches.iter().all(|b| b.len() <= 2));
            if padding == Padding::EqualLengths {
                assert!(batches.iter().all(|b| b.iter().all(|&i| lengths[i] == lengths[b[0]])));
            }
        }
        let single = Interface { single: true, ..interface(Padding::Left) };
        assert_eq!(plan(&lengths, 8, &single).len(), 6);
    }
}
