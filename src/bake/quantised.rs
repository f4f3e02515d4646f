//! The edit of one quantised weight as a stream of panels: codes are unpacked, each vector of `d_model` codes is
//! ablated and rounded ([`super::round`]), and packed again. Memory is a few panels a thread and the scales of one
//! matrix, whatever the model's size.

mod check;

use std::ops::Range;
use std::sync::Mutex;

use half::{bf16, f16};
use rayon::prelude::*;

use super::elements::Elements;
use super::error::BakeError;
use super::kernel::{self, NotFinite};
use super::round::{Grid, Levels, Tally, Unit, Worker};
use super::tensor::{Measured, Read, Rounding, Write};
use crate::onnx::quant::{Blocks, Coding, Quantised, Zeros};
use crate::onnx::{DataType, Model};
pub(super) use check::check;

/// Number of unpacked codes that a worker holds at a time. Small in tests, whose matrices are small.
const PANEL: usize = if cfg!(test) { 1 << 10 } else { 8 << 20 };

/// Vectors that one worker rounds in a row.
const TILE: usize = 64;

/// Rows of `d_model` that are transposed together.
const SIDE: usize = 32;

/// Scales or zero points that are decoded at a time.
const SOME: usize = 4096;

/// What the edit of a quantised weight did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rounded {
    /// Sums over all vectors.
    pub tally: Tally,
    /// Scales that were enlarged.
    pub grown: u64,
}

impl From<Rounded> for Measured {
    fn from(Rounded { tally, grown }: Rounded) -> Self {
        Self {
            leak_before: tally.leak_before.sqrt(),
            leak_after: tally.leak_after.sqrt(),
            max_abs_delta: tally.max_abs_delta,
            sha256: None,
            rounding: Some(Rounding {
                leak_nearest: tally.leak_nearest.sqrt(),
                error: tally.error_after.max(0.0).sqrt(),
                error_nearest: tally.error_nearest.sqrt(),
                grid_noise: tally.noise.sqrt(),
                max_levels: tally.max_levels,
                grown_scales: grown,
            }),
        }
    }
}

/// Vectors of `d_model` codes that are in memory together.
#[derive(Debug, Clone)]
struct Panel {
    slab: u64,
    vectors: Range<u64>,
}

/// The geometry of a quantised weight, seen as vectors of `d_model` codes.
#[derive(Debug, Clone, Copy)]
struct View<'q> {
    q: &'q Quantised,
    /// `d_model`.
    d: usize,
    /// The same, padded for [`Worker`].
    padded: usize,
}

impl<'q> View<'q> {
    fn new(q: &'q Quantised, units: &[Unit]) -> Self {
        let d = usize::try_from(q.width()).expect("the plan compared it with d_model");
        Self { q, d, padded: units[0].padded() }
    }

    /// Vectors of one slab.
    fn vectors(&self) -> u64 {
        if self.q.d_model_first { self.q.columns } else { self.q.rows }
    }

    /// How many vectors in a row share their scales, if those of a whole panel can: panels are cut there.
    fn step(&self) -> u64 {
        match self.q.blocks {
            Blocks::Grid { columns, .. } if self.q.d_model_first => columns,
            Blocks::Grid { rows, .. } => rows,
            Blocks::Flat(_) => 1,
        }
    }

    /// Number of vectors in a panel. A panel ends where a byte ends, and where a block ends if one fits.
    fn panel(&self) -> u64 {
        let a_byte = u64::from(8 / self.q.bits);
        let most = ((PANEL / self.padded) as u64).max(1);
        let step = self.step();
        let blocks = if step.is_multiple_of(a_byte) { step } else { step.saturating_mul(a_byte) };
        let unit = if blocks <= most { blocks } else { a_byte };
        (most / unit * unit).max(unit)
    }

    fn panels(&self) -> Vec<Panel> {
        let (count, size) = (self.vectors(), self.panel());
        let slab =
            |slab| (0..count).step_by(size as usize).map(move |at| Panel { slab, vectors: at..(at + size).min(count) });
        (0..self.q.slabs).flat_map(slab).collect()
    }

