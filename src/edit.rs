//! What is done to the residual stream of a model: one description that every method gives, and that run-time steering,
//! the bake, `verify` and direction files take.
//!
//! The parts act in this order, at every position: writes lose their components along directions ([`Ablation`]), vectors
//! join `resid_pre` of some layers ([`Addition`]), and terms that depend on the stream itself are added to `resid_pre` of
//! their layers ([`GatedTerm`]).

mod ablation;
mod direction;
mod radial;

pub use ablation::{Ablated, Ablation, WriteKind, Writes};
pub use direction::{Direction, DirectionError};
pub use radial::RadialBasis;

use crate::linalg::dot;

/// What is wrong with an edit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EditError {
    /// A vector that is none.
    #[error(transparent)]
    Direction(#[from] DirectionError),
    /// No part is left that changes anything.
    #[error("the edit changes nothing: it has no direction to ablate, no vector to add and no gated term")]
    Nothing,
    /// No directions to ablate, or more than anybody needs.
    #[error("an ablation of {got} directions, and 1 to {} are possible", Ablation::MOST_DIRECTIONS)]
    Directions {
        /// How many.
        got: usize,
    },
    /// A direction that adds nothing to those before it.
    #[error("direction {index} to ablate is a sum of those before it")]
    Dependent {
        /// Which, counted from 0.
        index: usize,
    },
    /// A direction that should be orthogonal to those before it.
    #[error("direction {index} to ablate is not orthogonal to those before it")]
    NotOrthogonal {
        /// Which, counted from 0.
        index: usize,
    },
    /// Two vectors to add to the stream at one place.
    #[error("two vectors are added at layer {layer}")]
    SameLayer {
        /// Their layer.
        layer: usize,
    },
    /// A gated term that cannot be computed.
    #[error("the gated term of layer {layer} is no term: {problem}")]
    Gate {
        /// Its layer.
        layer: usize,
        /// Why not.
        problem: GateProblem,
    },
}

/// Why a gated term cannot be computed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GateProblem {
    /// Layer 0 has no block before it whose sum could be changed.
    #[error("its layer must be at least 1")]
    Layer,
    /// None, or more than anybody needs.
    #[error("it has {got} factors, and 1 to {} are possible", GatedTerm::MOST_FACTORS)]
    Factors {
        /// How many.
        got: usize,
    },
    /// Its vectors are of different lengths, or empty.
    #[error("its vectors have {got} elements where {expected} are needed")]
    Width {
        /// `d_model`.
        expected: usize,
        /// Elements found.
        got: usize,
    },
    /// Radial basis functions without a center, with more than anybody needs, or with some whose sizes differ.
    #[error("its {got} centers do not fit its weights, or are not 1 to {}", RadialBasis::MOST_CENTERS)]
    Centers {
        /// How many.
        got: usize,
    },
    /// NaN, infinity, or beyond float32.
    #[error("it holds {value}, which is no finite float32 number")]
    NotFinite {
        /// The value.
        value: f64,
    },
    /// A vector of zeros.
    #[error("a vector of it is zero")]
    Zero,
}

impl EditError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Direction(error) => error.hint(),
            Self::Nothing => Some("give a direction, a vector to add, or a gated term".into()),
            Self::Directions { .. } => Some("give fewer directions, or at least one".into()),
            Self::Dependent { .. } => Some("leave that direction out: without it the same is ablated".into()),
            Self::NotOrthogonal { .. } => Some("give an orthonormal basis of what is to be ablated".into()),
            Self::SameLayer { .. } => Some("give their sum".into()),
            Self::Gate { .. } => Some("fit the term again, on activations of this model".into()),
        }
    }
}

/// Activation addition (Wang et al. 2025, eq. 5): `x <- x + alpha r` on `resid_pre[layer]`, at every position.
#[derive(Debug, Clone, PartialEq)]
pub struct Addition {
    /// The true-refusal vector as the difference of means gives it, not normalised, `[d_model]`.
    pub vector: Vec<f64>,
    /// Absolute layer, at least 1: the vector joins the write that ends block `layer - 1`.
    pub layer: usize,
    /// Token position that the vector comes from, negative.
    pub position: i64,
    /// Factor of the vector.
    pub alpha: f64,
}

