//! What each input holds: told by its type, its rank and what the graph computes from it, never by its name alone.

use std::collections::{HashMap, HashSet};

use crate::onnx::proto::{ValueInfoProto, dimension};
use crate::onnx::{DataType, Graph, NodeId, ValueId};

/// What an attention mask holds where a token is seen, and where it is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sense {
    /// 1 (true) keeps, 0 (false) hides.
    Keeps,
    /// 1 (true) hides, 0 (false) keeps.
    Hides,
    /// Added to the scores: 0 keeps, a large negative number hides.
    Adds,
}

/// An axis of an attention mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskAxis {
    /// One entry a row.
    Batch,
    /// So many entries that are all alike (heads, or a batch of 1).
    Same(usize),
    /// The tokens of this run.
    Queries,
    /// The tokens that are looked at, past ones included.
    Keys,
}

/// How an attention mask is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskForm {
    /// Meaning of its values.
    pub sense: Sense,
    /// Its axes.
    pub axes: Vec<MaskAxis>,
}

impl Default for MaskForm {
    fn default() -> Self {
        Self { sense: Sense::Keeps, axes: vec![MaskAxis::Batch, MaskAxis::Keys] }
    }
}

impl MaskForm {
    /// Whether the mask tells for each token of a run what it sees.
    pub fn has_queries(&self) -> bool {
        self.axes.contains(&MaskAxis::Queries)
    }
}

/// Shape of the token input and of what is counted like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Line {
    /// `[batch, n_pos]`.
    #[default]
    Rows,
    /// `[n_pos]`, one sequence for all rows.
    Flat,
    /// `[1, n_pos]`, one sequence for all rows.
    One,
    /// `[n, batch, n_pos]`: the same rows so many times (multimodal rotary positions of a text).
    Copies(usize),
}

/// What a run without a past puts where the KV cache goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Past {
    /// Nothing: the cache grows with what was run.
    #[default]
    Empty,
    /// So many positions, hidden by the mask, in front of the tokens; what comes back cannot be fed again, so that every
    /// run starts anew.
    Hidden(usize),
    /// A buffer of so many positions that an operator of ONNX Runtime fills from its begin; the mask covers tokens only.
    Filled(usize),
}

/// How inputs are filled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Feeding {
    /// The token input.
    pub tokens: Line,
    /// Positions.
    pub positions: Line,
    /// The attention mask.
    pub mask: MaskForm,
    /// The KV cache of a run without a past.
    pub past: Past,
    /// Inputs that change nothing where they are zero (adapters), with their sizes.
    pub zeros: Vec<(String, Vec<usize>)>,
    /// Rank of the number of logits to keep: 0 or 1.
    pub keep_rank: usize,
    /// The one number of tokens that a run takes, where the graph fixes it.
    pub length: Option<usize>,
    /// The one number of rows that a run takes, where the graph fixes it to several; missing ones are filled up.
    pub rows: Option<usize>,
}

impl Feeding {
    /// Whether every run is fed with the whole text, since what it returns of the cache cannot be fed again.
    pub fn restarts(&self) -> bool {
        matches!(self.past, Past::Hidden(_)) || self.length.is_some() || self.rows.is_some()
    }

    /// Positions that the cache has room for, where it is a buffer.
    pub fn room(&self) -> Option<usize> {
        match self.past {
            Past::Filled(n) => Some(n),
            Past::Empty | Past::Hidden(_) => None,
        }
    }
}

/// Declared dimensions of a graph input; `None` inside where one is symbolic, `None` as a whole where no rank is declared.
pub(super) fn dims(info: &ValueInfoProto) -> Option<Vec<Option<usize>>> {
    let shape = info.tensor()?.shape.as_ref()?;
    let size = |dim: &crate::onnx::proto::Dimension| match &dim.value {
        Some(dimension::Value::DimValue(n)) => usize::try_from(*n).ok(),
        _ => None,
    };
    Some(shape.dim.iter().map(size).collect())
}

/// Declared element type of a graph input.
pub(super) fn dtype(info: &ValueInfoProto) -> DataType {
    DataType(info.tensor().and_then(|t| t.elem_type).unwrap_or(0))
}

/// Whether a type holds integers that tokens and positions come in.
pub(in crate::lm) fn is_index(dtype: DataType) -> bool {
    matches!(dtype, DataType::INT64 | DataType::INT32)
}