    /// Whether every scale belongs to the vectors of one panel.
    fn scales_are_local(&self) -> bool {
        match self.q.blocks {
            Blocks::Grid { .. } if self.q.index.is_some() => false,
            Blocks::Grid { .. } => self.panel() >= self.vectors() || self.panel().is_multiple_of(self.step()),
            Blocks::Flat(_) => self.panel() >= self.vectors(),
        }
    }

    /// Bytes of a panel's part of each row, and of the panel: `(first byte of a row, bytes of a row, rows)`.
    fn bytes(&self, panel: &Panel) -> (u64, usize, usize) {
        let a_byte = u64::from(8 / self.q.bits);
        if self.q.d_model_first {
            let first = panel.vectors.start / a_byte;
            // the panel of the last columns holds their padding too, which is written as it was read
            let last = match panel.vectors.end == self.q.columns {
                true => self.q.row_bytes,
                false => panel.vectors.end.div_ceil(a_byte),
            };
            (first, (last - first) as usize, self.d)
        } else {
            (0, self.q.row_bytes as usize, (panel.vectors.end - panel.vectors.start) as usize)
        }
    }

    /// The stretches of the tensor that a panel's bytes lie in: `(offset in the tensor, range of the buffer)`.
    fn stretches(&self, panel: &Panel) -> impl Iterator<Item = (u64, Range<usize>)> {
        let (first, bytes, rows) = self.bytes(panel);
        let row_bytes = self.q.row_bytes;
        let start = panel.slab * self.q.rows * row_bytes
            + if self.q.d_model_first { first } else { panel.vectors.start * row_bytes };
        let whole = bytes as u64 == row_bytes;
        let (count, size) = if whole { (1, rows * bytes) } else { (rows, bytes) };
        (0..count).map(move |row| (start + row as u64 * row_bytes, row * size..(row + 1) * size))
    }

    fn read(&self, panel: &Panel, read: Read<'_>) -> Result<Vec<u8>, BakeError> {
        let (_, bytes, rows) = self.bytes(panel);
        let mut raw = vec![0u8; bytes * rows];
        for (at, range) in self.stretches(panel) {
            read(&mut raw[range], at)?;
        }
        Ok(raw)
    }

    /// Ordinals of a panel, `[vectors, padded]`.
    fn unpack(&self, panel: &Panel, raw: &[u8]) -> Vec<u8> {
        let (_, bytes, rows) = self.bytes(panel);
        let count = (panel.vectors.end - panel.vectors.start) as usize;
        let mut ordinals = vec![0u8; count * self.padded];
        if !self.q.d_model_first {
            let each = ordinals.par_chunks_mut(self.padded).zip(raw.par_chunks(bytes));
            each.for_each(|(vector, row)| self.q.unpack(row, &mut vector[..self.d]));
            return ordinals;
        }
        let a_byte = usize::from(8 / self.q.bits);
        ordinals.par_chunks_mut(TILE * self.padded).enumerate().for_each(|(tile, vectors)| {
            // a square at a time: a column of codes at once would meet itself in the cache
            let mut square = [[0u8; TILE]; SIDE];
            let count = vectors.len() / self.padded;
            for first in (0..rows).step_by(SIDE) {
                let side = SIDE.min(rows - first);
                for (row, codes) in (first..).zip(&mut square[..side]) {
                    self.q.unpack(&raw[row * bytes + tile * TILE / a_byte..(row + 1) * bytes], &mut codes[..count]);
                }
                for (at, vector) in vectors.chunks_exact_mut(self.padded).enumerate() {
                    for (code, codes) in vector[first..first + side].iter_mut().zip(&square) {
                        *code = codes[at];
                    }
                }
            }
        });
        ordinals
    }

    /// The reverse of [`Self::unpack`]; padding in `raw` stays as it is.
    fn pack(&self, panel: &Panel, ordinals: &[u8], raw: &mut [u8]) {
        let (_, bytes, _) = self.bytes(panel);
        if !self.q.d_model_first {
            let each = raw.par_chunks_mut(bytes).zip(ordinals.par_chunks(self.padded));
            each.for_each(|(row, vector)| self.q.pack(&vector[..self.d], row));
            return;
        }
        let a_byte = usize::from(8 / self.q.bits);
        raw.par_chunks_mut(bytes * SIDE).enumerate().for_each(|(part, rows)| {
            let mut square = [[0u8; TILE]; SIDE];
            let (first, side) = (part * SIDE, rows.len() / bytes);
            for (tile, vectors) in ordinals.chunks(TILE * self.padded).enumerate() {
                for (at, vector) in vectors.chunks_exact(self.padded).enumerate() {
                    for (code, codes) in vector[first..first + side].iter().zip(&mut square) {
                        codes[at] = *code;
                    }
                }
                let count = vectors.len() / self.padded;
                for (codes, out) in square.iter().zip(rows.chunks_mut(bytes)) {
                    self.q.pack(&codes[..count], &mut out[tile * TILE / a_byte..]);
                }
            }
        });
    }
}

