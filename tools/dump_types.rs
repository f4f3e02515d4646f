//! Prints what Lancet's operator table says of every value of a model, as JSON lines: its name, the code of its element type,
//! its rank and the size of its last dimension, each `null` where it is not known. `tools/check_shapes.py` reads it.
//!
//! ```text
//! cargo run --example dump_types -- MODEL.onnx
//! ```

use std::path::Path;

use lancet::onnx::{Graph, Model};

fn main() -> anyhow::Result<()> {
    for path in std::env::args().skip(1) {
        let model = Model::open(Path::new(&path))?;
        let graph = Graph::new(&model);
        for value in graph.values() {
            let line = serde_json::json!({
                "name": graph.name(value),
                "type": graph.elem_type(value).map(|dtype| dtype.0),
                "rank": graph.rank_of(value),
                "last": graph.last_dimension(value),
                "op": graph.producer(value).map(|node| graph.op_name(node)),
                "known": graph.producer(value).is_none_or(|node| graph.operator(node).is_some()),
            });
            println!("{line}");
        }
    }
    Ok(())
}
