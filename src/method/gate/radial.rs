//! The gate itself: a least-squares kernel machine with radial basis functions, which opens near activations at which it is
//! to open and stays shut far from all that it knows.
//!
//! A linear discriminant also tells what it has never seen, by how it is written or by chance. This one says of what is
//! unlike everything known that it is unknown, and the model stays as it is there.

use std::collections::BTreeMap;

use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::{Gate, GateError, HeldOut, ROUNDING, Source, above_most};
use crate::edit::{DirectionError, RadialBasis, Reading};
use crate::linalg::{CholeskyError, cholesky, inverse_of_lower, inverse_of_positive, solve_positive};

/// How the machine is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RadialRules {
    /// Dimensions that activations are projected to, at most: those along which the samples of a class vary most.
    pub dims: usize,
    /// Shrinkage of their covariance, above 0 and at most 1.
    pub shrinkage: f64,
    /// How many times the median squared distance of two samples is divided by to give the square of the width.
    pub narrowness: f64,
    /// Ridge of a sample that weighs as much as the mean one; it grows where the classes cannot be told apart so well
    /// ([`fit`]).
    pub ridge: f64,
}

impl Default for RadialRules {
    fn default() -> Self {
        Self { dims: 384, shrinkage: 0.1, narrowness: 2.0, ridge: 0.1 }
    }
}

/// Smallest threshold: far from all that is known the function is 0, and the gate shut.
const LEAST_THRESHOLD: f64 = 0.25;

/// Smallest ramp. The function is a sum of thousands of terms that cancel, which runtimes add up in different orders; what
/// they differ by in single precision shows as many times as large behind a steep ramp.
const LEAST_RAMP: f64 = 0.25;

/// Largest mean size of the weights. It is that of the residuals in units of the ridge, so where it is larger the ridge is
/// smaller than what it has to smooth away, and large weights cancel one another.
const LARGEST_WEIGHT: f64 = 1.0;

/// How many times as large the ridge is in the next try.
const NEXT_RIDGE: f64 = 2.0;

/// How many times as many shut samples of one source as of the mean source the gate may open for. One source of few prompts
/// would close it otherwise.
const WORST_SOURCE: f64 = 5.0;

/// A machine and how it does on samples that it was not fitted on, before a threshold is set.
#[derive(Debug, Clone, PartialEq)]
pub struct RadialFit {
    /// The function: about 1 near open samples, about -1 near shut ones, about 0 far from both.
    pub basis: RadialBasis,
    /// Its values at the open and shut samples of each source, where it is fitted without the sample's prompt.
    crossed: Vec<(Vec<f64>, Vec<f64>)>,
}

