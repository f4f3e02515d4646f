//! The picture as a Mermaid flowchart. Names come from strangers: they pass [`label`].

use super::super::InspectResult;
use super::super::layout::{shorten_middle, single_line, wrap};
use super::{Card, Class, Plan, logits, summary, unembedding};

/// Text as part of a quoted Mermaid label. What could end the label, start Markdown, HTML, an icon, a comment or a
/// directive is written as a character code, which Mermaid decodes after parsing.
fn label(text: &str) -> String {
    let text: Vec<char> = single_line(text).chars().collect();
    let word = |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(char::is_ascii_alphanumeric);
    let mut out = String::with_capacity(text.len());
    for (at, &c) in text.iter().enumerate() {
        let (before, after) = (at.checked_sub(1), Some(at + 1));
        let plain = match c {
            ' ' | ',' | '/' | '×' | '…' | '→' => true,
            '_' | '-' => word(before) && word(after),
            // `1. ` starts a list, `www.` a link
            '.' => word(after) && !before.is_some_and(|b| text[b].eq_ignore_ascii_case(&'w')),
            c => c.is_ascii_alphanumeric(),
        };
        match c {
            _ if plain => out.push(c),
            // Mermaid's own mark of a decoded character
            'ﬂ' => out.push_str("fl"),
            // `$$` starts mathematics and `:fa-` an icon even when decoded: a space without width breaks them
            '$' | ':' if matches!(text.get(at + 1), Some('$' | 'f')) => {
                out.push_str(&format!("#{};#8203;", u32::from(c)));
            }
            _ => out.push_str(&format!("#{};", u32::from(c))),
        }
    }
    out
}

/// Columns of a name in a Mermaid box.
const MERMAID_WIDTH: usize = 48;

/// Lines as one Mermaid label; each is cut in its middle.
fn lines(all: &[&str]) -> String {
    let all = all.iter().filter(|line| !line.is_empty());
    all.map(|line| label(&shorten_middle(line, MERMAID_WIDTH))).collect::<Vec<_>>().join("<br/>")
}

/// The residual stream as the source of a Mermaid flowchart (without a Markdown fence), as GitHub renders it.
#[must_use]
pub fn mermaid(inspect: &InspectResult) -> String {
    let mut out = String::from("flowchart TB\n    accTitle: Residual stream\n");
    if !inspect.refusals.is_empty() {
        out.push_str("    accDescr: The model is refused\n");
        mermaid_refusals(&mut out, inspect);
        return out;
    }
    out.push_str(&format!("    accDescr: {}\n", summary(inspect)));
    let plan = Plan::of(inspect);
    mermaid_step(&mut out, "    ", "s0", None, "resid_pre.0", &plan.start);
    let mut last = "s0".to_owned();
    for (i, segment) in plan.segments.iter().enumerate() {
        let folded = segment.repeats > 1;
        let indent = if folded { "        " } else { "    " };
        if segment.steps.is_empty() {
            let id = format!("gap{i}");
            out.push_str(&format!("    {id}(\"{}\"):::stream\n    {last} ==> {id}\n", label(&segment.heading())));
            last = id;
        }
        if folded {
            let heading = format!("{} × {}", segment.heading(), segment.repeats);
            out.push_str(&format!("    subgraph fold{i}[\"{}\"]\n", label(&heading)));
        }
        for (j, step) in segment.steps.iter().enumerate() {
            let id = format!("s{}_{j}", i + 1);
            mermaid_step(&mut out, indent, &id, Some(&last), &format!("resid_post.{}", step.layers), &step.cards);
            last = id;
        }
        if folded {
            out.push_str("    end\n");
        }
    }
    let tied = if inspect.tied.is_empty() { "" } else { "tied to an embedding" };
    let head = lines(&["unembedding", &logits(inspect), &unembedding(inspect), tied]);
    out.push_str(&format!("    norm[\"final norm\"]:::plain\n    {last} ==> norm\n"));
    out.push_str(&format!("    head[\"{head}\"]:::plain\n    norm ==> head\n"));
    if !plan.classes().is_empty() {
        out.push_str("    subgraph legend[\"legend\"]\n");
        for class in plan.classes() {
            let text = wrap(class.meaning(), 28).iter().map(|line| label(line)).collect::<Vec<_>>().join("<br/>");
            out.push_str(&format!("        legend_{class}{}:::by_{class}\n", mermaid_box(class, &text)));
        }
        out.push_str("    end\n");
    }
    out.push_str(
        "    classDef by_weights fill:#d9eef0,stroke:#0b6b75,stroke-width:2px,color:#10292c\n    \
         classDef by_nodes fill:#fbe9cc,stroke:#855300,stroke-width:2px,stroke-dasharray:6 4,color:#2b1d00\n    \
         classDef by_other fill:#eceff2,stroke:#59636e,stroke-dasharray:2 3,color:#1b1f24\n    \
         classDef stream fill:#ffffff,stroke:#59636e,stroke-width:2px,color:#1b1f24\n    \
         classDef plain fill:#eceff2,stroke:#59636e,color:#1b1f24\n",
    );
    out
}

