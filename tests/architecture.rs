//! The rules of the source tree that a compiler does not check: who may import whom, where the runtime and the
//! command line's crates are named, and how long a file may grow.

#[path = "common/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::{self, Visit};

/// What each room may name of the others, as path prefixes. An entry that nothing uses fails too, so that the
/// table stays as tight as the code.
///
/// `report` names the types of results that other rooms make, and no more of them: a result has one type, where it is
/// made, and `report` shows it.
const ALLOWED: &[(&str, &[&str])] = &[
    ("linalg", &[]),
    ("edit", &["linalg"]),
    ("files", &[]),
    ("onnx", &["files"]),
    ("chat", &["files"]),
    ("lm", &["edit", "onnx"]),
    ("instrument", &["edit", "files", "onnx", "lm"]),
    ("runtime", &["files", "onnx::DataType", "lm::Interface", "lm::Padding", "lm::interface"]),
    ("records", &[]),
    ("method", &["edit", "linalg", "records"]),
    ("proof", &["edit", "onnx"]),
    ("prompt_files", &["files", "method::prompts"]),
    ("multiple_choice", &["files", "records"]),
    ("bake", &["edit", "files", "onnx", "lm", "linalg"]),
    ("eval", &["files", "judge::format", "method::classes"]),
    ("judge", &["files"]),
    (
        "report",
        &[
            "bake::Added",
            "bake::AddedTo",
            "bake::EditResult",
            "bake::Finding",
            "bake::FindingKind",
            "bake::Gated",
            "eval::answers",
            "eval::condition",
            "eval::evidence",
            "eval::outcome",
            "eval::policy::Limit",
            "eval::statistics",
            "lm::CacheSlot",
            "lm::Interface",
            "lm::Reason",
            "lm::Refusal",
            "lm::Treatment",
            "lm::WriterKind",
            "method::classes",
            "method::layers::LayerProjection",
            "method::refine::Refinement",
            "method::select::Discarded",
            "method::select::ScoreBy",
            "method::select::Search",
            "runtime::Sampling",
        ],
    ),
    ("error", &["bake", "chat", "edit", "eval", "judge", "lm", "method", "onnx", "runtime"]),
    (
        "pipeline",
        &[
            "bake",
            "chat",
            "edit",
            "error",
            "eval",
            "files",
            "instrument",
            "judge",
            "linalg",
            "lm",
            "method",
            "multiple_choice",
            "onnx",
            "proof",
            "report",
            "runtime",
        ],
    ),
    ("cli", &[]),
    ("main", &["cli"]),
    ("lib", &["error"]),
];

/// Files that use each other in a circle, room by room; no others may. Each is one thing in several files: a graph and the
/// facts that it finds out when asked, a bake's plan and the parts that plan, a template and the content it renders.
const CIRCLES: &[&[&str]] = &[
    &["bake::addition", "bake::alone", "bake::layout", "bake::metadata", "bake::plan", "bake::tensor"],
    &["chat::content", "chat::template"],
    &["cli::args", "cli::commands", "cli::measuring", "cli::method", "cli::runtime"],
    &["eval::patterns", "eval::text"],
    &["onnx::check", "onnx::flat", "onnx::index", "onnx::ops", "onnx::tensor", "onnx::twins", "onnx::unfuse"],
    &["onnx::constant", "onnx::facts", "onnx::graph", "onnx::shape"],
];

/// Lines before the tests of a file.
const MAX_LINES: usize = 600;

/// Files past [`MAX_LINES`], each with the ceiling that it must not outgrow. Shrink, then lower or remove.
const LONG_FILES: &[(&str, usize)] = &[];

/// Where a crate of the outside may be named.
const CONFINED: &[(&str, &[&str])] = &[
    ("ort", &["src/runtime/session.rs"]),
    ("clap", &["src/main.rs", "src/cli/"]),
    ("ureq", &["src/judge/http.rs"]),
    ("anyhow", &["src/main.rs", "src/cli/"]),
];

