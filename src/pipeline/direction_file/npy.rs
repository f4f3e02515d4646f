//! One vector from a `.npy` file (NumPy's format 1.0 to 3.0). Sizes are checked before anything is allocated.

const MAGIC: &[u8] = b"\x93NUMPY";

/// Whether a file begins as one.
pub(super) fn is(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// How an element is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Half,
    Single,
    Double,
}

/// The elements of an array with one dimension that is not 1.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn vector(bytes: &[u8]) -> Result<Vec<f64>, String> {
    let (header, data) = parts(bytes).ok_or("its `.npy` header is damaged")?;
    let descr = quoted(header, "descr").ok_or_else(|| match header.contains("'descr': [") {
        true => "it is a structured array, not one of floats".to_owned(),
        false => "its `.npy` header tells no type".to_owned(),
    })?;
    let (order, code) = descr.split_at_checked(1).ok_or("its `.npy` header tells no type")?;
    let width = match code {
        "f2" => Width::Half,
        "f4" => Width::Single,
        "f8" => Width::Double,
        _ => return Err(format!("its type is `{}`; expected float16, float32 or float64", shown(descr))),
    };
    let shape = shape(header).ok_or("its `.npy` header tells no shape")?;
    if shape.iter().filter(|d| **d != 1).count() > 1 || shape.is_empty() {
        return Err(format!("its shape is {shape:?}"));
    }
    let size = [2, 4, 8][width as usize];
    let elements = shape.iter().try_fold(1u64, |product, d| product.checked_mul(*d));
    if elements.and_then(|n| n.checked_mul(size)) != Some(data.len() as u64) {
        return Err(format!("its shape is {shape:?}, and it holds {} bytes of elements", data.len()));
    }
    let big = match order {
        "<" => false,
        ">" => true,
        "=" | "|" => cfg!(target_endian = "big"),
        _ => return Err(format!("its byte order is `{}`", shown(order))),
    };
    Ok(data.chunks_exact(size as usize).map(|element| value(element, big)).collect())
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

fn shape(header: &str) -> Option<Vec<u64>> {
    let (inside, _) = behind(header, "shape")?.strip_prefix('(')?.split_once(')')?;
    let sizes = inside.split(',').map(str::trim).filter(|size| !size.is_empty());
    // Python 2 wrote long integers with an `L`
    sizes.map(|size| size.trim_end_matches('L').parse().ok()).collect()
}

fn value(element: &[u8], big: bool) -> f64 {
    let mut bytes = [0; 8];
    bytes[..element.len()].copy_from_slice(element);
    if big {
        bytes[..element.len()].reverse();
    }
    let [a, b, c, d, ..] = bytes;
    match element.len() {
        2 => half::f16::from_le_bytes([a, b]).to_f64(),
        4 => f64::from(f32::from_le_bytes([a, b, c, d])),
        _ => f64::from_le_bytes(bytes),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(20).collect()
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
            let data: Vec<u8> =
                (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            for shape in ["(3,)", "(1, 3)", "(3, 1)", "(3L,)"] {
                let found = vector(&file(&header(descr, shape), &data)).unwrap();
                assert_eq!(found, [1.5, -2.0, 0.25], "{descr} {shape}");
            }
        }
    }

    #[test]
    fn what_is_no_vector_is_told_in_words() {
        let data = [0u8; 16];
        for (descr, shape, words) in [
            ("<i8", "(2,)", "its type is `<i8`; expected float16, float32 or float64"),
            ("|O", "(2,)", "its type is `|O`"),
            ("<f8", "(1000000000000000000,)", "it holds 16 bytes"),
            ("<f8", "(4294967296, 4294967296, 4)", "its shape is"),
            ("<f8", "(4294967296, 1, 1)", "it holds 16 bytes"),
            ("<f8", "(3,)", "it holds 16 bytes"),
            ("<f8", "(2, 2)", "its shape is [2, 2]"),
            ("<f8", "()", "its shape is []"),
            ("<f8", "(-2,)", "tells no shape"),
            ("<f8", "(99999999999999999999999,)", "tells no shape"),
            ("<f8", "nothing", "tells no shape"),
            ("?f8", "(2,)", "byte order"),
            ("", "(2,)", "tells no type"),
            ("é", "(2,)", "tells no type"),
        ] {
            let message = vector(&file(&header(descr, shape), &data)).unwrap_err();
            assert!(message.contains(words), "{descr} {shape}: {message}");
        }
        let structured = "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }";
        assert!(vector(&file(structured, &data)).unwrap_err().contains("structured"));
        let whole = file(&header("<f8", "(2,)"), &data);
        for cut in 0..whole.len() {
            assert!(vector(&whole[..cut]).is_err(), "{cut}");
        }
        for major in [0, 4, 255] {
            let mut other = whole.clone();
            other[6] = major;
            assert!(vector(&other).is_err());
        }
    }
}
