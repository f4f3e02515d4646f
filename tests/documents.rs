//! The documents: lines are short, links lead somewhere, every dependency has its reason, and the picture of the rooms
//! is what the code gives.

#[path = "common/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use source::root;

/// Characters of a line outside of tables.
const WIDTH: usize = 100;

/// Documents that commands write.
const GENERATED: &[&str] = &["docs/architectures.md"];

/// What follows this line of a document is written by a command.
const GENERATED_FROM: &str = "<!-- fields: generated";

fn files(folder: &str, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<String> =
        names.filter(|n| n.ends_with(extension)).map(|n| format!("{folder}/{n}").replace("./", "")).collect();
    found.sort();
    found
}

/// Every document by its path from the root, with its text.
fn documents() -> Vec<(String, String)> {
    let mut names = [files(".", ".md"), files("docs", ".md")].concat();
    names.extend(["tools/zoo/README.md", "tools/quant/README.md", "fixtures/prompts/README.md"].map(String::from));
    names.into_iter().map(|name| (name.clone(), fs::read_to_string(root().join(&name)).unwrap())).collect()
}

/// The lines of a document with their numbers, those of code blocks marked.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str, bool)> {
    let mut code = false;
    text.lines().enumerate().map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        (index + 1, line, code || fence)
    })
}

#[test]
fn lines_are_short() {
    let mut wrong = Vec::new();
    for (name, text) in documents().iter().filter(|(name, _)| !GENERATED.contains(&name.as_str())) {
        let by_hand = text.split(GENERATED_FROM).next().unwrap();
        for (number, line, code) in lines(by_hand) {
            let table = !code && line.trim_start().starts_with('|');
            // a link or a command that cannot be broken
            let one_word = !line.trim().contains(' ') || (code && line.contains("http"));
            if line.chars().count() > WIDTH && !table && !one_word {
                wrong.push(format!("{name}:{number}: {} characters", line.chars().count()));
            }
        }
    }
    assert!(wrong.is_empty(), "run `python tools/wrap_docs.py`, or shorten code by hand:\n{}", wrong.join("\n"));
}

/// What `[text](target)`, `![text](target)` and `<img src="target">` lead to, outside of code.
fn targets(text: &str) -> Vec<String> {
    let prose: Vec<&str> = lines(text).filter(|(.., code)| !code).map(|(_, line, _)| line).collect();
    let prose: String = prose.join("\n").split('`').step_by(2).collect();
    let between = |from: &str, to: char| -> Vec<String> {
        prose.split(from).skip(1).filter_map(|rest| Some(rest.split_once(to)?.0.to_string())).collect()
    };
    [between("](", ')'), between("src=\"", '"')].concat()
}

