//! `sra`: the false-refusal vector loses what abilities have of it, so that they suffer less (surgical refusal ablation,
//! 2601.08489).
//!
//! The rows of `A`, `[atoms, d_model]`, are what each of several abilities adds to the stream: the mean activation of
//! prompts that ask for it less that of harmless prompts. The vector is residualised on them with a ridge:
//!
//! ```text
//! w' = w - A^T (A A^T + a I)^-1 A w
//! ```
//!
//! and then freed of true refusal as ever (Wang et al. 2025, eq. 6 and 7). Without atoms nothing changes.

use crate::linalg::{CholeskyError, dot, solve_positive};

/// The ridge `a`, as a share of the mean squared length of the atoms: small enough to take off most of what an atom has,
/// large enough that atoms which nearly coincide do not cancel each other.
pub const RIDGE: f64 = 1e-2;

/// Takes off `w`, `[d_model]`, what the `atoms`, `[d_model]` each, have of it; `ridge` is a share of the mean squared
/// length of the atoms.
///
/// # Errors
/// Atoms or vectors that are not finite.
pub fn residualise(w: &[f64], atoms: &[Vec<f64>], ridge: f64) -> Result<Vec<f64>, CholeskyError> {
    let n = atoms.len();
    let square: f64 = atoms.iter().map(|atom| dot(atom, atom)).sum::<f64>() / n.max(1) as f64;
    if square == 0.0 {
        return Ok(w.to_vec());
    }
    let gram = |at: usize| {
        let (i, j) = (at / n, at % n);
        dot(&atoms[i], &atoms[j]) + if i == j { ridge * square } else { 0.0 }
    };
    let weights = solve_positive((0..n * n).map(gram).collect(), atoms.iter().map(|atom| dot(atom, w)).collect())?;
    let mut left = w.to_vec();
    for (atom, weight) in atoms.iter().zip(weights) {
        left.iter_mut().zip(atom).for_each(|(w, a)| *w -= weight * a);
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(seed: usize) -> Vec<f64> {
        (0..12).map(|at| ((seed * 5 + at * 3 + seed * at) as f64).sin()).collect()
    }

    #[test]
    fn without_atoms_nothing_changes() {
        let w = vector(1);
        assert_eq!(residualise(&w, &[], RIDGE).unwrap(), w);
        assert_eq!(residualise(&w, &[vec![0.0; 12]], RIDGE).unwrap(), w);
    }

    /// Against the closed form for one atom, and against the normal equations for several.
    #[test]
    fn atoms_lose_their_part() {
        let (w, a) = (vector(1), vector(2));
        let found = residualise(&w, std::slice::from_ref(&a), 0.5).unwrap();
        let weight = dot(&a, &w) / (1.5 * dot(&a, &a));
        assert!(found.iter().zip(w.iter().zip(&a)).all(|(f, (w, a))| (f - (w - weight * a)).abs() < 1e-12));

        let atoms = [vector(2), vector(3), vector(4)];
        let found = residualise(&w, &atoms, 1e-9).unwrap();
        assert!(atoms.iter().all(|atom| dot(atom, &found).abs() < 1e-6));
        // with a ridge what is left along an atom is the ridge times its weight
        let (found, square) =
            (residualise(&w, &atoms, 0.1).unwrap(), atoms.iter().map(|atom| dot(atom, atom)).sum::<f64>() / 3.0);
        let taken: Vec<f64> = w.iter().zip(&found).map(|(w, f)| w - f).collect();
        let weights: Vec<f64> = atoms.iter().map(|atom| dot(atom, &found) / (0.1 * square)).collect();
        for (at, taken) in taken.iter().enumerate() {
            let sum: f64 = atoms.iter().zip(&weights).map(|(atom, weight)| weight * atom[at]).sum();
            assert!((taken - sum).abs() < 1e-9);
        }
        // equal atoms do not break it
        assert!(residualise(&w, &[a.clone(), a], RIDGE).is_ok());
        assert!(residualise(&w, &[vec![f64::NAN; 12]], RIDGE).is_err());
    }
}
