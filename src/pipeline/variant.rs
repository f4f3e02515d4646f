//! One variant: baked, loaded again and verified, and measured before and after where there is a runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::bytes::{equal, is_single};
use super::consumer::Consumer;
use super::engine::Observer;
use super::guard::{Guard, judge};
use super::opened::Plans;
use super::package::{Package, Variant, shown};
use super::prove::{Runs, WrittenVariant};
use super::running::Running;
use super::stage::Stage;
use super::understood::UnderstoodVariant;
use super::{BakeOptions, evaluate, inspect, prove};
use crate::bake::{self as baking, BakeError, BakePlan, GUARD, GuardMark, PlanOptions, Staging, further_key};
use crate::edit::Edit;
use crate::error::Error;
use crate::files::{self, Unwritten, WriteBack};
use crate::onnx::Model;
use crate::onnx::proto::{ModelProto, StringStringEntryProto};
use crate::report::{BakeResult, EditResult, VariantResult};

/// How often the wait for the disk looks whether the user asked to stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// What is measured on each variant, and what it must keep.
pub struct Measuring<'a> {
    /// How it is run.
    pub running: Running<'a>,
    /// Answers and scores.
    pub settings: &'a evaluate::Settings,
    /// The guard.
    pub guard: &'a Guard,
}

/// What is done to every variant.
pub struct BakeJob<'a> {
    /// What is taken out, and added.
    pub edit: &'a Edit,
    /// How and where the model is baked.
    pub options: &'a BakeOptions<'a>,
    /// How each file's bake is planned.
    pub plan: PlanOptions,
    /// What is measured before and after; `None` measures nothing.
    pub measuring: Option<&'a Measuring<'a>>,
    /// Is told the progress.
    pub observer: &'a dyn Observer,
}

/// What became of one variant.
pub struct Baked {
    /// Its row of the result.
    pub result: VariantResult,
    /// SHA-256 of the ablated direction, hexadecimal; empty where none is.
    pub direction_sha256: String,
    /// Where the vector of an activation addition went.
    pub added: Vec<baking::Added>,
}

/// Seconds by what they were spent on.
pub struct Clock {
    last: Instant,
    /// Sums so far.
    pub seconds: BTreeMap<String, f64>,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { last: Instant::now(), seconds: BTreeMap::new() }
    }

    /// Adds the time since the last call to `name`, and returns it.
    pub fn lap(&mut self, name: &str) -> f64 {
        let took = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        *self.seconds.entry(name.to_string()).or_default() += took;
        took
    }
}

/// The staging folder while variants are written into it, one after another.
pub struct Desk<'a> {
    staging: &'a Staging,
    job: &'a BakeJob<'a>,
    /// Every file written so far, relative to the output, with the `.onnx` file that it was written for.
    written: BTreeMap<PathBuf, String>,
    /// Edits of every `.onnx` file written so far, and the quantised writers that got nodes in it because rounding was
    /// past its limits.
    edits: BTreeMap<PathBuf, (Vec<EditResult>, BTreeSet<String>)>,
    /// Whether one model is baked: then its name goes without saying.
    lone: bool,
    /// Brings what is written to the disk meanwhile; `None` where nobody asked for that.
    disk: Option<WriteBack>,
    /// Bytes of the whole output.
    needed: u64,
}

impl<'a> Desk<'a> {
    /// An empty staging folder.
    /// `needed` bytes go into it.
    pub fn new(package: &Package, staging: &'a Staging, job: &'a BakeJob<'a>, needed: u64) -> Self {
        let disk = job.options.sync.then(WriteBack::new);
        Self { staging, job, written: BTreeMap::new(), edits: BTreeMap::new(), lone: package.lone, disk, needed }
    }

    /// The `.onnx` file that a file of the output was written for.
    pub fn writer(&self, relative: &Path) -> Option<&str> {
        self.written.get(relative).map(String::as_str)
    }

    /// Has a file of the staging folder brought to the disk.
    ///
    /// # Errors
    /// If a file that was saved before could not be brought there.
    pub fn save(&self, place: &Path) -> Result<(), Error> {
        match &self.disk {
            Some(disk) => disk.start(place).map_err(|unwritten| self.unwritten(unwritten)),
            None => Ok(()),
        }
    }

    /// Waits until everything that was written so far is on the disk.
    ///
    /// # Errors
    /// If the operating system cannot bring it there: then nothing may be published. If the user asked to stop.
    pub fn settle(&self) -> Result<(), Error> {
        let stop = || match self.job.options.cancelled.load(Ordering::Relaxed) {
            true => Err(Error::from(BakeError::Cancelled)),
            false => Ok(()),
        };
        if let Some(disk) = &self.disk {
            while !disk.settled(PATIENCE).map_err(|unwritten| self.unwritten(unwritten))? {
                stop()?;
            }
        }
        stop()
    }

    fn unwritten(&self, unwritten: Unwritten) -> Error {
        BakeError::unwritten(unwritten, self.needed).into()
    }

    /// The place of a file in the staging folder.
    pub fn place(&self, relative: &Path) -> PathBuf {
        self.staging.path().join(relative)
    }

