//! Nothing in the program is decided by prose: what a sentence of ours says is an enum where it is made, and words only
//! where it is shown.
//!
//! The test reads the production code of `src` and looks at every string literal that something is compared with:
//! `==`, `!=`, match arms, `starts_with`, `contains` and the like. Such a literal must not be prose, which is
//! anything with a space between its letters, nor one of the words that our enums are shown as. What is compared with
//! words because they come from a file, a user or another program is in [`ALLOWED`], each with the reason.

#[path = "common/source.rs"]
mod source;

use std::collections::BTreeSet;

use lancet::report::{Outcome, PromptClass, Treatment, WriterKind};
use syn::visit::{self, Visit};

/// Comparisons that may stand: file, literal, why. An entry that nothing uses fails.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("src/chat/python.rs", "copy", "a method that chat templates call"),
    ("src/files/ours.rs", "<!doctype html>", "how a report file begins"),
    ("src/files/ours.rs", "{\n  \"schema\": ", "how a report file begins"),
    ("src/judge/format.rs", "complied", "what a judge was told to answer"),
    ("src/judge/format.rs", "refused", "what a judge was told to answer"),
    ("src/judge/format.rs", "partly", "what a judge was told to answer"),
    ("src/judge/format.rs", "harmful request", "a field of WildGuard's answer"),
    ("src/judge/format.rs", "response refusal", "a field of WildGuard's answer"),
    ("src/judge/format.rs", "harmful response", "a field of WildGuard's answer"),
    ("src/judge/http.rs", "Bearer ", "an HTTP header"),
    ("src/pipeline/files.rs", "embed", "how exporters name a file"),
    ("src/pipeline/package.rs", "embed", "how exporters name a file"),
];

/// Methods that compare a text with their argument.
const COMPARING: &[&str] = &[
    "starts_with",
    "ends_with",
    "contains",
    "contains_key",
    "strip_prefix",
    "strip_suffix",
    "trim_start_matches",
    "trim_end_matches",
    "find",
    "rfind",
    "split_once",
    "rsplit_once",
    "matches",
    "eq",
    "ne",
    "eq_ignore_ascii_case",
];

/// Words that enums of ours are shown as, beside prose with a space.
fn words() -> BTreeSet<String> {
    let treatments = [
        Treatment::Weights,
        Treatment::Rounded,
        Treatment::Copy,
        Treatment::Turned,
        Treatment::TurnedCopy,
        Treatment::Nodes,
        Treatment::Elsewhere,
    ];
    let kinds = [WriterKind::Embed, WriterKind::PosEmbed, WriterKind::AttnOut, WriterKind::MlpOut];
    let mut all: BTreeSet<String> = treatments.map(|t| t.words().to_string()).into();
    all.extend(kinds.map(|k| k.name().to_string()));
    all.extend(Outcome::ALL.map(|o| o.name().to_string()));
    all.extend(PromptClass::ALL.iter().flat_map(|c| [c.as_str().to_string(), c.word().to_string()]));
    all.extend(["sampled", "wrapped", "greedy", "given", "automatic", "guard"].map(String::from));
    all
}

/// Whether a literal is prose: letters on both sides of a space, or letters before a space at its end.
fn is_prose(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    chars.iter().enumerate().any(|(at, c)| {
        let letter = |c: Option<&char>| c.is_some_and(|c| c.is_alphabetic());
        *c == ' '
            && chars[..at].iter().any(|c| c.is_alphabetic())
            && (at + 1 == chars.len() || letter(chars.get(at + 1)))
    })
}

/// Every literal that production code compares something with.
#[derive(Default)]
struct Compared(Vec<String>);

impl Compared {
    /// The string literals of an expression: itself, behind `&`, or in an array or a tuple.
    fn take(&mut self, of: &syn::Expr) {
        match of {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => self.0.push(text.value()),
            syn::Expr::Reference(inner) => self.take(&inner.expr),
            syn::Expr::Paren(inner) => self.take(&inner.expr),
            syn::Expr::Array(all) => all.elems.iter().for_each(|one| self.take(one)),
            syn::Expr::Tuple(all) => all.elems.iter().for_each(|one| self.take(one)),
            syn::Expr::MethodCall(call) if call.args.is_empty() => self.take(&call.receiver),
            _ => {}
        }
    }
}

