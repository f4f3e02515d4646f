//! ONNX Runtime through the crate `ort`. The only file that names it.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Slice};
use ort::environment::Environment;
use ort::ep;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, ValueType};
use serde::Serialize;

use super::backend::{Backend, Fill, Pick, RowAxes, RuntimeError, Tensor};
use super::machine;
use crate::onnx::DataType;

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// CUDA if it works, else the CPU (the reason is kept).
    Auto,
    /// The CPU execution provider.
    Cpu,
    /// The CUDA execution provider, or an error.
    Cuda,
}

/// What a model computes on 8-bit integers. Products of signed 8-bit weights overflow on x86 processors without VNNI
/// (`onnxruntime_session_options_config_keys.h`, `session.x64quantprecision`), so that one file gives other numbers on
/// other processors. Sessions in memory take the exact way where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integers {
    /// Nothing.
    None,
    /// Products that the file spells on integers: the kernels that do not overflow are taken.
    Products,
    /// Values that are quantised and dequantised around float products: the products stay floats.
    Stored,
}

/// How a session in memory holds weights on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// In an order of their own that products read fastest: private memory of their size, made while the session opens.
    #[default]
    Packed,
    /// As they lie in the mapped file: opened at once and shared with the file cache; every product packs them anew.
    Mapped,
}

/// A loaded ONNX Runtime. One library serves the process.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    threads: usize,
    cuda: bool,
    /// Bytes that CUDA's arena may take; `None` for no limit.
    cuda_memory: Option<usize>,
    /// Whether threads that wait for one another spin.
    spins: bool,
    /// Why `auto` did not take CUDA.
    pub fallback: Option<String>,
}

impl Runtime {
    /// Loads the library at `path` (once a process: a second call returns the first library's environment).
    /// `threads` is the number of intra-op threads, 0 for ONNX Runtime's own choice.
    ///
    /// # Errors
    /// [`RuntimeError::Library`] with the loader's words, [`RuntimeError::Provider`] where CUDA was asked for
    /// and the library is built without it.
    pub fn load(path: &Path, device: Device, threads: usize) -> Result<Self, RuntimeError> {
        let environment = environment(path)?;
        // what fails is returned, and said in our own words
        environment.set_log_level(LogLevel::Fatal);
        let cuda = device != Device::Cpu;
        let mut runtime =
            Self { environment, threads, cuda, cuda_memory: None, spins: !machine::is_busy(), fallback: None };
        if runtime.cuda
            && let Err(reason) = runtime.probe_cuda()
        {
            if device == Device::Cuda {
                return Err(RuntimeError::Provider { provider: "cuda".into(), reason });
            }
            runtime.cuda = false;
            runtime.fallback = Some(reason);
        }
        Ok(runtime)
    }

    /// The same with a limit for the memory that CUDA's arena takes, in bytes.
    #[must_use]
    pub fn with_cuda_memory(self, bytes: Option<usize>) -> Self {
        Self { cuda_memory: bytes, ..self }
    }

    /// The same with threads that spin, or sleep, while they wait for one another. [`Runtime::load`] lets them spin unless
    /// other work keeps the processors busy.
    #[must_use]
    pub fn with_spinning(self, spins: bool) -> Self {
        Self { spins, ..self }
    }

    /// Tries to set CUDA up: a library may be built with it and its own libraries be missing.
    fn probe_cuda(&self) -> Result<(), String> {
        let builder = Session::builder(&self.environment).map_err(|e| e.to_string())?;
        builder
            .with_execution_providers([ep::CUDA::default().build().error_on_failure()])
            .map(|_| ())
            .map_err(|e| e.message().to_string())
    }

