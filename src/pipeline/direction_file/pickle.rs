//! Tensors in the files of PyTorch's `torch.save` (`.pt`, `.pth`, `.bin`). Nothing that such a file asks for is run.
//!
//! The file is a zip archive. `NAME/data.pkl` is a pickle, which makes objects (`machine.rs`), and `NAME/data/KEY` are
//! the numbers that tensors look at. Read are floating-point tensors whose numbers lie one behind the other: one alone,
//! or any number of them in lists, tuples and dictionaries, beside numbers and texts, which are left out. A tensor that
//! was cut out of a larger one is saved with all of that one's numbers, of which its own are read.

mod error;
mod machine;
mod zip;

use std::collections::BTreeSet;

pub use self::error::TorchError;
use self::machine::{Id, Object, Objects};
use self::zip::Archive;
use super::floats::ByteOrder;
use super::shown;
use super::vectors::Vectors;

/// What a pickle of protocol 2 begins with. Later ones differ in the second byte.
const PROTOCOL: u8 = 0x80;

/// Objects that are looked at, at most, and how deep they may lie in one another.
const MOST_OBJECTS: usize = 1 << 16;
const MOST_DEPTH: usize = 8;

/// The longest name of a tensor, in bytes.
const LONGEST_NAME: usize = 256;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedVectors {
    /// The keys of dictionaries and places in lists on the way to it, joined by dots; empty for a tensor that stands
    /// alone.
    pub name: String,
    /// Its numbers.
    pub vectors: Vectors,
}

/// Whether a file begins as one, or as another zip archive or pickle.
pub fn is(bytes: &[u8]) -> bool {
    zip::is(bytes) || matches!(bytes, [PROTOCOL, 2..=5, ..])
}

/// The floating-point tensors of a file with at least one axis, in its order; at least one, and all together no larger
/// than the file.
///
/// # Errors
/// [`TorchError`].
pub fn tensors(bytes: &[u8]) -> Result<Vec<NamedVectors>, TorchError> {
    if !zip::is(bytes) {
        return Err(TorchError::Bare);
    }
    let archive = Archive::open(bytes).ok_or(TorchError::Archive)?;
    let folder = folder(&archive)?;
    if archive.entry(&format!("{folder}/byteorder")).is_some_and(|order| order == b"big") {
        return Err(TorchError::BigEndian);
    }
    let objects = machine::run(archive.entry(&format!("{folder}/data.pkl")).ok_or(TorchError::Archive)?)?;
    let mut search =
        Search { archive: &archive, folder, objects: &objects, bytes: bytes.len(), seen: 0, found: vec![] };
    search.visit(objects.root, String::new(), 0)?;
    distinct(search.found)
}

/// The folder of the archive that holds the pickle.
fn folder<'a>(archive: &Archive<'a>) -> Result<&'a str, TorchError> {
    let mut folders = archive.names().filter_map(|name| name.strip_suffix("/data.pkl"));
    match folders.find(|folder| !folder.contains('/')) {
        Some(folder) => Ok(folder),
        None if archive.names().any(|name| name.ends_with(".npy")) => Err(TorchError::Npz),
        None => Err(TorchError::OtherZip),
    }
}

fn distinct(found: Vec<NamedVectors>) -> Result<Vec<NamedVectors>, TorchError> {
    let mut names = BTreeSet::new();
    match found.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        Some(twice) => Err(TorchError::Twice { name: shown(&twice.name) }),
        None if found.is_empty() => Err(TorchError::NoTensors),
        None => Ok(found),
    }
}

/// A search for tensors among objects.
struct Search<'a> {
    archive: &'a Archive<'a>,
    folder: &'a str,
    objects: &'a Objects<'a>,
    /// How many bytes further tensors may have.
    bytes: usize,
    /// How many objects were looked at.
    seen: usize,
    found: Vec<NamedVectors>,
}

