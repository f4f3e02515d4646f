//! How a model is fed and what it returns: token inputs, KV cache, logits.
//!
//! Inputs are matched by what exporters call them, because an interface is a naming contract; anything
//! that is not known is refused with its name, never fed with a guess.

use serde::Serialize;

use super::Refusal;
use crate::onnx::proto::{ValueInfoProto, dimension};
use crate::onnx::{DataType, Graph};

/// What `config.json` or `genai_config.json` says about dimensions that a graph leaves symbolic.
#[derive(Debug, Clone, Copy, Default)]
pub struct ModelConfig {
    /// Number of blocks.
    pub n_layers: Option<usize>,
    /// Key-value heads a block.
    pub n_kv_heads: Option<usize>,
    /// Width of a head.
    pub d_head: Option<usize>,
}

/// Whether prompts of different lengths can share a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Shorter prompts are padded on the left; mask and positions tell.
    Left,
    /// Only prompts of one length share a batch: the graph takes no positions, or holds an operator that
    /// computes them from the length of the whole batch.
    EqualLengths,
}

/// One tensor of the KV cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CacheSlot {
    /// Input name.
    pub past: String,
    /// Output name.
    pub present: String,
    /// Dimensions with a batch of 1 and no past: `[1, heads, 0, d_head]` and the like; where heads are folded into
    /// the batch, their number is the size of that axis.
    pub empty: Vec<usize>,
    /// Axis of the batch.
    pub batch_axis: usize,
    /// Axis of the past positions; `None` for a state of fixed size (short convolutions), which starts at zero.
    pub sequence_axis: Option<usize>,
    /// A cache of a sliding window: it is fed with room for this many positions at least, and for all that the run
    /// will see.
    pub window: Option<usize>,
    /// Element type.
    #[serde(serialize_with = "as_name")]
    pub dtype: DataType,
}

fn as_name<S: serde::Serializer>(dtype: &DataType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(dtype.name())
}

/// Inputs and outputs of a causal language model.
#[derive(Debug, Clone, Serialize)]
pub struct Interface {
    /// Token ids, int64 or int32 `[batch, n_pos]`.
    pub input_ids: String,
    /// Embeddings of the tokens, `[batch, n_pos, d_model]`, in a graph whose token embedding is another file; that
    /// one takes `input_ids`.
    pub inputs_embeds: Option<String>,
    /// Attention mask over past and present tokens, `[batch, past + n_pos]`.
    pub attention_mask: Option<String>,
    /// Position of each token among the real ones, `[batch, n_pos]`.
    pub position_ids: Option<String>,
    /// Token types, all zero.
    pub token_type_ids: Option<String>,
    /// Merged decoders: whether the cache branch runs.
    pub use_cache_branch: Option<String>,
    /// How many logits to keep (0 keeps all).
    pub num_logits_to_keep: Option<String>,
    /// KV cache, in the order of the graph's inputs.
    pub cache: Vec<CacheSlot>,
    /// Output with the logits, `[batch, n_pos, d_vocab]`.
    pub logits: String,
    /// Whether lengths may be mixed in a batch.
    pub padding: Padding,
    /// Whether the graph takes one sequence only.
    pub single: bool,
}

fn refuse(tensor: &str, reason: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal {
        node: "(graph)".into(),
        op: String::new(),
        tensor: tensor.into(),
        reason: reason.into(),
        hint: hint.into(),
    }
}

/// An input's name without what exporters wrap around it (`l_input_ids_` of torch.onnx.dynamo_export).
fn plain(name: &str) -> &str {
    let name = name.strip_prefix("l_").unwrap_or(name);
    name.strip_suffix('_').unwrap_or(name)
}

