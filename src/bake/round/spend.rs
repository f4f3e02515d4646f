//! Spending the leak of a vector: which entries go to their other level. Keys and gains are those of [`super`].

use super::arithmetic::{Bulk, chunks, chunks_mut, larger, largest};
use super::pick::Pick;
use super::search::{Change, best_changes, number, sort};
use super::{LANES, Tally, Unit, Worker, candidates};

/// How many limits of the keys are tried before all entries are looked at.
const TRIES: usize = 12;

/// The limit of the keys that is tried first, by the leak that is to be spent. Where costs lie evenly between nothing and
/// a whole step, gains up to the key `k` add up to `k / 2`.
pub(super) const REACH: f64 = 2.5;

/// Shift that turns the bits of a positive float32 into the number of its bucket: eight buckets for each power of two.
const BUCKET_SHIFT: u32 = 20;

/// Number of buckets for all positive float32.
pub(super) const BUCKETS: usize = 1 << (31 - BUCKET_SHIFT);

impl Worker {
    /// Moves entries to their other level until no more than `close` of the leak `e` is left. `c` is the component that
    /// was removed. Returns the sign of the leak that gains are told for.
    #[inline(always)]
    pub(super) fn spend<P: Pick>(
        &mut self,
        pick: P,
        codes: &mut [u8],
        unit: &Unit,
        (c, close): (f32, f64),
        e: &mut f64,
        tally: &mut Tally,
    ) -> f32 {
        let n = codes.len();
        let most = candidates(n);
        let sign = if *e > 0.0 { 1.0f32 } else { -1.0 };
        let (r, inverse) = (&unit.r[..n], &unit.inverse[..n]);
        let runs = |values| chunks(values, n).iter();
        let given = runs(&self.delta).zip(runs(&self.step)).zip(runs(&self.turn)).zip(runs(r)).zip(runs(inverse));
        let out = chunks_mut(&mut self.key, n).iter_mut().zip(chunks_mut(&mut self.gain, n));
        for (((((delta, step), turn), r), inverse), (key, gain)) in given.zip(out) {
            for lane in 0..LANES {
                let (delta, step) = (delta[lane], step[lane]);
                // the step has the sign opposite to that of `delta`
                gain[lane] = r[lane] * step * sign * if delta > 0.0 { 1.0 } else { -1.0 };
                let cost = larger(step - 2.0 * delta.abs(), 0.0) * inverse[lane];
                // an entry that lies on its level would come to lie a whole level off
                let free = (turn[lane] != 0.0) & (delta.abs() > 2e-5 * step);
                key[lane] = if free { cost } else { f32::INFINITY };
            }
        }
        // an entry that would take off more than there is is for the search at the end alone
        let large = e.abs() as f32;
        let (low, stop, high) = self.bracket(pick, n, e.abs() - close, large, most);
        self.changed.clear();
        let bulk = Bulk { key: &self.key, step: &self.step, r, c, below: low, large };
        let moved = bulk.apply(codes, &mut self.delta, &mut self.turn, &mut self.gain);
        tally.error_after += moved.error;
        tally.max_levels = tally.max_levels.max(largest(&moved.levels));
        tally.max_abs_delta = tally.max_abs_delta.max(largest(&moved.moved));
        let mut left = *e * f64::from(sign) - moved.leak;
        self.candidates.clear();
        let mut count = 0;
        for (run, (keys, gains)) in chunks(&self.key, n).iter().zip(chunks(&self.gain, n)).enumerate() {
            let near = pick.below(keys, high) & (!pick.below(keys, low) | pick.above(gains, large));
            count += list(pick, near, run, &mut self.listed[count..]);
        }
        for index in 0..count {
            let at = self.listed[index] as usize;
            let (key, gain) = (self.key[at], self.gain[at]);
            if self.candidates.len() < most {
                self.candidates.push(self.listed[index]);
            } else if key < stop && gain > 0.0 && left >= f64::from(gain) {
                // keys that are all alike
                left -= self.change(codes, at, tally);
            }
        }
        sort(&mut self.order, self.candidates.iter().map(|&at| (at, self.key[at as usize])));
        // not past the leak: where every change takes some off, what is taken too much cannot be put back
        for index in 0..self.order.len() {
            let at = number(self.order[index]);
            if left <= close {
                break;
            }
            if self.gain[at] > 0.0 && left >= f64::from(self.gain[at]) {
                left -= self.change(codes, at, tally);
            }
        }
        left = self.meet(codes, left, close, tally);
        // where scales are all alike, entries of one key have one gain: look among all of them, a sample at a time
        let stride = n.div_ceil(most);
        for start in [0, stride / 3, 2 * stride / 3] {
            if left.abs() <= close {
                break;
            }
            let some = (start..n).step_by(stride).map(|at| at as u32);
            let back = self.changed.iter().rev().copied().take(most / 2);
            let free = some.chain(back).filter(|&at| self.key[at as usize] < f32::INFINITY);
            self.candidates.clear();
            self.candidates.extend(free);
            self.candidates.sort_unstable();
            self.candidates.dedup();
            left = self.meet(codes, left, close, tally);
        }
        *e = left * f64::from(sign);
        sign
    }