impl Addition {
    /// What is added, `alpha r`, `[d_model]`.
    pub fn scaled(&self) -> Vec<f64> {
        self.vector.iter().map(|v| self.alpha * v).collect()
    }
}

/// The function of a factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// `f(y) = y`.
    Identity,
    /// `f(y) = max(y, 0)`.
    Relu,
    /// `f(y) = min(max(y, 0), 1)`.
    Clipped,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 3] = [Self::Identity, Self::Relu, Self::Clipped];

    /// Its name in files: `identity`, `relu`, `clipped`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Relu => "relu",
            Self::Clipped => "clipped",
        }
    }

    /// `f(y)`; a NaN stays one.
    pub fn of(self, y: f64) -> f64 {
        match self {
            _ if y.is_nan() => y,
            Self::Identity => y,
            Self::Relu => y.max(0.0),
            Self::Clipped => y.clamp(0.0, 1.0),
        }
    }
}

/// The number that a factor reads off an activation.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// `w.x`, of the weights `w`, `[d_model]`.
    Linear(Vec<f64>),
    /// How near the activation is to known ones.
    Radial(RadialBasis),
}

impl Reading {
    /// Its value `h(x)` for `x`, `[d_model]`.
    pub fn of(&self, x: &[f64]) -> f64 {
        match self {
            Self::Linear(weights) => dot(weights, x),
            Self::Radial(basis) => basis.of(x),
        }
    }

    /// How far arithmetic may be from its value for `x`, in units of the relative rounding of one operation.
    pub fn rounding(&self, x: &[f64]) -> f64 {
        match self {
            Self::Linear(weights) => weights.iter().zip(x).map(|(w, x)| (w * x).abs()).sum(),
            Self::Radial(basis) => basis.rounding(x),
        }
    }

    /// The same times `factor`.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        match self {
            Self::Linear(mut weights) => {
                weights.iter_mut().for_each(|w| *w *= factor);
                Self::Linear(weights)
            }
            Self::Radial(basis) => Self::Radial(basis.scaled(factor)),
        }
    }

    /// The weights of a linear one.
    pub fn linear(&self) -> Option<&[f64]> {
        match self {
            Self::Linear(weights) => Some(weights),
            Self::Radial(_) => None,
        }
    }

    /// The functions of a radial one.
    pub fn radial(&self) -> Option<&RadialBasis> {
        match self {
            Self::Linear(_) => None,
            Self::Radial(basis) => Some(basis),
        }
    }

    fn numbers(&self) -> impl Iterator<Item = f64> {
        let linear = self.linear().into_iter().flatten().copied();
        linear.chain(self.radial().into_iter().flat_map(RadialBasis::numbers))
    }

    fn rounded(&self) -> Self {
        match self {
            Self::Linear(weights) => Self::Linear(single(weights)),
            Self::Radial(basis) => Self::Radial(basis.rounded()),
        }
    }

    fn check(&self, width: usize) -> Result<(), GateProblem> {
        match self {
            Self::Linear(weights) if weights.len() != width => {
                Err(GateProblem::Width { expected: width, got: weights.len() })
            }
            Self::Linear(weights) if is_zero(weights) => Err(GateProblem::Zero),
            Self::Linear(_) => Ok(()),
            Self::Radial(basis) => basis.check(width),
        }
    }
}

/// One factor of a gated term: the number `f(h(x) + c)` at each position.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    /// `h`.
    pub reading: Reading,
    /// `c`.
    pub offset: f64,
    /// `f`.
    pub shape: Shape,
}

impl Factor {
    /// The factor `f(w.x + c)`; `weights` is `w`, `[d_model]`.
    pub fn linear(weights: Vec<f64>, offset: f64, shape: Shape) -> Self {
        Self { reading: Reading::Linear(weights), offset, shape }
    }

    /// The gate `clip((h(x) - c) / s, 0, 1)`: shut where `h(x)` is at most the `threshold`, `c`, wide open from `c + s` on.
    /// A `ramp`, `s`, that is not above 0 gives numbers that no term takes.
    pub fn gate(reading: Reading, threshold: f64, ramp: f64) -> Self {
        let ramp = if ramp > 0.0 { ramp } else { f64::NAN };
        Self { reading: reading.scaled(1.0 / ramp), offset: -threshold / ramp, shape: Shape::Clipped }
    }

