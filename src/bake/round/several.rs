//! Rounding of one vector for two to four orthonormal directions at once.
//!
//! With the directions as rows of `Q`, `[k, d]`, a column `w` becomes `y = w - Q^T Q w`, and the leak of its rounding is
//! the vector `e = Q (rounded - y)`, `[k]`. An entry `i` that goes to its other level takes `g_i = sign(delta_i) step_i
//! q_i` off the leak, where `q_i` is column `i` of `Q`, and adds `cost_i = step_i (step_i - 2 |delta_i|)` to the squared
//! error. If entries could go in part, the least error would be that of a linear program: minimise `sum x_i cost_i` where
//! `sum x_i g_i = e` and `0 <= x_i <= 1`. Its dual is the largest value of `l.e - sum max(l.g_i - cost_i, 0)` over `l`,
//! `[k]`: a concave function. At its peak the entries with `l.g_i > cost_i` go, and at most `k` go in part (Boyd and
//! Vandenberghe, Convex Optimization, section 5.5.3). The peak is found by Newton's method on a smoothed function. What
//! is left then is met by up to four entries that lie near the boundary, found by a search for two sums of two.

use super::arithmetic::{decode, nearest_sums};
use super::{CLOSE, FAINT, Grid, Tally, Unit, Worker};

/// The largest number of directions that rounding takes off at once.
pub const MOST_DIRECTIONS: usize = 4;

/// A number for each direction. Past the last direction the numbers are zero.
type Each = [f64; MOST_DIRECTIONS];

/// How wide the smoothing of the dual function is in the beginning, as a share of the squared step of an entry.
const WIDEST: f64 = 1.0;

/// How wide it is in the end, at least.
const NARROWEST: f64 = 1.0 / 1024.0;

/// The smoothing gets no narrower when so few entries for each direction go in part.
const FEW_IN_PART: usize = 6;

/// A share of the curvature that all entries together would give, which is added to that of the entries that go in part,
/// so that a step has a bound.
const LEAST_CURVATURE: f64 = 0.005;

/// How often a step that overshoots is halved.
const HALVINGS: i32 = 10;

/// The steps end where the squared length of the gradient is this share of what an entry takes off, squared.
const CONVERGED: f64 = 0.05;

/// Newton steps at one width of the smoothing, at most.
const STEPS: usize = 12;

/// How many entries the last search looks at, by the number of directions.
const POOL: [usize; MOST_DIRECTIONS + 1] = [0, 48, 72, 96, 160];

/// How many of the entries that go are left to the last search. Where every entry takes something off the leak, what was
/// taken too much could not be put back.
const HELD_BACK: usize = 2;

/// The last search is begun where the leak is this many times what an entry takes off, at most.
const IN_REACH: f64 = 2.5;

/// How many pools are looked at for a solution before a little more is left.
const POOLS: usize = 4;

/// How many sums of up to four entries one search compares with the leak, at most.
const COMPARISONS: usize = 1 << 19;

/// How far beyond the leak that is allowed the last search goes where nothing comes closer, in doublings.
const DOUBLINGS: usize = 8;

/// An entry that can go to its other level.
#[derive(Debug, Clone, Copy)]
struct Entry {
    at: u32,
    /// What going takes off the leak; once it has gone, what going back takes off.
    takes: Each,
    /// What going adds to the squared error.
    cost: f64,
    /// Squared distance of the two levels.
    square: f64,
    /// `l.g - cost`: entries above zero go.
    margin: f64,
}

/// The sum of up to two entries of a pool.
#[derive(Debug, Clone, Copy)]
struct Sum {
    takes: Each,
    /// How much more error the entries bring than others that would take as much off the leak.
    price: f64,
    /// Positions in the pool; [`NONE`] where there is no such entry.
    entries: [u16; 2],
}

const NONE: u16 = u16::MAX;

