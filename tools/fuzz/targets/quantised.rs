//! Any bytes as a quantised model: every layout, rounded and by nodes.
#![no_main]

use lancet::bake::QuantisedMode;
use lancet_fuzz::{proof, wire, write};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|data: &[u8]| {
    let path = write("quantised/model.onnx", data);
    proof::bake(&path, if data.len() % 2 == 0 { QuantisedMode::Round } else { QuantisedMode::Nodes }, false);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { wire::mutate(data, size, max_size, seed) });
