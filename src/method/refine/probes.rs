//! `probes:K`: directions along which pseudo-harmful prompts are told from harmless ones, found one after another in what
//! those before them leave.
//!
//! Null-space projection (Ravfogel et al. 2020, *Null It Out: Guarding Protected Attributes by Iterative Nullspace
//! Projection*): a linear probe is fitted, its direction is projected out of all activations, and the next probe is fitted
//! to what is left. A probe here is a shrunken linear discriminant ([`discriminant`]); with a shrinkage of 1 it is the
//! difference of the means, of which nothing is left after the first.

use ndarray::{Array1, Array2};

use crate::edit::Direction;
use crate::linalg::norm;
use crate::method::gate::{GateError, discriminant};

/// Shrinkage of the probes.
pub const SHRINKAGE: f64 = 0.1;

/// Share of the length of the first probe's difference of means below which there is nothing left to find.
const NOTHING: f64 = 1e-6;

/// Unit vectors of at most `count` probes, orthogonal to one another, `[d_model]` each. `open` and `shut` are the
/// activations of pseudo-harmful and harmless prompts at one place, `[prompts, d_model]`; a probe points to the former.
///
/// # Errors
/// If a class has no prompt, if its activations do not vary, or if the classes cannot be told apart at all.
pub fn probes(
    open: &Array2<f64>,
    shut: &Array2<f64>,
    count: usize,
    shrinkage: f64,
) -> Result<Vec<Vec<f64>>, GateError> {
    let (mut open, mut shut) = (open.clone(), shut.clone());
    let mut found: Vec<Vec<f64>> = Vec::new();
    let mut first = 0.0;
    while found.len() < count {
        let apart = norm(&(mean(&open) - mean(&shut)).to_vec());
        if found.is_empty() {
            first = apart;
        } else if apart <= NOTHING * first {
            break;
        }
        let unit = match discriminant(open.view(), shut.view(), shrinkage) {
            Ok(probe) => Direction::new(probe.weights)?.unit().to_vec(),
            Err(error) if found.is_empty() => return Err(error),
            Err(_) => break,
        };
        let q = Array1::from(unit.clone());
        for rows in [&mut open, &mut shut] {
            for mut row in rows.rows_mut() {
                let along = row.dot(&q);
                row.scaled_add(-along, &q);
            }
        }
        found.push(unit);
    }
    Ok(found)
}

fn mean(rows: &Array2<f64>) -> Array1<f64> {
    rows.sum_axis(ndarray::Axis(0)) / rows.nrows().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::{cosine, dot};

    /// Classes that differ along channels 0 and 1, with more noise along channel 1.
    fn classes(prompts: usize, d: usize) -> [Array2<f64>; 2] {
        let noise = |i: usize, j: usize, class: usize| ((i * i * 37 + j * 101 + i * j * 29 + class * 53) as f64).sin();
        [1, 0].map(|class| {
            Array2::from_shape_fn((prompts, d), |(i, j)| {
                let told = if j < 2 { 2.0 * class as f64 } else { 0.0 };
                told + noise(i, j, class) * if j == 1 { 2.0 } else { 1.0 }
            })
        })
    }

    #[test]
    fn probes_are_orthogonal_and_each_tells_the_classes_apart() {
        let [open, shut] = classes(60, 12);
        let found = probes(&open, &shut, 3, SHRINKAGE).unwrap();
        assert_eq!(found.len(), 3);
        for (i, a) in found.iter().enumerate() {
            for (j, b) in found.iter().enumerate() {
                assert!((dot(a, b) - f64::from(u8::from(i == j))).abs() < 1e-9, "{i} {j}");
            }
            let along = |rows: &Array2<f64>| dot(&mean(rows).to_vec(), a);
            assert!(along(&open) > along(&shut), "{i}");
        }
        // the first is the discriminant of all
        let whole = discriminant(open.view(), shut.view(), SHRINKAGE).unwrap();
        assert!(cosine(&found[0], &whole.weights) > 1.0 - 1e-12);
        // the second is that of activations without the first
        let first = Array1::from(found[0].clone());
        let freed = |rows: &Array2<f64>| rows - &(rows.dot(&first).insert_axis(ndarray::Axis(1)) * &first);
        let next = discriminant(freed(&open).view(), freed(&shut).view(), SHRINKAGE).unwrap();
        assert!(cosine(&found[1], &next.weights) > 1.0 - 1e-9);
    }

    /// Without a covariance a probe is the difference of the means, and takes all of it.
    #[test]
    fn with_full_shrinkage_there_is_one_probe_the_difference_of_the_means() {
        let [open, shut] = classes(40, 9);
        let found = probes(&open, &shut, 4, 1.0).unwrap();
        assert_eq!(found.len(), 1);
        assert!(cosine(&found[0], &(mean(&open) - mean(&shut)).to_vec()) > 1.0 - 1e-12);
    }

    #[test]
    fn what_cannot_be_told_apart_has_no_probe() {
        let [open, _] = classes(20, 6);
        assert!(probes(&open, &open, 2, SHRINKAGE).is_err());
        assert!(probes(&open, &Array2::zeros((0, 6)), 2, SHRINKAGE).is_err());
    }
}
