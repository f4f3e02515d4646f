//! Why a file of PyTorch was not read.

use super::super::vectors::VectorsError;

/// Why no tensors were read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TorchError {
    /// A pickle without an archive.
    #[error("it is a Python pickle, or a PyTorch file from before version 1.6")]
    Bare,
    /// An archive of NumPy.
    #[error("it is a `.npz` archive of NumPy")]
    Npz,
    /// Another zip archive.
    #[error("it is a zip archive, but not a file of `torch.save`: it has no `data.pkl`")]
    OtherZip,
    /// Numbers with their highest byte first.
    #[error("it is a PyTorch file of a big-endian machine")]
    BigEndian,
    /// An archive that does not fit the file.
    #[error("it is a PyTorch file that is cut short or damaged, or packed anew by another program")]
    Archive,
    /// Instructions of the pickle that do not fit together.
    #[error("it is a PyTorch file with a damaged pickle")]
    Pickle,
    /// A name in the pickle that is not known here.
    #[error(
        "it asks for the Python object `{name}`, and only tensors, numbers, texts, lists and dictionaries are read"
    )]
    Global {
        /// The module and the object.
        name: String,
    },
    /// An instruction of the pickle that is not known here.
    #[error("it holds what is no tensor, number, text, list or dictionary (pickle instruction 0x{opcode:02x})")]
    Opcode {
        /// The instruction.
        opcode: u8,
    },
    /// Numbers that lie apart.
    #[error("{} is a transposed, strided or expanded view", called(tensor))]
    Strided {
        /// The tensor; empty for one that stands alone.
        tensor: String,
    },
    /// A tensor that reaches past its numbers.
    #[error("{} does not fit the numbers that are stored for it", called(tensor))]
    Outside {
        /// The tensor; empty for one that stands alone.
        tensor: String,
    },
    /// A tensor without numbers.
    #[error("{} is unusable: {error}", called(tensor))]
    Vectors {
        /// The tensor; empty for one that stands alone.
        tensor: String,
        /// Why.
        error: VectorsError,
    },
    /// A key that names no tensor.
    #[error("a dictionary of it has a key that is neither a short text nor a whole number")]
    Key,
    /// Two tensors with one name.
    #[error("two tensors of it are called `{name}`")]
    Twice {
        /// The name.
        name: String,
    },
    /// More than a few vectors.
    #[error("it holds more, deeper or larger objects than a file of vectors does")]
    Large,
    /// No tensors.
    #[error("it holds no floating-point tensor")]
    NoTensors,
}

/// A tensor, in words.
fn called(tensor: &str) -> String {
    if tensor.is_empty() { "its tensor".into() } else { format!("its tensor `{tensor}`") }
}

impl TorchError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Npz => {
                "take the array out: \
                 python -c \"import numpy; numpy.save('direction.npy', numpy.load('FILE.npz')['NAME'])\""
            }
            Self::OtherZip => "give a `.safetensors`, `.npy`, `.gguf` or `.pt` file",
            Self::Archive | Self::Outside { .. } => "fetch or write the file again: a part of it is missing or changed",
            _ => {
                "if you trust the file, have Python take the tensor out (`t['NAME']` for `t` where it holds several): \
                 python -c \"import torch, numpy; t = torch.load('FILE.pt', map_location='cpu'); \
                 numpy.save('direction.npy', t.float().numpy())\""
            }
        }
        .into()
    }
}
