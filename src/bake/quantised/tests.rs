//! The edit of every layout on matrices made here, in panels of a few vectors, against plain arithmetic in float64 that
//! addresses each code and scale by itself.

use prost::Message;

use super::*;
use crate::edit::{Ablation, Direction};
use crate::linalg::norm;
use crate::onnx::TensorId;
use crate::onnx::ops::WeightLayout;
use crate::onnx::proto::{GraphProto, ModelProto, TensorProto};
use crate::onnx::quant::{Coding, FP4, NF4};

/// Numbers in -1..1 that are always the same.
fn noise(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len).into_iter().map(|v| ((v + 1.0) * 127.99) as u8).collect()
}

const SCALES: TensorId = TensorId(0);
const ZEROS: TensorId = TensorId(1);
const INDEX: TensorId = TensorId(2);

/// A layout with its numbers: codes, and a file with the scales, zero points and block numbers.
struct Made {
    q: Quantised,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
    index: Vec<u32>,
    _folder: tempfile::TempDir,
    model: Model,
}

impl Made {
    fn new(q: Quantised) -> Self {
        let count = (q.slabs * q.scales_a_slab()) as usize;
        let scales: Vec<f32> = noise(3, count).into_iter().map(|v| (0.05 + 0.01 * v) as f32).collect();
        let (block_rows, a_row) = q.scale_shape();
        let zeros = match q.zeros {
            Zeros::Codes { padded: true, .. } => {
                (q.slabs * block_rows * a_row.div_ceil(u64::from(8 / q.bits))) as usize
            }
            Zeros::Codes { .. } => count.div_ceil(usize::from(8 / q.bits)),
            _ => 1,
        };
        // around the middle: where all levels lie on one side of zero no scale reaches a value on the other
        let (quarter, middle) = (1i32 << (q.bits - 2), 1i32 << (q.bits - 1));
        let middle = if q.coding == Coding::Signed { 0 } else { middle };
        let code = |v: f64| ((middle + (v * f64::from(quarter)).floor() as i32) as u8) & q.highest() as u8;
        let numbers = noise(4, zeros * usize::from(8 / q.bits));
        let packed = numbers.chunks(usize::from(8 / q.bits)).map(|codes| {
            codes.iter().rev().fold(0u8, |byte, v| byte.checked_shl(q.bits.into()).unwrap_or(0) | code(*v))
        });
        let zeros: Vec<u8> = packed.collect();
        let index: Vec<u32> = (0..q.columns).map(|column| (column * 7 % a_row) as u32).collect();
        let tensor = |name: &str, dtype: DataType, len: usize, raw: Vec<u8>| TensorProto {
            name: Some(name.into()),
            dims: vec![len as i64],
            data_type: Some(dtype.0),
            raw_data: Some(raw),
            ..Default::default()
        };
        let raw_scales = scales.iter().flat_map(|v| v.to_le_bytes()).collect();
        let raw_index = index.iter().flat_map(|v| v.to_le_bytes()).collect();
        let initializer = vec![
            tensor("scales", DataType::FLOAT, count, raw_scales),
            tensor("zeros", DataType::UINT8, zeros.len(), zeros.clone()),
            tensor("index", DataType::INT32, index.len(), raw_index),
        ];
        let graph = GraphProto { initializer, ..Default::default() };
        let proto = ModelProto { ir_version: Some(8), graph: Some(graph), ..Default::default() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, proto.encode_to_vec()).unwrap();
        let model = Model::open(&path).unwrap();
        assert_eq!(model.tensor(INDEX).name, "index");
        Self { q, codes: bytes(5, q.bytes() as usize), scales, zeros, index, _folder: folder, model }
    }

    /// Code number `at` of a run of codes.
    fn code(&self, bytes: &[u8], at: usize) -> u8 {
        let (bits, a_byte) = (usize::from(self.q.bits), usize::from(8 / self.q.bits));
        let place = if self.q.high_first { a_byte - 1 - at % a_byte } else { at % a_byte };
        (bytes[at / a_byte] >> (place * bits)) & ((1u16 << bits) - 1) as u8
    }

