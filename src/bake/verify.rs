//! Proves from the two files what a bake changed: nothing outside the plan, and inside it what was planned.

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;

use prost::Message;
use rayon::prelude::*;
use serde::Serialize;

use super::apply::folder;
use super::elements::Elements;
use super::error::BakeError;
use super::layout::{Content, FileLayout, Layout};
use super::plan::{BakePlan, METADATA_PREFIX, TensorEdit, VERSION_KEY, own_metadata};
use super::quantised;
use super::tensor::{self, BLOCK, Write};
use crate::onnx::external::read_exact_at;
use crate::onnx::proto::ModelProto;
use crate::onnx::quant::{Quantised, Zeros};
use crate::onnx::{Model, TensorId};

/// Bytes compared by one worker at a time.
const STRETCH: u64 = 16 << 20;

/// A trailing run of metadata larger than this is not looked at.
const METADATA_LIMIT: u64 = 1 << 20;

/// An edited value may be the second-nearest one, and no further away.
const MAX_ULP: f64 = 1.0 + 1e-6;

/// The same for levels of a quantised weight, which are decoded in float32.
const MAX_LEVELS: f64 = 1.0 + 1e-3;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// The file of the output.
    pub file: PathBuf,
    /// First differing byte.
    pub offset: u64,
}

/// An edited tensor as the output holds it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub initializer: String,
    /// `||r^T W'||` of the stored values.
    pub leak_after: f64,
    /// Largest difference from the exact `W - r r^T W`, in spacings of the element type or of the levels of a
    /// quantised weight; 0.5 is nearest rounding, up to 1 second-nearest.
    pub max_ulp: f64,
    /// Whether it is quantised.
    pub quantised: bool,
    /// Bytes of codes and scales that are not those that rounding it again gives; 0 where it was not rounded, or by
    /// another version.
    pub differing_bytes: u64,
}

/// What [`verify_bytes`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByteReport {
    /// Bytes that differ although the plan does not touch them, or differ from what it inserts.
    pub changed_bytes_outside_plan: u64,
    /// The first of them, in the order of the files.
    pub first_difference: Option<Difference>,
    /// `lancet.*` metadata entries at the end of the output.
    pub metadata_entries: usize,
    /// Tensors of the index that should be equal and are not, or that are missing or added.
    pub changed_tensors: Vec<String>,
    /// Tensors compared byte by byte through the two indices.
    pub tensors_compared: usize,
    /// The edited tensors.
    pub tensors: Vec<TensorReport>,
}

impl ByteReport {
    /// Takes what was found in another file of the model in.
    pub fn merge(&mut self, other: Self) {
        self.changed_bytes_outside_plan += other.changed_bytes_outside_plan;
        self.first_difference = self.first_difference.take().or(other.first_difference);
        self.metadata_entries += other.metadata_entries;
        self.changed_tensors.extend(other.changed_tensors);
        self.tensors_compared += other.tensors_compared;
        self.tensors.extend(other.tensors);
    }

    /// Whether the output is what the plan makes of the base.
    pub fn passed(&self) -> bool {
        self.changed_bytes_outside_plan == 0
            && self.changed_tensors.is_empty()
            && self.tensors.iter().all(|t| {
                let most = if t.quantised { MAX_LEVELS } else { MAX_ULP };
                t.leak_after.is_finite() && t.max_ulp <= most && t.differing_bytes == 0
            })
    }
}

