//! Writers by layer, and runs of layers that are alike but for numbers.

use std::collections::BTreeMap;

use super::WriterRow;

/// The writers of one layer, or, without a number, those that start the stream.
pub(super) struct Block<'a> {
    pub layer: Option<usize>,
    pub writers: Vec<&'a WriterRow>,
}

/// Everything about a block, numbers blanked: equal for blocks that are alike.
fn key(block: &Block<'_>) -> impl PartialEq + use<> {
    let key = |w: &&WriterRow| {
        let texts = (w.initializer.as_deref().map(blanked), w.reason.as_ref().map(|r| blanked(&r.to_string())));
        (w.kind, texts, w.n_weights, w.dtype.clone(), w.shape.clone(), w.treatment)
    };
    block.writers.iter().map(key).collect::<Vec<_>>()
}

/// Blocks that follow each other: one, or a pattern of `period` blocks that repeats.
pub(super) struct Run<'a> {
    blocks: Vec<Block<'a>>,
    period: usize,
}

impl<'a> Run<'a> {
    pub fn blocks(&self) -> impl Iterator<Item = &Block<'a>> + Clone {
        self.blocks.iter()
    }

    /// How often the pattern stands there.
    pub fn repeats(&self) -> usize {
        self.blocks.len() / self.period
    }

    /// For each place in the pattern, the blocks that stand there: alike but for numbers.
    pub fn places(&self) -> impl Iterator<Item = impl Iterator<Item = &Block<'a>> + Clone> {
        (0..self.period).map(|place| self.blocks.iter().skip(place).step_by(self.period))
    }
}

/// Writers by layer, those that start the stream first.
pub(super) fn by_layer(writers: &[WriterRow]) -> Vec<Block<'_>> {
    let mut layers: BTreeMap<Option<usize>, Vec<&WriterRow>> = BTreeMap::new();
    for writer in writers {
        layers.entry(writer.layer).or_default().push(writer);
    }
    layers.into_iter().map(|(layer, writers)| Block { layer, writers }).collect()
}

/// Joins neighbours that repeat a pattern of up to `longest` blocks, where at least `fewest` blocks do.
pub(super) fn runs(blocks: Vec<Block<'_>>, fewest: usize, longest: usize) -> Vec<Run<'_>> {
    let keys: Vec<_> = blocks.iter().map(key).collect();
    let neighbours = |at: usize| blocks[at].layer.is_some_and(|l| l.checked_add(1) == blocks[at + 1].layer);
    let mut spans = Vec::new();
    let mut at = 0;
    while at < blocks.len() {
        let room = (at + 1..blocks.len()).take_while(|&next| neighbours(next - 1)).count() + 1;
        let (mut span, mut period) = (1, 1);
        for p in 1..=longest.min(room / 2) {
            let same = (at..at + room - p).take_while(|&i| keys[i] == keys[i + p]).count();
            let whole = (same + p) / p * p;
            if whole >= 2 * p && whole >= fewest && whole > span {
                (span, period) = (whole, p);
            }
        }
        spans.push((span, period));
        at += span;
    }
    let mut blocks = blocks.into_iter();
    spans.into_iter().map(|(span, period)| Run { blocks: blocks.by_ref().take(span).collect(), period }).collect()
}

/// One writer of alike blocks: the first one, and what the names and reasons of all have in common.
pub(super) struct Joined<'a> {
    pub first: &'a WriterRow,
    pub name: Option<String>,
    pub reason: Option<String>,
}

/// The writers of alike blocks, place by place.
pub(super) fn joined<'a: 'b, 'b>(blocks: impl Iterator<Item = &'b Block<'a>> + Clone) -> Vec<Joined<'a>> {
    let common = |i: usize, text: fn(&WriterRow) -> Option<String>| {
        let all: Vec<String> = blocks.clone().filter_map(|b| text(b.writers[i])).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        (!all.is_empty()).then(|| pattern(&all))
    };
    let first = blocks.clone().next().map(|b| b.writers.as_slice()).unwrap_or_default();
    (first.iter().enumerate())
        .map(|(i, &first)| Joined {
            first,
            name: common(i, |w| w.initializer.clone()),
            reason: common(i, |w| w.reason.as_ref().map(ToString::to_string)),
        })
        .collect()
}