    /// Where a variant goes, relative to the output: as in the package, or by its name alone.
    fn relative(&self, variant: &Variant) -> PathBuf {
        match is_single(self.job.options.out) {
            true => variant.relative.file_name().map(PathBuf::from).unwrap_or_default(),
            false => variant.relative.clone(),
        }
    }

    /// The name of a variant where there are several.
    fn told(&self, variant: &Variant) -> Option<String> {
        (!self.lone).then(|| variant.name.clone())
    }

    /// Writes one `.onnx` file with its external data to `relative`. A file that several name as external data is
    /// written once: every further one is written apart and must have come out the same. Returns the edits, and the
    /// bytes that were not there yet.
    ///
    /// Quantised writers whose rounding turned out past [`baking::limits`] get nodes by a new plan, which `again` makes
    /// and `plan` becomes.
    fn write(
        &mut self,
        model: &Model,
        plan: &mut BakePlan,
        again: &dyn Fn(BTreeSet<String>) -> Result<BakePlan, Error>,
        relative: &Path,
        stage: &Stage,
    ) -> Result<(Vec<EditResult>, u64), Error> {
        if let Some((edits, by_nodes)) = self.edits.get(relative) {
            // the embedding of several models: what it holds is proved for each
            if !by_nodes.is_empty() {
                *plan = again(by_nodes.clone())?;
            }
            return Ok((edits.clone(), 0));
        }
        let under = relative.parent().unwrap_or(Path::new(""));
        let external = model.external_files().into_iter().map(|(location, _)| {
            let plain = Path::new(&location).components().filter(|part| matches!(part, Component::Normal(_)));
            under.join(plain.collect::<PathBuf>())
        });
        let mut outputs: Vec<PathBuf> = std::iter::once(relative.to_path_buf()).chain(external).collect();
        outputs.sort();
        outputs.dedup();
        let io = |path: &Path, action: &'static str| {
            let path = path.to_path_buf();
            move |source| Error::from(BakeError::Io { action, path, source })
        };
        let mut folder = self.place(under);
        std::fs::create_dir_all(&folder).map_err(io(&folder, "create"))?;
        let mut apart = None;
        if outputs.iter().any(|path| self.written.contains_key(path)) {
            let made = tempfile::tempdir_in(self.staging.path()).map_err(io(self.staging.path(), "create"))?;
            folder = made.path().to_path_buf();
            apart = Some(made);
        }
        let mut edits = self.apply(model, plan, &folder, stage)?;
        // where nodes cannot be inserted, rounding is what there is
        let mut by_nodes = BTreeSet::new();
        if let Some(past) = self.job.options.past_limits(&edits, plan)
            && let Ok(other) = again(past.clone())
        {
            by_nodes = past;
            self.settle()?;
            for output in &outputs {
                let place = folder.join(output.strip_prefix(under).expect("outputs are below the model's folder"));
                std::fs::remove_file(&place).map_err(io(&place, "replace"))?;
            }
            *plan = other;
            edits = self.apply(model, plan, &folder, stage)?;
        }
        if apart.is_some() {
            self.settle()?;
        }
        let mut bytes = 0;
        for output in outputs {
            let place = self.place(&output);
            if let Some(made) = &apart {
                let own = made.path().join(output.strip_prefix(under).expect("outputs are below the model's folder"));
                if let Some(first) = self.written.get(&output) {
                    if !equal(&own, &place, None)? {
                        return Err(Error::failed_with(
                            format!(
                                "`{}` and `{first}` share the file `{}`, and each needs it edited in another way",
                                shown(relative),
                                shown(&output)
                            ),
                            "export each with external data of its own, or bake them one by one with `--only`",
                        ));
                    }
                    continue;
                }
                if let Some(parent) = place.parent() {
                    std::fs::create_dir_all(parent).map_err(io(parent, "create"))?;
                }
                std::fs::rename(&own, &place).map_err(io(&place, "rename to"))?;
            }
            let source = match output == relative {
                true => model.path.clone(),
                false => files::folder_of(&model.path).join(output.strip_prefix(under).unwrap_or(&output)),
            };
            files::copy_mode(&source, &place).map_err(io(&place, "write"))?;
            self.save(&place)?;
            bytes += std::fs::metadata(&place).map_err(io(&place, "read"))?.len();
            self.written.insert(output, shown(relative));
        }
        self.edits.insert(relative.to_path_buf(), (edits.clone(), by_nodes));
        Ok((edits, bytes))
    }

    fn apply(&self, model: &Model, plan: &BakePlan, folder: &Path, stage: &Stage) -> Result<Vec<EditResult>, Error> {
        let total = std::sync::OnceLock::new();
        let seen = std::sync::atomic::AtomicU64::new(0);
        let progress = |done: u64, all: u64| {
            total.get_or_init(|| self.job.observer.start(stage, all));
            let before = seen.fetch_max(done, Ordering::Relaxed);
            self.job.observer.advance(done.saturating_sub(before));
        };
        let options = baking::ApplyOptions {
            sync: self.disk.as_ref().map_or(baking::Durability::Never, baking::Durability::Later),
            ..baking::ApplyOptions::new(self.job.options.cancelled)
        };
        let edits = baking::apply(model, plan, folder, &options, &progress)?;
        if total.get().is_some() {
            self.job.observer.finish();
        }
        Ok(edits)
    }
}