impl Search<'_> {
    fn visit(&mut self, id: Id, name: String, depth: usize) -> Result<(), TorchError> {
        self.seen += 1;
        if self.seen > MOST_OBJECTS || depth > MOST_DEPTH || name.len() > LONGEST_NAME {
            return Err(TorchError::Large);
        }
        match self.objects.get(id) {
            Object::Tensor(tensor) if !tensor.shape.is_empty() => self.tensor(tensor, name),
            Object::List(parts) => (parts.iter().enumerate())
                .try_for_each(|(place, part)| self.visit(*part, joined(&name, &place.to_string()), depth + 1)),
            Object::Dictionary(entries) => entries.iter().try_for_each(|(key, value)| {
                let key = self.key(*key)?;
                self.visit(*value, joined(&name, &key), depth + 1)
            }),
            _ => Ok(()),
        }
    }

    fn key(&self, key: Id) -> Result<String, TorchError> {
        match self.objects.get(key) {
            Object::Text(text) if text.len() <= LONGEST_NAME => Ok((*text).to_owned()),
            Object::Integer(number) => Ok(number.to_string()),
            _ => Err(TorchError::Key),
        }
    }

    fn tensor(&mut self, tensor: &machine::Tensor<'_>, name: String) -> Result<(), TorchError> {
        let outside = || TorchError::Outside { tensor: shown(&name) };
        let size = tensor.storage.float.size();
        let data = self.archive.entry(&format!("{}/data/{}", self.folder, tensor.storage.key));
        let fits = |data: &&[u8]| tensor.storage.count.checked_mul(size) == Some(data.len());
        let data = data.filter(fits).ok_or_else(outside)?;
        let length = contiguous(tensor).ok_or_else(|| TorchError::Strided { tensor: shown(&name) })?;
        let end = tensor.offset.checked_add(length).filter(|end| *end <= tensor.storage.count).ok_or_else(outside)?;
        let numbers = &data[tensor.offset * size..end * size];
        self.bytes = self.bytes.checked_sub(numbers.len()).ok_or(TorchError::Large)?;
        let vectors = Vectors::new(&tensor.shape, tensor.storage.float.decode(numbers, ByteOrder::Little));
        let vectors = vectors.map_err(|error| TorchError::Vectors { tensor: shown(&name), error })?;
        self.found.push(NamedVectors { name, vectors });
        Ok(())
    }
}

/// How many numbers a tensor has, where they lie one behind the other with the last axis as the fastest.
fn contiguous(tensor: &machine::Tensor<'_>) -> Option<usize> {
    let axes = tensor.shape.iter().zip(&tensor.strides).rev();
    axes.into_iter().try_fold(1usize, |expected, (&size, &stride)| {
        let next = expected.checked_mul(size)?;
        (size == 1 || stride == expected || next == 0).then_some(next)
    })
}