/// The scales and zero points of a stretch of a slab, as float32.
struct Side<'t> {
    scales: Vec<f32>,
    zeros: Option<Vec<f32>>,
    /// The block that each column belongs to.
    index: Option<&'t [u32]>,
    /// Number of the first of these scales among all of the tensor.
    first: u64,
    /// First byte of these scales in their tensor.
    at: u64,
}

/// The files that hold scales, zero points and block numbers of a weight.
pub(super) struct Tables {
    scales: Elements,
    scale_dtype: DataType,
    zeros: Option<(Elements, DataType)>,
    index: Option<Vec<u32>>,
}

impl Tables {
    /// Opens them.
    pub(super) fn open(model: &Model, q: &Quantised, name: &str) -> Result<Self, BakeError> {
        let open = |tensor| {
            Elements::open(model, model.tensor(tensor), true)?.ok_or_else(|| BakeError::Unsupported {
                tensor: name.into(),
                reason: "its scales or zero points are stored in a form that is not read".into(),
            })
        };
        let zeros = match q.zeros {
            Zeros::Implied(_) => None,
            Zeros::Codes { tensor, .. } | Zeros::Floats(tensor) => Some((open(tensor)?, model.tensor(tensor).dtype)),
        };
        let index = match q.index {
            None => None,
            Some(tensor) => {
                let (_, a_row) = q.scale_shape();
                let mut bytes = vec![0u8; q.columns as usize * 4];
                open(tensor)?.read(&mut bytes, 0)?;
                let blocks: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
                if blocks.iter().any(|&block| u64::from(block) >= a_row) {
                    let reason = format!("its `g_idx` names blocks that it does not have: it has {a_row}");
                    return Err(BakeError::Unsupported { tensor: name.into(), reason });
                }
                Some(blocks)
            }
        };
        Ok(Self { scales: open(q.scales)?, scale_dtype: model.tensor(q.scales).dtype, zeros, index })
    }

