//! What is needed to prove a written model without asking what was edited in it.
//!
//! [`reads`] finds where a graph reads its residual stream from what its operators are, [`measure`] tells what is left
//! of a direction there. Neither knows the trace that found the writers ([`crate::lm`]): a writer that the trace
//! missed shows up here.

pub mod measure;
mod operators;
pub mod reads;

pub use measure::{Kept, Tolerance};
pub use reads::{Place, Read, Width, stream_reads};
