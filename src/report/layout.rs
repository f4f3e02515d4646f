//! Characters and columns: text that steers no terminal and no page, and how much of it fits into a line.

use unicode_width::UnicodeWidthChar;

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
    c.width().unwrap_or(0)
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
    for (i, word) in text.split(' ').enumerate() {
        let unit = word.trim_end_matches([',', ';', '.', ')']);
        let unit = ["%", "s", "min", "B", "kB", "MB", "GB", "TB"].contains(&unit);
        let glued = unit && out.ends_with(|c: char| c.is_ascii_digit());
        if i > 0 {
            out.push(if glued { '\u{a0}' } else { ' ' });
        }
        out.push_str(word);
    }
    out
}

/// Pieces of one line of text, each with what belongs to it (its look, say), broken at spaces into lines of at most
/// `width` columns. Longer words are cut; a number stays beside its unit.
pub(super) fn wrap_pieces<L: Copy>(pieces: &[(&str, L)], width: usize) -> Vec<Vec<(String, L)>> {
    let width = width.max(8);
    let mut words: Vec<Vec<(String, L)>> = vec![vec![]];
    for (text, look) in pieces {
        for (i, part) in glue_units(text).split(' ').enumerate() {
            if i > 0 {
                words.push(vec![]);
            }
            if let Some(word) = words.last_mut().filter(|_| !part.is_empty()) {
                word.push((part.replace('\u{a0}', " "), *look));
            }
        }
    }
    let mut lines = vec![vec![]];
    let mut used = 0;
    for word in words.into_iter().filter(|word| !word.is_empty()) {
        let wide: usize = word.iter().map(|(text, _)| columns(text)).sum();
        if used > 0 && used + 1 + wide <= width {
            let space = (" ".to_owned(), word[0].1);
            lines.last_mut().expect("starts with one line").push(space);
            used += 1;
        } else if used > 0 {
            lines.push(vec![]);
            used = 0;
        }
        for (mut text, look) in word {
            while used + columns(&text) > width {
                let rest = text.split_off(fitting(&text, width - used));
                lines.last_mut().expect("starts with one line").push((text, look));
                lines.push(vec![]);
                (text, used) = (rest, 0);
            }
            used += columns(&text);
            lines.last_mut().expect("starts with one line").push((text, look));
        }
    }
    lines
}

/// One line of text as [`wrap_pieces`] breaks it.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let lines = wrap_pieces(&[(text, ())], width);
    lines.into_iter().map(|line| line.into_iter().map(|(text, ())| text).collect()).collect()
}

/// Text as HTML or XML, in content and in quoted attributes, for drawings: markup is escaped; control characters other
/// than line breaks and tabs, and characters that change the direction of what follows, become `�`.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if is_unsafe(c) => out.push('\u{fffd}'),
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
    fn pieces_keep_what_belongs_to_them() {
        let lines = wrap_pieces(&[("(a bb", 1), ("ccc", 2), (") d", 1)], 8);
        let flat = |line: &[(String, i32)]| line.iter().map(|(text, look)| format!("{text}{look}")).collect::<String>();
        assert_eq!(lines.iter().map(|line| flat(line)).collect::<Vec<_>>(), ["(a1", "bb1ccc2)1 1d1"]);
    }

    #[test]
    fn escape_table() {
        for (text, expected) in [
            ("plain", "plain"),
            ("</script><img onerror=\"x\">", "&lt;/script&gt;&lt;img onerror=&quot;x&quot;&gt;"),
            ("&amp; it's", "&amp;amp; it&#39;s"),
            ("a\nb\tc", "a\nb\tc"),
            ("\u{0}\u{1b}[31m\r\u{9f}", "\u{fffd}\u{fffd}[31m\u{fffd}\u{fffd}"),
            ("\u{202e}evil\u{2066}", "\u{fffd}evil\u{fffd}"),
            ("日本語 → é", "日本語 → é"),
        ] {
            assert_eq!(escape(text), expected);
        }
    }
}