    /// What the vectors of a panel need: whole rows of blocks, all of the slab where panels share scales.
    fn side(&self, view: &View<'_>, panel: &Panel) -> Result<Side<'_>, BakeError> {
        let q = view.q;
        let (block_rows, a_row) = q.scale_shape();
        let rows = match q.blocks {
            Blocks::Grid { rows, .. } if !q.d_model_first && view.scales_are_local() => {
                panel.vectors.start / rows..panel.vectors.end.div_ceil(rows)
            }
            _ => 0..block_rows,
        };
        let (first, count) = (rows.start * a_row, ((rows.end - rows.start) * a_row) as usize);
        let width = kernel::width(self.scale_dtype);
        let at = (panel.slab * q.scales_a_slab() + first) * width as u64;
        let floats = |elements: &Elements, dtype: DataType| -> Result<Vec<f32>, BakeError> {
            let width = kernel::width(dtype);
            let start = (panel.slab * q.scales_a_slab() + first) * width as u64;
            let (mut values, mut bytes, mut wide) = (vec![0.0f32; count], vec![0u8; SOME * width], [0.0f64; SOME]);
            for (number, values) in values.chunks_mut(SOME).enumerate() {
                let bytes = &mut bytes[..values.len() * width];
                elements.read(bytes, start + (number * SOME * width) as u64)?;
                let wide = &mut wide[..values.len()];
                kernel::decode(dtype, bytes, wide);
                values.iter_mut().zip(wide).for_each(|(value, wide)| *value = *wide as f32);
            }
            Ok(values)
        };
        let zeros = match (&self.zeros, q.zeros) {
            (Some((elements, _)), Zeros::Codes { padded, .. }) => {
                let a_byte = u64::from(8 / q.bits);
                let mut zeros = Vec::with_capacity(count);
                if padded {
                    let bytes = a_row.div_ceil(a_byte);
                    let mut row_bytes = vec![0u8; bytes as usize];
                    let mut codes = vec![0u8; a_row as usize];
                    for row in rows.clone() {
                        elements.read(&mut row_bytes, (panel.slab * block_rows + row) * bytes)?;
                        q.unpack(&row_bytes, &mut codes);
                        zeros.extend(codes.iter().map(|&code| f32::from(code)));
                    }
                } else {
                    let from = panel.slab * q.scales_a_slab() + first;
                    let to = from + count as u64;
                    let (start, end) = (from / a_byte, to.div_ceil(a_byte));
                    let mut bytes = vec![0u8; (end - start) as usize];
                    elements.read(&mut bytes, start)?;
                    let mut codes = vec![0u8; bytes.len() * a_byte as usize];
                    q.unpack(&bytes, &mut codes);
                    let skip = (from - start * a_byte) as usize;
                    zeros.extend(codes[skip..skip + count].iter().map(|&code| f32::from(code)));
                }
                Some(zeros)
            }
            (Some((elements, dtype)), _) => Some(floats(elements, *dtype)?),
            (None, _) => None,
        };
        Ok(Side { scales: floats(&self.scales, self.scale_dtype)?, zeros, index: self.index.as_deref(), first, at })
    }

    /// Float32 scales in the form that they are stored in; those that grew are rounded away from zero, so that the grid
    /// still reaches, but for the largest finite one. `wanted` becomes what is stored.
    fn encode(&self, scales: &[f32], wanted: &mut [f32]) -> Vec<u8> {
        let up = |bits: u16, value: f32, back: fn(u16) -> f32| match back(bits) {
            infinite if infinite.is_infinite() && value.is_finite() => bits - 1,
            near if near.abs() < value.abs() && back(bits + 1).is_finite() => bits + 1,
            _ => bits,
        };
        let mut bytes = Vec::with_capacity(scales.len() * kernel::width(self.scale_dtype));
        for (&scale, wanted) in scales.iter().zip(wanted) {
            let value = if wanted.abs() > scale.abs() { *wanted } else { scale };
            *wanted = match self.scale_dtype {
                DataType::FLOAT16 => {
                    let back = |bits| f16::from_bits(bits).to_f32();
                    let bits = up(f16::from_f32(value).to_bits(), value, back);
                    bytes.extend(bits.to_le_bytes());
                    back(bits)
                }
                DataType::BFLOAT16 => {
                    let back = |bits| bf16::from_bits(bits).to_f32();
                    let bits = up(bf16::from_f32(value).to_bits(), value, back);
                    bytes.extend(bits.to_le_bytes());
                    back(bits)
                }
                DataType::DOUBLE => {
                    bytes.extend(f64::from(value).to_le_bytes());
                    value
                }
                _ => {
                    bytes.extend(value.to_le_bytes());
                    value
                }
            };
        }
        bytes
    }
}

/// Makes the grid of one vector after the other, and reuses what neighbouring vectors have in common.
struct Grids<'s> {
    view: View<'s>,
    side: &'s Side<'s>,
    /// Scales after growth, like [`Side::scales`].
    grown: &'s [f32],
    table: Option<[f32; 16]>,
    range: (f32, f32),
    before: Vec<f32>,
    scale: Vec<f32>,
    zero: Vec<f32>,
    /// Whether the two scales of the vector held differ anywhere.
    differ: bool,
    held: Option<u64>,
}

impl<'s> Grids<'s> {
    fn new(view: View<'s>, side: &'s Side<'s>, grown: &'s [f32], range: (f32, f32)) -> Self {
        let zeros = || vec![0.0; view.padded];
        let table = view.q.table();
        Self {
            view,
            side,
            grown,
            table,
            range,
            before: zeros(),
            scale: zeros(),
            zero: zeros(),
            differ: false,
            held: None,
        }
    }

    /// Number of the scale of entry `at` of a vector, in [`Side::scales`].
    fn scale_of(&self, vector: u64, at: u64) -> usize {
        let q = self.view.q;
        let (row, mut column) = if q.d_model_first { (at, vector) } else { (vector, at) };
        if let (Some(index), Blocks::Grid { columns, .. }) = (self.side.index, q.blocks) {
            column = u64::from(index[column as usize]) * columns;
        }
        (q.scale_of(row, column) - self.side.first) as usize
    }