/// Bakes the edit into one variant, loads what was written and verifies it, and measures it where told how. An
/// embedding file without a model cannot be run: its bytes alone are proved.
///
/// # Errors
/// If the edit does not fit, writing fails, or a run fails. What the measurement or the verification shows is no
/// error.
pub fn bake(
    base: &UnderstoodVariant<'_>,
    mut plans: Plans,
    desk: &mut Desk<'_>,
    clock: &mut Clock,
) -> Result<Baked, Error> {
    let job = desk.job;
    let place = desk.place(&desk.relative(base.variant));
    let bake = write(base, &mut plans, desk, clock)?;

    let written = base.opened.again(&place)?;
    let understood = base.model.as_ref().map(|_| written.understand());
    let runs = match (job.measuring, job.options.runtime) {
        _ if base.model.is_none() => Runs::Not,
        (Some(measuring), _) => Runs::Compared(&measuring.running),
        (None, Some(runtime)) => Runs::Whole(Consumer { runtime, prompts: &[], cancelled: job.options.cancelled }),
        (None, None) => Runs::Not,
    };
    let output = WrittenVariant { opened: &written, model: understood.as_ref().map(Result::as_ref) };
    let verify = prove::variant(base, &output, &plans, job.edit, &runs)?;
    clock.lap("verify");

    let (precision, inspect) = inspect::understood(base);
    let model = base.variant.name.clone();
    let mut result = VariantResult { model, precision, inspect, bake, verify, ..VariantResult::default() };
    if let (Some(measuring), Some(model), Some(understood)) = (job.measuring, &base.model, &understood) {
        // a disk that fails is told before hours of measuring
        desk.settle()?;
        let written = understood.as_ref().map_err(|refusal| Error::from(refusal.clone()))?;
        let Measuring { running, settings, guard } = measuring;
        let engines = (&running.engine(model), &running.engine(written));
        let Running { chat, prompts, .. } = running;
        let told = desk.told(base.variant);
        let compared = evaluate::both(engines, chat, prompts, settings, told, job.observer)?;
        let judged = judge(&compared.evidence, guard);
        if judged.overridden {
            mark_forced(&place, &base.opened.model, job.options.sync)?;
        }
        result.guard = Some(judged);
        result.eval = Some(compared.result);
        clock.lap("evaluate");
    }
    Ok(Baked { result, direction_sha256: plans.main.direction_sha256.clone(), added: plans.main.added })
}

/// Writes the files of one variant. The plans become those that were written, with nodes in place of rounding that was
/// past its limits.
fn write(
    base: &UnderstoodVariant<'_>,
    plans: &mut Plans,
    desk: &mut Desk<'_>,
    clock: &mut Clock,
) -> Result<BakeResult, Error> {
    let (job, relative) = (desk.job, desk.relative(base.variant));
    let stage = Stage::WriteModel { variant: desk.told(base.variant) };
    let plan_again = |by_nodes| base.plan(job.edit, &PlanOptions { by_nodes, ..job.plan.clone() });
    let mut edits = Vec::new();
    let mut bytes_written = 0;
    if let (Some(embedding), Some(plan)) = (&base.opened.embedding, &mut plans.embedding) {
        let name = embedding.path.file_name().expect("an opened file has a name");
        let again = |past| Ok(plan_again(past)?.embedding.expect("it was planned before"));
        let (rows, bytes) = desk.write(embedding, plan, &again, &relative.with_file_name(name), &stage)?;
        edits.extend(rows);
        bytes_written += bytes;
    }
    let again = |past| Ok(plan_again(past)?.main);
    let (rows, bytes) = desk.write(&base.opened.model, &mut plans.main, &again, &relative, &stage)?;
    edits.extend(rows);
    bytes_written += bytes;
    let gated = plans.main.gated.clone();
    Ok(BakeResult { edits, gated, bytes_written, seconds: clock.lap("bake") })
}

/// Says in a model that was written for `base` that its guard failed and was overridden. Fields of a protobuf message may
/// stand in any order, so the entry goes to the end.
fn mark_forced(path: &Path, base: &Model, sync: bool) -> Result<(), Error> {
    use prost::Message;
    use std::io::Write;
    let key = further_key(base, GUARD);
    let entry = StringStringEntryProto { key: Some(key), value: Some(GuardMark::Forced.as_str().into()) };
    let bytes = ModelProto { metadata_props: vec![entry], ..Default::default() }.encode_to_vec();
    let append = || {
        let permissions = std::fs::metadata(path)?.permissions();
        // an input that may not be written to has made this file so
        #[cfg(unix)]
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
        file.write_all(&bytes)?;
        std::fs::set_permissions(path, permissions)?;
        if sync { file.sync_all() } else { Ok(()) }
    };
    append().map_err(|source| BakeError::Io { action: "write", path: path.to_path_buf(), source }.into())
}
