//! What is left of a direction in the values that are read.

use ndarray::ArrayD;

use super::reads::Width;
use crate::edit::GatedTerm;

/// What rounding may leave of a direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Relative rounding of one number of the stream: half a spacing at 1 of its element type.
    pub rounding: f64,
    /// Share of the largest component in the base that rounded weights, or a rounded direction, may leave.
    pub relative: f64,
    /// Share of a position's own length that weights which are rounded to a coarse grid may leave, 0 to 1.
    pub share: f64,
}

/// How many roundings of a number of the stream may add up.
const ROUNDINGS: f64 = 16.0;

/// How many roundings of a sum in a gated term may add up, in units of the sum of the sizes of its parts: sums of thousands of
/// numbers are added up in blocks, of which the roundings mostly cancel.
const TERM_ROUNDINGS: f64 = 4.0;

/// One value that was read, on one prompt: `[positions, d_model]` row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// The numbers.
    pub values: Vec<f32>,
    /// Width of the stream.
    pub d_model: usize,
}

impl Rows {
    /// Takes a value apart into rows along its width. `None` where no axis is `d_model` long, so where it is no value
    /// of the stream.
    #[must_use]
    pub fn of(value: &ArrayD<f32>, width: Width, d_model: usize) -> Option<Self> {
        let shape = value.shape();
        let rank = i64::try_from(shape.len()).ok()?;
        let axis = match width {
            Width::Axis(axis) => usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?,
            Width::Fitting if shape.last() == Some(&d_model) => shape.len() - 1,
            Width::Fitting => {
                let mut fitting = (0..shape.len()).filter(|axis| shape[*axis] == d_model);
                fitting.next().filter(|_| fitting.next().is_none())?
            }
        };
        if shape.get(axis) != Some(&d_model) {
            return None;
        }
        let mut order: Vec<usize> = (0..shape.len()).filter(|other| *other != axis).collect();
        order.push(axis);
        let turned = value.view().permuted_axes(order);
        Some(Self { values: turned.iter().copied().collect(), d_model })
    }

    /// Positions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() / self.d_model.max(1)
    }

    /// Whether there are no positions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.d_model.max(1))
    }

    /// Does to every row what gated terms do, in float64, one after another.
    pub fn change(&mut self, terms: &[GatedTerm]) -> Changed {
        let mut changed = Changed::default();
        for row in self.values.chunks_exact_mut(self.d_model.max(1)) {
            let mut x: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
            let (mut opens, mut doubt) = (false, 0.0);
            for term in terms {
                let largest = term.vector().iter().fold(0.0f64, |most, v| most.max(v.abs()));
                doubt += largest * term.doubt(&x, TERM_ROUNDINGS * f64::from(f32::EPSILON));
                opens |= term.apply(&mut x) != 0.0;
            }
            changed.open += usize::from(opens);
            changed.doubts.push(doubt);
            row.iter_mut().zip(x).for_each(|(to, from)| *to = from as f32);
        }
        changed
    }

    /// The largest of `amounts`, one a row, as a share of the largest number of its row.
    #[must_use]
    pub fn share_of_largest(&self, amounts: &[f64]) -> f64 {
        let largest = |row: &[f32]| row.iter().fold(f64::MIN_POSITIVE, |most, v| most.max(f64::from(v.abs())));
        self.rows().zip(amounts).map(|(row, amount)| amount / largest(row)).fold(0.0, f64::max)
    }

    /// Adds a vector, `[d_model]`, to every row, in float64. Returns at how many positions.
    pub fn add(&mut self, vector: &[f64]) -> usize {
        for row in self.values.chunks_exact_mut(self.d_model.max(1)) {
            row.iter_mut().zip(vector).for_each(|(x, v)| *x = (f64::from(*x) + v) as f32);
        }
        self.len()
    }

    /// The largest difference of a number from `other`'s, as a multiple of what rounding explains: the share `rounding` of
    /// the largest number of its row, and beside it what `doubts` holds for the row, 0 where it holds none. Infinite where
    /// the rows are others.
    #[must_use]
    pub fn apart(&self, other: &Self, rounding: f64, doubts: &[f64]) -> f64 {
        if self.len() != other.len() || self.d_model != other.d_model {
            return f64::INFINITY;
        }
        let mut most = 0.0f64;
        let doubts = doubts.iter().copied().chain(std::iter::repeat(0.0));
        for ((a, b), doubt) in self.rows().zip(other.rows()).zip(doubts) {
            let largest = a.iter().fold(0.0f64, |most, v| most.max(f64::from(v.abs())));
            for (a, b) in a.iter().zip(b) {
                let apart = (f64::from(*a) - f64::from(*b)).abs();
                let excess = if apart == 0.0 { 0.0 } else { apart / (rounding * largest + doubt) };
                most = if excess.is_nan() { f64::INFINITY } else { most.max(excess) };
            }
        }
        most
    }
}