/// Compares the model `out` with what `plan` makes of `base`: every byte outside the edited tensors, every edited
/// tensor with the exact edit (Wang et al. 2025, eq. 4), and, by the two indices alone, every other tensor.
/// Metadata entries `lancet.*` at the end of `out` are allowed.
///
/// # Errors
/// If a file cannot be read.
pub fn verify_bytes(base: &Model, out: &Model, plan: &BakePlan) -> Result<ByteReport, BakeError> {
    let layout = Layout::new(base, plan, false)?;
    let files = layout.files.iter().map(|file| Pair::open(file, base, out)).collect::<Result<Vec<_>, _>>()?;
    let metadata = trailing_metadata(&files[0])?;
    let mut work: Vec<(usize, Stretch<'_>)> = Vec::new();
    for (index, file) in layout.files.iter().enumerate() {
        for piece in &file.pieces {
            match &piece.content {
                Content::Edit { .. } | Content::Scales { .. } => {}
                Content::Literal(bytes) => {
                    work.push((index, Stretch { at: piece.at, expected: Expected::Bytes(bytes) }))
                }
                Content::Copy(from) => work.extend((0..piece.len).step_by(STRETCH as usize).map(|done| {
                    let len = STRETCH.min(piece.len - done);
                    (index, Stretch { at: piece.at + done, expected: Expected::Source { from: from + done, len } })
                })),
            }
        }
    }
    // (file, first differing byte, number of differing bytes)
    let found: Vec<Option<(usize, u64, u64)>> = work
        .par_iter()
        .map(|(index, stretch)| Ok(files[*index].compare(stretch)?.map(|(first, count)| (*index, first, count))))
        .collect::<Result<_, BakeError>>()?;
    let mut differences: Vec<(usize, u64, u64)> = found.into_iter().flatten().collect();
    for (index, file) in files.iter().enumerate() {
        let allowed = file.expected + if index == 0 { metadata.bytes } else { 0 };
        if file.found > allowed {
            differences.push((index, allowed, file.found - allowed));
        }
    }
    let first = differences.iter().min();
    let (pairs, mut changed_tensors) = pair_tensors(base, out, plan);
    let (tensors, others) =
        rayon::join(|| check_edits(base, out, plan, &pairs), || compare_others(base, out, plan, &pairs));
    let (others, tensors_compared) = others?;
    changed_tensors.extend(others);
    Ok(ByteReport {
        changed_bytes_outside_plan: differences.iter().map(|(_, _, count)| count).sum(),
        first_difference: first
            .map(|(index, offset, _)| Difference { file: files[*index].path.clone(), offset: *offset }),
        metadata_entries: metadata.count,
        changed_tensors,
        tensors_compared,
        tensors: tensors?,
    })
}

/// Bytes of the output at `at`, and what they should be.
struct Stretch<'l> {
    at: u64,
    expected: Expected<'l>,
}

enum Expected<'l> {
    Source { from: u64, len: u64 },
    Bytes(&'l [u8]),
}

/// A base file, the output file that should follow from it, and that one's expected and actual length.
struct Pair {
    source: PathBuf,
    base: File,
    path: PathBuf,
    out: File,
    expected: u64,
    found: u64,
}

impl Pair {
    fn open(file: &FileLayout, base: &Model, out: &Model) -> Result<Self, BakeError> {
        // The model file may have been given another name.
        let path = if file.source == base.path { out.path.clone() } else { folder(&out.path).join(&file.relative) };
        let input = File::open(&file.source).map_err(BakeError::read(&file.source))?;
        let output = File::open(&path).map_err(BakeError::read(&path))?;
        let found = output.metadata().map_err(BakeError::read(&path))?.len();
        Ok(Self { source: file.source.clone(), base: input, path, out: output, expected: file.len, found })
    }

    /// First differing byte of the output and the number of differing bytes; missing ones differ.
    fn compare(&self, stretch: &Stretch<'_>) -> Result<Option<(u64, u64)>, BakeError> {
        let len = match stretch.expected {
            Expected::Source { len, .. } => len,
            Expected::Bytes(bytes) => bytes.len() as u64,
        };
        let present = self.found.saturating_sub(stretch.at).min(len);
        let (mut first, mut count) = (None, 0);
        let (mut was, mut is) = (vec![0u8; BLOCK], vec![0u8; BLOCK]);
        let mut done = 0;
        while done < present {
            let size = usize::try_from(present - done).map_or(BLOCK, |left| left.min(BLOCK));
            let (was, is) = (&mut was[..size], &mut is[..size]);
            read_exact_at(&self.out, is, stretch.at + done).map_err(BakeError::read(&self.path))?;
            match stretch.expected {
                Expected::Source { from, .. } => {
                    read_exact_at(&self.base, was, from + done).map_err(BakeError::read(&self.source))?;
                }
                Expected::Bytes(bytes) => {
                    let at = usize::try_from(done).expect("a literal is in memory");
                    was.copy_from_slice(&bytes[at..at + size]);
                }
            }
            if was != is {
                let mut differing =
                    was.iter().zip(&*is).enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i as u64);
                let index = differing.next().expect("the blocks differ");
                first.get_or_insert(stretch.at + done + index);
                count += 1 + differing.count() as u64;
            }
            done += size as u64;
        }
        if present < len {
            first.get_or_insert(stretch.at + present);
            count += len - present;
        }
        Ok(first.map(|first| (first, count)))
    }
}

#[derive(Default)]
struct Metadata {
    bytes: u64,
    count: usize,
}

