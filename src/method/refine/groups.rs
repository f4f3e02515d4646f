//! `rank:K`: a false-refusal direction for each group of pseudo-harmful prompts, each freed of the subspace of true
//! refusal.
//!
//! False refusal differs by what a prompt is about, so that one direction leaves some of it (2603.27518 finds several
//! dimensions). The prompts that the model refuses are put into `K` groups by their activations, harmful ones likewise.
//! With the mean activations `h` and orthonormal `q_1, q_2, ..` in the span of `h[harmful group] - h[harmless]`:
//!
//! ```text
//! w_g  = h[pseudo-harmful group g] - h[harmless]
//! w_g' = w_g - lambda sum_j (w_g.q_j) q_j
//! ```
//!
//! and the span of all `w_g'` is ablated. One group gives the direction of Wang et al. 2025, eq. 6 and 7.

use ndarray::{Array2, ArrayView1};

use crate::edit::{Ablation, Direction, EditError};
use crate::linalg::{dot, sub};

/// Rounds after which groups that still change are taken as they are.
const MOST_ROUNDS: usize = 100;

/// Rows that lie near each other, by their numbers, the largest group first: Lloyd's k-means. It starts with the row
/// nearest to the mean and, again and again, with the row farthest from all before it, so equal rows give equal groups.
/// `rows` is `[rows, d_model]`. Fewer than `count` groups are returned where there are fewer different rows.
pub fn groups(rows: &Array2<f32>, count: usize) -> Vec<Vec<usize>> {
    let all: Vec<Vec<f64>> = rows.rows().into_iter().map(wide).collect();
    if all.is_empty() || count == 0 {
        return Vec::new();
    }
    let mut centres = starts(&all, count);
    let mut found = assign(&all, &centres);
    for _ in 0..MOST_ROUNDS {
        for (n, centre) in centres.iter_mut().enumerate() {
            let members: Vec<&[f64]> = all.iter().zip(&found).filter(|(_, g)| **g == n).map(|(x, _)| &x[..]).collect();
            if !members.is_empty() {
                *centre = mean_of(&members);
            }
        }
        let next = assign(&all, &centres);
        if next == found {
            break;
        }
        found = next;
    }
    let members = |n: usize| found.iter().enumerate().filter(|(_, g)| **g == n).map(|(row, _)| row).collect();
    let mut groups: Vec<Vec<usize>> = (0..centres.len()).map(members).collect();
    groups.retain(|group| !group.is_empty());
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    groups
}

fn wide(row: ArrayView1<'_, f32>) -> Vec<f64> {
    row.iter().map(|v| f64::from(*v)).collect()
}

/// The mean of rows, `[rows, d_model]`, of which there is one at least.
pub fn mean(rows: &Array2<f32>) -> Vec<f64> {
    mean_of(&rows.rows().into_iter().map(wide).collect::<Vec<_>>())
}

/// The mean of vectors of `d_model` numbers, of which there is one at least.
fn mean_of(vectors: &[impl AsRef<[f64]>]) -> Vec<f64> {
    let mut sum = vec![0.0; vectors[0].as_ref().len()];
    for x in vectors {
        sum.iter_mut().zip(x.as_ref()).for_each(|(sum, v)| *sum += v);
    }
    sum.iter_mut().for_each(|v| *v /= vectors.len() as f64);
    sum
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let apart = sub(a, b);
    dot(&apart, &apart)
}

/// The rows to start with; no two of them are equal.
fn starts(all: &[Vec<f64>], count: usize) -> Vec<Vec<f64>> {
    let middle = mean_of(all);
    let nearest = all.iter().min_by(|a, b| distance(a, &middle).total_cmp(&distance(b, &middle)));
    let mut found: Vec<Vec<f64>> = nearest.into_iter().cloned().collect();
    let beside = |x: &[f64], found: &[Vec<f64>]| found.iter().map(|c| distance(x, c)).fold(f64::INFINITY, f64::min);
    while found.len() < count {
        let far = all.iter().map(|x| (beside(x, &found), x)).max_by(|(a, _), (b, _)| a.total_cmp(b));
        match far {
            Some((apart, x)) if apart > 0.0 => found.push(x.clone()),
            _ => break,
        }
    }
    found
}

/// The number of the nearest centre of each row.
fn assign(all: &[Vec<f64>], centres: &[Vec<f64>]) -> Vec<usize> {
    let nearest = |x: &Vec<f64>| {
        let apart = centres.iter().map(|centre| distance(x, centre)).enumerate();
        apart.min_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(0, |(n, _)| n)
    };
    all.iter().map(nearest).collect()
}

