//! The method (Wang et al., ICLR 2025): prompts, activations, directions, scores, selection. No I/O, no runtime.

pub mod activations;
pub mod direction;
pub mod prompts;
pub mod score;
pub mod select;