    /// Number of the scale of an entry, over all slabs.
    fn scale_of(&self, slab: u64, row: u64, column: u64) -> usize {
        let q = &self.q;
        let within = match q.blocks {
            Blocks::Flat(run) => (row * q.columns + column) / run,
            Blocks::Grid { rows, columns } => {
                let block = if q.index.is_some() { u64::from(self.index[column as usize]) } else { column / columns };
                row / rows * q.columns.div_ceil(columns) + block
            }
        };
        (slab * q.scales_a_slab() + within) as usize
    }

    fn level(&self, code: u8, scale: usize) -> f64 {
        let signed = |code: u8| f64::from(((code << (8 - self.q.bits)) as i8) >> (8 - self.q.bits));
        let number = |code: u8| if self.q.coding == Coding::Signed { signed(code) } else { f64::from(code) };
        match self.q.coding {
            Coding::Nf4 => return f64::from(NF4[usize::from(code)]),
            Coding::Fp4 => return f64::from(FP4[usize::from(code)]),
            _ => {}
        }
        let a_row = self.q.scale_shape().1 as usize;
        let zero = match self.q.zeros {
            // an ordinal: the middle of signed codes is 0
            Zeros::Implied(ordinal) if self.q.coding == Coding::Signed => {
                f64::from(ordinal) - f64::from(1u16 << (self.q.bits - 1))
            }
            Zeros::Implied(ordinal) => f64::from(ordinal),
            Zeros::Codes { padded: true, .. } => {
                let bytes = a_row.div_ceil(usize::from(8 / self.q.bits));
                number(self.code(&self.zeros[scale / a_row * bytes..], scale % a_row))
            }
            _ => number(self.code(&self.zeros, scale)),
        };
        number(code) - zero
    }

    /// The vectors of `d_model` values that codes and scales stand for, with the scale of each entry.
    fn vectors(&self, codes: &[u8], scales: &[f32]) -> Vec<Vec<(f64, f64)>> {
        let q = &self.q;
        let mut out = Vec::new();
        for slab in 0..q.slabs {
            let entry = |row: u64, column: u64| {
                let start = (slab * q.rows + row) * q.row_bytes;
                let code = self.code(&codes[start as usize..], column as usize);
                let scale = self.scale_of(slab, row, column);
                (self.level(code, scale) * f64::from(scales[scale]), f64::from(scales[scale].abs()))
            };
            match q.d_model_first {
                true => {
                    out.extend((0..q.columns).map(|c| (0..q.rows).map(|r| entry(r, c)).collect()));
                }
                false => out.extend((0..q.rows).map(|r| (0..q.columns).map(|c| entry(r, c)).collect())),
            }
        }
        out
    }

    /// The codes that are padding, with the bytes they lie in.
    fn padding(&self, codes: &[u8]) -> Vec<u8> {
        let a_byte = u64::from(8 / self.q.bits);
        let rows = codes.chunks(self.q.row_bytes as usize);
        rows.flat_map(|row| (self.q.columns..self.q.row_bytes * a_byte).map(|at| self.code(row, at as usize))).collect()
    }

    /// Edits it, scales too where `grow`; the new codes and scales, and what was told.
    fn edited(&self, directions: &[&[f64]], grow: bool) -> (Vec<u8>, Vec<f32>, Rounded) {
        let tables = Tables::open(&self.model, &self.q, "it").unwrap();
        // every byte of the codes is written, padding too
        let mut codes: Vec<u8> = self.codes.iter().map(|byte| !byte).collect();
        let mut scales = self.scales.clone();
        let read = |block: &mut [u8], at: u64| {
            block.copy_from_slice(&self.codes[at as usize..at as usize + block.len()]);
            Ok(())
        };
        let mut write = |block: &[u8], at: u64| {
            codes[at as usize..at as usize + block.len()].copy_from_slice(block);
            Ok(())
        };
        let mut write_scales = |block: &[u8], at: u64| {
            for (scale, bytes) in scales[at as usize / 4..].iter_mut().zip(block.as_chunks::<4>().0) {
                *scale = f32::from_le_bytes(*bytes);
            }
            Ok(())
        };
        let told =
            edit("it", &self.q, directions, &tables, &read, &mut write, grow.then_some(&mut write_scales)).unwrap();
        (codes, scales, told)
    }
}

