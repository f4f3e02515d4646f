//! A document as data, and its three renderings: a terminal, Markdown, and one HTML page.
//!
//! This room knows nothing of what a document tells. It holds what every document is made of (headings, tables, lists
//! of facts, figures, answers) and how each is shown. All text is made safe when it is put into a [`Text`] or an
//! [`Answer`]: control characters and characters that turn the direction of writing around are replaced, so that no
//! renderer can forget it. Markup is escaped by the renderer that knows the markup.

mod answers;
mod chart;
mod drawing;
mod heat_map;
mod html;
mod markdown;
mod marks;
mod terminal;

use serde::Serialize;

pub use answers::{Answer, Answers, Filter};
pub use chart::{Axis, Chart, Point, Scale, Series};
pub use drawing::Figure;
pub use heat_map::{HeatCell, HeatMap};
pub use html::html;
pub use markdown::markdown;
pub use marks::{Mark, Shares, Track};
pub use terminal::terminal;

use super::layout::single_line;

/// From which level of detail on a piece of a document is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Everywhere: on a terminal, in a comment on a pull request, on a page.
    Summary,
    /// Where there is room: on a page.
    Full,
}

/// How a piece of text looks, by what it means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Look {
    /// As it is.
    #[default]
    Plain,
    /// Stressed.
    Strong,
    /// Good news.
    Good,
    /// News to think about.
    Doubtful,
    /// Bad news.
    Bad,
    /// A name in a file, a token, a command.
    Code,
    /// A path, which is there to be copied: it is never broken.
    Path,
    /// An explanation that is left out where lines are short (on a terminal).
    Aside,
}

/// A piece of text with one look.
#[derive(Debug, Clone, Serialize)]
struct Span {
    text: String,
    look: Look,
}

/// One line of text in pieces, with a small drawing after it where it has one.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Text {
    spans: Vec<Span>,
    figure: Option<Figure>,
}

impl Text {
    /// Text of one look.
    #[must_use]
    pub fn of(look: Look, words: impl AsRef<str>) -> Self {
        Self::default().and(look, words)
    }

    /// A number of our own, of whose padding no space is lost.
    #[must_use]
    pub fn padded(number: String) -> Self {
        Self { spans: vec![Span { text: number, look: Look::Plain }], figure: None }
    }

    /// The same text with more after it.
    #[must_use]
    pub fn and(mut self, look: Look, words: impl AsRef<str>) -> Self {
        let words = words.as_ref();
        let line = single_line(words);
        // a space at an end parts the pieces
        let space = |there: bool| if there && look != Look::Aside { " " } else { "" };
        let text = match line.is_empty() {
            true => space(words.starts_with(' ')).to_owned(),
            false => format!("{}{line}{}", space(words.starts_with(' ')), space(words.ends_with(' '))),
        };
        if !text.is_empty() {
            self.spans.push(Span { text, look });
        }
        self
    }

    /// The same text with plain words after it.
    #[must_use]
    pub fn then(self, words: impl AsRef<str>) -> Self {
        self.and(Look::Plain, words)
    }

    /// The same text with a name after it.
    #[must_use]
    pub fn code(self, name: impl AsRef<str>) -> Self {
        self.and(Look::Code, name)
    }

    /// The same text with an explanation after it.
    #[must_use]
    pub fn aside(self, words: impl AsRef<str>) -> Self {
        self.and(Look::Aside, words)
    }

    /// The same text with another text after it.
    #[must_use]
    pub fn join(mut self, more: impl Into<Self>) -> Self {
        self.spans.extend(more.into().spans);
        self
    }

    /// The same text with a small drawing after it, which only a page shows.
    #[must_use]
    pub fn figure(mut self, figure: Figure) -> Self {
        self.figure = Some(figure);
        self
    }

    /// Texts one after the other, with `between` between any two.
    #[must_use]
    pub fn list(texts: impl IntoIterator<Item = Self>, between: &str) -> Self {
        texts.into_iter().enumerate().fold(Self::default(), |all, (i, text)| {
            let all = if i == 0 { all } else { all.then(between) };
            all.join(text)
        })
    }

    /// Whether there is nothing to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.iter().all(|span| span.text.is_empty())
    }

    /// All of it without looks.
    #[must_use]
    pub fn words(&self) -> String {
        self.spans.iter().map(|span| span.text.as_str()).collect()
    }
}

