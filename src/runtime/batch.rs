//! Batches of prompts, and the feeds of one run.

use std::ops::Range;

use ndarray::{Array2, ArrayD, Axis, IxDyn, Slice, concatenate};

use super::backend::{Backend, RowAxes, RuntimeError, Tensor};
use super::machine;
use crate::lm::interface::feeding::HIDDEN;
use crate::lm::interface::{CacheSlot, Line, MaskAxis, Past, Sense};
use crate::lm::{Interface, Padding};
use crate::onnx::DataType;

/// Rows that may share a run, found by comparing a row among others with the same row alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Rows of any lengths, the shorter ones padded on the left.
    Padded,
    /// Rows of one length.
    EqualLengths,
    /// None.
    Single,
}

/// How the end of a row can be run behind a KV cache of its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Splitting {
    /// Not at all.
    Never,
    /// One row a run.
    Alone,
    /// Several rows a run.
    Together,
}

/// Tokens of a row that the memory of a run is planned for: rows that are longer, with their answers, share a run with
/// fewer others. What a model holds of each token while it runs, and of each one in its KV cache, bounds the memory.
const ROW_TOKENS: usize = 128;

/// Tokens that a run holds at most, all rows together, if one row has no more.
const RUN_TOKENS: usize = 1 << 14;

/// Pairs of tokens of a row that a run is fed at most, all rows together: attention may hold scores of each pair, for every
/// head. A row that has more by itself is run in [`pieces`].
const RUN_PAIRS: usize = 1 << 20;

/// Columns that a piece of a long run has at least.
const PIECE: usize = 128;

/// Where rows of fewer positions are padded in the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// In front of their first token.
    Left,
    /// Behind their last one: for operators that are told how many positions of each row are filled.
    Right,
}

/// Times that a run holds its KV cache: what it is fed, what it returns, and while rows are put together once more.
const COPIES: usize = 3;

/// Bytes of the KV cache of one row of `tokens` tokens.
pub fn cache_bytes(interface: &Interface, tokens: usize) -> usize {
    let of_slot = |slot: &CacheSlot| {
        let sizes = slot.empty.iter().enumerate();
        let values = sizes.map(|(axis, size)| if slot.sequence_axis == Some(axis) { tokens } else { *size });
        // bfloat16 is widened to float32 where it is not computed with
        let size = slot.dtype.size().filter(|_| slot.dtype != DataType::BFLOAT16);
        values.fold(size.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(4), usize::saturating_mul)
    };
    interface.cache.iter().map(of_slot).fold(0, usize::saturating_add)
}

/// Rows of `tokens` tokens, of `size` that may share a run, whose KV cache fits into `memory` bytes with all of its copies
/// and that have no more tokens together than a run holds; one at least.
fn rows_in(memory: usize, interface: &Interface, tokens: usize, size: usize) -> usize {
    let by_memory = memory / cache_bytes(interface, tokens).saturating_mul(COPIES).max(1);
    let held = size.saturating_mul(ROW_TOKENS).min(RUN_TOKENS);
    size.min(by_memory).min(held / tokens.max(1)).max(1)
}

/// Rows of `tokens` tokens, of `size` that may share a run, that a run holds at most on this machine; one at least.
pub fn rows_held(interface: &Interface, tokens: usize, size: usize) -> usize {
    rows_in(machine::memory_for_caches(), interface, tokens, size)
}

/// Rows of `tokens` tokens, of `size` that may share a run, that a run is fed at most; one at least.
fn rows_of(interface: &Interface, tokens: usize, size: usize) -> usize {
    let tokens = tokens.max(1);
    rows_held(interface, tokens, size).min(RUN_PAIRS / tokens.saturating_mul(tokens)).max(1)
}