impl Sum {
    fn meets(&self, other: &Self) -> bool {
        self.entries.iter().any(|one| *one != NONE && other.entries.contains(one))
    }
}

/// Buffers for the rounding of one vector for several directions.
#[derive(Debug, Default)]
pub(super) struct Several {
    /// The vector before the edit.
    original: Vec<f32>,
    entries: Vec<Entry>,
    /// Sums of up to two entries, in the order of what they take off along one direction.
    sums: Vec<Sum>,
    /// Positions in `sums`, by rising price.
    by_price: Vec<u32>,
    /// Sum of squares of each component over the vectors so far.
    seen: Each,
    /// Number of these vectors.
    vectors: u32,
}

/// The smoothed dual function at one place.
struct Dual {
    value: f64,
    gradient: Each,
    /// The negative second derivative.
    curvature: [Each; MOST_DIRECTIONS],
    /// How many entries go in part.
    in_part: usize,
}

impl Worker {
    /// Computes `y = w - Q^T Q w` of a vector in the value buffer; returns the components `Q w` and the length of `w`.
    ///
    /// # Errors
    /// `NotFinite` if a scale or a zero point is NaN or infinite.
    pub(super) fn ablate_several(
        &mut self,
        codes: &[u8],
        grid: Grid<'_>,
        units: &[Unit],
    ) -> Result<(Each, f64), crate::bake::kernel::NotFinite> {
        let (_, length) = decode(codes, grid, &units[0].r, &mut self.value);
        let value = &mut self.value[..codes.len()];
        let mut components = [0.0; MOST_DIRECTIONS];
        for (component, unit) in components.iter_mut().zip(units) {
            *component = product(&unit.r, value);
        }
        if !components.iter().all(|component| component.is_finite()) {
            return Err(crate::bake::kernel::NotFinite);
        }
        self.several.original.clear();
        self.several.original.extend_from_slice(value);
        for (at, value) in value.iter_mut().enumerate() {
            let taken: f64 = units.iter().zip(components).map(|(unit, c)| f64::from(unit.r[at]) * c).sum();
            *value = (f64::from(*value) - taken) as f32;
        }
        Ok((components, length))
    }

    /// Ablates several directions from one vector and rounds it. As [`Self::round`] otherwise.
    pub(super) fn round_several(
        &mut self,
        codes: &mut [u8],
        grid: Grid<'_>,
        units: &[Unit],
    ) -> Result<Tally, crate::bake::kernel::NotFinite> {
        let (components, length) = self.ablate_several(codes, grid, units)?;
        let n = codes.len();
        self.several.vectors += 1;
        let share = if units.len() > 2 { 2.0 * CLOSE } else { CLOSE };
        // the first vectors alone would tell little of what is typical along one direction
        let all = square(&components) / units.len() as f64;
        let mut close = [f64::INFINITY; MOST_DIRECTIONS];
        for (index, close) in close.iter_mut().enumerate().take(units.len()) {
            self.several.seen[index] += components[index].powi(2);
            let typical = ((self.several.seen[index] + all) / f64::from(self.several.vectors + 1)).sqrt();
            *close = share * typical.max(components[index].abs());
        }
        let mut tally = Tally { leak_before: square(&components), ..Tally::default() };
        // what is rounded has been ablated already
        self.nearest(codes, grid, &units[0].r, 0.0, &mut tally);
        let leak = |delta: &[f32]| -> Each {
            std::array::from_fn(|index| units.get(index).map_or(0.0, |unit| product(&unit.r, delta)))
        };
        let mut left = leak(&self.delta[..n]);
        tally.leak_nearest = square(&left);
        if grid.grown {
            let before = Grid { scale: grid.before, ..grid };
            tally.leak_nearest = 0.0;
            for unit in units {
                let (leak, error) = nearest_sums(&self.value[..n], &unit.r, 0.0, before);
                tally.leak_nearest += leak * leak;
                tally.error_nearest = error;
            }
        }
        let faint = FAINT * length / (units[0].width as f64).sqrt();
        if left.iter().zip(close).any(|(left, close)| left.abs() > close.max(faint)) {
            self.spend_several(codes, units, left, &close, &mut tally);
            left = leak(&self.delta[..n]);
        }
        tally.leak_after = square(&left);
        let moved = self.value.iter().zip(&self.delta).zip(&self.several.original);
        tally.max_abs_delta = moved.fold(0.0, |most, ((y, delta), w)| most.max(f64::from((y + delta - w).abs())));
        Ok(tally)
    }

