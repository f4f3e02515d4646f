//! Quantised matrices: how codes, scales and zero points lie in their tensors, and what they stand for.
//!
//! Every format is seen alike: one or several matrices of codes, the *slabs* (several for mixtures of experts). A slab
//! is `[rows, columns]`, with the codes of one row side by side. Each *block* of a slab has a scale and a zero point. A
//! code stands for a number, its level. An *ordinal* numbers the codes so that a larger ordinal is a larger level.
//! `MatMulNBits`, `MatMulBnb4`, `GatherBlockQuantized` and `QMoE` are operators of ONNX Runtime
//! (`docs/ContribOperators.md` there); `DequantizeLinear` and `MatMulInteger` are of the ONNX specification.

use super::ops::WeightLayout;
use super::tensor::TensorId;

/// Levels of `MatMulBnb4` with `quant_type` 1 (NF4: Dettmers et al., *QLoRA*, 2023, appendix E), by code.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Levels of `MatMulBnb4` with `quant_type` 0 (FP4: sign, two exponent bits, one mantissa bit), by code.
pub const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// What a stored code stands for, before the scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// An unsigned number.
    Unsigned,
    /// A signed number in two's complement.
    Signed,
    /// [`NF4`].
    Nf4,
    /// [`FP4`].
    Fp4,
}

/// Which entries share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blocks {
    /// The entries of one rectangle. Rectangles at the edges of the slab may be smaller.
    Grid {
        /// Rows of a rectangle.
        rows: u64,
        /// Columns of a rectangle.
        columns: u64,
    },
    /// So many entries that follow one another, counted row after row. A block may begin in one row and end in the
    /// next.
    Flat(u64),
}

/// Zero points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Zeros {
    /// One zero point for all blocks, as an ordinal ([`Quantised::ordinal`]).
    Implied(u16),
    /// A code for each scale, with as many bits as the weight's codes.
    Codes {
        /// The tensor.
        tensor: TensorId,
        /// Whether each row of scales begins at a whole byte.
        padded: bool,
    },
    /// A float for each scale (HQQ).
    Floats(TensorId),
}

/// How a weight is quantised. The codes are in the tensor that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quantised {
    /// The operator that reads it, for words about it.
    pub operator: &'static str,
    /// How that operator stores weights.
    pub layout: WeightLayout,
    /// Number of bits of a code: 2, 4 or 8.
    pub bits: u8,
    /// What codes stand for.
    pub coding: Coding,
    /// Whether the first code of a byte is in its high bits.
    pub high_first: bool,
    /// Number of slabs, which lie one behind the other in the tensor: one for each expert, else 1.
    pub slabs: u64,
    /// Rows of a slab.
    pub rows: u64,
    /// Columns of a slab, without padding.
    pub columns: u64,
    /// Bytes of a row of codes, with its padding.
    pub row_bytes: u64,
    /// Whether the axis of the rows is `d_model`. Otherwise that of the columns is.
    pub d_model_first: bool,
    /// Which entries share a scale.
    pub blocks: Blocks,
    /// The tensor with a scale for each block, row by row: float32, float16 or bfloat16.
    pub scales: TensorId,
    /// Zero points.
    pub zeros: Zeros,
    /// The tensor `g_idx`, int32 `[columns]`: the block of each column. `None` where columns lie in the order of
    /// blocks.
    pub index: Option<TensorId>,
    /// Whether nothing but this weight reads the scales. Only then may a scale grow where an edited value lies beyond
    /// the last level.
    pub own_scales: bool,
}

impl Quantised {
    /// `[rows, columns]`, or `[slabs, rows, columns]` of several.
    pub fn shape(&self) -> Vec<u64> {
        let matrix = [self.rows, self.columns];
        if self.slabs == 1 { matrix.to_vec() } else { [[self.slabs].as_slice(), &matrix].concat() }
    }

    /// The axis of [`Self::shape`] that is `d_model`.
    pub fn axis(&self) -> usize {
        usize::from(self.slabs > 1) + usize::from(!self.d_model_first)
    }

    /// `d_model`.
    pub fn width(&self) -> u64 {
        if self.d_model_first { self.rows } else { self.columns }
    }

    /// Bytes of all codes.
    pub fn bytes(&self) -> u64 {
        self.slabs * self.rows * self.row_bytes
    }

    /// The blocks of one slab: the number of rows of blocks, and the number of blocks in each row.
    pub fn scale_shape(&self) -> (u64, u64) {
        match self.blocks {
            Blocks::Grid { rows, columns } => (self.rows.div_ceil(rows), self.columns.div_ceil(columns)),
            Blocks::Flat(run) => (1, (self.rows * self.columns).div_ceil(run)),
        }
    }

    /// Scales of one slab.
    pub fn scales_a_slab(&self) -> u64 {
        let (rows, columns) = self.scale_shape();
        rows * columns
    }

