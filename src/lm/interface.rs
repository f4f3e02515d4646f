//! How a model is fed and what it returns: token inputs, KV cache, logits.
//!
//! Inputs are matched by what exporters call them, because an interface is a naming contract; anything
//! that is not known is refused with its name, never fed with a guess.

mod cache;
pub mod feeding;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::Refusal;
use super::quantised::packed_for_cuda;
use crate::onnx::proto::ValueInfoProto;
use crate::onnx::{DataType, Graph, Use};
use cache::{cache, is_cache, is_present};
pub(super) use feeding::is_index;
pub use feeding::{Feeding, Line, MaskAxis, MaskForm, Past, Sense};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Shorter prompts are padded on the left; mask and positions tell.
    Left,
    /// Only prompts of one length share a batch: the graph takes no positions, or holds an operator that
    /// computes them from the length of the whole batch.
    EqualLengths,
}

impl std::fmt::Display for Padding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Left => "left",
            Self::EqualLengths => "equal lengths",
        })
    }
}

/// One tensor of the KV cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// Whether the graph fixes the number of past positions.
    #[serde(skip)]
    pub fixed: bool,
    /// A cache of a sliding window: it is fed with room for this many positions at least, and for all that the run
    /// will see.
    pub window: Option<usize>,
    /// Element type.
    pub dtype: DataType,
}

/// Inputs and outputs of a causal language model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// Place of each token in the KV cache, `[n_pos]`.
    pub cache_position: Option<String>,
    /// Token types, all zero.
    pub token_type_ids: Option<String>,
    /// Merged decoders: whether the cache branch runs.
    pub use_cache_branch: Option<String>,
    /// How many logits to keep (0 keeps all).
    pub num_logits_to_keep: Option<String>,
    /// KV cache, in the order of the graph's inputs.
    pub cache: Vec<CacheSlot>,
    /// Output with the logits, `[batch, n_pos, d_vocab]`, or of the last position only.
    pub logits: String,
    /// Whether lengths may be mixed in a batch.
    pub padding: Padding,
    /// Whether the graph takes one sequence only.
    pub single: bool,
    /// How the inputs are filled.
    #[serde(skip)]
    pub feeding: Feeding,
    /// Why the graph cannot be run, where it can only be edited.
    pub unfed: Option<Refusal>,
    /// Why the graph cannot be run on the CPU, where it is made for CUDA.
    #[serde(default)]
    pub cuda_only: Option<Refusal>,
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

/// Inputs by what they are for, as their names tell.
#[derive(Default)]
struct Inputs<'g> {
    input_ids: Option<&'g ValueInfoProto>,
    inputs_embeds: Option<&'g ValueInfoProto>,
    attention_mask: Option<&'g ValueInfoProto>,
    position_ids: Option<&'g ValueInfoProto>,
    cache_position: Option<&'g ValueInfoProto>,
    token_type_ids: Option<&'g ValueInfoProto>,
    use_cache_branch: Option<&'g ValueInfoProto>,
    num_logits_to_keep: Option<&'g ValueInfoProto>,
    past: Vec<&'g ValueInfoProto>,
    unknown: Vec<&'g ValueInfoProto>,
}

impl<'g> Inputs<'g> {
    /// Sorts the graph's inputs; those with a default are left as they are.
    fn of(graph: &'g Graph<'_>) -> Self {
        let proto = graph.proto();
        let defaults: HashSet<&str> = proto.initializer_names().collect();
        let mut found = Self::default();
        for input in &proto.input {
            let name = input.name.as_deref().unwrap_or("");
            if defaults.contains(name) {
                continue;
            }
            let slot = match plain(name) {
                "input_ids" | "input" | "tokens" | "ids" => &mut found.input_ids,
                "attention_mask" | "mask" => &mut found.attention_mask,
                "position_ids" | "positions" => &mut found.position_ids,
                "cache_position" => &mut found.cache_position,
                "token_type_ids" => &mut found.token_type_ids,
                "use_cache_branch" => &mut found.use_cache_branch,
                "num_logits_to_keep" | "logits_to_keep" => &mut found.num_logits_to_keep,
                "inputs_embeds" => &mut found.inputs_embeds,
                _ if is_cache(name, input) => {
                    found.past.push(input);
                    continue;
                }
                _ => {
                    found.unknown.push(input);
                    continue;
                }
            };
            match slot {
                None => *slot = Some(input),
                Some(_) => found.unknown.push(input),
            }
        }
        if found.input_ids.is_none() && found.inputs_embeds.is_none() {
            found.looked_up(graph);
        }
        found
    }

