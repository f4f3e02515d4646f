//! How floating-point numbers are stored in a file.

use safetensors::tensor::Dtype;

/// A type of floating-point number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

/// Which byte of a number comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// The lowest.
    Little,
    /// The highest.
    Big,
}

impl ByteOrder {
    /// The order of this machine.
    pub const NATIVE: Self = if cfg!(target_endian = "big") { Self::Big } else { Self::Little };
}

impl Float {
    /// The type of a safetensors file's numbers; `None` where they are no floating-point ones that are read.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            Dtype::F32 => Some(Self::F32),
            Dtype::F64 => Some(Self::F64),
            _ => None,
        }
    }

    /// Size of a number in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The numbers that stand in `bytes`, exactly; bytes at the end that make no whole number are left out.
    pub fn decode(self, bytes: &[u8], order: ByteOrder) -> Vec<f64> {
        bytes.chunks_exact(self.size()).map(|number| self.value(bits(number, order))).collect()
    }

    /// The number with these bits, of which as many count as the type has.
    fn value(self, bits: u64) -> f64 {
        match self {
            Self::F16 => half::f16::from_bits(bits as u16).to_f64(),
            Self::BF16 => half::bf16::from_bits(bits as u16).to_f64(),
            Self::F32 => f64::from(f32::from_bits(bits as u32)),
            Self::F64 => f64::from_bits(bits),
        }
    }
}

/// The unsigned integer that stands in at most 8 bytes.
fn bits(bytes: &[u8], order: ByteOrder) -> u64 {
    let join = |above: u64, byte: &u8| above << 8 | u64::from(*byte);
    match order {
        ByteOrder::Little => bytes.iter().rev().fold(0, join),
        ByteOrder::Big => bytes.iter().fold(0, join),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// python -c "import struct; print([struct.pack(f, -2.5).hex() for f in ('<e', '>e', '<f', '>f', '<d', '>d')])";
    /// the bfloat16 is the upper half of the float32.
    #[test]
    fn every_type_is_read_in_both_orders() {
        for (float, little) in [
            (Float::F16, &[0x00, 0xc1][..]),
            (Float::BF16, &[0x20, 0xc0]),
            (Float::F32, &[0x00, 0x00, 0x20, 0xc0]),
            (Float::F64, &[0, 0, 0, 0, 0, 0, 0x04, 0xc0]),
        ] {
            assert_eq!(float.size(), little.len());
            let big: Vec<u8> = little.iter().rev().copied().collect();
            assert_eq!(float.decode(little, ByteOrder::Little), [-2.5], "{float:?}");
            assert_eq!(float.decode(&big, ByteOrder::Big), [-2.5], "{float:?}");
            assert!(float.decode(&little[1..], ByteOrder::Little).is_empty());
        }
    }

    #[test]
    fn numbers_are_exact() {
        assert_eq!(Float::F32.decode(&0.1f32.to_le_bytes(), ByteOrder::Little), [f64::from(0.1f32)]);
        assert_eq!(Float::F64.decode(&0.1f64.to_be_bytes(), ByteOrder::Big), [0.1]);
        assert_eq!(Float::F16.decode(&[1, 0], ByteOrder::Little), [2f64.powi(-24)]);
        assert!(Float::BF16.decode(&[0xc0, 0x7f], ByteOrder::Little)[0].is_nan());
    }
}
