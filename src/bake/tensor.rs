//! The edit of one tensor as a stream of blocks, with its hashes and leaks; and the check of an edited one.

use rayon::join;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::BakeError;
use super::hash::hex;
use super::kernel::{self, Along, AlongColumns, Columns, Scratch, Tally};
use super::plan::TensorEdit;
use crate::onnx::DataType;

/// Bytes read, compared, edited, hashed and written at a time: so few that they stay in the second-level cache meanwhile.
pub(super) const BLOCK: usize = 256 << 10;

/// Fills a buffer from an offset within the tensor.
pub(super) type Read<'a> = &'a (dyn Fn(&mut [u8], u64) -> Result<(), BakeError> + Sync);

/// Takes a block at an offset within the tensor.
pub(super) type Write<'a> = &'a mut (dyn FnMut(&[u8], u64) -> Result<(), BakeError> + Send);

/// A block of a tensor as it is stored, and what the edit makes of it.
pub(super) struct EditedBlock<'a> {
    /// Offset within the tensor.
    pub at: u64,
    /// As it was read.
    pub before: &'a [u8],
    /// Edited.
    pub after: &'a [u8],
}

/// Takes every block of an edited tensor, in order.
pub(super) type Take<'a> = &'a mut (dyn FnMut(&EditedBlock<'_>) -> Result<(), BakeError> + Send);

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
    /// Bytes that are not those that editing the base again gives.
    pub differing_bytes: u64,
    /// Whether the edit changes any value.
    pub changed: bool,
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

/// Edits a tensor, block by block: `W' = W - s r r^T W` for each of the orthonormal directions `along` (Wang et al. 2025,
/// eq. 4; Arditi et al. 2024, appendix E). It needs memory for two blocks, and for three vectors of the other axis a
/// direction where `d_model` is first.
///
/// # Errors
/// Whatever `read` and `take` report, or [`BakeError::NotFinite`].
pub(super) fn edit(
    edit: &TensorEdit,
    along: &[Along<'_>],
    hash: bool,
    read: Read<'_>,
    take: Take<'_>,
) -> Result<Measured, BakeError> {
    let geometry = Geometry::new(edit);
    let mut work = Work {
        edit,
        along,
        geometry,
        read,
        take,
        hashes: Hashes::new(hash),
        scratch: Scratch::default(),
        tally: Tally::default(),
        before: vec![0u8; geometry.block()],
        after: vec![0u8; geometry.block()],
    };
    match geometry.columns {
        Some(columns) => geometry.starts().try_for_each(|start| work.matrix(start, columns))?,
        None => work.rows()?,
    }
    Ok(Measured {
        leak_before: work.tally.before.sqrt(),
        leak_after: work.tally.after.sqrt(),
        max_abs_delta: work.tally.max_abs_delta,
        sha256: work.hashes.finish(),
        rounding: None,
    })
}

/// The edit of a tensor while it is made.
struct Work<'a> {
    edit: &'a TensorEdit,
    along: &'a [Along<'a>],
    geometry: Geometry,
    read: Read<'a>,
    take: Take<'a>,
    hashes: Hashes,
    scratch: Scratch,
    tally: Tally,
    /// The block as it was read.
    before: Vec<u8>,
    /// The same while it is edited.
    after: Vec<u8>,
}

impl Work<'_> {
    fn not_finite(&self) -> BakeError {
        BakeError::NotFinite { tensor: self.edit.name.clone() }
    }

    /// Edits a tensor with `d_model` last, in one pass.
    fn rows(&mut self) -> Result<(), BakeError> {
        let Geometry { dtype, d, size, .. } = self.geometry;
        for (at, length) in self.geometry.blocks() {
            let (before, after) = (&mut self.before[..length], &mut self.after[..length]);
            (self.read)(before, at)?;
            after.copy_from_slice(before);
            let (first, aim) = (at / (d * size) as u64, self.edit.aim(self.along));
            let (scratch, tally, hashes) = (&mut self.scratch, &mut self.tally, &mut self.hashes);
            let before = &*before;
            let (edited, ()) = join(
                || kernel::edit_rows(dtype, after, first, aim, scratch, tally),
                || hashes.0.iter_mut().for_each(|h| h.0.update(before)),
            );
            edited.map_err(|_| self.not_finite())?;
            self.finish_block(at, length)?;
        }
        Ok(())
    }

    /// Edits the matrix from byte `start` on, with `d_model` first: a pass for the components, one more for what
    /// nearest rounding leaves of them where the type is coarse, and one for the edit.
    fn matrix(&mut self, start: u64, columns: usize) -> Result<(), BakeError> {
        let Geometry { dtype, size, .. } = self.geometry;
        let mut c = vec![vec![0.0f64; columns]; self.along.len()];
        for (at, length) in self.geometry.blocks() {
            let block = &mut self.before[..length];
            (self.read)(block, start + at)?;
            let (block, scratch, hashes) = (&*block, &mut self.scratch, &mut self.hashes);
            join(
                || {
                    for (along, c) in self.along.iter().zip(&mut c) {
                        kernel::add_components(dtype, block, at / size as u64, along.r, c, scratch);
                    }
                },
                || hashes.0.iter_mut().for_each(|h| h.0.update(block)),
            );
        }
        if c.iter().flatten().any(|c| !c.is_finite()) {
            return Err(self.not_finite());
        }
        let mut spend: Option<Vec<Vec<f64>>> = None;
        if kernel::is_half(dtype) {
            let mut left = vec![vec![0.0f64; columns]; self.along.len()];
            let mut nearest = columns_of(self.along, &c, None, &mut left);
            for (at, length) in self.geometry.blocks() {
                let block = &mut self.after[..length];
                (self.read)(block, start + at)?;
                let unseen = &mut Tally::default();
                kernel::edit_columns(dtype, block, at / size as u64, &mut nearest, &mut self.scratch, unseen);
            }
            for ((along, left), c) in self.along.iter().zip(&mut left).zip(&c) {
                left.iter_mut().zip(c).for_each(|(e, c)| *e -= (1.0 - along.strength) * c);
            }
            spend = Some(left);
        }
        let mut left = vec![vec![0.0f64; columns]; self.along.len()];
        let mut state = columns_of(self.along, &c, spend.as_mut(), &mut left);
        for (at, length) in self.geometry.blocks() {
            let (before, after) = (&mut self.before[..length], &mut self.after[..length]);
            (self.read)(before, start + at)?;
            after.copy_from_slice(before);
            kernel::edit_columns(dtype, after, at / size as u64, &mut state, &mut self.scratch, &mut self.tally);
            self.finish_block(start + at, length)?;
        }
        if left.iter().flatten().any(|e| !e.is_finite()) {
            return Err(self.not_finite());
        }
        self.tally.before += c.iter().flatten().map(|c| c * c).sum::<f64>();
        self.tally.after += left.iter().flatten().map(|e| e * e).sum::<f64>();
        Ok(())
    }

    /// Hands a block on while it is hashed.
    fn finish_block(&mut self, at: u64, length: usize) -> Result<(), BakeError> {
        let block = EditedBlock { at, before: &self.before[..length], after: &self.after[..length] };
        let (take, hashes) = (&mut self.take, &mut self.hashes);
        join(|| take(&block), || hashes.0.iter_mut().for_each(|h| h.1.update(block.after))).0
    }
}