    /// The grid of a vector.
    fn of(&mut self, vector: u64) -> Grid<'_> {
        let key = match (self.view.q.blocks, self.side.index) {
            (Blocks::Grid { .. }, Some(index)) => u64::from(index[vector as usize]),
            (Blocks::Grid { .. }, None) => vector / self.view.step(),
            (Blocks::Flat(_), _) => vector,
        };
        if self.held != Some(key) {
            self.held = Some(key);
            let implied = match self.view.q.zeros {
                Zeros::Implied(zero) => f32::from(zero),
                _ => 0.0,
            };
            // along `d_model` the number changes by one stride every few entries
            let q = self.view.q;
            let (run, stride) = match q.blocks {
                Blocks::Grid { rows, .. } if q.d_model_first => (rows, q.scale_shape().1 as usize),
                Blocks::Grid { columns, .. } if self.side.index.is_none() => (columns, 1),
                _ => (1, 0),
            };
            let (run, start) = (run.min(self.view.d as u64) as usize, self.scale_of(vector, 0));
            for at in 0..self.view.d {
                let number = match stride {
                    0 => self.scale_of(vector, at as u64),
                    _ if run == 1 => start + at * stride,
                    _ => start + at / run * stride,
                };
                self.before[at] = self.side.scales[number];
                self.scale[at] = self.grown[number];
                self.zero[at] = self.side.zeros.as_ref().map_or(implied, |zeros| zeros[number]);
            }
            self.differ = self.before != self.scale;
        }
        let levels = match &self.table {
            Some(table) => Levels::Table(table),
            None => Levels::Integer { zero: &self.zero, lowest: self.range.0, highest: self.range.1 },
        };
        Grid { before: &self.before, scale: &self.scale, grown: self.differ, levels }
    }
}

/// Whether edited codes have to stay within the range that the quantiser used.
fn keeps_range(q: &Quantised) -> bool {
    q.bits == 8 && q.layout.keeps_range()
}

/// Smallest and largest ordinal to use: those of 7 bits where the file's lie within them.
fn range(view: &View<'_>, read: Read<'_>) -> Result<(f32, f32), BakeError> {
    let whole = (0.0, f32::from(view.q.highest()));
    if !keeps_range(view.q) {
        return Ok(whole);
    }
    let (mut lowest, mut highest) = (u8::MAX, 0u8);
    for panel in view.panels() {
        for byte in view.read(&panel, read)? {
            let ordinal = view.q.ordinal(byte);
            (lowest, highest) = (lowest.min(ordinal), highest.max(ordinal));
        }
    }
    // ONNX Runtime's `reduce_range` has -64 to 64, or 0 to 127
    let seven = if view.q.coding == Coding::Signed { (64, 192) } else { (0, 127) };
    Ok(if lowest >= seven.0 && highest <= seven.1 { (f32::from(seven.0), f32::from(seven.1)) } else { whole })
}

