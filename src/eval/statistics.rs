//! Intervals for what was measured on a sample of prompts: a rate, the drop of a rate between two runs on the
//! same prompts, a mean.
//!
//! * A rate: Wilson's score interval (Wilson, *JASA* 22, 1927; Newcombe, *Statistics in Medicine* 17, 1998,
//!   p. 857, method 3).
//! * A paired drop: Tango's score interval (Tango, *Statistics in Medicine* 17, 1998, p. 891, section 3). We take
//!   it and not Newcombe's method 10 (ibid., p. 2635) because the guard lives where nearly nothing changed:
//!   with no discordant pair and a base rate within (0, 1), method 10 shrinks to a point, whatever the number of
//!   prompts, while the score bound stays at `z^2 / (n + z^2)`, what Wilson gives for none of `n`. At a
//!   difference of zero it agrees with McNemar's test.
//! * Whether a paired drop is more than chance: McNemar's exact test ([`Paired::mcnemar`]).
//! * A mean, and the mean of paired differences: percentile bootstrap (Efron and Tibshirani, *An Introduction to
//!   the Bootstrap*, 1993, section 13.3), with a seeded Mersenne Twister, so the same values and seed give the
//!   same interval on every machine.
//!
//! Rates and shares are in `[0, 1]`, never per cent; a confidence is in `(0, 1)`.

use rand_mt::Mt64;
use serde::{Deserialize, Serialize};

/// Confidence of every interval that a report holds.
pub const CONFIDENCE: f64 = 0.95;

/// An interval, both ends included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Quantile of the standard normal distribution (Wichura, algorithm AS 241, *Applied Statistics* 37, 1988), to
/// about 1e-15. Infinite at 0 and 1, NaN outside.
#[allow(clippy::excessive_precision)] // digits as published
pub fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 8] = [
        3.387132872796366608,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ];
    const B: [f64; 8] = [
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ];
    const C: [f64; 8] = [
        1.42343711074968357734,
        4.63033784615654529590,
        5.76949722146069140550,
        3.64784832476320460504,
        1.27045825245236838258,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ];
    const D: [f64; 8] = [
        1.0,
        2.05319162663775882187,
        1.67638483018380384940,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ];
    const E: [f64; 8] = [
        6.65790464350110377720,
        5.46378491116411436990,
        1.78482653991729133580,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ];
    const F: [f64; 8] = [
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ];
    let ratio = |top: &[f64; 8], bottom: &[f64; 8], x: f64| {
        let value = |c: &[f64; 8]| c.iter().rev().fold(0.0, |sum, c| sum * x + c);
        value(top) / value(bottom)
    };
    if !(0.0..=1.0).contains(&p) {
        return f64::NAN;
    }
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        return q * ratio(&A, &B, 0.180625 - q * q);
    }
    let tail = p.min(1.0 - p);
    if tail == 0.0 {
        return f64::INFINITY.copysign(q);
    }
    let r = (-tail.ln()).sqrt();
    let size = if r <= 5.0 { ratio(&C, &D, r - 1.6) } else { ratio(&E, &F, r - 5.0) };
    size.copysign(q)
}

/// `z` of a two-sided interval.
fn two_sided(confidence: f64) -> f64 {
    normal_quantile(0.5 + confidence / 2.0)
}

/// Wilson's score interval of a rate: `(k + z^2/2 -+ z sqrt(k (n-k)/n + z^2/4)) / (n + z^2)`.
///
/// None where `n` is 0, `k` is above it, or the confidence is not in `(0, 1)`.
pub fn wilson(k: usize, n: usize, confidence: f64) -> Option<Interval> {
    if n == 0 || k > n || !is_confidence(confidence) {
        return None;
    }
    let (k, n, z) = (k as f64, n as f64, two_sided(confidence));
    let centre = k + z * z / 2.0;
    let half = z * (k * (n - k) / n + z * z / 4.0).sqrt();
    let low = if k == 0.0 { 0.0 } else { ((centre - half) / (n + z * z)).max(0.0) };
    let high = if k == n { 1.0 } else { ((centre + half) / (n + z * z)).min(1.0) };
    Some(Interval { low, high })
}

