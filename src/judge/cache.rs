//! Verdicts on disk: one JSON line each, appended. Several runs may share a file: a line is written whole under a lock
//! of the file. A line that a crash tore is skipped, and the next one begins on a line of its own.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Exchange, Format, JudgeError, Verdict};
use crate::files;

/// The largest file of verdicts, in bytes: a million of them.
const MAX_BYTES: u64 = 512 << 20;

/// Changes where the meaning of a verdict does.
const DOMAIN: &str = "lancet judge 1";

/// What a verdict is kept under: the SHA-256 of model, format, prompt and answer, each with its length before it.
pub fn key(model: &str, format: Format, pair: &Exchange<'_>) -> String {
    let mut hash = Sha256::new();
    for part in [DOMAIN, model, format.name(), pair.prompt, pair.answer] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How every line begins.
const LINE: &[u8] = b"{\"key\":\"";

fn invalid(words: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, words)
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    verdict: Verdict,
}

/// Verdicts that are known.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    file: File,
    known: HashMap<String, Verdict>,
}

impl Cache {
    /// Opens a file of verdicts, which is made with its folder if it does not exist. Lines that are no verdicts are
    /// skipped.
    ///
    /// # Errors
    /// If it cannot be read or made, or holds something else: what Lancet did not write is never added to.
    pub fn open(path: &Path) -> Result<Self, JudgeError> {
        let failed = |source| JudgeError::Cache { path: path.to_path_buf(), doing: "read", source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        if path.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
            return Err(failed(invalid("it is a link")));
        }
        let bytes = match files::read(path, MAX_BYTES) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.map_err(failed)?,
        };
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        let known: HashMap<String, Verdict> = bytes
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
            .map(|line| (line.key, line.verdict))
            .collect();
        // the beginning of a line, should a crash have torn the first one
        let torn = bytes.starts_with(LINE) || LINE.starts_with(&bytes);
        if known.is_empty() && !torn {
            return Err(failed(invalid("it holds something else than verdicts")));
        }
        Ok(Self { path: path.to_path_buf(), file, known })
    }

    /// The verdict under a key.
    pub fn get(&self, key: &str) -> Option<Verdict> {
        self.known.get(key).cloned()
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Keeps a verdict.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(&mut self, key: &str, verdict: &Verdict) -> Result<(), JudgeError> {
        let line = Line { key: key.to_owned(), verdict: verdict.clone() };
        let mut bytes = serde_json::to_vec(&line).expect("strings and flags are JSON");
        bytes.push(b'\n');
        self.append(bytes).map_err(|source| JudgeError::Cache { path: self.path.clone(), doing: "written", source })?;
        self.known.insert(line.key, line.verdict);
        Ok(())
    }

    fn append(&mut self, mut bytes: Vec<u8>) -> std::io::Result<()> {
        self.file.lock()?;
        let written = (|| {
            let length = self.file.seek(SeekFrom::End(0))?;
            if length > 0 {
                let mut last = [0];
                self.file.seek(SeekFrom::Start(length - 1))?;
                self.file.read_exact(&mut last)?;
                if last != *b"\n" {
                    bytes.insert(0, b'\n');
                }
            }
            self.file.write_all(&bytes)
        })();
        let unlocked = self.file.unlock();
        written.and(unlocked)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Word;
    use super::*;

    fn verdict(word: Word) -> Verdict {
        Verdict { word: Some(word), harmful_request: None, harmful_response: None, categories: Vec::new() }
    }

    #[test]
    fn keys_tell_parts_apart() {
        let key = |model, prompt, answer| key(model, Format::Chat, &Exchange { prompt, answer });
        let all = [key("m", "a", "bc"), key("m", "ab", "c"), key("ma", "", "bc"), key("m", "a", "bd")];
        for (i, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 64);
            assert!(all[..i].iter().all(|other| other != one));
        }
        assert_ne!(key("m", "a", "b"), super::key("m", Format::Wildguard, &Exchange { prompt: "a", answer: "b" }));
    }

    #[test]
    fn a_torn_line_is_skipped_and_mended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/verdicts.jsonl");
        let mut cache = Cache::open(&path).unwrap();
        assert!(cache.is_empty());
        cache.put("a", &verdict(Word::Refused)).unwrap();
        cache.put("b", &verdict(Word::Complied)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut cache = Cache::open(&path).unwrap();
            cache.put("c", &verdict(Word::Partly)).unwrap();
            let again = Cache::open(&path).unwrap();
            assert_eq!(again.get("c"), Some(verdict(Word::Partly)), "cut at {cut}");
            assert!(again.get("a").is_none_or(|found| found == verdict(Word::Refused)));
        }
        std::fs::write(&path, [whole.as_slice(), b"\xff\xfe\nnot json\n{\"key\": 1}\n"].concat()).unwrap();
        assert_eq!(Cache::open(&path).unwrap().len(), 2);
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, b"weights").unwrap();
        assert!(matches!(Cache::open(&path), Err(JudgeError::Cache { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"weights");
        #[cfg(unix)]
        {
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(folder.path().join("absent"), &link).unwrap();
            assert!(matches!(Cache::open(&link), Err(JudgeError::Cache { .. })));
            assert!(!folder.path().join("absent").exists());
        }
    }

    #[test]
    fn several_writers_do_not_mix_their_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("verdicts.jsonl");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let mut cache = Cache::open(path).unwrap();
                    for i in 0..50 {
                        cache.put(&format!("{writer} {i}"), &verdict(Word::Refused)).unwrap();
                    }
                });
            }
        });
        assert_eq!(Cache::open(&path).unwrap().len(), 200);
    }

    #[test]
    fn a_folder_is_no_cache() {
        let folder = tempfile::tempdir().unwrap();
        let error = Cache::open(folder.path()).unwrap_err();
        assert!(matches!(error, JudgeError::Cache { doing: "read", .. }), "{error}");
        assert!(error.hint().is_some());
    }
}
