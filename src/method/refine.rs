//! What further methods make of the direction that was selected: other directions at the same place, a reference point,
//! fewer writes. Each is a pure function of activations or scores.

pub mod abilities;
pub mod affine;
pub mod align;
pub mod groups;
pub mod layers;
pub mod probes;

use serde::{Deserialize, Serialize};

use crate::edit::Ablation;

/// A method that starts from the selected direction (Wang et al. 2025).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(into = "String", try_from = "String")]
#[cfg_attr(test, schemars(with = "String"))]
pub enum Refinement {
    /// A direction for each of several groups of pseudo-harmful prompts ([`groups`]).
    Groups {
        /// How many groups, at least 1; one gives the selected direction.
        count: usize,
    },
    /// Several directions that tell pseudo-harmful from harmless prompts, one after another ([`probes`]).
    Probes {
        /// How many, at least 1.
        count: usize,
    },
    /// The direction loses what abilities have of it ([`abilities`]).
    Abilities,
    /// The harmless mean's component is put back ([`affine`]).
    Affine,
    /// Only writes of layers that matter are ablated ([`layers`]).
    Layers,
    /// Whether the model answers follows whether it takes the prompt for harmful; nothing is ablated ([`align`]).
    Aligned,
}

impl std::fmt::Display for Refinement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Groups { count } => write!(f, "rank:{count}"),
            Self::Probes { count } => write!(f, "probes:{count}"),
            Self::Abilities => f.write_str("sra"),
            Self::Affine => f.write_str("ace"),
            Self::Layers => f.write_str("layers"),
            Self::Aligned => f.write_str("va"),
        }
    }
}

impl From<Refinement> for String {
    fn from(refinement: Refinement) -> Self {
        refinement.to_string()
    }
}

/// A name that no method has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is none of `rank:K` and `probes:K` with K from 1 to {}, `sra`, `ace`, `layers` and `va`",
    Ablation::MOST_DIRECTIONS
)]
pub struct UnknownRefinement {
    /// The name.
    pub name: String,
}

impl std::str::FromStr for Refinement {
    type Err = UnknownRefinement;

    fn from_str(name: &str) -> Result<Self, UnknownRefinement> {
        match name {
            "sra" => Ok(Self::Abilities),
            "ace" => Ok(Self::Affine),
            "layers" => Ok(Self::Layers),
            "va" => Ok(Self::Aligned),
            _ => {
                let (method, count) = name.split_once(':').unwrap_or_default();
                let count = count.parse().ok().filter(|count| (1..=Ablation::MOST_DIRECTIONS).contains(count));
                match (method, count) {
                    ("rank", Some(count)) => Ok(Self::Groups { count }),
                    ("probes", Some(count)) => Ok(Self::Probes { count }),
                    _ => Err(UnknownRefinement { name: name.to_string() }),
                }
            }
        }
    }
}

impl TryFrom<String> for Refinement {
    type Error = UnknownRefinement;

    fn try_from(name: String) -> Result<Self, UnknownRefinement> {
        name.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let all = [
            Refinement::Groups { count: 3 },
            Refinement::Probes { count: 16 },
            Refinement::Abilities,
            Refinement::Affine,
            Refinement::Layers,
            Refinement::Aligned,
        ];
        for one in all {
            assert_eq!(one.to_string().parse(), Ok(one));
            assert_eq!(serde_json::from_str::<Refinement>(&serde_json::to_string(&one).unwrap()).unwrap(), one);
        }
        for other in ["rank", "rank:0", "rank:17", "rank:-1", "probes", "probes:0", "wang", ""] {
            assert_eq!(other.parse::<Refinement>(), Err(UnknownRefinement { name: other.into() }));
        }
    }
}
