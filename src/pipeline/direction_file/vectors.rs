//! What an array of numbers holds: one vector of the residual stream, or several, which an index tells apart.

use safetensors::tensor::{Dtype, TensorView};

use super::floats::{ByteOrder, Float};

/// Vectors of `width` numbers each: an array whose last axis is the vector and whose other axes tell vectors apart.
/// Axes of size 1 are left out, so `[1, d_model]` and `[d_model, 1]` are one vector, as `[d_model]` is.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    axes: Vec<usize>,
    width: usize,
    values: Vec<f64>,
}

/// Why an array holds no vectors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VectorsError {
    /// No axes, or an axis of size 0.
    #[error("its shape is {shape:?}, so it holds no vector")]
    Empty {
        /// The shape.
        shape: Vec<usize>,
    },
    /// The numbers are more or fewer than the shape says.
    #[error("its shape is {shape:?}, and it holds {got} numbers")]
    Count {
        /// The shape.
        shape: Vec<usize>,
        /// How many there are.
        got: usize,
    },
    /// Numbers that are no floating-point ones.
    #[error("its type is {got:?}; expected float16, bfloat16, float32 or float64")]
    Type {
        /// The type.
        got: Dtype,
    },
}

/// Why no vector was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Several vectors, and none was named.
    #[error("it holds {} vectors of {width} numbers, with the index {}", axes.iter().product::<usize>(), ranges(axes))]
    Needed {
        /// How many there are along each axis.
        axes: Vec<usize>,
        /// Numbers of each.
        width: usize,
    },
    /// An index of another length, or for one vector.
    #[error("the index has {got} numbers, and the vectors of the file have {}", axes.len())]
    Axes {
        /// How many vectors there are along each axis.
        axes: Vec<usize>,
        /// Numbers of the index.
        got: usize,
    },
    /// An index past the end.
    #[error("{got} is none of the {size} vectors along axis {axis} of the file")]
    Outside {
        /// Which axis, counted from 0.
        axis: usize,
        /// Its size.
        size: usize,
        /// What was asked for.
        got: i64,
    },
}

impl RowError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Needed { axes, .. } => format!("name one with `--direction-row`, {}", ranges(axes)),
            Self::Axes { axes, .. } if axes.is_empty() => "leave `--direction-row` out: the file is one vector".into(),
            Self::Axes { axes, .. } => format!("give `--direction-row` as {}", ranges(axes)),
            Self::Outside { size, .. } => format!("give 0 to {}, or -{size} to -1 to count from the end", size - 1),
        }
    }
}

/// The indices that there are, in words: `0..32`, or `0..4,0..32` for two axes.
fn ranges(axes: &[usize]) -> String {
    let ranges: Vec<String> = axes.iter().map(|size| format!("0..{}", size - 1)).collect();
    ranges.join(",")
}

impl Vectors {
    /// An array of this shape, of which the numbers stand with the last axis fastest.
    ///
    /// # Errors
    /// [`VectorsError::Empty`], [`VectorsError::Count`].
    pub fn new(shape: &[usize], values: Vec<f64>) -> Result<Self, VectorsError> {
        if shape.is_empty() || shape.contains(&0) {
            return Err(VectorsError::Empty { shape: shape.to_vec() });
        }
        if shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size)) != Some(values.len()) {
            return Err(VectorsError::Count { shape: shape.to_vec(), got: values.len() });
        }
        let mut axes: Vec<usize> = shape.iter().copied().filter(|size| *size != 1).collect();
        let width = axes.pop().unwrap_or(1);
        Ok(Self { axes, width, values })
    }

    /// The array of a tensor of a safetensors file.
    ///
    /// # Errors
    /// [`VectorsError`].
    pub fn of_tensor(tensor: &TensorView<'_>) -> Result<Self, VectorsError> {
        let float = Float::of(tensor.dtype()).ok_or(VectorsError::Type { got: tensor.dtype() })?;
        Self::new(tensor.shape(), float.decode(tensor.data(), ByteOrder::Little))
    }

    /// How many vectors there are along each axis that tells them apart; empty for one vector.
    #[cfg(test)]
    pub fn axes(&self) -> &[usize] {
        &self.axes
    }

    /// Numbers of a vector, `d_model` of its model.
    #[cfg(test)]
    pub fn width(&self) -> usize {
        self.width
    }

    /// The vector with this index, `[width]`: a number for each of [`Self::axes`], where those below 0 count from the
    /// end, as in NumPy. One vector has the empty index.
    ///
    /// # Errors
    /// [`RowError`].
    pub fn row(&self, index: &[i64]) -> Result<&[f64], RowError> {
        if index.is_empty() && !self.axes.is_empty() {
            return Err(RowError::Needed { axes: self.axes.clone(), width: self.width });
        }
        if index.len() != self.axes.len() {
            return Err(RowError::Axes { axes: self.axes.clone(), got: index.len() });
        }
        let mut row = 0;
        for (axis, (&size, &got)) in self.axes.iter().zip(index).enumerate() {
            row = row * size + place(got, size).ok_or(RowError::Outside { axis, size, got })?;
        }
        Ok(&self.values[row * self.width..][..self.width])
    }
}

