//! Running models: the backend, ONNX Runtime, batches, generation.

pub mod backend;
pub mod batch;
pub mod generate;
pub mod locate;
pub mod session;

pub use backend::{Backend, RuntimeError, Tensor};
