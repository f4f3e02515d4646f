//! Ablation of directions from what is written to the stream.

use std::collections::BTreeSet;

use super::{Direction, DirectionError, EditError};
use crate::linalg::dot;

/// A kind of write to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WriteKind {
    /// What starts the stream: token embeddings, and what is added to them.
    Embed,
    /// What attention writes.
    AttnOut,
    /// What an MLP, or a mixture of experts, writes.
    MlpOut,
}

impl WriteKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Embed, Self::AttnOut, Self::MlpOut];

    /// Its name in files: `embed`, `attn_out`, `mlp_out`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::AttnOut => "attn_out",
            Self::MlpOut => "mlp_out",
        }
    }
}

/// Which writes an ablation acts on: all, unless it names layers or kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Writes {
    /// Absolute layers; `None` stands for all, and for the embeddings, which belong to no layer.
    pub layers: Option<BTreeSet<usize>>,
    /// Kinds of write; `None` stands for all.
    pub kinds: Option<BTreeSet<WriteKind>>,
}

impl Writes {
    /// The writes of these layers.
    pub fn of_layers(layers: impl IntoIterator<Item = usize>) -> Self {
        Self { layers: Some(layers.into_iter().collect()), kinds: None }
    }

    /// Whether every write is among them.
    pub fn is_all(&self) -> bool {
        self.layers.is_none() && self.kinds.is_none()
    }

    /// Whether a write of this kind is among them; embeddings have no layer.
    pub fn contains(&self, kind: WriteKind, layer: Option<usize>) -> bool {
        let of_layer = self.layers.as_ref().is_none_or(|layers| layer.is_some_and(|layer| layers.contains(&layer)));
        of_layer && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind))
    }
}

/// A direction that is ablated, and the share of the component along it that goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Ablated {
    direction: Direction,
    strength: f64,
}

impl Ablated {
    /// The direction.
    pub fn direction(&self) -> &Direction {
        &self.direction
    }

    /// The unit vector `q`, `[d_model]`.
    pub fn unit(&self) -> &[f64] {
        self.direction.unit()
    }

    /// The share `s` of the component that is ablated, above 0 and at most 1.
    pub fn strength(&self) -> f64 {
        self.strength
    }

    /// The vector `sqrt(s) q` as float32, `[d_model]`: `x - (x.v) v` is then `x - s (x.q) q`.
    pub fn hook(&self) -> Vec<f32> {
        let root = self.strength.sqrt();
        self.unit().iter().map(|v| (root * v) as f32).collect()
    }
}

/// Ablation of one or more orthonormal directions from writes to the stream: `x <- x - Q^T S Q x`, with the directions as
/// rows of `Q`, `[k, d_model]`, and a strength each in the diagonal `S`. With one direction at every write it is the
/// ablation of Wang et al. 2025, eq. 4: `x <- x - s (x.r) r`. As the directions are orthonormal, ablating one after the
/// other gives the same.
///
/// ```
/// use lancet::edit::{Ablation, Direction, Writes};
///
/// let [a, b] = [vec![1.0, 0.0, 0.0], vec![1.0, 1.0, 0.0]].map(|raw| Direction::new(raw).unwrap());
/// let ablation = Ablation::of_span(vec![a.clone(), b])?.on(Writes::of_layers([3, 4]));
/// // the second loses what the first has of it
/// assert_eq!(ablation.vectors()[1].unit(), [0.0, 1.0, 0.0]);
/// assert!(Ablation::of_span(vec![a.clone(), a]).is_err());
/// # Ok::<(), lancet::edit::EditError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Ablation {
    vectors: Vec<Ablated>,
    writes: Writes,
}

impl Ablation {
    /// How many directions an ablation may have.
    pub const MOST_DIRECTIONS: usize = 16;

    /// Two unit vectors are orthogonal if their product is at most this.
    const ORTHOGONAL: f64 = 1e-5;

    /// A direction keeps at least this share of its length beside those before it, else it is one of their sums.
    const INDEPENDENT: f64 = 1e-4;

    /// The ablation of all of the component along `direction`, from every write.
    pub fn new(direction: Direction) -> Self {
        Self { vectors: vec![Ablated { direction, strength: 1.0 }], writes: Writes::default() }
    }

