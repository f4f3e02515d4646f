//! A bake from open to verify, as the command does it, and what must hold of whatever it publishes.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use lancet::bake::QuantisedMode;
use lancet::method::direction::Direction;
use lancet::pipeline::engine::Silent;
use lancet::pipeline::{self, BakeOptions, Opened};

/// Bakes `model` if it is understood. What was published must be read again, be understood with as many writers, and
/// have passed its own check; whatever else happens must be an error.
pub fn bake(model: &Path, quantised: QuantisedMode, weights_only: bool) {
    let Ok(opened) = Opened::new(model) else { return };
    let Ok(understood) = opened.understand() else { return };
    let width = understood.lm.d_model();
    if width > 1 << 12 {
        return;
    }
    let raw = (0..width).map(|i| f64::from(((i * 37) % 11) as i32) - 4.5).collect();
    let Ok(direction) = Direction::new(raw) else { return };
    let out = crate::scratch().join("out.onnx");
    let _ = std::fs::remove_file(&out);
    let cancelled = AtomicBool::new(false);
    let options = BakeOptions { out: &out, weights_only, quantised, max_rounding_error: None, cancelled: &cancelled };
    let Ok((_, verified)) = pipeline::bake_only(&opened, &direction, &options, &Silent) else {
        assert!(!out.exists(), "a failed bake left an output");
        return;
    };
    if !verified.passed {
        return;
    }
    let again = Opened::new(&out).expect("what was published can be read");
    let found = again.understand().map(|u| u.lm.d_model());
    assert!(found.is_ok_and(|found| found == width), "what was published is not understood any more");
    let _ = std::fs::remove_file(&out);
    let _ = std::fs::remove_file(out.with_extension("onnx.data"));
}