/// A direction; one entry of it may stand out, so that values go far beyond their grid.
fn unit(d: u64, outlier: Option<f64>) -> Vec<f64> {
    let mut r = noise(11, d as usize);
    r[3] = outlier.unwrap_or(r[3]);
    let n = norm(&r);
    r.iter().map(|v| v / n).collect()
}

/// `MatMulNBits` of `[96, columns]`: more vectors than fit a panel of the tests.
fn nbits(bits: u8, columns: u64, block: u64) -> Quantised {
    let blocks = columns.div_ceil(block);
    Quantised {
        operator: "MatMulNBits",
        layout: WeightLayout::NBits,
        bits,
        coding: Coding::Unsigned,
        high_first: false,
        slabs: 1,
        rows: 96,
        columns,
        row_bytes: blocks * block * u64::from(bits) / 8,
        d_model_first: true,
        blocks: Blocks::Grid { rows: 1, columns: block },
        scales: SCALES,
        zeros: Zeros::Implied(1 << (bits - 1)),
        index: None,
        own_scales: true,
    }
}

fn layouts() -> Vec<(&'static str, Quantised)> {
    let padded = Zeros::Codes { tensor: ZEROS, padded: true };
    let plain = Zeros::Codes { tensor: ZEROS, padded: false };
    let bnb = |coding, columns, blocks| Quantised {
        operator: "MatMulBnb4",
        layout: WeightLayout::Bnb4,
        coding,
        high_first: true,
        row_bytes: columns / 2,
        blocks,
        zeros: Zeros::Implied(0),
        ..nbits(4, columns, 16)
    };
    let linear = |bits: u8, coding, blocks, zeros| Quantised {
        operator: "DequantizeLinear",
        layout: WeightLayout::Linear,
        coding,
        rows: 37,
        columns: 96,
        row_bytes: 96 * u64::from(bits) / 8,
        d_model_first: false,
        blocks,
        zeros,
        ..nbits(bits, 96, 16)
    };
    let grid = |rows, columns| Blocks::Grid { rows, columns };
    vec![
        // 37 columns of blocks of 16: padded to 48, three zero points a row
        ("nbits 2", nbits(2, 37, 16)),
        ("nbits 4", nbits(4, 37, 16)),
        ("nbits 8", nbits(8, 37, 16)),
        ("nbits 4, blocks below a panel", nbits(4, 37, 4)),
        ("nbits 2, zero points", Quantised { zeros: padded, ..nbits(2, 37, 8) }),
        ("nbits 4, zero points", Quantised { zeros: padded, ..nbits(4, 37, 16) }),
        ("nbits 4, per row", nbits(4, 37, 64)),
        ("nbits 4, g_idx", Quantised { index: Some(INDEX), ..nbits(4, 37, 16) }),
        ("nbits 8, g_idx", Quantised { index: Some(INDEX), ..nbits(8, 37, 16) }),
        ("experts", Quantised { slabs: 3, operator: "QMoE", ..nbits(4, 32, 16) }),
        ("experts of 8 bits, per row", Quantised { slabs: 3, operator: "QMoE", ..nbits(8, 32, 32) }),
        ("nf4", bnb(Coding::Nf4, 48, grid(1, 16))),
        ("fp4", bnb(Coding::Fp4, 48, grid(1, 16))),
        ("nf4, blocks that straddle rows", bnb(Coding::Nf4, 38, Blocks::Flat(16))),
        ("fp4, blocks that straddle rows", bnb(Coding::Fp4, 38, Blocks::Flat(64))),
        ("int8 per channel of the rows", linear(8, Coding::Signed, grid(1, 96), Zeros::Implied(128))),
        ("int8 per channel of d_model", linear(8, Coding::Signed, grid(37, 1), Zeros::Implied(128))),
        ("uint8 per tensor", linear(8, Coding::Unsigned, grid(37, 96), plain)),
        ("int4 blocks along the rows", linear(4, Coding::Signed, grid(16, 1), plain)),
        ("uint4 blocks along d_model", linear(4, Coding::Unsigned, grid(1, 32), plain)),
        ("int2 blocks along d_model", linear(2, Coding::Signed, grid(1, 32), Zeros::Implied(2))),
    ]
}

