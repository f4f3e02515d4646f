//! What further methods make of the direction that was selected: other directions at the same place, a reference point,
//! fewer writes. Each is a pure function of activations or scores.

pub mod abilities;
pub mod affine;
pub mod groups;
pub mod layers;

/// A method that starts from the selected direction (Wang et al. 2025).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refinement {
    /// A direction for each of several groups of pseudo-harmful prompts ([`groups`]).
    Groups {
        /// How many groups, at least 1; one gives the selected direction.
        count: usize,
    },
    /// The direction loses what abilities have of it ([`abilities`]).
    Abilities,
    /// The harmless mean's component is put back ([`affine`]).
    Affine,
    /// Only writes of layers that matter are ablated ([`layers`]).
    Layers,
}
