//! An answer's text made ready for judging: thinking taken out, quotations blanked, letters folded, cut into sentences;
//! and whether it repeats itself. Nothing here knows a language.

use std::cmp::Reverse;
use std::collections::HashSet;

use super::patterns::Thinking;

/// What stands for a letter that must not be read.
pub(super) const BLANK: char = '\u{b7}';

/// `text` with all but white space blanked.
pub(super) fn blank(text: &str) -> String {
    text.chars().map(|c| if c.is_whitespace() { c } else { BLANK }).collect()
}

/// Chinese and Japanese letters, and others of scripts that put no space between words.
pub(super) fn is_wide(c: char) -> bool {
    matches!(u32::from(c), 0x2e80..=0x30ff | 0x3400..=0x9fff | 0xf900..=0xfaff | 0xff66..=0xff9d | 0x20000..=0x3ffff)
        || is_unspaced(c)
}

/// Thai, Lao, Burmese, Khmer: four letters or so to the word.
fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c), 0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff)
}

/// An answer without its thinking.
pub(super) struct Visible {
    /// What a user sees.
    pub text: String,
    /// A thinking block was opened and not closed.
    pub unfinished: bool,
}

/// Takes thinking blocks and special tokens out. An unclosed block reaches to the end; a close without an open (the
/// template wrote it) ends a block that began before the answer.
pub(super) fn visible(text: &str, marks: &[Thinking]) -> Visible {
    let lower = text.to_ascii_lowercase();
    let begin = lower.len() - lower.trim_start().len();
    let (mut out, mut at, mut unfinished) = (String::new(), 0, false);
    let marks: Vec<(String, String, &Thinking)> =
        marks.iter().map(|m| (m.open.to_ascii_lowercase(), m.close.to_ascii_lowercase(), m)).collect();
    loop {
        // candidates: where, how long (the longer first), what closes it
        let mut candidates: Vec<(usize, Reverse<usize>, Option<&str>)> = Vec::new();
        for (open, close, mark) in &marks {
            let opened = if mark.at_start {
                (at <= begin && lower[begin..].starts_with(open.as_str())).then_some(begin)
            } else {
                lower[at..].find(open.as_str()).map(|i| at + i)
            };
            if let Some(place) = opened
                && (!mark.needs_close || lower[place + open.len()..].contains(close.as_str()))
            {
                candidates.push((place, Reverse(open.len()), Some(close)));
            }
            if !mark.at_start
                && let Some(i) = lower[at..].find(close.as_str())
            {
                candidates.push((at + i, Reverse(close.len()), None));
            }
        }
        let Some((place, Reverse(length), close_of)) = candidates.into_iter().min_by_key(|c| (c.0, c.1)) else {
            break;
        };
        match close_of {
            Some(close) => {
                out.push_str(&text[at..place]);
                match lower[place + length..].find(close) {
                    Some(i) => at = place + length + i + close.len(),
                    None => {
                        unfinished = true;
                        at = text.len();
                    }
                }
            }
            None => {
                out.clear();
                at = place + length;
            }
        }
    }
    out.push_str(&text[at..]);
    Visible { text: without_special_tokens(&out), unfinished }
}

/// Drops `<|name|>` and the usual ends of a text, which some decoders leave in.
fn without_special_tokens(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(i) = rest.find('<') {
        out.push_str(&rest[..i]);
        rest = &rest[i..];
        let plain = ["</s>", "<s>", "<eos>", "<bos>", "<pad>", "<end_of_turn>", "<unk>"];
        let length = plain.iter().find(|t| rest.starts_with(**t)).map(|t| t.len()).or_else(|| {
            let inner = rest.strip_prefix("<|")?;
            let end = inner.find("|>")?;
            let name = &inner[..end];
            let fits =
                !name.is_empty() && name.len() <= 40 && name.chars().all(|c| c.is_alphanumeric() || "_-".contains(c));
            fits.then_some(end + 4)
        });
        let length = length.unwrap_or_else(|| {
            out.push('<');
            1
        });
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// Lower case, plain apostrophes, one space for several, no emphasis marks. Line breaks stay; a star at the start of a
/// line becomes a dash.
pub(super) fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut fresh = true;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\r' | '\u{2028}' | '\u{2029}' => {
                while out.ends_with(' ') {
                    out.pop();
                }
                if !out.ends_with('\n') {
                    out.push('\n');
                }
                fresh = true;
            }
            '*' | '\u{2022}' if fresh && chars.peek().is_some_and(|c| c.is_whitespace()) => {
                out.push('-');
                fresh = false;
            }
            '*' | '#' | '_' | '~' => {}
            '\u{200b}'..='\u{200f}' | '\u{feff}' | '\u{ad}' | '\u{307}' => {}
            '\u{2018}' | '\u{2019}' | '\u{02bc}' | '\u{ff07}' => {
                out.push('\'');
                fresh = false;
            }
            c if c.is_whitespace() => {
                if !out.ends_with([' ', '\n']) && !out.is_empty() {
                    out.push(' ');
                }
            }
            c => {
                out.extend(c.to_lowercase().filter(|c| *c != '\u{307}'));
                fresh = false;
            }
        }
    }
    out
}

