//! What further methods make of the direction that was selected: other directions at the same place, a reference point,
//! fewer writes. Each is a pure function of activations or scores.

pub mod abilities;
pub mod affine;
pub mod groups;
pub mod layers;

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
    /// The direction loses what abilities have of it ([`abilities`]).
    Abilities,
    /// The harmless mean's component is put back ([`affine`]).
    Affine,
    /// Only writes of layers that matter are ablated ([`layers`]).
    Layers,
}

impl std::fmt::Display for Refinement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Groups { count } => write!(f, "rank:{count}"),
            Self::Abilities => f.write_str("sra"),
            Self::Affine => f.write_str("ace"),
            Self::Layers => f.write_str("layers"),
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
#[error("`{name}` is none of `rank:K` with K from 1 to {}, `sra`, `ace` and `layers`", Ablation::MOST_DIRECTIONS)]
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
            _ => {
                let count = name.strip_prefix("rank:").and_then(|count| count.parse().ok());
                let count = count.filter(|count| (1..=Ablation::MOST_DIRECTIONS).contains(count));
                count.map(|count| Self::Groups { count }).ok_or_else(|| UnknownRefinement { name: name.to_string() })
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
        let all = [Refinement::Groups { count: 3 }, Refinement::Abilities, Refinement::Affine, Refinement::Layers];
        for one in all {
            assert_eq!(one.to_string().parse(), Ok(one));
            assert_eq!(serde_json::from_str::<Refinement>(&serde_json::to_string(&one).unwrap()).unwrap(), one);
        }
        for other in ["rank", "rank:0", "rank:17", "rank:-1", "wang", ""] {
            assert_eq!(other.parse::<Refinement>(), Err(UnknownRefinement { name: other.into() }));
        }
    }
}
