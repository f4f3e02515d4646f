//! Radial basis functions: a number that is large near known activations and nearly 0 far from all of them.

use super::{GateProblem, single};
use crate::linalg::dot;

/// The function `x -> a_1 exp(-|P x + t - z_1|^2) + .. + a_m exp(-|P x + t - z_m|^2)` of an activation `x` (Broomhead and
/// Lowe 1988, *Multivariable functional interpolation and adaptive networks*): each known activation `z_j` speaks for its
/// neighbourhood alone, and what is far from all of them gets nearly 0.
#[derive(Debug, Clone, PartialEq)]
pub struct RadialBasis {
    /// `P`, `[k, d_model]` row-major. The width of the functions is part of it.
    pub projection: Vec<f64>,
    /// `t`, `[k]`.
    pub shift: Vec<f64>,
    /// `z`, `[m, k]` row-major.
    pub centers: Vec<f64>,
    /// `a`, `[m]`.
    pub weights: Vec<f64>,
}

impl RadialBasis {
    /// How many centers it may have.
    pub const MOST_CENTERS: usize = 16_384;

    /// `k`, to which activations are projected.
    pub fn dims(&self) -> usize {
        self.shift.len()
    }

    /// `m`, the number of centers.
    pub fn count(&self) -> usize {
        self.weights.len()
    }

    /// Length of the activations, `d_model`.
    pub fn width(&self) -> usize {
        self.projection.len() / self.dims().max(1)
    }

    /// `|z_1|^2, |z_2|^2, ..`, `[m]`.
    pub fn squares(&self) -> Vec<f64> {
        self.centers.chunks_exact(self.dims().max(1)).map(|z| dot(z, z)).collect()
    }

    /// `P x + t`, `[k]`.
    pub fn project(&self, x: &[f64]) -> Vec<f64> {
        self.projection.chunks_exact(x.len().max(1)).zip(&self.shift).map(|(row, t)| dot(row, x) + t).collect()
    }

    /// Its value for `x`, `[d_model]`.
    pub fn of(&self, x: &[f64]) -> f64 {
        let at = self.project(x);
        let squared = |center: &[f64]| at.iter().zip(center).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let centers = self.centers.chunks_exact(self.dims().max(1));
        centers.zip(&self.weights).map(|(center, a)| a * (-squared(center)).exp()).sum()
    }

    /// How far arithmetic may be from its value for `x`, `[d_model]`, in units of the relative rounding of one operation: a
    /// first-order bound, with each sum counted as one rounding of the sum of the sizes of its parts.
    pub fn rounding(&self, x: &[f64]) -> f64 {
        let rows = self.projection.chunks_exact(x.len().max(1)).zip(&self.shift);
        let sizes: Vec<f64> =
            rows.map(|(row, t)| row.iter().zip(x).map(|(p, x)| (p * x).abs()).sum::<f64>() + t.abs()).collect();
        let (at, moved) = (self.project(x), dot(&sizes, &sizes).sqrt());
        let length = dot(&at, &at);
        let each = self.centers.chunks_exact(self.dims().max(1)).zip(self.squares()).zip(&self.weights);
        each.map(|((center, square), a)| {
            let squared = at.iter().zip(center).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            a.abs() * (-squared).exp() * (1.0 + length + square + 2.0 * squared.sqrt() * moved)
        })
        .sum()
    }

    /// The same function times `factor`.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        self.weights.iter_mut().for_each(|a| *a *= factor);
        self
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = f64> {
        [&self.projection, &self.shift, &self.centers, &self.weights].into_iter().flatten().copied()
    }

    pub(super) fn rounded(&self) -> Self {
        let [projection, shift, centers, weights] =
            [&self.projection, &self.shift, &self.centers, &self.weights].map(|values| single(values));
        Self { projection, shift, centers, weights }
    }