    /// A token input of another name: the one input of whole numbers that rows of a stored table are picked by.
    fn looked_up(&mut self, graph: &Graph<'_>) {
        let picks = |input: &ValueInfoProto| {
            let Some(value) = input.name.as_deref().and_then(|name| graph.value(name)) else { return false };
            let table = |one: &Use| {
                let first = graph.input(one.node, 0).and_then(|v| graph.tensor_ref(v));
                graph.op(one.node) == "Gather" && one.slot == 1 && first.is_some_and(|t| t.shape.len() == 2)
            };
            feeding::is_index(feeding::dtype(input)) && graph.uses(value).iter().any(table)
        };
        let found: Vec<usize> = (0..self.unknown.len()).filter(|&at| picks(self.unknown[at])).collect();
        if let [at] = found.as_slice() {
            self.input_ids = Some(self.unknown.remove(*at));
        }
    }
}

fn name_of(input: Option<&ValueInfoProto>) -> Option<String> {
    input.and_then(|info| info.name.clone())
}

impl Interface {
    /// Reads the interface off the graph's inputs and outputs. Why it cannot be fed, if it cannot, is kept in
    /// [`Interface::unfed`]: an edit needs no feeding.
    ///
    /// # Errors
    /// If there is no token input, or no output that can be told to be the logits.
    pub fn new(graph: &Graph<'_>, config: &ModelConfig) -> Result<Self, Refusal> {
        Self::beside(graph, config, &[])
    }

    /// The same for a graph whose inputs of the names `given` another file makes.
    ///
    /// # Errors
    /// As [`Interface::new`].
    pub fn beside(graph: &Graph<'_>, config: &ModelConfig, given: &[String]) -> Result<Self, Refusal> {
        let mut inputs = Inputs::of(graph);
        inputs.unknown.retain(|input| !given.iter().any(|name| input.name.as_ref() == Some(name)));
        let input_ids = name_of(inputs.input_ids)
            .or_else(|| inputs.inputs_embeds.is_some().then(|| "input_ids".to_string()))
            .ok_or_else(|| refuse("input_ids", "the graph has no token input", "is this a causal language model?"))?;
        let past_names: Vec<&str> = inputs.past.iter().filter_map(|p| p.name.as_deref()).collect();
        let logits = logits(graph, &past_names)?;
        let inputs_embeds = name_of(inputs.inputs_embeds);
        let fed = inputs_embeds.as_ref().unwrap_or(&input_ids);
        let declared = graph.declared_shape(
            graph
                .value(fed)
                .ok_or_else(|| refuse(fed, "no node reads the token input", "is this a causal language model?"))?,
        );
        let mut found = Self {
            input_ids,
            inputs_embeds,
            attention_mask: name_of(inputs.attention_mask),
            position_ids: name_of(inputs.position_ids),
            cache_position: name_of(inputs.cache_position),
            token_type_ids: name_of(inputs.token_type_ids),
            use_cache_branch: name_of(inputs.use_cache_branch),
            num_logits_to_keep: name_of(inputs.num_logits_to_keep),
            cache: inputs.past.iter().map(|info| named_slot(info)).collect(),
            logits,
            padding: Padding::EqualLengths,
            single: declared.and_then(|shape| shape.first().copied().flatten()) == Some(1),
            feeding: Feeding::default(),
            unfed: None,
            cuda_only: packed_for_cuda(graph),
        };
        if let Err(refusal) = found.plan(graph, &inputs, config) {
            found.unfed = Some(refusal);
        }
        Ok(found)
    }

    /// Why the graph cannot be run with CUDA, or without it.
    pub fn unfed_on(&self, cuda: bool) -> Option<&Refusal> {
        self.unfed.as_ref().or(self.cuda_only.as_ref().filter(|_| !cuda))
    }