    /// The ablation of everything in the span of `directions`, from every write. The first direction is taken as it is,
    /// each further one loses its components along those before it (Gram and Schmidt, twice over).
    ///
    /// # Errors
    /// None or too many directions, directions of different widths, and one that is a sum of those before it.
    pub fn of_span(directions: Vec<Direction>) -> Result<Self, EditError> {
        let got = directions.len();
        if got == 0 || got > Self::MOST_DIRECTIONS {
            return Err(EditError::Directions { got });
        }
        let mut vectors: Vec<Ablated> = Vec::new();
        for (index, direction) in directions.into_iter().enumerate() {
            let direction = match vectors.first() {
                None => direction,
                Some(first) => {
                    direction.check_width(first.unit().len())?;
                    beside(&vectors, &direction).ok_or(EditError::Dependent { index })?
                }
            };
            vectors.push(Ablated { direction, strength: 1.0 });
        }
        Ok(Self { vectors, writes: Writes::default() })
    }

    /// The ablation of directions that are orthonormal already, up to the rounding of float32, from every write. They are
    /// taken as they are.
    ///
    /// # Errors
    /// None or too many directions, directions of different widths, and two that are not orthogonal.
    pub fn of_orthonormal(directions: Vec<Direction>) -> Result<Self, EditError> {
        let got = directions.len();
        if got == 0 || got > Self::MOST_DIRECTIONS {
            return Err(EditError::Directions { got });
        }
        let width = directions[0].width();
        for (index, direction) in directions.iter().enumerate() {
            direction.check_width(width)?;
            let along = |other: &Direction| dot(direction.unit(), other.unit()).abs();
            if directions[..index].iter().any(|other| along(other) > Self::ORTHOGONAL) {
                return Err(EditError::NotOrthogonal { index });
            }
        }
        let vectors = directions.into_iter().map(|direction| Ablated { direction, strength: 1.0 }).collect();
        Ok(Self { vectors, writes: Writes::default() })
    }

    /// The same with strength `s`, above 0 and at most 1, for every direction: the share of the component that is
    /// ablated.
    #[must_use]
    pub fn with_strength(mut self, strength: f64) -> Self {
        self.vectors.iter_mut().for_each(|vector| vector.strength = strength);
        self
    }

    /// The same with a strength for each direction, in their order. Directions beyond the strengths keep theirs.
    #[must_use]
    pub fn with_strengths(mut self, strengths: &[f64]) -> Self {
        self.vectors.iter_mut().zip(strengths).for_each(|(vector, strength)| vector.strength = *strength);
        self
    }

    /// The same, acting on these writes alone.
    #[must_use]
    pub fn on(self, writes: Writes) -> Self {
        Self { writes, ..self }
    }

    /// The directions with their strengths; at least one, and orthonormal.
    pub fn vectors(&self) -> &[Ablated] {
        &self.vectors
    }

    /// Which writes it acts on.
    pub fn writes(&self) -> &Writes {
        &self.writes
    }

    /// The unit vectors one behind the other, `[k, d_model]`.
    pub fn units(&self) -> Vec<f64> {
        self.vectors.iter().flat_map(|vector| vector.unit().iter().copied()).collect()
    }

    /// The strength of every direction.
    pub fn strengths(&self) -> Vec<f64> {
        self.vectors.iter().map(Ablated::strength).collect()
    }

    /// Whether a part of a component is to stay where it acts.
    pub fn is_partial(&self) -> bool {
        self.vectors.iter().any(|vector| vector.strength < 1.0)
    }

    /// Width of its directions.
    pub fn width(&self) -> usize {
        self.vectors.first().map_or(0, |vector| vector.unit().len())
    }

    /// Checks that the directions fit a residual stream of width `d_model`.
    ///
    /// # Errors
    /// [`DirectionError::Width`].
    pub fn check_width(&self, d_model: usize) -> Result<(), DirectionError> {
        self.vectors.iter().try_for_each(|vector| vector.direction.check_width(d_model))
    }
}