impl<T: AsRef<str>> From<T> for Text {
    fn from(words: T) -> Self {
        Self::of(Look::Plain, words)
    }
}

/// What becomes of a column where a terminal is too narrow for the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Narrow {
    /// It is left out after the optional columns, the last one first.
    Last,
    /// It is left out before any other.
    Optional,
    /// Its cells are cut in their middle.
    Shorten,
}

/// A column of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Column {
    title: Text,
    /// Whether its cells are aligned to the right, as numbers are.
    right: bool,
    #[serde(skip)]
    narrow: Narrow,
    #[serde(skip)]
    detail: Detail,
}

impl Column {
    /// A column of words.
    #[must_use]
    pub fn words(title: impl Into<Text>) -> Self {
        Self { title: title.into(), right: false, narrow: Narrow::Last, detail: Detail::Summary }
    }

    /// A column of numbers.
    #[must_use]
    pub fn numbers(title: impl Into<Text>) -> Self {
        Self { right: true, ..Self::words(title) }
    }

    /// The column, shown where there is room.
    #[must_use]
    pub fn full(self) -> Self {
        Self { detail: Detail::Full, ..self }
    }

    /// The column, left out first where a terminal is narrow.
    #[must_use]
    pub fn optional(self) -> Self {
        Self { narrow: Narrow::Optional, ..self }
    }

    /// The column, whose cells are shortened where a terminal is narrow: for names.
    #[must_use]
    pub fn shortened(self) -> Self {
        Self { narrow: Narrow::Shorten, ..self }
    }
}

/// A row of a table: a cell a column.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    cells: Vec<Text>,
    #[serde(skip)]
    detail: Detail,
}

/// Rows under column titles; the first cell of a row is its title.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// What a page's style sheet knows it by.
    name: &'static str,
    /// What those are told who cannot see it.
    label: &'static str,
    columns: Vec<Column>,
    rows: Vec<Row>,
}

impl Table {
    /// A table without rows. The style sheet of the page knows it by `name`; `label` says what it holds.
    #[must_use]
    pub fn new(name: &'static str, label: &'static str, columns: impl IntoIterator<Item = Column>) -> Self {
        Self { name, label, columns: columns.into_iter().collect(), rows: vec![] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Text>) {
        self.row_at(Detail::Summary, cells);
    }

    /// Adds a row that is shown from this level of detail on.
    ///
    /// # Panics
    /// Where the cells are not one a column.
    pub fn row_at(&mut self, detail: Detail, cells: impl IntoIterator<Item = Text>) {
        let cells: Vec<Text> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.columns.len(), "a row of the table {} has a cell a column", self.name);
        self.rows.push(Row { cells, detail });
    }

    /// The table with these rows.
    #[must_use]
    pub fn with<C: IntoIterator<Item = Text>>(mut self, rows: impl IntoIterator<Item = C>) -> Self {
        rows.into_iter().for_each(|cells| self.row(cells));
        self
    }
}

/// A label and what it is.
#[derive(Debug, Clone, Serialize)]
pub struct Fact {
    label: String,
    text: Text,
    #[serde(skip)]
    detail: Detail,
}

/// A list of facts.
#[derive(Debug, Clone, Default)]
pub struct Facts(Vec<Fact>);

impl Facts {
    /// Adds a fact that is shown everywhere.
    #[must_use]
    pub fn summary(self, label: &str, text: impl Into<Text>) -> Self {
        self.at(Detail::Summary, label, text)
    }

    /// Adds a fact that is shown where there is room.
    #[must_use]
    pub fn full(self, label: &str, text: impl Into<Text>) -> Self {
        self.at(Detail::Full, label, text)
    }

    /// Adds a fact that is shown from this level of detail on.
    #[must_use]
    pub fn at(mut self, detail: Detail, label: &str, text: impl Into<Text>) -> Self {
        self.0.push(Fact { label: single_line(label), text: text.into(), detail });
        self
    }
}

/// A piece of a section.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", content = "is", rename_all = "snake_case")]
pub enum Block {
    /// Running text.
    Paragraph(Text),
    /// Running text that explains the figures and tables before it.
    Note(Text),
    /// A heading within a section.
    Heading(Text),
    /// Items, one a line.
    List(Vec<Text>),
    /// Labels with what they are.
    Facts(Vec<Fact>),
    /// A table.
    Table(Table),
    /// Figures, side by side where they are narrow enough.
    Figures(Vec<Figure>),
    /// Texts before and after.
    Answers(Answers),
    /// A command to be copied.
    Command(String),
    /// What is folded away under a title until it is asked for.
    Fold(Text, Vec<Block>),
}

