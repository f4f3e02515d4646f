//! What can go wrong while a bake is planned, written, published or verified.

use std::io;
use std::path::{Path, PathBuf};

use crate::edit::DirectionError;
use crate::files::Unwritten;
use crate::onnx::OnnxError;

/// An error of the bake.
#[derive(Debug, thiserror::Error)]
pub enum BakeError {
    /// The direction does not fit.
    #[error("the direction cannot be baked")]
    Direction {
        /// Why.
        #[from]
        source: DirectionError,
    },
    /// A part of the graph that the edit needs is not understood.
    #[error(transparent)]
    Refused(Box<crate::lm::Refusal>),
    /// The model file.
    #[error("the model cannot be baked")]
    Onnx {
        /// Why.
        #[from]
        source: OnnxError,
    },
    /// A writer whose write cannot be made orthogonal by its weights, and added nodes were forbidden.
    #[error("writer `{writer}` cannot be baked by its weights alone: {reason}")]
    NeedsNodes {
        /// The writer, for example `layer.3.attn_out`.
        writer: String,
        /// Why not.
        reason: String,
    },
    /// A quantised weight in a layout that is not read, where nodes were not wanted.
    #[error("writer `{writer}` cannot be rounded: {reason}")]
    CannotRound {
        /// The writer, for example `layer.3.attn_out`.
        writer: String,
        /// Why not, with the node.
        reason: String,
    },
    /// An edit that a second bake would do twice.
    #[error("an earlier bake put {what} into the model already, and they would act twice")]
    Again {
        /// What.
        what: String,
    },
    /// A tensor stored in a way that is not edited.
    #[error("tensor `{tensor}` cannot be edited: {reason}")]
    Unsupported {
        /// The tensor.
        tensor: String,
        /// Why.
        reason: String,
    },
    /// Two tensors share bytes, and only one of them is to change.
    #[error("tensor `{tensor}` shares its bytes with `{other}`, which would change with it")]
    Aliased {
        /// The tensor to edit.
        tensor: String,
        /// The other one.
        other: String,
    },
    /// A constant whose values are all rounded to zero.
    #[error("tensor `{tensor}` cannot be stored: {reason}")]
    Vanishes {
        /// The tensor.
        tensor: String,
        /// Why.
        reason: String,
    },
    /// A model file that would pass what protobuf can hold.
    #[error("`{}` would have {len} bytes with what is added to it, and a model file holds {most} at most", path.display())]
    TooLarge {
        /// The model file.
        path: PathBuf,
        /// Bytes that it would have.
        len: u64,
        /// Bytes that it may have.
        most: u64,
    },
    /// An addition that this model cannot be given.
    #[error("the activation addition cannot be baked: {reason}")]
    NoAddition {
        /// Why.
        reason: String,
    },
    /// NaN or infinity in a weight, before the edit or after rounding.
    #[error("tensor `{tensor}` holds or would hold NaN or infinity")]
    NotFinite {
        /// The tensor.
        tensor: String,
    },
    /// Reading or writing failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `read`, `write`, `create`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The output is already there.
    #[error("the output `{}` exists already", path.display())]
    OutputExists {
        /// It.
        path: PathBuf,
    },
    /// The output would go into the folder of the model it is made from.
    #[error("the output folder `{}` is the folder of the input model", path.display())]
    SourceFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The disk is full, or would be.
    #[error("not enough room for `{}`: {needed} bytes are needed, {available} are free", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// The caller cancelled.
    #[error("cancelled; nothing was published")]
    Cancelled,
}

impl From<crate::lm::Refusal> for BakeError {
    fn from(refusal: crate::lm::Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl BakeError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Direction { source } => return source.hint(),
            Self::Onnx { source } => return source.hint(),
            Self::Refused(refusal) => refusal.hint.clone(),
            Self::NeedsNodes { .. } => {
                "leave `--weights-only` away: the projection is then inserted after this write as standard operators"
                    .into()
            }
            Self::Again { .. } => "bake the model as it was before that".into(),
            Self::CannotRound { .. } => {
                "with `--quantised auto` the projection is inserted after this write as standard operators".into()
            }
            Self::Unsupported { .. } => "store the tensor as `raw_data` or external data, then bake again".into(),
            Self::Vanishes { .. } => "choose a larger `--strength` or `--add`".into(),
            Self::TooLarge { .. } => {
                "store the weights beside the model first, with Python's `onnx.save(onnx.load(\"model.onnx\"), \
                 \"large/model.onnx\", save_as_external_data=True)`, then bake that"
                    .into()
            }
            Self::NoAddition { .. } => "leave the addition away with `--add 0`".into(),
            Self::Aliased { .. } => "export the model without shared tensor data, then bake again".into(),
            Self::NotFinite { .. } => {
                "the model file is damaged, or the edit overflows the element type: export it again, or choose a smaller \
                 `--add`"
                    .into()
            }
            Self::OutputExists { .. } => "remove it or choose another output; nothing is ever overwritten".into(),
            Self::SourceFolder { .. } => "choose an output folder of its own; the input is never written to".into(),
            Self::NoSpace { .. } => "free some space, or choose an output on another disk".into(),
            Self::Io { .. } | Self::Cancelled => return None,
        })
    }

    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { action: "read", path: path.to_path_buf(), source }
    }

    /// A failed write; a full disk is told apart. `needed` is the size of what was to be written.
    pub(crate) fn write(path: &Path, needed: u64) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace {
                path: path.to_path_buf(),
                needed,
                available: path.parent().and_then(|folder| fs4::available_space(folder).ok()).unwrap_or(0),
            },
            _ => Self::Io { action: "write", path: path.to_path_buf(), source },
        }
    }

    /// The failure to bring a file to the disk; `needed` bytes are written in all.
    pub(crate) fn unwritten(unwritten: Unwritten, needed: u64) -> Self {
        Self::write(&unwritten.path, needed)(unwritten.source)
    }
}
