//! Any bytes as an `.onnx` file: index, flat graph, and every question about every value of it.
#![no_main]

use lancet::onnx::{Graph, Model};
use lancet_fuzz::{wire, write};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|data: &[u8]| {
    let path = write("index/model.onnx", data);
    let Ok(model) = Model::open(&path) else { return };
    let graph = Graph::new(&model);
    for node in graph.nodes() {
        let _ = (graph.op_name(node), graph.rank(node));
        for value in graph.all_inputs(node).into_iter().chain(graph.outputs(node)) {
            let _ = (graph.elem_type(value), graph.declared_shape(value), graph.rank_of(value));
            let _ = (graph.last_dimension(value), graph.const_ints(value), graph.tensor_ref(value));
        }
    }
    let _ = model.external_files();
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { wire::mutate(data, size, max_size, seed) });
