//! A bake from open to verify, as the command does it, and what must hold of whatever it publishes.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use lancet::bake::QuantisedMode;
use lancet::edit::Direction;
use lancet::pipeline::engine::Silent;
use lancet::pipeline::{self, BakeOptions, Opened};
use lancet::runtime::session::{Device, Runtime};

/// ONNX Runtime, where `ORT_DYLIB_PATH` names the library: published files are loaded and run with it.
fn runtime() -> Option<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            let path = PathBuf::from(std::env::var_os("ORT_DYLIB_PATH")?);
            Some(Runtime::load(&path, Device::Cpu, 1).expect("ONNX Runtime loads"))
        })
        .as_ref()
}

/// Bakes `model` if it is understood. What was published must be read again and be understood with the same width, and
/// ONNX Runtime must load it where it loads the base; whatever else happens must be an error.
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
    let options = BakeOptions {
        out: &out,
        weights_only,
        quantised,
        max_rounding_error: None,
        runtime: runtime(),
        sync: false,
        cancelled: &cancelled,
    };
    let Ok(row) = pipeline::bake_only(&opened, &direction.clone().into(), &options, &Silent) else {
        assert!(!out.exists(), "a failed bake left an output");
        return;
    };
    if !row.verify.passed {
        return;
    }
    let again = Opened::new(&out).expect("what was published can be read");
    let found = again.understand().map(|u| u.lm.d_model());
    assert!(found.is_ok_and(|found| found == width), "what was published is not understood any more");
    if let Some(runtime) = runtime()
        && runtime.published(model).is_ok()
    {
        let loaded = runtime.published(&out);
        assert!(
            loaded.is_ok(),
            "what was published is not loaded: {}",
            loaded.err().map(|e| e.to_string()).unwrap_or_default()
        );
    }
    let _ = std::fs::remove_file(&out);
    let _ = std::fs::remove_file(out.with_extension("onnx.data"));
}
