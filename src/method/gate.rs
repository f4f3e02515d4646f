//! Fitting the gate of a gated ablation, between activations at which it is to open and activations at which it is to stay
//! shut: [`radial`]. The sources of prompts hold its threshold, together and each by itself.
//!
//! Which layer serves is told by shrunken linear discriminants here. One source, such as one data set beside another, gives
//! its style away as much as its harm. So each source is centred on its own midpoint, the differences are averaged, and
//! what counts is how well that tells the prompts of a source apart that it was not fitted on.
//!
//! Where there are fewer samples than channels, everything linear is computed from the inner products of the samples, else
//! from the scatter of the channels, so that leaving some samples out costs little.

pub mod radial;

use std::collections::BTreeMap;

use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::edit::{Direction, DirectionError, Reading};
use crate::linalg::{CholeskyError, dot, solve_positive};
use crate::method::score::mean;

/// Activations of prompts of both classes that one hand wrote, `[prompts, d_model]` each, with a prompt at least.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// At which the gate is to open: those of pseudo-harmful prompts.
    pub open: ArrayView2<'a, f64>,
    /// At which it is to stay shut: those of harmful prompts.
    pub shut: ArrayView2<'a, f64>,
}

/// Why no gate can be fitted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GateError {
    /// No source, or one that lacks a class.
    #[error("a gate needs pseudo-harmful and harmful prompts of at least one source")]
    NoSource,
    /// Activations that do not vary, or are not finite.
    #[error("the activations do not vary, or are not finite")]
    Degenerate(#[from] CholeskyError),
    /// The classes have the same mean.
    #[error("the classes cannot be told apart")]
    Alike(#[from] DirectionError),
}

/// Share of the mean square of the samples below which the square of their difference is rounding noise.
const ROUNDING: f64 = 1e-20;

/// Parts into which each class of each source is cut for cross-validation.
const FOLDS: usize = 5;

/// The samples of all sources, one below the other, and their inner products.
struct Samples {
    /// `[n, d_model]`.
    rows: Array2<f64>,
    /// `[n, n]`.
    gram: Array2<f64>,
    /// Source and class of each, and its place among them.
    of: Vec<Sample>,
}

/// What a sample is.
#[derive(Debug, Clone, Copy)]
struct Sample {
    source: usize,
    open: bool,
    at: usize,
}

/// A discriminant as a sum of samples, told along itself: 0 is the mean over the sources of the mean of their shut samples,
/// 1 that of their open ones.
struct Scale {
    /// The factor of each sample.
    factors: Array1<f64>,
    shut: f64,
    way: f64,
}

impl Samples {
    fn new(sources: &[Source<'_>]) -> Result<Self, GateError> {
        let classes = || sources.iter().enumerate().flat_map(|(at, s)| [(at, true, s.open), (at, false, s.shut)]);
        if sources.is_empty() || classes().any(|(.., rows)| rows.nrows() == 0) {
            return Err(GateError::NoSource);
        }
        let of =
            classes().flat_map(|(source, open, rows)| (0..rows.nrows()).map(move |at| Sample { source, open, at }));
        let views: Vec<ArrayView2<'_, f64>> = classes().map(|(.., rows)| rows).collect();
        let rows = ndarray::concatenate(Axis(0), &views).expect("activations of one layer are of one width");
        Ok(Self { gram: rows.dot(&rows.t()), rows, of: of.collect() })
    }

    /// The shrunken linear discriminant (Fisher 1936, with the covariance shrunken towards a multiple of the identity as
    /// Ledoit and Wolf 2004 do) of the samples that `takes` picks: `((1 - a) S + a tr(S) / d I)^-1 m`, where `m` is the mean
    /// over the sources of their difference of means, open less shut, `S` the covariance within classes and sources, and
    /// `a`, above 0 and at most 1, the `shrinkage`. The system is solved in the space of the samples (Woodbury's identity).
    fn fit(&self, shrinkage: f64, takes: impl Fn(&Sample) -> bool) -> Result<Scale, GateError> {
        let chosen: Vec<usize> = (0..self.of.len()).filter(|at| takes(&self.of[*at])).collect();
        let n = chosen.len();
        let mut groups: BTreeMap<(usize, bool), Vec<usize>> = BTreeMap::new();
        for (at, sample) in chosen.iter().map(|at| self.of[*at]).enumerate() {
            groups.entry((sample.source, sample.open)).or_default().push(at);
        }
        let sources = groups.len() / 2;
        if sources == 0 || groups.keys().any(|(source, open)| !groups.contains_key(&(*source, !open))) {
            return Err(GateError::NoSource);
        }
        // X^T m is the difference of means
        let mut m = vec![0.0; n];
        for ((_, open), members) in &groups {
            let share = 1.0 / (sources * members.len()) as f64;
            members.iter().for_each(|at| m[*at] = if *open { share } else { -share });
        }
        let centre = |values: &mut [f64]| {
            for members in groups.values() {
                let mean = members.iter().map(|at| values[*at]).sum::<f64>() / members.len() as f64;
                members.iter().for_each(|at| values[*at] -= mean);
            }
        };
        let gram = |row: usize| chosen.iter().map(move |column| self.gram[[row, *column]]).collect::<Vec<f64>>();
        // of the residuals: rows centred, then columns
        let mut inner: Vec<Vec<f64>> = chosen.iter().map(|row| gram(*row)).collect();
        let mut target: Vec<f64> = inner.iter().map(|row| dot(row, &m)).collect();
        let length: f64 = inner.iter().enumerate().map(|(at, row)| row[at]).sum::<f64>() / n as f64;
        if dot(&m, &target) <= ROUNDING * length {
            return Err(DirectionError::Zero.into());
        }
        inner.iter_mut().for_each(|row| centre(row));
        for members in groups.values() {
            let mut mean = vec![0.0; n];
            members.iter().for_each(|at| mean.iter_mut().zip(&inner[*at]).for_each(|(sum, x)| *sum += x));
            let share = 1.0 / members.len() as f64;
            members.iter().for_each(|at| inner[*at].iter_mut().zip(&mean).for_each(|(x, sum)| *x -= share * sum));
        }
        centre(&mut target);
        let trace: f64 = inner.iter().enumerate().map(|(at, row)| row[at]).sum();
        let (ridge, share) = (shrinkage * trace / (n * self.rows.ncols()) as f64, (1.0 - shrinkage) / n as f64);
        if ridge.is_nan() || ridge <= 0.0 {
            return Err(CholeskyError { row: 0, pivot: ridge }.into());
        }
        let mut factors = m;
        if share > 0.0 {
            inner.iter_mut().enumerate().for_each(|(at, row)| row[at] += ridge / share);
            let mut taken = solve_positive(inner.concat(), target)?;
            centre(&mut taken);
            factors.iter_mut().zip(&taken).for_each(|(factor, taken)| *factor -= taken);
        }
        let mut whole = Array1::zeros(self.of.len());
        chosen.iter().zip(&factors).for_each(|(at, factor)| whole[*at] = *factor);
        let along = self.gram.dot(&whole);
        let end = |open: bool| {
            let ends = groups
                .iter()
                .filter(|((_, of), _)| *of == open)
                .map(|(_, members)| members.iter().map(|at| along[chosen[*at]]).sum::<f64>() / members.len() as f64);
            ends.sum::<f64>() / sources as f64
        };
        let shut = end(false);
        Ok(Scale { factors: whole, way: end(true) - shut, shut })
    }

    /// Where every sample lies.
    fn places(&self, scale: &Scale) -> Vec<f64> {
        self.gram.dot(&scale.factors).iter().map(|x| (x - scale.shut) / scale.way).collect()
    }

    /// The values of one class of a source.
    fn of_class(&self, values: &[f64], source: usize, open: bool) -> Vec<f64> {
        let here = self.of.iter().zip(values).filter(|(of, _)| of.source == source && of.open == open);
        here.map(|(_, value)| *value).collect()
    }

    /// Probability that an open sample of a source lies further along the discriminant of all other sources than a shut one.
    fn auc_without(&self, source: usize, shrinkage: f64) -> Result<f64, GateError> {
        let places = self.places(&self.fit(shrinkage, |sample| sample.source != source)?);
        Ok(auc(&self.of_class(&places, source, true), &self.of_class(&places, source, false)))
    }

    /// Where every sample lies along a discriminant that was fitted without its part of the samples; along the one that was
    /// fitted with all, where a class is too small to be cut.
    fn crossed(&self, shrinkage: f64) -> Result<Vec<f64>, GateError> {
        let mut places = vec![0.0; self.of.len()];
        for fold in 0..FOLDS {
            let scale = match self.fit(shrinkage, |sample| sample.at % FOLDS != fold) {
                Err(GateError::NoSource) => self.fit(shrinkage, |_| true),
                scale => scale,
            }?;
            let all = self.places(&scale);
            let here = self.of.iter().enumerate().filter(|(_, sample)| sample.at % FOLDS == fold);
            here.for_each(|(at, _)| places[at] = all[at]);
        }
        Ok(places)
    }
}

/// A gate with its threshold and its ramp, as [`crate::edit::Factor::gate`] takes them.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// `h`, what the gate reads off an activation.
    pub reading: Reading,
    /// `c`: the gate is shut where `h` is at most this.
    pub threshold: f64,
    /// `s`, above 0: the gate is wide open from `c + s` on.
    pub ramp: f64,
    /// How the gate does, source by source.
    pub held_out: Vec<HeldOut>,
}

/// How a gate does on samples of one source that it was not fitted on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeldOut {
    /// Share of the open samples for which it opens, each where the gate is fitted without its prompt.
    pub open: f64,
    /// Share of the shut samples for which it opens, by the same.
    pub shut: f64,
    /// Probability that an open sample lies further along a linear discriminant that was fitted on the other sources than a
    /// shut one does (area under the ROC curve); `None` where there are no others.
    pub auc: Option<f64>,
}