    /// Sends entries to their other levels until along no direction more than `close` of the leak is left, at nearly the
    /// least error.
    fn spend_several(&mut self, codes: &mut [u8], units: &[Unit], leak: Each, close: &Each, tally: &mut Tally) {
        self.list_entries(units);
        let mut entries = std::mem::take(&mut self.several.entries);
        find_margins(&mut entries, &leak, units.len());
        let mut left = leak;
        entries.sort_unstable_by(|a, b| a.margin.abs().total_cmp(&b.margin.abs()).then(a.at.cmp(&b.at)));
        let going = entries.iter_mut().filter(|entry| entry.margin > 0.0);
        for entry in going.skip(HELD_BACK) {
            self.send(codes, entry, &mut left, tally);
        }
        // the first pools have to come as near as is allowed, the others as near as can be
        let strict = (0..POOLS).map(|number| (number, 1.0));
        let lenient = (1..=DOUBLINGS).map(|doubling| (doubling, 2f64.powi(doubling as i32)));
        let size = POOL[units.len()];
        for (number, wider) in strict.chain(lenient) {
            let allowed = close.map(|close| close * wider);
            if left.iter().zip(allowed).all(|(left, allowed)| left.abs() <= allowed) {
                break;
            }
            let places = pool(entries.len(), size, number);
            let mut some: Vec<Entry> = places.iter().map(|place| entries[*place]).collect();
            let cheap = some.len().min(size / 2);
            self.approach(codes, &mut some[..cheap], &mut left, tally);
            let met = self.search(codes, &mut some, &mut left, &allowed, tally);
            for (place, entry) in places.into_iter().zip(some) {
                entries[place] = entry;
            }
            if met {
                break;
            }
        }
        self.several.entries = entries;
    }

    /// Collects the entries that can go to another level.
    fn list_entries(&mut self, units: &[Unit]) {
        self.several.entries.clear();
        for (at, ((delta, step), turn)) in self.delta.iter().zip(&self.step).zip(&self.turn).enumerate() {
            // an entry that lies on its level would come to lie a whole level off
            if *turn == 0.0 || delta.abs() <= 2e-5 * step {
                continue;
            }
            let (delta, step) = (f64::from(*delta), f64::from(*step));
            let mut takes = [0.0; MOST_DIRECTIONS];
            for (takes, unit) in takes.iter_mut().zip(units) {
                *takes = f64::from(unit.r[at]) * step.copysign(delta);
            }
            let cost = (step * (step - 2.0 * delta.abs())).max(0.0);
            self.several.entries.push(Entry { at: at as u32, takes, cost, square: step * step, margin: -cost });
        }
    }

    /// Sends an entry to its other level, or back.
    fn send(&mut self, codes: &mut [u8], entry: &mut Entry, left: &mut Each, tally: &mut Tally) {
        self.switch(codes, entry.at as usize, tally);
        for (left, takes) in left.iter_mut().zip(&mut entry.takes) {
            *left -= *takes;
            *takes = -*takes;
        }
        entry.margin = -entry.margin.abs();
    }