    /// Its value for `x`, `[d_model]`.
    pub fn of(&self, x: &[f64]) -> f64 {
        self.shape.of(self.reading.of(x) + self.offset)
    }

    /// Its value, and how far from it arithmetic of the relative rounding `eps` may be; 0 where the shape is flat.
    fn with_doubt(&self, x: &[f64], eps: f64) -> (f64, f64) {
        let (y, by) = (self.reading.of(x) + self.offset, eps * (self.reading.rounding(x) + self.offset.abs()));
        let value = self.shape.of(y);
        (value, [y + by, y - by].into_iter().map(|y| (self.shape.of(y) - value).abs()).fold(0.0, f64::max))
    }
}

fn single(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v as f32)).collect()
}

fn is_zero(values: &[f64]) -> bool {
    values.iter().all(|value| *value as f32 == 0.0)
}

/// A term that depends on the stream: `x <- x + v f_1(h_1(x) + c_1) f_2(h_2(x) + c_2) ..` on `resid_pre[layer]`, at every
/// position. One factor makes a conditional addition; more make the gated ablation ([`GatedTerm::ablation`]).
#[derive(Debug, Clone, PartialEq)]
pub struct GatedTerm {
    layer: usize,
    vector: Vec<f64>,
    factors: Vec<Factor>,
}

impl GatedTerm {
    /// How many factors a term may have.
    pub const MOST_FACTORS: usize = 4;

    /// The term `v f_1(h_1(x) + c_1) ..` of `resid_pre[layer]`. `vector` is `v`, `[d_model]`.
    ///
    /// # Errors
    /// [`EditError::Gate`], for what cannot be computed, or not in float32.
    pub fn new(layer: usize, vector: Vec<f64>, factors: Vec<Factor>) -> Result<Self, EditError> {
        let checked = || {
            if layer == 0 {
                return Err(GateProblem::Layer);
            }
            if factors.is_empty() || factors.len() > Self::MOST_FACTORS {
                return Err(GateProblem::Factors { got: factors.len() });
            }
            let width = vector.len();
            if width == 0 {
                return Err(GateProblem::Width { expected: 1, got: 0 });
            }
            let read = factors.iter().flat_map(|factor| factor.reading.numbers().chain([factor.offset]));
            if let Some(value) = vector.iter().copied().chain(read).find(|value| !(*value as f32).is_finite()) {
                return Err(GateProblem::NotFinite { value });
            }
            factors.iter().try_for_each(|factor| factor.reading.check(width))?;
            if is_zero(&vector) { Err(GateProblem::Zero) } else { Ok(()) }
        };
        checked().map_err(|problem| EditError::Gate { layer, problem })?;
        Ok(Self { layer, vector, factors })
    }

    /// The gated ablation `x <- x - alpha g_1 g_2 .. max(r.x - m, 0) r`: what takes the component of `x` along `direction`,
    /// `r`, above the `floor`, `m`, off, as far as all `gates` are open ([`Factor::gate`]). `alpha = 1` takes all of that off.
    ///
    /// # Errors
    /// As [`GatedTerm::new`].
    pub fn ablation(
        layer: usize,
        mut gates: Vec<Factor>,
        direction: &Direction,
        floor: f64,
        alpha: f64,
    ) -> Result<Self, EditError> {
        gates.push(Factor::linear(direction.unit().to_vec(), -floor, Shape::Relu));
        Self::new(layer, direction.unit().iter().map(|r| -alpha * r).collect(), gates)
    }

    /// The absolute layer whose `resid_pre` it is added to, at least 1.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// `v`, `[d_model]`.
    pub fn vector(&self) -> &[f64] {
        &self.vector
    }

    /// The factors, one to [`GatedTerm::MOST_FACTORS`].
    pub fn factors(&self) -> &[Factor] {
        &self.factors
    }

    /// The product of the factors for `x`, `[d_model]`: how much of `v` is added.
    pub fn amount(&self, x: &[f64]) -> f64 {
        self.factors.iter().map(|factor| factor.of(x)).product()
    }