    /// The provider that models run on.
    pub fn provider(&self) -> &'static str {
        if self.cuda { "cuda" } else { "cpu" }
    }

    /// Whether models run on CUDA.
    pub fn is_cuda(&self) -> bool {
        self.cuda
    }

    /// ONNX Runtime's build description.
    pub fn build_info() -> String {
        ort::info().to_string()
    }

    /// Loads an encoded model whose external data is named relative to the file system's root.
    ///
    /// # Errors
    /// [`RuntimeError::Load`] with ONNX Runtime's words.
    pub fn session(&self, model: &[u8], integers: Integers, weights: Weights) -> Result<OrtModel, RuntimeError> {
        self.try_session(model, integers, weights).map_err(|reason| RuntimeError::Load { reason })
    }

    /// Loads a file as it is, in ONNX Runtime's default settings.
    ///
    /// # Errors
    /// [`RuntimeError::Load`] with ONNX Runtime's words.
    pub fn published(&self, path: &Path) -> Result<OrtModel, RuntimeError> {
        let load = |reason: String| RuntimeError::Load { reason };
        let mut builder = self.builder().map_err(load)?;
        let session = builder.commit_from_file(path).map_err(|e| load(e.message().to_string()))?;
        Ok(OrtModel { session })
    }

    fn try_session(&self, model: &[u8], integers: Integers, weights: Weights) -> Result<OrtModel, String> {
        let text = |e: ort::Error<SessionBuilder>| e.message().to_string();
        let mut builder = self
            .builder()?
            .with_prepacking(weights == Weights::Packed)
            .map_err(text)?
            .with_config_entry("session.model_external_initializers_file_folder_path", "/")
            .map_err(text)?;
        let entry = match integers {
            Integers::None => None,
            Integers::Products => Some("session.x64quantprecision"),
            Integers::Stored => Some("session.disable_quant_qdq"),
        };
        if let Some(key) = entry {
            builder = builder.with_config_entry(key, "1").map_err(text)?;
        }
        let session = builder.commit_from_memory(model).map_err(|e| e.message().to_string())?;
        Ok(OrtModel { session })
    }

    /// Threads, provider and level of optimisation.
    fn builder(&self) -> Result<SessionBuilder, String> {
        let text = |e: ort::Error<SessionBuilder>| e.message().to_string();
        let mut builder = Session::builder(&self.environment)
            .map_err(|e| e.to_string())?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(text)?;
        if !self.spins {
            builder = builder.with_config_entry("session.intra_op.allow_spinning", "0").map_err(text)?;
        }
        if self.threads > 0 {
            builder = builder.with_intra_threads(self.threads).map_err(text)?;
        }
        if self.cuda {
            // products in TF32 would round float32 to 11 bits
            let mut cuda = ep::CUDA::default().with_tf32(false);
            if let Some(bytes) = self.cuda_memory {
                cuda =
                    cuda.with_memory_limit(bytes).with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested);
            }
            builder = builder.with_execution_providers([cuda.build().error_on_failure()]).map_err(text)?;
        }
        Ok(builder)
    }
}

/// The process's one environment: made from the first library that loads, and kept.
fn environment(path: &Path) -> Result<Environment, RuntimeError> {
    static LOADED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = loaded.as_ref() {
        return Ok(environment.clone());
    }
    let library = |reason: String| RuntimeError::Library { path: path.display().to_string(), reason };
    let builder = ort::init_from(path).map_err(|error| {
        let mut reason = error.to_string();
        // the loader's own words are one level down, and not in the chain
        let mut source = match &error {
            ort::LoadDynamicError::Dlopen { error, .. } => std::error::Error::source(error),
            other => std::error::Error::source(other),
        };
        while let Some(inner) = source {
            reason = format!("{reason}: {inner}");
            source = inner.source();
        }
        library(reason)
    })?;
    let environment =
        builder.with_name("lancet").with_telemetry(false).build().map_err(|error| library(error.to_string()))?;
    Ok(loaded.insert(environment).clone())
}

/// A model in ONNX Runtime.
pub struct OrtModel {
    session: Session,
}

impl OrtModel {
    /// Names of the outputs, in the file's order.
    pub fn outputs(&self) -> Vec<String> {
        self.session.outputs().iter().map(|output| output.name().to_string()).collect()
    }

    /// Declared sizes of an input, `None` for those that are open; `None` if the model has no such tensor.
    pub fn input_shape(&self, name: &str) -> Option<Vec<Option<usize>>> {
        let input = self.session.inputs().iter().find(|i| i.name() == name)?;
        let ValueType::Tensor { shape, .. } = input.dtype() else { return None };
        Some(shape.iter().map(|size| usize::try_from(*size).ok()).collect())
    }

    /// Element type of a value; 0 for what is no tensor, and for types that no model here returns.
    pub fn element_type(value: &DynValue) -> DataType {
        value.dtype().tensor_type().map_or(DataType(0), data_type)
    }
}

fn run_error(error: ort::Error) -> RuntimeError {
    RuntimeError::Run { reason: error.message().to_string(), fed: "nothing yet".into() }
}

fn data_type(ty: TensorElementType) -> DataType {
    match ty {
        TensorElementType::Float32 => DataType::FLOAT,
        TensorElementType::Float16 => DataType::FLOAT16,
        TensorElementType::Bfloat16 => DataType::BFLOAT16,
        TensorElementType::Float64 => DataType::DOUBLE,
        TensorElementType::Int64 => DataType::INT64,
        TensorElementType::Int32 => DataType::INT32,
        TensorElementType::Bool => DataType::BOOL,
        TensorElementType::Uint8 => DataType::UINT8,
        TensorElementType::Int8 => DataType::INT8,
        _ => DataType(0),
    }
}

impl Backend for OrtModel {
    type Value = DynValue;