/// A matrix with `d_model` first and what is known of its columns, a vector of each a direction.
fn columns_of<'a>(
    along: &'a [Along<'a>],
    c: &'a [Vec<f64>],
    spend: Option<&'a mut Vec<Vec<f64>>>,
    after: &'a mut [Vec<f64>],
) -> Columns<'a> {
    let mut spend = spend.into_iter().flatten();
    let parts = along.iter().zip(c).zip(after);
    let part = |((along, c), after): ((&Along<'a>, &'a Vec<f64>), &'a mut Vec<f64>)| AlongColumns {
        along: *along,
        c,
        spend: spend.next().map(Vec::as_mut_slice),
        after,
    };
    Columns(parts.map(part).collect())
}

/// Compares an edited tensor with the exact edit of the original one, entry by entry in float64, and with what editing
/// the original one again gives, byte by byte. The output is read once, block by block, and the original one as often as
/// the edit needs; where `d_model` is first, once more for components of the check's own.
///
/// # Errors
/// Whatever the readers report, or [`BakeError::NotFinite`].
pub(super) fn check(
    edit: &TensorEdit,
    along: &[Along<'_>],
    base: Read<'_>,
    out: Read<'_>,
) -> Result<TensorCheck, BakeError> {
    let geometry = Geometry::new(edit);
    let mut scratch = Scratch::default();
    let mut found = vec![0u8; geometry.block()];
    // `r^T W` and `r^T W'` of the matrix that is looked at
    let mut c = vec![vec![0.0f64; geometry.columns.unwrap_or(0)]; along.len()];
    let mut leaks = c.clone();
    let mut seen = 0;
    let mut checked = TensorCheck { leak_after: 0.0, max_ulp: 0.0, differing_bytes: 0, changed: false };
    let again = self::edit(edit, along, false, base, &mut |block| {
        let found = &mut found[..block.after.len()];
        out(found, block.at)?;
        seen += found.len() as u64;
        checked.differing_bytes += differing_in(block.after, found);
        if geometry.columns.is_none() {
            let (sum, off) = kernel::check_rows(geometry.dtype, block.before, found, edit.aim(along), &mut scratch);
            checked.leak_after += sum;
            checked.max_ulp = checked.max_ulp.max(off);
            return Ok(());
        }
        let within = block.at % geometry.bytes;
        if within == 0 {
            for (along, c) in along.iter().zip(&mut c) {
                components(geometry, along.r, base, block.at, c)?;
            }
        }
        let mut state = columns_of(along, &c, None, &mut leaks);
        let (first, pair) = (within / geometry.size as u64, (block.before, &*found));
        let off = kernel::check_columns(geometry.dtype, pair, first, &mut state, &mut scratch);
        checked.max_ulp = checked.max_ulp.max(off);
        if within + found.len() as u64 == geometry.bytes {
            checked.leak_after += leaks.iter().flatten().map(|e| e * e).sum::<f64>();
            leaks.iter_mut().for_each(|leaks| leaks.fill(0.0));
        }
        Ok(())
    })?;
    // what the edit did not hand over was not looked at
    checked.differing_bytes += edit.bytes().saturating_sub(seen);
    Ok(TensorCheck { leak_after: checked.leak_after.sqrt(), changed: again.max_abs_delta > 0.0, ..checked })
}

/// `r^T W` of the `[D, K]` matrix that begins at byte `start`, into `c` of `[K]`: sums in float64, entry by entry, beside
/// those of the edit.
fn components(geometry: Geometry, r: &[f64], base: Read<'_>, start: u64, c: &mut [f64]) -> Result<(), BakeError> {
    let mut bytes = vec![0u8; geometry.block()];
    let mut values = vec![0.0f64; geometry.block() / geometry.size];
    c.fill(0.0);
    let (mut row, mut column) = (0, 0);
    for (at, length) in geometry.blocks() {
        base(&mut bytes[..length], start + at)?;
        let mut values = &mut values[..length / geometry.size];
        kernel::decode(geometry.dtype, &bytes[..length], values);
        while !values.is_empty() {
            let (of_row, rest) = values.split_at_mut(values.len().min(c.len() - column));
            c[column..].iter_mut().zip(of_row.iter()).for_each(|(sum, value)| *sum += r[row] * value);
            column += of_row.len();
            if column == c.len() {
                (row, column) = (row + 1, 0);
            }
            values = rest;
        }
    }
    Ok(())
}

/// Number of places in which two stretches of one length hold different bytes.
pub(super) fn differing_in(a: &[u8], b: &[u8]) -> u64 {
    if a == b { 0 } else { a.iter().zip(b).filter(|(a, b)| a != b).count() as u64 }
}
