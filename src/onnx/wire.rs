//! Protobuf wire primitives over positioned reads of a file.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

use super::error::OnnxError;
use super::external::read_exact_at;

/// Bytes fetched at a time while headers are walked. Small, because after each big tensor the next
/// header is elsewhere in the file.
const WINDOW: usize = 16 * 1024;

/// Longest header that is looked at in one piece: a key and a length.
const HEADER: usize = 20;

/// A file read through one small window that moves where it is asked to.
pub(super) struct Reader {
    file: File,
    path: PathBuf,
    len: u64,
    window: Vec<u8>,
    start: u64,
}

/// One field of a message: its number, and where its value lies.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub number: u32,
    /// First byte of the key.
    pub start: u64,
    pub value: Value,
    /// First byte after the field.
    pub end: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Varint,
    /// A length-delimited value: offset of the length varint, and the bytes.
    Bytes {
        prefix: u64,
        body: Range<u64>,
    },
    /// 32 or 64 bits.
    Fixed,
}

impl Reader {
    pub fn open(path: &Path) -> Result<Self, OnnxError> {
        let io = |source| OnnxError::Io { path: path.to_path_buf(), source };
        let file = crate::files::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        Ok(Self { file, path: path.to_path_buf(), len: meta.len(), window: Vec::new(), start: 0 })
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn truncated(&self, reason: impl Into<String>) -> OnnxError {
        OnnxError::Truncated { path: self.path.clone(), reason: reason.into() }
    }

    pub fn not_onnx(&self, reason: impl Into<String>) -> OnnxError {
        OnnxError::NotOnnx { path: self.path.clone(), reason: reason.into() }
    }

    /// Up to `want` bytes at `at`, fewer at the end of the file.
    fn peek(&mut self, at: u64, want: usize) -> Result<&[u8], OnnxError> {
        let available = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(want);
        let end = at + available as u64;
        if at < self.start || end > self.start + self.window.len() as u64 {
            let fill = usize::try_from(self.len - at).unwrap_or(usize::MAX).min(WINDOW.max(available));
            self.window.resize(fill, 0);
            read_exact_at(&self.file, &mut self.window, at)
                .map_err(|source| OnnxError::Io { path: self.path.clone(), source })?;
            self.start = at;
        }
        let from = usize::try_from(at - self.start).expect("the window starts at or before `at`");
        Ok(&self.window[from..from + available])
    }

    /// Appends the bytes of `range`, which the caller has bounded, to `out`. Small ones come from the window.
    pub fn copy(&mut self, range: Range<u64>, out: &mut Vec<u8>) -> Result<(), OnnxError> {
        let size =
            usize::try_from(range.end - range.start).map_err(|_| self.truncated("a field larger than memory"))?;
        if size <= WINDOW {
            out.extend_from_slice(self.peek(range.start, size)?);
            return Ok(());
        }
        let from = out.len();
        out.resize(from + size, 0);
        read_exact_at(&self.file, &mut out[from..], range.start)
            .map_err(|source| OnnxError::Io { path: self.path.clone(), source })
    }

    /// The field that starts at `at`, inside a message that ends at `end`.
    pub fn field(&mut self, at: u64, end: u64) -> Result<Field, OnnxError> {
        let (head_len, number, wire, extra) = {
            let head = self.peek(at, HEADER)?;
            let total = head.len();
            let mut buf = head;
            let Ok((number, wire)) = decode_key(&mut buf) else {
                return Err(self.not_onnx(format!("no protobuf field at byte {at}")));
            };
            let key_len = total - buf.len();
            let extra = match wire {
                WireType::Varint | WireType::LengthDelimited => match decode_varint(&mut buf) {
                    Ok(value) => Some((value, total - buf.len())),
                    Err(_) => None,
                },
                _ => Some((0, key_len)),
            };
            (key_len, number, wire, extra)
        };
        let Some((number_value, after)) = extra else {
            return Err(self.truncated(format!("the field at byte {at} has no complete value")));
        };
        let prefix = at + head_len as u64;
        let (value, field_end) = match wire {
            WireType::Varint => (Value::Varint, at + after as u64),
            WireType::LengthDelimited => {
                let body = at + after as u64;
                let stop = body.saturating_add(number_value);
                if stop > end {
                    let what = if end == self.len { "the file" } else { "its message" };
                    return Err(self.truncated(format!(
                        "field {number} at byte {at} needs {number_value} bytes, {what} has {} left",
                        end.saturating_sub(body)
                    )));
                }
                (Value::Bytes { prefix, body: body..stop }, stop)
            }
            WireType::ThirtyTwoBit => (Value::Fixed, prefix + 4),
            WireType::SixtyFourBit => (Value::Fixed, prefix + 8),
            WireType::StartGroup | WireType::EndGroup => {
                return Err(self.not_onnx(format!("a protobuf group at byte {at}")));
            }
        };
        if field_end > end {
            return Err(self.truncated(format!("field {number} at byte {at} passes the end of its message")));
        }
        Ok(Field { number, start: at, value, end: field_end })
    }
}

/// Appends a length-delimited field.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, body: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(body.len() as u64, out);
    out.extend_from_slice(body);
}

/// The varint form of `value`.
pub fn varint(value: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(10);
    encode_varint(value, &mut out);
    out
}

/// Decodes packed varints.
pub(crate) fn unpack_varints(mut bytes: &[u8]) -> Option<Vec<u64>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        out.push(decode_varint(&mut bytes).ok()?);
    }
    Some(out)
}
