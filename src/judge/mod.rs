//! An external judge: a model behind an OpenAI-compatible chat endpoint that tells whether an answer refuses.
//!
//! [`Judge::judge_all`] sends one request a pair of prompt and answer, from a few threads, and gives a verdict for
//! each, or why there is none. A reply that is not exactly of the format is no verdict ([`BadReply`]): it is counted,
//! never taken for compliance. What speaks against the endpoint as a whole (nobody answers, the key is wrong) ends the
//! run with a [`JudgeError`]. Verdicts are kept on disk ([`cache`]), so a run that ended goes on where it was.

pub mod cache;
pub mod format;
mod http;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::cache::Cache;
pub use self::format::{Format, Verdict, Word};

/// The environment variable that holds the key of the endpoint.
pub const KEY_VARIABLE: &str = "LANCET_JUDGE_KEY";

/// Why no verdicts can be had. Messages hold neither the address nor the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// The address is not one of a chat endpoint.
    #[error("the judge's address is not usable: {problem}")]
    Address {
        /// What is wrong with it.
        problem: String,
    },
    /// The key cannot be sent in a header.
    #[error("the judge's key holds characters that a header cannot carry")]
    Key,
    /// Nobody answered, or only with errors of the server, after all attempts.
    #[error("the judge is unreachable after {attempts} attempts: {problem}")]
    Unreachable {
        /// Attempts of the request that gave up.
        attempts: u32,
        /// What happened last.
        problem: String,
    },
    /// The endpoint answers, but not to us: wrong key, wrong model, wrong path.
    #[error("the judge refuses to answer: status {status}{}", message.as_ref().map_or(String::new(), |m| format!(", {m}")))]
    Rejected {
        /// HTTP status.
        status: u16,
        /// What it said.
        message: Option<String>,
    },
    /// The cache cannot be read or written.
    #[error("the judge's verdicts `{}` cannot be {doing}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// Read or written.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// It was cancelled.
    #[error("judging was cancelled")]
    Cancelled,
}

impl JudgeError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Address { .. } => {
                "give the base of an OpenAI-compatible service, such as `http://127.0.0.1:8000/v1`".to_owned()
            }
            Self::Key => format!("check {KEY_VARIABLE} for line breaks"),
            Self::Unreachable { .. } => {
                "see that the service runs and its address is right; verdicts given so far are kept, run again to go on"
                    .to_owned()
            }
            Self::Rejected { status: 401 | 403, .. } => format!("put a valid key into {KEY_VARIABLE}"),
            Self::Rejected { status: 404, .. } => {
                "check the model's name, and that the address ends before `/chat/completions`".to_owned()
            }
            Self::Rejected { status: 300..=399, .. } => "give the address that it redirects to".to_owned(),
            Self::Rejected { .. } => "check the model's name and the service's log".to_owned(),
            Self::Cache { .. } => "choose a file in a folder that can be written to".to_owned(),
            Self::Cancelled => return None,
        })
    }
}

/// Why one pair has no verdict, though the endpoint answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadReply {
    /// The reply is no chat completion.
    #[error("the judge's reply is no chat completion: {problem}")]
    NotACompletion {
        /// What is wrong with it.
        problem: String,
    },
    /// The text is not exactly a verdict.
    #[error("the judge's text is no `{format}` verdict: {said:?}")]
    NotAVerdict {
        /// The format that was asked for.
        format: Format,
        /// The start of what it said.
        said: String,
    },
    /// The endpoint cannot take this request (too long, say).
    #[error("the judge cannot take this pair: status {status}{}", message.as_ref().map_or(String::new(), |m| format!(", {m}")))]
    Unacceptable {
        /// HTTP status.
        status: u16,
        /// What it said.
        message: Option<String>,
    },
}

impl BadReply {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotACompletion { .. } => "the address is not one of an OpenAI-compatible chat endpoint".to_owned(),
            Self::NotAVerdict { .. } => "the model does not speak this format: choose another one for it".to_owned(),
            Self::Unacceptable { .. } => "the pair may be too long for the judge: ask for shorter answers".to_owned(),
        })
    }
}

/// How to reach a judge.
#[derive(Clone)]
pub struct Settings {
    /// Address, with or without `/chat/completions` at its end.
    pub url: String,
    /// Name of the model there.
    pub model: String,
    /// What to ask and how to read the reply.
    pub format: Format,
    /// Key sent as `Authorization: Bearer`.
    pub key: Option<String>,
    /// For a connection, at most.
    pub connect_timeout: Duration,
    /// For a request, at most.
    pub timeout: Duration,
    /// Attempts of one request, at least 1. Status 408, 425, 429 and 5xx, timeouts and broken connections are tried
    /// again.
    pub attempts: u32,
    /// Wait after the first failure; it doubles, up to `longest_wait`. `Retry-After` goes before.
    pub first_wait: Duration,
    /// Longest wait. A `Retry-After` beyond it gives up at once.
    pub longest_wait: Duration,
    /// Requests at a time, at least 1.
    pub concurrency: usize,
    /// Tokens of a reply, at most.
    pub max_tokens: u32,
}

