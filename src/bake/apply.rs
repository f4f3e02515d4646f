//! Writes the baked model: unchanged stretches by the operating system's own copy, edited tensors block by
//! block. Memory is a few blocks a thread, whatever the model's size.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::BakeError;
use super::hash::hex;
use super::layout::{Content, Entries, FileLayout, Layout};
use super::plan::{BakePlan, Part, TensorEdit};
use super::quantised::{self, Tables};
use super::tensor::{self, BLOCK, Measured, Rounding, Write};
use crate::files::{self, WriteBack};
use crate::lm::{Layer, Reason, Treatment, WriterKind};
use crate::onnx::external::{read_exact_at, write_all_at};
use crate::onnx::{DataType, Model, Quantised};

/// Bytes that one copy job moves. Between two jobs the writer checks whether the caller cancelled.
const COPY: u64 = 16 << 20;

/// Bytes after which what was written of a file so far is brought to the disk, while more of it is written. Each sync
/// also commits the file system's journal, which stalls writers, hence not more often.
const START: u64 = 128 << 20;

/// When written files reach the disk.
#[derive(Debug, Clone, Copy)]
pub enum Durability<'a> {
    /// Before [`apply`] returns, with the names of the files.
    Now,
    /// By the time that this one has settled, for which the caller waits. The names of the files are left to
    /// [`super::Staging::publish`].
    Later(&'a WriteBack),
    /// When the system finds the time. After a power cut a file may lack any of its bytes.
    Never,
}

/// How a planned bake is written.
#[derive(Debug, Clone, Copy)]
pub struct ApplyOptions<'a> {
    /// Set by the caller to stop.
    pub cancelled: &'a AtomicBool,
    /// When the files reach the disk.
    pub sync: Durability<'a>,
    /// Whether edited tensors are hashed before and after.
    pub hash: bool,
}

impl<'a> ApplyOptions<'a> {
    /// Everything on.
    pub fn new(cancelled: &'a AtomicBool) -> Self {
        Self { cancelled, sync: Durability::Now, hash: true }
    }
}

/// One change that was made: a tensor edited in place, or a writer that got a projection after it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EditResult {
    /// The tensor; for nodes the writer's weight, or the name of its written value where there is no weight.
    pub initializer: String,
    /// The writer's kind.
    pub kind: WriterKind,
    /// The writer: `embed`, `layer.3.mlp_out`.
    pub writer: String,
    /// What the tensor holds; none for nodes.
    pub part: Option<Part>,
    /// The writer's block; none for embeddings.
    pub layer: Option<Layer>,
    /// How it was done.
    pub treatment: Treatment,
    /// Why not, or not exactly, by weights; none where it is.
    pub reason: Option<Reason>,
    /// Element type.
    pub dtype: DataType,
    /// Dimensions, where known.
    pub shape: Option<Vec<u64>>,
    /// Bytes of the tensor's elements; none for nodes, as the fields below.
    pub bytes: Option<u64>,
    /// `||r^T W||` over the columns of the tensor, and over the directions where there are several.
    pub leak_before: Option<f64>,
    /// `||r^T W'||` of the values as stored.
    pub leak_after: Option<f64>,
    /// Largest `|W' - W|`.
    pub max_abs_delta: Option<f64>,
    /// SHA-256 of the elements (little-endian) before.
    pub sha256_before: Option<String>,
    /// The same after.
    pub sha256_after: Option<String>,
    /// How the weight is quantised, in words.
    pub quantisation: Option<String>,
    /// Bits of its codes.
    pub bits: Option<u8>,
    /// What rounding to its grid cost, where it is quantised.
    #[serde(flatten)]
    pub rounding: Option<Rounding>,
}

