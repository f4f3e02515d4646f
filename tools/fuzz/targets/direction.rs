//! Any bytes as a direction file.
#![no_main]

use lancet::linalg::norm;
use lancet::pipeline::direction_file;
use lancet_fuzz::write;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = write("direction/d.bin", data);
    if let Ok(direction) = direction_file::load(&path) {
        assert!((norm(direction.unit()) - 1.0).abs() < 1e-9);
        assert!(direction.strength() > 0.0 && direction.strength() <= 1.0);
        assert!(direction.width() * 2 <= data.len() + 8);
    }
});