    fn upload(&self, tensor: Tensor, dtype: DataType) -> Result<DynValue, RuntimeError> {
        macro_rules! value {
            ($array:expr) => {
                ort::value::Tensor::from_array($array).map(|v| v.into_dyn()).map_err(run_error)
            };
        }
        match (tensor, dtype) {
            (Tensor::F32(a), DataType::FLOAT16) => value!(a.mapv(f16::from_f32)),
            (Tensor::F32(a), DataType::BFLOAT16) => value!(a.mapv(bf16::from_f32)),
            (Tensor::F32(a), DataType::DOUBLE) => value!(a.mapv(f64::from)),
            (Tensor::F32(a), DataType::INT8) => value!(a.mapv(|v| v as i8)),
            (Tensor::F32(a), DataType::UINT8) => value!(a.mapv(|v| v as u8)),
            (Tensor::F32(a), DataType::FLOAT) => value!(a),
            (Tensor::I64(a), DataType::INT32) => value!(narrow::<i32>(&a, dtype)?),
            (Tensor::I64(a), DataType::INT8) => value!(narrow::<i8>(&a, dtype)?),
            (Tensor::I64(a), DataType::UINT8) => value!(narrow::<u8>(&a, dtype)?),
            (Tensor::I64(a), DataType::FLOAT) => value!(a.mapv(|v| v as f32)),
            (Tensor::I64(a), DataType::FLOAT16) => value!(a.mapv(|v| f16::from_f32(v as f32))),
            (Tensor::I64(a), DataType::BFLOAT16) => value!(a.mapv(|v| bf16::from_f32(v as f32))),
            (Tensor::I64(a), DataType::DOUBLE) => value!(a.mapv(|v| v as f64)),
            (Tensor::I64(a), DataType::BOOL) => value!(a.mapv(|v| v != 0)),
            (Tensor::I64(a), DataType::INT64) => value!(a),
            (Tensor::Bool(a), DataType::BOOL) => value!(a),
            (tensor, dtype) => Err(RuntimeError::Input {
                name: "(value)".into(),
                expected: format!("a tensor of type {}", dtype.name()),
                got: format!("{:?}", tensor.shape()),
            }),
        }
    }

    fn run(&mut self, inputs: Vec<(String, &DynValue)>, outputs: &[String]) -> Result<Vec<DynValue>, RuntimeError> {
        let shape = |value: &DynValue| match value.dtype() {
            ValueType::Tensor { shape, .. } => format!("{:?}", shape.to_vec()),
            other => format!("{other:?}"),
        };
        let fed: Vec<String> = inputs.iter().map(|(name, value)| format!("`{name}` {}", shape(value))).collect();
        let mut found = self.session.run(inputs).map_err(|error| RuntimeError::Run {
            reason: error.message().lines().next().unwrap_or_default().to_string(),
            fed: fed.join(", "),
        })?;
        outputs
            .iter()
            .map(|name| {
                found.remove(name).ok_or_else(|| RuntimeError::Output {
                    name: name.clone(),
                    expected: "a value".into(),
                    got: "nothing".into(),
                })
            })
            .collect()
    }

    fn download(&self, value: &DynValue) -> Result<ArrayD<f32>, RuntimeError> {
        let ty = value.dtype().tensor_type();
        match ty {
            Some(TensorElementType::Float32) => value.try_extract_array::<f32>().map(|a| a.to_owned()),
            Some(TensorElementType::Float16) => value.try_extract_array::<f16>().map(|a| a.mapv(f16::to_f32)),
            Some(TensorElementType::Bfloat16) => value.try_extract_array::<bf16>().map(|a| a.mapv(bf16::to_f32)),
            Some(TensorElementType::Float64) => value.try_extract_array::<f64>().map(|a| a.mapv(|v| v as f32)),
            other => {
                return Err(RuntimeError::Output {
                    name: "(value)".into(),
                    expected: "a float tensor".into(),
                    got: format!("{other:?}"),
                });
            }
        }
        .map_err(run_error)
    }

    fn shape(&self, value: &DynValue) -> Vec<usize> {
        match value.dtype() {
            ValueType::Tensor { shape, .. } => shape.iter().filter_map(|size| usize::try_from(*size).ok()).collect(),
            _ => Vec::new(),
        }
    }