/// A linear function of activations, `w.x + c`, that tells two classes apart: 0 at the mean of the shut samples, 1 at that
/// of the open ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Discriminant {
    /// `w`, `[d_model]`.
    pub weights: Vec<f64>,
    /// `c`.
    pub offset: f64,
}

impl Discriminant {
    /// Its value for `x`, `[d_model]`.
    pub fn of(&self, x: &[f64]) -> f64 {
        dot(&self.weights, x) + self.offset
    }
}

/// The shrunken linear discriminant (Fisher 1936; Ledoit and Wolf 2004) of the `open` against the `shut` samples,
/// `[samples, d_model]` each, with a `shrinkage` above 0 and at most 1; with 1 it is the difference of the means.
///
/// # Errors
/// If a class has no sample, or if the activations do not vary or do not differ.
pub fn discriminant(
    open: ArrayView2<'_, f64>,
    shut: ArrayView2<'_, f64>,
    shrinkage: f64,
) -> Result<Discriminant, GateError> {
    let samples = Samples::new(&[Source { open, shut }])?;
    let scale = samples.fit(shrinkage, |_| true)?;
    let weights = samples.rows.t().dot(&scale.factors) / scale.way;
    Ok(Discriminant { weights: weights.to_vec(), offset: -scale.shut / scale.way })
}