    /// Finds out how every input is filled.
    fn plan(&mut self, graph: &Graph<'_>, inputs: &Inputs<'_>, config: &ModelConfig) -> Result<(), Refusal> {
        self.cache = cache(graph, &inputs.past, &self.logits, config)?;
        for input in &inputs.unknown {
            self.feeding.zeros.push(adapter(graph, input)?);
        }
        self.plan_tokens(inputs)?;
        if let Some(info) = graph.proto().output.iter().find(|o| o.name.as_ref() == Some(&self.logits)) {
            let dtype = feeding::dtype(info);
            if dtype != DataType(0) && !dtype.is_float() {
                return Err(unfed(info, format!("the output is of type {}, not logits", dtype.name())));
            }
        }
        let standard = |node| matches!(graph.node(node).domain.as_deref().unwrap_or(""), "" | "ai.onnx");
        // ONNX Runtime runs the standard operators of opset 23 on one sequence at a time only
        let fused = graph.nodes().any(|n| standard(n) && matches!(graph.op(n), "Attention" | "RotaryEmbedding"));
        let relative =
            graph.nodes().any(|n| matches!(graph.op(n), "GroupQueryAttention" | "SparseAttention" | "PagedAttention"));
        self.single |= fused;
        if let Some(mask) = inputs.attention_mask {
            let found = feeding::mask(graph, mask);
            self.feeding.mask = found.map_err(|reason| unfed(mask, format!("the graph takes {reason}")))?;
            if let (Some(rows), Some(first)) = (self.feeding.rows, self.feeding.mask.axes.first_mut())
                && *first == MaskAxis::Same(rows)
            {
                *first = MaskAxis::Batch;
            }
        }
        self.plan_positions(inputs)?;
        self.plan_past(graph, inputs, relative)?;
        let told = self.position_ids.is_some() && self.attention_mask.is_some();
        let batched = self.feeding.positions == Line::Rows || matches!(self.feeding.positions, Line::Copies(_));
        let batched = batched && self.feeding.mask.axes.first() == Some(&MaskAxis::Batch) && !self.single;
        // one row at a time can be padded too, where the graph takes a fixed number of tokens
        let alone = self.single && self.feeding.length.is_some();
        if told && (batched || alone) && !relative && !fused {
            self.padding = Padding::Left;
        }
        Ok(())
    }

    fn plan_tokens(&mut self, inputs: &Inputs<'_>) -> Result<(), Refusal> {
        for info in inputs.input_ids.into_iter().chain(inputs.token_type_ids) {
            if !feeding::is_index(feeding::dtype(info)) {
                let dtype = feeding::dtype(info).name();
                return Err(unfed(info, format!("the graph takes its tokens as {dtype}, not as whole numbers")));
            }
        }
        if let Some(info) = inputs.num_logits_to_keep {
            self.feeding.keep_rank = feeding::dims(info).map_or(0, |dims| dims.len().min(1));
        }
        let Some(info) = inputs.inputs_embeds.or(inputs.input_ids) else { return Ok(()) };
        let Some(mut dims) = feeding::dims(info) else { return Ok(()) };
        if inputs.inputs_embeds.is_some() {
            dims.pop();
        }
        match dims.as_slice() {
            [length] => {
                self.feeding.tokens = Line::Flat;
                self.feeding.length = *length;
                self.single = true;
            }
            [batch, length] => {
                self.feeding.rows = batch.filter(|rows| *rows > 1);
                self.feeding.length = *length;
            }
            _ => return Err(unfed(info, format!("the token input has {} dimensions", dims.len()))),
        }
        if self.feeding.length == Some(1) {
            return Err(unfed(info, "the graph takes one token a run: it decodes, and takes no prompt"));
        }
        Ok(())
    }

    fn plan_positions(&mut self, inputs: &Inputs<'_>) -> Result<(), Refusal> {
        for info in inputs.position_ids.into_iter().chain(inputs.cache_position) {
            if !feeding::is_index(feeding::dtype(info)) {
                let dtype = feeding::dtype(info).name();
                return Err(unfed(info, format!("the graph takes positions as {dtype}, not as whole numbers")));
            }
        }
        if let Some(info) = inputs.cache_position.filter(|info| feeding::dims(info).is_some_and(|dims| dims.len() != 1))
        {
            return Err(unfed(info, "the places in the cache are not one number a token"));
        }
        let Some(info) = inputs.position_ids else { return Ok(()) };
        let Some(dims) = feeding::dims(info) else { return Ok(()) };
        self.feeding.positions = match dims.as_slice() {
            [_] => Line::Flat,
            // one row for all rows of a batch
            [Some(1), _] if !self.single => Line::One,
            [_, _] => Line::Rows,
            [Some(copies @ 1..=4), _, _] => Line::Copies(*copies),
            _ => return Err(unfed(info, format!("positions of {} dimensions", dims.len()))),
        };
        Ok(())
    }

