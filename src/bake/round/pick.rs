//! Which entries of a run fulfil a condition, and the list of them: by vector instructions where the processor has such
//! as make lists, else one by one. Both find the same.

use super::LANES;

/// The numbers of the lanes.
#[cfg(target_arch = "x86_64")]
const NUMBERS: [u32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// A way to compare a run of entries and to list those that are wanted.
pub(super) trait Pick: Copy {
    /// A bit for each entry that is below `limit`.
    fn below(self, values: &[f32; LANES], limit: f32) -> u16;

    /// A bit for each entry that is above `limit`.
    fn above(self, values: &[f32; LANES], limit: f32) -> u16;

    /// Writes the numbers of the entries whose bit is set to the start of `list`, in rising order; what lies after them
    /// there is of no meaning. The run's first entry has the number `first`.
    fn list(self, bits: u16, first: u32, list: &mut [u32; LANES]);
}

/// One by one.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Pick for Plain {
    #[inline(always)]
    fn below(self, values: &[f32; LANES], limit: f32) -> u16 {
        values.iter().rev().fold(0, |bits, &value| bits << 1 | u16::from(value < limit))
    }

    #[inline(always)]
    fn above(self, values: &[f32; LANES], limit: f32) -> u16 {
        values.iter().rev().fold(0, |bits, &value| bits << 1 | u16::from(value > limit))
    }

    #[inline(always)]
    fn list(self, bits: u16, first: u32, list: &mut [u32; LANES]) {
        // without a branch: which of them are wanted is anything but regular
        let mut count = 0;
        for lane in 0..LANES {
            list[count] = first + lane as u32;
            count = (count + usize::from(bits >> lane & 1)).min(LANES - 1);
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Pick for pulp::x86::V4 {
    #[inline(always)]
    fn below(self, values: &[f32; LANES], limit: f32) -> u16 {
        let limit = self.avx512f._mm512_set1_ps(limit);
        self.avx512f._mm512_cmp_ps_mask::<{ std::arch::x86_64::_CMP_LT_OQ }>(pulp::cast(*values), limit)
    }

    #[inline(always)]
    fn above(self, values: &[f32; LANES], limit: f32) -> u16 {
        let limit = self.avx512f._mm512_set1_ps(limit);
        self.avx512f._mm512_cmp_ps_mask::<{ std::arch::x86_64::_CMP_GT_OQ }>(pulp::cast(*values), limit)
    }

    #[inline(always)]
    fn list(self, bits: u16, first: u32, list: &mut [u32; LANES]) {
        let first = self.avx512f._mm512_set1_epi32(first.cast_signed());
        let numbers = self.avx512f._mm512_add_epi32(first, pulp::cast(NUMBERS));
        *list = pulp::cast(self.avx512f._mm512_maskz_compress_epi32(bits, numbers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pick: impl Pick) {
        for seed in 0..200u32 {
            let values: [f32; LANES] = std::array::from_fn(|lane| match (seed * 31 + lane as u32 * 17) % 7 {
                0 => f32::NAN,
                1 => f32::INFINITY,
                n => n as f32 - 3.0,
            });
            for limit in [-1.0, 0.0, 2.0, f32::INFINITY] {
                let wanted = |hold: &dyn Fn(f32) -> bool| {
                    (0..LANES).filter(|&lane| hold(values[lane])).map(|lane| 100 + lane as u32).collect::<Vec<_>>()
                };
                let listed = |bits: u16| {
                    let mut list = [0; LANES];
                    pick.list(bits, 100, &mut list);
                    list[..bits.count_ones() as usize].to_vec()
                };
                assert_eq!(listed(pick.below(&values, limit)), wanted(&|value| value < limit));
                assert_eq!(listed(pick.above(&values, limit)), wanted(&|value| value > limit));
            }
        }
    }

    #[test]
    fn the_wanted_are_listed_in_order() {
        check(Plain);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V4::try_new() {
            check(simd);
        }
    }
}
