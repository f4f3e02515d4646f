//! The ONNX file: index, graph, tensors, external data, patches.

pub mod captured;
mod check;
pub mod constant;
pub mod error;
pub mod external;
mod facts;
pub mod flat;
pub mod graph;
pub mod index;
pub mod lower;
pub mod ops;
pub mod patch;
pub mod proto;
pub mod quant;
pub mod shape;
pub mod tensor;
#[cfg(test)]
mod testing;
mod twins;
mod unfuse;
pub mod wire;

pub use error::OnnxError;
pub use graph::{Graph, NodeId, Use, ValueId};
pub use index::Model;
pub use quant::Quantised;
pub use tensor::{DataType, Storage, TensorId, TensorRef};
