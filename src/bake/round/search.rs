//! The search for the last entries that change sides.

/// An entry that may change sides.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Change {
    pub(super) at: u32,
    /// Squared error that the change adds, divided by the leak that it takes off.
    pub(super) key: f32,
    /// What the change takes off the leak.
    pub(super) gain: f32,
    /// What the change adds to the squared error.
    pub(super) cost: f32,
}

/// The one or two candidates whose gains come within `close` of `left` at least cost, or if none do those that come
/// nearest, by a walk from both ends of the sorted gains; none if nothing is nearer than leaving it.
#[inline(always)]
pub(super) fn best_changes(candidates: &mut [Change], left: f64, close: f64) -> [Option<u32>; 2] {
    candidates.sort_unstable_by(|a, b| a.gain.total_cmp(&b.gain).then(a.at.cmp(&b.at)));
    // what is left beyond `close`, then what it costs
    let mut best = ((left.abs() - close).max(0.0), 0.0f32, [None, None]);
    let mut see = |rest: f64, cost: f32, which: [Option<u32>; 2]| {
        let beyond = (rest.abs() - close).max(0.0);
        if (beyond, cost) < (best.0, best.1) {
            best = (beyond, cost, which);
        }
    };
    for one in candidates.iter() {
        see(left - f64::from(one.gain), one.cost, [Some(one.at), None]);
    }
    let (mut low, mut high) = (0, candidates.len().saturating_sub(1));
    while low < high {
        let (a, b) = (candidates[low], candidates[high]);
        let rest = left - f64::from(a.gain) - f64::from(b.gain);
        see(rest, a.cost + b.cost, [Some(a.at), Some(b.at)]);
        if rest.abs() <= close {
            // the neighbours may do as well at less cost
            let near = candidates[low + 1..high]
                .iter()
                .rev()
                .take_while(|b| (left - f64::from(a.gain) - f64::from(b.gain)).abs() <= close);
            for b in near {
                see(left - f64::from(a.gain) - f64::from(b.gain), a.cost + b.cost, [Some(a.at), Some(b.at)]);
            }
        }
        if rest > 0.0 { low += 1 } else { high -= 1 }
    }
    best.2
}