/// The pieces in which the columns of a run behind `past` others are run, each behind the cache of those before it, so that
/// attention holds scores of few pairs at a time: ranges of columns, counted from the first one of the past. The last
/// piece has `keep` columns at least. Only a row that is alone makes more than one, as [`plan`] puts rows together only
/// where all of their pairs fit.
pub fn pieces(past: usize, columns: usize, keep: usize) -> Vec<Range<usize>> {
    let end = past + columns;
    let mut found = Vec::new();
    let mut from = past;
    while from < end {
        // the piece sees all columns up to its own end
        let to = from + (RUN_PAIRS / end).max(PIECE);
        let to = if to + keep.max(PIECE) > end { end } else { to };
        found.push(from..to);
        from = to;
    }
    found
}

/// Groups prompts into batches of at most `size` rows: by length, longest first, so that padding is
/// small and memory peaks in the first run. Long prompts share a batch with fewer others, so that memory stays bounded.
/// Returns indices into `lengths`.
pub fn plan(lengths: &[usize], size: usize, interface: &Interface) -> Vec<Vec<usize>> {
    let size = if interface.single { 1 } else { size.max(1) };
    let size = interface.feeding.rows.map_or(size, |rows| size.min(rows));
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for index in order {
        let fits = batches.last().is_some_and(|batch| {
            let longest = lengths[batch[0]];
            let alike = interface.padding == Padding::Left || longest == lengths[index];
            batch.len() < rows_of(interface, longest, size) && alike
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
    /// Token ids, `[rows, n_pos]`: of all columns of the mask, or of its last ones.
    pub ids: Array2<i64>,
    /// 1 where a token is real.
    pub mask: Array2<i64>,
}

impl Batch {
    /// The tokens of some columns, with the mask up to their end.
    #[must_use]
    pub fn columns(&self, columns: Range<usize>) -> Self {
        let past = self.mask.ncols() - self.ids.ncols();
        let ids = self.ids.slice_axis(Axis(1), Slice::from(columns.start - past..columns.end - past)).to_owned();
        Self { ids, mask: self.mask.slice_axis(Axis(1), Slice::from(..columns.end)).to_owned() }
    }

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

    /// The same with padding on the left up to the number of tokens that the graph takes, where it takes one number
    /// only; and with the last row again up to the number of rows, where that is fixed.
    ///
    /// # Errors
    /// [`RuntimeError::Positions`] if the rows are longer, [`RuntimeError::Length`] if they are shorter and cannot be
    /// padded.
    pub fn fitted(mut self, interface: &Interface, pad: u32) -> Result<Self, RuntimeError> {
        let missing = interface.feeding.rows.map_or(0, |rows| rows.saturating_sub(self.ids.nrows()));
        if missing > 0 && self.ids.nrows() > 0 {
            let last = self.ids.nrows() - 1;
            let rows: Vec<usize> = (0..=last).chain(std::iter::repeat_n(last, missing)).collect();
            (self.ids, self.mask) = (self.ids.select(Axis(0), &rows), self.mask.select(Axis(0), &rows));
        }
        let (rows, width) = self.ids.dim();
        match interface.feeding.length {
            Some(limit) if width > limit => Err(RuntimeError::Positions { tokens: width, limit }),
            Some(limit) if width < limit && interface.padding != Padding::Left => {
                Err(RuntimeError::Length { tokens: width, length: limit })
            }
            Some(limit) if width < limit => {
                let front = |value: i64| Array2::from_elem((rows, limit - width), value);
                let join = |front: Array2<i64>, rest: &Array2<i64>| {
                    concatenate(Axis(1), &[front.view(), rest.view()]).expect("one row each")
                };
                Ok(Self { ids: join(front(i64::from(pad)), &self.ids), mask: join(front(0), &self.mask) })
            }
            _ => Ok(self),
        }
    }
}

/// Axes of the rows and positions of a part of the KV cache.
pub fn axes(slot: &CacheSlot) -> RowAxes {
    RowAxes { batch: slot.batch_axis, positions: slot.sequence_axis }
}

/// Checks that every part of a KV cache that has positions holds `positions` of them, by the sizes of each part in the
/// order of the interface: a graph may keep the last ones only.
///
/// # Errors
/// [`RuntimeError::Output`] with the part that does not.
pub fn check_cache(interface: &Interface, shapes: &[Vec<usize>], positions: usize) -> Result<(), RuntimeError> {
    for (slot, shape) in interface.cache.iter().zip(shapes) {
        let Some(axis) = slot.sequence_axis else { continue };
        if shape.get(axis) != Some(&positions) {
            return Err(RuntimeError::Output {
                name: slot.present.clone(),
                expected: format!("{positions} positions on axis {axis}"),
                got: format!("{shape:?}"),
            });
        }
    }
    Ok(())
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

/// Everything but the KV cache for one run. `mask` covers past and present, `ids` the present only. With
/// [`Layout::Right`] there is one token a row, the last one that its mask covers.
///
/// # Errors
/// If the backend cannot hold a tensor, or if an input is declared with other sizes.
pub fn feeds<B: Backend>(
    backend: &B,
    interface: &Interface,
    ids: &Array2<i64>,
    mask: &Array2<i64>,
    layout: Layout,
) -> Result<Vec<(String, B::Value)>, RuntimeError> {
    let mut out = Vec::new();
    let (rows, present) = ids.dim();
    let past = mask.ncols().saturating_sub(present);
    let feeding = &interface.feeding;
    let mut push = |name: Option<&String>, tensor: Tensor| -> Result<(), RuntimeError> {
        if let Some(name) = name
            && let Some(dtype) = backend.input_type(name)
        {
            check_shape(backend, name, tensor.shape())?;
            out.push((name.clone(), backend.upload(tensor, dtype)?));
        }
        Ok(())
    };
    push(Some(&interface.input_ids), Tensor::I64(line(ids, feeding.tokens)))?;
    if let Some(name) = &interface.attention_mask {
        let dtype = backend.input_type(name).unwrap_or(DataType::INT64);
        push(Some(name), attention_mask(interface, mask, present, dtype))?;
    }
    let tail = match layout {
        Layout::Left => {
            let all = positions(mask);
            all.slice_axis(Axis(1), Slice::from(all.ncols() - present..)).to_owned()
        }
        Layout::Right => mask.sum_axis(Axis(1)).mapv(|tokens| tokens - 1).insert_axis(Axis(1)),
    };
    push(interface.position_ids.as_ref(), Tensor::I64(line(&tail, feeding.positions)))?;
    let places = (past..past + present).map(|at| at as i64).collect::<Vec<i64>>();
    push(
        interface.cache_position.as_ref(),
        Tensor::I64(ArrayD::from_shape_vec(IxDyn(&[present]), places).expect("one a token")),
    )?;
    push(interface.token_type_ids.as_ref(), Tensor::I64(line(&Array2::zeros((rows, present)), feeding.tokens)))?;
    let keep = vec![1; feeding.keep_rank];
    push(interface.num_logits_to_keep.as_ref(), Tensor::I64(ArrayD::from_elem(IxDyn(&keep), 0)))?;
    for (name, sizes) in &feeding.zeros {
        push(Some(name), Tensor::F32(ArrayD::zeros(IxDyn(sizes))))?;
    }
    Ok(out)
}

/// Rows as an input wants them.
fn line(rows: &Array2<i64>, shape: Line) -> ArrayD<i64> {
    match shape {
        Line::Rows => rows.clone().into_dyn(),
        Line::Flat => rows.row(0).to_owned().into_dyn(),
        Line::One => rows.slice_axis(Axis(0), Slice::from(..1)).to_owned().into_dyn(),
        Line::Copies(copies) => {
            let view = rows.view().insert_axis(Axis(0));
            let (n_rows, n_pos) = rows.dim();
            view.broadcast((copies, n_rows, n_pos)).expect("a new axis of one entry").to_owned().into_dyn()
        }
    }
}

/// The mask in the form that the graph takes, for `present` new tokens at the end of what `mask` covers.
fn attention_mask(interface: &Interface, mask: &Array2<i64>, present: usize, dtype: DataType) -> Tensor {
    let form = &interface.feeding.mask;
    // hidden positions in front
    let front = match interface.feeding.past {
        Past::Hidden(n) => n,
        Past::Empty | Past::Filled(_) => 0,
    };
    let keys = front + mask.ncols();
    let past = mask.ncols() - present;
    let seen = |row: usize, query: Option<usize>, key: usize| -> bool {
        let Some(key) = key.checked_sub(front) else { return false };
        match query {
            None => mask[[row, key]] != 0,
            // padding looks at itself, so that no row of scores is empty
            Some(query) => key == past + query || (key < past + query && mask[[row, key]] != 0),
        }
    };
    let queries = form.has_queries();
    let shape: Vec<usize> = form
        .axes
        .iter()
        .map(|axis| match axis {
            MaskAxis::Batch => mask.nrows(),
            MaskAxis::Same(n) => *n,
            MaskAxis::Queries => present,
            MaskAxis::Keys => keys,
        })
        .collect();
    let of_axis = |wanted: MaskAxis| form.axes.iter().position(|axis| *axis == wanted);
    let (batch, query, key) = (of_axis(MaskAxis::Batch), of_axis(MaskAxis::Queries), of_axis(MaskAxis::Keys));
    let sees = ArrayD::from_shape_fn(IxDyn(&shape), |at| {
        let entry = |axis: Option<usize>| axis.map_or(0, |axis| at[axis]);
        seen(entry(batch), queries.then(|| entry(query)), entry(key))
    });
    match form.sense {
        Sense::Keeps => Tensor::I64(sees.mapv(i64::from)),
        Sense::Hides => Tensor::I64(sees.mapv(|sees| i64::from(!sees))),
        Sense::Adds => {
            // sums of two such masks must stay within float16
            let hidden = if dtype == DataType::FLOAT16 { -3e4 } else { HIDDEN as f32 };
            Tensor::F32(sees.mapv(|sees| if sees { 0.0 } else { hidden }))
        }
    }
}

/// Compares what is to be fed with what the model declares.
fn check_shape<B: Backend>(backend: &B, name: &str, fed: &[usize]) -> Result<(), RuntimeError> {
    // ONNX Runtime tells no rank of an input that declares none: no dimensions
    let Some(declared) = backend.input_shape(name).filter(|dims| !dims.is_empty()) else { return Ok(()) };
    let fits =
        declared.len() == fed.len() && declared.iter().zip(fed).all(|(want, got)| want.is_none_or(|n| n == *got));
    if fits {
        return Ok(());
    }
    let words: Vec<String> = declared.iter().map(|n| n.map_or("?".to_string(), |n| n.to_string())).collect();
    Err(RuntimeError::Input { name: name.into(), expected: format!("[{}]", words.join(", ")), got: format!("{fed:?}") })
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
            check_shape(backend, &slot.past, &shape)?;
            let dtype = backend.input_type(&slot.past).unwrap_or(DataType::FLOAT);
            backend.upload(Tensor::F32(ArrayD::zeros(IxDyn(&shape))), dtype)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::interface::{Feeding, MaskForm};

    fn interface(padding: Padding) -> Interface {
        Interface {
            input_ids: "input_ids".into(),
            inputs_embeds: None,
            attention_mask: None,
            position_ids: None,
            cache_position: None,
            token_type_ids: None,
            use_cache_branch: None,
            num_logits_to_keep: None,
            cache: vec![],
            logits: "logits".into(),
            padding,
            single: false,
            feeding: Feeding::default(),
            unfed: None,
            cuda_only: None,
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

    #[test]
    fn long_prompts_share_a_run_with_few_others() {
        let of =
            |lengths: &[usize]| plan(lengths, 32, &interface(Padding::Left)).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(of(&[100; 40]), [32, 8]);
        assert_eq!(of(&[500; 5]), [4, 1]);
        assert_eq!(of(&[1000; 2]), [1, 1]);
        assert_eq!(of(&[10_000, 10_000, 3]), [1, 1, 1]);
    }

    fn slot(dtype: DataType) -> CacheSlot {
        CacheSlot {
            past: "past".into(),
            present: "present".into(),
            empty: vec![1, 8, 0, 64],
            batch_axis: 0,
            sequence_axis: Some(2),
            fixed: false,
            window: None,
            dtype,
        }
    }

    #[test]
    fn a_cache_that_lacks_positions_is_refused() {
        let state = CacheSlot { sequence_axis: None, ..slot(DataType::FLOAT) };
        let with = Interface { cache: vec![state, slot(DataType::FLOAT)], ..interface(Padding::Left) };
        let check = |positions| check_cache(&with, &[vec![1, 8, 3, 64], vec![1, 8, 20, 64]], positions);
        check(20).unwrap();
        assert!(matches!(check(21), Err(RuntimeError::Output { name, .. }) if name == "present"));
    }

    #[test]
    fn caches_of_many_rows_fit_into_memory() {
        let with = |dtype| Interface { cache: vec![slot(dtype), slot(dtype)], ..interface(Padding::Left) };
        // 2 parts of 8 heads of 100 positions of 64 numbers
        assert_eq!(cache_bytes(&with(DataType::FLOAT), 100), 409_600);
        assert_eq!(cache_bytes(&with(DataType::FLOAT16), 100), 204_800);
        assert_eq!(cache_bytes(&with(DataType::BFLOAT16), 100), 409_600);
        assert_eq!(rows_in(3 * 409_600 * 5, &with(DataType::FLOAT), 100, 16), 5);
        assert_eq!(rows_in(1000, &with(DataType::FLOAT), 100, 16), 1);
        assert_eq!(rows_in(usize::MAX, &with(DataType::FLOAT), 100, 16), 16);
        // 32 rows of 128 tokens, or 6 of 664; more where a run may have more rows
        assert_eq!(rows_in(usize::MAX, &with(DataType::FLOAT), 128, 32), 32);
        assert_eq!(rows_in(usize::MAX, &with(DataType::FLOAT), 664, 32), 6);
        assert_eq!(rows_in(usize::MAX, &with(DataType::FLOAT), 664, 96), 18);
        assert_eq!(rows_in(usize::MAX, &with(DataType::FLOAT), 664, 1000), RUN_TOKENS / 664);
    }

    #[test]
    fn long_runs_are_made_in_pieces_that_leave_the_end_whole() {
        assert_eq!(pieces(24, 60, 6), Vec::from_iter(std::iter::once(24..84)));
        // as many rows as share a run leave each one whole
        assert_eq!(pieces(0, 512, 1).len(), 1);
        for (past, columns, keep) in [(0, 10_600, 6), (24, 100_000, 1), (0, 3000, 900)] {
            let found = pieces(past, columns, keep);
            assert!(found.len() > 1);
            assert_eq!((found[0].start, found.last().unwrap().end), (past, past + columns));
            assert!(found.windows(2).all(|two| two[0].end == two[1].start));
            assert!(found.last().unwrap().len() >= keep);
            let most = found[..found.len() - 1].iter().map(|piece| piece.len() * piece.end).max().unwrap();
            assert!(most <= RUN_PAIRS.max(PIECE * (past + columns)), "{most}");
        }
    }

    #[test]
    fn columns_of_a_batch_see_those_before_them() {
        let batch = Batch::new(&[&[1, 2, 3, 4], &[5, 6]], 0);
        let middle = batch.columns(1..3);
        assert_eq!(middle.ids, ndarray::array![[2, 3], [0, 5]]);
        assert_eq!(middle.mask, ndarray::array![[1, 1, 1], [0, 0, 1]]);
        assert_eq!(batch.columns(2..4).columns(3..4).ids, ndarray::array![[4], [6]]);
    }

    #[test]
    fn masks_are_made_as_the_graph_takes_them() {
        let with = |sense, axes: &[MaskAxis], past| Interface {
            feeding: Feeding { mask: MaskForm { sense, axes: axes.to_vec() }, past, ..Feeding::default() },
            ..interface(Padding::Left)
        };
        let batch = Batch::new(&[&[5, 6, 7], &[8]], 0);
        let made = |interface: &Interface, dtype| match attention_mask(interface, &batch.mask, 3, dtype) {
            Tensor::F32(values) => (values.shape().to_vec(), values.iter().copied().collect::<Vec<f32>>()),
            Tensor::I64(values) => (values.shape().to_vec(), values.iter().map(|v| *v as f32).collect()),
            Tensor::Bool(_) => panic!("made as numbers"),
        };
        let plain = [MaskAxis::Batch, MaskAxis::Keys];
        let int = DataType::INT64;
        assert_eq!(made(&with(Sense::Keeps, &plain, Past::Empty), int), (vec![2, 3], vec![1., 1., 1., 0., 0., 1.]));
        assert_eq!(made(&with(Sense::Hides, &plain, Past::Empty), int).1, [0., 0., 0., 1., 1., 0.]);
        let hidden = -1e9;
        assert_eq!(made(&with(Sense::Adds, &plain, Past::Empty), DataType::FLOAT).1, [0., 0., 0., hidden, hidden, 0.]);
        assert_eq!(made(&with(Sense::Adds, &plain, Past::Empty), DataType::FLOAT16).1[3], -3e4);
        assert_eq!(
            made(&with(Sense::Keeps, &plain, Past::Hidden(2)), int),
            (vec![2, 5], vec![0., 0., 1., 1., 1., 0., 0., 0., 0., 1.])
        );
        let full = [MaskAxis::Batch, MaskAxis::Same(1), MaskAxis::Queries, MaskAxis::Keys];
        let (shape, values) = made(&with(Sense::Keeps, &full, Past::Empty), int);
        assert_eq!(shape, [2, 1, 3, 3]);
        // causal; padding sees itself only, and nobody sees padding
        assert_eq!(values[..9], [1., 0., 0., 1., 1., 0., 1., 1., 1.]);
        assert_eq!(values[9..], [1., 0., 0., 0., 1., 0., 0., 0., 1.]);
    }

    #[test]
    fn a_fixed_number_of_tokens_is_padded_to_or_refused() {
        let fixed =
            |padding| Interface { feeding: Feeding { length: Some(4), ..Feeding::default() }, ..interface(padding) };
        let batch = Batch::new(&[&[5, 6]], 0);
        let fitted = batch.clone().fitted(&fixed(Padding::Left), 9).unwrap();
        assert_eq!(fitted.ids, ndarray::array![[9, 9, 5, 6]]);
        assert_eq!(fitted.mask, ndarray::array![[0, 0, 1, 1]]);
        let short = batch.fitted(&fixed(Padding::EqualLengths), 9);
        assert!(matches!(short, Err(RuntimeError::Length { tokens: 2, length: 4 })));
        let two = Interface { feeding: Feeding { rows: Some(2), ..Feeding::default() }, ..interface(Padding::Left) };
        let filled = Batch::new(&[&[5, 6]], 0).fitted(&two, 9).unwrap();
        assert_eq!(filled.ids, ndarray::array![[5, 6], [5, 6]]);
        let long = Batch::new(&[&[1; 5]], 0).fitted(&fixed(Padding::Left), 9);
        assert!(matches!(long, Err(RuntimeError::Positions { tokens: 5, limit: 4 })));
    }
}
