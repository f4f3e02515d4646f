//! The bake: weight orthogonalisation of a model file, planned as a value, streamed, published by a rename,
//! and proved from the bytes.

mod addition;
mod alone;
mod apply;
mod elements;
mod error;
mod kernel;
mod layout;
pub mod limits;
mod plan;
mod quantised;
pub mod round;
mod staging;
mod tensor;
mod verify;

#[cfg(test)]
mod tests;

pub use addition::{Added, as_baked};
pub use apply::{ApplyOptions, Edit, apply};
pub use error::BakeError;
pub use plan::{
    BakePlan, METADATA_PREFIX, NodeEdit, Part, PlanOptions, QuantisedMode, TensorEdit, by_nodes_of, mode_of,
};
pub use staging::Staging;
pub use tensor::{Rounding, hex};
pub use verify::{ByteReport, Difference, TensorReport, verify_bytes};
