//! Running models: the backend, ONNX Runtime, batches, generation, sampling.

pub mod backend;
pub mod batch;
pub mod generate;
pub mod locate;
mod machine;
pub mod prefix;
pub mod reading;
pub mod sample;
pub mod session;

pub use backend::{Backend, RuntimeError, Tensor};
pub use sample::{Decoding, Sampling};