/// The name that a heading has in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c)).collect::<String>().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for (name, text) in documents() {
        for target in targets(&text).into_iter().filter(|t| !t.starts_with("http")) {
            let (path, fragment) = target.split_once('#').unwrap_or((&target, ""));
            let folder = root().join(&name).parent().unwrap().to_path_buf();
            let file = if path.is_empty() { root().join(&name) } else { folder.join(path) };
            if !file.exists() {
                wrong.push(format!("{name}: `{target}`"));
            } else if !fragment.is_empty() {
                let linked = fs::read_to_string(&file).unwrap();
                if !lines(&linked).any(|(_, line, code)| !code && line.starts_with('#') && anchor(line) == fragment) {
                    wrong.push(format!("{name}: no heading for `{target}`"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "links to nothing:\n{}", wrong.join("\n"));
}

#[test]
fn every_document_is_reached_from_the_readme() {
    let all: BTreeMap<String, String> = documents().into_iter().collect();
    let mut reached = BTreeSet::new();
    let mut next = vec!["README.md".to_string()];
    while let Some(name) = next.pop() {
        let Some(text) = all.get(&name) else { continue };
        if !reached.insert(name.clone()) {
            continue;
        }
        let folder = Path::new(&name).parent().unwrap();
        for target in targets(text) {
            let joined = folder.join(target.split('#').next().unwrap());
            let mut path = PathBuf::new();
            for part in joined.components() {
                match part {
                    std::path::Component::ParentDir => drop(path.pop()),
                    other => path.push(other),
                }
            }
            next.push(path.to_str().unwrap().replace('\\', "/"));
        }
    }
    let hidden: Vec<&String> =
        all.keys().filter(|name| name.starts_with("docs/") && !reached.contains(*name)).collect();
    assert!(hidden.is_empty(), "no link leads to {hidden:?}");
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let mut crates: Vec<&String> = ["dependencies", "dev-dependencies"]
        .iter()
        .flat_map(|part| manifest[*part].as_table().unwrap().keys())
        .collect();
    for target in manifest["target"].as_table().unwrap().values() {
        crates.extend(target["dependencies"].as_table().unwrap().keys());
    }
    let reasons = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let missing: Vec<&&String> = crates.iter().filter(|name| !reasons.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/dependencies.md does not say why {missing:?} are there");
}

// The picture of the rooms.

const PICTURE_BEGINS: &str = "<!-- picture: LANCET_BLESS=1 cargo test --test documents picture -->\n";
const PICTURE_ENDS: &str = "<!-- end of the picture -->";

/// Rooms that every picture would draw arrows to or from, and their part in it.
const LEFT_OUT: &[&str] = &["error", "lib"];

/// The lines of code of a file, without comments and without the items that are compiled for tests only.
fn code(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut in_test = false;
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//") && !line.trim().is_empty()) {
        in_test |= line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test");
        if !in_test {
            found.push(line);
        } else if !line.starts_with('#') {
            // the item ends with its line, or with the brace that stands where it began
            in_test = !(line.ends_with(';') || line == "}") || line.starts_with(' ');
        }
    }
    found
}

#[test]
fn items_of_tests_are_no_code() {
    let text = "use a;\n#[cfg(test)]\n#[path = \"x.rs\"]\nmod tests;\n// b\nfn c() {\n    d();\n}\n\
                #[cfg(test)]\nmod more {\n    use e;\n    fn f() {\n    }\n}\nfn g() {}\n";
    assert_eq!(code(text), ["use a;", "fn c() {", "    d();", "}", "fn g() {}"]);
}

/// Lines of code of each room without its tests, and what it names of the others: `crate::room` within the library,
/// `lancet::room` in the binary.
fn rooms() -> BTreeMap<String, (usize, BTreeSet<String>)> {
    let mut found: BTreeMap<String, (usize, BTreeSet<String>)> = BTreeMap::new();
    for source in source::sources().into_iter().filter(|source| !source.is_test) {
        let room =
            source.name.trim_start_matches("src/").split('/').next().unwrap().trim_end_matches(".rs").to_string();
        let room = if room == "main" { "cli".to_string() } else { room };
        let code = code(&source.text);
        let entry = found.entry(room.clone()).or_default();
        entry.0 += code.len();
        let prefix = if room == "cli" { "lancet::" } else { "crate::" };
        for line in &code {
            for rest in line.split(prefix).skip(1) {
                // `{error, files}` is written by nobody here; a name is all that can follow
                let other: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                entry.1.insert(other);
            }
        }
    }
    let names: BTreeSet<String> = found.keys().cloned().collect();
    for (room, (_, others)) in &mut found {
        others.retain(|other| other != room && names.contains(other) && !LEFT_OUT.contains(&other.as_str()));
    }
    found.retain(|room, _| !LEFT_OUT.contains(&room.as_str()));
    found
}

/// Whether `from` reaches `to` by a way of two arrows or more.
fn reaches(all: &BTreeMap<String, (usize, BTreeSet<String>)>, from: &str, to: &str) -> bool {
    let mut next: Vec<&String> = all[from].1.iter().filter(|other| *other != to).collect();
    let mut seen = BTreeSet::new();
    while let Some(room) = next.pop() {
        if room == to {
            return true;
        }
        if seen.insert(room) {
            next.extend(&all[room].1);
        }
    }
    false
}

/// The rooms as a Mermaid chart. An arrow leads from a room to one that it uses; arrows that follow from others are
/// left out, so that the picture can be read.
fn picture() -> String {
    let all = rooms();
    let mut out = String::from("```mermaid\nflowchart TD\n");
    for (room, (lines, _)) in &all {
        let _ = writeln!(out, "  {room}[\"{room}<br>{} lines\"]", (lines + 5) / 10 * 10);
    }
    for (room, (_, others)) in &all {
        for other in others.iter().filter(|other| !reaches(&all, room, other)) {
            let _ = writeln!(out, "  {room} --> {other}");
        }
    }
    out.push_str("```\n");
    out
}

/// The chart without the sizes: a picture is stale when an arrow changed, not when a line was added.
fn arrows(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.contains("-->")).collect()
}

#[test]
fn the_picture_of_the_rooms_is_current() {
    let path = root().join("docs/design.md");
    let text = fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(PICTURE_BEGINS).expect("docs/design.md has the mark of the picture");
    let (committed, tail) = rest.split_once(PICTURE_ENDS).expect("the picture has an end");
    let drawn = picture();
    if std::env::var_os("LANCET_BLESS").is_some() {
        fs::write(&path, format!("{head}{PICTURE_BEGINS}{drawn}{PICTURE_ENDS}{tail}")).unwrap();
    } else {
        let again = "draw it again: LANCET_BLESS=1 cargo test --test documents picture";
        assert!(arrows(committed) == arrows(&drawn), "the picture in docs/design.md is stale; {again}\n{drawn}");
    }
}

#[test]
fn the_rooms_have_no_circle() {
    let all = rooms();
    let circles: Vec<&String> = all.keys().filter(|room| reaches(&all, room, room)).collect();
    assert!(circles.is_empty(), "rooms that use themselves by way of others: {circles:?}");
}