    /// What stands in the KV cache before the first run, and whether what comes back can be fed again.
    fn plan_past(&mut self, graph: &Graph<'_>, inputs: &Inputs<'_>, relative: bool) -> Result<(), Refusal> {
        for (slot, info) in self.cache.iter().zip(&inputs.past) {
            match feeding::dims(info).and_then(|dims| dims.get(slot.batch_axis).copied().flatten()) {
                Some(1) => self.single = true,
                // heads that are folded into the batch are as many as the slot has
                Some(n) if n != slot.empty[slot.batch_axis] * self.feeding.rows.unwrap_or(1) => {
                    return Err(unfed(info, format!("the cache is of {n} rows, no more and no less")));
                }
                _ => {}
            }
        }
        let slots = self.cache.iter().filter(|slot| slot.window.is_none());
        let length = |slot: &CacheSlot| slot.sequence_axis.map(|axis| slot.fixed.then_some(slot.empty[axis]));
        let lengths: Vec<Option<usize>> = slots.filter_map(length).collect();
        let Some(Some(first)) = lengths.iter().copied().find(Option::is_some) else { return Ok(()) };
        if lengths.iter().any(|n| *n != Some(first)) {
            return Err(unfed(inputs.past[0], "the parts of the cache are of different fixed lengths"));
        }
        if inputs.past.iter().any(|info| scatters(graph, info)) {
            let reason = format!("the graph writes new positions into a cache of {first}, wherever it is told to");
            return Err(unfed(inputs.past[0], reason));
        }
        self.feeding.past = if relative {
            Past::Filled(first)
        } else if first == 0 || (self.attention_mask.is_some() && self.position_ids.is_some()) {
            Past::Hidden(first)
        } else {
            return Err(unfed(
                inputs.past[0],
                format!("the graph takes a cache of {first} positions, and no mask and positions that could hide it"),
            ));
        };
        Ok(())
    }
}

/// A slot of which only the name is known.
fn named_slot(info: &ValueInfoProto) -> CacheSlot {
    CacheSlot {
        past: info.name.clone().unwrap_or_default(),
        present: String::new(),
        empty: Vec::new(),
        batch_axis: 0,
        sequence_axis: None,
        fixed: false,
        window: None,
        dtype: feeding::dtype(info),
    }
}

/// Why an input cannot be filled.
fn unfed(info: &ValueInfoProto, reason: impl Into<String>) -> Refusal {
    let hint = "`bake` edits the model all the same; to measure it, export a text-generation graph with token ids, a mask, \
                positions and a KV cache of open length";
    refuse(info.name.as_deref().unwrap_or(""), reason, hint)
}

/// An input that nobody knows, if it is an adapter that does nothing where it is zero: its name and sizes.
fn adapter(graph: &Graph<'_>, info: &ValueInfoProto) -> Result<(String, Vec<usize>), Refusal> {
    let name = info.name.clone().unwrap_or_default();
    let sizes = feeding::dims(info).and_then(|dims| dims.into_iter().collect::<Option<Vec<usize>>>());
    let value = graph.value(&name).filter(|_| feeding::dtype(info).is_float());
    match (sizes, value) {
        (Some(sizes), Some(value)) if feeding::adds_nothing_at_zero(graph, value) => Ok((name, sizes)),
        _ => Err(unfed(info, "the graph has an input that Lancet does not know")),
    }
}

/// Whether a part of the cache is a buffer that the graph writes new positions into.
fn scatters(graph: &Graph<'_>, info: &ValueInfoProto) -> bool {
    let Some(value) = info.name.as_deref().and_then(|name| graph.value(name)) else { return false };
    let mut value = value;
    for _ in 0..8 {
        let uses = graph.uses(value);
        let writes = |one: &Use| {
            matches!(graph.op(one.node), "ScatterElements" | "ScatterND" | "Scatter" | "TensorScatter") && one.slot == 0
        };
        if uses.iter().any(writes) {
            return true;
        }
        let handed = |one: &&Use| {
            matches!(graph.op(one.node), "Cast" | "Identity" | "Transpose" | "Reshape" | "DequantizeLinear")
                && one.slot == 0
        };
        let Some(next) = uses.iter().find(handed).and_then(|one| graph.output(one.node, 0)) else { return false };
        value = next;
    }
    false
}

/// The output with the logits: the one of that name, else the first that may hold a vocabulary a position.
fn logits(graph: &Graph<'_>, past: &[&str]) -> Result<String, Refusal> {
    let outputs: Vec<&str> = graph.proto().output.iter().filter_map(|o| o.name.as_deref()).collect();
    if outputs.contains(&"logits") {
        return Ok("logits".into());
    }
    let of_ranks = |ranks: std::ops::RangeInclusive<usize>| -> Vec<&str> {
        let all = graph.proto().output.iter().filter(|o| !is_present(o.name.as_deref().unwrap_or("")));
        let floats = all.filter(|o| feeding::dtype(o).is_float() || feeding::dtype(o) == DataType(0));
        let fits = floats.filter(|o| feeding::dims(o).is_none_or(|dims| ranks.contains(&dims.len())));
        fits.filter_map(|o| o.name.as_deref()).collect()
    };
    let wide = of_ranks(3..=3);
    let candidates = if wide.is_empty() { of_ranks(1..=4) } else { wide };
    match candidates.first() {
        // exporters put the logits first
        Some(first) if candidates.len() == 1 || past.is_empty() || outputs.first() == Some(first) => {
            Ok((*first).to_string())
        }
        _ => Err(refuse(&outputs.join(", "), "no output can be told to be the logits", "name the output `logits`")),
    }
}