/// Edits a quantised weight: each vector becomes `w - Q^T Q w`, with one to [`MOST_DIRECTIONS`] orthonormal directions
/// `[d_model]` as rows of `Q` (Wang et al. 2025, eq. 4, for one), rounded to its own grid so that `Q w'` vanishes. `write`
/// takes the codes, `write_scales` all scales of the tensor where they may grow.
///
/// [`MOST_DIRECTIONS`]: super::round::MOST_DIRECTIONS
///
/// # Errors
/// Whatever reading and writing report, or [`BakeError::NotFinite`].
pub(super) fn edit(
    name: &str,
    q: &Quantised,
    directions: &[&[f64]],
    tables: &Tables,
    read: Read<'_>,
    write: Write<'_>,
    mut write_scales: Option<Write<'_>>,
) -> Result<Rounded, BakeError> {
    let units: Vec<Unit> = directions.iter().map(|r| Unit::new(r)).collect();
    let view = View::new(q, &units);
    let not_finite = |_| BakeError::NotFinite { tensor: name.into() };
    let range = range(&view, read)?;
    let mut rounded = Rounded { tally: Tally::default(), grown: 0 };
    let local = view.scales_are_local();
    let panels = view.panels();
    // The scales as they are stored so far, and where. Those that belong to several panels are settled before the first
    // one is rounded; panels with scales of their own may still hold them in one piece with those of others.
    let mut settled: Option<(u64, Vec<f32>)> = None;
    for (number, panel) in panels.iter().enumerate() {
        let side = tables.side(&view, panel)?;
        let mut raw = view.read(panel, read)?;
        let mut ordinals = view.unpack(panel, &raw);
        let known = settled.take().filter(|(at, _)| *at == side.at).map(|(_, scales)| scales);
        let stored = match known {
            Some(stored) if !local => stored,
            known => {
                let was = known.as_deref().unwrap_or(&side.scales);
                let mut wanted = was.to_vec();
                if write_scales.is_some() {
                    let slab = panels[number..].iter().take_while(|p| p.slab == panel.slab);
                    for other in slab.take(if local { 1 } else { panels.len() }) {
                        let others;
                        let seen = if other.vectors == panel.vectors {
                            &ordinals
                        } else {
                            others = view.unpack(other, &view.read(other, read)?);
                            &others
                        };
                        grow(&view, &side, other, seen, range, &units, &mut wanted).map_err(not_finite)?;
                    }
                }
                let bytes = tables.encode(&side.scales, &mut wanted);
                rounded.grown += was.iter().zip(&wanted).filter(|(a, b)| a != b).count() as u64;
                if let Some(write) = write_scales.as_deref_mut() {
                    write(&bytes, side.at)?;
                }
                wanted
            }
        };
        let grown = stored.as_slice();
        let tallies: Vec<Tally> = ordinals
            .par_chunks_mut(TILE * view.padded)
            .enumerate()
            .map(|(tile, vectors)| {
                let mut worker = Worker::new(view.padded);
                let mut grids = Grids::new(view, &side, grown, range);
                let mut tally = Tally::default();
                let first = panel.vectors.start + (tile * TILE) as u64;
                for (vector, codes) in (first..).zip(vectors.chunks_mut(view.padded)) {
                    tally.add(&worker.round(codes, grids.of(vector), &units)?);
                }
                Ok(tally)
            })
            .collect::<Result<_, NotFinite>>()
            .map_err(not_finite)?;
        tallies.iter().for_each(|tally| rounded.tally.add(tally));
        view.pack(panel, &ordinals, &mut raw);
        for (at, range) in view.stretches(panel) {
            write(&raw[range], at)?;
        }
        settled = Some((side.at, stored));
    }
    Ok(rounded)
}

/// Lets the scales in `wanted` grow where a vector of the panel lies beyond its grid.
fn grow(
    view: &View<'_>,
    side: &Side<'_>,
    panel: &Panel,
    ordinals: &[u8],
    range: (f32, f32),
    units: &[Unit],
    wanted: &mut [f32],
) -> Result<(), NotFinite> {
    let found: Mutex<Vec<(usize, f32)>> = Mutex::new(Vec::new());
    let sharing = match view.q.blocks {
        Blocks::Grid { rows, columns } => rows.min(view.q.rows) * columns.min(view.q.columns),
        Blocks::Flat(run) => run,
    };
    ordinals.par_chunks(TILE * view.padded).enumerate().try_for_each(|(tile, vectors)| {
        let mut worker = Worker::new(view.padded);
        let mut grids = Grids::new(*view, side, &side.scales, range);
        let mut mine = Vec::new();
        let first = panel.vectors.start + (tile * TILE) as u64;
        for (vector, codes) in (first..).zip(vectors.chunks(view.padded)) {
            let from = mine.len();
            worker.overshoot(codes, grids.of(vector), units, sharing as f32, |at, factor| mine.push((at, factor)))?;
            for (at, _) in &mut mine[from..] {
                *at = grids.scale_of(vector, *at as u64);
            }
        }
        found.lock().expect("no worker panics while it holds the lock").extend(mine);
        Ok::<(), NotFinite>(())
    })?;
    for (number, factor) in found.into_inner().expect("no worker panics while it holds the lock") {
        let grown = side.scales[number] * factor;
        // a scale too small to tell how far off a value is stays: the value's distance in levels will tell
        if grown.is_finite() && grown.abs() > wanted[number].abs() {
            wanted[number] = grown;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