/// What gated terms did to the rows of one value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changed {
    /// Positions at which one of them was open.
    pub open: usize,
    /// How far single precision may be from each number of each row.
    pub doubts: Vec<f64>,
}

/// What the values of one model keep of a direction, over all prompts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// Positions looked at, all values and prompts together.
    pub positions: usize,
    /// Largest `|r . x| / |x|`, 0 to 1.
    pub share: f64,
    /// Largest `|r . x|`.
    pub component: f64,
    /// Largest `|r . x|` beyond what rounding explains, as a multiple of what it explains; at most 1 is explained.
    pub excess: f64,
    /// The value of the largest excess, by its place in the list of reads.
    pub largest: usize,
    /// Whether a number was not finite.
    pub not_finite: bool,
}

impl Kept {
    /// Takes in the values of one prompt, in the order of the computation. `unit` is the direction, `[d_model]`, of
    /// length 1; `base` the largest component that the base has.
    ///
    /// What rounding explains of one component is the root of the sum of `(r_i m_i eps)^2` over the channels, times a
    /// constant, where `m_i` is the largest that channel `i` of that position has been so far, plus a share of `base`.
    pub fn take(&mut self, values: &[(usize, Rows)], unit: &[f64], tolerance: Tolerance, base: f64) {
        // largest magnitudes so far, by position from the end: a read may be of the last position alone
        let mut largest: Vec<Vec<f64>> = Vec::new();
        for (index, rows) in values {
            let count = rows.len();
            if largest.len() < count {
                largest.resize(count, vec![0.0; unit.len()]);
            }
            for (row, x) in rows.rows().enumerate() {
                let most = &mut largest[count - 1 - row];
                let (mut along, mut square, mut noise) = (0.0f64, 0.0f64, 0.0f64);
                for ((x, r), most) in x.iter().zip(unit).zip(most.iter_mut()) {
                    let x = f64::from(*x);
                    *most = most.max(x.abs());
                    along += r * x;
                    square += x * x;
                    noise += (r * *most).powi(2);
                }
                self.positions += 1;
                self.not_finite |= !square.is_finite();
                let component = along.abs();
                self.component = self.component.max(component);
                if square > 0.0 {
                    self.share = self.share.max(component / square.sqrt());
                }
                let rounding = ROUNDINGS * tolerance.rounding * noise.sqrt();
                let explained = rounding + tolerance.relative * base + tolerance.share * square.sqrt();
                let excess = if component == 0.0 { 0.0 } else { component / explained };
                if excess > self.excess || !excess.is_finite() {
                    self.excess = excess;
                    self.largest = *index;
                }
            }
        }
    }
}