fn is_confidence(confidence: f64) -> bool {
    confidence > 0.0 && confidence < 1.0
}

/// How often something held before and after a change, on the same prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Paired {
    /// Before and after.
    pub both: usize,
    /// Before, not after.
    pub lost: usize,
    /// After, not before.
    pub gained: usize,
    /// Neither.
    pub neither: usize,
}

impl Paired {
    /// Counts `(before, after)` of each prompt.
    pub fn count(pairs: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut counts = Self::default();
        for pair in pairs {
            *match pair {
                (true, true) => &mut counts.both,
                (true, false) => &mut counts.lost,
                (false, true) => &mut counts.gained,
                (false, false) => &mut counts.neither,
            } += 1;
        }
        counts
    }

    /// Prompts.
    pub fn total(&self) -> usize {
        self.both + self.lost + self.gained + self.neither
    }

    /// How often it held before.
    pub fn before(&self) -> usize {
        self.both + self.lost
    }

    /// How often it held after.
    pub fn after(&self) -> usize {
        self.both + self.gained
    }

    /// The drop of the rate, `(lost - gained) / total`; negative where it rose. None without prompts.
    pub fn drop(&self) -> Option<f64> {
        let n = self.total();
        (n > 0).then(|| (self.lost as f64 - self.gained as f64) / n as f64)
    }

    /// Two-sided interval of the drop (Tango 1998). None without prompts, or where the confidence is not in
    /// `(0, 1)`.
    pub fn drop_interval(&self, confidence: f64) -> Option<Interval> {
        if self.total() == 0 || !is_confidence(confidence) {
            return None;
        }
        let z = two_sided(confidence);
        let (b, c, n) = (self.lost as f64, self.gained as f64, self.total() as f64);
        Some(Interval { low: -tango_upper(c, b, n, z), high: tango_upper(b, c, n, z) })
    }

    /// One-sided upper bound of the drop (Tango 1998): with this confidence the true drop is not larger. None as
    /// for [`Paired::drop_interval`].
    pub fn drop_upper(&self, confidence: f64) -> Option<f64> {
        if self.total() == 0 || !is_confidence(confidence) {
            return None;
        }
        let (b, c, n) = (self.lost as f64, self.gained as f64, self.total() as f64);
        // below one half the quantile is negative: a bound under the point serves nobody
        Some(tango_upper(b, c, n, normal_quantile(confidence).max(0.0)))
    }

    /// Two-sided p value of the hypothesis that losses and gains are equally likely, by McNemar's test with the exact
    /// binomial distribution: `min(1, 2 P(X <= min(lost, gained)))`, where `X` counts heads of `lost + gained` fair coins
    /// (McNemar, *Psychometrika* 12, 1947, p. 153). 1 where nothing was lost or gained.
    pub fn mcnemar(&self) -> f64 {
        let (n, k) = (self.lost + self.gained, self.lost.min(self.gained));
        // terms of the distribution as logarithms, since 2^-n underflows
        let mut term = -(n as f64) * std::f64::consts::LN_2;
        let mut below = 0.0;
        for heads in 0..=k {
            below += term.exp();
            term += ((n - heads) as f64 / (heads + 1) as f64).ln();
        }
        f64::min(2.0 * below, 1.0)
    }
}

/// The fewest prompts at which a loss of nothing has an upper bound of at most `limit`: the bound is then
/// `z^2 / (n + z^2)`. None where limit or confidence are not in `(0, 1)`.
pub fn fewest_for(limit: f64, confidence: f64) -> Option<usize> {
    if !is_confidence(confidence) || !is_confidence(limit) {
        return None;
    }
    let z = normal_quantile(confidence).max(0.0);
    Some((z * z * (1.0 - limit) / limit).ceil().max(1.0) as usize)
}

