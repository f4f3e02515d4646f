//! Vectors, the rank-one update and solvers, with accumulation in float64.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, Axis, Slice};

/// Inner product of two float64 vectors of one length, summed in eight lanes.
#[inline(always)] // so that it becomes the vector instructions of whoever calls it
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    debug_assert_eq!(a.len(), b.len());
    let mut lanes = [0.0f64; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..8 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f64>() + tail
}

/// Inner product of a float32 and a float64 vector, in float64.
pub fn dot_f32(a: &[f32], b: &[f64]) -> f64 {
    debug_assert_eq!(a.len(), b.len());
    let mut lanes = [0.0f64; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| f64::from(*x) * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..8 {
            lanes[lane] += f64::from(x[lane]) * y[lane];
        }
    }
    lanes.iter().sum::<f64>() + tail
}

/// Euclidean norm.
pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// `a - b`, elementwise.
pub fn sub(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(x, y)| x - y).collect()
}

/// Cosine of the angle between two vectors; NaN where one is zero.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    dot(a, b) / (norm(a) * norm(b))
}

/// `x <- x - scale * c r`, computed in float64 and rounded once (the rank-one update along one row).
pub fn axpy_f32(x: &mut [f32], c: f64, r: &[f64]) {
    for (value, r) in x.iter_mut().zip(r) {
        *value = (f64::from(*value) - c * r) as f32;
    }
}

/// `x <- x - (x.r) r` (Wang et al. 2025, eq. 4), `r` unit, in float64. Returns the removed component.
pub fn project_out(x: &mut [f64], r: &[f64]) -> f64 {
    let c = dot(x, r);
    for (value, r) in x.iter_mut().zip(r) {
        *value -= c * r;
    }
    c
}

/// A matrix that is not symmetric and positive definite, within rounding.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("pivot {row} of the matrix is {pivot:e}, so it is not positive definite")]
pub struct CholeskyError {
    /// Row of the pivot.
    pub row: usize,
    /// The pivot.
    pub pivot: f64,
}

/// Solves `A x = b` by the Cholesky factorisation `A = L L^T` (Golub and Van Loan, Matrix Computations, 4.2), `A` `[n, n]`
/// row-major, symmetric and positive definite, `b` `[n]`.
///
/// # Errors
/// If `A` is not positive definite, or not finite.
///
/// # Panics
/// If the sizes do not fit.
pub fn solve_positive(a: Vec<f64>, mut b: Vec<f64>) -> Result<Vec<f64>, CholeskyError> {
    let n = b.len();
    let a = Array2::from_shape_vec((n, n), a).expect("the matrix is square, and as large as the vector");
    let lower = cholesky(a)?;
    let lower = lower.as_slice().expect("the factor lies in rows, as the matrix did");
    for row in 0..n {
        let lower = &lower[row * n..];
        b[row] = (b[row] - dot(&lower[..row], &b[..row])) / lower[row];
    }
    for row in (0..n).rev() {
        let lower = &lower[row * n..];
        let (before, here) = b.split_at_mut(row);
        here[0] /= lower[row];
        before.iter_mut().zip(lower).for_each(|(x, l)| *x -= l * here[0]);
    }
    Ok(b)
}

/// Rows and columns of the blocks that matrices are factorised in.
const BLOCK: usize = 64;

/// `L` of the Cholesky factorisation `A = L L^T` in blocks (Golub and Van Loan, Matrix Computations, 4.2.9), `A` `[n, n]`,
/// symmetric and positive definite; what lies above the diagonal of `A` is not read, and 0 in `L`.
///
/// # Errors
/// If `A` is not positive definite, or not finite.
pub fn cholesky(mut a: Array2<f64>) -> Result<Array2<f64>, CholeskyError> {
    let n = a.nrows();
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let (done, mut open) = a.view_mut().split_at(Axis(1), start);
        let mut panel = open.slice_axis_mut(Axis(1), Slice::from(..end - start));
        let mut panel = panel.slice_axis_mut(Axis(0), Slice::from(start..));
        let done = done.slice_axis(Axis(0), Slice::from(start..));
        let above = done.slice_axis(Axis(0), Slice::from(..end - start));
        general_mat_mul(-1.0, &done, &above.t(), 1.0, &mut panel);
        for column in 0..end - start {
            let row: Vec<f64> = panel.row(column).iter().take(column).copied().collect();
            for below in column..panel.nrows() {
                let sum: f64 = panel.row(below).iter().zip(&row).map(|(x, y)| x * y).sum();
                panel[[below, column]] -= sum;
            }
            let pivot = panel[[column, column]];
            if !(pivot.is_finite() && pivot > 0.0) {
                return Err(CholeskyError { row: start + column, pivot });
            }
            panel.column_mut(column).iter_mut().skip(column).for_each(|x| *x /= pivot.sqrt());
        }
        open.slice_axis_mut(Axis(0), Slice::from(..start)).fill(0.0);
        let mut here = open.slice_axis_mut(Axis(0), Slice::from(start..end));
        (0..end - start).for_each(|row| here.row_mut(row).iter_mut().skip(row + 1).for_each(|x| *x = 0.0));
    }
    Ok(a)
}

