//! What can go wrong while a model file is read.

use std::path::PathBuf;

/// An error of the file layer.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The operating system refused.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are no `ModelProto`.
    #[error("`{}` is not an ONNX model: {reason}", path.display())]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// What was met instead.
        reason: String,
    },
    /// The file ends inside a message.
    #[error("`{}` is truncated: {reason}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where.
        reason: String,
    },
    /// A tensor's header contradicts its data.
    #[error("tensor `{tensor}` is malformed: {reason}")]
    BadTensor {
        /// The tensor.
        tensor: String,
        /// The contradiction.
        reason: String,
    },
    /// An external data file is absent.
    #[error("external data file `{}` of tensor `{tensor}` is missing", path.display())]
    MissingExternal {
        /// The tensor.
        tensor: String,
        /// Where the file should be.
        path: PathBuf,
    },
    /// An external data file is shorter than its tensor needs.
    #[error("external data file `{}` is truncated: tensor `{tensor}` ends at byte {end}, the file at {len}", path.display())]
    ShortExternal {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// First byte past the tensor.
        end: u64,
        /// File length.
        len: u64,
    },
    /// An external data path that leaves the model's folder.
    #[error("external data path `{location}` of tensor `{tensor}` leaves the model's folder")]
    EscapingExternal {
        /// The tensor.
        tensor: String,
        /// The path as written.
        location: String,
    },
    /// An external data path that stands for no file here.
    #[error("external data path `{location}` of tensor `{tensor}` {}", match fault {
        LocationFault::Hidden => "is hidden",
        LocationFault::Backslash => "separates folders by `\\`, as Windows does",
        LocationFault::Memory => "is an address in the memory of the program that saved the model",
    })]
    BadLocation {
        /// The tensor.
        tensor: String,
        /// The path as written.
        location: String,
        /// Why it stands for no file.
        fault: LocationFault,
    },
    /// A graph that the ONNX specification rules out, and that no runtime loads.
    #[error("the graph is malformed: {reason}")]
    BadGraph {
        /// What is wrong, with the node's or value's name.
        reason: String,
    },
    /// More structure than any model needs.
    #[error("`{}` is refused: {reason}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What there is too much of.
        reason: String,
    },
    /// A construct that the ONNX specification allows and Lancet does not handle.
    #[error("{what} is not supported")]
    Unsupported {
        /// The construct.
        what: String,
    },
}

/// Why an external data path stands for no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocationFault {
    /// It separates folders as Windows does.
    Backslash,
    /// It is hidden, or in a hidden folder: its name begins with a dot.
    Hidden,
    /// ONNX Runtime's mark for tensors in memory, which its Python API leaves in models that are saved too early.
    Memory,
}

impl OnnxError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { .. } => return None,
            Self::NotOnnx { .. } => "pass an `.onnx` file, or the folder that holds it".into(),
            Self::Truncated { .. } => "the download or copy was probably cut short: fetch the file again".into(),
            Self::MissingExternal { .. } => {
                "copy the data files that belong to the model into its folder, under their original names".into()
            }
            Self::ShortExternal { .. } => "the data file was probably cut short: fetch it again".into(),
            Self::EscapingExternal { .. } => {
                "external data must lie in the folder of the `.onnx` file; move it there and correct `location`".into()
            }
            Self::BadLocation { fault: LocationFault::Backslash, .. } => {
                "write the location with `/`, as the ONNX specification says; other systems read no other".into()
            }
            Self::BadLocation { fault: LocationFault::Hidden, .. } => {
                "files whose names begin with a dot are never published: give the data file another name, and correct \
                 `location`"
                    .into()
            }
            Self::BadLocation { fault: LocationFault::Memory, .. } => {
                "the tensor's data was never written: save the model again with the program that made it, with its data \
                 in the file or in external files"
                    .into()
            }
            Self::BadTensor { .. } => "re-export the model, or check it with `onnx.checker`".into(),
            Self::BadGraph { .. } => "check the model with `onnx.checker`, and export it again".into(),
            Self::TooLarge { .. } => "the file asks for far more work than a model of its size; export it again".into(),
            Self::Unsupported { .. } => "re-export the model without this construct".into(),
        })
    }
}