/// An index along an axis of this size, counted from 0.
fn place(index: i64, size: usize) -> Option<usize> {
    let from_start = if index < 0 { index.checked_add(i64::try_from(size).ok()?)? } else { index };
    usize::try_from(from_start).ok().filter(|place| *place < size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(shape: &[usize]) -> Vectors {
        Vectors::new(shape, (0..shape.iter().product::<usize>()).map(|n| n as f64).collect()).unwrap()
    }

    #[test]
    fn one_vector_needs_no_index() {
        for shape in [&[3][..], &[1, 3], &[3, 1], &[1, 3, 1]] {
            let one = counted(shape);
            assert_eq!((one.axes(), one.width()), (&[][..], 3), "{shape:?}");
            assert_eq!(one.row(&[]).unwrap(), [0.0, 1.0, 2.0]);
            let error = one.row(&[0]).unwrap_err();
            assert_eq!(error, RowError::Axes { axes: vec![], got: 1 });
            assert!(error.hint().contains("leave"));
        }
        assert_eq!(counted(&[1]).row(&[]).unwrap(), [0.0]);
    }

    #[test]
    fn rows_are_named_as_in_numpy() {
        let matrix = counted(&[4, 2]);
        assert_eq!((matrix.axes(), matrix.width()), (&[4][..], 2));
        for (index, row) in [(0, [0.0, 1.0]), (3, [6.0, 7.0]), (-1, [6.0, 7.0]), (-4, [0.0, 1.0])] {
            assert_eq!(matrix.row(&[index]).unwrap(), row);
        }
        // as `numpy.arange(12).reshape(2, 3, 2)[-1, 1]`
        assert_eq!(counted(&[2, 3, 2]).row(&[-1, 1]).unwrap(), [8.0, 9.0]);
        for got in [4, -5, i64::MAX, i64::MIN] {
            let error = matrix.row(&[got]).unwrap_err();
            assert_eq!(error, RowError::Outside { axis: 0, size: 4, got });
            assert!(error.hint().contains("0 to 3"));
        }
    }

    #[test]
    fn what_to_name_is_told() {
        let error = counted(&[5, 33, 8]).row(&[]).unwrap_err();
        assert_eq!(error.to_string(), "it holds 165 vectors of 8 numbers, with the index 0..4,0..32");
        assert!(error.hint().contains("0..4,0..32"));
        let error = counted(&[5, 33, 8]).row(&[7]).unwrap_err();
        assert_eq!(error.to_string(), "the index has 1 numbers, and the vectors of the file have 2");
        assert!(error.hint().contains("0..4,0..32"));
    }

    #[test]
    fn arrays_without_vectors_are_refused() {
        for shape in [&[][..], &[0], &[3, 0], &[0, usize::MAX]] {
            assert_eq!(Vectors::new(shape, vec![]), Err(VectorsError::Empty { shape: shape.to_vec() }));
        }
        for shape in [&[3][..], &[2, 3], &[usize::MAX, 2], &[usize::MAX, usize::MAX]] {
            assert_eq!(Vectors::new(shape, vec![0.0; 2]), Err(VectorsError::Count { shape: shape.to_vec(), got: 2 }));
        }
    }

    #[test]
    fn tensors_of_safetensors_are_read() {
        let half: Vec<u8> =
            [1.0f32, -2.0, 3.0, 0.5].iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        let tensor = TensorView::new(Dtype::BF16, vec![2, 2], &half).unwrap();
        assert_eq!(Vectors::of_tensor(&tensor).unwrap().row(&[1]).unwrap(), [3.0, 0.5]);
        let integers = TensorView::new(Dtype::I16, vec![2, 2], &half).unwrap();
        assert_eq!(Vectors::of_tensor(&integers), Err(VectorsError::Type { got: Dtype::I16 }));
    }
}