fn joined(name: &str, part: &str) -> String {
    if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/directions/", $name)).as_slice()
        };
    }

    /// `torch.save(torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)[-1, 1], ..)`
    const VIEW: &[u8] = fixture!("view.pt");

    /// A dictionary of dictionaries with a bfloat16 vector, a float16 matrix and numbers.
    const DICTIONARY: &[u8] = fixture!("dictionary.pt");

    /// A list with a parameter, and a tuple with the weights of a module.
    const LIST: &[u8] = fixture!("list.pt");

    fn names(found: &[NamedVectors]) -> Vec<&str> {
        found.iter().map(|tensor| tensor.name.as_str()).collect()
    }

    #[test]
    fn a_vector_out_of_a_larger_tensor_is_read() {
        let found = tensors(VIEW).unwrap();
        assert_eq!(names(&found), [""]);
        assert_eq!(found[0].vectors.row(&[]).unwrap(), [16.0, 17.0, 18.0, 19.0]);
    }

    #[test]
    fn tensors_of_a_dictionary_are_named_by_its_keys() {
        let found = tensors(DICTIONARY).unwrap();
        assert_eq!(names(&found), ["results.refuse_0", "results.refuse_1"]);
        assert_eq!(found[0].vectors.row(&[]).unwrap(), [half::bf16::from_f32(0.1).to_f64(), -2.0]);
        assert_eq!(found[1].vectors.row(&[1]).unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn tensors_of_a_list_are_named_by_their_places() {
        let found = tensors(LIST).unwrap();
        assert_eq!(names(&found), ["0", "1.0.weight"]);
        assert_eq!(found[0].vectors.row(&[]).unwrap(), [7.0]);
        assert_eq!(found[1].vectors.row(&[]).unwrap(), [5.0, 6.0]);
    }

    /// The instructions for a float32 tensor on the storage `0`.
    fn tensor(count: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
        let sizes =
            |sizes: &[u8]| [b"(", &sizes.iter().flat_map(|size| [b'K', *size]).collect::<Vec<u8>>()[..], b"t"].concat();
        [
            &b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK"
                [..],
            &[count],
            b"tQK",
            &[offset],
            &sizes(shape),
            &sizes(strides),
            b"\x89}tR",
        ]
        .concat()
    }

    /// A file with a program and the float32 numbers 0, 1, 2, 3, 4, 5.
    fn file(program: &[u8]) -> Vec<u8> {
        let numbers: Vec<u8> = (0..6u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
        zip::written(&[("x/data.pkl", &[program, b"."].concat()), ("x/data/0", &numbers), ("x/byteorder", b"little")])
    }

    #[test]
    fn numbers_are_found_by_offset_and_shape() {
        let found = tensors(&file(&tensor(6, 2, &[2, 2], &[2, 1]))).unwrap();
        assert_eq!(found[0].vectors.row(&[1]).unwrap(), [4.0, 5.0]);
        // strides of axes of size 1 say nothing
        let found = tensors(&file(&tensor(6, 5, &[1, 1], &[9, 7]))).unwrap();
        assert_eq!(found[0].vectors.row(&[]).unwrap(), [5.0]);
    }

    #[test]
    fn tensors_that_do_not_fit_are_refused() {
        let outside = TorchError::Outside { tensor: String::new() };
        let strided = TorchError::Strided { tensor: String::new() };
        for (program, error) in [
            (tensor(6, 0, &[7], &[1]), &outside),
            (tensor(6, 5, &[2], &[1]), &outside),
            (tensor(6, 7, &[1], &[1]), &outside),
            (tensor(5, 0, &[5], &[1]), &outside),
            (tensor(7, 0, &[7], &[1]), &outside),
            (tensor(6, 0, &[2, 3], &[1, 2]), &strided),
            (tensor(6, 0, &[6], &[0]), &strided),
            (tensor(6, 0, &[3], &[2]), &strided),
            (tensor(6, 0, &[255; 8], &[0; 8]), &strided),
            (tensor(6, 0, &[1], &[1, 1]), &TorchError::Pickle),
            (tensor(6, 0, &[1; 9], &[1; 9]), &TorchError::Large),
            (tensor(6, 0, &[], &[]), &TorchError::NoTensors),
        ] {
            assert_eq!(&tensors(&file(&program)).unwrap_err(), error);
        }
        let empty = tensors(&file(&tensor(6, 0, &[0], &[1]))).unwrap_err().to_string();
        assert_eq!(empty, "its tensor is unusable: its shape is [0], so it holds no vector");
        let named = [b"}X\x01\x00\x00\x00a", &tensor(6, 0, &[3], &[2])[..], b"s"].concat();
        let named = tensors(&file(&named)).unwrap_err().to_string();
        assert_eq!(named, "its tensor `a` is a transposed, strided or expanded view");
    }

    #[test]
    fn files_that_would_grow_are_refused() {
        let one = tensor(6, 0, &[6], &[1]);
        // the same tensor a thousand times
        let many = [b"](", &one[..], b"q\x00", &b"h\x00".repeat(1000), b"e"].concat();
        assert_eq!(tensors(&file(&many)), Err(TorchError::Large));
        let nested = |depth: usize| file(&[&one[..], &b"\x85".repeat(depth)].concat());
        assert_eq!(names(&tensors(&nested(MOST_DEPTH)).unwrap()), ["0.0.0.0.0.0.0.0"]);
        assert_eq!(tensors(&nested(MOST_DEPTH + 1)), Err(TorchError::Large));
        // a list within itself
        assert_eq!(tensors(&file(b"]q\x00h\x00a")), Err(TorchError::Large));
        // 2 to the power of 16 empty lists in 16 pairs within pairs, and those of 8 pairs
        let pairs = |depth: usize| file(&[&b"]"[..], &b"q\x00h\x00\x86".repeat(depth)].concat());
        assert_eq!(tensors(&pairs(16)), Err(TorchError::Large));
        assert_eq!(tensors(&pairs(8)), Err(TorchError::NoTensors));
        let wide = [b"](", &b"N".repeat(MOST_OBJECTS)[..], b"e"].concat();
        assert_eq!(tensors(&file(&wide)), Err(TorchError::Large));
        let key = [&b"}X\x01\x01\x00\x00"[..], &b"k".repeat(257), &one, b"s"].concat();
        assert_eq!(tensors(&file(&key)), Err(TorchError::Key));
    }

    #[test]
    fn names_are_distinct() {
        let one = tensor(6, 0, &[1], &[1]);
        let twice = [b"}(X\x01\x00\x00\x001", &one[..], b"K\x01", &one, b"u"].concat();
        assert_eq!(tensors(&file(&twice)), Err(TorchError::Twice { name: "1".into() }));
        let key = [b"}N", &one[..], b"s"].concat();
        assert_eq!(tensors(&file(&key)), Err(TorchError::Key));
    }

    #[test]
    fn other_files_are_called_what_they_are() {
        // what `torch.save` begins its files with before version 1.6: a magic number as a pickle
        let old = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
        let npz = zip::written(&[("arr_0.npy", b"")]);
        let other = zip::written(&[("word/document.xml", b""), ("deep/er/data.pkl", b"")]);
        let big = zip::written(&[("x/data.pkl", b"N."), ("x/byteorder", b"big")]);
        let nothing = zip::written(&[("x/data.pkl", b"N.")]);
        let lost = zip::written(&[("x/data.pkl", &[&tensor(6, 0, &[6], &[1])[..], b"."].concat())]);
        for (bytes, words, advice) in [
            (&old[..], "before version 1.6", "torch.load"),
            (b"\x80\x04\x95\x00", "a Python pickle", "torch.load"),
            (&npz, "`.npz` archive", "numpy.load"),
            (&other, "it has no `data.pkl`", "safetensors"),
            (&big, "big-endian", "torch.load"),
            (&nothing, "no floating-point tensor", "torch.load"),
            (&lost, "does not fit the numbers", "again"),
            (&VIEW[..1000], "cut short or damaged", "again"),
        ] {
            assert!(is(bytes));
            let error = tensors(bytes).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.hint().contains(advice), "{}", error.hint());
        }
        for bytes in [&b""[..], b"PK", b"\x80", b"\x80\x01", b"\x93NUMPY", b"GGUF"] {
            assert!(!is(bytes));
        }
    }

    #[test]
    fn no_cut_or_changed_file_panics() {
        for whole in [VIEW, DICTIONARY, LIST] {
            for cut in 0..whole.len() {
                assert!(tensors(&whole[..cut]).is_err());
            }
            super::super::tests::changed(whole, 35_000, |bytes| drop(tensors(bytes)));
        }
        // the pickle alone, in a directory that stays sound
        let program = [b"](", &tensor(6, 0, &[2, 3], &[3, 1])[..], b"K\x01X\x01\x00\x00\x00a}q\x00e"].concat();
        super::super::tests::changed(&program, 100_000, |program| drop(tensors(&file(program))));
    }
}
