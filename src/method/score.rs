//! Scores at the first response position: refusal score (Wang et al. 2025, eq. 3) and KL divergence.

/// Constant inside the logarithms of the refusal score (published code).
const REFUSAL_EPSILON: f64 = 1e-8;
/// Constant inside the logarithms of the KL divergence (published code).
const KL_EPSILON: f64 = 1e-6;

/// Softmax of logits `[d_vocab]`, in float64.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut out: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).collect();
    let sum: f64 = out.iter().sum();
    for p in &mut out {
        *p /= sum;
    }
    out
}

/// Natural logarithm of the softmax of `logits` `[d_vocab]` at `token`, in float64; `None` outside the vocabulary.
pub fn log_softmax(logits: &[f32], token: u32) -> Option<f64> {
    let own = f64::from(*logits.get(token as usize)?);
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    Some(own - max - sum.ln())
}

/// Refusal score (eq. 3): `ln(P_R + 1e-8) - ln(1 - P_R + 1e-8)`, `P_R` the probability of the refusal
/// tokens. `probabilities` is `[d_vocab]`.
pub fn refusal_score(probabilities: &[f64], refusal_tokens: &[u32]) -> f64 {
    let refusal: f64 = refusal_tokens.iter().filter_map(|&t| probabilities.get(t as usize)).sum();
    (refusal + REFUSAL_EPSILON).ln() - (1.0 - refusal + REFUSAL_EPSILON).ln()
}

/// `sum p (ln(p + 1e-6) - ln(q + 1e-6))` of two distributions over the vocabulary.
pub fn kl_divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p * ((p + KL_EPSILON).ln() - (q + KL_EPSILON).ln())).sum()
}

/// Arithmetic mean; NaN for nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// First response tokens of one class: mean probability of every token `[d_vocab]`, and the likeliest
/// token of each prompt.
#[derive(Debug, Clone, Default)]
pub struct FirstTokens {
    mean: Vec<f64>,
    likeliest: Vec<u32>,
}

impl FirstTokens {
    /// Adds one prompt's distribution.
    pub fn add(&mut self, probabilities: &[f64]) {
        self.mean.resize(probabilities.len(), 0.0);
        let n = self.likeliest.len() as f64;
        let mut best = 0;
        for (token, p) in probabilities.iter().enumerate() {
            self.mean[token] = (self.mean[token] * n + p) / (n + 1.0);
            if *p > probabilities[best] {
                best = token;
            }
        }
        self.likeliest.push(u32::try_from(best).expect("a vocabulary fits in u32"));
    }
}

/// The response tokens that separate refusals from answers best, at most `limit`, heaviest first.
///
/// A token counts if it is the likeliest first token of some harmful prompt, or of some pseudo-harmful one
/// and `opens_refusal` says that it begins a known refusal (a pseudo-harmful prompt that is answered
/// opens with a word of its own). Its weight is its mean probability there less that over harmless
/// prompts, and must be at least 0.02.
pub fn automatic_refusal_tokens(
    harmful: &FirstTokens,
    pseudo_harmful: &FirstTokens,
    harmless: &FirstTokens,
    opens_refusal: impl Fn(u32) -> bool,
    limit: usize,
) -> Vec<u32> {
    let at = |class: &FirstTokens, token: u32| class.mean.get(token as usize).copied().unwrap_or(0.0);
    let mut weights: std::collections::BTreeMap<u32, f64> = std::collections::BTreeMap::new();
    let pseudo = pseudo_harmful.likeliest.iter().filter(|t| opens_refusal(**t)).map(|t| (pseudo_harmful, *t));
    for (class, token) in harmful.likeliest.iter().map(|t| (harmful, *t)).chain(pseudo) {
        let weight = at(class, token) - at(harmless, token);
        let entry = weights.entry(token).or_insert(weight);
        *entry = entry.max(weight);
    }
    let mut sorted: Vec<(u32, f64)> = weights.into_iter().filter(|(_, w)| *w >= 0.02).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    sorted.into_iter().take(limit).map(|(token, _)| token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_is_exact_and_survives_large_logits() {
        let logits = [1000.0, 1001.0, -1000.0];
        let want = -(1.0 + 1f64.exp()).ln();
        assert!((log_softmax(&logits, 0).unwrap() - want).abs() < 1e-12);
        assert!((log_softmax(&logits, 2).unwrap() - (want - 2000.0)).abs() < 1e-9);
        assert_eq!(log_softmax(&logits, 3), None);
    }

    #[test]
    fn refusal_score_is_the_log_odds() {
        let p = softmax(&[0.0, 0.0, 0.0, 0.0]);
        assert!((refusal_score(&p, &[0, 1])).abs() < 1e-12);
        let sure = softmax(&[100.0, 0.0]);
        assert!((refusal_score(&sure, &[0]) - (1e8f64).ln()).abs() < 1e-6);
        assert!((refusal_score(&sure, &[1]) + (1e8f64).ln()).abs() < 1e-6);
        // a token outside the vocabulary has no probability
        assert_eq!(refusal_score(&p, &[9]), refusal_score(&p, &[]));
    }

    #[test]
    fn kl_is_zero_for_equal_and_positive_for_different_distributions() {
        let p = softmax(&[1.0, 2.0, 3.0]);
        let q = softmax(&[3.0, 2.0, 1.0]);
        assert_eq!(kl_divergence(&p, &p), 0.0);
        let exact: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((kl_divergence(&p, &q) - exact).abs() < 1e-4);
    }

    #[test]
    fn automatic_tokens_open_refusals_only() {
        let class = |rows: &[[f64; 4]]| {
            let mut first = FirstTokens::default();
            rows.iter().for_each(|row| first.add(row));
            first
        };
        let harmful = class(&[[0.9, 0.1, 0.0, 0.0], [0.8, 0.2, 0.0, 0.0]]);
        let pseudo = class(&[[0.0, 0.1, 0.9, 0.0], [0.0, 0.1, 0.0, 0.9]]);
        let harmless = class(&[[0.0, 1.0, 0.0, 0.0]]);
        // token 3 opens answers to pseudo-harmful prompts, token 1 answers to harmless ones
        assert_eq!(automatic_refusal_tokens(&harmful, &pseudo, &harmless, |t| t != 3, 4), [0, 2]);
        assert_eq!(automatic_refusal_tokens(&harmful, &pseudo, &harmless, |t| t != 3, 1), [0]);
        assert_eq!(automatic_refusal_tokens(&harmless, &harmless, &harmless, |_| true, 4), Vec::<u32>::new());
    }
}
