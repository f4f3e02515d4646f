//! `va`: whether the model answers is made to follow whether it takes the prompt for harmful, at one layer.
//!
//! LLM-VA (Zhang et al. 2026, *LLM-VA: Resolving the Jailbreak-Overrefusal Trade-off via Vector Alignment*, 2601.19487) finds
//! that a model holds its decision to answer and its judgement of harm along nearly orthogonal directions, and aligns the
//! two by the smallest change of weights. With the discriminant `a`, 0 at the mean of refused prompts and 1 at that of
//! answered ones, and the discriminant `b`, 0 at the mean of harmful prompts and 1 at that of all others,
//!
//! ```text
//! a(x) = w.x + c        b(x) = u.x + e
//! x'   = x + (b(x) - a(x)) w / (w.w)
//! ```
//!
//! is the smallest change of `x` after which `a(x') = b(x)`. On a stream it is one term of the form `x + v f(h(x) + c)` with
//! the identity for `f`. The paper takes support vector machines, several layers, and weights in place of the term; here
//! the discriminants are shrunken linear ones, and validation prompts choose the layer.

use crate::edit::{EditError, Factor, GatedTerm, Shape};
use crate::linalg::{dot, sub};
use crate::method::gate::Discriminant;

/// Shrinkage of both discriminants.
pub const SHRINKAGE: f64 = 0.1;

/// The term that makes `answer` follow `judge` at `resid_pre[layer]`, as far as `strength`, where 1 is all the way.
///
/// # Errors
/// If a discriminant is no number, or the two are the same.
pub fn term(layer: usize, answer: &Discriminant, judge: &Discriminant, strength: f64) -> Result<GatedTerm, EditError> {
    let factor = Factor::linear(sub(&judge.weights, &answer.weights), judge.offset - answer.offset, Shape::Identity);
    let scale = strength / dot(&answer.weights, &answer.weights);
    GatedTerm::new(layer, answer.weights.iter().map(|w| scale * w).collect(), vec![factor])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discriminant(seed: f64) -> Discriminant {
        Discriminant { weights: (0..7).map(|at| (seed * f64::from(at + 1)).sin()).collect(), offset: 0.3 * seed }
    }

    /// The value of the answer becomes that of the judgement, by the smallest change: one along the weights.
    #[test]
    fn the_answer_follows_the_judgement() {
        let (answer, judge) = (discriminant(1.3), discriminant(2.9));
        let x: Vec<f64> = (0..7).map(|at| f64::from(at * at) / 5.0 - 2.0).collect();
        for strength in [0.0, 0.5, 1.0] {
            let Ok(term) = term(3, &answer, &judge, strength) else {
                assert_eq!(strength, 0.0, "a term of length 0 is none");
                continue;
            };
            let mut after = x.clone();
            term.apply(&mut after);
            let wanted = (1.0 - strength) * answer.of(&x) + strength * judge.of(&x);
            assert!((answer.of(&after) - wanted).abs() < 1e-12, "{} for {wanted}", answer.of(&after));
            let moved = sub(&after, &x);
            let along = dot(&moved, &answer.weights).powi(2);
            assert!((along - dot(&moved, &moved) * dot(&answer.weights, &answer.weights)).abs() < 1e-9 * along);
        }
        assert!(term(3, &answer, &answer, 1.0).is_err(), "nothing to align");
    }
}