/// Which layers these are: `3`, `3 to 27`, `0, 4, … 76`; nothing for blocks without a number.
pub(super) fn numbers<'a: 'b, 'b>(blocks: impl Iterator<Item = &'b Block<'a>>) -> String {
    let layers: Vec<usize> = blocks.filter_map(|b| b.layer).collect();
    match layers.as_slice() {
        [] => String::new(),
        [one] => one.to_string(),
        [first, next, .., last] if next - first > 1 => format!("{first}, {next}, … {last}"),
        [first, last] if last - first > 1 => format!("{first}, {last}"),
        [first, .., last] => format!("{first} to {last}"),
    }
}

/// Names that differ in their numbers only, as one: `layers.*.o_proj` for `layers.0.o_proj`, `layers.1.o_proj`.
pub(super) fn pattern(names: &[&str]) -> String {
    let pieces = |name: &str| -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut digits = None;
        for c in name.chars() {
            if digits != Some(c.is_ascii_digit()) {
                all.push(String::new());
                digits = Some(c.is_ascii_digit());
            }
            all.last_mut().expect("just pushed").push(c);
        }
        all
    };
    let Some(first) = names.first() else {
        return String::new();
    };
    let all: Vec<Vec<String>> = names.iter().map(|n| pieces(n)).collect();
    let joined: String = pieces(first)
        .iter()
        .enumerate()
        .map(|(i, piece)| if all.iter().all(|p| p.get(i) == Some(piece)) { piece } else { "*" })
        .collect();
    joined.replace("*.*", "*")
}

/// A name with its numbers blanked: equal for names that [`pattern`] can join.
pub(super) fn blanked(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match c {
            '0'..='9' if out.ends_with('*') => {}
            '0'..='9' => out.push('*'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Reason, WriterKind};
    use super::*;

    #[test]
    fn names_join() {
        assert_eq!(pattern(&["a.0.w4", "a.11.w4"]), "a.*.w4");
        assert_eq!(pattern(&["KL 0.31 > 0.2", "KL 1.05 > 0.2"]), "KL * > 0.2");
        assert_eq!(blanked("a.11.w4"), "a.*.w*");
        assert_eq!(pattern(&[]), "");
    }

    fn writers(kinds: &str) -> Vec<WriterRow> {
        let row = |(layer, kind): (usize, char)| WriterRow {
            kind: if kind == 'a' { WriterKind::AttnOut } else { WriterKind::MlpOut },
            layer: Some(layer),
            initializer: Some(format!("h.{layer}.w")),
            reason: Some(Reason::Shared { detail: format!("at node `{layer}`") }),
            ..Default::default()
        };
        kinds.chars().enumerate().filter(|(_, kind)| *kind != '-').map(row).collect()
    }

    fn shown(kinds: &str, fewest: usize, longest: usize) -> String {
        let writers = writers(kinds);
        let all = runs(by_layer(&writers), fewest, longest);
        let text = |run: &Run<'_>| run.places().map(numbers).collect::<Vec<_>>().join(" & ");
        all.iter().map(text).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn runs_repeat() {
        assert_eq!(shown("aaabb", 2, 1), "0 to 2; 3 to 4");
        assert_eq!(shown("aa-aa", 2, 1), "0 to 1; 3 to 4");
        assert_eq!(shown("aaabaaabaa", 7, 8), "0, 4 & 1, 5 & 2, 6 & 3, 7; 8; 9");
        assert_eq!(shown("abababab", 7, 8), "0, 2, … 6 & 1, 3, … 7");
        assert_eq!(shown("baaaaaaa", 7, 8), "0; 1 to 7");
        assert_eq!(shown("baaaaaa", 7, 8), "0; 1; 2; 3; 4; 5; 6");
        assert_eq!(shown("", 2, 1), "");
    }

    #[test]
    fn names_and_reasons_join() {
        let writers = writers("aaa");
        let all = runs(by_layer(&writers), 2, 1);
        let row = &joined(all[0].blocks())[0];
        assert_eq!(row.name.as_deref(), Some("h.*.w"));
        assert_eq!(row.reason.as_deref(), Some("at node `*`"));
        assert_eq!(all[0].repeats(), 3);
    }

    #[test]
    fn numbers_may_be_anything() {
        let mut writers = writers("aaa");
        for (writer, layer) in writers.iter_mut().zip([usize::MAX, usize::MAX - 1, 0]) {
            writer.layer = Some(layer);
        }
        assert_eq!(runs(by_layer(&writers), 2, 1).len(), 2);
    }
}