/// How an attention mask is to be made, or why that is not known.
pub(super) fn mask(graph: &Graph<'_>, info: &ValueInfoProto) -> Result<MaskForm, String> {
    let dtype = dtype(info);
    let integer = matches!(dtype, DataType::INT64 | DataType::INT32 | DataType::INT8 | DataType::UINT8);
    if !integer && !dtype.is_float() && dtype != DataType::BOOL {
        return Err(format!("an attention mask of type {}", dtype.name()));
    }
    let axes = axes(info)?;
    let plain = axes.len() == 2;
    let name = info.name.as_deref().unwrap_or("");
    let Some(value) = graph.value(name) else {
        return Ok(MaskForm { sense: Sense::Keeps, axes }); // nobody reads it
    };
    let shown = sense(graph, value);
    let sense = match shown {
        // what every exporter means by a two-dimensional mask of whole numbers, if the graph does not show the contrary
        Shown::One(Sense::Hides) => Sense::Hides,
        _ if plain && !dtype.is_float() => Sense::Keeps,
        Shown::One(sense) if sense != Sense::Adds || dtype.is_float() => sense,
        _ => {
            let (dtype, rank) = (dtype.name(), axes.len());
            return Err(format!(
                "an attention mask of type {dtype} with {rank} dimensions, and the graph does not show which values hide a token"
            ));
        }
    };
    Ok(MaskForm { sense, axes })
}

fn axes(info: &ValueInfoProto) -> Result<Vec<MaskAxis>, String> {
    let Some(dims) = dims(info) else { return Ok(MaskForm::default().axes) };
    let same = |at: usize| match dims[at] {
        Some(n) => MaskAxis::Same(n),
        None => MaskAxis::Same(1),
    };
    let batch = match dims.first() {
        Some(Some(n)) => MaskAxis::Same(*n),
        _ => MaskAxis::Batch,
    };
    match dims.len() {
        2 => Ok(vec![batch, MaskAxis::Keys]),
        3 => Ok(vec![batch, MaskAxis::Queries, MaskAxis::Keys]),
        4 => {
            // `[batch, 1, 1, keys]` tells of keys only
            let queries = if dims[2] == Some(1) { MaskAxis::Same(1) } else { MaskAxis::Queries };
            Ok(vec![batch, same(1), queries, MaskAxis::Keys])
        }
        rank => Err(format!("an attention mask of {rank} dimensions")),
    }
}

/// What the readers of a mask show of its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Nothing,
    One(Sense),
    Several,
}

/// Follows a mask to where its values are used.
fn sense(graph: &Graph<'_>, mask: ValueId) -> Shown {
    let mut found: Vec<Sense> = Vec::new();
    let mut seen = HashSet::new();
    // whether a `Not` was met on the way
    let mut open = vec![(mask, false)];
    while let Some((value, flipped)) = open.pop() {
        if !seen.insert((value, flipped)) {
            continue;
        }
        for one in graph.uses(value) {
            if one.slot >= graph.node(one.node).input.len() {
                continue; // captured by a subgraph
            }
            match meaning(graph, one.node, one.slot, value) {
                Meaning::HandsOn => open.extend(graph.output(one.node, 0).map(|v| (v, flipped))),
                Meaning::Flips => open.extend(graph.output(one.node, 0).map(|v| (v, !flipped))),
                Meaning::Is(sense) => {
                    let sense = match (sense, flipped) {
                        (Sense::Keeps, true) => Sense::Hides,
                        (Sense::Hides, true) => Sense::Keeps,
                        (sense, _) => sense,
                    };
                    if !found.contains(&sense) {
                        found.push(sense);
                    }
                }
                Meaning::Nothing => {}
            }
        }
    }
    match found.as_slice() {
        [] => Shown::Nothing,
        [one] => Shown::One(*one),
        _ => Shown::Several,
    }
}

enum Meaning {
    /// The values go on as they are.
    HandsOn,
    /// True becomes false.
    Flips,
    /// It is known.
    Is(Sense),
    /// This reader tells nothing.
    Nothing,
}