/// Code (fenced, or between backticks), quoted lines and quotations blanked, so that what they say is not taken for
/// what the answer says. An answer that is one quotation, or one fenced block, as a whole is read.
pub(super) fn without_quotes(text: &str) -> String {
    let text = unwrapped(text.trim());
    let mut out = String::with_capacity(text.len());
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.split_inclusive('\n') {
        let start = line.trim_start();
        let fence = start.starts_with("```") || start.starts_with("~~~");
        if fence || fenced || start.starts_with('>') {
            quotations(&prose, &mut out);
            prose.clear();
            out.push_str(&blank(line));
            fenced ^= fence;
        } else {
            prose.push_str(line);
        }
    }
    quotations(&prose, &mut out);
    out
}

/// An answer without the marks that enclose all of it.
fn unwrapped(text: &str) -> &str {
    for (open, close) in [("\"", "\""), ("\u{201c}", "\u{201d}"), ("\u{ab}", "\u{bb}"), ("\u{300c}", "\u{300d}")] {
        if let Some(inner) = text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close))
            && !inner.contains(open)
            && !inner.contains(close)
        {
            return inner;
        }
    }
    if let Some(inner) = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"))
        && !inner.contains("```")
    {
        // a language name on the first line goes with the fence; a program is no answer in words
        if let Some((name, body)) = inner.split_once('\n')
            && name.trim().is_empty()
        {
            return body;
        }
    }
    text
}

/// Characters that a quotation holds at most.
const QUOTATION: usize = 400;

/// Appends `prose` with its quotations blanked.
fn quotations(prose: &str, out: &mut String) {
    let chars: Vec<char> = prose.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let end = closing(&chars, at);
        match end {
            Some(end) => {
                out.extend(chars[at..=end].iter().map(|c| if c.is_whitespace() { *c } else { BLANK }));
                at = end + 1;
            }
            None => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
}

/// Where the quotation that begins at `at` ends, if one begins there.
fn closing(chars: &[char], at: usize) -> Option<usize> {
    let before = at.checked_sub(1).map(|i| chars[i]);
    let free = before.is_none_or(|c| !c.is_alphanumeric() || is_wide(c));
    let single = |c: char| matches!(c, '\'' | '\u{2018}' | '\u{2019}');
    let (closes, limit): (&[char], usize) = match chars[at] {
        '"' if free => (&['"', '\u{201d}'], QUOTATION),
        '\u{201c}' => (&['\u{201d}', '"'], QUOTATION),
        '\u{201e}' => (&['\u{201c}', '\u{201d}', '"'], QUOTATION),
        '\u{ab}' => (&['\u{bb}'], QUOTATION),
        '\u{300c}' => (&['\u{300d}'], QUOTATION),
        '\u{300e}' => (&['\u{300f}'], QUOTATION),
        '`' => (&['`'], QUOTATION),
        c if single(c) && free && before.is_none_or(|c| c != 's' && !single(c)) => (&[], QUOTATION / 2),
        _ => return None,
    };
    let rest = &chars[at + 1..chars.len().min(at + 2 + limit)];
    if closes.is_empty() && !rest.first().is_some_and(|c| c.is_alphanumeric()) {
        return None;
    }
    for (i, c) in rest.iter().enumerate() {
        if *c == '\n' && (closes.is_empty() || rest.get(i + 1) == Some(&'\n')) {
            return None;
        }
        let closed = if closes.is_empty() {
            single(*c) && i > 0 && !rest[i - 1].is_whitespace() && !rest.get(i + 1).is_some_and(|c| c.is_alphanumeric())
        } else {
            closes.contains(c)
        };
        if closed && i > 0 {
            return Some(at + 1 + i);
        }
    }
    None
}

/// Sentences of a folded text, trimmed, none blank. A full stop ends one where white space follows, the number of a
/// list apart.
pub(super) fn sentences(folded: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut chars = folded.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, c)| *c);
        let ends = match c {
            '\n' | '\u{3002}' | '\u{ff01}' | '\u{ff1f}' | '\u{964}' | '\u{61f}' => true,
            '.' | '!' | '?' | '\u{2026}' => {
                next.is_none_or(|c| c.is_whitespace() || matches!(c, '"' | ')' | '\''))
                    && !is_number(&folded[start..at])
            }
            _ => false,
        };
        if ends {
            out.push(&folded[start..at + c.len_utf8()]);
            start = at + c.len_utf8();
        }
    }
    out.push(&folded[start..]);
    out.into_iter().map(str::trim).filter(|s| s.chars().any(|c| c.is_alphanumeric() || c == BLANK)).collect()
}