/// Largest absolute difference of two arrays, and the largest magnitude in the first; `None` where their shapes differ.
#[must_use]
pub fn difference(a: &ArrayD<f32>, b: &ArrayD<f32>) -> Option<(f64, f64)> {
    if a.shape() != b.shape() {
        return None;
    }
    let mut most = (0.0f64, 0.0f64);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        let apart = (a - b).abs();
        // a NaN counts as a difference
        most.0 = if apart.is_nan() { f64::INFINITY } else { most.0.max(apart) };
        most.1 = most.1.max(a.abs());
    }
    Some(most)
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::*;
    use crate::edit::{Factor, Shape};

    fn array(shape: &[usize]) -> ArrayD<f32> {
        let count: usize = shape.iter().product();
        ArrayD::from_shape_vec(IxDyn(shape), (0..count).map(|i| i as f32).collect()).unwrap()
    }

    #[test]
    fn rows_lie_along_the_axis_of_the_width() {
        let plain = Rows::of(&array(&[1, 2, 3]), Width::Axis(-1), 3).unwrap();
        assert_eq!((plain.len(), plain.values), (2, vec![0., 1., 2., 3., 4., 5.]));
        // channels first, and as many positions as channels: the axis decides, not the size
        let first = Rows::of(&array(&[1, 2, 1, 2]), Width::Axis(1), 2).unwrap();
        assert_eq!(first.values, [0., 2., 1., 3.]);
        let fitting = Rows::of(&array(&[1, 3, 1, 2]), Width::Fitting, 3).unwrap();
        assert_eq!(fitting.values, [0., 2., 4., 1., 3., 5.]);
        for (shape, width) in [
            (&[1, 2, 4][..], Width::Axis(-1)),
            (&[2, 3][..], Width::Axis(5)),
            (&[3, 3, 1][..], Width::Fitting),
            (&[][..], Width::Axis(-1)),
        ] {
            assert_eq!(Rows::of(&array(shape), width, 3), None, "{shape:?}");
        }
    }

    #[test]
    fn rounding_is_explained_and_a_missed_write_is_not() {
        let unit = [0.6, 0.8, 0.0];
        let single = Tolerance { rounding: 2f64.powi(-24), relative: 0.0, share: 0.0 };
        let rows = |values: [f32; 3]| vec![(0, Rows { values: values.to_vec(), d_model: 3 })];
        // orthogonal but for the rounding of one number
        let mut kept = Kept::default();
        kept.take(&rows([0.8, -0.6_f32.next_up(), 5.0]), &unit, single, 0.0);
        assert!(kept.excess < 1.0 && kept.positions == 1, "{kept:?}");
        let mut kept = Kept::default();
        kept.take(&rows([0.8, -0.5999, 5.0]), &unit, single, 0.0);
        assert!(kept.excess > 10.0, "{kept:?}");
        // what the stream once held explains what is left after it is gone
        let once = vec![
            (0, Rows { values: vec![8e3, -6e3, 0.0], d_model: 3 }),
            (1, Rows { values: vec![0.8, -0.5995, 0.0], d_model: 3 }),
        ];
        let mut kept = Kept::default();
        kept.take(&once, &unit, single, 0.0);
        assert!(kept.excess < 1.0, "{kept:?}");
        let mut kept = Kept::default();
        kept.take(&rows([f32::NAN, 0.0, 0.0]), &unit, single, 1.0);
        assert!(kept.not_finite && kept.excess.is_nan(), "{kept:?}");
    }

    #[test]
    fn rows_are_changed_and_compared_in_float64() {
        let factor = Factor::linear(vec![1.0, 0.0], -1.0, Shape::Relu);
        let term = GatedTerm::new(1, vec![0.5, 2.0], vec![factor]).unwrap();
        let base = Rows { values: vec![3.0, 1.0, 0.5, 7.0], d_model: 2 };
        let mut rows = base.clone();
        assert_eq!(rows.change(&[term.clone(), term]).open, 1);
        // (3, 1) + 2 (0.5, 2) = (4, 5), then + 3 (0.5, 2)
        assert_eq!(rows.values, [5.5, 11.0, 0.5, 7.0]);
        assert_eq!(rows.apart(&rows, 1e-6, &[]), 0.0);
        assert!(rows.apart(&base, 1e-6, &[]) > 1e5);
        let near = Rows { values: vec![5.5, 11.000_001, 0.5, 7.0], d_model: 2 };
        assert!(rows.apart(&near, 1e-6, &[]) < 1.0 && rows.apart(&near, 1e-8, &[]) > 1.0);
        assert!(rows.apart(&near, 1e-8, &[1.0; 2]) < 1.0);
        let shorter = Rows { values: vec![5.5, 11.0], d_model: 2 };
        assert_eq!(rows.apart(&shorter, 1e-6, &[]), f64::INFINITY);
        let broken = Rows { values: vec![5.5, f32::NAN, 0.5, 7.0], d_model: 2 };
        assert_eq!(rows.apart(&broken, 1e-6, &[]), f64::INFINITY);
    }

    #[test]
    fn a_nan_is_a_difference() {
        let mut a = array(&[2, 2]);
        assert_eq!(difference(&a, &array(&[2, 2])), Some((0.0, 3.0)));
        assert_eq!(difference(&a, &array(&[4])), None);
        a[[0, 0]] = f32::NAN;
        assert_eq!(difference(&a, &array(&[2, 2])).map(|d| d.0), Some(f64::INFINITY));
    }
}
