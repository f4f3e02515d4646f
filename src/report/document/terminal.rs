//! A document on a terminal: what a summary shows, in lines that fit.

use super::{Answer, Block, Detail, Document, Fact, Look, Narrow, Span, Table, Text};
use crate::report::layout::{columns, shorten, shorten_middle, single_line, wrap, wrap_pieces};

/// Most lines of a prompt or an answer.
const MOST_LINES: usize = 4;
/// Fewest columns of a name that is cut in its middle.
const SHORTEST_NAME: usize = 16;

/// The summary of a document for a terminal of `width` columns, with ANSI colours where `color` says so.
#[must_use]
pub fn terminal(document: &Document, width: usize, color: bool) -> String {
    let blocks: Vec<Block> = document.sections.iter().flat_map(|section| section.shown(Detail::Summary)).collect();
    let labels = blocks.iter().flat_map(|block| match block {
        Block::Facts(facts) => facts.as_slice(),
        _ => &[],
    });
    let label = labels.map(|fact| columns(&fact.label) + 2).max().unwrap_or(0).clamp(12, 24);
    let mut screen = Screen { out: String::new(), width, color, label };
    // who has a title knows what it is about: the path was typed just now
    let head = if document.title.is_empty() { &document.subject } else { &document.title };
    if !head.is_empty() {
        screen.text("", 0, head);
    }
    let mut before: Option<&Block> = None;
    for block in &blocks {
        let together = match (before, block) {
            (None, _) => screen.out.is_empty(),
            (Some(Block::Heading(_)), _) | (Some(Block::Facts(_)), Block::Facts(_)) => true,
            _ => false,
        };
        if !together {
            screen.out.push('\n');
        }
        screen.block(block);
        before = Some(block);
    }
    screen.out
}

struct Screen {
    out: String,
    width: usize,
    color: bool,
    /// Width of the labels of facts.
    label: usize,
}

/// A span as a terminal shows it: names in running text are quoted, as nothing else sets them apart.
fn shown(span: &Span, quoted: bool) -> String {
    match span.look {
        Look::Aside => String::new(),
        Look::Code if quoted => format!("`{}`", span.text),
        _ => span.text.clone(),
    }
}

