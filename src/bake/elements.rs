//! The stored bytes of one tensor, wherever they are.

use std::fs::File;
use std::path::PathBuf;

use super::error::BakeError;
use super::tensor::BLOCK;
use crate::files;
use crate::onnx::external::read_exact_at;
use crate::onnx::graph::varint_halves;
use crate::onnx::wire::unpack_varints;
use crate::onnx::{Model, Storage, TensorRef};

/// A tensor's stored bytes, read at offsets within it; varint-coded halves as plain ones.
pub(super) enum Elements {
    File { file: File, path: PathBuf, offset: u64, length: u64 },
    Memory(Vec<u8>),
}

impl Elements {
    /// Opens the tensor's bytes. With `plain`, values that are stored as varints are decoded to plain little-endian
    /// ones; without it, they are taken as they are stored. `None` where the tensor has no stored bytes.
    pub(super) fn open(model: &Model, tensor: &TensorRef, plain: bool) -> Result<Option<Self>, BakeError> {
        let (path, offset, length) = match &tensor.storage {
            Storage::Embedded { offset, length } | Storage::Varints { offset, length } => {
                (&model.path, *offset, *length)
            }
            Storage::External { path, offset, length, .. } => (path, *offset, *length),
            Storage::Opaque => return Ok(None),
        };
        let file = files::open(path).map_err(BakeError::read(path))?;
        let found = Self::File { file, path: path.clone(), offset, length };
        if plain && matches!(tensor.storage, Storage::Varints { .. }) {
            let mut coded = vec![0u8; usize::try_from(length).expect("a decoded tensor fits in memory")];
            found.read(&mut coded, 0)?;
            let bad = || BakeError::read(path)(std::io::ErrorKind::InvalidData.into());
            let two_bytes = tensor.dtype.size() == Some(2);
            let bytes: Vec<u8> = if two_bytes {
                varint_halves(&coded).ok_or_else(bad)?.iter().flat_map(|half| half.to_le_bytes()).collect()
            } else {
                // integers of 8 bits and fewer: a byte each, which may hold several codes
                unpack_varints(&coded).ok_or_else(bad)?.iter().map(|value| *value as u8).collect()
            };
            if tensor.dtype.bytes_for(tensor.elements()) != Some(bytes.len() as u64) {
                return Err(bad());
            }
            return Ok(Some(Self::Memory(bytes)));
        }
        Ok(Some(found))
    }

    pub(super) fn read(&self, block: &mut [u8], at: u64) -> Result<(), BakeError> {
        match self {
            Self::File { file, path, offset, .. } => {
                read_exact_at(file, block, offset + at).map_err(BakeError::read(path))
            }
            Self::Memory(bytes) => {
                let at = usize::try_from(at).expect("it is in memory");
                block.copy_from_slice(&bytes[at..at + block.len()]);
                Ok(())
            }
        }
    }

    pub(super) fn length(&self) -> u64 {
        match self {
            Self::File { length, .. } => *length,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    pub(super) fn equals(&self, other: &Self) -> Result<bool, BakeError> {
        if self.length() != other.length() {
            return Ok(false);
        }
        let block = usize::try_from(self.length()).map_or(BLOCK, |length| length.min(BLOCK));
        let (mut a, mut b) = (vec![0u8; block], vec![0u8; block]);
        let mut at = 0;
        while at < self.length() {
            let size = usize::try_from(self.length() - at).map_or(block, |left| left.min(block));
            self.read(&mut a[..size], at)?;
            other.read(&mut b[..size], at)?;
            if a[..size] != b[..size] {
                return Ok(false);
            }
            at += size as u64;
        }
        Ok(true)
    }
}
