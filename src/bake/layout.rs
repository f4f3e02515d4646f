//! The files of a baked model: for each, which stretches are copied, replaced or edited.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::error::BakeError;
use super::kernel::{self, Along};
use super::plan::{BakePlan, TensorEdit};
use super::tensor::{self, Measured};
use crate::files;
use crate::onnx::external::read_exact_at;
use crate::onnx::graph::varint_halves;
use crate::onnx::patch::{Hole, Segment, Splice, layout, metadata_splice};
use crate::onnx::proto::{StringStringEntryProto, TensorProto};
use crate::onnx::wire::{put_bytes, varint};
use crate::onnx::{Model, Storage, TensorId};

/// Key of `TensorProto.int32_data`: field 5, length-delimited.
const INT32_DATA_KEY: u8 = 0x2a;

/// Key of `TensorProto.raw_data`: field 9, length-delimited.
const RAW_DATA_KEY: u8 = 0x4a;

/// `GraphProto.initializer`.
const INITIALIZER: u32 = 5;

/// External tensors begin at multiples of this, so that runtimes can map them.
const EXTERNAL_ALIGNMENT: u64 = 4096;

/// Protobuf's limit of a message.
const PROTOBUF_LIMIT: u64 = (1 << 31) - 1;

/// `TensorProto.external_data`.
const EXTERNAL_DATA: u32 = 13;

/// A `TensorProto` without weights is smaller than this.
const HEADER_LIMIT: u64 = 1 << 16;

/// One file of the baked model.
#[derive(Debug)]
pub(super) struct FileLayout {
    /// The file it is made from.
    pub source: PathBuf,
    /// Its place in the output folder.
    pub relative: PathBuf,
    /// Its stretches, in order, without gaps.
    pub pieces: Vec<Piece>,
    /// Its length.
    pub len: u64,
}

/// A stretch of a file.
#[derive(Debug)]
pub(super) struct Piece {
    /// First byte in the output file.
    pub at: u64,
    /// Number of bytes.
    pub len: u64,
    /// What it holds.
    pub content: Content,
}

/// What a stretch holds.
#[derive(Debug)]
pub(super) enum Content {
    /// The source's bytes from this offset on.
    Copy(u64),
    /// These bytes.
    Literal(Vec<u8>),
    /// The edit of this number, of the source's bytes from this offset on.
    Edit {
        /// Index into [`BakePlan::tensors`].
        edit: usize,
        /// Offset in the source.
        from: u64,
    },
    /// The scales of that edit, which it writes too.
    Scales {
        /// Index into [`BakePlan::tensors`].
        edit: usize,
    },
}

/// All files of the baked model. Some edits are made already, as their length is known only then.
#[derive(Debug)]
pub(super) struct Layout {
    /// The `.onnx` file first.
    pub files: Vec<FileLayout>,
    /// The edits of tensors that are stored as varints, by index into [`BakePlan::tensors`]. Their bytes are in the
    /// layout as literals.
    pub done: Vec<(usize, Measured)>,
}

