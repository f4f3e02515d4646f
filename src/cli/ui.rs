//! The only printer: progress and messages on stderr, results on stdout.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lancet::pipeline::engine::Observer;
use lancet::pipeline::stage::{Stage, Steps};
use lancet::report::document::{Document, terminal};
use lancet::report::layout::{escaped, tame};

use super::progress::{EVERY, Progress};

/// Progress bars on a terminal; lines elsewhere, one as a stage begins and one every ten seconds; nothing when quiet.
pub struct Ui {
    bar: Mutex<Option<ProgressBar>>,
    /// The stage under way, and when it began.
    progress: Arc<UnderWay>,
    quiet: bool,
}

/// A stage, and when it began; `None` between stages.
type UnderWay = Mutex<Option<(Progress, Instant)>>;

impl Ui {
    /// A printer.
    pub fn new(quiet: bool) -> Self {
        let progress = Arc::default();
        if !quiet && !std::io::stderr().is_terminal() {
            let told = Arc::downgrade(&progress);
            // without a thread there are fewer lines
            let _ = std::thread::Builder::new().name("progress".into()).spawn(move || tell(&told));
        }
        Self { bar: Mutex::new(None), progress, quiet }
    }

    /// Does `work` with the stage under way, the time since it began, and its bar where there is one.
    fn under_way(&self, work: impl FnOnce(&mut Progress, Duration, Option<&ProgressBar>)) {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((progress, since)) = progress.as_mut() {
            work(progress, since.elapsed(), bar.as_ref());
        }
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

/// Says every ten seconds how far the stage under way is, until nobody holds it any more.
fn tell(progress: &Weak<UnderWay>) {
    // of the stage that a line was said of last: when it began, and its lines
    let mut said: Option<(Instant, u32)> = None;
    while let Some(progress) = progress.upgrade() {
        if let Some((progress, since)) = progress.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let lines = said.filter(|(begun, _)| begun == since).map_or(0, |(_, lines)| lines);
            if since.elapsed() >= EVERY * (lines + 1) {
                eprint_line(&progress.line(since.elapsed()));
                said = Some((*since, lines + 1));
            }
        }
        drop(progress);
        std::thread::sleep(Duration::from_millis(250));
    }
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

impl Drop for Ui {
    /// Takes away the bar of a stage that an error ended, so that what is said of it stands alone.
    fn drop(&mut self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Ui {
    fn start(&self, stage: &Stage, total: u64) {
        if self.quiet {
            return;
        }
        // a stage that an error ended is over
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
        let begun = Some((Progress::new(stage, total), Instant::now()));
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = begun;
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

    fn listens(&self) -> bool {
        !self.quiet
    }

    fn advance(&self, steps: u64) {
        self.under_way(|progress, _, bar| {
            progress.advance(steps);
            bar.inspect(|bar| bar.inc(steps));
        });
    }

    fn expect(&self, total: u64) {
        self.under_way(|progress, _, bar| {
            progress.expect(total);
            bar.inspect(|bar| bar.set_length(total));
        });
    }

    fn tokens(&self, count: u64) {
        self.under_way(|progress, elapsed, bar| {
            progress.generated(count);
            bar.inspect(|bar| bar.set_message(escaped(&progress.message(elapsed))));
        });
    }

    fn finish(&self) {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take();
        let over = self.progress.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        } else if let Some(summary) = over.and_then(|(progress, since)| progress.summary(since.elapsed())) {
            eprint_line(&summary);
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