/// A gate that is wide open at the `open` samples and shut at the `shut` ones, `[samples, d_model]` each, as far as they can
/// be told apart along one axis: it opens between a value that one of a thousand shut samples lies above and one that one of
/// a hundred open samples lies below. The discriminant is fitted on 512 of each, evenly picked; [`Gate::held_out`] tells of
/// all.
///
/// # Errors
/// As [`generalises`].
pub fn separate(open: ArrayView2<'_, f64>, shut: ArrayView2<'_, f64>, shrinkage: f64) -> Result<Gate, GateError> {
    let picked = |rows: ArrayView2<'_, f64>| {
        let step = rows.nrows().div_ceil(MOST_SAMPLES).max(1);
        rows.select(Axis(0), &(0..rows.nrows()).step_by(step).collect::<Vec<_>>())
    };
    let (some_open, some_shut) = (picked(open), picked(shut));
    let samples = Samples::new(&[Source { open: some_open.view(), shut: some_shut.view() }])?;
    let scale = samples.fit(shrinkage, |_| true)?;
    let direction = Direction::new(samples.rows.t().dot(&scale.factors).to_vec())?;
    let unit = Array1::from(direction.unit().to_vec());
    let along = |rows: ArrayView2<'_, f64>| rows.dot(&unit).to_vec();
    let (from, to) = (above_most(along(shut), 1e-3), -above_most(along(open).iter().map(|x| -x).collect(), 1e-2));
    // where they overlap, the gate opens for the open samples and with them for some others
    let way = match to > from {
        true => to - from,
        false => LEAST_RAMP * scale.way / samples.rows.t().dot(&scale.factors).dot(&unit),
    };
    let (threshold, ramp) = (to - 0.75 * way, 0.5 * way);
    let opens =
        |rows: ArrayView2<'_, f64>| along(rows).iter().filter(|x| **x > threshold).count() as f64 / rows.nrows() as f64;
    let held_out = vec![HeldOut { open: opens(open), shut: opens(shut), auc: None }];
    Ok(Gate { reading: Reading::Linear(direction.unit().to_vec()), threshold, ramp, held_out })
}

