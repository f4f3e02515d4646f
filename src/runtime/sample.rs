//! How a token is chosen from logits: the likeliest one, or one drawn as Hugging Face's `generate` draws it.
//!
//! Logits are warped in float64 as transformers' `TemperatureLogitsWarper`, `TopKLogitsWarper` and `TopPLogitsWarper`
//! do, in this order (`transformers/generation/logits_process.py`, 4.57). The random numbers are a function of
//! the seed, the prompt's number and the sample's number alone, so that batches do not matter.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use super::backend::RuntimeError;

/// Settings of a draw.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sampling {
    /// Logits are divided by it; above 0.
    pub temperature: f64,
    /// The likeliest tokens whose probabilities reach this together are kept; above 0, and 1 keeps all.
    pub top_p: f64,
    /// So many likeliest tokens are kept; 0 keeps all.
    pub top_k: usize,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decoding {
    /// The likeliest token; the first one on a tie.
    Greedy,
    /// A random token.
    Sampled(Sampling),
}

/// Chooses the tokens of one answer, one after the other.
#[derive(Debug, Clone)]
pub enum Chooser {
    /// The likeliest token.
    Greedy,
    /// A random token, with the answer's own random numbers.
    Sampled(Sampling, Box<ChaCha12Rng>),
}

impl Decoding {
    /// The chooser of sample `sample` of prompt `prompt`.
    pub fn chooser(&self, prompt: usize, sample: usize) -> Chooser {
        match self {
            Self::Greedy => Chooser::Greedy,
            Self::Sampled(sampling) => Chooser::Sampled(*sampling, Box::new(stream(sampling.seed, prompt, sample))),
        }
    }

    /// Whether the settings make sense.
    ///
    /// # Errors
    /// [`RuntimeError::Sampling`] with the setting that does not.
    pub fn check(&self) -> Result<(), RuntimeError> {
        let Self::Sampled(sampling) = self else { return Ok(()) };
        let reason = if !(sampling.temperature.is_finite() && sampling.temperature > 0.0) {
            format!("the temperature is {}, not above 0", sampling.temperature)
        } else if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            format!("top-p is {}, not above 0 and at most 1", sampling.top_p)
        } else {
            return Ok(());
        };
        Err(RuntimeError::Sampling { reason })
    }
}

/// The random numbers of an answer: the key of a ChaCha stream holds what they depend on.
fn stream(seed: u64, prompt: usize, sample: usize) -> ChaCha12Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(prompt as u64).to_le_bytes());
    key[16..24].copy_from_slice(&(sample as u64).to_le_bytes());
    key[24..].copy_from_slice(b"lancet 1");
    ChaCha12Rng::from_seed(key)
}

impl Chooser {
    /// The next token, from logits `[d_vocab]` without NaN. Draws one random number a token.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        let token = match self {
            Self::Greedy => argmax(logits.iter().copied()),
            Self::Sampled(sampling, random) => {
                // 53 bits, as a float64 of [0, 1)
                let uniform = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
                pick(&sampling.probabilities(logits), uniform)
            }
        };
        u32::try_from(token).expect("a vocabulary fits in u32")
    }
}

/// Index of the largest value; the first one on a tie, as torch does.
pub fn argmax(values: impl IntoIterator<Item = f32>) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, value) in values.into_iter().enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// The index where the running sum of `probabilities` passes `uniform` of their sum; never one of probability 0.
fn pick(probabilities: &[f64], uniform: f64) -> usize {
    let wanted = uniform * probabilities.iter().sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (index, &p) in probabilities.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        sum += p;
        last = index;
        if sum > wanted {
            break;
        }
    }
    last
}

impl Sampling {
    /// Probabilities `[d_vocab]` that tokens are drawn with, from logits `[d_vocab]` without NaN; they sum to 1.
    pub fn probabilities(&self, logits: &[f32]) -> Vec<f64> {
        let mut scores: Vec<f64> = logits.iter().map(|v| f64::from(*v) / self.temperature).collect();
        if self.top_k > 0 && self.top_k < scores.len() {
            let mut sorted = scores.clone();
            let (_, kth, _) = sorted.select_nth_unstable_by(self.top_k - 1, |a, b| b.total_cmp(a));
            let kth = *kth;
            // what ties with the last one kept is kept too
            scores.iter_mut().filter(|s| **s < kth).for_each(|s| *s = f64::NEG_INFINITY);
        }
        if self.top_p < 1.0 {
            let unlikely = self.unlikely(&softmax(&scores));
            unlikely.into_iter().for_each(|index| scores[index] = f64::NEG_INFINITY);
        }
        softmax(&scores)
    }

