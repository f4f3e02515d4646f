//! The edit of one tensor as a stream of blocks, with its hashes and leaks; and the check of an edited one.

use rayon::join;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::BakeError;
use super::kernel::{self, Columns, Scratch, Tally};
use super::plan::TensorEdit;
use crate::onnx::DataType;

/// Bytes read, edited and written at a time.
pub(super) const BLOCK: usize = 1 << 20;

/// Fills a buffer from an offset within the tensor.
pub(super) type Read<'a> = &'a (dyn Fn(&mut [u8], u64) -> Result<(), BakeError> + Sync);

/// Takes a block at an offset within the tensor.
pub(super) type Write<'a> = &'a mut (dyn FnMut(&[u8], u64) -> Result<(), BakeError> + Send);

/// What the edit of a tensor did.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    /// `||r^T W||`.
    pub leak_before: f64,
    /// `||r^T W'||` of the stored values.
    pub leak_after: f64,
    /// Largest `|W' - W|`.
    pub max_abs_delta: f64,
    /// SHA-256 of the tensor's elements, in hexadecimal.
    pub sha256: Option<(String, String)>,
    /// What rounding to a quantised grid cost.
    pub rounding: Option<Rounding>,
}

/// What rounding an edited weight to its quantised grid cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rounding {
    /// `||r^T W'||` if every entry had gone to its nearest level.
    pub leak_nearest: f64,
    /// `||W' - (W - r r^T W)||` of the values as stored.
    pub error: f64,
    /// `||W' - (W - r r^T W)||` if every entry had gone to its nearest level.
    pub error_nearest: f64,
    /// `sqrt(sum step^2 / 12)`: the error that rounding arbitrary values to a grid as coarse would make.
    pub grid_noise: f64,
    /// Largest `|W' - (W - r r^T W)|` in spacings of the levels.
    pub max_levels: f64,
    /// Scales that were enlarged because edited values lay beyond the grid.
    pub grown_scales: u64,
}

/// What the check of an edited tensor found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TensorCheck {
    /// `||r^T W'||` of the stored values.
    pub leak_after: f64,
    /// Largest `|W' - exact|` in spacings of the type.
    pub max_ulp: f64,
}

/// Hashes of the elements before and after.
struct Hashes(Option<(Sha256, Sha256)>);

impl Hashes {
    fn new(wanted: bool) -> Self {
        Self(wanted.then(|| (Sha256::new(), Sha256::new())))
    }

    fn finish(self) -> Option<(String, String)> {
        self.0.map(|(before, after)| (hex(&before.finalize()), hex(&after.finalize())))
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// A tensor's geometry: slabs that are edited one after the other, each a matrix.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    dtype: DataType,
    size: usize,
    d: usize,
    /// Number of matrices: experts that lie in one tensor, else 1.
    slabs: u64,
    /// Bytes of each matrix.
    bytes: u64,
    /// Number of columns of each matrix where `d_model` is its first axis; `None` where `d_model` is its last.
    columns: Option<usize>,
}

impl Geometry {
    fn new(edit: &TensorEdit) -> Self {
        let size = kernel::width(edit.dtype);
        let d = usize::try_from(edit.shape[edit.axis]).expect("the plan compared it with d_model");
        let elements: u64 = edit.shape.iter().product();
        let slabs = if edit.d_model_last() { 1 } else { edit.shape[..edit.axis].iter().product::<u64>().max(1) };
        let columns: u64 = edit.shape[edit.axis + 1..].iter().product();
        let columns = (!edit.d_model_last())
            .then(|| usize::try_from(columns).expect("a tensor's columns can be counted in memory"));
        Self { dtype: edit.dtype, size, d, slabs, bytes: elements / slabs * size as u64, columns }
    }

    /// First byte of every slab.
    fn starts(self) -> impl Iterator<Item = u64> {
        (0..self.slabs).map(move |slab| slab * self.bytes)
    }

    /// Bytes of a block: whole rows where `d_model` is last.
    fn block(&self) -> usize {
        match self.columns {
            None => (BLOCK / (self.d * self.size)).max(1) * self.d * self.size,
            Some(_) => BLOCK,
        }
    }

