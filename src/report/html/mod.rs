//! The report as one self-contained HTML page: no network, no script; filters and folds are CSS and HTML.
//!
//! Prompts, answers and names come from strangers: every piece of text passes [`escape`], and the page's
//! content security policy would run no script even if one got through.

mod answers;
mod change;
mod chart;
mod cost;
mod direction;
mod heat_map;
mod parts;
mod provenance;
mod refusals;
mod trade;
mod verdict;

pub(super) use trade::name as setting_name;
pub(super) use verdict::measured;

use super::layout::is_unsafe;
use super::{RunResult, Verdict};

/// Text as HTML, in content and in quoted attributes: markup is escaped; control characters other than line
/// breaks and tabs, and characters that change the direction of what follows, become `�`.
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

/// The report of a run.
#[must_use]
pub fn html(run: &RunResult) -> String {
    let verdict = run.verdict();
    let tone = match verdict {
        Verdict::Published => "good",
        Verdict::Overridden => "doubtful",
        Verdict::GuardRefused | Verdict::NotVerified => "bad",
    };
    let (answers, filters) = answers::answers(run);
    let body = [
        verdict::guard(&run.guard),
        refusals::classes(run),
        refusals::conditions(run),
        cost::ability(run),
        cost::cost(run),
        run.sweep.as_ref().map(trade::sweep).unwrap_or_default(),
        direction::direction(&run.select),
        run.addition.as_ref().map(|a| direction::addition(a, &run.select)).unwrap_or_default(),
        change::variants(run),
        change::change(run),
        provenance::limits(run),
        provenance::provenance(run),
        answers,
    ]
    .concat();
    format!(
        include_str!("report.html"),
        title = escape(&format!("Lancet: {}", run.headline())),
        css = include_str!("report.css"),
        filters = filters,
        tone = tone,
        headline = headline(verdict.words()),
        lead = verdict::lead(run),
        cards = verdict::cards(run),
        model = escape(&run.inspect.model),
        contents = contents(&body),
        body = body,
        version = escape(&run.provenance.lancet_version),
    )
}

/// The verdict with a capital.
fn headline(words: &str) -> String {
    let mut words = words.to_owned();
    if let Some(first) = words.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    escape(&words)
}

/// Links to the sections, off their headings.
fn contents(body: &str) -> String {
    let links: Vec<String> = body
        .split("<h2 id=\"")
        .skip(1)
        .filter_map(|piece| {
            let (id, rest) = piece.split_once("\">")?;
            Some(format!("<a href=\"#{id}\">{}</a>", rest.split_once("</h2>")?.0))
        })
        .collect();
    links.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::{rich, sample};
    use super::*;

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

    const EVIL: &str = "</title></style></script><img src=x onerror=alert(1)>\" onfocus=\"alert(1)' {title} {css}";

    /// `value` with every string in it replaced but for the names of classes, without which rows would be left out.
    fn poison(value: serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::String(_) => Value::String(EVIL.into()),
            Value::Array(all) => Value::Array(all.into_iter().map(poison).collect()),
            Value::Object(all) => Value::Object(
                all.into_iter()
                    .map(|(k, v)| {
                        if ["class", "scoring", "measured"].contains(&k.as_str()) {
                            (k, v)
                        } else {
                            let v = poison(v);
                            (k, v)
                        }
                    })
                    .collect(),
            ),
            other => other,
        }
    }

    #[test]
    fn no_text_of_a_run_becomes_markup() {
        use super::super::{FileRow, PackageResult, VariantResult};
        let mut run = rich::run();
        let file = FileRow { file: "f".into(), reason: Some("why".into()) };
        let variants = vec![VariantResult { model: "m".into(), edits: run.bake.edits.clone(), ..Default::default() }];
        let package =
            PackageResult { variants, left_out: vec![file.clone()], copied: vec![file], ..Default::default() };
        run.package = Some(package);
        assert!(html(&run).contains("Every variant of the package"));
        let value = serde_json::to_value(run).expect("plain data serialises");
        let mut run: RunResult = serde_json::from_value(poison(value)).expect("types are kept");
        run.eval.system_prompt = Some(EVIL.into());
        run.verify.failures = vec![EVIL.into()];
        run.guard.reasons = vec![EVIL.into()];
        run.seconds.insert(EVIL.into(), 1.0);
        for passed in [true, false] {
            run.verify.passed = passed;
            run.guard.passed = passed;
            let page = html(&run);
            assert!(page.contains("&lt;img src=x"));
            for raw in ["<img", "<script", "</script", "\" onfocus", "alert(1)'"] {
                assert!(!page.contains(raw), "{raw} got through");
            }
            assert_eq!(page.matches("<title>Lancet: ").count(), 1);
            assert_eq!(page.matches("</style>").count(), 1);
        }
        assert!(!html(&sample::run()).contains("<img"));
    }

    /// Every tag is closed in order, ids are unique, and headings do not skip a level.
    #[test]
    fn markup_nests() {
        for run in [sample::run(), rich::run(), RunResult::default()] {
            let page = html(&run);
            let mut open: Vec<&str> = Vec::new();
            let (mut ids, mut level) = (Vec::new(), 0);
            for piece in page.split('<').skip(1) {
                let tag = piece.split('>').next().expect("split gives at least one");
                let name = tag.trim_start_matches('/').split([' ', '/']).next().expect("as above");
                if let Some(id) = tag.split(" id=\"").nth(1) {
                    ids.push(id.split('"').next().expect("as above"));
                }
                if tag.starts_with('/') {
                    assert_eq!(open.pop(), Some(name), "</{name}>");
                } else if !tag.ends_with('/') && !["!doctype", "meta", "br", "input"].contains(&name) {
                    open.push(name);
                }
                if let Some(h) = tag.strip_prefix('h').and_then(|t| t[..1.min(t.len())].parse::<i32>().ok()) {
                    assert!(h <= level + 1, "h{h} after h{level}");
                    level = h;
                }
            }
            assert!(open.is_empty(), "{open:?} not closed");
            let n = ids.len();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), n, "an id twice");
        }
    }

    #[test]
    fn the_page_is_alone() {
        let page = html(&rich::run());
        for outside in ["http://", "https://", "url(", "@import", " src=", "<link", "<script", "javascript:"] {
            let page = page.replace("src=x onerror", "");
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn not_finite_is_not_shown() {
        let mut run = sample::run();
        run.eval.before.harmful.refusal_rate = f64::NAN;
        run.eval.harmless_kl = Some(f64::NAN);
        run.select.candidates[2].refusal_score = Some(f64::NAN);
        run.select.candidates[3].kl = Some(f64::INFINITY);
        run.select.selected.kl = f64::NAN;
        run.seconds.insert("x".into(), f64::NAN);
        for c in &mut run.select.candidates {
            c.raw_norm = f64::NAN;
        }
        let page = html(&run);
        assert!(!page.contains("NaN") && !page.contains(">inf"));
        for c in &mut run.select.candidates {
            (c.refusal_score, c.kl) = (None, Some(0.0));
        }
        assert!(!html(&run).contains("NaN"));
    }
}