    /// What is wrong with its sizes, for activations of `width`.
    pub(super) fn check(&self, width: usize) -> Result<(), GateProblem> {
        let (k, m) = (self.dims(), self.count());
        let fits = k > 0 && m > 0 && m <= Self::MOST_CENTERS && self.centers.len() == k * m;
        match fits {
            false => Err(GateProblem::Centers { got: m }),
            true if self.projection.len() != k * width => {
                Err(GateProblem::Width { expected: width, got: self.width() })
            }
            true => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_large_near_its_centers_alone() {
        let basis = RadialBasis {
            projection: vec![1.0, 0.0, 0.0, 0.0, 2.0, 0.0],
            shift: vec![0.0, -1.0],
            centers: vec![1.0, 1.0, -4.0, 0.0],
            weights: vec![3.0, -1.0],
        };
        assert_eq!((basis.dims(), basis.count(), basis.width()), (2, 2, 3));
        assert_eq!(basis.check(3), Ok(()));
        // at the first center, at the second, far from both; the third channel says nothing
        for (x, expected) in [([1.0, 1.0, 5.0], 3.0), ([-4.0, 0.5, 0.0], -1.0), ([0.0, 90.0, 0.0], 0.0)] {
            assert!((basis.of(&x) - expected).abs() < 1e-10, "{x:?}: {}", basis.of(&x));
        }
        assert!((basis.of(&[0.0, 1.0, 0.0]) - 3.0 * (-1.0f64).exp()).abs() < 1e-6);
        assert_eq!(basis.clone().scaled(2.0).of(&[1.0, 1.0, 0.0]), 2.0 * basis.of(&[1.0, 1.0, 0.0]));
        assert_eq!(basis.check(2), Err(GateProblem::Width { expected: 2, got: 3 }));
        let odd = RadialBasis { weights: vec![1.0; 3], ..basis };
        assert_eq!(odd.check(3), Err(GateProblem::Centers { got: 3 }));
    }

    /// Single precision stays within four roundings of the sizes of what is added up, and is not far below them either.
    #[test]
    fn what_rounding_may_bring_is_what_single_precision_brings() {
        let noise = |n: usize, seed: usize| -> Vec<f64> {
            let value = |at: usize| (((at * at * 31 + at * 17 + seed * 7919) as f64) * 0.7).sin();
            single(&(0..n).map(value).collect::<Vec<_>>())
        };
        let (d, k, m) = (24, 8, 400);
        let basis = RadialBasis {
            projection: noise(k * d, 1).iter().map(|p| f64::from((p * 0.3) as f32)).collect(),
            shift: noise(k, 2),
            centers: noise(k * m, 3),
            weights: noise(m, 4).iter().map(|a| f64::from((a * 20.0) as f32)).collect(),
        };
        let mut most = 0.0f64;
        for seed in 0..50 {
            let x = noise(d, 10 + seed);
            let f = |v: f64| v as f32;
            let at: Vec<f32> = (0..k)
                .map(|i| (0..d).map(|j| f(basis.projection[i * d + j]) * f(x[j])).sum::<f32>() + f(basis.shift[i]))
                .collect();
            let found: f32 = (0..m)
                .map(|j| {
                    let center = &basis.centers[j * k..(j + 1) * k];
                    let (mut yy, mut zz, mut yz) = (0.0f32, 0.0f32, 0.0f32);
                    for (y, z) in at.iter().zip(center) {
                        (yy, zz, yz) = (yy + y * y, zz + f(*z) * f(*z), yz + y * f(*z));
                    }
                    f(basis.weights[j]) * (-(yy + zz - 2.0 * yz)).exp()
                })
                .sum();
            let off = (f64::from(found) - basis.of(&x)).abs() / (f64::from(f32::EPSILON) * basis.rounding(&x));
            assert!(off < 4.0, "{seed}: {off}");
            most = most.max(off);
        }
        assert!(most > 0.004, "{most}");
    }
}
