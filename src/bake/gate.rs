//! Gated terms in a file: a handful of standard operators after the sum that is `resid_pre` of their layer
//! ([`crate::lm::gating`]). Run-time steering computes the same with the same operators.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::constants::put;
use super::error::BakeError;
use super::hash::hex;
use crate::edit::{Edit, GatedTerm, RadialBasis, Reading};
use crate::lm::{ResidualStream, gating};
use crate::onnx::Graph;
use crate::onnx::patch::Patch;

/// Metadata keys, behind the prefix.
const LAYERS: &str = "gate_layers";
pub(super) const SHA256: &str = "gates_sha256";

/// Where a gated term went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Gated {
    /// Absolute layer, whose `resid_pre` it is added to.
    pub layer: usize,
    /// The value of the stream that changed, or the fused node that makes it.
    pub target: String,
}

/// Inserts the terms into every stream of a file; nothing into a file without one. `known` is what the file says of the
/// terms that an earlier bake put into it ([`SHA256`]).
///
/// # Errors
/// Where nodes are forbidden, the file has these very terms already, or a term cannot be added at its layer.
pub(super) fn terms(
    graph: &Graph<'_>,
    streams: &[&ResidualStream],
    terms: &[GatedTerm],
    (weights_only, known): (bool, Option<&str>),
    patch: &mut Patch,
) -> Result<Vec<Gated>, BakeError> {
    let Some(first) = terms.first().filter(|_| !streams.is_empty()) else { return Ok(Vec::new()) };
    if weights_only {
        let writer = format!("resid_pre of layer {}", first.layer());
        return Err(BakeError::NeedsNodes { writer, reason: "a gated term is made of nodes".into() });
    }
    if known.is_some_and(|known| known == sha256(terms)) {
        return Err(BakeError::Again { what: "these gated terms".into() });
    }
    let mut targets = Vec::new();
    for (index, stream) in streams.iter().enumerate() {
        let branch = if index == 0 { "" } else { ".cached" };
        let mut store = |patch: &mut Patch, tensor| put(graph, tensor, patch);
        let found = gating::gate(graph, stream, terms, branch, (patch, &mut store))?;
        if index == 0 {
            targets = found;
        }
    }
    Ok(terms.iter().zip(targets).map(|(term, target)| Gated { layer: term.layer(), target }).collect())
}

/// The metadata entries that tell of the terms.
pub(super) fn metadata(terms: &[GatedTerm]) -> Vec<(String, String)> {
    if terms.is_empty() {
        return Vec::new();
    }
    let layers: Vec<String> = terms.iter().map(|term| term.layer().to_string()).collect();
    vec![(LAYERS.to_string(), layers.join(" ")), (SHA256.to_string(), sha256(terms))]
}

/// SHA-256 of the numbers of all terms, hexadecimal: of each its layer, its vector, and its factors (shape, what it
/// reads, offset), numbers as little-endian float32, layers, shapes and, of radial basis functions, the lengths of their
/// parts as little-endian 64-bit integers.
pub fn sha256(terms: &[GatedTerm]) -> String {
    let mut hasher = Sha256::new();
    hash(&mut hasher, terms);
    hex(&hasher.finalize())
}

/// SHA-256 of an edit that ablates nothing: of its additions (layer, and what is added), and of its terms
/// ([`sha256`]).
pub(super) fn edit_sha256(edit: &Edit) -> String {
    let mut hasher = Sha256::new();
    for addition in edit.additions() {
        hasher.update((addition.layer as u64).to_le_bytes());
        addition.scaled().iter().for_each(|v| hasher.update((*v as f32).to_le_bytes()));
    }
    hash(&mut hasher, edit.gates());
    hex(&hasher.finalize())
}

fn hash(hasher: &mut Sha256, terms: &[GatedTerm]) {
    let number = |hasher: &mut Sha256, values: &[f64]| {
        values.iter().for_each(|v| hasher.update((*v as f32).to_le_bytes()));
    };
    for term in terms {
        hasher.update((term.layer() as u64).to_le_bytes());
        number(hasher, term.vector());
        for factor in term.factors() {
            hasher.update((factor.shape as u64).to_le_bytes());
            match &factor.reading {
                Reading::Linear(weights) => number(hasher, weights),
                Reading::Radial(RadialBasis { projection, shift, centers, weights }) => {
                    [projection, shift, centers, weights].into_iter().for_each(|values| {
                        hasher.update((values.len() as u64).to_le_bytes());
                        number(hasher, values);
                    });
                }
            }
            number(hasher, &[factor.offset]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Factor, Shape};

    /// A file knows its terms again by their hash, so every number of them must be in it.
    #[test]
    fn every_number_changes_the_hash() {
        let basis = || RadialBasis {
            projection: vec![1.0, 0.5, -1.0, 2.0],
            shift: vec![0.25, 0.0],
            centers: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            weights: vec![1.0, -1.0, 0.5],
        };
        let term = |layer, vector: f64, reading, offset| {
            let factor = Factor { reading, offset, shape: Shape::Clipped };
            sha256(&[GatedTerm::new(layer, vec![vector, 1.0], vec![factor]).unwrap()])
        };
        let mut seen = std::collections::HashSet::new();
        let radial = |change: &dyn Fn(&mut RadialBasis)| {
            let mut changed = basis();
            change(&mut changed);
            term(3, 1.0, Reading::Radial(changed), 0.5)
        };
        for hash in [
            radial(&|_| ()),
            radial(&|basis| basis.projection[3] = 3.0),
            radial(&|basis| basis.shift[1] = 3.0),
            radial(&|basis| basis.centers[5] = 3.0),
            radial(&|basis| basis.weights[2] = 3.0),
            term(4, 1.0, Reading::Radial(basis()), 0.5),
            term(3, 2.0, Reading::Radial(basis()), 0.5),
            term(3, 1.0, Reading::Radial(basis()), 0.75),
            term(3, 1.0, Reading::Linear(vec![1.0, 0.5]), 0.5),
            term(3, 1.0, Reading::Linear(vec![1.0, 0.75]), 0.5),
        ] {
            assert!(seen.insert(hash.clone()), "{hash} occurs twice");
        }
    }
}
