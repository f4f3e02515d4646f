//! The KV cache: which inputs hold it, which outputs return it, and how an empty one looks.

use super::{CacheSlot, ModelConfig, refuse, unfed};
use crate::lm::Refusal;
use crate::onnx::proto::{Dimension, ValueInfoProto, dimension};
use crate::onnx::{DataType, Graph};

/// A KV cache input: a tensor of floats, or of quantised ones, that is named so and has at least three dimensions.
pub(super) fn is_cache(name: &str, info: &ValueInfoProto) -> bool {
    let lower = name.to_ascii_lowercase();
    let named = lower.contains("past") || lower.contains("cache") || lower.contains("key_value");
    let Some(tensor) = info.tensor() else { return false };
    let dims = tensor.shape.as_ref().map_or(0, |s| s.dim.len());
    let dtype = DataType(tensor.elem_type.unwrap_or(0));
    named && (3..=5).contains(&dims) && (dtype.is_float() || matches!(dtype, DataType::INT8 | DataType::UINT8))
}

pub(super) fn is_present(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.contains("present") || lower.contains("past") || lower.contains("cache")
}

/// What a name tells of a part of the cache.
#[derive(Debug, PartialEq, Eq)]
struct CacheKey {
    /// The numbers in it.
    numbers: Vec<u64>,
    /// Whether it says key or value.
    key: Option<bool>,
    /// Whether it is a scale or a zero point of a quantised cache.
    scale: bool,
    zero: bool,
}

/// The numbers in a name, and whether it says key or value: `past_key_values.3.value` is `([3], value)`.
fn cache_key(name: &str) -> CacheKey {
    let lower = name.to_ascii_lowercase().replace("key_values", "kv").replace("keyvalue", "kv");
    let numbers = lower
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .filter_map(|part| part.parse().ok())
        .collect();
    let parts: Vec<&str> = lower.split(['.', '_', '/', '-']).collect();
    let says = |words: &[&str]| parts.iter().any(|p| words.contains(&p.trim_end_matches(|c: char| c.is_ascii_digit())));
    let kind = match (says(&["key", "keys", "k"]), says(&["value", "values", "v"])) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        _ => None,
    };
    CacheKey { numbers, key: kind, scale: lower.contains("scale"), zero: lower.contains("zero") }
}

pub(super) fn cache(
    graph: &Graph<'_>,
    past: &[&ValueInfoProto],
    logits: &str,
    config: &ModelConfig,
) -> Result<Vec<CacheSlot>, Refusal> {
    let mut presents: Vec<&str> = graph
        .proto()
        .output
        .iter()
        .filter_map(|o| o.name.as_deref())
        .filter(|name| *name != logits && is_present(name))
        .collect();
    let mut slots = Vec::new();
    for input in past {
        let name = input.name.as_deref().unwrap_or("");
        let key = cache_key(name);
        let found = presents.iter().position(|p| cache_key(p) == key).or(
            // same order where names do not pair (old exports)
            (presents.len() == past.len() - slots.len()).then_some(0),
        );
        let Some(found) = found else {
            return Err(unfed(input, "no output returns this part of the KV cache"));
        };
        let present = presents.remove(found).to_string();
        let tensor = input.tensor().expect("a cache input is a tensor");
        let dims = &tensor.shape.as_ref().expect("a cache input has dimensions").dim;
        let (empty, batch_axis, sequence_axis) = empty_shape(name, dims, config)?;
        slots.push(CacheSlot {
            past: name.to_string(),
            present,
            empty,
            batch_axis,
            sequence_axis,
            fixed: sequence_axis.is_some_and(|axis| matches!(dims[axis].value, Some(dimension::Value::DimValue(_)))),
            window: window(graph, name),
            dtype: DataType(tensor.elem_type.unwrap_or(DataType::FLOAT.0)),
        });
    }
    Ok(slots)
}

/// The window of a `GroupQueryAttention` that keeps this part of the cache in a buffer of its size.
fn window(graph: &Graph<'_>, past: &str) -> Option<usize> {
    graph.uses(graph.value(past)?).iter().find_map(|one| {
        let node = graph.node(one.node);
        let sliding = graph.op(one.node) == "GroupQueryAttention" && node.attr_i("sliding_window_cache", 0) != 0;
        usize::try_from(node.attr_i("local_window_size", -1)).ok().filter(|_| sliding)
    })
}