/// A box in the shape of its class. (The classes are `by_nodes` and so on: `nodes` is a class of Mermaid's own.)
fn mermaid_box(class: Class, text: &str) -> String {
    match class {
        Class::Nodes => format!("[[\"{text}\"]]"),
        Class::Other => format!("([\"{text}\"])"),
        Class::Weights => format!("[\"{text}\"]"),
    }
}

/// A node of the stream, what comes down to it from `above`, and what is added there.
fn mermaid_step(out: &mut String, indent: &str, id: &str, above: Option<&str>, name: &str, cards: &[Card]) {
    out.push_str(&format!("{indent}{id}([\"{}\"]):::stream\n", label(name)));
    for (i, card) in cards.iter().enumerate() {
        let text = lines(&[card.kind.name(), &card.name, &card.detail, card.treatment.words()]);
        let class = card.class();
        out.push_str(&format!("{indent}{id}w{i}{}:::by_{class}\n", mermaid_box(class, &text)));
    }
    // In this order the stream comes to lie between its writers.
    let mut edges: Vec<String> = (0..cards.len()).map(|i| format!("{indent}{id}w{i} --> {id}\n")).collect();
    if let Some(above) = above {
        edges.insert(cards.len().min(1), format!("{indent}{above} ==> {id}\n"));
        // Invisible, so that no writer comes to lie beside the stream above, across the arrows to it.
        edges.extend((0..cards.len()).map(|i| format!("{indent}{above} ~~~ {id}w{i}\n")));
    }
    out.push_str(&edges.concat());
}

fn mermaid_refusals(out: &mut String, inspect: &InspectResult) {
    out.push_str(&format!("    model([\"{}\"]):::plain\n", lines(&[&single_line(&inspect.model)])));
    for (i, row) in inspect.refusals.iter().enumerate() {
        let mut above = format!("refused{i}");
        let what = [("node", &row.node), ("op", &row.op), ("tensor", &row.tensor)]
            .map(|(name, text)| if text.is_empty() { String::new() } else { format!("{name} {}", single_line(text)) });
        let text = lines(&["refused", &what[0], &what[1], &what[2]]);
        out.push_str(&format!("    {above}[\"{text}\"]:::refused\n    model --x {above}\n"));
        for (name, text) in [("reason", &row.reason), ("hint", &row.hint)] {
            if !text.trim().is_empty() {
                let id = format!("{name}{i}");
                let text = wrap(&format!("{name}, {}", single_line(text)), MERMAID_WIDTH);
                let text = text.iter().map(|line| label(line)).collect::<Vec<_>>().join("<br/>");
                out.push_str(&format!("    {id}[\"{text}\"]:::plain\n    {above} --> {id}\n"));
                above = id;
            }
        }
    }
    out.push_str(
        "    classDef refused fill:#fbe0de,stroke:#b3261e,stroke-width:2px,color:#3a0f0c\n    \
         classDef plain fill:#eceff2,stroke:#59636e,color:#1b1f24\n",
    );
}