/// A source file, with its module path below the crate (`["onnx", "index"]`).
struct Source {
    name: String,
    module: Vec<String>,
    text: String,
    is_test: bool,
}

fn sources() -> Vec<Source> {
    let module = |name: &str| -> Vec<String> {
        let path = name.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        if matches!(path, "lib" | "main") { Vec::new() } else { path.split('/').map(str::to_string).collect() }
    };
    let all = source::sources().into_iter();
    all.map(|source::Source { name, text, is_test }| Source { module: module(&name), name, text, is_test }).collect()
}

/// The room that a file is in.
fn room(source: &Source) -> &str {
    match source.name.as_str() {
        "src/lib.rs" => "lib",
        "src/main.rs" => "main",
        _ => &source.module[0],
    }
}

/// Everything that a file names by path, tests left out.
#[derive(Default)]
struct Collector {
    module: Vec<String>,
    /// Paths within the crate, absolute.
    inner: BTreeSet<String>,
    /// First segments of all other paths.
    outer: BTreeSet<String>,
}

impl Collector {
    fn of(module: &[String], text: &str) -> Self {
        let file = syn::parse_file(text).unwrap_or_else(|e| panic!("{module:?} does not parse: {e}"));
        let mut collector = Self { module: module.to_vec(), ..Self::default() };
        collector.visit_file(&file);
        collector
    }

    /// Takes a path note of, whatever it starts with.
    fn path(&mut self, segments: &[String]) {
        let Some(first) = segments.first() else { return };
        let absolute = match first.as_str() {
            "crate" => segments[1..].to_vec(),
            "self" | "super" => {
                let ups = segments.iter().take_while(|s| *s == "super" || *s == "self").count();
                let supers = segments.iter().take(ups).filter(|s| *s == "super").count();
                let Some(depth) = self.module.len().checked_sub(supers) else { return };
                self.module[..depth].iter().chain(&segments[ups..]).cloned().collect()
            }
            other => {
                self.outer.insert(other.to_string());
                return;
            }
        };
        self.inner.insert(absolute.join("::"));
    }

    fn tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let with = |name: String| prefix.iter().cloned().chain([name]).collect::<Vec<_>>();
        match tree {
            syn::UseTree::Path(path) => self.tree(&with(path.ident.to_string()), &path.tree),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(prefix, item)),
            syn::UseTree::Glob(_) => self.path(&with("*".into())),
            syn::UseTree::Name(name) if name.ident == "self" && !prefix.is_empty() => self.path(prefix),
            syn::UseTree::Name(name) => self.path(&with(name.ident.to_string())),
            syn::UseTree::Rename(name) if name.ident == "self" && !prefix.is_empty() => self.path(prefix),
            syn::UseTree::Rename(name) => self.path(&with(name.ident.to_string())),
        }
    }
}

