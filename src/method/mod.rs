//! The method (Wang et al., ICLR 2025): prompts, activations, directions, scores, selection. No I/O, no runtime.

pub mod activations;
pub mod addition;
pub mod classes;
pub mod cosmic;
pub mod direction;
pub mod gate;
pub mod layers;
pub mod prompts;
pub mod race;
pub mod refine;
pub mod score;
pub mod select;