/// The `lancet.*` metadata entries past the expected end of the model file. Anything else there counts as a change.
fn trailing_metadata(pair: &Pair) -> Result<Metadata, BakeError> {
    let extra = pair.found.saturating_sub(pair.expected);
    if extra == 0 || extra > METADATA_LIMIT {
        return Ok(Metadata::default());
    }
    let mut tail = vec![0u8; usize::try_from(extra).expect("it is below the limit")];
    read_exact_at(&pair.out, &mut tail, pair.expected).map_err(BakeError::read(&pair.path))?;
    let Ok(model) = ModelProto::decode(tail.as_slice()) else { return Ok(Metadata::default()) };
    let entries = model.metadata_props;
    let ours = entries.iter().all(|entry| entry.key.as_deref().is_some_and(|key| key.starts_with(METADATA_PREFIX)));
    let again = ModelProto { metadata_props: entries, ..Default::default() };
    if ours && again.encode_to_vec() == tail {
        Ok(Metadata { bytes: extra, count: again.metadata_props.len() })
    } else {
        Ok(Metadata::default())
    }
}

/// Pairs the tensors of the two indices in file order, leaving out what the plan adds; the second list names
/// what has no counterpart or another header.
fn pair_tensors(base: &Model, out: &Model, plan: &BakePlan) -> (Vec<(TensorId, TensorId)>, Vec<String>) {
    let constants = plan.patch.nodes.iter().flat_map(|(_, node)| &node.attribute).filter_map(|a| a.t.as_ref());
    let copies = plan.tensors.iter().filter_map(|edit| edit.copy.as_deref());
    let added = plan.patch.initializers.iter().chain(constants).filter_map(|t| t.name.as_deref());
    let added: Vec<&str> = added.chain(copies).collect();
    let kept = (0..out.tensors.len()).map(TensorId).filter(|&id| !added.contains(&out.tensor(id).name.as_str()));
    let kept: Vec<TensorId> = kept.collect();
    let mut changed = Vec::new();
    let mut pairs = Vec::new();
    for (id, other) in (0..base.tensors.len()).map(TensorId).zip(&kept) {
        let (a, b) = (base.tensor(id), out.tensor(*other));
        if a.name == b.name && a.dtype == b.dtype && a.shape == b.shape {
            pairs.push((id, *other));
        } else {
            changed.push(format!(
                "`{}` ({} {:?}) became `{}` ({} {:?})",
                a.name, a.dtype, a.shape, b.name, b.dtype, b.shape
            ));
        }
    }
    changed.extend(base.tensors.iter().skip(kept.len()).map(|t| format!("`{}` is missing", t.name)));
    changed.extend(kept.iter().skip(base.tensors.len()).map(|&id| format!("`{}` was added", out.tensor(id).name)));
    (pairs, changed)
}

/// Every edited tensor as the output's own index finds it.
fn check_edits(
    base: &Model,
    out: &Model,
    plan: &BakePlan,
    pairs: &[(TensorId, TensorId)],
) -> Result<Vec<TensorReport>, BakeError> {
    plan.tensors
        .par_iter()
        .map(|edit| {
            // Without a counterpart it is listed as changed already.
            let lost = TensorReport {
                initializer: edit.name.clone(),
                leak_after: f64::NAN,
                max_ulp: f64::INFINITY,
                quantised: edit.quantised.is_some(),
                differing_bytes: 0,
            };
            let other = match &edit.copy {
                Some(name) => (0..out.tensors.len()).map(TensorId).find(|id| out.tensor(*id).name == *name),
                None => pairs.iter().find(|(id, _)| *id == edit.tensor).map(|(_, other)| *other),
            };
            let Some(other) = other else { return Ok(lost) };
            if let Some(quantised) = &edit.quantised {
                return check_quantised(base, out, plan, edit, quantised, pairs, other)
                    .map(|found| found.unwrap_or(lost));
            }
            let was = Elements::open(base, base.tensor(edit.tensor), true)?;
            let is = Elements::open(out, out.tensor(other), true)?;
            let (Some(was), Some(is)) = (was, is) else { return Ok(lost) };
            if was.length() != edit.bytes() || is.length() != edit.bytes() {
                return Ok(lost);
            }
            let found = tensor::check(edit, plan.unit_of(edit), &|block, at| was.read(block, at), &|block, at| {
                is.read(block, at)
            })?;
            Ok(TensorReport {
                initializer: edit.name.clone(),
                leak_after: found.leak_after,
                max_ulp: found.max_ulp,
                quantised: false,
                differing_bytes: 0,
            })
        })
        .collect()
}