impl EditResult {
    /// The edit of a tensor, and what it did.
    pub(super) fn of(edit: &TensorEdit, found: &Measured) -> Self {
        let (before, after) = found.sha256.clone().unzip();
        Self {
            initializer: edit.name.clone(),
            kind: edit.kind,
            part: Some(edit.part),
            layer: edit.layer,
            treatment: edit.treatment(),
            reason: edit.turned.as_ref().map(|_| Reason::Turned),
            dtype: edit.dtype,
            shape: Some(edit.shape.clone()),
            bytes: Some(edit.bytes()),
            leak_before: Some(found.leak_before),
            leak_after: Some(found.leak_after),
            max_abs_delta: Some(found.max_abs_delta),
            sha256_before: before,
            sha256_after: after,
            writer: edit.writer.clone(),
            quantisation: edit.quantised.as_ref().map(Quantised::words),
            bits: edit.quantised.as_ref().map(|q| q.bits),
            rounding: found.rounding,
        }
    }
}

/// What one worker does at a time.
enum Job<'l> {
    Edit { file: usize, edit: usize, at: u64, from: u64 },
    Copy { file: usize, at: u64, from: u64, len: u64 },
    Literal { file: usize, at: u64, bytes: &'l [u8] },
}

/// Writes the model that `plan` makes of `model` into the folder `destination`: the `.onnx` file under its
/// own name, external data under its own locations. The folder exists, and is not the model's own;
/// usually it is that of a [`super::Staging`]. `progress` is told the bytes written and their total.
///
/// # Errors
/// Not enough room, NaN or infinity in a weight, cancellation, or whatever the operating system reports.
/// Files that were begun stay in `destination`.
pub fn apply(
    model: &Model,
    plan: &BakePlan,
    destination: &Path,
    options: &ApplyOptions<'_>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<EditResult>, BakeError> {
    refuse_source_folder(model, destination)?;
    stop_if(options.cancelled)?;
    let layout = Layout::new(model, plan, Entries::Added)?;
    let total = layout.total();
    let available = fs4::available_space(destination).map_err(BakeError::read(destination))?;
    if available < total {
        return Err(BakeError::NoSpace { path: destination.to_path_buf(), needed: total, available });
    }
    let own = matches!(options.sync, Durability::Now).then(WriteBack::new);
    let disk = match options.sync {
        Durability::Now => own.as_ref(),
        Durability::Later(disk) => Some(disk),
        Durability::Never => None,
    };
    let create = |file| FilePair::create(file, destination, disk);
    let files = layout.files.iter().map(create).collect::<Result<Vec<_>, _>>()?;
    let done = AtomicU64::new(0);
    let advance = |bytes: u64| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    let writing = Writing { model, plan, layout: &layout, files: &files, options, total, advance: &advance };
    let measured: Mutex<HashMap<usize, Measured>> = Mutex::new(HashMap::new());
    let failed = AtomicBool::new(false);
    let run = |job: Job<'_>| -> Result<(), BakeError> {
        if failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let done = writing.run(job).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        if let Some((edit, found)) = done {
            measured.lock().expect("no worker panics while it holds the lock").insert(edit, found);
        }
        Ok(())
    };
    // Quantised weights one after the other, as each is rounded by all threads and needs much memory. The rest in order:
    // the bridge hands out the largest edits first, small copies fill the gaps at the end.
    let (rounded, rest): (Vec<_>, Vec<_>) = jobs(&layout).into_iter().partition(|job| match job {
        Job::Edit { edit, .. } => plan.tensors[*edit].quantised.is_some(),
        Job::Copy { .. } | Job::Literal { .. } => false,
    });
    let (rounded, rest) =
        rayon::join(|| rounded.into_iter().try_for_each(run), || rest.into_iter().par_bridge().try_for_each(run));
    rounded.and(rest)?;
    stop_if(options.cancelled)?;
    for (pair, disk) in files.iter().filter_map(|pair| Some((pair, pair.disk?))) {
        disk.start(&pair.path).map_err(|unwritten| BakeError::unwritten(unwritten, total))?;
    }
    if let Some(own) = &own {
        own.settle().map_err(|unwritten| BakeError::unwritten(unwritten, total))?;
        sync_folders(&files, destination)?;
    }
    let mut measured = measured.into_inner().expect("no worker panics while it holds the lock");
    measured.extend(layout.done);
    Ok(edits(plan, &measured))
}

