//! The bake: weight orthogonalisation of a model file, planned as a value, streamed, published by a rename,
//! and proved from the bytes.

mod addition;
mod alone;
mod apply;
mod constants;
mod elements;
mod error;
mod explain;
mod findings;
pub mod gate;
mod hash;
pub mod kernel;
mod layout;
pub mod limits;
mod metadata;
mod plan;
mod proof;
mod quantised;
mod rehearse;
pub mod round;
mod staging;
mod tensor;
mod verify;

#[cfg(test)]
mod tests;

pub use addition::{Added, AddedTo};
pub use apply::{ApplyOptions, Durability, EditResult, apply};
pub use error::BakeError;
pub use findings::{Finding, FindingKind, Findings};
pub use gate::Gated;
pub use hash::{hex, sha256};
pub use metadata::{Claim, GUARD, GuardMark, further_key};
pub use plan::{BakePlan, Held, METADATA_PREFIX, NodeEdit, Part, PlanOptions, QuantisedMode, TensorEdit};
pub use proof::{ByteReport, Difference, Extent, TensorReport};
pub use rehearse::rehearse;
pub use staging::Staging;
pub use tensor::Rounding;
pub use verify::verify_bytes;