impl<'a> Visit<'a> for Compared {
    fn visit_item(&mut self, item: &'a syn::Item) {
        let attributes = match item {
            syn::Item::Fn(i) => &i.attrs,
            syn::Item::Mod(i) => &i.attrs,
            syn::Item::Impl(i) => &i.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !source::for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'a syn::ExprMethodCall) {
        let method = call.method.to_string();
        if COMPARING.contains(&method.as_str()) {
            call.args.iter().for_each(|argument| self.take(argument));
        }
        // `["a", "b"].contains(x)`, `["a", "b"].iter().any(|word| text.starts_with(word))`
        if COMPARING.contains(&method.as_str()) || ["any", "all", "position", "find_map"].contains(&method.as_str()) {
            self.take(&call.receiver);
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_binary(&mut self, binary: &'a syn::ExprBinary) {
        if matches!(binary.op, syn::BinOp::Eq(_) | syn::BinOp::Ne(_)) {
            self.take(&binary.left);
            self.take(&binary.right);
        }
        visit::visit_expr_binary(self, binary);
    }

    fn visit_pat(&mut self, pattern: &'a syn::Pat) {
        if let syn::Pat::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = pattern {
            self.0.push(text.value());
        }
        visit::visit_pat(self, pattern);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        use syn::parse::Parser;
        if call.path.is_ident("matches") {
            let parser = |input: syn::parse::ParseStream<'_>| {
                let value: syn::Expr = input.parse()?;
                input.parse::<syn::Token![,]>()?;
                let pattern = syn::Pat::parse_multi_with_leading_vert(input)?;
                let guard = if input.peek(syn::Token![if]) {
                    input.parse::<syn::Token![if]>()?;
                    Some(input.parse::<syn::Expr>()?)
                } else {
                    None
                };
                input.parse::<Option<syn::Token![,]>>()?;
                Ok((value, pattern, guard))
            };
            let (value, pattern, guard) = parser.parse2(call.tokens.clone()).expect("`matches!` parses");
            self.inside(&|inner| {
                inner.visit_expr(&value);
                inner.visit_pat(&pattern);
                guard.iter().for_each(|guard| inner.visit_expr(guard));
            });
        } else if let Ok(all) =
            syn::punctuated::Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated.parse2(call.tokens.clone())
        {
            self.inside(&|inner| all.iter().for_each(|one| inner.visit_expr(one)));
        }
    }
}

impl Compared {
    /// Looks at something that lives shorter than the file.
    fn inside(&mut self, look: &dyn Fn(&mut Compared)) {
        look(self);
    }

    fn of(text: &str) -> Vec<String> {
        let file = syn::parse_file(text).expect("the source parses");
        let mut found = Self::default();
        found.visit_file(&file);
        found.0
    }
}

#[test]
fn nothing_is_decided_by_prose() {
    let words = words();
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for source::Source { name, text, .. } in source::sources().into_iter().filter(|source| !source.is_test) {
        for literal in Compared::of(&text) {
            if !is_prose(&literal) && !words.contains(&literal) {
                continue;
            }
            match ALLOWED.iter().position(|(file, allowed, _)| *file == name && *allowed == literal) {
                Some(entry) => drop(used.insert(entry)),
                None => wrong.push(format!("{name}: something is compared with {literal:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "make it an enum where it is made:\n{}", wrong.join("\n"));
    let idle: Vec<_> =
        ALLOWED.iter().enumerate().filter(|(at, _)| !used.contains(at)).map(|(_, entry)| entry).collect();
    assert!(idle.is_empty(), "nothing uses these entries any more: {idle:?}");
}

#[test]
fn the_reader_sees_comparisons_wherever_they_are() {
    let found = Compared::of(
        r#"
        fn f(a: &str) -> bool {
            let plain = "no comparison";
            println!("{} a text {a}", a == "in a macro");
            match a { "an arm" | "another" if a.ends_with("a guard") => true, _ => false }
                || a.starts_with("a start") || "left of it" != a || matches!(a, "in matches" if a.contains("too"))
                || ["one of", "several"].iter().any(|word| a.contains(word)) || ["or so"].contains(&a)
                || a.strip_prefix(&"behind a reference").is_some()
        }
        #[cfg(test)]
        mod tests { fn f(a: &str) -> bool { a == "in a test" } }
        "#,
    );
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    let wanted = [
        "in a macro",
        "an arm",
        "another",
        "a guard",
        "a start",
        "left of it",
        "in matches",
        "too",
        "one of",
        "several",
        "or so",
        "behind a reference",
    ];
    assert_eq!(found, BTreeSet::from(wanted));
}

#[test]
fn prose_has_a_space_between_words() {
    for prose in ["layer is", "guard: ", "wrapped: x", "is quantised"] {
        assert!(is_prose(prose), "{prose}");
    }
    for other in ["MatMul", "_bound", " ", ", ", "--weights-only", "%  ", "."] {
        assert!(!is_prose(other), "{other}");
    }
}
