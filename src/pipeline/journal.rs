//! What a search has found so far, kept beside the output, so that it goes on after a kill.
//!
//! Beside an output `OUT` there is a folder `OUT.partial` while a search runs. It holds the activations, which
//! [`super::collect`] continues, and a line of JSON for each thing that was measured, under a key that names everything it
//! depends on: the model, the prompts and how they are put, the runtime, and the edit. What has another key is measured
//! again, so a changed option makes nothing wrong. A line that a kill has cut is dropped. The folder goes away when the
//! search has led to an end, whatever that is.
//!
//! Nothing that is published is taken from here but the choice of the setting: the written model is measured by itself.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::files::{self, PART, PREFIX};

use super::collect::{self, Activations};
use super::engine::{Engine, Observer};

/// Largest journal that is read, in bytes.
const MOST: u64 = 1 << 30;

const ACTIVATIONS: &str = "activations";
const RESULTS: &str = "results.jsonl";

/// Results by their keys, in memory and on the disk.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// What every key depends on.
    base: String,
    known: Mutex<HashMap<String, Value>>,
}

impl Journal {
    /// The journal beside the output `out`, with what an earlier search has left there. `base` names what everything in it
    /// depends on. Nothing is made before there is something to keep.
    ///
    /// # Errors
    /// Usage, if something else has the name of its folder.
    pub fn beside(out: &Path, base: &str) -> Result<Self, Error> {
        let mut folder = out.as_os_str().to_owned();
        folder.push(".partial");
        let folder = PathBuf::from(folder);
        let other = |what: &str| {
            Error::usage(
                format!("`{}` is {what}, and a search keeps what it has found there", folder.display()),
                "move it away, or choose another output",
            )
        };
        match folder.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(other(&format!("in the way ({error})"))),
            Ok(found) if !found.is_dir() => return Err(other("no folder")),
            Ok(_) if !is_own(&folder) => return Err(other("not Lancet's")),
            Ok(_) => {}
        }
        let mut known = HashMap::new();
        let results = folder.join(RESULTS);
        if results.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() <= MOST) {
            let file = files::open(&results).map_err(|error| other(&format!("not readable ({error})")))?;
            for line in BufReader::new(file).split(b'\n') {
                // a line that was cut, and all behind one that cannot be read
                let Ok(line) = line else { break };
                if let Ok((key, value)) = serde_json::from_slice::<(String, Value)>(&line) {
                    known.insert(key, value);
                }
            }
        }
        Ok(Self { folder, base: base.to_string(), known: Mutex::new(known) })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether an earlier search has left something.
    pub fn has_any(&self) -> bool {
        let results = !self.known.lock().expect("no thread panics with it").is_empty();
        results || self.folder.join(ACTIVATIONS).is_file()
    }

    /// Collects activations ([`collect::collect`]), which are kept as far as they are there; where all of them are, nothing
    /// is run but what chooses the refusal tokens. `inputs.partial` is not used.
    ///
    /// # Errors
    /// As [`collect::collect`], and if they cannot be kept.
    pub fn collect(
        &self,
        engine: &Engine<'_>,
        inputs: &collect::Inputs<'_>,
        observer: &dyn Observer,
    ) -> Result<(Activations, usize), Error> {
        self.make().map_err(|error| self.failed(&error))?;
        let path = self.folder.join(ACTIVATIONS);
        if self.has_any() {
            observer.note(&format!("going on with what an earlier run has left in `{}`", self.folder.display()));
        }
        let found = collect::collect(engine, &collect::Inputs { partial: Some(&path), ..*inputs }, observer)?;
        found.0.save(&path)?;
        Ok(found)
    }

    /// What was measured under a key, `None` where nothing was, or something that cannot be read.
    pub fn get<T: DeserializeOwned>(&self, what: &str, key: &impl Serialize) -> Option<T> {
        let known = self.known.lock().expect("no thread panics with it");
        serde_json::from_value(known.get(&self.key(what, key))?.clone()).ok()
    }

    /// Keeps what was measured under a key, on the disk before it returns.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(&self, what: &str, key: &impl Serialize, value: &impl Serialize) -> Result<(), Error> {
        self.put_all(what, std::iter::once((key, value)))
    }

    /// The same for several.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn put_all<'v, K: Serialize + 'v, V: Serialize + 'v>(
        &self,
        what: &str,
        entries: impl Iterator<Item = (&'v K, &'v V)>,
    ) -> Result<(), Error> {
        let entries: Vec<(String, Value)> = entries
            .map(|(key, value)| (self.key(what, key), serde_json::to_value(value).expect("plain data")))
            .collect();
        let mut lines: Vec<u8> = Vec::new();
        for entry in &entries {
            lines.extend(serde_json::to_vec(entry).expect("plain data"));
            lines.push(b'\n');
        }
        if lines.is_empty() {
            return Ok(());
        }
        let mut known = self.known.lock().expect("no thread panics with it");
        let write = || -> io::Result<()> {
            self.make()?;
            let path = self.folder.join(RESULTS);
            let found = path.symlink_metadata();
            if found.is_ok_and(|found| !found.is_file()) {
                return Err(io::Error::other("it is no file"));
            }
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
            // what was cut before must not run into this
            if !ends_a_line(&mut file)? {
                file.write_all(b"\n")?;
            }
            file.write_all(&lines)?;
            file.sync_data()
        };
        write().map_err(|error| self.failed(&error))?;
        known.extend(entries);
        Ok(())
    }

    /// Says after a failure where what was found is kept, if anything was.
    pub fn note_kept(&self, observer: &dyn Observer) {
        if self.has_any() {
            observer.note(&format!(
                "what was found so far is kept in `{}`: the same command goes on from there",
                self.folder.display()
            ));
        }
    }

    /// Takes everything away: the search has led to an end.
    pub fn remove(self) {
        for name in [ACTIVATIONS, RESULTS] {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
    }

    fn key(&self, what: &str, key: &impl Serialize) -> String {
        let whole = serde_json::to_vec(&(&self.base, what, key)).expect("plain data");
        Sha256::digest(whole).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn make(&self) -> io::Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.folder)
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::failed_with(
            format!("cannot keep what the search has found in `{}`: {error}", self.folder.display()),
            "check the folder, its permissions and its free space",
        )
    }
}