/// Samples of a class that a discriminant is fitted on by [`separate`], at most.
const MOST_SAMPLES: usize = 512;

/// The value of one of the samples that at most the share `open` of them lies above.
fn above_most(mut values: Vec<f64>, open: f64) -> f64 {
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    let above = (open.clamp(0.0, 1.0) * values.len() as f64) as usize;
    values[above.min(values.len() - 1)]
}

/// Probability that a value of the first lies above one of the second; equal values count by half (the area under the ROC
/// curve). No number where one of them is empty.
pub fn auc(above: &[f64], below: &[f64]) -> f64 {
    let score = |(a, b): (&f64, &f64)| match a.total_cmp(b) {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Less => 0.0,
    };
    let pairs = above.iter().flat_map(|a| below.iter().map(move |b| score((a, b))));
    pairs.sum::<f64>() / (above.len() * below.len()) as f64
}

/// Smallest ramp, as a share of the way between the classes: a steeper one would answer to rounding.
const LEAST_RAMP: f64 = 0.1;

/// How well linear discriminants of a layer tell open from shut samples that they were not fitted on.
#[derive(Debug, Clone, PartialEq)]
pub struct Generalises {
    /// See [`HeldOut::auc`].
    pub aucs: Option<Vec<f64>>,
    /// The mean of those over the sources; where there is one source, the same by cross-validation within it.
    pub mean: f64,
}

/// Discriminants that leave one source out each, from the scatter of the channels.
struct Scatter<'a> {
    sources: Vec<Source<'a>>,
    /// Mean of the open and of the shut samples of each source, `[d_model]`.
    means: Vec<[Array1<f64>; 2]>,
    /// Sum over all samples of the products of what they differ by from the mean of their class and source,
    /// `[d_model, d_model]`.
    within: Array2<f64>,
    /// Mean square of a sample.
    length: f64,
}

impl<'a> Scatter<'a> {
    fn new(sources: &[Source<'a>]) -> Result<Self, GateError> {
        let mean = |rows: ArrayView2<'_, f64>| rows.mean_axis(Axis(0)).ok_or(GateError::NoSource);
        let means: Vec<[Array1<f64>; 2]> =
            sources.iter().map(|of| Ok([mean(of.open)?, mean(of.shut)?])).collect::<Result<_, GateError>>()?;
        let d = means.first().ok_or(GateError::NoSource)?[0].len();
        let mut all = Self { sources: sources.to_vec(), means, within: Array2::zeros((d, d)), length: 0.0 };
        for source in 0..sources.len() {
            all.within = &all.within + &all.of_source(source);
        }
        let square = |rows: ArrayView2<'_, f64>| rows.iter().map(|x| x * x).sum::<f64>();
        let squares: f64 = sources.iter().map(|of| square(of.open) + square(of.shut)).sum();
        Ok(Self { length: squares / samples(sources) as f64, ..all })
    }

    /// What one source adds to the scatter.
    fn of_source(&self, source: usize) -> Array2<f64> {
        let of = |rows: ArrayView2<'_, f64>, mean: &Array1<f64>| {
            let off = &rows - mean;
            off.t().dot(&off)
        };
        let [open, shut] = &self.means[source];
        of(self.sources[source].open, open) + of(self.sources[source].shut, shut)
    }