/// Orthonormal directions, `[count, d]`.
fn directions(count: u64, d: u64) -> Vec<Vec<f64>> {
    let raw = (0..count).map(|index| Direction::new(noise(11 + index, d as usize)).unwrap()).collect();
    Ablation::of_span(raw).unwrap().vectors().iter().map(|one| one.unit().to_vec()).collect()
}

#[test]
fn every_layout_is_edited_within_a_level_and_without_a_leak() {
    for ((name, q), count) in layouts().into_iter().flat_map(|layout| [1, 2, 4].map(|count| (layout, count))) {
        let name = format!("{name}, {count} directions");
        let made = Made::new(q);
        let directions = directions(count, q.width());
        let (codes, scales, told) = made.edited(&directions.iter().map(Vec::as_slice).collect::<Vec<_>>(), true);
        assert_eq!(made.padding(&codes), made.padding(&made.codes), "{name}: padding");
        let components = |v: &[(f64, f64)]| -> Vec<f64> {
            directions.iter().map(|r| v.iter().zip(r).map(|((x, _), r)| x * r).sum()).collect()
        };
        let (mut before, mut after, mut error, mut levels) = (0.0, 0.0, 0.0, 0.0f64);
        for (was, is) in made.vectors(&made.codes, &made.scales).iter().zip(&made.vectors(&codes, &scales)) {
            let c = components(was);
            before += c.iter().map(|c| c * c).sum::<f64>();
            after += components(is).iter().map(|c| c * c).sum::<f64>();
            for (at, ((w, _), (x, step))) in was.iter().zip(is).enumerate() {
                let off = x - (w - directions.iter().zip(&c).map(|(r, c)| r[at] * c).sum::<f64>());
                error += off * off;
                levels = levels.max(off.abs() / step);
            }
        }
        let near = |told: f64, found: f64| (told - found).abs() <= 1e-3 * found.max(1e-9 * before);
        assert!(near(told.tally.leak_before, before), "{name}: {before} is told as {}", told.tally.leak_before);
        assert!(near(told.tally.error_after, error), "{name}: {error} is told as {}", told.tally.error_after);
        // 96 entries of few bits have little to spend
        let bound: f64 = match (q.bits, count) {
            (8, _) | (4, 1) => 1e-3,
            _ => 1e-2,
        };
        assert!(after <= bound.powi(2) * before, "{name}: leak {} of {}", after.sqrt(), before.sqrt());
        assert!((told.tally.leak_after - after).abs() <= 1e-6 * before, "{name}: told as {}", told.tally.leak_after);
        // levels of a table are further apart than its scale says: nf4's by up to 0.304, fp4's by up to 1/3
        let spacing = if q.table().is_some() { 1.0 / 3.0 } else { 1.0 };
        assert!(levels <= 1.001 * spacing, "{name}: {levels} levels off");
        let grown = scales.iter().zip(&made.scales).filter(|(a, b)| a != b).count() as u64;
        assert_eq!(grown, told.grown, "{name}: scales that grew");
        assert!(scales.iter().zip(&made.scales).all(|(a, b)| a >= b), "{name}: a scale shrank");
    }
}

