//! What is measured on answers.

pub mod answers;
pub mod condition;
pub mod evidence;
pub mod limit;
pub mod outcome;
pub mod patterns;
pub mod policy;
pub mod refusal;
pub mod statistics;
mod text;
pub mod toml_error;
pub mod wrappers;