    /// Number of the scale of an entry, within its slab.
    pub fn scale_of(&self, row: u64, column: u64) -> u64 {
        match self.blocks {
            Blocks::Grid { rows, columns } => row / rows * self.columns.div_ceil(columns) + column / columns,
            Blocks::Flat(run) => (row * self.columns + column) / run,
        }
    }

    /// The largest ordinal.
    pub fn highest(&self) -> u16 {
        (1u16 << self.bits) - 1
    }

    /// The ordinal of a stored code. A larger ordinal stands for a larger level.
    pub fn ordinal(&self, code: u8) -> u8 {
        match self.coding {
            Coding::Unsigned | Coding::Nf4 => code,
            Coding::Signed => code ^ (1 << (self.bits - 1)),
            Coding::Fp4 => ORDINAL_OF_FP4[usize::from(code & 15)],
        }
    }

    /// The stored code of an ordinal.
    pub fn code(&self, ordinal: u8) -> u8 {
        match self.coding {
            Coding::Unsigned | Coding::Nf4 => ordinal,
            Coding::Signed => ordinal ^ (1 << (self.bits - 1)),
            Coding::Fp4 => FP4_OF_ORDINAL[usize::from(ordinal & 15)],
        }
    }

    /// The levels of a table format by ordinal, in rising order. `None` for formats whose level is `ordinal - zero`.
    pub fn table(&self) -> Option<[f32; 16]> {
        match self.coding {
            Coding::Nf4 => Some(NF4),
            Coding::Fp4 => Some(FP4_OF_ORDINAL.map(|code| FP4[usize::from(code)])),
            _ => None,
        }
    }

    /// The format in words for people: `4-bit MatMulNBits, block 32`.
    pub fn words(&self) -> String {
        let kind = match self.coding {
            Coding::Nf4 => "nf4".to_string(),
            Coding::Fp4 => "fp4".to_string(),
            _ => format!("{}-bit", self.bits),
        };
        let block = match self.blocks {
            Blocks::Flat(run) => format!("block {run}"),
            Blocks::Grid { rows, columns } if rows >= self.rows && columns >= self.columns => "per tensor".into(),
            Blocks::Grid { rows: 1, columns } if columns >= self.columns => "per row".into(),
            Blocks::Grid { rows, columns: 1 } if rows >= self.rows => "per channel".into(),
            Blocks::Grid { rows, columns } => format!("block {}", rows.max(columns)),
        };
        format!("{kind} {}, {block}", self.operator)
    }

    /// Unpacks the codes of a row that starts at a whole byte into ordinals.
    pub fn unpack(&self, bytes: &[u8], ordinals: &mut [u8]) {
        match (self.bits, self.high_first) {
            (8, _) => ordinals.copy_from_slice(&bytes[..ordinals.len()]),
            (4, false) if ordinals.len().is_multiple_of(2) => {
                for (pair, byte) in ordinals.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    *pair = [byte & 15, byte >> 4];
                }
            }
            (4, false) => {
                for (pair, byte) in ordinals.chunks_mut(2).zip(bytes) {
                    pair[0] = byte & 15;
                    if let Some(second) = pair.get_mut(1) {
                        *second = byte >> 4;
                    }
                }
            }
            (4, true) => {
                for (pair, byte) in ordinals.chunks_mut(2).zip(bytes) {
                    pair[0] = byte >> 4;
                    if let Some(second) = pair.get_mut(1) {
                        *second = byte & 15;
                    }
                }
            }
            _ => {
                for (four, byte) in ordinals.chunks_mut(4).zip(bytes) {
                    for (at, code) in four.iter_mut().enumerate() {
                        *code = (byte >> (2 * at)) & 3;
                    }
                }
            }
        }
        match self.coding {
            Coding::Unsigned | Coding::Nf4 => {}
            _ => ordinals.iter_mut().for_each(|code| *code = self.ordinal(*code)),
        }
    }

    /// Packs ordinals into the bytes of a row; what lies past them in `bytes` stays.
    pub fn pack(&self, ordinals: &[u8], bytes: &mut [u8]) {
        let a_byte = usize::from(8 / self.bits);
        let mask = self.highest() as u8;
        if (self.bits, self.high_first, self.coding) == (4, false, Coding::Unsigned) && ordinals.len().is_multiple_of(2)
        {
            for (pair, byte) in ordinals.as_chunks::<2>().0.iter().zip(bytes) {
                *byte = pair[0] | pair[1] << 4;
            }
            return;
        }
        for (codes, byte) in ordinals.chunks(a_byte).zip(bytes) {
            for (at, &ordinal) in codes.iter().enumerate() {
                let place = if self.high_first { a_byte - 1 - at } else { at };
                let shift = place * usize::from(self.bits);
                *byte = (*byte & !(mask << shift)) | (self.code(ordinal) << shift);
            }
        }
    }
}

/// The ordinals of the sixteen codes of [`FP4`], by code. `-0` comes before `0`.
const ORDINAL_OF_FP4: [u8; 16] = [8, 9, 14, 15, 12, 13, 10, 11, 7, 6, 1, 0, 3, 2, 5, 4];

