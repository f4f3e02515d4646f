//! Hashes of what is edited with.

use sha2::{Digest, Sha256};

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// SHA-256 of a vector as little-endian float32, in lower-case hexadecimal.
pub fn sha256(vector: &[f64]) -> String {
    let singles: Vec<u8> = vector.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
    hex(&Sha256::digest(&singles))
}
