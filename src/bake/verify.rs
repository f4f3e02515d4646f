//! Proves from the two files what a bake changed: nothing outside the plan, and inside it what was planned.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use prost::Message;
use rayon::prelude::*;

use super::addition::AddedTo;
use super::apply::folder;
use super::elements::Elements;
use super::error::BakeError;
use super::explain::{Expected as Planned, Written, explain};
use super::findings::{Finding, FindingKind, Findings};
use super::layout::{Content, Entries, FileLayout, Layout, model_name, normal};
use super::metadata::{Held, hold};
use super::plan::{BakePlan, TensorEdit};
use super::proof::{ByteReport, Difference, Extent, TensorReport};
use super::quantised;
use super::tensor::{self, BLOCK, Write, differing_in};
use crate::files;
use crate::onnx::external::read_exact_at;
use crate::onnx::proto::ModelProto;
use crate::onnx::quant::{Quantised, Zeros};
use crate::onnx::{Model, Storage, TensorId, TensorRef};

/// Bytes compared by one worker at a time.
const STRETCH: u64 = 16 << 20;

/// A trailing run of metadata larger than this is not looked at.
const METADATA_LIMIT: u64 = 1 << 20;

/// Compares the model `out` with what `plan` makes of `base`: every byte of every file, edited tensors with the edit
/// made again (Wang et al. 2025, eq. 4), and every other tensor where the index of each file says that it is. A tensor
/// that both indices put at the same place, where the files have the same bytes, is not read again. The arithmetic of
/// the edit is the same on every machine and with any number of threads. Nothing that `out` says of itself decides what
/// is looked at.
///
/// # Errors
/// If a file cannot be read.
pub fn verify_bytes(base: &Model, out: &Model, plan: &BakePlan) -> Result<ByteReport, BakeError> {
    let layout = Layout::new(base, plan, Entries::LeftOut)?;
    let files = layout.files.iter().map(|file| BothFiles::open(file, base, out)).collect::<Result<Vec<_>, _>>()?;
    let name = model_name(out).to_string_lossy().into_owned();
    let metadata = metadata(base, out, plan, &files[0], &name)?;
    let (pairs, unpaired) = pair_tensors(base, out, plan);
    let (tensors, differences) = rayon::join(|| check_edits(base, out, plan, &pairs), || differences(&layout, &files));
    let (tensors, mut differences) = (tensors?, differences?);
    for (index, file) in files.iter().enumerate() {
        let allowed = file.expected + if index == 0 { metadata.bytes } else { 0 };
        if file.found > allowed {
            differences.push((index, allowed, file.found - allowed));
        }
    }
    differences.sort_unstable();
    let mut findings = Findings::default();
    findings.extend(metadata.held.findings);
    if differences.iter().any(|(index, ..)| *index == 0) {
        findings.extend(in_model_file(&layout.files[0], &files[0], &name, &metadata.keys)?);
    }
    findings.extend(unpaired.into_iter().map(|(tensor, detail)| of_tensor(&name, tensor, detail)));
    let same = Same { layout: &layout, files: &files, differences: &differences };
    let (others, tensors_compared) = compare_others(base, out, plan, &pairs, &same)?;
    findings.extend(others.into_iter().map(|tensor| of_tensor(&name, tensor, "it has other bytes".into())));
    findings.extend(plan.tensors.iter().zip(&tensors).filter(|(_, found)| !found.passed()).map(|(edit, found)| {
        let detail = match found.differing_bytes {
            0 => "it is not where the edit puts it, or has another form".to_string(),
            n => format!("{n} of its bytes are not those that the edit gives"),
        };
        Finding { name: edit.name.clone(), ..of_tensor(&name, base.tensor(edit.tensor), detail) }
    }));
    for (index, file) in files.iter().enumerate().skip(1) {
        let here = differences.iter().filter(|(at, ..)| *at == index);
        let count: u64 = here.clone().map(|(.., count)| count).sum();
        if let Some((_, first, _)) = here.min() {
            findings.add(file.differs(*first, count, &layout.files[index]));
        }
    }
    if let Some((_, first, _)) = differences.first()
        && findings.is_empty()
    {
        let count: u64 = differences.iter().map(|(.., count)| count).sum();
        findings.add(Finding { kind: FindingKind::Model, ..files[0].differs(*first, count, &layout.files[0]) });
    }
    let added = plan.added.iter().filter(|added| added.place == AddedTo::Nodes).count();
    let by_nodes = plan.nodes.len() + added + plan.gated.len();
    Ok(ByteReport {
        changed_bytes_outside_plan: differences.iter().map(|(.., count)| count).sum(),
        first_difference: differences
            .first()
            .map(|(index, offset, _)| Difference { file: files[*index].path.clone(), offset: *offset }),
        metadata_entries: metadata.count,
        findings,
        claims: metadata.held.claims,
        unchecked: metadata.held.unchecked,
        tensors_compared,
        extent: Extent::of(plan, by_nodes, &tensors),
        tensors,
    })
}

