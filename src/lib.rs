#![doc = include_str!("docs/design.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod bake;
pub mod chat;
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
pub mod report;
pub mod runtime;

pub use error::{Error, Kind};