    /// How far arithmetic of the relative rounding `eps` may be from [`GatedTerm::amount`], to first order in each reading.
    pub fn doubt(&self, x: &[f64], eps: f64) -> f64 {
        let factors = self.factors.iter().map(|factor| factor.with_doubt(x, eps));
        let [most, amount] = factors
            .fold([1.0, 1.0], |[most, amount], (value, doubt)| [most * (value.abs() + doubt), amount * value.abs()]);
        most - amount
    }

    /// Adds the term to `x`, `[d_model]`, and returns how much of `v` that was.
    pub fn apply(&self, x: &mut [f64]) -> f64 {
        let amount = self.amount(x);
        x.iter_mut().zip(&self.vector).for_each(|(x, v)| *x += amount * v);
        amount
    }

    /// The same with every number rounded to float32, as files and graphs hold it.
    #[must_use]
    pub fn rounded(&self) -> Self {
        let factor =
            |f: &Factor| Factor { reading: f.reading.rounded(), offset: f64::from(f.offset as f32), shape: f.shape };
        Self { layer: self.layer, vector: single(&self.vector), factors: self.factors.iter().map(factor).collect() }
    }
}

/// Everything that is done to the stream. At least one part is there.
///
/// ```
/// use lancet::edit::Direction;
/// use lancet::edit::{Ablation, Edit, Factor, GatedTerm, Shape};
///
/// let r = Direction::new(vec![3.0, 0.0, 4.0])?;
/// let edit = Edit::from(Ablation::new(r).with_strength(0.5));
/// assert_eq!(edit.ablation().map(Ablation::strengths), Some(vec![0.5]));
///
/// // x + v max(x_0 - 1, 0)
/// let factor = Factor::linear(vec![1.0, 0.0], -1.0, Shape::Relu);
/// let term = GatedTerm::new(7, vec![0.0, 2.0], vec![factor])?;
/// let (mut below, mut above) = ([0.5, 1.0], [4.0, 1.0]);
/// assert_eq!((term.apply(&mut below), term.apply(&mut above)), (0.0, 3.0));
/// assert_eq!((below, above), ([0.5, 1.0], [4.0, 7.0]));
/// assert_eq!(Edit::new(None, vec![], vec![term])?.width(), 2);
/// # Ok::<(), lancet::edit::EditError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    ablation: Option<Ablation>,
    additions: Vec<Addition>,
    gates: Vec<GatedTerm>,
}

impl From<Ablation> for Edit {
    fn from(ablation: Ablation) -> Self {
        Self { ablation: Some(ablation), additions: Vec::new(), gates: Vec::new() }
    }
}

impl From<Direction> for Edit {
    fn from(direction: Direction) -> Self {
        Ablation::new(direction).into()
    }
}

impl Edit {
    /// The edit of these parts. An addition with `alpha = 0` is none.
    ///
    /// # Errors
    /// [`EditError::Nothing`] where no part is left, [`EditError::SameLayer`] where two additions have one layer.
    pub fn new(ablation: Option<Ablation>, additions: Vec<Addition>, gates: Vec<GatedTerm>) -> Result<Self, EditError> {
        let additions = in_order(additions)?;
        if ablation.is_none() && additions.is_empty() && gates.is_empty() {
            return Err(EditError::Nothing);
        }
        Ok(Self { ablation, additions, gates })
    }

    /// The same with one addition and no other, or with none; one with `alpha = 0` is none.
    #[must_use]
    pub fn with_addition(self, addition: Option<Addition>) -> Self {
        Self { additions: addition.into_iter().filter(|a| a.alpha != 0.0).collect(), ..self }
    }

    /// What is ablated.
    pub fn ablation(&self) -> Option<&Ablation> {
        self.ablation.as_ref()
    }

    /// What is added, in the order of the layers, each of which is there once.
    pub fn additions(&self) -> &[Addition] {
        &self.additions
    }

    /// Terms that depend on the stream.
    pub fn gates(&self) -> &[GatedTerm] {
        &self.gates
    }