/// What every job needs of the whole.
struct Writing<'a> {
    model: &'a Model,
    plan: &'a BakePlan,
    layout: &'a Layout,
    /// Inputs and outputs, in the order of the layout's files.
    files: &'a [FilePair<'a>],
    options: &'a ApplyOptions<'a>,
    /// Bytes of all outputs.
    total: u64,
    /// Is told every number of bytes that was written.
    advance: &'a (dyn Fn(u64) + Sync),
}

impl Writing<'_> {
    /// Does one job. Returns the edit that it was, with what was measured.
    fn run(&self, job: Job<'_>) -> Result<Option<(usize, Measured)>, BakeError> {
        match job {
            Job::Literal { file, at, bytes } => {
                self.put(&self.files[file], &self.files[file].output(self.total)?, bytes, at)?;
                (self.advance)(bytes.len() as u64);
                Ok(None)
            }
            Job::Copy { file, at, from, len } => {
                stop_if(self.options.cancelled)?;
                self.files[file].copy(from, at, len, self.total)?;
                self.files[file].wrote(len, self.total)?;
                (self.advance)(len);
                Ok(None)
            }
            Job::Edit { file, edit, at, from } => {
                let place = Stretch { pair: &self.files[file], at, from };
                let found = match &self.plan.tensors[edit].quantised {
                    Some(quantised) => self.round(edit, quantised, &place)?,
                    None => self.project(edit, &place)?,
                };
                Ok(Some((edit, found)))
            }
        }
    }

    fn put(&self, pair: &FilePair<'_>, output: &File, bytes: &[u8], at: u64) -> Result<(), BakeError> {
        stop_if(self.options.cancelled)?;
        write_all_at(output, bytes, at).map_err(BakeError::write(&pair.path, self.total))?;
        pair.wrote(bytes.len() as u64, self.total)
    }

    /// Edits a tensor of floating-point numbers.
    fn project(&self, edit: usize, place: &Stretch<'_>) -> Result<Measured, BakeError> {
        let planned = &self.plan.tensors[edit];
        let (input, output) = (place.pair.input()?, place.pair.output(self.total)?);
        tensor::edit(
            planned,
            &self.plan.along(planned),
            self.options.hash,
            &|block, offset| self.get(place, &input, block, offset),
            &mut |block| {
                self.put(place.pair, &output, block.after, place.at + block.at)?;
                (self.advance)(block.after.len() as u64);
                Ok(())
            },
        )
    }

    fn get(&self, place: &Stretch<'_>, input: &File, block: &mut [u8], offset: u64) -> Result<(), BakeError> {
        stop_if(self.options.cancelled)?;
        read_exact_at(input, block, place.from + offset).map_err(BakeError::read(place.pair.source))
    }

    /// Edits a quantised weight: its codes, and its scales wherever they lie.
    fn round(&self, edit: usize, quantised: &Quantised, place: &Stretch<'_>) -> Result<Measured, BakeError> {
        let planned = &self.plan.tensors[edit];
        let tables = Tables::open(self.model, quantised, &planned.name)?;
        let (input, output) = (place.pair.input()?, place.pair.output(self.total)?);
        let scales = self.layout.files.iter().zip(self.files).find_map(|(file, pair)| {
            let piece = file.pieces.iter().find(|p| matches!(p.content, Content::Scales { edit: of } if of == edit))?;
            Some((pair, piece.at))
        });
        let scales = match scales {
            Some((pair, start)) => Some((pair, pair.output(self.total)?, start)),
            None => None,
        };
        let mut write_scales = scales.as_ref().map(|(pair, output, start)| {
            move |bytes: &[u8], offset: u64| self.put(pair, output, bytes, start + offset)
        });
        let hash = self.options.hash;
        let bytes = quantised.bytes();
        let (before, measured) = rayon::join(
            || {
                hash.then(|| sha256_of(&input, place.from, bytes))
                    .transpose()
                    .map_err(BakeError::read(place.pair.source))
            },
            || {
                quantised::edit(
                    &planned.name,
                    quantised,
                    &self.plan.directions(planned),
                    &tables,
                    &|block, offset| self.get(place, &input, block, offset),
                    &mut |block, offset| self.put(place.pair, &output, block, place.at + offset),
                    write_scales.as_mut().map(|write| write as Write<'_>),
                )
            },
        );
        let (before, measured) = (before?, Measured::from(measured?));
        (self.advance)(bytes);
        let after = || {
            let written = files::open(&place.pair.path)?;
            sha256_of(&written, place.at, bytes)
        };
        let after = hash.then(after).transpose().map_err(BakeError::read(&place.pair.path))?;
        Ok(Measured { sha256: before.zip(after), ..measured })
    }
}

