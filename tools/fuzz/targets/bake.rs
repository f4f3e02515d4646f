//! Any bytes as a model that is baked, and whose published file is read again.
#![no_main]

use lancet::bake::QuantisedMode;
use lancet_fuzz::{proof, wire, write};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|data: &[u8]| {
    let path = write("bake/model.onnx", data);
    proof::bake(&path, QuantisedMode::Auto, data.len() % 4 == 0);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { wire::mutate(data, size, max_size, seed) });
