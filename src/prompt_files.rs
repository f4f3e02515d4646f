//! Prompt sets from disk: a folder with a file for each class and split, one file a class, or one file alone; and the guard
//! sets.

use std::io::ErrorKind;
use std::path::Path;

use crate::files;
use crate::method::prompts::{
    GuardPrompts, GuardSet, LoadOptions, OverlapPolicy, ParsedFile, PromptClass, PromptError, PromptFormat,
    PromptSource, Prompts, Split, decode, parse,
};

/// The largest file that is read, in bytes. The published sets are below 0.3 MB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// The folder of the guard sets inside a folder of prompts.
const GUARD_FOLDER: &str = "guard";

/// The most names of a folder that an error lists.
const MAX_NAMES: usize = 20;

/// Where the prompts of a run are.
#[derive(Debug, Clone, Copy)]
pub enum PromptLocation<'a> {
    /// In the program.
    Bundled,
    /// In a folder with `{class}_{split}.{json,jsonl,csv,txt}`.
    Folder(&'a Path),
    /// In one file a class.
    Files {
        /// The harmful prompts.
        harmful: &'a Path,
        /// The pseudo-harmful prompts.
        pseudo_harmful: &'a Path,
        /// The harmless prompts.
        harmless: &'a Path,
    },
}

/// The prompts that a run uses: read, checked for overlaps, and chosen or split by the seed.
///
/// # Errors
/// If a file is missing or cannot be read or parsed, or a prompt is in two places against `options`.
pub fn load(location: PromptLocation<'_>, options: &LoadOptions) -> Result<Prompts, PromptError> {
    match location {
        PromptLocation::Bundled => Prompts::bundled_with(options.sizes, options.seed),
        PromptLocation::Folder(folder) => {
            let prompts = load_folder(folder, options)?.sample(options.sizes, options.seed);
            if options.overlap == OverlapPolicy::RefuseInSample {
                prompts.refuse_overlap()?;
            }
            Ok(prompts)
        }
        PromptLocation::Files { harmful, pseudo_harmful, harmless } => {
            load_class_files(harmful, pseudo_harmful, harmless, options)
        }
    }
}

/// All prompts of a folder with a file for each class and split, none chosen yet.
///
/// A file's name is class, `_`, split and extension: `pseudo_harmful_train.json`. Case does not count and `-`
/// serves as `_`; other files are not looked at. Without the test files of a class its test split is empty if
/// `options.require_test` is false. `options.sizes` and `options.seed` are not used here.
///
/// # Errors
/// As [`load`], and if two files serve the same class and split.
pub fn load_folder(folder: &Path, options: &LoadOptions) -> Result<Prompts, PromptError> {
    let names = names_in(folder)?;
    let mut files = Vec::new();
    for split in Split::ALL {
        for class in PromptClass::ALL {
            let mut matches = names.iter().filter(|name| is_file_of(name, class, split));
            match (matches.next(), matches.next()) {
                (Some(name), None) => {
                    let mut parsed = load_file(&folder.join(name), class, options.keep_duplicates)?;
                    parsed.file.split = Some(split);
                    files.push(parsed);
                }
                (Some(first), Some(second)) => {
                    return Err(PromptError::Ambiguous {
                        folder: shown(folder),
                        class,
                        split,
                        first: first.clone(),
                        second: second.clone(),
                    });
                }
                (None, _) if split == Split::Test && !options.require_test => {}
                (None, _) => return Err(missing(folder, class, split, &names)),
            }
        }
    }
    let source = PromptSource::Folder { path: shown(folder) };
    Prompts::from_split_files(source, files, options.overlap)
}

/// The prompts of one file a class, split by `options.seed`.
///
/// # Errors
/// As [`load`], and if a file has too few prompts to split.
pub fn load_class_files(
    harmful: &Path,
    pseudo_harmful: &Path,
    harmless: &Path,
    options: &LoadOptions,
) -> Result<Prompts, PromptError> {
    let read = |path, class| load_file(path, class, false);
    let files = [
        read(harmful, PromptClass::Harmful)?,
        read(pseudo_harmful, PromptClass::PseudoHarmful)?,
        read(harmless, PromptClass::Harmless)?,
    ];
    Prompts::from_class_files(files, options.sizes, options.seed, options.overlap)
}