impl Layout {
    /// Lays the baked model out.
    ///
    /// # Errors
    /// If a file can no longer be read as it was indexed, if two files would get one name, or if the model file would
    /// pass the 2 GiB that protobuf can hold.
    pub fn new(model: &Model, plan: &BakePlan, metadata: Entries) -> Result<Self, BakeError> {
        let mut splices = plan.splices.clone();
        let mut done = Vec::new();
        for (index, edit) in plan.tensors.iter().enumerate() {
            if let Storage::Varints { offset, length } = model.tensor(edit.tensor).storage {
                let (splice, measured) = edit_varints(model, edit, &plan.along(edit), offset..offset + length)?;
                splices.push(splice);
                done.push((index, measured));
            }
        }
        let appended = copies(model, plan, &mut splices)?;
        let mut edited: BTreeMap<Option<PathBuf>, Vec<(Range<u64>, Edited)>> = BTreeMap::new();
        for (index, edit) in plan.tensors.iter().enumerate() {
            if edit.same_bytes_as.is_some() || edit.copy.is_some() {
                continue;
            }
            if let Some((file, range)) = place(model, edit.tensor).filter(|(_, range)| !range.is_empty()) {
                edited.entry(file).or_default().push((range, Edited::Values(index)));
            }
            if let Some((file, range)) =
                edit.scales().and_then(|scales| place(model, scales)).filter(|(_, r)| !r.is_empty())
            {
                edited.entry(file).or_default().push((range, Edited::Scales(index)));
            }
        }
        edited.values_mut().for_each(|ranges| ranges.sort_by_key(|(range, _)| range.start));
        let changed = edited.keys().flatten().chain(appended.iter().map(|(file, ..)| file)).cloned().collect();
        stale_checksums(model, &changed, &mut splices)?;
        let entries = metadata_splice(model, &plan.metadata);
        let entries_len = entries.bytes.len() as u64;
        if metadata == Entries::Added && !plan.metadata.is_empty() {
            // Last: whatever else is inserted at the end of the file belongs to the graph before it.
            splices.push(entries);
        }
        let name = model_name(model);
        let mut main = FileLayout::empty(model.path.clone(), name.clone());
        let own = edited.remove(&None).unwrap_or_default();
        for segment in layout(model, &splices) {
            match segment {
                Segment::Copy(range) => main.copy(range, &own),
                Segment::Literal { bytes, hole, .. } => {
                    main.push(bytes.len() as u64, Content::Literal(bytes));
                    if let Some(hole) = hole {
                        let edit = &plan.tensors[hole.tag];
                        let (_, from) = place(model, edit.tensor).expect("a copy is made of plain elements");
                        main.push(hole.len, Content::Edit { edit: hole.tag, from: from.start });
                    }
                }
            }
        }
        let placed = main.pieces.iter().filter(|p| match p.content {
            Content::Edit { edit, .. } => plan.tensors[edit].copy.is_none(),
            Content::Scales { .. } => true,
            Content::Copy(_) | Content::Literal(_) => false,
        });
        let placed = placed.count();
        assert_eq!(placed, own.len(), "tensor data lies outside everything that a splice replaces");
        let with_entries = if metadata == Entries::Added { main.len } else { main.len + entries_len };
        check_size(&model.path, with_entries)?;
        let mut files = vec![main];
        for (location, source) in model.external_files() {
            let relative = normal(&location);
            if files[1..].iter().any(|f| f.relative == relative) {
                continue; // `w.bin` and `./w.bin`
            }
            if relative == name {
                let reason = "its external data lies in the model file itself".into();
                return Err(BakeError::Unsupported { tensor: location, reason });
            }
            let len = std::fs::metadata(&source).map_err(BakeError::read(&source))?.len();
            let mut file = FileLayout::empty(source, relative.clone());
            file.copy(0..len, edited.get(&Some(relative.clone())).map_or(&[], Vec::as_slice));
            for (_, at, edit) in appended.iter().filter(|(to, ..)| *to == relative) {
                file.push(at - file.len, Content::Literal(vec![0; (at - file.len) as usize]));
                let (_, from) = place(model, plan.tensors[*edit].tensor).expect("a copy is made of plain elements");
                file.push(plan.tensors[*edit].bytes(), Content::Edit { edit: *edit, from: from.start });
            }
            files.push(file);
        }
        Ok(Self { files, done })
    }

    /// Bytes of all files.
    pub fn total(&self) -> u64 {
        self.files.iter().map(|f| f.len).sum()
    }
}

/// Whether a layout holds the metadata entries of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entries {
    /// At the end of the model file.
    Added,
    /// Not there: a check looks at them by themselves.
    LeftOut,
}

/// Refuses a model file that no protobuf parser would read.
fn check_size(path: &Path, len: u64) -> Result<(), BakeError> {
    if len > PROTOBUF_LIMIT {
        return Err(BakeError::TooLarge { path: path.to_path_buf(), len, most: PROTOBUF_LIMIT });
    }
    Ok(())
}

