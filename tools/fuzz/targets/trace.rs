//! Any bytes as a model: what `inspect` tells of it, with its interface and writers or its refusal.
#![no_main]

use lancet::pipeline::{Package, inspect};
use lancet_fuzz::{wire, write};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|data: &[u8]| {
    let path = write("trace/model.onnx", data);
    if let Ok(package) = Package::find(&path, &[]) {
        let found = inspect::package(&package);
        assert_eq!(found.variants.len(), 1);
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { wire::mutate(data, size, max_size, seed) });
