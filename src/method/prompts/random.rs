//! Python's `random.Random`, as far as the published choice of prompts needs it.

use std::collections::HashSet;

use rand_mt::Mt;

/// CPython's `random.Random` for integer seeds: the same numbers as `random.seed(seed)` followed by
/// `random.sample` gives (checked against 3.11).
#[derive(Debug, Clone)]
pub struct PythonRandom {
    mt: Mt,
}

impl PythonRandom {
    /// `random.seed(seed)`: the 32-bit digits of the seed, least first, key the Mersenne Twister.
    pub fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let mt = if high == 0 { Mt::new_with_key([low]) } else { Mt::new_with_key([low, high]) };
        Self { mt }
    }

    /// `random.getrandbits(bits)` for 1 to 64 bits: words from the least significant up, of the last the high
    /// bits.
    fn bits(&mut self, bits: u32) -> u64 {
        if bits <= 32 {
            return u64::from(self.mt.next_u32() >> (32 - bits));
        }
        let low = u64::from(self.mt.next_u32());
        low | u64::from(self.mt.next_u32() >> (64 - bits)) << 32
    }

    /// `random._randbelow_with_getrandbits(n)`: 0 to `n - 1`; 0 for an `n` of 0.
    fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        if n == 0 {
            return 0;
        }
        let bits = u64::BITS - n.leading_zeros();
        loop {
            let value = self.bits(bits);
            if value < n {
                return usize::try_from(value).expect("it is below a usize");
            }
        }
    }

    /// `random.sample(range(n), k)`, with `k` at most `n`: `k` different indices, in the order drawn.
    pub fn sample_indices(&mut self, n: usize, k: usize) -> Vec<usize> {
        let k = k.min(n);
        // From here on as CPython chooses: a list of all, or a set of those already taken.
        let mut set_size = 21;
        if k > 5 {
            let mut table = 1_usize;
            while table < k.saturating_mul(3) {
                table = table.saturating_mul(4);
            }
            set_size = table.saturating_add(set_size);
        }
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let chosen = pool[j];
                    pool[j] = pool[n - i - 1];
                    chosen
                })
                .collect()
        } else {
            let mut taken = HashSet::with_capacity(k);
            (0..k)
                .map(|_| {
                    loop {
                        let j = self.below(n);
                        if taken.insert(j) {
                            return j;
                        }
                    }
                })
                .collect()
        }
    }
}

#[cfg(test)]
#[path = "random_tests.rs"]
mod tests;