    /// As [`Samples::auc_without`].
    fn auc_without(&self, source: usize, shrinkage: f64) -> Result<f64, GateError> {
        let left_out = self.sources[source];
        let n = (samples(&self.sources) - left_out.open.nrows() - left_out.shut.nrows()) as f64;
        let others = self.means.iter().enumerate().filter(|(at, _)| *at != source);
        let between = others.fold(Array1::zeros(self.within.nrows()), |sum, (_, [open, shut])| sum + open - shut);
        let between = between / (self.sources.len() - 1) as f64;
        if between.dot(&between) <= ROUNDING * self.length {
            return Err(DirectionError::Zero.into());
        }
        let mut covariance = (&self.within - &self.of_source(source)) / n;
        let ridge = shrinkage * covariance.diag().sum() / covariance.nrows() as f64;
        if ridge.is_nan() || ridge <= 0.0 {
            return Err(CholeskyError { row: 0, pivot: ridge }.into());
        }
        covariance *= 1.0 - shrinkage;
        covariance.diag_mut().iter_mut().for_each(|v| *v += ridge);
        let entries = covariance.iter().copied().collect();
        let discriminant = Array1::from(solve_positive(entries, between.to_vec())?);
        let along = |rows: ArrayView2<'_, f64>| rows.dot(&discriminant).to_vec();
        Ok(auc(&along(left_out.open), &along(left_out.shut)))
    }
}