impl Drop for Journal {
    /// An empty folder goes away; one that is not empty cannot be removed so.
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// Whether a folder holds nothing but what a journal keeps, in plain files.
fn is_own(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.into_iter().all(|entry| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            let plain = entry.file_type().is_ok_and(|kind| kind.is_file());
            plain
                && match &*name.to_string_lossy() {
                    ACTIVATIONS => true,
                    RESULTS => holds_results(&entry.path()),
                    name => name.starts_with(PREFIX) && name.ends_with(PART),
                }
        })
    })
}

/// Whether a plain file begins as a journal's results do, with `["` and a hash, or is the beginning of such a line: a
/// first line may have been cut.
fn holds_results(path: &Path) -> bool {
    use std::io::Read;
    let mut begin = Vec::new();
    let read = files::open(path).and_then(|file| file.take(2 + HASH).read_to_end(&mut begin));
    let (mark, hash) = begin.split_at(begin.len().min(2));
    read.is_ok() && b"[\"".starts_with(mark) && hash.iter().all(|byte| b"0123456789abcdef".contains(byte))
}

/// Characters of a key: SHA-256 in hexadecimal.
const HASH: u64 = 64;

fn ends_a_line(file: &mut File) -> io::Result<bool> {
    use std::io::{Read, Seek, SeekFrom};
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0u8];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_found_again_under_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let journal = Journal::beside(&out, "model").unwrap();
        assert!(!journal.has_any() && !journal.folder().exists(), "nothing is made before there is something to keep");
        journal.put("setting", &("a", 1), &vec![0.1, f64::MIN_POSITIVE, 1.0 / 3.0]).unwrap();
        journal.put("setting", &("a", 2), &"text").unwrap();
        drop(journal);

        let again = Journal::beside(&out, "model").unwrap();
        assert!(again.has_any());
        assert_eq!(again.get::<Vec<f64>>("setting", &("a", 1)), Some(vec![0.1, f64::MIN_POSITIVE, 1.0 / 3.0]));
        assert_eq!(again.get::<String>("setting", &("a", 2)).as_deref(), Some("text"));
        assert_eq!(again.get::<Vec<f64>>("setting", &("a", 2)), None, "another type");
        assert_eq!(again.get::<String>("other", &("a", 2)), None);
        assert_eq!(Journal::beside(&out, "another model").unwrap().get::<String>("setting", &("a", 2)), None);
        let kept = again.folder().to_owned();
        again.remove();
        assert!(!kept.exists());
        // nor does a folder stay in which there is nothing
        let empty = Journal::beside(&out, "model").unwrap();
        empty.make().unwrap();
        assert!(kept.is_dir());
        drop(empty);
        assert!(!kept.exists());
    }

    #[test]
    fn a_line_that_was_cut_is_dropped_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let journal = Journal::beside(&out, "m").unwrap();
        journal.put("s", &1, &"one").unwrap();
        journal.put("s", &2, &"two").unwrap();
        let path = journal.folder().join(RESULTS);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();

        let again = Journal::beside(&out, "m").unwrap();
        let get = |journal: &Journal, at: i32| journal.get::<String>("s", &at);
        assert_eq!((get(&again, 1).as_deref(), get(&again, 2)), (Some("one"), None));
        again.put("s", &3, &"three").unwrap();
        let last = Journal::beside(&out, "m").unwrap();
        assert_eq!((get(&last, 1).as_deref(), get(&last, 3).as_deref()), (Some("one"), Some("three")));
    }

    #[test]
    fn what_is_not_its_own_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let place = folder.path().join("out.partial");
        std::fs::write(&place, "mine").unwrap();
        assert_eq!(Journal::beside(&out, "m").unwrap_err().kind(), crate::Kind::Usage);
        assert_eq!(std::fs::read(&place).unwrap(), b"mine");
        std::fs::remove_file(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("notes"), "mine").unwrap();
        assert!(Journal::beside(&out, "m").unwrap_err().to_string().contains("not Lancet's"));
        std::fs::remove_file(place.join("notes")).unwrap();
        let key = format!("[\"{}", "a1".repeat(32));
        let begun: Vec<&str> = (0..key.len()).map(|end| &key[..end]).collect();
        let mine = ["{\"my\": 1}\n", "{\"my", "[\"key\", 1]\n", "1\n"];
        let cases = begun.into_iter().map(|own| (own, true)).chain(mine.map(|mine| (mine, false)));
        for (mine, own) in cases {
            std::fs::write(place.join(RESULTS), mine).unwrap();
            assert_eq!(is_own(&place), own, "{mine}");
        }
        #[cfg(unix)]
        {
            let elsewhere = folder.path().join("elsewhere");
            std::fs::rename(place.join(RESULTS), &elsewhere).unwrap();
            std::os::unix::fs::symlink(&elsewhere, place.join(RESULTS)).unwrap();
            assert!(Journal::beside(&out, "m").unwrap_err().to_string().contains("not Lancet's"));
            std::fs::remove_dir_all(&place).unwrap();
            let other = folder.path().join("other");
            std::fs::create_dir(&other).unwrap();
            std::os::unix::fs::symlink(&other, &place).unwrap();
            assert!(Journal::beside(&out, "m").unwrap_err().to_string().contains("no folder"));
        }
    }
}
