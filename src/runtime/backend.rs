//! What a model runner is: named tensors in, named tensors out; a value may stay with the runner.

use std::ops::Range;

use ndarray::ArrayD;

use crate::onnx::DataType;

/// A host tensor.
#[derive(Debug, Clone)]
pub enum Tensor {
    /// 32-bit floats.
    F32(ArrayD<f32>),
    /// 64-bit integers.
    I64(ArrayD<i64>),
    /// Booleans.
    Bool(ArrayD<bool>),
}

impl Tensor {
    /// Its dimensions.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(a) => a.shape(),
            Self::I64(a) => a.shape(),
            Self::Bool(a) => a.shape(),
        }
    }
}

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The shared library cannot be used.
    #[error("cannot load ONNX Runtime from `{path}`: {reason}")]
    Library {
        /// The library.
        path: String,
        /// The loader's words.
        reason: String,
    },
    /// An execution provider was asked for and is not there.
    #[error("execution provider `{provider}` is not available: {reason}")]
    Provider {
        /// The provider.
        provider: String,
        /// Why.
        reason: String,
    },
    /// ONNX Runtime refused the model.
    #[error("ONNX Runtime cannot load the model: {reason}")]
    Load {
        /// ONNX Runtime's words.
        reason: String,
    },
    /// A run failed.
    #[error("ONNX Runtime failed while it ran the model: {reason}")]
    Run {
        /// ONNX Runtime's words.
        reason: String,
        /// What was fed, names with their sizes.
        fed: String,
    },
    /// An input takes other sizes than it would be fed.
    #[error("input `{name}` takes {expected}, it would be fed {got}")]
    Input {
        /// The input.
        name: String,
        /// Sizes that the model declares; `?` where it leaves one open.
        expected: String,
        /// Sizes of what would be fed.
        got: String,
    },
    /// A number that an input cannot hold.
    #[error("{value} does not fit an input of type {dtype}")]
    Range {
        /// The number.
        value: i64,
        /// The input's type.
        dtype: &'static str,
    },
    /// A token that the logits have no number for.
    #[error("the logits are about {vocabulary} tokens, the prompt holds token {token}")]
    Vocabulary {
        /// The token's id.
        token: u32,
        /// Logits a position.
        vocabulary: usize,
    },
    /// A run returned something else than it declares.
    #[error("output `{name}`: expected {expected}, got {got}")]
    Output {
        /// The output.
        name: String,
        /// What was expected.
        expected: String,
        /// What came.
        got: String,
    },
    /// The model computes no numbers for a prompt.
    #[error("the model returns NaN or infinite logits for prompt `{prompt}`")]
    NotFinite {
        /// The prompt's token ids, shortened.
        prompt: String,
    },
    /// A prompt does not fit into the model.
    #[error("the model takes {limit} tokens, the prompt has {tokens}")]
    Positions {
        /// Tokens that were to be run.
        tokens: usize,
        /// Tokens that the model has positions for.
        limit: usize,
    },
    /// A prompt has another length than the one that the model takes.
    #[error("the graph takes {length} tokens a run, no more and no less, the prompt has {tokens}")]
    Length {
        /// Tokens that were to be run.
        tokens: usize,
        /// Tokens that the model takes.
        length: usize,
    },
    /// A setting of the sampling makes no sense.
    #[error("tokens cannot be sampled so: {reason}")]
    Sampling {
        /// The setting.
        reason: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Cancelled,
}

