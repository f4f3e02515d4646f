//! A document as one self-contained HTML page: no network, no script; filters and folds are CSS and HTML.
//!
//! Prompts, answers and names come from strangers. The templates escape every text, and the page's content security
//! policy would run no script even if one got through. Marked as safe are our own drawings and style sheet, no more.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;

use super::{Block, Detail, Document, Filter, Text};

/// An answer longer than this is folded after about [`SHOWN`] bytes.
const LONG: usize = 900;
const SHOWN: usize = 600;

/// What the template of the page is given.
#[derive(Serialize)]
struct Page<'a> {
    title: &'a Text,
    /// The title without looks.
    name: String,
    subject: &'a Text,
    /// Without looks, as the title is.
    made_by: String,
    css: &'static str,
    filters: Vec<&'a Filter>,
    sections: Vec<&'a Shown>,
}

#[derive(Serialize)]
struct Shown {
    id: &'static str,
    title: &'static str,
    blocks: Vec<Block>,
}

/// The whole document as a page.
///
/// # Panics
/// If a template does not fit the types of a document, which the tests would have found.
#[must_use]
pub fn html(document: &Document) -> String {
    let show = |section: &super::Section| {
        let blocks = section.shown(Detail::Full);
        Shown { id: section.id, title: section.title, blocks }
    };
    let sections: Vec<Shown> = document.sections.iter().map(show).collect();
    let answers = sections.iter().flat_map(|section| &section.blocks).filter_map(|block| match block {
        Block::Answers(answers) => Some(answers.filters()),
        _ => None,
    });
    let page = Page {
        title: &document.title,
        name: document.title.words(),
        subject: &document.subject,
        made_by: document.made_by.words(),
        css: include_str!("page.css"),
        filters: answers.flatten().collect(),
        sections: sections.iter().filter(|section| !section.blocks.is_empty()).collect(),
    };
    let templates = templates();
    let template = templates.get_template("page.html").expect("it was added");
    template.render(Serde(page)).expect("the template fits the document")
}

fn templates() -> Environment<'static> {
    let mut templates = Environment::new();
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    templates.set_syntax(syntax.expect("it is that of Jinja"));
    templates.add_filter("folded", folded);
    for (name, source) in [("page.html", include_str!("page.html")), ("parts.html", include_str!("parts.html"))] {
        templates.add_template(name, source).expect("the template is valid");
    }
    templates
}

/// An answer as what is shown of it and the rest, which is folded.
fn folded(text: &str) -> Value {
    // A text of white space only would show as an empty box.
    let text = if text.trim().is_empty() { "(nothing)" } else { text };
    if text.len() <= LONG {
        return context! { start => text, rest => "", more => 0 };
    }
    let start = (SHOWN..=SHOWN + 3).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let cut = text[start..].find(char::is_whitespace).map_or(start, |more| start + more.min(200));
    let cut = (cut..=cut + 3).find(|at| text.is_char_boundary(*at)).unwrap_or(start);
    let rest = text[cut..].trim_start();
    context! { start => text[..cut].trim_end(), rest => rest, more => rest.chars().count() }
}