    /// Sends single entries of the pool until the leak is within reach of the last search, or no nearer to it.
    fn approach(&mut self, codes: &mut [u8], pool: &mut [Entry], left: &mut Each, tally: &mut Tally) {
        let typical = pool.iter().map(|entry| square(&entry.takes)).sum::<f64>() / pool.len().max(1) as f64;
        while square(left) > IN_REACH.powi(2) * typical {
            let after = |entry: &Entry| square(&std::array::from_fn(|index| left[index] - entry.takes[index]));
            let best = pool.iter().map(after).enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b));
            match best {
                Some((at, after)) if after < square(left) => self.send(codes, &mut pool[at], left, tally),
                _ => break,
            }
        }
    }

    /// Finds up to four entries of the pool that together leave no more than `close`, at a low price, and sends them.
    /// Returns whether it found such.
    fn search(
        &mut self,
        codes: &mut [u8],
        pool: &mut [Entry],
        left: &mut Each,
        close: &Each,
        tally: &mut Tally,
    ) -> bool {
        let reach = |axis: usize| pool.iter().map(|entry| entry.takes[axis].abs()).sum::<f64>() / close[axis];
        // the direction along which the sums are told apart best
        let axis = (0..MOST_DIRECTIONS).max_by(|a, b| reach(*a).total_cmp(&reach(*b))).unwrap_or(0);
        let (sums, by_price) = (&mut self.several.sums, &mut self.several.by_price);
        list_sums(pool, axis, sums);
        by_price.clear();
        by_price.extend(0..sums.len() as u32);
        by_price.sort_unstable_by(|a, b| sums[*a as usize].price.total_cmp(&sums[*b as usize].price).then(a.cmp(b)));
        let mut best: Option<(f64, [u16; 4])> = None;
        let (mut compared, mut last) = (0, COMPARISONS);
        for first in by_price.iter().map(|index| &sums[*index as usize]) {
            if compared >= last || best.is_some_and(|(price, _)| first.price >= price) {
                break;
            }
            let wanted: Each = std::array::from_fn(|index| left[index] - first.takes[index]);
            let low = sums.partition_point(|sum| sum.takes[axis] < wanted[axis] - close[axis]);
            for second in &sums[low..] {
                if second.takes[axis] > wanted[axis] + close[axis] {
                    break;
                }
                compared += 1;
                let near = (0..MOST_DIRECTIONS).all(|at| (wanted[at] - second.takes[at]).abs() <= close[at]);
                let price = first.price + second.price;
                if near && best.is_none_or(|(least, _)| price < least) && !first.meets(second) {
                    if best.is_none() {
                        // as much again for a cheaper one
                        last = last.min(2 * compared);
                    }
                    let [[a, b], [c, d]] = [first.entries, second.entries];
                    best = Some((price, [a, b, c, d]));
                }
            }
        }
        let Some((_, found)) = best else { return false };
        for at in found.into_iter().filter(|at| *at != NONE) {
            self.send(codes, &mut pool[usize::from(at)], left, tally);
        }
        true
    }
}

/// Places of a pool of at most `size` entries among `count` that are sorted by the size of their margins. Half of it are
/// entries next to the boundary, which cost least. What these take off may be nearly a multiple of each other, where
/// scales are all alike, so the other half is a sample of the rest. Each `number` has entries of its own.
fn pool(count: usize, size: usize, number: usize) -> Vec<usize> {
    let half = size / 2;
    let near = (number * half).min(count)..((number + 1) * half).min(count);
    let stride = count.div_ceil(size - near.len()).max(1);
    let sample = (number % stride..count).step_by(stride).filter(|place| !near.contains(place));
    near.clone().chain(sample).take(size).collect()
}