/// Takes the `checksum` entries off all tensors whose external file the bake changes. An entry is the SHA-1 of the
/// file as it was; it is optional, and a file without one says nothing that is wrong.
fn stale_checksums(model: &Model, changed: &BTreeSet<PathBuf>, splices: &mut Vec<Splice>) -> Result<(), BakeError> {
    if changed.is_empty() {
        return Ok(());
    }
    let file = files::open(&model.path).map_err(BakeError::read(&model.path))?;
    for tensor in &model.tensors {
        let Storage::External { location, .. } = &tensor.storage else { continue };
        if !changed.contains(&normal(location)) {
            continue;
        }
        let body = model.frame(tensor.frame).body.clone();
        // a message that other splices write anew, or that holds weights as well, is not looked into
        if body.end - body.start > HEADER_LIMIT
            || splices.iter().any(|s| s.at.start < body.end && body.start < s.at.end)
        {
            continue;
        }
        let mut bytes = vec![0u8; (body.end - body.start) as usize];
        read_exact_at(&file, &mut bytes, body.start).map_err(BakeError::read(&model.path))?;
        for range in checksum_entries(&bytes) {
            let at = body.start + range.start as u64..body.start + range.end as u64;
            splices.push(Splice::new(at, tensor.frame, Vec::new()));
        }
    }
    Ok(())
}

/// The fields of a `TensorProto` that hold a checksum, as ranges of its bytes.
fn checksum_entries(tensor: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut rest = tensor;
    while !rest.is_empty() {
        let start = tensor.len() - rest.len();
        let Ok((number, wire)) = decode_key(&mut rest) else { return found };
        let value = match wire {
            WireType::Varint => decode_varint(&mut rest).map(|_| 0),
            WireType::SixtyFourBit => Ok(8),
            WireType::ThirtyTwoBit => Ok(4),
            WireType::LengthDelimited => decode_varint(&mut rest),
            WireType::StartGroup | WireType::EndGroup => return found,
        };
        let Some(value) = value.ok().and_then(|len| rest.split_at_checked(usize::try_from(len).ok()?)) else {
            return found;
        };
        rest = value.1;
        let checksum = |entry: StringStringEntryProto| entry.key.as_deref() == Some("checksum");
        if number == EXTERNAL_DATA && StringStringEntryProto::decode(value.0).is_ok_and(checksum) {
            found.push(start..tensor.len() - rest.len());
        }
    }
    found
}

/// New initializers with the edited copies of shared tensors: at the end of the external file of the original, or in
/// the model file where the original is. Returns (file, first byte, edit) of the external ones.
fn copies(model: &Model, plan: &BakePlan, splices: &mut Vec<Splice>) -> Result<Vec<(PathBuf, u64, usize)>, BakeError> {
    let graph = model.graph_index.frame;
    let end = model.frame(graph).body.end;
    let mut appended: Vec<(PathBuf, u64, usize)> = Vec::new();
    for (index, edit) in plan.tensors.iter().enumerate() {
        let Some(name) = &edit.copy else { continue };
        let mut tensor = TensorProto {
            name: Some(name.clone()),
            dims: model.tensor(edit.tensor).shape.iter().map(|&d| d as i64).collect(),
            data_type: Some(edit.dtype.0),
            ..Default::default()
        };
        if let Storage::External { location, path, .. } = &model.tensor(edit.tensor).storage {
            let file = normal(location);
            let taken = appended.iter().filter(|(to, ..)| *to == file).map(|(_, at, e)| at + plan.tensors[*e].bytes());
            let len = std::fs::metadata(path).map_err(BakeError::read(path))?.len();
            let at = taken.max().unwrap_or(len).next_multiple_of(EXTERNAL_ALIGNMENT);
            let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
            tensor.data_location = Some(1);
            tensor.external_data = vec![
                entry("location", location.clone()),
                entry("offset", at.to_string()),
                entry("length", edit.bytes().to_string()),
            ];
            appended.push((file, at, index));
            let mut bytes = Vec::new();
            put_bytes(&mut bytes, INITIALIZER, &tensor.encode_to_vec());
            splices.push(Splice::new(end..end, graph, bytes));
            continue;
        }
        // raw_data (field 9) comes last, so that its bytes can be made while the file is written
        let mut body = tensor.encode_to_vec();
        body.push(RAW_DATA_KEY);
        body.extend(varint(edit.bytes()));
        let mut bytes = vec![(INITIALIZER << 3 | 2) as u8];
        bytes.extend(varint(body.len() as u64 + edit.bytes()));
        bytes.extend(body);
        let hole = Some(Hole { len: edit.bytes(), tag: index });
        splices.push(Splice { hole, ..Splice::new(end..end, graph, bytes) });
    }
    Ok(appended)
}

