//! The model card (`README.md`) of an edited model: that of the unedited one, with a notice before it.

use std::path::Path;

/// Stands before the notice.
const MARK: &str = "<!-- edited with lancet -->";

/// Largest card that is given a notice, in bytes; a larger file is no card.
pub(super) const MAX_CARD: u64 = 4 << 20;

/// The notice. It holds nothing that changes from run to run, so that anyone can tell it from other changes.
const NOTICE: &str = "> **This model was edited with Lancet.** A direction in its residual stream was removed from its \
                      weights, so that it refuses less of what it should answer. What follows is the card of the \
                      unedited model: its measurements are not those of this one.";

/// Whether a file of a package is a model card.
pub(super) fn is_card(relative: &Path) -> bool {
    let name = relative.file_name().and_then(|n| n.to_str()).unwrap_or("");
    ["README.md", "MODEL_CARD.md", "MODELCARD.md"].iter().any(|card| name.eq_ignore_ascii_case(card))
}

/// The card with the notice, after the front matter (`---`, YAML, `---`) where there is one. A card that has the whole
/// notice there stays as it is: a mark somewhere in the text says nothing.
pub(super) fn edited(card: &[u8]) -> Vec<u8> {
    let at = front_matter(card);
    let (front, rest) = card.split_at(at);
    if rest.trim_ascii_start().starts_with(format!("{MARK}\n{NOTICE}\n").as_bytes()) {
        return card.to_vec();
    }
    let mut out = front.to_vec();
    if !front.is_empty() {
        out.extend(b"\n");
    }
    out.extend(MARK.bytes());
    out.extend(b"\n");
    out.extend(NOTICE.bytes());
    out.extend(b"\n\n");
    out.extend(rest);
    out
}

/// Bytes of the front matter, its last line included.
fn front_matter(card: &[u8]) -> usize {
    let mut at = 0;
    for (number, line) in card.split_inclusive(|byte| *byte == b'\n').enumerate() {
        at += line.len();
        match (number, line.trim_ascii_end()) {
            (0, b"---") => {}
            (0, _) => return 0,
            (_, b"---") if line.ends_with(b"\n") => return at,
            _ => {}
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notice_stands_after_the_front_matter_once() {
        let text = |card: &str| String::from_utf8(edited(card.as_bytes())).unwrap();
        let notice = format!("{MARK}\n{NOTICE}\n\n");
        for (card, front, rest) in [
            ("# A model\n", "", "# A model\n"),
            ("---\nlicense: mit\n---\n# A model\n", "---\nlicense: mit\n---\n\n", "# A model\n"),
            ("---\r\nlicense: mit\r\n---\r\ntext", "---\r\nlicense: mit\r\n---\r\n\n", "text"),
            // a rule, not front matter
            ("---\nno end\n", "", "---\nno end\n"),
            ("", "", ""),
            // a mark without the notice, and one that stands elsewhere
            ("# A model\n<!-- edited with lancet -->\n", "", "# A model\n<!-- edited with lancet -->\n"),
        ] {
            let out = text(card);
            assert_eq!(out, format!("{front}{notice}{rest}"), "{card:?}");
            assert_eq!(text(&out), out, "a second notice");
        }
        assert!(is_card(Path::new("onnx/readme.MD")) && !is_card(Path::new("notes.md")));
        assert_eq!(edited(b"\xff\n").last(), Some(&b'\n'), "bytes that are no text stay");
    }
}