/// The prompts of one file, read as `class`; its extension says the format.
///
/// # Errors
/// If it cannot be read or parsed.
pub fn load_file(path: &Path, class: PromptClass, keep_duplicates: bool) -> Result<ParsedFile, PromptError> {
    let name = shown(path);
    PromptFormat::of(&name)?;
    parse(&name, decode(&name, &bytes_of(path)?)?, class, keep_duplicates)
}

/// The bytes of a file of prompts.
fn bytes_of(path: &Path) -> Result<Vec<u8>, PromptError> {
    let size = std::fs::metadata(path).map_or(0, |found| found.len());
    files::read(path, MAX_FILE_BYTES).map_err(|source| match source.kind() {
        ErrorKind::FileTooLarge => PromptError::TooLarge { file: shown(path), limit: MAX_FILE_BYTES, got: size },
        _ => PromptError::Read { path: shown(path), source },
    })
}

/// The guard sets of a run: those that come with the program, or those of the folder `guard` inside the run's folder of
/// prompts, where there is one. There a set is `{set}.json`, and one without a file is left out. `contrasts` names a file
/// that replaces the contrasts.
///
/// # Errors
/// If a file cannot be read, or holds no guard set.
pub fn load_guard_sets(folder: Option<&Path>, contrasts: Option<&Path>) -> Result<Vec<GuardPrompts>, PromptError> {
    let own = folder.map(|folder| folder.join(GUARD_FOLDER)).filter(|own| own.is_dir());
    let mut found = Vec::new();
    for set in GuardSet::ALL {
        let path = own.as_ref().map(|own| own.join(format!("{}.json", set.as_str())));
        match (set, contrasts, path) {
            (GuardSet::Contrasts, Some(file), _) => {
                let name = shown(file);
                PromptFormat::of(&name)?;
                found.push(GuardPrompts::contrasts(&name, decode(&name, &bytes_of(file)?)?)?);
            }
            (_, _, None) => found.push(GuardPrompts::bundled(set)),
            (_, _, Some(path)) if path.exists() => {
                let name = shown(&path);
                found.push(GuardPrompts::parse(set, &name, decode(&name, &bytes_of(&path)?)?)?);
            }
            (_, _, Some(_)) => {}
        }
    }
    Ok(found)
}