/// What a range of a source file holds.
#[derive(Debug, Clone, Copy)]
enum Edited {
    /// The elements or codes of the edit of this number.
    Values(usize),
    /// Its scales.
    Scales(usize),
}

impl FileLayout {
    fn empty(source: PathBuf, relative: PathBuf) -> Self {
        Self { source, relative, pieces: Vec::new(), len: 0 }
    }

    fn push(&mut self, len: u64, content: Content) {
        if len > 0 {
            self.pieces.push(Piece { at: self.len, len, content });
            self.len += len;
        }
    }

    /// Adds the stretches for `range` of the source: a copy of it, with the edits that lie in it in their places.
    fn copy(&mut self, range: Range<u64>, edited: &[(Range<u64>, Edited)]) {
        let mut at = range.start;
        for (edit, what) in edited.iter().filter(|(e, _)| range.start <= e.start && e.end <= range.end) {
            self.push(edit.start - at, Content::Copy(at));
            let content = match *what {
                Edited::Values(edit_of) => Content::Edit { edit: edit_of, from: edit.start },
                Edited::Scales(edit_of) => Content::Scales { edit: edit_of },
            };
            self.push(edit.end - edit.start, content);
            at = edit.end;
        }
        self.push(range.end - at, Content::Copy(at));
    }
}

/// The model's file name.
pub(super) fn model_name(model: &Model) -> PathBuf {
    PathBuf::from(model.path.file_name().expect("an opened file has a name"))
}

