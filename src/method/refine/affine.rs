//! `ace`: what is ablated is replaced by what harmless prompts have there, not by zero (affine concept editing,
//! 2411.09003): `x <- x - (x.r) r + (m.r) r` with the harmless mean `m`.
//!
//! The component of the harmless mean differs by layer. With the ablation at every write the stream holds nothing along
//! `r`, so additions at the layers build it up: the first brings `m_1.r`, each further one `m_l.r - m_(l-1).r`. At layer 0
//! there is no block whose write could take a vector. Where the mean has nothing along `r`, this is the plain ablation.

use crate::edit::Addition;

/// The additions that put the component of the harmless mean back. `along[l]` is `m.r` of `resid_pre[l]` with the unit
/// vector `r`, `[d_model]`; `position` is where the means were taken. Layers that change nothing get none.
pub fn additions(along: &[f64], unit: &[f64], position: i64) -> Vec<Addition> {
    let mut there = 0.0;
    let mut found = Vec::new();
    for (layer, &wanted) in along.iter().enumerate().skip(1) {
        let more = wanted - there;
        there = wanted;
        if more != 0.0 {
            found.push(Addition { vector: unit.iter().map(|r| more * r).collect(), layer, position, alpha: 1.0 });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::dot;

    #[test]
    fn additions_build_the_mean_up() {
        let unit = [0.6, 0.0, -0.8];
        let along = [3.0, 0.5, 0.5, -1.0, 2.0];
        let found = additions(&along, &unit, -2);
        assert_eq!(found.iter().map(|one| one.layer).collect::<Vec<_>>(), [1, 3, 4]);
        let mut component = 0.0;
        for (layer, wanted) in along.iter().enumerate().skip(1) {
            component +=
                found.iter().filter(|one| one.layer == layer).map(|one| dot(&one.scaled(), &unit)).sum::<f64>();
            assert!((component - wanted).abs() < 1e-12, "{layer}");
        }
        assert!(found.iter().all(|one| one.position == -2));
    }

    #[test]
    fn a_mean_without_a_component_adds_nothing() {
        assert!(additions(&[1.0, 0.0, 0.0], &[1.0, 0.0], -1).is_empty());
        assert!(additions(&[], &[1.0], -1).is_empty());
    }
}
