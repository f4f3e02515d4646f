//! What is measured on answers.

pub mod refusal;