/// An external location without `.` parts; [`crate::onnx::external::resolve`] has refused all but plain names.
pub(super) fn normal(location: &str) -> PathBuf {
    Path::new(location).components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// The file (`None`: the `.onnx` file) and byte range of a tensor's plain elements.
pub(super) fn place(model: &Model, tensor: TensorId) -> Option<(Option<PathBuf>, Range<u64>)> {
    match &model.tensor(tensor).storage {
        Storage::Embedded { offset, length } => Some((None, *offset..offset + length)),
        Storage::External { location, offset, length, .. } => Some((Some(normal(location)), *offset..offset + length)),
        Storage::Varints { .. } | Storage::Opaque => None,
    }
}

/// Marks edits of the same bytes, and refuses an edit that would change another tensor.
pub(super) fn check_aliases(model: &Model, mut edits: Vec<TensorEdit>) -> Result<Vec<TensorEdit>, BakeError> {
    let mut files: BTreeMap<Option<PathBuf>, Vec<(Range<u64>, TensorId)>> = BTreeMap::new();
    for id in (0..model.tensors.len()).map(TensorId) {
        if let Some((file, range)) = place(model, id)
            && !range.is_empty()
        {
            files.entry(file).or_default().push((range, id));
        }
    }
    let by_tensor: BTreeMap<TensorId, usize> = edits.iter().enumerate().map(|(i, e)| (e.tensor, i)).collect();
    for tensors in files.values_mut() {
        tensors.sort_by_key(|(range, id)| (range.start, range.end, *id));
        // Tensors that overlap with what came before form a group.
        let mut group: Vec<(Range<u64>, TensorId)> = Vec::new();
        let mut end = 0;
        for (range, id) in tensors.drain(..).chain([(u64::MAX..u64::MAX, TensorId(usize::MAX))]) {
            if range.start >= end {
                check_group(model, &group, &mut edits, &by_tensor)?;
                group.clear();
            }
            end = end.max(range.end);
            group.push((range, id));
        }
    }
    Ok(edits)
}

fn check_group(
    model: &Model,
    group: &[(Range<u64>, TensorId)],
    edits: &mut [TensorEdit],
    by_tensor: &BTreeMap<TensorId, usize>,
) -> Result<(), BakeError> {
    let Some((range, first)) = group.iter().find_map(|(range, id)| Some((range, *by_tensor.get(id)?))) else {
        return Ok(());
    };
    for (other_range, id) in group {
        let same = by_tensor.get(id).copied().filter(|&other| {
            let (a, b) = (&edits[first], &edits[other]);
            let alike = match (&a.quantised, &b.quantised) {
                (None, None) => true,
                // the same codes stand for the same weight only with the same scales
                (Some(p), Some(q)) => p == q,
                _ => false,
            };
            alike
                && range == other_range
                && a.dtype == b.dtype
                && a.shape[a.axis..] == b.shape[b.axis..]
                && a.axis == b.axis
        });
        match same {
            Some(other) if other == first => {}
            Some(other) => edits[other].same_bytes_as = Some(first),
            None => {
                let other = match by_tensor.get(id) {
                    Some(&other) => edits[other].name.clone(),
                    None => model.tensor(*id).name.clone(),
                };
                return Err(BakeError::Aliased { tensor: edits[first].name.clone(), other });
            }
        }
    }
    Ok(())
}

/// Edits 16-bit floats stored as packed varints (`int32_data`): the payload is decoded, edited and coded anew,
/// with its length prefix. In memory: this form is that of small models.
fn edit_varints(
    model: &Model,
    edit: &TensorEdit,
    along: &[Along<'_>],
    payload: Range<u64>,
) -> Result<(Splice, Measured), BakeError> {
    let unsupported = |reason: &str| BakeError::Unsupported { tensor: edit.name.clone(), reason: reason.into() };
    let prefix = varint(payload.end - payload.start);
    let start = payload.start - prefix.len() as u64;
    let file = files::open(&model.path).map_err(BakeError::read(&model.path))?;
    let size = usize::try_from(payload.end - start + 1).map_err(|_| unsupported("it is larger than memory"))?;
    let mut bytes = vec![0u8; size];
    read_exact_at(&file, &mut bytes, start - 1).map_err(BakeError::read(&model.path))?;
    if bytes[0] != INT32_DATA_KEY || bytes[1..=prefix.len()] != prefix {
        return Err(unsupported("its `int32_data` is coded in an unusual way"));
    }
    let halves =
        varint_halves(&bytes[1 + prefix.len()..]).ok_or_else(|| unsupported("`int32_data` holds no 16-bit floats"))?;
    if halves.len() as u64 * kernel::width(edit.dtype) as u64 != edit.bytes() {
        return Err(unsupported("`int32_data` does not have as many values as its shape needs"));
    }
    let plain: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
    let mut edited = plain.clone();
    let measured = tensor::edit(
        edit,
        along,
        true,
        &|block, at| {
            let at = usize::try_from(at).expect("it is in memory");
            block.copy_from_slice(&plain[at..at + block.len()]);
            Ok(())
        },
        &mut |block| {
            let at = usize::try_from(block.at).expect("it is in memory");
            edited[at..at + block.after.len()].copy_from_slice(block.after);
            Ok(())
        },
    )?;
    let mut packed = Vec::with_capacity(bytes.len());
    for half in edited.as_chunks::<2>().0 {
        packed.extend(varint(u64::from(u16::from_le_bytes(*half))));
    }
    let mut coded = varint(packed.len() as u64);
    coded.extend(packed);
    Ok((Splice::new(start..payload.end, model.tensor(edit.tensor).frame, coded), measured))
}
