//! Any bytes as a direction file.
#![no_main]

use lancet::linalg::norm;
use lancet::pipeline::direction_file;
use lancet_fuzz::write;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = write("direction/d.bin", data);
    if let Ok(edit) = direction_file::load(&path) {
        if let Some(ablation) = edit.ablation() {
            for one in ablation.vectors() {
                assert!((norm(one.unit()) - 1.0).abs() < 1e-9);
                assert!(one.strength() > 0.0 && one.strength() <= 1.0);
            }
        }
        for term in edit.gates() {
            assert!(term.layer() >= 1 && (1..=4).contains(&term.factors().len()));
            assert!(term.factors().iter().all(|factor| factor.weights.len() == term.vector().len()));
        }
        assert!(edit.width() * 2 <= data.len() + 8);
    }
});