/// Whether a part of the cache holds a state of fixed size, no positions (`past_conv.0`, `past_key_values.0.conv_state`).
fn is_state(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    ["conv", "ssm", "recurrent"].iter().any(|word| lower.contains(word))
}

/// Dimensions of an empty cache for one sequence (no positions, or as many as the graph fixes), with the axes of the batch
/// and of the positions, if any.
fn empty_shape(
    name: &str,
    dims: &[Dimension],
    config: &ModelConfig,
) -> Result<(Vec<usize>, usize, Option<usize>), Refusal> {
    let rank = dims.len();
    let label = |i: usize| match &dims[i].value {
        Some(dimension::Value::DimParam(p)) => p.to_ascii_lowercase(),
        _ => String::new(),
    };
    let fixed = |i: usize| match &dims[i].value {
        Some(dimension::Value::DimValue(v)) => usize::try_from(*v).ok(),
        _ => None,
    };
    if is_state(name)
        && let Some(mut state) = (1..rank).map(fixed).collect::<Option<Vec<usize>>>()
    {
        state.insert(0, 1);
        return Ok((state, 0, None));
    }
    let sequence = (0..rank)
        .find(|&i| {
            let label = label(i);
            let width = ["dim", "head", "size"].iter().any(|word| label.contains(word));
            let cache = label.contains("cache") && !width;
            fixed(i).is_none() && (label.contains("past") || label.contains("sequence") || cache)
        })
        .unwrap_or_else(|| {
            // keys that are held as `[batch, heads, d_head, past]`
            let turned = config.d_head.is_some_and(|d| fixed(rank - 2) == Some(d) && fixed(rank - 1) != Some(d));
            if turned { rank - 1 } else { rank - 2 }
        });
    let batch_axis =
        (0..rank).find(|&i| fixed(i).is_none() && label(i).contains("batch") && i != sequence).unwrap_or(0);
    let symbolic = |what: &str| {
        refuse(
            name,
            format!("the graph leaves the cache dimension {what} open and no config tells it"),
            "put the model's `config.json` or `genai_config.json` beside it",
        )
    };
    let mut empty = Vec::with_capacity(rank);
    for i in 0..rank {
        empty.push(if i == sequence {
            fixed(i).unwrap_or(0)
        } else if i == batch_axis {
            // old families fold the heads into the batch: `batch_size x num_heads`
            if label(i).contains("head") { config.n_kv_heads.unwrap_or(1) } else { 1 }
        } else if let Some(n) = fixed(i) {
            n
        } else if i == rank - 1 {
            config.d_head.ok_or_else(|| symbolic("`head_dim`"))?
        } else {
            config.n_kv_heads.ok_or_else(|| symbolic("`num_key_value_heads`"))?
        });
    }
    Ok((empty, batch_axis, Some(sequence)))
}

#[cfg(test)]
mod tests {
    use super::{cache_key, empty_shape};
    use crate::lm::ModelConfig;
    use crate::onnx::proto::{Dimension, dimension};

    #[test]
    fn a_state_of_fixed_size_has_no_positions() {
        let open = |name: &str| Some(dimension::Value::DimParam(name.into()));
        let fixed = |n| Some(dimension::Value::DimValue(n));
        let dims = |values: Vec<Option<dimension::Value>>| -> Vec<Dimension> {
            values.into_iter().map(|value| Dimension { value }).collect()
        };
        let config = ModelConfig::default();
        // genai and web repositories of lfm2
        for name in ["past.0.conv", "past_conv.0"] {
            let state = dims(vec![open("batch_size"), fixed(32), fixed(2)]);
            assert_eq!(empty_shape(name, &state, &config).unwrap(), (vec![1, 32, 2], 0, None));
        }
        let fused = dims(vec![open("batch_size"), open("past_sequence_length"), fixed(32)]);
        assert_eq!(empty_shape("past_key_values.0", &fused, &config).unwrap(), (vec![1, 0, 32], 0, Some(1)));
    }

    #[test]
    fn cache_names_pair_across_exporters() {
        for (past, present) in [
            ("past_key_values.3.key", "present.3.key"),
            ("past_key_values.3.value", "present.3.value"),
            ("past_key_3", "present_key_3"),
            ("past_key_values.11.key", "present_key_values.11.key"),
            ("past_3", "present_3"),
        ] {
            assert_eq!(cache_key(past), cache_key(present), "{past} {present}");
        }
        assert_ne!(cache_key("past_key_values.3.key"), cache_key("present.3.value"));
        assert_ne!(cache_key("past_key_values.3.key"), cache_key("present.13.key"));
    }
}