/// What one reader of a mask shows.
fn meaning(graph: &Graph<'_>, node: NodeId, slot: usize, value: ValueId) -> Meaning {
    let other = |at: usize| graph.input(node, at);
    let constant = |at: usize| other(at).filter(|v| !graph.is_dynamic(*v));
    match graph.op(node) {
        "Identity" | "Unsqueeze" | "Squeeze" | "Expand" | "Reshape" | "Slice" | "Gather" | "Transpose" | "Tile"
        | "Concat" | "Split" | "Flatten"
            if slot == 0 || graph.op(node) == "Concat" =>
        {
            Meaning::HandsOn
        }
        "Cast" => match graph.elem_type(value) {
            // rounded to whole numbers, an added mask would be nothing a graph can add
            Some(from)
                if from.is_float()
                    && !DataType(i32::try_from(graph.node(node).attr_i("to", 0)).unwrap_or(0)).is_float() =>
            {
                Meaning::Is(Sense::Keeps)
            }
            _ => Meaning::HandsOn,
        },
        "Not" => Meaning::Flips,
        // positions and lengths are counted from ones
        "CumSum" | "ReduceSum" if slot == 0 => Meaning::Is(Sense::Keeps),
        "ArgMax" | "NonZero" => Meaning::Is(Sense::Keeps),
        // 1 - mask
        "Sub" if slot == 1 && constant(0).is_some() => Meaning::Is(Sense::Keeps),
        // mask - 1, and mask + -1
        "Sub" if slot == 0 && constant(1).is_some() => Meaning::Is(Sense::Keeps),
        "Add" => match constant(1 - slot.min(1)) {
            Some(constant) if scalar(graph, constant) == Some(-1.0) => Meaning::Is(Sense::Keeps),
            // with a causal table
            Some(_) => Meaning::HandsOn,
            // a sum that is compared with something tells nothing: `causal + mask == 0`
            None if compares(graph, node) => Meaning::Nothing,
            None => Meaning::Is(Sense::Adds),
        },
        "Mul" => match constant(1 - slot.min(1)) {
            None => Meaning::Is(Sense::Keeps),
            Some(factor) => match number(graph, Some(factor)) {
                // a large negative number where the mask is 1
                Some(factor) if factor < -1e3 => Meaning::Is(Sense::Hides),
                Some(factor) if factor > 0.0 => Meaning::HandsOn,
                _ => Meaning::Nothing,
            },
        },
        "And" => Meaning::HandsOn,
        "Where" if slot == 0 => match (number(graph, other(1)), number(graph, other(2))) {
            (_, Some(n)) if n < -1e3 => Meaning::Is(Sense::Keeps),
            (Some(n), _) if n < -1e3 => Meaning::Is(Sense::Hides),
            _ => Meaning::Nothing,
        },
        "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Equal" => compared(graph, node, slot),
        "MultiHeadAttention" if slot == 5 => Meaning::Is(Sense::Adds),
        "GroupQueryAttention" if slot == 10 => Meaning::Is(Sense::Adds),
        "Attention" if slot == 3 && matches!(graph.node(node).domain.as_deref().unwrap_or(""), "" | "ai.onnx") => {
            match graph.elem_type(value) {
                Some(dtype) if dtype.is_float() => Meaning::Is(Sense::Adds),
                _ => Meaning::Is(Sense::Keeps),
            }
        }
        _ => Meaning::Nothing,
    }
}

/// Whether the output of a node is compared with something.
fn compares(graph: &Graph<'_>, node: NodeId) -> bool {
    let readers = graph.output(node, 0).map(|v| graph.uses(v)).unwrap_or_default();
    readers
        .iter()
        .any(|one| matches!(graph.op(one.node), "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual"))
}

/// A comparison with a constant tells which pair of values it tells apart: 1 and 0, or 0 and a large negative number.
fn compared(graph: &Graph<'_>, node: NodeId, slot: usize) -> Meaning {
    let Some(bound) = number(graph, graph.input(node, 1 - slot.min(1))) else { return Meaning::Nothing };
    let holds = |value: f64| {
        let (a, b) = if slot == 0 { (value, bound) } else { (bound, value) };
        match graph.op(node) {
            "Greater" => a > b,
            "GreaterOrEqual" => a >= b,
            "Less" => a < b,
            "LessOrEqual" => a <= b,
            _ => (a - b).abs() == 0.0,
        }
    };
    match (holds(1.0) != holds(0.0), holds(0.0) != holds(HIDDEN)) {
        (true, false) => Meaning::Is(Sense::Keeps),
        (false, true) => Meaning::Is(Sense::Adds),
        _ => Meaning::Nothing,
    }
}

/// What an added mask hides a token with.
pub const HIDDEN: f64 = -1e9;