/// The ablation of all groups' directions. `pseudo_harmful` and `harmful` hold the mean activations of the groups and
/// `harmless` that of all harmless prompts, `[d_model]` each, at one position and layer. A group whose direction is a sum
/// of those before it adds nothing.
///
/// # Errors
/// If no group leaves a direction.
pub fn ablation(
    pseudo_harmful: &[Vec<f64>],
    harmful: &[Vec<f64>],
    harmless: &[f64],
    lambda: f64,
) -> Result<Ablation, EditError> {
    let refusal = harmful.iter().filter_map(|mean| Direction::new(sub(mean, harmless)).ok());
    let subspace = span(refusal).ok();
    let freed = pseudo_harmful.iter().filter_map(|mean| {
        let mut w = sub(mean, harmless);
        let along: Vec<(f64, &[f64])> =
            subspace.iter().flat_map(Ablation::vectors).map(|one| (lambda * dot(&w, one.unit()), one.unit())).collect();
        for (share, q) in along {
            w.iter_mut().zip(q).for_each(|(w, q)| *w -= share * q);
        }
        Direction::new(w).ok()
    });
    span(freed)
}

/// The ablation of the span of directions, of which those that are sums of others are left out.
fn span(directions: impl Iterator<Item = Direction>) -> Result<Ablation, EditError> {
    let mut taken: Vec<Direction> = Vec::new();
    for direction in directions {
        let more = [taken.as_slice(), &[direction]].concat();
        if Ablation::of_span(more.clone()).is_ok() {
            taken = more;
        }
    }
    Ablation::of_span(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::{cosine, norm};
    use crate::method::direction::{diff_in_means, partially_orthogonalise};

    #[test]
    fn rows_that_lie_together_are_grouped() {
        let centres = [[5.0f32, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]];
        let row = |n: usize| {
            let centre = centres[[0, 1, 0, 2, 1, 0][n % 6]];
            [centre[0] + (n as f32).sin() * 0.1, centre[1] + (n as f32).cos() * 0.1, centre[2]]
        };
        let rows = Array2::from_shape_fn((24, 3), |(n, at)| row(n)[at]);
        let found = groups(&rows, 3);
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [12, 8, 4]);
        assert!(found[0].iter().all(|n| [0, 2, 5].contains(&(n % 6))), "{found:?}");
        assert_eq!(groups(&rows, 1), [(0..24).collect::<Vec<_>>()]);
        assert_eq!(groups(&rows, 3), found);
        // no more groups than there are different rows
        let same = Array2::from_shape_fn((5, 2), |(n, _)| (n % 2) as f32);
        assert_eq!(groups(&same, 4).len(), 2);
        assert!(groups(&Array2::zeros((0, 3)), 2).is_empty());
    }

    #[test]
    fn one_group_is_the_published_direction() {
        let [pseudo, harmful, harmless] =
            [vec![1.0, 2.0, 0.5, -1.0], vec![2.0, -1.0, 0.0, 3.0], vec![0.1, 0.2, 0.3, 0.4]];
        let (w, r) = (diff_in_means(&pseudo, &harmless), diff_in_means(&harmful, &harmless));
        for lambda in [0.0, 0.5, 1.0] {
            let found =
                ablation(std::slice::from_ref(&pseudo), std::slice::from_ref(&harmful), &harmless, lambda).unwrap();
            let published = partially_orthogonalise(&w, &r, lambda);
            assert_eq!(found.vectors().len(), 1);
            assert!(1.0 - cosine(found.vectors()[0].unit(), &published) < 1e-12, "{lambda}");
        }
    }

    #[test]
    fn groups_are_freed_of_all_of_true_refusal() {
        let value = |n: usize, at: usize| ((n * 7 + at * 3 + n * at) as f64).sin();
        let means = |from: usize| (from..from + 3).map(|n| (0..16).map(|at| value(n, at)).collect()).collect();
        let (pseudo, harmful): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (means(1), means(20));
        let harmless = vec![0.25; 16];
        let found = ablation(&pseudo, &harmful, &harmless, 1.0).unwrap();
        assert_eq!(found.vectors().len(), 3);
        for one in found.vectors() {
            for mean in &harmful {
                let r = sub(mean, &harmless);
                assert!(dot(one.unit(), &r).abs() / norm(&r) < 1e-12);
            }
        }
        // what is ablated is the span: each group's own direction lies in it
        let raw = ablation(&pseudo, &harmful, &harmless, 0.0).unwrap();
        let w = sub(&pseudo[2], &harmless);
        let within: f64 = raw.vectors().iter().map(|one| dot(one.unit(), &w).powi(2)).sum();
        assert!((within.sqrt() / norm(&w) - 1.0).abs() < 1e-12);
        // a group that is there twice adds nothing
        let twice = [pseudo[0].clone(), pseudo[0].clone(), pseudo[1].clone()];
        assert_eq!(ablation(&twice, &harmful, &harmless, 1.0).unwrap().vectors().len(), 2);
        assert_eq!(
            ablation(std::slice::from_ref(&harmless), &harmful, &harmless, 1.0),
            Err(EditError::Directions { got: 0 })
        );
    }
}