/// All sums of none, one and two entries of the pool, by what they take off along direction `axis`.
fn list_sums(pool: &[Entry], axis: usize, sums: &mut Vec<Sum>) {
    sums.clear();
    sums.push(Sum { takes: [0.0; MOST_DIRECTIONS], price: 0.0, entries: [NONE; 2] });
    for (a, one) in pool.iter().enumerate() {
        sums.push(Sum { takes: one.takes, price: one.margin.abs(), entries: [a as u16, NONE] });
        for (b, other) in pool.iter().enumerate().skip(a + 1) {
            let takes = std::array::from_fn(|index| one.takes[index] + other.takes[index]);
            let price = one.margin.abs() + other.margin.abs();
            sums.push(Sum { takes, price, entries: [a as u16, b as u16] });
        }
    }
    sums.sort_unstable_by(|a, b| a.takes[axis].total_cmp(&b.takes[axis]).then(a.entries.cmp(&b.entries)));
}

/// Solves the dual of the linear program for a leak along `count` directions, and gives each entry its margin.
fn find_margins(entries: &mut [Entry], leak: &Each, count: usize) {
    let mut multipliers = [0.0; MOST_DIRECTIONS];
    let mut width = WIDEST;
    let typical = entries.iter().map(|entry| square(&entry.takes)).sum::<f64>() / entries.len().max(1) as f64;
    // the curvature if all entries went in part, at a width of one
    let mut most = [[0.0; MOST_DIRECTIONS]; MOST_DIRECTIONS];
    for entry in &*entries {
        for (row, takes) in most.iter_mut().zip(entry.takes) {
            row.iter_mut().zip(entry.takes).for_each(|(cell, other)| *cell += takes * other / (2.0 * entry.square));
        }
    }
    loop {
        let mut now = dual(entries, leak, &multipliers, width);
        for _ in 0..STEPS {
            if square(&now.gradient) <= CONVERGED * typical {
                break;
            }
            let mut curvature = now.curvature;
            for (row, most) in curvature.iter_mut().flatten().zip(most.iter().flatten()) {
                *row += LEAST_CURVATURE * most / width;
            }
            let Some(step) = solve(curvature, now.gradient, count) else { break };
            let further = (0..HALVINGS).map(|halving| {
                let size = 0.5f64.powi(halving);
                let there: Each = std::array::from_fn(|index| multipliers[index] + size * step[index]);
                (there, dual(entries, leak, &there, width))
            });
            let Some((there, next)) = further.into_iter().find(|(_, next)| next.value > now.value) else { break };
            (multipliers, now) = (there, next);
        }
        let few = now.in_part <= FEW_IN_PART * count && square(&now.gradient) <= CONVERGED * typical;
        if few || width <= NARROWEST {
            break;
        }
        width /= 2.0;
    }
    for entry in entries {
        entry.margin = inner(&multipliers, &entry.takes) - entry.cost;
    }
}

/// The dual function with corners that are rounded over `width` of each entry's squared step on both sides.
fn dual(entries: &[Entry], leak: &Each, multipliers: &Each, width: f64) -> Dual {
    let mut at = Dual {
        value: inner(multipliers, leak),
        gradient: *leak,
        curvature: [[0.0; MOST_DIRECTIONS]; MOST_DIRECTIONS],
        in_part: 0,
    };
    for entry in entries {
        let margin = inner(multipliers, &entry.takes) - entry.cost;
        let half = width * entry.square;
        if margin <= -half {
            continue;
        }
        let share = (margin / (2.0 * half) + 0.5).min(1.0);
        at.value -= if share < 1.0 { half * share * share } else { margin };
        for (gradient, takes) in at.gradient.iter_mut().zip(entry.takes) {
            *gradient -= share * takes;
        }
        if share < 1.0 {
            at.in_part += 1;
            for (row, takes) in at.curvature.iter_mut().zip(entry.takes) {
                for (cell, other) in row.iter_mut().zip(entry.takes) {
                    *cell += takes * other / (2.0 * half);
                }
            }
        }
    }
    at
}