impl Interface {
    /// Reads the interface off the graph's inputs and outputs.
    ///
    /// # Errors
    /// An input that is not known, or a cache tensor without its counterpart.
    pub fn new(graph: &Graph<'_>, config: &ModelConfig) -> Result<Self, Refusal> {
        let proto = graph.proto();
        let is_default =
            |name: &str| graph.value(name).is_some_and(|v| graph.tensor(v).is_some() || graph.is_default(v));
        let mut input_ids = None;
        let mut inputs_embeds = None;
        let mut attention_mask = None;
        let mut position_ids = None;
        let mut token_type_ids = None;
        let mut use_cache_branch = None;
        let mut num_logits_to_keep = None;
        let mut past = Vec::new();
        for input in &proto.input {
            let name = input.name.as_deref().unwrap_or("");
            if is_default(name) {
                continue; // an initializer with an overridable default
            }
            let slot = match plain(name) {
                "input_ids" | "input" | "tokens" | "ids" => &mut input_ids,
                "attention_mask" | "mask" => &mut attention_mask,
                "position_ids" | "positions" => &mut position_ids,
                "token_type_ids" => &mut token_type_ids,
                "use_cache_branch" => &mut use_cache_branch,
                "num_logits_to_keep" | "logits_to_keep" => &mut num_logits_to_keep,
                "inputs_embeds" => &mut inputs_embeds,
                _ if is_cache(name, input) => {
                    past.push(input);
                    continue;
                }
                _ => {
                    return Err(refuse(
                        name,
                        "the graph has an input that Lancet does not know",
                        "Lancet feeds input_ids, attention_mask, position_ids, token_type_ids, use_cache_branch, \
                         num_logits_to_keep and a KV cache; export a text-generation graph",
                    ));
                }
            };
            *slot = Some(name.to_string());
        }
        let input_ids = input_ids
            .or_else(|| inputs_embeds.is_some().then(|| "input_ids".to_string()))
            .ok_or_else(|| refuse("input_ids", "the graph has no token input", "is this a causal language model?"))?;
        let past_names: Vec<&str> = past.iter().filter_map(|p| p.name.as_deref()).collect();
        let logits = logits(graph, &past_names)?;
        let cache = cache(graph, &past, &logits, config)?;
        let fed = inputs_embeds.as_ref().unwrap_or(&input_ids);
        let declared = graph.declared_shape(
            graph
                .value(fed)
                .ok_or_else(|| refuse(fed, "no node reads the token input", "is this a causal language model?"))?,
        );
        let standard = |node| matches!(graph.node(node).domain.as_deref().unwrap_or(""), "" | "ai.onnx");
        // ONNX Runtime runs the standard operators of opset 23 on one sequence at a time only
        let fused = graph.nodes().any(|n| standard(n) && matches!(graph.op(n), "Attention" | "RotaryEmbedding"));
        let relative =
            graph.nodes().any(|n| matches!(graph.op(n), "GroupQueryAttention" | "SparseAttention" | "PagedAttention"));
        let single = fused || declared.and_then(|shape| shape.first().copied().flatten()) == Some(1);
        let padding = if position_ids.is_some() && attention_mask.is_some() && !relative && !fused {
            Padding::Left
        } else {
            Padding::EqualLengths
        };
        Ok(Self {
            input_ids,
            inputs_embeds,
            attention_mask,
            position_ids,
            token_type_ids,
            use_cache_branch,
            num_logits_to_keep,
            cache,
            logits,
            padding,
            single,
        })
    }
}

/// A KV cache input: a float tensor that is named so and has at least three dimensions.
fn is_cache(name: &str, info: &ValueInfoProto) -> bool {
    let lower = name.to_ascii_lowercase();
    let named = lower.contains("past") || lower.contains("cache") || lower.contains("key_value");
    let Some(tensor) = info.tensor() else { return false };
    let dims = tensor.shape.as_ref().map_or(0, |s| s.dim.len());
    named && (3..=5).contains(&dims) && DataType(tensor.elem_type.unwrap_or(0)).is_float()
}

fn logits(graph: &Graph<'_>, past: &[&str]) -> Result<String, Refusal> {
    let outputs: Vec<&str> = graph.proto().output.iter().filter_map(|o| o.name.as_deref()).collect();
    if outputs.contains(&"logits") {
        return Ok("logits".into());
    }
    let candidates: Vec<&str> = graph
        .proto()
        .output
        .iter()
        .filter(|o| !is_present(o.name.as_deref().unwrap_or("")))
        .filter(|o| o.tensor().and_then(|t| t.shape.as_ref()).is_none_or(|s| s.dim.len() == 3))
        .filter_map(|o| o.name.as_deref())
        .collect();
    match candidates.first() {
        // exporters put the logits first
        Some(first) if candidates.len() == 1 || past.is_empty() || outputs.first() == Some(first) => {
            Ok((*first).to_string())
        }
        _ => Err(refuse(&outputs.join(", "), "no output can be told to be the logits", "name the output `logits`")),
    }
}

fn is_present(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.contains("present") || lower.contains("past") || lower.contains("cache")
}

/// The numbers in a name, and whether it says key or value: `past_key_values.3.value` is `([3], value)`.
fn cache_key(name: &str) -> (Vec<u64>, Option<bool>) {
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
    (numbers, kind)
}

fn cache(
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
            return Err(refuse(
                name,
                "no output returns this part of the KV cache",
                "export with the KV cache, or without any",
            ));
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

/// Dimensions of an empty cache for one sequence, with the axes of the batch and of the positions, if any.
fn empty_shape(
    name: &str,
    dims: &[crate::onnx::proto::Dimension],
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
            fixed(i).is_none()
                && (label(i).contains("past") || label(i).contains("sequence") || label(i).contains("cache"))
        })
        .unwrap_or(rank - 2);
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
            0
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
    use super::{ModelConfig, cache_key, empty_shape};
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