/// A constant of one number, through `Cast` and the like.
fn number(graph: &Graph<'_>, value: Option<ValueId>) -> Option<f64> {
    let mut value = value?;
    for _ in 0..8 {
        if let Some(found) = scalar(graph, value) {
            return Some(found);
        }
        let node = graph.producer(value)?;
        if !matches!(graph.op(node), "Cast" | "Identity" | "Expand" | "Unsqueeze" | "Squeeze" | "Reshape" | "CastLike")
        {
            return None;
        }
        value = graph.input(node, 0)?;
    }
    None
}

/// A stored tensor of one number.
fn scalar(graph: &Graph<'_>, value: ValueId) -> Option<f64> {
    if let Some(ints) = graph.const_ints(value) {
        return (ints.len() == 1).then(|| ints[0] as f64);
    }
    let given = graph.producer(value).and_then(|node| graph.node(node).attr("value_float")?.f);
    if let Some(found) = given {
        return Some(f64::from(found));
    }
    let tensor = graph.small_tensor(value)?;
    if tensor.dims.iter().any(|size| *size != 1) {
        return None;
    }
    let raw = tensor.raw_data.as_deref();
    match DataType(tensor.data_type.unwrap_or(0)) {
        DataType::FLOAT => match raw {
            Some(raw) => Some(f64::from(f32::from_le_bytes(raw.try_into().ok()?))),
            None => tensor.float_data.first().map(|v| f64::from(*v)),
        },
        DataType::DOUBLE => match raw {
            Some(raw) => Some(f64::from_le_bytes(raw.try_into().ok()?)),
            None => tensor.double_data.first().copied(),
        },
        DataType::FLOAT16 => half(tensor).map(|bits| half::f16::from_bits(bits).to_f64()),
        DataType::BFLOAT16 => half(tensor).map(|bits| half::bf16::from_bits(bits).to_f64()),
        _ => None,
    }
}

/// The 16 bits of a stored number of a half type.
fn half(tensor: &crate::onnx::proto::TensorProto) -> Option<u16> {
    match tensor.raw_data.as_deref() {
        Some(raw) => Some(u16::from_le_bytes(raw.try_into().ok()?)),
        None => u16::try_from(*tensor.int32_data.first()?).ok(),
    }
}

/// Whether a graph does, where input `value` is all zero, what it does without it: whatever is zero then is a term of a sum,
/// behind a product with the input at least once.
pub(super) fn adds_nothing_at_zero(graph: &Graph<'_>, value: ValueId) -> bool {
    // values that are zero, and whether a product with another value made them so
    let mut zero = HashMap::from([(value, false)]);
    let mut order: Vec<NodeId> = graph.nodes().collect();
    order.sort_by_key(|&node| graph.rank(node));
    let mut sums = 0;
    for node in order {
        let slots = 0..graph.node(node).input.len();
        let held: Vec<(usize, Option<bool>)> = slots
            .filter_map(|slot| Some((slot, graph.input(node, slot)?)))
            .map(|(slot, input)| (slot, zero.get(&input).copied()))
            .collect();
        let captured = graph.all_inputs(node).iter().filter(|input| zero.contains_key(input)).count();
        let zeros = held.iter().filter(|(_, zero)| zero.is_some()).count();
        if captured == 0 {
            continue;
        }
        let of = |slot: usize| held.iter().find(|(at, _)| *at == slot).and_then(|(_, zero)| *zero);
        let multiplied = held.iter().any(|(_, zero)| *zero == Some(true));
        let made = match graph.op(node) {
            _ if zeros == 0 => return false, // a subgraph reads it
            "Shape" | "Size" => continue,
            "Cast" | "Identity" | "Transpose" | "Unsqueeze" | "Squeeze" | "Reshape" | "Neg" if of(0).is_some() => {
                multiplied
            }
            "Mul" => multiplied,
            _ if graph.weighted(node).is_some_and(|weighted| weighted.is_plain_product()) => true,
            "Gemm" if graph.input(node, 2).is_none() => true,
            "Add" | "Sub" | "Sum" if zeros == held.len() => multiplied,
            "Add" | "Sum" if multiplied => {
                sums += 1;
                continue;
            }
            "Sub" if of(1) == Some(true) => {
                sums += 1;
                continue;
            }
            _ => return false,
        };
        let Some(output) = graph.output(node, 0).filter(|output| !graph.is_output(*output)) else { return false };
        zero.insert(output, made);
    }
    sums > 0
}