impl Screen {
    fn paint(&self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Strong => "1",
            Look::Good => "1;32",
            Look::Doubtful => "1;33",
            Look::Bad => "1;31",
            Look::Plain | Look::Code | Look::Path | Look::Aside => "",
        };
        if self.color && !code.is_empty() && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Text that stands in the background: labels and titles.
    fn faint(&self, text: &str) -> String {
        if self.color && !text.trim().is_empty() { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Text in lines, the first one behind a label, all of them from the column `indent` on.
    fn text(&mut self, label: &str, indent: usize, text: &Text) {
        let spans: Vec<(String, Look)> = text.spans.iter().map(|span| (shown(span, true), span.look)).collect();
        let pieces: Vec<(&str, Look)> = spans.iter().map(|(text, look)| (text.as_str(), *look)).collect();
        let lines = match pieces.as_slice() {
            [(path, Look::Path)] => vec![vec![((*path).to_owned(), Look::Path)]],
            _ => wrap_pieces(&pieces, self.width.saturating_sub(indent)),
        };
        for (i, line) in lines.iter().enumerate() {
            let head = if i == 0 { label } else { "" };
            let painted: String = line.iter().map(|(text, look)| self.paint(*look, text)).collect();
            let pad = " ".repeat(indent.saturating_sub(columns(head)));
            self.out.push_str(&format!("{}{pad}{painted}\n", self.faint(head)));
        }
    }

    fn block(&mut self, block: &Block) {
        match block {
            Block::Paragraph(text) | Block::Note(text) => self.text("", 0, text),
            Block::Heading(text) => self.text("", 0, text),
            Block::List(items) => items.iter().for_each(|item| self.text("  -", 4, item)),
            Block::Facts(facts) => facts.iter().for_each(|Fact { label, text, .. }| {
                self.text(&shorten(label, self.label - 1), self.label, text);
            }),
            Block::Table(table) => self.table(table),
            Block::Answers(answers) => {
                for (i, answer) in answers.iter().enumerate() {
                    if i > 0 {
                        self.out.push('\n');
                    }
                    self.answer(answer);
                }
            }
            Block::Command(command) => self.out.push_str(&format!("  {}\n", single_line(command))),
            // A picture says nothing here, and what is folded away is not asked for.
            Block::Figures(_) | Block::Fold(..) => {}
        }
    }

    fn answer(&mut self, answer: &Answer) {
        let (kind, texts) = answer.texts();
        let kind = kind.words();
        let indent = columns(&kind).max(14) + 4;
        for (i, (label, text)) in texts.into_iter().enumerate() {
            let label = if i == 0 { format!("  {kind}") } else { format!("    {label}") };
            let room = self.width.saturating_sub(indent);
            let mut lines = wrap(&single_line(text), room);
            if lines.len() > MOST_LINES {
                lines.truncate(MOST_LINES);
                if let Some(last) = lines.last_mut() {
                    *last = shorten(&format!("{last} …"), room);
                }
            }
            for (i, line) in lines.iter().enumerate() {
                let head = if i == 0 { label.as_str() } else { "" };
                let pad = " ".repeat(indent - columns(head).min(indent));
                self.out.push_str(&format!("{}{pad}{line}\n", self.faint(head)));
            }
        }
    }

    /// A table, two columns from the left, two spaces between its columns.
    fn table(&mut self, table: &Table) {
        let mut table = table.clone();
        fit(&mut table, self.width);
        let widths = widths(&table);
        let titles: Vec<&Text> = table.columns.iter().map(|column| &column.title).collect();
        let rows = table.rows.iter().map(|row| row.cells.iter().collect());
        for (i, row) in std::iter::once(titles).chain(rows).enumerate() {
            let mut line = String::new();
            for ((cell, column), width) in row.into_iter().zip(&table.columns).zip(&widths) {
                let text: String = cell.spans.iter().map(|span| self.paint(span.look, &shown(span, false))).collect();
                let pad = " ".repeat(width - wide(cell));
                line.push_str(&if column.right { format!("  {pad}{text}") } else { format!("  {text}{pad}") });
            }
            let line = line.trim_end();
            let line = if i == 0 { self.faint(line) } else { line.to_owned() };
            self.out.push_str(&format!("{line}\n"));
        }
    }
}

/// Columns of a cell.
fn wide(cell: &Text) -> usize {
    cell.spans.iter().map(|span| columns(&shown(span, false))).sum()
}

fn widths(table: &Table) -> Vec<usize> {
    let of = |i: usize| table.rows.iter().map(|row| wide(&row.cells[i])).max().unwrap_or(0);
    table.columns.iter().enumerate().map(|(i, column)| of(i).max(wide(&column.title))).collect()
}

/// Makes a table fit into `width` columns: optional columns go first, then names are cut in their middle, then the last
/// columns go. Two columns always stay.
fn fit(table: &mut Table, width: usize) {
    let excess = |table: &Table| widths(table).iter().map(|w| w + 2).sum::<usize>().saturating_sub(width);
    while excess(table) > 0 {
        let Some(at) = table.columns.iter().rposition(|column| column.narrow == Narrow::Optional) else { break };
        remove(table, at);
    }
    if let Some(at) = table.columns.iter().position(|column| column.narrow == Narrow::Shorten) {
        let room = widths(table)[at].saturating_sub(excess(table)).max(SHORTEST_NAME);
        for row in &mut table.rows {
            for span in &mut row.cells[at].spans {
                span.text = shorten_middle(&span.text, room);
            }
        }
    }
    while excess(table) > 0 && table.columns.len() > 2 {
        remove(table, table.columns.len() - 1);
    }
}

fn remove(table: &mut Table, column: usize) {
    table.columns.remove(column);
    table.rows.iter_mut().for_each(|row| drop(row.cells.remove(column)));
}
