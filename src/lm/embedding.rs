//! A token embedding that lives in a file of its own (`embed_tokens.onnx`): the start of the stream of a graph that
//! takes `inputs_embeds`.

use super::Role;
use super::residual::Contribution;
use super::writer::{Writer, single};
use super::{Refusal, StreamLayout, weight};
use crate::onnx::{Graph, ValueId};

/// The embedding file, understood.
pub struct EmbeddingFile<'m> {
    /// Its graph.
    pub graph: Graph<'m>,
    /// Its token input, `[batch, n_pos]`.
    pub input_ids: String,
    /// Its output, `[batch, n_pos, d_model]`.
    pub output: ValueId,
    /// What is edited in it.
    pub writer: Writer,
}

impl<'m> EmbeddingFile<'m> {
    /// Understands the graph of an embedding file.
    ///
    /// # Errors
    /// If it does not make one embedding from token ids.
    pub fn new(graph: Graph<'m>, d_model: Option<usize>) -> Result<Self, Refusal> {
        let refuse = |tensor: &str, reason: &str| Refusal {
            node: "(embedding file)".into(),
            op: String::new(),
            tensor: tensor.into(),
            reason: reason.into(),
            hint: "the file should turn input_ids into inputs_embeds; export the model with its embedding in one graph"
                .into(),
        };
        let fed = |name: &str| graph.value(name).filter(|v| graph.tensor(*v).is_none() && !graph.is_default(*v));
        let inputs: Vec<&str> =
            graph.proto().input.iter().filter_map(|i| i.name.as_deref()).filter(|name| fed(name).is_some()).collect();
        let outputs: Vec<&str> = graph.proto().output.iter().filter_map(|o| o.name.as_deref()).collect();
        let ([input], [output]) = (inputs.as_slice(), outputs.as_slice()) else {
            let all = inputs.iter().chain(&outputs).copied().collect::<Vec<_>>().join(", ");
            return Err(refuse(&all, "the embedding file has more than one input or output"));
        };
        let (input_ids, output_name) = ((*input).to_string(), (*output).to_string());
        let output = graph.value(&output_name).filter(|v| graph.producer(*v).is_some());
        let output = output.ok_or_else(|| refuse(&output_name, "no node computes the embedding"))?;
        let found = weight::trace_weight(&graph, output, d_model, 0).ok().and_then(|path| path.width(&graph));
        let declared = graph.last_dimension(output).and_then(|d| usize::try_from(d).ok());
        let width = found.or(declared).or(d_model);
        let width = width.ok_or_else(|| refuse(&output_name, "the width of the embedding is unknown"))?;
        let layout = StreamLayout::by_rank(graph.rank_of(output), 0);
        let write = Contribution { value: output, site: None, bias: None, role: Role::Embed, layer: None, layout };
        let writer = single(&graph, write, width);
        Ok(Self { graph, input_ids, output, writer })
    }
}
