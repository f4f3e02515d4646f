//! `onnx.checker` and ONNX Runtime's Python API on every edited fixture of the zoo, where Python has them.

use std::process::Command;

#[test]
fn python_accepts_what_is_written() {
    let python = std::env::var("LANCET_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import onnx, onnxruntime, numpy, safetensors"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "skipped: `{python}` lacks onnx, onnxruntime, numpy or safetensors (set LANCET_PYTHON to one that has them)"
        );
        return;
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(&python)
        .arg(root.join("tools/zoo/check.py"))
        .arg("--lancet")
        .arg(env!("CARGO_BIN_EXE_lancet"))
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    eprintln!("{said}");
}
