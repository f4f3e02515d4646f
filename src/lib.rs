#![doc = include_str!("docs/design.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
// What may be read, and how much of it, stands in `files`; clippy.toml has the list. Tests may read what they wrote.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod bake;
pub mod chat;
pub mod edit;
pub mod error;
pub mod eval;
pub mod files;
pub mod instrument;
pub mod judge;
pub mod linalg;
pub mod lm;
pub mod method;
pub mod multiple_choice;
pub mod onnx;
pub mod pipeline;
pub mod prompt_files;
pub mod proof;
pub mod records;
pub mod report;
pub mod runtime;

pub use error::{Error, Kind};
