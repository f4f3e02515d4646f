//! Which axis of what a model returns is which, told by the sizes that a run of known rows and tokens gives.

use std::borrow::Cow;

use ndarray::{ArrayD, ArrayViewD, Axis};

use super::backend::RuntimeError;

/// Positions whose logits a model returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Those that were asked for.
    Every,
    /// The last one, whatever was asked for.
    Last,
}

/// How an output holds its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[rows, positions, width]`.
    Rows,
    /// `[rows, width]`: one position.
    Last,
    /// Of one row, whose positions and values lie on these axes; every other axis has one entry.
    One {
        /// Axis of the positions; `None` where there is one.
        position: Option<usize>,
        /// Axis of the values.
        width: usize,
    },
}

/// How one output is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The output, as it is called in the file.
    pub name: String,
    /// Its axes.
    pub layout: Layout,
    /// Values a position.
    pub width: usize,
    /// Which positions it holds.
    pub positions: Positions,
}

/// A run that is to tell how outputs are held.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Rows that were fed.
    pub rows: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Positions that were asked for, counted from the end; no more than there are tokens.
    pub positions: usize,
}

impl Reading {
    /// Reads an output off the shape that a run gave. `width` is what is known of the values a position. `None` where
    /// the shape is not one of rows, positions and values in this order.
    pub fn of_rows(name: &str, shape: &[usize], run: Run, width: Option<usize>) -> Option<Self> {
        let found = |layout, width, positions| Some(Self { name: name.to_string(), layout, width, positions });
        let fits = |found: usize| found > 0 && width.is_none_or(|width| width == found);
        match *shape {
            [rows, positions, wide] if rows == run.rows && positions == run.positions && fits(wide) => {
                found(Layout::Rows, wide, Positions::Every)
            }
            [rows, 1, wide] if rows == run.rows && fits(wide) => found(Layout::Rows, wide, Positions::Last),
            // as many values as there are tokens would be one value a position
            [rows, wide] if rows == run.rows && wide > run.tokens && fits(wide) => {
                found(Layout::Last, wide, Positions::Last)
            }
            _ => None,
        }
    }

    /// The same for a run of one row, with the axes in any order. `None` where they cannot be told apart.
    pub fn of_one(name: &str, shape: &[usize], run: Run, width: Option<usize>) -> Option<Self> {
        if run.rows != 1 {
            return None;
        }
        let axes = |size: usize| shape.iter().enumerate().filter(move |(_, n)| **n == size).map(|(axis, _)| axis);
        let wide = match width {
            Some(width) => {
                let mut found = axes(width);
                found.next().filter(|_| found.next().is_none())?
            }
            // the largest one
            None => (0..shape.len()).max_by_key(|&axis| shape[axis])?,
        };
        let mut others = (0..shape.len()).filter(|&axis| axis != wide && shape[axis] != 1);
        let position = others.next();
        let told = others.next().is_none() && position.is_none_or(|axis| shape[axis] == run.positions);
        let known = width.is_some() || shape[wide] > run.tokens;
        let positions = match position {
            None if run.positions > 1 => Positions::Last,
            _ => Positions::Every,
        };
        let found = Self {
            name: name.to_string(),
            layout: Layout::One { position, width: wide },
            width: shape[wide],
            positions,
        };
        (told && known).then_some(found)
    }

    /// Checks what a run returned against what this reading says it must be.
    ///
    /// # Errors
    /// [`RuntimeError::Output`] with the output's name and both shapes.
    pub fn check(&self, shape: &[usize], run: Run) -> Result<(), RuntimeError> {
        let positions = match self.positions {
            Positions::Every => run.positions,
            Positions::Last => 1,
        };
        let width = self.width;
        let (right, expected) = match self.layout {
            Layout::Rows => (shape == [run.rows, positions, width], format!("[{}, {positions}, {width}]", run.rows)),
            Layout::Last => (shape == [run.rows, width], format!("[{}, {width}]", run.rows)),
            Layout::One { position, width: axis } => {
                let at = |axis: Option<usize>| axis.and_then(|axis| shape.get(axis).copied());
                let all = shape.iter().product::<usize>() == positions * width;
                let right = all && at(Some(axis)) == Some(width) && at(position).unwrap_or(1) == positions;
                (run.rows == 1 && right, format!("{positions} x {width} values"))
            }
        };
        match right {
            true => Ok(()),
            false => Err(RuntimeError::Output { name: self.name.clone(), expected, got: format!("{shape:?}") }),
        }
    }