/// Fits the function `f(x) = sum_j a_j k(x, x_j)` with `k(x, y) = exp(-g |W (x - y)|^2 / m)` to 1 at the open and -1 at the
/// shut samples of all sources, in the least squares: `(K + D) a = y`, where `D` is diagonal and lighter for samples of
/// small classes, so that every class of every source weighs the same (Suykens and Vandewalle 1999, *Least squares support
/// vector machine classifiers*). The ridge is doubled until the mean of `|a_j|` is at most 1. `W`, `[k, d_model]`, whitens the directions along which samples of one class vary most;
/// `m` is the median of the squared distances after it, and `g` the narrowness.
///
/// `prompts` numbers the prompt that each sample comes from, in the order of the sources, open samples before shut ones:
/// samples of one prompt, such as the same request in other words, are left out together. What the function is without them
/// follows from the inverse of `K + D` (Cawley and Talbot 2004, *Fast exact leave-one-out cross-validation of sparse
/// least-squares support vector machines*; An, Liu and Venkatesh 2007 for several at once).
///
/// # Errors
/// If there is no source, or its activations do not vary.
///
/// # Panics
/// If `prompts` has not a number for each sample.
pub fn fit(sources: &[Source<'_>], prompts: &[usize], rules: &RadialRules) -> Result<RadialFit, GateError> {
    let parts: Vec<(bool, ArrayView2<'_, f64>)> =
        sources.iter().flat_map(|s| [(true, s.open), (false, s.shut)]).collect();
    if sources.is_empty() || parts.iter().any(|(_, rows)| rows.nrows() == 0) {
        return Err(GateError::NoSource);
    }
    let views: Vec<_> = parts.iter().map(|(_, rows)| *rows).collect();
    let rows = ndarray::concatenate(Axis(0), &views).expect("activations of one layer are of one width");
    let n = rows.nrows();
    assert_eq!(prompts.len(), n, "each sample has a prompt");
    let whitening = Whitening::of(&views, rules)?;
    let placed = (&rows - &whitening.center).dot(&whitening.projection.t());
    let squared = squared_distances(&placed);
    let median = median_apart(&squared);
    if median.is_nan() || median <= 0.0 {
        return Err(GateError::Alike(DirectionError::Zero));
    }
    let scale = rules.narrowness / median;
    let kernel = squared.mapv_into(|d| (-scale * d).exp());
    let targets: Array1<f64> =
        parts.iter().flat_map(|(open, part)| vec![if *open { 1.0 } else { -1.0 }; part.nrows()]).collect();
    // of the mean over the classes of the sources a sample weighs 1 / size; the mean sample weighs 1
    let lightness: Vec<f64> =
        parts.iter().flat_map(|(_, part)| vec![(parts.len() * part.nrows()) as f64 / n as f64; part.nrows()]).collect();
    let mut ridge = rules.ridge;
    let (inverse, weights) = loop {
        let mut system = kernel.clone();
        system.diag_mut().iter_mut().zip(&lightness).for_each(|(entry, light)| *entry += ridge * light);
        let inverse = inverse_of_positive(system)?;
        let weights = inverse.dot(&targets);
        let size = weights.iter().map(|a| a.abs()).sum::<f64>();
        if !size.is_finite() {
            return Err(CholeskyError { row: 0, pivot: size }.into());
        }
        if size <= LARGEST_WEIGHT * n as f64 {
            break (inverse, weights);
        }
        ridge *= NEXT_RIDGE;
    };
    let values = without_prompt(&inverse, &weights, &targets, prompts)?;
    let mut crossed = Vec::new();
    let mut rest = values.as_slice();
    for source in sources {
        let (open, others) = rest.split_at(source.open.nrows());
        let (shut, others) = others.split_at(source.shut.nrows());
        crossed.push((open.to_vec(), shut.to_vec()));
        rest = others;
    }
    let root = scale.sqrt();
    let projection = whitening.projection * root;
    let basis = RadialBasis {
        shift: (-projection.dot(&whitening.center)).to_vec(),
        projection: projection.iter().copied().collect(),
        centers: placed.iter().map(|z| root * z).collect(),
        weights: weights.to_vec(),
    };
    Ok(RadialFit { basis, crossed })
}

/// `|z_i - z_j|^2` of the rows of `placed`, `[n, n]`.
fn squared_distances(placed: &Array2<f64>) -> Array2<f64> {
    let lengths: Array1<f64> = placed.rows().into_iter().map(|row| row.dot(&row)).collect();
    let mut squared = placed.dot(&placed.t());
    for ((i, j), value) in squared.indexed_iter_mut() {
        *value = (lengths[i] + lengths[j] - 2.0 * *value).max(0.0);
    }
    squared
}

/// The median of what lies below the diagonal.
fn median_apart(squared: &Array2<f64>) -> f64 {
    let mut apart: Vec<f64> = squared.indexed_iter().filter(|((i, j), _)| i > j).map(|(_, d)| *d).collect();
    let middle = apart.len() / 2;
    *apart.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// The values of the function at every sample, fitted without all samples of its prompt: `y_B - (C_BB)^-1 a_B`, where `C` is
/// the inverse of the system, `a` its solution, `y` the targets and `B` the samples of the prompt.
fn without_prompt(
    inverse: &Array2<f64>,
    weights: &Array1<f64>,
    targets: &Array1<f64>,
    prompts: &[usize],
) -> Result<Vec<f64>, GateError> {
    let mut of_prompt: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    prompts.iter().enumerate().for_each(|(sample, prompt)| of_prompt.entry(*prompt).or_default().push(sample));
    let mut values = vec![0.0; prompts.len()];
    for samples in of_prompt.values() {
        let block = samples.iter().flat_map(|i| samples.iter().map(move |j| inverse[[*i, *j]])).collect();
        let errors = solve_positive(block, samples.iter().map(|i| weights[*i]).collect())?;
        samples.iter().zip(errors).for_each(|(i, error)| values[*i] = targets[*i] - error);
    }
    Ok(values)
}

/// What makes distances comparable along all directions.
struct Whitening {
    /// Mean of the means of the classes of the sources, `[d_model]`.
    center: Array1<f64>,
    /// `W`, `[k, d_model]`: `W S W^T` is the identity for the shrunken covariance `S` within classes and sources.
    projection: Array2<f64>,
}

/// Passes of the subspace iteration. The subspace need not be exact: directions of much the same variance serve alike.
const PASSES: usize = 16;

impl Whitening {
    fn of(parts: &[ArrayView2<'_, f64>], rules: &RadialRules) -> Result<Self, GateError> {
        let d = parts[0].ncols();
        let (mut center, mut covariance, mut n) = (Array1::<f64>::zeros(d), Array2::<f64>::zeros((d, d)), 0.0);
        for part in parts {
            let mean = part.mean_axis(Axis(0)).expect("a class has a sample");
            let residuals = part - &mean;
            covariance += &residuals.t().dot(&residuals);
            center += &(mean / parts.len() as f64);
            n += part.nrows() as f64;
        }
        covariance /= n;
        let variance = covariance.diag().sum() / d as f64;
        if !variance.is_finite() || variance <= ROUNDING * center.dot(&center) / d as f64 {
            return Err(CholeskyError { row: 0, pivot: variance }.into());
        }
        covariance *= 1.0 - rules.shrinkage;
        covariance.diag_mut().iter_mut().for_each(|v| *v += rules.shrinkage * variance);
        let k = rules.dims.min(d);
        let mut basis = match k == d {
            true => Array2::eye(d),
            // columns without a pattern, the same in every run
            false => {
                Array2::from_shape_fn((d, k), |(i, j)| ((i * i + 7 * i * j + 3 * j * j + i + 11) as f64 * 0.618).sin())
            }
        };
        for _ in 0..if k == d { 0 } else { PASSES } {
            basis = orthonormal(covariance.dot(&basis))?;
        }
        let within = basis.t().dot(&covariance).dot(&basis);
        let projection = inverse_of_lower(&cholesky(within)?).dot(&basis.t());
        Ok(Self { center, projection })
    }
}

/// Orthonormal columns that span what the columns of `a` do: `A L^-T` with `A^T A = L L^T`, twice, since once leaves what
/// rounding does to columns that are nearly alike.
fn orthonormal(mut a: Array2<f64>) -> Result<Array2<f64>, GateError> {
    let k = a.ncols();
    for mut column in a.columns_mut() {
        let length = column.dot(&column).sqrt();
        column /= length;
    }
    for _ in 0..2 {
        let mut gram = a.t().dot(&a);
        (0..k).for_each(|i| gram[[i, i]] += f64::EPSILON * k as f64);
        a = a.dot(&inverse_of_lower(&cholesky(gram)?).t());
    }
    Ok(a)
}

impl RadialFit {
    /// The gate that opens for at most the share `open` of the shut samples, in the mean over the sources, and of no source
    /// for more than five times that share, by leaving prompts out. The threshold is at least a quarter, so that the gate is
    /// shut far from all that it knows. It is wide open half of the way from there to the median of the open samples, and a
    /// quarter further on at least. `aucs` are told in [`HeldOut::auc`].
    pub fn gate(&self, open: f64, aucs: Option<&[f64]>) -> Gate {
        let asked = self.crossed.iter().map(|(_, shut)| above_most(shut.clone(), WORST_SOURCE * open));
        let threshold = asked.fold(LEAST_THRESHOLD.max(self.mean_threshold(open)), f64::max);
        let opens = |values: &[f64]| values.iter().filter(|v| **v > threshold).count() as f64 / values.len() as f64;
        let of = |(source, (open, shut)): (usize, &(Vec<f64>, Vec<f64>))| HeldOut {
            open: opens(open),
            shut: opens(shut),
            auc: aucs.map(|aucs| aucs[source]),
        };
        let all: Vec<f64> = self.crossed.iter().flat_map(|(open, _)| open).copied().collect();
        Gate {
            reading: Reading::Radial(self.basis.clone()),
            threshold,
            ramp: ((above_most(all, 0.5) - threshold) / 2.0).max(LEAST_RAMP),
            held_out: self.crossed.iter().enumerate().map(of).collect(),
        }
    }

    /// The value of one of the shut samples above which the share `open` of them lies at most, in the mean over the sources.
    fn mean_threshold(&self, open: f64) -> f64 {
        let weight = |shut: &[f64]| 1.0 / (self.crossed.len() * shut.len()) as f64;
        let mut values: Vec<(f64, f64)> =
            self.crossed.iter().flat_map(|(_, shut)| shut.iter().map(|value| (*value, weight(shut)))).collect();
        values.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut above = 0.0;
        let stop = values.iter().find(|(_, weight)| {
            above += weight;
            // sums of shares are rounded
            above > open + 1e-9
        });
        stop.or(values.last()).map_or(f64::INFINITY, |(value, _)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two classes that differ along channel 0, around `middle` on channel 1.
    fn source(prompts: usize, d: usize, seed: usize, middle: f64) -> (Array2<f64>, Array2<f64>) {
        let noise = |i: usize, j: usize, class: usize| {
            ((i * i * 37 + j * j * 101 + i * j * 29 + class * 53 + seed * 7919) as f64 * 1.3).sin()
        };
        let class = |class: usize| {
            Array2::from_shape_fn((prompts + class, d), |(i, j)| {
                noise(i, j, class) + if j == 0 { 3.0 * class as f64 } else { 0.0 } + if j == 1 { middle } else { 0.0 }
            })
        };
        (class(1), class(0))
    }

    fn views<'a>(all: &'a [(Array2<f64>, Array2<f64>)]) -> Vec<Source<'a>> {
        all.iter().map(|(open, shut)| Source { open: open.view(), shut: shut.view() }).collect()
    }

    /// Each sample of the second source is the prompt of the same place in the first one.
    fn shared(all: &[(Array2<f64>, Array2<f64>)]) -> Vec<usize> {
        let part = |class: usize, n: usize| (0..n).map(move |at| 2 * at + class);
        all.iter().flat_map(|(open, shut)| part(0, open.nrows()).chain(part(1, shut.nrows()))).collect()
    }

    /// The system, its targets, and the places of the samples, from the definition.
    fn plainly(all: &[(Array2<f64>, Array2<f64>)], fit: &RadialFit, rules: &RadialRules) -> (Array2<f64>, Vec<f64>) {
        let rows: Vec<Vec<f64>> =
            all.iter().flat_map(|(a, b)| a.rows().into_iter().chain(b.rows()).map(|row| row.to_vec())).collect();
        let n = rows.len();
        let placed: Vec<Vec<f64>> = rows.iter().map(|row| fit.basis.project(row)).collect();
        let sizes: Vec<usize> = all
            .iter()
            .flat_map(|(a, b)| [a, b].into_iter().flat_map(|part| vec![part.nrows(); part.nrows()]))
            .collect();
        let targets =
            all.iter().flat_map(|(a, b)| [vec![1.0; a.nrows()], vec![-1.0; b.nrows()]].concat()).collect::<Vec<f64>>();
        let system = Array2::from_shape_fn((n, n), |(i, j)| {
            let squared: f64 = placed[i].iter().zip(&placed[j]).map(|(a, b)| (a - b).powi(2)).sum();
            let ridge = rules.ridge * (2 * all.len() * sizes[i]) as f64 / n as f64;
            (-squared).exp() + if i == j { ridge } else { 0.0 }
        });
        (system, targets)
    }

    #[test]
    fn the_function_and_what_it_is_without_a_prompt_are_their_definitions() {
        for (d, dims) in [(9, 9), (12, 5)] {
            let all = [source(14, d, 1, 0.0), source(11, d, 2, 6.0)];
            let rules = RadialRules { dims, ..RadialRules::default() };
            let prompts = shared(&all);
            let found = fit(&views(&all), &prompts, &rules).unwrap();
            let (system, targets) = plainly(&all, &found, &rules);
            let n = targets.len();
            let solved = |keep: &[usize]| {
                let part = keep.iter().flat_map(|i| keep.iter().map(|j| system[[*i, *j]])).collect();
                solve_positive(part, keep.iter().map(|i| targets[*i]).collect()).unwrap()
            };
            let weights = solved(&(0..n).collect::<Vec<_>>());
            assert!(weights.iter().zip(&found.basis.weights).all(|(a, b)| (a - b).abs() < 1e-9));
            let crossed: Vec<f64> = found.crossed.iter().flat_map(|(a, b)| a.iter().chain(b)).copied().collect();
            for sample in 0..n {
                let keep: Vec<usize> = (0..n).filter(|other| prompts[*other] != prompts[sample]).collect();
                let value: f64 = keep.iter().zip(solved(&keep)).map(|(at, a)| a * system[[sample, *at]]).sum();
                assert!((value - crossed[sample]).abs() < 1e-9, "{sample}: {value} {}", crossed[sample]);
            }
        }
    }

    /// Where the classes lie on one another, the first of the doubled ridges that leaves weights of 1 is taken.
    #[test]
    fn the_ridge_grows_until_the_weights_are_small() {
        let (open, _) = source(20, 6, 1, 0.0);
        let all = [(open.clone(), open.mapv(|x| x + 1e-3))];
        let rules = RadialRules::default();
        let found = fit(&views(&all), &(0..42).collect::<Vec<_>>(), &rules).unwrap();
        let tries = (0..8).map(|n| RadialRules { ridge: rules.ridge * f64::from(1 << n), ..rules });
        let mut tried = tries.map(|rules| {
            let (system, targets) = plainly(&all, &found, &rules);
            solve_positive(system.iter().copied().collect(), targets).unwrap()
        });
        let size = |weights: &[f64]| weights.iter().map(|a| a.abs()).sum::<f64>() / weights.len() as f64;
        assert!(size(&tried.next().unwrap()) > 1.0, "the first is too small");
        let expected = tried.find(|weights| size(weights) <= 1.0).unwrap();
        assert!(expected.iter().zip(&found.basis.weights).all(|(a, b)| (a - b).abs() < 1e-9));
    }

    /// The mean over the sources binds; where one source is far above the others, its own limit does.
    #[test]
    fn the_threshold_is_the_least_that_keeps_to_both_limits() {
        let basis = RadialBasis { shift: vec![], projection: vec![], centers: vec![], weights: vec![] };
        let few: Vec<f64> = (1..=10).map(|i| f64::from(i) / 10.0).collect();
        let many: Vec<f64> = (1..=100).map(|i| f64::from(i) / 50.0).collect();
        let gate = |crossed: [&[f64]; 2], open| {
            let crossed = crossed.map(|shut| (vec![9.0], shut.to_vec())).to_vec();
            RadialFit { basis: basis.clone(), crossed }.gate(open, None)
        };
        let alike = gate([&few, &many], 0.1);
        // 20 of 100 above, and none of 10: another one of the 10 would still do, another of the 100 would not
        assert_eq!(alike.threshold, 1.6);
        assert_eq!(alike.held_out.iter().map(|held| held.shut).collect::<Vec<_>>(), [0.0, 0.2]);
        // the other opens for none: of this one twice the share is the share in the mean
        let alone = gate([&[0.0; 10], &many], 0.04);
        assert_eq!((alone.threshold, alone.held_out[1].shut), (1.84, 0.08));
        let alone = gate([&[0.0; 10], &many], 0.005);
        assert_eq!((alone.threshold, alone.held_out[1].shut), (1.98, 0.01));
        // several sources, one of which would open far: five times the share is its most
        let crossed: Vec<(Vec<f64>, Vec<f64>)> =
            (0..20).map(|at| (vec![9.0], if at == 0 { many.clone() } else { vec![0.0; 10] })).collect();
        let worst = RadialFit { basis, crossed }.gate(0.02, None);
        assert_eq!((worst.threshold, worst.held_out[0].shut), (1.8, 0.1));
    }

    /// Distances are told in standard deviations, and half of the pairs lie nearer than the median.
    #[test]
    fn distances_are_those_of_the_whitened_samples() {
        let (d, rules) = (8, RadialRules::default());
        let mut all = [source(40, d, 1, 0.0), source(40, d, 2, 1.0)];
        let wide = |rows: &mut Array2<f64>| rows.column_mut(3).mapv_inplace(|x| 50.0 * x);
        all.iter_mut().for_each(|(a, b)| [a, b].into_iter().for_each(wide));
        let parts: Vec<_> = all.iter().flat_map(|(a, b)| [a.view(), b.view()]).collect();
        let Whitening { projection, .. } = Whitening::of(&parts, &rules).unwrap();
        let mut covariance = Array2::<f64>::zeros((d, d));
        for part in &parts {
            let residuals = part - &part.mean_axis(Axis(0)).unwrap();
            covariance += &residuals.t().dot(&residuals);
        }
        covariance /= parts.iter().map(|part| part.nrows()).sum::<usize>() as f64;
        let variance = covariance.diag().sum() / d as f64;
        let shrunken = covariance * (1.0 - rules.shrinkage) + Array2::<f64>::eye(d) * (rules.shrinkage * variance);
        let white = projection.dot(&shrunken).dot(&projection.t());
        assert!((white - Array2::<f64>::eye(d)).iter().all(|x| x.abs() < 1e-9));
        let found = fit(&views(&all), &shared(&all), &rules).unwrap();
        let centers: Vec<&[f64]> = found.basis.centers.chunks(d).collect();
        let pairs = || (0..centers.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        let squared = |i: usize, j: usize| centers[i].iter().zip(centers[j]).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let nearer = pairs().filter(|(i, j)| squared(*i, *j) < rules.narrowness).count() as f64;
        assert!((nearer / pairs().count() as f64 - 0.5).abs() < 0.01);
    }

    /// Fewer dimensions keep those along which samples vary most.
    #[test]
    fn the_projection_keeps_what_varies_most() {
        let (d, mut all) = (24, [source(60, 24, 1, 0.0)]);
        let wide =
            |rows: &mut Array2<f64>| [3, 7, 11].into_iter().for_each(|j| rows.column_mut(j).mapv_inplace(|x| 90.0 * x));
        all.iter_mut().for_each(|(a, b)| [a, b].into_iter().for_each(wide));
        let parts: Vec<_> = all.iter().flat_map(|(a, b)| [a.view(), b.view()]).collect();
        let rules = RadialRules { dims: 3, shrinkage: 0.001, ..RadialRules::default() };
        let Whitening { projection, .. } = Whitening::of(&parts, &rules).unwrap();
        let share = |j: usize| projection.column(j).dot(&projection.column(j));
        let kept: f64 = [3, 7, 11].into_iter().map(share).sum();
        assert!(kept > 0.9 * (0..d).map(share).sum::<f64>());
    }

    #[test]
    fn it_opens_near_what_it_knows_alone_and_the_sources_hold_the_threshold() {
        let d = 12;
        let all = [source(60, d, 1, 0.0), source(40, d, 2, 2.0)];
        let found = fit(&views(&all), &shared(&all), &RadialRules::default()).unwrap();
        let mut last = f64::INFINITY;
        for open in [0.0, 0.02, 0.1, 0.5] {
            let gate = found.gate(open, None);
            assert!(gate.threshold <= last && gate.ramp > 0.0, "{open}");
            last = gate.threshold;
            assert!(gate.held_out.iter().all(|held| held.shut <= 5.0 * open && held.auc.is_none()));
            assert!(gate.held_out.iter().map(|held| held.shut).sum::<f64>() <= 2.0 * open, "{:?}", gate.held_out);
        }
        let gate = found.gate(0.02, Some(&[0.75, 0.5]));
        assert!(gate.held_out.iter().all(|held| held.open > 0.8), "{:?}", gate.held_out);
        assert_eq!(gate.held_out[1].auc, Some(0.5));
        let opens = |x: &[f64]| gate.reading.of(x) > gate.threshold;
        let share = |rows: &Array2<f64>| rows.rows().into_iter().filter(|x| opens(&x.to_vec())).count();
        // prompts that are new, of a style that it knows
        let new = source(50, d, 9, 1.0);
        assert!(share(&new.0) > 40 && share(&new.1) == 0, "{} {}", share(&new.0), share(&new.1));
        // further along what tells the classes apart than any open sample: unknown, so shut
        assert!(!opens(&[60.0; 12]) && share(&source(50, d, 3, 90.0).0) == 0);
    }

    #[test]
    fn what_cannot_be_fitted_is_told() {
        let rules = RadialRules::default();
        assert_eq!(fit(&[], &[], &rules), Err(GateError::NoSource));
        let (some, empty) = (source(5, 4, 1, 0.0).0, Array2::<f64>::zeros((0, 4)));
        let lacks = [Source { open: some.view(), shut: empty.view() }];
        assert_eq!(fit(&lacks, &[0; 6], &rules), Err(GateError::NoSource));
        let still = (Array2::<f64>::ones((5, 4)), Array2::<f64>::zeros((5, 4)));
        assert!(matches!(fit(&views(&[still]), &[0; 10], &rules), Err(GateError::Degenerate(_))));
        let broken = (Array2::from_elem((5, 4), f64::NAN), some);
        assert!(fit(&views(&[broken]), &[0; 11], &rules).is_err());
    }
}
