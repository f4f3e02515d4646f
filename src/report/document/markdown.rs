//! A document as GitHub-flavoured Markdown that fits a comment on a pull request.

use super::{Answers, Block, Detail, Document, Look, Table, Text};
use crate::report::layout::{shorten, single_line};

/// Longest piece of text, in columns.
const LONGEST: usize = 200;
/// Longest piece of text in a cell of a table, in columns.
const LONGEST_CELL: usize = 60;
/// Longest text in a cell of a table that holds prompts and answers, in columns.
const LONGEST_ANSWER: usize = 160;
/// Most rows of a table.
const MOST_ROWS: usize = 12;
/// Most items of a list.
const MOST_ITEMS: usize = 8;

/// What Lancet knows a file of its own by (`files::written_by_lancet`).
const MARK: &str = "\n<!-- Lancet -->\n";

/// The summary of a document in at most `limit` characters; what does not fit is left out.
#[must_use]
pub fn markdown(document: &Document, limit: usize) -> String {
    let mut out = format!("### {}\n", text(&document.title, LONGEST));
    if !document.subject.is_empty() {
        out.push_str(&format!("\n{}\n", text(&document.subject, LONGEST)));
    }
    let mut length = out.chars().count() + MARK.len();
    for section in &document.sections {
        let blocks: Vec<String> = section.shown(Detail::Summary).iter().map(block).filter(|b| !b.is_empty()).collect();
        // the heading stands where there is something under it
        for (i, block) in blocks.iter().enumerate() {
            let heading = if i == 0 { format!("\n#### {}\n", section.title) } else { String::new() };
            let part = format!("{heading}\n{block}");
            let more = part.chars().count();
            if length + more <= limit {
                length += more;
                out.push_str(&part);
            }
        }
    }
    out + MARK
}

fn block(block: &Block) -> String {
    match block {
        Block::Paragraph(line) | Block::Note(line) => format!("{}\n", text(line, LONGEST)),
        Block::Heading(line) => format!("**{}**\n", text(line, LONGEST)),
        Block::List(items) => list(items.iter().map(|item| text(item, LONGEST))),
        Block::Facts(facts) => {
            list(facts.iter().map(|fact| format!("{}: {}", words(&fact.label, LONGEST), text(&fact.text, LONGEST))))
        }
        Block::Table(table) => table_of(table),
        Block::Answers(answers) => answers_of(answers),
        Block::Command(command) => format!("{}\n", code(command)),
        Block::Figures(_) | Block::Fold(..) => String::new(),
    }
}

fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    let more = items.len().saturating_sub(MOST_ITEMS);
    let mut out: String = items.take(MOST_ITEMS).map(|item| format!("- {item}\n")).collect();
    if more > 0 {
        out.push_str(&format!("- and {more} more\n"));
    }
    out
}

fn table_of(table: &Table) -> String {
    let titles = table.columns.iter().map(|column| text(&column.title, LONGEST_CELL));
    let rules = table.columns.iter().map(|column| if column.right { "--:" } else { "---" }.to_owned());
    let mut out = row(titles) + &row(rules);
    for cells in table.rows.iter().take(MOST_ROWS) {
        out.push_str(&row(cells.cells.iter().map(|cell| text(cell, LONGEST_CELL))));
    }
    if table.rows.len() > MOST_ROWS {
        out.push_str(&format!("\nand {} more\n", table.rows.len() - MOST_ROWS));
    }
    out
}

fn answers_of(answers: &Answers) -> String {
    let mut out = row(["", "prompt", "before", "after"].map(String::from)) + &row(["---"; 4].map(String::from));
    for answer in answers.iter().take(MOST_ROWS) {
        let (kind, texts) = answer.texts();
        let texts = texts.into_iter().map(|(_, text)| short_code(text, LONGEST_ANSWER));
        out.push_str(&row(std::iter::once(text(kind, LONGEST_CELL)).chain(texts)));
    }
    out
}

/// A row of a table. Pipes within cells are escaped where the cells are made.
fn row(cells: impl IntoIterator<Item = String>) -> String {
    let cells: Vec<String> = cells.into_iter().collect();
    format!("| {} |\n", cells.join(" | "))
}

/// Text of limited length as a code span.
fn short_code(text: &str, longest: usize) -> String {
    code(&shorten(&single_line(text), longest))
}

/// Text as a code span, in which nothing is markup and nobody is mentioned: a fence longer than any run of backticks
/// inside, one line, pipes escaped so that it may stand in a table.
fn code(text: &str) -> String {
    let text = single_line(text).replace('|', "\\|");
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    // The spaces are stripped by the renderer; they keep a backtick at either end apart from the fence.
    let pad = if text.starts_with('`') || text.ends_with('`') || text.is_empty() { " " } else { "" };
    format!("{fence}{pad}{text}{pad}{fence}")
}

/// Words of limited length as they are where nothing in them can be markup, a link or a mention; else as a code span.
fn words(text: &str, longest: usize) -> String {
    let short = shorten(text, longest);
    let link = ["://", "www."].iter().any(|start| short.to_ascii_lowercase().contains(start));
    let markup = short.contains(['\\', '`', '*', '_', '[', ']', '<', '>', '#', '|', '~', '&', '@', '!', '$', '^', '=']);
    if !(markup || link) {
        return short;
    }
    let space = |there: bool| if there { " " } else { "" };
    format!("{}{}{}", space(short.starts_with(' ')), code(short.trim()), space(short.ends_with(' ')))
}

/// A line of text, each piece of limited length; explanations stand in brackets.
fn text(text: &Text, longest: usize) -> String {
    let span = |span: &super::Span| match span.look {
        Look::Plain | Look::Good => words(&span.text, longest),
        Look::Strong | Look::Doubtful | Look::Bad => format!("**{}**", words(&span.text, longest)),
        Look::Code | Look::Path => short_code(&span.text, longest),
        Look::Aside => format!(" ({})", words(&span.text, longest)),
    };
    text.spans.iter().map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_spans_hold_anything() {
        assert_eq!(code("a"), "`a`");
        assert_eq!(code("a|b"), "`a\\|b`");
        assert_eq!(code("a``b`"), "``` a``b` ```");
        assert_eq!(code("x\n| y |\n"), "`x \\| y \\|`");
        assert_eq!(code(""), "`  `");
    }

    #[test]
    fn words_are_words() {
        assert_eq!(words("falls by 1.6 %, at most 4.4 %", 40), "falls by 1.6 %, at most 4.4 %");
        assert_eq!(words("see #12 @team", 40), "`see #12 @team`");
        assert_eq!(words(" a|b ", 40), " `a\\|b` ");
        assert_eq!(words("at http://x", 40), "`at http://x`");
    }
}
