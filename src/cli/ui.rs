//! The only printer: progress and messages on stderr, results on stdout.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lancet::pipeline::engine::Observer;
use lancet::pipeline::stage::{Stage, Steps};
use lancet::report::document::{Document, terminal};
use lancet::report::layout::{escaped, tame};

/// Progress bars on a terminal; a line a stage elsewhere; nothing when quiet.
pub struct Ui {
    bar: Mutex<Option<ProgressBar>>,
    /// The stage that generates, its tokens so far, and when it began.
    generated: Mutex<(String, u64, Instant)>,
    quiet: bool,
}

impl Ui {
    /// A printer.
    pub fn new(quiet: bool) -> Self {
        Self { bar: Mutex::new(None), generated: Mutex::new((String::new(), 0, Instant::now())), quiet }
    }

    fn generated(&self) -> std::sync::MutexGuard<'_, (String, u64, Instant)> {
        self.generated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line on stderr.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
            match bar.as_ref() {
                Some(bar) => bar.suspend(|| eprint_line(text)),
                None => eprint_line(text),
            }
        }
    }
}

/// Tokens a second of a stage.
fn rate((_, tokens, since): &(String, u64, Instant)) -> String {
    format!("{:.0} tokens/s", *tokens as f64 / since.elapsed().as_secs_f64().max(1e-3))
}

/// The longest part of a message that is shown, in characters: names in files may be of any length.
const LONGEST: usize = 4000;

/// A line on stderr. Whatever it repeats of a file or a server steers nothing.
fn eprint_line(text: &str) {
    let mut line = escaped(text);
    if let Some((at, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(at);
        line.push('…');
    }
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Observer for Ui {
    fn start(&self, stage: &Stage, total: u64) {
        if self.quiet {
            return;
        }
        *self.generated() = (stage.to_string(), 0, Instant::now());
        if !std::io::stderr().is_terminal() {
            eprint_line(&format!("{stage} ..."));
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        let numbers = match stage.steps() {
            Steps::Bytes => "{bytes}/{total_bytes} {bytes_per_sec}",
            Steps::Items => "{pos}/{len} {per_sec}",
        };
        let style = ProgressStyle::with_template(&format!("{{msg:24}} {{bar:28}} {numbers} {{eta}} left"))
            .expect("a valid template");
        bar.set_style(style);
        bar.set_message(escaped(&stage.to_string()));
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
    }

    fn advance(&self, steps: u64) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            bar.inc(steps);
        }
    }

    fn tokens(&self, count: u64) {
        if self.quiet {
            return;
        }
        let mut generated = self.generated();
        generated.1 += count;
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            bar.set_message(escaped(&format!("{}, {}", generated.0, rate(&generated))));
        }
    }

    fn finish(&self) {
        let generated = self.generated();
        if generated.1 > 0 && !self.quiet && !std::io::stderr().is_terminal() {
            eprint_line(&format!("{}: {} tokens, {}", generated.0, generated.1, rate(&generated)));
        }
        drop(generated);
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }

    fn note(&self, text: &str) {
        self.say(text);
    }
}

/// A line on stderr that even a quiet run says.
pub fn warn(text: &str) {
    eprint_line(text);
}

/// Writes a result to stdout. A closed pipe is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout();
    match out.write_all(tame(text).as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Writes the summary of a document to stdout, in lines that fit.
pub fn show(document: &Document) -> anyhow::Result<()> {
    print(&terminal(document, width(), colour()))
}

/// Writes a value as JSON to stdout. What steers a terminal stands in strings alone, and is written there as its number.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut text = String::new();
    for c in serde_json::to_string_pretty(value)?.chars() {
        if c != '\n' && escaped(c.encode_utf8(&mut [0; 4])).len() > c.len_utf8() {
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text.push('\n');
    print(&text)
}

/// Width to wrap at.
fn width() -> usize {
    std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).filter(|c| (40..=400).contains(c)).unwrap_or(100)
}

/// Whether results on stdout are coloured.
fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// An error with its chain, then what to do.
pub fn print_error(error: &anyhow::Error) {
    let mut text = String::from("error");
    let mut last = String::new();
    for part in error.chain() {
        let part = part.to_string();
        if part != last {
            text.push_str(": ");
            text.push_str(&part);
        }
        last = part;
    }
    eprint_line(&text);
    if let Some(hint) = error.chain().find_map(|e| e.downcast_ref::<lancet::Error>()).and_then(lancet::Error::hint) {
        eprint_line("");
        eprint_line(&format!("hint: {hint}"));
    }
}