/// `L^-1` of a lower triangular `L`, `[n, n]`, whose diagonal is not 0.
pub fn inverse_of_lower(l: &Array2<f64>) -> Array2<f64> {
    let n = l.nrows();
    let mut inverse = Array2::zeros((n, n));
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let rows = l.slice_axis(Axis(0), Slice::from(start..end));
        // what the rows above make of the right side
        let (above, mut below) = inverse.view_mut().split_at(Axis(0), start);
        let mut here = below.slice_axis_mut(Axis(0), Slice::from(..end - start));
        let (mut before, mut own) = here.view_mut().split_at(Axis(1), start);
        let known = above.slice_axis(Axis(1), Slice::from(..start));
        general_mat_mul(-1.0, &rows.slice_axis(Axis(1), Slice::from(..start)), &known, 0.0, &mut before);
        (0..end - start).for_each(|row| own[[row, row]] = 1.0);
        for row in 0..end - start {
            let (done, mut open) = here.view_mut().split_at(Axis(0), row);
            let mut current = open.row_mut(0);
            for column in 0..row {
                current.scaled_add(-rows[[row, start + column]], &done.row(column));
            }
            current /= rows[[row, start + row]];
        }
    }
    inverse
}

/// `A^-1`, `A` `[n, n]`, symmetric and positive definite.
///
/// # Errors
/// If `A` is not positive definite, or not finite.
pub fn inverse_of_positive(a: Array2<f64>) -> Result<Array2<f64>, CholeskyError> {
    let lower = inverse_of_lower(&cholesky(a)?);
    let n = lower.nrows();
    let mut inverse = Array2::zeros((n, n));
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let from = lower.slice_axis(Axis(0), Slice::from(start..));
        let (left, right) = (Slice::from(start..end), Slice::from(..end));
        let block = from.slice_axis(Axis(1), left).t().dot(&from.slice_axis(Axis(1), right));
        inverse.slice_axis_mut(Axis(0), left).slice_axis_mut(Axis(1), right).assign(&block);
        inverse.slice_axis_mut(Axis(1), left).slice_axis_mut(Axis(0), right).assign(&block.t());
    }
    Ok(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vector(len: usize) -> impl Strategy<Value = Vec<f64>> {
        proptest::collection::vec(-10.0f64..10.0, len)
    }

    proptest! {
        #[test]
        fn projection_is_idempotent_and_leaves_nothing(x in vector(19), r in vector(19)) {
            let n = norm(&r);
            prop_assume!(n > 1e-3);
            let r: Vec<f64> = r.iter().map(|v| v / n).collect();
            let mut once = x.clone();
            project_out(&mut once, &r);
            prop_assert!(dot(&once, &r).abs() < 1e-10);
            let mut twice = once.clone();
            project_out(&mut twice, &r);
            for (a, b) in once.iter().zip(&twice) {
                prop_assert!((a - b).abs() < 1e-10);
            }
        }

        #[test]
        fn lanes_agree_with_a_plain_sum(a in vector(37), b in vector(37)) {
            let plain: f64 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            prop_assert!((dot(&a, &b) - plain).abs() < 1e-9);
            let single: Vec<f32> = a.iter().map(|&v| v as f32).collect();
            let plain: f64 = single.iter().zip(&b).map(|(x, y)| f64::from(*x) * y).sum();
            prop_assert!((dot_f32(&single, &b) - plain).abs() < 1e-9);
        }
    }

    #[test]
    fn positive_systems_are_solved_and_others_refused() {
        for n in [1, 2, 5, 40] {
            let root = |i: usize, j: usize| ((i * 31 + j * 17 + i * j) as f64 * 0.7).sin();
            let entry = |i: usize, j: usize| {
                (0..n + 2).map(|k| root(i, k) * root(j, k)).sum::<f64>() + if i == j { 1e-3 } else { 0.0 }
            };
            let a: Vec<f64> = (0..n * n).map(|at| entry(at / n, at % n)).collect();
            let x: Vec<f64> = (0..n).map(|i| (i as f64).cos()).collect();
            let b = a.chunks(n).map(|row| row.iter().zip(&x).map(|(a, x)| a * x).sum()).collect();
            let found = solve_positive(a, b).unwrap();
            assert!(found.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-9), "{n}: {found:?}");
        }
        let indefinite = vec![1.0, 2.0, 2.0, 1.0];
        assert_eq!(solve_positive(indefinite, vec![0.0; 2]), Err(CholeskyError { row: 1, pivot: -3.0 }));
        for bad in [f64::NAN, f64::INFINITY, 0.0] {
            assert!(solve_positive(vec![bad], vec![0.0]).is_err());
        }
    }

    /// Sizes below, at and beyond the blocks, of whole blocks and with a rest.
    #[test]
    fn inverses_are_inverses() {
        for n in [1, 2, 63, 64, 65, 128, 200] {
            let x = Array2::from_shape_fn((n, n + 3), |(i, j)| ((i * 31 + j * 17 + i * j) as f64 * 0.7).sin());
            let a = x.dot(&x.t()) + Array2::<f64>::eye(n);
            let l = cholesky(a.clone()).unwrap();
            let apart = |a: &Array2<f64>, b: &Array2<f64>| (a - b).iter().fold(0.0f64, |most, d| most.max(d.abs()));
            assert!(apart(&l.dot(&l.t()), &a) < 1e-10 * n as f64, "{n}");
            assert!(l.indexed_iter().all(|((row, column), x)| row >= column || *x == 0.0), "{n}");
            let eye = Array2::eye(n);
            assert!(apart(&inverse_of_lower(&l).dot(&l), &eye) < 1e-10, "{n}");
            assert!(apart(&inverse_of_positive(a.clone()).unwrap().dot(&a), &eye) < 1e-9, "{n}");
            let mut odd = a;
            odd[[n - 1, n - 1]] = -1.0;
            assert_eq!(cholesky(odd).unwrap_err().row, n - 1);
        }
    }
}
