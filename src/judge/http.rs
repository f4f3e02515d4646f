//! One request to the endpoint, tried until it is answered or given up.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use ureq::Agent;

use super::format::Message;
use super::{BadReply, JudgeError, Settings};

/// Bytes of a reply, at most.
const REPLY: u64 = 1 << 20;

/// A client of one endpoint.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    address: String,
    authorization: Option<String>,
}

/// Why an attempt failed.
enum Failure {
    /// Worth another attempt, after the wait that the server asked for.
    Again { problem: String, wait: Option<Duration> },
    /// Speaks against the endpoint.
    Fatal(JudgeError),
    /// Speaks against this pair.
    Bad(BadReply),
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Result<Self, JudgeError> {
        let address = address(&settings.url)?;
        let authorization = settings.key.as_ref().map(|key| format!("Bearer {key}"));
        if authorization.as_ref().is_some_and(|text| text.bytes().any(|b| !(0x20..0x7f).contains(&b))) {
            return Err(JudgeError::Key);
        }
        let agent = Agent::config_builder()
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_global(Some(settings.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("lancet/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self { agent, address, authorization })
    }

    /// What the judge says to `messages`.
    pub(super) fn ask(
        &self,
        settings: &Settings,
        messages: &[Message],
        stopped: &dyn Fn() -> bool,
    ) -> Result<Result<String, BadReply>, JudgeError> {
        let body = json!({
            "model": settings.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": settings.max_tokens,
            "stream": false,
        })
        .to_string();
        let mut backoff = settings.first_wait;
        let attempts = settings.attempts.max(1);
        let mut attempt = 0;
        loop {
            attempt += 1;
            if stopped() {
                return Err(JudgeError::Cancelled);
            }
            let (problem, wait) = match self.attempt(&body) {
                Ok(said) => return Ok(Ok(said)),
                Err(Failure::Bad(bad)) => return Ok(Err(bad)),
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Again { problem, wait }) => (problem, wait),
            };
            if attempt >= attempts {
                return Err(JudgeError::Unreachable { attempts, problem });
            }
            if let Some(wait) = wait.filter(|wait| *wait > settings.longest_wait) {
                let problem = format!("{problem}, and it asks to wait for {} s", wait.as_secs());
                return Err(JudgeError::Unreachable { attempts: attempt, problem });
            }
            pause(wait.unwrap_or(backoff.min(settings.longest_wait)), stopped)?;
            backoff = backoff.saturating_mul(2);
        }
    }

    fn attempt(&self, body: &str) -> Result<String, Failure> {
        let mut request = self.agent.post(&self.address).header("content-type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.send(body).map_err(of_transport)?;
        let status = response.status().as_u16();
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, SystemTime::now()));
        let text = response.body_mut().with_config().limit(REPLY).lossy_utf8(true).read_to_string();
        match status {
            200..=299 => completion(&text.map_err(of_transport)?).map_err(Failure::Bad),
            408 | 425 | 429 | 500..=599 => Err(Failure::Again { problem: format!("status {status}"), wait }),
            400 | 413 | 422 => Err(Failure::Bad(BadReply::Unacceptable { status, message: self.complaint(text.ok()) })),
            _ => Err(Failure::Fatal(JudgeError::Rejected { status, message: self.complaint(text.ok()) })),
        }
    }

    /// What an error reply complains of, without the key that it may repeat.
    fn complaint(&self, text: Option<String>) -> Option<String> {
        let words = complaint(&text?)?;
        let key = self.authorization.as_deref().and_then(|text| text.strip_prefix("Bearer "));
        Some(key.map_or(words.clone(), |key| words.replace(key, "(the key)")))
    }
}

/// What an error reply complains of: one short line of plain characters.
fn complaint(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    let message = value.pointer("/error/message").or_else(|| value.get("message")).or_else(|| value.get("error"))?;
    let line = message.as_str()?.split_whitespace().collect::<Vec<_>>().join(" ");
    let words: String = line.chars().filter(|c| !is_steering(*c)).take(200).collect();
    (!words.is_empty()).then_some(words)
}

/// Whether a character steers a terminal or the direction of text.
fn is_steering(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What an error of the transport is. The words name no host.
fn of_transport(error: ureq::Error) -> Failure {
    let problem = match &error {
        ureq::Error::BodyExceedsLimit(_) => {
            let problem = format!("it is longer than {REPLY} bytes");
            return Failure::Bad(BadReply::NotACompletion { problem });
        }
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            return Failure::Fatal(JudgeError::Address { problem: "it is no address".to_owned() });
        }
        ureq::Error::Timeout(which) => format!("timeout ({which})"),
        ureq::Error::HostNotFound => "its host is not known".to_owned(),
        ureq::Error::ConnectionFailed => "the connection failed".to_owned(),
        ureq::Error::Io(source) => match source.kind() {
            std::io::ErrorKind::ConnectionRefused => "the connection was refused".to_owned(),
            std::io::ErrorKind::UnexpectedEof => "the connection was closed".to_owned(),
            kind => format!("{kind}"),
        },
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => "no secure connection could be made".to_owned(),
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => "what it sends is no HTTP".to_owned(),
        _ => "the request failed".to_owned(),
    };
    Failure::Again { problem, wait: None }
}

/// The text of a chat completion.
fn completion(text: &str) -> Result<String, BadReply> {
    let bad = |problem: &str| BadReply::NotACompletion { problem: problem.to_owned() };
    let value: Value = serde_json::from_str(text).map_err(|_| bad("it is no JSON"))?;
    let message = value.pointer("/choices/0/message").ok_or_else(|| bad("it has no `choices[0].message`"))?;
    match message.get("content") {
        Some(Value::String(said)) => Ok(said.clone()),
        _ => Err(bad("`choices[0].message.content` is no text")),
    }
}

fn address(url: &str) -> Result<String, JudgeError> {
    let wrong = |problem: &str| JudgeError::Address { problem: problem.to_owned() };
    let url = url.trim();
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let rest = rest.ok_or_else(|| wrong("it begins with neither `http://` nor `https://`"))?;
    if rest.is_empty() || rest.starts_with(['/', ':', '?']) {
        return Err(wrong("it names no host"));
    }
    if rest.contains(['?', '#']) || rest.contains(char::is_whitespace) || !rest.is_ascii() {
        return Err(wrong("it holds a query, a fragment, white space or letters beyond ASCII"));
    }
    if rest.split('/').next().is_some_and(|host| host.contains('@')) {
        return Err(wrong("it holds a user name; a key goes into the environment"));
    }
    let url = url.trim_end_matches('/');
    Ok(if url.ends_with("/chat/completions") { url.to_owned() } else { format!("{url}/chat/completions") })
}

/// Sleeps in small pieces.
fn pause(wait: Duration, stopped: &dyn Fn() -> bool) -> Result<(), JudgeError> {
    let end = Instant::now() + wait;
    loop {
        if stopped() {
            return Err(JudgeError::Cancelled);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date such as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(value).ok()?;
    Some(then.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod unit {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn addresses_are_completed_or_refused() {
        for (url, expected) in [
            ("http://h:1/v1", "http://h:1/v1/chat/completions"),
            (" https://h/v1/ ", "https://h/v1/chat/completions"),
            ("http://h/x/chat/completions", "http://h/x/chat/completions"),
        ] {
            assert_eq!(address(url).unwrap(), expected);
        }
        for url in [
            "",
            "h:1/v1",
            "ftp://h",
            "http://",
            "http:///v1",
            "http://h?x",
            "http://u:p@h/v1",
            "http://a b",
            "http://ü",
        ] {
            assert!(matches!(address(url), Err(JudgeError::Address { .. })), "{url}");
        }
    }

    #[test]
    fn waits_are_read() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(retry_after("7", at(0)), Some(Duration::from_secs(7)));
        // date -d "Sun, 06 Nov 1994 08:49:37 GMT" +%s
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(retry_after(date, at(784_111_777 - 5)), Some(Duration::from_secs(5)));
        assert_eq!(retry_after(date, at(784_111_777 + 5)), Some(Duration::ZERO));
        // date -d "Thu, 29 Feb 2024 00:00:00 GMT" +%s
        assert_eq!(retry_after("Thu, 29 Feb 2024 00:00:00 GMT", at(1_709_164_800 - 1)), Some(Duration::from_secs(1)));
        for bad in [
            "",
            "soon",
            "-1",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 99 Nov 1994 08:49:37 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
        ] {
            assert_eq!(retry_after(bad, at(0)), None, "{bad}");
        }
    }
}
