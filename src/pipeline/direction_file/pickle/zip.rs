//! Zip archives of which every entry is stored as it is, without compression, as `torch.save` writes them.

use std::collections::BTreeMap;

/// What a local header, a record of the directory and the end of the directory begin with.
const LOCAL: &[u8] = b"PK\x03\x04";
const RECORD: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";

/// Bytes of each without the texts that follow.
const LOCAL_SIZE: usize = 30;
const RECORD_SIZE: usize = 46;
const END_SIZE: usize = 22;

/// The directory of an archive.
pub struct Archive<'a> {
    bytes: &'a [u8],
    entries: BTreeMap<&'a str, Entry>,
}

/// An entry, as the directory describes it.
struct Entry {
    /// Whether it is neither compressed nor encrypted.
    plain: bool,
    /// Its size in bytes.
    size: usize,
    /// Where its local header begins.
    local: usize,
}

/// Whether a file begins as one.
pub fn is(bytes: &[u8]) -> bool {
    bytes.starts_with(LOCAL)
}

impl<'a> Archive<'a> {
    /// Reads the directory; `None` where it is missing or damaged, or two entries have one name. Archives of more than
    /// 4 GB or 65535 entries (zip64) are not read.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let end = end(bytes)?;
        let mut records = bytes.get(u32_at(end, 16)?..)?;
        let mut entries = BTreeMap::new();
        for _ in 0..u16_at(end, 10)? {
            let (name, entry, rest) = record(records)?;
            if entries.insert(name, entry).is_some() {
                return None;
            }
            records = rest;
        }
        Some(Self { bytes, entries })
    }

    /// The names of the entries, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.entries.keys().copied()
    }

    /// The bytes of an entry; `None` where it is missing, damaged, compressed or encrypted.
    pub fn entry(&self, name: &str) -> Option<&'a [u8]> {
        let entry = self.entries.get(name).filter(|entry| entry.plain)?;
        let local = self.bytes.get(entry.local..).filter(|local| local.starts_with(LOCAL))?;
        local.get(LOCAL_SIZE + u16_at(local, 26)? + u16_at(local, 28)?..)?.get(..entry.size)
    }
}

/// The record that ends an archive: the last one whose comment ends with the file.
fn end(bytes: &[u8]) -> Option<&[u8]> {
    let last = bytes.len().checked_sub(END_SIZE)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    let candidates = (first..=last).rev().map(|start| &bytes[start..]);
    candidates.into_iter().find(|end| end.starts_with(END) && u16_at(end, 20) == Some(end.len() - END_SIZE))
}

/// The first record of these, and the bytes behind it.
fn record(bytes: &[u8]) -> Option<(&str, Entry, &[u8])> {
    let (fixed, rest) = bytes.split_at_checked(RECORD_SIZE)?;
    if !fixed.starts_with(RECORD) {
        return None;
    }
    let (flags, method) = (u16_at(fixed, 8)?, u16_at(fixed, 10)?);
    let (packed, size) = (u32_at(fixed, 20)?, u32_at(fixed, 24)?);
    let (name, rest) = rest.split_at_checked(u16_at(fixed, 28)?)?;
    let rest = rest.get(u16_at(fixed, 30)? + u16_at(fixed, 32)?..)?;
    let plain = method == 0 && flags & 1 == 0 && packed == size;
    let entry = Entry { plain, size, local: u32_at(fixed, 42)? };
    Some((std::str::from_utf8(name).ok()?, entry, rest))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|number| usize::from(u16::from_le_bytes(*number)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

/// An archive with these entries.
#[cfg(test)]
pub fn written(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let sizes = [(data.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
        let lengths = [name.len() as u16, 0].map(u16::to_le_bytes).concat();
        directory.extend([RECORD, &[0; 16], &sizes, &lengths, &[0; 10], &(bytes.len() as u32).to_le_bytes()].concat());
        directory.extend(name.as_bytes());
        bytes.extend([LOCAL, &[0; 14], &sizes, &lengths, name.as_bytes(), data].concat());
    }
    let (count, start) = ((entries.len() as u16).to_le_bytes(), (bytes.len() as u32).to_le_bytes());
    let size = (directory.len() as u32).to_le_bytes();
    bytes.extend(directory);
    bytes.extend([END, &[0; 4], &count, &count, &size, &start, &[0; 2]].concat());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_name() {
        let bytes = written(&[("a/data.pkl", b"one"), ("a/data/0", b"")]);
        assert!(is(&bytes));
        let archive = Archive::open(&bytes).unwrap();
        assert_eq!(archive.names().collect::<Vec<_>>(), ["a/data.pkl", "a/data/0"]);
        assert_eq!(archive.entry("a/data.pkl").unwrap(), b"one");
        assert_eq!(archive.entry("a/data/0").unwrap(), b"");
        assert_eq!(archive.entry("a/data"), None);
        let commented = [&bytes[..bytes.len() - 2], &[5, 0], b"hello"].concat();
        assert_eq!(Archive::open(&commented).unwrap().entry("a/data.pkl").unwrap(), b"one");
    }

    #[test]
    fn what_does_not_fit_the_file_is_refused() {
        let bytes = written(&[("name", b"data")]);
        for cut in 0..bytes.len() {
            assert!(Archive::open(&bytes[..cut]).is_none(), "{cut}");
        }
        assert!(Archive::open(&written(&[("same", b"1"), ("same", b"2")])).is_none());
        let (record, end) = (bytes.windows(4).position(|w| w == RECORD).unwrap(), bytes.len() - END_SIZE);
        let changed = |place: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[place] = value;
            bytes
        };
        for (place, value) in [(end + 10, 2), (end + 16, 0xff), (record, 0), (record + 28, 0xff), (record + 46, 0xff)] {
            assert!(Archive::open(&changed(place, value)).is_none(), "{place}");
        }
        // the flag of encryption, the method, the packed size, where the entry begins, its mark, the length of its name
        for place in [record + 8, record + 10, record + 20, record + 42, 0, 26] {
            assert_eq!(Archive::open(&changed(place, 0xff)).unwrap().entry("name"), None, "{place}");
        }
    }
}