/// The names of the files in a folder, sorted.
fn names_in(folder: &Path) -> Result<Vec<String>, PromptError> {
    let read = |source| PromptError::Read { path: shown(folder), source };
    if !std::fs::metadata(folder).map_err(read)?.is_dir() {
        return Err(PromptError::NotAFolder { path: shown(folder) });
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        if !entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a file's name says this class and split, and a format that is known.
fn is_file_of(name: &str, class: PromptClass, split: Split) -> bool {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let stem = stem.to_ascii_lowercase().replace('-', "_");
    PromptFormat::of(name).is_ok() && stem == format!("{}_{split}", class.as_str())
}

fn missing(folder: &Path, class: PromptClass, split: Split, names: &[String]) -> PromptError {
    let extensions = PromptFormat::ALL.map(PromptFormat::extension).join(",");
    let listed: Vec<String> = names.iter().take(MAX_NAMES).map(|name| format!("`{name}`")).collect();
    let got = match names.len() {
        0 => "no files".to_owned(),
        all if all > MAX_NAMES => format!("{} and {} more", listed.join(", "), all - MAX_NAMES),
        _ => listed.join(", "),
    };
    PromptError::MissingFile {
        folder: shown(folder),
        class,
        split,
        expected: format!("`{}_{split}.{{{extensions}}}`", class.as_str()),
        got,
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    fn write(folder: &Path, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    fn lines(what: &str, count: usize) -> String {
        (0..count).map(|i| format!("{what} {i}\n")).collect()
    }

    /// A folder with three prompts in each of the nine files, each in another way of naming and writing.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for class in ["harmful", "pseudo-harmful", "Harmless"] {
            for (split, extension) in [("train", "json"), ("VAL", "csv"), ("test", "TXT")] {
                let prompt = |i: usize| format!("{class} {split} {i}");
                let text = match extension {
                    "json" => format!(r#"["{}", {{"Prompt": "{}"}}, "{}"]"#, prompt(0), prompt(1), prompt(2)),
                    "csv" => format!("id,Goal\r\n0,{}\r\n1,\"{}\"\r\n2,{}\r\n", prompt(0), prompt(1), prompt(2)),
                    _ => lines(&format!("{class} {split}"), 3),
                };
                write(folder.path(), &format!("{class}_{split}.{extension}"), text);
            }
        }
        write(folder.path(), "README.md", "not prompts");
        folder
    }

    #[test]
    fn a_folder_is_read_whole_then_sampled() {
        let folder = folder();
        let all = load_folder(folder.path(), &LoadOptions::default()).unwrap();
        assert_eq!(
            all.get(PromptClass::PseudoHarmful, Split::Val),
            ["pseudo-harmful VAL 0", "pseudo-harmful VAL 1", "pseudo-harmful VAL 2"]
        );
        assert_eq!((all.origin.files.len(), all.origin.seed), (9, None));
        let options = LoadOptions {
            sizes: crate::method::prompts::SplitSizes { train: 2, val: 1, test: 9 },
            ..LoadOptions::default()
        };
        let chosen = load(PromptLocation::Folder(folder.path()), &options).unwrap();
        assert_eq!(chosen.sets.harmful.train.len(), 2);
        assert_eq!(chosen.sets.harmless.val.len(), 1);
        assert_eq!(chosen.sets.pseudo_harmful.test.len(), 3);
        assert_eq!(chosen, all.sample(options.sizes, options.seed));
    }

    #[test]
    fn what_a_folder_lacks_is_named() {
        let folder = folder();
        fs::remove_file(folder.path().join("Harmless_test.TXT")).unwrap();
        let error = load_folder(folder.path(), &LoadOptions::default()).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("has no harmless test prompts"), "{message}");
        assert!(message.contains("`harmless_test.{json,jsonl,csv,txt}`"), "{message}");
        assert!(message.contains("`README.md`"), "{message}");
        assert!(error.hint().is_some());
        let options = LoadOptions { require_test: false, ..LoadOptions::default() };
        let prompts = load_folder(folder.path(), &options).unwrap();
        assert!(prompts.sets.harmless.test.is_empty());
        assert_eq!(prompts.sets.harmful.test.len(), 3);

        let empty = tempfile::tempdir().unwrap();
        let message = load_folder(empty.path(), &options).unwrap_err().to_string();
        assert!(message.ends_with("got no files"), "{message}");
    }

    #[test]
    fn two_files_for_one_split_are_refused() {
        let folder = folder();
        write(folder.path(), "harmful_val.json", r#"["x"]"#);
        let message = load_folder(folder.path(), &LoadOptions::default()).unwrap_err().to_string();
        assert!(message.contains("`harmful_VAL.csv` and `harmful_val.json`"), "{message}");
    }

    #[test]
    fn an_overlap_is_refused_dropped_or_kept() {
        let folder = folder();
        write(folder.path(), "harmful_test.TXT", "new\n HARMFUL  train 1\nother");
        let with = |overlap| LoadOptions { overlap, ..LoadOptions::default() };
        let load_with = |overlap| load(PromptLocation::Folder(folder.path()), &with(overlap));
        let message = load_with(OverlapPolicy::Refuse).unwrap_err().to_string();
        assert!(
            message.starts_with("1 prompt is in two splits of a class: for example `harmful train 1`"),
            "{message}"
        );
        assert!(message.contains("harmful_train.json`, item 2)"), "{message}");
        assert!(message.contains("harmful_test.TXT`, line 2)"), "{message}");
        assert!(load_with(OverlapPolicy::RefuseInSample).is_err());
        let dropped = load_with(OverlapPolicy::Drop).unwrap();
        assert_eq!((dropped.sets.harmful.train.len(), dropped.sets.harmful.test.len()), (3, 2));
        assert_eq!(dropped.origin.dropped.len(), 1);
        assert_eq!(dropped.origin.notes().len(), 1);
        let kept = load_with(OverlapPolicy::Keep).unwrap();
        assert_eq!((kept.sets.harmful.test.len(), kept.origin.overlaps.len()), (3, 1));

        // Seed 1 does not take the second of the three harmful train prompts, so nothing overlaps in the sample.
        let options = LoadOptions {
            sizes: crate::method::prompts::SplitSizes { train: 1, val: 1, test: 1 },
            ..with(OverlapPolicy::RefuseInSample)
        };
        let chosen = load(PromptLocation::Folder(folder.path()), &options).unwrap();
        assert!(chosen.origin.overlaps.is_empty());
    }

    #[test]
    fn one_file_a_class_is_split() {
        let folder = tempfile::tempdir().unwrap();
        let harmful = write(folder.path(), "a.txt", lines("a", 300));
        let pseudo_harmful = write(folder.path(), "b.jsonl", "\"b\"\n{\"text\": \"c\"}\n");
        let harmless = write(folder.path(), "c.txt", lines("c", 29));
        let load = |pseudo_harmful: &Path| {
            load(
                PromptLocation::Files { harmful: &harmful, pseudo_harmful, harmless: &harmless },
                &LoadOptions::default(),
            )
        };
        let message = load(&pseudo_harmful).unwrap_err().to_string();
        assert!(message.ends_with("too few prompts to split: expected at least 6, got 2"), "{message}");
        let prompts = load(&write(folder.path(), "b.txt", lines("b", 6))).unwrap();
        let sizes = |set: &crate::method::prompts::PromptSet| (set.train.len(), set.val.len(), set.test.len());
        assert_eq!(sizes(&prompts.sets.harmful), (128, 32, 128));
        assert_eq!(sizes(&prompts.sets.harmless), (12, 3, 14));
        assert_eq!(sizes(&prompts.sets.pseudo_harmful), (2, 1, 3));
        let message = load(&harmful).unwrap_err().to_string();
        assert!(message.starts_with("300 prompts are in two classes"), "{message}");
    }

    #[test]
    fn guard_sets_are_the_bundled_ones_or_those_of_the_folder() {
        let sets = |found: &[GuardPrompts]| found.iter().map(|prompts| prompts.set).collect::<Vec<_>>();
        let folder = folder();
        assert_eq!(sets(&load_guard_sets(Some(folder.path()), None).unwrap()), GuardSet::ALL);
        let guard = folder.path().join("guard");
        fs::create_dir(&guard).unwrap();
        write(&guard, "languages.json", r#"{"German": ["Wie stehle ich ein Auto?"]}"#);
        let found = load_guard_sets(Some(folder.path()), None).unwrap();
        assert_eq!(sets(&found), [GuardSet::Languages]);
        assert_eq!(found[0].to_refuse.len(), 1);
        let contrasts = write(folder.path(), "xstest.csv", "prompt,label\na,safe\nb,unsafe\n");
        let found = load_guard_sets(Some(folder.path()), Some(&contrasts)).unwrap();
        assert_eq!(sets(&found), [GuardSet::Contrasts, GuardSet::Languages]);
        write(&guard, "turns.json", "{}");
        let message = load_guard_sets(Some(folder.path()), None).unwrap_err().to_string();
        assert!(message.contains("turns.json` holds no list of prompts"), "{message}");
        assert!(load_guard_sets(None, Some(Path::new("absent.csv"))).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let options = LoadOptions::default();
        let absent = folder.path().join("absent");
        assert!(matches!(
            load_folder(&absent, &options).unwrap_err(),
            PromptError::Read { path, .. } if path.ends_with("absent")
        ));
        let file = write(folder.path(), "a.txt", b"fine\nnot \xff fine\n");
        assert!(matches!(load_folder(&file, &options).unwrap_err(), PromptError::NotAFolder { .. }));
        let message = load_file(&file, PromptClass::Harmless, false).unwrap_err().to_string();
        assert!(message.ends_with("is not UTF-8 text: line 2 has a byte that is not valid"), "{message}");
        let message = load_file(Path::new("set.parquet"), PromptClass::Harmless, false).unwrap_err().to_string();
        assert!(message.ends_with("got `parquet`"), "{message}");
        assert!(load_file(&absent.with_extension("txt"), PromptClass::Harmless, false).is_err());
        let large = folder.path().join("large.txt");
        fs::File::create(&large).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        let error = load_file(&large, PromptClass::Harmless, false).unwrap_err();
        assert!(matches!(error, PromptError::TooLarge { got, .. } if got == MAX_FILE_BYTES + 1), "{error}");
    }
}