impl<'a> Visit<'a> for Collector {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        let mut module = self.module.clone();
        module.push(item.ident.to_string());
        if source::for_tests(&item.attrs) {
            return;
        }
        let outer = std::mem::replace(&mut self.module, module);
        visit::visit_item_mod(self, item);
        self.module = outer;
    }

    fn visit_item(&mut self, item: &'a syn::Item) {
        let attributes = match item {
            syn::Item::Fn(i) => &i.attrs,
            syn::Item::Use(i) => &i.attrs,
            syn::Item::Impl(i) => &i.attrs,
            syn::Item::Struct(i) => &i.attrs,
            syn::Item::Const(i) => &i.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !source::for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if segments.len() > 1 {
            self.path(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_extern_crate(&mut self, item: &'a syn::ItemExternCrate) {
        self.outer.insert(item.ident.to_string());
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        for path in paths(&words(&call.tokens.to_string())) {
            self.path(&path);
        }
        visit::visit_macro(self, call);
    }

    fn visit_meta_list(&mut self, list: &'a syn::MetaList) {
        for path in paths(&words(&list.tokens.to_string())) {
            self.path(&path);
        }
        visit::visit_meta_list(self, list);
    }
}

/// Identifiers and punctuation of a token stream as text; literals and comments are left out.
fn words(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        let raw = c == 'r' || (c == 'b' && chars.get(at + 1) == Some(&'r'));
        let from = at + if c == 'b' { 2 } else { 1 };
        let hashes = chars[from.min(chars.len())..].iter().take_while(|c| **c == '#').count();
        if raw && chars.get(from + hashes) == Some(&'"') {
            let close: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            let rest: String = chars[from + hashes + 1..].iter().collect();
            let length = rest.find(&close).map_or(rest.chars().count(), |i| rest[..i].chars().count());
            at = from + hashes + 1 + length + close.len();
        } else if c == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if c == '\'' {
            // a character, or a lifetime
            if chars.get(at + 1) == Some(&'\\') {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            } else if chars.get(at + 2) == Some(&'\'') {
                at += 3;
            } else {
                at += 1;
            }
        } else if c.is_alphanumeric() || c == '_' {
            let start = at;
            while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                at += 1;
            }
            out.push(chars[start..at].iter().collect());
        } else if c == ':' && chars.get(at + 1) == Some(&':') {
            out.push("::".into());
            at += 2;
        } else {
            if !c.is_whitespace() {
                out.push(c.to_string());
            }
            at += 1;
        }
    }
    out
}

/// The paths of two segments and more in a list of words.
fn paths(words: &[String]) -> Vec<Vec<String>> {
    let name = |w: &String| w.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let mut out = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let mut path = Vec::new();
        while at < words.len() && name(&words[at]) {
            path.push(words[at].clone());
            if words.get(at + 1).is_some_and(|w| w == "::") {
                at += 2;
            } else {
                break;
            }
        }
        if path.len() > 1 {
            out.push(path);
        }
        at += 1;
    }
    out
}

/// All tokens of a file, as words.
fn file_words(text: &str) -> Vec<String> {
    let body = text.strip_prefix("#!").filter(|rest| !rest.starts_with('[')).unwrap_or(text);
    let whole: syn::Macro = syn::parse_str(&format!("all! {{\n{body}\n}}")).expect("a file's tokens are balanced");
    words(&whole.tokens.to_string())
}