/// An edited quantised weight: codes `other` of the output with the scales that belong to them there.
fn check_quantised(
    base: &Model,
    out: &Model,
    plan: &BakePlan,
    edit: &TensorEdit,
    quantised: &Quantised,
    pairs: &[(TensorId, TensorId)],
    other: TensorId,
) -> Result<Option<TensorReport>, BakeError> {
    let there = |tensor: TensorId| pairs.iter().find(|(id, _)| *id == tensor).map(|(_, other)| *other);
    let zeros = match quantised.zeros {
        Zeros::Implied(_) => Some(quantised.zeros),
        Zeros::Codes { tensor, padded } => there(tensor).map(|tensor| Zeros::Codes { tensor, padded }),
        Zeros::Floats(tensor) => there(tensor).map(Zeros::Floats),
    };
    let index = quantised.index.map(there);
    let (Some(scales), Some(zeros), None | Some(Some(_))) = (there(quantised.scales), zeros, index) else {
        return Ok(None);
    };
    let after = Quantised { scales, zeros, index: index.flatten(), ..*quantised };
    let (Some(was), Some(is)) =
        (Elements::open(base, base.tensor(edit.tensor), false)?, Elements::open(out, out.tensor(other), false)?)
    else {
        return Ok(None);
    };
    if was.length() != edit.bytes() || is.length() != edit.bytes() {
        return Ok(None);
    }
    let tables = quantised::Tables::open(base, quantised, &edit.name)?;
    let tables_after = quantised::Tables::open(out, &after, &edit.name)?;
    let found = quantised::check(
        quantised,
        plan.unit_of(edit),
        (&|block, at| was.read(block, at), &tables),
        (&|block, at| is.read(block, at), &tables_after),
    )?;
    Ok(Some(TensorReport {
        initializer: edit.name.clone(),
        leak_after: found.leak_after,
        max_ulp: found.max_levels,
        quantised: true,
        // the same arithmetic on every machine, but not in every version
        differing_bytes: match own_metadata(out, VERSION_KEY) {
            Some(version) if version != env!("CARGO_PKG_VERSION") => 0,
            _ => differing_bytes(out, plan, edit, quantised, (&was, &is), &tables, scales)?,
        },
    }))
}

/// Rounds a quantised weight again and counts the bytes of codes and scales that the output holds otherwise.
fn differing_bytes(
    out: &Model,
    plan: &BakePlan,
    edit: &TensorEdit,
    quantised: &Quantised,
    (was, is): (&Elements, &Elements),
    tables: &quantised::Tables,
    scales: TensorId,
) -> Result<u64, BakeError> {
    let count = |a: &[u8], b: &[u8]| a.iter().zip(b).filter(|(a, b)| a != b).count() as u64;
    let stored = match edit.scales() {
        Some(_) => Elements::open(out, out.tensor(scales), false)?,
        None => None,
    };
    // panels may write a stretch of scales more than once: only the last one counts
    let mut again =
        vec![0u8; stored.as_ref().map_or(0, |s| usize::try_from(s.length()).expect("scales fit in memory"))];
    let mut write_scales = |bytes: &[u8], at: u64| {
        let at = usize::try_from(at).expect("scales fit in memory");
        again[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    let mut differing = 0;
    let mut there = Vec::new();
    quantised::edit(
        &edit.name,
        quantised,
        plan.unit_of(edit),
        tables,
        &|block, at| was.read(block, at),
        &mut |bytes, at| {
            there.resize(bytes.len(), 0);
            is.read(&mut there, at)?;
            differing += count(bytes, &there);
            Ok(())
        },
        stored.is_some().then_some(&mut write_scales as Write<'_>),
    )?;
    if let Some(stored) = stored {
        let mut there = vec![0u8; again.len()];
        stored.read(&mut there, 0)?;
        differing += count(&again, &there);
    }
    Ok(differing)
}

/// Names of unedited tensors whose bytes differ, and how many were compared.
fn compare_others(
    base: &Model,
    out: &Model,
    plan: &BakePlan,
    pairs: &[(TensorId, TensorId)],
) -> Result<(Vec<String>, usize), BakeError> {
    let edited: HashSet<TensorId> = plan
        .tensors
        .iter()
        .filter(|edit| edit.copy.is_none())
        .flat_map(|edit| [edit.tensor].into_iter().chain(edit.scales()))
        .collect();
    let others: Vec<_> = pairs.iter().filter(|(id, _)| !edited.contains(id)).collect();
    let changed: Vec<Option<String>> = others
        .par_iter()
        .map(|(id, other)| {
            let (a, b) = (base.tensor(*id), out.tensor(*other));
            let equal = match (Elements::open(base, a, false)?, Elements::open(out, b, false)?) {
                (Some(a), Some(b)) => a.equals(&b)?,
                (None, None) => true,
                _ => false,
            };
            Ok((!equal).then(|| format!("`{}` has other bytes", a.name)))
        })
        .collect::<Result<_, BakeError>>()?;
    Ok((changed.into_iter().flatten().collect(), others.len()))
}
