//! The report in a real browser: headless Chromium, driven over the DevTools protocol by a pair of pipes.
//!
//! Skipped with a message where no Chromium is found; `LANCET_CHROMIUM` names one. With `LANCET_SCREENSHOTS` set to a folder the
//! pages are left there as pictures to be looked at.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use lancet::report::*;
// what the samples name by `crate::`
use lancet::{bake, lm, onnx, runtime};
use serde_json::{Value, json};

#[path = "../src/report/rich.rs"]
mod rich;
#[allow(dead_code, reason = "the library's own tests use the rest")]
#[path = "../src/report/sample.rs"]
mod sample;

/// How long an answer of the browser may take, which may share its processor with a whole test suite.
const PATIENCE: Duration = Duration::from_secs(120);

fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("LANCET_CHROMIUM") {
        return Some(named.into());
    }
    let folders = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&folders).flat_map(|f| names.map(|n| f.join(n))).find(|p| p.is_file()).filter(|_| cfg!(unix))
}

/// A browser with one tab, and what happened in it.
struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    sent: u64,
    session: Option<String>,
    events: Vec<Value>,
    folder: tempfile::TempDir,
}

impl Browser {
    /// None, with a message, where there is no Chromium.
    fn start() -> Option<Self> {
        let Some(program) = chromium() else {
            eprintln!("skipped: no Chromium was found (set LANCET_CHROMIUM)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        // The protocol is spoken on the descriptors 3 and 4, which the shell makes of the two that can be piped.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >&2"#])
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let (send, messages) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while output.read_until(0, &mut message).is_ok_and(|n| n > 0) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else { return };
                if send.send(value).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let mut browser = Self { child, input, messages, sent: 0, session: None, events: vec![], folder };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn receive(&mut self) -> Value {
        self.messages.recv_timeout(PATIENCE).expect("the browser answers")
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.input.write_all(&bytes).unwrap();
        loop {
            let mut message = self.receive();
            if message["id"] == self.sent {
                assert!(message.get("error").is_none(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    /// Opens a page from a file of its own and waits until it is there.
    fn open(&mut self, html: &str) {
        let path = self.folder.path().join("report.html");
        std::fs::write(&path, html).unwrap();
        self.events.clear();
        self.call("Page.navigate", json!({"url": format!("file://{}", path.display())}));
        while !self.events.iter().any(|e| e["method"] == "Page.loadEventFired") {
            let event = self.receive();
            self.events.push(event);
        }
    }

    /// The size of the window, and the theme that the system wishes.
    fn show(&mut self, width: u32, theme: &str) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{"name": "prefers-color-scheme", "value": theme}]);
        self.call("Emulation.setEmulatedMedia", json!({"media": "", "features": features}));
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        let mut found = self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}));
        assert!(found.get("exceptionDetails").is_none(), "{expression}: {found}");
        found["result"]["value"].take()
    }

    fn number(&mut self, expression: &str) -> f64 {
        self.evaluate(expression).as_f64().unwrap_or_else(|| panic!("{expression} is no number"))
    }

    /// A click of the mouse in the middle of an element.
    fn click(&mut self, selector: &str) {
        let rect = format!("document.querySelector({selector:?}).getBoundingClientRect()");
        self.evaluate(&format!("document.querySelector({selector:?}).scrollIntoView({{block: 'center'}})"));
        let x = self.number(&format!("{rect}.x + {rect}.width / 2"));
        let y = self.number(&format!("{rect}.y + {rect}.height / 2"));
        for what in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": what, "x": x, "y": y, "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    fn press(&mut self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for what in ["keyDown", "keyUp"] {
            let event = json!({
                "type": what, "key": key, "code": key, "windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code, "text": text,
            });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// How many answers of the list can be seen.
    fn shown(&mut self) -> usize {
        let visible = "[...document.querySelectorAll('.list .answer')].filter(a => a.getClientRects().length).length";
        self.number(visible) as usize
    }

    /// What must not happen: a message on the console, an exception, a request for anything but the page itself.
    fn complaints(&self) -> Vec<String> {
        let of = |e: &Value| match e["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                let url = e["params"]["request"]["url"].as_str().unwrap_or_default();
                (!(url.starts_with("file://") && url.ends_with("/report.html"))).then(|| url.to_owned())
            }
            Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded") => {
                Some(e["params"].to_string())
            }
            _ => None,
        };
        self.events.iter().filter_map(of).collect()
    }

    fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("LANCET_SCREENSHOTS") else { return };
        let taken = self.call("Page.captureScreenshot", json!({"format": "png"}));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), base64(taken["data"].as_str().unwrap()))
            .unwrap();
    }