impl Block {
    /// A table that is folded away under a title.
    #[must_use]
    pub fn folded(title: impl Into<Text>, table: Table) -> Self {
        Self::Fold(title.into(), vec![Self::Table(table)])
    }

    /// A command line that a POSIX shell reads back as the same words.
    #[must_use]
    pub fn command(words: &[String]) -> Self {
        let quoted = |word: &String| {
            let safe = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@%+".contains(c);
            if !word.is_empty() && word.chars().all(safe) {
                word.clone()
            } else {
                format!("'{}'", word.replace('\'', r"'\''"))
            }
        };
        Self::Command(verbatim(&words.iter().map(quoted).collect::<Vec<_>>().join(" ")))
    }

    /// What is left of it at a level of detail; none where that is nothing.
    fn at(&self, detail: Detail) -> Option<Self> {
        let kept = match self {
            Self::Facts(facts) => Self::Facts(facts.iter().filter(|f| f.detail <= detail).cloned().collect()),
            Self::Table(table) => {
                let keep: Vec<bool> = table.columns.iter().map(|column| column.detail <= detail).collect();
                let mut table = table.clone();
                let mut kept = keep.iter();
                table.columns.retain(|_| *kept.next().unwrap_or(&true));
                table.rows.retain(|row| row.detail <= detail);
                for row in &mut table.rows {
                    let mut kept = keep.iter();
                    row.cells.retain(|_| *kept.next().unwrap_or(&true));
                }
                Self::Table(table)
            }
            other => other.clone(),
        };
        let empty = match &kept {
            Self::Paragraph(text) | Self::Note(text) | Self::Heading(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Facts(facts) => facts.is_empty(),
            Self::Table(table) => table.rows.is_empty(),
            Self::Figures(figures) => figures.iter().all(Figure::is_empty),
            Self::Answers(answers) => answers.is_empty(),
            Self::Fold(_, blocks) => blocks.is_empty(),
            Self::Command(_) => false,
        };
        (!empty).then_some(kept)
    }
}

impl Facts {
    /// These facts, then those.
    #[must_use]
    pub fn more(mut self, those: Self) -> Self {
        self.0.extend(those.0);
        self
    }
}

impl From<Facts> for Block {
    fn from(facts: Facts) -> Self {
        Self::Facts(facts.0)
    }
}

impl From<Table> for Block {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

/// A part of a document with a heading of its own.
#[derive(Debug, Clone)]
pub struct Section {
    id: &'static str,
    title: &'static str,
    blocks: Vec<(Detail, Block)>,
}

impl Section {
    /// A section without content, which is left out as long as it has none. A link leads to it by `id`.
    #[must_use]
    pub fn new(id: &'static str, title: &'static str) -> Self {
        Self { id, title, blocks: vec![] }
    }

    /// Adds what is shown everywhere.
    #[must_use]
    pub fn summary(self, block: impl Into<Block>) -> Self {
        self.at(Detail::Summary, block)
    }

    /// Adds what is shown where there is room.
    #[must_use]
    pub fn full(self, block: impl Into<Block>) -> Self {
        self.at(Detail::Full, block)
    }

    /// Adds what is shown from this level of detail on.
    #[must_use]
    pub fn at(mut self, detail: Detail, block: impl Into<Block>) -> Self {
        self.blocks.push((detail, block.into()));
        self
    }

    /// What is shown of it at a level of detail.
    fn shown(&self, detail: Detail) -> Vec<Block> {
        self.blocks.iter().filter(|(from, _)| *from <= detail).filter_map(|(_, block)| block.at(detail)).collect()
    }
}

/// A whole document.
#[derive(Debug, Clone, Default)]
pub struct Document {
    /// What it comes to, in a line.
    pub title: Text,
    /// What it is about: the path of a file.
    pub subject: Text,
    /// Program and version that made it.
    pub made_by: Text,
    /// Its parts, in order.
    pub sections: Vec<Section>,
}

/// Text of several lines in which nothing steers a terminal or turns the direction of writing around.
fn verbatim(text: &str) -> String {
    let safe = |c: char| c == '\n' || c == '\t' || !super::layout::is_unsafe(c);
    text.chars().map(|c| if safe(c) { c } else { '\u{fffd}' }).collect()
}