/// The difference `d` at which the score statistic is `-z`. The statistic falls in `d`, so it is bisected.
fn tango_upper(b: f64, c: f64, n: f64, z: f64) -> f64 {
    let estimate = (b - c) / n;
    if estimate >= 1.0 {
        return 1.0;
    }
    let (mut low, mut high) = (estimate, 1.0);
    for _ in 0..200 {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break;
        }
        if tango_score(b, c, n, middle) > -z {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// Tango's score statistic: `(b - c - n d) / sqrt(n (2 q + d (1 - d)))`, `q` the maximum-likelihood estimate of
/// the second discordant cell where the difference is `d` (Tango 1998, eq. 10): the root of `2n q^2 + B q + C`.
fn tango_score(b: f64, c: f64, n: f64, d: f64) -> f64 {
    let linear = (2.0 * n - b + c) * d - b - c;
    let constant = -c * d * (1.0 - d);
    let root = (linear * linear - 8.0 * n * constant).max(0.0).sqrt();
    // the form without cancellation
    let q = if linear > 0.0 { -2.0 * constant / (linear + root) } else { (root - linear) / (4.0 * n) };
    let variance = n * (2.0 * q + d * (1.0 - d));
    let difference = b - c - n * d;
    if variance > 0.0 { difference / variance.sqrt() } else { f64::INFINITY.copysign(difference) }
}

/// Percentile bootstrap interval of the mean of `values`, from `resamples` samples drawn with `seed`. None
/// without values or resamples, with a value that is not finite, or where the confidence is not in `(0, 1)`.
pub fn bootstrap_mean(values: &[f64], confidence: f64, resamples: usize, seed: u64) -> Option<Interval> {
    if values.is_empty() || resamples == 0 || !is_confidence(confidence) || values.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let n = values.len();
    let mut random = Mt64::new(seed);
    let mut means: Vec<f64> = (0..resamples)
        .map(|_| {
            let sum: f64 = (0..n).map(|_| values[below(&mut random, n)]).sum();
            sum / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    Some(Interval { low: quantile(&means, tail), high: quantile(&means, 1.0 - tail) })
}

/// A number from 0 to `n - 1` (`n` is at least 1), by the high half of a product. Its bias is `n / 2^64`.
fn below(random: &mut Mt64, n: usize) -> usize {
    let product = u128::from(random.next_u64()) * n as u128;
    usize::try_from(product >> 64).expect("it is below a usize")
}

/// Quantile of sorted values, linear between neighbours (numpy's default).
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let at = p * (sorted.len() - 1) as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(found: f64, expected: f64, within: f64) {
        assert!((found - expected).abs() <= within, "{found} is not {expected}");
    }

    fn paired(lost: usize, gained: usize, n: usize) -> Paired {
        Paired { both: n - lost - gained, lost, gained, neither: 0 }
    }

    /// `scipy.stats.norm.ppf(p)`, scipy 1.17.1.
    #[test]
    fn the_normal_quantile_is_scipys() {
        for (p, expected) in [
            (0.5, 0.0),
            (0.9, 1.2815515655446004),
            (0.95, 1.6448536269514722),
            (0.975, 1.959963984540054),
            (0.995, 2.5758293035489004),
            (0.999, 3.090232306167813),
            (0.001, -3.090232306167813),
            (0.2, -0.8416212335729142),
        ] {
            near(normal_quantile(p), expected, 1e-14);
        }
        assert_eq!(normal_quantile(0.0), f64::NEG_INFINITY);
        assert_eq!(normal_quantile(1.0), f64::INFINITY);
        assert!(normal_quantile(1.1).is_nan() && normal_quantile(f64::NAN).is_nan());
        near(normal_quantile(1e-300), -37.0471, 1e-4);
    }

    /// `statsmodels.stats.proportion.proportion_confint(k, n, alpha=1-confidence, method="wilson")`, 0.15.0. 81 of
    /// 263 and 15 of 148 are Newcombe's own examples (1998, table I: .2553 .3662, .0624 .1605).
    #[test]
    fn wilson_is_that_of_statsmodels_and_newcombe() {
        for (k, n, confidence, low, high) in [
            (0, 10, 0.95, 0.0, 0.27753279986288926),
            (10, 10, 0.95, 0.7224672001371106, 1.0),
            (3, 20, 0.95, 0.052368745896216595, 0.36041886474075696),
            (126, 128, 0.95, 0.9448190233201829, 0.9957045502898559),
            (81, 263, 0.95, 0.2552885198782742, 0.36620957698280004),
            (15, 148, 0.95, 0.06238639953073628, 0.16048724172330803),
            (128, 128, 0.90, 0.9793004689579549, 1.0),
        ] {
            let found = wilson(k, n, confidence).unwrap();
            near(found.low, low, 1e-14);
            near(found.high, high, 1e-14);
        }
        for nothing in [wilson(0, 0, 0.95), wilson(2, 1, 0.95), wilson(1, 2, 1.0), wilson(1, 2, f64::NAN)] {
            assert_eq!(nothing, None);
        }
    }

    /// `b, c, n`, two-sided 95 %, one-sided upper 95 %: roots of the score statistic by `scipy.optimize.brentq`, the
    /// restricted estimate found by maximising the trinomial likelihood with `minimize_scalar` instead of Tango's
    /// closed form where both cells are filled (agrees to 3e-9). 1, 7, 21 is the airway example of Fagerland,
    /// Lydersen and Laake (*Statistics in Medicine* 33, 2014), published as -0.517 to -0.026.
    #[test]
    fn the_paired_drop_is_that_of_an_independent_computation() {
        for (b, c, n, low, high, upper) in [
            (1, 7, 21, -0.5172322764213774, -0.026003032480868632, -0.07463076847572216),
            (40, 20, 160, 0.03086453313308736, 0.21806424416682568, 0.20303480292103754),
            (0, 0, 128, -0.02913695627350841, 0.02913695627350841, 0.020699531042045027),
            (1, 0, 128, -0.021552088744392822, 0.04292625943885905, 0.03425625893410121),
            (2, 0, 128, -0.013967221215281982, 0.05518097667981721, 0.04611847917967846),
            (3, 0, 128, -0.006382353686168763, 0.06664374505143224, 0.05719951341948643),
            (6, 6, 128, -0.05916892481123727, 0.05916892481123726, 0.04825849669410301),
            (12, 9, 44, -0.13803410682582018, 0.26856253052791057, 0.2368599584405363),
            (0, 5, 10, -0.7634069094874363, -0.08370080020566616, -0.18058704487488964),
            (10, 0, 10, 0.4449344002742216, 1.0, 1.0),
            (0, 10, 10, -1.0, -0.444934400274221, -0.5741160598331846),
            (53, 16, 100, 0.21487718737505446, 0.5049386422488005, 0.48476305317040813),
        ] {
            let pair = paired(b, c, n);
            let found = pair.drop_interval(0.95).unwrap();
            near(found.low, low, 1e-10);
            near(found.high, high, 1e-10);
            near(pair.drop_upper(0.95).unwrap(), upper, 1e-10);
        }
        assert_eq!(Paired::default().drop(), None);
        assert_eq!(Paired::default().drop_upper(0.95), None);
        assert_eq!(paired(1, 0, 9).drop_interval(1.5), None);
    }

    #[test]
    fn the_fewest_prompts_are_those_at_which_the_bound_meets_the_limit() {
        for (limit, confidence) in [(0.05, 0.95), (0.1, 0.95), (0.02, 0.99), (0.3, 0.8)] {
            let n = fewest_for(limit, confidence).unwrap();
            assert!(paired(0, 0, n).drop_upper(confidence).unwrap() <= limit);
            assert!(n == 1 || paired(0, 0, n - 1).drop_upper(confidence).unwrap() > limit);
        }
        assert_eq!(fewest_for(0.05, 0.95), Some(52));
        assert_eq!(fewest_for(0.0, 0.95), None);
    }

    const BEFORE: [f64; 12] = [0.3, 0.1, 0.9, 0.4, 0.55, 0.2, 0.75, 0.6, 0.05, 0.35, 0.8, 0.15];
    const AFTER: [f64; 12] = [0.25, 0.2, 0.7, 0.45, 0.35, 0.1, 0.8, 0.4, 0.1, 0.3, 0.6, 0.05];

    /// `scipy.stats.bootstrap((x,), np.mean, n_resamples=200000, method="percentile", rng=1)`: 0.2750 to 0.5875,
    /// and of `x - y`: 0.00833 to 0.13333. Ours draws other samples, hence the tolerance.
    #[test]
    fn the_bootstrap_is_near_scipys_and_repeats() {
        let found = bootstrap_mean(&BEFORE, 0.95, 50_000, 7).unwrap();
        near(found.low, 0.275, 3e-3);
        near(found.high, 0.5875, 3e-3);
        let changes: Vec<f64> = BEFORE.iter().zip(AFTER).map(|(before, after)| after - before).collect();
        let change = bootstrap_mean(&changes, 0.95, 50_000, 7).unwrap();
        near(change.low, -0.1333, 3e-3);
        near(change.high, -0.0083, 3e-3);
        assert_eq!(bootstrap_mean(&BEFORE, 0.95, 100, 7), bootstrap_mean(&BEFORE, 0.95, 100, 7));
        assert_ne!(bootstrap_mean(&BEFORE, 0.95, 100, 7), bootstrap_mean(&BEFORE, 0.95, 100, 8));
        // pinned: a change of generator would change reports
        let pinned = bootstrap_mean(&BEFORE, 0.95, 1000, 0).unwrap();
        near(pinned.low, PINNED.0, 1e-12);
        near(pinned.high, PINNED.1, 1e-12);
        for nothing in [
            bootstrap_mean(&[], 0.95, 10, 0),
            bootstrap_mean(&[1.0, f64::NAN], 0.95, 10, 0),
            bootstrap_mean(&[1.0], 0.95, 0, 0),
        ] {
            assert_eq!(nothing, None);
        }
        assert_eq!(bootstrap_mean(&[2.0; 5], 0.95, 10, 0), Some(Interval { low: 2.0, high: 2.0 }));
    }

    const PINNED: (f64, f64) = (0.2833333333333333, 0.5916666666666666);

    /// Values of `scipy.stats.binomtest(min(b, c), b + c).pvalue`.
    #[test]
    fn mcnemar_is_the_exact_binomial_test() {
        for (lost, gained, expected) in [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (6, 0, 0.03125),
            (0, 6, 0.03125),
            (3, 3, 1.0),
            (12, 2, 0.012939453125),
            (10, 4, 0.1795654296875),
        ] {
            let found = paired(lost, gained, 100).mcnemar();
            assert!((found - expected).abs() < 1e-12, "{lost} and {gained}: {found}");
        }
        // 2^-3000 is no float64
        assert_eq!(paired(1500, 1500, 3000).mcnemar(), 1.0);
        let found = paired(1600, 1400, 3000).mcnemar();
        assert!((0.0002..0.0003).contains(&found), "z is 3.65: {found}");
    }

    proptest! {
        #[test]
        fn an_interval_holds_its_estimate(lost in 0_usize..60, gained in 0_usize..60, rest in 0_usize..200) {
            prop_assume!(lost + gained + rest > 0);
            let pair = paired(lost, gained, lost + gained + rest);
            let (drop, found) = (pair.drop().unwrap(), pair.drop_interval(0.95).unwrap());
            prop_assert!(-1.0 <= found.low && found.low <= drop && drop <= found.high && found.high <= 1.0);
            let upper = pair.drop_upper(0.95).unwrap();
            prop_assert!(drop <= upper && upper <= found.high + 1e-12);
            let mirror = paired(gained, lost, pair.total()).drop_interval(0.95).unwrap();
            prop_assert!((mirror.low + found.high).abs() < 1e-12);
            let more = paired(lost + 1, gained, pair.total() + 1).drop_upper(0.95).unwrap();
            prop_assert!(more >= upper - 1e-12, "one more loss lowers the bound");
        }

        #[test]
        fn a_rate_lies_in_its_interval(k in 0_usize..500, more in 0_usize..500, confidence in 0.01_f64..0.999) {
            prop_assume!(k + more > 0);
            let rate = k as f64 / (k + more) as f64;
            let found = wilson(k, k + more, confidence).unwrap();
            prop_assert!(0.0 <= found.low && found.low <= rate && rate <= found.high && found.high <= 1.0);
        }
    }
}