    /// The page as the browser prints it.
    fn pdf(&mut self) -> Vec<u8> {
        let printed = self.call("Page.printToPDF", json!({"printBackground": false, "preferCSSPageSize": true}));
        base64(printed["data"].as_str().unwrap())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The bytes of a text in base 64.
fn base64(text: &str) -> Vec<u8> {
    let (mut out, mut held, mut bits) = (Vec::new(), 0_u32, 0);
    for c in text.bytes() {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => break,
        };
        held = held << 6 | u32::from(six);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    out
}

/// Pages of a PDF, whose page objects Chromium does not compress.
fn pages(pdf: &[u8]) -> usize {
    let is = |at: usize, word: &[u8]| pdf[at..].starts_with(word);
    (0..pdf.len()).filter(|at| is(*at, b"/Type /Page\n") || is(*at, b"/Type /Page ")).count()
}

fn measured(run: &RunResult) -> &EvalResult {
    run.variants[0].eval.as_ref().expect("it was measured")
}

fn having(run: &RunResult, keep: impl Fn(&AnswerPair) -> bool) -> usize {
    measured(run).answers.iter().filter(|a| keep(a)).count()
}

#[test]
fn filters_work_by_mouse_and_keyboard_and_nothing_is_loaded() {
    let Some(mut browser) = Browser::start() else { return };
    let run = rich::run();
    browser.show(1200, "light");
    browser.open(&html(&run));
    browser.picture("desktop-light");
    assert_eq!(browser.shown(), measured(&run).answers.len());

    browser.click("#class-harmful");
    assert_eq!(browser.shown(), having(&run, |a| a.class == PromptClass::Harmful));
    browser.click("#change-lost");
    let lost = |a: &AnswerPair| a.class == PromptClass::Harmful && a.refused_before && !a.refused_after;
    assert_eq!(browser.shown(), having(&run, lost));
    browser.click("#condition-c3");
    let role_play = |a: &AnswerPair| a.condition.wrapper() == Some("role play");
    assert_eq!(browser.shown(), having(&run, |a| lost(a) && role_play(a)));
    browser.click("#change-all");
    browser.click("#before-refused");
    browser.click("#after-complied");
    let turned = |a: &AnswerPair| a.outcome_before == Outcome::Refused && a.outcome_after == Outcome::Complied;
    assert_eq!(browser.shown(), having(&run, |a| a.class == PromptClass::Harmful && role_play(a) && turned(a)));
    browser.picture("filtered");

    // by keyboard: an arrow moves within a group, Enter opens a prompt
    browser.open(&html(&run));
    browser.press("Tab", 9);
    assert_eq!(browser.evaluate("document.activeElement.className"), "skip", "the skip link comes first");
    assert!(browser.number("document.activeElement.getBoundingClientRect().left") >= 0.0, "and can be seen");
    browser.evaluate("document.querySelector('#class-all').focus()");
    browser.press("ArrowRight", 39);
    assert_eq!(browser.shown(), having(&run, |a| a.class == PromptClass::PseudoHarmful));
    let ring = "getComputedStyle(document.activeElement.nextElementSibling).outlineStyle";
    assert_eq!(browser.evaluate(ring), "solid", "the focus can be seen");
    browser.evaluate("document.querySelector('.list .answer summary').focus()");
    browser.press("Enter", 13);
    assert_eq!(browser.evaluate("document.querySelector('.list .answer').open"), true);
    let held = browser.evaluate("document.querySelector('.list .answer blockquote').innerText");
    assert!(measured(&run).answers[0].before.starts_with(held.as_str().unwrap()), "{held}");

    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn a_phone_and_a_dark_system_are_served() {
    let Some(mut browser) = Browser::start() else { return };
    let body = "getComputedStyle(document.body).backgroundColor";
    let mut refused = rich::run();
    sample::guard(&mut refused).passed = false;
    refused.shared.outputs.model = None;
    for (name, run) in [("rich", rich::run()), ("small", sample::run()), ("refused", refused)] {
        for (width, theme, color) in
            [(360, "light", "rgb(255, 255, 255)"), (360, "dark", "rgb(20, 23, 26)"), (1200, "dark", "rgb(20, 23, 26)")]
        {
            browser.show(width, theme);
            browser.open(&html(&run));
            browser.picture(&format!("{name}-{width}-{theme}"));
            assert_eq!(browser.evaluate(body), color, "{name}");
            for open in [false, true] {
                browser.evaluate(&format!("document.querySelectorAll('details').forEach(d => d.open = {open})"));
                let wide = browser.number("document.documentElement.scrollWidth");
                assert!(wide <= f64::from(width), "{name} is {wide} wide in {width}, open: {open}");
            }
            assert_eq!(browser.complaints(), Vec::<String>::new());
        }
    }
}

#[test]
fn the_print_holds_what_is_folded() {
    let Some(mut browser) = Browser::start() else { return };
    let mut run = sample::run();
    let answer = measured(&run).answers[0].clone();
    sample::eval(&mut run).answers.extend(vec![answer; 40]);
    browser.open(&html(&run));
    let short = pages(&browser.pdf());
    // The same list of prompts: only what is folded away under each is longer.
    for answer in &mut sample::eval(&mut run).answers[5..] {
        answer.after = "One line of a long answer that has much to say.\n".repeat(40);
    }
    browser.open(&html(&run));
    let pdf = browser.pdf();
    assert!(pdf.starts_with(b"%PDF-"));
    let long = pages(&pdf);
    assert!(short >= 4 && long >= short + 20, "{short} pages, {long} with long answers");

    browser.call("Emulation.setEmulatedMedia", json!({"media": "print"}));
    let seen = |selector: &str| {
        format!("document.querySelector({selector:?}).checkVisibility({{contentVisibilityAuto: true}})")
    };
    for folded in [".list .answer blockquote", ".fold table", ".rest"] {
        // a busy machine may take a while to draw what the change of the medium unfolds
        let printed = (0..100).any(|_| {
            let now = browser.evaluate(&seen(folded)) == true;
            if !now {
                std::thread::sleep(Duration::from_millis(100));
            }
            now
        });
        assert!(printed, "{folded} is not printed");
    }
    for hidden in [".filters", "nav", ".skip"] {
        assert_eq!(browser.evaluate(&seen(hidden)), false, "{hidden} is printed");
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn the_report_of_the_demo_opens_and_filters() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut demo = std::process::Command::new(env!("CARGO_BIN_EXE_lancet"));
    // short answers in few wrappers: the page is what is tested, so the guard does not matter
    demo.args(["demo", "--quiet", "--force", "--max-new-tokens", "12", "--wrapped-prompts", "2", "-o"]).arg(&out);
    let output = demo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = RunResult::from_json(&std::fs::read_to_string(out.join("lancet.json")).unwrap()).unwrap();
    let page = std::fs::read_to_string(out.join("lancet.html")).unwrap();
    for (width, theme) in [(1200, "light"), (360, "dark")] {
        browser.show(width, theme);
        browser.open(&page);
        browser.picture(&format!("demo-{width}-{theme}"));
        assert_eq!(browser.shown(), measured(&run).answers.len());
        browser.click("#class-pseudo_harmful");
        assert_eq!(browser.shown(), having(&run, |a| a.class == PromptClass::PseudoHarmful));
        browser.click("#after-complied");
        assert_eq!(
            browser.shown(),
            having(&run, |a| a.class == PromptClass::PseudoHarmful && a.outcome_after == Outcome::Complied)
        );
        assert!(browser.number("document.documentElement.scrollWidth") <= f64::from(width));
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn base_64_is_read() {
    assert_eq!(base64("TGFuY2V0"), b"Lancet");
    assert_eq!(base64("TGFuYw=="), b"Lanc");
}
