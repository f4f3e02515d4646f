//! How far a stage is: its rate, and the time that is left.

use std::time::Duration;

use lancet::pipeline::stage::{Stage, Steps};
use lancet::report::number::seconds;

/// Time between two lines about a stage where there is no bar.
pub const EVERY: Duration = Duration::from_secs(10);

/// A stage under way.
#[derive(Debug)]
pub struct Progress {
    stage: String,
    steps: Steps,
    total: u64,
    done: u64,
    /// Tokens that were generated.
    tokens: u64,
}

impl Progress {
    /// A stage that begins.
    pub fn new(stage: &Stage, total: u64) -> Self {
        Self { stage: stage.to_string(), steps: stage.steps(), total, done: 0, tokens: 0 }
    }

    /// Some steps are done.
    pub fn advance(&mut self, steps: u64) {
        self.done += steps;
    }

    /// The stage has so many steps in all.
    pub fn expect(&mut self, total: u64) {
        self.total = total;
    }

    /// Some tokens were generated.
    pub fn generated(&mut self, tokens: u64) {
        self.tokens += tokens;
    }

    /// The stage with its rate of tokens, after `elapsed`: `answers, 150 tokens/s`.
    pub fn message(&self, elapsed: Duration) -> String {
        if self.tokens == 0 { self.stage.clone() } else { format!("{}, {}", self.stage, self.rate(elapsed)) }
    }

    /// What is said of a stage under way: `score candidates: 1200 of 9216, 43/s, 3 min 06 s left`.
    pub fn line(&self, elapsed: Duration) -> String {
        let count = |steps: u64| match self.steps {
            Steps::Bytes => format!("{} MB", steps / 1_000_000),
            Steps::Items => steps.to_string(),
        };
        let mut line = format!("{}: {} of {}, {}", self.stage, count(self.done), count(self.total), self.rate(elapsed));
        // with nothing done there is no rate to go by
        if self.done > 0 {
            let each = elapsed.as_secs_f64() / self.done as f64;
            let left = self.total.saturating_sub(self.done) as f64 * each;
            line.push_str(&format!(", {} left", seconds(left)));
        }
        line
    }

    /// What is said of a stage that has generated, when it is over: `answers: 3864 tokens, 150 tokens/s`.
    pub fn summary(&self, elapsed: Duration) -> Option<String> {
        (self.tokens > 0).then(|| format!("{}: {} tokens, {}", self.stage, self.tokens, self.rate(elapsed)))
    }

    fn rate(&self, elapsed: Duration) -> String {
        let a_second = |n: u64| n as f64 / elapsed.as_secs_f64().max(1e-3);
        match self.steps {
            _ if self.tokens > 0 => format!("{:.0} tokens/s", a_second(self.tokens)),
            Steps::Bytes => format!("{:.0} MB/s", a_second(self.done) / 1e6),
            Steps::Items if a_second(self.done) < 10.0 => format!("{:.1}/s", a_second(self.done)),
            Steps::Items => format!("{:.0}/s", a_second(self.done)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_and_time_left() {
        let mut progress = Progress::new(&Stage::ScoreCandidates, 1000);
        let at = Duration::from_secs;
        progress.advance(90);
        assert_eq!(progress.line(at(10)), "score candidates: 90 of 1000, 9.0/s, 1 min 41 s left");
        progress.advance(410);
        assert_eq!(progress.line(at(25)), "score candidates: 500 of 1000, 20/s, 25.0 s left");
        progress.expect(600);
        assert_eq!(progress.line(at(25)), "score candidates: 500 of 600, 20/s, 5.00 s left");
        assert_eq!(progress.summary(at(30)), None);
    }

    #[test]
    fn tokens_and_bytes_have_rates_of_their_own() {
        let ten = Duration::from_secs(10);
        let mut progress = Progress::new(&Stage::WriteOtherFiles, 4_000_000_000);
        assert_eq!(progress.line(ten), "write the other files: 0 MB of 4000 MB, 0 MB/s");
        progress.advance(1_000_000_000);
        assert_eq!(progress.line(2 * ten), "write the other files: 1000 MB of 4000 MB, 50 MB/s, 1 min 00 s left");
        let mut progress = Progress::new(&Stage::Perplexity, 8);
        assert_eq!(progress.message(ten), "perplexity");
        progress.generated(1500);
        assert_eq!(progress.message(ten), "perplexity, 150 tokens/s");
        assert_eq!(progress.summary(ten).unwrap(), "perplexity: 1500 tokens, 150 tokens/s");
    }
}
