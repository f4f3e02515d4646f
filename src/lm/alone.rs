//! Edits of weights alone where nodes would be exact (`--weights-only`): a tensor that others read too is edited in
//! a copy of its own, and a write that is normalised before it is added is projected on the direction that the
//! norm turns into the wanted one. The copy is exact. The turned direction makes the write exactly orthogonal, but
//! the norm then scales the rest by a slightly different number; what that does is measured, not promised.

use std::collections::HashSet;

use super::Refusal;
use super::path::{EditTarget, Turn, WeightPath};
use super::weight::trace_weight_through_norms;
use super::writer::{Sharing, Writer};
use crate::onnx::{Graph, Use};

/// The direction whose projection off a weight makes the write behind `turns` orthogonal to `r`, `[d_model]`, of
/// length 1. `None` if the norm removes the direction altogether.
pub fn turned(r: &[f64], turns: &[Turn]) -> Option<Vec<f64>> {
    let mut u = r.to_vec();
    for turn in turns {
        match turn {
            Turn::Scale(g) if g.len() == 1 => {}
            Turn::Scale(g) => u.iter_mut().zip(g).for_each(|(u, g)| *u *= g),
            Turn::Centre => {
                let mean = u.iter().sum::<f64>() / u.len() as f64;
                u.iter_mut().for_each(|u| *u -= mean);
            }
        }
    }
    let norm = u.iter().map(|u| u * u).sum::<f64>().sqrt();
    (norm.is_finite() && norm > 1e-12).then(|| u.iter().map(|u| u / norm).collect())
}

/// One tensor to edit in place of nodes.
#[derive(Debug, Clone)]
pub struct Replacement {
    /// The tensor, and its axis of length `d_model`.
    pub target: EditTarget,
    /// Whether it is a bias.
    pub bias: bool,
    /// Where it enters the computation.
    pub entry: Use,
    /// From the write back to the tensor.
    pub turns: Vec<Turn>,
    /// Whether others read the tensor too, so that a copy is edited.
    pub copy: bool,
}

/// The edits that make a writer's write orthogonal without added nodes.
///
/// # Errors
/// The node behind which no tensor can be edited.
pub fn replacements(graph: &Graph<'_>, writer: &Writer, d_model: usize) -> Result<Vec<Replacement>, Refusal> {
    let mut found: Vec<Replacement> = Vec::new();
    for write in &writer.writes {
        let mut path = trace_weight_through_norms(graph, write.value, d_model)?;
        if let Some(fused) = write.bias {
            path.add_bias(graph, fused, d_model)?;
        }
        let sharing = Sharing::of(graph, std::iter::once(&path), Vec::new());
        let wanted: HashSet<Use> = path.entries.iter().copied().collect();
        for part in &path.parts {
            let alone = WeightPath { weights: vec![part.target], ..WeightPath::default() };
            found.push(Replacement {
                target: part.target,
                bias: part.bias,
                entry: part.entry,
                turns: part.turns.clone(),
                copy: sharing.conflict(&alone, &wanted).is_some(),
            });
        }
    }
    Ok(found)
}
