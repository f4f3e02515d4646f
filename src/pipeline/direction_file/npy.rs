//! Arrays of floating-point numbers from `.npy` files (NumPy's format 1.0 to 3.0). Sizes are checked before anything is
//! allocated.

use super::floats::{ByteOrder, Float};
use super::shown;
use super::vectors::{Vectors, VectorsError};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Why a `.npy` file was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NpyError {
    /// The header is cut short or of an unknown version.
    #[error("its `.npy` header is damaged")]
    Header,
    /// An entry of the header is missing or has an unknown form.
    #[error("its `.npy` header tells no {what}")]
    Untold {
        /// What the entry tells.
        what: &'static str,
    },
    /// Elements with fields.
    #[error("it is a structured array, not one of floats")]
    Structured,
    /// Elements that are no floating-point numbers.
    #[error("its type is `{got}`; expected float16, float32 or float64")]
    Type {
        /// The type as NumPy spells it.
        got: String,
    },
    /// An unknown mark before the type.
    #[error("its byte order is `{got}`")]
    Order {
        /// The mark.
        got: String,
    },
    /// Shape and elements disagree.
    #[error("its shape is {shape:?}, and it holds {bytes} bytes of elements")]
    Size {
        /// The shape.
        shape: Vec<usize>,
        /// Bytes behind the header.
        bytes: usize,
    },
    /// No vectors.
    #[error(transparent)]
    Vectors(#[from] VectorsError),
}

/// Whether a file begins as one.
pub fn is(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// The array of a file, with its last axis as the vectors. Arrays in Fortran order are turned.
///
/// # Errors
/// [`NpyError`].
pub fn read(bytes: &[u8]) -> Result<Vectors, NpyError> {
    let (header, data) = parts(bytes).ok_or(NpyError::Header)?;
    let (float, order) = element(header)?;
    let shape = shape(header).ok_or(NpyError::Untold { what: "shape" })?;
    let fortran = fortran(header).ok_or(NpyError::Untold { what: "order of its axes" })?;
    if size(&shape, float) != Some(data.len()) {
        return Err(NpyError::Size { shape, bytes: data.len() });
    }
    let values = float.decode(data, order);
    Ok(Vectors::new(&shape, if fortran { turned(&values, &shape) } else { values })?)
}

/// The header's text and the elements behind it.
fn parts(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let ([major, _minor], rest) = rest.split_first_chunk::<2>()?;
    let (length, rest) = match major {
        1 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            (usize::try_from(u32::from_le_bytes(*length)).ok()?, rest)
        }
        _ => return None,
    };
    let (header, data) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

/// How an element is stored.
fn element(header: &str) -> Result<(Float, ByteOrder), NpyError> {
    let untold = NpyError::Untold { what: "type" };
    let descr = quoted(header, "descr").ok_or_else(|| match behind(header, "descr") {
        Some(text) if text.starts_with('[') => NpyError::Structured,
        _ => untold.clone(),
    })?;
    let (order, code) = descr.split_at_checked(1).ok_or(untold)?;
    let float = match code {
        "f2" => Float::F16,
        "f4" => Float::F32,
        "f8" => Float::F64,
        _ => return Err(NpyError::Type { got: shown(descr) }),
    };
    let order = match order {
        "<" => ByteOrder::Little,
        ">" => ByteOrder::Big,
        "=" | "|" => ByteOrder::NATIVE,
        _ => return Err(NpyError::Order { got: shown(order) }),
    };
    Ok((float, order))
}

/// What stands behind a key of the header's dictionary.
fn behind<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let key = ["'", "\""].iter().find_map(|quote| header.split_once(&format!("{quote}{key}{quote}")))?;
    Some(key.1.trim_start().strip_prefix(':')?.trim_start())
}

fn quoted<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let text = behind(header, key)?;
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote).map(|(inside, _)| inside)
}

fn shape(header: &str) -> Option<Vec<usize>> {
    let (inside, _) = behind(header, "shape")?.strip_prefix('(')?.split_once(')')?;
    let sizes = inside.split(',').map(str::trim).filter(|size| !size.is_empty());
    // Python 2 wrote long integers with an `L`
    sizes.map(|size| size.trim_end_matches('L').parse().ok()).collect()
}

/// Whether the first axis is the fastest.
fn fortran(header: &str) -> Option<bool> {
    let text = behind(header, "fortran_order")?;
    [("True", true), ("False", false)].into_iter().find_map(|(word, value)| text.starts_with(word).then_some(value))
}

/// Bytes of all elements.
fn size(shape: &[usize], float: Float) -> Option<usize> {
    shape.iter().try_fold(float.size(), |product, size| product.checked_mul(*size))
}

/// An array whose first axis is the fastest, with the last axis as the fastest.
fn turned(values: &[f64], shape: &[usize]) -> Vec<f64> {
    // axes of size 1 change no place, and without them there are at most as many as an integer has bits
    let axes: Vec<usize> = shape.iter().copied().filter(|size| *size != 1).collect();
    let mut index = vec![0; axes.len()];
    let mut turned = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        let place = index.iter().zip(&axes).rev().fold(0, |place, (at, size)| place * size + at);
        turned.push(values[place]);
        advance(&mut index, &axes);
    }
    turned
}

