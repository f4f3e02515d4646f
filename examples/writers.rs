//! Lists what writes to the residual stream of a model, and how each write would be edited.
//!
//! ```sh
//! cargo run --example writers -- fixtures/chat/model.onnx
//! ```
//!
//! No ONNX Runtime is needed: everything is read from the graph.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use lancet::lm::{LanguageModel, ModelConfig};
use lancet::onnx::{Graph, Model};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: writers MODEL.onnx")?;
    print!("{}", list(Path::new(&path))?);
    Ok(())
}

/// One line for the model, then one for each writer: kind, layer, treatment, weights.
fn list(path: &Path) -> Result<String, Box<dyn Error>> {
    // The index holds the structure of the file and the places of its tensors, not their values.
    let model = Model::open(path)?;
    let graph = Graph::new(&model);
    // Sizes that a graph leaves open come from `config.json`; most graphs leave none.
    let lm = LanguageModel::new(&graph, &ModelConfig::default()).map_err(|refusal| {
        format!("`{}` at node `{}`: {}; {}", refusal.op, refusal.node, refusal.reason, refusal.hint)
    })?;

    let mut text = format!("{} layers, d_model {}, {} writers\n", lm.n_layers(), lm.d_model(), lm.writers.len());
    for writer in &lm.writers {
        let layer = writer.layer.map_or(String::new(), |layer| format!(" of layer {}", layer.0));
        write!(text, "{}{layer}: by {}", writer.kind, writer.treatment)?;
        for weight in &writer.weights {
            let tensor = model.tensor(weight.tensor);
            write!(text, ", `{}` {} {:?}", tensor.name, tensor.dtype, tensor.shape)?;
        }
        text.push('\n');
    }
    Ok(text)
}

#[test]
fn the_bundled_model_has_an_embedding_and_two_writers_a_layer() {
    let text = list(Path::new("fixtures/chat/model.onnx")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "6 layers, d_model 96, 13 writers");
    assert_eq!(lines.len(), 14, "{text}");
    assert!(lines[1].starts_with("embed: by weights, `"), "{text}");
    assert!(lines[13].starts_with("mlp_out of layer 5: by weights, `"), "{text}");
}
