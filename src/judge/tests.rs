//! A judge against a small server on this machine that answers as it is told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use super::*;

/// What the server does with a request.
#[derive(Clone)]
enum Act {
    /// A completion that says this.
    Say(&'static str),
    /// A status, headers and a body.
    Reply(u16, &'static str, String),
    /// Nothing for so long, then a completion.
    Slow(Duration, &'static str),
    /// The connection is closed without a word.
    Close,
    /// Bytes as they are.
    Raw(&'static [u8]),
}

struct Server {
    url: String,
    /// Bodies received, with their headers.
    seen: Arc<Mutex<Vec<(String, serde_json::Value)>>>,
}

impl Server {
    /// Acts in their order, the last one for ever.
    fn new(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            let count = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming().flatten() {
                let (acts, log, count) = (acts.clone(), Arc::clone(&log), Arc::clone(&count));
                std::thread::spawn(move || serve(stream, &acts, &log, &count));
            }
        });
        Self { url, seen }
    }

    fn requests(&self) -> usize {
        lock(&self.seen).len()
    }
}

fn serve(
    stream: TcpStream,
    acts: &[Act],
    log: &Mutex<Vec<(String, serde_json::Value)>>,
    count: &AtomicUsize,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    lock(log).push((head, serde_json::from_slice(&body).ok()?));
    let act = &acts[count.fetch_add(1, Ordering::SeqCst).min(acts.len() - 1)];
    let said =
        |text: &str| serde_json::json!({"choices": [{"message": {"role": "assistant", "content": text}}]}).to_string();
    let (status, headers, body) = match act {
        Act::Say(text) => (200, "", said(text)),
        Act::Slow(wait, text) => {
            std::thread::sleep(*wait);
            (200, "", said(text))
        }
        Act::Reply(status, headers, body) => (*status, *headers, body.clone()),
        Act::Close => return None,
        Act::Raw(bytes) => {
            stream.write_all(bytes).ok()?;
            return None;
        }
    };
    let length = body.len();
    let text = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).ok()
}

fn settings(url: &str, format: Format) -> Settings {
    Settings {
        first_wait: Duration::from_millis(5),
        longest_wait: Duration::from_millis(1500),
        attempts: 3,
        concurrency: 1,
        ..Settings::new(url, "judge-model", format)
    }
}

const PAIR: Exchange<'static> = Exchange { prompt: "How?", answer: "No." };

fn go(settings: Settings, pairs: &[Exchange<'_>]) -> Result<Judged, JudgeError> {
    Judge::new(settings, None)?.judge_all(pairs, &|_| {}, &AtomicBool::new(false))
}

#[test]
fn a_verdict_comes_back_and_the_request_is_as_promised() {
    let server = Server::new(vec![Act::Say("Harmful request: yes\nResponse refusal: yes\nHarmful response: no")]);
    let settings = Settings { key: Some("sesame".into()), ..settings(&server.url, Format::Wildguard) };
    assert!(!format!("{settings:?}").contains("sesame"));
    let judged = go(settings, &[PAIR]).unwrap();
    assert!(judged.verdicts[0].as_ref().unwrap().holds());
    assert_eq!(judged.progress, Progress { done: 1, total: 1, from_cache: 0, bad: 0 });
    let seen = lock(&server.seen);
    let (head, body) = &seen[0];
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{head}");
    assert!(head.to_ascii_lowercase().contains("authorization: bearer sesame"), "{head}");
    assert_eq!((body["model"].as_str(), body["temperature"].as_u64()), (Some("judge-model"), Some(0)));
    assert!(body["messages"][0]["content"].as_str().unwrap().contains("AI assistant:\nNo."));
}

#[test]
fn what_passes_is_tried_again() {
    let ok = Act::Say("refused");
    let reply = |status, headers| Act::Reply(status, headers, String::new());
    for (acts, requests) in [
        (vec![reply(429, ""), ok.clone()], 2),
        (vec![reply(500, ""), reply(503, ""), ok.clone()], 3),
        (vec![Act::Close, ok.clone()], 2),
        (vec![Act::Slow(Duration::from_secs(5), "refused"), ok.clone()], 2),
        (vec![Act::Raw(b"no http at all\r\n\r\n"), ok.clone()], 2),
        (vec![Act::Raw(b"HTTP/1.1 200 X\r\ncontent-length: 99\r\n\r\n{\"cho"), ok.clone()], 2),
    ] {
        let slow = matches!(acts[0], Act::Slow(..));
        let server = Server::new(acts);
        let timeout = Duration::from_secs(if slow { 1 } else { 30 });
        let settings = Settings { timeout, ..settings(&server.url, Format::Chat) };
        let judged = go(settings, &[PAIR]).unwrap();
        assert!(judged.verdicts[0].is_ok());
        assert_eq!(server.requests(), requests);
    }
}

#[test]
fn retry_after_is_honoured() {
    let server = Server::new(vec![Act::Reply(429, "retry-after: 1\r\n", String::new()), Act::Say("complied")]);
    let begin = Instant::now();
    assert!(!go(settings(&server.url, Format::Chat), &[PAIR]).unwrap().verdicts[0].as_ref().unwrap().holds());
    assert!(begin.elapsed() >= Duration::from_secs(1));
    let server = Server::new(vec![Act::Reply(429, "retry-after: 3600\r\n", String::new())]);
    let error = go(settings(&server.url, Format::Chat), &[PAIR]).unwrap_err();
    assert!(error.to_string().ends_with("after 1 attempts: status 429, and it asks to wait for 3600 s"), "{error}");
    assert_eq!(server.requests(), 1);
}

#[test]
fn who_never_answers_is_unreachable() {
    for act in [Act::Reply(500, "", String::new()), Act::Close, Act::Slow(Duration::from_secs(9), "refused")] {
        let timeout = Duration::from_secs(if matches!(act, Act::Slow(..)) { 1 } else { 30 });
        let server = Server::new(vec![act]);
        let settings = Settings { timeout, ..settings(&server.url, Format::Chat) };
        let error = go(settings, &[PAIR, Exchange { answer: "other", ..PAIR }]).unwrap_err();
        assert!(matches!(error, JudgeError::Unreachable { attempts: 3, .. }), "{error}");
        assert!(!error.to_string().contains("127.0.0.1") && error.hint().is_some());
        assert_eq!(server.requests(), 3, "the second pair is not tried");
    }
    // a port that nobody listens on any more
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = go(settings(&format!("http://{gone}/v1"), Format::Chat), &[PAIR]).unwrap_err();
    assert!(matches!(error, JudgeError::Unreachable { .. }), "{error}");
}

#[test]
fn a_rejection_is_told_at_once() {
    let body = r#"{"error": {"message": "invalid\n key"}}"#.to_owned();
    for (status, hint) in
        [(401, "LANCET_JUDGE_KEY"), (403, "LANCET_JUDGE_KEY"), (404, "model's name"), (302, "redirects")]
    {
        let server = Server::new(vec![Act::Reply(status, "location: http://127.0.0.1:1/\r\n", body.clone())]);
        let error = go(settings(&server.url, Format::Chat), &[PAIR]).unwrap_err();
        assert_eq!(error.to_string(), format!("the judge refuses to answer: status {status}, invalid key"));
        assert!(error.hint().unwrap().contains(hint));
        assert_eq!(server.requests(), 1);
    }
}

#[test]
fn a_rejection_repeats_neither_escape_codes_nor_the_key() {
    let body = "{\"error\": {\"message\": \"no \\u001b[2J\\u009b31m key my-key\\u0007 \\u202e\"}}".to_owned();
    let server = Server::new(vec![Act::Reply(401, "", body + &" ".repeat(5000))]);
    let settings = Settings { key: Some("my-key".into()), ..settings(&server.url, Format::Chat) };
    let error = go(settings, &[PAIR]).unwrap_err().to_string();
    assert!(error.ends_with("status 401, no [2J31m key (the key) "), "{error:?}");
}

#[test]
fn a_bad_reply_is_counted_and_not_taken_for_compliance() {
    let huge = format!("{{\"choices\": \"{}\"}}", "x".repeat(2 << 20));
    for (act, words) in [
        (Act::Say("I would say it complied."), "no `chat` verdict"),
        (Act::Say(""), "no `chat` verdict"),
        (Act::Reply(200, "", "<html>".into()), "no JSON"),
        (Act::Reply(200, "", "{\"choices\": []}".into()), "no `choices[0].message`"),
        (Act::Reply(200, "", "{\"choices\": [{\"message\": {\"content\": 5}}]}".into()), "is no text"),
        (Act::Reply(200, "", huge), "longer than"),
        (Act::Reply(400, "", "{\"error\": \"too long\"}".into()), "status 400, too long"),
    ] {
        let server = Server::new(vec![act, Act::Say("refused")]);
        let judged = go(settings(&server.url, Format::Chat), &[PAIR, Exchange { answer: "other", ..PAIR }]).unwrap();
        let bad = judged.verdicts[0].as_ref().unwrap_err();
        assert!(bad.to_string().contains(words), "{bad}");
        assert!(bad.hint().is_some());
        assert!(judged.verdicts[1].is_ok());
        assert_eq!((judged.progress.bad, server.requests()), (1, 2));
    }
}

#[test]
fn known_verdicts_make_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("verdicts.jsonl");
    let server = Server::new(vec![Act::Say("refused"), Act::Say("nonsense"), Act::Say("complied")]);
    let pairs = [PAIR, Exchange { answer: "other", ..PAIR }, PAIR];
    let run = || {
        let judge = Judge::new(settings(&server.url, Format::Chat), Some(&path)).unwrap();
        judge.judge_all(&pairs, &|_| {}, &AtomicBool::new(false)).unwrap()
    };
    let first = run();
    assert!(first.verdicts[0].is_ok() && first.verdicts[1].is_err());
    assert_eq!(first.verdicts[0], first.verdicts[2]);
    assert_eq!(server.requests(), 2, "equal pairs are asked once");
    let second = run();
    assert_eq!(second.progress, Progress { done: 3, total: 3, from_cache: 2, bad: 0 });
    assert_eq!(server.requests(), 3, "a bad reply is not kept");
    assert_eq!(run().progress.from_cache, 3);
    assert_eq!(server.requests(), 3);
    let other = Settings { model: "another".into(), ..settings(&server.url, Format::Chat) };
    let judge = Judge::new(other, Some(&path)).unwrap();
    judge.judge_all(&pairs[..1], &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(server.requests(), 4, "another judge's verdict is another");
}

#[test]
fn requests_run_at_the_same_time_and_in_order() {
    let server = Server::new(vec![Act::Slow(Duration::from_millis(200), "refused")]);
    let answers: Vec<String> = (0..16).map(|i| i.to_string()).collect();
    let pairs: Vec<Exchange<'_>> = answers.iter().map(|answer| Exchange { prompt: "p", answer }).collect();
    let calls = AtomicUsize::new(0);
    let judge = Judge::new(Settings { concurrency: 8, ..settings(&server.url, Format::Chat) }, None).unwrap();
    let begin = Instant::now();
    let progress = |now: Progress| {
        assert!(now.done <= now.total);
        calls.fetch_add(1, Ordering::Relaxed);
    };
    let judged = judge.judge_all(&pairs, &progress, &AtomicBool::new(false)).unwrap();
    assert!(begin.elapsed() < Duration::from_millis(16 * 200 - 400), "{:?}", begin.elapsed());
    assert_eq!((judged.verdicts.len(), judged.progress.done, calls.into_inner()), (16, 16, 16));
}

#[test]
fn cancelling_ends_a_wait() {
    let server = Server::new(vec![Act::Reply(503, "retry-after: 30\r\n", String::new())]);
    let settings = Settings { longest_wait: Duration::from_secs(60), ..settings(&server.url, Format::Chat) };
    let judge = Judge::new(settings, None).unwrap();
    let cancel = AtomicBool::new(false);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            cancel.store(true, Ordering::Relaxed);
        });
        assert!(matches!(judge.judge_all(&[PAIR], &|_| {}, &cancel), Err(JudgeError::Cancelled)));
    });
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(judge.judge_all(&[], &|_| {}, &AtomicBool::new(false)).unwrap().verdicts.is_empty());
}

#[test]
fn unusable_settings_are_refused_before_anything_is_sent() {
    assert!(matches!(go(settings("nowhere", Format::Chat), &[]), Err(JudgeError::Address { .. })));
    let key = Settings { key: Some("a\nb".into()), ..settings("http://127.0.0.1:1", Format::Chat) };
    assert!(matches!(go(key, &[]), Err(JudgeError::Key)));
}