    /// Where the direction has entries so large that the others cannot make up for the rounding of one of them: all
    /// that keep their code lie on one side of their values. Sends the least of the large ones past the leak, if the
    /// others can be moved to take that back. `sign` is that of the leak that gains are told for.
    pub(super) fn turn_back(&mut self, codes: &mut [u8], sign: f32, e: &mut f64, tally: &mut Tally) -> bool {
        let left = e.abs() as f32;
        let frame = if (*e > 0.0) == (sign > 0.0) { 1.0 } else { -1.0 };
        let free = |at: &usize| self.key[*at] < f32::INFINITY;
        let takes = |at: usize| frame * self.gain[at];
        let large = (0..codes.len()).filter(free).filter(|&at| takes(at) > left);
        let Some(least) = large.min_by(|&a, &b| takes(a).total_cmp(&takes(b))) else { return false };
        let others: f32 = (0..codes.len()).filter(free).map(|at| (-takes(at)).max(0.0)).sum();
        if others < takes(least) - left {
            return false;
        }
        *e -= f64::from(sign) * self.change(codes, least, tally);
        true
    }

    /// Three keys. Those below the first have gains that do not add up to `need`, those below the second do; below the
    /// third there are half of `most` candidates at least, if there are as many.
    #[inline(always)]
    fn bracket<P: Pick>(&mut self, pick: P, n: usize, need: f64, large: f32, most: usize) -> (f32, f32, f32) {
        let infinite = bucket_of(f32::INFINITY);
        // dearer entries are left out, if that leaves enough: what is found is the same
        let mut limit = self.enough(n, need, large, most);
        let (first, stop, end) = loop {
            let top = bucket_of(limit);
            let lowest = self.sum_gains(pick, n, large, limit);
            // empty buckets add nothing
            let from = if need > 0.0 { lowest } else { 0 };
            let (mut sum, mut stop) = (0.0f64, infinite);
            for (bucket, gain) in (from..top).zip(self.sums.get(from..top).unwrap_or_default()) {
                sum += f64::from(*gain);
                if sum >= need {
                    stop = bucket;
                    break;
                }
            }
            // what lies around the stop is decided one by one, and what is dearer only to meet the leak exactly
            let first = stop.saturating_sub(1);
            self.count(pick, n, edge(first), limit);
            let (mut end, mut seen) = (first, 0);
            while end < top && (end <= stop || seen < most / 2) {
                seen += self.counts[end] as usize;
                end += 1;
            }
            if lowest <= top {
                self.sums[lowest..=top].fill(0.0);
            }
            if first <= top {
                self.counts[first..=top].fill(0);
            }
            if end < top || limit == f32::INFINITY {
                break (first, stop, end);
            }
            limit = finite(2.0 * limit);
        };
        (edge(first), edge(stop + 1), edge(end))
    }

    /// A key below which there are gains of more than `need`, and more than `most` entries, but not many more; found from
    /// what the vector before needed. Infinite where it is not found soon.
    #[inline(always)]
    fn enough(&mut self, n: usize, need: f64, large: f32, most: usize) -> f32 {
        let mut limit = finite((self.reach * need) as f32);
        let mut grown = false;
        for _ in 0..TRIES {
            let (mut sum, mut count) = ([0.0f32; LANES], [0u32; LANES]);
            for (keys, gains) in chunks(&self.key, n).iter().zip(chunks(&self.gain, n)) {
                for lane in 0..LANES {
                    let (near, gain) = (keys[lane] < limit, gains[lane]);
                    sum[lane] += if near & (gain > 0.0) & (gain <= large) { gain } else { 0.0 };
                    count[lane] += u32::from(near);
                }
            }
            let (sum, count) = (f64::from(sum.iter().sum::<f32>()), count.iter().sum::<u32>() as usize);
            if sum < 1.1 * need || count < most {
                (limit, grown) = (finite(1.5 * limit), true);
            } else if sum > 2.5 * need && count > 2 * most && !grown {
                limit *= 0.6;
            } else {
                self.reach = if need > 0.0 { f64::from(limit) / need } else { REACH };
                return limit;
            }
        }
        self.reach = REACH;
        f32::INFINITY
    }