    /// Offset and length of every block of a slab.
    fn blocks(self) -> impl Iterator<Item = (u64, usize)> {
        let block = self.block();
        (0..self.bytes)
            .step_by(block)
            .map(move |at| (at, usize::try_from(self.bytes - at).map_or(block, |left| left.min(block))))
    }
}

/// Edits a tensor, block by block: `W' = W - s r r^T W`, with `s = 1` unless the edit says otherwise (Wang et al. 2025,
/// eq. 4; Arditi et al. 2024, appendix E). It needs memory for two blocks, and for three vectors of the other axis
/// where `d_model` is first.
///
/// # Errors
/// Whatever `read` and `write` report, or [`BakeError::NotFinite`].
pub(super) fn edit(
    edit: &TensorEdit,
    r: &[f64],
    hash: bool,
    read: Read<'_>,
    write: Write<'_>,
) -> Result<Measured, BakeError> {
    let geometry = Geometry::new(edit);
    let not_finite = || BakeError::NotFinite { tensor: edit.name.clone() };
    let mut hashes = Hashes::new(hash);
    let mut scratch = Scratch::default();
    let mut tally = Tally::default();
    let mut buffer = vec![0u8; geometry.block()];
    if let Some(columns) = geometry.columns {
        for start in geometry.starts() {
            let mut c = vec![0.0f64; columns];
            for (at, length) in geometry.blocks() {
                let block = &mut buffer[..length];
                read(block, start + at)?;
                let block = &*block;
                let first = at / geometry.size as u64;
                join(
                    || kernel::add_components(geometry.dtype, block, first, r, &mut c, &mut scratch),
                    || hashes.0.iter_mut().for_each(|h| h.0.update(block)),
                );
            }
            if c.iter().any(|c| !c.is_finite()) {
                return Err(not_finite());
            }
            let mut spend = vec![0.0f64; if kernel::is_half(geometry.dtype) { columns } else { 0 }];
            if !spend.is_empty() {
                let mut nearest = Columns { r, c: &c, strength: edit.strength, spend: None, after: &mut spend };
                for (at, length) in geometry.blocks() {
                    let block = &mut buffer[..length];
                    read(block, start + at)?;
                    let first = at / geometry.size as u64;
                    let unseen = &mut Tally::default();
                    kernel::edit_columns(geometry.dtype, block, first, &mut nearest, &mut scratch, unseen);
                }
                for (e, c) in spend.iter_mut().zip(&c) {
                    *e -= (1.0 - edit.strength) * c;
                }
            }
            let mut after = vec![0.0f64; columns];
            let spend = (!spend.is_empty()).then_some(spend.as_mut_slice());
            let mut state = Columns { r, c: &c, strength: edit.strength, spend, after: &mut after };
            for (at, length) in geometry.blocks() {
                let block = &mut buffer[..length];
                read(block, start + at)?;
                let first = at / geometry.size as u64;
                kernel::edit_columns(geometry.dtype, block, first, &mut state, &mut scratch, &mut tally);
                finish_block(block, start + at, &mut hashes, write)?;
            }
            if after.iter().any(|e| !e.is_finite()) {
                return Err(not_finite());
            }
            tally.before += c.iter().map(|c| c * c).sum::<f64>();
            tally.after += after.iter().map(|e| e * e).sum::<f64>();
        }
    } else {
        let mut original = if hash { vec![0u8; geometry.block()] } else { Vec::new() };
        let row = (geometry.d * geometry.size) as u64;
        for (at, length) in geometry.blocks() {
            let block = &mut buffer[..length];
            read(block, at)?;
            let original = if hash {
                original[..length].copy_from_slice(block);
                &original[..length]
            } else {
                &[]
            };
            let (edited, ()) = join(
                || kernel::edit_rows(geometry.dtype, block, at / row, edit.aim(r), &mut scratch, &mut tally),
                || hashes.0.iter_mut().for_each(|h| h.0.update(original)),
            );
            edited.map_err(|_| not_finite())?;
            finish_block(block, at, &mut hashes, write)?;
        }
    }
    Ok(Measured {
        leak_before: tally.before.sqrt(),
        leak_after: tally.after.sqrt(),
        max_abs_delta: tally.max_abs_delta,
        sha256: hashes.finish(),
        rounding: None,
    })
}

/// Writes a block while it is hashed.
fn finish_block(block: &[u8], at: u64, hashes: &mut Hashes, write: Write<'_>) -> Result<(), BakeError> {
    join(|| write(block, at), || hashes.0.iter_mut().for_each(|h| h.1.update(block))).0
}

/// Compares an edited tensor with the exact edit of the original one.
///
/// # Errors
/// Whatever the readers report.
pub(super) fn check(edit: &TensorEdit, r: &[f64], base: Read<'_>, out: Read<'_>) -> Result<TensorCheck, BakeError> {
    let geometry = Geometry::new(edit);
    let mut scratch = Scratch::default();
    let (mut was, mut is) = (vec![0u8; geometry.block()], vec![0u8; geometry.block()]);
    let (mut after, mut worst) = (0.0f64, 0.0f64);
    if let Some(columns) = geometry.columns {
        for start in geometry.starts() {
            let (mut c, mut leaks) = (vec![0.0f64; columns], vec![0.0f64; columns]);
            for (at, length) in geometry.blocks() {
                base(&mut was[..length], start + at)?;
                let first = at / geometry.size as u64;
                kernel::add_components(geometry.dtype, &was[..length], first, r, &mut c, &mut scratch);
            }
            let mut state = Columns { r, c: &c, strength: edit.strength, spend: None, after: &mut leaks };
            for (at, length) in geometry.blocks() {
                base(&mut was[..length], start + at)?;
                out(&mut is[..length], start + at)?;
                let (first, pair) = (at / geometry.size as u64, (&was[..length], &is[..length]));
                worst = worst.max(kernel::check_columns(geometry.dtype, pair, first, &mut state, &mut scratch));
            }
            after += leaks.iter().map(|e| e * e).sum::<f64>();
        }
    } else {
        for (at, length) in geometry.blocks() {
            base(&mut was[..length], at)?;
            out(&mut is[..length], at)?;
            let (sum, off) =
                kernel::check_rows(geometry.dtype, &was[..length], &is[..length], edit.aim(r), &mut scratch);
            after += sum;
            worst = worst.max(off);
        }
    }
    Ok(TensorCheck { leak_after: after.sqrt(), max_ulp: worst })
}
