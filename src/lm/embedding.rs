//! A token embedding that lives in a file of its own (`embed_tokens.onnx`): the start of the stream of a graph that
//! takes `inputs_embeds`.

use super::Role;
use super::interface::is_index;
use super::residual::Contribution;
use super::writer::{Writer, single};
use super::{Refusal, StreamLayout, weight};
use crate::onnx::{DataType, Graph, ValueId};

/// The usual name of the token input, which tells it from other inputs of whole numbers.
const TOKENS: &str = "input_ids";

/// The usual name of the embeddings, which tells them from other outputs where no decoder says what it takes.
const EMBEDDINGS: &str = "inputs_embeds";

/// An input of an embedding file beside the tokens: rows of image or audio features that take the places of tokens.
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DataType,
    /// Its sizes for a prompt of text alone: 0 where the file leaves a size open.
    pub shape: Vec<usize>,
}

/// The embedding file, understood.
pub struct EmbeddingFile<'m> {
    /// Its graph.
    pub graph: Graph<'m>,
    /// Its token input, `[batch, n_pos]`.
    pub input_ids: String,
    /// What else it takes.
    pub features: Vec<Feature>,
    /// Its output, `[batch, n_pos, d_model]`.
    pub output: ValueId,
    /// Names of its further outputs, which a decoder may take too (an embedding for each layer).
    pub others: Vec<String>,
    /// What is edited in it.
    pub writer: Writer,
    /// Width of the stream.
    pub d_model: usize,
}

impl Feature {
    /// Whether a prompt of text alone has none of it.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }
}

fn feature(graph: &Graph<'_>, value: ValueId) -> Feature {
    let sizes = graph.declared_shape(value).unwrap_or_default();
    Feature {
        name: graph.name(value).to_string(),
        dtype: graph.elem_type(value).unwrap_or(DataType::FLOAT),
        shape: sizes.into_iter().map(|size| size.and_then(|n| usize::try_from(n).ok()).unwrap_or(0)).collect(),
    }
}

impl<'m> EmbeddingFile<'m> {
    /// Understands the graph of an embedding file. `taken` is the decoder's name for the embeddings, where there is one.
    ///
    /// # Errors
    /// If it does not make one embedding from token ids.
    pub fn new(graph: Graph<'m>, taken: Option<&str>, d_model: Option<usize>) -> Result<Self, Refusal> {
        let refuse = |tensor: &str, reason: &str| Refusal {
            node: "(embedding file)".into(),
            op: String::new(),
            tensor: tensor.into(),
            reason: reason.into(),
            hint: "the file should turn input_ids into inputs_embeds; export the model with its embedding in one graph"
                .into(),
        };
        let fed = |name: &str| graph.value(name).filter(|v| graph.tensor(*v).is_none() && !graph.is_default(*v));
        let inputs: Vec<ValueId> = graph.proto().input.iter().filter_map(|input| fed(input.name.as_deref()?)).collect();
        let whole = |&value: &ValueId| graph.elem_type(value).is_some_and(is_index);
        let numbers: Vec<ValueId> = inputs.iter().copied().filter(whole).collect();
        let tokens = match numbers.as_slice() {
            [tokens] => *tokens,
            several => several.iter().copied().find(|&value| graph.name(value) == TOKENS).ok_or_else(|| {
                let all: Vec<&str> = inputs.iter().map(|&value| graph.name(value)).collect();
                let reason = format!(
                    "the embedding file takes its tokens neither as its one input of whole numbers nor as `{TOKENS}`"
                );
                refuse(&all.join(", "), &reason)
            })?,
        };
        let features = inputs.iter().filter(|&&value| value != tokens).map(|&value| feature(&graph, value)).collect();
        let input_ids = graph.name(tokens).to_string();
        let outputs: Vec<&str> = graph.proto().output.iter().filter_map(|o| o.name.as_deref()).collect();
        let output_name = match outputs.as_slice() {
            [output] => *output,
            several => several.iter().copied().find(|name| *name == taken.unwrap_or(EMBEDDINGS)).ok_or_else(|| {
                let wanted = taken.unwrap_or(EMBEDDINGS);
                refuse(
                    &several.join(", "),
                    &format!("the embedding file has several outputs, and none is called `{wanted}`"),
                )
            })?,
        };
        let output_name = output_name.to_string();
        let others = outputs.into_iter().filter(|name| *name != output_name).map(String::from).collect();
        let output = graph.value(&output_name).filter(|v| graph.producer(*v).is_some());
        let output = output.ok_or_else(|| refuse(&output_name, "no node computes the embedding"))?;
        let found = weight::trace_weight(&graph, output, d_model, 0).ok().and_then(|path| path.width(&graph));
        let declared = graph.last_dimension(output).and_then(|d| usize::try_from(d).ok());
        let width = found.or(declared).or(d_model);
        let width = width.ok_or_else(|| refuse(&output_name, "the width of the embedding is unknown"))?;
        let layout = StreamLayout::by_rank(graph.rank_of(output), 0);
        let write = Contribution { value: output, site: None, bias: None, role: Role::Embed, layer: None, layout };
        let writer = single(&graph, write, width);
        Ok(Self { graph, input_ids, features, output, others, writer, d_model: width })
    }
}
