//! The bake: weight orthogonalisation of a model file, planned as a value, streamed, published by a rename,
//! and proved from the bytes.

mod alone;
mod apply;
mod error;
mod kernel;
mod layout;
mod plan;
mod staging;
mod tensor;
mod verify;

#[cfg(test)]
mod tests;

pub use apply::{ApplyOptions, Edit, apply};
pub use error::BakeError;
pub use plan::{BakePlan, METADATA_PREFIX, NodeEdit, Part, PlanOptions, TensorEdit};
pub use staging::Staging;
pub use tensor::hex;
pub use verify::{ByteReport, Difference, TensorReport, verify_bytes};