#[test]
fn scales_grow_only_where_values_lie_beyond_the_grid_and_only_if_they_may() {
    let made = Made::new(nbits(8, 37, 16));
    let r = unit(96, Some(4.0));
    let (_, scales, told) = made.edited(&[&r], true);
    let blocks: Vec<usize> = (0..scales.len()).filter(|&at| scales[at] != made.scales[at]).collect();
    assert!(!blocks.is_empty() && blocks.len() < scales.len(), "{} of {} grew", blocks.len(), scales.len());
    // of each scale: how far its furthest value lies beyond the grid, in levels
    let mut beyond = vec![f64::NEG_INFINITY; scales.len()];
    for (column, was) in made.vectors(&made.codes, &made.scales).iter().enumerate() {
        let c: f64 = was.iter().zip(&r).map(|((x, _), r)| x * r).sum();
        for (row, ((w, step), r)) in was.iter().zip(&r).enumerate() {
            let y = (w - r * c) / step;
            let scale = made.scale_of(0, row as u64, column as u64);
            beyond[scale] = beyond[scale].max((y - 127.0).max(-128.0 - y));
        }
    }
    for (at, beyond) in beyond.iter().enumerate() {
        assert_eq!(scales[at] != made.scales[at], *beyond > 0.99, "scale {at}: {beyond} levels beyond");
    }
    assert!(told.tally.max_levels <= 1.001);

    let (_, same, told) = made.edited(&[&r], false);
    assert_eq!((same, told.grown), (made.scales.clone(), 0));
    assert!(told.tally.max_levels > 1.001, "nothing lay beyond the grid: {}", told.tally.max_levels);
}

#[test]
fn panels_are_cut_where_scales_and_bytes_end() {
    let r = unit(96, None);
    let units = [Unit::new(&r)];
    for (name, q) in layouts() {
        let view = View::new(&q, &units);
        let panels = view.panels();
        assert!(panels.len() > 1, "{name}: one panel holds all");
        let mut seen = 0;
        for panel in &panels {
            seen += panel.vectors.end - panel.vectors.start;
            assert_eq!(panel.vectors.start % u64::from(8 / q.bits), 0, "{name}: a panel begins within a byte");
            if view.scales_are_local() {
                assert_eq!(panel.vectors.start % view.step(), 0, "{name}: two panels share a scale");
            }
        }
        assert_eq!(seen, q.slabs * view.vectors(), "{name}");
    }
    let local = |q: &Quantised| View::new(q, &units).scales_are_local();
    assert!(local(&nbits(4, 37, 4)) && !local(&nbits(4, 37, 16)));
}

#[test]
fn stored_scales_never_fall_short_of_what_was_wanted() {
    let made = Made::new(nbits(4, 37, 16));
    for dtype in [DataType::FLOAT, DataType::FLOAT16, DataType::BFLOAT16] {
        let tables = Tables { scale_dtype: dtype, ..Tables::open(&made.model, &made.q, "it").unwrap() };
        assert!(tables.encode(&[], &mut []).is_empty());
        let mut scales = made.scales.clone();
        tables.encode(&made.scales, &mut scales);
        let sign = |at: usize| if at.is_multiple_of(3) { -1.0 } else { 1.0 };
        let scales: Vec<f32> = scales.iter().enumerate().map(|(at, s)| s * sign(at)).collect();
        let wanted: Vec<f32> = scales.iter().enumerate().map(|(at, s)| s * (1.0 + (at % 5) as f32 * 1e-3)).collect();
        let mut stored = wanted.clone();
        assert_eq!(tables.encode(&scales, &mut stored).len(), scales.len() * kernel::width(dtype));
        for ((scale, wanted), stored) in scales.iter().zip(&wanted).zip(&stored) {
            assert!(stored.abs() >= wanted.abs() && stored.signum() == scale.signum(), "{dtype}: {wanted} as {stored}");
            assert!(wanted != scale || stored == scale, "{dtype}: {scale} became {stored}");
            assert!(stored.abs() <= wanted.abs() * (1.0 + 1.0 / 128.0), "{dtype}: {wanted} as {stored}");
        }
    }
}