/// The codes of [`FP4`] by ordinal.
const FP4_OF_ORDINAL: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 8, 0, 1, 6, 7, 4, 5, 2, 3];

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bits: u8, coding: Coding, high_first: bool) -> Quantised {
        Quantised {
            operator: "MatMulNBits",
            layout: WeightLayout::NBits,
            bits,
            coding,
            high_first,
            slabs: 1,
            rows: 1,
            columns: 11,
            row_bytes: 11,
            d_model_first: true,
            blocks: Blocks::Flat(4),
            scales: TensorId(0),
            zeros: Zeros::Implied(8),
            index: None,
            own_scales: true,
        }
    }

    #[test]
    fn codes_survive_a_round_trip() {
        for bits in [2u8, 4, 8] {
            for coding in [Coding::Unsigned, Coding::Signed, Coding::Nf4, Coding::Fp4] {
                for high_first in [false, true] {
                    if (matches!(coding, Coding::Nf4 | Coding::Fp4) || high_first) && bits != 4 {
                        continue;
                    }
                    let format = format(bits, coding, high_first);
                    let bytes: Vec<u8> = (0..11u8).map(|i| i.wrapping_mul(89).wrapping_add(37)).collect();
                    let (mut ordinals, mut again) = (vec![0; 11], bytes.clone());
                    format.unpack(&bytes, &mut ordinals);
                    assert!(ordinals.iter().all(|&o| u16::from(o) <= format.highest()));
                    format.pack(&ordinals, &mut again);
                    assert_eq!(again, bytes, "{bits} {coding:?} {high_first}");
                }
            }
        }
    }

    /// Codes in the order in which the operators' specifications read them, and their bytes, written by hand.
    #[test]
    fn packing_is_that_of_the_specifications() {
        let (signed, unsigned) = (Coding::Signed, Coding::Unsigned);
        // (bits, coding, first code in the high bits, bytes, codes as numbers)
        type Case = (u8, Coding, bool, &'static [u8], &'static [i16]);
        let cases: [Case; 8] = [
            // MatMulNBits, GatherBlockQuantized, QMoE: the first code in the low bits
            (2, unsigned, false, &[0b11_10_01_00, 0b00_01_10_11], &[0, 1, 2, 3, 3, 2, 1, 0]),
            (4, unsigned, false, &[0x21, 0xf8], &[1, 2, 8, 15]),
            (8, unsigned, false, &[0, 128, 255], &[0, 128, 255]),
            // ONNX tensors of INT2, INT4 and INT8: the same, in two's complement
            (2, signed, false, &[0b11_10_01_00], &[0, 1, -2, -1]),
            (4, signed, false, &[0x8f, 0x70], &[-1, -8, 0, 7]),
            (8, signed, false, &[0x80, 0xff, 0, 0x7f], &[-128, -1, 0, 127]),
            // MatMulBnb4: the first code in the high bits
            (4, Coding::Nf4, true, &[0x12, 0x8f], &[1, 2, 8, 15]),
            (4, Coding::Fp4, true, &[0xb3, 0x08], &[11, 3, 0, 8]),
        ];
        for (bits, coding, high_first, bytes, codes) in cases {
            let format = format(bits, coding, high_first);
            let mut ordinals = vec![0u8; codes.len()];
            format.unpack(bytes, &mut ordinals);
            let lowest = if coding == signed { -(1i16 << (bits - 1)) } else { 0 };
            for (ordinal, code) in ordinals.iter().zip(codes) {
                match format.table() {
                    Some(levels) => {
                        let book = if coding == Coding::Nf4 { &NF4 } else { &FP4 };
                        assert_eq!(levels[usize::from(*ordinal)], book[*code as usize], "{coding:?}: {code}");
                    }
                    None => assert_eq!(i16::from(*ordinal) + lowest, *code, "{bits} bits, {coding:?}"),
                }
            }
            let mut again = vec![0u8; bytes.len()];
            format.pack(&ordinals, &mut again);
            assert_eq!(again, bytes, "{bits} bits, {coding:?}");
        }
        // what lies behind the last code of a row stays
        let mut row = [0xee, 0xee];
        format(4, unsigned, false).pack(&[1, 2, 3], &mut row);
        assert_eq!(row, [0x21, 0xe3]);
        let mut row = [0xee, 0xee];
        format(4, Coding::Nf4, true).pack(&[1, 2, 3], &mut row);
        assert_eq!(row, [0x12, 0x3e]);
    }

    #[test]
    fn ordinals_rise_with_levels() {
        for coding in [Coding::Nf4, Coding::Fp4] {
            let format = format(4, coding, true);
            let table = format.table().unwrap();
            assert!(table.windows(2).all(|pair| pair[0] <= pair[1]), "{table:?}");
            for code in 0..16u8 {
                assert_eq!(format.code(format.ordinal(code)), code);
            }
        }
        let signed = format(4, Coding::Signed, false);
        assert_eq!([8u8, 15, 0, 7].map(|code| signed.ordinal(code)), [0, 7, 8, 15]);
    }
}