    /// The tokens that top-p removes: from the least likely on, the first ones on a tie first, as long as their sum is
    /// at most `1 - top_p`; one is always left.
    fn unlikely(&self, probabilities: &[f64]) -> Vec<usize> {
        let rest = 1.0 - self.top_p;
        // what is below an even share of the rest is removed whatever the order; only the others need sorting
        let share = rest / probabilities.len() as f64;
        let (mut removed, mut order): (Vec<usize>, Vec<usize>) =
            (0..probabilities.len()).partition(|&i| probabilities[i] < share);
        let mut sum: f64 = removed.iter().map(|&i| probabilities[i]).sum();
        order.sort_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
        order.pop();
        for index in order {
            sum += probabilities[index];
            if sum > rest {
                break;
            }
            removed.push(index);
        }
        removed
    }
}

/// Softmax in float64; the largest score is finite.
fn softmax(scores: &[f64]) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut values: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f64 = values.iter().sum();
    values.iter_mut().for_each(|v| *v /= sum);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed: 7 };

    fn drawn(sampling: Sampling, prompt: usize, sample: usize, count: usize) -> Vec<u32> {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.3).collect();
        let mut chooser = Decoding::Sampled(sampling).chooser(prompt, sample);
        (0..count).map(|_| chooser.choose(&logits)).collect()
    }

    #[test]
    fn probabilities_are_those_of_the_warpers_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/generation/sampling.json");
        let table: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let numbers = |v: &serde_json::Value| -> Vec<f64> { serde_json::from_value(v.clone()).unwrap() };
        let cases = table["cases"].as_array().unwrap();
        assert!(cases.len() > 40);
        for case in cases {
            let logits: Vec<f32> =
                numbers(&table["logits"][case["logits"].as_str().unwrap()]).iter().map(|v| *v as f32).collect();
            let sampling = Sampling {
                temperature: case["temperature"].as_f64().unwrap(),
                top_p: case["top_p"].as_f64().unwrap(),
                top_k: usize::try_from(case["top_k"].as_u64().unwrap()).unwrap(),
                seed: 0,
            };
            let (found, wanted) = (sampling.probabilities(&logits), numbers(&case["probabilities"]));
            assert_eq!(found.len(), wanted.len());
            for (f, w) in found.iter().zip(&wanted) {
                assert!((f - w).abs() < 1e-14 && (*f == 0.0) == (*w == 0.0), "{case}\n{found:?}");
            }
        }
    }

    #[test]
    fn draws_depend_on_seed_prompt_and_sample_only() {
        let first = drawn(PLAIN, 3, 1, 40);
        assert_eq!(first, drawn(PLAIN, 3, 1, 40));
        assert_eq!(first[..20], drawn(PLAIN, 3, 1, 20));
        for other in [drawn(Sampling { seed: 8, ..PLAIN }, 3, 1, 40), drawn(PLAIN, 4, 1, 40), drawn(PLAIN, 3, 2, 40)] {
            assert_ne!(first, other);
        }
    }

    /// The numbers are part of what a seed promises: a changed stream would change published answers.
    #[test]
    fn the_random_stream_is_pinned() {
        assert_eq!(drawn(PLAIN, 0, 0, 8), PINNED);
    }

    const PINNED: [u32; 8] = [3, 34, 37, 6, 12, 33, 40, 34];

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0, 1.0, 2.0, -1.0, 0.5, 1.5];
        let sampling = Sampling { temperature: 0.8, ..PLAIN };
        let expected = sampling.probabilities(&logits);
        let count = 20_000;
        let mut seen = [0.0; 6];
        for prompt in 0..count {
            let mut chooser = Decoding::Sampled(sampling).chooser(prompt, 0);
            seen[chooser.choose(&logits) as usize] += 1.0;
        }
        let chi_square: f64 = seen
            .iter()
            .zip(&expected)
            .map(|(seen, p)| {
                let wanted = p * count as f64;
                (seen - wanted) * (seen - wanted) / wanted
            })
            .sum();
        // 5 degrees of freedom: exceeded once in a thousand seeds
        assert!(chi_square < 20.5, "{chi_square}: {seen:?}");
    }

    #[test]
    fn the_end_of_the_range_is_a_token_that_is_kept() {
        assert_eq!(pick(&[0.0, 0.25, 0.75, 0.0], 0.0), 1);
        assert_eq!(pick(&[0.0, 0.25, 0.75, 0.0], 0.25), 2);
        assert_eq!(pick(&[0.0, 0.25, 0.75, 0.0], 1.0), 2);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        assert!(Decoding::Greedy.check().is_ok() && Decoding::Sampled(PLAIN).check().is_ok());
        for wrong in [
            Sampling { temperature: 0.0, ..PLAIN },
            Sampling { temperature: f64::NAN, ..PLAIN },
            Sampling { top_p: 0.0, ..PLAIN },
            Sampling { top_p: 1.1, ..PLAIN },
        ] {
            assert!(Decoding::Sampled(wrong).check().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_first_of_equals_is_the_largest() {
        assert_eq!(argmax([1.0, 3.0, 3.0]), 1);
    }
}