    /// The vectors of the parts, `[d_model]` each.
    fn vectors(&self) -> impl Iterator<Item = &[f64]> {
        let ablated = self.ablation.iter().flat_map(Ablation::vectors).map(Ablated::unit);
        let added = self.additions.iter().map(|addition| addition.vector.as_slice());
        ablated.chain(added).chain(self.gates.iter().map(GatedTerm::vector))
    }

    /// `d_model` of the model that it is for.
    pub fn width(&self) -> usize {
        self.vectors().next().map_or(0, <[f64]>::len)
    }

    /// Whether whole components are ablated from every write and nothing else is done, so that nothing of them may be left
    /// in the stream.
    pub fn leaves_nothing(&self) -> bool {
        self.ablation.as_ref().is_some_and(|ablation| !ablation.is_partial() && ablation.writes().is_all())
            && self.additions.is_empty()
            && self.gates.is_empty()
    }

    /// Checks that every part fits a residual stream of width `d_model`.
    ///
    /// # Errors
    /// [`DirectionError::Width`].
    pub fn check_width(&self, d_model: usize) -> Result<(), DirectionError> {
        match self.vectors().map(<[f64]>::len).find(|width| *width != d_model) {
            None => Ok(()),
            Some(got) => Err(DirectionError::Width { expected: d_model, got }),
        }
    }
}