/// Where a tensor's bytes lie: in the input from `from` on, in the output from `at` on.
#[derive(Clone, Copy)]
struct Stretch<'a> {
    pair: &'a FilePair<'a>,
    at: u64,
    from: u64,
}

/// SHA-256 of a stretch of a file, in hexadecimal.
fn sha256_of(file: &File, from: u64, len: u64) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut block = vec![0u8; BLOCK];
    let mut done = 0;
    while done < len {
        let size = usize::try_from(len - done).map_or(BLOCK, |left| left.min(BLOCK));
        read_exact_at(file, &mut block[..size], from + done)?;
        hasher.update(&block[..size]);
        done += size as u64;
    }
    Ok(hex(&hasher.finalize()))
}

/// The jobs, edits first, largest first.
fn jobs(layout: &Layout) -> Vec<Job<'_>> {
    let mut edits: Vec<(u64, Job<'_>)> = Vec::new();
    let mut rest = Vec::new();
    for (file, plan) in layout.files.iter().enumerate() {
        for piece in &plan.pieces {
            match &piece.content {
                Content::Edit { edit, from } => {
                    edits.push((piece.len, Job::Edit { file, edit: *edit, at: piece.at, from: *from }));
                }
                // written with the codes that they belong to
                Content::Scales { .. } => {}
                Content::Literal(bytes) => rest.push(Job::Literal { file, at: piece.at, bytes }),
                Content::Copy(from) => rest.extend((0..piece.len).step_by(COPY as usize).map(|done| Job::Copy {
                    file,
                    at: piece.at + done,
                    from: from + done,
                    len: COPY.min(piece.len - done),
                })),
            }
        }
    }
    edits.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    edits.into_iter().map(|(_, job)| job).chain(rest).collect()
}

/// A file that is read, and the file that is written from it. Each job opens the files that it needs, as a model may
/// have more files than a process may hold open.
struct FilePair<'l> {
    source: &'l Path,
    path: PathBuf,
    /// Brings the file to the disk; `None` where nobody waits for that.
    disk: Option<&'l WriteBack>,
    /// Bytes written so far.
    written: AtomicU64,
}