    /// A row's values, `[positions, width]` row-major, of an array that passed [`Reading::check`].
    pub fn row(&self, array: &ArrayD<f32>, row: usize) -> Vec<f32> {
        let of_row: ArrayViewD<'_, f32> = match self.layout {
            Layout::Rows | Layout::Last => array.index_axis(Axis(0), row),
            Layout::One { position, width } => {
                let mut order: Vec<usize> =
                    (0..array.ndim()).filter(|axis| Some(*axis) != position && *axis != width).collect();
                order.extend(position);
                order.push(width);
                array.view().permuted_axes(order)
            }
        };
        of_row.iter().copied().collect()
    }

    /// The values of a row's last position.
    pub fn last<'a>(&self, array: &'a ArrayD<f32>, row: usize) -> Cow<'a, [f32]> {
        let of_rows = matches!(self.layout, Layout::Rows | Layout::Last);
        if let Some(all) = array.as_slice().filter(|_| of_rows) {
            let end = (row + 1) * all.len() / array.shape()[0];
            return Cow::Borrowed(&all[end - self.width..end]);
        }
        let mut values = self.row(array, row);
        Cow::Owned(values.split_off(values.len().saturating_sub(self.width)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Run = Run { rows: 2, tokens: 3, positions: 3 };

    #[test]
    fn rows_are_told_by_their_sizes() {
        let read = |shape: &[usize], width| {
            Reading::of_rows("logits", shape, RUN, width).map(|r| (r.layout, r.positions, r.width))
        };
        assert_eq!(read(&[2, 3, 10], None), Some((Layout::Rows, Positions::Every, 10)));
        assert_eq!(read(&[2, 1, 10], None), Some((Layout::Rows, Positions::Last, 10)));
        assert_eq!(read(&[2, 10], None), Some((Layout::Last, Positions::Last, 10)));
        for shape in [&[3, 2, 10][..], &[6, 10], &[2, 10, 3], &[10], &[2, 3], &[2, 3, 1, 10], &[]] {
            assert_eq!(read(shape, Some(10)), None, "{shape:?}");
        }
        assert_eq!(read(&[2, 3, 11], Some(10)), None);
    }

    #[test]
    fn one_row_is_read_in_any_order_of_axes() {
        let run = Run { rows: 1, ..RUN };
        let read = |shape: &[usize], width| {
            Reading::of_one("x", shape, run, width).map(|r| match r.layout {
                Layout::One { position, width } => (position, width),
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(read(&[3, 1, 10], Some(10)), Some((Some(0), 2)));
        assert_eq!(read(&[1, 10, 1, 3], Some(10)), Some((Some(3), 1)));
        assert_eq!(read(&[3, 10], None), Some((Some(0), 1)));
        assert_eq!(read(&[1, 1, 10], None), Some((None, 2)));
        assert_eq!(read(&[10], None), Some((None, 0)));
        // as many values as positions, two long axes, too few positions
        for (shape, width) in [(&[3, 3][..], Some(3)), (&[3, 2, 10], Some(10)), (&[2, 10], Some(10)), (&[3, 1], None)] {
            assert_eq!(read(shape, width), None, "{shape:?}");
        }
        let array = ArrayD::from_shape_vec(ndarray::IxDyn(&[1, 2, 1, 3]), (0..6).map(|v| v as f32).collect()).unwrap();
        let reading = Reading::of_one("x", &[1, 2, 1, 3], run, Some(2)).unwrap();
        assert_eq!(reading.row(&array, 0), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(*reading.last(&array, 0), [2.0, 5.0]);
        let rows = ArrayD::from_shape_vec(ndarray::IxDyn(&[2, 2, 3]), (0..12).map(|v| v as f32).collect()).unwrap();
        let reading = Reading::of_rows("x", &[2, 2, 3], Run { positions: 2, ..RUN }, None).unwrap();
        assert_eq!(*reading.last(&rows, 0), [3.0, 4.0, 5.0]);
        assert_eq!(*reading.last(&rows, 1), [9.0, 10.0, 11.0]);
    }

    #[test]
    fn what_a_run_returns_is_checked() {
        let reading = Reading::of_rows("logits", &[2, 3, 10], RUN, None).unwrap();
        assert!(reading.check(&[4, 7, 10], Run { rows: 4, tokens: 9, positions: 7 }).is_ok());
        let error = reading.check(&[4, 1, 10], Run { rows: 4, tokens: 9, positions: 7 }).unwrap_err();
        assert_eq!(error.to_string(), "output `logits`: expected [4, 7, 10], got [4, 1, 10]");
    }
}