/// The solution of `matrix x = vector` in the first `count` dimensions by Cholesky's factors, after a little was added to
/// the diagonal; none where the matrix is zero.
fn solve(matrix: [Each; MOST_DIRECTIONS], vector: Each, count: usize) -> Option<Each> {
    let trace: f64 = (0..count).map(|index| matrix[index][index]).sum();
    if trace <= 0.0 || !trace.is_finite() {
        return None;
    }
    let mut lower = [[0.0; MOST_DIRECTIONS]; MOST_DIRECTIONS];
    let mut solution = [0.0; MOST_DIRECTIONS];
    for row in 0..count {
        for column in 0..=row {
            let ridge = if row == column { 1e-6 * trace } else { 0.0 };
            let known: f64 = (0..column).map(|at| lower[row][at] * lower[column][at]).sum();
            let rest = matrix[row][column] + ridge - known;
            lower[row][column] =
                if row == column { rest.max(1e-9 * trace).sqrt() } else { rest / lower[column][column] };
        }
        let known: f64 = (0..row).map(|at| lower[row][at] * solution[at]).sum();
        solution[row] = (vector[row] - known) / lower[row][row];
    }
    for row in (0..count).rev() {
        let known: f64 = (row + 1..count).map(|at| lower[at][row] * solution[at]).sum();
        solution[row] = (solution[row] - known) / lower[row][row];
    }
    Some(solution)
}

fn inner(a: &Each, b: &Each) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn square(each: &Each) -> f64 {
    inner(each, each)
}

