//! The source files of the crate, for the tests that read them.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use syn::punctuated::Punctuated;
use syn::{Meta, Token};

/// A Rust file below `src`.
pub struct Source {
    /// Its path from the root of the crate, with `/`.
    pub name: String,
    /// What is in it.
    pub text: String,
    /// Whether it is compiled for tests only.
    pub is_test: bool,
}

/// The folder of the crate.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `src`, sorted by path.
fn rust_files() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                walk(&entry, found);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                found.push(entry);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join("src"), &mut paths);
    paths.sort();
    paths
}

/// Every Rust file below `src` with its text, sorted by path.
pub fn sources() -> Vec<Source> {
    let files: Vec<(PathBuf, String)> =
        rust_files().into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
    let tests: BTreeSet<PathBuf> = files.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let all: Vec<Source> = files
        .into_iter()
        .map(|(path, text)| Source {
            name: path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/"),
            is_test: tests.iter().any(|test| path.starts_with(test)),
            text,
        })
        .collect();
    assert!(all.len() > 30, "only {} source files were found", all.len());
    all
}

/// Where a file's modules lie that are compiled for tests only and are files of their own: each file, and its folder.
pub fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let own = match path.file_stem().unwrap().to_str().unwrap() {
        "mod" | "lib" | "main" => path.parent().unwrap().to_path_buf(),
        _ => path.with_extension(""),
    };
    let mut found = Vec::new();
    for item in syn::parse_file(text).unwrap_or_else(|e| panic!("{} does not parse: {e}", path.display())).items {
        let syn::Item::Mod(module) = item else { continue };
        if module.content.is_some() || !for_tests(&module.attrs) {
            continue;
        }
        let named = module.attrs.iter().find_map(|a| match &a.meta {
            Meta::NameValue(syn::MetaNameValue {
                path: key,
                value: syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(file), .. }),
                ..
            }) if key.is_ident("path") => Some(path.parent().unwrap().join(file.value())),
            _ => None,
        });
        match named {
            Some(file) => found.push(file),
            None => {
                let module = own.join(module.ident.to_string());
                found.extend([module.with_extension("rs"), module]);
            }
        }
    }
    found
}

/// Whether an item is compiled for tests only: `#[test]`, `#[cfg(test)]`, `#[cfg(all(test, ..))]`.
pub fn for_tests(attributes: &[syn::Attribute]) -> bool {
    fn is_test(meta: &Meta) -> bool {
        match meta {
            Meta::Path(path) => path.is_ident("test"),
            Meta::List(list) if list.path.is_ident("cfg") || list.path.is_ident("all") => list
                .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
                .is_ok_and(|all| all.iter().any(is_test)),
            _ => false,
        }
    }
    attributes.iter().any(|attribute| is_test(&attribute.meta))
}
