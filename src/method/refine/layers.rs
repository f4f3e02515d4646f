//! `layers`: only writes of layers that matter are ablated, since some layers are better left alone (2601.19375).
//!
//! Layers are looked at in groups of neighbours. With the refusal score of pseudo-harmful validation prompts `s` of the
//! unchanged model, `s_all` with every write ablated, and `s_g` with all but the writes of group `g`, the group matters if
//! leaving it out costs more than a share of the effect: `s_g - s_all > share (s - s_all)`.

use std::ops::Range;

/// Groups that layers are looked at in, at most.
const MOST_GROUPS: usize = 8;

/// Share of the whole effect that a group must be worth.
pub const SHARE: f64 = 0.05;

/// Neighbouring layers, in groups of one size; the last one may be smaller.
pub fn groups(n_layers: usize) -> Vec<Range<usize>> {
    let size = n_layers.div_ceil(MOST_GROUPS).max(1);
    (0..n_layers).step_by(size).map(|from| from..n_layers.min(from + size)).collect()
}

/// Which groups matter, by the mean refusal scores of pseudo-harmful prompts in nats: `base` of the unchanged model, `all`
/// with every write ablated, `without[g]` with all but the writes of group `g`. Where the whole has no effect, or no group
/// alone is worth anything, every group is said to matter.
pub fn needed(base: f64, all: f64, without: &[f64], share: f64) -> Vec<bool> {
    let least = share * (base - all);
    let found: Vec<bool> = without.iter().map(|score| score - all > least).collect();
    if base > all && found.contains(&true) { found } else { vec![true; without.len()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_grouped_whole() {
        for n in [1, 2, 7, 8, 9, 30, 80] {
            let groups = groups(n);
            assert!(groups.len() <= MOST_GROUPS, "{n}");
            assert_eq!(groups.iter().cloned().flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
        }
        assert!(groups(0).is_empty());
    }

    #[test]
    fn a_group_is_worth_its_share() {
        // the whole takes 10 nats off, so a group must be worth half a nat
        assert_eq!(needed(8.0, -2.0, &[-2.0, -1.4, 6.0, -1.5], 0.05), [false, true, true, false]);
        assert_eq!(needed(8.0, -2.0, &[-2.0, -2.0], 0.05), [true, true]);
        assert_eq!(needed(-2.0, 8.0, &[9.0, 1.0], 0.05), [true, true]);
    }
}