impl RuntimeError {
    /// Logits that are no numbers, for a prompt of these tokens.
    pub fn not_finite(tokens: &[u32]) -> Self {
        let ids: Vec<String> = tokens.iter().take(12).map(ToString::to_string).collect();
        Self::NotFinite { prompt: ids.join(" ") }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Library { .. } => "run `lancet runtime install`, or pass a library with `--ort-lib`".into(),
            Self::Provider { provider, .. } if provider == "cuda" => {
                "install the CUDA build (`lancet runtime install --cuda`) with CUDA and cuDNN, or use `--device cpu`"
                    .into()
            }
            Self::Load { .. } => "check that the model runs in ONNX Runtime itself; a newer ONNX Runtime may know its \
                                  operators (`lancet runtime info` tells which one is used)"
                .into(),
            Self::NotFinite { .. } => {
                "the exported model is broken (float16 overflow is common): export it again".into()
            }
            Self::Run { fed, .. } => format!(
                "it was fed {fed}; `lancet inspect` shows how the model is understood, and `lancet bake` edits it without \
                 running it"
            ),
            Self::Input { .. } | Self::Length { .. } => {
                "export the model with open sizes for batch, sequence and past; `lancet bake` edits it as it is".into()
            }
            Self::Vocabulary { .. } => "check that the tokenizer belongs to the model".into(),
            Self::Output { .. } => {
                "the file returns something else than its graph says; export it again, or report it with \
                                    `lancet inspect --json`"
                    .into()
            }
            Self::Positions { .. } => "shorten the prompts, or the system prompt".into(),
            _ => return None,
        })
    }
}

/// One row of a value, for [`Backend::gather_rows`].
#[derive(Debug)]
pub struct Pick<'v, V> {
    /// The value.
    pub value: &'v V,
    /// Rows that it holds, each with the same number of entries on the axis of the batch (a cache may fold its heads into
    /// the batch).
    pub rows: usize,
    /// Which of them.
    pub row: usize,
    /// Positions that are taken; all where it ends at `usize::MAX`.
    pub positions: Range<usize>,
}

impl<'v, V> Pick<'v, V> {
    /// The whole row.
    pub fn whole(value: &'v V, rows: usize, row: usize) -> Self {
        Self { value, rows, row, positions: 0..usize::MAX }
    }
}

/// Axes of a value that holds rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowAxes {
    /// Axis of the batch.
    pub batch: usize,
    /// Axis of the positions, if it has one.
    pub positions: Option<usize>,
}

/// Where rows of fewer positions get zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// In front of the first position.
    Front,
    /// Behind the last one.
    Back,
}

/// A loaded model.
pub trait Backend {
    /// A tensor that the runner holds (on its device, in the model's type).
    type Value;

    /// Puts a host tensor where the runner reads it, in type `dtype`.
    ///
    /// # Errors
    /// If the runner cannot hold it.
    fn upload(&self, tensor: Tensor, dtype: DataType) -> Result<Self::Value, RuntimeError>;

    /// Runs the model. `outputs` are returned in this order.
    ///
    /// # Errors
    /// If the run fails or an output is missing.
    fn run(
        &mut self,
        inputs: Vec<(String, &Self::Value)>,
        outputs: &[String],
    ) -> Result<Vec<Self::Value>, RuntimeError>;

    /// Copies a float value to the host as float32.
    ///
    /// # Errors
    /// If it is no float tensor.
    fn download(&self, value: &Self::Value) -> Result<ArrayD<f32>, RuntimeError>;

    /// Sizes of a value; empty for what is no tensor.
    fn shape(&self, value: &Self::Value) -> Vec<usize>;

    /// Puts rows of several values together, in the order of `picks`. Rows that hold fewer positions than the longest get
    /// zeros on one side.
    ///
    /// # Errors
    /// If a value is no tensor of a type that a cache has, does not hold that many rows or positions, or has other sizes
    /// than the first one along another axis than those of `axes`.
    fn gather_rows(
        &self,
        picks: &[Pick<'_, Self::Value>],
        axes: RowAxes,
        fill: Fill,
    ) -> Result<Self::Value, RuntimeError>;

    /// Declared element type of an input; `None` if the model has no such input.
    fn input_type(&self, name: &str) -> Option<DataType>;

    /// Declared dimensions of an input, `None` for each that is open; `None` if the model has no such input or declares
    /// no rank.
    fn input_shape(&self, name: &str) -> Option<Vec<Option<usize>>>;
}