fn is_number(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a sentence is an item of a list.
pub(super) fn is_item(sentence: &str) -> bool {
    let digits = sentence.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &sentence[digits..];
    if digits > 0 { digits <= 3 && (rest.starts_with(". ") || rest.starts_with(") ")) } else { rest.starts_with("- ") }
}

/// Words: parted by white space; two letters a word in Chinese and Japanese, four in Thai and its like.
pub(super) fn words(text: &str) -> usize {
    text.split_whitespace()
        .map(|token| {
            let wide = token.chars().filter(|c| is_wide(*c) && !is_unspaced(*c)).count();
            let unspaced = token.chars().filter(|c| is_unspaced(*c)).count();
            let other = token.chars().any(|c| (c.is_alphanumeric() && !is_wide(c)) || c == BLANK);
            wide.div_ceil(2) + unspaced.div_ceil(4) + usize::from(other)
        })
        .sum()
}

/// A unit that repeats up to the end counts from so many times on ...
const REPEATS: usize = 5;
/// ... if the run is so many characters long.
const RUN: usize = 60;
/// Longest unit, in characters.
const UNIT: usize = 240;
/// Words from which on the variety of word sequences is looked at.
const VARIETY_FROM: usize = 60;
/// Last words that are looked at.
const VARIETY_OVER: usize = 200;
/// Least share of distinct sequences of four words.
const VARIETY: f64 = 0.35;

/// Whether a text is stuck: it ends in a unit of at most 240 characters said five times or more over at least 60
/// characters (marks without a letter: over half the text); or of its last 200 words (60 at least) less than 35 % of
/// the sequences of four are distinct (prose has over 90 %, a song with a refrain over 50 %); or a tenth of it is
/// U+FFFD. Word salad that does not repeat is not seen.
pub(super) fn is_degenerate(text: &str) -> bool {
    let chars: Vec<char> = fold(text).split_whitespace().collect::<Vec<_>>().join(" ").chars().collect();
    if chars.is_empty() {
        return false;
    }
    if chars.iter().filter(|c| **c == '\u{fffd}').count() * 10 >= chars.len() {
        return true;
    }
    let tail = &chars[chars.len().saturating_sub(4000)..];
    for unit in 1..=UNIT.min(tail.len() / 2) {
        let same = (unit..tail.len()).rev().take_while(|i| tail[*i] == tail[i - unit]).count();
        let run = same + unit;
        if run < RUN || run / unit < REPEATS {
            continue;
        }
        if tail[tail.len() - unit..].iter().any(|c| c.is_alphanumeric()) || 2 * run >= chars.len() {
            return true;
        }
    }
    has_no_variety(&chars)
}

fn has_no_variety(folded: &[char]) -> bool {
    let mut tokens: Vec<String> = Vec::new();
    let mut token = String::new();
    for c in folded.iter().chain([&' ']) {
        if is_wide(*c) {
            tokens.push(c.to_string());
        } else if c.is_whitespace() {
            let numbered = token.ends_with(['.', ')']) && is_number(&token[..token.len() - 1]);
            let letters: String = token.chars().filter(|c| c.is_alphanumeric()).collect();
            if !numbered && !letters.is_empty() {
                tokens.push(letters);
            }
            token.clear();
        } else {
            token.push(*c);
        }
    }
    let tokens = &tokens[tokens.len().saturating_sub(VARIETY_OVER)..];
    if tokens.len() < VARIETY_FROM {
        return false;
    }
    let sequences = tokens.windows(4);
    let total = sequences.len();
    let distinct = sequences.collect::<HashSet<_>>().len();
    (distinct as f64) < VARIETY * total as f64
}

#[cfg(test)]
mod tests {
    use super::super::patterns::RefusalPatterns;
    use super::*;

    fn seen(text: &str) -> String {
        visible(text, RefusalPatterns::built_in().thinking()).text.trim().to_owned()
    }

    #[test]
    fn thinking_is_taken_out() {
        for (text, expected) in [
            ("<think>I can't</think>Sure.", "Sure."),
            ("<THINK>x</THINK> a <think>y</think> b", "a  b"),
            ("the template opened it, I can't</think>\n\nSure.", "Sure."),
            ("<think>a<think>b</think>c</think>d", "d"),
            ("Well. <think>never closed", "Well."),
            ("[THINK]x[/THINK]y", "y"),
            ("\u{25c1}think\u{25b7}x\u{25c1}/think\u{25b7}y", "y"),
            (
                "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
                "Yes.",
            ),
            ("<|channel|>final<|message|>Yes.", "Yes."),
            ("analysisThe user wants. I can't.assistantfinalSure.", "Sure."),
            ("analysis of the data shows growth", "analysis of the data shows growth"),
            ("a < b and <|im_end|>", "a < b and"),
            ("<|not a token|> \u{ff1c}", "<|not a token|> \u{ff1c}"),
            ("no marks </s>", "no marks"),
        ] {
            assert_eq!(seen(text), expected, "{text}");
        }
        assert!(visible("<think>cut", RefusalPatterns::built_in().thinking()).unfinished);
        assert!(!visible("<think>x</think>", RefusalPatterns::built_in().thinking()).unfinished);
    }

    #[test]
    fn quotations_and_code_are_blanked_and_apostrophes_are_not() {
        let hidden = |text: &str| !without_quotes(text).contains("can't");
        for text in [
            "It says \"I can't open\" there.",
            "It says \u{201c}I can't open\u{201d} there.",
            "It says 'I can't open' there.",
            "Es hei\u{df}t \u{201e}I can't\u{201c} dort.",
            "x\n```\nI can't\n```\ny",
            "x\n```\nI can't",
            "Run `echo can't` now.",
            "> I can't\nhe said.",
        ] {
            assert!(hidden(text), "{text}: {}", without_quotes(text));
        }
        for text in [
            "I can't help, it's so.",
            "\"I can't help with that.\"",
            "```\nI can't help\n```",
            "the dogs' bowl: I can't find it",
            "an open \" and I can't\n\ngo on \" there",
            "5\" and I can't",
        ] {
            assert!(!hidden(text), "{text}: {}", without_quotes(text));
        }
    }

    #[test]
    fn sentences_and_words() {
        assert_eq!(sentences("a b. c 3.5 d! 1. e\nf。g"), ["a b.", "c 3.5 d!", "1. e", "f。", "g"]);
        assert_eq!(sentences(" ... \n "), [""; 0]);
        assert_eq!(words("one two\u{b7} - 3 我不能帮你"), 3 + 3);
        assert!(is_item("1. x") && is_item("- x") && is_item("12) x") && !is_item("3.5 x") && !is_item("x"));
        assert_eq!(fold("I **CAN\u{2019}T**\t do\r\n* it"), "i can't do\n- it");
    }

    #[test]
    fn repetition_is_seen_in_any_script() {
        for text in [
            "the cat ".repeat(10),
            format!("Here is the answer. {}", "I like it very much. ".repeat(6)),
            "!".repeat(80),
            "好的".repeat(40),
            "0".repeat(100),
            (1..60).map(|i| format!("{i}. Use a strong password.\n")).collect(),
            "\u{fffd}a\u{fffd}b".to_owned(),
        ] {
            assert!(is_degenerate(&text), "{text}");
        }
        for text in [
            "".to_owned(),
            "Ha ha ha ha ha!".to_owned(),
            format!("Dear Sir, please sign here: {}", "_".repeat(30)),
            (1..120).map(|i| format!("{i}, ")).collect(),
            "Row, row, row your boat, gently down the stream.".to_owned(),
        ] {
            assert!(!is_degenerate(&text), "{text}");
        }
    }
}