/// The next index, with the last axis as the fastest; behind the last one comes the first.
fn advance(index: &mut [usize], axes: &[usize]) {
    for (at, size) in index.iter_mut().zip(axes).rev() {
        *at += 1;
        if *at < *size {
            return;
        }
        *at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = [MAGIC, &[1, 0]].concat();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn header(descr: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n")
    }

    fn from_hex(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    /// python -c "import numpy as n; [print(t, n.array([1.5, -2, 0.25]).astype(t).tobytes().hex()) for t in
    /// ('<f2', '>f2', '<f4', '>f4', '<f8', '>f8')]"
    #[test]
    fn every_float_type_and_byte_order_is_read() {
        for (descr, hex) in [
            ("<f2", "003e00c00034"),
            (">f2", "3e00c0003400"),
            ("<f4", "0000c03f000000c00000803e"),
            (">f4", "3fc00000c00000003e800000"),
            ("<f8", "000000000000f83f00000000000000c0000000000000d03f"),
            (">f8", "3ff8000000000000c0000000000000003fd0000000000000"),
        ] {
            for shape in ["(3,)", "(1, 3)", "(3, 1)", "(3L,)"] {
                let found = read(&file(&header(descr, shape), &from_hex(hex))).unwrap();
                assert_eq!(found.row(&[]).unwrap(), [1.5, -2.0, 0.25], "{descr} {shape}");
            }
        }
    }

    /// What `numpy.save` writes for `numpy.arange(6, dtype="<f2").reshape(2, 3)` and for its `numpy.asfortranarray`.
    #[test]
    fn matrices_of_numpy_are_read_in_both_orders() {
        let pad = |text: &str| format!("{text:117}\n");
        let straight = pad("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }");
        let turned = pad("{'descr': '<f2', 'fortran_order': True, 'shape': (2, 3), }");
        for (header, hex) in [(straight, "0000003c0040004200440045"), (turned, "00000042003c004400400045")] {
            let found = read(&file(&header, &from_hex(hex))).unwrap();
            assert_eq!((found.axes(), found.width()), (&[2][..], 3));
            assert_eq!(found.row(&[0]).unwrap(), [0.0, 1.0, 2.0]);
            assert_eq!(found.row(&[1]).unwrap(), [3.0, 4.0, 5.0]);
        }
    }

    /// The numbers are those of `numpy.arange(24).reshape(2, 3, 4)`, as `ravel(order="F")` gives them.
    #[test]
    fn cubes_are_turned_too() {
        let fortran: Vec<f64> = (0..24).map(|n| f64::from(n % 2 * 12 + n / 2 % 3 * 4 + n / 6)).collect();
        let straight: Vec<f64> = (0..24).map(f64::from).collect();
        assert_eq!(turned(&fortran, &[2, 3, 4]), straight);
        assert_eq!(turned(&fortran, &[1, 2, 1, 3, 4]), straight);
        assert_eq!(turned(&[7.0], &[1, 1]), [7.0]);
    }

    #[test]
    fn what_is_no_array_of_vectors_is_told_in_words() {
        let data = [0u8; 16];
        for (descr, shape, words) in [
            ("<i8", "(2,)", "its type is `<i8`; expected float16, float32 or float64"),
            ("|O", "(2,)", "its type is `|O`"),
            ("<f8", "(1000000000000000000,)", "it holds 16 bytes"),
            ("<f8", "(4294967296, 4294967296, 4)", "its shape is"),
            ("<f8", "(4294967296, 1, 1)", "it holds 16 bytes"),
            ("<f8", "(3,)", "it holds 16 bytes"),
            ("<f8", "(3, 2)", "its shape is [3, 2], and it holds 16 bytes"),
            ("<f8", "(0, 2)", "it holds 16 bytes"),
            ("<f8", "()", "its shape is []"),
            ("<f8", "(-2,)", "tells no shape"),
            ("<f8", "(99999999999999999999999,)", "tells no shape"),
            ("<f8", "nothing", "tells no shape"),
            ("?f8", "(2,)", "byte order"),
            ("", "(2,)", "tells no type"),
            ("é", "(2,)", "tells no type"),
        ] {
            let message = read(&file(&header(descr, shape), &data)).unwrap_err().to_string();
            assert!(message.contains(words), "{descr} {shape}: {message}");
        }
        let structured = "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }";
        assert_eq!(read(&file(structured, &data)), Err(NpyError::Structured));
        let unordered = "{'descr': '<f8', 'fortran_order': Maybe, 'shape': (2,), }";
        assert_eq!(read(&file(unordered, &data)), Err(NpyError::Untold { what: "order of its axes" }));
        assert_eq!(
            read(&file(&header("<f8", "()"), &data[..8])),
            Err(NpyError::Vectors(VectorsError::Empty { shape: vec![] }))
        );
        assert!(read(&file(&header("<f8", "(0, 2)"), &[])).is_err());
    }

    #[test]
    fn cut_files_and_unknown_versions_are_refused() {
        let whole = file(&header("<f8", "(2,)"), &[0; 16]);
        assert!(is(&whole));
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "{cut}");
        }
        for major in [0, 4, 255] {
            let mut other = whole.clone();
            other[6] = major;
            assert_eq!(read(&other), Err(NpyError::Header));
        }
    }
}