/// Additions that add something, by their layers.
fn in_order(mut additions: Vec<Addition>) -> Result<Vec<Addition>, EditError> {
    additions.retain(|addition| addition.alpha != 0.0);
    additions.sort_by_key(|addition| addition.layer);
    match additions.windows(2).find(|pair| pair[0].layer == pair[1].layer) {
        Some(pair) => Err(EditError::SameLayer { layer: pair[0].layer }),
        None => Ok(additions),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(weights: &[f64], offset: f64, shape: Shape) -> Factor {
        Factor::linear(weights.to_vec(), offset, shape)
    }

    #[test]
    fn an_edit_without_parts_is_none() {
        let addition = |layer, alpha| Addition { vector: vec![1.0, 2.0], layer, position: -1, alpha };
        let edit = Edit::from(Direction::new(vec![1.0, 1.0]).unwrap());
        assert_eq!(edit.clone().with_addition(Some(addition(1, 0.0))), edit);
        assert!(edit.leaves_nothing());
        let added = edit.with_addition(Some(addition(1, 2.0)));
        assert_eq!(added.additions()[0].scaled(), [2.0, 4.0]);
        assert!(!added.leaves_nothing());
        assert_eq!(Edit::new(None, vec![addition(1, 0.0)], Vec::new()), Err(EditError::Nothing));
        assert_eq!(Edit::new(None, vec![addition(1, 1.0)], Vec::new()).unwrap().width(), 2);
        let two = Edit::new(None, vec![addition(3, 1.0), addition(2, 1.0)], Vec::new()).unwrap();
        assert_eq!(two.additions().iter().map(|one| one.layer).collect::<Vec<_>>(), [2, 3]);
        let twice = Edit::new(None, vec![addition(3, 1.0), addition(2, 1.0), addition(3, 4.0)], Vec::new());
        assert_eq!(twice, Err(EditError::SameLayer { layer: 3 }));
    }

    #[test]
    fn only_a_whole_ablation_of_every_write_leaves_nothing() {
        let whole = Ablation::new(Direction::new(vec![1.0, 1.0]).unwrap());
        assert!(Edit::from(whole.clone()).leaves_nothing());
        assert!(!Edit::from(whole.clone().with_strength(0.5)).leaves_nothing());
        assert!(!Edit::from(whole.on(Writes::of_layers([1]))).leaves_nothing());
    }

    #[test]
    fn a_gated_ablation_acts_where_the_gate_is_open() {
        let gated = |ramp| {
            let gate = Factor::gate(Reading::Linear(vec![0.0, 1.0]), 2.0, ramp);
            GatedTerm::ablation(3, vec![gate], &Direction::new(vec![5.0, 0.0]).unwrap(), 1.0, 1.5)
        };
        let term = gated(4.0).unwrap();
        for (x, expected) in [
            ([9.0, 2.0], [9.0, 2.0]),    // shut
            ([9.0, 4.0], [3.0, 4.0]),    // half open: 9 - 1.5 * 0.5 * 8
            ([9.0, 60.0], [-3.0, 60.0]), // open: 9 - 1.5 * 8
            ([0.5, 60.0], [0.5, 60.0]),  // below the floor
        ] {
            let mut changed = x;
            term.apply(&mut changed);
            assert_eq!(changed, expected, "{x:?}");
        }
        for ramp in [0.0, -1.0, f64::NAN] {
            let error = gated(ramp).unwrap_err();
            assert!(matches!(error, EditError::Gate { layer: 3, problem: GateProblem::NotFinite { .. } }), "{error}");
        }
    }

    /// Each factor is in doubt by what its reading may be off, unless its shape is flat there.
    #[test]
    fn what_rounding_may_move_a_term_by_is_told_where_it_can() {
        let gate = Factor::gate(Reading::Linear(vec![0.0, 1.0]), 2.0, 4.0);
        let term = GatedTerm::ablation(3, vec![gate], &Direction::new(vec![5.0, 0.0]).unwrap(), 1.0, 1.5).unwrap();
        let eps = 1e-6;
        // a gate of (x - 2) / 4 reads 4 / 4 and adds -2 / 4; the other factor reads 9 and adds -1
        let (half, whole) = ((0.5 + eps * 1.5) * (8.0 + eps * 10.0) - 4.0, eps * 10.0);
        for (x, expected) in [([9.0, 4.0], half), ([9.0, 60.0], whole), ([9.0, 1.0], 0.0), ([0.5, 60.0], 0.0)] {
            assert!((term.doubt(&x, eps) - expected).abs() < 1e-12, "{x:?}: {} {expected}", term.doubt(&x, eps));
        }
    }

    #[test]
    fn shapes_are_those_of_their_names() {
        let values = [-2.0, -0.0, 0.25, 1.0, 7.0];
        let of = |shape: Shape| values.map(|y| shape.of(y));
        assert_eq!(of(Shape::Identity), values);
        assert_eq!(of(Shape::Relu), [0.0, 0.0, 0.25, 1.0, 7.0]);
        assert_eq!(of(Shape::Clipped), [0.0, 0.0, 0.25, 1.0, 1.0]);
        assert!(Shape::ALL.iter().all(|shape| shape.of(f64::NAN).is_nan()));
    }

    #[test]
    fn what_cannot_be_computed_is_no_term() {
        let good = || factor(&[1.0, 0.0], 0.5, Shape::Clipped);
        let problem = |layer, vector: &[f64], factors| match GatedTerm::new(layer, vector.to_vec(), factors) {
            Err(EditError::Gate { problem, .. }) => problem,
            other => panic!("{other:?}"),
        };
        let v = [0.0, 1.0];
        assert!(GatedTerm::new(1, v.to_vec(), vec![good(), good()]).is_ok());
        assert_eq!(problem(0, &v, vec![good()]), GateProblem::Layer);
        assert_eq!(problem(1, &v, vec![]), GateProblem::Factors { got: 0 });
        assert_eq!(problem(1, &v, vec![good(); 5]), GateProblem::Factors { got: 5 });
        assert_eq!(problem(1, &[1.0], vec![good()]), GateProblem::Width { expected: 1, got: 2 });
        assert_eq!(problem(1, &[], vec![good()]), GateProblem::Width { expected: 1, got: 0 });
        assert_eq!(problem(1, &[0.0, 0.0], vec![good()]), GateProblem::Zero);
        assert_eq!(problem(1, &v, vec![factor(&[0.0, 1e-60], 0.0, Shape::Relu)]), GateProblem::Zero);
        for bad in [f64::NAN, f64::INFINITY, 1e39] {
            let found = [
                problem(1, &[bad, 0.0], vec![good()]),
                problem(1, &v, vec![factor(&[0.0, bad], 0.0, Shape::Relu)]),
                problem(1, &v, vec![factor(&[0.0, 1.0], bad, Shape::Relu)]),
            ];
            assert!(found.iter().all(|problem| matches!(problem, GateProblem::NotFinite { .. })), "{found:?}");
        }
        let error = GatedTerm::new(0, vec![1.0], vec![]).unwrap_err();
        assert_eq!(error.to_string(), "the gated term of layer 0 is no term: its layer must be at least 1");
        assert!(error.hint().is_some());
    }
}