/// The product of a direction and a vector, both padded, in float64.
fn product(r: &[f32], vector: &[f32]) -> f64 {
    r.iter().zip(vector).map(|(r, v)| f64::from(*r) * f64::from(*v)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::tests::normal;
    use super::super::{Levels, Worker};
    use super::*;
    use crate::edit::{Ablation, Direction};

    /// Orthonormal directions, `[count, d]`.
    fn directions(count: usize, d: usize) -> Vec<Vec<f64>> {
        let raw = (0..count).map(|index| Direction::new(normal(40 + index as u64, d)).unwrap()).collect();
        Ablation::of_span(raw).unwrap().vectors().iter().map(|one| one.unit().to_vec()).collect()
    }

    /// Vectors of codes of `bits` bits, `[columns, d]`, all of one grid: the value of code `n` is `(n - zero) * scale`.
    struct Codes {
        columns: Vec<Vec<u8>>,
        d: usize,
        zero: f64,
        scale: f64,
        highest: f64,
    }

    impl Codes {
        fn new(d: usize, bits: u32, columns: u64) -> Self {
            let highest = f64::from((1u32 << bits) - 1);
            let (zero, scale) = (f64::from(1u32 << (bits - 1)), 7.0 / (highest + 1.0));
            let code = |v: f64| (v / scale + zero).round().clamp(0.0, highest) as u8;
            let columns = (0..columns).map(|at| normal(900 + at, d).into_iter().map(code).collect()).collect();
            Self { columns, d, zero, scale, highest }
        }

        fn values(&self, codes: &[u8]) -> Vec<f64> {
            codes.iter().map(|code| (f64::from(*code) - self.zero) * f64::from(self.scale as f32)).collect()
        }

        /// Rounds every column by [`Worker::round_several`]; what that did to each.
        fn round(&mut self, units: &[Unit]) -> Vec<Tally> {
            let padded = units[0].padded();
            let mut scale = vec![self.scale as f32; padded];
            scale[self.d..].fill(0.0);
            let zero = vec![self.zero as f32; padded];
            let levels = Levels::Integer { zero: &zero, lowest: 0.0, highest: self.highest as f32 };
            let grid = Grid { before: &scale, scale: &scale, grown: false, levels };
            let mut worker = Worker::new(padded);
            let mut round = |codes: &mut Vec<u8>| {
                codes.resize(padded, 0);
                let tally = worker.round_several(codes, grid, units).unwrap();
                codes.truncate(self.d);
                tally
            };
            self.columns.iter_mut().map(&mut round).collect()
        }
    }

    fn product(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// A number that no rounding can have a smaller squared error than, if it leaves no leak along the directions and every
    /// entry within a level of its exact value `y`: the value of the dual of the linear program, which is such a bound
    /// wherever it is taken.
    fn least_error(y: &[f64], directions: &[Vec<f64>], codes: &Codes) -> f64 {
        let mut leak = [0.0; MOST_DIRECTIONS];
        let (mut nearest, mut entries) = (0.0, Vec::new());
        for (at, y) in y.iter().enumerate() {
            let scaled = y / codes.scale + codes.zero;
            let code = scaled.round().clamp(0.0, codes.highest);
            let delta = (code - scaled) * codes.scale;
            nearest += delta * delta;
            for (leak, r) in leak.iter_mut().zip(directions) {
                *leak += r[at] * delta;
            }
            let other = code - delta.signum();
            if !(0.0..=codes.highest).contains(&other) {
                continue;
            }
            let mut takes = [0.0; MOST_DIRECTIONS];
            for (takes, r) in takes.iter_mut().zip(directions) {
                *takes = r[at] * codes.scale * delta.signum();
            }
            let cost = codes.scale * (codes.scale - 2.0 * delta.abs());
            entries.push(Entry { at: at as u32, takes, cost, square: codes.scale.powi(2), margin: 0.0 });
        }
        find_margins(&mut entries, &leak, directions.len());
        // the multipliers out of the margins: `l.g = margin + cost`, by least squares over all entries
        let count = directions.len();
        let mut matrix = [[0.0; MOST_DIRECTIONS]; MOST_DIRECTIONS];
        let mut vector = [0.0; MOST_DIRECTIONS];
        for Entry { takes, margin, cost, .. } in &entries {
            for ((row, sum), own) in matrix.iter_mut().zip(&mut vector).zip(takes) {
                *sum += own * (margin + cost);
                row.iter_mut().zip(takes).for_each(|(cell, other)| *cell += own * other);
            }
        }
        let multipliers = solve(matrix, vector, count).unwrap();
        let gone: f64 = entries.iter().map(|e| (inner(&multipliers, &e.takes) - e.cost).max(0.0)).sum();
        nearest + inner(&multipliers, &leak) - gone
    }

    #[test]
    fn every_leak_vanishes_at_nearly_the_least_error() {
        for (count, bits, d, most_leak, most_error) in [
            (2, 4, 256, 1e-3, 1.06),
            (2, 4, 1024, 1e-3, 1.03),
            (3, 4, 576, 1e-3, 1.03),
            (4, 4, 576, 1e-3, 1.04),
            (4, 4, 1024, 1e-3, 1.03),
            (4, 8, 576, 1e-3, 1.01),
            (2, 2, 576, 1e-2, 1.20),
            (4, 2, 1024, 1e-2, 1.15),
        ] {
            let directions = directions(count, d);
            let units: Vec<Unit> = directions.iter().map(|r| Unit::new(r)).collect();
            let mut codes = Codes::new(d, bits, 24);
            let before = codes.columns.clone();
            let tallies = codes.round(&units);
            let (mut leaks, mut components, mut error, mut least) = ([0.0; 4], [0.0; 4], 0.0, 0.0);
            for ((was, is), tally) in before.iter().zip(&codes.columns).zip(&tallies) {
                // by plain arithmetic in float64
                let (was, is) = (codes.values(was), codes.values(is));
                let mut exact = was.clone();
                for r in &directions {
                    let c = product(r, &was);
                    exact.iter_mut().zip(r).for_each(|(y, r)| *y -= c * r);
                }
                let mut leak = 0.0;
                for (index, r) in directions.iter().enumerate() {
                    components[index] += product(r, &was).powi(2);
                    leaks[index] += product(r, &is).powi(2);
                    leak += product(r, &is).powi(2);
                }
                let off: Vec<f64> = is.iter().zip(&exact).map(|(is, exact)| is - exact).collect();
                let moved = is.iter().zip(&was).map(|(is, was)| (is - was).abs()).fold(0.0, f64::max);
                let levels = off.iter().map(|off| off.abs() / codes.scale).fold(0.0, f64::max);
                assert!((tally.leak_after.sqrt() - leak.sqrt()).abs() < 1e-5, "{} {leak}", tally.leak_after);
                assert!((tally.error_after - product(&off, &off)).abs() < 1e-4 * tally.error_after);
                assert!((tally.max_abs_delta - moved).abs() < 1e-5, "{} {moved}", tally.max_abs_delta);
                // entries that went and came back are counted too
                assert!(levels < tally.max_levels + 1e-3 && tally.max_levels <= levels.max(1.0) + 1e-3);
                // values beyond the grid take its outermost level
                let beyond = |y: &f64| !(-0.5..codes.highest + 0.5).contains(&(y / codes.scale + codes.zero));
                assert!(levels <= 1.001 || exact.iter().any(beyond), "{levels}");
                error += product(&off, &off);
                least += least_error(&exact, &directions, &codes);
            }
            let case = format!("{count} directions, {bits} bits, {d} wide");
            for (leak, component) in leaks.iter().zip(components).take(count) {
                assert!((leak / component).sqrt() < most_leak, "{case}: {}", (leak / component).sqrt());
            }
            assert!(error.sqrt() < most_error * least.sqrt(), "{case}: {}", (error / least).sqrt());
        }
    }

    #[test]
    fn one_direction_is_rounded_as_well_as_by_the_faster_way() {
        for bits in [4, 8] {
            let directions = directions(1, 512);
            let units: Vec<Unit> = directions.iter().map(|r| Unit::new(r)).collect();
            let mut codes = Codes::new(512, bits, 24);
            let mut again = Codes::new(512, bits, 24);
            let error: f64 = codes.round(&units).iter().map(|tally| tally.error_after).sum();
            let padded = units[0].padded();
            let zero = vec![again.zero as f32; padded];
            let scale = vec![again.scale as f32; padded];
            let levels = Levels::Integer { zero: &zero, lowest: 0.0, highest: again.highest as f32 };
            let grid = Grid { before: &scale, scale: &scale, grown: false, levels };
            let mut worker = Worker::new(padded);
            let other: f64 =
                again.columns.iter_mut().map(|codes| worker.round(codes, grid, &units).unwrap().error_after).sum();
            assert!(error < 1.02 * other && other < 1.05 * error, "{bits} bits: {error} {other}");
        }
    }

    #[test]
    fn a_second_bake_changes_nothing() {
        for (count, bits) in [(2, 4), (3, 8), (4, 4)] {
            let directions = directions(count, 512);
            let units: Vec<Unit> = directions.iter().map(|r| Unit::new(r)).collect();
            let mut codes = Codes::new(512, bits, 48);
            let first = codes.columns.clone();
            codes.round(&units);
            let once = codes.columns.clone();
            assert_ne!(first, once);
            codes.round(&units);
            assert_eq!(once, codes.columns, "{count} directions, {bits} bits");
        }
    }

    /// Where the entries that can move cannot make up for the leak, what is left is as small as they allow, and no entry
    /// is off by more than a level.
    #[test]
    fn a_leak_that_cannot_be_met_is_left() {
        let mut directions = vec![vec![0.0; 64]; 2];
        // nothing but one entry lies along each of them
        (directions[0][3], directions[1][40]) = (1.0, 1.0);
        let units: Vec<Unit> = directions.iter().map(|r| Unit::new(r)).collect();
        // and zero lies between two levels
        let mut codes = Codes { zero: 7.5, ..Codes::new(64, 4, 8) };
        let half = (codes.scale / 2.0).powi(2);
        for tally in codes.round(&units) {
            assert!((tally.leak_after - 2.0 * half).abs() < 1e-6 && tally.max_levels <= 0.5001, "{tally:?}");
        }
    }
}
