//! Fitting the gate of a gated ablation: a shrunken linear discriminant of pseudo-harmful against harmful activations,
//! whose threshold every source of prompts holds by itself.
//!
//! One source, such as one data set beside another, gives its style away as much as its harm. So each source is centred on
//! its own midpoint, the differences are averaged, and the threshold is the largest that any source asks for.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

use crate::edit::{Direction, DirectionError};
use crate::linalg::{CholeskyError, solve_positive};

/// Activations of prompts of both classes that one hand wrote, `[prompts, d_model]` each, with a prompt at least.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Of pseudo-harmful prompts.
    pub pseudo_harmful: ArrayView2<'a, f64>,
    /// Of harmful prompts.
    pub harmful: ArrayView2<'a, f64>,
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

/// The shrunken linear discriminant (Fisher 1936, with the covariance shrunken towards a multiple of the identity as
/// Ledoit and Wolf 2004 do): the unit vector along `((1 - a) S + a tr(S) / d I)^-1 m`, `[d_model]`, where `m` is the mean
/// over the sources of their difference of means, pseudo-harmful less harmful, `S` the covariance within classes and
/// sources, and `a`, above 0 and at most 1, the `shrinkage`.
///
/// Where there are fewer prompts than channels, the system is solved in the space of the prompts (Woodbury's identity).
///
/// # Errors
/// If there is no source, or its activations do not vary or do not differ.
pub fn discriminant(sources: &[Source<'_>], shrinkage: f64) -> Result<Direction, GateError> {
    let (mut mean, mut rows) = (None, Vec::new());
    for source in sources {
        let classes = [source.pseudo_harmful, source.harmful];
        let [pseudo, harmful] = classes.map(|class| class.mean_axis(Axis(0)));
        let (Some(pseudo), Some(harmful)) = (pseudo, harmful) else { return Err(GateError::NoSource) };
        for (class, centre) in classes.iter().zip([&pseudo, &harmful]) {
            rows.extend(class.rows().into_iter().map(|row| &row - centre));
        }
        let difference = (pseudo - harmful) / sources.len() as f64;
        mean = Some(match mean {
            None => difference,
            Some(mean) => mean + difference,
        });
    }
    let mean = mean.ok_or(GateError::NoSource)?;
    let (n, d) = (rows.len(), mean.len());
    let residuals = Array2::from_shape_fn((n, d), |(i, j)| rows[i][j]);
    // tr(S) / d
    let scale = residuals.iter().map(|x| x * x).sum::<f64>() / (n * d) as f64;
    let (ridge, share) = (shrinkage * scale, (1.0 - shrinkage) / n as f64);
    let solved = if n < d && share > 0.0 {
        // (ridge I + share R^T R)^-1 m = (m - R^T (ridge / share I + R R^T)^-1 R m) / ridge
        let mut inner = residuals.dot(&residuals.t());
        inner.diag_mut().mapv_inplace(|x| x + ridge / share);
        let weights = Array1::from(solve_positive(inner.into_iter().collect(), residuals.dot(&mean).to_vec())?);
        ((mean - residuals.t().dot(&weights)) / ridge).to_vec()
    } else {
        let mut whole = residuals.t().dot(&residuals) * share;
        whole.diag_mut().mapv_inplace(|x| x + ridge);
        solve_positive(whole.into_iter().collect(), mean.to_vec())?
    };
    Ok(Direction::new(solved)?)
}

/// The threshold above which at most the share `open` of the harmful prompts of each source lie: the largest that any source
/// asks for, which is the value of one of its prompts along the gate.
///
/// # Errors
/// If there is no source, or one lacks harmful prompts.
pub fn threshold(sources: &[Source<'_>], gate: &Direction, open: f64) -> Result<f64, GateError> {
    let of = |source: &Source<'_>| {
        let along = |row: ArrayView1<'_, f64>| row.iter().zip(gate.unit()).map(|(x, b)| x * b).sum();
        let mut all: Vec<f64> = source.harmful.rows().into_iter().map(along).collect();
        all.sort_unstable_by(|a, b| b.total_cmp(a));
        let above = (open.clamp(0.0, 1.0) * all.len() as f64) as usize;
        all.get(above.min(all.len().saturating_sub(1))).copied()
    };
    let all: Option<Vec<f64>> = sources.iter().map(of).collect();
    all.unwrap_or_default().into_iter().max_by(f64::total_cmp).ok_or(GateError::NoSource)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::{cosine, norm};

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
        all.iter().map(|(p, h)| Source { pseudo_harmful: p.view(), harmful: h.view() }).collect()
    }

    /// The definition, with the whole matrix.
    fn plainly(sources: &[Source<'_>], shrinkage: f64) -> Vec<f64> {
        let d = sources[0].harmful.ncols();
        let (mut mean, mut scatter, mut n) = (Array1::<f64>::zeros(d), Array2::<f64>::zeros((d, d)), 0.0);
        for source in sources {
            for (class, sign) in [(source.pseudo_harmful, 1.0), (source.harmful, -1.0)] {
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

    #[test]
    fn both_ways_to_solve_are_the_definition() {
        for (prompts, d) in [(5, 60), (40, 12), (30, 60), (31, 60)] {
            let all = [source(prompts, d, 1, 3.0), source(prompts + 2, d, 2, -3.0)];
            for shrinkage in [0.05, 0.3, 0.9, 1.0] {
                let found = discriminant(&views(&all), shrinkage).unwrap();
                let wanted = plainly(&views(&all), shrinkage);
                assert!(1.0 - cosine(found.unit(), &wanted) < 1e-10, "{prompts} {d} {shrinkage}");
                assert!((norm(found.unit()) - 1.0).abs() < 1e-12);
            }
        }
    }

    /// What only one source says is style; two that say the opposite cancel it.
    #[test]
    fn style_that_sources_do_not_share_is_not_learnt() {
        let all = [source(40, 12, 1, 6.0), source(40, 12, 2, -6.0)];
        let one = discriminant(&views(&all)[..1], 0.1).unwrap();
        let both = discriminant(&views(&all), 0.1).unwrap();
        assert!(one.unit()[11].abs() > 0.8, "{:?}", one.unit());
        assert!(both.unit()[11].abs() < 0.2 && both.unit()[0] > 0.8, "{:?}", both.unit());
    }

    #[test]
    fn the_threshold_holds_on_every_source() {
        let all = [source(50, 8, 1, 0.0), source(30, 8, 2, 0.0)];
        let mut views = views(&all);
        let moved = &all[1].1 + 4.0;
        views[1].harmful = moved.view();
        let gate = Direction::new([vec![1.0], vec![0.0; 7]].concat()).unwrap();
        for open in [0.0, 0.02, 0.1, 0.5] {
            let c = threshold(&views, &gate, open).unwrap();
            for source in &views {
                let above = source.harmful.rows().into_iter().filter(|row| row[0] > c).count();
                assert!(above as f64 <= open * source.harmful.nrows() as f64, "{open}: {above}");
            }
        }
    }

    #[test]
    fn what_cannot_be_fitted_is_told() {
        assert_eq!(discriminant(&[], 0.3), Err(GateError::NoSource));
        let empty = Array2::<f64>::zeros((0, 4));
        let some = source(5, 4, 1, 0.0).0;
        let lacks = [Source { pseudo_harmful: some.view(), harmful: empty.view() }];
        assert_eq!(discriminant(&lacks, 0.3), Err(GateError::NoSource));
        let gate = Direction::new(vec![1.0; 4]).unwrap();
        assert_eq!(threshold(&lacks, &gate, 0.02), Err(GateError::NoSource));
        let same = [Source { pseudo_harmful: some.view(), harmful: some.view() }];
        assert!(matches!(discriminant(&same, 0.3), Err(GateError::Alike(_))));
        let still = Array2::ones((5, 4));
        let still = [Source { pseudo_harmful: still.view(), harmful: still.view() }];
        assert!(matches!(discriminant(&still, 0.3), Err(GateError::Degenerate(_))));
        let broken = Array2::from_elem((5, 4), f64::NAN);
        let broken = [Source { pseudo_harmful: broken.view(), harmful: some.view() }];
        assert!(discriminant(&broken, 0.3).is_err());
    }
}
