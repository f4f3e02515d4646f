//! Laying out terminal text: colour, safe lines, wrapping, tables.

/// How text may look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// Whether ANSI colours are used.
    pub color: bool,
}

/// What a piece of text is, and with it its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Strong,
    Faint,
    Good,
    Doubtful,
    Bad,
}

impl Style {
    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Strong => "1",
            Tone::Faint => "2",
            Tone::Good => "1;32",
            Tone::Doubtful => "1;33",
            Tone::Bad => "1;31",
            Tone::Plain => return text.to_owned(),
        };
        if self.color && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Text from a model, a file or a user as one line that is safe on a terminal: white space runs become one
/// space; control and direction-changing characters, with which it could rewrite the screen, become `�`.
#[must_use]
pub fn single_line(text: &str) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    joined.chars().map(|c| if is_unsafe(c) { '\u{fffd}' } else { c }).collect()
}

/// Whether a character steers the terminal, ends its line, or changes the direction of the text around it.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A message that may repeat what a file or a server says, as one line that is safe on a terminal and shows what was
/// there: a new line becomes `\n`, other characters that steer it their number, as in `\u{1b}`.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            c if is_unsafe(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Laid out text with its line ends and colours, and nothing else that steers a terminal: any other such character
/// becomes `�`.
#[must_use]
pub fn tame(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colour = colour_code(rest);
        if colour > 0 {
            out.push_str(&rest[..colour]);
            rest = &rest[colour..];
            continue;
        }
        out.push(if c != '\n' && is_unsafe(c) { '\u{fffd}' } else { c });
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// Bytes of the colour code that `text` begins with; 0 where it begins with none.
fn colour_code(text: &str) -> usize {
    let Some(body) = text.strip_prefix("\x1b[") else { return 0 };
    let numbers = body.bytes().take_while(|b| b.is_ascii_digit() || *b == b';').count();
    if body[numbers..].starts_with('m') { 2 + numbers + 1 } else { 0 }
}

/// Terminal columns of a character: 0 for combining marks, 2 for East Asian wide ones and emoji.
fn columns_of(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f | 0x200b..=0x200d | 0x20d0..=0x20ff | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// Terminal columns of text without escape sequences.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// The longest start of `text` within `width` columns, in bytes.
fn fitting(text: &str, width: usize) -> usize {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += columns_of(c);
        if used > width {
            return at;
        }
    }
    text.len()
}

/// `text`, cut to `width` columns with `…` at its end.
#[must_use]
pub fn shorten(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    format!("{}…", text[..fitting(text, width.saturating_sub(1))].trim_end())
}

/// `text`, cut to `width` columns with `…` in its middle, for names that differ at both ends.
pub(super) fn shorten_middle(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let keep = width.saturating_sub(1);
    let reversed: String = text.chars().rev().collect();
    let tail: String = reversed[..fitting(&reversed, keep - keep / 2)].chars().rev().collect();
    format!("{}…{tail}", &text[..fitting(text, keep / 2)])
}

/// `text` with a no-break space between a number and its unit.
fn glue_units(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split(' ') {
        let unit = word.trim_end_matches([',', ';', '.', ')']);
        let unit = ["%", "s", "min", "B", "kB", "MB", "GB", "TB"].contains(&unit);
        let glued = unit && out.ends_with(|c: char| c.is_ascii_digit());
        if !out.is_empty() {
            out.push(if glued { '\u{a0}' } else { ' ' });
        }
        out.push_str(word);
    }
    out
}

/// One line of text broken at spaces into lines of at most `width` columns; longer words are cut.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(8);
    let mut lines = vec![String::new()];
    let text = glue_units(text);
    for mut word in text.split(' ').filter(|w| !w.is_empty()) {
        let line = lines.last_mut().expect("starts with one line");
        if !line.is_empty() {
            if columns(line) + 1 + columns(word) <= width {
                line.push(' ');
                line.push_str(word);
                continue;
            }
            lines.push(String::new());
        }
        while columns(word) > width {
            let (start, rest) = word.split_at(fitting(word, width));
            *lines.last_mut().expect("starts with one line") = start.to_owned();
            lines.push(String::new());
            word = rest;
        }
        lines.last_mut().expect("starts with one line").push_str(word);
    }
    lines.into_iter().map(|line| line.replace('\u{a0}', " ")).collect()
}