/// What `direction` has beside `others`, which are orthonormal; `None` where that is next to nothing.
fn beside(others: &[Ablated], direction: &Direction) -> Option<Direction> {
    let mut left = direction.unit().to_vec();
    for _ in 0..2 {
        for other in others {
            let along = dot(&left, other.unit());
            left.iter_mut().zip(other.unit()).for_each(|(x, q)| *x -= along * q);
        }
    }
    Direction::new(left).ok().filter(|left| left.raw_norm() >= Ablation::INDEPENDENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction(raw: &[f64]) -> Direction {
        Direction::new(raw.to_vec()).unwrap()
    }

    #[test]
    fn a_scaled_vector_ablates_a_share() {
        let x = [0.3, -1.25, 2.0];
        for strength in [1.0, 0.5, 0.04] {
            let ablation = Ablation::new(direction(&[1.0, 2.0, -0.5])).with_strength(strength);
            let vector = &ablation.vectors()[0];
            let v: Vec<f64> = vector.hook().iter().map(|v| f64::from(*v)).collect();
            let (by_hook, by_strength) = (dot(&x, &v), strength * dot(&x, vector.unit()));
            for ((x, v), r) in x.iter().zip(&v).zip(vector.unit()) {
                assert!((x - by_hook * v - (x - by_strength * r)).abs() < 1e-6, "{strength}");
            }
        }
    }

    #[test]
    fn directions_of_a_span_are_orthonormal() {
        let raw = [[1.0, 0.5, -0.25, 2.0], [1.0, 0.5, -0.25, 2.01], [0.0, 3.0, 1.0, 0.0]];
        let ablation = Ablation::of_span(raw.iter().map(|raw| direction(raw)).collect()).unwrap();
        assert_eq!(ablation.vectors()[0].unit(), direction(&raw[0]).unit());
        assert_eq!((ablation.width(), ablation.units().len()), (4, 12));
        for (i, a) in ablation.vectors().iter().enumerate() {
            for (j, b) in ablation.vectors().iter().enumerate() {
                let expected = f64::from(u8::from(i == j));
                assert!((dot(a.unit(), b.unit()) - expected).abs() < 1e-14, "{i} {j}");
            }
        }
        let partial = ablation.with_strengths(&[1.0, 0.5]);
        assert_eq!((partial.strengths(), partial.is_partial()), (vec![1.0, 0.5, 1.0], true));
    }

    #[test]
    fn what_spans_nothing_new_is_refused() {
        let [a, b] = [direction(&[1.0, 0.0]), direction(&[1.0, 1.0])];
        assert_eq!(Ablation::of_span(vec![]), Err(EditError::Directions { got: 0 }));
        assert_eq!(Ablation::of_span(vec![a.clone(); 17]), Err(EditError::Directions { got: 17 }));
        let sum = direction(&[-3.0, 0.5]);
        assert_eq!(Ablation::of_span(vec![a.clone(), b.clone(), sum]), Err(EditError::Dependent { index: 2 }));
        let wide = Ablation::of_span(vec![a.clone(), direction(&[1.0, 0.0, 0.0])]);
        assert_eq!(wide, Err(EditError::Direction(DirectionError::Width { expected: 2, got: 3 })));
        assert_eq!(Ablation::of_span(vec![a.clone(), b.clone()]).unwrap().check_width(2), Ok(()));
        assert_eq!(Ablation::of_orthonormal(vec![a.clone(), b]), Err(EditError::NotOrthogonal { index: 1 }));
        let nearly = direction(&[1e-8, 1.0]);
        let taken = Ablation::of_orthonormal(vec![a, nearly.clone()]).unwrap();
        assert_eq!(taken.vectors()[1].direction(), &nearly);
    }

    #[test]
    fn writes_are_named_by_layer_and_kind() {
        let all = Writes::default();
        assert!(all.is_all() && all.contains(WriteKind::Embed, None) && all.contains(WriteKind::MlpOut, Some(7)));
        let layers = Writes::of_layers([2, 5]);
        assert!(!layers.is_all() && layers.contains(WriteKind::AttnOut, Some(5)));
        assert!(!layers.contains(WriteKind::AttnOut, Some(3)) && !layers.contains(WriteKind::Embed, None));
        let kinds = Writes { layers: None, kinds: Some([WriteKind::Embed, WriteKind::MlpOut].into()) };
        assert!(kinds.contains(WriteKind::Embed, None) && !kinds.contains(WriteKind::AttnOut, Some(0)));
    }
}
