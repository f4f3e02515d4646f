//! Mean activations, accumulated in float64.

/// Mean of `resid_pre` over prompts, for every post-instruction position and layer.
///
/// Positions run from `-n_pos` to `-1`; `[n_pos, n_layers, d_model]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationMeans {
    n_pos: usize,
    n_layers: usize,
    d_model: usize,
    sums: Vec<f64>,
    count: usize,
}

impl ActivationMeans {
    /// An empty accumulator.
    pub fn new(n_pos: usize, n_layers: usize, d_model: usize) -> Self {
        Self { n_pos, n_layers, d_model, sums: vec![0.0; n_pos * n_layers * d_model], count: 0 }
    }

    /// Means read back from a file: `means` is `[n_pos, n_layers, d_model]` over `count` prompts.
    ///
    /// # Panics
    /// If the length of `means` is another.
    pub fn from_means(n_pos: usize, n_layers: usize, d_model: usize, means: &[f64], count: usize) -> Self {
        assert_eq!(means.len(), n_pos * n_layers * d_model, "the caller checks the shape");
        Self { n_pos, n_layers, d_model, sums: means.iter().map(|m| m * count as f64).collect(), count }
    }

    /// Adds one prompt's activations, `[n_pos, d_model]` row-major for every layer.
    ///
    /// # Panics
    /// If there are other layers, or other numbers of them.
    pub fn add(&mut self, layers: &[Vec<f32>]) {
        assert_eq!(layers.len(), self.n_layers, "the caller collects what it asked for");
        for (layer, activations) in layers.iter().enumerate() {
            assert_eq!(activations.len(), self.n_pos * self.d_model, "the caller collects what it asked for");
            for (position, vector) in activations.chunks(self.d_model).enumerate() {
                let start = (position * self.n_layers + layer) * self.d_model;
                for (sum, value) in self.sums[start..start + self.d_model].iter_mut().zip(vector) {
                    *sum += f64::from(*value);
                }
            }
        }
        self.count += 1;
    }

    /// Number of prompts.
    pub fn count(&self) -> usize {
        self.count
    }

    /// `(n_pos, n_layers, d_model)`.
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.n_pos, self.n_layers, self.d_model)
    }

    /// Mean at `position` (negative, from the end) and `layer`, `[d_model]`.
    pub fn mean(&self, position: i64, layer: usize) -> Vec<f64> {
        let row = usize::try_from(self.n_pos as i64 + position).expect("positions are -n_pos..=-1");
        let start = (row * self.n_layers + layer) * self.d_model;
        self.sums[start..start + self.d_model].iter().map(|s| s / self.count as f64).collect()
    }

    /// Every mean, `[n_pos, n_layers, d_model]`.
    pub fn means(&self) -> Vec<f64> {
        self.sums.iter().map(|s| s / self.count as f64).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_exact_and_addressed_from_the_end() {
        let mut means = ActivationMeans::new(2, 1, 2);
        means.add(&[vec![1.0, 2.0, 3.0, 4.0]]);
        means.add(&[vec![3.0, 2.0, 5.0, 0.0]]);
        assert_eq!(means.mean(-2, 0), [2.0, 2.0]);
        assert_eq!(means.mean(-1, 0), [4.0, 2.0]);
        let mut means = ActivationMeans::new(2, 2, 1);
        means.add(&[vec![1.0, 2.0], vec![3.0, 4.0]]);
        assert_eq!(
            [(-2, 0), (-2, 1), (-1, 0), (-1, 1)].map(|(at, layer)| means.mean(at, layer)[0]),
            [1.0, 3.0, 2.0, 4.0]
        );
        assert_eq!(ActivationMeans::from_means(2, 2, 1, &means.means(), 1), means);
    }
}