/// `label  text`, wrapped, with the text in its own column; at most `most` lines.
pub(super) fn labelled(out: &mut String, style: Style, label: (&str, usize), text: &str, frame: (usize, usize)) {
    let (width, most) = frame;
    let (label, indent) = label;
    let mut lines = wrap(&single_line(text), width.saturating_sub(indent));
    if lines.len() > most {
        lines.truncate(most);
        let last = lines.last_mut().expect("most is at least 1");
        *last = shorten(&format!("{last} …"), width.saturating_sub(indent));
    }
    for (i, line) in lines.iter().enumerate() {
        let head = if i == 0 { label } else { "" };
        let pad = " ".repeat(indent.saturating_sub(columns(head)));
        out.push_str(&format!("{}{pad}{line}\n", style.paint(Tone::Faint, head)));
    }
}

/// Width of the label column of facts.
pub(super) const LABEL: usize = 12;

/// A line `label  text` of a list of facts.
pub(super) fn fact(out: &mut String, style: Style, width: usize, label: &str, text: &str) {
    labelled(out, style, (label, LABEL), text, (width, usize::MAX));
}

/// A table cell.
pub(super) type Cell = (String, Tone);

pub(super) fn plain(text: impl Into<String>) -> Cell {
    (text.into(), Tone::Plain)
}

/// Rows under a faint header, columns aligned to the right where `right` says so, two spaces between.
pub(super) fn table(out: &mut String, style: Style, header: &[&str], right: &[bool], rows: &[Vec<Cell>]) {
    let header: Vec<Cell> = header.iter().map(|h| ((*h).to_owned(), Tone::Faint)).collect();
    let rows: Vec<&Vec<Cell>> = std::iter::once(&header).chain(rows).collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|i| rows.iter().filter_map(|r| r.get(i)).map(|c| columns(&c.0)).max().unwrap_or(0))
        .collect();
    for row in rows {
        let mut line = String::new();
        for (i, (text, tone)) in row.iter().enumerate() {
            let pad = " ".repeat(widths[i] - columns(text));
            let text = style.paint(*tone, text);
            line.push_str(&if right[i] { format!("  {pad}{text}") } else { format!("  {text}{pad}") });
        }
        out.push_str(line.trim_end());
        out.push('\n');
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
    use super::*;

    #[test]
    fn messages_and_pages_steer_no_terminal() {
        let text = "a\u{1b}[2J\nb\u{9b}31m \u{7f}\u{202e}x\u{2066}\u{2028}é\t";
        assert_eq!(escaped(text), "a\\u{1b}[2J\\nb\\u{9b}31m \\u{7f}\\u{202e}x\\u{2066}\\u{2028}é\\t");
        assert_eq!(tame(text), "a�[2J\nb�31m ��x��é�");
        let painted = "\u{1b}[1;32mgood\u{1b}[0m\n";
        assert_eq!(tame(painted), painted);
        assert_eq!(tame("\u{1b}[\u{1b}[1"), "�[�[1");
    }

    #[test]
    fn lines_are_safe() {
        assert_eq!(single_line("a\u{1b}[2J\nb\t\u{202e}c\u{7}"), "a\u{fffd}[2J b \u{fffd}c\u{fffd}");
    }

    #[test]
    fn lines_wrap_and_shorten() {
        assert_eq!(wrap("aa bb cc", 8), ["aa bb cc"]);
        assert_eq!(wrap("aaa 93.0 % bb", 9), ["aaa", "93.0 % bb"]);
        assert_eq!(wrap("日本語日本語 x", 8), ["日本語日", "本語 x"]);
        assert_eq!(shorten("日本語", 5), "日本…");
        assert_eq!(shorten_middle("abcdefgh", 5), "ab…gh");
    }

    #[test]
    fn names_join() {
        assert_eq!(pattern(&["a.0.w4", "a.11.w4"]), "a.*.w4");
        assert_eq!(pattern(&["KL 0.31 > 0.2", "KL 1.05 > 0.2"]), "KL * > 0.2");
        assert_eq!(blanked("a.11.w4"), "a.*.w*");
        assert_eq!(pattern(&[]), "");
    }
}
