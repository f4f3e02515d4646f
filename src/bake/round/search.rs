//! The search for the last entries that change sides.

/// An entry that may change sides.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Change {
    pub(super) at: u32,
    /// What the change takes off the leak.
    pub(super) gain: f32,
    /// What the change adds to the squared error.
    pub(super) cost: f32,
}

/// A number for each float32 that rises with it, as in [`f32::total_cmp`].
#[inline(always)]
fn rank(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// Puts entries, `(number, value)`, in the order of their values, and of their numbers where values are equal.
#[inline(always)]
pub(super) fn sort(order: &mut Vec<u64>, entries: impl Iterator<Item = (u32, f32)>) {
    order.clear();
    order.extend(entries.map(|(at, value)| u64::from(rank(value)) << 32 | u64::from(at)));
    order.sort_unstable();
}

/// The number of an entry that [`sort`] has put in order.
#[inline(always)]
pub(super) fn number(entry: u64) -> usize {
    (entry & u64::from(u32::MAX)) as usize
}

/// The one or two candidates whose gains come within `close` of `left` at least cost, or if none do those that come
/// nearest, by a walk from both ends of the candidates, which are in the order of their gains; none if nothing is nearer than leaving it.
#[inline(always)]
pub(super) fn best_changes(candidates: &[Change], left: f64, close: f64) -> [Option<u32>; 2] {
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