fn lines_before_tests(text: &str) -> usize {
    let begins = |line: &str| ["#[cfg(test)]", "#[cfg(all(test"].iter().any(|mark| line.trim_start().starts_with(mark));
    text.lines().take_while(|line| !begins(line)).count()
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let all = sources();
    let table: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let rooms: BTreeSet<&str> = all.iter().map(room).collect();
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for source in all.iter().filter(|s| !s.is_test) {
        let own = room(source);
        let Some(allowed) = table.get(own) else {
            wrong.push(format!("{}: the room `{own}` is not in the table", source.name));
            continue;
        };
        for path in Collector::of(&source.module, &source.text).inner {
            let first = path.split("::").next().unwrap();
            // the crate's root re-exports the error; any other name at the root is a local item
            let first = if matches!(first, "Error" | "Kind" | "*") { "lib" } else { first };
            if first == own || (matches!(own, "lib" | "main") && !rooms.contains(first)) {
                continue;
            }
            let permit = allowed.iter().find(|prefix| path == **prefix || path.starts_with(&format!("{prefix}::")));
            match permit {
                Some(prefix) => {
                    used.insert((own.to_string(), *prefix));
                }
                None => wrong.push(format!("{}: `{own}` names `crate::{path}`", source.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the table:\n{}", wrong.join("\n"));
    let idle: Vec<String> = ALLOWED
        .iter()
        .filter(|(own, _)| !matches!(*own, "lib" | "main"))
        .flat_map(|(own, allowed)| allowed.iter().map(move |prefix| (own.to_string(), *prefix)))
        .filter(|entry| !used.contains(entry))
        .map(|(own, prefix)| format!("{own} -> {prefix}"))
        .collect();
    assert!(idle.is_empty(), "the table allows what nothing uses: {}", idle.join(", "));
    let gone: Vec<&str> = table.keys().filter(|own| !rooms.contains(*own)).copied().collect();
    assert!(gone.is_empty(), "rooms in the table that are not in src: {gone:?}");
}

/// Which file uses which within a room. A file and the folder of its name are one, and what a room's `mod.rs` holds may be
/// used by every file of the room.
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let all = sources();
    let file = |path: &[String]| (path.len() > 1).then(|| path[..2].join("::"));
    let known: BTreeSet<String> = all.iter().filter_map(|source| file(&source.module)).collect();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in all.iter().filter(|source| !source.is_test) {
        let Some(own) = file(&source.module) else { continue };
        let room = &source.module[0];
        for path in Collector::of(&source.module, &source.text).inner {
            let path: Vec<String> = path.split("::").map(str::to_string).collect();
            let other = file(&path).filter(|other| path[0] == *room && *other != own && known.contains(other));
            uses.entry(own.clone()).or_default().extend(other);
        }
    }
    uses
}

/// Every file that a file uses, through others too.
fn reached<'u>(uses: &'u BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<&'u str> {
    let mut seen = BTreeSet::new();
    let mut left: Vec<&str> = uses.get(from).into_iter().flatten().map(String::as_str).collect();
    while let Some(at) = left.pop() {
        if seen.insert(at) {
            left.extend(uses.get(at).into_iter().flatten().map(String::as_str));
        }
    }
    seen
}

#[test]
fn files_use_each_other_in_no_circle_but_the_known_ones() {
    let uses = uses();
    let circle = |file: &str| -> Vec<String> {
        let others = reached(&uses, file).into_iter().filter(|other| reached(&uses, other).contains(file));
        others.map(str::to_string).collect()
    };
    let found: BTreeSet<Vec<String>> = uses.keys().map(|file| circle(file)).filter(|all| !all.is_empty()).collect();
    let allowed: BTreeSet<Vec<String>> =
        CIRCLES.iter().map(|all| all.iter().map(ToString::to_string).collect()).collect();
    assert_eq!(found, allowed, "left: circles of files in src; right: the list in this test");
}

#[test]
fn outside_crates_are_named_where_they_belong() {
    let mut wrong = Vec::new();
    let mut met = BTreeSet::new();
    for source in sources() {
        let outer = Collector::of(&source.module, &source.text).outer;
        for (name, places) in CONFINED {
            if outer.contains(*name) {
                met.insert(*name);
                if !places
                    .iter()
                    .any(|place| source.name == *place || place.ends_with('/') && source.name.starts_with(place))
                {
                    wrong.push(format!("{} names `{name}`", source.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(met.len(), CONFINED.len(), "a confined crate is named nowhere: only {met:?} were met");
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|s| !s.text.starts_with("//!") && !s.text.starts_with("#![doc"))
        .map(|s| s.name)
        .collect();
    assert!(silent.is_empty(), "files without a `//!` at their start: {silent:?}");
}

#[test]
fn files_stay_short() {
    let all = sources();
    let ceilings: BTreeMap<&str, usize> = LONG_FILES.iter().copied().collect();
    let mut wrong = Vec::new();
    for source in &all {
        let lines = lines_before_tests(&source.text);
        match ceilings.get(source.name.as_str()) {
            Some(_) if lines <= MAX_LINES => {
                wrong.push(format!("{} has only {lines} lines: take it off the list", source.name))
            }
            Some(ceiling) if lines > *ceiling => {
                wrong.push(format!("{} grew to {lines} lines, past {ceiling}", source.name))
            }
            None if lines > MAX_LINES && !source.is_test => {
                wrong.push(format!("{} has {lines} lines before its tests: split it", source.name));
            }
            _ => {}
        }
    }
    for name in ceilings.keys().filter(|name| !all.iter().any(|s| s.name == **name)) {
        wrong.push(format!("{name} is gone: take it off the list"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_unsafe() {
    let mut wrong = Vec::new();
    for source in sources() {
        if file_words(&source.text).iter().any(|word| word == "unsafe") {
            wrong.push(source.name.clone());
        }
        if matches!(source.name.as_str(), "src/lib.rs" | "src/main.rs") {
            let tight: String = source.text.split_whitespace().collect();
            assert!(tight.contains("#![forbid(unsafe_code)]"), "{} does not forbid unsafe code", source.name);
        }
    }
    assert!(wrong.is_empty(), "`unsafe` in {wrong:?}");
}

// The checks above are worth as much as their collector.

const SAMPLE: &str = r##"
//! Speaks of crate::doc::only and unsafe.
use std::fmt;
use crate::onnx::{self, graph::Node, DataType as Kind};
use super::sibling;
use ort::session::Session;
#[cfg(test)]
mod tests { use crate::test_only::X; }
#[cfg(test)]
mod more_tests;
#[cfg(test)]
fn helper() { crate::helper_only::f(); }
mod inside { pub fn f() -> super::Up { super::super::other::g() } }
#[derive(clap::Parser)]
struct S { field: crate::field::Type }
impl From<crate::error::Error> for S { fn from(e: crate::error::Error) -> Self {
    println!("{} crate::text::no", crate::in_macro::value(r#"crate::raw::no"#));
    let c = '"'; let d: &'static str = "x"; drop((c, d));
    crate::call::f(e)
} }
"##;

#[test]
fn the_collector_sees_paths_wherever_they_are() {
    let module = ["room".to_string(), "file".to_string()];
    let found = Collector::of(&module, SAMPLE);
    let inner: Vec<&str> = found.inner.iter().map(String::as_str).collect();
    assert_eq!(
        inner,
        [
            "call::f",
            "error::Error",
            "field::Type",
            "in_macro::value",
            "onnx",
            "onnx::DataType",
            "onnx::graph::Node",
            "room::file::Up",
            "room::other::g",
            "room::sibling",
        ]
    );
    assert!(["std", "ort", "clap"].iter().all(|name| found.outer.contains(*name)), "{:?}", found.outer);
    let tests = source::test_modules(Path::new("src/room/file.rs"), SAMPLE);
    assert_eq!(tests, [Path::new("src/room/file/more_tests.rs"), Path::new("src/room/file/more_tests")]);
}

#[test]
fn super_out_of_a_room_counts_as_the_crate() {
    let found = Collector::of(&["chat".into()], "use super::lm::Layer; use super::super::beyond;");
    assert_eq!(found.inner.iter().collect::<Vec<_>>(), ["lm::Layer"]);
}

#[test]
fn words_skip_literals_and_see_unsafe() {
    assert!(!file_words(SAMPLE).iter().any(|w| w == "unsafe"), "a comment is no code");
    assert!(file_words("fn f() { unsafe { g() } }").iter().any(|w| w == "unsafe"));
    assert!(file_words("m! { unsafe fn x() }").iter().any(|w| w == "unsafe"));
    assert!(!file_words("fn f() { g(\"unsafe\", r#\"unsafe \" \"#, '\\'', 'u') }").iter().any(|w| w == "unsafe"));
    assert_eq!(words("a \"x\\\"y\" b 'c' 'd e '\\n' f::g"), ["a", "b", "d", "e", "f", "::", "g"]);
}

#[test]
fn only_what_is_never_built_outside_tests_is_exempt() {
    let exempt = |text: &str| Collector::of(&["room".into()], text).inner.is_empty();
    assert!(exempt("#[cfg(test)] mod t { use crate::x::Y; }"));
    assert!(exempt("#[cfg(all(test, unix))] mod t { use crate::x::Y; }"));
    assert!(!exempt("#[cfg(any(test, unix))] mod t { use crate::x::Y; }"));
    assert!(!exempt("#[cfg(not(test))] mod t { use crate::x::Y; }"));
    assert!(!exempt("#[cfg(unix)] mod t { use crate::x::Y; }"));
}

#[test]
fn lines_are_counted_up_to_the_tests() {
    assert_eq!(lines_before_tests("//! x\nfn f() {}\n#[cfg(test)]\nmod tests {}\n"), 2);
    assert_eq!(lines_before_tests("//! x\n#[cfg(all(test, unix))]\nmod tests {}\n"), 1);
    assert_eq!(lines_before_tests("a\nb\nc\n"), 3);
}