impl<'l> FilePair<'l> {
    fn create(file: &'l FileLayout, destination: &Path, disk: Option<&'l WriteBack>) -> Result<Self, BakeError> {
        let path = destination.join(&file.relative);
        let create = |source| BakeError::Io { action: "create", path: path.clone(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(create)?;
        }
        let output =
            OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => BakeError::OutputExists { path: path.clone() },
                _ => create(error),
            })?;
        output.set_len(file.len).map_err(BakeError::write(&path, file.len))?;
        Ok(Self { source: &file.source, path, disk, written: AtomicU64::new(0) })
    }

    /// Notes that so many more bytes are written, and has them brought to the disk if they are many. `total` bytes are
    /// written in all.
    ///
    /// # Errors
    /// If an earlier part could not be brought there.
    fn wrote(&self, bytes: u64, total: u64) -> Result<(), BakeError> {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        match self.disk.filter(|_| before / START < (before + bytes) / START) {
            Some(disk) => disk.start(&self.path).map_err(|unwritten| BakeError::unwritten(unwritten, total)),
            None => Ok(()),
        }
    }

    fn input(&self) -> Result<File, BakeError> {
        files::open(self.source).map_err(BakeError::read(self.source))
    }

    /// The file that was created; `total` bytes are written in all.
    fn output(&self, total: u64) -> Result<File, BakeError> {
        OpenOptions::new().write(true).open(&self.path).map_err(BakeError::write(&self.path, total))
    }

    /// Copies through handles of its own, whose cursors no other thread moves; within the kernel where it can.
    fn copy(&self, from: u64, at: u64, len: u64, total: u64) -> Result<(), BakeError> {
        let (mut input, mut output) = (self.input()?, self.output(total)?);
        input.seek(SeekFrom::Start(from)).map_err(BakeError::read(self.source))?;
        output.seek(SeekFrom::Start(at)).map_err(BakeError::write(&self.path, total))?;
        let copied = match io::copy(&mut (&mut input).take(len), &mut output) {
            Ok(copied) => copied,
            // which of the two failed is not told
            Err(error) => match readable(&input, from, len) {
                Ok(()) => return Err(BakeError::write(&self.path, total)(error)),
                Err(error) => return Err(BakeError::read(self.source)(error)),
            },
        };
        if copied == len { Ok(()) } else { Err(BakeError::read(self.source)(io::ErrorKind::UnexpectedEof.into())) }
    }
}

/// Whether a stretch of a file can be read.
fn readable(file: &File, from: u64, len: u64) -> io::Result<()> {
    let mut block = vec![0u8; BLOCK];
    for at in (0..len).step_by(BLOCK) {
        let size = usize::try_from(len - at).map_or(BLOCK, |left| left.min(BLOCK));
        read_exact_at(file, &mut block[..size], from + at)?;
    }
    Ok(())
}

fn stop_if(cancelled: &AtomicBool) -> Result<(), BakeError> {
    if cancelled.load(Ordering::Relaxed) { Err(BakeError::Cancelled) } else { Ok(()) }
}

/// The folder of a path; `.` where it names none.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn refuse_source_folder(model: &Model, destination: &Path) -> Result<(), BakeError> {
    let real = |path: &Path| path.canonicalize().map_err(BakeError::read(path));
    let wanted = real(destination)?;
    if wanted == real(folder(&model.path))? || Some(wanted.as_path()) == real(&model.path)?.parent() {
        return Err(BakeError::SourceFolder { path: destination.to_path_buf() });
    }
    Ok(())
}

/// Makes the names of new files durable.
fn sync_folders(files: &[FilePair<'_>], destination: &Path) -> Result<(), BakeError> {
    for pair in files {
        let mut at = folder(&pair.path);
        loop {
            sync_folder(at)?;
            if at == destination {
                break;
            }
            at = folder(at);
        }
    }
    Ok(())
}

/// Makes the names in a folder durable, where the system has a notion of that.
pub(super) fn sync_folder(path: &Path) -> Result<(), BakeError> {
    files::sync_folder(path).map_err(BakeError::write(path, 0))
}

fn edits(plan: &BakePlan, measured: &HashMap<usize, Measured>) -> Vec<EditResult> {
    let by_weights = plan
        .tensors
        .iter()
        .enumerate()
        .map(|(index, edit)| EditResult::of(edit, &measured[&edit.same_bytes_as.unwrap_or(index)]));
    let by_nodes = plan.nodes.iter().map(|edit| EditResult {
        initializer: edit.name.clone(),
        kind: edit.kind,
        part: None,
        layer: edit.layer,
        treatment: Treatment::Nodes,
        reason: Some(edit.reason.clone()),
        dtype: edit.dtype,
        shape: edit.shape.clone(),
        bytes: None,
        leak_before: None,
        leak_after: None,
        max_abs_delta: None,
        sha256_before: None,
        sha256_after: None,
        writer: edit.writer.clone(),
        quantisation: edit.quantised.as_ref().map(Quantised::words),
        bits: edit.quantised.as_ref().map(|q| q.bits),
        rounding: None,
    });
    by_weights.chain(by_nodes).collect()
}
