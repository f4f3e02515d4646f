//! Whether a file is one that Lancet wrote: only such a file is ever replaced.

use std::path::Path;

use super::first_bytes;

/// Bytes at the start of a file in which its mark lies.
const HEAD: u64 = 64 << 10;

/// Whether a file bears the mark of one of Lancet's own: a report (HTML, JSON, Markdown), a direction, activations. It
/// protects from mistakes, not from forgery.
pub fn written_by_lancet(path: &Path) -> bool {
    let plain = path.symlink_metadata().is_ok_and(|meta| meta.is_file());
    plain && marked(&first_bytes(path, HEAD))
}

fn marked(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let holds = |word: &str| text.contains(word);
    let html = text.starts_with("<!doctype html>") && holds("<meta name=\"generator\" content=\"Lancet");
    // before schema 3 the result of a run began with `inspect`
    let has_key = |key: &str| holds(&format!("\n  \"{key}\": {{"));
    let json =
        text.starts_with("{\n  \"schema\": ") && ["shared", "recommendation", "inspect"].into_iter().any(has_key);
    let markdown = text.starts_with("### ") && holds("\n<!-- Lancet -->\n");
    // safetensors: the length of the header, then the header
    let tensors = head.get(8..).is_some_and(|header| header.starts_with(b"{\"__metadata__\":{\"lancet."));
    html || json || markdown || tensors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_files_are_ours() {
        let html = "<!doctype html>\n<html><head><meta name=\"generator\" content=\"Lancet 0.1.0\">";
        for (bytes, wanted) in [
            (html, true),
            ("<!doctype html>\n<html><head><title>mine</title>", false),
            ("{\n  \"schema\": 2,\n  \"inspect\": {\n", true),
            ("{\n  \"schema\": 3,\n  \"shared\": {\n", true),
            ("{\n  \"schema\": 3,\n  \"model\": \"m\",\n  \"recommendation\": {\n", true),
            ("{\n  \"schema\": 3\n}", false),
            ("### published\n\ntext\n\n<!-- Lancet -->\n", true),
            ("### mine\n", false),
            ("# A model\n", false),
            ("\u{1}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}{\"__metadata__\":{\"lancet.version\":\"0.1.0\"}}", true),
            ("\u{1}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}{\"direction\":{}}", false),
            ("", false),
        ] {
            assert_eq!(marked(bytes.as_bytes()), wanted, "{bytes}");
        }
    }
}