/// A difference in a tensor, with the file that holds it.
fn of_tensor(model_file: &str, tensor: &TensorRef, detail: String) -> Finding {
    let file = match &tensor.storage {
        Storage::External { location, .. } => normal(location).to_string_lossy().into_owned(),
        _ => model_file.to_string(),
    };
    Finding { kind: FindingKind::Tensor, file, name: tensor.name.clone(), detail }
}

/// Stretches outside the edited tensors that are not as they should be: file, first differing byte, number of them.
fn differences(layout: &Layout, files: &[BothFiles]) -> Result<Vec<(usize, u64, u64)>, BakeError> {
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
    let found: Vec<Option<(usize, u64, u64)>> = work
        .par_iter()
        .map(|(index, stretch)| Ok(files[*index].compare(stretch)?.map(|(first, count)| (*index, first, count))))
        .collect::<Result<_, BakeError>>()?;
    Ok(found.into_iter().flatten().collect())
}

/// What differs in the model file, by name.
fn in_model_file(
    layout: &FileLayout,
    pair: &BothFiles,
    name: &str,
    known: &HashSet<String>,
) -> Result<Vec<Finding>, BakeError> {
    let base = files::open(&pair.source).map_err(BakeError::read(&pair.source))?;
    let out = files::open(&pair.path).map_err(BakeError::read(&pair.path))?;
    Ok(explain(&Planned { layout, base: &base }, &Written { file: &out, len: pair.found }, name, known))
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

/// A base file, the output file that should follow from it, and that one's expected and actual length. They are opened
/// by whoever reads them: a model may have more files than a process may hold open.
struct BothFiles {
    source: PathBuf,
    path: PathBuf,
    /// The same without links, as the index of the output names it.
    real: Option<PathBuf>,
    expected: u64,
    /// 0 where there is no such file.
    found: u64,
    missing: bool,
}

impl BothFiles {
    fn open(file: &FileLayout, base: &Model, out: &Model) -> Result<Self, BakeError> {
        // The model file may have been given another name.
        let path = if file.source == base.path { out.path.clone() } else { folder(&out.path).join(&file.relative) };
        let (found, missing) = match std::fs::metadata(&path) {
            Ok(meta) => (meta.len(), false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, true),
            Err(error) => return Err(BakeError::read(&path)(error)),
        };
        let real = path.canonicalize().ok();
        Ok(Self { source: file.source.clone(), path, real, expected: file.len, found, missing })
    }

    /// How the whole file differs.
    fn differs(&self, first: u64, count: u64, layout: &FileLayout) -> Finding {
        let detail = match (self.missing, self.found == self.expected) {
            (true, _) => "it is missing".to_string(),
            (_, true) => format!("{count} bytes are not those that the bake writes, the first at {first}"),
            (_, false) => format!("it has {} bytes, and the bake writes {}", self.found, self.expected),
        };
        let file = layout.relative.to_string_lossy().into_owned();
        Finding { kind: FindingKind::ExternalData, file, name: String::new(), detail }
    }

    /// First differing byte of the output and the number of differing bytes; missing ones differ.
    fn compare(&self, stretch: &Stretch<'_>) -> Result<Option<(u64, u64)>, BakeError> {
        let len = match stretch.expected {
            Expected::Source { len, .. } => len,
            Expected::Bytes(bytes) => bytes.len() as u64,
        };
        let present = self.found.saturating_sub(stretch.at).min(len);
        if present == 0 {
            return Ok((len > 0).then_some((stretch.at, len)));
        }
        let open = |path: &Path| files::open(path).map_err(BakeError::read(path));
        let out = open(&self.path)?;
        let base = match stretch.expected {
            Expected::Source { .. } => Some(open(&self.source)?),
            Expected::Bytes(_) => None,
        };
        let (mut first, mut count) = (None, 0);
        let (mut was, mut is) = (vec![0u8; BLOCK], vec![0u8; BLOCK]);
        let mut done = 0;
        while done < present {
            let size = usize::try_from(present - done).map_or(BLOCK, |left| left.min(BLOCK));
            let (was, is) = (&mut was[..size], &mut is[..size]);
            read_exact_at(&out, is, stretch.at + done).map_err(BakeError::read(&self.path))?;
            match stretch.expected {
                Expected::Source { from, .. } => {
                    let base = base.as_ref().expect("it was opened for this");
                    read_exact_at(base, was, from + done).map_err(BakeError::read(&self.source))?;
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

/// The metadata entries that the output has beyond those of the base.
struct Metadata {
    /// Bytes at the end of the model file that are these entries and nothing else.
    bytes: u64,
    /// How many are as they should be.
    count: usize,
    held: Held,
    keys: HashSet<String>,
}

/// Holds the entries of the output against the plan. Bytes past the expected end of the model file that are not
/// exactly these entries count as a change.
fn metadata(base: &Model, out: &Model, plan: &BakePlan, pair: &BothFiles, name: &str) -> Result<Metadata, BakeError> {
    let (was, is) = (&base.skeleton.metadata_props, &out.skeleton.metadata_props);
    let entries = &is[was.len().min(is.len())..];
    let held = hold(base, plan, name, entries);
    let again = ModelProto { metadata_props: entries.to_vec(), ..Default::default() }.encode_to_vec();
    let extra = pair.found.saturating_sub(pair.expected);
    let mut exact = false;
    if extra == again.len() as u64 && extra <= METADATA_LIMIT {
        let mut tail = vec![0u8; again.len()];
        let file = files::open(&pair.path).map_err(BakeError::read(&pair.path))?;
        read_exact_at(&file, &mut tail, pair.expected).map_err(BakeError::read(&pair.path))?;
        exact = tail == again;
    }
    Ok(Metadata {
        bytes: if exact { extra } else { 0 },
        count: if exact { entries.len().saturating_sub(held.findings.len()) } else { 0 },
        held,
        keys: entries.iter().filter_map(|entry| entry.key.clone()).collect(),
    })
}

/// Pairs of a tensor of the base and the same one of the output, and those without one, with how they differ.
type Paired<'m> = (Vec<(TensorId, TensorId)>, Vec<(&'m TensorRef, String)>);

/// Pairs the tensors of the two indices by name, those of one name in file order, leaving out what the plan adds.
fn pair_tensors<'m>(base: &'m Model, out: &'m Model, plan: &BakePlan) -> Paired<'m> {
    let constants = plan.patch.nodes.iter().flat_map(|(_, node)| &node.attribute).filter_map(|a| a.t.as_ref());
    let copies = plan.tensors.iter().filter_map(|edit| edit.copy.as_deref());
    let added = plan.patch.initializers.iter().chain(constants).filter_map(|t| t.name.as_deref());
    let added: HashSet<&str> = added.chain(copies).collect();
    let mut there: HashMap<&str, VecDeque<TensorId>> = HashMap::new();
    for id in (0..out.tensors.len()).map(TensorId) {
        // functions may each hold one of such a name, and the base has none
        if !added.contains(out.tensor(id).name.as_str()) {
            there.entry(&out.tensor(id).name).or_default().push_back(id);
        }
    }
    let (mut pairs, mut unpaired) = (Vec::new(), Vec::new());
    for id in (0..base.tensors.len()).map(TensorId) {
        let a = base.tensor(id);
        let Some(other) = there.get_mut(a.name.as_str()).and_then(VecDeque::pop_front) else {
            unpaired.push((a, "it is missing".to_string()));
            continue;
        };
        let b = out.tensor(other);
        if a.dtype == b.dtype && a.shape == b.shape {
            pairs.push((id, other));
        } else {
            let detail = format!("it is {} {:?}, and was to be {} {:?}", b.dtype, b.shape, a.dtype, a.shape);
            unpaired.push((a, detail));
        }
    }
    let mut left: Vec<TensorId> = there.into_values().flatten().collect();
    left.sort_unstable();
    unpaired.extend(left.into_iter().map(|id| (out.tensor(id), "it was added".to_string())));
    (pairs, unpaired)
}

/// Every edited tensor as the output's own index finds it.
fn check_edits(
    base: &Model,
    out: &Model,
    plan: &BakePlan,
    pairs: &[(TensorId, TensorId)],
) -> Result<Vec<TensorReport>, BakeError> {
    let check = |edit: &TensorEdit| -> Result<TensorReport, BakeError> {
        // Without a counterpart it is listed as changed already.
        let lost = TensorReport {
            initializer: edit.name.clone(),
            leak_after: f64::NAN,
            max_ulp: f64::INFINITY,
            quantised: edit.quantised.is_some(),
            differing_bytes: 0,
            changed: false,
            untouched: false,
        };
        let other = match &edit.copy {
            Some(name) => (0..out.tensors.len()).map(TensorId).find(|id| out.tensor(*id).name == *name),
            None => pairs.iter().find(|(id, _)| *id == edit.tensor).map(|(_, other)| *other),
        };
        let Some(other) = other else { return Ok(lost) };
        if let Some(quantised) = &edit.quantised {
            return check_quantised(base, out, plan, edit, quantised, pairs, other).map(|found| found.unwrap_or(lost));
        }
        let was = Elements::open(base, base.tensor(edit.tensor), true)?;
        let is = Elements::open(out, out.tensor(other), true)?;
        let (Some(was), Some(is)) = (was, is) else { return Ok(lost) };
        if was.length() != edit.bytes() || is.length() != edit.bytes() {
            return Ok(lost);
        }
        let found =
            tensor::check(edit, &plan.along(edit), &|block, at| was.read(block, at), &|block, at| is.read(block, at))?;
        Ok(TensorReport {
            initializer: edit.name.clone(),
            leak_after: found.leak_after,
            max_ulp: found.max_ulp,
            quantised: false,
            differing_bytes: found.differing_bytes,
            changed: found.changed,
            untouched: found.differing_bytes > 0 && was.equals(&is)?,
        })
    };
    let each = |index: usize| Ok((index, check(&plan.tensors[index])?));
    let (quantised, float): (Vec<usize>, Vec<usize>) =
        (0..plan.tensors.len()).partition(|&index| plan.tensors[index].quantised.is_some());
    // quantised weights one after the other, as each is looked at by all threads and needs much memory
    let (quantised, float) = rayon::join(
        || quantised.into_iter().map(each).collect::<Result<Vec<_>, BakeError>>(),
        || float.into_par_iter().map(each).collect::<Result<Vec<_>, BakeError>>(),
    );
    let mut found: Vec<(usize, TensorReport)> = quantised?.into_iter().chain(float?).collect();
    found.sort_by_key(|(index, _)| *index);
    Ok(found.into_iter().map(|(_, report)| report).collect())
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
        &plan.directions(edit),
        (&|block, at| was.read(block, at), &tables),
        (&|block, at| is.read(block, at), &tables_after),
    )?;
    let (differing_bytes, changed) = round_again(out, plan, edit, quantised, (&was, &is), &tables, scales)?;
    Ok(Some(TensorReport {
        initializer: edit.name.clone(),
        leak_after: found.leak_after,
        max_ulp: found.max_levels,
        quantised: true,
        differing_bytes,
        changed,
        untouched: differing_bytes > 0 && was.equals(&is)?,
    }))
}

/// Rounds a quantised weight again and counts the bytes of codes and scales that the output holds otherwise; and
/// whether the rounding changes any value.
fn round_again(
    out: &Model,
    plan: &BakePlan,
    edit: &TensorEdit,
    quantised: &Quantised,
    (was, is): (&Elements, &Elements),
    tables: &quantised::Tables,
    scales: TensorId,
) -> Result<(u64, bool), BakeError> {
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
    let found = quantised::edit(
        &edit.name,
        quantised,
        &plan.directions(edit),
        tables,
        &|block, at| was.read(block, at),
        &mut |bytes, at| {
            there.resize(bytes.len(), 0);
            is.read(&mut there, at)?;
            differing += differing_in(bytes, &there);
            Ok(())
        },
        stored.is_some().then_some(&mut write_scales as Write<'_>),
    )?;
    if let Some(stored) = stored {
        let mut there = vec![0u8; again.len()];
        stored.read(&mut there, 0)?;
        differing += differing_in(&again, &there);
    }
    Ok((differing, found.tally.max_abs_delta > 0.0 || found.grown > 0))
}

/// What the comparison of whole files has shown already: which stretches of the output are those of the base.
struct Same<'a> {
    layout: &'a Layout,
    files: &'a [BothFiles],
    differences: &'a [(usize, u64, u64)],
}

impl Same<'_> {
    /// Whether the places that the two indices give a tensor were compared with each other, byte by byte, and are equal.
    /// A file in which anything differs shows nothing.
    fn holds(&self, base: &Model, out: &Model, (was, is): (&TensorRef, &TensorRef)) -> bool {
        let (Some((source, from)), Some((path, at))) = (stored(base, was), stored(out, is)) else { return false };
        let alike = std::mem::discriminant(&was.storage) == std::mem::discriminant(&is.storage);
        let covered = |(index, file): (usize, &FileLayout)| {
            let both = &self.files[index];
            both.source == source
                && (both.path == path || both.real.as_deref() == Some(path))
                && self.differences.iter().all(|(differing, ..)| *differing != index)
                && file.pieces.iter().any(|piece| match piece.content {
                    Content::Copy(copied) => {
                        copied <= from.start
                            && from.end <= copied + piece.len
                            && from.end - from.start == at.end - at.start
                            && at.start.checked_sub(piece.at) == Some(from.start - copied)
                    }
                    Content::Literal(_) | Content::Edit { .. } | Content::Scales { .. } => false,
                })
        };
        alike && self.layout.files.iter().enumerate().any(covered)
    }
}

/// The file that holds a tensor's bytes as they are stored, and where in it.
fn stored<'m>(model: &'m Model, tensor: &'m TensorRef) -> Option<(&'m Path, Range<u64>)> {
    match &tensor.storage {
        Storage::Embedded { offset, length } | Storage::Varints { offset, length } => {
            Some((&model.path, *offset..offset + length))
        }
        Storage::External { path, offset, length, .. } => Some((path, *offset..offset + length)),
        Storage::Opaque => None,
    }
}

/// Unedited tensors whose bytes differ, and how many were compared.
fn compare_others<'m>(
    base: &'m Model,
    out: &Model,
    plan: &BakePlan,
    pairs: &[(TensorId, TensorId)],
    same: &Same<'_>,
) -> Result<(Vec<&'m TensorRef>, usize), BakeError> {
    let edited: HashSet<TensorId> = plan
        .tensors
        .iter()
        .filter(|edit| edit.copy.is_none())
        .flat_map(|edit| [edit.tensor].into_iter().chain(edit.scales()))
        .collect();
    let others: Vec<_> = pairs.iter().filter(|(id, _)| !edited.contains(id)).collect();
    let changed: Vec<Option<&TensorRef>> = others
        .par_iter()
        .map(|(id, other)| {
            let (a, b) = (base.tensor(*id), out.tensor(*other));
            if same.holds(base, out, (a, b)) {
                return Ok(None);
            }
            let equal = match (Elements::open(base, a, false)?, Elements::open(out, b, false)?) {
                (Some(a), Some(b)) => a.equals(&b)?,
                (None, None) => true,
                _ => false,
            };
            Ok((!equal).then_some(a))
        })
        .collect::<Result<_, BakeError>>()?;
    Ok((changed.into_iter().flatten().collect(), others.len()))
}