    fn gather_rows(&self, picks: &[Pick<'_, DynValue>], axes: RowAxes, fill: Fill) -> Result<DynValue, RuntimeError> {
        let first = picks.first().and_then(|pick| pick.value.dtype().tensor_type());
        match first {
            Some(TensorElementType::Float32) => gather::<f32>(picks, axes, fill),
            Some(TensorElementType::Float16) => gather::<f16>(picks, axes, fill),
            Some(TensorElementType::Bfloat16) => gather::<bf16>(picks, axes, fill),
            Some(TensorElementType::Float64) => gather::<f64>(picks, axes, fill),
            Some(TensorElementType::Int8) => gather::<i8>(picks, axes, fill),
            Some(TensorElementType::Uint8) => gather::<u8>(picks, axes, fill),
            other => Err(unlike_a_cache("a tensor of a type that a cache has", format!("{other:?}"))),
        }
    }

    fn input_type(&self, name: &str) -> Option<DataType> {
        let input = self.session.inputs().iter().find(|i| i.name() == name)?;
        match input.dtype() {
            ValueType::Tensor { ty, .. } => Some(data_type(*ty)),
            _ => None,
        }
    }

    fn input_shape(&self, name: &str) -> Option<Vec<Option<usize>>> {
        let input = self.session.inputs().iter().find(|i| i.name() == name)?;
        match input.dtype() {
            ValueType::Tensor { shape, .. } => Some(shape.iter().map(|n| usize::try_from(*n).ok()).collect()),
            _ => None,
        }
    }
}

/// Rows of several tensors of one type, filled up with zeros to the most positions.
fn gather<T>(picks: &[Pick<'_, DynValue>], axes: RowAxes, fill: Fill) -> Result<DynValue, RuntimeError>
where
    T: PrimitiveTensorElementType + std::fmt::Debug + Default + Copy + 'static,
{
    let rows: Vec<ArrayViewD<'_, T>> = picks.iter().map(|pick| row_of(pick, axes)).collect::<Result<_, _>>()?;
    let Some(first) = rows.first() else { return Err(unlike_a_cache("one row at least", "none".into())) };
    let mut shape = first.shape().to_vec();
    let each = shape[axes.batch];
    shape[axes.batch] *= rows.len();
    if let Some(axis) = axes.positions {
        shape[axis] = rows.iter().map(|row| row.shape()[axis]).max().unwrap_or(0);
    }
    let mut all = ArrayD::<T>::default(IxDyn(&shape));
    for (at, row) in rows.iter().enumerate() {
        let mut place = all.slice_axis_mut(Axis(axes.batch), Slice::from(at * each..(at + 1) * each));
        if let Some(axis) = axes.positions {
            let (held, zeros) = (row.shape()[axis], shape[axis] - row.shape()[axis]);
            let places = match fill {
                Fill::Front => Slice::from(zeros..),
                Fill::Back => Slice::from(..held),
            };
            place.slice_axis_inplace(Axis(axis), places);
        }
        if place.shape() != row.shape() {
            return Err(unlike_a_cache(&format!("rows of sizes {:?}", place.shape()), format!("{:?}", row.shape())));
        }
        place.assign(row);
    }
    ort::value::Tensor::from_array(all).map(|v| v.into_dyn()).map_err(run_error)
}

/// The entries of one row.
fn row_of<'v, T>(pick: &Pick<'v, DynValue>, axes: RowAxes) -> Result<ArrayViewD<'v, T>, RuntimeError>
where
    T: PrimitiveTensorElementType + 'static,
{
    let mut array = pick.value.try_extract_array::<T>().map_err(run_error)?;
    let each = array.shape().get(axes.batch).filter(|n| pick.rows > 0 && **n % pick.rows == 0).map(|n| n / pick.rows);
    let wanted = || format!("{} rows on axis {}", pick.rows, axes.batch);
    let each = each.filter(|_| pick.row < pick.rows);
    let each = each.ok_or_else(|| unlike_a_cache(&wanted(), format!("{:?}", array.shape())))?;
    array.slice_axis_inplace(Axis(axes.batch), Slice::from(pick.row * each..(pick.row + 1) * each));
    if let Some(axis) = axes.positions {
        let held = array.shape().get(axis).copied().unwrap_or(0);
        let to = if pick.positions.end == usize::MAX { held } else { pick.positions.end };
        if pick.positions.start > to || to > held {
            let wanted = format!("{} positions on axis {axis}", pick.positions.start.max(to));
            return Err(unlike_a_cache(&wanted, format!("{held}")));
        }
        array.slice_axis_inplace(Axis(axis), Slice::from(pick.positions.start..to));
    }
    Ok(array)
}

/// A part of a KV cache that is not what the model declares.
fn unlike_a_cache(expected: &str, got: String) -> RuntimeError {
    RuntimeError::Output { name: "(cache)".into(), expected: expected.into(), got }
}

/// Whole numbers in a smaller type.
fn narrow<T: TryFrom<i64> + Clone + Default>(values: &ArrayD<i64>, dtype: DataType) -> Result<ArrayD<T>, RuntimeError> {
    let fits = |value: &&i64| T::try_from(**value).is_err();
    if let Some(value) = values.iter().find(fits) {
        return Err(RuntimeError::Range { value: *value, dtype: dtype.name() });
    }
    Ok(values.mapv(|v| T::try_from(v).unwrap_or_default()))
}