    /// Adds the positive gains up to `large` of the entries whose key is below `limit` to the buckets of their keys, in
    /// the order of the entries. Returns the lowest bucket that was added to, or a number beyond all.
    #[inline(always)]
    fn sum_gains<P: Pick>(&mut self, pick: P, n: usize, large: f32, limit: f32) -> usize {
        let mut count = 0;
        for (run, (keys, gains)) in chunks(&self.key, n).iter().zip(chunks(&self.gain, n)).enumerate() {
            let spent = pick.below(keys, limit) & pick.above(gains, 0.0) & !pick.above(gains, large);
            count += list(pick, spent, run, &mut self.listed[count..]);
        }
        let mut lowest = BUCKETS;
        for &at in &self.listed[..count] {
            let bucket = bucket_of(self.key[at as usize]);
            self.sums[bucket] += self.gain[at as usize];
            lowest = lowest.min(bucket);
        }
        lowest
    }

    /// Counts the entries from the key `low` on and below `limit` in the buckets of their keys.
    #[inline(always)]
    fn count<P: Pick>(&mut self, pick: P, n: usize, low: f32, limit: f32) {
        let mut count = 0;
        for (run, keys) in chunks(&self.key, n).iter().enumerate() {
            let near = pick.below(keys, limit) & !pick.below(keys, low);
            count += list(pick, near, run, &mut self.listed[count..]);
        }
        for &at in &self.listed[..count] {
            self.counts[bucket_of(self.key[at as usize])] += 1;
        }
    }

    /// Moves an entry to its other level, or back; returns what that takes off the leak.
    #[inline(always)]
    fn change(&mut self, codes: &mut [u8], at: usize, tally: &mut Tally) -> f64 {
        self.switch(codes, at, tally);
        let gain = self.gain[at];
        self.gain[at] = -gain;
        self.changed.push(at as u32);
        f64::from(gain)
    }

    /// Moves an entry to its other level, or back.
    #[inline(always)]
    pub(super) fn switch(&mut self, codes: &mut [u8], at: usize, tally: &mut Tally) {
        let (step, delta) = (self.step[at], self.delta[at]);
        codes[at] = (f32::from(codes[at]) + self.turn[at]) as u8;
        tally.error_after += f64::from(step * (step - 2.0 * delta.abs()));
        let after = delta - step.copysign(delta);
        tally.max_levels = tally.max_levels.max(f64::from(after.abs() / step));
        self.delta[at] = after;
        self.turn[at] = -self.turn[at];
    }

    /// Changes the one or two candidates that leave no more than `close` of the leak at least cost, or else those that
    /// leave least; returns what is left.
    #[inline(always)]
    fn meet(&mut self, codes: &mut [u8], left: f64, close: f64, tally: &mut Tally) -> f64 {
        let (gains, step, delta) = (&self.gain, &self.step, &self.delta);
        sort(&mut self.order, self.candidates.iter().map(|&at| (at, gains[at as usize])));
        self.changes.clear();
        self.changes.extend(self.order.iter().map(|&entry| {
            let at = number(entry);
            let cost = step[at] * (step[at] - 2.0 * delta[at].abs());
            Change { at: at as u32, gain: gains[at], cost }
        }));
        let found = best_changes(&self.changes, left, close);
        found.into_iter().flatten().fold(left, |left, at| left - self.change(codes, at as usize, tally))
    }
}

/// The bucket of a key.
#[inline(always)]
fn bucket_of(key: f32) -> usize {
    (key.to_bits() >> BUCKET_SHIFT) as usize % BUCKETS
}

/// The lowest key of a bucket.
#[inline(always)]
fn edge(bucket: usize) -> f32 {
    f32::from_bits((bucket.min(bucket_of(f32::INFINITY)) as u32) << BUCKET_SHIFT)
}

/// A limit of keys; infinite where it is too large to be told from that.
#[inline(always)]
fn finite(limit: f32) -> f32 {
    if limit < 1e30 { limit } else { f32::INFINITY }
}

/// Appends the numbers of the entries of a run whose bit is set to the start of `to`. Returns how many.
#[inline(always)]
fn list<P: Pick>(pick: P, bits: u16, run: usize, to: &mut [u32]) -> usize {
    let room = to.first_chunk_mut().expect("the list has room for a run more");
    pick.list(bits, (run * LANES) as u32, room);
    bits.count_ones() as usize
}