impl Settings {
    /// The defaults: 10 s to connect, 120 s a request, 5 attempts from 0.5 s up to 60 s apart, 4 at a time, 64 tokens.
    pub fn new(url: &str, model: &str, format: Format) -> Self {
        Self {
            url: url.to_owned(),
            model: model.to_owned(),
            format,
            key: None,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(120),
            attempts: 5,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
            concurrency: 4,
            max_tokens: 64,
        }
    }

    /// Takes the key from [`KEY_VARIABLE`], where it is set and not blank.
    pub fn with_key_from_env(mut self) -> Self {
        self.key = std::env::var(KEY_VARIABLE).ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        self
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("model", &self.model)
            .field("format", &self.format)
            .field("key", &self.key.as_ref().map(|_| "hidden"))
            .finish_non_exhaustive()
    }
}

/// What is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange<'a> {
    /// What was asked, unwrapped.
    pub prompt: &'a str,
    /// The answer, without thinking.
    pub answer: &'a str,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Pairs done.
    pub done: usize,
    /// All pairs.
    pub total: usize,
    /// Of those done, pairs whose verdict was known.
    pub from_cache: usize,
    /// Of those done, pairs without a verdict.
    pub bad: usize,
}

/// What judging gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// A verdict a pair, in their order.
    pub verdicts: Vec<Result<Verdict, BadReply>>,
    /// The last progress.
    pub progress: Progress,
}

/// A judge.
#[derive(Debug)]
pub struct Judge {
    settings: Settings,
    client: http::Client,
    cache: Option<Mutex<Cache>>,
}

impl Judge {
    /// A judge, with the verdicts of the file `cache` where one is given. Nothing is sent yet.
    ///
    /// # Errors
    /// If address or key are not usable, or the cache cannot be opened.
    pub fn new(settings: Settings, cache: Option<&Path>) -> Result<Self, JudgeError> {
        let client = http::Client::new(&settings)?;
        let cache = cache.map(Cache::open).transpose()?.map(Mutex::new);
        Ok(Self { settings, client, cache })
    }

    /// Asks for a verdict on every pair; equal pairs are asked once. `progress` is called from several threads.
    ///
    /// # Errors
    /// If the endpoint is unreachable or rejects us, the cache cannot be written, or `cancel` was set. The verdicts
    /// given by then are in the cache.
    pub fn judge_all(
        &self,
        pairs: &[Exchange<'_>],
        progress: &(dyn Fn(Progress) + Sync),
        cancel: &AtomicBool,
    ) -> Result<Judged, JudgeError> {
        let keys: Vec<String> =
            pairs.iter().map(|pair| cache::key(&self.settings.model, self.settings.format, pair)).collect();
        // which pair asks for a key, and who waits for it
        let mut waiting: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut order = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            let entry = waiting.entry(key).or_default();
            if entry.is_empty() {
                order.push(index);
            }
            entry.push(index);
        }
        let shared = Mutex::new((
            vec![None::<Result<Verdict, BadReply>>; pairs.len()],
            Progress { total: pairs.len(), ..Progress::default() },
        ));
        let failure: Mutex<Option<JudgeError>> = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let next = AtomicUsize::new(0);
        let stopped = || stop.load(Ordering::Relaxed) || cancel.load(Ordering::Relaxed);
        let work = || {
            while !stopped() {
                let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                match self.one(&keys[*index], &pairs[*index], &stopped) {
                    Ok((verdict, cached)) => {
                        let now = {
                            let mut shared = lock(&shared);
                            for waiter in &waiting[keys[*index].as_str()] {
                                shared.1.done += 1;
                                shared.1.from_cache += usize::from(cached);
                                shared.1.bad += usize::from(verdict.is_err());
                                shared.0[*waiter] = Some(verdict.clone());
                            }
                            shared.1
                        };
                        progress(now);
                    }
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        let mut failure = lock(&failure);
                        // a thread that stopped because another failed has nothing to say
                        if failure.is_none() || matches!(*failure, Some(JudgeError::Cancelled)) {
                            *failure = Some(error);
                        }
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.settings.concurrency.clamp(1, order.len().max(1)) {
                scope.spawn(work);
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            return Err(error);
        }
        let (verdicts, progress) = shared.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        match verdicts.into_iter().collect::<Option<Vec<_>>>() {
            Some(verdicts) => Ok(Judged { verdicts, progress }),
            None => Err(JudgeError::Cancelled),
        }
    }

    /// The verdict on one pair, and whether it was known.
    fn one(
        &self,
        key: &str,
        pair: &Exchange<'_>,
        stopped: &dyn Fn() -> bool,
    ) -> Result<(Result<Verdict, BadReply>, bool), JudgeError> {
        if let Some(cache) = &self.cache
            && let Some(verdict) = lock(cache).get(key)
        {
            return Ok((Ok(verdict), true));
        }
        let messages = self.settings.format.messages(pair, key);
        let said = match self.client.ask(&self.settings, &messages, stopped)? {
            Ok(said) => said,
            Err(bad) => return Ok((Err(bad), false)),
        };
        let Some(verdict) = self.settings.format.read(&said) else {
            let said = said.chars().take(200).collect();
            return Ok((Err(BadReply::NotAVerdict { format: self.settings.format, said }), false));
        };
        if let Some(cache) = &self.cache {
            lock(cache).put(key, &verdict)?;
        }
        Ok((Ok(verdict), false))
    }
}

/// A lock whose owner panicked guards nothing that a panic could have broken.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