/// How many samples there are in all.
fn samples(sources: &[Source<'_>]) -> usize {
    sources.iter().map(|of| of.open.nrows() + of.shut.nrows()).sum()
}

/// Tells how well discriminants with a `shrinkage` above 0 and at most 1 generalise.
///
/// # Errors
/// If there is no source, or its activations do not vary or do not differ.
pub fn generalises(sources: &[Source<'_>], shrinkage: f64) -> Result<Generalises, GateError> {
    if let [only] = sources {
        let samples = Samples::new(&[*only])?;
        let places = samples.crossed(shrinkage)?;
        let [open, shut] = [true, false].map(|open| samples.of_class(&places, 0, open));
        return Ok(Generalises { aucs: None, mean: auc(&open, &shut) });
    }
    let aucs = match sources.first() {
        Some(first) if first.open.ncols() < samples(sources) => by_scatter(sources, shrinkage)?,
        _ => by_products(sources, shrinkage)?,
    };
    Ok(Generalises { mean: mean(&aucs), aucs: Some(aucs) })
}

/// See [`HeldOut::auc`], for each source, from the scatter of the channels.
fn by_scatter(sources: &[Source<'_>], shrinkage: f64) -> Result<Vec<f64>, GateError> {
    let scatter = Scatter::new(sources)?;
    (0..sources.len()).map(|source| scatter.auc_without(source, shrinkage)).collect()
}

/// The same from the inner products of the samples.
fn by_products(sources: &[Source<'_>], shrinkage: f64) -> Result<Vec<f64>, GateError> {
    let samples = Samples::new(sources)?;
    (0..sources.len()).map(|source| samples.auc_without(source, shrinkage)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::cosine;

    /// Two classes that differ along channel 0, of a source whose style is a large offset along the last channel that
    /// both classes share by half.
    fn source(prompts: usize, d: usize, seed: usize, style: f64) -> (Array2<f64>, Array2<f64>) {
        let noise =
            |i: usize, j: usize, class: usize| ((i * 37 + j * 101 + class * 53 + seed * 7919) as f64 * 1.3).sin();
        let class = |class: usize| {
            Array2::from_shape_fn((prompts, d), |(i, j)| {
                let told = if j == 0 { 2.0 * class as f64 } else { 0.0 };
                let style = if j == d - 1 { style * class as f64 } else { 0.0 };
                noise(i, j, class) * if j == 1 { 5.0 } else { 1.0 } + told + style
            })
        };
        (class(1), class(0))
    }

    fn views<'a>(all: &'a [(Array2<f64>, Array2<f64>)]) -> Vec<Source<'a>> {
        all.iter().map(|(p, h)| Source { open: p.view(), shut: h.view() }).collect()
    }

    /// The definition, with the covariance of the channels.
    fn plainly(sources: &[Source<'_>], shrinkage: f64) -> Vec<f64> {
        let d = sources[0].shut.ncols();
        let (mut mean, mut scatter, mut n) = (Array1::<f64>::zeros(d), Array2::<f64>::zeros((d, d)), 0.0);
        for source in sources {
            for (class, sign) in [(source.open, 1.0), (source.shut, -1.0)] {
                let centre = class.mean_axis(Axis(0)).unwrap();
                mean = mean + &centre * (sign / sources.len() as f64);
                for row in class.rows() {
                    let x = &row - &centre;
                    scatter = scatter + x.view().insert_axis(Axis(1)).dot(&x.view().insert_axis(Axis(0)));
                    n += 1.0;
                }
            }
        }
        let covariance = scatter / n;
        let scale = covariance.diag().sum() / d as f64;
        let whole = covariance * (1.0 - shrinkage) + Array2::<f64>::eye(d) * (shrinkage * scale);
        solve_positive(whole.into_iter().collect(), mean.to_vec()).unwrap()
    }

    /// The discriminant of all samples, of length 1.
    fn discriminant(sources: &[Source<'_>], shrinkage: f64) -> Vec<f64> {
        let samples = Samples::new(sources).unwrap();
        let vector = samples.rows.t().dot(&samples.fit(shrinkage, |_| true).unwrap().factors);
        Direction::new(vector.to_vec()).unwrap().unit().to_vec()
    }

    /// How far a source that was left out is told apart is the same from the scatter of the channels and from the inner
    /// products of the samples.
    #[test]
    fn both_ways_leave_sources_out_alike() {
        for (prompts, d) in [(9, 40), (40, 9), (20, 20)] {
            let all = [(1, 3.0), (2, -3.0), (3, 0.5)].map(|(seed, style)| source(prompts + seed, d, seed, style));
            for shrinkage in [0.05, 0.4, 1.0] {
                let [a, b] = [by_scatter, by_products].map(|way| way(&views(&all), shrinkage).unwrap());
                assert_eq!(a.len(), 3);
                assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12), "{prompts} {d} {shrinkage}: {a:?} {b:?}");
                assert!(a.iter().any(|auc| *auc < 1.0), "{a:?}");
            }
        }
        let empty = Array2::<f64>::zeros((0, 4));
        let some = source(5, 4, 1, 0.0).0;
        let lacks = [(some.clone(), some.clone()), (some, empty)];
        assert_eq!(by_scatter(&views(&lacks), 0.1), Err(GateError::NoSource));
    }

    #[test]
    fn the_discriminant_is_its_definition_with_more_and_with_fewer_samples_than_channels() {
        for (prompts, d) in [(5, 60), (40, 12), (30, 60), (31, 60)] {
            // a common offset, as streams have one, changes nothing
            let all =
                [source(prompts, d, 1, 3.0), source(prompts + 2, d, 2, -3.0)].map(|(p, h)| (p + 100.0, h + 100.0));
            for shrinkage in [0.05, 0.3, 0.9, 1.0] {
                let wanted = plainly(&views(&all), shrinkage);
                let apart = 1.0 - cosine(&discriminant(&views(&all), shrinkage), &wanted);
                assert!(apart < 1e-9, "{prompts} {d} {shrinkage}: {apart:e}");
            }
        }
    }

    /// What only one source says is style; two that say the opposite cancel it.
    #[test]
    fn style_that_sources_do_not_share_is_not_learnt() {
        let all = [source(40, 12, 1, 6.0), source(40, 12, 2, -6.0)];
        let one = discriminant(&views(&all)[..1], 0.1);
        let both = discriminant(&views(&all), 0.1);
        assert!(one[11].abs() > 0.8, "{one:?}");
        assert!(both[11].abs() < 0.2 && both[0] > 0.8, "{both:?}");
        // what is fitted on one of them knows nothing of the other
        assert!(generalises(&views(&all), 0.1).unwrap().mean < 0.2);
        let alike = [source(40, 12, 1, 1.0), source(40, 12, 2, 1.0)];
        let found = generalises(&views(&alike), 0.1).unwrap();
        assert!(found.mean > 0.9 && found.aucs.unwrap().len() == 2);
        let one = generalises(&views(&alike)[..1], 0.1).unwrap();
        assert!(one.mean > 0.9 && one.aucs.is_none());
    }

    /// What cross-validation tells is what gates tell that are fitted without a part, by the definition.
    #[test]
    fn cross_validation_is_what_fitting_without_a_part_gives() {
        let all = [source(20, 9, 1, 0.5), source(15, 9, 2, -0.5)];
        let samples = Samples::new(&views(&all)).unwrap();
        let crossed = samples.crossed(0.2).unwrap();
        for fold in 0..FOLDS {
            let keep = |rows: &Array2<f64>| {
                let indices: Vec<usize> = (0..rows.nrows()).filter(|at| at % FOLDS != fold).collect();
                rows.select(Axis(0), &indices)
            };
            let rest: Vec<_> = all.iter().map(|(p, h)| (keep(p), keep(h))).collect();
            let b = Array1::from(plainly(&views(&rest), 0.2));
            let end = |rows: &Array2<f64>| rows.mean_axis(Axis(0)).unwrap().dot(&b) / 2.0;
            let open: f64 = rest.iter().map(|both| end(&both.0)).sum();
            let shut: f64 = rest.iter().map(|both| end(&both.1)).sum();
            for (at, sample) in samples.of.iter().enumerate().filter(|(_, sample)| sample.at % FOLDS == fold) {
                let place = (samples.rows.row(at).dot(&b) - shut) / (open - shut);
                assert!((crossed[at] - place).abs() < 1e-9, "{sample:?}");
            }
        }
    }

    #[test]
    fn what_can_be_separated_is_shut_and_wide_open() {
        let (open, shut) = source(700, 12, 1, 40.0);
        let Gate { reading, threshold: from, ramp, held_out } = separate(open.view(), shut.view(), 0.1).unwrap();
        let opens = |row: ndarray::ArrayView1<'_, f64>| (reading.of(&row.to_vec()) - from) / ramp;
        let wide = open.rows().into_iter().filter(|row| opens(*row) >= 1.0).count();
        assert!(wide as f64 >= 0.98 * 700.0, "{wide}");
        assert!(shut.rows().into_iter().all(|row| opens(row) <= 0.0));
        assert!(held_out[0].open >= 0.98 && held_out[0].shut == 0.0);
        // what overlaps is open where it should be
        let open = source(300, 12, 1, 0.0).0;
        let shut = &open * 0.99;
        let Gate { reading, threshold: from, ramp, held_out } = separate(open.view(), shut.view(), 0.1).unwrap();
        let opens = |row: ndarray::ArrayView1<'_, f64>| (reading.of(&row.to_vec()) - from) / ramp;
        assert!(held_out[0].open >= 0.98 && held_out[0].shut > 0.0);
        assert!(ramp > 0.0 && open.rows().into_iter().filter(|row| opens(*row) >= 1.0).count() >= 294);
    }

    #[test]
    fn auc_is_the_probability_to_lie_above() {
        assert_eq!(auc(&[2.0, 3.0], &[0.0, 1.0]), 1.0);
        assert_eq!(auc(&[0.0], &[1.0, 2.0]), 0.0);
        assert_eq!(auc(&[1.0, 3.0], &[1.0, 2.0]), 0.625);
    }

    #[test]
    fn what_cannot_be_fitted_is_told() {
        assert_eq!(generalises(&[], 0.3), Err(GateError::NoSource));
        let empty = Array2::<f64>::zeros((0, 4));
        let some = source(5, 4, 1, 0.0).0;
        let lacks = [Source { open: some.view(), shut: empty.view() }];
        assert_eq!(generalises(&lacks, 0.1), Err(GateError::NoSource));
        let same = [Source { open: some.view(), shut: some.view() }];
        assert!(matches!(generalises(&same, 0.3), Err(GateError::Alike(_))));
        let still = Array2::ones((5, 4));
        let other = Array2::zeros((5, 4));
        let still = [Source { open: still.view(), shut: other.view() }];
        assert!(matches!(generalises(&still, 0.3), Err(GateError::Degenerate(_))));
        let broken = Array2::from_elem((5, 4), f64::NAN);
        let broken = [Source { open: broken.view(), shut: some.view() }];
        assert!(generalises(&broken, 0.3).is_err());
    }
}
